//! Header names and values that rules may use.

use actix_http::header::{HeaderName, HeaderValue};

use super::{report::Report, yaml::Node};

/// These belong to one connection or frame the message: the gateway alone decides on them.
const RESERVED: [&str; 9] = [
    "connection",
    "content-length",
    "host",
    "keep-alive",
    "proxy-connection",
    "te",
    "trailer",
    "transfer-encoding",
    "upgrade",
];

/// The name of a header, or a report of why it is none.
pub(super) fn name(node: &Node, report: &mut Report<'_>) -> Option<HeaderName> {
    let name = HeaderName::from_bytes(node.text()?.as_bytes()).ok();
    if name.is_none() {
        report.error(node.place, format!("{} is not a header name", node.shown()));
    }
    name
}

/// The name of a header that rules may change.
pub(super) fn changeable_name(node: &Node, report: &mut Report<'_>) -> Option<HeaderName> {
    let name = name(node, report)?;
    if RESERVED.contains(&name.as_str()) {
        let message = format!("{} belongs to the connection and cannot be changed", node.shown());
        report.error(node.place, message);
        return None;
    }
    Some(name)
}

/// The value of a header, or a report of why it is none.
pub(super) fn value(node: &Node, report: &mut Report<'_>) -> Option<HeaderValue> {
    let text = node.text()?;
    // Spaces around a value are not part of it on the wire.
    let value = HeaderValue::from_str(text).ok().filter(|_| text.trim() == text);
    if value.is_none() {
        let message = format!(
            "{} is not a header value: expected visible ASCII without spaces around it",
            node.shown()
        );
        report.error(node.place, message);
    }
    value
}

/// A map of headers; `name` reads their names.
pub(super) fn pairs(
    entries: &[(Node, Node)],
    name: fn(&Node, &mut Report<'_>) -> Option<HeaderName>,
    report: &mut Report<'_>,
) -> Vec<(HeaderName, HeaderValue)> {
    let mut pairs: Vec<(HeaderName, HeaderValue)> = Vec::with_capacity(entries.len());
    for (index, (key, content)) in entries.iter().enumerate() {
        let header = name(key, report);
        let content = value(content, report);
        let (Some(header), Some(content)) = (header, content) else { continue };
        let again = pairs.iter().any(|(known, _)| *known == header);
        // The checker has reported keys that are equal to the letter.
        if again && !entries[..index].iter().any(|(known, _)| known.text() == key.text()) {
            report.error(key.place, format!("the header {} is there twice", key.shown()));
        }
        pairs.push((header, content));
    }
    pairs
}
