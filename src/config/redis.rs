//! Where Redis is, and what is kept there.

mod url;

pub use url::{Address, Login};

use super::{Secret, values, vars::Expected, vars::Vars};

/// Redis, which any number of instances share.
///
/// - `REDIS_URL` (none): `redis://`, `rediss://` (TLS) or
///   `redis+sentinel://host,host/master-name/database`, with `user:password@` before the hosts.
/// - `REDIS_HOST` (none), `REDIS_PORT` (`6379`), `REDIS_DB` (`0`): the same in parts.
/// - `REDIS_CLUSTER_NODES` (none): some nodes of a Redis Cluster; the others are found.
/// - `REDIS_PASSWORD` (none): beside any of these, unless it is in the URL.
/// - `REDIS_ENABLED` (`true` where one of these is set): `false` turns Redis off.
/// - `CACHE_NAMESPACE` (`portway`): the beginning of every key and channel.
#[derive(Debug, Clone)]
pub struct RedisConfig {
    pub servers: Servers,
    pub tls: bool,
    pub login: Login,
    pub db: u16,
    pub namespace: String,
}

/// How Redis is set up.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Servers {
    Single(Address),
    /// Sentinels know which server is the master.
    Sentinel {
        sentinels: Vec<Address>,
        master: String,
        login: Login,
    },
    Cluster(Vec<Address>),
}

impl RedisConfig {
    /// `None` where Redis is not set, or turned off.
    pub(super) fn read(vars: &mut Vars<'_>) -> Option<Self> {
        let is_set = |vars: &mut Vars<'_>, name| vars.optional(name, |_| Ok(())).is_some();
        let given = ["REDIS_URL", "REDIS_CLUSTER_NODES", "REDIS_HOST"].map(|n| is_set(vars, n));
        let parts = ["REDIS_PORT", "REDIS_DB"].map(|name| (name, is_set(vars, name)));

        let enabled = vars.optional("REDIS_ENABLED", values::boolean);
        let namespace = vars.value("CACHE_NAMESPACE", "portway".to_owned(), namespace);
        let password = vars.optional("REDIS_PASSWORD", |text| Ok(Secret::new(text)));
        let url = vars.secret("REDIS_URL", url::target);
        let nodes = vars.secret("REDIS_CLUSTER_NODES", url::nodes);
        let host = vars.optional("REDIS_HOST", url::host);
        let port = vars.value("REDIS_PORT", 6379, values::number(1..=u16::MAX));
        let db = vars.value("REDIS_DB", 0, values::number(0..=u16::MAX));

        let first = match given {
            [true, ..] => "REDIS_URL",
            [_, true, _] => "REDIS_CLUSTER_NODES",
            [_, _, true] => "REDIS_HOST",
            [false, false, false] => {
                let set = parts.iter().filter(|(_, set)| *set).map(|(name, _)| *name);
                for name in set.chain(password.is_some().then_some("REDIS_PASSWORD")) {
                    vars.mistake(format!("REDIS_HOST is not set: expected beside {name}"));
                }
                if enabled == Some(true) {
                    vars.mistake(
                        "REDIS_ENABLED=true, but none of REDIS_URL, REDIS_HOST and \
                         REDIS_CLUSTER_NODES is set"
                            .to_owned(),
                    );
                }
                return None;
            }
        };
        let others = [("REDIS_CLUSTER_NODES", given[1]), ("REDIS_HOST", given[2])];
        for (name, set) in others.into_iter().chain(parts) {
            let belongs = name == first || (first == "REDIS_HOST" && name != "REDIS_CLUSTER_NODES");
            if set && !belongs {
                vars.mistake(format!("{name} is set beside {first}: expected one of the two"));
            }
        }
        let target = match first {
            "REDIS_URL" => url,
            "REDIS_CLUSTER_NODES" => nodes,
            _ => host.map(|host| url::Target {
                servers: Servers::Single(Address { host, port }),
                tls: false,
                login: Login::default(),
                db,
            }),
        };
        let url::Target { servers, tls, mut login, db } = target?;
        match (&login.password, password) {
            (Some(_), Some(_)) => {
                vars.mistake(format!("REDIS_PASSWORD is set, but {first} has a password in it"));
            }
            (None, Some(password)) => login.password = Some(password),
            (_, None) => {}
        }
        let config = Self { servers, tls, login, db, namespace };
        (enabled != Some(false)).then_some(config)
    }
}

/// Braces would be a hash tag, which puts every key of a Redis Cluster on one node.
fn namespace(text: &str) -> Result<String, Expected> {
    let fits = (1..=64).contains(&text.len());
    if fits && text.bytes().all(|byte| byte.is_ascii_graphic() && !b"{}".contains(&byte)) {
        Ok(text.to_owned())
    } else {
        Err("1 to 64 visible ASCII characters without braces".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::tests::config;

    fn redis(pairs: &[(&str, &str)]) -> Option<RedisConfig> {
        config(pairs).expect("valid").redis
    }

    fn mistakes(pairs: &[(&str, &str)]) -> Vec<String> {
        config(pairs).expect_err("a mistake").lines().map(str::to_owned).collect()
    }

    fn single(host: &str, port: u16) -> Servers {
        Servers::Single(Address { host: host.to_owned(), port })
    }

    #[test]
    fn redis_is_off_unless_it_is_set() {
        assert!(redis(&[]).is_none());
        assert!(redis(&[("REDIS_ENABLED", "false")]).is_none());
        assert!(redis(&[("REDIS_ENABLED", "false"), ("REDIS_URL", "redis://h")]).is_none());
        assert!(redis(&[("REDIS_ENABLED", "true"), ("REDIS_URL", "redis://h")]).is_some());
    }

    #[test]
    fn a_server_is_given_as_a_url_or_in_parts() {
        let read = redis(&[("REDIS_URL", "rediss://h:7000/2")]).expect("set");
        assert_eq!((&read.servers, read.tls, read.db), (&single("h", 7000), true, 2));
        assert_eq!(read.namespace, "portway");
        let read = redis(&[
            ("REDIS_HOST", "cache.internal"),
            ("REDIS_PORT", "7001"),
            ("REDIS_PASSWORD", "p@:/w"),
            ("REDIS_DB", "4"),
            ("CACHE_NAMESPACE", "shop:eu"),
        ])
        .expect("set");
        assert_eq!(read.servers, single("cache.internal", 7001));
        assert_eq!(read.login.password.as_ref().map(Secret::expose), Some("p@:/w"));
        assert_eq!((read.db, read.tls, &*read.namespace), (4, false, "shop:eu"));
        assert_eq!(redis(&[("REDIS_HOST", "h")]).expect("set").servers, single("h", 6379));
    }

    #[test]
    fn a_password_may_stand_beside_a_url_without_one() {
        for name in ["REDIS_URL", "REDIS_CLUSTER_NODES"] {
            let read = redis(&[(name, "redis://h"), ("REDIS_PASSWORD", "pw")]).expect("set");
            assert_eq!(read.login.password.as_ref().map(Secret::expose), Some("pw"));
            let found = mistakes(&[(name, "redis://:pw@h"), ("REDIS_PASSWORD", "pw2")]);
            assert_eq!(found, [format!("REDIS_PASSWORD is set, but {name} has a password in it")]);
        }
    }

    #[test]
    fn settings_that_say_different_things_are_mistakes() {
        for (pairs, found) in [
            (&[("REDIS_URL", "redis://h"), ("REDIS_HOST", "h")][..], &["REDIS_HOST"][..]),
            (&[("REDIS_URL", "redis://h"), ("REDIS_CLUSTER_NODES", "h")], &["REDIS_CLUSTER_N"]),
            (
                &[("REDIS_URL", "redis://h"), ("REDIS_PORT", "1"), ("REDIS_DB", "1")],
                &["REDIS_PORT", "REDIS_DB"],
            ),
            (&[("REDIS_CLUSTER_NODES", "h"), ("REDIS_HOST", "h")], &["REDIS_HOST"]),
            (&[("REDIS_CLUSTER_NODES", "h"), ("REDIS_DB", "1")], &["REDIS_DB"]),
            (&[("REDIS_PORT", "1"), ("REDIS_PASSWORD", "x")], &["REDIS_HOST", "REDIS_HOST"]),
            (&[("REDIS_ENABLED", "true")], &["REDIS_ENABLED=true, but none"]),
        ] {
            let lines = mistakes(pairs);
            assert_eq!(lines.len(), found.len(), "{lines:?}");
            for (line, begin) in lines.iter().zip(found) {
                assert!(line.starts_with(begin), "{lines:?}");
            }
        }
    }

    #[test]
    fn a_wrong_value_is_one_mistake_and_never_shows_a_password() {
        for pairs in [
            &[("REDIS_URL", "redis://:s3cret@h/db"), ("REDIS_ENABLED", "false")][..],
            &[("REDIS_CLUSTER_NODES", "redis://:s3cret@h:x")],
            &[("REDIS_HOST", "redis://h"), ("REDIS_PORT", "1"), ("REDIS_PASSWORD", "s3cret")],
            &[("REDIS_HOST", "h"), ("REDIS_PORT", "0"), ("REDIS_PASSWORD", "s3cret")],
            &[("REDIS_HOST", "h"), ("REDIS_DB", "-1")],
            &[("REDIS_URL", "redis://h"), ("REDIS_ENABLED", "yes")],
        ] {
            let lines = mistakes(pairs);
            assert_eq!(lines.len(), 1, "{lines:?}");
            assert!(!lines[0].contains("s3cret"), "{lines:?}");
        }
    }

    #[test]
    fn a_namespace_is_short_and_has_no_hash_tag() {
        for wrong in ["a{b}", "a b", "a\n", "ä", &"x".repeat(65)] {
            let lines = mistakes(&[("CACHE_NAMESPACE", wrong)]);
            assert!(lines[0].starts_with("CACHE_NAMESPACE="), "{lines:?}");
        }
    }

    #[test]
    fn a_configuration_can_be_printed_without_its_passwords() {
        let read =
            redis(&[("REDIS_URL", "redis+sentinel://u:s3cret@h/m?sentinel_password=s3cret")]);
        assert!(!format!("{read:?}").contains("s3cret"));
    }
}
