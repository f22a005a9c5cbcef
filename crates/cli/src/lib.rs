//! The program `balance-sync`: commands, configuration, logs, and the wiring of a worker.
//!
//! Reading order: `args` (what can be asked) · `config` (what is configured) · `wiring` (configuration to worker) ·
//! `telemetry` (log, traces, push of metrics) · `notify` (systemd) · `terminal` (how answers look) · `audit` (balances by three witnesses) · `recoveries` (some of them beside a worker) · `handover` (signed statements) · `retire` (going back) · `commands` (what is
//! done).
//!
//! A library only for the second program, `balance-sync-lab` in `crates/lab`: it starts in the same way ([`run`]) and
//! reads the same configuration ([`Deployment`]). Everything else is private.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command line speaks on standard output

/// As the standard library's, except that a reader who has seen enough and went away (`… | head`) is no error.
macro_rules! println {
    ($($text:tt)*) => { crate::terminal::print_line(format_args!($($text)*)) };
}

/// As the standard library's, which panics where standard error is closed: what a command does doesn't depend on who reads along.
/// What could act on the terminal is escaped.
macro_rules! eprintln {
    ($($text:tt)*) => { crate::terminal::print_error_line(format_args!($($text)*)) };
}

mod args;
mod audit;
mod commands;
mod config;
mod deployment;
mod environment;
mod handover;
mod notify;
mod program;
mod recoveries;
mod retire;
mod routes_file;
mod telemetry;
mod terminal;
mod version;
mod wiring;

use std::process::ExitCode;

use args::{Args, Command};

pub use deployment::Deployment;
pub use program::{EXIT_OK, interrupted, run, write_man_pages};
pub use terminal::{print_error_line, print_line};

/// The program `balance-sync`.
pub fn main() -> ExitCode {
    run(Args::parse_or_exit, dispatch)
}

async fn dispatch(args: Args) -> anyhow::Result<u8> {
    let file = args.config.as_deref();
    match args.command {
        Command::Run => commands::run::run(file).await,
        Command::Check(args) => commands::check::check(file, args).await,
        Command::Status(options) => commands::status::status(file, options).await,
        Command::Probe(options) => commands::probe::probe(options).await,
        Command::Tenants(options) => commands::tenants::tenants(file, options).await,
        Command::Why(options) => commands::why::answer(file, options).await,
        Command::Workers(options) => commands::workers::workers(file, options).await,
        Command::Sessions(command) => commands::sessions::sessions(file, command).await,
        Command::Actions(options) => commands::actions::actions(file, options).await,
        Command::Verify(options) => commands::verify::verify(file, options).await,
        Command::Audit(options) => commands::audit::audit(file, options).await,
        Command::Recover(options) => commands::recover::recover(file, options).await,
        Command::Timeline(options) => commands::timeline::timeline(file, options).await,
        Command::History(options) => commands::timeline::history(file, options).await,
        Command::Report(options) => commands::report::report(file, options).await,
        Command::Handover(options) => commands::handover::handover(file, options).await,
        Command::Rollout(command) => commands::rollout::rollout(file, command).await,
        Command::Retire(options) => commands::retire::retire(file, options).await,
        Command::Quarantine(command) => commands::quarantine::quarantine(file, command).await,
        Command::Completions { shell } => commands::completions::completions(shell),
        Command::Man { folder } => program::write_man_pages::<Args>(&folder),
    }
}
