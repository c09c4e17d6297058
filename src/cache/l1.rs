//! The memory tier: a bounded map from key to stored response.
//!
//! Sharded, with admission by frequency (quick_cache's S3-FIFO), so a scan over many URLs does not
//! push out what is asked for again and again. It is bounded in bytes, everything counted: entries
//! with their keys and the share of the index. Freshness is not its business.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use actix_http::header::{HeaderMap, HeaderName};
use quick_cache::{
    Lifecycle, OptionsBuilder, Weighter,
    sync::{self, EntryAction, EntryResult},
};

use super::{
    clock::Timestamp,
    entry::Entry,
    key::{Key, KeyRef},
};

/// What is known about a key.
#[derive(Debug, Clone)]
pub enum Slot {
    Entry(Arc<Entry>),
    /// Responses vary: look again, with the key extended by these request headers.
    Variants(Arc<Variants>),
    /// The last response could not be shared; see [`Unshared`].
    Unshared(Arc<Unshared>),
}

/// The request headers that select among the responses for one key.
#[derive(Debug)]
pub struct Variants {
    key: Key,
    pub names: Arc<Vec<HeaderName>>,
    /// Part of the variants' keys, so that dropping this drops them all.
    generation: u64,
    /// Like an entry's.
    filled_at: u64,
    stored: AtomicU32,
}

/// Remembers that the last response was not to be shared.
///
/// Requests for the key then go to the origin side by side; without this each would wait for the
/// one before it, only to learn once more that it cannot use its response.
#[derive(Debug)]
pub struct Unshared {
    key: Key,
    pub until: Timestamp,
    /// Like an entry's.
    filled_at: u64,
    /// Whether a successful response said so: then the next will most likely not be storable
    /// either. After an error it may be, and is wanted by everybody at once.
    pub settled: bool,
}

/// More variants than this and the oldest idea of what varies is dropped with all of them.
const MAX_VARIANTS: u32 = 64;

static VARIANTS_GENERATION: AtomicU64 = AtomicU64::new(1);

impl Variants {
    pub fn new(key: Key, names: Vec<HeaderName>, filled_at: u64) -> Self {
        let generation = VARIANTS_GENERATION.fetch_add(1, Ordering::Relaxed);
        Self { key, names: Arc::new(names), generation, filled_at, stored: AtomicU32::new(0) }
    }

    /// The key of the response that these request headers select.
    pub fn key_for(&self, primary: &Key, headers: &HeaderMap) -> Key {
        primary.variant(&self.names, self.generation, headers)
    }

    /// The purge generation before the origin was asked for the first of them.
    pub fn filled_at(&self) -> u64 {
        self.filled_at
    }

    /// Counts a new variant; `false` when there are too many.
    pub fn admit(&self) -> bool {
        self.stored.fetch_add(1, Ordering::Relaxed) < MAX_VARIANTS
    }
}

impl Unshared {
    pub fn new(key: Key, until: Timestamp, filled_at: u64, settled: bool) -> Self {
        Self { key, until, filled_at, settled }
    }
}

impl Slot {
    fn filled_at(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.filled_at,
            Self::Variants(variants) => variants.filled_at,
            Self::Unshared(unshared) => unshared.filled_at,
        }
    }

    fn key(&self) -> &[u8] {
        match self {
            Self::Entry(entry) => entry.key(),
            Self::Variants(variants) => variants.key.bytes(),
            Self::Unshared(unshared) => unshared.key.bytes(),
        }
    }

    pub(super) fn weight(&self) -> u64 {
        match self {
            Self::Entry(entry) => entry.weight(),
            Self::Variants(variants) => {
                300 + (variants.key.bytes().len() + variants.names.len() * 32) as u64
            }
            Self::Unshared(unshared) => 200 + unshared.key.bytes().len() as u64,
        }
    }
}

#[derive(Clone)]
struct ByBytes;

impl Weighter<u64, Slot> for ByBytes {
    fn weight(&self, _: &u64, slot: &Slot) -> u64 {
        slot.weight()
    }
}

#[derive(Clone)]
struct CountEvictions(Arc<AtomicU64>);

impl Lifecycle<u64, Slot> for CountEvictions {
    type RequestState = ();

    fn on_evict(&self, (): &mut (), _: u64, _: Slot) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

type Map = sync::Cache<u64, Slot, ByBytes, foldhash::fast::RandomState, CountEvictions>;
type Guard<'map> =
    sync::PlaceholderGuard<'map, u64, Slot, ByBytes, foldhash::fast::RandomState, CountEvictions>;

/// The memory tier.
pub struct L1 {
    map: Map,
    evicted: Arc<AtomicU64>,
}

impl L1 {
    /// `max_object` is the largest body that has to fit.
    pub fn new(max_bytes: u64, max_object: u64) -> Self {
        let evicted = Arc::new(AtomicU64::new(0));
        // An entry heavier than a shard is refused, so shards stay twice as large as the largest.
        let shards = (max_bytes / (max_object.max(1) * 2)).clamp(1, 64);
        let shards = 1 << shards.ilog2();
        #[expect(clippy::expect_used, reason = "both mandatory options are set")]
        let options = OptionsBuilder::new()
            .shards(shards)
            .weight_capacity(max_bytes)
            .estimated_items_capacity((max_bytes / 2048).clamp(64, 1 << 20) as usize)
            .build()
            .expect("weight and item capacity are given");
        let lifecycle = CountEvictions(Arc::clone(&evicted));
        let map = Map::with_options(options, ByBytes, Default::default(), lifecycle);
        Self { map, evicted }
    }

    /// What is stored under `key`, if it is really this key's.
    #[inline]
    pub fn find(&self, key: KeyRef<'_>) -> Option<Slot> {
        self.map.get(&key.hash()).filter(|slot| slot.key() == key.bytes())
    }

    /// Like [`L1::find`], without counting as a use.
    pub fn peek(&self, key: KeyRef<'_>) -> Option<Slot> {
        self.map.peek(&key.hash()).filter(|slot| slot.key() == key.bytes())
    }

    /// Stores `slot`, in place of what was there; but never in place of what was fetched after a
    /// later purge.
    pub fn insert(&self, key: KeyRef<'_>, slot: Slot) {
        let filled_at = slot.filled_at();
        if let Some((slot, guard)) = self.replace(key, slot, |old| old.filled_at() <= filled_at) {
            // Refused only if it is too heavy for its shard; that is counted as an eviction.
            let _ = guard.insert(slot);
        }
    }

    /// Puts `new` where `old` still is, and does nothing otherwise.
    pub fn exchange(&self, key: KeyRef<'_>, old: &Arc<Entry>, new: Arc<Entry>) {
        // A guard that is dropped leaves the key as vacant as it was.
        drop(self.replace(
            key,
            Slot::Entry(new),
            |slot| matches!(slot, Slot::Entry(entry) if Arc::ptr_eq(entry, old)),
        ));
    }

    /// Puts `new` in place of what is there, if `yields` agrees; gives it back where nothing is.
    fn replace(
        &self,
        key: KeyRef<'_>,
        new: Slot,
        yields: impl FnOnce(&Slot) -> bool,
    ) -> Option<(Slot, Guard<'_>)> {
        let mut new = Some(new);
        let outcome = self.map.entry(&key.hash(), Some(Duration::ZERO), |_, old| {
            if let Some(slot) = new.take_if(|_| yields(old)) {
                if slot.weight() > old.weight() {
                    // Changed in place, it would grow without anything making room for it.
                    new = Some(slot);
                    return EntryAction::ReplaceWithGuard;
                }
                *old = slot;
            }
            EntryAction::Retain(())
        });
        match outcome {
            EntryResult::Replaced(guard, _) => {
                let _ = guard.insert(new?);
                None
            }
            EntryResult::Vacant(guard) => Some((new?, guard)),
            // Another thread is storing something under the key at this moment.
            EntryResult::Timeout | EntryResult::Retained(()) | EntryResult::Removed(..) => None,
        }
    }

    /// Drops every entry that `keep` refuses.
    pub fn sweep(&self, keep: impl Fn(&Slot) -> bool) {
        self.map.retain(|_, slot| keep(slot));
    }

    pub fn usage(&self) -> Usage {
        Usage {
            entries: self.map.len() as u64,
            bytes: self.map.weight(),
            max_bytes: self.map.capacity(),
            evictions: self.evicted.load(Ordering::Relaxed),
        }
    }
}

impl std::fmt::Debug for L1 {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("L1").field("usage", &self.usage()).finish_non_exhaustive()
    }
}

/// How full the memory tier is.
#[derive(Debug, Clone, Copy, serde::Serialize)]
pub struct Usage {
    pub entries: u64,
    pub bytes: u64,
    pub max_bytes: u64,
    /// Entries pushed out or refused since the start.
    pub evictions: u64,
}
