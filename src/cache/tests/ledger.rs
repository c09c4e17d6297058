//! The purge ledger against a reference that forgets nothing.

use proptest::prelude::*;

use super::*;
use crate::cache::{
    entry::{self, Entry},
    policy::{self, Decision},
    purge::{Ledger, Mode, Selector, Verdict, glob_matches},
};

/// The obvious way to say what a glob matches.
fn naive(glob: &[u8], text: &[u8]) -> bool {
    match glob.split_first() {
        None => text.is_empty(),
        Some((b'*', rest)) => (0..=text.len()).any(|at| naive(rest, &text[at..])),
        Some((&c, rest)) => {
            text.split_first().is_some_and(|(&t, text)| (c == b'?' || c == t) && naive(rest, text))
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(5000))]
    #[test]
    fn a_glob_matches_what_the_definition_says(glob in "[ab*?/]{0,8}", text in "[ab/]{0,8}") {
        let expected = naive(glob.as_bytes(), text.as_bytes());
        prop_assert_eq!(glob_matches(glob.as_bytes(), text.as_bytes()), expected);
    }
}

#[test]
fn a_hostile_glob_takes_no_longer_than_its_length_times_the_texts() {
    let text = "a".repeat(8000);
    let started = std::time::Instant::now();
    for glob in ["*a".repeat(2000) + "b", "*".repeat(8000) + "b", format!("*{}b", "a".repeat(4000))]
    {
        assert!(!glob_matches(glob.as_bytes(), text.as_bytes()));
    }
    assert!(started.elapsed() < Duration::from_secs(2), "{:?}", started.elapsed());
}

fn entry(path: &str, filled_at: u64, tag: &str) -> Arc<Entry> {
    let headers = fields(&[("cache-control", "max-age=100")]);
    let (none, now, rules) = (HeaderMap::new(), Timestamp::now(), Rules::default());
    let decision = policy::decide(&Method::GET, &none, StatusCode::OK, &headers, now, now, &rules);
    let Decision::Store(lifetime) = decision else { panic!("{decision:?}") };
    let key = Parts { host: "a.test", path, query: None, route: "r", scope: "" }.to_key();
    let parts = entry::Parts {
        key: key.borrow(),
        lifetime,
        filled_at,
        status: StatusCode::OK,
        headers: &headers,
        route: "r",
        tenant: "",
        tags: &[tag.to_owned()],
        compressible: false,
    };
    Arc::new(Entry::pack(&parts, &[]))
}

const PATHS: [&str; 4] = ["/a/1", "/a/2", "/b/1", "/b/2"];

fn selector(kind: u8, which: usize) -> Selector {
    let host = None;
    match kind % 7 {
        0 => {
            Selector::Url { host: "a.test".to_owned(), path: PATHS[which].to_owned(), query: None }
        }
        1 => Selector::Tag(PATHS[which].to_owned()),
        2 => Selector::Prefix { host, path: PATHS[which][..2].to_owned() },
        3 => Selector::Pattern { host, glob: format!("*{}", &PATHS[which][2..]) },
        4 => Selector::Route("r".to_owned()),
        5 => Selector::Tenant("another".to_owned()),
        _ => Selector::All,
    }
}

fn names(selector: &Selector, path: &str) -> bool {
    match selector {
        Selector::Url { path: it, .. } | Selector::Tag(it) => it == path,
        Selector::Prefix { path: it, .. } => path.starts_with(it),
        Selector::Pattern { glob, .. } => path.ends_with(&glob[1..]),
        Selector::Route(_) | Selector::All => true,
        Selector::Tenant(_) => false,
    }
}

#[derive(Debug, Clone)]
enum Step {
    Begin(usize),
    /// Ends the oldest fill under way, so that its entry is stored.
    Store,
    Purge(u8, usize, bool),
    Check(usize),
    Sweep,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..4usize).prop_map(Step::Begin),
        3 => Just(Step::Store),
        3 => (any::<u8>(), 0..4usize, any::<bool>()).prop_map(|(k, w, s)| Step::Purge(k, w, s)),
        2 => (0..40usize).prop_map(Step::Check),
        2 => Just(Step::Sweep),
    ]
}

/// A stored entry and what has been purged since its fill began.
struct Stored {
    entry: Arc<Entry>,
    path: usize,
    began: usize,
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn forgetting_resurrects_nothing(steps in proptest::collection::vec(step(), 0..60)) {
        let ledger = Arc::new(Ledger::default());
        let mut purges: Vec<(Selector, Mode)> = Vec::new();
        let mut filling = std::collections::VecDeque::new();
        let mut stored: Vec<Stored> = Vec::new();
        let expected = |it: &Stored, purges: &[(Selector, Mode)]| {
            let named: Vec<_> = purges[it.began..]
                .iter()
                .filter(|(selector, _)| names(selector, PATHS[it.path]))
                .map(|(_, mode)| *mode)
                .collect();
            if named.contains(&Mode::Hard) {
                Verdict::Dead
            } else if named.contains(&Mode::Soft) {
                Verdict::SoftlyPurged
            } else {
                Verdict::Live
            }
        };
        for step in steps {
            match step {
                Step::Begin(path) => filling.push_back((ledger.begin(), path, purges.len())),
                Step::Store => {
                    if let Some((fill, path, began)) = filling.pop_front() {
                        let entry = entry(PATHS[path], fill.began_at(), PATHS[path]);
                        stored.push(Stored { entry, path, began });
                    }
                }
                Step::Purge(kind, which, soft) => {
                    let mode = if soft { Mode::Soft } else { Mode::Hard };
                    let selector = selector(kind, which);
                    ledger.purge(std::slice::from_ref(&selector), mode);
                    purges.push((selector, mode));
                }
                Step::Check(at) => {
                    if let Some(it) = stored.get(at) {
                        prop_assert_eq!(ledger.check(&it.entry), expected(it, &purges));
                    }
                }
                Step::Sweep => {
                    let mark = ledger.mark();
                    stored.retain(|it| ledger.check(&it.entry) != Verdict::Dead);
                    ledger.forget(mark);
                    if filling.is_empty() {
                        prop_assert_eq!(ledger.notes(), 0);
                    }
                }
            }
        }
        for it in &stored {
            prop_assert_eq!(ledger.check(&it.entry), expected(it, &purges));
        }
    }
}

#[test]
fn too_many_rules_become_a_purge_of_everything() {
    let ledger = Arc::new(Ledger::default());
    let stored = entry("/elsewhere", ledger.begin().began_at(), "t");
    let rule = |number: usize| Selector::Prefix { host: None, path: format!("/{number}/") };
    for number in 0..1024 {
        ledger.purge(&[rule(number)], Mode::Soft);
        ledger.purge(&[rule(number)], Mode::Soft);
    }
    assert_eq!((ledger.check(&stored), ledger.notes()), (Verdict::Live, 1024));
    ledger.purge(&[rule(1024)], Mode::Soft);
    assert_eq!((ledger.check(&stored), ledger.notes()), (Verdict::Dead, 0));
    let later = entry("/elsewhere", ledger.begin().began_at(), "t");
    assert_eq!(ledger.check(&later), Verdict::Live);
}

#[test]
fn a_fill_under_way_keeps_the_notes_it_will_need() {
    let ledger = Arc::new(Ledger::default());
    let tag = |name: &str| [Selector::Tag(name.to_owned())];
    ledger.purge(&tag("before"), Mode::Hard);
    let fill = ledger.begin();
    ledger.purge(&tag("t"), Mode::Hard);
    ledger.forget(ledger.mark());
    assert_eq!(ledger.notes(), 1, "the older one is forgotten, the younger is not");
    assert_eq!(ledger.check(&entry("/", fill.began_at(), "t")), Verdict::Dead);
    drop(fill);
    ledger.forget(ledger.mark());
    assert_eq!(ledger.notes(), 0);
}

#[test]
fn an_entry_that_somebody_held_over_a_sweep_is_not_resurrected() {
    let ledger = Arc::new(Ledger::default());
    let held = entry("/a", 0, "t");
    ledger.purge(&[Selector::Tag("t".to_owned())], Mode::Hard);
    // The sweep throws it out of the store, and then the note is gone.
    let mark = ledger.mark();
    ledger.forget(mark);
    assert_eq!(ledger.check(&held), Verdict::Dead);
    // What was filled since is judged as ever.
    assert_eq!(ledger.check(&entry("/a", mark, "t")), Verdict::Live);
}
