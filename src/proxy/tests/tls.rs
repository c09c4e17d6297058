//! Targets with `https`.

use rustls::{ClientConfig, RootCertStore, ServerConfig, crypto::aws_lc_rs};
use rustls_pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::TlsAcceptor;

use super::*;

struct Identity {
    certificate: CertificateDer<'static>,
    key: PrivateKeyDer<'static>,
}

fn identity() -> Identity {
    let made = rcgen::generate_simple_self_signed(["localhost".to_owned()]).unwrap();
    Identity {
        certificate: made.cert.der().clone(),
        key: PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap(),
    }
}

fn trusting(certificate: &CertificateDer<'static>) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(certificate.clone()).unwrap();
    let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots);
    Arc::new(config.with_no_client_auth())
}

/// Answers `answer` to every request; the port, and the count of connections.
async fn serve(identity: &Identity, answer: &'static str) -> (u16, Rc<Cell<usize>>) {
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![identity.certificate.clone()], identity.key.clone_key())
        .unwrap();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let (url, count) = upstream(move |_, stream| {
        let acceptor = acceptor.clone();
        async move {
            let mut stream = acceptor.accept(stream).await?;
            let mut got = Vec::new();
            while stream.read_buf(&mut got).await? > 0 {
                if got.ends_with(b"\r\n\r\n") {
                    got.clear();
                    stream.write_all(answer.as_bytes()).await?;
                    if !answer.contains("Length") {
                        break;
                    }
                }
            }
            Ok(())
        }
    })
    .await;
    (url.rsplit(':').next().unwrap().parse().unwrap(), count)
}

#[test]
fn an_https_target_is_used_again_if_its_certificate_is_good() {
    run(async {
        let identity = identity();
        let (port, accepted) = serve(&identity, HELLO).await;
        let client = Client::new(trusting(&identity.certificate));
        let upstream = state_of(&format!("https://localhost:{port}"));
        for _ in 0..3 {
            assert_eq!(text(client.send(&upstream, get()).await.unwrap()).await.unwrap(), "hello");
        }
        assert_eq!(accepted.get(), 1);
    });
}

#[test]
fn a_certificate_for_another_name_or_of_an_unknown_authority_is_refused() {
    run(async {
        let identity = identity();
        let (port, _) = serve(&identity, HELLO).await;
        let trusted = Client::new(trusting(&identity.certificate));
        let named = state_of(&format!("https://localhost:{port}"));
        let unnamed = state_of(&format!("https://127.0.0.1:{port}"));
        for (client, upstream) in [(trusted, unnamed), (client(), named)] {
            let error = client.send(&upstream, get()).await.unwrap_err();
            assert!(matches!(error, UpstreamError::Unreachable(_)), "{error:?}");
        }
    });
}

#[test]
fn a_body_until_close_needs_the_tls_farewell() {
    run(async {
        let identity = identity();
        // The server drops its socket without a close_notify, as an attacker who cuts the line does.
        let (port, _) = serve(&identity, "HTTP/1.1 200 OK\r\n\r\nhello").await;
        let client = Client::new(trusting(&identity.certificate));
        let upstream = state_of(&format!("https://localhost:{port}"));
        let inbound = client.send(&upstream, get()).await.unwrap();
        let error = text(inbound).await.unwrap_err();
        assert!(matches!(error, UpstreamError::Truncated(_)), "{error:?}");
    });
}
