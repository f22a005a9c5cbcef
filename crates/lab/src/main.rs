//! The program `balance-sync-lab`: private servers, load and a demonstration, for trying `balance-sync` and showing it.
//!
//! It starts workers as processes of the product binary, which lies next to it ([`product`]), and is never deployed: the
//! product binary links neither this crate nor the test servers.

#![allow(clippy::print_stdout, clippy::print_stderr)] // a command line speaks on standard output

/// As the standard library's, except that a reader who has seen enough and went away (`… | head`) is no error.
macro_rules! println {
    ($($text:tt)*) => { balance_sync_cli::print_line(format_args!($($text)*)) };
}

/// As the standard library's, which panics where standard error is closed.
macro_rules! eprintln {
    ($($text:tt)*) => { balance_sync_cli::print_error_line(format_args!($($text)*)) };
}

mod args;
mod demo;
mod drill;
mod load;
mod product;
mod sandbox;

use std::process::ExitCode;

use clap::Parser;

use args::{Args, Command};

fn main() -> ExitCode {
    balance_sync_cli::run(Args::parse, dispatch)
}

async fn dispatch(args: Args) -> anyhow::Result<u8> {
    match args.command {
        Command::Demo(options) => demo::demo(options).await,
        Command::Sandbox(options) => sandbox::sandbox(options).await,
        Command::Load(options) => load::load(options).await,
        Command::Man { folder } => balance_sync_cli::write_man_pages::<Args>(&folder),
    }
}
