//! Asks the second tier for what the first does not have, or has not asked about for a while.

use std::{sync::Arc, time::Instant};

use actix_http::header::{HeaderMap, HeaderName};
use bytes::Bytes;

use super::{
    L2,
    codec::{self, Stored},
};
use crate::cache::{
    Cache, RouteCache,
    clock::Timestamp,
    entry::Entry,
    key::Key,
    l1::{Slot, Variants},
    purge::Verdict,
    remote::{Error, Name},
};

/// What the second tier said about a request.
#[derive(Debug)]
pub struct Consulted {
    /// What a response to the request is called there.
    pub name: Name,
    /// How the value under that name begins; empty where there is none.
    pub seen: Bytes,
}

/// What responses vary on, if they do, and the one for a request.
type Peeked = (Option<Vec<HeaderName>>, Option<Stored>);

/// Who asks.
#[derive(Debug, Clone, Copy)]
pub struct Question<'a> {
    pub route: &'a Arc<RouteCache>,
    pub tenant: &'a str,
    pub primary: &'a Key,
    /// Of the request: what its response varies on is selected by them.
    pub headers: &'a HeaderMap,
}

impl Question<'_> {
    /// The name of the response among those that vary on `names`.
    fn variant(&self, names: &[HeaderName]) -> Name {
        Name {
            primary: self.primary.borrow().digest(),
            // Not the generation that sets the variants of this process apart: all instances have to
            // find the same name.
            variant: Some(self.primary.variant(names, 0, self.headers).borrow().digest()),
        }
    }

    /// The name of the response where there is but one.
    pub fn whole(&self) -> Name {
        Name { primary: self.primary.borrow().digest(), variant: None }
    }

    /// The name of a response that varies on `names`, if it does.
    pub fn name(&self, names: Option<&[HeaderName]>) -> Name {
        names.map_or_else(|| self.whole(), |names| self.variant(names))
    }
}

impl Cache {
    /// Looks the response up in the second tier, in one round trip, and moves what is there into the
    /// first.
    ///
    /// # Errors
    ///
    /// When the store cannot be asked. Nothing has changed then.
    pub async fn consult(&self, l2: &L2, question: &Question<'_>) -> Result<Consulted, Error> {
        let began = Instant::now();
        let consulted = self.ask(l2, question).await;
        l2.stats.lookups.add(1);
        l2.stats.lookup_microseconds.add(began.elapsed().as_micros() as u64);
        if consulted.is_err() {
            l2.stats.errors.add(1);
        }
        consulted
    }

    async fn ask(&self, l2: &L2, question: &Question<'_>) -> Result<Consulted, Error> {
        let known = match self.l1.peek(question.primary.borrow()) {
            Some(Slot::Variants(variants)) => Some(variants),
            Some(Slot::Entry(_) | Slot::Unshared(_)) | None => None,
        };
        // What other responses of the route vary on, this one probably does too.
        let guess = match &known {
            Some(known) => Some(Arc::clone(&known.names)),
            None => question.route.varies.guess(),
        };
        question.route.learn(&self.data);
        let whole = question.whole();
        let mut names = vec![whole];
        names.extend(guess.iter().map(|guess| question.variant(guess)));
        let mut values = l2.remote.get(&names).await?.into_iter();
        let first = values.next().flatten().unwrap_or_default();
        let guessed = values.next().flatten();
        let decoded = self.decode(l2, question, question.primary, &first);
        let (key, name, value) = match decoded {
            Some(Stored::Variants { names, filled_at }) => {
                let name = question.variant(&names);
                let value = if guess.is_some_and(|guess| guess[..] == names[..]) {
                    guessed.unwrap_or_default()
                } else {
                    l2.remote.get(&[name]).await?.pop().flatten().unwrap_or_default()
                };
                let variants = self.know(question, known, names, filled_at);
                (variants.key_for(question.primary, question.headers), name, value)
            }
            stored => {
                self.settle(l2, question.primary, stored);
                return Ok(Consulted { name: whole, seen: stamp(&first) });
            }
        };
        let stored = self.decode(l2, question, &key, &value);
        self.settle(l2, &key, stored);
        Ok(Consulted { name, seen: stamp(&value) })
    }

    /// What is stored for the request, and what responses vary on. Changes nothing.
    ///
    /// # Errors
    ///
    /// When the store cannot be asked.
    pub async fn peek(&self, l2: &L2, question: &Question<'_>) -> Result<Peeked, Error> {
        let value = l2.remote.get(&[question.whole()]).await?.pop().flatten().unwrap_or_default();
        let stored = self.decode(l2, question, question.primary, &value);
        let Some(Stored::Variants { names, .. }) = stored else { return Ok((None, stored)) };
        let name = question.variant(&names);
        let value = l2.remote.get(&[name]).await?.pop().flatten().unwrap_or_default();
        // Of a variant's key, what is stored depends on its beginning only, the primary key.
        let stored = self.decode(l2, question, question.primary, &value);
        Ok((Some(names), stored))
    }

    fn decode(&self, l2: &L2, question: &Question<'_>, key: &Key, value: &[u8]) -> Option<Stored> {
        let (route, tenant) = (&question.route.name, question.tenant);
        let (skew, max) = (l2.coherence.skew(), self.settings.max_object_bytes);
        codec::decode(value, key.borrow(), route, tenant, skew, max)
    }

    /// Remembers what responses vary on.
    fn know(
        &self,
        question: &Question<'_>,
        known: Option<Arc<Variants>>,
        names: Vec<HeaderName>,
        filled_at: u64,
    ) -> Arc<Variants> {
        if let Some(known) = known.filter(|known| known.names[..] == names[..]) {
            return known;
        }
        let variants = Arc::new(Variants::new(question.primary.clone(), names, filled_at));
        question.route.varied(&self.data, &variants.names);
        let slot = Slot::Variants(Arc::clone(&variants));
        self.l1.insert(question.primary.borrow(), slot);
        variants
    }

    /// Brings the first tier in line with what the second has under `key`.
    fn settle(&self, l2: &L2, key: &Key, stored: Option<Stored>) {
        let now = Timestamp::now();
        let own = match self.l1.peek(key.borrow()) {
            Some(Slot::Entry(entry)) if self.ledger.check(&entry) != Verdict::Dead => Some(entry),
            _ => None,
        };
        let found = match stored {
            Some(Stored::Entry(entry)) if self.ledger.check(&entry) != Verdict::Dead => Some(entry),
            _ => None,
        };
        match (own, found) {
            (Some(own), Some(found)) if is_newer(&found, &own) => self.adopt(key, found, now),
            // The same, or an older one that this instance's store will replace. Or it was evicted
            // there: what is here is good by its generation.
            (Some(own), found) => {
                own.set_verified(now);
                let hit = found.is_some();
                if hit { &l2.stats.hits } else { &l2.stats.misses }.add(1);
                return;
            }
            (None, Some(found)) => self.adopt(key, found, now),
            (None, None) => return l2.stats.misses.add(1),
        }
        l2.stats.hits.add(1);
    }

    fn adopt(&self, key: &Key, found: Entry, now: Timestamp) {
        found.set_verified(now);
        self.ledger.see(found.filled_at);
        self.l1.insert(key.borrow(), Slot::Entry(Arc::new(found)));
    }
}

/// Whether `found` was filled after `own`, or freshened.
fn is_newer(found: &Entry, own: &Entry) -> bool {
    // The same moment may differ by a little, as it went through the clocks of two machines.
    const NOISE: i64 = 50;
    let born = |entry: &Entry| entry.lifetime.to_parts().0;
    (found.filled_at, born(found)) > (own.filled_at, born(own) + NOISE)
}

fn stamp(value: &[u8]) -> Bytes {
    Bytes::copy_from_slice(codec::stamp(value))
}
