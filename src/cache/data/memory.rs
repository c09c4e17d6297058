//! The values one instance has in memory, bounded in bytes.

use std::{
    cmp::Ordering::{Equal, Greater, Less},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use bytes::Bytes;
use quick_cache::{OptionsBuilder, Weighter, sync};

use super::key::DataKey;
use crate::cache::{clock::Timestamp, entry::hash_text, l1::Usage, purge::Ledger};

/// Bytes of memory for values; beside responses they are few and small.
const MAX_BYTES: u64 = 16 << 20;
/// A value heavier than a shard would be refused: the largest has to fit.
const SHARDS: usize = 4;
/// What a value takes besides its key and its bytes.
const OVERHEAD: usize = 240;

/// A value, as JSON.
#[derive(Debug)]
pub struct Value {
    pub json: Bytes,
    /// The purge generation before it was loaded: whatever was purged later kills it.
    pub filled_at: u64,
    pub expires: Timestamp,
    /// What a purge names it by.
    hash: u64,
    /// The generation at which it was last found alive.
    checked: AtomicU64,
    /// When it was last known to be what the shared store has; milliseconds since the epoch.
    verified: AtomicU64,
}

impl Value {
    pub fn new(
        key: &DataKey,
        json: Bytes,
        filled_at: u64,
        expires: Timestamp,
        verified: Timestamp,
    ) -> Self {
        Self {
            json,
            filled_at,
            expires,
            hash: hash_text(key.as_str()),
            checked: AtomicU64::new(filled_at),
            verified: AtomicU64::new(verified.0),
        }
    }

    /// Whether it has neither expired nor been invalidated.
    pub fn is_live(&self, ledger: &Ledger, now: Timestamp) -> bool {
        now < self.expires && ledger.data_is_live(self.hash, self.filled_at, &self.checked)
    }

    pub fn verified(&self) -> Timestamp {
        Timestamp(self.verified.load(Ordering::Relaxed))
    }

    /// Notes that the shared store has nothing younger.
    pub fn set_verified(&self, at: Timestamp) {
        self.verified.fetch_max(at.0, Ordering::Relaxed);
    }

    /// How much longer it is kept.
    pub fn life(&self, now: Timestamp) -> Duration {
        self.expires.since(now)
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<Box<str>, Arc<Value>> for ByBytes {
    fn weight(&self, key: &Box<str>, value: &Arc<Value>) -> u64 {
        (OVERHEAD + key.len() + value.json.len()) as u64
    }
}

/// The values in memory.
pub struct Memory(sync::Cache<Box<str>, Arc<Value>, ByBytes>);

impl Memory {
    pub fn new() -> Self {
        #[expect(clippy::expect_used, reason = "both mandatory options are set")]
        let options = OptionsBuilder::new()
            .shards(SHARDS)
            .weight_capacity(MAX_BYTES)
            .estimated_items_capacity(16 << 10)
            .build()
            .expect("weight and item capacity are given");
        Self(sync::Cache::with_options(options, ByBytes, Default::default(), Default::default()))
    }

    pub fn find(&self, key: &DataKey) -> Option<Arc<Value>> {
        self.0.get(key.as_str())
    }

    /// Keeps `value` unless what is there was filled later; of one filled at the same generation, if it
    /// `wins`. Two at once may end in either order: the ledger knows whether the older one is dead.
    pub fn insert(&self, key: &DataKey, value: Arc<Value>, wins: bool) {
        let yields = |old: &Arc<Value>| match old.filled_at.cmp(&value.filled_at) {
            Less => true,
            Equal => wins,
            Greater => false,
        };
        if self.0.peek(key.as_str()).is_none_or(|old| yields(&old)) {
            self.0.insert(key.as_str().into(), value);
        }
    }

    pub fn remove(&self, key: &DataKey) {
        self.0.remove(key.as_str());
    }

    /// Drops every value that `keep` refuses.
    pub fn sweep(&self, keep: impl Fn(&Value) -> bool) {
        self.0.retain(|_, value| keep(value));
    }

    /// The keys that `wanted` accepts, in order, after `after`; at most `limit`.
    pub fn keys(
        &self,
        after: &str,
        limit: usize,
        wanted: impl Fn(&str, &Value) -> bool,
    ) -> Vec<String> {
        let mut keys: Vec<String> = self
            .0
            .iter()
            .filter(|(key, value)| **key > *after && wanted(key, value))
            .map(|(key, _)| key.into())
            .collect();
        keys.sort_unstable();
        keys.truncate(limit);
        keys
    }

    pub fn usage(&self) -> Usage {
        Usage {
            entries: self.0.len() as u64,
            bytes: self.0.weight(),
            max_bytes: self.0.capacity(),
            evictions: 0,
        }
    }
}
