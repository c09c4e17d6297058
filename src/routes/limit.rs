//! Builds the `limit:` of a route, and refuses limits that others keep from ever mattering.

use std::time::Duration;

use super::{
    fields::Fields,
    keys,
    model::{Limit, LimitBy},
    report::Report,
    yaml::Node,
};

/// A year. What counts over a longer time is a contract and not a rate.
const LONGEST: Duration = Duration::from_secs(366 * 24 * 60 * 60);

pub(super) fn limits(fields: Fields<'_>, report: &mut Report<'_>) -> Vec<Limit> {
    let sections = fields.sections("limit", &keys::LIMIT);
    let limits: Vec<(Limit, &Node)> =
        sections.filter_map(|(fields, node)| Some((limit(fields, report)?, node))).collect();
    for (index, (limit, node)) in limits.iter().enumerate() {
        let others = limits.iter().enumerate().filter(|(other, _)| *other != index);
        // Of two that are alike, the first one matters.
        let stricter = |other: usize, it: &Limit| {
            it.by == limit.by
                && it.requests <= limit.requests
                && it.window >= limit.window
                && (*it != *limit || other < index)
        };
        if others.into_iter().any(|(other, (it, _))| stricter(other, it)) {
            let message = "this limit has no effect: another one with the same `by` lets no more \
                           requests through in as long a window or a longer one";
            report.error(node.place, message);
        }
    }
    limits.into_iter().map(|(limit, _)| limit).collect()
}

fn limit(fields: Fields<'_>, report: &mut Report<'_>) -> Option<Limit> {
    let (requests, window) = (fields.integer("requests"), fields.duration("window"));
    if let (Some(window), Some(node)) = (window, fields.node("window"))
        && window >= Duration::from_secs(1)
        && (window.subsec_nanos() != 0 || window > LONGEST)
    {
        // Clients are told the window in seconds.
        let message = format!("expected whole seconds, at most 366d, not {}", node.shown());
        report.error(node.place, message);
    }
    let by = match fields.text("by") {
        Some(("caller", _)) => LimitBy::Caller,
        Some(("tenant", _)) => LimitBy::Tenant,
        Some(("route", _)) => LimitBy::Route,
        _ => LimitBy::Ip,
    };
    Some(Limit { requests: requests?, window: window?, by })
}
