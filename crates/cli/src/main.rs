//! The binary `balance-sync`: commands, configuration, logs, and the wiring of a worker.
//!
//! Reading order: [`args`] (what can be asked) · [`config`] (what is configured) · [`wiring`] (configuration to worker) ·
//! [`telemetry`] (log and traces) · [`terminal`] (how answers look) · [`commands`] (what is done).

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command line speaks on standard output

mod args;
mod commands;
mod config;
mod environment;
mod telemetry;
mod terminal;
mod wiring;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

/// The system's allocator keeps an arena per thread and gives little back: with ten thousand tenants some 110 MB instead of
/// 74, and every page of metrics adds to it for good (docs/performance.md). How it is set: `.cargo/config.toml`.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// Everything is as it should be.
const EXIT_OK: u8 = 0;
/// What was asked could not be found out or done.
const EXIT_FAILED: u8 = 2;

fn main() -> ExitCode {
    if let Err(error) = environment::without_driver_variables() {
        eprintln!("balance-sync: can't be started again without PGOPTIONS and PGSSL…: {error}; unset them");
        return ExitCode::from(EXIT_FAILED);
    }
    let args = Args::parse();
    // The rustls of redis, reqwest and sqlx take the process's provider; ring is the one all of them are built with.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let result = actix_rt::System::new().block_on(dispatch(args));
    match result {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("balance-sync: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

async fn dispatch(args: Args) -> anyhow::Result<u8> {
    let file = args.config.as_deref();
    match args.command {
        Command::Run => commands::run::run(file).await,
        Command::Check => commands::check::check(file),
        Command::Status(options) => commands::status::status(file, options).await,
        Command::Tenants(options) => commands::tenants::tenants(file, options).await,
        Command::Why(options) => commands::why::answer(file, options).await,
        Command::Workers(options) => commands::workers::workers(file, options).await,
        Command::Actions(options) => commands::actions::actions(file, options).await,
        Command::Sandbox(options) => commands::sandbox::sandbox(options).await,
        Command::Load(options) => commands::load::load(file, options).await,
        Command::Verify(options) => commands::verify::verify(file, options).await,
        Command::Quarantine(command) => commands::quarantine::quarantine(file, command).await,
        Command::Demo(options) => commands::demo::demo(options).await,
        Command::Completions { shell } => commands::completions::completions(shell),
    }
}
