//! TLS with a certificate authority of the test's own.

use std::{path::Path, sync::Arc};

use balance_sync_sandbox::{RedisOptions, RedisServer, TlsAuthority};
use balance_sync_schedule::{
    Authority, ErrorClass, Link, LinkSettings, Schedule, ScheduleError, ScheduleOptions,
};

use crate::common::space_of;

/// A server that speaks TLS, and the port for it.
async fn tls_server(authority: &TlsAuthority, folder: &Path) -> (RedisServer, u16) {
    RedisServer::start_with_tls(&RedisOptions::default(), &authority.redis_lines(folder).unwrap())
        .await
        .unwrap()
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
    let ours = TlsAuthority::new("ours").unwrap();
    let other = TlsAuthority::new("other").unwrap();
    let (_server, port) = tls_server(&ours, folder.path()).await;

    claim(&format!("rediss://127.0.0.1:{port}/0"), Some(&ours.ca)).await.unwrap();
    claim(&format!("rediss://localhost:{port}/0"), Some(&ours.ca)).await.unwrap();
    // Another authority, and those of the system: refused.
    for ca in [Some(other.ca.as_str()), None] {
        let error = claim(&format!("rediss://127.0.0.1:{port}/0"), ca).await.unwrap_err();
        assert_eq!(error.class, ErrorClass::Unavailable, "{error}");
        assert!(error.to_string().contains("certificate"), "the reason is reported: {error}");
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
