//! The way of a read: choose a node, ask it, and ask another if it fails.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use tokio::time::{sleep_until, timeout};

use super::{
    backend::{Backend, Rows, Statement},
    choose::{Because, Choice, Tried, Wanted, choose, turn},
    error::{Class, Error, classify},
    pool::NoConnection,
    router::Router,
    topology::Role,
};

/// How long a call waits for a node that it can use.
pub(super) const PATIENCE: Duration = Duration::from_secs(1);

/// How long a read waits for a replica to be known to have come far enough. Replicas are a fraction of a
/// millisecond behind; what is late is that we know.
const CATCH_UP: Duration = Duration::from_millis(15);

/// Nodes that one read asks at most.
const ATTEMPTS: usize = 8;

/// How one attempt ended.
enum Attempt<B: Backend> {
    Done(Rows<B>),
    /// The statement's own fault, or that of its row.
    Refused(sqlx::Error),
    /// Another node may do better.
    Elsewhere,
    /// All connections are in use.
    Busy,
    TimedOut,
}

impl<B: Backend> Router<B> {
    /// Runs a read.
    ///
    /// With `hedge`, a second replica is asked if the first has not answered by then.
    pub(super) async fn read(
        self: &Arc<Self>,
        wanted: Wanted,
        hedge: Option<Duration>,
        statement: Statement<B>,
    ) -> Result<Rows<B>, Error> {
        let started = Instant::now();
        let deadline = started + self.settings.query_timeout;
        let patience = deadline.min(started + PATIENCE);
        let mut tried = Tried::default();
        let mut attempts = 0;
        let mut busy = false;
        loop {
            // Begun before the look, so that nothing that is learned in between is missed.
            let changed = self.changed();
            let choice = match self.choose(wanted, tried) {
                Choice::Primary { because: Because::Position, .. } if attempts == 0 => {
                    self.catch_up(wanted).await
                }
                choice => choice,
            };
            let index = match choice {
                Choice::Replica(index) => index,
                Choice::Primary { index, because } => {
                    self.stats.on_primary(because);
                    index
                }
                Choice::Nobody if busy => return Err(Error::Overloaded),
                Choice::Nobody => {
                    let left = patience.saturating_duration_since(Instant::now());
                    if left.is_zero() || attempts >= ATTEMPTS {
                        return Err(if wanted.strong { Error::NoPrimary } else { Error::NoNode });
                    }
                    self.kick(|_| true);
                    let _ = timeout(left, changed).await;
                    tried = Tried::default();
                    continue;
                }
            };
            if attempts > 0 {
                self.stats.retries.fetch_add(1, Relaxed);
            }
            attempts += 1;
            tried.add(index);
            let attempt = match hedge {
                Some(delay) if attempts == 1 => {
                    self.hedged(index, wanted, tried, &statement, delay, deadline).await
                }
                _ => self.attempt(index, &statement, deadline).await,
            };
            match attempt {
                Attempt::Done(rows) => return Ok(rows),
                Attempt::Refused(error) => return Err(Error::Query(error)),
                Attempt::TimedOut => return Err(Error::TimedOut),
                Attempt::Busy => busy = true,
                Attempt::Elsewhere => {}
            }
        }
    }

    fn choose(&self, wanted: Wanted, tried: Tried) -> Choice {
        let view = self.view();
        let in_flight = |index: usize| self.nodes[index].in_flight.load(Relaxed);
        choose(&view, in_flight, wanted, tried, turn(), Instant::now())
    }

    /// Asks the replicas how far they are, once for all who wait, before the primary has to answer.
    async fn catch_up(&self, wanted: Wanted) -> Choice {
        let started = Instant::now();
        let mut choice = Choice::Nobody;
        let waited = timeout(CATCH_UP, async {
            loop {
                let changed = self.changed();
                choice = self.choose(wanted, Tried::default());
                if !matches!(choice, Choice::Primary { because: Because::Position, .. }) {
                    return;
                }
                let view = self.view();
                self.kick(|index| view.nodes[index].role == Some(Role::Replica));
                changed.await;
            }
        });
        let _ = waited.await;
        self.stats.position_waits.fetch_add(1, Relaxed);
        let micros = started.elapsed().as_micros() as u64;
        self.stats.position_wait_micros.fetch_add(micros, Relaxed);
        choice
    }

    async fn attempt(
        &self,
        index: usize,
        statement: &Statement<B>,
        deadline: Instant,
    ) -> Attempt<B> {
        let node = &self.nodes[index];
        let _counted = node.begin();
        let pools = node.pools();
        let run = async {
            let mut lease = match pools.reads.get().await {
                Ok(lease) => lease,
                Err(NoConnection::Busy) => return Attempt::Busy,
                Err(NoConnection::Closed) => return Attempt::Elsewhere,
                Err(NoConnection::Failed(error)) => {
                    if classify(&error) == Class::Full {
                        return Attempt::Busy;
                    }
                    self.suspect(index);
                    return Attempt::Elsewhere;
                }
            };
            let result = B::run(lease.connection(), statement.clone()).await;
            lease.count(result.is_err());
            let error = match result {
                Ok(rows) => {
                    lease.settled();
                    return Attempt::Done(rows);
                }
                Err(error) => error,
            };
            match classify(&error) {
                Class::Dead => {
                    self.suspect(index);
                    Attempt::Elsewhere
                }
                Class::Conflict if self.view().primary != Some(index) => {
                    lease.settled();
                    Attempt::Elsewhere
                }
                // A statement that writes is refused by every node alike.
                Class::NotPrimary | Class::Conflict | Class::Full | Class::Query => {
                    lease.settled();
                    Attempt::Refused(error)
                }
            }
        };
        tokio::select! {
            biased;
            attempt = run => attempt,
            () = pools.lost.cancelled() => Attempt::Elsewhere,
            () = sleep_until(deadline.into()) => {
                // Slow is not dead: the prober decides.
                node.kick.notify_one();
                Attempt::TimedOut
            }
        }
    }

    /// Asks a second replica if the first has not answered after `delay`.
    ///
    /// The slower one is left to finish in a task of its own: cutting it off would cost its connection.
    async fn hedged(
        self: &Arc<Self>,
        first: usize,
        wanted: Wanted,
        tried: Tried,
        statement: &Statement<B>,
        delay: Duration,
        deadline: Instant,
    ) -> Attempt<B> {
        let ask = |index: usize| {
            let (router, statement) = (Arc::clone(self), statement.clone());
            tokio::spawn(async move { router.attempt(index, &statement, deadline).await })
        };
        // A task that panicked or was ended by a stop.
        let lost = |_| Attempt::Elsewhere;
        let mut slow = ask(first);
        if let Ok(answered) = timeout(delay, &mut slow).await {
            return answered.unwrap_or_else(lost);
        }
        let Choice::Replica(second) = self.choose(wanted, tried) else {
            return slow.await.unwrap_or_else(lost);
        };
        self.stats.hedges.fetch_add(1, Relaxed);
        let mut quick = ask(second);
        let (answered, other, won) = tokio::select! {
            answered = &mut slow => (answered, quick, false),
            answered = &mut quick => (answered, slow, true),
        };
        match answered.unwrap_or_else(lost) {
            done @ (Attempt::Done(_) | Attempt::Refused(_)) => {
                if won {
                    self.stats.hedges_won.fetch_add(1, Relaxed);
                }
                done
            }
            _ => other.await.unwrap_or_else(lost),
        }
    }
}
