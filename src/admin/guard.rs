//! Who may use the admin side: whoever brings the token, where one is set.

use std::{fmt, net::IpAddr, sync::Arc};

use actix_web::{
    Error,
    body::BoxBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{AUTHORIZATION, HOST, HeaderValue, ORIGIN, WWW_AUTHENTICATE},
    middleware::Next,
    web::Data,
};
use aws_lc_rs::constant_time::verify_slices_are_equal;

use super::{Context, problem};
use crate::problem::Code;

/// The operator's token. Never shown.
#[derive(Clone)]
pub struct Token(Arc<str>);

impl Token {
    pub fn new(text: &str) -> Self {
        Self(text.into())
    }

    fn is(&self, offered: &[u8]) -> bool {
        verify_slices_are_equal(self.0.as_bytes(), offered).is_ok()
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

/// Whether a request without a token comes from this machine on purpose: a page in the operator's
/// browser could reach the listener through a name that resolves to loopback.
fn is_local(request: &ServiceRequest) -> bool {
    let is_loopback = |authority: &str| {
        let host = authority.rsplit_once(':').map_or(authority, |(host, port)| {
            if port.bytes().all(|byte| byte.is_ascii_digit()) { host } else { authority }
        });
        let ip = host.trim_start_matches('[').trim_end_matches(']').parse::<IpAddr>();
        host.eq_ignore_ascii_case("localhost") || ip.is_ok_and(|ip| ip.is_loopback())
    };
    let text = |name| request.headers().get(name).map(|value| value.to_str().unwrap_or_default());
    text(HOST).is_some_and(is_loopback)
        && text(ORIGIN)
            .is_none_or(|origin| origin.split_once("://").is_some_and(|(_, it)| is_loopback(it)))
}

/// Lets a request pass that brings the token, or, where none is set, one from this machine.
pub async fn check(
    context: Data<Context>,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let offered = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().split_at_checked(7))
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case(b"bearer "))
        .map(|(_, token)| token);
    let allowed = match &context.token {
        None => is_local(&request),
        Some(token) => offered.is_some_and(|offered| token.is(offered)),
    };
    if allowed {
        return next.call(request).await;
    }
    let mut response = problem(Code::Unauthorized, None);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Ok(request.into_response(response))
}
