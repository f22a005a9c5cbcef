//! Which tenants there are, and where each one's balances are written.
//!
//! - [`directory`]: the trait the rest of the system asks, its answers and its errors.
//! - [`service`]: the directory behind the tenant service (HTTP), with [`settings`] for how it is reached,
//!   [`wire`] for its JSON, `transport` for one request, `balance_sync_engine::breaker` for when the service is ill.
//! - [`static_directory`]: the directory of a configuration file, and of single-tenant mode.
//! - [`tenant`] and [`database`]: the types these speak in; [`config`]: databases as a configuration file
//!   gives them.
//!
//! One rule stands behind all of it: what the service says about *itself* (an error, a timeout, a broken
//! body, an answer that came from some proxy) never counts as news about *tenants*.

pub mod config;
pub mod database;
pub mod directory;
pub mod service;
pub mod settings;
pub mod static_directory;
pub mod tenant;
mod transport;
pub mod wire;

pub use balance_sync_engine::breaker::BreakerState;
pub use config::{DatabaseConfig, StaticTenantConfig};
pub use database::{
    ConnectionSettings, InvalidDatabase, Isolation, TenantDatabase, host_fault, parse_statement_timeout,
};
pub use directory::{BoxFuture, DirectoryError, ListedTenant, Listing, RefusedTenant, TenantDirectory};
pub use service::{ServiceDirectory, ServiceStats};
pub use settings::{ServiceSettings, SettingsError};
pub use static_directory::{DuplicateTenant, StaticDirectory, StaticTenant};
pub use tenant::{KeyForm, Tenant, UnknownKeyForm, other_key_space};

/// The guard between "the list says" and "we stop a tenant".
pub type Membership = balance_sync_engine::membership::Membership<Tenant>;
