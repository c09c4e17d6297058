//! One connection to a target: its socket, its buffers and its timer.
//!
//! A connection belongs to the request that uses it, so dropping that request closes it; there is
//! no task and no channel between them. That is what keeps a pass-through at one write, one wait
//! and one read.

use std::{
    io,
    net::SocketAddr,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, Waker, ready},
    time::Duration,
};

use bytes::{Buf, Bytes, BytesMut};
use rustls::ClientConfig;
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf},
    net::TcpStream,
    time::{Instant, Sleep, sleep_until, timeout},
};
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{
    error::UpstreamError,
    upstream::Target,
    wire::{self, Asked, Head},
};

/// What is read at once, at first and at most: it grows while reads fill it.
const SMALL_READ: usize = 8 * 1024;
const LARGE_READ: usize = 64 * 1024;

/// Interim responses that may come before the final one.
const MAX_INTERIM: u32 = 16;

/// A plain or TLS socket.
#[derive(Debug)]
pub(super) enum Io {
    Plain(TcpStream),
    Tls(Box<TlsStream<TcpStream>>),
}

#[derive(Debug)]
pub(super) struct Connection {
    pub io: Io,
    pub read: BytesMut,
    pub write: BytesMut,
    timer: Timer,
    /// How much of `read` was searched for the end of a header section.
    seen: usize,
    interim: u32,
    read_size: usize,
}

impl Connection {
    /// Opens a connection to `target`, TLS included, within `limit`.
    pub(super) async fn open(
        target: &Target,
        tls: &Arc<ClientConfig>,
        limit: Duration,
    ) -> Result<Self, UpstreamError> {
        match timeout(limit, connect(target, tls, limit)).await {
            Ok(Ok(io)) => Ok(Self {
                io,
                read: BytesMut::new(),
                write: BytesMut::new(),
                timer: Timer(None),
                seen: 0,
                interim: 0,
                read_size: SMALL_READ,
            }),
            Ok(Err(error)) if error.kind() == io::ErrorKind::TimedOut => {
                Err(UpstreamError::ConnectTimeout(limit))
            }
            Ok(Err(error)) => Err(UpstreamError::unconnected(error)),
            Err(_) => Err(UpstreamError::ConnectTimeout(limit)),
        }
    }

    /// Reads more into `read`; 0 means that the upstream closed.
    pub(super) fn poll_fill(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        self.read.reserve(self.read_size);
        let n = ready!(pin!(self.io.read_buf(&mut self.read)).poll(cx))?;
        if n >= self.read_size {
            self.read_size = (self.read_size * 2).min(LARGE_READ);
        }
        Poll::Ready(Ok(n))
    }

    /// Writes what is in `write`.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while !self.write.is_empty() {
            let n = ready!(Pin::new(&mut self.io).poll_write(cx, &self.write))?;
            if n == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.write.advance(n);
        }
        // A plain socket has nothing to flush, TLS may hold records back.
        Pin::new(&mut self.io).poll_flush(cx)
    }

    /// Reads up to the end of the final response's head.
    pub(super) fn poll_head(
        &mut self,
        cx: &mut Context<'_>,
        asked: Asked,
    ) -> Poll<Result<Head, UpstreamError>> {
        loop {
            if !self.read.is_empty() {
                let end = wire::find_end(&self.read, self.seen).map_err(UpstreamError::Invalid)?;
                self.seen = self.read.len();
                if let Some(end) = end {
                    self.seen = 0;
                    // An allocation of its own, exactly as long: whoever keeps a header value then
                    // does not keep a read buffer alive.
                    let section = Bytes::copy_from_slice(&self.read[..end]);
                    self.read.advance(end);
                    let head = wire::parse(&section, asked).map_err(UpstreamError::Invalid)?;
                    match head {
                        Some(head) => return Poll::Ready(Ok(head)),
                        None if self.interim >= MAX_INTERIM => {
                            let error = "it sends interim responses without end";
                            return Poll::Ready(Err(UpstreamError::Invalid(error)));
                        }
                        None => self.interim += 1,
                    }
                    continue;
                }
            }
            match ready!(self.poll_fill(cx)) {
                Ok(0) if self.read.is_empty() => {
                    return Poll::Ready(Err(UpstreamError::Closed(None)));
                }
                Ok(0) => {
                    let error = "it ends within its header section";
                    return Poll::Ready(Err(UpstreamError::Invalid(error)));
                }
                Ok(_) => {}
                Err(error) => return Poll::Ready(Err(UpstreamError::Closed(Some(error)))),
            }
        }
    }

    /// Whether nothing has been read of a response yet, so that it can be asked for again.
    pub(super) fn is_untouched(&self) -> bool {
        self.read.is_empty() && self.interim == 0
    }

    /// Whether the connection is still open and silent, as an idle one has to be.
    pub(super) fn is_quiet(&mut self) -> bool {
        let mut byte = [0];
        let mut cx = Context::from_waker(Waker::noop());
        // Without an event from the socket this is no system call. Anything that comes unasked,
        // the end of the connection too, makes it useless.
        Pin::new(&mut self.io).poll_read(&mut cx, &mut ReadBuf::new(&mut byte)).is_pending()
    }

    /// Makes ready for the next exchange; a large buffer is not kept for an idle connection.
    pub(super) fn reset(&mut self) {
        self.interim = 0;
        self.seen = 0;
        self.read_size = SMALL_READ;
        if self.read.capacity() > 2 * SMALL_READ {
            self.read = BytesMut::new();
        }
        if self.write.capacity() > 2 * SMALL_READ {
            self.write = BytesMut::new();
        }
    }

    /// Takes `n` bytes off the front of `read`.
    pub(super) fn take(&mut self, n: usize) -> Bytes {
        // Handing out a part of the buffer keeps all of it alive, so a small part is copied.
        if n * 2 >= self.read.capacity() {
            return self.read.split_to(n).freeze();
        }
        let bytes = Bytes::copy_from_slice(&self.read[..n]);
        self.read.advance(n);
        bytes
    }

    /// Ready once `deadline` has passed.
    pub(super) fn poll_deadline(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        self.timer.poll(cx, deadline)
    }
}

/// A timer that is not moved each time its deadline is: it fires early and is then set anew.
///
/// Nearly no deadline is ever reached, and moving a timer takes a lock.
#[derive(Debug)]
pub(super) struct Timer(pub Option<Pin<Box<Sleep>>>);

impl Timer {
    pub(super) fn poll(&mut self, cx: &mut Context<'_>, deadline: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
        if sleep.deadline() > deadline {
            sleep.as_mut().reset(deadline);
        }
        loop {
            ready!(sleep.as_mut().poll(cx));
            if Instant::now() >= deadline {
                return Poll::Ready(());
            }
            sleep.as_mut().reset(deadline);
        }
    }
}

async fn connect(target: &Target, tls: &Arc<ClientConfig>, limit: Duration) -> io::Result<Io> {
    let name = target.server_name()?;
    let addresses: Vec<SocketAddr> =
        tokio::net::lookup_host((&*target.host, target.port)).await?.collect();
    let stream = connect_any(&addresses, limit).await?;
    // Heads and last pieces must not wait for more to come.
    stream.set_nodelay(true)?;
    Ok(match name {
        None => Io::Plain(stream),
        Some(name) => {
            Io::Tls(Box::new(TlsConnector::from(tls.clone()).connect(name, stream).await?))
        }
    })
}

/// Tries one address after the other; each gets an even share of the time that is left.
async fn connect_any(addresses: &[SocketAddr], limit: Duration) -> io::Result<TcpStream> {
    let end = Instant::now() + limit;
    let mut last = io::Error::new(io::ErrorKind::NotFound, "the host has no address");
    for (at, address) in addresses.iter().enumerate() {
        let share = end.saturating_duration_since(Instant::now()) / (addresses.len() - at) as u32;
        match timeout(share, TcpStream::connect(address)).await {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(_) => last = io::ErrorKind::TimedOut.into(),
        }
    }
    Err(last)
}

impl AsyncRead for Io {
    fn poll_read(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_read(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Io {
    fn poll_write(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_write(cx, buf),
            Self::Tls(io) => Pin::new(io).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_flush(cx),
            Self::Tls(io) => Pin::new(io).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Plain(io) => Pin::new(io).poll_shutdown(cx),
            Self::Tls(io) => Pin::new(io).poll_shutdown(cx),
        }
    }
}
