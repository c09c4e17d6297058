//! Many instances, one cache: what one of them fetched the others serve, what is purged through one
//! is gone from all, and Redis between them may vanish at any moment.

pub(crate) mod faults;
mod formats;
pub(crate) mod history;
mod purges;
mod sharing;
mod single_flight;

use serde_json::json;

use crate::lab::{Fleet, Origin, Redis, fleet::Builder};

/// Items that are cached under a tag of their own and written through the gateway; all else is cached.
pub(crate) fn routes(origin: &Origin) -> String {
    format!(
        "
upstreams:
  app: {{ targets: ['{}'] }}
routes:
  - name: item
    path: '/k/{{id}}'
    methods: [GET, HEAD]
    upstream: app
    cache: {{ ttl: 5m, tags: ['k:{{id}}'] }}
  - name: write
    path: '/k/{{id}}'
    methods: [PUT]
    upstream: app
    invalidates: ['k:{{id}}']
  - name: rest
    path: '/{{*rest}}'
    upstream: app
    cache: {{ ttl: 5m }}
",
        origin.url()
    )
}

pub(crate) fn before(origin: &Origin, redis: &Redis) -> Builder {
    Fleet::routing(routes(origin)).redis(redis.url())
}

/// Starts instances that share this Redis, and lets them find each other.
pub(crate) async fn of(count: usize, origin: &Origin, redis: &Redis) -> Fleet {
    let fleet = before(origin, redis).start(count).await;
    fleet.linked().await;
    fleet
}

/// The body of a purge that names this key by its URL.
fn by_key(target: &str) -> serde_json::Value {
    json!({ "key": format!("http://{}{target}", crate::lab::fleet::HOST) })
}
