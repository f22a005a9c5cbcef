//! The decisions of a worker as pure state machines: no I/O, no async runtime, no clock and no source of randomness.
//!
//! Time and seeds are arguments. A driver (`crates/fleet`) carries out what a machine commands and reports what came of
//! it; a simulator can drive the same code on virtual time.
//!
//! [`plan`] (which collectors run) · [`collector`] (one tenant's claims and flushes) · [`failure`] (what a failure leads to) · [`backoff`] (delays after
//! failures) · [`state`] (what a tenant's collector is doing).

pub mod backoff;
pub mod collector;
pub mod failure;
pub mod plan;
pub mod state;
