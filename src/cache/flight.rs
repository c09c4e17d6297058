//! Lets one request fetch a missing response while the others for it wait.
//!
//! Without this, an entry that expires under load sends every waiting client to the origin at once.
//! The first request leads; the others wait for its outcome and are woken by it. A leader may
//! vanish: its client hangs up and the server drops its future. Dropping a [`Leader`] wakes the
//! waiters, and the next of them leads.
//!
//! What waiters get is decided once the origin's headers are there: a response that may be shared is
//! shared; for any other, each of them asks the origin itself, side by side.

use std::{
    cell::RefCell,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{entry::Entry, fill::Fill, key::Key, l2::lease::Lease, origin::Failure, remote};

/// What became of a flight.
#[derive(Debug, Clone)]
pub enum Landing {
    /// The response is arriving and may be shared.
    Filling(Arc<Fill>),
    /// The stored response was validated.
    Validated(Arc<Entry>),
    /// The response is the leader's alone.
    Unshared,
    /// The origin failed; for everyone.
    Failed(Failure),
    /// The origin answered with a status that allows a stale response in its place.
    ServerError(u16),
}

type Outcome = watch::Sender<Option<Landing>>;

const SHARDS: usize = 64;

/// All fetches under way.
#[derive(Debug)]
pub struct Flights {
    shards: [Mutex<Shard>; SHARDS],
}

type Shard = HashMap<Key, Flight>;

/// One fetch under way.
#[derive(Debug)]
struct Flight {
    /// The purge generation when it began.
    began_at: u64,
    outcome: watch::Receiver<Option<Landing>>,
}

impl Default for Flights {
    fn default() -> Self {
        Self { shards: std::array::from_fn(|_| Mutex::default()) }
    }
}

/// A request's part in a flight.
#[derive(Debug)]
pub enum Role {
    Lead(Leader),
    Wait(Waiter),
}

/// The request that fetches. Dropping it unannounced makes a waiter lead.
#[derive(Debug)]
pub struct Leader {
    flights: Arc<Flights>,
    key: Key,
    outcome: Outcome,
    /// Held where other instances wait too.
    lease: RefCell<Option<Lease>>,
}

/// A request that waits for another to fetch.
#[derive(Debug)]
pub struct Waiter(watch::Receiver<Option<Landing>>);

impl Flights {
    /// Joins the flight for `key`, or starts one at the purge generation `now`.
    ///
    /// `purged_since` says whether something was purged after a given generation that concerns the
    /// response: then the flight is not joined, as its response would be of no use.
    pub fn join(
        self: &Arc<Self>,
        key: &Key,
        now: u64,
        purged_since: impl FnOnce(u64) -> bool,
    ) -> Role {
        let mut shard = self.shard(key);
        if let Some(flight) = shard.get(key)
            && (flight.began_at == now || !purged_since(flight.began_at))
        {
            return Role::Wait(Waiter(flight.outcome.clone()));
        }
        let (outcome, receiver) = watch::channel(None);
        shard.insert(key.clone(), Flight { began_at: now, outcome: receiver });
        let lease = RefCell::default();
        Role::Lead(Leader { flights: Arc::clone(self), key: key.clone(), outcome, lease })
    }

    fn shard(&self, key: &Key) -> MutexGuard<'_, Shard> {
        let index = key.borrow().hash() as usize % SHARDS;
        self.shards[index].lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leader {
    /// Tells the waiters what became of the flight, and whoever joins until it ends.
    ///
    /// It ends when the leader is dropped: for a response that is being stored, once it is.
    pub fn announce(&self, landing: Landing) {
        let elsewhere = match landing {
            // The others get it from the second tier, once it is there.
            Landing::Filling(_) | Landing::Validated(_) => None,
            Landing::Unshared => Some(remote::Outcome::Unshared),
            Landing::Failed(Failure(code)) => Some(remote::Outcome::Failed(code)),
            // Each has its own stale response to fall back on, or asks for itself.
            Landing::ServerError(_) => Some(remote::Outcome::Vanished),
        };
        if let Some(outcome) = elsewhere
            && let Some(lease) = self.take_lease()
        {
            lease.end(outcome);
        }
        self.outcome.send_replace(Some(landing));
    }
}

impl Leader {
    pub fn key(&self) -> &Key {
        &self.key
    }

    /// Leads for all instances from now on.
    pub fn hold(&self, lease: Lease) {
        self.lease.replace(Some(lease));
    }

    /// The lease, to be released by whoever stores the response.
    pub fn take_lease(&self) -> Option<Lease> {
        self.lease.take()
    }
}

impl Drop for Leader {
    fn drop(&mut self) {
        let mut shard = self.flights.shard(&self.key);
        // After a purge the key may belong to a younger flight.
        let own = |flight: &Flight| flight.outcome.same_channel(&self.outcome.subscribe());
        if shard.get(&self.key).is_some_and(own) {
            shard.remove(&self.key);
        }
    }
}

impl Waiter {
    /// Waits for the outcome; `None` when the leader vanished.
    pub async fn landed(mut self) -> Option<Landing> {
        let landing = self.0.wait_for(Option::is_some).await.ok()?;
        landing.clone()
    }
}
