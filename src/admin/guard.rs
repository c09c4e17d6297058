//! Who may use the admin side: whoever brings the token, where one is set.

use std::{fmt, sync::Arc};

use actix_web::{
    Error,
    body::BoxBody,
    dev::{ServiceRequest, ServiceResponse},
    http::header::{AUTHORIZATION, HeaderValue, WWW_AUTHENTICATE},
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

/// Lets a request pass that brings the token, or any where none is set.
pub async fn check(
    context: Data<Context>,
    request: ServiceRequest,
    next: Next<BoxBody>,
) -> Result<ServiceResponse<BoxBody>, Error> {
    let offered = request
        .headers()
        .get(AUTHORIZATION)
        .and_then(|value| value.as_bytes().strip_prefix(b"Bearer "));
    let allowed = match &context.token {
        None => true,
        Some(token) => offered.is_some_and(|offered| token.is(offered)),
    };
    if allowed {
        return next.call(request).await;
    }
    let mut response = problem(Code::Unauthorized, None);
    response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    Ok(request.into_response(response))
}
