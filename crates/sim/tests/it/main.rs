//! The simulator: its model of Redis beside the real scripts, and runs from fixed seeds.
#![allow(missing_docs, clippy::unwrap_used, clippy::print_stdout)]

#[allow(dead_code)]
#[path = "../../src/bugs.rs"]
mod bugs;
#[allow(dead_code)]
#[path = "../../src/redis.rs"]
mod model;

mod scripts;
mod seeds;
