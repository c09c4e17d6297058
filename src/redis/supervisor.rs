//! Finds out whether a server is there, so that no call has to.
//!
//! It has a connection of its own. While the server is up, it asks once a second; while it is away, it
//! connects anew after pauses that grow to half a second, for ever.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{BUDGET, CONNECT, backoff::Backoff, connect::ping, fault::describe, node::Node};
use crate::telemetry::random;

const INTERVAL: Duration = Duration::from_secs(1);

/// Up for this long, and the pauses begin small again. A server that comes and goes is tried less often.
const STEADY: Duration = Duration::from_secs(2);

/// Runs for ever.
pub(super) async fn supervise(node: Arc<Node>) {
    let mut backoff = Backoff::new();
    let mut again = false;
    loop {
        watch(&node, &mut backoff, &mut again).await;
        node.connected.store(false, Relaxed);
        sleep(backoff.next(random::next())).await;
    }
}

/// Connects and asks, until something is wrong.
async fn watch(node: &Node, backoff: &mut Backoff, again: &mut bool) {
    let epoch = node.breaker.epoch();
    let mut opened = match timeout(CONNECT, node.connect(None)).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return away(node, epoch, &describe(&error)),
        Err(_) => return away(node, epoch, "no connection in time"),
    };
    node.metrics.connected(std::mem::replace(again, true));
    node.connected.store(true, Relaxed);
    let since = Instant::now();
    loop {
        let began = Instant::now();
        match timeout(BUDGET, ping(&mut opened.connection)).await {
            Ok(Ok(())) => node.up(began.elapsed()),
            Ok(Err(error)) => return away(node, epoch, &describe(&error)),
            Err(_) if node.breaker.is_closed() => return node.late(epoch),
            Err(_) => return node.away("no answer in time"),
        }
        if since.elapsed() >= STEADY {
            *backoff = Backoff::new();
        }
        tokio::select! {
            () = sleep(INTERVAL) => {}
            () = node.ended.notified() => {}
        }
        if node.breaker.epoch() != epoch {
            return;
        }
    }
}

fn away(node: &Node, epoch: u64, error: &str) {
    node.broken(epoch, error);
    node.away(error);
}
