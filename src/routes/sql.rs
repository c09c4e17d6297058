//! Builds the `sql:` and `params:` of a route.

mod declare;
mod text;
mod value;

pub use text::{SqlText, Verb};
pub use value::{Unfit, Value, array};

use super::{
    fields::Fields,
    keys,
    model::{Access, CacheRule, Page, PageKey, Param, ParamSource, SqlRule},
    pattern::PathPattern,
    report::Report,
};

/// Where a route gives none.
const MAX_ROWS: u32 = 1000;
const PAGE: u32 = 50;
const MAX_PAGE: u32 = 200;

/// Names that requests for a page use.
pub(super) const RESERVED: [&str; 2] = ["limit", "after"];

/// Builds the rule of a route whose `sql:` section is `sql`.
pub(super) fn rule(
    route: Fields<'_>,
    sql: Fields<'_>,
    pattern: Option<&PathPattern>,
    report: &mut Report<'_>,
) -> Option<SqlRule> {
    let params = params(route, pattern, report);
    let place = route.node("sql")?.place;
    let (access, (text, node)) = match (sql.text("read"), sql.text("write")) {
        (Some(read), None) => (Access::Read, read),
        (None, Some(write)) => (Access::Write, write),
        _ => {
            report.error(place, "expected exactly one of read and write");
            return None;
        }
    };
    let names: Vec<&str> = params.iter().map(|param| &*param.name).collect();
    // A parameter that could not be read would be missed in the text too.
    let complete = params.len() == route.named("params").len();
    let text = match SqlText::parse(text, &names) {
        Ok(text) => text,
        Err(message) => {
            if complete {
                report.error(node.place, message);
            }
            return None;
        }
    };
    if access == Access::Read
        && let Some(function) = text.effect()
    {
        let message = format!("`{function}` does more than read: expected it in `write`");
        report.error(node.place, message);
    }
    if access == Access::Read && text.verb() != Verb::Select {
        report.error(node.place, "expected a SELECT: what changes rows is a `write`");
    }
    let page = page(sql, access, &params, report);
    Some(SqlRule {
        access,
        one: sql.boolean("one").unwrap_or(false),
        max_rows: sql.integer("max_rows").unwrap_or(MAX_ROWS),
        text,
        page,
        params,
    })
}

/// Reports what a statement takes from the query and `cache: { query: … }` leaves out: it would never be
/// seen, as it has no part in the key.
pub(super) fn check_key(
    rule: &SqlRule,
    cache: &CacheRule,
    route: Fields<'_>,
    report: &mut Report<'_>,
) {
    let Some(counted) = &cache.query else { return };
    let Some(node) = route.node("cache") else { return };
    let taken = rule.params.iter().filter_map(|param| match &param.source {
        ParamSource::Query(field) => Some(&**field),
        _ => None,
    });
    for field in taken.chain(rule.page.iter().flat_map(|_| RESERVED)) {
        if !counted.iter().any(|name| **name == *field) {
            let message = format!("the statement takes `{field}`, which is not in `query`");
            report.error(node.place, message);
        }
    }
}

fn params(route: Fields<'_>, pattern: Option<&PathPattern>, report: &mut Report<'_>) -> Vec<Param> {
    let mut params = Vec::new();
    for (name_node, node) in route.named("params") {
        let (Some(name), Some(text)) = (name_node.text(), node.text()) else { continue };
        let legal = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
        if name.is_empty() || !name.bytes().all(legal) || name.as_bytes()[0].is_ascii_digit() {
            let message = format!(
                "{} is no name for a parameter: expected letters, digits and `_`",
                name_node.shown()
            );
            report.error(name_node.place, message);
            continue;
        }
        match declare::param(name, text) {
            Ok(param) => {
                if let (ParamSource::Path(field), Some(pattern)) = (&param.source, pattern)
                    && !pattern.names().contains(field)
                {
                    let message = format!("the path `{}` has no `{{{field}}}`", pattern.as_str());
                    report.error(node.place, message);
                }
                params.push(param);
            }
            Err(expected) => {
                report.error(node.place, format!("expected {expected}, in {}", node.shown()));
            }
        }
    }
    params
}

fn page(
    sql: Fields<'_>,
    access: Access,
    params: &[Param],
    report: &mut Report<'_>,
) -> Option<Page> {
    let place = sql.node("page")?.place;
    let fields = sql.section("page", &keys::SQL_PAGE)?;
    if access == Access::Write {
        report.error(place, "`page` has no effect beside `write`");
    }
    if sql.boolean("one") == Some(true) {
        report.error(place, "`page` has no effect beside `one`");
    }
    for param in params {
        if let ParamSource::Query(field) = &param.source
            && RESERVED.contains(&&**field)
        {
            report.error(place, format!("the query parameter `{field}` is that of pages"));
        }
    }
    let mut page_keys = Vec::new();
    for (text, node) in fields.texts("keys") {
        let (column, rest) = text.trim().split_once(' ').unwrap_or((text, ""));
        let (rest, descending) = match rest.trim().strip_suffix(" desc") {
            Some(rest) => (rest, true),
            None => (rest.trim().strip_suffix(" asc").unwrap_or(rest.trim()), false),
        };
        // As a parameter is declared, since its value comes from the request.
        match declare::param(column, &format!("query {rest}")) {
            Ok(param) if !param.array => {
                page_keys.push(PageKey { column: column.into(), kind: param.kind, descending });
            }
            Ok(_) => report.error(node.place, "expected a type that is no array"),
            Err(expected) => {
                report.error(node.place, format!("expected {expected}, in {}", node.shown()));
            }
        }
    }
    let max = fields.integer("max").unwrap_or(MAX_PAGE);
    let limit = fields.integer("limit").unwrap_or(PAGE.min(max));
    if limit > max {
        report.error(place, format!("expected a limit of at most {max}, which is `max`"));
    }
    Some(Page { keys: page_keys, limit, max })
}
