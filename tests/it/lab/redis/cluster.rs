//! A Cluster of three primaries, with or without a replica each.

use std::time::Duration;

use super::{Options, Redis, Reply};
use crate::lab::{free_port, wait_for};

const SLOTS: u16 = 16384;
const PRIMARIES: u16 = 3;

/// Nodes learn of each other by gossip, a few times a second.
const JOINED: Duration = Duration::from_secs(30);

pub(crate) struct Cluster {
    /// Three primaries, then their replicas in the same order, if any.
    pub(crate) nodes: Vec<Redis>,
    ids: Vec<String>,
}

impl Cluster {
    /// Slots are spread evenly in order: the first third is on the first node.
    pub(crate) async fn start(options: Options, replicas: bool) -> Self {
        let count = if replicas { 2 * PRIMARIES } else { PRIMARIES };
        let mut nodes = Vec::new();
        let mut ids = Vec::new();
        for nth in 0..count {
            let options = options.clone().set("cluster-enabled", "yes");
            let options = options.set("cluster-node-timeout", "1000");
            // The other port it listens on would be 10000 higher, where anything may be.
            let node = options.set("cluster-port", free_port().to_string()).start().await;
            // Nodes that claim different epochs have no conflict to settle.
            let epoch = (nth + 1).to_string();
            node.command(&["CLUSTER", "SET-CONFIG-EPOCH", &epoch]).await;
            ids.push(node.command(&["CLUSTER", "MYID"]).await);
            nodes.push(node);
        }
        for nth in 0..PRIMARIES {
            let first = SLOTS * nth / PRIMARIES;
            let last = SLOTS * (nth + 1) / PRIMARIES - 1;
            let range = [first.to_string(), last.to_string()];
            let add = ["CLUSTER", "ADDSLOTSRANGE", &range[0], &range[1]];
            nodes[usize::from(nth)].command(&add).await;
        }
        let cluster = Self { nodes, ids };
        for node in &cluster.nodes[1..] {
            let port = node.addr.port().to_string();
            let bus = node.command(&["CONFIG", "GET", "cluster-port"]).await;
            let bus = bus.lines().last().unwrap_or_default().to_owned();
            cluster.nodes[0].command(&["CLUSTER", "MEET", "127.0.0.1", &port, &bus]).await;
        }
        let known = format!("cluster_known_nodes:{count}");
        for node in &cluster.nodes {
            cluster.until(node, &["cluster_state:ok", "cluster_slots_ok:16384", &known]).await;
        }
        for nth in usize::from(PRIMARIES)..cluster.nodes.len() {
            let primary = &cluster.ids[nth - usize::from(PRIMARIES)];
            cluster.nodes[nth].command(&["CLUSTER", "REPLICATE", primary]).await;
        }
        for replica in &cluster.nodes[usize::from(PRIMARIES)..] {
            replica.until_info("replication", "master_link_status:up", JOINED).await;
        }
        cluster
    }

    async fn until(&self, node: &Redis, lines: &[&str]) {
        wait_for("the Cluster is whole", JOINED, || async {
            let info = node.try_command(&["CLUSTER", "INFO"]).await.ok()?.text();
            let has = |line: &&str| info.lines().any(|l| l.trim() == *line);
            lines.iter().all(has).then_some(())
        })
        .await;
    }

    /// `REDIS_CLUSTER_NODES` for it.
    pub(crate) fn addresses(&self) -> String {
        let nodes: Vec<String> = self.nodes.iter().map(|n| n.addr.to_string()).collect();
        nodes.join(",")
    }

    /// Which slot a key is in.
    pub(crate) async fn slot_of(&self, key: &[u8]) -> u16 {
        let words = vec![b"CLUSTER".to_vec(), b"KEYSLOT".to_vec(), key.to_vec()];
        let answer = self.nodes[0].try_bytes(words).await.expect("every node knows the function");
        answer.text().parse().expect("slots are numbers")
    }

    /// All keys of all primaries, for tests that look at what is stored.
    pub(crate) async fn keys(&self) -> Vec<Vec<u8>> {
        let mut keys = Vec::new();
        for node in self.nodes.iter().take(usize::from(PRIMARIES)) {
            keys.extend(node.try_command(&["KEYS", "*"]).await.expect("it answers").strings());
        }
        keys
    }

    /// The primary that has a slot now.
    pub(crate) async fn owner(&self, slot: u16) -> usize {
        let Ok(Reply::Array(ranges)) = self.nodes[0].try_command(&["CLUSTER", "SLOTS"]).await
        else {
            panic!("CLUSTER SLOTS is a list");
        };
        for range in ranges {
            let Reply::Array(parts) = range else { continue };
            let [Reply::Integer(from), Reply::Integer(to), Reply::Array(owner), ..] = &parts[..]
            else {
                panic!("not a range of slots: {parts:?}");
            };
            if (*from..=*to).contains(&i64::from(slot)) {
                let port = owner[1].text();
                let at = self.nodes.iter().position(|n| n.addr.port().to_string() == port);
                return at.expect("the owner is one of the nodes");
            }
        }
        panic!("nobody has slot {slot}");
    }

    /// Moves a slot with its keys to the node `to`, as an operator does it while clients go on.
    pub(crate) async fn move_slot(&self, slot: u16, to: usize) {
        let from = self.owner(slot).await;
        if from == to {
            return;
        }
        let (source, target) = (&self.nodes[from], &self.nodes[to]);
        let name = slot.to_string();
        let set = |what: &'static str, id: usize| {
            let words = ["CLUSTER", "SETSLOT", &name, what, &self.ids[id]];
            words.map(str::to_owned)
        };
        target.command(&set("IMPORTING", from).each_ref().map(String::as_str)).await;
        source.command(&set("MIGRATING", to).each_ref().map(String::as_str)).await;
        let port = target.addr.port().to_string();
        loop {
            let listed = source.try_command(&["CLUSTER", "GETKEYSINSLOT", &name, "100"]).await;
            let keys = listed.expect("the source answers").strings();
            if keys.is_empty() {
                break;
            }
            let head = ["MIGRATE", "127.0.0.1", &port, "", "0", "5000", "KEYS"];
            let mut words: Vec<Vec<u8>> = head.iter().map(|w| w.as_bytes().to_vec()).collect();
            words.extend(keys);
            source.try_bytes(words).await.expect("the keys can be moved");
        }
        // The new owner first, so that no moment has none.
        for node in
            [to, from].into_iter().chain((0..self.nodes.len()).filter(|n| ![to, from].contains(n)))
        {
            // A replica is told by its primary.
            if node < usize::from(PRIMARIES) {
                self.nodes[node].command(&set("NODE", to).each_ref().map(String::as_str)).await;
            }
        }
    }
}
