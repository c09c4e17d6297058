//! Messages and leases over Redis: what a listener may rely on, and that a lease has one holder.

use std::{
    sync::{Arc, Mutex},
    time::Duration,
};

use portway::redis::{Listener, Redis, cmd, lease};

use crate::{
    lab::{SOON, eventually, redis::Redis as Server, within},
    redis_link::{link, up},
};

/// Writes down what it is told.
#[derive(Default)]
pub(crate) struct Diary(Mutex<Vec<String>>);

impl Diary {
    fn lines(&self) -> Vec<String> {
        self.0.lock().expect("no panic").clone()
    }

    fn note(&self, line: String) {
        self.0.lock().expect("no panic").push(line);
    }

    pub(crate) async fn has(&self, line: &str, limit: Duration) {
        let what = format!("the listener was told {line}");
        eventually(&what, limit, || async { self.lines().last().is_some_and(|it| it == line) })
            .await;
    }
}

impl Listener for Diary {
    fn message(&self, channel: &str, payload: &[u8]) {
        self.note(format!("{channel}: {}", String::from_utf8_lossy(payload)));
    }

    fn subscribed(&self) {
        self.note("subscribed".to_owned());
    }

    fn lost(&self) {
        self.note("lost".to_owned());
    }
}

pub(crate) fn listen(redis: &Redis) -> Arc<Diary> {
    let diary = Arc::new(Diary::default());
    redis.subscribe(vec!["one".to_owned(), "two".to_owned()], Arc::clone(&diary) as _);
    diary
}

async fn publish(redis: &Redis, channel: &str, payload: &str) {
    let _: u64 = redis.command(cmd("PUBLISH").arg(channel).arg(payload)).await.expect("published");
}

#[tokio::test]
async fn messages_are_heard_between_subscribed_and_lost() {
    let mut server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    let diary = listen(&redis);
    diary.has("subscribed", SOON).await;
    publish(&redis, "one", "a").await;
    publish(&redis, "two", "b").await;
    publish(&redis, "three", "c").await;
    diary.has("two: b", SOON).await;
    assert_eq!(diary.lines(), ["subscribed", "one: a", "two: b"]);

    server.kill();
    diary.has("lost", Duration::from_secs(1)).await;
    server.restart().await;
    diary.has("subscribed", Duration::from_secs(2)).await;
    up(&redis).await;
    publish(&redis, "one", "d").await;
    diary.has("one: d", SOON).await;
    let expected = ["subscribed", "one: a", "two: b", "lost", "subscribed", "one: d"];
    assert_eq!(diary.lines(), expected);
}

#[tokio::test]
async fn a_subscription_to_a_hung_redis_is_lost_within_seconds() {
    let server = Server::start().await;
    let redis = link(&server.url());
    let diary = listen(&redis);
    diary.has("subscribed", SOON).await;
    server.stop_hanging();
    diary.has("lost", Duration::from_secs(5)).await;
    server.resume();
    diary.has("subscribed", Duration::from_secs(2)).await;
}

#[tokio::test]
async fn a_subscription_ends_with_its_link() {
    let server = Server::start().await;
    let redis = link(&server.url());
    let diary = listen(&redis);
    diary.has("subscribed", SOON).await;
    drop(redis);
    diary.has("lost", SOON).await;
    eventually("nobody listens", SOON, || async {
        server.command(&["PUBSUB", "NUMSUB", "one"]).await.ends_with('0')
    })
    .await;
}

const LONG: Duration = Duration::from_secs(60);

#[tokio::test]
async fn a_lease_has_one_holder_until_it_is_released() {
    let server = Server::start().await;
    let (redis, other) = (link(&server.url()), link(&server.url()));
    up(&redis).await;
    up(&other).await;
    let acquire = |redis: Arc<Redis>| async move {
        lease::acquire(&redis, "task".to_owned(), LONG).await.expect("an answer")
    };
    let first = acquire(Arc::clone(&redis)).await.expect("it is free");
    assert!(first.token().starts_with(redis.instance()), "{}", first.token());
    assert!(acquire(Arc::clone(&redis)).await.is_none());
    assert!(acquire(Arc::clone(&other)).await.is_none());
    assert_eq!(first.renew(&redis, LONG).await, Ok(true));
    assert_eq!(first.release(&redis).await, Ok(true));
    let second = acquire(other).await.expect("it is free again");
    assert_eq!(second.key(), "task");
}

#[tokio::test]
async fn a_lease_ends_by_itself_and_its_holder_learns_it() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    let short = Duration::from_millis(30);
    let first = lease::acquire(&redis, "task".to_owned(), short).await.expect("an answer");
    let first = first.expect("it is free");
    let second = within(SOON, "the lease", async {
        loop {
            let lease = lease::acquire(&redis, "task".to_owned(), LONG).await.expect("an answer");
            if let Some(lease) = lease {
                return lease;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(first.renew(&redis, LONG).await, Ok(false));
    assert_eq!(first.release(&redis).await, Ok(false));
    assert_eq!(second.renew(&redis, LONG).await, Ok(true), "it is still the second's");
}

#[tokio::test]
async fn fences_only_grow_even_when_redis_forgets() {
    let server = Server::start().await;
    let redis = link(&server.url());
    up(&redis).await;
    let mut last = 0;
    for round in 0..20 {
        let got = lease::acquire_fenced(&redis, "task".to_owned(), LONG).await.expect("an answer");
        let (lease, fence) = got.expect("it is free");
        assert!(fence > last, "{fence} after {last}");
        last = fence;
        let other = lease::acquire_fenced(&redis, "task".to_owned(), LONG).await;
        assert!(other.expect("an answer").is_none());
        assert_eq!(lease.release(&redis).await, Ok(true));
        if round == 10 {
            server.command(&["FLUSHALL", "SYNC"]).await;
        }
    }
    // A clock that was set back does not take the fence with it.
    let ahead = last + 3_600_000_000;
    server.command(&["SET", "{task}:fence", &ahead.to_string()]).await;
    let got = lease::acquire_fenced(&redis, "task".to_owned(), LONG).await.expect("an answer");
    assert_eq!(got.expect("it is free").1, ahead + 1);
}
