//! Every setting that comes from the environment.
//!
//! The whole environment is read before anything fails, so that one start shows every mistake:
//! each line names the variable, its value unless that is secret, and what was expected. Nothing
//! else in the program reads the environment for settings, and a wrong value never falls back to a
//! default.

mod admin;
mod cache;
mod database;
mod log;
mod redis;
mod routes;
mod secret;
mod server;
mod source;
pub(crate) mod values;
mod vars;

pub use admin::AdminConfig;
pub use cache::CacheConfig;
pub use database::{DatabaseConfig, DatabaseUrl};
pub use log::{LogConfig, LogFormat};
pub use redis::{Address, Login, RedisConfig, Servers};
pub use routes::RoutesConfig;
pub use secret::Secret;
pub use server::{ServerConfig, TlsFiles};
pub use source::{Environment, Source};
pub use vars::Errors;

use vars::Vars;

/// Every setting, checked.
#[derive(Debug, Clone)]
pub struct Config {
    pub server: ServerConfig,
    pub admin: AdminConfig,
    pub routes: RoutesConfig,
    pub cache: CacheConfig,
    /// None: this instance shares nothing with others.
    pub redis: Option<RedisConfig>,
    pub database: DatabaseConfig,
    pub log: LogConfig,
}

/// Settings of the product that nothing reads yet. Whoever sets one counts on it, so it is a mistake
/// and not ignored.
const UNREAD: &[&str] = &[
    "PORTWAY_ENV",
    "PORTWAY_ROLE",
    "JOB_CONCURRENCY",
    "REDIS_QUEUE_URL",
    "ENCRYPTION_KEYS",
    "SESSION_TTL",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
];

impl Config {
    /// Reads the environment of this process.
    pub fn from_env() -> Result<Self, Errors> {
        Self::from_source(&Environment)
    }

    /// Reads settings from `source`, and reports all mistakes together.
    pub fn from_source(source: &dyn Source) -> Result<Self, Errors> {
        let mut vars = Vars::new(source);
        let server = ServerConfig::read(&mut vars);
        let config = Self {
            admin: AdminConfig::read(&mut vars, &server),
            routes: RoutesConfig::read(&mut vars),
            cache: CacheConfig::read(&mut vars),
            redis: RedisConfig::read(&mut vars),
            database: DatabaseConfig::read(&mut vars),
            log: LogConfig::read(&mut vars),
            server,
        };
        vars.refuse_unread(UNREAD);
        vars.finish(config)
    }
}

#[cfg(test)]
mod tests {
    use std::{cell::RefCell, collections::BTreeMap, collections::BTreeSet, ffi::OsString};

    use super::*;

    /// Reads `pairs` as an environment.
    pub(super) fn config(pairs: &[(&str, &str)]) -> Result<Config, String> {
        let map: BTreeMap<_, _> =
            pairs.iter().map(|(name, value)| (name.to_string(), value.to_string())).collect();
        Config::from_source(&map).map_err(|errors| errors.to_string())
    }

    #[test]
    fn an_empty_environment_gives_the_defaults() {
        let config = config(&[]).expect("defaults are valid");
        assert_eq!(config.server.host.to_string(), "0.0.0.0");
        assert_eq!(config.server.port, 8080);
        assert_eq!((config.admin.host.to_string(), config.admin.port), ("127.0.0.1".into(), 9090));
        assert!(config.server.workers >= 1);
        assert_eq!(config.cache.l1_max_bytes, 256 << 20);
        assert_eq!(config.cache.max_object_bytes, 8 << 20);
        assert_eq!(config.cache.default_ttl.as_secs(), 300);
        assert_eq!(config.server.shutdown_grace.as_secs(), 30);
        assert!(config.server.shutdown_delay.is_zero());
        assert_eq!(config.log.filter, "info");
    }

    #[test]
    fn all_mistakes_are_reported_at_once_and_name_their_variable() {
        let errors = config(&[
            ("PORT", "80x"),
            ("ADMIN_PORT", "70000"),
            ("WORKERS", "0"),
            ("SHUTDOWN_GRACE", "soon"),
            ("CACHE_L1_MAX_BYTES", "12 parsecs"),
            ("TRUSTED_PROXIES", "10.0.0.0/40"),
            ("LOG_FORMAT", "xml"),
        ])
        .expect_err("seven mistakes");
        let lines: Vec<_> = errors.lines().collect();
        assert_eq!(lines.len(), 7, "{errors}");
        assert!(lines[0].starts_with(r#"PORT="80x" is not valid: expected"#), "{errors}");
        for name in
            ["ADMIN_PORT", "WORKERS", "SHUTDOWN_GRACE", "CACHE_L1_MAX", "TRUSTED_", "LOG_FORMAT"]
        {
            assert!(lines.iter().any(|line| line.starts_with(name)), "{name} in {errors}");
        }
    }

    #[test]
    fn an_empty_variable_counts_as_unset() {
        assert_eq!(config(&[("PORT", "")]).expect("valid").server.port, 8080);
    }

    #[cfg(unix)]
    #[test]
    fn a_value_that_is_not_unicode_is_a_mistake() {
        use std::os::unix::ffi::OsStringExt;
        struct Broken;
        impl Source for Broken {
            fn get(&self, name: &str) -> Option<OsString> {
                (name == "HOST").then(|| OsString::from_vec(vec![0xff]))
            }
        }
        let errors = Config::from_source(&Broken).expect_err("not Unicode").to_string();
        assert_eq!(errors, "HOST is not valid: expected UTF-8 text");
    }

    #[test]
    fn a_setting_that_nothing_reads_is_a_mistake() {
        let source = BTreeMap::from([("REDIS_QUEUE_URL".to_owned(), "redis://x".to_owned())]);
        let errors = Config::from_source(&source).unwrap_err().to_string();
        assert!(errors.starts_with("REDIS_QUEUE_URL is set"), "{errors}");
        assert!(!errors.contains("redis://"), "{errors}");
    }

    #[test]
    fn the_example_file_names_exactly_the_variables_that_are_read() {
        #[derive(Default)]
        struct Recorder(RefCell<BTreeSet<String>>);
        impl Source for Recorder {
            fn get(&self, name: &str) -> Option<OsString> {
                if !UNREAD.contains(&name) {
                    self.0.borrow_mut().insert(name.to_owned());
                }
                None
            }
        }
        let recorder = Recorder::default();
        Config::from_source(&recorder).expect("defaults are valid");
        let documented: BTreeSet<String> = include_str!("../.env.example")
            .lines()
            .filter_map(|line| line.trim_start_matches('#').split_once('='))
            .map(|(name, _)| name.to_owned())
            .filter(|name| {
                name.bytes().all(|b| b.is_ascii_uppercase() || b"_0123456789".contains(&b))
            })
            .collect();
        assert_eq!(documented, recorder.0.into_inner());
    }
}
