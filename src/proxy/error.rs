//! Why an upstream gave no usable answer, and what a client sees of that.

use std::{io, time::Duration};

use actix_http::error::PayloadError;

use crate::problem::{Code, Problem};

/// Why an upstream gave no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum UpstreamError {
    /// No connection could be opened: refused, no such host, TLS refused.
    #[error("upstream is unreachable")]
    Unreachable(#[source] io::Error),
    /// The gateway itself is out of something that a connection needs; no fault of the upstream.
    #[error("the gateway cannot open another connection")]
    Exhausted(#[source] io::Error),
    /// Opening a connection took longer than `timeout.connect`.
    #[error("upstream took more than {0:?} to accept a connection")]
    ConnectTimeout(Duration),
    /// The connection ended before the answer did, or before there was one.
    #[error("upstream closed the connection before it answered")]
    Closed(#[source] Option<io::Error>),
    /// No header section within `timeout.first_byte`.
    #[error("upstream did not answer within {0:?}")]
    FirstByteTimeout(Duration),
    /// Nothing moved for `timeout.idle` in mid-body.
    #[error("upstream stalled for {0:?}")]
    Stalled(Duration),
    /// The answer breaks RFC 9112, or could be read in two ways.
    #[error("upstream sent an invalid response: {0}")]
    Invalid(&'static str),
    /// The body ended before its announced length.
    #[error("upstream cut the response body short")]
    Truncated(#[source] Option<io::Error>),
    /// The client's body broke off; no fault of the upstream.
    #[error("the request body could not be read")]
    RequestBody(#[source] PayloadError),
    /// The client stopped sending its body; no fault of the upstream.
    #[error("the client sent nothing for {0:?} in the middle of its body")]
    RequestStalled(Duration),
    /// The request cannot be written down without ambiguity.
    #[error("the request cannot be forwarded: {0}")]
    Unsendable(&'static str),
    /// Every target failed its health checks.
    #[error("no target of the upstream is healthy")]
    NoHealthyTarget,
    /// Every healthy target has failed too often of late.
    #[error("the circuit breakers of all targets are open")]
    BreakerOpen,
}

impl UpstreamError {
    /// Whether it was the target's doing, and so counts towards its breaker.
    pub(super) const fn blames_target(&self) -> bool {
        match self {
            Self::Unreachable(_)
            | Self::ConnectTimeout(_)
            | Self::Closed(_)
            | Self::FirstByteTimeout(_)
            | Self::Stalled(_)
            | Self::Invalid(_)
            | Self::Truncated(_) => true,
            Self::RequestBody(_)
            | Self::RequestStalled(_)
            | Self::Unsendable(_)
            | Self::Exhausted(_)
            | Self::NoHealthyTarget
            | Self::BreakerOpen => false,
        }
    }

    /// Why a connection could not be opened.
    pub(super) fn unconnected(error: io::Error) -> Self {
        // ENOMEM, ENFILE, EMFILE, EADDRNOTAVAIL, ENOBUFS
        match error.raw_os_error() {
            Some(12 | 23 | 24 | 99 | 105) => Self::Exhausted(error),
            _ => Self::Unreachable(error),
        }
    }

    /// Whether no connection could be opened, so that nothing was sent.
    pub(super) const fn is_connect(&self) -> bool {
        matches!(self, Self::Unreachable(_) | Self::ConnectTimeout(_))
    }
}

impl Problem for UpstreamError {
    fn code(&self) -> Code {
        match self {
            Self::Unreachable(_) | Self::Closed(_) => Code::UpstreamUnreachable,
            Self::ConnectTimeout(_) | Self::FirstByteTimeout(_) | Self::Stalled(_) => {
                Code::UpstreamTimeout
            }
            Self::Invalid(_) | Self::Truncated(_) => Code::UpstreamInvalid,
            Self::RequestBody(PayloadError::Overflow) => Code::BodyTooLarge,
            Self::RequestBody(PayloadError::Io(error))
                if error.kind() == io::ErrorKind::TimedOut =>
            {
                Code::RequestTimeout
            }
            Self::RequestBody(_) | Self::Unsendable(_) => Code::MalformedRequest,
            Self::RequestStalled(_) => Code::RequestTimeout,
            Self::Exhausted(_) => Code::Overloaded,
            Self::NoHealthyTarget => Code::NoHealthyTarget,
            Self::BreakerOpen => Code::BreakerOpen,
        }
    }
}
