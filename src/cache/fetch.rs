//! One request to the origin, and what becomes of its response: stored, validated or passed on.

use std::{rc::Rc, sync::Arc, time::Duration};

use actix_http::{
    Method, Response, StatusCode,
    body::BoxBody,
    header::{DATE, HeaderMap, HeaderName},
};
use tokio::sync::mpsc;

use super::{
    Cache, RouteCache,
    clock::Timestamp,
    compress,
    entry::{self, Entry},
    fill::{Fill, Reader, Writer},
    flight::{Landing, Leader},
    key::Key,
    l1::{Slot, Unshared, Variants},
    l2::{Question, Stored},
    origin::{self, Ask, Body, Failure, Origin},
    passthrough,
    policy::{self, Decision, Lifetime, Precondition, RequestControl, Rules, Vary},
    pump::{Pump, UNSHARED_FOR, tags_of},
    remote::Name,
    respond::{self, Handling},
    serve::{Answer, Request},
};
use crate::telemetry::metrics::CacheOutcome;

/// A fetch that is about to happen.
pub(super) struct Fetch {
    pub cache: Arc<Cache>,
    pub route: Arc<RouteCache>,
    pub primary: Key,
    pub key: Key,
    /// What is stored and has to be validated.
    pub stored: Option<Arc<Entry>>,
    /// It is fresh, but the second tier could not be asked about it: good enough if the origin fails.
    pub unverified: bool,
    pub control: RequestControl,
    /// Whether it is remembered already that responses for the key are not shared.
    pub known_unshared: bool,
    /// `None` for a fetch that nobody waits for.
    pub leader: Option<Leader>,
}

impl Fetch {
    /// Asks the origin; `ask` is what to ask when there is nothing to validate.
    pub async fn run(
        self,
        request: &Request<'_>,
        origin: &Rc<dyn Origin>,
        ask: Ask,
    ) -> Result<Answer, Failure> {
        // Before the origin is asked: what is purged from here on must not be stored as live.
        let filled_at = self.cache.ledger.generation();
        let validators: Vec<_> = match &self.stored {
            Some(entry) => policy::validators(&entry.header_map()).collect(),
            None => Vec::new(),
        };
        let ask = if validators.is_empty() { ask } else { Ask::Validate(validators) };
        let validating = matches!(ask, Ask::Validate(_));
        let requested_at = Timestamp::now();
        let response = match origin.fetch(ask).await {
            Ok(response) => response,
            Err(failure) => return self.failed(request, failure),
        };
        if validating && response.status == StatusCode::NOT_MODIFIED {
            return Ok(self.validated(request, &response.headers, requested_at, filled_at, origin));
        }
        let status = response.status.as_u16();
        let error = policy::Failure::Status(status);
        if status >= 500
            && let Some(entry) = self.stand_in(Timestamp::now(), error)
        {
            self.announce(Landing::ServerError(status));
            self.route.stats.errors.add(1);
            let handling = Handling { origin_status: Some(status), ..Handling::STALE };
            let handling = Handling { forwarded: Some("stale"), ..handling };
            return Ok(self.cache.serve(&self.route, request, &entry, Timestamp::now(), handling));
        }
        Ok(self.received(request, response, requested_at, filled_at, origin))
    }

    fn announce(&self, landing: Landing) {
        if let Some(leader) = &self.leader {
            leader.announce(landing);
        }
    }

    /// What may be served although the origin failed.
    pub fn stand_in(&self, now: Timestamp, failure: policy::Failure) -> Option<Arc<Entry>> {
        let entry = self.stored.as_ref()?;
        let may =
            self.unverified || policy::stale_on_error(&entry.lifetime, &self.control, now, failure);
        may.then(|| Arc::clone(entry))
    }

    /// The origin cannot be reached.
    pub fn failed(self, request: &Request<'_>, failure: Failure) -> Result<Answer, Failure> {
        self.announce(Landing::Failed(failure));
        self.route.stats.errors.add(1);
        let now = Timestamp::now();
        match self.stand_in(now, policy::Failure::Disconnected) {
            Some(entry) => {
                let handling = Handling { forwarded: Some("stale"), ..Handling::STALE };
                Ok(self.cache.serve(&self.route, request, &entry, now, handling))
            }
            None => Err(failure),
        }
    }

    /// What the second tier is asked for this request.
    pub fn question<'a>(&'a self, request: &Request<'a>) -> Question<'a> {
        Question {
            route: &self.route,
            tenant: request.tenant,
            primary: &self.primary,
            headers: request.headers,
        }
    }

    /// What a response that varies on `variants` is called in the second tier, where there is one.
    fn name(&self, request: &Request<'_>, variants: Option<&Variants>) -> Option<Name> {
        self.cache.l2.as_ref()?;
        Some(self.question(request).name(variants.map(|variants| &variants.names[..])))
    }

    /// The origin says that the stored response is still good (RFC 9111 section 4.3.4).
    fn validated(
        self,
        request: &Request<'_>,
        not_modified: &HeaderMap,
        requested_at: Timestamp,
        filled_at: u64,
        origin: &Rc<dyn Origin>,
    ) -> Answer {
        let now = Timestamp::now();
        let Some(old) = &self.stored else {
            unreachable!("only a fetch with a stored response sends validators of its own")
        };
        let mut headers = old.header_map();
        policy::update(&mut headers, not_modified);
        let decision = policy::decide(
            &Method::GET,
            request.headers,
            old.status(),
            &headers,
            requested_at,
            now,
            &self.rules(now),
        );
        let lifetime = match decision {
            Decision::Store(lifetime) => lifetime,
            // Good for this client, by the origin's word, and for nobody after it.
            Decision::Refuse(_) => old.lifetime,
        };
        // A 304 may say for the first time what the response varies on.
        let variants = match policy::vary(&headers, &self.route.vary) {
            Vary::Names(names) if matches!(decision, Decision::Store(_)) => {
                self.variants(names, request.headers, filled_at)
            }
            Vary::Names(_) | Vary::Star => None,
        };
        let key = match &variants {
            Some(variants) => variants.key_for(&self.primary, request.headers),
            None => self.primary.clone(),
        };
        let parts = self.parts(&key, request, old.status(), &headers, lifetime, filled_at);
        let tags = [origin.tags(), tags_of(&headers)].concat();
        let entry = Entry::pack(
            &entry::Parts { tags: &tags, compressible: old.compressible, ..parts },
            &[old.body()],
        );
        let entry = Arc::new(match old.gzip() {
            Some(gzip) => entry.with_gzip(gzip),
            None => entry,
        });
        if matches!(decision, Decision::Store(_)) {
            self.cache.l1.insert(key.borrow(), Slot::Entry(Arc::clone(&entry)));
            if let Some(name) = self.name(request, variants.as_deref()) {
                let lease = self.leader.as_ref().and_then(Leader::take_lease);
                self.cache.put(Stored { entry: Arc::clone(&entry), name, variants, lease });
            }
            // Otherwise it may not be what the others asked for: they look again.
            if key == self.key {
                self.announce(Landing::Validated(Arc::clone(&entry)));
            }
        } else {
            self.remember_unshared(now, filled_at, true);
            self.announce(Landing::Unshared);
        }
        let handling = Handling {
            origin_status: Some(304),
            ..Handling::forwarded(CacheOutcome::Revalidated, self.reason(now))
        };
        self.cache.serve(&self.route, request, &entry, now, handling)
    }

    /// A whole response came.
    fn received(
        mut self,
        request: &Request<'_>,
        mut response: origin::Response,
        requested_at: Timestamp,
        filled_at: u64,
        origin: &Rc<dyn Origin>,
    ) -> Answer {
        self.route.stats.misses.add(1);
        let received_at = Timestamp::now();
        if !response.headers.contains_key(DATE) {
            // When it came, and not when it is sent once more (RFC 9110 section 6.6.1).
            response.headers.insert(DATE, received_at.to_http_date());
        }
        let reason = self.reason(received_at);
        let handling = Handling::forwarded(CacheOutcome::Miss, reason);
        let decision = policy::decide(
            request.method,
            request.headers,
            response.status,
            &response.headers,
            requested_at,
            received_at,
            &self.rules(received_at),
        );
        let vary = policy::vary(&response.headers, &self.route.vary);
        let (lifetime, names) = match (decision, vary) {
            (Decision::Store(lifetime), Vary::Names(names)) => (lifetime, names),
            (Decision::Refuse(_), _) | (_, Vary::Star) => {
                self.route.stats.refused.add(1);
                // A passing error does not undo what is known about the key, and the answer to
                // `HEAD` says nothing about sharing.
                let telling = self.stored.is_none() || response.status.as_u16() < 500;
                if telling && *request.method == Method::GET {
                    let settled = response.status.as_u16() < 400;
                    self.remember_unshared(received_at, filled_at, settled);
                }
                self.announce(Landing::Unshared);
                return passthrough(response, handling);
            }
        };
        let length = response.body.length();
        let max = self.cache.settings.max_object_bytes;
        let mut share = match length {
            Some(_) => self.cache.known.share(),
            None => self.cache.unknown.share(),
        };
        if length.is_some_and(|length| length > max || !share.take(length)) {
            self.route.stats.too_large.add(1);
            self.remember_unshared(received_at, filled_at, true);
            self.announce(Landing::Unshared);
            return passthrough(response, handling);
        }
        let variants = self.variants(names, request.headers, filled_at);
        let key = match &variants {
            Some(variants) => variants.key_for(&self.primary, request.headers),
            None => self.primary.clone(),
        };
        let compressible = compress::compressible(response.status, &response.headers, length);
        let mut stored_headers = response.headers.clone();
        policy::strip_for_storage(&mut stored_headers);
        let name = self.name(request, variants.as_deref());
        let fill = Arc::new(Fill {
            key,
            status: response.status,
            headers: stored_headers,
            lifetime,
            filled_at,
            length,
            compressible,
            variants,
            state: Default::default(),
        });
        self.announce(Landing::Filling(Arc::clone(&fill)));
        let (rest_sender, rest) = mpsc::channel(1);
        let job = Pump {
            writer: Writer(Arc::clone(&fill)),
            cache: Arc::clone(&self.cache),
            route: Arc::clone(&self.route),
            tags: [origin.tags(), tags_of(&response.headers)].concat(),
            tenant: request.tenant.to_owned(),
            name,
            share,
            rest: rest_sender,
            leader: self.leader.take(),
        };
        let body = match response.body {
            // Nothing to wait for: stored at once, and no task.
            Body::Whole(bytes) => {
                job.run_at_once(bytes.clone());
                BoxBody::new(bytes)
            }
            body => {
                actix_rt::spawn(job.run(body));
                BoxBody::new(Reader::new(Arc::clone(&fill), Some(rest)))
            }
        };
        let mut answer = Response::with_body(response.status, body);
        *answer.headers_mut() = response.headers;
        let handling = Handling { stored: true, ..handling };
        handling.mark(answer.headers_mut(), None);
        if compressible {
            respond::vary_on_coding(answer.headers_mut());
        }
        if respond::is_conditional(request.headers)
            && policy::precondition(
                request.method,
                request.headers,
                fill.status,
                &fill.headers,
                received_at,
            ) == Precondition::NotModified
        {
            answer = respond::not_modified(answer);
        }
        Answer { response: answer, outcome: handling.outcome }
    }

    /// The variants of the primary key, when the response varies or others before it did.
    fn variants(
        &self,
        mut names: Vec<HeaderName>,
        request: &HeaderMap,
        filled_at: u64,
    ) -> Option<Arc<Variants>> {
        let l1 = &self.cache.l1;
        let known = match l1.peek(self.primary.borrow()) {
            Some(Slot::Variants(variants)) => Some(variants),
            Some(Slot::Entry(_) | Slot::Unshared(_)) | None => None,
        };
        if let Some(known) = known {
            let covered = names.iter().all(|name| known.names.contains(name));
            let key = known.key_for(&self.primary, request);
            if covered && (l1.peek(key.borrow()).is_some() || known.admit()) {
                return Some(known);
            }
            // Selecting by more headers than one response needs is only less efficient.
            names.extend(known.names.iter().cloned());
            names.sort_unstable_by(|a, b| a.as_str().cmp(b.as_str()));
            names.dedup();
        }
        if names.is_empty() {
            return None;
        }
        let variants = Arc::new(Variants::new(self.primary.clone(), names, filled_at));
        if self.cache.l2.is_some() {
            self.route.varied(&self.cache.data, &variants.names);
        }
        l1.insert(self.primary.borrow(), Slot::Variants(Arc::clone(&variants)));
        Some(variants)
    }

    fn parts<'a>(
        &'a self,
        key: &'a Key,
        request: &Request<'a>,
        status: StatusCode,
        headers: &'a HeaderMap,
        lifetime: Lifetime,
        filled_at: u64,
    ) -> entry::Parts<'a> {
        entry::Parts {
            key: key.borrow(),
            lifetime,
            filled_at,
            status,
            headers,
            route: &self.route.name,
            tenant: request.tenant,
            tags: &[],
            compressible: false,
        }
    }

    /// Why the origin was asked (RFC 9211 section 2.2).
    fn reason(&self, now: Timestamp) -> &'static str {
        match &self.stored {
            None => "miss",
            // What is stored would have done, but the request wants more.
            Some(entry) if entry.lifetime.is_fresh(now) => "request",
            Some(_) => "stale",
        }
    }

    /// The route's rules, its lifetime up to 5 % shorter or longer, so that what was stored together
    /// does not expire together. A lifetime that the origin gave is not touched.
    fn rules(&self, now: Timestamp) -> Rules {
        let noise = (self.key.borrow().hash() ^ now.0).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 32;
        let spread = |ttl: Duration| {
            // Whole seconds are what counts; rounded down, one second would become none.
            let most = ttl.as_secs() / 20;
            ttl - Duration::from_secs(most) + Duration::from_secs(noise % (2 * most + 1))
        };
        let default_ttl = self.route.rules.default_ttl.map(spread);
        Rules { default_ttl, ..self.route.rules }
    }

    fn remember_unshared(&self, now: Timestamp, filled_at: u64, settled: bool) {
        if self.known_unshared {
            return;
        }
        let until = now.after(UNSHARED_FOR);
        let mark = Unshared::new(self.key.clone(), until, filled_at, settled);
        self.cache.l1.insert(self.key.borrow(), Slot::Unshared(Arc::new(mark)));
    }
}
