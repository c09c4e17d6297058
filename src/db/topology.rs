//! Which node is what: a pure state machine over what probes saw and requests met.
//!
//! The router observes and never promotes. A node is used for what the latest probe has proved of it, and
//! for nothing as soon as a connection to it breaks. The clock is passed in.

use std::time::{Duration, Instant};

use super::{backend::Seen, heads::Heads, position::Position};

/// Good probes in a row that a replica needs after it failed. A primary needs one: there is no other.
const WARM: u32 = 2;

/// A node that keeps failing waits twice as long each time before it is used again, up to
/// `FIRST_WAIT << MOST_FLAPS`.
const FIRST_WAIT: Duration = Duration::from_millis(50);
const MOST_FLAPS: u32 = 5;
/// A node that was calm for this long has its failures forgotten.
const CALM: Duration = Duration::from_secs(30);

/// What is known of one node.
#[derive(Debug, Clone, Default)]
struct Record {
    /// The latest good probe; forgotten when anything goes wrong, since a node that comes back may have
    /// gone back in time.
    seen: Option<Seen>,
    system: Option<i64>,
    /// Good probes since the last failure.
    good: u32,
    flaps: u32,
    failed_at: Option<Instant>,
    /// Of a replica: the latest moment whose writes it is known to have.
    as_of: Option<Instant>,
    drained: bool,
}

/// What a node can be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// It answers and is used for what its role allows.
    Up,
    /// A replica that is further behind than `DATABASE_REPLICA_MAX_LAG`.
    Lagging,
    /// A replica that failed and has to prove itself before it is used again.
    Warming,
    /// It does not answer, or has not been asked yet.
    Down,
    /// Out of recovery without being the primary: another has a higher timeline, or the same.
    Conflict,
    /// It belongs to another database cluster than the first node.
    Foreign,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Role {
    Primary,
    Replica,
}

/// What requests see of a node.
#[derive(Debug, Clone, Copy)]
pub(super) struct NodeView {
    pub(super) role: Option<Role>,
    pub(super) state: State,
    pub(super) drained: bool,
    /// Replayed up to here; 0 where that is not known.
    pub(super) lsn: u64,
    pub(super) as_of: Option<Instant>,
}

/// What requests go by; never changed, but replaced.
#[derive(Debug, Clone)]
pub(super) struct View {
    pub(super) primary: Option<usize>,
    /// The highest that was seen, also when its node is away; 0 before the first.
    pub(super) timeline: u32,
    /// When a primary was last known to be where it was: ages are counted up to then where there is none.
    pub(super) last_head: Option<Instant>,
    pub(super) nodes: Vec<NodeView>,
}

/// What has to be done after something was learned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Effect {
    /// The node's connections are from another life of it, or lead nowhere.
    pub(super) renew: bool,
    /// Another node is the primary now.
    pub(super) switched: bool,
    /// The node's state changed.
    pub(super) changed: bool,
}

/// All nodes.
#[derive(Debug)]
pub(super) struct Topology {
    nodes: Vec<Record>,
    primary: Option<usize>,
    timeline: u32,
    /// The cluster that counts, and whether the first node said so.
    system: Option<(i64, bool)>,
    heads: Heads,
    max_lag: Duration,
    /// Whether two nodes claim to be the primary on one timeline, and none of them was it before.
    tie: bool,
}

impl Topology {
    pub(super) fn new(nodes: usize, max_lag: Duration) -> Self {
        Self {
            nodes: vec![Record::default(); nodes],
            primary: None,
            timeline: 0,
            system: None,
            heads: Heads::default(),
            max_lag,
            tie: false,
        }
    }

    /// A node answered a probe that was sent at `asked`.
    pub(super) fn answered(
        &mut self,
        index: usize,
        seen: Seen,
        system: Option<i64>,
        asked: Instant,
        now: Instant,
    ) -> Effect {
        let before = self.state(index, now);
        self.belongs(index, system);
        let record = &mut self.nodes[index];
        let renew = record.seen.is_some_and(|old| old.boot != seen.boot);
        record.seen = Some(seen);
        record.system = system;
        record.good = record.good.saturating_add(1);
        let switched = self.elect();
        if seen.primary {
            if self.primary == Some(index) {
                self.heads.push(asked, seen.lsn);
            }
        } else {
            // Stored and not maximised: after a crash a replica begins in the past.
            let follows = seen.lsn != 0 && !self.behind_history(seen);
            self.nodes[index].as_of = self.heads.as_of(seen.lsn).filter(|_| follows);
        }
        Effect { renew, switched, changed: before != self.state(index, now) }
    }

    /// Something is wrong with a node: it is out at once, and nothing it said before counts.
    pub(super) fn failed(&mut self, index: usize, now: Instant) -> Effect {
        let before = self.state(index, now);
        let record = &mut self.nodes[index];
        if record.seen.take().is_some() {
            let calm = record.failed_at.is_none_or(|at| now.duration_since(at) > CALM);
            record.flaps = if calm { 0 } else { (record.flaps + 1).min(MOST_FLAPS) };
        }
        record.failed_at = Some(now);
        record.good = 0;
        record.as_of = None;
        let switched = self.elect();
        Effect { renew: false, switched, changed: before != self.state(index, now) }
    }

    /// Takes a node out of the reads, or back in.
    pub(super) fn drain(&mut self, index: usize, drained: bool) {
        self.nodes[index].drained = drained;
    }

    /// The first node decides which cluster is meant; until it was seen, the first that answers.
    fn belongs(&mut self, index: usize, system: Option<i64>) {
        let Some(system) = system else { return };
        let first = index == 0;
        if self.system.is_some_and(|(_, certain)| certain || !first) {
            return;
        }
        if self.system.is_some_and(|(ours, _)| ours != system) {
            // What was learned of the other cluster's history is nothing to ours.
            (self.primary, self.timeline, self.heads) = (None, 0, Heads::default());
        }
        self.system = Some((system, first));
    }

    fn foreign(&self, record: &Record) -> bool {
        matches!((record.system, self.system), (Some(own), Some((ours, _))) if own != ours)
    }

    /// The primary is the node out of recovery on the highest timeline ever seen. Of two on the same one
    /// it is the one that has been it; if none has, nobody is, rather than the wrong one.
    fn elect(&mut self) -> bool {
        let claims = || {
            self.nodes.iter().enumerate().filter_map(|(index, record)| {
                let seen = record.seen.filter(|seen| seen.primary && !self.foreign(record))?;
                Some((index, seen.timeline))
            })
        };
        let highest = claims().map(|(_, timeline)| timeline).max();
        let timeline = self.timeline.max(highest.unwrap_or(0));
        let best: Vec<usize> =
            claims().filter(|(_, claimed)| *claimed == timeline).map(|(index, _)| index).collect();
        let (primary, tie) = match (best.as_slice(), self.primary) {
            (best, Some(current)) if best.contains(&current) => (Some(current), false),
            ([only], _) => (Some(*only), false),
            (best, _) => (None, best.len() > 1),
        };
        if self.timeline != timeline {
            // Positions of another history say nothing about this one.
            self.heads = Heads::default();
        }
        let switched = primary.is_some() && primary != self.primary;
        (self.primary, self.timeline, self.tie) = (primary, timeline, tie);
        switched
    }

    fn role(&self, index: usize) -> Option<Role> {
        let seen = self.nodes[index].seen?;
        Some(if seen.primary { Role::Primary } else { Role::Replica })
    }

    pub(super) fn state(&self, index: usize, now: Instant) -> State {
        let record = &self.nodes[index];
        let Some(seen) = record.seen else { return State::Down };
        if self.foreign(record) {
            return State::Foreign;
        }
        if seen.primary {
            let elected = self.primary == Some(index);
            return if elected { State::Up } else { State::Conflict };
        }
        if let Some(failed_at) = record.failed_at {
            let wait = match record.flaps {
                0 => Duration::ZERO,
                flaps => FIRST_WAIT * (1 << flaps),
            };
            if record.good < WARM || now.duration_since(failed_at) < wait {
                return State::Warming;
            }
        }
        if self.lags(index, now) { State::Lagging } else { State::Up }
    }

    fn lags(&self, index: usize, now: Instant) -> bool {
        let record = &self.nodes[index];
        let Some(seen) = record.seen else { return true };
        if seen.lsn == 0 {
            return true;
        }
        if self.behind_history(seen) {
            return true;
        }
        match (self.age_of(record.as_of, now), self.heads.last()) {
            (Some(age), _) => age > self.max_lag,
            // The primary is known, and this replica is behind all that is remembered of it.
            (None, Some(_)) => true,
            // No primary has been seen since the start: the replica that is furthest is the best there is.
            (None, None) => {
                let furthest = self.nodes.iter().filter_map(|it| Some(it.seen?.lsn)).max();
                self.primary.is_some() || furthest.is_some_and(|furthest| seen.lsn < furthest)
            }
        }
    }

    /// Where it may tell: a replica that follows another history than the primary's.
    fn behind_history(&self, seen: Seen) -> bool {
        !seen.primary && seen.timeline != 0 && seen.timeline < self.timeline
    }

    /// How old the data of a replica are. While there is no primary nothing new is written, and they
    /// are as old as they were when it was last seen.
    fn age_of(&self, as_of: Option<Instant>, now: Instant) -> Option<Duration> {
        let until = if self.primary.is_some() { now } else { self.heads.last()? };
        Some(until.saturating_duration_since(as_of?))
    }

    /// How old a replica's data are; of the primary nothing.
    pub(super) fn staleness(&self, index: usize, now: Instant) -> Option<Duration> {
        if self.primary == Some(index) {
            return Some(Duration::ZERO);
        }
        self.age_of(self.nodes[index].as_of, now)
    }

    pub(super) fn position(&self, index: usize) -> Option<Position> {
        let seen = self.nodes[index].seen?;
        let timeline = if seen.primary { seen.timeline } else { self.timeline };
        Some(Position { timeline, lsn: seen.lsn })
    }

    pub(super) fn tie(&self) -> bool {
        self.tie
    }

    pub(super) fn view(&self, now: Instant) -> View {
        let nodes = (0..self.nodes.len())
            .map(|index| NodeView {
                role: self.role(index),
                state: self.state(index, now),
                drained: self.nodes[index].drained,
                lsn: self.nodes[index].seen.map_or(0, |seen| seen.lsn),
                as_of: self.nodes[index].as_of,
            })
            .collect();
        View { primary: self.primary, timeline: self.timeline, last_head: self.heads.last(), nodes }
    }
}

#[cfg(test)]
mod tests;
