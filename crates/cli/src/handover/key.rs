//! Ed25519 keys in the files that OpenSSL reads: PKCS #8 and SubjectPublicKeyInfo in PEM. The private one is never printed.

use std::{
    fs::{self, File, OpenOptions},
    io::{Read as _, Write as _},
    os::unix::fs::{MetadataExt as _, OpenOptionsExt as _},
    path::{Path, PathBuf},
};

use anyhow::{Context as _, bail};
use base64::{Engine as _, engine::general_purpose::STANDARD};
use ring::rand::{SecureRandom as _, SystemRandom};
use ring::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};

/// DER before the 32 bytes of a private key …
const PRIVATE: &[u8] =
    &[0x30, 0x2e, 0x02, 0x01, 0x00, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x04, 0x22, 0x04, 0x20];
/// … and of a public one.
const PUBLIC: &[u8] = &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00];
/// Longest file of a key.
const LONGEST: u64 = 4096;

/// Makes a key in this file, and its public half beside it; gives the file of the latter.
///
/// # Errors
/// When a file exists or can't be written.
pub(crate) fn keygen(file: &Path) -> anyhow::Result<PathBuf> {
    let mut public_file = file.as_os_str().to_owned();
    public_file.push(".pub");
    let public_file = PathBuf::from(public_file);
    if public_file.exists() {
        bail!("{} exists; nothing was made", public_file.display());
    }
    let mut seed = [0; 32];
    SystemRandom::new().fill(&mut seed).ok().context("the system gives no random numbers")?;
    let key = Ed25519KeyPair::from_seed_unchecked(&seed).ok().context("the key can't be used")?;
    write(file, 0o600, &pem("PRIVATE KEY", PRIVATE, &seed))?;
    write(&public_file, 0o644, &pem("PUBLIC KEY", PUBLIC, key.public_key().as_ref()))?;
    Ok(public_file)
}

fn write(file: &Path, mode: u32, text: &str) -> anyhow::Result<()> {
    let shown = file.display();
    let mut open = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(file)
        .with_context(|| format!("{shown} can't be made"))?;
    open.write_all(text.as_bytes()).and_then(|()| open.sync_all()).with_context(|| format!("writing {shown}"))
}

fn pem(what: &str, prefix: &[u8], key: &[u8]) -> String {
    format!("-----BEGIN {what}-----\n{}\n-----END {what}-----\n", STANDARD.encode([prefix, key].concat()))
}

/// The 32 bytes in a file of such a key.
fn read(file: &Path, what: &str, prefix: &[u8]) -> anyhow::Result<[u8; 32]> {
    let shown = file.display();
    let mut text = String::new();
    let opened = File::open(file).with_context(|| format!("{shown} can't be read"))?;
    opened.take(LONGEST).read_to_string(&mut text).with_context(|| format!("{shown} can't be read"))?;
    let key = text
        .trim()
        .strip_prefix(&format!("-----BEGIN {what}-----"))
        .and_then(|rest| rest.strip_suffix(&format!("-----END {what}-----")))
        .and_then(|body| STANDARD.decode(body.split_whitespace().collect::<String>()).ok())
        .and_then(|der| der.strip_prefix(prefix).and_then(|key| key.try_into().ok()));
    // Nothing of the file is quoted: it may be a private key in another format.
    key.with_context(|| format!("{shown} is no Ed25519 key in PEM; allowed: one BEGIN {what}"))
}

/// A key that signs.
pub(crate) struct SigningKey(Ed25519KeyPair);

impl SigningKey {
    /// # Errors
    /// When it can't be read, or everybody on this host can.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        let mode = fs::metadata(file).with_context(|| format!("{} can't be read", file.display()))?.mode();
        if mode & 0o007 != 0 {
            bail!(
                "{} has mode {:04o}; allowed: no access for others, such as 0600",
                file.display(),
                mode & 0o7777
            );
        }
        let seed = read(file, "PRIVATE KEY", PRIVATE)?;
        Ok(Self(Ed25519KeyPair::from_seed_unchecked(&seed).ok().context("the key can't be used")?))
    }

    pub(crate) fn public(&self) -> PublicKey {
        let mut key = [0; 32];
        key.copy_from_slice(self.0.public_key().as_ref());
        PublicKey(key)
    }

    pub(super) fn sign(&self, message: &[u8]) -> String {
        STANDARD.encode(self.0.sign(message))
    }
}

/// A key that verifies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct PublicKey([u8; 32]);

impl PublicKey {
    /// # Errors
    /// When it can't be read.
    pub(crate) fn read(file: &Path) -> anyhow::Result<Self> {
        Ok(Self(read(file, "PUBLIC KEY", PUBLIC)?))
    }

    pub(super) fn text(self) -> String {
        STANDARD.encode(self.0)
    }

    pub(super) fn has_signed(self, message: &[u8], signature: &str) -> bool {
        STANDARD.decode(signature).is_ok_and(|signature| {
            UnparsedPublicKey::new(&ED25519, self.0).verify(message, &signature).is_ok()
        })
    }
}
