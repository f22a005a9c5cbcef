//! What a balance, its key and its value are, and nothing about where they are kept.
//!
//! Everything that the ledger's producer writes is read here, once, and turned into types that can't be
//! wrong: a tenant id that can't escape its key prefix ([`TenantId`], [`KeySpace`]), a schedule member taken
//! apart ([`BalanceRef`]), an amount kept digit for digit ([`Amount`]), the value of a balance
//! ([`BalanceValue`]), and the choice of the newest version of each balance ([`aggregate()`]).
//!
//! There is no I/O, no clock and no async in this crate, so each rule can be tested by itself. Reading a value
//! and its member is the hottest loop of a worker; both borrow from the input as far as they can.

mod address;
mod aggregate;
mod amount;
mod escape;
mod excerpt;
mod keys;
mod member;
mod name;
mod quarantine;
pub mod queue;
mod tenant;
mod tls;
mod value;

pub use address::link_local;
pub use aggregate::{Aggregation, Candidate, aggregate};
pub use amount::{Amount, AmountError, MAX_FRACTION_DIGITS, MAX_INTEGER_DIGITS};
pub use escape::{printable, printable_bytes};
pub use excerpt::without_numbers;
pub use keys::KeySpace;
pub use member::{BalanceRef, DEFAULT_KEY, MemberError};
pub use name::{Named, Reported};
pub use quarantine::QuarantineReason;
pub use queue::LedgerQueue;
pub use tenant::{InvalidTenantId, MAX_TENANT_ID_LEN, TenantId};
pub use tls::{TlsMode, UnknownTlsMode};
pub use value::{BalanceValue, ValueError, effective_key};

/// The UUID type of organizations, ledgers and balances, re-exported so that callers agree on its version.
pub use uuid::Uuid;
