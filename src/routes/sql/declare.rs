//! How a parameter is declared: `source[:field] type [min..max] [/pattern/] [optional | = default]`.

use actix_http::header::HeaderName;
use regex::Regex;

use super::value::{ANCHORS, array};
use crate::routes::model::{Param, ParamSource, ParamType, Presence};

/// Reads the declaration of the parameter `name`; the error says what was expected.
pub(super) fn param(name: &str, text: &str) -> Result<Param, String> {
    let mut words = Words(text.trim());
    let source = source(name, words.next().unwrap_or_default())?;
    let (kind, is_array) = kind(&mut words)?;
    let presence = match words.next() {
        None => Presence::Required,
        Some("optional") => Presence::Optional,
        Some("=") => Presence::Default(words.rest().into()),
        Some(word) if let Some(value) = word.strip_prefix('=') => {
            Presence::Default(format!("{value}{}", words.0).trim_end().into())
        }
        Some(word) => return Err(format!("`optional` or `= default` in place of `{word}`")),
    };
    if !words.0.is_empty() && !matches!(presence, Presence::Default(_)) {
        return Err(format!("nothing after `optional`, not `{}`", words.0));
    }
    if let Presence::Default(text) = &presence {
        let read = |text: &str| kind.read(text);
        let fits = if is_array { array(text.split(','), read) } else { read(text) };
        if let Err(unfit) = fits {
            return Err(format!("as default {}, not `{text}`", unfit.expected()));
        }
    }
    if matches!(source, ParamSource::Path(_)) && (presence != Presence::Required || is_array) {
        return Err("one value that is there, in a path".to_owned());
    }
    Ok(Param { name: name.into(), source, kind, array: is_array, presence })
}

fn source(name: &str, word: &str) -> Result<ParamSource, String> {
    let (source, field) = word.split_once(':').unwrap_or((word, name));
    match source {
        "path" => Ok(ParamSource::Path(field.into())),
        "query" => Ok(ParamSource::Query(field.into())),
        "body" => Ok(ParamSource::Body(field.into())),
        "header" => {
            // Names of parameters cannot have what names of header fields are full of.
            let field = if word.contains(':') { field.to_owned() } else { field.replace('_', "-") };
            HeaderName::from_bytes(field.as_bytes())
                .map(ParamSource::Header)
                .map_err(|_| format!("the name of a header field, not `{field}`"))
        }
        "caller" => match field {
            "id" => Ok(ParamSource::CallerId),
            "tenant" => Ok(ParamSource::CallerTenant),
            _ => Err("`caller:id` or `caller:tenant`".to_owned()),
        },
        _ => Err(format!("one of path, query, header, body and caller, not `{source}`")),
    }
}

/// The type, with what belongs to it.
fn kind(words: &mut Words<'_>) -> Result<(ParamType, bool), String> {
    const TYPES: &str =
        "one of integer, number, boolean, text, uuid, timestamp, date, json and enum(…)";
    words.0 = words.0.trim_start();
    let word = if let Some(rest) = words.0.strip_prefix("enum(") {
        let (inside, after) = rest.split_once(')').ok_or("`)` after the words of enum(")?;
        let list: Vec<Box<str>> = inside.split(',').map(|word| word.trim().into()).collect();
        if list.iter().any(|word| word.is_empty()) {
            return Err("words with commas between in enum(…)".to_owned());
        }
        let is_array = after.starts_with("[]");
        words.0 = if is_array { &after[2..] } else { after };
        return Ok((ParamType::Enum(list), is_array));
    } else {
        words.next().unwrap_or_default()
    };
    let (word, is_array) = word.strip_suffix("[]").map_or((word, false), |word| (word, true));
    let range = words.range();
    let bounds = || range.unwrap_or_default();
    let kind = match word {
        "integer" => {
            let (min, max) = bounds();
            ParamType::Integer {
                min: bound(min)?.unwrap_or(i64::MIN),
                max: bound(max)?.unwrap_or(i64::MAX),
            }
        }
        "number" => {
            let (min, max) = bounds();
            ParamType::Number { min: bound(min)?, max: bound(max)? }
        }
        "text" => {
            let (min, max) = bounds();
            let pattern = words.pattern()?;
            ParamType::Text {
                min: bound(min)?.unwrap_or(0),
                max: bound(max)?.unwrap_or(usize::MAX),
                pattern,
            }
        }
        "boolean" => ParamType::Boolean,
        "uuid" => ParamType::Uuid,
        "timestamp" => ParamType::Timestamp,
        "date" => ParamType::Date,
        "json" => ParamType::Json,
        _ => return Err(format!("{TYPES}, not `{word}`")),
    };
    let empty = match &kind {
        ParamType::Integer { min, max } => min > max,
        ParamType::Number { min: Some(min), max: Some(max) } => min > max,
        ParamType::Text { min, max, .. } => min > max,
        _ if range.is_some() => return Err(format!("no range after {word}")),
        _ => false,
    };
    if empty {
        Err("a range whose end is not below its beginning".to_owned())
    } else {
        Ok((kind, is_array))
    }
}

fn bound<T: std::str::FromStr>(text: &str) -> Result<Option<T>, String> {
    if text.is_empty() {
        return Ok(None);
    }
    text.parse().map(Some).map_err(|_| format!("a number as bound, not `{text}`"))
}

/// What is left of a declaration.
struct Words<'t>(&'t str);

impl<'t> Words<'t> {
    fn next(&mut self) -> Option<&'t str> {
        let text = self.0.trim_start();
        if text.is_empty() {
            return None;
        }
        let end = text.find(char::is_whitespace).unwrap_or(text.len());
        self.0 = &text[end..];
        Some(&text[..end])
    }

    fn rest(&mut self) -> &'t str {
        std::mem::take(&mut self.0).trim()
    }

    /// `1..200`, `..50` or `3..`, if that comes next.
    fn range(&mut self) -> Option<(&'t str, &'t str)> {
        let before = self.0;
        let word = self.next()?;
        let range = word.split_once("..");
        if range.is_none() || word.starts_with('/') || word.starts_with('=') {
            self.0 = before;
            return None;
        }
        range
    }

    /// `/…/`, if that comes next; it has to match all of a value.
    fn pattern(&mut self) -> Result<Option<Regex>, String> {
        let Some(text) = self.0.trim_start().strip_prefix('/') else { return Ok(None) };
        // The last slash before the end, or before what may follow a pattern.
        let end = [" optional", " ="].iter().filter_map(|after| text.rfind(&format!("/{after}")));
        let end = end.min().or_else(|| text.trim_end().strip_suffix('/').map(str::len));
        let end = end.ok_or("`/` at the end of the pattern")?;
        self.0 = &text[end + 1..];
        let anchored = format!("{}{}{}", ANCHORS.0, &text[..end], ANCHORS.1);
        let pattern = Regex::new(&anchored).map_err(|_| "a regular expression between `/`")?;
        Ok(Some(pattern))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn declarations_are_read() {
        let read = |text| param("the_id", text).expect(text);
        let it = read("path integer 1..");
        assert_eq!(it.source, ParamSource::Path("the_id".into()));
        assert_eq!(it.kind, ParamType::Integer { min: 1, max: i64::MAX });
        assert_eq!(
            read("header text").source,
            ParamSource::Header(HeaderName::from_static("the-id"))
        );
        assert_eq!(read("query:q text ..50 optional").presence, Presence::Optional);
        let it = read("query enum(open, closed) = open");
        assert_eq!(it.kind, ParamType::Enum(vec!["open".into(), "closed".into()]));
        assert_eq!(it.presence, Presence::Default("open".into()));
        let it = read("body text 3..12 /[A-Z/-]+/ optional");
        assert!(it.kind.read("AB/C").is_ok() && it.kind.read("xABC").is_err());
        assert!(read("query integer[] = 1,2").array && read("body enum(a,b)[]").array);
        assert_eq!(read("caller:tenant text").source, ParamSource::CallerTenant);
        assert_eq!(read("query text = two words ").presence, Presence::Default("two words".into()));
        assert_eq!(
            read("query number -1.5..2").kind,
            ParamType::Number { min: Some(-1.5), max: Some(2.0) }
        );
    }

    #[test]
    fn what_is_wrong_with_a_declaration_is_said() {
        for (text, words) in [
            ("", "one of path"),
            ("cookie text", "one of path"),
            ("path", "one of integer"),
            ("path string", "one of integer"),
            ("path integer optional", "in a path"),
            ("query integer 5..1", "range"),
            ("query integer a..b", "bound"),
            ("query integer = x", "default"),
            ("query integer 1..3 = 7", "default"),
            ("query text /[/", "regular expression"),
            ("query uuid 1..2", "no range"),
            ("query text maybe", "`maybe`"),
            ("query text optional more", "more"),
            ("caller text", "caller:id"),
            ("body enum(a,)", "enum"),
        ] {
            let error = param("p", text).expect_err(text);
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
