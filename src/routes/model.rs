//! What a routes file says, checked and resolved: the types the rest of the gateway works with.

use std::{sync::Arc, time::Duration};

use actix_http::{
    Method, StatusCode,
    header::{HeaderName, HeaderValue},
};
use url::Url;

use super::{pattern::PathPattern, sql::SqlText, template::Template};

/// One rule that matches requests.
#[derive(Debug)]
pub struct Route {
    /// Unique in its file; the label in metrics, logs and purges.
    pub name: Arc<str>,
    pub path: PathPattern,
    /// Lower-case host without a port; `None` matches every host.
    pub host: Option<Box<str>>,
    /// Request headers that must be present with exactly these values.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    /// `None` matches every method.
    pub methods: Option<Vec<Method>>,
    pub action: Action,
    /// Changes to the headers that go upstream.
    pub request: HeaderRules,
    /// Changes to the headers that go to the client, made before the response is stored.
    pub response: HeaderRules,
    /// Largest request body in bytes.
    pub max_body: u64,
    /// All of them must let a request through; empty for no limit.
    pub limits: Vec<Limit>,
    /// `None`: by the origin's headers alone.
    pub cache: Option<CacheRule>,
    /// Tags to purge after a request with an unsafe method succeeded.
    pub invalidates: Vec<Template>,
}

/// What answers a request.
#[derive(Debug)]
pub enum Action {
    /// A target of the upstream at this index of [`super::RouteTable::upstreams`].
    Proxy {
        upstream: usize,
        /// The path sent upstream; `None` sends it as it came.
        rewrite: Option<Template>,
    },
    /// A statement against the database.
    Sql(Box<SqlRule>),
    /// A fixed response.
    Respond { status: StatusCode, headers: Vec<(HeaderName, HeaderValue)>, body: bytes::Bytes },
}

/// One statement and what it takes, as declared.
#[derive(Debug, Clone, PartialEq)]
pub struct SqlRule {
    pub access: Access,
    pub text: SqlText,
    /// The one row as an object, or 404; otherwise a list.
    pub one: bool,
    /// More rows than this are an error.
    pub max_rows: u32,
    pub page: Option<Page>,
    pub params: Vec<Param>,
}

/// Which nodes a statement may run on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// A replica that has caught up, or the primary; in a session that refuses writes.
    Read,
    /// The primary.
    Write,
}

/// Pagination by keyset: a page begins after the last row of the one before it.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    /// Columns of the result that order it; together they are unique.
    pub keys: Vec<PageKey>,
    /// Rows of a page where the request names no `limit`.
    pub limit: u32,
    /// The most a request may ask for.
    pub max: u32,
}

/// One column that orders a paginated result.
#[derive(Debug, Clone, PartialEq)]
pub struct PageKey {
    pub column: Box<str>,
    pub kind: ParamType,
    pub descending: bool,
}

/// One named value of a statement.
#[derive(Debug, Clone, PartialEq)]
pub struct Param {
    /// What the statement calls it, without the colon.
    pub name: Box<str>,
    pub source: ParamSource,
    pub kind: ParamType,
    /// A list of values of that type.
    pub array: bool,
    pub presence: Presence,
}

/// Where a value comes from.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ParamSource {
    /// A placeholder of the route's path.
    Path(Box<str>),
    Query(Box<str>),
    Header(HeaderName),
    /// A field of a JSON object or of a form.
    Body(Box<str>),
    CallerId,
    CallerTenant,
}

/// What a value has to be. Bounds include their ends.
#[derive(Debug, Clone)]
pub enum ParamType {
    Integer {
        min: i64,
        max: i64,
    },
    Number {
        min: Option<f64>,
        max: Option<f64>,
    },
    Boolean,
    /// Length in characters.
    Text {
        min: usize,
        max: usize,
        pattern: Option<regex::Regex>,
    },
    Uuid,
    /// RFC 3339.
    Timestamp,
    Date,
    Json,
    Enum(Vec<Box<str>>),
}

impl PartialEq for ParamType {
    /// Patterns are equal when they are written alike.
    fn eq(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Integer { min, max }, Self::Integer { min: other_min, max: other_max }) => {
                (min, max) == (other_min, other_max)
            }
            (Self::Number { min, max }, Self::Number { min: other_min, max: other_max }) => {
                (min, max) == (other_min, other_max)
            }
            (
                Self::Text { min, max, pattern },
                Self::Text { min: other_min, max: other_max, pattern: other_pattern },
            ) => {
                let text = |it: &Option<regex::Regex>| it.as_ref().map(|it| it.as_str().to_owned());
                (min, max) == (other_min, other_max) && text(pattern) == text(other_pattern)
            }
            (Self::Enum(words), Self::Enum(other)) => words == other,
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// What happens where a request has no value.
#[derive(Debug, Clone, PartialEq)]
pub enum Presence {
    Required,
    /// It is NULL.
    Optional,
    /// It is this, written as it would be in a query; checked when the file is read.
    Default(Box<str>),
}

/// Header changes: first `remove`, then `set`.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct HeaderRules {
    pub set: Vec<(HeaderName, HeaderValue)>,
    pub remove: Vec<HeaderName>,
}

/// How many requests are let through in any window of this length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limit {
    /// At least one.
    pub requests: u32,
    /// Whole seconds, at least one.
    pub window: Duration,
    pub by: LimitBy,
}

/// Whose requests count together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitBy {
    Caller,
    Tenant,
    /// The client's address; of IPv6, its /64.
    Ip,
    /// All that the route matches.
    Route,
}

/// How responses of a route are cached, on top of the origin's own directives.
#[derive(Debug, Clone, Default)]
pub struct CacheRule {
    /// Freshness where the origin gives none; `None` takes `REDIS_CACHE_TTL_SECONDS`.
    pub ttl: Option<Duration>,
    /// Lets `ttl` win over `private`, `no-store`, `Set-Cookie` and `Authorization`.
    pub override_origin: bool,
    /// The query parameters that count, sorted; others are not sent upstream. `None`: all.
    pub query: Option<Vec<Box<str>>>,
    /// Request headers to vary on besides those the origin names.
    pub vary: Vec<HeaderName>,
    /// Names a purge can use.
    pub tags: Vec<Template>,
    pub stale_while_revalidate: Option<Duration>,
    pub stale_if_error: Option<Duration>,
    /// Paths (with query) to fetch once at start and after a reload.
    pub warm_paths: Vec<Box<str>>,
}

/// A named group of targets.
#[derive(Debug, Clone, PartialEq)]
pub struct Upstream {
    pub name: Arc<str>,
    /// Base URLs, `http` or `https`.
    pub targets: Vec<Url>,
    pub balance: Balance,
    /// `None`: no active checks, only passive ejection.
    pub health: Option<HealthCheck>,
    pub timeout: Timeouts,
    pub retry: Retry,
    pub breaker: Breaker,
}

/// How a target is chosen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Balance {
    RoundRobin,
    LeastRequests,
    /// By the request's path and query, so that one URL keeps going to one target.
    ConsistentHash,
}

/// Active checks: `GET path`, any 2xx or 3xx is healthy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub path: Box<str>,
    pub interval: Duration,
    pub unhealthy_after: u32,
    pub healthy_after: u32,
}

/// How long the gateway waits for an upstream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// To open a connection, TLS included.
    pub connect: Duration,
    /// From the end of the request to the response's header section.
    pub first_byte: Duration,
    /// Between two chunks of a body, in either direction.
    pub idle: Duration,
}

/// When a request is sent once more, to another target where there is one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Retry {
    /// Attempts in all; 1 never retries.
    pub attempts: u32,
    /// Connect failures count as a reason.
    pub on_connect: bool,
    /// Statuses that count as a reason.
    pub on_status: Vec<u16>,
}

/// When an upstream target is left alone.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Breaker {
    /// Failures in a row, within `window`, that open the breaker.
    pub failures: u32,
    pub window: Duration,
    /// How long it stays open before one request may try again.
    pub open: Duration,
}
