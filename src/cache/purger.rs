//! How this process purges: by itself, or together with the other instances.

use std::{sync::Arc, time::Duration};

use tokio::sync::broadcast;

use super::{
    coherence::{Coherence, Purged, record::Record},
    purge::{Ledger, Mode, Selector},
};

/// How long a purge waits for other instances to confirm it. One that is this late is most likely gone,
/// and a write must not wait for it; it stops relying on its memory by itself.
const CONFIRM: Duration = Duration::from_millis(500);

/// What carries purges out. The response cache and the data cache share it.
#[derive(Debug)]
pub struct Purger {
    pub ledger: Arc<Ledger>,
    /// Where there are other instances.
    pub coherence: Option<Arc<Coherence>>,
    /// Purges that took effect here and are in no log.
    here: broadcast::Sender<Arc<Record>>,
}

/// Purges as they take effect on this instance.
#[derive(Debug)]
pub struct Watch {
    here: broadcast::Receiver<Arc<Record>>,
    log: Option<broadcast::Receiver<Arc<Record>>>,
}

/// What a [`Watch`] sees.
#[derive(Debug, Clone)]
pub enum Sight {
    /// A purge that this instance has applied.
    Purged {
        record: Arc<Record>,
        /// Whether the other instances know of it. If not and there are others, it is seen once more
        /// when they do.
        recorded: bool,
    },
    /// So many came too fast to be seen.
    Missed(u64),
}

impl Purger {
    pub fn new(ledger: Arc<Ledger>, coherence: Option<Arc<Coherence>>) -> Self {
        Self { ledger, coherence, here: broadcast::Sender::new(256) }
    }

    /// Invalidates what `selectors` name, on all instances.
    ///
    /// When it returns, no instance that confirmed serves as fresh again what was stored, or fetched,
    /// before. It waits for them, for at most half a second; it fails never.
    pub async fn purge(&self, selectors: &[Selector], mode: Mode) -> Purged {
        let (from, purged) = match &self.coherence {
            Some(coherence) => {
                (coherence.instance(), coherence.purge(selectors, mode, CONFIRM).await)
            }
            None => {
                let number = self.ledger.purge(selectors, mode);
                let missing = Vec::new();
                ("", Purged { number, noted: number, confirmed: 1, missing, recorded: true })
            }
        };
        if self.coherence.is_none() || !purged.recorded {
            let record = Record { from: from.to_owned(), mode, selectors: selectors.to_vec() };
            // Nobody may be watching.
            let _ = self.here.send(Arc::new(record));
        }
        purged
    }

    /// Every purge from now on, as this instance applies it.
    pub fn watch(&self) -> Watch {
        Watch {
            here: self.here.subscribe(),
            log: self.coherence.as_ref().map(|coherence| coherence.watch()),
        }
    }
}

impl Watch {
    /// The next; `None` when the cache is gone.
    pub async fn next(&mut self) -> Option<Sight> {
        let (received, recorded) = match &mut self.log {
            None => (self.here.recv().await, false),
            Some(log) => tokio::select! {
                received = self.here.recv() => (received, false),
                received = log.recv() => (received, true),
            },
        };
        match received {
            Ok(record) => Some(Sight::Purged { record, recorded }),
            Err(broadcast::error::RecvError::Lagged(missed)) => Some(Sight::Missed(missed)),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}
