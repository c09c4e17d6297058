//! Coherence: no read that began after a purge was acknowledged returns what was purged, at any
//! instance.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use serde_json::json;

use super::{before, by_key, history, routes};
use crate::lab::{
    Answer, Fleet, Gate, Origin, Redis, Request, SOON, Seen, Signal, eventually,
    fault_proxy::{FaultProxy, Faults},
    fleet::{confirmed, get},
    wait_for, within,
};

/// How long a link may be silently dead before its instance trusts its memory no longer.
const DEAD_LINK: Duration = Duration::from_secs(5);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_after_an_acknowledged_purge_returns_older_data() {
    const KEYS: usize = 20;
    let redis = Redis::start().await;
    let (fleet, origin, data) = history::fleet(3, KEYS, &redis, |b| b).await;
    let started = Instant::now();
    let run = history::Run { keys: KEYS, clients: 12, operations: 3000, puts: true, seed: 3 };
    let mut outcome = run.at(&fleet, &data).await;
    outcome.print(started.elapsed());
    outcome.assert_nothing_old();
    outcome.assert_confirmed();
    assert!(outcome.hits > outcome.reads / 10, "{} hits", outcome.hits);
    origin.assert_strict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_read_after_an_acknowledged_purge_returns_older_data_over_breaking_links() {
    let run = history::Run { keys: 10, clients: 8, operations: 800, puts: false, seed: 4 };
    history::over_breaking_links(run).await.assert_nothing_old();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_purge_takes_effect_at_the_other_instances_within_150_ms() {
    let redis = Redis::start().await;
    let (fleet, _origin, data) = history::fleet(3, 1, &redis, |b| b).await;
    let mut times = history::purge_to_effect(&fleet, &data, 200).await;
    let (half, most) = (history::percentile(&mut times, 50), history::percentile(&mut times, 99));
    println!("purge to effect: p50 {half:.2?}, p99 {most:.2?}");
    assert!(most <= Duration::from_millis(150), "{most:?}");
}

#[tokio::test]
async fn a_purge_overtakes_the_fill_of_another_instance() {
    let gates = [Gate::closed(), Gate::closed(), Gate::closed(), Gate::closed()];
    let held = gates.clone();
    let origin = Origin::start(move |seen: &Seen| {
        let nth: usize = seen.path().rsplit('/').next().and_then(|n| n.parse().ok()).unwrap_or(0);
        if seen.nth == 1 { Answer::ok("old").gated(&held[nth]) } else { Answer::ok("new") }
    })
    .await;
    let redis = Redis::start().await;
    let fleet = super::of(2, &origin, &redis).await;
    let selectors = [
        json!({ "tag": "k:0" }),
        by_key("/k/1"),
        json!({ "prefix": "/k/" }),
        json!({ "all": true }),
    ];
    for (nth, selector) in selectors.into_iter().enumerate() {
        let target = format!("/k/{nth}");
        let mut early = fleet.instance(0).connect().await;
        early.write(&get(&target).bytes("")).await.unwrap();
        eventually("the fill is upstream", SOON, || async { origin.count(&target) == 1 }).await;
        let answer = fleet.purge(1, selector.clone()).await;
        assert!(confirmed(&answer, 2), "{answer}");
        gates[nth].open();
        // Whoever asked before the purge may get what was true then.
        within(SOON, "the early one", early.response("GET")).await.unwrap();
        for instance in [1, 0, 1, 0] {
            let text = fleet.get(instance, &target).await.text();
            assert_eq!(text, "new", "at {instance}, purged by {selector}");
        }
    }
}

#[tokio::test]
async fn a_soft_purge_is_soft_at_every_instance() {
    let origin = Origin::start(|seen: &Seen| Answer::ok(seen.nth.to_string())).await;
    let redis = Redis::start().await;
    let fleet = super::of(2, &origin, &redis).await;
    for nth in [0, 1, 0, 1] {
        assert_eq!(fleet.get(nth, "/k/1").await.text(), "1");
    }
    fleet.purge(0, json!({ "tag": "k:1", "soft": true })).await;
    let stale = fleet.get(1, "/k/1").await;
    assert_eq!((stale.x_cache().as_str(), stale.text().as_str()), ("STALE", "1"));
    for nth in 0..2 {
        eventually("the refreshed version is served", SOON, || async {
            fleet.get(nth, "/k/1").await.text() == "2"
        })
        .await;
    }
    assert_eq!(origin.total(), 2, "refreshed once for both");
}

#[tokio::test]
async fn a_write_through_any_instance_is_seen_at_all() {
    let redis = Redis::start().await;
    let (fleet, _origin, data) = history::fleet(2, 1, &redis, |b| b).await;
    for round in 0..20 {
        for nth in 0..2 {
            fleet.get(nth, "/k/0").await;
        }
        let put = fleet.send(round % 2, &Request::new("PUT", "/k/0").body("")).await;
        let written: u64 = put.header("x-version").and_then(|v| v.parse().ok()).expect("a version");
        data.acknowledge(0, written);
        let read = fleet.get(1 - round % 2, "/k/0").await;
        assert_eq!(history::version(&read, 0), Ok(written), "at the other instance");
    }
}

#[tokio::test]
async fn a_silently_cut_link_is_noticed_within_five_seconds() {
    let redis = Redis::start().await;
    let proxy = FaultProxy::start(redis.addr, 5).await;
    let behind = redis.url_by(proxy.addr());
    let settings = |b: crate::lab::fleet::Builder| {
        b.env_of(1, "REDIS_URL", &behind).env("CACHE_L1_TTL", "60s")
    };
    let (fleet, _origin, data) = history::fleet(2, 1, &redis, settings).await;
    for _ in 0..3 {
        fleet.get(1, "/k/0").await;
    }
    let only_where = Some("SUBSCRIBE");
    proxy.set(Faults { half_open: true, only_where, ..Faults::default() });
    // Before it is noticed, and after that, when the instance has known for a while.
    for round in 0..2 {
        let wanted = data.write(0);
        let purged = Instant::now();
        let answer = fleet.purge(0, json!({ "tag": "k:0" })).await;
        assert!(!confirmed(&answer, 2), "instance 1 hears nothing: {answer}");
        wait_for("the purge is seen", SOON, || async {
            let answer = fleet.get(1, "/k/0").await;
            (history::version(&answer, 0).expect("a version") >= wanted).then_some(())
        })
        .await;
        let stale = purged.elapsed();
        println!("round {round}: stale for {stale:.2?}");
        assert!(stale <= DEAD_LINK, "{stale:?}");
    }
    // The link's end and a new one heal it, with nobody restarted.
    proxy.set(Faults::default());
    fleet.linked().await;
    for nth in [1, 0] {
        let answer = fleet.get(nth, "/k/0").await;
        assert_eq!(history::version(&answer, 0), Ok(2));
    }
}

#[tokio::test]
async fn a_message_lost_in_a_cut_link_is_not_missed() {
    let redis = Redis::start().await;
    let proxy = FaultProxy::start(redis.addr, 6).await;
    let behind = redis.url_by(proxy.addr());
    let settings = |b: crate::lab::fleet::Builder| {
        b.env_of(1, "REDIS_URL", &behind).env("CACHE_L1_TTL", "60s")
    };
    let (fleet, _origin, data) = history::fleet(2, 1, &redis, settings).await;
    for _ in 0..5 {
        // Stored everywhere: a lease whose holder is cut off would be waited for.
        for nth in [1, 0, 1, 1] {
            fleet.get(nth, "/k/0").await;
        }
        // New connections are refused for a moment: the purge falls between the old link and the new.
        proxy.set(Faults { refuse: true, ..Faults::default() });
        proxy.cut_all();
        let wanted = data.write(0);
        let purged = Instant::now();
        let reading = async {
            tokio::time::sleep(Duration::from_millis(100)).await;
            proxy.set(Faults::default());
            wait_for("the purge is seen", SOON, || async {
                let answer = fleet.get(1, "/k/0").await;
                (history::version(&answer, 0).expect("a version") >= wanted).then_some(())
            })
            .await;
            purged.elapsed()
        };
        let (stale, _) = tokio::join!(reading, fleet.purge(0, json!({ "tag": "k:0" })));
        println!("stale for {stale:.2?}");
        assert!(stale <= Duration::from_secs(2), "{stale:?}");
        fleet.linked().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_instance_that_starts_serves_nothing_purged_before() {
    const KEYS: usize = 10;
    let redis = Redis::start().await;
    let (mut fleet, _origin, data) = history::fleet(2, KEYS, &redis, |b| b).await;
    let addresses: Vec<_> = fleet.running().map(|g| (g.public, g.admin)).collect();
    let writing = {
        let data = Arc::clone(&data);
        tokio::spawn(async move {
            for key in (0..KEYS).cycle() {
                let (public, admin) = addresses[key % addresses.len()];
                get(format!("/k/{key}")).send(public).await.expect("it answers");
                let version = data.write(key);
                let body = json!({ "tag": format!("k:{key}") }).to_string();
                let purge = Request::post("/admin/v1/cache/purge", body)
                    .header("Content-Type", "application/json");
                let answer = purge.send(admin).await.expect("it answers").json();
                // The instance that starts may be known before it can answer, or not be known.
                if answer["instances"]["missing"] == json!([]) {
                    data.acknowledge(key, version);
                }
                get(format!("/k/{key}")).send(public).await.expect("it answers");
            }
        })
    };
    let third = fleet.add().await;
    for round in 0..4 {
        for key in (0..KEYS).chain(0..KEYS).chain(0..KEYS) {
            let least = data.acknowledged(key);
            let answer = fleet.get(third, &format!("/k/{key}")).await;
            let version = history::version(&answer, key).expect("a version");
            assert!(version >= least, "round {round}: {version} of {key}, not {least}");
        }
        fleet.restart(third).await;
    }
    writing.abort();
    assert!(data.acknowledged(0) > 0, "nothing was acknowledged meanwhile");
}

#[tokio::test]
async fn a_purge_without_redis_works_where_it_was_asked_and_says_who_missed_it() {
    let origin = Origin::start(|seen: &Seen| Answer::ok(seen.nth.to_string())).await;
    let mut redis = Redis::start().await;
    let fleet = before(&origin, &redis).env("CACHE_L1_TTL", "1s").start(2).await;
    fleet.linked().await;
    for nth in [0, 1] {
        assert_eq!(fleet.get(nth, "/k/1").await.text(), "1");
    }
    redis.kill();
    let answer = fleet.purge(0, json!({ "tag": "k:1" })).await;
    assert!(!confirmed(&answer, 2), "{answer}");
    assert_eq!(fleet.get(0, "/k/1").await.text(), "2");
    eventually("the other forgets it with its memory's own limit", SOON, || async {
        fleet.get(1, "/k/1").await.text() != "1"
    })
    .await;
}

#[tokio::test]
async fn a_purge_names_an_instance_that_redis_forgot() {
    let redis = Redis::start().await;
    let proxy = FaultProxy::start(redis.addr, 7).await;
    let behind = redis.url_by(proxy.addr());
    let settings = |b: crate::lab::fleet::Builder| {
        b.env_of(1, "REDIS_URL", &behind).env("CACHE_L1_TTL", "60s")
    };
    let (fleet, _origin, data) = history::fleet(2, 1, &redis, settings).await;
    for nth in [1, 0, 1] {
        fleet.get(nth, "/k/0").await;
    }
    // Its messages and beats are lost; it relies on what it knows for a while still.
    proxy.set(Faults { half_open: true, ..Faults::default() });
    redis.command(&["FLUSHALL"]).await;
    let wanted = data.write(0);
    let answer = fleet.purge(0, json!({ "tag": "k:0" })).await;
    let read = fleet.get(1, "/k/0").await;
    let old = history::version(&read, 0).expect("a version") < wanted;
    let missing = answer["instances"]["missing"].as_array().map_or(0, Vec::len);
    assert!(
        !old || missing == 1,
        "instance 1 serves what was purged, and nobody says so: {answer}"
    );
}

#[tokio::test]
async fn an_instance_that_was_frozen_trusts_nothing_it_remembers() {
    let redis = Redis::start().await;
    let settings = |b: crate::lab::fleet::Builder| b.env("CACHE_L1_TTL", "60s");
    let (fleet, _origin, data) = history::fleet(2, 1, &redis, settings).await;
    for nth in [1, 1, 0] {
        fleet.get(nth, "/k/0").await;
    }
    fleet.instance(1).signal(Signal::Stop);
    let wanted = data.write(0);
    let answer = fleet.purge(0, json!({ "tag": "k:0" })).await;
    assert_eq!(answer["instances"]["missing"].as_array().map(Vec::len), Some(1), "{answer}");
    // As long as its silence is worth to anybody, and longer.
    tokio::time::sleep(Duration::from_millis(3500)).await;
    fleet.instance(1).signal(Signal::Cont);
    let first = fleet.get(1, "/k/0").await;
    assert_eq!(history::version(&first, 0), Ok(wanted), "{:?}", first.headers);
}

#[tokio::test]
async fn what_was_written_while_redis_hung_is_not_undone_when_it_is_back() {
    let redis = Redis::start().await;
    let (fleet, origin, data) = history::fleet(2, 2, &redis, |b| b.env("CACHE_L1_TTL", "1s")).await;
    for nth in [0, 1, 0, 1] {
        fleet.get(nth, "/k/0").await;
        fleet.get(nth, "/k/1").await;
    }
    redis.stop_hanging();
    let written = fleet.send(0, &Request::new("PUT", "/k/0").body("")).await;
    assert_eq!(written.status, 200, "a write does not wait for Redis");
    let purged = data.write(1);
    fleet.purge(0, json!({ "tag": "k:1" })).await;
    for key in 0..2 {
        let here = fleet.get(0, &format!("/k/{key}")).await;
        assert_eq!(history::version(&here, key), Ok(1), "where it was written");
    }
    redis.resume();
    super::faults::until_shared(&fleet, &origin, "hung").await;
    fleet.linked().await;
    // Past the time that the other's own memory may be older.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    for nth in [1, 0, 1, 0] {
        for key in 0..2 {
            let answer = fleet.get(nth, &format!("/k/{key}")).await;
            assert_eq!(history::version(&answer, key), Ok(purged), "{key} at {nth}");
        }
    }
}

#[tokio::test]
async fn fleets_with_namespaces_of_their_own_do_not_meet() {
    let origin = Origin::start(|seen: &Seen| Answer::ok(seen.nth.to_string())).await;
    let redis = Redis::start().await;
    let one = super::of(1, &origin, &redis).await;
    let builder = Fleet::routing(routes(&origin)).redis(redis.url());
    let other = builder.env("CACHE_NAMESPACE", "other").start(1).await;
    other.linked().await;
    assert_eq!(one.get(0, "/k/1").await.text(), "1");
    assert_eq!(other.get(0, "/k/1").await.text(), "2");
    let answer = one.purge(0, json!({ "all": true })).await;
    assert!(confirmed(&answer, 1), "{answer}");
    assert_eq!(other.get(0, "/k/1").await.x_cache(), "HIT");
}
