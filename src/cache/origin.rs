//! Where a response comes from when the cache has none: an upstream, or a handler.
//!
//! The cache neither knows nor cares which. Whoever puts a cache in front of something implements
//! [`Origin`] for one request to it.

use std::{pin::Pin, rc::Rc};

use actix_http::{
    StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use bytes::Bytes;
use futures_util::{Stream, StreamExt as _, future::LocalBoxFuture};

use crate::problem::{Code, Problem};

/// One request, ready to be sent to its origin.
pub trait Origin {
    /// Sends the request and resolves when the response's header section has arrived.
    ///
    /// It is called once at most: what the request is made of may move into it. Dropping the future
    /// gives the request up.
    fn fetch(&self, ask: Ask) -> LocalBoxFuture<'static, Result<Response, Failure>>;

    /// The same request without its client, for work that goes on when the client has its answer;
    /// `None` when the request cannot be repeated.
    fn detached(&self) -> Option<Rc<dyn Origin>>;

    /// Tags to purge once this request, an unsafe one, has succeeded.
    fn invalidates(&self) -> Vec<String>;

    /// The tags that a stored response will carry.
    fn tags(&self) -> Vec<String>;
}

/// What the cache asks for.
#[derive(Debug, Clone)]
pub enum Ask {
    /// What the client asked, word for word.
    Verbatim,
    /// The whole representation: the client's preconditions are left out, as the cache evaluates
    /// them itself.
    Whole,
    /// Whether what is stored is still good: these preconditions in place of the client's.
    Validate(Vec<(HeaderName, HeaderValue)>),
}

/// A response whose body is still to come.
pub struct Response {
    pub status: StatusCode,
    /// Without hop-by-hop fields.
    pub headers: HeaderMap,
    pub body: Body,
}

/// A response's body.
pub enum Body {
    /// All of it has arrived.
    Whole(Bytes),
    /// The answer to `HEAD`: this many bytes are announced and none will come.
    Unsent(u64),
    /// As it arrives. An error item means that the rest will never come.
    Stream { length: Option<u64>, stream: Pin<Box<dyn Stream<Item = Result<Bytes, Failure>>>> },
}

impl Body {
    /// The number of bytes, as far as it is known before the end.
    pub fn length(&self) -> Option<u64> {
        match self {
            Self::Whole(bytes) => Some(bytes.len() as u64),
            Self::Unsent(length) => Some(*length),
            Self::Stream { length, .. } => *length,
        }
    }

    /// The next bytes.
    pub async fn next(&mut self) -> Option<Result<Bytes, Failure>> {
        match self {
            Self::Whole(bytes) if bytes.is_empty() => None,
            Self::Whole(bytes) => Some(Ok(std::mem::take(bytes))),
            Self::Unsent(_) => None,
            Self::Stream { stream, .. } => stream.next().await,
        }
    }
}

/// Why there is no response, or no more of it. Cheap to clone: all who waited for it get it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("the origin gave no usable response: {}", .0.as_str())]
pub struct Failure(pub Code);

impl Problem for Failure {
    fn code(&self) -> Code {
        self.0
    }
}
