//! Whole-system tests: real worker processes on a real Redis, a real PostgreSQL and a tenant service.
//!
//! Each test has a sandbox of its own, waits for conditions instead of sleeping, and leaves nothing behind. The worker
//! is the built binary (`cargo build --package balance-sync-cli --package balance-sync-lab`, or `BALANCE_SYNC_BIN`).
//!
//! What a worker logs is part of every test: an ERROR line that the test doesn't expect, a tenant's line without the
//! tenant's id, or a secret anywhere fails it.

mod access;
mod api;
mod audit;
mod chart;
mod check;
mod commands;
mod connections;
mod controls;
mod directory;
mod drills;
mod environment;
mod exact;
mod facts;
mod fleet;
mod formats;
mod forms;
mod handover;
mod health;
mod hostile;
mod hostile_servers;
mod isolation;
mod lifecycle;
mod lock_mode;
mod locks;
mod log;
mod memory;
mod names;
mod neighbour;
mod newer;
mod notify;
mod openapi;
mod outage;
mod pooler;
mod pushes;
mod queues;
mod recover;
mod recoveries;
mod report;
mod retire;
mod rights;
mod roles;
mod rollout;
mod rotation;
mod screens;
mod sentinel;
mod service;
mod sessions;
mod shadow;
mod shutdown;
mod terminal;
mod timeline;
mod traces;
mod triggers;
mod values;
mod versions;
mod wakes;
mod why;
mod wrong_database;
