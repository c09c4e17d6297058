//! Builds the upstreams of a routes file.

use std::{collections::HashSet, time::Duration};

use url::Url;

use super::{
    fields::Fields,
    keys,
    model::{Balance, Breaker, HealthCheck, Retry, Timeouts, Upstream},
    path,
    report::Report,
    yaml::Node,
};
use crate::config::values;

impl Upstream {
    /// An upstream with the defaults of the routes file.
    pub(super) fn with_targets(name: &str, targets: Vec<Url>) -> Self {
        Self {
            name: name.into(),
            targets,
            balance: Balance::RoundRobin,
            health: None,
            timeout: Timeouts {
                connect: Duration::from_secs(2),
                first_byte: Duration::from_secs(30),
                idle: Duration::from_secs(30),
            },
            retry: Retry { attempts: 2, on_connect: true, on_status: Vec::new() },
            breaker: Breaker {
                failures: 5,
                window: Duration::from_secs(10),
                open: Duration::from_secs(5),
            },
        }
    }
}

/// Builds one upstream; what is wrong with it is reported, and left at its default.
pub(super) fn upstream(name: &str, node: &Node, report: &mut Report<'_>) -> Upstream {
    let fields = Fields::of(node, &keys::UPSTREAM);
    let mut upstream = Upstream::with_targets(name, targets(fields, report));
    upstream.balance = match fields.text("balance") {
        Some(("least-requests", _)) => Balance::LeastRequests,
        Some(("consistent-hash", _)) => Balance::ConsistentHash,
        _ => Balance::RoundRobin,
    };
    upstream.health =
        fields.section("health", &keys::HEALTH).and_then(|fields| health(fields, report));
    if let Some(fields) = fields.section("timeout", &keys::TIMEOUT) {
        let timeout = &mut upstream.timeout;
        set(&mut timeout.connect, fields.duration("connect"));
        set(&mut timeout.first_byte, fields.duration("first_byte"));
        set(&mut timeout.idle, fields.duration("idle"));
    }
    if let Some(fields) = fields.section("retry", &keys::RETRY) {
        set(&mut upstream.retry.attempts, fields.integer("attempts"));
        if fields.node("on").is_some() {
            let items = fields.items("on");
            upstream.retry.on_connect = items.iter().any(|item| item.text() == Some("connect"));
            upstream.retry.on_status = items
                .iter()
                .filter_map(super::check::integer)
                .filter_map(|status| u16::try_from(status).ok())
                .collect();
        }
    }
    if let Some(fields) = fields.section("breaker", &keys::BREAKER) {
        let breaker = &mut upstream.breaker;
        set(&mut breaker.failures, fields.integer("failures"));
        set(&mut breaker.window, fields.duration("window"));
        set(&mut breaker.open, fields.duration("open"));
    }
    upstream
}

/// Replaces a default.
fn set<T>(default: &mut T, value: Option<T>) {
    if let Some(value) = value {
        *default = value;
    }
}

fn targets(fields: Fields<'_>, report: &mut Report<'_>) -> Vec<Url> {
    let mut seen = HashSet::new();
    let mut targets = Vec::new();
    for (text, node) in fields.texts("targets") {
        match values::base_url(text) {
            Ok(url) if !seen.insert(url.clone()) => {
                report.error(node.place, format!("the target {} is there twice", node.shown()));
            }
            Ok(url) => targets.push(url),
            // A password in the URL is one of the things that can be wrong with it.
            Err(expected) if text.contains('@') => {
                report.error(node.place, format!("expected {expected}"));
            }
            Err(expected) => {
                report.error(node.place, format!("expected {expected}, not {}", node.shown()));
            }
        }
    }
    targets
}

fn health(fields: Fields<'_>, report: &mut Report<'_>) -> Option<HealthCheck> {
    let (path, node) = fields.text("path")?;
    if let Err(error) = path_and_query(path) {
        report.error(node.place, format!("{} is not a path to fetch: {error}", node.shown()));
    }
    Some(HealthCheck {
        path: path.into(),
        interval: fields.duration("interval").unwrap_or(Duration::from_secs(5)),
        unhealthy_after: fields.integer("unhealthy_after").unwrap_or(3),
        healthy_after: fields.integer("healthy_after").unwrap_or(2),
    })
}

/// The path of `text`, which may have a query, when a request can be made for it as it stands.
pub(super) fn path_and_query(text: &str) -> Result<&str, String> {
    let (path, query) = text.split_once('?').unwrap_or((text, ""));
    let normal = path::normalize(path).map_err(|error| error.to_string())?;
    if normal != path {
        return Err(format!("expected `{normal}`, which is how requests for it look"));
    }
    if query.bytes().any(|byte| !byte.is_ascii_graphic() || byte == b'#') {
        return Err("expected a query of visible ASCII characters without `#`".to_owned());
    }
    Ok(path)
}
