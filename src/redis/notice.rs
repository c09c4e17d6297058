//! What the log says of something that comes and goes: seldom, and never the wrong way round.

use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use tokio::time::Instant;

use crate::telemetry::throttle::Throttle;

/// At most one line that something is away in this many seconds, however often it goes.
const INTERVAL: u64 = 10;

pub(super) struct Notice {
    started: Instant,
    throttle: Throttle,
    /// Whether the log says that it is away.
    away: AtomicBool,
}

impl Notice {
    pub(super) fn new() -> Self {
        Self { started: Instant::now(), throttle: Throttle::new(1), away: AtomicBool::new(false) }
    }

    /// It is away, as may have been said before: whether to log that, and how often it was left out.
    pub(super) fn away(&self) -> Option<u64> {
        if self.away.load(Relaxed) {
            return None;
        }
        let left_out = self.throttle.admit(self.started.elapsed().as_secs() / INTERVAL)?;
        self.away.store(true, Relaxed);
        Some(left_out)
    }

    /// It is back: whether the log has to take something back.
    pub(super) fn back(&self) -> bool {
        self.away.swap(false, Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_away_often_is_logged_seldom_and_taken_back_each_time() {
        let notice = Notice::new();
        assert_eq!(notice.away(), Some(0));
        assert_eq!(notice.away(), None, "it is known");
        assert!(notice.back());
        assert_eq!(notice.away(), None, "too soon");
        assert!(!notice.back(), "nothing to take back");
    }
}
