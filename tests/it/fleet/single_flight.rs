//! One origin request for a cold key, however many clients at however many instances.

use std::{
    collections::HashSet,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::lab::{Answer, Fleet, Origin, Redis, SOON, Seen, eventually, fleet::get, load, within};

/// How long another instance believes in a leader it does not hear of.
const LEASE: Duration = Duration::from_secs(2);

/// Lets `clients` at each of these instances ask for `target` once, all at once; the longest wait.
async fn rush(
    fleet: &Fleet,
    instances: &[usize],
    clients: usize,
    target: &'static str,
    body: &'static str,
) -> Duration {
    let started = Instant::now();
    let longest = Arc::new(Mutex::new(Duration::ZERO));
    let rushes = instances.iter().map(|nth| {
        let longest = Arc::clone(&longest);
        load(
            fleet.instance(*nth).public,
            clients,
            1,
            move |_, _| get(target),
            move |_, _, response| {
                assert_eq!((response.status, response.text().as_str()), (200, body));
                *longest.lock().expect("nobody panics with it") = started.elapsed();
            },
        )
    });
    within(SOON, "the rush", futures_util::future::join_all(rushes)).await;
    *longest.lock().expect("nobody panics with it")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn six_hundred_clients_at_three_instances_are_one_origin_request() {
    let origin =
        Origin::start(|_| Answer::cacheable("one").delay(Duration::from_millis(300))).await;
    let redis = Redis::start().await;
    let fleet = super::of(3, &origin, &redis).await;
    rush(&fleet, &[0, 1, 2], 200, "/cold", "one").await;
    assert_eq!(origin.total(), 1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_leader_costs_its_lease_and_one_more_request() {
    let origin = Origin::start(|seen: &Seen| match seen.nth {
        1 => Answer::never(),
        _ => Answer::cacheable("second").delay(Duration::from_millis(300)),
    })
    .await;
    let redis = Redis::start().await;
    let mut fleet = super::of(3, &origin, &redis).await;
    let mut leader = fleet.instance(0).connect().await;
    leader.write(&get("/cold").bytes("")).await.unwrap();
    eventually("the leader asks the origin", SOON, || async { origin.total() == 1 }).await;
    let doomed = fleet.instance(0).pid;
    let killing = async {
        // The others are waiting by then; that they are cannot be seen from outside.
        tokio::time::sleep(Duration::from_millis(200)).await;
        crate::lab::signal(doomed, crate::lab::Signal::Kill);
    };
    let (longest, ()) = tokio::join!(rush(&fleet, &[1, 2], 200, "/cold", "second"), killing);
    println!("the longest wait was {longest:.2?}");
    assert!(longest <= LEASE + Duration::from_secs(1), "{longest:?}");
    assert_eq!(origin.total(), 2, "one for the dead leader, one for all others");
    fleet.kill(0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn private_answers_are_fetched_by_each_side_by_side() {
    const EACH: Duration = Duration::from_millis(200);
    let origin = Origin::start(|seen: &Seen| {
        let who = seen.header("x-user").unwrap_or("nobody").to_owned();
        Answer::ok(who).header("Cache-Control", "private, max-age=60").delay(EACH)
    })
    .await;
    let redis = Redis::start().await;
    let fleet = super::of(3, &origin, &redis).await;
    let started = Instant::now();
    let seen = Arc::new(Mutex::new(HashSet::new()));
    let rushes = (0..3).map(|nth| {
        let seen = Arc::clone(&seen);
        load(
            fleet.instance(nth).public,
            50,
            2,
            move |client, _| get("/me").header("X-User", format!("user-{nth}-{client}")),
            move |client, _, response| {
                assert_eq!(response.text(), format!("user-{nth}-{client}"));
                assert_ne!(response.x_cache(), "HIT");
                seen.lock().expect("nobody panics with it").insert((nth, client));
            },
        )
    });
    within(SOON, "three hundred answers", futures_util::future::join_all(rushes)).await;
    assert_eq!(seen.lock().expect("nobody panics with it").len(), 150);
    assert_eq!(origin.total(), 300);
    // One after the other it would be a minute; one wait for the leader, then twice their own.
    assert!(started.elapsed() < LEASE, "{:?}", started.elapsed());
}

#[tokio::test]
async fn without_redis_each_instance_is_one_origin_request() {
    let origin =
        Origin::start(|_| Answer::cacheable("one").delay(Duration::from_millis(100))).await;
    let mut redis = Redis::start().await;
    let fleet = super::of(2, &origin, &redis).await;
    redis.kill();
    rush(&fleet, &[0, 1], 50, "/cold", "one").await;
    assert!(origin.total() <= 2, "{}", origin.total());
}
