//! What is found in Redis is not trusted to be what this version wrote: another version may run beside
//! it, and others may write there too.

use std::time::{Duration, Instant};

use serde_json::json;

use super::faults;
use crate::lab::{Answer, Fleet, Origin, Redis, Request, SOON, Seen, eventually};

/// Runs over every key, as only a test may: `change` is Lua that has `key` and the `kind` of its value.
async fn change_all(redis: &Redis, change: &str) -> usize {
    let script = format!(
        "local n = 0
        for _, key in ipairs(redis.call('KEYS', '*')) do
            local kind = redis.call('TYPE', key).ok
            {change}
            n = n + 1
        end
        return n"
    );
    redis.command(&["EVAL", &script, "0"]).await.parse().expect("it is a count")
}

async fn origin() -> Origin {
    Origin::start(|seen: &Seen| match seen.path() {
        "/language" => {
            let language = seen.header("accept-language").unwrap_or_default();
            Answer::cacheable(format!("in {language}")).header("Vary", "Accept-Language")
        }
        path => Answer::cacheable(path.repeat(500)),
    })
    .await
}

async fn ask_everything(fleet: &Fleet, nth: usize) {
    for n in 0..4 {
        let target = format!("/k/{n}");
        let answer = fleet.get(nth, &target).await;
        assert_eq!((answer.status, answer.text()), (200, target.repeat(500)));
    }
    for language in ["de", "en"] {
        let request = Request::get("/language").header("Accept-Language", language);
        let answer = fleet.send(nth, &request).await;
        assert_eq!((answer.status, answer.text()), (200, format!("in {language}")));
    }
}

/// Every way in which an entry is not what it should be: of a version to come, cut short, other bytes,
/// none at all, longer than it says, and another type of value altogether. The last two are of all keys,
/// also those that the instances agree by.
const CHANGES: [&str; 7] = [
    "if kind == 'string' then redis.call('SETRANGE', key, 0, '\\255\\254') end",
    "if kind == 'string' then
        local value = redis.call('GET', key)
        redis.call('SET', key, string.sub(value, 1, math.floor(#value / 2)), 'KEEPTTL') end",
    "if kind == 'string' then redis.call('SET', key, 'garbage', 'KEEPTTL') end",
    "if kind == 'string' then redis.call('SET', key, '', 'KEEPTTL') end",
    "if kind == 'string' then redis.call('APPEND', key, string.rep('x', 1000)) end",
    "redis.call('DEL', key) redis.call('SET', key, string.rep('\\0', 300))",
    "redis.call('DEL', key) redis.call('RPUSH', key, 'a', 'b')",
];

async fn spoil_and_ask(change: &str) {
    let (origin, redis) = (origin().await, Redis::start().await);
    let mut fleet = super::of(2, &origin, &redis).await;
    ask_everything(&fleet, 0).await;
    let stored = async || redis.command(&["DBSIZE"]).await.parse::<usize>().unwrap_or(0) >= 6;
    eventually("it is in Redis", SOON, &stored).await;
    // Those that have it in memory too are not asked about it.
    fleet.kill(0);
    fleet.kill(1);
    change_all(&redis, change).await;
    fleet.restart(0).await;
    fleet.restart(1).await;
    let began = Instant::now();
    // From when they may not take part yet until they do, if they can.
    while began.elapsed() < Duration::from_millis(1500) {
        ask_everything(&fleet, 1).await;
        ask_everything(&fleet, 0).await;
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    for gateway in fleet.running() {
        assert!(!gateway.log.text().contains("panicked"), "{change}");
    }
    // Whatever was spoilt, it is over once it is gone.
    redis.command(&["FLUSHALL"]).await;
    faults::until_shared(&fleet, &origin, "mended").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_read_is_as_if_it_were_not_there() {
    futures_util::future::join_all(CHANGES.map(spoil_and_ask)).await;
}

#[tokio::test]
async fn keys_in_redis_are_of_the_namespace_and_hold_no_secret() {
    let origin = Origin::start(|_| Answer::cacheable("x").header("Vary", "X-Token")).await;
    let redis = Redis::start().await;
    let fleet = super::of(2, &origin, &redis).await;
    let secret = "hunter2-of-nobody";
    for nth in 0..2 {
        let request = Request::get("/k/1?page=2").header("X-Token", secret);
        assert_eq!(fleet.send(nth, &request).await.text(), "x");
    }
    fleet.purge(0, json!({ "tag": "k:1" })).await;
    let keys = redis.try_command(&["KEYS", "*"]).await.unwrap().strings();
    assert!(!keys.is_empty());
    for key in keys {
        let key = String::from_utf8_lossy(&key).into_owned();
        assert!(key.starts_with("lab:") || key.starts_with("{lab}:"), "{key:?}");
        assert!(!key.contains(secret), "{key:?}");
    }
}

#[tokio::test]
async fn everything_in_redis_ends_by_itself() {
    let (origin, redis) = (origin().await, Redis::start().await);
    let fleet = super::of(2, &origin, &redis).await;
    ask_everything(&fleet, 0).await;
    fleet.purge(1, json!({ "tag": "k:1" })).await;
    let endless = redis.command(&[
        "EVAL",
        "local found = {}
        for _, key in ipairs(redis.call('KEYS', '*')) do
            if redis.call('PTTL', key) < 0 then found[#found + 1] = key end
        end
        return found",
        "0",
    ]);
    let endless = endless.await;
    // What counts purges must outlive them; there is a handful of that, however many entries.
    assert!(endless.lines().count() <= 4, "{endless}");
    for n in 0..200 {
        fleet.get(n % 2, &format!("/many/{n}")).await;
    }
    let after = redis.command(&[
        "EVAL",
        "local n = 0
        for _, key in ipairs(redis.call('KEYS', '*')) do
            if redis.call('PTTL', key) < 0 then n = n + 1 end
        end
        return n",
        "0",
    ]);
    assert!(after.await.parse::<usize>().unwrap() <= 4);
}
