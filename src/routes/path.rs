//! The one form of a path that routes, cache keys and upstreams see.
//!
//! A path that two programs read differently is how a request reaches what its route should have
//! kept it from, or how one URL's response is stored under another. So equal paths get one form,
//! and a path with two readings (dot segments, backslashes, encoded control characters) is refused
//! and not repaired. `%2F` stays data: it is not a separator here, and goes upstream as it came.

use std::borrow::Cow;

/// Why a path has no normal form.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    #[error("the path does not start with a slash")]
    NotAbsolute,
    #[error("the path has a `%` that two hexadecimal digits do not follow")]
    BadEscape,
    #[error("the path has a control character")]
    Control,
    #[error("the path has a backslash")]
    Backslash,
    #[error("the path has a dot segment")]
    DotSegment,
    #[error("the path has a `?` or `#`")]
    Delimiter,
}

/// What a byte means to the scan.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Stays as it is.
    Plain,
    Slash,
    Dot,
    Percent,
    /// Legal only as `%XX`; senders differ in whether they encode it.
    Encode,
    Control,
    Backslash,
    Delimiter,
}

/// By byte: RFC 3986 section 3.3, `pchar` and what surrounds it.
static CLASSES: [Class; 256] = {
    let mut classes = [Class::Encode; 256];
    let mut byte = 0;
    while byte < 256 {
        classes[byte] = match byte as u8 {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => Class::Plain,
            b'!' | b'$' | b'&' | b'\'' | b'(' | b')' | b'*' | b'+' | b',' | b';' | b'=' => {
                Class::Plain
            }
            b':' | b'@' => Class::Plain,
            b'/' => Class::Slash,
            b'.' => Class::Dot,
            b'%' => Class::Percent,
            b'\\' => Class::Backslash,
            b'?' | b'#' => Class::Delimiter,
            0..=31 | 127 => Class::Control,
            _ => Class::Encode,
        };
        byte += 1;
    }
    classes
};

const HEX: &[u8; 16] = b"0123456789ABCDEF";

/// Gives `raw`, the path of a request without its query, its one form.
///
/// Repeated slashes become one, percent-encoded unreserved characters are decoded, other escapes
/// get upper-case digits, and characters that RFC 3986 has no place for are encoded. A path that is
/// in this form already, as nearly all are, is scanned once and borrowed.
pub fn normalize(raw: &str) -> Result<Cow<'_, str>, PathError> {
    if raw.is_empty() {
        return Ok(Cow::Borrowed("/"));
    }
    if !raw.starts_with('/') {
        return Err(PathError::NotAbsolute);
    }
    if is_clean(raw.as_bytes()) {
        return Ok(Cow::Borrowed(raw));
    }
    let path = rebuild(raw.as_bytes())?;
    if path.split('/').any(hides_dot_segment) {
        return Err(PathError::DotSegment);
    }
    Ok(if path == raw { Cow::Borrowed(raw) } else { Cow::Owned(path) })
}

/// Whether `path` surely is in normal form. A dot at the start of a segment, an escape or an empty
/// segment may be fine too, but takes a closer look.
fn is_clean(path: &[u8]) -> bool {
    let mut previous_is_slash = false;
    for &byte in path {
        match CLASSES[usize::from(byte)] {
            Class::Plain => previous_is_slash = false,
            Class::Slash | Class::Dot if previous_is_slash => return false,
            Class::Slash => previous_is_slash = true,
            Class::Dot => {}
            _ => return false,
        }
    }
    true
}

/// Everything but dot segments, which need whole segments to be seen.
fn rebuild(raw: &[u8]) -> Result<String, PathError> {
    let mut path = String::with_capacity(raw.len() + 8);
    let mut bytes = raw.iter().copied();
    while let Some(byte) = bytes.next() {
        match CLASSES[usize::from(byte)] {
            Class::Plain | Class::Dot => path.push(char::from(byte)),
            Class::Slash if path.ends_with('/') => {}
            Class::Slash => path.push('/'),
            Class::Encode => push_escape(&mut path, byte),
            Class::Percent => {
                let high = bytes.next().and_then(hex_value).ok_or(PathError::BadEscape)?;
                let low = bytes.next().and_then(hex_value).ok_or(PathError::BadEscape)?;
                let decoded = high << 4 | low;
                match decoded {
                    b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' | b'.' => {
                        path.push(char::from(decoded));
                    }
                    0..=31 | 127 => return Err(PathError::Control),
                    b'\\' => return Err(PathError::Backslash),
                    _ => push_escape(&mut path, decoded),
                }
            }
            Class::Control => return Err(PathError::Control),
            Class::Backslash => return Err(PathError::Backslash),
            Class::Delimiter => return Err(PathError::Delimiter),
        }
    }
    Ok(path)
}

fn push_escape(path: &mut String, byte: u8) {
    path.push('%');
    path.push(char::from(HEX[usize::from(byte >> 4)]));
    path.push(char::from(HEX[usize::from(byte & 15)]));
}

fn hex_value(digit: u8) -> Option<u8> {
    char::from(digit).to_digit(16).map(|value| value as u8)
}

/// Whether some server sees `.` or `..` in this segment of a rebuilt path: one that decodes `%2F`
/// before it splits, or one that cuts parameters (`..;x`) off first.
fn hides_dot_segment(segment: &str) -> bool {
    segment.split("%2F").any(|part| {
        let name = part.find(';').map_or(part, |end| &part[..end]);
        let name = name.find("%3B").map_or(name, |end| &name[..end]);
        matches!(name, "." | "..")
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn a_clean_path_is_borrowed() {
        for path in ["/", "/a", "/a/b.c/d..e/", "/a-b_c~d/e:f@g/h;i=1,2/(x)'*!$&+", "/a..", "/a/b."]
        {
            assert!(matches!(normalize(path), Ok(Cow::Borrowed(same)) if same == path), "{path}");
        }
    }

    #[test]
    fn equal_paths_get_one_form() {
        for (raw, normal) in [
            ("", "/"),
            ("//", "/"),
            ("///a//b///", "/a/b/"),
            ("/%61%2D%5f%7e%2e", "/a-_~."),
            ("/a%2fb", "/a%2Fb"),
            ("/%c3%a9", "/%C3%A9"),
            ("/é", "/%C3%A9"),
            ("/a b|c", "/a%20b%7Cc"),
            ("/%3fq%23f", "/%3Fq%23f"),
            ("/%252e%252e", "/%252e%252e"),
            ("/.well-known/x", "/.well-known/x"),
            ("/...", "/..."),
            ("/a%2f%2fb", "/a%2F%2Fb"),
            ("/;a/..b;c", "/;a/..b;c"),
        ] {
            assert_eq!(normalize(raw).as_deref(), Ok(normal), "{raw}");
        }
    }

    #[test]
    fn a_path_with_two_readings_is_refused() {
        for (raw, error) in [
            ("/.", PathError::DotSegment),
            ("/a/../b", PathError::DotSegment),
            ("/a/..", PathError::DotSegment),
            ("/a/./b", PathError::DotSegment),
            ("/%2e%2E/b", PathError::DotSegment),
            ("/.%2e", PathError::DotSegment),
            ("/a/..;x/b", PathError::DotSegment),
            ("/a/..;", PathError::DotSegment),
            ("/a/.%2e%3bx/b", PathError::DotSegment),
            ("/static/..%2fme", PathError::DotSegment),
            ("/me%2f..%2fstatic/x.js", PathError::DotSegment),
            ("/a%2F.", PathError::DotSegment),
            ("//..//", PathError::DotSegment),
            ("/a\\b", PathError::Backslash),
            ("/a%5cb", PathError::Backslash),
            ("/a%00", PathError::Control),
            ("/a%0a.css", PathError::Control),
            ("/a%7f", PathError::Control),
            ("/a\u{1}", PathError::Control),
            ("/%", PathError::BadEscape),
            ("/%4", PathError::BadEscape),
            ("/%zz", PathError::BadEscape),
            ("/%+1", PathError::BadEscape),
            ("a/b", PathError::NotAbsolute),
            ("*", PathError::NotAbsolute),
            ("/a?b", PathError::Delimiter),
            ("/a#b", PathError::Delimiter),
        ] {
            assert_eq!(normalize(raw), Err(error), "{raw}");
        }
    }

    proptest! {
        #[test]
        fn any_text_has_one_form_or_none(raw in ".*") {
            if let Ok(path) = normalize(&raw) {
                prop_assert!(path.starts_with('/'));
            }
        }

        #[test]
        fn the_normal_form_is_its_own_normal_form(
            raw in "/([a-z./;%|é\\\\]|%2[eEfF0]|%3[bB]|%[46][1-9a-fA-F]|\\.\\.|//){0,12}",
        ) {
            if let Ok(path) = normalize(&raw) {
                prop_assert!(path.starts_with('/') && !path.contains("//"));
                prop_assert!(normalize(&path).is_ok_and(|again| again == path));
                prop_assert!(!path.split('/').any(|segment| segment == "." || segment == ".."));
            }
        }
    }
}
