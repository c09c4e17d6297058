//! What the router has to know of a database beyond sqlx.

use std::time::Duration;

use futures_util::future::BoxFuture;
use sqlx::{Database, Either, Execute, IntoArguments, SqlStr};

use super::position::Position;

/// What a result is made of: rows, and how many were affected.
pub type Rows<B> = Vec<Either<<B as Database>::QueryResult, <B as Database>::Row>>;

/// A database that the router can route to.
pub trait Backend: Database<Arguments: Clone + Sync + IntoArguments<Self>> + Sized {
    /// How to reach one node.
    type Target: Send + Sync + 'static;

    /// The most connections that may write at once to one node; `None` as many as the pool has.
    const WRITERS: Option<usize>;

    /// Opens a connection.
    fn connect(
        target: &Self::Target,
        purpose: Purpose,
    ) -> BoxFuture<'_, sqlx::Result<Self::Connection>>;

    /// The cluster that a node belongs to, where its user may know it.
    fn system(connection: &mut Self::Connection) -> BoxFuture<'_, sqlx::Result<Option<i64>>>;

    /// Asks a node what it is and how far it has come.
    fn probe(connection: &mut Self::Connection) -> BoxFuture<'_, sqlx::Result<Seen>>;

    /// Where the write that this connection has just committed can be read; `None` where every reader
    /// sees every write.
    fn position(connection: &mut Self::Connection)
    -> BoxFuture<'_, sqlx::Result<Option<Position>>>;

    /// Runs one statement and collects what it gives.
    fn run(
        connection: &mut Self::Connection,
        statement: Statement<Self>,
    ) -> BoxFuture<'_, sqlx::Result<Rows<Self>>>;
}

/// What a connection is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// A session in which the server refuses writes.
    Read {
        /// What the server may spend on one statement.
        timeout: Duration,
    },
    Write {
        timeout: Duration,
    },
    Probe,
}

/// What a node says of itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Seen {
    /// Out of recovery: it takes writes.
    pub primary: bool,
    /// Written (primary) or replayed (replica) up to here.
    pub lsn: u64,
    /// Of a replica, the timeline it receives, where its user may know it; else 0.
    pub timeline: u32,
    /// When the server started, in microseconds of its own clock: tells one life from the next.
    pub boot: i64,
}

/// One statement with its arguments, owned, so that it can be run again on another node.
pub struct Statement<B: Database> {
    pub(super) sql: SqlStr,
    pub(super) arguments: Option<B::Arguments>,
    pub(super) persistent: bool,
}

impl<B: Backend> Clone for Statement<B> {
    fn clone(&self) -> Self {
        Self {
            sql: self.sql.clone(),
            arguments: self.arguments.clone(),
            persistent: self.persistent,
        }
    }
}

impl<B: Backend> Statement<B> {
    /// A statement that is prepared once on each connection.
    pub fn new(sql: SqlStr, arguments: B::Arguments) -> Self {
        Self { sql, arguments: Some(arguments), persistent: true }
    }

    pub(super) fn take<'q>(mut query: impl Execute<'q, B>) -> sqlx::Result<Self> {
        let arguments = query.take_arguments().map_err(sqlx::Error::Encode)?;
        let persistent = query.persistent();
        Ok(Self { arguments, persistent, sql: query.sql() })
    }
}

/// The same body for every backend: a trait cannot say that a connection is an `Executor`.
macro_rules! run_on_connection {
    () => {
        fn run(
            connection: &mut Self::Connection,
            statement: Statement<Self>,
        ) -> BoxFuture<'_, sqlx::Result<Rows<Self>>> {
            let Statement { sql, arguments, persistent } = statement;
            match arguments {
                Some(arguments) => {
                    let query: Query<'static, Self, _> =
                        sqlx::query_with(sql, arguments).persistent(persistent);
                    Box::pin(connection.fetch_many(query).try_collect())
                }
                None => Box::pin(connection.fetch_many(sql).try_collect()),
            }
        }
    };
}
pub(super) use run_on_connection;
