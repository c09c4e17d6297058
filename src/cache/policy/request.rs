//! What a request asks of the cache.

use actix_http::{
    Method,
    header::{
        CACHE_CONTROL, CONTENT_LENGTH, HeaderMap, IF_MATCH, IF_UNMODIFIED_SINCE, PRAGMA,
        TRANSFER_ENCODING, UPGRADE,
    },
};

use super::directives::{Argument, for_each};

const NO_CACHE: u8 = 1;
const NO_STORE: u8 = 1 << 1;
const ONLY_IF_CACHED: u8 = 1 << 2;
const MAX_AGE: u8 = 1 << 3;
const MIN_FRESH: u8 = 1 << 4;
const MAX_STALE: u8 = 1 << 5;

/// The cache directives of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RequestControl {
    flags: u8,
    max_age: u32,
    min_fresh: u32,
    max_stale: u32,
}

/// What the cache does with a request before it looks anything up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Eligibility {
    /// A stored response may answer it, and its response may be stored.
    Lookup,
    /// Neither.
    Bypass(BypassReason),
    /// It may change the resource: it goes to the origin, and on success invalidates.
    Unsafe,
}

/// Why a request goes past the cache.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum BypassReason {
    /// A safe method whose responses are not cacheable.
    Method,
    /// The request has a body, which no key covers.
    Body,
    /// `If-Match` or `If-Unmodified-Since`, which only the origin may evaluate (RFC 9111 4.3.2).
    Precondition,
    /// `Cache-Control: no-store`.
    NoStore,
    /// It wants to leave HTTP.
    Upgrade,
}

impl BypassReason {
    /// A label for metrics and `Cache-Status`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Method => "method",
            Self::Body => "body",
            Self::Precondition => "precondition",
            Self::NoStore => "no-store",
            Self::Upgrade => "upgrade",
        }
    }
}

impl RequestControl {
    /// A request without cache directives.
    pub const fn plain() -> Self {
        Self { flags: 0, max_age: 0, min_fresh: 0, max_stale: 0 }
    }

    /// Reads `Cache-Control`, and `Pragma` where there is none.
    pub fn of(headers: &HeaderMap) -> Self {
        let mut control = Self::plain();
        if headers.contains_key(CACHE_CONTROL) {
            for_each(headers, &CACHE_CONTROL, |name, argument| control.add(name, argument));
        } else if headers.contains_key(PRAGMA) {
            for_each(headers, &PRAGMA, |name, _| {
                if name.eq_ignore_ascii_case(b"no-cache") {
                    control.flags |= NO_CACHE;
                }
            });
        }
        control
    }

    fn add(&mut self, name: &[u8], argument: Argument<'_>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        if is("no-cache") {
            self.flags |= NO_CACHE;
        } else if is("no-store") {
            self.flags |= NO_STORE;
        } else if is("only-if-cached") {
            self.flags |= ONLY_IF_CACHED;
        } else if is("max-age") {
            // A client that asks for a limit it cannot spell gets the strictest one.
            let seconds = argument.seconds().unwrap_or(0);
            self.max_age = if self.has(MAX_AGE) { self.max_age.min(seconds) } else { seconds };
            self.flags |= MAX_AGE;
        } else if is("min-fresh") {
            if let Some(seconds) = argument.seconds() {
                self.min_fresh = self.min_fresh.max(seconds);
                self.flags |= MIN_FRESH;
            }
        } else if is("max-stale") {
            // Without a value: however stale (RFC 9111 5.2.1.2). A value that is no number: not at all.
            let limit = match argument {
                Argument::None => u32::MAX,
                value => value.seconds().unwrap_or(0),
            };
            self.max_stale = if self.has(MAX_STALE) { self.max_stale.min(limit) } else { limit };
            self.flags |= MAX_STALE;
        }
    }

    const fn has(&self, flag: u8) -> bool {
        self.flags & flag != 0
    }

    /// No directive that matters.
    pub const fn is_plain(&self) -> bool {
        self.flags == 0
    }

    /// Wants the origin asked.
    pub const fn no_cache(&self) -> bool {
        self.has(NO_CACHE)
    }

    /// Wants nothing of it stored.
    pub const fn no_store(&self) -> bool {
        self.has(NO_STORE)
    }

    /// Wants a stored response or 504.
    pub const fn only_if_cached(&self) -> bool {
        self.has(ONLY_IF_CACHED)
    }

    pub(super) const fn min_fresh(&self) -> u32 {
        self.min_fresh
    }

    pub(super) fn max_stale(&self) -> Option<u32> {
        self.has(MAX_STALE).then_some(self.max_stale)
    }

    /// `max-age=0` is how browsers ask for validation, so there an age of zero is too old as well.
    pub(super) const fn refuses_age(&self, age: u64) -> bool {
        self.has(MAX_AGE) && (age > self.max_age as u64 || self.max_age == 0)
    }

    /// The client limited age or freshness and did not say that it takes stale responses.
    pub(super) const fn wants_fresh(&self) -> bool {
        self.flags & (MAX_AGE | MIN_FRESH) != 0 && !self.has(MAX_STALE)
    }
}

/// What the cache may do with a request.
pub fn eligibility(method: &Method, headers: &HeaderMap, control: &RequestControl) -> Eligibility {
    match *method {
        Method::GET | Method::HEAD => {}
        Method::OPTIONS | Method::TRACE => return Eligibility::Bypass(BypassReason::Method),
        // Safe by their registration; any other extension method counts as unsafe (RFC 9111 4.4).
        _ if matches!(method.as_str(), "PROPFIND" | "REPORT" | "SEARCH" | "QUERY") => {
            return Eligibility::Bypass(BypassReason::Method);
        }
        _ => return Eligibility::Unsafe,
    }
    if headers.contains_key(TRANSFER_ENCODING)
        || headers.get(CONTENT_LENGTH).is_some_and(|length| length.as_bytes() != b"0")
    {
        return Eligibility::Bypass(BypassReason::Body);
    }
    if control.no_store() {
        return Eligibility::Bypass(BypassReason::NoStore);
    }
    if headers.contains_key(IF_MATCH) || headers.contains_key(IF_UNMODIFIED_SINCE) {
        return Eligibility::Bypass(BypassReason::Precondition);
    }
    if headers.contains_key(UPGRADE) {
        return Eligibility::Bypass(BypassReason::Upgrade);
    }
    Eligibility::Lookup
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::tests::{asks, headers};

    fn eligible(method: &str, fields: &[(&str, &str)]) -> Eligibility {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let fields = headers(fields);
        eligibility(&method, &fields, &RequestControl::of(&fields))
    }

    #[test]
    fn only_reads_without_a_body_are_looked_up() {
        use Eligibility::{Bypass, Lookup, Unsafe};
        for (method, fields, expected) in [
            ("GET", &[][..], Lookup),
            ("HEAD", &[], Lookup),
            ("GET", &[("range", "bytes=0-1"), ("authorization", "x"), ("cookie", "x")], Lookup),
            ("GET", &[("if-none-match", "*"), ("if-modified-since", "x")], Lookup),
            ("GET", &[("content-length", "0")], Lookup),
            ("GET", &[("content-length", "1")], Bypass(BypassReason::Body)),
            ("GET", &[("transfer-encoding", "chunked")], Bypass(BypassReason::Body)),
            ("GET", &[("if-match", "*")], Bypass(BypassReason::Precondition)),
            ("GET", &[("if-unmodified-since", "x")], Bypass(BypassReason::Precondition)),
            ("GET", &[("cache-control", "x, No-Store")], Bypass(BypassReason::NoStore)),
            ("GET", &[("upgrade", "websocket")], Bypass(BypassReason::Upgrade)),
            ("OPTIONS", &[], Bypass(BypassReason::Method)),
            ("PROPFIND", &[], Bypass(BypassReason::Method)),
            ("POST", &[], Unsafe),
            ("PATCH", &[], Unsafe),
            ("M-SEARCH", &[], Unsafe),
            ("get", &[], Unsafe),
        ] {
            assert_eq!(eligible(method, fields), expected, "{method} {fields:?}");
        }
    }

    #[test]
    fn what_is_unknown_leaves_a_request_plain() {
        let request = headers(&[("cache-control", "nothing-to-see-here"), ("pragma", "foo")]);
        assert!(RequestControl::of(&request).is_plain());
        assert!(RequestControl::of(&headers(&[])).is_plain());
        assert!(asks("foo=\"no-cache, no-store\"").is_plain());
        assert!(asks("only-if-cached").only_if_cached());
    }

    #[test]
    fn pragma_counts_only_without_cache_control() {
        assert!(RequestControl::of(&headers(&[("pragma", "no-cache")])).no_cache());
        let both = headers(&[("pragma", "no-cache"), ("cache-control", "x")]);
        assert!(!RequestControl::of(&both).no_cache());
    }
}
