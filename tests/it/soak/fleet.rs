//! Many instances, at full numbers: a hundred thousand interleavings, and every way in which Redis can
//! go away under ten thousand requests.

use std::time::{Duration, Instant};

use crate::{
    fleet::{
        before,
        faults::{self, Figures, Plan, trial},
        history, routes,
    },
    lab::{
        Fleet, Origin, Redis,
        redis::{Cluster, Sentinel},
    },
};

/// How long Redis is away.
const AWAY: Duration = Duration::from_secs(3);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn a_hundred_thousand_interleavings_return_nothing_old() {
    const KEYS: usize = 40;
    const CLIENTS: usize = 20;
    let redis = Redis::start().await;
    let (fleet, origin, data) = history::fleet(3, KEYS, &redis, |b| b).await;
    let started = Instant::now();
    let run =
        history::Run { keys: KEYS, clients: CLIENTS, operations: 100_000, puts: true, seed: 100 };
    let mut outcome = run.at(&fleet, &data).await;
    outcome.print(started.elapsed());
    outcome.assert_nothing_old();
    outcome.assert_confirmed();
    origin.assert_strict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn two_thousand_purges_take_effect_everywhere_within_150_ms() {
    let redis = Redis::start().await;
    let (fleet, _origin, data) = history::fleet(3, 1, &redis, |b| b).await;
    let mut times = history::purge_to_effect(&fleet, &data, 2000).await;
    let [p50, p99, p100] = [50, 99, 100].map(|p| history::percentile(&mut times, p));
    println!("purge to effect at another instance: p50 {p50:.2?}, p99 {p99:.2?}, most {p100:.2?}");
    assert!(p99 <= Duration::from_millis(150), "{p99:?}");
}

fn plan() -> Plan {
    Plan { requests: 10_000, clients: 16, pace: Duration::from_millis(1) }
}

/// The figures that are promised, beyond that nobody notices.
fn judge(fault: &str, figures: &Figures) {
    figures.print(fault);
    figures.assert_unnoticed();
    let added = figures.first_second.saturating_sub(figures.before);
    assert!(added <= Duration::from_millis(60), "{fault}: {added:?} more in the first second");
    let later = figures.later.saturating_sub(figures.before);
    // A build without optimization is slower when more goes to the origin.
    let release = std::env::var_os("PORTWAY_BIN").is_some();
    let most = Duration::from_millis(if release { 1 } else { 20 });
    assert!(later <= most, "{fault}: {later:?} more after it");
    assert!(figures.sharing_again <= Duration::from_secs(2), "{:?}", figures.sharing_again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_requests_notice_nothing_of_a_redis_that_hangs() {
    let (origin, redis) = (faults::origin().await, Redis::start().await);
    let fleet = crate::fleet::of(2, &origin, &redis).await;
    let fault = async || {
        redis.stop_hanging();
        tokio::time::sleep(AWAY).await;
        redis.resume();
        Instant::now()
    };
    judge("SIGSTOP", &trial(&fleet, &origin, plan(), fault).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_requests_notice_nothing_of_a_redis_that_is_killed() {
    let (origin, mut redis) = (faults::origin().await, Redis::options().persistent().start().await);
    let fleet = crate::fleet::of(2, &origin, &redis).await;
    let fault = async || {
        redis.kill();
        tokio::time::sleep(AWAY).await;
        redis.restart().await;
        Instant::now()
    };
    judge("SIGKILL, back with its data", &trial(&fleet, &origin, plan(), fault).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_requests_notice_nothing_of_a_redis_that_restarts_empty() {
    let (origin, mut redis) = (faults::origin().await, Redis::start().await);
    let fleet = crate::fleet::of(2, &origin, &redis).await;
    let fault = async || {
        redis.restart().await;
        Instant::now()
    };
    judge("restarted empty at once", &trial(&fleet, &origin, plan(), fault).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_requests_notice_nothing_of_a_redis_that_becomes_a_replica() {
    let (origin, redis) = (faults::origin().await, Redis::start().await);
    let other = Redis::start().await;
    let fleet = crate::fleet::of(2, &origin, &redis).await;
    let fault = async || {
        let port = other.addr.port().to_string();
        redis.command(&["REPLICAOF", "127.0.0.1", &port]).await;
        tokio::time::sleep(AWAY).await;
        redis.command(&["REPLICAOF", "NO", "ONE"]).await;
        Instant::now()
    };
    judge("REPLICAOF another", &trial(&fleet, &origin, plan(), fault).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_requests_notice_nothing_of_a_redis_that_is_full() {
    let (origin, redis) = (faults::origin().await, Redis::start().await);
    let fleet = crate::fleet::of(2, &origin, &redis).await;
    let fault = async || {
        redis.config_set("maxmemory", "1").await;
        tokio::time::sleep(AWAY).await;
        redis.config_set("maxmemory", "0").await;
        Instant::now()
    };
    judge("maxmemory", &trial(&fleet, &origin, plan(), fault).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_requests_notice_nothing_of_a_failover() {
    let origin = faults::origin().await;
    let mut sentinel = Sentinel::start(Redis::options()).await;
    let fleet = Fleet::routing(routes(&origin)).redis(sentinel.url()).start(2).await;
    fleet.linked().await;
    let fault = async || {
        sentinel.fail_over().await;
        Instant::now()
    };
    judge("Sentinel fails over", &trial(&fleet, &origin, plan(), fault).await);
}

async fn over_a_cluster(origin: &Origin, cluster: &Cluster) -> Fleet {
    let builder = Fleet::routing(routes(origin)).env("REDIS_CLUSTER_NODES", cluster.addresses());
    let fleet = builder.start(2).await;
    fleet.linked().await;
    fleet
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_requests_notice_nothing_of_slots_that_move() {
    let origin = faults::origin().await;
    let cluster = Cluster::start(Redis::options(), false).await;
    let fleet = over_a_cluster(&origin, &cluster).await;
    let fault = async || {
        // Slots that are in use, what the instances agree on among them.
        for key in cluster.keys().await.into_iter().take(150) {
            let slot = cluster.slot_of(&key).await;
            let owner = cluster.owner(slot).await;
            cluster.move_slot(slot, (owner + 1) % 3).await;
        }
        Instant::now()
    };
    judge("Cluster slots move", &trial(&fleet, &origin, plan(), fault).await);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn ten_thousand_requests_notice_nothing_of_a_dead_primary_of_a_cluster() {
    let origin = faults::origin().await;
    let mut cluster = Cluster::start(Redis::options(), true).await;
    let fleet = over_a_cluster(&origin, &cluster).await;
    let fault = async || {
        cluster.nodes[0].kill();
        let replica = &cluster.nodes[3];
        replica.until_info("replication", "role:master", Duration::from_secs(20)).await;
        Instant::now()
    };
    let figures = trial(&fleet, &origin, plan(), fault).await;
    figures.print("a Cluster's primary dies");
    figures.assert_unnoticed();
    assert!(figures.sharing_again <= Duration::from_secs(2), "{:?}", figures.sharing_again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn interleavings_over_breaking_links_return_nothing_old() {
    let run = history::Run { keys: 20, clients: 12, operations: 8000, puts: false, seed: 78 };
    history::over_breaking_links(run).await.assert_nothing_old();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn interleavings_over_a_redis_that_evicts_return_nothing_old() {
    const KEYS: usize = 20;
    let redis = Redis::options().max_memory(6 << 20, "allkeys-random").start().await;
    let (fleet, origin, data) = history::fleet(3, KEYS, &redis, |b| b).await;
    // What fills it, so that what the instances agree by is evicted too.
    let filling = async {
        for n in 0..u64::MAX {
            let name = format!("filler:{}", n % 20_000);
            let _ = redis.try_command(&["SET", &name, &"x".repeat(1000)]).await;
        }
    };
    let run = history::Run { keys: KEYS, clients: 12, operations: 24_000, puts: false, seed: 79 };
    let started = Instant::now();
    let mut outcome = tokio::select! {
        outcome = run.at(&fleet, &data) => outcome,
        () = filling => unreachable!("it goes on for ever"),
    };
    outcome.print(started.elapsed());
    outcome.assert_nothing_old();
    origin.assert_strict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn interleavings_over_a_failing_redis_return_nothing_old() {
    const KEYS: usize = 20;
    let mut redis = Redis::start().await;
    let (origin, data) = history::origin(KEYS).await;
    let fleet = before(&origin, &redis).start(3).await;
    fleet.linked().await;
    let started = Instant::now();
    let run = history::Run { keys: KEYS, clients: 12, operations: 48_000, puts: false, seed: 77 };
    let running = run.at(&fleet, &data);
    let breaking = async {
        for round in 0..4 {
            tokio::time::sleep(Duration::from_secs(2)).await;
            if round % 2 == 0 {
                redis.stop_hanging();
                tokio::time::sleep(Duration::from_secs(1)).await;
                redis.resume();
            } else {
                redis.restart().await;
            }
        }
    };
    let (mut outcome, ()) = tokio::join!(running, breaking);
    outcome.print(started.elapsed());
    outcome.assert_nothing_old();
    origin.assert_strict();
}
