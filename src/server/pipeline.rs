//! The way of a request, from the parsed head to the response.
//!
//! The order is this file, read from top to bottom: refusals of the front door, identifiers, health,
//! route match, body limit, rate limit, cache, and on a miss the origin. A hit is answered by
//! [`Gateway::call`] itself from a ready future; everything that has to wait goes through
//! [`answer`].

use std::{
    borrow::Cow,
    convert::Infallible,
    future::Future,
    net::{IpAddr, Ipv4Addr, SocketAddr},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use actix_http::{
    ConnectionType, Method, Request, RequestHead, Response, StatusCode,
    body::BoxBody,
    header::{ALLOW, CONTENT_LENGTH, HOST, HeaderName, HeaderValue},
};
use actix_service::Service;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use super::{
    Shared, front_door, health,
    limit::{self, Verdict},
    observe::{Counted, Exchange},
    origin::{BodyGuard, ProxyOrigin},
    snapshot::Snapshot,
    sql,
};
use crate::{
    cache::{
        self,
        clock::Timestamp,
        key::{self, Parts},
        serve::Answer,
    },
    problem::Code,
    proxy::{self, Client, Peer},
    routes::{Action, Found, Params, Route, path},
    telemetry::metrics::CacheOutcome,
};

/// Tells origins that `Surrogate-Control` addressed to us is obeyed.
static SURROGATE_CAPABILITY: HeaderName = HeaderName::from_static("surrogate-capability");
const CAPABILITY: &str = "portway=\"Surrogate/1.0\"";

/// What is known about a connection; put there when it is accepted.
#[derive(Debug, Clone)]
pub struct Connection {
    pub door: front_door::Connection,
    pub secure: bool,
}

/// One worker's gateway.
pub struct Gateway {
    shared: Arc<Shared>,
    client: Rc<Client>,
}

impl Gateway {
    pub fn new(shared: Arc<Shared>) -> Self {
        let client = Client::new(Arc::clone(&shared.upstream_tls));
        Self { shared, client }
    }
}

/// A response that is there, or one to wait for.
pub enum Answering {
    Ready(Option<Response<BoxBody>>),
    Later(LocalBoxFuture<'static, Response<BoxBody>>),
}

impl Future for Answering {
    type Output = Result<Response<BoxBody>, Infallible>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        match self.get_mut() {
            Self::Ready(response) => {
                #[expect(clippy::expect_used, reason = "a future is not polled after it resolved")]
                let response = response.take().expect("polled once");
                Poll::Ready(Ok(response))
            }
            Self::Later(future) => future.as_mut().poll(cx).map(Ok),
        }
    }
}

/// What was found out about a request that goes on to an origin.
pub struct Routed {
    pub snapshot: Arc<Snapshot>,
    pub index: usize,
    pub params: Params,
    /// In normal form.
    pub path: String,
    /// What of the query counts.
    pub query: Option<String>,
    pub host: String,
    pub peer: SocketAddr,
    pub secure: bool,
    pub door: Option<front_door::Connection>,
    /// Whether Redis has yet to say if it passes the limits of its route.
    undecided: bool,
}

impl Service<Request> for Gateway {
    type Response = Response<BoxBody>;
    type Error = Infallible;
    type Future = Answering;

    actix_service::always_ready!();

    fn call(&self, request: Request) -> Answering {
        let connection = request.conn_data::<Connection>();
        let secure = connection.is_some_and(|it| it.secure);
        let head = request.head();
        // Warm-up comes from inside and has no peer.
        let peer =
            request.peer_addr().unwrap_or(SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
        let mut exchange = Exchange::begin(head, peer.ip(), connection.map(|it| it.door.begin()));
        let unrouted = Counted { metrics: self.shared.registry.unrouted(), name: None };
        let ready = |response| Answering::Ready(Some(self.shared.last_if_draining(response)));

        if let Some(code) = front_door::refusal(head) {
            let mut response = exchange.problem(code, None);
            response.head_mut().set_connection_type(ConnectionType::Close);
            return ready(exchange.done(head, unrouted, response, CacheOutcome::None));
        }
        if let Some(response) = health::answer(&self.shared, head) {
            return ready(exchange.done(head, unrouted, response, CacheOutcome::None));
        }
        if head.method == Method::OPTIONS && head.uri.path() == "*" {
            // About the gateway as a whole (RFC 9110 section 9.3.7), which has nothing to say.
            let response = Response::with_body(StatusCode::OK, BoxBody::new(Bytes::new()));
            return ready(exchange.done(head, unrouted, response, CacheOutcome::None));
        }
        let path = match path::normalize(head.uri.path()) {
            Ok(path) => path,
            Err(error) => {
                let response = exchange.problem(Code::MalformedRequest, Some(&error.to_string()));
                return ready(exchange.done(head, unrouted, response, CacheOutcome::None));
            }
        };
        let host = host(head, secure);
        let snapshot = self.shared.snapshot.load();
        let mut params = Params::default();
        let found = snapshot.table.find(&head.method, &host, &path, head.headers(), &mut params);
        let (index, route) = match found {
            Found::Route(index, route) => (index, route),
            Found::MethodNotAllowed(methods) => {
                let mut response = exchange.problem(Code::MethodNotAllowed, None);
                response.headers_mut().insert(ALLOW, allow(&methods));
                return ready(exchange.done(head, unrouted, response, CacheOutcome::None));
            }
            Found::NotFound => {
                let response = exchange.problem(Code::NoRoute, None);
                return ready(exchange.done(head, unrouted, response, CacheOutcome::None));
            }
        };
        let running = snapshot.running(index);
        if content_length(head).is_some_and(|length| length > route.max_body) {
            let mut response = exchange.problem(Code::BodyTooLarge, None);
            response.head_mut().set_connection_type(ConnectionType::Close);
            return ready(exchange.done(head, running.into(), response, CacheOutcome::None));
        }

        // Warm-up is the gateway's own doing and counts for nobody.
        let limits = running.limits.as_ref().filter(|_| request.peer_addr().is_some());
        let verdict = match limits {
            Some(limits) => limit::check(&self.shared, limits, head, &mut exchange),
            None => Some(Verdict::Passes),
        };
        let undecided = verdict.is_none();
        if let Some(Verdict::Refused(response)) = verdict {
            return ready(exchange.done(head, running.into(), response, CacheOutcome::None));
        }

        let query = effective_query(route, head);
        let cache_request = cache::serve::Request {
            method: &head.method,
            headers: head.headers(),
            parts: Parts {
                host: &host,
                path: &path,
                query: query.as_deref(),
                route: &route.name,
                scope: "",
            },
            tenant: "",
        };
        if !undecided
            && let Some(Answer { response, outcome }) =
                self.shared.cache.hit(&running.cache, &cache_request, Timestamp::now())
        {
            return ready(exchange.done(head, running.into(), response, outcome));
        }

        let routed = Routed {
            index,
            params,
            path: path.into_owned(),
            query: query.map(Cow::into_owned),
            host: host.into_owned(),
            snapshot: Arc::clone(&snapshot),
            peer,
            secure,
            door: connection.map(|it| it.door.clone()),
            undecided,
        };
        let (shared, client) = (Arc::clone(&self.shared), Rc::clone(&self.client));
        Answering::Later(Box::pin(async move {
            let response = answer(&shared, client, request, exchange, routed).await;
            shared.last_if_draining(response)
        }))
    }
}

/// Everything that has to wait for somebody.
async fn answer(
    shared: &Shared,
    client: Rc<Client>,
    mut request: Request,
    mut exchange: Exchange,
    routed: Routed,
) -> Response<BoxBody> {
    let snapshot = Arc::clone(&routed.snapshot);
    let route = &snapshot.table.routes[routed.index];
    let running = snapshot.running(routed.index);
    let payload = request.take_payload();
    let head = request.head();
    let cache_request = cache::serve::Request {
        method: &head.method,
        headers: head.headers(),
        parts: Parts {
            host: &routed.host,
            path: &routed.path,
            query: routed.query.as_deref(),
            route: &route.name,
            scope: "",
        },
        tenant: "",
    };

    if let Some(limits) = running.limits.as_ref().filter(|_| routed.undecided) {
        if let Verdict::Refused(response) = limit::ask(shared, limits, &mut exchange).await {
            return exchange.done(head, running.into(), response, CacheOutcome::None);
        }
        let hit = shared.cache.hit(&running.cache, &cache_request, Timestamp::now());
        if let Some(Answer { response, outcome }) = hit {
            return exchange.done(head, running.into(), response, outcome);
        }
    }
    let (upstream, rewrite) = match &route.action {
        Action::Respond { status, headers, body } => {
            let mut response = Response::with_body(*status, BoxBody::new(body.clone()));
            for (name, value) in headers {
                response.headers_mut().append(name.clone(), value.clone());
            }
            proxy::headers::apply(response.headers_mut(), &route.response);
            return exchange.done(head, running.into(), response, CacheOutcome::None);
        }
        Action::Proxy { upstream, rewrite } => (*upstream, rewrite),
        Action::Sql(_) => return sql::answer(shared, request, payload, exchange, routed).await,
    };
    // The table and its upstreams are built together, so the index is there.
    let Some(upstream) = snapshot.upstreams.get(upstream) else {
        let response = exchange.problem(Code::Internal, None);
        return exchange.done(head, running.into(), response, CacheOutcome::None);
    };
    let path = match rewrite {
        Some(template) => template.render(&routed.params, &routed.path),
        None => routed.path.clone(),
    };
    let path_and_query = match &routed.query {
        Some(query) => format!("{path}?{query}"),
        None => path,
    };
    let peer = Peer::resolve(head, routed.peer, routed.secure, &shared.trusted_proxies);
    exchange.client = peer.ip;
    let mut headers = proxy::headers::for_upstream(head, &peer, &route.request);
    exchange.identify(&mut headers);
    if head.method.is_safe() {
        headers.append(SURROGATE_CAPABILITY.clone(), HeaderValue::from_static(CAPABILITY));
    }

    let guard = BodyGuard::default();
    let origin = ProxyOrigin::new(super::origin::Parts {
        client,
        upstream: Arc::clone(upstream),
        method: head.method.clone(),
        path_and_query: path_and_query.into(),
        headers,
        payload: guard.limit(payload, route.max_body, routed.door.as_ref()),
        length: content_length(head),
        snapshot: Arc::clone(&snapshot),
        index: routed.index,
        path: routed.path.clone(),
        params: routed.params,
        exchange: exchange.upstream(),
    });

    if proxy::is_websocket(head) {
        let response = match origin.tunnel().await {
            Ok(response) => response,
            Err(failure) => exchange.problem(failure.0, None),
        };
        return exchange.done(head, running.into(), response, CacheOutcome::Bypass);
    }
    let origin: Rc<dyn cache::origin::Origin> = Rc::new(origin);
    let resolved = shared.cache.resolve(&running.cache, &cache_request, &origin).await;
    let (response, outcome) = match resolved {
        Ok(Answer { response, outcome }) => (response, outcome),
        Err(failure) => {
            // What the client did wrong with its body explains a failed upstream request.
            let violation = guard.violation().or_else(|| routed.door.as_ref()?.body_fault());
            let mut response = exchange.problem(violation.unwrap_or(failure.0), None);
            if violation.is_some() {
                response.head_mut().set_connection_type(ConnectionType::Close);
            }
            (response, CacheOutcome::None)
        }
    };
    exchange.done(head, running.into(), response, outcome)
}

/// The host the request is for: lower-case, without the scheme's own port.
///
/// The front door has made sure that an absolute target and `Host` agree.
fn host(head: &RequestHead, secure: bool) -> Cow<'_, str> {
    let text = match head.uri.authority() {
        Some(authority) => authority.as_str(),
        None => head.headers().get(HOST).and_then(|it| it.to_str().ok()).unwrap_or_default(),
    };
    let text = text.strip_suffix(if secure { ":443" } else { ":80" }).unwrap_or(text);
    if text.bytes().any(|byte| byte.is_ascii_uppercase()) {
        Cow::Owned(text.to_ascii_lowercase())
    } else {
        Cow::Borrowed(text)
    }
}

fn content_length(head: &RequestHead) -> Option<u64> {
    head.headers().get(CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The query that goes upstream and into the key; see [`key::named_query`].
fn effective_query<'r>(route: &Route, head: &'r RequestHead) -> Option<Cow<'r, str>> {
    let query = head.uri.query();
    match route.cache.as_ref().and_then(|rule| rule.query.as_deref()) {
        Some(names) if head.method.is_safe() => key::named_query(query, names),
        _ => query.map(Cow::Borrowed),
    }
}

fn allow(methods: &[Method]) -> HeaderValue {
    let names: Vec<&str> = methods.iter().map(Method::as_str).collect();
    // Methods are tokens, which are valid field values.
    HeaderValue::try_from(names.join(", ")).unwrap_or_else(|_| HeaderValue::from_static(""))
}
