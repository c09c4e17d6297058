use std::time::{Duration, Instant};

use proptest::prelude::*;

use super::*;
use crate::db::choose::{Because, Choice, Tried, Wanted, choose};

const LAG: Duration = Duration::from_secs(1);
const TICK: Duration = Duration::from_millis(100);

fn primary(lsn: u64, timeline: u32) -> Seen {
    Seen { primary: true, lsn, timeline, boot: 1 }
}

fn replica(lsn: u64) -> Seen {
    Seen { primary: false, lsn, timeline: 0, boot: 1 }
}

/// Nodes with a clock of their own.
struct Lab {
    topology: Topology,
    now: Instant,
}

impl Lab {
    fn new(nodes: usize) -> Self {
        Self { topology: Topology::new(nodes, LAG), now: Instant::now() }
    }

    fn tick(&mut self) {
        self.now += TICK;
    }

    fn sees(&mut self, index: usize, seen: Seen) -> Effect {
        self.topology.answered(index, seen, None, self.now, self.now)
    }

    fn fails(&mut self, index: usize) -> Effect {
        self.topology.failed(index, self.now)
    }

    fn state(&self, index: usize) -> State {
        self.topology.state(index, self.now)
    }

    fn primary(&self) -> Option<usize> {
        self.topology.view(self.now).primary
    }

    fn choose(&self, floor: Option<Position>) -> Choice {
        let wanted = Wanted { floor, max_staleness: LAG, strong: false };
        choose(&self.topology.view(self.now), |_| 0, wanted, Tried::default(), 0, self.now)
    }

    /// A primary and two replicas that have caught up.
    fn settled() -> Self {
        let mut lab = Self::new(3);
        lab.sees(0, primary(100, 1));
        lab.sees(1, replica(100));
        lab.sees(2, replica(100));
        lab
    }
}

#[test]
fn an_idle_primary_makes_nobody_look_late() {
    let mut lab = Lab::settled();
    for _ in 0..100 {
        lab.tick();
        lab.sees(0, primary(100, 1));
        lab.sees(1, replica(100));
        assert_eq!(lab.state(1), State::Up);
    }
    assert_eq!(lab.topology.staleness(1, lab.now), Some(Duration::ZERO));
}

#[test]
fn a_paused_replica_is_out_once_it_is_older_than_allowed() {
    let mut lab = Lab::settled();
    let mut lsn = 100;
    for tick in 1..30 {
        lab.tick();
        lsn += 1;
        lab.sees(0, primary(lsn, 1));
        lab.sees(1, replica(100));
        lab.sees(2, replica(lsn));
        let late = TICK * tick > LAG;
        assert_eq!(lab.state(1) == State::Lagging, late, "tick {tick}");
        assert_eq!(lab.state(2), State::Up);
    }
    assert_eq!(lab.choose(None), Choice::Replica(2));
    lab.sees(1, replica(lsn));
    assert_eq!(lab.state(1), State::Up);
}

#[test]
fn a_replica_whose_lag_is_not_known_is_not_fresh() {
    let mut lab = Lab::new(2);
    lab.sees(0, primary(100, 1));
    lab.sees(1, replica(50));
    assert_eq!(lab.state(1), State::Lagging);
    lab.sees(1, replica(0));
    assert_eq!(lab.state(1), State::Lagging);
    assert_eq!(lab.topology.staleness(1, lab.now), None);
}

#[test]
fn a_replica_that_restarts_in_the_past_is_as_old_as_that() {
    let mut lab = Lab::settled();
    for lsn in 101..140 {
        lab.tick();
        lab.sees(0, primary(lsn, 1));
        lab.sees(1, replica(lsn));
    }
    lab.fails(1);
    assert_eq!(lab.state(1), State::Down);
    // It answers again, from before: neither the first good probe nor the second makes it usable.
    for _ in 0..3 {
        lab.sees(1, replica(100));
        assert_ne!(lab.state(1), State::Up);
        assert_ne!(lab.choose(None), Choice::Replica(1));
    }
    lab.sees(1, replica(139));
    assert_eq!(lab.state(1), State::Up);
}

#[test]
fn a_node_that_comes_back_proves_itself_and_one_that_flaps_waits_longer() {
    let mut lab = Lab::settled();
    lab.fails(1);
    lab.sees(1, replica(100));
    assert_eq!(lab.state(1), State::Warming);
    lab.sees(1, replica(100));
    assert_eq!(lab.state(1), State::Up, "the first failure in a while is forgiven");
    lab.fails(1);
    lab.sees(1, replica(100));
    lab.sees(1, replica(100));
    assert_eq!(lab.state(1), State::Warming, "it flaps");
    lab.now += FIRST_WAIT * 2;
    assert_eq!(lab.state(1), State::Up);
    for _ in 0..20 {
        lab.sees(1, replica(100));
        lab.fails(1);
    }
    lab.sees(1, replica(100));
    lab.sees(1, replica(100));
    lab.now += Duration::from_secs(2);
    assert_ne!(lab.state(1), State::Warming, "no wait is longer than that");
    lab.now += CALM + TICK;
    lab.sees(0, primary(100, 1));
    lab.sees(1, replica(100));
    lab.fails(1);
    lab.sees(1, replica(100));
    lab.sees(1, replica(100));
    assert_eq!(lab.state(1), State::Up, "after a calm while failures are forgotten");
}

#[test]
fn a_primary_needs_one_good_probe() {
    let mut lab = Lab::settled();
    lab.fails(0);
    assert_eq!(lab.primary(), None);
    lab.sees(0, primary(100, 1));
    assert_eq!(lab.primary(), Some(0));
}

#[test]
fn the_highest_timeline_wins_and_an_older_one_never_again() {
    let mut lab = Lab::settled();
    lab.fails(0);
    assert!(lab.sees(1, primary(120, 2)).switched);
    assert_eq!(lab.primary(), Some(1));
    // The old primary comes back with more of its own history than the new one has.
    lab.sees(0, primary(500, 1));
    assert_eq!((lab.primary(), lab.state(0)), (Some(1), State::Conflict));
    lab.fails(1);
    assert_eq!(lab.primary(), None, "an old history is no substitute");
    lab.sees(1, primary(120, 2));
    assert_eq!(lab.primary(), Some(1));
}

#[test]
fn of_two_on_one_timeline_the_one_that_was_it_stays_and_without_one_nobody_is() {
    let mut lab = Lab::new(2);
    lab.sees(1, primary(10, 1));
    lab.sees(0, primary(900, 1));
    assert_eq!(lab.primary(), Some(1));
    let mut lab = Lab::new(2);
    lab.sees(0, primary(10, 1));
    lab.fails(0);
    lab.sees(1, primary(10, 1));
    assert_eq!(lab.primary(), Some(1), "the only one that claims it");
    lab.fails(1);
    lab.topology.nodes[0].seen = Some(primary(10, 1));
    lab.topology.nodes[1].seen = Some(primary(10, 1));
    lab.topology.primary = None;
    lab.topology.elect();
    assert_eq!((lab.primary(), lab.topology.tie()), (None, true));
}

#[test]
fn a_node_of_another_cluster_is_never_used_and_the_first_node_says_which_is_ours() {
    let mut lab = Lab::new(2);
    let now = lab.now;
    lab.topology.answered(1, primary(900, 7), Some(2), now, now);
    lab.topology.answered(0, primary(100, 1), Some(1), now, now);
    assert_eq!(lab.state(1), State::Foreign);
    assert_eq!(lab.primary(), Some(0), "what the other cluster said is forgotten");
    let mut lab = Lab::new(2);
    lab.topology.answered(0, primary(100, 1), Some(1), now, now);
    lab.topology.answered(1, primary(900, 7), Some(2), now, now);
    assert_eq!((lab.primary(), lab.state(1)), (Some(0), State::Foreign));
}

#[test]
fn reads_go_on_without_a_primary_from_what_was_fresh() {
    let mut lab = Lab::settled();
    for lsn in 101..140 {
        lab.tick();
        lab.sees(0, primary(lsn, 1));
        lab.sees(1, replica(lsn));
        lab.sees(2, replica(100));
    }
    lab.fails(0);
    lab.now += Duration::from_secs(60);
    lab.sees(1, replica(139));
    lab.sees(2, replica(100));
    assert_eq!(lab.choose(None), Choice::Replica(1));
    lab.fails(1);
    assert_eq!(lab.choose(None), Choice::Nobody, "the other was late when the primary went");
}

#[test]
fn without_any_primary_since_the_start_the_furthest_replica_answers() {
    let mut lab = Lab::new(3);
    lab.sees(1, replica(90));
    lab.sees(2, replica(100));
    assert_eq!(lab.choose(None), Choice::Replica(2));
}

#[test]
fn a_read_after_a_write_finds_a_node_that_has_it() {
    let mut lab = Lab::settled();
    let at = |timeline, lsn| Some(Position { timeline, lsn });
    assert!(matches!(lab.choose(at(1, 100)), Choice::Replica(_)));
    let on_primary = Choice::Primary { index: 0, because: Because::Position };
    assert_eq!(lab.choose(at(1, 101)), on_primary);
    lab.tick();
    lab.sees(0, primary(101, 1));
    lab.sees(2, replica(101));
    assert_eq!(lab.choose(at(1, 101)), Choice::Replica(2));
    // A number of another history says nothing.
    lab.fails(0);
    lab.sees(1, primary(110, 2));
    lab.sees(2, replica(110));
    let on_primary = Choice::Primary { index: 1, because: Because::Position };
    assert_eq!(lab.choose(at(1, 101)), on_primary);
    // Written on a primary that is not known here yet.
    assert_eq!(lab.choose(at(3, 1)), Choice::Nobody);
}

#[test]
fn a_drained_replica_gets_no_reads_and_a_strong_read_no_replica() {
    let mut lab = Lab::settled();
    lab.topology.drain(1, true);
    for turn in 0..4 {
        let wanted = Wanted { floor: None, max_staleness: LAG, strong: false };
        let view = lab.topology.view(lab.now);
        let choice = choose(&view, |_| 0, wanted, Tried::default(), turn, lab.now);
        assert_eq!(choice, Choice::Replica(2));
        let strong = Wanted { strong: true, ..wanted };
        let choice = choose(&view, |_| 0, strong, Tried::default(), turn, lab.now);
        assert_eq!(choice, Choice::Primary { index: 0, because: Because::Strong });
    }
}

#[test]
fn the_replica_with_the_least_in_flight_answers() {
    let lab = Lab::settled();
    let wanted = Wanted { floor: None, max_staleness: LAG, strong: false };
    let view = lab.topology.view(lab.now);
    for turn in 0..4 {
        let busy = |index: usize| [0, 5, 4][index];
        let choice = choose(&view, busy, wanted, Tried::default(), turn, lab.now);
        assert_eq!(choice, Choice::Replica(2));
    }
}

#[test]
fn a_restarted_server_gets_new_connections() {
    let mut lab = Lab::settled();
    assert!(!lab.sees(1, replica(101)).renew);
    assert!(lab.sees(1, Seen { boot: 2, ..replica(101) }).renew);
    assert!(!lab.sees(1, Seen { boot: 2, ..primary(101, 2) }).renew, "a promotion keeps them");
}

#[derive(Debug, Clone)]
enum Event {
    Primary(usize, u64, u32),
    Replica(usize, u64),
    Fails(usize),
    Tick(u64),
}

fn event() -> impl Strategy<Value = Event> {
    prop_oneof![
        (0..3_usize, 1..200_u64, 1..4_u32).prop_map(|(n, lsn, tl)| Event::Primary(n, lsn, tl)),
        (0..3_usize, 0..200_u64).prop_map(|(n, lsn)| Event::Replica(n, lsn)),
        (0..3_usize).prop_map(Event::Fails),
        (1..900_u64).prop_map(Event::Tick),
    ]
}

proptest! {
    /// Whatever happens: no read on a node that did not just answer, none on data that are known to be too
    /// old or not to reach the floor, and no primary on an older timeline than one that was seen.
    #[test]
    fn no_history_makes_a_read_go_wrong(events in prop::collection::vec(event(), 1..60), floor in 1..200_u64) {
        let mut lab = Lab::new(3);
        let mut latest = [None; 3];
        let mut highest = 0;
        for event in events {
            match event {
                Event::Primary(index, lsn, timeline) => {
                    lab.sees(index, primary(lsn, timeline));
                    latest[index] = Some(primary(lsn, timeline));
                    highest = highest.max(timeline);
                }
                Event::Replica(index, lsn) => {
                    lab.sees(index, replica(lsn));
                    latest[index] = Some(replica(lsn));
                }
                Event::Fails(index) => {
                    lab.fails(index);
                    latest[index] = None;
                }
                Event::Tick(millis) => lab.now += Duration::from_millis(millis),
            }
            if let Some(index) = lab.primary() {
                prop_assert_eq!(latest[index].map(|it| (it.primary, it.timeline)), Some((true, highest)));
            }
            let position = Position { timeline: highest, lsn: floor };
            match lab.choose(Some(position)) {
                Choice::Replica(index) => {
                    let seen = latest[index].expect("it answered");
                    prop_assert!(!seen.primary && seen.lsn >= floor);
                    if lab.primary().is_some() {
                        let age = lab.topology.staleness(index, lab.now);
                        prop_assert!(age.is_some_and(|age| age <= LAG), "{:?}", age);
                    }
                }
                Choice::Primary { index, .. } => {
                    prop_assert!(latest[index].is_some_and(|seen| seen.primary));
                }
                Choice::Nobody => {}
            }
        }
    }
}
