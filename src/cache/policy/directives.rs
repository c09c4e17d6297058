//! `Cache-Control` and its relatives, read so that junk never makes a response more cacheable.
//!
//! Names are case-insensitive, repeated lines are one list, a comma inside a quoted string is not a
//! separator. Where a directive is repeated the most restrictive value wins; a value that is not a
//! number counts as zero. Targeted fields come first (RFC 9213): `CDN-Cache-Control` as a Structured
//! Field dictionary, then `Surrogate-Control` as the Edge Architecture note describes it.

use actix_http::header::{CACHE_CONTROL, HeaderMap, HeaderName, PRAGMA};

/// The largest number of seconds a cache has to represent (RFC 9111 1.2.2).
pub(super) const MAX_SECONDS: u32 = 1 << 31;

/// The name this cache goes by in `Surrogate-Capability` and in the targets of `Surrogate-Control`.
pub const SURROGATE_NAME: &str = "portway";

/// What a response says to a shared cache.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Directives {
    pub(super) no_store: bool,
    pub(super) no_cache: bool,
    pub(super) private: bool,
    pub(super) public: bool,
    pub(super) must_revalidate: bool,
    pub(super) must_understand: bool,
    pub(super) max_age: Option<u32>,
    pub(super) s_maxage: Option<u32>,
    pub(super) stale_while_revalidate: Option<u32>,
    pub(super) stale_if_error: Option<u32>,
    /// They come from a field that only shared caches read, so `Cache-Control` and `Expires` do not
    /// count.
    pub(super) targeted: bool,
}

/// The argument of a directive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Argument<'v> {
    None,
    Token(&'v [u8]),
    /// Without the quotes, escapes as they came.
    Quoted(&'v [u8]),
}

impl Argument<'_> {
    /// Seconds; `None` when it is not a number. Both forms are taken (RFC 9111 5.2).
    pub(super) fn seconds(self) -> Option<u32> {
        match self {
            Argument::None => None,
            Argument::Token(digits) | Argument::Quoted(digits) => delta_seconds(digits),
        }
    }
}

/// `1*DIGIT`, capped.
pub(super) fn delta_seconds(digits: &[u8]) -> Option<u32> {
    if digits.is_empty() || !digits.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let value = digits.iter().fold(0_u32, |value, digit| {
        value.saturating_mul(10).saturating_add(u32::from(digit - b'0'))
    });
    Some(value.min(MAX_SECONDS))
}

/// Calls `each` with every directive of a field, over all its lines.
pub(super) fn for_each<'h>(
    headers: &'h HeaderMap,
    name: &HeaderName,
    mut each: impl FnMut(&'h [u8], Argument<'h>),
) {
    for line in headers.get_all(name) {
        for member in members(line.as_bytes(), b',') {
            let (name, argument) = split(member);
            if !name.is_empty() {
                each(name, argument);
            }
        }
    }
}

/// The members of a list, trimmed, without the empty ones. A separator inside a quoted string does not
/// count. From a quote that is never closed on, quotes are ordinary characters: one cannot hide what
/// follows it, and the line is still read in one pass.
pub(super) fn members(line: &[u8], separator: u8) -> impl Iterator<Item = &[u8]> {
    let mut rest = line;
    let mut quotes_count = true;
    std::iter::from_fn(move || {
        if rest.is_empty() {
            return None;
        }
        let mut at = 0;
        while at < rest.len() && rest[at] != separator {
            let quoted = if rest[at] == b'"' && quotes_count {
                let length = quoted_length(&rest[at..]);
                quotes_count = length.is_some();
                length
            } else {
                None
            };
            at += quoted.unwrap_or(1);
        }
        let member = &rest[..at];
        rest = rest.get(at + 1..).unwrap_or_default();
        Some(member.trim_ascii())
    })
    .filter(|member| !member.is_empty())
}

/// The length of the quoted string at the start of `text`, quotes included.
pub(super) fn quoted_length(text: &[u8]) -> Option<usize> {
    let mut at = 1;
    while at < text.len() {
        match text[at] {
            b'\\' => at += 2,
            b'"' => return Some(at + 1),
            _ => at += 1,
        }
    }
    None
}

fn split(member: &[u8]) -> (&[u8], Argument<'_>) {
    let Some(equals) = memchr::memchr(b'=', member) else {
        return (member, Argument::None);
    };
    let (name, value) = (&member[..equals], &member[equals + 1..]);
    match value {
        [b'"', inner @ .., b'"'] => (name.trim_ascii(), Argument::Quoted(inner)),
        // White space around "=" is not allowed: the directive stands, its value does not.
        _ if name.ends_with(b" ") || name.ends_with(b"\t") => {
            (name.trim_ascii(), Argument::Token(b""))
        }
        _ => (name, Argument::Token(value)),
    }
}

/// What the response says to this cache.
pub(super) fn of_response(response: &HeaderMap) -> Directives {
    if let Some(directives) = super::targeted::cdn_cache_control(response) {
        return directives;
    }
    if let Some(directives) = super::targeted::surrogate_control(response) {
        return directives;
    }
    cache_control(response)
}

fn cache_control(response: &HeaderMap) -> Directives {
    let mut found = Directives::default();
    let mut any = false;
    for_each(response, &CACHE_CONTROL, |name, argument| {
        any = true;
        found.add(name, argument);
    });
    if !any {
        // Only HTTP/1.0 origins that mean it send this; it never overrules Cache-Control.
        for_each(response, &PRAGMA, |name, _| {
            found.no_cache |= name.eq_ignore_ascii_case(b"no-cache");
        });
    }
    found
}

impl Directives {
    /// Takes one directive in.
    pub(super) fn add(&mut self, name: &[u8], argument: Argument<'_>) {
        let is = |known: &str| name.eq_ignore_ascii_case(known.as_bytes());
        // A list of field names restricts those fields alone, which are not stored at all
        // (`fields_not_to_store`).
        let whole = !matches!(argument, Argument::Quoted(list) if is_field_list(list));
        if is("no-store") {
            self.no_store = true;
        } else if is("no-cache") {
            self.no_cache |= whole;
        } else if is("private") {
            self.private |= whole;
        } else if is("public") {
            self.public = true;
        } else if is("must-revalidate") || is("proxy-revalidate") {
            self.must_revalidate = true;
        } else if is("must-understand") {
            self.must_understand = true;
        } else if is("max-age") {
            restrict(&mut self.max_age, argument);
        } else if is("s-maxage") {
            restrict(&mut self.s_maxage, argument);
        } else if is("stale-while-revalidate") {
            restrict(&mut self.stale_while_revalidate, argument);
        } else if is("stale-if-error") {
            restrict(&mut self.stale_if_error, argument);
        }
    }
}

/// Keeps the smaller of what is there and the argument, which is zero when it is not a number.
pub(super) fn restrict(slot: &mut Option<u32>, argument: Argument<'_>) {
    let seconds = argument.seconds().unwrap_or(0);
    *slot = Some(slot.map_or(seconds, |earlier| earlier.min(seconds)));
}

fn is_field_list(list: &[u8]) -> bool {
    let mut names = members(list, b',').peekable();
    names.peek().is_some() && names.all(|name| HeaderName::from_bytes(name).is_ok())
}

/// The fields that `no-cache="…"` and `private="…"` keep out of a shared cache.
pub(super) fn fields_not_to_store(response: &HeaderMap) -> Vec<HeaderName> {
    let mut fields = Vec::new();
    for_each(response, &CACHE_CONTROL, |name, argument| {
        if let Argument::Quoted(list) = argument
            && (name.eq_ignore_ascii_case(b"no-cache") || name.eq_ignore_ascii_case(b"private"))
            && is_field_list(list)
        {
            fields.extend(members(list, b',').filter_map(|name| HeaderName::from_bytes(name).ok()));
        }
    });
    fields
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, Instant};

    use super::*;

    #[test]
    fn members_are_split_outside_quotes() {
        let split = |line: &'static str| {
            let found =
                members(line.as_bytes(), b',').map(|member| String::from_utf8_lossy(member));
            found.collect::<Vec<_>>().join("|")
        };
        assert_eq!(split(" a ,, b=\"c, d\" , e"), "a|b=\"c, d\"|e");
        assert_eq!(split("a=\"b\\\", c\", d"), "a=\"b\\\", c\"|d");
        assert_eq!(split("a=\"b, c, d"), "a=\"b|c|d");
        assert_eq!(split(""), "");
    }

    #[test]
    fn a_line_of_open_quotes_is_read_in_one_pass() {
        let line = b"\\\"".repeat(1 << 18);
        let started = Instant::now();
        assert_eq!(members(&line[1..], b',').count(), 1);
        assert!(started.elapsed() < Duration::from_secs(2));
    }

    #[test]
    fn seconds_are_digits_up_to_the_cap() {
        for (text, expected) in [
            ("0", Some(0)),
            ("007", Some(7)),
            ("2147483647", Some(MAX_SECONDS - 1)),
            ("4294967297", Some(MAX_SECONDS)),
            ("18446744073709551617", Some(MAX_SECONDS)),
            ("", None),
            ("-1", None),
            ("+1", None),
            ("1 ", None),
        ] {
            assert_eq!(delta_seconds(text.as_bytes()), expected, "{text:?}");
        }
    }
}
