//! The path of a route: `/api/products/{id}`, `/files/{*rest}`.

use super::path;

/// More placeholders than this would not fit [`super::Params`].
pub(super) const MAX_PARAMS: usize = 16;

/// Each segment is a level of the tree of routes, which is built, searched and dropped recursively.
const MAX_SEGMENTS: usize = 64;

/// A path pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathPattern {
    text: Box<str>,
    segments: Vec<Segment>,
    names: Vec<Box<str>>,
}

/// What stands between two slashes of a pattern.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Segment {
    /// Exactly this, in normal form.
    Literal(Box<str>),
    /// One segment that is not empty.
    Param,
    /// Everything that is left, also nothing.
    Rest,
}

impl PathPattern {
    /// Reads a pattern; the error says what was expected.
    pub(super) fn parse(text: &str) -> Result<Self, String> {
        let Some(inner) = text.strip_prefix('/') else {
            return Err("a path that starts with `/`".to_owned());
        };
        let mut segments = Vec::new();
        let mut names: Vec<Box<str>> = Vec::new();
        let mut parts = inner.split('/').peekable();
        while let Some(part) = parts.next() {
            let last = parts.peek().is_none();
            let Some(placeholder) = part.strip_prefix('{').and_then(|part| part.strip_suffix('}'))
            else {
                segments.push(literal(part, last)?);
                continue;
            };
            let rest = placeholder.strip_prefix('*');
            if rest.is_some() && !last {
                return Err(format!("`{part}` at the end of the path"));
            }
            let name = rest.unwrap_or(placeholder);
            if !is_name(name) {
                return Err(format!("a name of letters, digits, `_` and `-` in `{part}`"));
            }
            if names.iter().any(|known| **known == *name) {
                return Err(format!("a different name for the second `{{{name}}}`"));
            }
            names.push(name.into());
            segments.push(if rest.is_some() { Segment::Rest } else { Segment::Param });
        }
        if segments.len() > MAX_SEGMENTS {
            return Err(format!("at most {MAX_SEGMENTS} segments"));
        }
        if names.len() > MAX_PARAMS {
            return Err(format!("at most {MAX_PARAMS} placeholders"));
        }
        Ok(Self { text: text.into(), segments, names })
    }

    /// `/{*rest}`.
    pub(super) fn everything() -> Self {
        Self { text: "/{*rest}".into(), segments: vec![Segment::Rest], names: vec!["rest".into()] }
    }

    /// The pattern as it is written.
    pub fn as_str(&self) -> &str {
        &self.text
    }

    /// The names of the placeholders, in order.
    pub fn names(&self) -> &[Box<str>] {
        &self.names
    }

    pub(super) fn segments(&self) -> &[Segment] {
        &self.segments
    }

    /// The pattern without the names, which do not tell patterns apart.
    pub(super) fn shape(&self) -> String {
        let mut shape = String::with_capacity(self.text.len());
        for segment in &self.segments {
            shape.push('/');
            shape.push_str(match segment {
                Segment::Literal(text) => text,
                Segment::Param => "{}",
                Segment::Rest => "{*}",
            });
        }
        shape
    }
}

/// Requests come in normal form, so a literal is brought into it; empty only after the last slash.
fn literal(part: &str, last: bool) -> Result<Segment, String> {
    if part.is_empty() && !last {
        return Err("a path without `//`".to_owned());
    }
    if part.contains(['{', '}']) {
        return Err(format!("`{{name}}` or `{{*rest}}` as a whole segment, not `{part}`"));
    }
    let path = format!("/{part}");
    let normal = path::normalize(&path)
        .map_err(|error| format!("a path that requests can have, and in `{part}` {error}"))?;
    Ok(Segment::Literal(normal.trim_start_matches('/').into()))
}

/// Names of placeholders, as templates repeat them.
fn is_name(name: &str) -> bool {
    name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_' || byte == b'-')
        && name.bytes().next().is_some_and(|byte| byte.is_ascii_alphabetic() || byte == b'_')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patterns_are_read_segment_by_segment() {
        let pattern = PathPattern::parse("/api/{id}/caf%c3%a9/{*rest}").expect("valid");
        let literal = |text: &str| Segment::Literal(text.into());
        assert_eq!(
            pattern.segments(),
            [literal("api"), Segment::Param, literal("caf%C3%A9"), Segment::Rest]
        );
        assert_eq!(pattern.names(), [Box::from("id"), Box::from("rest")]);
        assert_eq!(PathPattern::parse("/").expect("valid").segments(), [literal("")]);
        assert_eq!(PathPattern::parse("/é").expect("valid").segments(), [literal("%C3%A9")]);
    }

    #[test]
    fn patterns_that_no_request_could_match_are_refused() {
        for text in [
            "",
            "a",
            "//",
            "/a//b",
            "/{*rest}/a",
            "/{id}/{id}",
            "/x{id}",
            "/{id}x",
            "/{}",
            "/{*}",
            "/{1a}",
            "/a/../b",
            "/%zz",
            "/a?b",
            "/a\\b",
            "/{a b}",
            "/{id",
            "/{{id}}",
        ] {
            assert!(PathPattern::parse(text).is_err(), "{text}");
        }
        let many: String = (0..=MAX_PARAMS).map(|n| format!("/{{p{n}}}")).collect();
        assert!(PathPattern::parse(&many).is_err());
        assert!(PathPattern::parse(&"/a".repeat(MAX_SEGMENTS)).is_ok());
        assert!(PathPattern::parse(&"/a".repeat(MAX_SEGMENTS + 1)).is_err());
    }

    #[test]
    fn names_do_not_change_the_shape() {
        let shape = |text| PathPattern::parse(text).expect("valid").shape();
        assert_eq!(shape("/a/{id}/{*rest}"), shape("/a/{name}/{*path}"));
        assert_ne!(shape("/a/{id}"), shape("/a/{*id}"));
    }
}
