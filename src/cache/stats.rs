//! What the cache did, in numbers: for each route, in the second tier, and for coherence.

use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

/// A number that only grows.
#[derive(Debug, Default)]
pub struct Count(AtomicU64);

impl Count {
    pub fn add(&self, number: u64) {
        self.0.fetch_add(number, Ordering::Relaxed);
    }

    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

macro_rules! counts {
    ($(#[$about:meta])* $counts:ident, $snapshot:ident: $($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        $(#[$about])*
        #[derive(Debug, Default)]
        pub struct $counts { $($(#[$doc])* pub $name: Count),+ }

        /// The counts at one moment.
        #[derive(Debug, Clone, Serialize)]
        pub struct $snapshot { $($(#[$doc])* pub $name: u64),+ }

        impl $counts {
            pub fn snapshot(&self) -> $snapshot {
                $snapshot { $($name: self.$name.get()),+ }
            }
        }

        impl $snapshot {
            /// Every count with its name, for metrics.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }
    };
}

counts! {
    /// Counts of one route since the process started.
    RouteStats, Snapshot:
    /// Served fresh from the store.
    hits,
    /// Fetched because nothing usable was stored.
    misses,
    /// Served stale, by leave of the origin or the route.
    stale,
    /// Served after the origin confirmed that the stored response is still good.
    revalidated,
    /// Sent past the cache: the request's method or headers do not allow a stored response.
    bypassed,
    /// Waited for another request's fetch and shared its response.
    coalesced,
    /// Waited for another request's fetch, only to learn that its response is not to be shared.
    unshared,
    /// Fetches that failed.
    errors,
    /// Responses stored.
    stored,
    /// Bytes of body stored.
    stored_bytes,
    /// Responses the policy refused to store.
    refused,
    /// Responses too large to store.
    too_large,
    /// Bodies that broke off while being stored, and were thrown away.
    cut,
}

counts! {
    /// Counts of the second tier.
    L2Stats, L2Snapshot:
    /// Look-ups that found a response that is good.
    hits,
    misses,
    /// Look-ups and stores that failed.
    errors,
    stored,
    /// As they are kept there.
    stored_bytes,
    /// Not stored because too much was on its way already.
    shed,
    /// Requests that found another instance fetching, and waited for it.
    awaited,
    lookups,
    /// What all look-ups took together.
    lookup_microseconds,
}

counts! {
    /// Counts of the protocol that keeps instances coherent.
    CoherenceStats, CoherenceSnapshot:
    /// Purges applied, whoever made them.
    applied,
    /// Times the log was read because messages were missed.
    gaps,
    /// Purges that not every instance confirmed in time.
    unconfirmed,
}
