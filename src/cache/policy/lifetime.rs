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

    /// When its age was zero, in milliseconds since the epoch; the seconds it is fresh, and after
    /// that stale while revalidating, on errors and while unreachable; its flags. For storing it.
    pub fn to_parts(self) -> (i64, [u32; 4], u8) {
        let windows = [self.lifetime, self.revalidating, self.erring, self.offline];
        (self.born, windows, self.flags)
    }

    /// The lifetime with these parts; `None` if there are flags that mean nothing.
    pub fn from_parts(born: i64, windows: [u32; 4], flags: u8) -> Option<Self> {
        let [lifetime, revalidating, erring, offline] = windows;
        let known = flags & !(NO_CACHE | MUST_REVALIDATE | SHARED_MAX_AGE) == 0;
        known.then_some(Self { born, lifetime, revalidating, erring, offline, flags })
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::tests::{NOW, asks, later, stored};

    const PLAIN: RequestControl = RequestControl::plain();

    fn at(lifetime: &Lifetime, seconds: u64) -> Reuse {
        reuse(lifetime, &PLAIN, later(seconds), false)
    }

    #[test]
    fn a_lifetime_ends_with_its_last_second() {
        let lifetime = stored(&[("cache-control", "max-age=2")]);
        assert_eq!((at(&lifetime, 1), at(&lifetime, 2)), (Reuse::Serve, Reuse::Validate));
        assert_eq!((lifetime.ttl(later(1)), lifetime.ttl(later(5))), (1, -3));
    }

    #[test]
    fn stale_while_revalidate_is_a_window() {
        let lifetime = stored(&[("cache-control", "max-age=1, stale-while-revalidate=4")]);
        assert_eq!(at(&lifetime, 0), Reuse::Serve);
        assert_eq!(at(&lifetime, 4), Reuse::ServeStaleWhileRevalidating);
        assert_eq!(at(&lifetime, 5), Reuse::Validate);
        let limited = asks("max-age=60");
        assert_eq!(reuse(&lifetime, &limited, later(3), false), Reuse::Validate);
        let shared = stored(&[("cache-control", "s-maxage=1, stale-while-revalidate=4")]);
        assert_eq!(at(&shared, 3), Reuse::ServeStaleWhileRevalidating);
        for word in ["must-revalidate", "proxy-revalidate"] {
            let line = format!("max-age=1, stale-while-revalidate=4, {word}");
            assert_eq!(at(&stored(&[("cache-control", &line)]), 3), Reuse::Validate, "{word}");
        }
    }

    #[test]
    fn a_client_may_want_it_fresher() {
        let lifetime = stored(&[("cache-control", "max-age=1500"), ("age", "1000")]);
        for (words, expected) in [
            ("max-age=0", Reuse::Validate),
            ("max-age=1002", Reuse::Validate),
            ("max-age=1003", Reuse::Serve),
            ("max-age=junk", Reuse::Validate),
            ("min-fresh=1000", Reuse::Validate),
            ("min-fresh=497", Reuse::Serve),
            ("min-fresh=junk", Reuse::Serve),
            ("no-cache", Reuse::Validate),
            ("nO-CaChE", Reuse::Validate),
            ("nothing-to-see-here", Reuse::Serve),
            ("only-if-cached", Reuse::Serve),
        ] {
            assert_eq!(reuse(&lifetime, &asks(words), later(3), false), expected, "{words}");
        }
    }

    #[test]
    fn a_client_may_take_it_staler_unless_the_origin_forbids_it() {
        let plain = stored(&[("cache-control", "max-age=10")]);
        for (words, expected) in [
            ("max-stale=5", Reuse::Serve),
            ("max-stale=4", Reuse::Validate),
            ("max-stale", Reuse::Serve),
            ("max-stale=junk", Reuse::Validate),
            ("max-stale, max-stale=1", Reuse::Validate),
            ("max-age=60", Reuse::Validate),
        ] {
            assert_eq!(reuse(&plain, &asks(words), later(15), false), expected, "{words}");
        }
        assert_eq!(reuse(&plain, &asks("max-stale"), later(15), true), Reuse::Validate);
        for line in ["max-age=10, must-revalidate", "max-age=10, proxy-revalidate", "s-maxage=10"] {
            let forbidding = stored(&[("cache-control", line)]);
            let reused = reuse(&forbidding, &asks("max-stale"), later(15), false);
            assert_eq!(reused, Reuse::Validate, "{line}");
        }
    }

    #[test]
    fn a_soft_purge_makes_it_stale_at_once() {
        let soft = |line| {
            let lifetime = stored(&[("cache-control", line)]);
            reuse(&lifetime, &PLAIN, later(3), true)
        };
        assert_eq!(soft("max-age=100"), Reuse::ServeStaleWhileRevalidating);
        assert_eq!(soft("max-age=100, must-revalidate"), Reuse::Validate);
        assert_eq!(soft("max-age=2"), Reuse::Validate);
    }

    #[test]
    fn an_error_is_covered_inside_its_window_only() {
        let lifetime = stored(&[("cache-control", "max-age=2, stale-if-error=60")]);
        for status in [500, 502, 503, 504] {
            let covered = |at| stale_on_error(&lifetime, &PLAIN, at, Failure::Status(status));
            assert!(covered(later(61)) && !covered(later(62)), "{status}");
        }
        for status in [200, 404, 429, 501] {
            assert!(!stale_on_error(&lifetime, &PLAIN, later(3), Failure::Status(status)));
        }
        assert!(!stale_on_error(&lifetime, &PLAIN, later(62), Failure::Disconnected));
        let plain = stored(&[("cache-control", "max-age=2")]);
        assert!(!stale_on_error(&plain, &PLAIN, later(3), Failure::Status(503)));
    }

    #[test]
    fn a_lost_origin_is_covered_for_a_while_unless_that_is_forbidden() {
        let covered = |line, seconds| {
            let lifetime = stored(&[("cache-control", line), ("etag", "\"a\"")]);
            stale_on_error(&lifetime, &PLAIN, later(seconds), Failure::Disconnected)
        };
        assert!(covered("max-age=2", 601) && !covered("max-age=2", 602));
        for line in [
            "max-age=2, must-revalidate",
            "max-age=2, proxy-revalidate",
            "max-age=2, no-cache",
            "max-age=2, s-maxage=2",
            "max-age=2, stale-if-error=0",
            "max-age=0",
        ] {
            assert!(!covered(line, 3), "{line}");
        }
        assert!(covered("s-maxage=2, stale-if-error=10", 3));
        let asked = stored(&[("cache-control", "max-age=2")]);
        assert!(!stale_on_error(&asked, &asks("no-cache"), later(1), Failure::Disconnected));
    }

    #[test]
    fn an_entry_is_kept_as_long_as_it_can_be_of_use() {
        let line = "max-age=10, stale-while-revalidate=20, stale-if-error=30";
        let lifetime = stored(&[("cache-control", line)]);
        assert_eq!(lifetime.keep_until(false), later(40));
        assert_eq!(lifetime.keep_until(true), later(10 + 3600));
        let ancient = stored(&[("cache-control", "max-age=10"), ("age", "99999999999")]);
        assert!(ancient.keep_until(false) < NOW);
    }
}
