//! Entries as bytes and back: nothing lost, and nothing read that was not written.

use proptest::prelude::*;

use super::*;
use crate::cache::{
    entry::{self, Entry, hash_text},
    key::{Key, KeyRef},
    l2::codec::{Stored, decode, encode_entry, encode_variants, stamp},
    policy::Lifetime,
};

const MAX: u64 = 8 << 20;

fn key(path: &str) -> Key {
    Parts { host: "a.test", path, query: None, route: "r", scope: "" }.to_key()
}

/// What a test says of an entry; the rest follows.
struct Given<'a> {
    headers: &'a HeaderMap,
    tags: &'a [String],
    body: &'a [u8],
    born: i64,
    flags: u8,
    status: u16,
    compressible: bool,
}

fn pack(given: &Given<'_>) -> Entry {
    let windows = [100, 0, 70_000, u32::MAX];
    let key = key("/p");
    let parts = entry::Parts {
        key: key.borrow(),
        lifetime: Lifetime::from_parts(given.born, windows, given.flags).unwrap(),
        filled_at: 1_800_000_000_000_000,
        status: StatusCode::from_u16(given.status).unwrap(),
        headers: given.headers,
        route: "r",
        tenant: "acme",
        tags: given.tags,
        compressible: given.compressible,
    };
    Entry::pack(&parts, &[Bytes::copy_from_slice(given.body)])
}

fn packed(headers: &HeaderMap, tags: &[&str], body: &[u8], compressible: bool) -> Entry {
    let tags: Vec<_> = tags.iter().map(|&tag| tag.to_owned()).collect();
    let born = 1_799_999_999_000;
    pack(&Given { headers, tags: &tags, body, born, flags: 0, status: 200, compressible })
}

fn read(bytes: &[u8]) -> Option<Stored> {
    decode(bytes, key("/p").borrow(), "r", "acme", 0, MAX)
}

fn entry_in(bytes: &[u8]) -> Entry {
    match read(bytes) {
        Some(Stored::Entry(entry)) => entry,
        other => panic!("{other:?}"),
    }
}

fn lines(entry: &Entry) -> Vec<(String, Vec<u8>)> {
    entry.headers().map(|(name, it)| (name.to_string(), it.as_bytes().to_vec())).collect()
}

/// Bytes that nothing compresses.
fn noise(length: usize) -> Vec<u8> {
    let mut dice = Dice(1);
    std::iter::repeat_with(|| dice.roll(256) as u8).take(length).collect()
}

/// The bytes under a checksum that fits them, as only somebody who means it would write them.
fn resealed(mut bytes: Vec<u8>, key: KeyRef<'_>) -> Vec<u8> {
    if bytes.len() >= 16 {
        let under = if bytes[3] == 0 { key.bytes() } else { &[] };
        let sum = crc32fast::hash(&[&bytes[..12], &bytes[16..], under].concat());
        bytes[12..16].copy_from_slice(&sum.to_be_bytes());
    }
    bytes
}

fn a_field() -> impl Strategy<Value = (String, Vec<u8>)> {
    let name = prop_oneof!["x-[a-e]", "[a-z0-9!#$%&'*+.^_`|~-]{1,150}", Just("etag".to_owned())];
    // Visible characters, white space inside, and what HTTP calls obs-text.
    let byte = prop_oneof![Just(b'\t'), 0x20u8..0x7f, 0x80u8..=0xff];
    (name, proptest::collection::vec(byte, 0..300))
}

fn a_body() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        2 => proptest::collection::vec(any::<u8>(), 0..2000),
        2 => (0..40_000usize).prop_map(|length| b"around and ".repeat(length / 11 + 1)),
        1 => (1020..70_000usize).prop_map(noise),
    ]
}

proptest! {
    #[test]
    fn what_is_written_is_read(
        fields in proptest::collection::vec(a_field(), 0..20),
        tags in proptest::collection::vec("[a-z:]{0,8}", 0..200),
        body in a_body(),
        (status, flags) in (100..1000u16, 0..8u8),
        (born, skew) in (any::<i64>(), -100_000..100_000i64),
        compressible in any::<bool>(),
    ) {
        let mut headers = HeaderMap::new();
        for (name, value) in &fields {
            let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
            headers.append(name, HeaderValue::from_bytes(value).unwrap());
        }
        let born = born / 4;
        let (tags, body) = (&tags, &body);
        let entry =
            pack(&Given { headers: &headers, tags, body, born, flags, status, compressible });
        let bytes = encode_entry(&entry, skew);
        let key = key("/p");
        let Some(Stored::Entry(read)) = decode(&bytes, key.borrow(), "r", "acme", -skew, MAX)
        else { panic!("not read") };
        prop_assert_eq!(lines(&read), lines(&entry));
        prop_assert_eq!(read.body(), entry.body());
        prop_assert_eq!(read.tags().collect::<Vec<_>>(), entry.tags().collect::<Vec<_>>());
        prop_assert_eq!((read.key(), read.filled_at), (entry.key(), entry.filled_at));
        prop_assert_eq!((read.url, read.route, read.tenant), (entry.url, entry.route, entry.tenant));
        prop_assert_eq!((read.status(), read.compressible), (entry.status(), entry.compressible));
        let (_, windows, flags) = entry.lifetime.to_parts();
        prop_assert_eq!(read.lifetime.to_parts(), (born - 2 * skew, windows, flags));
        prop_assert_eq!(read.checked(), (entry.filled_at, false));
        prop_assert!(read.gzip().is_none() && read.claim_compression());
    }

    #[test]
    fn names_that_responses_vary_on_are_read(
        names in proptest::collection::vec("[a-z0-9-]{1,150}|accept|cookie", 0..64),
        filled_at in 0..1u64 << 62,
    ) {
        let names: Vec<HeaderName> = names.iter().map(|name| name.parse().unwrap()).collect();
        let bytes = encode_variants(&names, filled_at);
        let Some(Stored::Variants { names: read, filled_at: at }) = read(&bytes)
        else { panic!("not read") };
        prop_assert_eq!((read, at), (names, filled_at));
    }

    /// Whoever can write to Redis can also make the checksum fit.
    #[test]
    fn bytes_made_to_mislead_are_read_or_refused_within_bounds(
        kind in 0..3u8,
        rest in proptest::collection::vec(prop_oneof![0..8u8, any::<u8>()], 0..100),
        edits in proptest::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
        cut in any::<prop::sample::Index>(),
    ) {
        let key = key("/p");
        let mut made = b"PW\x01".to_vec();
        made.push(kind);
        made.extend_from_slice(&[0; 12]);
        made.extend_from_slice(&rest);
        let mut edited = sample();
        for (at, byte) in edits {
            *at.get_mut(&mut edited[..]) = byte;
        }
        let cut = cut.index(edited.len());
        for bytes in [made, edited[..cut].to_vec(), edited] {
            if let Some(Stored::Entry(entry)) = read(&resealed(bytes, key.borrow())) {
                prop_assert!(entry.body_length() as u64 <= MAX);
            }
        }
    }
}

/// A response with a bit of everything, its body in zstd.
fn sample() -> Vec<u8> {
    let headers = fields(&[("content-type", "text/plain"), ("x-own", "1"), ("etag", "\"a\"")]);
    encode_entry(&packed(&headers, &["product:42", "all"], &[b'x'; 2000], true), 1000)
}

#[test]
fn version_1_stays_as_it_is() {
    let hex = |bytes: &[u8]| bytes.iter().map(|it| format!("{it:02x}")).collect::<String>();
    let headers = fields(&[("content-type", "text/plain"), ("x-own", "1"), ("etag", "\"a\"")]);
    let plain = encode_entry(&packed(&headers, &["product:42", "all"], b"hello", true), 1000);
    assert_eq!(
        hex(&plain),
        "505701000006651728988000b565e98e000001a3185c483000016400f0a204ffffffff0fc80102a6e5c08661dd\
         95a9860fbb670c74648203270a746578742f706c61696e2f032261220a782d6f776e013168656c6c6f",
    );
    let variants = [HeaderName::from_static("accept-language"), HeaderName::from_static("x-dev")];
    assert_eq!(
        hex(&encode_variants(&variants, 7)),
        "5057010100000000000000078df26f1f02650a782d646576"
    );
    // What the compressor makes of a body may change, how it is read may not.
    let framed = "5057010000066517289880000a6a1761000001a3185c483000036400f0a204ffffffff0fc80102a6e5c0\
        8661dd95a9860fbb670c74648203270a746578742f706c61696e2f032261220a782d6f776e0131d00f28\
        b52ffd60d0064d00001078780100cbff000b";
    let byte = |at| u8::from_str_radix(&framed[at..at + 2], 16).unwrap();
    let bytes: Vec<u8> = (0..framed.len()).step_by(2).map(byte).collect();
    assert_eq!(entry_in(&bytes).body(), [b'x'; 2000].as_slice());
}

#[test]
fn no_name_in_the_table_has_another_number_than_it_had() {
    let (mut names, mut numbers) = (Vec::new(), Vec::new());
    for number in 0..56u8 {
        let bytes = resealed(
            [b"PW\x01\x01", &[0; 12][..], &[1, number << 1 | 1]].concat(),
            key("/").borrow(),
        );
        let Some(Stored::Variants { names: read, .. }) = read(&bytes) else { panic!("{number}") };
        assert_eq!(encode_variants(&read, 0), bytes);
        names.extend(read);
        numbers.push(number);
    }
    let text: Vec<_> = names.iter().map(HeaderName::as_str).collect();
    assert_eq!(format!("{:016x}", hash_text(&text.join(","))), "e42ff6677c509210");
}

#[test]
fn a_body_of_the_largest_size_comes_back_and_a_larger_one_is_not_made() {
    let text = b"all work and no play ".repeat(MAX as usize / 21 + 1);
    for plain in [noise(MAX as usize), text[..MAX as usize].to_vec(), vec![0; MAX as usize]] {
        for compressible in [true, false] {
            let bytes = encode_entry(&packed(&HeaderMap::new(), &[], &plain, compressible), 0);
            assert!(entry_in(&bytes).body() == plain);
            let smaller = decode(&bytes, key("/p").borrow(), "r", "acme", 0, MAX - 1);
            assert!(smaller.is_none());
        }
    }
}

#[test]
fn only_what_shrinks_is_compressed() {
    let json = br#"{"id":1234,"name":"a thing","price":1234}"#.repeat(100);
    let length = |headers: &[(&str, &str)], body: &[u8], compressible| {
        encode_entry(&packed(&fields(headers), &[], body, compressible), 0).len()
    };
    assert!(length(&[], &json, true) < json.len() / 10);
    assert!(length(&[], &json, false) < json.len() / 10, "whatever its type is");
    let short = length(&[], &json[..1024], true);
    assert!(short > 1024, "as it is");
    assert!(length(&[("content-encoding", "br")], &json, true) > json.len(), "as it is");
    for size in [2000, 100_000] {
        assert!((size..size + 100).contains(&length(&[], &noise(size), true)));
    }
}

#[test]
fn no_changed_byte_goes_unnoticed() {
    let bytes = sample();
    assert!(read(&bytes).is_some());
    for at in 0..bytes.len() {
        for change in 1..=255 {
            let mut changed = bytes.clone();
            changed[at] ^= change;
            assert!(read(&changed).is_none(), "byte {at} as {:#x}", changed[at]);
        }
        assert!(read(&bytes[..at]).is_none(), "cut at {at}");
        assert!(read(&bytes[at + 1..]).is_none(), "from {at}");
    }
    assert!(read(&[&bytes[..], b"x"].concat()).is_none());
}

#[test]
fn what_another_version_or_another_key_wrote_is_refused() {
    let (bytes, own, other) = (sample(), key("/p"), key("/q"));
    for (at, value) in [(0, b'Q'), (2, 0), (2, 2), (3, 2), (4, 0x40), (24, 8), (25, 4 | 3)] {
        let mut changed = bytes.clone();
        changed[at] = value;
        assert!(read(&resealed(changed, own.borrow())).is_none(), "{value} at {at}");
    }
    assert!(decode(&bytes, other.borrow(), "r", "acme", 0, MAX).is_none());
    // The reader's word counts for what the bytes leave out.
    let Some(Stored::Entry(entry)) = decode(&bytes, own.borrow(), "r2", "", 0, MAX) else {
        panic!("not read")
    };
    assert_eq!((entry.route, entry.tenant), (hash_text("r2"), 0));
}

#[test]
fn a_stamp_begins_with_the_generation_and_tells_fills_apart() {
    let values = [b"one".as_slice(), b"two", b"one"]
        .map(|body| encode_entry(&packed(&HeaderMap::new(), &[], body, false), 0));
    let stamps = values.each_ref().map(|value| stamp(value));
    assert_eq!((stamps[0].len(), stamps[0]), (16, stamps[2]));
    assert_eq!(stamps[0][4..12], 1_800_000_000_000_000u64.to_be_bytes());
    assert_ne!(stamps[0], stamps[1]);
    assert_eq!(stamp(&encode_variants(&[], 1 << 50))[4..12], (1u64 << 50).to_be_bytes());
    assert_eq!(stamp(b"short"), b"short");
}

#[test]
fn a_small_response_costs_little_more_than_its_body() {
    let headers = fields(&[
        ("cache-control", "public, max-age=60, stale-while-revalidate=30"),
        ("content-type", "application/json; charset=utf-8"),
        ("date", "Sun, 22 Nov 2026 12:00:00 GMT"),
        ("etag", "\"5f3a9c1e7b20\""),
        ("last-modified", "Sun, 22 Nov 2026 11:00:00 GMT"),
        ("server", "nginx"),
        ("vary", "accept-encoding"),
        ("x-request-id", "5b0f2c1a-8f7e-4d2b-9f10-3c5d7e9a1b2c"),
    ]);
    let values: usize = headers.iter().map(|(_, value)| value.len()).sum();
    let tags = ["product:42", "category:7", "shop", "all"];
    let bytes = encode_entry(&packed(&headers, &tags, &noise(1024), true), 0);
    let overhead = bytes.len() - 1024 - values;
    assert!(overhead <= 92, "{overhead} bytes besides {values} of header values");
    // Redis allocates 1280 bytes for the bare body and its own few, and 1536 for the next size: a
    // fifth more.
    assert!(bytes.len() <= 1530, "{}", bytes.len());
}
