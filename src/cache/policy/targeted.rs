//! Cache directives for shared caches alone: `CDN-Cache-Control` (RFC 9213) and `Surrogate-Control`.
//!
//! A targeted field replaces `Cache-Control` and `Expires` as a whole, so one that is empty, does not
//! parse, or says nothing this cache understands is taken as absent. A freshness directive of the wrong
//! type makes the field absent too, unless the field also restricts: a restriction is never lost to a
//! mistake beside it.

use actix_http::header::{CDN_CACHE_CONTROL, HeaderMap, HeaderName};
use sfv::{BareItem, Dictionary, ListEntry, Parser};

use super::directives::{
    Argument, Directives, MAX_SECONDS, SURROGATE_NAME, delta_seconds, members, restrict,
};

/// `Surrogate-Control`, from the Edge Architecture note of 2001 that CDNs followed before RFC 9213.
const SURROGATE_CONTROL: HeaderName = HeaderName::from_static("surrogate-control");

pub(super) fn cdn_cache_control(response: &HeaderMap) -> Option<Directives> {
    let mut lines = response.get_all(CDN_CACHE_CONTROL);
    let mut text = lines.next()?.as_bytes().to_vec();
    for line in lines {
        text.extend_from_slice(b", ");
        text.extend_from_slice(line.as_bytes());
    }
    let dictionary: Dictionary = Parser::new(&text).parse().ok()?;
    let mut found = Directives { targeted: true, ..Directives::default() };
    let mut mistyped = false;
    for (key, entry) in &dictionary {
        let value = match entry {
            ListEntry::Item(item) => Some(&item.bare_item),
            ListEntry::InnerList(_) => None,
        };
        match key.as_str() {
            "max-age" | "s-maxage" | "stale-while-revalidate" | "stale-if-error" => match value {
                Some(BareItem::Integer(seconds)) => {
                    // A negative number is an integer, but no lifetime.
                    let seconds = i64::from(*seconds).clamp(0, i64::from(MAX_SECONDS));
                    let digits = seconds.to_string();
                    found.add(key.as_str().as_bytes(), Argument::Token(digits.as_bytes()));
                }
                _ => mistyped = true,
            },
            // "?0" says that the directive is not there.
            name if !matches!(value, Some(BareItem::Boolean(false))) => {
                found.add(name.as_bytes(), Argument::None);
            }
            _ => {}
        }
    }
    (found.speaks() && (!mistyped || found.restricts())).then_some(found)
}

pub(super) fn surrogate_control(response: &HeaderMap) -> Option<Directives> {
    let mut found = Directives { targeted: true, ..Directives::default() };
    let mut for_us = false;
    for line in response.get_all(SURROGATE_CONTROL) {
        for member in members(line.as_bytes(), b',') {
            let mut parts = members(member, b';');
            let Some(directive) = parts.next() else { continue };
            let mut targets = parts.peekable();
            let is_ours = |target: &[u8]| target.eq_ignore_ascii_case(SURROGATE_NAME.as_bytes());
            if targets.peek().is_some() && !targets.any(is_ours) {
                continue;
            }
            for_us = true;
            add_surrogate_directive(&mut found, directive);
        }
    }
    (for_us && found.speaks()).then_some(found)
}

fn add_surrogate_directive(found: &mut Directives, directive: &[u8]) {
    if directive.eq_ignore_ascii_case(b"no-store") {
        found.no_store = true;
        return;
    }
    let Some(equals) = memchr::memchr(b'=', directive) else { return };
    if !directive[..equals].eq_ignore_ascii_case(b"max-age") {
        return;
    }
    // "3600+600": ten minutes more while a fresh one is being fetched.
    let value = &directive[equals + 1..];
    let (fresh, extension) = match memchr::memchr(b'+', value) {
        Some(plus) => (&value[..plus], delta_seconds(&value[plus + 1..])),
        None => (value, None),
    };
    restrict(&mut found.max_age, Argument::Token(fresh));
    found.stale_while_revalidate = extension;
}

impl Directives {
    /// Any directive that was understood.
    fn speaks(&self) -> bool {
        *self != Self { targeted: self.targeted, ..Self::default() }
    }

    fn restricts(&self) -> bool {
        self.no_store || self.no_cache || self.private
    }
}

#[cfg(test)]
mod tests {
    use crate::cache::policy::{
        Refusal,
        tests::{at, refused, reused},
    };

    #[test]
    fn cdn_cache_control_replaces_cache_control() {
        for (cdn, other, expected) in [
            ("max-age=3600", "", true),
            ("max-age=2147483648", "", true),
            ("max-age=99999999999", "", true),
            ("foobar, max-age=3600", "", true),
            ("max-age=3600;x=y", "", true),
            ("max-age=3600", "max-age=1", true),
            ("max-age=1", "max-age=3600", false),
            ("max-age=0", "max-age=3600", false),
            ("max-age=-5", "max-age=3600", false),
            ("max-age=10000", "no-store", true),
            ("max-age=10000", "private", true),
            ("private", "max-age=10000", false),
            ("no-cache", "max-age=10000", false),
            ("no-store", "max-age=10000", false),
            ("no-store=?0, max-age=5", "max-age=1", true),
            ("max-age=\"60\", no-store", "max-age=10000", false),
            // Not a dictionary, or not with these types: as if it were not there.
            ("max-age=10000, &&&&&", "no-store", false),
            ("max-age=\"10000\"", "no-store", false),
            ("max-age=1.5", "max-age=10000", true),
            ("MaX-aGe=3600", "max-age=1", false),
            ("max-age =100", "max-age=1", false),
            ("max-age= 100", "max-age=1", false),
            ("", "max-age=10000", true),
            ("foo", "max-age=10000", true),
        ] {
            let fields = [("cdn-cache-control", cdn), ("cache-control", other)];
            assert_eq!(reused(&fields), expected, "{cdn} over {other}");
        }
    }

    #[test]
    fn cdn_cache_control_may_take_several_lines() {
        let lines = [("cdn-cache-control", "max-age=3600"), ("cdn-cache-control", "no-store")];
        assert_eq!(refused(&lines), Refusal::NoStore);
    }

    #[test]
    fn age_counts_and_expires_does_not() {
        let (past, future) = (at(-1000), at(1000));
        assert!(reused(&[("cdn-cache-control", "max-age=60"), ("expires", &past)]));
        assert!(!reused(&[("cdn-cache-control", "max-age=0"), ("expires", &future)]));
        assert!(!reused(&[("cdn-cache-control", "max-age=60"), ("age", "7200")]));
    }

    #[test]
    fn surrogate_control_counts_where_it_is_meant_for_this_cache() {
        for (surrogate, other, expected) in [
            ("max-age=3600", "", true),
            ("MaX-aGe=3600", "", true),
            ("foobar, max-age=3600", "", true),
            ("max-age=3600;portway", "no-store", true),
            ("max-age=3600;not-for-you", "", false),
            ("no-store;not-for-you", "max-age=3600", true),
            ("max-age=1", "max-age=3600", false),
            ("max-age=0", "max-age=3600", false),
            ("max-age= 100", "max-age=1", false),
            ("max-age =100", "max-age=1", false),
            ("no-store", "max-age=3600", false),
            ("no-store-remote", "max-age=3600", true),
            ("content=\"ESI/1.0, max-age=9\"", "max-age=1", false),
        ] {
            let fields = [("surrogate-control", surrogate), ("cache-control", other)];
            assert_eq!(reused(&fields), expected, "{surrogate} over {other}");
        }
        let both = [("surrogate-control", "max-age=60"), ("cdn-cache-control", "no-store")];
        assert_eq!(refused(&both), Refusal::NoStore);
    }
}
