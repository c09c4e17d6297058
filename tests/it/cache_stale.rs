//! Stale responses: checked with the origin, served while one request refreshes them, or served in
//! place of an error (RFC 5861).

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::{
    cache::cached,
    lab::{
        Answer, Gate, Gateway, Origin, Request, Response, SOON, Seen, eventually, hold, load,
        wait_for,
    },
};

/// Asks until the entry is no longer fresh, and returns that answer.
async fn once_stale(gateway: &Gateway, path: &str) -> Response {
    wait_for("the entry is stale", SOON, || async {
        let response = gateway.get(path).await;
        (response.x_cache() != "HIT").then_some(response)
    })
    .await
}

#[tokio::test]
async fn an_entry_that_must_be_checked_is_revalidated_with_its_validators() {
    let origin = Origin::start(|seen: &Seen| match seen.header("if-none-match") {
        Some("\"v1\"") => Answer::status(304).header("ETag", "\"v1\"").header("X-Count", "304"),
        _ => Answer::ok("body")
            .header("Cache-Control", "no-cache")
            .header("ETag", "\"v1\"")
            .header("X-Count", "200"),
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    assert_eq!(gateway.get("/doc").await.x_cache(), "MISS");
    let checked = gateway.get("/doc").await;
    assert_eq!((checked.status, checked.x_cache().as_str()), (200, "REVALIDATED"));
    assert_eq!((checked.text().as_str(), checked.header("x-count")), ("body", Some("304")));
    assert_eq!(origin.total(), 2);
    let own = Request::get("/doc").header("If-None-Match", "\"v1\"");
    assert_eq!(gateway.send(&own).await.status, 304, "the client's own condition holds too");
}

#[tokio::test]
async fn a_revalidation_that_brings_something_new_replaces_the_entry() {
    let origin = Origin::start(|seen: &Seen| {
        Answer::ok(format!("version {}", seen.nth))
            .header("Cache-Control", "no-cache")
            .header("ETag", format!("\"v{}\"", seen.nth))
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/doc").await;
    assert_eq!(gateway.get("/doc").await.text(), "version 2");
    assert_eq!(origin.last().header("if-none-match"), Some("\"v1\""));
    gateway.get("/doc").await;
    assert_eq!(origin.last().header("if-none-match"), Some("\"v2\""));
}

#[tokio::test]
async fn a_client_can_ask_for_a_check() {
    let origin = Origin::start(|seen: &Seen| Answer::cacheable(seen.nth.to_string())).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/a").await;
    let check = Request::get("/a").header("Cache-Control", "no-cache");
    assert_eq!(gateway.send(&check).await.text(), "2");
    assert_eq!(gateway.get("/a").await.text(), "2", "what the check brought is kept");
    let young = Request::get("/a").header("Cache-Control", "max-age=0");
    assert_eq!(gateway.send(&young).await.text(), "3");
}

#[tokio::test]
async fn stale_while_revalidate_answers_at_once_and_refreshes_once() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |seen: &Seen| {
        let control =
            if seen.nth == 1 { "max-age=1, stale-while-revalidate=60" } else { "max-age=60" };
        let answer = Answer::ok(seen.nth.to_string()).header("Cache-Control", control);
        if seen.nth == 1 { answer } else { answer.gated(&held) }
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/a").await;
    let stale = once_stale(&gateway, "/a").await;
    assert_eq!((stale.x_cache().as_str(), stale.text().as_str()), ("STALE", "1"));
    // The refresh hangs upstream; nobody waits for it and nobody starts another.
    load(
        gateway.public,
        20,
        5,
        |_, _| Request::get("/a"),
        |_, _, response| {
            assert_eq!((response.x_cache().as_str(), response.text().as_str()), ("STALE", "1"))
        },
    )
    .await;
    eventually("the refresh is upstream", SOON, || async { origin.total() == 2 }).await;
    gate.open();
    eventually("the new version is served", SOON, || async {
        let response = gateway.get("/a").await;
        response.text() == "2" && response.x_cache() == "HIT"
    })
    .await;
    assert_eq!(origin.total(), 2);
}

#[tokio::test]
async fn a_route_can_allow_stale_while_revalidate() {
    let origin = Origin::start(|seen: &Seen| Answer::ok(seen.nth.to_string())).await;
    let routes = cached(&origin, "ttl: 1s, stale_while_revalidate: 60s");
    let gateway = Gateway::routing(routes).start().await;
    gateway.get("/a").await;
    let stale = once_stale(&gateway, "/a").await;
    assert_eq!((stale.x_cache().as_str(), stale.text().as_str()), ("STALE", "1"));
}

#[tokio::test]
async fn stale_if_error_hides_an_upstream_that_fails() {
    let failing = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&failing);
    let origin = Origin::start(move |seen: &Seen| {
        let allowed = if seen.path() == "/allowed" { ", stale-if-error=60" } else { "" };
        match (state.load(SeqCst), seen.path()) {
            (false, _) => Answer::ok("good").header("Cache-Control", format!("max-age=1{allowed}")),
            (true, "/reset") => Answer::reset(),
            (true, _) => Answer::status(500).body("broken"),
        }
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/allowed").await;
    gateway.get("/forbidden").await;
    failing.store(true, SeqCst);
    let hidden = once_stale(&gateway, "/allowed").await;
    assert_eq!((hidden.status, hidden.text().as_str()), (200, "good"));
    assert_eq!(hidden.x_cache(), "STALE");
    let shown = once_stale(&gateway, "/forbidden").await;
    assert_eq!((shown.status, shown.text().as_str()), (500, "broken"));
    failing.store(false, SeqCst);
    eventually("it heals", SOON, || async { gateway.get("/allowed").await.x_cache() != "STALE" })
        .await;
}

#[tokio::test]
async fn stale_if_error_on_a_route_covers_an_upstream_that_is_gone() {
    let origin = Origin::start(|_| Answer::ok("good")).await;
    let addr = origin.addr();
    let routes = cached(&origin, "ttl: 1s, stale_if_error: 1h");
    let gateway = Gateway::routing(routes).start().await;
    gateway.get("/a").await;
    drop(origin);
    // Nobody else may answer at its address meanwhile.
    let held = wait_for("the origin is gone", SOON, || async { hold(addr).ok() }).await;
    let hidden = once_stale(&gateway, "/a").await;
    assert_eq!((hidden.x_cache().as_str(), hidden.text().as_str()), ("STALE", "good"));
    assert_eq!(gateway.get("/never-seen").await.status, 502);
    drop(held);
    let _back = Origin::start_at(addr, |_| Answer::ok("better")).await;
    eventually("it heals", SOON, || async { gateway.get("/a").await.text() == "better" }).await;
}

#[tokio::test]
async fn must_revalidate_forbids_serving_stale() {
    let failing = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&failing);
    let origin = Origin::start(move |_| {
        if state.load(SeqCst) {
            return Answer::status(500).body("broken");
        }
        let control = "max-age=1, must-revalidate, stale-if-error=60, stale-while-revalidate=60";
        Answer::ok("good").header("Cache-Control", control)
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/a").await;
    failing.store(true, SeqCst);
    let shown = once_stale(&gateway, "/a").await;
    assert_ne!(shown.status, 200, "{:?}", shown.headers);
}

#[tokio::test]
async fn an_expired_entry_under_load_is_fetched_once() {
    let origin = Origin::start(|seen: &Seen| {
        let control = if seen.nth == 1 { "max-age=1" } else { "max-age=60" };
        let delay = Duration::from_millis(if seen.nth == 1 { 0 } else { 200 });
        Answer::ok(seen.nth.to_string()).header("Cache-Control", control).delay(delay)
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/a").await;
    // Twenty clients ask on and on, through the moment in which the entry expires.
    load(
        gateway.public,
        20,
        400,
        |_, _| Request::get("/a"),
        |_, _, response| assert_eq!(response.status, 200),
    )
    .await;
    once_stale_or_new(&gateway).await;
    assert_eq!(origin.total(), 2);
}

/// Waits until the second version is served.
async fn once_stale_or_new(gateway: &Gateway) {
    eventually("the second version is served", SOON, || async {
        gateway.get("/a").await.text() == "2"
    })
    .await;
}
