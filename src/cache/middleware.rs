//! The response cache around any actix-web handler.
//!
//! ```
//! use std::time::Duration;
//!
//! use actix_web::{App, HttpResponse, test, web};
//! use portway::cache::{Cache, Settings, middleware::ResponseCache, policy::Rules};
//!
//! # actix_web::rt::System::new().block_on(async {
//! let cache = Cache::new(Settings { l1_max_bytes: 64 << 20, max_object_bytes: 1 << 20 });
//! let prices = ResponseCache::new(cache, "prices")
//!     .rules(Rules { default_ttl: Some(Duration::from_secs(60)), ..Rules::default() });
//! let app = test::init_service(App::new().service(
//!     web::resource("/prices").wrap(prices).to(|| async { HttpResponse::Ok().body("42") }),
//! ))
//! .await;
//!
//! let get = || test::TestRequest::get().uri("/prices").to_request();
//! let first = test::call_service(&app, get()).await;
//! assert_eq!(first.headers().get("x-cache").unwrap(), "MISS");
//! assert_eq!(test::read_body(first).await, "42");
//! let second = test::call_service(&app, get()).await;
//! assert_eq!(second.headers().get("x-cache").unwrap(), "HIT");
//! # });
//! ```
//!
//! A handler is called at most once for a request, so a stale response is revalidated by the request
//! that finds it stale; `stale-while-revalidate` needs an origin that can be asked again. An `Err`
//! that reaches the cache, from a middleware inside it, goes out as it is to the request it was for.

use std::{
    cell::RefCell,
    future::{Ready, ready},
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
};

use actix_http::{
    body::{BodySize, BoxBody, MessageBody as _},
    header::{HOST, IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE},
};
use actix_web::{
    Error, HttpResponse,
    dev::{Service, ServiceRequest, ServiceResponse, Transform, forward_ready},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, Stream, future::LocalBoxFuture};

use super::{
    Cache, RouteCache,
    clock::Timestamp,
    key::Parts,
    l2::Varies,
    origin::{Ask, Body, Failure, Origin, Response},
    policy::Rules,
    serve::Request,
};
use crate::problem::{self, Code};

/// Caches the responses of what it wraps.
#[derive(Debug, Clone)]
pub struct ResponseCache {
    cache: Arc<Cache>,
    route: Arc<RouteCache>,
    tenant: Option<fn(&ServiceRequest) -> Option<String>>,
    tags: Rc<[String]>,
}

impl ResponseCache {
    /// `route` names what is wrapped: in keys, in statistics, and for purges.
    pub fn new(cache: Arc<Cache>, route: &str) -> Self {
        let route = RouteCache {
            name: route.into(),
            rules: Rules::default(),
            vary: Vec::new(),
            stats: Arc::default(),
            varies: Varies::default(),
        };
        Self { cache, route: Arc::new(route), tenant: None, tags: Rc::new([]) }
    }

    /// What applies beyond the handler's own `Cache-Control`.
    pub fn rules(mut self, rules: Rules) -> Self {
        let RouteCache { name, vary, stats, .. } = &*self.route;
        let (name, vary, stats) = (Arc::clone(name), vary.clone(), Arc::clone(stats));
        let varies = Varies::default();
        self.route = Arc::new(RouteCache { name, rules, vary, stats, varies });
        self
    }

    /// Keeps tenants apart: responses are shared only among requests of one tenant.
    pub fn tenant(mut self, of: fn(&ServiceRequest) -> Option<String>) -> Self {
        self.tenant = Some(of);
        self
    }

    /// Tags that every stored response carries.
    pub fn tags(mut self, tags: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.tags = tags.into_iter().map(Into::into).collect();
        self
    }
}

impl<S> Transform<S, ServiceRequest> for ResponseCache
where
    S: Service<ServiceRequest, Response = ServiceResponse<BoxBody>, Error = Error> + 'static,
{
    type Response = ServiceResponse<BoxBody>;
    type Error = Error;
    type Transform = Cached<S>;
    type InitError = ();
    type Future = Ready<Result<Cached<S>, ()>>;

    fn new_transform(&self, service: S) -> Self::Future {
        ready(Ok(Cached { service: Rc::new(service), settings: self.clone() }))
    }
}

/// A service with a cache in front of it.
#[derive(Debug)]
pub struct Cached<S> {
    service: Rc<S>,
    settings: ResponseCache,
}

impl<S> Service<ServiceRequest> for Cached<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<BoxBody>, Error = Error> + 'static,
{
    type Response = ServiceResponse<BoxBody>;
    type Error = Error;
    type Future = LocalBoxFuture<'static, Result<Self::Response, Error>>;

    forward_ready!(service);

    fn call(&self, request: ServiceRequest) -> Self::Future {
        let settings = self.settings.clone();
        let tenant = settings.tenant.and_then(|of| of(&request)).unwrap_or_default();
        // The handler gets the request itself, so the cache keeps what it needs of it.
        let head = (request.method().clone(), request.headers().clone());
        // Not what a proxy header says: a handler may look at `Host` itself.
        let host = request.headers().get(HOST).and_then(|host| host.to_str().ok());
        let host = host.unwrap_or_default().to_ascii_lowercase();
        let path = request.path().to_owned();
        let query = request.uri().query().map(str::to_owned);
        let origin = Rc::new(Handler {
            service: Rc::clone(&self.service),
            tags: Rc::clone(&settings.tags),
            state: Rc::new(RefCell::new(State::Waiting(Box::new(request)))),
        });
        async move {
            let (method, headers) = &head;
            let ResponseCache { cache, route, .. } = &settings;
            let asked = Request {
                method,
                headers,
                parts: Parts {
                    host: &host,
                    path: &path,
                    query: query.as_deref(),
                    route: &route.name,
                    scope: &tenant,
                },
                tenant: &tenant,
            };
            let state = Rc::clone(&origin.state);
            let answered = match cache.hit(route, &asked, Timestamp::now()) {
                Some(answer) => Ok(answer),
                None => cache.resolve(route, &asked, &(origin as Rc<dyn Origin>)).await,
            };
            let response = match answered {
                Ok(answer) => HttpResponse::from(answer.response),
                Err(Failure(code)) => HttpResponse::from(problem::response(code, None, "")),
            };
            match state.replace(State::Taken) {
                State::Waiting(request) => Ok(request.into_response(response)),
                State::Answered(request) => Ok(ServiceResponse::new(request, response)),
                State::Failed(error) => Err(error),
                State::Taken => Err(actix_web::error::ErrorInternalServerError(
                    "the handler was dropped before it answered",
                )),
            }
        }
        .boxed_local()
    }
}

/// Where a request is on its way through the handler.
enum State {
    Waiting(Box<ServiceRequest>),
    Taken,
    Answered(actix_web::HttpRequest),
    Failed(Error),
}

/// A handler, as the cache sees it.
struct Handler<S> {
    service: Rc<S>,
    tags: Rc<[String]>,
    state: Rc<RefCell<State>>,
}

impl<S> Origin for Handler<S>
where
    S: Service<ServiceRequest, Response = ServiceResponse<BoxBody>, Error = Error> + 'static,
{
    fn fetch(&self, ask: Ask) -> LocalBoxFuture<'static, Result<Response, Failure>> {
        let (service, state) = (Rc::clone(&self.service), Rc::clone(&self.state));
        async move {
            let State::Waiting(mut request) = state.replace(State::Taken) else {
                return Err(Failure(Code::Internal));
            };
            if !matches!(ask, Ask::Verbatim) {
                for name in [IF_MODIFIED_SINCE, IF_NONE_MATCH, IF_RANGE, RANGE] {
                    request.headers_mut().remove(name);
                }
            }
            if let Ask::Validate(validators) = ask {
                for (name, value) in validators {
                    request.headers_mut().insert(name, value);
                }
            }
            match service.call(*request).await {
                Ok(response) => {
                    let (request, response) = response.into_parts();
                    state.replace(State::Answered(request));
                    Ok(into_response(response))
                }
                Err(error) => {
                    // Others who asked for the same may fare better, so it counts as a response:
                    // one that is not to be shared, as a rule.
                    let response = into_response(error.error_response());
                    state.replace(State::Failed(error));
                    Ok(response)
                }
            }
        }
        .boxed_local()
    }

    fn detached(&self) -> Option<Rc<dyn Origin>> {
        None
    }

    fn invalidates(&self) -> Vec<String> {
        Vec::new()
    }

    fn tags(&self) -> Vec<String> {
        self.tags.to_vec()
    }
}

fn into_response(mut response: HttpResponse) -> Response {
    let status = response.status();
    let headers = std::mem::take(response.headers_mut());
    let body = match response.into_body().try_into_bytes() {
        Ok(bytes) => Body::Whole(bytes),
        Err(body) => {
            let length = match body.size() {
                BodySize::None => Some(0),
                BodySize::Sized(length) => Some(length),
                BodySize::Stream => None,
            };
            Body::Stream { length, stream: Box::pin(Chunks(body)) }
        }
    };
    Response { status, headers, body }
}

/// A message body as a stream.
struct Chunks(BoxBody);

impl Stream for Chunks {
    type Item = Result<Bytes, Failure>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0)
            .poll_next(cx)
            .map(|next| next.map(|chunk| chunk.map_err(|_| Failure(Code::Internal))))
    }
}
