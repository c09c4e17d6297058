//! Answers what is no hit: looks further, waits, and goes to the origin.
//!
//! [`Cache::look_up`] is a loop over what is known. Each round looks into the first tier and then takes
//! one step: serve, ask the second tier, wait for somebody who fetches already, or fetch.

use std::{rc::Rc, sync::Arc};

use actix_http::{Method, header::RANGE};

use super::{
    Cache, RouteCache,
    clock::Timestamp,
    entry::Entry,
    fetch::Fetch,
    flight::{Landing, Leader, Role},
    key::{Key, Parts},
    l1::{Slot, Unshared},
    l2::{Question, Turn},
    origin::{Ask, Failure, Origin},
    policy::{self, Eligibility, RequestControl, Reuse},
    pump::UNSHARED_FOR,
    purge::{Expected, Verdict},
    remote::Outcome,
    respond::Handling,
    serve::{Answer, Found, Request},
};
use crate::{problem::Code, telemetry::metrics::CacheOutcome};

/// A request that waited this often for responses it could not use fetches for itself.
const MAX_WAITS: usize = 3;

impl Cache {
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
        let question =
            Question { route, tenant: request.tenant, primary: &primary, headers: request.headers };
        // The answer to these is no whole representation, so nobody else can use it.
        let alone = *request.method == Method::HEAD || request.headers.contains_key(RANGE);
        let mut waits = 0;
        // While this request leads, the others for the same response wait for it.
        let mut leading: Option<Leader> = None;
        // What the second tier said, unless there is a reason to ask it again.
        let mut consulted = None;
        let mut asked = false;
        loop {
            let now = Timestamp::now();
            let Found { key, entry, unshared } = self.find(&primary, request.headers, now);
            leading.take_if(|leader| *leader.key() != key);
            let settled = unshared.as_ref().is_some_and(|mark| mark.settled);
            let unshared = unshared.is_some();
            let reuse = entry.as_ref().map(|(entry, verdict)| {
                let soft = *verdict == Verdict::SoftlyPurged;
                policy::reuse(&entry.lifetime, &control, now, soft)
            });
            // What the second tier has just said is good enough for this request, however short the
            // lifetime of L1.
            let covered = consulted.is_some()
                || entry.as_ref().is_none_or(|(entry, _)| self.covers(entry, now));
            let stored = entry.map(|(entry, _)| entry);
            match (&stored, reuse) {
                (Some(entry), Some(Reuse::Serve)) if covered => {
                    return Ok(self.serve(route, request, entry, now, Handling::HIT));
                }
                (Some(entry), Some(Reuse::ServeStaleWhileRevalidating))
                    if covered
                        && self.revalidate(route, request, &primary, &key, entry, origin) =>
                {
                    return Ok(self.serve(route, request, entry, now, Handling::STALE));
                }
                _ => {}
            }
            let l2 = self.l2.as_ref().filter(|l2| !unshared && l2.is_usable(now));
            if let Some(l2) = l2
                && !asked
            {
                // One asks for all that would wait anyway.
                let by_itself = alone || control.only_if_cached();
                if leading.is_none()
                    && !by_itself
                    && let Role::Lead(leader) = self.join(&key, request, origin)
                {
                    leading = Some(leader);
                }
                if leading.is_some() || by_itself {
                    asked = true;
                    consulted = self.consult(l2, &question).await.ok();
                    continue;
                }
            }
            if control.only_if_cached() {
                return Err(Failure(Code::NotCached));
            }
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
                unverified: !covered && reuse == Some(Reuse::Serve),
                control,
                known_unshared: unshared,
                leader,
            };
            if unshared || alone || waits >= MAX_WAITS {
                let ask = if unshared && stored.is_none() { Ask::Verbatim } else { Ask::Whole };
                return fetch(leading.take()).run(request, origin, ask).await;
            }
            let role = match leading.take() {
                Some(leader) => Role::Lead(leader),
                None => self.join(&key, request, origin),
            };
            let waiter = match role {
                Role::Lead(leader) => {
                    let turn = match (l2, &consulted) {
                        (Some(l2), Some(consulted)) => l2.turn(consulted).await,
                        _ => Turn::Lead(None),
                    };
                    match turn {
                        Turn::Lead(lease) => {
                            if let Some(lease) = lease {
                                leader.hold(lease);
                            }
                            return fetch(Some(leader)).run(request, origin, Ask::Whole).await;
                        }
                        Turn::Landed(Outcome::Stored | Outcome::Vanished) => {
                            (asked, consulted, leading) = (false, None, Some(leader));
                            waits += 1;
                        }
                        Turn::Landed(Outcome::Unshared) => {
                            self.remember_unshared(&key, now);
                            leader.announce(Landing::Unshared);
                            drop(leader);
                            route.stats.unshared.add(1);
                            return fetch(None).run(request, origin, Ask::Verbatim).await;
                        }
                        Turn::Landed(Outcome::Failed(code)) => {
                            return fetch(Some(leader)).failed(request, Failure(code));
                        }
                    }
                    continue;
                }
                Role::Wait(waiter) => waiter,
            };
            let landing = waiter.landed().await;
            let now = Timestamp::now();
            match landing {
                // The leader vanished, or found it in the second tier: look again, and perhaps lead.
                // That does not count as a wait, or a few clients that hang up would send all the
                // others to the origin at once.
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
                    return match fetch(None).stand_in(now, down) {
                        Some(entry) => Ok(self.serve(route, request, &entry, now, Handling::STALE)),
                        None => Err(failure),
                    };
                }
                Some(Landing::ServerError(status)) => {
                    let error = policy::Failure::Status(status);
                    if let Some(entry) = fetch(None).stand_in(now, error) {
                        route.stats.coalesced.add(1);
                        return Ok(self.serve(route, request, &entry, now, Handling::STALE));
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

    /// Remembers what another instance found out.
    fn remember_unshared(&self, key: &Key, now: Timestamp) {
        let until = now.after(UNSHARED_FOR);
        let mark = Unshared::new(key.clone(), until, self.ledger.generation(), false);
        self.l1.insert(key.borrow(), Slot::Unshared(Arc::new(mark)));
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
            unverified: false,
            control: RequestControl::plain(),
            known_unshared: false,
            leader: Some(leader),
        };
        let owned = Owned::of(request);
        actix_rt::spawn(async move {
            if fetch.is_needed(&owned.borrow()).await {
                // A failure is counted where it happens; the stale entry stays as it is.
                let _ = fetch.run(&owned.borrow(), &origin, Ask::Whole).await;
            }
        });
        true
    }

    /// Asks the second tier behind the client's back.
    pub(super) fn consult_beside(self: &Arc<Self>, route: &Arc<RouteCache>, request: &Request<'_>) {
        let (this, route, owned) = (Arc::clone(self), Arc::clone(route), Owned::of(request));
        actix_rt::spawn(async move {
            let request = owned.borrow();
            let primary = request.parts.to_key();
            if let Some(l2) = &this.l2 {
                let headers = request.headers;
                let question =
                    Question { route: &route, tenant: request.tenant, primary: &primary, headers };
                // Failed, it is asked again when a request has to wait for it.
                let _ = this.consult(l2, &question).await;
            }
        });
    }
}

impl Fetch {
    /// Whether the origin has to be asked for a stale entry: no other instance has done so or is about
    /// to.
    async fn is_needed(&self, request: &Request<'_>) -> bool {
        let Some(l2) = self.cache.l2.as_ref().filter(|l2| l2.is_usable(Timestamp::now())) else {
            return true;
        };
        let consulted = self.cache.consult(l2, &self.question(request)).await;
        let now = Timestamp::now();
        let found = self.cache.find(&self.primary, request.headers, now).entry;
        if found.is_some_and(|(entry, verdict)| {
            verdict == Verdict::Live && entry.lifetime.is_fresh(now)
        }) {
            return false;
        }
        let Ok(consulted) = consulted else { return true };
        let Ok(lease) = l2.try_lead(&consulted).await else { return false };
        if let (Some(leader), Some(lease)) = (&self.leader, lease) {
            leader.hold(lease);
        }
        true
    }
}

/// A request that outlives its client.
struct Owned {
    headers: actix_http::header::HeaderMap,
    /// Host, path, route, scope, tenant.
    texts: [String; 5],
    query: Option<String>,
}

impl Owned {
    fn of(request: &Request<'_>) -> Self {
        let Parts { host, path, query, route, scope } = request.parts;
        Self {
            headers: request.headers.clone(),
            texts: [host, path, route, scope, request.tenant].map(str::to_owned),
            query: query.map(str::to_owned),
        }
    }

    fn borrow(&self) -> Request<'_> {
        let [host, path, route, scope, tenant] = &self.texts;
        let query = self.query.as_deref();
        Request {
            method: &Method::GET,
            headers: &self.headers,
            parts: Parts { host, path, query, route, scope },
            tenant,
        }
    }
}
