//! The store against a real Postgres. One server for all tests of a process; each test has databases of its own.
#![allow(clippy::unwrap_used)]

mod backup_quarantine;
mod budget;
mod failures;
mod hostile;
mod isolation;
mod known;
mod locks;
mod modes;
mod moved;
mod pooler;
mod refusals;
mod support;
mod tls;
mod trail;
mod update;
mod weights;
