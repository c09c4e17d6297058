//! What each tier has of one response, for the operator.

use std::sync::Arc;

use actix_http::header::{HeaderMap, HeaderName};
use serde::Serialize;

use super::{
    Cache, RouteCache,
    clock::Timestamp,
    entry::Entry,
    key::Parts,
    l1::Slot,
    l2::{Question, codec::Stored},
    purge::Verdict,
};

/// One stored response.
#[derive(Debug, Serialize)]
pub struct EntryView {
    pub status: u16,
    /// Seconds since the origin made it.
    pub age: u64,
    /// Seconds that it is fresh from now on; negative once it is stale.
    pub ttl: i64,
    /// Bytes of its body.
    pub size: usize,
    /// The number of the last purge before it was fetched.
    pub generation: u64,
    /// Seconds since it was last known to be what the shared store has; there, zero.
    pub verified: f64,
    /// Whether a purge has struck it since.
    pub purged: &'static str,
}

/// What a tier has.
#[derive(Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TierView {
    /// Nothing.
    Absent,
    /// The store cannot be asked.
    Away,
    /// The last response was not to be shared; that is remembered.
    Unshared,
    Stored(EntryView),
}

/// What is known about one request's response.
#[derive(Debug, Serialize)]
pub struct ResponseView {
    /// Request headers that select among responses for the URL.
    pub varies: Vec<String>,
    /// What the next look-up takes for that, before it knows.
    pub guess: Vec<String>,
    pub l1: TierView,
    /// `None` where there is no second tier.
    pub l2: Option<TierView>,
}

impl Cache {
    /// What is stored for a request, without changing anything.
    pub async fn inspect(
        &self,
        route: &Arc<RouteCache>,
        parts: &Parts<'_>,
        tenant: &str,
        headers: &HeaderMap,
    ) -> ResponseView {
        let primary = parts.to_key();
        let mut varies: Vec<HeaderName> = Vec::new();
        let slot = match self.l1.peek(primary.borrow()) {
            Some(Slot::Variants(variants)) => {
                varies.clone_from(&variants.names);
                self.l1.peek(variants.key_for(&primary, headers).borrow())
            }
            slot => slot,
        };
        let now = Timestamp::now();
        let l1 = match slot {
            None | Some(Slot::Variants(_)) => TierView::Absent,
            Some(Slot::Unshared(mark)) if now < mark.until => TierView::Unshared,
            Some(Slot::Unshared(_)) => TierView::Absent,
            Some(Slot::Entry(entry)) => {
                let verified = now.since(entry.verified()).as_secs_f64();
                TierView::Stored(self.view(&entry, verified, now))
            }
        };
        let l2 = match &self.l2 {
            None => None,
            Some(l2) if !l2.remote.is_up() => Some(TierView::Away),
            Some(l2) => {
                let question = Question { route, tenant, primary: &primary, headers };
                Some(match self.peek(l2, &question).await {
                    Err(_) => TierView::Away,
                    Ok((names, stored)) => {
                        varies = names.unwrap_or(varies);
                        match stored {
                            Some(Stored::Entry(entry)) => {
                                TierView::Stored(self.view(&entry, 0.0, Timestamp::now()))
                            }
                            Some(Stored::Variants { .. }) | None => TierView::Absent,
                        }
                    }
                })
            }
        };
        let texts = |names: &[HeaderName]| names.iter().map(ToString::to_string).collect();
        let guess = route.varies.guess().map(|names| texts(&names)).unwrap_or_default();
        ResponseView { varies: texts(&varies), guess, l1, l2 }
    }

    fn view(&self, entry: &Entry, verified: f64, now: Timestamp) -> EntryView {
        EntryView {
            status: entry.status().as_u16(),
            age: entry.lifetime.age(now),
            ttl: entry.lifetime.ttl(now),
            size: entry.body_length(),
            generation: entry.filled_at,
            verified,
            purged: match self.ledger.check(entry) {
                Verdict::Live => "no",
                Verdict::SoftlyPurged => "softly",
                Verdict::Dead => "yes",
            },
        }
    }
}
