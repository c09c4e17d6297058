//! The JSON Schema of a routes file, for editors.

use serde_json::{Map, Value, json};

use super::keys::{FILE, Kind, Section};

/// A value that a variable fills in is text until then.
const VARIABLE: &str = r"\$\{[A-Za-z_][A-Za-z0-9_]*(:-[^}]*)?\}";

/// The schema, draft 2020-12.
pub fn json_schema() -> Value {
    let mut schema = section(&FILE);
    schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
    schema["title"] = json!("Portway routes file");
    schema
}

fn section(section: &Section) -> Value {
    let properties: Map<String, Value> = section
        .keys
        .iter()
        .map(|key| {
            let mut schema = kind(&key.kind);
            schema["description"] = json!(key.doc);
            (key.name.to_owned(), schema)
        })
        .collect();
    let required: Vec<_> =
        section.keys.iter().filter(|key| key.required).map(|key| key.name).collect();
    json!({
        "type": "object",
        "description": section.doc,
        "properties": properties,
        "required": required,
        "additionalProperties": false,
    })
}

fn kind(kind_: &Kind) -> Value {
    match kind_ {
        Kind::Text => json!({ "type": "string" }),
        Kind::Bool => json!({ "anyOf": [{ "type": "boolean" }, variable()] }),
        Kind::Integer(min, max) => json!({ "anyOf": [integer(*min, *max), variable()] }),
        Kind::Duration { .. } => json!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": r"^([0-9]+|(?=[0-9])([0-9]+d)?([0-9]+h)?([0-9]+m)?([0-9]+s)?([0-9]+ms)?)$" },
                variable(),
            ],
        }),
        Kind::Size => json!({
            "anyOf": [
                { "type": "integer", "minimum": 0 },
                { "type": "string", "pattern": "^[0-9]+(B|KiB|MiB|GiB|TiB)?$" },
                variable(),
            ],
        }),
        Kind::Word(words) => json!({ "anyOf": [{ "enum": words }, variable()] }),
        Kind::WordOrInteger(words, min, max) => {
            json!({ "anyOf": [{ "enum": words }, integer(*min, *max), variable()] })
        }
        Kind::List { of, not_empty } => {
            json!({ "type": "array", "items": kind(of), "minItems": u8::from(*not_empty) })
        }
        Kind::OneOrMore { of, at_most } => json!({
            "anyOf": [
                section(of),
                { "type": "array", "items": section(of), "minItems": 1, "maxItems": at_most },
            ],
        }),
        Kind::Named { of, .. } => json!({ "type": "object", "additionalProperties": kind(of) }),
        Kind::Section(inner) => section(inner),
    }
}

fn integer(min: u64, max: u64) -> Value {
    json!({ "type": "integer", "minimum": min, "maximum": max })
}

fn variable() -> Value {
    json!({ "type": "string", "pattern": VARIABLE })
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use super::*;
    use crate::routes::RouteTable;

    /// Every object with fixed keys in the schema: the way to it, and its keys.
    fn objects(schema: &Value, way: &[Step], found: &mut Vec<(Vec<Step>, Vec<String>)>) {
        let with = |step| [way, &[step]].concat();
        if let Some(properties) = schema["properties"].as_object() {
            found.push((way.to_vec(), properties.keys().cloned().collect()));
            for (name, inner) in properties {
                objects(inner, &with(Step::Key(name.clone())), found);
            }
        }
        for alternative in schema["anyOf"].as_array().into_iter().flatten() {
            objects(alternative, way, found);
        }
        if schema["items"].is_object() {
            objects(&schema["items"], &with(Step::Item), found);
        }
        if schema["additionalProperties"].is_object() {
            objects(&schema["additionalProperties"], &with(Step::Name), found);
        }
    }

    #[derive(Debug, Clone)]
    enum Step {
        Key(String),
        Name,
        Item,
    }

    #[test]
    fn the_schema_lists_exactly_the_keys_that_the_parser_takes() {
        let mut found = Vec::new();
        objects(&json_schema(), &[], &mut found);
        assert!(found.len() >= 12, "{found:?}");
        for (way, keys) in found {
            // A file that has all of these keys and one more in this place.
            let entries: Vec<String> = keys
                .iter()
                .chain([&"nonsense".to_owned()])
                .map(|key| format!("{key}: [[]]"))
                .collect();
            let object = format!("{{ {} }}", entries.join(", "));
            let text = way.iter().rev().fold(object, |inner, step| match step {
                Step::Key(key) => format!("{{ {key}: {inner} }}"),
                Step::Name => format!("{{ some-name: {inner} }}"),
                Step::Item => format!("[{inner}]"),
            });
            let env: BTreeMap<String, String> = BTreeMap::new();
            let errors =
                RouteTable::parse("r", &text, &env).expect_err("an unknown key").to_string();
            let unknown: Vec<_> =
                errors.lines().filter(|line| line.contains("unknown key")).collect();
            assert_eq!(unknown.len(), 1, "{text}\n{errors}");
            // The message lists all keys that are taken, and so none that the schema lacks.
            let listed = unknown[0].rsplit_once("expected ").expect("a list of keys").1;
            let listed: Vec<_> = listed.split(", ").flat_map(|keys| keys.split(" or ")).collect();
            assert!(unknown[0].contains("`nonsense`"), "{}", unknown[0]);
            assert_eq!(listed.len(), keys.len(), "{way:?}");
            assert!(keys.iter().all(|key| listed.contains(&key.as_str())), "{way:?}");
        }
    }

    #[test]
    fn the_schema_is_strict_and_says_what_keys_are_for() {
        let schema = json_schema();
        assert_eq!(schema["$schema"], "https://json-schema.org/draft/2020-12/schema");
        assert_eq!(schema["additionalProperties"], false);
        let route = &schema["properties"]["routes"]["items"];
        assert_eq!(route["additionalProperties"], false);
        assert_eq!(route["required"], json!(["name", "path"]));
        let properties = route["properties"].as_object().expect("properties");
        assert!(
            properties.values().all(|p| p["description"].as_str().is_some_and(|d| !d.is_empty()))
        );
    }
}
