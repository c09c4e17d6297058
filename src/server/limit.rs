//! The rate limit: whom a request counts for, and what a refused one is answered.
//!
//! Without Redis, and while it is away, the decision is there at once, and so a hit stays one that waits
//! for nothing. Otherwise Redis is asked first.

use actix_http::{RequestHead, Response, body::BoxBody};

use super::{Shared, observe::Exchange};
use crate::{
    limits::{Decision, Identity, RouteLimits, fields::Fields},
    problem::Code,
    proxy,
};

/// What the limits of a route say of a request.
pub enum Verdict {
    Passes,
    /// With this answer.
    Refused(Response<BoxBody>),
}

/// Holds a request against the limits of its route; `None` if Redis has to be asked, with [`ask`].
///
/// Once that is decided every response of the exchange tells how the client stands.
pub fn check(
    shared: &Shared,
    limits: &RouteLimits,
    head: &RequestHead,
    exchange: &mut Exchange,
) -> Option<Verdict> {
    exchange.client = proxy::client_ip(head, exchange.client, &shared.trusted_proxies);
    let decision = shared.limits.decide_now(limits, &identity(exchange))?;
    Some(verdict(limits, &decision, exchange))
}

/// Has Redis decide about a request that [`check`] could not.
pub async fn ask(shared: &Shared, limits: &RouteLimits, exchange: &mut Exchange) -> Verdict {
    let decision = shared.limits.decide(limits, &identity(exchange)).await;
    verdict(limits, &decision, exchange)
}

/// There are no callers yet; the client's address is known since [`check`].
fn identity(exchange: &Exchange) -> Identity<'static> {
    Identity { caller: None, tenant: None, ip: exchange.client }
}

fn verdict(limits: &RouteLimits, decision: &Decision, exchange: &mut Exchange) -> Verdict {
    exchange.limits = Some(Fields::of(limits, decision));
    match decision.allowed() {
        true => Verdict::Passes,
        false => Verdict::Refused(exchange.problem(Code::RateLimited, None)),
    }
}
