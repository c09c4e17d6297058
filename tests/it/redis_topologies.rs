//! The link to Redis with Sentinels, as a Cluster, and over TLS.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use portway::redis::{BUDGET, Redis, Script, lease};

use tokio::time::timeout;

use crate::{
    lab::{
        Gateway, SOON, eventually,
        redis::{Cluster, Redis as Server, Sentinel},
        refusing, within,
    },
    redis_link::{A_BUDGET, HEALED, config, get, link, reports, set, up},
    redis_messages::listen,
};

/// A link to every node.
async fn clustered(cluster: &Cluster) -> Arc<Redis> {
    let redis = Redis::start(&config(&[("REDIS_CLUSTER_NODES", &cluster.addresses())]));
    all_up(&redis).await;
    redis
}

async fn all_up(redis: &Redis) {
    eventually("all of it is there", HEALED, || async { redis.health().up }).await;
}

#[tokio::test]
async fn the_master_that_sentinels_name_is_followed() {
    let mut redundant = Sentinel::start(Server::options().password("pw")).await;
    let redis = link(&redundant.url());
    up(&redis).await;
    let diary = listen(&redis);
    set(&redis, "k", "v").await.expect("set");
    assert_eq!(redis.health().mode, "sentinel");
    redundant.fail_over().await;
    eventually("the new master takes writes", HEALED, || async {
        set(&redis, "k", "w").await.is_ok()
    })
    .await;
    let primary = redundant.primary().await;
    assert_eq!(primary.command(&["GET", "k"]).await, "w");
    diary.has("subscribed", HEALED).await;
    primary.command(&["PUBLISH", "one", "hello"]).await;
    diary.has("one: hello", SOON).await;
}

#[tokio::test]
async fn a_master_that_hangs_is_left_and_not_returned_to() {
    let mut redundant = Sentinel::start(Server::options()).await;
    let redis = link(&redundant.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    let old = redundant.primary_addr().await;
    redundant.primary().await.stop_hanging();
    eventually("another master is elected", Duration::from_secs(30), || async {
        redundant.primary_addr().await != old
    })
    .await;
    eventually("the new master takes writes", HEALED, || async {
        set(&redis, "k", "w").await.is_ok()
    })
    .await;
    redundant.nodes.iter().find(|node| node.addr == old).expect("it is there").resume();
    for round in 0..100 {
        set(&redis, "k", &round.to_string()).await.expect("set");
    }
    assert_eq!(redundant.primary().await.command(&["GET", "k"]).await, "99");
}

#[tokio::test]
async fn one_sentinel_is_enough() {
    let mut redundant = Sentinel::start(Server::options()).await;
    redundant.sentinel(0).kill();
    redundant.sentinel(1).stop_hanging();
    let redis = link(&redundant.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
}

#[tokio::test]
async fn every_slot_of_a_cluster_is_reached() {
    let cluster = Cluster::start(Server::options().password("pw"), false).await;
    let addresses = cluster.addresses();
    let redis = Redis::start(&config(&[
        ("REDIS_CLUSTER_NODES", addresses.split(',').next().expect("a node")),
        ("REDIS_PASSWORD", "pw"),
    ]));
    all_up(&redis).await;
    assert_eq!(redis.health().mode, "cluster");
    let diary = listen(&redis);
    let script = Script::new("return redis.call('GET', KEYS[1])");
    for number in 0..100 {
        let key = format!("key:{number}");
        set(&redis, &key, &key).await.expect("set");
        assert_eq!(redis.script(&script.key(&key)).await, Ok(key));
    }
    let got = lease::acquire_fenced(&redis, "task".to_owned(), SOON).await.expect("an answer");
    assert_eq!(got.expect("it is free").0.release(&redis).await, Ok(true));
    diary.has("subscribed", HEALED).await;
    for node in &cluster.nodes {
        let text = node.addr.port().to_string();
        node.command(&["PUBLISH", "one", &text]).await;
        diary.has(&format!("one: {text}"), SOON).await;
    }
}

#[tokio::test]
async fn calls_follow_a_slot_that_moves_under_load() {
    let cluster = Cluster::start(Server::options(), false).await;
    let redis = clustered(&cluster).await;
    let keys: Vec<String> = (0..50).map(|number| format!("{{moving}}:{number}")).collect();
    for key in &keys {
        set(&redis, key, key).await.expect("set");
    }
    let slot = cluster.slot_of(b"{moving}").await;
    let home = cluster.owner(slot).await;
    let script = Script::new("return redis.call('GET', KEYS[1])");
    let moving = async {
        for round in 1..=6 {
            cluster.move_slot(slot, (home + round) % 3).await;
        }
    };
    let (mut calls, mut failed) = (0, 0);
    let mut moving = std::pin::pin!(moving);
    loop {
        for key in &keys {
            for answer in [get(&redis, key).await, redis.script(&script.key(key)).await] {
                match answer {
                    Ok(value) => assert_eq!(value.as_ref(), Some(key)),
                    Err(_) => failed += 1,
                }
                calls += 1;
            }
        }
        tokio::select! {
            biased;
            () = &mut moving => break,
            () = tokio::task::yield_now() => {}
        }
    }
    // A machine with other things to do has its own reasons.
    assert!(calls > 100 && failed * 100 <= calls, "{failed} of {calls}");
}

/// Keys of every node are asked for, over and over, until the first round with `wanted` answers.
async fn rounds(redis: &Redis, limit: Duration, wanted: impl Fn(&[bool]) -> bool) {
    within(limit, "the right answers", async {
        loop {
            let mut answered = Vec::new();
            for number in 0..30 {
                let call = Instant::now();
                answered.push(get(redis, &format!("key:{number}")).await.is_ok());
                assert!(call.elapsed() < A_BUDGET, "{:?}", call.elapsed());
            }
            if wanted(&answered) {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Waits until every node that can be asked says that the cluster is whole.
async fn agreed(cluster: &Cluster) {
    for node in &cluster.nodes {
        eventually("the cluster is whole", Duration::from_secs(30), || async {
            let info = timeout(BUDGET, node.try_command(&["CLUSTER", "INFO"])).await;
            info.map_or(true, |info| {
                info.map_or(true, |info| info.text().contains("cluster_state:ok"))
            })
        })
        .await;
    }
}

#[tokio::test]
async fn a_node_of_a_cluster_that_is_away_is_no_fault_of_the_others() {
    for hangs in [true, false] {
        // Without it, the others serve nothing either.
        let options = Server::options().set("cluster-require-full-coverage", "no");
        let mut cluster = Cluster::start(options, false).await;
        let redis = clustered(&cluster).await;
        for number in 0..30 {
            set(&redis, &format!("key:{number}"), "v").await.expect("set");
        }
        if hangs {
            cluster.nodes[1].stop_hanging();
        } else {
            cluster.nodes[1].kill();
        }
        rounds(&redis, HEALED, |answered| answered.contains(&false)).await;
        eventually("its part of health is down", HEALED, || async {
            let health = redis.health();
            !health.up && (0.5..1.0).contains(&health.part)
        })
        .await;
        // Neither does it cost anything any more.
        for _ in 0..3 {
            let began = Instant::now();
            rounds(&redis, SOON, |answered| answered.contains(&true)).await;
            assert!(began.elapsed() < A_BUDGET, "{:?}", began.elapsed());
        }
        if hangs {
            cluster.nodes[1].resume();
        } else {
            cluster.nodes[1].restart().await;
        }
        // A node that comes back keeps clients waiting for a while.
        agreed(&cluster).await;
        rounds(&redis, HEALED, |answered| !answered.contains(&false)).await;
    }
}

#[tokio::test]
async fn the_replica_that_takes_over_in_a_cluster_is_found() {
    for hangs in [true, false] {
        let mut cluster = Cluster::start(Server::options(), true).await;
        let redis = clustered(&cluster).await;
        for number in 0..30 {
            set(&redis, &format!("key:{number}"), "v").await.expect("set");
        }
        if hangs {
            cluster.nodes[1].stop_hanging();
        } else {
            cluster.nodes[1].kill();
        }
        rounds(&redis, HEALED, |answered| answered.contains(&false)).await;
        let limit = Duration::from_secs(30);
        cluster.nodes[4].until_info("replication", "role:master", limit).await;
        agreed(&cluster).await;
        rounds(&redis, HEALED, |answered| !answered.contains(&false)).await;
        eventually("health is well", HEALED, || async { redis.health().up }).await;
        if hangs {
            // What was the master is a replica now, and nobody minds.
            cluster.nodes[1].resume();
            rounds(&redis, SOON, |answered| !answered.contains(&false)).await;
        }
    }
}

#[tokio::test]
async fn valkey_will_do_where_there_is_one() {
    let Some(options) = Server::valkey() else { return };
    let server = options.start().await;
    let redis = link(&server.url());
    up(&redis).await;
    set(&redis, "k", "v").await.expect("set");
    let diary = listen(&redis);
    diary.has("subscribed", HEALED).await;
    let got = lease::acquire_fenced(&redis, "task".to_owned(), SOON).await.expect("an answer");
    assert_eq!(got.expect("it is free").0.release(&redis).await, Ok(true));
}

#[tokio::test]
async fn a_private_authority_is_trusted_where_it_is_named() {
    let server = Server::options().password("pw").tls().start().await;
    let builder = || {
        let builder = Gateway::before(&format!("http://{}", refusing()));
        builder.env("REDIS_URL", server.tls_url())
    };
    let certificate = server.certificate().to_string_lossy().into_owned();
    let trusting = builder().env("SSL_CERT_FILE", certificate).start().await;
    reports(&trusting, 200).await;
    let strict = builder().start().await;
    reports(&strict, 503).await;
    let error = strict.get("/health/redis").await.json()["error"].to_string();
    assert!(error.contains("certificate"), "{error}");
}
