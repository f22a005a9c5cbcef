//! What stands behind the pipeline's ports: Redis, Postgres and the tenant directory.
//!
//! `redis_queue` and `postgres_sink` (the ports) · `tracker`, `prober` and `standby` (schedules watched for many idle or
//! waiting collectors at once) · `legacy` and `survey` (schedules that tenants seldom have) · `tenant_manager` and `lookup_rate` (each tenant's
//! database) · `comparison` (values against rows) · `failover` (rows that a new server lacks) · `vanish` (data that Redis lost) · `shadow` (what a worker that only looks finds) · `neighbour` (the ledger's own worker) · `observed_directory` (calls to the directory, counted) · `routed_directory` (the tenants of one Redis of several).

pub(crate) mod comparison;
pub(crate) mod failover;
pub(crate) mod legacy;
mod lookup_rate;
pub(crate) mod neighbour;
mod observed_directory;
mod postgres_sink;
mod prober;
mod redis_queue;
mod routed_directory;
pub(crate) mod shadow;
mod standby;
mod survey;
mod tenant_manager;
mod tracker;
pub(crate) mod vanish;

pub use observed_directory::ObservedDirectory;
pub use postgres_sink::PostgresSink;
pub use prober::Prober;
pub use redis_queue::{RedisQueue, Watchers};
pub use routed_directory::RoutedDirectory;
pub use shadow::ShadowOptions;
pub use standby::StandbyWatch;
pub use survey::Surveyor;
pub use tenant_manager::{
    CloseAll, DatabaseView, Doubt, GetDatabaseView, GetPool, GetUsage, GetUsages, Hint, ManagerOptions,
    Refetch, TenantGone, TenantManager, TenantPool,
};
pub use tracker::Tracker;
