//! Thousands of requests, writes, purges and sweeps in every order that seeded dice come up with.

use super::{sim::Trouble, world::World, *};

async fn schedule(seed: u64, steps: u64) {
    run(World::new(), seed, steps).await;
}

async fn run(world: World, seed: u64, steps: u64) {
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

/// The same with three instances that share a store.
async fn shared_schedule(seed: u64, steps: u64, trouble: Trouble) {
    eprintln!("seed {seed}");
    let world = World::shared(3, seed, trouble).await;
    eprintln!("joined");
    run(world.clone(), seed, steps).await;
    assert!(steps < 100 || world.shared_hits() > 0, "nothing was shared in schedule {seed}");
}

#[actix_rt::test]
async fn no_instance_serves_what_was_purged_through_another() {
    for seed in 0..60 {
        shared_schedule(seed, 60, Trouble::default()).await;
    }
    for seed in 2000..2010 {
        shared_schedule(seed, 600, Trouble::default()).await;
    }
}

#[actix_rt::test]
async fn a_confirmed_purge_holds_although_messages_are_lost_and_calls_fail() {
    for seed in 0..60 {
        shared_schedule(seed, 60, Trouble { lost: 10, failing: 5, expiring: 10 }).await;
    }
    for seed in 3000..3010 {
        shared_schedule(seed, 600, Trouble { lost: 3, failing: 2, expiring: 5 }).await;
    }
}
