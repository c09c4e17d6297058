//! Bodies on their way into the store: their limits, and what happens when they break off.

use std::sync::atomic::AtomicU64;

use super::*;
use crate::cache::fill::Budget;

const LIMIT: usize = SETTINGS.max_object_bytes as usize;
const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=100")];

/// An origin that hands out the sending ends of its bodies.
fn lab(length: Option<u64>) -> (Lab, mpsc::UnboundedReceiver<Sender>) {
    let (bodies, receiver) = mpsc::unbounded_channel();
    let lab = Lab::new(move |_| {
        let (response, sender) = streamed(FRESH, length);
        let _ = bodies.send(sender);
        async { Ok(response) }
    });
    (lab, receiver)
}

fn piece(byte: u8, length: usize) -> Result<Bytes, Failure> {
    Ok(Bytes::from(vec![byte; length]))
}

#[actix_rt::test]
async fn a_body_over_the_limit_goes_to_its_leader_and_the_waiters_fetch_for_themselves() {
    let (lab, mut bodies) = lab(None);
    let asks = Asks::get("/");
    let leader = lab.start(&asks);
    settle().await;
    let waiter = lab.start(&asks);
    settle().await;
    assert_eq!(lab.site.calls(), 1);
    let first = bodies.recv().await.unwrap();
    for at in 0..10 {
        first.send(piece(b'0' + at, LIMIT / 4)).unwrap();
    }
    drop(first);
    settle().await;
    let second = bodies.recv().await.unwrap();
    second.send(piece(b'x', 10)).unwrap();
    drop(second);
    let got = in_time(leader).await.unwrap().unwrap();
    assert!(!got.cut);
    let expected: Vec<u8> = (0..10).flat_map(|at| vec![b'0' + at; LIMIT / 4]).collect();
    assert_eq!(got.body, expected);
    assert_eq!(in_time(waiter).await.unwrap().unwrap().text(), "xxxxxxxxxx");
    assert_eq!(lab.site.calls(), 2);
    assert_eq!(lab.route.stats.too_large.get(), 1);
}

#[actix_rt::test]
async fn a_leader_of_a_large_body_holds_the_origin_back() {
    let taken = Arc::new(AtomicU64::new(0));
    let counts = Arc::clone(&taken);
    let lab = Lab::new(move |_| {
        let counts = Arc::clone(&counts);
        let stream = futures_util::stream::repeat_with(move || {
            counts.fetch_add(1, Ordering::SeqCst);
            piece(b'x', 1024)
        });
        let body = Body::Stream { length: None, stream: stream.take(1000).boxed_local() };
        let response = Response { status: StatusCode::OK, headers: fields(FRESH), body };
        async { Ok(response) }
    });
    let answer = lab.ask(&Asks::get("/")).await.unwrap();
    settle().await;
    let limit = SETTINGS.max_object_bytes / 1024;
    assert!(taken.load(Ordering::SeqCst) <= limit + 4, "{taken:?} read ahead of the client");
    let got = in_time(read(answer, false)).await;
    assert_eq!((got.body.len(), got.cut), (1000 * 1024, false));
}

#[actix_rt::test]
async fn a_large_body_no_longer_counts_once_its_leader_has_read_what_was_kept() {
    let (lab, mut bodies) = lab(None);
    let budget = SETTINGS.l1_max_bytes / 16;
    // As many as the budget allows, each over the limit and still going on.
    let mut going = Vec::new();
    for number in 0..2 * budget / SETTINGS.max_object_bytes {
        let answer = lab.ask(&Asks::get(&format!("/large/{number}"))).await.unwrap();
        let sender = bodies.recv().await.unwrap();
        sender.send(piece(b'x', LIMIT)).unwrap();
        for _ in 0..4 {
            sender.send(piece(b'x', 1)).unwrap();
        }
        let body = answer.response.into_parts().1;
        let mut body = Box::pin(body);
        let mut bytes = 0;
        while bytes < LIMIT + 4 {
            let next = std::future::poll_fn(|cx| body.as_mut().poll_next(cx));
            bytes += in_time(next).await.expect("more is to come").unwrap().len();
        }
        settle().await;
        going.push((sender, body));
    }
    let small = lab.start(&Asks::get("/small"));
    let sender = bodies.recv().await.unwrap();
    sender.send(piece(b'y', 100)).unwrap();
    drop(sender);
    in_time(small).await.unwrap().unwrap();
    assert_eq!(
        in_time(lab.get(&Asks::get("/small"))).await.unwrap().header("x-cache"),
        Some("HIT")
    );
}

#[actix_rt::test]
async fn a_body_shorter_than_announced_is_cut_for_all_and_never_stored() {
    let (lab, mut bodies) = lab(Some(10));
    let asks = Asks::get("/");
    let leader = lab.start(&asks);
    settle().await;
    let waiter = lab.start(&asks);
    settle().await;
    let sender = bodies.recv().await.unwrap();
    sender.send(piece(b'x', 9)).unwrap();
    drop(sender);
    for reader in [leader, waiter] {
        let got = in_time(reader).await.unwrap().unwrap();
        assert_eq!((got.body.len(), got.cut), (9, true));
    }
    assert_eq!((lab.cache.usage().entries, lab.route.stats.cut.get()), (0, 1));
}

#[actix_rt::test]
async fn a_body_longer_than_announced_is_never_stored_beyond_its_length() {
    let (lab, mut bodies) = lab(Some(10));
    let leader = lab.start(&Asks::get("/"));
    settle().await;
    let sender = bodies.recv().await.unwrap();
    sender.send(piece(b'x', 9)).unwrap();
    sender.send(piece(b'x', 9)).unwrap();
    drop(sender);
    assert!(in_time(leader).await.unwrap().unwrap().cut);
    assert_eq!(lab.cache.usage().entries, 0);
}

#[actix_rt::test]
async fn waiters_for_a_body_of_unknown_length_that_breaks_off_ask_again() {
    let (lab, mut bodies) = lab(None);
    let asks = Asks::get("/");
    let leader = lab.start(&asks);
    settle().await;
    let waiter = lab.start(&asks);
    settle().await;
    let sender = bodies.recv().await.unwrap();
    sender.send(piece(b'x', 9)).unwrap();
    sender.send(Err(BROKEN)).unwrap();
    assert!(in_time(leader).await.unwrap().unwrap().cut);
    let sender = bodies.recv().await.unwrap();
    sender.send(piece(b'y', 3)).unwrap();
    drop(sender);
    let got = in_time(waiter).await.unwrap().unwrap();
    assert_eq!((got.text(), got.cut), ("yyy", false));
}

#[actix_rt::test]
async fn known_lengths_beyond_the_budget_are_passed_on_unstored() {
    let max = SETTINGS.max_object_bytes;
    let (lab, mut bodies) = lab(Some(max));
    let fit = SETTINGS.l1_max_bytes / 4 / max;
    let mut readers = Vec::new();
    let mut senders = Vec::new();
    for number in 0..=fit {
        readers.push(lab.start(&Asks::get(&format!("/{number}"))));
        senders.push(bodies.recv().await.unwrap());
        settle().await;
    }
    for sender in senders {
        sender.send(piece(b'x', LIMIT)).unwrap();
    }
    for reader in readers {
        let got = in_time(reader).await.unwrap().unwrap();
        assert_eq!((got.body.len(), got.cut), (LIMIT, false));
    }
    assert_eq!(lab.route.stats.too_large.get(), 1);
    assert_eq!(lab.route.stats.stored.get(), fit);
    // The budget is whole again.
    let again = lab.start(&Asks::get("/again"));
    bodies.recv().await.unwrap().send(piece(b'x', LIMIT)).unwrap();
    in_time(again).await.unwrap().unwrap();
    assert_eq!(lab.route.stats.stored.get(), fit + 1);
}

#[test]
fn a_share_gives_back_what_it_took() {
    let budget = Arc::new(Budget::new(10));
    let mut one = budget.share();
    assert!(one.take(6) && !budget.share().take(5) && one.take(4));
    assert!(!one.take(1));
    drop(one);
    assert!(budget.share().take(10));
}

#[actix_rt::test]
async fn every_reader_is_woken_by_every_piece() {
    let (lab, mut bodies) = lab(Some(30));
    let asks = Asks::get("/");
    let readers: Vec<_> = (0..20).map(|_| lab.start(&asks)).collect();
    settle().await;
    let sender = bodies.recv().await.unwrap();
    for _ in 0..3 {
        settle().await;
        sender.send(piece(b'x', 10)).unwrap();
    }
    for reader in readers {
        assert_eq!(in_time(reader).await.unwrap().unwrap().body.len(), 30);
    }
    assert_eq!(lab.site.calls(), 1);
}

#[actix_rt::test]
async fn an_empty_body_is_a_whole_one() {
    for length in [None, Some(0)] {
        let (lab, mut bodies) = lab(length);
        let reader = lab.start(&Asks::get("/"));
        drop(bodies.recv().await.unwrap());
        let got = in_time(reader).await.unwrap().unwrap();
        assert_eq!((got.body.len(), got.cut), (0, false));
        assert_eq!(lab.get(&Asks::get("/")).await.unwrap().header("x-cache"), Some("HIT"));
    }
}

#[actix_rt::test]
async fn a_routes_lifetime_is_spread_by_five_percent_and_the_origins_not_at_all() {
    let ttl_of = |got: &Got| -> i64 {
        let status = got.header("cache-status").unwrap();
        status.split("ttl=").nth(1).unwrap().split(';').next().unwrap().parse().unwrap()
    };
    for (seconds, low, high) in [(1, 1, 1), (10, 10, 10), (60, 57, 63), (1000, 950, 1050)] {
        for stated in [false, true] {
            let headers = if stated { FRESH } else { &[] };
            let mut lab = Lab::new(move |_| async move { Ok(reply(200, headers, "x")) });
            let default_ttl = Some(Duration::from_secs(seconds));
            lab.route = route("r", Rules { default_ttl, ..Rules::default() });
            let mut seen = std::collections::BTreeSet::new();
            for number in 0..300 {
                let asks = Asks::get(&format!("/{number}"));
                lab.get(&asks).await.unwrap();
                let hit = lab.get(&asks).await.unwrap();
                assert_eq!(hit.header("x-cache"), Some("HIT"), "{seconds} s");
                seen.insert(ttl_of(&hit));
            }
            // A second may have passed between the two.
            let (first, last) = (*seen.first().unwrap(), *seen.last().unwrap());
            if stated {
                assert!((99..=100).contains(&first) && last == 100, "{seen:?}");
            } else {
                assert!(first >= (low - 1).max(1) && last <= high, "{seconds} s: {seen:?}");
                assert!(seconds < 100 || last - first > (high - low) / 2, "{seen:?}");
            }
        }
    }
}
