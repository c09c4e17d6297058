//! Moves a body from the origin into a fill, and the finished fill into the store.

use std::{sync::Arc, time::Instant};

use actix_http::header::{HeaderMap, HeaderValue};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{
    Cache, RouteCache,
    clock::Timestamp,
    entry::{self, Entry},
    fill::{End, Share, Writer},
    flight::Leader,
    l1::{Slot, Unshared},
    l2::Stored,
    origin::{Body, Failure},
    remote::{Name, Outcome},
    serve::FILL_PATIENCE,
};
use crate::problem::Code;

/// How long a key is remembered as one whose responses are not shared.
pub(super) const UNSHARED_FOR: std::time::Duration = std::time::Duration::from_secs(10);

/// Tags the origin names itself: `Cache-Tag`, separated by commas, and `Surrogate-Key`, by spaces.
pub(super) fn tags_of(headers: &HeaderMap) -> Vec<String> {
    let listed = |name: &'static str, separator: fn(char) -> bool| {
        headers
            .get_all(name)
            .filter_map(|line: &HeaderValue| line.to_str().ok())
            .flat_map(move |line| line.split(separator))
            .map(str::trim)
            .filter(|tag| !tag.is_empty())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let mut tags = listed("cache-tag", |c| c == ',');
    tags.extend(listed("surrogate-key", |c| c == ' '));
    tags
}

/// Moves a body from the origin into a fill, and the finished fill into the store.
pub(super) struct Pump {
    pub writer: Writer,
    pub cache: Arc<Cache>,
    pub route: Arc<RouteCache>,
    pub tags: Vec<String>,
    pub tenant: String,
    /// Of the response in the second tier, where there is one.
    pub name: Option<Name>,
    pub share: Share,
    /// To the leader, once the fill is abandoned.
    pub rest: mpsc::Sender<Result<Bytes, Failure>>,
    /// Ends when the entry is in the store.
    pub leader: Option<Leader>,
}

impl Pump {
    pub async fn run(mut self, mut body: Body) {
        let fill = Arc::clone(&self.writer.0);
        let max = self.cache.settings.max_object_bytes;
        let mut size = 0u64;
        let began = Instant::now();
        while let Some(item) = body.next().await {
            if began.elapsed() > FILL_PATIENCE {
                // Other instances do not wait for a body that trickles.
                self.leader.as_ref().and_then(Leader::take_lease);
            }
            let chunk = match item {
                Ok(chunk) => chunk,
                Err(failure) => return self.cut(failure),
            };
            size += chunk.len() as u64;
            if fill.length == Some(size) {
                // Stored before it is handed over: whoever has the whole response finds a HIT next.
                let entry = self.store(&[fill.chunks(), vec![chunk.clone()]].concat(), size);
                fill.push(chunk);
                fill.end(End::Stored(entry));
                drop(self.leader);
                // Read to its end, the origin's connection can be used again.
                let _ = body.next().await;
                return;
            }
            let fits = fill.length.is_some() || self.share.take(chunk.len() as u64);
            fill.push(chunk);
            if size > max || !fits {
                return self.abandon(body).await;
            }
        }
        if fill.length.is_some_and(|length| length != size) {
            return self.cut(Failure(Code::UpstreamInvalid));
        }
        let entry = self.store(&fill.chunks(), size);
        fill.end(End::Stored(entry));
    }

    /// For a body that has arrived as a whole.
    pub fn run_at_once(self, body: Bytes) {
        let fill = Arc::clone(&self.writer.0);
        let size = body.len() as u64;
        let entry = self.store(std::slice::from_ref(&body), size);
        fill.push(body);
        fill.end(End::Stored(entry));
    }

    fn store(&self, body: &[Bytes], size: u64) -> Arc<Entry> {
        let fill = &self.writer.0;
        let parts = entry::Parts {
            key: fill.key.borrow(),
            lifetime: fill.lifetime,
            filled_at: fill.filled_at,
            status: fill.status,
            headers: &fill.headers,
            route: &self.route.name,
            tenant: &self.tenant,
            tags: &self.tags,
            compressible: fill.compressible,
        };
        let entry = Arc::new(Entry::pack(&parts, body));
        self.cache.l1.insert(fill.key.borrow(), Slot::Entry(Arc::clone(&entry)));
        if let Some(name) = self.name {
            let (entry, variants) = (Arc::clone(&entry), fill.variants.clone());
            let lease = self.leader.as_ref().and_then(Leader::take_lease);
            self.cache.put(Stored { entry, name, variants, lease });
        }
        self.route.stats.stored.add(1);
        self.route.stats.stored_bytes.add(size);
        entry
    }

    fn cut(self, failure: Failure) {
        self.route.stats.cut.add(1);
        self.route.stats.errors.add(1);
        self.writer.0.end(End::Cut(failure));
    }

    /// Stops storing and goes on for the leader alone.
    async fn abandon(self, mut body: Body) {
        let fill = &self.writer.0;
        self.route.stats.too_large.add(1);
        let mark = Unshared::new(
            fill.key.clone(),
            Timestamp::now().after(UNSHARED_FOR),
            fill.filled_at,
            true,
        );
        self.cache.l1.insert(fill.key.borrow(), Slot::Unshared(Arc::new(mark)));
        fill.end(End::Abandoned);
        if let Some(lease) = self.leader.as_ref().and_then(Leader::take_lease) {
            lease.end(Outcome::Unshared);
        }
        drop(self.leader);
        let mut kept = Some(self.share);
        let mut sent = 0u64;
        while let Some(item) = body.next().await {
            // An error means that the client has gone: so does the origin's connection.
            if self.rest.send(item).await.is_err() {
                return;
            }
            sent += 1;
            // One item fits in between. The second gets through once the first is taken, and that is
            // after everything that was kept: its memory is free again.
            if sent == 2 {
                kept.take();
            }
        }
    }
}
