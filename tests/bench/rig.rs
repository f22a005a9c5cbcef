//! The servers of a case, and what brings them back to the same state before each measurement.

use anyhow::{Context, Result, ensure};
use balance_sync_domain::TlsMode;
use balance_sync_sandbox::ledger::Producer;
use balance_sync_sandbox::{
    Isolation, PostgresOptions, Sandbox, SandboxOptions, SandboxTenant, balance_table,
};
use balance_sync_store::DatabaseSpec;
use redis::aio::MultiplexedConnection;
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, PgPool};

use crate::meter::Meter;

/// What is set in Postgres beside its defaults and `fsync = on`.
///
/// Neither autovacuum nor a checkpoint may fall into one measurement and not into the next: both are done before each
/// one. Commit times tell when a row was written.
pub(crate) fn postgres_settings() -> Vec<(String, String)> {
    [
        ("autovacuum", "off"),
        ("max_wal_size", "8GB"),
        ("checkpoint_timeout", "1h"),
        ("track_commit_timestamp", "on"),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec()
}

/// A sandbox with everything that its case needs.
pub(crate) struct Rig {
    pub(crate) sandbox: Sandbox,
    pub(crate) redis: MultiplexedConnection,
    /// A connection to the server, for questions about it.
    pub(crate) admin: PgPool,
}

impl Rig {
    /// Starts servers with this many tenants with this many balances each, each in its own database.
    pub(crate) async fn start(tenants: usize, balances: usize) -> Result<Self> {
        Self::isolated(tenants, balances, Isolation::Database).await
    }

    /// The same, with the tenants kept apart in another way.
    pub(crate) async fn isolated(tenants: usize, balances: usize, isolation: Isolation) -> Result<Self> {
        let sandbox = Sandbox::start(SandboxOptions {
            tenants,
            balances,
            isolation,
            least_privilege: false,
            postgres: PostgresOptions { max_connections: 400, fsync: true, extra: postgres_settings() },
            ..SandboxOptions::default()
        })
        .await?;
        let redis = sandbox.redis().connect().await?;
        let admin = sandbox.postgres().pool("postgres");
        Ok(Self { sandbox, redis, admin })
    }

    /// Schedule keys of all tenants.
    pub(crate) fn schedules(&self) -> Vec<String> {
        self.sandbox.tenants().iter().map(|tenant| tenant.keys.schedule()).collect()
    }

    /// A meter for these workers and the servers.
    pub(crate) fn meter(&self, workers: Vec<u32>) -> Result<Meter> {
        Ok(Meter {
            workers,
            postgres: self.sandbox.postgres().pid().context("postgres has ended")?,
            redis: self.sandbox.redis().pid().context("redis has ended")?,
        })
    }

    /// Checks that every row is at the producer's version, cleans up the dead rows, and writes everything to disk: what
    /// follows begins like what went before.
    pub(crate) async fn settle(&self, producer: &Producer) -> Result<()> {
        for load in producer.tenants() {
            let tenant = self.sandbox.tenant(&load.id)?;
            let table = balance_table(tenant.schema.as_deref());
            let pool = self.sandbox.pool(&tenant);
            let sum: Option<i64> =
                sqlx::query_scalar(AssertSqlSafe(format!("SELECT sum(version)::bigint FROM {table}")))
                    .fetch_one(&pool)
                    .await?;
            sqlx::raw_sql(AssertSqlSafe(format!("VACUUM ANALYZE {table}"))).execute(&pool).await?;
            pool.close().await;
            let expected: i64 = load.versions.iter().sum();
            ensure!(
                sum == Some(expected),
                "tenant {}: the versions of its rows add up to {sum:?}, not to {expected}: something was not written",
                load.id
            );
        }
        sqlx::raw_sql("CHECKPOINT").execute(&self.admin).await?;
        Ok(())
    }

    /// Connections of workers to Postgres.
    pub(crate) async fn connections(&self) -> Result<f64> {
        let count: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE application_name LIKE 'balance-sync%'",
        )
        .fetch_one(&self.admin)
        .await?;
        Ok(count as f64)
    }

    /// Sessions that Postgres has begun so far, whoever opened them. It counts one a second late at most.
    pub(crate) async fn sessions(&self) -> Result<f64> {
        let count: i64 = sqlx::query_scalar("SELECT sum(sessions)::bigint FROM pg_stat_database")
            .fetch_one(&self.admin)
            .await?;
        Ok(count as f64)
    }

    /// Commands that Redis has processed so far, those within scripts included.
    pub(crate) async fn commands(&self) -> Result<f64> {
        let mut redis = self.redis.clone();
        let info: redis::InfoDict = redis::cmd("INFO").arg("stats").query_async(&mut redis).await?;
        info.get::<f64>("total_commands_processed").context("INFO has no total_commands_processed")
    }

    /// Ends the servers.
    pub(crate) async fn stop(self) -> Result<()> {
        self.admin.close().await;
        self.sandbox.stop().await
    }
}

/// How the role of a tenant reaches its database.
pub(crate) fn spec(tenant: &SandboxTenant) -> Result<DatabaseSpec> {
    let url = url::Url::parse(tenant.database_url())?;
    let port = url.port().context("a database URL without a port")?;
    let password = SecretString::from(url.password().unwrap_or_default().to_owned());
    let (database, role) = (tenant.database.as_str(), tenant.role.as_str());
    let spec = DatabaseSpec::new("127.0.0.1", port, database, role, password);
    Ok(DatabaseSpec { tls: TlsMode::Disable, ..spec })
}
