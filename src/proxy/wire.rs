//! HTTP/1.1 heads: writes a request's, reads a response's.
//!
//! A request is written from typed parts, with exactly one framing, so nothing a client sent can
//! change how the upstream splits the bytes. A response that could be read in two ways is refused:
//! behind a cache, one misread length would hand a client somebody else's response.

use std::mem::MaybeUninit;

use actix_http::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use bytes::{Bytes, BytesMut};

use super::headers::{is_hop_by_hop, nominated_by};

/// Largest header section of a response, in bytes.
pub(super) const MAX_HEAD: usize = 64 * 1024;
/// Most header fields of a response.
const MAX_HEADERS: usize = 128;

/// How the end of a body is found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    Empty,
    Length(u64),
    Chunked,
    /// The body ends with the connection.
    UntilClose,
}

/// What a request asked for that its response's framing depends on.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Asked {
    pub head: bool,
    pub upgrade: bool,
}

/// A response's head, without its hop-by-hop fields.
#[derive(Debug)]
pub(super) struct Head {
    pub status: StatusCode,
    pub headers: HeaderMap,
    pub framing: Framing,
    /// Its `Content-Length`, also where that is not how many bytes follow (HEAD, 304).
    pub announced: Option<u64>,
    /// Whether the connection may carry another request.
    pub keep_alive: bool,
    /// How many seconds the upstream keeps an idle connection, if it says so.
    pub keep_alive_secs: Option<u64>,
    /// The `Upgrade` field of a 101.
    pub upgrade: Option<HeaderValue>,
}

/// Finds the end of the header section in `buffer`, of which `seen` bytes were looked at before.
pub(super) fn find_end(buffer: &[u8], seen: usize) -> Result<Option<usize>, &'static str> {
    let start = &buffer[..buffer.len().min(7)];
    if !b"HTTP/1.".starts_with(start) {
        return Err("it does not start with an HTTP/1 status line");
    }
    for at in memchr::memchr_iter(b'\n', &buffer[seen..]).map(|at| seen + at) {
        if !buffer[..at].ends_with(b"\r") {
            return Err("a line of its header section ends without a carriage return");
        }
        if buffer[..at].ends_with(b"\r\n\r") {
            return if at < MAX_HEAD { Ok(Some(at + 1)) } else { Err(TOO_LARGE) };
        }
    }
    if buffer.len() >= MAX_HEAD { Err(TOO_LARGE) } else { Ok(None) }
}

const TOO_LARGE: &str = "its header section is too large";

/// Reads a complete header section; `None` for an interim response, which is to be skipped.
///
/// Header values share `section`, so keep it exactly as large as they are.
pub(super) fn parse(section: &Bytes, asked: Asked) -> Result<Option<Head>, &'static str> {
    // Not initialized, as four kilobytes of zeros would cost more than reading a usual head.
    let mut fields = [const { MaybeUninit::uninit() }; MAX_HEADERS];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    match config.parse_response_with_uninit_headers(&mut response, section, &mut fields) {
        Ok(httparse::Status::Complete(length)) if length == section.len() => {}
        Ok(_) => return Err("its header section is malformed"),
        Err(httparse::Error::TooManyHeaders) => return Err("it has too many header fields"),
        Err(_) => return Err("its header section is malformed"),
    }
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or("its status is out of range")?;
    if status.is_informational() && status != StatusCode::SWITCHING_PROTOCOLS {
        return Ok(None);
    }
    if status == StatusCode::SWITCHING_PROTOCOLS && !asked.upgrade {
        return Err("it switches protocols unasked");
    }

    let mut raw = Raw::default();
    let mut headers = HeaderMap::with_capacity(response.headers.len() + 2);
    for field in response.headers.iter() {
        let name = HeaderName::from_bytes(field.name.as_bytes())
            .map_err(|_| "a header name is malformed")?;
        if raw.note(name.as_str(), field.value)? {
            continue;
        }
        let value = section.slice_ref(field.value);
        let value = HeaderValue::from_maybe_shared(value)
            .map_err(|_| "a header value holds control characters")?;
        headers.append(name, value);
    }
    for name in &raw.nominated {
        headers.remove(name.as_str());
    }

    let is_http11 = response.version == Some(1);
    let framing = raw.framing(is_http11, status, asked)?;
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::SWITCHING_PROTOCOLS) {
        headers.remove("content-length");
    }
    Ok(Some(Head {
        status,
        headers,
        framing,
        announced: raw.length,
        keep_alive: is_http11 && !raw.close && framing != Framing::UntilClose,
        keep_alive_secs: raw.keep_alive_secs,
        upgrade: raw.upgrade.and_then(|value| HeaderValue::from_bytes(value).ok()),
    }))
}

/// What the fields say about the connection and the framing.
#[derive(Default)]
struct Raw<'s> {
    length: Option<u64>,
    chunked: bool,
    close: bool,
    keep_alive_secs: Option<u64>,
    upgrade: Option<&'s [u8]>,
    nominated: Vec<String>,
}

impl<'s> Raw<'s> {
    /// Takes note of a field; true if it must not be passed on.
    fn note(&mut self, name: &str, value: &'s [u8]) -> Result<bool, &'static str> {
        match name {
            "content-length" => {
                if self.length.is_some() {
                    return Err("it has several Content-Length lines");
                }
                // 18 digits cannot overflow.
                if value.is_empty() || value.len() > 18 || !value.iter().all(u8::is_ascii_digit) {
                    return Err("its Content-Length is not a number");
                }
                let digits = value.iter().map(|digit| u64::from(digit - b'0'));
                self.length = Some(digits.fold(0, |length, digit| length * 10 + digit));
                return Ok(false);
            }
            "transfer-encoding" => {
                if self.chunked || !value.eq_ignore_ascii_case(b"chunked") {
                    return Err("its Transfer-Encoding is not one chunked");
                }
                self.chunked = true;
            }
            "connection" => {
                let mut tokens = value.split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
                self.close |= tokens.any(|token| token.eq_ignore_ascii_case(b"close"));
                self.nominated.extend(nominated_by(value));
            }
            "keep-alive" => {
                self.keep_alive_secs = value
                    .split(|byte| *byte == b',')
                    .filter_map(|part| part.trim_ascii().strip_prefix(b"timeout="))
                    .find_map(|secs| std::str::from_utf8(secs).ok()?.parse().ok());
            }
            "upgrade" => self.upgrade = Some(value),
            _ => {}
        }
        Ok(is_hop_by_hop(name))
    }

    fn framing(
        &self,
        is_http11: bool,
        status: StatusCode,
        asked: Asked,
    ) -> Result<Framing, &'static str> {
        if self.chunked && self.length.is_some() {
            return Err("it has both Content-Length and Transfer-Encoding");
        }
        if self.chunked && !is_http11 {
            return Err("it uses Transfer-Encoding in HTTP/1.0");
        }
        if asked.head || matches!(status.as_u16(), 101 | 204 | 304) {
            return Ok(Framing::Empty);
        }
        Ok(match self.length {
            _ if self.chunked => Framing::Chunked,
            Some(0) => Framing::Empty,
            Some(length) => Framing::Length(length),
            None => Framing::UntilClose,
        })
    }
}

/// How a request's body is framed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Send {
    Nothing,
    Length(u64),
    Chunked,
}

/// What makes up a request's head.
pub(super) struct RequestParts<'r> {
    pub method: &'r Method,
    /// The target's own path, without a slash at its end.
    pub base: &'r str,
    pub path_and_query: &'r [u8],
    /// Used unless `headers` bring a `Host`.
    pub host: &'r HeaderValue,
    pub headers: &'r HeaderMap,
    pub send: Send,
    /// The protocol to upgrade to.
    pub upgrade: Option<&'r HeaderValue>,
}

/// Writes a request's head.
pub(super) fn write_head(out: &mut BytesMut, parts: &RequestParts<'_>) {
    let mut put = |bytes: &[u8]| out.extend_from_slice(bytes);
    put(parts.method.as_str().as_bytes());
    put(b" ");
    put(parts.base.as_bytes());
    put(parts.path_and_query);
    put(b" HTTP/1.1\r\nhost: ");
    put(parts.headers.get("host").unwrap_or(parts.host).as_bytes());
    put(b"\r\n");
    for (name, value) in parts.headers {
        // Dropped here again although `headers::for_upstream` did so: rules may have set them.
        if is_hop_by_hop(name.as_str()) || matches!(name.as_str(), "host" | "content-length") {
            continue;
        }
        put(name.as_str().as_bytes());
        put(b": ");
        put(value.as_bytes());
        put(b"\r\n");
    }
    match parts.send {
        Send::Length(length) => {
            put(b"content-length: ");
            put(length.to_string().as_bytes());
            put(b"\r\n");
        }
        Send::Chunked => put(b"transfer-encoding: chunked\r\n"),
        // A method that usually has content says that it has none (RFC 9110 section 8.6).
        Send::Nothing if matches!(*parts.method, Method::POST | Method::PUT | Method::PATCH) => {
            put(b"content-length: 0\r\n");
        }
        Send::Nothing => {}
    }
    if let Some(protocol) = parts.upgrade {
        put(b"connection: upgrade\r\nupgrade: ");
        put(protocol.as_bytes());
        put(b"\r\n");
    }
    put(b"\r\n");
}

/// Whether a request target can be written into a request line.
pub(super) fn is_sendable_target(target: &[u8]) -> bool {
    (target.first() == Some(&b'/') || target == b"*")
        && target.iter().all(|byte| !byte.is_ascii_control() && *byte != b' ' && *byte != b'#')
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn read(text: &str) -> Result<Option<Head>, &'static str> {
        let end = find_end(text.as_bytes(), 0)?.ok_or("incomplete")?;
        parse(&Bytes::copy_from_slice(&text.as_bytes()[..end]), Asked::default())
    }

    fn framing(fields: &str) -> Result<Framing, &'static str> {
        read(&format!("HTTP/1.1 200 OK\r\n{fields}\r\n")).map(|head| head.unwrap().framing)
    }

    #[test]
    fn each_framing_is_recognized() {
        assert_eq!(framing("Content-Length: 5\r\n"), Ok(Framing::Length(5)));
        assert_eq!(framing("Content-Length: 0\r\n"), Ok(Framing::Empty));
        assert_eq!(framing("Transfer-Encoding: Chunked\r\n"), Ok(Framing::Chunked));
        assert_eq!(framing(""), Ok(Framing::UntilClose));
        let head = read("HTTP/1.1 304 x\r\nContent-Length: 9\r\n\r\n").unwrap().unwrap();
        assert_eq!(head.framing, Framing::Empty);
        assert!(head.headers.contains_key("content-length"));
    }

    #[test]
    fn what_can_be_read_in_two_ways_is_refused() {
        for fields in [
            "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n",
            "Content-Length: 5\r\nContent-Length: 5\r\n",
            "Content-Length: 5\r\nContent-Length: 6\r\n",
            "Content-Length: 5, 5\r\n",
            "Content-Length: +5\r\n",
            "Content-Length: -1\r\n",
            "Content-Length: 0x5\r\n",
            "Content-Length: \r\n",
            "Content-Length: 9999999999999999999\r\n",
            "Transfer-Encoding: gzip, chunked\r\n",
            "Transfer-Encoding: chunked, chunked\r\n",
            "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
            "Transfer-Encoding: gzip\r\n",
            "Transfer-Encoding: ,chunked\r\n",
            "X: a\r\n b\r\n",
            "X : a\r\n",
            "X: a\n",
            "X: a\0b\r\n",
            ": a\r\n",
        ] {
            assert!(framing(fields).is_err(), "{fields:?}");
        }
        assert!(read("HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n").is_err());
        assert!(read("HTTP/2 200\r\n\r\n").is_err());
        assert!(read("nonsense").is_err());
        assert!(read("HTTP/1.1 101 x\r\nUpgrade: websocket\r\n\r\n").is_err());
        let many: String = (0..=MAX_HEADERS).map(|n| format!("X-{n}: 1\r\n")).collect();
        assert!(framing(&many).is_err());
        assert!(framing(&format!("X: {}\r\n", "a".repeat(MAX_HEAD))).is_err());
    }

    #[test]
    fn interim_responses_are_skipped() {
        assert!(read("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n").unwrap().is_none());
    }

    #[test]
    fn hop_by_hop_fields_end_here() {
        let head = read(
            "HTTP/1.1 200 OK\r\nConnection: close, x-drop\r\nConnection: Cache-Control\r\n\
             X-Drop: 1\r\nKeep-Alive: max=9, timeout=5\r\nCache-Control: private\r\n\
             Trailer: x\r\nSet-Cookie: a\r\nSet-Cookie: b\r\nContent-Length: 1\r\n\r\n",
        );
        let head = head.unwrap().unwrap();
        assert_eq!((head.keep_alive, head.keep_alive_secs), (false, Some(5)));
        assert_eq!(head.headers.len(), 4, "{:?}", head.headers);
        assert_eq!(head.headers.get_all("set-cookie").count(), 2);
        assert!(head.headers.contains_key("cache-control"));
    }

    #[test]
    fn a_request_has_one_host_and_one_framing() {
        let mut headers = HeaderMap::new();
        for name in ["transfer-encoding", "content-length", "connection", "accept"] {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static("9"));
        }
        let mut out = BytesMut::new();
        let parts = RequestParts {
            method: &Method::POST,
            base: "/v1",
            path_and_query: b"/a?b",
            host: &HeaderValue::from_static("api.example"),
            headers: &headers,
            send: Send::Length(3),
            upgrade: None,
        };
        write_head(&mut out, &parts);
        assert_eq!(
            std::str::from_utf8(&out).unwrap(),
            "POST /v1/a?b HTTP/1.1\r\nhost: api.example\r\naccept: 9\r\ncontent-length: 3\r\n\r\n"
        );
    }

    #[test]
    fn targets_that_would_split_the_request_line_are_refused() {
        assert!(is_sendable_target(b"/a?b=%20") && is_sendable_target(b"*"));
        for target in [&b""[..], b"a", b"/a b", b"/a\r\nx: y", b"/a#b", b"http://x/"] {
            assert!(!is_sendable_target(target));
        }
    }

    proptest! {
        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..120)) {
            let text = [b"HTTP/1.1 200 OK\r\n", &bytes[..], b"\r\n\r\n"].concat();
            if let Ok(Some(end)) = find_end(&text, 0) {
                let _ = parse(&Bytes::copy_from_slice(&text[..end]), Asked::default());
            }
        }

        #[test]
        fn the_end_is_found_however_the_bytes_arrive(cut in 1usize..30) {
            let text = b"HTTP/1.1 200 OK\r\nA: b\r\n\r\nbody\n";
            prop_assert_eq!(
                find_end(&text[..cut.min(text.len())], 0).unwrap().is_none(), cut < 25);
            prop_assert_eq!(find_end(text, cut.min(24)), Ok(Some(25)));
        }
    }
}
