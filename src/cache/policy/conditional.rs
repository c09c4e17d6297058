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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::tests::{NOW, at, headers};

    fn none_match_of(etag: &str, asked: &str) -> bool {
        let (request, stored) = (headers(&[("if-none-match", asked)]), headers(&[("etag", etag)]));
        precondition(&Method::GET, &request, StatusCode::OK, &stored, NOW)
            == Precondition::NotModified
    }

    #[test]
    fn if_none_match_compares_weakly_with_every_tag_of_the_list() {
        for (etag, asked, expected) in [
            ("\"abcdef\"", "\"abcdef\"", true),
            ("\"abcdef\"", "W/\"abcdef\"", true),
            ("W/\"abcdef\"", "\"abcdef\"", true),
            ("W/\"abcdef\"", "W/\"abcdef\"", true),
            ("\"abcdef\"", "\"abcdef\", \"1234\", \"5678\"", true),
            ("\"abcdef\"", "\"1234\", \"abcdef\", \"5678\"", true),
            ("\"abcdef\"", "\"1234\",\"5678\",\"abcdef\"", true),
            ("\"a,b\"", "\"1\", \"a,b\"", true),
            ("\"abcdef\"", "*", true),
            ("abcdef", "abcdef", true),
            ("w/\"abcdef\"", "w/\"abcdef\"", true),
            ("\"abcdef\"", "abcdef", false),
            ("\"abcdef\"", "\"abcde\"", false),
            ("\"abcdef\"", "", false),
            ("\"abcdef\"", "W/", false),
        ] {
            assert_eq!(none_match_of(etag, asked), expected, "{etag} in {asked}");
        }
    }

    #[test]
    fn conditions_are_evaluated_in_their_order_of_precedence() {
        let stored = headers(&[("etag", "\"a\""), ("last-modified", &at(-5000))]);
        for (tag, since, expected) in [
            ("\"a\"", at(-10_000), Precondition::NotModified),
            ("\"b\"", at(0), Precondition::Proceed),
        ] {
            let request = headers(&[("if-none-match", tag), ("if-modified-since", &since)]);
            let found = precondition(&Method::GET, &request, StatusCode::OK, &stored, NOW);
            assert_eq!(found, expected, "{tag}");
        }
    }

    #[test]
    fn if_modified_since_compares_with_the_best_date_there_is() {
        let (modified, date) = (at(-3000), at(0));
        let since = |asked: &str, stored: &[(&str, &str)]| {
            let request = headers(&[("if-modified-since", asked)]);
            precondition(&Method::GET, &request, StatusCode::OK, &headers(stored), NOW)
                == Precondition::NotModified
        };
        let with = [("last-modified", &*modified), ("date", &date)];
        assert!(since(&at(-3000), &with) && since(&at(-2000), &with));
        assert!(!since(&at(-3001), &with) && !since("yesterday", &with));
        assert!(since(&at(0), &with[1..]) && !since(&at(-3000), &with[1..]));
        assert!(!since(&at(0), &[]));
        let old = headers(&[("last-modified", "Sun, 06 Nov 1994 08:49:37 GMT")]);
        for asked in ["Sunday, 06-Nov-94 08:49:37 GMT", "Sun Nov  6 08:49:37 1994"] {
            let request = headers(&[("if-modified-since", asked)]);
            let found = precondition(&Method::HEAD, &request, StatusCode::OK, &old, NOW);
            assert_eq!(found, Precondition::NotModified, "{asked}");
        }
        let recent = headers(&[("last-modified", "Sat, 14 Nov 2026 08:49:37 GMT")]);
        let request = headers(&[("if-modified-since", "Saturday, 14-Nov-26 08:49:37 GMT")]);
        let found = precondition(&Method::GET, &request, StatusCode::OK, &recent, NOW);
        assert_eq!(found, Precondition::NotModified);
    }

    #[test]
    fn conditions_are_for_successful_reads() {
        let (request, stored) = (headers(&[("if-none-match", "*")]), headers(&[]));
        for (method, status) in [(Method::GET, 404), (Method::GET, 301), (Method::POST, 200)] {
            let status = StatusCode::from_u16(status).unwrap();
            let found = precondition(&method, &request, status, &stored, NOW);
            assert_eq!(found, Precondition::Proceed, "{method} {status}");
        }
    }

    #[test]
    fn validators_go_out_as_they_came() {
        let stored = headers(&[("etag", "W/\"a\""), ("last-modified", &at(-9))]);
        let sent: Vec<_> = validators(&stored).collect();
        assert_eq!(sent[0], (IF_NONE_MATCH, HeaderValue::from_static("W/\"a\"")));
        assert_eq!(sent[1], (IF_MODIFIED_SINCE, HeaderValue::from_str(&at(-9)).unwrap()));
        assert_eq!(validators(&headers(&[("last-modified", "never")])).count(), 0);
    }

    #[test]
    fn one_range_is_cut_and_everything_else_gets_the_whole() {
        use RangeOutcome::{Full, Partial, Unsatisfiable};
        for (asked, length, expected) in [
            ("bytes=0-1", 11, Partial(0..2)),
            ("Bytes=0-1", 11, Partial(0..2)),
            ("bytes=1-", 11, Partial(1..11)),
            ("bytes=-1", 11, Partial(10..11)),
            ("bytes=-99", 11, Partial(0..11)),
            ("bytes=5-99", 11, Partial(5..11)),
            ("bytes=0-18446744073709551615", 11, Partial(0..11)),
            ("bytes=0-99999999999999999999999", 11, Partial(0..11)),
            ("bytes=11-", 11, Unsatisfiable),
            ("bytes=99999999999999999999999-", 11, Unsatisfiable),
            ("bytes=-0", 11, Unsatisfiable),
            ("bytes=0-", 0, Unsatisfiable),
            ("bytes=-1", 0, Full),
            ("bytes=2-1", 11, Full),
            ("bytes=0-1,3-4", 11, Full),
            ("bytes=-", 11, Full),
            ("bytes=a-b", 11, Full),
            ("bytes=--1", 11, Full),
            ("bytes", 11, Full),
            ("lines=0-1", 11, Full),
        ] {
            let found = range(&headers(&[("range", asked)]), &headers(&[]), length, NOW);
            assert_eq!(found, expected, "{asked} of {length}");
        }
        let twice = headers(&[("range", "bytes=0-1"), ("range", "bytes=3-4")]);
        assert_eq!(range(&twice, &headers(&[]), 11, NOW), Full);
        assert_eq!(range(&headers(&[]), &headers(&[]), 11, NOW), Full);
    }

    #[test]
    fn if_range_needs_a_strong_match() {
        let (date, modified) = (at(0), at(-60));
        for (condition, etag, expected) in [
            ("\"a\"", "\"a\"", true),
            ("\"a\"", "\"b\"", false),
            ("W/\"a\"", "W/\"a\"", false),
            ("\"a\"", "W/\"a\"", false),
            (&*modified, "\"a\"", true),
            (&date, "\"a\"", false),
            ("junk", "\"a\"", false),
        ] {
            let request = headers(&[("range", "bytes=0-1"), ("if-range", condition)]);
            let stored = [("etag", etag), ("last-modified", &modified), ("date", &date)];
            let found = range(&request, &headers(&stored), 11, NOW) == RangeOutcome::Partial(0..2);
            assert_eq!(found, expected, "{condition} against {etag}");
        }
        let request = headers(&[("range", "bytes=0-1"), ("if-range", &date)]);
        let stored = headers(&[("last-modified", &date), ("date", &date)]);
        assert_eq!(range(&request, &stored, 11, NOW), RangeOutcome::Full, "may change again");
    }
}
