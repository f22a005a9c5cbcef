//! A wall clock that a test sets, for one server.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, ensure};

/// What replaces the functions of libc in the server.
const SOURCE: &str = include_str!("clock.c");

/// The clock of a server that is started with [`Clock::variables`].
#[derive(Debug)]
pub(crate) struct Clock {
    library: PathBuf,
    offset: PathBuf,
}

impl Clock {
    /// Builds the library in the server's folder. The clock shows the real time at first.
    pub(crate) fn in_folder(folder: &Path) -> Result<Self> {
        let (source, library) = (folder.join("clock.c"), folder.join("clock.so"));
        fs::write(&source, SOURCE)?;
        let built = Command::new("cc")
            .args(["-shared", "-fPIC", "-O1", "-o"])
            .args([&library, &source])
            .output()
            .context("running cc, which builds the settable clock")?;
        ensure!(built.status.success(), "cc: {}", String::from_utf8_lossy(&built.stderr));
        let offset = folder.join("clock.offset");
        fs::write(&offset, 0_i64.to_ne_bytes())?;
        Ok(Self { library, offset })
    }

    /// `NAME=value` for the environment of the server.
    pub(crate) fn variables(&self) -> Vec<String> {
        vec![
            format!("LD_PRELOAD={}", self.library.display()),
            format!("SANDBOX_CLOCK_OFFSET={}", self.offset.display()),
        ]
    }

    /// Sets the clock so many milliseconds ahead of the real time, or behind it.
    pub(crate) fn shift(&self, millis: i64) -> Result<()> {
        // Written in place: the server has the file mapped.
        let mut file = File::options().write(true).open(&self.offset)?;
        file.write_all(&(millis * 1000).to_ne_bytes()).context("setting the clock")
    }
}
