//! What holds for every header there can be: no panic, no age that shrinks, nothing fresh past its
//! lifetime, nothing private stored.

use std::time::{Duration, UNIX_EPOCH};

use actix_http::{
    Method, StatusCode,
    header::{HeaderMap, HeaderName, HeaderValue},
};
use proptest::prelude::*;

use super::{tests::NOW, *};
use crate::cache::clock::Timestamp;

fn any_fields() -> impl Strategy<Value = HeaderMap> {
    let name = prop_oneof![
        Just("cache-control"),
        Just("cdn-cache-control"),
        Just("surrogate-control"),
        Just("age"),
        Just("date"),
        Just("expires"),
        Just("last-modified"),
        Just("etag"),
        Just("vary"),
        Just("set-cookie"),
        Just("connection"),
        Just("if-none-match"),
        Just("if-modified-since"),
        Just("if-range"),
        Just("range"),
        Just("content-language"),
        Just("accept-language"),
        Just("location"),
        Just("pragma"),
    ];
    let value = prop_oneof![
        proptest::collection::vec(any::<u8>(), 0..24),
        "(max-age|s-maxage|no-cache|stale-while-revalidate|stale-if-error|max-stale|min-fresh|public)(=\"?[0-9]{0,22}\"?)?(, ?(private|must-revalidate|x=\"))?"
            .prop_map(String::into_bytes),
        (-4_000_000_000_i64..4_000_000_000).prop_map(|offset| {
            let seconds = NOW.0 as i64 / 1000 + offset;
            httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_secs(seconds.max(0) as u64)).into_bytes()
        }),
        "[0-9]{1,30}".prop_map(String::into_bytes),
    ];
    proptest::collection::vec((name, value), 0..8).prop_map(|fields| {
        let mut map = HeaderMap::new();
        for (name, value) in fields {
            if let Ok(value) = HeaderValue::from_bytes(&value) {
                map.append(HeaderName::from_static(name), value);
            }
        }
        map
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(2000))]

    #[test]
    fn whatever_arrives_is_judged_calmly(
        request in any_fields(),
        response in any_fields(),
        status in 100_u16..1000,
        times in any::<(u64, u64, u64, u64)>(),
        near in 0_u64..10_000_000_000,
        windows in proptest::option::of(any::<u64>()),
    ) {
        let window = windows.map(Duration::from_secs);
        let rules = Rules {
            default_ttl: window,
            stale_while_revalidate: window,
            stale_if_error: window,
            ..Rules::default()
        };
        let code = StatusCode::from_u16(status).unwrap();
        let control = RequestControl::of(&request);
        for (asked, got, one, other) in [
            (times.0, times.1, times.2, times.3),
            (NOW.0, NOW.0, NOW.0 + near, NOW.0 + near / 2),
        ] {
            let (asked, got) = (Timestamp(asked), Timestamp(got));
            let (earlier, later) = (Timestamp(one.min(other)), Timestamp(one.max(other)));
            let decision = decide(&Method::GET, &request, code, &response, asked, got, &rules);
            let Decision::Store(lifetime) = decision else { continue };
            prop_assert!(lifetime.age(earlier) <= lifetime.age(later));
            prop_assert!(lifetime.ttl(earlier) >= lifetime.ttl(later));
            for now in [earlier, later] {
                if lifetime.age(now) >= u64::from(lifetime.lifetime) {
                    prop_assert!(!lifetime.is_fresh(now));
                    let plain = RequestControl::plain();
                    prop_assert_ne!(reuse(&lifetime, &plain, now, false), Reuse::Serve);
                }
                for soft in [false, true] {
                    let _ = reuse(&lifetime, &control, now, soft);
                }
                let _ = stale_on_error(&lifetime, &control, now, Failure::Status(status));
                let _ = stale_on_error(&lifetime, &control, now, Failure::Disconnected);
            }
            let _ = lifetime.keep_until(true);
        }
        let _ = precondition(&Method::GET, &request, code, &response, Timestamp(times.0));
        let _ = range(&request, &response, times.1, Timestamp(times.0));
        let _ = validators(&response).count();
        let _ = is_in_wanted_language(&request, &response);
        let _ = invalidated(&Method::POST, code, "http://h/a?b", &response);
        let _ = answers_later_gets(&Method::POST, code, "http://h/a?b", &response);
        let mut merged = response.clone();
        update(&mut merged, &request);
        strip_for_storage(&mut merged);
    }

    #[test]
    fn a_private_or_no_store_response_is_never_stored(
        mut response in any_fields(),
        status in 200_u16..600,
        word in "([Pp][Rr]ivate|[Nn]o-[Ss][Tt]ore)",
    ) {
        for targeted in ["cdn-cache-control", "surrogate-control"] {
            response.remove(targeted);
        }
        response.append(HeaderName::from_static("cache-control"), HeaderValue::from_str(&word).unwrap());
        let rules = Rules { default_ttl: Some(Duration::from_secs(60)), ..Rules::default() };
        let code = StatusCode::from_u16(status).unwrap();
        let decision = decide(&Method::GET, &HeaderMap::new(), code, &response, NOW, NOW, &rules);
        prop_assert!(matches!(decision, Decision::Refuse(_)), "{:?}", response);
    }
}
