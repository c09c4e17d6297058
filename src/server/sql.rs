//! A route that is a statement against the database, as the pipeline and the cache see it.
//!
//! [`answer`] reads what the statement takes from the request, and lets the cache ask for its result
//! where the route has something to do with the cache. A write goes on when its client has gone: what it
//! invalidates must be invalidated once it is done, whoever still waits for that.

mod origin;
mod request;

use std::{rc::Rc, sync::Arc};

use actix_http::{
    ConnectionType, Payload, Request, Response,
    body::BoxBody,
    header::{HeaderValue, WWW_AUTHENTICATE},
};

use self::{
    origin::SqlOrigin,
    request::{Refusal, Visit},
};
use super::{Shared, observe::Exchange, pipeline::Routed};
use crate::{
    cache::{
        Cache,
        clock::Timestamp,
        origin::{Failure, Origin},
        purge::{Mode, Selector},
        serve::Answer,
    },
    problem::{Code, Members},
    proxy,
    routes::{Access, SqlRule},
    sql::Call,
    telemetry::metrics::CacheOutcome,
};

/// Answers a request for the route of `rule`.
pub async fn answer(
    shared: &Shared,
    request: Request,
    payload: Payload,
    mut exchange: Exchange,
    routed: Routed,
) -> Response<BoxBody> {
    let head = request.head();
    exchange.client = proxy::client_ip(head, routed.peer.ip(), &shared.trusted_proxies);
    let (request_id, part) = (exchange.request_id(), exchange.upstream());
    let visit = Rc::new(Visit { request, request_id, routed, part });
    let (response, outcome) = match read(&visit, payload).await {
        Ok(call) => run(shared, &visit, call, &exchange).await,
        Err(refusal) => (refused(refusal, &exchange), CacheOutcome::None),
    };
    let running = visit.routed.snapshot.running(visit.routed.index);
    exchange.done(visit.request.head(), running.into(), response, outcome)
}

/// Reads what the statement takes.
async fn read(visit: &Visit, payload: Payload) -> Result<Call, Refusal> {
    let Some(rule) = visit.rule() else { return Err(Refusal::plain(Code::Internal)) };
    request::preconditions(visit, rule)?;
    let body = request::body(visit, rule, payload).await?;
    visit.call(rule, &body)
}

fn refused(refusal: Refusal, exchange: &Exchange) -> Response<BoxBody> {
    let mut response = exchange.problem_with(refusal.code, refusal.members);
    if refusal.code == Code::CallerUnknown {
        // A 401 has to say how one becomes known (RFC 9110 section 15.5.2).
        response.headers_mut().insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    if refusal.unread {
        response.head_mut().set_connection_type(ConnectionType::Close);
    }
    response
}

/// Gets the result from the cache or the database.
async fn run(
    shared: &Shared,
    visit: &Rc<Visit>,
    call: Call,
    exchange: &Exchange,
) -> (Response<BoxBody>, CacheOutcome) {
    let floor = shared.positions.floor(visit.request.head(), Timestamp::now().seconds());
    let origin = Rc::new(SqlOrigin::new(shared.db.clone(), Rc::clone(visit), call, floor));
    let resolved = match visit.rule() {
        Some(SqlRule { access: Access::Write, .. }) => {
            let written = actix_rt::spawn(write(
                Arc::clone(&shared.cache),
                Rc::clone(visit),
                Rc::clone(&origin),
            ));
            // A panic, which the panic hook has reported.
            written.await.unwrap_or(Err(Failure(Code::Internal)))
        }
        _ => {
            let running = visit.routed.snapshot.running(visit.routed.index);
            let asked: Rc<dyn Origin> = Rc::<SqlOrigin>::clone(&origin);
            if visit.is_cached() {
                shared.cache.resolve(&running.cache, &visit.cache_request(), &asked).await
            } else {
                shared.cache.pass(&running.cache, &asked).await
            }
        }
    };
    match resolved {
        Ok(Answer { mut response, outcome }) => {
            if let Some(position) = origin.written() {
                let (secure, now) = (visit.routed.secure, Timestamp::now().seconds());
                shared.positions.put(response.headers_mut(), position, secure, now);
            }
            if let Some(code) = origin.problem() {
                exchange.note(code);
            }
            (response, outcome)
        }
        Err(Failure(code)) => {
            let members = origin.failure().and_then(|it| it.constraint).map(constraint);
            let response = exchange.problem_with(code, members.unwrap_or_default());
            (response, CacheOutcome::None)
        }
    }
}

/// Writes, and invalidates what was written.
async fn write(
    cache: Arc<Cache>,
    visit: Rc<Visit>,
    origin: Rc<SqlOrigin>,
) -> Result<Answer, Failure> {
    let running = visit.routed.snapshot.running(visit.routed.index);
    let asked: Rc<dyn Origin> = Rc::<SqlOrigin>::clone(&origin);
    let written = cache.resolve(&running.cache, &visit.cache_request(), &asked).await;
    if written.is_err() && origin.failure().is_some_and(|failure| failure.may_have_written()) {
        let tags: Vec<_> = asked.invalidates().into_iter().map(Selector::Tag).collect();
        if !tags.is_empty() {
            cache.purge(&tags, Mode::Hard).await;
        }
    }
    written
}

/// The member that names the constraint which stood against a write.
fn constraint(name: String) -> Members {
    vec![("constraint", name.into())]
}
