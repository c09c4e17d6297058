//! Conditional and range requests, answered from a stored response (RFC 9110 13, 14; RFC 9111 4.3).

use std::ops::Range;

use actix_http::{
    Method, StatusCode,
    header::{
        DATE, ETAG, HeaderMap, HeaderName, HeaderValue, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE,
        LAST_MODIFIED, RANGE,
    },
};

use super::date;
use crate::cache::clock::Timestamp;

/// What the request's conditions make of a stored response.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precondition {
    /// Nothing: send it.
    Proceed,
    /// The client has it already: 304.
    NotModified,
}

/// Evaluates `If-None-Match`, or without it `If-Modified-Since`, against a stored response.
/// `If-Match` and `If-Unmodified-Since` never get here ([`super::eligibility`]).
pub fn precondition(
    method: &Method,
    request: &HeaderMap,
    stored_status: StatusCode,
    stored: &HeaderMap,
    now: Timestamp,
) -> Precondition {
    if !matches!(*method, Method::GET | Method::HEAD) || !stored_status.is_success() {
        return Precondition::Proceed;
    }
    let matches = if request.contains_key(IF_NONE_MATCH) {
        none_match(request, stored)
    } else if let Some(since) = request.get(IF_MODIFIED_SINCE) {
        not_modified_since(since, stored, now)
    } else {
        false
    };
    if matches { Precondition::NotModified } else { Precondition::Proceed }
}

/// Whether one of the tags in `If-None-Match` is the stored one, compared weakly.
fn none_match(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let own = stored.get(ETAG).and_then(|tag| tags(tag.as_bytes()).next());
    request.get_all(IF_NONE_MATCH).any(|line| {
        line.as_bytes().trim_ascii() == b"*"
            || own.is_some_and(|own| tags(line.as_bytes()).any(|tag| tag.opaque == own.opaque))
    })
}

fn not_modified_since(since: &HeaderValue, stored: &HeaderMap, now: Timestamp) -> bool {
    let read = |value: &HeaderValue| date::parse(value.as_bytes(), now.seconds());
    // Without Last-Modified, what the origin sent at `Date` is at least that new (RFC 9111 4.3.2).
    let modified = match stored.get(LAST_MODIFIED) {
        Some(modified) => read(modified),
        None => stored.get(DATE).and_then(read),
    };
    matches!((read(since), modified), (Some(since), Some(modified)) if modified <= since)
}

/// An entity tag, quotes included in `opaque`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Tag<'v> {
    weak: bool,
    opaque: &'v [u8],
}

/// The tags of a list. What is not a tag (no quotes, a small `w/`) is compared as it stands.
fn tags(mut rest: &[u8]) -> impl Iterator<Item = Tag<'_>> {
    std::iter::from_fn(move || {
        while let [b',' | b' ' | b'\t', tail @ ..] = rest {
            rest = tail;
        }
        if rest.is_empty() {
            return None;
        }
        let (weak, tail) = match rest {
            [b'W', b'/', tail @ ..] => (true, tail),
            _ => (false, rest),
        };
        // Entity tags know no escapes: the next quote ends one.
        let length = match tail {
            [b'"', inner @ ..] => memchr::memchr(b'"', inner).map(|end| end + 2),
            _ => None,
        };
        let length = length.or_else(|| memchr::memchr(b',', tail)).unwrap_or(tail.len());
        let opaque = tail[..length].trim_ascii();
        rest = &tail[length..];
        Some(Tag { weak, opaque })
    })
}

/// The conditional fields that ask the origin whether a stored response is still good.
pub fn validators(stored: &HeaderMap) -> impl Iterator<Item = (HeaderName, HeaderValue)> {
    let tag = stored.get(ETAG).map(|tag| (IF_NONE_MATCH, tag.clone()));
    let modified = stored
        .get(LAST_MODIFIED)
        .filter(|value| date::parse(value.as_bytes(), 0).is_some())
        .map(|value| (IF_MODIFIED_SINCE, value.clone()));
    tag.into_iter().chain(modified)
}

/// What part of a complete stored response the request wants.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum RangeOutcome {
    /// All of it.
    Full,
    /// These bytes, for a 206.
    Partial(Range<u64>),
    /// None that exist, for a 416.
    Unsatisfiable,
}

/// Evaluates `Range` and `If-Range` for a `GET` against a stored 200 of `length` bytes. Several ranges
/// at once are answered with the whole, which is always allowed and never multiplies work.
pub fn range(request: &HeaderMap, stored: &HeaderMap, length: u64, now: Timestamp) -> RangeOutcome {
    let mut lines = request.get_all(RANGE);
    let (Some(line), None) = (lines.next(), lines.next()) else { return RangeOutcome::Full };
    let Some(spec) = byte_range(line.as_bytes()) else { return RangeOutcome::Full };
    if request.get(IF_RANGE).is_some_and(|condition| !is_unchanged(condition, stored, now)) {
        return RangeOutcome::Full;
    }
    let bytes = match spec {
        ByteRange::From(first) => first..length,
        ByteRange::Between(first, last) => first..length.min(last.saturating_add(1)),
        ByteRange::Last(0) => return RangeOutcome::Unsatisfiable,
        ByteRange::Last(_) if length == 0 => return RangeOutcome::Full,
        ByteRange::Last(count) => length.saturating_sub(count)..length,
    };
    if bytes.is_empty() { RangeOutcome::Unsatisfiable } else { RangeOutcome::Partial(bytes) }
}

/// One byte-range-spec as written.
enum ByteRange {
    From(u64),
    Between(u64, u64),
    Last(u64),
}

/// `None` for other units, several ranges and anything malformed: such a field is ignored.
fn byte_range(line: &[u8]) -> Option<ByteRange> {
    let line = line.trim_ascii();
    let (unit, spec) = line.split_at_checked(6)?;
    if !unit.eq_ignore_ascii_case(b"bytes=") {
        return None;
    }
    let spec = spec.trim_ascii();
    let dash = memchr::memchr(b'-', spec)?;
    match (&spec[..dash], &spec[dash + 1..]) {
        (b"", count) => Some(ByteRange::Last(position(count)?)),
        (first, b"") => Some(ByteRange::From(position(first)?)),
        (first, last) => {
            let (first, last) = (position(first)?, position(last)?);
            (first <= last).then_some(ByteRange::Between(first, last))
        }
    }
}

fn position(digits: &[u8]) -> Option<u64> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    Some(digits.iter().fold(0_u64, |value, digit| {
        value.saturating_mul(10).saturating_add(u64::from(digit - b'0'))
    }))
}

/// `If-Range`: a strong tag that is the stored one, or the stored date, if that is a strong validator.
fn is_unchanged(condition: &HeaderValue, stored: &HeaderMap, now: Timestamp) -> bool {
    let condition = condition.as_bytes().trim_ascii();
    if condition.first() == Some(&b'"') {
        let own = stored.get(ETAG).and_then(|tag| tags(tag.as_bytes()).next());
        let asked = tags(condition).next();
        return own.is_some() && own == asked && own.is_some_and(|tag| !tag.weak);
    }
    let Some(modified) = stored.get(LAST_MODIFIED) else { return false };
    let read = |value: &[u8]| date::parse(value, now.seconds());
    // A date is strong when the response was made at least a second after it (RFC 9110 8.8.2.2).
    match (read(condition), read(modified.as_bytes()), stored.get(DATE)) {
        (Some(asked), Some(modified), Some(date)) => {
            asked == modified && read(date.as_bytes()).is_some_and(|date| date > modified)
        }
        _ => false,
    }
}
