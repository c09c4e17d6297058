//! Private and shared answers at random, to many identities at once: nobody is given another's.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use crate::lab::{Answer, Gateway, Origin, Request, Seen, load, random::Random, within};

/// Who a request is from, and what it asks for.
fn identified(client: usize, nth: usize) -> (String, Request) {
    const KINDS: [&str; 8] =
        ["shared", "private", "flips", "plain", "vary", "cookie", "no-store", "checked"];
    let mut random = Random::seeded((client * 100_003 + nth) as u64 + 7);
    let who = format!("identity-{}", random.below(20));
    let kind = KINDS[random.below(8) as usize];
    let mut request = Request::get(format!("/{kind}/{}", random.below(10))).header("X-User", &who);
    // Credentials in three forms; X-User is only how the origin knows the answer's owner.
    request = match random.below(3) {
        _ if kind == "plain" => request.header("Authorization", format!("Bearer {who}")),
        0 => request.header("Authorization", format!("Bearer {who}")),
        1 => request.header("Cookie", format!("session={who}")),
        _ => request,
    };
    if random.below(20) == 0 {
        request = request.header("Cache-Control", "no-cache");
    }
    (who, request)
}

/// An origin whose answers name their owner, or `all`; now and then slow, now and then failing.
fn owned(seen: &Seen) -> Answer {
    let who = seen.header("x-user").unwrap_or("nobody");
    let path = seen.path();
    let kind = path.split('/').nth(1).unwrap_or_default();
    let own = Answer::ok(format!("{path} for {who}"));
    let shared = Answer::ok(format!("{path} for all"));
    let short = "public, max-age=1, stale-while-revalidate=30, stale-if-error=30";
    let failing = seen.nth % 11 == 7;
    let answer = match kind {
        _ if failing => Answer::status(503).body(format!("{path} for {who}")),
        "shared" => shared.header("Cache-Control", short),
        "private" => own.header("Cache-Control", "private, max-age=60"),
        // Shared until it is not: a stale copy is refreshed by an answer that is somebody's own.
        "flips" if seen.nth.is_multiple_of(3) => own.header("Cache-Control", "private, max-age=60"),
        "flips" => shared.header("Cache-Control", short),
        // Asked for with credentials, which only `public` and the like would let others see.
        "plain" => own.header("Cache-Control", "max-age=60"),
        "vary" => own.header("Cache-Control", short).header("Vary", "X-User"),
        "cookie" => own.header("Set-Cookie", format!("session={who}")),
        "no-store" => own.header("Cache-Control", "no-store"),
        _ if seen.header("if-none-match").is_some() => {
            Answer::status(304).header("ETag", "\"all\"").header("Cache-Control", "max-age=1")
        }
        _ => shared.header("ETag", "\"all\"").header("Cache-Control", "public, max-age=1"),
    };
    let slow = if seen.nth % 4 == 1 { 15 } else { 0 };
    answer.delay(Duration::from_millis(slow))
}

/// The default route, with stale serving on and a breaker that lets the origin fail.
fn stale_serving(origin: &Origin) -> String {
    format!(
        "upstreams:\n  app: {{ targets: ['{}'], breaker: {{ failures: 1000000 }} }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app, cache: {{ ttl: 0s, stale_while_revalidate: 30s, stale_if_error: 30s }} }}\n",
        origin.url()
    )
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn twenty_identities_never_meet() {
    const CLIENTS: usize = 40;
    const EACH: usize = 250;
    let origin = Origin::start(owned).await;
    let gateway = Gateway::routing(stale_serving(&origin)).start().await;
    let seen: Arc<Mutex<BTreeMap<String, usize>>> = Arc::default();
    for round in 0..4 {
        // Between the rounds everything short-lived grows stale.
        tokio::time::sleep(Duration::from_millis(1100)).await;
        let counted = Arc::clone(&seen);
        let whole = load(
            gateway.public,
            CLIENTS,
            EACH / 4 + 1,
            move |client, nth| identified(client, nth + round * EACH).1,
            move |client, nth, answer| {
                let (who, request) = identified(client, nth + round * EACH);
                let kind = request.target.split('/').nth(1).unwrap_or_default();
                let text = answer.text();
                let said = format!("{} {} {text:?} {:?}", request.target, who, answer.headers);
                let own = text == format!("{} for {who}", request.target);
                let shared = text == format!("{} for all", request.target);
                let may_be_shared = matches!(kind, "shared" | "flips" | "checked");
                assert!(own || (shared && may_be_shared), "{said}");
                assert!(matches!(answer.status, 200 | 503), "{said}");
                let cookies = answer.header_all("set-cookie");
                assert!(cookies.iter().all(|c| *c == format!("session={who}")), "{said}");
                let never_kept = matches!(kind, "private" | "plain" | "cookie" | "no-store");
                let kept = matches!(answer.x_cache().as_str(), "HIT" | "STALE" | "REVALIDATED");
                assert!(!(never_kept && kept), "{said}");
                let mut counted = counted.lock().unwrap();
                *counted.entry(answer.x_cache()).or_default() += 1;
                if answer.header("cache-status").is_some_and(|s| s.contains("collapsed")) {
                    *counted.entry("collapsed".to_owned()).or_default() += 1;
                }
            },
        );
        within(Duration::from_secs(60), "a round", whole).await;
    }
    let seen = seen.lock().unwrap();
    println!("outcomes {seen:?}, {} origin requests", origin.total());
    let of = |what: &str| seen.get(what).copied().unwrap_or(0);
    assert!(of("HIT") > 500 && of("STALE") > 20 && of("collapsed") > 20, "{seen:?}");
    origin.assert_strict();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes minutes; run with --ignored"]
async fn a_hundred_clients_on_cold_keys_ask_once_and_share_nothing_private() {
    let origin = Origin::start(|seen: &Seen| {
        let who = seen.header("x-user").unwrap_or("nobody");
        let answer = match seen.path() {
            path if path.starts_with("/private") => {
                Answer::ok(who.to_owned()).header("Cache-Control", "private, max-age=60")
            }
            _ => Answer::cacheable("all"),
        };
        answer.delay(Duration::from_millis(300))
    })
    .await;
    let gateway = Gateway::routing(stale_serving(&origin)).start().await;
    for round in 0..10 {
        for kind in ["shared", "private"] {
            let started = Instant::now();
            let path = format!("/{kind}/{round}");
            let asked = path.clone();
            load(
                gateway.public,
                100,
                1,
                move |client, _| Request::get(&asked).header("X-User", client.to_string()),
                move |client, _, answer| {
                    let own = client.to_string();
                    let expected = if kind == "private" { own.as_str() } else { "all" };
                    assert_eq!((answer.status, answer.text().as_str()), (200, expected));
                },
            )
            .await;
            let (took, total) = (started.elapsed(), origin.count(&path));
            println!("{path}: 100 answers, {total} origin requests, {took:.2?}");
            assert_eq!(total, if kind == "private" { 100 } else { 1 });
            // Two at most of the origin's times: one to learn that it is private, one for all.
            assert!(took < Duration::from_millis(1500), "{took:?}");
        }
    }
}
