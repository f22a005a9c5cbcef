//! Actors and loops of the fleet: on paused time with Redis and Postgres in memory ([`common`]), and on real servers.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod common;

mod collector_loop;
mod collector_random;
mod failure_table;
mod flush;
mod hints;
mod orders;
mod partition;
mod refusals;
mod rooms;
mod sampler;
mod standby;
mod supervisor_shell;
mod tasks;
mod tenant_manager;
