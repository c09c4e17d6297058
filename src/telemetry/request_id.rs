//! The id that ties a response, its log line and a support ticket together.
//!
//! A caller's own id is kept when it is short and plain, so that one id can run through several
//! systems; anything else is replaced, because the id is echoed in headers and written to logs. A
//! new id is a UUID version 7 without dashes: it begins with the time, so ids sort by age.

use std::{
    fmt,
    time::{Duration, SystemTime},
};

use actix_http::header::HeaderValue;

use super::{hex, random};

const MAX: usize = 64;

/// At most 64 characters of `A-Z a-z 0-9 . _ -`, held in place.
#[derive(Clone, Copy)]
pub struct RequestId {
    length: u8,
    text: [u8; MAX],
}

/// Keeps the caller's id where it is acceptable and makes a new one where not.
pub fn accept_or_new(incoming: Option<&HeaderValue>) -> RequestId {
    incoming.and_then(|value| RequestId::accept(value.as_bytes())).unwrap_or_else(|| {
        RequestId::new(
            SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default(),
            [random::next(), random::next()],
        )
    })
}

impl RequestId {
    fn accept(value: &[u8]) -> Option<Self> {
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"._-".contains(byte);
        if value.is_empty() || value.len() > MAX || !value.iter().all(plain) {
            return None;
        }
        let mut text = [0; MAX];
        text[..value.len()].copy_from_slice(value);
        Some(Self { length: value.len() as u8, text })
    }

    fn new(since_epoch: Duration, random: [u64; 2]) -> Self {
        const VERSION: u64 = 0x7000;
        const VARIANT: u64 = 0b10 << 62;
        let high = (since_epoch.as_millis() as u64) << 16 | VERSION | random[0] >> 52;
        let low = VARIANT | random[1] >> 2;
        let mut text = [0; MAX];
        hex::encode(&high.to_be_bytes(), &mut text[..16]);
        hex::encode(&low.to_be_bytes(), &mut text[16..32]);
        Self { length: 32, text }
    }

    /// The id.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.as_bytes()).expect("only ASCII is accepted or generated")
    }

    /// The id as the value of `X-Request-Id`.
    pub fn to_header_value(&self) -> HeaderValue {
        HeaderValue::from_bytes(self.as_bytes()).expect("letters, digits and ._- are header text")
    }

    pub(super) fn as_bytes(&self) -> &[u8] {
        &self.text[..usize::from(self.length)]
    }
}

impl fmt::Debug for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "RequestId({})", self.as_str())
    }
}

impl fmt::Display for RequestId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use proptest::prelude::*;

    use super::*;

    fn of(bytes: &[u8]) -> RequestId {
        accept_or_new(HeaderValue::from_bytes(bytes).ok().as_ref())
    }

    #[test]
    fn a_plain_id_is_kept() {
        for id in ["a", "req-1.2_3", &"x".repeat(64), "0192F0c1-7b3d-7e55-9a55-0123456789ab"] {
            assert_eq!(of(id.as_bytes()).as_str(), id);
            assert_eq!(of(id.as_bytes()).to_header_value(), id);
        }
    }

    #[test]
    fn any_other_id_is_replaced() {
        let long = "x".repeat(65);
        for id in ["", " a", "a b", "a\"b", "a;b", "a/b", "é", "a\tb", &long] {
            let id = of(id.as_bytes());
            assert_eq!(id.as_str().len(), 32);
            assert!(id.as_str().bytes().all(|byte| byte.is_ascii_hexdigit()));
        }
        assert_eq!(accept_or_new(None).as_str().len(), 32);
    }

    #[test]
    fn a_new_id_is_a_version_7_uuid() {
        let id = RequestId::new(Duration::from_millis(0x0123_4567_89ab), [u64::MAX, 0]);
        assert_eq!(id.as_str(), "0123456789ab7fff8000000000000000");
        let id = RequestId::new(Duration::ZERO, [0, u64::MAX]);
        assert_eq!(id.as_str(), "0000000000007000bfffffffffffffff");
    }

    #[test]
    fn new_ids_differ_and_sort_by_time() {
        let ids: HashSet<String> = (0..10_000).map(|_| accept_or_new(None).to_string()).collect();
        assert_eq!(ids.len(), 10_000);
        let at = |millis| RequestId::new(Duration::from_millis(millis), [random::next(); 2]);
        assert!(at(1_800_000_000_000).as_str() < at(1_800_000_000_001).as_str());
    }

    proptest! {
        #[test]
        fn whatever_comes_in_the_id_is_short_and_plain(bytes in proptest::collection::vec(any::<u8>(), 0..90)) {
            let id = of(&bytes);
            prop_assert!((1..=64).contains(&id.as_str().len()));
            prop_assert!(id.as_str().bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b)));
        }
    }
}
