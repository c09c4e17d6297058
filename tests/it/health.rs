//! `/health/live` and `/health/ready`: what an orchestrator and a load balancer go by.

use std::time::Duration;

use crate::lab::{
    Answer, Connection, Gate, Gateway, Origin, Request, SOON, Signal, eventually, refusing,
};

#[tokio::test]
async fn a_running_gateway_is_live_and_ready() {
    let origin = Origin::start(|_| Answer::ok("from the origin")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    assert_eq!(gateway.get("/health/live").await.status, 200);
    let ready = gateway.get("/health/ready").await;
    assert_eq!(ready.status, 200);
    assert!(ready.header("content-type").is_some_and(|t| t.contains("json")));
    ready.json();
    assert_eq!(origin.total(), 0, "health is the gateway's own answer");
}

#[tokio::test]
async fn health_answers_are_never_cached() {
    let gateway = Gateway::before(&format!("http://{}", refusing())).start().await;
    for path in ["/health/live", "/health/ready"] {
        let answer = gateway.get(path).await;
        let control = answer.header("cache-control").unwrap_or_default();
        assert!(control.contains("no-store"), "{path}: {:?}", answer.headers);
    }
}

#[tokio::test]
async fn a_dead_upstream_does_not_get_the_gateway_killed() {
    let gateway = Gateway::before(&format!("http://{}", refusing())).start().await;
    assert_eq!(gateway.get("/").await.status, 502);
    assert_eq!(gateway.get("/health/live").await.status, 200);
}

#[tokio::test]
async fn a_draining_gateway_is_live_but_not_ready() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |_| Answer::ok("late").gated(&held)).await;
    let mut gateway = Gateway::before(&origin.url()).env("SHUTDOWN_DELAY", "2s").start().await;
    let mut client = gateway.connect().await;
    client.write(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("the origin has the request", SOON, || async { origin.total() == 1 }).await;

    gateway.signal(Signal::Term);
    let addr = gateway.public;
    eventually(
        "readiness fails while the listener is still open",
        Duration::from_secs(2),
        || async {
            let ready =
                async { Connection::open(addr).await?.ask(&Request::get("/health/ready")).await };
            ready.await.is_ok_and(|r| r.status == 503)
        },
    )
    .await;
    assert_eq!(gateway.get("/health/live").await.status, 200);
    gate.open();
    assert_eq!(client.response("GET").await.unwrap().text(), "late");
    assert!(gateway.wait(SOON).await.success());
}
