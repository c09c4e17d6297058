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
