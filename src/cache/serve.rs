//! The way of one request through the cache: look up, wait, fetch, validate, store.
//!
//! Decisions are made in [`super::policy`]; this module and `resolve` carry them out. A hit is
//! answered by [`Cache::hit`] without waiting for anything. Everything else is [`Cache::resolve`].

use std::{sync::Arc, time::Duration};

use actix_http::{
    Method,
    body::BoxBody,
    header::{HeaderMap, RANGE},
};

use super::{
    Cache, RouteCache,
    clock::Timestamp,
    entry::Entry,
    fill::{End, Fill, Reader},
    key::{Key, Parts},
    l1::{Slot, Unshared},
    policy::{self, Eligibility, RequestControl, Reuse},
    purge::Verdict,
    respond::{self, Handling},
};
use crate::telemetry::metrics::CacheOutcome;

/// A request as the cache sees it.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub method: &'a Method,
    pub headers: &'a HeaderMap,
    pub parts: Parts<'a>,
    /// The tenant it belongs to; empty for none.
    pub tenant: &'a str,
}

/// A response, and what the cache had to do with it.
pub struct Answer {
    pub response: actix_http::Response<BoxBody>,
    pub outcome: CacheOutcome,
}

/// What a look-up found.
pub(super) struct Found {
    /// Of the variant, where responses vary.
    pub key: Key,
    pub entry: Option<(Arc<Entry>, Verdict)>,
    /// The last response was not to be shared: do not wait for the next one.
    pub unshared: Option<Arc<Unshared>>,
}

/// How long a request waits for the end of a body that it cannot read along: one that trickles for
/// hours must not hold others back.
pub(super) const FILL_PATIENCE: Duration = Duration::from_secs(2);

impl Cache {
    /// Answers from memory, if a fresh response is there.
    #[inline]
    pub fn hit(
        self: &Arc<Self>,
        route: &Arc<RouteCache>,
        request: &Request<'_>,
        now: Timestamp,
    ) -> Option<Answer> {
        let control = RequestControl::of(request.headers);
        let eligibility = policy::eligibility(request.method, request.headers, &control);
        if !matches!(eligibility, Eligibility::Lookup) {
            return None;
        }
        let entry = match request.parts.with_key(|key| self.l1.find(key))? {
            Slot::Entry(entry) => entry,
            Slot::Variants(variants) => {
                let key = variants.key_for(&request.parts.to_key(), request.headers);
                match self.l1.find(key.borrow())? {
                    Slot::Entry(entry) => entry,
                    Slot::Variants(_) | Slot::Unshared(_) => return None,
                }
            }
            Slot::Unshared(_) => return None,
        };
        if self.ledger.check(&entry) != Verdict::Live || !self.covers(&entry, now) {
            return None;
        }
        match policy::reuse(&entry.lifetime, &control, now, false) {
            Reuse::Serve => {
                self.ask_ahead(route, request, &entry, now);
                Some(self.serve(route, request, &entry, now, Handling::HIT))
            }
            Reuse::ServeStaleWhileRevalidating | Reuse::Validate => None,
        }
    }

    /// Whether `entry` may be served without asking the second tier, if there is one.
    #[inline]
    pub(super) fn covers(&self, entry: &Entry, now: Timestamp) -> bool {
        self.l2.as_ref().is_none_or(|l2| l2.coherence.covers(entry.verified(), now))
    }

    /// Asks the second tier about an entry shortly before that has to be done, so that no request
    /// waits for it.
    #[inline]
    fn ask_ahead(
        self: &Arc<Self>,
        route: &Arc<RouteCache>,
        request: &Request<'_>,
        entry: &Entry,
        now: Timestamp,
    ) {
        if let Some(l2) = &self.l2
            && l2.coherence.is_due(entry.verified(), now)
            && entry.claim_asking()
        {
            self.consult_beside(route, request);
        }
    }

    /// What is stored for a request.
    pub(super) fn find(&self, primary: &Key, headers: &HeaderMap, now: Timestamp) -> Found {
        let (key, slot) = match self.l1.find(primary.borrow()) {
            Some(Slot::Variants(variants)) => {
                let key = variants.key_for(primary, headers);
                let slot = self.l1.find(key.borrow());
                (key, slot)
            }
            slot => (primary.clone(), slot),
        };
        let mut found = Found { key, entry: None, unshared: None };
        match slot {
            Some(Slot::Entry(entry)) => match self.ledger.check(&entry) {
                Verdict::Dead => {}
                verdict => found.entry = Some((entry, verdict)),
            },
            Some(Slot::Unshared(mark)) => found.unshared = Some(mark).filter(|it| now < it.until),
            Some(Slot::Variants(_)) | None => {}
        }
        found
    }

    /// Answers from a stored response and counts it.
    pub(super) fn serve(
        self: &Arc<Self>,
        route: &RouteCache,
        request: &Request<'_>,
        entry: &Arc<Entry>,
        now: Timestamp,
        handling: Handling,
    ) -> Answer {
        match handling.outcome {
            CacheOutcome::Hit => route.stats.hits.add(1),
            CacheOutcome::Stale => route.stats.stale.add(1),
            CacheOutcome::Revalidated => route.stats.revalidated.add(1),
            CacheOutcome::Miss | CacheOutcome::Bypass | CacheOutcome::None => {}
        }
        if entry.compressible && entry.gzip().is_none() {
            self.compress_once(entry, request.headers);
        }
        let response = respond::from_entry(entry, request.method, request.headers, now, handling);
        Answer { response, outcome: handling.outcome }
    }

    /// Shares the response that another request is fetching; `None` when that did not work out and
    /// the request has to look again.
    pub(super) async fn share(
        self: &Arc<Self>,
        route: &RouteCache,
        request: &Request<'_>,
        fill: &Arc<Fill>,
    ) -> Option<Answer> {
        let handling =
            Handling { collapsed: true, ..Handling::forwarded(CacheOutcome::Miss, "miss") };
        // A body of unknown length may turn out too large to keep for others, and a purge since the
        // fill began may concern it: wait until it is stored, and look closely.
        let simple = fill.length.is_some()
            && fill.filled_at == self.ledger.generation()
            && *request.method == Method::GET
            && !respond::is_conditional(request.headers)
            && !request.headers.contains_key(RANGE);
        if simple {
            route.stats.coalesced.add(1);
            return Some(reading_along(fill, handling));
        }
        let ended = tokio::time::timeout(FILL_PATIENCE, fill.ended()).await;
        let Ok(End::Stored(entry)) = ended else { return None };
        if self.ledger.check(&entry) == Verdict::Dead {
            return None;
        }
        route.stats.coalesced.add(1);
        Some(self.serve(route, request, &entry, Timestamp::now(), handling))
    }
}

/// The response of a fill under way, for a client that reads along.
pub(super) fn reading_along(fill: &Arc<Fill>, handling: Handling) -> Answer {
    let body = BoxBody::new(Reader::new(Arc::clone(fill), None));
    let mut response = actix_http::Response::with_body(fill.status, body);
    *response.headers_mut() = fill.headers.clone();
    handling.mark(response.headers_mut(), None);
    if fill.compressible {
        respond::vary_on_coding(response.headers_mut());
    }
    Answer { response, outcome: handling.outcome }
}
