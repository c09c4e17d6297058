//! The data cache: what one instance sets or deletes every instance sees; and the operator's view of
//! it, of stored responses, and of invalidations as they happen.

use std::{sync::Arc, time::Duration};

use portway::cache::{
    Cache, Settings,
    data::{DataCache, DataKey, Kind},
    remote::redis::RedisRemote,
};
use serde_json::{Value, json};
use tokio_util::task::AbortOnDropHandle;

use crate::{
    lab::{
        Answer, Connection, Fleet, Gateway, Origin, Redis, Request, Response, SOON, Seen,
        eventually, redis::Cluster, wait_for, within,
    },
    redis_link::{config, link},
};

/// Of every request: otherwise each gateway would have keys of its own.
const HOST: &str = "site.test";

/// An instance that lives in the test.
struct Instance {
    cache: Arc<Cache>,
    _keeper: AbortOnDropHandle<()>,
}

impl Instance {
    async fn join(server: &Redis) -> Self {
        Self::over(link(&server.url())).await
    }

    async fn over(redis: Arc<portway::redis::Redis>) -> Self {
        eventually("all of Redis is there", SOON, || async { redis.health().up }).await;
        let settings = Settings { l1_max_bytes: 1 << 20, max_object_bytes: 1 << 10 };
        let remote = RedisRemote::new(redis);
        // Long: whatever it still has after a change, it would serve.
        let l1_ttl = Duration::from_secs(60);
        let (cache, keeper) = Cache::sharing(settings, Arc::clone(&remote) as _, l1_ttl);
        let coherence = &cache.l2().expect("it shares").coherence;
        remote.listen(Arc::clone(coherence));
        let keeper = AbortOnDropHandle::new(actix_rt::spawn(keeper));
        let joined = Arc::clone(coherence);
        assert!(joined.joined(SOON).await, "it never took part");
        Self { cache, _keeper: keeper }
    }

    fn data(&self) -> &DataCache {
        self.cache.data()
    }
}

fn key(kind: Kind, id: &str) -> DataKey {
    DataKey::new("acme", kind, id).expect("it is valid")
}

#[actix_rt::test]
async fn what_one_instance_changes_all_see() {
    let server = Redis::start().await;
    let (a, b) = (Instance::join(&server).await, Instance::join(&server).await);
    eventually("they know each other", SOON, || async {
        a.cache.l2().is_some_and(|l2| l2.coherence.members().len() == 2)
    })
    .await;
    let one = key(Kind::Profile, "1");
    for round in 0..20_u64 {
        let changed = a.data().set(&one, &round).await.expect("it is kept");
        assert!(changed.shared && changed.missing.is_empty(), "{changed:?}");
        assert_eq!(b.data().get(&one).await, Some(round));
    }
    let changed = b.data().invalidate("acme", Kind::Profile, "1").await.expect("it is a key");
    assert!(changed.shared && changed.missing.is_empty(), "{changed:?}");
    assert_eq!(a.data().get::<u64>(&one).await, None);
    assert_eq!(server.command(&["EXISTS", "portway:d1:tenant:acme:profile:1"]).await, "0");

    let many: Vec<_> = (0..600).map(|id| key(Kind::Access, &id.to_string())).collect();
    let values: Vec<_> = many.iter().zip(0_u64..).collect();
    assert!(a.data().set_many(&values).await.expect("they are kept").shared);
    let got = b.data().get_many::<u64>(&many).await;
    assert!(got.into_iter().zip(0..).all(|(got, id)| got == Some(id)));
    b.data().delete_many(&many.iter().collect::<Vec<_>>()).await;
    assert!(a.data().get_many::<u64>(&many).await.iter().all(Option::is_none));

    assert_eq!(a.data().increment(&one, 5).await.expect("it counts"), 5);
    assert_eq!(b.data().increment(&one, -2).await.expect("it counts"), 3);
    let life: u64 = server
        .command(&["PTTL", "portway:c1:tenant:acme:profile:1"])
        .await
        .parse()
        .expect("a number");
    assert!((3_500_000..=3_600_000).contains(&life), "{life}");
}

#[actix_rt::test]
async fn a_value_from_before_an_invalidation_is_dead_wherever_it_lies() {
    let server = Redis::start().await;
    let (a, b) = (Instance::join(&server).await, Instance::join(&server).await);
    let one = key(Kind::Profile, "1");
    let name = "portway:d1:tenant:acme:profile:1";
    a.data().set(&one, &"old").await.expect("it is kept");
    // As a replica does that has not heard of what comes next and takes over.
    server.command(&["COPY", name, "aside"]).await;
    b.data().delete(&one).await;
    server.command(&["COPY", "aside", name]).await;
    assert!(!a.data().exists(&one).await && !b.data().exists(&one).await);
    // Nor does it stand in the way of what is loaded now.
    let load = || async { Ok::<_, ()>("new".to_owned()) };
    assert_eq!(a.data().get_or_set(&one, load).await, Ok("new".to_owned()));
    assert_eq!(b.data().get(&one).await, Some("new".to_owned()));
    // And an old value does not take a younger one's place.
    let two = key(Kind::Profile, "2");
    let load = || async {
        b.data().set(&two, &"new").await.expect("it is kept");
        Ok::<_, ()>("old".to_owned())
    };
    assert_eq!(a.data().get_or_set(&two, load).await, Ok("old".to_owned()));
    for instance in [&a, &b] {
        assert_eq!(instance.data().get(&two).await, Some("new".to_owned()));
    }
}

#[actix_rt::test]
async fn a_cluster_keeps_values_on_all_its_nodes() {
    let cluster = Cluster::start(Redis::options(), false).await;
    let nodes = [("REDIS_CLUSTER_NODES", &*cluster.addresses())];
    let instances = [
        Instance::over(portway::redis::Redis::start(&config(&nodes))).await,
        Instance::over(portway::redis::Redis::start(&config(&nodes))).await,
    ];
    let [a, b] = instances.each_ref().map(Instance::data);
    let many: Vec<_> = (0..60).map(|id| key(Kind::Access, &id.to_string())).collect();
    let values: Vec<_> = many.iter().zip(0_u64..).collect();
    assert!(a.set_many(&values).await.expect("they are kept").shared);
    assert!(b.get_many::<u64>(&many).await.into_iter().zip(0..).all(|(got, id)| got == Some(id)));
    for node in &cluster.nodes {
        assert_ne!(node.command(&["DBSIZE"]).await, "0");
    }
    assert!(b.delete(&many[0]).await.shared);
    assert!(!a.exists(&many[0]).await);
    assert_eq!(a.increment(&many[0], 1).await.expect("it counts"), 1);
    assert_eq!(b.increment(&many[0], 1).await.expect("it counts"), 2);
    let refused = a.keys("*", "", 10).await.expect_err("a cursor is one node's");
    assert!(refused.to_string().contains("Cluster"), "{refused}");
}

#[actix_rt::test]
async fn without_redis_values_are_loaded_and_changes_stay_here() {
    let mut server = Redis::start().await;
    let a = Instance::join(&server).await;
    let one = key(Kind::Profile, "1");
    a.data().set(&one, &1).await.expect("it is kept");
    server.kill();
    let load = || async { Ok::<_, ()>(2) };
    let other = key(Kind::Profile, "2");
    assert_eq!(within(SOON, "a load", a.data().get_or_set(&other, load)).await, Ok(2));
    let changed = a.data().set(&one, &3).await.expect("it is kept");
    assert!(!changed.shared);
    assert_eq!(a.data().get(&one).await, Some(3));
    assert!(!a.data().delete(&one).await.shared);
    assert_eq!(a.data().get::<u64>(&one).await, None);
    a.data().increment(&one, 1).await.expect_err("nobody counts");
}

async fn site() -> Origin {
    Origin::start(|seen: &Seen| match seen.path() {
        "/plain" => Answer::cacheable("plain"),
        path => {
            Answer::cacheable(format!("{path} in a language")).header("Vary", "Accept-Language")
        }
    })
    .await
}

fn routes(origin: &Origin) -> String {
    format!(
        "
upstreams:
  app: {{ targets: ['{}'] }}
routes:
  - name: pages
    path: '/{{*rest}}'
    upstream: app
    cache: {{ ttl: 5m, tags: [pages] }}
",
        origin.url()
    )
}

async fn fleet(origin: &Origin, server: &Redis, count: usize) -> Fleet {
    let fleet = Fleet::routing(routes(origin)).env("CACHE_NAMESPACE", "portway");
    fleet.redis(server.url()).start(count).await
}

async fn get(gateway: &Gateway, target: &str) -> Response {
    let request = Request::get(target).header("Host", HOST).header("Accept-Language", "de");
    gateway.send(&request).await
}

async fn ask(gateway: &Gateway, method: &str, target: &str) -> Value {
    let response = gateway.admin(Request::new(method, target)).await;
    assert_eq!(response.status, 200, "{method} {target}: {}", response.text());
    response.json()
}

async fn entry(gateway: &Gateway, path: &str) -> Value {
    let target = format!("/admin/v1/cache/entry?url=http://{HOST}{path}&header=Accept-Language:de");
    ask(gateway, "GET", &target).await
}

/// How often Redis has carried out a command.
async fn calls(server: &Redis, command: &str) -> u64 {
    let stats = server.command(&["INFO", "commandstats"]).await;
    let start = format!("cmdstat_{command}:calls=");
    let line = stats.lines().find_map(|line| line.strip_prefix(&start));
    line.and_then(|line| line.split(',').next()?.parse().ok()).unwrap_or_default()
}

#[tokio::test]
async fn a_new_instance_finds_varied_responses_in_one_round_trip() {
    let (origin, server) = (site().await, Redis::start().await);
    let mut fleet = fleet(&origin, &server, 1).await;
    for page in 0..3 {
        get(fleet.instance(0), &format!("/{page}")).await;
    }
    let name = "portway:d1:tenant:portway:metadata:pages";
    eventually("it is told", SOON, || async { server.command(&["EXISTS", name]).await == "1" })
        .await;
    let second = fleet.add().await;
    let second = fleet.instance(second);
    // Its first look-up, of something else, is where it learns.
    assert_eq!(get(second, "/plain").await.text(), "plain");
    eventually("it has learnt", SOON, || async {
        entry(second, "/plain").await["guess"] == json!(["accept-language"])
    })
    .await;
    for page in 0..3 {
        let before = (calls(&server, "get").await, calls(&server, "mget").await);
        let response = get(second, &format!("/{page}")).await;
        assert_eq!(response.x_cache(), "HIT");
        let after = (calls(&server, "get").await, calls(&server, "mget").await);
        assert_eq!(after, (before.0, before.1 + 1), "page {page}");
    }
    assert_eq!(origin.total(), 4);
}

#[tokio::test]
async fn the_operator_sees_one_response_in_each_tier() {
    let (origin, server) = (site().await, Redis::start().await);
    let fleet = fleet(&origin, &server, 2).await;
    get(fleet.instance(0), "/1").await;
    let stored = wait_for("it is stored in both tiers", SOON, || async {
        let view = entry(fleet.instance(0), "/1").await;
        view["l2"]["stored"].is_object().then_some(view)
    })
    .await;
    assert_eq!(stored["route"], "pages");
    assert_eq!(stored["varies"], json!(["accept-language"]));
    for tier in ["l1", "l2"] {
        let view = &stored[tier]["stored"];
        assert_eq!((&view["status"], &view["size"]), (&json!(200), &json!(16)), "{tier}");
        assert_eq!(view["purged"], "no", "{tier}");
        let sum = view["age"].as_i64().zip(view["ttl"].as_i64()).map(|(age, ttl)| age + ttl);
        assert!(sum.is_some_and(|sum| sum > 0), "{tier}: {view}");
    }
    let elsewhere = entry(fleet.instance(1), "/1").await;
    assert_eq!(elsewhere["l1"], "absent");
    assert!(elsewhere["l2"]["stored"].is_object());
    fleet.purge(1, json!({ "tag": "pages" })).await;
    let purged = entry(fleet.instance(0), "/1").await;
    assert_eq!(purged["l1"]["stored"]["purged"], "yes");
    assert_eq!(purged["l2"]["stored"]["purged"], "yes");

    for (query, status, code) in [
        ("", 400, "bad_admin_request"),
        ("?url=/1", 400, "bad_admin_request"),
        ("?url=http://h/1&header=x", 400, "bad_admin_request"),
        ("?url=http://h/1&colour=red", 400, "bad_admin_request"),
        ("?url=http://h/1&route=none", 404, "not_found"),
    ] {
        let target = format!("/admin/v1/cache/entry{query}");
        fleet.instance(0).admin(Request::get(target)).await.assert_problem(status, code);
    }
}

#[actix_rt::test]
async fn the_operator_lists_reads_and_clears_data() {
    let (origin, server) = (site().await, Redis::start().await);
    let fleet = fleet(&origin, &server, 1).await;
    let gateway = fleet.instance(0);
    let own = Instance::join(&server).await;
    let session = key(Kind::Session, "s");
    own.data().set(&session, &json!({ "user": "hidden" })).await.expect("it is kept");
    for id in 0..250 {
        let key = key(Kind::Profile, &format!("a/{id}"));
        own.data().set(&key, &json!({ "id": id })).await.expect("it is kept");
    }
    let shown = ask(gateway, "GET", "/admin/v1/data/tenant:acme:profile:a/7").await;
    assert_eq!((&shown["value"], &shown["kind"]), (&json!({ "id": 7 }), &json!("profile")));
    assert!(shown["life"].as_u64().is_some_and(|life| (3500..=3600).contains(&life)), "{shown}");
    let shown = ask(gateway, "GET", "/admin/v1/data/tenant:acme:session:s").await;
    assert_eq!(shown["size"], 17);
    assert!(shown["life"].as_u64().is_some_and(|life| life > 32_000));
    assert!(!shown.to_string().contains("hidden") && shown.get("value").is_none(), "{shown}");

    let mut cursor = String::new();
    let mut keys = std::collections::BTreeSet::new();
    loop {
        let target =
            format!("/admin/v1/data?pattern=tenant:acme:profile:*&limit=50&cursor={cursor}");
        let page = ask(gateway, "GET", &target).await;
        let found = page["keys"].as_array().expect("a list").clone();
        keys.extend(found.into_iter().filter_map(|key| key.as_str().map(str::to_owned)));
        match page["cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(keys.len(), 250);
    assert!(keys.contains("tenant:acme:profile:a/249"));

    ask(gateway, "DELETE", "/admin/v1/data/tenant:acme:profile:a/7").await;
    assert!(!own.data().exists(&key(Kind::Profile, "a/7")).await);
    let gone = gateway.admin(Request::get("/admin/v1/data/tenant:acme:profile:a/7")).await;
    gone.assert_problem(404, "not_found");
    let mut deleted = 0;
    let mut cursor = String::new();
    loop {
        let target = format!("/admin/v1/data?pattern=*:profile:*&limit=100&cursor={cursor}");
        let cleared = ask(gateway, "DELETE", &target).await;
        deleted += cleared["deleted"].as_u64().expect("a number");
        match cleared["cursor"].as_str() {
            Some(next) => next.clone_into(&mut cursor),
            None => break,
        }
    }
    assert_eq!(deleted, 249);
    assert!(!own.data().exists(&key(Kind::Profile, "a/249")).await);
    assert!(own.data().exists(&session).await);

    for (method, target) in [
        ("GET", "/admin/v1/data/acme"),
        ("GET", "/admin/v1/data?limit=0"),
        ("GET", "/admin/v1/data?colour=red"),
        ("GET", "/admin/v1/data?limit=1001"),
        ("DELETE", "/admin/v1/data"),
    ] {
        let refused = gateway.admin(Request::new(method, target)).await;
        refused.assert_problem(400, "bad_admin_request");
    }
}

#[tokio::test]
async fn all_of_it_needs_the_token() {
    let origin = site().await;
    let token = "0123456789abcdef0123456789abcdef";
    let gateway = Gateway::before(&origin.url()).env("ADMIN_TOKEN", token).start().await;
    for target in ["/admin/v1/cache/entry?url=http://h/", "/admin/v1/data", "/admin/v1/events"] {
        let refused = Request::get(target).send(gateway.admin).await.expect("an answer");
        refused.assert_problem(401, "unauthorized");
    }
    let keys = ask(&gateway, "GET", "/admin/v1/data").await;
    assert_eq!(keys, json!({ "keys": [], "cursor": null }));
}

/// The next event that is one.
async fn event(stream: &mut Connection) -> (String, Value) {
    loop {
        let chunk = within(SOON, "an event", stream.chunk()).await.expect("it is read");
        let text = String::from_utf8(chunk.expect("it goes on")).expect("it is text");
        if let Some((name, data)) =
            text.strip_prefix("event: ").and_then(|it| it.split_once("\ndata: "))
        {
            return (name.to_owned(), serde_json::from_str(data).expect("it is JSON"));
        }
        assert!(text.starts_with(':'), "{text}");
    }
}

async fn events(gateway: &Gateway) -> Connection {
    let mut stream = Connection::open(gateway.admin).await.expect("it is open");
    let request = Request::get("/admin/v1/events");
    let bytes = request.bytes(&gateway.admin.to_string());
    stream.write(&bytes).await.expect("it is sent");
    let (status, headers) = stream.head().await.expect("it is answered");
    assert_eq!(status, 200, "{headers:?}");
    // From its first line on everything is seen.
    let first = within(SOON, "a first line", stream.chunk()).await.expect("it is read");
    assert!(first.is_some_and(|line| line.starts_with(b":")));
    stream
}

#[tokio::test]
async fn invalidations_are_seen_live_on_every_instance() {
    let (origin, server) = (site().await, Redis::start().await);
    let fleet = fleet(&origin, &server, 2).await;
    let mut streams = [events(fleet.instance(0)).await, events(fleet.instance(1)).await];
    fleet.purge(0, json!({ "tag": "pages", "soft": true })).await;
    ask(fleet.instance(1), "DELETE", "/admin/v1/data/tenant:acme:profile:1").await;
    for stream in &mut streams {
        let (name, data) = event(stream).await;
        assert_eq!(name, "purge");
        assert_eq!(data["selectors"], json!([{ "tag": "pages" }]));
        assert_eq!((&data["soft"], &data["recorded"]), (&json!(true), &json!(true)));
        let (_, data) = event(stream).await;
        assert_eq!(data["selectors"], json!([{ "data": "tenant:acme:profile:1" }]));
    }
}

#[tokio::test]
async fn an_instance_by_itself_shows_its_invalidations_and_ends_the_stream_when_it_stops() {
    let origin = site().await;
    let mut gateway = Gateway::before(&origin.url()).start().await;
    let mut stream = events(&gateway).await;
    gateway.purge(json!({ "all": true })).await;
    let (name, data) = event(&mut stream).await;
    assert_eq!((name.as_str(), &data["selectors"]), ("purge", &json!([{ "all": true }])));
    assert!(gateway.stop().await.success());
    let end = within(SOON, "the end", stream.chunk()).await.expect("it is read");
    assert_eq!(end, Some(Vec::new()), "the stream ends as it should");
}
