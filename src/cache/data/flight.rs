//! Lets one caller load a missing value while the others wait for it.
//!
//! The one who leads may vanish, as its client hangs up: that wakes the others, and the next leads.

use std::{
    any::Any,
    collections::HashMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
};

use tokio::sync::watch;

use super::{key::DataKey, memory::Value};

/// What a load came to. An error is shared with those who wait for the same type of it.
pub type Landing = Result<Arc<Value>, Arc<dyn Any + Send + Sync>>;

type Outcome = watch::Receiver<Option<Landing>>;

/// Loads under way.
#[derive(Default)]
pub struct Flights(Mutex<HashMap<String, Flight>>);

struct Flight {
    /// The purge generation when it began.
    began_at: u64,
    outcome: Outcome,
}

/// A caller's part.
pub enum Role<'f> {
    Lead(Leader<'f>),
    Wait(Waiter),
}

/// The caller that loads.
pub struct Leader<'f> {
    flights: &'f Flights,
    key: &'f DataKey,
    outcome: watch::Sender<Option<Landing>>,
}

/// A caller that waits.
pub struct Waiter(Outcome);

impl Flights {
    /// Joins the load of `key`, or starts one at the generation `now`. One that began before a purge of
    /// the key is not joined: `purged_since` knows.
    pub fn join<'f>(
        &'f self,
        key: &'f DataKey,
        now: u64,
        purged_since: impl FnOnce(u64) -> bool,
    ) -> Role<'f> {
        let mut flights = self.lock();
        if let Some(flight) = flights.get(key.as_str())
            && (flight.began_at == now || !purged_since(flight.began_at))
        {
            return Role::Wait(Waiter(flight.outcome.clone()));
        }
        let (outcome, receiver) = watch::channel(None);
        flights.insert(key.as_str().to_owned(), Flight { began_at: now, outcome: receiver });
        Role::Lead(Leader { flights: self, key, outcome })
    }

    fn lock(&self) -> MutexGuard<'_, HashMap<String, Flight>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Leader<'_> {
    /// Tells those who wait.
    pub fn land(self, landing: Landing) {
        self.outcome.send_replace(Some(landing));
    }
}

impl Drop for Leader<'_> {
    fn drop(&mut self) {
        let mut flights = self.flights.lock();
        // After a purge the key may belong to a younger flight.
        let own = |flight: &Flight| flight.outcome.same_channel(&self.outcome.subscribe());
        if flights.get(self.key.as_str()).is_some_and(own) {
            flights.remove(self.key.as_str());
        }
    }
}

impl Waiter {
    /// Waits for the outcome; `None` when the leader vanished.
    pub async fn landed(mut self) -> Option<Landing> {
        self.0.wait_for(Option::is_some).await.ok()?.clone()
    }
}
