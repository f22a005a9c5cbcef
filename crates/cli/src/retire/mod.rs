//! Going back to the ledger's own worker (`docs/decisions/0038-going-back.md`), without what is printed about it, which is
//! `commands::retire`'s.
//!
//! Reading order: `fate` (what becomes of an entry) · `entries` (reading and judging them) · `export` (the file) · `leave` (waiting
//! for the workers) · `plan` (what speaks against it) · `job` (the steps).

mod entries;
mod export;
mod fate;
mod job;
mod leave;
mod plan;

pub(crate) use job::{Ended, Job, Refusal, Report, State, summary};
pub(crate) use plan::{Fates, Objection, Plan};
