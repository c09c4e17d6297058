//! Numbers and names, written and read.

use actix_http::header::HeaderName;

/// Names that take one byte. Their numbers are stored: append to it, and change nothing else. Up to
/// 64 fit; more would take two bytes.
pub(super) const NAMES: &[&str] = &[
    "accept-ranges",
    "access-control-allow-credentials",
    "access-control-allow-headers",
    "access-control-allow-methods",
    "access-control-allow-origin",
    "access-control-expose-headers",
    "access-control-max-age",
    "age",
    "allow",
    "alt-svc",
    "cache-control",
    "cache-tag",
    "cdn-cache-control",
    "content-disposition",
    "content-encoding",
    "content-language",
    "content-length",
    "content-location",
    "content-security-policy",
    "content-type",
    "cross-origin-opener-policy",
    "cross-origin-resource-policy",
    "date",
    "etag",
    "expires",
    "last-modified",
    "link",
    "location",
    "permissions-policy",
    "pragma",
    "referrer-policy",
    "server",
    "server-timing",
    "set-cookie",
    "strict-transport-security",
    "surrogate-control",
    "surrogate-key",
    "timing-allow-origin",
    "traceparent",
    "vary",
    "via",
    "warning",
    "x-cache",
    "x-content-type-options",
    "x-frame-options",
    "x-powered-by",
    "x-request-id",
    "x-xss-protection",
    // What responses vary on.
    "accept",
    "accept-encoding",
    "accept-language",
    "authorization",
    "cookie",
    "origin",
    "user-agent",
    "x-forwarded-proto",
];

/// LEB128: seven bits a byte, the lowest first.
pub(super) fn write_number(out: &mut Vec<u8>, mut number: usize) {
    while number >= 1 << 7 {
        out.push(number as u8 | 1 << 7);
        number >>= 7;
    }
    out.push(number as u8);
}

pub(super) fn write_name(out: &mut Vec<u8>, name: &HeaderName) {
    let name = name.as_str();
    match NAMES.iter().position(|known| *known == name) {
        Some(at) => write_number(out, at << 1 | 1),
        None => {
            write_number(out, name.len() << 1);
            out.extend_from_slice(name.as_bytes());
        }
    }
}

/// What is left to read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self(bytes)
    }

    pub fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    pub fn array<const N: usize>(&mut self) -> Option<[u8; N]> {
        self.take(N)?.first_chunk().copied()
    }

    pub fn byte(&mut self) -> Option<u8> {
        self.array().map(|[byte]| byte)
    }

    pub fn number(&mut self) -> Option<usize> {
        let mut number = 0;
        // Four bits are left of 32 after four groups: no length and no time is longer.
        for shift in [0, 7, 14, 21, 28] {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte & 1 << 7 == 0 {
                return u32::try_from(number).ok().map(|number| number as usize);
            }
        }
        None
    }

    /// How many there are of what takes at least `least` bytes each.
    pub fn count(&mut self, least: usize) -> Option<usize> {
        self.number().filter(|&count| count <= self.0.len() / least)
    }

    pub fn name(&mut self) -> Option<HeaderName> {
        let number = self.number()?;
        if number & 1 == 1 {
            return NAMES.get(number >> 1).map(|name| HeaderName::from_static(name));
        }
        HeaderName::from_bytes(self.take(number >> 1)?).ok()
    }

    /// Everything that is left.
    pub fn rest(self) -> &'a [u8] {
        self.0
    }
}
