//! The counters of one route.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use super::{
    CacheOutcome, Exposition,
    sharded::{Histogram, Sharded},
};

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
    counts: Sharded<Block>,
}

#[derive(Default)]
struct Block {
    requests: [[AtomicU64; CLASSES.len()]; OUTCOMES],
    bytes: AtomicU64,
    /// Index 1: answered from the cache.
    duration: [Histogram; 2],
    upstream: Histogram,
}

impl RouteMetrics {
    pub(super) fn new(name: &str) -> Self {
        Self { name: name.into(), counts: Sharded::default() }
    }

    /// Counts one finished request.
    pub fn observe(&self, observation: &Observation) {
        let block = self.counts.own();
        // Statuses beyond 599 are passed on like 5xx, and count as such.
        let class = usize::from(observation.status / 100).clamp(1, CLASSES.len()) - 1;
        block.requests[observation.cache as usize][class].fetch_add(1, Relaxed);
        block.bytes.fetch_add(observation.bytes, Relaxed);
        block.duration[usize::from(observation.cache.cached())].record(observation.duration);
        if let Some(duration) = observation.upstream {
            block.upstream.record(duration);
        }
    }
}

/// Writes the families of all `routes`; a series begins with its first request.
pub(super) fn collect(routes: &[Arc<RouteMetrics>], out: &mut Exposition) {
    let mut requests =
        out.counter("portway_http_requests_total", "Requests answered, by route and outcome");
    for route in routes {
        for outcome in CacheOutcome::ALL {
            for (class, status) in CLASSES.iter().enumerate() {
                let count = route.counts.sum(|block| &block.requests[outcome as usize][class]);
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
        if route.counts.blocks().next().is_some() {
            bytes.sample(&[("route", &route.name)], route.counts.sum(|block| &block.bytes));
        }
    }

    let mut durations = out.histogram(
        "portway_http_request_duration_seconds",
        "Time from a request's head to the end of its response; cached: served from an entry",
    );
    for route in routes {
        for (index, cached) in ["false", "true"].iter().enumerate() {
            let labels = [("route", &*route.name), ("cached", cached)];
            route.counts.distribution(|block| &block.duration[index], &mut durations, &labels);
        }
    }

    let mut upstream = out.histogram(
        "portway_upstream_duration_seconds",
        "Time until the upstream's response began, retries included",
    );
    for route in routes {
        let labels = [("route", &*route.name)];
        route.counts.distribution(|block| &block.upstream, &mut upstream, &labels);
    }
}
