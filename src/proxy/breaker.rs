//! Leaves a failing target alone for a while, then tries it with a single request.
//!
//! The answer to "may a request go there?" is one atomic load, as every request asks it; only
//! failures take the lock. Times are milliseconds of [`super::clock`], passed in.

use std::{
    collections::VecDeque,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use serde::Serialize;

use crate::routes::Breaker as Limits;

/// Failures that are remembered at most, however high a limit is set.
const REMEMBERED: usize = 1024;

const CLOSED: u64 = 0;
/// A request is out to see whether the target has recovered.
const PROBING: u64 = u64::MAX;

/// What a breaker does with the next request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum BreakerState {
    /// Requests pass.
    Closed,
    /// Requests are refused.
    Open,
    /// One request is, or may be, let through to see whether the target has recovered.
    HalfOpen,
}

/// Why a request may go to a target.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Permit {
    Normal,
    /// The one request of a half-open breaker: it must be settled or given back.
    Probe,
}

#[derive(Debug)]
pub(super) struct Breaker {
    limits: Limits,
    /// `CLOSED`, `PROBING`, or one more than the time until which the breaker is open.
    state: AtomicU64,
    failures: Mutex<VecDeque<u64>>,
    /// Whether there are any; asked by every success, which then need not take the lock.
    failing: AtomicBool,
}

impl Breaker {
    pub(super) fn new(limits: Limits) -> Self {
        Self {
            limits,
            state: AtomicU64::new(CLOSED),
            failures: Mutex::default(),
            failing: AtomicBool::new(false),
        }
    }

    pub(super) fn state(&self, now: u64) -> BreakerState {
        match self.state.load(Ordering::Acquire) {
            CLOSED => BreakerState::Closed,
            PROBING => BreakerState::HalfOpen,
            until if now + 1 >= until => BreakerState::HalfOpen,
            _ => BreakerState::Open,
        }
    }

    /// Whether [`Self::admit`] could say yes.
    pub(super) fn may_admit(&self, now: u64) -> bool {
        match self.state.load(Ordering::Acquire) {
            CLOSED => true,
            PROBING => false,
            until => now + 1 >= until,
        }
    }

    /// Lets a request through, or not.
    pub(super) fn admit(&self, now: u64) -> Option<Permit> {
        match self.state.load(Ordering::Acquire) {
            CLOSED => Some(Permit::Normal),
            PROBING => None,
            until if now + 1 >= until => self
                .state
                .compare_exchange(until, PROBING, Ordering::AcqRel, Ordering::Acquire)
                .is_ok()
                .then_some(Permit::Probe),
            _ => None,
        }
    }

    /// The target answers.
    pub(super) fn succeeded(&self, permit: Permit) {
        if permit == Permit::Probe {
            self.lock().clear();
            self.state.store(CLOSED, Ordering::Release);
        }
    }

    /// A whole exchange went well, which ends a row of failures: a busy target that fails now and
    /// then is not failing.
    pub(super) fn completed(&self) {
        if self.failing.load(Ordering::Relaxed) {
            let mut failures = self.lock();
            failures.clear();
            self.failing.store(false, Ordering::Relaxed);
        }
    }

    pub(super) fn failed(&self, permit: Permit, now: u64) {
        if permit == Permit::Probe {
            return self.open(now);
        }
        let window = self.limits.window.as_millis() as u64;
        let limit = (self.limits.failures.max(1) as usize).min(REMEMBERED);
        let mut failures = self.lock();
        failures.push_back(now);
        self.failing.store(true, Ordering::Relaxed);
        while failures.len() > limit
            || failures.front().is_some_and(|at| at.saturating_add(window) < now)
        {
            failures.pop_front();
        }
        // A request that began before the breaker opened must not lengthen the pause.
        if failures.len() >= limit && self.state.load(Ordering::Acquire) == CLOSED {
            failures.clear();
            self.open(now);
        }
    }

    /// The probe was given up before it said anything: the next request may probe.
    pub(super) fn give_back(&self, permit: Permit, now: u64) {
        if permit == Permit::Probe {
            self.state.store(now + 1, Ordering::Release);
        }
    }

    fn open(&self, now: u64) {
        let until = now.saturating_add(self.limits.open.as_millis() as u64);
        self.state.store((until + 1).min(PROBING - 1), Ordering::Release);
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<u64>> {
        // A list of times has no state in which a panic could leave it broken.
        self.failures.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use proptest::prelude::*;

    use super::*;

    fn breaker() -> Breaker {
        Breaker::new(Limits {
            failures: 3,
            window: Duration::from_secs(10),
            open: Duration::from_secs(5),
        })
    }

    #[test]
    fn failures_within_the_window_open_it() {
        let breaker = breaker();
        for at in [0, 1_000] {
            breaker.failed(Permit::Normal, at);
            assert_eq!(breaker.admit(at), Some(Permit::Normal));
        }
        breaker.failed(Permit::Normal, 2_000);
        assert_eq!(breaker.state(2_000), BreakerState::Open);
        assert_eq!(breaker.admit(6_999), None);
    }

    #[test]
    fn failures_far_apart_do_not_open_it() {
        let breaker = breaker();
        for at in [0, 6_000, 12_000, 18_000, 24_000] {
            breaker.failed(Permit::Normal, at);
            assert_eq!(breaker.admit(at), Some(Permit::Normal));
        }
    }

    #[test]
    fn half_open_lets_exactly_one_request_through() {
        let breaker = breaker();
        (0..3).for_each(|_| breaker.failed(Permit::Normal, 0));
        assert_eq!(breaker.admit(5_000), Some(Permit::Probe));
        assert_eq!(breaker.admit(5_000), None);
        assert_eq!(breaker.state(60_000), BreakerState::HalfOpen);
        breaker.failed(Permit::Probe, 5_100);
        assert_eq!(breaker.admit(10_099), None);
        assert_eq!(breaker.admit(10_100), Some(Permit::Probe));
        breaker.succeeded(Permit::Probe);
        assert_eq!(breaker.state(10_100), BreakerState::Closed);
        breaker.failed(Permit::Normal, 10_200);
        assert_eq!(breaker.state(10_200), BreakerState::Closed, "old failures are forgotten");
    }

    #[test]
    fn a_probe_that_was_cancelled_frees_its_place() {
        let breaker = breaker();
        (0..3).for_each(|_| breaker.failed(Permit::Normal, 0));
        assert_eq!(breaker.admit(5_000), Some(Permit::Probe));
        breaker.give_back(Permit::Probe, 5_500);
        assert_eq!(breaker.admit(5_500), Some(Permit::Probe));
    }

    #[test]
    fn late_failures_do_not_lengthen_the_pause() {
        let breaker = breaker();
        (0..3).for_each(|_| breaker.failed(Permit::Normal, 0));
        (0..9).for_each(|_| breaker.failed(Permit::Normal, 4_000));
        assert_eq!(breaker.admit(5_000), Some(Permit::Probe));
    }

    proptest! {
        #[test]
        fn it_always_recovers(steps in prop::collection::vec((0u64..8_000, 0u8..4), 0..60)) {
            let breaker = breaker();
            let (mut now, mut out) = (0, Vec::new());
            for (wait, step) in steps {
                now += wait;
                match (step, out.pop()) {
                    (0, Some(permit)) => breaker.failed(permit, now),
                    (1, Some(permit)) => breaker.succeeded(permit),
                    (2, Some(permit)) => breaker.give_back(permit, now),
                    (_, held) => {
                        out.extend(held);
                        out.extend(breaker.admit(now));
                    }
                }
                prop_assert!(out.iter().filter(|permit| **permit == Permit::Probe).count() <= 1);
            }
            out.into_iter().for_each(|permit| breaker.give_back(permit, now));
            prop_assert!(breaker.admit(now + 5_000).is_some());
        }
    }
}
