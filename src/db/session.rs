//! One caller's view of the database: what it wrote, it reads.
//!
//! Intent is stated by the handle, never guessed from the SQL. Handles are taken by sqlx's own query
//! functions, and run the statement again on another node where that is safe:
//!
//! ```no_run
//! # async fn example(session: portway::db::Session<sqlx::Postgres>) -> sqlx::Result<()> {
//! let name: String = sqlx::query_scalar("SELECT name FROM products WHERE id = $1")
//!     .bind(7_i64)
//!     .fetch_one(session.read())
//!     .await?;
//! # Ok(()) }
//! ```

use std::{
    fmt,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures_util::{
    future::BoxFuture,
    stream::{self, BoxStream, StreamExt as _, TryStreamExt as _},
};
use sqlx::{Database, Either, Execute, Executor, SqlStr};

use super::{
    backend::{Backend, Rows, Statement},
    choose::Wanted,
    error::Error,
    position::Position,
    router::Router,
    write::Open,
};

/// One caller's view, made for each request; clones share it.
pub struct Session<B: Backend> {
    router: Arc<Router<B>>,
    position: Arc<Mutex<Option<Position>>>,
}

impl<B: Backend> Clone for Session<B> {
    fn clone(&self) -> Self {
        Self { router: Arc::clone(&self.router), position: Arc::clone(&self.position) }
    }
}

impl<B: Backend> Router<B> {
    /// A view that sees everything up to `after`.
    pub fn session(self: &Arc<Self>, after: Option<Position>) -> Session<B> {
        Session { router: Arc::clone(self), position: Arc::new(Mutex::new(after)) }
    }
}

impl<B: Backend> Session<B> {
    /// Where reads go: a replica that has caught up, or the primary. The server refuses writes.
    pub fn read(&self) -> Read<B> {
        let wanted = Wanted {
            floor: self.position(),
            max_staleness: self.router.settings.max_lag,
            strong: false,
        };
        Read { session: self.clone(), wanted, hedge: None }
    }

    /// The primary. What was written is seen by this session's reads.
    pub fn write(&self) -> Write<B> {
        Write { session: self.clone() }
    }

    /// Begins a transaction, on the primary.
    ///
    /// # Errors
    ///
    /// [`Error::NoPrimary`], [`Error::Overloaded`], [`Error::TimedOut`].
    pub async fn begin(&self) -> Result<Tx<B>, Error> {
        let open = self.router.begin(self.position()).await?;
        Ok(Tx { session: self.clone(), open })
    }

    /// The furthest of what it began with and what its writes reached. It never goes back, also when one
    /// replica has come that far: another may not.
    pub fn position(&self) -> Option<Position> {
        *self.position.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn reached(&self, position: Option<Position>) {
        let mut floor = self.position.lock().unwrap_or_else(PoisonError::into_inner);
        *floor = (*floor).max(position);
    }
}

/// Runs statements as reads.
pub struct Read<B: Backend> {
    session: Session<B>,
    wanted: Wanted,
    hedge: Option<Duration>,
}

impl<B: Backend> Read<B> {
    /// Data may be this old, in place of `DATABASE_REPLICA_MAX_LAG`.
    pub fn max_staleness(mut self, age: Duration) -> Self {
        self.wanted.max_staleness = age;
        self
    }

    /// Sees everything that was committed before: asks the primary.
    pub fn strong(mut self) -> Self {
        self.wanted.strong = true;
        self
    }

    /// Asks a second replica if the first has not answered after `delay`, and takes what comes first.
    pub fn hedged(mut self, delay: Duration) -> Self {
        self.hedge = Some(delay);
        self
    }
}

/// Runs statements as writes.
pub struct Write<B: Backend> {
    session: Session<B>,
}

/// A transaction. Dropped without [`Tx::commit`] it is rolled back, at the cost of its connection.
pub struct Tx<B: Backend> {
    session: Session<B>,
    open: Open<B>,
}

impl<B: Backend> Tx<B> {
    /// Runs statements in it: `query.execute(tx.connection())`.
    pub fn connection(&mut self) -> &mut B::Connection {
        self.open.connection()
    }

    /// Makes it last.
    ///
    /// # Errors
    ///
    /// [`Error::OutcomeUnknown`] when the answer did not come; [`Error::Query`] when the server refused, in
    /// which case nothing has happened.
    pub async fn commit(self) -> Result<(), Error> {
        let position = self.open.commit().await?;
        self.session.reached(position);
        Ok(())
    }

    /// Takes it back.
    pub async fn rollback(self) {
        self.open.rollback().await;
    }
}

/// A handle that runs statements.
pub trait Run<B: Backend>: Send + Sized {
    /// Runs one and collects what it gives; what sqlx's query functions come to.
    fn run(self, statement: Statement<B>) -> impl Future<Output = Result<Rows<B>, Error>> + Send;
}

impl<B: Backend> Run<B> for Read<B> {
    async fn run(self, statement: Statement<B>) -> Result<Rows<B>, Error> {
        self.session.router.read(self.wanted, self.hedge, statement).await
    }
}

impl<B: Backend> Run<B> for Write<B> {
    async fn run(self, statement: Statement<B>) -> Result<Rows<B>, Error> {
        let floor = self.session.position();
        let (rows, position) = self.session.router.write(floor, statement).await?;
        self.session.reached(position);
        Ok(rows)
    }
}

impl<B: Backend> fmt::Debug for Read<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Read")
    }
}

impl<B: Backend> fmt::Debug for Write<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Write")
    }
}

type Step<B> = Either<<B as Database>::QueryResult, <B as Database>::Row>;

async fn collect<B: Backend>(
    handle: impl Run<B>,
    statement: sqlx::Result<Statement<B>>,
) -> sqlx::Result<Rows<B>> {
    handle.run(statement?).await.map_err(Error::into_sqlx)
}

macro_rules! executor {
    ($handle:ident) => {
        impl<'c, B: Backend> Executor<'c> for $handle<B> {
            type Database = B;

            fn fetch_many<'e, 'q: 'e, E>(self, query: E) -> BoxStream<'e, sqlx::Result<Step<B>>>
            where
                'c: 'e,
                E: 'q + Execute<'q, B>,
            {
                let statement = Statement::take(query);
                stream::once(collect(self, statement))
                    .map_ok(|rows| stream::iter(rows.into_iter().map(Ok)))
                    .try_flatten()
                    .boxed()
            }

            fn fetch_all<'e, 'q: 'e, E>(self, query: E) -> BoxFuture<'e, sqlx::Result<Vec<B::Row>>>
            where
                'c: 'e,
                E: 'q + Execute<'q, B>,
            {
                let statement = Statement::take(query);
                Box::pin(async move {
                    let rows = collect(self, statement).await?;
                    Ok(rows.into_iter().filter_map(Either::right).collect())
                })
            }

            fn fetch_optional<'e, 'q: 'e, E>(
                self,
                query: E,
            ) -> BoxFuture<'e, sqlx::Result<Option<B::Row>>>
            where
                'c: 'e,
                E: 'q + Execute<'q, B>,
            {
                let statement = Statement::take(query);
                Box::pin(async move {
                    let rows = collect(self, statement).await?;
                    Ok(rows.into_iter().find_map(Either::right))
                })
            }

            /// A prepared statement belongs to one connection, and this is any of several nodes.
            fn prepare_with<'e>(
                self,
                _: SqlStr,
                _: &'e [B::TypeInfo],
            ) -> BoxFuture<'e, sqlx::Result<B::Statement>>
            where
                'c: 'e,
            {
                let message = "statements are prepared by the connection that runs them";
                Box::pin(async move { Err(sqlx::Error::Protocol(message.to_owned())) })
            }
        }
    };
}
executor!(Read);
executor!(Write);
