//! `portway demo`: a sample origin on loopback, a gateway in front of it, and what to try.

use std::{
    collections::HashMap,
    ffi::OsString,
    future::Future,
    net::{Ipv4Addr, SocketAddr, TcpListener},
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
use serde::Deserialize;
use serde_json::json;

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
  - name: about
    path: /about
    respond: { status: 200, headers: { Content-Type: text/plain }, body: "This is Portway's demo.\n" }
"#;

/// A running demo.
pub struct Demo {
    app: App,
    origin: ServerHandle,
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
    /// When no port can be opened on loopback.
    pub async fn start() -> anyhow::Result<Self> {
        let (origin, address) = start_origin()?;
        let [port, admin_port] = PORTS.map(|port| {
            let free = TcpListener::bind((Ipv4Addr::LOCALHOST, port)).is_ok();
            if free { port } else { 0 }
        });
        let settings = Settings(HashMap::from([
            ("HOST", "127.0.0.1".to_owned()),
            ("PORT", port.to_string()),
            ("ADMIN_PORT", admin_port.to_string()),
        ]));
        let config = Config::from_source(&settings)?;
        let text = ROUTES.replace("ORIGIN", &format!("http://{address}"));
        let table = RouteTable::parse("demo routes", &text, &settings)?;
        Ok(Self { app: App::build(config, table)?, origin })
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
             curl -i http://{gateway}/api/products/1      # MISS: the fresh read after it\n\n  \
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
