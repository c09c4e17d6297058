//! A YAML document as a tree in which every value knows its place.
//!
//! Deserializing straight into structs stops at the first mistake. A tree is complete however wrong
//! the file is, so all mistakes can be found in it and shown together.

use std::fmt;

use serde::{
    Deserialize, Deserializer,
    de::{MapAccess, SeqAccess, Visitor},
};
use serde_saphyr::{DuplicateKeyPolicy, Spanned, options::NonFiniteFloatPolicy};

/// Deeper than any valid routes file; the parser and the tree's visitors recurse.
const MAX_DEPTH: usize = 32;

/// Longer values are cut in messages.
const MAX_SHOWN: usize = 80;

/// A line and a column, both from 1; 0 where unknown.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) line: usize,
    pub(super) column: usize,
}

/// A value and where it begins.
#[derive(Debug)]
pub(super) struct Node {
    pub(super) place: Place,
    pub(super) value: Value,
    /// The text before variables were filled in, which may be secrets.
    pub(super) written: Option<Box<str>>,
}

#[derive(Debug)]
pub(super) enum Value {
    Null,
    Bool(bool),
    Integer(u64),
    /// Negative and fractional numbers, which no key takes.
    Number(f64),
    Text(Box<str>),
    List(Vec<Node>),
    /// In the file's order, with keys that come twice.
    Map(Vec<(Node, Node)>),
    /// A text whose variables are missing; that is reported, and nothing else is known.
    Unknown,
}

impl Node {
    /// The text, where it is one.
    pub(super) fn text(&self) -> Option<&str> {
        match &self.value {
            Value::Text(text) => Some(text),
            _ => None,
        }
    }

    /// The value as the file has it, for messages: never what a variable held.
    pub(super) fn shown(&self) -> String {
        let quoted = |text: &str| match text.char_indices().nth(MAX_SHOWN) {
            Some((end, _)) => format!("`{}…`", &text[..end]),
            None => format!("`{text}`"),
        };
        match (&self.written, &self.value) {
            (Some(written), _) => quoted(written),
            (None, Value::Text(text)) => quoted(text),
            (None, Value::Integer(number)) => format!("`{number}`"),
            (None, Value::Number(number)) => format!("`{number}`"),
            (None, Value::Bool(boolean)) => format!("`{boolean}`"),
            (None, Value::Null | Value::Unknown) => "nothing".to_owned(),
            (None, Value::List(_)) => "a list".to_owned(),
            (None, Value::Map(_)) => "a map".to_owned(),
        }
    }
}

/// Reads `text` as one YAML document.
pub(super) fn parse(text: &str) -> Result<Node, (Place, String)> {
    let options = serde_saphyr::options! {
        // Room for tens of thousands of routes, also when they share one anchor; what aliases may
        // multiply stays limited by the number of events they replay.
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            max_nodes: 5_000_000,
            max_events: 20_000_000,
            max_merge_keys: 50_000,
            enforce_alias_anchor_ratio: false,
        },
        // Reported with all the other mistakes.
        duplicate_keys: DuplicateKeyPolicy::PassThrough,
        // In YAML 1.1 the key `on` is the boolean true.
        strict_booleans: true,
        non_finite_float_policy: NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options::<Node>(text, options).map_err(|error| {
        let place = error.location().map(place).unwrap_or_default();
        let message = error.without_snippet().to_string();
        // The place is shown in front; and the advice in this one is for programmers.
        let message = match message.rsplit_once(" at line ") {
            _ if message.starts_with("multiple YAML documents") => "expected one YAML document",
            Some((message, _)) => message,
            None => &message,
        };
        (place, message.to_owned())
    })
}

fn place(location: serde_saphyr::Location) -> Place {
    let index = |number: u64| usize::try_from(number).unwrap_or(usize::MAX);
    Place { line: index(location.line()), column: index(location.column()) }
}

impl<'de> Deserialize<'de> for Node {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let spanned = Spanned::<Value>::deserialize(deserializer)?;
        Ok(Self { place: place(spanned.defined), value: spanned.value, written: None })
    }
}

impl<'de> Deserialize<'de> for Value {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(AnyValue)
    }
}

struct AnyValue;

impl<'de> Visitor<'de> for AnyValue {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any value")
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(Value::Integer(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(u64::try_from(value).map_or(Value::Number(value as f64), Value::Integer))
    }

    fn visit_u128<E>(self, value: u128) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_i128<E>(self, value: i128) -> Result<Value, E> {
        Ok(Value::Number(value as f64))
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(Value::Number(value))
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(Value::Text(value.into()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(item) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::List(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Vec::new();
        while let Some(entry) = entries.next_entry()? {
            map.push(entry);
        }
        Ok(Value::Map(map))
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn entries(node: &Node) -> &[(Node, Node)] {
        match &node.value {
            Value::Map(entries) => entries,
            other => panic!("a map, not {other:?}"),
        }
    }

    #[test]
    fn keys_and_values_know_their_places() {
        let tree = parse("a:\n  on: [1, x]\n  on: 'y'\n").expect("valid");
        let (key, value) = &entries(&tree)[0];
        assert_eq!((key.text(), key.place), (Some("a"), Place { line: 1, column: 1 }));
        let inner = entries(value);
        assert_eq!(inner.len(), 2, "a key that comes twice is kept");
        assert_eq!(
            (inner[0].0.text(), inner[0].0.place),
            (Some("on"), Place { line: 2, column: 3 })
        );
        assert_eq!(inner[1].1.place, Place { line: 3, column: 7 });
        let Value::List(items) = &inner[0].1.value else { panic!("a list") };
        assert!(matches!(items[0].value, Value::Integer(1)));
        assert_eq!(items[1].place, Place { line: 2, column: 11 });
    }

    #[test]
    fn anchors_and_merges_are_expanded() {
        let tree = parse("base: &b { x: 1 }\nuse: { <<: *b, y: 2 }\nalso: *b\n").expect("valid");
        assert_eq!(entries(&entries(&tree)[1].1).len(), 2);
        assert_eq!(entries(&entries(&tree)[2].1).len(), 1);
    }

    #[test]
    fn broken_documents_are_errors_with_a_place() {
        let (place, message) = parse("a: [1,\nb: }\n").expect_err("unbalanced");
        assert!(place.line > 0 && !message.is_empty(), "{place:?} {message}");
        assert!(parse(&"[".repeat(100_000)).is_err());
        assert!(parse("a: 1\n---\nb: 2\n").is_err());
        assert!(parse("a: *nope").is_err());
    }

    #[test]
    fn an_empty_document_is_null() {
        assert!(matches!(parse("").expect("valid").value, Value::Null));
        assert!(matches!(parse("# only a comment\n").expect("valid").value, Value::Null));
    }

    proptest! {
        #[test]
        fn no_text_makes_the_parser_panic(text in "([a-c:\\[\\]{}&*!|>'\"#\\- \n]|\\PC){0,40}") {
            let _ = parse(&text);
        }
    }
}
