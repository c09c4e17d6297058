//! Milliseconds since the process first asked: what breakers and budgets reckon in.

use std::{sync::LazyLock, time::Instant};

static START: LazyLock<Instant> = LazyLock::new(Instant::now);

pub(super) fn now_ms() -> u64 {
    START.elapsed().as_millis() as u64
}
