//! The store in memory: of one instance, bounded, with a lock for each part of the keys.
//!
//! It is the limit where there is no Redis, and stands in for it while it is away.
//!
//! A part holds its keys in one array, chained by hash, and never more than its share of `KEYS`.
//! A hand goes round that array with each new key: a key that does not count any more gives its place
//! away. When the array is full, the hand goes on to the first key that
//! nobody has asked for since it last came by, and that one is forgotten: its requests are counted
//! from zero again. So a flood of keys that come once pushes out others of their kind, and not the
//! busy ones that limits are for.

use std::{
    hash::BuildHasher,
    mem,
    sync::{
        Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    Decision,
    key::Key,
    window::{Quota, Used, Window},
};

/// Keys that are remembered: about 70 bytes each.
const KEYS: usize = 1 << 20;
/// Memory beyond that, for keys with requests in several slots (16 bytes a slot).
const BUSY_BYTES: usize = 32 << 20;
const PARTS: usize = 64;

/// No place: the end of a chain.
const NOWHERE: u32 = u32::MAX;

pub struct Memory {
    parts: Box<[Mutex<Part>]>,
    /// Seeded, so that nobody can choose keys that make one long chain.
    hasher: foldhash::quality::RandomState,
    forgotten: AtomicU64,
}

/// What the store holds, in numbers.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Usage {
    pub keys: u64,
    pub bytes: u64,
    /// Keys that were given up for space while they still counted.
    pub forgotten: u64,
}

impl Default for Memory {
    fn default() -> Self {
        Self::bounded(KEYS, BUSY_BYTES)
    }
}

impl Memory {
    fn bounded(keys: usize, busy_bytes: usize) -> Self {
        let part = || Mutex::new(Part::bounded(keys / PARTS, busy_bytes / PARTS));
        Self {
            parts: (0..PARTS).map(|_| part()).collect(),
            hasher: foldhash::quality::RandomState::default(),
            forgotten: AtomicU64::new(0),
        }
    }

    /// Decides about a request; counts it if all limits let it through, and else in none.
    pub fn decide(&self, asked: &[(Key, Quota)], clock: impl FnOnce() -> u64) -> Decision {
        let located: Vec<(usize, u32)> = asked.iter().map(|(key, _)| self.locate(key)).collect();
        let mut wanted: Vec<usize> = located.iter().map(|(part, _)| *part).collect();
        // Always in this order, or two requests could wait for each other.
        wanted.sort_unstable();
        wanted.dedup();
        let mut held: Vec<_> = wanted.iter().map(|part| lock(&self.parts[*part])).collect();
        // Not before: a thread that waited here would count in the past of another, which may have
        // forgotten already what counts there.
        let now = clock();
        // Every part that is located is held.
        let position = |part| wanted.binary_search(&part).unwrap_or_default();

        let questions = || asked.iter().zip(&located);
        let used: Vec<Used> = questions()
            .map(|((key, quota), (part, hash))| held[position(*part)].used(*hash, key, quota, now))
            .collect();
        let allowed = asked.iter().zip(&used).all(|((_, quota), used)| used.leaves_room(quota));
        if allowed {
            let forgotten = questions()
                .map(|((key, quota), (part, hash))| {
                    held[position(*part)].count(*hash, key, quota, now)
                })
                .sum();
            self.forgotten.fetch_add(forgotten, Ordering::Relaxed);
        }
        let standings = asked.iter().zip(&used);
        Decision(standings.map(|((_, quota), used)| used.standing(quota, now, allowed)).collect())
    }

    pub fn usage(&self) -> Usage {
        let mut usage =
            Usage { forgotten: self.forgotten.load(Ordering::Relaxed), ..Usage::default() };
        for part in &self.parts {
            let part = lock(part);
            usage.keys += part.places.len() as u64;
            usage.bytes += part.bytes() as u64;
        }
        usage
    }

    /// The part that a key is in, and its hash there.
    fn locate(&self, key: &Key) -> (usize, u32) {
        let hash = self.hasher.hash_one(key);
        ((hash >> 32) as usize % PARTS, hash as u32)
    }
}

fn lock(part: &Mutex<Part>) -> MutexGuard<'_, Part> {
    // A panic in here is a defect; at worst it leaves one window half counted.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The keys that share a lock.
struct Part {
    places: Vec<Place>,
    /// By hash, where its chain begins. As many as there are places or more, a power of two.
    heads: Vec<u32>,
    /// The place that is looked at next.
    hand: usize,
    most: usize,
    /// Bytes that the windows take beyond their places.
    busy: usize,
    most_busy: usize,
}

struct Place {
    key: Key,
    hash: u32,
    /// The next place of the chain.
    next: u32,
    window: Window,
    /// When nothing in the window counts any more.
    ends: u64,
    /// Whether it was asked for since the hand last came by.
    asked: bool,
}

impl Part {
    fn bounded(most: usize, most_busy: usize) -> Self {
        let most = most.clamp(1, NOWHERE as usize);
        Self { places: Vec::new(), heads: Vec::new(), hand: 0, most, busy: 0, most_busy }
    }

    fn used(&mut self, hash: u32, key: &Key, quota: &Quota, now: u64) -> Used {
        match self.find(hash, key) {
            None => Window::default().used(quota, now),
            Some(at) => {
                self.places[at].asked = true;
                self.places[at].window.used(quota, now)
            }
        }
    }

    /// Counts a request, and returns how many keys had to be forgotten for it.
    fn count(&mut self, hash: u32, key: &Key, quota: &Quota, now: u64) -> u64 {
        let (at, mut forgotten) = match self.find(hash, key) {
            Some(at) => (at, 0),
            None => self.place(hash, key, now),
        };
        let place = &mut self.places[at];
        let before = place.window.heap_bytes();
        place.window.count(quota, now);
        place.ends = place.window.ends(quota);
        self.busy = self.busy - before + place.window.heap_bytes();
        if self.busy > self.most_busy {
            // Not this one.
            place.asked = true;
            forgotten += self.relieve(now);
        }
        forgotten
    }

    /// Empties windows until the busy ones fit, and returns how many of them still counted.
    fn relieve(&mut self, now: u64) -> u64 {
        let mut forgotten = 0;
        // The hand takes the marks away as it goes, so two rounds find whatever there is.
        let mut turns = 2 * self.places.len();
        while self.busy > self.most_busy && turns > 0 {
            forgotten += self.turn(now).map_or(0, |(_, counted)| u64::from(counted));
            turns -= 1;
        }
        forgotten
    }

    fn find(&self, hash: u32, key: &Key) -> Option<usize> {
        let mut at = *self.heads.get(self.chain(hash))? as usize;
        loop {
            let place = self.places.get(at)?;
            if place.key == *key {
                return Some(at);
            }
            at = place.next as usize;
        }
    }

    /// Finds a place for a new key, and says how many had to be forgotten for it.
    fn place(&mut self, hash: u32, key: &Key, now: u64) -> (usize, u64) {
        let place = Place {
            key: *key,
            hash,
            next: NOWHERE,
            window: Window::default(),
            ends: 0,
            asked: false,
        };
        let (at, counted) = match self.ended(now) {
            Some(at) => (at, false),
            None if self.places.len() < self.most => return (self.add(place), 0),
            None => loop {
                if let Some(emptied) = self.turn(now) {
                    break emptied;
                }
            },
        };
        self.unlink(at);
        self.busy -= self.places[at].window.heap_bytes();
        self.places[at] = place;
        self.link(at);
        (at, u64::from(counted))
    }

    /// A place near the hand whose key does not count any more. Two are looked at for each new key,
    /// or the hand would never get round an array that grows as fast as it moves.
    fn ended(&mut self, now: u64) -> Option<usize> {
        (0..2.min(self.places.len())).find_map(|_| {
            let at = self.advance();
            (self.places[at].ends <= now).then_some(at)
        })
    }

    /// Adds a place at the end; there have to be less than `most`.
    fn add(&mut self, place: Place) -> usize {
        let at = self.places.len();
        if at == self.places.capacity() {
            // Twice as many, as vectors grow, but never beyond what will be used.
            self.places.reserve_exact(at.max(8).min(self.most - at));
        }
        self.places.push(place);
        if at < self.heads.len() {
            self.link(at);
        } else {
            self.heads = vec![NOWHERE; (at + 1).next_power_of_two().max(8)];
            (0..=at).for_each(|at| self.link(at));
        }
        at
    }

    /// Looks at the next place. Unless somebody asked for its key, it is empty then; says which one
    /// it is, and whether its window still counted.
    fn turn(&mut self, now: u64) -> Option<(usize, bool)> {
        let at = self.advance();
        let place = &mut self.places[at];
        let counted = place.ends > now;
        if counted && mem::take(&mut place.asked) {
            return None;
        }
        self.busy -= place.window.heap_bytes();
        place.window = Window::default();
        place.ends = 0;
        Some((at, counted))
    }

    /// Moves the hand on, and returns where it was.
    fn advance(&mut self) -> usize {
        let at = self.hand;
        self.hand = (at + 1) % self.places.len();
        at
    }

    fn chain(&self, hash: u32) -> usize {
        hash as usize & self.heads.len().wrapping_sub(1)
    }

    fn link(&mut self, at: usize) {
        let chain = self.chain(self.places[at].hash);
        self.places[at].next = mem::replace(&mut self.heads[chain], at as u32);
    }

    fn unlink(&mut self, at: usize) {
        let (chain, next) = (self.chain(self.places[at].hash), self.places[at].next);
        let mut before = self.heads[chain];
        if before as usize == at {
            self.heads[chain] = next;
            return;
        }
        while let Some(place) = self.places.get_mut(before as usize) {
            if place.next as usize == at {
                place.next = next;
                return;
            }
            before = place.next;
        }
    }

    fn bytes(&self) -> usize {
        self.places.capacity() * size_of::<Place>() + self.heads.len() * 4 + self.busy
    }
}

#[cfg(test)]
mod tests;
