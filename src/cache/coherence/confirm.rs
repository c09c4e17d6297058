//! Who has to confirm a purge, and who has.

use std::{
    collections::{HashMap, HashSet},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::{sync::watch, time::Instant};

/// How far each of the other instances has applied the log, as far as they said so.
#[derive(Debug)]
pub struct Confirmations {
    state: Mutex<State>,
    changed: watch::Sender<()>,
}

#[derive(Debug, Default)]
struct State {
    confirmed: HashMap<Arc<str>, u64>,
    /// Those that let a purge wait in vain: the next does not wait for them. They are heard again as
    /// soon as they confirm anything.
    silent: HashSet<Arc<str>>,
}

impl Default for Confirmations {
    fn default() -> Self {
        Self { state: Mutex::default(), changed: watch::Sender::new(()) }
    }
}

impl Confirmations {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes that `instance` has applied everything up to `generation`.
    pub fn note(&self, instance: &str, generation: u64) {
        let mut state = self.state();
        let known = state.confirmed.entry(instance.into()).or_default();
        *known = generation.max(*known);
        state.silent.remove(instance);
        drop(state);
        self.changed.send_replace(());
    }

    /// Forgets instances that are not `members` any more.
    pub fn retain(&self, members: &[Arc<str>]) {
        let mut state = self.state();
        state.confirmed.retain(|instance, _| members.contains(instance));
        state.silent.retain(|instance| members.contains(instance));
    }

    /// Waits until all `members` have confirmed `generation`; returns those that have not in time.
    pub async fn wait(
        &self,
        members: &[Arc<str>],
        generation: u64,
        patience: Duration,
    ) -> Vec<Arc<str>> {
        let deadline = Instant::now() + patience;
        let mut changed = self.changed.subscribe();
        loop {
            changed.borrow_and_update();
            let (missing, waiting) = self.missing(members, generation);
            if !waiting {
                return missing;
            }
            let timed_out = tokio::time::timeout_at(deadline, changed.changed()).await.is_err();
            if timed_out {
                let (missing, _) = self.missing(members, generation);
                self.state().silent.extend(missing.iter().cloned());
                return missing;
            }
        }
    }

    /// Those that have not confirmed, and whether it makes sense to wait for one of them.
    fn missing(&self, members: &[Arc<str>], generation: u64) -> (Vec<Arc<str>>, bool) {
        let state = self.state();
        let has = |it: &&Arc<str>| state.confirmed.get(*it).is_some_and(|&at| at >= generation);
        let missing: Vec<_> = members.iter().filter(|it| !has(it)).cloned().collect();
        let waiting = missing.iter().any(|it| !state.silent.contains(it));
        (missing, waiting)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);

    fn names(names: &[&str]) -> Vec<Arc<str>> {
        names.iter().map(|&name| name.into()).collect()
    }

    #[tokio::test(start_paused = true)]
    async fn all_who_have_to_confirm_are_waited_for() {
        let confirmations = Arc::new(Confirmations::default());
        confirmations.note("a", 7);
        let waiting = {
            let confirmations = Arc::clone(&confirmations);
            tokio::spawn(async move { confirmations.wait(&names(&["a", "b"]), 7, LONG).await })
        };
        tokio::task::yield_now().await;
        confirmations.note("b", 6);
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        confirmations.note("b", 9);
        assert_eq!(waiting.await.unwrap(), names(&[]));
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_silent_is_waited_for_once() {
        let confirmations = Confirmations::default();
        let members = names(&["a"]);
        assert_eq!(confirmations.wait(&members, 1, LONG).await, members);
        let began = Instant::now();
        assert_eq!(confirmations.wait(&members, 2, LONG).await, members);
        assert!(began.elapsed().is_zero());
        confirmations.note("a", 2);
        assert_eq!(confirmations.wait(&members, 2, LONG).await, names(&[]));
        assert_eq!(confirmations.wait(&members, 3, LONG).await, members);
        assert_eq!(began.elapsed(), LONG);
    }
}
