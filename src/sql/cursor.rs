//! Pages: how many rows, and after which one.
//!
//! A cursor holds the keys of the last row of a page, as JSON, in base64url. It is opaque to clients and no
//! secret: its values are read as any parameter is, and bound.

use base64::{Engine as _, engine::general_purpose::URL_SAFE_NO_PAD};
use serde_json::value::RawValue;
use url::form_urlencoded;

use super::params::Mistake;
use crate::routes::{model, sql::Value};

/// What a request says of the page it wants.
#[derive(Debug, Clone, PartialEq)]
pub struct Page {
    pub(super) limit: u32,
    /// The values of the keys; none for the first page.
    pub(super) after: Option<Vec<Value>>,
}

/// Reads `limit` and `after` from a query.
///
/// # Errors
///
/// All that is wrong with them.
pub(super) fn read(page: &model::Page, query: Option<&str>) -> Result<Page, Vec<Mistake>> {
    let mut mistakes = Vec::new();
    let mut mistake = |name: &str, expected: String| {
        let message = format!("expected {expected}");
        mistakes.push(Mistake { location: "query", name: name.to_owned(), message });
    };
    let mut read = Page { limit: page.limit, after: None };
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        match &*name {
            "limit" => match value.parse() {
                Ok(limit) if (1..=page.max).contains(&limit) => read.limit = limit,
                _ => mistake("limit", format!("a whole number, 1 to {}", page.max)),
            },
            "after" if !value.is_empty() => match decode(&page.keys, &value) {
                Some(keys) => read.after = Some(keys),
                None => mistake("after", "the cursor of a page, as `Link` has it".to_owned()),
            },
            _ => {}
        }
    }
    if mistakes.is_empty() { Ok(read) } else { Err(mistakes) }
}

fn decode(keys: &[model::PageKey], cursor: &str) -> Option<Vec<Value>> {
    let json = String::from_utf8(URL_SAFE_NO_PAD.decode(cursor).ok()?).ok()?;
    let items: Vec<&RawValue> = serde_json::from_str(&json).ok()?;
    if items.len() != keys.len() {
        return None;
    }
    keys.iter().zip(items).map(|(key, item)| key.kind.read_json(item.get()).ok()).collect()
}

/// The cursor of the page after a row with these keys.
pub(super) fn encode(keys: &str) -> String {
    URL_SAFE_NO_PAD.encode(keys)
}

/// The query of the next page: that of this one, with its cursor.
pub fn next(query: Option<&str>, cursor: &str) -> String {
    let mut next = form_urlencoded::Serializer::new(String::new());
    for (name, value) in form_urlencoded::parse(query.unwrap_or_default().as_bytes()) {
        if name != "after" {
            next.append_pair(&name, &value);
        }
    }
    next.append_pair("after", cursor);
    next.finish()
}
