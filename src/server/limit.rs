//! The rate limit: whom a request counts for, and what a refused one is answered.

use actix_http::{RequestHead, Response, body::BoxBody};

use super::{Shared, observe::Exchange};
use crate::{
    limits::{Identity, RouteLimits, fields::Fields},
    problem::Code,
    proxy,
};

/// Holds a request against the limits of its route; the answer if it is refused.
///
/// From here on every response of the exchange tells how the client stands.
pub fn check(
    shared: &Shared,
    limits: &RouteLimits,
    head: &RequestHead,
    exchange: &mut Exchange,
) -> Option<Response<BoxBody>> {
    exchange.client = proxy::client_ip(head, exchange.client, &shared.trusted_proxies);
    let identity = Identity { caller: None, tenant: None, ip: exchange.client };
    let decision = shared.limits.decide(limits, &identity);
    exchange.limits = Some(Fields::of(limits, &decision));
    (!decision.allowed()).then(|| exchange.problem(Code::RateLimited, None))
}
