//! PostgreSQL as a backend.

use std::time::Duration;

use futures_util::{TryStreamExt as _, future::BoxFuture};
use sqlx::{
    ConnectOptions as _, Executor as _, PgConnection, Postgres, Row as _,
    postgres::PgConnectOptions, query::Query,
};

use super::{
    backend::{Backend, Purpose, Rows, Seen, Statement, run_on_connection},
    position::Position,
};

/// `client_connection_check_interval` came with this version.
const CHECKS_CLIENTS: u32 = 14_00_00;

/// How much longer the server may take than the gateway waits: whoever cuts first decides what the
/// client is told, and the gateway can tell it better.
const MARGIN: Duration = Duration::from_millis(250);

/// All that is asked of a node is allowed to every role, but for the timeline that a replica receives,
/// which `pg_monitor` may see.
const PROBE: &str = "\
select r, (case when r then pg_last_wal_replay_lsn() else pg_current_wal_lsn() end - '0/0')::bigint, \
case when r then coalesce((select received_tli from pg_stat_wal_receiver), 0) \
else ('x' || substr(pg_walfile_name(pg_current_wal_lsn()), 1, 8))::bit(32)::int end, \
(extract(epoch from pg_postmaster_start_time()) * 1000000)::bigint \
from pg_is_in_recovery() r";

/// The flushed position after a commit. With asynchronous commit the record may not be written out yet;
/// there the insert position is taken, which may lie a page header further than any replica comes until
/// something else is written.
const POSITION: &str = "\
select ('x' || substr(pg_walfile_name(l), 1, 8))::bit(32)::int, (l - '0/0')::bigint \
from (select case when current_setting('synchronous_commit') = 'off' then pg_current_wal_insert_lsn() \
else pg_current_wal_lsn() end) p(l)";

const SYSTEM: &str = "select system_identifier from pg_control_system()";

impl Backend for Postgres {
    type Target = PgConnectOptions;

    const WRITERS: Option<usize> = None;

    fn connect(
        target: &Self::Target,
        purpose: Purpose,
    ) -> BoxFuture<'_, sqlx::Result<PgConnection>> {
        Box::pin(async move {
            let mut connection = target.connect().await?;
            if let Some(settings) = settings(purpose, connection.server_version_num()) {
                connection.execute(sqlx::AssertSqlSafe(settings)).await?;
            }
            Ok(connection)
        })
    }

    fn system(connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<Option<i64>>> {
        Box::pin(async move {
            match sqlx::query_scalar(SYSTEM).fetch_one(connection).await {
                Ok(system) => Ok(Some(system)),
                // Some services do not let their users ask for it.
                Err(sqlx::Error::Database(_)) => Ok(None),
                Err(error) => Err(error),
            }
        })
    }

    fn probe(connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<Seen>> {
        Box::pin(async move {
            let row = sqlx::query(PROBE).fetch_one(&mut *connection).await?;
            // A replica that has replayed nothing yet has no position.
            let lsn: Option<i64> = row.try_get(1)?;
            Ok(Seen {
                primary: !row.try_get::<bool, _>(0)?,
                lsn: lsn.unwrap_or(0) as u64,
                timeline: row.try_get::<i32, _>(2)? as u32,
                boot: row.try_get(3)?,
            })
        })
    }

    fn position(connection: &mut PgConnection) -> BoxFuture<'_, sqlx::Result<Option<Position>>> {
        Box::pin(async move {
            let row = sqlx::query(POSITION).fetch_one(connection).await?;
            let (timeline, lsn): (i32, i64) = (row.try_get(0)?, row.try_get(1)?);
            Ok(Some(Position { timeline: timeline as u32, lsn: lsn as u64 }))
        })
    }

    run_on_connection!();
}

/// What every session is told, in one message.
fn settings(purpose: Purpose, version: Option<u32>) -> Option<String> {
    let (read_only, timeout) = match purpose {
        Purpose::Read { timeout } => ("on", timeout),
        Purpose::Write { timeout } => ("off", timeout),
        Purpose::Probe => return None,
    };
    let timeout = (timeout + MARGIN).as_millis();
    let mut settings = format!(
        "SET default_transaction_read_only = {read_only}; SET statement_timeout = {timeout}; \
         SET idle_in_transaction_session_timeout = {timeout}"
    );
    if version.is_some_and(|version| version >= CHECKS_CLIENTS) {
        // A statement whose client is gone ends within this time, and not when it is done.
        settings.push_str("; SET client_connection_check_interval = 500");
    }
    Some(settings)
}

/// Reads a URL.
///
/// # Errors
///
/// When sqlx cannot make sense of it.
pub(super) fn target(url: &str) -> sqlx::Result<PgConnectOptions> {
    let options: PgConnectOptions = url.parse()?;
    let named = options.get_application_name().is_some();
    let options = if named { options } else { options.application_name("portway") };
    Ok(options.disable_statement_logging())
}
