//! Brings the tables that Portway itself needs up to date.
//!
//! One text serves both databases. It is safe at any number of instances at once: PostgreSQL has a lock for
//! it, and on SQLite everything happens in one transaction that only one process can be in.

use std::{collections::BTreeSet, time::Duration};

use sqlx::{
    Connection as _, Executor as _, PgConnection, SqlStr, SqliteConnection,
    migrate::{Migrate as _, Migration, MigrationType, Migrator},
};
use tokio::time::timeout;

use super::{
    Db,
    backend::{Backend, Purpose},
    error::{Error, describe},
    router::Router,
};

/// The longest that all of it may take; another instance that migrates is waited for as long.
const DEADLINE: Duration = Duration::from_secs(300);

/// Where it is noted what was applied; the schema may have notes of its own.
const TABLE: &str = "portway_migrations";

/// Every migration, oldest first. One that was released is never changed.
const MIGRATIONS: &[(i64, &str, &str)] =
    &[(1, "signing keys", include_str!("../../migrations/0001_signing_keys.sql"))];

/// Why the migrations were not applied.
#[derive(Debug, thiserror::Error)]
pub enum MigrationError {
    #[error("no primary of the database can be reached: {0}")]
    NoPrimary(String),
    #[error("it took longer than {DEADLINE:?}")]
    TooLong,
    #[error("{0}")]
    Failed(String),
}

impl Db {
    /// Applies what is not applied yet, and returns what that was.
    ///
    /// # Errors
    ///
    /// [`MigrationError`]; what one migration did is all there or not at all.
    pub async fn migrate(&self) -> Result<Vec<String>, MigrationError> {
        match self {
            Self::Postgres(router) => on_primary(router, postgres).await,
            Self::Sqlite(router) => on_primary(router, sqlite).await,
        }
    }
}

async fn on_primary<B: Backend>(
    router: &Router<B>,
    run: impl AsyncFnOnce(B::Connection) -> Result<Vec<String>, sqlx::migrate::MigrateError>,
) -> Result<Vec<String>, MigrationError> {
    let index = router.wait_for_primary().await.ok_or_else(|| no_primary(router))?;
    let target = &router.nodes[index].target;
    // Without the limits on the time of statements that other connections have.
    let connection = timeout(router.settings.query_timeout, B::connect(target, Purpose::Probe));
    let connection = match connection.await {
        Ok(Ok(connection)) => connection,
        Ok(Err(error)) => return Err(MigrationError::NoPrimary(describe(&error).into_owned())),
        Err(_) => return Err(MigrationError::NoPrimary("it does not answer in time".to_owned())),
    };
    match timeout(DEADLINE, run(connection)).await {
        Ok(Ok(applied)) => Ok(applied),
        Ok(Err(error)) => Err(MigrationError::Failed(error.to_string())),
        Err(_) => Err(MigrationError::TooLong),
    }
}

fn no_primary<B: Backend>(router: &Router<B>) -> MigrationError {
    let mut errors = router.nodes.iter().filter_map(|node| {
        let error = node.probes().error.clone()?;
        Some(format!("{}: {error}", node.name))
    });
    MigrationError::NoPrimary(errors.next().unwrap_or_else(|| Error::NoPrimary.to_string()))
}

fn migrator() -> Migrator {
    let migrations = MIGRATIONS.iter().map(|(version, description, sql)| {
        let sql = SqlStr::from_static(sql);
        Migration::new(*version, (*description).into(), MigrationType::Simple, sql, false)
    });
    let mut migrator = Migrator::with_migrations(migrations.collect());
    migrator.dangerous_set_table_name(TABLE);
    // A newer version of Portway was here, and may still be: what it added does no harm to this one.
    migrator.set_ignore_missing(true);
    migrator
}

/// What was applied between two looks.
fn names(before: &BTreeSet<i64>) -> Vec<String> {
    let fresh = MIGRATIONS.iter().filter(|(version, ..)| !before.contains(version));
    fresh.map(|(version, description, _)| format!("{version:04} {description}")).collect()
}

macro_rules! applied {
    ($connection:expr) => {{
        $connection.ensure_migrations_table(TABLE).await?;
        let applied = $connection.list_applied_migrations(TABLE).await?;
        applied.into_iter().map(|it| it.version).collect::<BTreeSet<_>>()
    }};
}

async fn postgres(
    mut connection: PgConnection,
) -> Result<Vec<String>, sqlx::migrate::MigrateError> {
    // That a table is there already is no news.
    connection.execute("SET client_min_messages = warning").await?;
    connection.lock().await?;
    let before = applied!(connection);
    let mut migrator = migrator();
    // It is held already, around the look as well.
    migrator.set_locking(false);
    migrator.run_direct(None, &mut connection, false).await?;
    connection.unlock().await?;
    Ok(names(&before))
}

async fn sqlite(
    mut connection: SqliteConnection,
) -> Result<Vec<String>, sqlx::migrate::MigrateError> {
    let mut transaction = connection.begin_with("BEGIN IMMEDIATE").await?;
    let before = applied!(transaction);
    migrator().run_direct(None, &mut *transaction, false).await?;
    transaction.commit().await?;
    Ok(names(&before))
}
