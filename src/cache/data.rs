//! The data cache: what the gateway itself looks up, and users of the library with it.
//!
//! | module | |
//! |---|---|
//! | [`key`] | whose, what and which; lifetimes |
//! | `memory` | the values of this instance |
//! | [`store`] | those that all instances share, and their form there; `redis` carries it out |
//! | [`list`] | what is there, for the operator |
//! | `flight` | one load for many callers |
//! | `counters` | counters where there is no shared store |
//!
//! It is as coherent as the response cache and by the same means. A change is a purge of the key, which
//! every instance applies; a value carries the generation before it was loaded and is dead once its
//! key was purged later. So old data that was loaded before a change and arrives after it is dead on
//! arrival, wherever it lies.
//!
//! It is a cache, and no place for what is nowhere else: values are evicted, and a purge of everything
//! takes them along. Where a value is both loaded ([`DataCache::get_or_set`]) and set, what is loaded
//! has to change before [`DataCache::set`] is called.

mod counters;
mod flight;
pub mod key;
pub mod list;
mod memory;
mod redis;
pub mod store;

use std::{any::Any, future::Future, sync::Arc};

use bytes::Bytes;
use futures_util::{StreamExt as _, stream};
use serde::{Serialize, de::DeserializeOwned};

use self::{
    counters::Counters,
    flight::{Flights, Role},
    memory::{Memory, Value},
    store::Put,
};
pub use self::{
    key::{DataKey, InvalidKey, Kind},
    redis::Scripts,
};
use super::{
    clock::Timestamp,
    coherence::{Coherence, Purged},
    l1::Usage,
    purge::{Mode, Selector},
    purger::Purger,
    remote::{self, Remote},
};

/// The largest value, in bytes of JSON.
pub const MAX_VALUE: usize = 1 << 20;
/// Calls for one operation on many keys that are under way at once: they share a connection.
const AT_ONCE: usize = 32;
/// Keys that one record of the log names.
const BATCH: usize = 256;

/// A value that cannot be kept.
#[derive(Debug, thiserror::Error)]
pub enum Refused {
    #[error("the value has no form in JSON: {0}")]
    Form(#[from] serde_json::Error),
    #[error("the value is larger than {MAX_VALUE} bytes")]
    Large,
}

/// How far a change has come.
#[derive(Debug, Clone)]
pub struct Changed {
    /// Whether the other instances see it. Otherwise the shared store is away: this one sees it, the
    /// others within the bounds of [`super::coherence`].
    pub shared: bool,
    /// Instances that did not confirm it in time.
    pub missing: Vec<Arc<str>>,
}

/// What instances share.
struct Shared {
    store: Arc<dyn Remote>,
    coherence: Arc<Coherence>,
}

impl Shared {
    fn is_usable(&self, now: Timestamp) -> bool {
        self.store.is_up() && self.coherence.is_trusted(now)
    }
}

/// The data cache of a process.
pub struct DataCache {
    memory: Memory,
    purger: Arc<Purger>,
    shared: Option<Shared>,
    flights: Flights,
    counters: Counters,
}

impl DataCache {
    pub(super) fn new(purger: Arc<Purger>, store: Option<Arc<dyn Remote>>) -> Self {
        let coherence = purger.coherence.clone();
        let shared = store.zip(coherence).map(|(store, coherence)| Shared { store, coherence });
        Self {
            memory: Memory::new(),
            purger,
            shared,
            flights: Flights::default(),
            counters: Counters::default(),
        }
    }

    /// The value of `key`. One of another type than `T` is none.
    pub async fn get<T: DeserializeOwned>(&self, key: &DataKey) -> Option<T> {
        read(&*self.find(key).await?)
    }

    pub async fn exists(&self, key: &DataKey) -> bool {
        self.find(key).await.is_some()
    }

    /// The values of `keys`, in their order.
    pub async fn get_many<T: DeserializeOwned>(&self, keys: &[DataKey]) -> Vec<Option<T>> {
        stream::iter(keys).map(|key| self.get(key)).buffered(AT_ONCE).collect().await
    }

    /// Keeps `value` for its kind's lifetime, in place of what any instance has.
    ///
    /// # Errors
    ///
    /// When the value cannot be kept. That Redis is away is none.
    pub async fn set<T: Serialize>(&self, key: &DataKey, value: &T) -> Result<Changed, Refused> {
        self.set_many(&[(key, value)]).await
    }

    /// [`DataCache::set`] for many; all or, where one of them cannot be kept, none.
    ///
    /// # Errors
    ///
    /// As for [`DataCache::set`].
    pub async fn set_many<T: Serialize>(
        &self,
        values: &[(&DataKey, T)],
    ) -> Result<Changed, Refused> {
        let jsons = values.iter().map(|(_, value)| json(value)).collect::<Result<Vec<_>, _>>()?;
        let mut changed = Changed { shared: true, missing: Vec::new() };
        let keys: Vec<&DataKey> = values.iter().map(|(key, _)| *key).collect();
        for (keys, jsons) in keys.chunks(BATCH).zip(jsons.chunks(BATCH)) {
            // First the purge: what is put afterwards is younger than it.
            let purged = self.purge(keys).await;
            let filled_at = purged.noted;
            let puts = keys.iter().zip(jsons);
            let put = stream::iter(puts)
                .map(|(key, json)| self.keep(key, json.clone(), filled_at, true))
                .buffer_unordered(AT_ONCE)
                .fold(true, |all, (_, shared)| async move { all && shared })
                .await;
            changed.add(purged, put);
        }
        Ok(changed)
    }

    /// Deletes on all instances.
    pub async fn delete(&self, key: &DataKey) -> Changed {
        self.delete_many(&[key]).await
    }

    /// [`DataCache::delete`] for many.
    pub async fn delete_many(&self, keys: &[&DataKey]) -> Changed {
        let mut changed = Changed { shared: true, missing: Vec::new() };
        for keys in keys.chunks(BATCH) {
            let purged = self.purge(keys).await;
            let before = purged.noted;
            for key in keys {
                self.memory.remove(key);
            }
            if let Some(shared) = &self.shared {
                // Dead already: this only frees the space, and need not succeed.
                stream::iter(keys)
                    .for_each_concurrent(AT_ONCE, |key| async move {
                        let _ = shared.store.remove(key, before).await;
                    })
                    .await;
            }
            changed.add(purged, true);
        }
        changed
    }

    /// Deletes a value and returns when every instance has confirmed, or half a second has passed.
    ///
    /// # Errors
    ///
    /// When the parts make no key.
    pub async fn invalidate(
        &self,
        tenant: &str,
        kind: Kind,
        id: &str,
    ) -> Result<Changed, InvalidKey> {
        Ok(self.delete(&DataKey::new(tenant, kind, id)?).await)
    }

    /// The value of `key`, or what `load` makes of it, kept from now on. Of concurrent callers in this
    /// process one loads. One that stops being polled is replaced.
    ///
    /// A value that cannot be kept is returned all the same, to the one who loaded it; the others
    /// load for themselves.
    ///
    /// # Errors
    ///
    /// What `load` fails with, for everybody who waited for it; it is not kept.
    pub async fn get_or_set<T, E, F>(&self, key: &DataKey, load: impl FnOnce() -> F) -> Result<T, E>
    where
        T: Serialize + DeserializeOwned,
        E: Clone + Send + Sync + 'static,
        F: Future<Output = Result<T, E>>,
    {
        let leader = loop {
            // Before anything is read: what is purged from now on kills what comes of it.
            let began_at = self.purger.ledger.generation();
            let purged_since = |began| self.purger.ledger.data_purged_since(key.as_str(), began);
            let leader = match self.flights.join(key, began_at, purged_since) {
                Role::Lead(leader) => leader,
                Role::Wait(waiter) => match waiter.landed().await {
                    None => continue,
                    Some(Ok(value)) => match read(&value) {
                        Some(value) => return Ok(value),
                        None => return load().await,
                    },
                    Some(Err(error)) => match error.downcast_ref::<E>() {
                        Some(error) => return Err(error.clone()),
                        None => return load().await,
                    },
                },
            };
            let Some(value) = self.find(key).await else { break leader };
            let Some(read) = read(&value) else { break leader };
            leader.land(Ok(value));
            return Ok(read);
        };
        let filled_at = self.purger.ledger.generation();
        match load().await {
            Ok(value) => {
                if let Ok(json) = json(&value) {
                    let (kept, _) = self.keep(key, json, filled_at, false).await;
                    leader.land(Ok(kept));
                }
                Ok(value)
            }
            Err(error) => {
                leader.land(Err(Arc::new(error.clone()) as Arc<dyn Any + Send + Sync>));
                Err(error)
            }
        }
    }

    /// Adds `by` to the counter `key` and returns its new value. It begins anew its kind's lifetime
    /// after its first use; a counter and a value of one key are two things.
    ///
    /// Redis has the only copy. A connection that breaks in the middle may count twice.
    ///
    /// # Errors
    ///
    /// When Redis is away, or the counter is at its end.
    pub async fn increment(&self, key: &DataKey, by: i64) -> Result<i64, remote::Error> {
        let keep = key.kind().lifetime();
        match &self.shared {
            Some(shared) => shared.store.count(key, by, keep).await,
            None => self
                .counters
                .add(key, by, keep, Timestamp::now())
                .ok_or_else(|| remote::Error::Failed("the counter is at its end".to_owned())),
        }
    }

    /// Frees what nobody can use any more.
    pub(super) fn sweep(&self, now: Timestamp) {
        self.memory.sweep(|value| value.is_live(&self.purger.ledger, now));
    }

    /// How full the memory is.
    pub fn usage(&self) -> Usage {
        self.memory.usage()
    }

    async fn purge(&self, keys: &[&DataKey]) -> Purged {
        let selectors: Vec<_> =
            keys.iter().map(|key| Selector::Data(key.as_str().to_owned())).collect();
        self.purger.purge(&selectors, Mode::Hard).await
    }

    /// The live value of `key`, from memory while that may be relied on, and from the store.
    async fn find(&self, key: &DataKey) -> Option<Arc<Value>> {
        let now = Timestamp::now();
        let ledger = &self.purger.ledger;
        let own = self.memory.find(key).filter(|value| value.is_live(ledger, now));
        let Some(shared) = &self.shared else { return own };
        let covered = own.as_ref().filter(|it| shared.coherence.covers(it.verified(), now));
        if covered.is_some() {
            return own;
        }
        if !shared.is_usable(now) {
            return None;
        }
        let bytes = shared.store.read(key).await.ok()?;
        let decoded = bytes.and_then(|it| store::decode(&it, shared.coherence.skew()));
        let found = decoded.map(|(filled_at, expires, json)| {
            // The next purge made here has to come after it.
            ledger.see(filled_at);
            Arc::new(Value::new(key, json, filled_at, expires, now))
        });
        let found = found.filter(|value| value.is_live(ledger, now));
        match (own, found) {
            // Evicted there, or not stored there yet: what is here is good by its generation, if
            // nothing was purged while the store was asked.
            (Some(own), found) if found.as_ref().is_none_or(|it| it.filled_at < own.filled_at) => {
                own.set_verified(now);
                own.is_live(ledger, now).then_some(own)
            }
            (_, found) => {
                let found = found?;
                self.memory.insert(key, Arc::clone(&found), true);
                Some(found)
            }
        }
    }

    /// Puts a value into memory and the store; says whether the latter has it.
    async fn keep(
        &self,
        key: &DataKey,
        json: Bytes,
        filled_at: u64,
        wins: bool,
    ) -> (Arc<Value>, bool) {
        let now = Timestamp::now();
        let keep = key.kind().lifetime();
        let expires = now.after(keep);
        self.purger.ledger.see(filled_at);
        let value = Arc::new(Value::new(key, json, filled_at, expires, now));
        self.memory.insert(key, Arc::clone(&value), wins);
        let shared = match &self.shared {
            None => true,
            Some(shared) if !shared.is_usable(now) => false,
            Some(shared) => {
                let bytes = store::encode(filled_at, expires, shared.coherence.skew(), &value.json);
                let put = Put { key, value: &bytes, filled_at, wins, keep };
                shared.store.write(&put).await.is_ok()
            }
        };
        (value, shared)
    }
}

impl Changed {
    fn add(&mut self, purged: Purged, put: bool) {
        self.shared &= purged.recorded && put;
        self.missing.extend(purged.missing);
        self.missing.sort_unstable();
        self.missing.dedup();
    }
}

fn json<T: Serialize>(value: &T) -> Result<Bytes, Refused> {
    let json = serde_json::to_vec(value)?;
    if json.len() > MAX_VALUE { Err(Refused::Large) } else { Ok(json.into()) }
}

fn read<T: DeserializeOwned>(value: &Value) -> Option<T> {
    serde_json::from_slice(&value.json).ok()
}

impl std::fmt::Debug for DataCache {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("DataCache").field("usage", &self.usage()).finish_non_exhaustive()
    }
}
