//! Which header fields cross the gateway, and which it adds.
//!
//! Hop-by-hop fields end here (RFC 9110 section 7.6.1), also those a message's `Connection` names.
//! Two rules keep that from becoming a weapon: fields are stripped *before* the gateway adds its
//! own, and a field that decides who the caller is or how the message is read cannot be nominated.

use std::fmt::Write as _;

use actix_http::{
    RequestHead, Version,
    header::{self, HeaderMap, HeaderName, HeaderValue},
};

use super::peer::Peer;
use crate::routes::HeaderRules;

const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");

/// The header section that goes upstream: end-to-end fields, the gateway's own, then `rules`.
///
/// `Host` is left out unless a rule sets it: the client then names the target's own authority, and
/// the client's host travels in `X-Forwarded-Host` and `Forwarded`. Framing fields are left out
/// too, as the client writes them anew.
pub fn for_upstream(head: &RequestHead, peer: &Peer, rules: &HeaderRules) -> HeaderMap {
    let incoming = head.headers();
    let nominated = nominations(incoming);
    let mut headers = HeaderMap::with_capacity(incoming.len_keys() + 6);
    for (name, value) in incoming {
        let text = name.as_str();
        let stays = is_hop_by_hop(text)
            || matches!(text, "host" | "content-length" | "expect" | "http2-settings")
            // CGI-like upstreams read `a_b` and `a-b` as one name.
            || text.contains('_')
            || (!peer.trusted && is_forwarding(text))
            // A cache in between keeps the answer to what the request line says.
            || (head.method.is_safe() && is_method_override(text));
        if !stays && (nominated.is_empty() || !is_nominated(&nominated, text)) {
            headers.append(name.clone(), value.clone());
        }
    }
    add_forwarding(&mut headers, peer);
    headers.append(header::VIA, via(head.version));
    apply(&mut headers, rules);
    headers
}

/// Finishes the header section of a response on its way to the client.
///
/// The hop-by-hop fields of an [`Inbound`](super::Inbound) are gone already.
pub fn for_client(headers: &mut HeaderMap, rules: &HeaderRules) {
    headers.append(header::VIA, via(Version::HTTP_11));
    apply(headers, rules);
}

/// Carries out a route's header rules.
pub fn apply(headers: &mut HeaderMap, rules: &HeaderRules) {
    for name in &rules.remove {
        headers.remove(name);
    }
    for (name, value) in &rules.set {
        headers.insert(name.clone(), value.clone());
    }
}

fn via(version: Version) -> HeaderValue {
    HeaderValue::from_static(match version {
        Version::HTTP_10 | Version::HTTP_09 => "1.0 portway",
        Version::HTTP_2 => "2.0 portway",
        _ => "1.1 portway",
    })
}

/// Fields that concern one connection only.
pub(super) fn is_hop_by_hop(name: &str) -> bool {
    matches!(
        name,
        "connection"
            | "keep-alive"
            | "proxy-connection"
            | "proxy-authenticate"
            | "proxy-authentication-info"
            | "proxy-authorization"
            | "te"
            | "trailer"
            | "transfer-encoding"
            | "upgrade"
    )
}

/// Fields by which proxies tell who the client is, or what it asked for.
fn is_method_override(name: &str) -> bool {
    matches!(name, "x-http-method-override" | "x-http-method" | "x-method-override")
}

fn is_forwarding(name: &str) -> bool {
    match name.as_bytes().first() {
        Some(b'x') => {
            name.starts_with("x-forwarded")
                || name.starts_with("x-original-")
                || matches!(
                    name,
                    "x-real-ip"
                        | "x-rewrite-url"
                        | "x-client-ip"
                        | "x-cluster-client-ip"
                        | "x-host"
                )
        }
        Some(b'f') => name.starts_with("forwarded"),
        Some(b't') => name == "true-client-ip",
        Some(b'c') => name == "cf-connecting-ip",
        _ => false,
    }
}

/// Fields that a `Connection` header cannot remove.
fn is_protected(name: &str) -> bool {
    is_forwarding(name)
        || name.starts_with("content-")
        || matches!(
            name,
            "authorization"
                | "cache-control"
                | "cookie"
                | "date"
                | "etag"
                | "expires"
                | "host"
                | "location"
                | "origin"
                | "set-cookie"
                | "traceparent"
                | "tracestate"
                | "vary"
                | "via"
                | "x-request-id"
        )
}

/// The names in `Connection` that remove a field, in lower case.
pub(super) fn nominations(headers: &HeaderMap) -> Vec<String> {
    headers.get_all(header::CONNECTION).flat_map(|value| nominated_by(value.as_bytes())).collect()
}

/// The names in one `Connection` line that remove a field, in lower case.
pub(super) fn nominated_by(line: &[u8]) -> impl Iterator<Item = String> {
    line.split(|byte| *byte == b',')
        .map(|token| token.trim_ascii())
        .filter(|token| {
            !(token.is_empty()
                || token.eq_ignore_ascii_case(b"keep-alive")
                || token.eq_ignore_ascii_case(b"close")
                || token.eq_ignore_ascii_case(b"upgrade"))
        })
        .filter_map(|token| std::str::from_utf8(token).ok())
        .map(str::to_ascii_lowercase)
        .filter(|name| !is_protected(name))
}

fn is_nominated(nominated: &[String], name: &str) -> bool {
    nominated.iter().any(|nominated| nominated == name)
}

/// Appends the socket's other end to the chain. `headers` holds a chain only if that end is trusted.
fn add_forwarding(headers: &mut HeaderMap, peer: &Peer) {
    let mut text = String::with_capacity(96);
    let mut chain = |name: &HeaderName, own: &dyn Fn(&mut String)| {
        text.clear();
        for value in headers.get_all(name).filter_map(|value| value.to_str().ok()) {
            text.push_str(value);
            text.push_str(", ");
        }
        own(&mut text);
        // The parts came out of header values or were checked by `Peer`, so this cannot fail; a
        // chain that could not be written would be left out rather than passed on unextended.
        headers.remove(name);
        if let Ok(value) = HeaderValue::from_str(&text) {
            headers.insert(name.clone(), value);
        }
    };
    chain(&X_FORWARDED_FOR, &|text| {
        let _ = write!(text, "{}", peer.socket_ip);
    });
    chain(&FORWARDED, &|text| {
        let _ = if peer.socket_ip.is_ipv6() {
            write!(text, "for=\"[{}]\"", peer.socket_ip)
        } else {
            write!(text, "for={}", peer.socket_ip)
        };
        if peer.host.bytes().all(is_token) && !peer.host.is_empty() {
            let _ = write!(text, ";host={}", peer.host);
        } else if !peer.host.is_empty() {
            // `Peer` lets no quote and no backslash into a host.
            let _ = write!(text, ";host=\"{}\"", peer.host);
        }
        text.push_str(if peer.https { ";proto=https" } else { ";proto=http" });
    });
    let proto = HeaderValue::from_static(if peer.https { "https" } else { "http" });
    headers.insert(X_FORWARDED_PROTO, proto);
    headers.remove(X_FORWARDED_HOST);
    if let Ok(host) = HeaderValue::from_str(&peer.host)
        && !peer.host.is_empty()
    {
        headers.insert(X_FORWARDED_HOST, host);
    }
}

const fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric()
        || matches!(
            byte,
            b'!' | b'#'
                | b'$'
                | b'%'
                | b'&'
                | b'\''
                | b'*'
                | b'+'
                | b'-'
                | b'.'
                | b'^'
                | b'_'
                | b'`'
                | b'|'
                | b'~'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn map(headers: &[(&str, &str)]) -> HeaderMap {
        headers
            .iter()
            .map(|(name, value)| {
                (
                    HeaderName::from_bytes(name.as_bytes()).unwrap(),
                    HeaderValue::from_str(value).unwrap(),
                )
            })
            .collect()
    }

    fn peer(trusted: bool) -> Peer {
        Peer {
            ip: [203, 0, 113, 7].into(),
            socket_ip: [10, 0, 0, 1].into(),
            trusted,
            https: false,
            host: "shop.example:8080".into(),
        }
    }

    fn sent(headers: &[(&str, &str)], trusted: bool) -> HeaderMap {
        let mut head = RequestHead::default();
        *head.headers_mut() = map(headers);
        for_upstream(&head, &peer(trusted), &HeaderRules::default())
    }

    fn all<'m>(headers: &'m HeaderMap, name: &str) -> Vec<&'m str> {
        headers.get_all(name).map(|value| value.to_str().unwrap()).collect()
    }

    #[test]
    fn hop_by_hop_fields_and_nominated_ones_end_here() {
        let headers = sent(
            &[
                ("connection", ""),
                ("connection", "close, X-Drop"),
                ("x-drop", "1"),
                ("keep-alive", "timeout=5"),
                ("te", "trailers"),
                ("trailer", "x"),
                ("transfer-encoding", "chunked"),
                ("content-length", "5"),
                ("upgrade", "h2c"),
                ("expect", "100-continue"),
                ("proxy-authorization", "Basic eA=="),
                ("proxy-connection", "close"),
                ("host", "shop.example"),
                ("content_length", "7"),
                ("accept", "*/*"),
                ("accept", "text/html"),
            ],
            false,
        );
        let mut names: Vec<_> = headers.keys().map(HeaderName::as_str).collect();
        names.sort_unstable();
        assert_eq!(
            names,
            [
                "accept",
                "forwarded",
                "via",
                "x-forwarded-for",
                "x-forwarded-host",
                "x-forwarded-proto"
            ]
        );
        assert_eq!(all(&headers, "accept"), ["*/*", "text/html"]);
    }

    #[test]
    fn connection_cannot_strip_what_the_gateway_adds_or_what_names_the_caller() {
        let nominated = "close, X-Real-IP, X-Forwarded-For, Forwarded, Via, X-Forwarded-Host, \
                         X-Forwarded-Proto, Authorization, Host, Cookie, Cache-Control, traceparent";
        let headers = sent(
            &[
                ("connection", nominated),
                ("authorization", "Bearer x"),
                ("cookie", "a=b"),
                ("cache-control", "no-store"),
                ("traceparent", "00-1-2-01"),
            ],
            false,
        );
        for name in [
            "authorization",
            "cookie",
            "cache-control",
            "traceparent",
            "via",
            "forwarded",
            "x-forwarded-for",
            "x-forwarded-host",
            "x-forwarded-proto",
        ] {
            assert!(headers.contains_key(name), "{name}");
        }
    }

    #[test]
    fn an_untrusted_peers_forwarding_fields_are_replaced() {
        let headers = sent(
            &[
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-host", "evil.example"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-port", "1"),
                ("x-forwarded-prefix", "/x"),
                ("x-real-ip", "1.2.3.4"),
                ("x-original-url", "/admin"),
                ("x-rewrite-url", "/admin"),
                ("forwarded", "for=1.2.3.4"),
            ],
            false,
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["10.0.0.1"]);
        assert_eq!(all(&headers, "x-forwarded-host"), ["shop.example:8080"]);
        assert_eq!(all(&headers, "x-forwarded-proto"), ["http"]);
        assert_eq!(
            all(&headers, "forwarded"),
            [r#"for=10.0.0.1;host="shop.example:8080";proto=http"#]
        );
        for gone in [
            "x-forwarded-port",
            "x-forwarded-prefix",
            "x-real-ip",
            "x-original-url",
            "x-rewrite-url",
        ] {
            assert!(!headers.contains_key(gone), "{gone}");
        }
    }

    #[test]
    fn a_trusted_peers_chain_is_extended() {
        let headers = sent(
            &[
                ("x-forwarded-for", "203.0.113.7"),
                ("x-forwarded-for", "10.9.9.9"),
                ("forwarded", "for=203.0.113.7"),
                ("x-forwarded-port", "443"),
                ("via", "1.1 edge"),
            ],
            true,
        );
        assert_eq!(all(&headers, "x-forwarded-for"), ["203.0.113.7, 10.9.9.9, 10.0.0.1"]);
        assert!(all(&headers, "forwarded")[0].starts_with("for=203.0.113.7, for=10.0.0.1;"));
        assert_eq!(all(&headers, "x-forwarded-port"), ["443"]);
        assert_eq!(all(&headers, "via"), ["1.1 edge", "1.1 portway"]);
    }

    #[test]
    fn ipv6_is_bracketed_and_quoted_in_forwarded() {
        let mut headers = HeaderMap::new();
        let peer = Peer { socket_ip: "2001:db8::1".parse().unwrap(), https: true, ..peer(false) };
        add_forwarding(&mut headers, &Peer { host: "a.example".into(), ..peer });
        assert_eq!(
            all(&headers, "forwarded"),
            [r#"for="[2001:db8::1]";host=a.example;proto=https"#]
        );
    }

    #[test]
    fn rules_remove_first_and_then_set() {
        let mut headers = map(&[("server", "x"), ("x-a", "1")]);
        let rules = HeaderRules {
            set: vec![(HeaderName::from_static("x-a"), HeaderValue::from_static("2"))],
            remove: vec![HeaderName::from_static("server"), HeaderName::from_static("x-a")],
        };
        for_client(&mut headers, &rules);
        assert_eq!(all(&headers, "x-a"), ["2"]);
        assert!(!headers.contains_key("server"));
        assert_eq!(all(&headers, "via"), ["1.1 portway"]);
    }

    proptest! {
        #[test]
        fn the_gateways_own_fields_always_arrive_once(connection in "[ -~]{0,80}") {
            let headers = sent(&[("connection", &connection), ("x-forwarded-for", "6.6.6.6")], false);
            prop_assert_eq!(all(&headers, "x-forwarded-for"), ["10.0.0.1"]);
            for name in ["via", "forwarded", "x-forwarded-host", "x-forwarded-proto"] {
                prop_assert_eq!(all(&headers, name).len(), 1);
            }
            prop_assert!(!headers.contains_key("connection"));
        }
    }
}
