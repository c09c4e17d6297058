//! The link to Redis over a network that misbehaves.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use futures_util::{StreamExt as _, stream};
use portway::redis::{Error, Redis};

use crate::{
    lab::{
        SOON, eventually,
        fault_proxy::{FaultProxy, Faults},
        random::Random,
        redis::Redis as Server,
    },
    redis_link::{A_BUDGET, get, link, set, up},
};

/// A server, a proxy before it, and a link through that, which is up.
async fn behind_a_proxy() -> (Server, FaultProxy, Arc<Redis>) {
    let server = Server::start().await;
    let proxy = FaultProxy::start(server.addr, 7).await;
    let redis = link(&server.url_by(proxy.addr()));
    up(&redis).await;
    (server, proxy, redis)
}

#[tokio::test]
async fn an_answer_never_reaches_another_call() {
    let (_server, proxy, redis) = behind_a_proxy().await;
    for number in 0..100 {
        set(&redis, &format!("key:{number}"), &format!("value of {number}")).await.expect("set");
    }
    let mut random = Random::seeded(42);
    let (mut right, mut away, mut given_up) = (0, 0, 0);
    let began = Instant::now();
    while right < 20_000 && began.elapsed() < 2 * SOON {
        proxy.set(match random.below(4) {
            0 => Faults { one_byte_slices: true, ..Faults::default() },
            // In the middle of a reply, mostly.
            1 => Faults { cut_after: Some(1_000 + random.below(5_000)), ..Faults::default() },
            _ => Faults::default(),
        });
        let calls = stream::iter(0..200).map(|_| {
            let (number, patience) = (random.below(100), random.below(3_000));
            let redis = &redis;
            async move {
                let key = format!("key:{number}");
                let patience =
                    Duration::from_micros(if patience < 2_000 { 60_000 } else { patience });
                (number, tokio::time::timeout(patience, get(redis, &key)).await)
            }
        });
        let answers: Vec<_> = calls.buffer_unordered(50).collect().await;
        for (number, answer) in answers {
            match answer {
                Ok(Ok(value)) => {
                    assert_eq!(value, Some(format!("value of {number}")));
                    right += 1;
                }
                Ok(Err(error)) => {
                    assert_eq!(error, Error::Away);
                    away += 1;
                }
                Err(_) => given_up += 1,
            }
        }
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
    assert!(right > 1_000 && away > 0 && given_up > 0, "{right} {away} {given_up}");
}

#[tokio::test]
async fn a_slow_redis_is_treated_as_away_and_used_again_when_it_is_fast() {
    let (_server, proxy, redis) = behind_a_proxy().await;
    set(&redis, "k", "v").await.expect("set");
    proxy.set(Faults { delay: Duration::from_millis(100), ..Faults::default() });
    let began = Instant::now();
    while redis.is_up() {
        let call = Instant::now();
        assert_eq!(get(&redis, "k").await, Err(Error::Away));
        assert!(call.elapsed() < A_BUDGET, "{:?}", call.elapsed());
        tokio::task::yield_now().await;
    }
    assert!(began.elapsed() < Duration::from_secs(1), "{:?}", began.elapsed());
    proxy.set(Faults::default());
    up(&redis).await;
    assert_eq!(get(&redis, "k").await, Ok(Some("v".to_owned())));
}

#[tokio::test]
async fn a_connection_that_takes_longer_than_a_call_is_there_for_the_next() {
    let (_server, proxy, redis) = behind_a_proxy().await;
    // A call takes 32 ms, and to connect and greet as long again.
    proxy.set(Faults { delay: Duration::from_millis(16), ..Faults::default() });
    eventually("a call is answered", SOON, || async { set(&redis, "k", "v").await.is_ok() }).await;
    assert!(redis.is_up());
}

#[tokio::test]
async fn a_connection_that_was_forgotten_on_the_way_is_replaced() {
    let (_server, proxy, redis) = behind_a_proxy().await;
    set(&redis, "marker", "v").await.expect("set");
    // Only that of this worker, which has said so, and not the supervisor's.
    let faults = Faults { half_open: true, only_where: Some("marker"), ..Faults::default() };
    proxy.set(faults);
    let mut lost = 0;
    while get(&redis, "k").await == Err(Error::Away) {
        lost += 1;
        assert!(lost <= 4, "three calls in a row are enough");
    }
    assert!((1..=3).contains(&lost), "{lost}");
    assert!(redis.is_up());
}

#[tokio::test]
async fn connections_that_are_closed_at_once_are_as_good_as_none() {
    let (_server, proxy, redis) = behind_a_proxy().await;
    proxy.set(Faults { refuse: true, ..Faults::default() });
    proxy.cut_all();
    let call = Instant::now();
    assert_eq!(get(&redis, "k").await, Err(Error::Away));
    assert!(call.elapsed() < A_BUDGET, "{:?}", call.elapsed());
    eventually("the link is down", SOON, || async {
        let _ = get(&redis, "k").await;
        !redis.is_up()
    })
    .await;
    proxy.set(Faults::default());
    up(&redis).await;
}

#[tokio::test]
async fn large_values_on_a_slow_line_are_no_reason_to_leave_redis_alone() {
    let (_server, proxy, redis) = behind_a_proxy().await;
    let large = "x".repeat(4 << 20);
    eventually("it is stored", SOON, || async { set(&redis, "large", &large).await.is_ok() }).await;
    proxy.set(Faults { bytes_per_second: Some(20 << 20), ..Faults::default() });
    for _ in 0..10 {
        assert_eq!(get(&redis, "large").await, Err(Error::Away));
        assert_eq!(set(&redis, "other", &large).await, Err(Error::Away));
        assert!(redis.is_up());
    }
    proxy.set(Faults::default());
    eventually("small ones are answered", SOON, || async { set(&redis, "k", "v").await.is_ok() })
        .await;
}
