//! How `https` targets are spoken to.

use std::{io, sync::Arc};

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

/// Trusts what the operating system trusts. `SSL_CERT_FILE` and `SSL_CERT_DIR` override that, which
/// is how a private authority is added.
pub fn client_config() -> io::Result<Arc<ClientConfig>> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of the system's root certificates cannot be read: {error}");
    }
    // A system's store may well hold certificates that rustls cannot use; the others still count.
    roots.add_parsable_certificates(found.certs);
    let mut config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(io::Error::other)?
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
