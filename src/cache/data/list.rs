//! What the data cache holds, for the operator.

use std::time::Duration;

use bytes::Bytes;

use super::{DataCache, key::DataKey, store::Page};
use crate::cache::{clock::Timestamp, purge::glob_matches, remote::Error};

/// A value, as it is kept.
#[derive(Debug)]
pub struct Shown {
    /// JSON.
    pub value: Bytes,
    /// How much longer it is kept.
    pub life: Duration,
}

/// What a clearing has come to.
#[derive(Debug)]
pub struct Cleared {
    pub deleted: usize,
    /// Where to go on, if there may be more.
    pub next: Option<String>,
    pub shared: bool,
}

impl DataCache {
    /// The value of `key` as JSON.
    pub async fn show(&self, key: &DataKey) -> Option<Shown> {
        let value = self.find(key).await?;
        Some(Shown { value: value.json.clone(), life: value.life(Timestamp::now()) })
    }

    /// About `limit` keys that match `glob`, from where `cursor` says; the shared store's, or in an
    /// instance by itself, its own. It may name values that were invalidated and not removed yet.
    ///
    /// # Errors
    ///
    /// When the shared store is away or cannot list its keys.
    pub async fn keys(&self, glob: &str, cursor: &str, limit: usize) -> Result<Page, Error> {
        if let Some(shared) = &self.shared {
            return shared.store.scan(glob, cursor, limit).await;
        }
        let now = Timestamp::now();
        let keys = self.memory.keys(cursor, limit + 1, |key, value| {
            glob_matches(glob.as_bytes(), key.as_bytes()) && value.is_live(&self.purger.ledger, now)
        });
        let mut page = Page { keys, next: None };
        if page.keys.len() > limit {
            page.keys.truncate(limit);
            page.next = page.keys.last().cloned();
        }
        Ok(page)
    }

    /// Deletes about `limit` keys that match `glob`, from where `cursor` says.
    ///
    /// # Errors
    ///
    /// As for [`DataCache::keys`].
    pub async fn clear(&self, glob: &str, cursor: &str, limit: usize) -> Result<Cleared, Error> {
        let page = self.keys(glob, cursor, limit).await?;
        let keys: Vec<DataKey> = page.keys.iter().filter_map(|key| key.parse().ok()).collect();
        let changed = self.delete_many(&keys.iter().collect::<Vec<_>>()).await;
        Ok(Cleared { deleted: keys.len(), next: page.next, shared: changed.shared })
    }
}
