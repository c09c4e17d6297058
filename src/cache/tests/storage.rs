//! Entries and the map that holds them: nothing lost, nothing mixed up, everything counted.

use proptest::prelude::*;

use super::*;
use crate::cache::{
    entry::{self, Entry, hash_text, hash_url},
    key::Key,
    l1::{L1, Slot, Unshared},
    policy::{self, Decision, Lifetime},
};

fn lifetime() -> Lifetime {
    let response = fields(&[("cache-control", "max-age=100")]);
    let (request, now) = (HeaderMap::new(), Timestamp::now());
    let status = StatusCode::OK;
    match policy::decide(&Method::GET, &request, status, &response, now, now, &Rules::default()) {
        Decision::Store(lifetime) => lifetime,
        Decision::Refuse(refusal) => panic!("{refusal:?}"),
    }
}

fn key(path: &str) -> Key {
    Parts { host: "a.test", path, query: None, route: "r", scope: "" }.to_key()
}

fn pack(key: &Key, filled_at: u64, headers: &HeaderMap, tags: &[String], body: &[Bytes]) -> Entry {
    let parts = entry::Parts {
        key: key.borrow(),
        lifetime: lifetime(),
        filled_at,
        status: StatusCode::OK,
        headers,
        route: "r",
        tenant: "acme",
        tags,
        compressible: false,
    };
    Entry::pack(&parts, body)
}

fn store(l1: &L1, path: &str, filled_at: u64, length: usize) -> Arc<Entry> {
    let key = key(path);
    let body = [Bytes::from(vec![7; length])];
    let entry = Arc::new(pack(&key, filled_at, &HeaderMap::new(), &[], &body));
    l1.insert(key.borrow(), Slot::Entry(Arc::clone(&entry)));
    entry
}

fn lines(headers: &HeaderMap) -> Vec<(String, Vec<Vec<u8>>)> {
    let of = |name: &HeaderName| headers.get_all(name).map(|it| it.as_bytes().to_vec()).collect();
    let mut lines: Vec<_> = headers.keys().map(|name| (name.to_string(), of(name))).collect();
    lines.sort();
    lines
}

proptest! {
    #[test]
    fn what_is_packed_comes_back(
        lines_in in proptest::collection::vec(
            // Visible characters, white space inside, and what HTTP calls obs-text.
            ("x-[a-e]", proptest::collection::vec(prop_oneof![0x20u8..0x7f, 0x80u8..=0xff], 0..20)),
            0..12,
        ),
        tags in proptest::collection::vec("[a-z:]{0,8}", 0..5),
        chunks in proptest::collection::vec(proptest::collection::vec(any::<u8>(), 0..50), 0..5),
        path in "/[a-z]{0,30}",
    ) {
        let headers: HeaderMap = lines_in
            .iter()
            .map(|(name, value)| {
                let name = HeaderName::from_bytes(name.as_bytes()).unwrap();
                (name, HeaderValue::from_bytes(value).unwrap())
            })
            .collect();
        let chunks: Vec<Bytes> = chunks.into_iter().map(Bytes::from).collect();
        let key = key(&path);
        let entry = pack(&key, 3, &headers, &tags, &chunks);
        prop_assert_eq!(lines(&entry.header_map()), lines(&headers));
        prop_assert_eq!(entry.headers().count(), headers.len());
        prop_assert_eq!(entry.body(), chunks.concat());
        prop_assert_eq!(entry.body_length(), chunks.concat().len());
        prop_assert_eq!(entry.key(), key.bytes());
        let hashes: Vec<u64> = tags.iter().map(|tag| hash_text(tag)).collect();
        prop_assert_eq!(entry.tags().collect::<Vec<_>>(), hashes);
        prop_assert_eq!(entry.url, hash_url("a.test", &path, None));
        prop_assert_eq!((entry.route, entry.tenant), (hash_text("r"), hash_text("acme")));
        prop_assert_eq!(entry.checked(), (3, false));

        let copy = entry.with_gzip(Bytes::from_static(b"compressed"));
        prop_assert_eq!(lines(&copy.header_map()), lines(&headers));
        prop_assert_eq!((copy.body(), copy.filled_at), (entry.body(), 3));
        prop_assert_eq!(copy.weight(), entry.weight() + 10);
        prop_assert!(!copy.claim_compression() && entry.claim_compression());
    }
}

#[test]
fn responses_with_the_same_fields_share_their_names() {
    let names = |values: [&str; 8]| {
        let pairs: Vec<_> =
            ["a", "b", "c", "d", "e", "f", "g", "h"].into_iter().zip(values).collect();
        let entry = pack(&key("/"), 0, &fields(&pairs), &[], &[]);
        entry.headers().map(|(name, _)| std::ptr::from_ref(name)).collect::<Vec<_>>()
    };
    let first = names(["1"; 8]);
    for _ in 0..20 {
        assert_eq!(names(["2"; 8]), first, "a list of names of its own");
    }
}

#[test]
fn an_entry_weighs_everything_it_holds() {
    let base = pack(&key("/"), 0, &HeaderMap::new(), &[], &[]).weight();
    let weight = |path: &str, value: &str, tags: &[String], body: &'static [u8]| {
        let headers = fields(&[("x-value", value)]);
        pack(&key(path), 0, &headers, tags, &[Bytes::from_static(body)]).weight() - base
    };
    let empty = weight("/", "", &[], b"");
    assert_eq!(weight("/1234", "", &[], b"") - empty, 4);
    assert_eq!(weight("/", "1234567", &[], b"") - empty, 7);
    assert_eq!(weight("/", "", &["a".to_owned(), "b".to_owned()], b"") - empty, 16);
    assert_eq!(weight("/", "", &[], &[0; 1000]) - empty, 1000);
}

#[test]
fn an_older_fill_never_replaces_a_newer_one() {
    let l1 = L1::new(1 << 20, 1 << 16);
    let newer = store(&l1, "/", 5, 10);
    store(&l1, "/", 4, 10);
    let key = key("/");
    let found = |l1: &L1| match l1.find(key.borrow()) {
        Some(Slot::Entry(entry)) => entry,
        other => panic!("{other:?}"),
    };
    assert!(Arc::ptr_eq(&found(&l1), &newer));
    let mark = Arc::new(Unshared::new(key.clone(), Timestamp(u64::MAX), 4, true));
    l1.insert(key.borrow(), Slot::Unshared(mark));
    assert!(Arc::ptr_eq(&found(&l1), &newer));
    let same = store(&l1, "/", 5, 10);
    assert!(Arc::ptr_eq(&found(&l1), &same));
    let copy = Arc::new(same.with_gzip(Bytes::from_static(b"gz")));
    l1.exchange(key.borrow(), &newer, Arc::clone(&copy));
    assert!(Arc::ptr_eq(&found(&l1), &same), "only in place of what it was made from");
    l1.exchange(key.borrow(), &same, Arc::clone(&copy));
    assert!(Arc::ptr_eq(&found(&l1), &copy));
}

#[test]
fn memory_stays_bounded_whatever_is_stored() {
    let mut dice = Dice(1);
    for max_bytes in [64 << 10, 1 << 20] {
        let l1 = L1::new(max_bytes, 8 << 10);
        for _ in 0..20_000 {
            let path = format!("/{}", dice.roll(3000));
            let entry = store(&l1, &path, dice.roll(3), dice.roll(9000) as usize);
            if dice.chance(20) {
                let copy = Arc::new(entry.with_gzip(Bytes::from(vec![1; 500])));
                l1.exchange(key(&path).borrow(), &entry, copy);
            }
            let usage = l1.usage();
            assert!(usage.bytes <= usage.max_bytes, "{usage:?}");
        }
        let held = std::cell::Cell::new(0);
        l1.sweep(|slot| {
            held.set(held.get() + slot.weight());
            true
        });
        assert_eq!(held.get(), l1.usage().bytes, "what is counted is what is there");
        l1.sweep(|_| false);
        assert_eq!((l1.usage().entries, l1.usage().bytes), (0, 0));
    }
}

#[test]
fn what_is_asked_for_again_and_again_survives_a_scan() {
    let l1 = L1::new(1 << 20, 8 << 10);
    let hot: Vec<String> = (0..200).map(|number| format!("/hot/{number}")).collect();
    for path in &hot {
        store(&l1, path, 0, 1000);
    }
    let reached = || hot.iter().filter(|path| l1.find(key(path).borrow()).is_some()).count();
    for _ in 0..3 {
        reached();
    }
    // Ten times what fits, each asked for once.
    for number in 0..8000 {
        store(&l1, &format!("/scan/{number}"), 0, 1000);
    }
    assert!(reached() >= 180, "{} of 200 survived", reached());
}

#[test]
fn hashes_that_are_stored_stay_what_they_are() {
    let hashes = [hash_text("product:42"), hash_url("a.test", "/p", None)];
    assert_eq!(hashes.map(|it| format!("{it:016x}")), ["a6e5c08661dd95a9", "a7de6516b8e9631d"]);
    assert_eq!(hash_text(""), 0);
    assert_ne!(hash_url("a.test", "/p", None), hash_url("a.test", "/p", Some("")));
    assert_ne!(hash_url("a.test", "/pq", None), hash_url("a.test", "/p", Some("q")));
    let name: String =
        key("/p").borrow().digest().iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(name, "6ef928d11e85bdd52ebd44276be36cfaa09cf6690c28ff27");
}
