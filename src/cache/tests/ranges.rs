//! `HEAD`, ranges and conditions, on keys that are cold, stale and fresh.

use super::*;

const BODY: &str = "0123456789";

/// Fresh under `/fresh`, stale on arrival elsewhere; with an entity tag in any case.
fn lab() -> Lab {
    Lab::new(|call| async move {
        let verbatim = matches!(call.ask, Ask::Verbatim);
        if call.header("x-head") == "1" {
            let mut response = reply(200, &[("etag", "\"a\"")], "");
            response.body = Body::Unsent(10);
            return Ok(response);
        }
        let control = if call.header("x-fresh") == "1" { "max-age=100" } else { "max-age=1" };
        let age = if call.header("x-fresh") == "1" { "0" } else { "5" };
        let headers = [("cache-control", control), ("age", age), ("etag", "\"a\"")];
        Ok(match &call.ask {
            Ask::Validate(_) => reply(304, &headers, ""),
            _ if verbatim && call.header("range") == "bytes=2-3" => {
                let headers = [&headers[..], &[("content-range", "bytes 2-3/10")]].concat();
                reply(206, &headers, "23")
            }
            _ => reply(200, &headers, BODY),
        })
    })
}

fn fresh(asks: Asks) -> Asks {
    asks.header("x-fresh", "1")
}

#[actix_rt::test]
async fn a_cold_key_passes_a_range_on_and_stores_nothing() {
    let lab = lab();
    let part = fresh(Asks::get("/").header("range", "bytes=2-3"));
    let got = lab.get(&part).await.unwrap();
    assert_eq!((got.status.as_u16(), got.text()), (206, "23"));
    let whole = lab.get(&fresh(Asks::get("/"))).await.unwrap();
    assert_eq!(
        (whole.status.as_u16(), whole.text(), whole.header("x-cache")),
        (200, BODY, Some("MISS"))
    );
    let hit = lab.get(&part).await.unwrap();
    assert_eq!((hit.status.as_u16(), hit.text(), hit.header("x-cache")), (206, "23", Some("HIT")));
    assert_eq!(hit.header("content-range"), Some("bytes 2-3/10"));
    let beyond = lab.get(&fresh(Asks::get("/").header("range", "bytes=10-"))).await.unwrap();
    assert_eq!((beyond.status.as_u16(), beyond.header("content-range")), (416, Some("bytes */10")));
}

#[actix_rt::test]
async fn a_stale_key_is_validated_and_serves_the_range_itself() {
    let lab = lab();
    lab.get(&Asks::get("/")).await.unwrap();
    let got = lab.get(&Asks::get("/").header("range", "bytes=2-3")).await.unwrap();
    assert!(matches!(lab.site.last_ask(), Ask::Validate(_)));
    assert_eq!((got.status.as_u16(), got.text()), (206, "23"));
    let got = lab.get(&Asks::get("/")).await.unwrap();
    assert_eq!((got.text(), got.header("x-cache")), (BODY, Some("REVALIDATED")));
}

#[actix_rt::test]
async fn head_is_answered_from_what_get_stored() {
    let lab = lab();
    let cold = Asks::get("/").method(Method::HEAD).header("x-head", "1");
    let got = lab.ask(&cold).await.unwrap();
    assert_eq!(got.response.body().size(), BodySize::Sized(10));
    assert_eq!(lab.cache.usage().entries, 0);
    lab.get(&fresh(Asks::get("/"))).await.unwrap();
    let answer = lab.ask(&Asks::get("/").method(Method::HEAD)).await.unwrap();
    assert_eq!(answer.response.body().size(), BodySize::Sized(10));
    let got = read(answer, true).await;
    assert_eq!((got.header("x-cache"), got.text()), (Some("HIT"), ""));
    assert_eq!(lab.site.calls(), 2);
}

#[actix_rt::test]
async fn head_validates_a_stale_key() {
    let lab = lab();
    lab.get(&Asks::get("/")).await.unwrap();
    let answer = lab.ask(&fresh(Asks::get("/").method(Method::HEAD))).await.unwrap();
    assert_eq!(answer.response.body().size(), BodySize::Sized(10));
    assert_eq!(read(answer, true).await.header("x-cache"), Some("REVALIDATED"));
    assert_eq!(lab.get(&Asks::get("/")).await.unwrap().header("x-cache"), Some("HIT"));
}

#[actix_rt::test]
async fn a_conditional_leader_gets_304_while_its_waiters_and_the_store_get_the_whole() {
    let sender = Arc::new(Mutex::new(None));
    let keep = Arc::clone(&sender);
    let lab = Lab::new(move |call| {
        assert!(matches!(call.ask, Ask::Whole));
        let headers = [("cache-control", "max-age=100"), ("etag", "\"a\"")];
        let (response, sender) = streamed(&headers, Some(4));
        *keep.lock().unwrap() = Some(sender);
        async { Ok(response) }
    });
    let leader = lab.get(&Asks::get("/").header("if-none-match", "\"a\"")).await.unwrap();
    assert_eq!((leader.status, leader.text()), (StatusCode::NOT_MODIFIED, ""));
    let waiters = [
        lab.start(&Asks::get("/")),
        lab.start(&Asks::get("/").header("if-none-match", "\"a\"")),
        lab.start(&Asks::get("/").header("if-none-match", "\"b\"")),
    ];
    settle().await;
    let sender = sender.lock().unwrap().take().unwrap();
    sender.send(Ok(Bytes::from_static(b"four"))).unwrap();
    drop(sender);
    let mut got = Vec::new();
    for waiter in waiters {
        let one = in_time(waiter).await.unwrap().unwrap();
        got.push((one.status.as_u16(), one.text().to_owned()));
    }
    let whole = |text: &str| (200, text.to_owned());
    assert_eq!(got, [whole("four"), (304, String::new()), whole("four")]);
    assert_eq!(lab.site.calls(), 1);
}
