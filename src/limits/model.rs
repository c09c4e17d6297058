//! The obvious way to keep a sliding window, which both stores are tested against: every request
//! that passed, with the moment it did.

use super::window::{Quota, SLOTS, Standing};

#[derive(Debug, Default)]
pub(super) struct Model {
    /// When each one passed, in the order they came.
    passed: Vec<u64>,
}

impl Model {
    /// Decides about a request at `now`, and counts it if it passes.
    pub(super) fn ask(&mut self, quota: &Quota, now: u64) -> Standing {
        let allowed = self.may_pass(quota, now);
        if allowed {
            self.count(quota, now);
        }
        self.standing(quota, now, allowed)
    }

    pub(super) fn may_pass(&self, quota: &Quota, now: u64) -> bool {
        self.counting(quota, now).len() < quota.requests as usize
    }

    /// Counts a request at `now`. What does not count any more is forgotten then, also if the clock
    /// should be set back to where it would.
    pub(super) fn count(&mut self, quota: &Quota, now: u64) {
        self.passed = self.counting(quota, now);
        self.passed.push(now);
    }

    /// `allowed` is what [`may_pass`](Self::may_pass) said; what was counted since is counted.
    pub(super) fn standing(&self, quota: &Quota, now: u64, allowed: bool) -> Standing {
        let counting = self.counting(quota, now);
        let oldest = counting.iter().copied().min().unwrap_or(now);
        Standing {
            allowed,
            remaining: quota.requests.saturating_sub(counting.len() as u32),
            reset_after: leaves(quota, oldest) - now,
        }
    }

    fn counting(&self, quota: &Quota, now: u64) -> Vec<u64> {
        let window = quota.slot * SLOTS;
        let counts = |then: &&u64| {
            // Set back by more than a window, it starts anew.
            leaves(quota, **then) > now && begins(quota, **then) < begins(quota, now) + window + 1
        };
        self.passed.iter().filter(counts).copied().collect()
    }
}

/// The beginning of the slot that a moment falls into.
fn begins(quota: &Quota, then: u64) -> u64 {
    then - then % quota.slot
}

/// When the slot of a moment has wholly left the window: a window after its end.
fn leaves(quota: &Quota, then: u64) -> u64 {
    begins(quota, then) + quota.slot + quota.slot * SLOTS
}
