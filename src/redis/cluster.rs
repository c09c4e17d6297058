//! A Redis Cluster: which node has which slot, and each node on its own.
//!
//! The library's cluster client is not used. While it learns the nodes anew, every call waits, also for
//! a node that hangs; and one node that is away is a fault of all. Here each node has its own breaker,
//! so that the others serve on, and the map of slots is brought up to date beside the calls. What a
//! call may do is kept small in return: one command, whose keys are all in one slot.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use ::redis::{Cmd, ErrorKind, RedisError, RedisResult, ServerErrorKind, Value, cmd};
use arc_swap::ArcSwap;
use tokio::{
    sync::{Notify, SetOnce},
    time::{Instant, sleep, sleep_until, timeout},
};
use tokio_util::task::AbortOnDropHandle;

use super::{
    connect::{Dialer, ONE_OF_SEVERAL, Opened, Pushes, Target, other},
    fault::describe,
    metrics::{CallResult, Metrics},
    node::{Node, Trouble},
    notice::Notice,
    slot::{self, SLOTS},
    supervisor::supervise,
};
use crate::config::Address;

/// How often a call is sent somewhere else.
const REDIRECTIONS: usize = 4;

/// How long a call waits for keys that are just on their way.
const IN_BETWEEN: Duration = Duration::from_millis(5);

/// How often the map is read again while all is well, and while it is not.
const CALM: Duration = Duration::from_secs(5);
const WORRIED: Duration = Duration::from_millis(250);

/// The shortest time between two readings, however many calls went wrong.
const BREATH: Duration = Duration::from_millis(50);

pub(super) struct Cluster {
    seeds: Vec<Address>,
    dialer: Arc<Dialer>,
    metrics: Arc<Metrics>,
    map: ArcSwap<Map>,
    /// Told when a call found the map wrong.
    outdated: Notify,
    /// Set when it is known for the first time whether there is a cluster.
    pub(super) settled: SetOnce<()>,
    /// Why the map could not be read last time.
    error: Mutex<Option<String>>,
    notice: Notice,
}

/// Who has which slot.
#[derive(Default)]
struct Map {
    masters: Vec<Arc<Master>>,
    /// For each slot the place of its master, counted from one.
    owners: Vec<u16>,
}

struct Master {
    address: Address,
    node: Arc<Node>,
    /// Ends when the node is no master any more.
    _supervisor: AbortOnDropHandle<()>,
}

/// A row of `CLUSTER SLOTS`.
#[derive(Debug, PartialEq, Eq)]
struct Range {
    first: u16,
    last: u16,
    master: Address,
}

impl Cluster {
    pub(super) fn new(seeds: Vec<Address>, dialer: Arc<Dialer>, metrics: Arc<Metrics>) -> Self {
        Self {
            seeds,
            dialer,
            metrics,
            map: ArcSwap::default(),
            outdated: Notify::new(),
            settled: SetOnce::new(),
            error: Mutex::default(),
            notice: Notice::new(),
        }
    }

    /// Sends `command` to the master of its keys, and after them when they have moved. Without keys it
    /// goes to `last`, or to any.
    pub(super) async fn ask(
        &self,
        command: &Cmd,
        size: usize,
        last: &mut Option<Arc<Node>>,
        deadline: Instant,
    ) -> Result<Value, Trouble> {
        let slot = slot::of(command);
        let found = match slot {
            Some(slot) => self.map.load().owner(slot),
            None => last.clone().or_else(|| self.any_up()),
        };
        let Some(mut node) = found else {
            self.outdated.notify_one();
            return Err(Trouble::Away(CallResult::Unavailable));
        };
        let mut asking = false;
        for _ in 0..REDIRECTIONS {
            let asked = node.ask(command, size, asking, deadline).await;
            *last = Some(Arc::clone(&node));
            let error = match asked {
                Err(Trouble::Moved(error)) => error,
                Err(trouble @ (Trouble::Away(_) | Trouble::ReadOnly)) => {
                    self.outdated.notify_one();
                    return Err(trouble);
                }
                other => return other,
            };
            asking = error.kind() == ErrorKind::Server(ServerErrorKind::Ask);
            match redirection(&error) {
                Some(address) => {
                    if !asking {
                        self.outdated.notify_one();
                    }
                    let Some(next) = self.map.load().at(&address) else { break };
                    node = next;
                }
                None => sleep_until(deadline.min(Instant::now() + IN_BETWEEN)).await,
            }
        }
        self.outdated.notify_one();
        Err(Trouble::Away(CallResult::Unavailable))
    }

    pub(super) fn any_up(&self) -> Option<Arc<Node>> {
        let map = self.map.load();
        let up = map.masters.iter().find(|master| master.node.breaker.is_closed());
        up.map(|master| Arc::clone(&master.node))
    }

    pub(super) fn nodes(&self) -> Vec<Arc<Node>> {
        self.map.load().masters.iter().map(|master| Arc::clone(&master.node)).collect()
    }

    pub(super) fn error(&self) -> Option<String> {
        self.error.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// A connection to some node: each has every message.
    pub(super) async fn subscriber(&self, pushes: Pushes) -> RedisResult<Opened> {
        let attempt = |address| {
            let pushes = pushes.clone();
            async move { self.dialer.open(&address, pushes).await }
        };
        self.first(attempt).await
    }

    /// Keeps the map up to date, for ever.
    pub(super) async fn follow(self: Arc<Self>) {
        loop {
            let read = self.first(|address| self.ranges(address)).await;
            let error = match read {
                Ok(ranges) => self.adopt(&ranges),
                Err(error) => Some(describe(&error)),
            };
            let nodes = self.nodes();
            for node in &nodes {
                // It takes no longer than an attempt to connect.
                node.settled.wait().await;
            }
            let _ = self.settled.set(());
            let well = error.is_none() && nodes.iter().all(|node| node.breaker.is_closed());
            self.note(error);
            sleep(BREATH).await;
            tokio::select! {
                () = sleep(if well { CALM } else { WORRIED }) => {}
                () = self.outdated.notified() => {}
            }
        }
    }

    /// Notes how reading the map went.
    fn note(&self, error: Option<String>) {
        match &error {
            Some(error) => {
                if let Some(left_out) = self.notice.away() {
                    tracing::warn!(error, left_out, "Redis Cluster is not whole: {error}");
                }
            }
            None => {
                if self.notice.back() {
                    tracing::info!("Redis Cluster is whole");
                }
            }
        }
        *self.error.lock().unwrap_or_else(PoisonError::into_inner) = error;
    }

    /// The first that `attempt` succeeds with: masters that are up, other masters, seeds.
    async fn first<T, F>(&self, attempt: impl Fn(Address) -> F) -> RedisResult<T>
    where
        F: Future<Output = RedisResult<T>>,
    {
        let map = self.map.load_full();
        let (up, down): (Vec<_>, Vec<_>) =
            map.masters.iter().partition(|master| master.node.breaker.is_closed());
        let known = up.into_iter().chain(down).map(|master| &master.address);
        let mut last = other("no node answers");
        for address in known.chain(&self.seeds) {
            match timeout(ONE_OF_SEVERAL, attempt(address.clone())).await {
                Ok(Ok(found)) => return Ok(found),
                Ok(Err(error)) => last = error,
                Err(_) => {}
            }
        }
        Err(last)
    }

    async fn ranges(&self, address: Address) -> RedisResult<Vec<Range>> {
        let mut opened = self.dialer.open(&address, None).await?;
        let rows: Value = cmd("CLUSTER").arg("SLOTS").query_async(&mut opened.connection).await?;
        let ranges = ranges(&rows, &address.host);
        match ranges.is_empty() {
            true => Err(other("no node of the cluster has a slot")),
            false => Ok(ranges),
        }
    }

    /// Puts the new map in the place of the old one; masters that stay are the same nodes. Says what
    /// is wrong with it.
    fn adopt(&self, ranges: &[Range]) -> Option<String> {
        let old = self.map.load_full();
        let mut map = Map { masters: Vec::new(), owners: vec![0; usize::from(SLOTS)] };
        for range in ranges {
            let known = map.masters.iter().position(|master| master.address == range.master);
            let at = known.unwrap_or_else(|| {
                let same = old.masters.iter().find(|master| master.address == range.master);
                map.masters.push(match same {
                    Some(master) => Arc::clone(master),
                    None => Arc::new(self.master(range.master.clone())),
                });
                map.masters.len() - 1
            });
            // There are at most as many masters as slots.
            map.owners[usize::from(range.first)..=usize::from(range.last)].fill(at as u16 + 1);
        }
        let missing = map.owners.iter().filter(|owner| **owner == 0).count();
        self.map.store(Arc::new(map));
        (missing > 0).then(|| format!("{missing} slots are on no node"))
    }

    fn master(&self, address: Address) -> Master {
        let target = Target::Server(address.clone());
        let (dialer, metrics) = (Arc::clone(&self.dialer), Arc::clone(&self.metrics));
        let node = Arc::new(Node::new(Some(address.to_string()), target, dialer, metrics));
        let supervisor = tokio::spawn(supervise(Arc::clone(&node)));
        Master { address, node, _supervisor: AbortOnDropHandle::new(supervisor) }
    }
}

impl Map {
    fn owner(&self, slot: u16) -> Option<Arc<Node>> {
        let place = usize::from(*self.owners.get(usize::from(slot))?).checked_sub(1)?;
        self.masters.get(place).map(|master| Arc::clone(&master.node))
    }

    fn at(&self, address: &Address) -> Option<Arc<Node>> {
        let master = self.masters.iter().find(|master| master.address == *address)?;
        Some(Arc::clone(&master.node))
    }
}

/// Where `MOVED` and `ASK` lead.
fn redirection(error: &RedisError) -> Option<Address> {
    let (address, _) = error.redirect_node()?;
    let (host, port) = address.rsplit_once(':')?;
    Some(Address { host: host.to_owned(), port: port.parse().ok()? })
}

/// Reads `CLUSTER SLOTS`: rows of first slot, last slot, master, replicas. A node that does not know
/// its own name is called as it was asked. What is not of this form is left out.
fn ranges(rows: &Value, asked: &str) -> Vec<Range> {
    let Value::Array(rows) = rows else { return Vec::new() };
    let range = |row: &Value| {
        let Value::Array(row) = row else { return None };
        let [Value::Int(first), Value::Int(last), Value::Array(master), ..] = &**row else {
            return None;
        };
        let [host, Value::Int(port), ..] = &**master else { return None };
        let host = match host {
            Value::BulkString(host) if !host.is_empty() => str::from_utf8(host).ok()?.to_owned(),
            Value::BulkString(_) | Value::Nil => asked.to_owned(),
            _ => return None,
        };
        let (first, last) = (u16::try_from(*first).ok()?, u16::try_from(*last).ok()?);
        let master = Address { host, port: u16::try_from(*port).ok()? };
        (first <= last && last < SLOTS).then_some(Range { first, last, master })
    };
    rows.iter().filter_map(range).collect()
}

#[cfg(test)]
mod tests {
    use ::redis::Parser;

    use super::*;

    fn read(reply: &str) -> Vec<(u16, u16, String)> {
        let value = Parser::new().parse_value(reply.as_bytes()).expect("a reply");
        let ranges = ranges(&value, "seed");
        ranges.into_iter().map(|it| (it.first, it.last, it.master.to_string())).collect()
    }

    #[test]
    fn slots_are_read_with_their_masters() {
        let reply = "*3\r\n\
            *4\r\n:0\r\n:5460\r\n\
            *3\r\n$2\r\nn1\r\n:7000\r\n$1\r\na\r\n\
            *3\r\n$2\r\nr1\r\n:7003\r\n$1\r\nb\r\n\
            *3\r\n:5461\r\n:5461\r\n*2\r\n$0\r\n\r\n:7001\r\n\
            *3\r\n:5462\r\n:16383\r\n*2\r\n$-1\r\n:7002\r\n";
        let expected = [
            (0, 5460, "n1:7000".to_owned()),
            (5461, 5461, "seed:7001".to_owned()),
            (5462, 16_383, "seed:7002".to_owned()),
        ];
        assert_eq!(read(reply), expected);
    }

    #[test]
    fn rows_that_make_no_sense_are_left_out() {
        for row in [
            ":1\r\n",
            "*0\r\n",
            "*3\r\n:5\r\n:4\r\n*2\r\n$1\r\na\r\n:1\r\n",
            "*3\r\n:0\r\n:16384\r\n*2\r\n$1\r\na\r\n:1\r\n",
            "*3\r\n:-1\r\n:4\r\n*2\r\n$1\r\na\r\n:1\r\n",
            "*3\r\n:0\r\n:4\r\n*2\r\n$1\r\na\r\n:65536\r\n",
            "*3\r\n:0\r\n:4\r\n*1\r\n$1\r\na\r\n",
        ] {
            assert_eq!(read(&format!("*1\r\n{row}")), [], "{row}");
        }
        assert_eq!(read("+OK\r\n"), []);
    }

    #[test]
    fn redirections_name_their_node() {
        let of = |text: &str| {
            let value = Parser::new().parse_value(format!("-{text}\r\n").as_bytes());
            let error = value.expect("a reply").extract_error().expect_err("an error reply");
            redirection(&error).map(|address| address.to_string())
        };
        assert_eq!(of("MOVED 3999 10.0.0.1:6381").as_deref(), Some("10.0.0.1:6381"));
        assert_eq!(of("ASK 3999 fd00::1:6381").as_deref(), Some("[fd00::1]:6381"));
        assert_eq!(of("TRYAGAIN Multiple keys request during rehashing of slot"), None);
        assert_eq!(of("MOVED 3999"), None);
    }
}
