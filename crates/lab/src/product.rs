//! The product binary, `balance-sync`.

use std::path::{Path, PathBuf};

use anyhow::Context;

/// Its file name.
const BINARY: &str = "balance-sync";

/// The product binary in the folder of this program.
///
/// # Errors
/// When it is not there.
pub(crate) fn binary() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("finding the path of this program")?;
    beside(&own)
}

fn beside(program: &Path) -> anyhow::Result<PathBuf> {
    let path = program.with_file_name(BINARY);
    anyhow::ensure!(
        path.is_file(),
        "{}: there is no such file, but the workers are started from it: `make build` builds both programs, or copy \
         {BINARY} there",
        path.display()
    );
    Ok(path)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    #[test]
    fn it_is_looked_for_next_to_this_program() {
        let folder = tempfile::tempdir().unwrap();
        let program = folder.path().join("balance-sync-lab");
        let refused = beside(&program).unwrap_err().to_string();
        assert!(refused.contains(&folder.path().join(BINARY).display().to_string()), "{refused}");
        assert!(refused.contains("make build"), "{refused}");
        std::fs::write(folder.path().join(BINARY), "").unwrap();
        assert_eq!(beside(&program).unwrap(), folder.path().join(BINARY));
    }
}
