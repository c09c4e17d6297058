//! When a response that sets a cookie may be shared.
//!
//! RFC 9111 leaves it to `Cache-Control`: a response with `Set-Cookie` and `max-age` is as storable as
//! any other, and the public test suite wants it stored with its cookie. Yet origins that put a blanket
//! `max-age` on everything, and a session cookie beside it, are common, and there one stored response
//! logs everybody in as somebody else. So:
//!
//! - freshness the origin did not write down (a route's `ttl`, a heuristic, `Expires`) never covers it;
//! - `public`, `s-maxage` and targeted fields do: those words are about shared caches;
//! - a bare `max-age` does only where no cookie can be a credential: the request brought none, and the
//!   response's are neither `HttpOnly`, nor named like one, nor long enough to hold a secret;
//! - a field that `private="set-cookie"` or `no-cache="set-cookie"` names is not stored, so the rest may be.

use actix_http::header::{COOKIE, HeaderMap, SET_COOKIE};

use super::directives::{Directives, fields_not_to_store};

/// A shorter value has less than 64 bits even if every byte were random: no session identifier.
const SHORTEST_SECRET: usize = 8;

/// Parts of names that session, login and token cookies go by.
const TELLING: [&[u8]; 7] = [b"sess", b"sid", b"auth", b"token", b"login", b"user", b"csrf"];

/// Whether its cookies keep a response out of shared storage.
pub(super) fn forbid_sharing(
    request: &HeaderMap,
    response: &HeaderMap,
    directives: &Directives,
) -> bool {
    if !response.contains_key(SET_COOKIE) || fields_not_to_store(response).contains(&SET_COOKIE) {
        return false;
    }
    if directives.public || directives.s_maxage.is_some() {
        return false;
    }
    if directives.max_age.is_none() {
        return true;
    }
    !directives.targeted
        && (request.contains_key(COOKIE)
            || response.get_all(SET_COOKIE).any(|line| may_be_credential(line.as_bytes())))
}

fn may_be_credential(line: &[u8]) -> bool {
    let mut parts = line.split(|byte| *byte == b';');
    let pair = parts.next().unwrap_or_default();
    let (name, value) = match memchr::memchr(b'=', pair) {
        Some(equals) => (pair[..equals].trim_ascii(), pair[equals + 1..].trim_ascii()),
        None => (&[][..], pair.trim_ascii()),
    };
    let name = name.to_ascii_lowercase();
    value.len() >= SHORTEST_SECRET
        || name.starts_with(b"__")
        || TELLING.iter().any(|part| memchr::memmem::find(&name, part).is_some())
        || parts.any(|attribute| attribute.trim_ascii().eq_ignore_ascii_case(b"httponly"))
}
