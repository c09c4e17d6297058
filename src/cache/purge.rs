//! What has been invalidated, and since when: generations instead of deletions.
//!
//! A purge kills any number of entries in constant time. It advances a counter, the generation, and
//! notes the new value beside what it names. An entry remembers the generation at which its fill
//! *began*; it is dead once something it belongs to was purged later. That is also the fence: a
//! response fetched before a purge and stored after it is dead on arrival.
//!
//! Among many instances a purge has one number that all of them know, the time at which it was
//! recorded; [`Ledger::apply`] notes it under that number, whatever the order in which they come. A
//! stored response can be anywhere then, and out of reach of any sweep, for as long as it likes. So
//! no purge is ever forgotten; to be bounded all the same, old ones become vague (`notes.rs`).
//!
//! A look-up must not search a table. Each entry therefore remembers the generation it was last
//! checked at; while nothing was purged since, one comparison settles it.

mod notes;
mod selector;

use std::sync::{
    PoisonError, RwLock, RwLockWriteGuard,
    atomic::{AtomicU64, Ordering},
};

use serde::{Deserialize, Serialize};

#[cfg(test)]
pub(super) use self::notes::Limits;
use self::notes::Notes;
pub use self::selector::Selector;
pub(super) use self::selector::glob_matches;
use super::{
    entry::{Entry, hash_text, hash_url},
    key,
};

/// How far a purge goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Mode {
    /// Never served again.
    Hard,
    /// Served stale once more while it is revalidated.
    Soft,
}

/// What a check says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Live,
    SoftlyPurged,
    Dead,
}

/// Numbers from elsewhere end here, so that counting on from them never overflows.
pub(super) const LAST_GENERATION: u64 = 1 << 62;

/// Every purge.
#[derive(Debug, Default)]
pub struct Ledger {
    /// No note has a higher one, and every note raises it.
    generation: AtomicU64,
    /// The highest that an entry from elsewhere was filled at; it may be ahead of what was noted here.
    seen: AtomicU64,
    notes: RwLock<Notes>,
}

impl Ledger {
    #[cfg(test)]
    pub(super) fn with_limits(limits: Limits) -> Self {
        Self { notes: RwLock::new(Notes::with(limits)), ..Self::default() }
    }

    /// The number of the last purge. To be read before the origin is asked for what will be stored.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Invalidates what `selectors` name; when this returns, no later look-up serves it.
    pub fn purge(&self, selectors: &[Selector], mode: Mode) -> u64 {
        let notes = self.write();
        let generation = self.generation().max(self.seen.load(Ordering::Acquire)) + 1;
        self.note(notes, generation, selectors, mode);
        generation
    }

    /// Invalidates what `selectors` name as far as it was filled before `generation`, the number of
    /// a purge that was recorded elsewhere.
    pub fn apply(&self, generation: u64, selectors: &[Selector], mode: Mode) {
        self.note(self.write(), generation.min(LAST_GENERATION), selectors, mode);
    }

    /// Whatever was filled before `generation` is dead.
    pub fn raise_floor(&self, generation: u64) {
        self.apply(generation, &[Selector::All], Mode::Hard);
    }

    fn write(&self) -> RwLockWriteGuard<'_, Notes> {
        self.notes.write().unwrap_or_else(PoisonError::into_inner)
    }

    fn note(
        &self,
        mut notes: RwLockWriteGuard<'_, Notes>,
        generation: u64,
        selectors: &[Selector],
        mode: Mode,
    ) {
        // Even an old purge is news to entries that were checked before.
        let noted = generation.max(self.generation() + 1);
        for selector in selectors {
            notes.add(selector, generation, noted, mode);
        }
        // Published last and under the lock: who sees the new generation finds the notes.
        self.generation.store(noted, Ordering::Release);
    }

    /// What was filled elsewhere, at `filled_at`, is about to be stored here: the next purge made here
    /// has to come after it.
    pub fn see(&self, filled_at: u64) {
        self.seen.fetch_max(filled_at, Ordering::AcqRel);
    }

    /// Whether `entry` may still be served.
    #[inline]
    pub fn check(&self, entry: &Entry) -> Verdict {
        let (checked, soft) = entry.checked();
        if checked == self.generation() {
            return if soft { Verdict::SoftlyPurged } else { Verdict::Live };
        }
        self.search(entry)
    }

    #[cold]
    fn search(&self, entry: &Entry) -> Verdict {
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: notes up to this generation are all there.
        let generation = self.generation();
        let (checked, soft) = entry.checked();
        let known = if soft { Verdict::SoftlyPurged } else { Verdict::Live };
        let verdict = worse(known, notes.judge(entry, entry.filled_at, checked));
        if verdict != Verdict::Dead {
            entry.set_checked(generation, verdict == Verdict::SoftlyPurged);
        }
        verdict
    }

    /// Whether something was purged after `generation` that concerns a response to come.
    pub fn purged_since(&self, generation: u64, expected: &Expected<'_>) -> bool {
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        notes.judge(expected, generation, generation) != Verdict::Live
    }

    /// Whether the value of the data cache whose key has the hash `key` may still be used. `checked` is
    /// the generation at which that was last found, or at which it was filled.
    pub fn data_is_live(&self, key: u64, filled_at: u64, checked: &AtomicU64) -> bool {
        if checked.load(Ordering::Relaxed) == self.generation() {
            return true;
        }
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: notes up to this generation are all there.
        let generation = self.generation();
        let live = notes.judge_data(key, filled_at) == Verdict::Live;
        if live {
            checked.store(generation, Ordering::Relaxed);
        }
        live
    }

    /// Whether the value under `key` was purged after `generation`.
    pub fn data_purged_since(&self, key: &str, generation: u64) -> bool {
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        notes.judge_data(hash_text(key), generation) != Verdict::Live
    }

    /// How many purges are remembered exactly, for the operator.
    pub fn notes(&self) -> usize {
        self.notes.read().unwrap_or_else(PoisonError::into_inner).len()
    }
}

/// What a purge can name.
trait Subject {
    fn key(&self) -> &[u8];
    fn url(&self) -> u64;
    fn route(&self) -> u64;
    fn tenant(&self) -> u64;
    fn each_tag(&self, see: &mut dyn FnMut(u64));
}

impl Subject for Entry {
    fn key(&self) -> &[u8] {
        self.key()
    }

    fn url(&self) -> u64 {
        self.url
    }

    fn route(&self) -> u64 {
        self.route
    }

    fn tenant(&self) -> u64 {
        self.tenant
    }

    fn each_tag(&self, see: &mut dyn FnMut(u64)) {
        self.tags().for_each(see);
    }
}

/// A response that has not come yet, as far as its request tells. Tags that the origin will add are
/// not among what is known: the stored entry is checked for those.
#[derive(Debug)]
pub struct Expected<'a> {
    pub key: &'a [u8],
    pub route: &'a str,
    pub tenant: &'a str,
    pub tags: Vec<String>,
}

impl Subject for Expected<'_> {
    fn key(&self) -> &[u8] {
        self.key
    }

    fn url(&self) -> u64 {
        key::target(self.key).map_or(0, |(host, path, query)| hash_url(host, path, query))
    }

    fn route(&self) -> u64 {
        hash_text(self.route)
    }

    fn tenant(&self) -> u64 {
        hash_text(self.tenant)
    }

    fn each_tag(&self, see: &mut dyn FnMut(u64)) {
        self.tags.iter().for_each(|tag| see(hash_text(tag)));
    }
}

fn worse(a: Verdict, b: Verdict) -> Verdict {
    match (a, b) {
        (Verdict::Dead, _) | (_, Verdict::Dead) => Verdict::Dead,
        (Verdict::SoftlyPurged, _) | (_, Verdict::SoftlyPurged) => Verdict::SoftlyPurged,
        (Verdict::Live, Verdict::Live) => Verdict::Live,
    }
}
