//! What the environment must not decide: how tenants' databases are reached.
//!
//! The Postgres driver takes defaults from the variables of libpq, and what it takes from some of them can't be taken back:
//! session settings, an authority to trust, a certificate to show. Where those come from is the tenant's settings and nothing
//! else, so the process starts itself again without them, before it does anything.

use std::ffi::OsString;
use std::io;
use std::os::unix::process::CommandExt;
use std::process::Command;

/// Those that the driver reads and our own settings don't replace.
const OF_THE_DRIVER: [&str; 4] = ["PGOPTIONS", "PGSSLROOTCERT", "PGSSLCERT", "PGSSLKEY"];

/// Gives whether the environment is free of them; otherwise the process begins again without them, and this returns only
/// when that fails.
///
/// # Errors
/// When the program can't be started again.
pub(crate) fn without_driver_variables() -> io::Result<()> {
    let set: Vec<&str> = set_among(&OF_THE_DRIVER, |name| std::env::var_os(name));
    if set.is_empty() {
        return Ok(());
    }
    let mut args = std::env::args_os();
    let mut again = Command::new(std::env::current_exe()?);
    if let Some(name) = args.next() {
        again.arg0(name);
    }
    again.args(args);
    for name in set {
        again.env_remove(name);
    }
    Err(again.exec())
}

fn set_among<'n>(names: &[&'n str], value: impl Fn(&str) -> Option<OsString>) -> Vec<&'n str> {
    names.iter().copied().filter(|name| value(name).is_some()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_empty_is_set_all_the_same() {
        let value = |name: &str| (name == "PGSSLKEY").then(OsString::new);
        assert_eq!(set_among(&OF_THE_DRIVER, value), ["PGSSLKEY"]);
        assert!(set_among(&OF_THE_DRIVER, |_| None).is_empty());
    }
}
