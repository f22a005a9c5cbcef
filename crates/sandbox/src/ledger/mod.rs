//! The ledger, as far as a worker sees it: rows in PostgreSQL, mutations in Redis.
//!
//! Everything follows from a tenant's id, a balance's number and a version: another process can
//! recompute which balances there are and what each version of each must hold, without asking.

mod amounts;
mod balances;
mod formats;
mod operations;
mod own_worker;
mod producer;
mod rows;
mod script;

pub use amounts::{Amounts, amounts_of};
pub use balances::{SEED_VERSION, SeededBalance, TenantKeys, describe_balances};
pub use formats::Format;
pub use operations::{write_operations, write_repayments};
pub use own_worker::{LedgerWorker, Round};
pub use producer::{LoadOptions, LoadReport, LoadTenant, Producer, Progress, TenantProgress};
pub use rows::{StoredBalance, seed_balances, stored_balances};
pub use script::{DEFAULT_TTL, Mutation, Written, put_raw, write_mutations};
