//! The tenant service client over TLS, with certificates made on the spot.

use std::io::Write as _;
use std::sync::Arc;

use crate::support::{API_KEY, Server, list};
use balance_sync_tenants::{ServiceDirectory, TenantDirectory};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use tempfile::NamedTempFile;
use tokio_rustls::TlsAcceptor;

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> Authority {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
}

/// A server's end of TLS, for the given host.
fn acceptor(authority: &Authority, host: &str) -> TlsAcceptor {
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![host.to_owned()]).unwrap();
    let certificate = params.signed_by(&key, authority).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![certificate.der().clone()], key.into())
        .unwrap();
    TlsAcceptor::from(Arc::new(config))
}

fn file_of(authority: &Authority) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(authority.pem().as_bytes()).unwrap();
    file
}

fn directory(server: &Server, roots: Option<&NamedTempFile>) -> ServiceDirectory {
    let mut settings = server.settings();
    settings.base_url = format!("https://{}", server.addr).parse().unwrap();
    settings.allow_plain_http = false;
    settings.root_ca = roots.map(|file| file.path().to_owned());
    ServiceDirectory::new(settings).unwrap()
}

#[tokio::test]
async fn the_configured_authority_is_trusted() {
    let authority = authority();
    let server = Server::start_tls(acceptor(&authority, "127.0.0.1"), |_, _| list(&["a"])).await;
    let roots = file_of(&authority);
    assert_eq!(directory(&server, Some(&roots)).active().await.unwrap().tenants.len(), 1);
    assert!(server.requests()[0].headers.contains(API_KEY));
}

#[tokio::test]
async fn another_authority_or_another_host_never_sees_the_key() {
    let (ours, theirs) = (authority(), authority());
    let roots = file_of(&ours);
    for acceptor in [acceptor(&theirs, "127.0.0.1"), acceptor(&ours, "tenants.example")] {
        let server = Server::start_tls(acceptor, |_, _| list(&["a"])).await;
        let error = directory(&server, Some(&roots)).active().await.unwrap_err();
        assert!(error.is_transient() && error.to_string().contains("certificate"), "{error}");
        assert_eq!(server.hits(), 0);
    }
}
