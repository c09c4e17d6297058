//! A statement as an origin: what it gives, as a response.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    sync::Arc,
    time::Instant,
};

use actix_http::{
    Method, StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_TYPE, ETAG, HeaderMap, HeaderValue, IF_MATCH, LINK, RETRY_AFTER,
        VARY,
    },
};
use aws_lc_rs::digest;
use bytes::Bytes;
use futures_util::{FutureExt as _, future::LocalBoxFuture};

use super::{constraint, request::Visit};
use crate::{
    cache::{
        clock::Timestamp,
        origin::{self as cached, Ask, Body, Origin},
        policy::{self, Precondition},
    },
    db::{Db, Position},
    problem::{self, Code, Members},
    proxy,
    routes::{Access, ParamSource, SqlRule, Template},
    server::{observe::UpstreamPart, position::Floor},
    sql::{self, Call, Freshness, Outcome, Rows},
    telemetry::throttle::Throttle,
};

/// One run of a statement.
#[derive(Clone)]
pub struct SqlOrigin {
    db: Db,
    visit: Rc<Visit>,
    call: Rc<Call>,
    floor: Floor,
    /// Where the write of this run can be read.
    written: Rc<Cell<Option<Position>>>,
    part: Rc<UpstreamPart>,
    /// What the response stands for that this run gave in place of rows.
    problem: Rc<Cell<Option<Code>>>,
    /// What went wrong, beside the code that the cache passes on.
    failure: Rc<RefCell<Option<sql::Failure>>>,
}

impl SqlOrigin {
    pub fn new(db: Db, visit: Rc<Visit>, call: Call, floor: Floor) -> Self {
        let part = Rc::clone(&visit.part);
        let (written, problem, failure) = Default::default();
        Self { db, visit, call: Rc::new(call), floor, written, part, problem, failure }
    }

    /// Where what was written can be read, if it was this request that wrote.
    pub fn written(&self) -> Option<Position> {
        self.written.get()
    }

    /// What the response stands for, if it was this request that ran the statement and it gave no rows.
    pub fn problem(&self) -> Option<Code> {
        self.problem.get()
    }

    /// What went wrong, if it was this request that ran the statement.
    pub fn failure(&self) -> Option<sql::Failure> {
        self.failure.borrow().clone()
    }

    async fn ask(self, ask: Ask) -> Result<cached::Response, cached::Failure> {
        let routed = &self.visit.routed;
        let compiled = routed.snapshot.running(routed.index).sql.as_ref();
        // The table and what belongs to its routes are built together, so both are there.
        let (Some(rule), Some(compiled)) = (self.visit.rule(), compiled) else {
            return Err(cached::Failure(Code::Internal));
        };
        let freshness = Freshness {
            after: self.floor.after,
            // What was read on a replica before a write came there must not be stored after that write
            // has invalidated it.
            strong: self.floor.unverified || self.visit.route().cache.is_some(),
        };
        let started = Instant::now();
        let result = self.call.run(&self.db, rule, compiled, freshness).await;
        self.part.took.set(Some(started.elapsed()));
        match result {
            Ok(outcome) => {
                if rule.access == Access::Write {
                    self.written.set(outcome.position);
                }
                Ok(self.response(rule, outcome, &ask))
            }
            Err(failure) => {
                log(&failure, &self.visit.route().name);
                *self.failure.borrow_mut() = Some(failure.clone());
                // What is stored may stand in for a database that is away, not for a refusal.
                if failure.code.status().is_client_error() {
                    let members = failure.constraint.map(constraint).unwrap_or_default();
                    return Ok(self.answer_with(failure.code, members));
                }
                Err(cached::Failure(failure.code))
            }
        }
    }

    /// What the statement gave.
    fn response(&self, rule: &SqlRule, outcome: Outcome, ask: &Ask) -> cached::Response {
        let json = match outcome.rows {
            Rows::Json(json) => json,
            Rows::Nothing => {
                return self.finish(StatusCode::NO_CONTENT, HeaderMap::new(), Bytes::new());
            }
            Rows::NotFound => return self.answer_with(Code::NotFound, Members::new()),
        };
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
        if rule.access == Access::Write {
            return self.finish(StatusCode::OK, headers, json);
        }
        let routed = &self.visit.routed;
        let link = outcome.next.and_then(|cursor| {
            let query = sql::next_page(routed.query.as_deref(), &cursor);
            HeaderValue::try_from(format!("<{}?{query}>; rel=\"next\"", routed.path)).ok()
        });
        headers.insert(ETAG, entity_tag(&json, link.as_ref()));
        if let Some(link) = link {
            headers.insert(LINK, link);
        }
        for param in &rule.params {
            if let ParamSource::Header(name) = &param.source {
                headers.append(VARY, HeaderValue::from(name.clone()));
            }
        }
        if outcome.behind {
            // It may lie behind a purge that was meant for it. A route may override the one, not the other.
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
            headers.insert(VARY, HeaderValue::from_static("*"));
        } else if self.visit.route().cache.is_none() {
            headers.insert(CACHE_CONTROL, HeaderValue::from_static("private, no-cache"));
        }
        if let Some(status) = self.precondition(&headers, ask) {
            return self.finish(status, headers, Bytes::new());
        }
        self.finish(StatusCode::OK, headers, json)
    }

    /// The status that a condition of the request asks for in place of the result.
    fn precondition(&self, headers: &HeaderMap, ask: &Ask) -> Option<StatusCode> {
        let head = self.visit.request.head();
        let matches = |conditions: &HeaderMap| {
            let (status, now) = (StatusCode::OK, Timestamp::now());
            policy::precondition(&Method::GET, conditions, status, headers, now)
                == Precondition::NotModified
        };
        match ask {
            Ask::Whole => None,
            Ask::Verbatim if !head.method.is_safe() => None,
            Ask::Verbatim => {
                let own = headers.get(ETAG);
                let fails = head.headers().contains_key(IF_MATCH)
                    && !head.headers().get_all(IF_MATCH).any(|line| lists(line, own));
                if fails {
                    return Some(StatusCode::PRECONDITION_FAILED);
                }
                matches(head.headers()).then_some(StatusCode::NOT_MODIFIED)
            }
            Ask::Validate(validators) => {
                let conditions: HeaderMap = validators.iter().cloned().collect();
                matches(&conditions).then_some(StatusCode::NOT_MODIFIED)
            }
        }
    }

    /// An error that is no failure of the database. It names its request unless it may be stored.
    fn answer_with(&self, code: Code, mut members: Members) -> cached::Response {
        self.problem.set(Some(code));
        if self.visit.route().cache.is_none() {
            members.insert(0, ("request_id", self.visit.request_id.as_str().into()));
        }
        let mut headers = HeaderMap::new();
        headers.insert(CONTENT_TYPE, HeaderValue::from_static(problem::MEDIA_TYPE));
        if let Some(seconds) = code.retry_after() {
            headers.insert(RETRY_AFTER, HeaderValue::from(seconds));
        }
        self.finish(code.status(), headers, problem::body(code, members))
    }

    fn finish(&self, status: StatusCode, mut headers: HeaderMap, body: Bytes) -> cached::Response {
        proxy::headers::apply(&mut headers, &self.visit.route().response);
        let body = if self.visit.request.head().method == Method::HEAD {
            Body::Unsent(body.len() as u64)
        } else {
            Body::Whole(body)
        };
        cached::Response { status, headers, body }
    }

    fn render(&self, templates: &[Template]) -> Vec<String> {
        let routed = &self.visit.routed;
        templates.iter().map(|it| it.render(&routed.params, &routed.path)).collect()
    }
}

impl Origin for SqlOrigin {
    fn fetch(
        &self,
        ask: Ask,
    ) -> LocalBoxFuture<'static, Result<cached::Response, cached::Failure>> {
        self.clone().ask(ask).boxed_local()
    }

    fn detached(&self) -> Option<Rc<dyn Origin>> {
        let (written, part, problem, failure) = Default::default();
        Some(Rc::new(Self { written, part, problem, failure, ..self.clone() }))
    }

    fn invalidates(&self) -> Vec<String> {
        self.render(&self.visit.route().invalidates)
    }

    fn tags(&self) -> Vec<String> {
        let rule = self.visit.route().cache.as_ref();
        rule.map(|rule| self.render(&rule.tags)).unwrap_or_default()
    }
}

/// A strong validator: the same for the same bytes and the same next page.
fn entity_tag(json: &Bytes, link: Option<&HeaderValue>) -> HeaderValue {
    let mut context = digest::Context::new(&digest::SHA256);
    context.update(json);
    if let Some(link) = link {
        // JSON ends before this.
        context.update(b"\n");
        context.update(link.as_bytes());
    }
    let hash = context.finish();
    let mut tag = String::with_capacity(34);
    tag.push('"');
    for byte in &hash.as_ref()[..16] {
        for digit in [byte >> 4, byte & 15] {
            tag.push(char::from_digit(u32::from(digit), 16).unwrap_or('0'));
        }
    }
    tag.push('"');
    // Digits between quotes.
    HeaderValue::try_from(tag).unwrap_or_else(|_| HeaderValue::from_static("\"\""))
}

/// Whether an `If-Match` names this entity tag, which is strong.
fn lists(line: &HeaderValue, own: Option<&HeaderValue>) -> bool {
    let mut tags = line.as_bytes().split(|byte| *byte == b',').map(<[u8]>::trim_ascii);
    tags.any(|tag| tag == b"*" || own.is_some_and(|own| own.as_bytes() == tag))
}

/// A database that is down, or a statement that does not fit, fails every request.
static LOGGED: Throttle = Throttle::new(10);

fn log(failure: &sql::Failure, route: &Arc<str>) {
    if !failure.code.status().is_server_error() {
        return;
    }
    let Some(left_out) = LOGGED.admit(Timestamp::now().seconds()) else { return };
    let (code, state) = (failure.code.as_str(), failure.state.as_deref());
    let said = failure.message.as_deref();
    if failure.is_internal() {
        tracing::error!(%route, code, state, said, left_out, "the statement of a route failed");
    } else {
        tracing::warn!(%route, code, state, left_out, "the database did not answer a route");
    }
}
