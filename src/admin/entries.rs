//! One response of the cache, looked at and left alone.

use actix_http::header::{HeaderMap, HeaderName, HeaderValue};
use actix_web::{HttpRequest, HttpResponse, web::Data};
use serde_json::json;
use url::form_urlencoded;

use super::{Asked, Context, Target, bad_request, cache, problem};
use crate::{cache::key::Parts, problem::Code};

/// `GET /admin/v1/cache/entry?url=…[&route=name][&header=Name:value]…`: what each tier has of the
/// response to a `GET` for this URL; not its body.
///
/// Headers choose among responses that vary, and among routes that match by them.
pub(super) async fn entry(request: HttpRequest, context: Data<Context>) -> HttpResponse {
    let (mut url, mut route, mut headers) = (None, None, HeaderMap::new());
    for (name, value) in form_urlencoded::parse(request.query_string().as_bytes()) {
        match &*name {
            "url" => url = Some(value),
            "route" => route = Some(value),
            "header" => match header(&value) {
                Some((name, value)) => headers.append(name, value),
                None => return bad_request(&format!("`{value}`: expected Name:value")),
            },
            _ => return bad_request(&format!("`{name}`: expected url, route and header")),
        }
    }
    let Some(url) = url else { return bad_request("`url` is missing") };
    let target = cache::absolute(&url).and_then(|it| Ok((cache::normal(it.path())?, it)));
    let (path, url) = match target {
        Ok(target) => target,
        Err(reason) => return bad_request(&reason),
    };
    let host = cache::host(&url);
    let target = Target { host: &host, path: &path, query: url.query(), route: route.as_deref() };
    let Some(Asked { route, query }) = context.gateway.asked(&target, &headers) else {
        return problem(Code::NotFound, Some("there is no such route"));
    };
    let parts =
        Parts { host: &host, path: &path, query: query.as_deref(), route: &route.name, scope: "" };
    let view = context.cache.inspect(&route, &parts, "", &headers).await;
    HttpResponse::Ok().json(json!({
        "host": host,
        "path": path,
        "query": query,
        "route": *route.name,
        "varies": view.varies,
        "guess": view.guess,
        "l1": view.l1,
        "l2": view.l2,
    }))
}

fn header(text: &str) -> Option<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':')?;
    let name = HeaderName::from_bytes(name.trim().as_bytes()).ok()?;
    Some((name, HeaderValue::from_str(value.trim()).ok()?))
}
