//! What the operator's metrics say of the database.

use super::{Db, NodeStatus, PoolStatus, Role, State};
use crate::telemetry::metrics::Exposition;

impl Db {
    /// Writes out what is counted, when somebody asks.
    pub fn collect(&self, out: &mut Exposition) {
        let status = self.status();
        nodes(&status.nodes, out);
        pools(&status.nodes, out);
        let counts = &status.counts;
        out.counter("portway_database_retries_total", "Statements that were run again, elsewhere")
            .sample(&[], counts.retries);
        let mut family = out.counter(
            "portway_database_reads_on_primary_total",
            "Reads on the primary: asked for, for a position no replica had reached, for want of a replica",
        );
        family.sample(&[("reason", "strong")], counts.reads_on_primary_strong);
        family.sample(&[("reason", "position")], counts.reads_on_primary_position);
        family.sample(&[("reason", "no_replica")], counts.reads_on_primary_no_replica);
        out.counter(
            "portway_database_position_waits_total",
            "Reads that had replicas asked how far they are",
        )
        .sample(&[], counts.position_waits);
        out.counter("portway_database_position_wait_seconds_total", "The time that took")
            .sample(&[], counts.position_wait_seconds);
        let mut family =
            out.counter("portway_database_hedges_total", "Reads that asked a second replica");
        family.sample(&[("won", "true")], counts.hedges_won);
        family.sample(&[("won", "false")], counts.hedges.saturating_sub(counts.hedges_won));
        out.counter(
            "portway_database_unknown_outcomes_total",
            "Writes that may have happened or not",
        )
        .sample(&[], counts.outcomes_unknown);
        out.counter(
            "portway_database_failovers_total",
            "Times that a node became the primary, the first included",
        )
        .sample(&[], counts.failovers);
    }
}

fn nodes(nodes: &[NodeStatus], out: &mut Exposition) {
    let mut family = out.gauge("portway_database_node_up", "1 where the node can be used");
    for node in nodes {
        family.sample(&[("node", &node.name)], u8::from(node.state == State::Up));
    }
    let mut family = out.gauge("portway_database_node_primary", "1 where the node is the primary");
    for node in nodes {
        let primary = node.role == Some(Role::Primary) && node.state == State::Up;
        family.sample(&[("node", &node.name)], u8::from(primary));
    }
    let mut family = out
        .gauge("portway_database_node_conflict", "1 where a second node claims to be the primary");
    for node in nodes {
        family.sample(&[("node", &node.name)], u8::from(node.state == State::Conflict));
    }
    let mut family = out.gauge("portway_database_node_drained", "1 where the operator took it out");
    for node in nodes {
        family.sample(&[("node", &node.name)], u8::from(node.drained));
    }
    let mut family = out.gauge(
        "portway_database_staleness_seconds",
        "How old a node's data are, where that is known",
    );
    for node in nodes {
        if let Some(seconds) = node.staleness_seconds {
            family.sample(&[("node", &node.name)], seconds);
        }
    }
    let mut family =
        out.gauge("portway_database_probe_seconds", "What the latest good probe of a node took");
    for node in nodes {
        if let Some(seconds) = node.probe_seconds {
            family.sample(&[("node", &node.name)], seconds);
        }
    }
    let mut family = out.counter("portway_database_probe_failures_total", "Probes that failed");
    for node in nodes {
        family.sample(&[("node", &node.name)], node.probe_failures_total);
    }
    let mut family =
        out.counter("portway_database_state_changes_total", "Times that a node's state changed");
    for node in nodes {
        family.sample(&[("node", &node.name)], node.state_changes_total);
    }
    let mut family = out.gauge("portway_database_in_flight", "Queries under way");
    for node in nodes {
        family.sample(&[("node", &node.name)], node.in_flight);
    }
}

/// One family for each count, with every pool in it.
fn pools(nodes: &[NodeStatus], out: &mut Exposition) {
    type Count = fn(&PoolStatus) -> f64;
    const GAUGES: [(&str, &str, Count); 4] = [
        ("portway_database_connections_idle", "Connections that are not in use", |it| {
            it.idle as f64
        }),
        ("portway_database_connections_in_use", "Connections in use", |it| it.in_use as f64),
        ("portway_database_connections_max", "Connections there may be", |it| it.max as f64),
        ("portway_database_waiting", "Requests that wait for a connection", |it| it.waiting as f64),
    ];
    const COUNTERS: [(&str, &str, Count); 8] = [
        ("portway_database_waits_total", "Requests that found no idle connection", |it| {
            it.waits_total as f64
        }),
        ("portway_database_wait_seconds_total", "The time until these had one", |it| {
            it.wait_seconds_total
        }),
        ("portway_database_wait_timeouts_total", "Requests that waited in vain", |it| {
            it.timeouts_total as f64
        }),
        ("portway_database_connections_opened_total", "Connections opened", |it| {
            it.opened_total as f64
        }),
        (
            "portway_database_connections_expired_total",
            "Connections closed for age, or for not answering when they were to be used again",
            |it| it.expired_total as f64,
        ),
        (
            "portway_database_connections_discarded_total",
            "Connections closed with a statement under way, or broken",
            |it| it.discarded_total as f64,
        ),
        ("portway_database_queries_total", "Statements run", |it| it.queries_total as f64),
        ("portway_database_errors_total", "Statements that failed", |it| it.errors_total as f64),
    ];
    let each = |count: Count| {
        nodes.iter().flat_map(move |node| {
            [("read", &node.reads), ("write", &node.writes)].map(|(pool, status)| {
                ([("node", node.name.as_str()), ("pool", pool)], count(status))
            })
        })
    };
    for (name, help, count) in GAUGES {
        let mut family = out.gauge(name, help);
        each(count).for_each(|(labels, value)| {
            family.sample(&labels, value);
        });
    }
    for (name, help, count) in COUNTERS {
        let mut family = out.counter(name, help);
        each(count).for_each(|(labels, value)| {
            family.sample(&labels, value);
        });
    }
}
