//! Finds out whether Redis is there, so that no call has to.
//!
//! It has a connection of its own. While Redis is up, it asks once a second; while it is away, it
//! connects anew after pauses that grow to half a second, for ever.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{BUDGET, CONNECT, backoff::Backoff, connect::ping, fault::describe, link::Link};
use crate::telemetry::random;

const INTERVAL: Duration = Duration::from_secs(1);

/// Up for this long, and the pauses begin small again. Redis that comes and goes is tried less often.
const STEADY: Duration = Duration::from_secs(2);

/// Runs for ever.
pub(super) async fn supervise(link: Arc<Link>) {
    let mut backoff = Backoff::new();
    let mut again = false;
    loop {
        watch(&link, &mut backoff, &mut again).await;
        link.connected.store(false, Relaxed);
        sleep(backoff.next(random::next())).await;
    }
}

/// Connects and asks, until something is wrong.
async fn watch(link: &Link, backoff: &mut Backoff, again: &mut bool) {
    let epoch = link.breaker.epoch();
    let mut opened = match timeout(CONNECT, link.connector.connect()).await {
        Ok(Ok(opened)) => opened,
        Ok(Err(error)) => return away(link, epoch, &describe(&error)),
        Err(_) => return away(link, epoch, "no connection in time"),
    };
    link.metrics.connected(std::mem::replace(again, true));
    link.connected.store(true, Relaxed);
    let since = Instant::now();
    loop {
        let began = Instant::now();
        match timeout(BUDGET, ping(&mut opened.connection)).await {
            Ok(Ok(())) => link.up(began.elapsed()),
            Ok(Err(error)) => return away(link, epoch, &describe(&error)),
            Err(_) if link.breaker.is_closed() => return link.late(epoch),
            Err(_) => return link.away("no answer in time"),
        }
        if since.elapsed() >= STEADY {
            *backoff = Backoff::new();
        }
        tokio::select! {
            () = sleep(INTERVAL) => {}
            () = link.ended.notified() => {}
        }
        if link.breaker.epoch() != epoch {
            return;
        }
    }
}

fn away(link: &Link, epoch: u64, error: &str) {
    link.broken(epoch, error);
    link.away(error);
}
