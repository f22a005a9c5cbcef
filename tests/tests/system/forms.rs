//! The forms in which a ledger may keep its keys: without tenants, old schedules, UUIDs without dashes.

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{
    DEFAULT_TTL, LoadTenant, Producer, TenantKeys, put_raw, seed_balances, stored_balances,
};
use balance_sync_sandbox::{Sandbox, SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step, quarantine_key, redis_time, row, rows, scores};
use balance_sync_tests::worker::password_in;
use balance_sync_tests::{SOON, Worker, run};
use redis::AsyncCommands;

use crate::api::{json, post, texts};

#[tokio::test]
async fn a_single_tenant_by_the_ledgers_own_variables() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(0, 0).await?;
    let (database, role, password) = ("midaz", "midaz", "single-tenant-secret");
    sandbox.postgres().create_tenant_database(database, role, &password.into()).await?;
    let pool = sandbox.postgres().pool(database);
    let balances = seed_balances(&pool, None, "single", 50).await?;
    let redis_password = password_in(&sandbox.redis().url()).context("a password")?;
    // All but the address of our own interface, which no variable of the ledger's names.
    let mut worker = Worker::bare()
        .env("MULTI_TENANT_ENABLED", "false")
        .env("REDIS_HOST", &format!("127.0.0.1:{}", sandbox.redis().port()))
        .env("REDIS_PASSWORD", &redis_password)
        .env("REDIS_DB", "0")
        .env("DB_TRANSACTION_HOST", "127.0.0.1")
        .env("DB_TRANSACTION_PORT", &sandbox.postgres().port().to_string())
        .env("DB_TRANSACTION_USER", role)
        .env("DB_TRANSACTION_NAME", database)
        .env("DB_TRANSACTION_PASSWORD", password)
        .env("DB_TRANSACTION_SSLMODE", "disable")
        .env("BALANCE_SYNC_BATCH_SIZE", "20")
        .env("BALANCE_SYNC_FLUSH_TIMEOUT_MS", "100")
        .env("BALANCE_SYNC_POLL_INTERVAL_MS", "20")
        .secret(password)
        .secret(&redis_password)
        .start()
        .await?;
    let load = LoadTenant { keys: TenantKeys::single(), ..LoadTenant::seeded("single", balances) };
    let mut producer = Producer::new(&sandbox.redis().url(), vec![load]);
    for _ in 0..3 {
        producer.mutate_each(DEFAULT_TTL).await?;
        eventually(SOON, "the rows", || async {
            let rows = stored_balances(&pool, None).await?;
            let load = &producer.tenants()[0];
            for (balance, version) in load.balances.iter().zip(&load.versions) {
                let row = rows.iter().find(|row| row.id == balance.id).context("no row")?;
                ensure!((row.version, &row.amounts) == (*version, &balance.amounts(*version)), "{row:?}");
            }
            let left = scores(&sandbox, &TenantKeys::single().schedule()).await?;
            ensure!(left.is_empty(), "{left:?}");
            anyhow::Ok(())
        })
        .await?;
    }
    assert!(
        worker.metric("balance_sync_batches_total", &[("trigger", "size")]).await? >= 2.0,
        "batches of 20"
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn schedules_of_older_ledgers_are_emptied_too() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 10).await?;
    let tenants = sandbox.tenants();
    let mut redis = sandbox.redis().connect().await?;
    let now = redis_time(&mut redis).await?;
    // Seconds and microseconds in one schedule, some long past.
    let put =
        |balance: usize| if balance.is_multiple_of(2) { now.floor() - 60.0 } else { (now - 60.0) * 1e6 };
    for tenant in &tenants {
        for (number, balance) in tenant.balances.iter().enumerate() {
            let member = tenant.keys.member(balance);
            let () = redis.set_ex(&member, balance.json(4), 3600).await?;
            let () = redis.zadd(tenant.keys.legacy_schedule(), member, put(number)).await?;
        }
    }
    let mut worker = Worker::of(&sandbox).set("claim.legacy_interval", "500ms").start().await?;
    let mut producer = sandbox.producer();
    producer.refresh_versions().await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(row(&sandbox, &tenants[0], 1).await?.version, 4);
    all_settled(&sandbox).await?;

    // And what an old ledger writes while we run.
    let tenant = &tenants[1];
    for (number, balance) in tenant.balances.iter().enumerate() {
        let member = tenant.keys.member(balance);
        let () = redis.set_ex(&member, balance.json(5), 3600).await?;
        let () = redis.zadd(tenant.keys.legacy_schedule(), member, put(number)).await?;
    }
    producer.refresh_versions().await?;
    comes_in_step(&sandbox, &producer).await?;
    for tenant in &tenants {
        assert!(scores(&sandbox, &tenant.keys.legacy_schedule()).await?.is_empty());
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_form_that_is_not_served_is_noticed() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let tenant = sandbox.tenants().remove(1);
    let simple = tenant.id.replace('-', "");
    assert_eq!((tenant.id.len(), simple.len()), (36, 32));
    let load = LoadTenant { keys: TenantKeys::tenant(&simple), ..tenant.load() };
    let mut producer = Producer::new(&sandbox.redis().url(), vec![sandbox.tenants()[0].load(), load]);
    producer.mutate_each(DEFAULT_TTL).await?;

    // As listed alone, the other form is reported as an error, and nothing of it is touched.
    const OTHER_FORM: &str = "the ledger schedules this tenant under the other form of its id";
    let mut worker = Worker::of(&sandbox)
        .set("tenants.key_form", "as_listed")
        .set("claim.legacy_interval", "200ms")
        .expect_error(OTHER_FORM)
        .start()
        .await?;
    let id = [("tenant_id", tenant.id.as_str())];
    worker.reaches("balance_sync_other_key_form_members", &id, 10.0).await?;
    let noticed = eventually(SOON, "an ERROR line about the other form", || async {
        worker.log().lines().into_iter().find(|line| line.message.starts_with(OTHER_FORM))
    });
    let line = noticed.await?;
    assert_eq!((line.level.as_str(), line.tenant_id.as_deref()), ("ERROR", Some(tenant.id.as_str())));
    assert_eq!(worker.stop().await?.code, Some(0));
    assert_eq!(row(&sandbox, &tenant, 0).await?.version, 1);
    assert_eq!(scores(&sandbox, &TenantKeys::tenant(&simple).schedule()).await?.len(), 10);

    let mut worker = Worker::of(&sandbox).set("tenants.key_form", "simple_uuid").start().await?;
    comes_in_step(&sandbox, &producer).await?;
    eventually(SOON, "an empty schedule", || async {
        ensure!(scores(&sandbox, &TenantKeys::tenant(&simple).schedule()).await?.is_empty());
        anyhow::Ok(())
    })
    .await?;
    assert_eq!(worker.metric("balance_sync_other_key_form_members", &[]).await?, 0.0);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Both forms of a tenant whose id is a UUID: as it is listed, and without dashes.
fn both_forms(tenant: &SandboxTenant) -> [TenantKeys; 2] {
    assert_eq!(tenant.id.len(), 36, "{} is no UUID", tenant.id);
    [tenant.keys.clone(), TenantKeys::tenant(&tenant.id.replace('-', ""))]
}

/// Waits until all balances have this version, and nothing is scheduled in either form.
async fn all_at(sandbox: &Sandbox, tenant: &SandboxTenant, version: i64) -> Result<()> {
    eventually(SOON, "all rows at the newest version, and empty schedules", || async {
        let found = rows(sandbox, tenant).await?;
        for balance in tenant.balances.iter() {
            let stored = found.get(&balance.id).context("no row")?;
            ensure!(stored.version == version, "version {} of {version}", stored.version);
            ensure!(stored.amounts == balance.amounts(version), "{stored:?}");
        }
        for keys in both_forms(tenant) {
            let left = scores(sandbox, &keys.schedule()).await?;
            ensure!(left.is_empty(), "{left:?}");
        }
        Ok(())
    })
    .await
}

/// A ledger is upgraded under load: first it writes keys as listed, then pods of both releases write the same balances, and
/// at last keys without dashes alone. Two workers serve the tenant, which is one to operators.
#[tokio::test]
async fn a_ledger_is_upgraded_under_load() -> Result<()> {
    const PHASE: i64 = 40;
    let sandbox = balance_sync_tests::sandbox(2, 30).await?;
    let tenant = sandbox.tenants().remove(1);
    let forms = both_forms(&tenant);
    let worker = || {
        Worker::of(&sandbox)
            .set("claim.legacy_interval", "200ms")
            // Both claim: neither waits for the other.
            .set("worker.partition", "false")
            .start()
    };
    let mut workers = [worker().await?, worker().await?];
    let mut redis = sandbox.redis().connect().await?;
    let mut version = 1;
    for round in 0..3 * PHASE {
        version += 1;
        for (number, balance) in tenant.balances.iter().enumerate() {
            let form = match round / PHASE {
                0 => 0,
                1 => (number + usize::try_from(round)?) % 2,
                _ => 1,
            };
            let (keys, json) = (&forms[form], balance.json(version));
            let member = keys.member(balance);
            put_raw(&mut redis, &keys.schedule(), member.as_bytes(), json.as_bytes(), Some(DEFAULT_TTL))
                .await?;
        }
    }
    all_at(&sandbox, &tenant, version).await?;
    for worker in &workers {
        let page = worker.metrics().await?;
        for outcome in ["quarantined", "released"] {
            assert_eq!(page.sum("balance_sync_balances_total", &[("outcome", outcome)]), 0.0, "{outcome}");
        }
        assert_eq!(page.sum("balance_sync_other_key_form_members", &[]), 0.0);
    }
    // One tenant to whoever looks, and one that is equal although older values stand under the form as listed.
    let config = sandbox.config_path().to_str().context("a path of text")?;
    let verified = run(&["verify", "--config", config, "--json"], &[]).await?;
    assert_eq!(verified.code, Some(0), "{verified:?}");
    let listed = run(&["tenants", "--config", config, "--json"], &[]).await?;
    let listed: serde_json::Value = serde_json::from_str(&listed.stdout)?;
    assert_eq!(listed["total"], 2, "{listed}");
    for worker in &mut workers {
        assert_eq!(worker.stop().await?.code, Some(0));
    }

    // What waits under the form that the list doesn't have is found as well.
    let (balance, keys) = (&tenant.balances[0], &forms[1]);
    let (member, json) = (keys.member(balance), balance.json(version + 1));
    put_raw(&mut redis, &keys.schedule(), member.as_bytes(), json.as_bytes(), Some(DEFAULT_TTL)).await?;
    let verified = run(&["verify", "--config", config, "--json"], &[]).await?;
    let found: serde_json::Value = serde_json::from_str(&verified.stdout)?;
    let row = found["tenants"].as_array().into_iter().flatten().find(|row| row["tenant"] == *tenant.id);
    assert_eq!(
        (verified.code, row.map(|row| &row["behind"])),
        (Some(1), Some(&serde_json::Value::from(1))),
        "{found}"
    );
    Ok(())
}

/// What waits longest is what is not expected: legacy schedules, quarantine, and a tenant without dashes in the list.
#[tokio::test]
async fn legacy_schedules_and_quarantine_of_both_forms_are_one_tenants() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 6).await?;
    let tenant = sandbox.tenants().remove(1);
    let forms = both_forms(&tenant);
    let mut redis = sandbox.redis().connect().await?;
    let now = redis_time(&mut redis).await?;
    for (number, balance) in tenant.balances.iter().enumerate() {
        let keys = &forms[number % 2];
        let member = keys.member(balance);
        let () = redis.set_ex(&member, balance.json(4), 3600).await?;
        let () = redis.zadd(keys.legacy_schedule(), member, (now - 60.0) * 1e6).await?;
    }
    let mut worker = Worker::of(&sandbox).set("claim.legacy_interval", "300ms").start().await?;
    all_at(&sandbox, &tenant, 4).await?;
    for keys in &forms {
        assert!(scores(&sandbox, &keys.legacy_schedule()).await?.is_empty());
    }

    // A value under each form that can't be read.
    let mut members: Vec<String> = Vec::new();
    for (keys, balance) in forms.iter().zip(tenant.balances.iter()) {
        let member = keys.member(balance);
        put_raw(&mut redis, &keys.schedule(), member.as_bytes(), b"[]", Some(DEFAULT_TTL)).await?;
        members.push(member);
    }
    members.sort();
    let config = sandbox.config_path().to_str().context("a path of text")?.to_owned();
    let quarantine = async |args: &[&str]| -> Result<serde_json::Value> {
        let all: Vec<&str> = [&["quarantine"], args, &["--json", "--config", &config]].concat();
        let done = run(&all, &[]).await?;
        serde_json::from_str(&done.stdout).with_context(|| format!("{args:?}: {done:?}"))
    };
    eventually(SOON, "an entry of each form under the one tenant", || async {
        let listed = quarantine(&["list", "--tenant", &tenant.id]).await?;
        let mut found: Vec<String> = Vec::new();
        for entry in listed.as_array().context("a list")? {
            assert_eq!(entry["tenant"], tenant.id.as_str());
            found.push(entry["member"].as_str().context("a member")?.to_owned());
        }
        found.sort();
        ensure!(found == members, "{found:?}");
        Ok(())
    })
    .await?;
    // By the id as it stands in the keys too.
    let by_key = quarantine(&["list", "--tenant", &tenant.id.replace('-', "")]).await?;
    assert_eq!(by_key.as_array().map(Vec::len), Some(2), "{by_key}");
    eventually(SOON, "both in the sample", || async {
        let count =
            worker.metric("balance_sync_quarantine_entries", &[("tenant_id", tenant.id.as_str())]).await?;
        ensure!(count == 2.0, "{count}");
        Ok(())
    })
    .await?;
    // Good values again: a retry schedules each in its own form. By the command, then by the interface of a worker.
    for version in [7, 8] {
        for (keys, balance) in forms.iter().zip(tenant.balances.iter()) {
            let () = redis.set_ex(keys.member(balance), balance.json(version), 3600).await?;
        }
        let done = if version == 7 {
            quarantine(&["retry", "--all", "--tenant", &tenant.id]).await?
        } else {
            let path = format!("/api/v1/quarantine?tenant={}", tenant.id);
            let listed = json(&worker, &path).await?;
            let mut found = texts(&listed["entries"], "member");
            found.sort_unstable();
            assert_eq!(found, members, "{listed}");
            post(&worker, "/api/v1/quarantine/retry", &serde_json::json!({"tenant": tenant.id})).await?.body
        };
        assert_eq!((&done["done"], &done["absent"]), (&2.into(), &0.into()), "{done}");
        eventually(SOON, "both written", || async {
            for balance in [0, 1] {
                let found = row(&sandbox, &tenant, balance).await?.version;
                ensure!(found == version, "{found}");
            }
            let left = quarantine(&["list", "--tenant", &tenant.id]).await?;
            ensure!(left.as_array().is_some_and(Vec::is_empty), "{left}");
            Ok(())
        })
        .await?;
        if version == 7 {
            for member in &members {
                let of = forms.iter().find(|keys| member.starts_with(keys.prefix())).context("its form")?;
                put_raw(&mut redis, &of.schedule(), member.as_bytes(), b"[]", Some(DEFAULT_TTL)).await?;
            }
            worker.reaches("balance_sync_balances_total", &[("outcome", "quarantined")], 4.0).await?;
        }
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// A row comes back after its balance was set aside under one form, and the ledger goes on under the other.
#[tokio::test]
async fn a_write_under_one_form_clears_what_was_set_aside_under_the_other() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 6).await?;
    let tenant = sandbox.tenants().remove(1);
    let forms = both_forms(&tenant);
    let table = balance_sync_sandbox::balance_table(tenant.schema.as_deref());
    let admin = async |sql: String| sandbox.postgres().execute(&tenant.database, &sql).await;
    let ids =
        tenant.balances[..2].iter().map(|balance| format!("'{}'", balance.id)).collect::<Vec<_>>().join(",");
    admin(format!(
        "CREATE TABLE aside AS SELECT * FROM {table} WHERE id IN ({ids}); DELETE FROM {table} WHERE id IN ({ids})"
    ))
    .await?;
    let mut worker = Worker::of(&sandbox).start().await?;
    let mut redis = sandbox.redis().connect().await?;
    let mut put = async |form: usize, balance: usize, version: i64| {
        let (keys, balance) = (&forms[form], &tenant.balances[balance]);
        let (member, json) = (keys.member(balance), balance.json(version));
        put_raw(&mut redis, &keys.schedule(), member.as_bytes(), json.as_bytes(), Some(DEFAULT_TTL)).await
    };
    put(0, 0, 3).await?;
    put(0, 1, 9).await?;
    let id = [("tenant_id", tenant.id.as_str())];
    worker.reaches("balance_sync_quarantine_entries", &id, 2.0).await?;

    admin(format!("INSERT INTO {table} SELECT * FROM aside")).await?;
    put(1, 0, 4).await?;
    put(1, 1, 4).await?;
    eventually(SOON, "both rows, and one entry: the one of a later version", || async {
        for balance in [0, 1] {
            ensure!(row(&sandbox, &tenant, balance).await?.version == 4);
        }
        let mut redis = sandbox.redis().connect().await?;
        let left: Vec<String> = redis.hkeys(quarantine_key(&tenant)).await?;
        ensure!(left == [forms[0].member(&tenant.balances[1])], "{left:?}");
        Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn variables_of_libpq_change_nothing() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let tenant = &sandbox.tenants()[0];
    // Settings for each session, under which nothing can be written, and files that aren't there.
    let mut worker = Worker::of(&sandbox)
        .env("PGOPTIONS", "-c default_transaction_read_only=on -c search_path=nowhere")
        .env("PGSSLROOTCERT", "/nowhere/root.pem")
        .env("PGSSLCERT", "/nowhere/cert.pem")
        .env("PGSSLKEY", "/nowhere/key.pem")
        .env("PGHOST", "nowhere.invalid")
        .env("PGPORT", "1")
        .env("PGUSER", "nobody")
        .env("PGPASSWORD", "nothing")
        .env("PGDATABASE", "nothing")
        .env("PGSSLMODE", "verify-full")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let environment = std::fs::read_to_string(format!("/proc/{}/environ", worker.pid()))?;
    assert!(!environment.contains("PGOPTIONS") && !environment.contains("PGSSLCERT"));
    assert_eq!(worker.metric("balance_sync_batch_failures_total", &[("tenant_id", &tenant.id)]).await?, 0.0);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
