//! Read your writes: where a caller's latest write is, carried by the caller.
//!
//! A write's response says how far the database had come, in a header field and a cookie. A read that brings
//! it back is answered only by a node that has come that far, on whichever instance. What is carried is
//! signed, because an invented position would send every read to the primary; it is no secret.

use std::time::Duration;

use actix_http::{
    RequestHead,
    header::{COOKIE, HeaderMap, HeaderName, HeaderValue, SET_COOKIE},
};
use arc_swap::ArcSwapOption;
use aws_lc_rs::hmac;
use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};

use crate::{
    db::{Db, Position},
    telemetry::throttle::Throttle,
};

pub static PORTWAY_POSITION: HeaderName = HeaderName::from_static("portway-position");
const COOKIE_NAME: &str = "portway_position";

/// How long a position is kept, unless replicas may lag longer than that.
const KEPT: Duration = Duration::from_secs(30);

/// What a position may seem older or younger than it is, since it comes from another machine's clock.
const LEEWAY: u64 = 5;

const PURPOSE: &str = "position";
const RETRY: Duration = Duration::from_secs(1);

/// What a read has to see.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Floor {
    pub after: Option<Position>,
    /// It brought a position that cannot be verified yet, so only the primary will do.
    pub unverified: bool,
}

/// Signs and verifies positions.
pub struct Positions {
    /// None until it was read from the database.
    key: ArcSwapOption<hmac::Key>,
    /// Seconds.
    kept: u64,
}

impl Positions {
    /// `max_lag` is how old the data of a replica may be at most.
    pub fn new(max_lag: Duration) -> Self {
        Self { key: ArcSwapOption::empty(), kept: KEPT.max(max_lag + KEPT / 6).as_secs() }
    }

    /// Gets the key, for as long as that takes.
    pub async fn load(&self, db: &Db) {
        static LOGGED: Throttle = Throttle::new(1);
        loop {
            match db.signing_key(PURPOSE).await {
                Ok(key) => {
                    let key = hmac::Key::new(hmac::HMAC_SHA256, &key);
                    self.key.store(Some(key.into()));
                    return;
                }
                Err(error) => {
                    let now = crate::cache::clock::Timestamp::now().seconds();
                    if LOGGED.admit(now / 30).is_some() {
                        tracing::warn!("no key to sign positions with yet: {error}");
                    }
                }
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    /// What a request brought, of the header field and the cookie the further.
    pub fn floor(&self, head: &RequestHead, now: u64) -> Floor {
        let mut brought = brought(head.headers()).peekable();
        if brought.peek().is_none() {
            return Floor::default();
        }
        match &*self.key.load() {
            Some(key) => {
                let after = brought.filter_map(|token| verify(key, token, now, self.kept)).max();
                Floor { after, unverified: false }
            }
            None => Floor { after: None, unverified: true },
        }
    }

    /// Tells the client where its write is.
    pub fn put(&self, headers: &mut HeaderMap, position: Position, secure: bool, now: u64) {
        let key = self.key.load();
        let Some(key) = &*key else { return };
        let token = sign(key, position, now);
        let secure = if secure { "; Secure" } else { "" };
        let cookie = format!(
            "{COOKIE_NAME}={token}; Max-Age={}; Path=/; HttpOnly; SameSite=Lax{secure}",
            self.kept
        );
        // Digits, letters and a few marks.
        if let (Ok(token), Ok(cookie)) =
            (HeaderValue::try_from(token), HeaderValue::try_from(cookie))
        {
            headers.insert(PORTWAY_POSITION.clone(), token);
            headers.append(SET_COOKIE, cookie);
        }
    }
}

/// The tokens of a request.
fn brought(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let fields = headers.get_all(&PORTWAY_POSITION).filter_map(|value| value.to_str().ok());
    let cookies = headers.get_all(COOKIE).filter_map(|value| value.to_str().ok());
    let cookies = cookies.flat_map(|line| line.split(';')).filter_map(|pair| {
        let (name, value) = pair.trim().split_once('=')?;
        (name == COOKIE_NAME).then_some(value)
    });
    fields.chain(cookies)
}

/// `1-<timeline>-<lsn, hexadecimal>-<seconds since 1970>.<HMAC-SHA256>`.
fn sign(key: &hmac::Key, position: Position, now: u64) -> String {
    let Position { timeline, lsn } = position;
    let text = format!("1-{timeline}-{lsn:x}-{now}");
    let tag = URL_SAFE_NO_PAD.encode(hmac::sign(key, text.as_bytes()));
    format!("{text}.{tag}")
}

fn verify(key: &hmac::Key, token: &str, now: u64, kept: u64) -> Option<Position> {
    let (text, tag) = token.split_once('.')?;
    let tag = URL_SAFE_NO_PAD.decode(tag).ok()?;
    hmac::verify(key, text.as_bytes(), &tag).ok()?;
    let mut parts = text.split('-');
    let version = parts.next()?;
    let timeline = parts.next()?.parse().ok()?;
    let lsn = u64::from_str_radix(parts.next()?, 16).ok()?;
    let written: u64 = parts.next()?.parse().ok()?;
    let young = now.saturating_sub(written) <= kept + LEEWAY;
    (version == "1" && young).then_some(Position { timeline, lsn })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const NOW: u64 = 1_800_000_000;

    fn positions(secret: &[u8]) -> Positions {
        let positions = Positions::new(Duration::from_secs(5));
        positions.key.store(Some(hmac::Key::new(hmac::HMAC_SHA256, secret).into()));
        positions
    }

    fn head(field: Option<&str>, cookie: Option<&str>) -> RequestHead {
        let mut head = RequestHead::default();
        let mut add = |name: &HeaderName, text: &str| {
            head.headers.append(name.clone(), HeaderValue::from_str(text).expect("a value"));
        };
        field.into_iter().for_each(|text| add(&PORTWAY_POSITION, text));
        cookie.into_iter().for_each(|text| add(&COOKIE, text));
        head
    }

    fn token(positions: &Positions, position: Position) -> String {
        let mut headers = HeaderMap::new();
        positions.put(&mut headers, position, false, NOW);
        headers.get(&PORTWAY_POSITION).expect("a token").to_str().expect("ASCII").to_owned()
    }

    #[test]
    fn what_a_write_told_a_read_brings_back_and_the_further_of_two_counts() {
        let positions = positions(b"k");
        let (near, far) = (Position { timeline: 1, lsn: 5 }, Position { timeline: 2, lsn: 3 });
        let cookie = format!("a=b; {COOKIE_NAME}={}; c=d", token(&positions, far));
        let floor = positions.floor(&head(Some(&token(&positions, near)), Some(&cookie)), NOW);
        assert_eq!(floor, Floor { after: Some(far), unverified: false });
    }

    #[test]
    fn an_old_position_counts_no_more_and_one_of_another_key_never_did() {
        let positions = positions(b"k");
        let at = Position { timeline: 1, lsn: 5 };
        let token = token(&positions, at);
        let after = |now| positions.floor(&head(Some(&token), None), now).after;
        assert_eq!((after(NOW + 30), after(NOW - 3)), (Some(at), Some(at)));
        assert_eq!(after(NOW + 60), None);
        let other = super::tests::positions(b"other");
        assert_eq!(other.floor(&head(Some(&token), None), NOW).after, None);
    }

    #[test]
    fn positions_are_kept_as_long_as_replicas_may_lag() {
        assert!(Positions::new(Duration::from_secs(120)).kept > 120);
    }

    #[test]
    fn before_the_key_is_there_a_read_with_a_position_asks_the_primary() {
        let positions = Positions::new(Duration::ZERO);
        assert!(positions.floor(&head(Some("1-1-5-1.x"), None), NOW).unverified);
        assert_eq!(positions.floor(&head(None, Some("a=b")), NOW), Floor::default());
    }

    proptest! {
        #[test]
        fn no_changed_token_counts(at in 0..80_usize, byte in 33..127_u8, text in "[ -~]{0,60}") {
            let positions = positions(b"k");
            let whole = token(&positions, Position { timeline: 1, lsn: 0xabc });
            let mut changed = whole.clone().into_bytes();
            if at < changed.len() && changed[at] != byte {
                changed[at] = byte;
                let changed = String::from_utf8(changed).expect("ASCII");
                // The last digit of base64 has bits that mean nothing, and are not accepted either.
                prop_assert_eq!(positions.floor(&head(Some(&changed), None), NOW).after, None);
            }
            prop_assert_eq!(positions.floor(&head(Some(&text), None), NOW).after, None);
        }
    }
}
