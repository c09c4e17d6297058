//! How a refusal travels through actix: as a small request of our own.
//!
//! The front door cannot answer by itself, as earlier responses may still be on their way. It
//! gives actix a request that says what was wrong instead of the one that came; the pipeline
//! answers it like any other, in order, with a request id and a line in the access log. Its method
//! is one no client gets past the door (`TRACE`), and it carries a number nobody outside this
//! process knows.

use std::sync::LazyLock;

use actix_http::{Method, RequestHead, header::HeaderName};

use crate::problem::Code;

static NAME: HeaderName = HeaderName::from_static("portway-refusal");

/// Every code the front door refuses with; the position is what travels.
const CODES: [Code; 7] = [
    Code::MalformedRequest,
    Code::RequestTimeout,
    Code::TargetTooLong,
    Code::HeadersTooLarge,
    Code::ExpectationFailed,
    Code::MethodNotImplemented,
    Code::VersionNotSupported,
];

static NONCE: LazyLock<String> = LazyLock::new(|| {
    let mut bytes = [0; 16];
    aws_lc_rs::rand::fill(&mut bytes)
        .expect("the process-wide random source is seeded at start and does not fail later");
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
});

/// The request that stands for a refused one.
pub(super) fn request(code: Code) -> String {
    // A code that is not in the table would be a defect here; it is still a refusal.
    let index = CODES.iter().position(|&known| known == code).unwrap_or(0);
    format!(
        "TRACE / HTTP/1.1\r\nHost: refused.invalid\r\nConnection: close\r\n{}: {}{index}\r\n\r\n",
        NAME.as_str(),
        *NONCE,
    )
}

/// Why the front door refused the request that `head` stands for; `None` for a client's request.
///
/// A refused request has no method, path or headers worth looking at: answer it with
/// [`problem::response`](crate::problem::response) and nothing else. The connection closes then.
pub fn refusal(head: &RequestHead) -> Option<Code> {
    if head.method != Method::TRACE {
        return None;
    }
    let value = head.headers.get(&NAME)?.as_bytes();
    match value.strip_prefix(NONCE.as_bytes())? {
        [digit] => CODES.get(usize::from(digit.wrapping_sub(b'0'))).copied(),
        _ => None,
    }
}
