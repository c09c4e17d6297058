//! The link to Redis: what a call costs while Redis is away, and that it heals by itself.

use std::{
    collections::BTreeMap,
    sync::Arc,
    time::{Duration, Instant},
};

use portway::{
    config::{Config, RedisConfig},
    redis::{BUDGET, Error, Redis, Script, cmd},
};

use crate::lab::{Gateway, SOON, eventually, redis::Redis as Server, refusing};

/// What is promised: shared again this long after Redis is back.
pub(crate) const HEALED: Duration = Duration::from_secs(2);

/// What a call may take on a machine that has other things to do. To wait for a connection would take
/// longer.
pub(crate) const A_BUDGET: Duration = BUDGET.saturating_mul(4);

pub(crate) fn config(pairs: &[(&str, &str)]) -> RedisConfig {
    let source: BTreeMap<String, String> =
        pairs.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    Config::from_source(&source).expect("valid").redis.expect("set")
}

pub(crate) fn link(url: &str) -> Arc<Redis> {
    Redis::start(&config(&[("REDIS_URL", url)]))
}

pub(crate) async fn up(redis: &Redis) {
    eventually("the link is up", HEALED, || async { redis.is_up() }).await;
}

pub(crate) async fn set(redis: &Redis, key: &str, value: &str) -> Result<(), Error> {
    redis.command(cmd("SET").arg(key).arg(value)).await
}

pub(crate) async fn get(redis: &Redis, key: &str) -> Result<Option<String>, Error> {
    redis.command(cmd("GET").arg(key)).await
}

#[tokio::test]
async fn commands_and_scripts_are_answered() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    assert_eq!(get(&redis, "k").await, Ok(Some("v".to_owned())));
    let script = Script::new("return {KEYS[1], ARGV[1]}");
    let invocation = script.key("a");
    let mut invocation = invocation;
    let answer: Vec<String> = redis.script(invocation.arg("b")).await.expect("an answer");
    assert_eq!(answer, ["a", "b"]);
    let health = redis.health();
    assert!(health.up && health.connected && health.latency.is_some(), "{health:?}");
    assert_eq!((health.error, health.mode), (None, "single"));
}

#[tokio::test]
async fn a_hung_redis_costs_a_few_calls_their_budget_and_then_nothing() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    server.stop_hanging();
    let began = Instant::now();
    let mut waited = 0;
    while redis.is_up() {
        let call = Instant::now();
        assert_eq!(get(&redis, "k").await, Err(Error::Away));
        assert!(call.elapsed() < A_BUDGET, "{:?}", call.elapsed());
        waited += u32::from(call.elapsed() >= BUDGET);
        assert!(waited <= 8, "five in a row are enough");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    let calls = Instant::now();
    for _ in 0..100 {
        assert_eq!(get(&redis, "k").await, Err(Error::Away));
    }
    assert!(calls.elapsed() < A_BUDGET, "{:?}", calls.elapsed());
    assert!(!redis.health().up);

    server.resume();
    up(&redis).await;
    assert_eq!(get(&redis, "k").await, Ok(Some("v".to_owned())));
}

#[tokio::test]
async fn calls_beside_each_other_share_the_wait_for_a_hung_redis() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    server.stop_hanging();
    let began = Instant::now();
    let calls = (0..2000).map(|_| get(&redis, "k"));
    let answers = futures_util::future::join_all(calls).await;
    assert!(answers.iter().all(|answer| *answer == Err(Error::Away)));
    assert!(began.elapsed() < A_BUDGET, "{:?}", began.elapsed());
    assert!(!redis.is_up());
    server.resume();
    up(&redis).await;
    assert_eq!(get(&redis, "k").await, Ok(Some("v".to_owned())));
}

#[tokio::test]
async fn a_hang_is_noticed_without_any_call() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    server.stop_hanging();
    eventually("the link is down", HEALED, || async { !redis.is_up() }).await;
    server.resume();
    up(&redis).await;
}

#[tokio::test]
async fn a_killed_redis_is_used_again_when_it_is_back() {
    let mut server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    server.kill();
    let call = Instant::now();
    assert_eq!(get(&redis, "k").await, Err(Error::Away));
    assert!(call.elapsed() < A_BUDGET, "{:?}", call.elapsed());
    assert!(!redis.is_up(), "a refused connection is enough");
    assert!(redis.health().error.expect("a reason").contains("refused"));
    server.restart().await;
    up(&redis).await;
    assert_eq!(get(&redis, "k").await, Ok(None), "it began empty");
}

#[tokio::test]
async fn a_redis_that_comes_later_is_found() {
    let mut server = Server::start().await;
    server.kill();
    let redis = link(&server.url());
    for _ in 0..100 {
        assert_eq!(get(&redis, "k").await, Err(Error::Away));
    }
    server.restart().await;
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
}

#[tokio::test]
async fn a_call_on_a_dead_connection_is_sent_again_on_a_new_one() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    for _ in 0..3 {
        server.command(&["CLIENT", "KILL", "TYPE", "normal"]).await;
        assert_eq!(get(&redis, "k").await, Ok(Some("v".to_owned())));
    }
}

#[tokio::test]
async fn a_script_is_loaded_again_after_it_was_forgotten() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    let script = Script::new("return redis.call('INCR', KEYS[1])");
    for expected in 1..=3 {
        assert_eq!(redis.script(&script.key("n")).await, Ok(expected));
        server.command(&["SCRIPT", "FLUSH"]).await;
    }
}

#[tokio::test]
async fn a_read_only_server_says_so_and_still_reads() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    // A primary that cannot be reached leaves the data alone.
    let refused = refusing();
    let port = refused.port().to_string();
    server.command(&["REPLICAOF", &refused.ip().to_string(), &port]).await;
    assert_eq!(set(&redis, "k", "w").await, Err(Error::ReadOnly));
    let write = Script::new("return redis.call('SET', KEYS[1], ARGV[1])");
    let mut write = write.key("k");
    assert_eq!(redis.script::<()>(write.arg("w")).await, Err(Error::ReadOnly));
    assert_eq!(get(&redis, "k").await, Ok(Some("v".to_owned())));
    let health = redis.health();
    assert!(health.up);
    assert_eq!(health.error.as_deref(), Some("READONLY"));
    server.command(&["REPLICAOF", "NO", "ONE"]).await;
    assert_eq!(set(&redis, "k", "w").await, Ok(()));
}

#[tokio::test]
async fn a_full_redis_says_so_and_still_reads() {
    let server = Server::options().set("maxmemory-policy", "noeviction").start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    server.config_set("maxmemory", "1").await;
    let write = Script::new("return redis.call('SET', KEYS[1], ARGV[1])");
    for _ in 0..10 {
        assert_eq!(set(&redis, "k", "w").await, Err(Error::OutOfMemory));
        let mut write = write.key("k");
        assert_eq!(redis.script::<()>(write.arg("w")).await, Err(Error::OutOfMemory));
        assert_eq!(get(&redis, "k").await, Ok(Some("v".to_owned())));
    }
    assert!(redis.is_up());
}

#[tokio::test]
async fn a_busy_redis_is_left_alone_until_it_is_free() {
    let server = Server::options().set("busy-reply-threshold", "20").start().await;
    let redis = link(&server.url());
    up(&redis).await;
    let endless = Script::new("while true do end");
    assert_eq!(redis.script::<()>(&endless.prepare_invoke()).await, Err(Error::Away));
    eventually("the link is down", HEALED, || async {
        let _ = get(&redis, "k").await;
        !redis.is_up()
    })
    .await;
    server.command(&["SCRIPT", "KILL"]).await;
    up(&redis).await;
}

#[tokio::test]
async fn a_wrong_password_is_named_but_not_shown() {
    let server = Server::options().password("r1ght").start().await;
    let redis = link(&format!("redis://:wr0ng@{}", server.addr));
    eventually("the reason is known", HEALED, || async { redis.health().error.is_some() }).await;
    let health = redis.health();
    assert!(!health.up && !health.connected);
    let error = health.error.expect("a reason");
    assert!(!error.contains("wr0ng"), "{error}");
    assert!(error.contains("WRONGPASS"), "{error}");

    let redis = Redis::start(&config(&[
        ("REDIS_HOST", "127.0.0.1"),
        ("REDIS_PORT", &server.addr.port().to_string()),
        ("REDIS_PASSWORD", "r1ght"),
        ("REDIS_DB", "3"),
    ]));
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    let info = server.command(&["INFO", "keyspace"]).await;
    assert!(info.contains("db3:keys=1"), "{info}");
}

#[tokio::test]
async fn a_server_that_speaks_something_else_is_not_believed() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let addr = listener.local_addr().expect("bound");
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            use tokio::io::AsyncWriteExt as _;
            let _ = stream.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n").await;
        }
    });
    let redis = link(&format!("redis://{addr}"));
    eventually("the reason is known", HEALED, || async { redis.health().error.is_some() }).await;
    assert!(!redis.is_up());
}

#[tokio::test]
async fn a_reply_of_another_form_is_the_callers_to_handle() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    for _ in 0..10 {
        let number: Result<u64, Error> = redis.command(cmd("GET").arg("k")).await;
        assert!(matches!(number, Err(Error::Failed(_))), "{number:?}");
        let refused: Result<(), Error> = redis.command(cmd("LPUSH").arg("k").arg("x")).await;
        assert!(matches!(refused, Err(Error::Failed(_))), "{refused:?}");
    }
    assert!(redis.is_up());
}

/// The answer of `/health/redis`.
async fn health(gateway: &Gateway) -> (u16, serde_json::Value) {
    let answer = gateway.get("/health/redis").await;
    (answer.status, answer.json())
}

pub(crate) async fn reports(gateway: &Gateway, status: u16) {
    let what = format!("/health/redis answers {status}");
    eventually(&what, HEALED, || async { health(gateway).await.0 == status }).await;
}

#[tokio::test]
async fn health_follows_redis_and_readiness_does_not_fail() {
    let mut server = Server::start().await;
    let builder = Gateway::before(&format!("http://{}", refusing()));
    let gateway = builder.env("REDIS_URL", server.url()).start().await;
    reports(&gateway, 200).await;
    let (_, body) = health(&gateway).await;
    assert_eq!((&body["status"], &body["connected"]), (&"up".into(), &true.into()));
    assert!(body["latency"].as_f64().is_some_and(|ms| ms > 0.0 && ms < 50.0), "{body}");
    assert!(body["error"].is_null() && body["cache"]["l1"]["max_bytes"].is_u64(), "{body}");
    assert_eq!(gateway.get("/api/health/redis").await.status, 200);

    server.stop_hanging();
    reports(&gateway, 503).await;
    let ready = gateway.get("/health/ready").await;
    assert_eq!(ready.status, 200);
    let ready = ready.json();
    assert_eq!(ready["status"], "degraded");
    assert!(ready["degraded"]["redis"].is_string(), "{ready}");
    server.resume();
    reports(&gateway, 200).await;

    server.kill();
    reports(&gateway, 503).await;
    let (_, body) = health(&gateway).await;
    assert_eq!((&body["status"], &body["connected"]), (&"down".into(), &false.into()));
    server.restart().await;
    reports(&gateway, 200).await;
    assert!(gateway.get("/health/ready").await.json()["degraded"]["redis"].is_null());
}

#[tokio::test]
async fn a_gateway_starts_with_redis_away() {
    let mut server = Server::start().await;
    server.kill();
    let builder = Gateway::before(&format!("http://{}", refusing()));
    let url = format!("redis://:s3cret@{}", server.addr);
    let gateway = builder.env("REDIS_URL", url).start().await;
    assert_eq!(health(&gateway).await.0, 503);
    assert_eq!(gateway.get("/health/ready").await.status, 200);
    eventually("the log says so", SOON, || async { gateway.log.text().contains("Redis is away") })
        .await;
    assert!(!gateway.log.text().contains("s3cret"));
}

#[tokio::test]
async fn without_redis_its_health_is_disabled() {
    let gateway = Gateway::before(&format!("http://{}", refusing())).start().await;
    let (status, body) = health(&gateway).await;
    assert_eq!((status, &body["status"]), (200, &"disabled".into()), "{body}");
    assert!(!gateway.admin(crate::lab::Request::get("/metrics")).await.text().contains("_redis_"));
}

#[tokio::test]
async fn a_redis_that_comes_and_goes_does_not_fill_the_log() {
    let mut server = Server::start().await;
    let builder = Gateway::before(&format!("http://{}", refusing()));
    let gateway = builder.env("REDIS_URL", server.url()).start().await;
    reports(&gateway, 200).await;
    for _ in 0..3 {
        server.kill();
        reports(&gateway, 503).await;
        server.restart().await;
        reports(&gateway, 200).await;
    }
    let log = gateway.log.text();
    assert!((1..=2).contains(&log.matches("Redis is away").count()), "{log}");
    let metrics = gateway.admin(crate::lab::Request::get("/metrics")).await.text();
    assert!(metrics.contains("portway_redis_up 1"), "{metrics}");
    let line = metrics.lines().find(|line| line.starts_with("portway_redis_reconnects_total"));
    let count: Option<u64> = line.and_then(|line| line.split(' ').next_back()?.parse().ok());
    assert!(count >= Some(3), "{metrics}");
}
