//! Connections to one node for one purpose.
//!
//! deadpool keeps them, since nothing in it waits without a deadline: sqlx's own pool pings a connection
//! when it is given back, for as long as that takes, and treats a refused connection as a reason to wait.
//!
//! A connection goes back only in a known state. One that is dropped while a statement is under way is
//! closed, because its answer would be read by whoever comes next.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use deadpool::{
    Runtime,
    managed::{self, Metrics, PoolError, QueueMode, RecycleError, RecycleResult, TimeoutType},
};
use serde::Serialize;
use sqlx::Connection as _;

use super::backend::{Backend, Purpose};

/// How long a request waits for a connection when all are in use.
const WAIT: Duration = Duration::from_millis(250);
const CREATE: Duration = Duration::from_secs(1);
const RECYCLE: Duration = Duration::from_millis(200);

/// A connection that lay idle for longer is asked whether it still lives. Asking each time would cost as
/// much as the query.
const TRUSTED_IDLE: Duration = Duration::from_secs(1);

/// How old connections get, so that they follow changes of addresses and of the server's memory. Each
/// lives up to a tenth longer, or all would be renewed at once.
const LIFETIME: Duration = Duration::from_secs(30 * 60);

/// What the connections of a node have been through, over all of its pools for one purpose.
#[derive(Debug, Default)]
pub(super) struct Counters {
    pub(super) waits: AtomicU64,
    pub(super) wait_micros: AtomicU64,
    pub(super) timeouts: AtomicU64,
    pub(super) opened: AtomicU64,
    /// Given up for age or because they did not answer when they were to be used again.
    pub(super) expired: AtomicU64,
    /// Closed with a statement under way, or broken.
    pub(super) discarded: AtomicU64,
    pub(super) queries: AtomicU64,
    pub(super) errors: AtomicU64,
}

/// Statistics of a pool, as operators see them.
#[derive(Debug, Clone, Serialize)]
pub struct PoolStatus {
    /// Connections that are open.
    pub size: usize,
    /// The most that may be.
    pub max: usize,
    pub idle: usize,
    pub in_use: usize,
    /// Requests that wait for one.
    pub waiting: usize,
    /// Requests that found none idle, and the time all of them spent until they had one.
    pub waits_total: u64,
    pub wait_seconds_total: f64,
    /// Requests that waited in vain.
    pub timeouts_total: u64,
    pub opened_total: u64,
    /// Closed for age, or for not answering when they were to be used again.
    pub expired_total: u64,
    /// Closed with a statement under way, or broken.
    pub discarded_total: u64,
    pub queries_total: u64,
    pub errors_total: u64,
}

/// Opens connections and decides which are fit to be used again.
pub(super) struct Manager<B: Backend> {
    target: Arc<B::Target>,
    purpose: Purpose,
    counters: Arc<Counters>,
}

/// A connection and how old it may get.
pub(super) struct Kept<C> {
    connection: C,
    until: Instant,
    /// Whether its state is not known: a statement is under way, or it broke.
    busy: bool,
}

impl<B: Backend> managed::Manager for Manager<B> {
    type Type = Kept<B::Connection>;
    type Error = sqlx::Error;

    async fn create(&self) -> sqlx::Result<Self::Type> {
        let connection = B::connect(&self.target, self.purpose).await?;
        let opened = self.counters.opened.fetch_add(1, Relaxed);
        // Spread by the count: evenly, and without a source of chance.
        let extra = LIFETIME.mul_f64((opened % 16) as f64 / 160.0);
        Ok(Kept { connection, until: Instant::now() + LIFETIME + extra, busy: false })
    }

    async fn recycle(
        &self,
        kept: &mut Self::Type,
        metrics: &Metrics,
    ) -> RecycleResult<sqlx::Error> {
        if Instant::now() > kept.until {
            self.counters.expired.fetch_add(1, Relaxed);
            return Err(RecycleError::message("it is old"));
        }
        if metrics.last_used() > TRUSTED_IDLE {
            // Counted here, since a ping that takes too long never comes to a line after it.
            self.counters.expired.fetch_add(1, Relaxed);
            kept.connection.ping().await?;
            self.counters.expired.fetch_sub(1, Relaxed);
        }
        Ok(())
    }
}

/// Why there is no connection.
#[derive(Debug)]
pub(super) enum NoConnection {
    /// All are in use, and stayed so.
    Busy,
    /// The node gave none, or not in time.
    Failed(sqlx::Error),
    /// The pool was closed, because its node failed or the gateway stops.
    Closed,
}

/// The connections to one node for one purpose.
pub(super) struct Pool<B: Backend> {
    inner: managed::Pool<Manager<B>>,
    max: usize,
    counters: Arc<Counters>,
}

impl<B: Backend> Pool<B> {
    pub(super) fn new(
        target: &Arc<B::Target>,
        purpose: Purpose,
        max: usize,
        counters: &Arc<Counters>,
    ) -> Self {
        let manager =
            Manager { target: Arc::clone(target), purpose, counters: Arc::clone(counters) };
        let builder = managed::Pool::builder(manager)
            .max_size(max)
            // The one used last is the warmest, and the others may grow old.
            .queue_mode(QueueMode::Lifo)
            .wait_timeout(Some(WAIT))
            .create_timeout(Some(CREATE))
            .recycle_timeout(Some(RECYCLE))
            .runtime(Runtime::Tokio1);
        #[expect(
            clippy::expect_used,
            reason = "building fails only for timeouts without a runtime"
        )]
        let inner = builder.build().expect("there is a runtime");
        Self { inner, max, counters: Arc::clone(counters) }
    }

    /// A connection, within [`WAIT`] where all are in use.
    pub(super) async fn get(&self) -> Result<Lease<B>, NoConnection> {
        let started = Instant::now();
        let waits = self.inner.status().available == 0;
        let got = self.inner.get().await;
        if waits {
            self.counters.waits.fetch_add(1, Relaxed);
            self.counters.wait_micros.fetch_add(started.elapsed().as_micros() as u64, Relaxed);
        }
        match got {
            Ok(object) => Ok(Lease { object: Some(object), counters: Arc::clone(&self.counters) }),
            Err(PoolError::Timeout(TimeoutType::Wait)) => {
                self.counters.timeouts.fetch_add(1, Relaxed);
                Err(NoConnection::Busy)
            }
            Err(PoolError::Timeout(TimeoutType::Create | TimeoutType::Recycle)) => {
                Err(NoConnection::Failed(sqlx::Error::Io(std::io::ErrorKind::TimedOut.into())))
            }
            Err(PoolError::Backend(error)) => Err(NoConnection::Failed(error)),
            Err(
                PoolError::Closed | PoolError::NoRuntimeSpecified | PoolError::PostCreateHook(_),
            ) => Err(NoConnection::Closed),
        }
    }

    /// Closes what is idle now, and what is in use when it is given back.
    pub(super) fn close(&self) {
        self.inner.close();
    }

    pub(super) fn status(&self) -> PoolStatus {
        let status = self.inner.status();
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        PoolStatus {
            size: status.size,
            max: self.max,
            idle: status.available,
            in_use: status.size.saturating_sub(status.available),
            waiting: status.waiting,
            waits_total: count(&self.counters.waits),
            wait_seconds_total: count(&self.counters.wait_micros) as f64 / 1e6,
            timeouts_total: count(&self.counters.timeouts),
            opened_total: count(&self.counters.opened),
            expired_total: count(&self.counters.expired),
            discarded_total: count(&self.counters.discarded),
            queries_total: count(&self.counters.queries),
            errors_total: count(&self.counters.errors),
        }
    }
}

/// A connection on loan.
pub(super) struct Lease<B: Backend> {
    /// Taken when it is dropped.
    object: Option<managed::Object<Manager<B>>>,
    counters: Arc<Counters>,
}

impl<B: Backend> Lease<B> {
    /// The connection, whose state is not known from here on until [`Lease::settled`].
    pub(super) fn connection(&mut self) -> &mut B::Connection {
        #[expect(clippy::expect_used, reason = "it is taken only by drop")]
        let kept = &mut **self.object.as_mut().expect("it is there until drop");
        kept.busy = true;
        &mut kept.connection
    }

    /// Every answer has been read: the connection may be used again.
    pub(super) fn settled(&mut self) {
        if let Some(object) = &mut self.object {
            object.busy = false;
        }
    }

    pub(super) fn count(&self, failed: bool) {
        self.counters.queries.fetch_add(1, Relaxed);
        if failed {
            self.counters.errors.fetch_add(1, Relaxed);
        }
    }
}

impl<B: Backend> Drop for Lease<B> {
    fn drop(&mut self) {
        let Some(object) = self.object.take() else { return };
        if object.busy {
            self.counters.discarded.fetch_add(1, Relaxed);
            // Dropping a connection closes its socket at once, without the usual farewell.
            drop(managed::Object::take(object));
        }
    }
}
