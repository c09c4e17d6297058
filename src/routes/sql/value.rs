//! The values of parameters, and how they are read from text and from JSON.

use chrono::{DateTime, NaiveDate, Utc};
use uuid::Uuid;

use crate::routes::model::ParamType;

/// Items of one array, at most.
const MAX_ITEMS: usize = 1000;

/// A value that was checked against its type.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    Null,
    Integer(i64),
    /// A decimal number, as it was written.
    Number(Box<str>),
    Boolean(bool),
    Text(Box<str>),
    Uuid(Uuid),
    Timestamp(DateTime<Utc>),
    Date(NaiveDate),
    /// A JSON text.
    Json(Box<str>),
    Array(Vec<Value>),
}

/// Why a text is no value of its type, and what was expected.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Unfit {
    /// It cannot be read as one.
    Type(String),
    /// It can, but breaks a rule: a bound, a pattern, a list of words.
    Rule(String),
}

impl Unfit {
    pub fn expected(&self) -> &str {
        match self {
            Self::Type(expected) | Self::Rule(expected) => expected,
        }
    }
}

impl ParamType {
    /// Reads a value from text: a path segment, a query parameter, a header field, a field of a form.
    ///
    /// # Errors
    ///
    /// What was expected.
    pub fn read(&self, text: &str) -> Result<Value, Unfit> {
        let unreadable = || Unfit::Type(self.expected());
        match self {
            Self::Integer { min, max } => {
                let number: i64 = integer(text).ok_or_else(unreadable)?;
                let fits = (*min..=*max).contains(&number);
                if fits { Ok(Value::Integer(number)) } else { Err(Unfit::Rule(self.expected())) }
            }
            Self::Number { min, max } => {
                let number = decimal(text).ok_or_else(unreadable)?;
                let fits =
                    min.is_none_or(|min| number >= min) && max.is_none_or(|max| number <= max);
                if fits {
                    Ok(Value::Number(text.into()))
                } else {
                    Err(Unfit::Rule(self.expected()))
                }
            }
            Self::Boolean => text.parse().map(Value::Boolean).map_err(|_| unreadable()),
            Self::Text { min, max, pattern } => {
                if text.contains('\0') {
                    return Err(Unfit::Type("text without U+0000".to_owned()));
                }
                let fits = (*min..=*max).contains(&text.chars().count())
                    && pattern.as_ref().is_none_or(|pattern| pattern.is_match(text));
                if fits { Ok(Value::Text(text.into())) } else { Err(Unfit::Rule(self.expected())) }
            }
            Self::Uuid => Uuid::try_parse(text).map(Value::Uuid).map_err(|_| unreadable()),
            Self::Timestamp => DateTime::parse_from_rfc3339(text)
                .map(|moment| Value::Timestamp(moment.to_utc()))
                .map_err(|_| unreadable()),
            Self::Date => {
                // `%Y` alone takes signs and fewer digits.
                let shape = text.len() == 10 && text.as_bytes()[4] == b'-';
                let date = NaiveDate::parse_from_str(text, "%Y-%m-%d").ok();
                date.filter(|_| shape).map(Value::Date).ok_or_else(unreadable)
            }
            Self::Json => {
                serde_json::from_str::<serde::de::IgnoredAny>(text).map_err(|_| unreadable())?;
                // What no database can hold inside its text.
                if text.contains("\\u0000") {
                    return Err(Unfit::Type("JSON without U+0000".to_owned()));
                }
                Ok(Value::Json(text.into()))
            }
            Self::Enum(words) => {
                let fits = words.iter().any(|word| **word == *text);
                if fits { Ok(Value::Text(text.into())) } else { Err(Unfit::Rule(self.expected())) }
            }
        }
    }

    /// Reads a value from a piece of JSON: a field of a JSON body.
    ///
    /// # Errors
    ///
    /// What was expected.
    pub fn read_json(&self, json: &str) -> Result<Value, Unfit> {
        let json = json.trim();
        let is_text = json.starts_with('"');
        match self {
            Self::Json => self.read(json),
            Self::Integer { .. } | Self::Number { .. } | Self::Boolean if !is_text => {
                self.read(json)
            }
            Self::Integer { .. } | Self::Number { .. } | Self::Boolean => {
                Err(Unfit::Type(self.expected()))
            }
            _ => match serde_json::from_str::<String>(json) {
                Ok(text) => self.read(&text),
                Err(_) => Err(Unfit::Type(self.expected())),
            },
        }
    }

    /// What a value has to be, in words.
    pub fn expected(&self) -> String {
        match self {
            Self::Integer { min: i64::MIN, max: i64::MAX } => "a whole number".to_owned(),
            Self::Integer { min, max: i64::MAX } => format!("a whole number, {min} or more"),
            Self::Integer { min: i64::MIN, max } => format!("a whole number, {max} or less"),
            Self::Integer { min, max } => format!("a whole number, {min} to {max}"),
            Self::Number { min, max } => match (min, max) {
                (None, None) => "a number".to_owned(),
                (Some(min), None) => format!("a number, {min} or more"),
                (None, Some(max)) => format!("a number, {max} or less"),
                (Some(min), Some(max)) => format!("a number, {min} to {max}"),
            },
            Self::Boolean => "true or false".to_owned(),
            Self::Text { min, max, pattern } => {
                let length = match (*min, *max) {
                    (0, usize::MAX) => "text".to_owned(),
                    (min, usize::MAX) => format!("text of {min} characters or more"),
                    (min, max) => format!("text of {min} to {max} characters"),
                };
                match pattern {
                    // Without the anchors that were put around it.
                    Some(pattern) => format!("{length} that matches {}", written(pattern)),
                    None => length,
                }
            }
            Self::Uuid => "a UUID".to_owned(),
            Self::Timestamp => "a timestamp such as 2026-01-31T12:00:00Z".to_owned(),
            Self::Date => "a date such as 2026-01-31".to_owned(),
            Self::Json => "JSON".to_owned(),
            Self::Enum(words) => format!("one of {}", words.join(", ")),
        }
    }
}

/// A pattern has to match all of a text; this is around it.
pub(super) const ANCHORS: (&str, &str) = ("^(?:", ")$");

fn written(pattern: &regex::Regex) -> &str {
    let text = pattern.as_str();
    text.strip_prefix(ANCHORS.0).and_then(|text| text.strip_suffix(ANCHORS.1)).unwrap_or(text)
}

/// Reads the items of an array, each as `one` reads it.
///
/// # Errors
///
/// What was expected of the first that does not fit.
pub fn array<T>(
    items: impl Iterator<Item = T>,
    one: impl Fn(T) -> Result<Value, Unfit>,
) -> Result<Value, Unfit> {
    let mut values = Vec::new();
    for item in items {
        if values.len() == MAX_ITEMS {
            return Err(Unfit::Rule(format!("at most {MAX_ITEMS} items")));
        }
        values.push(one(item)?);
    }
    Ok(Value::Array(values))
}

/// As JSON writes it: no plus sign, no spaces, no leading zeros.
fn integer(text: &str) -> Option<i64> {
    decimal(text)?;
    text.parse().ok()
}

/// A decimal number as JSON writes it, of a length that a database takes.
fn decimal(text: &str) -> Option<f64> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let whole = digits.len() - digits.trim_start_matches(|c: char| c.is_ascii_digit()).len();
    let leading_zero = whole > 1 && digits.starts_with('0');
    let legal = |byte: u8| byte.is_ascii_digit() || b".eE+-".contains(&byte);
    if whole == 0 || leading_zero || text.len() > 64 || !text.bytes().all(legal) {
        return None;
    }
    let number: f64 = text.parse().ok()?;
    (number.is_finite() && !text.ends_with('.') && !text.contains(".e")).then_some(number)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const INTEGER: ParamType = ParamType::Integer { min: i64::MIN, max: i64::MAX };
    const NUMBER: ParamType = ParamType::Number { min: None, max: None };
    const TEXT: ParamType = ParamType::Text { min: 0, max: usize::MAX, pattern: None };

    #[test]
    fn values_are_read_strictly() {
        for (kind, good, bad) in [
            (
                INTEGER,
                &["0", "-7", "9223372036854775807"][..],
                &["", "+1", "01", "1.0", " 1", "1e3", "9223372036854775808"][..],
            ),
            (
                NUMBER,
                &["0", "-0.5", "1e3", "12345678901234567890.123"],
                &["", ".5", "1.", "NaN", "inf", "0x1", "1e999"],
            ),
            (ParamType::Boolean, &["true", "false"], &["1", "TRUE", ""]),
            (ParamType::Uuid, &["67e55044-10b1-426f-9247-bb680e5fe0c8"], &["67e5", ""]),
            (
                ParamType::Timestamp,
                &["2026-01-31T12:00:00Z", "2026-01-31T12:00:00.123456+02:00"],
                &["2026-01-31", "2026-13-01T00:00:00Z", "now"],
            ),
            (
                ParamType::Date,
                &["2026-01-31"],
                &["2026-02-30", "26-01-31", "+2026-01-31", "2026-1-31"],
            ),
            (ParamType::Json, &["{\"a\":[1]}", "null"], &["{", "", "'a'", "\"\\u0000\""]),
            (ParamType::Enum(vec!["a".into(), "b".into()]), &["a"], &["c", "A", ""]),
            (TEXT, &["", "ö"], &["\0"]),
        ] {
            for text in good {
                assert!(kind.read(text).is_ok(), "{kind:?} {text}");
            }
            for text in bad {
                assert!(kind.read(text).is_err(), "{kind:?} {text}");
            }
        }
    }

    #[test]
    fn json_is_read_by_its_own_types() {
        assert_eq!(INTEGER.read_json("7"), Ok(Value::Integer(7)));
        assert!(INTEGER.read_json("\"7\"").is_err());
        assert_eq!(TEXT.read_json("\"a\\nb\""), Ok(Value::Text("a\nb".into())));
        assert!(TEXT.read_json("7").is_err());
        assert_eq!(ParamType::Json.read_json("{\"a\":1}"), Ok(Value::Json("{\"a\":1}".into())));
    }

    #[test]
    fn a_rule_that_is_broken_is_told_from_a_type() {
        let small = ParamType::Integer { min: 1, max: 5 };
        assert!(matches!(small.read("6"), Err(Unfit::Rule(_))));
        assert!(matches!(small.read("six"), Err(Unfit::Type(_))));
        let short = ParamType::Text { min: 1, max: 2, pattern: None };
        assert!(short.read("öö").is_ok());
        assert!(short.read("ööö").is_err());
    }

    proptest! {
        #[test]
        fn no_text_makes_a_type_panic(text in ".{0,40}") {
            for kind in [INTEGER, NUMBER, TEXT, ParamType::Boolean, ParamType::Uuid, ParamType::Timestamp, ParamType::Date, ParamType::Json] {
                let _ = (kind.read(&text), kind.read_json(&text));
            }
        }
    }
}
