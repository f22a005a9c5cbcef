//! Signed statements of what the rows of a tenant are.
//!
//! Reading order: `digest` (rows to one hash, and to groups that narrow a difference) · `statement` (what is signed, and its file) ·
//! `key` (the keys) · `source` (the rows of a database). The format is documented in `docs/handover.md`.

mod digest;
mod key;
mod source;
mod statement;

pub(crate) use digest::{Changes, Digest, Digester};
pub(crate) use key::{PublicKey, SigningKey, keygen};
pub(crate) use source::Source;
pub(crate) use statement::{FORMAT, Found, Listed, Statement};
