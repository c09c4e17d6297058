//! One connection for each worker thread and server.
//!
//! The task that drives a connection lives on the runtime of the thread that uses it, so a call costs
//! no wake-up of another thread. A connection is opened by the first call that needs it; the calls
//! beside it share that one attempt. The attempt itself is a task of its own and goes on when they
//! have run out of time: over a slow network the call after them finds it done.

use std::{
    cell::RefCell,
    sync::{
        Arc, Weak,
        atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering::Relaxed},
    },
};

use ::redis::aio::MultiplexedConnection;
use tokio::{
    sync::watch,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::task::AbortOnDropHandle;

use super::{BUDGET, CONNECT, fault::describe, node::Node};

/// Calls in a row that a connection may leave without an answer. A server that stalls for a moment
/// need not greet every worker anew, but a connection that a firewall has forgotten answers no more.
const SILENT: u32 = 3;

/// The same for calls that the line is too slow for. What they sent waits in line all the same.
const BUSY: u32 = 8;

thread_local! {
    /// Few: one for each server.
    static SLOTS: RefCell<Vec<Slot>> = const { RefCell::new(Vec::new()) };
}

struct Slot {
    node: Weak<Node>,
    /// Whether this thread ever had a connection.
    used: bool,
    state: State,
}

enum State {
    Empty,
    Connecting(Attempt),
    Connected(Arc<Worker>),
}

/// A connection under way.
#[derive(Clone)]
struct Attempt {
    epoch: u64,
    since: Instant,
    outcome: watch::Receiver<Option<Outcome>>,
}

/// The connection, or nothing.
type Outcome = Option<Arc<Worker>>;

/// A worker's connection.
pub(super) struct Worker {
    connection: MultiplexedConnection,
    pub(super) epoch: u64,
    /// Calls since the last answer.
    silent: AtomicU32,
    lost: AtomicBool,
    heard: Arc<AtomicU64>,
    _driver: AbortOnDropHandle<()>,
}

impl Worker {
    /// The connection of this thread, or one that is made now, waited for until `deadline`.
    pub(super) async fn connected(node: &Arc<Node>, deadline: Instant) -> Option<Arc<Self>> {
        let mut attempt = match find(node) {
            Ok(worker) => return Some(worker),
            Err(attempt) => attempt,
        };
        // A server that takes connections and says nothing costs the first calls their budget, and
        // those that come later nothing.
        let until = deadline.min(attempt.since + BUDGET);
        match timeout_at(until, attempt.outcome.wait_for(Option::is_some)).await {
            Ok(Ok(outcome)) => outcome.clone().flatten(),
            Ok(Err(_)) | Err(_) => None,
        }
    }

    pub(super) fn connection(&self) -> MultiplexedConnection {
        self.connection.clone()
    }

    /// How many bytes have come in.
    pub(super) fn heard(&self) -> u64 {
        self.heard.load(Relaxed)
    }

    /// Notes an answer, of whatever content.
    pub(super) fn answered(&self) {
        if self.silent.load(Relaxed) != 0 {
            self.silent.store(0, Relaxed);
        }
    }

    /// Notes that there was no answer in time; `busy` where that may be for the size of things.
    pub(super) fn late(&self, busy: bool) {
        if self.silent.fetch_add(1, Relaxed) + 1 >= if busy { BUSY } else { SILENT } {
            self.lose();
        }
    }

    /// Keeps further calls from using this connection.
    pub(super) fn lose(&self) {
        self.lost.store(true, Relaxed);
    }
}

fn find(node: &Arc<Node>) -> Result<Arc<Worker>, Attempt> {
    let epoch = node.breaker.epoch();
    SLOTS.with_borrow_mut(|slots| {
        let own = slots.iter().position(|slot| std::ptr::eq(slot.node.as_ptr(), Arc::as_ptr(node)));
        let own = own.unwrap_or_else(|| {
            slots.retain(|slot| slot.node.strong_count() > 0);
            slots.push(Slot { node: Arc::downgrade(node), used: false, state: State::Empty });
            slots.len() - 1
        });
        let slot = &mut slots[own];
        if let State::Connecting(attempt) = &slot.state {
            let outcome = attempt.outcome.borrow().clone();
            match outcome {
                Some(Some(worker)) => slot.state = State::Connected(worker),
                // Its runtime is gone when nobody is left to tell.
                None if attempt.epoch == epoch && attempt.outcome.has_changed().is_ok() => {
                    return Err(attempt.clone());
                }
                _ => slot.state = State::Empty,
            }
        }
        if let State::Connected(worker) = &slot.state
            && worker.epoch == epoch
            && !worker.lost.load(Relaxed)
        {
            return Ok(Arc::clone(worker));
        }
        let attempt = start(node, epoch, slot.used);
        slot.used = true;
        slot.state = State::Connecting(attempt.clone());
        Err(attempt)
    })
}

fn start(node: &Arc<Node>, epoch: u64, again: bool) -> Attempt {
    let (done, outcome) = watch::channel(None);
    let node = Arc::clone(node);
    tokio::spawn(async move {
        let worker = match timeout(CONNECT, node.connect(None)).await {
            Ok(Ok(opened)) => {
                node.metrics.connected(again);
                node.drives(opened.driver.abort_handle());
                Some(Arc::new(Worker {
                    connection: opened.connection,
                    epoch,
                    silent: AtomicU32::new(0),
                    lost: AtomicBool::new(false),
                    heard: opened.heard,
                    _driver: opened.driver,
                }))
            }
            Ok(Err(error)) => {
                node.broken(epoch, &describe(&error));
                None
            }
            Err(_) => {
                node.broken(epoch, "no connection in time");
                None
            }
        };
        // Those who waited may have run out of time.
        let _ = done.send(Some(worker));
    });
    Attempt { epoch, since: Instant::now(), outcome }
}
