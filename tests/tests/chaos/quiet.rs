//! A quiet tenant amid the chaos: one mutation at a time, in a database on a server of its own, which no fault touches.
//!
//! It must not feel what befalls the others (G7). A fault *concerns* it when it hits what it shares with them: Redis, the
//! workers, the list of tenants. Everything that happens to the Postgres of the others, their passwords, their poison, their
//! removal, and to the scripts, does not.

use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{
    DEFAULT_TTL, Format, Mutation, SEED_VERSION, SeededBalance, TenantKeys, Written,
};
use balance_sync_sandbox::ledger::{seed_balances, write_mutations};
use balance_sync_sandbox::{PostgresOptions, PostgresServer, Sandbox, balance_table};
use balance_sync_sandbox::{TenantIsolation, TenantRecord, TenantStatus};
use sqlx::{AssertSqlSafe, PgPool};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

const ID: &str = "quiet";
/// Between the arrival of one mutation and the next one.
const PAUSE: Duration = Duration::from_millis(150);
/// Between two looks at the row.
const LOOK: Duration = Duration::from_millis(10);
/// A mutation counts as undisturbed when the last fault that concerns its tenant had ended this long before it.
const SINCE: Duration = Duration::from_millis(1500);
/// Undisturbed, it must arrive within the longest wait of an idle tenant (1 s), with room for a busy machine.
const UNDISTURBED: Duration = Duration::from_secs(6);
/// Otherwise within the claim TTL (4 s) and 2 s from the end of the last fault that concerned it, with more room: what comes back is busy by itself.
const DISTURBED: Duration = Duration::from_secs(16);

/// Beginning and end of a fault; without an end it is still in force.
type Spell = (Instant, Option<Instant>);

/// When faults that concern the quiet tenant began and ended.
#[derive(Debug, Clone, Default)]
pub(crate) struct Concerns(Arc<Mutex<Vec<Spell>>>);

impl Concerns {
    pub(crate) fn begin(&self) {
        self.lock().push((Instant::now(), None));
    }

    pub(crate) fn end(&self) {
        if let Some((_, end)) = self.lock().last_mut() {
            *end = Some(Instant::now());
        }
    }

    /// The end of the last fault that was in force between these moments; `None` = there was none.
    fn last_between(&self, from: Instant, to: Instant) -> Option<Instant> {
        let faults = self.lock();
        let within = faults.iter().filter(|(begin, end)| *begin <= to && end.is_none_or(|end| end >= from));
        within.map(|(_, end)| end.unwrap_or(to).min(to)).max()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<Spell>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// How long its mutations took.
#[derive(Debug, Default)]
pub(crate) struct Served {
    pub undisturbed: u64,
    pub undisturbed_worst: Duration,
    pub disturbed: u64,
    /// From the end of the last fault.
    pub disturbed_worst: Duration,
}

/// The tenant, and who mutates it.
pub(crate) struct Quiet {
    task: JoinHandle<Result<Served>>,
    cancel: CancellationToken,
    _postgres: PostgresServer,
}

impl Quiet {
    pub(crate) async fn start(sandbox: Arc<Sandbox>, concerns: Concerns) -> Result<Self> {
        let postgres = PostgresServer::start(PostgresOptions::default()).await?;
        let password = Uuid::new_v4().simple().to_string().into();
        let (database, role) = (format!("ledger_{ID}"), format!("role_{ID}"));
        postgres.create_tenant_database(&database, &role, &password).await?;
        let pool = postgres.pool(&database);
        let balance = seed_balances(&pool, None, ID, 1).await?.remove(0);
        sandbox.service().set_tenant(TenantRecord {
            id: ID.to_owned(),
            name: "Quiet".to_owned(),
            slug: ID.to_owned(),
            isolation: TenantIsolation::Database,
            host: "127.0.0.1".to_owned(),
            port: postgres.port(),
            database,
            username: role,
            password,
            schema: None,
            status: TenantStatus::Active,
            max_open_conns: None,
            statement_timeout: None,
        });
        let cancel = CancellationToken::new();
        let task = tokio::spawn(serve(sandbox, pool, balance, concerns, cancel.clone()));
        Ok(Self { task, cancel, _postgres: postgres })
    }

    /// The key of its schedule.
    pub(crate) fn schedule() -> String {
        TenantKeys::tenant(ID).schedule()
    }

    /// Ends it with the mutation that is on its way.
    ///
    /// # Errors
    /// When one was late.
    pub(crate) async fn stop(self) -> Result<Served> {
        self.cancel.cancel();
        self.task.await?
    }
}

async fn serve(
    sandbox: Arc<Sandbox>,
    pool: PgPool,
    balance: SeededBalance,
    concerns: Concerns,
    cancel: CancellationToken,
) -> Result<Served> {
    let keys = TenantKeys::tenant(ID);
    let mut served = Served::default();
    let mut version = SEED_VERSION;
    let mut first = true;
    while !cancel.is_cancelled() {
        version += 1;
        write(&sandbox, &keys, &balance, version).await;
        let written = Instant::now();
        let late = |concerned: Option<Instant>| match concerned {
            Some(end) => (end.max(written), DISTURBED),
            None => (written, UNDISTURBED),
        };
        while row(&pool, &balance).await? < version {
            let now = Instant::now();
            let (since, bound) = late(concerns.last_between(written - SINCE, now));
            // Beyond any bound: what is judged is below.
            ensure!(
                first || now - since < 4 * bound,
                "tenant {ID}: version {version} has not arrived after {:?}",
                now - written
            );
            tokio::time::sleep(LOOK).await;
        }
        let now = Instant::now();
        // The first one waits for the workers to start.
        if !std::mem::take(&mut first) {
            let concerned = concerns.last_between(written - SINCE, now);
            let (since, bound) = late(concerned);
            let took = now - since;
            ensure!(
                took <= bound,
                "tenant {ID}: version {version} took {:?}, {took:?} after {}; the bound is {bound:?}",
                now - written,
                if concerned.is_some() {
                    "the last fault that concerned it"
                } else {
                    "it was written, undisturbed"
                },
            );
            let (count, worst) = if concerned.is_some() {
                (&mut served.disturbed, &mut served.disturbed_worst)
            } else {
                (&mut served.undisturbed, &mut served.undisturbed_worst)
            };
            *count += 1;
            *worst = took.max(*worst);
        }
        tokio::time::sleep(PAUSE).await;
    }
    pool.close().await;
    Ok(served)
}

/// Writes this version, however often Redis goes away meanwhile.
async fn write(sandbox: &Sandbox, keys: &TenantKeys, balance: &SeededBalance, version: i64) {
    let mutation = Mutation {
        schedule: keys.schedule(),
        member: keys.member(balance),
        base_version: version - 1,
        json: balance.json_in(Format::Mixed, version),
    };
    loop {
        if let Ok(mut redis) = sandbox.redis().connect().await {
            let written = write_mutations(&mut redis, std::slice::from_ref(&mutation), DEFAULT_TTL).await;
            // A conflict: it was written, and the answer lost.
            if let Ok([Written::Yes | Written::Conflict(_)]) = written.as_deref() {
                return;
            }
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn row(pool: &PgPool, balance: &SeededBalance) -> Result<i64> {
    let sql = format!("SELECT version FROM {} WHERE id = $1", balance_table(None));
    sqlx::query_scalar(AssertSqlSafe(sql))
        .bind(balance.id)
        .fetch_one(pool)
        .await
        .context("the quiet tenant's row")
}
