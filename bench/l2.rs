//! What the second tier costs beside Redis itself: `cargo bench --bench l2`.
//!
//! - `hit`: a look-up that finds its response in Redis, against a bare `GET` of the same value by the same
//!   client library, side by side. Promise: the median at most 1.3 times as long.
//! - `memory`: a million responses of 1 KiB with four tags each, against their bare bodies under the same
//!   names and with the same expiry. Promise: at most 1.25 times the memory.
//!
//! It starts a redis-server of its own on a free loopback port, and ends it. Exit code 1: a promise is
//! not kept.

use std::{
    collections::BTreeMap,
    net::TcpListener,
    process::{Child, Command, ExitCode, Stdio},
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use actix_http::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use bytes::Bytes;
use futures_util::{StreamExt as _, future::LocalBoxFuture, stream};
use portway::{
    cache::{
        Cache, RouteCache, Settings,
        entry::{Entry, Parts as EntryParts},
        key::Parts,
        l2::codec,
        origin::{Ask, Body, Failure, Origin, Response},
        policy::{self, Rules},
        remote::{Name, Put, Remote, redis::RedisRemote},
        serve::Request,
    },
    config::Config,
    redis::{Redis, cmd},
};

const ROUNDS: usize = 7;
const LOOKUPS: usize = 5_000;
const ENTRIES: u64 = 1_000_000;

struct Server {
    process: Child,
    port: u16,
}

impl Server {
    fn start() -> Self {
        let free = TcpListener::bind(("127.0.0.1", 0)).expect("a free port");
        let port = free.local_addr().expect("a bound socket has an address").port();
        drop(free);
        let process = Command::new("redis-server")
            .args(["--bind", "127.0.0.1", "--save", "", "--port", &port.to_string()])
            .stdout(Stdio::null())
            .spawn()
            .expect("redis-server is installed");
        Self { process, port }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An origin that is asked once.
struct Site(Bytes);

impl Origin for Site {
    fn fetch(&self, _: Ask) -> LocalBoxFuture<'static, Result<Response, Failure>> {
        let body = Body::Whole(self.0.clone());
        Box::pin(async move { Ok(Response { status: StatusCode::OK, headers: headers(), body }) })
    }

    fn detached(&self) -> Option<Rc<dyn Origin>> {
        None
    }

    fn invalidates(&self) -> Vec<String> {
        Vec::new()
    }

    fn tags(&self) -> Vec<String> {
        tags(7)
    }
}

fn headers() -> HeaderMap {
    [
        ("content-type", "application/json"),
        ("cache-control", "public, max-age=3600"),
        ("etag", "\"5f3a-62bd1c9a\""),
        ("vary", ""),
        ("x-request-id", "0190c5a2-7b1e-7c3d-9d43-0242ac120002"),
    ]
    .into_iter()
    .filter(|(_, value)| !value.is_empty())
    .map(|(name, value)| (HeaderName::from_static(name), HeaderValue::from_static(value)))
    .collect()
}

fn tags(number: u64) -> Vec<String> {
    [
        "products".to_owned(),
        format!("product:{number}"),
        format!("shop:{}", number % 1000),
        "all".to_owned(),
    ]
    .to_vec()
}

/// A body that does not compress.
fn body(number: u64) -> Bytes {
    let mut state = number.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let bytes: Vec<u8> = (0..1024)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect();
    bytes.into()
}

fn route() -> Arc<RouteCache> {
    Arc::new(RouteCache {
        name: "product".into(),
        rules: Rules::default(),
        vary: Vec::new(),
        stats: Arc::default(),
        varies: Default::default(),
    })
}

fn parts(path: &str) -> Parts<'_> {
    Parts { host: "api.test", path, query: None, route: "product", scope: "" }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort_unstable();
    times[times.len() / 2]
}

async fn hits(redis: &Arc<Redis>) -> bool {
    let remote = RedisRemote::new(Arc::clone(redis));
    let settings = Settings { l1_max_bytes: 64 << 20, max_object_bytes: 1 << 20 };
    let store = Arc::clone(&remote);
    // Nothing is served from memory without asking.
    let (cache, keeper) = Cache::sharing(settings, store, Duration::ZERO);
    let coherence = Arc::clone(&cache.l2().expect("it shares").coherence);
    remote.listen(Arc::clone(&coherence));
    actix_rt::spawn(keeper);
    assert!(coherence.joined(Duration::from_secs(10)).await, "Redis does not answer");

    let (route, headers) = (route(), HeaderMap::new());
    let request =
        Request { method: &Method::GET, headers: &headers, parts: parts("/p/7"), tenant: "" };
    let origin: Rc<dyn Origin> = Rc::new(Site(body(7)));
    let ask = async || cache.resolve(&route, &request, &origin).await.expect("it is there");
    ask().await;
    let name = Name { primary: parts("/p/7").to_key().borrow().digest(), variant: None };
    let lease = remote.lease(&name);
    let key = lease.strip_suffix(":lease").expect("a lease is beside its entry");
    while redis
        .command::<Option<Bytes>>(cmd("GET").arg(key))
        .await
        .expect("Redis answers")
        .is_none()
    {
        tokio::task::yield_now().await;
    }

    let mut ratios = Vec::new();
    for round in 0..ROUNDS {
        let (mut bare, mut tier) = (Vec::new(), Vec::new());
        for _ in 0..LOOKUPS {
            let began = Instant::now();
            let value: Option<Bytes> =
                redis.command(cmd("GET").arg(key)).await.expect("Redis answers");
            bare.push(began.elapsed());
            assert!(value.is_some());
            let began = Instant::now();
            ask().await;
            tier.push(began.elapsed());
        }
        let (bare, tier) = (median(bare), median(tier));
        ratios.push(tier.as_secs_f64() / bare.as_secs_f64());
        println!("round {round}: GET {bare:?}, look-up {tier:?}, ratio {:.3}", ratios[round]);
    }
    let stats = cache.l2().expect("it shares").stats.snapshot();
    assert!(stats.hits as usize >= ROUNDS * LOOKUPS, "not every look-up asked: {stats:?}");
    ratios.sort_unstable_by(f64::total_cmp);
    let ratio = ratios[ROUNDS / 2];
    println!("hit: {ratio:.3} x a bare GET, promise 1.3");
    ratio <= 1.3
}

async fn used(redis: &Redis) -> u64 {
    loop {
        // A server that is emptying a million keys does not answer in time.
        if let Ok(info) = redis.command::<String>(cmd("INFO").arg("memory")).await {
            return info
                .lines()
                .find_map(|line| line.strip_prefix("used_memory:")?.trim().parse().ok())
                .expect("INFO has it");
        }
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn memory(redis: &Arc<Redis>) -> bool {
    let remote = RedisRemote::new(Arc::clone(redis));
    let keep = Duration::from_secs(3600);
    let name = |number: u64| {
        let key = parts(&format!("/products/{number}")).to_key();
        (Name { primary: key.borrow().digest(), variant: None }, key)
    };
    let flush = async || {
        redis.command::<()>(cmd("FLUSHALL").arg("SYNC")).await.ok();
        // It takes longer than a call may.
        while used(redis).await > 64 << 20 {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        used(redis).await
    };
    let patiently = async |put: &dyn Fn() -> LocalBoxFuture<'static, bool>| {
        while !put().await {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };

    let empty = flush().await;
    let (route, headers) = (route(), headers());
    let now = portway::cache::clock::Timestamp::now();
    let decision = policy::decide(
        &Method::GET,
        &HeaderMap::new(),
        StatusCode::OK,
        &headers,
        now,
        now,
        &Rules::default(),
    );
    let policy::Decision::Store(lifetime) = decision else { panic!("it may be stored") };
    stream::iter(0..ENTRIES)
        .for_each_concurrent(32, |number| {
            let (remote, headers, route) = (Arc::clone(&remote), &headers, Arc::clone(&route));
            async move {
                let (name, key) = name(number);
                let parts = EntryParts {
                    key: key.borrow(),
                    lifetime,
                    filled_at: 1 << 60,
                    status: StatusCode::OK,
                    headers,
                    route: &route.name,
                    tenant: "",
                    tags: &tags(number),
                    compressible: false,
                };
                let value =
                    Bytes::from(codec::encode_entry(&Entry::pack(&parts, &[body(number)]), 0));
                patiently(&|| {
                    let (remote, value) = (Arc::clone(&remote), value.clone());
                    Box::pin(async move {
                        let put = Put {
                            name,
                            value: &value,
                            variants: None,
                            filled_at: 1 << 60,
                            keep,
                            lease: None,
                        };
                        remote.put(&put).await.is_ok()
                    })
                })
                .await;
            }
        })
        .await;
    let entries = used(redis).await - empty;

    let empty = flush().await;
    stream::iter(0..ENTRIES)
        .for_each_concurrent(32, |number| {
            let (redis, lease) = (Arc::clone(redis), remote.lease(&name(number).0));
            async move {
                patiently(&|| {
                    let (redis, lease) = (Arc::clone(&redis), lease.clone());
                    Box::pin(async move {
                        let key = lease.strip_suffix(":lease").unwrap_or(&lease);
                        let mut set = cmd("SET");
                        set.arg(key).arg(&body(number)[..]).arg("PX").arg(3_600_000);
                        redis.command::<()>(&set).await.is_ok()
                    })
                })
                .await;
            }
        })
        .await;
    let bare = used(redis).await - empty;
    let ratio = entries as f64 / bare as f64;
    println!(
        "memory: {} bytes an entry, {} bare, {ratio:.3} x, promise 1.25",
        entries / ENTRIES,
        bare / ENTRIES
    );
    ratio <= 1.25
}

fn main() -> ExitCode {
    let wanted: Vec<String> =
        std::env::args().skip(1).filter(|arg| !arg.starts_with('-')).collect();
    let wants = |name: &str| wanted.is_empty() || wanted.iter().any(|it| it == name);
    let server = Server::start();
    let environment =
        BTreeMap::from([("REDIS_URL".to_owned(), format!("redis://127.0.0.1:{}", server.port))]);
    let config = Config::from_source(&environment).expect("the settings are right");
    let kept = actix_rt::System::new().block_on(async {
        let redis = Redis::start(config.redis.as_ref().expect("Redis is set"));
        while !redis.is_up() {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        let mut kept = true;
        if wants("hit") {
            kept &= hits(&redis).await;
        }
        if wants("memory") {
            kept &= memory(&redis).await;
        }
        kept
    });
    if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}
