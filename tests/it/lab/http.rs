//! A strict reader of HTTP/1.1 requests (RFC 9112): the referee of what the gateway sends upstream.
//!
//! It accepts one way to write each thing and names every deviation. A gateway that writes requests
//! anew from parsed parts never meets its edges; one that passes bytes through does, and that is how
//! requests are smuggled.

/// Header lines in the order they came.
pub(crate) type Headers = Vec<(String, String)>;

pub(crate) fn header<'h>(headers: &'h Headers, name: &str) -> Option<&'h str> {
    headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| v.as_str())
}

pub(crate) fn header_all<'h>(headers: &'h Headers, name: &str) -> Vec<&'h str> {
    let named = headers.iter().filter(|(n, _)| n.eq_ignore_ascii_case(name));
    named.map(|(_, v)| v.as_str()).collect()
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Framing {
    None,
    Length(u64),
    Chunked,
}

#[derive(Debug, Clone)]
pub(crate) struct Head {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Headers,
    pub(crate) framing: Framing,
}

/// Where the head ends in `bytes`, its final empty line included; `None` while more is needed.
pub(crate) fn head_end(bytes: &[u8]) -> Option<usize> {
    bytes.windows(4).position(|w| w == b"\r\n\r\n").map(|at| at + 4)
}

/// Header values are bytes; read as Latin-1, each byte is one character and none is lost.
pub(crate) fn latin1(bytes: &[u8]) -> String {
    bytes.iter().map(|b| char::from(*b)).collect()
}

/// Reads the head that `bytes` hold whole.
pub(crate) fn parse_head(bytes: &[u8]) -> Result<Head, String> {
    let text = latin1(bytes);
    let text = text.strip_suffix("\r\n\r\n").ok_or("the head does not end")?;
    let mut lines = text.split("\r\n");
    let first = lines.next().unwrap_or_default();
    let (method, target) = request_line(first)?;
    let mut headers = Headers::new();
    for line in lines {
        headers.push(field_line(line)?);
    }
    match header_all(&headers, "host")[..] {
        [one] if valid_host(one) => {}
        [one] => return Err(format!("Host is not valid: {one:?}")),
        [] => return Err("no Host".to_owned()),
        _ => return Err("more than one Host".to_owned()),
    }
    let framing = framing(&headers)?;
    Ok(Head { method, target, headers, framing })
}

fn request_line(line: &str) -> Result<(String, String), String> {
    let mut parts = line.split(' ');
    let (Some(method), Some(target), Some("HTTP/1.1"), None) =
        (parts.next(), parts.next(), parts.next(), parts.next())
    else {
        return Err(format!("not a request line: {line:?}"));
    };
    if method.is_empty() || !method.bytes().all(is_token) {
        return Err(format!("not a method: {method:?}"));
    }
    let visible = target.bytes().all(|b| (0x21..0x7f).contains(&b) && b != b'#');
    if !(target.starts_with('/') || (method == "OPTIONS" && target == "*")) || !visible {
        return Err(format!("not a target in origin form: {target:?}"));
    }
    Ok((method.to_owned(), target.to_owned()))
}

fn field_line(line: &str) -> Result<(String, String), String> {
    let (name, value) = line.split_once(':').ok_or_else(|| format!("no colon: {line:?}"))?;
    if name.is_empty() || !name.bytes().all(is_token) {
        return Err(format!("not a field name: {name:?}"));
    }
    if value.bytes().any(|b| b == 0x7f || (b < 0x20 && b != b'\t')) {
        return Err(format!("control character in {name}: {value:?}"));
    }
    Ok((name.to_owned(), value.trim_matches([' ', '\t']).to_owned()))
}

fn framing(headers: &Headers) -> Result<Framing, String> {
    let lengths = header_all(headers, "content-length");
    let codings = header_all(headers, "transfer-encoding");
    match (&lengths[..], &codings[..]) {
        ([], []) => Ok(Framing::None),
        ([length], []) => {
            let canonical = !length.is_empty()
                && length.bytes().all(|b| b.is_ascii_digit())
                && (*length == "0" || !length.starts_with('0'));
            match length.parse() {
                Ok(length) if canonical => Ok(Framing::Length(length)),
                _ => Err(format!("not a Content-Length: {length:?}")),
            }
        }
        ([], [coding]) if coding.eq_ignore_ascii_case("chunked") => Ok(Framing::Chunked),
        ([], _) => Err(format!("Transfer-Encoding is not one chunked: {codings:?}")),
        ([_, ..], [_, ..]) => Err("Content-Length and Transfer-Encoding".to_owned()),
        ([_, _, ..], []) => Err("more than one Content-Length".to_owned()),
    }
}

/// The size in a chunk-size line. An extension is a fault: the gateway has nothing to say in one.
pub(crate) fn chunk_size(line: &str) -> Result<u64, String> {
    let digits = !line.is_empty() && line.len() <= 15;
    if !digits || !line.bytes().all(|b| b.is_ascii_hexdigit()) {
        return Err(format!("not a chunk size: {line:?}"));
    }
    u64::from_str_radix(line, 16).map_err(|e| format!("not a chunk size: {line:?}: {e}"))
}

/// Reads the trailer lines, without the final empty one.
pub(crate) fn trailers(text: &str) -> Result<Headers, String> {
    let mut fields = Headers::new();
    for line in text.split("\r\n").filter(|l| !l.is_empty()) {
        let (name, value) = field_line(line)?;
        let forbidden = ["content-length", "transfer-encoding", "host", "authorization", "te"];
        if forbidden.iter().any(|f| name.eq_ignore_ascii_case(f)) {
            return Err(format!("{name} among the trailers"));
        }
        fields.push((name, value));
    }
    Ok(fields)
}

fn is_token(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&byte)
}

fn valid_host(host: &str) -> bool {
    let allowed = |b: u8| b.is_ascii_alphanumeric() || b"-._~[]:%!$&'()*+;=".contains(&b);
    !host.is_empty() && host.bytes().all(allowed)
}

#[test]
fn a_plain_request_is_read() {
    let head = parse_head(b"GET /a?b HTTP/1.1\r\nHost: h:1\r\nContent-Length: 12\r\n\r\n").unwrap();
    assert_eq!((head.method.as_str(), head.target.as_str()), ("GET", "/a?b"));
    assert_eq!(head.framing, Framing::Length(12));
}

#[test]
fn whatever_two_parsers_could_read_differently_is_named() {
    let bad = [
        "GET / HTTP/1.1\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: u@a\r\n\r\n",
        "GET  / HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.0\r\nHost: a\r\n\r\n",
        "GET http://a/ HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\nHost: a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\n folded\r\n\r\n",
        "GET / HTTP/1.1\r\nHost : a\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: \x01\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nX: a\rb\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: +5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 010\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nContent-Length: 5\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: xchunked\r\n\r\n",
    ];
    for request in bad {
        assert!(parse_head(request.as_bytes()).is_err(), "accepted {request:?}");
    }
    for size in ["", "0x5", "+5", "5;ext=1", "5 ", "-1", "ffffffffffffffff"] {
        assert!(chunk_size(size).is_err(), "accepted chunk size {size:?}");
    }
    assert!(trailers("Content-Length: 5\r\n").is_err());
}
