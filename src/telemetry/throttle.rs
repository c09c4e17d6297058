//! Keeps a fault that every request meets from filling the log.

use std::sync::{
    Mutex, PoisonError,
    atomic::{AtomicU64, Ordering},
};

/// Lets a few events a second through and counts the others.
#[derive(Debug)]
pub struct Throttle {
    per_second: u32,
    /// The second now, and what was let through in it.
    window: Mutex<(u64, u32)>,
    suppressed: AtomicU64,
}

impl Throttle {
    pub const fn new(per_second: u32) -> Self {
        Self { per_second, window: Mutex::new((0, 0)), suppressed: AtomicU64::new(0) }
    }

    /// Whether to log an event at `second`; if so, how many were left out since the last one.
    pub fn admit(&self, second: u64) -> Option<u64> {
        let mut window = self.window.lock().unwrap_or_else(PoisonError::into_inner);
        if window.0 != second {
            *window = (second, 0);
        }
        if window.1 == self.per_second {
            self.suppressed.fetch_add(1, Ordering::Relaxed);
            return None;
        }
        window.1 += 1;
        Some(self.suppressed.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_out_is_counted_in_the_next_event() {
        let throttle = Throttle::new(2);
        let admitted: Vec<_> = (0..5).map(|_| throttle.admit(7)).collect();
        assert_eq!(admitted, [Some(0), Some(0), None, None, None]);
        assert_eq!((throttle.admit(8), throttle.admit(8)), (Some(3), Some(0)));
    }
}
