//! What all parts of the link share, and the way of a call.

use std::{
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ::redis::{Cmd, RedisResult, ScriptInvocation, Value};
use tokio::{
    sync::{Notify, SetOnce},
    time::{Instant, timeout_at},
};

use super::{
    BUDGET, Health,
    breaker::Breaker,
    connect::{Connection, Connector},
    fault::{Error, Fault, describe},
    metrics::{CallResult, Metrics},
    worker::Worker,
};
use crate::telemetry::throttle::Throttle;

/// Calls under way at once, over all workers. More of them would wait in line for each other.
const IN_FLIGHT: usize = 1024;

/// How long an error that closed nothing is shown.
const SHOWN: Duration = Duration::from_secs(10);

/// At most one line about the state in this many seconds, however often it changes.
const LOG_INTERVAL: u64 = 10;

pub(super) struct Link {
    pub(super) connector: Connector,
    pub(super) breaker: Breaker,
    pub(super) metrics: Metrics,
    /// Tells the supervisor that an epoch has ended.
    pub(super) ended: Notify,
    /// Set when it is known for the first time whether Redis is there.
    pub(super) settled: SetOnce<()>,
    /// Whether the supervisor has a connection.
    pub(super) connected: AtomicBool,
    in_flight: AtomicUsize,
    notes: Mutex<Notes>,
    started: Instant,
    log: Throttle,
}

#[derive(Default)]
struct Notes {
    latency: Option<Duration>,
    /// What went wrong last, and when.
    error: Option<(String, Instant)>,
    /// Whether the log says that Redis is away.
    logged_away: bool,
    ever_up: bool,
}

/// What is sent.
#[derive(Clone, Copy)]
pub(super) enum Request<'r> {
    Command(&'r Cmd),
    Script(&'r ScriptInvocation<'r>),
}

impl Request<'_> {
    async fn send(self, mut connection: Connection) -> RedisResult<Value> {
        match self {
            Self::Command(command) => command.query_async(&mut connection).await,
            Self::Script(script) => script.invoke_async(&mut connection).await,
        }
    }
}

impl Link {
    pub(super) fn new(connector: Connector) -> Self {
        Self {
            connector,
            breaker: Breaker::new(),
            metrics: Metrics::default(),
            ended: Notify::new(),
            settled: SetOnce::new(),
            connected: AtomicBool::new(false),
            in_flight: AtomicUsize::new(0),
            notes: Mutex::default(),
            started: Instant::now(),
            log: Throttle::new(1),
        }
    }

    /// Sends `request` and waits for its answer, at most [`BUDGET`] in all.
    pub(super) async fn call(self: &Arc<Self>, request: Request<'_>) -> Result<Value, Error> {
        if !self.breaker.is_closed() {
            self.metrics.skipped();
            return Err(Error::Away);
        }
        let Some(_permit) = self.permit() else {
            self.metrics.called(CallResult::Overloaded, Duration::ZERO);
            return Err(Error::Away);
        };
        let began = Instant::now();
        let (result, kind) = self.attempt(request, began + BUDGET).await;
        self.metrics.called(kind, began.elapsed());
        result
    }

    /// Everything that is sent can be sent twice (a `SET`, a read, a script that checks who asks), so
    /// a connection that turns out to be dead is replaced and the call sent again, once.
    async fn attempt(
        self: &Arc<Self>,
        request: Request<'_>,
        deadline: Instant,
    ) -> (Result<Value, Error>, CallResult) {
        let mut again = false;
        loop {
            let Some(worker) = Worker::connected(self, deadline).await else {
                return (Err(Error::Away), CallResult::Unconnected);
            };
            let sent = timeout_at(deadline, request.send(worker.connection())).await;
            let error = match sent {
                Err(_) => {
                    worker.late();
                    self.late(worker.epoch);
                    return (Err(Error::Away), CallResult::Late);
                }
                Ok(Ok(value)) => {
                    worker.answered();
                    self.breaker.answered();
                    return (Ok(value), CallResult::Answered);
                }
                Ok(Err(error)) => error,
            };
            let fault = Fault::of(&error);
            if fault != Fault::Broken {
                worker.answered();
            }
            match fault {
                Fault::Broken => {
                    worker.lose();
                    if again {
                        self.broken(worker.epoch, &describe(&error));
                        return (Err(Error::Away), CallResult::Broken);
                    }
                }
                Fault::Unavailable => {
                    self.broken(worker.epoch, &describe(&error));
                    return (Err(Error::Away), CallResult::Unavailable);
                }
                Fault::Moving => return (Err(Error::Away), CallResult::Unavailable),
                Fault::ReadOnly => {
                    self.breaker.answered();
                    self.note(&describe(&error));
                    self.refresh(worker.epoch);
                    if again || worker.epoch == self.breaker.epoch() {
                        return (Err(Error::ReadOnly), CallResult::ReadOnly);
                    }
                }
                Fault::OutOfMemory => {
                    self.breaker.answered();
                    self.note("OOM");
                    return (Err(Error::OutOfMemory), CallResult::OutOfMemory);
                }
                Fault::Failed => {
                    self.breaker.answered();
                    return (Err(Error::Failed(error.to_string())), CallResult::Refused);
                }
            }
            again = true;
        }
    }

    fn permit(&self) -> Option<Permit<'_>> {
        let permit = Permit(&self.in_flight);
        (self.in_flight.fetch_add(1, Relaxed) < IN_FLIGHT).then_some(permit)
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
            self.ended.notify_one();
        }
    }

    fn opened(&self, error: &str) {
        self.away(error);
        self.ended.notify_one();
    }

    /// Redis is away for now: notes why, and logs it unless the log says so already.
    pub(super) fn away(&self, error: &str) {
        self.note(error);
        let _ = self.settled.set(());
        let mut notes = self.notes();
        notes.latency = None;
        if !notes.logged_away
            && let Some(left_out) = self.log.admit(self.started.elapsed().as_secs() / LOG_INTERVAL)
        {
            notes.logged_away = true;
            drop(notes);
            tracing::warn!(error, left_out, "Redis is away: {error}");
        }
    }

    /// A probe was answered after `latency`.
    pub(super) fn up(&self, latency: Duration) {
        self.breaker.answered();
        let closed = self.breaker.close();
        let _ = self.settled.set(());
        let mut notes = self.notes();
        notes.latency = Some(latency);
        let logged_away = std::mem::take(&mut notes.logged_away);
        let first = !std::mem::replace(&mut notes.ever_up, true);
        if closed {
            notes.error = None;
            drop(notes);
            if first || logged_away {
                tracing::info!(latency_ms = latency.as_secs_f64() * 1000.0, "Redis is connected");
            }
        }
    }

    fn note(&self, error: &str) {
        self.notes().error = Some((error.to_owned(), Instant::now()));
    }

    pub(super) fn health(&self) -> Health {
        let up = self.breaker.is_closed();
        let notes = self.notes();
        let shown = notes.error.as_ref().filter(|(_, at)| !up || at.elapsed() < SHOWN);
        Health {
            up,
            connected: self.connected.load(Relaxed),
            latency: notes.latency,
            error: shown.map(|(error, _)| error.clone()),
            mode: self.connector.mode(),
        }
    }

    fn notes(&self) -> MutexGuard<'_, Notes> {
        // Plain values: a panic leaves nothing half done.
        self.notes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Leave to have one call under way.
struct Permit<'l>(&'l AtomicUsize);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
