//! Fetches listed paths at start and after a reload, so that the first client finds a HIT.
//!
//! It hands requests to a gateway of its own, behind the socket: what warms the cache takes the way
//! that every request takes, with the same keys, headers and limits. A host is part of every key;
//! so a listed path is asked for under the route's host, or, where the route has none, under the
//! address the gateway listens on. A listed URL names its host itself.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use actix_http::{
    Method, Request,
    body::MessageBody as _,
    header::{HOST, HeaderValue, USER_AGENT},
};
use actix_service::Service as _;
use futures_util::{StreamExt as _, stream};
use tokio::time::timeout;

use super::{Shared, pipeline::Gateway};
use crate::routes::Route;

/// Paths fetched at the same time.
const AT_ONCE: usize = 8;
/// How long one path may take; it is then left to the first client.
const PATIENCE: Duration = Duration::from_secs(30);

/// Fetches what the routes in use list, beside everything else.
///
/// Has to be called on a thread that runs a local task set.
pub fn spawn(shared: &Arc<Shared>, address: SocketAddr) {
    let targets: Vec<(String, String)> = shared
        .snapshot
        .load()
        .table
        .routes
        .iter()
        .flat_map(|route| targets(route, address))
        .collect();
    if targets.is_empty() {
        return;
    }
    let gateway = Gateway::new(Arc::clone(shared));
    actix_rt::spawn(async move {
        let count = targets.len();
        stream::iter(targets)
            .for_each_concurrent(AT_ONCE, |(host, target)| fetch(&gateway, host, target))
            .await;
        tracing::info!(paths = count, "warmed the cache");
    });
}

/// Host and path of everything a route lists.
fn targets(route: &Route, address: SocketAddr) -> Vec<(String, String)> {
    let host = route.host.as_deref().map_or_else(|| address.to_string(), str::to_owned);
    let listed = route.cache.iter().flat_map(|rule| &rule.warm_paths);
    listed
        .map(|listed| match listed.split_once("://").and_then(|(_, rest)| rest.split_once('/')) {
            Some((host, path)) => (host.to_owned(), format!("/{path}")),
            None => (host.clone(), listed.to_string()),
        })
        .collect()
}

async fn fetch(gateway: &Gateway, host: String, target: String) {
    let mut request = Request::new();
    let head = request.head_mut();
    head.method = Method::GET;
    let (Ok(uri), Ok(host)) = (target.parse(), HeaderValue::try_from(host)) else {
        return tracing::warn!("cannot warm {target}: it is no path");
    };
    head.uri = uri;
    head.headers_mut().insert(HOST, host);
    head.headers_mut().insert(USER_AGENT, HeaderValue::from_static("portway-warm-up"));
    let warmed = timeout(PATIENCE, async {
        let Ok(response) = gateway.call(request).await;
        let (response, mut body) = response.into_parts();
        while let Some(Ok(_)) =
            std::future::poll_fn(|cx| std::pin::Pin::new(&mut body).poll_next(cx)).await
        {}
        response.status()
    })
    .await;
    match warmed {
        Ok(status) if status.is_success() => {}
        Ok(status) => tracing::warn!("cannot warm {target}: answered {status}"),
        Err(_) => tracing::warn!("cannot warm {target}: took longer than {PATIENCE:?}"),
    }
}
