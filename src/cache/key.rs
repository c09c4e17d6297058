//! Which stored response a request asks for.
//!
//! A key is a byte string of length-prefixed fields, so no two different requests can build the
//! same one: there is no delimiter to smuggle. The store looks it up by a hash, seeded at random in
//! each process, and then compares the bytes, so a hash collision is a miss and never a mix-up.
//! Header values a response varies on may be secrets (`Cookie`, `Authorization`); a key holds their
//! SHA-256 digest instead.

use std::{
    borrow::Cow,
    cell::RefCell,
    hash::{BuildHasher, Hash, Hasher},
    sync::{Arc, LazyLock},
};

use actix_http::header::{HeaderMap, HeaderName};
use aws_lc_rs::digest;

use super::policy;

static SEED: LazyLock<foldhash::quality::RandomState> = LazyLock::new(Default::default);

thread_local! {
    /// Where the key of the request in hand is built: a look-up allocates nothing.
    static SCRATCH: RefCell<Vec<u8>> = const { RefCell::new(Vec::new()) };
}

/// What identifies a request, apart from the headers its response may vary on.
#[derive(Debug, Clone, Copy)]
pub struct Parts<'a> {
    /// Lower-case, with the port when it is not the scheme's own.
    pub host: &'a str,
    /// Normalised.
    pub path: &'a str,
    /// As it goes upstream; `None` when there is no `?`.
    pub query: Option<&'a str>,
    pub route: &'a str,
    /// The tenant or caller the response belongs to; empty when it is shared by all.
    pub scope: &'a str,
}

/// The key of a request, owned.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Key {
    hash: u64,
    /// Shared: a key is held by the request, its flight, its fill and its slot.
    bytes: Arc<[u8]>,
}

impl Hash for Key {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_u64(self.hash);
    }
}

/// The key of a request, borrowed from the thread's scratch space.
#[derive(Debug, Clone, Copy)]
pub struct KeyRef<'a> {
    hash: u64,
    bytes: &'a [u8],
}

impl<'a> KeyRef<'a> {
    /// The key made of `bytes`, which an entry gave back.
    pub fn of(bytes: &'a [u8]) -> Self {
        Self { hash: SEED.hash_one(bytes), bytes }
    }

    /// The hash the store and the flights use.
    pub fn hash(self) -> u64 {
        self.hash
    }

    /// The bytes that make the key unique.
    pub fn bytes(&self) -> &[u8] {
        self.bytes
    }

    /// A name for this key where others can see it: the same in every process, of one length,
    /// and no two keys have the same.
    pub fn digest(self) -> [u8; 24] {
        let mut name = [0; 24];
        name.copy_from_slice(&digest::digest(&digest::SHA256, self.bytes).as_ref()[..24]);
        name
    }

    /// A key that outlives the scratch space.
    pub fn to_key(self) -> Key {
        Key { hash: self.hash, bytes: self.bytes.into() }
    }
}

impl Key {
    /// The bytes that make the key unique.
    pub fn bytes(&self) -> &[u8] {
        &self.bytes
    }

    /// This key, borrowed.
    pub fn borrow(&self) -> KeyRef<'_> {
        KeyRef { hash: self.hash, bytes: &self.bytes }
    }

    /// The key of the response to `request` among those that vary on `names`.
    ///
    /// `generation` sets the variants of one [`super::l1::Variants`] apart from those of the next.
    pub fn variant(&self, names: &[HeaderName], generation: u64, request: &HeaderMap) -> Self {
        let mut bytes = Vec::with_capacity(self.bytes.len() + 16 + names.len() * 48);
        bytes.extend_from_slice(&self.bytes);
        // No primary key ends in this: their last field is followed by nothing.
        bytes.extend_from_slice(b"vary");
        bytes.extend_from_slice(&generation.to_le_bytes());
        let mut value = Vec::new();
        for name in names {
            value.clear();
            policy::selecting_value(name, request, &mut value);
            field(&mut bytes, name.as_str());
            bytes.extend_from_slice(digest::digest(&digest::SHA256, &value).as_ref());
        }
        Self { hash: SEED.hash_one(&bytes[..]), bytes: bytes.into() }
    }
}

impl Parts<'_> {
    /// Builds the key in the thread's scratch space and hands it to `use_it`.
    pub fn with_key<T>(&self, use_it: impl FnOnce(KeyRef<'_>) -> T) -> T {
        SCRATCH.with_borrow_mut(|scratch| {
            scratch.clear();
            self.write(scratch);
            use_it(KeyRef { hash: SEED.hash_one(&scratch[..]), bytes: scratch })
        })
    }

    /// The key, owned.
    pub fn to_key(&self) -> Key {
        self.with_key(|key| key.to_key())
    }

    fn write(&self, out: &mut Vec<u8>) {
        field(out, self.host);
        field(out, self.path);
        match self.query {
            None => out.push(0),
            Some(query) => {
                out.push(1);
                field(out, query);
            }
        }
        field(out, self.route);
        field(out, self.scope);
    }
}

fn field(out: &mut Vec<u8>, text: &str) {
    out.extend_from_slice(&(text.len() as u32).to_le_bytes());
    out.extend_from_slice(text.as_bytes());
}

/// The host, path and query a primary or variant key was built from.
///
/// Returns `None` for bytes that no [`Parts`] wrote.
pub fn target(key: &[u8]) -> Option<(&str, &str, Option<&str>)> {
    let mut rest = key;
    let host = take(&mut rest)?;
    let path = take(&mut rest)?;
    let (flag, after) = rest.split_first()?;
    rest = after;
    let query = if *flag == 1 { Some(take(&mut rest)?) } else { None };
    Some((host, path, query))
}

/// The primary key among the bytes of a variant's, which begin with it.
///
/// What follows differs from process to process. Bytes that no [`Parts`] wrote are returned whole.
pub fn primary(key: &[u8]) -> &[u8] {
    let after = || {
        let mut rest = key;
        take(&mut rest)?;
        take(&mut rest)?;
        let (flag, after) = rest.split_first()?;
        rest = after;
        if *flag == 1 {
            take(&mut rest)?;
        }
        take(&mut rest)?;
        take(&mut rest)?;
        Some(rest.len())
    };
    &key[..key.len() - after().unwrap_or(0)]
}

fn take<'a>(rest: &mut &'a [u8]) -> Option<&'a str> {
    let (length, after) = rest.split_first_chunk::<4>()?;
    let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
    *rest = after;
    std::str::from_utf8(text).ok()
}

/// The query that counts for a route that names its parameters: those, sorted by name, values of
/// one name in the order they came. What is not in the key does not go upstream either, so nobody
/// can poison an entry through a parameter that the key leaves out.
pub fn named_query<'q>(query: Option<&'q str>, names: &[Box<str>]) -> Option<Cow<'q, str>> {
    let query = query?;
    let name_of = |pair: &str| pair.split('=').next().unwrap_or_default().to_owned();
    let mut kept: Vec<&str> =
        query.split('&').filter(|pair| names.iter().any(|name| **name == *name_of(pair))).collect();
    if kept.is_empty() {
        return None;
    }
    kept.sort_by_cached_key(|pair| name_of(pair));
    let text = kept.join("&");
    Some(if text == query { Cow::Borrowed(query) } else { Cow::Owned(text) })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn parts<'a>(texts: &'a [String; 4], query: Option<&'a str>) -> Parts<'a> {
        Parts { host: &texts[0], path: &texts[1], query, route: &texts[2], scope: &texts[3] }
    }

    proptest! {
        #[test]
        fn two_keys_are_equal_only_if_their_parts_are(
            a in proptest::array::uniform4("[a-c:/]{0,3}"), qa in proptest::option::of("[a=&]{0,3}"),
            b in proptest::array::uniform4("[a-c:/]{0,3}"), qb in proptest::option::of("[a=&]{0,3}"),
        ) {
            let ka = parts(&a, qa.as_deref()).to_key();
            let kb = parts(&b, qb.as_deref()).to_key();
            prop_assert_eq!(ka == kb, a == b && qa == qb);
        }

        #[test]
        fn a_key_gives_back_its_target(texts in proptest::array::uniform4("[a-z/]{0,6}"), query in proptest::option::of("[a-z=]{0,6}")) {
            let key = parts(&texts, query.as_deref()).to_key();
            prop_assert_eq!(
                target(key.bytes()),
                Some((texts[0].as_str(), texts[1].as_str(), query.as_deref()))
            );
        }
    }

    #[test]
    fn the_key_of_a_variant_begins_with_the_primary() {
        let texts = ["h".to_owned(), "/p".to_owned(), "r".to_owned(), "s".to_owned()];
        for query in [None, Some("q=1")] {
            let whole = parts(&texts, query).to_key();
            let names = [actix_http::header::ACCEPT_LANGUAGE];
            let variant = whole.variant(&names, 7, &HeaderMap::new());
            assert_eq!(primary(variant.bytes()), whole.bytes());
            assert_eq!(primary(whole.bytes()), whole.bytes());
        }
        assert_eq!(primary(b"none"), b"none");
    }

    #[test]
    fn a_named_query_is_sorted_and_leaves_the_rest_out() {
        let names = ["page".into(), "sort".into()];
        assert_eq!(
            named_query(Some("sort=up&utm=x&page=2"), &names).as_deref(),
            Some("page=2&sort=up")
        );
        assert_eq!(named_query(Some("page=2&page=1"), &names).as_deref(), Some("page=2&page=1"));
        assert_eq!(named_query(Some("pagex=1"), &names), None);
        assert_eq!(named_query(None, &names), None);
    }
}
