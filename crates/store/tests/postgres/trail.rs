//! What became of balances of which only the name is left.

use std::time::Duration;

use balance_sync_store::{DatabaseSpec, ErrorClass, Fate, Named, Side, Table};

use crate::support::{LEDGER, ORGANIZATION, Tenant, id, open};

fn named(alias: &str) -> Named<'_> {
    Named { organization: ORGANIZATION, ledger: LEDGER, alias, key: "default" }
}

async fn fate(tenant: &Tenant, name: Named<'_>) -> Fate {
    tenant.database().fates(&Table::unqualified(), &[name]).await.unwrap().remove(0)
}

/// An operation of the balance with this number, after which it has this version and 10 × as much.
async fn operation(tenant: &Tenant, number: u32, version: i64, more: &str) {
    let columns: Vec<&str> =
        more.split(", ").filter_map(|part| part.split_once(" = ")).map(|p| p.0).collect();
    let values: Vec<&str> = more.split(", ").filter_map(|part| part.split_once(" = ")).map(|p| p.1).collect();
    let list = |parts: &[&str]| parts.iter().map(|part| format!(", {part}")).collect::<String>();
    tenant
        .sql(&format!(
            "INSERT INTO operation (balance_id, account_id, organization_id, ledger_id, balance_version_before, \
             balance_version_after, available_balance_after, on_hold_balance_after{}) \
             SELECT id, account_id, organization_id, ledger_id, {version} - 1, {version}, {version} * 10, 2.50{} \
             FROM balance WHERE id = '{}'",
            list(&columns),
            list(&values),
            id(number)
        ))
        .await;
}

fn why(fate: &Fate) -> &str {
    match fate {
        Fate::Unknown { why, .. } => why,
        other => panic!("{other:?}"),
    }
}

#[tokio::test]
async fn each_balance_has_its_fate() {
    let tenant = Tenant::new("fates").await;
    tenant.seed(9).await;
    tenant
        .sql(
            "UPDATE balance SET version = 5; \
             UPDATE balance SET deleted_at = now() WHERE alias IN ('@a2', '@a3'); \
             UPDATE balance SET key = NULL WHERE alias = '@a4'; \
             INSERT INTO balance (id, organization_id, ledger_id, account_id, alias, asset_code, version) \
             SELECT gen_random_uuid(), organization_id, ledger_id, gen_random_uuid(), alias, 'BRL', 1 \
             FROM balance WHERE alias = '@a3'; \
             UPDATE balance SET version = NULL WHERE alias = '@a8'; \
             UPDATE balance SET alias = '@a9 # é:/x' WHERE alias = '@a9'",
        )
        .await;
    for (number, version, more) in [
        (1, 5, ""),
        (4, 4, ""),
        // The newest one counts, whenever it was made; neither deleted ones do, nor those that changed nothing.
        (5, 6, "created_at = now() - interval '1 hour'"),
        (5, 4, ""),
        (5, 9, "balance_affected = false"),
        (5, 8, "deleted_at = now()"),
        (9, 7, "snapshot = '{\"overdraftUsedBefore\":\"1.5\";\"overdraftUsedAfter\":\"4\"}'"),
        (8, 1, ""),
    ] {
        operation(&tenant, number, version, &more.replace(';', ",")).await;
    }
    let other = Named { ledger: ORGANIZATION, ..named("@a2") };
    let savings = Named { key: "savings", ..named("@a2") };
    let sought = [
        named("@a1"),
        named("@a2"),
        named("@a3"),
        named("@a4"),
        named("@a5"),
        named("@a6"),
        named("nobody"),
        other,
        savings,
        named("@a8"),
        named("@a9 # é:/x"),
    ];
    let fates = tenant.database().fates(&Table::unqualified(), &sought).await.unwrap();
    assert_eq!(fates[0], Fate::Stale { row_version: 5 });
    assert_eq!(fates[1], Fate::Deleted);
    assert_eq!(fates[2], Fate::Stale { row_version: 1 }, "the account was created again");
    assert_eq!(fates[3], Fate::Stale { row_version: 5 });
    let Fate::Lost(lost) = &fates[4] else { panic!("{:?}", fates[4]) };
    assert_eq!((lost.row_version, lost.version), (5, 6));
    assert_eq!((lost.available.as_deref(), lost.on_hold.as_deref()), (Some("60"), Some("2.50")));
    assert_eq!((lost.overdraft_used.as_deref(), lost.in_doubt), (Some("0"), false));
    assert!(why(&fates[5]).contains("not complete"), "a row with versions and no operation: {:?}", fates[5]);
    for unknown in &fates[6..9] {
        assert!(why(unknown).contains("no row"), "{unknown:?}");
    }
    let Fate::Lost(lost) = &fates[9] else { panic!("{:?}", fates[9]) };
    assert_eq!((lost.row_version, lost.version), (-1, 1));
    let Fate::Lost(lost) = &fates[10] else { panic!("{:?}", fates[10]) };
    assert_eq!((lost.overdraft_used.as_deref(), lost.in_doubt), (Some("4"), false));
    assert!(tenant.database().fates(&Table::unqualified(), &[]).await.unwrap().is_empty());
}

/// More than there are places in the window of an audit or of one lost balance.
#[tokio::test]
async fn annotations_hide_no_operation_however_many_there_are() {
    let tenant = Tenant::new("annotations").await;
    tenant.seed(1).await;
    operation(&tenant, 1, 6, "created_at = now() - interval '1 hour'").await;
    for change in ["balance_affected = false", "balance_version_after = NULL"] {
        tenant
            .sql(&format!(
                "WITH notes AS (SELECT o.* FROM operation AS o, generate_series(1, 600) WHERE o.balance_version_after = 6 \
                    AND o.balance_affected IS NOT FALSE) \
                 INSERT INTO operation SELECT (jsonb_populate_record(NULL::operation, to_jsonb(notes) \
                    || jsonb_build_object('id', gen_random_uuid(), 'created_at', now()))).* FROM notes; \
                 UPDATE operation SET {change} WHERE created_at > now() - interval '30 minutes'"
            ))
            .await;
        let Fate::Lost(lost) = fate(&tenant, named("@a1")).await else { panic!("{change}") };
        assert_eq!((lost.row_version, lost.version), (1, 6), "{change}");
    }
}

#[tokio::test]
async fn thousands_of_closed_accounts_among_many_more_are_found_in_time() {
    let tenant = Tenant::new("many_closed").await;
    tenant.seed(1).await;
    tenant
        .sql(
            "INSERT INTO balance (id, organization_id, ledger_id, account_id, alias, key, asset_code, version, deleted_at) \
             SELECT gen_random_uuid(), organization_id, ledger_id, gen_random_uuid(), '@closed' || n, 'default', 'BRL', 3, now() \
             FROM balance, generate_series(1, 60000) AS n WHERE alias = '@a1'",
        )
        .await;
    let aliases: Vec<String> = (1..=1000).map(|n| format!("@closed{}", n * 50)).collect();
    let sought: Vec<Named<'_>> = aliases.iter().map(|alias| named(alias)).collect();
    let fates = tenant.database().fates(&Table::unqualified(), &sought).await.unwrap();
    assert!(
        fates.iter().all(|fate| *fate == Fate::Deleted),
        "{:?}",
        fates.iter().find(|f| **f != Fate::Deleted)
    );
}

#[tokio::test]
async fn a_name_that_no_row_can_have_says_nothing_of_the_others() {
    let tenant = Tenant::new("impossible_names").await;
    tenant.seed(2).await;
    operation(&tenant, 1, 1, "").await;
    let sought = [named("@a\0b"), named("@a1"), Named { key: "\0", ..named("@a2") }];
    let fates = tenant.database().fates(&Table::unqualified(), &sought).await.unwrap();
    assert!(why(&fates[0]).contains("NUL") && why(&fates[2]).contains("NUL"), "{fates:?}");
    assert_eq!(fates[1], Fate::Stale { row_version: 1 });
}

#[tokio::test]
async fn of_a_table_without_a_visible_row_nothing_is_said() {
    let tenant = Tenant::new("nothing_visible").await;
    let sought = [named("@a1"), named("@a2")];
    let error = tenant.database().fates(&Table::unqualified(), &sought).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NoVisibleRows);
    assert_eq!(
        tenant.database().fates(&Table::unqualified(), &sought[..1]).await.unwrap_err().class(),
        ErrorClass::NoVisibleRows
    );
}

#[tokio::test]
async fn the_traps_of_the_trail() {
    let tenant = Tenant::new("traps").await;
    tenant.seed(3).await;
    tenant.sql("UPDATE balance SET key = 'overdraft' WHERE alias = '@a1'").await;
    let repaid =
        "snapshot = '{\"overdraftUsedBefore\":\"70\";\"overdraftUsedAfter\":\"20.50\"}'".replace(';', ",");
    for number in [1, 2] {
        let sql = format!(
            "INSERT INTO operation (balance_id, account_id, organization_id, ledger_id, balance_key, \
             balance_version_after, available_balance_after, on_hold_balance_after, snapshot) \
             SELECT id, account_id, organization_id, ledger_id, key, 2, 20, 0, {} FROM balance WHERE id = '{}'",
            repaid.trim_start_matches("snapshot = "),
            id(number)
        );
        tenant.sql(&sql).await;
    }
    operation(&tenant, 3, 2, "snapshot = '[7]'").await;
    let Fate::Lost(lost) = fate(&tenant, Named { key: "overdraft", ..named("@a1") }).await else { panic!() };
    assert_eq!(
        (lost.overdraft_used, lost.in_doubt),
        (None, false),
        "the snapshot is that of the primary balance"
    );
    let Fate::Lost(lost) = fate(&tenant, named("@a2")).await else { panic!() };
    assert_eq!((lost.overdraft_used.as_deref(), lost.in_doubt), (Some("20.50"), true), "it may be a cancel");
    let Fate::Lost(lost) = fate(&tenant, named("@a3")).await else { panic!() };
    assert_eq!((lost.overdraft_used, lost.in_doubt), (None, false), "a snapshot of another form");
    tenant.sql("UPDATE operation SET snapshot = '{\"overdraftUsedAfter\":\"-1e9\"}'").await;
    let Fate::Lost(lost) = fate(&tenant, named("@a3")).await else { panic!() };
    assert!(lost.in_doubt, "what is no amount proves nothing");
}

#[tokio::test]
async fn what_may_not_be_read_is_named_and_stops_nothing() {
    let tenant = Tenant::new("unreadable").await;
    tenant.seed(2).await;
    operation(&tenant, 1, 2, "").await;
    tenant.sql("UPDATE balance SET deleted_at = now() WHERE alias = '@a2'").await;
    let lost = |fate: Fate| matches!(fate, Fate::Lost(lost) if lost.version == 2);
    assert!(lost(fate(&tenant, named("@a1")).await));

    tenant.sql("REVOKE SELECT ON operation FROM balance_sync_tenants").await;
    let found = fate(&tenant, named("@a1")).await;
    assert_eq!(why(&found), "the grant SELECT on operation is missing");
    assert!(matches!(found, Fate::Unknown { row_version: Some(1), .. }));
    assert_eq!(fate(&tenant, named("@a2")).await, Fate::Deleted, "that needs no trail");
    tenant.sql("GRANT SELECT ON operation TO balance_sync_tenants").await;

    // Row security hides rows without a word, or refuses.
    tenant
        .sql("ALTER TABLE operation ENABLE ROW LEVEL SECURITY; ALTER ROLE unreadable SET row_security = off")
        .await;
    let found = fate(&tenant, named("@a1")).await;
    assert!(why(&found).contains("row-level security"), "{found:?}");
    tenant.sql("ALTER TABLE operation DISABLE ROW LEVEL SECURITY").await;

    // Older ledgers have fewer columns.
    tenant
        .sql("ALTER TABLE operation DROP recorded_at, DROP snapshot, DROP balance_affected, DROP balance_key")
        .await;
    assert!(lost(fate(&tenant, named("@a1")).await));
    tenant.sql("ALTER TABLE operation DROP balance_version_after").await;
    assert_eq!(
        why(&fate(&tenant, named("@a1")).await),
        "table operation has no column balance_version_after"
    );
    tenant.sql("DROP TABLE operation").await;
    assert_eq!(why(&fate(&tenant, named("@a1")).await), "there is no table operation");

    tenant
        .sql(
            "REVOKE SELECT ON balance FROM balance_sync_tenants; \
             GRANT SELECT (id, organization_id, ledger_id, version, deleted_at) ON balance TO balance_sync_tenants",
        )
        .await;
    assert_eq!(
        why(&fate(&tenant, named("@a1")).await),
        "the grant SELECT (alias, key, account_id) on balance is missing"
    );
    tenant.sql("DROP TABLE balance").await;
    let error = tenant.database().fates(&Table::unqualified(), &[named("@a1")]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotProvisioned);
}

#[tokio::test]
async fn what_takes_too_long_is_left_open_and_a_lock_is_a_failure() {
    let tenant = Tenant::new("slowness").await;
    tenant.seed(2).await;
    operation(&tenant, 1, 2, "").await;
    let hasty =
        || open(DatabaseSpec { statement_timeout: Some(Duration::from_millis(500)), ..tenant.spec() });
    tenant
        .sql(
            "ALTER TABLE operation RENAME TO slow; \
             CREATE VIEW operation AS SELECT slow.* FROM slow, LATERAL (SELECT pg_sleep(60)) AS s; \
             GRANT SELECT ON operation TO balance_sync_tenants",
        )
        .await;
    let fates = hasty().fates(&Table::unqualified(), &[named("@a1"), named("@a2")]).await.unwrap();
    for fate in &fates {
        assert_eq!(why(fate), "the search for the newest operation took longer than 500ms");
    }

    let mut locker = tenant.server.connect(&tenant.name).await.unwrap();
    sqlx::raw_sql("BEGIN; LOCK TABLE balance").execute(&mut locker).await.unwrap();
    let patient = open(DatabaseSpec { statement_timeout: Some(Duration::from_secs(60)), ..tenant.spec() });
    let error = patient.fates(&Table::unqualified(), &[named("@a1")]).await.unwrap_err();
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Timeout, Some("55P03")));
}

/// Ten thousand closed accounts in a ledger of seventy thousand, on tables that were never analyzed.
#[tokio::test]
async fn many_deleted_rows_are_found_with_few_statements() {
    let tenant = Tenant::new("closed_accounts").await;
    tenant.sql("ALTER TABLE balance SET (autovacuum_enabled = off)").await;
    tenant.seed(70_000).await;
    tenant.sql("UPDATE balance SET deleted_at = now() WHERE id <= lpad(to_hex(10000), 32, '0')::uuid").await;
    let aliases: Vec<String> = (1..=10_100).map(|n| format!("@a{n}")).collect();
    let sought: Vec<Named<'_>> = aliases.iter().map(|alias| named(alias)).collect();
    let fates = tenant.database().fates(&Table::unqualified(), &sought).await.unwrap();
    assert_eq!(fates[..10_000].iter().find(|fate| **fate != Fate::Deleted), None);
    assert_eq!(fates[10_000..].iter().find(|fate| **fate != Fate::Stale { row_version: 1 }), None);
}

#[tokio::test]
async fn two_rows_of_one_name_prove_nothing() {
    let tenant = Tenant::new("ambiguous").await;
    tenant.seed(2).await;
    tenant.sql("UPDATE balance SET alias = '@a1'").await;
    let found = fate(&tenant, named("@a1")).await;
    assert_eq!(why(&found), "several rows have this alias and key");
    assert!(matches!(found, Fate::Unknown { row_version: None, .. }));
}

/// Only the latest 500 operations are read; where the ledger writes `recorded_at`, that is what they are the latest by.
#[tokio::test]
async fn operations_are_the_latest_by_the_time_they_were_recorded() {
    let tenant = Tenant::new("recorded").await;
    tenant.seed(1).await;
    tenant
        .sql(
            "INSERT INTO operation (balance_id, account_id, organization_id, ledger_id, balance_version_after, \
                 available_balance_after, on_hold_balance_after, created_at, recorded_at) \
             SELECT id, account_id, organization_id, ledger_id, n, n, 0, \
                 now() - n * interval '1 second', now() + n * interval '1 second' \
             FROM balance, generate_series(1, 600) AS n",
        )
        .await;
    let Fate::Lost(lost) = fate(&tenant, named("@a1")).await else { panic!("not lost") };
    assert_eq!(lost.version, 600, "its account's clock says that it is the oldest");
}

#[tokio::test]
async fn a_trail_on_a_read_only_server_proves_nothing() {
    let tenant = Tenant::new("fates_read_only").await;
    tenant.seed(2).await;
    operation(&tenant, 1, 1, "").await;
    operation(&tenant, 2, 2, "").await;
    let (table, stale, lost) = (Table::unqualified(), [named("@a1")], [named("@a2"), named("@none")]);
    let database = tenant.database();
    let ask = async |sought: &[Named<'_>]| {
        database.connect().await.unwrap().fates_if_writable(&table, sought).await
    };
    let known = ask(&stale).await.unwrap();
    assert_eq!(known.fates, [Fate::Stale { row_version: 1 }]);
    let started = known.started.unwrap();
    assert_eq!(started, tenant.value("pg_postmaster_start_time()").await);
    assert_eq!(database.usage().open, 1);

    // It counts from the next session on; the one that is open may still write.
    let default = "default_transaction_read_only";
    tenant.sql(&format!("ALTER DATABASE fates_read_only SET {default} = on")).await;
    let admin = async |sql: String| tenant.server.execute("postgres", &sql).await.unwrap();
    for _ in ["an old session", "a new session"] {
        let error = ask(&stale).await.unwrap_err();
        assert_eq!((error.class(), database.usage().open), (ErrorClass::ReadOnly, 0), "{error}");
    }
    // A newer operation proves a loss wherever it is seen.
    let known = ask(&lost).await.unwrap();
    assert!(matches!(known.fates[..], [Fate::Lost(_), Fate::Unknown { .. }]), "{known:?}");
    assert_eq!(known.started, None);
    let asked = database.fates(&table, &stale).await.unwrap();
    assert_eq!(asked, [Fate::Stale { row_version: 1 }], "for whoever only shows it");

    // What the role is set to takes precedence.
    admin(format!("ALTER ROLE fates_read_only SET {default} = off")).await;
    let error = ask(&stale).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::ReadOnly, "the session is older than the setting: {error}");
    assert_eq!(ask(&stale).await.unwrap().started, Some(started.clone()));
    admin(format!("ALTER ROLE fates_read_only IN DATABASE fates_read_only SET {default} = true")).await;
    assert_eq!(ask(&stale).await.unwrap_err().class(), ErrorClass::ReadOnly);
    admin(format!("ALTER ROLE fates_read_only IN DATABASE fates_read_only RESET {default}")).await;
    admin(format!("ALTER ROLE fates_read_only RESET {default}")).await;
    admin(format!("ALTER DATABASE fates_read_only RESET {default}")).await;
    assert_eq!(ask(&stale).await.unwrap().started, Some(started));
}

#[tokio::test]
async fn balances_behind_the_trail_are_found_page_by_page() {
    const SINCE: f64 = 1_700_000_000.0;
    let tenant = Tenant::new("behind").await;
    tenant.seed(1_200).await;
    tenant
        .sql("UPDATE balance SET version = 5; UPDATE balance SET deleted_at = now() WHERE alias = '@a9'")
        .await;
    for (number, version, more) in [
        (1, 5, ""),
        (2, 6, ""),
        // Older than what is asked for; without effect; of a deleted row.
        (3, 6, "created_at = '2020-01-01', recorded_at = NULL"),
        (4, 6, "balance_affected = false"),
        (9, 6, ""),
        (1_100, 9, ""),
    ] {
        operation(&tenant, number, version, more).await;
    }
    let (mut found, mut after, mut pages) = (Vec::new(), None, 0);
    loop {
        let page =
            tenant.database().behind_trail(&Table::unqualified(), after, 500, SINCE).await.unwrap().unwrap();
        found.extend(page.behind.into_iter().map(|balance| balance.alias));
        pages += 1;
        after = page.last;
        if after.is_none() {
            break;
        }
    }
    assert_eq!((found, pages), (vec!["@a2".to_owned(), "@a1100".to_owned()], 3));
    tenant.sql("DROP TABLE operation").await;
    let why =
        tenant.database().behind_trail(&Table::unqualified(), None, 500, SINCE).await.unwrap().unwrap_err();
    assert!(why.contains("operation"), "{why}");
}

#[tokio::test]
async fn two_states_at_one_version_are_found_page_by_page() {
    const SINCE: f64 = 1_700_000_000.0;
    let tenant = Tenant::new("doubled").await;
    tenant.seed(30).await;
    tenant
        .sql("UPDATE balance SET version = 8; UPDATE balance SET deleted_at = now() WHERE alias = '@a9'")
        .await;
    for number in 1..=9 {
        for version in [6, 7, 8] {
            operation(&tenant, number, version, "created_at = now() - interval '1 minute'").await;
        }
    }
    let again = async |number: u32, version: i64, change: &str| {
        operation(&tenant, number, version, "").await;
        tenant
            .sql(&format!(
                "UPDATE operation SET {change} WHERE balance_id = '{}' AND balance_version_after = {version} \
                 AND created_at > now() - interval '30 seconds'",
                id(number)
            ))
            .await;
    };
    // The ledger counted on from version 6, and from 5 with a hold.
    again(2, 7, "available_balance_after = 60.5").await;
    again(2, 8, "available_balance_after = 61").await;
    again(3, 6, "on_hold_balance_after = 9").await;
    // The same amounts; an annotation; deleted; without a version; before the time; of a deleted row.
    again(4, 7, "available_balance_after = 70.00").await;
    again(5, 7, "available_balance_after = 1, balance_affected = false").await;
    again(6, 7, "available_balance_after = 1, deleted_at = now()").await;
    again(7, 7, "available_balance_after = 1, balance_version_after = NULL").await;
    again(8, 7, "available_balance_after = 1, created_at = '2020-01-01', recorded_at = NULL").await;
    again(9, 7, "available_balance_after = 1").await;
    let side = |available: &str, on_hold: &str| Side {
        available: available.to_owned(),
        on_hold: on_hold.to_owned(),
    };
    for rows in [500, 1, 7] {
        let (mut found, mut after) = (Vec::new(), None);
        loop {
            let page = tenant.database().doubled_versions(&Table::unqualified(), after, rows, SINCE).await;
            let page = page.unwrap().unwrap();
            found.extend(page.doubled);
            after = page.last;
            if after.is_none() {
                break;
            }
        }
        let seen: Vec<_> = found
            .iter()
            .map(|one| (one.alias.as_str(), one.row_version, one.version, one.versions))
            .collect();
        assert_eq!(seen, [("@a2", 8, 7, 2), ("@a3", 8, 6, 1)]);
        assert_eq!((&found[0].first, &found[0].last), (&side("70", "2.50"), &side("60.5", "2.50")));
        assert_eq!((&found[1].first, &found[1].last), (&side("60", "2.50"), &side("60", "9")));
    }
    tenant.sql("DROP TABLE operation").await;
    let page = tenant.database().doubled_versions(&Table::unqualified(), None, 500, SINCE).await;
    let why = page.unwrap().unwrap_err();
    assert!(why.contains("operation"), "{why}");
}
