//! Counters that many threads add to, one block a thread.
//!
//! A block is written by (nearly always) one thread, so an addition stays in that core's cache; a
//! page of metrics sums the blocks. Blocks are made by the first addition that needs them: ten
//! thousand routes of which few are used cost little.

use std::{
    cell::Cell,
    sync::{
        LazyLock, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use super::Family;

/// Upper bounds of the duration buckets, in microseconds: from a hit in memory to the slowest
/// upstream anybody waits for. The bucket after the last has no bound.
const BOUNDS: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

/// Blocks of counters, of which each thread has one.
pub struct Sharded<B> {
    blocks: Box<[OnceLock<Box<Apart<B>>>]>,
}

/// Two cache lines apart from any other, as processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Apart<B>(B);

impl<B: Default> Default for Sharded<B> {
    fn default() -> Self {
        static BLOCKS: LazyLock<usize> = LazyLock::new(|| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            cores.next_power_of_two().min(64)
        });
        Self { blocks: (0..*BLOCKS).map(|_| OnceLock::new()).collect() }
    }
}

impl<B: Default> Sharded<B> {
    /// The block of this thread.
    pub fn own(&self) -> &B {
        let slot = thread_number() & (self.blocks.len() - 1);
        &self.blocks[slot].get_or_init(Box::default).0
    }

    /// The blocks that have been used.
    pub fn blocks(&self) -> impl Iterator<Item = &B> {
        self.blocks.iter().filter_map(|block| block.get().map(|block| &block.0))
    }

    /// One counter of every block together.
    pub fn sum(&self, counter: impl Fn(&B) -> &AtomicU64) -> u64 {
        self.blocks().map(|block| counter(block).load(Relaxed)).sum()
    }

    /// Writes one histogram of every block together as a distribution, unless it is empty.
    pub fn distribution(
        &self,
        histogram: impl Fn(&B) -> &Histogram,
        family: &mut Family<'_>,
        labels: &[(&str, &str)],
    ) {
        let buckets: [u64; BOUNDS.len() + 1] =
            std::array::from_fn(|bucket| self.sum(|block| &histogram(block).buckets[bucket]));
        if buckets.iter().any(|&count| count > 0) {
            let nanos = self.sum(|block| &histogram(block).nanos);
            let bounds = BOUNDS.iter().map(|&micros| micros as f64 / 1e6).chain([f64::INFINITY]);
            family.distribution(labels, bounds.zip(buckets), nanos as f64 / 1e9);
        }
    }
}

/// How long things took.
#[derive(Default)]
pub struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl Histogram {
    pub fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // A bound belongs to its bucket, so part of a microsecond counts as a whole one.
        let micros = nanos.div_ceil(1000);
        let bucket = BOUNDS.iter().position(|&bound| micros <= bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
    }
}

/// Threads are numbered in the order of their first addition, so workers spread over the blocks.
fn thread_number() -> usize {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    thread_local! {
        static NUMBER: Cell<Option<usize>> = const { Cell::new(None) };
    }
    NUMBER.with(|number| {
        number.get().unwrap_or_else(|| {
            let own = NEXT.fetch_add(1, Relaxed);
            number.set(Some(own));
            own
        })
    })
}
