//! SQLite as a backend: one node, which is the primary, with one connection that writes and several that
//! can only read.
//!
//! With write-ahead logging readers and the writer do not wait for each other. More than one writer would
//! only get in each other's way.

use std::time::Duration;

use futures_util::{TryStreamExt as _, future::BoxFuture};
use sqlx::{
    ConnectOptions as _, Executor as _, Sqlite, SqliteConnection,
    query::Query,
    sqlite::{SqliteConnectOptions, SqliteJournalMode, SqliteSynchronous},
};

use super::{
    backend::{Backend, Purpose, Rows, Seen, Statement, run_on_connection},
    position::Position,
};

/// How long a writer waits for one in another process.
const BUSY_TIMEOUT: Duration = Duration::from_secs(2);

impl Backend for Sqlite {
    type Target = SqliteConnectOptions;

    const WRITERS: Option<usize> = Some(1);

    fn connect(
        target: &Self::Target,
        purpose: Purpose,
    ) -> BoxFuture<'_, sqlx::Result<SqliteConnection>> {
        Box::pin(async move {
            let options = match purpose {
                // A database in memory is not opened again but shared, and takes only the pragma.
                Purpose::Read { .. } => target
                    .clone()
                    .read_only(true)
                    .create_if_missing(false)
                    .pragma("query_only", "ON"),
                Purpose::Write { .. } | Purpose::Probe => target
                    .clone()
                    .journal_mode(SqliteJournalMode::Wal)
                    .synchronous(SqliteSynchronous::Normal),
            };
            options.connect().await
        })
    }

    fn system(_: &mut SqliteConnection) -> BoxFuture<'_, sqlx::Result<Option<i64>>> {
        Box::pin(async { Ok(None) })
    }

    fn probe(connection: &mut SqliteConnection) -> BoxFuture<'_, sqlx::Result<Seen>> {
        Box::pin(async move {
            // Reads the file's header, and so notices one that is gone or is no database.
            connection.execute("PRAGMA schema_version").await?;
            Ok(Seen { primary: true, lsn: 0, timeline: 0, boot: 0 })
        })
    }

    fn position(_: &mut SqliteConnection) -> BoxFuture<'_, sqlx::Result<Option<Position>>> {
        Box::pin(async { Ok(None) })
    }

    run_on_connection!();
}

/// Reads a URL.
///
/// # Errors
///
/// When sqlx cannot make sense of it.
pub(super) fn target(url: &str) -> sqlx::Result<SqliteConnectOptions> {
    let options: SqliteConnectOptions = url.parse()?;
    Ok(options.foreign_keys(true).busy_timeout(BUSY_TIMEOUT).disable_statement_logging())
}
