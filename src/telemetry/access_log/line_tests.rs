use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::telemetry::{RequestId, TraceContext, request_id};

const TRACEPARENT: &[u8] = b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

pub(in crate::telemetry::access_log) struct Owned {
    pub(in crate::telemetry::access_log) id: RequestId,
    pub(in crate::telemetry::access_log) trace: TraceContext,
}

impl Owned {
    pub(in crate::telemetry::access_log) fn new() -> Self {
        let id = request_id::accept_or_new(Some(&"req-1".parse().unwrap()));
        Self { id, trace: TraceContext::parse(TRACEPARENT).unwrap() }
    }

    /// A typical hit.
    pub(in crate::telemetry::access_log) fn record(&self) -> Record<'_> {
        Record {
            request_id: &self.id,
            trace: &self.trace,
            client: IpAddr::V4(Ipv4Addr::new(192, 0, 2, 17)),
            method: "GET",
            host: Some("api.example.com"),
            path: "/v2/products/4711",
            route: Some("product"),
            status: 200,
            bytes: 1024,
            duration: Duration::from_micros(87),
            cache: CacheOutcome::Hit,
            upstream: None,
            upstream_duration: None,
            code: None,
        }
    }
}

fn line(kind: Format, record: &Record<'_>) -> String {
    let mut out = Vec::new();
    let now = SystemTime::UNIX_EPOCH + Duration::from_micros(1_795_374_454_000_042);
    format(kind, &mut out, now, record);
    String::from_utf8(out).unwrap()
}

fn parsed(record: &Record<'_>) -> Value {
    let line = line(Format::Json, record);
    assert_eq!(line.find('\n'), Some(line.len() - 1));
    serde_json::from_str(&line).unwrap()
}

#[test]
fn a_line_says_all_of_a_record() {
    let owned = Owned::new();
    let record = Record {
        cache: CacheOutcome::Miss,
        status: 502,
        upstream: Some("http://10.0.0.1:8000"),
        upstream_duration: Some(Duration::from_millis(3)),
        code: Some("upstream_unreachable"),
        ..owned.record()
    };
    let expected = json!({
        "timestamp": "2026-11-22T19:07:34.000042Z",
        "level": "INFO",
        "target": "portway::access",
        "request_id": "req-1",
        "trace_id": "0af7651916cd43dd8448eb211c80319c",
        "client_ip": "192.0.2.17",
        "method": "GET",
        "host": "api.example.com",
        "path": "/v2/products/4711",
        "route": "product",
        "status": 502,
        "bytes": 1024,
        "duration_us": 87,
        "cache": "MISS",
        "upstream": "http://10.0.0.1:8000",
        "upstream_us": 3000,
        "code": "upstream_unreachable",
    });
    assert_eq!(parsed(&record), expected);
    assert_eq!(
        line(Format::Pretty, &record),
        "2026-11-22T19:07:34.000042Z 502 GET api.example.com/v2/products/4711 87µs 1024B MISS \
         route=product upstream=http://10.0.0.1:8000 code=upstream_unreachable upstream_us=3000 \
         client=192.0.2.17 id=req-1\n"
    );
}

#[test]
fn what_is_not_known_is_left_out() {
    let owned = Owned::new();
    let record = Record { host: None, route: None, cache: CacheOutcome::None, ..owned.record() };
    let line = parsed(&record);
    for name in ["host", "route", "cache", "upstream", "upstream_us", "code"] {
        assert!(line.get(name).is_none(), "{name}");
    }
}

#[test]
fn a_long_path_is_cut_between_two_characters() {
    let owned = Owned::new();
    let path = format!("/{}", "ü".repeat(40_000));
    let line = parsed(&Record { path: &path, ..owned.record() });
    assert_eq!(line["path"], format!("/{}…", "ü".repeat(1023)));
}

#[test]
fn known_days_have_their_dates() {
    for (days, expected) in [
        (0, (1970, 1, 1)),
        (58, (1970, 2, 28)),
        (59, (1970, 3, 1)),
        (11_016, (2000, 2, 29)),
        (11_017, (2000, 3, 1)),
        (20_779, (2026, 11, 22)),
        (47_540, (2100, 2, 28)),
        (47_541, (2100, 3, 1)),
        (2_932_896, (9999, 12, 31)),
        (u64::MAX, (9999, 12, 31)),
    ] {
        assert_eq!(date(days), expected, "{days}");
    }
}

#[test]
fn dates_agree_with_the_http_date_of_the_same_day() {
    const MONTHS: &str = "Jan Feb Mar Apr May Jun Jul Aug Sep Oct Nov Dec";
    for days in (0..100_000).step_by(7) {
        let (year, month, day) = date(days);
        let name = MONTHS.split(' ').nth(month as usize - 1).unwrap();
        let reference =
            httpdate::fmt_http_date(SystemTime::UNIX_EPOCH + Duration::from_secs(days * 86_400));
        assert_eq!(reference[5..16], format!("{day:02} {name} {year}"));
    }
}

fn any_text() -> impl Strategy<Value = String> {
    prop_oneof![
        "\\PC{0,40}",
        any::<String>(),
        "[\\x00-\\x7f]{0,40}",
        "[\"\\\\/\u{7f}\u{80}-\u{a5}\u{2028}]{0,9}"
    ]
}

proptest! {
    #[test]
    fn every_line_parses_back_to_what_was_recorded(
        method in any_text(),
        host in proptest::option::of(any_text()),
        path in any_text(),
        route in proptest::option::of(any_text()),
        numbers in any::<(u16, u64, u64, u128, u32)>(),
        upstream in proptest::option::of((any_text(), 0..u64::MAX)),
    ) {
        let (status, bytes, duration, ip, _) = numbers;
        let owned = Owned::new();
        let record = Record {
            client: IpAddr::V6(Ipv6Addr::from_bits(ip)),
            method: &method,
            host: host.as_deref(),
            path: &path,
            route: route.as_deref(),
            status,
            bytes,
            duration: Duration::from_micros(duration),
            upstream: upstream.as_ref().map(|(name, _)| name.as_str()),
            upstream_duration: upstream.as_ref().map(|&(_, micros)| Duration::from_micros(micros)),
            ..owned.record()
        };
        let line = parsed(&record);
        prop_assert_eq!(&line["method"], &method);
        prop_assert_eq!(line.get("host").map(Value::as_str), host.as_deref().map(Some));
        prop_assert_eq!(&line["path"], &path);
        prop_assert_eq!(line.get("route").map(Value::as_str), route.as_deref().map(Some));
        prop_assert_eq!(&line["status"], status);
        prop_assert_eq!(&line["bytes"], bytes);
        prop_assert_eq!(&line["duration_us"], duration);
        prop_assert_eq!(line["client_ip"].as_str().unwrap().parse(), Ok(record.client));
        if let Some((name, micros)) = &upstream {
            prop_assert_eq!(&line["upstream"], name);
            prop_assert_eq!(&line["upstream_us"], *micros);
        }
    }

    #[test]
    fn no_text_breaks_a_line_for_people_or_reaches_the_terminal_raw(path in any_text()) {
        let owned = Owned::new();
        let line = line(Format::Pretty, &Record { path: &path, ..owned.record() });
        let line = line.strip_suffix('\n').unwrap();
        prop_assert!(!line.chars().any(char::is_control));
    }
}
