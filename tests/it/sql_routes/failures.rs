//! What becomes of requests whose database is slow or gone, and of writes whose client is.

use std::time::Instant;

use serde_json::{Value, json};
use sqlx::{Connection as _, PgConnection};

use super::{ROUTES, SCHEMA, postgres, start};
use crate::lab::{Gateway, Request, SOON, eventually};

const SLOW: &str = r#"
  - name: slow-rename
    path: /slow/{id}
    methods: [PUT]
    params: { id: path integer, name: body text, seconds: body number }
    sql:
      write: >-
        UPDATE products SET name = :name FROM (SELECT pg_sleep(:seconds)) slept WHERE id = :id
        RETURNING id, name
    invalidates: ["product:{id}"]
  - name: slow-read
    path: /slow
    methods: [GET]
    sql: { read: SELECT pg_sleep(30) }
"#;

fn slow_rename(name: &str, seconds: f64) -> Request {
    Request::new("PUT", "/slow/1")
        .header("Content-Type", "application/json")
        .body(json!({ "name": name, "seconds": seconds }).to_string())
}

#[tokio::test]
async fn a_write_invalidates_also_when_its_client_has_gone() {
    let (_server, url) = postgres(SCHEMA).await;
    let builder = Gateway::routing(format!("{ROUTES}{SLOW}")).env("DATABASE_URL", url.clone());
    let gateway = start(builder).await;
    assert_eq!(gateway.get("/cached/1").await.x_cache(), "MISS");
    let mut client = gateway.connect().await;
    let bytes = slow_rename("Torch", 0.5).bytes("portway");
    client.write(&bytes).await.expect("it is sent");
    let mut beside = PgConnection::connect(&url).await.expect("the server answers");
    let sleeping = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'";
    let deadline = Instant::now() + SOON;
    while sqlx::query_scalar::<_, i64>(sleeping).fetch_one(&mut beside).await.ok() != Some(1) {
        assert!(Instant::now() < deadline, "the write is not under way");
    }
    drop(client);
    eventually("the cache has the new name", SOON, || async {
        gateway.get("/cached/1").await.json()["name"] == "Torch"
    })
    .await;
}

#[tokio::test]
async fn what_takes_too_long_is_told_by_what_may_have_happened() {
    let (_server, url) = postgres(SCHEMA).await;
    let builder = Gateway::routing(format!("{ROUTES}{SLOW}")).env("DATABASE_URL", url);
    let gateway = start(builder.env("DATABASE_QUERY_TIMEOUT", "300ms")).await;
    gateway.get("/slow").await.assert_problem(504, "database_timeout");
    assert_eq!(gateway.get("/cached/1").await.x_cache(), "MISS");
    assert_eq!(gateway.get("/cached/1").await.x_cache(), "HIT");
    let unknown = gateway.send(&slow_rename("Never", 30.0)).await;
    unknown.assert_problem(503, "write_outcome_unknown");
    assert_eq!(unknown.header("retry-after"), None, "whether to try again is not for us to say");
    assert_eq!(gateway.get("/cached/1").await.x_cache(), "MISS", "it may have happened");
}

#[tokio::test]
async fn without_a_database_the_cache_goes_on_and_the_rest_says_when_to_come_back() {
    let (server, url) = postgres(SCHEMA).await;
    let gateway = start(Gateway::routing(ROUTES).env("DATABASE_URL", url)).await;
    assert_eq!(gateway.get("/cached/1").await.x_cache(), "MISS");
    drop(server);
    let away = gateway.get("/products/1").await;
    away.assert_problem(503, "database_unavailable");
    assert_eq!(away.header("retry-after"), Some("1"));
    let write = Request::new("DELETE", "/products/1").body(Value::Null.to_string());
    let away = gateway.send(&write).await;
    away.assert_problem(503, "database_unavailable");
    let stored = gateway.get("/cached/1").await;
    assert_eq!((stored.status, stored.x_cache().as_str()), (200, "HIT"));
    gateway.get("/cached/2").await.assert_problem(503, "database_unavailable");
}
