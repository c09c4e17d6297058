//! What is known of a request from its beginning to the last byte of its response: identifiers on
//! the way in, one line in the access log and the route's metrics on the way out.

use std::{
    cell::Cell,
    net::IpAddr,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use actix_http::{
    ConnectionType, RequestHead, Response, Version,
    body::{BodySize, BoxBody, MessageBody},
    header::{HeaderMap, HeaderName, HeaderValue},
};
use bytes::Bytes;

use super::{front_door, snapshot::Running};
use crate::{
    limits,
    problem::{self, Code},
    telemetry::{
        RequestId, access_log,
        metrics::{CacheOutcome, Observation, RouteMetrics},
        request_id,
        trace::{self, Accepted},
    },
};

static X_REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
static TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");

/// What the upstream's part in a request was; filled in by the origin.
#[derive(Default)]
pub struct UpstreamPart {
    pub target: Cell<Option<Arc<str>>>,
    pub took: Cell<Option<Duration>>,
}

/// One request and its response.
pub struct Exchange {
    started: Instant,
    request_id: RequestId,
    trace: Accepted,
    /// The client's address; behind trusted proxies, the one they vouch for.
    pub client: IpAddr,
    problem: Cell<Option<Code>>,
    /// What the client is told of the limits of the route; `None` where it has none.
    pub limits: Option<limits::fields::Fields>,
    upstream: Option<Rc<UpstreamPart>>,
    /// Lets the front door pass the next request of the connection on, and knows when this one is
    /// over: held until the response's last byte.
    door: Option<front_door::Exchange>,
}

impl Exchange {
    pub fn begin(head: &RequestHead, client: IpAddr, door: Option<front_door::Exchange>) -> Self {
        Self {
            started: Instant::now(),
            request_id: request_id::accept_or_new(head.headers().get(&X_REQUEST_ID)),
            trace: trace::accept_or_new(head.headers()),
            client,
            problem: Cell::new(None),
            limits: None,
            upstream: None,
            door,
        }
    }

    pub fn request_id(&self) -> RequestId {
        self.request_id
    }

    /// Where the origin of this request notes its part.
    pub fn upstream(&mut self) -> Rc<UpstreamPart> {
        Rc::clone(self.upstream.get_or_insert_default())
    }

    /// Puts the identifiers into a request that goes upstream.
    pub fn identify(&self, headers: &mut HeaderMap) {
        headers.insert(X_REQUEST_ID.clone(), self.request_id.to_header_value());
        headers.insert(TRACEPARENT.clone(), self.trace.context.to_header());
        if !self.trace.continued {
            // It belongs to another trace, or to a broken one.
            headers.remove("tracestate");
        }
    }

    /// The response for an error.
    pub fn problem(&self, code: Code, detail: Option<&str>) -> Response<BoxBody> {
        self.problem.set(Some(code));
        problem::response(code, detail, self.request_id.as_str())
    }

    /// The response for an error, with members of its own.
    pub fn problem_with(&self, code: Code, members: problem::Members) -> Response<BoxBody> {
        self.problem.set(Some(code));
        problem::with_members(code, members, self.request_id.as_str())
    }

    /// Notes for the access log what a response that somebody else made stands for.
    pub fn note(&self, code: Code) {
        self.problem.set(Some(code));
    }

    /// Completes the response; the log line and the metrics follow when its last byte is handed
    /// over, or when the client has gone.
    pub fn done(
        mut self,
        head: &RequestHead,
        route: Counted<'_>,
        mut response: Response<BoxBody>,
        outcome: CacheOutcome,
    ) -> Response<BoxBody> {
        response.headers_mut().insert(X_REQUEST_ID.clone(), self.request_id.to_header_value());
        if let Some(limits) = &self.limits {
            limits.insert(response.headers_mut());
        }
        if let Some(door) = &mut self.door {
            door.answered();
        }
        if head.version < Version::HTTP_11 && response.body().size() == BodySize::Stream {
            // Such a client knows no chunks (RFC 9112 section 6.1): its body ends with the connection.
            response.head_mut().no_chunking(true);
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        let status = response.status().as_u16();
        response.map_body(|_, body| match body.try_into_bytes() {
            Ok(bytes) => {
                self.record(&Line::of(head), route, status, outcome, bytes.len() as u64);
                BoxBody::new(bytes)
            }
            Err(body) => BoxBody::new(Observed {
                body,
                sent: 0,
                end: Some(End {
                    line: Line::of(head).keep(),
                    metrics: Arc::clone(route.metrics),
                    route: route.name.cloned(),
                    status,
                    outcome,
                    exchange: self,
                }),
            }),
        })
    }

    fn record(
        &self,
        line: &Line<'_>,
        route: Counted<'_>,
        status: u16,
        outcome: CacheOutcome,
        sent: u64,
    ) {
        let duration = self.started.elapsed();
        let upstream = self.upstream.as_ref();
        let upstream_duration = upstream.and_then(|part| part.took.get());
        route.metrics.observe(&Observation {
            status,
            cache: outcome,
            bytes: sent,
            duration,
            upstream: upstream_duration,
        });
        if !access_log::enabled() {
            return;
        }
        let target = upstream.and_then(|part| part.target.take());
        access_log::write(&access_log::Record {
            request_id: &self.request_id,
            trace: &self.trace.context,
            client: self.client,
            method: line.method,
            host: line.host,
            path: line.path,
            route: route.name.map(|name| &**name),
            status,
            bytes: sent,
            duration,
            cache: outcome,
            upstream: target.as_deref(),
            upstream_duration,
            code: self.problem.get().map(Code::as_str),
        });
    }
}

/// Whose counters a request goes to.
#[derive(Clone, Copy)]
pub struct Counted<'a> {
    pub metrics: &'a Arc<RouteMetrics>,
    /// `None` where no route matched.
    pub name: Option<&'a Arc<str>>,
}

impl<'a> From<&'a Running> for Counted<'a> {
    fn from(running: &'a Running) -> Self {
        Self { metrics: &running.metrics, name: Some(&running.cache.name) }
    }
}

/// What a log line says of the request itself.
struct Line<'a> {
    method: &'a str,
    host: Option<&'a str>,
    path: &'a str,
}

/// A [`Line`] that outlives its request.
struct KeptLine {
    method: String,
    host: Option<String>,
    path: String,
}

impl<'a> Line<'a> {
    fn of(head: &'a RequestHead) -> Self {
        let host = head.headers().get(actix_http::header::HOST).map(HeaderValue::to_str);
        Self {
            method: head.method.as_str(),
            host: host.and_then(Result::ok),
            path: head.uri.path(),
        }
    }

    fn keep(&self) -> KeptLine {
        KeptLine {
            method: self.method.to_owned(),
            host: self.host.map(str::to_owned),
            path: self.path.to_owned(),
        }
    }
}

struct End {
    line: KeptLine,
    metrics: Arc<RouteMetrics>,
    route: Option<Arc<str>>,
    status: u16,
    outcome: CacheOutcome,
    exchange: Exchange,
}

/// A body that reports when it has ended, in whatever way.
struct Observed {
    body: BoxBody,
    sent: u64,
    end: Option<End>,
}

impl MessageBody for Observed {
    type Error = Box<dyn std::error::Error>;

    fn size(&self) -> BodySize {
        self.body.size()
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Bytes, Self::Error>>> {
        let next = Pin::new(&mut self.body).poll_next(cx);
        if let Poll::Ready(Some(Ok(chunk))) = &next {
            self.sent += chunk.len() as u64;
        }
        next
    }
}

impl Drop for Observed {
    fn drop(&mut self) {
        if let Some(end) = self.end.take() {
            let KeptLine { method, host, path } = &end.line;
            let line = Line { method, host: host.as_deref(), path };
            let route = Counted { metrics: &end.metrics, name: end.route.as_ref() };
            end.exchange.record(&line, route, end.status, end.outcome, self.sent);
        }
    }
}
