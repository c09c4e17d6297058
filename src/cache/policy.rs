//! What a shared cache may store, reuse and forget: HTTP caching as pure functions.
//!
//! Nothing here reads a clock, a socket or a setting. Every function takes header maps and the moment it
//! is asked about, so that each rule of RFC 9111 can be tested by itself, and the engine that calls them
//! stays small. Around it: RFC 9213 (targeted fields), RFC 5861 (stale content), RFC 9110 (conditions
//! and ranges).
//!
//! Where the standard leaves room, the safer side for whoever is behind the cache wins:
//!
//! - A response without stated freshness is stored only by a route's `ttl` or, for requests without
//!   cookies, by the age of its `Last-Modified`. A bare `ETag` is not enough.
//! - An error without stated freshness is kept for ten seconds at most.
//! - `Set-Cookie` is shared only where the origin means it (see `cookies.rs`).
//! - 206 is not stored: parts can be joined only under a strong validator, and whole responses serve
//!   ranges anyway.
//! - Stale responses are served where the origin or the route grants it, to clients that ask for them, and
//!   for [`OFFLINE_GRACE`] while the origin cannot be reached at all; never against `no-cache`,
//!   `must-revalidate` or `proxy-revalidate`, and against `s-maxage` only where a stale window is stated.

mod conditional;
mod cookies;
mod date;
mod decide;
mod directives;
mod fields;
mod invalidate;
mod lifetime;
#[cfg(test)]
mod properties;
mod request;
mod targeted;
#[cfg(test)]
mod tests;
mod vary;

use std::time::Duration;

pub use conditional::{Precondition, RangeOutcome, precondition, range, validators};
pub use decide::{Decision, Refusal, decide};
pub use directives::SURROGATE_NAME;
pub use fields::{strip_for_storage, update};
pub use invalidate::{answers_later_gets, invalidated};
pub use lifetime::{Failure, Lifetime, Reuse, reuse, stale_on_error};
pub use request::{BypassReason, Eligibility, RequestControl, eligibility};
pub use vary::{Vary, is_in_wanted_language, selecting_value, vary};

/// How long past its freshness a response may stand in for an origin that cannot be reached, where
/// nothing forbids it and nobody stated a window.
pub const OFFLINE_GRACE: Duration = Duration::from_secs(10 * 60);

/// What a route adds to the origin's word. The default adds nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Rules {
    /// Freshness where the origin states none.
    pub default_ttl: Option<Duration>,
    /// `default_ttl` wins over everything the response says, and over `Authorization`.
    pub override_origin: bool,
    /// A window where the origin states none.
    pub stale_while_revalidate: Option<Duration>,
    /// Likewise.
    pub stale_if_error: Option<Duration>,
}
