//! The ledger's side of PostgreSQL: the tables `balance` and `operation`, tenants' databases, schemas and roles.
//!
//! A tenant's role is the worker's: it has the rights of `deploy/postgres/grants.sql` in its own database or schema, and
//! can't even connect to another tenant's database.

use anyhow::{Context, Result};
use secrecy::{ExposeSecret, SecretString};

use crate::postgres::{PostgresServer, quote_name, quote_text};

/// The database that tenants' databases are copied from.
const TEMPLATE: &str = "balance_sync_template";
/// The role through which tenants with a database of their own get at its table. Granting it once in
/// the template saves a connection to each tenant's database.
const TENANTS_ROLE: &str = "balance_sync_tenants";

/// What operators run to give a worker's role its rights.
const GRANTS: &str = include_str!("../../../deploy/postgres/grants.sql");

/// The table and its indexes, as the ledger's migrations leave them; `{table}` is its qualified name.
const BALANCE_TABLE: &str = "
CREATE TABLE {table} (
    id UUID PRIMARY KEY,
    organization_id UUID,
    ledger_id UUID,
    account_id UUID,
    alias TEXT,
    key TEXT DEFAULT 'default',
    asset_code TEXT,
    available DECIMAL DEFAULT 0,
    on_hold DECIMAL DEFAULT 0,
    version BIGINT DEFAULT 0,
    account_type TEXT,
    allow_sending BOOLEAN,
    allow_receiving BOOLEAN,
    created_at TIMESTAMPTZ,
    updated_at TIMESTAMPTZ DEFAULT now(),
    deleted_at TIMESTAMPTZ,
    direction VARCHAR(16) DEFAULT 'credit' CHECK (direction IN ('credit', 'debit')),
    overdraft_used DECIMAL DEFAULT 0 CHECK (overdraft_used >= 0),
    settings JSONB
);
CREATE INDEX ON {table} (organization_id, ledger_id, account_id, deleted_at, created_at);
CREATE INDEX ON {table} (organization_id, ledger_id, alias, key) WHERE deleted_at IS NULL;
CREATE UNIQUE INDEX ON {table} (organization_id, ledger_id, account_id, asset_code, key)
    WHERE deleted_at IS NULL;
";

/// The trail of operations, as far as others than the ledger know it, with the index of ledgers from 4.1 on; `{table}` is
/// its qualified name.
const OPERATION_TABLE: &str = "
CREATE TABLE {table} (
    id UUID PRIMARY KEY DEFAULT gen_random_uuid(),
    balance_id UUID,
    account_id UUID,
    organization_id UUID,
    ledger_id UUID,
    asset_code TEXT,
    balance_key TEXT DEFAULT 'default',
    available_balance_after DECIMAL,
    on_hold_balance_after DECIMAL,
    balance_version_before BIGINT,
    balance_version_after BIGINT,
    snapshot JSONB NOT NULL DEFAULT '{}',
    balance_affected BOOLEAN NOT NULL DEFAULT true,
    created_at TIMESTAMPTZ NOT NULL DEFAULT now(),
    recorded_at TIMESTAMPTZ,
    deleted_at TIMESTAMPTZ
);
CREATE INDEX ON {table} (organization_id, ledger_id, account_id, balance_id,
    COALESCE(recorded_at, created_at) DESC, balance_version_after DESC) WHERE deleted_at IS NULL;
";

/// The statements that create the `balance` table and its three indexes, in this schema or in `public`.
pub fn balance_table_sql(schema: Option<&str>) -> String {
    BALANCE_TABLE.replace("{table}", &balance_table(schema))
}

/// The quoted name of the `balance` table of this schema, or of `public`.
pub fn balance_table(schema: Option<&str>) -> String {
    format!("{}.balance", quote_name(schema.unwrap_or("public")))
}

/// The statements that create the `operation` table and its index, in this schema or in `public`.
pub fn operation_table_sql(schema: Option<&str>) -> String {
    OPERATION_TABLE.replace("{table}", &operation_table(schema))
}

/// The quoted name of the `operation` table of this schema, or of `public`.
pub fn operation_table(schema: Option<&str>) -> String {
    format!("{}.operation", quote_name(schema.unwrap_or("public")))
}

/// The statements that give a role what a worker needs, in this schema (or `public`) of this database.
pub fn grants_sql(database: &str, schema: Option<&str>, role: &str) -> String {
    // As psql puts its variables in.
    GRANTS
        .replace(":\"DBNAME\"", &quote_name(database))
        .replace(":\"schema\"", &quote_name(schema.unwrap_or("public")))
        .replace(":\"role\"", &quote_name(role))
}

impl PostgresServer {
    /// Creates the template database with the tables. Done once; further calls do nothing.
    ///
    /// # Errors
    /// What PostgreSQL answers.
    pub async fn create_template(&self) -> Result<()> {
        self.template.get_or_try_init(|| self.make_template()).await.copied()
    }

    /// Creates a tenant's own database with the `balance` table, and the tenant's role, which is the only
    /// one that may connect to it.
    ///
    /// # Errors
    /// What PostgreSQL answers, e.g. that the database exists.
    pub async fn create_tenant_database(
        &self,
        name: &str,
        role: &str,
        password: &SecretString,
    ) -> Result<()> {
        self.create_template().await?;
        self.create_role(role, password).await?;
        let (database, quoted_role) = (quote_name(name), quote_name(role));
        self.execute("postgres", &format!("CREATE DATABASE {database} TEMPLATE {TEMPLATE}"))
            .await
            .with_context(|| format!("creating database {name}"))?;
        let _alone = self.grants.lock().await;
        self.execute(
            "postgres",
            &format!(
                "REVOKE ALL ON DATABASE {database} FROM PUBLIC;
                 GRANT CONNECT ON DATABASE {database} TO {quoted_role};
                 GRANT {TENANTS_ROLE} TO {quoted_role};"
            ),
        )
        .await
        .with_context(|| format!("granting database {name} to its tenant"))
    }

    /// Creates a tenant's schema in a database shared with others (created if it is not there), with the
    /// `balance` table, and the tenant's role, which can use this schema only.
    ///
    /// # Errors
    /// What PostgreSQL answers, e.g. that the schema exists.
    pub async fn create_tenant_schema(
        &self,
        database: &str,
        schema: &str,
        role: &str,
        password: &SecretString,
    ) -> Result<()> {
        self.create_role(role, password).await?;
        let quoted_schema = quote_name(schema);
        {
            let _alone = self.grants.lock().await;
            if !self.has_database(database).await? {
                self.create_database(database).await?;
            }
        }
        let sql = format!(
            "CREATE SCHEMA {quoted_schema};
             {}
             {}",
            balance_table_sql(Some(schema)),
            operation_table_sql(Some(schema)),
        );
        self.execute(database, &sql)
            .await
            .with_context(|| format!("creating schema {schema} in {database}"))?;
        let _alone = self.grants.lock().await;
        self.execute(database, &grants_sql(database, Some(schema), role))
            .await
            .with_context(|| format!("granting schema {schema} to its tenant"))
    }

    /// Gives a role another password, as a rotation of credentials does. Open connections stay.
    ///
    /// # Errors
    /// What PostgreSQL answers, e.g. that there is no such role.
    pub async fn set_password(&self, role: &str, password: &SecretString) -> Result<()> {
        let sql =
            format!("ALTER ROLE {} PASSWORD {}", quote_name(role), quote_text(password.expose_secret()));
        self.execute("postgres", &sql).await.with_context(|| format!("changing the password of role {role}"))
    }

    /// Ends all sessions of a role (of all roles but the superuser's own if `None`); returns how many.
    ///
    /// # Errors
    /// What PostgreSQL answers.
    pub async fn end_sessions(&self, role: Option<&str>) -> Result<i64> {
        let mut connection = self.connect("postgres").await?;
        let ended = sqlx::query_scalar(
            "SELECT count(*) FILTER (WHERE pg_terminate_backend(pid)) FROM pg_stat_activity
             WHERE backend_type = 'client backend' AND CASE WHEN $1::text IS NULL THEN usename <> $2 ELSE usename = $1 END",
        )
        .bind(role)
        .bind(self.superuser())
        .fetch_one(&mut connection)
        .await?;
        Ok(ended)
    }

    async fn has_database(&self, name: &str) -> Result<bool> {
        let mut connection = self.connect("postgres").await?;
        Ok(sqlx::query_scalar("SELECT EXISTS (SELECT FROM pg_database WHERE datname = $1)")
            .bind(name)
            .fetch_one(&mut connection)
            .await?)
    }

    async fn make_template(&self) -> Result<()> {
        self.execute("postgres", &format!("CREATE ROLE {TENANTS_ROLE} NOLOGIN")).await?;
        self.create_database(TEMPLATE).await?;
        let sql = format!(
            "{}
             {}
             {}",
            balance_table_sql(None),
            operation_table_sql(None),
            grants_sql(TEMPLATE, None, TENANTS_ROLE)
        );
        self.execute(TEMPLATE, &sql).await.context("creating the tables")?;
        // A database that anybody is connected to can't be copied, autovacuum included.
        self.execute(
            "postgres",
            &format!("ALTER DATABASE {TEMPLATE} WITH IS_TEMPLATE true ALLOW_CONNECTIONS false"),
        )
        .await
    }
}
