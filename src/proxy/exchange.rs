//! Sends one request over one connection and waits for the head of its response.

use std::{
    future::poll_fn,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use actix_http::{Payload, error::PayloadError};
use bytes::BytesMut;
use futures_util::Stream as _;
use tokio::time::Instant;

use super::{
    connection::Connection,
    error::UpstreamError,
    wire::{Asked, Head, Send},
};
use crate::routes::Timeouts;

/// A body is read from the client only while less than this waits for the upstream.
const WRITE_AHEAD: usize = 32 * 1024;

/// The part of a request that is not written yet.
pub(super) struct Sending {
    payload: Option<Payload>,
    framing: Send,
    /// Whether the client's body is at its end, so that only the buffer is left.
    read: bool,
    /// Since when either side is waited for.
    waiting: Option<Instant>,
    idle: Duration,
}

/// Why sending ended early.
pub(super) enum SendFailure {
    /// The upstream takes no more. It may have answered all the same.
    Upstream(std::io::Error),
    /// The client's side is at fault.
    Client(UpstreamError),
    /// The upstream has taken nothing for too long.
    Stalled,
}

impl Sending {
    pub(super) fn new(payload: Option<Payload>, framing: Send, idle: Duration) -> Self {
        let read = payload.is_none();
        Self { payload, framing, read, waiting: None, idle }
    }

    /// Moves the body from the client to the upstream, as far as both go.
    pub(super) fn poll(
        &mut self,
        cx: &mut Context<'_>,
        connection: &mut Connection,
    ) -> Poll<Result<(), SendFailure>> {
        loop {
            while !self.read && connection.write.len() < WRITE_AHEAD {
                match self.poll_body(cx, &mut connection.write) {
                    Poll::Ready(Ok(())) => self.waiting = None,
                    Poll::Ready(Err(error)) => return Poll::Ready(Err(SendFailure::Client(error))),
                    Poll::Pending => break,
                }
            }
            let before = connection.write.len();
            let flushed = connection.poll_flush(cx).map_err(SendFailure::Upstream)?;
            if connection.write.len() < before {
                self.waiting = None;
            }
            if flushed.is_ready() && self.read {
                return Poll::Ready(Ok(()));
            }
            // With the buffer full the body was not asked and would wake nobody: ask again.
            if flushed.is_ready() && before >= WRITE_AHEAD {
                continue;
            }
            let since = *self.waiting.get_or_insert_with(Instant::now);
            ready!(connection.poll_deadline(cx, since + self.idle));
            return Poll::Ready(Err(if flushed.is_pending() {
                SendFailure::Stalled
            } else {
                SendFailure::Client(UpstreamError::RequestStalled(self.idle))
            }));
        }
    }

    /// Reads one piece of the client's body into `out`.
    fn poll_body(
        &mut self,
        cx: &mut Context<'_>,
        out: &mut BytesMut,
    ) -> Poll<Result<(), UpstreamError>> {
        let Some(payload) = &mut self.payload else {
            self.read = true;
            return Poll::Ready(Ok(()));
        };
        let incomplete = || UpstreamError::RequestBody(PayloadError::Incomplete(None));
        let piece = ready!(Pin::new(&mut *payload).poll_next(cx))
            .transpose()
            .map_err(UpstreamError::RequestBody)?;
        match (piece, &mut self.framing) {
            (Some(piece), Send::Length(left)) => {
                // More or less than was announced would shift where the next request begins.
                *left = left.checked_sub(piece.len() as u64).ok_or_else(incomplete)?;
                out.extend_from_slice(&piece);
                if *left > 0 {
                    return Poll::Ready(Ok(()));
                }
                // The last byte is here, and the end of the payload normally with it. Seeing that
                // tells the client's side that its body was read to the end.
                if let Poll::Ready(Some(Ok(more))) = Pin::new(payload).poll_next(cx)
                    && !more.is_empty()
                {
                    return Poll::Ready(Err(incomplete()));
                }
            }
            (Some(piece), Send::Chunked) => {
                // An empty chunk would end the body.
                if !piece.is_empty() {
                    out.extend_from_slice(format!("{:x}\r\n", piece.len()).as_bytes());
                    out.extend_from_slice(&piece);
                    out.extend_from_slice(b"\r\n");
                }
                return Poll::Ready(Ok(()));
            }
            (None, Send::Chunked) => out.extend_from_slice(b"0\r\n\r\n"),
            (None, Send::Length(1..)) => return Poll::Ready(Err(incomplete())),
            (_, Send::Nothing) | (None, Send::Length(0)) => {}
        }
        self.read = true;
        Poll::Ready(Ok(()))
    }
}

/// Sends what is in the write buffer and the body, and reads the response's head.
///
/// `sending` is `None` afterwards if the request was sent completely; an upstream may answer early.
pub(super) async fn exchange(
    connection: &mut Connection,
    sending: &mut Option<Sending>,
    timeouts: &Timeouts,
    asked: Asked,
) -> Result<Head, UpstreamError> {
    let mut broken = None;
    let mut deadline = None;
    poll_fn(|cx| {
        if let Some(send) = sending {
            match send.poll(cx, connection) {
                Poll::Ready(Ok(())) => *sending = None,
                Poll::Ready(Err(SendFailure::Upstream(error))) => {
                    *sending = None;
                    broken = Some(error);
                }
                Poll::Ready(Err(SendFailure::Client(error))) => return Poll::Ready(Err(error)),
                Poll::Ready(Err(SendFailure::Stalled)) => {
                    return Poll::Ready(Err(UpstreamError::Stalled(timeouts.idle)));
                }
                Poll::Pending => {}
            }
            if sending.is_none() {
                deadline = Some(Instant::now() + timeouts.first_byte);
            }
        }
        match connection.poll_head(cx, asked) {
            Poll::Ready(Ok(mut head)) => {
                head.keep_alive &= broken.is_none();
                return Poll::Ready(Ok(head));
            }
            Poll::Ready(Err(UpstreamError::Closed(error))) => {
                return Poll::Ready(Err(UpstreamError::Closed(error.or_else(|| broken.take()))));
            }
            Poll::Ready(Err(error)) => return Poll::Ready(Err(error)),
            Poll::Pending => {}
        }
        match deadline {
            Some(deadline) => connection
                .poll_deadline(cx, deadline)
                .map(|()| Err(UpstreamError::FirstByteTimeout(timeouts.first_byte))),
            None => Poll::Pending,
        }
    })
    .await
}
