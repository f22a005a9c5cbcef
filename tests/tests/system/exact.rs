//! G3: amounts arrive digit for digit, from the sandbox's producer and from the ledger's own.

use std::time::Duration;

use anyhow::{Context, Result};
use balance_sync_sandbox::ledger::{
    Amounts, DEFAULT_TTL, LoadOptions, Progress, SeededBalance, TenantKeys, put_raw,
};
use balance_sync_sandbox::{Sandbox, TenantIsolation, balance_table, eventually};
use balance_sync_tests::ledger::{
    all_settled, comes_in_step, numerically_different, redis_time, rows, scores,
};
use balance_sync_tests::{SOON, Worker};
use redis::AsyncCommands;
use serde_json::Value;
use sqlx::{AssertSqlSafe, PgPool};
use tokio_util::sync::CancellationToken;
use uuid::Uuid;

/// The tenant of the real producer's samples.
const ACME: &str = "acme-prod_01";

#[tokio::test]
async fn mutations_of_all_kinds_of_tenants_arrive_digit_for_digit() -> Result<()> {
    // Databases of their own, a UUID for an id, and two that share a database.
    let sandbox = balance_sync_tests::sandbox(4, 300).await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut producer = sandbox.producer();
    let each = producer.mutate_each(DEFAULT_TTL).await?;
    assert_eq!(each, 4 * 300);
    let load = LoadOptions {
        rate: 1_500.0,
        duration: Some(Duration::from_secs(2)),
        hot_key_share: 0.2,
        ..LoadOptions::default()
    };
    let report = producer.run(&load, &Progress::new(4), &CancellationToken::new()).await?;
    assert_eq!(report.errors, 0);

    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let metrics = worker.metrics().await?;
    for tenant in sandbox.tenants() {
        let id = [("tenant_id", tenant.id.as_str())];
        let written = metrics.sum("balance_synced", &id);
        assert!(written >= 300.0, "{} rows written for {}", written, tenant.id);
        assert!(metrics.sum("balance_sync_lag_seconds_count", &id) >= written);
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// What the ledger's own script wrote, and what must be in the row then.
struct Sample {
    case: String,
    tenant: Option<String>,
    schedule: String,
    member: String,
    /// None: the script wrote the value but scheduled nothing.
    score: Option<f64>,
    ttl_s: u64,
    text: String,
    value: Value,
}

impl Sample {
    fn all() -> Result<Vec<Self>> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/wire/producer_samples.json");
        let samples: Vec<Value> = serde_json::from_str(&std::fs::read_to_string(path)?)?;
        samples.iter().map(Self::read).collect()
    }

    fn read(sample: &Value) -> Result<Self> {
        let text = |name: &str| sample[name].as_str().map(str::to_owned);
        let value = text("value").context("a sample without a value")?;
        Ok(Self {
            case: text("case").context("a sample without a case")?,
            tenant: text("tenant"),
            schedule: text("schedule_key").context("a sample without a schedule")?,
            member: text("member").context("a sample without a member")?,
            score: text("score").map(|score| score.parse()).transpose()?,
            ttl_s: sample["ttl_s"].as_u64().context("a sample without ttl_s")?,
            value: serde_json::from_str(&value)?,
            text: value,
        })
    }

    fn field(&self, name: &str) -> &str {
        self.value[name].as_str().unwrap_or_default()
    }

    fn id(&self) -> Result<Uuid> {
        Ok(self.field("ID").parse()?)
    }

    /// The exponent form, too: below 2^53 a float holds every integer.
    fn version(&self) -> Result<i64> {
        let version = &self.value["Version"];
        let number = version.as_i64().or_else(|| version.as_f64().map(|number| number as i64));
        number.context("a sample without a version")
    }

    fn amounts(&self) -> Amounts {
        Amounts {
            available: self.field("Available").to_owned(),
            on_hold: self.field("OnHold").to_owned(),
            overdraft_used: self.field("OverdraftUsed").to_owned(),
        }
    }

    /// A row as the ledger has it before the mutation, one version older and without money.
    async fn seed(&self, pool: &PgPool) -> Result<()> {
        let (_, rest) = self.member.split_once("balance:{transactions}:").context("no balance key")?;
        let parts: Vec<&str> = rest.splitn(3, ':').collect();
        let (alias, key) = parts[2].rsplit_once('#').context("no balance key")?;
        let sql = format!(
            "INSERT INTO {} (id, organization_id, ledger_id, account_id, alias, key, asset_code, version)
             VALUES ($1, $2::uuid, $3::uuid, $4::uuid, $5, $6, $7, $8)",
            balance_table(None)
        );
        sqlx::query(AssertSqlSafe(sql))
            .bind(self.id()?)
            .bind(parts[0])
            .bind(parts[1])
            .bind(self.field("AccountID"))
            .bind(alias)
            .bind(key)
            .bind(self.field("AssetCode"))
            .bind(self.version()? - 1)
            .execute(pool)
            .await
            .with_context(|| format!("seeding {}", self.case))?;
        Ok(())
    }

    /// Whether the row holds this sample, or is as it was if nothing was scheduled.
    async fn arrived(&self, pool: &PgPool) -> Result<()> {
        let sql = format!(
            "SELECT version, available::text, on_hold::text, overdraft_used::text FROM {} WHERE id = $1",
            balance_table(None)
        );
        let (version, available, on_hold, overdraft_used): (i64, String, String, String) =
            sqlx::query_as(AssertSqlSafe(sql)).bind(self.id()?).fetch_one(pool).await?;
        let found = (version, Amounts { available, on_hold, overdraft_used });
        let zero = || "0".to_owned();
        let expected = match self.score {
            Some(_) => (self.version()?, self.amounts()),
            None => {
                let nothing = Amounts { available: zero(), on_hold: zero(), overdraft_used: zero() };
                (self.version()? - 1, nothing)
            }
        };
        anyhow::ensure!(found == expected, "{}: {found:?} instead of {expected:?}", self.case);
        let differing = numerically_different(pool, None, &[(self.id()?, expected.1)]).await?;
        anyhow::ensure!(differing == 0, "{}: another number", self.case);
        Ok(())
    }
}

/// Puts the samples into Redis as they are. A machine whose clock stands before the day of the recording gets
/// them with scores of the recent past: a score in the future is a claim.
async fn put(sandbox: &Sandbox, samples: &[Sample]) -> Result<()> {
    let mut redis = sandbox.redis().connect().await?;
    let now = redis_time(&mut redis).await?;
    let newest = samples.iter().filter_map(|sample| sample.score).fold(0.0, f64::max);
    let shift = if newest >= now { (newest - now).ceil() + 1.0 } else { 0.0 };
    for sample in samples {
        let () = redis.set_ex(&sample.member, &sample.text, sample.ttl_s).await?;
        if let Some(score) = sample.score {
            let () = redis.zadd(&sample.schedule, &sample.member, score - shift).await?;
        }
    }
    Ok(())
}

#[tokio::test]
async fn everything_the_real_producer_wrote_arrives_digit_for_digit() -> Result<()> {
    let samples = Sample::all()?;
    assert!(samples.iter().any(|sample| sample.tenant.is_none()), "there is one without a tenant");
    let sandbox = balance_sync_tests::sandbox(0, 0).await?;
    let acme = sandbox.add_tenant(ACME, TenantIsolation::Database).await?;
    let acme_pool = sandbox.pool(&acme);
    let (database, role, password) = ("single", "single_role", "single-tenant-secret");
    sandbox.postgres().create_tenant_database(database, role, &password.into()).await?;
    let single_pool = sandbox.postgres().pool(database);
    let pool_of = |sample: &Sample| if sample.tenant.is_none() { &single_pool } else { &acme_pool };
    for sample in &samples {
        assert!(sample.tenant.as_deref().is_none_or(|tenant| tenant == ACME), "{}", sample.case);
        sample.seed(pool_of(sample)).await?;
    }

    put(&sandbox, &samples).await?;
    let mut many = Worker::of(&sandbox).start().await?;
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
    for keys in [acme.keys.clone(), TenantKeys::single()] {
        eventually(SOON, "an empty schedule", || async {
            let left = scores(&sandbox, &keys.schedule()).await?;
            anyhow::ensure!(left.is_empty(), "{left:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    for sample in &samples {
        sample.arrived(pool_of(sample)).await?;
    }
    let scheduled = samples.iter().filter(|sample| sample.score.is_some()).count() as f64;
    let written = many.metric("balance_synced", &[]).await? + one.metric("balance_synced", &[]).await?;
    assert_eq!(written, scheduled);
    let quarantined = "tenant:acme-prod_01:quarantine:{transactions}:balance-sync";
    assert!(!sandbox.redis().connect().await?.exists::<_, bool>(quarantined).await?);
    assert_eq!((many.stop().await?.code, one.stop().await?.code), (Some(0), Some(0)));
    Ok(())
}

/// An account's balances differ by their key alone; of one balance only the newest version counts.
#[tokio::test]
async fn balances_of_one_account_are_written_apart_from_the_same_batch() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 1).await?;
    let tenant = sandbox.tenants().remove(0);
    let first = tenant.balances[0].clone();
    let second = SeededBalance { id: Uuid::new_v4(), key: "savings".to_owned(), ..first.clone() };
    assert_ne!(first.key, second.key);
    let table = balance_table(tenant.schema.as_deref());
    let sql = format!(
        "INSERT INTO {table} (id, organization_id, ledger_id, account_id, alias, key, asset_code, version)
         SELECT '{}', organization_id, ledger_id, account_id, alias, '{}', asset_code, version FROM {table}",
        second.id, second.key
    );
    sandbox.postgres().execute(&tenant.database, &sql).await?;
    let mut redis = sandbox.redis().connect().await?;
    for (balance, version) in [(&first, 5), (&second, 3)] {
        let (member, json) = (tenant.keys.member(balance), balance.json(version));
        put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), json.as_bytes(), Some(DEFAULT_TTL))
            .await?;
    }
    let mut worker = Worker::of(&sandbox).start().await?;
    all_settled(&sandbox).await?;
    assert_eq!(worker.metric("balance_sync_batches_total", &[]).await?, 1.0, "one batch");
    let found = rows(&sandbox, &tenant).await?;
    for (balance, version) in [(&first, 5), (&second, 3)] {
        let row = found.get(&balance.id).context("a row")?;
        assert_eq!((row.version, &row.amounts), (version, &balance.amounts(version)), "{}", balance.key);
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
