//! A deterministic simulator of whole fleets: several workers with the collectors of `crates/engine`, models of Redis and
//! Postgres, producers, the ledger's own worker, and faults. One thread, virtual time, and one seed that decides everything.
//!
//! [`plan`] (a run: its size and its faults, from a seed) · [`world`] (the event queue and what is in it) · `driver`, `flight`
//! (carry out what collectors command) · `redis`, `postgres`, `ledger` (the models) · `checks` (the guarantees, after every step)
//! · [`bugs`] (rules that can be switched off, to show that the checks notice) · [`search`] (many seeds, shrinking).

pub mod bugs;
mod checks;
mod driver;
mod faults;
mod flight;
mod ledger;
pub mod plan;
mod postgres;
mod redis;
pub mod search;
pub mod world;
