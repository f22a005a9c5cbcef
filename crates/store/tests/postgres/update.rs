//! What a batch does to the table.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use balance_sync_domain::BalanceValue;
use balance_sync_sandbox::{balance_table_sql, eventually};
use balance_sync_store::{Outcome, Row, RowResult, Table};
use rand::seq::SliceRandom;

use crate::support::{LEDGER, ORGANIZATION, PATIENCE, Tenant, row};
use Outcome::{Deleted, Missing, Stale, Updated};

#[tokio::test]
async fn each_row_has_its_outcome() {
    let tenant = Tenant::new("outcomes").await;
    tenant.seed(6).await;
    tenant
        .sql(
            "UPDATE balance SET version = 5; \
             UPDATE balance SET deleted_at = now() WHERE alias = '@a4'; \
             UPDATE balance SET version = NULL WHERE alias = '@a6'; \
             UPDATE balance SET updated_at = 'epoch'",
        )
        .await;
    let database = tenant.database();
    let table = Table::unqualified();

    // Not sorted, and with everything that can happen to a row.
    let rows = [
        row(3, 6),
        row(99, 9),
        row(1, 4),
        row(2, 3),
        row(4, 9),
        Row { organization: LEDGER, ..row(5, 9) },
        Row { ledger: ORGANIZATION, ..row(5, 9) },
        row(6, 1),
    ];
    let expected = [Updated, Missing, Stale, Stale, Deleted, Missing, Missing, Updated];
    assert_eq!(database.update(&table, &rows).await.unwrap(), expected);
    assert_eq!(tenant.stored(3).await, "10 v6");
    assert_eq!(tenant.stored(6).await, "10 v1");
    for untouched in [1, 2, 4, 5] {
        assert_eq!(tenant.stored(untouched).await, "1 v5", "row {untouched}");
    }
    assert_eq!(tenant.value("SELECT count(*) FROM balance WHERE updated_at > 'epoch'").await, "2");

    // All of one ledger, which is not that of the rows.
    for foreign in [
        Row { organization: LEDGER, ..row(5, 9) },
        Row { ledger: ORGANIZATION, ..row(5, 9) },
        Row { organization: LEDGER, ledger: ORGANIZATION, ..row(5, 9) },
    ] {
        let same = Row { id: row(1, 9).id, ..foreign };
        assert_eq!(database.update(&table, &[same, foreign]).await.unwrap(), [Missing, Missing]);
    }
    assert_eq!((tenant.stored(1).await, tenant.stored(5).await), ("1 v5".to_owned(), "1 v5".to_owned()));

    // The same once more changes nothing: G2.
    let again = [Stale, Missing, Stale, Stale, Deleted, Missing, Missing, Stale];
    assert_eq!(database.update(&table, &rows).await.unwrap(), again);
    assert_eq!(database.update(&table, &[row(3, i64::MAX)]).await.unwrap(), [Updated]);
    assert_eq!(database.update(&table, &[row(3, 7)]).await.unwrap(), [Stale]);
    assert_eq!(tenant.stored(3).await, format!("10 v{}", i64::MAX));
    assert_eq!(database.update(&table, &[]).await.unwrap(), []);
    // What isn't a late write of the same is distinguished: a newer row, and other amounts at the same version.
    let rows =
        [row(1, 4), Row { available: "11", ..row(6, 1) }, Row { available: "10.0", ..row(6, 1) }, row(2, 6)];
    let differs = RowResult::Differs;
    for (row, expected) in
        rows.iter().zip([&differs, &differs, &RowResult::Ok(Stale), &RowResult::Ok(Updated)])
    {
        let results = database.update_isolating(&table, std::slice::from_ref(row)).await.unwrap();
        assert_eq!(results.first(), Some(expected), "{row:?}");
    }
    // One connection has done all of it, and only the columns of the sync have changed.
    assert_eq!(database.usage().open, 1);
    assert_eq!(
        tenant.value("SELECT count(*) FROM balance WHERE alias = '@a3' AND asset_code = 'BRL'").await,
        "1"
    );
}

#[tokio::test]
async fn duplicates_write_the_newest() {
    let tenant = Tenant::new("duplicates").await;
    tenant.seed(3).await;
    let database = tenant.database();
    let old = Row { available: "7", ..row(1, 7) };
    let new = Row { available: "8", ..row(1, 8) };
    let foreign = Row { organization: LEDGER, ..row(2, 90) };
    let rows = [old, new, old, row(50, 2), row(50, 3), foreign, row(2, 2)];
    let outcomes = database.update(&Table::unqualified(), &rows).await.unwrap();
    assert_eq!(outcomes, [Stale, Updated, Stale, Missing, Missing, Missing, Updated]);
    assert_eq!(tenant.stored(1).await, "8 v8");
    assert_eq!(tenant.stored(2).await, "10 v2");
}

/// G3: what the producer wrote arrives digit for digit, also after later changes to other digits.
#[tokio::test]
async fn amounts_arrive_digit_for_digit() {
    let tenant = Tenant::new("exact").await;
    let samples: Vec<serde_json::Value> =
        serde_json::from_str(include_str!("../../../../tests/wire/producer_samples.json")).unwrap();
    let mut values: Vec<BalanceValue> = samples
        .iter()
        .filter_map(|sample| sample["value"].as_str())
        .map(|json| BalanceValue::decode(json.as_bytes()).unwrap())
        .collect();
    assert!(values.len() >= 10);
    values.sort_by_key(|value| (value.id, value.version));
    values.dedup_by_key(|value| value.id);
    let extremes = [
        "1234567890123456789012345678902.123456789012345678901234567891".to_owned(),
        "-0.000000000000000000000000000001".to_owned(),
        format!("{}.{}", "9".repeat(300), "1".repeat(300)),
        "0.10".to_owned(),
    ];
    let rows: Vec<Row<'_>> = values
        .iter()
        .map(|value| Row {
            id: value.id,
            available: value.available.as_str(),
            on_hold: value.on_hold.as_str(),
            overdraft_used: value.overdraft_used.as_str(),
            ..row(0, value.version)
        })
        .chain(extremes.iter().zip(1..).map(|(text, n)| Row { available: text, on_hold: text, ..row(n, 2) }))
        .collect();
    for row in &rows {
        tenant
            .sql(&format!(
                "INSERT INTO balance (id, organization_id, ledger_id, account_id, version) \
                 VALUES ('{}', '{ORGANIZATION}', '{LEDGER}', gen_random_uuid(), 0)",
                row.id
            ))
            .await;
    }
    let database = tenant.database();
    let table = Table::unqualified();
    let outcomes = database.update(&table, &rows).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Updated), "{outcomes:?}");

    let stored = database.fetch(&table, &rows).await.unwrap();
    for (row, stored) in rows.iter().zip(stored) {
        let stored = stored.unwrap();
        assert_eq!(
            (
                stored.available.as_str(),
                stored.on_hold.as_str(),
                stored.overdraft_used.as_str(),
                stored.version
            ),
            (row.available, row.on_hold, row.overdraft_used, row.version)
        );
        assert!(stored.same_amounts);
    }
}

#[tokio::test]
async fn fetch_compares_numbers_not_text() {
    let tenant = Tenant::new("fetching").await;
    tenant.seed(3).await;
    tenant
        .sql("UPDATE balance SET available = 1.50; UPDATE balance SET on_hold = NULL WHERE alias = '@a3'")
        .await;
    let database = tenant.database();
    let rows = [Row { available: "1.5", ..row(1, 1) }, row(77, 1), row(2, 1), row(3, 1)];
    let stored = database.fetch(&Table::unqualified(), &rows).await.unwrap();
    let first = stored[0].clone().unwrap();
    assert_eq!((first.available.as_str(), first.version, first.same_amounts), ("1.50", 1, true));
    assert_eq!(stored[1], None);
    assert!(!stored[2].as_ref().unwrap().same_amounts);
    assert_eq!(stored[3].as_ref().unwrap().on_hold, "NULL");
    assert!(!stored[3].as_ref().unwrap().same_amounts);
}

#[tokio::test]
async fn seventy_thousand_rows_in_one_call() {
    const ROWS: u32 = 70_000;
    let tenant = Tenant::new("large").await;
    tenant.seed(ROWS).await;
    let mut rows: Vec<Row<'_>> = (1..=ROWS).map(|n| row(n, 2)).collect();
    rows.shuffle(&mut rand::rng());
    rows.push(row(ROWS + 1, 2));
    let database = tenant.database();
    let outcomes = database.update(&Table::unqualified(), &rows).await.unwrap();
    assert_eq!(outcomes.iter().filter(|o| **o == Updated).count(), ROWS as usize);
    assert_eq!(outcomes[ROWS as usize], Missing);
    assert_eq!(
        tenant.value("SELECT count(*) FROM balance WHERE version = 2 AND available = 10").await,
        ROWS.to_string()
    );
}

/// Two workers write overlapping batches, each in its own random order, for a while.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn writers_never_deadlock_and_versions_never_decrease() {
    const BALANCES: u32 = 4000;
    let tenant = Tenant::new("concurrent").await;
    tenant.seed(BALANCES).await;
    tenant
        .sql(
            "CREATE TABLE backwards (id uuid); GRANT INSERT ON backwards TO PUBLIC; \
             CREATE FUNCTION watch() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.version <= OLD.version THEN INSERT INTO backwards VALUES (NEW.id); END IF; RETURN NEW; END $$; \
             CREATE TRIGGER watch BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION watch()",
        )
        .await;
    let writer = |seed: i64| {
        let database = tenant.database();
        tokio::spawn(async move {
            let mut counts = HashMap::new();
            let end = Instant::now() + Duration::from_secs(3);
            let mut version = 2;
            while Instant::now() < end {
                let mut numbers: Vec<u32> = (1..=BALANCES).collect();
                numbers.shuffle(&mut rand::rng());
                let rows: Vec<Row<'_>> = numbers[..900].iter().map(|&n| row(n, version + seed)).collect();
                for outcome in database.update(&Table::unqualified(), &rows).await.unwrap() {
                    *counts.entry(outcome).or_insert(0u64) += 1;
                }
                version += 1;
            }
            counts
        })
    };
    for counts in futures::future::join_all([writer(0), writer(1), writer(0)]).await {
        let counts = counts.unwrap();
        assert!(counts[&Updated] > 0, "{counts:?}");
        assert_eq!(counts.get(&Missing), None);
    }
    assert_eq!(tenant.value("SELECT count(*) FROM backwards").await, "0");
    assert_eq!(
        tenant.value("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()").await,
        "0"
    );
}

#[tokio::test]
async fn a_schema_with_quotes_in_its_name() {
    let schema = r#"tenant "a"; b"#;
    let tenant = Tenant::new("schemas").await;
    let quoted = r#""tenant ""a""; b""#;
    tenant
        .sql(&format!(
            "CREATE SCHEMA {quoted}; {} GRANT USAGE ON SCHEMA {quoted} TO {role}; GRANT SELECT, UPDATE ON {quoted}.balance TO {role}",
            balance_table_sql(Some(schema)),
            role = tenant.quoted_name()
        ))
        .await;
    tenant.seed_into(&format!("{quoted}.balance"), 1).await;
    tenant.seed(1).await;
    let database = tenant.database();
    let table = Table::in_schema(schema).unwrap();
    assert_eq!(database.update(&table, &[row(1, 3)]).await.unwrap(), [Updated]);
    assert_eq!(tenant.value(&format!("SELECT version FROM {quoted}.balance")).await, "3");
    assert_eq!(tenant.stored(1).await, "1 v1", "the table of another schema must not change");
}

/// The order of locks rests on this plan, and so does the speed: rows as sent, each looked up by primary key. On a table
/// without statistics, with those of the few rows it once had, and with good ones.
#[tokio::test]
async fn the_plan_walks_the_rows_as_sent() {
    let tenant = Tenant::new("plans").await;
    tenant
        .sql(
            "ALTER TABLE balance SET (autovacuum_enabled = off); \
             ALTER DATABASE plans SET session_preload_libraries = 'auto_explain'; \
             ALTER DATABASE plans SET auto_explain.log_min_duration = 0",
        )
        .await;
    let log = || std::fs::read_to_string(tenant.server.folder().join("server.log")).unwrap_or_default();
    let mut version = 1;
    let mut expected = 0;
    for (statistics, seed, rows_in_table) in [
        ("DELETE FROM balance", 20, 20),
        ("ANALYZE balance", 0, 20),
        ("DELETE FROM balance", 200_000, 200_000),
        ("ANALYZE balance", 0, 200_000),
    ] {
        tenant.sql(statistics).await;
        tenant.seed(seed).await;
        let database = tenant.database();
        for count in [1, 50, 1000] {
            version += 1;
            let step = rows_in_table / count.min(rows_in_table);
            let rows: Vec<Row<'_>> = (0..count).map(|n| row(1 + n * step, version)).collect();
            let outcomes = database.update(&Table::unqualified(), &rows).await.unwrap();
            assert_eq!(outcomes.iter().filter(|o| **o == Updated).count() as u32, count.min(rows_in_table));
            database.fetch(&Table::unqualified(), &rows).await.unwrap();
            expected += 2 + u32::from(count > rows_in_table);
        }
    }
    let plans = eventually(PATIENCE, "all plans in the log", || async {
        let plans = plans_of(&log());
        (plans.len() as u32 >= expected).then_some(plans)
    })
    .await
    .unwrap();
    for plan in plans {
        let outer = plan.find("Function Scan on v").unwrap_or_else(|| panic!("{plan}"));
        let inner =
            plan.find("Index Scan using balance_pkey on balance b").unwrap_or_else(|| panic!("{plan}"));
        assert!(
            plan.contains("Nested Loop") && outer < inner && plan.contains("Index Cond: (id = v.id)"),
            "{plan}"
        );
    }
}

/// The plans of our statements that `auto_explain` has logged, completely, by the arrays all of them have.
fn plans_of(log: &str) -> Vec<String> {
    log.split(" LOG:  ")
        .filter(|entry| {
            entry.contains("plan:") && entry.contains("FROM unnest('{") && entry.contains("Index Cond")
        })
        .map(str::to_owned)
        .collect()
}

#[tokio::test]
async fn a_cancelled_write_leaves_no_half_read_connection() {
    let tenant = Tenant::new("cancelled").await;
    tenant.seed(2).await;
    let database = tenant.database();
    let table = Table::unqualified();
    let mut blocker = tenant.server.connect(&tenant.name).await.unwrap();
    sqlx::raw_sql("BEGIN; UPDATE balance SET alias = 'x' WHERE version = 1")
        .execute(&mut blocker)
        .await
        .unwrap();

    let rows = [row(1, 2)];
    let cut_off = tokio::time::timeout(Duration::from_millis(300), database.update(&table, &rows)).await;
    assert!(cut_off.is_err(), "the row was locked");
    assert_eq!(database.usage().open, 0, "a connection in the middle of an answer must not be kept");
    sqlx::raw_sql("ROLLBACK").execute(&mut blocker).await.unwrap();
    assert_eq!(database.update(&table, &[row(2, 2), row(9, 2)]).await.unwrap(), [Updated, Missing]);
}
