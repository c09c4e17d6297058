//! The shared store in Redis.
//!
//! | key | holds |
//! |---|---|
//! | `{namespace}:purges` | the log: a stream, a record's id is its generation |
//! | `{namespace}:instances` | a sorted set: when each instance last said that it lives |
//! | `namespace:r1:{digest}` | a stored response, or what the responses vary on |
//! | `namespace:r1:{digest}:variant` | a stored response of several |
//! | `…:lease` | who fetches it, and who waits for that |
//!
//! Braces are a Cluster's hash tags: what one call touches is in one slot. `r1` is the first version of
//! the form of values: another version has keys of its own, so that old and new run side by side.
//!
//! Messages go over two channels: `namespace:events` to all, `namespace:to:instance` to one.

use std::{sync::Arc, time::Duration};

use bytes::Bytes;

use super::{
    Beat, Digest, Error, Event, History, Lead, Name, Outcome, Put, Recorded, Remote, Reply,
    scripts::{BATCH, Scripts},
};
use crate::{
    cache::{clock::Timestamp, coherence::Coherence, data},
    problem::Code,
    redis::{Cmd, Listener, Redis, millis},
};

/// How long the leader of a fetch is not replaced; it renews the lease while it waits for the origin.
pub const LEASE: Duration = Duration::from_secs(2);

/// A Redis that the instances share.
pub struct RedisRemote {
    redis: Arc<Redis>,
    scripts: Scripts,
    pub(in crate::cache) data: data::Scripts,
    log: String,
    instances: String,
    events: String,
    /// Followed by an instance's name.
    inboxes: String,
}

impl RedisRemote {
    pub fn new(redis: Arc<Redis>) -> Arc<Self> {
        let namespace = redis.namespace();
        Arc::new(Self {
            scripts: Scripts::new(),
            data: data::Scripts::new(),
            log: format!("{{{namespace}}}:purges"),
            instances: format!("{{{namespace}}}:instances"),
            events: format!("{namespace}:events"),
            inboxes: format!("{namespace}:to:"),
            redis,
        })
    }

    /// Sends what the store tells to `coherence`, from now on.
    pub fn listen(&self, coherence: Arc<Coherence>) {
        let inbox = format!("{}{}", self.inboxes, self.redis.instance());
        self.redis.subscribe(vec![self.events.clone(), inbox], Arc::new(Ears(coherence)));
    }

    pub(in crate::cache) fn link(&self) -> &Redis {
        &self.redis
    }

    fn key(&self, name: &Name) -> String {
        let primary = self.primary(&name.primary);
        match &name.variant {
            None => primary,
            Some(variant) => format!("{primary}:{}", text(variant)),
        }
    }

    fn primary(&self, digest: &Digest) -> String {
        format!("{}:r1:{{{}}}", self.redis.namespace(), text(digest))
    }
}

/// A digest in the alphabet of base64url, without padding.
fn text(digest: &Digest) -> String {
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_";
    let mut text = String::with_capacity(32);
    for [a, b, c] in digest.as_chunks::<3>().0 {
        let bits = u32::from(*a) << 16 | u32::from(*b) << 8 | u32::from(*c);
        for shift in [18, 12, 6, 0] {
            text.push(char::from(ALPHABET[(bits >> shift) as usize & 63]));
        }
    }
    text
}

impl Remote for RedisRemote {
    fn instance(&self) -> &str {
        self.redis.instance()
    }

    fn is_up(&self) -> bool {
        self.redis.is_up()
    }

    fn get<'a>(&'a self, names: &'a [Name]) -> Reply<'a, Vec<Option<Bytes>>> {
        Box::pin(async move {
            if let [name] = names {
                let mut get = Cmd::new();
                get.arg("GET").arg(self.key(name));
                return Ok(vec![self.redis.command(&get).await?]);
            }
            let mut get = Cmd::new();
            get.arg("MGET");
            for name in names {
                get.arg(self.key(name));
            }
            self.redis.command(&get).await
        })
    }

    fn put<'a>(&'a self, put: &'a Put<'a>) -> Reply<'a, ()> {
        Box::pin(async move {
            let (lease, token) = put.lease.unwrap_or((&put.name, ""));
            self.redis
                .script(
                    self.scripts
                        .put
                        .key(self.lease(lease))
                        .key(self.key(&put.name))
                        .key(self.primary(&put.name.primary))
                        .arg(token)
                        .arg(outcome_text(Outcome::Stored))
                        .arg(&put.filled_at.to_be_bytes()[..])
                        .arg(put.value)
                        .arg(millis(put.keep))
                        .arg(put.variants.unwrap_or_default())
                        .arg(&self.inboxes),
                )
                .await
        })
    }

    fn lead<'a>(&'a self, name: &'a Name, token: &'a str, seen: &'a [u8]) -> Reply<'a, Lead> {
        Box::pin(async move {
            let answer: i64 = self
                .redis
                .script(
                    self.scripts
                        .lead
                        .key(self.lease(name))
                        .key(self.key(name))
                        .arg(token)
                        .arg(millis(LEASE))
                        .arg(self.redis.instance())
                        .arg(seen),
                )
                .await?;
            Ok(match u64::try_from(answer) {
                Err(_) => Lead::Changed,
                Ok(0) => Lead::Acquired,
                Ok(remaining) => Lead::Busy { remaining: Duration::from_millis(remaining) },
            })
        })
    }

    fn renew<'a>(&'a self, name: &'a Name, token: &'a str) -> Reply<'a, ()> {
        Box::pin(async move {
            let renew = &self.scripts.renew;
            let lease = self.lease(name);
            self.redis.script(renew.key(lease).arg(token).arg(millis(LEASE))).await
        })
    }

    fn release<'a>(&'a self, name: &'a Name, token: &'a str, outcome: Outcome) -> Reply<'a, ()> {
        Box::pin(async move {
            let release = &self.scripts.release;
            let lease = self.lease(name);
            self.redis
                .script(release.key(lease).arg(token).arg(outcome_text(outcome)).arg(&self.inboxes))
                .await
        })
    }

    fn lease(&self, name: &Name) -> String {
        format!("{}:lease", self.key(name))
    }

    fn record<'a>(&'a self, known: u64, record: &'a [u8]) -> Reply<'a, Recorded> {
        Box::pin(async move {
            let script = &self.scripts.record;
            let (generation, previous, members): (u64, u64, Vec<String>) = self
                .redis
                .script(
                    script
                        .key(&self.log)
                        .key(&self.instances)
                        .arg(known)
                        .arg(record)
                        .arg(&self.events),
                )
                .await?;
            Ok(Recorded { generation, previous, members: shared(members) })
        })
    }

    fn beat(&self, number: u64, applied: u64) -> Reply<'_, Beat> {
        Box::pin(async move {
            let script = &self.scripts.beat;
            let (time, generation, members): (u64, u64, Vec<String>) = self
                .redis
                .script(
                    script
                        .key(&self.log)
                        .key(&self.instances)
                        .arg(number)
                        .arg(applied)
                        .arg(self.redis.instance())
                        .arg(&self.events),
                )
                .await?;
            Ok(Beat { time: Timestamp(time), generation, members: shared(members) })
        })
    }

    fn leave(&self) -> Reply<'_, ()> {
        Box::pin(async move {
            let mut leave = Cmd::new();
            leave.arg("ZREM").arg(&self.instances).arg(self.redis.instance());
            self.redis.command(&leave).await
        })
    }

    fn history(&self, applied: u64) -> Reply<'_, History> {
        Box::pin(async move {
            let script = &self.scripts.history;
            let flat: Vec<Vec<u8>> = self
                .redis
                .script(script.key(&self.log).key(&self.instances).arg(applied).arg(&self.events))
                .await?;
            let broken = || Error::Failed("the log has a record that is none".to_owned());
            let number = |bytes: &[u8]| {
                std::str::from_utf8(bytes).ok().and_then(|it| it.parse().ok()).ok_or_else(broken)
            };
            let (first, rest) = flat.split_first().ok_or_else(broken)?;
            let mut records = Vec::with_capacity(rest.len() / 2);
            for [generation, record] in rest.as_chunks::<2>().0 {
                records.push((number(generation)?, record.clone()));
            }
            Ok(History { first: number(first)?, more: records.len() == BATCH, records })
        })
    }

    fn confirm<'a>(&'a self, instance: &'a str, applied: u64) -> Reply<'a, ()> {
        Box::pin(async move {
            let mut publish = Cmd::new();
            publish
                .arg("PUBLISH")
                .arg(format!("{}{instance}", self.inboxes))
                .arg(format!("A {applied} {}", self.redis.instance()));
            self.redis.command(&publish).await
        })
    }
}

fn shared(names: Vec<String>) -> Vec<Arc<str>> {
    names.into_iter().map(Arc::from).collect()
}

/// Failures of an origin that are told to other instances by their names.
const FAILURES: [Code; 7] = [
    Code::UpstreamUnreachable,
    Code::UpstreamInvalid,
    Code::UpstreamTimeout,
    Code::NoHealthyTarget,
    Code::BreakerOpen,
    Code::Overloaded,
    Code::Internal,
];

fn outcome_text(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Stored => "stored",
        Outcome::Unshared => "unshared",
        Outcome::Vanished => "vanished",
        Outcome::Failed(code) => code.as_str(),
    }
}

/// What another build calls something else ended somehow: everybody looks again.
fn outcome(text: &str) -> Outcome {
    match text {
        "stored" => Outcome::Stored,
        "unshared" => Outcome::Unshared,
        _ => FAILURES
            .into_iter()
            .find(|code| code.as_str() == text)
            .map_or(Outcome::Vanished, Outcome::Failed),
    }
}

/// Turns messages into events.
struct Ears(Arc<Coherence>);

impl Listener for Ears {
    fn message(&self, _: &str, payload: &[u8]) {
        if let Some(event) = parse(payload) {
            self.0.event(event);
        }
    }

    fn subscribed(&self) {
        self.0.event(Event::Subscribed);
    }

    fn lost(&self) {
        self.0.event(Event::Lost);
    }
}

/// What a message says; nothing for messages that only other builds know.
fn parse(payload: &[u8]) -> Option<Event<'_>> {
    let (kind, rest) = payload.split_at_checked(2)?;
    let mut words = rest.splitn(3, |&byte| byte == b' ');
    match kind {
        b"P " => Some(Event::Purged {
            generation: text_of(words.next())?.parse().ok()?,
            previous: text_of(words.next())?.parse().ok()?,
            record: words.next()?,
        }),
        b"B " => Some(Event::Beat {
            generation: text_of(words.next())?.parse().ok()?,
            instance: text_of(words.next())?,
            number: text_of(words.next())?.parse().ok()?,
        }),
        b"A " => Some(Event::Confirmed {
            generation: text_of(words.next())?.parse().ok()?,
            instance: text_of(words.next())?,
        }),
        b"L " => Some(Event::Landed {
            lease: text_of(words.next())?,
            outcome: outcome(text_of(words.next())?),
        }),
        _ => None,
    }
}

fn text_of(word: Option<&[u8]>) -> Option<&str> {
    std::str::from_utf8(word?).ok()
}
