//! How a program of ours starts and ends.

use std::{path::Path, process::ExitCode};

use anyhow::Context;
use clap::CommandFactory;

use crate::environment;

/// Everything is as it should be.
pub const EXIT_OK: u8 = 0;
/// What was asked could not be found out or done.
pub(crate) const EXIT_FAILED: u8 = 2;

/// Parses the command line and runs the command on an actix system. An error goes to standard error, with exit code 2.
pub fn run<A: CommandFactory, F>(parse: impl FnOnce() -> A, dispatch: impl FnOnce(A) -> F) -> ExitCode
where
    F: Future<Output = anyhow::Result<u8>>,
{
    let name = A::command().get_name().to_owned();
    if let Err(error) = environment::without_driver_variables() {
        eprintln!("{name}: can't be started again without PGOPTIONS and PGSSL…: {error}; unset them");
        return ExitCode::from(EXIT_FAILED);
    }
    let args = parse();
    // The rustls of redis, reqwest and sqlx take the process's provider; ring is the one all of them are built with.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match actix_rt::System::new().block_on(dispatch(args)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!("{name}: {error:#}");
            ExitCode::from(EXIT_FAILED)
        }
    }
}

/// Writes a man page (section 1) for the program and each of its commands into a folder.
///
/// # Errors
/// When they can't be written.
pub fn write_man_pages<A: CommandFactory>(folder: &Path) -> anyhow::Result<u8> {
    let in_folder = || format!("man pages in {}", folder.display());
    std::fs::create_dir_all(folder).with_context(in_folder)?;
    clap_mangen::generate_to(A::command(), folder).with_context(in_folder)?;
    Ok(EXIT_OK)
}

/// Waits for SIGINT, SIGTERM or SIGQUIT and names it.
///
/// # Errors
/// When signals can't be listened to.
pub async fn interrupted() -> std::io::Result<&'static str> {
    use tokio::signal::unix::{SignalKind, signal};
    let (mut int, mut term) = (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?);
    let mut quit = signal(SignalKind::quit())?;
    Ok(tokio::select! {
        _ = int.recv() => "SIGINT",
        _ = term.recv() => "SIGTERM",
        _ = quit.recv() => "SIGQUIT",
    })
}
