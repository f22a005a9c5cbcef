//! What is wrong with TLS is said, with certificates made on the spot.

use balance_sync_domain::TlsMode;
use std::io::Write as _;
use std::path::Path;

use balance_sync_sandbox::{PostgresOptions, PostgresServer, eventually};
use balance_sync_store::{Database, DatabaseSpec, ErrorClass, StoreError};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair, date_time_ymd};
use secrecy::SecretString;
use tempfile::NamedTempFile;

use crate::support::{PASSWORD, PATIENCE, open, spec};

type Authority = CertifiedIssuer<'static, KeyPair>;

fn authority() -> (Authority, NamedTempFile) {
    let mut params = CertificateParams::new(Vec::new()).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let authority = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
    let pem = file(authority.pem().as_bytes());
    (authority, pem)
}

fn file(content: &[u8]) -> NamedTempFile {
    let mut file = NamedTempFile::new().unwrap();
    file.write_all(content).unwrap();
    file
}

/// A certificate for `localhost` with its key; one that has expired, if requested.
fn certificate(authority: &Authority, expired: bool) -> (String, SecretString) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
    if expired {
        params.not_before = date_time_ymd(2019, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 1);
    }
    let certificate = params.signed_by(&key, authority).unwrap();
    (certificate.pem(), SecretString::from(key.serialize_pem()))
}

struct Case<'a> {
    what: &'a str,
    mode: TlsMode,
    host: &'a str,
    root: Option<&'a Path>,
    /// The words of the error; empty = it works.
    words: &'a [&'a str],
}

fn database(server: &PostgresServer, case: &Case<'_>) -> Database {
    open(DatabaseSpec {
        host: case.host.to_owned(),
        tls: case.mode,
        root_cert: case.root.map(Path::to_owned),
        ..spec(server.port(), "secure")
    })
}

#[track_caller]
fn check(case: &Case<'_>, result: Result<(), StoreError>) {
    match result {
        Ok(()) => assert!(case.words.is_empty(), "{} should fail", case.what),
        Err(error) => {
            assert_eq!(error.class(), ErrorClass::Tls, "{}: {error}", case.what);
            assert!(!case.words.is_empty(), "{}: {error}", case.what);
            for word in case.words {
                assert!(error.message().contains(word), "{}: {error}", case.what);
            }
        }
    }
}

#[tokio::test]
async fn each_fault_of_tls_is_named() {
    use TlsMode::{Prefer, Require, VerifyCa, VerifyFull};
    let server = PostgresServer::start(PostgresOptions::default()).await.unwrap();
    server.create_tenant_database("secure", "secure", &SecretString::from(PASSWORD)).await.unwrap();
    let ((ours, root), (_, strange)) = (authority(), authority());
    let (no_pem, absent) = (file(b"not a certificate"), Path::new("/no/such/file.pem"));
    let (root, strange, no_pem) = (Some(root.path()), Some(strange.path()), Some(no_pem.path()));
    let case = |what, mode, host, root, words| Case { what, mode, host, root, words };

    let none =
        case("TLS that the server doesn't offer", Require, "localhost", None, &["does not support TLS"]);
    check(&none, database(&server, &none).ping().await);

    let (certificate_pem, key) = certificate(&ours, false);
    server.use_tls(&certificate_pem, &key).await.unwrap();
    let works = case("after the start of TLS", VerifyFull, "localhost", root, &[]);
    eventually(PATIENCE, "TLS", || async { database(&server, &works).ping().await.ok() }).await.unwrap();
    for case in [
        case("another name", VerifyFull, "127.0.0.1", root, &["another name", "127.0.0.1", "localhost"]),
        case("another name, not checked", VerifyCa, "127.0.0.1", root, &[]),
        case("an unknown authority", VerifyFull, "localhost", strange, &["unknown here", "sslrootcert"]),
        case("an unknown authority", VerifyCa, "localhost", strange, &["unknown here", "sslrootcert"]),
        case("the system's authorities only", VerifyCa, "localhost", None, &["unknown here"]),
        // As libpq: only with a file is the authority checked, and never the name.
        case("required, no authority named", Require, "127.0.0.1", None, &[]),
        case("required, by its authority", Require, "127.0.0.1", root, &[]),
        case("required, by another authority", Require, "127.0.0.1", strange, &["unknown here"]),
        case("preferred, by another authority", Prefer, "127.0.0.1", strange, &[]),
        case("a file that is no PEM", VerifyFull, "localhost", no_pem, &["sslrootcert", "not PEM"]),
        case(
            "a file that is not there",
            VerifyCa,
            "localhost",
            Some(absent),
            &["/no/such/file.pem", "can't be read"],
        ),
    ] {
        check(&case, database(&server, &case).ping().await);
    }
    // Our own certificate.
    let client = |cert: &Path, key: &Path| {
        let secure = spec(server.port(), "secure");
        open(DatabaseSpec { tls: Require, cert: Some(cert.into()), key: Some(key.into()), ..secure })
    };
    let own = file(certificate_pem.as_bytes());
    let error = client(own.path(), no_pem.unwrap()).ping().await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Tls, "{error}");
    assert!(error.message().contains("sslkey") && error.message().contains("not PEM"), "{error}");

    let (certificate_pem, key) = certificate(&ours, true);
    server.use_tls(&certificate_pem, &key).await.unwrap();
    let expired = case("an expired certificate", VerifyFull, "localhost", root, &["has expired"]);
    let error = eventually(PATIENCE, "the new certificate", || async {
        database(&server, &expired).ping().await.err()
    })
    .await
    .unwrap();
    check(&expired, Err(error));
}
