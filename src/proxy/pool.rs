//! Idle connections of one worker, by target.
//!
//! The one used last is used next: the others then grow old and are closed, so a pool shrinks to
//! what the load needs.

use std::{
    cell::RefCell,
    collections::HashMap,
    rc::{Rc, Weak},
    time::Duration,
};

use foldhash::fast::RandomState;
use tokio::time::Instant;

use super::connection::Connection;

/// Idle connections to one target that a worker keeps at most.
const MAX_IDLE: usize = 256;
/// Below the 60 s after which many servers close an idle connection.
const IDLE_LIMIT: Duration = Duration::from_secs(55);
/// An upstream that names its own limit is believed, less this margin.
const MARGIN: Duration = Duration::from_secs(1);
const SWEEP_EVERY: Duration = Duration::from_secs(5);

#[derive(Debug, Default)]
pub(super) struct Pool(RefCell<HashMap<u64, Vec<Idle>, RandomState>>);

#[derive(Debug)]
struct Idle {
    connection: Connection,
    since: Instant,
    until: Instant,
}

impl Pool {
    /// An open connection to `target`, idle for no longer than `youngest_within`.
    pub(super) fn take(&self, target: u64, youngest_within: Duration) -> Option<Connection> {
        let mut targets = self.0.borrow_mut();
        let idle = targets.get_mut(&target)?;
        let now = Instant::now();
        while let Some(Idle { mut connection, since, until }) = idle.pop() {
            // The others are older still.
            if now.saturating_duration_since(since) > youngest_within {
                idle.push(Idle { connection, since, until });
                return None;
            }
            if now < until && connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Keeps a connection whose exchange is complete; `secs` is what the upstream said of idle ones.
    pub(super) fn put(&self, target: u64, mut connection: Connection, secs: Option<u64>) {
        connection.reset();
        let limit = match secs {
            Some(secs) => Duration::from_secs(secs).saturating_sub(MARGIN).min(IDLE_LIMIT),
            None => IDLE_LIMIT,
        };
        let since = Instant::now();
        let mut targets = self.0.borrow_mut();
        let idle = targets.entry(target).or_default();
        if idle.len() < MAX_IDLE {
            idle.push(Idle { connection, since, until: since + limit });
        }
    }

    fn sweep(&self) {
        let now = Instant::now();
        self.0.borrow_mut().retain(|_, idle| {
            idle.retain_mut(|idle| now < idle.until && idle.connection.is_quiet());
            !idle.is_empty()
        });
    }

    /// Closes what is too old, for as long as the pool lives.
    pub(super) async fn sweep_regularly(pool: Weak<Self>) {
        loop {
            tokio::time::sleep(SWEEP_EVERY).await;
            let Some(pool) = pool.upgrade() else { return };
            Rc::as_ref(&pool).sweep();
        }
    }
}
