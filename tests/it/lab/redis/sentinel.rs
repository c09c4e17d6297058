//! A primary and a replica, watched by three Sentinels.

use std::{net::SocketAddr, time::Duration};

use super::{Options, Redis};
use crate::lab::wait_for;

/// The name the Sentinels know the primary by.
const NAME: &str = "main";

/// Sentinels find each other by messages that the primary carries every two seconds.
const ACQUAINTED: Duration = Duration::from_secs(20);

pub(crate) struct Sentinel {
    /// The servers; which of them is the primary is what the Sentinels say.
    pub(crate) nodes: Vec<Redis>,
    sentinels: Vec<Redis>,
}

impl Sentinel {
    /// A node counts as down after a second of silence.
    pub(crate) async fn start(options: Options) -> Self {
        let primary = options.clone().start().await;
        let replica = options.clone().replica_of(primary.addr).start().await;
        replica.until_info("replication", "master_link_status:up", ACQUAINTED).await;
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            let mut config = format!(
                "sentinel monitor {NAME} 127.0.0.1 {} 2\n\
                 sentinel down-after-milliseconds {NAME} 1000\n\
                 sentinel failover-timeout {NAME} 3000\n\
                 sentinel parallel-syncs {NAME} 1\n",
                primary.addr.port()
            );
            if let Some(password) = &options.password {
                config += &format!("sentinel auth-pass {NAME} {password}\n");
            }
            sentinels.push(Redis::options().sentinel(config).start().await);
        }
        for sentinel in &sentinels {
            wait_for("the Sentinels know each other and the replica", ACQUAINTED, || async {
                let others = ["SENTINEL", "SENTINELS", NAME];
                let others = sentinel.try_command(&others).await.ok()?;
                let replicas = sentinel.try_command(&["SENTINEL", "REPLICAS", NAME]).await.ok()?;
                let count = |reply: super::Reply| match reply {
                    super::Reply::Array(items) => items.len(),
                    _ => 0,
                };
                (count(others) == 2 && count(replicas) == 1).then_some(())
            })
            .await;
        }
        Self { nodes: vec![primary, replica], sentinels }
    }

    /// `REDIS_URL` for it.
    pub(crate) fn url(&self) -> String {
        let sentinels: Vec<String> = self.sentinels.iter().map(|s| s.addr.to_string()).collect();
        let user = self.nodes[0].user_info();
        format!("redis+sentinel://{user}{}/{NAME}/0", sentinels.join(","))
    }

    /// Where the first Sentinel that answers says the primary is.
    pub(crate) async fn primary_addr(&self) -> SocketAddr {
        for sentinel in &self.sentinels {
            let ask = sentinel.try_command(&["SENTINEL", "GET-MASTER-ADDR-BY-NAME", NAME]);
            if let Ok(answer) = ask.await {
                let parts = answer.text().replace('\n', ":");
                return parts.parse().unwrap_or_else(|e| panic!("{parts:?}: {e}"));
            }
        }
        panic!("no Sentinel answers");
    }

    pub(crate) async fn primary(&mut self) -> &mut Redis {
        let addr = self.primary_addr().await;
        let found = self.nodes.iter_mut().find(|n| n.addr == addr);
        found.expect("the primary is one of the nodes")
    }

    /// Kills the primary and waits until another one has taken over.
    pub(crate) async fn fail_over(&mut self) {
        let old = self.primary().await;
        let gone = old.addr;
        old.kill();
        wait_for("another primary is elected", Duration::from_secs(30), || async {
            (self.primary_addr().await != gone).then_some(())
        })
        .await;
        let new = self.primary().await;
        new.until_info("replication", "role:master", ACQUAINTED).await;
    }

    /// A Sentinel's own server.
    pub(crate) fn sentinel(&mut self, nth: usize) -> &mut Redis {
        &mut self.sentinels[nth]
    }
}
