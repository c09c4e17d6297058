//! Keeps the memory of many instances coherent: every purge reaches each of them.
//!
//! Purges are records of one log in the shared store, numbered by its clock. An instance applies them to
//! its [`Ledger`] in their order, so that each knows the same generations and can
//! judge any entry, whoever filled it. Messages bring the records within milliseconds; the log is the
//! truth, and whoever missed a message reads it there. Who purges waits until every member has confirmed.
//!
//! | module | |
//! |---|---|
//! | [`record`] | a purge as the log keeps it |
//! | `follow` | the task that reads the log, beats and confirms |
//! | [`position`] | how far this instance has followed, and until when it may rely on that |
//! | [`confirm`] | who has confirmed what |
//!
//! The store away, a purge takes effect here at once and in the log as soon as the store is back. Until
//! then the others may serve what it named for at most [`position::LEASE`] and the lifetime of L1.

pub mod confirm;
mod follow;
pub mod position;
pub mod record;

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicI64, AtomicU64, Ordering},
    },
    time::Duration,
};

use tokio::sync::{Notify, broadcast, oneshot, watch};

use self::{
    confirm::Confirmations,
    position::{LEASE, Position, Step},
    record::Record,
};
use super::{
    clock::Timestamp,
    purge::{Ledger, Mode, Selector},
    remote::{Error, Event, Outcome, Recorded, Remote},
    stats::CoherenceStats,
};

/// How soon a call is made again that failed.
const AGAIN: Duration = Duration::from_millis(50);

/// Purges that wait for the store to come back. More become one purge of everything.
const MAX_PENDING: usize = 1024;

/// What a purge came to.
#[derive(Debug, Clone)]
pub struct Purged {
    /// Its generation in the log; not in the log, the one it comes after.
    pub number: u64,
    /// Its number in this instance's ledger: what is filled at it comes right after this purge.
    pub noted: u64,
    /// Instances that have applied it, this one among them.
    pub confirmed: usize,
    /// Instances that should have and did not say so in time.
    pub missing: Vec<Arc<str>>,
    /// Whether it is in the log: otherwise the store is away and only this instance knows of it yet.
    pub recorded: bool,
}

/// This instance's part in the protocol.
pub struct Coherence {
    remote: Arc<dyn Remote>,
    ledger: Arc<Ledger>,
    /// Milliseconds that an entry is served without asking the second tier.
    l1_ttl: u64,
    /// Milliseconds since the epoch.
    trusted_until: AtomicU64,
    /// This instance's clock minus the store's, in milliseconds.
    skew: AtomicI64,
    position: Mutex<Position>,
    confirmations: Confirmations,
    members: Mutex<Vec<Arc<str>>>,
    /// Instances, and when they were last heard, or said by the store to take part.
    heard: Mutex<HashMap<Arc<str>, Timestamp>>,
    /// The store forgot its members at some time before; milliseconds since the epoch.
    forgot_until: AtomicU64,
    /// Purges the store did not take yet.
    pending: Mutex<Vec<Record>>,
    /// Who wants to hear how far this instance is.
    asking: Mutex<HashMap<Arc<str>, u64>>,
    /// Fetches of other instances that this one waits for.
    landings: Mutex<HashMap<String, oneshot::Sender<Outcome>>>,
    /// Wakes the follower.
    work: Notify,
    beat_now: AtomicU64,
    position_changed: watch::Sender<()>,
    purges: broadcast::Sender<Arc<Record>>,
    pub stats: CoherenceStats,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Coherence {
    pub fn new(remote: Arc<dyn Remote>, ledger: Arc<Ledger>, l1_ttl: Duration) -> Arc<Self> {
        Arc::new(Self {
            remote,
            ledger,
            l1_ttl: u64::try_from(l1_ttl.as_millis()).unwrap_or(u64::MAX),
            trusted_until: AtomicU64::new(0),
            skew: AtomicI64::new(0),
            position: Mutex::default(),
            confirmations: Confirmations::default(),
            members: Mutex::default(),
            heard: Mutex::default(),
            forgot_until: AtomicU64::new(0),
            pending: Mutex::default(),
            asking: Mutex::default(),
            landings: Mutex::default(),
            work: Notify::new(),
            beat_now: AtomicU64::new(0),
            position_changed: watch::Sender::new(()),
            purges: broadcast::Sender::new(256),
            stats: CoherenceStats::default(),
        })
    }

    /// Whether what this instance knows of purges is complete: only then the second tier is of use.
    pub fn is_trusted(&self, now: Timestamp) -> bool {
        now.0 < self.trusted_until.load(Ordering::Acquire)
    }

    /// Whether an entry that was last known to be good at `verified` may be served without asking.
    ///
    /// While messages come, that is for the lifetime of L1 at most. When they stop, entries from before
    /// are no good any more, and those fetched since are for that lifetime: it bounds how stale they
    /// can get.
    #[inline]
    pub fn covers(&self, verified: Timestamp, now: Timestamp) -> bool {
        let trusted_until = self.trusted_until.load(Ordering::Acquire);
        now.0 < verified.0.saturating_add(self.l1_ttl)
            && (now.0 < trusted_until || verified.0 > trusted_until)
    }

    /// Whether it is time to ask ahead for an entry that is still covered, so that nobody has to wait.
    #[inline]
    pub fn is_due(&self, verified: Timestamp, now: Timestamp) -> bool {
        now.0 >= verified.0.saturating_add(self.l1_ttl - self.l1_ttl / 5) && self.is_trusted(now)
    }

    /// This instance's clock minus the store's, in milliseconds.
    pub fn skew(&self) -> i64 {
        self.skew.load(Ordering::Relaxed)
    }

    /// Takes leave: nobody waits for this instance's confirmation any more. To be called when it
    /// serves nothing any more.
    pub async fn leave(&self) {
        // Unheard, the others wait once in vain.
        let _ = self.remote.leave().await;
    }

    /// The instances that took part lately.
    pub fn members(&self) -> Vec<Arc<str>> {
        lock(&self.members).clone()
    }

    pub fn instance(&self) -> &str {
        self.remote.instance()
    }

    /// Purges that the store did not take yet.
    pub fn pending(&self) -> usize {
        lock(&self.pending).len()
    }

    /// Every purge from now on, as this instance applies it.
    pub fn watch(&self) -> broadcast::Receiver<Arc<Record>> {
        self.purges.subscribe()
    }

    /// Waits until this instance takes part, at most for `patience`.
    pub async fn joined(&self, patience: Duration) -> bool {
        let mut changed = self.position_changed.subscribe();
        let joined = async {
            while !self.is_trusted(Timestamp::now()) {
                if changed.changed().await.is_err() {
                    return;
                }
            }
        };
        tokio::time::timeout(patience, joined).await.is_ok()
    }

    /// Purges here and everywhere. When it returns, no instance that confirmed serves what was stored or
    /// fetched before; it waits for them, but not longer than `patience`.
    pub async fn purge(&self, selectors: &[Selector], mode: Mode, patience: Duration) -> Purged {
        // Here at once, whatever becomes of the rest.
        let local = self.ledger.purge(selectors, mode);
        let from = self.remote.instance();
        let record = Record { from: from.to_owned(), mode, selectors: selectors.to_vec() };
        let known = position::in_log(local);
        let deadline = tokio::time::Instant::now() + patience;
        match self.record(known, &record, deadline).await {
            Ok(recorded) => {
                let Recorded { generation, previous, .. } = recorded;
                if self.announced(generation, previous, &record) == Step::Missed {
                    self.work.notify_one();
                    // An own log that lags is no reason to fail: the purge is in force here already.
                    let applied = self.wait_for(generation);
                    let _ = tokio::time::timeout_at(deadline, applied).await;
                }
                let mut others = recorded.members;
                others.extend(self.forgotten());
                others.sort_unstable();
                others.dedup();
                others.retain(|it| **it != *from);
                let rest = deadline.saturating_duration_since(tokio::time::Instant::now());
                let missing = self.confirmations.wait(&others, generation, rest).await;
                if !missing.is_empty() {
                    self.stats.unconfirmed.add(1);
                }
                Purged {
                    number: generation,
                    noted: position::in_ledger(generation),
                    confirmed: 1 + others.len() - missing.len(),
                    missing,
                    recorded: true,
                }
            }
            Err(_) => {
                self.stats.unconfirmed.add(1);
                self.defer(record);
                let missing = self.members().into_iter().filter(|it| **it != *from).collect();
                Purged { number: known, noted: local, confirmed: 1, missing, recorded: false }
            }
        }
    }

    /// Writes into the log. A call that came late is made again: the store takes the same purge twice
    /// without harm, and who had to wait for the next beat would answer with an older purge in force.
    async fn record(
        &self,
        known: u64,
        record: &Record,
        deadline: tokio::time::Instant,
    ) -> Result<Recorded, Error> {
        let bytes = record.to_bytes();
        loop {
            let recorded = self.remote.record(known, &bytes).await;
            let late = matches!(recorded, Err(Error::Away)) && self.remote.is_up();
            if !late || tokio::time::Instant::now() >= deadline {
                return recorded;
            }
            tokio::time::sleep(AGAIN).await;
        }
    }

    /// Instances that took part before the store forgot everything, as long as they may not have
    /// noticed.
    fn forgotten(&self) -> Vec<Arc<str>> {
        let now = Timestamp::now();
        if now.0 >= self.forgot_until.load(Ordering::Acquire) {
            return Vec::new();
        }
        let heard = lock(&self.heard);
        let lately = heard.iter().filter(|(_, at)| now < at.after(LEASE));
        lately.map(|(instance, _)| Arc::clone(instance)).collect()
    }

    fn defer(&self, record: Record) {
        let mut pending = lock(&self.pending);
        if pending.len() < MAX_PENDING {
            pending.push(record);
        } else {
            *pending = vec![Record::everything()];
        }
    }

    /// Waits until the log was applied up to `generation`.
    async fn wait_for(&self, generation: u64) {
        let mut changed = self.position_changed.subscribe();
        while lock(&self.position).applied() < generation {
            if changed.changed().await.is_err() {
                return;
            }
        }
    }

    /// Waits for the end of a fetch that another instance makes under `lease`; `None` when the link is
    /// lost. Has to be called before the lease is asked for.
    pub fn landing(&self, lease: String) -> oneshot::Receiver<Outcome> {
        let (sender, receiver) = oneshot::channel();
        let mut landings = lock(&self.landings);
        landings.retain(|_, waiting| !waiting.is_closed());
        landings.insert(lease, sender);
        receiver
    }

    /// What the store tells. Must not block: it runs where messages are read.
    pub fn event(&self, event: Event<'_>) {
        match event {
            Event::Purged { generation, previous, record } => {
                let record = Record::parse(record);
                if self.announced(generation, previous, &record) == Step::Missed {
                    self.note_gap();
                }
            }
            Event::Beat { generation, instance, number } => {
                let mut position = lock(&self.position);
                if instance == self.remote.instance() {
                    position.heard(number, generation);
                } else {
                    position.end(generation);
                    lock(&self.heard).insert(instance.into(), Timestamp::now());
                }
                if position.is_behind() {
                    self.note_gap();
                }
                self.settle(&position);
            }
            Event::Confirmed { instance, generation } => {
                self.confirmations.note(instance, generation);
            }
            Event::Landed { lease, outcome } => {
                if let Some(waiting) = lock(&self.landings).remove(lease) {
                    // Whoever waited may have gone.
                    let _ = waiting.send(outcome);
                }
            }
            Event::Subscribed => {
                self.beat_now.store(1, Ordering::Release);
                self.work.notify_one();
            }
            Event::Lost => lock(&self.landings).clear(),
        }
    }

    fn note_gap(&self) {
        self.stats.gaps.add(1);
        self.work.notify_one();
    }

    /// A record follows right after `previous`: applies it if that is where this instance is.
    fn announced(&self, generation: u64, previous: u64, record: &Record) -> Step {
        let mut position = lock(&self.position);
        let step = position.announced(generation, previous);
        if step == Step::Apply {
            self.apply(generation, record.clone());
        }
        self.settle(&position);
        step
    }

    /// Applies the next record of the log.
    fn apply(&self, generation: u64, record: Record) {
        let noted = position::in_ledger(generation);
        self.ledger.apply(noted, &record.selectors, record.mode);
        self.stats.applied.add(1);
        if record.from.is_empty() {
            // The log was begun anew: so was the list of who takes part.
            let until = Timestamp::now().after(LEASE);
            self.forgot_until.store(until.0, Ordering::Release);
        } else if record.from != self.remote.instance() {
            lock(&self.asking).insert(record.from.as_str().into(), generation);
            self.work.notify_one();
        }
        // Nobody may be watching.
        let _ = self.purges.send(Arc::new(record));
    }

    /// After every change of the position: publishes what follows from it.
    fn settle(&self, position: &Position) {
        if let Some(until) = position.trusted_until() {
            self.trusted_until.fetch_max(until.0, Ordering::AcqRel);
        }
        self.position_changed.send_replace(());
    }
}

impl std::fmt::Debug for Coherence {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Coherence").field("instance", &self.instance()).finish_non_exhaustive()
    }
}
