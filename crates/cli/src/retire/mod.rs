//! Going back to the ledger's own worker (`docs/decisions/0038-going-back.md`), without what is printed about it, which is
//! `commands::retire`'s.
//!
//! Reading order: `fate` (what becomes of an entry) · `entries` (reading and judging them) · `export` (the file) · `leave` (waiting
//! for the workers) · `plan` (what speaks against it) · `report` (what is
//! reported) · `job` (the steps in order) · `stop` · `give_back` · `rest` (the steps).

mod entries;
mod export;
mod fate;
mod give_back;
mod job;
mod leave;
mod plan;
mod report;
mod rest;
mod stop;

pub(crate) use job::{Ended, Job};
pub(crate) use plan::{Fates, Objection, Plan};
pub(crate) use report::{Refusal, Report, State, summary};
