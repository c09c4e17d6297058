//! Reads what names Redis servers: URLs and lists of nodes.
//!
//! A parser of its own, since several hosts with ports are no URL to others. No message repeats a
//! part of what was read: it may be the password.

use std::fmt;

use super::Servers;
use crate::config::{Secret, vars::Expected};

const PORT: u16 = 6379;
const SENTINEL_PORT: u16 = 26379;

/// Where a server listens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Address {
    /// A name or an IP address, IPv6 without brackets.
    pub host: String,
    pub port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.host.contains(':') {
            true => write!(f, "[{}]:{}", self.host, self.port),
            false => write!(f, "{}:{}", self.host, self.port),
        }
    }
}

/// Whom to log in as; without a user name as the default user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Login {
    pub username: Option<String>,
    pub password: Option<Secret>,
}

/// What one URL, or a list of nodes, says.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) servers: Servers,
    pub(super) tls: bool,
    pub(super) login: Login,
    pub(super) db: u16,
}

/// `redis://`, `rediss://`, `redis+sentinel://` or `rediss+sentinel://`.
pub(super) fn target(text: &str) -> Result<Target, Expected> {
    const FORM: &str = "redis://, rediss://, redis+sentinel:// or rediss+sentinel://";
    let Some((scheme, rest)) = text.split_once("://") else { return Err(FORM.to_owned()) };
    let (sentinel, tls) = match scheme {
        "redis" => (false, false),
        "rediss" => (false, true),
        "redis+sentinel" => (true, false),
        "rediss+sentinel" => (true, true),
        _ => return Err(FORM.to_owned()),
    };
    if rest.contains('#') {
        return Err("a URL without fragment (write # in a password as %23)".to_owned());
    }
    let (rest, query) = match rest.split_once('?') {
        Some((rest, query)) => (rest, Some(query)),
        None => (rest, None),
    };
    let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
    let (login, hosts) = login(authority)?;
    if sentinel {
        let form = "redis+sentinel://host:26379,host:26379/master-name, optionally with /database";
        let (master, db) = path.split_once('/').unwrap_or((path, ""));
        if master.is_empty() {
            return Err(form.to_owned());
        }
        let servers = Servers::Sentinel {
            sentinels: addresses(hosts, SENTINEL_PORT)?,
            master: decoded(master)?,
            login: sentinel_login(query)?,
        };
        return Ok(Target { servers, tls, login, db: database(db)? });
    }
    if query.is_some() {
        return Err("a URL without query".to_owned());
    }
    let servers = Servers::Single(address(hosts, PORT)?);
    Ok(Target { servers, tls, login, db: database(path)? })
}

/// `a:6379,b:6379`; each node may be written as a URL, and then all agree on scheme and login.
pub(super) fn nodes(text: &str) -> Result<Target, Expected> {
    let mut agreed: Option<(bool, Login)> = None;
    let mut found = Vec::new();
    for node in text.split(',').map(str::trim) {
        let (tls, node) = match node.split_once("://") {
            Some(("redis", node)) => (false, node),
            Some(("rediss", node)) => (true, node),
            Some(_) => return Err("nodes as host:port, redis:// or rediss://".to_owned()),
            None => (false, node),
        };
        let (login, node) = login(node.strip_suffix('/').unwrap_or(node))?;
        found.push(address(node, PORT)?);
        let own = (tls, login);
        if agreed.get_or_insert_with(|| own.clone()) != &own {
            return Err("nodes that all have the same scheme, user name and password".to_owned());
        }
    }
    let (tls, login) = agreed.unwrap_or_default();
    Ok(Target { servers: Servers::Cluster(found), tls, login, db: 0 })
}

/// A name or an IP address, IPv6 with or without brackets, for `REDIS_HOST`.
pub(super) fn host(text: &str) -> Result<String, Expected> {
    let bare = text.strip_prefix('[').and_then(|it| it.strip_suffix(']')).unwrap_or(text);
    let is_ipv6 = bare.parse::<std::net::Ipv6Addr>().is_ok();
    let is_name = text.bytes().all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    if !text.is_empty() && (is_ipv6 || is_name) {
        Ok(bare.to_owned())
    } else {
        Err("a host name or an IP address".to_owned())
    }
}

fn addresses(text: &str, port: u16) -> Result<Vec<Address>, Expected> {
    text.split(',').map(|one| address(one.trim(), port)).collect()
}

/// `host`, `host:port`, `[::1]:port`.
fn address(text: &str, default_port: u16) -> Result<Address, Expected> {
    let (name, port) = match text.rsplit_once(':') {
        Some((name, port)) if !port.ends_with(']') => (name, Some(port)),
        _ => (text, None),
    };
    if name.contains(':') && !name.starts_with('[') {
        return Err("an IPv6 address in brackets".to_owned());
    }
    let port = match port {
        None => default_port,
        Some(digits) => digits
            .parse()
            .ok()
            .filter(|port| *port > 0 && digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| "a port from 1 to 65535".to_owned())?,
    };
    Ok(Address { host: host(name)?, port })
}

/// Splits `user:password@` off; both are percent-encoded.
fn login(authority: &str) -> Result<(Login, &str), Expected> {
    // A password is often pasted as it is; the last @ is then the one that was meant.
    let Some((user_info, hosts)) = authority.rsplit_once('@') else {
        return Ok((Login::default(), authority));
    };
    let (username, password) = match user_info.split_once(':') {
        Some((username, password)) => (username, Some(decoded(password)?)),
        None => (user_info, None),
    };
    if password.as_ref().is_none_or(String::is_empty) {
        return Err("a password after the user name (user:password@, or :password@)".to_owned());
    }
    let username = Some(decoded(username)?).filter(|name| !name.is_empty());
    Ok((Login { username, password: password.map(Secret::new) }, hosts))
}

/// The sentinels' own login, where they ask for one.
fn sentinel_login(query: Option<&str>) -> Result<Login, Expected> {
    let mut login = Login::default();
    for (name, value) in query.unwrap_or_default().split('&').filter_map(|it| it.split_once('=')) {
        match name {
            "sentinel_username" => login.username = Some(decoded(value)?),
            "sentinel_password" => login.password = Some(Secret::new(decoded(value)?)),
            _ => {
                return Err("no more in the query than sentinel_username, sentinel_password".into());
            }
        }
    }
    if login.username.is_some() && login.password.is_none() {
        return Err("a sentinel_password beside sentinel_username".to_owned());
    }
    Ok(login)
}

fn database(text: &str) -> Result<u16, Expected> {
    match text {
        "" => Ok(0),
        digits => digits
            .parse()
            .ok()
            .filter(|_| digits.bytes().all(|b| b.is_ascii_digit()))
            .ok_or_else(|| "a database number, 0 to 65535, at the end".to_owned()),
    }
}

fn decoded(text: &str) -> Result<String, Expected> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        if byte != b'%' {
            bytes.push(byte);
            continue;
        }
        let mut digit = || rest.next().and_then(|digit| char::from(digit).to_digit(16));
        match digit().zip(digit()) {
            Some((high, low)) => bytes.push((high * 16 + low) as u8),
            None => return Err("two hexadecimal digits after each %".to_owned()),
        }
    }
    String::from_utf8(bytes).map_err(|_| "UTF-8 text after percent-decoding".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(host: &str, port: u16) -> Address {
        Address { host: host.to_owned(), port }
    }

    fn login_of(username: Option<&str>, password: &str) -> Login {
        Login {
            username: username.map(str::to_owned),
            password: Some(Secret::new(password.to_owned())),
        }
    }

    #[test]
    fn a_url_names_one_server() {
        for (text, address, tls, db) in [
            ("redis://cache", at("cache", 6379), false, 0),
            ("redis://cache:7000/", at("cache", 7000), false, 0),
            ("rediss://10.0.0.5:6380/3", at("10.0.0.5", 6380), true, 3),
            ("redis://[::1]:6379/15", at("::1", 6379), false, 15),
            ("redis://[fd00::2]", at("fd00::2", 6379), false, 0),
        ] {
            let read = target(text).expect(text);
            assert_eq!(read.servers, Servers::Single(address), "{text}");
            assert_eq!((read.tls, read.db, read.login), (tls, db, Login::default()), "{text}");
        }
    }

    #[test]
    fn logins_are_percent_encoded() {
        let login = |text: &str| target(text).expect(text).login;
        assert_eq!(login("redis://ann:s3cret@h"), login_of(Some("ann"), "s3cret"));
        assert_eq!(login("redis://:s3cret@h"), login_of(None, "s3cret"));
        assert_eq!(login("redis://:a%40b%2Fc%3A%25@h"), login_of(None, "a@b/c:%"));
        assert_eq!(login("redis://:a:b@c@h"), login_of(None, "a:b@c"));
    }

    #[test]
    fn sentinels_are_listed_before_the_name_of_their_master() {
        let read = target(
            "redis+sentinel://app:pw@s1,s2:26380,[::1]:26379/main/2\
             ?sentinel_username=watch&sentinel_password=w%26",
        )
        .expect("valid");
        let sentinels = vec![at("s1", 26379), at("s2", 26380), at("::1", 26379)];
        let login = login_of(Some("watch"), "w&");
        assert_eq!(read.servers, Servers::Sentinel { sentinels, master: "main".to_owned(), login });
        assert_eq!((read.tls, read.db), (false, 2));
        assert_eq!(read.login, login_of(Some("app"), "pw"));
        assert!(target("rediss+sentinel://s1/main").expect("valid").tls);
    }

    #[test]
    fn nodes_are_addresses_or_urls_that_agree() {
        let read = nodes("a:7000, b:7001,[::1]:7002").expect("valid");
        let three = vec![at("a", 7000), at("b", 7001), at("::1", 7002)];
        assert_eq!(read.servers, Servers::Cluster(three));
        assert!(!read.tls);
        let read = nodes("rediss://u:p@a,rediss://u:p@b:7001/").expect("valid");
        assert_eq!(read.servers, Servers::Cluster(vec![at("a", 6379), at("b", 7001)]));
        assert_eq!((read.tls, read.login), (true, login_of(Some("u"), "p")));
        for text in ["", "a,,b", "a,rediss://b", "redis://u:p@a,redis://u:q@b", "http://a", "a:b/1"]
        {
            assert!(nodes(text).is_err(), "{text}");
        }
    }

    #[test]
    fn other_texts_are_refused_without_being_repeated() {
        for text in [
            "s3cret",
            "http://s3cret",
            "redis://",
            "redis://:s3cret@",
            "redis://s3cret@h",
            "redis://ann:@s3cret",
            "redis://:s3cret@h/x",
            "redis://:s3cret@h/65536",
            "redis://:s3cret@h/+1",
            "redis://:s3cret@h:0",
            "redis://:s3cret@h:+1",
            "redis://:s3cret@h:70000",
            "redis://:s3cret@h:6379?db=1",
            "redis://:s3cret@h#1",
            "redis://:s3cret%2@h",
            "redis://:s3cret%ff@h",
            "redis://:s3cret@a,b",
            "redis://:s3cret@::1",
            "redis://:s3cret@h h",
            "redis+sentinel://:s3cret@h",
            "redis+sentinel://:s3cret@h/",
            "redis+sentinel://h/m?password=s3cret",
            "redis+sentinel://h/m?sentinel_username=s3cret",
        ] {
            let expected = target(text).expect_err(text);
            assert!(!expected.contains("s3cret"), "{text}: {expected}");
        }
    }
}
