//! Chooses one of several targets. Pure: which ones are eligible is the caller's knowledge.

use crate::routes::Balance;

/// What a choice is made by.
#[derive(Debug, Clone, Copy)]
pub(super) struct Choice<'a> {
    pub balance: Balance,
    /// Counts up with every choice.
    pub turn: u64,
    /// The request's path and query.
    pub key: &'a [u8],
}

/// Chooses among `count` targets, or `None` if none is eligible.
///
/// `identity` is a number that stays with a target when others come and go.
pub(super) fn choose(
    choice: Choice<'_>,
    count: usize,
    eligible: impl Fn(usize) -> bool,
    in_flight: impl Fn(usize) -> usize,
    identity: impl Fn(usize) -> u64,
) -> Option<usize> {
    let from = |start: usize| (0..count).map(|step| (start + step) % count).find(|i| eligible(*i));
    match choice.balance {
        Balance::RoundRobin => from((choice.turn % count.max(1) as u64) as usize),
        // The better of two chosen at random: close to the least loaded of all, without the herd
        // that runs to it when everybody looks at the same counters.
        Balance::LeastRequests => {
            let dice = mix(choice.turn);
            let first = from((dice as u32 as usize) % count.max(1))?;
            let second = from((first + 1 + (dice >> 32) as usize % (count - 1).max(1)) % count)?;
            Some(if in_flight(second) < in_flight(first) { second } else { first })
        }
        // Rendezvous hashing: when a target leaves, only its own keys move.
        Balance::ConsistentHash => {
            let key = hash(choice.key);
            (0..count).filter(|i| eligible(*i)).max_by_key(|i| mix(key ^ identity(*i)))
        }
    }
}

/// FNV-1a: the same on every instance and in every version, so that all agree on a target.
pub(super) fn hash(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    })
}

/// Spreads a number over all 64 bits (the finisher of SplitMix64).
const fn mix(number: u64) -> u64 {
    let number = number.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let number = (number ^ (number >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let number = (number ^ (number >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    number ^ (number >> 31)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn identity(index: usize) -> u64 {
        hash(format!("http://10.0.0.{index}:8080").as_bytes())
    }

    fn by_hash(key: &str, count: usize, gone: Option<usize>) -> usize {
        let choice = Choice { balance: Balance::ConsistentHash, turn: 0, key: key.as_bytes() };
        choose(choice, count, |i| Some(i) != gone, |_| 0, identity).unwrap()
    }

    #[test]
    fn round_robin_takes_turns() {
        let turn = |turn| {
            let choice = Choice { balance: Balance::RoundRobin, turn, key: b"" };
            choose(choice, 3, |_| true, |_| 0, identity).unwrap()
        };
        assert_eq!((0..6).map(turn).collect::<Vec<_>>(), [0, 1, 2, 0, 1, 2]);
    }

    #[test]
    fn least_requests_avoids_the_busy_target_and_spreads_over_the_idle_ones() {
        let mut load = [0_usize; 4];
        for turn in 0..4_000 {
            let choice = Choice { balance: Balance::LeastRequests, turn, key: b"" };
            load[choose(choice, 4, |_| true, |i| load[i], identity).unwrap()] += 1;
        }
        assert!(load.iter().all(|n| (900..1_100).contains(n)), "{load:?}");

        let mut busy = 0;
        for turn in 0..4_000 {
            let choice = Choice { balance: Balance::LeastRequests, turn, key: b"" };
            let chosen = choose(choice, 4, |_| true, |i| usize::from(i == 2) * 50, identity);
            busy += usize::from(chosen == Some(2));
        }
        assert_eq!(busy, 0, "two different targets are compared");
    }

    #[test]
    fn keys_spread_evenly() {
        let mut load = [0; 4];
        (0..4_000).for_each(|n| load[by_hash(&format!("/items/{n}"), 4, None)] += 1);
        assert!(load.iter().all(|n| (850..1_150).contains(n)), "{load:?}");
    }

    proptest! {
        #[test]
        fn only_the_keys_of_a_target_that_leaves_move(key in ".{0,40}", gone in 0usize..5) {
            let before = by_hash(&key, 5, None);
            let after = by_hash(&key, 5, Some(gone));
            prop_assert_ne!(after, gone);
            if before != gone {
                prop_assert_eq!(before, after);
            }
        }

        #[test]
        fn only_eligible_targets_are_chosen(
            turn: u64, up in prop::collection::vec(any::<bool>(), 0..8), key in ".{0,8}"
        ) {
            for balance in [Balance::RoundRobin, Balance::LeastRequests, Balance::ConsistentHash] {
                let choice = Choice { balance, turn, key: key.as_bytes() };
                let chosen = choose(choice, up.len(), |i| up[i], |i| i, identity);
                prop_assert_eq!(chosen.is_some(), up.contains(&true));
                prop_assert!(chosen.is_none_or(|i| up[i]));
            }
        }
    }
}
