//! Metrics in Prometheus's text format, counted where nobody has to wait for anybody.
//!
//! The gateway owns its counters instead of going through the `metrics` crate: a counter that all
//! workers add to is a cache line that all cores fight for, and its exporter keeps every histogram
//! sample until somebody collects them. Here what a request touches is split by worker
//! ([`RouteMetrics`]) and summed when it is read. Everything else is a number that some module
//! has anyway (connections, bytes in the cache, healthy targets): the module registers a collector
//! and writes its families when they are asked for.
//!
//! A [`Registry`] belongs to one gateway and is not global, so that two gateways in one process
//! (tests) do not count into each other's numbers, and what a collector holds ends with its gateway.
//!
//! Labels come from the configuration or from an enum, never from a request.

mod exposition;
mod process;
mod route;
mod sharded;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError, Weak},
    time::Instant,
};

use super::access_log;
pub use exposition::{Exposition, Family};
pub use route::{Observation, RouteMetrics};
pub use sharded::{Histogram, Sharded};

/// The label of requests that matched no route; not a name a route can have.
const UNROUTED: &str = "-";

/// How a response came about, as far as the cache is concerned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CacheOutcome {
    /// Served from a fresh entry.
    Hit,
    /// Nothing usable was stored.
    Miss,
    /// Served from an entry past its lifetime.
    Stale,
    /// The request or the response may not be cached.
    Bypass,
    /// Served from an entry that the origin confirmed.
    Revalidated,
    /// The cache was not asked: no route, or an answer of the gateway's own.
    None,
}

impl CacheOutcome {
    /// All outcomes, in the order of their discriminants.
    const ALL: [Self; 6] =
        [Self::Hit, Self::Miss, Self::Stale, Self::Bypass, Self::Revalidated, Self::None];

    /// The value of `X-Cache`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Hit => "HIT",
            Self::Miss => "MISS",
            Self::Stale => "STALE",
            Self::Bypass => "BYPASS",
            Self::Revalidated => "REVALIDATED",
            Self::None => "NONE",
        }
    }

    /// The value of the `cache` label.
    const fn label(self) -> &'static str {
        match self {
            Self::Hit => "hit",
            Self::Miss => "miss",
            Self::Stale => "stale",
            Self::Bypass => "bypass",
            Self::Revalidated => "revalidated",
            Self::None => "none",
        }
    }

    /// Whether the client was answered without waiting for the origin.
    const fn cached(self) -> bool {
        matches!(self, Self::Hit | Self::Stale)
    }
}

type Collector = Box<dyn Fn(&mut Exposition) + Send + Sync>;

/// All metrics of one gateway.
pub struct Registry {
    started: Instant,
    /// By name, so that the order in the output is stable; weak, so that a route that is gone from
    /// the table is gone from the output.
    routes: Mutex<BTreeMap<Box<str>, Weak<RouteMetrics>>>,
    unrouted: Arc<RouteMetrics>,
    collectors: Mutex<Vec<Collector>>,
}

impl Default for Registry {
    fn default() -> Self {
        Self {
            started: Instant::now(),
            routes: Mutex::default(),
            unrouted: Arc::new(RouteMetrics::new(UNROUTED)),
            collectors: Mutex::default(),
        }
    }
}

impl Registry {
    /// The counters of the route named `name`: ask once a route, keep them with the route.
    ///
    /// As long as somebody holds them, the same name gives the same counters; a reload that builds
    /// the new table before it drops the old one goes on counting.
    pub fn route(&self, name: &str) -> Arc<RouteMetrics> {
        let mut routes = lock(&self.routes);
        if let Some(route) = routes.get(name).and_then(Weak::upgrade) {
            return route;
        }
        let route = Arc::new(RouteMetrics::new(name));
        routes.insert(name.into(), Arc::downgrade(&route));
        route
    }

    /// The counters for requests that no route matched.
    pub fn unrouted(&self) -> &Arc<RouteMetrics> {
        &self.unrouted
    }

    /// Adds families at each [`render`](Self::render).
    ///
    /// A collector writes whole families that no other one writes, reads what is at hand and does
    /// not wait. It lives as long as the registry: give it a `Weak` of what should be able to end.
    pub fn register_collector(&self, collector: impl Fn(&mut Exposition) + Send + Sync + 'static) {
        lock(&self.collectors).push(Box::new(collector));
    }

    /// The text for `GET /metrics`, as [`Exposition::CONTENT_TYPE`].
    pub fn render(&self) -> String {
        let mut out = Exposition::default();
        out.gauge("portway_build_info", "The running version; always 1")
            .sample(&[("version", env!("CARGO_PKG_VERSION"))], 1);
        out.gauge("portway_uptime_seconds", "Time since this gateway was built")
            .sample(&[], self.started.elapsed().as_secs_f64());
        process::collect(&mut out);

        let log = access_log::stats();
        out.counter("portway_access_log_lines_total", "Lines of the access log that were written")
            .sample(&[], log.written);
        out.counter(
            "portway_access_log_dropped_total",
            "Lines of the access log that were lost because their reader is too slow or gone",
        )
        .sample(&[], log.dropped);

        let mut routes = vec![Arc::clone(&self.unrouted)];
        lock(&self.routes).retain(|_, route| {
            let route = route.upgrade();
            routes.extend(route.clone());
            route.is_some()
        });
        route::collect(&routes, &mut out);
        for collector in lock(&self.collectors).iter() {
            collector(&mut out);
        }
        out.into_text()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A collector that panicked once leaves nothing half done here.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
