//! The operator's listener.

use std::net::{IpAddr, Ipv4Addr};

use super::{secret::Secret, server::ServerConfig, values, vars::Vars};

/// The shortest token that may guard a listener others can reach.
const SHORTEST_TOKEN: usize = 32;

/// The operator's listener: metrics and the admin API.
///
/// - `ADMIN_HOST` (`127.0.0.1`), `ADMIN_PORT` (`9090`): where it listens; port 0 takes a free one.
/// - `ADMIN_TOKEN` (none): the bearer token. Off loopback it is required, with 32 characters or more.
#[derive(Debug, Clone)]
pub struct AdminConfig {
    pub host: IpAddr,
    pub port: u16,
    pub token: Option<Secret>,
}

impl AdminConfig {
    pub(super) fn read(vars: &mut Vars<'_>, public: &ServerConfig) -> Self {
        let host = vars.value("ADMIN_HOST", Ipv4Addr::LOCALHOST.into(), values::ip_address);
        let port = vars.value("ADMIN_PORT", 9090, values::number(0..=u16::MAX));
        let open = !host.to_canonical().is_loopback();
        let mut refused = false;
        let token = vars.secret("ADMIN_TOKEN", |text| {
            let checked = token(text, open);
            refused = checked.is_err();
            checked
        });
        if open && token.is_none() && !refused {
            vars.mistake(format!(
                "ADMIN_TOKEN is not set: expected {SHORTEST_TOKEN} characters or more, as \
                 ADMIN_HOST={host} is not a loopback address"
            ));
        }
        let overlap = host == public.host || host.is_unspecified() || public.host.is_unspecified();
        if port == public.port && port != 0 && overlap {
            vars.mistake(format!(
                "ADMIN_PORT={port} is not valid: expected another port than PORT, which is the same"
            ));
        }
        Self { host, port, token }
    }
}

fn token(text: &str, open: bool) -> Result<Secret, String> {
    if !text.bytes().all(|byte| byte.is_ascii_graphic()) {
        return Err("visible ASCII characters without spaces".to_owned());
    }
    if open && text.len() < SHORTEST_TOKEN {
        return Err(format!("{SHORTEST_TOKEN} characters or more off loopback"));
    }
    Ok(Secret::new(text))
}

#[cfg(test)]
mod tests {
    use crate::config::tests::config;

    const LONG: &str = "0123456789abcdef0123456789abcdef";

    #[test]
    fn off_loopback_a_long_token_is_required() {
        let errors = config(&[("ADMIN_HOST", "0.0.0.0")]).expect_err("no token");
        assert!(errors.starts_with("ADMIN_TOKEN is not set"), "{errors}");
        let errors =
            config(&[("ADMIN_HOST", "::"), ("ADMIN_TOKEN", "hunter2")]).expect_err("short");
        assert_eq!(errors, "ADMIN_TOKEN is not valid: expected 32 characters or more off loopback");
        let config = config(&[("ADMIN_HOST", "0.0.0.0"), ("ADMIN_TOKEN", LONG)]).expect("long");
        assert_eq!(config.admin.token.expect("a token").expose(), LONG);
    }

    #[test]
    fn on_loopback_a_token_is_optional() {
        assert!(config(&[("ADMIN_HOST", "::1")]).expect("valid").admin.token.is_none());
        assert!(config(&[("ADMIN_HOST", "127.0.0.2"), ("ADMIN_TOKEN", "short")]).is_ok());
    }

    #[test]
    fn the_token_is_never_repeated() {
        let errors = config(&[("ADMIN_TOKEN", "hunter 2")]).expect_err("a space");
        assert!(!errors.contains("hunter"), "{errors}");
        let config = config(&[("ADMIN_TOKEN", LONG)]).expect("valid");
        assert!(!format!("{config:?}").contains(LONG));
    }

    #[test]
    fn the_two_listeners_cannot_share_a_port() {
        let errors = config(&[("PORT", "9090")]).expect_err("the same port");
        assert!(errors.starts_with("ADMIN_PORT=9090"), "{errors}");
        assert!(config(&[("PORT", "9090"), ("HOST", "127.0.0.2")]).is_ok());
    }
}
