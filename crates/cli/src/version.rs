//! Which build this is.
//!
//! The commit comes from a variable of the build (`make dist` and `make image` set it) and not from a build script: that would
//! build this crate anew after every commit, and know nothing where the sources come without their history.

use std::sync::LazyLock;

/// The commit, with `-dirty` behind it if something was changed besides; without one it wasn't built for others.
pub(crate) const COMMIT: &str = match KNOWN {
    Some(commit) => commit,
    None => "development build",
};

const KNOWN: Option<&str> = match option_env!("BALANCE_SYNC_COMMIT") {
    Some(commit) if !commit.is_empty() => Some(commit),
    _ => None,
};

/// What a worker reports as its version: two builds of one version by different commits are two versions to a fleet.
pub(crate) fn of_worker() -> String {
    match KNOWN {
        Some(commit) => format!("{}+{commit}", env!("CARGO_PKG_VERSION")),
        None => env!("CARGO_PKG_VERSION").to_owned(),
    }
}

/// What `--version` prints behind the program's name.
pub(crate) fn text() -> &'static str {
    static TEXT: LazyLock<String> = LazyLock::new(|| format!("{} ({COMMIT})", env!("CARGO_PKG_VERSION")));
    &TEXT
}
