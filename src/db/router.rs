//! Sends reads to replicas that have caught up, and writes to the primary.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::{sync::Notify, time::timeout};
use tokio_util::sync::CancellationToken;

use super::{
    backend::{Backend, Seen},
    choose::Because,
    node::Node,
    prober,
    topology::{Effect, State, Topology, View},
};

/// What the operator decided.
#[derive(Debug, Clone, Copy)]
pub(super) struct Settings {
    pub(super) pool_size: usize,
    pub(super) max_lag: Duration,
    pub(super) interval: Duration,
    pub(super) query_timeout: Duration,
}

/// The nodes of one database, watched.
pub struct Router<B: Backend> {
    pub(super) nodes: Vec<Node<B>>,
    topology: Mutex<Topology>,
    view: ArcSwap<View>,
    /// Something was learned: those who wait look again.
    changed: Notify,
    closed: CancellationToken,
    pub(super) settings: Settings,
    pub(super) stats: Stats,
}

/// What the router did.
#[derive(Debug, Default)]
pub(super) struct Stats {
    pub(super) retries: AtomicU64,
    pub(super) on_primary_strong: AtomicU64,
    pub(super) on_primary_position: AtomicU64,
    pub(super) on_primary_no_replica: AtomicU64,
    pub(super) position_waits: AtomicU64,
    pub(super) position_wait_micros: AtomicU64,
    pub(super) hedges: AtomicU64,
    pub(super) hedges_won: AtomicU64,
    pub(super) outcomes_unknown: AtomicU64,
    pub(super) failovers: AtomicU64,
}

impl Stats {
    pub(super) fn on_primary(&self, because: Because) {
        let counter = match because {
            Because::Strong => &self.on_primary_strong,
            Because::Position => &self.on_primary_position,
            Because::NoReplica => &self.on_primary_no_replica,
        };
        counter.fetch_add(1, Relaxed);
    }
}

impl<B: Backend> Router<B> {
    /// Begins to watch `nodes`; never fails because one is away.
    pub(super) fn start(nodes: Vec<(String, B::Target)>, settings: Settings) -> Arc<Self> {
        let topology = Topology::new(nodes.len(), settings.max_lag);
        let view = ArcSwap::from_pointee(topology.view(Instant::now()));
        let nodes = nodes
            .into_iter()
            .map(|(name, target)| {
                Node::new(name, target, settings.pool_size, settings.query_timeout)
            })
            .collect();
        let router = Arc::new(Self {
            nodes,
            topology: Mutex::new(topology),
            view,
            changed: Notify::new(),
            closed: CancellationToken::new(),
            settings,
            stats: Stats::default(),
        });
        for index in 0..router.nodes.len() {
            tokio::spawn(prober::watch(Arc::clone(&router), index));
        }
        router
    }

    pub(super) fn view(&self) -> Arc<View> {
        self.view.load_full()
    }

    pub(super) fn has_primary(&self) -> bool {
        self.view.load().primary.is_some()
    }

    /// The primary, once one is known; none if that takes too long.
    pub(super) async fn wait_for_primary(&self) -> Option<usize> {
        let found = timeout(self.settings.query_timeout, async {
            loop {
                let changed = self.changed();
                if let Some(index) = self.view.load().primary {
                    return index;
                }
                changed.await;
            }
        });
        found.await.ok()
    }

    pub(super) fn interval(&self) -> Duration {
        self.settings.interval
    }

    /// Resolves after the next time something is learned, counted from this call.
    pub(super) fn changed(&self) -> impl Future<Output = ()> {
        self.changed.notified()
    }

    /// Has nodes probed now: those that `which` says.
    pub(super) fn kick(&self, which: impl Fn(usize) -> bool) {
        for (index, node) in self.nodes.iter().enumerate() {
            if which(index) {
                node.kick.notify_one();
            }
        }
    }

    /// A node answered a probe.
    pub(super) fn answered(&self, index: usize, seen: Seen, system: Option<i64>, asked: Instant) {
        let effect =
            self.learn(index, |topology, now| topology.answered(index, seen, system, asked, now));
        if effect.renew {
            self.nodes[index].renew();
        }
    }

    /// A node does not answer.
    pub(super) fn failed(&self, index: usize) {
        self.learn(index, |topology, now| topology.failed(index, now));
    }

    /// A connection to a node broke: it is out until its prober has seen it well.
    pub(super) fn suspect(&self, index: usize) {
        self.failed(index);
        self.nodes[index].kick.notify_one();
    }

    /// Takes a node out of the reads, or back in; false if there is no such node.
    pub(super) fn drain(&self, name: &str, drained: bool) -> bool {
        let Some(index) = self.nodes.iter().position(|node| node.name == name) else {
            return false;
        };
        self.learn(index, |topology, _| {
            topology.drain(index, drained);
            Effect::default()
        });
        tracing::info!(node = %name, drained, "database node drained by the operator");
        true
    }

    fn learn(&self, index: usize, apply: impl FnOnce(&mut Topology, Instant) -> Effect) -> Effect {
        let now = Instant::now();
        let (effect, state, tie) = {
            let mut topology = self.topology.lock().unwrap_or_else(PoisonError::into_inner);
            let effect = apply(&mut topology, now);
            // Stored under the lock, or an older view could replace a newer one.
            self.view.store(Arc::new(topology.view(now)));
            (effect, topology.state(index, now), topology.tie())
        };
        self.changed.notify_waiters();
        let node = &self.nodes[index];
        if effect.switched {
            self.stats.failovers.fetch_add(1, Relaxed);
            if let Some(primary) = self.view.load().primary {
                tracing::info!(node = %self.nodes[primary].name, "primary of the database found");
            }
        }
        if effect.changed {
            node.probes().state_changes += 1;
            let error = node.probes().error.clone();
            match state {
                State::Up => tracing::info!(node = %node.name, "database node is up"),
                State::Down => {
                    tracing::warn!(node = %node.name, error, "database node is down");
                }
                state => tracing::warn!(node = %node.name, ?state, tie, "database node"),
            }
        }
        effect
    }

    /// Asks the topology under its lock.
    pub(super) fn with_topology<T>(&self, ask: impl FnOnce(&Topology) -> T) -> T {
        ask(&self.topology.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Resolves when the router was closed.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Stops watching, lets queries under way finish, and closes what is open.
    pub(super) async fn close(&self, within: Duration) {
        let drained = timeout(within, async {
            while self.nodes.iter().any(|node| node.in_flight.load(Relaxed) > 0) {
                // Nothing announces the end of a query, as nobody but a stop would listen.
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        });
        if drained.await.is_err() {
            tracing::warn!("queries outlived the stop");
        }
        self.closed.cancel();
        for node in &self.nodes {
            let pools = node.pools();
            pools.lost.cancel();
            pools.close();
        }
    }
}
