//! The operator's side: metrics, purges, and a view of what the gateway is doing.
//!
//! It listens on an address of its own, loopback by default, and asks for a bearer token where one is
//! set. It never passes through the public listener's routes, so no route can shadow it and no
//! client can reach it.

mod cache;
mod data;
mod database;
mod entries;
mod events;
mod guard;

use std::{net::TcpListener, sync::Arc};

use actix_http::header::HeaderMap;
use actix_web::{
    App, HttpResponse, HttpServer,
    dev::Server,
    error::InternalError,
    http::header::CONTENT_TYPE,
    middleware::from_fn,
    web::{self, Data, JsonConfig, QueryConfig},
};
use serde::Serialize;
use tokio_util::sync::CancellationToken;
use tracing_actix_web::TracingLogger;

pub use self::guard::Token;
use crate::{
    cache::{Cache, RouteCache, stats},
    db::Db,
    problem::{self, Code},
    proxy::UpstreamStatus,
    telemetry::{
        metrics::{Exposition, Registry},
        request_id,
    },
};

/// What the admin side can ask of the running gateway.
pub trait Inspect: Send + Sync {
    fn routes(&self) -> Vec<RouteView>;
    fn upstreams(&self) -> Vec<UpstreamStatus>;
    /// The route that a `GET` for a URL takes, or the one of this name, and the query as its key has it.
    fn asked(&self, target: &Target<'_>, headers: &HeaderMap) -> Option<Asked>;
    /// Why the routes file on disk is not in use, if it is not.
    fn refused_routes(&self) -> Option<String>;
}

/// What the operator asks about.
#[derive(Debug)]
pub struct Target<'a> {
    pub host: &'a str,
    pub path: &'a str,
    pub query: Option<&'a str>,
    /// By its name, whatever would match.
    pub route: Option<&'a str>,
}

/// What a request would ask the cache.
#[derive(Debug)]
pub struct Asked {
    pub route: Arc<RouteCache>,
    pub query: Option<String>,
}

/// One route, as the operator sees it.
#[derive(Debug, Serialize)]
pub struct RouteView {
    pub name: String,
    pub path: String,
    pub host: Option<String>,
    /// Empty for every method.
    pub methods: Vec<String>,
    /// The upstream's name; `None` where the gateway itself responds.
    pub upstream: Option<String>,
    pub cache: stats::Snapshot,
}

/// Everything the handlers need.
#[derive(Clone)]
pub struct Context {
    pub cache: Arc<Cache>,
    pub db: Db,
    pub registry: Arc<Registry>,
    pub gateway: Arc<dyn Inspect>,
    pub token: Option<Token>,
    /// Ends what would go on for ever.
    pub stopping: CancellationToken,
}

/// Serves the admin side on `listener`, with one worker.
///
/// # Errors
///
/// When the listener cannot be registered.
pub fn serve(context: Context, listener: TcpListener) -> std::io::Result<Server> {
    let server = HttpServer::new(move || {
        App::new()
            .app_data(Data::new(context.clone()))
            .app_data(JsonConfig::default().error_handler(|error, _| {
                let response = bad_request(&error.to_string());
                InternalError::from_response(error, response).into()
            }))
            .app_data(QueryConfig::default().error_handler(|error, _| {
                let response = bad_request(&error.to_string());
                InternalError::from_response(error, response).into()
            }))
            .wrap(from_fn(guard::check))
            .wrap(TracingLogger::default())
            .route("/metrics", web::get().to(metrics))
            .service(
                web::scope("/admin/v1")
                    .route("/cache/purge", web::post().to(cache::purge))
                    .route("/cache/stats", web::get().to(cache::stats))
                    .route("/cache/entry", web::get().to(entries::entry))
                    .route("/data", web::get().to(data::list))
                    .route("/data", web::delete().to(data::clear))
                    .route("/data/{key:.+}", web::get().to(data::show))
                    .route("/data/{key:.+}", web::delete().to(data::delete))
                    .route("/database", web::get().to(database::show))
                    .route("/database/{node:.+}/drain", web::post().to(database::drain))
                    .route("/database/{node:.+}/undrain", web::post().to(database::undrain))
                    .route("/events", web::get().to(events::follow))
                    .route("/routes", web::get().to(routes))
                    .route("/upstreams", web::get().to(upstreams)),
            )
            .default_service(web::to(|| async { problem(Code::NotFound, None) }))
    })
    .workers(1)
    .disable_signals()
    .shutdown_timeout(2)
    .listen(listener)?;
    Ok(server.run())
}

async fn metrics(context: Data<Context>) -> HttpResponse {
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, Exposition::CONTENT_TYPE))
        .body(context.registry.render())
}

async fn routes(context: Data<Context>) -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({
        "routes": context.gateway.routes(),
        "refused": context.gateway.refused_routes(),
    }))
}

async fn upstreams(context: Data<Context>) -> HttpResponse {
    HttpResponse::Ok().json(serde_json::json!({ "upstreams": context.gateway.upstreams() }))
}

fn problem(code: Code, detail: Option<&str>) -> HttpResponse {
    problem::response(code, detail, request_id::accept_or_new(None).as_str()).into()
}

fn bad_request(detail: &str) -> HttpResponse {
    problem(Code::BadAdminRequest, Some(detail))
}
