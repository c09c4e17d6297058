//! Invalidation through the admin API: by each selector, soft and hard, and never undone by a fill
//! that was already under way.

use std::time::Duration;

use serde_json::json;

use crate::{
    cache::cached,
    lab::{Answer, Gate, Gateway, Origin, Request, SOON, Seen, eventually, load, within},
};

/// An origin whose answers are cacheable and count up, tagged by their first path segment.
async fn counting() -> Origin {
    Origin::start(|seen: &Seen| {
        let segment = seen.path().split('/').nth(1).unwrap_or_default().to_owned();
        Answer::cacheable(seen.nth.to_string()).header("Cache-Tag", format!("all-of-it, {segment}"))
    })
    .await
}

async fn warm(gateway: &Gateway, paths: &[&str]) {
    for path in paths {
        gateway.get(path).await;
        assert_eq!(gateway.get(path).await.x_cache(), "HIT", "{path} is stored");
    }
}

/// Which of `paths` are no longer served from the cache. Asking stores them again.
async fn gone<'p>(gateway: &Gateway, paths: &[&'p str]) -> Vec<&'p str> {
    let mut gone = Vec::new();
    for path in paths {
        if gateway.get(path).await.x_cache() == "MISS" {
            gone.push(*path);
        }
    }
    gone
}

const PATHS: &[&str] = &[
    "/products/1",
    "/products/2",
    "/products/2?full=1",
    "/products/2/reviews",
    "/products-old/1",
    "/users/1",
];

fn two_routes(origin: &Origin) -> String {
    format!(
        "
upstreams:
  app: {{ targets: ['{}'] }}
routes:
  - name: product
    path: /products/{{id}}
    upstream: app
    cache: {{ ttl: 5m, tags: [catalog, 'product:{{id}}'] }}
  - name: rest
    path: '/{{*rest}}'
    upstream: app
    cache: {{ ttl: 5m }}
",
        origin.url()
    )
}

#[tokio::test]
async fn each_selector_kills_what_it_names_and_nothing_else() {
    let origin = counting().await;
    let gateway = Gateway::routing(two_routes(&origin)).start().await;
    let url = |path: &str| format!("http://{}{path}", gateway.public);
    let cases = [
        (json!({ "key": url("/products/2") }), vec!["/products/2"]),
        (json!({ "key": url("/products/2?full=1") }), vec!["/products/2?full=1"]),
        (json!({ "route": "product" }), vec!["/products/1", "/products/2", "/products/2?full=1"]),
        (
            json!({ "prefix": "/products/" }),
            vec!["/products/1", "/products/2", "/products/2?full=1", "/products/2/reviews"],
        ),
        (json!({ "pattern": "/products/*/reviews" }), vec!["/products/2/reviews"]),
        (json!({ "tag": "catalog" }), vec!["/products/1", "/products/2", "/products/2?full=1"]),
        (json!({ "tag": "product:2" }), vec!["/products/2", "/products/2?full=1"]),
        (json!({ "tag": "users" }), vec!["/users/1"]),
        (json!({ "all": true }), PATHS.to_vec()),
    ];
    for (body, expected) in cases {
        warm(&gateway, PATHS).await;
        let answer = gateway.purge(body.clone()).await;
        assert!(!answer["purged"].is_null(), "{answer}");
        assert_eq!(gone(&gateway, PATHS).await, expected, "purge {body}");
    }
}

#[tokio::test]
async fn a_purge_by_key_takes_every_variant() {
    let origin = Origin::start(|seen: &Seen| {
        let language = seen.header("accept-language").unwrap_or_default();
        Answer::cacheable(format!("{language} {}", seen.nth)).header("Vary", "Accept-Language")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let ask = |language: &str| Request::get("/page").header("Accept-Language", language);
    for language in ["de", "en"] {
        gateway.send(&ask(language)).await;
    }
    gateway.purge(json!({ "key": format!("http://{}/page", gateway.public) })).await;
    for language in ["de", "en"] {
        assert_eq!(gateway.send(&ask(language)).await.x_cache(), "MISS", "{language}");
    }
}

#[tokio::test]
async fn a_soft_purge_serves_stale_while_it_refreshes() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |seen: &Seen| {
        let answer = Answer::cacheable(seen.nth.to_string());
        if seen.nth == 1 { answer } else { answer.gated(&held) }
    })
    .await;
    let gateway = Gateway::routing(cached(&origin, "tags: [t]")).start().await;
    gateway.get("/a").await;
    gateway.purge(json!({ "tag": "t", "soft": true })).await;
    for _ in 0..5 {
        let stale = gateway.get("/a").await;
        assert_eq!((stale.x_cache().as_str(), stale.text().as_str()), ("STALE", "1"));
    }
    gate.open();
    eventually("the refreshed version is served", SOON, || async {
        gateway.get("/a").await.text() == "2"
    })
    .await;
    assert_eq!(origin.total(), 2);
}

#[tokio::test]
async fn a_fill_that_began_before_a_purge_never_brings_the_old_value_back() {
    let url = |gateway: &Gateway| format!("http://{}/a", gateway.public);
    for selector in ["key", "tag", "route", "prefix", "pattern", "all"] {
        let gate = Gate::closed();
        let held = gate.clone();
        let origin = Origin::start(move |seen: &Seen| {
            if seen.nth == 1 {
                Answer::cacheable("old").gated(&held)
            } else {
                Answer::cacheable("new")
            }
        })
        .await;
        let gateway = Gateway::routing(cached(&origin, "tags: [t]")).start().await;
        let mut client = gateway.connect().await;
        let request = Request::get("/a");
        client.write(&request.bytes(&gateway.public.to_string())).await.unwrap();
        eventually("the fill is upstream", SOON, || async { origin.total() == 1 }).await;
        let body = match selector {
            "key" => json!({ "key": url(&gateway) }),
            "tag" => json!({ "tag": "t" }),
            "route" => json!({ "route": "all" }),
            "prefix" => json!({ "prefix": "/" }),
            "pattern" => json!({ "pattern": "/*" }),
            _ => json!({ "all": true }),
        };
        gateway.purge(body).await;
        gate.open();
        // Whoever asked before the purge may get what was true then.
        client.response("GET").await.unwrap();
        for _ in 0..3 {
            assert_eq!(gateway.get("/a").await.text(), "new", "purged by {selector}");
        }
    }
}

#[tokio::test]
async fn a_request_after_a_purge_never_gets_what_was_fetched_before_it() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |seen: &Seen| {
        if seen.nth == 1 { Answer::cacheable("old").gated(&held) } else { Answer::cacheable("new") }
    })
    .await;
    let gateway = Gateway::routing(cached(&origin, "tags: [t]")).start().await;
    let mut early = gateway.connect().await;
    early.write(&Request::get("/a").bytes(&gateway.public.to_string())).await.unwrap();
    eventually("the fill is upstream", SOON, || async { origin.total() == 1 }).await;
    gateway.purge(json!({ "tag": "t" })).await;
    let mut late = gateway.connect().await;
    late.write(&Request::get("/a").bytes(&gateway.public.to_string())).await.unwrap();
    // Time to join the fill that is under way, where a gateway would let it.
    tokio::time::sleep(Duration::from_millis(100)).await;
    gate.open();
    let late = within(SOON, "the later request", late.response("GET")).await.unwrap();
    assert_eq!(late.text(), "new");
}

#[tokio::test]
async fn purges_under_load_never_leave_an_older_version() {
    use std::sync::{
        Arc,
        atomic::{AtomicU64, Ordering::SeqCst},
    };
    let version = Arc::new(AtomicU64::new(0));
    let current = Arc::clone(&version);
    let origin = Origin::start(move |_| Answer::cacheable(current.load(SeqCst).to_string())).await;
    let gateway = Gateway::routing(cached(&origin, "tags: [t]")).start().await;
    let readers = tokio::spawn(load(
        gateway.public,
        8,
        600,
        |_, nth| Request::get(format!("/{}", nth % 3)),
        |_, _, response| assert_eq!(response.status, 200),
    ));
    for next in 1..=40 {
        version.store(next, SeqCst);
        gateway.purge(json!({ "tag": "t" })).await;
        for path in ["/0", "/1", "/2"] {
            let seen: u64 = gateway.get(path).await.text().parse().unwrap();
            assert!(seen >= next, "version {seen} after the purge for {next}");
        }
    }
    readers.await.unwrap();
}

#[tokio::test]
async fn a_write_through_the_gateway_purges_what_its_route_names() {
    let origin = Origin::start(|seen: &Seen| match seen.method.as_str() {
        "GET" => Answer::cacheable(seen.nth.to_string()),
        _ if seen.header("x-fail").is_some() => Answer::status(500).body("no"),
        _ => Answer::status(204),
    })
    .await;
    let routes = format!(
        "
upstreams:
  app: {{ targets: ['{}'] }}
routes:
  - name: list
    path: /products
    methods: [GET]
    upstream: app
    cache: {{ tags: [products] }}
  - name: product
    path: /products/{{id}}
    methods: [GET]
    upstream: app
    cache: {{ tags: ['product:{{id}}'] }}
  - name: rename
    path: /products/{{id}}
    methods: [PUT]
    upstream: app
    invalidates: [products, 'product:{{id}}']
",
        origin.url()
    );
    let gateway = Gateway::routing(routes).start().await;
    let paths = ["/products", "/products/1", "/products/2"];
    warm(&gateway, &paths).await;
    let failed = Request::new("PUT", "/products/1").header("X-Fail", "1").body("{}");
    assert_eq!(gateway.send(&failed).await.status, 500);
    assert!(gone(&gateway, &paths).await.is_empty(), "a failed write changes nothing");
    gateway.send(&Request::new("PUT", "/products/1").body("{}")).await;
    assert_eq!(gone(&gateway, &paths).await, ["/products", "/products/1"]);
}

#[tokio::test]
async fn the_admin_api_wants_its_token_and_a_request_it_can_read() {
    let origin = counting().await;
    let token = "t0ken-of-at-least-thirty-two-characters";
    let gateway = Gateway::before(&origin.url()).env("ADMIN_TOKEN", token).start().await;
    let purge = |body: &str| {
        Request::post("/admin/v1/cache/purge", body).header("Content-Type", "application/json")
    };
    for request in [
        purge("{\"all\":true}"),
        purge("{\"all\":true}").header("Authorization", format!("Bearer {token}x")),
        Request::get("/admin/v1/routes"),
    ] {
        let refused = request.send(gateway.admin).await.unwrap();
        refused.assert_problem(401, "unauthorized");
    }
    for body in
        ["", "{}", "[]", "{\"all\":false}", "{\"tag\":\"a\",\"route\":\"b\"}", "{\"tga\":\"a\"}"]
    {
        gateway.admin(purge(body)).await.assert_problem(400, "bad_admin_request");
    }
    for path in ["/admin/v1/cache/stats", "/admin/v1/routes", "/admin/v1/upstreams"] {
        let answer = gateway.admin(Request::get(path)).await;
        assert_eq!(answer.status, 200, "{path}");
        answer.json();
    }
    gateway.admin(Request::get("/admin/v1/nothing")).await.assert_problem(404, "not_found");
    // The public listener knows nothing of it.
    let signed = purge("{\"all\":true}").header("Authorization", format!("Bearer {token}"));
    let outside = gateway.send(&signed).await;
    assert_eq!(outside.text(), "1", "it went to the origin like any path");
}
