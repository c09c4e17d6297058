//! Fills `${VAR}` and `${VAR:-default}` into the values of a routes file.
//!
//! It works on scalars of the parsed tree and not on the file's text: whatever a variable holds
//! stays one value, and cannot add keys or routes.

use super::{
    report::Report,
    yaml::{Node, Value},
};
use crate::config::Source;

/// Replaces the variables in all values below `node`. Keys are left alone.
pub(super) fn substitute(node: &mut Node, source: &dyn Source, report: &mut Report<'_>) {
    match &mut node.value {
        Value::Text(text) if text.contains('$') => match expand(text, source) {
            Ok(expanded) if *expanded == **text => {}
            Ok(expanded) => {
                node.written = Some(std::mem::replace(text, expanded.into()));
            }
            Err(message) => {
                report.error(node.place, message);
                node.value = Value::Unknown;
            }
        },
        Value::List(items) => {
            for item in items {
                substitute(item, source, report);
            }
        }
        Value::Map(entries) => {
            for (_, value) in entries {
                substitute(value, source, report);
            }
        }
        _ => {}
    }
}

/// `text` with its variables filled in; `$${` stands for `${`.
fn expand(text: &str, source: &dyn Source) -> Result<String, String> {
    let mut expanded = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(start) = rest.find("${") {
        let before = &rest[..start];
        let after = &rest[start + 2..];
        if let Some(literal) = before.strip_suffix('$') {
            expanded.push_str(literal);
            expanded.push_str("${");
            rest = after;
            continue;
        }
        expanded.push_str(before);
        let Some(end) = after.find('}') else {
            return Err("`${` has no `}`: expected `${VAR}` or `${VAR:-default}`".to_owned());
        };
        let (name, default) = match after[..end].split_once(":-") {
            Some((name, default)) => (name, Some(default)),
            None => (&after[..end], None),
        };
        if !is_name(name) {
            return Err(format!("`{name}` is not the name of a variable"));
        }
        // Empty counts as unset, here as in the settings.
        match source.get(name).filter(|value| !value.is_empty()).map(|value| value.into_string()) {
            Some(Ok(value)) => expanded.push_str(&value),
            Some(Err(_)) => return Err(format!("the variable `{name}` is not UTF-8 text")),
            None => match default {
                Some(default) => expanded.push_str(default),
                None => {
                    return Err(format!(
                        "the variable `{name}` is not set and has no default (`${{{name}:-…}}`)"
                    ));
                }
            },
        }
        rest = &after[end + 1..];
    }
    expanded.push_str(rest);
    Ok(expanded)
}

fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_')
        && name.bytes().next().is_some_and(|byte| !byte.is_ascii_digit())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;

    fn expanded(text: &str) -> Result<String, String> {
        let pairs = [("HOST", "example.com"), ("TRICK", "${HOST}: [x]"), ("EMPTY", "")];
        let source: BTreeMap<_, _> =
            pairs.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned())).collect();
        expand(text, &source)
    }

    #[test]
    fn variables_and_defaults_are_filled_in() {
        for (text, expected) in [
            ("http://${HOST}:${PORT:-80}/", "http://example.com:80/"),
            ("${EMPTY:-d}${NONE:-}", "d"),
            ("${HOST:-x}", "example.com"),
            ("${TRICK}", "${HOST}: [x]"),
            ("a$b $5 $", "a$b $5 $"),
            ("$${HOST} ${HOST}", "${HOST} example.com"),
        ] {
            assert_eq!(expanded(text).as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn missing_variables_and_broken_references_are_mistakes() {
        for text in ["${NONE}", "${EMPTY}", "${HOST", "${}", "${A B}", "${1A}", "${HOST-x}"] {
            assert!(expanded(text).is_err(), "{text}");
        }
    }
}
