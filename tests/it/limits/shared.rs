//! Limits that instances share through Redis, and what becomes of them without it.

use std::{
    net::SocketAddr,
    time::{Duration, Instant},
};

use super::{
    Passed, answering, assert_limited, hammer, items, limited, metric, most_within, parameter,
};
use crate::lab::{
    Answer, Fleet, Gateway, Origin, Redis, Request, SOON, eventually, redis, refusing, within,
};

async fn connected(gateway: &Gateway) {
    eventually("the gateway is connected to Redis", SOON, || async {
        metric(gateway, "portway_redis_up").await == Some(1.0)
    })
    .await;
}

async fn all_connected(fleet: &Fleet) {
    for gateway in fleet.running() {
        connected(gateway).await;
    }
}

/// Three instances with this `limit:` that share a Redis. Each part of a test comes from an address of
/// its own, which has not used up anything yet.
async fn three(limit: &str, redis: &Redis) -> Fleet {
    let fleet = Fleet::routing(answering(limit)).env("TRUSTED_PROXIES", "127.0.0.0/8");
    let fleet = fleet.redis(redis.url()).start(3).await;
    all_connected(&fleet).await;
    fleet
}

fn addresses(fleet: &Fleet) -> Vec<SocketAddr> {
    fleet.running().map(|gateway| gateway.public).collect()
}

async fn degraded(gateway: &Gateway, reason: &str) -> f64 {
    let series = format!(r#"portway_limit_degraded_total{{reason="{reason}"}}"#);
    metric(gateway, &series).await.expect("an instance with Redis counts it")
}

const LIMIT: &str = "{ requests: 50, window: 1s }";
const WINDOW: Duration = Duration::from_secs(1);
const SPAN: Duration = Duration::from_millis(2500);

/// Asserts that together the instances let through what is allowed, and not one request more.
///
/// On a machine so busy that Redis misses its 50 ms an instance decides alone, as it should. Then this
/// tells nothing, and is tried again from another address.
async fn assert_shared(fleet: &Fleet, requests: usize, window: Duration, span: Duration) {
    for attempt in 1..=5 {
        let before = all_degraded(fleet).await;
        let from = format!("198.51.100.{attempt}");
        let work = hammer(addresses(fleet), &from, 48, Instant::now() + span);
        let passed = within(SOON + span, "the clients", work).await;
        if all_degraded(fleet).await == before {
            return assert_limited(&passed, requests, window, span);
        }
    }
    panic!("Redis never answered all calls in time");
}

async fn all_degraded(fleet: &Fleet) -> f64 {
    let mut all = 0.0;
    for gateway in fleet.running() {
        all += degraded(gateway, "away").await;
    }
    all
}

/// Asserts that each instance by itself lets through what [`LIMIT`] says, and says why.
async fn assert_local(fleet: &Fleet, from: &str, reason: &str) {
    let end = Instant::now() + SPAN;
    let each = addresses(fleet).into_iter().map(|address| hammer(vec![address], from, 10, end));
    let all: Vec<Passed> =
        within(SOON + SPAN, "the clients", futures_util::future::join_all(each)).await;
    for passed in all {
        assert_limited(&passed, 50, WINDOW, SPAN);
    }
    for gateway in fleet.running() {
        assert!(degraded(gateway, reason).await > 0.0);
    }
}

/// Waits until each instance asks Redis again, and gets an answer.
async fn until_shared(fleet: &Fleet, reason: &str) {
    for nth in 0..fleet.len() {
        eventually("the limit is shared again", SOON, || async {
            let before = degraded(fleet.instance(nth), reason).await;
            fleet.get(nth, "/").await;
            degraded(fleet.instance(nth), reason).await == before
        })
        .await;
    }
}

#[tokio::test]
async fn three_instances_and_many_clients_get_exactly_what_a_window_allows() {
    let redis = Redis::start().await;
    let fleet = three("{ requests: 100, window: 2s }", &redis).await;
    assert_shared(&fleet, 100, Duration::from_secs(2), Duration::from_millis(7900)).await;
}

#[tokio::test]
async fn with_redis_killed_and_back_every_request_is_answered_and_limited() {
    let mut redis = Redis::start().await;
    let fleet = three(LIMIT, &redis).await;
    // Before, while and after Redis goes; `hammer` takes no answer but 200 and 429.
    let across = hammer(addresses(&fleet), "192.0.2.1", 15, Instant::now() + 2 * WINDOW);
    let killed = async {
        tokio::time::sleep(WINDOW).await;
        redis.kill();
    };
    let (passed, ()) = within(SOON, "the clients", async { tokio::join!(across, killed) }).await;
    let most = most_within(&passed, WINDOW);
    assert!(most <= 4 * 50, "what Redis let through, and what three instances do: {most}");
    assert_local(&fleet, "192.0.2.2", "away").await;

    redis.restart().await;
    until_shared(&fleet, "away").await;
    assert_shared(&fleet, 50, WINDOW, SPAN).await;
}

#[tokio::test]
async fn with_redis_full_instances_count_by_themselves() {
    let redis = Redis::start().await;
    let fleet = three(LIMIT, &redis).await;
    redis.config_set("maxmemory", "1").await;
    assert_local(&fleet, "192.0.2.1", "out_of_memory").await;
    for gateway in fleet.running() {
        let log = gateway.log.text();
        assert_eq!(log.matches("counts rate limits by itself").count(), 1, "{log}");
    }
    redis.config_set("maxmemory", "0").await;
    until_shared(&fleet, "out_of_memory").await;
    assert_shared(&fleet, 50, WINDOW, SPAN).await;
}

#[tokio::test]
async fn with_redis_read_only_instances_count_by_themselves() {
    let redis = Redis::start().await;
    let fleet = three(LIMIT, &redis).await;
    let port = refusing().port().to_string();
    redis.command(&["REPLICAOF", "127.0.0.1", &port]).await;
    assert_local(&fleet, "192.0.2.1", "read_only").await;
    redis.command(&["REPLICAOF", "NO", "ONE"]).await;
    until_shared(&fleet, "read_only").await;
    assert_shared(&fleet, 50, WINDOW, SPAN).await;
}

#[tokio::test]
async fn a_redis_that_hangs_delays_a_request_no_longer_than_the_budget() {
    let redis = Redis::start().await;
    let routes = answering("{ requests: 1000, window: 1m }");
    let gateway = Gateway::routing(routes).env("REDIS_URL", redis.url()).start().await;
    connected(&gateway).await;
    let mut connection = gateway.connect().await;
    connection.ask(&Request::get("/")).await.expect("an answer");
    redis.stop_hanging();
    let mut slow = 0;
    for _ in 0..50 {
        let sent = Instant::now();
        let response = connection.ask(&Request::get("/")).await.expect("an answer");
        assert_eq!(response.status, 200);
        slow += u32::from(sent.elapsed() > Duration::from_millis(45));
    }
    redis.resume();
    assert!((1..=6).contains(&slow), "{slow} requests waited");
}

#[tokio::test]
async fn clients_are_told_the_same_with_redis_as_without() {
    let (origin, redis) = (Origin::start(|_| Answer::cacheable("x")).await, Redis::start().await);
    let limits = "[{ requests: 3, window: 1m }, { requests: 5, window: 1h, by: route }]";
    let fleet = Fleet::routing(limited(&origin, limits)).redis(redis.url()).start(2).await;
    all_connected(&fleet).await;
    let first = fleet.get(0, "/").await;
    assert_eq!((first.status, first.x_cache().as_str()), (200, "MISS"));
    let hit = fleet.get(0, "/").await;
    assert_eq!((hit.status, hit.x_cache().as_str()), (200, "HIT"));
    let limit = items(&hit, "ratelimit");
    assert_eq!((parameter(&limit, "ip", "r"), parameter(&limit, "route", "r")), (1, 3));
    assert_eq!(fleet.get(1, "/").await.status, 200);
    for nth in [0, 1] {
        let refused = fleet.get(nth, "/").await;
        refused.assert_problem(429, "rate_limited");
        let limit = items(&refused, "ratelimit");
        assert_eq!((parameter(&limit, "ip", "r"), parameter(&limit, "route", "r")), (0, 2));
        let after: i64 = refused.header("retry-after").and_then(|v| v.parse().ok()).expect("it");
        assert_eq!(after, parameter(&limit, "ip", "t"));
    }
}

#[tokio::test]
async fn redis_learns_nobodys_address() {
    let redis = Redis::start().await;
    let routes = answering("[{ requests: 9, window: 1m }, { requests: 99, window: 1h }]");
    let gateway = Gateway::routing(routes)
        .env("REDIS_URL", redis.url())
        .env("TRUSTED_PROXIES", "127.0.0.0/8")
        .start()
        .await;
    connected(&gateway).await;
    let request = Request::get("/").header("X-Forwarded-For", "192.0.2.77");
    assert_eq!(gateway.send(&request).await.status, 200);
    let keys = redis.command(&["KEYS", "*"]).await;
    let limits: Vec<&str> = keys.lines().filter(|key| key.starts_with("portway:l:{")).collect();
    assert_eq!(limits.len(), 2, "{keys}");
    for key in &limits {
        let kept = redis.command(&["HGETALL", key]).await;
        assert!(!key.contains("192") && !kept.contains("192.0"), "{key} {kept}");
    }
    let life: i64 = redis.command(&["PTTL", limits[0]]).await.parse().expect("a number");
    assert!(life > 0, "it ends by itself");
}

#[tokio::test]
async fn limits_are_shared_on_a_cluster() {
    let cluster = redis::Cluster::start(Redis::options(), false).await;
    let limits = "[{ requests: 4, window: 1m }, { requests: 9, window: 1h }, { requests: 99, window: 1m, by: route }]";
    let fleet = Fleet::routing(answering(limits))
        .env("REDIS_CLUSTER_NODES", cluster.addresses())
        .env("TRUSTED_PROXIES", "127.0.0.0/8")
        .start(2)
        .await;
    all_connected(&fleet).await;
    for client in 0..5 {
        let request = Request::get("/").header("X-Forwarded-For", format!("192.0.2.{client}"));
        for nth in [0, 1, 0, 1] {
            assert_eq!(fleet.send(nth, &request).await.status, 200);
        }
        let refused = fleet.send(0, &request).await;
        assert_eq!(refused.status, 429);
        let left = 99 - 4 * (client + 1);
        assert_eq!(parameter(&items(&refused, "ratelimit"), "route", "r"), left);
    }
    for gateway in fleet.running() {
        for reason in ["away", "refused"] {
            assert_eq!(degraded(gateway, reason).await, 0.0);
        }
    }
}
