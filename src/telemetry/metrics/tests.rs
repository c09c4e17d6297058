use std::{
    collections::{BTreeMap, HashSet},
    thread,
    time::Duration,
};

use super::*;

/// Every sample by its name and labels as written; panics on whatever the format forbids.
fn parse(page: &str) -> BTreeMap<String, f64> {
    let mut samples = BTreeMap::new();
    let mut families = HashSet::new();
    let (mut family, mut kind) = ("", "");
    assert!(page.ends_with('\n'));
    let mut lines = page.lines();
    while let Some(line) = lines.next() {
        if let Some(help) = line.strip_prefix("# HELP ") {
            let (name, text) = help.split_once(' ').expect("help has a text");
            assert!(!text.is_empty());
            let typed = lines.next().and_then(|line| line.strip_prefix("# TYPE ")).expect("a type");
            let (same, of) = typed.split_once(' ').unwrap();
            assert_eq!(same, name);
            assert!(["counter", "gauge", "histogram"].contains(&of), "{of}");
            assert!(families.insert(name), "{name} comes twice");
            assert_eq!(of == "counter", name.ends_with("_total"), "{name}");
            (family, kind) = (name, of);
            continue;
        }
        let end = line.find(['{', ' ']).expect("a value");
        let (name, rest) = line.split_at(end);
        assert!(name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_'), "{line}");
        let suffix = name.strip_prefix(family).expect("a sample stands in its family");
        match kind {
            "histogram" => assert!(["_bucket", "_sum", "_count"].contains(&suffix), "{line}"),
            _ => assert_eq!(suffix, "", "{line}"),
        }
        let value = match rest.strip_prefix('{') {
            None => rest,
            Some(labels) => after_labels(labels),
        };
        let value = value.strip_prefix(' ').expect("one space before the value");
        let series = line[..line.len() - value.len() - 1].to_owned();
        let value: f64 = value.parse().expect("a number");
        assert!(kind == "gauge" || value >= 0.0, "{line}");
        assert!(samples.insert(series, value).is_none(), "{line} comes twice");
    }
    samples
}

fn after_labels(mut text: &str) -> &str {
    let mut names = HashSet::new();
    loop {
        let (name, rest) = text.split_once("=\"").expect("a label");
        assert!(!name.is_empty() && name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_'));
        assert!(names.insert(name));
        let mut escaped = false;
        let close = rest.find(|character| match (escaped, character) {
            (true, _) => {
                assert!(['\\', '"', 'n'].contains(&character));
                escaped = false;
                false
            }
            (false, '\\') => {
                escaped = true;
                false
            }
            (false, _) => character == '"',
        });
        let rest = &rest[close.expect("a closing quote") + 1..];
        match rest.strip_prefix(',') {
            Some(rest) => text = rest,
            None => return rest.strip_prefix('}').expect("a closing brace"),
        }
    }
}

fn hit(micros: u64) -> Observation {
    Observation {
        status: 200,
        cache: CacheOutcome::Hit,
        bytes: 100,
        duration: Duration::from_micros(micros),
        upstream: None,
    }
}

#[test]
fn an_unused_gateway_renders_a_valid_page() {
    let samples = parse(&Registry::default().render());
    assert_eq!(
        samples[concat!("portway_build_info{version=\"", env!("CARGO_PKG_VERSION"), "\"}")],
        1.0
    );
    assert!(samples["process_resident_memory_bytes"] > 100_000.0);
    assert!(samples["process_open_fds"] >= 3.0);
    assert!(samples.contains_key("portway_access_log_dropped_total"));
    assert!(!samples.keys().any(|name| name.contains("route=")));
}

#[test]
fn requests_are_counted_by_route_status_and_outcome() {
    let registry = Registry::default();
    let route = registry.route("product");
    route.observe(&hit(50));
    route.observe(&hit(51));
    route.observe(&Observation {
        status: 503,
        cache: CacheOutcome::Miss,
        bytes: 7,
        duration: Duration::from_secs(60),
        upstream: Some(Duration::from_millis(4)),
    });
    registry.unrouted().observe(&Observation { status: 404, cache: CacheOutcome::None, ..hit(1) });
    let samples = parse(&registry.render());
    for (series, expected) in [
        ("portway_http_requests_total{route=\"product\",status=\"2xx\",cache=\"hit\"}", 2.0),
        ("portway_http_requests_total{route=\"product\",status=\"5xx\",cache=\"miss\"}", 1.0),
        ("portway_http_requests_total{route=\"-\",status=\"4xx\",cache=\"none\"}", 1.0),
        ("portway_http_response_bytes_total{route=\"product\"}", 207.0),
        (
            "portway_http_request_duration_seconds_bucket{route=\"product\",cached=\"true\",le=\"0.00005\"}",
            1.0,
        ),
        (
            "portway_http_request_duration_seconds_bucket{route=\"product\",cached=\"true\",le=\"0.0001\"}",
            2.0,
        ),
        ("portway_http_request_duration_seconds_sum{route=\"product\",cached=\"true\"}", 0.000101),
        (
            "portway_http_request_duration_seconds_bucket{route=\"product\",cached=\"false\",le=\"30\"}",
            0.0,
        ),
        (
            "portway_http_request_duration_seconds_bucket{route=\"product\",cached=\"false\",le=\"+Inf\"}",
            1.0,
        ),
        ("portway_http_request_duration_seconds_count{route=\"product\",cached=\"false\"}", 1.0),
        ("portway_upstream_duration_seconds_bucket{route=\"product\",le=\"0.005\"}", 1.0),
        ("portway_upstream_duration_seconds_sum{route=\"product\"}", 0.004),
    ] {
        assert_eq!(samples.get(series), Some(&expected), "{series}");
    }
}

#[test]
fn every_outcome_has_its_own_counter() {
    for (index, outcome) in CacheOutcome::ALL.into_iter().enumerate() {
        assert_eq!(outcome as usize, index);
        assert_eq!(outcome.label(), outcome.as_str().to_lowercase());
    }
}

#[test]
fn statuses_outside_the_known_classes_do_not_panic() {
    let registry = Registry::default();
    for status in [0, 99, 100, 599, 600, 999, u16::MAX] {
        registry.unrouted().observe(&Observation { status, ..hit(1) });
    }
    let samples = parse(&registry.render());
    let class = |class| {
        samples[&format!(
            "portway_http_requests_total{{route=\"-\",status=\"{class}\",cache=\"hit\"}}"
        )]
    };
    assert_eq!((class("1xx"), class("5xx")), (3.0, 4.0));
}

#[test]
fn no_request_is_lost_between_threads() {
    let registry = Registry::default();
    let route = registry.route("busy");
    thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| (0..10_000).for_each(|_| route.observe(&hit(10))));
        }
        // A page read meanwhile is valid as well.
        parse(&registry.render());
    });
    let samples = parse(&registry.render());
    let series = "portway_http_requests_total{route=\"busy\",status=\"2xx\",cache=\"hit\"}";
    assert_eq!(samples[series], 80_000.0);
    assert_eq!(samples["portway_http_response_bytes_total{route=\"busy\"}"], 8_000_000.0);
}

#[test]
fn a_reload_goes_on_counting_and_a_removed_route_disappears() {
    let registry = Registry::default();
    let old = registry.route("kept");
    old.observe(&hit(1));
    let new = registry.route("kept");
    drop(old);
    new.observe(&hit(1));
    let removed = registry.route("removed");
    removed.observe(&hit(1));
    drop(removed);
    let page = registry.render();
    assert_eq!(parse(&page)["portway_http_response_bytes_total{route=\"kept\"}"], 200.0);
    assert!(!page.contains("removed"));
}

#[test]
fn two_gateways_in_one_process_count_apart() {
    let (one, other) = (Registry::default(), Registry::default());
    let route = one.route("same");
    route.observe(&hit(1));
    let _same_name = other.route("same");
    assert!(one.render().contains("same"));
    assert!(!other.render().contains("same"));
}

#[test]
fn what_collectors_add_is_escaped() {
    let registry = Registry::default();
    registry.register_collector(|out| {
        out.gauge("portway_odd", "A \\ and a\nline feed, and \"quotes\"")
            .sample(&[("name", "a\\b\"c\nd"), ("other", "")], -1.5)
            .sample(&[("name", "}, 1"), ("other", "ü")], u64::MAX);
    });
    let odd = registry.route("odd\"} 1\nportway_forged 1");
    odd.observe(&hit(1));
    let page = registry.render();
    let samples = parse(&page);
    assert_eq!(samples[r#"portway_odd{name="a\\b\"c\nd",other=""}"#], -1.5);
    assert!(page.contains("# HELP portway_odd A \\\\ and a\\nline feed, and \"quotes\"\n"));
}
