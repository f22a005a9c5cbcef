//! Postgres: where the balances of a tenant end.
//!
//! One [`Database`] stands for one database of one tenant, or of several tenants that keep their schemas in it.
//! It writes balances in batches, tells what became of each of them ([`Outcome`]), and sorts what goes wrong into
//! few classes ([`ErrorClass`]) so that the caller needs no knowledge of SQLSTATEs. All databases of one worker share
//! a [`ConnectionBudget`], which bounds the connections that are open on each server.
//!
//! Nothing here creates or alters anything: the schema belongs to the ledger.

mod audit;
mod backup_quarantine;
mod budget;
mod classify;
mod connect;
mod database;
mod evidence;
mod examine;
mod facts;
mod files;
mod grants;
mod homes;
mod identifier;
mod known;
mod lately;
mod limits;
mod locks;
mod lookup;
mod mode;
mod names;
mod origin;
mod relay;
mod row;
mod scram;
mod session;
mod spec;
mod sql;
mod trail;
mod update;
mod verify;
mod writable;

pub use audit::{AuditAccess, AuditPage, AuditRow, FURTHER, NewestOperation};
pub use backup_quarantine::BackupQuarantine;
pub use budget::{Chore, ConnectionBudget, FleetDemand, FleetLimit, FleetUsage, ServerUsage};
pub use classify::{ErrorClass, StoreError, class_of_sqlstate};
pub use database::{Database, PoolUsage};
pub use facts::Facts;
pub use identifier::{InvalidIdentifier, MAX_IDENTIFIER_BYTES, Table};
pub use lately::{Behind, BehindPage};
pub use lookup::{FoundRow, Sought};
pub use mode::ConnectionMode;
pub use origin::Origin;
pub use row::{Outcome, Row, RowResult};
pub use session::Session;
pub use spec::{DatabaseSpec, PoolKey};
pub use trail::{Doubled, DoubledPage, Fate, LOOK_LIMIT, LastKnown, NO_ROW, Named, Side};
pub use update::CHUNK_ROWS;
pub use verify::{StoredRow, StoredVersion};
pub use writable::Fates;
