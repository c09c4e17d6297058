//! Puts into the second tier what was stored in the first.

use std::{sync::Arc, time::Duration};

use super::{L2, codec, lease::Lease};
use crate::cache::{
    Cache,
    clock::Timestamp,
    entry::Entry,
    l1::Variants,
    purge::Verdict,
    remote::{Name, Outcome, Put},
};

/// Nothing is kept there for longer, whatever its origin says.
const MAX_KEEP: Duration = Duration::from_secs(7 * 24 * 3600);
/// From this size on a body is encoded off the event loop.
const LARGE: usize = 64 << 10;

/// A response that was stored in the first tier.
#[derive(Debug)]
pub struct Stored {
    pub entry: Arc<Entry>,
    pub name: Name,
    /// What it varies on, if anything.
    pub variants: Option<Arc<Variants>>,
    /// Released when it is put, or when that turns out to be impossible.
    pub lease: Option<Lease>,
}

impl Cache {
    /// Puts a response into the second tier, beside everything else: nobody waits for it.
    pub fn put(self: &Arc<Self>, stored: Stored) {
        if self.l2.is_some() {
            let this = Arc::clone(self);
            actix_rt::spawn(async move {
                if let Some(l2) = &this.l2 {
                    this.put_now(l2, stored).await;
                }
            });
        }
    }

    async fn put_now(&self, l2: &L2, stored: Stored) {
        let Stored { entry, name, variants, lease } = stored;
        // Dropped on any way out, a lease is given back.
        let now = Timestamp::now();
        let keep = entry.keep_until().since(now).min(MAX_KEEP);
        let dead = self.ledger.check(&entry) == Verdict::Dead;
        if dead || keep.is_zero() || !l2.is_usable(now) {
            return;
        }
        let weight = u32::try_from(entry.body_length()).unwrap_or(u32::MAX).max(1);
        let Ok(_permit) = Arc::clone(&l2.in_flight).try_acquire_many_owned(weight) else {
            return l2.stats.shed.add(1);
        };
        let skew = l2.coherence.skew();
        let value = if entry.body_length() < LARGE {
            codec::encode_entry(&entry, skew)
        } else {
            let entry = Arc::clone(&entry);
            // It only fails where the runtime ends.
            let encoded = tokio::task::spawn_blocking(move || codec::encode_entry(&entry, skew));
            let Ok(value) = encoded.await else { return };
            value
        };
        let variants = variants.map(|it| codec::encode_variants(&it.names, it.filled_at()));
        let put = Put {
            name,
            value: &value,
            variants: variants.as_deref(),
            filled_at: entry.filled_at,
            keep,
            lease: lease.as_ref().map(|lease| (lease.name(), lease.token())),
        };
        match l2.remote.put(&put).await {
            Ok(()) => {
                if let Some(lease) = lease {
                    lease.was_released();
                }
                l2.stats.stored.add(1);
                l2.stats.stored_bytes.add(value.len() as u64);
            }
            Err(_) => {
                // Who waits would not find it there: each instance asks for itself.
                if let Some(lease) = lease {
                    lease.end(Outcome::Unshared);
                }
                l2.stats.errors.add(1);
            }
        }
    }
}
