//! What the operator's metrics say of the cache, Redis, the upstreams and reloads.
//!
//! The counters live where things happen; here they are only written out, when somebody asks.

use std::sync::{Arc, Weak};

use super::{Shared, snapshot::Snapshot};
use crate::{
    cache::{clock::Timestamp, l2::L2},
    proxy::BreakerState,
    telemetry::metrics::Exposition,
};

/// Makes the registry of `shared` write out everything else that `shared` holds.
pub fn register(shared: &Arc<Shared>) {
    let weak = Arc::downgrade(shared);
    shared.registry.register_collector(move |out| {
        if let Some(shared) = Weak::upgrade(&weak) {
            let snapshot = shared.snapshot.load();
            cache(&shared, &snapshot, out);
            if let Some(l2) = shared.cache.l2() {
                second_tier(l2, out);
            }
            limits(&shared, &snapshot, out);
            upstreams(&snapshot, out);
            if let Some(redis) = &shared.redis {
                redis.collect(out);
            }
            shared.db.collect(out);
            shared.readiness.collect(out);
        }
    });
}

fn cache(shared: &Shared, snapshot: &Snapshot, out: &mut Exposition) {
    let usage = shared.cache.usage();
    out.gauge("portway_cache_l1_entries", "Entries in the memory tier").sample(&[], usage.entries);
    out.gauge("portway_cache_l1_bytes", "Bytes the memory tier takes, everything counted")
        .sample(&[], usage.bytes);
    out.gauge("portway_cache_l1_max_bytes", "Bytes the memory tier may take")
        .sample(&[], usage.max_bytes);
    out.counter("portway_cache_l1_evictions_total", "Entries pushed out or refused for space")
        .sample(&[], usage.evictions);
    out.gauge("portway_cache_remembered_purges", "Purges remembered one by one")
        .sample(&[], shared.cache.remembered_purges());
    let mut family = out.counter(
        "portway_cache_events_total",
        "What the cache did, by route: hits, misses, stored, coalesced, errors and so on",
    );
    for (route, running) in snapshot.routes() {
        for (event, count) in running.cache.stats.snapshot().iter() {
            family.sample(&[("route", &route.name), ("event", event)], count);
        }
    }
}

fn second_tier(l2: &L2, out: &mut Exposition) {
    let usable = l2.is_usable(Timestamp::now());
    out.gauge("portway_cache_l2_usable", "1 where Redis answers and all purges are known")
        .sample(&[], u8::from(usable));
    let mut family = out.counter(
        "portway_cache_l2_events_total",
        "What the cache did in Redis: hits, misses, errors, stored and so on",
    );
    for (event, count) in l2.stats.snapshot().iter() {
        family.sample(&[("event", event)], count);
    }
    let mut family = out.counter(
        "portway_cache_coherence_events_total",
        "Purges applied, gaps in the messages, purges that somebody did not confirm in time",
    );
    for (event, count) in l2.coherence.stats.snapshot().iter() {
        family.sample(&[("event", event)], count);
    }
    out.gauge("portway_cache_instances", "Instances that share the cache, this one among them")
        .sample(&[], l2.coherence.members().len());
    out.gauge("portway_cache_pending_purges", "Purges that Redis did not take yet")
        .sample(&[], l2.coherence.pending());
}

fn limits(shared: &Shared, snapshot: &Snapshot, out: &mut Exposition) {
    let mut family = out.counter(
        "portway_limit_requests_total",
        "Requests of limited routes: allowed, or refused with 429",
    );
    for (route, running) in snapshot.routes() {
        for (result, count) in running.limits.iter().flat_map(|limits| limits.counts().iter()) {
            family.sample(&[("route", &route.name), ("result", result)], count);
        }
    }
    if let Some(degraded) = shared.limits.degraded() {
        let mut family = out.counter(
            "portway_limit_degraded_total",
            "Requests that this instance decided about alone, as Redis could not",
        );
        for (reason, count) in degraded {
            family.sample(&[("reason", reason)], count);
        }
    }
    let usage = shared.limits.usage();
    out.gauge("portway_limit_memory_keys", "Keys that limits are counted for in memory")
        .sample(&[], usage.keys);
    out.gauge("portway_limit_memory_bytes", "Bytes that these keys take").sample(&[], usage.bytes);
    out.counter(
        "portway_limit_forgotten_total",
        "Keys that still counted and were forgotten for want of space",
    )
    .sample(&[], usage.forgotten);
}

fn upstreams(snapshot: &Snapshot, out: &mut Exposition) {
    let upstreams = snapshot.upstreams.status();
    let targets = || {
        upstreams.iter().flat_map(|upstream| {
            upstream.targets.iter().map(|target| {
                let labels = [("upstream", &*upstream.name), ("target", &*target.url)];
                (labels, target)
            })
        })
    };
    let mut family = out.gauge("portway_upstream_healthy", "1 where active checks succeed");
    targets().for_each(|(labels, target)| {
        family.sample(&labels, u8::from(target.healthy));
    });
    let mut family =
        out.gauge("portway_upstream_breaker_open", "1 where no request is let through");
    targets().for_each(|(labels, target)| {
        family.sample(&labels, u8::from(target.breaker == BreakerState::Open));
    });
    let mut family = out.gauge("portway_upstream_in_flight", "Requests under way");
    targets().for_each(|(labels, target)| {
        family.sample(&labels, target.in_flight);
    });
    let mut family = out.counter("portway_upstream_requests_total", "Requests sent");
    targets().for_each(|(labels, target)| {
        family.sample(&labels, target.requests);
    });
    let mut family = out.counter("portway_upstream_failures_total", "Requests that failed");
    targets().for_each(|(labels, target)| {
        family.sample(&labels, target.failures);
    });
    let mut family = out.counter("portway_upstream_retries_total", "Requests that were a retry");
    targets().for_each(|(labels, target)| {
        family.sample(&labels, target.retries);
    });
}
