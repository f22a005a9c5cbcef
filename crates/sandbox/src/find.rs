//! Where the server programs are.
//!
//! Environment variables come first: they select other versions than those installed. What a variable names must be
//! there; nothing else takes its place, so that no test runs on another version than the one asked for.
//!
//! Without them Redis is taken from `PATH`. Debian and Ubuntu keep the PostgreSQL programs out of `PATH`, one
//! folder per major version, so the newest of those is the fallback.

use std::env;
use std::ffi::OsString;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use crate::pgbouncer::PoolMode;

/// Path of the `redis-server` to use, or of a program that runs it in its own process.
pub const REDIS_SERVER: &str = "BALANCE_SYNC_TEST_REDIS_SERVER";
/// Folder with the `initdb` and `postgres` to use.
pub const POSTGRES_BIN: &str = "BALANCE_SYNC_TEST_POSTGRES_BIN";
/// Path of the `pgbouncer` to use, or of a program that runs it in its own process.
pub const PGBOUNCER: &str = "BALANCE_SYNC_TEST_PGBOUNCER";
/// `session` or `transaction`: every sandbox puts a PgBouncer of this pool mode between its workers and PostgreSQL.
pub const POOLER: &str = "BALANCE_SYNC_TEST_POOLER";

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

/// Path of `redis-server`: from [`REDIS_SERVER`], else from `PATH`.
///
/// # Errors
/// When it is not there; the text says what to install or which variable is wrong.
pub fn redis_server() -> Result<PathBuf> {
    if let Some(path) = named_program(REDIS_SERVER, env::var_os(REDIS_SERVER))? {
        return Ok(path);
    }
    match in_path("redis-server") {
        Some(path) => Ok(path),
        None => bail!("redis-server was not found in PATH; install it: {INSTALL}"),
    }
}

/// Paths of the PostgreSQL programs: from [`POSTGRES_BIN`], else from `PATH`, else the newest version under
/// `/usr/lib/postgresql`.
///
/// # Errors
/// When the place has not both `initdb` and `postgres`; the text says what to install or which variable is wrong.
pub fn postgres_programs() -> Result<PostgresPrograms> {
    if let Some(programs) = named_postgres(env::var_os(POSTGRES_BIN))? {
        return Ok(programs);
    }
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

/// Path of `pgbouncer`: from [`PGBOUNCER`], else from `PATH`, else where Debian and Ubuntu put it, which only root has in
/// `PATH`.
///
/// # Errors
/// When it is not there; the text says what to install or which variable is wrong.
pub fn pgbouncer() -> Result<PathBuf> {
    if let Some(path) = named_program(PGBOUNCER, env::var_os(PGBOUNCER))? {
        return Ok(path);
    }
    match in_path("pgbouncer").or_else(|| Some(PathBuf::from(DEBIAN_PGBOUNCER)).filter(|path| path.is_file()))
    {
        Some(path) => Ok(path),
        None => bail!("pgbouncer was not found in PATH; install it: apt-get install pgbouncer"),
    }
}

/// The pool mode that [`POOLER`] asks for; `None` when it is not set or empty: workers connect directly.
///
/// # Errors
/// When it is neither `session` nor `transaction`.
pub fn pooler() -> Result<Option<PoolMode>> {
    pooler_named(env::var_os(POOLER))
}

fn pooler_named(value: Option<OsString>) -> Result<Option<PoolMode>> {
    match value.as_ref().map_or(Some(""), |value| value.to_str()) {
        Some("") => Ok(None),
        Some("session") => Ok(Some(PoolMode::Session)),
        Some("transaction") => Ok(Some(PoolMode::Transaction)),
        _ => bail!("{POOLER}={} must be session or transaction", value.unwrap_or_default().display()),
    }
}

/// The program that a variable names; `None` when the variable is not set or empty.
fn named_program(variable: &str, value: Option<OsString>) -> Result<Option<PathBuf>> {
    let Some(path) = named(variable, value)? else { return Ok(None) };
    let what = format!("{variable}={}", path.display());
    let about = std::fs::metadata(&path).with_context(|| format!("{what}: the program can't be read"))?;
    ensure!(about.is_file(), "{what} is not a file; it must be the path of the program");
    ensure!(about.permissions().mode() & 0o111 != 0, "{what} is not executable");
    Ok(Some(path))
}

fn named_postgres(value: Option<OsString>) -> Result<Option<PostgresPrograms>> {
    let Some(folder) = named(POSTGRES_BIN, value)? else { return Ok(None) };
    match programs_in(&folder) {
        Some(programs) => Ok(Some(programs)),
        None => bail!(
            "{POSTGRES_BIN}={} must be a folder with the programs initdb and postgres",
            folder.display()
        ),
    }
}

fn named(variable: &str, value: Option<OsString>) -> Result<Option<PathBuf>> {
    let Some(path) = value.filter(|value| !value.is_empty()).map(PathBuf::from) else { return Ok(None) };
    // Servers start in folders of their own.
    ensure!(path.is_absolute(), "{variable}={} must be an absolute path", path.display());
    Ok(Some(path))
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
    #[test]
    fn what_a_variable_names_must_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| Some(folder.path().join(name).into_os_string());
        let refused = |value: Option<OsString>| named_program(REDIS_SERVER, value).unwrap_err().to_string();

        assert_eq!(named_program(REDIS_SERVER, None).unwrap(), None);
        assert_eq!(named_program(REDIS_SERVER, Some(OsString::new())).unwrap(), None);
        for (value, problem) in [
            (at("none"), "can't be read"),
            (at("."), "not a file"),
            (Some("bin/redis-server".into()), "must be an absolute path"),
        ] {
            let error = refused(value);
            assert!(
                error.starts_with("BALANCE_SYNC_TEST_REDIS_SERVER=") && error.contains(problem),
                "{error}"
            );
        }

        let program = folder.path().join("redis-server");
        std::fs::write(&program, "").unwrap();
        assert!(refused(at("redis-server")).ends_with("redis-server is not executable"));
        std::fs::set_permissions(&program, std::fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(named_program(REDIS_SERVER, at("redis-server")).unwrap(), Some(program));

        std::fs::write(folder.path().join("postgres"), "").unwrap();
        let error = named_postgres(at(".")).unwrap_err().to_string();
        assert!(error.contains("must be a folder with the programs initdb and postgres"), "{error}");
        std::fs::write(folder.path().join("initdb"), "").unwrap();
        assert!(named_postgres(at(".")).unwrap().is_some());
    }

    #[test]
    fn a_pooler_has_one_of_two_modes() {
        for (value, mode) in [
            (None, None),
            (Some(""), None),
            (Some("session"), Some(PoolMode::Session)),
            (Some("transaction"), Some(PoolMode::Transaction)),
        ] {
            assert_eq!(pooler_named(value.map(OsString::from)).unwrap(), mode, "{value:?}");
        }
        let error = pooler_named(Some("statement".into())).unwrap_err().to_string();
        assert_eq!(error, "BALANCE_SYNC_TEST_POOLER=statement must be session or transaction");
    }
}
