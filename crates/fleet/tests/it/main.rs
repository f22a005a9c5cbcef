//! Actors and loops of the fleet: on paused time with Redis and Postgres in memory ([`common`]), and on real servers.
#![allow(clippy::unwrap_used)]

mod common;

mod architecture;
mod collector_loop;
mod collector_random;
mod failure_table;
mod flush;
mod hints;
mod partition;
mod refusals;
mod requests;
mod rooms;
mod spawns;
mod standby;
mod supervisor_shell;
mod tenant_manager;
