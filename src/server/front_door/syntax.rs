//! Character classes and small grammars of RFC 9110, 9112 and 3986.

use std::net::Ipv6Addr;

const TOKEN: u8 = 1;
const PATH: u8 = 2;
const QUERY: u8 = 4;
const NAME: u8 = 8;
const UNDERSCORE: u8 = 16;

/// What each byte may be part of: one look-up decides.
static CLASS: [u8; 256] = classes();

const fn classes() -> [u8; 256] {
    let mut table = [0; 256];
    let mut byte = 0;
    while byte < 256 {
        let alphanumeric = (byte as u8).is_ascii_alphanumeric();
        let class = &mut table[byte];
        if alphanumeric {
            *class = TOKEN | PATH | QUERY | NAME;
        }
        byte += 1;
    }
    table = mark(table, b"!#$%&'*+-.^_`|~", TOKEN);
    table = mark(table, b"-._~%!$&'()*+,;=:@/", PATH | QUERY);
    // Not in RFC 3986, but every browser sends them as they are in a query (WHATWG URL), and they
    // mean nothing to whoever looks for the end of a request.
    table = mark(table, b"?[]{}|^`", QUERY);
    // Host names as they occur; RFC 3986 would also allow sub-delims and percent-encoding.
    table = mark(table, b"-._", NAME);
    mark(table, b"_", UNDERSCORE)
}

const fn mark(mut table: [u8; 256], bytes: &[u8], class: u8) -> [u8; 256] {
    let mut at = 0;
    while at < bytes.len() {
        table[bytes[at] as usize] |= class;
        at += 1;
    }
    table
}

pub(super) fn is_token(byte: u8) -> bool {
    CLASS[byte as usize] & TOKEN != 0
}

pub(super) fn is_path(byte: u8) -> bool {
    CLASS[byte as usize] & PATH != 0
}

pub(super) fn is_query(byte: u8) -> bool {
    CLASS[byte as usize] & QUERY != 0
}

/// The length of the token `bytes` begins with, and whether there is an underscore in it.
#[inline]
pub(super) fn token(bytes: &[u8]) -> (usize, bool) {
    let mut seen = 0;
    let end = bytes.iter().position(|&byte| {
        let class = CLASS[byte as usize];
        seen |= class;
        class & TOKEN == 0
    });
    (end.unwrap_or(bytes.len()), seen & UNDERSCORE != 0)
}

/// Whether `byte` may stand in a field value: anything but control characters.
pub(super) fn is_value(byte: u8) -> bool {
    byte == b'\t' || (byte >= b' ' && byte != 0x7f)
}

/// The first byte at or after `from` that may not stand in a field value.
///
/// Eight bytes at a time: values are most of a head, and a head is read for every request.
#[inline]
pub(super) fn find_control(bytes: &[u8], mut from: usize) -> Option<usize> {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const HIGH: u64 = ONES << 7;
    while let Some(chunk) = bytes[from..].first_chunk::<8>() {
        let word = u64::from_le_bytes(*chunk);
        let delete = word ^ (ONES * 0x7f);
        // A high bit for each byte below 0x20 or equal to 0x7f; a borrow can only set wrong bits
        // above a right one, and only the lowest is used.
        let found = ((word.wrapping_sub(ONES * 0x20) & !word)
            | (delete.wrapping_sub(ONES) & !delete))
            & HIGH;
        if found == 0 {
            from += 8;
            continue;
        }
        from += found.trailing_zeros() as usize / 8;
        if bytes[from] != b'\t' {
            return Some(from);
        }
        from += 1;
    }
    bytes[from..].iter().position(|&byte| !is_value(byte)).map(|at| from + at)
}

/// Without the optional white space around a field value.
pub(super) fn trim_ows(mut value: &[u8]) -> &[u8] {
    while let [b' ' | b'\t', rest @ ..] | [rest @ .., b' ' | b'\t'] = value {
        value = rest;
    }
    value
}

/// A number in the one spelling everybody reads alike: digits, no sign, no leading zero.
pub(super) fn canonical_decimal(text: &[u8]) -> Option<u64> {
    match text {
        b"0" => Some(0),
        // Up to 19 digits; more do not fit 2^63 and would overflow here.
        [b'1'..=b'9', ..] if text.len() <= 19 => text
            .iter()
            .try_fold(0_u64, |number, &digit| {
                digit.is_ascii_digit().then(|| number * 10 + u64::from(digit - b'0'))
            })
            .filter(|&number| number <= 1 << 63),
        _ => None,
    }
}

/// `uri-host [ ":" port ]` with a name, an IPv4 or a bracketed IPv6 address.
pub(super) fn authority_is_valid(authority: &[u8]) -> bool {
    let (host, port) = split_port(authority);
    if let Some(port) = port {
        let number = port.iter().try_fold(0_u32, |number, &digit| {
            digit.is_ascii_digit().then(|| number.saturating_mul(10) + u32::from(digit - b'0'))
        });
        if port.is_empty() || port.len() > 5 || number.is_none_or(|number| number > 65_535) {
            return false;
        }
    }
    if let [b'[', address @ .., b']'] = host {
        return str::from_utf8(address).is_ok_and(|address| address.parse::<Ipv6Addr>().is_ok());
    }
    // An empty label could be read as a name of its own, or be cut off, depending on the reader.
    let mut last = b'.';
    for &byte in host {
        if CLASS[byte as usize] & NAME == 0 || (byte == b'.' && last == b'.') {
            return false;
        }
        last = byte;
    }
    !host.is_empty() && host.len() <= 255
}

/// Whether both name the same host and port; a port that is the scheme's default may be left out.
pub(super) fn authorities_agree(one: &[u8], other: &[u8], secure: bool) -> bool {
    let default: &[u8] = if secure { b"443" } else { b"80" };
    let (one, other) = (split_port(one), split_port(other));
    one.0.eq_ignore_ascii_case(other.0) && one.1.unwrap_or(default) == other.1.unwrap_or(default)
}

fn split_port(authority: &[u8]) -> (&[u8], Option<&[u8]>) {
    match authority.iter().rposition(|&byte| byte == b':') {
        // The colons of an IPv6 address are inside its brackets.
        Some(at) if !authority[at..].contains(&b']') => {
            (&authority[..at], Some(&authority[at + 1..]))
        }
        _ => (authority, None),
    }
}

/// Whether a header name becomes one that this gateway or an upstream trusts when the underscores
/// are read as hyphens, as CGI and its descendants do.
pub(super) fn aliases_a_guarded_name(name: &[u8]) -> bool {
    const GUARDED: [&[u8]; 12] = [
        b"content-length",
        b"content-type",
        b"transfer-encoding",
        b"keep-alive",
        b"proxy-connection",
        b"proxy-authorization",
        b"x-real-ip",
        b"x-forwarded-for",
        b"x-forwarded-host",
        b"x-forwarded-port",
        b"x-forwarded-proto",
        b"x-request-id",
    ];
    GUARDED.iter().any(|guarded| {
        guarded.len() == name.len()
            && guarded.iter().zip(name).all(|(&expected, &byte)| match byte {
                b'_' => expected == b'-',
                _ => byte.eq_ignore_ascii_case(&expected),
            })
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn eight_bytes_at_a_time_find_what_one_at_a_time_finds(
            bytes in proptest::collection::vec(prop_oneof![9 => 0x20_u8..=0xff, 1 => any::<u8>()], 0..80),
            from in 0_usize..80,
        ) {
            let from = from.min(bytes.len());
            let expected = (from..bytes.len()).find(|&at| !is_value(bytes[at]));
            prop_assert_eq!(find_control(&bytes, from), expected);
        }

        #[test]
        fn a_canonical_decimal_is_written_back_as_it_was(text in "[0-9+-]{0,22}") {
            if let Some(number) = canonical_decimal(text.as_bytes()) {
                prop_assert_eq!(number.to_string(), text);
            }
        }
    }

    #[test]
    fn hosts_are_names_or_addresses() {
        for host in ["a", "a.example.", "x_y-z.9", "127.0.0.1:1", "[::1]", "[2001:db8::1]:65535"] {
            assert!(authority_is_valid(host.as_bytes()), "{host}");
        }
        for host in [
            "",
            ":80",
            "a:",
            "a:b",
            ".",
            "a..b",
            "[::1",
            "::1",
            "[]",
            "[::1%eth0]",
            "a:080000",
            "[::1]x",
        ] {
            assert!(!authority_is_valid(host.as_bytes()), "{host}");
        }
    }
}
