//! The readers of members and values, on what ledgers wrote, on made-up input, and on the fuzzer's cases.
#![allow(clippy::unwrap_used, clippy::print_stdout)] // what was compared must be seen

/// The checks of the fuzz targets, with the naive reading of values.
// There it is a crate of its own.
#[allow(unreachable_pub)]
#[path = "../../fuzz/src/lib.rs"]
mod checks;

mod corpus;
mod differential;
mod properties;
mod value_samples;
mod wire;
