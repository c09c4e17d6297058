//! What a route's responses vary on: a guess that saves a round trip.
//!
//! A look-up in the second tier asks for the response under its primary name, which says what responses
//! vary on if they do, and with a guess at hand for the variant in the same round trip. The guess is
//! what the route's last response varied on. A new instance has none, so it is kept in the data cache:
//! learnt at the first look-up of a route, told when it has changed. Nobody waits for either, and a
//! wrong guess costs one round trip.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use actix_http::header::HeaderName;
use arc_swap::ArcSwapOption;

use crate::cache::{
    RouteCache,
    clock::Timestamp,
    data::{DataCache, DataKey, Kind},
};

/// The tenant of what the gateway itself keeps.
const OWN: &str = "portway";

/// Changes are not told more often: a route whose responses vary now on this and now on that must not
/// keep all instances busy.
const SELDOM: Duration = Duration::from_secs(60);

/// More is no guess of any use.
const MOST: usize = 64;

type Names = Arc<Vec<HeaderName>>;

/// The guess for one route.
#[derive(Debug, Default)]
pub struct Varies {
    names: ArcSwapOption<Vec<HeaderName>>,
    /// Whether the data cache was asked.
    asked: AtomicBool,
    /// When it was told, in milliseconds since the epoch.
    told: AtomicU64,
}

impl Varies {
    /// What responses vary on, as far as is known.
    pub fn guess(&self) -> Option<Names> {
        self.names.load_full()
    }

    /// Whether it is this caller's turn to tell, as of `now`.
    fn claim_telling(&self, now: Timestamp, pause: Duration) -> bool {
        let told = self.told.load(Ordering::Relaxed);
        (told == 0 || now >= Timestamp(told).after(pause))
            && self.told.compare_exchange(told, now.0, Ordering::Relaxed, Ordering::Relaxed).is_ok()
    }
}

impl RouteCache {
    fn varies_key(&self) -> Option<DataKey> {
        // A handler's name in the library may be anything; such a one learns by itself.
        DataKey::new(OWN, Kind::Metadata, &self.name).ok()
    }

    /// Learns what others know, once, beside everything else.
    pub(super) fn learn(self: &Arc<Self>, data: &Arc<DataCache>) {
        if self.varies.asked.swap(true, Ordering::Relaxed) || self.varies.names.load().is_some() {
            return;
        }
        let Some(key) = self.varies_key() else { return };
        let (this, data) = (Arc::clone(self), Arc::clone(data));
        actix_rt::spawn(async move {
            let Some(texts) = data.get::<Vec<String>>(&key).await else { return };
            if let Some(names) = names(&texts) {
                // What a response said in the meantime is younger.
                let none: Option<Names> = None;
                this.varies.names.compare_and_swap(&none, Some(Arc::new(names)));
            }
        });
    }

    /// A response varied on `names`: tells others beside everything else, if that is news to them.
    pub(in crate::cache) fn varied(self: &Arc<Self>, data: &Arc<DataCache>, names: &Names) {
        let before = self.varies.names.swap(Some(Arc::clone(names)));
        let same = before.is_some_and(|before| before == *names);
        // What is not told anew is forgotten at the end of its lifetime.
        let pause = if same { Kind::Metadata.lifetime() / 2 } else { SELDOM };
        if names.len() > MOST || !self.varies.claim_telling(Timestamp::now(), pause) {
            return;
        }
        let Some(key) = self.varies_key() else { return };
        let (names, data) = (Arc::clone(names), Arc::clone(data));
        actix_rt::spawn(async move {
            let texts: Vec<&str> = names.iter().map(HeaderName::as_str).collect();
            let told = data.show(&key).await.is_some_and(|shown| {
                let known = serde_json::from_slice::<Vec<String>>(&shown.value);
                known.is_ok_and(|it| it == texts) && shown.life > Kind::Metadata.lifetime() / 4
            });
            if !told {
                // Strings in a list can be kept; unshared, it is this instance's alone.
                let _ = data.set(&key, &texts).await;
            }
        });
    }
}

/// Header names, if all of them are.
fn names(texts: &[String]) -> Option<Vec<HeaderName>> {
    let names = texts.iter().map(|text| HeaderName::from_bytes(text.as_bytes()).ok());
    let names: Vec<_> = names.collect::<Option<_>>()?;
    (!names.is_empty() && names.len() <= MOST).then_some(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_told_once_in_a_while() {
        let varies = Varies::default();
        assert!(varies.claim_telling(Timestamp(1), SELDOM));
        assert!(!varies.claim_telling(Timestamp(60_000), SELDOM));
        assert!(varies.claim_telling(Timestamp(60_001), SELDOM));
    }

    #[test]
    fn only_names_of_headers_are_learnt() {
        let read =
            |texts: &[&str]| names(&texts.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(read(&["accept"]).map(|names| names.len()), Some(1));
        assert_eq!(read(&["accept", "no name"]), None);
        assert_eq!(read(&[]), None);
    }
}
