//! How far an instance has followed the log, and how long it may rely on what it knows.
//!
//! An instance relies on its memory for [`LEASE`] from a beat on that it sent itself and heard again
//! over the channel of messages, once it has applied everything that was in the log at that beat. The
//! others count it among the members for as long from when the store got that beat, which was later. So
//! an instance stops relying before anybody stops waiting for its confirmation, whether its messages
//! are lost, the link is cut or the process was stopped.

use std::{collections::VecDeque, time::Duration};

use crate::cache::clock::Timestamp;

/// How long one beat is good for.
pub const LEASE: Duration = Duration::from_secs(3);

/// Purges that an instance makes before their records come back get numbers of the ledger in between:
/// so many between one record and the next.
const IN_BETWEEN: u32 = 11;

/// The number in the ledger of a record of the log.
///
/// Whatever number an instance has given to purges of its own, the next record's is greater: an entry
/// that was filled in between is not younger than a purge that comes after it, on any instance.
pub fn in_ledger(generation: u64) -> u64 {
    generation << IN_BETWEEN
}

/// The last record that is not after a number in the ledger.
pub fn in_log(number: u64) -> u64 {
    number >> IN_BETWEEN
}

/// What to do about a purge that was announced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// It is the next.
    Apply,
    /// It was applied already.
    Known,
    /// Others before it were missed: read the log.
    Missed,
}

/// Where an instance is in the log. Decisions only; the clock is passed in.
#[derive(Debug, Default)]
pub struct Position {
    /// The last record applied, with all before it; zero before the log was read at all.
    applied: u64,
    /// The log is known to go on until here.
    announced: u64,
    /// Beats that were sent and not heard yet.
    sent: VecDeque<(u64, Timestamp)>,
    /// The last that was heard: when it was sent, and the log's end then.
    heard: Option<(Timestamp, u64)>,
}

impl Position {
    pub fn applied(&self) -> u64 {
        self.applied
    }

    /// Whether the log has records that were not applied.
    pub fn is_behind(&self) -> bool {
        self.applied < self.announced
    }

    /// A purge was announced, right after `previous`.
    pub fn announced(&mut self, generation: u64, previous: u64) -> Step {
        self.announced = self.announced.max(generation);
        if generation <= self.applied {
            Step::Known
        } else if previous == self.applied && self.applied != 0 {
            self.applied = generation;
            Step::Apply
        } else {
            Step::Missed
        }
    }

    /// A record was read from the log, in its order.
    pub fn read(&mut self, generation: u64) {
        self.applied = self.applied.max(generation);
        self.announced = self.announced.max(generation);
    }

    /// The log's end, as the store says.
    pub fn end(&mut self, generation: u64) {
        self.announced = self.announced.max(generation);
    }

    /// A beat is about to be sent.
    pub fn beat(&mut self, number: u64, now: Timestamp) {
        self.sent.push_back((number, now));
        if self.sent.len() > 8 {
            self.sent.pop_front();
        }
    }

    /// An own beat came back over the channel; the log ended at `generation` then.
    pub fn heard(&mut self, number: u64, generation: u64) {
        self.end(generation);
        while let Some(&(sent, at)) = self.sent.front() {
            if sent > number {
                break;
            }
            self.sent.pop_front();
            if sent == number {
                self.heard = Some((at, generation));
            }
        }
    }

    /// Until when this instance may rely on what it knows.
    pub fn trusted_until(&self) -> Option<Timestamp> {
        let (at, generation) = self.heard?;
        (self.applied >= generation).then(|| at.after(LEASE))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_in_a_row_are_applied_as_they_come() {
        let mut position = Position::default();
        position.read(10);
        assert_eq!(position.announced(12, 10), Step::Apply);
        assert_eq!(position.announced(12, 10), Step::Known);
        assert_eq!(position.announced(15, 13), Step::Missed);
        assert!(position.is_behind());
        position.read(13);
        position.read(15);
        assert!(!position.is_behind());
        assert_eq!(position.announced(16, 15), Step::Apply);
    }

    #[test]
    fn the_next_record_is_after_every_purge_in_between() {
        let now = 1_800_000_000_000_000;
        let own = in_ledger(now) + 2000;
        assert_eq!(in_log(own), now);
        assert!(in_ledger(now + 1) > own);
        assert!(in_ledger(1 << 51) <= crate::cache::purge::LAST_GENERATION);
    }

    #[test]
    fn before_the_log_was_read_nothing_is_the_next() {
        let mut position = Position::default();
        assert_eq!(position.announced(12, 0), Step::Missed);
    }

    #[test]
    fn a_beat_is_good_once_everything_before_it_was_applied() {
        let mut position = Position::default();
        position.beat(1, Timestamp(1000));
        assert_eq!(position.trusted_until(), None);
        position.heard(1, 20);
        assert_eq!(position.trusted_until(), None);
        position.read(20);
        assert_eq!(position.trusted_until(), Some(Timestamp(1000).after(LEASE)));
        // What came later does not matter to that beat, but it does to the next.
        position.beat(2, Timestamp(2000));
        assert_eq!(position.announced(22, 21), Step::Missed);
        assert_eq!(position.trusted_until(), Some(Timestamp(1000).after(LEASE)));
        position.heard(2, 22);
        assert_eq!(position.trusted_until(), None);
        position.read(22);
        assert_eq!(position.trusted_until(), Some(Timestamp(2000).after(LEASE)));
    }

    #[test]
    fn a_beat_that_was_never_sent_counts_for_nothing() {
        let mut position = Position::default();
        position.read(1);
        position.heard(7, 1);
        assert_eq!(position.trusted_until(), None);
    }
}
