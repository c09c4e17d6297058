//! Purges and statistics of the response cache.

use std::borrow::Cow;

use actix_web::{
    HttpResponse,
    web::{Data, Json},
};
use serde::Deserialize;
use serde_json::json;
use url::Url;

use super::{Context, bad_request};
use crate::{
    cache::{
        clock::Timestamp,
        purge::{Mode, Selector},
    },
    routes::path,
};

/// The body of a purge: exactly one selector, and how far to go.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Purge {
    /// A URL, `http://host/path?query`: every response stored for it.
    key: Option<String>,
    route: Option<String>,
    /// `/path` on any host, or `http://host/path`.
    prefix: Option<String>,
    /// As a prefix, with `*` for any characters and `?` for one.
    pattern: Option<String>,
    tag: Option<String>,
    tenant: Option<String>,
    all: Option<bool>,
    #[serde(default)]
    soft: bool,
}

/// `POST /admin/v1/cache/purge`: invalidates what the body names.
///
/// Answers when it has taken effect on every instance that confirmed it; those that did not in time are
/// named. It does not say how many entries it killed:
/// it costs the same for one and for a million, as it touches none of them.
pub(super) async fn purge(body: Json<Purge>, context: Data<Context>) -> HttpResponse {
    let purge = body.into_inner();
    let mode = if purge.soft { Mode::Soft } else { Mode::Hard };
    let selector = match purge.selector() {
        Ok(selector) => selector,
        Err(reason) => return bad_request(&reason),
    };
    if let Selector::Route(name) = &selector
        && !context.gateway.routes().iter().any(|route| route.name == *name)
    {
        return bad_request(&format!("there is no route named `{name}`"));
    }
    let purged = context.cache.purge(std::slice::from_ref(&selector), mode).await;
    tracing::info!(purge.number = purged.number, "purged {selector:?}");
    HttpResponse::Ok().json(json!({
        "purged": format!("{selector:?}"),
        "soft": mode == Mode::Soft,
        "number": purged.number,
        "recorded": purged.recorded,
        "instances": { "confirmed": purged.confirmed, "missing": purged.missing },
    }))
}

impl Purge {
    fn selector(self) -> Result<Selector, String> {
        let mut selectors = Vec::new();
        if let Some(key) = self.key {
            let url = absolute(&key)?;
            selectors.push(Selector::Url {
                host: host(&url),
                path: normal(url.path())?,
                query: url.query().map(str::to_owned),
            });
        }
        if let Some(prefix) = self.prefix {
            let (host, path) = scoped(&prefix)?;
            // What follows a `?` is query, which is kept as it came.
            let path = match path.split_once('?') {
                Some((path, query)) => format!("{}?{query}", normal(path)?),
                None => normal(&path)?,
            };
            selectors.push(Selector::Prefix { host, path });
        }
        if let Some(pattern) = self.pattern {
            let (host, glob) = scoped(&pattern)?;
            selectors.push(Selector::Pattern { host, glob });
        }
        selectors.extend(self.route.map(Selector::Route));
        selectors.extend(self.tag.map(Selector::Tag));
        selectors.extend(self.tenant.map(Selector::Tenant));
        match self.all {
            None => {}
            Some(true) => selectors.push(Selector::All),
            Some(false) => return Err("`all` can only be true".to_owned()),
        }
        let empty = |it: &Selector| matches!(it, Selector::Route(text) | Selector::Tag(text) | Selector::Tenant(text) if text.is_empty());
        if selectors.iter().any(empty) {
            return Err("the name is empty".to_owned());
        }
        let count = selectors.len();
        match selectors.pop() {
            Some(selector) if count == 1 => Ok(selector),
            _ => Err(format!(
                "expected exactly one of key, route, prefix, pattern, tag, tenant, all; found {count}"
            )),
        }
    }
}

pub(super) fn absolute(text: &str) -> Result<Url, String> {
    let expected = || format!("`{text}` is not a URL: expected http://host/path?query");
    let url = Url::parse(text).map_err(|_| expected())?;
    if url.host_str().is_none() { Err(expected()) } else { Ok(url) }
}

/// A path as keys hold it.
pub(super) fn normal(path: &str) -> Result<String, String> {
    path::normalize(path).map(Cow::into_owned).map_err(|error| format!("`{path}`: {error}"))
}

/// A host as keys hold it: without the scheme's own port.
pub(super) fn host(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    match url.port() {
        Some(port) => format!("{host}:{port}"),
        None => host.to_owned(),
    }
}

/// Splits `http://host/rest` into host and rest, as it is: a glob is no valid URL.
fn scoped(text: &str) -> Result<(Option<String>, String), String> {
    if text.starts_with('/') || text.starts_with('*') {
        return Ok((None, text.to_owned()));
    }
    let rest = text.strip_prefix("http://").or_else(|| text.strip_prefix("https://"));
    match rest.and_then(|rest| rest.split_once('/')) {
        Some((host, path)) => {
            let default_port = if text.starts_with("https") { ":443" } else { ":80" };
            let host = host.strip_suffix(default_port).unwrap_or(host);
            Ok((Some(host.to_ascii_lowercase()), format!("/{path}")))
        }
        None => Err(format!("`{text}`: expected /path or http://host/path")),
    }
}

/// `GET /admin/v1/cache/stats`: how full the cache is, and what it did for each route.
pub(super) async fn stats(context: Data<Context>) -> HttpResponse {
    let routes: serde_json::Map<_, _> = context
        .gateway
        .routes()
        .into_iter()
        .map(|route| (route.name, serde_json::to_value(route.cache).unwrap_or_default()))
        .collect();
    let l2 = context.cache.l2().map(|l2| {
        json!({
            "usable": l2.is_usable(Timestamp::now()),
            "instance": l2.coherence.instance(),
            "instances": l2.coherence.members(),
            "counts": l2.stats.snapshot(),
            "coherence": l2.coherence.stats.snapshot(),
            "pending_purges": l2.coherence.pending(),
        })
    });
    HttpResponse::Ok().json(json!({
        "l1": context.cache.usage(),
        "data": context.cache.data().usage(),
        "l2": l2,
        "remembered_purges": context.cache.remembered_purges(),
        "routes": routes,
    }))
}
