//! Text with placeholders that a request's path fills in: rewrites and tags.

use super::{matcher::Params, pattern::PathPattern};

/// Text with `{name}` placeholders.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Template {
    parts: Vec<Part>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Part {
    Text(Box<str>),
    /// The value at this position of [`Params`].
    Param(usize),
}

impl Template {
    /// Reads `{name}` (also `{*name}`) placeholders, each of which must be in `pattern`. The error
    /// says what was expected.
    pub(super) fn parse(text: &str, pattern: &PathPattern) -> Result<Self, String> {
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some(start) = rest.find(['{', '}']) {
            let after = &rest[start + 1..];
            let Some(end) = after
                .find(['{', '}'])
                .filter(|end| rest.as_bytes()[start] == b'{' && after.as_bytes()[*end] == b'}')
            else {
                return Err("`{` and `}` in pairs".to_owned());
            };
            let name = after[..end].strip_prefix('*').unwrap_or(&after[..end]);
            let Some(index) = pattern.names().iter().position(|known| **known == *name) else {
                return Err(format!(
                    "placeholders of the path `{}`, which has no `{{{name}}}`",
                    pattern.as_str()
                ));
            };
            if start > 0 {
                parts.push(Part::Text(rest[..start].into()));
            }
            parts.push(Part::Param(index));
            rest = &after[end + 1..];
        }
        if !rest.is_empty() {
            parts.push(Part::Text(rest.into()));
        }
        Ok(Self { parts })
    }

    /// The text with the placeholders filled in from `path`, which `params` were found in. Values
    /// stay percent-encoded as in the path.
    pub fn render(&self, params: &Params, path: &str) -> String {
        self.fill(|index| params.get(index, path).unwrap_or_default())
    }

    pub(super) fn fill<'v>(&self, value: impl Fn(usize) -> &'v str) -> String {
        let mut text = String::new();
        for part in &self.parts {
            text.push_str(match part {
                Part::Text(literal) => literal,
                Part::Param(index) => value(*index),
            });
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Template, String> {
        Template::parse(text, &PathPattern::parse("/p/{id}/{*rest}").expect("valid"))
    }

    #[test]
    fn placeholders_are_filled_in() {
        let fill = |text| parse(text).expect("valid").fill(|index| ["7", "a/b"][index]);
        assert_eq!(fill("product:{id}"), "product:7");
        assert_eq!(fill("/v2/{id}/{rest}.json"), "/v2/7/a/b.json");
        assert_eq!(fill("/v2/{*rest}{id}"), "/v2/a/b7");
        assert_eq!(fill("plain"), "plain");
        assert_eq!(fill(""), "");
    }

    #[test]
    fn unknown_and_unpaired_placeholders_are_refused() {
        for text in ["{nope}", "{", "}", "a{id", "a}b{id}", "{{id}}", "{}", "{id}}"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
