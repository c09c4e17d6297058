//! Fetches listed paths at start and after a reload, so that the first client finds a HIT.
//!
//! It hands requests to a gateway of its own, behind the socket: what warms the cache takes the way
//! that every request takes, with the same keys, headers and limits. A host is part of every key;
//! so a listed path is asked for under the route's host, or, where the route has none, under the
//! address the gateway listens on.

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
    listed.map(|path| (host.clone(), path.to_string())).collect()
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

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::routes::RouteTable;

    /// What is warmed for a route with these lines, as `host target`.
    fn warmed(route: &str) -> Result<Vec<String>, String> {
        let text = format!(
            "upstreams:\n  u: {{ targets: ['http://127.0.0.1:1'] }}\nroutes:\n  - name: a\n    upstream: u\n{route}"
        );
        let env = BTreeMap::<String, String>::new();
        let table =
            RouteTable::parse("r.yaml", &text, &env).map_err(|errors| errors.to_string())?;
        let address = SocketAddr::from(([127, 0, 0, 1], 8080));
        let targets = table.routes.iter().flat_map(|route| targets(route, address));
        Ok(targets.map(|(host, target)| format!("{host} {target}")).collect())
    }

    #[test]
    fn a_path_is_asked_for_under_the_routes_host_or_the_listeners_address() {
        let lines = "    path: /p/{id}\n    cache: { ttl: 60s, warm: [deploy], warm_paths: [/p/1, '/p/2?q=1'] }\n";
        assert_eq!(warmed(lines).unwrap(), ["127.0.0.1:8080 /p/1", "127.0.0.1:8080 /p/2?q=1"]);
        let hosted = format!("    host: api.test\n{lines}");
        assert_eq!(warmed(&hosted).unwrap(), ["api.test /p/1", "api.test /p/2?q=1"]);
    }

    #[test]
    fn a_path_without_placeholders_lists_itself_and_a_cold_route_nothing() {
        let itself = "    path: /news\n    cache: { ttl: 60s, warm: [deploy] }\n";
        assert_eq!(warmed(itself).unwrap(), ["127.0.0.1:8080 /news"]);
        assert_eq!(warmed("    path: /news\n    cache: { ttl: 60s }\n").unwrap(), [""; 0]);
        assert_eq!(warmed("    path: /news\n").unwrap(), [""; 0]);
    }

    #[test]
    fn a_url_is_no_path() {
        let url = "    path: /news\n    cache: { ttl: 60s, warm: [deploy], warm_paths: ['http://b.test/news'] }\n";
        assert!(warmed(url).unwrap_err().contains("does not start with a slash"));
    }
}
