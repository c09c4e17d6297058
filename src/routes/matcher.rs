//! Finds the route of a request.
//!
//! Routes sit in a tree with a level per path segment. Each step is one hash look-up, and the host
//! is another, so the number of routes does not matter; only routes with the same path and host,
//! told apart by headers or methods, are tried one after the other. Where a literal leads nowhere,
//! the search goes back and tries `{name}`, then `{*rest}`. Nothing is allocated unless the answer
//! is "wrong method".

use std::{collections::HashMap, sync::Arc};

use actix_http::{Method, header::HeaderMap};
use foldhash::fast::RandomState;

use super::{
    model::Route,
    pattern::{MAX_PARAMS, Segment},
};

/// The longest host name that DNS allows, with room for a final dot and an IPv6 address's brackets.
const MAX_HOST: usize = 256;

/// Where in the path the values of a route's placeholders are, in the pattern's order.
#[derive(Debug, Clone, Copy, Default)]
pub struct Params {
    ranges: [(u32, u32); MAX_PARAMS],
    len: usize,
}

impl Params {
    /// The value at `index`; `path` is the one they were found in.
    pub fn get<'p>(&self, index: usize, path: &'p str) -> Option<&'p str> {
        let (start, end) = *self.ranges[..self.len].get(index)?;
        path.get(start as usize..end as usize)
    }

    fn push(&mut self, start: usize, end: usize) {
        // Patterns with more than MAX_PARAMS placeholders do not parse, and the front door's limit
        // keeps paths far below 4 GiB.
        self.ranges[self.len] = (start as u32, end as u32);
        self.len += 1;
    }
}

/// What [`super::RouteTable::find`] found.
#[derive(Debug)]
pub enum Found<'t> {
    /// The route and its index in [`super::RouteTable::routes`].
    Route(usize, &'t Arc<Route>),
    /// Routes match but for the method; these would do.
    MethodNotAllowed(Vec<Method>),
    NotFound,
}

type Map<K, V> = HashMap<K, V, RandomState>;

/// The tree.
#[derive(Debug, Default)]
pub(super) struct Matcher {
    root: Node,
    /// Hosts that routes name, lower case.
    hosts: Map<Box<str>, u32>,
}

#[derive(Debug, Default)]
struct Node {
    literals: Map<Box<str>, Node>,
    param: Option<Box<Node>>,
    /// Routes whose path ends here.
    end: Rules,
    /// Routes that take whatever is left.
    rest: Rules,
}

/// Routes of one path; routes with more headers first, then by order.
#[derive(Debug, Default)]
struct Rules {
    by_host: Map<u32, Candidates>,
    any_host: Candidates,
}

/// The first is kept here and not behind a pointer: most paths have one route, and among thousands
/// of them each pointer followed is a cache miss.
#[derive(Debug, Default)]
struct Candidates {
    first: Option<Candidate>,
    others: Vec<Candidate>,
}

/// A route, and whether it takes every request with a `GET` that comes here.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    index: u32,
    any_get: bool,
}

impl Candidates {
    fn insert(&mut self, index: usize, routes: &[Arc<Route>]) {
        let route = &routes[index];
        let methods = route.methods.as_deref();
        let any_get = route.headers.is_empty()
            && methods.is_none_or(|methods| methods.contains(&Method::GET));
        let new = Candidate { index: index as u32, any_get };
        // After all that have as many headers or more: the file's order decides among equals.
        let more = |it: &Candidate| routes[it.index as usize].headers.len() >= route.headers.len();
        match self.first {
            None => self.first = Some(new),
            Some(first) if !more(&first) => {
                self.others.insert(0, first);
                self.first = Some(new);
            }
            Some(_) => self.others.insert(self.others.partition_point(more), new),
        }
    }

    fn iter(&self) -> impl Iterator<Item = &Candidate> {
        self.first.iter().chain(&self.others)
    }
}

impl Matcher {
    pub(super) fn build(routes: &[Arc<Route>]) -> Self {
        let mut matcher = Self::default();
        for (index, route) in routes.iter().enumerate() {
            let mut node = &mut matcher.root;
            let mut takes_rest = false;
            for segment in route.path.segments() {
                node = match segment {
                    Segment::Literal(text) => node.literals.entry(text.clone()).or_default(),
                    Segment::Param => node.param.get_or_insert_default(),
                    Segment::Rest => {
                        takes_rest = true;
                        break;
                    }
                };
            }
            let rules = if takes_rest { &mut node.rest } else { &mut node.end };
            let list = match &route.host {
                Some(host) => {
                    let next = matcher.hosts.len() as u32;
                    let id = *matcher.hosts.entry(host.clone()).or_insert(next);
                    rules.by_host.entry(id).or_default()
                }
                None => &mut rules.any_host,
            };
            list.insert(index, routes);
        }
        matcher
    }

    /// The most specific of `routes` (those the tree was built from) that matches.
    pub(super) fn find<'t>(
        &self,
        routes: &'t [Arc<Route>],
        method: &Method,
        host: &str,
        path: &str,
        headers: &HeaderMap,
        params: &mut Params,
    ) -> Found<'t> {
        params.len = 0;
        let Some(start) = path.strip_prefix('/').map(|_| 1) else { return Found::NotFound };
        let host = self.host_id(host);
        let mut search =
            Search { routes, method, host, path, headers, wrong_method: false, allowed: None };
        if let Some(index) = search.descend(&self.root, Some(start), params) {
            return Found::Route(index, &routes[index]);
        }
        if !search.wrong_method {
            return Found::NotFound;
        }
        // Only now, with a second search, are the methods worth collecting.
        search.allowed = Some(Vec::new());
        search.descend(&self.root, Some(start), params);
        Found::MethodNotAllowed(search.allowed.unwrap_or_default())
    }

    /// The number of `host`, without regard to case, port and a final dot.
    fn host_id(&self, host: &str) -> Option<u32> {
        if self.hosts.is_empty() {
            return None;
        }
        let name = host_name(host);
        if name.len() > MAX_HOST {
            return None;
        }
        let mut lower = [0; MAX_HOST];
        let lower = &mut lower[..name.len()];
        lower.copy_from_slice(name.as_bytes());
        lower.make_ascii_lowercase();
        self.hosts.get(str::from_utf8(lower).ok()?).copied()
    }
}

/// `host` without its port and a final dot.
fn host_name(host: &str) -> &str {
    let name = match host.rfind(':') {
        // A colon within brackets is part of an IPv6 address.
        Some(colon) if !host[colon..].contains(']') => &host[..colon],
        _ => host,
    };
    name.strip_suffix('.').unwrap_or(name)
}

/// One look-up.
struct Search<'s, 't> {
    routes: &'t [Arc<Route>],
    method: &'s Method,
    host: Option<u32>,
    path: &'s str,
    headers: &'s HeaderMap,
    /// Whether a route was passed over for its methods alone.
    wrong_method: bool,
    /// The methods of those routes, once they are asked for.
    allowed: Option<Vec<Method>>,
}

impl Search<'_, '_> {
    /// Goes on below `node` with the segment that begins at `start`; `None` is the path's end.
    fn descend(&mut self, node: &Node, start: Option<usize>, params: &mut Params) -> Option<usize> {
        let Some(start) = start else {
            // `/files/{*rest}` takes `/files` too.
            let found = self.choose(&node.end);
            return found.or_else(|| self.take_rest(node, self.path.len(), params));
        };
        let end = memchr::memchr(b'/', &self.path.as_bytes()[start..])
            .map_or(self.path.len(), |length| start + length);
        let next = (end < self.path.len()).then_some(end + 1);
        let segment = &self.path[start..end];
        if let Some(child) = node.literals.get(segment)
            && let Some(found) = self.descend(child, next, params)
        {
            return Some(found);
        }
        if let Some(child) = &node.param
            && !segment.is_empty()
        {
            let before = params.len;
            params.push(start, end);
            if let Some(found) = self.descend(child, next, params) {
                return Some(found);
            }
            params.len = before;
        }
        self.take_rest(node, start, params)
    }

    fn take_rest(&mut self, node: &Node, start: usize, params: &mut Params) -> Option<usize> {
        let found = self.choose(&node.rest)?;
        params.push(start, self.path.len());
        Some(found)
    }

    /// The first of the routes of one path that takes the request.
    fn choose(&mut self, rules: &Rules) -> Option<usize> {
        let named = self.host.and_then(|host| rules.by_host.get(&host));
        let candidates =
            || named.into_iter().flat_map(Candidates::iter).chain(rules.any_host.iter());
        if self.method == Method::GET
            && let Some(first) = candidates().next()
            && first.any_get
        {
            return Some(first.index as usize);
        }
        // A GET route answers HEAD as well, unless a route of the same path names HEAD.
        if self.method == Method::HEAD {
            let names_head =
                |route: &Route| route.methods.iter().flatten().any(|method| method == Method::HEAD);
            let found = candidates().find(|candidate| {
                let route = &self.routes[candidate.index as usize];
                names_head(route) && self.has_headers(route)
            });
            if let Some(candidate) = found {
                return Some(candidate.index as usize);
            }
        }
        for candidate in candidates() {
            let index = candidate.index as usize;
            let route = &self.routes[index];
            if !self.has_headers(route) {
                continue;
            }
            let Some(methods) = &route.methods else { return Some(index) };
            let takes = |method: &Method| {
                method == self.method || (self.method == Method::HEAD && method == Method::GET)
            };
            if methods.iter().any(takes) {
                return Some(index);
            }
            self.wrong_method = true;
            if let Some(allowed) = &mut self.allowed {
                for method in methods {
                    if !allowed.contains(method) {
                        allowed.push(method.clone());
                    }
                }
            }
        }
        None
    }

    fn has_headers(&self, route: &Route) -> bool {
        route.headers.iter().all(|(name, value)| self.headers.get_all(name).any(|v| v == value))
    }
}

#[cfg(test)]
mod tests;
