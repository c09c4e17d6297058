//! What the cache did for each route, in numbers.

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
    ($($(#[$doc:meta])* $name:ident),+ $(,)?) => {
        /// Counts of one route since the process started.
        #[derive(Debug, Default)]
        pub struct RouteStats { $($(#[$doc])* pub $name: Count),+ }

        /// [`RouteStats`] at one moment.
        #[derive(Debug, Clone, Serialize)]
        pub struct Snapshot { $($(#[$doc])* pub $name: u64),+ }

        impl RouteStats {
            pub fn snapshot(&self) -> Snapshot {
                Snapshot { $($name: self.$name.get()),+ }
            }
        }

        impl Snapshot {
            /// Every count with its name, for metrics.
            pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$((stringify!($name), self.$name)),+].into_iter()
            }
        }
    };
}

counts! {
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
