//! A whole ledger in a box: Redis, PostgreSQL, a tenant service, and tenants with their balances.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context, Result, bail};
use futures::{StreamExt, TryStreamExt, stream};
use secrecy::{ExposeSecret, SecretString};
use sqlx::PgPool;
use uuid::Uuid;

use crate::find;
use crate::ledger::{LoadTenant, Producer, SeededBalance, TenantKeys, seed_balances};
use crate::pgbouncer::{PgBouncer, PgBouncerOptions, PoolMode};
use crate::ports::loopback;
use crate::postgres::{PostgresOptions, PostgresServer, quote_name};
use crate::proxy::Proxy;
use crate::redis::{RedisOptions, RedisServer};
use crate::tenancy::{balance_table, operation_table};
use crate::tenant_service::{SERVICE, TenantIsolation, TenantRecord, TenantService};

/// Tenants made at the same time; more only queue inside PostgreSQL.
const MADE_AT_ONCE: usize = 8;
/// More schemas in one database make its catalogue slow.
const SCHEMAS_PER_DATABASE: usize = 500;
/// How many of the last tenants share a database under [`Isolation::Mixed`].
const MIXED_SHARING: usize = 2;
/// Longest tenant id that goes into names as it is: PostgreSQL cuts names at 63 bytes.
const LONGEST_NAME: usize = 48;
/// Sessions that a pooler keeps for each database and role.
const POOL_SIZE: u32 = 20;
/// Name of the worker's configuration file in the sandbox's folder.
const CONFIG_FILE: &str = "balance-sync.toml";

/// How the tenants' data are kept apart.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Isolation {
    /// A database for each.
    Database,
    /// A schema for each, up to 500 in one database.
    Schema,
    /// A database for each, but the last two share one, with a schema for each; and the second tenant's id
    /// is a UUID with dashes.
    #[default]
    Mixed,
}

/// What is in the box. With [`find::POOLER`] in the environment a PgBouncer stands before PostgreSQL in every sandbox.
#[derive(Debug, Clone)]
pub struct SandboxOptions {
    /// Number of tenants, `tenant-0001` and so on. Default 3.
    pub tenants: usize,
    /// Balances of each. Default 100.
    pub balances: usize,
    /// How they are kept apart.
    pub isolation: Isolation,
    /// Put a proxy before Redis and one before PostgreSQL: what the worker is configured with leads through them.
    pub proxied: bool,
    /// Whether workers have the rights of `deploy/redis/users.acl` and `deploy/postgres/grants.sql` alone, instead of those of the
    /// ledger. Default true.
    pub least_privilege: bool,
    /// Where workers' admin interface listens; the default, port 0, is a free port for each.
    pub admin_port: u16,
    /// Whether Redis has the mark that workers leave in it, as one has in which they have run before. Default true.
    pub marked: bool,
    /// `maxOpenConns` that the tenant service gives for each tenant; `None` leaves it out.
    pub max_open_conns: Option<u32>,
    /// `statementTimeout` that the tenant service gives for each tenant; `None` leaves it out.
    pub statement_timeout: Option<String>,
    /// How Redis is configured.
    pub redis: RedisOptions,
    /// How PostgreSQL is configured.
    pub postgres: PostgresOptions,
}

impl Default for SandboxOptions {
    fn default() -> Self {
        Self {
            tenants: 3,
            balances: 100,
            isolation: Isolation::default(),
            proxied: false,
            least_privilege: true,
            admin_port: 0,
            marked: true,
            max_open_conns: None,
            statement_timeout: None,
            redis: RedisOptions::default(),
            postgres: PostgresOptions::default(),
        }
    }
}

/// A tenant of the sandbox.
#[derive(Debug, Clone)]
pub struct SandboxTenant {
    /// Its id.
    pub id: String,
    /// Its database.
    pub database: String,
    /// Its schema, if it shares the database.
    pub schema: Option<String>,
    /// Its role.
    pub role: String,
    /// Its keys in Redis.
    pub keys: TenantKeys,
    /// Its balances; their rows were seeded at [`crate::ledger::SEED_VERSION`].
    pub balances: Arc<[SeededBalance]>,
    database_url: SecretString,
    admin_database_url: SecretString,
}

impl SandboxTenant {
    /// URL of its database for its role, as the worker is configured (so through the proxy, if there is one).
    pub fn database_url(&self) -> &str {
        self.database_url.expose_secret()
    }

    /// URL of its database for the superuser, straight to the server.
    pub fn admin_database_url(&self) -> &str {
        self.admin_database_url.expose_secret()
    }

    /// What a producer needs to know of it.
    pub fn load(&self) -> LoadTenant {
        LoadTenant::seeded(&self.id, self.balances.to_vec())
    }
}

/// A running sandbox. Ends and leaves nothing behind when dropped.
pub struct Sandbox {
    options: SandboxOptions,
    redis_proxy: Option<Proxy>,
    postgres_proxy: Option<Proxy>,
    /// Between the proxy, or the worker, and PostgreSQL.
    pooler: Option<(PoolMode, PgBouncer)>,
    service: TenantService,
    tenants: Mutex<Vec<SandboxTenant>>,
    /// Records of removed tenants, for their return.
    removed: Mutex<Vec<TenantRecord>>,
    config_path: PathBuf,
    // Last, as fields are dropped in order: the servers outlive what talks to them.
    postgres: PostgresServer,
    redis: RedisServer,
}

impl fmt::Debug for Sandbox {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Sandbox")
            .field("redis", &self.redis)
            .field("postgres", &self.postgres)
            .field("service", &self.service)
            .finish_non_exhaustive()
    }
}

/// Where a tenant's data go.
struct Place {
    id: String,
    isolation: TenantIsolation,
    /// Only for [`TenantIsolation::Schema`].
    shared_database: String,
}

impl Sandbox {
    /// Starts everything, and makes the tenants with their rows.
    ///
    /// # Errors
    /// When a server can't be started or a tenant can't be made.
    pub async fn start(mut options: SandboxOptions) -> Result<Self> {
        if options.least_privilege {
            options.redis.worker_password.get_or_insert_with(new_password);
        }
        let (redis, postgres) = tokio::try_join!(
            RedisServer::start(options.redis.clone()),
            PostgresServer::start(options.postgres.clone())
        )?;
        let pooler = match find::pooler()? {
            Some(mode) => {
                // Sessions end soon after their last use: tests look whether the worker left any.
                let options = PgBouncerOptions::new(mode, POOL_SIZE).with("server_idle_timeout", "1");
                Some((mode, PgBouncer::for_all_roles(&postgres, &options).await?))
            }
            None => None,
        };
        if options.marked && !options.redis.cluster {
            redis.mark().await?;
        }
        let service = TenantService::start(Uuid::new_v4().simple().to_string().into())?;
        let (mut redis_proxy, mut postgres_proxy) = (None, None);
        if options.proxied {
            redis_proxy = Some(Proxy::start(loopback(redis.port())).await?);
            let port = pooler.as_ref().map_or(postgres.port(), |(_, pooler)| pooler.port());
            postgres_proxy = Some(Proxy::start(loopback(port)).await?);
        }
        let mut sandbox = Self {
            options,
            redis_proxy,
            postgres_proxy,
            pooler,
            service,
            tenants: Mutex::default(),
            removed: Mutex::default(),
            config_path: PathBuf::new(),
            postgres,
            redis,
        };
        sandbox.config_path = sandbox.redis.write_file(CONFIG_FILE, &sandbox.config_toml())?;
        let made: Vec<SandboxTenant> =
            stream::iter(places(sandbox.options.tenants, sandbox.options.isolation))
                .map(|place| sandbox.make_tenant(place))
                .buffered(MADE_AT_ONCE)
                .try_collect()
                .await?;
        *sandbox.lock_tenants() = made;
        Ok(sandbox)
    }

    /// The tenants, removed ones included, in the order they were made.
    pub fn tenants(&self) -> Vec<SandboxTenant> {
        self.lock_tenants().clone()
    }

    /// The tenant of this id.
    ///
    /// # Errors
    /// When there is none.
    pub fn tenant(&self, id: &str) -> Result<SandboxTenant> {
        let found = self.lock_tenants().iter().find(|tenant| tenant.id == id).cloned();
        found.with_context(|| format!("the sandbox has no tenant {id}"))
    }

    /// Makes one more tenant, with rows, and tells the tenant service. Those with a schema share the
    /// database `shared_added`.
    ///
    /// # Errors
    /// When the id is taken or PostgreSQL refuses.
    pub async fn add_tenant(&self, id: &str, isolation: TenantIsolation) -> Result<SandboxTenant> {
        if self.tenant(id).is_ok() {
            bail!("the sandbox has a tenant {id} already");
        }
        let place = Place { id: id.to_owned(), isolation, shared_database: "shared_added".to_owned() };
        let tenant = self.make_tenant(place).await?;
        self.lock_tenants().push(tenant.clone());
        Ok(tenant)
    }

    /// Makes the tenant service forget a tenant. Its database and its keys stay.
    ///
    /// # Errors
    /// When the service does not know it.
    pub fn remove_tenant(&self, id: &str) -> Result<()> {
        let record = self.service.remove_tenant(id);
        let record = record.with_context(|| format!("the tenant service does not know tenant {id}"))?;
        self.removed.lock().unwrap_or_else(PoisonError::into_inner).push(record);
        Ok(())
    }

    /// Makes a removed tenant known to the tenant service again.
    ///
    /// # Errors
    /// When it was not removed.
    pub fn restore_tenant(&self, id: &str) -> Result<()> {
        let mut removed = self.removed.lock().unwrap_or_else(PoisonError::into_inner);
        let position = removed.iter().position(|record| record.id == id);
        let position = position.with_context(|| format!("tenant {id} was not removed"))?;
        self.service.set_tenant(removed.swap_remove(position));
        Ok(())
    }

    /// Gives a tenant's role a new password, in PostgreSQL and in the tenant service. With `end_sessions` its
    /// connections are ended, so that the old password can't go on by way of them.
    ///
    /// # Errors
    /// When there is no such tenant or PostgreSQL refuses.
    pub async fn rotate_password(&self, id: &str, end_sessions: bool) -> Result<()> {
        let role = self.tenant(id)?.role;
        let password = new_password();
        self.postgres.set_password(&role, &password).await?;
        if let Some(tenant) = self.lock_tenants().iter_mut().find(|tenant| tenant.id == id) {
            tenant.database_url = self.worker_url(&tenant.database, &role, &password);
        }
        self.service.update(id, |record| record.password = password);
        if end_sessions {
            self.postgres.end_sessions(Some(&role)).await?;
        }
        Ok(())
    }

    /// What it was asked for.
    pub fn options(&self) -> &SandboxOptions {
        &self.options
    }

    /// The private Redis.
    pub fn redis(&self) -> &RedisServer {
        &self.redis
    }

    /// The private PostgreSQL.
    pub fn postgres(&self) -> &PostgresServer {
        &self.postgres
    }

    /// The pool mode of the PgBouncer before PostgreSQL, if [`find::POOLER`] asked for one.
    pub fn pool_mode(&self) -> Option<PoolMode> {
        self.pooler.as_ref().map(|(mode, _)| *mode)
    }

    /// The tenant service.
    pub fn service(&self) -> &TenantService {
        &self.service
    }

    /// The proxy before Redis, if the options asked for it.
    pub fn redis_proxy(&self) -> Option<&Proxy> {
        self.redis_proxy.as_ref()
    }

    /// The proxy before PostgreSQL, if the options asked for it.
    pub fn postgres_proxy(&self) -> Option<&Proxy> {
        self.postgres_proxy.as_ref()
    }

    /// URL of Redis for the worker: through the proxy, if there is one.
    pub fn redis_url(&self) -> String {
        self.redis.worker_url_on(self.worker_redis_port())
    }

    /// The same for the ledger.
    pub fn ledger_redis_url(&self) -> String {
        self.redis.url_on(self.worker_redis_port())
    }

    fn worker_redis_port(&self) -> u16 {
        self.redis_proxy.as_ref().map_or(self.redis.port(), |proxy| proxy.addr().port())
    }

    /// A new pool of superuser connections to a tenant's database, straight to the server.
    pub fn pool(&self, tenant: &SandboxTenant) -> PgPool {
        self.postgres.pool(&tenant.database)
    }

    /// A producer for all tenants, straight to Redis: faults of the proxy don't stop it.
    pub fn producer(&self) -> Producer {
        Producer::new(&self.redis.url(), self.tenants().iter().map(SandboxTenant::load).collect())
    }

    /// The configuration of a worker that serves this sandbox: `balance-sync run --config <path>`.
    pub fn config_toml(&self) -> String {
        format!(
            "[redis]\nurl = {}\n\n\
             [tenants]\nsource = \"service\"\npoll_interval = \"1s\"\nevents = false\n\n\
             [tenants.service]\nurl = {}\napi_key = {}\nallow_plain_http = true\nservice = {}\n\n\
             [admin]\nlisten = \"127.0.0.1:{}\"\n",
            toml_text(&self.redis_url()),
            toml_text(&self.service.base_url()),
            toml_text(self.service.api_key().expose_secret()),
            toml_text(SERVICE),
            self.options.admin_port,
        )
    }

    /// The file with [`config_toml`](Self::config_toml); only its owner can read it.
    pub fn config_path(&self) -> &Path {
        &self.config_path
    }

    /// Ends everything and waits for it. The same as dropping it, without blocking the runtime.
    ///
    /// # Errors
    /// When the blocking task can't be run.
    pub async fn stop(self) -> Result<()> {
        tokio::task::spawn_blocking(move || drop(self)).await.context("stopping the sandbox")
    }

    async fn make_tenant(&self, place: Place) -> Result<SandboxTenant> {
        let Place { id, isolation, shared_database } = place;
        let name = name_for(&id);
        let (role, password) = (format!("role_{name}"), new_password());
        let (database, schema) = match isolation {
            TenantIsolation::Database => (format!("ledger_{name}"), None),
            TenantIsolation::Schema => (shared_database, Some(format!("tenant_{name}"))),
        };
        match &schema {
            None => self.postgres.create_tenant_database(&database, &role, &password).await?,
            Some(schema) => self.postgres.create_tenant_schema(&database, schema, &role, &password).await?,
        }
        if !self.options.least_privilege {
            let grant = format!(
                "GRANT SELECT, INSERT, UPDATE ON {}, {} TO {}",
                balance_table(schema.as_deref()),
                operation_table(schema.as_deref()),
                quote_name(&role)
            );
            self.postgres.execute(&database, &grant).await.context("granting a ledger's rights")?;
        }
        let pool = self.postgres.pool(&database);
        let balances = seed_balances(&pool, schema.as_deref(), &id, self.options.balances).await?;
        pool.close().await;
        let tenant = SandboxTenant {
            database_url: self.worker_url(&database, &role, &password),
            admin_database_url: self.postgres.admin_url(&database).into(),
            keys: TenantKeys::tenant(&id),
            balances: balances.into(),
            id,
            database,
            schema,
            role,
        };
        self.service.set_tenant(self.record(&tenant, isolation, password));
        Ok(tenant)
    }

    fn record(
        &self,
        tenant: &SandboxTenant,
        isolation: TenantIsolation,
        password: SecretString,
    ) -> TenantRecord {
        TenantRecord {
            id: tenant.id.clone(),
            name: format!("Tenant {}", tenant.id),
            slug: tenant.id.to_lowercase(),
            isolation,
            host: "127.0.0.1".to_owned(),
            port: self.worker_postgres_port(),
            database: tenant.database.clone(),
            username: tenant.role.clone(),
            password,
            schema: tenant.schema.clone(),
            status: crate::tenant_service::TenantStatus::Active,
            max_open_conns: self.options.max_open_conns,
            statement_timeout: self.options.statement_timeout.clone(),
        }
    }

    fn worker_postgres_port(&self) -> u16 {
        match (&self.postgres_proxy, &self.pooler) {
            (Some(proxy), _) => proxy.addr().port(),
            (None, Some((_, pooler))) => pooler.port(),
            (None, None) => self.postgres.port(),
        }
    }

    fn worker_url(&self, database: &str, role: &str, password: &SecretString) -> SecretString {
        self.postgres.url_on(self.worker_postgres_port(), database, role, password).into()
    }

    fn lock_tenants(&self) -> MutexGuard<'_, Vec<SandboxTenant>> {
        self.tenants.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Who is where.
fn places(count: usize, isolation: Isolation) -> Vec<Place> {
    (0..count)
        .map(|index| {
            let mixed = isolation == Isolation::Mixed;
            let plain = format!("tenant-{:04}", index + 1);
            let dashed_uuid = || Uuid::new_v5(&Uuid::NAMESPACE_OID, plain.as_bytes()).to_string();
            let shares =
                isolation == Isolation::Schema || (mixed && count > 1 && index + MIXED_SHARING >= count);
            Place {
                id: if mixed && index == 1 { dashed_uuid() } else { plain },
                isolation: if shares { TenantIsolation::Schema } else { TenantIsolation::Database },
                shared_database: format!("shared_{:02}", index / SCHEMAS_PER_DATABASE + 1),
            }
        })
        .collect()
}

/// What stands for a tenant's id in the names of its database, schema and role.
fn name_for(id: &str) -> String {
    if id.len() <= LONGEST_NAME {
        // Distinct ids must not become one name: only ids without an underscore are respelled.
        if id.contains('_') { id.to_owned() } else { id.replace('-', "_") }
    } else {
        Uuid::new_v5(&Uuid::NAMESPACE_OID, id.as_bytes()).simple().to_string()
    }
}

fn new_password() -> SecretString {
    Uuid::new_v4().simple().to_string().into()
}

/// A TOML basic string.
fn toml_text(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', "\\\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mixed_places_cover_every_kind() {
        let mixed = places(5, Isolation::Mixed);
        let ids: Vec<&str> = mixed.iter().map(|place| place.id.as_str()).collect();
        assert_eq!((ids[0], ids[2], ids[4]), ("tenant-0001", "tenant-0003", "tenant-0005"));
        assert_eq!(ids[1].len(), 36);
        let schemas: Vec<bool> =
            mixed.iter().map(|place| place.isolation == TenantIsolation::Schema).collect();
        assert_eq!(schemas, [false, false, false, true, true]);
        assert_eq!(mixed[3].shared_database, mixed[4].shared_database);
        assert_eq!(places(1, Isolation::Mixed)[0].isolation, TenantIsolation::Database);
        let many = places(501, Isolation::Schema);
        assert_eq!(many[0].shared_database, many[499].shared_database);
        assert_ne!(many[499].shared_database, many[500].shared_database);
    }
}
