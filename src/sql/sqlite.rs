//! SQLite's side: binds values, and makes JSON of rows, column by column.
//!
//! SQLite has few types, so what is bound and what is written is what PostgreSQL would show for the same
//! values: truth as `true` and `false` where the column is declared so, moments in UTC to the
//! microsecond, bytes as `\x…`. Moments and identifiers are text, in a form that sorts as they do.

use std::{io::Write as _, sync::Arc};

use arc_swap::ArcSwapOption;
use chrono::{DateTime, Timelike as _, Utc};
use sqlx::{
    Arguments as _, Column as _, Decode, Row as _, Sqlite, TypeInfo as _, ValueRef as _,
    encode::Encode,
    error::BoxDynError,
    sqlite::{SqliteArguments, SqliteColumn, SqliteQueryResult, SqliteRow, SqliteValueRef},
    types::Type,
};

use super::{engine::Engine, error::Failure, run::Given, statement::Compiled};
use crate::{
    db::Session,
    routes::{model::PageKey, sql::Value},
};

impl Engine for Sqlite {
    type Columns = Vec<Kind>;

    fn bind(given: &Given<'_>) -> Result<SqliteArguments, Failure> {
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

    fn affected(result: &SqliteQueryResult) -> u64 {
        result.rows_affected()
    }

    async fn columns(
        session: &Session<Self>,
        compiled: &Compiled,
        row: &SqliteRow,
    ) -> Result<Vec<Kind>, Failure> {
        compiled.declared.of(session, row).await.map_err(|error| crate::db::Error::of(error).into())
    }

    fn write(row: &SqliteRow, columns: &Vec<Kind>, out: &mut Vec<u8>) -> Result<(), Failure> {
        out.push(b'{');
        for (index, (column, kind)) in row.columns().iter().zip(columns).enumerate() {
            if index > 0 {
                out.push(b',');
            }
            write_text(out, column.name());
            out.push(b':');
            write_column(row, index, *kind, out)?;
        }
        out.push(b'}');
        Ok(())
    }

    fn keys(row: &SqliteRow, columns: &Vec<Kind>, keys: &[PageKey]) -> Result<String, Failure> {
        let mut out = vec![b'['];
        for (number, key) in keys.iter().enumerate() {
            if number > 0 {
                out.push(b',');
            }
            // The statement orders by it, so it is there.
            match row.columns().iter().position(|column| *column.name() == *key.column) {
                Some(index) => write_column(row, index, columns[index], &mut out)?,
                None => out.extend_from_slice(b"null"),
            }
        }
        out.push(b']');
        Ok(String::from_utf8_lossy(&out).into_owned())
    }
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
        Value::Uuid(id) => put(arguments, id.to_string()),
        Value::Timestamp(at) => put(arguments, moment(*at)),
        Value::Date(date) => put(arguments, date.to_string()),
        // There are no arrays; `json_each` takes such a text apart.
        Value::Array(_) => {
            let mut list = Vec::new();
            write_json(&mut list, value);
            put(arguments, String::from_utf8_lossy(&list).into_owned())
        }
    }
}

fn put<'q, T: Encode<'q, Sqlite> + Type<Sqlite>>(
    arguments: &mut SqliteArguments,
    value: T,
) -> Result<(), Failure> {
    arguments.add(value).map_err(|_| Failure::of_value())
}

/// A moment, to the microsecond, without zeros at its end: such texts sort as their moments do.
fn moment(moment: DateTime<Utc>) -> String {
    let mut text = moment.format("%Y-%m-%dT%H:%M:%S").to_string();
    // A leap second is told by nanoseconds beyond a second; a database knows none.
    let micros = (moment.nanosecond() / 1000).min(999_999);
    if micros > 0 {
        text.push_str(format!(".{micros:06}").trim_end_matches('0'));
    }
    text.push_str("+00:00");
    text
}

/// A value as JSON.
fn write_json(out: &mut Vec<u8>, value: &Value) {
    // Writing into memory cannot fail.
    let _ = match value {
        Value::Null => out.write_all(b"null"),
        Value::Integer(number) => write!(out, "{number}"),
        Value::Number(text) | Value::Json(text) => out.write_all(text.as_bytes()),
        Value::Boolean(truth) => write!(out, "{truth}"),
        Value::Text(text) => serde_json::to_writer(out, text).map_err(Into::into),
        Value::Uuid(id) => write!(out, "\"{id}\""),
        Value::Timestamp(at) => write!(out, "\"{}\"", moment(*at)),
        Value::Date(date) => write!(out, "\"{date}\""),
        Value::Array(values) => {
            out.push(b'[');
            for (index, value) in values.iter().enumerate() {
                if index > 0 {
                    out.push(b',');
                }
                write_json(out, value);
            }
            out.write_all(b"]")
        }
    };
}

/// What a column of a result holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// What its values say.
    Plain,
    /// Declared so; its values are 0 and 1.
    Boolean,
    /// Declared so; its values are text.
    Json,
}

/// The columns of a statement as they were declared, once that was looked up.
#[derive(Debug, Default)]
pub struct Declared(ArcSwapOption<Vec<(Origin, Kind)>>);

/// Table and column that a value comes from; `None` for an expression.
type Origin = Option<(Arc<str>, Arc<str>)>;

impl Declared {
    /// The kinds of the columns of `row`.
    ///
    /// SQLite tells of a type only what it knows itself, and JSON is none that it knows: so the schema
    /// is asked, once for each statement, and again when the statement has got other columns.
    async fn of(&self, session: &Session<Sqlite>, row: &SqliteRow) -> sqlx::Result<Vec<Kind>> {
        let columns = row.columns();
        let known = self.0.load();
        if let Some(known) = &*known
            && known.len() == columns.len()
            && known.iter().zip(columns).all(|((from, _), column)| *from == origin(column))
        {
            return Ok(known.iter().map(|(_, kind)| *kind).collect());
        }
        let mut found = Vec::with_capacity(columns.len());
        for column in columns {
            let origin = origin(column);
            let declared: Option<String> = match &origin {
                Some((table, column)) => {
                    sqlx::query_scalar("SELECT type FROM pragma_table_info($1) WHERE name = $2")
                        .bind(table.to_string())
                        .bind(column.to_string())
                        .fetch_optional(session.read())
                        .await?
                }
                None => None,
            };
            found.push((origin, kind(declared.as_deref().unwrap_or_default())));
        }
        let kinds = found.iter().map(|(_, kind)| *kind).collect();
        self.0.store(Some(Arc::new(found)));
        Ok(kinds)
    }
}

fn origin(column: &SqliteColumn) -> Origin {
    let origin = column.origin();
    let origin = origin.table_column()?;
    Some((Arc::clone(&origin.table), Arc::clone(&origin.name)))
}

fn kind(declared: &str) -> Kind {
    if ["boolean", "bool"].iter().any(|it| declared.eq_ignore_ascii_case(it)) {
        Kind::Boolean
    } else if ["json", "jsonb"].iter().any(|it| declared.eq_ignore_ascii_case(it)) {
        Kind::Json
    } else {
        Kind::Plain
    }
}

fn write_column(
    row: &SqliteRow,
    index: usize,
    kind: Kind,
    out: &mut Vec<u8>,
) -> Result<(), Failure> {
    let value = row.try_get_raw(index).map_err(|error| Failure::of_row(&error))?;
    write_value(out, value, kind).map_err(|error| Failure::of_row(&sqlx::Error::Decode(error)))
}

fn write_value(
    out: &mut Vec<u8>,
    value: SqliteValueRef<'_>,
    kind: Kind,
) -> Result<(), BoxDynError> {
    if value.is_null() {
        out.extend_from_slice(b"null");
        return Ok(());
    }
    let stored = value.type_info();
    match stored.name() {
        "INTEGER" => {
            let number = <i64 as Decode<'_, Sqlite>>::decode(value)?;
            match (kind, number) {
                (Kind::Boolean, 0) => out.extend_from_slice(b"false"),
                (Kind::Boolean, 1) => out.extend_from_slice(b"true"),
                _ => write!(out, "{number}")?,
            }
        }
        "REAL" => write_number(out, <f64 as Decode<'_, Sqlite>>::decode(value)?)?,
        "BLOB" => {
            let bytes = <&[u8] as Decode<'_, Sqlite>>::decode(value)?;
            out.extend_from_slice(b"\"\\\\x");
            for byte in bytes {
                write!(out, "{byte:02x}")?;
            }
            out.push(b'"');
        }
        _ => {
            // SQLite does not look whether a text is valid UTF-8.
            let text = String::from_utf8_lossy(<&[u8] as Decode<'_, Sqlite>>::decode(value)?);
            if kind == Kind::Json && is_json(&text) {
                out.extend_from_slice(text.as_bytes());
            } else {
                write_text(out, &text);
            }
        }
    }
    Ok(())
}

fn write_number(out: &mut Vec<u8>, number: f64) -> Result<(), BoxDynError> {
    if number.is_finite() {
        serde_json::to_writer(out, &number)?;
    } else {
        // JSON has no such numbers. SQLite turns NaN into NULL, so that leaves two.
        out.extend_from_slice(if number > 0.0 { b"\"Infinity\"" } else { b"\"-Infinity\"" });
    }
    Ok(())
}

/// A declared type is only a wish: any text may be there.
fn is_json(text: &str) -> bool {
    serde_json::from_str::<serde::de::IgnoredAny>(text).is_ok()
}

fn write_text(out: &mut Vec<u8>, text: &str) {
    // Writing a string into memory cannot fail.
    let _ = serde_json::to_writer(out, text);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_written_as_postgresql_writes_them_and_sort() {
        let at = |text: &str| moment(text.parse().expect("a moment"));
        let written = [
            at("2026-01-02T03:04:05Z"),
            at("2026-01-02T03:04:05.100Z"),
            at("2026-01-02T04:04:05.120+01:00"),
            at("2026-01-02T03:04:05.123456789Z"),
            at("2026-01-02T03:04:06Z"),
        ];
        assert_eq!(written[0], "2026-01-02T03:04:05+00:00");
        assert_eq!(written[1], "2026-01-02T03:04:05.1+00:00");
        assert_eq!(written[2], "2026-01-02T03:04:05.12+00:00");
        assert_eq!(written[3], "2026-01-02T03:04:05.123456+00:00");
        assert!(written.is_sorted());
    }

    #[test]
    fn a_list_is_valid_json_whatever_is_in_it() {
        let values = vec![
            Value::Text("a\"b\\\n".into()),
            Value::Integer(-7),
            Value::Number("1.50".into()),
            Value::Null,
            Value::Boolean(true),
        ];
        let mut out = Vec::new();
        write_json(&mut out, &Value::Array(values));
        assert_eq!(String::from_utf8_lossy(&out), r#"["a\"b\\\n",-7,1.50,null,true]"#);
    }
}
