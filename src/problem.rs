//! What a client sees when something went wrong: one table from error code to status and title.
//!
//! Modules say what happened in errors of their own and name a [`Code`]; the body follows RFC 9457
//! (`application/problem+json`) and never carries the cause, which goes to the log. A code is part
//! of the public contract: clients match on it, so an existing name never changes its meaning.

use actix_http::{
    Response, StatusCode,
    body::BoxBody,
    header::{CONTENT_TYPE, HeaderValue, RETRY_AFTER},
};
use bytes::Bytes;

/// The media type of such a body.
pub const MEDIA_TYPE: &str = "application/problem+json";

/// A stable name for one kind of failure.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Code {
    /// The request could be read in two ways, or breaks RFC 9112.
    MalformedRequest,
    /// The client sent its request, or a part of it, too slowly.
    RequestTimeout,
    /// The request body is larger than the route allows.
    BodyTooLarge,
    /// The request target is longer than the front door accepts.
    TargetTooLong,
    /// Too many request headers, or too many bytes of them.
    HeadersTooLarge,
    /// `Expect` asks for something other than `100-continue`.
    ExpectationFailed,
    /// No route matches.
    NoRoute,
    /// A route matches the path, but with other methods.
    MethodNotAllowed,
    /// The method is one the gateway never forwards (`CONNECT`, `TRACE`).
    MethodNotImplemented,
    /// The HTTP version is not one the gateway speaks.
    VersionNotSupported,
    /// A limit of the route is used up.
    RateLimited,
    /// `only-if-cached` was asked and nothing usable is stored.
    NotCached,
    /// The upstream could not be reached, or broke off before it answered.
    UpstreamUnreachable,
    /// The upstream answered with something that is not valid HTTP.
    UpstreamInvalid,
    /// The upstream did not answer in time.
    UpstreamTimeout,
    /// No target of the upstream is healthy.
    NoHealthyTarget,
    /// The upstream's circuit breaker is open.
    BreakerOpen,
    /// The gateway is at one of its own limits.
    Overloaded,
    /// The operator's token is missing or wrong.
    Unauthorized,
    /// The operator sent a request the admin API cannot read.
    BadAdminRequest,
    /// The admin API has no such thing, or the database no such row.
    NotFound,
    /// The store that instances share cannot be asked.
    StoreUnavailable,
    /// Parameters are missing or cannot be read as their types.
    InvalidParameters,
    /// The body is in a form that parameters cannot be read from.
    UnsupportedMediaType,
    /// A constraint of the database keeps another row in the way.
    Conflict,
    /// The values can be read, but a rule of the route or of the database does not allow them.
    Unprocessable,
    /// No node of the database can do it now.
    DatabaseUnavailable,
    /// The database did not answer in time.
    DatabaseTimeout,
    /// The write may have happened or not.
    WriteOutcomeUnknown,
    /// The statement gives more than the route allows.
    ResultTooLarge,
    /// The statement takes something of the caller, and nobody is known to be one.
    CallerUnknown,
    /// A condition of the request is not met, or nobody can judge it.
    PreconditionFailed,
    /// Other transactions were in the way, and nothing was done: the same request may succeed.
    TransactionConflict,
    /// The database refused the statement for a reason that is not the client's.
    StatementFailed,
    /// A defect of the gateway itself.
    Internal,
}

impl Code {
    /// The status a client gets.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::MalformedRequest | Self::BadAdminRequest | Self::InvalidParameters => {
                StatusCode::BAD_REQUEST
            }
            Self::Unauthorized | Self::CallerUnknown => StatusCode::UNAUTHORIZED,
            Self::NoRoute | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestTimeout => StatusCode::REQUEST_TIMEOUT,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::TargetTooLong => StatusCode::URI_TOO_LONG,
            Self::HeadersTooLarge => StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE,
            Self::ExpectationFailed => StatusCode::EXPECTATION_FAILED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::Conflict => StatusCode::CONFLICT,
            Self::PreconditionFailed => StatusCode::PRECONDITION_FAILED,
            Self::Unprocessable => StatusCode::UNPROCESSABLE_ENTITY,
            Self::MethodNotImplemented => StatusCode::NOT_IMPLEMENTED,
            Self::VersionNotSupported => StatusCode::HTTP_VERSION_NOT_SUPPORTED,
            Self::UpstreamUnreachable | Self::UpstreamInvalid => StatusCode::BAD_GATEWAY,
            Self::NoHealthyTarget
            | Self::BreakerOpen
            | Self::Overloaded
            | Self::DatabaseUnavailable
            | Self::TransactionConflict
            | Self::WriteOutcomeUnknown
            | Self::StoreUnavailable => StatusCode::SERVICE_UNAVAILABLE,
            Self::NotCached | Self::UpstreamTimeout | Self::DatabaseTimeout => {
                StatusCode::GATEWAY_TIMEOUT
            }
            Self::ResultTooLarge | Self::StatementFailed | Self::Internal => {
                StatusCode::INTERNAL_SERVER_ERROR
            }
        }
    }

    /// The stable name: the `code` member of the body and the `code` field of the access log.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::MalformedRequest => "malformed_request",
            Self::RequestTimeout => "request_timeout",
            Self::BodyTooLarge => "body_too_large",
            Self::TargetTooLong => "target_too_long",
            Self::HeadersTooLarge => "headers_too_large",
            Self::ExpectationFailed => "expectation_failed",
            Self::NoRoute => "no_route",
            Self::MethodNotAllowed => "method_not_allowed",
            Self::MethodNotImplemented => "method_not_implemented",
            Self::VersionNotSupported => "version_not_supported",
            Self::RateLimited => "rate_limited",
            Self::NotCached => "not_cached",
            Self::UpstreamUnreachable => "upstream_unreachable",
            Self::UpstreamInvalid => "upstream_invalid",
            Self::UpstreamTimeout => "upstream_timeout",
            Self::NoHealthyTarget => "no_healthy_target",
            Self::BreakerOpen => "breaker_open",
            Self::Overloaded => "overloaded",
            Self::Unauthorized => "unauthorized",
            Self::BadAdminRequest => "bad_admin_request",
            Self::NotFound => "not_found",
            Self::StoreUnavailable => "store_unavailable",
            Self::InvalidParameters => "invalid_parameters",
            Self::UnsupportedMediaType => "unsupported_media_type",
            Self::Conflict => "conflict",
            Self::Unprocessable => "unprocessable",
            Self::DatabaseUnavailable => "database_unavailable",
            Self::DatabaseTimeout => "database_timeout",
            Self::WriteOutcomeUnknown => "write_outcome_unknown",
            Self::ResultTooLarge => "result_too_large",
            Self::CallerUnknown => "caller_unknown",
            Self::PreconditionFailed => "precondition_failed",
            Self::TransactionConflict => "transaction_conflict",
            Self::StatementFailed => "statement_failed",
            Self::Internal => "internal",
        }
    }

    /// A sentence for people; the same for every occurrence (RFC 9457 section 3.1.4).
    pub const fn title(self) -> &'static str {
        match self {
            Self::MalformedRequest => "The request is not valid HTTP",
            Self::RequestTimeout => "The request did not arrive in time",
            Self::BodyTooLarge => "The request body is too large",
            Self::TargetTooLong => "The request target is too long",
            Self::HeadersTooLarge => "The request headers are too large",
            Self::ExpectationFailed => "The expectation cannot be met",
            Self::NoRoute => "Nothing is routed here",
            Self::MethodNotAllowed => "The method is not allowed here",
            Self::MethodNotImplemented => "The method is not supported",
            Self::VersionNotSupported => "The HTTP version is not supported",
            Self::RateLimited => "Too many requests",
            Self::NotCached => "Nothing usable is cached",
            Self::UpstreamUnreachable => "The upstream cannot be reached",
            Self::UpstreamInvalid => "The upstream sent an invalid response",
            Self::UpstreamTimeout => "The upstream did not answer in time",
            Self::NoHealthyTarget => "No target of the upstream is healthy",
            Self::BreakerOpen => "The upstream is failing and given time to recover",
            Self::Overloaded => "The gateway is overloaded",
            Self::Unauthorized => "A valid token is needed",
            Self::BadAdminRequest => "The admin request cannot be read",
            Self::NotFound => "There is no such thing",
            Self::StoreUnavailable => "The shared store cannot be asked",
            Self::InvalidParameters => "The parameters cannot be read",
            Self::UnsupportedMediaType => "The media type of the body is not supported",
            Self::Conflict => "The request conflicts with what is stored",
            Self::Unprocessable => "The values are not allowed",
            Self::DatabaseUnavailable => "The database is not available",
            Self::DatabaseTimeout => "The database did not answer in time",
            Self::WriteOutcomeUnknown => "It is not known whether the write happened",
            Self::ResultTooLarge => "The result is larger than the route allows",
            Self::CallerUnknown => "The caller has to be known",
            Self::PreconditionFailed => "A condition of the request is not met",
            Self::TransactionConflict => "Other transactions were in the way",
            Self::StatementFailed => "The database refused the statement",
            Self::Internal => "The gateway failed",
        }
    }

    /// How long a client should wait before it tries again, in seconds, where waiting helps.
    pub const fn retry_after(self) -> Option<u32> {
        match self {
            Self::NoHealthyTarget
            | Self::BreakerOpen
            | Self::Overloaded
            | Self::DatabaseUnavailable
            | Self::TransactionConflict => Some(1),
            _ => None,
        }
    }
}

/// An error that can choose what a client sees of it.
pub trait Problem: std::error::Error {
    /// The code that stands for this error outside.
    fn code(&self) -> Code;
}

/// Extension members (RFC 9457 section 3.2).
pub type Members = Vec<(&'static str, serde_json::Value)>;

/// Builds the `application/problem+json` response for `code`.
///
/// `detail` is for the client and must hold nothing internal: what was wrong with *its* request.
pub fn response(code: Code, detail: Option<&str>, request_id: &str) -> Response<BoxBody> {
    let members = detail.map(|detail| ("detail", detail.into())).into_iter().collect();
    with_members(code, members, request_id)
}

/// As [`response`], with members beside the common ones, for which the same holds.
pub fn with_members(code: Code, mut members: Members, request_id: &str) -> Response<BoxBody> {
    let mut response = Response::new(code.status());
    let headers = response.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static(MEDIA_TYPE));
    if let Some(seconds) = code.retry_after() {
        headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
    }
    members.insert(0, ("request_id", request_id.into()));
    response.set_body(BoxBody::new(body(code, members)))
}

/// The body alone, for a response that may be stored and so belongs to no one request.
pub fn body(code: Code, members: Members) -> Bytes {
    let mut body = serde_json::json!({
        "type": "about:blank",
        "title": code.title(),
        "status": code.status().as_u16(),
        "code": code.as_str(),
    });
    for (name, value) in members {
        body[name] = value;
    }
    Bytes::from(body.to_string())
}
