//! The whole box: tenants with rows, roles and records, and what can be done to them.

use balance_sync_sandbox::ledger::{DEFAULT_TTL, SEED_VERSION, stored_balances};
use balance_sync_sandbox::{Fault, Isolation, Sandbox, SandboxOptions, TenantIsolation, is_alive};
use redis::AsyncCommands;
use sqlx::{Connection, PgConnection};

#[tokio::test]
async fn a_mixed_sandbox_has_everything_and_leaves_nothing() {
    let options = SandboxOptions { tenants: 4, balances: 60, proxied: true, ..SandboxOptions::default() };
    let sandbox = Sandbox::start(options).await.unwrap();
    let tenants = sandbox.tenants();
    assert_eq!(tenants.len(), 4);
    assert_eq!(tenants[1].id.len(), 36, "the second tenant's id is a dashed UUID");
    assert!(tenants[2].schema.is_some() && tenants[2].database == tenants[3].database);
    assert_ne!(tenants[0].database, tenants[1].database);

    for tenant in &tenants {
        let pool = sandbox.pool(tenant);
        let rows = stored_balances(&pool, tenant.schema.as_deref()).await.unwrap();
        assert_eq!(rows.len(), 60);
        for balance in tenant.balances.iter() {
            let row = rows.iter().find(|row| row.id == balance.id).unwrap();
            assert_eq!((row.version, &row.amounts), (SEED_VERSION, &balance.amounts(SEED_VERSION)));
        }
        pool.close().await;
        let mut own = PgConnection::connect(tenant.database_url()).await.unwrap();
        let table = balance_sync_sandbox::balance_table(tenant.schema.as_deref());
        let count: i64 = sqlx::query_scalar(sqlx::AssertSqlSafe(format!("SELECT count(*) FROM {table}")))
            .fetch_one(&mut own)
            .await
            .unwrap();
        assert_eq!(count, 60);
        let mut admin = PgConnection::connect(tenant.admin_database_url()).await.unwrap();
        sqlx::query("SELECT 1").execute(&mut admin).await.unwrap();
        let record = sandbox.service().tenant(&tenant.id).unwrap();
        assert_eq!((&record.database, &record.schema), (&tenant.database, &tenant.schema));
        assert_eq!(record.port, sandbox.postgres_proxy().unwrap().addr().port());
    }

    // The tenant's way leads through the proxy, the test's own does not.
    sandbox.postgres_proxy().unwrap().set(Fault::Closed).await;
    assert!(PgConnection::connect(tenants[0].database_url()).await.is_err());
    assert!(PgConnection::connect(tenants[0].admin_database_url()).await.is_ok());
    sandbox.postgres_proxy().unwrap().set(Fault::Pass).await;

    let old = sandbox.tenant(&tenants[0].id).unwrap();
    sandbox.rotate_password(&old.id, true).await.unwrap();
    assert!(PgConnection::connect(old.database_url()).await.is_err());
    assert!(PgConnection::connect(sandbox.tenant(&old.id).unwrap().database_url()).await.is_ok());

    let added = sandbox.add_tenant("late", TenantIsolation::Schema).await.unwrap();
    assert!(sandbox.add_tenant("late", TenantIsolation::Database).await.is_err());
    assert!(PgConnection::connect(added.database_url()).await.is_ok());
    sandbox.remove_tenant("late").unwrap();
    assert!(sandbox.service().tenant("late").is_none() && sandbox.remove_tenant("late").is_err());
    sandbox.restore_tenant("late").unwrap();
    assert!(sandbox.service().tenant("late").is_some() && sandbox.restore_tenant("late").is_err());

    assert_eq!(sandbox.producer().mutate_each(DEFAULT_TTL).await.unwrap(), 300);
    let mut connection = sandbox.redis().connect().await.unwrap();
    for tenant in sandbox.tenants() {
        assert_eq!(connection.zcard::<_, u64>(tenant.keys.schedule()).await.unwrap(), 60);
    }

    let config = std::fs::read_to_string(sandbox.config_path()).unwrap();
    assert_eq!(config, sandbox.config_toml());
    assert!(config.contains(&sandbox.redis_url()) && config.contains(&sandbox.service().base_url()));

    let pids = [sandbox.redis().pid().unwrap(), sandbox.postgres().pid().unwrap()];
    let folders = [sandbox.redis().folder().to_owned(), sandbox.postgres().folder().to_owned()];
    sandbox.stop().await.unwrap();
    assert!(!pids.iter().any(|pid| is_alive(*pid)) && !folders.iter().any(|folder| folder.exists()));
}

/// Many tenants are made at the same time without getting into each other's way.
#[tokio::test]
async fn many_tenants_of_either_kind() {
    for isolation in [Isolation::Database, Isolation::Schema] {
        let options = SandboxOptions { tenants: 20, balances: 2, isolation, ..SandboxOptions::default() };
        let sandbox = Sandbox::start(options).await.unwrap();
        let ids: Vec<String> = sandbox.tenants().into_iter().map(|tenant| tenant.id).collect();
        let expected: Vec<String> = (1..=20).map(|number| format!("tenant-{number:04}")).collect();
        assert_eq!(ids, expected);
        sandbox.stop().await.unwrap();
    }
}

/// Everything works inside an actix system too, where tasks stay on one thread.
#[actix_web::test]
async fn runs_inside_actix() {
    let options = SandboxOptions { tenants: 1, balances: 1, proxied: true, ..SandboxOptions::default() };
    let sandbox = Sandbox::start(options).await.unwrap();
    assert_eq!(sandbox.producer().mutate_each(DEFAULT_TTL).await.unwrap(), 1);
    assert!(PgConnection::connect(sandbox.tenants()[0].database_url()).await.is_ok());
}
