//! PostgreSQL's side: binds values, and takes rows that already are JSON.

use sqlx::{
    Arguments as _, Postgres, Row as _, ValueRef as _, encode::Encode, postgres::PgArguments,
    types::Type,
};

use super::{error::Failure, json::List, run::Given};
use crate::routes::{model::ParamType, sql::Value};

/// The arguments of a statement.
pub(super) fn bind(given: &Given<'_>) -> Result<PgArguments, Failure> {
    let mut arguments = PgArguments::default();
    for (param, value) in given.values() {
        add(&mut arguments, &param.kind, param.array, value)?;
    }
    if let Some((page, request)) = given.page() {
        put(&mut arguments, i64::from(request.limit) + 1)?;
        for (key, value) in page.keys.iter().zip(request.after.iter().flatten()) {
            add(&mut arguments, &key.kind, false, value)?;
        }
    }
    Ok(arguments)
}

/// Numbers and JSON go as text; the statement casts them.
fn add(
    arguments: &mut PgArguments,
    kind: &ParamType,
    array: bool,
    value: &Value,
) -> Result<(), Failure> {
    macro_rules! put_as {
        ($type:ty, $pattern:pat => $found:expr) => {{
            let one = |value: &Value| -> Option<$type> {
                match value {
                    $pattern => Some($found),
                    _ => None,
                }
            };
            match value {
                Value::Array(items) => {
                    put(arguments, items.iter().filter_map(one).collect::<Vec<$type>>())
                }
                _ if array => put(arguments, None::<Vec<$type>>),
                value => put(arguments, one(value)),
            }
        }};
    }
    match kind {
        ParamType::Integer { .. } => put_as!(i64, Value::Integer(number) => *number),
        ParamType::Boolean => put_as!(bool, Value::Boolean(truth) => *truth),
        ParamType::Uuid => put_as!(uuid::Uuid, Value::Uuid(uuid) => *uuid),
        ParamType::Timestamp => {
            put_as!(chrono::DateTime<chrono::Utc>, Value::Timestamp(moment) => *moment)
        }
        ParamType::Date => put_as!(chrono::NaiveDate, Value::Date(date) => *date),
        ParamType::Number { .. } => put_as!(String, Value::Number(text) => text.to_string()),
        ParamType::Json => put_as!(String, Value::Json(text) => text.to_string()),
        ParamType::Text { .. } | ParamType::Enum(_) => {
            put_as!(String, Value::Text(text) => text.to_string())
        }
    }
}

fn put<'q, T: Encode<'q, Postgres> + Type<Postgres>>(
    arguments: &mut PgArguments,
    value: T,
) -> Result<(), Failure> {
    // What cannot be encoded is too large for the protocol.
    arguments.add(value).map_err(|_| Failure::too_large())
}

/// Adds the row's JSON to a list, and returns its keys in the order of pages, if it has some.
pub(super) fn row(row: &sqlx::postgres::PgRow, list: &mut List) -> Result<Option<String>, Failure> {
    let value = row.try_get_raw(0).map_err(Failure::of_row)?;
    if !value.is_null() {
        list.push(value.as_str().map_err(|_| Failure::internal())?)?;
    }
    if row.len() < 2 {
        return Ok(None);
    }
    row.try_get::<String, _>(1).map(Some).map_err(Failure::of_row)
}
