//! The simulator: runs from fixed seeds. Its model of Redis is compared with the real scripts in `src/scripts.rs`.
#![allow(missing_docs, clippy::unwrap_used)]

mod entries;
mod hunt;
mod seeds;
