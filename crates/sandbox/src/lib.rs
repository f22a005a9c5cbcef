//! Private servers for the demonstration, for tests and for benchmarks: real Redis and PostgreSQL
//! processes, a tenant service, a producer that writes as the ledger does, and a proxy that injects
//! faults.
//!
//! Whatever is started here ends with the process that started it, even if that is killed, and
//! leaves no file behind (see the module `guard`). Nothing here prints.
//!
//! The spelling of keys and values is written down here a second time, on purpose, from the
//! protocol: tests that took it from the code under test would agree with its mistakes.

mod clock;
mod drill;
pub mod find;
pub mod fleet;
mod guard;
mod hostile;
pub mod ledger;
mod names;
pub mod pgbouncer;
mod ports;
pub mod postgres;
mod processes;
mod program;
pub mod proxy;
pub mod redis;
mod tenancy;
pub mod tenant_service;
mod tls;
pub mod wait;

pub use drill::Breakage;
pub use fleet::{Isolation, Sandbox, SandboxOptions, SandboxTenant};
pub use hostile::{HostilePostgres, PostgresAttack};
pub use names::HostNames;
pub use pgbouncer::{PgBouncer, PgBouncerOptions, PoolMode};
pub use ports::free_port;
pub use postgres::{PostgresOptions, PostgresServer};
pub use processes::is_alive;
pub use program::Program;
pub use proxy::{Fault, Proxy};
pub use redis::{READER_USER, RedisOptions, RedisServer, SHADOW_USER, WORKER_USER};
pub use tenancy::{balance_table, balance_table_sql, grants_sql, operation_table, operation_table_sql};
pub use tenant_service::{
    ServiceFault, ServiceRoute, TenantIsolation, TenantRecord, TenantService, TenantStatus,
};
pub use tls::TlsAuthority;
pub use wait::eventually;
