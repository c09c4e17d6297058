//! The link to Redis, which instances share: connections, breaker, health, messages, leases.
//!
//! Redis may vanish at any moment, and no request may notice more than a lower hit rate. So a call has
//! a [budget](BUDGET) that covers everything (connecting, sending, waiting, loading a script); some
//! failures in a row, or one refused connection, and calls fail at once without being sent; whether
//! Redis is back is the business of a task of its own. Nothing waits in a queue.
//!
//! The library's own connection manager is not used: it retries with pauses while calls wait for it,
//! and one connection for all workers would make each answer wake another thread.

mod backoff;
mod breaker;
mod cluster;
mod connect;
mod fault;
mod heard;
pub mod lease;
mod link;
mod metrics;
mod node;
mod notice;
mod slot;
mod subscription;
mod supervisor;
mod tls;
mod worker;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redis::from_redis_value;
pub use ::redis::{
    Cmd, FromRedisValue, ParsingError, Script, ScriptInvocation, ToRedisArgs, Value, cmd,
};
use tokio_util::task::AbortOnDropHandle;

use self::link::{Link, Request};
pub use self::{fault::Error, subscription::Listener};
use crate::{
    config::RedisConfig,
    telemetry::{metrics::Exposition, random},
};

/// How long a call may take, everything included.
pub const BUDGET: Duration = Duration::from_millis(50);

/// How long it may take to connect, which no call waits out.
const CONNECT: Duration = Duration::from_millis(500);

/// The link of this process to Redis.
pub struct Redis {
    link: Arc<Link>,
    instance: String,
    namespace: String,
    /// The supervisor and the subscriptions; they end with the link.
    tasks: Mutex<Vec<AbortOnDropHandle<()>>>,
}

/// How the link is doing.
#[derive(Debug, Clone)]
pub struct Health {
    /// Whether all of it is there: with a cluster, every node that has keys.
    pub up: bool,
    /// Which part of the servers is there, from 0 to 1.
    pub part: f64,
    /// Whether there is a connection; one to a server that hangs is of no use.
    pub connected: bool,
    /// How long the last `PING` took; with a cluster, the slowest.
    pub latency: Option<Duration>,
    /// What is wrong, or was in the last seconds. Neither addresses nor secrets.
    pub error: Option<String>,
    /// `single`, `sentinel` or `cluster`.
    pub mode: &'static str,
}

impl Redis {
    /// Begins to connect, in the background and for ever. Needs a running runtime.
    pub fn start(config: &RedisConfig) -> Arc<Self> {
        let (link, supervisor) = Link::start(config);
        Arc::new(Self {
            link: Arc::new(link),
            instance: format!("{:016x}", random::next()),
            namespace: config.namespace.clone(),
            tasks: Mutex::new(vec![supervisor]),
        })
    }

    /// Waits until the first attempt to connect has ended, well or not: about half a second at most.
    pub async fn settled(&self) {
        self.link.settled().await;
    }

    /// This instance among the instances: 16 hexadecimal digits, others at each start.
    pub fn instance(&self) -> &str {
        &self.instance
    }

    /// How every key and channel begins.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Whether calls are let through: with a cluster, to some node.
    pub fn is_up(&self) -> bool {
        self.link.is_up()
    }

    /// Sends one command and waits for its answer, at most [`BUDGET`]. It must be one that may be
    /// sent twice: a connection that turns out to be dead does not say whether it was carried out.
    ///
    /// # Errors
    ///
    /// See [`Error`]; a reply that `T` cannot be made of is [`Error::Failed`].
    pub async fn command<T: FromRedisValue>(&self, command: &Cmd) -> Result<T, Error> {
        read(self.link.call(Request::Command(command)).await?)
    }

    /// [`Redis::command`] for a script; a server that does not know it yet is told.
    ///
    /// # Errors
    ///
    /// As for [`Redis::command`].
    pub async fn script<T: FromRedisValue>(
        &self,
        script: &ScriptInvocation<'_>,
    ) -> Result<T, Error> {
        read(self.link.call(Request::Script(script)).await?)
    }

    /// Tells `listener` every message on `channels`, and when it may have missed some. Goes on for as
    /// long as the link is there, over any number of connections. Needs a running runtime.
    pub fn subscribe(&self, channels: Vec<String>, listener: Arc<dyn Listener>) {
        let link = Arc::clone(&self.link);
        let task = tokio::spawn(subscription::subscribe(link, channels, listener));
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        tasks.push(AbortOnDropHandle::new(task));
    }

    pub fn health(&self) -> Health {
        self.link.health()
    }

    /// Writes the families of metrics of this link.
    pub fn collect(&self, out: &mut Exposition) {
        out.gauge("portway_redis_up", "1 where Redis answers; of a cluster the part that does")
            .sample(&[], self.link.health().part);
        self.link.metrics.collect(out);
    }
}

/// A lifetime as commands take it. Redis refuses one of zero.
pub(crate) fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX).max(1)
}

fn read<T: FromRedisValue>(value: Value) -> Result<T, Error> {
    from_redis_value(value).map_err(|error| Error::Failed(error.to_string()))
}
