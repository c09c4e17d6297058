//! The second tier: stored responses that all instances share.
//!
//! | module | |
//! |---|---|
//! | [`codec`] | the binary form of a stored response |
//! | [`lease`] | of all instances, one fetches |
//! | `consult` | asks the second tier before the origin is asked |
//! | `store` | puts there what was stored in the first |
//! | `turn` | waits for another instance's fetch |
//! | `varies` | a guess that saves a round trip |
//!
//! It is a help and never a need: away, slow, full or broken, a request goes on to the origin. It is
//! asked only while this instance knows of every purge ([`Coherence::is_trusted`]), because purges do
//! not touch what is stored there: whoever finds a dead entry recognises it by its generation.

pub mod codec;
mod consult;
pub mod lease;
mod store;
mod turn;
mod varies;

use std::sync::Arc;

use tokio::sync::Semaphore;

use self::lease::{Inbox, Leases};
pub use self::{
    consult::{Consulted, Question},
    store::Stored,
    turn::Turn,
    varies::Varies,
};
use super::{clock::Timestamp, coherence::Coherence, remote::Remote, stats::L2Stats};

/// Bytes on their way to the store at a time; what comes on top of that is not stored there.
const MAX_IN_FLIGHT: usize = 64 << 20;

/// The second tier of one process.
pub struct L2 {
    pub(super) remote: Arc<dyn Remote>,
    pub coherence: Arc<Coherence>,
    pub(super) leases: Arc<Leases>,
    /// Permits are bytes.
    in_flight: Arc<Semaphore>,
    pub stats: L2Stats,
}

impl L2 {
    /// The second tier, and what has to be handed to [`Leases::run`].
    pub fn new(remote: Arc<dyn Remote>, coherence: Arc<Coherence>) -> (Self, Inbox) {
        let (leases, inbox) = Leases::new(Arc::clone(&remote));
        let in_flight = Arc::new(Semaphore::new(MAX_IN_FLIGHT));
        (Self { remote, coherence, leases, in_flight, stats: L2Stats::default() }, inbox)
    }

    /// Whether it makes sense to ask.
    pub fn is_usable(&self, now: Timestamp) -> bool {
        self.remote.is_up() && self.coherence.is_trusted(now)
    }
}

impl std::fmt::Debug for L2 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("L2").field("stats", &self.stats).finish_non_exhaustive()
    }
}
