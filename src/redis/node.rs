//! One server: whether it is there, and the way of a command to it and back.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, Ordering::Relaxed},
    },
    time::Duration,
};

use ::redis::{Cmd, RedisError, RedisResult, Value, aio::MultiplexedConnection, pipe};
use tokio::{
    sync::{Notify, SetOnce},
    task::AbortHandle,
    time::{Instant, timeout_at},
};

use super::{
    breaker::Breaker,
    connect::{Dialer, Opened, Pushes, Target},
    fault::{Fault, describe},
    metrics::{CallResult, Metrics},
    notice::Notice,
    worker::Worker,
};

/// How long an error that closed nothing is shown.
const SHOWN: Duration = Duration::from_secs(10);

/// A command, or what came in while it waited, from which on the line is busy rather than dead: over a
/// slow network large values take longer than a call may.
const BULK: u64 = 64 << 10;

/// A server, or whichever is the master.
pub(super) struct Node {
    /// Its address, where there are several.
    name: Option<String>,
    target: Target,
    dialer: Arc<Dialer>,
    pub(super) metrics: Arc<Metrics>,
    pub(super) breaker: Breaker,
    /// Tells the supervisor that an epoch has ended.
    pub(super) ended: Notify,
    /// Those who read and write for the workers.
    drivers: Mutex<Vec<AbortHandle>>,
    /// Set when it is known for the first time whether it is there.
    pub(super) settled: SetOnce<()>,
    /// Whether the supervisor has a connection.
    pub(super) connected: AtomicBool,
    notes: Mutex<Notes>,
    started: Instant,
    notice: Notice,
}

#[derive(Default)]
struct Notes {
    latency: Option<Duration>,
    /// What went wrong last, and when.
    error: Option<(String, Instant)>,
    ever_up: bool,
}

/// Why a command has no answer to go on with.
#[derive(Debug)]
pub(super) enum Trouble {
    /// None at all, and how that came.
    Away(CallResult),
    /// The keys are on another node, or on their way there.
    Moved(RedisError),
    ReadOnly,
    OutOfMemory,
    /// The server refused the command.
    Refused(RedisError),
}

impl Node {
    pub(super) fn new(
        name: Option<String>,
        target: Target,
        dialer: Arc<Dialer>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            name,
            target,
            dialer,
            metrics,
            breaker: Breaker::new(),
            ended: Notify::new(),
            drivers: Mutex::default(),
            settled: SetOnce::new(),
            connected: AtomicBool::new(false),
            notes: Mutex::default(),
            started: Instant::now(),
            notice: Notice::new(),
        }
    }

    pub(super) async fn connect(&self, pushes: Pushes) -> RedisResult<Opened> {
        self.target.connect(&self.dialer, pushes).await
    }

    /// Sends `command`, of `size` bytes, and waits for its answer until `deadline`; `asking` for a key
    /// that is on its way to this node.
    ///
    /// Everything that is sent can be sent twice (a `SET`, a read, a script that checks who asks), so
    /// a connection that turns out to be dead is replaced and the command sent again, once.
    pub(super) async fn ask(
        self: &Arc<Self>,
        command: &Cmd,
        size: usize,
        asking: bool,
        deadline: Instant,
    ) -> Result<Value, Trouble> {
        let mut again = false;
        loop {
            if !self.breaker.is_closed() {
                return Err(Trouble::Away(CallResult::Skipped));
            }
            let Some(worker) = Worker::connected(self, deadline).await else {
                return Err(Trouble::Away(CallResult::Unconnected));
            };
            let heard = worker.heard();
            let sending = send(worker.connection(), command, asking);
            let error = match timeout_at(deadline, sending).await {
                Err(_) => {
                    let busy = size as u64 + (worker.heard() - heard) >= BULK;
                    worker.late(busy);
                    if !busy {
                        self.late(worker.epoch);
                    }
                    return Err(Trouble::Away(CallResult::Late));
                }
                Ok(Ok(value)) => {
                    worker.answered();
                    self.breaker.answered();
                    return Ok(value);
                }
                Ok(Err(error)) => error,
            };
            let fault = Fault::of(&error);
            match fault {
                Fault::Broken => worker.lose(),
                _ => worker.answered(),
            }
            match fault {
                Fault::Broken if again => {
                    self.broken(worker.epoch, &describe(&error));
                    return Err(Trouble::Away(CallResult::Broken));
                }
                Fault::Broken => {}
                Fault::Unavailable => {
                    self.broken(worker.epoch, &describe(&error));
                    return Err(Trouble::Away(CallResult::Unavailable));
                }
                Fault::ReadOnly => {
                    self.breaker.answered();
                    self.note(&describe(&error));
                    self.refresh(worker.epoch);
                    if again || worker.epoch == self.breaker.epoch() {
                        return Err(Trouble::ReadOnly);
                    }
                }
                Fault::OutOfMemory => {
                    self.breaker.answered();
                    self.note("OOM");
                    return Err(Trouble::OutOfMemory);
                }
                Fault::Moved => {
                    self.breaker.answered();
                    return Err(Trouble::Moved(error));
                }
                Fault::Failed => {
                    self.breaker.answered();
                    return Err(Trouble::Refused(error));
                }
            }
            again = true;
        }
    }

    /// A call of `epoch` had no answer in time.
    pub(super) fn late(&self, epoch: u64) {
        if self.breaker.late(epoch) {
            self.opened("no answer in time");
        }
    }

    /// There is no connection, or no use in one.
    pub(super) fn broken(&self, epoch: u64, error: &str) {
        if self.breaker.broken(epoch) {
            self.opened(error);
        }
    }

    /// The server of `epoch` takes no writes: another may be the master now.
    fn refresh(&self, epoch: u64) {
        let now = u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.breaker.refresh(epoch, now) {
            self.end();
        }
    }

    fn opened(&self, error: &str) {
        self.away(error);
        self.end();
    }

    /// Notes who drives a new connection of a worker.
    pub(super) fn drives(&self, driver: AbortHandle) {
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        drivers.retain(|driver| !driver.is_finished());
        drivers.push(driver);
    }

    /// Closes the connections of an epoch that is over, with all that waits in them: calls under way
    /// need not wait out their time.
    fn end(&self) {
        let mut drivers = self.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        drivers.drain(..).for_each(|driver| driver.abort());
        drop(drivers);
        self.ended.notify_one();
    }

    /// It is away for now: notes why, and logs it unless the log says so already.
    pub(super) fn away(&self, error: &str) {
        self.note(error);
        let _ = self.settled.set(());
        self.notes().latency = None;
        if let Some(left_out) = self.notice.away() {
            tracing::warn!(node = self.name, error, left_out, "Redis is away: {error}");
        }
    }

    /// A probe was answered after `latency`.
    pub(super) fn up(&self, latency: Duration) {
        self.breaker.answered();
        let closed = self.breaker.close();
        let _ = self.settled.set(());
        let mut notes = self.notes();
        notes.latency = Some(latency);
        if closed {
            notes.error = None;
            let first = !std::mem::replace(&mut notes.ever_up, true);
            drop(notes);
            if self.notice.back() || first {
                let latency_ms = latency.as_secs_f64() * 1000.0;
                tracing::info!(node = self.name, latency_ms, "Redis is connected");
            }
        }
    }

    /// Notes what went wrong, for those who look.
    pub(super) fn note(&self, error: &str) {
        self.notes().error = Some((error.to_owned(), Instant::now()));
    }

    /// How long the last `PING` took.
    pub(super) fn latency(&self) -> Option<Duration> {
        self.notes().latency
    }

    /// What is wrong, or was in the last seconds.
    pub(super) fn error(&self) -> Option<String> {
        let up = self.breaker.is_closed();
        let notes = self.notes();
        let shown = notes.error.as_ref().filter(|(_, at)| !up || at.elapsed() < SHOWN);
        shown.map(|(error, _)| error.clone())
    }

    pub(super) fn is_connected(&self) -> bool {
        self.connected.load(Relaxed)
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Plain values: a panic leaves nothing half done.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

async fn send(
    mut connection: MultiplexedConnection,
    command: &Cmd,
    asking: bool,
) -> RedisResult<Value> {
    let answer = if asking {
        let mut both = pipe();
        both.cmd("ASKING").add_command(command.clone());
        let mut answers = connection.send_packed_commands(&both, 0, 2).await?;
        answers.pop().unwrap_or(Value::Nil)
    } else {
        connection.send_packed_command(command).await?
    };
    answer.extract_error()
}
