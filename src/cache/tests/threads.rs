//! The same on several threads, each with a runtime of its own, as the gateway's workers have.

use std::thread;

use super::{world::World, *};

#[test]
fn a_read_after_a_purge_never_sees_what_was_before_it_on_several_threads() {
    for round in 0..4 {
        let world = World::new();
        thread::scope(|scope| {
            for worker in 0..4 {
                let world = world.clone();
                scope.spawn(move || {
                    actix_rt::System::new().block_on(async move {
                        let mut dice = Dice(round * 100 + worker);
                        // In small crowds: a worker that does everything at once meets nobody.
                        for _ in 0..60 {
                            let act = |seed| actix_rt::spawn(world.clone().act(Dice(seed)));
                            let crowd: Vec<_> = (0..15).map(|_| act(dice.roll(u64::MAX))).collect();
                            for act in crowd {
                                act.await.expect("no read goes wrong");
                            }
                        }
                    });
                });
            }
        });
        actix_rt::System::new().block_on(world.has_come_to_rest());
    }
}
