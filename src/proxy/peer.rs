//! Who sent a request, seen past the reverse proxies the operator trusts.
//!
//! Any client can write `X-Forwarded-For`, so an entry counts only if the hop that wrote it is
//! trusted. The list is therefore walked from the right, where the nearest hop added its entry, and
//! the walk ends at the first address that is not a trusted proxy, or at anything unreadable.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};

use actix_http::{RequestHead, header};
use ipnet::IpNet;

/// The client of a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// The client, after trusted proxies.
    pub ip: IpAddr,
    /// The other end of the socket.
    pub socket_ip: IpAddr,
    /// Whether the socket's other end is a trusted proxy, whose forwarding headers are believed.
    pub trusted: bool,
    /// Whether the client used TLS, on this socket or on that of a trusted proxy.
    pub https: bool,
    /// The host the client asked for, with its port if it named one; empty if it named none.
    pub host: String,
}

impl Peer {
    /// Works out who sent `head` over `socket`.
    pub fn resolve(head: &RequestHead, socket: SocketAddr, tls: bool, trusted: &[IpNet]) -> Self {
        let socket_ip = socket.ip().to_canonical();
        let mut peer = Self {
            ip: client_ip(head, socket.ip(), trusted),
            socket_ip,
            trusted: is_trusted(&socket_ip, trusted),
            https: tls,
            host: own_host(head),
        };
        if !peer.trusted {
            return peer;
        }

        let nearest = if has_x_forwarded_for(head) {
            None
        } else {
            lines(head, "forwarded").next().and_then(|line| elements(line).pop())
        };
        if let Some(proto) = lines(head, "x-forwarded-proto")
            .next()
            .and_then(|line| line.rsplit(',').next())
            .map(str::trim)
            .or_else(|| nearest.and_then(|element| parameter(element, "proto")))
        {
            peer.https = proto.eq_ignore_ascii_case("https");
        }
        if let Some(host) = lines(head, "x-forwarded-host")
            .next()
            .and_then(|line| line.rsplit(',').next())
            .map(str::trim)
            .or_else(|| nearest.and_then(|element| parameter(element, "host")))
            .filter(|host| is_host(host))
        {
            host.clone_into(&mut peer.host);
        }
        peer
    }
}

/// The client's address: that of the socket, or the one that trusted proxies vouch for.
pub fn client_ip(head: &RequestHead, socket: IpAddr, trusted: &[IpNet]) -> IpAddr {
    let socket = socket.to_canonical();
    let is_trusted = |ip: &IpAddr| is_trusted(ip, trusted);
    if !is_trusted(&socket) {
        return socket;
    }
    if has_x_forwarded_for(head) {
        let hops = lines(head, "x-forwarded-for").flat_map(|line| line.rsplit(','));
        walk(hops.map(parse_node), socket, is_trusted)
    } else {
        let hops = lines(head, "forwarded").flat_map(|line| elements(line).into_iter().rev());
        let nodes = hops.map(|element| parameter(element, "for").and_then(parse_node));
        walk(nodes, socket, is_trusted)
    }
}

fn is_trusted(ip: &IpAddr, trusted: &[IpNet]) -> bool {
    trusted.iter().any(|net| net.contains(ip))
}

/// Most proxies write `X-Forwarded-For` and pass a client's own `Forwarded` through untouched, so the
/// latter is looked at only where the former is absent.
fn has_x_forwarded_for(head: &RequestHead) -> bool {
    head.headers().contains_key("x-forwarded-for")
}

fn own_host(head: &RequestHead) -> String {
    let host = match head.uri.authority() {
        Some(authority) => Some(authority.as_str()),
        None => head.headers().get(header::HOST).and_then(|value| value.to_str().ok()),
    };
    host.filter(|host| is_host(host)).unwrap_or_default().to_owned()
}

/// Whether `text` can stand in a header, a log line and a quoted string without care.
fn is_host(text: &str) -> bool {
    !text.is_empty()
        && text.len() <= 300
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._~%:[]!$&'()*+;=".contains(&b))
}

/// The readable lines of a header, the last (nearest) first.
fn lines<'h>(head: &'h RequestHead, name: &'static str) -> impl Iterator<Item = &'h str> {
    // An unreadable line reads as an empty one, at which a walk stops.
    head.headers().get_all(name).rev().map(|value| value.to_str().unwrap_or_default())
}

/// Follows `nodes` from the nearest hop outwards while each is a trusted proxy.
fn walk(
    nodes: impl Iterator<Item = Option<IpAddr>>,
    nearest: IpAddr,
    is_trusted: impl Fn(&IpAddr) -> bool,
) -> IpAddr {
    let mut client = nearest;
    for node in nodes {
        let Some(ip) = node else { break };
        client = ip;
        if !is_trusted(&ip) {
            break;
        }
    }
    client
}

/// Reads `192.0.2.1`, `192.0.2.1:80`, `2001:db8::1`, `[2001:db8::1]` or `[2001:db8::1]:80`.
fn parse_node(text: &str) -> Option<IpAddr> {
    let text = text.trim();
    let ip = if let Some(rest) = text.strip_prefix('[') {
        let (inner, port) = rest.split_once(']')?;
        let port_is_fine = port.is_empty() || is_port(port.strip_prefix(':')?);
        port_is_fine.then(|| inner.parse::<Ipv6Addr>().ok()).flatten().map(IpAddr::V6)
    } else if let Ok(ip) = text.parse::<IpAddr>() {
        Some(ip)
    } else {
        let (ip, port) = text.split_once(':')?;
        is_port(port).then(|| ip.parse().ok()).flatten().map(IpAddr::V4)
    };
    ip.map(|ip| ip.to_canonical())
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}

/// Splits a `Forwarded` line at the commas that are outside of quotes.
fn elements(line: &str) -> Vec<&str> {
    split_unquoted(line, b',')
}

fn split_unquoted(text: &str, separator: u8) -> Vec<&str> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            _ if byte == separator && !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    parts
}

/// The value of a parameter of one `Forwarded` element, without its quotes.
fn parameter<'t>(element: &'t str, name: &str) -> Option<&'t str> {
    split_unquoted(element, b';').into_iter().find_map(|pair| {
        let (key, value) = pair.split_once('=')?;
        key.trim().eq_ignore_ascii_case(name).then(|| value.trim().trim_matches('"'))
    })
}

#[cfg(test)]
mod tests {
    use actix_http::header::{HeaderName, HeaderValue};
    use proptest::prelude::*;

    use super::*;

    const PROXY: &str = "10.0.0.1:4000";

    fn head(headers: &[(&str, &str)]) -> RequestHead {
        let mut head = RequestHead::default();
        for (name, value) in headers {
            head.headers_mut().append(
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            );
        }
        head
    }

    fn resolve(socket: &str, headers: &[(&str, &str)]) -> Peer {
        let trusted = ["10.0.0.0/8".parse().unwrap(), "fd00::/8".parse().unwrap()];
        Peer::resolve(&head(headers), socket.parse().unwrap(), false, &trusted)
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn an_untrusted_peer_cannot_say_who_it_is() {
        let peer = resolve(
            "192.0.2.9:1",
            &[
                ("host", "a.example"),
                ("x-forwarded-for", "1.2.3.4"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "evil.example"),
                ("forwarded", "for=1.2.3.4;proto=https"),
            ],
        );
        assert_eq!(peer.ip, ip("192.0.2.9"));
        assert!(!peer.https && !peer.trusted);
        assert_eq!(peer.host, "a.example");
    }

    #[test]
    fn the_walk_ends_at_the_first_untrusted_address() {
        let chain = [("x-forwarded-for", "1.1.1.1, 203.0.113.7"), ("x-forwarded-for", "10.2.2.2")];
        assert_eq!(resolve(PROXY, &chain).ip, ip("203.0.113.7"));
    }

    #[test]
    fn garbage_ends_the_walk() {
        let at = |value| resolve(PROXY, &[("x-forwarded-for", value)]).ip;
        assert_eq!(at("203.0.113.7, nonsense, 10.2.2.2"), ip("10.2.2.2"));
        assert_eq!(at("203.0.113.7, "), ip("10.0.0.1"));
        assert_eq!(at("[::1"), ip("10.0.0.1"));
        assert_eq!(at("1.2.3.4:99999"), ip("10.0.0.1"));
    }

    #[test]
    fn ports_brackets_and_mapped_addresses_are_understood() {
        let at = |value| resolve("[::ffff:10.0.0.1]:9", &[("x-forwarded-for", value)]).ip;
        assert_eq!(at("203.0.113.7:8080"), ip("203.0.113.7"));
        assert_eq!(at("[2001:db8::1]:443"), ip("2001:db8::1"));
        assert_eq!(at("2001:db8::1"), ip("2001:db8::1"));
        assert_eq!(at("::ffff:203.0.113.7"), ip("203.0.113.7"));
    }

    #[test]
    fn forwarded_is_read_where_there_is_no_x_forwarded_for() {
        let value =
            r#"for="[2001:db8::1]:47";proto=https;host="a.example:8443", for=10.3.3.3;proto=http"#;
        let peer = resolve(PROXY, &[("forwarded", value)]);
        assert_eq!(peer.ip, ip("2001:db8::1"));
        assert!(!peer.https, "the nearest hop's word counts");
        let peer = resolve(PROXY, &[("forwarded", r#"for=_x;proto=https;host="a.example""#)]);
        assert_eq!(peer.ip, ip("10.0.0.1"));
        assert!(peer.https);
        assert_eq!(peer.host, "a.example");
    }

    #[test]
    fn a_trusted_proxy_names_scheme_and_host() {
        let peer = resolve(
            PROXY,
            &[
                ("host", "inner"),
                ("x-forwarded-for", "203.0.113.7"),
                ("x-forwarded-proto", "https"),
                ("x-forwarded-host", "shop.example"),
            ],
        );
        assert!(peer.https);
        assert_eq!(peer.host, "shop.example");
    }

    proptest! {
        #[test]
        fn no_header_text_panics_or_fools_an_untrusted_socket(
            xff in "[ -~]{0,60}", forwarded in "[ -~]{0,60}"
        ) {
            let headers = [("x-forwarded-for", xff.as_str()), ("forwarded", forwarded.as_str())];
            prop_assert_eq!(resolve("192.0.2.9:1", &headers).ip, ip("192.0.2.9"));
            let _ = resolve(PROXY, &headers);
            let _ = resolve(PROXY, &headers[1..]);
        }

        #[test]
        fn what_a_client_prepends_never_matters(prefix in "[ -~]{0,40}") {
            let value = format!("{prefix}, 203.0.113.7, 10.1.1.1");
            prop_assert_eq!(resolve(PROXY, &[("x-forwarded-for", &value)]).ip, ip("203.0.113.7"));
        }
    }
}
