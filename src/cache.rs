//! The response cache: correct by RFC 9111 as a shared cache, in memory and in a store that many
//! instances share.
//!
//! | module | |
//! |---|---|
//! | [`policy`] | decisions, as pure functions over header fields and moments |
//! | [`key`] | which stored response a request asks for |
//! | [`entry`], [`l1`] | one stored response; the bounded map of them |
//! | [`l2`] | the second tier, where there are other instances |
//! | [`purge`] | what was invalidated, and since when |
//! | [`coherence`], [`purger`] | how all instances come to know that |
//! | [`data`] | what the gateway itself looks up, kept on the same two tiers |
//! | [`remote`] | the store they share: a trait, and Redis behind it |
//! | `flight`, `fill` | one fetch for many requests; a response on its way into the store |
//! | [`serve`], `resolve`, `fetch`, `pump`, `forward`, `respond` | the way of a request through all that |
//! | [`origin`] | where a response comes from: the trait that whoever uses the cache implements |
//! | [`middleware`] | the cache around actix-web handlers |
//!
//! Two promises shape the code. A response is shared only when its headers say that it may be: what
//! waits for a fetch learns first whether it may have the result. And what was invalidated is never
//! served again, not even by a fill that began before: see [`purge`].

pub mod clock;
pub mod coherence;
mod compress;
pub mod data;
pub mod entry;
mod fetch;
mod fill;
mod flight;
mod forward;
pub mod inspect;
pub mod key;
pub mod l1;
pub mod l2;
pub mod middleware;
pub mod origin;
pub mod policy;
mod pump;
pub mod purge;
pub mod purger;
pub mod remote;
mod resolve;
mod respond;
pub mod serve;
pub mod stats;
#[cfg(test)]
mod tests;

use std::{future::Future, pin::Pin, sync::Arc, task, time::Duration};

use actix_http::{
    body::{BodySize, BoxBody, MessageBody},
    header::{ACCEPT_ENCODING, HeaderMap, HeaderName},
};
use bytes::Bytes;
use futures_util::Stream;

use self::{
    clock::Timestamp,
    coherence::{Coherence, Purged},
    data::DataCache,
    entry::Entry,
    fill::Budget,
    flight::Flights,
    key::KeyRef,
    l1::{L1, Slot, Usage},
    l2::{L2, Varies},
    origin::Failure,
    policy::Rules,
    purge::{Ledger, Mode, Selector, Verdict},
    purger::{Purger, Watch},
    remote::Remote,
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
    pub varies: Varies,
}

/// The cache of a process, shared by its workers.
#[derive(Debug)]
pub struct Cache {
    settings: Settings,
    l1: L1,
    ledger: Arc<Ledger>,
    purger: Arc<Purger>,
    data: Arc<DataCache>,
    flights: Arc<Flights>,
    /// Where there are other instances.
    l2: Option<L2>,
    /// What fills whose length the origin announced may hold together.
    known: Arc<Budget>,
    /// What fills of unknown length may.
    unknown: Arc<Budget>,
}

impl Cache {
    /// A cache by itself.
    pub fn new(settings: Settings) -> Arc<Self> {
        Arc::new(Self::build(settings, Arc::default(), None))
    }

    /// The cache of one instance among several that share `remote`.
    ///
    /// The future keeps it in touch with the others: it has to run as long as the cache is used. An
    /// entry is served for `l1_ttl` at most without asking the second tier.
    pub fn sharing(
        settings: Settings,
        remote: Arc<dyn Remote>,
        l1_ttl: Duration,
    ) -> (Arc<Self>, impl Future<Output = ()>) {
        let ledger = Arc::<Ledger>::default();
        let coherence = Coherence::new(Arc::clone(&remote), Arc::clone(&ledger), l1_ttl);
        let (l2, ended_leases) = L2::new(remote, Arc::clone(&coherence));
        let leases = Arc::clone(&l2.leases).run(ended_leases);
        let this = Arc::new(Self::build(settings, ledger, Some(l2)));
        (this, async move {
            tokio::join!(coherence.follow(), leases);
        })
    }

    fn build(settings: Settings, ledger: Arc<Ledger>, l2: Option<L2>) -> Self {
        let Settings { l1_max_bytes, max_object_bytes } = settings;
        let coherence = l2.as_ref().map(|l2| Arc::clone(&l2.coherence));
        let purger = Arc::new(Purger::new(Arc::clone(&ledger), coherence));
        let store = l2.as_ref().map(|l2| Arc::clone(&l2.remote));
        let budget = |part: u64| Arc::new(Budget::new((l1_max_bytes / part).max(max_object_bytes)));
        Self {
            settings,
            l1: L1::new(l1_max_bytes, max_object_bytes),
            ledger,
            data: Arc::new(DataCache::new(Arc::clone(&purger), store)),
            purger,
            flights: Arc::default(),
            l2,
            known: budget(4),
            unknown: budget(16),
        }
    }

    /// The second tier, where there is one.
    pub fn l2(&self) -> Option<&L2> {
        self.l2.as_ref()
    }

    /// Invalidates what `selectors` name, on all instances.
    ///
    /// See [`Purger::purge`].
    pub async fn purge(&self, selectors: &[Selector], mode: Mode) -> Purged {
        self.purger.purge(selectors, mode).await
    }

    /// Every purge from now on, as this instance applies it.
    pub fn watch(&self) -> Watch {
        self.purger.watch()
    }

    /// The data cache beside it.
    pub fn data(&self) -> &Arc<DataCache> {
        &self.data
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
        self.data.sweep(now);
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
