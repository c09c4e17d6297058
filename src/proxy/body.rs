//! A response's body on its way to the client.

use std::{
    pin::Pin,
    rc::Rc,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::body::{BodySize, MessageBody};
use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Instant;

use super::{
    chunked::{Chunked, Next},
    connection::Connection,
    error::UpstreamError,
    exchange::{SendFailure, Sending},
    pool::Pool,
    upstream::Lease,
    wire::{Framing, Head},
};

/// A response's body.
///
/// It ends with `None` only if it is complete; a body that was cut short ends with an error. One
/// that is dropped before its end takes its connection with it.
pub struct InboundBody(Inner);

enum Inner {
    /// There is none; what the client is told of its size depends on method and status.
    Empty(BodySize),
    /// It came together with the head.
    Full(Bytes),
    Streaming(Box<Streaming>),
    /// The error is given out at the next poll.
    Failed(UpstreamError),
    Ended,
}

struct Streaming {
    connection: Connection,
    reader: Reader,
    length: Option<u64>,
    /// The rest of the request, where the upstream answers before it has it all.
    sending: Option<Sending>,
    release: Release,
    idle: Duration,
    /// Since when the upstream is waited for. Time in which the client takes nothing does not count.
    waiting: Option<Instant>,
}

enum Reader {
    Length(u64),
    Chunked(Chunked),
    UntilClose,
}

/// What happens when the exchange is complete.
pub(super) struct Release {
    pub pool: Rc<Pool>,
    pub lease: Lease,
    pub keep_alive: bool,
    pub keep_alive_secs: Option<u64>,
}

impl Release {
    fn complete(self, connection: Connection, sent: bool) {
        self.lease.completed();
        // Bytes after the end of a response belong to nobody, so that connection is not used again.
        if self.keep_alive && sent && connection.read.is_empty() {
            self.pool.put(self.lease.target.id, connection, self.keep_alive_secs);
        }
    }
}

impl InboundBody {
    /// The body that follows `head` on `connection`.
    pub(super) fn new(
        mut connection: Connection,
        head: &Head,
        sending: Option<Sending>,
        release: Release,
        idle: Duration,
    ) -> Self {
        let reader = match head.framing {
            Framing::Empty => {
                release.complete(connection, sending.is_none());
                return Self(Inner::Empty(match (head.status.as_u16(), head.announced) {
                    // A 304 keeps the Content-Length among its fields, a 204 has none.
                    (101 | 204 | 304, _) | (_, None) => BodySize::None,
                    (_, Some(length)) => BodySize::Sized(length),
                }));
            }
            Framing::Length(length) => {
                // What is here already needs no stream; the connection is free at once.
                if length <= connection.read.len() as u64 {
                    let bytes = connection.take(length as usize);
                    release.complete(connection, sending.is_none());
                    return Self(Inner::Full(bytes));
                }
                Reader::Length(length)
            }
            Framing::Chunked => Reader::Chunked(Chunked::new()),
            Framing::UntilClose => Reader::UntilClose,
        };
        let length = match head.framing {
            Framing::Length(length) => Some(length),
            _ => None,
        };
        Self(Inner::Streaming(Box::new(Streaming {
            connection,
            reader,
            length,
            sending,
            release,
            idle,
            waiting: None,
        })))
    }

    /// How many bytes it has, if that is known before it is read.
    pub fn length(&self) -> Option<u64> {
        match &self.0 {
            Inner::Empty(_) | Inner::Ended => Some(0),
            Inner::Failed(_) => None,
            Inner::Full(bytes) => Some(bytes.len() as u64),
            Inner::Streaming(streaming) => streaming.length,
        }
    }

    /// All of it, if it has arrived already; otherwise the body itself.
    pub fn try_into_full(self) -> Result<Bytes, Self> {
        match self.0 {
            Inner::Empty(_) => Ok(Bytes::new()),
            Inner::Full(bytes) => Ok(bytes),
            Inner::Streaming(_) | Inner::Failed(_) | Inner::Ended => Err(self),
        }
    }
}

/// What a poll of a streaming body gave.
enum Piece {
    Data(Bytes),
    /// The last piece of a body of known length.
    Last(Bytes),
    End,
}

impl Streaming {
    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<Result<Piece, UpstreamError>> {
        if let Some(sending) = &mut self.sending {
            match sending.poll(cx, &mut self.connection) {
                Poll::Ready(Ok(())) => self.sending = None,
                // The upstream has answered and wants no more of the request: not an error.
                Poll::Ready(Err(SendFailure::Upstream(_))) => {
                    self.sending = None;
                    self.release.keep_alive = false;
                }
                Poll::Ready(Err(SendFailure::Client(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(SendFailure::Stalled)) => {
                    return Poll::Ready(Err(UpstreamError::Stalled(self.idle)));
                }
                Poll::Pending => {}
            }
        }
        loop {
            if let Some(piece) = self.buffered()? {
                self.waiting = None;
                return Poll::Ready(Ok(piece));
            }
            match self.connection.poll_fill(cx) {
                Poll::Ready(Ok(0)) => {
                    return Poll::Ready(match self.reader {
                        Reader::UntilClose => Ok(Piece::End),
                        _ => Err(UpstreamError::Truncated(None)),
                    });
                }
                Poll::Ready(Ok(_)) => {}
                Poll::Ready(Err(error)) => {
                    return Poll::Ready(Err(UpstreamError::Truncated(Some(error))));
                }
                // While the request is still being sent, that has a deadline of its own.
                Poll::Pending if self.sending.is_some() => return Poll::Pending,
                Poll::Pending => {
                    let since = *self.waiting.get_or_insert_with(Instant::now);
                    ready!(self.connection.poll_deadline(cx, since + self.idle));
                    return Poll::Ready(Err(UpstreamError::Stalled(self.idle)));
                }
            }
        }
    }

    /// What can be had without reading more.
    fn buffered(&mut self) -> Result<Option<Piece>, UpstreamError> {
        let connection = &mut self.connection;
        match &mut self.reader {
            Reader::Length(left) => {
                let here = (*left).min(connection.read.len() as u64);
                *left -= here;
                Ok(match (here, *left) {
                    (0, _) => None,
                    (_, 0) => Some(Piece::Last(connection.take(here as usize))),
                    _ => Some(Piece::Data(connection.take(here as usize))),
                })
            }
            Reader::Chunked(chunked) => {
                match chunked.next(&mut connection.read).map_err(UpstreamError::Invalid)? {
                    Next::Data(n) => Ok(Some(Piece::Data(connection.take(n)))),
                    Next::End => Ok(Some(Piece::End)),
                    Next::More => Ok(None),
                }
            }
            Reader::UntilClose if connection.read.is_empty() => Ok(None),
            Reader::UntilClose => {
                let n = connection.read.len();
                Ok(Some(Piece::Data(connection.take(n))))
            }
        }
    }
}

impl Stream for InboundBody {
    type Item = Result<Bytes, UpstreamError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let piece = match &mut self.0 {
            Inner::Streaming(streaming) => ready!(streaming.poll_piece(cx)),
            Inner::Empty(_) | Inner::Ended => return Poll::Ready(None),
            Inner::Full(_) | Inner::Failed(_) => {
                return Poll::Ready(match std::mem::replace(&mut self.0, Inner::Ended) {
                    Inner::Full(bytes) => Some(Ok(bytes)),
                    Inner::Failed(error) => Some(Err(error)),
                    _ => None,
                });
            }
        };
        if let Ok(Piece::Data(bytes)) = piece {
            return Poll::Ready(Some(Ok(bytes)));
        }
        let Inner::Streaming(streaming) = std::mem::replace(&mut self.0, Inner::Ended) else {
            return Poll::Ready(None);
        };
        let Streaming { connection, mut release, sending, .. } = *streaming;
        Poll::Ready(match piece {
            Ok(Piece::Data(bytes)) => Some(Ok(bytes)),
            Ok(Piece::Last(bytes)) => {
                release.complete(connection, sending.is_none());
                Some(Ok(bytes))
            }
            Ok(Piece::End) => {
                release.complete(connection, sending.is_none());
                None
            }
            Err(error) => {
                if error.blames_target() {
                    release.lease.failed();
                }
                // The server closes at an error without writing out what it has buffered, and the
                // client would see an empty answer, which invites it to repeat the request. One
                // more turn lets the server write first, so that the client sees the cut.
                self.0 = Inner::Failed(error);
                cx.waker().wake_by_ref();
                return Poll::Pending;
            }
        })
    }
}

impl MessageBody for InboundBody {
    type Error = UpstreamError;

    fn size(&self) -> BodySize {
        match &self.0 {
            Inner::Empty(size) => *size,
            _ => self.length().map_or(BodySize::Stream, BodySize::Sized),
        }
    }

    fn poll_next(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        Stream::poll_next(self, cx)
    }

    fn try_into_bytes(self) -> Result<Bytes, Self> {
        match self.0 {
            // The answer to HEAD announces bytes that never come; as bytes it would announce none.
            Inner::Empty(BodySize::Sized(1..)) => Err(self),
            _ => self.try_into_full(),
        }
    }
}

impl std::fmt::Debug for InboundBody {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("InboundBody").field("length", &self.length()).finish_non_exhaustive()
    }
}
