//! The public side: accepts connections, and takes each request its way.
//!
//! `pipeline` is that way, in order. What stands before it is [`front_door`], what it needs from a
//! routes file is a [`snapshot`], and `origin` joins the cache to the proxy.

pub mod front_door;
mod health;
mod limit;
pub mod listen;
pub mod metrics;
mod observe;
mod origin;
mod pipeline;
pub mod position;
pub mod snapshot;
mod sql;
pub mod tls;
pub mod warm;

use std::sync::Arc;

use actix_http::{ConnectionType, Response, StatusCode, body::BoxBody};
use arc_swap::ArcSwap;
use ipnet::IpNet;
use tokio_util::sync::CancellationToken;

pub use self::health::Readiness;
use self::{position::Positions, snapshot::Snapshot};
use crate::{cache::Cache, db::Db, limits::Limits, redis::Redis, telemetry::metrics::Registry};

/// What the workers of one process share.
pub struct Shared {
    pub cache: Arc<Cache>,
    pub limits: Limits,
    /// None: this instance shares nothing with others.
    pub redis: Option<Arc<Redis>>,
    pub db: Db,
    pub positions: Positions,
    pub snapshot: ArcSwap<Snapshot>,
    pub trusted_proxies: Vec<IpNet>,
    pub upstream_tls: Arc<rustls::ClientConfig>,
    pub registry: Arc<Registry>,
    pub readiness: Readiness,
    /// Cancelled when the process stops: connections end after their current request.
    pub draining: CancellationToken,
}

impl Shared {
    /// While the process stops, every response announces that it is the last of its connection.
    fn last_if_draining(&self, mut response: Response<BoxBody>) -> Response<BoxBody> {
        if self.readiness.is_draining() && response.status() != StatusCode::SWITCHING_PROTOCOLS {
            response.head_mut().set_connection_type(ConnectionType::Close);
        }
        response
    }
}
