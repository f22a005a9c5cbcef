//! The raw limit: the worker's own scripts and statement, and nothing else of it.
//!
//! Every lane keeps its connection busy: while it writes one batch, the next is being claimed and the one before settled.
//! Values are decoded beforehand, outcomes are not looked at, there are no actors, states or metrics. What a worker
//! reaches of this speed is what its logic costs.

use std::collections::HashMap;
use std::sync::Arc;

use anyhow::{Context, Result, ensure};
use balance_sync_domain::{KeySpace, TenantId};

use balance_sync_sandbox::ledger::{Amounts, Producer};
use balance_sync_schedule::{Claimed, Link, LinkSettings, Schedule, ScheduleOptions};
use balance_sync_store::{ConnectionBudget, Database, DatabaseSpec, Row, Table};
use futures::future::{try_join_all, try_join3};
use uuid::Uuid;

use crate::rig::{Rig, spec};

/// As many as a worker may open by default.
const CONNECTIONS: u32 = 64;

/// A value as it will be written.
struct Value {
    id: Uuid,
    organization: Uuid,
    ledger: Uuid,
    amounts: Amounts,
    version: i64,
}

struct Tenant {
    space: KeySpace,
    database: Database,
    values: HashMap<Vec<u8>, Value>,
}

/// Tenants with their values decoded.
pub(crate) struct Prepared {
    tenants: Arc<Vec<Tenant>>,
    redis: LinkSettings,
}

/// Decodes what the producer has written last. Nothing is connected yet.
pub(crate) fn prepare(rig: &Rig, producer: &Producer) -> Result<Prepared> {
    let budget = ConnectionBudget::new(CONNECTIONS);
    let mut tenants = Vec::new();
    for load in producer.tenants() {
        let tenant = rig.sandbox.tenant(&load.id)?;
        let spec = DatabaseSpec { application_name: "bench limit".to_owned(), ..spec(&tenant)? };
        let values = load.balances.iter().zip(&load.versions).map(|(balance, version)| {
            let value = Value {
                id: balance.id,
                organization: balance.organization,
                ledger: balance.ledger,
                amounts: balance.amounts(*version),
                version: *version,
            };
            (load.keys.member(balance).into_bytes(), value)
        });
        tenants.push(Tenant {
            space: KeySpace::tenant(&TenantId::parse(&load.id)?),
            values: values.collect(),
            database: Database::open(spec, budget.clone())?,
        });
    }
    Ok(Prepared { tenants: Arc::new(tenants), redis: LinkSettings::for_url(&rig.sandbox.redis().url()) })
}

/// Empties the schedules by this many lanes: of one tenant all at once, of several tenants each lane its part of them.
pub(crate) fn start(
    prepared: &Prepared,
    lanes: usize,
    batch: usize,
) -> impl Future<Output = Result<()>> + use<> {
    let count = prepared.tenants.len();
    let running: Vec<_> = (0..lanes)
        .map(|lane| {
            let own: Vec<usize> = (0..count).filter(|tenant| count == 1 || tenant % lanes == lane).collect();
            let (tenants, redis) = (Arc::clone(&prepared.tenants), prepared.redis.clone());
            tokio::spawn(async move {
                let link = Link::new(&redis)?;
                let options = Arc::new(ScheduleOptions::default());
                for number in own {
                    let tenant = &tenants[number];
                    let schedule = Schedule::new(link.clone(), tenant.space.clone(), Arc::clone(&options));
                    Box::pin(empty(&schedule, tenant, batch)).await?;
                }
                anyhow::Ok(())
            })
        })
        .collect();
    async move {
        for done in try_join_all(running).await? {
            done?;
        }
        Ok(())
    }
}

/// Empties a schedule: each batch is written while the next is claimed and the one before is settled.
async fn empty(schedule: &Schedule, tenant: &Tenant, batch: usize) -> Result<()> {
    let mut written = Vec::new();
    let mut claimed = schedule.claim(batch).await?.entries;
    while !claimed.is_empty() {
        let claiming = async { anyhow::Ok(schedule.claim(batch).await?.entries) };
        let writing = write(tenant, &claimed);
        let (next, (), ()) = try_join3(claiming, writing, Box::pin(settle(schedule, &written))).await?;
        written = std::mem::replace(&mut claimed, next);
    }
    settle(schedule, &written).await
}

async fn write(tenant: &Tenant, claimed: &[Claimed]) -> Result<()> {
    let mut rows = Vec::with_capacity(claimed.len());
    for claimed in claimed {
        let value = tenant.values.get(&claimed.member).context("a member that was not written")?;
        rows.push(Row {
            id: value.id,
            organization: value.organization,
            ledger: value.ledger,
            available: &value.amounts.available,
            on_hold: &value.amounts.on_hold,
            overdraft_used: &value.amounts.overdraft_used,
            version: value.version,
        });
    }
    let outcomes = tenant.database.update(&Table::unqualified(), &rows).await?;
    ensure!(outcomes.len() == rows.len(), "{} outcomes for {} rows", outcomes.len(), rows.len());
    Ok(())
}

async fn settle(schedule: &Schedule, written: &[Claimed]) -> Result<()> {
    schedule.settle(&written.iter().collect::<Vec<_>>()).await?;
    Ok(())
}
