//! Invalidations as they happen, as Server-Sent Events.

use std::{convert::Infallible, time::Duration};

use actix_web::{
    HttpResponse,
    http::header::{CACHE_CONTROL, CONTENT_TYPE},
    web::{Bytes, Data},
};
use futures_util::{Stream, StreamExt as _, stream};
use serde_json::{Value, json};
use tokio::time::{Interval, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::Context;
use crate::cache::{
    purge::{Mode, Selector},
    purger::{Sight, Watch},
};

/// How often a connection without events says that it lives.
const BEAT: Duration = Duration::from_secs(15);

/// `GET /admin/v1/events`: every purge from now on, when this instance applies it.
pub(super) async fn follow(context: Data<Context>) -> HttpResponse {
    let events = events(context.cache.watch(), context.stopping.clone());
    HttpResponse::Ok()
        .insert_header((CONTENT_TYPE, "text/event-stream"))
        .insert_header((CACHE_CONTROL, "no-store"))
        .streaming(events.map(Ok::<_, Infallible>))
}

/// The stream's text. A reader that is too slow hears how many it has missed, and goes on with what
/// comes now: nothing waits for it and nothing piles up.
fn events(watch: Watch, stopping: CancellationToken) -> impl Stream<Item = Bytes> {
    let mut beat = interval(BEAT);
    beat.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let state = (watch, stopping, beat);
    stream::unfold(
        state,
        |(mut watch, stopping, mut beat): (Watch, CancellationToken, Interval)| {
            async move {
                let text = tokio::select! {
                    biased;
                    () = stopping.cancelled() => return None,
                    sight = watch.next() => text(&sight?),
                    // The first at once, so that the reader knows that it is heard.
                    _ = beat.tick() => ": still here\n\n".to_owned(),
                };
                Some((Bytes::from(text), (watch, stopping, beat)))
            }
        },
    )
}

/// One event. JSON has no line breaks of its own.
fn text(sight: &Sight) -> String {
    let (event, data) = match sight {
        Sight::Missed(missed) => ("missed", json!({ "missed": missed })),
        Sight::Purged { record, recorded } => {
            let selectors: Vec<_> = record.selectors.iter().map(named).collect();
            let soft = record.mode == Mode::Soft;
            let data = json!({
                "selectors": selectors,
                "soft": soft,
                "from": record.from,
                "recorded": recorded,
            });
            ("purge", data)
        }
    };
    format!("event: {event}\ndata: {data}\n\n")
}

/// A selector in the words of a purge's body.
fn named(selector: &Selector) -> Value {
    let on = |host: &Option<String>, rest: &str| match host {
        Some(host) => format!("http://{host}{rest}"),
        None => rest.to_owned(),
    };
    match selector {
        Selector::Url { host, path, query: None } => {
            json!({ "key": format!("http://{host}{path}") })
        }
        Selector::Url { host, path, query: Some(query) } => {
            json!({ "key": format!("http://{host}{path}?{query}") })
        }
        Selector::Route(name) => json!({ "route": name }),
        Selector::Tag(tag) => json!({ "tag": tag }),
        Selector::Tenant(tenant) => json!({ "tenant": tenant }),
        Selector::Data(key) => json!({ "data": key }),
        Selector::Prefix { host, path } => json!({ "prefix": on(host, path) }),
        Selector::Pattern { host, glob } => json!({ "pattern": on(host, glob) }),
        Selector::All => json!({ "all": true }),
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use super::*;
    use crate::cache::{Cache, Settings};

    const SETTINGS: Settings = Settings { l1_max_bytes: 1 << 20, max_object_bytes: 1 << 10 };

    #[tokio::test]
    async fn a_slow_reader_hears_what_it_missed_and_goes_on() {
        let cache = Cache::new(SETTINGS);
        let mut events = pin!(events(cache.watch(), CancellationToken::new()));
        for number in 0..300 {
            cache.purge(&[Selector::Tag(number.to_string())], Mode::Hard).await;
        }
        let missed = events.next().await.expect("it goes on");
        assert_eq!(missed, "event: missed\ndata: {\"missed\":44}\n\n");
        let next = events.next().await.expect("it goes on");
        assert!(String::from_utf8_lossy(&next).contains(r#""tag":"44""#), "{next:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn silence_is_broken_every_fifteen_seconds_until_the_end() {
        let cache = Cache::new(SETTINGS);
        let stopping = CancellationToken::new();
        let mut events = pin!(events(cache.watch(), stopping.clone()));
        let began = tokio::time::Instant::now();
        for _ in 0..3 {
            assert_eq!(events.next().await.expect("it goes on"), ": still here\n\n");
        }
        assert_eq!(began.elapsed(), 2 * BEAT);
        stopping.cancel();
        assert_eq!(events.next().await, None);
    }

    #[test]
    fn purges_are_named_as_they_are_asked_for() {
        let url = Selector::Url { host: "h".into(), path: "/p".into(), query: Some("q".into()) };
        assert_eq!(named(&url), json!({ "key": "http://h/p?q" }));
        let prefix = Selector::Prefix { host: None, path: "/p".into() };
        assert_eq!(named(&prefix), json!({ "prefix": "/p" }));
    }
}
