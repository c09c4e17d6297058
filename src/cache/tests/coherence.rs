//! Thousands of requests, writes, purges and sweeps in every order that seeded dice come up with.

use super::{world::World, *};

async fn schedule(seed: u64, steps: u64) {
    let world = World::new();
    let mut dice = Dice(seed);
    let acts: Vec<_> =
        (0..steps).map(|_| actix_rt::spawn(world.clone().act(Dice(dice.roll(u64::MAX))))).collect();
    for act in acts {
        act.await.unwrap_or_else(|error| panic!("schedule {seed}: {error}"));
    }
    world.has_come_to_rest().await;
}

#[actix_rt::test]
async fn a_read_after_a_purge_never_sees_what_was_before_it_in_short_schedules() {
    for seed in 0..250 {
        schedule(seed, 60).await;
    }
}

#[actix_rt::test]
async fn a_read_after_a_purge_never_sees_what_was_before_it_in_long_schedules() {
    for seed in 1000..1006 {
        schedule(seed, 1500).await;
    }
}
