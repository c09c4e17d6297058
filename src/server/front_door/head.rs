//! Reads one request head the strict way, on the bytes as they came.
//!
//! A request that two parsers can read differently is how requests are smuggled, so this reader
//! knows one spelling of everything: one kind of line end, one `Host`, one way to say how long the
//! body is (RFC 9112). It works line by line and can be given a head in any number of pieces; a
//! line is judged only once it is whole, so the verdict does not depend on how the network cut it.

use super::Limits;
use super::syntax::{
    self, authorities_agree, authority_is_valid, is_path, is_query, is_token, trim_ows,
};
use crate::problem::Code;

/// The longest method; a longer one is one nobody implements (RFC 9112 section 3).
const METHOD_BYTES: usize = 32;
/// What a request line may hold besides its target: method, two spaces, version, line end.
const REQUEST_LINE_REST: usize = METHOD_BYTES + 12;

/// How the end of a request is found (RFC 9112 section 6.3).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Framing {
    /// The head is the whole request.
    None,
    /// So many bytes of body follow.
    Length(u64),
    /// Chunks follow.
    Chunked,
    /// The connection stops being HTTP: everything that follows belongs to this request.
    Upgrade,
}

/// A head whose end has been found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Complete {
    /// How many bytes the head has, its empty line included.
    pub(super) len: usize,
    pub(super) framing: Framing,
    /// The client asked to close the connection after this request.
    pub(super) closes: bool,
}

#[derive(Debug, Clone, Copy)]
struct Span {
    start: usize,
    end: usize,
}

impl Span {
    fn of(self, head: &[u8]) -> &[u8] {
        &head[self.start..self.end]
    }
}

/// What is known so far of the head that is arriving.
#[derive(Debug, Default)]
pub(super) struct Head {
    /// Where the first line that has not been judged begins.
    line: usize,
    /// Up to where that line has been searched for its end, if it was seen before.
    searched: usize,
    /// Where the header lines begin.
    fields: usize,
    field_count: usize,
    http_1_0: bool,
    is_post: bool,
    authority: Option<Span>,
    host: Option<Span>,
    content_length: Option<u64>,
    chunked: bool,
    websocket: bool,
    closes: bool,
}

/// One header line.
enum Field {
    Whole { name: usize, underscore: bool, end: usize },
    Partial,
    Invalid,
}

impl Head {
    /// Judges the lines of `head` that are complete; `head` begins with the request line and holds
    /// at least what an earlier call was given.
    pub(super) fn read(
        &mut self,
        head: &[u8],
        limits: &Limits,
        secure: bool,
    ) -> Result<Option<Complete>, Code> {
        if self.fields == 0 {
            match head.first() {
                None => return Ok(None),
                // Decides at once about something that is not HTTP and may never send a line end.
                Some(&first) if !is_token(first) => return Err(Code::MalformedRequest),
                Some(_) => {}
            }
            let longest = limits.target_bytes + REQUEST_LINE_REST;
            let window = &head[..head.len().min(longest)];
            let Some(end) = self.line_end(window) else {
                return if head.len() >= longest { Err(Code::TargetTooLong) } else { Ok(None) };
            };
            self.request_line(&window[..=end], limits, secure)?;
            self.line = end + 1;
            self.fields = self.line;
        }
        let longest = self.fields + limits.header_bytes;
        let window = &head[..head.len().min(longest)];
        while let Some(rest) = window.get(self.line..).filter(|rest| !rest.is_empty()) {
            if self.searched > self.line
                && window.len() < longest
                && self.line_end(window).is_none()
            {
                return Ok(None);
            }
            if let [b'\r', b'\n', ..] = rest {
                return self.finish(head, secure).map(|framing| {
                    let closes = self.closes;
                    Some(Complete { len: self.line + 2, framing, closes })
                });
            }
            match field(rest) {
                Field::Whole { name, underscore, end } => {
                    self.field_count += 1;
                    if self.field_count > limits.header_count {
                        return Err(Code::HeadersTooLarge);
                    }
                    self.field(head, name, underscore, end)?;
                    self.line += end + 2;
                }
                Field::Partial => break,
                Field::Invalid => {
                    // A line is judged when it is whole, however it was cut.
                    if window.len() < longest && self.line_end(window).is_none() {
                        return Ok(None);
                    }
                    return Err(Code::MalformedRequest);
                }
            }
        }
        if window.len() == longest {
            return Err(Code::HeadersTooLarge);
        }
        self.searched = window.len();
        Ok(None)
    }

    /// The index of the line feed that ends the current line; what was searched once is skipped.
    fn line_end(&mut self, window: &[u8]) -> Option<usize> {
        let from = self.searched.max(self.line);
        let found = memchr::memchr(b'\n', &window[from..]).map(|at| from + at);
        if found.is_none() {
            self.searched = window.len();
        }
        found
    }

    /// `method SP request-target SP HTTP-version CRLF` (RFC 9112 section 3).
    fn request_line(&mut self, line: &[u8], limits: &Limits, secure: bool) -> Result<(), Code> {
        const BAD: Code = Code::MalformedRequest;
        let line = line.strip_suffix(b"\r\n").ok_or(BAD)?;
        let (first, _) = syntax::token(line);
        let (rest, version) = line.split_last_chunk::<8>().ok_or(BAD)?;
        let (method, target) = match rest.get(first..) {
            Some([b' ', target @ .., b' ']) if first > 0 => (&line[..first], target),
            _ => return Err(BAD),
        };
        self.http_1_0 = match version {
            b"HTTP/1.1" => false,
            b"HTTP/1.0" => true,
            [b'H', b'T', b'T', b'P', b'/', major, b'.', minor]
                if major.is_ascii_digit() && minor.is_ascii_digit() =>
            {
                return Err(Code::VersionNotSupported);
            }
            _ => return Err(BAD),
        };
        match method {
            b"GET" | b"HEAD" => {}
            b"CONNECT" | b"TRACE" => return Err(Code::MethodNotImplemented),
            _ if method.len() > METHOD_BYTES => return Err(Code::MethodNotImplemented),
            // Tokens, but ones the HTTP library has no spelling for.
            _ if method.iter().any(|byte| b"#$%&'".contains(byte)) => {
                return Err(Code::MethodNotImplemented);
            }
            _ => self.is_post = method == b"POST",
        }
        if target.len() > limits.target_bytes {
            return Err(Code::TargetTooLong);
        }
        match target {
            [b'/', ..] => {}
            b"*" if method == b"OPTIONS" => return Ok(()),
            _ => {
                let scheme = if secure { "https://" } else { "http://" };
                let has_scheme = target
                    .get(..scheme.len())
                    .is_some_and(|start| start.eq_ignore_ascii_case(scheme.as_bytes()));
                if !has_scheme {
                    return Err(BAD);
                }
                let rest = &target[scheme.len()..];
                let end = memchr::memchr2(b'/', b'?', rest).unwrap_or(rest.len());
                if !authority_is_valid(&rest[..end]) || !target_is_valid(&rest[end..]) {
                    return Err(BAD);
                }
                let start = first + 1 + scheme.len();
                self.authority = Some(Span { start, end: start + end });
                return Ok(());
            }
        }
        if target_is_valid(target) { Ok(()) } else { Err(BAD) }
    }

    /// Takes note of the header lines that decide where a request ends or whom it is for.
    fn field(
        &mut self,
        head: &[u8],
        name: usize,
        underscore: bool,
        end: usize,
    ) -> Result<(), Code> {
        const BAD: Code = Code::MalformedRequest;
        let line = &head[self.line..self.line + end];
        let (name, value) = (&line[..name], &line[name + 1..]);
        if underscore && syntax::aliases_a_guarded_name(name) {
            return Err(BAD);
        }
        match name.len() {
            4 if name.eq_ignore_ascii_case(b"host") => {
                let value = trim_ows(value);
                if self.host.is_some() || !authority_is_valid(value) {
                    return Err(BAD);
                }
                let start = value.as_ptr().addr() - head.as_ptr().addr();
                self.host = Some(Span { start, end: start + value.len() });
            }
            6 if name.eq_ignore_ascii_case(b"expect")
                && !trim_ows(value).eq_ignore_ascii_case(b"100-continue") =>
            {
                return Err(Code::ExpectationFailed);
            }
            // The same test as actix's decoder, which asks for no `Connection: upgrade`.
            7 if name.eq_ignore_ascii_case(b"upgrade") => {
                self.websocket |= trim_ows(value).eq_ignore_ascii_case(b"websocket");
            }
            10 if name.eq_ignore_ascii_case(b"connection") => {
                let mut options = value.split(|&byte| byte == b',');
                self.closes |= options.any(|it| trim_ows(it).eq_ignore_ascii_case(b"close"));
            }
            14 if name.eq_ignore_ascii_case(b"content-length") => {
                let length = syntax::canonical_decimal(trim_ows(value)).ok_or(BAD)?;
                if self.content_length.replace(length).is_some() {
                    return Err(BAD);
                }
            }
            17 if name.eq_ignore_ascii_case(b"transfer-encoding") => {
                let coding = trim_ows(value);
                if self.chunked || self.http_1_0 {
                    return Err(BAD);
                }
                if !coding.eq_ignore_ascii_case(b"chunked") {
                    let unknown = !coding.is_empty()
                        && coding.iter().all(|&byte| is_token(byte))
                        && !coding.eq_ignore_ascii_case(b"identity");
                    return Err(if unknown { Code::MethodNotImplemented } else { BAD });
                }
                self.chunked = true;
            }
            _ => {}
        }
        Ok(())
    }

    /// Judges what only the whole head can show.
    fn finish(&self, head: &[u8], secure: bool) -> Result<Framing, Code> {
        const BAD: Code = Code::MalformedRequest;
        match (self.authority, self.host) {
            (_, None) if !self.http_1_0 => return Err(BAD),
            (Some(authority), Some(host))
                if !authorities_agree(authority.of(head), host.of(head), secure) =>
            {
                return Err(BAD);
            }
            _ => {}
        }
        match (self.chunked, self.content_length) {
            (true, Some(_)) => Err(BAD),
            (true, None) if self.websocket => Err(BAD),
            (true, None) => Ok(Framing::Chunked),
            (false, Some(1..)) if self.websocket => Err(BAD),
            (false, _) if self.websocket => Ok(Framing::Upgrade),
            (false, Some(length @ 1..)) => Ok(Framing::Length(length)),
            (false, Some(0)) => Ok(Framing::None),
            // RFC 1945 section 7.2.2: without a length nobody knows where such a body would end.
            (false, None) if self.http_1_0 && self.is_post => Err(BAD),
            (false, None) => Ok(Framing::None),
        }
    }
}

/// Path and query; both may be empty after an authority.
fn target_is_valid(target: &[u8]) -> bool {
    match target.iter().position(|&byte| !is_path(byte)) {
        None => true,
        Some(end) => target[end] == b'?' && target[end + 1..].iter().all(|&byte| is_query(byte)),
    }
}

/// `field-name ":" OWS field-value OWS CRLF` at the start of `rest`; `end` is where CRLF begins.
fn field(rest: &[u8]) -> Field {
    let (name, underscore) = syntax::token(rest);
    match rest.get(name) {
        None => return Field::Partial,
        Some(b':') if name > 0 => {}
        // A lone CR may be the first half of the empty line.
        Some(b'\r') if rest.len() == 1 => return Field::Partial,
        Some(_) => return Field::Invalid,
    }
    match syntax::find_control(rest, name + 1) {
        None => Field::Partial,
        Some(end) if rest[end] != b'\r' => Field::Invalid,
        Some(end) => match rest.get(end + 1) {
            None => Field::Partial,
            Some(b'\n') => Field::Whole { name, underscore, end },
            Some(_) => Field::Invalid,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(head: &str, secure: bool) -> Result<Option<Complete>, Code> {
        Head::default().read(head.as_bytes(), &Limits::default(), secure)
    }

    fn framing(head: &str) -> Option<Framing> {
        check(head, false).unwrap().map(|complete| complete.framing)
    }

    #[test]
    fn a_head_says_how_its_request_ends() {
        let get = "GET / HTTP/1.1\r\nHost: a\r\n";
        assert_eq!(framing(&format!("{get}\r\n")), Some(Framing::None));
        let length = format!("{get}Content-Length: 9223372036854775808\r\n\r\n");
        assert_eq!(framing(&length), Some(Framing::Length(1 << 63)));
        let chunked = format!("{get}Transfer-Encoding: CHUNKED\r\n\r\n");
        assert_eq!(framing(&chunked), Some(Framing::Chunked));
        let websocket = format!("{get}Upgrade: WebSocket\r\nContent-Length: 0\r\n\r\n");
        assert_eq!(framing(&websocket), Some(Framing::Upgrade));
    }

    #[test]
    fn a_head_ends_with_its_empty_line_and_not_before() {
        let head = "GET / HTTP/1.1\r\nHost: a\r\n\r\n";
        for end in 0..head.len() {
            assert_eq!(check(&head[..end], false), Ok(None), "{end}");
        }
        let complete = check(&format!("{head}GET / HTTP/1.1\r\n"), false).unwrap().unwrap();
        assert_eq!(complete.len, head.len());
    }

    #[test]
    fn the_scheme_of_a_target_is_that_of_the_connection() {
        let head = "GET https://a.example:443/ HTTP/1.1\r\nHost: a.example\r\n\r\n";
        assert!(check(head, true).is_ok());
        assert_eq!(check(head, false), Err(Code::MalformedRequest));
        let head = "GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\n\r\n";
        assert_eq!(check(head, true), Err(Code::MalformedRequest));
    }
}
