//! Rate limits: how many pass, what clients are told, and whom a request counts for.

use std::{
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use sfv::{BareItem, List, ListEntry, Parser};

mod shared;

use crate::lab::{Answer, Connection, Gateway, Origin, Request, Response, SOON, Seen, within};

/// One route for every path with this `limit:`.
fn limited(origin: &Origin, limit: &str) -> String {
    format!(
        "upstreams:\n  app: {{ targets: ['{}'] }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app, limit: {limit} }}\n",
        origin.url()
    )
}

/// One route for every path, which the gateway answers itself, with this `limit:`.
fn answering(limit: &str) -> String {
    format!(
        "routes:\n  - {{ name: all, path: '/{{*rest}}', respond: {{ body: hello }}, limit: {limit} }}\n"
    )
}

async fn hello() -> Origin {
    Origin::start(|_| Answer::ok("hello")).await
}

/// The policies or limits of a structured field: each name with its parameters.
fn items(response: &Response, name: &str) -> Vec<(String, Vec<(String, i64)>)> {
    let [value] = response.header_all(name)[..] else { panic!("one {name}: {response:?}") };
    let list: List = Parser::new(value).parse().unwrap_or_else(|e| panic!("{value}: {e}"));
    let items = list.into_iter().map(|entry| {
        let ListEntry::Item(item) = entry else { panic!("{value} holds an inner list") };
        let BareItem::String(name) = item.bare_item else { panic!("{value} names no string") };
        let parameters = item.params.into_iter().map(|(key, value)| {
            let BareItem::Integer(number) = value else { panic!("{key} is no integer") };
            (key.as_str().to_owned(), i64::from(number))
        });
        (name.as_str().to_owned(), parameters.collect())
    });
    items.collect()
}

fn parameter(items: &[(String, Vec<(String, i64)>)], name: &str, parameter: &str) -> i64 {
    let item = items.iter().find(|(found, _)| found == name).expect("the policy is there");
    item.1.iter().find(|(found, _)| found == parameter).expect("the parameter is there").1
}

/// The value of a metric with these labels, as written.
async fn metric(gateway: &Gateway, series: &str) -> Option<f64> {
    let page = gateway.admin(Request::get("/metrics")).await.text();
    let line = page
        .lines()
        .find(|line| line.strip_prefix(series).is_some_and(|rest| rest.starts_with(' ')))?;
    line.rsplit(' ').next()?.parse().ok()
}

#[tokio::test]
async fn who_asks_too_often_is_told_when_to_come_back() {
    let origin = hello().await;
    let limit = "{ requests: 3, window: 1m }";
    let gateway = Gateway::routing(limited(&origin, limit)).start().await;
    for left in [2, 1, 0] {
        let passed = gateway.get("/").await;
        assert_eq!((passed.status, passed.text().as_str()), (200, "hello"));
        let policy = items(&passed, "ratelimit-policy");
        assert_eq!(policy.len(), 1);
        assert_eq!((parameter(&policy, "ip", "q"), parameter(&policy, "ip", "w")), (3, 60));
        let limit = items(&passed, "ratelimit");
        assert_eq!(parameter(&limit, "ip", "r"), left);
        assert!((50..=61).contains(&parameter(&limit, "ip", "t")), "{limit:?}");
        assert_eq!(passed.header("retry-after"), None);
    }
    for _ in 0..3 {
        let refused = gateway.get("/").await;
        refused.assert_problem(429, "rate_limited");
        let limit = items(&refused, "ratelimit");
        assert_eq!(parameter(&limit, "ip", "r"), 0);
        let after: i64 = refused.header("retry-after").and_then(|v| v.parse().ok()).expect("it");
        assert_eq!(after, parameter(&limit, "ip", "t"));
        assert!((50..=61).contains(&after), "{after}");
        assert_eq!(items(&refused, "ratelimit-policy").len(), 1);
    }
    assert_eq!(origin.total(), 3, "what is refused does not reach the origin");

    let allowed = r#"portway_limit_requests_total{route="all",result="allowed"}"#;
    assert_eq!(metric(&gateway, allowed).await, Some(3.0));
    let refused = r#"portway_limit_requests_total{route="all",result="refused"}"#;
    assert_eq!(metric(&gateway, refused).await, Some(3.0));
    assert_eq!(metric(&gateway, "portway_limit_memory_keys").await, Some(1.0));
    let logged = || {
        let events = gateway.log.events();
        events.into_iter().filter(|event| event["code"] == "rate_limited").count()
    };
    crate::lab::eventually("the access log names the refusals", SOON, || {
        let all = logged() == 3;
        async move { all }
    })
    .await;
}

#[tokio::test]
async fn who_comes_back_when_told_passes() {
    let origin = hello().await;
    let gateway = Gateway::routing(limited(&origin, "{ requests: 2, window: 1s }")).start().await;
    let first = Instant::now();
    gateway.get("/").await;
    gateway.get("/").await;
    // Refused requests do not count: however many there are, the next passes when the first left.
    let mut refused = gateway.get("/").await;
    while refused.status == 429 {
        assert!(first.elapsed() < Duration::from_secs(5), "it never passes");
        refused = gateway.get("/").await;
    }
    let waited = first.elapsed();
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    assert!(waited < Duration::from_millis(1500), "{waited:?}");
}

#[tokio::test]
async fn a_hit_counts_and_can_be_refused() {
    let origin = Origin::start(|_| Answer::cacheable("x").header("RateLimit", "\"u\";r=1")).await;
    let gateway = Gateway::routing(limited(&origin, "{ requests: 3, window: 1m }")).start().await;
    assert_eq!(gateway.get("/").await.x_cache(), "MISS");
    let hit = gateway.get("/").await;
    assert_eq!(hit.x_cache(), "HIT");
    assert_eq!(parameter(&items(&hit, "ratelimit"), "ip", "r"), 1, "ours, not the stored one");
    assert_eq!(gateway.get("/").await.x_cache(), "HIT");
    gateway.get("/").await.assert_problem(429, "rate_limited");
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn what_an_upstream_tells_of_its_own_limits_passes_where_the_route_has_none() {
    let origin = Origin::start(|_| Answer::ok("x").header("RateLimit", "\"u\";r=1")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let response = gateway.get("/").await;
    assert_eq!(response.header("ratelimit"), Some("\"u\";r=1"));
    assert_eq!(response.header("ratelimit-policy"), None);
}

#[tokio::test]
async fn all_limits_must_let_a_request_through_and_one_that_is_refused_counts_in_none() {
    let origin = hello().await;
    let limits = "[{ requests: 2, window: 1s }, { requests: 3, window: 1h }, { requests: 100, window: 1h, by: route }]";
    let gateway = Gateway::routing(limited(&origin, limits)).start().await;
    let first = gateway.get("/").await;
    let names = |response: &Response, field| -> Vec<String> {
        items(response, field).into_iter().map(|(name, _)| name).collect()
    };
    assert_eq!(names(&first, "ratelimit-policy"), ["ip-1s", "ip-3600s", "route"]);
    assert_eq!(names(&first, "ratelimit"), ["ip-1s", "ip-3600s", "route"]);
    gateway.get("/").await;
    let refused = gateway.get("/").await;
    refused.assert_problem(429, "rate_limited");
    let limit = items(&refused, "ratelimit");
    assert_eq!(parameter(&limit, "ip-1s", "r"), 0);
    assert_eq!(parameter(&limit, "ip-3600s", "r"), 1);
    assert_eq!(parameter(&limit, "route", "r"), 98);
    assert!(refused.header("retry-after").is_some_and(|after| after == "1" || after == "2"));

    let third = crate::lab::wait_for("the second is over", SOON, || async {
        let response = gateway.get("/").await;
        (response.status == 200).then_some(response)
    })
    .await;
    let limit = items(&third, "ratelimit");
    assert_eq!((parameter(&limit, "ip-3600s", "r"), parameter(&limit, "route", "r")), (0, 97));
    let refused = gateway.get("/").await;
    refused.assert_problem(429, "rate_limited");
    let after: u64 = refused.header("retry-after").and_then(|v| v.parse().ok()).expect("it");
    assert!(after > 3500, "by the limit that refuses longest: {after}");
}

#[tokio::test]
async fn each_address_has_a_limit_of_its_own_as_far_as_proxies_are_trusted() {
    let origin = hello().await;
    let routes = limited(&origin, "{ requests: 1, window: 1m }");
    let from = |address: &str| Request::get("/").header("X-Forwarded-For", address);
    let trusting = Gateway::routing(&*routes).env("TRUSTED_PROXIES", "127.0.0.0/8").start().await;
    assert_eq!(trusting.send(&from("192.0.2.1")).await.status, 200);
    assert_eq!(trusting.send(&from("192.0.2.1")).await.status, 429);
    assert_eq!(trusting.send(&from("192.0.2.2")).await.status, 200);
    assert_eq!(trusting.send(&from("2001:db8:0:1::1")).await.status, 200);
    assert_eq!(trusting.send(&from("2001:db8:0:1::2")).await.status, 429, "the same /64");
    assert_eq!(trusting.send(&from("2001:db8:0:2::1")).await.status, 200);
    crate::lab::eventually("the log names the client that was limited", SOON, || {
        let mut events = trusting.log.events().into_iter();
        let named = events.any(|event| event["client_ip"] == "192.0.2.1" && event["status"] == 429);
        async move { named }
    })
    .await;

    let doubting = Gateway::routing(&*routes).start().await;
    assert_eq!(doubting.send(&from("192.0.2.1")).await.status, 200);
    assert_eq!(doubting.send(&from("192.0.2.2")).await.status, 429, "anybody can write that");
}

#[tokio::test]
async fn a_refused_body_is_never_taken_for_a_request() {
    let origin = hello().await;
    let gateway = Gateway::routing(limited(&origin, "{ requests: 1, window: 1m }")).start().await;
    gateway.get("/").await;
    let smuggled = "GET /smuggled HTTP/1.1\r\nHost: x\r\n\r\n".repeat(2000);
    let mut connection = gateway.connect().await;
    let refused = connection.ask(&Request::post("/", smuggled)).await.expect("an answer");
    assert_eq!(refused.status, 429);
    // The rest was drained or the connection is closed; in both cases nothing of it is answered.
    if !connection.closing()
        && let Ok(next) = connection.ask(&Request::get("/next")).await
    {
        assert_eq!(next.status, 429);
    }
    let _ = connection.finish().await;
    connection.rest().await;
    assert!(connection.unread().is_empty(), "{:?}", connection.unread());
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn warm_up_counts_for_nobody() {
    let origin = Origin::start(|seen: &Seen| Answer::cacheable(seen.path())).await;
    let routes = limited(
        &origin,
        "{ requests: 2, window: 1m, by: route }, cache: { warm: [deploy], warm_paths: [/a, /b, /c] }",
    );
    let gateway = Gateway::routing(routes).start().await;
    crate::lab::eventually("it is warm", SOON, || async { origin.total() == 3 }).await;
    assert_eq!(gateway.get("/d").await.status, 200);
    assert_eq!(gateway.get("/d").await.status, 200);
    assert_eq!(gateway.get("/d").await.status, 429);
}

#[tokio::test]
async fn a_reload_keeps_what_was_counted() {
    let origin = hello().await;
    let gateway = Gateway::routing(limited(&origin, "{ requests: 2, window: 1m }")).start().await;
    gateway.get("/").await;
    gateway.get("/").await;
    assert_eq!(gateway.get("/").await.status, 429);
    gateway.replace_routes(&limited(&origin, "{ requests: 3, window: 1m }"));
    let raised = crate::lab::wait_for("the higher limit holds", SOON, || async {
        let response = gateway.get("/").await;
        (response.status == 200).then_some(response)
    })
    .await;
    assert_eq!(parameter(&items(&raised, "ratelimit"), "ip", "r"), 0, "two were counted before");
}

/// When each request that passed was sent and when its answer had come.
type Passed = Vec<(Instant, Instant)>;

/// Lets many connections from one address ask gateways over and over until `end`, and returns what
/// passed. Any answer but 200 and 429 fails the test.
async fn hammer(gateways: Vec<SocketAddr>, from: &str, count: usize, end: Instant) -> Passed {
    let passed = Arc::new(Mutex::new(Passed::new()));
    let mut tasks = tokio::task::JoinSet::new();
    for client in 0..count {
        let (addr, passed) = (gateways[client % gateways.len()], Arc::clone(&passed));
        let request = Request::get("/").header("X-Forwarded-For", from);
        tasks.spawn(async move {
            let mut connection = Connection::open(addr).await.expect("the gateway accepts");
            while Instant::now() < end {
                let sent = Instant::now();
                let response = connection.ask(&request).await.expect("an answer");
                match response.status {
                    200 => passed.lock().expect("no panic").push((sent, Instant::now())),
                    429 => tokio::time::sleep(Duration::from_millis(10)).await,
                    other => panic!("{other}: {:?}", response.text()),
                }
            }
        });
    }
    while let Some(client) = tasks.join_next().await {
        client.expect("no client failed");
    }
    let mut passed = Arc::try_unwrap(passed).expect("all clients ended").into_inner().expect("it");
    passed.sort();
    passed
}

/// The most requests that were certainly decided within one span of this length: sent after it began,
/// and answered before it ended.
fn most_within(passed: &Passed, span: Duration) -> usize {
    let within = |begin: Instant| {
        passed.iter().filter(|(sent, came)| *sent >= begin && *came < begin + span).count()
    };
    passed.iter().map(|(sent, _)| within(*sent)).max().unwrap_or(0)
}

/// Asserts that no window held more than `limit`, and that hardly less passed in `span`, while clients
/// asked for more all the time.
fn assert_limited(passed: &Passed, limit: usize, window: Duration, span: Duration) {
    let most = most_within(passed, window);
    assert!(most <= limit, "{most} passed in one window");
    // A window's worth is there at once, and again each time one is over.
    let windows = 1.0 + (span.as_secs_f64() / window.as_secs_f64() / 1.01).floor();
    let ideal = windows * limit as f64;
    assert!(passed.len() as f64 >= 0.97 * ideal, "{} of {ideal} passed", passed.len());
}

#[tokio::test]
async fn many_clients_get_exactly_what_a_window_allows() {
    let routes = answering("{ requests: 100, window: 1s, by: route }");
    let gateway = Gateway::routing(routes).start().await;
    let span = Duration::from_millis(4500);
    let work = hammer(vec![gateway.public], "192.0.2.1", 20, Instant::now() + span);
    let passed = within(SOON + span, "the clients", work).await;
    assert_limited(&passed, 100, Duration::from_secs(1), span);
}
