//! Where the server programs are.
//!
//! Redis is taken from `PATH`. Debian and Ubuntu keep the PostgreSQL programs out of `PATH`, one
//! folder per major version, so the newest of those is the fallback.

use std::env;
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

/// Where Debian and Ubuntu packages put each PostgreSQL major version.
const DEBIAN_POSTGRES: &str = "/usr/lib/postgresql";

/// Where Debian and Ubuntu packages put PgBouncer.
const DEBIAN_PGBOUNCER: &str = "/usr/sbin/pgbouncer";

/// What the error tells the reader to do.
const INSTALL: &str = "apt-get install redis-server postgresql";

/// The PostgreSQL programs the sandbox runs; they are always of one version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PostgresPrograms {
    /// Creates a data folder.
    pub initdb: PathBuf,
    /// The server itself.
    pub postgres: PathBuf,
}

/// Path of `redis-server`.
///
/// # Errors
/// When it is not in `PATH`; the text says what to install.
pub fn redis_server() -> Result<PathBuf> {
    match in_path("redis-server") {
        Some(path) => Ok(path),
        None => bail!("redis-server was not found in PATH; install it: {INSTALL}"),
    }
}

/// Paths of the PostgreSQL programs: from `PATH`, else the newest version under `/usr/lib/postgresql`.
///
/// # Errors
/// When neither place has both `initdb` and `postgres`; the text says what to install.
pub fn postgres_programs() -> Result<PostgresPrograms> {
    let from_path = in_path("postgres").and_then(|path| {
        // Links in PATH are resolved: `initdb` and `postgres` must come from the same version.
        let real = path.canonicalize().ok()?;
        programs_in(real.parent()?)
    });
    match from_path.or_else(|| newest_under(Path::new(DEBIAN_POSTGRES))) {
        Some(programs) => Ok(programs),
        None => bail!(
            "initdb and postgres were found neither in PATH nor in {DEBIAN_POSTGRES}/*/bin; install them: {INSTALL}"
        ),
    }
}

/// Path of `pgbouncer`: from `PATH`, else where Debian and Ubuntu put it, which only root has in `PATH`.
///
/// # Errors
/// When neither has it; the text says what to install.
pub fn pgbouncer() -> Result<PathBuf> {
    match in_path("pgbouncer").or_else(|| Some(PathBuf::from(DEBIAN_PGBOUNCER)).filter(|path| path.is_file()))
    {
        Some(path) => Ok(path),
        None => bail!("pgbouncer was not found in PATH; install it: apt-get install pgbouncer"),
    }
}

fn in_path(program: &str) -> Option<PathBuf> {
    let path = env::var_os("PATH")?;
    env::split_paths(&path).map(|dir| dir.join(program)).find(|candidate| candidate.is_file())
}

fn programs_in(bin: &Path) -> Option<PostgresPrograms> {
    let found = PostgresPrograms { initdb: bin.join("initdb"), postgres: bin.join("postgres") };
    (found.initdb.is_file() && found.postgres.is_file()).then_some(found)
}

fn newest_under(root: &Path) -> Option<PostgresPrograms> {
    let mut versions: Vec<(u32, PathBuf)> = std::fs::read_dir(root)
        .ok()?
        .flatten()
        // By number, not by name: "9" must not come after "15".
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path())))
        .collect();
    versions.sort();
    versions.iter().rev().find_map(|(_, dir)| programs_in(&dir.join("bin")))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn the_newest_complete_version_wins() {
        let root = tempfile::tempdir().unwrap();
        for (version, programs) in
            [("9", &["initdb", "postgres"][..]), ("15", &["initdb", "postgres"]), ("16", &["initdb"])]
        {
            let bin = root.path().join(version).join("bin");
            std::fs::create_dir_all(&bin).unwrap();
            for program in programs {
                std::fs::write(bin.join(program), "").unwrap();
            }
        }
        let found = newest_under(root.path()).unwrap();
        assert_eq!(found.postgres, root.path().join("15/bin/postgres"));
        assert!(newest_under(&root.path().join("none")).is_none());
    }
}
