//! What an operator's tools rely on: the page of metrics, the alert rules, the dashboard, the runbook; and that they agree.
//!
//! Rules and expressions are checked by Prometheus' own programs. Where those are not installed the tests that need them
//! say so and are skipped; `make test` installs them.

mod compose;
mod dashboard;
mod expressions;
mod page;
mod rules;
mod runbook;

use std::path::PathBuf;

use anyhow::{Context, Result};

/// A file of the repository, by its path in it.
fn file(path: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("..").join(path)
}

/// Its text.
fn text(path: &str) -> Result<String> {
    std::fs::read_to_string(file(path)).with_context(|| path.to_owned())
}
