//! Which fields are stored, and what a 304 changes in them (RFC 9111 3.1, 3.2).

use actix_http::header::{
    AGE, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, DATE, ETAG, HeaderMap,
    HeaderName, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE,
};

use super::directives::{fields_not_to_store, members};

/// About one connection, or about a proxy on the way: never stored.
fn is_about_the_connection(name: &HeaderName) -> bool {
    [CONNECTION, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, PROXY_AUTHENTICATE, PROXY_AUTHORIZATION]
        .contains(name)
        || matches!(name.as_str(), "keep-alive" | "proxy-connection" | "proxy-authentication-info")
}

/// About the bytes that were stored: a 304 leaves the bytes as they are, so it leaves these. That
/// includes the entity tag; one that changed in a 304 is no tag of the stored bytes, and handed out it
/// would let a client splice ranges of two versions.
fn describes_the_bytes(name: &HeaderName) -> bool {
    [CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_RANGE, ETAG].contains(name)
        || matches!(name.as_str(), "content-md5" | "content-digest" | "repr-digest")
}

/// Fields that `Connection` names.
fn named_in_connection(headers: &HeaderMap) -> Vec<HeaderName> {
    headers
        .get_all(CONNECTION)
        .flat_map(|line| members(line.as_bytes(), b','))
        .filter_map(|name| HeaderName::from_bytes(name).ok())
        .collect()
}

/// Removes what must not be stored.
pub fn strip_for_storage(headers: &mut HeaderMap) {
    let mut named = named_in_connection(headers);
    named.extend(fields_not_to_store(headers));
    headers.retain(|name, _| !is_about_the_connection(name) && !named.contains(name));
}

/// Merges the fields of a 304 into those of the response it validates.
pub fn update(stored: &mut HeaderMap, not_modified: &HeaderMap) {
    let mut named = named_in_connection(not_modified);
    named.extend(fields_not_to_store(not_modified));
    // These belong to the answer that brought them: kept, they would make the entry look as old as the
    // first one.
    for name in [AGE, DATE] {
        stored.remove(name);
    }
    for name in not_modified.keys() {
        let keeps = describes_the_bytes(name) && (*name != ETAG || stored.contains_key(ETAG));
        if keeps || is_about_the_connection(name) || named.contains(name) {
            continue;
        }
        stored.remove(name);
        for value in not_modified.get_all(name) {
            stored.append(name.clone(), value.clone());
        }
    }
    for name in named {
        stored.remove(name);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::policy::tests::headers;

    fn value<'h>(headers: &'h HeaderMap, name: &str) -> Option<&'h str> {
        headers.get(name).and_then(|value| value.to_str().ok())
    }

    #[test]
    fn fields_about_the_connection_are_not_stored() {
        let mut fields = headers(&[
            ("connection", "a, B"),
            ("connection", "x-third"),
            ("a", "1"),
            ("b", "2"),
            ("x-third", "3"),
            ("c", "4"),
            ("keep-alive", "x"),
            ("proxy-authenticate", "x"),
            ("proxy-authentication-info", "x"),
            ("proxy-authorization", "x"),
            ("proxy-connection", "x"),
            ("te", "x"),
            ("trailer", "x"),
            ("transfer-encoding", "chunked"),
            ("upgrade", "x"),
            ("cache-control", "private=\"set-cookie\", no-cache=\"d, e\", max-age=9"),
            ("set-cookie", "x"),
            ("d", "5"),
            ("e", "6"),
            ("etag", "\"a\""),
            ("content-range", "odd"),
        ]);
        strip_for_storage(&mut fields);
        let mut kept: Vec<_> = fields.keys().map(|name| name.as_str()).collect();
        kept.sort_unstable();
        assert_eq!(kept, ["c", "cache-control", "content-range", "etag"]);
    }

    #[test]
    fn a_304_replaces_what_it_brings_and_keeps_the_rest() {
        let mut stored = headers(&[
            ("test-header", "old"),
            ("kept", "1"),
            ("link", "</a>"),
            ("link", "</b>"),
            ("age", "7"),
            ("date", "then"),
            ("content-type", "text/plain"),
        ]);
        update(
            &mut stored,
            &headers(&[
                ("test-header", "new"),
                ("link", "</c>"),
                ("link", "</d>"),
                ("content-type", "text/html"),
                ("added", "2"),
                ("connection", "hop"),
                ("hop", "3"),
            ]),
        );
        assert_eq!(value(&stored, "test-header"), Some("new"));
        assert_eq!(value(&stored, "content-type"), Some("text/html"));
        assert_eq!(value(&stored, "kept"), Some("1"));
        assert_eq!(value(&stored, "added"), Some("2"));
        let links: Vec<_> = stored.get_all("link").collect();
        assert_eq!(links, ["</c>", "</d>"]);
        for gone in ["age", "date", "connection", "hop"] {
            assert_eq!(value(&stored, gone), None, "{gone}");
        }
    }

    #[test]
    fn a_304_does_not_redescribe_the_stored_bytes() {
        let names = [
            "content-length",
            "content-encoding",
            "content-range",
            "content-md5",
            "content-digest",
            "repr-digest",
            "etag",
        ];
        for name in names {
            let mut stored = headers(&[(name, "old")]);
            update(&mut stored, &headers(&[(name, "new")]));
            assert_eq!(value(&stored, name), Some("old"), "{name}");
        }
        let mut untagged = headers(&[]);
        update(&mut untagged, &headers(&[("etag", "\"a\""), ("content-length", "0")]));
        assert_eq!(value(&untagged, "etag"), Some("\"a\""));
        assert_eq!(value(&untagged, "content-length"), None);
    }
}
