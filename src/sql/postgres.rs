//! PostgreSQL's side: binds values, and takes rows that already are JSON.

use sqlx::{
    Arguments as _, Postgres, Row as _, ValueRef as _,
    encode::Encode,
    postgres::{PgArguments, PgQueryResult, PgRow},
    types::Type,
};

use super::{engine::Engine, error::Failure, run::Given, statement::Compiled};
use crate::{
    db::Session,
    routes::{
        model::{PageKey, ParamType},
        sql::Value,
    },
};

impl Engine for Postgres {
    type Columns = ();

    fn bind(given: &Given<'_>) -> Result<PgArguments, Failure> {
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

    fn affected(result: &PgQueryResult) -> u64 {
        result.rows_affected()
    }

    async fn columns(_: &Session<Self>, _: &Compiled, _: &PgRow) -> Result<(), Failure> {
        Ok(())
    }

    /// The first column is the row.
    fn write(row: &PgRow, (): &(), out: &mut Vec<u8>) -> Result<(), Failure> {
        out.extend_from_slice(text(row, 0)?);
        Ok(())
    }

    /// The second column is the list of the keys.
    fn keys(row: &PgRow, (): &(), _: &[PageKey]) -> Result<String, Failure> {
        Ok(String::from_utf8_lossy(text(row, 1)?).into_owned())
    }
}

/// A column that is text, which the server sends as it is.
fn text(row: &PgRow, index: usize) -> Result<&[u8], Failure> {
    let value = row.try_get_raw(index).map_err(|error| Failure::of_row(&error))?;
    if value.is_null() {
        return Ok(b"null");
    }
    value.as_bytes().map_err(|error| Failure::of_row(&sqlx::Error::Decode(error)))
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
    arguments.add(value).map_err(|_| Failure::of_value())
}
