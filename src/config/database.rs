//! Where the database is, and how it is used.

use std::time::Duration;

use url::Url;

use super::{Secret, values, vars::Expected, vars::Vars};

/// Embedded, beside the process.
const DEFAULT: &str = "sqlite://portway.db?mode=rwc";

/// How long a database may lag before it is too short for one probe to prove otherwise.
const PROBES_PER_LAG: u32 = 2;

/// The most nodes: more than any database has, few enough to be told apart by the bits of a word.
const MOST_NODES: usize = 32;

/// The database.
///
/// - `DATABASE_URL` (`sqlite://portway.db?mode=rwc`): the primary, `postgres://` or `sqlite://`.
/// - `DATABASE_READ_REPLICA_URL` (none): replicas of it, `postgres://`, with commas between.
/// - `DATABASE_READ_REPLICA_ENABLED` (`true` where there are some): `false` leaves them alone.
/// - `DATABASE_REPLICA_MAX_LAG` (`5s`): how old the data of a replica may be.
/// - `DATABASE_POOL_SIZE` (`20`): most connections to one node that read, and most that write.
/// - `DATABASE_HEALTH_INTERVAL` (`250ms`): time between two probes of a node.
/// - `DATABASE_QUERY_TIMEOUT` (`5s`): the longest that a statement may take, with everything around it.
/// - `DATABASE_MIGRATE` (`true`): whether a start applies the migrations.
#[derive(Debug, Clone)]
pub struct DatabaseConfig {
    pub primary: DatabaseUrl,
    /// Without the primary; empty where there are none or they are turned off.
    pub replicas: Vec<DatabaseUrl>,
    pub replica_max_lag: Duration,
    pub pool_size: usize,
    pub health_interval: Duration,
    pub query_timeout: Duration,
    pub migrate: bool,
}

/// One database server, or file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DatabaseUrl {
    Postgres {
        url: Secret,
        /// Host and port: what the node is called in metrics and by operators.
        name: Box<str>,
    },
    Sqlite {
        url: Secret,
        /// The file.
        name: Box<str>,
    },
}

impl DatabaseUrl {
    /// The URL, with its password.
    pub fn expose(&self) -> &str {
        match self {
            Self::Postgres { url, .. } | Self::Sqlite { url, .. } => url.expose(),
        }
    }

    /// What the node is called; never a credential.
    pub fn name(&self) -> &str {
        match self {
            Self::Postgres { name, .. } | Self::Sqlite { name, .. } => name,
        }
    }
}

impl DatabaseConfig {
    pub(super) fn read(vars: &mut Vars<'_>) -> Self {
        let config = Self {
            primary: vars.secret("DATABASE_URL", any).unwrap_or_else(embedded),
            replicas: vars.secret("DATABASE_READ_REPLICA_URL", replicas).unwrap_or_default(),
            replica_max_lag: vars.value(
                "DATABASE_REPLICA_MAX_LAG",
                Duration::from_secs(5),
                values::duration,
            ),
            pool_size: vars.value("DATABASE_POOL_SIZE", 20, values::number(1..=1000)),
            health_interval: vars.value(
                "DATABASE_HEALTH_INTERVAL",
                Duration::from_millis(250),
                at_least(Duration::from_millis(10)),
            ),
            query_timeout: vars.value(
                "DATABASE_QUERY_TIMEOUT",
                Duration::from_secs(5),
                at_least(Duration::from_millis(10)),
            ),
            migrate: vars.value("DATABASE_MIGRATE", true, values::boolean),
        };
        let enabled = vars.optional("DATABASE_READ_REPLICA_ENABLED", values::boolean);
        config.check(enabled, vars);
        let replicas = if enabled == Some(false) { Vec::new() } else { config.replicas };
        Self { replicas, ..config }
    }

    fn check(&self, enabled: Option<bool>, vars: &mut Vars<'_>) {
        let Self { primary, replicas, replica_max_lag, health_interval, .. } = self;
        if enabled == Some(true) && replicas.is_empty() {
            let message =
                "DATABASE_READ_REPLICA_ENABLED=true, but DATABASE_READ_REPLICA_URL is not set";
            vars.mistake(message.to_owned());
        }
        if !replicas.is_empty() && matches!(primary, DatabaseUrl::Sqlite { .. }) {
            let message =
                "DATABASE_READ_REPLICA_URL is set, but DATABASE_URL is not a postgres:// URL";
            vars.mistake(message.to_owned());
        }
        for (index, replica) in replicas.iter().enumerate() {
            if replica.name() == primary.name() {
                let name = replica.name();
                vars.mistake(format!(
                    "DATABASE_READ_REPLICA_URL has {name}, which DATABASE_URL is"
                ));
            }
            if replicas[..index].iter().any(|other| other.name() == replica.name()) {
                let name = replica.name();
                vars.mistake(format!("DATABASE_READ_REPLICA_URL has {name} twice"));
            }
        }
        if *replica_max_lag < *health_interval * PROBES_PER_LAG {
            vars.mistake(format!(
                "DATABASE_REPLICA_MAX_LAG is not valid: expected at least {PROBES_PER_LAG} times \
                 DATABASE_HEALTH_INTERVAL, since lag is known no better than that"
            ));
        }
    }
}

fn embedded() -> DatabaseUrl {
    DatabaseUrl::Sqlite { url: Secret::new(DEFAULT), name: "portway.db".into() }
}

fn any(text: &str) -> Result<DatabaseUrl, Expected> {
    match text.split_once(':') {
        Some(("postgres" | "postgresql", _)) => postgres(text),
        Some(("sqlite", rest)) => {
            let file = rest.strip_prefix("//").unwrap_or(rest);
            let file = file.split_once('?').map_or(file, |(file, _)| file);
            if file.is_empty() {
                return Err("a file after sqlite://".to_owned());
            }
            Ok(DatabaseUrl::Sqlite { url: Secret::new(text), name: file.into() })
        }
        _ => Err("a URL such as postgres://user:password@host:5432/database or \
                  sqlite://portway.db?mode=rwc"
            .to_owned()),
    }
}

fn postgres(text: &str) -> Result<DatabaseUrl, Expected> {
    let expected = |what: &str| Err(what.to_owned());
    let Ok(url) = Url::parse(text) else {
        return expected("a URL such as postgres://user:password@host:5432/database");
    };
    if !matches!(url.scheme(), "postgres" | "postgresql") {
        return expected("a postgres:// URL");
    }
    let Some(host) = url.host_str().filter(|host| !host.is_empty()) else {
        return expected("a postgres:// URL with a host");
    };
    if url.path().trim_matches('/').is_empty() {
        return expected("a postgres:// URL that ends with the name of a database");
    }
    let port = url.port().unwrap_or(5432);
    Ok(DatabaseUrl::Postgres { name: format!("{host}:{port}").into(), url: Secret::new(text) })
}

fn replicas(text: &str) -> Result<Vec<DatabaseUrl>, Expected> {
    let urls: Vec<_> = text
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .map(postgres)
        .collect::<Result<_, _>>()?;
    if urls.len() < MOST_NODES { Ok(urls) } else { Err(format!("fewer than {MOST_NODES} URLs")) }
}

fn at_least(least: Duration) -> impl FnOnce(&str) -> Result<Duration, Expected> {
    move |text| {
        values::duration(text).and_then(|duration| {
            if duration >= least { Ok(duration) } else { Err(format!("at least {least:?}")) }
        })
    }
}

#[cfg(test)]
mod tests {
    use crate::config::tests::config;

    #[test]
    fn without_any_setting_the_database_is_embedded() {
        let database = config(&[]).expect("valid").database;
        assert_eq!((database.primary.name(), database.replicas.len()), ("portway.db", 0));
        assert!(database.migrate);
    }

    #[test]
    fn nodes_are_called_by_host_and_port() {
        let database = config(&[
            ("DATABASE_URL", "postgres://u:s3cret@db/app"),
            ("DATABASE_READ_REPLICA_URL", "postgresql://u@r1:5433/app, postgres://u@[::1]/app"),
        ]);
        let database = database.expect("valid").database;
        let names: Vec<_> = database.replicas.iter().map(super::DatabaseUrl::name).collect();
        assert_eq!((database.primary.name(), names), ("db:5432", vec!["r1:5433", "[::1]:5432"]));
        assert!(!format!("{database:?}").contains("s3cret"));
    }

    #[test]
    fn replicas_can_be_left_alone() {
        let database = config(&[
            ("DATABASE_URL", "postgres://db/app"),
            ("DATABASE_READ_REPLICA_URL", "postgres://r1/app"),
            ("DATABASE_READ_REPLICA_ENABLED", "false"),
        ]);
        assert!(database.expect("valid").database.replicas.is_empty());
    }

    #[test]
    fn mistakes_name_their_variable_and_no_password() {
        for (pairs, name) in [
            (&[("DATABASE_URL", "mysql://u:s3cret@h/d")][..], "DATABASE_URL"),
            (&[("DATABASE_URL", "postgres://u:s3cret@h")], "DATABASE_URL"),
            (&[("DATABASE_URL", "sqlite://")], "DATABASE_URL"),
            (
                &[("DATABASE_READ_REPLICA_URL", "postgres://u:s3cret@h/d")],
                "DATABASE_READ_REPLICA_URL",
            ),
            (&[("DATABASE_READ_REPLICA_ENABLED", "true")], "DATABASE_READ_REPLICA_ENABLED"),
            (&[("DATABASE_REPLICA_MAX_LAG", "400ms")], "DATABASE_REPLICA_MAX_LAG"),
            (&[("DATABASE_POOL_SIZE", "0")], "DATABASE_POOL_SIZE"),
            (&[("DATABASE_QUERY_TIMEOUT", "0")], "DATABASE_QUERY_TIMEOUT"),
            (
                &[
                    ("DATABASE_URL", "postgres://u:s3cret@h/d"),
                    ("DATABASE_READ_REPLICA_URL", "postgres://u:s3cret@h:5432/d"),
                ],
                "DATABASE_READ_REPLICA_URL",
            ),
        ] {
            let error = config(pairs).expect_err(name);
            assert!(error.starts_with(name) && !error.contains("s3cret"), "{error}");
        }
    }
}
