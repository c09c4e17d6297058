//! What a successful change makes obsolete (RFC 9111 4.4), and when the answer to a `POST` stands for
//! the resource itself (RFC 9110 9.3.3).

use actix_http::{
    Method, StatusCode,
    header::{CONTENT_LOCATION, EXPIRES, HeaderMap, HeaderName, LOCATION},
};
use url::{Position, Url};

use super::directives;

/// The paths, with queries, whose stored responses end with this answer: the target's, and those that
/// `Location` and `Content-Location` name on the same host. The scheme does not count, as it does not in
/// the cache's keys. `request_url` is absolute.
pub fn invalidated(
    method: &Method,
    status: StatusCode,
    request_url: &str,
    response: &HeaderMap,
) -> Vec<String> {
    let is_safe = matches!(*method, Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
    if is_safe || !(status.is_success() || status.is_redirection()) {
        return Vec::new();
    }
    let mut paths = vec![target(request_url).to_owned()];
    if let Ok(base) = Url::parse(request_url) {
        for name in [LOCATION, CONTENT_LOCATION] {
            if let Some(url) = linked(&base, response, name) {
                let path = url[Position::BeforePath..Position::AfterQuery].to_owned();
                if !paths.contains(&path) {
                    paths.push(path);
                }
            }
        }
    }
    paths
}

/// Path and query as the request has them: normalising is the key's business.
fn target(url: &str) -> &str {
    let after_scheme = url.find("://").map_or(0, |at| at + 3);
    let path = url[after_scheme..].find(['/', '?']).map_or("/", |at| &url[after_scheme + at..]);
    path.split('#').next().unwrap_or(path)
}

/// The URL a field names, if it is on the same host.
fn linked(base: &Url, response: &HeaderMap, name: HeaderName) -> Option<Url> {
    let value = response.get(name)?.to_str().ok()?;
    let url = base.join(value).ok()?;
    let is_web = matches!(url.scheme(), "http" | "https");
    (is_web && url.host() == base.host() && url.port() == base.port()).then_some(url)
}

/// Whether the answer to a `POST` may be stored as the answer to a later `GET` of the same URL: it says
/// with `Content-Location` that this is what it is, and states its freshness. Then [`super::decide`] has
/// the last word, called with `GET`.
pub fn answers_later_gets(
    method: &Method,
    status: StatusCode,
    request_url: &str,
    response: &HeaderMap,
) -> bool {
    if *method != Method::POST || status != StatusCode::OK {
        return false;
    }
    let said = directives::of_response(response);
    let explicit = said.s_maxage.is_some()
        || said.max_age.is_some()
        || (!said.targeted && response.contains_key(EXPIRES));
    let Ok(base) = Url::parse(request_url) else { return false };
    explicit
        && linked(&base, response, CONTENT_LOCATION).is_some_and(|url| {
            url[Position::BeforePath..Position::AfterQuery]
                == base[Position::BeforePath..Position::AfterQuery]
        })
}
