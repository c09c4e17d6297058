//! One fetch for many requests.

use super::*;
use crate::cache::purge::{Mode, Selector};

const FRESH: &[(&str, &str)] = &[("cache-control", "max-age=100")];

fn tag(name: &str) -> [Selector; 1] {
    [Selector::Tag(name.to_owned())]
}

/// An origin that answers behind a gate, each time with its own number.
fn gated(headers: &'static [(&'static str, &'static str)]) -> (Lab, Arc<Semaphore>) {
    let opened = gate();
    let waits = Arc::clone(&opened);
    let lab = Lab::new(move |call| {
        let gate = Arc::clone(&waits);
        async move {
            pass(&gate).await;
            Ok(reply(200, headers, &format!("answer {}", call.number)))
        }
    });
    (lab, opened)
}

#[actix_rt::test]
async fn many_requests_for_a_cold_key_are_one_fetch() {
    let (lab, gate) = gated(FRESH);
    let asks = Asks::get("/");
    let readers: Vec<_> = (0..50).map(|_| lab.start(&asks)).collect();
    settle().await;
    gate.add_permits(100);
    let mut collapsed = 0;
    for reader in readers {
        let got = in_time(reader).await.unwrap().unwrap();
        assert_eq!(got.text(), "answer 1");
        collapsed += usize::from(got.header("cache-status").unwrap().contains("collapsed"));
    }
    assert_eq!((lab.site.calls(), collapsed), (1, 49));
    assert_eq!(lab.route.stats.coalesced.get(), 49);
    assert_eq!(lab.get(&asks).await.unwrap().header("x-cache"), Some("HIT"));
}

#[actix_rt::test]
async fn when_a_leader_vanishes_the_next_leads() {
    let opened = gate();
    let (waits, leading) = (Arc::clone(&opened), Arc::new(AtomicUsize::new(0)));
    let leads = Arc::clone(&leading);
    let lab = Lab::new(move |call| {
        let gate = Arc::clone(&waits);
        leads.store(call.header("x-caller").parse().unwrap(), Ordering::SeqCst);
        async move {
            pass(&gate).await;
            Ok(reply(200, FRESH, &format!("answer {}", call.number)))
        }
    });
    let start = |at: usize| lab.start(&Asks::get("/").header("x-caller", &at.to_string()));
    let mut readers: Vec<_> = (0..5).map(|at| Some(start(at))).collect();
    settle().await;
    for gone in 1..=3 {
        assert_eq!(lab.site.calls(), gone);
        readers[leading.load(Ordering::SeqCst)].take().expect("it is there yet").abort();
        settle().await;
    }
    opened.add_permits(10);
    for reader in readers.into_iter().flatten() {
        assert_eq!(in_time(reader).await.unwrap().unwrap().text(), "answer 4");
    }
    assert_eq!((lab.site.calls(), lab.site.most_at_once()), (4, 1));
}

#[actix_rt::test]
async fn a_fill_goes_on_when_its_leader_vanishes() {
    let sender = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&sender);
    let lab = Lab::new(move |_| {
        let (response, sender) = streamed(FRESH, Some(4));
        *keep.lock().unwrap() = Some(sender);
        async { Ok(response) }
    });
    let asks = Asks::get("/");
    drop(lab.ask(&asks).await.unwrap());
    let waiter = lab.start(&asks);
    settle().await;
    let sender = sender.lock().unwrap().take().unwrap();
    sender.send(Ok(Bytes::from_static(b"four"))).unwrap();
    assert_eq!(in_time(waiter).await.unwrap().unwrap().text(), "four");
    assert_eq!(lab.site.calls(), 1);
}

#[actix_rt::test]
async fn a_failure_is_everybodys() {
    let opened = gate();
    let waits = Arc::clone(&opened);
    let lab = Lab::new(move |_| {
        let gate = Arc::clone(&waits);
        async move {
            pass(&gate).await;
            Err(Failure(Code::UpstreamTimeout))
        }
    });
    let readers: Vec<_> = (0..10).map(|_| lab.start(&Asks::get("/"))).collect();
    settle().await;
    opened.add_permits(10);
    for reader in readers {
        let failure = in_time(reader).await.unwrap().unwrap_err();
        assert_eq!(failure, Failure(Code::UpstreamTimeout));
    }
    assert_eq!(lab.site.calls(), 1);
}

#[actix_rt::test]
async fn a_request_after_a_purge_does_not_join_a_fetch_from_before_it() {
    let (lab, gate) = gated(FRESH);
    let mut asks = Asks::get("/");
    asks.tags = vec!["t".to_owned()];
    let before = lab.start(&asks);
    settle().await;
    lab.cache.purge(&tag("unrelated"), Mode::Hard).await;
    let joins = lab.start(&asks);
    settle().await;
    assert_eq!(lab.site.calls(), 1, "what was purged does not concern it");
    lab.cache.purge(&tag("t"), Mode::Hard).await;
    let after = [lab.start(&asks), lab.start(&asks)];
    settle().await;
    assert_eq!(lab.site.calls(), 2, "one fetch for those after the purge");
    gate.add_permits(10);
    for reader in after {
        assert_eq!(in_time(reader).await.unwrap().unwrap().text(), "answer 2");
    }
    assert_eq!(in_time(before).await.unwrap().unwrap().text(), "answer 1");
    // It began before the purge of `t`; what it waited for is dead, so it asks again or gets the new.
    in_time(joins).await.unwrap().unwrap();
    let now = lab.get(&asks).await.unwrap();
    assert_eq!((now.header("x-cache"), now.text()), (Some("HIT"), "answer 2"));
}

#[actix_rt::test]
async fn a_tag_that_only_the_origin_knows_kills_the_fill_under_way() {
    let (lab, gate) = gated(&[("cache-control", "max-age=100"), ("surrogate-key", "s u")]);
    let asks = Asks::get("/");
    let before = lab.start(&asks);
    settle().await;
    lab.cache.purge(&tag("u"), Mode::Hard).await;
    let after = lab.start(&asks);
    settle().await;
    gate.add_permits(10);
    assert_eq!(in_time(before).await.unwrap().unwrap().text(), "answer 1");
    assert_eq!(in_time(after).await.unwrap().unwrap().text(), "answer 2");
}

#[actix_rt::test]
async fn a_request_that_wants_only_what_is_stored_waits_for_nobody() {
    let (lab, gate) = gated(FRESH);
    let asks = Asks::get("/").header("cache-control", "only-if-cached");
    let leader = lab.start(&Asks::get("/"));
    settle().await;
    assert_eq!(lab.get(&asks).await.unwrap_err(), Failure(Code::NotCached));
    gate.add_permits(10);
    in_time(leader).await.unwrap().unwrap();
    assert_eq!(lab.get(&asks).await.unwrap().text(), "answer 1");
}

#[actix_rt::test]
async fn requests_that_purged_tags_concern_share_one_fetch_while_an_older_body_ends_slowly() {
    // The origin announced a length, sent that much, and does not close.
    let sender = Arc::new(Mutex::new(Vec::new()));
    let keep = Arc::clone(&sender);
    let (opened, release) = (gate(), gate());
    let (waits, later) = (Arc::clone(&opened), Arc::clone(&release));
    let lab = Lab::new(move |call| {
        let (keep, gate, later) = (Arc::clone(&keep), Arc::clone(&waits), Arc::clone(&later));
        async move {
            if call.number > 1 {
                pass(&later).await;
                return Ok(reply(200, FRESH, "new"));
            }
            pass(&gate).await;
            let headers = [("cache-control", "max-age=100"), ("cache-tag", "t")];
            let (response, sender) = streamed(&headers, Some(3));
            sender.send(Ok(Bytes::from_static(b"old"))).unwrap();
            keep.lock().unwrap().push(sender);
            Ok(response)
        }
    });
    opened.add_permits(1);
    let asks = Asks::get("/");
    assert_eq!(in_time(lab.get(&asks)).await.unwrap().text(), "old");
    lab.cache.purge(&tag("t"), Mode::Hard).await;
    let readers: Vec<_> = (0..20).map(|_| lab.start(&asks)).collect();
    settle().await;
    release.add_permits(100);
    for reader in readers {
        assert_eq!(in_time(reader).await.unwrap().unwrap().text(), "new");
    }
    assert_eq!(lab.site.calls(), 2);
    assert_eq!(Arc::strong_count(&lab.cache.flights), 1, "nobody leads any more");
}
