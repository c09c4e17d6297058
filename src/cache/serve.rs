//! The way of one request through the cache: look up, wait, fetch, validate, store.
//!
//! Decisions are made in [`super::policy`]; this module carries them out. It is in two halves. A
//! hit is answered by [`Cache::hit`] without waiting for anything. Everything else is
//! [`Cache::resolve`].

use std::{rc::Rc, sync::Arc, time::Duration};

use actix_http::{
    Method,
    body::BoxBody,
    header::{HeaderMap, RANGE},
};

use super::{
    Cache, RouteCache,
    clock::Timestamp,
    entry::Entry,
    fetch::Fetch,
    fill::{End, Fill, Reader},
    flight::{Landing, Role},
    key::{Key, Parts},
    l1::{Slot, Unshared},
    origin::{Ask, Failure, Origin},
    policy::{self, Eligibility, RequestControl, Reuse},
    purge::{Expected, Verdict},
    respond::{self, Handling},
};
use crate::{problem::Code, telemetry::metrics::CacheOutcome};

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
struct Found {
    /// Of the variant, where responses vary.
    key: Key,
    entry: Option<(Arc<Entry>, Verdict)>,
    /// The last response was not to be shared: do not wait for the next one.
    unshared: Option<Arc<Unshared>>,
}

/// How long a request waits for the end of a body that it cannot read along: one that trickles for
/// hours must not hold others back.
const FILL_PATIENCE: Duration = Duration::from_secs(2);

/// A request that waited this often for responses it could not use fetches for itself.
const MAX_WAITS: usize = 3;

impl Cache {
    /// Answers from memory, if a fresh response is there.
    #[inline]
    pub fn hit(
        self: &Arc<Self>,
        route: &RouteCache,
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
        if self.ledger.check(&entry) != Verdict::Live {
            return None;
        }
        match policy::reuse(&entry.lifetime, &control, now, false) {
            Reuse::Serve => Some(self.serve(route, request, &entry, now, Handling::HIT)),
            Reuse::ServeStaleWhileRevalidating | Reuse::Validate => None,
        }
    }

    /// Answers a request that [`Cache::hit`] could not.
    ///
    /// # Errors
    ///
    /// When the origin failed and nothing stored may stand in for its response.
    pub async fn resolve(
        self: &Arc<Self>,
        route: &Arc<RouteCache>,
        request: &Request<'_>,
        origin: &Rc<dyn Origin>,
    ) -> Result<Answer, Failure> {
        let control = RequestControl::of(request.headers);
        match policy::eligibility(request.method, request.headers, &control) {
            Eligibility::Lookup => self.look_up(route, request, control, origin).await,
            Eligibility::Bypass(_) => {
                route.stats.bypassed.add(1);
                let handling = Handling::forwarded(CacheOutcome::Bypass, "request");
                self.forward(route, request, origin, handling).await
            }
            Eligibility::Unsafe => {
                route.stats.bypassed.add(1);
                let handling = Handling::forwarded(CacheOutcome::Bypass, "method");
                self.forward(route, request, origin, handling).await
            }
        }
    }

    async fn look_up(
        self: &Arc<Self>,
        route: &Arc<RouteCache>,
        request: &Request<'_>,
        control: RequestControl,
        origin: &Rc<dyn Origin>,
    ) -> Result<Answer, Failure> {
        let primary = request.parts.to_key();
        let mut waits = 0;
        loop {
            let now = Timestamp::now();
            let Found { key, entry, unshared } = self.find(&primary, request.headers, now);
            let settled = unshared.as_ref().is_some_and(|mark| mark.settled);
            let unshared = unshared.is_some();
            let stored = match entry {
                None => None,
                Some((entry, verdict)) => {
                    let soft = verdict == Verdict::SoftlyPurged;
                    match policy::reuse(&entry.lifetime, &control, now, soft) {
                        Reuse::Serve => {
                            return Ok(self.serve(route, request, &entry, now, Handling::HIT));
                        }
                        Reuse::ServeStaleWhileRevalidating => {
                            if self.revalidate(route, request, &primary, &key, &entry, origin) {
                                return Ok(self.serve(
                                    route,
                                    request,
                                    &entry,
                                    now,
                                    Handling::STALE,
                                ));
                            }
                        }
                        Reuse::Validate => {}
                    }
                    Some(entry)
                }
            };
            if control.only_if_cached() {
                return Err(Failure(Code::NotCached));
            }
            // The answer to these is no whole representation, so nobody else can use it.
            let alone = *request.method == Method::HEAD || request.headers.contains_key(RANGE);
            if (alone || settled) && stored.is_none() {
                let handling = Handling::forwarded(CacheOutcome::Miss, "miss");
                return self.forward(route, request, origin, handling).await;
            }
            let fetch = |leader| Fetch {
                cache: Arc::clone(self),
                route: Arc::clone(route),
                primary: primary.clone(),
                key: key.clone(),
                stored: stored.clone(),
                control,
                known_unshared: unshared,
                leader,
            };
            if unshared || alone || waits >= MAX_WAITS {
                let ask = if unshared && stored.is_none() { Ask::Verbatim } else { Ask::Whole };
                return fetch(None).run(request, origin, ask).await;
            }
            let waiter = match self.join(&key, request, origin) {
                Role::Lead(leader) => {
                    return fetch(Some(leader)).run(request, origin, Ask::Whole).await;
                }
                Role::Wait(waiter) => waiter,
            };
            let landing = waiter.landed().await;
            let now = Timestamp::now();
            match landing {
                // The leader vanished: look again, and perhaps lead. That does not count as a wait, or
                // a few clients that hang up would send all the others to the origin at once.
                None => continue,
                Some(Landing::Filling(fill)) => {
                    if fill.answers(&primary, request.headers)
                        && let Some(answer) = self.share(route, request, &fill).await
                    {
                        return Ok(answer);
                    }
                }
                Some(Landing::Validated(entry)) if self.ledger.check(&entry) == Verdict::Live => {
                    route.stats.coalesced.add(1);
                    let handling = Handling {
                        collapsed: true,
                        ..Handling::forwarded(CacheOutcome::Revalidated, "stale")
                    };
                    return Ok(self.serve(route, request, &entry, now, handling));
                }
                // Purged since: look again.
                Some(Landing::Validated(_)) => {}
                Some(Landing::Unshared) => {
                    route.stats.unshared.add(1);
                    return fetch(None).run(request, origin, Ask::Verbatim).await;
                }
                Some(Landing::Failed(failure)) => {
                    route.stats.coalesced.add(1);
                    let down = policy::Failure::Disconnected;
                    return match stored {
                        Some(entry)
                            if policy::stale_on_error(&entry.lifetime, &control, now, down) =>
                        {
                            Ok(self.serve(route, request, &entry, now, Handling::STALE))
                        }
                        _ => Err(failure),
                    };
                }
                Some(Landing::ServerError(status)) => {
                    let error = policy::Failure::Status(status);
                    if let Some(entry) = &stored
                        && policy::stale_on_error(&entry.lifetime, &control, now, error)
                    {
                        route.stats.coalesced.add(1);
                        return Ok(self.serve(route, request, entry, now, Handling::STALE));
                    }
                    return fetch(None).run(request, origin, Ask::Whole).await;
                }
            }
            waits += 1;
        }
    }

    fn join(&self, key: &Key, request: &Request<'_>, origin: &Rc<dyn Origin>) -> Role {
        self.flights.join(key, self.ledger.generation(), |began_at| {
            let expected = Expected {
                key: key.bytes(),
                route: request.parts.route,
                tenant: request.tenant,
                tags: origin.tags(),
            };
            self.ledger.purged_since(began_at, &expected)
        })
    }

    /// What is stored for a request.
    fn find(&self, primary: &Key, headers: &HeaderMap, now: Timestamp) -> Found {
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
    async fn share(
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

    /// Revalidates behind the client's back; `false` when only the request itself can do it.
    fn revalidate(
        self: &Arc<Self>,
        route: &Arc<RouteCache>,
        request: &Request<'_>,
        primary: &Key,
        key: &Key,
        entry: &Arc<Entry>,
        origin: &Rc<dyn Origin>,
    ) -> bool {
        let Some(origin) = origin.detached() else { return false };
        // Somebody is at it already: then there is nothing left to do.
        let Role::Lead(leader) = self.join(key, request, &origin) else { return true };
        let fetch = Fetch {
            cache: Arc::clone(self),
            route: Arc::clone(route),
            primary: primary.clone(),
            key: key.clone(),
            stored: Some(Arc::clone(entry)),
            control: RequestControl::plain(),
            known_unshared: false,
            leader: Some(leader),
        };
        let headers = request.headers.clone();
        let [host, path, route, scope, tenant] = [
            request.parts.host,
            request.parts.path,
            request.parts.route,
            request.parts.scope,
            request.tenant,
        ]
        .map(str::to_owned);
        let query = request.parts.query.map(str::to_owned);
        actix_rt::spawn(async move {
            let request = Request {
                method: &Method::GET,
                headers: &headers,
                parts: Parts {
                    host: &host,
                    path: &path,
                    query: query.as_deref(),
                    route: &route,
                    scope: &scope,
                },
                tenant: &tenant,
            };
            // A failure is counted where it happens; the stale entry stays as it is.
            let _ = fetch.run(&request, &origin, Ask::Whole).await;
        });
        true
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
