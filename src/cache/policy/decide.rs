//! Whether a response may be stored, and for how long it is fresh (RFC 9111 3, 4.2).

use std::time::Duration;

use actix_http::{
    Method, StatusCode,
    header::{AGE, AUTHORIZATION, COOKIE, DATE, EXPIRES, HeaderMap, HeaderName, LAST_MODIFIED},
};

use super::{
    Lifetime, OFFLINE_GRACE, Rules, Vary, cookies, date,
    directives::{self, Directives, MAX_SECONDS, delta_seconds, members},
    lifetime::{MUST_REVALIDATE, NO_CACHE, SHARED_MAX_AGE, millis, whole_seconds},
    validators, vary,
};
use crate::cache::clock::Timestamp;

/// Heuristic freshness never lasts longer.
const HEURISTIC_CEILING: u32 = 24 * 60 * 60;
/// An error is not kept longer than this on anything but the origin's explicit word, so that one bad
/// request cannot take a page away from everybody.
const ERROR_CEILING: u32 = 10;

/// What becomes of a response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Decision {
    /// It may be stored.
    Store(Lifetime),
    /// It must not be, or there is no use in it.
    Refuse(Refusal),
}

/// Why a response is not stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Not an answer to `GET`.
    Method,
    /// An interim response, a 304, or a status this cache does not understand under `must-understand`.
    Status,
    /// 206: only part of the content.
    Partial,
    /// `no-store`.
    NoStore,
    /// `private`.
    Private,
    /// The request had `Authorization` and the response does not lift that.
    Authorization,
    /// It sets a cookie and does not say that everybody may have it.
    SetCookie,
    /// `Vary: *`.
    VaryStar,
    /// Nothing says that it is fresh, and nothing else makes it reusable.
    NoFreshness,
    /// It is stale on arrival and cannot be validated.
    Useless,
}

impl Refusal {
    /// A label for metrics and `Cache-Status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Status => "status",
            Self::Partial => "partial",
            Self::NoStore => "no-store",
            Self::Private => "private",
            Self::Authorization => "authorization",
            Self::SetCookie => "set-cookie",
            Self::VaryStar => "vary-star",
            Self::NoFreshness => "no-freshness",
            Self::Useless => "useless",
        }
    }
}

/// Whether the response to a request may be stored for everybody, and its lifetime. After a 304, call it
/// with the stored status and the fields that [`super::update`] merged.
pub fn decide(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    requested_at: Timestamp,
    received_at: Timestamp,
    rules: &Rules,
) -> Decision {
    match judge(method, request, status, response, requested_at, received_at, rules) {
        Ok(lifetime) => Decision::Store(lifetime),
        Err(refusal) => Decision::Refuse(refusal),
    }
}

fn judge(
    method: &Method,
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    requested_at: Timestamp,
    received_at: Timestamp,
    rules: &Rules,
) -> Result<Lifetime, Refusal> {
    if *method != Method::GET {
        return Err(Refusal::Method);
    }
    match status.as_u16() {
        100..=199 | 304 => return Err(Refusal::Status),
        206 => return Err(Refusal::Partial),
        _ => {}
    }
    if vary(response, &[]) == Vary::Star {
        return Err(Refusal::VaryStar);
    }
    let initial_age = initial_age(response, requested_at, received_at);
    let mut lifetime = Lifetime {
        born: millis(received_at).saturating_sub(initial_age),
        lifetime: 0,
        revalidating: rules.stale_while_revalidate.map_or(0, whole_seconds),
        erring: rules.stale_if_error.map_or(0, whole_seconds),
        offline: 0,
        flags: 0,
    };
    if rules.override_origin
        && let Some(ttl) = rules.default_ttl.and_then(|ttl| route_ttl(status, ttl))
    {
        lifetime.lifetime = from_arrival(ttl, initial_age);
        lifetime.offline = offline(&lifetime, rules.stale_if_error.is_some());
        return Ok(lifetime);
    }

    let directives = directives::of_response(response);
    permitted(request, status, response, &directives)?;

    let explicit = explicit_lifetime(response, &directives, received_at);
    lifetime.lifetime = match explicit {
        Some(seconds) => seconds,
        None if directives.no_cache => 0,
        None => implied_lifetime(request, status, response, &directives, received_at, rules)
            .map(|implied| implied.seconds(initial_age))
            .ok_or(Refusal::NoFreshness)?,
    };
    lifetime.revalidating = directives.stale_while_revalidate.unwrap_or(lifetime.revalidating);
    lifetime.erring = directives.stale_if_error.unwrap_or(lifetime.erring);
    if directives.no_cache {
        lifetime.flags |= NO_CACHE;
    }
    if directives.must_revalidate {
        lifetime.flags |= MUST_REVALIDATE;
    }
    if directives.s_maxage.is_some() {
        lifetime.flags |= SHARED_MAX_AGE;
    }
    let says_erring = directives.stale_if_error.is_some() || rules.stale_if_error.is_some();
    lifetime.offline = offline(&lifetime, says_erring);
    if is_useful(&lifetime, response) { Ok(lifetime) } else { Err(Refusal::Useless) }
}

/// Everything that keeps a response out of shared storage whatever its freshness.
fn permitted(
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    directives: &Directives,
) -> Result<(), Refusal> {
    if directives.must_understand && !is_understood(status) {
        return Err(Refusal::Status);
    }
    // A cache that understands the status ignores no-store beside must-understand (5.2.2.3).
    if directives.no_store && !directives.must_understand {
        return Err(Refusal::NoStore);
    }
    if directives.private {
        return Err(Refusal::Private);
    }
    let lifts_authorization =
        directives.public || directives.must_revalidate || directives.s_maxage.is_some();
    if request.contains_key(AUTHORIZATION) && !lifts_authorization {
        return Err(Refusal::Authorization);
    }
    if cookies::forbid_sharing(request, response, directives) {
        return Err(Refusal::SetCookie);
    }
    Ok(())
}

/// Statuses whose caching this cache knows all about: the final ones RFC 9110 defines, without the
/// special cases, and those registered since.
fn is_understood(status: StatusCode) -> bool {
    matches!(status.as_u16(),
        200..=205 | 300..=303 | 305 | 307 | 308 | 400..=417 | 421 | 422 | 425 | 426 | 428 | 429
        | 431 | 451 | 500..=505 | 511)
}

/// What the origin says, in seconds from the response's birth; `None` when it says nothing.
fn explicit_lifetime(
    response: &HeaderMap,
    directives: &Directives,
    received_at: Timestamp,
) -> Option<u32> {
    if let Some(seconds) = directives.s_maxage.or(directives.max_age) {
        return Some(seconds);
    }
    if directives.targeted {
        return None;
    }
    let mut lines = response.get_all(EXPIRES);
    let first = lines.next()?;
    // Two different dates are no date, and what is no date has expired (5.3).
    if lines.any(|line| line != first) {
        return Some(0);
    }
    let now = received_at.seconds();
    let Some(expires) = date::parse(first.as_bytes(), now) else { return Some(0) };
    let date = date_of(response, DATE, now).unwrap_or_else(|| signed(now));
    Some(capped(expires.saturating_sub(date)))
}

/// Freshness that the origin did not state.
enum Implied {
    /// From the response's birth, as the origin would have counted.
    FromBirth(u32),
    /// From now on.
    FromArrival(u32),
}

impl Implied {
    fn seconds(self, initial_age: i64) -> u32 {
        match self {
            Self::FromBirth(seconds) => seconds,
            Self::FromArrival(seconds) => from_arrival(seconds, initial_age),
        }
    }
}

fn implied_lifetime(
    request: &HeaderMap,
    status: StatusCode,
    response: &HeaderMap,
    directives: &Directives,
    received_at: Timestamp,
    rules: &Rules,
) -> Option<Implied> {
    if let Some(ttl) = rules.default_ttl {
        return route_ttl(status, ttl).map(Implied::FromArrival);
    }
    // A guess is not good enough for a response that may be about whoever asked.
    if request.contains_key(COOKIE) && !directives.public {
        return None;
    }
    if !is_heuristically_cacheable(status) && !directives.public {
        return None;
    }
    let now = received_at.seconds();
    let modified = date_of(response, LAST_MODIFIED, now)?;
    let date = date_of(response, DATE, now).unwrap_or_else(|| signed(now));
    let tenth = capped(date.saturating_sub(modified) / 10);
    let ceiling = if is_error(status) { ERROR_CEILING } else { HEURISTIC_CEILING };
    (tenth > 0).then(|| Implied::FromBirth(tenth.min(ceiling)))
}

/// The route's `ttl` for a status it may apply to.
fn route_ttl(status: StatusCode, ttl: Duration) -> Option<u32> {
    if !is_heuristically_cacheable(status) {
        return None;
    }
    let seconds = whole_seconds(ttl);
    Some(if is_error(status) { seconds.min(ERROR_CEILING) } else { seconds })
}

/// RFC 9110 15.1, without 206.
fn is_heuristically_cacheable(status: StatusCode) -> bool {
    matches!(status.as_u16(), 200 | 203 | 204 | 300 | 301 | 308 | 404 | 405 | 410 | 414 | 501)
}

fn is_error(status: StatusCode) -> bool {
    status.is_client_error() || status.is_server_error()
}

/// A lifetime that lets the response be fresh for `seconds` from its arrival, whatever its age then.
fn from_arrival(seconds: u32, initial_age: i64) -> u32 {
    seconds.saturating_add(capped(initial_age / 1000)).min(MAX_SECONDS)
}

/// How long it may stand in for an origin that cannot be reached: as `stale-if-error` says; where nobody
/// said anything, for a while, if it was ever fresh and nothing forbids it.
fn offline(lifetime: &Lifetime, says_erring: bool) -> u32 {
    if says_erring {
        lifetime.erring
    } else if lifetime.lifetime > 0 && lifetime.flags == 0 {
        whole_seconds(OFFLINE_GRACE)
    } else {
        0
    }
}

/// Whether there is any way to use it.
fn is_useful(lifetime: &Lifetime, response: &HeaderMap) -> bool {
    if validators(response).next().is_some() {
        return true;
    }
    lifetime.flags & NO_CACHE == 0
        && (lifetime.lifetime > 0 || lifetime.revalidating > 0 || lifetime.erring > 0)
}

/// The age on arrival in milliseconds (4.2.3).
fn initial_age(response: &HeaderMap, requested_at: Timestamp, received_at: Timestamp) -> i64 {
    let received = millis(received_at);
    // A `Date` stands for a whole second: only what lies before all of it is age for certain. Otherwise
    // every twentieth response with `max-age=1` would be stale on arrival.
    let apparent = date_of(response, DATE, received_at.seconds()).map_or(0, |date| {
        received.saturating_sub(date.saturating_mul(1000).saturating_add(999)).max(0)
    });
    let delay = received.saturating_sub(millis(requested_at)).max(0);
    let stated = i64::from(age_field(response)) * 1000;
    apparent.max(stated.saturating_add(delay)).min(i64::from(MAX_SECONDS) * 1000)
}

/// The first member of `Age`; an invalid one is ignored (5.1).
fn age_field(response: &HeaderMap) -> u32 {
    let Some(line) = response.get(AGE) else { return 0 };
    members(line.as_bytes(), b',').next().and_then(delta_seconds).unwrap_or(0)
}

fn date_of(response: &HeaderMap, name: HeaderName, now: u64) -> Option<i64> {
    date::parse(response.get(name)?.as_bytes(), now)
}

fn signed(seconds: u64) -> i64 {
    i64::try_from(seconds).unwrap_or(i64::MAX)
}

fn capped(seconds: i64) -> u32 {
    u32::try_from(seconds.clamp(0, i64::from(MAX_SECONDS))).unwrap_or(MAX_SECONDS)
}
