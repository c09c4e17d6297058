//! The engine as a whole, against an origin that does as it is told.

mod codec;
mod coherence;
mod data;
mod fills;
mod flights;
mod ledger;
mod middleware;
mod ranges;
mod sim;
mod stale;
mod storage;
mod threads;
mod unshared;
mod variants;
mod world;

use std::{
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use actix_http::{
    Method, StatusCode,
    body::{BodySize, MessageBody as _},
    header::{HeaderMap, HeaderName, HeaderValue},
};
use bytes::Bytes;
use futures_util::{FutureExt as _, StreamExt as _, future::LocalBoxFuture};
use tokio::sync::{Semaphore, mpsc};

use super::{
    Cache, RouteCache, Settings,
    clock::Timestamp,
    key::Parts,
    origin::{Ask, Body, Failure, Origin, Response},
    policy::Rules,
    serve::{Answer, Request},
};
use crate::problem::Code;

/// What an origin is asked.
#[derive(Debug, Clone)]
struct Call {
    /// Counts from 1.
    number: usize,
    ask: Ask,
    headers: HeaderMap,
}

impl Call {
    fn header(&self, name: &str) -> &str {
        self.headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or_default()
    }

    fn validates(&self) -> bool {
        matches!(self.ask, Ask::Validate(_))
    }
}

type Reply = LocalBoxFuture<'static, Result<Response, Failure>>;

/// A scripted origin.
struct Site {
    calls: AtomicUsize,
    under_way: AtomicUsize,
    most_at_once: AtomicUsize,
    asks: Mutex<Vec<Ask>>,
    script: Box<dyn Fn(Call) -> Reply + Send + Sync>,
}

impl Site {
    fn new<F>(script: impl Fn(Call) -> F + Send + Sync + 'static) -> Arc<Self>
    where
        F: Future<Output = Result<Response, Failure>> + 'static,
    {
        Arc::new(Self {
            calls: AtomicUsize::new(0),
            under_way: AtomicUsize::new(0),
            most_at_once: AtomicUsize::new(0),
            asks: Mutex::default(),
            script: Box::new(move |call| script(call).boxed_local()),
        })
    }

    fn calls(&self) -> usize {
        self.calls.load(Ordering::SeqCst)
    }

    fn most_at_once(&self) -> usize {
        self.most_at_once.load(Ordering::SeqCst)
    }

    fn last_ask(&self) -> Ask {
        self.asks.lock().unwrap().last().expect("the origin was asked").clone()
    }
}

/// One request to a [`Site`].
struct Visit {
    site: Arc<Site>,
    headers: HeaderMap,
    tags: Vec<String>,
    invalidates: Vec<String>,
    repeatable: bool,
}

/// Counts a fetch as under way until it has its headers or is given up.
struct UnderWay(Arc<Site>);

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.under_way.fetch_sub(1, Ordering::SeqCst);
    }
}

impl Origin for Visit {
    fn fetch(&self, ask: Ask) -> Reply {
        let site = Arc::clone(&self.site);
        let number = site.calls.fetch_add(1, Ordering::SeqCst) + 1;
        site.asks.lock().unwrap().push(ask.clone());
        let now = site.under_way.fetch_add(1, Ordering::SeqCst) + 1;
        site.most_at_once.fetch_max(now, Ordering::SeqCst);
        let under_way = UnderWay(Arc::clone(&site));
        let reply = (site.script)(Call { number, ask, headers: self.headers.clone() });
        async move {
            let _under_way = under_way;
            reply.await
        }
        .boxed_local()
    }

    fn detached(&self) -> Option<Rc<dyn Origin>> {
        self.repeatable.then(|| {
            let site = Arc::clone(&self.site);
            let (headers, tags) = (self.headers.clone(), self.tags.clone());
            Rc::new(Self { site, headers, tags, invalidates: Vec::new(), repeatable: true })
                as Rc<dyn Origin>
        })
    }

    fn invalidates(&self) -> Vec<String> {
        self.invalidates.clone()
    }

    fn tags(&self) -> Vec<String> {
        self.tags.clone()
    }
}

/// A request, as a test writes it.
#[derive(Debug, Clone)]
struct Asks {
    method: Method,
    host: String,
    path: String,
    query: Option<String>,
    scope: String,
    headers: HeaderMap,
    tags: Vec<String>,
    invalidates: Vec<String>,
    repeatable: bool,
}

impl Asks {
    fn get(path: &str) -> Self {
        Self {
            method: Method::GET,
            host: "a.test".to_owned(),
            path: path.to_owned(),
            query: None,
            scope: String::new(),
            headers: HeaderMap::new(),
            tags: Vec::new(),
            invalidates: Vec::new(),
            repeatable: true,
        }
    }

    fn method(mut self, method: Method) -> Self {
        self.method = method;
        self
    }

    fn header(mut self, name: &'static str, value: &str) -> Self {
        self.headers.append(HeaderName::from_static(name), value.parse().unwrap());
        self
    }
}

/// A cache, one of its routes, and an origin behind it.
#[derive(Clone)]
struct Lab {
    cache: Arc<Cache>,
    route: Arc<RouteCache>,
    site: Arc<Site>,
}

const SETTINGS: Settings = Settings { l1_max_bytes: 8 << 20, max_object_bytes: 64 << 10 };

fn route(name: &str, rules: Rules) -> Arc<RouteCache> {
    let stats = Arc::default();
    Arc::new(RouteCache {
        name: name.into(),
        rules,
        vary: Vec::new(),
        stats,
        varies: Default::default(),
    })
}

/// What a client has in the end.
#[derive(Debug, Clone)]
struct Got {
    status: StatusCode,
    headers: HeaderMap,
    /// As far as it came.
    body: Bytes,
    /// Whether it broke off.
    cut: bool,
}

impl Got {
    fn text(&self) -> &str {
        std::str::from_utf8(&self.body).expect("test bodies are text")
    }

    fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).and_then(|value| value.to_str().ok())
    }
}

impl Lab {
    fn new<F>(script: impl Fn(Call) -> F + Send + Sync + 'static) -> Self
    where
        F: Future<Output = Result<Response, Failure>> + 'static,
    {
        Self {
            cache: Cache::new(SETTINGS),
            route: route("r", Rules::default()),
            site: Site::new(script),
        }
    }

    /// Until the response's head.
    async fn ask(&self, asks: &Asks) -> Result<Answer, Failure> {
        let request = Request {
            method: &asks.method,
            headers: &asks.headers,
            parts: Parts {
                host: &asks.host,
                path: &asks.path,
                query: asks.query.as_deref(),
                route: &self.route.name,
                scope: &asks.scope,
            },
            tenant: &asks.scope,
        };
        if let Some(answer) = self.cache.hit(&self.route, &request, Timestamp::now()) {
            return Ok(answer);
        }
        let origin: Rc<dyn Origin> = Rc::new(Visit {
            site: Arc::clone(&self.site),
            headers: asks.headers.clone(),
            tags: asks.tags.clone(),
            invalidates: asks.invalidates.clone(),
            repeatable: asks.repeatable,
        });
        self.cache.resolve(&self.route, &request, &origin).await
    }

    /// The whole response.
    async fn get(&self, asks: &Asks) -> Result<Got, Failure> {
        let answer = self.ask(asks).await?;
        Ok(read(answer, asks.method == Method::HEAD).await)
    }

    /// The whole response, in a task of its own.
    fn start(&self, asks: &Asks) -> tokio::task::JoinHandle<Result<Got, Failure>> {
        let (this, asks) = (self.clone(), asks.clone());
        actix_rt::spawn(async move { this.get(&asks).await })
    }
}

async fn read(answer: Answer, head: bool) -> Got {
    let (response, mut body) = answer.response.into_parts();
    let announced = match body.size() {
        BodySize::Sized(length) if !head => Some(length as usize),
        _ => None,
    };
    let (mut bytes, mut cut) = (Vec::new(), false);
    while let Some(item) = std::future::poll_fn(|cx| Pin::new(&mut body).poll_next(cx)).await {
        match item {
            Ok(chunk) => bytes.extend_from_slice(&chunk),
            Err(_) => {
                cut = true;
                break;
            }
        }
    }
    // The announced length tells a client that not everything came.
    cut |= announced.is_some_and(|length| bytes.len() < length);
    let (status, headers) = (response.status(), response.headers().clone());
    Got { status, headers, body: bytes.into(), cut }
}

/// A whole response.
fn reply(status: u16, headers: &[(&str, &str)], body: &str) -> Response {
    let body = Body::Whole(Bytes::copy_from_slice(body.as_bytes()));
    Response { status: StatusCode::from_u16(status).unwrap(), headers: fields(headers), body }
}

fn fields(headers: &[(&str, &str)]) -> HeaderMap {
    headers
        .iter()
        .map(|(name, value)| {
            (
                HeaderName::from_bytes(name.as_bytes()).unwrap(),
                HeaderValue::from_str(value).unwrap(),
            )
        })
        .collect()
}

/// Sends the body of a [`streamed`] response.
type Sender = mpsc::UnboundedSender<Result<Bytes, Failure>>;

/// A response whose body comes as the test sends it.
fn streamed(headers: &[(&str, &str)], length: Option<u64>) -> (Response, Sender) {
    let (sender, receiver) = mpsc::unbounded_channel();
    let stream = futures_util::stream::unfold(receiver, |mut receiver| async {
        receiver.recv().await.map(|item| (item, receiver))
    });
    let body = Body::Stream { length, stream: stream.boxed_local() };
    (Response { status: StatusCode::OK, headers: fields(headers), body }, sender)
}

const BROKEN: Failure = Failure(Code::UpstreamUnreachable);

/// Lets every task run until it waits for something.
async fn settle() {
    for _ in 0..50 {
        tokio::task::yield_now().await;
    }
}

/// Holds whoever passes until the test opens it.
fn gate() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(0))
}

async fn pass(gate: &Semaphore) {
    gate.acquire().await.expect("gates are not closed").forget();
}

/// A read that never ends is a failure and not a hanging test.
async fn in_time<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(Duration::from_secs(10), future).await.expect("it ends in time")
}

/// Small, seeded, and the same everywhere (SplitMix64).
#[derive(Debug, Clone)]
struct Dice(u64);

impl Dice {
    fn roll(&mut self, sides: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % sides
    }

    fn chance(&mut self, percent: u64) -> bool {
        self.roll(100) < percent
    }
}
