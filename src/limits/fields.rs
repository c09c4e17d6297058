//! What a client is told: `RateLimit-Policy`, `RateLimit` and `Retry-After`.
//!
//! They follow draft-ietf-httpapi-ratelimit-headers-11. `t` is the time until the first request that
//! still counts leaves the window: until then a client can use no more than `r`.

use std::fmt::Write as _;

use actix_http::header::{HeaderMap, HeaderName, HeaderValue, RETRY_AFTER};

use super::{Decision, RouteLimit, RouteLimits, window::Standing};
use crate::routes::{Limit, LimitBy};

static RATE_LIMIT: HeaderName = HeaderName::from_static("ratelimit");
static RATE_LIMIT_POLICY: HeaderName = HeaderName::from_static("ratelimit-policy");

/// The fields of one response.
#[derive(Debug, Clone)]
pub struct Fields {
    policy: HeaderValue,
    limit: HeaderValue,
    /// Where the request was refused.
    retry_after: Option<u64>,
}

impl Fields {
    /// What to tell of a decision about a request of `route`.
    pub fn of(route: &RouteLimits, decision: &Decision) -> Self {
        let mut limit = String::with_capacity(32 * decision.0.len());
        for (RouteLimit { name, .. }, standing) in route.limits.iter().zip(&decision.0) {
            let Standing { remaining, reset_after, .. } = standing;
            let (separator, seconds) = (separator(&limit), seconds(*reset_after));
            // A `String` takes everything.
            let _ = write!(limit, r#"{separator}"{name}";r={remaining};t={seconds}"#);
        }
        let refusing = decision.0.iter().filter(|standing| !standing.allowed);
        Self {
            policy: route.policy.clone(),
            limit: value(limit),
            retry_after: refusing.map(|standing| seconds(standing.reset_after)).max(),
        }
    }

    /// Puts the fields into a response, in place of those that an upstream may have sent: they tell
    /// of a limit behind this one, and stored with a response they tell of somebody else.
    pub fn insert(&self, headers: &mut HeaderMap) {
        headers.insert(RATE_LIMIT_POLICY.clone(), self.policy.clone());
        headers.insert(RATE_LIMIT.clone(), self.limit.clone());
        if let Some(seconds) = self.retry_after {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
    }
}

/// The name of a limit: whose requests it counts, and its window if that alone would be ambiguous.
pub(super) fn name(limit: &Limit, all: &[Limit]) -> String {
    let by = match limit.by {
        LimitBy::Caller => "caller",
        LimitBy::Tenant => "tenant",
        LimitBy::Ip => "ip",
        LimitBy::Route => "route",
    };
    if all.iter().filter(|other| other.by == limit.by).count() > 1 {
        format!("{by}-{}s", limit.window.as_secs())
    } else {
        by.to_owned()
    }
}

/// `RateLimit-Policy` of these limits.
pub(super) fn policy(limits: &[RouteLimit]) -> HeaderValue {
    let mut policy = String::new();
    for RouteLimit { name, rule, .. } in limits {
        let (separator, window) = (separator(&policy), rule.window.as_secs());
        let _ = write!(policy, r#"{separator}"{name}";q={};w={window}"#, rule.requests);
    }
    value(policy)
}

fn separator(list: &str) -> &'static str {
    if list.is_empty() { "" } else { ", " }
}

/// Whole seconds, rounded up: who comes back then does not come too early.
fn seconds(micros: u64) -> u64 {
    micros.div_ceil(1_000_000).max(1)
}

fn value(text: String) -> HeaderValue {
    // Names and numbers are ASCII without control characters.
    HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
}
