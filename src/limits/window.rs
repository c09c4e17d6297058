//! The arithmetic of a sliding window, which both stores follow.
//!
//! The window is divided into a hundred slots, and a request counts until the slot it fell into has
//! wholly left the window. So no window of that length, wherever it begins, holds more requests than
//! allowed, and a request counts for at most a hundredth of the window longer than it has to. Only
//! slots with requests in them are kept: a caller that comes once costs one number.
//!
//! Moments are microseconds of whatever clock the store goes by. A slot that lies a whole window or
//! more ahead was counted by a clock that has since been set back; it does not count.

use std::slice;

use crate::routes::Limit;

/// Slots that a window is divided into.
pub const SLOTS: u64 = 100;

/// A limit in the numbers that it is reckoned with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quota {
    pub requests: u32,
    /// The length of a slot in microseconds.
    pub slot: u64,
}

impl Quota {
    pub fn of(limit: &Limit) -> Self {
        // Windows are whole seconds and at most a year: nothing is lost here.
        Self { requests: limit.requests, slot: limit.window.as_micros() as u64 / SLOTS }
    }

    /// When a slot has wholly left the window.
    fn left(&self, number: u64) -> u64 {
        number.saturating_add(SLOTS + 1).saturating_mul(self.slot)
    }
}

/// How a request stands with one limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Standing {
    pub allowed: bool,
    /// Requests that would still be let through.
    pub remaining: u32,
    /// Microseconds until that grows.
    pub reset_after: u64,
}

/// What counts at one moment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Used {
    requests: u64,
    /// The first slot that counts; the present one where none does.
    oldest: u64,
}

impl Used {
    /// Whether one more request may pass.
    pub fn leaves_room(&self, quota: &Quota) -> bool {
        self.requests < u64::from(quota.requests)
    }

    /// How the request at `now` stands; `counted` says that it passes.
    pub fn standing(&self, quota: &Quota, now: u64, counted: bool) -> Standing {
        let requests = self.requests + u64::from(counted);
        let remaining = u64::from(quota.requests).saturating_sub(requests);
        let oldest = self.oldest.min(if counted { now / quota.slot } else { u64::MAX });
        Standing {
            allowed: self.leaves_room(quota),
            // At most the limit, which has 32 bits.
            remaining: remaining as u32,
            reset_after: quota.left(oldest).saturating_sub(now),
        }
    }
}

/// The requests of one slot.
#[derive(Debug, Clone, Copy)]
struct Slot {
    number: u64,
    requests: u32,
}

/// The requests that one key was allowed, by slot.
#[derive(Debug, Default)]
pub struct Window(Slots);

/// Most keys of a large store have one slot, so that one is kept in place.
#[derive(Debug, Default)]
enum Slots {
    #[default]
    None,
    One(Slot),
    Many(Box<Sorted>),
}

/// By number, ascending.
#[derive(Debug)]
struct Sorted(Vec<Slot>);

impl Window {
    /// What counts at `now`.
    pub fn used(&self, quota: &Quota, now: u64) -> Used {
        let present = now / quota.slot;
        let counting = self.slots().iter().filter(|slot| counts(slot.number, present));
        counting.fold(Used { requests: 0, oldest: present }, |used, slot| Used {
            requests: used.requests + u64::from(slot.requests),
            oldest: if used.requests == 0 { slot.number } else { used.oldest },
        })
    }

    /// Counts a request at `now`, and forgets what does not count any more.
    pub fn count(&mut self, quota: &Quota, now: u64) {
        let number = now / quota.slot;
        let slot = Slot { number, requests: 1 };
        match &mut self.0 {
            Slots::One(only) if only.number == number => {
                only.requests = only.requests.saturating_add(1);
            }
            Slots::One(only) if counts(only.number, number) => {
                let mut both = vec![*only, slot];
                both.sort_unstable_by_key(|slot| slot.number);
                self.0 = Slots::Many(Box::new(Sorted(both)));
            }
            Slots::None | Slots::One(_) => self.0 = Slots::One(slot),
            Slots::Many(many) => {
                many.0.retain(|slot| counts(slot.number, number));
                match many.0.binary_search_by_key(&number, |slot| slot.number) {
                    Ok(at) => many.0[at].requests = many.0[at].requests.saturating_add(1),
                    Err(at) => many.0.insert(at, slot),
                }
                if let [only] = many.0[..] {
                    self.0 = Slots::One(only);
                }
            }
        }
    }

    /// When nothing in it counts any more.
    pub fn ends(&self, quota: &Quota) -> u64 {
        self.slots().last().map_or(0, |slot| quota.left(slot.number))
    }

    /// Bytes it takes beyond its own size.
    pub fn heap_bytes(&self) -> usize {
        match &self.0 {
            Slots::None | Slots::One(_) => 0,
            Slots::Many(many) => size_of::<Sorted>() + many.0.capacity() * size_of::<Slot>(),
        }
    }

    fn slots(&self) -> &[Slot] {
        match &self.0 {
            Slots::None => &[],
            Slots::One(slot) => slice::from_ref(slot),
            Slots::Many(many) => &many.0,
        }
    }
}

/// Whether requests of the slot `number` count in the slot `present`.
fn counts(number: u64, present: u64) -> bool {
    number.abs_diff(present) <= SLOTS
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;
    use crate::{limits::model::Model, routes::LimitBy};

    fn quota(requests: u32, seconds: u64) -> Quota {
        let window = Duration::from_secs(seconds);
        Quota::of(&Limit { requests, window, by: LimitBy::Ip })
    }

    fn ask(window: &mut Window, quota: &Quota, now: u64) -> Standing {
        let used = window.used(quota, now);
        let allowed = used.leaves_room(quota);
        if allowed {
            window.count(quota, now);
        }
        used.standing(quota, now, allowed)
    }

    #[test]
    fn a_request_counts_until_its_slot_has_left_the_window() {
        let quota = quota(2, 100);
        let second = 1_000_000;
        let mut window = Window::default();
        // Slots are a second; this one is slot 7, which leaves at 108 s.
        let first = ask(&mut window, &quota, 7 * second + 1);
        assert_eq!((first.allowed, first.remaining), (true, 1));
        assert_eq!(first.reset_after, 101 * second - 1);
        assert_eq!(ask(&mut window, &quota, 50 * second).remaining, 0);
        let refused = ask(&mut window, &quota, 108 * second - 1);
        assert_eq!(refused, Standing { allowed: false, remaining: 0, reset_after: 1 });
        let again = ask(&mut window, &quota, 108 * second);
        assert_eq!((again.allowed, again.remaining), (true, 0));
        assert_eq!(again.reset_after, 43 * second, "slot 50 leaves next");
    }

    #[test]
    fn what_is_alone_in_its_slot_takes_no_memory_of_its_own() {
        let quota = quota(10, 1);
        let mut window = Window::default();
        for _ in 0..3 {
            window.count(&quota, 5);
        }
        assert_eq!(window.heap_bytes(), 0);
        window.count(&quota, 500_000);
        assert!(window.heap_bytes() > 0);
        // The first slot has left, and with the second one both.
        window.count(&quota, 1_300_000);
        window.count(&quota, 9_000_000);
        assert_eq!((window.heap_bytes(), window.slots().len()), (0, 1));
        assert_eq!(window.ends(&quota), 10_010_000);
    }

    #[test]
    fn a_lowered_limit_holds_for_what_was_counted_before() {
        let (high, low) = (quota(10, 1), quota(3, 1));
        let mut window = Window::default();
        for _ in 0..5 {
            assert!(ask(&mut window, &high, 0).allowed);
        }
        let standing = ask(&mut window, &low, 10);
        assert_eq!((standing.allowed, standing.remaining), (false, 0));
    }

    proptest! {
        /// Also where the clock is set back, a little or far.
        #[test]
        fn it_does_what_the_model_does(
            requests in 1_u32..8,
            seconds in 1_u64..5,
            steps in prop::collection::vec((-3_000_000_i64..3_000_000, any::<u8>()), 1..200),
        ) {
            let quota = quota(requests, seconds);
            let (mut window, mut model) = (Window::default(), Model::default());
            let mut now = 1_000_000_000_u64;
            for (step, scale) in steps {
                now = now.saturating_add_signed(step >> (scale % 24));
                prop_assert_eq!(ask(&mut window, &quota, now), model.ask(&quota, now));
            }
        }

        #[test]
        fn no_window_holds_more_than_the_limit_and_none_is_refused_without_need(
            requests in 1_u32..20,
            steps in prop::collection::vec(0_u64..150_000, 1..400),
        ) {
            let quota = quota(requests, 1);
            let mut window = Window::default();
            let mut passed: Vec<u64> = Vec::new();
            let mut now = 0;
            for step in steps {
                now += step;
                let within = |span: u64| {
                    passed.iter().filter(|then| **then + span > now).count() as u64
                };
                let allowed = ask(&mut window, &quota, now).allowed;
                if allowed {
                    prop_assert!(within(1_000_000) < u64::from(requests));
                    passed.push(now);
                } else {
                    prop_assert!(within(1_010_000) >= u64::from(requests));
                }
            }
        }
    }
}
