//! Responses that vary: each client gets the one its headers select.

use super::*;
use crate::cache::{
    l1::Slot,
    purge::{Mode, Selector},
};

/// An origin whose body says what the response was selected by; `x-vary` tells it what that is.
fn lab() -> Lab {
    Lab::new(|call| async move {
        let names = call.header("x-vary");
        let values: Vec<_> =
            names.split(", ").map(|name| format!("{name}={}", call.header(name))).collect();
        let headers = [("cache-control", "max-age=100"), ("vary", names)];
        Ok(reply(200, &headers, &format!("{} #{}", values.join(" "), call.number)))
    })
}

fn asks(vary: &str, lang: &str, dev: &str) -> Asks {
    Asks::get("/").header("x-vary", vary).header("x-lang", lang).header("x-dev", dev)
}

async fn text(lab: &Lab, asks: &Asks) -> String {
    let got = lab.get(asks).await.unwrap();
    format!("{} {}", got.header("x-cache").unwrap(), got.text())
}

#[actix_rt::test]
async fn two_headers_select_together() {
    let lab = lab();
    for (lang, dev) in [("de", "tv"), ("de", "phone"), ("en", "tv"), ("en", "phone")] {
        let got = text(&lab, &asks("x-lang, x-dev", lang, dev)).await;
        assert!(got.starts_with(&format!("MISS x-lang={lang} x-dev={dev}")), "{got}");
    }
    for (lang, dev) in [("de", "tv"), ("de", "phone"), ("en", "tv"), ("en", "phone")] {
        let got = text(&lab, &asks("x-lang, x-dev", lang, dev)).await;
        assert!(got.starts_with(&format!("HIT x-lang={lang} x-dev={dev}")), "{got}");
    }
    assert_eq!(lab.site.calls(), 4);
}

#[actix_rt::test]
async fn what_responses_vary_on_adds_up() {
    let lab = lab();
    assert_eq!(text(&lab, &asks("x-lang", "de", "tv")).await, "MISS x-lang=de #1");
    assert_eq!(text(&lab, &asks("x-dev", "en", "tv")).await, "MISS x-dev=tv #2");
    // From here on both count, so neither answer serves where only one of them is the same.
    assert_eq!(text(&lab, &asks("x-dev", "en", "tv")).await, "HIT x-dev=tv #2");
    assert_eq!(text(&lab, &asks("x-lang", "de", "tv")).await, "MISS x-lang=de #3");
    assert_eq!(text(&lab, &asks("x-lang", "en", "phone")).await, "MISS x-lang=en #4");
    // A response that varies on less does not shrink the set.
    assert_eq!(text(&lab, &asks("x-dev", "de", "phone")).await, "MISS x-dev=phone #5");
    assert_eq!(text(&lab, &asks("x-lang", "de", "tv")).await, "HIT x-lang=de #3");
}

#[actix_rt::test]
async fn a_route_adds_what_its_responses_do_not_name() {
    let mut lab = lab();
    let vary = vec![HeaderName::from_static("x-dev")];
    let stats = Arc::default();
    lab.route = Arc::new(RouteCache {
        name: "r".into(),
        rules: Rules::default(),
        vary,
        stats,
        varies: Default::default(),
    });
    assert_eq!(text(&lab, &asks("x-lang", "de", "tv")).await, "MISS x-lang=de #1");
    assert_eq!(text(&lab, &asks("x-lang", "de", "phone")).await, "MISS x-lang=de #2");
    assert_eq!(text(&lab, &asks("x-lang", "de", "tv")).await, "HIT x-lang=de #1");
}

#[actix_rt::test]
async fn a_page_that_begins_to_vary_after_a_purge_is_cached_again() {
    let lab = Lab::new(|call| async move {
        Ok(match call.number {
            1 => {
                reply(200, &[("cache-control", "max-age=1"), ("age", "5"), ("etag", "\"a\"")], "a")
            }
            _ => reply(200, &[("cache-control", "max-age=100"), ("vary", "x-lang")], "b"),
        })
    });
    lab.cache.purge(&[Selector::Tag("any".to_owned())], Mode::Hard).await;
    let asks = Asks::get("/").header("x-lang", "de");
    assert_eq!(text(&lab, &asks).await, "MISS a");
    assert_eq!(text(&lab, &asks).await, "MISS b");
    assert_eq!(text(&lab, &asks).await, "HIT b");
}

#[actix_rt::test]
async fn a_304_that_begins_to_vary_is_not_served_to_others() {
    let lab = Lab::new(|call| async move {
        let fresh = [("cache-control", "max-age=100"), ("etag", "\"a\""), ("vary", "x-lang")];
        Ok(match (call.validates(), call.header("x-lang")) {
            _ if call.number == 1 => {
                reply(200, &[("cache-control", "max-age=1"), ("age", "5"), ("etag", "\"a\"")], "de")
            }
            (true, "de") => reply(304, &fresh, ""),
            (_, lang) => reply(200, &fresh, lang),
        })
    });
    let ask = |lang| Asks::get("/").header("x-lang", lang);
    assert_eq!(text(&lab, &ask("de")).await, "MISS de");
    assert_eq!(text(&lab, &ask("de")).await, "REVALIDATED de");
    assert_eq!(text(&lab, &ask("en")).await, "MISS en");
    assert_eq!(text(&lab, &ask("de")).await, "HIT de");
}

#[actix_rt::test]
async fn more_variants_than_the_cap_begin_anew() {
    let lab = lab();
    for number in 0..200 {
        text(&lab, &asks("x-lang", &number.to_string(), "")).await;
    }
    let mut hits = 0;
    for number in 0..200 {
        let only =
            asks("x-lang", &number.to_string(), "").header("cache-control", "only-if-cached");
        if let Ok(got) = lab.get(&only).await {
            assert!(got.text().starts_with(&format!("x-lang={number} ")), "{}", got.text());
            hits += 1;
        }
    }
    assert!((1..=65).contains(&hits), "{hits} variants are reachable");
    let last = asks("x-lang", "199", "");
    assert!(text(&lab, &last).await.starts_with("HIT"));
}

#[actix_rt::test]
async fn waiters_whose_headers_select_another_response_fetch_their_own() {
    let opened = gate();
    let waits = Arc::clone(&opened);
    let lab = Lab::new(move |call| {
        let gate = Arc::clone(&waits);
        async move {
            pass(&gate).await;
            let headers = [("cache-control", "max-age=100"), ("vary", "x-lang")];
            Ok(reply(200, &headers, call.header("x-lang")))
        }
    });
    let langs = ["de", "en", "fr"];
    let readers: Vec<_> =
        (0..30).map(|at| lab.start(&Asks::get("/").header("x-lang", langs[at % 3]))).collect();
    settle().await;
    assert_eq!(lab.site.calls(), 1);
    opened.add_permits(100);
    for (at, reader) in readers.into_iter().enumerate() {
        assert_eq!(in_time(reader).await.unwrap().unwrap().text(), langs[at % 3]);
    }
    assert_eq!(lab.site.calls(), 3);
}

#[actix_rt::test]
async fn a_purge_of_the_url_takes_every_variant() {
    let lab = lab();
    for lang in ["de", "en"] {
        text(&lab, &asks("x-lang", lang, "")).await;
    }
    let url = Selector::Url { host: "a.test".to_owned(), path: "/".to_owned(), query: None };
    lab.cache.purge(&[url], Mode::Hard).await;
    for lang in ["de", "en"] {
        assert!(text(&lab, &asks("x-lang", lang, "")).await.starts_with("MISS"));
    }
}

#[test]
fn a_list_of_what_varies_weighs_what_it_holds() {
    use crate::cache::l1::Variants;
    let weight = |path: &str| {
        let parts = Parts { host: "a", path, query: None, route: "r", scope: "" };
        Slot::Variants(Arc::new(Variants::new(parts.to_key(), Vec::new(), 0))).weight()
    };
    assert_eq!(weight(&"/".repeat(8000)) - weight("/"), 7999);
}
