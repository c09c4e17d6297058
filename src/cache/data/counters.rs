//! Counters of an instance that is by itself.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use super::key::DataKey;
use crate::cache::clock::Timestamp;

/// More counters than this at once are not kept: those that expire first go first.
const MAX: usize = 65_536;

#[derive(Debug, Clone, Copy)]
struct Counter {
    count: i64,
    expires: Timestamp,
}

#[derive(Debug, Default)]
pub struct Counters(Mutex<HashMap<String, Counter>>);

impl Counters {
    /// Adds `by` to a counter and returns its new value; `None` where it has no more room for that.
    pub fn add(&self, key: &DataKey, by: i64, keep: Duration, now: Timestamp) -> Option<i64> {
        let mut counters = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if counters.len() >= MAX && !counters.contains_key(key.as_str()) {
            make_room(&mut counters, now);
        }
        let fresh = Counter { count: 0, expires: now.after(keep) };
        let counter = counters.entry(key.as_str().to_owned()).or_insert(fresh);
        if counter.expires <= now {
            *counter = fresh;
        }
        counter.count = counter.count.checked_add(by)?;
        Some(counter.count)
    }
}

/// A good part at once, so that the next ones find room.
fn make_room(counters: &mut HashMap<String, Counter>, now: Timestamp) {
    counters.retain(|_, counter| now < counter.expires);
    if counters.len() > MAX / 8 * 7 {
        let mut ends: Vec<_> = counters.values().map(|counter| counter.expires).collect();
        let (_, &mut limit, _) = ends.select_nth_unstable(MAX / 8);
        counters.retain(|_, counter| counter.expires > limit);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::data::Kind;

    fn key(id: &str) -> DataKey {
        DataKey::new("acme", Kind::Access, id).expect("it is valid")
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn a_counter_ends_a_lifetime_after_its_first_use() {
        let counters = Counters::default();
        let add = |by, now| counters.add(&key("1"), by, MINUTE, Timestamp(now));
        assert_eq!(add(5, 0), Some(5));
        assert_eq!(add(-2, 59_999), Some(3));
        assert_eq!(add(1, 60_000), Some(1));
    }

    #[test]
    fn a_counter_that_is_full_stays_so() {
        let counters = Counters::default();
        let add = |by| counters.add(&key("1"), by, MINUTE, Timestamp(0));
        assert_eq!(add(i64::MAX), Some(i64::MAX));
        assert_eq!(add(1), None);
        assert_eq!(add(-1), Some(i64::MAX - 1));
    }

    #[test]
    fn counters_are_bounded_even_if_all_expire_at_once() {
        let counters = Counters::default();
        for number in 0..=MAX {
            counters.add(&key(&number.to_string()), 1, MINUTE, Timestamp(0));
        }
        assert!(counters.0.lock().unwrap().len() <= MAX);
    }
}
