//! The public listener and the life of the process.

use std::{
    fs::File,
    io,
    net::{IpAddr, Ipv4Addr},
    path::{Path, PathBuf},
    time::Duration,
};

use ipnet::IpNet;

use super::{values, vars::Vars};

/// The public listener.
///
/// - `HOST` (`0.0.0.0`), `PORT` (`8080`): where it listens; port 0 takes a free one.
/// - `WORKERS` (number of cores): threads that serve requests.
/// - `TRUSTED_PROXIES` (none): networks whose `Forwarded` and `X-Forwarded-*` are believed.
/// - `SHUTDOWN_GRACE` (`30s`): how long requests under way may take after a stop.
/// - `SHUTDOWN_DELAY` (`0s`): time between failing readiness and closing the listener.
/// - `TLS_CERT_FILE`, `TLS_KEY_FILE` (none): PEM files; both or none.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    pub host: IpAddr,
    pub port: u16,
    pub workers: usize,
    pub trusted_proxies: Vec<IpNet>,
    pub shutdown_grace: Duration,
    pub shutdown_delay: Duration,
    pub tls: Option<TlsFiles>,
}

/// Where the certificate chain and its key are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TlsFiles {
    pub cert: PathBuf,
    pub key: PathBuf,
}

impl ServerConfig {
    pub(super) fn read(vars: &mut Vars<'_>) -> Self {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        Self {
            host: vars.value("HOST", Ipv4Addr::UNSPECIFIED.into(), values::ip_address),
            port: vars.value("PORT", 8080, values::number(0..=u16::MAX)),
            workers: vars.value("WORKERS", cores, values::number(1..=1024)),
            trusted_proxies: vars.value("TRUSTED_PROXIES", Vec::new(), values::networks),
            shutdown_grace: vars.value("SHUTDOWN_GRACE", Duration::from_secs(30), values::duration),
            shutdown_delay: vars.value("SHUTDOWN_DELAY", Duration::ZERO, values::duration),
            tls: TlsFiles::read(vars),
        }
    }
}

impl TlsFiles {
    fn read(vars: &mut Vars<'_>) -> Option<Self> {
        // An unreadable file is one mistake: its path still counts as given.
        let cert = vars.optional("TLS_CERT_FILE", |text| Ok(PathBuf::from(text)));
        let key = vars.optional("TLS_KEY_FILE", |text| Ok(PathBuf::from(text)));
        for (name, path) in [("TLS_CERT_FILE", &cert), ("TLS_KEY_FILE", &key)] {
            if let Some(path) = path
                && let Err(error) = readable(path)
            {
                vars.mistake(format!(
                    "{name}={path:?} is not valid: expected a readable file ({error})"
                ));
            }
        }
        match (cert, key) {
            (Some(cert), Some(key)) => Some(Self { cert, key }),
            (Some(_), None) => {
                vars.mistake("TLS_KEY_FILE is not set: expected beside TLS_CERT_FILE".to_owned());
                None
            }
            (None, Some(_)) => {
                vars.mistake("TLS_CERT_FILE is not set: expected beside TLS_KEY_FILE".to_owned());
                None
            }
            (None, None) => None,
        }
    }
}

/// Opening succeeds on a directory, which no certificate is.
fn readable(path: &Path) -> io::Result<()> {
    if File::open(path)?.metadata()?.is_dir() {
        return Err(io::ErrorKind::IsADirectory.into());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use crate::config::tests::config;

    #[test]
    fn a_certificate_needs_a_key_and_a_key_a_certificate() {
        let file = tempfile::NamedTempFile::new().expect("a temporary file");
        let path = file.path().to_str().expect("UTF-8");
        let errors = config(&[("TLS_CERT_FILE", path)]).expect_err("no key");
        assert!(errors.starts_with("TLS_KEY_FILE"), "{errors}");
        let errors = config(&[("TLS_KEY_FILE", path)]).expect_err("no certificate");
        assert!(errors.starts_with("TLS_CERT_FILE"), "{errors}");
        let both = config(&[("TLS_CERT_FILE", path), ("TLS_KEY_FILE", path)]).expect("both");
        assert_eq!(both.server.tls.expect("TLS is on").cert, file.path());
    }

    #[test]
    fn unreadable_tls_files_are_mistakes() {
        let directory = std::env::temp_dir();
        let directory = directory.to_str().expect("UTF-8");
        let errors = config(&[("TLS_CERT_FILE", "/no/such.pem"), ("TLS_KEY_FILE", directory)])
            .expect_err("neither can be read");
        assert_eq!(errors.lines().count(), 2, "{errors}");
        assert!(errors.starts_with("TLS_CERT_FILE=\"/no/such.pem\" is not valid"), "{errors}");
    }

    #[test]
    fn port_zero_is_allowed() {
        let config = config(&[("PORT", "0"), ("ADMIN_PORT", "0")]).expect("valid");
        assert_eq!((config.server.port, config.admin.port), (0, 0));
    }
}
