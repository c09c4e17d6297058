//! One stored response, kept compact.
//!
//! A million small responses have to fit in little more than their own bytes. So an entry is two
//! allocations: this struct, and one block that holds its key, header values, tags and body. The
//! header *names* are shared by all entries that have the same ones in the same order, which is
//! most of a route. A hit clones slices of the block and copies nothing.

use std::{
    collections::HashSet,
    sync::{
        Arc, LazyLock, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use actix_http::{
    StatusCode,
    header::{ETAG, HeaderMap, HeaderName, HeaderValue, LAST_MODIFIED},
};
use aws_lc_rs::digest;
use bytes::Bytes;

use super::{
    clock::Timestamp,
    key::{self, KeyRef},
    policy::Lifetime,
};

/// A response that may be served again.
#[derive(Debug)]
pub struct Entry {
    pub lifetime: Lifetime,
    /// The purge generation before the origin was asked: whatever was purged later kills the entry.
    pub filled_at: u64,
    /// What the purge ledger found when it last looked, and as of which generation.
    checked: AtomicU64,
    /// When it was last known to be what the second tier has; milliseconds since the epoch.
    verified: AtomicU64,
    /// Whether somebody asks the second tier about it.
    asking: AtomicBool,
    /// Hash of the route's name.
    pub route: u64,
    /// Hash of host, path and query.
    pub url: u64,
    /// Hash of the tenant; zero for none.
    pub tenant: u64,
    status: StatusCode,
    /// Whether a compressed copy makes sense: then the response says that it varies.
    pub compressible: bool,
    /// Whether somebody makes that copy.
    compressing: AtomicBool,
    has_validator: bool,
    key_end: u32,
    tags_end: u32,
    body_start: u32,
    names: Arc<[HeaderName]>,
    /// Bytes of a list of names that is this entry's alone.
    own_names: u32,
    block: Bytes,
    /// The body once more, compressed with gzip; empty when there is none.
    gzip: Bytes,
}

/// What an entry is made of.
#[derive(Debug)]
pub struct Parts<'a> {
    pub key: KeyRef<'a>,
    pub lifetime: Lifetime,
    pub filled_at: u64,
    pub status: StatusCode,
    pub headers: &'a HeaderMap,
    pub route: &'a str,
    pub tenant: &'a str,
    pub tags: &'a [String],
    pub compressible: bool,
}

/// Bytes an entry takes besides its block and its compressed body: the struct and its reference
/// count, the block's own count, the share of the index, and what the allocator rounds up.
/// Measured by filling a cache with a million entries.
const OVERHEAD: u64 = 360;

impl Entry {
    /// Packs a response; `body` comes in the chunks it arrived in.
    pub fn pack(parts: &Parts<'_>, body: &[Bytes]) -> Self {
        Self::assemble(parts, [].into_iter(), body)
    }

    /// Packs a response that was stored elsewhere: of its tags, there are hashes only.
    pub fn restore(
        parts: &Parts<'_>,
        tags: impl ExactSizeIterator<Item = u64>,
        body: &[u8],
    ) -> Self {
        Self::assemble(parts, tags, &[body])
    }

    fn assemble<B: AsRef<[u8]>>(
        parts: &Parts<'_>,
        more_tags: impl ExactSizeIterator<Item = u64>,
        body: &[B],
    ) -> Self {
        let body_length: usize = body.iter().map(|chunk| chunk.as_ref().len()).sum();
        // A header map yields its names in a different order each time, and only lists in one order
        // are the same list. Lines of one name stay as they are.
        let mut fields: Vec<_> = parts.headers.iter().collect();
        fields.sort_by(|(a, _), (b, _)| a.as_str().cmp(b.as_str()));
        let values: usize = fields.iter().map(|(_, value)| 4 + value.len()).sum();
        let (names, own_names) = shared(fields.iter().map(|(name, _)| (*name).clone()).collect());
        let key = parts.key.bytes();
        let tags = (parts.tags.len() + more_tags.len()) * 8;
        let mut block = Vec::with_capacity(key.len() + tags + values + body_length);
        block.extend_from_slice(key);
        let key_end = block.len() as u32;
        for tag in parts.tags.iter().map(|tag| hash_text(tag)).chain(more_tags) {
            block.extend_from_slice(&tag.to_le_bytes());
        }
        let tags_end = block.len() as u32;
        for (_, value) in &fields {
            block.extend_from_slice(&(value.len() as u32).to_le_bytes());
            block.extend_from_slice(value.as_bytes());
        }
        let body_start = block.len() as u32;
        for chunk in body {
            block.extend_from_slice(chunk.as_ref());
        }
        Self {
            lifetime: parts.lifetime,
            filled_at: parts.filled_at,
            checked: AtomicU64::new(parts.filled_at << 1),
            verified: AtomicU64::new(Timestamp::now().0),
            asking: AtomicBool::new(false),
            route: hash_text(parts.route),
            url: key::target(key).map_or(0, |(host, path, query)| hash_url(host, path, query)),
            tenant: hash_text(parts.tenant),
            status: parts.status,
            compressible: parts.compressible,
            compressing: AtomicBool::new(false),
            has_validator: parts.headers.contains_key(ETAG)
                || parts.headers.contains_key(LAST_MODIFIED),
            key_end,
            tags_end,
            body_start,
            names,
            own_names,
            block: Bytes::from(block),
            gzip: Bytes::new(),
        }
    }

    /// The same response with a compressed copy of its body beside it.
    pub fn with_gzip(&self, gzip: Bytes) -> Self {
        Self {
            checked: AtomicU64::new(self.checked.load(Ordering::Relaxed)),
            verified: AtomicU64::new(self.verified.load(Ordering::Relaxed)),
            asking: AtomicBool::new(false),
            compressing: AtomicBool::new(true),
            names: Arc::clone(&self.names),
            block: self.block.clone(),
            gzip,
            ..*self
        }
    }

    /// Whether the caller is to make the compressed copy: true once.
    pub fn claim_compression(&self) -> bool {
        !self.compressing.swap(true, Ordering::Relaxed)
    }

    /// When it was last known to be what the second tier has.
    pub fn verified(&self) -> Timestamp {
        Timestamp(self.verified.load(Ordering::Relaxed))
    }

    /// Notes that the second tier has nothing newer.
    pub fn set_verified(&self, at: Timestamp) {
        self.verified.store(at.0, Ordering::Relaxed);
        self.asking.store(false, Ordering::Relaxed);
    }

    /// Whether the caller is to ask the second tier: true once, until somebody did.
    pub fn claim_asking(&self) -> bool {
        !self.asking.swap(true, Ordering::Relaxed)
    }

    /// When it is of no use any more, not even stale.
    pub fn keep_until(&self) -> Timestamp {
        self.lifetime.keep_until(self.has_validator)
    }

    pub fn key(&self) -> &[u8] {
        &self.block[..self.key_end as usize]
    }

    pub fn status(&self) -> StatusCode {
        self.status
    }

    pub fn body(&self) -> Bytes {
        self.block.slice(self.body_start as usize..)
    }

    pub fn body_length(&self) -> usize {
        self.block.len() - self.body_start as usize
    }

    /// The compressed body, if there is one.
    pub fn gzip(&self) -> Option<Bytes> {
        (!self.gzip.is_empty()).then(|| self.gzip.clone())
    }

    /// The stored header fields, in the order they were stored.
    pub fn headers(&self) -> impl Iterator<Item = (&HeaderName, HeaderValue)> {
        let mut at = self.tags_end as usize;
        self.names.iter().filter_map(move |name| {
            let (length, _) = self.block[at..].split_first_chunk::<4>()?;
            let start = at + 4;
            at = start + u32::from_le_bytes(*length) as usize;
            Some((name, HeaderValue::from_maybe_shared(self.block.slice(start..at)).ok()?))
        })
    }

    /// The stored header fields as a map, for decisions off the hit path.
    pub fn header_map(&self) -> HeaderMap {
        self.headers().map(|(name, value)| (name.clone(), value)).collect()
    }

    /// Hashes of the tags.
    pub fn tags(&self) -> impl Iterator<Item = u64> {
        self.block[self.key_end as usize..self.tags_end as usize]
            .as_chunks::<8>()
            .0
            .iter()
            .map(|bytes| u64::from_le_bytes(*bytes))
    }

    /// Bytes of memory this entry takes.
    pub fn weight(&self) -> u64 {
        OVERHEAD + u64::from(self.own_names) + (self.block.len() + self.gzip.len()) as u64
    }

    /// The generation the ledger last checked this entry at, and whether it was softly purged.
    pub fn checked(&self) -> (u64, bool) {
        let value = self.checked.load(Ordering::Relaxed);
        (value >> 1, value & 1 == 1)
    }

    /// Remembers a check, so that the next look-up need not repeat it.
    pub fn set_checked(&self, generation: u64, soft: bool) {
        self.checked.store(generation << 1 | u64::from(soft), Ordering::Relaxed);
    }
}

/// The hash of what a purge can name; zero for nothing. It is stored, and compared by instances of
/// other versions: it must never change.
pub fn hash_text(text: &str) -> u64 {
    if text.is_empty() { 0 } else { hash(&[text]) }
}

/// The hash of a URL, whatever its scheme; as stable.
pub fn hash_url(host: &str, path: &str, query: Option<&str>) -> u64 {
    match query {
        None => hash(&[host, path]),
        Some(query) => hash(&[host, path, query]),
    }
}

/// The beginning of the SHA-256 of `fields`, each after its length: no two lists read the same.
fn hash(fields: &[&str]) -> u64 {
    let mut context = digest::Context::new(&digest::SHA256);
    for field in fields {
        context.update(&(field.len() as u64).to_be_bytes());
        context.update(field.as_bytes());
    }
    let digest = context.finish();
    digest.as_ref().first_chunk().map_or(0, |start| u64::from_be_bytes(*start))
}

/// Lists of header names in use, each once.
static NAMES: LazyLock<Mutex<HashSet<Arc<[HeaderName]>>>> = LazyLock::new(Mutex::default);

/// Beyond this many lists an entry keeps its own: an origin that invents header names must not grow
/// a table that nothing shrinks.
const MAX_SHARED: usize = 4096;

/// The list of these names, and how many bytes it takes where it is not shared.
fn shared(names: Vec<HeaderName>) -> (Arc<[HeaderName]>, u32) {
    let mut known = NAMES.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some(list) = known.get(&names[..]) {
        return (Arc::clone(list), 0);
    }
    let list: Arc<[HeaderName]> = names.into();
    if known.len() < MAX_SHARED {
        known.insert(Arc::clone(&list));
        return (list, 0);
    }
    let text: usize = list.iter().map(|name| name.as_str().len()).sum();
    let bytes = size_of_val(&*list) + text;
    (list, bytes as u32)
}
