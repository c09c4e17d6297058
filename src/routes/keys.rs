//! Every key of a routes file, declared once.
//!
//! The checker ([`super::check`]), the reader ([`super::fields`]) and the JSON Schema
//! ([`super::schema`]) all go by this table, so that what an editor completes is what the gateway
//! takes.

/// The keys of one kind of map.
#[derive(Debug)]
pub(super) struct Section {
    pub(super) doc: &'static str,
    pub(super) keys: &'static [Key],
}

/// One key and what it takes.
#[derive(Debug)]
pub(super) struct Key {
    pub(super) name: &'static str,
    pub(super) doc: &'static str,
    pub(super) kind: Kind,
    pub(super) required: bool,
}

/// What a value may be.
#[derive(Debug)]
pub(super) enum Kind {
    Text,
    Bool,
    /// A whole number within these bounds.
    Integer(u64, u64),
    /// At least this many milliseconds.
    Duration {
        at_least: u64,
    },
    Size,
    /// One of these words.
    Word(&'static [&'static str]),
    /// One of these words, or a whole number within these bounds.
    WordOrInteger(&'static [&'static str], u64, u64),
    /// A list, not empty if so.
    List {
        of: &'static Kind,
        not_empty: bool,
    },
    /// One map, or a list of at least one and at most this many.
    OneOrMore {
        of: &'static Section,
        at_most: usize,
    },
    /// A map with keys of the user's choice; what one of them is called.
    Named {
        of: &'static Kind,
        what: &'static str,
    },
    Section(&'static Section),
}

const fn key(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, doc, kind, required: false }
}

const fn required(name: &'static str, kind: Kind, doc: &'static str) -> Key {
    Key { name, doc, kind, required: true }
}

const TEXTS: Kind = Kind::List { of: &Kind::Text, not_empty: false };
const SOME_TEXTS: Kind = Kind::List { of: &Kind::Text, not_empty: true };
const HEADERS: Kind = Kind::Named { of: &Kind::Text, what: "header" };
/// A wait of no time at all never succeeds.
const WAIT: Kind = Kind::Duration { at_least: 1 };
const SPAN: Kind = Kind::Duration { at_least: 0 };

/// The whole file.
pub(super) static FILE: Section = Section {
    doc: "Routes of a Portway gateway.",
    keys: &[
        key(
            "upstreams",
            Kind::Named { of: &Kind::Section(&UPSTREAM), what: "upstream" },
            "Named groups of targets that requests are sent to.",
        ),
        required(
            "routes",
            Kind::List { of: &Kind::Section(&ROUTE), not_empty: false },
            "Rules that match requests. The most specific wins: literal segments before {name} \
             before {*rest}, then host, then headers, then order.",
        ),
    ],
};

pub(super) static UPSTREAM: Section = Section {
    doc: "A group of targets.",
    keys: &[
        required(
            "targets",
            SOME_TEXTS,
            "Base URLs, http:// or https://; a path is put before the request's.",
        ),
        key(
            "balance",
            Kind::Word(&["round-robin", "least-requests", "consistent-hash"]),
            "How a target is chosen. Default: round-robin.",
        ),
        key(
            "health",
            Kind::Section(&HEALTH),
            "Active health checks. Default: none, only passive ejection.",
        ),
        key("timeout", Kind::Section(&TIMEOUT), "How long the gateway waits."),
        key("retry", Kind::Section(&RETRY), "When a safe or idempotent request is sent once more."),
        key("breaker", Kind::Section(&BREAKER), "When a failing target is left alone."),
    ],
};

pub(super) static HEALTH: Section = Section {
    doc: "Active health checks: GET, any 2xx or 3xx is healthy.",
    keys: &[
        required("path", Kind::Text, "Path to fetch, after the target's own path."),
        key("interval", Kind::Duration { at_least: 10 }, "Time between two checks. Default: 5s."),
        key(
            "unhealthy_after",
            Kind::Integer(1, 1000),
            "Failed checks in a row that take a target out. Default: 3.",
        ),
        key(
            "healthy_after",
            Kind::Integer(1, 1000),
            "Good checks in a row that bring it back. Default: 2.",
        ),
    ],
};

pub(super) static TIMEOUT: Section = Section {
    doc: "How long the gateway waits for an upstream.",
    keys: &[
        key("connect", WAIT, "To open a connection, TLS included. Default: 2s."),
        key(
            "first_byte",
            WAIT,
            "From the end of the request to the response's headers. Default: 30s.",
        ),
        key("idle", WAIT, "Between two pieces of a body, in either direction. Default: 30s."),
    ],
};

pub(super) static RETRY: Section = Section {
    doc: "When a safe or idempotent request is sent once more.",
    keys: &[
        key("attempts", Kind::Integer(1, 10), "Attempts in all; 1 never retries. Default: 2."),
        key(
            "on",
            Kind::List { of: &Kind::WordOrInteger(&["connect"], 400, 599), not_empty: false },
            "Reasons: connect, or statuses. Default: [connect].",
        ),
    ],
};

pub(super) static BREAKER: Section = Section {
    doc: "When a failing target is left alone.",
    keys: &[
        key(
            "failures",
            Kind::Integer(1, 1_000_000),
            "Failures within the window that open it. Default: 5.",
        ),
        key("window", WAIT, "The window. Default: 10s."),
        key("open", WAIT, "How long it stays open before one request may try again. Default: 5s."),
    ],
};

pub(super) static ROUTE: Section = Section {
    doc: "One rule that matches requests.",
    keys: &[
        required("name", Kind::Text, "Unique in the file; the label in metrics, logs and purges."),
        required(
            "path",
            Kind::Text,
            "Path pattern: {name} takes one segment, {*rest} the rest, also when empty.",
        ),
        key("host", Kind::Text, "Host name without a port. Default: every host."),
        key("headers", HEADERS, "Request headers that must be present with exactly these values."),
        key(
            "methods",
            SOME_TEXTS,
            "Methods. GET takes HEAD too, unless a route of the same path names HEAD. Default: all.",
        ),
        key(
            "upstream",
            Kind::Text,
            "The upstream that answers. Exactly one of upstream, sql and respond.",
        ),
        key(
            "respond",
            Kind::Section(&RESPOND),
            "A fixed response. Exactly one of upstream, sql and respond.",
        ),
        key(
            "sql",
            Kind::Section(&SQL),
            "A statement against the database. Exactly one of upstream, sql and respond.",
        ),
        key(
            "params",
            Kind::Named { of: &Kind::Text, what: "parameter" },
            "The values that a statement takes, by name: where each comes from (path, query, header, \
             body, caller:id, caller:tenant), its type (integer, number, boolean, text, uuid, \
             timestamp, date, json, enum(a,b), arrays of these as integer[]), bounds as 1..200, a \
             /pattern/ for text, and `optional` or `= default`.",
        ),
        key(
            "rewrite",
            Kind::Text,
            "Path sent upstream, with the placeholders of path. Default: the path as it came.",
        ),
        key("request", Kind::Section(&HEADER_RULES), "Changes to the headers that go upstream."),
        key(
            "response",
            Kind::Section(&HEADER_RULES),
            "Changes to the headers that go to the client.",
        ),
        key("max_body", Kind::Size, "Largest request body. Default: 10MiB."),
        key(
            "limit",
            Kind::OneOrMore { of: &LIMIT, at_most: 4 },
            "How many requests are let through, as one limit or a list of limits, all of which must \
             let a request through. Default: no limit.",
        ),
        key(
            "cache",
            Kind::Section(&CACHE),
            "How responses are cached. Default: by the origin's headers alone.",
        ),
        key(
            "invalidates",
            TEXTS,
            "Tags to purge after an unsafe request succeeded, with the placeholders of path.",
        ),
    ],
};

pub(super) static RESPOND: Section = Section {
    doc: "A fixed response.",
    keys: &[
        key("status", Kind::Integer(200, 599), "Status. Default: 200."),
        key("headers", HEADERS, "Response headers."),
        key("body", Kind::Text, "Body. Default: empty."),
    ],
};

pub(super) static SQL: Section = Section {
    doc: "A statement against the database, with `:name` where the values of `params` go.",
    keys: &[
        key("read", Kind::Text, "A SELECT, run where the database refuses writes."),
        key("write", Kind::Text, "A statement that is run once, on the primary."),
        key(
            "one",
            Kind::Bool,
            "The one row as an object, or 404, in place of a list. Default: false.",
        ),
        key(
            "max_rows",
            Kind::Integer(1, 100_000),
            "More rows than this are an error. Default: 1000.",
        ),
        key("page", Kind::Section(&SQL_PAGE), "Pagination by keyset. Default: none."),
    ],
};

pub(super) static SQL_PAGE: Section = Section {
    doc: "Pagination by keyset: `limit` and `after` in the query, `Link` with rel=\"next\" in the response.",
    keys: &[
        required(
            "keys",
            SOME_TEXTS,
            "Columns of the result that order it and together are unique and never null, each with its \
             type: `created_at timestamp desc`, `id integer`.",
        ),
        key(
            "limit",
            Kind::Integer(1, 10_000),
            "Rows of a page where the request names no limit. Default: 50.",
        ),
        key("max", Kind::Integer(1, 10_000), "The most a request may ask for. Default: 200."),
    ],
};

pub(super) static HEADER_RULES: Section = Section {
    doc: "Header changes: first remove, then set.",
    keys: &[
        key("set", HEADERS, "Headers to set, in place of what is there."),
        key("remove", TEXTS, "Headers to remove."),
    ],
};

pub(super) static LIMIT: Section = Section {
    doc: "How many requests are let through in any window of this length; more are answered 429.",
    keys: &[
        required("requests", Kind::Integer(1, 1_000_000_000), "How many."),
        required(
            "window",
            Kind::Duration { at_least: 1000 },
            "The length of the window: whole seconds, at most 366d.",
        ),
        key(
            "by",
            Kind::Word(&["ip", "caller", "tenant", "route"]),
            "Whose requests count together: those of an address (IPv6: of its /64), of a caller, of a \
             tenant, or all that the route matches. Default: ip.",
        ),
    ],
};

pub(super) static CACHE: Section = Section {
    doc: "How responses are cached, on top of the origin's own directives.",
    keys: &[
        key(
            "ttl",
            SPAN,
            "Freshness where the origin gives none. Default: REDIS_CACHE_TTL_SECONDS.",
        ),
        key(
            "override",
            Kind::Bool,
            "Lets ttl win over private, no-store, Set-Cookie and Authorization. Default: false.",
        ),
        key(
            "query",
            TEXTS,
            "The query parameters that count; others are not sent upstream. Default: all.",
        ),
        key("vary", TEXTS, "Request headers to vary on besides those the origin names."),
        key("tags", TEXTS, "Names that a purge can use, with the placeholders of path."),
        key(
            "stale_while_revalidate",
            SPAN,
            "How long a stale response is served while one request refreshes it.",
        ),
        key("stale_if_error", SPAN, "How long a stale response is served when the upstream fails."),
        key(
            "warm",
            Kind::List { of: &Kind::Word(&["deploy"]), not_empty: false },
            "When to fetch ahead: deploy is at start and after a reload.",
        ),
        key(
            "warm_paths",
            SOME_TEXTS,
            "Paths, with query, to fetch ahead. Default: the route's own path, if it has no placeholders.",
        ),
    ],
};
