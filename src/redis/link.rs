//! The way of a call: within its budget, to the server that has its keys.

use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
    time::Duration,
};

use ::redis::{
    Arg, Cmd, ErrorKind, Pipeline, RedisError, RedisFuture, RedisResult, ScriptInvocation, Value,
    aio::ConnectionLike,
};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use super::{
    BUDGET, Health,
    cluster::Cluster,
    connect::{Dialer, Opened, Pushes, Sentinels, Target},
    fault::Error,
    metrics::{CallResult, Metrics},
    node::{Node, Trouble},
    supervisor::supervise,
};
use crate::config::{RedisConfig, Servers};

/// Calls under way at once, over all workers. More of them would wait in line for each other.
const IN_FLIGHT: usize = 1024;

/// What they may weigh together, in bytes.
const BYTES_IN_FLIGHT: usize = 64 << 20;

pub(super) struct Link {
    shape: Shape,
    mode: &'static str,
    pub(super) metrics: Arc<Metrics>,
    in_flight: AtomicUsize,
    bytes_in_flight: AtomicUsize,
}

enum Shape {
    /// One server, or one master.
    One(Arc<Node>),
    Cluster(Arc<Cluster>),
}

/// What is sent.
#[derive(Clone, Copy)]
pub(super) enum Request<'r> {
    Command(&'r Cmd),
    Script(&'r ScriptInvocation<'r>),
}

impl Link {
    /// The link, and the task that looks after it for ever.
    pub(super) fn start(config: &RedisConfig) -> (Self, AbortOnDropHandle<()>) {
        let metrics = Arc::new(Metrics::default());
        let dialer = Arc::new(Dialer::new(config));
        let (target, mode) = match &config.servers {
            Servers::Single(address) => (Target::Server(address.clone()), "single"),
            Servers::Sentinel { sentinels, master, login } => {
                let sentinels = Sentinels {
                    addresses: sentinels.clone(),
                    master: master.clone(),
                    login: login.clone(),
                    first: AtomicUsize::new(0),
                };
                (Target::Master(sentinels), "sentinel")
            }
            Servers::Cluster(seeds) => {
                let cluster = Arc::new(Cluster::new(seeds.clone(), dialer, Arc::clone(&metrics)));
                let task = tokio::spawn(Arc::clone(&cluster).follow());
                let link = Self::new(Shape::Cluster(cluster), "cluster", metrics);
                return (link, AbortOnDropHandle::new(task));
            }
        };
        let node = Arc::new(Node::new(None, target, dialer, Arc::clone(&metrics)));
        let task = tokio::spawn(supervise(Arc::clone(&node)));
        (Self::new(Shape::One(node), mode, metrics), AbortOnDropHandle::new(task))
    }

    fn new(shape: Shape, mode: &'static str, metrics: Arc<Metrics>) -> Self {
        let (in_flight, bytes_in_flight) = (AtomicUsize::new(0), AtomicUsize::new(0));
        Self { shape, mode, metrics, in_flight, bytes_in_flight }
    }

    /// Sends `request` and waits for its answer, at most [`BUDGET`] in all.
    pub(super) async fn call(&self, request: Request<'_>) -> Result<Value, Error> {
        if !self.is_up() {
            self.metrics.called(CallResult::Skipped, Duration::ZERO);
            return Err(Error::Away);
        }
        let Some(_permit) = Permit::get(&self.in_flight, 1, IN_FLIGHT) else {
            self.metrics.called(CallResult::Overloaded, Duration::ZERO);
            return Err(Error::Away);
        };
        let began = Instant::now();
        let mut call = Call { link: self, deadline: began + BUDGET, last: None, trouble: None };
        let answer = match request {
            Request::Command(command) => command.query_async(&mut call).await,
            Request::Script(script) => script.invoke_async(&mut call).await,
        };
        let (answer, result) = match (answer, call.trouble) {
            (Ok(value), _) => (Ok(value), CallResult::Answered),
            (Err(_), Some(Trouble::Away(result))) => (Err(Error::Away), result),
            (Err(_), Some(Trouble::ReadOnly)) => (Err(Error::ReadOnly), CallResult::ReadOnly),
            (Err(_), Some(Trouble::OutOfMemory)) => {
                (Err(Error::OutOfMemory), CallResult::OutOfMemory)
            }
            // Only a cluster is asked again elsewhere.
            (Err(_), Some(Trouble::Moved(error) | Trouble::Refused(error)))
            | (Err(error), None) => (Err(Error::Failed(error.to_string())), CallResult::Refused),
        };
        self.metrics.called(result, began.elapsed());
        answer
    }

    /// Whether any server is asked at all.
    pub(super) fn is_up(&self) -> bool {
        match &self.shape {
            Shape::One(node) => node.breaker.is_closed(),
            Shape::Cluster(cluster) => cluster.any_up().is_some(),
        }
    }

    /// Waits until it is known for the first time whether Redis is there.
    pub(super) async fn settled(&self) {
        match &self.shape {
            Shape::One(node) => node.settled.wait().await,
            Shape::Cluster(cluster) => cluster.settled.wait().await,
        };
    }

    /// A connection for messages.
    pub(super) async fn subscriber(&self, pushes: Pushes) -> RedisResult<Opened> {
        match &self.shape {
            Shape::One(node) => node.connect(pushes).await,
            Shape::Cluster(cluster) => cluster.subscriber(pushes).await,
        }
    }

    pub(super) fn health(&self) -> Health {
        let nodes = match &self.shape {
            Shape::One(node) => vec![Arc::clone(node)],
            Shape::Cluster(cluster) => cluster.nodes(),
        };
        let trouble = match &self.shape {
            Shape::One(_) => None,
            Shape::Cluster(cluster) => cluster.error(),
        };
        let part = |count: usize| count as f64 / nodes.len().max(1) as f64;
        let up = part(nodes.iter().filter(|node| node.breaker.is_closed()).count());
        let latencies: Option<Vec<_>> = nodes.iter().map(|node| node.latency()).collect();
        Health {
            up: up == 1.0 && trouble.is_none(),
            part: up,
            connected: !nodes.is_empty() && nodes.iter().all(|node| node.is_connected()),
            latency: latencies.and_then(|all| all.into_iter().max()),
            error: trouble.or_else(|| nodes.iter().find_map(|node| node.error())),
            mode: self.mode,
        }
    }
}

/// A call under way. To the library, which knows how to load a script, it is a connection.
struct Call<'l> {
    link: &'l Link,
    deadline: Instant,
    /// Who answered last: a script is loaded where it is not known.
    last: Option<Arc<Node>>,
    /// What the library's error stands for.
    trouble: Option<Trouble>,
}

impl Call<'_> {
    async fn send(&mut self, command: &Cmd) -> RedisResult<Value> {
        let size = command.args_iter().map(length).sum();
        let Some(_permit) = Permit::get(&self.link.bytes_in_flight, size, BYTES_IN_FLIGHT) else {
            self.trouble = Some(Trouble::Away(CallResult::Overloaded));
            return Err(RedisError::from((ErrorKind::Client, "too much at once")));
        };
        let asked = match &self.link.shape {
            Shape::One(node) => {
                let asked = node.ask(command, size, false, self.deadline).await;
                if let Err(Trouble::Moved(_)) = &asked {
                    node.note("MOVED: it is a node of a cluster, which REDIS_CLUSTER_NODES names");
                }
                asked
            }
            Shape::Cluster(cluster) => {
                cluster.ask(command, size, &mut self.last, self.deadline).await
            }
        };
        asked.map_err(|trouble| match trouble {
            // The library looks for a script that is not known.
            Trouble::Refused(error) => error,
            other => {
                self.trouble = Some(other);
                RedisError::from((ErrorKind::Client, "no answer"))
            }
        })
    }
}

impl ConnectionLike for Call<'_> {
    fn req_packed_command<'a>(&'a mut self, cmd: &'a Cmd) -> RedisFuture<'a, Value> {
        Box::pin(self.send(cmd))
    }

    fn req_packed_commands<'a>(
        &'a mut self,
        _: &'a Pipeline,
        _: usize,
        _: usize,
    ) -> RedisFuture<'a, Vec<Value>> {
        let error = RedisError::from((ErrorKind::Client, "a call is one command"));
        Box::pin(std::future::ready(Err(error)))
    }

    fn get_db(&self) -> i64 {
        0
    }
}

fn length(argument: Arg<&[u8]>) -> usize {
    match argument {
        Arg::Simple(bytes) => bytes.len(),
        _ => 0,
    }
}

/// A part of what may be under way at once.
struct Permit<'l> {
    used: &'l AtomicUsize,
    part: usize,
}

impl<'l> Permit<'l> {
    fn get(used: &'l AtomicUsize, part: usize, limit: usize) -> Option<Self> {
        let permit = Self { used, part };
        (used.fetch_add(part, Relaxed) + part <= limit).then_some(permit)
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.used.fetch_sub(self.part, Relaxed);
    }
}
