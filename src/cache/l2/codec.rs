//! The bytes of one stored response in Redis: compact, versioned, never misread.
//!
//! Instances of different versions share one Redis, values are cut short by whoever edits them by
//! hand, and a failing disk turns bits. So whatever is not exactly what this version writes is no
//! stored response, which makes it a miss; there is no second guess. Nothing is allocated that the
//! bytes do not justify.
//!
//! | offset | bytes | |
//! |---|---|---|
//! | 0 | 2 | `PW` |
//! | 2 | 1 | version of this layout: 1 |
//! | 3 | 1 | kind: 0 an entry, 1 what the responses vary on |
//! | 4 | 8 | the purge generation at which the fill began, big-endian |
//! | 12 | 4 | CRC-32 of all other bytes, and, of an entry, its primary key after them; big-endian |
//! | 16 | | the rest, by kind |
//!
//! The first sixteen bytes are the [`stamp`]. A script reads the generation from it with
//! `struct.unpack('>I8', value, 5)`. Two fills that began at one generation have different stamps
//! all the same: the checksum tells them apart.
//!
//! The rest of an entry, where a number is LEB128 unless it says otherwise:
//!
//! | bytes | |
//! |---|---|
//! | 8 | when its age was zero, in milliseconds since the epoch by Redis's clock; signed, big-endian |
//! | 1 | flags of its lifetime |
//! | 1 | 1: compressed copies make sense; 2: the body is in zstd |
//! | numbers | seconds it is fresh, and stale while revalidating, on errors, and while unreachable |
//! | number | status |
//! | number, 8 each | tags, by their hashes, big-endian |
//! | number, then name, number, bytes each | header fields: names as below, values after their length |
//! | number | only in zstd: bytes of the plain body |
//! | to the end | the body |
//!
//! What responses vary on is a number and so many names. A name is a number *n* and, if *n* is even,
//! *n*/2 bytes; if it is odd, it is the name at (*n* − 1)/2 in the table of `codec/fields.rs`.
//!
//! The reader knows what it asked for. So neither the key is stored, nor route and tenant, and the
//! copy in gzip, which anybody can make again, is not stored either.

mod body;
mod fields;

use actix_http::{
    StatusCode,
    header::{CONTENT_ENCODING, HeaderMap, HeaderName, HeaderValue},
};

use self::fields::{Reader, write_name, write_number};
use super::super::{
    entry::{self, Entry},
    key::{self, KeyRef},
    policy::Lifetime,
    purge::LAST_GENERATION,
};

const MAGIC: &[u8] = b"PW";
const VERSION: u8 = 1;

/// Where the generation is.
pub const FILLED_AT: usize = 4;

const ENTRY: u8 = 0;
const VARIANTS: u8 = 1;

/// Where the checksum is.
const CHECKSUM: usize = 12;
/// Where the rest begins.
const STAMP: usize = 16;

const COMPRESSIBLE: u8 = 1;
const ZSTD: u8 = 1 << 1;

/// More header fields than this are not read: one takes more memory than the two bytes it may be.
const MAX_FIELDS: usize = 1024;

/// What a value in Redis is.
#[derive(Debug)]
pub enum Stored {
    Entry(Entry),
    /// Responses vary: look again, under the key that the values of these request headers make.
    Variants {
        names: Vec<HeaderName>,
        filled_at: u64,
    },
}

/// The bytes of an entry. `skew` is how many milliseconds this instance's clock is ahead of Redis's.
pub fn encode_entry(entry: &Entry, skew: i64) -> Vec<u8> {
    let body = entry.body();
    let encoded = entry.headers().any(|(name, _)| name == CONTENT_ENCODING);
    let frame = if encoded { None } else { body::compress(&body, entry.compressible) };
    let (born, windows, lifetime_flags) = entry.lifetime.to_parts();
    let mut out = start(ENTRY, entry.filled_at);
    out.extend_from_slice(&born.saturating_sub(skew).to_be_bytes());
    out.push(lifetime_flags);
    let mut flags = if entry.compressible { COMPRESSIBLE } else { 0 };
    if frame.is_some() {
        flags |= ZSTD;
    }
    out.push(flags);
    for seconds in windows {
        write_number(&mut out, seconds as usize);
    }
    write_number(&mut out, entry.status().as_u16().into());
    write_number(&mut out, entry.tags().count());
    entry.tags().for_each(|tag| out.extend_from_slice(&tag.to_be_bytes()));
    write_number(&mut out, entry.headers().count());
    for (name, value) in entry.headers() {
        write_name(&mut out, name);
        write_number(&mut out, value.len());
        out.extend_from_slice(value.as_bytes());
    }
    let length = frame.as_ref().map_or(body.len(), Vec::len);
    out.reserve_exact(length + 10);
    match &frame {
        Some(frame) => {
            write_number(&mut out, body.len());
            out.extend_from_slice(frame);
        }
        None => out.extend_from_slice(&body),
    }
    sealed(out, entry.key())
}

/// The bytes of what the responses for a key vary on.
pub fn encode_variants(names: &[HeaderName], filled_at: u64) -> Vec<u8> {
    let mut out = start(VARIANTS, filled_at);
    write_number(&mut out, names.len());
    names.iter().for_each(|name| write_name(&mut out, name));
    sealed(out, &[])
}

/// What `bytes`, found under `key`, are; `None` if this version did not write them for that key, or
/// if the body is larger than `max_object_bytes`.
///
/// `route` and `tenant` are those of the request; `skew` is as for [`encode_entry`].
pub fn decode(
    bytes: &[u8],
    key: KeyRef<'_>,
    route: &str,
    tenant: &str,
    skew: i64,
    max_object_bytes: u64,
) -> Option<Stored> {
    let (stamp, rest) = bytes.split_at_checked(STAMP)?;
    let mut head = Reader::new(stamp);
    if head.take(MAGIC.len())? != MAGIC || head.byte()? != VERSION {
        return None;
    }
    let kind = head.byte()?;
    let filled_at = u64::from_be_bytes(head.array()?);
    let sum = u32::from_be_bytes(head.array()?);
    let under: &[u8] = if kind == ENTRY { key.bytes() } else { &[] };
    if sum != checksum(bytes, under) || filled_at > LAST_GENERATION {
        return None;
    }
    let mut rest = Reader::new(rest);
    match kind {
        ENTRY => {
            let asked = Asked { key, route, tenant, filled_at, skew, max_object_bytes };
            asked.entry(rest).map(Stored::Entry)
        }
        VARIANTS => {
            let count = rest.count(1).filter(|&count| count <= MAX_FIELDS)?;
            let names = (0..count).map(|_| rest.name()).collect::<Option<_>>()?;
            rest.rest().is_empty().then_some(Stored::Variants { names, filled_at })
        }
        _ => None,
    }
}

/// What tells this value from any other, and when it was filled: its first bytes.
pub fn stamp(bytes: &[u8]) -> &[u8] {
    bytes.get(..STAMP).unwrap_or(bytes)
}

/// What the reader of an entry knows besides its bytes.
struct Asked<'a> {
    key: KeyRef<'a>,
    route: &'a str,
    tenant: &'a str,
    filled_at: u64,
    skew: i64,
    max_object_bytes: u64,
}

impl Asked<'_> {
    fn entry(&self, mut rest: Reader<'_>) -> Option<Entry> {
        let born = i64::from_be_bytes(rest.array()?).saturating_add(self.skew);
        let (lifetime_flags, flags) = (rest.byte()?, rest.byte()?);
        if flags & !(COMPRESSIBLE | ZSTD) != 0 {
            return None;
        }
        let mut windows = [0; 4];
        for seconds in &mut windows {
            *seconds = u32::try_from(rest.number()?).ok()?;
        }
        let lifetime = Lifetime::from_parts(born, windows, lifetime_flags)?;
        let status = StatusCode::from_u16(u16::try_from(rest.number()?).ok()?).ok()?;
        let count = rest.count(8)?;
        let tags = rest.take(count * 8)?.as_chunks().0;
        let headers = headers(&mut rest)?;
        let fits = |length: usize| length as u64 <= self.max_object_bytes;
        let plain;
        let body = if flags & ZSTD == 0 {
            Some(rest.rest()).filter(|body| fits(body.len()))?
        } else {
            let length = rest.number().filter(|&length| fits(length))?;
            plain = body::decompress(rest.rest(), length)?;
            &plain
        };
        let parts = entry::Parts {
            key: self.key,
            lifetime,
            filled_at: self.filled_at,
            status,
            headers: &headers,
            route: self.route,
            tenant: self.tenant,
            tags: &[],
            compressible: flags & COMPRESSIBLE != 0,
        };
        Some(Entry::restore(&parts, tags.iter().map(|tag| u64::from_be_bytes(*tag)), body))
    }
}

fn headers(rest: &mut Reader<'_>) -> Option<HeaderMap> {
    let count = rest.count(2).filter(|&count| count <= MAX_FIELDS)?;
    let mut headers = HeaderMap::with_capacity(count);
    for _ in 0..count {
        let name = rest.name()?;
        let length = rest.number()?;
        headers.append(name, HeaderValue::from_bytes(rest.take(length)?).ok()?);
    }
    Some(headers)
}

fn start(kind: u8, filled_at: u64) -> Vec<u8> {
    let mut out = Vec::with_capacity(512);
    out.extend_from_slice(MAGIC);
    out.extend_from_slice(&[VERSION, kind]);
    out.extend_from_slice(&filled_at.to_be_bytes());
    out.extend_from_slice(&[0; STAMP - CHECKSUM]);
    out
}

fn sealed(mut out: Vec<u8>, key: &[u8]) -> Vec<u8> {
    let sum = checksum(&out, key);
    out[CHECKSUM..STAMP].copy_from_slice(&sum.to_be_bytes());
    out
}

/// Of `bytes`, a stamp at least, without the checksum itself.
fn checksum(bytes: &[u8], key: &[u8]) -> u32 {
    let mut sum = crc32fast::Hasher::new();
    sum.update(&bytes[..CHECKSUM]);
    sum.update(&bytes[STAMP..]);
    sum.update(key::primary(key));
    sum.finalize()
}
