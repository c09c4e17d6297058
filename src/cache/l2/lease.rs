//! Leases on fetches: of all instances, one asks the origin.
//!
//! A lease is never what makes a response correct: two leaders at once cost one request more. It is kept
//! alive while its holder waits for the origin, and runs out soon after its holder died.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use futures_util::{StreamExt as _, future::ready, stream};
use tokio::sync::mpsc;

use crate::cache::remote::{Name, Outcome, Remote, redis::LEASE};

/// Renewals and releases that are sent side by side.
const AT_ONCE: usize = 64;

/// Releases kept to be tried once more.
const MAX_AGAIN: usize = 1024;

/// The leases this instance holds.
pub struct Leases {
    remote: Arc<dyn Remote>,
    /// By token.
    held: Mutex<HashMap<Arc<str>, Name>>,
    tokens: AtomicU64,
    ended: mpsc::UnboundedSender<Ended>,
}

/// A lease to be given back.
type Ended = (Name, Arc<str>, Outcome);

/// What the keeper works on.
pub struct Inbox(mpsc::UnboundedReceiver<Ended>);

impl Leases {
    pub fn new(remote: Arc<dyn Remote>) -> (Arc<Self>, Inbox) {
        // Not more than there are leases, which are not more than there are requests.
        let (ended, inbox) = mpsc::unbounded_channel();
        (
            Arc::new(Self { remote, held: Mutex::default(), tokens: AtomicU64::new(0), ended }),
            Inbox(inbox),
        )
    }

    fn held(&self) -> MutexGuard<'_, HashMap<Arc<str>, Name>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A lease that is about to be asked for. Tokens are all of one length, and nobody else's.
    pub fn keep(self: &Arc<Self>, name: Name) -> Lease {
        let number = self.tokens.fetch_add(1, Ordering::Relaxed);
        let token: Arc<str> = format!("{}{number:016x}", self.remote.instance()).into();
        self.held().insert(Arc::clone(&token), name);
        Lease { leases: Arc::clone(self), name, token, outcome: Some(Outcome::Vanished) }
    }

    /// Renews what is held and gives back what has ended, for ever. To be spawned once.
    pub async fn run(self: Arc<Self>, mut inbox: Inbox) {
        let remote = &self.remote;
        let mut renewal = tokio::time::interval(LEASE / 4);
        let mut batch = Vec::with_capacity(AT_ONCE);
        // What the store did not take, to be tried once more; after that it runs out.
        let mut again = Vec::new();
        let release = |ended: Vec<Ended>| {
            let released = stream::iter(ended).map(|(name, token, outcome)| async move {
                let failed = remote.release(&name, &token, outcome).await.is_err();
                failed.then_some((name, token, outcome))
            });
            released.buffer_unordered(AT_ONCE).filter_map(ready).collect::<Vec<Ended>>()
        };
        loop {
            tokio::select! {
                count = inbox.0.recv_many(&mut batch, AT_ONCE) => {
                    if count == 0 {
                        return;
                    }
                    again.extend(release(std::mem::take(&mut batch)).await);
                    again.truncate(MAX_AGAIN);
                }
                _ = renewal.tick() => {
                    release(std::mem::take(&mut again)).await;
                    self.renew().await;
                }
            }
        }
    }

    async fn renew(&self) {
        let held: Vec<_> = self.held().iter().map(|(token, name)| (token.clone(), *name)).collect();
        stream::iter(held)
            .for_each_concurrent(AT_ONCE, |(token, name)| async move {
                // A lease that is lost may be somebody else's: the fetch goes on, the fence in the store
                // decides whose response stays. One that is only asked for is not there to be renewed.
                let _ = self.remote.renew(&name, &token).await;
            })
            .await;
    }
}

/// The right to fetch. Dropped, it is given back as that of a leader who went away.
pub struct Lease {
    leases: Arc<Leases>,
    name: Name,
    token: Arc<str>,
    /// What to tell those who wait; nothing when the store has told them already.
    outcome: Option<Outcome>,
}

impl Lease {
    pub fn name(&self) -> &Name {
        &self.name
    }

    pub fn token(&self) -> &str {
        &self.token
    }

    /// Gives it back.
    pub fn end(mut self, outcome: Outcome) {
        self.outcome = Some(outcome);
    }

    /// There is nothing to give back: the store has released it together with what was put, or another
    /// has it.
    pub fn was_released(mut self) {
        self.outcome = None;
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.leases.held().remove(&self.token);
        if let Some(outcome) = self.outcome {
            // Without a keeper the process is at its end, and the lease runs out.
            let _ = self.leases.ended.send((self.name, Arc::clone(&self.token), outcome));
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("token", &self.token).finish_non_exhaustive()
    }
}

/// How long a request waits for another instance at most: as long as an origin may take by default. The
/// leader's own time-outs end the wait before, unless they were set longer.
pub const PATIENCE: Duration = Duration::from_secs(12);
