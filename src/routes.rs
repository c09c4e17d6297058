//! The route table: which requests go where, and how their responses are cached.
//!
//! A file is read into a tree of values that know their places (`yaml`), variables are filled in
//! (`variables`), and the tree is held against the declared keys (`keys`, `check`). Only then it
//! becomes a table (`build`). Each step reports all that it finds, so that one look shows every
//! mistake. A table never changes: a reload makes a new one.

mod build;
mod check;
mod fields;
mod headers;
mod keys;
mod limit;
mod matcher;
pub mod model;
pub mod path;
mod pattern;
mod report;
mod schema;
pub mod sql;
mod template;
mod upstreams;
mod variables;
mod watch;
mod yaml;

use std::{collections::HashMap, path::Path, sync::Arc};

use actix_http::{Method, header::HeaderMap};
use url::Url;

use build::Names;
use fields::Fields;
use report::Report;
use yaml::{Node, Value};

use crate::config::Source;

pub use matcher::{Found, Params};
pub use model::*;
pub use pattern::PathPattern;
pub use report::RouteErrors;
pub use schema::json_schema;
pub use template::Template;
pub use watch::{Watcher, watch};

/// All routes and upstreams of one routes file.
#[derive(Debug, Default)]
pub struct RouteTable {
    /// In the file's order.
    pub routes: Vec<Arc<Route>>,
    pub upstreams: Vec<Upstream>,
    matcher: matcher::Matcher,
}

impl RouteTable {
    /// Reads the file at `path`; its variables come from `env`.
    pub fn load(path: &Path, env: &dyn Source) -> Result<Self, RouteErrors> {
        let name = path.display().to_string();
        match std::fs::read_to_string(path) {
            Ok(text) => Self::parse(&name, &text, env),
            Err(error) => Err(RouteErrors::unreadable(name, &error)),
        }
    }

    /// Reads `text`, which messages call `name`.
    pub fn parse(name: &str, text: &str, env: &dyn Source) -> Result<Self, RouteErrors> {
        let mut report = Report::new(name, text);
        match yaml::parse(text) {
            Ok(mut tree) => {
                variables::substitute(&mut tree, env, &mut report);
                check::check(&tree, &keys::Kind::Section(&keys::FILE), &mut report);
                let table = Self::build(&tree, &mut report);
                if report.is_clean() {
                    return Ok(table);
                }
            }
            Err((place, message)) => report.error(place, message),
        }
        Err(report.into_errors())
    }

    /// The table for `UPSTREAM_URL`: every path and method goes to one upstream, and responses are
    /// cached by their own headers.
    pub fn single_upstream(url: &Url) -> Self {
        let route = Route {
            name: "upstream".into(),
            path: PathPattern::everything(),
            host: None,
            headers: Vec::new(),
            methods: None,
            action: Action::Proxy { upstream: 0, rewrite: None },
            request: HeaderRules::default(),
            response: HeaderRules::default(),
            max_body: build::DEFAULT_MAX_BODY,
            limits: Vec::new(),
            cache: None,
            invalidates: Vec::new(),
        };
        Self::new(
            vec![Arc::new(route)],
            vec![Upstream::with_targets("upstream", vec![url.clone()])],
        )
    }

    /// The most specific route that matches. `path` is in normal form ([`path::normalize`]), `host`
    /// as the request has it; `params` then holds where in `path` the placeholders' values are.
    pub fn find<'t>(
        &'t self,
        method: &Method,
        host: &str,
        path: &str,
        headers: &HeaderMap,
        params: &mut Params,
    ) -> Found<'t> {
        self.matcher.find(&self.routes, method, host, path, headers, params)
    }

    fn new(routes: Vec<Arc<Route>>, upstreams: Vec<Upstream>) -> Self {
        Self { matcher: matcher::Matcher::build(&routes), routes, upstreams }
    }

    fn build(tree: &Node, report: &mut Report<'_>) -> Self {
        let file = Fields::of(tree, &keys::FILE);
        let mut names = Names { upstreams: HashMap::new(), routes: HashMap::new() };
        let mut upstreams = Vec::new();
        for (key, node) in file.named("upstreams") {
            let Some(name) = key.text() else { continue };
            build::check_name(name, "upstream", key, report);
            names.upstreams.entry(name).or_insert(upstreams.len());
            upstreams.push(upstreams::upstream(name, node, report));
        }
        let routes: Vec<(Arc<Route>, &Node)> = file
            .items("routes")
            .iter()
            .filter(|node| matches!(node.value, Value::Map(_)))
            .filter_map(|node| Some((Arc::new(build::route(node, &mut names, report)?), node)))
            .collect();
        build::check_reachable(&routes, report);
        let table = Self::new(routes.iter().map(|(route, _)| route.clone()).collect(), upstreams);
        table.check_warm_paths(&routes, report);
        table
    }

    /// A path that another route answers would warm that one's responses, by its rules.
    fn check_warm_paths(&self, routes: &[(Arc<Route>, &Node)], report: &mut Report<'_>) {
        for (index, (route, node)) in routes.iter().enumerate() {
            let Some(cache) = &route.cache else { continue };
            for warm in &cache.warm_paths {
                let Ok(path) = upstreams::path_and_query(warm) else { continue };
                let host = route.host.as_deref().unwrap_or_default();
                let headers = HeaderMap::new();
                let found = self.find(&Method::GET, host, path, &headers, &mut Params::default());
                if matches!(found, Found::Route(found, _) if found == index) {
                    continue;
                }
                let message =
                    format!("the route `{}` does not answer GET {warm}, to be warmed", route.name);
                let fields = Fields::of(node, &keys::ROUTE);
                let cache = fields.section("cache", &keys::CACHE);
                let place = cache.and_then(|cache| {
                    let item = cache.texts("warm_paths").find(|(text, _)| *text == &**warm);
                    item.map(|(_, node)| node).or_else(|| cache.node("warm"))
                });
                report.error(place.unwrap_or(node).place, message);
            }
        }
    }
}

#[cfg(test)]
mod tests;
