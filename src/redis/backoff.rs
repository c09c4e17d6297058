//! How long to wait before the next attempt.

use std::time::Duration;

const FIRST: Duration = Duration::from_millis(50);
const LONGEST: Duration = Duration::from_millis(500);

/// Pauses that double, each somewhere in its upper half, so that the instances of a fleet do not all
/// come back in the same moment.
#[derive(Debug)]
pub(super) struct Backoff(Duration);

impl Backoff {
    pub(super) fn new() -> Self {
        Self(FIRST)
    }

    /// The next pause; `random` is any number.
    pub(super) fn next(&mut self, random: u64) -> Duration {
        let half = self.0 / 2;
        let part = (u128::from(random) * half.as_nanos()) >> 64;
        self.0 = (self.0 * 2).min(LONGEST);
        // Less than half a second, so it fits.
        half + Duration::from_nanos(part as u64)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_half_a_second() {
        let pauses = |random| {
            let mut backoff = Backoff::new();
            (0..6).map(|_| backoff.next(random).as_millis()).collect::<Vec<_>>()
        };
        assert_eq!(pauses(0), [25, 50, 100, 200, 250, 250]);
        assert_eq!(pauses(u64::MAX), [49, 99, 199, 399, 499, 499]);
    }
}
