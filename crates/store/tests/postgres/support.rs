//! A server, tenants on it, and rows in their tables.

use balance_sync_domain::TlsMode;
use std::time::Duration;

use balance_sync_sandbox::pgbouncer::can_rename_statements;
use balance_sync_sandbox::postgres::quote_name;
use balance_sync_sandbox::{PgBouncerOptions, PostgresOptions, PostgresServer};
use balance_sync_store::{ConnectionBudget, Database, DatabaseSpec, Row};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, Row as _};
use tokio::sync::OnceCell;
use uuid::Uuid;

/// More than any wait in a test that goes well.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
pub(crate) const ORGANIZATION: Uuid = Uuid::from_u128(0x0190_b5f2_7c1a_7e3b_9d4f_2a6c_8e1b_3d50);
pub(crate) const LEDGER: Uuid = Uuid::from_u128(0x0190_b5f3_11aa_7c02_8f2e_5b7d_9c0a_4e61);
/// Recognisable wherever it must not appear.
pub(crate) const PASSWORD: &str = "correct-horse-battery";

static SERVER: OnceCell<PostgresServer> = OnceCell::const_new();

/// The server all tests of this process share.
pub(crate) async fn server() -> &'static PostgresServer {
    SERVER
        .get_or_init(|| async {
            // Many roles with `NOSUPERUSER` limits are made on it; 200 connections are enough for all tests at once.
            PostgresServer::start(PostgresOptions::default()).await.unwrap()
        })
        .await
}

/// A tenant with a database of its own, named as its role.
pub(crate) struct Tenant {
    pub server: &'static PostgresServer,
    pub name: String,
}

impl Tenant {
    pub(crate) async fn new(name: &str) -> Tenant {
        let server = server().await;
        server.create_tenant_database(name, name, &SecretString::from(PASSWORD)).await.unwrap();
        Tenant { server, name: name.to_owned() }
    }

    pub(crate) fn spec(&self) -> DatabaseSpec {
        spec(self.server.port(), &self.name)
    }

    pub(crate) fn database(&self) -> Database {
        open(self.spec())
    }

    /// SQL as the superuser in this tenant's database.
    pub(crate) async fn sql(&self, sql: &str) {
        self.server.execute(&self.name, sql).await.unwrap();
    }

    /// Balances `1..=count` with version 1.
    pub(crate) async fn seed(&self, count: u32) {
        self.seed_into("balance", count).await;
    }

    pub(crate) async fn seed_into(&self, table: &str, count: u32) {
        self.sql(&format!(
            "INSERT INTO {table} (id, organization_id, ledger_id, account_id, alias, asset_code, available, version) \
             SELECT lpad(to_hex(i), 32, '0')::uuid, '{ORGANIZATION}', '{LEDGER}', gen_random_uuid(), '@a' || i, 'BRL', 1, 1 \
             FROM generate_series(1, {count}) AS i"
        ))
        .await;
    }

    /// One value, as text, as the superuser.
    pub(crate) async fn value(&self, sql: &str) -> String {
        let mut connection = self.server.connect(&self.name).await.unwrap();
        let row = sqlx::query(AssertSqlSafe(format!("SELECT ({sql})::text")))
            .fetch_one(&mut connection)
            .await
            .unwrap();
        row.get::<Option<String>, _>(0).unwrap_or_else(|| "NULL".to_owned())
    }

    /// `available` and version of a balance, as Postgres writes them.
    pub(crate) async fn stored(&self, number: u32) -> String {
        self.value(&format!("SELECT available || ' v' || version FROM balance WHERE id = '{}'", id(number)))
            .await
    }

    /// Client connections the server has for this tenant.
    pub(crate) async fn backends(&self) -> i64 {
        let sql = format!("SELECT count(*) FROM pg_stat_activity WHERE usename = '{}'", self.name);
        self.value(&sql).await.parse().unwrap()
    }

    pub(crate) fn quoted_name(&self) -> String {
        quote_name(&self.name)
    }
}

pub(crate) fn spec(port: u16, name: &str) -> DatabaseSpec {
    DatabaseSpec {
        tls: TlsMode::Disable,
        // The machine may be busy; what is being tested has its own, shorter limits.
        connect_timeout: PATIENCE,
        acquire_timeout: PATIENCE,
        lock_wait: PATIENCE,
        ..DatabaseSpec::new("127.0.0.1", port, name, name, SecretString::from(PASSWORD))
    }
}

pub(crate) fn open(spec: DatabaseSpec) -> Database {
    Database::open(spec, ConnectionBudget::new(20)).unwrap()
}

pub(crate) fn id(number: u32) -> Uuid {
    Uuid::from_u128(u128::from(number))
}

/// Balance `number` with `available` 10 and this version.
pub(crate) fn row(number: u32, version: i64) -> Row<'static> {
    Row {
        id: id(number),
        organization: ORGANIZATION,
        ledger: LEDGER,
        available: "10",
        on_hold: "0",
        overdraft_used: "0",
        version,
    }
}

/// These options; where the pooler can rename prepared statements, once without and once with it.
pub(crate) fn renaming(options: &PgBouncerOptions) -> Vec<PgBouncerOptions> {
    if can_rename_statements().unwrap() {
        ["0", "100"].map(|most| options.clone().with("max_prepared_statements", most)).to_vec()
    } else {
        vec![options.clone()]
    }
}
