//! Holds a tree against the declared keys: names, types, ranges. What values mean is the builder's
//! business.

use super::{
    keys::{Kind, Section},
    report::Report,
    yaml::{Node, Value},
};
use crate::config::values;

/// Reports everything in `node` that is not of `kind`.
pub(super) fn check(node: &Node, kind: &Kind, report: &mut Report<'_>) {
    match (kind, &node.value) {
        (_, Value::Unknown) => {}
        (Kind::Section(section), Value::Map(entries)) => {
            check_section(node, entries, section, report);
        }
        (Kind::Named { of, what }, Value::Map(entries)) => {
            check_duplicates(entries, what, report);
            for (key, value) in entries {
                if key.text().is_none() {
                    report.error(
                        key.place,
                        format!("expected the name of a {what}, not {}", key.shown()),
                    );
                }
                check(value, of, report);
            }
        }
        (Kind::List { of, not_empty }, Value::List(items)) => {
            if *not_empty && items.is_empty() {
                report.error(node.place, "expected a list that is not empty");
            }
            for item in items {
                check(item, of, report);
            }
        }
        (Kind::OneOrMore { of, .. }, Value::Map(entries)) => {
            check_section(node, entries, of, report);
        }
        (Kind::OneOrMore { of, at_most }, Value::List(items)) => {
            if items.is_empty() || items.len() > *at_most {
                let message = format!("expected 1 to {at_most} maps, not {}", items.len());
                report.error(node.place, message);
            }
            for item in items {
                check(item, &Kind::Section(of), report);
            }
        }
        _ if scalar_fits(node, kind) => {}
        (Kind::Text, Value::Bool(_) | Value::Integer(_) | Value::Number(_)) => {
            let message = format!("expected text, not {}: put it in quotes", node.shown());
            report.error(node.place, message);
        }
        _ => {
            let message = format!("expected {}, not {}", expected(kind), node.shown());
            report.error(node.place, message);
        }
    }
}

fn check_section(
    node: &Node,
    entries: &[(Node, Node)],
    section: &Section,
    report: &mut Report<'_>,
) {
    check_duplicates(entries, "key", report);
    for (key, value) in entries {
        let declared = key.text().and_then(|name| section.keys.iter().find(|k| k.name == name));
        match declared {
            Some(declared) => check(value, &declared.kind, report),
            None => {
                let names: Vec<_> = section.keys.iter().map(|key| key.name).collect();
                let message = format!("unknown key {}: expected {}", key.shown(), one_of(&names));
                report.error(key.place, message);
            }
        }
    }
    for key in section.keys.iter().filter(|key| key.required) {
        if !entries.iter().any(|(name, _)| name.text() == Some(key.name)) {
            report.error(node.place, format!("`{}` is missing", key.name));
        }
    }
}

/// `what` is what the keys are: "key", "upstream", "header".
fn check_duplicates(entries: &[(Node, Node)], what: &str, report: &mut Report<'_>) {
    let mut seen = std::collections::HashMap::new();
    for (key, _) in entries {
        if let Some(name) = key.text()
            && let Some(first) = seen.insert(name, key.place.line)
        {
            let message = format!("the {what} `{name}` is there twice, first in line {first}");
            report.error(key.place, message);
        }
    }
}

fn scalar_fits(node: &Node, kind: &Kind) -> bool {
    match kind {
        Kind::Text => node.text().is_some(),
        Kind::Bool => boolean(node).is_some(),
        Kind::Integer(min, max) => integer(node).is_some_and(|n| (*min..=*max).contains(&n)),
        Kind::Duration { at_least } => scalar(node)
            .and_then(|text| values::duration(&text).ok())
            .is_some_and(|duration| duration.as_millis() >= u128::from(*at_least)),
        Kind::Size => scalar(node).is_some_and(|text| values::size(&text).is_ok()),
        Kind::Word(words) => node.text().is_some_and(|text| words.contains(&text)),
        Kind::WordOrInteger(words, min, max) => {
            scalar_fits(node, &Kind::Word(words)) || scalar_fits(node, &Kind::Integer(*min, *max))
        }
        Kind::List { .. } | Kind::OneOrMore { .. } | Kind::Named { .. } | Kind::Section(_) => false,
    }
}

/// A truth value, also from a variable.
pub(super) fn boolean(node: &Node) -> Option<bool> {
    match &node.value {
        Value::Bool(value) => Some(*value),
        Value::Text(text) if node.written.is_some() => text.parse().ok(),
        _ => None,
    }
}

/// A whole number, also from a variable.
pub(super) fn integer(node: &Node) -> Option<u64> {
    match &node.value {
        Value::Integer(number) => Some(*number),
        Value::Text(text) if node.written.is_some() => text.parse().ok(),
        _ => None,
    }
}

/// A number or a text, as text.
pub(super) fn scalar(node: &Node) -> Option<String> {
    match &node.value {
        Value::Integer(number) => Some(number.to_string()),
        _ => node.text().map(str::to_owned),
    }
}

fn expected(kind: &Kind) -> String {
    match kind {
        Kind::Text => "text".to_owned(),
        Kind::Bool => "true or false".to_owned(),
        Kind::Integer(min, max) => format!("a whole number, {min} to {max}"),
        Kind::Duration { at_least } => {
            let least =
                if *at_least > 0 { format!(", at least {at_least}ms") } else { String::new() };
            format!("a duration such as 300 (seconds), 300s, 5m, 1h30m or 250ms{least}")
        }
        Kind::Size => "a size such as 8388608 (bytes), 512KiB or 64MiB".to_owned(),
        Kind::Word(words) => one_of(words),
        Kind::WordOrInteger(words, min, max) => {
            format!("{} or a whole number, {min} to {max}", one_of(words))
        }
        Kind::List { .. } => "a list".to_owned(),
        Kind::OneOrMore { .. } => "a map or a list of maps".to_owned(),
        Kind::Named { .. } | Kind::Section(_) => "a map".to_owned(),
    }
}

fn one_of(names: &[&str]) -> String {
    match names {
        [name] => (*name).to_owned(),
        [names @ .., last] => format!("{} or {last}", names.join(", ")),
        [] => "nothing".to_owned(),
    }
}
