//! Responses that are not to be shared: nobody waits in line for one, and nobody gets another's.

use super::*;
use crate::cache::{
    l1::{Slot, Unshared},
    purge::{Mode, Selector},
};

/// An origin whose answers are their callers' own.
fn private() -> (Lab, Arc<Semaphore>) {
    let opened = gate();
    let waits = Arc::clone(&opened);
    let lab = Lab::new(move |call| {
        let gate = Arc::clone(&waits);
        async move {
            pass(&gate).await;
            Ok(reply(200, &[("cache-control", "private, max-age=100")], call.header("x-caller")))
        }
    });
    (lab, opened)
}

fn caller(number: usize) -> Asks {
    Asks::get("/").header("x-caller", &number.to_string())
}

#[actix_rt::test]
async fn all_who_waited_for_a_private_response_ask_side_by_side() {
    let (lab, gate) = private();
    let readers: Vec<_> = (0..20).map(|at| lab.start(&caller(at))).collect();
    settle().await;
    assert_eq!(lab.site.calls(), 1);
    gate.add_permits(1);
    settle().await;
    assert_eq!((lab.site.calls(), lab.site.most_at_once()), (20, 19));
    gate.add_permits(100);
    for (at, reader) in readers.into_iter().enumerate() {
        assert_eq!(in_time(reader).await.unwrap().unwrap().text(), at.to_string());
    }
    assert_eq!(lab.route.stats.unshared.get(), 19);
}

fn mark(lab: &Lab, path: &str) -> Option<Arc<Unshared>> {
    let parts = Parts { host: "a.test", path, query: None, route: "r", scope: "" };
    match lab.cache.l1.peek(parts.to_key().borrow()) {
        Some(Slot::Unshared(mark)) => Some(mark),
        _ => None,
    }
}

#[actix_rt::test]
async fn that_a_response_was_private_is_remembered_for_ten_seconds() {
    let (lab, gate) = private();
    gate.add_permits(1);
    let before = Timestamp::now();
    lab.get(&caller(0)).await.unwrap();
    let until = mark(&lab, "/").expect("it is remembered").until;
    assert!((before.0 + 10_000..=Timestamp::now().0 + 10_000).contains(&until.0));
    let readers: Vec<_> = (0..9).map(|at| lab.start(&caller(at))).collect();
    settle().await;
    assert_eq!((lab.site.calls(), lab.site.most_at_once()), (10, 9), "nobody waits in line");
    // It is not prolonged for as long as anybody asks, or a page that becomes public stays uncached.
    gate.add_permits(100);
    for reader in readers {
        in_time(reader).await.unwrap().unwrap();
    }
    assert_eq!(mark(&lab, "/").expect("it is remembered").until, until);
    lab.cache.sweep(Timestamp(until.0));
    assert!(mark(&lab, "/").is_none());
}

#[actix_rt::test]
async fn a_page_that_becomes_private_after_a_purge_is_remembered_as_well() {
    let lab = Lab::new(|call| async move {
        Ok(match call.number {
            1 => {
                reply(200, &[("cache-control", "max-age=1"), ("age", "5"), ("etag", "\"a\"")], "a")
            }
            _ => reply(200, &[("cache-control", "private")], "b"),
        })
    });
    lab.cache.purge(&[Selector::Tag("any".to_owned())], Mode::Hard).await;
    lab.get(&caller(0)).await.unwrap();
    assert_eq!(lab.get(&caller(0)).await.unwrap().text(), "b");
    assert!(mark(&lab, "/").is_some());
}

#[actix_rt::test]
async fn a_mark_from_before_a_purge_does_not_replace_what_was_stored_after_it() {
    let opened = gate();
    let waits = Arc::clone(&opened);
    let lab = Lab::new(move |call| {
        let gate = Arc::clone(&waits);
        async move {
            if call.number == 1 {
                pass(&gate).await;
                return Ok(reply(200, &[("cache-control", "private")], "old"));
            }
            Ok(reply(200, &[("cache-control", "max-age=100")], "new"))
        }
    });
    let old = lab.start(&caller(0));
    settle().await;
    lab.cache.purge(&[Selector::All], Mode::Hard).await;
    assert_eq!(lab.get(&caller(1)).await.unwrap().text(), "new");
    opened.add_permits(1);
    assert_eq!(in_time(old).await.unwrap().unwrap().text(), "old");
    assert_eq!(lab.get(&caller(2)).await.unwrap().header("x-cache"), Some("HIT"));
}

#[actix_rt::test]
async fn an_answer_to_a_clients_own_condition_says_nothing_about_sharing() {
    let lab = Lab::new(|call| async move {
        Ok(match call.header("if-none-match") {
            "" => reply(200, &[("cache-control", "max-age=100"), ("etag", "\"a\"")], "a"),
            _ if matches!(call.ask, Ask::Verbatim) => reply(304, &[("etag", "\"a\"")], ""),
            _ => reply(200, &[("cache-control", "max-age=100"), ("etag", "\"a\"")], "a"),
        })
    });
    let conditional = Asks::get("/").header("if-none-match", "\"a\"");
    assert_eq!(lab.get(&conditional).await.unwrap().status, StatusCode::NOT_MODIFIED);
    assert!(mark(&lab, "/").is_none());
    let plain = lab.get(&Asks::get("/")).await.unwrap();
    assert_eq!((plain.header("x-cache"), plain.text()), (Some("HIT"), "a"));
}

#[actix_rt::test]
async fn one_busy_answer_does_not_undo_what_is_stored() {
    let lab = Lab::new(|call| async move {
        Ok(match call.number {
            1 => {
                reply(200, &[("cache-control", "max-age=1"), ("age", "5"), ("etag", "\"a\"")], "a")
            }
            2 => reply(503, &[], "busy"),
            _ => reply(304, &[("cache-control", "max-age=100"), ("etag", "\"a\"")], ""),
        })
    });
    lab.get(&caller(0)).await.unwrap();
    assert_eq!(lab.get(&caller(0)).await.unwrap().status, StatusCode::SERVICE_UNAVAILABLE);
    let after = lab.get(&caller(0)).await.unwrap();
    assert_eq!((after.header("x-cache"), after.text()), (Some("REVALIDATED"), "a"));
}
