//! The cache around actix-web handlers.

use actix_web::{
    App, Error, HttpRequest, HttpResponse,
    body::BoxBody,
    dev::{Service, ServiceResponse},
    error::{ErrorInternalServerError, ErrorUnauthorized},
    test::{TestRequest, call_service, init_service, read_body, try_call_service},
    web,
};

use super::*;
use crate::cache::{
    middleware::ResponseCache,
    purge::{Mode, Selector},
};

type Calls = Arc<AtomicUsize>;

fn cached() -> (Arc<Cache>, ResponseCache) {
    let cache = Cache::new(SETTINGS);
    (Arc::clone(&cache), ResponseCache::new(cache, "things"))
}

/// The app `$cache` around a handler, which learns how often it was called.
macro_rules! app {
    ($cache:expr, $calls:expr, $handler:expr) => {{
        let handler = $handler;
        let calls: Calls = Arc::clone(&$calls);
        let respond = move |request: HttpRequest, body: Bytes| {
            handler(calls.fetch_add(1, Ordering::SeqCst) + 1, request, body)
        };
        let route = web::to(move |request: HttpRequest, body: Bytes| {
            let answer = respond(request, body);
            async move { answer }
        });
        init_service(App::new().service(web::resource("/{id}").wrap($cache).route(route))).await
    }};
}

async fn ask(
    app: &impl Service<actix_http::Request, Response = ServiceResponse<BoxBody>, Error = Error>,
    request: TestRequest,
) -> (u16, String, String) {
    let response = call_service(app, request.to_request()).await;
    let outcome = response.headers().get("x-cache").map(|it| it.to_str().unwrap().to_owned());
    let status = response.status().as_u16();
    let body = String::from_utf8(read_body(response).await.to_vec()).unwrap();
    (status, outcome.unwrap_or_default(), body)
}

fn get(path: &str) -> TestRequest {
    TestRequest::get().uri(path)
}

fn fresh(text: String) -> HttpResponse {
    HttpResponse::Ok().insert_header(("cache-control", "max-age=100")).body(text)
}

fn answer(status: u16, outcome: &str, body: &str) -> (u16, String, String) {
    (status, outcome.to_owned(), body.to_owned())
}

#[actix_rt::test]
async fn an_error_is_passed_on_and_not_stored() {
    let calls = Calls::default();
    let app = app!(cached().1, calls, |n, _, _| if n == 1 {
        Err(ErrorInternalServerError("broken"))
    } else {
        Ok(fresh("fine".to_owned()))
    });
    assert_eq!(ask(&app, get("/1")).await.0, 500);
    assert_eq!(ask(&app, get("/1")).await, answer(200, "MISS", "fine"));
    assert_eq!(ask(&app, get("/1")).await, answer(200, "HIT", "fine"));
}

#[actix_rt::test]
async fn an_error_that_is_one_callers_own_is_not_given_to_those_who_waited() {
    use actix_web::middleware::{Next, from_fn};
    let opened = gate();
    let waits = Arc::clone(&opened);
    let guard = move |request: actix_web::dev::ServiceRequest, next: Next<BoxBody>| {
        let gate = Arc::clone(&waits);
        async move {
            pass(&gate).await;
            if request.headers().contains_key("x-known") {
                next.call(request).await
            } else {
                Err(ErrorUnauthorized("who are you?"))
            }
        }
    };
    let service = web::resource("/{id}")
        .wrap(from_fn(guard))
        .wrap(cached().1)
        .to(|| async { fresh("for those who are known".to_owned()) });
    let app = Rc::new(init_service(App::new().service(service)).await);
    let start = |request: TestRequest| {
        let app = Rc::clone(&app);
        actix_rt::spawn(async move {
            match try_call_service(&*app, request.to_request()).await {
                Ok(response) => response.status().as_u16(),
                Err(error) => error.as_response_error().status_code().as_u16(),
            }
        })
    };
    let stranger = start(get("/1"));
    settle().await;
    let known = start(get("/1").insert_header(("x-known", "1")));
    settle().await;
    opened.add_permits(10);
    assert_eq!(in_time(stranger).await.unwrap(), 401);
    assert_eq!(in_time(known).await.unwrap(), 200);
}

#[actix_rt::test]
async fn a_streaming_handler_is_stored_as_it_streams() {
    let calls = Calls::default();
    let app = app!(cached().1, calls, |n, _, _| {
        let pieces = futures_util::stream::iter(["a", "b", "c"])
            .then(|piece| async move {
                tokio::task::yield_now().await;
                Ok::<_, Error>(Bytes::from(piece))
            })
            .boxed_local();
        HttpResponse::Ok()
            .insert_header(("cache-control", "max-age=100"))
            .insert_header(("x-call", n))
            .streaming(pieces)
    });
    assert_eq!(ask(&app, get("/1")).await, answer(200, "MISS", "abc"));
    assert_eq!(ask(&app, get("/1")).await, answer(200, "HIT", "abc"));
    assert_eq!(calls.load(Ordering::SeqCst), 1);
}

#[actix_rt::test]
async fn a_stream_that_breaks_off_is_not_stored() {
    let calls = Calls::default();
    let app = app!(cached().1, calls, |n, _, _| {
        let mut pieces = vec![Ok(Bytes::from_static(b"a"))];
        if n == 1 {
            pieces.push(Err(ErrorInternalServerError("broken")));
        }
        HttpResponse::Ok()
            .insert_header(("cache-control", "max-age=100"))
            .streaming(futures_util::stream::iter(pieces))
    });
    let broken = call_service(&app, get("/1").to_request()).await;
    assert!(actix_http::body::to_bytes(broken.into_body()).await.is_err());
    assert_eq!(ask(&app, get("/1")).await, answer(200, "MISS", "a"));
    assert_eq!(ask(&app, get("/1")).await, answer(200, "HIT", "a"));
}

#[actix_rt::test]
async fn tenants_have_caches_of_their_own() {
    let calls = Calls::default();
    let (cache, around) = cached();
    let around = around.tenant(|request| {
        request.headers().get("x-tenant").and_then(|it| it.to_str().ok()).map(str::to_owned)
    });
    let app = app!(around, calls, |n: usize, request: HttpRequest, _| {
        let tenant = request.headers().get("x-tenant").unwrap().to_str().unwrap();
        fresh(format!("{tenant} {n}"))
    });
    let of = |tenant: &'static str| get("/1").insert_header(("x-tenant", tenant));
    assert_eq!(ask(&app, of("a")).await, answer(200, "MISS", "a 1"));
    assert_eq!(ask(&app, of("b")).await, answer(200, "MISS", "b 2"));
    assert_eq!(ask(&app, of("a")).await, answer(200, "HIT", "a 1"));
    cache.purge(&[Selector::Tenant("a".to_owned())], Mode::Hard).await;
    assert_eq!(ask(&app, of("a")).await, answer(200, "MISS", "a 3"));
    assert_eq!(ask(&app, of("b")).await, answer(200, "HIT", "b 2"));
}

#[actix_rt::test]
async fn tags_are_the_wrappers_and_the_handlers() {
    let calls = Calls::default();
    let (cache, around) = cached();
    let app = app!(around.tags(["all"]), calls, |n: usize, request: HttpRequest, _| {
        let mut response = fresh(n.to_string());
        let tag = format!("thing:{}", request.match_info().get("id").unwrap());
        response.headers_mut().insert(HeaderName::from_static("cache-tag"), tag.parse().unwrap());
        response
    });
    let purge = async |tag: &str| {
        cache.purge(&[Selector::Tag(tag.to_owned())], Mode::Hard).await;
    };
    for path in ["/1", "/2"] {
        ask(&app, get(path)).await;
    }
    purge("thing:1").await;
    assert_eq!(ask(&app, get("/1")).await, answer(200, "MISS", "3"));
    assert_eq!(ask(&app, get("/2")).await, answer(200, "HIT", "2"));
    purge("all").await;
    assert_eq!(ask(&app, get("/1")).await, answer(200, "MISS", "4"));
    assert_eq!(ask(&app, get("/2")).await, answer(200, "MISS", "5"));
}

#[actix_rt::test]
async fn a_write_invalidates_what_it_wrote_to() {
    let calls = Calls::default();
    let app = app!(cached().1, calls, |n: usize, request: HttpRequest, _| {
        if request.method() == Method::GET {
            fresh(n.to_string())
        } else {
            HttpResponse::NoContent().finish()
        }
    });
    ask(&app, get("/1")).await;
    ask(&app, get("/2")).await;
    assert_eq!(ask(&app, TestRequest::post().uri("/1")).await.0, 204);
    assert_eq!(ask(&app, get("/1")).await, answer(200, "MISS", "4"));
    assert_eq!(ask(&app, get("/2")).await, answer(200, "HIT", "2"));
}

/// A handler that evaluates conditions itself, as one that serves files does.
fn conditional(version: &str, request: &HttpRequest) -> HttpResponse {
    let value = |name: &str| request.headers().get(name).map(|it| it.to_str().unwrap().to_owned());
    let tag = format!("\"{version}\"");
    let modified = "Sun, 06 Nov 1994 08:49:37 GMT";
    let matches = match value("if-none-match") {
        Some(tags) => tags.contains(&tag),
        None => value("if-modified-since").is_some_and(|since| since == modified && version == "1"),
    };
    let mut response = if matches { HttpResponse::NotModified() } else { HttpResponse::Ok() };
    response.insert_header(("cache-control", "max-age=1")).insert_header(("age", "5"));
    // Version 1 has only a date.
    if version == "1" {
        response.insert_header(("last-modified", modified));
    } else {
        response.insert_header(("etag", tag));
    }
    if matches { response.finish() } else { response.body(format!("version {version}")) }
}

#[actix_rt::test]
async fn a_condition_is_the_caches_to_evaluate() {
    let calls = Calls::default();
    let app = app!(cached().1, calls, |_, request: HttpRequest, _| conditional("2", &request));
    // On a cold key the handler gives all of it, so that it can be stored.
    let conditional = || get("/1").insert_header(("if-none-match", "\"2\""));
    assert_eq!(ask(&app, conditional()).await.0, 304);
    assert_eq!(ask(&app, get("/1")).await, answer(200, "REVALIDATED", "version 2"));
    assert_eq!(ask(&app, conditional()).await.0, 304);
}

#[actix_rt::test]
async fn a_clients_own_condition_does_not_validate_what_is_stored() {
    let calls = Calls::default();
    let app = app!(cached().1, calls, |n, request: HttpRequest, _| {
        conditional(if n == 1 { "1" } else { "2" }, &request)
    });
    assert_eq!(ask(&app, get("/1")).await, answer(200, "MISS", "version 1"));
    // Another way this client got version 2 already; what is stored is version 1 nevertheless.
    assert_eq!(ask(&app, get("/1").insert_header(("if-none-match", "\"2\""))).await.0, 304);
    assert_eq!(ask(&app, get("/1")).await.2, "version 2");
}
