//! Which node answers a read.

use std::{
    sync::atomic::{AtomicUsize, Ordering::Relaxed},
    time::{Duration, Instant},
};

use super::{
    position::Position,
    topology::{Role, State, View},
};

/// What a read asks of its node.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    /// It has to have come as far as this.
    pub(super) floor: Option<Position>,
    /// Its data may be this old, at most.
    pub(super) max_staleness: Duration,
    /// Everything committed before the read began: the primary.
    pub(super) strong: bool,
}

/// Nodes that have been tried.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Tried(u64);

impl Tried {
    pub(super) fn add(&mut self, index: usize) {
        self.0 |= 1 << index;
    }

    fn has(self, index: usize) -> bool {
        self.0 & (1 << index) != 0
    }
}

/// Why the primary answers a read, for the metrics.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Because {
    /// The caller asked for it.
    Strong,
    /// No replica was known to have come as far as the caller's last write.
    Position,
    /// No replica can be used.
    NoReplica,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Choice {
    Replica(usize),
    /// The primary; where a replica could have answered had it been known to have come far enough, it is
    /// worth asking the replicas how far they are.
    Primary {
        index: usize,
        because: Because,
    },
    /// Nobody can, for now.
    Nobody,
}

/// Replicas by least queries in flight among those that are fresh; else the primary.
///
/// `turn` decides among equals. Never a node that is known to be down.
pub(super) fn choose(
    view: &View,
    in_flight: impl Fn(usize) -> usize,
    wanted: Wanted,
    tried: Tried,
    turn: usize,
    now: Instant,
) -> Choice {
    let mut because = Because::NoReplica;
    if wanted.strong {
        because = Because::Strong;
    } else {
        let count = view.nodes.len();
        let replica = (0..count)
            .map(|offset| (turn + offset) % count)
            .filter(|index| !tried.has(*index))
            .filter(|index| {
                let usable = usable(view, *index, wanted.max_staleness, now);
                let far_enough = usable && reaches(view, *index, wanted.floor);
                if usable && !far_enough {
                    because = Because::Position;
                }
                far_enough
            })
            .min_by_key(|index| in_flight(*index));
        if let Some(index) = replica {
            return Choice::Replica(index);
        }
    }
    match view.primary {
        // The primary of an older history than the caller's last write is none any more.
        Some(index)
            if !tried.has(index)
                && wanted.floor.is_none_or(|floor| floor.timeline <= view.timeline) =>
        {
            Choice::Primary { index, because }
        }
        _ => Choice::Nobody,
    }
}

fn usable(view: &View, index: usize, max_staleness: Duration, now: Instant) -> bool {
    let node = &view.nodes[index];
    if node.role != Some(Role::Replica) || node.drained {
        return false;
    }
    // As in `Topology`: without a primary, age stands still.
    let until = if view.primary.is_some() { Some(now) } else { view.last_head };
    match (until, node.as_of) {
        // One that lags may be fresh enough for this read.
        (Some(until), Some(as_of)) => {
            matches!(node.state, State::Up | State::Lagging)
                && until.saturating_duration_since(as_of) <= max_staleness
        }
        // No primary was seen yet; its state says that it is the best there is.
        (None, _) => node.state == State::Up,
        (Some(_), None) => false,
    }
}

fn reaches(view: &View, index: usize, floor: Option<Position>) -> bool {
    floor.is_none_or(|floor| {
        // Numbers of another history cannot be compared.
        floor.timeline == view.timeline && view.nodes[index].lsn >= floor.lsn
    })
}

/// Gives each caller another place to begin.
pub(super) fn turn() -> usize {
    static TURN: AtomicUsize = AtomicUsize::new(0);
    TURN.fetch_add(1, Relaxed)
}
