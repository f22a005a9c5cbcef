//! What must hold, whatever happens: watched all the time, and checked at the end.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{SEED_VERSION, seed_balances};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, eventually};
use balance_sync_tests::Audit;
use balance_sync_tests::ledger::{quarantine_key, scores};
use redis::AsyncCommands;
use sqlx::AssertSqlSafe;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

use crate::faults::{BUDGET, World};

/// Between two looks.
const EVERY: Duration = Duration::from_millis(250);
/// Rows of the neighbour that each tenant's table holds as decoys.
const DECOYS: usize = 150;

/// In one step: version, whether scheduled, whether in quarantine, of each member.
const SNAPSHOT: &str = r"
local seen = {}
for i = 3, #KEYS do
  local version = -1
  local value = redis.call('GET', KEYS[i])
  if value then version = tonumber(cjson.decode(value).Version) end
  seen[#seen + 1] = version
  seen[#seen + 1] = redis.call('ZSCORE', KEYS[1], KEYS[i]) and 1 or 0
  seen[#seen + 1] = redis.call('HEXISTS', KEYS[2], KEYS[i])
end
return seen
";

/// Records updates, and gives each tenant decoys: the rows of its neighbour. A worker that used one tenant's database for
/// another would change them.
pub(crate) async fn prepare(sandbox: &Sandbox) -> Result<()> {
    for (tenant, neighbour) in neighbours(sandbox) {
        let pool = sandbox.pool(&tenant);
        seed_balances(&pool, tenant.schema.as_deref(), &neighbour.id, DECOYS).await?;
        pool.close().await;
        Audit::begin(sandbox, &tenant).await?;
    }
    Ok(())
}

fn neighbours(sandbox: &Sandbox) -> Vec<(SandboxTenant, SandboxTenant)> {
    let tenants = sandbox.tenants();
    let shifted = tenants.iter().cycle().skip(1).cloned();
    tenants.iter().cloned().zip(shifted).collect()
}

/// What the watch saw.
#[derive(Debug, Default)]
pub(crate) struct Seen {
    /// Looks at both sides of a tenant.
    pub samples: u64,
    /// Most connections of one worker.
    pub connections: i64,
}

/// Looks at both sides all the time.
pub(crate) struct Watch {
    task: JoinHandle<Result<Seen>>,
    cancel: CancellationToken,
}

impl Watch {
    pub(crate) fn start(sandbox: Arc<Sandbox>) -> Self {
        let cancel = CancellationToken::new();
        Self { task: tokio::spawn(watch(sandbox, cancel.clone())), cancel }
    }

    /// Ends it.
    ///
    /// # Errors
    /// What did not hold.
    pub(crate) async fn stop(self) -> Result<Seen> {
        self.cancel.cancel();
        self.task.await?
    }
}

async fn watch(sandbox: Arc<Sandbox>, cancel: CancellationToken) -> Result<Seen> {
    let mut seen = Seen::default();
    let mut above = BTreeMap::new();
    while !cancel.is_cancelled() {
        for tenant in sandbox.tenants() {
            // Servers that a fault holds down can't be looked at.
            let Ok(scheduled) = snapshot(&sandbox, &tenant).await else { continue };
            let Ok(rows) = versions(&sandbox, &tenant).await else { continue };
            // Redis was looked at first, and rows only grow: a member that had left the schedule then must be in Postgres.
            for (balance, state) in tenant.balances.iter().zip(&scheduled) {
                let [version, is_scheduled, is_quarantined] = *state;
                let row = rows.get(&balance.id).copied().unwrap_or(-1);
                if version > row && is_scheduled == 0 && is_quarantined == 0 {
                    bail!(
                        "lost: tenant {}, {} has left the schedule at version {version}, Postgres has {row}",
                        tenant.id,
                        tenant.keys.member(balance)
                    );
                }
            }
            seen.samples += 1;
        }
        if let Ok(open) = connections(&sandbox).await {
            let before = std::mem::take(&mut above);
            for (worker, open) in open {
                seen.connections = seen.connections.max(open);
                if open > BUDGET {
                    // A connection that was closed shows for a moment beside the one opened in its place.
                    ensure!(
                        !before.contains_key(&worker),
                        "{worker} has {open} connections, its budget is {BUDGET}"
                    );
                    above.insert(worker, open);
                }
            }
        }
        tokio::time::sleep(EVERY).await;
    }
    Ok(seen)
}

async fn snapshot(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<Vec<[i64; 3]>> {
    let mut redis = sandbox.redis().connect().await?;
    let script = redis::Script::new(SNAPSHOT);
    let mut call = script.prepare_invoke();
    call.key(tenant.keys.schedule()).key(quarantine_key(tenant));
    for balance in tenant.balances.iter() {
        call.key(tenant.keys.member(balance));
    }
    let flat: Vec<i64> = call.invoke_async(&mut redis).await?;
    Ok(flat.chunks_exact(3).map(|state| [state[0], state[1], state[2]]).collect())
}

async fn versions(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<BTreeMap<Uuid, i64>> {
    let mut connection = sandbox.postgres().connect(&tenant.database).await?;
    let sql = format!("SELECT id, version FROM {}", balance_table(tenant.schema.as_deref()));
    let rows: Vec<(Uuid, i64)> = sqlx::query_as(AssertSqlSafe(sql)).fetch_all(&mut connection).await?;
    Ok(rows.into_iter().collect())
}

async fn connections(sandbox: &Sandbox) -> Result<Vec<(String, i64)>> {
    let mut connection = sandbox.postgres().connect("postgres").await?;
    Ok(sqlx::query_as(
        "SELECT application_name, count(*) FROM pg_stat_activity \
         WHERE application_name LIKE 'balance-sync %' GROUP BY application_name",
    )
    .fetch_all(&mut connection)
    .await?)
}

/// What must hold when all is quiet.
pub(crate) async fn check(sandbox: &Sandbox, world: &World) -> Result<()> {
    eventually(Duration::from_secs(30), "empty schedules", || async {
        for tenant in sandbox.tenants() {
            let left = scores(sandbox, &tenant.keys.schedule()).await?;
            ensure!(left.is_empty(), "tenant {}: still scheduled: {left:?}", tenant.id);
        }
        Ok(())
    })
    .await?;
    let mut redis = sandbox.redis().connect().await?;
    for (tenant, member) in &world.poisoned {
        let entry: bool = redis.hexists(quarantine_key(tenant), member).await?;
        ensure!(entry, "poison is neither scheduled nor in quarantine of {}: {member}", tenant.id);
    }
    for (tenant, neighbour) in neighbours(sandbox) {
        let pool = sandbox.pool(&tenant);
        let audit = Audit::read(&pool, &tenant).await;
        pool.close().await;
        let audit = audit.with_context(|| format!("the audit of tenant {}", tenant.id))?;
        ensure!(
            audit.not_forward == 0,
            "tenant {}: {} rows went backwards or did not change",
            tenant.id,
            audit.not_forward
        );
        let rows = versions(sandbox, &tenant).await?;
        for decoy in neighbour.balances.iter().take(DECOYS) {
            let version = rows.get(&decoy.id).copied();
            ensure!(
                version == Some(SEED_VERSION),
                "a balance of {} was written into the database of {}: version {version:?}",
                neighbour.id,
                tenant.id
            );
        }
        let known: std::collections::BTreeSet<&str> = world
            .poisoned
            .iter()
            .filter(|(of, _)| of.id == tenant.id)
            .map(|(_, member)| member.as_str())
            .collect();
        let entries: Vec<String> = redis.hkeys(quarantine_key(&tenant)).await?;
        for entry in &entries {
            ensure!(
                known.contains(entry.as_str()),
                "tenant {}: in quarantine without reason: {entry}",
                tenant.id
            );
        }
    }
    Ok(())
}
