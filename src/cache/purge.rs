//! What has been invalidated, and since when: generations instead of deletions.
//!
//! A purge kills any number of entries in constant time. It advances a counter, the generation, and
//! notes the new value beside what it names. An entry remembers the generation at which its fill
//! *began*; it is dead once something it belongs to was purged later. That is also the fence: a
//! response fetched before a purge and stored after it is dead on arrival.
//!
//! A look-up must not search a table. Each entry therefore remembers the generation it was last
//! checked at; while nothing was purged since, one comparison settles it. Notes are forgotten once
//! every entry that they could concern has been looked at by a sweep.

use std::{
    collections::{BTreeMap, HashMap},
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
};

use super::{
    entry::{Entry, hash_text, hash_url},
    key,
};

/// What a purge names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Selector {
    /// One URL: every stored response for it, whatever it varies on and whoever it belongs to.
    Url {
        host: String,
        path: String,
        query: Option<String>,
    },
    Route(String),
    Tag(String),
    Tenant(String),
    /// Every URL whose path and query start so; with a host, only there.
    Prefix {
        host: Option<String>,
        path: String,
    },
    /// Like a prefix, but a glob over the whole path and query: `*` any run of characters, `?` one.
    Pattern {
        host: Option<String>,
        glob: String,
    },
    All,
}

/// How far a purge goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mode {
    /// Never served again.
    Hard,
    /// Served stale once more while it is revalidated.
    Soft,
}

/// What a check says of an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    Live,
    SoftlyPurged,
    Dead,
}

/// Generations of the last hard and the last soft purge.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    hard: u64,
    soft: u64,
}

impl Marks {
    fn note(&mut self, generation: u64, mode: Mode) {
        match mode {
            Mode::Hard => self.hard = generation,
            Mode::Soft => self.soft = generation,
        }
    }

    fn judge(self, filled_at: u64) -> Verdict {
        if self.hard > filled_at {
            Verdict::Dead
        } else if self.soft > filled_at {
            Verdict::SoftlyPurged
        } else {
            Verdict::Live
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Kind {
    Url,
    Route,
    Tag,
    Tenant,
}

#[derive(Debug)]
struct Rule {
    selector: Selector,
    marks: Marks,
}

#[derive(Debug, Default)]
struct Notes {
    all: Marks,
    named: HashMap<(Kind, u64), Marks>,
    rules: Vec<Rule>,
    /// Notes up to this generation are gone.
    forgotten: u64,
}

/// More prefix and pattern purges than this between two sweeps become one purge of everything: an
/// operator's loop must not slow every look-up down.
const MAX_RULES: usize = 1024;

/// Every purge that may still concern an entry.
#[derive(Debug, Default)]
pub struct Ledger {
    generation: AtomicU64,
    notes: RwLock<Notes>,
    /// Generations at which fills now under way began, and how many each.
    filling: Mutex<BTreeMap<u64, u32>>,
}

/// A fill under way; while it lives, purges that it would have to obey are not forgotten.
#[derive(Debug)]
pub struct Filling {
    ledger: Arc<Ledger>,
    began_at: u64,
}

impl Filling {
    /// The generation the filled entry carries.
    pub fn began_at(&self) -> u64 {
        self.began_at
    }
}

impl Drop for Filling {
    fn drop(&mut self) {
        let mut filling = self.ledger.filling.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = filling.get_mut(&self.began_at) {
            *count -= 1;
            if *count == 0 {
                filling.remove(&self.began_at);
            }
        }
    }
}

impl Ledger {
    /// The number of purges so far.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// To be called before the origin is asked for what will be stored.
    pub fn begin(self: &Arc<Self>) -> Filling {
        let mut filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let began_at = self.generation();
        *filling.entry(began_at).or_default() += 1;
        drop(filling);
        Filling { ledger: Arc::clone(self), began_at }
    }

    /// Invalidates what `selectors` name; when this returns, no later look-up serves it.
    pub fn purge(&self, selectors: &[Selector], mode: Mode) -> u64 {
        let mut notes = self.notes.write().unwrap_or_else(PoisonError::into_inner);
        let generation = self.generation() + 1;
        for selector in selectors {
            notes.add(selector, generation, mode);
        }
        // Published last and under the lock: who sees the new generation finds the notes.
        self.generation.store(generation, Ordering::Release);
        generation
    }

    /// Whether `entry` may still be served.
    #[inline]
    pub fn check(&self, entry: &Entry) -> Verdict {
        let (checked, soft) = entry.checked();
        if checked == self.generation() {
            return if soft { Verdict::SoftlyPurged } else { Verdict::Live };
        }
        self.search(entry)
    }

    #[cold]
    fn search(&self, entry: &Entry) -> Verdict {
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        // Read under the lock: notes up to this generation are all there.
        let generation = self.generation();
        let (checked, soft) = entry.checked();
        // Every entry in the store was checked before notes were forgotten. One that was not was
        // swept out in the meantime, while somebody held on to it: what killed it is not known any
        // more.
        if checked < notes.forgotten {
            return Verdict::Dead;
        }
        // The note of a soft purge is forgotten while what it named lives on, and stays purged.
        let known = if soft { Verdict::SoftlyPurged } else { Verdict::Live };
        let verdict = worse(known, notes.judge(entry, entry.filled_at));
        if verdict != Verdict::Dead {
            entry.set_checked(generation, verdict == Verdict::SoftlyPurged);
        }
        verdict
    }

    /// Whether something was purged after `generation` that concerns a response to come.
    pub fn purged_since(&self, generation: u64, expected: &Expected<'_>) -> bool {
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        generation < notes.forgotten || notes.judge(expected, generation) != Verdict::Live
    }

    /// The generation up to which notes can be forgotten once every entry now stored has been
    /// checked: no fill under way began before it.
    pub fn mark(&self) -> u64 {
        let filling = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        filling.keys().next().copied().unwrap_or(u64::MAX).min(self.generation())
    }

    /// Forgets notes up to `mark`, taken before a sweep that has checked every stored entry.
    pub fn forget(&self, mark: u64) {
        let mut notes = self.notes.write().unwrap_or_else(PoisonError::into_inner);
        let needed = |marks: &Marks| marks.hard > mark || marks.soft > mark;
        notes.named.retain(|_, marks| needed(marks));
        notes.rules.retain(|rule| needed(&rule.marks));
        notes.forgotten = notes.forgotten.max(mark);
    }

    /// How many notes are kept, for the operator and for deciding when to sweep.
    pub fn notes(&self) -> usize {
        let notes = self.notes.read().unwrap_or_else(PoisonError::into_inner);
        notes.named.len() + notes.rules.len()
    }
}

impl Notes {
    fn add(&mut self, selector: &Selector, generation: u64, mode: Mode) {
        let named = match selector {
            Selector::Url { host, path, query } => {
                (Kind::Url, hash_url(host, path, query.as_deref()))
            }
            Selector::Route(name) => (Kind::Route, hash_text(name)),
            Selector::Tag(tag) => (Kind::Tag, hash_text(tag)),
            Selector::Tenant(tenant) => (Kind::Tenant, hash_text(tenant)),
            Selector::All => return self.all.note(generation, mode),
            Selector::Prefix { .. } | Selector::Pattern { .. } => {
                return self.add_rule(selector, generation, mode);
            }
        };
        self.named.entry(named).or_default().note(generation, mode);
    }

    fn add_rule(&mut self, selector: &Selector, generation: u64, mode: Mode) {
        if let Some(rule) = self.rules.iter_mut().find(|rule| rule.selector == *selector) {
            return rule.marks.note(generation, mode);
        }
        if self.rules.len() == MAX_RULES {
            self.rules.clear();
            return self.all.note(generation, Mode::Hard);
        }
        let mut marks = Marks::default();
        marks.note(generation, mode);
        self.rules.push(Rule { selector: selector.clone(), marks });
    }

    fn judge(&self, subject: &impl Subject, at: u64) -> Verdict {
        let named = |kind, hash| {
            self.named.get(&(kind, hash)).map_or(Verdict::Live, |marks| marks.judge(at))
        };
        let mut worst = self.all.judge(at);
        let mut consider = |verdict| worst = worse(worst, verdict);
        if !self.named.is_empty() {
            consider(named(Kind::Url, subject.url()));
            consider(named(Kind::Route, subject.route()));
            consider(named(Kind::Tenant, subject.tenant()));
            subject.each_tag(&mut |tag| consider(named(Kind::Tag, tag)));
        }
        if let Some((host, path, query)) = key::target(subject.key()) {
            for rule in &self.rules {
                if rule.selector.matches(host, path, query) {
                    consider(rule.marks.judge(at));
                }
            }
        }
        worst
    }
}

/// What a purge can name.
trait Subject {
    fn key(&self) -> &[u8];
    fn url(&self) -> u64;
    fn route(&self) -> u64;
    fn tenant(&self) -> u64;
    fn each_tag(&self, see: &mut dyn FnMut(u64));
}

impl Subject for Entry {
    fn key(&self) -> &[u8] {
        self.key()
    }

    fn url(&self) -> u64 {
        self.url
    }

    fn route(&self) -> u64 {
        self.route
    }

    fn tenant(&self) -> u64 {
        self.tenant
    }

    fn each_tag(&self, see: &mut dyn FnMut(u64)) {
        self.tags().for_each(see);
    }
}

/// A response that has not come yet, as far as its request tells. Tags that the origin will add are
/// not among what is known: the stored entry is checked for those.
#[derive(Debug)]
pub struct Expected<'a> {
    pub key: &'a [u8],
    pub route: &'a str,
    pub tenant: &'a str,
    pub tags: Vec<String>,
}

impl Subject for Expected<'_> {
    fn key(&self) -> &[u8] {
        self.key
    }

    fn url(&self) -> u64 {
        key::target(self.key).map_or(0, |(host, path, query)| hash_url(host, path, query))
    }

    fn route(&self) -> u64 {
        hash_text(self.route)
    }

    fn tenant(&self) -> u64 {
        hash_text(self.tenant)
    }

    fn each_tag(&self, see: &mut dyn FnMut(u64)) {
        self.tags.iter().for_each(|tag| see(hash_text(tag)));
    }
}

fn worse(a: Verdict, b: Verdict) -> Verdict {
    match (a, b) {
        (Verdict::Dead, _) | (_, Verdict::Dead) => Verdict::Dead,
        (Verdict::SoftlyPurged, _) | (_, Verdict::SoftlyPurged) => Verdict::SoftlyPurged,
        (Verdict::Live, Verdict::Live) => Verdict::Live,
    }
}

impl Selector {
    fn matches(&self, host: &str, path: &str, query: Option<&str>) -> bool {
        let on_host = |wanted: &Option<String>| wanted.as_deref().is_none_or(|it| it == host);
        let target = || match query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        };
        match self {
            Self::Prefix { host, path } => on_host(host) && target().starts_with(path.as_str()),
            Self::Pattern { host, glob } => {
                on_host(host) && glob_matches(glob.as_bytes(), target().as_bytes())
            }
            Self::Url { .. } | Self::Route(_) | Self::Tag(_) | Self::Tenant(_) | Self::All => false,
        }
    }
}

/// `*` stands for any run of bytes, `?` for one. Linear in practice and never exponential: only
/// the last `*` is ever tried again.
pub(super) fn glob_matches(glob: &[u8], text: &[u8]) -> bool {
    let (mut g, mut t) = (0, 0);
    let mut star: Option<(usize, usize)> = None;
    while t < text.len() {
        match glob.get(g) {
            Some(b'*') => {
                star = Some((g, t));
                g += 1;
            }
            Some(&c) if c == b'?' || c == text[t] => {
                g += 1;
                t += 1;
            }
            _ => match star {
                Some((at, taken)) => {
                    star = Some((at, taken + 1));
                    g = at + 1;
                    t = taken + 1;
                }
                None => return false,
            },
        }
    }
    glob[g..].iter().all(|&c| c == b'*')
}
