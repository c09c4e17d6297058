//! Stale responses: revalidated once, behind the client's back or in front, and served on errors.

use super::*;
use crate::cache::purge::{Mode, Selector};

fn stale(extra: &'static str) -> Vec<(&'static str, &'static str)> {
    vec![("cache-control", extra), ("age", "5"), ("etag", "\"a\"")]
}

/// The first answer is stale on arrival; the rest, behind a gate, are what `then` makes of them.
fn lab(
    control: &'static str,
    then: impl Fn(&Call) -> Result<Response, Failure> + Clone + Send + Sync + 'static,
) -> (Lab, Arc<Semaphore>) {
    let opened = gate();
    let waits = Arc::clone(&opened);
    let lab = Lab::new(move |call| {
        let (gate, then) = (Arc::clone(&waits), then.clone());
        async move {
            if call.number == 1 {
                return Ok(reply(200, &stale(control), "first"));
            }
            pass(&gate).await;
            then(&call)
        }
    });
    (lab, opened)
}

fn not_modified(_: &Call) -> Result<Response, Failure> {
    Ok(reply(304, &[("cache-control", "max-age=100"), ("age", "0"), ("etag", "\"a\"")], ""))
}

#[actix_rt::test]
async fn stale_while_revalidate_asks_once_for_any_number_of_clients() {
    let (lab, gate) = lab("max-age=1, stale-while-revalidate=100", not_modified);
    let asks = Asks::get("/");
    lab.get(&asks).await.unwrap();
    for _ in 0..20 {
        let got = lab.get(&asks).await.unwrap();
        assert_eq!((got.header("x-cache"), got.text()), (Some("STALE"), "first"));
        settle().await;
    }
    assert_eq!(lab.site.calls(), 2);
    gate.add_permits(1);
    settle().await;
    let got = lab.get(&asks).await.unwrap();
    assert_eq!((got.header("x-cache"), got.text(), lab.site.calls()), (Some("HIT"), "first", 2));
}

#[actix_rt::test]
async fn a_request_that_cannot_be_repeated_revalidates_in_front() {
    let (lab, gate) = lab("max-age=1, stale-while-revalidate=100", not_modified);
    let mut asks = Asks::get("/");
    asks.repeatable = false;
    lab.get(&asks).await.unwrap();
    gate.add_permits(1);
    assert_eq!(lab.get(&asks).await.unwrap().header("x-cache"), Some("REVALIDATED"));
}

#[actix_rt::test]
async fn one_304_serves_all_who_waited_for_it() {
    let (lab, gate) = lab("max-age=1", not_modified);
    let asks = Asks::get("/");
    lab.get(&asks).await.unwrap();
    let readers: Vec<_> = (0..20).map(|_| lab.start(&asks)).collect();
    settle().await;
    gate.add_permits(1);
    for reader in readers {
        let got = in_time(reader).await.unwrap().unwrap();
        assert_eq!((got.header("x-cache"), got.text()), (Some("REVALIDATED"), "first"));
    }
    assert_eq!(lab.site.calls(), 2);
    assert_eq!(lab.get(&asks).await.unwrap().header("x-cache"), Some("HIT"));
}

#[actix_rt::test]
async fn stale_if_error_covers_the_leader_and_those_who_waited() {
    for broken in [false, true] {
        let (lab, gate) = lab("max-age=1, stale-if-error=100", move |_| {
            if broken { Err(BROKEN) } else { Ok(reply(502, &[], "bad")) }
        });
        let asks = Asks::get("/");
        lab.get(&asks).await.unwrap();
        let readers: Vec<_> = (0..10).map(|_| lab.start(&asks)).collect();
        settle().await;
        gate.add_permits(1);
        for reader in readers {
            let got = in_time(reader).await.unwrap().unwrap();
            assert_eq!((got.header("x-cache"), got.text()), (Some("STALE"), "first"));
        }
        assert_eq!(lab.site.calls(), 2);
    }
}

#[actix_rt::test]
async fn an_error_that_stale_does_not_cover_is_passed_on() {
    let (lab, gate) = lab("max-age=1, must-revalidate", |_| Ok(reply(502, &[], "bad")));
    let asks = Asks::get("/");
    lab.get(&asks).await.unwrap();
    gate.add_permits(1);
    assert_eq!(lab.get(&asks).await.unwrap().status, StatusCode::BAD_GATEWAY);
}

#[actix_rt::test]
async fn what_was_purged_does_not_stand_in_for_a_failing_origin() {
    let (lab, gate) = lab("max-age=1, stale-if-error=100", |_| Err(BROKEN));
    let asks = Asks::get("/");
    lab.get(&asks).await.unwrap();
    lab.cache.purge(&[Selector::All], Mode::Hard).await;
    gate.add_permits(1);
    assert_eq!(lab.get(&asks).await.unwrap_err(), BROKEN);
}

#[actix_rt::test]
async fn a_soft_purge_serves_once_more_what_is_being_revalidated() {
    let opened = gate();
    let waits = Arc::clone(&opened);
    let lab = Lab::new(move |call| {
        let gate = Arc::clone(&waits);
        async move {
            if call.number > 1 {
                pass(&gate).await;
            }
            let text = format!("version {}", call.number);
            Ok(reply(200, &[("cache-control", "max-age=100")], &text))
        }
    });
    let asks = Asks::get("/");
    lab.get(&asks).await.unwrap();
    lab.cache.purge(&[Selector::Route("r".to_owned())], Mode::Soft).await;
    for _ in 0..3 {
        let got = lab.get(&asks).await.unwrap();
        assert_eq!((got.header("x-cache"), got.text()), (Some("STALE"), "version 1"));
        settle().await;
    }
    assert_eq!(lab.site.calls(), 2);
    opened.add_permits(1);
    settle().await;
    let got = lab.get(&asks).await.unwrap();
    assert_eq!((got.header("x-cache"), got.text()), (Some("HIT"), "version 2"));
}

#[actix_rt::test]
async fn what_was_purged_softly_does_not_become_fresh_when_the_purge_is_forgotten() {
    let lab = Lab::new(|call| async move {
        let text = format!("version {}", call.number);
        Ok(reply(200, &[("cache-control", "max-age=100")], &text))
    });
    let asks = Asks::get("/");
    lab.get(&asks).await.unwrap();
    lab.cache.purge(&[Selector::Route("r".to_owned())], Mode::Soft).await;
    lab.cache.sweep(Timestamp::now());
    lab.cache.purge(&[Selector::Tag("unrelated".to_owned())], Mode::Hard).await;
    assert_eq!(lab.get(&asks).await.unwrap().header("x-cache"), Some("STALE"));
}

#[actix_rt::test]
async fn a_validated_response_keeps_its_tags() {
    let lab = Lab::new(|call| async move {
        let headers =
            [("cache-control", "max-age=1"), ("age", "5"), ("etag", "\"a\""), ("cache-tag", "t")];
        let later = [("cache-control", "max-age=100"), ("etag", "\"a\"")];
        Ok(if call.validates() { reply(304, &later, "") } else { reply(200, &headers, "x") })
    });
    let asks = Asks::get("/");
    lab.get(&asks).await.unwrap();
    assert_eq!(lab.get(&asks).await.unwrap().header("x-cache"), Some("REVALIDATED"));
    assert_eq!(lab.get(&asks).await.unwrap().header("x-cache"), Some("HIT"));
    lab.cache.purge(&[Selector::Tag("t".to_owned())], Mode::Hard).await;
    assert_eq!(lab.get(&asks).await.unwrap().header("x-cache"), Some("MISS"));
}
