//! Time as the cache sees it: wall-clock milliseconds that never run backwards.
//!
//! Freshness is arithmetic on dates, and a stored response may outlive a step of the system clock.
//! So the wall clock is read once, and everything after that is monotonic.

use std::{
    sync::LazyLock,
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use actix_http::header::HeaderValue;

/// Milliseconds since the Unix epoch.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(pub u64);

static START: LazyLock<(Instant, u64)> = LazyLock::new(|| {
    let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    (Instant::now(), millis(wall))
});

impl Timestamp {
    /// The present.
    pub fn now() -> Self {
        let (instant, wall) = *START;
        Self(wall + millis(instant.elapsed()))
    }

    /// This moment, `duration` later; saturates.
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(millis(duration)))
    }

    /// How long ago `earlier` was; zero when it lies ahead.
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }

    /// As header fields tell it (RFC 9110 section 5.6.7).
    pub fn to_http_date(self) -> HeaderValue {
        let text = httpdate::fmt_http_date(UNIX_EPOCH + Duration::from_millis(self.0));
        // Letters, digits, spaces, commas and colons.
        HeaderValue::try_from(text).unwrap_or_else(|_| HeaderValue::from_static(""))
    }

    /// Whole seconds since the Unix epoch.
    pub fn seconds(self) -> u64 {
        self.0 / 1000
    }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
