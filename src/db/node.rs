//! One server of the database: its connections, and what is counted of it.

use std::sync::{
    Arc, Mutex, PoisonError,
    atomic::{AtomicUsize, Ordering::Relaxed},
};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::{
    backend::{Backend, Purpose},
    pool::{Counters, Pool},
};

/// One server.
pub(super) struct Node<B: Backend> {
    /// Host and port, or a file; never a credential.
    pub(super) name: String,
    pub(super) target: Arc<B::Target>,
    pools: ArcSwap<Pools<B>>,
    sizes: Sizes,
    pub(super) in_flight: AtomicUsize,
    /// Has the node probed now.
    pub(super) kick: Notify,
    reads: Arc<Counters>,
    writes: Arc<Counters>,
    pub(super) probes: Mutex<Probes>,
}

#[derive(Debug, Clone, Copy)]
struct Sizes {
    pool: usize,
    timeout: Duration,
}

/// The connections of one life of a node.
pub(super) struct Pools<B: Backend> {
    pub(super) reads: Pool<B>,
    pub(super) writes: Pool<B>,
    /// Cancelled when the node failed: whoever reads from it asks elsewhere.
    pub(super) lost: CancellationToken,
}

/// How the latest probes went.
#[derive(Debug, Clone, Default)]
pub(super) struct Probes {
    pub(super) took: Option<Duration>,
    pub(super) failures: u64,
    /// The latest failure; gone with the next good probe.
    pub(super) error: Option<String>,
    pub(super) state_changes: u64,
}

impl<B: Backend> Node<B> {
    pub(super) fn new(name: String, target: B::Target, pool: usize, timeout: Duration) -> Self {
        let target = Arc::new(target);
        let sizes = Sizes { pool, timeout };
        let (reads, writes) = (Arc::<Counters>::default(), Arc::<Counters>::default());
        let pools = ArcSwap::from_pointee(Pools::new(&target, sizes, &reads, &writes));
        Self {
            name,
            target,
            pools,
            sizes,
            in_flight: AtomicUsize::new(0),
            kick: Notify::new(),
            reads,
            writes,
            probes: Mutex::default(),
        }
    }

    pub(super) fn pools(&self) -> Arc<Pools<B>> {
        self.pools.load_full()
    }

    /// Leaves all connections behind, because they lead to a life of the server that is over, or nowhere.
    ///
    /// Reads under way on them end at once; writes may go on until their own deadline, as they may yet
    /// succeed, without taking room from those that come.
    pub(super) fn renew(&self) {
        let fresh = Pools::new(&self.target, self.sizes, &self.reads, &self.writes);
        let old = self.pools.swap(Arc::new(fresh));
        old.lost.cancel();
        old.close();
    }

    pub(super) fn probes(&self) -> std::sync::MutexGuard<'_, Probes> {
        self.probes.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts a query as under way until the guard is dropped.
    pub(super) fn begin(&self) -> InFlight<'_> {
        self.in_flight.fetch_add(1, Relaxed);
        InFlight(&self.in_flight)
    }
}

impl<B: Backend> Pools<B> {
    fn new(
        target: &Arc<B::Target>,
        sizes: Sizes,
        reads: &Arc<Counters>,
        writes: &Arc<Counters>,
    ) -> Self {
        let Sizes { pool, timeout } = sizes;
        let writers = B::WRITERS.unwrap_or(pool);
        Self {
            reads: Pool::new(target, Purpose::Read { timeout }, pool, reads),
            writes: Pool::new(target, Purpose::Write { timeout }, writers, writes),
            lost: CancellationToken::new(),
        }
    }

    pub(super) fn close(&self) {
        self.reads.close();
        self.writes.close();
    }
}

pub(super) struct InFlight<'n>(&'n AtomicUsize);

impl Drop for InFlight<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}
