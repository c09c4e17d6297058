//! An HTTP/1.1 client on raw bytes: what was sent is exactly what the test wrote, and how an answer
//! ended (whole, or cut) is part of what it tells.

use std::{fmt::Write as _, io, net::SocketAddr, sync::Arc, time::Duration};

use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::TcpStream,
};

use super::http::{self, Headers};

/// How long a connection may be silent while a test waits for it.
const PATIENCE: Duration = Duration::from_secs(20);

/// A request to be written; `Host` is the address it goes to unless the test sets one.
#[derive(Debug, Clone)]
pub(crate) struct Request {
    pub(crate) method: String,
    pub(crate) target: String,
    pub(crate) headers: Headers,
    pub(crate) body: Option<Vec<u8>>,
}

impl Request {
    pub(crate) fn new(method: &str, target: impl Into<String>) -> Self {
        Self { method: method.to_owned(), target: target.into(), headers: Vec::new(), body: None }
    }

    pub(crate) fn get(target: impl Into<String>) -> Self {
        Self::new("GET", target)
    }

    pub(crate) fn post(target: impl Into<String>, body: impl Into<Vec<u8>>) -> Self {
        Self::new("POST", target).body(body)
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        self.body = Some(body.into());
        self
    }

    pub(crate) fn bytes(&self, authority: &str) -> Vec<u8> {
        let mut head = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        if http::header(&self.headers, "host").is_none() {
            let _ = write!(head, "Host: {authority}\r\n");
        }
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        if let Some(body) = &self.body {
            let _ = write!(head, "Content-Length: {}\r\n", body.len());
        }
        let mut bytes: Vec<u8> = (head + "\r\n").chars().map(|c| c as u8).collect();
        bytes.extend(self.body.iter().flatten());
        bytes
    }

    /// Sends it on a connection of its own.
    pub(crate) async fn send(&self, addr: SocketAddr) -> io::Result<Response> {
        let mut connection = Connection::open(addr).await?;
        connection.ask(self).await
    }
}

#[derive(Debug, Clone)]
pub(crate) struct Response {
    pub(crate) status: u16,
    pub(crate) headers: Headers,
    pub(crate) body: Vec<u8>,
    /// The body ended where its framing said, rather than where the connection broke off.
    pub(crate) whole: bool,
}

impl Response {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        http::header(&self.headers, name)
    }

    pub(crate) fn header_all(&self, name: &str) -> Vec<&str> {
        http::header_all(&self.headers, name)
    }

    pub(crate) fn text(&self) -> String {
        String::from_utf8_lossy(&self.body).into_owned()
    }

    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_slice(&self.body)
            .unwrap_or_else(|e| panic!("{e} in {} {:?}", self.status, self.text()))
    }

    /// `X-Cache`, in capitals; empty when absent.
    pub(crate) fn x_cache(&self) -> String {
        self.header("x-cache").unwrap_or_default().to_ascii_uppercase()
    }

    pub(crate) fn age(&self) -> Option<u64> {
        self.header("age").and_then(|a| a.parse().ok())
    }

    /// Asserts that this is an RFC 9457 answer with these and returns it.
    #[track_caller]
    pub(crate) fn assert_problem(&self, status: u16, code: &str) -> serde_json::Value {
        assert_eq!(self.status, status, "{:?}", self.text());
        assert_eq!(self.header("content-type"), Some("application/problem+json"));
        let body = self.json();
        assert_eq!(body["code"], code, "{body}");
        assert_eq!(body["status"], status, "{body}");
        let id = body["request_id"].as_str().unwrap_or_default();
        assert!(!id.is_empty(), "a problem names its request: {body}");
        body
    }
}

/// How a connection ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// FIN.
    Closed,
    /// RST, or a TLS stream cut without its goodbye.
    Cut,
    /// It did not: the peer keeps it open and says nothing.
    Open,
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// One client connection.
pub(crate) struct Connection {
    authority: String,
    stream: Box<dyn Stream>,
    buffer: Vec<u8>,
    closing: bool,
}

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> io::Result<Self> {
        let stream = TcpStream::connect(addr).await?;
        stream.set_nodelay(true)?;
        Ok(Self::over(addr.to_string(), Box::new(stream)))
    }

    /// A TLS connection that trusts `root` alone and calls the server `localhost`.
    pub(crate) async fn open_tls(
        addr: SocketAddr,
        root: rustls_pki_types::CertificateDer<'static>,
    ) -> io::Result<Self> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(root).map_err(io::Error::other)?;
        let provider = Arc::new(rustls::crypto::aws_lc_rs::default_provider());
        let config = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(io::Error::other)?
            .with_root_certificates(roots)
            .with_no_client_auth();
        let name = rustls_pki_types::ServerName::try_from("localhost").map_err(io::Error::other)?;
        let stream = TcpStream::connect(addr).await?;
        let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
        let stream = connector.connect(name, stream).await?;
        Ok(Self::over("localhost".to_owned(), Box::new(stream)))
    }

    fn over(authority: String, stream: Box<dyn Stream>) -> Self {
        Self { authority, stream, buffer: Vec::new(), closing: false }
    }

    /// The server said that it closes after the last response.
    pub(crate) fn closing(&self) -> bool {
        self.closing
    }

    /// Sends `request` and reads its response.
    pub(crate) async fn ask(&mut self, request: &Request) -> io::Result<Response> {
        self.write(&request.bytes(&self.authority.clone())).await?;
        self.response(&request.method).await
    }

    /// Writes exactly these bytes.
    pub(crate) async fn write(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.stream.write_all(bytes).await?;
        self.stream.flush().await
    }

    /// Ends the sending side.
    pub(crate) async fn finish(&mut self) -> io::Result<()> {
        self.stream.shutdown().await
    }

    /// Reads the next final response, to a request with this method, past any interim ones.
    pub(crate) async fn response(&mut self, method: &str) -> io::Result<Response> {
        loop {
            let response = self.any_response(method).await?;
            if response.status == 101 || response.status >= 200 {
                return Ok(response);
            }
        }
    }

    /// Reads the next response, interim or final.
    pub(crate) async fn any_response(&mut self, method: &str) -> io::Result<Response> {
        let (status, headers) = self.head().await?;
        let mut body = Vec::new();
        let whole = status < 200 || self.body(method, status, &headers, &mut body).await?;
        let connection = http::header_all(&headers, "connection").join(",");
        let options = connection.split(',').map(str::trim);
        self.closing = !whole || options.into_iter().any(|o| o.eq_ignore_ascii_case("close"));
        Ok(Response { status, headers, body, whole })
    }

    /// Reads one response head, interim or final, and nothing of a body.
    pub(crate) async fn head(&mut self) -> io::Result<(u16, Headers)> {
        let end = loop {
            if let Some(end) = http::head_end(&self.buffer) {
                break end;
            }
            if self.fill().await? == 0 {
                let rest = http::latin1(&self.buffer);
                let error = format!("closed before a response head, after {rest:?}");
                return Err(io::Error::new(io::ErrorKind::UnexpectedEof, error));
            }
        };
        let head = http::latin1(&self.buffer[..end]);
        self.buffer.drain(..end);
        let mut lines = head.trim_end().split("\r\n");
        let first = lines.next().unwrap_or_default();
        let version = ["HTTP/1.1 ", "HTTP/1.0 "].into_iter().find_map(|v| first.strip_prefix(v));
        let status = version.and_then(|rest| rest.get(..3)?.parse().ok());
        let status = status.ok_or_else(|| invalid(format!("not a status line: {first:?}")))?;
        let mut headers = Headers::new();
        for line in lines {
            let (name, value) =
                line.split_once(':').ok_or_else(|| invalid(format!("no colon: {line:?}")))?;
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        Ok((status, headers))
    }

    /// Reads a body into `body`; whether it ended where its framing says.
    async fn body(
        &mut self,
        method: &str,
        status: u16,
        headers: &Headers,
        body: &mut Vec<u8>,
    ) -> io::Result<bool> {
        if method == "HEAD" || matches!(status, 204 | 304) {
            return Ok(true);
        }
        if let Some(coding) = http::header(headers, "transfer-encoding") {
            if !coding.eq_ignore_ascii_case("chunked") {
                return Err(invalid(format!("Transfer-Encoding: {coding}")));
            }
            if http::header(headers, "content-length").is_some() {
                return Err(invalid("Transfer-Encoding and Content-Length".to_owned()));
            }
            loop {
                match self.chunk().await? {
                    None => return Ok(false),
                    Some(piece) if piece.is_empty() => return Ok(true),
                    Some(piece) => body.extend(piece),
                }
            }
        }
        if let Some(length) = http::header(headers, "content-length") {
            let length: usize = length.parse().map_err(|e| invalid(format!("{length:?}: {e}")))?;
            while self.buffer.len() < length {
                if self.fill_or_cut().await == 0 {
                    body.append(&mut self.buffer);
                    return Ok(false);
                }
            }
            body.extend(self.buffer.drain(..length));
            return Ok(true);
        }
        // Ended by the connection: whole if that was closed and not cut.
        let end = self.rest().await;
        body.append(&mut self.buffer);
        Ok(end == End::Closed)
    }

    /// The next chunk; empty for the last one, `None` when the connection ended before it.
    pub(crate) async fn chunk(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(line) = self.line().await else { return Ok(None) };
        let size = http::chunk_size(&line).map_err(invalid)?;
        let size = usize::try_from(size).map_err(|e| invalid(e.to_string()))?;
        if size == 0 {
            while let Some(line) = self.line().await {
                if line.is_empty() {
                    return Ok(Some(Vec::new()));
                }
            }
            return Ok(None);
        }
        while self.buffer.len() < size + 2 {
            if self.fill_or_cut().await == 0 {
                return Ok(None);
            }
        }
        let piece = self.buffer.drain(..size + 2).take(size).collect();
        Ok(Some(piece))
    }

    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(http::latin1(&line[..end]));
            }
            if self.fill_or_cut().await == 0 {
                return None;
            }
        }
    }

    /// Exactly `count` bytes, whatever they mean.
    pub(crate) async fn exactly(&mut self, count: usize) -> io::Result<Vec<u8>> {
        while self.buffer.len() < count {
            if self.fill().await? == 0 {
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        Ok(self.buffer.drain(..count).collect())
    }

    /// Reads and throws away; returns how many bytes there were, this buffer included.
    pub(crate) async fn discard_at_most(&mut self, limit: u64) -> io::Result<u64> {
        let mut count = self.buffer.len() as u64;
        self.buffer.clear();
        let mut bytes = vec![0; 256 << 10];
        while count < limit {
            match self.stream.read(&mut bytes).await? {
                0 => break,
                n => count += n as u64,
            }
        }
        Ok(count)
    }

    /// Reads into the buffer until the connection ends, and tells how it did.
    pub(crate) async fn rest(&mut self) -> End {
        loop {
            match self.fill().await {
                Ok(0) => return End::Closed,
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::TimedOut => return End::Open,
                Err(_) => return End::Cut,
            }
        }
    }

    /// What was read and not yet taken.
    pub(crate) fn unread(&self) -> &[u8] {
        &self.buffer
    }

    async fn fill(&mut self) -> io::Result<usize> {
        self.buffer.reserve(64 << 10);
        let read = self.stream.read_buf(&mut self.buffer);
        // A test that waits for bytes that never come fails here, and says so.
        tokio::time::timeout(PATIENCE, read).await.unwrap_or_else(|_| Err(silence()))
    }

    /// Within a body a reset and a close are the same news: it is cut. Silence is not.
    async fn fill_or_cut(&mut self) -> usize {
        match self.fill().await {
            Ok(n) => n,
            Err(error) if error.kind() == io::ErrorKind::TimedOut => panic!("in a body: {error}"),
            Err(_) => 0,
        }
    }
}

fn silence() -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, format!("no byte for {PATIENCE:?}"))
}

fn invalid(what: String) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, what)
}

/// Lets `clients` connections ask `each` requests one after the other, all at once, and hands every
/// response to `check` with who asked and which of their requests it answers.
///
/// A connection that the server says it closes is replaced, as clients do; any other failure is the
/// test's.
pub(crate) async fn load(
    addr: SocketAddr,
    clients: usize,
    each: usize,
    request: impl Fn(usize, usize) -> Request + Send + Sync + 'static,
    check: impl Fn(usize, usize, &Response) + Send + Sync + 'static,
) {
    let request = Arc::new(request);
    let check = Arc::new(check);
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..clients {
        let (request, check) = (Arc::clone(&request), Arc::clone(&check));
        tasks.spawn(async move {
            let mut connection = Connection::open(addr).await.expect("the gateway accepts");
            for nth in 0..each {
                let asked = request(client, nth);
                let response = connection.ask(&asked).await;
                let response = response.unwrap_or_else(|e| {
                    panic!("client {client}, {} {}: {e}", asked.method, asked.target)
                });
                check(client, nth, &response);
                if connection.closing() {
                    connection = Connection::open(addr).await.expect("the gateway accepts");
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            std::panic::resume_unwind(error.into_panic());
        }
    }
}
