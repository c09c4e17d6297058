//! Whole routes files: what they become, and what is said about their mistakes.

use std::{collections::BTreeMap, collections::BTreeSet, time::Duration};

use proptest::prelude::*;

use super::*;

fn table(text: &str) -> Result<RouteTable, String> {
    let variables = [("PORT", "8081"), ("SECRET", "hunter2"), ("MANY", "7")];
    let env: BTreeMap<_, _> =
        variables.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
    RouteTable::parse("r.yaml", text, &env).map_err(|errors| errors.to_string())
}

/// The messages with their places, without the snippets.
fn mistakes(text: &str) -> Vec<String> {
    let shown = table(text).expect_err("the file has mistakes");
    shown.lines().filter(|line| line.starts_with("r.yaml")).map(str::to_owned).collect()
}

/// A file with one upstream `u` and one route, whose keys besides `name` are `keys`.
fn with_route(keys: &str) -> String {
    let mut text = "upstreams:\n  u: { targets: [http://h] }\nroutes:\n  - name: r\n".to_owned();
    for line in keys.lines() {
        text.push_str("    ");
        text.push_str(line);
        text.push('\n');
    }
    text
}

fn assert_mistake(text: &str, expected: &str) {
    let found = mistakes(text);
    assert!(found.len() == 1 && found[0].contains(expected), "{expected}: {found:#?}\n{text}");
}

fn assert_route_mistake(keys: &str, expected: &str) {
    assert_mistake(&with_route(keys), expected);
}

#[test]
fn the_example_file_is_read_in_full() {
    let text = include_str!("../../routes.example.yaml");
    let table = table(text).unwrap_or_else(|errors| panic!("{errors}"));
    let catalog = &table.upstreams[0];
    assert_eq!(&*catalog.name, "catalog");
    assert_eq!(catalog.targets.len(), 2);
    assert_eq!(catalog.targets[0].as_str(), "http://10.0.0.5:8080/");
    assert_eq!(catalog.balance, Balance::LeastRequests);
    assert_eq!(catalog.timeout.first_byte, Duration::from_secs(10));
    assert_eq!(table.upstreams[1].targets[0].path(), "/v1");
    let product = &table.routes[0];
    assert_eq!(&*product.name, "product");
    assert_eq!(product.methods.as_deref(), Some(&[Method::GET, Method::HEAD][..]));
    assert_eq!(product.request.set[0].0, "x-api-version");
    assert_eq!(product.request.remove, ["cookie"]);
    let cache = product.cache.as_ref().expect("a cache section");
    assert_eq!(cache.ttl, Some(Duration::from_secs(300)));
    assert_eq!(cache.stale_if_error, Some(Duration::from_secs(3600)));
    assert_eq!(cache.query.as_deref(), Some(&["page".into(), "sort".into()][..]));
    assert_eq!(cache.warm_paths.len(), 2);
    let minute = Duration::from_secs(60);
    assert_eq!(product.limits, [Limit { requests: 100, window: minute, by: LimitBy::Ip }]);
    assert_eq!(table.routes[1].limits.len(), 2);
    assert_eq!(table.routes[1].limits[1].by, LimitBy::Route);
    assert_eq!(table.routes[1].max_body, 1 << 20);
    assert_eq!(table.routes[1].invalidates.len(), 2);
    let news = table.routes[2].cache.as_ref().expect("a cache section");
    assert!(news.override_origin);
    assert_eq!(news.warm_paths, [Box::from("/api/news")]);
    let Action::Respond { status, headers, body } = &table.routes[5].action else {
        panic!("a fixed response");
    };
    assert_eq!((status.as_u16(), headers.len()), (200, 1));
    assert!(body.starts_with(b"User-agent: *\n"));
}

#[test]
fn the_example_file_shows_every_key() {
    fn keys_of(section: &keys::Section, all: &mut BTreeSet<&'static str>) {
        for key in section.keys {
            all.insert(key.name);
            inner(&key.kind, all);
        }
    }
    fn inner(kind: &keys::Kind, all: &mut BTreeSet<&'static str>) {
        match kind {
            keys::Kind::Section(section) | keys::Kind::OneOrMore { of: section, .. } => {
                keys_of(section, all);
            }
            keys::Kind::List { of, .. } | keys::Kind::Named { of, .. } => inner(of, all),
            _ => {}
        }
    }
    let mut all = BTreeSet::new();
    keys_of(&keys::FILE, &mut all);
    let example = include_str!("../../routes.example.yaml");
    for key in all {
        assert!(example.contains(&format!("{key}:")), "{key} is not in routes.example.yaml");
    }
}

#[test]
fn what_a_file_leaves_out_has_defaults() {
    let table = table(&with_route("path: /a\nupstream: u")).expect("valid");
    let upstream = &table.upstreams[0];
    assert_eq!(upstream.balance, Balance::RoundRobin);
    assert_eq!(upstream.health, None);
    assert_eq!(upstream.timeout.connect, Duration::from_secs(2));
    assert_eq!(upstream.timeout.first_byte, Duration::from_secs(30));
    assert_eq!(upstream.timeout.idle, Duration::from_secs(30));
    assert_eq!((upstream.retry.attempts, upstream.retry.on_connect), (2, true));
    assert!(upstream.retry.on_status.is_empty());
    assert_eq!(upstream.breaker.failures, 5);
    let route = &table.routes[0];
    assert_eq!(route.max_body, 10 << 20);
    assert!(route.methods.is_none() && route.cache.is_none() && route.host.is_none());
    assert!(route.limits.is_empty());
}

#[test]
fn one_upstream_takes_every_path() {
    let url = Url::parse("http://h:1/base").expect("valid");
    let table = RouteTable::single_upstream(&url);
    for path in ["/", "/a", "/a/b/"] {
        let (headers, mut params) = (HeaderMap::new(), Params::default());
        let found = table.find(&Method::POST, "x", path, &headers, &mut params);
        let Found::Route(0, route) = found else { panic!("{path}: {found:?}") };
        assert_eq!((&*route.name, route.cache.is_none()), ("upstream", true));
        assert_eq!(params.get(0, path), Some(&path[1..]));
    }
}

#[test]
fn all_mistakes_are_listed_at_once_with_place_and_snippet() {
    let text = "\
upstreams:
  u: { targets: [ftp://h], colour: blue }
  u: { targets: [] }
routes:
  - name: a
    pth: /a
    upstream: v
    max_body: big
  - name: a
    path: b
    upstream: u
    cache: { ttl: soon, tags: 5 }
";
    let found = mistakes(text);
    let expected = [
        "r.yaml:2:18: expected an http:// or https:// URL, not `ftp://h`",
        "r.yaml:2:28: unknown key `colour`: expected targets, balance",
        "r.yaml:3:3: the upstream `u` is there twice, first in line 2",
        "r.yaml:3:17: expected a list that is not empty",
        "r.yaml:5:5: `path` is missing",
        "r.yaml:6:5: unknown key `pth`: expected name, path",
        "r.yaml:7:15: there is no upstream `v`",
        "r.yaml:8:15: expected a size such as",
        "r.yaml:9:11: the route `a` is there twice, first in line 5",
        "r.yaml:10:11: expected a path that starts with `/`, not `b`",
        "r.yaml:12:19: expected a duration such as",
        "r.yaml:12:31: expected a list, not `5`",
    ];
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert!(found.starts_with(expected), "{found}\n{expected}");
    }
    let shown = table(text).expect_err("mistakes");
    assert!(shown.contains("\n    6 |     pth: /a\n      |     ^\n"), "{shown}");
}

#[test]
fn a_document_that_is_not_yaml_is_an_error_with_its_place() {
    let found = mistakes("routes: [\n  {name: a\n");
    assert!(found.len() == 1 && found[0].starts_with("r.yaml:"), "{found:?}");
    assert!(!found[0].starts_with("r.yaml: "), "the place is known: {found:?}");
    assert_mistake("", "expected a map, not nothing");
    assert_mistake("- a\n", "expected a map, not a list");
    assert_mistake("routes: []\n---\nroutes: []\n", "expected one YAML document");
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let env: BTreeMap<String, String> = BTreeMap::new();
    let error = RouteTable::load(Path::new("/no/such.yaml"), &env).expect_err("no file");
    assert!(error.to_string().starts_with("/no/such.yaml: cannot be read"), "{error}");
}

#[test]
fn variables_fill_values_and_cannot_add_structure() {
    let text = "\
upstreams:
  u: { targets: ['http://h:${PORT}'], retry: { attempts: '${MANY}' } }
routes:
  - { name: r, path: '/${NAME:-a}', upstream: u, max_body: '${MAX:-1KiB}' }
";
    let table = table(text).expect("valid");
    assert_eq!(table.upstreams[0].targets[0].port(), Some(8081));
    assert_eq!(table.upstreams[0].retry.attempts, 7);
    assert_eq!((table.routes[0].path.as_str(), table.routes[0].max_body), ("/a", 1024));
    assert_route_mistake("path: /a\nupstream: '${NONE}'", "the variable `NONE` is not set");
}

#[test]
fn what_a_variable_holds_is_not_repeated() {
    for path in ["${SECRET}", "/a{${SECRET}}"] {
        let keys = format!("path: '{path}'\nupstream: u");
        let shown = table(&with_route(&keys)).expect_err("no pattern");
        assert!(shown.contains("${SECRET}") && !shown.contains("hunter2"), "{shown}");
    }
}

#[test]
fn routes_with_mistakes_are_refused() {
    for (keys, expected) in [
        ("path: /a", "exactly one of upstream, sql and respond, not none"),
        (
            "path: /a\nupstream: u\nrespond: {}",
            "exactly one of upstream, sql and respond, not several",
        ),
        ("path: /a\nupstream: u\nauth: [api-key]", "unknown key `auth`"),
        ("path: /a\nupstream: u\nname: s", "the key `name` is there twice"),
        ("path: /a\nupstream: u\nmethods: []", "expected a list that is not empty"),
        ("path: /a\nupstream: u\nmethods: [get]", "expected a method such as GET"),
        ("path: /a\nupstream: u\nmethods: [GET, GET]", "there twice"),
        ("path: /a\nupstream: u\nmethods: [CONNECT]", "never forwarded"),
        ("path: /a\nupstream: u\nmethods: GET", "expected a list, not `GET`"),
        ("path: /a\nupstream: u\nhost: http://h", "expected a host name"),
        ("path: /a\nupstream: u\nhost: 'h:80'", "expected a host name"),
        ("path: /a\nupstream: u\nhost: '*.h'", "expected a host name"),
        ("path: /a\nupstream: u\nheaders: { 'a b': x }", "is not a header name"),
        ("path: /a\nupstream: u\nheaders: { a: \"x\\ny\" }", "is not a header value"),
        ("path: /a\nupstream: u\nheaders: { a: 2 }", "put it in quotes"),
        ("path: /a\nupstream: u\nheaders: { a: x, A: y }", "the header `A` is there twice"),
        ("path: /a\nupstream: u\nheaders: { a: x, a: y }", "the header `a` is there twice"),
        ("path: /a\nupstream: u\nrequest: { set: { Host: x } }", "belongs to the connection"),
        ("path: /a\nupstream: u\nrequest: { remove: [TE] }", "belongs to the connection"),
        ("path: /a\nupstream: u\nresponse: { set: { Transfer-Encoding: x } }", "belongs to"),
        ("path: /a\nupstream: u\nresponse: { add: {} }", "unknown key `add`"),
        ("path: /a/{id}\nupstream: u\nrewrite: /b/{x}", "which has no `{x}`"),
        ("path: /a/{id}\nupstream: u\nrewrite: b/{id}", "does not start with a slash"),
        ("path: /a/{id}\nupstream: u\nrewrite: /b/../{id}", "dot segment"),
        ("path: /a/{*rest}\nupstream: u\nrewrite: /b/.{rest}", "dot segment"),
        ("path: /a/{id}\nupstream: u\nrewrite: /b?id={id}", "`?` or `#`"),
        ("path: /a/{id}\nupstream: u\nrewrite: //b/{id}", "not in normal form"),
        ("path: /a/{id}\nupstream: u\ncache: { tags: ['p:{x}'] }", "which has no `{x}`"),
        ("path: /a/{id}\nupstream: u\ncache: { tags: [''] }", "not empty"),
        ("path: /a\nupstream: u\ninvalidates: ['{x}']", "which has no `{x}`"),
        ("path: /a\nupstream: u\ncache: { vary: ['*/'] }", "is not a header name"),
        ("path: /a\nupstream: u\ncache: { scope: user }", "unknown key `scope`"),
        ("path: /a\nupstream: u\ncache: { ttl: -5 }", "expected a duration"),
        ("path: /a\nupstream: u\ncache: { override: 'yes' }", "expected true or false"),
        ("path: /a\nupstream: u\ncache: { warm: [login] }", "expected deploy, not `login`"),
        ("path: /a/{id}\nupstream: u\ncache: { warm: [deploy] }", "`warm_paths` is missing"),
        ("path: /a\nupstream: u\ncache: { warm_paths: [/a] }", "no effect without `warm"),
        ("path: /a\nupstream: u\ncache: { warm: [deploy], warm_paths: [/b] }", "does not answer"),
        ("path: /a\nupstream: u\ncache: { warm: [deploy], warm_paths: [/a/..] }", "dot segment"),
        ("path: /a\nupstream: u\nheaders: { a: b }\ncache: { warm: [deploy] }", "`headers`"),
        ("path: /a\nupstream: u\nmethods: [POST]\ncache: {}", "without GET and HEAD"),
        ("path: /a\nupstream: u\nmethods: [GET]\ninvalidates: [x]", "safe methods only"),
        ("path: /a\nrespond: { status: 99 }", "a whole number, 200 to 599, not `99`"),
        ("path: /a\nrespond: { status: 204, body: x }", "has no body"),
        ("path: /a\nrespond: {}\ncache: {}", "`cache` has no effect beside `respond`"),
        ("path: /a\nrespond: {}\nrewrite: /b", "`rewrite` has no effect beside `respond`"),
        ("path: /a\nrespond: { headers: { Content-Length: '5' } }", "belongs to"),
        ("path: /a\nsql: { read: SELECT 1 }\nrewrite: /b", "`rewrite` has no effect beside `sql`"),
        ("path: /a\nupstream: u\nparams: { a: query text }", "`params` has no effect beside"),
        ("path: /a\nsql: {}", "exactly one of read and write"),
        ("path: /a\nsql: { read: 'SELECT :a' }", "`:a` is not in `params`"),
        ("path: /a\nsql: { read: SELECT 1 }\nparams: { a: query text }", "`a` is not used"),
        ("path: /a\nsql: { read: 'SELECT :a' }\nparams: { a: path text }", "has no `{a}`"),
        ("path: /a\nsql: { read: 'SELECT :a' }\nparams: { a: query txt }", "not `txt`"),
        ("path: /a\nsql: { read: DELETE FROM t }", "expected a SELECT"),
        ("path: /a\nsql: { read: 'SELECT pg_notify(1, 2)' }", "`pg_notify` does more than read"),
        ("path: /a\nsql: { read: SELECT 1; SELECT 2 }", "more than one statement"),
        ("path: /a\nsql: { read: SELECT 1, max_rows: 0 }", "a whole number, 1 to"),
        ("path: /a\nsql: { read: SELECT 1, page: { keys: [id] } }", "one of integer"),
        (
            "path: /a\nsql: { read: SELECT 1, page: { keys: [id integer], limit: 500 } }",
            "at most 200",
        ),
        ("path: /a\nsql: { write: DELETE FROM t }", "a write needs `methods`"),
        ("path: /a\nmethods: [GET, PUT]\nsql: { write: DELETE FROM t }", "a write needs `methods`"),
        ("path: /a\nmethods: [PUT]\nsql: { write: DELETE FROM t }\ncache: {}", "beside `write`"),
        (
            "path: /a\nparams: { q: query text }\nsql: { read: 'SELECT :q' }\ncache: { query: [p] }",
            "takes `q`, which is not in `query`",
        ),
        ("path: /a\nsql: { write: DELETE FROM t, page: { keys: [id integer] } }", "beside `write`"),
    ] {
        // A second mistake may follow from the first.
        let found = mistakes(&with_route(keys));
        assert!(found.iter().any(|m| m.contains(expected)), "{expected}: {found:#?}\n{keys}");
        assert!(found.len() <= 2, "{found:#?}\n{keys}");
    }
}

#[test]
fn a_limit_is_one_map_or_a_list_and_counts_by_address_unless_told_otherwise() {
    let limits = |limit: &str| {
        let text = with_route(&format!("path: /a\nupstream: u\nlimit: {limit}"));
        table(&text).unwrap_or_else(|errors| panic!("{errors}")).routes[0].limits.clone()
    };
    let hour = Duration::from_secs(3600);
    let one = [Limit { requests: 7, window: hour, by: LimitBy::Ip }];
    assert_eq!(limits("{ requests: 7, window: 1h }"), one);
    assert_eq!(limits("[{ requests: '${MANY}', window: 3600, by: ip }]"), one);
    let by = |limit: &str| limits(limit).into_iter().map(|limit| limit.by).collect::<Vec<_>>();
    assert_eq!(
        by("[{ requests: 1, window: 1s, by: caller }, { requests: 1, window: 1s, by: tenant }]"),
        [LimitBy::Caller, LimitBy::Tenant]
    );
    assert_eq!(
        by("[{ requests: 9, window: 1s }, { requests: 99, window: 1m }]"),
        [LimitBy::Ip, LimitBy::Ip]
    );
}

#[test]
fn limits_with_mistakes_are_refused() {
    for (limit, expected) in [
        ("{}", "`requests` is missing"),
        ("{ requests: 5 }", "`window` is missing"),
        ("{ requests: 0, window: 1m }", "a whole number, 1 to 1000000000, not `0`"),
        ("{ requests: 5, window: 500ms }", "at least 1000ms, not `500ms`"),
        ("{ requests: 5, window: 1s500ms }", "whole seconds, at most 366d, not `1s500ms`"),
        ("{ requests: 5, window: 367d }", "whole seconds, at most 366d, not `367d`"),
        ("{ requests: 5, window: 1m, by: user }", "expected ip, caller, tenant or route"),
        ("{ requests: 5, window: 1m, per: ip }", "unknown key `per`"),
        ("100", "expected a map or a list of maps, not `100`"),
        ("[]", "expected 1 to 4 maps, not 0"),
        ("[5]", "expected a map, not `5`"),
        ("[{ requests: 5, window: 1m }, { requests: 5, window: 1m }]", "this limit has no effect"),
        ("[{ requests: 9, window: 1m }, { requests: 5, window: 1h }]", "this limit has no effect"),
    ] {
        let found = mistakes(&with_route(&format!("path: /a\nupstream: u\nlimit: {limit}")));
        assert!(found.iter().any(|m| m.contains(expected)), "{expected}: {found:#?}");
        assert!(found.len() <= 2, "{found:#?}");
    }
    let many = ["{ requests: 5, window: 1m }"; 5].join(", ");
    let found = mistakes(&with_route(&format!("path: /a\nupstream: u\nlimit: [{many}]")));
    assert!(found[0].contains("expected 1 to 4 maps, not 5"), "{found:#?}");
}

#[test]
fn upstreams_with_mistakes_are_refused() {
    for (keys, expected) in [
        ("{}", "`targets` is missing"),
        ("{ targets: [http://h, 'http://h/'] }", "there twice"),
        ("{ targets: [http://h?x] }", "without query"),
        ("{ targets: [http://h], balance: random }", "expected round-robin, least-requests or"),
        ("{ targets: [http://h], retry: { attempts: 0 } }", "a whole number, 1 to 10, not `0`"),
        ("{ targets: [http://h], retry: { on: [reset] } }", "expected connect or a whole number"),
        ("{ targets: [http://h], timeout: { connect: 0s } }", "at least 1ms, not `0s`"),
        ("{ targets: [http://h], breaker: { failures: 1.5 } }", "not `1.5`"),
        ("{ targets: [http://h], health: { interval: 5s } }", "`path` is missing"),
        ("{ targets: [http://h], health: { path: x } }", "is not a path to fetch"),
    ] {
        assert_mistake(&format!("upstreams: {{ u: {keys} }}\nroutes: []\n"), expected);
    }
    let password = "upstreams: { u: { targets: ['http://me:hunter2@h'] } }\nroutes: []\n";
    let found = mistakes(password);
    assert!(found[0].contains("without user name") && !found[0].contains("hunter2"), "{found:?}");
    assert_mistake("upstreams: { 'a b': { targets: [http://h] } }\nroutes: []\n", "is no name for");
}

#[test]
fn a_route_that_others_shadow_is_refused() {
    let shadowed = |first: &str, second: &str| {
        let text = format!(
            "routes:\n  - {{ name: a, respond: {{}}, {first} }}\n  - {{ name: b, respond: {{}}, {second} }}\n"
        );
        match table(&text) {
            Ok(_) => false,
            Err(errors) => {
                assert!(errors.contains("the route `b` is never reached: `a`"), "{errors}");
                true
            }
        }
    };
    assert!(shadowed("path: '/a/{x}'", "path: '/a/{y}'"));
    assert!(shadowed("path: /a", "path: /%61, methods: [GET]"));
    assert!(shadowed("path: /a, methods: [GET, PUT]", "path: /a, methods: [PUT]"));
    assert!(shadowed("path: /a, host: H", "path: /a, host: h."));
    assert!(shadowed("path: /a, headers: { a: x, b: y }", "path: /a, headers: { B: y, A: x }"));
    assert!(!shadowed("path: /a, methods: [GET]", "path: /a"));
    assert!(!shadowed("path: /a, methods: [GET]", "path: /a, methods: [HEAD]"));
    assert!(!shadowed("path: /a", "path: /a, methods: [HEAD]"));
    assert!(!shadowed("path: /a", "path: /a, host: h"));
    assert!(!shadowed("path: /a, headers: { a: x }", "path: /a, headers: { a: y }"));
    assert!(!shadowed("path: '/{*rest}'", "path: '/{x}'"));
}

#[test]
fn anchors_share_what_routes_have_in_common() {
    let text = "\
routes:
  - &base { name: a, path: /a, respond: { status: 204 } }
  - { <<: *base, name: b, path: /b }
";
    let table = table(text).expect("valid");
    assert_eq!(table.routes.len(), 2);
    assert_eq!(table.routes[1].path.as_str(), "/b");
}

#[test]
fn many_routes_may_share_one_anchor() {
    let mut text = "routes:\n  - &base { name: r, path: /r, respond: {} }\n".to_owned();
    for n in 0..10_000 {
        text.push_str(&format!("  - {{ <<: *base, name: r{n}, path: '/{n}/{{id}}' }}\n"));
    }
    let table = table(&text).unwrap_or_else(|errors| panic!("{errors}"));
    let (headers, mut params) = (HeaderMap::new(), Params::default());
    let found = table.find(&Method::GET, "h", "/9999/x", &headers, &mut params);
    assert!(matches!(found, Found::Route(10_000, _)), "{found:?}");
}

proptest! {
    #[test]
    fn no_file_makes_the_parser_panic(
        parts in prop::collection::vec(
            prop::sample::select(vec![
                "upstreams:", "routes:", "  u:", "  - name: a", "    path: /a/{id}", "    upstream: u",
                "    cache:", "      warm: [deploy]", "      warm_paths: [/a/1]", "  - {}", "  - 5",
                "    targets: [http://h]", "    rewrite: /{id}", "    methods: [GET]", "    headers: {a: b}",
                "    host: é", "    respond: {}", "x: ${A}", "    path: /{*a}", "    max_body: 1e400",
            ]),
            0..12,
        ),
    ) {
        let _ = table(&parts.join("\n"));
    }
}
