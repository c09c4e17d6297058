//! Routes that are SQL: what goes in, what comes out, and what the cache makes of it, on the embedded
//! database and on PostgreSQL alike.

mod check;
mod failures;

use serde_json::{Value, json};
use sqlx::{
    AssertSqlSafe, Connection as _, Executor as _, PgConnection, SqliteConnection,
    sqlite::SqliteConnectOptions,
};

use crate::lab::{
    Gateway, Request, Response, SOON, eventually, gateway::Builder, servers::Server, wait_for,
};

/// The schema of every test, with native types; both databases take it as it is.
const SCHEMA: &str = "
CREATE TABLE products (
  id BIGINT PRIMARY KEY,
  sku TEXT NOT NULL UNIQUE,
  name TEXT NOT NULL,
  price NUMERIC(12, 2) NOT NULL CONSTRAINT price_is_positive CHECK (price > 0),
  active BOOLEAN NOT NULL DEFAULT TRUE,
  details JSONB,
  made_at TIMESTAMPTZ,
  due DATE,
  reference UUID,
  weight DOUBLE PRECISION
);
CREATE TABLE orders (
  id BIGINT PRIMARY KEY,
  product BIGINT NOT NULL REFERENCES products (id),
  note TEXT
);
INSERT INTO products (id, sku, name, price) VALUES (1, 'LAMP', 'Lamp', 19.5), (2, 'DESK', 'Desk', 120);
";

const ROUTES: &str = r#"
routes:
  - name: product
    path: /products/{id}
    methods: [GET]
    params: { id: path integer }
    sql: { read: "SELECT id, name, active FROM products WHERE id = :id", one: true }
  - name: cached
    path: /cached/{id}
    methods: [GET]
    params: { id: path integer }
    sql: { read: "SELECT id, name FROM products WHERE id = :id", one: true }
    cache: { ttl: 1h, tags: ["product:{id}"] }
  - name: rename
    path: /products/{id}
    methods: [PUT]
    params: { id: path integer, name: body text 1..20 }
    sql: { write: "UPDATE products SET name = :name WHERE id = :id RETURNING id, name", one: true }
    max_body: 4KiB
    invalidates: ["product:{id}"]
  - name: retire
    path: /products/{id}
    methods: [DELETE]
    params: { id: path integer }
    sql: { write: "UPDATE products SET active = FALSE WHERE id = :id", one: true }
    invalidates: ["product:{id}"]
  - name: add
    path: /products
    methods: [POST]
    params:
      id: body integer 1..
      sku: body text 3..12 /[A-Z0-9-]+/
      name: body text 1..200 optional
      price: body number
      active: body boolean = true
      details: body json optional
      made_at: body timestamp optional
      due: body date optional
      reference: body uuid optional
      weight: body number optional
    sql:
      one: true
      write: >-
        INSERT INTO products (id, sku, name, price, active, details, made_at, due, reference, weight)
        VALUES (:id, :sku, :name, :price, :active, :details, :made_at, :due, :reference, :weight)
        RETURNING *
  - name: products
    path: /products
    methods: [GET]
    params: { least: "query number = 0", sort: "query enum(id, name) = id" }
    sql:
      read: >-
        SELECT * FROM products WHERE price >= :least
        ORDER BY CASE WHEN :sort = 'id' THEN id END, name
  - name: pages
    path: /pages
    methods: [GET]
    sql:
      read: SELECT id, sku, price FROM products
      page: { keys: [price number desc, id integer], limit: 2, max: 10 }
  - name: few
    path: /few
    methods: [GET]
    sql: { read: SELECT id FROM products, max_rows: 2 }
  - name: order
    path: /orders
    methods: [POST]
    params: { id: body integer, product: body integer, note: body text optional }
    sql: { write: "INSERT INTO orders (id, product, note) VALUES (:id, :product, :note)" }
  - name: notes
    path: /notes
    methods: [GET]
    params: { who: "header:x-who text" }
    sql: { read: "SELECT id FROM orders WHERE note = :who" }
    cache: { ttl: 1h }
  - name: mine
    path: /mine
    methods: [GET]
    params: { who: "caller:id text" }
    sql: { read: "SELECT id FROM orders WHERE note = :who" }
  - name: broken
    path: /broken
    methods: [GET]
    sql: { read: SELECT secret_column FROM products }
"#;

/// A gateway with routes on a database of its own.
struct Shop {
    gateway: Gateway,
    /// Held for as long as it is used.
    _server: Option<Server>,
}

impl Shop {
    async fn on_sqlite(routes: &str, schema: &str) -> Self {
        let builder = Gateway::routing(routes);
        sqlite(&builder, schema).await;
        Self { gateway: start(builder).await, _server: None }
    }

    async fn on_postgres(routes: &str, schema: &str) -> Self {
        let (server, url) = postgres(schema).await;
        let builder = Gateway::routing(routes).env("DATABASE_URL", url);
        Self { gateway: start(builder).await, _server: Some(server) }
    }

    async fn get(&self, target: &str) -> Response {
        self.gateway.get(target).await
    }

    async fn send(&self, method: &str, target: &str, body: Value) -> Response {
        let request = Request::new(method, target).header("Content-Type", "application/json");
        self.gateway.send(&request.body(body.to_string())).await
    }
}

/// A server with a schema, and its URL.
async fn postgres(schema: &str) -> (Server, String) {
    let server = Server::postgres().await;
    let url = format!("postgres://postgres@{}/postgres", server.addr);
    // It listens a moment before it answers.
    let mut connection =
        wait_for("the server answers", SOON, || async { PgConnection::connect(&url).await.ok() })
            .await;
    connection.execute(AssertSqlSafe(schema.to_owned())).await.expect("a schema");
    (server, url)
}

/// A file with a schema, where gateways look for theirs.
async fn sqlite(builder: &Builder, schema: &str) {
    let file = builder.dir().join("portway.db");
    let options = SqliteConnectOptions::new().filename(&file).create_if_missing(true);
    let mut connection = SqliteConnection::connect_with(&options).await.expect("a new file");
    connection.execute(AssertSqlSafe(schema.to_owned())).await.expect("a schema");
    connection.close().await.expect("closed");
}

/// Waits until the database is known to be there too.
async fn start(builder: Builder) -> Gateway {
    let gateway = builder.start().await;
    eventually("the database is there", SOON, || async { gateway.get("/few").await.status == 200 })
        .await;
    gateway
}

/// The same test on either database.
macro_rules! on_both {
    ($($name:ident),+ $(,)?) => {
        mod on_sqlite {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Shop::on_sqlite(super::ROUTES, super::SCHEMA).await).await;
            })+
        }
        mod on_postgres {
            $(#[tokio::test]
            async fn $name() {
                super::$name(super::Shop::on_postgres(super::ROUTES, super::SCHEMA).await).await;
            })+
        }
    };
}

on_both!(
    rows_become_json_of_the_same_types,
    what_is_wrong_with_a_request_is_said_at_once,
    constraints_are_told_by_name_and_nothing_else,
    a_read_has_a_validator_and_a_head,
    a_write_invalidates_what_the_cache_has,
    pages_follow_each_other_to_the_end,
    a_result_is_never_cut,
    a_header_that_counts_is_one_that_responses_vary_on,
    values_are_bound_and_never_spliced,
);

async fn rows_become_json_of_the_same_types(shop: Shop) {
    let product = json!({
        "id": 9_007_199_254_740_993_i64, "sku": "ALL-1", "name": "Ö \"quoted\" \\ \n", "price": 2.5,
        "active": false, "details": { "a": [1, null, "x"] }, "made_at": "2026-01-31T12:00:00.125+01:00",
        "due": "2026-02-01", "reference": "67E55044-10B1-426F-9247-BB680E5FE0C8", "weight": 0.1,
    });
    let mut expected = product.clone();
    expected["made_at"] = "2026-01-31T11:00:00.125+00:00".into();
    expected["reference"] = "67e55044-10b1-426f-9247-bb680e5fe0c8".into();
    let added = shop.send("POST", "/products", product).await;
    assert_eq!(added.status, 200, "{}", added.text());
    assert_eq!(added.json(), expected, "a write gives what it returns");
    let listed = shop.get("/products?least=2.5&sort=name").await;
    assert_eq!(listed.header("content-type"), Some("application/json"));
    let rows = listed.json();
    assert_eq!(rows.as_array().map(Vec::len), Some(3));
    assert_eq!(rows[2], expected, "a read gives what was written");
    assert_eq!(rows[0]["details"], Value::Null);
    assert_eq!(rows[0]["active"], true);
    let none = shop.get("/products?least=1e6").await;
    assert_eq!((none.status, none.text().as_str()), (200, "[]"));
}

async fn what_is_wrong_with_a_request_is_said_at_once(shop: Shop) {
    let bad = json!({ "id": "x", "sku": "no", "price": 1, "active": 1, "due": "2026-02-30" });
    let answer =
        shop.send("POST", "/products", bad).await.assert_problem(400, "invalid_parameters");
    let errors = answer["errors"].as_array().expect("a list").clone();
    let named = errors.iter().map(|it| format!("{} {}", it["in"], it["name"]).replace('"', ""));
    let named: Vec<_> = named.collect();
    assert_eq!(named, ["body id", "body sku", "body active", "body due"]);

    let rules = json!({ "id": 0, "sku": "lower", "price": 1 });
    let answer = shop.send("POST", "/products", rules).await.assert_problem(422, "unprocessable");
    assert_eq!(answer["errors"].as_array().map(Vec::len), Some(2), "{answer}");

    shop.get("/products/seven").await.assert_problem(400, "invalid_parameters");
    shop.get("/pages?limit=11&after=x").await.assert_problem(400, "invalid_parameters");
    shop.get("/mine").await.assert_problem(401, "caller_unknown");
    shop.get("/products/77").await.assert_problem(404, "not_found");

    let text = Request::new("PUT", "/products/1").header("Content-Type", "text/plain").body("x");
    shop.gateway.send(&text).await.assert_problem(415, "unsupported_media_type");
    let long = json!({ "name": "x".repeat(5 << 10) });
    shop.send("PUT", "/products/1", long).await.assert_problem(413, "body_too_large");
    let form = Request::new("PUT", "/products/1")
        .header("Content-Type", "application/x-www-form-urlencoded")
        .body("name=A+%26+B");
    assert_eq!(shop.gateway.send(&form).await.json()["name"], "A & B");
    let conditional = Request::new("PUT", "/products/1")
        .header("Content-Type", "application/json")
        .header("If-Match", "\"x\"")
        .body("{\"name\": \"Never\"}");
    shop.gateway.send(&conditional).await.assert_problem(412, "precondition_failed");
    assert_eq!(shop.get("/products/1").await.json()["name"], "A & B");
}

async fn constraints_are_told_by_name_and_nothing_else(shop: Shop) {
    let add = |sku: &str, price: f64, name: Value| json!({ "id": 50, "sku": sku, "price": price, "name": name });
    let double = shop.send("POST", "/products", add("LAMP", 1.0, "x".into())).await;
    let told = double.assert_problem(409, "conflict")["constraint"].clone();
    assert!(told == "products_sku_key" || told == "products.sku", "{told}");
    let negative = shop.send("POST", "/products", add("NEW", -1.0, "x".into())).await;
    assert_eq!(negative.assert_problem(422, "unprocessable")["constraint"], "price_is_positive");
    let nameless = shop.send("POST", "/products", add("NEW", 1.0, Value::Null)).await;
    assert_eq!(nameless.assert_problem(422, "unprocessable")["constraint"], "products.name");
    let orphan = shop.send("POST", "/orders", json!({ "id": 1, "product": 999 })).await;
    orphan.assert_problem(409, "conflict");
    let broken = shop.get("/broken").await;
    broken.assert_problem(500, "statement_failed");
    for answer in [double, negative, nameless, orphan, broken] {
        let text = answer.text();
        for leak in ["SELECT", "INSERT", "VALUES", "LAMP", "999", "secret_column"] {
            assert!(!text.contains(leak), "{leak} in {text}");
        }
    }
    let logged = wait_for("it is logged", SOON, || async {
        shop.gateway.log.event("the statement of a route failed")
    })
    .await;
    assert_eq!(logged["route"], "broken");
    assert!(logged["state"].is_string(), "{logged}");
    assert!(logged["said"].as_str().is_some_and(|said| said.contains("secret_column")), "{logged}");
}

async fn a_read_has_a_validator_and_a_head(shop: Shop) {
    let first = shop.get("/products/1").await;
    assert_eq!(first.x_cache(), "BYPASS");
    let tag = first.header("etag").expect("a read has an entity tag").to_owned();
    assert!(tag.starts_with('"'), "{tag} is strong");
    assert_eq!(shop.get("/products/1").await.header("etag"), Some(&*tag));
    let again = Request::get("/products/1").header("If-None-Match", &*tag);
    let unchanged = shop.gateway.send(&again).await;
    assert_eq!((unchanged.status, unchanged.body.len()), (304, 0));
    assert_eq!(unchanged.header("etag"), Some(&*tag));
    let head = shop.gateway.send(&Request::new("HEAD", "/products/1")).await;
    assert_eq!((head.status, head.header("etag")), (200, Some(&*tag)));
    assert_eq!(head.header("content-length"), Some(&*first.body.len().to_string()));
    let other = Request::get("/products/1").header("If-Match", "\"other\"");
    assert_eq!(shop.gateway.send(&other).await.status, 412);

    assert_eq!(shop.send("DELETE", "/products/1", Value::Null).await.status, 204);
    let changed = shop.gateway.send(&again).await;
    assert_eq!((changed.status, changed.json()["active"].clone()), (200, false.into()));
    assert_ne!(changed.header("etag"), Some(&*tag));
    shop.send("DELETE", "/products/77", Value::Null).await.assert_problem(404, "not_found");
}

async fn a_write_invalidates_what_the_cache_has(shop: Shop) {
    assert_eq!(shop.get("/cached/1").await.x_cache(), "MISS");
    let hit = shop.get("/cached/1").await;
    assert_eq!((hit.x_cache().as_str(), hit.json()["name"].clone()), ("HIT", "Lamp".into()));
    let tag = hit.header("etag").expect("it is stored with its validator").to_owned();
    let again = Request::get("/cached/1").header("If-None-Match", &*tag);
    assert_eq!(shop.gateway.send(&again).await.status, 304);
    assert_eq!(shop.get("/cached/2").await.x_cache(), "MISS");

    let renamed = shop.send("PUT", "/products/1", json!({ "name": "Torch" })).await;
    assert_eq!(renamed.json(), json!({ "id": 1, "name": "Torch" }));
    let fresh = shop.get("/cached/1").await;
    assert_eq!((fresh.x_cache().as_str(), fresh.json()["name"].clone()), ("MISS", "Torch".into()));
    assert_eq!(shop.get("/cached/2").await.x_cache(), "HIT", "another product's stays");

    let missing = shop.get("/cached/77").await;
    assert_eq!((missing.status, missing.x_cache().as_str()), (404, "MISS"));
    assert_eq!(missing.json()["code"], "not_found");
    assert_eq!(missing.json()["request_id"], Value::Null, "it may be stored: it is nobody's");
    assert_eq!(shop.get("/cached/77").await.x_cache(), "HIT");
}

async fn pages_follow_each_other_to_the_end(shop: Shop) {
    for (id, price) in [(10, 5.0), (11, 5.0), (12, 7.25), (13, 5.0)] {
        let product = json!({ "id": id, "sku": format!("SKU-{id}"), "name": "x", "price": price });
        assert_eq!(shop.send("POST", "/products", product).await.status, 200);
    }
    let mut target = "/pages".to_owned();
    let mut seen = Vec::new();
    loop {
        let page = shop.get(&target).await;
        assert_eq!(page.status, 200, "{target}: {}", page.text());
        let rows = page.json().as_array().expect("a list").clone();
        assert!(rows.len() <= 2);
        seen.extend(rows.iter().map(|row| row["id"].as_i64().expect("a number")));
        let Some(link) = page.header("link") else { break };
        let (next, relation) = link.split_once('>').expect("a target in angle brackets");
        assert_eq!(relation, "; rel=\"next\"");
        target = next.trim_start_matches('<').to_owned();
    }
    assert_eq!(seen, [2, 1, 12, 10, 11, 13]);
    assert_eq!(shop.get("/pages?limit=10").await.header("link"), None);
    // The same rows with another page behind them are not the same response.
    let whole = shop.get("/pages?limit=6").await;
    let product = json!({ "id": 14, "sku": "SKU-14", "name": "x", "price": 1 });
    shop.send("POST", "/products", product).await;
    let more = shop.get("/pages?limit=6").await;
    assert_eq!(whole.body, more.body);
    assert!(more.header("link").is_some() && whole.header("etag") != more.header("etag"));
}

async fn a_result_is_never_cut(shop: Shop) {
    assert_eq!(shop.get("/few").await.json(), json!([{ "id": 1 }, { "id": 2 }]));
    let third = json!({ "id": 3, "sku": "THIRD", "name": "x", "price": 1 });
    shop.send("POST", "/products", third).await;
    shop.get("/few").await.assert_problem(500, "result_too_large");
}

async fn a_header_that_counts_is_one_that_responses_vary_on(shop: Shop) {
    for (id, note) in [(1, "ann"), (2, "bob")] {
        let order = json!({ "id": id, "product": 1, "note": note });
        assert_eq!(shop.send("POST", "/orders", order).await.status, 204);
    }
    let ask = |who: &str| Request::get("/notes").header("X-Who", who);
    let ann = shop.gateway.send(&ask("ann")).await;
    assert_eq!(ann.json(), json!([{ "id": 1 }]));
    let named = ann.header_all("vary").join(",").to_ascii_lowercase();
    assert!(named.contains("x-who"), "{named}");
    assert_eq!(shop.gateway.send(&ask("bob")).await.json(), json!([{ "id": 2 }]));
    let again = shop.gateway.send(&ask("ann")).await;
    assert_eq!((again.x_cache().as_str(), again.json()), ("HIT", json!([{ "id": 1 }])));
}

async fn values_are_bound_and_never_spliced(shop: Shop) {
    let before = shop.get("/products").await.body;
    let texts =
        ["' OR 1=1 --", "'; DROP TABLE orders; --", "''; SELECT 1", "$1", ":id", "?1", "%s", "\""];
    for (id, text) in texts.iter().enumerate() {
        let order = json!({ "id": id, "product": 1, "note": text });
        assert_eq!(shop.send("POST", "/orders", order).await.status, 204, "{text}");
        let found = shop.gateway.send(&Request::get("/notes").header("X-Who", *text)).await;
        assert_eq!(found.json(), json!([{ "id": id }]), "{text} is what it is");
        let escaped: String = text.bytes().map(|byte| format!("%{byte:02X}")).collect();
        let refused = shop.get(&format!("/products/{escaped}")).await;
        refused.assert_problem(400, "invalid_parameters");
        let refused = shop.get(&format!("/products?sort={escaped}")).await;
        refused.assert_problem(422, "unprocessable");
    }
    assert_eq!(shop.get("/products").await.body, before);
}

/// Lists are the one thing that the two do not write alike.
async fn a_list_is_bound_whole(shop: Shop) {
    let found = shop.get("/some?ids=2,1&ids=77").await;
    assert_eq!(found.json(), json!([{ "id": 1 }, { "id": 2 }]), "{}", found.text());
    assert_eq!(shop.get("/some?ids=").await.json(), json!([]));
    assert_eq!(shop.get("/some").await.json(), json!([]), "without any it is NULL");
    shop.get("/some?ids=1,x").await.assert_problem(400, "invalid_parameters");
    let skus = Request::post("/some", r#"{ "skus": ["LAMP", "it's", "{\"}"] }"#)
        .header("Content-Type", "application/json");
    assert_eq!(shop.gateway.send(&skus).await.json(), json!([{ "id": 1 }]));
}

fn lists(condition: [&str; 2]) -> String {
    let [ids, skus] = condition;
    format!(
        r#"{ROUTES}
  - name: some
    path: /some
    methods: [GET]
    params: {{ ids: "query integer[] optional" }}
    sql: {{ read: "SELECT id FROM products WHERE id {ids} ORDER BY id" }}
  - name: some-by-sku
    path: /some
    methods: [POST]
    params: {{ skus: "body text[]" }}
    sql: {{ read: "SELECT id FROM products WHERE sku {skus} ORDER BY id" }}
"#
    )
}

#[tokio::test]
async fn a_list_is_an_array_for_postgresql() {
    let routes = lists(["= ANY(:ids)", "= ANY(:skus)"]);
    a_list_is_bound_whole(Shop::on_postgres(&routes, SCHEMA).await).await;
}

#[tokio::test]
async fn a_list_is_json_for_sqlite() {
    let each = |name: &str| format!("IN (SELECT value FROM json_each(:{name}))");
    let routes = lists([&each("ids"), &each("skus")]);
    a_list_is_bound_whole(Shop::on_sqlite(&routes, SCHEMA).await).await;
}
