//! Messages from other instances, on a connection of their own.
//!
//! Redis does not keep a message for a subscriber that is not there. So a listener is told when it
//! begins to hear and when it may have missed something, and in an order it can rely on: after
//! [`Listener::subscribed`] it gets every message up to [`Listener::lost`], and none after that.
//!
//! A connection that nobody writes to can be dead for hours without anybody noticing: it is asked once
//! a second, and given up after three without an answer.

use std::{
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use ::redis::{
    PushInfo, PushKind, RedisError, Value,
    aio::{AsyncPushSender, SendError},
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout, timeout_at},
};

use super::{CONNECT, backoff::Backoff, connect::ping, fault::describe, link::Link};
use crate::telemetry::random;

/// How often the connection is asked whether it lives.
const INTERVAL: Duration = Duration::from_secs(1);

/// Silence after which it does not.
const SILENCE: Duration = Duration::from_secs(3);

/// Whoever wants the messages. Called on the link's own task, one call at a time: it must not block.
pub trait Listener: Send + Sync {
    fn message(&self, channel: &str, payload: &[u8]);

    /// From now on messages are heard. Any number may have been missed before.
    fn subscribed(&self);

    /// From now on messages are missed.
    fn lost(&self);
}

/// What one connection hears.
struct Ear {
    listener: Arc<dyn Listener>,
    hearing: Mutex<Hearing>,
    /// Told when the connection is closed.
    closed: Notify,
}

enum Hearing {
    /// The server has yet to confirm this many channels.
    Waiting(usize),
    Subscribed,
    Lost,
}

impl AsyncPushSender for Ear {
    fn send(&self, push: PushInfo) -> Result<(), SendError> {
        // Held while the listener is called, so that nothing comes after `lost`.
        let mut hearing = self.hearing();
        match (&*hearing, push.kind) {
            (Hearing::Waiting(1), PushKind::Subscribe) => {
                *hearing = Hearing::Subscribed;
                self.listener.subscribed();
            }
            (Hearing::Waiting(channels), PushKind::Subscribe) => {
                *hearing = Hearing::Waiting(channels - 1);
            }
            (Hearing::Subscribed, PushKind::Message) => {
                if let [Value::BulkString(channel), Value::BulkString(payload)] = &*push.data
                    && let Ok(channel) = str::from_utf8(channel)
                {
                    self.listener.message(channel, payload);
                }
            }
            (_, PushKind::Disconnection) => self.closed.notify_one(),
            _ => {}
        }
        Ok(())
    }
}

impl Ear {
    fn hearing(&self) -> MutexGuard<'_, Hearing> {
        // A listener that panics has heard what it has heard.
        self.hearing.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says `lost` also when the task is dropped.
struct Hears(Arc<Ear>);

impl Drop for Hears {
    fn drop(&mut self) {
        let mut hearing = self.0.hearing();
        if let Hearing::Subscribed = std::mem::replace(&mut *hearing, Hearing::Lost) {
            self.0.listener.lost();
        }
    }
}

/// Runs for ever.
pub(super) async fn subscribe(link: Arc<Link>, channels: Vec<String>, listener: Arc<dyn Listener>) {
    let mut backoff = Backoff::new();
    let mut again = false;
    loop {
        let ear = Arc::new(Ear {
            listener: Arc::clone(&listener),
            hearing: Mutex::new(Hearing::Waiting(channels.len())),
            closed: Notify::new(),
        });
        let hears = Hears(Arc::clone(&ear));
        let began = Instant::now();
        let error = match listen(&link, &channels, &ear, again).await {
            Ok(()) => "closed".to_owned(),
            Err(error) => describe(&error),
        };
        drop(hears);
        again = true;
        // A link that is away has its own line in the log.
        tracing::debug!(error, "subscription lost");
        if began.elapsed() > SILENCE {
            backoff = Backoff::new();
        }
        sleep(backoff.next(random::next())).await;
    }
}

/// Subscribes, and asks whether the connection lives until it does not.
async fn listen(
    link: &Link,
    channels: &[String],
    ear: &Arc<Ear>,
    again: bool,
) -> Result<(), RedisError> {
    let late = || RedisError::from(std::io::Error::from(std::io::ErrorKind::TimedOut));
    let pushes: Arc<dyn AsyncPushSender> = Arc::clone(ear) as _;
    let mut opened = timeout(CONNECT, async {
        let mut opened = link.subscriber(Some(pushes)).await?;
        opened.connection.subscribe(channels).await?;
        Ok::<_, RedisError>(opened)
    })
    .await
    .map_err(|_| late())??;
    link.metrics.connected(again);
    let mut answered = Instant::now();
    loop {
        tokio::select! {
            () = sleep(INTERVAL) => {}
            () = ear.closed.notified() => return Ok(()),
        }
        tokio::select! {
            answer = timeout_at(answered + SILENCE, ping(&mut opened.connection)) => {
                answer.map_err(|_| late())??;
            }
            () = ear.closed.notified() => return Ok(()),
        }
        answered = Instant::now();
    }
}
