//! Leases: somebody has a task for a while, and everybody else lets them.
//!
//! A lease ends by itself, so its holder may die. It may also end while its holder, paused or cut off,
//! still believes in it, and a fail-over of Redis may forget it: so a lease saves work and does not
//! make anything correct. Where two holders at once would do harm, the store that takes their writes
//! has to check a number that only grows, the fence: a write with a lower one than the last comes from
//! a holder whose lease is over.

use std::{sync::LazyLock, time::Duration};

use super::{Error, Redis, Script, cmd, millis};

/// Lua: whether `token` holds the lease at `key`, and all that is kept there. The only place where that
/// is decided. A space and more may follow the token, for whoever uses the lease.
pub(crate) const HOLDS: &str = "\
local function holds(key, token)
  local value = redis.call('GET', key)
  return value and string.sub(value .. ' ', 1, #token + 1) == token .. ' ', value
end
";

/// How long the counter of a fence outlives its last lease. The time of the server, of which the
/// fence is never behind, has moved on by then.
const FENCE_KEPT: Duration = Duration::from_secs(24 * 60 * 60);

static RENEW: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{HOLDS}
        if holds(KEYS[1], ARGV[1]) then return redis.call('PEXPIRE', KEYS[1], ARGV[2]) end
        return 0"
    ))
});

static RELEASE: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{HOLDS}
        if holds(KEYS[1], ARGV[1]) then return redis.call('DEL', KEYS[1]) end
        return 0"
    ))
});

/// Numbers in Lua are exact up to 2^53, which microseconds reach in the year 2255.
static FENCED: LazyLock<Script> = LazyLock::new(|| {
    Script::new(&format!(
        "{HOLDS}
        if redis.call('EXISTS', KEYS[1]) == 1 and not holds(KEYS[1], ARGV[1]) then return false end
        local time = redis.call('TIME')
        local last = tonumber(redis.call('GET', KEYS[2]) or 0)
        local fence = math.max(last + 1, time[1] * 1000000 + time[2])
        fence = string.format('%.0f', fence)
        redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
        redis.call('SET', KEYS[2], fence, 'PX', ARGV[3])
        return fence"
    ))
});

/// A lease that was got. Dropped without release, it ends by itself.
#[derive(Debug)]
pub struct Lease {
    key: String,
    token: String,
}

impl Lease {
    /// Where it is kept.
    pub fn key(&self) -> &str {
        &self.key
    }

    /// What its holder shows: nobody else can guess it.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// Makes it last `ttl` from now. False when it is over.
    ///
    /// # Errors
    ///
    /// When Redis does not say; the lease may be over or not.
    pub async fn renew(&self, redis: &Redis, ttl: Duration) -> Result<bool, Error> {
        let mut script = RENEW.key(&self.key);
        redis.script(script.arg(&self.token).arg(millis(ttl))).await
    }

    /// Lets the next have it. False when it was over before.
    ///
    /// # Errors
    ///
    /// When Redis does not say; the lease then ends by itself.
    pub async fn release(self, redis: &Redis) -> Result<bool, Error> {
        redis.script(RELEASE.key(&self.key).arg(&self.token)).await
    }
}

/// Gets the lease at `key` for `ttl`; `None` while somebody else has it.
///
/// # Errors
///
/// When Redis does not say. A lease that was got all the same ends by itself.
pub async fn acquire(redis: &Redis, key: String, ttl: Duration) -> Result<Option<Lease>, Error> {
    let token = token(redis)?;
    let mut set = cmd("SET");
    set.arg(&key).arg(&token).arg("NX").arg("PX").arg(millis(ttl)).arg("GET");
    // Sent a second time, the command finds what it did the first time.
    let holder: Option<String> = redis.command(&set).await?;
    let got = holder.is_none_or(|holder| holder == token);
    Ok(got.then_some(Lease { key, token }))
}

/// [`acquire`] with a fence: a number that is higher than those of all earlier leases at `key`.
///
/// After a fail-over that lost the last of them it still is, as long as the servers' clocks differ by
/// less than the time since.
///
/// # Errors
///
/// As for [`acquire`].
pub async fn acquire_fenced(
    redis: &Redis,
    key: String,
    ttl: Duration,
) -> Result<Option<(Lease, u64)>, Error> {
    let token = token(redis)?;
    let mut script = FENCED.key(&key);
    script.key(beside(&key)).arg(&token).arg(millis(ttl)).arg(millis(FENCE_KEPT));
    let fence: Option<u64> = redis.script(&script).await?;
    Ok(fence.map(|fence| (Lease { key, token }, fence)))
}

/// The key of the counter, in the same slot of a cluster: what is in braces decides that, or else the
/// whole key.
fn beside(key: &str) -> String {
    let tagged = key.split_once('{').and_then(|(_, rest)| rest.split_once('}'));
    match tagged {
        Some((tag, _)) if !tag.is_empty() => format!("{key}:fence"),
        _ => format!("{{{key}}}:fence"),
    }
}

/// Names the instance, for people, and nobody can guess it.
fn token(redis: &Redis) -> Result<String, Error> {
    let mut secret = [0; 16];
    aws_lc_rs::rand::fill(&mut secret)
        .map_err(|_| Error::Failed("the system has no entropy".to_owned()))?;
    Ok(format!("{}-{:032x}", redis.instance(), u128::from_le_bytes(secret)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_counter_is_in_the_slot_of_its_lease() {
        assert_eq!(beside("portway:lock:x"), "{portway:lock:x}:fence");
        assert_eq!(beside("portway:{route}:lock"), "portway:{route}:lock:fence");
    }
}
