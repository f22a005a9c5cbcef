//! The operators' side of a worker, on real servers.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

mod queues;
mod sampler;
mod tasks;
