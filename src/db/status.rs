//! What operators see of the database.

use std::{
    sync::atomic::{AtomicU64, Ordering::Relaxed},
    time::Instant,
};

use serde::Serialize;

use super::{
    backend::Backend,
    pool::PoolStatus,
    router::Router,
    topology::{Role, State},
};

/// The database as this instance sees it.
#[derive(Debug, Clone, Serialize)]
pub struct DatabaseStatus {
    /// The name of the primary; none is known while there is none.
    pub primary: Option<String>,
    pub nodes: Vec<NodeStatus>,
    pub counts: Counts,
}

/// One server.
#[derive(Debug, Clone, Serialize)]
pub struct NodeStatus {
    /// Host and port, or a file.
    pub name: String,
    /// None while it does not answer.
    pub role: Option<Role>,
    pub state: State,
    /// Taken out of the reads by the operator.
    pub drained: bool,
    pub timeline: Option<u32>,
    /// Written (primary) or replayed (replica) up to here, as PostgreSQL writes it.
    pub lsn: Option<String>,
    /// How old its data are; none where that is not known.
    pub staleness_seconds: Option<f64>,
    /// What the latest good probe took.
    pub probe_seconds: Option<f64>,
    pub probe_failures_total: u64,
    pub state_changes_total: u64,
    /// Why the latest probe failed, if it did.
    pub last_error: Option<String>,
    /// Queries under way.
    pub in_flight: usize,
    pub reads: PoolStatus,
    pub writes: PoolStatus,
}

/// What was done since the start.
#[derive(Debug, Clone, Serialize)]
pub struct Counts {
    /// Statements that were run again, elsewhere.
    pub retries: u64,
    /// Reads on the primary: asked for, for a position that no replica had reached, for want of a replica.
    pub reads_on_primary_strong: u64,
    pub reads_on_primary_position: u64,
    pub reads_on_primary_no_replica: u64,
    /// Reads that had replicas asked how far they are, and the time that took.
    pub position_waits: u64,
    pub position_wait_seconds: f64,
    pub hedges: u64,
    pub hedges_won: u64,
    /// Writes whose outcome is unknown.
    pub outcomes_unknown: u64,
    /// Times that a node became the primary, the first included.
    pub failovers: u64,
}

impl<B: Backend> Router<B> {
    pub(super) fn status(&self) -> DatabaseStatus {
        let now = Instant::now();
        let view = self.view();
        let nodes = self.nodes.iter().enumerate().map(|(index, node)| {
            let seen = &view.nodes[index];
            let (state, staleness, position) = self.with_topology(|it| {
                (it.state(index, now), it.staleness(index, now), it.position(index))
            });
            let position = position.filter(|position| position.lsn > 0);
            let probes = node.probes().clone();
            let pools = node.pools();
            NodeStatus {
                name: node.name.clone(),
                role: seen.role,
                state,
                drained: seen.drained,
                timeline: position.map(|it| it.timeline),
                lsn: position.map(|it| format!("{:X}/{:X}", it.lsn >> 32, it.lsn & 0xffff_ffff)),
                staleness_seconds: staleness.map(|age| age.as_secs_f64()),
                probe_seconds: probes.took.map(|took| took.as_secs_f64()),
                probe_failures_total: probes.failures,
                state_changes_total: probes.state_changes,
                last_error: probes.error,
                in_flight: node.in_flight.load(Relaxed),
                reads: pools.reads.status(),
                writes: pools.writes.status(),
            }
        });
        let count = |counter: &AtomicU64| counter.load(Relaxed);
        let stats = &self.stats;
        DatabaseStatus {
            primary: view.primary.map(|index| self.nodes[index].name.clone()),
            nodes: nodes.collect(),
            counts: Counts {
                retries: count(&stats.retries),
                reads_on_primary_strong: count(&stats.on_primary_strong),
                reads_on_primary_position: count(&stats.on_primary_position),
                reads_on_primary_no_replica: count(&stats.on_primary_no_replica),
                position_waits: count(&stats.position_waits),
                position_wait_seconds: count(&stats.position_wait_micros) as f64 / 1e6,
                hedges: count(&stats.hedges),
                hedges_won: count(&stats.hedges_won),
                outcomes_unknown: count(&stats.outcomes_unknown),
                failovers: count(&stats.failovers),
            },
        }
    }
}
