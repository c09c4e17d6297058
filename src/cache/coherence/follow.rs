//! Follows the log: says each second that this instance lives, reads what messages did not bring, confirms
//! what others wait for, and records what the store did not take before.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use super::{
    AGAIN, Coherence, lock,
    position::{self, LEASE},
    record::Record,
};
use crate::cache::{clock::Timestamp, remote::Error};

/// How often an instance says that it lives.
const BEAT: Duration = Duration::from_secs(1);

impl Coherence {
    /// Follows the log for ever: beats, reads what was missed, confirms. To be spawned once.
    pub async fn follow(self: Arc<Self>) {
        let mut number = 0;
        let mut next_beat = tokio::time::Instant::now();
        loop {
            let asked = tokio::time::timeout_at(next_beat, self.work.notified()).await.is_ok();
            if self.beat_now.swap(0, Ordering::AcqRel) == 1 {
                next_beat = tokio::time::Instant::now();
            }
            let behind = lock(&self.position).is_behind();
            // An error is an absent store: the next beat tries again.
            if asked && behind {
                let _ = self.catch_up().await;
            }
            self.confirm().await;
            if tokio::time::Instant::now() >= next_beat {
                number += 1;
                let began = tokio::time::Instant::now();
                let heard = self.beat(number).await.is_ok();
                if heard {
                    self.flush().await;
                }
                // Unheard, soon again: others may be waiting for what is pending here.
                next_beat = began + if heard { BEAT } else { 2 * AGAIN };
            }
        }
    }

    async fn beat(&self, number: u64) -> Result<(), Error> {
        let sent = Timestamp::now();
        let applied = {
            let mut position = lock(&self.position);
            position.beat(number, sent);
            position.applied()
        };
        let beat = self.remote.beat(number, applied).await?;
        let midway = sent.0 + Timestamp::now().since(sent).as_millis() as u64 / 2;
        self.skew.store(midway as i64 - beat.time.0 as i64, Ordering::Relaxed);
        self.confirmations.retain(&beat.members);
        {
            let mut heard = lock(&self.heard);
            heard.extend(beat.members.iter().map(|member| (Arc::clone(member), sent)));
            heard.retain(|_, at| sent < at.after(LEASE));
        }
        *lock(&self.members) = beat.members;
        let behind = {
            let mut position = lock(&self.position);
            position.end(beat.generation);
            position.is_behind()
        };
        if behind { self.catch_up().await } else { Ok(()) }
    }

    /// Applies what the log has after this instance's position.
    async fn catch_up(&self) -> Result<(), Error> {
        loop {
            let from = lock(&self.position).applied();
            let history = self.remote.history(from).await?;
            let mut position = lock(&self.position);
            if position.applied() < history.first {
                // What came before the log's beginning is not known: nothing from then is good.
                self.ledger.raise_floor(position::in_ledger(history.first));
            }
            for (generation, record) in history.records {
                // Messages may have brought some of them in the meantime.
                if generation > position.applied() {
                    position.read(generation);
                    self.apply(generation, Record::parse(&record));
                }
            }
            self.settle(&position);
            if !history.more {
                return Ok(());
            }
        }
    }

    /// Tells those who asked how far this instance is.
    async fn confirm(&self) {
        let asking = std::mem::take(&mut *lock(&self.asking));
        let applied = lock(&self.position).applied();
        for instance in asking.into_keys() {
            // Who gets no confirmation reports this instance as missing.
            let _ = self.remote.confirm(&instance, applied).await;
        }
    }

    /// Records what the store did not take before.
    async fn flush(&self) {
        let mut pending = std::mem::take(&mut *lock(&self.pending)).into_iter();
        while let Some(record) = pending.next() {
            let known = position::in_log(self.ledger.generation());
            if self.remote.record(known, &record.to_bytes()).await.is_err() {
                lock(&self.pending).extend(std::iter::once(record).chain(pending));
                return;
            }
        }
    }
}
