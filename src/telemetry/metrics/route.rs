//! The counters of one route, one block a worker.
//!
//! A block is written by (nearly always) one thread, so an addition stays in that core's cache; a
//! page of metrics sums the blocks. Blocks are made by the first request that needs them: ten
//! thousand routes of which few are used cost little.

use std::{
    cell::Cell,
    sync::{
        Arc, LazyLock, OnceLock,
        atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use super::{CacheOutcome, Exposition, Family};

/// Upper bounds of the duration buckets, in microseconds: from a hit in memory to the slowest
/// upstream anybody waits for. The bucket after the last has no bound.
const BOUNDS: [u64; 18] = [
    50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 25_000, 50_000, 100_000, 250_000, 500_000,
    1_000_000, 2_500_000, 5_000_000, 10_000_000, 30_000_000,
];

const CLASSES: [&str; 5] = ["1xx", "2xx", "3xx", "4xx", "5xx"];
const OUTCOMES: usize = CacheOutcome::ALL.len();

/// What one request adds.
#[derive(Debug, Clone, Copy)]
pub struct Observation {
    pub status: u16,
    pub cache: CacheOutcome,
    /// Body bytes sent to the client.
    pub bytes: u64,
    pub duration: Duration,
    /// How long the upstream took to answer, where it was asked.
    pub upstream: Option<Duration>,
}

/// The counters of one route.
pub struct RouteMetrics {
    name: Box<str>,
    blocks: Box<[OnceLock<Box<Block>>]>,
}

/// Two cache lines apart from any other, as processors fetch them in pairs.
#[derive(Default)]
#[repr(align(128))]
struct Block {
    requests: [[AtomicU64; CLASSES.len()]; OUTCOMES],
    bytes: AtomicU64,
    /// Index 1: answered from the cache.
    duration: [Histogram; 2],
    upstream: Histogram,
}

#[derive(Default)]
struct Histogram {
    buckets: [AtomicU64; BOUNDS.len() + 1],
    nanos: AtomicU64,
}

impl RouteMetrics {
    pub(super) fn new(name: &str) -> Self {
        static BLOCKS: LazyLock<usize> = LazyLock::new(|| {
            let cores = thread::available_parallelism().map_or(1, usize::from);
            cores.next_power_of_two().min(64)
        });
        Self { name: name.into(), blocks: (0..*BLOCKS).map(|_| OnceLock::new()).collect() }
    }

    /// Counts one finished request.
    pub fn observe(&self, observation: &Observation) {
        let slot = thread_number() & (self.blocks.len() - 1);
        let block = self.blocks[slot].get_or_init(Box::default);
        // Statuses beyond 599 are passed on like 5xx, and count as such.
        let class = usize::from(observation.status / 100).clamp(1, CLASSES.len()) - 1;
        block.requests[observation.cache as usize][class].fetch_add(1, Relaxed);
        block.bytes.fetch_add(observation.bytes, Relaxed);
        block.duration[usize::from(observation.cache.cached())].record(observation.duration);
        if let Some(duration) = observation.upstream {
            block.upstream.record(duration);
        }
    }

    fn blocks(&self) -> impl Iterator<Item = &Block> {
        self.blocks.iter().filter_map(|block| block.get().map(Box::as_ref))
    }
}

impl Histogram {
    fn record(&self, duration: Duration) {
        let nanos = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        // A bound belongs to its bucket, so part of a microsecond counts as a whole one.
        let micros = nanos.div_ceil(1000);
        let bucket = BOUNDS.iter().position(|&bound| micros <= bound).unwrap_or(BOUNDS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.nanos.fetch_add(nanos, Relaxed);
    }
}

/// Threads are numbered in the order of their first request, so workers spread over the blocks.
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

/// Writes the families of all `routes`; a series begins with its first request.
pub(super) fn collect(routes: &[Arc<RouteMetrics>], out: &mut Exposition) {
    let mut requests =
        out.counter("portway_http_requests_total", "Requests answered, by route and outcome");
    for route in routes {
        for outcome in CacheOutcome::ALL {
            for (class, status) in CLASSES.iter().enumerate() {
                let count = sum(route, |block| &block.requests[outcome as usize][class]);
                if count > 0 {
                    let labels =
                        [("route", &*route.name), ("status", status), ("cache", outcome.label())];
                    requests.sample(&labels, count);
                }
            }
        }
    }

    let mut bytes =
        out.counter("portway_http_response_bytes_total", "Response body bytes sent to clients");
    for route in routes {
        if route.blocks().next().is_some() {
            bytes.sample(&[("route", &route.name)], sum(route, |block| &block.bytes));
        }
    }

    let mut durations = out.histogram(
        "portway_http_request_duration_seconds",
        "Time from a request's head to the end of its response; cached: served from an entry",
    );
    for route in routes {
        for (index, cached) in ["false", "true"].iter().enumerate() {
            let labels = [("route", &*route.name), ("cached", cached)];
            distribution(route, |block| &block.duration[index], &mut durations, &labels);
        }
    }

    let mut upstream = out.histogram(
        "portway_upstream_duration_seconds",
        "Time until the upstream's response began, retries included",
    );
    for route in routes {
        let labels = [("route", &*route.name)];
        distribution(route, |block| &block.upstream, &mut upstream, &labels);
    }
}

fn sum(route: &RouteMetrics, counter: impl Fn(&Block) -> &AtomicU64) -> u64 {
    route.blocks().map(|block| counter(block).load(Relaxed)).sum()
}

fn distribution(
    route: &RouteMetrics,
    histogram: impl Fn(&Block) -> &Histogram,
    family: &mut Family<'_>,
    labels: &[(&str, &str)],
) {
    let buckets: [u64; BOUNDS.len() + 1] =
        std::array::from_fn(|bucket| sum(route, |block| &histogram(block).buckets[bucket]));
    if buckets.iter().any(|&count| count > 0) {
        let nanos = sum(route, |block| &histogram(block).nanos);
        let bounds = BOUNDS.iter().map(|&micros| micros as f64 / 1e6).chain([f64::INFINITY]);
        family.distribution(labels, bounds.zip(buckets), nanos as f64 / 1e9);
    }
}
