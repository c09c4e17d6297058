//! `portway demo`: a sample origin on loopback, a database that is gone with it, a gateway in front of both,
//! and what to try.

use std::{
    collections::HashMap,
    ffi::OsString,
    future::Future,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    path::PathBuf,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use actix_web::{
    App as Web, HttpResponse, HttpServer, Responder,
    dev::ServerHandle,
    web::{self, Data},
};
use anyhow::Context as _;
use serde::Deserialize;
use serde_json::json;
use sqlx::{Connection as _, Executor as _, SqliteConnection, sqlite::SqliteConnectOptions};

use crate::{
    app::App,
    config::{Config, Source},
    routes::RouteTable,
};

/// Where the demo listens if it can.
const PORTS: [u16; 2] = [8080, 9090];

/// The demo's routes; `ORIGIN` is replaced by the sample origin's address.
const ROUTES: &str = r#"
upstreams:
  shop:
    targets: [ORIGIN]

routes:
  - name: product
    path: /api/products/{id}
    methods: [GET]
    upstream: shop
    cache: { ttl: 60s, tags: [products, "product:{id}"] }
  - name: rename-product
    path: /api/products/{id}
    methods: [PUT]
    upstream: shop
    invalidates: ["product:{id}"]
  - name: stock
    path: /api/stock/{id}
    methods: [GET]
    params: { id: path integer 1.. }
    sql: { read: "SELECT id, name, pieces FROM stock WHERE id = :id", one: true }
    cache: { ttl: 60s, tags: ["stock:{id}"] }
  - name: count-stock
    path: /api/stock/{id}
    methods: [PUT]
    params: { id: path integer 1.., pieces: body integer 0..1000 }
    sql: { write: "UPDATE stock SET pieces = :pieces WHERE id = :id RETURNING id, name, pieces", one: true }
    invalidates: ["stock:{id}"]
  - name: about
    path: /about
    respond: { status: 200, headers: { Content-Type: text/plain }, body: "This is Portway's demo.\n" }
"#;

/// What is in the demo's database.
const SCHEMA: &str = "
CREATE TABLE stock (id INTEGER PRIMARY KEY, name TEXT NOT NULL, pieces INTEGER NOT NULL);
INSERT INTO stock (name, pieces) VALUES ('Lamp', 12), ('Desk', 3), ('Chair', 40);
";

/// A running demo.
pub struct Demo {
    app: App,
    origin: ServerHandle,
    /// Removed when the app is gone.
    _database: Database,
}

/// An embedded database in a directory of its own, which is removed with it.
struct Database {
    directory: PathBuf,
}

impl Database {
    async fn create() -> anyhow::Result<Self> {
        let name = format!("portway-demo-{}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        // Fails if there is something of that name, which somebody else may have put there.
        std::fs::create_dir(&directory)
            .with_context(|| format!("cannot create {}", directory.display()))?;
        let this = Self { directory };
        let options = SqliteConnectOptions::new().filename(this.file()).create_if_missing(true);
        let mut connection = SqliteConnection::connect_with(&options).await?;
        connection.execute(SCHEMA).await?;
        connection.close().await?;
        Ok(this)
    }

    fn file(&self) -> PathBuf {
        self.directory.join("demo.db")
    }
}

impl Drop for Database {
    fn drop(&mut self) {
        // It is in a place for things that may stay behind.
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

struct Settings(HashMap<&'static str, String>);

impl Source for Settings {
    fn get(&self, name: &str) -> Option<OsString> {
        self.0.get(name).map(OsString::from)
    }
}

impl Demo {
    /// Starts the origin and the gateway.
    ///
    /// # Errors
    ///
    /// When no port can be opened on loopback, or no file in the temporary directory.
    pub async fn start() -> anyhow::Result<Self> {
        let (origin, address) = start_origin()?;
        let database = Database::create().await?;
        let [port, admin_port] = PORTS.map(|port| {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            if free { port } else { 0 }
        });
        let settings = Settings(HashMap::from([
            ("HOST", "127.0.0.1".to_owned()),
            ("PORT", port.to_string()),
            ("ADMIN_PORT", admin_port.to_string()),
            ("DATABASE_URL", format!("sqlite://{}", database.file().display())),
        ]));
        let config = Config::from_source(&settings)?;
        let text = ROUTES.replace("ORIGIN", &format!("http://{address}"));
        let table = RouteTable::parse("demo routes", &text, &settings)?;
        Ok(Self { app: App::build(config, table)?, origin, _database: database })
    }

    /// What to try, as lines for a shell.
    pub fn guide(&self) -> String {
        let (gateway, admin) = (self.app.public_address(), self.app.admin_address());
        format!(
            "Portway listens on http://{gateway}, in front of a sample origin that takes 300 ms.\n\
             Try, in another terminal:\n\n  \
             curl -i http://{gateway}/api/products/1      # MISS: fetched from the origin\n  \
             curl -i http://{gateway}/api/products/1      # HIT: from memory, see Age and Cache-Status\n  \
             curl -X PUT 'http://{gateway}/api/products/1?name=Lamp'   # a write, which invalidates\n  \
             curl -i http://{gateway}/api/products/1      # MISS: the fresh read after it\n\n\
             The same without an origin: routes that are SQL, on an embedded database.\n\n  \
             curl -i http://{gateway}/api/stock/1         # MISS: read from the database\n  \
             curl -i http://{gateway}/api/stock/1         # HIT: from memory\n  \
             curl -X PUT http://{gateway}/api/stock/1 -H 'Content-Type: application/json' -d '{{\"pieces\": 11}}'\n  \
             curl -i http://{gateway}/api/stock/1         # MISS: the fresh read after the write\n\n  \
             curl -X POST http://{admin}/admin/v1/cache/purge -H 'Content-Type: application/json' -d '{{\"tag\": \"products\"}}'\n  \
             curl http://{admin}/admin/v1/cache/stats\n  \
             curl http://{admin}/metrics\n\n\
             Stop with Ctrl-C."
        )
    }

    /// Serves until `stop` resolves.
    ///
    /// # Errors
    ///
    /// As [`App::run_until`].
    pub async fn run_until(self, stop: impl Future<Output = ()>) -> anyhow::Result<()> {
        let ended = self.app.run_until(stop).await;
        self.origin.stop(false).await;
        ended
    }
}

/// What the sample origin knows.
#[derive(Default)]
struct Shop {
    names: Mutex<HashMap<u64, String>>,
    requests: AtomicU64,
}

#[derive(Deserialize)]
struct Rename {
    name: String,
}

fn start_origin() -> anyhow::Result<(ServerHandle, SocketAddr)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let address = listener.local_addr()?;
    let shop = Data::new(Shop::default());
    let server = HttpServer::new(move || {
        Web::new().app_data(shop.clone()).service(
            web::resource("/api/products/{id}")
                .route(web::get().to(product))
                .route(web::put().to(rename)),
        )
    })
    .workers(1)
    .disable_signals()
    .listen(listener)?
    .run();
    let handle = server.handle();
    actix_web::rt::spawn(server);
    Ok((handle, address))
}

async fn product(id: web::Path<u64>, shop: Data<Shop>) -> impl Responder {
    actix_web::rt::time::sleep(Duration::from_millis(300)).await;
    shop.describe(*id)
}

async fn rename(
    id: web::Path<u64>,
    rename: web::Query<Rename>,
    shop: Data<Shop>,
) -> impl Responder {
    shop.names().insert(*id, rename.into_inner().name);
    shop.describe(*id)
}

impl Shop {
    fn names(&self) -> std::sync::MutexGuard<'_, HashMap<u64, String>> {
        self.names.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn describe(&self, id: u64) -> HttpResponse {
        let request = self.requests.fetch_add(1, Ordering::Relaxed) + 1;
        let name = self.names().get(&id).cloned().unwrap_or_else(|| format!("Product {id}"));
        HttpResponse::Ok().json(json!({ "id": id, "name": name, "origin_request": request }))
    }
}
