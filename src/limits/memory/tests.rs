//! The store against the model, and its bounds.

use std::{collections::HashMap, time::Duration};

use proptest::prelude::*;

use super::*;
use crate::{
    limits::{key::Identity, model::Model},
    routes::{Limit, LimitBy},
};

fn quota(requests: u32, seconds: u64) -> Quota {
    let window = Duration::from_secs(seconds);
    Quota::of(&Limit { requests, window, by: LimitBy::Caller })
}

fn key(name: &str) -> Key {
    let ip = [127, 0, 0, 1].into();
    Key::of("r", LimitBy::Caller, 60, &Identity { caller: Some(name), tenant: None, ip })
}

proptest! {
    /// Many keys and few parts of a second, one to three limits at a time.
    #[test]
    fn it_does_what_the_model_does(
        steps in prop::collection::vec(
            (0_u64..60_000, prop::collection::btree_map(0_u8..6, 1_u64..3, 1..4)),
            1..200,
        ),
    ) {
        let memory = Memory::default();
        let mut models: HashMap<(u8, u64), Model> = HashMap::new();
        let mut now = 0;
        for (step, limits) in steps {
            now += step;
            let asked: Vec<_> = limits
                .iter()
                .map(|(name, seconds)| {
                    let quota = quota(u32::from(*name) + 1, *seconds);
                    ((*name, *seconds), key(&format!("{name}/{seconds}")), quota)
                })
                .collect();
            let questions: Vec<_> = asked.iter().map(|(_, key, quota)| (*key, *quota)).collect();
            let decision = memory.decide(&questions, || now);
            let mut may = Vec::new();
            for (name, _, quota) in &asked {
                may.push(models.entry(*name).or_default().may_pass(quota, now));
            }
            let allowed = may.iter().all(|may| *may);
            prop_assert_eq!(decision.allowed(), allowed);
            for (((name, _, quota), may), standing) in asked.iter().zip(may).zip(&decision.0) {
                let model = models.entry(*name).or_default();
                if allowed {
                    model.count(quota, now);
                }
                prop_assert_eq!(*standing, model.standing(quota, now, may));
            }
        }
    }
}

#[test]
fn a_flood_of_keys_stays_in_its_bounds_and_spares_the_busy_ones() {
    let (keys, busy_bytes) = (6400, 64 << 10);
    let memory = Memory::bounded(keys, busy_bytes);
    let quota = quota(10, 60);
    let mut busy_passed = 0;
    for n in 0..100_000_u64 {
        let now = n * 500;
        memory.decide(&[(key(&format!("flood {n}")), quota)], || now);
        if n % 200 == 0 {
            busy_passed += u32::from(memory.decide(&[(key("busy"), quota)], || now).allowed());
        }
    }
    assert_eq!(busy_passed, 10, "it was not forgotten within its window");
    let usage = memory.usage();
    assert!(usage.keys <= keys as u64, "{usage:?}");
    assert!(usage.bytes <= (keys * 80 + busy_bytes) as u64, "{usage:?}");
    assert!(usage.forgotten > 90_000, "{usage:?}");
}

#[test]
fn busy_keys_are_bounded_in_bytes_too() {
    let memory = Memory::bounded(6400, 256 << 10);
    let quota = quota(1000, 60);
    for n in 0..50_000_u64 {
        memory.decide(&[(key(&format!("{}", n % 1000)), quota)], || n * 2_000);
    }
    let usage = memory.usage();
    assert!(usage.bytes <= 1000 * 100 + (256 << 10), "{usage:?}");
    assert!(usage.forgotten > 0, "{usage:?}");
}

#[test]
fn keys_that_do_not_count_any_more_give_their_places_away() {
    let memory = Memory::bounded(64_000, 64 << 10);
    let quota = quota(10, 1);
    // Thirty keys a slot, all of them gone a second later.
    for n in 0..50_000_u64 {
        memory.decide(&[(key(&format!("{n}")), quota)], || n * 333);
    }
    let usage = memory.usage();
    assert_eq!(usage.forgotten, 0, "{usage:?}");
    assert!(usage.keys < 10_000, "about 3000 count at a time: {usage:?}");
}

#[test]
fn threads_share_one_count_and_do_not_wait_for_each_other_forever() {
    let memory = Memory::default();
    let (route, mine) = (quota(1000, 60), quota(400, 60));
    let passed = AtomicU64::new(0);
    std::thread::scope(|scope| {
        for thread in 0..4 {
            let (memory, passed) = (&memory, &passed);
            scope.spawn(move || {
                let mine = (key(&format!("{thread}")), mine);
                for n in 0..600 {
                    let both = [(key("route"), route), mine];
                    let asked = if n % 2 == 0 { both } else { [both[1], both[0]] };
                    let allowed = memory.decide(&asked, || 1).allowed();
                    passed.fetch_add(u64::from(allowed), Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(passed.into_inner(), 1000);
}
