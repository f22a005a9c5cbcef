//! The binary `balance-sync`.

use std::process::ExitCode;

/// The system's allocator keeps an arena per thread and gives little back: with ten thousand tenants some 110 MB instead of
/// 74, and every page of metrics adds to it for good (docs/performance.md). How it is set: `.cargo/config.toml`.
#[cfg(not(target_env = "msvc"))]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

fn main() -> ExitCode {
    balance_sync_cli::main()
}
