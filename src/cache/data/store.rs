//! The store that instances share, as the data cache sees it, and the form of a value there.

use std::time::Duration;

use bytes::Bytes;

use super::key::DataKey;
use crate::cache::{clock::Timestamp, purge::LAST_GENERATION, remote::Reply};

/// A value on its way to the store.
#[derive(Debug)]
pub struct Put<'a> {
    pub key: &'a DataKey,
    /// See [`encode`].
    pub value: &'a [u8],
    /// The generation it was filled at: never put in place of what was filled later.
    pub filled_at: u64,
    /// Whether it takes the place of what was filled at the same generation.
    pub wins: bool,
    pub keep: Duration,
}

/// Some of the keys there are.
#[derive(Debug, Default)]
pub struct Page {
    pub keys: Vec<String>,
    /// Where the next page begins, if there is one.
    pub next: Option<String>,
}

/// The shared store. Every call concerns one key, so a Cluster need not have several in one slot.
pub trait Store {
    fn read<'a>(&'a self, key: &'a DataKey) -> Reply<'a, Option<Bytes>>;

    fn write<'a>(&'a self, put: &'a Put<'a>) -> Reply<'a, ()>;

    /// Removes what was filled before the generation `before`.
    fn remove<'a>(&'a self, key: &'a DataKey, before: u64) -> Reply<'a, ()>;

    /// Adds `by` to a counter and returns its new value. It expires `keep` after its first use.
    fn count<'a>(&'a self, key: &'a DataKey, by: i64, keep: Duration) -> Reply<'a, i64>;

    /// Keys of values that match `glob`, some of them; from where `cursor` says, or from the
    /// beginning.
    fn scan<'a>(&'a self, glob: &'a str, cursor: &'a str, limit: usize) -> Reply<'a, Page>;
}

/// The bytes of a value: generation, moment of expiry by the store's clock (milliseconds), both
/// big-endian in eight bytes, and the JSON.
pub fn encode(filled_at: u64, expires: Timestamp, skew: i64, json: &[u8]) -> Vec<u8> {
    let expires = expires.0.saturating_add_signed(skew.saturating_neg());
    [&filled_at.to_be_bytes()[..], &expires.to_be_bytes(), json].concat()
}

/// Generation, expiry by this instance's clock, and JSON; `None` for what [`encode`] did not write.
pub fn decode(bytes: &Bytes, skew: i64) -> Option<(u64, Timestamp, Bytes)> {
    let (filled_at, rest) = bytes.split_first_chunk::<8>()?;
    let (expires, _) = rest.split_first_chunk::<8>()?;
    let filled_at = u64::from_be_bytes(*filled_at);
    let expires = u64::from_be_bytes(*expires).saturating_add_signed(skew);
    (filled_at <= LAST_GENERATION).then(|| (filled_at, Timestamp(expires), bytes.slice(16..)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_goes_through_the_clocks_of_two_machines() {
        let bytes = Bytes::from(encode(7, Timestamp(10_000), 300, b"{}"));
        // The store's clock is 300 ms behind the writer's and 200 ms ahead of the reader's.
        let (filled_at, expires, json) = decode(&bytes, -200).expect("it was encoded");
        assert_eq!((filled_at, expires, &json[..]), (7, Timestamp(9_500), &b"{}"[..]));
    }

    #[test]
    fn what_is_no_value_is_none() {
        assert!(decode(&Bytes::from_static(b"short"), 0).is_none());
        assert!(decode(&Bytes::from_static(&[0xff; 20]), 0).is_none());
    }
}
