//! Turns what is stored into what a client gets: preconditions, ranges, `HEAD`, coding, and the
//! fields that tell what the cache did.

use std::{cell::RefCell, fmt::Write as _};

use actix_http::{
    Method, Response, StatusCode,
    body::{BodySize, BoxBody, MessageBody},
    header::{
        ACCEPT_ENCODING, AGE, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG, HeaderMap,
        HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, RANGE, VARY,
    },
};
use bytes::Bytes;

use super::{
    clock::Timestamp,
    compress,
    entry::Entry,
    policy::{self, Precondition, RangeOutcome},
};
use crate::telemetry::metrics::CacheOutcome;

/// RFC 9211.
pub static CACHE_STATUS: HeaderName = HeaderName::from_static("cache-status");
/// What most people look for.
pub static X_CACHE: HeaderName = HeaderName::from_static("x-cache");

/// How the cache handled a request, as `Cache-Status` says it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Handling {
    pub outcome: CacheOutcome,
    /// `fwd`: why the request went to the origin (RFC 9211 section 2.2).
    pub forwarded: Option<&'static str>,
    /// `fwd-status`: what the origin answered, where the client got something else.
    pub origin_status: Option<u16>,
    pub stored: bool,
    pub collapsed: bool,
}

impl Handling {
    /// Served from the store without asking.
    pub const HIT: Self = Self {
        outcome: CacheOutcome::Hit,
        forwarded: None,
        origin_status: None,
        stored: false,
        collapsed: false,
    };

    /// Served although stale.
    pub const STALE: Self = Self { outcome: CacheOutcome::Stale, ..Self::HIT };

    /// Sent to the origin for `reason`.
    pub const fn forwarded(outcome: CacheOutcome, reason: &'static str) -> Self {
        Self { outcome, forwarded: Some(reason), ..Self::HIT }
    }

    fn describe(self, ttl: Option<i64>) -> String {
        let mut text = String::from("portway");
        match self.forwarded {
            None => text.push_str("; hit"),
            Some(reason) => {
                text.push_str("; fwd=");
                text.push_str(reason);
            }
        }
        if let Some(status) = self.origin_status {
            let _ = write!(text, "; fwd-status={status}");
        }
        if let Some(ttl) = ttl {
            let _ = write!(text, "; ttl={ttl}");
        }
        if self.stored {
            text.push_str("; stored");
        }
        if self.collapsed {
            text.push_str("; collapsed");
        }
        text
    }

    /// Adds `Cache-Status`, after what caches nearer the origin said, and `X-Cache`.
    pub fn mark(self, headers: &mut HeaderMap, ttl: Option<i64>) {
        headers.append(CACHE_STATUS.clone(), self.status_value(ttl));
        headers.insert(X_CACHE.clone(), HeaderValue::from_static(self.outcome.as_str()));
    }

    fn status_value(self, ttl: Option<i64>) -> HeaderValue {
        let fresh = || {
            HeaderValue::try_from(self.describe(ttl))
                .unwrap_or_else(|_| HeaderValue::from_static("portway"))
        };
        match ttl {
            Some(ttl) if self == Self::HIT => memo(&HIT_VALUES, ttl as u64, fresh),
            _ => fresh(),
        }
    }
}

type Memo = RefCell<[Option<(u64, HeaderValue)>; 256]>;

thread_local! {
    /// `Age` and `Cache-Status` of recent hits: their values repeat, and formatting them anew would
    /// be most of what a hit allocates.
    static AGES: Memo = const { RefCell::new([const { None }; 256]) };
    static HIT_VALUES: Memo = const { RefCell::new([const { None }; 256]) };
}

fn memo(
    table: &'static std::thread::LocalKey<Memo>,
    number: u64,
    make: impl FnOnce() -> HeaderValue,
) -> HeaderValue {
    table.with_borrow_mut(|slots| {
        let slot = &mut slots[number as usize % 256];
        match slot {
            Some((known, value)) if *known == number => value.clone(),
            _ => {
                let value = make();
                *slot = Some((number, value.clone()));
                value
            }
        }
    })
}

fn age_value(age: u64) -> HeaderValue {
    memo(&AGES, age, || HeaderValue::from(age))
}

/// A body that is not sent but whose length is: the answer to `HEAD`.
struct Unsent(u64);

impl MessageBody for Unsent {
    type Error = std::convert::Infallible;

    fn size(&self) -> BodySize {
        BodySize::Sized(self.0)
    }

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        _: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Bytes, Self::Error>>> {
        std::task::Poll::Ready(None)
    }
}

/// A body of known length that is not sent, for `HEAD`.
pub fn unsent(length: u64) -> BoxBody {
    BoxBody::new(Unsent(length))
}

/// Whether the request has a precondition that a cache evaluates (RFC 9111 section 4.3.2).
pub fn is_conditional(request: &HeaderMap) -> bool {
    request.contains_key(IF_NONE_MATCH) || request.contains_key(IF_MODIFIED_SINCE)
}

/// Answers a request from a stored response.
pub fn from_entry(
    entry: &Entry,
    method: &Method,
    request: &HeaderMap,
    now: Timestamp,
    handling: Handling,
) -> Response<BoxBody> {
    let mut response = Response::with_body(entry.status(), BoxBody::new(()));
    let headers = response.headers_mut();
    for (name, value) in entry.headers() {
        headers.append(name.clone(), value);
    }
    headers.insert(AGE, age_value(entry.lifetime.age(now)));
    handling.mark(headers, Some(entry.lifetime.ttl(now)));

    // The map also holds what was added above; no precondition looks at that.
    if is_conditional(request)
        && policy::precondition(method, request, entry.status(), response.headers(), now)
            == Precondition::NotModified
    {
        return not_modified(response);
    }
    if request.contains_key(RANGE) && *method == Method::GET {
        let length = entry.body_length() as u64;
        match policy::range(request, response.headers(), length, now) {
            RangeOutcome::Full => {}
            RangeOutcome::Partial(range) => return partial(response, entry, range, length),
            RangeOutcome::Unsatisfiable => return unsatisfiable(response, length),
        }
    } else if entry.compressible {
        vary_on_coding(response.headers_mut());
        if compress::accepts_gzip(request.get(ACCEPT_ENCODING))
            && let Some(gzip) = entry.gzip()
        {
            as_gzip(response.headers_mut());
            return with_body(response, method, gzip);
        }
    }
    with_body(response, method, entry.body())
}

fn with_body(response: Response<BoxBody>, method: &Method, body: Bytes) -> Response<BoxBody> {
    if *method == Method::HEAD {
        let length = body.len() as u64;
        response.set_body(unsent(length))
    } else {
        response.set_body(BoxBody::new(body))
    }
}

/// Makes `response` the 304 that answers a precondition (RFC 9110 section 15.4.5).
pub fn not_modified(mut response: Response<BoxBody>) -> Response<BoxBody> {
    *response.status_mut() = StatusCode::NOT_MODIFIED;
    response.headers_mut().retain(|name, _| {
        // Content-Location is one of the fields a 304 has to carry.
        *name == actix_http::header::CONTENT_LOCATION || !name.as_str().starts_with("content-")
    });
    response.set_body(BoxBody::new(()))
}

fn partial(
    mut response: Response<BoxBody>,
    entry: &Entry,
    range: std::ops::Range<u64>,
    length: u64,
) -> Response<BoxBody> {
    *response.status_mut() = StatusCode::PARTIAL_CONTENT;
    let content_range = format!("bytes {}-{}/{length}", range.start, range.end - 1);
    if let Ok(value) = HeaderValue::try_from(content_range) {
        response.headers_mut().insert(CONTENT_RANGE, value);
    }
    let body = entry.body().slice(range.start as usize..range.end as usize);
    response.set_body(BoxBody::new(body))
}

fn unsatisfiable(mut response: Response<BoxBody>, length: u64) -> Response<BoxBody> {
    *response.status_mut() = StatusCode::RANGE_NOT_SATISFIABLE;
    let headers = response.headers_mut();
    if let Ok(value) = HeaderValue::try_from(format!("bytes */{length}")) {
        headers.insert(CONTENT_RANGE, value);
    }
    headers.remove(CONTENT_LENGTH);
    response.set_body(BoxBody::new(Bytes::new()))
}

/// Says that the coding was chosen by the request.
pub fn vary_on_coding(headers: &mut HeaderMap) {
    let named = headers.get_all(VARY).any(|line| {
        line.to_str().is_ok_and(|line| {
            line.split(',').any(|name| name.trim().eq_ignore_ascii_case("accept-encoding"))
        })
    });
    if !named {
        headers.append(VARY, HeaderValue::from_static("Accept-Encoding"));
    }
}

/// Describes the gzip coding of the response that `headers` describe.
///
/// The bytes differ, so a strong entity tag becomes weak (RFC 9110 section 8.8.1).
fn as_gzip(headers: &mut HeaderMap) {
    headers.insert(CONTENT_ENCODING, HeaderValue::from_static("gzip"));
    headers.remove(CONTENT_LENGTH);
    if let Some(tag) = headers.get(ETAG)
        && !tag.as_bytes().starts_with(b"W/")
        && let Ok(weak) = HeaderValue::from_bytes(&[b"W/", tag.as_bytes()].concat())
    {
        headers.insert(ETAG, weak);
    }
}
