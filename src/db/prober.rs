//! Watches one node, on a connection of its own.

use std::{sync::Arc, time::Duration};

use tokio::time::{Instant, sleep, timeout};

use super::{
    backend::{Backend, Purpose},
    error::describe,
    router::Router,
};

/// How long a node may take to answer, and to take a connection.
const ANSWER: Duration = Duration::from_millis(500);
const CONNECT: Duration = Duration::from_secs(1);

/// After the first failure, at once: it may have been the connection. Then less and less often.
const AT_ONCE: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_millis(50);
const LAST_RETRY: Duration = Duration::from_secs(1);

/// While no primary is known, nodes that answer are asked this often, to find it.
const SEARCHING: Duration = Duration::from_millis(50);

/// Probes the node for as long as the router is open.
pub(super) async fn watch<B: Backend>(router: Arc<Router<B>>, index: usize) {
    let node = &router.nodes[index];
    let mut connection = None;
    let mut failures = 0_u32;
    loop {
        let asked = Instant::now();
        match ask::<B>(&node.target, &mut connection).await {
            Ok((seen, system)) => {
                failures = 0;
                {
                    let mut probes = node.probes();
                    probes.took = Some(asked.elapsed());
                    probes.error = None;
                }
                router.answered(index, seen, system, asked.into_std());
            }
            Err(error) => {
                connection = None;
                failures += 1;
                {
                    let mut probes = node.probes();
                    probes.failures += 1;
                    probes.error = Some(error);
                }
                if failures == 1 {
                    node.renew();
                }
                router.failed(index);
            }
        }
        let wait = match failures {
            0 if router.has_primary() => router.interval(),
            0 => router.interval().min(SEARCHING),
            1 => AT_ONCE,
            _ => LAST_RETRY.min(FIRST_RETRY * (1 << (failures - 2).min(5))),
        };
        tokio::select! {
            () = router.closed() => return,
            () = sleep(wait) => {}
            // A node that is down is asked no more often for being asked for.
            () = node.kick.notified(), if failures == 0 => {}
        }
    }
}

async fn ask<B: Backend>(
    target: &B::Target,
    connection: &mut Option<(B::Connection, Option<i64>)>,
) -> Result<(super::backend::Seen, Option<i64>), String> {
    let late = |_| "it does not answer in time".to_owned();
    let failed = |error: sqlx::Error| describe(&error).into_owned();
    if connection.is_none() {
        let connect = async {
            let mut fresh = B::connect(target, Purpose::Probe).await?;
            let system = B::system(&mut fresh).await?;
            Ok((fresh, system))
        };
        *connection = Some(timeout(CONNECT, connect).await.map_err(late)?.map_err(failed)?);
    }
    match connection {
        Some((open, system)) => {
            let seen = timeout(ANSWER, B::probe(open)).await.map_err(late)?.map_err(failed)?;
            Ok((seen, *system))
        }
        None => Err("it gave no connection".to_owned()),
    }
}
