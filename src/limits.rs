//! Rate limits: how many requests of a route are let through in a window of time.
//!
//! | module | |
//! |---|---|
//! | [`window`] | the arithmetic of a sliding window, as pure functions |
//! | [`key`] | whose requests count together |
//! | [`memory`] | the store of one instance |
//! | [`fields`] | what a client is told |
//!
//! A route may have several limits: a request passes if all of them let it, and one that is refused
//! counts in none.

pub mod fields;
pub mod key;
pub mod memory;
#[cfg(test)]
mod model;
pub mod window;

use std::{
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Instant,
};

use actix_http::header::HeaderValue;

pub use self::key::Identity;
use self::{
    key::Key,
    memory::{Memory, Usage},
    window::{Quota, Standing},
};
use crate::routes;

/// How a request stands with each limit of its route.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Decision(Vec<Standing>);

impl Decision {
    /// Whether the request passes.
    pub fn allowed(&self) -> bool {
        self.0.iter().all(|standing| standing.allowed)
    }
}

/// The limits of one route.
#[derive(Debug)]
pub struct RouteLimits {
    route: Arc<str>,
    limits: Vec<RouteLimit>,
    /// `RateLimit-Policy`.
    policy: HeaderValue,
    counts: Arc<Counts>,
}

#[derive(Debug)]
struct RouteLimit {
    name: String,
    rule: routes::Limit,
    quota: Quota,
}

/// What the limits of a route did.
#[derive(Debug, Default)]
pub struct Counts {
    allowed: AtomicU64,
    refused: AtomicU64,
}

impl Counts {
    /// Every count with its name, for metrics.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let counts = [("allowed", &self.allowed), ("refused", &self.refused)];
        counts.map(|(result, count)| (result, count.load(Ordering::Relaxed))).into_iter()
    }
}

impl RouteLimits {
    /// The limits of `route`; `None` if it has none. Counts go on from those of `previous`.
    pub fn of(route: &routes::Route, previous: Option<&Self>) -> Option<Self> {
        if route.limits.is_empty() {
            return None;
        }
        let limits: Vec<RouteLimit> = route
            .limits
            .iter()
            .map(|rule| RouteLimit {
                name: fields::name(rule, &route.limits),
                rule: *rule,
                quota: Quota::of(rule),
            })
            .collect();
        Some(Self {
            route: Arc::clone(&route.name),
            policy: fields::policy(&limits),
            limits,
            counts: previous.map(|it| Arc::clone(&it.counts)).unwrap_or_default(),
        })
    }

    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// What is asked of a store for a request.
    fn asked(&self, identity: &Identity<'_>) -> Vec<(Key, Quota)> {
        let key =
            |rule: &routes::Limit| Key::of(&self.route, rule.by, rule.window.as_secs(), identity);
        self.limits.iter().map(|limit| (key(&limit.rule), limit.quota)).collect()
    }

    fn count(&self, decision: &Decision) {
        let count = if decision.allowed() { &self.counts.allowed } else { &self.counts.refused };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where requests are counted; shared by the workers of a process.
#[derive(Default)]
pub struct Limits {
    memory: Memory,
}

impl Limits {
    /// Decides about a request, and counts it if it passes.
    pub fn decide(&self, route: &RouteLimits, identity: &Identity<'_>) -> Decision {
        let decision = self.memory.decide(&route.asked(identity), now());
        route.count(&decision);
        decision
    }

    /// What the store in memory holds.
    pub fn usage(&self) -> Usage {
        self.memory.usage()
    }
}

/// Microseconds since the process first asked: a clock that is never set.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64
}
