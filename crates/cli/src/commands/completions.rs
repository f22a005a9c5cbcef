//! `completions`: what a shell needs to know to complete our commands.

use clap::CommandFactory;
use clap_complete::Shell;

use crate::{EXIT_OK, args::Args, terminal};

/// Prints the script for this shell.
///
/// # Errors
/// When it can't be written.
pub(crate) fn completions(shell: Shell) -> anyhow::Result<u8> {
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut Args::command(), "balance-sync", &mut script);
    terminal::print(&String::from_utf8(script)?)?;
    Ok(EXIT_OK)
}
