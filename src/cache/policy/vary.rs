//! Which requests a stored response answers (RFC 9111 4.1).
//!
//! Two requests share a variant when the canonical form of every field that `Vary` names is the same.
//! The canonical form only ever drops what carries no meaning: the split of a list over lines, white
//! space around its commas, letter case where the field has none, the order of codings in
//! `Accept-Encoding`. It keeps the order of equally wanted languages and media types: on paper it means
//! nothing, but many origins let the first one win, and whoever asks for `de, en` should not be given
//! what was fetched for `en, de`.

use std::cmp::Reverse;

use actix_http::header::{
    ACCEPT_ENCODING, ACCEPT_LANGUAGE, AUTHORIZATION, CONTENT_LANGUAGE, COOKIE, HeaderMap,
    HeaderName, HeaderValue, ORIGIN, REFERER, USER_AGENT, VARY,
};

use super::directives::{members, quoted_length};

/// What a response's selection depends on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Vary {
    /// On more than the request's fields, or on fields that cannot be named: never reused.
    Star,
    /// On these, sorted, each once.
    Names(Vec<HeaderName>),
}

/// Reads `Vary`; `extra` are the fields the route adds.
pub fn vary(response: &HeaderMap, extra: &[HeaderName]) -> Vary {
    let mut names = extra.to_vec();
    for line in response.get_all(VARY) {
        for member in members(line.as_bytes(), b',') {
            match HeaderName::from_bytes(member) {
                Ok(name) if name.as_str() != "*" => names.push(name),
                _ => return Vary::Star,
            }
        }
    }
    names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
    names.dedup();
    Vary::Names(names)
}

/// Tags that keep the forms apart: no value of one form equals a value of another.
const ABSENT: u8 = 0;
const RAW: u8 = 1;
const LIST: u8 = 2;

/// Appends the canonical value of a selecting field. The result is self-delimiting, so that values of
/// several fields can follow one another.
pub fn selecting_value(name: &HeaderName, request: &HeaderMap, out: &mut Vec<u8>) {
    let lines = request.get_all(name);
    if lines.len() == 0 {
        out.push(ABSENT);
        return;
    }
    let start = out.len();
    out.push(LIST);
    let length_at = out.len();
    out.extend_from_slice(&[0; 4]);
    let listed = if *name == ACCEPT_LANGUAGE {
        weighted(lines.clone(), true, out)
    } else if *name == ACCEPT_ENCODING {
        weighted(lines.clone(), false, out)
    } else {
        !is_singleton(name) && list(lines.clone(), out)
    };
    if !listed {
        out.truncate(start);
        out.push(RAW);
        out.extend_from_slice(&length(lines.len()));
        for line in lines {
            out.extend_from_slice(&length(line.len()));
            out.extend_from_slice(line.as_bytes());
        }
        return;
    }
    let written = length(out.len() - length_at - 4);
    out[length_at..length_at + 4].copy_from_slice(&written);
}

fn length(length: usize) -> [u8; 4] {
    u32::try_from(length).unwrap_or(u32::MAX).to_be_bytes()
}

/// Fields whose value is not a list, where a comma and the space beside it are part of the value.
fn is_singleton(name: &HeaderName) -> bool {
    [AUTHORIZATION, COOKIE, ORIGIN, REFERER, USER_AGENT].contains(name)
}

/// A list of anything: members without the white space around them, joined by commas.
fn list<'v>(lines: impl Iterator<Item = &'v HeaderValue>, out: &mut Vec<u8>) -> bool {
    let mut first = true;
    for line in lines {
        if has_open_quote(line.as_bytes()) {
            return false;
        }
        for member in members(line.as_bytes(), b',') {
            if !first {
                out.push(b',');
            }
            first = false;
            out.extend_from_slice(member);
        }
    }
    true
}

fn has_open_quote(line: &[u8]) -> bool {
    let mut rest = line;
    while let Some(at) = memchr::memchr(b'"', rest) {
        match quoted_length(&rest[at..]) {
            Some(length) => rest = rest.get(at + length..).unwrap_or_default(),
            None => return true,
        }
    }
    false
}

/// A list of tokens with weights: lower case, weights in one spelling, most wanted first. Members of
/// equal weight keep their order, or are sorted where it has no meaning. `false` when it is anything else.
fn weighted<'v>(
    lines: impl Iterator<Item = &'v HeaderValue>,
    ordered: bool,
    out: &mut Vec<u8>,
) -> bool {
    let mut slots = Weights::default();
    let Some(wanted) = slots.read(lines) else { return false };
    // So short a slice is sorted in place, without allocating.
    if ordered {
        wanted.sort_by_key(|member| Reverse(member.weight));
    } else {
        let lower = |token: &'v [u8]| token.iter().map(u8::to_ascii_lowercase);
        wanted.sort_by(|a, b| {
            b.weight.cmp(&a.weight).then_with(|| lower(a.token).cmp(lower(b.token)))
        });
    }
    for (at, member) in wanted.iter().enumerate() {
        if at > 0 {
            out.push(b',');
        }
        out.extend(member.token.iter().map(u8::to_ascii_lowercase));
        if member.weight != FULL {
            out.push(b';');
            out.extend([100, 10, 1].map(|place| b'0' + (member.weight / place % 10) as u8));
        }
    }
    true
}

/// A weight of 1, in thousandths.
const FULL: u16 = 1000;

/// A member of a weighted list.
#[derive(Debug, Clone, Copy, Default)]
struct Weighted<'v> {
    token: &'v [u8],
    /// In thousandths.
    weight: u16,
}

/// Room for the members of a weighted list. Selecting a variant is on the way of every hit, so it is
/// on the stack; a longer list than any browser sends is compared as it came.
#[derive(Debug, Default)]
struct Weights<'v>([Weighted<'v>; 16]);

impl<'v> Weights<'v> {
    fn read(
        &mut self,
        lines: impl Iterator<Item = &'v HeaderValue>,
    ) -> Option<&mut [Weighted<'v>]> {
        let mut count = 0;
        for line in lines {
            for member in members(line.as_bytes(), b',') {
                let (token, weight) = match memchr::memchr(b';', member) {
                    None => (member, FULL),
                    Some(at) => {
                        (member[..at].trim_ascii(), thousandths(member[at + 1..].trim_ascii())?)
                    }
                };
                let is_token = |byte: &u8| byte.is_ascii_alphanumeric() || b"-*_.+".contains(byte);
                if token.is_empty() || !token.iter().all(is_token) {
                    return None;
                }
                *self.0.get_mut(count)? = Weighted { token, weight };
                count += 1;
            }
        }
        Some(&mut self.0[..count])
    }
}

/// `q=0.5` in thousandths.
fn thousandths(parameter: &[u8]) -> Option<u16> {
    let value = match parameter {
        [b'q' | b'Q', b'=', value @ ..] => value,
        _ => return None,
    };
    let (whole, fraction) = match value {
        [b'0', b'.', fraction @ ..] => (0, fraction),
        [b'1', b'.', fraction @ ..] => (1000, fraction),
        [b'0'] => (0, &[][..]),
        [b'1'] => (1000, &[][..]),
        _ => return None,
    };
    if fraction.len() > 3 || !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let fraction = (0..3)
        .fold(0, |sum, at| sum * 10 + fraction.get(at).map_or(0, |digit| u16::from(digit - b'0')));
    (whole + fraction <= 1000).then_some(whole + fraction)
}

/// Whether a stored variant is in the language this request wants above all others. Such a variant
/// answers the request although another `Accept-Language` selected it, provided that `Vary` names
/// nothing else that differs.
pub fn is_in_wanted_language(request: &HeaderMap, stored: &HeaderMap) -> bool {
    let mut languages = stored.get_all(CONTENT_LANGUAGE);
    let (Some(language), None) = (languages.next(), languages.next()) else { return false };
    let mut slots = Weights::default();
    let Some(wanted) = slots.read(request.get_all(ACCEPT_LANGUAGE)) else { return false };
    let best = wanted.iter().map(|member| member.weight).max().unwrap_or(0);
    let mut top = wanted.iter().filter(|member| member.weight == best && best > 0);
    let (Some(first), None) = (top.next(), top.next()) else { return false };
    first.token.eq_ignore_ascii_case(language.as_bytes().trim_ascii())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::cache::policy::tests::headers;

    fn value(name: &str, lines: &[&str]) -> Vec<u8> {
        let fields: Vec<_> = lines.iter().map(|line| (name, *line)).collect();
        let mut out = Vec::new();
        selecting_value(
            &HeaderName::from_bytes(name.as_bytes()).unwrap(),
            &headers(&fields),
            &mut out,
        );
        out
    }

    fn same(name: &str, one: &[&str], other: &[&str]) -> bool {
        value(name, one) == value(name, other)
    }

    #[test]
    fn a_star_anywhere_matches_nothing() {
        for lines in
            [&["*"][..], &["*, *"], &["*", "*"], &[", *"], &["", "*"], &["*, Foo"], &["Foo, *"]]
        {
            let fields: Vec<_> = lines.iter().map(|line| ("vary", *line)).collect();
            assert_eq!(vary(&headers(&fields), &[]), Vary::Star, "{lines:?}");
        }
        assert_eq!(vary(&headers(&[("vary", "not a name")]), &[]), Vary::Star);
    }

    #[test]
    fn names_are_a_sorted_set() {
        let response = headers(&[("vary", "Foo, bar,"), ("vary", "BAR")]);
        let Vary::Names(names) = vary(&response, &[ACCEPT_LANGUAGE]) else { panic!("a star") };
        let names: Vec<_> = names.iter().map(HeaderName::as_str).collect();
        assert_eq!(names, ["accept-language", "bar", "foo"]);
        assert_eq!(vary(&headers(&[]), &[]), Vary::Names(Vec::new()));
    }

    #[test]
    fn lists_are_equal_however_they_are_laid_out() {
        assert!(same("foo", &["1, 2"], &["1", "2"]));
        assert!(same("foo", &["1,2"], &[" 1,  2 "]));
        assert!(!same("foo", &["1, 2"], &["2, 1"]));
        assert!(!same("foo", &["1"], &["1", "1"]));
        assert!(!same("foo", &["12"], &["1", "2"]));
        assert!(!same("foo", &["A"], &["a"]));
        assert!(!same("foo", &[], &[""]));
        assert!(!same("foo", &["\"a, b\""], &["\"a,b\""]));
        assert!(!same("foo", &["\"a, b"], &["\"a,b"]));
        assert!(!same("foo", &["\"a", "b\""], &["\"a,b\""]));
        for name in ["cookie", "user-agent", "authorization"] {
            assert!(!same(name, &["a, b"], &["a,b"]), "{name}");
            assert!(!same(name, &["a", "b"], &["a,b"]), "{name}");
        }
    }

    #[test]
    fn languages_are_compared_by_what_is_wanted() {
        let same = |one: &str, other: &str| same("accept-language", &[one], &[other]);
        assert!(same("en, de", "eN, De"));
        assert!(same("en, de", " en ,   de"));
        assert!(same("de;q=0.5, en", "en;q=1.000,de; q=0.50"));
        assert!(!same("en, de", "de, en"), "many origins take the first");
        assert!(!same("en;q=0.5, de", "en, de"));
        assert!(!same("en", "en;q=0"));
        assert!(!same("en;q=2", "en;q=3"));
        assert!(!same("en;x=1", "en"));
        let many = |last| format!("{}{last}", "en, ".repeat(20));
        let (one, other) = (many("de"), many("DE"));
        assert!(same(&one, &one) && !same(&one, &other));
    }

    #[test]
    fn codings_are_a_set() {
        let same = |one, other| same("accept-encoding", &[one], &[other]);
        assert!(same("gzip, br", "BR,gzip"));
        assert!(!same("gzip, br", "gzip"));
        assert!(!same("gzip, br;q=0", "gzip, br"));
    }

    #[test]
    fn the_most_wanted_language_finds_its_variant() {
        let wanted = |asked: &str, stored: &[(&str, &str)]| {
            is_in_wanted_language(&headers(&[("accept-language", asked)]), &headers(stored))
        };
        let german = [("content-language", "de")];
        assert!(wanted("fr;q=0.5, de;q=1.0", &german));
        assert!(wanted("DE", &german));
        for asked in ["fr, de", "de, fr", "de;q=0", "fr, de;q=0.9", "", "de;x", "*"] {
            assert!(!wanted(asked, &german), "{asked}");
        }
        assert!(!wanted("de", &[("content-language", "de, en")]));
        assert!(!wanted("de", &[]));
    }

    fn any_lines() -> impl Strategy<Value = Vec<String>> {
        proptest::collection::vec("[ab,;=q01. \"\\\\*-]{0,8}", 0..4)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(5000))]

        /// Only spaces and commas may differ between values that count as equal.
        #[test]
        fn equal_values_are_equal_lists(one in any_lines(), other in any_lines()) {
            let borrow = |lines: &[String]| lines.iter().map(|line| line.trim().to_owned()).collect::<Vec<_>>();
            let (one, other) = (borrow(&one), borrow(&other));
            let refs = |lines: &[String]| value("foo", &lines.iter().map(|line| &**line).collect::<Vec<_>>());
            if refs(&one) == refs(&other) {
                let squeeze = |lines: &[String]| {
                    lines.join(",").chars().filter(|c| *c != ' ' && *c != ',').collect::<String>()
                };
                prop_assert_eq!(squeeze(&one), squeeze(&other));
                prop_assert_eq!(one.is_empty(), other.is_empty());
            }
        }

        /// A value says where it ends, so two fields in a row cannot be mistaken for two others.
        #[test]
        fn values_in_a_row_cannot_be_confused(lines in proptest::collection::vec(any_lines(), 4)) {
            let values: Vec<_> = lines.iter().map(|lines| {
                value("foo", &lines.iter().map(|line| line.trim()).collect::<Vec<_>>())
            }).collect();
            let pairs = ([&*values[0], &*values[1]].concat(), [&*values[2], &*values[3]].concat());
            prop_assert_eq!(pairs.0 == pairs.1, values[0] == values[2] && values[1] == values[3]);
        }
    }
}
