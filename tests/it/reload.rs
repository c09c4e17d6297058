//! Reloading the routes file: good versions replace the table with no request lost, bad ones change
//! nothing and are seen.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering::SeqCst},
    },
    time::Duration,
};

use crate::lab::{Answer, Gateway, Origin, Request, SOON, Signal, eventually, load};

fn answering(text: &str) -> String {
    format!(
        "routes:\n  - {{ name: all, path: '/{{*rest}}', respond: {{ status: 200, body: {text} }} }}\n"
    )
}

async fn answers(gateway: &Gateway, text: &str) {
    eventually(&format!("the gateway answers {text}"), SOON, || async {
        gateway.get("/").await.text() == text
    })
    .await;
}

#[tokio::test]
async fn an_edited_file_takes_effect() {
    let gateway = Gateway::routing(answering("one")).start().await;
    assert_eq!(gateway.get("/").await.text(), "one");
    gateway.replace_routes(&answering("two"));
    answers(&gateway, "two").await;
    // Also when it is written in place.
    std::fs::write(gateway.routes_path(), answering("three")).unwrap();
    answers(&gateway, "three").await;
}

#[tokio::test]
async fn changed_response_headers_show_on_what_was_stored_before() {
    let origin = Origin::start(|_| Answer::cacheable("x")).await;
    let routes = |version: u8| {
        format!(
            "upstreams: {{ app: {{ targets: ['{}'] }} }}\nroutes:\n  - {{ name: all, path: /a, upstream: app, response: {{ set: {{ X-Version: '{version}' }} }} }}\n",
            origin.url()
        )
    };
    let gateway = Gateway::routing(routes(1)).start().await;
    gateway.get("/a").await;
    let stored = gateway.get("/a").await;
    assert_eq!((&*stored.x_cache(), stored.header("x-version")), ("HIT", Some("1")));
    gateway.replace_routes(&routes(2));
    eventually("the new header", SOON, || async {
        gateway.get("/a").await.header("x-version") == Some("2")
    })
    .await;
}

#[tokio::test]
async fn listed_paths_are_warm_at_start_and_after_a_reload() {
    let origin = Origin::start(|_| Answer::cacheable("x")).await;
    let routes = |path: &str| {
        format!(
            "upstreams: {{ app: {{ targets: ['{}'] }} }}\nroutes:\n  - {{ name: all, path: {path}, host: shop.example, upstream: app, cache: {{ ttl: 1m, warm: [deploy] }} }}\n",
            origin.url()
        )
    };
    let gateway = Gateway::routing(routes("/first")).start().await;
    eventually("the first path is asked for", SOON, || async { origin.count("/first") == 1 }).await;
    gateway.replace_routes(&routes("/second"));
    eventually("the second path is asked for", SOON, || async { origin.count("/second") == 1 })
        .await;
    let client = Request::get("/second").header("Host", "shop.example");
    eventually("it is stored", SOON, || async { gateway.send(&client).await.x_cache() == "HIT" })
        .await;
    assert_eq!((origin.count("/first"), origin.count("/second")), (1, 1));
}

#[tokio::test]
async fn a_file_behind_a_symbolic_link_takes_effect() {
    // A ConfigMap is mounted as a link to a folder that is replaced whole.
    let builder = Gateway::routing(answering("unused"));
    let dir = builder.dir().to_owned();
    for (folder, text) in [("first", "one"), ("second", "two")] {
        std::fs::create_dir(dir.join(folder)).unwrap();
        std::fs::write(dir.join(folder).join("mounted.yaml"), answering(text)).unwrap();
    }
    let link = |to: &str, name: &str| std::os::unix::fs::symlink(to, dir.join(name)).unwrap();
    link("first", "..data");
    link("..data/mounted.yaml", "mounted.yaml");
    let file = dir.join("mounted.yaml").display().to_string();
    let gateway = builder.env("ROUTES_FILE", file).start().await;
    assert_eq!(gateway.get("/").await.text(), "one");
    link("second", "..data-new");
    std::fs::rename(dir.join("..data-new"), dir.join("..data")).unwrap();
    answers(&gateway, "two").await;
}

#[tokio::test]
async fn sighup_reads_the_file_again() {
    let origin = Origin::start(|_| Answer::ok("x")).await;
    let routes = format!(
        "upstreams: {{ app: {{ targets: ['{}'] }} }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app }}\n",
        origin.url()
    );
    let mut gateway = Gateway::routing(routes).start().await;
    let reloads = |gateway: &Gateway| {
        let events = gateway.log.events().into_iter();
        events.filter(|e| e["message"].as_str().is_some_and(|m| m.contains("reload"))).count()
    };
    let before = reloads(&gateway);
    gateway.signal(Signal::Hup);
    eventually("the reload is logged", SOON, || async { reloads(&gateway) > before }).await;
    assert!(gateway.ended().is_none());
    assert_eq!(gateway.get("/").await.text(), "x");
}

#[tokio::test]
async fn a_bad_file_is_refused_shown_and_the_last_good_one_serves() {
    let gateway = Gateway::routing(answering("good")).start().await;
    let bad = [
        "routes: [",
        "routes:\n  - { name: all, path: nowhere, respond: { status: 200 } }\n",
        "routes:\n  - { name: all, path: /, upstream: missing }\n",
        "rootes: []\n",
        "",
    ];
    for text in bad {
        gateway.replace_routes(text);
        eventually("readiness names the refused file", SOON, || async {
            let ready = gateway.get("/health/ready").await;
            assert_eq!(ready.status, 200, "it still serves");
            ready.text().to_lowercase().contains("routes")
        })
        .await;
        assert_eq!(gateway.get("/").await.text(), "good", "after {text:?}");
        gateway.replace_routes(&answering("good"));
        eventually("readiness is clear again", SOON, || async {
            let ready = gateway.get("/health/ready").await.json();
            ready["status"] != "degraded"
        })
        .await;
    }
    let logged = gateway.log.text();
    assert!(logged.contains("routes.yaml:"), "the place is logged: {logged}");
    let metrics = gateway.admin(Request::get("/metrics")).await.text();
    let counted = metrics.lines().any(|l| l.contains("reload") && !l.starts_with('#'));
    assert!(counted, "reloads are counted: {metrics}");
}

#[tokio::test]
async fn reloads_under_load_lose_nothing() {
    let origin = Origin::start(|_| Answer::ok("x").delay(Duration::from_millis(1))).await;
    let routes = |n: usize| {
        format!(
            "upstreams: {{ app: {{ targets: ['{}'] }} }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app, response: {{ set: {{ X-Version: '{n}' }} }} }}\n",
            origin.url()
        )
    };
    let gateway = Gateway::routing(routes(0)).start().await;
    let versions = Arc::new(AtomicUsize::new(0));
    let (highest, done) = (Arc::clone(&versions), Arc::new(AtomicBool::new(false)));
    let over = Arc::clone(&done);
    let reading = tokio::spawn({
        let addr = gateway.public;
        async move {
            while !over.load(SeqCst) {
                let highest = Arc::clone(&highest);
                load(
                    addr,
                    8,
                    25,
                    |_, nth| Request::get(format!("/{nth}")),
                    move |_, _, response| {
                        assert_eq!((response.status, response.text().as_str()), (200, "x"));
                        let version = response.header("x-version").and_then(|v| v.parse().ok());
                        highest.fetch_max(version.expect("each answer has a version"), SeqCst);
                    },
                )
                .await;
            }
        }
    });
    for n in 1..=30 {
        gateway.replace_routes(&routes(n));
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    eventually("the last version is served", SOON, || async {
        gateway.get("/").await.header("x-version") == Some("30")
    })
    .await;
    done.store(true, SeqCst);
    reading.await.unwrap();
    assert!(versions.load(SeqCst) > 0, "no reload happened under load");
    assert!(origin.connections() < 100, "connections were kept over {} reloads", 30);
}

#[tokio::test]
async fn the_cache_survives_a_reload() {
    let origin = Origin::start(|_| Answer::cacheable("x")).await;
    let routes = |more: &str| {
        format!(
            "upstreams: {{ app: {{ targets: ['{}'] }} }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app }}\n{more}",
            origin.url()
        )
    };
    let gateway = Gateway::routing(routes("")).start().await;
    gateway.get("/a").await;
    let more = "  - { name: new, path: /new, respond: { status: 200, body: new } }\n";
    gateway.replace_routes(&routes(more));
    eventually("the new route answers", SOON, || async {
        gateway.get("/new").await.text() == "new"
    })
    .await;
    assert_eq!(gateway.get("/a").await.x_cache(), "HIT");
}

#[tokio::test]
async fn the_gateway_starts_without_any_upstream_alive() {
    let routes = format!(
        "upstreams: {{ app: {{ targets: ['http://{}'] }} }}\nroutes:\n  - {{ name: all, path: '/{{*rest}}', upstream: app }}\n",
        crate::lab::refusing()
    );
    let started = std::time::Instant::now();
    let gateway = Gateway::routing(routes).start().await;
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
    assert_eq!(gateway.get("/health/ready").await.status, 200);
}
