//! Random numbers for ids: fast, one generator a thread, not for secrets.
//!
//! xoshiro256++ (Blackman and Vigna), seeded with 256 bits from the operating system. The state is
//! that large so that the sequences of many threads on many instances do not overlap, which a
//! 64-bit state cannot promise over a fleet's life.

use std::cell::Cell;

thread_local! {
    static STATE: Cell<[u64; 4]> = Cell::new(seed());
}

/// 64 random bits.
pub(crate) fn next() -> u64 {
    STATE.with(|state| {
        let mut s = state.get();
        let result = s[0].wrapping_add(s[3]).rotate_left(23).wrapping_add(s[0]);
        let shifted = s[1] << 17;
        s[2] ^= s[0];
        s[3] ^= s[1];
        s[1] ^= s[2];
        s[0] ^= s[3];
        s[2] ^= shifted;
        s[3] = s[3].rotate_left(45);
        state.set(s);
        result
    })
}

fn seed() -> [u64; 4] {
    let mut bytes = [0; 32];
    // The library aborts where the system has no entropy, so the error is only nominal; a seed from
    // the clock would still give ids, and the ids keep no secret.
    if aws_lc_rs::rand::fill(&mut bytes).is_err() {
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
        bytes[..16].copy_from_slice(&now.as_nanos().to_le_bytes());
        bytes[31] = 1;
    }
    let (words, _) = bytes.as_chunks::<8>();
    [0, 1, 2, 3].map(|word| u64::from_le_bytes(words[word]))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    #[test]
    fn threads_do_not_repeat_each_other() {
        let threads: Vec<_> = (0..4)
            .map(|_| std::thread::spawn(|| (0..1000).map(|_| super::next()).collect::<Vec<_>>()))
            .collect();
        let numbers: HashSet<u64> =
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        assert_eq!(numbers.len(), 4000);
    }

    #[test]
    fn every_bit_is_sometimes_set_and_sometimes_not() {
        let (mut any, mut all) = (0, u64::MAX);
        for _ in 0..200 {
            let number = super::next();
            any |= number;
            all &= number;
        }
        assert_eq!((any, all), (u64::MAX, 0));
    }
}
