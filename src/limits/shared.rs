//! The store in Redis, which instances share: one script, which reckons on the server's clock.
//!
//! An instance's own clock has no part in it, so instances whose clocks differ agree on every window.
//! All keys of a call are in one slot of a Cluster, as one script needs them to be: see
//! [`RouteLimits::common`](super::RouteLimits). A key expires with the last request that counts.

use std::sync::LazyLock;

use super::{
    Decision,
    key::Key,
    window::{Quota, Standing},
};
use crate::redis::{Error, Redis, Script};

const BODY: &str = include_str!("script.lua");

/// Sets `now` for the body.
const SERVERS_CLOCK: &str =
    "local time = redis.call('TIME')\nlocal now = time[1] * 1000000 + time[2]\n";

static SCRIPT: LazyLock<Script> = LazyLock::new(|| Script::new(&format!("{SERVERS_CLOCK}{BODY}")));

/// Decides about a request; counts it if all limits let it through, and else in none.
///
/// The link may send a call twice if a connection breaks. Then a request may count twice, which is the
/// safe side.
///
/// # Errors
///
/// When Redis did not decide. It may have counted the request all the same.
pub(super) async fn decide(
    redis: &Redis,
    common: Key,
    asked: &[(Key, Quota)],
) -> Result<Decision, Error> {
    let mut call = SCRIPT.prepare_invoke();
    for (key, quota) in asked {
        call.key(name(redis.namespace(), common, *key)).arg(quota.requests).arg(quota.slot);
    }
    let reply: Vec<u64> = redis.script(&call).await?;
    match reply.as_chunks::<3>() {
        (standings, []) if standings.len() == asked.len() => {
            Ok(Decision(standings.iter().map(|it| standing(*it)).collect()))
        }
        _ => Err(Error::Failed("a rate limit that cannot be read".to_owned())),
    }
}

fn name(namespace: &str, common: Key, key: Key) -> String {
    format!("{namespace}:l:{{{common}}}:{key}")
}

fn standing([allowed, remaining, reset_after]: [u64; 3]) -> Standing {
    // What remains is at most the limit, which has 32 bits.
    Standing { allowed: allowed == 1, remaining: remaining as u32, reset_after }
}

#[cfg(test)]
mod tests;
