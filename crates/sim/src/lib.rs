//! A deterministic simulator of whole fleets: several workers with the collectors of `crates/engine`, models of Redis and
//! Postgres, producers, the ledger's own worker, and faults. One thread, virtual time, and one seed that decides everything.
//!
//! [`plan`] (a run: its size and its faults, from a seed) · [`world`] (the event queue and what is in it) · `driver`, `flight`
//! (carry out what collectors command) · `servers` (messages) · `redis`, `postgres`, `ledger` (the models) · `values`, [`producers`] (what
//! the ledger writes) · `faults`, `calamities` (what goes wrong, and what servers lose) · [`truth`], `checks` (the guarantees, after every step)
//! · [`bugs`] (rules that can be switched off, to show that the checks notice) · [`search`] (many seeds, shrinking).

pub mod bugs;
mod calamities;
mod checks;
mod driver;
mod faults;
mod fleet;
mod flight;
mod ledger;
mod mend;
pub mod plan;
mod postgres;
pub mod producers;
mod redis;
#[cfg(test)]
#[allow(clippy::print_stdout, clippy::unwrap_used, reason = "it is a test")]
mod scripts;
pub mod search;
mod servers;
pub mod silence;
pub mod truth;
mod values;
mod watch;
pub mod world;
