//! `/health/live` and `/health/ready`, for load balancers and orchestrators, and `/health/redis`.
//!
//! Live says that the process answers: nothing that is down elsewhere makes it fail, or an
//! orchestrator would kill the whole fleet for a fault of somebody else. Ready says whether to send
//! requests here, which Redis is no reason against: without it every request is still answered.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU8, AtomicU64, Ordering},
};

use actix_http::{
    Method, RequestHead, Response, StatusCode,
    body::BoxBody,
    header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue},
};
use bytes::Bytes;
use serde_json::json;

use super::Shared;
use crate::{cache::clock::Timestamp, proxy::BreakerState, telemetry::metrics::Exposition};

/// Zero is starting.
const READY: u8 = 1;
const DRAINING: u8 = 2;

/// Whether this instance should get requests, and what is not well.
#[derive(Debug, Default)]
pub struct Readiness {
    state: AtomicU8,
    /// Why the routes file on disk is not the one that serves.
    refused_routes: Mutex<Option<String>>,
    reloads: AtomicU64,
    refused_reloads: AtomicU64,
}

impl Readiness {
    pub fn set_ready(&self) {
        self.state.store(READY, Ordering::Release);
    }

    pub fn set_draining(&self) {
        self.state.store(DRAINING, Ordering::Release);
    }

    pub fn is_draining(&self) -> bool {
        self.state.load(Ordering::Relaxed) == DRAINING
    }

    /// Notes that the routes file was read again; with a reason, that it was refused.
    pub fn reloaded(&self, refused: Option<String>) {
        let count = if refused.is_some() { &self.refused_reloads } else { &self.reloads };
        count.fetch_add(1, Ordering::Relaxed);
        *self.refused_routes.lock().unwrap_or_else(PoisonError::into_inner) = refused;
    }

    pub(super) fn collect(&self, out: &mut Exposition) {
        let reloads = [("applied", &self.reloads), ("refused", &self.refused_reloads)];
        let mut family =
            out.counter("portway_routes_reloads_total", "Times the routes file was read again");
        for (result, count) in reloads {
            family.sample(&[("result", result)], count.load(Ordering::Relaxed));
        }
    }

    pub fn refused_routes(&self) -> Option<String> {
        self.refused_routes.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Answers a health request; `None` for every other.
pub fn answer(shared: &Shared, head: &RequestHead) -> Option<Response<BoxBody>> {
    let path = head.uri.path();
    let health = path.strip_prefix("/api").unwrap_or(path).starts_with("/health/");
    if !health || !matches!(head.method, Method::GET | Method::HEAD) {
        return None;
    }
    match path {
        "/health/live" => Some(json_response(StatusCode::OK, &json!({ "status": "live" }))),
        "/health/ready" => Some(ready(shared)),
        "/health/redis" | "/api/health/redis" => Some(redis(shared)),
        _ => None,
    }
}

/// The link to Redis and, since that is what it is for, the cache.
fn redis(shared: &Shared) -> Response<BoxBody> {
    let health = shared.redis.as_ref().map(|redis| redis.health());
    let (status, text) = match &health {
        None => (StatusCode::OK, "disabled"),
        Some(health) if health.up => (StatusCode::OK, "up"),
        Some(_) => (StatusCode::SERVICE_UNAVAILABLE, "down"),
    };
    let latency = health.as_ref().and_then(|health| health.latency);
    let mut totals = serde_json::Map::new();
    for (_, running) in shared.snapshot.load().routes() {
        for (event, count) in running.cache.stats.snapshot().iter() {
            let total = totals.get(event).and_then(serde_json::Value::as_u64).unwrap_or(0);
            totals.insert(event.to_owned(), (total + count).into());
        }
    }
    let body = json!({
        "status": text,
        "connected": health.as_ref().is_some_and(|health| health.connected),
        "mode": health.as_ref().map(|health| health.mode),
        // Milliseconds.
        "latency": latency.map(|latency| latency.as_secs_f64() * 1000.0),
        "error": health.and_then(|health| health.error),
        "cache": {
            "l1": shared.cache.usage(),
            "l2": shared.cache.l2().map(|l2| l2.stats.snapshot()),
            "totals": totals,
        },
    });
    json_response(status, &body)
}

fn ready(shared: &Shared) -> Response<BoxBody> {
    let readiness = &shared.readiness;
    let (status, text) = match readiness.state.load(Ordering::Acquire) {
        READY => (StatusCode::OK, "ready"),
        DRAINING => (StatusCode::SERVICE_UNAVAILABLE, "draining"),
        _ => (StatusCode::SERVICE_UNAVAILABLE, "starting"),
    };
    let mut degraded = serde_json::Map::new();
    if let Some(reason) = readiness.refused_routes() {
        degraded.insert("routes".into(), reason.into());
    }
    if let Some(health) = shared.redis.as_ref().map(|redis| redis.health())
        && !health.up
    {
        degraded.insert("redis".into(), health.error.unwrap_or_else(|| "connecting".into()).into());
    }
    if let Some(l2) = shared.cache.l2()
        && !l2.is_usable(Timestamp::now())
    {
        degraded.insert("cache".into(), "memory only, not in touch with other instances".into());
    }
    if !shared.db.has_primary() {
        degraded.insert("database".into(), "no primary is known".into());
    }
    let down = shared.snapshot.load().upstreams.status();
    let down: Vec<String> = down
        .iter()
        .filter(|upstream| {
            upstream
                .targets
                .iter()
                .all(|target| !target.healthy || target.breaker == BreakerState::Open)
        })
        .map(|upstream| upstream.name.to_string())
        .collect();
    if !down.is_empty() {
        degraded.insert("upstreams".into(), down.into());
    }
    let mut body = json!({ "status": text });
    if !degraded.is_empty() {
        if status == StatusCode::OK {
            body["status"] = "degraded".into();
        }
        body["degraded"] = degraded.into();
    }
    json_response(status, &body)
}

fn json_response(status: StatusCode, body: &serde_json::Value) -> Response<BoxBody> {
    let mut response = Response::with_body(status, BoxBody::new(Bytes::from(body.to_string())));
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    response
}
