//! What the link counts.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Duration,
};

use crate::telemetry::metrics::{Exposition, Histogram, Sharded};

/// How a call ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum CallResult {
    Answered,
    /// The server refused the command.
    Refused,
    OutOfMemory,
    ReadOnly,
    /// No answer within the budget.
    Late,
    /// No connection within the budget.
    Unconnected,
    /// The connection broke, twice.
    Broken,
    /// The server cannot serve for now.
    Unavailable,
    /// Too many calls at once.
    Overloaded,
    /// Not sent, because the server is known to be away.
    Skipped,
}

impl CallResult {
    /// All results, in the order of their discriminants.
    const ALL: [Self; 10] = [
        Self::Answered,
        Self::Refused,
        Self::OutOfMemory,
        Self::ReadOnly,
        Self::Late,
        Self::Unconnected,
        Self::Broken,
        Self::Unavailable,
        Self::Overloaded,
        Self::Skipped,
    ];

    const fn label(self) -> &'static str {
        match self {
            Self::Answered => "answered",
            Self::Refused => "refused",
            Self::OutOfMemory => "out_of_memory",
            Self::ReadOnly => "read_only",
            Self::Late => "late",
            Self::Unconnected => "unconnected",
            Self::Broken => "broken",
            Self::Unavailable => "unavailable",
            Self::Overloaded => "overloaded",
            Self::Skipped => "skipped",
        }
    }
}

#[derive(Default)]
pub(super) struct Metrics {
    calls: Sharded<Block>,
    reconnects: AtomicU64,
}

#[derive(Default)]
struct Block {
    results: [AtomicU64; CallResult::ALL.len()],
    duration: Histogram,
}

impl Metrics {
    pub(super) fn called(&self, result: CallResult, duration: Duration) {
        let block = self.calls.own();
        block.results[result as usize].fetch_add(1, Relaxed);
        if result != CallResult::Skipped {
            block.duration.record(duration);
        }
    }

    /// Counts a connection, unless it was the first of its owner.
    pub(super) fn connected(&self, again: bool) {
        self.reconnects.fetch_add(u64::from(again), Relaxed);
    }

    pub(super) fn collect(&self, out: &mut Exposition) {
        let mut family =
            out.counter("portway_redis_calls_total", "Calls to Redis, by how they ended");
        for result in CallResult::ALL {
            let count = self.calls.sum(|block| &block.results[result as usize]);
            family.sample(&[("result", result.label())], count);
        }
        let mut family = out.histogram(
            "portway_redis_call_duration_seconds",
            "Time a call to Redis took; skipped calls are not counted",
        );
        self.calls.distribution(|block| &block.duration, &mut family, &[]);
        out.counter("portway_redis_reconnects_total", "Connections that replaced another")
            .sample(&[], self.reconnects.load(Relaxed));
    }
}
