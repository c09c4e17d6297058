//! Rate limits: how many requests of a route are let through in a window of time.
//!
//! | module | |
//! |---|---|
//! | [`window`] | the arithmetic of a sliding window, as pure functions |
//! | [`key`] | whose requests count together |
//! | [`memory`] | the store of one instance |
//! | `shared` | the store in Redis, of all instances |
//! | [`fields`] | what a client is told |
//!
//! A route may have several limits: a request passes if all of them let it, and one that is refused
//! counts in none.

pub mod fields;
pub mod key;
pub mod memory;
#[cfg(test)]
mod model;
mod shared;
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
use crate::{
    redis::{Error, Redis},
    routes,
    telemetry::throttle::Throttle,
};

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

    /// What puts the keys of a request into one slot of a Cluster: itself, if there is one; whose they
    /// are, if that is the same for all; else the route. So the keys of a route spread over the nodes,
    /// unless its limits count different things.
    fn common(&self, identity: &Identity<'_>, asked: &[(Key, Quota)]) -> Key {
        if let [(key, _)] = asked {
            return *key;
        }
        let by = self.limits.first().map(|limit| limit.rule.by);
        let same = self.limits.iter().all(|limit| Some(limit.rule.by) == by);
        Key::common(&self.route, by.filter(|_| same), identity)
    }

    fn count(&self, decision: &Decision) {
        let count = if decision.allowed() { &self.counts.allowed } else { &self.counts.refused };
        count.fetch_add(1, Ordering::Relaxed);
    }
}

/// Where requests are counted; shared by the workers of a process.
pub struct Limits {
    memory: Memory,
    /// None: the memory of this instance is all there is.
    redis: Option<Arc<Redis>>,
    degraded: Degraded,
}

impl Limits {
    pub fn new(redis: Option<Arc<Redis>>) -> Self {
        Self { memory: Memory::default(), redis, degraded: Degraded::default() }
    }

    /// Decides about a request, and counts it if it passes; `None` if Redis has to be asked, with
    /// [`decide`](Self::decide).
    pub fn decide_now(&self, route: &RouteLimits, identity: &Identity<'_>) -> Option<Decision> {
        match &self.redis {
            None => Some(self.locally(route, &route.asked(identity))),
            Some(redis) if redis.is_up() => None,
            Some(_) => {
                self.degraded.count(&Error::Away);
                Some(self.locally(route, &route.asked(identity)))
            }
        }
    }

    /// Decides about a request, and counts it if it passes.
    ///
    /// Where Redis cannot decide, this instance does, by the same limit: whoever used it up may find
    /// as much again at each instance, but nobody is let through without a limit, and nobody is
    /// refused because of Redis.
    pub async fn decide(&self, route: &RouteLimits, identity: &Identity<'_>) -> Decision {
        let asked = route.asked(identity);
        let Some(redis) = &self.redis else { return self.locally(route, &asked) };
        match shared::decide(redis, route.common(identity, &asked), &asked).await {
            Ok(decision) => {
                route.count(&decision);
                decision
            }
            Err(error) => {
                self.degraded.count(&error);
                self.locally(route, &asked)
            }
        }
    }

    fn locally(&self, route: &RouteLimits, asked: &[(Key, Quota)]) -> Decision {
        let decision = self.memory.decide(asked, now);
        route.count(&decision);
        decision
    }

    /// What the store in memory holds.
    pub fn usage(&self) -> Usage {
        self.memory.usage()
    }

    /// Requests that memory decided about because Redis could not, by the reason; `None` where there
    /// is no Redis.
    pub fn degraded(&self) -> Option<impl Iterator<Item = (&'static str, u64)> + use<>> {
        self.redis.as_ref().map(|_| self.degraded.iter())
    }
}

/// How often Redis could not decide, and why.
#[derive(Default)]
struct Degraded {
    away: AtomicU64,
    read_only: AtomicU64,
    out_of_memory: AtomicU64,
    refused: AtomicU64,
}

impl Degraded {
    fn count(&self, error: &Error) {
        // That Redis is away the link itself logs, as soon as it knows.
        if *error != Error::Away
            && let Some(left_out) = LOGGED.admit(now() / 10_000_000)
        {
            tracing::warn!(
                error = error as &dyn std::error::Error,
                left_out,
                "this instance counts rate limits by itself: {error}"
            );
        }
        let count = match error {
            Error::Away => &self.away,
            Error::ReadOnly => &self.read_only,
            Error::OutOfMemory => &self.out_of_memory,
            Error::Failed(_) => &self.refused,
        };
        count.fetch_add(1, Ordering::Relaxed);
    }

    fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
        let counts = [
            ("away", &self.away),
            ("read_only", &self.read_only),
            ("out_of_memory", &self.out_of_memory),
            ("refused", &self.refused),
        ];
        counts.map(|(reason, count)| (reason, count.load(Ordering::Relaxed))).into_iter()
    }
}

/// One line in ten seconds: every request meets the same fault.
static LOGGED: Throttle = Throttle::new(1);

/// Microseconds since the process first asked: a clock that is never set.
fn now() -> u64 {
    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed().as_micros() as u64
}
