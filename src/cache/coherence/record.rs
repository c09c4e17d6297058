//! A purge, as the log keeps it.
//!
//! JSON, because instances of different builds read one log: what a reader does not know it takes for a
//! purge of everything, which is never wrong, only wasteful.

use serde::{Deserialize, Serialize};

use crate::cache::purge::{Mode, Selector};

/// One record of the log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Record {
    /// Who wants to know that it was applied; empty for nobody.
    pub from: String,
    pub mode: Mode,
    pub selectors: Vec<Selector>,
}

impl Record {
    pub fn to_bytes(&self) -> Vec<u8> {
        // It is made of strings and enums, which always serialise; if not, it is no known record.
        serde_json::to_vec(self).unwrap_or_default()
    }

    pub fn parse(bytes: &[u8]) -> Self {
        serde_json::from_slice(bytes).unwrap_or_else(|_| {
            let from = serde_json::from_slice::<Sender>(bytes).unwrap_or_default().from;
            Self { from, ..Self::everything() }
        })
    }

    /// What the log begins with, and what is written into it where purges were lost.
    pub fn everything() -> Self {
        Self { from: String::new(), mode: Mode::Hard, selectors: vec![Selector::All] }
    }
}

/// The part that every version of a record has.
#[derive(Default, Deserialize)]
struct Sender {
    #[serde(default)]
    from: String,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was() {
        let record = Record {
            from: "a1".to_owned(),
            mode: Mode::Soft,
            selectors: vec![
                Selector::Tag("product:1".to_owned()),
                Selector::Url { host: "h".to_owned(), path: "/p".to_owned(), query: None },
                Selector::Prefix { host: Some("h".to_owned()), path: "/p".to_owned() },
                Selector::All,
            ],
        };
        assert_eq!(Record::parse(&record.to_bytes()), record);
    }

    #[test]
    fn what_is_not_known_purges_everything() {
        let newer = br#"{"from":"a1","mode":"Hard","selectors":[{"Colour":"red"}]}"#;
        assert_eq!(Record::parse(newer), Record { from: "a1".to_owned(), ..Record::everything() });
        let other = br#"{"from":"a1","mode":"Gently","selectors":["All"]}"#;
        assert_eq!(Record::parse(other).mode, Mode::Hard);
        assert_eq!(Record::parse(b"\xff"), Record::everything());
    }
}
