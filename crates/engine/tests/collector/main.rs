//! The collector's state machine on virtual time: its rules one by one, and what holds in any sequence of events.
#![allow(clippy::unwrap_used)]

mod properties;
mod rules;
mod world;
