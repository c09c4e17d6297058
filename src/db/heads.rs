//! How old a replica's data are, without comparing clocks of two machines.
//!
//! Each probe of the primary leaves a sample: at this moment (of our clock) it had written that far. A
//! replica that has replayed as far as a sample has everything that was committed before its moment. So
//! an idle primary makes nobody look late, as the difference to the last replayed commit would, and a
//! paused replica is found out however few bytes it lacks.

use std::{collections::VecDeque, time::Instant};

/// Samples that are kept: at four a second, four minutes.
const KEPT: usize = 1024;

#[derive(Debug, Default)]
pub(super) struct Heads(VecDeque<(Instant, u64)>);

impl Heads {
    /// The primary was asked at `asked`, and had written up to `lsn`.
    pub(super) fn push(&mut self, asked: Instant, lsn: u64) {
        if self.0.back().is_some_and(|(_, last)| lsn < *last) {
            // It lost what it had: nothing that was known of it holds.
            self.0.clear();
        }
        if self.0.len() == KEPT {
            self.0.pop_front();
        }
        self.0.push_back((asked, lsn));
    }

    /// The latest moment whose writes are all within the first `lsn` bytes.
    pub(super) fn as_of(&self, lsn: u64) -> Option<Instant> {
        self.0.iter().rev().find(|(_, head)| *head <= lsn).map(|(asked, _)| *asked)
    }

    /// When the primary was last asked.
    pub(super) fn last(&self) -> Option<Instant> {
        self.0.back().map(|(asked, _)| *asked)
    }
}
