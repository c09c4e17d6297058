//! The database: reads go to replicas that have caught up, writes to the primary, and both go on when a
//! server fails.
//!
//! [`Db`] is the front door, for PostgreSQL and for the embedded SQLite alike. A request opens a [`Session`]
//! with the [`Position`] it brought and states by the handle it takes what it means to do. Each node has a
//! prober; what probes see and requests meet goes through one pure state machine, whose result requests go
//! by. The router observes and never promotes.

/// Runs the same on either: `on!(db, router => expression)`.
macro_rules! on {
    ($db:expr, $router:ident => $then:expr) => {
        match $db {
            $crate::db::Db::Postgres($router) => $then,
            $crate::db::Db::Sqlite($router) => $then,
        }
    };
}
mod backend;
mod choose;
mod error;
mod heads;
mod metrics;
mod migrate;
mod node;
mod pool;
mod position;
mod postgres;
mod prober;
mod read;
mod router;
mod session;
mod signing;
mod sqlite;
mod status;
mod topology;
mod write;

use std::{sync::Arc, time::Duration};

use sqlx::{Postgres, Sqlite};

pub use backend::{Backend, Rows, Statement};
pub use error::Error;
pub use migrate::MigrationError;
pub use pool::PoolStatus;
pub use position::Position;
pub use router::Router;
pub use session::{Read, Run, Session, Tx, Write};
pub use status::{Counts, DatabaseStatus, NodeStatus};
pub use topology::{Role, State};

use crate::config::{DatabaseConfig, DatabaseUrl};
use router::Settings;

/// An embedded database is in this process; asking it more often would tell nothing.
const EMBEDDED_INTERVAL: Duration = Duration::from_secs(1);

/// A database URL that sqlx cannot use.
#[derive(Debug, thiserror::Error)]
#[error("the database {name} cannot be used: {reason}")]
pub struct StartError {
    name: String,
    reason: String,
}

/// The database, whichever it is.
#[derive(Clone)]
pub enum Db {
    Postgres(Arc<Router<Postgres>>),
    Sqlite(Arc<Router<Sqlite>>),
}

impl Db {
    /// Begins to watch the nodes; never fails because one is away. Needs a tokio runtime.
    ///
    /// # Errors
    ///
    /// When a URL has parts that sqlx does not know.
    pub fn start(config: &DatabaseConfig) -> Result<Self, StartError> {
        let settings = Settings {
            pool_size: config.pool_size,
            max_lag: config.replica_max_lag,
            interval: config.health_interval,
            query_timeout: config.query_timeout,
        };
        let target = |url: &DatabaseUrl| {
            let target = postgres::target(url.expose());
            target.map(|target| (url.name().to_owned(), target)).map_err(|error| start(url, &error))
        };
        match &config.primary {
            url @ DatabaseUrl::Sqlite { .. } => {
                let target = sqlite::target(url.expose()).map_err(|error| start(url, &error))?;
                let settings =
                    Settings { interval: settings.interval.max(EMBEDDED_INTERVAL), ..settings };
                let nodes = vec![(url.name().to_owned(), target)];
                Ok(Self::Sqlite(Router::start(nodes, settings)))
            }
            DatabaseUrl::Postgres { .. } => {
                let urls = std::iter::once(&config.primary).chain(&config.replicas);
                let nodes = urls.map(target).collect::<Result<_, _>>()?;
                Ok(Self::Postgres(Router::start(nodes, settings)))
            }
        }
    }

    /// What operators see.
    pub fn status(&self) -> DatabaseStatus {
        on!(self, router => router.status())
    }

    /// Whether a primary is known.
    pub fn has_primary(&self) -> bool {
        on!(self, router => router.has_primary())
    }

    /// Takes a node out of the reads, or back in; false if there is no such node. Writes go to the primary
    /// whether it is drained or not.
    pub fn drain(&self, name: &str, drained: bool) -> bool {
        on!(self, router => router.drain(name, drained))
    }

    /// Lets queries under way finish, and closes every connection.
    pub async fn close(&self, within: Duration) {
        on!(self, router => router.close(within).await);
    }
}

fn start(url: &DatabaseUrl, error: &sqlx::Error) -> StartError {
    StartError { name: url.name().to_owned(), reason: error::describe(error).into_owned() }
}
