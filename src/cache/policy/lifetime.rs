//! How long a stored response may be used, and whether this request may use it now.
//!
//! A [`Lifetime`] is everything a cache hit has to know, worked out once when the response was
//! stored, so that the hit itself is a subtraction and a comparison. It is `Copy`, holds no pointer
//! and fits in half a cache line.

use std::time::Duration;

use super::RequestControl;
use crate::cache::clock::Timestamp;

/// The response must be validated before every use (`no-cache`).
pub(super) const NO_CACHE: u8 = 1;
/// Never to be used stale (`must-revalidate`, `proxy-revalidate`).
pub(super) const MUST_REVALIDATE: u8 = 1 << 1;
/// The lifetime came from `s-maxage`, which implies `proxy-revalidate` unless the origin itself
/// wrote down a stale window beside it.
pub(super) const SHARED_MAX_AGE: u8 = 1 << 2;

/// Entries with a validator outlive their freshness by at least this much, since a 304 is cheaper
/// than the body.
const REVALIDATION_FLOOR: u32 = 60 * 60;
/// … and by at most this much.
const REVALIDATION_CEILING: u32 = 24 * 60 * 60;

/// When a stored response is fresh, and what may be done with it after that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lifetime {
    /// The moment, in milliseconds since the epoch, at which the response's age was zero. Signed: an
    /// `Age` may be larger than the time since the epoch in a test or on a machine without a clock.
    pub(super) born: i64,
    /// Freshness lifetime in seconds, counted from `born`.
    pub(super) lifetime: u32,
    /// Seconds past its freshness in which it may be served while it is being revalidated.
    pub(super) revalidating: u32,
    /// Seconds past its freshness in which it may be served when the origin answers with an error.
    pub(super) erring: u32,
    /// Seconds past its freshness in which it may be served when the origin cannot be reached.
    pub(super) offline: u32,
    pub(super) flags: u8,
}

/// How a stored response may answer a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reuse {
    /// As it is.
    Serve,
    /// As it is, but it is stale: one request goes to the origin in the background.
    ServeStaleWhileRevalidating,
    /// Not before the origin was asked.
    Validate,
}

/// Why the origin did not give a usable answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// It answered with this status.
    Status(u16),
    /// No connection, a connection that broke, or no answer in time.
    Disconnected,
}

impl Lifetime {
    /// The current age in seconds, as the `Age` field wants it.
    pub fn age(&self, now: Timestamp) -> u64 {
        (millis(now).saturating_sub(self.born).max(0) / 1000) as u64
    }

    /// Seconds of freshness left; negative for how long it has been stale.
    pub fn ttl(&self, now: Timestamp) -> i64 {
        i64::from(self.lifetime).saturating_sub_unsigned(self.age(now))
    }

    /// Whether it may be served without asking the origin.
    pub fn is_fresh(&self, now: Timestamp) -> bool {
        self.ttl(now) > 0 && self.flags & NO_CACHE == 0
    }

    /// When a sweep may forget it: after the last moment any rule lets it be of use.
    pub fn keep_until(&self, has_validator: bool) -> Timestamp {
        let revalidation = if has_validator {
            self.lifetime.clamp(REVALIDATION_FLOOR, REVALIDATION_CEILING)
        } else {
            0
        };
        let past = self.revalidating.max(self.erring).max(self.offline).max(revalidation);
        let seconds = i64::from(self.lifetime) + i64::from(past);
        Timestamp(self.born.saturating_add(seconds * 1000).max(0) as u64)
    }

    /// Whether an explicit directive forbids every stale use that the origin did not itself grant.
    fn forbids_stale(&self) -> bool {
        self.flags & (NO_CACHE | MUST_REVALIDATE | SHARED_MAX_AGE) != 0
    }
}

/// Whether a stored response may answer a request that says `control`. `soft_purged` entries count as
/// stale from the purge on, but may be served while they are being revalidated.
#[inline]
pub fn reuse(
    lifetime: &Lifetime,
    control: &RequestControl,
    now: Timestamp,
    soft_purged: bool,
) -> Reuse {
    let ttl = lifetime.ttl(now);
    if ttl > 0 && lifetime.flags & NO_CACHE == 0 && control.is_plain() && !soft_purged {
        return Reuse::Serve;
    }
    reuse_with_conditions(lifetime, control, now, soft_purged)
}

#[cold]
fn reuse_with_conditions(
    lifetime: &Lifetime,
    control: &RequestControl,
    now: Timestamp,
    soft_purged: bool,
) -> Reuse {
    if lifetime.flags & NO_CACHE != 0
        || control.no_cache()
        || control.refuses_age(lifetime.age(now))
    {
        return Reuse::Validate;
    }
    let ttl = lifetime.ttl(now);
    if ttl > 0 && ttl.unsigned_abs() < u64::from(control.min_fresh()) {
        return Reuse::Validate;
    }
    if ttl > 0 && !soft_purged {
        return Reuse::Serve;
    }
    if ttl > 0 {
        return if lifetime.flags & MUST_REVALIDATE == 0 && !control.wants_fresh() {
            Reuse::ServeStaleWhileRevalidating
        } else {
            Reuse::Validate
        };
    }
    let stale_by = ttl.unsigned_abs();
    if !soft_purged
        && !lifetime.forbids_stale()
        && control.max_stale().is_some_and(|limit| stale_by <= u64::from(limit))
    {
        return Reuse::Serve;
    }
    if lifetime.flags & MUST_REVALIDATE == 0
        && stale_by < u64::from(lifetime.revalidating)
        && !control.wants_fresh()
    {
        return Reuse::ServeStaleWhileRevalidating;
    }
    Reuse::Validate
}

/// Whether a stored response may stand in for an answer the origin failed to give.
///
/// With an error status only inside `stale-if-error` (RFC 5861). With no answer at all, RFC 9111 4.2.4
/// lets a disconnected cache go further: where the origin forbade nothing, the entry serves for
/// [`super::OFFLINE_GRACE`].
pub fn stale_on_error(
    lifetime: &Lifetime,
    control: &RequestControl,
    now: Timestamp,
    failure: Failure,
) -> bool {
    if lifetime.flags & (NO_CACHE | MUST_REVALIDATE) != 0 || control.no_cache() {
        return false;
    }
    let window = match failure {
        Failure::Status(500 | 502 | 503 | 504) => lifetime.erring,
        Failure::Status(_) => return false,
        Failure::Disconnected => lifetime.offline,
    };
    // A fresh entry gets here when the client asked for validation or an operator purged it softly.
    let ttl = lifetime.ttl(now);
    ttl > 0 || ttl.unsigned_abs() < u64::from(window)
}

/// Milliseconds since the epoch, signed.
pub(super) fn millis(at: Timestamp) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

/// Whole seconds of a duration, capped where RFC 9111 1.2.2 caps them.
pub(super) fn whole_seconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_secs()).unwrap_or(u32::MAX).min(super::directives::MAX_SECONDS)
}
