//! The rules one by one, and the tree against a matcher that has none.

use actix_http::header::{HeaderName, HeaderValue};
use proptest::prelude::*;

use super::*;
use crate::routes::{
    model::{Action, HeaderRules},
    pattern::PathPattern,
};

#[derive(Debug, Clone)]
struct Spec {
    path: String,
    host: Option<&'static str>,
    headers: Vec<(&'static str, &'static str)>,
    methods: Option<Vec<Method>>,
}

fn spec(path: &str) -> Spec {
    Spec { path: path.to_owned(), host: None, headers: Vec::new(), methods: None }
}

fn route(spec: &Spec) -> Arc<Route> {
    let pair = |(name, value): &(&'static str, &'static str)| {
        (HeaderName::from_static(name), HeaderValue::from_static(value))
    };
    Arc::new(Route {
        name: "r".into(),
        path: PathPattern::parse(&spec.path).expect("a valid pattern"),
        host: spec.host.map(Into::into),
        headers: spec.headers.iter().map(pair).collect(),
        methods: spec.methods.clone(),
        action: Action::Proxy { upstream: 0, rewrite: None },
        request: HeaderRules::default(),
        response: HeaderRules::default(),
        max_body: 0,
        limits: Vec::new(),
        cache: None,
        invalidates: Vec::new(),
    })
}

struct Table(Vec<Arc<Route>>, Matcher);

fn table(specs: &[Spec]) -> Table {
    let routes: Vec<_> = specs.iter().map(route).collect();
    let matcher = Matcher::build(&routes);
    Table(routes, matcher)
}

#[derive(Debug, PartialEq)]
enum Answer {
    /// The route and the values of its placeholders.
    Route(usize, Vec<String>),
    Allowed(Vec<String>),
    NotFound,
}

impl Answer {
    fn allowed(methods: impl IntoIterator<Item = Method>) -> Self {
        let mut names: Vec<_> = methods.into_iter().map(|method| method.to_string()).collect();
        names.sort();
        names.dedup();
        if names.is_empty() { Self::NotFound } else { Self::Allowed(names) }
    }
}

impl Table {
    fn find(&self, method: &Method, host: &str, path: &str, headers: &HeaderMap) -> Answer {
        let mut params = Params::default();
        match self.1.find(&self.0, method, host, path, headers, &mut params) {
            Found::Route(index, route) => {
                let value = |n| params.get(n, path).expect("a value for each name").to_owned();
                assert_eq!(params.get(route.path.names().len(), path), None);
                Answer::Route(index, (0..route.path.names().len()).map(value).collect())
            }
            Found::MethodNotAllowed(methods) => Answer::allowed(methods),
            Found::NotFound => Answer::NotFound,
        }
    }

    fn get(&self, path: &str) -> Answer {
        self.find(&Method::GET, "h", path, &HeaderMap::new())
    }
}

fn found(index: usize, values: &[&str]) -> Answer {
    Answer::Route(index, values.iter().map(ToString::to_string).collect())
}

#[test]
fn literals_go_before_names_and_names_before_the_rest() {
    let table = table(&[spec("/{*rest}"), spec("/a/{id}"), spec("/a/b"), spec("/a/{id}/c")]);
    assert_eq!(table.get("/a/b"), found(2, &[]));
    assert_eq!(table.get("/a/x"), found(1, &["x"]));
    assert_eq!(table.get("/a/b/c"), found(3, &["b"]), "goes back from the literal");
    assert_eq!(table.get("/a/b/d"), found(0, &["a/b/d"]));
    assert_eq!(table.get("/"), found(0, &[""]));
    assert_eq!(table.get("/a/"), found(0, &["a/"]), "a name takes no empty segment");
}

#[test]
fn the_rest_may_be_empty_with_and_without_a_slash() {
    let table = table(&[spec("/files/{*rest}"), spec("/files/x")]);
    assert_eq!(table.get("/files/"), found(0, &[""]));
    assert_eq!(table.get("/files"), found(0, &[""]));
    assert_eq!(table.get("/files/x/"), found(0, &["x/"]));
    assert_eq!(table.get("/filesx"), Answer::NotFound);
}

#[test]
fn a_final_slash_makes_another_path() {
    let table = table(&[spec("/a"), spec("/b/")]);
    assert_eq!(table.get("/a/"), Answer::NotFound);
    assert_eq!(table.get("/b"), Answer::NotFound);
    assert_eq!(table.get("/b/"), found(1, &[]));
}

#[test]
fn hosts_are_compared_without_case_port_and_final_dot() {
    let specs = [
        spec("/a"),
        Spec { host: Some("h.example"), ..spec("/a") },
        Spec { host: Some("[::1]"), ..spec("/a") },
    ];
    let table = table(&specs);
    let find = |host: &str| table.find(&Method::GET, host, "/a", &HeaderMap::new());
    for host in ["h.example", "H.Example", "h.example:8080", "h.example.", "h.example.:80"] {
        assert_eq!(find(host), found(1, &[]), "{host}");
    }
    assert_eq!(find("[::1]:80"), found(2, &[]));
    assert_eq!(find("[::1]"), found(2, &[]));
    for host in ["", "example", "xh.example", ":", "h.example..", &"x".repeat(1000)] {
        assert_eq!(find(host), found(0, &[]), "{host}");
    }
}

#[test]
fn more_headers_go_first_and_then_the_order() {
    let with = |headers| Spec { headers, ..spec("/a") };
    let specs = [
        with(vec![]),
        with(vec![("x", "1")]),
        with(vec![("x", "1"), ("y", "2")]),
        with(vec![("y", "2")]),
    ];
    let table = table(&specs);
    let mut headers = HeaderMap::new();
    let mut find = |name: &'static str, value: &'static str| {
        headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        table.find(&Method::GET, "h", "/a", &headers)
    };
    assert_eq!(find("x", "2"), found(0, &[]));
    assert_eq!(find("y", "2"), found(3, &[]));
    assert_eq!(find("x", "1"), found(2, &[]), "any of a header's lines counts");
}

#[test]
fn another_method_is_answered_with_those_that_are_allowed() {
    let with = |path, methods: &[Method]| Spec { methods: Some(methods.to_vec()), ..spec(path) };
    let specs = [
        with("/a", &[Method::GET]),
        with("/{x}", &[Method::PUT, Method::GET]),
        with("/b", &[Method::PUT]),
    ];
    let table = table(&specs);
    let find = |method, path| table.find(&method, "h", path, &HeaderMap::new());
    assert_eq!(find(Method::DELETE, "/a"), Answer::allowed([Method::GET, Method::PUT]));
    assert_eq!(find(Method::PUT, "/a"), found(1, &["a"]), "a less specific route takes it");
    assert_eq!(find(Method::OPTIONS, "/b"), Answer::allowed([Method::PUT, Method::GET]));
    assert_eq!(find(Method::GET, "/c/d"), Answer::NotFound);
}

#[test]
fn get_routes_take_head_unless_one_names_it() {
    let with = |path, methods: &[Method]| Spec { methods: Some(methods.to_vec()), ..spec(path) };
    let specs =
        [with("/a", &[Method::GET]), with("/b", &[Method::GET]), with("/b", &[Method::HEAD])];
    let table = table(&specs);
    let head = |path| table.find(&Method::HEAD, "h", path, &HeaderMap::new());
    assert_eq!(head("/a"), found(0, &[]));
    assert_eq!(head("/b"), found(2, &[]));
    assert_eq!(table.get("/b"), found(1, &[]));
}

/// The rules as they are written down, tried on one route after the other.
fn naive(specs: &[Spec], method: &Method, host: &str, path: &str, headers: &HeaderMap) -> Answer {
    // How specific a segment is; the end of a path goes before an empty rest.
    let rank = |spec: &Spec| -> Vec<u8> {
        let segments = spec.path[1..].split('/');
        let rank = |segment: &str| match segment {
            _ if segment.starts_with("{*") => 3,
            _ if segment.starts_with('{') => 2,
            _ => 1,
        };
        segments.map(rank).chain([0]).collect()
    };
    let mut order: Vec<usize> = (0..specs.len()).collect();
    order.sort_by_key(|index| {
        let spec = &specs[*index];
        (rank(spec), spec.host.is_none(), std::cmp::Reverse(spec.headers.len()), *index)
    });
    let candidates: Vec<_> = order
        .into_iter()
        .filter_map(|index| Some((index, values(&specs[index].path, path)?)))
        .filter(|(index, _)| {
            let spec = &specs[*index];
            spec.host.is_none_or(|own| own == host)
                && spec.headers.iter().all(|(name, value)| {
                    headers.get_all(*name).any(|given| given.as_bytes() == value.as_bytes())
                })
        })
        .collect();
    let names = |index: usize, method: &Method| {
        specs[index].methods.as_ref().is_some_and(|methods| methods.contains(method))
    };
    for (index, values) in &candidates {
        let takes = specs[*index].methods.is_none()
            || names(*index, method)
            || (method == Method::HEAD && names(*index, &Method::GET));
        let heir = candidates.iter().find(|(other, _)| {
            *method == Method::HEAD
                && names(*other, method)
                && shape(&specs[*other].path) == shape(&specs[*index].path)
        });
        if let Some((heir, values)) = heir {
            return Answer::Route(*heir, values.clone());
        }
        if takes {
            return Answer::Route(*index, values.clone());
        }
    }
    Answer::allowed(
        candidates.iter().flat_map(|(index, _)| specs[*index].methods.clone().unwrap_or_default()),
    )
}

fn shape(path: &str) -> String {
    PathPattern::parse(path).expect("a valid pattern").shape()
}

/// What the placeholders of `pattern` hold in `path`, if it matches.
fn values(pattern: &str, path: &str) -> Option<Vec<String>> {
    let mut values = Vec::new();
    let mut rest = Some(&path[1..]);
    for segment in pattern[1..].split('/') {
        if segment.starts_with("{*") {
            values.push(rest.unwrap_or_default().to_owned());
            return Some(values);
        }
        let (own, after) = match rest?.split_once('/') {
            Some((own, after)) => (own, Some(after)),
            None => (rest?, None),
        };
        rest = after;
        match segment.starts_with('{') {
            true if own.is_empty() => return None,
            true => values.push(own.to_owned()),
            false if own != segment => return None,
            false => {}
        }
    }
    rest.is_none().then_some(values)
}

fn any_path() -> impl Strategy<Value = String> {
    "(/(a|b)){0,4}/(a|b)?".prop_map(|path| path)
}

fn any_pattern() -> impl Strategy<Value = String> {
    let segment = prop::sample::select(vec!["a", "b", "{}"]);
    let last = prop::sample::select(vec!["", "a", "b", "{}", "{*}"]);
    (prop::collection::vec(segment, 0..4), last).prop_map(|(mut segments, last)| {
        segments.push(last);
        let named = segments.iter().enumerate().map(|(n, segment)| match *segment {
            "{}" => format!("/{{p{n}}}"),
            "{*}" => format!("/{{*p{n}}}"),
            literal => format!("/{literal}"),
        });
        named.collect()
    })
}

fn any_methods() -> impl Strategy<Value = Option<Vec<Method>>> {
    let method = prop::sample::select(vec![Method::GET, Method::HEAD, Method::PUT]);
    prop::option::of(prop::collection::vec(method, 1..3))
}

fn any_spec() -> impl Strategy<Value = Spec> {
    let host = prop::option::of(prop::sample::select(vec!["h", "i"]));
    let header = prop::sample::select(vec![("x", "1"), ("x", "2"), ("y", "1")]);
    let headers = prop::collection::vec(header, 0..3);
    (any_pattern(), host, headers, any_methods()).prop_map(|(path, host, headers, methods)| Spec {
        path,
        host,
        headers,
        methods,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]
    #[test]
    fn the_tree_agrees_with_trying_one_route_after_the_other(
        specs in prop::collection::vec(any_spec(), 0..12),
        paths in prop::collection::vec(any_path(), 8),
        method in prop::sample::select(vec![Method::GET, Method::HEAD, Method::PUT]),
        host in prop::sample::select(vec!["h", "i", "j"]),
        given in prop::collection::vec(prop::sample::select(vec![("x", "1"), ("x", "2"), ("y", "1")]), 0..3),
    ) {
        let table = table(&specs);
        let mut headers = HeaderMap::new();
        for (name, value) in given {
            headers.append(HeaderName::from_static(name), HeaderValue::from_static(value));
        }
        for path in paths {
            let expected = naive(&specs, &method, host, &path, &headers);
            prop_assert_eq!(table.find(&method, host, &path, &headers), expected, "{}", path);
        }
    }

    #[test]
    fn no_path_or_host_makes_a_search_panic(path in "(/|[ab%é])*", host in ".*") {
        let table = table(&[spec("/a/{x}/{*r}"), Spec { host: Some("h"), ..spec("/{x}") }]);
        table.find(&Method::GET, &host, &path, &HeaderMap::new());
    }
}
