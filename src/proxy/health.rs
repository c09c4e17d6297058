//! Asks each target regularly whether it is well.

use std::{
    future::poll_fn,
    sync::{Arc, Weak},
    time::Duration,
};

use actix_http::{Method, header::HeaderMap};
use rustls::ClientConfig;
use tokio::time::{MissedTickBehavior, interval, timeout};

use super::{
    connection::Connection,
    error::UpstreamError,
    upstream::{Target, Upstreams},
    wire::{self, Asked, RequestParts, Send},
};
use crate::routes::HealthCheck;

impl Upstreams {
    /// Starts the active checks on the current runtime. They end when this is dropped.
    pub fn spawn_health_checks(self: &Arc<Self>, tls: &Arc<ClientConfig>) {
        for upstream in self.iter() {
            let Some(check) = &upstream.settings.health else { continue };
            let connect = upstream.settings.timeout.connect;
            for target in &upstream.targets {
                let watch = watch(
                    Arc::downgrade(self),
                    target.clone(),
                    check.clone(),
                    connect,
                    tls.clone(),
                    upstream.settings.name.clone(),
                );
                tokio::spawn(watch);
            }
        }
    }
}

async fn watch(
    alive: Weak<Upstreams>,
    target: Arc<Target>,
    check: HealthCheck,
    connect: Duration,
    tls: Arc<ClientConfig>,
    upstream: Arc<str>,
) {
    let mut ticks = interval(check.interval.max(Duration::from_millis(10)));
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut streak = Streak::new(target.is_healthy());
    loop {
        ticks.tick().await;
        if alive.strong_count() == 0 {
            return;
        }
        // A check that outlasts the interval has failed: that is how often an answer is wanted.
        let limit = check.interval.max(Duration::from_secs(1));
        let probed = timeout(limit, probe(&target, &check.path, connect.min(limit), &tls)).await;
        if matches!(probed, Ok(Err(UpstreamError::Exhausted(_)))) {
            // That says something about the gateway, nothing about the target.
            continue;
        }
        let well = matches!(probed, Ok(Ok(true)));
        if let Some(healthy) = streak.note(well, &check) {
            target.set_healthy(healthy);
            let url = &target.url;
            if healthy {
                tracing::info!(upstream = %upstream, target = %url, "`{url}` is healthy again");
            } else {
                tracing::warn!(upstream = %upstream, target = %url, "`{url}` is unhealthy");
            }
        }
    }
}

/// How many checks in a row contradict the current verdict.
#[derive(Debug)]
struct Streak {
    healthy: bool,
    against: u32,
}

impl Streak {
    const fn new(healthy: bool) -> Self {
        Self { healthy, against: 0 }
    }

    /// Takes note of a check; the new verdict, if that changes it.
    fn note(&mut self, well: bool, check: &HealthCheck) -> Option<bool> {
        if well == self.healthy {
            self.against = 0;
            return None;
        }
        self.against += 1;
        let needed = if well { check.healthy_after } else { check.unhealthy_after };
        (self.against >= needed).then(|| {
            *self = Self::new(well);
            well
        })
    }
}

/// Whether `target` answers `GET path` with 2xx or 3xx.
async fn probe(
    target: &Target,
    path: &str,
    connect: Duration,
    tls: &Arc<ClientConfig>,
) -> Result<bool, UpstreamError> {
    let mut connection = Connection::open(target, tls, connect).await?;
    let parts = RequestParts {
        method: &Method::GET,
        base: &target.base,
        path_and_query: path.as_bytes(),
        host: &target.authority,
        headers: &HeaderMap::new(),
        send: Send::Nothing,
        upgrade: None,
    };
    wire::write_head(&mut connection.write, &parts);
    poll_fn(|cx| connection.poll_flush(cx))
        .await
        .map_err(|error| UpstreamError::Closed(Some(error)))?;
    let head = poll_fn(|cx| connection.poll_head(cx, Asked::default())).await?;
    Ok(head.status.is_success() || head.status.is_redirection())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_changes_only_after_enough_checks_in_a_row() {
        let check = HealthCheck {
            path: "/".into(),
            interval: Duration::from_secs(1),
            unhealthy_after: 3,
            healthy_after: 2,
        };
        let mut streak = Streak::new(true);
        let verdicts: Vec<_> =
            [false, false, true, false, false, false, true, false, true, true, true]
                .into_iter()
                .map(|well| streak.note(well, &check))
                .collect();
        assert_eq!(verdicts[..5], [None; 5]);
        assert_eq!(verdicts[5], Some(false));
        assert_eq!(verdicts[6..9], [None; 3]);
        assert_eq!(verdicts[9], Some(true));
        assert_eq!(verdicts[10], None);
    }
}
