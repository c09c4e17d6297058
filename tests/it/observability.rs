//! What an operator sees: metrics, request ids, trace context, the access log, and no secret in any
//! of them.

use std::collections::HashSet;

use serde_json::Value;

use crate::lab::{Answer, Gateway, Origin, Request, SOON, Seen, eventually, refusing, wait_for};

/// The access log line of the request with this id.
async fn access_line(gateway: &Gateway, id: &str) -> Value {
    wait_for("the access log line is written", SOON, || async {
        let mut events = gateway.log.events().into_iter();
        events.rfind(|e| e["request_id"] == id && !e["status"].is_null())
    })
    .await
}

#[tokio::test]
async fn metrics_can_be_scraped_and_count() {
    let origin = Origin::start(|_| Answer::cacheable("x")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    for _ in 0..3 {
        gateway.get("/a").await;
    }
    eventually("the requests are counted", SOON, || async {
        let text = gateway.admin(Request::get("/metrics")).await.text();
        text.lines().any(|l| l.starts_with("portway_") && l.ends_with(" 3"))
    })
    .await;
    let response = gateway.admin(Request::get("/metrics")).await;
    assert!(response.header("content-type").is_some_and(|t| t.starts_with("text/plain")));
    let mut typed = HashSet::new();
    for line in response.text().lines().filter(|l| !l.is_empty()) {
        if let Some(rest) = line.strip_prefix("# TYPE ") {
            typed.insert(rest.split(' ').next().unwrap().to_owned());
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let (series, value) = line.rsplit_once(' ').unwrap_or_else(|| panic!("no value: {line}"));
        assert!(value.parse::<f64>().is_ok(), "not a number: {line}");
        let name = series.split('{').next().unwrap();
        let base = ["_bucket", "_sum", "_count"].iter().find_map(|s| name.strip_suffix(s));
        let known = typed.contains(name) || base.is_some_and(|b| typed.contains(b));
        assert!(known, "no # TYPE before {line}");
        assert!(!series.contains('{') || series.ends_with('}'), "labels do not end: {line}");
    }
}

#[tokio::test]
async fn labels_are_bounded_whatever_clients_send() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let count = || async {
        let text = gateway.admin(Request::get("/metrics")).await.text();
        text.lines().filter(|l| !l.starts_with('#')).count()
    };
    gateway.send(&Request::new("BREW", "/first")).await;
    gateway.get("/first").await;
    let before = count().await;
    for n in 0..50 {
        let request = Request::new(&format!("M{n}"), format!("/path/{n}"));
        gateway.send(&request.header("Host", format!("host-{n}.example"))).await;
    }
    let after = count().await;
    assert!(after <= before + 20, "{before} series became {after}");
}

#[tokio::test]
async fn a_request_id_is_made_passed_on_and_logged() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut ids = HashSet::new();
    for _ in 0..20 {
        let response = gateway.get("/a").await;
        let id = response.header("x-request-id").expect("every answer has an id").to_owned();
        assert_eq!(origin.last().header("x-request-id"), Some(id.as_str()));
        ids.insert(id);
    }
    assert_eq!(ids.len(), 20);
    let own = gateway.send(&Request::get("/a").header("X-Request-Id", "my-id-42")).await;
    assert_eq!(own.header("x-request-id"), Some("my-id-42"));
    assert_eq!(access_line(&gateway, "my-id-42").await["status"], 200);
    for odd in ["a b", "<script>", &"x".repeat(500), ""] {
        let response = gateway.send(&Request::get("/a").header("X-Request-Id", odd)).await;
        let id = response.header_all("x-request-id");
        assert!(id.len() == 1 && id[0] != odd && !id[0].is_empty(), "{odd:?} gave {id:?}");
    }
}

#[tokio::test]
async fn an_error_names_the_request_that_the_log_knows() {
    let gateway = Gateway::before(&format!("http://{}", refusing())).start().await;
    let response = gateway.get("/a").await;
    let problem = response.assert_problem(502, "upstream_unreachable");
    let id = problem["request_id"].as_str().unwrap().to_owned();
    assert_eq!(response.header("x-request-id"), Some(id.as_str()));
    let line = access_line(&gateway, &id).await;
    assert_eq!(line["status"], 502, "{line}");
}

#[tokio::test]
async fn trace_context_goes_through() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let trace = "4bf92f3577b34da6a3ce929d0e0e4736";
    let parent = format!("00-{trace}-00f067aa0ba902b7-01");
    let request = Request::get("/a").header("traceparent", &parent).header("tracestate", "v=1");
    let response = gateway.send(&request).await;
    let seen = origin.last();
    let passed = seen.header("traceparent").expect("the trace goes on").to_owned();
    assert!(passed.starts_with(&format!("00-{trace}-")) && passed.ends_with("-01"), "{passed}");
    assert_ne!(passed, parent, "the gateway is a span of its own");
    assert_eq!(seen.header("tracestate"), Some("v=1"));
    let id = response.header("x-request-id").unwrap();
    assert_eq!(access_line(&gateway, id).await["trace_id"], trace);

    for bad in ["", "00-0-0-0", &format!("00-{}-00f067aa0ba902b7-01", "0".repeat(32)), "ff-x"] {
        gateway.send(&Request::get("/a").header("traceparent", bad)).await;
        let made = origin.last().header("traceparent").expect("a new trace begins").to_owned();
        assert!(made.len() == 55 && made != bad && !made.contains(trace), "{bad:?} gave {made}");
    }
}

#[tokio::test]
async fn each_request_is_one_line_in_the_access_log() {
    let origin = Origin::start(|_| Answer::cacheable("x")).await;
    let routes = format!(
        "upstreams: {{ app: {{ targets: ['{}'] }} }}\nroutes:\n  - {{ name: items, path: '/items/{{id}}', upstream: app, cache: {{}} }}\n",
        origin.url()
    );
    let gateway = Gateway::routing(routes).start().await;
    let ask = |path: &str, id: &str| Request::get(path).header("X-Request-Id", id);
    gateway.send(&ask("/items/1?page=2", "line-1")).await;
    gateway.send(&ask("/items/1?page=2", "line-2")).await;
    gateway.send(&ask("/nowhere", "line-3")).await;
    for (id, status, cache) in
        [("line-1", 200, "MISS"), ("line-2", 200, "HIT"), ("line-3", 404, "")]
    {
        let line = access_line(&gateway, id).await;
        assert_eq!(
            (&line["status"], &line["method"]),
            (&Value::from(status), &"GET".into()),
            "{line}"
        );
        let outcome = line["cache"].as_str().unwrap_or_default().to_ascii_uppercase();
        if !cache.is_empty() {
            assert_eq!((outcome.as_str(), &line["route"]), (cache, &"items".into()), "{line}");
        }
        let all = gateway.log.events();
        let lines = all.iter().filter(|e| e["request_id"] == id && !e["status"].is_null());
        assert_eq!(lines.count(), 1, "{id}");
    }
}

#[tokio::test]
async fn no_secret_reaches_the_log_the_metrics_or_an_error() {
    const CANARIES: &[&str] = &[
        "canary-authorization-1a",
        "canary-cookie-2b",
        "canary-query-3c",
        "canary-body-4d",
        "canary-set-cookie-5e",
        "canary-admin-token-6f-which-is-long-enough",
        "canary-api-key-7a",
        "canary-response-body-9c",
        "canary-wrong-token-0d",
    ];
    let origin = Origin::start(|seen: &Seen| match seen.path() {
        "/reset" => Answer::reset(),
        "/garbage" => Answer::raw("canary-response-body-9c\r\n\r\n"),
        _ => Answer::ok("canary-response-body-9c").header("Set-Cookie", "s=canary-set-cookie-5e"),
    })
    .await;
    let gateway = Gateway::before(&origin.url())
        .env("ADMIN_TOKEN", "canary-admin-token-6f-which-is-long-enough")
        .env("RUST_LOG", "trace")
        .start()
        .await;
    for path in ["/fine", "/reset", "/garbage"] {
        let request = Request::post(format!("{path}?token=canary-query-3c"), "canary-body-4d")
            .header("Authorization", "Bearer canary-authorization-1a")
            .header("Cookie", "session=canary-cookie-2b")
            .header("X-Api-Key", "canary-api-key-7a");
        let response = gateway.send(&request).await;
        if path != "/fine" {
            let text = response.text();
            assert!(!text.contains("canary"), "{path}: {text}");
        }
    }
    let wrong =
        Request::get("/admin/v1/routes").header("Authorization", "Bearer canary-wrong-token-0d");
    assert_eq!(wrong.send(gateway.admin).await.unwrap().status, 401);
    for path in ["/metrics", "/admin/v1/routes", "/admin/v1/upstreams", "/admin/v1/cache/stats"] {
        let text = gateway.admin(Request::get(path)).await.text();
        for canary in CANARIES {
            assert!(!text.contains(canary), "{canary} is in {path}");
        }
    }
    gateway.send(&Request::get("/last").header("X-Request-Id", "the-last-one")).await;
    access_line(&gateway, "the-last-one").await;
    let log = gateway.log.text();
    for canary in CANARIES {
        let line = log.lines().find(|l| l.contains(canary));
        assert!(line.is_none(), "{canary} was logged: {line:?}");
    }
}

#[tokio::test]
async fn cache_statistics_are_kept_per_route() {
    let origin = Origin::start(|_| Answer::cacheable("x")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    for _ in 0..5 {
        gateway.get("/a").await;
    }
    eventually("one miss and four hits are shown", SOON, || async {
        let stats = gateway.admin(Request::get("/admin/v1/cache/stats")).await.json().to_string();
        stats.contains("\"hits\":4") && stats.contains("\"misses\":1")
    })
    .await;
}
