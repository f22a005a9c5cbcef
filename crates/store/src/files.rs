//! The files that TLS needs: read by ourselves, because the driver reads whatever a path leads to, and as much of it as there is.
//! A tenant's settings name them, and a pipe or a device would hold a thread for ever.

use std::fs::OpenOptions;
use std::io::{self, Read as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use balance_sync_domain::TlsMode;
use nix::fcntl::OFlag;
use sqlx::postgres::PgConnectOptions;

use crate::classify::{ErrorClass, StoreError};
use crate::connect::quoted;
use crate::spec::DatabaseSpec;

/// Most bytes of a file: a bundle of all public authorities has some 220 KB.
const LONGEST: u64 = 1024 * 1024;

/// A file, as the settings name it.
struct File {
    setting: &'static str,
    path: PathBuf,
    /// The block that it must hold.
    block: &'static str,
    content: Vec<u8>,
}

/// What the files of TLS held when a connection was opened.
#[derive(Default)]
pub(crate) struct Files(Vec<File>);

impl Files {
    /// Reads those that a connection needs; none without TLS.
    ///
    /// # Errors
    /// The first that can't be read, is no regular file, or is too long.
    pub(crate) async fn read(spec: &DatabaseSpec) -> Result<Files, StoreError> {
        let is_checked = matches!(spec.tls, TlsMode::Require | TlsMode::VerifyCa | TlsMode::VerifyFull);
        let named = [
            ("sslrootcert", spec.root_cert.clone().filter(|_| is_checked), "CERTIFICATE"),
            ("sslcert", spec.cert.clone(), "CERTIFICATE"),
            ("sslkey", spec.key.clone(), "PRIVATE KEY"),
        ];
        if spec.tls == TlsMode::Disable || named.iter().all(|(_, path, _)| path.is_none()) {
            return Ok(Files::default());
        }
        let reading = tokio::task::spawn_blocking(move || {
            let mut files = Files::default();
            for (setting, path, block) in named {
                let Some(path) = path else { continue };
                match content(&path) {
                    Ok(content) => files.0.push(File { setting, path, block, content }),
                    Err(error) => return Err(fault(setting, &path, &format!("can't be read: {error}"))),
                }
            }
            Ok(files)
        });
        reading.await.unwrap_or_else(|_| Err(StoreError::closed()))
    }

    /// The options with these files in place of their paths.
    pub(crate) fn within(&self, mut options: PgConnectOptions) -> PgConnectOptions {
        for file in &self.0 {
            options = match file.setting {
                "sslrootcert" => options.ssl_root_cert_from_pem(file.content.clone()),
                "sslcert" => options.ssl_client_cert_from_pem(&file.content),
                _ => options.ssl_client_key_from_pem(&file.content),
            };
        }
        options
    }

    /// What is wrong with one of them, after a failure: the driver takes a file without certificates for an authority that signs
    /// nothing.
    pub(crate) fn fault(&self) -> Option<StoreError> {
        let bad = self.0.iter().find(|file| !is_pem(&file.content, file.block))?;
        let wanted = format!("is not PEM: it must hold a block -----BEGIN {}-----", bad.block);
        Some(fault(bad.setting, &bad.path, &wanted))
    }
}

fn fault(setting: &str, path: &Path, what: &str) -> StoreError {
    StoreError::new(
        ErrorClass::Tls,
        format!("the file {} ({setting}) {what}", quoted(&path.display().to_string())),
    )
}

/// Opening doesn't wait for a writer of a pipe, and what isn't a regular file is not read.
fn content(path: &Path) -> io::Result<Vec<u8>> {
    let file = OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
    let found = file.metadata()?;
    if !found.is_file() {
        return Err(io::Error::other("it is not a regular file"));
    }
    let mut bytes = Vec::new();
    file.take(LONGEST + 1).read_to_end(&mut bytes)?;
    if bytes.len() as u64 > LONGEST {
        return Err(io::Error::other(format!("it has more than {LONGEST} bytes")));
    }
    Ok(bytes)
}

/// Whether a file has a block of this kind that can be decoded. Keys have a word before ("RSA PRIVATE KEY").
fn is_pem(text: &[u8], wanted: &str) -> bool {
    use rustls::pki_types::pem::PemObject;
    use rustls::pki_types::{CertificateDer, PrivateKeyDer};
    if wanted == "CERTIFICATE" {
        let mut certificates = CertificateDer::pem_slice_iter(text).peekable();
        certificates.peek().is_some() && certificates.all(|certificate| certificate.is_ok())
    } else {
        PrivateKeyDer::from_pem_slice(text).is_ok()
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;
    use secrecy::SecretString;

    fn spec(root_cert: &Path) -> DatabaseSpec {
        DatabaseSpec {
            tls: TlsMode::VerifyFull,
            root_cert: Some(root_cert.to_owned()),
            ..DatabaseSpec::new("db.example", 5432, "ledger", "worker", SecretString::from(""))
        }
    }

    #[tokio::test]
    async fn only_short_regular_files_are_read_and_nothing_waits_for_a_pipe() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        nix::unistd::mkfifo(&at("pipe"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        std::os::unix::net::UnixListener::bind(at("socket")).unwrap();
        std::fs::write(at("long"), vec![b'x'; 1024 * 1024 + 1]).unwrap();
        std::fs::write(at("fits"), vec![b'x'; 1024 * 1024]).unwrap();
        std::os::unix::fs::symlink("/dev/zero", at("link")).unwrap();
        for (path, words) in [
            (at("pipe"), "not a regular file"),
            (at("socket"), "can't be read"),
            (folder.path().to_owned(), "not a regular file"),
            ("/dev/zero".into(), "not a regular file"),
            (at("link"), "not a regular file"),
            (at("long"), "more than 1048576 bytes"),
            (at("absent"), "No such file"),
        ] {
            let error = Files::read(&spec(&path)).await.err().unwrap();
            assert_eq!(error.class(), ErrorClass::Tls);
            assert!(error.message().contains(words) && error.message().contains("(sslrootcert)"), "{error}");
        }
        assert!(Files::read(&spec(&at("fits"))).await.is_ok());
        let unused = DatabaseSpec { tls: TlsMode::Disable, ..spec(&at("pipe")) };
        assert!(Files::read(&unused).await.is_ok(), "without TLS it isn't opened");
        let unused = DatabaseSpec { tls: TlsMode::Prefer, ..spec(&at("pipe")) };
        assert!(Files::read(&unused).await.is_ok(), "nor where no authority is checked");
    }

    #[test]
    fn what_is_pem_and_what_is_not() {
        for text in ["", "certificate", "-----BEGIN CERTIFICATE-----\n", "\u{30}\u{82}\u{1}\u{a}"] {
            assert!(!is_pem(text.as_bytes(), "CERTIFICATE"), "{text:?}");
            assert!(!is_pem(text.as_bytes(), "PRIVATE KEY"), "{text:?}");
        }
        let block = "-----BEGIN CERTIFICATE-----\nMAA=\n-----END CERTIFICATE-----\n";
        assert!(is_pem(block.as_bytes(), "CERTIFICATE"));
        assert!(!is_pem(block.as_bytes(), "PRIVATE KEY"));
    }
}
