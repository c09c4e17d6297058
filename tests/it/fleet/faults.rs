//! Redis may hang, die, come back empty, refuse writes or be full at any moment: no client gets an
//! error or a wrong body for it, and sharing goes on soon after it is back.

use std::{
    net::SocketAddr,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use serde_json::json;
use tokio::task::JoinSet;

use super::history::{lock, percentile};
use crate::lab::{
    Answer, Connection, Fleet, Gate, Origin, Redis, SOON, Seen, eventually,
    fleet::{confirmed, get},
    within,
};

/// What is put on the load while Redis is taken away.
pub(crate) struct Plan {
    /// At least as many requests are sent in all.
    pub(crate) requests: usize,
    pub(crate) clients: usize,
    /// From one request to the next, over all clients.
    pub(crate) pace: Duration,
}

/// What the clients saw.
pub(crate) struct Figures {
    pub(crate) requests: usize,
    /// What was not 200 with the right body.
    pub(crate) wrong: Vec<String>,
    pub(crate) before: Duration,
    pub(crate) first_second: Duration,
    pub(crate) later: Duration,
    /// From Redis being back until one instance serves what another one fetched.
    pub(crate) sharing_again: Duration,
}

impl Figures {
    pub(crate) fn print(&self, fault: &str) {
        println!(
            "{fault}: {} requests, {} wrong; p99 {:.2?}, in the first second {:.2?}, then {:.2?}; shared again after {:.2?}",
            self.requests,
            self.wrong.len(),
            self.before,
            self.first_second,
            self.later,
            self.sharing_again
        );
    }

    #[track_caller]
    pub(crate) fn assert_unnoticed(&self) {
        let first = &self.wrong[..self.wrong.len().min(10)];
        assert!(self.wrong.is_empty(), "{} wrong, the first: {first:#?}", self.wrong.len());
    }
}

/// An origin for [`trial`]: every body names its target.
pub(crate) async fn origin() -> Origin {
    Origin::start(|seen: &Seen| Answer::cacheable(seen.target.repeat(20))).await
}

/// Some are asked for often and by all, some a few times, some once.
fn nth_target(n: usize) -> String {
    match n % 5 {
        0 => format!("/once/{n}"),
        1 => format!("/few/{}", n / 40),
        _ => format!("/often/{}", n % 50),
    }
}

/// Puts load on the instances, lets `fault` break Redis and mend it, and measures.
///
/// `fault` says when Redis was back.
pub(crate) async fn trial(
    fleet: &Fleet,
    origin: &Origin,
    plan: Plan,
    fault: impl AsyncFnOnce() -> Instant,
) -> Figures {
    let taken = Arc::new(AtomicUsize::new(0));
    let over = Arc::new(AtomicBool::new(false));
    let samples = Arc::new(Mutex::new(Vec::new()));
    let wrong = Arc::new(Mutex::new(Vec::new()));
    let instances: Vec<SocketAddr> = fleet.running().map(|g| g.public).collect();
    let started = Instant::now();
    let mut clients = JoinSet::new();
    for _ in 0..plan.clients {
        let (taken, over, samples) = (Arc::clone(&taken), Arc::clone(&over), Arc::clone(&samples));
        let (wrong, instances, pace) = (Arc::clone(&wrong), instances.clone(), plan.pace);
        clients.spawn(async move {
            let mut open: Vec<Option<Connection>> = instances.iter().map(|_| None).collect();
            while !over.load(SeqCst) {
                let n = taken.fetch_add(1, SeqCst);
                let due = started + pace * u32::try_from(n).unwrap_or(u32::MAX);
                tokio::time::sleep_until(due.into()).await;
                let (target, instance) = (nth_target(n), n % instances.len());
                let sent = Instant::now();
                let answer = async {
                    let mut connection = match open[instance].take() {
                        Some(connection) => connection,
                        None => Connection::open(instances[instance]).await?,
                    };
                    let answer = connection.ask(&get(&target)).await?;
                    if !connection.closing() {
                        open[instance] = Some(connection);
                    }
                    Ok::<_, std::io::Error>(answer)
                };
                let fault = match answer.await {
                    Ok(a) if a.status == 200 && a.body == target.repeat(20).as_bytes() => None,
                    Ok(answer) => Some(format!("{} {:?}", answer.status, answer.text())),
                    Err(error) => Some(error.to_string()),
                };
                lock(&samples).push((sent, sent.elapsed()));
                if let Some(fault) = fault {
                    lock(&wrong).push(format!("{target} at {instance}: {fault}"));
                }
            }
        });
    }
    let come_to = |share: usize| {
        let (taken, due) = (&taken, plan.requests * share / 100);
        async move {
            let limit = Duration::from_secs(300);
            eventually("the load comes so far", limit, || async { taken.load(SeqCst) >= due })
                .await;
        }
    };
    come_to(25).await;
    let broken = Instant::now();
    let mended = fault().await;
    let name = format!("{}", started.elapsed().as_nanos());
    until_shared(fleet, origin, &name).await;
    let sharing_again = mended.elapsed();
    come_to(100).await;
    over.store(true, SeqCst);
    within(SOON, "the clients' ends", async {
        while let Some(ended) = clients.join_next().await {
            ended.expect("a client does not panic");
        }
    })
    .await;
    let samples = lock(&samples);
    let p99 = |from: Instant, to: Instant| {
        let within = samples.iter().filter(|(at, _)| (from..to).contains(at));
        let mut times: Vec<Duration> = within.map(|(_, took)| *took).collect();
        percentile(&mut times, 99)
    };
    let second = broken + Duration::from_secs(1);
    Figures {
        requests: samples.len(),
        wrong: lock(&wrong).clone(),
        // The first requests open connections and fill caches.
        before: p99(started + (broken - started) / 2, broken),
        first_second: p99(broken, second),
        later: p99(second, mended.max(second)),
        sharing_again,
    }
}

/// Waits until what the first instance fetches is not fetched again for the second.
pub(crate) async fn until_shared(fleet: &Fleet, origin: &Origin, name: &str) {
    let mut nth = 0;
    eventually("the instances share again", Duration::from_secs(30), || {
        nth += 1;
        let target = format!("/shared/{name}/{nth}");
        async move {
            fleet.get(0, &target).await;
            fleet.get(1, &target).await;
            origin.count(&target) == 1
        }
    })
    .await;
}

/// A short trial: about two seconds.
fn short() -> Plan {
    Plan { requests: 1200, clients: 12, pace: Duration::from_micros(1500) }
}

/// What is promised is two seconds; the rest is for a machine that runs many tests at once.
const SHARING_AGAIN: Duration = Duration::from_secs(4);

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_hanging_redis_is_not_noticed_by_clients() {
    let (origin, redis) = (origin().await, Redis::start().await);
    let fleet = super::of(2, &origin, &redis).await;
    let figures = trial(&fleet, &origin, short(), async || {
        redis.stop_hanging();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        redis.resume();
        Instant::now()
    });
    let figures = figures.await;
    figures.print("Redis hangs");
    figures.assert_unnoticed();
    assert!(figures.sharing_again <= SHARING_AGAIN, "{:?}", figures.sharing_again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redis_that_dies_and_comes_back_empty_is_not_noticed_by_clients() {
    let (origin, mut redis) = (origin().await, Redis::start().await);
    let fleet = super::of(2, &origin, &redis).await;
    let figures = trial(&fleet, &origin, short(), async || {
        redis.kill();
        tokio::time::sleep(Duration::from_millis(1500)).await;
        redis.restart().await;
        Instant::now()
    });
    let figures = figures.await;
    figures.print("Redis dies and comes back empty");
    figures.assert_unnoticed();
    assert!(figures.sharing_again <= SHARING_AGAIN, "{:?}", figures.sharing_again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_redis_is_not_noticed_by_clients() {
    let (origin, redis) = (origin().await, Redis::start().await);
    let fleet = super::of(2, &origin, &redis).await;
    let figures = trial(&fleet, &origin, short(), async || {
        redis.config_set("maxmemory", "1").await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        redis.config_set("maxmemory", "0").await;
        Instant::now()
    });
    let figures = figures.await;
    figures.print("Redis is full");
    figures.assert_unnoticed();
    assert!(figures.sharing_again <= SHARING_AGAIN, "{:?}", figures.sharing_again);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_read_only_redis_is_not_noticed_by_clients() {
    let (origin, redis) = (origin().await, Redis::start().await);
    let other = Redis::start().await;
    let fleet = super::of(2, &origin, &redis).await;
    let figures = trial(&fleet, &origin, short(), async || {
        let port = other.addr.port().to_string();
        redis.command(&["REPLICAOF", "127.0.0.1", &port]).await;
        tokio::time::sleep(Duration::from_millis(1500)).await;
        redis.command(&["REPLICAOF", "NO", "ONE"]).await;
        Instant::now()
    });
    let figures = figures.await;
    figures.print("Redis is a replica");
    figures.assert_unnoticed();
    assert!(figures.sharing_again <= SHARING_AGAIN, "{:?}", figures.sharing_again);
}

#[tokio::test]
async fn a_fleet_starts_without_redis_and_shares_once_it_is_there() {
    let (origin, mut redis) = (origin().await, Redis::start().await);
    redis.kill();
    let fleet = super::before(&origin, &redis).start(2).await;
    for nth in 0..2 {
        assert_eq!(fleet.get(nth, "/k/1").await.status, 200);
    }
    redis.restart().await;
    let back = Instant::now();
    until_shared(&fleet, &origin, "started").await;
    assert!(back.elapsed() <= SHARING_AGAIN, "{:?}", back.elapsed());
    fleet.linked().await;
}

#[tokio::test]
async fn a_full_redis_still_carries_purges() {
    let origin = Origin::start(|seen: &Seen| Answer::ok(seen.nth.to_string())).await;
    let redis = Redis::start().await;
    let fleet = super::of(2, &origin, &redis).await;
    for nth in [0, 1] {
        assert_eq!(fleet.get(nth, "/k/1").await.text(), "1");
    }
    redis.config_set("maxmemory", "1").await;
    let answer = fleet.purge(0, json!({ "tag": "k:1" })).await;
    assert!(confirmed(&answer, 2), "{answer}");
    for nth in [1, 0] {
        assert_ne!(fleet.get(nth, "/k/1").await.text(), "1");
    }
}

#[tokio::test]
async fn a_purge_holds_though_redis_lost_its_memory_of_it() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |seen: &Seen| match (seen.path(), seen.nth) {
        ("/k/1", 1) => Answer::ok("old").gated(&held),
        ("/k/2", 1) => Answer::ok("old"),
        _ => Answer::ok("new"),
    })
    .await;
    let mut redis = Redis::start().await;
    let fleet = super::of(2, &origin, &redis).await;
    for nth in [0, 1, 0, 1] {
        assert_eq!(fleet.get(nth, "/k/2").await.text(), "old");
    }
    let mut early = fleet.instance(0).connect().await;
    early.write(&get("/k/1").bytes("")).await.unwrap();
    eventually("the fill is upstream", SOON, || async { origin.count("/k/1") == 1 }).await;
    let answer = fleet.purge(1, json!({ "prefix": "/k/" })).await;
    assert!(confirmed(&answer, 2), "{answer}");
    redis.restart().await;
    until_shared(&fleet, &origin, "empty").await;
    fleet.linked().await;
    gate.open();
    within(SOON, "the early one", early.response("GET")).await.unwrap();
    for nth in [1, 0, 1, 0] {
        for target in ["/k/1", "/k/2"] {
            assert_eq!(fleet.get(nth, target).await.text(), "new", "{target} at {nth}");
        }
    }
    // And purges count on from there.
    fleet.purge(0, json!({ "tag": "k:1" })).await;
    assert_ne!(fleet.get(1, "/k/1").await.x_cache(), "HIT");
}
