//! Filled through one instance, served by the other, over every form of Redis, and after a restart of
//! both.

use std::{
    io::Read as _,
    time::{Duration, Instant},
};

use super::{by_key, routes};
use crate::lab::{
    Answer, Fleet, Origin, Redis, Request, Response, SOON, Seen,
    fleet::{Builder, get},
    random::Random,
    redis::{Cluster, Sentinel},
    wait_for,
};

/// 100 KiB that compress well.
fn large() -> String {
    "compressible ".repeat(8 << 10)
}

async fn catalogue() -> Origin {
    Origin::start(|seen: &Seen| match seen.path() {
        "/language" => {
            let language = seen.header("accept-language").unwrap_or_default();
            let body = format!("in {language}, asked {}", seen.nth);
            Answer::cacheable(body).header("Vary", "Accept-Language")
        }
        "/large" => Answer::cacheable(large()).header("Content-Type", "text/plain"),
        "/aged" => Answer::cacheable("aged").header("Age", "10"),
        "/checked" => Answer::cacheable("0123456789")
            .header("ETag", "\"one\"")
            .header("Date", httpdate::fmt_http_date(std::time::SystemTime::now()))
            .header("Content-Type", "text/plain")
            .header("X-Two", "2"),
        path => Answer::cacheable(format!("{path} asked {}", seen.nth)),
    })
    .await
}

#[track_caller]
fn assert_hit(response: &Response, body: &str) {
    assert_eq!((response.x_cache().as_str(), response.text().as_str()), ("HIT", body));
    assert_eq!(response.status, 200);
}

/// What every form of Redis must do for two instances, which it returns.
async fn two_instances_share(builder: Builder, origin: &Origin) -> Fleet {
    let mut fleet = builder.start(2).await;
    fleet.linked().await;
    let filled = Instant::now();
    for n in 0..5 {
        let target = format!("/k/{n}");
        assert_eq!(fleet.get(n % 2, &target).await.x_cache(), "MISS");
        assert_hit(&fleet.get(1 - n % 2, &target).await, &format!("{target} asked 1"));
    }
    fleet.purge(1, serde_json::json!({ "tag": "k:0" })).await;
    assert_eq!(fleet.get(0, "/k/0").await.text(), "/k/0 asked 2", "purged through the other");
    assert_hit(&fleet.get(1, "/k/0").await, "/k/0 asked 2");
    fleet.purge(0, by_key("/k/1")).await;
    assert_eq!(fleet.get(1, "/k/1").await.text(), "/k/1 asked 2", "purged through the other");

    // Both at once: nothing is left but what Redis has.
    fleet.kill(0);
    fleet.kill(1);
    for nth in 0..2 {
        fleet.restart(nth).await;
    }
    fleet.linked().await;
    let age = filled.elapsed().as_secs();
    for n in 2..5 {
        let hit = fleet.get(n % 2, &format!("/k/{n}")).await;
        assert_hit(&hit, &format!("/k/{n} asked 1"));
        assert!(hit.age().is_some_and(|a| a + 1 >= age && a <= age + 2), "{:?}", hit.headers);
    }
    assert_hit(&fleet.get(1, "/k/0").await, "/k/0 asked 2");
    assert_eq!(origin.total(), 7);
    origin.assert_strict();
    fleet
}

#[tokio::test]
async fn two_instances_share_over_one_redis() {
    let (origin, redis) = (catalogue().await, Redis::start().await);
    two_instances_share(Fleet::routing(routes(&origin)).redis(redis.url()), &origin).await;
}

#[tokio::test]
async fn two_instances_share_over_valkey() {
    let Some(valkey) = Redis::valkey() else { return println!("there is no Valkey here") };
    let (origin, valkey) = (catalogue().await, valkey.start().await);
    two_instances_share(Fleet::routing(routes(&origin)).redis(valkey.url()), &origin).await;
}

#[tokio::test]
async fn two_instances_share_over_tls_with_a_password() {
    let password = "pa55word-of-redis";
    let redis = Redis::options().password(password).tls().start().await;
    let origin = catalogue().await;
    let builder = Fleet::routing(routes(&origin)).redis(redis.tls_url());
    let certificate = redis.certificate().display().to_string();
    let builder = builder.env("SSL_CERT_FILE", certificate).env("RUST_LOG", "debug");
    let fleet = two_instances_share(builder, &origin).await;
    for gateway in fleet.running() {
        let metrics = gateway.admin(Request::get("/metrics")).await.text();
        for told in [gateway.log.text(), metrics] {
            assert!(!told.contains(password), "the password is told");
        }
    }
}

#[tokio::test]
async fn two_instances_share_over_sentinels() {
    let sentinel = Sentinel::start(Redis::options()).await;
    let origin = catalogue().await;
    two_instances_share(Fleet::routing(routes(&origin)).redis(sentinel.url()), &origin).await;
}

#[tokio::test]
async fn two_instances_share_over_a_cluster() {
    let cluster = Cluster::start(Redis::options(), false).await;
    let origin = catalogue().await;
    let builder = Fleet::routing(routes(&origin)).env("REDIS_CLUSTER_NODES", cluster.addresses());
    two_instances_share(builder, &origin).await;
}

#[tokio::test]
async fn each_variant_is_fetched_once_for_all() {
    let (origin, redis) = (catalogue().await, Redis::start().await);
    let fleet = super::of(2, &origin, &redis).await;
    let ask = |language: &str| Request::get("/language").header("Accept-Language", language);
    for (nth, language) in ["de", "en", "fr"].into_iter().enumerate() {
        let body = format!("in {language}, asked {}", nth + 1);
        let first = fleet.send(nth % 2, &ask(language)).await;
        assert_eq!((first.x_cache().as_str(), first.text()), ("MISS", body.clone()));
        assert_hit(&fleet.send(1 - nth % 2, &ask(language)).await, &body);
    }
    for nth in 0..2 {
        assert_hit(&fleet.send(nth, &ask("de")).await, "in de, asked 1");
    }
    fleet.purge(0, by_key("/language")).await;
    assert_eq!(fleet.send(1, &ask("en")).await.text(), "in en, asked 4");
}

#[tokio::test]
async fn a_large_body_is_small_in_redis_and_whole_at_the_other_instance() {
    let (origin, redis) = (catalogue().await, Redis::start().await);
    let fleet = super::of(2, &origin, &redis).await;
    fleet.get(0, "/large").await;
    assert_hit(&fleet.get(1, "/large").await, &large());
    // It is made beside the first answer to somebody who would have liked it.
    let zipped = wait_for("a gzip hit", SOON, || async {
        let request = Request::get("/large").header("Accept-Encoding", "gzip");
        let answer = fleet.send(1, &request).await;
        (answer.header("content-encoding") == Some("gzip")).then_some(answer)
    })
    .await;
    let mut text = String::new();
    flate2::read::GzDecoder::new(&zipped.body[..]).read_to_string(&mut text).unwrap();
    assert_eq!(text, large());
    assert_eq!(origin.total(), 1);
    for key in redis.try_command(&["KEYS", "lab:*"]).await.unwrap().strings() {
        let words = [b"MEMORY".to_vec(), b"USAGE".to_vec(), key.clone()].to_vec();
        let bytes: usize = redis.try_bytes(words).await.unwrap().text().parse().unwrap();
        assert!(bytes < 20 << 10, "{bytes} bytes at {}", String::from_utf8_lossy(&key));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bodies_of_megabytes_are_shared_and_hold_up_nothing_small() {
    // Nothing that could be compressed.
    let noise = |seed: &str| {
        let mut random =
            Random::seeded(seed.len() as u64 + seed.bytes().map(u64::from).sum::<u64>());
        std::iter::repeat_with(|| random.next().to_le_bytes()).take(512 << 10).flatten().collect()
    };
    let origin = Origin::start(move |seen: &Seen| {
        let body: Vec<u8> =
            if seen.path().starts_with("/big") { noise(seen.path()) } else { vec![7] };
        Answer::cacheable(body)
    })
    .await;
    let redis = Redis::start().await;
    let fleet = super::of(2, &origin, &redis).await;
    for n in 0..3 {
        let target = format!("/big/{n}");
        assert_eq!(fleet.get(n % 2, &target).await.body, noise(&target));
        super::faults::until_shared(&fleet, &origin, &format!("beside-{n}")).await;
        let other = fleet.get(1 - n % 2, &target).await;
        assert!(other.body == noise(&target), "another body for {target}");
    }
    // Not each of them has to fit into the time that Redis is given on a busy machine.
    let shared = (0..3).filter(|n| origin.count(&format!("/big/{n}")) == 1).count();
    assert!(shared > 0, "none of them is shared");
}

#[tokio::test]
async fn the_other_instance_answers_in_every_way_the_first_could() {
    let (origin, redis) = (catalogue().await, Redis::start().await);
    let fleet = super::of(2, &origin, &redis).await;
    let filled = fleet.get(0, "/checked").await;
    // Each of these is the first thing the second instance is asked about the entry.
    let ways: [(Request, u16, &str); 4] = [
        (Request::new("HEAD", "/checked"), 200, ""),
        (get("/checked").header("Range", "bytes=2-4"), 206, "234"),
        (get("/checked").header("If-None-Match", "\"one\""), 304, ""),
        (get("/checked"), 200, "0123456789"),
    ];
    let mut fleet = fleet;
    for (request, status, body) in ways {
        fleet.restart(1).await;
        fleet.linked().await;
        let answer = fleet.send(1, &request).await;
        assert_eq!((answer.status, answer.text().as_str()), (status, body));
        assert_eq!(answer.x_cache(), "HIT", "{status}");
        assert_eq!(answer.header("etag"), Some("\"one\""));
        if status != 304 {
            for name in ["content-type", "x-two", "date"] {
                assert_eq!(answer.header(name), filled.header(name), "{name} of {status}");
            }
        }
    }
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn age_counts_from_the_origin_on_every_instance() {
    let (origin, redis) = (catalogue().await, Redis::start().await);
    let fleet = super::of(2, &origin, &redis).await;
    fleet.get(0, "/aged").await;
    for nth in [1, 0] {
        let age = fleet.get(nth, "/aged").await.age();
        assert!(age.is_some_and(|a| (10..=13).contains(&a)), "{age:?}");
    }
    // Gone on while nobody looked, also for an instance that had it from the other.
    tokio::time::sleep(Duration::from_millis(2100)).await;
    for nth in [1, 0] {
        let age = fleet.get(nth, "/aged").await.age();
        assert!(age.is_some_and(|a| (12..=15).contains(&a)), "{age:?}");
    }
    assert_eq!(origin.total(), 1);
}
