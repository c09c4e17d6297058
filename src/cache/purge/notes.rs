//! What a ledger remembers of its purges: bounded, and nothing is ever forgotten.
//!
//! Names purged recently are noted one by one. When they become too many, the older half is folded
//! into tables of fixed size in which many names share a bucket, and a bucket keeps the latest
//! purge of any of them. So an old purge may strike an entry that it did not name, which costs a
//! fetch; none that it named escapes. Each kind has a table of its own: no flood of purged URLs
//! strikes a whole route.

use std::collections::{HashMap, VecDeque};

use super::{
    super::{
        entry::{hash_text, hash_url},
        key,
    },
    Mode, Selector, Subject, Verdict, worse,
};

/// How much is remembered, and how exactly.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Names noted one by one.
    pub exact: usize,
    /// Buckets for all the others of a kind.
    pub buckets: usize,
    /// Prefixes and patterns. Each is tried on each entry once: an operator's loop must not slow
    /// every look-up down.
    pub rules: usize,
}

impl Default for Limits {
    /// Together no more than 15 MiB.
    fn default() -> Self {
        Self { exact: 1 << 16, buckets: 1 << 17, rules: 1024 }
    }
}

/// Generations of the last hard and the last soft purge.
#[derive(Debug, Clone, Copy, Default)]
struct Marks {
    hard: u64,
    soft: u64,
}

impl Marks {
    fn note(&mut self, generation: u64, mode: Mode) {
        // Purges made elsewhere may arrive out of order.
        match mode {
            Mode::Hard => self.hard = self.hard.max(generation),
            Mode::Soft => self.soft = self.soft.max(generation),
        }
    }

    fn with(self, other: Self) -> Self {
        Self { hard: self.hard.max(other.hard), soft: self.soft.max(other.soft) }
    }

    fn latest(self) -> u64 {
        self.hard.max(self.soft)
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
    Data,
}

/// A kind of thing, and the hash of which.
type Name = (Kind, u64);

#[derive(Debug)]
struct Rule {
    selector: Selector,
    marks: Marks,
    /// The ledger's generation from its last purge on.
    noted: u64,
}

#[derive(Debug, Default)]
pub struct Notes {
    limits: Limits,
    all: Marks,
    named: HashMap<Name, Marks>,
    /// By kind; each empty until there is something to fold.
    folded: [Box<[Marks]>; 5],
    /// In the order in which they were last purged.
    rules: VecDeque<Rule>,
}

impl Notes {
    #[cfg(test)]
    pub fn with(limits: Limits) -> Self {
        Self { limits, ..Self::default() }
    }

    /// Notes a purge made at `generation`; `noted` is the ledger's own generation from now on.
    pub fn add(&mut self, selector: &Selector, generation: u64, noted: u64, mode: Mode) {
        let name = match selector {
            Selector::Url { host, path, query } => {
                (Kind::Url, hash_url(host, path, query.as_deref()))
            }
            Selector::Route(name) => (Kind::Route, hash_text(name)),
            Selector::Tag(tag) => (Kind::Tag, hash_text(tag)),
            Selector::Tenant(tenant) => (Kind::Tenant, hash_text(tenant)),
            Selector::Data(key) => (Kind::Data, hash_text(key)),
            Selector::All => return self.all.note(generation, mode),
            Selector::Prefix { .. } | Selector::Pattern { .. } => {
                return self.add_rule(selector, generation, noted, mode);
            }
        };
        if self.named.len() >= self.limits.exact && !self.named.contains_key(&name) {
            self.fold();
        }
        self.named.entry(name).or_default().note(generation, mode);
    }

    /// Moves the older half of the names to where they take no space of their own.
    fn fold(&mut self) {
        let mut ages: Vec<u64> = self.named.values().map(|marks| marks.latest()).collect();
        let middle = ages.len() / 2;
        let (_, &mut median, _) = ages.select_nth_unstable(middle);
        self.named.retain(|&(kind, hash), marks| {
            let young = marks.latest() > median;
            if !young {
                let table = &mut self.folded[kind as usize];
                if table.is_empty() {
                    *table = vec![Marks::default(); self.limits.buckets].into();
                }
                let bucket = &mut table[bucket(hash, table.len())];
                *bucket = bucket.with(*marks);
            }
            young
        });
    }

    fn add_rule(&mut self, selector: &Selector, generation: u64, noted: u64, mode: Mode) {
        let known = self.rules.iter().position(|rule| rule.selector == *selector);
        let mut marks =
            known.and_then(|at| self.rules.remove(at)).map_or(Marks::default(), |rule| rule.marks);
        marks.note(generation, mode);
        self.rules.push_back(Rule { selector: selector.clone(), marks, noted });
        if self.rules.len() > self.limits.rules
            && let Some(oldest) = self.rules.pop_front()
        {
            self.all.note(oldest.marks.latest(), Mode::Hard);
        }
    }

    /// What the notes say of what was filled at `filled_at`. Of the rules, only those noted after
    /// `checked`.
    pub fn judge(&self, subject: &impl Subject, filled_at: u64, checked: u64) -> Verdict {
        let mut worst = self.all.judge(filled_at);
        let mut consider = |verdict| worst = worse(worst, verdict);
        if !self.named.is_empty() || self.folded.iter().any(|table| !table.is_empty()) {
            let mut named = |kind, hash| consider(self.marks((kind, hash)).judge(filled_at));
            named(Kind::Url, subject.url());
            named(Kind::Route, subject.route());
            named(Kind::Tenant, subject.tenant());
            subject.each_tag(&mut |tag| named(Kind::Tag, tag));
        }
        let mut address = None;
        for rule in self.rules.iter().rev().take_while(|rule| rule.noted > checked) {
            let verdict = rule.marks.judge(filled_at);
            if verdict == Verdict::Live {
                continue;
            }
            let address = address.get_or_insert_with(|| {
                let (host, path, query) = key::target(subject.key())?;
                let target = query.map_or_else(|| path.to_owned(), |it| format!("{path}?{it}"));
                Some((host, target))
            });
            let Some((host, target)) = address else { break };
            if rule.selector.takes_in(host, target) {
                consider(verdict);
            }
        }
        worst
    }

    /// What the notes say of a value of the data cache, by its key's hash.
    pub fn judge_data(&self, key: u64, filled_at: u64) -> Verdict {
        worse(self.all.judge(filled_at), self.marks((Kind::Data, key)).judge(filled_at))
    }

    fn marks(&self, name: Name) -> Marks {
        let exact = self.named.get(&name).copied().unwrap_or_default();
        let (kind, hash) = name;
        match &*self.folded[kind as usize] {
            [] => exact,
            table => exact.with(table[bucket(hash, table.len())]),
        }
    }

    /// How many names and rules are noted one by one.
    pub fn len(&self) -> usize {
        self.named.len() + self.rules.len()
    }
}

/// Hashes are evenly spread as they are.
fn bucket(hash: u64, buckets: usize) -> usize {
    (hash % buckets as u64) as usize
}
