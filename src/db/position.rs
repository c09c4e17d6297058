//! A point in the history of writes.

/// How far a node has come, or has to have come.
///
/// Without its timeline a log sequence number means nothing: after a failover the numbers of the old
/// history and of the new one overlap. So positions are ordered by timeline first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Position {
    pub timeline: u32,
    /// Byte position in the write-ahead log (`pg_lsn`).
    pub lsn: u64,
}

impl Position {
    /// Further than any node of this timeline will come, so that only its primary will do: for a write
    /// that succeeded and whose position could not be learned.
    pub(super) const fn end_of(timeline: u32) -> Self {
        Self { timeline, lsn: u64::MAX }
    }
}
