//! The response cache: correct by RFC 9111 as a shared cache, in memory.
//!
//! | module | |
//! |---|---|
//! | [`policy`] | decisions, as pure functions over header fields and moments |
//! | [`key`] | which stored response a request asks for |
//! | [`entry`], [`l1`] | one stored response; the bounded map of them |
//! | [`l2`] | the same in Redis, for all instances |
//! | [`purge`] | what was invalidated, and since when |
//! | `flight`, `fill` | one fetch for many requests; a response on its way into the store |
//! | [`serve`], `fetch`, `pump`, `forward`, `respond` | the way of a request through all that |
//! | [`origin`] | where a response comes from: the trait that whoever uses the cache implements |
//! | [`middleware`] | the cache around actix-web handlers |
//!
//! Two promises shape the code. A response is shared only when its headers say that it may be: what
//! waits for a fetch learns first whether it may have the result. And what was invalidated is never
//! served again, not even by a fill that began before: see [`purge`].

pub mod clock;
mod compress;
pub mod entry;
mod fetch;
mod fill;
mod flight;
mod forward;
pub mod key;
pub mod l1;
pub mod l2;
pub mod middleware;
pub mod origin;
pub mod policy;
mod pump;
pub mod purge;
mod respond;
pub mod serve;
pub mod stats;
#[cfg(test)]
mod tests;

use std::{pin::Pin, sync::Arc, task};

use actix_http::{
    body::{BodySize, BoxBody, MessageBody},
    header::{ACCEPT_ENCODING, HeaderMap, HeaderName},
};
use bytes::Bytes;
use futures_util::Stream;

use self::{
    clock::Timestamp,
    entry::Entry,
    fill::Budget,
    flight::Flights,
    key::KeyRef,
    l1::{L1, Slot, Usage},
    origin::Failure,
    policy::Rules,
    purge::{Ledger, Mode, Selector, Verdict},
    respond::Handling,
    serve::Answer,
    stats::RouteStats,
};

/// Limits of the cache.
#[derive(Debug, Clone, Copy)]
pub struct Settings {
    /// Bytes of memory for stored responses, everything counted.
    pub l1_max_bytes: u64,
    /// The largest body that is stored.
    pub max_object_bytes: u64,
}

/// How one route uses the cache.
#[derive(Debug)]
pub struct RouteCache {
    pub name: Arc<str>,
    pub rules: Rules,
    /// Request headers to vary on besides those that responses name.
    pub vary: Vec<HeaderName>,
    pub stats: Arc<RouteStats>,
}

/// The cache of a process, shared by its workers.
#[derive(Debug)]
pub struct Cache {
    settings: Settings,
    l1: L1,
    ledger: Arc<Ledger>,
    flights: Arc<Flights>,
    /// What fills whose length the origin announced may hold together.
    known: Arc<Budget>,
    /// What fills of unknown length may.
    unknown: Arc<Budget>,
}

impl Cache {
    pub fn new(settings: Settings) -> Arc<Self> {
        let Settings { l1_max_bytes, max_object_bytes } = settings;
        let budget = |part: u64| Arc::new(Budget::new((l1_max_bytes / part).max(max_object_bytes)));
        Arc::new(Self {
            settings,
            l1: L1::new(l1_max_bytes, max_object_bytes),
            ledger: Arc::default(),
            flights: Arc::default(),
            known: budget(4),
            unknown: budget(16),
        })
    }

    /// Invalidates what `selectors` name and returns the number of this purge.
    ///
    /// When it returns, nothing that was stored, or fetched, before is served as fresh again.
    pub fn purge(&self, selectors: &[Selector], mode: Mode) -> u64 {
        self.ledger.purge(selectors, mode)
    }

    /// Frees what no request can use any more: to be called about once a minute.
    pub fn sweep(&self, now: Timestamp) {
        self.l1.sweep(|slot| match slot {
            Slot::Entry(entry) => {
                self.ledger.check(entry) != Verdict::Dead && now < entry.keep_until()
            }
            Slot::Unshared(unshared) => now < unshared.until,
            Slot::Variants(_) => true,
        });
    }

    pub fn usage(&self) -> Usage {
        self.l1.usage()
    }

    /// Purges that are remembered exactly; see [`purge`].
    pub fn remembered_purges(&self) -> usize {
        self.ledger.notes()
    }

    /// Makes the compressed copy of an entry that a client would have liked, off the event loop.
    fn compress_once(self: &Arc<Self>, entry: &Arc<Entry>, request: &HeaderMap) {
        if !compress::accepts_gzip(request.get(ACCEPT_ENCODING)) || !entry.claim_compression() {
            return;
        }
        let (entry, this) = (Arc::clone(entry), Arc::clone(self));
        tokio::task::spawn_blocking(move || {
            let Some(gzip) = compress::gzip(&entry.body()) else { return };
            // What has been purged since concerns the copy as well: it is as old as the original.
            let copy = Arc::new(entry.with_gzip(gzip));
            this.l1.exchange(KeyRef::of(entry.key()), &entry, copy);
        });
    }
}

/// A response passed on as it comes.
fn passthrough(response: origin::Response, handling: Handling) -> Answer {
    let body = match response.body {
        origin::Body::Whole(bytes) => BoxBody::new(bytes),
        origin::Body::Unsent(length) => respond::unsent(length),
        origin::Body::Stream { length, stream } => BoxBody::new(Passing { length, stream }),
    };
    let mut answer = actix_http::Response::with_body(response.status, body);
    *answer.headers_mut() = response.headers;
    handling.mark(answer.headers_mut(), None);
    Answer { response: answer, outcome: handling.outcome }
}

/// A body on its way from the origin to one client.
struct Passing {
    length: Option<u64>,
    stream: Pin<Box<dyn Stream<Item = Result<Bytes, Failure>>>>,
}

impl MessageBody for Passing {
    type Error = Failure;

    fn size(&self) -> BodySize {
        self.length.map_or(BodySize::Stream, BodySize::Sized)
    }

    fn poll_next(
        mut self: Pin<&mut Self>,
        cx: &mut task::Context<'_>,
    ) -> task::Poll<Option<Result<Bytes, Failure>>> {
        self.stream.as_mut().poll_next(cx)
    }
}
