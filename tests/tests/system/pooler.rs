//! G7: what a PgBouncer does to whole workers. The store's own tests (`crates/store/tests/postgres/pooler.rs`) go into detail.

use std::time::Duration;

use anyhow::{Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, LoadTenant, Producer, Progress};
use balance_sync_sandbox::{
    Isolation, PgBouncer, PgBouncerOptions, PoolMode, Sandbox, SandboxOptions, balance_table, eventually,
};
use balance_sync_tests::command::run;
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{SOON, Worker};
use secrecy::SecretString;
use tokio::sync::Mutex;
use tokio_util::sync::CancellationToken;

/// Versions of one tenant are far from those of the next: a row that another tenant's write has reached shows it.
const APART: i64 = 1_000_000;
/// The role of all tenants: the pooler keeps sessions per database and role, so they share them.
const ROLE: &str = "shared";

/// Makes the rows of all tenants those of the first, and gives all the same role, behind the pooler.
async fn make_clones(sandbox: &Sandbox, pooler: &PgBouncer, password: &SecretString) -> Result<Producer> {
    let tenants = sandbox.tenants();
    let first = balance_table(tenants[0].schema.as_deref());
    let mut loads = Vec::new();
    for (n, tenant) in tenants.iter().enumerate() {
        let schema = tenant.schema.as_deref().unwrap_or("public");
        let table = balance_table(Some(schema));
        let sql = format!(
            "GRANT USAGE ON SCHEMA \"{schema}\" TO {ROLE}; GRANT SELECT, UPDATE ON {table} TO {ROLE}"
        );
        sandbox.postgres().execute(&tenant.database, &sql).await?;
        if n > 0 {
            let sql = format!("DELETE FROM {table}; INSERT INTO {table} SELECT * FROM {first}");
            sandbox.postgres().execute(&tenant.database, &sql).await?;
        }
        sandbox.service().update(&tenant.id, |record| {
            record.port = pooler.port();
            ROLE.clone_into(&mut record.username);
            record.password = password.clone();
        });
        let balances = tenants[0].balances.to_vec();
        let versions = vec![APART * (n as i64 + 1); balances.len()];
        loads.push(LoadTenant { versions, balances, ..tenant.load() });
    }
    Ok(Producer::new(&sandbox.ledger_redis_url(), loads))
}

/// Two workers write tenants that are copies of each other through fewer sessions than there are clients.
#[tokio::test]
async fn copies_of_a_tenant_behind_a_transaction_pooler_never_mix() -> Result<()> {
    let options = SandboxOptions { isolation: Isolation::Schema, ..balance_sync_tests::options(4, 120) };
    let sandbox = Sandbox::start(options).await?;
    let password = SecretString::from("of-all-tenants");
    sandbox.postgres().create_role(ROLE, &password).await?;
    let database = sandbox.tenants()[0].database.clone();
    sandbox
        .postgres()
        .execute("postgres", &format!("GRANT CONNECT ON DATABASE \"{database}\" TO {ROLE}"))
        .await?;
    let pooling = PgBouncerOptions::new(PoolMode::Transaction, 2);
    let pooler = PgBouncer::start(sandbox.postgres().port(), &[(ROLE, &password)], &pooling).await?;
    let mut producer = make_clones(&sandbox, &pooler, &password).await?;

    // Neither stands by for the other, and small batches make many transactions.
    let worker = || {
        Worker::of(&sandbox)
            .set("collector.batch_size", "10")
            .set("worker.partition", "false")
            .secret("of-all-tenants")
    };
    let mut workers = [worker().start().await?, worker().start().await?];
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let load = LoadOptions {
        rate: 1_500.0,
        duration: Some(Duration::from_secs(3)),
        hot_key_share: 0.3,
        ..LoadOptions::default()
    };
    producer.run(&load, &Progress::new(4), &CancellationToken::new()).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    for worker in &workers {
        for tenant in sandbox.tenants() {
            let id = [("tenant_id", tenant.id.as_str())];
            assert_eq!(worker.metric("balance_sync_batch_failures_total", &id).await?, 0.0, "{}", tenant.id);
        }
    }
    let config = sandbox.config_path().to_string_lossy().into_owned();
    let verified = run(&["verify", "--config", &config], &[]).await?;
    assert_eq!(verified.code, Some(0), "{verified:?}");

    for worker in &mut workers {
        worker.stop().await?;
    }
    Ok(())
}

#[tokio::test]
async fn a_pooler_that_leads_astray_stops_the_tenants_and_loses_nothing() -> Result<()> {
    let options = SandboxOptions { isolation: Isolation::Database, ..balance_sync_tests::options(2, 20) };
    let sandbox = Sandbox::start(options).await?;
    let password = SecretString::from("of-all-tenants");
    sandbox.postgres().create_role(ROLE, &password).await?;
    let right = PgBouncerOptions {
        databases: sandbox.tenants().iter().map(|t| (t.id.clone(), t.database.clone())).collect(),
        ..PgBouncerOptions::new(PoolMode::Transaction, 1)
    };
    let pooler = PgBouncer::start(sandbox.postgres().port(), &[(ROLE, &password)], &right).await?;
    for tenant in sandbox.tenants() {
        let sql = format!(
            "GRANT CONNECT ON DATABASE \"{}\" TO {ROLE}; GRANT SELECT, UPDATE ON balance TO {ROLE}",
            tenant.database
        );
        sandbox.postgres().execute(&tenant.database, &sql).await?;
        sandbox.service().update(&tenant.id, |record| {
            record.port = pooler.port();
            record.database.clone_from(&tenant.id);
            ROLE.clone_into(&mut record.username);
            record.password = password.clone();
        });
    }
    let mut worker =
        Worker::of(&sandbox).set("postgres.backoff_long", "2s").secret("of-all-tenants").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;

    let astray = sandbox.tenants()[0].database.clone();
    let databases = right.databases.iter().map(|(name, _)| (name.clone(), astray.clone())).collect();
    pooler.reload(&PgBouncerOptions { databases, ..right.clone() })?;
    let producer = Mutex::new(producer);
    // The one that is led astray notices first; the one whose database it is, when both have met there.
    for tenant in [1, 0] {
        let id = sandbox.tenants()[tenant].id.clone();
        let labels = [("tenant_id", id.as_str()), ("reason", "postgres_pooler_unsafe")];
        eventually(SOON, "the tenant stopped", || async {
            producer.lock().await.mutate(tenant, &[0, 1], DEFAULT_TTL).await?;
            let degraded = worker.metric("balance_sync_tenant_degraded", &labels).await?;
            ensure!(degraded > 0.0, "{id} goes on");
            Ok(())
        })
        .await?;
    }
    for tenant in sandbox.tenants() {
        let quarantined = worker.metric("balance_sync_quarantined", &[("tenant_id", &tenant.id)]).await;
        assert_eq!(quarantined.unwrap_or_default(), 0.0, "{}", tenant.id);
    }
    let mut producer = producer.into_inner();
    producer.mutate_each(DEFAULT_TTL).await?;
    pooler.reload(&right)?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
