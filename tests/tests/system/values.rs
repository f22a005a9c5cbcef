//! Values in every format that live ledgers write, from Redis through whole workers into Postgres: each sample's row
//! must hold what the sample expects, digit for digit, and what must be refused must not be written.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{Amounts, DEFAULT_TTL, Format, TenantKeys};
use balance_sync_sandbox::{Sandbox, TenantIsolation, balance_table, eventually};
use balance_sync_tests::ledger::{comes_in_step, numerically_different, redis_time, scores};
use balance_sync_tests::{SOON, Worker};
use redis::AsyncCommands;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use uuid::Uuid;

/// Two tenants of the samples have an id, one of them a UUID without dashes; a third kind has none.
const TENANTS: [&str; 2] = ["acme-prod_01", "0190b5f27c1a7e3b9d4f2a6c8e1b3d99"];

/// A value, and what must be read from it.
struct Sample {
    case: String,
    tenant: Option<String>,
    member: String,
    text: String,
    expect: Value,
}

impl Sample {
    fn all() -> Result<Vec<Self>> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/wire/value_samples.json");
        let samples: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        let text = |sample: &Value, name: &str| {
            sample[name].as_str().map(str::to_owned).with_context(|| format!("a sample without {name}"))
        };
        samples
            .iter()
            .map(|sample| {
                Ok(Self {
                    case: text(sample, "case")?,
                    tenant: sample["tenant"].as_str().map(str::to_owned),
                    member: text(sample, "member")?,
                    text: text(sample, "value")?,
                    expect: sample["expect"].clone(),
                })
            })
            .collect()
    }

    fn keys(&self) -> TenantKeys {
        self.tenant.as_deref().map_or_else(TenantKeys::single, TenantKeys::tenant)
    }

    fn expected(&self, name: &str) -> Result<&str> {
        self.expect[name].as_str().with_context(|| format!("{}: nothing expected of {name}", self.case))
    }

    /// Why it must be refused, if it must.
    fn refuse(&self) -> Option<&str> {
        self.expect["refuse"].as_str()
    }

    /// A format that is not known stays scheduled, for a worker that knows it.
    fn is_unknown_format(&self) -> bool {
        self.refuse() == Some("unsupported SchemaVersion")
    }

    /// The row's id; of a value without a readable one any.
    fn id(&self) -> Uuid {
        let own: Option<Value> = serde_json::from_str(&self.text).ok();
        let id = |name: &str| own.as_ref()?.get(name)?.as_str()?.parse().ok();
        self.expected("id")
            .ok()
            .and_then(|id| id.parse().ok())
            .or_else(|| id("ID"))
            .or_else(|| id("id"))
            .unwrap_or_else(Uuid::new_v4)
    }

    /// A row as the ledger has it before the mutation, one version older.
    async fn seed(&self, pool: &PgPool) -> Result<()> {
        let (_, rest) = self.member.split_once("balance:{transactions}:").context("no balance key")?;
        let parts: Vec<&str> = rest.splitn(3, ':').collect();
        let (alias, key) = parts[2].rsplit_once('#').context("no balance key")?;
        let version: i64 = self.expected("version").unwrap_or("1").parse()?;
        let sql = format!(
            "INSERT INTO {} (id, organization_id, ledger_id, account_id, alias, key, asset_code, available, on_hold,
                 overdraft_used, version)
             VALUES ($1, $2::uuid, $3::uuid, $4, $5, $6, 'BRL', 77.7, 77.7, 77.7, $7)",
            balance_table(None)
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(self.id())
            .bind(parts[0])
            .bind(parts[1])
            .bind(Uuid::new_v4())
            .bind(alias)
            .bind(key)
            .bind(version - 1)
            .execute(pool)
            .await
            .with_context(|| format!("seeding {}", self.case))?;
        Ok(())
    }

    /// Whether the row holds what is expected, as text and as a number; of a refused value, what was there before.
    async fn check_row(&self, pool: &PgPool) -> Result<()> {
        let sql = format!(
            "SELECT version::text, available::text, on_hold::text, overdraft_used::text FROM {} WHERE id = $1",
            balance_table(None)
        );
        let (version, available, on_hold, overdraft_used): (String, String, String, String) =
            sqlx::query_as(AssertSqlSafe(sql)).bind(self.id()).fetch_one(pool).await?;
        let found = (version.as_str(), Amounts { available, on_hold, overdraft_used });
        if self.refuse().is_some() {
            let seven = || "77.7".to_owned();
            let before = Amounts { available: seven(), on_hold: seven(), overdraft_used: seven() };
            ensure!(found == ("0", before), "{}: {found:?} was written", self.case);
            return Ok(());
        }
        let amount = |name: &str| self.expected(name).map(str::to_owned);
        let amounts = Amounts {
            available: amount("available")?,
            on_hold: amount("on_hold")?,
            overdraft_used: amount("overdraft_used")?,
        };
        let expected = (self.expected("version")?, amounts.clone());
        ensure!(found == expected, "{}: {found:?} instead of {expected:?}", self.case);
        let differing = numerically_different(pool, None, &[(self.id(), amounts)]).await?;
        ensure!(differing == 0, "{}: another number", self.case);
        Ok(())
    }
}

/// The reason of each quarantined member of a tenant.
async fn quarantined(sandbox: &Sandbox, keys: &TenantKeys) -> Result<BTreeMap<String, String>> {
    let key = format!("{}quarantine:{{transactions}}:balance-sync", keys.prefix());
    let entries: BTreeMap<String, String> = sandbox.redis().connect().await?.hgetall(key).await?;
    entries
        .into_iter()
        .map(|(member, entry)| {
            let entry: Value = serde_json::from_str(&entry)?;
            Ok((member, entry["reason"].as_str().context("an entry without a reason")?.to_owned()))
        })
        .collect()
}

#[tokio::test]
async fn every_sample_arrives_as_expected_is_refused_or_waits() -> Result<()> {
    let samples = Sample::all()?;
    let sandbox = balance_sync_tests::sandbox(0, 0).await?;
    let mut pools = BTreeMap::new();
    for id in TENANTS {
        let tenant = sandbox.add_tenant(id, TenantIsolation::Database).await?;
        pools.insert(Some(id.to_owned()), sandbox.pool(&tenant));
    }
    let (database, role, password) = ("single", "single_role", "single-tenant-secret");
    sandbox.postgres().create_tenant_database(database, role, &password.into()).await?;
    pools.insert(None, sandbox.postgres().pool(database));
    let mut redis = sandbox.redis().connect().await?;
    let now = redis_time(&mut redis).await?;
    for sample in &samples {
        let pool = pools.get(&sample.tenant).with_context(|| format!("the tenant of {}", sample.case))?;
        sample.seed(pool).await?;
        let () = redis.set_ex(&sample.member, &sample.text, DEFAULT_TTL.as_secs()).await?;
        let () = redis.zadd(sample.keys().schedule(), &sample.member, now - 1.0).await?;
    }

    let unknown: Vec<&Sample> = samples.iter().filter(|sample| sample.is_unknown_format()).collect();
    let mut many =
        Worker::of(&sandbox).expect_error("a format that this release doesn't know").start().await?;
    let mut one = Worker::of(&sandbox)
        .set("tenants.source", "single")
        .set("tenants.single.host", "127.0.0.1")
        .set("tenants.single.port", &sandbox.postgres().port().to_string())
        .set("tenants.single.database", database)
        .set("tenants.single.username", role)
        .set("tenants.single.password", password)
        .secret(password)
        .start()
        .await?;
    for tenant in pools.keys() {
        let keys = tenant.as_deref().map_or_else(TenantKeys::single, TenantKeys::tenant);
        let stays: BTreeSet<&str> = unknown
            .iter()
            .filter(|sample| sample.tenant == *tenant)
            .map(|sample| sample.member.as_str())
            .collect();
        eventually(SOON, "a schedule of nothing but unknown formats", || async {
            let left = scores(&sandbox, &keys.schedule()).await?;
            let left: BTreeSet<&str> = left.keys().map(String::as_str).collect();
            ensure!(left == stays, "{left:?} instead of {stays:?}");
            anyhow::Ok(())
        })
        .await?;
        if let Some(id) = tenant {
            let shown = [("tenant_id", id.as_str()), ("reason", "value_unknown_format")];
            let shown = many.metric("balance_sync_tenant_degraded", &shown).await?;
            ensure!((shown == 1.0) != stays.is_empty(), "{id}: {shown}, and {stays:?} stay scheduled");
        }
    }
    let reported = many.metric("balance_sync_balances_total", &[("outcome", "unknown_format")]).await?;
    ensure!(reported >= unknown.len() as f64, "{reported} of {} are reported", unknown.len());
    for sample in &samples {
        sample.check_row(&pools[&sample.tenant]).await?;
        let reason = quarantined(&sandbox, &sample.keys()).await?.remove(&sample.member);
        // A format that is not known is no fault of the value.
        ensure!(
            reason.is_some() == (sample.refuse().is_some() && !sample.is_unknown_format()),
            "{}: {reason:?} instead of {:?}",
            sample.case,
            sample.refuse()
        );
        ensure!(reason.is_none_or(|reason| reason.starts_with("value_")), "{}", sample.case);
    }
    assert_eq!((many.stop().await?.code, one.stop().await?.code), (Some(0), Some(0)));
    Ok(())
}

/// What each format makes of the same balances, one after the other, as in upgrades and downgrades of a ledger.
#[tokio::test]
async fn producers_of_all_formats_arrive_digit_for_digit() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 100).await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    for format in Format::ALL.into_iter().chain([Format::Mixed, Format::Upper]) {
        producer = producer.in_format(format);
        for _ in 0..3 {
            producer.mutate_each(DEFAULT_TTL).await?;
        }
        comes_in_step(&sandbox, &producer).await.with_context(|| format!("format {format}"))?;
    }
    for tenant in sandbox.tenants() {
        assert_eq!(quarantined(&sandbox, &tenant.keys).await?, BTreeMap::new());
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
