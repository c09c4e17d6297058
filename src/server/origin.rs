//! An upstream, as the cache sees it: one request that can be sent, and sent again.

use std::{
    cell::{Cell, RefCell},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

use actix_http::{
    ConnectionType, Method, Payload, Response,
    body::{BodySize, BoxBody, MessageBody},
    error::PayloadError,
    header::{
        HeaderMap, IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE,
    },
};
use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, StreamExt as _, future::LocalBoxFuture};

use super::{front_door, observe::UpstreamPart, snapshot::Snapshot};
use crate::{
    cache::origin::{self as cached, Ask, Body, Failure, Origin},
    problem::{Code, Problem as _},
    proxy::{self, Client, Outbound, OutboundBody, Upgraded, UpstreamError, UpstreamState},
    routes::{Params, Route, Template},
};

/// What a request to an upstream is made of.
pub struct Parts {
    pub client: Rc<Client>,
    pub upstream: Arc<UpstreamState>,
    pub method: Method,
    /// After the target's own path.
    pub path_and_query: Bytes,
    /// Ready to be sent.
    pub headers: HeaderMap,
    pub payload: Payload,
    pub length: Option<u64>,
    pub snapshot: Arc<Snapshot>,
    pub index: usize,
    /// What the route's parameters are taken from.
    pub path: String,
    pub params: Params,
    pub exchange: Rc<UpstreamPart>,
}

/// One request to an upstream.
pub struct ProxyOrigin {
    parts: Parts,
    /// Taken by the one fetch.
    headers: RefCell<HeaderMap>,
    payload: RefCell<Option<Payload>>,
}

impl ProxyOrigin {
    pub fn new(mut parts: Parts) -> Self {
        let payload = match std::mem::replace(&mut parts.payload, Payload::None) {
            Payload::None => None,
            payload => Some(payload),
        };
        let headers = RefCell::new(std::mem::take(&mut parts.headers));
        Self { parts, headers, payload: RefCell::new(payload) }
    }

    fn route(&self) -> &Route {
        &self.parts.snapshot.table.routes[self.parts.index]
    }

    fn render(&self, templates: &[Template]) -> Vec<String> {
        templates.iter().map(|it| it.render(&self.parts.params, &self.parts.path)).collect()
    }

    fn outbound(&self, ask: Ask) -> Outbound {
        let mut headers = self.headers.take();
        if !matches!(ask, Ask::Verbatim) {
            for name in
                [IF_MATCH, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, IF_UNMODIFIED_SINCE, RANGE]
            {
                headers.remove(name);
            }
        }
        if let Ask::Validate(validators) = ask {
            for (name, value) in validators {
                headers.insert(name, value);
            }
        }
        let body = match self.payload.borrow_mut().take() {
            Some(payload) => OutboundBody::Stream { payload, length: self.parts.length },
            None => OutboundBody::Empty,
        };
        Outbound {
            method: self.parts.method.clone(),
            path_and_query: self.parts.path_and_query.clone(),
            headers,
            replayable: matches!(body, OutboundBody::Empty) && self.parts.method.is_idempotent(),
            body,
        }
    }

    /// Hands the connection over to the upstream (WebSocket).
    pub async fn tunnel(&self) -> Result<Response<BoxBody>, Failure> {
        let Parts { client, upstream, .. } = &self.parts;
        let payload = self.payload.borrow_mut().take().unwrap_or(Payload::None);
        let outbound = self.outbound(Ask::Verbatim);
        match proxy::tunnel(client, upstream, &outbound, payload).await.map_err(failure)? {
            Upgraded::Tunnel(response) => Ok(response),
            Upgraded::Declined(inbound) => {
                let mut response = Response::with_body(inbound.status, BoxBody::new(inbound.body));
                *response.headers_mut() = inbound.headers;
                proxy::headers::for_client(response.headers_mut(), &self.route().response);
                // What the client sent after its head was meant for a WebSocket.
                response.head_mut().set_connection_type(ConnectionType::Close);
                Ok(response)
            }
        }
    }
}

impl Origin for ProxyOrigin {
    fn fetch(&self, ask: Ask) -> LocalBoxFuture<'static, Result<cached::Response, Failure>> {
        let outbound = self.outbound(ask);
        let head_only = outbound.method == Method::HEAD;
        let (client, upstream) = (Rc::clone(&self.parts.client), Arc::clone(&self.parts.upstream));
        let (snapshot, index) = (Arc::clone(&self.parts.snapshot), self.parts.index);
        let part = Rc::clone(&self.parts.exchange);
        async move {
            let started = Instant::now();
            let result = client.send(&upstream, outbound).await;
            part.took.set(Some(started.elapsed()));
            let inbound = result.map_err(failure)?;
            part.target.set(Some(inbound.target));
            let mut headers = inbound.headers;
            proxy::headers::for_client(&mut headers, &snapshot.table.routes[index].response);
            let body = match MessageBody::size(&inbound.body) {
                BodySize::Sized(length) if head_only => Body::Unsent(length),
                size => match inbound.body.try_into_full() {
                    Ok(bytes) => Body::Whole(bytes),
                    Err(body) => Body::Stream {
                        length: match size {
                            BodySize::None => Some(0),
                            BodySize::Sized(length) => Some(length),
                            BodySize::Stream => None,
                        },
                        stream: Box::pin(body.map(|item| item.map_err(failure))),
                    },
                },
            };
            Ok(cached::Response { status: inbound.status, headers, body })
        }
        .boxed_local()
    }

    fn detached(&self) -> Option<Rc<dyn Origin>> {
        let parts = Parts {
            client: Rc::clone(&self.parts.client),
            upstream: Arc::clone(&self.parts.upstream),
            method: Method::GET,
            path_and_query: self.parts.path_and_query.clone(),
            headers: self.headers.borrow().clone(),
            payload: Payload::None,
            length: None,
            snapshot: Arc::clone(&self.parts.snapshot),
            index: self.parts.index,
            path: self.parts.path.clone(),
            params: self.parts.params,
            exchange: Rc::default(),
        };
        Some(Rc::new(Self::new(parts)))
    }

    fn invalidates(&self) -> Vec<String> {
        self.render(&self.route().invalidates)
    }

    fn tags(&self) -> Vec<String> {
        self.route().cache.as_ref().map(|rule| self.render(&rule.tags)).unwrap_or_default()
    }
}

fn failure(error: UpstreamError) -> Failure {
    tracing::warn!(error = &error as &dyn std::error::Error, "upstream: {error}");
    Failure(error.code())
}

/// Watches a request body on its way upstream: its size, and whether it stays valid HTTP.
#[derive(Debug, Clone, Default)]
pub struct BodyGuard(Rc<Cell<Option<Code>>>);

impl BodyGuard {
    /// The payload, cut off with an error after `max` bytes.
    pub fn limit(
        &self,
        payload: Payload,
        max: u64,
        door: Option<&front_door::Connection>,
    ) -> Payload {
        let found = Rc::clone(&self.0);
        match (payload, door) {
            (Payload::None, _) => Payload::None,
            (payload, Some(door)) => Payload::Stream {
                payload: Box::pin(Watched { payload: door.guard(payload), left: max, found }),
            },
            (payload, None) => {
                Payload::Stream { payload: Box::pin(Watched { payload, left: max, found }) }
            }
        }
    }

    /// What the client did wrong, if it did.
    pub fn violation(&self) -> Option<Code> {
        self.0.get()
    }
}

struct Watched<S> {
    payload: S,
    left: u64,
    found: Rc<Cell<Option<Code>>>,
}

impl<S> Stream for Watched<S>
where
    S: Stream<Item = Result<Bytes, PayloadError>> + Unpin,
{
    type Item = Result<Bytes, PayloadError>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let next = Pin::new(&mut self.payload).poll_next(cx);
        match &next {
            Poll::Ready(Some(Ok(chunk))) => match self.left.checked_sub(chunk.len() as u64) {
                Some(left) => self.left = left,
                None => {
                    self.found.set(Some(Code::BodyTooLarge));
                    return Poll::Ready(Some(Err(PayloadError::Overflow)));
                }
            },
            Poll::Ready(Some(Err(_)) | None) | Poll::Pending => {}
        }
        next
    }
}
