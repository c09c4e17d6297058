//! A shared store in memory whose calls take their time and whose messages come late, or never.

use std::{
    collections::{BTreeSet, HashMap},
    sync::Weak,
    time::Instant,
};

use super::{world::stroll, *};
use crate::cache::{
    coherence::{Coherence, record::Record},
    data::{
        DataKey,
        store::{Page, Put as DataPut, Store},
    },
    purge::glob_matches,
    remote::{Beat, Error, Event, History, Lead, Name, Outcome, Put, Recorded, Remote, Reply},
};

/// Shorter than in life: a test should not wait for it.
const LEASE: Duration = Duration::from_millis(600);

/// What goes wrong, in percent.
#[derive(Debug, Clone, Copy, Default)]
pub struct Trouble {
    /// Messages that never come.
    pub lost: u64,
    /// Calls that fail, half of them after they took effect.
    pub failing: u64,
    /// Leases that are gone before their time.
    pub expiring: u64,
}

#[derive(Debug, Clone)]
enum Message {
    Purged(u64, u64, Vec<u8>),
    Beat(u64, Arc<str>, u64),
    Confirmed(Arc<str>, u64),
    Landed(String, Outcome),
}

type Mailbox = mpsc::UnboundedSender<Message>;

struct Lease {
    owner: String,
    waiting: BTreeSet<Arc<str>>,
    until: Instant,
}

#[derive(Default)]
struct State {
    values: HashMap<Name, (Bytes, u64)>,
    data: HashMap<DataKey, (Bytes, u64)>,
    counters: HashMap<DataKey, i64>,
    leases: HashMap<Name, Lease>,
    log: Vec<(u64, Vec<u8>)>,
    mailboxes: HashMap<Arc<str>, Mailbox>,
}

/// The store.
pub struct Sim {
    state: Mutex<State>,
    dice: Mutex<Dice>,
    trouble: Trouble,
}

impl Sim {
    pub fn new(seed: u64, trouble: Trouble) -> Arc<Self> {
        Arc::new(Self { state: Mutex::default(), dice: Mutex::new(Dice(seed)), trouble })
    }

    /// An instance's way to it.
    pub fn port(self: &Arc<Self>, name: &str) -> Arc<Port> {
        Arc::new(Port { sim: Arc::clone(self), name: name.into() })
    }

    fn roll(&self, sides: u64) -> u64 {
        self.dice.lock().unwrap().roll(sides)
    }

    fn chance(&self, percent: u64) -> bool {
        self.dice.lock().unwrap().chance(percent)
    }

    /// Carries out `work` at some moment; its result takes as long.
    async fn call<T>(&self, work: impl FnOnce(&mut State) -> T) -> Result<T, Error> {
        stroll(self.roll(6)).await;
        if self.chance(self.trouble.failing) {
            if self.chance(50) {
                work(&mut self.state.lock().unwrap());
            }
            return Err(Error::Away);
        }
        let result = work(&mut self.state.lock().unwrap());
        stroll(self.roll(6)).await;
        Ok(result)
    }
}

impl State {
    fn tell(&self, instance: &str, message: Message) {
        if let Some(mailbox) = self.mailboxes.get(instance) {
            let _ = mailbox.send(message);
        }
    }

    fn tell_all(&self, message: &Message) {
        for instance in self.mailboxes.keys() {
            self.tell(instance, message.clone());
        }
    }

    fn members(&self) -> Vec<Arc<str>> {
        self.mailboxes.keys().cloned().collect()
    }

    fn end(&self) -> u64 {
        self.log.last().map_or(0, |(generation, _)| *generation)
    }

    fn append(&mut self, known: u64, record: &[u8]) -> (u64, u64) {
        let previous = self.end();
        let generation = previous.max(known) + 1;
        self.log.push((generation, record.to_vec()));
        self.tell_all(&Message::Purged(generation, previous, record.to_vec()));
        (generation, previous)
    }

    fn begin(&mut self) {
        if self.log.is_empty() {
            self.append(0, &Record::everything().to_bytes());
        }
    }

    fn release(&mut self, name: &Name, token: &str, outcome: Outcome) {
        if self.leases.get(name).is_some_and(|lease| lease.owner == token)
            && let Some(lease) = self.leases.remove(name)
        {
            for instance in lease.waiting {
                self.tell(&instance, Message::Landed(label(name), outcome));
            }
        }
    }
}

fn label(name: &Name) -> String {
    format!("{name:?}")
}

/// One instance's way to the store.
pub struct Port {
    sim: Arc<Sim>,
    name: Arc<str>,
}

impl Port {
    /// Brings messages to `coherence`, one after the other, for as long as it lives.
    pub fn listen(self: &Arc<Self>, coherence: &Arc<Coherence>) {
        let (sender, mut mailbox) = mpsc::unbounded_channel();
        self.sim.state.lock().unwrap().mailboxes.insert(Arc::clone(&self.name), sender);
        let (this, coherence) = (Arc::clone(self), Arc::downgrade(coherence));
        actix_rt::spawn(async move {
            while let Some(message) = mailbox.recv().await {
                stroll(this.sim.roll(6)).await;
                let Some(coherence) = Weak::upgrade(&coherence) else { return };
                if !this.sim.chance(this.sim.trouble.lost) {
                    coherence.event(message.event());
                }
            }
        });
    }
}

impl Message {
    fn event(&self) -> Event<'_> {
        match self {
            Self::Purged(generation, previous, record) => {
                Event::Purged { generation: *generation, previous: *previous, record }
            }
            Self::Beat(generation, instance, number) => {
                Event::Beat { generation: *generation, instance, number: *number }
            }
            Self::Confirmed(instance, generation) => {
                Event::Confirmed { instance, generation: *generation }
            }
            Self::Landed(lease, outcome) => Event::Landed { lease, outcome: *outcome },
        }
    }
}

impl Remote for Port {
    fn instance(&self) -> &str {
        &self.name
    }

    fn is_up(&self) -> bool {
        true
    }

    fn get<'a>(&'a self, names: &'a [Name]) -> Reply<'a, Vec<Option<Bytes>>> {
        Box::pin(self.sim.call(|state| {
            let value = |name| state.values.get(name).map(|(value, _)| value.clone());
            names.iter().map(value).collect()
        }))
    }

    fn put<'a>(&'a self, put: &'a Put<'a>) -> Reply<'a, ()> {
        Box::pin(self.sim.call(move |state| {
            let mut set = |name: Name, value: &[u8]| {
                let slot = state.values.entry(name).or_default();
                if slot.1 <= put.filled_at {
                    *slot = (Bytes::copy_from_slice(value), put.filled_at);
                }
            };
            set(put.name, put.value);
            if let Some(variants) = put.variants {
                set(Name { variant: None, ..put.name }, variants);
            }
            if let Some((name, token)) = put.lease {
                state.release(name, token, Outcome::Stored);
            }
        }))
    }

    fn lead<'a>(&'a self, name: &'a Name, token: &'a str, seen: &'a [u8]) -> Reply<'a, Lead> {
        let expired = self.sim.chance(self.sim.trouble.expiring);
        Box::pin(self.sim.call(move |state| {
            let value = state.values.get(name).map(|(value, _)| value.clone()).unwrap_or_default();
            if seen.is_empty() != value.is_empty() || !value.starts_with(seen) {
                return Lead::Changed;
            }
            let now = Instant::now();
            if expired || state.leases.get(name).is_some_and(|lease| lease.until < now) {
                state.leases.remove(name);
            }
            match state.leases.get_mut(name) {
                Some(lease) if lease.owner != token => {
                    lease.waiting.insert(Arc::clone(&self.name));
                    Lead::Busy { remaining: lease.until - now }
                }
                _ => {
                    let (owner, until) = (token.to_owned(), now + LEASE);
                    state.leases.insert(*name, Lease { owner, waiting: BTreeSet::new(), until });
                    Lead::Acquired
                }
            }
        }))
    }

    fn renew<'a>(&'a self, name: &'a Name, token: &'a str) -> Reply<'a, ()> {
        Box::pin(self.sim.call(move |state| {
            if let Some(lease) = state.leases.get_mut(name)
                && lease.owner == token
            {
                lease.until = Instant::now() + LEASE;
            }
        }))
    }

    fn release<'a>(&'a self, name: &'a Name, token: &'a str, outcome: Outcome) -> Reply<'a, ()> {
        Box::pin(self.sim.call(move |state| state.release(name, token, outcome)))
    }

    fn lease(&self, name: &Name) -> String {
        label(name)
    }

    fn record<'a>(&'a self, known: u64, record: &'a [u8]) -> Reply<'a, Recorded> {
        Box::pin(self.sim.call(move |state| {
            state.begin();
            let (generation, previous) = state.append(known, record);
            Recorded { generation, previous, members: state.members() }
        }))
    }

    fn beat(&self, number: u64, _: u64) -> Reply<'_, Beat> {
        Box::pin(self.sim.call(move |state| {
            state.begin();
            let generation = state.end();
            state.tell_all(&Message::Beat(generation, Arc::clone(&self.name), number));
            Beat { time: Timestamp::now(), generation, members: state.members() }
        }))
    }

    fn leave(&self) -> Reply<'_, ()> {
        Box::pin(self.sim.call(move |state| {
            state.mailboxes.remove(&self.name);
        }))
    }

    fn history(&self, applied: u64) -> Reply<'_, History> {
        Box::pin(self.sim.call(move |state| {
            state.begin();
            let records: Vec<_> =
                state.log.iter().filter(|(at, _)| *at > applied).take(10).cloned().collect();
            History { first: state.log[0].0, more: records.len() == 10, records }
        }))
    }

    fn confirm<'a>(&'a self, instance: &'a str, applied: u64) -> Reply<'a, ()> {
        let message = Message::Confirmed(Arc::clone(&self.name), applied);
        Box::pin(self.sim.call(move |state| state.tell(instance, message)))
    }
}

impl Store for Port {
    fn read<'a>(&'a self, key: &'a DataKey) -> Reply<'a, Option<Bytes>> {
        Box::pin(self.sim.call(|state| state.data.get(key).map(|(value, _)| value.clone())))
    }

    fn write<'a>(&'a self, put: &'a DataPut<'a>) -> Reply<'a, ()> {
        Box::pin(self.sim.call(move |state| {
            let slot = state.data.entry(put.key.clone()).or_default();
            if slot.1 < put.filled_at + u64::from(put.wins) {
                *slot = (Bytes::copy_from_slice(put.value), put.filled_at);
            }
        }))
    }

    fn remove<'a>(&'a self, key: &'a DataKey, before: u64) -> Reply<'a, ()> {
        Box::pin(self.sim.call(move |state| {
            if state.data.get(key).is_some_and(|(_, filled_at)| *filled_at < before) {
                state.data.remove(key);
            }
        }))
    }

    fn count<'a>(&'a self, key: &'a DataKey, by: i64, _: Duration) -> Reply<'a, i64> {
        Box::pin(self.sim.call(move |state| {
            let count = state.counters.entry(key.clone()).or_default();
            *count += by;
            *count
        }))
    }

    fn scan<'a>(&'a self, glob: &'a str, _: &'a str, _: usize) -> Reply<'a, Page> {
        Box::pin(self.sim.call(move |state| {
            let keys = state.data.keys().map(ToString::to_string);
            let keys = keys.filter(|key| glob_matches(glob.as_bytes(), key.as_bytes())).collect();
            Page { keys, next: None }
        }))
    }
}
