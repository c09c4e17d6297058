//! The way of a write: to the primary, once.
//!
//! Only what certainly did not happen is tried again. A write whose connection broke may have happened,
//! and is reported as such.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Instant,
};

use sqlx::SqlStr;
use tokio::time::timeout;

use super::{
    backend::{Backend, Rows, Statement},
    error::{Class, Error, classify},
    node::InFlight,
    pool::{Lease, NoConnection},
    position::Position,
    read::PATIENCE,
    router::Router,
};

impl<B: Backend> Router<B> {
    /// Runs a write; where it can be read comes with its rows.
    ///
    /// A primary of an older history than `floor` is none.
    pub(super) async fn write(
        &self,
        floor: Option<Position>,
        statement: Statement<B>,
    ) -> Result<(Rows<B>, Option<Position>), Error> {
        let started = Instant::now();
        let deadline = started + self.settings.query_timeout;
        let mut refused = None;
        loop {
            let (index, mut lease, _counted) = match self.primary(floor, started).await {
                Ok(found) => found,
                Err(Error::NoPrimary) if let Some(error) = refused => {
                    return Err(Error::Query(error));
                }
                Err(error) => return Err(error),
            };
            let left = deadline.saturating_duration_since(Instant::now());
            let run = async {
                let rows = B::run(lease.connection(), statement.clone()).await?;
                Ok((rows, B::position(lease.connection()).await))
            };
            let result: Result<sqlx::Result<_>, _> = timeout(left, run).await;
            lease.count(!matches!(result, Ok(Ok(_))));
            match result {
                Ok(Ok((rows, Ok(position)))) => {
                    lease.settled();
                    return Ok((rows, position));
                }
                Ok(Ok((rows, Err(error)))) => {
                    // It is done; where it can be read is not known, but for the primary.
                    if classify(&error) == Class::Dead {
                        self.suspect(index);
                    }
                    return Ok((rows, Some(Position::end_of(self.view().timeline))));
                }
                Ok(Err(error)) => match classify(&error) {
                    Class::NotPrimary => {
                        self.suspect(index);
                        self.stats.retries.fetch_add(1, Relaxed);
                        refused = Some(error);
                    }
                    Class::Dead => {
                        self.suspect(index);
                        return Err(self.unknown("the connection broke"));
                    }
                    Class::Conflict | Class::Full | Class::Query => {
                        lease.settled();
                        return Err(Error::Query(error));
                    }
                },
                Err(_) => {
                    self.nodes[index].kick.notify_one();
                    return Err(self.unknown("there was no answer in time"));
                }
            }
        }
    }

    /// Begins a transaction on the primary.
    pub(super) async fn begin(self: &Arc<Self>, floor: Option<Position>) -> Result<Open<B>, Error> {
        let started = Instant::now();
        loop {
            let (index, mut lease, counted) = self.primary(floor, started).await?;
            let left = self.settings.query_timeout.saturating_sub(started.elapsed());
            match timeout(left, B::run(lease.connection(), plain("BEGIN"))).await {
                Ok(Ok(_)) => {
                    drop(counted);
                    return Ok(Open { router: Arc::clone(self), index, lease });
                }
                // Nothing has happened yet.
                Ok(Err(error)) if classify(&error) == Class::Dead => self.suspect(index),
                Ok(Err(error)) => return Err(Error::Query(error)),
                Err(_) => return Err(Error::TimedOut),
            }
        }
    }

    /// A connection to the primary, which is waited for if there is none.
    async fn primary(
        &self,
        floor: Option<Position>,
        started: Instant,
    ) -> Result<(usize, Lease<B>, InFlight<'_>), Error> {
        loop {
            let changed = self.changed();
            let view = self.view();
            let known =
                view.primary.filter(|_| floor.is_none_or(|floor| floor.timeline <= view.timeline));
            if let Some(index) = known {
                let node = &self.nodes[index];
                let counted = node.begin();
                let pools = node.pools();
                let got = tokio::select! {
                    biased;
                    got = pools.writes.get() => got,
                    () = pools.lost.cancelled() => Err(NoConnection::Closed),
                };
                match got {
                    Ok(lease) => return Ok((index, lease, counted)),
                    Err(NoConnection::Busy) => return Err(Error::Overloaded),
                    Err(NoConnection::Closed) => {}
                    Err(NoConnection::Failed(error)) => {
                        if classify(&error) == Class::Full {
                            return Err(Error::Overloaded);
                        }
                        self.suspect(index);
                    }
                }
            }
            let left = PATIENCE.saturating_sub(started.elapsed());
            if left.is_zero() {
                return Err(Error::NoPrimary);
            }
            if known.is_none() {
                self.kick(|_| true);
                let _ = timeout(left, changed).await;
            }
        }
    }

    fn unknown(&self, why: &'static str) -> Error {
        self.stats.outcomes_unknown.fetch_add(1, Relaxed);
        Error::OutcomeUnknown(why)
    }
}

/// A transaction under way.
pub(super) struct Open<B: Backend> {
    router: Arc<Router<B>>,
    index: usize,
    lease: Lease<B>,
}

impl<B: Backend> Open<B> {
    pub(super) fn connection(&mut self) -> &mut B::Connection {
        self.lease.connection()
    }

    pub(super) async fn commit(mut self) -> Result<Option<Position>, Error> {
        let Self { router, index, lease } = &mut self;
        let commit = async {
            // PostgreSQL answers COMMIT in a failed transaction with ROLLBACK, which is no error. Any
            // other statement is one there.
            B::run(lease.connection(), plain("SELECT 1")).await?;
            B::run(lease.connection(), plain("COMMIT")).await?;
            Ok(B::position(lease.connection()).await)
        };
        let result: Result<sqlx::Result<_>, _> =
            timeout(router.settings.query_timeout, commit).await;
        match result {
            Ok(Ok(Ok(position))) => {
                lease.settled();
                Ok(position)
            }
            Ok(Ok(Err(_))) => Ok(Some(Position::end_of(router.view().timeline))),
            Ok(Err(error)) if classify(&error) == Class::Dead => {
                router.suspect(*index);
                Err(router.unknown("the connection broke"))
            }
            // The connection is closed, and with it what was not committed is rolled back.
            Ok(Err(error)) => Err(Error::Query(error)),
            Err(_) => {
                router.nodes[*index].kick.notify_one();
                Err(router.unknown("there was no answer in time"))
            }
        }
    }

    pub(super) async fn rollback(mut self) {
        let rollback = B::run(self.lease.connection(), plain("ROLLBACK"));
        if let Ok(Ok(_)) = timeout(self.router.settings.query_timeout, rollback).await {
            self.lease.settled();
        }
    }
}

fn plain<B: Backend>(sql: &'static str) -> Statement<B> {
    Statement { sql: SqlStr::from_static(sql), arguments: None, persistent: false }
}
