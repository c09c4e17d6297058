//! Stands between the socket and actix and lets through only requests that read one way.
//!
//! actix's HTTP/1 parser is lenient where a gateway must not be: it takes bare line feeds, folded
//! or repeated fields, odd chunk sizes, a `Host` that contradicts the target. Whatever it and an
//! upstream could read differently is a way to smuggle a request, so [`FrontDoor`] reads the raw
//! bytes first: it judges each head, follows each body to its end, and passes on nothing it has
//! not judged. It also keeps the time: heads, bodies and silence have their limits.
//!
//! A request that is refused is replaced by one that [`refusal`] recognises, so that the answer
//! comes from the pipeline, after the responses before it; what follows on that connection is
//! thrown away. If the fault is in a body whose head was passed on, the payload fails
//! ([`Connection::guard`]) and [`Connection::body_fault`] says why.
//!
//! On the way of a cache hit this costs one pass over the head: bytes are read straight into
//! actix's buffer and judged there, and one coarse timer per connection is touched only by the
//! clock.

mod chunks;
mod connection;
mod head;
mod pace;
mod refusal;
mod syntax;
mod watch;

#[cfg(test)]
mod corpus;
#[cfg(test)]
mod properties;
#[cfg(test)]
mod timing;

use std::{
    io,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{Buf, BytesMut};
use tokio::{
    io::{AsyncRead, AsyncWrite, ReadBuf},
    time::{Instant, Sleep},
};

pub use self::connection::{Connection, Exchange};
pub use self::refusal::refusal;
use self::{
    pace::{Pace, Phase},
    watch::{Stage, Watch},
};
use crate::problem::Code;

/// How long a connection that is being closed is still read from, so that the last response is not
/// lost to a reset (RFC 9112 section 9.6), and how much of it.
const LINGER: Duration = Duration::from_secs(1);
const LINGER_BYTES: usize = 1024 * 1024;

/// What a client may send, and how slowly.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// All header lines of a request together; more is answered 431.
    pub header_bytes: usize,
    /// Header lines of a request; more is answered 431. actix cannot parse more than 96.
    pub header_count: usize,
    /// The request target; a longer one is answered 414.
    pub target_bytes: usize,
    /// From the first byte of a head to its last; later is answered 408.
    pub header_timeout: Duration,
    /// Silence between two requests, or a response that is not taken: the connection is closed.
    pub idle_timeout: Duration,
    /// The least bytes a second of a body, measured over `body_window` of waiting for the client.
    pub body_rate: u64,
    pub body_window: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            header_bytes: 64 * 1024,
            header_count: 96,
            target_bytes: 16 * 1024,
            header_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(75),
            body_rate: 500,
            body_window: Duration::from_secs(10),
        }
    }
}

/// An HTTP/1 connection whose reader sees only well-formed requests.
///
/// Writing passes straight through.
#[derive(Debug)]
pub struct FrontDoor<IO> {
    io: IO,
    limits: Limits,
    /// Bytes that were read and not passed on; the first `cleared` of them may be.
    staged: BytesMut,
    cleared: usize,
    /// Whether `staged` waits for the response to an earlier request.
    held: bool,
    watch: Watch,
    pace: Pace,
    closing: Closing,
}

#[derive(Debug, Default)]
struct Closing {
    write_closed: bool,
    discarded: usize,
    timer: Option<Pin<Box<Sleep>>>,
}

impl<IO> FrontDoor<IO> {
    /// Guards `io`; `secure` says that it is TLS, which decides the scheme that requests name.
    pub fn new(io: IO, limits: Limits, secure: bool) -> Self {
        Self {
            io,
            limits,
            staged: BytesMut::new(),
            cleared: 0,
            held: false,
            watch: Watch::new(secure),
            pace: Pace::new(Instant::now()),
            closing: Closing::default(),
        }
    }

    /// The pipeline's side of this connection. Once it is taken, each request must be reported
    /// with [`Connection::begin`]: the next one is held back until then.
    pub fn connection(&self) -> Connection {
        self.watch.shared.attached.set(true);
        Connection(self.watch.shared.clone())
    }

    /// Judges what is staged and remembers whether it has to wait.
    fn judge_staged(&mut self) {
        self.cleared = self.watch.follow(&self.staged, &self.limits, &mut self.pace);
        self.keep_or_drop_rest();
    }

    fn keep_or_drop_rest(&mut self) {
        if self.watch.has_ended() {
            self.staged.truncate(self.cleared);
        }
        self.held = self.staged.len() > self.cleared && self.watch.must_wait();
    }

    /// Takes in what lies in `buf` from `start` on, and leaves there what may be passed on.
    fn judge_read(&mut self, buf: &mut ReadBuf<'_>, start: usize) {
        if self.staged.is_empty() {
            let read = &buf.filled()[start..];
            let cleared = self.watch.follow(read, &self.limits, &mut self.pace);
            self.staged.extend_from_slice(&read[cleared..]);
            self.keep_or_drop_rest();
            buf.set_filled(start + cleared);
        } else {
            self.staged.extend_from_slice(&buf.filled()[start..]);
            buf.set_filled(start);
            self.judge_staged();
        }
    }

    /// What the connection waits for while the socket has nothing.
    fn phase(&self) -> Phase {
        match self.watch.stage {
            Stage::Length(_) | Stage::Chunks(_) => Phase::Body,
            Stage::Head(_) if !self.staged.is_empty() => Phase::Head,
            _ if self.watch.shared.is_busy() => Phase::Busy,
            _ => Phase::Idle,
        }
    }

    /// Whether a peer may still be sending what nobody will read.
    fn has_unread_input(&self) -> bool {
        match self.watch.stage {
            Stage::Length(_) | Stage::Chunks(_) | Stage::Refused(_) | Stage::Closing => true,
            Stage::Ended => self.watch.shared.fault().is_some(),
            Stage::Head(_) | Stage::Tunnel => !self.staged.is_empty(),
        }
    }
}

impl<IO: AsyncRead + Unpin> AsyncRead for FrontDoor<IO> {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        loop {
            if this.cleared > 0 {
                let passed = this.cleared.min(buf.remaining());
                buf.put_slice(&this.staged[..passed]);
                this.staged.advance(passed);
                this.cleared -= passed;
                if this.staged.is_empty() {
                    // An idle connection holds no buffer.
                    this.staged = BytesMut::new();
                }
                return Poll::Ready(Ok(()));
            }
            match &mut this.watch.stage {
                Stage::Head(_) | Stage::Length(_) | Stage::Chunks(_) | Stage::Closing => {}
                Stage::Tunnel => return Pin::new(&mut this.io).poll_read(cx, buf),
                Stage::Refused(code) => match code.take() {
                    Some(code) => {
                        this.staged = BytesMut::from(refusal::request(code).as_bytes());
                        this.cleared = this.staged.len();
                        continue;
                    }
                    // That request asks to close; nothing comes after it.
                    None => return Poll::Pending,
                },
                // At the end of its input actix would drop the request that has to be answered.
                Stage::Ended
                    if this.watch.shared.fault().is_some() && this.watch.shared.is_busy() =>
                {
                    this.watch.shared.wake_when_answered(cx.waker());
                    return Poll::Pending;
                }
                Stage::Ended => return Poll::Ready(Ok(())),
            }
            if this.held {
                if this.watch.must_wait() {
                    this.watch.shared.wake_when_answered(cx.waker());
                    return Poll::Pending;
                }
                this.judge_staged();
                if this.cleared > 0 || this.watch.has_ended() {
                    continue;
                }
            }

            let start = buf.filled().len();
            if Pin::new(&mut this.io).poll_read(cx, buf)?.is_pending() {
                let phase = this.phase();
                ready!(this.pace.poll_late(cx, &this.limits, phase));
                match phase {
                    Phase::Head => this.watch.refuse(Code::RequestTimeout),
                    Phase::Body => this.watch.end(Some(Code::RequestTimeout)),
                    // Nobody takes the response: drop it, and what produces it.
                    Phase::Idle | Phase::Busy if this.pace.is_blocked() => {
                        return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
                    }
                    Phase::Idle | Phase::Busy => this.watch.end(None),
                }
                this.staged.clear();
                continue;
            }
            let read = buf.filled().len() - start;
            if read == 0 {
                if buf.remaining() > 0 {
                    // A head that was broken off is not answered: nobody waits for that.
                    let in_body = this.phase() == Phase::Body;
                    this.watch.end(in_body.then_some(Code::MalformedRequest));
                    this.staged.clear();
                    if in_body {
                        continue;
                    }
                }
                return Poll::Ready(Ok(()));
            }
            if this.pace.bytes_read(read, &this.limits) {
                buf.set_filled(start);
                this.watch.end(Some(Code::RequestTimeout));
                continue;
            }
            this.judge_read(buf, start);
            if buf.filled().len() > start {
                return Poll::Ready(Ok(()));
            }
        }
    }
}

impl<IO: AsyncRead + AsyncWrite + Unpin> AsyncWrite for FrontDoor<IO> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write(cx, buf);
        self.pace.written(written.is_pending());
        written
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Closes the writing side, then reads on for a moment if the peer may still be sending:
    /// closing a socket with unread input resets it, and the peer may lose the last response.
    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let closing = &mut this.closing;
        if !closing.write_closed {
            ready!(Pin::new(&mut this.io).poll_shutdown(cx))?;
            closing.write_closed = true;
        }
        if !this.has_unread_input() {
            return Poll::Ready(Ok(()));
        }
        let closing = &mut this.closing;
        let timer = closing.timer.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        while timer.as_mut().poll(cx).is_pending() && closing.discarded < LINGER_BYTES {
            let mut scratch = [std::mem::MaybeUninit::uninit(); 4096];
            let mut scratch = ReadBuf::uninit(&mut scratch);
            match ready!(Pin::new(&mut this.io).poll_read(cx, &mut scratch)) {
                Ok(()) if !scratch.filled().is_empty() => {
                    closing.discarded += scratch.filled().len();
                }
                // The peer is gone: there is nobody left to lose anything.
                Ok(()) | Err(_) => break,
            }
        }
        Poll::Ready(Ok(()))
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.io).poll_write_vectored(cx, bufs);
        self.pace.written(written.is_pending());
        written
    }

    fn is_write_vectored(&self) -> bool {
        self.io.is_write_vectored()
    }
}
