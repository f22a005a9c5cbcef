//! Passwords and certificates in force, and where they are read from again.

use std::{io::Read as _, os::unix::fs::OpenOptionsExt as _, path::Path};

use nix::fcntl::OFlag;
use secrecy::{ExposeSecret, SecretString};

use crate::settings::{Authority, LinkSettings, Secret};

/// Largest file that is read, in bytes.
const FILE_LIMIT: u64 = 1 << 20;

/// What is read for one connection.
#[derive(Clone, Default)]
pub(crate) struct Credentials {
    pub(crate) password: Option<SecretString>,
    pub(crate) ca: Option<Vec<u8>>,
    pub(crate) sentinel_password: Option<SecretString>,
    pub(crate) sentinel_ca: Option<Vec<u8>>,
}

impl Credentials {
    /// Reads everything. What can't be read stays as it was before; the second value says what that is and why.
    pub(crate) fn read(settings: &LinkSettings, before: &Self) -> (Self, Option<String>) {
        let mut problems = Vec::new();
        let mut secret = |from: &Option<Secret>, before: &Option<SecretString>| match from {
            None => None,
            Some(Secret::Text(text)) => Some(text.clone()),
            Some(Secret::File(path)) => password_in(path).map(Some).unwrap_or_else(|problem| {
                problems.push(problem);
                before.clone()
            }),
        };
        let sentinel = settings.sentinel.as_ref();
        let password = secret(&settings.password, &before.password);
        let sentinel_password =
            secret(&sentinel.and_then(|own| own.password.clone()), &before.sentinel_password);
        let mut authority = |from: Option<&Authority>, before: &Option<Vec<u8>>| match from {
            None => None,
            Some(Authority::Pem(pem)) => Some(pem.clone()),
            Some(Authority::File(path)) => certificates_in(path).map(Some).unwrap_or_else(|problem| {
                problems.push(problem);
                before.clone()
            }),
        };
        let ca = authority(settings.ca.as_ref(), &before.ca);
        let sentinel_ca = authority(sentinel.and_then(|own| own.ca.as_ref()), &before.sentinel_ca);
        let problem = (!problems.is_empty()).then(|| problems.join("; "));
        (Self { password, ca, sentinel_password, sentinel_ca }, problem)
    }

    /// Whether a connection would be opened in the same way.
    pub(crate) fn is_same(&self, other: &Self) -> bool {
        let same = |a: &Option<SecretString>, b: &Option<SecretString>| {
            a.as_ref().map(ExposeSecret::expose_secret) == b.as_ref().map(ExposeSecret::expose_secret)
        };
        same(&self.password, &other.password)
            && same(&self.sentinel_password, &other.sentinel_password)
            && self.ca == other.ca
            && self.sentinel_ca == other.sentinel_ca
    }
}

/// The password in a file.
///
/// # Errors
/// What is wrong with the file; never a part of what is in it.
pub fn password_in(path: &Path) -> Result<SecretString, String> {
    let text =
        String::from_utf8(bytes_of(path)?).map_err(|_| format!("{}: is not UTF-8 text", path.display()))?;
    let text = text.strip_suffix('\n').map_or(text.as_str(), |line| line.strip_suffix('\r').unwrap_or(line));
    if text.is_empty() {
        return Err(format!("{}: is empty", path.display()));
    }
    Ok(SecretString::from(text.to_owned()))
}

/// The certificates in a PEM file.
///
/// # Errors
/// What is wrong with the file.
pub fn certificates_in(path: &Path) -> Result<Vec<u8>, String> {
    let bytes = bytes_of(path)?;
    // As the client reads them later; one half written must not take the place of a good one.
    match certificates(&bytes) {
        Ok(0) => Err(format!("{}: holds no certificate", path.display())),
        Ok(_) => Ok(bytes),
        Err(problem) => Err(format!("{}: {problem}", path.display())),
    }
}

/// How many certificates there are.
fn certificates(pem: &[u8]) -> Result<usize, String> {
    use rustls::pki_types::{CertificateDer, pem::PemObject as _};
    let mut store = rustls::RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(pem) {
        let certificate = certificate.map_err(|_| "holds a PEM block that can't be read".to_owned())?;
        store.add(certificate).map_err(|error| format!("holds a certificate that can't be used: {error}"))?;
    }
    Ok(store.len())
}

fn bytes_of(path: &Path) -> Result<Vec<u8>, String> {
    let read = || -> std::io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        // Doesn't wait for a writer of a pipe.
        let file =
            std::fs::OpenOptions::new().read(true).custom_flags(OFlag::O_NONBLOCK.bits()).open(path)?;
        if !file.metadata()?.is_file() {
            return Err(std::io::Error::other("it is not a regular file"));
        }
        file.take(FILE_LIMIT + 1).read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    match read() {
        Ok(bytes) if bytes.len() as u64 > FILE_LIMIT => {
            Err(format!("{}: is larger than {FILE_LIMIT} bytes", path.display()))
        }
        Ok(bytes) => Ok(bytes),
        Err(error) => Err(format!("{}: can't be read: {error}", path.display())),
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::*;

    #[test]
    fn a_password_is_the_file_without_its_last_line_break() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        for (text, password) in [
            ("s3cret", Ok("s3cret")),
            ("s3cret\n", Ok("s3cret")),
            ("s3cret\r\n", Ok("s3cret")),
            (" s3cret \n\n", Ok(" s3cret \n")),
            ("\n", Err("is empty")),
            ("", Err("is empty")),
        ] {
            std::fs::write(&path, text).unwrap();
            match (password_in(&path), password) {
                (Ok(found), Ok(password)) => assert_eq!(found.expose_secret(), password),
                (Err(found), Err(problem)) => assert!(found.contains(problem), "{found}"),
                (found, _) => panic!("{text:?}: {:?}", found.map(|_| "a password")),
            }
        }
        std::fs::write(&path, [b's', 0xff]).unwrap();
        assert!(password_in(&path).unwrap_err().contains("UTF-8"));
        std::fs::write(&path, vec![b'x'; FILE_LIMIT as usize + 1]).unwrap();
        assert!(password_in(&path).unwrap_err().contains("larger"));
        let pipe = folder.path().join("pipe");
        nix::unistd::mkfifo(&pipe, nix::sys::stat::Mode::S_IRWXU).unwrap();
        for path in [&pipe, folder.path()] {
            assert!(password_in(path).unwrap_err().contains("not a regular file"));
        }
    }

    #[test]
    fn what_can_not_be_read_stays_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("password");
        let settings = LinkSettings {
            password: Some(Secret::File(path.clone())),
            ca: Some(Authority::File(path.clone())),
            ..LinkSettings::for_url("redis://r")
        };
        let before = Credentials {
            password: Some(SecretString::from("before".to_owned())),
            ca: Some(b"before".to_vec()),
            ..Credentials::default()
        };
        let (read, problem) = Credentials::read(&settings, &before);
        assert!(read.is_same(&before));
        assert!(problem.unwrap().contains("can't be read"));
        std::fs::write(&path, "after\n").unwrap();
        let (read, problem) = Credentials::read(&settings, &before);
        assert_eq!(read.password.unwrap().expose_secret(), "after");
        assert_eq!(read.ca, before.ca);
        assert!(problem.unwrap().contains("holds no certificate"));
    }
}
