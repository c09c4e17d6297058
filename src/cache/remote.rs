//! What the instances of one gateway share, as the cache sees it.
//!
//! [`Remote`] is the whole of it: stored responses, leases on fetches, and the log of purges with the
//! messages around it. Redis stands behind it ([`redis`]); the tests put a simulated one there, whose
//! messages they can delay and lose.

pub mod redis;
mod scripts;

use std::{sync::Arc, time::Duration};

use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use super::{clock::Timestamp, data::store::Store};
use crate::problem::Code;
pub use crate::redis::Error;

/// What a call to the shared store resolves to.
pub type Reply<'a, T> = LocalBoxFuture<'a, Result<T, Error>>;

/// The name of a stored response in the shared store.
///
/// Digests of keys: a name is short whatever the URL, and holds nothing in clear.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Name {
    pub primary: Digest,
    /// Of the variant's key, where responses vary.
    pub variant: Option<Digest>,
}

/// SHA-256 of a key, cut to 192 bits.
pub type Digest = [u8; 24];

/// A stored response on its way to the shared store.
#[derive(Debug)]
pub struct Put<'a> {
    pub name: Name,
    pub value: &'a [u8],
    /// What responses vary on, to be kept under the primary name.
    pub variants: Option<&'a [u8]>,
    /// The generation it was filled at: never put in place of what was filled later.
    pub filled_at: u64,
    pub keep: Duration,
    /// The lease to release with it.
    pub lease: Option<(&'a Name, &'a str)>,
}

/// The answer to who asks for the lease on a fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lead {
    Acquired,
    /// What is stored is not what was seen before: look again.
    Changed,
    /// Another instance fetches, and this one is told when it has.
    Busy {
        remaining: Duration,
    },
}

/// What became of another instance's fetch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// It is stored.
    Stored,
    /// The response is not to be shared, or cannot be stored: everybody asks for himself.
    Unshared,
    /// The origin failed.
    Failed(Code),
    /// Whoever fetched went away.
    Vanished,
}

/// A purge in the log.
#[derive(Debug, Clone)]
pub struct Recorded {
    pub generation: u64,
    /// The one before it.
    pub previous: u64,
    /// Instances that have to confirm it.
    pub members: Vec<Arc<str>>,
}

/// The answer to a beat.
#[derive(Debug, Clone)]
pub struct Beat {
    /// The store's clock.
    pub time: Timestamp,
    /// Of the last purge in the log.
    pub generation: u64,
    pub members: Vec<Arc<str>>,
}

/// A part of the log.
#[derive(Debug, Clone, Default)]
pub struct History {
    /// The first record that is still there.
    pub first: u64,
    pub records: Vec<(u64, Vec<u8>)>,
    /// Whether there are more.
    pub more: bool,
}

/// What the store tells an instance without being asked.
#[derive(Debug, Clone)]
pub enum Event<'a> {
    Purged {
        generation: u64,
        previous: u64,
        record: &'a [u8],
    },
    Beat {
        generation: u64,
        instance: &'a str,
        number: u64,
    },
    Confirmed {
        instance: &'a str,
        generation: u64,
    },
    /// A fetch that this instance waits for has ended.
    Landed {
        lease: &'a str,
        outcome: Outcome,
    },
    /// From now on messages arrive.
    Subscribed,
    /// Messages may be lost from now on.
    Lost,
}

/// The shared store.
pub trait Remote: Store + Send + Sync {
    /// This instance's name.
    fn instance(&self) -> &str;

    /// Whether it is worth asking.
    fn is_up(&self) -> bool;

    /// The values under up to two names that share their primary digest.
    fn get<'a>(&'a self, names: &'a [Name]) -> Reply<'a, Vec<Option<Bytes>>>;

    fn put<'a>(&'a self, put: &'a Put<'a>) -> Reply<'a, ()>;

    /// Asks for the lease on fetching `name`, if what is stored still begins with `seen`.
    fn lead<'a>(&'a self, name: &'a Name, token: &'a str, seen: &'a [u8]) -> Reply<'a, Lead>;

    /// Keeps a lease for its full time from now, if it is still held.
    fn renew<'a>(&'a self, name: &'a Name, token: &'a str) -> Reply<'a, ()>;

    /// Gives a lease back and tells who waits.
    fn release<'a>(&'a self, name: &'a Name, token: &'a str, outcome: Outcome) -> Reply<'a, ()>;

    /// How [`Event::Landed`] names a lease.
    fn lease(&self, name: &Name) -> String;

    /// Writes a purge into the log, under a generation greater than `known`, and announces it.
    fn record<'a>(&'a self, known: u64, record: &'a [u8]) -> Reply<'a, Recorded>;

    /// Says that this instance lives and has applied the log up to `applied`.
    ///
    /// A log without the record `applied` is not the one that this instance followed: purges were lost.
    /// Then everything is purged, in the log.
    fn beat(&self, number: u64, applied: u64) -> Reply<'_, Beat>;

    /// Says that this instance goes.
    fn leave(&self) -> Reply<'_, ()>;

    /// The records after `applied`; the same check as in [`Remote::beat`].
    fn history(&self, applied: u64) -> Reply<'_, History>;

    /// Tells `instance` that this one has applied the log up to `applied`.
    fn confirm<'a>(&'a self, instance: &'a str, applied: u64) -> Reply<'a, ()>;
}
