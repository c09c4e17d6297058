//! Whose turn it is to ask the origin, among the instances.

use std::time::{Duration, Instant};

use tokio::time::timeout;

use super::{
    Consulted, L2,
    lease::{Lease, PATIENCE},
};
use crate::cache::remote::{Lead, Outcome};

/// What a request that leads its instance does next.
#[derive(Debug)]
pub enum Turn {
    /// Asks the origin: with the lease, or without where there is no use in waiting for one.
    Lead(Option<Lease>),
    /// Another instance has asked.
    Landed(Outcome),
}

/// A lease may be found expired a little after it was said to expire.
const SLACK: Duration = Duration::from_millis(20);

impl L2 {
    /// Acquires the lease on a fetch, or waits until who has it is done.
    pub async fn turn(&self, consulted: &Consulted) -> Turn {
        // Kept before it is acquired: who goes away while he asks may have got it.
        let lease = self.leases.keep(consulted.name);
        let began = Instant::now();
        // Before the lease is asked for: its holder may be done by the time of the answer.
        let mut landing = self.coherence.landing(self.remote.lease(&consulted.name));
        let mut counted = false;
        loop {
            match self.remote.lead(&consulted.name, lease.token(), &consulted.seen).await {
                Ok(Lead::Acquired) => return Turn::Lead(Some(lease)),
                Ok(Lead::Changed) => {
                    lease.was_released();
                    return Turn::Landed(Outcome::Stored);
                }
                Ok(Lead::Busy { remaining }) => {
                    if !std::mem::replace(&mut counted, true) {
                        self.stats.awaited.add(1);
                    }
                    let patience = PATIENCE.saturating_sub(began.elapsed());
                    match timeout((remaining + SLACK).min(patience), &mut landing).await {
                        Ok(Ok(outcome)) => return Turn::Landed(outcome),
                        // The link is lost, or a younger flight for the same response waits now.
                        Ok(Err(_)) => return Turn::Landed(Outcome::Vanished),
                        // Expired with its holder, or renewed by it.
                        Err(_) if began.elapsed() < PATIENCE => {}
                        Err(_) => return Turn::Lead(None),
                    }
                }
                Err(_) => {
                    self.stats.errors.add(1);
                    return Turn::Lead(None);
                }
            }
        }
    }

    /// Acquires the lease if nobody has it; `Err` when somebody has, and `Ok(None)` when that cannot be
    /// found out.
    pub async fn try_lead(&self, consulted: &Consulted) -> Result<Option<Lease>, Busy> {
        let lease = self.leases.keep(consulted.name);
        match self.remote.lead(&consulted.name, lease.token(), &consulted.seen).await {
            Ok(Lead::Acquired) => Ok(Some(lease)),
            Ok(Lead::Changed | Lead::Busy { .. }) => {
                lease.was_released();
                Err(Busy)
            }
            Err(_) => Ok(None),
        }
    }
}

/// Another instance is at it.
#[derive(Debug)]
pub struct Busy;
