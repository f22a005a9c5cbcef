//! TLS with a certificate authority of the test's own.

use std::{path::Path, sync::Arc};

use balance_sync_sandbox::{RedisOptions, RedisServer, free_port};
use balance_sync_schedule::{
    Authority, ErrorClass, Link, LinkSettings, Schedule, ScheduleError, ScheduleOptions,
};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::common::space_of;

/// A certificate authority, and a key and certificate for `127.0.0.1` that it signed. All PEM.
pub(crate) struct TestAuthority {
    pub(crate) ca: String,
    certificate: String,
    key: String,
}

pub(crate) fn authority(name: &str) -> TestAuthority {
    let mut params = CertificateParams::default();
    params.distinguished_name.push(DnType::CommonName, name);
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let key = KeyPair::generate().unwrap();
    let ca = params.self_signed(&key).unwrap().pem();
    let issuer = Issuer::new(params, key);
    let server = CertificateParams::new(["localhost".to_owned(), "127.0.0.1".to_owned()]).unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = server.signed_by(&key, &issuer).unwrap().pem();
    TestAuthority { ca, certificate, key: key.serialize_pem() }
}

/// The lines of a configuration with TLS, but for the port.
pub(crate) fn tls_lines(authority: &TestAuthority, folder: &Path) -> Vec<String> {
    let write = |name: &str, text: &str| {
        let path = folder.join(name);
        std::fs::write(&path, text).unwrap();
        path.display().to_string()
    };
    vec![
        format!("tls-ca-cert-file {}", write("ca.pem", &authority.ca)),
        format!("tls-cert-file {}", write("server.pem", &authority.certificate)),
        format!("tls-key-file {}", write("server.key", &authority.key)),
        "tls-auth-clients no".to_owned(),
    ]
}

/// Starts a server with TLS, and returns the port for it.
pub(crate) async fn start_with_tls(options: RedisOptions, lines: &[String]) -> (RedisServer, u16) {
    for _ in 0..5 {
        let port = free_port().unwrap();
        let mut options = options.clone();
        options.extra.extend(lines.iter().cloned().chain([format!("tls-port {port}")]));
        if let Ok(server) = RedisServer::start(options).await {
            return (server, port);
        }
    }
    panic!("no Redis with TLS could be started; is redis-server built with it?");
}

/// A server that speaks TLS, and the port for it.
async fn tls_server(authority: &TestAuthority, folder: &Path) -> (RedisServer, u16) {
    start_with_tls(RedisOptions::default(), &tls_lines(authority, folder)).await
}

async fn claim(url: &str, ca: Option<&str>) -> Result<(), ScheduleError> {
    let mut settings = LinkSettings::for_url(url);
    settings.ca = ca.map(|pem| Authority::Pem(pem.as_bytes().to_vec()));
    let schedule = Schedule::new(Link::new(&settings)?, space_of("t"), Arc::new(ScheduleOptions::default()));
    schedule.claim(1).await.map(drop)
}

#[tokio::test]
async fn only_servers_of_the_configured_authority_are_trusted() {
    let folder = tempfile::tempdir().unwrap();
    let ours = authority("ours");
    let other = authority("other");
    let (_server, port) = tls_server(&ours, folder.path()).await;

    claim(&format!("rediss://127.0.0.1:{port}/0"), Some(&ours.ca)).await.unwrap();
    claim(&format!("rediss://localhost:{port}/0"), Some(&ours.ca)).await.unwrap();
    // Another authority, and those of the system: refused.
    for ca in [Some(other.ca.as_str()), None] {
        let error = claim(&format!("rediss://127.0.0.1:{port}/0"), ca).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Unavailable, "{error}");
        assert!(error.to_string().contains("certificate"), "the reason is told: {error}");
    }
    // A name that the certificate does not hold.
    assert!(claim(&format!("rediss://127.0.0.2:{port}/0"), Some(&ours.ca)).await.is_err());
    // Plain text to a TLS port.
    assert!(claim(&format!("redis://127.0.0.1:{port}/0"), None).await.is_err());
}

#[tokio::test]
async fn an_authority_that_is_not_a_certificate_is_refused_at_once() {
    let settings = LinkSettings {
        ca: Some(Authority::Pem(
            b"-----BEGIN CERTIFICATE-----\nnot base64!\n-----END CERTIFICATE-----\n".to_vec(),
        )),
        ..LinkSettings::for_url("rediss://127.0.0.1:1/0")
    };
    let error = Link::new(&settings).unwrap_err();
    assert!(!error.is_transient(), "{error}");
}
