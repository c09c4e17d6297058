//! A recording origin: keeps every byte it was sent, reads it strictly, answers by script.
//!
//! It is written on raw TCP because the tests are about what an HTTP library would hide: requests that
//! parse in two ways, bodies that are cut, lengths that lie, answers that never come.

use std::{
    collections::HashMap,
    fmt::Write as _,
    future::Future,
    io,
    net::{Ipv4Addr, SocketAddr},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{
        TcpListener, TcpStream,
        tcp::{OwnedReadHalf, OwnedWriteHalf},
    },
    sync::Semaphore,
    task::JoinHandle,
};

use super::http::{self, Framing, Head, Headers};

/// Bytes kept per connection and per body; what is beyond is read and counted only.
const KEPT: usize = 4 << 20;

/// One request as the origin read it.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) method: String,
    /// Path and query as sent.
    pub(crate) target: String,
    pub(crate) headers: Headers,
    pub(crate) chunked: bool,
    /// At most the first 4 MiB.
    pub(crate) body: Vec<u8>,
    pub(crate) body_length: u64,
    /// How many requests for this target came so far, this one included.
    pub(crate) nth: usize,
}

impl Seen {
    pub(crate) fn header(&self, name: &str) -> Option<&str> {
        http::header(&self.headers, name)
    }

    pub(crate) fn header_all(&self, name: &str) -> Vec<&str> {
        http::header_all(&self.headers, name)
    }

    pub(crate) fn path(&self) -> &str {
        self.target.split('?').next().unwrap_or_default()
    }
}

/// Holds an answer back until the test opens it.
#[derive(Debug, Clone)]
pub(crate) struct Gate(Arc<Semaphore>);

impl Gate {
    pub(crate) fn closed() -> Self {
        Self(Arc::new(Semaphore::new(0)))
    }

    /// Lets everybody through, now and later.
    pub(crate) fn open(&self) {
        self.0.add_permits(Semaphore::MAX_PERMITS / 2);
    }

    pub(crate) async fn pass(&self) {
        drop(self.0.acquire().await);
    }
}

#[derive(Debug, Clone)]
enum Step {
    Send(Vec<u8>),
    /// The same bytes many times over: a large body that nobody has to hold.
    Repeat(Vec<u8>, usize),
    Wait(Duration),
    Until(Gate),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum After {
    KeepAlive,
    Close,
    Reset,
    Hang,
    Echo,
}

/// What the origin does with a request, step by step.
#[derive(Debug, Clone)]
pub(crate) struct Answer {
    status: u16,
    headers: Headers,
    steps: Vec<Step>,
    /// Replaces the head that `status` and `headers` would give.
    raw: bool,
    length: Option<u64>,
    chunked: bool,
    after: After,
    before: Vec<Step>,
}

impl Answer {
    pub(crate) fn status(status: u16) -> Self {
        Self {
            status,
            headers: Vec::new(),
            steps: Vec::new(),
            raw: false,
            length: None,
            chunked: false,
            after: After::KeepAlive,
            before: Vec::new(),
        }
    }

    /// 200 with this body and its `Content-Length`.
    pub(crate) fn ok(body: impl Into<Vec<u8>>) -> Self {
        Self::status(200).body(body)
    }

    /// 200 that a shared cache may keep for a minute.
    pub(crate) fn cacheable(body: impl Into<Vec<u8>>) -> Self {
        Self::ok(body).header("Cache-Control", "max-age=60")
    }

    /// Exactly these bytes in place of a response.
    pub(crate) fn raw(bytes: impl Into<Vec<u8>>) -> Self {
        let mut answer = Self::status(200);
        answer.raw = true;
        answer.after = After::Close;
        answer.steps.push(Step::Send(bytes.into()));
        answer
    }

    /// A 101, then every byte back as it comes.
    pub(crate) fn switch_to_echo(headers: &[(&str, &str)]) -> Self {
        let mut answer = Self::status(101);
        for (name, value) in headers {
            answer = answer.header(name, *value);
        }
        answer.after = After::Echo;
        answer
    }

    /// Accepts the request and says nothing, ever.
    pub(crate) fn never() -> Self {
        let mut answer = Self::raw(Vec::new());
        answer.after = After::Hang;
        answer
    }

    /// Resets the connection in place of an answer.
    pub(crate) fn reset() -> Self {
        let mut answer = Self::raw(Vec::new());
        answer.after = After::Reset;
        answer
    }

    pub(crate) fn header(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.to_owned(), value.into()));
        self
    }

    pub(crate) fn body(mut self, body: impl Into<Vec<u8>>) -> Self {
        let body = body.into();
        self.length = Some(body.len() as u64);
        self.steps.push(Step::Send(body));
        self
    }

    /// A body of `times` × `piece` with its `Content-Length`.
    pub(crate) fn large(mut self, piece: Vec<u8>, times: usize) -> Self {
        self.length = Some((piece.len() * times) as u64);
        self.steps.push(Step::Repeat(piece, times));
        self
    }

    /// One chunk of a chunked body.
    pub(crate) fn chunk(mut self, piece: impl Into<Vec<u8>>) -> Self {
        let piece = piece.into();
        self.chunked = true;
        let mut bytes = format!("{:x}\r\n", piece.len()).into_bytes();
        bytes.extend(piece);
        bytes.extend(b"\r\n");
        self.steps.push(Step::Send(bytes));
        self
    }

    /// Declares a length the body does not have.
    pub(crate) fn lying_length(mut self, length: u64) -> Self {
        self.length = Some(length);
        self
    }

    /// Waits before the head.
    pub(crate) fn delay(mut self, time: Duration) -> Self {
        self.before.push(Step::Wait(time));
        self
    }

    /// Waits for the gate before the head.
    pub(crate) fn gated(mut self, gate: &Gate) -> Self {
        self.before.push(Step::Until(gate.clone()));
        self
    }

    /// Waits for the gate before the next part of the body.
    pub(crate) fn then_gate(mut self, gate: &Gate) -> Self {
        self.steps.push(Step::Until(gate.clone()));
        self
    }

    /// Ends the connection (FIN) after what was said so far, even in the middle of a body.
    pub(crate) fn then_close(mut self) -> Self {
        self.after = After::Close;
        self
    }

    /// Resets the connection after what was said so far.
    pub(crate) fn then_reset(mut self) -> Self {
        self.after = After::Reset;
        self
    }

    /// Goes silent after what was said so far.
    pub(crate) fn then_hang(mut self) -> Self {
        self.after = After::Hang;
        self
    }

    /// The steps on the wire, framing decided.
    fn script(self, method: &str) -> (Vec<Step>, After) {
        if self.raw {
            return (self.before.into_iter().chain(self.steps).collect(), self.after);
        }
        let bodyless = method == "HEAD" || self.status < 200 || matches!(self.status, 204 | 304);
        let mut head = format!("HTTP/1.1 {} Scripted\r\n", self.status);
        for (name, value) in &self.headers {
            let _ = write!(head, "{name}: {value}\r\n");
        }
        match (self.chunked, self.length) {
            (true, _) => head.push_str("Transfer-Encoding: chunked\r\n"),
            (false, Some(length)) if self.status != 204 => {
                let _ = write!(head, "Content-Length: {length}\r\n");
            }
            (false, None) if !bodyless => head.push_str("Content-Length: 0\r\n"),
            _ => {}
        }
        let mut wire = self.before;
        // Latin-1, as heads are read: a test may send bytes that are not ASCII.
        wire.push(Step::Send((head + "\r\n").chars().map(|c| c as u8).collect()));
        if !bodyless {
            wire.extend(self.steps);
            if self.chunked && self.after == After::KeepAlive {
                wire.push(Step::Send(b"0\r\n\r\n".to_vec()));
            }
        }
        (wire, self.after)
    }
}

type Handler = dyn Fn(&Seen) -> Answer + Send + Sync;
type EarlyHandler = dyn Fn(&Head) -> Option<Answer> + Send + Sync;

struct State {
    handler: Box<Handler>,
    early: Option<Box<EarlyHandler>>,
    seen: Mutex<Vec<Seen>>,
    counts: Mutex<HashMap<String, usize>>,
    raw: Mutex<Vec<Vec<u8>>>,
    faults: Mutex<Vec<String>>,
    open: Mutex<usize>,
}

/// A test that failed while it held a lock has said so already.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A running origin; stops when dropped.
pub(crate) struct Origin {
    addr: SocketAddr,
    state: Arc<State>,
    accepting: JoinHandle<()>,
}

impl Drop for Origin {
    fn drop(&mut self) {
        self.accepting.abort();
    }
}

impl Origin {
    pub(crate) async fn start(handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::launch(any, Box::new(handler), None).await
    }

    /// Listens on a given address: an origin that comes back.
    pub(crate) async fn start_at(
        addr: SocketAddr,
        handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        Self::launch(addr, Box::new(handler), None).await
    }

    /// `early` sees the head before any of the body was read and may answer then, after which the
    /// origin reads no further.
    pub(crate) async fn start_early(
        early: impl Fn(&Head) -> Option<Answer> + Send + Sync + 'static,
        handler: impl Fn(&Seen) -> Answer + Send + Sync + 'static,
    ) -> Self {
        let any = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
        Self::launch(any, Box::new(handler), Some(Box::new(early))).await
    }

    async fn launch(
        addr: SocketAddr,
        handler: Box<Handler>,
        early: Option<Box<EarlyHandler>>,
    ) -> Self {
        let listener = TcpListener::bind(addr).await.expect("the origin's port is free");
        let addr = listener.local_addr().expect("a bound socket has an address");
        let state = Arc::new(State {
            handler,
            early,
            seen: Mutex::default(),
            counts: Mutex::default(),
            raw: Mutex::default(),
            faults: Mutex::default(),
            open: Mutex::default(),
        });
        let shared = Arc::clone(&state);
        let accepting = tokio::spawn(async move {
            // Dropping the set ends the connections with the origin.
            let mut connections = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let state = Arc::clone(&shared);
                connections.spawn(async move { Connection::serve(state, stream).await });
                while connections.try_join_next().is_some() {}
            }
        });
        Self { addr, state, accepting }
    }

    pub(crate) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(crate) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    /// Every request, in the order its reading ended.
    pub(crate) fn requests(&self) -> Vec<Seen> {
        lock(&self.state.seen).clone()
    }

    /// How many requests a strict reader finds in all that was sent here.
    pub(crate) fn total(&self) -> usize {
        lock(&self.state.seen).len()
    }

    /// How many requests named this target (path and query).
    pub(crate) fn count(&self, target: &str) -> usize {
        lock(&self.state.counts).get(target).copied().unwrap_or(0)
    }

    pub(crate) fn last(&self) -> Seen {
        lock(&self.state.seen).last().cloned().expect("the origin was asked")
    }

    /// How many connections were ever opened.
    pub(crate) fn connections(&self) -> usize {
        lock(&self.state.raw).len()
    }

    /// How many connections are open now.
    pub(crate) fn open_connections(&self) -> usize {
        *lock(&self.state.open)
    }

    /// All bytes of all connections (the first 4 MiB of each).
    pub(crate) fn raw(&self) -> Vec<Vec<u8>> {
        lock(&self.state.raw).clone()
    }

    /// What a strict reader objected to.
    pub(crate) fn faults(&self) -> Vec<String> {
        lock(&self.state.faults).clone()
    }

    pub(crate) fn assert_strict(&self) {
        let faults = self.faults();
        assert!(faults.is_empty(), "the origin was sent {faults:#?}");
    }
}

struct Connection {
    id: usize,
    state: Arc<State>,
    reader: OwnedReadHalf,
    buffer: Vec<u8>,
}

enum Read {
    Done,
    /// The peer went away; not a fault by itself.
    Gone,
    Fault(String),
}

impl Connection {
    async fn serve(state: Arc<State>, stream: TcpStream) {
        let _ = stream.set_nodelay(true);
        let id = {
            let mut raw = lock(&state.raw);
            raw.push(Vec::new());
            raw.len() - 1
        };
        *lock(&state.open) += 1;
        let _open = CountDown(Arc::clone(&state));
        let (reader, mut writer) = stream.into_split();
        let mut connection = Self { id, state, reader, buffer: Vec::new() };
        loop {
            let (answer, method) = match connection.request().await {
                Ok(Some(answered)) => answered,
                Ok(None) => break,
                Err(fault) => {
                    lock(&connection.state.faults).push(format!("connection {id}: {fault}"));
                    let _ = writer
                        .write_all(b"HTTP/1.1 400 Not Strict\r\nContent-Length: 0\r\n\r\n")
                        .await;
                    break;
                }
            };
            let (steps, after) = answer.script(&method);
            if connection.perform(&mut writer, steps).await.is_err() {
                break;
            }
            match after {
                After::KeepAlive => {}
                After::Close => {
                    let _ = writer.shutdown().await;
                    // A close with unread bytes would be a reset; take what is still on its way.
                    let lingering = async { while connection.fill().await {} };
                    let _ = tokio::time::timeout(Duration::from_secs(1), lingering).await;
                    break;
                }
                After::Reset => {
                    if let Ok(stream) = connection.reader.reunite(writer) {
                        let _ = socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO));
                    }
                    break;
                }
                After::Hang => {
                    // Until the peer gives up.
                    while connection.fill().await {}
                    break;
                }
                After::Echo => {
                    loop {
                        let bytes = std::mem::take(&mut connection.buffer);
                        if writer.write_all(&bytes).await.is_err() || !connection.fill().await {
                            break;
                        }
                    }
                    break;
                }
            }
        }
    }

    /// Reads one request and asks the script; `None` at the end of the connection.
    async fn request(&mut self) -> Result<Option<(Answer, String)>, String> {
        let end = loop {
            if let Some(end) = http::head_end(&self.buffer) {
                break end;
            }
            if self.buffer.len() > 1 << 20 {
                return Err("a head of more than 1 MiB".to_owned());
            }
            if !self.fill().await {
                // An idle connection that ends is fine, a head cut short is the client's doing.
                return Ok(None);
            }
        };
        let head_bytes: Vec<u8> = self.buffer.drain(..end).collect();
        let head = http::parse_head(&head_bytes)?;
        if let Some(answer) = self.state.early.as_ref().and_then(|early| early(&head)) {
            self.record(&head, Vec::new(), 0);
            return Ok(Some((answer, head.method)));
        }
        let mut body = Vec::new();
        let mut length = 0;
        let read = match head.framing {
            Framing::None => Read::Done,
            Framing::Length(n) => self.take(n, &mut body, &mut length).await,
            Framing::Chunked => self.chunks(&mut body, &mut length).await,
        };
        match read {
            Read::Done => {}
            Read::Gone => return Ok(None),
            Read::Fault(fault) => return Err(fault),
        }
        let upgrade = http::header(&head.headers, "upgrade").is_some();
        if !self.buffer.is_empty() && !upgrade {
            // The gateway never pipelines: more bytes before the answer are a smuggled request.
            let more = http::latin1(&self.buffer[..self.buffer.len().min(200)]);
            lock(&self.state.faults).push(format!("bytes before the answer: {more:?}"));
        }
        let seen = self.record(&head, body, length);
        Ok(Some(((self.state.handler)(&seen), head.method)))
    }

    fn record(&self, head: &Head, body: Vec<u8>, body_length: u64) -> Seen {
        let nth = {
            let mut counts = lock(&self.state.counts);
            let count = counts.entry(head.target.clone()).or_default();
            *count += 1;
            *count
        };
        let seen = Seen {
            method: head.method.clone(),
            target: head.target.clone(),
            headers: head.headers.clone(),
            chunked: head.framing == Framing::Chunked,
            body,
            body_length,
            nth,
        };
        lock(&self.state.seen).push(seen.clone());
        seen
    }

    async fn take(&mut self, count: u64, body: &mut Vec<u8>, length: &mut u64) -> Read {
        let mut missing = count;
        while missing > 0 {
            if self.buffer.is_empty() && !self.fill().await {
                return Read::Gone;
            }
            let now = self.buffer.len().min(usize::try_from(missing).unwrap_or(usize::MAX));
            let room = KEPT.saturating_sub(body.len()).min(now);
            body.extend_from_slice(&self.buffer[..room]);
            self.buffer.drain(..now);
            missing -= now as u64;
            *length += now as u64;
        }
        Read::Done
    }

    async fn chunks(&mut self, body: &mut Vec<u8>, length: &mut u64) -> Read {
        loop {
            let Some(line) = self.line().await else { return Read::Gone };
            let size = match http::chunk_size(&line) {
                Ok(size) => size,
                Err(fault) => return Read::Fault(fault),
            };
            if size == 0 {
                let mut text = String::new();
                loop {
                    match self.line().await {
                        None => return Read::Gone,
                        Some(line) if line.is_empty() => break,
                        Some(line) => text = text + &line + "\r\n",
                    }
                }
                return match http::trailers(&text) {
                    Ok(_) => Read::Done,
                    Err(fault) => Read::Fault(fault),
                };
            }
            match self.take(size, body, length).await {
                Read::Done => {}
                other => return other,
            }
            match self.line().await {
                None => return Read::Gone,
                Some(line) if line.is_empty() => {}
                Some(line) => return Read::Fault(format!("{line:?} after a chunk")),
            }
        }
    }

    /// One line ended by CR LF. A bare LF stays in it, where the parsers refuse it.
    async fn line(&mut self) -> Option<String> {
        loop {
            if let Some(end) = self.buffer.windows(2).position(|w| w == b"\r\n") {
                let line: Vec<u8> = self.buffer.drain(..end + 2).collect();
                return Some(http::latin1(&line[..end]));
            }
            if !self.fill().await {
                return None;
            }
        }
    }

    async fn perform(&mut self, writer: &mut OwnedWriteHalf, steps: Vec<Step>) -> io::Result<()> {
        for step in steps {
            match step {
                Step::Send(bytes) => writer.write_all(&bytes).await?,
                Step::Repeat(bytes, times) => {
                    for _ in 0..times {
                        writer.write_all(&bytes).await?;
                    }
                }
                Step::Wait(time) => self.unless_gone(tokio::time::sleep(time)).await?,
                Step::Until(gate) => self.unless_gone(gate.pass()).await?,
            }
        }
        writer.flush().await
    }

    /// Waits, but not for somebody who has left.
    async fn unless_gone(&mut self, wait: impl Future<Output = ()>) -> io::Result<()> {
        tokio::select! {
            () = wait => Ok(()),
            () = async { while self.fill().await {} } => Err(io::ErrorKind::ConnectionAborted.into()),
        }
    }

    /// Reads and records more bytes; `false` at the end.
    async fn fill(&mut self) -> bool {
        self.buffer.reserve(64 << 10);
        let before = self.buffer.len();
        match self.reader.read_buf(&mut self.buffer).await {
            Ok(n) if n > 0 => {
                let mut raw = lock(&self.state.raw);
                let kept = &mut raw[self.id];
                let room = KEPT.saturating_sub(kept.len()).min(n);
                kept.extend_from_slice(&self.buffer[before..before + room]);
                true
            }
            _ => false,
        }
    }
}

/// Counts an ended connection however its task ended.
struct CountDown(Arc<State>);

impl Drop for CountDown {
    fn drop(&mut self) {
        *lock(&self.0.open) -= 1;
    }
}
