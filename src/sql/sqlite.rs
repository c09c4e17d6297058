//! SQLite's side: binds values, and makes JSON of rows, column by column.
//!
//! Booleans are numbers, UUIDs and JSON are texts, timestamps are RFC 3339 texts in UTC with microseconds (so
//! that they sort as they should), arrays are JSON texts for `json_each`.

use std::fmt::Write as _;

use base64::{Engine as _, engine::general_purpose::STANDARD};
use chrono::SecondsFormat;
use sqlx::{
    Arguments as _, Column as _, Row as _, Sqlite, TypeInfo as _, ValueRef as _,
    encode::Encode,
    sqlite::{SqliteArguments, SqliteRow},
    types::Type,
};

use super::{error::Failure, json::List, run::Given};
use crate::routes::{model::PageKey, sql::Value};

/// The arguments of a statement.
pub(super) fn bind(given: &Given<'_>) -> Result<SqliteArguments, Failure> {
    let mut arguments = SqliteArguments::default();
    for (_, value) in given.values() {
        add(&mut arguments, value)?;
    }
    if let Some((_, request)) = given.page() {
        put(&mut arguments, i64::from(request.limit) + 1)?;
        for value in request.after.iter().flatten() {
            add(&mut arguments, value)?;
        }
    }
    Ok(arguments)
}

fn add(arguments: &mut SqliteArguments, value: &Value) -> Result<(), Failure> {
    match value {
        Value::Null => put(arguments, None::<i64>),
        Value::Integer(number) => put(arguments, *number),
        Value::Boolean(truth) => put(arguments, *truth),
        Value::Number(text) => match text.parse::<i64>() {
            Ok(number) => put(arguments, number),
            // It was read as a number before.
            Err(_) => put(arguments, text.parse::<f64>().unwrap_or_default()),
        },
        Value::Text(text) | Value::Json(text) => put(arguments, text.to_string()),
        Value::Array(_) => put(arguments, json(value)),
        Value::Uuid(_) | Value::Timestamp(_) | Value::Date(_) => put(arguments, plain(value)),
    }
}

fn put<'q, T: Encode<'q, Sqlite> + Type<Sqlite>>(
    arguments: &mut SqliteArguments,
    value: T,
) -> Result<(), Failure> {
    arguments.add(value).map_err(|_| Failure::too_large())
}

/// A value as SQLite holds it as text.
fn plain(value: &Value) -> String {
    match value {
        Value::Uuid(uuid) => uuid.to_string(),
        Value::Timestamp(moment) => moment.to_rfc3339_opts(SecondsFormat::Micros, true),
        Value::Date(date) => date.to_string(),
        Value::Text(text) | Value::Json(text) | Value::Number(text) => text.to_string(),
        Value::Integer(number) => number.to_string(),
        Value::Boolean(truth) => truth.to_string(),
        Value::Null | Value::Array(_) => String::new(),
    }
}

fn json(value: &Value) -> String {
    match value {
        Value::Array(items) => {
            format!("[{}]", items.iter().map(json).collect::<Vec<_>>().join(","))
        }
        Value::Null => "null".to_owned(),
        Value::Integer(_) | Value::Number(_) | Value::Boolean(_) | Value::Json(_) => plain(value),
        Value::Text(_) | Value::Uuid(_) | Value::Timestamp(_) | Value::Date(_) => {
            serde_json::Value::from(plain(value)).to_string()
        }
    }
}

/// Adds the row's JSON to a list, and returns its keys in the order of pages.
pub(super) fn row(
    row: &SqliteRow,
    list: &mut List,
    keys: &[PageKey],
) -> Result<Option<String>, Failure> {
    let mut object = String::from("{");
    let mut cursor = vec!["null".to_owned(); keys.len()];
    for (index, column) in row.columns().iter().enumerate() {
        let value = field(row, index, column.type_info().name() == "BOOLEAN")?;
        if index > 0 {
            object.push(',');
        }
        let name = serde_json::Value::from(column.name());
        // Writing to a String cannot fail.
        let _ = write!(object, "{name}:{value}");
        if let Some(key) = keys.iter().position(|key| *key.column == *column.name()) {
            cursor[key] = value;
        }
    }
    object.push('}');
    list.push(&object)?;
    Ok((!keys.is_empty()).then(|| format!("[{}]", cursor.join(","))))
}

fn field(row: &SqliteRow, index: usize, boolean: bool) -> Result<String, Failure> {
    let value = row.try_get_raw(index).map_err(Failure::of_row)?;
    if value.is_null() {
        return Ok("null".to_owned());
    }
    let class = value.type_info().name().to_owned();
    Ok(match class.as_str() {
        "INTEGER" | "BOOLEAN" => {
            let number: i64 = row.try_get_unchecked(index).map_err(Failure::of_row)?;
            match number {
                0 if boolean => "false".to_owned(),
                1 if boolean => "true".to_owned(),
                number => number.to_string(),
            }
        }
        "REAL" => {
            let number: f64 = row.try_get_unchecked(index).map_err(Failure::of_row)?;
            serde_json::Number::from_f64(number).map_or("null".to_owned(), |it| it.to_string())
        }
        "BLOB" => {
            let bytes: Vec<u8> = row.try_get_unchecked(index).map_err(Failure::of_row)?;
            format!("\"{}\"", STANDARD.encode(bytes))
        }
        _ => {
            let text: String = row.try_get_unchecked(index).map_err(Failure::of_row)?;
            serde_json::Value::from(text).to_string()
        }
    })
}
