//! Sends a request to one of an upstream's targets, and again to another where that is safe.

use std::{rc::Rc, sync::Arc, time::Duration};

use actix_http::{
    Method, Payload, StatusCode,
    header::{HeaderMap, HeaderValue},
};
use bytes::Bytes;
use rustls::ClientConfig;

use super::{
    body::{InboundBody, Release},
    clock::now_ms,
    connection::Connection,
    error::UpstreamError,
    exchange::{Sending, exchange},
    pool::Pool,
    upstream::{Lease, UpstreamState},
    wire::{self, Asked, Head, RequestParts, Send},
};
use crate::problem::Problem as _;

/// A request that cannot be sent twice goes out only over a connection that was used this recently,
/// as older ones may be closing (Node closes them after 5 s).
const SURELY_OPEN: Duration = Duration::from_secs(3);

/// Sends requests upstream. One for each worker, as it and all it hands out stay on its thread.
pub struct Client {
    pool: Rc<Pool>,
    tls: Arc<ClientConfig>,
}

/// A request to an upstream.
pub struct Outbound {
    pub method: Method,
    /// In origin form; the target's own path is put before it.
    pub path_and_query: Bytes,
    /// End-to-end fields. A `Host` among them wins over the target's own authority.
    pub headers: HeaderMap,
    pub body: OutboundBody,
    /// Whether it may be sent more than once. Safe and idempotent methods without a body only are.
    pub replayable: bool,
}

/// The body of an [`Outbound`].
pub enum OutboundBody {
    Empty,
    Stream {
        payload: Payload,
        /// `None`: sent in chunks.
        length: Option<u64>,
    },
}

/// An upstream's response.
#[derive(Debug)]
pub struct Inbound {
    pub status: StatusCode,
    /// End-to-end fields. At most one `Content-Length`, which is a number.
    pub headers: HeaderMap,
    pub body: InboundBody,
    /// The URL of the target that answered.
    pub target: Arc<str>,
}

/// What stays the same over all attempts of a request.
struct Call<'c> {
    upstream: &'c Arc<UpstreamState>,
    method: &'c Method,
    path_and_query: &'c [u8],
    headers: &'c HeaderMap,
    replayable: bool,
}

impl Client {
    /// Must be called on the worker's thread, within its runtime.
    pub fn new(tls: Arc<ClientConfig>) -> Rc<Self> {
        let pool = Rc::new(Pool::default());
        actix_rt::spawn(Pool::sweep_regularly(Rc::downgrade(&pool)));
        Rc::new(Self { pool, tls })
    }

    /// Sends `request` to a target of `upstream` and waits for the head of the response.
    pub async fn send(
        &self,
        upstream: &Arc<UpstreamState>,
        request: Outbound,
    ) -> Result<Inbound, UpstreamError> {
        let Outbound { method, path_and_query, headers, body, replayable } = request;
        check(&method, &path_and_query)?;
        let (mut payload, framing) = match body {
            OutboundBody::Empty | OutboundBody::Stream { length: Some(0), .. } => {
                (None, Send::Nothing)
            }
            OutboundBody::Stream { payload, length: Some(length) } => {
                (Some(payload), Send::Length(length))
            }
            OutboundBody::Stream { payload, length: None } => (Some(payload), Send::Chunked),
        };
        let call = Call {
            upstream,
            method: &method,
            path_and_query: &path_and_query,
            headers: &headers,
            replayable: replayable && payload.is_none() && is_idempotent(&method),
        };
        let retry = &upstream.settings.retry;
        upstream.budget.earn();
        let mut lease = upstream.pick(now_ms(), &path_and_query, &[])?;
        let mut tried = Vec::new();
        loop {
            let index = lease.index;
            let outcome = self.attempt(&call, lease, &mut payload, framing).await;
            let wanted = match &outcome {
                Ok(inbound) => retry.on_status.contains(&inbound.status.as_u16()),
                Err(error) if error.is_connect() => retry.on_connect,
                Err(error) => {
                    error.blames_target()
                        && retry.on_status.contains(&error.code().status().as_u16())
                }
            };
            tried.push(index);
            // Where no connection came about nothing was sent, so any request may move on.
            let unsent = outcome.as_ref().is_err_and(UpstreamError::is_connect);
            let repeatable = call.replayable || unsent;
            if !(wanted && repeatable && tried.len() < retry.attempts as usize) {
                return outcome;
            }
            let now = now_ms();
            // With nobody left to ask, this answer is the best there is.
            let Ok(next) = upstream.pick(now, &path_and_query, &tried) else { return outcome };
            // A request that was never sent adds no load.
            if !unsent && !upstream.budget.spend(now) {
                return outcome;
            }
            next.target.retried();
            lease = next;
        }
    }

    /// Sends a request to the target of `lease`.
    async fn attempt(
        &self,
        call: &Call<'_>,
        mut lease: Lease,
        payload: &mut Option<Payload>,
        framing: Send,
    ) -> Result<Inbound, UpstreamError> {
        let settings = &call.upstream.settings;
        let asked = Asked { head: *call.method == Method::HEAD, upgrade: false };
        let youngest_within = if call.replayable { Duration::MAX } else { SURELY_OPEN };
        let mut pooled = self.pool.take(lease.target.id, youngest_within);
        let outcome = loop {
            let reused = pooled.is_some();
            let mut connection = match pooled.take() {
                Some(connection) => connection,
                None => match self.open(&lease, settings.timeout.connect).await {
                    Ok(connection) => connection,
                    Err(error) => break Err(error),
                },
            };
            write_request(&mut connection, &lease, call, framing, None);
            let mut sending = Some(Sending::new(payload.take(), framing, settings.timeout.idle));
            match exchange(&mut connection, &mut sending, &settings.timeout, asked).await {
                // It was closed while it was idle, and a new one may well work. `pooled` is empty
                // now, so this happens once.
                Err(UpstreamError::Closed(_))
                    if reused && call.replayable && connection.is_untouched() => {}
                Err(error) => break Err(error),
                Ok(head) => break Ok((connection, head, sending)),
            }
        };
        match outcome {
            Ok((connection, head, sending)) => {
                let status = head.status.as_u16();
                let complains = status >= 500 && settings.retry.on_status.contains(&status);
                // A status is an answer. Leaving the target alone for it helps only where another
                // can answer instead.
                if complains && call.upstream.has_choice() {
                    lease.failed();
                } else {
                    lease.succeeded();
                }
                Ok(self.inbound(connection, head, sending, lease, settings.timeout.idle))
            }
            Err(error) => {
                if error.blames_target() {
                    lease.failed();
                }
                Err(error)
            }
        }
    }

    pub(super) async fn open(
        &self,
        lease: &Lease,
        limit: Duration,
    ) -> Result<Connection, UpstreamError> {
        // Boxed: it is large, and nearly every request finds an open connection.
        Box::pin(Connection::open(&lease.target, &self.tls, limit)).await
    }

    pub(super) fn inbound(
        &self,
        connection: Connection,
        mut head: Head,
        sending: Option<Sending>,
        lease: Lease,
        idle: Duration,
    ) -> Inbound {
        let headers = std::mem::take(&mut head.headers);
        let target = lease.target.url.clone();
        let release = Release {
            pool: self.pool.clone(),
            lease,
            keep_alive: head.keep_alive,
            keep_alive_secs: head.keep_alive_secs,
        };
        let status = head.status;
        let body = InboundBody::new(connection, &head, sending, release, idle);
        Inbound { status, headers, body, target }
    }
}

fn write_request(
    connection: &mut Connection,
    lease: &Lease,
    call: &Call<'_>,
    send: Send,
    upgrade: Option<&HeaderValue>,
) {
    let parts = RequestParts {
        method: call.method,
        base: &lease.target.base,
        path_and_query: call.path_and_query,
        host: &lease.target.authority,
        headers: call.headers,
        send,
        upgrade,
    };
    wire::write_head(&mut connection.write, &parts);
}

/// Refuses what cannot be forwarded.
pub(super) fn check(method: &Method, path_and_query: &[u8]) -> Result<(), UpstreamError> {
    if *method == Method::CONNECT {
        return Err(UpstreamError::Unsendable("CONNECT is for proxies"));
    }
    if !wire::is_sendable_target(path_and_query) {
        return Err(UpstreamError::Unsendable("the target is not in origin form"));
    }
    Ok(())
}

/// RFC 9110 section 9.2.2.
fn is_idempotent(method: &Method) -> bool {
    matches!(
        *method,
        Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE | Method::PUT | Method::DELETE
    )
}
