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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::tests::headers;

    const URL: &str = "http://shop.test/items?page=2";

    fn paths(method: &str, status: u16, fields: &[(&str, &str)]) -> Vec<String> {
        let method = Method::from_bytes(method.as_bytes()).unwrap();
        let status = StatusCode::from_u16(status).unwrap();
        invalidated(&method, status, URL, &headers(fields))
    }

    #[test]
    fn a_successful_change_ends_its_target() {
        for method in ["POST", "PUT", "DELETE", "PATCH", "M-SEARCH"] {
            for status in [200, 201, 204, 303] {
                assert_eq!(paths(method, status, &[]), ["/items?page=2"], "{method} {status}");
            }
            for status in [400, 404, 500, 503] {
                assert!(paths(method, status, &[]).is_empty(), "{method} {status}");
            }
        }
        for method in ["GET", "HEAD", "OPTIONS", "TRACE"] {
            assert!(paths(method, 200, &[]).is_empty(), "{method}");
        }
    }

    #[test]
    fn locations_on_the_same_host_end_too() {
        let fields = [("location", "/a?b"), ("content-location", "c")];
        assert_eq!(paths("POST", 201, &fields), ["/items?page=2", "/a?b", "/c"]);
        for (location, counts) in [
            ("https://shop.test/x", true),
            ("http://SHOP.test:80/x", true),
            ("//shop.test/x#y", true),
            ("http://other.test/x", false),
            ("http://shop.test:8080/x", false),
            ("ftp://shop.test/x", false),
            ("javascript:x", false),
            ("http://[", false),
            ("/items?page=2", false),
        ] {
            let found = paths("PUT", 200, &[("location", location)]);
            assert_eq!(found.len(), 1 + usize::from(counts), "{location}");
        }
    }

    #[test]
    fn the_target_is_taken_as_it_stands() {
        for (url, path) in [
            ("http://h", "/"),
            ("http://h/", "/"),
            ("http://h/a/../b%2f?x=%zz", "/a/../b%2f?x=%zz"),
            ("http://h/a#f", "/a"),
        ] {
            let found = invalidated(&Method::PUT, StatusCode::OK, url, &headers(&[]));
            assert_eq!(found[0], path, "{url}");
        }
    }

    #[test]
    fn a_post_answers_later_gets_when_it_says_so() {
        let answers = |method: Method, status: u16, fields: &[(&str, &str)]| {
            let status = StatusCode::from_u16(status).unwrap();
            answers_later_gets(&method, status, URL, &headers(fields))
        };
        let fields = [("cache-control", "max-age=9"), ("content-location", "/items?page=2")];
        assert!(answers(Method::POST, 200, &fields));
        assert!(!answers(Method::PUT, 200, &fields));
        assert!(!answers(Method::POST, 201, &fields));
        assert!(!answers(Method::POST, 200, &fields[..1]));
        assert!(!answers(Method::POST, 200, &fields[1..]));
        let elsewhere = [fields[0], ("content-location", "/items?page=3")];
        assert!(!answers(Method::POST, 200, &elsewhere));
    }
}
