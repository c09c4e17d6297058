//! Whether calls are let through: a dead Redis costs a few calls their budget, and then nothing.
//!
//! It opens after some calls in a row without an answer, or at once where there is no connection. No
//! call ever finds out whether Redis is back; the supervisor does, and closes it. Each time it opens,
//! an epoch ends: connections of an older one are not used again, and what calls of an older one learn
//! no longer counts.
//!
//! The answer to "may a call go?" is one atomic load, and an answered call writes nothing unless one
//! before it went without.

use std::sync::atomic::{
    AtomicBool, AtomicU32, AtomicU64,
    Ordering::{Acquire, Relaxed, Release},
};

/// Calls in a row without an answer until it opens.
const ENOUGH: u32 = 5;

/// How often connections may be made anew because the server is read-only, in milliseconds.
const REFRESH_PAUSE: u64 = 1_000;

/// Closed, open, and in which epoch.
#[derive(Debug)]
pub(super) struct Breaker {
    closed: AtomicBool,
    in_a_row: AtomicU32,
    epoch: AtomicU64,
    /// When an epoch was last ended early.
    refreshed: AtomicU64,
}

impl Breaker {
    /// Open: nothing is known yet.
    pub(super) fn new() -> Self {
        Self {
            closed: AtomicBool::new(false),
            in_a_row: AtomicU32::new(0),
            epoch: AtomicU64::new(1),
            refreshed: AtomicU64::new(0),
        }
    }

    pub(super) fn is_closed(&self) -> bool {
        self.closed.load(Acquire)
    }

    pub(super) fn epoch(&self) -> u64 {
        self.epoch.load(Acquire)
    }

    /// A call of any epoch was answered.
    pub(super) fn answered(&self) {
        if self.in_a_row.load(Relaxed) != 0 {
            self.in_a_row.store(0, Relaxed);
        }
    }

    /// A call of `epoch` had no answer in time. Says whether that opened the breaker.
    pub(super) fn late(&self, epoch: u64) -> bool {
        epoch == self.epoch() && self.in_a_row.fetch_add(1, Relaxed) + 1 >= ENOUGH && self.open()
    }

    /// There is no connection, or no use in one. Says whether that opened the breaker.
    pub(super) fn broken(&self, epoch: u64) -> bool {
        epoch == self.epoch() && self.open()
    }

    /// Lets calls through. Says whether they were not before.
    pub(super) fn close(&self) -> bool {
        self.in_a_row.store(0, Relaxed);
        !self.closed.swap(true, Release)
    }

    /// The connections of `epoch` lead to a server that takes no writes: ends the epoch, so that the
    /// master is looked up again, unless that was just done. `now` is in milliseconds.
    pub(super) fn refresh(&self, epoch: u64, now: u64) -> bool {
        let last = self.refreshed.load(Relaxed);
        let due = last == 0 || now >= last.saturating_add(REFRESH_PAUSE);
        let claimed = due
            && epoch == self.epoch()
            && self.refreshed.compare_exchange(last, now.max(1), Relaxed, Relaxed).is_ok();
        if claimed {
            self.epoch.fetch_add(1, Release);
        }
        claimed
    }

    fn open(&self) -> bool {
        let opened = self.closed.swap(false, Release);
        if opened {
            self.epoch.fetch_add(1, Release);
        }
        opened
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn closed() -> Breaker {
        let breaker = Breaker::new();
        assert!(!breaker.is_closed());
        assert!(breaker.close());
        breaker
    }

    #[test]
    fn five_calls_in_a_row_without_an_answer_open_it() {
        let breaker = closed();
        let epoch = breaker.epoch();
        let opened: Vec<_> = (0..5).map(|_| breaker.late(epoch)).collect();
        assert_eq!(opened, [false, false, false, false, true]);
        assert!(!breaker.is_closed());
        assert_eq!(breaker.epoch(), epoch + 1);
    }

    #[test]
    fn an_answer_ends_a_row() {
        let breaker = closed();
        for _ in 0..10 {
            for _ in 0..4 {
                assert!(!breaker.late(breaker.epoch()));
            }
            breaker.answered();
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn no_connection_opens_it_at_once_and_once() {
        let breaker = closed();
        let epoch = breaker.epoch();
        assert!(breaker.broken(epoch));
        assert!(!breaker.broken(epoch));
        assert!(!breaker.broken(breaker.epoch()), "it is open already");
        assert_eq!(breaker.epoch(), epoch + 1);
    }

    #[test]
    fn what_an_older_epoch_learns_does_not_count() {
        let breaker = closed();
        let old = breaker.epoch();
        assert!(breaker.broken(old));
        assert!(breaker.close());
        for _ in 0..10 {
            assert!(!breaker.late(old));
            assert!(!breaker.broken(old));
        }
        assert!(breaker.is_closed());
    }

    #[test]
    fn closing_forgets_the_row() {
        let breaker = closed();
        for _ in 0..4 {
            breaker.late(breaker.epoch());
        }
        assert!(!breaker.close(), "it was closed");
        assert!(!breaker.late(breaker.epoch()));
    }

    #[test]
    fn a_read_only_server_is_left_at_most_once_a_second() {
        let breaker = closed();
        let epoch = breaker.epoch();
        assert!(breaker.refresh(epoch, 10));
        assert_eq!(breaker.epoch(), epoch + 1);
        assert!(!breaker.refresh(epoch + 1, 1_009));
        assert!(!breaker.refresh(epoch, 1_010), "somebody else has left it");
        assert!(breaker.refresh(epoch + 1, 1_010));
        assert!(breaker.is_closed());
    }
}
