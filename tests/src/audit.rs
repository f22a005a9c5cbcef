//! A record of every update of a tenant's rows, written by PostgreSQL itself.

use anyhow::{Context, Result};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table};
use sqlx::{AssertSqlSafe, PgPool};

/// Everything that happened to a tenant's rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Audit {
    /// Updates of a row.
    pub updates: i64,
    /// Different pairs of row and version among them.
    pub distinct: i64,
    /// Updates that left a row's version as it was, or lowered it (G2).
    pub not_forward: i64,
}

impl Audit {
    /// Records from now on what is done to this tenant's rows.
    ///
    /// # Errors
    /// What PostgreSQL answers.
    pub async fn begin(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<()> {
        let schema = tenant.schema.as_deref().unwrap_or("public");
        let table = balance_table(tenant.schema.as_deref());
        let sql = format!(
            "CREATE TABLE \"{schema}\".audit (id UUID, before BIGINT, after BIGINT);
             CREATE FUNCTION \"{schema}\".record_update() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
             BEGIN
               INSERT INTO \"{schema}\".audit VALUES (NEW.id, OLD.version, NEW.version);
               RETURN NULL;
             END $$;
             CREATE TRIGGER record_update AFTER UPDATE ON {table}
               FOR EACH ROW EXECUTE FUNCTION \"{schema}\".record_update();"
        );
        sandbox.postgres().execute(&tenant.database, &sql).await.context("making an audit of updates")
    }

    /// What has been recorded.
    ///
    /// # Errors
    /// What PostgreSQL answers.
    pub async fn read(pool: &PgPool, tenant: &SandboxTenant) -> Result<Self> {
        let schema = tenant.schema.as_deref().unwrap_or("public");
        let sql = format!(
            "SELECT count(*), count(DISTINCT (id, after)), count(*) FILTER (WHERE after <= before)
             FROM \"{schema}\".audit"
        );
        let (updates, distinct, not_forward) = sqlx::query_as(AssertSqlSafe(sql)).fetch_one(pool).await?;
        Ok(Self { updates, distinct, not_forward })
    }
}
