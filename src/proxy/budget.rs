//! Bounds retries to a share of the requests, so that a failing upstream is not drowned by them.
//!
//! Every request earns a fifth of a retry, up to a hundred. A trickle of one a second is allowed in
//! any case, or an upstream with little traffic could never be tried again.

use std::sync::atomic::{AtomicU64, Ordering};

/// What one retry costs; a request earns one.
const PRICE: u64 = 5;
const CEILING: u64 = 100 * PRICE;
const TRICKLE_MS: u64 = 1_000;

#[derive(Debug, Default)]
pub(super) struct RetryBudget {
    balance: AtomicU64,
    /// When the trickle was last used, plus one; zero: never.
    trickled: AtomicU64,
}

impl RetryBudget {
    /// A first attempt was made.
    pub(super) fn earn(&self) {
        // Mostly the account is full, and then nothing is written that other cores have cached.
        if self.balance.load(Ordering::Relaxed) < CEILING {
            self.balance.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Pays for a retry, if that can be afforded.
    pub(super) fn spend(&self, now: u64) -> bool {
        let paid = self.balance.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |balance| {
            balance.checked_sub(PRICE)
        });
        if paid.is_ok() {
            return true;
        }
        let last = self.trickled.load(Ordering::Relaxed);
        (last == 0 || now >= last - 1 + TRICKLE_MS)
            && self
                .trickled
                .compare_exchange(last, now + 1, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_quiet_upstream_can_be_retried_once_a_second() {
        let budget = RetryBudget::default();
        assert!(budget.spend(0));
        assert!(!budget.spend(999));
        assert!(budget.spend(1_000));
    }

    proptest! {
        #[test]
        fn retries_stay_within_a_fifth_of_the_requests(requests in 0u64..2_000, tries in 1u64..4) {
            let budget = RetryBudget::default();
            let mut retries = 0;
            for _ in 0..requests {
                budget.earn();
                retries += (0..tries).filter(|_| budget.spend(0)).count() as u64;
            }
            prop_assert!(retries <= requests / 5 + 1, "{retries} of {requests}");
        }

        #[test]
        fn savings_are_bounded(requests in 0u64..5_000) {
            let budget = RetryBudget::default();
            (0..requests).for_each(|_| budget.earn());
            prop_assert!((0..500).filter(|_| budget.spend(0)).count() <= 101);
        }
    }
}
