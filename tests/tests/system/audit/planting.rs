//! Faults planted in a tenant, and what only looks like a fault.

use anyhow::Result;
use balance_sync_sandbox::ledger::{DEFAULT_TTL, SeededBalance, put_raw, write_operations};
use balance_sync_sandbox::{Sandbox, SandboxTenant, balance_table, operation_table};
use balance_sync_tests::ledger::hold_row;
use redis::AsyncCommands;
use redis::aio::MultiplexedConnection;
use sqlx::{PgPool, Postgres, Transaction};

use super::{Planted, VERSION};

/// A value of this version with the amounts of another one.
fn with_amounts_of(balance: &SeededBalance, amounts: i64, version: i64) -> String {
    balance.json(amounts).replace(&format!("\"Version\":{amounts}"), &format!("\"Version\":{version}"))
}

/// A version with other amounts than [`VERSION`], and some money.
fn another(balance: &SeededBalance) -> i64 {
    let other = |version: &i64| {
        let amounts = balance.amounts(*version);
        amounts.available != "0" && amounts.available != balance.amounts(VERSION).available
    };
    (7..99).find(other).unwrap_or(7)
}

/// Plants faults in one tenant; takes balances from the front, and leaves some beside them that only look like faults.
pub(super) struct Planting<'a> {
    sandbox: &'a Sandbox,
    tenant: &'a SandboxTenant,
    pub(super) redis: MultiplexedConnection,
    pool: PgPool,
    /// Locks of rows.
    pub(super) held: Vec<Transaction<'static, Postgres>>,
    next: usize,
    pub(super) planted: Planted,
}

impl<'a> Planting<'a> {
    pub(super) async fn begin(sandbox: &'a Sandbox, tenant: &'a SandboxTenant) -> Result<Self> {
        let redis = sandbox.redis().connect().await?;
        let pool = sandbox.pool(tenant);
        Ok(Self { sandbox, tenant, redis, pool, held: Vec::new(), next: 0, planted: Planted::new() })
    }

    fn take(&mut self) -> (&'a SeededBalance, String) {
        let balance = &self.tenant.balances[self.next];
        self.next += 1;
        (balance, self.tenant.keys.member(balance))
    }

    pub(super) async fn sql(&self, sql: &str, balance: &SeededBalance) -> Result<()> {
        let schema = self.tenant.schema.as_deref();
        let sql = sql
            .replace("{balance}", &balance_table(schema))
            .replace("{operation}", &operation_table(schema))
            .replace("{id}", &balance.id.to_string());
        self.sandbox.postgres().execute(&self.tenant.database, &sql).await
    }

    async fn operation(&self, balance: &SeededBalance, version: i64) -> Result<()> {
        write_operations(&self.pool, self.tenant.schema.as_deref(), &[(balance, version)]).await
    }

    /// Newer in Redis, and another session has locked the row.
    async fn behind_scheduled(&mut self) -> Result<()> {
        let number = self.next;
        let (balance, member) = self.take();
        self.held.push(hold_row(&self.pool, self.tenant, number).await?);
        let (schedule, value) = (self.tenant.keys.schedule(), balance.json(VERSION + 1));
        put_raw(&mut self.redis, &schedule, member.as_bytes(), value.as_bytes(), Some(DEFAULT_TTL)).await?;
        self.operation(balance, VERSION + 1).await?;
        self.sql(
            "UPDATE {operation} SET created_at = now() - interval '1 hour', recorded_at = now() - interval '1 hour'
             WHERE balance_id = '{id}'",
            balance,
        )
        .await?;
        self.planted.insert(member, "behind_scheduled");
        Ok(())
    }

    pub(super) async fn behind_unscheduled(&mut self) -> Result<()> {
        let (balance, member) = self.take();
        self.redis.set_ex::<_, _, ()>(&member, balance.json(VERSION + 1), 3600).await?;
        self.planted.insert(member, "behind_unscheduled");
        Ok(())
    }

    pub(super) async fn lost(&mut self) -> Result<()> {
        let (balance, member) = self.take();
        self.redis.del::<_, ()>(&member).await?;
        self.operation(balance, VERSION + 2).await?;
        self.planted.insert(member, "lost_from_redis");
        Ok(())
    }

    /// Redis has started again from the row.
    async fn lost_tail(&mut self) -> Result<()> {
        let (balance, member) = self.take();
        self.operation(balance, VERSION + 2).await?;
        self.planted.insert(member, "lost_from_redis");
        Ok(())
    }

    async fn forked(&mut self) -> Result<()> {
        let (balance, member) = self.take();
        let value = with_amounts_of(balance, another(balance), VERSION);
        self.redis.set_ex::<_, _, ()>(&member, value, 3600).await?;
        self.planted.insert(member, "forked");
        Ok(())
    }

    async fn forked_by_the_trail(&mut self) -> Result<()> {
        let (balance, member) = self.take();
        self.operation(balance, another(balance)).await?;
        self.sql(
            "UPDATE {operation} SET balance_version_after = 2, snapshot = '{}' WHERE balance_id = '{id}'",
            balance,
        )
        .await?;
        self.planted.insert(member, "forked");
        Ok(())
    }

    async fn row_ahead(&mut self) -> Result<()> {
        let (balance, member) = self.take();
        self.sql("UPDATE {balance} SET version = 9 WHERE id = '{id}'", balance).await?;
        self.planted.insert(member, "row_ahead");
        Ok(())
    }

    async fn missing_row(&mut self) -> Result<()> {
        let (balance, member) = self.take();
        self.sql("DELETE FROM {balance} WHERE id = '{id}'", balance).await?;
        self.planted.insert(member, "missing_row");
        Ok(())
    }

    async fn deleted(&mut self) -> Result<()> {
        let (balance, member) = self.take();
        self.sql(
            "UPDATE {balance} SET deleted_at = now(), available = 0, on_hold = 0, overdraft_used = 0 WHERE id = '{id}'",
            balance,
        )
        .await?;
        self.redis.set_ex::<_, _, ()>(&member, balance.json(another(balance)), 3600).await?;
        self.planted.insert(member, "deleted");
        Ok(())
    }

    async fn orphaned(&mut self, kind: usize) -> Result<()> {
        let prefix = self.tenant.keys.prefix();
        let member = match kind % 3 {
            0 => self.take().1,
            1 => format!("{prefix}balance:{{transactions}}:no-uuids:@x#{kind}"),
            _ => {
                let SeededBalance { organization, ledger, .. } = &self.tenant.balances[0];
                format!("{prefix}balance:{{transactions}}:{organization}:{ledger}:@nobody-{kind}#default")
            }
        };
        self.redis.set_ex::<_, _, ()>(&member, "{\"ID\":", 3600).await?;
        self.planted.insert(member, "orphaned");
        Ok(())
    }

    /// What only looks like a fault: both traps of the trail, closed accounts, annotations, what was written before Redis forgot it.
    async fn decoys(&mut self) -> Result<()> {
        let (in_doubt, _) = self.take();
        self.operation(in_doubt, another(in_doubt)).await?;
        self.sql(
            "UPDATE {operation} SET balance_version_after = 2,
                snapshot = '{\"overdraftUsedBefore\": \"5\", \"overdraftUsedAfter\": \"1\"}' WHERE balance_id = '{id}'",
            in_doubt,
        )
        .await?;
        let (companion, member) = self.take();
        self.redis.del::<_, ()>(&member).await?;
        self.operation(companion, VERSION).await?;
        self.sql(
            "UPDATE {balance} SET key = 'overdraft' WHERE id = '{id}';
             UPDATE {operation} SET snapshot = '{\"overdraftUsedBefore\": \"1\", \"overdraftUsedAfter\": \"900\"}'
             WHERE balance_id = '{id}'",
            companion,
        )
        .await?;
        let (closed, _) = self.take();
        self.sql(
            "UPDATE {balance} SET deleted_at = now(), available = 0, on_hold = 0, overdraft_used = 0 WHERE id = '{id}'",
            closed,
        )
        .await?;
        let (annotated, _) = self.take();
        self.operation(annotated, VERSION + 5).await?;
        self.sql("UPDATE {operation} SET balance_affected = false WHERE balance_id = '{id}'", annotated)
            .await?;
        let (expired, member) = self.take();
        self.redis.del::<_, ()>(&member).await?;
        self.operation(expired, VERSION).await
    }
}

pub(super) struct Fifty {
    pub(super) planted: Planted,
    /// How many balances of each tenant were used for it.
    pub(super) taken: Vec<usize>,
    pub(super) held: Vec<Transaction<'static, Postgres>>,
}

/// Fifty, over two tenants, one of which has two key forms.
pub(super) async fn plant_fifty(sandbox: &Sandbox, tenants: &[SandboxTenant]) -> Result<Fifty> {
    let mut fifty = Fifty { planted: Planted::new(), taken: Vec::new(), held: Vec::new() };
    for (number, tenant) in tenants.iter().enumerate() {
        let mut planting = Planting::begin(sandbox, tenant).await?;
        for n in 0..3 {
            planting.behind_scheduled().await?;
            planting.behind_unscheduled().await?;
            planting.lost().await?;
            planting.forked().await?;
            planting.row_ahead().await?;
            planting.missing_row().await?;
            planting.deleted().await?;
            planting.orphaned(n).await?;
        }
        match number {
            0 => planting.lost_tail().await?,
            _ => planting.forked_by_the_trail().await?,
        }
        planting.decoys().await?;
        fifty.taken.push(planting.next);
        fifty.planted.append(&mut planting.planted);
        fifty.held.append(&mut planting.held);
    }
    Ok(fifty)
}
