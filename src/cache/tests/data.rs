//! The data cache: alone, and on several instances whose store is slow and whose messages get lost.

use std::{cell::Cell, convert::Infallible, sync::atomic::AtomicU64};

use tokio_util::task::AbortOnDropHandle;

use super::{
    sim::{Sim, Trouble},
    world::stroll,
    *,
};
use crate::cache::{
    data::{Changed, DataCache, DataKey, Kind, MAX_VALUE},
    purge::{Mode, Selector},
    purger::Sight,
    remote::Remote,
};

fn key(id: &str) -> DataKey {
    DataKey::new("acme", Kind::Profile, id).expect("it is valid")
}

fn alone() -> Arc<DataCache> {
    Arc::clone(Cache::new(SETTINGS).data())
}

async fn load(value: u64) -> Result<u64, Infallible> {
    Ok(value)
}

#[actix_rt::test]
async fn what_was_set_is_there_until_it_is_deleted() {
    let data = alone();
    assert_eq!(data.get::<u64>(&key("1")).await, None);
    assert!(data.set(&key("1"), &7).await.expect("it is kept").shared);
    assert_eq!(data.get(&key("1")).await, Some(7));
    assert!(data.exists(&key("1")).await);
    assert_eq!(data.get::<String>(&key("1")).await, None, "a number is no text");
    data.set(&key("1"), &8).await.expect("it is kept");
    assert_eq!(data.get(&key("1")).await, Some(8));
    data.invalidate("acme", Kind::Profile, "1").await.expect("it is a key");
    assert!(!data.exists(&key("1")).await);
}

#[actix_rt::test]
async fn many_are_got_in_the_order_they_were_asked_for() {
    let data = alone();
    let keys = ["1", "2", "3"].map(key);
    data.set_many(&[(&keys[2], 3), (&keys[0], 1)]).await.expect("they are kept");
    assert_eq!(data.get_many(&keys).await, [Some(1), None, Some(3)]);
    data.delete_many(&[&keys[0], &keys[1]]).await;
    assert_eq!(data.get_many::<u64>(&keys).await, [None, None, Some(3)]);
}

#[actix_rt::test]
async fn what_is_too_large_is_refused_and_changes_nothing() {
    let data = alone();
    data.set(&key("1"), &"small").await.expect("it is kept");
    data.set(&key("1"), &"x".repeat(MAX_VALUE)).await.expect_err("it is too large");
    assert_eq!(data.get(&key("1")).await, Some("small".to_owned()));
    let largest = "x".repeat(MAX_VALUE - 2);
    data.set(&key("2"), &largest).await.expect("it just fits");
    assert_eq!(data.get(&key("2")).await, Some(largest));
}

#[actix_rt::test]
async fn a_value_ends_with_its_kind_s_lifetime() {
    let cache = Cache::new(SETTINGS);
    let data = cache.data();
    data.set(&key("1"), &1).await.expect("it is kept");
    let shown = data.show(&key("1")).await.expect("it is there");
    assert!(shown.life <= Kind::Profile.lifetime());
    assert!(shown.life > Kind::Profile.lifetime() - Duration::from_secs(60));
    let end = Timestamp::now().after(Kind::Profile.lifetime());
    cache.sweep(Timestamp(end.0 - 60_000));
    assert_eq!(data.usage().entries, 1);
    cache.sweep(end);
    assert_eq!(data.usage().entries, 0);
}

#[actix_rt::test]
async fn a_purge_of_everything_takes_values_along_and_one_of_another_key_does_not() {
    let cache = Cache::new(SETTINGS);
    let data = cache.data();
    data.set(&key("1"), &1).await.expect("it is kept");
    cache.purge(&[Selector::Data(key("2").to_string())], Mode::Hard).await;
    cache.purge(&[Selector::Tenant("acme".to_owned())], Mode::Hard).await;
    assert!(data.exists(&key("1")).await);
    cache.purge(&[Selector::All], Mode::Hard).await;
    assert!(!data.exists(&key("1")).await);
}

#[actix_rt::test]
async fn of_a_thousand_callers_one_loads() {
    let data = alone();
    let (loads, open) = (Arc::new(AtomicU64::new(0)), gate());
    let callers: Vec<_> = (0..1000)
        .map(|_| {
            let (data, loads, open) = (Arc::clone(&data), Arc::clone(&loads), Arc::clone(&open));
            actix_rt::spawn(async move {
                let load = || async move {
                    pass(&open).await;
                    load(loads.fetch_add(1, Ordering::SeqCst)).await
                };
                data.get_or_set(&key("1"), load).await
            })
        })
        .collect();
    settle().await;
    open.add_permits(1000);
    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), Ok(0));
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(data.get(&key("1")).await, Some(0));
}

#[actix_rt::test]
async fn an_error_is_for_all_who_waited_and_for_nobody_later() {
    let data = alone();
    let open = gate();
    let loads = Arc::new(AtomicU64::new(0));
    let fail = |data: Arc<DataCache>| {
        let (open, loads) = (Arc::clone(&open), Arc::clone(&loads));
        actix_rt::spawn(async move {
            let load = || async move {
                loads.fetch_add(1, Ordering::SeqCst);
                pass(&open).await;
                Err::<u64, _>("down")
            };
            data.get_or_set(&key("1"), load).await
        })
    };
    let callers = [fail(Arc::clone(&data)), fail(Arc::clone(&data)), fail(Arc::clone(&data))];
    settle().await;
    open.add_permits(3);
    for caller in callers {
        assert_eq!(caller.await.expect("no panic"), Err("down"));
    }
    assert_eq!(loads.load(Ordering::SeqCst), 1);
    assert_eq!(data.get_or_set(&key("1"), || load(2)).await, Ok(2));
}

#[actix_rt::test]
async fn a_caller_that_goes_away_while_it_loads_is_replaced() {
    let data = alone();
    let first = {
        let data = Arc::clone(&data);
        actix_rt::spawn(async move {
            data.get_or_set(&key("1"), std::future::pending::<Result<u64, Infallible>>).await
        })
    };
    settle().await;
    let second = {
        let data = Arc::clone(&data);
        actix_rt::spawn(async move { data.get_or_set(&key("1"), || load(2)).await })
    };
    settle().await;
    assert!(!second.is_finished());
    first.abort();
    assert_eq!(in_time(second).await.expect("no panic"), Ok(2));
}

#[actix_rt::test]
async fn what_was_loaded_before_an_invalidation_and_comes_after_it_is_not_kept() {
    let data = alone();
    let open = gate();
    let before = {
        let (data, open) = (Arc::clone(&data), Arc::clone(&open));
        actix_rt::spawn(async move {
            let load = || async move {
                pass(&open).await;
                load(1).await
            };
            data.get_or_set(&key("1"), load).await
        })
    };
    settle().await;
    data.invalidate("acme", Kind::Profile, "1").await.expect("it is a key");
    // Nor is it waited for.
    assert_eq!(in_time(data.get_or_set(&key("1"), || load(2))).await, Ok(2));
    open.add_permits(1);
    assert_eq!(before.await.expect("no panic"), Ok(1));
    assert_eq!(data.get(&key("1")).await, Some(2));
}

#[actix_rt::test]
async fn counters_count_and_are_no_values() {
    let data = alone();
    assert_eq!(data.increment(&key("1"), 5).await.expect("it counts"), 5);
    assert_eq!(data.increment(&key("1"), -2).await.expect("it counts"), 3);
    assert!(!data.exists(&key("1")).await);
}

#[actix_rt::test]
async fn keys_are_listed_page_by_page_and_cleared() {
    let data = alone();
    let keys: Vec<_> = (0..25).map(|number| key(&format!("{number:02}"))).collect();
    let other = DataKey::new("other", Kind::Profile, "1").expect("it is valid");
    for key in keys.iter().chain([&other]) {
        data.set(key, &1).await.expect("it is kept");
    }
    let (mut cursor, mut found) = (String::new(), Vec::new());
    loop {
        let page = data.keys("tenant:acme:*", &cursor, 10).await.expect("memory is there");
        assert!(page.keys.len() <= 10);
        found.extend(page.keys);
        match page.next {
            Some(next) => cursor = next,
            None => break,
        }
    }
    assert_eq!(found, keys.iter().map(ToString::to_string).collect::<Vec<_>>());
    let cleared = data.clear("tenant:acme:*", "", 100).await.expect("memory is there");
    assert_eq!((cleared.deleted, cleared.next), (25, None));
    assert!(data.exists(&other).await);
    assert_eq!(data.usage().entries, 1);
}

#[actix_rt::test]
async fn who_watches_sees_purges_and_how_many_were_missed() {
    let cache = Cache::new(SETTINGS);
    let mut watch = cache.watch();
    cache.data().delete(&key("1")).await;
    let Some(Sight::Purged { record, .. }) = in_time(watch.next()).await else { panic!("a purge") };
    assert_eq!(record.selectors, [Selector::Data("tenant:acme:profile:1".to_owned())]);
    for _ in 0..300 {
        cache.purge(&[Selector::All], Mode::Soft).await;
    }
    let Some(Sight::Missed(missed)) = in_time(watch.next()).await else { panic!("missed") };
    assert_eq!(missed, 300 - 256);
    assert!(matches!(in_time(watch.next()).await, Some(Sight::Purged { .. })));
}

/// Several instances with one store.
struct Fleet {
    caches: Vec<Arc<Cache>>,
    _keepers: Vec<AbortOnDropHandle<()>>,
}

impl Fleet {
    async fn start(instances: usize, seed: u64, trouble: Trouble, l1_ttl: Duration) -> Self {
        let sim = Sim::new(seed, trouble);
        let (mut caches, mut keepers) = (Vec::new(), Vec::new());
        for number in 0..instances {
            let port = sim.port(&number.to_string());
            let remote = Arc::clone(&port) as Arc<dyn Remote>;
            let (cache, keeper) = Cache::sharing(SETTINGS, remote, l1_ttl);
            port.listen(&cache.l2().expect("it has a second tier").coherence);
            keepers.push(AbortOnDropHandle::new(actix_rt::spawn(keeper)));
            caches.push(cache);
        }
        for cache in &caches {
            let coherence = &cache.l2().expect("it has a second tier").coherence;
            assert!(coherence.joined(Duration::from_secs(60)).await, "it never took part");
        }
        Self { caches, _keepers: keepers }
    }

    fn data(&self, instance: usize) -> &Arc<DataCache> {
        self.caches[instance].data()
    }
}

const LONG: Duration = Duration::from_secs(3600);

#[actix_rt::test]
async fn what_one_instance_sets_another_has_at_once() {
    let fleet = Fleet::start(2, 1, Trouble::default(), LONG).await;
    for round in 0..50_u64 {
        let (a, b) = (fleet.data(0), fleet.data(1));
        let (writer, reader) = if round % 3 == 0 { (b, a) } else { (a, b) };
        let changed = writer.set(&key("1"), &round).await.expect("it is kept");
        assert!(changed.shared && changed.missing.is_empty());
        assert_eq!(reader.get(&key("1")).await, Some(round));
        if round % 7 == 0 {
            assert!(writer.delete(&key("1")).await.shared);
            assert_eq!(reader.get::<u64>(&key("1")).await, None);
            assert_eq!(writer.get::<u64>(&key("1")).await, None);
        }
    }
    assert_eq!(fleet.data(0).increment(&key("1"), 2).await.expect("the store is there"), 2);
    assert_eq!(fleet.data(1).increment(&key("1"), 2).await.expect("the store is there"), 4);
}

/// Values change where they are loaded from, are invalidated or set, and are read, in random order.
/// No read that begins after a change was confirmed by all sees what was before it.
async fn schedule(seed: u64, trouble: Trouble) {
    const KEYS: usize = 3;
    let fleet = Fleet::start(3, seed, trouble, Duration::from_millis(3)).await;
    let truth: Arc<[AtomicU64; KEYS]> = Arc::default();
    let floor: Arc<[AtomicU64; KEYS]> = Arc::default();
    // Of two who set one key at once, either is the last.
    let writing: Arc<[tokio::sync::Mutex<()>; KEYS]> = Arc::default();
    let mut dice = Dice(seed);
    let mut acts = Vec::new();
    for _ in 0..400 {
        let data = Arc::clone(fleet.data(dice.roll(3) as usize));
        let (truth, floor) = (Arc::clone(&truth), Arc::clone(&floor));
        let writing = Arc::clone(&writing);
        let mut dice = Dice(dice.roll(u64::MAX));
        acts.push(actix_rt::spawn(async move {
            stroll(dice.roll(1000)).await;
            let which = dice.roll(KEYS as u64) as usize;
            let key = key(&which.to_string());
            let is_known = |changed: &Changed| changed.shared && changed.missing.is_empty();
            match dice.roll(10) {
                0 => {
                    let _turn = writing[which].lock().await;
                    let version = truth[which].fetch_add(1, Ordering::SeqCst) + 1;
                    if is_known(&data.delete(&key).await) {
                        floor[which].fetch_max(version, Ordering::SeqCst);
                    }
                }
                1 => {
                    let _turn = writing[which].lock().await;
                    let version = truth[which].fetch_add(1, Ordering::SeqCst) + 1;
                    let changed = data.set(&key, &version).await.expect("it is kept");
                    if is_known(&changed) {
                        floor[which].fetch_max(version, Ordering::SeqCst);
                    }
                }
                2..5 => {
                    let least = floor[which].load(Ordering::SeqCst);
                    if let Some(seen) = data.get::<u64>(&key).await {
                        assert!(seen >= least, "{key}: {seen} is older than {least}");
                    }
                }
                _ => {
                    let least = floor[which].load(Ordering::SeqCst);
                    let steps = Cell::new(dice.roll(20));
                    let load = || async {
                        let value = truth[which].load(Ordering::SeqCst);
                        stroll(steps.take()).await;
                        load(value).await
                    };
                    let seen = data.get_or_set(&key, load).await.expect("it never fails");
                    assert!(seen >= least, "{key}: {seen} is older than {least}");
                }
            }
        }));
    }
    for act in acts {
        act.await.unwrap_or_else(|error| panic!("schedule {seed}: {error}"));
    }
}

#[actix_rt::test]
async fn no_instance_reads_what_was_changed_through_another() {
    for seed in 0..15 {
        schedule(seed, Trouble::default()).await;
    }
}

#[actix_rt::test]
async fn a_confirmed_change_holds_although_messages_are_lost_and_calls_fail() {
    let trouble = Trouble { lost: 5, failing: 3, expiring: 0 };
    futures_util::future::join_all((100..115).map(|seed| schedule(seed, trouble))).await;
}
