//! The response cache: what is fetched once, what is never shared, and that nobody gets what is
//! another's.

use std::{
    collections::HashMap,
    io::Read as _,
    sync::{Arc, Mutex},
    time::Duration,
};

use crate::lab::{
    Answer, Gate, Gateway, Origin, Request, Response, SOON, Seen, eventually, load, random::Random,
    within,
};

/// One route for every path with this `cache:` section.
pub(crate) fn cached(origin: &Origin, cache: &str) -> String {
    format!(
        "upstreams:\n  app: {{ targets: ['{}'] }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app, cache: {{ {cache} }} }}\n",
        origin.url()
    )
}

#[tokio::test]
async fn a_fresh_response_is_fetched_once() {
    let origin = Origin::start(|_| {
        Answer::cacheable("42").header("Content-Type", "text/plain").header("X-Two", "2")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let first = gateway.get("/price?c=eur").await;
    assert_eq!((first.x_cache().as_str(), first.header("age")), ("MISS", None));
    let status = first.header("cache-status").expect("every response says what happened");
    assert!(status.contains("fwd=") && !status.contains("hit"), "{status}");

    let second = gateway.get("/price?c=eur").await;
    assert_eq!(second.x_cache(), "HIT");
    assert!(second.age().is_some_and(|age| age <= 5), "{:?}", second.headers);
    let status = second.header("cache-status").unwrap_or_default();
    assert!(status.contains("; hit"), "{status}");
    assert_eq!(second.text(), "42");
    assert_eq!(second.header("content-type"), Some("text/plain"));
    assert_eq!(second.header("x-two"), Some("2"));
    assert_eq!(second.header("content-length"), Some("2"));
    assert_eq!(second.header_all("date").len(), 1);
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn without_freshness_nothing_is_kept_unless_a_route_says_so() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let bare = Gateway::before(&origin.url()).start().await;
    bare.get("/a").await;
    assert_ne!(bare.get("/a").await.x_cache(), "HIT");
    assert_eq!(origin.count("/a"), 2);

    let ruled = Gateway::routing(cached(&origin, "ttl: 5m")).start().await;
    ruled.get("/b").await;
    assert_eq!(ruled.get("/b").await.x_cache(), "HIT");
    let default = Gateway::routing(cached(&origin, "")).start().await;
    default.get("/c").await;
    assert_eq!(default.get("/c").await.x_cache(), "HIT", "REDIS_CACHE_TTL_SECONDS holds");
}

#[tokio::test]
async fn a_hundred_clients_on_a_cold_key_are_one_origin_request() {
    let origin =
        Origin::start(|_| Answer::cacheable("one").delay(Duration::from_millis(300))).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let whole = load(
        gateway.public,
        100,
        1,
        |_, _| Request::get("/cold"),
        |_, _, response| assert_eq!((response.status, response.text().as_str()), (200, "one")),
    );
    within(SOON, "a hundred answers", whole).await;
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn waiters_on_a_private_answer_each_get_their_own() {
    let origin = Origin::start(|seen| {
        let who = seen.header("x-user").unwrap_or("nobody").to_owned();
        Answer::ok(who)
            .header("Cache-Control", "private, max-age=60")
            .delay(Duration::from_millis(200))
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    load(
        gateway.public,
        50,
        2,
        |client, _| Request::get("/me").header("X-User", format!("user-{client}")),
        |client, _, response| {
            assert_eq!(response.text(), format!("user-{client}"));
            assert_ne!(response.x_cache(), "HIT");
        },
    )
    .await;
    assert_eq!(origin.total(), 100);
}

#[tokio::test]
async fn a_leader_that_hangs_up_does_not_take_the_waiters_along() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |_| Answer::cacheable("late").gated(&held)).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut leader = gateway.connect().await;
    leader.write(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("the leader's request is upstream", SOON, || async { origin.total() == 1 }).await;
    let mut waiters = Vec::new();
    for _ in 0..10 {
        let mut waiter = gateway.connect().await;
        waiter.write(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
        waiters.push(waiter);
    }
    drop(leader);
    tokio::time::sleep(Duration::from_millis(50)).await;
    gate.open();
    for mut waiter in waiters {
        let response = within(SOON, "a waiter", waiter.response("GET")).await.unwrap();
        assert_eq!(response.text(), "late");
    }
    assert!(origin.total() <= 2, "{} requests for one key", origin.total());
}

#[tokio::test]
async fn a_waiter_that_hangs_up_disturbs_nobody() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |_| Answer::cacheable("x").gated(&held)).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut leader = gateway.connect().await;
    leader.write(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    eventually("the leader's request is upstream", SOON, || async { origin.total() == 1 }).await;
    for _ in 0..10 {
        let mut waiter = gateway.connect().await;
        waiter.write(b"GET /slow HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    }
    gate.open();
    assert_eq!(leader.response("GET").await.unwrap().text(), "x");
    let again = gateway.send(&Request::get("/slow").header("Host", "h")).await;
    assert_eq!(again.x_cache(), "HIT");
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn what_may_not_be_shared_is_not_even_where_a_route_sets_a_ttl() {
    let origin = Origin::start(|seen: &Seen| {
        let answer = Answer::ok(seen.nth.to_string());
        match seen.path() {
            "/private" => answer.header("Cache-Control", "private"),
            "/no-store" => answer.header("Cache-Control", "no-store"),
            "/cookie" => answer.header("Set-Cookie", "session=1"),
            _ => answer,
        }
    })
    .await;
    let obeying = Gateway::routing(cached(&origin, "ttl: 5m")).start().await;
    for path in ["/private", "/no-store", "/cookie"] {
        assert_eq!(obeying.get(path).await.text(), "1", "{path}");
        assert_eq!(obeying.get(path).await.text(), "2", "{path} was shared");
    }
    let signed = || Request::get("/signed").header("Authorization", "Bearer a");
    assert_eq!(obeying.send(&signed()).await.text(), "1");
    assert_eq!(obeying.send(&signed()).await.text(), "2");
    assert_eq!(obeying.get("/signed").await.text(), "3", "without credentials");

    let overriding = Gateway::routing(cached(&origin, "ttl: 5m, override: true")).start().await;
    let first = overriding.get("/no-store").await.text();
    let second = overriding.get("/no-store").await;
    assert_eq!((second.x_cache().as_str(), second.text()), ("HIT", first));
}

#[tokio::test]
async fn an_answer_to_credentials_is_shared_only_where_the_origin_allows_it() {
    let origin = Origin::start(|seen: &Seen| {
        let control = match seen.path() {
            "/plain" => "max-age=60",
            "/public" => "public, max-age=60",
            _ => "s-maxage=60",
        };
        Answer::ok(seen.nth.to_string()).header("Cache-Control", control)
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    for (path, expected) in [("/plain", "2"), ("/public", "1"), ("/s-maxage", "1")] {
        let one = Request::get(path).header("Authorization", "Bearer one");
        let two = Request::get(path).header("Authorization", "Bearer two");
        gateway.send(&one).await;
        assert_eq!(gateway.send(&two).await.text(), expected, "{path}");
    }
}

#[tokio::test]
async fn a_conditional_request_is_answered_from_the_entry() {
    let origin = Origin::start(|_| {
        Answer::cacheable("body")
            .header("ETag", "\"v1\"")
            .header("Last-Modified", "Sun, 22 Nov 2026 10:00:00 GMT")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/doc").await;
    for (name, value, status) in [
        ("If-None-Match", "\"v1\"", 304),
        ("If-None-Match", "\"v0\", W/\"v1\"", 304),
        ("If-None-Match", "\"v2\"", 200),
        ("If-Modified-Since", "Sun, 22 Nov 2026 10:00:00 GMT", 304),
        ("If-Modified-Since", "Sun, 22 Nov 2026 09:00:00 GMT", 200),
    ] {
        let response = gateway.send(&Request::get("/doc").header(name, value)).await;
        assert_eq!(response.status, status, "{name}: {value}");
        assert_eq!(response.header("etag"), Some("\"v1\""));
        assert_eq!(response.body.is_empty(), status == 304);
    }
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn head_is_answered_from_a_stored_get() {
    let origin = Origin::start(|_| Answer::cacheable("twelve bytes")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/doc").await;
    let mut client = gateway.connect().await;
    let head = client.ask(&Request::new("HEAD", "/doc")).await.unwrap();
    assert_eq!((head.status, head.x_cache().as_str()), (200, "HIT"));
    assert_eq!(head.header("content-length"), Some("12"));
    assert_eq!(client.ask(&Request::get("/doc")).await.unwrap().text(), "twelve bytes");
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn ranges_are_cut_from_a_stored_response() {
    let origin = Origin::start(|_| Answer::cacheable("0123456789").header("ETag", "\"v1\"")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.get("/doc").await;
    let range = |r: &str| Request::get("/doc").header("Range", format!("bytes={r}"));
    for (asked, body, extent) in
        [("2-4", "234", "2-4"), ("7-", "789", "7-9"), ("-2", "89", "8-9"), ("8-99", "89", "8-9")]
    {
        let part = gateway.send(&range(asked)).await;
        assert_eq!((part.status, part.text().as_str()), (206, body), "{asked}");
        let expected = format!("bytes {extent}/10");
        assert_eq!(part.header("content-range"), Some(expected.as_str()), "{asked}");
        assert_eq!(part.header("etag"), Some("\"v1\""));
    }
    let outside = gateway.send(&range("10-")).await;
    assert_eq!((outside.status, outside.header("content-range")), (416, Some("bytes */10")));
    let other = gateway.send(&range("2-4").header("If-Range", "\"v2\"")).await;
    assert_eq!((other.status, other.text().as_str()), (200, "0123456789"));
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn a_part_is_never_stored_as_the_whole() {
    let origin = Origin::start(|seen: &Seen| match seen.header("range") {
        Some(_) => Answer::status(206)
            .header("Content-Range", "bytes 0-3/10")
            .header("Cache-Control", "max-age=60")
            .body("0123"),
        None => Answer::cacheable("0123456789"),
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let part = gateway.send(&Request::get("/doc").header("Range", "bytes=0-3")).await;
    assert_eq!((part.status, part.text().as_str()), (206, "0123"));
    assert_eq!(gateway.get("/doc").await.text(), "0123456789");
}

#[tokio::test]
async fn vary_keeps_the_variants_apart() {
    let origin = Origin::start(|seen: &Seen| {
        let language = seen.header("accept-language").unwrap_or("none").to_owned();
        let vary = if seen.path() == "/star" { "*" } else { "Accept-Language" };
        Answer::cacheable(language).header("Vary", vary)
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let ask = |path: &str, language: &str| Request::get(path).header("Accept-Language", language);
    for language in ["de", "en", "de", "en"] {
        assert_eq!(gateway.send(&ask("/page", language)).await.text(), language);
    }
    assert_eq!(gateway.get("/page").await.text(), "none");
    assert_eq!(origin.total(), 3);
    gateway.send(&ask("/star", "de")).await;
    assert_eq!(gateway.send(&ask("/star", "de")).await.x_cache(), "MISS");
}

#[tokio::test]
async fn a_route_may_vary_on_more_than_the_origin_says() {
    let origin =
        Origin::start(|seen: &Seen| Answer::ok(seen.header("x-tier").unwrap_or("none").to_owned()))
            .await;
    let gateway = Gateway::routing(cached(&origin, "ttl: 5m, vary: [x-tier]")).start().await;
    for tier in ["gold", "iron", "gold", "iron"] {
        let request = Request::get("/page").header("X-Tier", tier);
        assert_eq!(gateway.send(&request).await.text(), tier);
    }
    assert_eq!(origin.total(), 2);
}

#[tokio::test]
async fn an_unsafe_method_that_succeeds_drops_the_entry() {
    let origin = Origin::start(|seen: &Seen| match (seen.method.as_str(), seen.header("x-fail")) {
        ("GET", _) => Answer::cacheable(seen.nth.to_string()),
        (_, None) => Answer::status(204),
        (_, Some(_)) => Answer::status(500).body("no"),
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"] {
        let path = format!("/{method}");
        gateway.get(&path).await;
        let failed = Request::new(method, &path).header("X-Fail", "1").body("");
        assert_eq!(gateway.send(&failed).await.status, 500);
        assert_eq!(gateway.get(&path).await.x_cache(), "HIT", "a failed {method} changes nothing");
        assert_eq!(gateway.send(&Request::new(method, &path).body("")).await.status, 204);
        assert_eq!(gateway.get(&path).await.x_cache(), "MISS", "after {method}");
    }
}

#[tokio::test]
async fn only_the_listed_query_parameters_count_and_go_upstream() {
    let origin = Origin::start(|seen: &Seen| Answer::ok(seen.target.clone())).await;
    let gateway = Gateway::routing(cached(&origin, "ttl: 5m, query: [page, sort]")).start().await;
    let first = gateway.get("/x?utm_source=a&page=1&sort=up").await.text();
    assert!(!first.contains("utm"), "what does not count must not decide: {first}");
    assert!(first.contains("page=1") && first.contains("sort=up"), "{first}");
    for same in ["/x?page=1&sort=up", "/x?sort=up&page=1", "/x?page=1&utm_source=b&sort=up"] {
        assert_eq!(gateway.get(same).await.x_cache(), "HIT", "{same}");
    }
    for other in ["/x?page=2&sort=up", "/x?page=1", "/x?page=1&page=2&sort=up", "/x?page=1;sort=up"]
    {
        assert_eq!(gateway.get(other).await.x_cache(), "MISS", "{other}");
    }
}

#[tokio::test]
async fn different_requests_never_meet_in_one_key() {
    let origin = Origin::start(|seen: &Seen| {
        let host = seen.header("x-forwarded-host").unwrap_or_default();
        Answer::cacheable(format!("{host} {}", seen.target))
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let hosts = ["a", "a.b", "ab", "a:8080"];
    let paths = [
        "/", "/b", "/b/", "//b", "/b?", "/b?c", "/b?c=", "/b%2Fc", "/b/c", "/B", "/b?c&d", "/b?d&c",
    ];
    for round in 0..2 {
        for host in hosts {
            for path in paths {
                let response = gateway.send(&Request::get(path).header("Host", host)).await;
                if response.status == 400 {
                    continue;
                }
                let shown = response.text();
                assert!(
                    shown.starts_with(&format!("{host} ")),
                    "round {round}: {host} {path} got {shown}"
                );
                let query = path.split_once('?').map(|(_, q)| q).unwrap_or_default();
                let got = shown.split_once('?').map(|(_, q)| q).unwrap_or_default();
                assert_eq!(query, got, "round {round}: {host} {path}");
            }
        }
    }
}

#[tokio::test]
async fn nobody_poisons_an_entry_through_a_header_outside_the_key() {
    // Who the client is and what it asked for is the gateway's to say, under all of these names.
    const NAMES: &[&str] = &[
        "X-Forwarded-For",
        "X-Forwarded-Host",
        "X-Forwarded-Proto",
        "X-Forwarded-Port",
        "X-Forwarded-Prefix",
        "X-Forwarded-Server",
        "X-Forwarded-Scheme",
        "X-Forwarded",
        "Forwarded",
        "Forwarded-For",
        "X-Real-IP",
        "X-Client-IP",
        "X-Original-URL",
        "X-Original-Host",
        "X-Rewrite-URL",
        "X-Host",
        "True-Client-IP",
        "CF-Connecting-IP",
    ];
    // A careless origin: it believes the forwarding family and lets the answer be cached.
    let origin = Origin::start(|seen: &Seen| {
        let read = NAMES.iter().flat_map(|name| seen.header_all(name));
        Answer::cacheable(read.collect::<Vec<_>>().join("\n"))
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    for (n, name) in NAMES.iter().enumerate() {
        let path = format!("/{n}");
        gateway.send(&Request::get(&path).header(name, "evil.example")).await;
        let victim = gateway.get(&path).await.text();
        assert!(!victim.contains("evil"), "{name} reached a victim: {victim}");
    }
}

#[tokio::test]
async fn the_body_of_a_get_never_decides_what_others_see() {
    let origin = Origin::start(|seen: &Seen| Answer::cacheable(seen.body.clone())).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let attack = gateway.send(&Request::get("/search").body("evil")).await;
    assert!([200, 400].contains(&attack.status), "{}", attack.status);
    assert_eq!(gateway.get("/search").await.text(), "");
}

#[tokio::test]
async fn a_cut_body_is_never_stored() {
    let origin = Origin::start(|seen: &Seen| {
        let whole = Answer::cacheable("0123456789");
        match (seen.path(), seen.nth) {
            ("/length", 1) => whole.lying_length(20).then_close(),
            ("/chunks", 1) => {
                Answer::status(200).header("Cache-Control", "max-age=60").chunk("0123").then_close()
            }
            _ => whole,
        }
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    for path in ["/length", "/chunks"] {
        let cut = Request::get(path).send(gateway.public).await;
        assert!(cut.is_err() || !cut.unwrap().whole, "{path} looks whole");
        let again = gateway.get(path).await;
        assert_eq!((again.x_cache().as_str(), again.text().as_str()), ("MISS", "0123456789"));
    }
}

#[tokio::test]
async fn an_object_over_the_limit_is_streamed_and_not_stored() {
    let origin = Origin::start(|seen: &Seen| {
        let answer = Answer::cacheable(vec![b'x'; 256 << 10]);
        if seen.path() == "/chunked" {
            return Answer::status(200)
                .header("Cache-Control", "max-age=60")
                .chunk(vec![b'x'; 128 << 10])
                .chunk(vec![b'x'; 128 << 10]);
        }
        answer
    })
    .await;
    let gateway =
        Gateway::before(&origin.url()).env("CACHE_MAX_OBJECT_BYTES", "64KiB").start().await;
    for path in ["/length", "/chunked"] {
        for round in 1..=2 {
            let response = gateway.get(path).await;
            assert!(response.whole && response.body == vec![b'x'; 256 << 10], "{path} {round}");
            assert_ne!(response.x_cache(), "HIT", "{path}");
            assert_eq!(origin.count(path), round);
        }
    }
}

#[tokio::test]
async fn a_miss_is_streamed_while_it_is_stored() {
    let gate = Gate::closed();
    let held = gate.clone();
    let origin = Origin::start(move |_| {
        Answer::status(200)
            .header("Cache-Control", "max-age=60")
            .chunk("first ")
            .then_gate(&held)
            .chunk("second")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let mut client = gateway.connect().await;
    client.write(b"GET /doc HTTP/1.1\r\nHost: h\r\n\r\n").await.unwrap();
    let read = async {
        client.head().await.unwrap();
        assert_eq!(client.chunk().await.unwrap().unwrap(), b"first ");
        gate.open();
        assert_eq!(client.chunk().await.unwrap().unwrap(), b"second");
        assert!(client.chunk().await.unwrap().unwrap().is_empty());
    };
    within(SOON, "the first chunk before the last", read).await;
    let doc = Request::get("/doc").header("Host", "h");
    let hit = gateway.send(&doc).await;
    assert_eq!((hit.x_cache().as_str(), hit.text().as_str()), ("HIT", "first second"));
}

fn gunzip(bytes: &[u8]) -> String {
    let mut text = String::new();
    flate2::read::GzDecoder::new(bytes).read_to_string(&mut text).expect("it is gzip");
    text
}

#[tokio::test]
async fn one_entry_serves_gzip_and_identity() {
    let text = "compressible words ".repeat(2000);
    let body = text.clone();
    let origin = Origin::start(move |_| {
        Answer::cacheable(body.clone())
            .header("Content-Type", "text/plain")
            .header("ETag", "\"v1\"")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let zipped = || Request::get("/text").header("Accept-Encoding", "gzip");
    gateway.send(&zipped()).await;
    let hit = crate::lab::wait_for("a gzip hit", SOON, || async {
        let response = gateway.send(&zipped()).await;
        (response.header("content-encoding") == Some("gzip")).then_some(response)
    })
    .await;
    assert_eq!(hit.x_cache(), "HIT");
    assert!(hit.body.len() < text.len() / 4);
    assert_eq!(gunzip(&hit.body), text);
    let vary = hit.header_all("vary").join(",").to_ascii_lowercase();
    assert!(vary.contains("accept-encoding"), "{:?}", hit.headers);

    for accept in ["identity", "gzip;q=0", ""] {
        let plain = gateway.send(&Request::get("/text").header("Accept-Encoding", accept)).await;
        assert_eq!(
            (plain.header("content-encoding"), plain.text() == text),
            (None, true),
            "{accept}"
        );
        assert_ne!(
            plain.header("etag"),
            hit.header("etag"),
            "two representations, two strong tags"
        );
    }
    assert_eq!(origin.total(), 1);
}

#[tokio::test]
async fn a_body_the_origin_encoded_is_left_alone() {
    let origin = Origin::start(|_| {
        Answer::cacheable("pretend this is brotli")
            .header("Content-Encoding", "br")
            .header("Content-Type", "text/plain")
            .header("Vary", "Accept-Encoding")
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let request = Request::get("/").header("Accept-Encoding", "gzip, br");
    for _ in 0..2 {
        let response = gateway.send(&request).await;
        assert_eq!(response.header("content-encoding"), Some("br"));
        assert_eq!(response.text(), "pretend this is brotli");
    }
}

#[tokio::test]
async fn only_if_cached_never_asks_the_origin() {
    let origin = Origin::start(|_| Answer::cacheable("x")).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let only = Request::get("/a").header("Cache-Control", "only-if-cached");
    gateway.send(&only).await.assert_problem(504, "not_cached");
    assert_eq!(origin.total(), 0);
    gateway.get("/a").await;
    assert_eq!(gateway.send(&only).await.x_cache(), "HIT");
}

#[tokio::test]
async fn a_client_that_says_no_store_leaves_nothing_behind() {
    let origin = Origin::start(|seen: &Seen| Answer::cacheable(seen.nth.to_string())).await;
    let gateway = Gateway::before(&origin.url()).start().await;
    gateway.send(&Request::get("/a").header("Cache-Control", "no-store")).await;
    assert_eq!(gateway.get("/a").await.text(), "2");
}

/// The answer that belongs to one request: public ones are the same for all, own ones are not.
fn belongs(kind: u64, key: u64, user: usize) -> String {
    match kind {
        0 | 1 => format!("/{kind}/{key} for all"),
        _ => format!("/{kind}/{key} for user-{user}"),
    }
}

#[tokio::test]
async fn ten_thousand_requests_by_twenty_clients_are_never_mixed_up() {
    const CLIENTS: usize = 20;
    const EACH: usize = 500;
    let origin = Origin::start(|seen: &Seen| {
        let user = seen.header("x-user").unwrap_or("?");
        let target = seen.path().to_owned();
        // Some answers take their time, so that requests for one key overlap.
        let slow = Duration::from_millis(if seen.nth % 7 == 1 { 3 } else { 0 });
        let own = Answer::ok(format!("{target} for {user}")).delay(slow);
        let shared = Answer::ok(format!("{target} for all")).delay(slow);
        match target.as_bytes().get(1) {
            Some(b'0') => shared.header("Cache-Control", "max-age=60"),
            Some(b'1') => shared.header("Cache-Control", "max-age=0, must-revalidate"),
            Some(b'2') => own.header("Cache-Control", "private, max-age=60"),
            Some(b'3') => own.header("Cache-Control", "max-age=60").header("Vary", "X-User"),
            Some(b'4') => own.header("Cache-Control", "no-store"),
            _ => own,
        }
    })
    .await;
    let gateway = Gateway::before(&origin.url()).start().await;
    let asked = |client: usize, nth: usize| {
        let mut random = Random::seeded((client * EACH + nth) as u64 + 1);
        (random.below(6), random.below(12))
    };
    let outcomes: Arc<Mutex<HashMap<String, usize>>> = Arc::default();
    let counted = Arc::clone(&outcomes);
    let all = load(
        gateway.public,
        CLIENTS,
        EACH,
        move |client, nth| {
            let (kind, key) = asked(client, nth);
            Request::get(format!("/{kind}/{key}")).header("X-User", format!("user-{client}"))
        },
        move |client, nth, response: &Response| {
            let (kind, key) = asked(client, nth);
            assert_eq!(response.text(), belongs(kind, key, client), "{:?}", response.headers);
            *counted.lock().unwrap().entry(response.x_cache()).or_default() += 1;
        },
    );
    within(Duration::from_secs(60), "ten thousand answers", all).await;
    let outcomes = outcomes.lock().unwrap();
    assert!(outcomes.get("HIT").is_some_and(|n| *n > 1000), "{outcomes:?}");
    origin.assert_strict();
}
