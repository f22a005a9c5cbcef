//! Host names that a test gives addresses, for one process: a name service of its own.
//!
//! A name that moves can't be had otherwise: `/etc/hosts` and `/etc/resolv.conf` belong to the whole host, and namespaces need
//! rights that containers don't have. So the process is started with a library that stands before libc's `getaddrinfo`.

use std::collections::BTreeMap;
use std::fs;
use std::net::IpAddr;
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use anyhow::{Context, Result, ensure};
use tempfile::TempDir;

/// What replaces the resolver of libc in the process.
const SOURCE: &str = include_str!("names.c");

/// The names of processes that are started with [`HostNames::variables`]; all other names are resolved as usual.
#[derive(Debug)]
pub struct HostNames {
    folder: TempDir,
    addresses: Mutex<BTreeMap<String, IpAddr>>,
}

impl HostNames {
    /// No names yet. Needs a C compiler, as the build of this project does.
    ///
    /// # Errors
    /// When the library can't be built.
    pub fn new() -> Result<Self> {
        let names = Self { folder: tempfile::tempdir()?, addresses: Mutex::default() };
        let source = names.folder.path().join("names.c");
        fs::write(&source, SOURCE)?;
        let compiler = std::env::var("CC").unwrap_or_else(|_| "cc".to_owned());
        let built = Command::new(&compiler)
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&names.library(), &source])
            .arg("-ldl")
            .output()
            .with_context(|| format!("running {compiler}, which builds the resolver"))?;
        ensure!(built.status.success(), "{compiler}: {}", String::from_utf8_lossy(&built.stderr));
        names.write()?;
        Ok(names)
    }

    /// From now on this name has this address.
    ///
    /// # Errors
    /// When it can't be written.
    pub fn set(&self, name: &str, address: impl Into<IpAddr>) -> Result<()> {
        let mut addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        addresses.insert(name.to_owned(), address.into());
        drop(addresses);
        self.write()
    }

    /// Names and values of the environment of the process.
    pub fn variables(&self) -> [(&'static str, String); 2] {
        let text = |path: PathBuf| path.display().to_string();
        [("LD_PRELOAD", text(self.library())), ("SANDBOX_HOST_NAMES", text(self.file()))]
    }

    fn library(&self) -> PathBuf {
        self.folder.path().join("names.so")
    }

    fn file(&self) -> PathBuf {
        self.folder.path().join("names")
    }

    fn write(&self) -> Result<()> {
        let addresses = self.addresses.lock().unwrap_or_else(PoisonError::into_inner);
        let lines: String = addresses.iter().map(|(name, address)| format!("{name} {address}\n")).collect();
        // Replaced as a whole: a look-up may be reading it.
        let next = self.folder.path().join("names.next");
        fs::write(&next, lines)?;
        fs::rename(&next, self.file()).context("replacing the file of names")
    }
}
