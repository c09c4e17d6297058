//! What an SQL route takes from a request, and what it refuses.

use std::rc::Rc;

use actix_http::{
    Payload, Request,
    header::{CONTENT_ENCODING, HeaderName, IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE},
};
use bytes::{Bytes, BytesMut};
use futures_util::StreamExt as _;

use crate::{
    cache::{self, key::Parts},
    problem::{Code, Members},
    routes::{Access, Action, ParamSource, Route, SqlRule},
    server::{observe::UpstreamPart, origin::BodyGuard, pipeline::Routed},
    sql::{Call, Input, Mistakes},
    telemetry::RequestId,
};

/// One request for an SQL route.
pub struct Visit {
    pub request: Request,
    pub request_id: RequestId,
    pub routed: Routed,
    pub part: Rc<UpstreamPart>,
}

/// Why a request is not carried out.
pub struct Refusal {
    pub code: Code,
    pub members: Members,
    /// Whether a part of its body is left unread.
    pub unread: bool,
}

impl Refusal {
    pub fn plain(code: Code) -> Self {
        Self { code, members: Members::new(), unread: false }
    }

    fn with(code: Code, name: &'static str, value: impl Into<serde_json::Value>) -> Self {
        Self { members: vec![(name, value.into())], ..Self::plain(code) }
    }
}

impl Visit {
    pub fn route(&self) -> &Route {
        &self.routed.snapshot.table.routes[self.routed.index]
    }

    pub fn rule(&self) -> Option<&SqlRule> {
        match &self.route().action {
            Action::Sql(rule) => Some(rule),
            Action::Proxy { .. } | Action::Respond { .. } => None,
        }
    }

    /// Whether responses may be stored, or a success invalidates some.
    pub fn is_cached(&self) -> bool {
        self.route().cache.is_some() || !self.route().invalidates.is_empty()
    }

    pub fn cache_request(&self) -> cache::serve::Request<'_> {
        let head = self.request.head();
        cache::serve::Request {
            method: &head.method,
            headers: head.headers(),
            parts: Parts {
                host: &self.routed.host,
                path: &self.routed.path,
                query: self.routed.query.as_deref(),
                route: &self.route().name,
                scope: "",
            },
            tenant: "",
        }
    }

    /// Reads the values of the statement's parameters.
    pub fn call(&self, rule: &SqlRule, body: &[u8]) -> Result<Call, Refusal> {
        let Routed { path, params, query, .. } = &self.routed;
        let names = self.route().path.names();
        let placeholder = |name: &str| {
            let index = names.iter().position(|known| **known == *name)?;
            decoded(params.get(index, path)?)
        };
        let input = Input {
            path: &placeholder,
            // As it is in the key: what is not in the key must have no part in the response.
            query: query.as_deref(),
            headers: self.request.head().headers(),
            body,
            caller: None,
        };
        Call::read(rule, &input).map_err(|mistakes| match mistakes {
            Mistakes::NoCaller => Refusal::plain(Code::CallerUnknown),
            Mistakes::MediaType => Refusal::plain(Code::UnsupportedMediaType),
            Mistakes::Values { mistakes, readable } => {
                let code = if readable { Code::Unprocessable } else { Code::InvalidParameters };
                let errors = serde_json::to_value(mistakes).unwrap_or_default();
                Refusal::with(code, "errors", errors)
            }
        })
    }
}

/// Refuses a write under a condition that nobody would judge: there is no representation to hold it
/// against. A statement that takes the field as a parameter judges it itself.
pub fn preconditions(visit: &Visit, rule: &SqlRule) -> Result<(), Refusal> {
    if rule.access == Access::Read {
        return Ok(());
    }
    let taken = |name: &HeaderName| {
        rule.params.iter().any(|param| param.source == ParamSource::Header(name.clone()))
    };
    let headers = visit.request.head().headers();
    let unjudged = [IF_MATCH, IF_NONE_MATCH, IF_UNMODIFIED_SINCE]
        .into_iter()
        .find(|name| headers.contains_key(name) && !taken(name));
    match unjudged {
        Some(name) => {
            let detail = format!("{name} has no meaning here");
            Err(Refusal::with(Code::PreconditionFailed, "detail", detail))
        }
        None => Ok(()),
    }
}

/// Reads the body, where the statement takes something of it.
pub async fn body(visit: &Visit, rule: &SqlRule, payload: Payload) -> Result<Bytes, Refusal> {
    if !Call::needs_body(rule) {
        return Ok(Bytes::new());
    }
    let head = visit.request.head();
    if head.headers().get(CONTENT_ENCODING).is_some_and(|coding| coding != "identity") {
        let refusal = Refusal::with(Code::UnsupportedMediaType, "detail", "Content-Encoding");
        return Err(Refusal { unread: true, ..refusal });
    }
    let guard = BodyGuard::default();
    let door = visit.routed.door.as_ref();
    let mut payload = guard.limit(payload, visit.route().max_body, door);
    let mut whole = BytesMut::new();
    while let Some(chunk) = payload.next().await {
        match chunk {
            Ok(chunk) if whole.is_empty() && whole.capacity() == 0 => whole = chunk.into(),
            Ok(chunk) => whole.extend_from_slice(&chunk),
            Err(_) => {
                // Without a fault the connection broke, and nobody will read the answer.
                let fault = guard.violation().or_else(|| door?.body_fault());
                let code = fault.unwrap_or(Code::MalformedRequest);
                return Err(Refusal { unread: true, ..Refusal::plain(code) });
            }
        }
    }
    Ok(whole.freeze())
}

/// A placeholder's value without its percent-encoding; `None` if that is no text.
fn decoded(value: &str) -> Option<String> {
    let mut bytes = Vec::with_capacity(value.len());
    let mut rest = value.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        let escaped = match (first, tail) {
            (b'%', [high, low, ..]) => digit(*high).zip(digit(*low)),
            _ => None,
        };
        match escaped {
            Some((high, low)) => {
                bytes.push(high << 4 | low);
                rest = &tail[2..];
            }
            None => {
                bytes.push(first);
                rest = tail;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

fn digit(byte: u8) -> Option<u8> {
    char::from(byte).to_digit(16).map(|digit| digit as u8)
}

#[cfg(test)]
mod tests {
    use super::decoded;

    #[test]
    fn placeholders_are_decoded_once_and_only_as_utf_8() {
        assert_eq!(decoded("plain-7").as_deref(), Some("plain-7"));
        assert_eq!(decoded("a%20b+%C3%B6").as_deref(), Some("a b+ö"));
        assert_eq!(decoded("%2541").as_deref(), Some("%41"));
        assert_eq!(decoded("%4").as_deref(), Some("%4"));
        assert_eq!(decoded("%FF"), None);
    }
}
