//! Storage and reuse, topic by topic as the public cache test suite has them: a response arrives, time
//! passes, a request comes.

use std::time::{Duration, UNIX_EPOCH};

use actix_http::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};

use super::*;
use crate::cache::clock::Timestamp;

pub(super) const NOW: Timestamp = Timestamp(1_795_000_000_400);

pub(super) fn headers(fields: &[(&str, &str)]) -> HeaderMap {
    let mut map = HeaderMap::new();
    for (name, value) in fields {
        let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
        map.append(name, HeaderValue::from_str(value).unwrap());
    }
    map
}

/// An HTTP date so many seconds from the second in which the response arrives.
pub(super) fn at(offset: i64) -> String {
    let seconds = (NOW.seconds() as i64 + offset) as u64;
    httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds))
}

pub(super) fn later(seconds: u64) -> Timestamp {
    NOW.after(Duration::from_secs(seconds))
}

fn decide_with(
    request: &[(&str, &str)],
    status: u16,
    response: &[(&str, &str)],
    rules: &Rules,
) -> Decision {
    let status = StatusCode::from_u16(status).unwrap();
    decide(&Method::GET, &headers(request), status, &headers(response), NOW, NOW, rules)
}

pub(super) fn stored(response: &[(&str, &str)]) -> Lifetime {
    match decide_with(&[], 200, response, &Rules::default()) {
        Decision::Store(lifetime) => lifetime,
        Decision::Refuse(refusal) => panic!("{response:?} refused: {refusal:?}"),
    }
}

pub(super) fn refused(response: &[(&str, &str)]) -> Refusal {
    match decide_with(&[], 200, response, &Rules::default()) {
        Decision::Refuse(refusal) => refusal,
        Decision::Store(lifetime) => panic!("{response:?} stored: {lifetime:?}"),
    }
}

fn reused_with(status: u16, response: &[(&str, &str)], seconds: u64) -> bool {
    match decide_with(&[], status, response, &Rules::default()) {
        Decision::Store(lifetime) => {
            reuse(&lifetime, &RequestControl::plain(), later(seconds), false) == Reuse::Serve
        }
        Decision::Refuse(_) => false,
    }
}

/// Whether the response answers a plain request three seconds later.
pub(super) fn reused(response: &[(&str, &str)]) -> bool {
    reused_with(200, response, 3)
}

pub(super) fn asks(directives: &str) -> RequestControl {
    RequestControl::of(&headers(&[("cache-control", directives)]))
}

#[test]
fn a_lifetime_is_small() {
    assert!(size_of::<Lifetime>() <= 40);
}

#[test]
fn the_cache_control_line_decides() {
    for (line, expected) in [
        ("max-age=3600", true),
        ("max-age=2", false),
        ("max-age=0", false),
        ("max-age=-3600", false),
        ("max-age=2147483647", true),
        ("max-age=2147483648", true),
        ("max-age=99999999999999999999999", true),
        ("foobar, max-age=3600", true),
        ("MaX-aGe=3600", true),
        ("max-age=003600", true),
        ("max-age=\"3600\"", true),
        ("max-age='3600'", false),
        ("max-age=3600.0", false),
        ("max-age=a3600", false),
        ("max-age=3600a", false),
        ("max-age =3600", false),
        ("max-age= 3600", false),
        ("max-age", false),
        ("max-age=1800, max-age=1", false),
        ("max-age=1, max-age=1800", false),
        ("s-maxage=3600", true),
        ("max-age=3600, s-maxage=1", false),
        ("s-maxage=1, max-age=3600", false),
        ("max-age=0, s-maxage=3600", true),
        ("extension=\"max-age=3600\", max-age=1", false),
        ("max-age=1, extension=\"max-age=3600\"", false),
        ("extension=\"a\\\", max-age=1, b\", max-age=3600", true),
        ("extension=\"a, no-store, max-age=3600", false),
        ("max-age=10000, must-revalidate", true),
        ("private, max-age=3600", false),
        ("PRIVATE, max-age=3600", false),
        ("private=\"\", max-age=3600", false),
        ("private=x, max-age=3600", false),
        ("private=\"x-user, @\", max-age=3600", false),
        ("private=\"x-user\", max-age=3600", true),
        ("No-StOrE, max-age=10000", false),
        ("max-age=10000, No-CaChE", false),
        ("no-cache=\"a, b\", max-age=3600", true),
        (",, ,max-age=3600,,", true),
        ("", false),
    ] {
        assert_eq!(reused(&[("cache-control", line)]), expected, "{line}");
    }
}

#[test]
fn repeated_lines_are_one_list() {
    assert!(!reused(&[("cache-control", "max-age=3600"), ("cache-control", "s-maxage=1")]));
    assert!(!reused(&[("cache-control", "max-age=3600"), ("cache-control", "no-store")]));
    assert!(reused(&[("cache-control", "no-cache=\"a\""), ("cache-control", "max-age=3600")]));
}

#[test]
fn age_counts_and_an_invalid_age_does_not() {
    for (age, expected) in [
        ("7200", false),
        ("2147483647", false),
        ("2147483649", false),
        ("18446744073709551616", false),
        ("7200, 0", false),
        ("0, 7200", true),
        ("0, 0", true),
        ("abc", true),
        ("-7200", true),
        ("7200.0", true),
        ("", true),
    ] {
        let response = [("date", &*at(0)), ("cache-control", "max-age=3600"), ("age", age)];
        assert_eq!(reused(&response), expected, "{age:?}");
    }
    let lines = [("cache-control", "max-age=3600"), ("age", "0"), ("age", "7200")];
    assert!(reused(&lines));
}

#[test]
fn age_is_the_largest_of_what_is_known() {
    let said = stored(&[("cache-control", "max-age=100"), ("age", "30")]);
    assert_eq!((said.age(NOW), said.age(later(3)), said.ttl(later(3))), (30, 33, 67));
    let dated = stored(&[("cache-control", "max-age=100"), ("date", &at(-20))]);
    assert_eq!(dated.age(later(1)), 20, "the second of the date may have just begun");
    assert!(!reused(&[("cache-control", "max-age=3600"), ("date", &at(-7200))]));
    let delayed = decide(
        &Method::GET,
        &headers(&[]),
        StatusCode::OK,
        &headers(&[("cache-control", "max-age=100"), ("age", "5")]),
        NOW,
        later(4),
        &Rules::default(),
    );
    let Decision::Store(delayed) = delayed else { panic!("{delayed:?}") };
    assert_eq!(delayed.age(later(4)), 9);
    assert_eq!(delayed.age(NOW), 5, "asked about the past, it does not wrap");
}

#[test]
fn a_date_of_this_second_does_not_age_a_response() {
    let lifetime = stored(&[("cache-control", "max-age=1"), ("date", &at(-1))]);
    assert!(lifetime.is_fresh(NOW));
}

#[test]
fn expires_is_counted_from_date() {
    for (fields, expected) in [
        (&[("expires", at(2_592_000)), ("date", at(0))][..], true),
        (&[("expires", at(-2_592_000)), ("date", at(0))], false),
        (&[("expires", at(0)), ("date", at(0))], false),
        (&[("expires", at(300)), ("date", at(400))], false),
        (&[("expires", at(10)), ("date", "foo".to_owned())], true),
        (&[("expires", at(10)), ("date", at(-10)), ("age", "25".to_owned())], false),
        (&[("expires", at(20)), ("date", at(10)), ("age", "15".to_owned())], false),
        (&[("expires", "0".to_owned()), ("date", at(0))], false),
        (&[("expires", at(10)), ("expires", at(20))], false),
        (&[("expires", at(-10)), ("cache-control", "max-age=3600".to_owned())], true),
        (&[("expires", at(3600)), ("cache-control", "max-age=0".to_owned())], false),
        (&[("expires", "Thu Aug  8 02:01:18 2050".to_owned())], true),
        (&[("expires", "Thu, 18 AUG 2050 02:01:18 gMT".to_owned())], true),
        (&[("expires", "Sun, 21 Nov 2286 04:46:39 GMT".to_owned())], true),
    ] {
        let fields: Vec<_> = fields.iter().map(|(name, value)| (*name, &**value)).collect();
        assert_eq!(reused(&fields), expected, "{fields:?}");
    }
}

#[test]
fn explicit_freshness_makes_every_final_status_storable() {
    for status in
        [200, 203, 204, 299, 301, 302, 303, 307, 308, 400, 404, 410, 499, 500, 502, 503, 504, 599]
    {
        let dates = (at(0), at(-5000), at(-100_000));
        assert!(reused_with(status, &[("cache-control", "max-age=100000")], 3), "{status}");
        let stale = [("expires", &*dates.1), ("last-modified", &dates.2), ("date", &dates.0)];
        assert!(!reused_with(status, &stale, 3), "{status}");
    }
    for status in [101, 103, 206, 304] {
        assert!(!reused_with(status, &[("cache-control", "max-age=100000")], 3), "{status}");
    }
}

#[test]
fn only_some_statuses_are_fresh_by_their_last_modified() {
    let (date, modified) = (at(0), at(-86400));
    let plain = [("last-modified", &*modified), ("date", &date)];
    let public = [plain[0], plain[1], ("cache-control", "public")];
    for status in [200, 203, 204, 404, 405, 410, 414, 501] {
        assert!(reused_with(status, &plain, 3), "{status}");
    }
    for status in [201, 202, 302, 403, 502, 503, 504, 599] {
        assert!(!reused_with(status, &plain, 3), "{status}");
    }
    assert!(reused_with(599, &public, 3));
    assert!(!reused_with(404, &plain, 11), "an error is not kept on a guess");
    assert!(reused_with(200, &plain, 8639) && !reused_with(200, &plain, 8640));
    let old = at(-400 * 86400);
    assert!(!reused_with(200, &[("last-modified", &old), ("date", &date)], 86400));
    let with_cookie = decide_with(&[("cookie", "a=b")], 200, &plain, &Rules::default());
    assert_eq!(with_cookie, Decision::Refuse(Refusal::NoFreshness));
}

#[test]
fn a_response_that_says_nothing_is_not_stored() {
    assert_eq!(refused(&[]), Refusal::NoFreshness);
    assert_eq!(refused(&[("etag", "\"a\"")]), Refusal::NoFreshness);
    assert_eq!(refused(&[("cache-control", "max-age=0")]), Refusal::Useless);
    assert_eq!(refused(&[("cache-control", "no-cache, max-age=9")]), Refusal::Useless);
    assert_eq!(refused(&[("cache-control", "max-age=9"), ("vary", "a, *")]), Refusal::VaryStar);
}

#[test]
fn no_cache_is_stored_with_a_validator_and_always_validated() {
    for line in ["no-cache", "max-age=10000, no-cache"] {
        let lifetime = stored(&[("cache-control", line), ("etag", "\"abcd\"")]);
        for control in [RequestControl::plain(), asks("max-stale"), asks("max-stale=100")] {
            assert_eq!(reuse(&lifetime, &control, NOW, false), Reuse::Validate);
        }
        assert!(!lifetime.is_fresh(NOW));
        assert!(lifetime.keep_until(true) > later(60));
        let plain = RequestControl::plain();
        assert!(!stale_on_error(&lifetime, &plain, NOW, Failure::Disconnected));
    }
    let old_style = stored(&[("pragma", "no-cache"), ("last-modified", &at(-1000))]);
    assert!(!old_style.is_fresh(NOW));
    assert!(reused(&[("cache-control", "max-age=3600"), ("pragma", "no-cache")]));
}

#[test]
fn must_understand_lifts_no_store_for_known_statuses() {
    let both = [("cache-control", "max-age=3600, no-store, must-understand")];
    assert!(reused_with(200, &both, 3));
    assert!(!reused_with(599, &both, 3));
    assert!(!reused_with(599, &[("cache-control", "max-age=3600, must-understand")], 3));
}

#[test]
fn authorization_needs_a_word_for_shared_caches() {
    let decision = |line| {
        let request = [("authorization", "FOO")];
        decide_with(&request, 200, &[("cache-control", line)], &Rules::default())
    };
    assert_eq!(decision("max-age=3600"), Decision::Refuse(Refusal::Authorization));
    assert_eq!(decision("max-age=3600, proxy-foo"), Decision::Refuse(Refusal::Authorization));
    for line in ["max-age=3600, public", "max-age=3600, must-revalidate", "s-maxage=3600"] {
        assert!(matches!(decision(line), Decision::Store(_)), "{line}");
    }
}

#[test]
fn a_cookie_is_shared_only_where_the_origin_means_it() {
    let ttl = Rules { default_ttl: Some(Duration::from_secs(60)), ..Rules::default() };
    let cases: &[(&str, &str, &str, bool)] = &[
        ("", "max-age=3600", "a=c", true),
        ("", "max-age=3600", "theme=dark; Path=/", true),
        ("", "max-age=3600", "session=1", false),
        ("", "max-age=3600", "a=c; Path=/; HttpOnly", false),
        ("", "max-age=3600", "__Host-x=1; Secure; Path=/", false),
        ("", "max-age=3600", "x=0123456789abcdef", false),
        ("", "max-age=3600", "x=\"\"", true),
        ("x=y", "max-age=3600", "a=c", false),
        ("", "", "a=c", false),
        ("", "s-maxage=60", "session=0123456789abcdef", true),
        ("", "public, max-age=60", "session=0123456789abcdef", true),
        ("", "max-age=60, private=\"Set-Cookie\"", "session=0123456789abcdef", true),
        ("", "no-cache=\"Set-Cookie\", max-age=60", "session=0123456789abcdef", true),
    ];
    for (cookie, line, set, expected) in cases {
        let request: &[_] = if cookie.is_empty() { &[] } else { &[("cookie", *cookie)] };
        let response = [("cache-control", *line), ("set-cookie", *set)];
        let decision = decide_with(request, 200, &response, &ttl);
        assert_eq!(matches!(decision, Decision::Store(_)), *expected, "{cookie} {line} {set}");
    }
    let expires = [("expires", &*at(60)), ("set-cookie", "a=c")];
    assert_eq!(refused(&expires), Refusal::SetCookie);
}

#[test]
fn a_routes_ttl_fills_in_where_the_origin_says_nothing() {
    let rules = Rules { default_ttl: Some(Duration::from_secs(60)), ..Rules::default() };
    let Decision::Store(lifetime) = decide_with(&[], 200, &[("age", "500")], &rules) else {
        panic!("not stored")
    };
    assert!(lifetime.is_fresh(later(59)) && !lifetime.is_fresh(later(60)));
    assert_eq!(lifetime.age(NOW), 500);
    for (status, line, refusal) in [
        (200, "no-store", Refusal::NoStore),
        (200, "private", Refusal::Private),
        (200, "max-age=0", Refusal::Useless),
        (200, "no-cache", Refusal::Useless),
        (500, "x", Refusal::NoFreshness),
        (302, "x", Refusal::NoFreshness),
    ] {
        let decision = decide_with(&[], status, &[("cache-control", line)], &rules);
        assert_eq!(decision, Decision::Refuse(refusal), "{status} {line}");
    }
    let Decision::Store(missing) = decide_with(&[], 404, &[], &rules) else { panic!("not stored") };
    assert!(missing.is_fresh(later(9)) && !missing.is_fresh(later(10)));
}

#[test]
fn an_override_wins_over_the_origin() {
    let rules = Rules {
        default_ttl: Some(Duration::from_secs(60)),
        override_origin: true,
        stale_if_error: Some(Duration::from_secs(30)),
        ..Rules::default()
    };
    let response = [
        ("cache-control", "private, no-store, no-cache, max-age=0, must-revalidate"),
        ("set-cookie", "session=0123456789abcdef; HttpOnly"),
        ("cdn-cache-control", "no-store"),
    ];
    let decision = decide_with(&[("authorization", "x")], 200, &response, &rules);
    let Decision::Store(lifetime) = decision else { panic!("{decision:?}") };
    let plain = RequestControl::plain();
    assert!(lifetime.is_fresh(later(59)) && !lifetime.is_fresh(later(60)));
    assert!(stale_on_error(&lifetime, &plain, later(80), Failure::Status(503)));
    assert!(!stale_on_error(&lifetime, &plain, later(90), Failure::Status(503)));
    for (status, refusal) in [(500, Refusal::NoStore), (206, Refusal::Partial)] {
        let decision = decide_with(&[], status, &response[..1], &rules);
        assert_eq!(decision, Decision::Refuse(refusal));
    }
    let star = decide_with(&[], 200, &[("vary", "*")], &rules);
    assert_eq!(star, Decision::Refuse(Refusal::VaryStar));
}
