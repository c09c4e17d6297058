//! Requests that go past the cache, and what an unsafe one invalidates.

use std::rc::Rc;

use actix_http::{StatusCode, header::HeaderMap};

use super::{
    Cache, RouteCache,
    key::Parts,
    origin::{Ask, Failure, Origin},
    passthrough, policy,
    purge::{Mode, Selector},
    respond::Handling,
    serve::{Answer, Request},
};
use crate::telemetry::metrics::CacheOutcome;

impl Cache {
    /// Asks the origin of a route that has nothing to do with the cache: whatever the method, it reads,
    /// and nobody else wants what it gives.
    ///
    /// # Errors
    ///
    /// When the origin failed.
    pub async fn pass(
        &self,
        route: &RouteCache,
        origin: &Rc<dyn Origin>,
    ) -> Result<Answer, Failure> {
        route.stats.bypassed.add(1);
        let response =
            origin.fetch(Ask::Verbatim).await.inspect_err(|_| route.stats.errors.add(1))?;
        Ok(passthrough(response, Handling::forwarded(CacheOutcome::Bypass, "bypass")))
    }

    /// Sends a request past the cache; an unsafe one invalidates what it may have changed before
    /// the client is answered.
    pub(super) async fn forward(
        &self,
        route: &RouteCache,
        request: &Request<'_>,
        origin: &Rc<dyn Origin>,
        handling: Handling,
    ) -> Result<Answer, Failure> {
        let response =
            origin.fetch(Ask::Verbatim).await.inspect_err(|_| route.stats.errors.add(1))?;
        if handling.outcome == CacheOutcome::Miss {
            route.stats.misses.add(1);
        }
        if !request.method.is_safe() {
            self.invalidate_after(request, response.status, &response.headers, origin).await;
        }
        Ok(passthrough(response, handling))
    }

    async fn invalidate_after(
        &self,
        request: &Request<'_>,
        status: StatusCode,
        response: &HeaderMap,
        origin: &Rc<dyn Origin>,
    ) {
        let Parts { host, path, query, .. } = request.parts;
        let query_text = query.map(|query| format!("?{query}")).unwrap_or_default();
        let url = format!("http://{host}{path}{query_text}");
        let mut selectors: Vec<Selector> =
            policy::invalidated(request.method, status, &url, response)
                .into_iter()
                .map(|target| {
                    let (path, query) = match target.split_once('?') {
                        Some((path, query)) => (path.to_owned(), Some(query.to_owned())),
                        None => (target, None),
                    };
                    Selector::Url { host: host.to_owned(), path, query }
                })
                .collect();
        if status.is_success() {
            selectors.extend(origin.invalidates().into_iter().map(Selector::Tag));
        }
        if !selectors.is_empty() {
            self.purge(&selectors, Mode::Hard).await;
        }
    }
}
