//! The purge ledger against a list of all purges.

use proptest::prelude::*;

use super::*;
use crate::cache::{
    entry::{self, Entry},
    policy::{self, Decision},
    purge::{Expected, Ledger, Limits, Mode, Selector, Verdict, glob_matches},
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
    match kind % 8 {
        0 => {
            Selector::Url { host: "a.test".to_owned(), path: PATHS[which].to_owned(), query: None }
        }
        1 => Selector::Tag(PATHS[which].to_owned()),
        2 => Selector::Prefix { host, path: PATHS[which][..2].to_owned() },
        3 => Selector::Pattern { host, glob: format!("*{}", &PATHS[which][2..]) },
        4 => Selector::Route("r".to_owned()),
        5 => Selector::Tenant("another".to_owned()),
        6 => Selector::Data(PATHS[which].to_owned()),
        _ => Selector::All,
    }
}

fn names(selector: &Selector, path: &str) -> bool {
    match selector {
        Selector::Url { path: it, .. } | Selector::Tag(it) => it == path,
        Selector::Prefix { path: it, .. } => path.starts_with(it),
        Selector::Pattern { glob, .. } => path.ends_with(&glob[1..]),
        Selector::Route(_) | Selector::All => true,
        Selector::Tenant(_) | Selector::Data(_) => false,
    }
}

/// A purge as the obvious model has it: under its number, in a list that only grows.
struct Purge {
    generation: u64,
    selector: Selector,
    mode: Mode,
}

/// What the list says of a response for `path` filled at `filled_at`.
fn expected(purges: &[Purge], path: &str, filled_at: u64) -> Verdict {
    let concerns = |it: &&Purge| it.generation > filled_at && names(&it.selector, path);
    let modes: Vec<_> = purges.iter().filter(concerns).map(|it| it.mode).collect();
    if modes.contains(&Mode::Hard) {
        Verdict::Dead
    } else if modes.contains(&Mode::Soft) {
        Verdict::SoftlyPurged
    } else {
        Verdict::Live
    }
}

#[derive(Debug, Clone)]
enum Step {
    /// A response for a path, filled at the present, or so many generations before or after it.
    Fill(usize, i64),
    Purge(u8, usize, bool),
    /// A purge from elsewhere, numbered so far from the present.
    Apply(u8, usize, bool, i64),
    RaiseFloor(i64),
    Check(usize),
}

fn step() -> impl Strategy<Value = Step> {
    let offset = || prop_oneof![2 => Just(0), 3 => -6..6i64, 1 => 0..1_000_000i64];
    prop_oneof![
        4 => (0..4usize, offset()).prop_map(|(path, offset)| Step::Fill(path, offset)),
        3 => (any::<u8>(), 0..4usize, any::<bool>()).prop_map(|(k, w, s)| Step::Purge(k, w, s)),
        3 => (any::<u8>(), 0..4usize, any::<bool>(), offset())
            .prop_map(|(k, w, s, offset)| Step::Apply(k, w, s, offset)),
        1 => (-6..2i64).prop_map(Step::RaiseFloor),
        4 => (0..40usize).prop_map(Step::Check),
    ]
}

fn rank(verdict: Verdict) -> u8 {
    match verdict {
        Verdict::Live => 0,
        Verdict::SoftlyPurged => 1,
        Verdict::Dead => 2,
    }
}

/// Runs `steps`; what the ledger says may be worse than what the model does only if it is `vague`.
fn run(ledger: &Ledger, steps: Vec<Step>, vague: bool) -> Result<(), TestCaseError> {
    let mut purges: Vec<Purge> = Vec::new();
    let mut stored: Vec<(Arc<Entry>, &str)> = Vec::new();
    let near = |offset| ledger.generation().saturating_add_signed(offset);
    let compare = |(entry, path): &(Arc<Entry>, &str), purges: &[Purge]| {
        let expected = expected(purges, path, entry.filled_at);
        let told =
            Expected { key: entry.key(), route: "r", tenant: "", tags: vec![(*path).into()] };
        let purged = ledger.purged_since(entry.filled_at, &told);
        let found = ledger.check(entry);
        if vague {
            prop_assert!(rank(found) >= rank(expected), "{found:?} for {expected:?}");
            prop_assert!(purged || expected == Verdict::Live, "{expected:?}");
        } else {
            prop_assert_eq!(found, expected);
            prop_assert_eq!(purged, expected != Verdict::Live);
        }
        // What is found once is found again, without searching.
        prop_assert_eq!(ledger.check(entry), found);
        Ok(())
    };
    for step in steps {
        match step {
            Step::Fill(path, offset) => {
                let path = PATHS[path];
                stored.push((entry(path, near(offset), path), path));
            }
            Step::Purge(kind, which, soft) => {
                let mode = if soft { Mode::Soft } else { Mode::Hard };
                let selector = selector(kind, which);
                let generation = ledger.purge(std::slice::from_ref(&selector), mode);
                prop_assert_eq!(generation, ledger.generation());
                purges.push(Purge { generation, selector, mode });
            }
            Step::Apply(kind, which, soft, offset) => {
                let mode = if soft { Mode::Soft } else { Mode::Hard };
                let (generation, before) = (near(offset), ledger.generation());
                let selector = selector(kind, which);
                ledger.apply(generation, std::slice::from_ref(&selector), mode);
                prop_assert_eq!(ledger.generation(), generation.max(before + 1));
                purges.push(Purge { generation, selector, mode });
            }
            Step::RaiseFloor(offset) => {
                let (generation, mode) = (near(offset), Mode::Hard);
                ledger.raise_floor(generation);
                purges.push(Purge { generation, selector: Selector::All, mode });
            }
            Step::Check(at) => {
                if let Some(it) = stored.get(at) {
                    compare(it, &purges)?;
                }
            }
        }
    }
    stored.iter().try_for_each(|it| compare(it, &purges))
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(1500))]
    #[test]
    fn the_ledger_says_what_a_list_of_all_purges_says(
        steps in proptest::collection::vec(step(), 0..60),
    ) {
        run(&Ledger::default(), steps, false)?;
    }

    #[test]
    fn however_little_is_remembered_exactly_no_purge_is_missed(
        steps in proptest::collection::vec(step(), 0..60),
        exact in 1..4usize, buckets in 1..4usize, rules in 1..3usize,
    ) {
        let ledger = Ledger::with_limits(Limits { exact, buckets, rules });
        run(&ledger, steps, true)?;
        prop_assert!(ledger.notes() <= exact + rules);
    }
}

fn tag(number: u64) -> Selector {
    Selector::Tag(number.to_string())
}

#[test]
fn names_are_bounded_and_old_ones_seldom_strike_another() {
    let limits = Limits::default();
    let ledger = Ledger::default();
    let probes: Vec<_> = (0..2000).map(|it| entry("/", 0, &format!("other {it}"))).collect();
    let named = (0..=limits.exact as u64).step_by(100);
    let named: Vec<_> = named.map(|it| entry("/", 0, &it.to_string())).collect();
    for number in 0..limits.exact as u64 {
        ledger.purge(&[tag(number)], Mode::Hard);
    }
    assert_eq!(ledger.notes(), limits.exact);
    assert!(probes.iter().all(|entry| ledger.check(entry) == Verdict::Live));
    ledger.purge(&[tag(0)], Mode::Hard);
    assert_eq!(ledger.notes(), limits.exact, "known already");
    ledger.purge(&[tag(limits.exact as u64)], Mode::Hard);
    assert_eq!(ledger.notes(), limits.exact / 2, "the older half is folded");
    assert!(named.iter().all(|entry| ledger.check(entry) == Verdict::Dead));
    // 32 Ki names are in 22 % of 128 Ki buckets.
    let struck = probes.iter().filter(|entry| ledger.check(entry) == Verdict::Dead).count();
    assert!((350..550).contains(&struck), "{struck} of {}", probes.len());
    // What was filled since is struck by none of them.
    let later = entry("/", ledger.generation(), "0");
    assert_eq!(ledger.check(&later), Verdict::Live);
}

#[test]
fn the_oldest_rule_becomes_a_purge_of_everything_before_it_when_there_are_too_many() {
    let ledger = Ledger::default();
    let rule = |number: usize| Selector::Prefix { host: None, path: format!("/{number}/") };
    let old = entry("/elsewhere", 0, "t");
    for number in 0..1024 {
        ledger.purge(&[rule(number)], Mode::Soft);
    }
    // Purged again it is the youngest, and no second rule.
    ledger.purge(&[rule(0)], Mode::Soft);
    assert_eq!((ledger.check(&old), ledger.notes()), (Verdict::Live, 1024));
    let young = entry("/elsewhere", 2, "t");
    ledger.purge(&[rule(1024)], Mode::Soft);
    assert_eq!((ledger.check(&old), ledger.notes()), (Verdict::Dead, 1024));
    assert_eq!(ledger.check(&young), Verdict::Live, "filled after the rule that was folded");
    assert_eq!(ledger.check(&entry("/0/", 1024, "t")), Verdict::SoftlyPurged);
}

#[test]
fn a_purge_from_elsewhere_that_comes_late_still_strikes_what_was_checked() {
    let ledger = Ledger::default();
    let microseconds = 1_800_000_000_000_000;
    let stored = entry("/a/1", microseconds, "t");
    ledger.apply(microseconds + 20, &[tag(0)], Mode::Hard);
    assert_eq!(ledger.check(&stored), Verdict::Live);
    ledger.apply(microseconds + 10, &[Selector::Tag("t".to_owned())], Mode::Soft);
    assert_eq!(ledger.generation(), microseconds + 21);
    assert_eq!(ledger.check(&stored), Verdict::SoftlyPurged);
    // Older than what is noted: nothing is lowered.
    ledger.apply(microseconds - 10, &[Selector::Tag("t".to_owned())], Mode::Soft);
    assert_eq!(ledger.check(&stored), Verdict::SoftlyPurged);
    let prefix = Selector::Prefix { host: None, path: "/a/".to_owned() };
    ledger.apply(microseconds + 5, &[prefix], Mode::Hard);
    assert_eq!(ledger.check(&stored), Verdict::Dead);
}

#[test]
fn an_absurd_number_from_elsewhere_leaves_room_to_count_on() {
    let ledger = Ledger::default();
    ledger.apply(u64::MAX, &[tag(0)], Mode::Hard);
    let stored = entry("/a/1", ledger.generation(), "t");
    assert_eq!(ledger.check(&stored), Verdict::Live);
    ledger.purge(&[Selector::Tag("t".to_owned())], Mode::Hard);
    assert_eq!(ledger.check(&stored), Verdict::Dead);
}
