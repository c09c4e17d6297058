//! How `rediss` servers are spoken to.

use std::sync::Arc;

use rustls::{ClientConfig, RootCertStore, crypto::aws_lc_rs};

/// Trusts what the operating system trusts. `SSL_CERT_FILE` and `SSL_CERT_DIR` override that, which
/// is how a private authority is added. Read once: the library would read the files again for every
/// connection.
pub(super) fn client_config() -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    let found = rustls_native_certs::load_native_certs();
    for error in &found.errors {
        tracing::warn!(%error, "some of the system's root certificates cannot be read: {error}");
    }
    roots.add_parsable_certificates(found.certs);
    let builder = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions();
    #[expect(clippy::expect_used, reason = "the provider has cipher suites for TLS 1.2 and 1.3")]
    let builder = builder.expect("the provider speaks TLS");
    Arc::new(builder.with_root_certificates(roots).with_no_client_auth())
}
