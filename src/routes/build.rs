//! Builds the routes of a file from its checked tree: resolves names, parses patterns and templates,
//! and refuses what could have no effect.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use actix_http::{Method, StatusCode};
use bytes::Bytes;

use super::{
    fields::Fields,
    headers, keys, limit,
    model::{Action, CacheRule, HeaderRules, Route},
    path,
    pattern::{PathPattern, Segment},
    report::Report,
    sql,
    template::Template,
    upstreams::path_and_query,
    yaml::Node,
};

/// `max_body` where a route gives none: 10 MiB.
pub(super) const DEFAULT_MAX_BODY: u64 = 10 << 20;

/// The names of a file: what routes refer to, and those of the routes so far.
pub(super) struct Names<'n> {
    pub(super) upstreams: HashMap<&'n str, usize>,
    pub(super) routes: HashMap<&'n str, usize>,
}

/// Builds one route; `None` when its mistakes leave nothing to work with.
pub(super) fn route<'n>(
    node: &'n Node,
    names: &mut Names<'n>,
    report: &mut Report<'_>,
) -> Option<Route> {
    let fields = Fields::of(node, &keys::ROUTE);
    let name = fields.text("name");
    if let Some((name, node)) = name {
        check_name(name, "route", node, report);
        if let Some(first) = names.routes.insert(name, node.place.line) {
            let name = node.shown();
            let message = format!("the route {name} is there twice, first in line {first}");
            report.error(node.place, message);
        }
    }
    let path = fields.text("path").and_then(|(text, node)| {
        PathPattern::parse(text)
            .map_err(|expected| {
                // The parser's words may quote what a variable holds.
                let expected = match node.written {
                    Some(_) => "a path pattern, with its variables filled in".to_owned(),
                    None => expected,
                };
                report.error(node.place, format!("expected {expected}, not {}", node.shown()));
            })
            .ok()
    });
    let host = host(fields, report);
    let headers = headers::pairs(fields.named("headers"), headers::name, report);
    let methods = methods(fields, report);
    let request = header_rules(fields, "request", report);
    let response = header_rules(fields, "response", report);
    if let Some(pattern) = &path
        && matches!(pattern.as_str(), "/health/live" | "/health/ready")
    {
        let message = "the gateway itself answers here, so this route is never reached";
        report.error(node.place, message);
    }
    let action = action(node, fields, path.as_ref(), names, report);
    let cache = cache(fields, path.as_ref(), report);
    let invalidates = templates(fields, "invalidates", path.as_ref(), report);
    check_effects(fields, methods.as_deref(), &headers, report);
    if let (Some(Action::Sql(rule)), Some(cache)) = (&action, &cache) {
        sql::check_key(rule, cache, fields, report);
    }
    Some(Route {
        name: name?.0.into(),
        path: path?,
        host,
        headers,
        methods,
        action: action?,
        request,
        response,
        max_body: fields.size("max_body").unwrap_or(DEFAULT_MAX_BODY),
        limits: limit::limits(fields, report),
        cache,
        invalidates,
    })
}

/// Names become labels of metrics and arguments of purges.
pub(super) fn check_name(name: &str, what: &str, node: &Node, report: &mut Report<'_>) {
    let legal = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte);
    if name.is_empty() || name.len() > 64 || !name.bytes().all(legal) {
        let message = format!(
            "{} is no name for a {what}: expected 1 to 64 letters, digits, `-`, `_` and `.`",
            node.shown()
        );
        report.error(node.place, message);
    }
}

/// Hosts are compared as the resolver sees them: lower case, without a final dot, in Punycode.
fn host(fields: Fields<'_>, report: &mut Report<'_>) -> Option<Box<str>> {
    let (text, node) = fields.text("host")?;
    let parsed = url::Host::parse(text.strip_suffix('.').unwrap_or(text));
    match parsed {
        Ok(host) if !text.contains('*') => Some(host.to_string().into()),
        _ => {
            let message =
                format!("expected a host name without scheme and port, not {}", node.shown());
            report.error(node.place, message);
            None
        }
    }
}

fn methods(fields: Fields<'_>, report: &mut Report<'_>) -> Option<Vec<Method>> {
    fields.node("methods")?;
    let mut methods = Vec::new();
    for (text, node) in fields.texts("methods") {
        // Methods are case-sensitive, and no registered one has lower-case letters.
        let lower = text.bytes().any(|byte| byte.is_ascii_lowercase());
        match Method::from_bytes(text.as_bytes()) {
            Ok(Method::CONNECT | Method::TRACE) => {
                report.error(node.place, format!("{} is never forwarded", node.shown()));
            }
            Ok(method) if methods.contains(&method) => {
                report.error(node.place, format!("the method {} is there twice", node.shown()));
            }
            Ok(method) if !lower => methods.push(method),
            _ => {
                let message = format!("expected a method such as GET, not {}", node.shown());
                report.error(node.place, message);
            }
        }
    }
    Some(methods)
}

fn header_rules(fields: Fields<'_>, key: &str, report: &mut Report<'_>) -> HeaderRules {
    let Some(fields) = fields.section(key, &keys::HEADER_RULES) else {
        return HeaderRules::default();
    };
    let remove = fields.texts("remove");
    HeaderRules {
        set: headers::pairs(fields.named("set"), headers::changeable_name, report),
        remove: remove.filter_map(|(_, node)| headers::changeable_name(node, report)).collect(),
    }
}

fn action(
    route: &Node,
    fields: Fields<'_>,
    path: Option<&PathPattern>,
    names: &Names<'_>,
    report: &mut Report<'_>,
) -> Option<Action> {
    let given = ["upstream", "sql", "respond"].map(|key| fields.node(key));
    match given {
        [Some(_), None, None] => {
            no_effect(fields, &["params"], "upstream", report);
            let (name, node) = fields.text("upstream")?;
            let upstream = names.upstreams.get(name).copied();
            if upstream.is_none() {
                report.error(node.place, format!("there is no upstream {}", node.shown()));
            }
            let rewrite = rewrite(fields, path, report);
            Some(Action::Proxy { upstream: upstream?, rewrite })
        }
        [None, Some(_), None] => {
            no_effect(fields, &["rewrite", "request"], "sql", report);
            let rule = sql::rule(fields, fields.section("sql", &keys::SQL)?, path, report)?;
            Some(Action::Sql(Box::new(rule)))
        }
        [None, None, Some(_)] => {
            no_effect(fields, &["rewrite", "request", "cache", "params"], "respond", report);
            respond_with(fields.section("respond", &keys::RESPOND)?, report)
        }
        given => {
            let mut given = given.into_iter().flatten();
            let first = given.next();
            let found = if first.is_some() { "several" } else { "none" };
            let message = format!("expected exactly one of upstream, sql and respond, not {found}");
            report.error(first.unwrap_or(route).place, message);
            None
        }
    }
}

/// Reports keys that mean nothing beside the route's action.
fn no_effect(fields: Fields<'_>, keys: &[&str], action: &str, report: &mut Report<'_>) {
    for key in keys {
        if let Some(node) = fields.node(key) {
            report.error(node.place, format!("`{key}` has no effect beside `{action}`"));
        }
    }
}

fn respond_with(fields: Fields<'_>, report: &mut Report<'_>) -> Option<Action> {
    let status = u16::try_from(fields.integer("status").unwrap_or(200)).ok()?;
    let status = StatusCode::from_u16(status).ok()?;
    let body = fields.text("body");
    if let Some((_, node)) = body.filter(|(text, _)| !text.is_empty())
        && matches!(
            status,
            StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED
        )
    {
        report.error(node.place, format!("a response with status {} has no body", status.as_u16()));
    }
    Some(Action::Respond {
        status,
        headers: headers::pairs(fields.named("headers"), headers::changeable_name, report),
        body: body.map(|(text, _)| Bytes::copy_from_slice(text.as_bytes())).unwrap_or_default(),
    })
}

/// A rewrite has to give a path in normal form, whatever the placeholders hold.
fn rewrite(
    fields: Fields<'_>,
    pattern: Option<&PathPattern>,
    report: &mut Report<'_>,
) -> Option<Template> {
    let (_, node) = fields.text("rewrite")?;
    let template = template(node, pattern?, report)?;
    // Placeholders hold whole segments in normal form, and only `{*rest}` may be empty, so these
    // two samples show every dot segment and delimiter that a rewrite could give.
    let rest = pattern?.segments().last() == Some(&Segment::Rest);
    let last = pattern?.names().len().wrapping_sub(1);
    let full = template.fill(|_| "x");
    let bare = template.fill(|index| if rest && index == last { "" } else { "x" });
    let problem = match (path::normalize(&full), path::normalize(&bare)) {
        (Err(error), _) | (_, Err(error)) => error.to_string(),
        (Ok(normal), _) if normal != full => "it is not in normal form".to_owned(),
        _ => return Some(template),
    };
    report.error(node.place, format!("{} is not a path to send upstream: {problem}", node.shown()));
    None
}

fn cache(
    fields: Fields<'_>,
    pattern: Option<&PathPattern>,
    report: &mut Report<'_>,
) -> Option<CacheRule> {
    let fields = fields.section("cache", &keys::CACHE)?;
    let query = fields.node("query").map(|_| {
        let mut query: Vec<Box<str>> = fields.texts("query").map(|(name, _)| name.into()).collect();
        query.sort();
        query.dedup();
        query
    });
    let vary = fields.texts("vary").filter_map(|(_, node)| headers::name(node, report)).collect();
    Some(CacheRule {
        ttl: fields.duration("ttl"),
        override_origin: fields.boolean("override").unwrap_or(false),
        query,
        vary,
        tags: templates(fields, "tags", pattern, report),
        stale_while_revalidate: fields.duration("stale_while_revalidate"),
        stale_if_error: fields.duration("stale_if_error"),
        warm_paths: warm_paths(fields, pattern, report),
    })
}

fn warm_paths(
    fields: Fields<'_>,
    pattern: Option<&PathPattern>,
    report: &mut Report<'_>,
) -> Vec<Box<str>> {
    let warm = !fields.items("warm").is_empty();
    match (warm, fields.node("warm_paths")) {
        (true, None) => match pattern {
            Some(pattern) if pattern.names().is_empty() => vec![pattern.shape().into()],
            Some(_) => {
                if let Some(node) = fields.node("warm") {
                    let message = "`warm_paths` is missing: the path has placeholders";
                    report.error(node.place, message);
                }
                Vec::new()
            }
            None => Vec::new(),
        },
        (false, Some(node)) => {
            report.error(node.place, "`warm_paths` has no effect without `warm: [deploy]`");
            Vec::new()
        }
        _ => {
            for (text, node) in fields.texts("warm_paths") {
                if let Err(error) = path_and_query(text) {
                    let message = format!("{} cannot be fetched: {error}", node.shown());
                    report.error(node.place, message);
                }
            }
            fields.texts("warm_paths").map(|(text, _)| text.into()).collect()
        }
    }
}

fn templates(
    fields: Fields<'_>,
    key: &str,
    pattern: Option<&PathPattern>,
    report: &mut Report<'_>,
) -> Vec<Template> {
    let Some(pattern) = pattern else { return Vec::new() };
    let mut templates = Vec::new();
    for (text, node) in fields.texts(key) {
        if text.is_empty() {
            report.error(node.place, "expected a tag that is not empty");
        }
        templates.extend(template(node, pattern, report));
    }
    templates
}

fn template(node: &Node, pattern: &PathPattern, report: &mut Report<'_>) -> Option<Template> {
    Template::parse(node.text()?, pattern)
        .map_err(|expected| {
            report.error(node.place, format!("expected {expected}, in {}", node.shown()));
        })
        .ok()
}

/// Reports settings that the route's methods or headers keep from ever mattering.
fn check_effects(
    fields: Fields<'_>,
    methods: Option<&[Method]>,
    headers: &[(actix_http::header::HeaderName, actix_http::header::HeaderValue)],
    report: &mut Report<'_>,
) {
    let takes = |wanted: &[Method]| methods.is_none_or(|m| m.iter().any(|m| wanted.contains(m)));
    if let Some(node) = fields.node("cache")
        && !takes(&[Method::GET, Method::HEAD])
    {
        report.error(node.place, "`cache` has no effect on a route without GET and HEAD");
    }
    if let Some(node) = fields.node("invalidates")
        && methods.is_some_and(|methods| methods.iter().all(Method::is_safe))
    {
        report.error(node.place, "`invalidates` has no effect on a route with safe methods only");
    }
    if let Some(node) = fields.section("sql", &keys::SQL).and_then(|sql| sql.node("write")) {
        if methods.is_none_or(|methods| methods.iter().any(Method::is_safe)) {
            let message = "a write needs `methods`, and none of GET, HEAD and OPTIONS among them";
            report.error(node.place, message);
        }
        if let Some(node) = fields.node("cache") {
            report.error(node.place, "`cache` has no effect beside `write`");
        }
    }
    if let Some(node) = fields.section("cache", &keys::CACHE).and_then(|f| f.node("warm"))
        && !headers.is_empty()
    {
        report.error(node.place, "`warm` cannot fetch for a route with `headers`");
    }
}

/// Reports routes that others keep from ever being chosen: those with the same path, host and
/// headers come first and take all their methods. Rules that are less specific never do.
pub(super) fn check_reachable(routes: &[(Arc<Route>, &Node)], report: &mut Report<'_>) {
    let mut taken: HashMap<_, (HashSet<Method>, bool, Arc<str>)> = HashMap::new();
    for (route, node) in routes {
        let mut headers: Vec<_> =
            route.headers.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect();
        headers.sort_unstable();
        let key = (route.path.shape(), route.host.as_deref(), headers);
        let (methods, all, by) =
            taken.entry(key).or_insert_with(|| (HashSet::new(), false, route.name.clone()));
        let covered = *all
            || route.methods.as_ref().is_some_and(|own| {
                // Without own methods there is nothing to cover; that is reported already.
                !own.is_empty() && own.iter().all(|method| methods.contains(method))
            });
        // HEAD goes to a route that names it, even after one that takes every method.
        let names_head = route.methods.iter().flatten().any(|method| method == Method::HEAD);
        if covered && (!names_head || methods.contains(&Method::HEAD)) {
            let message = format!(
                "the route `{}` is never reached: `{by}`, with the same path, host and headers, \
                 takes its requests first",
                route.name
            );
            report.error(node.place, message);
        }
        match &route.methods {
            Some(own) => methods.extend(own.iter().cloned()),
            None => *all = true,
        }
    }
}
