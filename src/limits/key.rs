//! Whose requests count together, as a key that tells nothing.
//!
//! A key is a digest of what it stands for, each part with its length, so that no two can be mistaken
//! for each other, and neither memory nor Redis holds an address or a caller's name.

use std::{fmt, net::IpAddr};

use aws_lc_rs::digest;

use crate::routes::LimitBy;

/// Who sent a request, as far as limits care.
#[derive(Debug, Clone, Copy)]
pub struct Identity<'a> {
    /// Who the request is authenticated as; `None` for an anonymous one.
    pub caller: Option<&'a str>,
    pub tenant: Option<&'a str>,
    /// The client's address, after trusted proxies.
    pub ip: IpAddr,
}

/// 128 bits of a SHA-256 digest.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key([u8; 16]);

impl Key {
    /// The key of all requests that count together in one limit of a route.
    pub fn of(route: &str, by: LimitBy, seconds: u64, identity: &Identity<'_>) -> Self {
        let mut text = begin(route);
        text.push(b'w');
        text.extend(seconds.to_le_bytes());
        who(by, identity, &mut text);
        Self::digest(&text)
    }

    /// What the keys of several limits of a route have in common. With one `by` for all of them that
    /// is whose they are; else only the route.
    pub fn common(route: &str, by: Option<LimitBy>, identity: &Identity<'_>) -> Self {
        let mut text = begin(route);
        text.push(b'c');
        if let Some(by) = by {
            who(by, identity, &mut text);
        }
        Self::digest(&text)
    }

    fn digest(text: &[u8]) -> Self {
        let digest = digest::digest(&digest::SHA256, text);
        let mut key = [0; 16];
        key.iter_mut().zip(digest.as_ref()).for_each(|(byte, of)| *byte = *of);
        Self(key)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

fn begin(route: &str) -> Vec<u8> {
    let mut text = Vec::with_capacity(128);
    put(b'r', route.as_bytes(), &mut text);
    text
}

fn put(kind: u8, value: &[u8], text: &mut Vec<u8>) {
    text.push(kind);
    text.extend((value.len() as u64).to_le_bytes());
    text.extend(value);
}

/// A request without a tenant is limited by its caller, and one without a caller by its address:
/// nobody escapes a limit by not saying who they are.
fn who(by: LimitBy, identity: &Identity<'_>, text: &mut Vec<u8>) {
    match (by, identity.tenant, identity.caller) {
        (LimitBy::Route, ..) => text.push(b'*'),
        (LimitBy::Tenant, Some(tenant), _) => put(b't', tenant.as_bytes(), text),
        (LimitBy::Tenant | LimitBy::Caller, _, Some(caller)) => put(b'c', caller.as_bytes(), text),
        (LimitBy::Tenant | LimitBy::Caller | LimitBy::Ip, ..) => match identity.ip {
            IpAddr::V4(ip) => put(b'4', &ip.octets(), text),
            // One subscriber has a /64 at least, and could use another address for each request.
            IpAddr::V6(ip) => put(b'6', &ip.octets()[..8], text),
        },
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn identity<'a>(caller: Option<&'a str>, tenant: Option<&'a str>, ip: &str) -> Identity<'a> {
        Identity { caller, tenant, ip: ip.parse().expect("an address") }
    }

    #[test]
    fn what_is_not_limited_together_has_another_key() {
        use LimitBy::{Caller, Ip, Route, Tenant};
        let (a, b) = (identity(None, None, "192.0.2.1"), identity(None, None, "192.0.2.2"));
        let ann = identity(Some("ann"), Some("acme"), "192.0.2.1");
        let keys = [
            Key::of("r", Ip, 60, &a),
            Key::of("r", Ip, 60, &b),
            Key::of("r", Ip, 61, &a),
            Key::of("s", Ip, 60, &a),
            Key::of("r", Route, 60, &a),
            Key::of("r", Caller, 60, &ann),
            Key::of("r", Tenant, 60, &ann),
            Key::of("r", Tenant, 60, &identity(None, Some("ann"), "192.0.2.1")),
            Key::of("r", Ip, 60, &identity(None, None, "2001:db8:0:1::1")),
            Key::of("r", Ip, 60, &identity(None, None, "2001:db8:0:2::1")),
            Key::common("r", Some(Ip), &a),
            Key::common("r", None, &a),
        ];
        assert_eq!(keys.iter().collect::<HashSet<_>>().len(), keys.len());
        assert_eq!(keys[0].to_string().len(), 32);
    }

    #[test]
    fn addresses_of_one_subscriber_have_one_key() {
        let key = |ip| Key::of("r", LimitBy::Ip, 60, &identity(None, None, ip));
        assert_eq!(key("2001:db8:0:1::1"), key("2001:db8:0:1:ffff::9"));
    }

    #[test]
    fn who_does_not_say_who_it_is_is_limited_by_its_address() {
        let ip = "192.0.2.1";
        let key = |by, caller, tenant| Key::of("r", by, 60, &identity(caller, tenant, ip));
        let address = key(LimitBy::Ip, None, None);
        assert_eq!(key(LimitBy::Caller, None, None), address);
        assert_eq!(key(LimitBy::Tenant, None, None), address);
        let caller = key(LimitBy::Caller, Some("ann"), None);
        assert_eq!(key(LimitBy::Tenant, Some("ann"), None), caller);
        assert_eq!(key(LimitBy::Route, Some("ann"), None), key(LimitBy::Route, None, None));
    }
}
