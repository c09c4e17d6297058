//! A compressed copy of a stored body, made once and not per hit.
//!
//! At most one copy is kept beside the original, in gzip, which every client understands. It is made
//! the first time a client asks for it, off the event loop; that client still gets the original.

use std::io::Write as _;

use actix_http::{
    StatusCode,
    header::{
        CACHE_CONTROL, CONTENT_ENCODING, CONTENT_RANGE, CONTENT_TYPE, HeaderMap, HeaderValue,
    },
};
use bytes::Bytes;
use flate2::{Compression, write::GzEncoder};

/// Below this many bytes compression costs more than it saves.
const MIN_LENGTH: u64 = 1024;

/// Whether a gzip copy of this response would be worth keeping.
pub fn compressible(status: StatusCode, headers: &HeaderMap, length: Option<u64>) -> bool {
    status == StatusCode::OK
        && length.is_none_or(|length| length >= MIN_LENGTH)
        && !headers.contains_key(CONTENT_ENCODING)
        && !headers.contains_key(CONTENT_RANGE)
        && headers.get(CONTENT_TYPE).is_some_and(is_text)
        && !headers.get_all(CACHE_CONTROL).any(forbids_transform)
}

fn forbids_transform(value: &HeaderValue) -> bool {
    value.to_str().is_ok_and(|text| text.to_ascii_lowercase().contains("no-transform"))
}

fn is_text(content_type: &HeaderValue) -> bool {
    let Ok(text) = content_type.to_str() else { return false };
    let essence = text.split(';').next().unwrap_or_default().trim().to_ascii_lowercase();
    // An event stream is read as it comes.
    essence != "text/event-stream"
        && (essence.starts_with("text/")
            || essence.ends_with("+json")
            || essence.ends_with("+xml")
            || matches!(
                essence.as_str(),
                "application/json"
                    | "application/javascript"
                    | "application/xml"
                    | "application/wasm"
                    | "application/x-ndjson"
                    | "image/svg+xml"
            ))
}

/// Whether the client would rather have gzip than nothing (RFC 9110 section 12.5.3).
pub fn accepts_gzip(accept_encoding: Option<&HeaderValue>) -> bool {
    let Some(Ok(text)) = accept_encoding.map(HeaderValue::to_str) else { return false };
    let mut any = false;
    for item in text.split(',') {
        let mut parts = item.split(';').map(str::trim);
        let coding = parts.next().unwrap_or_default();
        let refused = parts.any(|parameter| {
            parameter
                .strip_prefix("q=")
                .or_else(|| parameter.strip_prefix("Q="))
                .is_some_and(|q| q.trim().parse::<f32>().is_ok_and(|q| q <= 0.0))
        });
        if coding.eq_ignore_ascii_case("gzip") || coding.eq_ignore_ascii_case("x-gzip") {
            return !refused;
        }
        any |= coding == "*" && !refused;
    }
    any
}

/// The body in gzip, unless that saves less than a tenth.
pub fn gzip(body: &[u8]) -> Option<Bytes> {
    let mut encoder = GzEncoder::new(Vec::with_capacity(body.len() / 2), Compression::default());
    encoder.write_all(body).ok()?;
    let compressed = encoder.finish().ok()?;
    (compressed.len() * 10 <= body.len() * 9).then(|| Bytes::from(compressed.into_boxed_slice()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn accepts(text: &'static str) -> bool {
        accepts_gzip(Some(&HeaderValue::from_static(text)))
    }

    #[test]
    fn gzip_is_accepted_only_where_the_client_says_so() {
        assert!(accepts("gzip"));
        assert!(accepts("br;q=1.0, gzip;q=0.2"));
        assert!(accepts("*"));
        assert!(!accepts("gzip;q=0, *"));
        assert!(!accepts("*;q=0"));
        assert!(!accepts("br"));
        assert!(!accepts_gzip(None));
    }

    #[test]
    fn what_does_not_shrink_is_not_kept() {
        assert!(gzip(&[7; 4096]).is_some());
        let mut state = 1u64;
        let noise: Vec<u8> = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .take(4096)
        .collect();
        assert!(gzip(&noise).is_none());
    }
}
