//! Thousands of requests, writes, purges and sweeps in every order that seeded dice come up with.

use std::ops::Range;

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

/// The same with three instances that share a store; says how often one profited from another.
async fn shared_schedule(seed: u64, steps: u64, trouble: Trouble) -> u64 {
    let world = World::shared(3, seed, trouble).await;
    run(world.clone(), seed, steps).await;
    world.shared_hits()
}

/// Several schedules side by side, as they wait for lost messages most of the time.
async fn shared_schedules(seeds: Range<u64>, steps: u64, trouble: Trouble) {
    let schedules = seeds.map(|seed| shared_schedule(seed, steps, trouble));
    let shared: u64 = futures_util::future::join_all(schedules).await.into_iter().sum();
    assert!(shared > 0, "nothing was shared at all");
}

#[actix_rt::test]
async fn no_instance_serves_what_was_purged_through_another() {
    for begin in [0, 20, 40] {
        shared_schedules(begin..begin + 20, 60, Trouble::default()).await;
    }
    shared_schedules(2000..2006, 600, Trouble::default()).await;
}

#[actix_rt::test]
async fn a_confirmed_purge_holds_although_messages_are_lost_and_calls_fail() {
    shared_schedules(0..30, 60, Trouble { lost: 10, failing: 5, expiring: 10 }).await;
    shared_schedules(3000..3006, 600, Trouble { lost: 3, failing: 2, expiring: 5 }).await;
}
