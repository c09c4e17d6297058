//! What a client sees, and what the gateway does, when an upstream is down, slow or lying.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::{Duration, Instant},
};

use crate::lab::{
    Answer, Gate, Gateway, Origin, Request, SOON, Seen, eventually, refusing, within,
};

/// One route to an upstream described by this YAML.
fn to(upstream: &str) -> String {
    format!(
        "upstreams:\n  app:\n{upstream}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app }}\n"
    )
}

/// Without retries, so that a fault is seen as it is.
fn once(origin: &Origin, more: &str) -> String {
    to(&format!("    targets: ['{}']\n    retry: {{ attempts: 1 }}\n{more}", origin.url()))
}

#[tokio::test]
async fn a_refused_connection_is_502() {
    let gateway = Gateway::before(&format!("http://{}", refusing())).start().await;
    let response = gateway.get("/").await;
    let problem = response.assert_problem(502, "upstream_unreachable");
    let text = problem.to_string();
    assert!(!text.contains("127.0.0.1") && !text.contains("refused"), "internals: {text}");
}

#[tokio::test]
async fn a_silent_upstream_is_504_at_its_deadline() {
    let origin = Origin::start(|_| Answer::never()).await;
    let routes = once(&origin, "    timeout: { first_byte: 300ms }\n");
    let gateway = Gateway::routing(routes).start().await;
    let started = Instant::now();
    gateway.get("/").await.assert_problem(504, "upstream_timeout");
    let took = started.elapsed();
    assert!((300..1500).contains(&took.as_millis()), "{took:?}");
    eventually("the upstream connection is given up", SOON, || async {
        origin.open_connections() == 0
    })
    .await;
}

#[tokio::test]
async fn a_reset_before_an_answer_is_502() {
    let origin = Origin::start(|_| Answer::reset()).await;
    let gateway = Gateway::routing(once(&origin, "")).start().await;
    gateway.send(&Request::post("/", "x")).await.assert_problem(502, "upstream_unreachable");
    assert_eq!(origin.total(), 1, "a POST is sent once");
}

#[tokio::test]
async fn what_is_not_http_is_502_and_its_connection_is_not_used_again() {
    let head = |fields: &str| format!("HTTP/1.1 200 OK\r\n{fields}\r\n");
    let bad = [
        "SSH-2.0-OpenSSH_9.2\r\n".to_owned(),
        "HTTP/1.1 banana\r\n\r\n".to_owned(),
        head("Content-Length: 2\r\nContent-Length: 3\r\n") + "ab",
        head("Content-Length: -1\r\n"),
        head("Content-Length: 2\r\nTransfer-Encoding: chunked\r\n") + "2\r\nab\r\n0\r\n\r\n",
        head("Transfer-Encoding: banana\r\n") + "ab",
        head("Bad Name: x\r\nContent-Length: 0\r\n"),
        head(&format!("X-Long: {}\r\nContent-Length: 0\r\n", "a".repeat(2 << 20))),
    ];
    let answers = bad.clone();
    let origin = Origin::start(move |seen: &Seen| {
        let index = seen.path().trim_start_matches('/').parse::<usize>();
        match index.ok().and_then(|i| answers.get(i)) {
            Some(bytes) => Answer::raw(bytes.clone()).then_hang(),
            None => Answer::ok("fine"),
        }
    })
    .await;
    let breaker = "    breaker: { failures: 1000 }\n";
    let gateway = Gateway::routing(once(&origin, breaker)).env("WORKERS", "1").start().await;
    for (index, bytes) in bad.iter().enumerate() {
        let shown = &bytes[..bytes.len().min(80)];
        let response = within(SOON, shown, gateway.get(&format!("/{index}"))).await;
        assert_eq!(response.status, 502, "{shown:?}");
        assert_eq!(response.header("content-type"), Some("application/problem+json"));
        assert_eq!(gateway.get("/after").await.text(), "fine", "after {shown:?}");
    }
}

#[tokio::test]
async fn a_response_after_the_response_reaches_nobody() {
    let evil = "HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\ngoodHTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nevil";
    let origin = Origin::start(move |seen: &Seen| match seen.path() {
        "/two" => Answer::raw(evil).then_hang(),
        _ => Answer::ok("fine"),
    })
    .await;
    let gateway = Gateway::before(&origin.url()).env("WORKERS", "1").start().await;
    assert_eq!(gateway.get("/two").await.text(), "good");
    for _ in 0..5 {
        assert_eq!(gateway.get("/").await.text(), "fine");
    }
}

#[tokio::test]
async fn a_cut_is_passed_on_as_a_cut() {
    let origin = Origin::start(|seen: &Seen| match seen.path() {
        "/length" => Answer::ok("half").lying_length(8).then_close(),
        "/length-reset" => Answer::ok("half").lying_length(8).then_reset(),
        _ => Answer::status(200).chunk("half").then_close(),
    })
    .await;
    let gateway = Gateway::routing(once(&origin, "")).start().await;
    for path in ["/length", "/length-reset", "/chunks"] {
        let response = Request::get(path).send(gateway.public).await;
        // A reset can also overtake the head.
        assert!(response.is_err() || !response.unwrap().whole, "{path} looks whole");
    }
}

#[tokio::test]
async fn a_body_that_stalls_is_cut_at_the_idle_timeout() {
    let origin = Origin::start(|_| Answer::ok("half").lying_length(8).then_hang()).await;
    let routes = once(&origin, "    timeout: { idle: 300ms }\n");
    let gateway = Gateway::routing(routes).start().await;
    let response = within(Duration::from_secs(3), "the idle timeout", gateway.get("/")).await;
    assert!(!response.whole);
}

#[tokio::test]
async fn an_early_answer_to_an_upload_reaches_the_client() {
    let origin = Origin::start_early(
        |head| (head.method == "POST").then(|| Answer::status(403).body("no").then_close()),
        |_| Answer::ok("read it all"),
    )
    .await;
    let gateway = Gateway::routing(once(&origin, "")).start().await;
    let mut client = gateway.connect().await;
    let head = "POST /up HTTP/1.1\r\nHost: h\r\nContent-Length: 8000000\r\n\r\n";
    client.write(head.as_bytes()).await.unwrap();
    client.write(&[b'a'; 10_000]).await.unwrap();
    let response = within(SOON, "the early answer", client.response("POST")).await.unwrap();
    assert_eq!((response.status, response.text().as_str()), (403, "no"));
}

#[tokio::test]
async fn a_client_that_hangs_up_ends_the_download_upstream() {
    let origin = Origin::start(|_| Answer::status(200).large(vec![b'x'; 64 << 10], 100_000)).await;
    let gateway = Gateway::routing(once(&origin, "")).start().await;
    let mut client = gateway.connect().await;
    client.write(b"GET /endless HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    client.exactly(100_000).await.unwrap();
    assert_eq!(origin.open_connections(), 1);
    drop(client);
    eventually("the upstream request is given up", SOON, || async {
        origin.open_connections() == 0
    })
    .await;
}

#[tokio::test]
async fn a_connect_failure_moves_on_to_the_next_target() {
    let origin = Origin::start(|_| Answer::ok("alive")).await;
    let routes = to(&format!(
        "    targets: ['http://{}', '{}']\n    retry: {{ attempts: 2, on: [connect] }}\n",
        refusing(),
        origin.url()
    ));
    let gateway = Gateway::routing(routes).start().await;
    for n in 0..20 {
        // Where no connection came about nothing was sent, so a POST may move on too.
        let request = if n % 2 == 0 { Request::get("/") } else { Request::post("/", "x") };
        assert_eq!(gateway.send(&request).await.text(), "alive", "request {n}");
    }
}

#[tokio::test]
async fn only_safe_or_idempotent_requests_are_sent_again() {
    let origin = Origin::start(|seen: &Seen| {
        if seen.nth == 1 { Answer::status(503).body("busy") } else { Answer::ok("second") }
    })
    .await;
    let routes = to(&format!(
        "    targets: ['{}']\n    retry: {{ attempts: 2, on: [connect, 503] }}\n",
        origin.url()
    ));
    let gateway = Gateway::routing(routes).start().await;
    let get = gateway.get("/get").await;
    assert_eq!((get.status, get.text().as_str()), (200, "second"));
    let post = gateway.send(&Request::post("/post", "x")).await;
    assert_eq!((post.status, post.text().as_str()), (503, "busy"));
    assert_eq!((origin.count("/get"), origin.count("/post")), (2, 1));
}

#[tokio::test]
async fn retries_stay_within_their_budget() {
    let origin = Origin::start(|_| Answer::status(503).body("busy")).await;
    let routes = to(&format!(
        "    targets: ['{}']\n    retry: {{ attempts: 3, on: [503] }}\n    breaker: {{ failures: 100000 }}\n",
        origin.url()
    ));
    let gateway = Gateway::routing(routes).start().await;
    for n in 0..200 {
        assert_eq!(gateway.get(&format!("/{n}")).await.status, 503);
    }
    // 20 % of 200, and a little to begin with, so that a quiet gateway may retry at all.
    assert!(origin.total() > 200, "it retries at all");
    assert!(origin.total() <= 260, "{} requests for 200", origin.total());
}

#[tokio::test]
async fn a_connection_the_upstream_closed_while_idle_costs_nobody_an_error() {
    let origin = Origin::start(|_| Answer::ok("x").then_close()).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    for n in 0..100 {
        let response = client.ask(&Request::get(format!("/{n}"))).await.unwrap();
        assert_eq!(response.status, 200, "request {n}");
    }
}

#[tokio::test]
async fn the_breaker_opens_and_lets_one_try_again() {
    let healthy = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&healthy);
    let origin =
        Origin::start(
            move |_| {
                if state.load(SeqCst) { Answer::ok("back") } else { Answer::reset() }
            },
        )
        .await;
    let breaker = "    breaker: { failures: 3, window: 10s, open: 500ms }\n";
    let gateway = Gateway::routing(once(&origin, breaker)).start().await;
    for _ in 0..3 {
        gateway.get("/").await.assert_problem(502, "upstream_unreachable");
    }
    let asked = origin.total();
    let refused = gateway.get("/").await;
    assert_eq!(refused.status, 503, "{:?}", refused.text());
    let code = refused.json()["code"].clone();
    assert!(code == "breaker_open" || code == "no_healthy_target", "{code}");
    assert!(refused.header("retry-after").is_some());
    assert_eq!(origin.total(), asked, "an open breaker asks nobody");

    healthy.store(true, SeqCst);
    eventually("the breaker closes", SOON, || async { gateway.get("/").await.status == 200 }).await;
    for _ in 0..5 {
        assert_eq!(gateway.get("/").await.text(), "back");
    }
}

#[tokio::test]
async fn an_unhealthy_target_gets_no_requests_until_it_recovers() {
    let sick = Arc::new(AtomicBool::new(false));
    let state = Arc::clone(&sick);
    let first = Origin::start(move |seen: &Seen| {
        let ill = seen.path() == "/healthz" && state.load(SeqCst);
        Answer::status(if ill { 500 } else { 200 }).body("first")
    })
    .await;
    let second = Origin::start(|_| Answer::ok("second")).await;
    let routes = to(&format!(
        "    targets: ['{}', '{}']\n    balance: round-robin\n    health: {{ path: /healthz, interval: 100ms, unhealthy_after: 2, healthy_after: 2 }}\n",
        first.url(),
        second.url()
    ));
    let gateway = Gateway::routing(routes).env("WORKERS", "1").start().await;
    let both = || async {
        let mut names = [gateway.get("/").await.text(), gateway.get("/").await.text()];
        names.sort();
        names.concat()
    };
    eventually("both take turns", SOON, || async { both().await == "firstsecond" }).await;
    sick.store(true, SeqCst);
    eventually("the sick one is left alone", SOON, || async {
        both().await == "secondsecond" && both().await == "secondsecond"
    })
    .await;
    sick.store(false, SeqCst);
    eventually("it is back", SOON, || async { both().await == "firstsecond" }).await;
}

#[tokio::test]
async fn with_no_healthy_target_the_answer_is_503_with_retry_after() {
    let origin = Origin::start(|seen: &Seen| {
        Answer::status(if seen.path() == "/healthz" { 500 } else { 200 }).body("x")
    })
    .await;
    let health =
        "    health: { path: /healthz, interval: 100ms, unhealthy_after: 1, healthy_after: 1 }\n";
    let gateway = Gateway::routing(once(&origin, health)).start().await;
    eventually("the only target is out", SOON, || async { gateway.get("/").await.status == 503 })
        .await;
    let refused = gateway.get("/").await;
    refused.assert_problem(503, "no_healthy_target");
    assert!(refused.header("retry-after").is_some());
}

#[tokio::test]
async fn round_robin_and_least_requests_share_and_consistent_hash_sticks() {
    let one = Origin::start(|_| Answer::ok("1")).await;
    let two = Origin::start(|_| Answer::ok("2")).await;
    for balance in ["round-robin", "least-requests", "consistent-hash"] {
        let routes = to(&format!(
            "    targets: ['{}', '{}']\n    balance: {balance}\n",
            one.url(),
            two.url()
        ));
        let gateway = Gateway::routing(routes).start().await;
        let (mut ones, mut same) = (0, 0);
        for n in 0..60 {
            let first = gateway.get(&format!("/item/{n}")).await.text();
            let second = gateway.get(&format!("/item/{n}")).await.text();
            ones += usize::from(first == "1") + usize::from(second == "1");
            same += usize::from(first == second);
        }
        assert!((20..=100).contains(&ones), "{balance}: {ones} of 120 went to the first");
        assert!(
            balance != "consistent-hash" || same == 60,
            "{same} of 60 came back to their target"
        );
    }
}

#[tokio::test]
async fn a_slow_upstream_does_not_slow_another() {
    let gate = Gate::closed();
    let held = gate.clone();
    let slow = Origin::start(move |_| Answer::ok("slow").gated(&held)).await;
    let quick = Origin::start(|_| Answer::ok("quick")).await;
    let routes = format!(
        "upstreams:\n  slow: {{ targets: ['{}'] }}\n  quick: {{ targets: ['{}'] }}\nroutes:\n  - {{ name: slow, path: '/slow/{{n}}', upstream: slow }}\n  - {{ name: quick, path: /quick, upstream: quick }}\n",
        slow.url(),
        quick.url()
    );
    let gateway = Gateway::routing(routes).start().await;
    let waiting = Arc::new(AtomicUsize::new(0));
    let addr = gateway.public;
    let mut stuck = tokio::task::JoinSet::new();
    for n in 0..200 {
        let waiting = Arc::clone(&waiting);
        stuck.spawn(async move {
            let answer = Request::get(format!("/slow/{n}"))
                .send(addr)
                .await
                .expect("it is answered in the end");
            waiting.fetch_add(1, SeqCst);
            answer.status
        });
    }
    eventually("all are stuck upstream", SOON, || async { slow.total() == 200 }).await;
    for _ in 0..50 {
        let answer = within(Duration::from_secs(1), "the quick one", gateway.get("/quick")).await;
        assert_eq!(answer.text(), "quick");
    }
    assert_eq!(waiting.load(SeqCst), 0);
    gate.open();
    while let Some(status) = stuck.join_next().await {
        assert_eq!(status.unwrap(), 200);
    }
}
