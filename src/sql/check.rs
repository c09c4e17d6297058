//! Holds the statements of SQL routes against the schema of the database, before requests do.
//!
//! Each is prepared as it will be run, which the database refuses where a table, a column or a function is
//! missing or a type does not fit. PostgreSQL is then asked which types it would have taken, to tell which
//! parameter it is. Nothing is executed.

use std::{str::FromStr as _, time::Duration};

use chrono::{DateTime, NaiveDate, Utc};
use sqlx::{
    Connection as _, Either, Executor as _, PgConnection, Postgres, SqlStr, SqliteConnection,
    Statement as _, TypeInfo as _,
    postgres::{PgConnectOptions, PgHasArrayType, PgTypeInfo, types::Oid},
    sqlite::SqliteConnectOptions,
    types::Type,
};
use tokio::time::timeout;
use uuid::Uuid;

use super::statement::{Compiled, Dialect};
use crate::{
    config::{DatabaseConfig, DatabaseUrl},
    routes::{Action, ParamType, RouteTable, SqlRule},
};

/// Why statements are not known to fit.
#[derive(Debug, thiserror::Error)]
pub enum CheckError {
    #[error("the database {name} cannot be asked: {reason}")]
    Unreachable { name: String, reason: String },
    /// What does not fit, a line each.
    #[error("{}", .0.join("\n"))]
    Mistakes(Vec<String>),
}

/// Prepares the statement of every SQL route on the primary; how many there are.
///
/// # Errors
///
/// Everything that does not fit, at once.
pub async fn check(table: &RouteTable, database: &DatabaseConfig) -> Result<usize, CheckError> {
    let url = &database.primary;
    let work = async {
        let mut connection = Target::connect(url).await?;
        let mut checked = 0;
        let mut mistakes = Vec::new();
        for route in &table.routes {
            let Action::Sql(rule) = &route.action else { continue };
            checked += 1;
            let found = timeout(database.query_timeout, connection.check(rule)).await;
            let found = found.map_err(|_| sqlx::Error::PoolTimedOut)??;
            mistakes.extend(found.into_iter().map(|it| format!("route `{}`: {it}", route.name)));
        }
        Ok((checked, mistakes))
    };
    // A connection may hang too; that one has no deadline of its own.
    let limit = database.query_timeout * (table.routes.len() as u32 + 1);
    let unreachable = |reason: String| CheckError::Unreachable { name: url.name().into(), reason };
    match timeout(limit.max(Duration::from_secs(1)), work).await {
        Ok(Ok((checked, mistakes))) if mistakes.is_empty() => Ok(checked),
        Ok(Ok((_, mistakes))) => Err(CheckError::Mistakes(mistakes)),
        Ok(Err(sqlx::Error::PoolTimedOut)) | Err(_) => Err(unreachable("no answer in time".into())),
        Ok(Err(error)) => Err(unreachable(error.to_string())),
    }
}

/// A connection of its own: prepared statements belong to one.
enum Target {
    Postgres(PgConnection),
    Sqlite(SqliteConnection),
}

impl Target {
    async fn connect(url: &DatabaseUrl) -> sqlx::Result<Self> {
        match url {
            DatabaseUrl::Postgres { url, .. } => {
                let options = PgConnectOptions::from_str(url.expose())?;
                Ok(Self::Postgres(PgConnection::connect_with(&options).await?))
            }
            DatabaseUrl::Sqlite { url, .. } => {
                // A file that is not there has no schema: it must not be made by looking for it.
                let options = SqliteConnectOptions::from_str(url.expose())?;
                let options = options.read_only(true).create_if_missing(false);
                Ok(Self::Sqlite(SqliteConnection::connect_with(&options).await?))
            }
        }
    }

    /// What does not fit. An error when the database does not answer.
    async fn check(&mut self, rule: &SqlRule) -> sqlx::Result<Vec<String>> {
        match self {
            Self::Sqlite(connection) => {
                let compiled = Compiled::new(rule, Dialect::Sqlite);
                let prepared = connection.prepare(compiled.longest().clone()).await;
                Ok(refusal(prepared.map(drop))?.into_iter().collect())
            }
            Self::Postgres(connection) => {
                let sql = Compiled::new(rule, Dialect::Postgres).longest().clone();
                on_postgres(connection, &sql, &takes(rule)).await
            }
        }
    }
}

/// What the database says against a statement, if it does.
fn refusal(prepared: sqlx::Result<()>) -> sqlx::Result<Option<String>> {
    match prepared {
        Ok(()) => Ok(None),
        Err(sqlx::Error::Database(error)) => Ok(Some(error.message().to_owned())),
        Err(error) => Err(error),
    }
}

/// A value that a statement takes.
struct Taken {
    /// What it is called in messages.
    what: String,
    declared: String,
    /// What it is sent as.
    sent: PgTypeInfo,
}

/// What the longest statement of a route takes, in order.
fn takes(rule: &SqlRule) -> Vec<Taken> {
    let mut takes: Vec<Taken> = rule
        .params
        .iter()
        .map(|param| Taken {
            what: format!("parameter `{}`", param.name),
            declared: format!("{}{}", name(&param.kind), if param.array { "[]" } else { "" }),
            sent: sent(&param.kind, param.array),
        })
        .collect();
    if let Some(page) = &rule.page {
        let limit = <i64 as Type<Postgres>>::type_info();
        takes.push(Taken { what: "`limit`".into(), declared: "integer".into(), sent: limit });
        takes.extend(page.keys.iter().map(|key| Taken {
            what: format!("key `{}` of the page", key.column),
            declared: name(&key.kind).into(),
            sent: sent(&key.kind, false),
        }));
    }
    takes
}

fn name(kind: &ParamType) -> &'static str {
    match kind {
        ParamType::Integer { .. } => "integer",
        ParamType::Number { .. } => "number",
        ParamType::Boolean => "boolean",
        ParamType::Text { .. } => "text",
        ParamType::Uuid => "uuid",
        ParamType::Timestamp => "timestamp",
        ParamType::Date => "date",
        ParamType::Json => "json",
        ParamType::Enum(_) => "enum",
    }
}

/// The type that values are bound as.
fn sent(kind: &ParamType, array: bool) -> PgTypeInfo {
    fn of<T: Type<Postgres> + PgHasArrayType>(array: bool) -> PgTypeInfo {
        if array { T::array_type_info() } else { T::type_info() }
    }
    match kind {
        ParamType::Integer { .. } => of::<i64>(array),
        ParamType::Boolean => of::<bool>(array),
        ParamType::Uuid => of::<Uuid>(array),
        ParamType::Timestamp => of::<DateTime<Utc>>(array),
        ParamType::Date => of::<NaiveDate>(array),
        ParamType::Number { .. }
        | ParamType::Json
        | ParamType::Text { .. }
        | ParamType::Enum(_) => of::<String>(array),
    }
}

async fn on_postgres(
    connection: &mut PgConnection,
    sql: &SqlStr,
    takes: &[Taken],
) -> sqlx::Result<Vec<String>> {
    let sent: Vec<PgTypeInfo> = takes.iter().map(|taken| taken.sent.clone()).collect();
    let Some(message) = prepare(connection, sql, &sent).await?.err() else { return Ok(Vec::new()) };
    // With its own choice of types, or there is more wrong than these.
    let unsaid = vec![PgTypeInfo::with_oid(Oid(0)); takes.len()];
    let Ok(wanted) = prepare(connection, sql, &unsaid).await? else { return Ok(vec![message]) };
    let mut mistakes = Vec::new();
    for (index, taken) in takes.iter().enumerate() {
        let mut types = unsaid.clone();
        types[index] = taken.sent.clone();
        if prepare(connection, sql, &types).await?.is_err() {
            let wanted = wanted.get(index).map_or("another type", PgTypeInfo::name);
            let Taken { what, declared, .. } = taken;
            mistakes.push(format!(
                "{what} is declared {declared}, and the statement wants {} here ({message})",
                wanted.to_ascii_lowercase()
            ));
        }
    }
    // None by itself, but several that do not go together.
    if mistakes.is_empty() {
        mistakes.push(message);
    }
    Ok(mistakes)
}

/// The types of what a statement takes, or what the server says against it.
async fn prepare(
    connection: &mut PgConnection,
    sql: &SqlStr,
    types: &[PgTypeInfo],
) -> sqlx::Result<Result<Vec<PgTypeInfo>, String>> {
    // It is known by its text, whatever its types were.
    connection.clear_cached_statements().await?;
    match connection.prepare_with(sql.clone(), types).await {
        Ok(prepared) => Ok(Ok(match prepared.parameters() {
            Some(Either::Left(types)) => types.to_vec(),
            Some(Either::Right(_)) | None => Vec::new(),
        })),
        Err(sqlx::Error::Database(error)) => Ok(Err(error.message().to_owned())),
        Err(error) => Err(error),
    }
}
