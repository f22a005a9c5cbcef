//! G6: a row that another session has locked doesn't keep the others of its batch from being written, and who has locked it is
//! named.

use balance_sync_store::{Database, DatabaseSpec, ErrorClass, Outcome, Row, RowResult, Table};
use secrecy::SecretString;
use sqlx::PgConnection;
use sqlx::postgres::PgConnectOptions;
use sqlx::{AssertSqlSafe, ConnectOptions, Row as _};

use crate::support::{Tenant, id, open, row};

/// A session of an administrator that does this in a transaction and leaves it open, and its process.
async fn holding(tenant: &Tenant, sql: &str) -> (PgConnection, i32) {
    let options: PgConnectOptions = tenant.server.admin_url(&tenant.name).parse().unwrap();
    let mut connection = options.application_name("month end").connect().await.unwrap();
    sqlx::raw_sql(AssertSqlSafe(format!("BEGIN; {sql}"))).execute(&mut connection).await.unwrap();
    let pid = sqlx::raw_sql("SELECT pg_backend_pid()").fetch_one(&mut connection).await.unwrap().get(0);
    (connection, pid)
}

async fn release(mut connection: PgConnection) {
    sqlx::raw_sql("ROLLBACK").execute(&mut connection).await.unwrap();
}

/// The tenant's database, with the wait for locks that a worker has.
fn database(tenant: &Tenant) -> Database {
    let lock_wait = DatabaseSpec::new("", 0, "", "", SecretString::from("")).lock_wait;
    open(DatabaseSpec { lock_wait, ..tenant.spec() })
}

fn lock_row(number: u32) -> String {
    format!("UPDATE balance SET alias = alias WHERE id = '{}'", id(number))
}

fn rows(count: u32, version: i64) -> Vec<Row<'static>> {
    (1..=count).map(|n| row(n, version)).collect()
}

#[tokio::test]
async fn one_locked_row_holds_up_no_other() {
    const ROWS: u32 = 500;
    let tenant = Tenant::new("one_locked").await;
    tenant.seed(ROWS).await;
    let (database, table) = (database(&tenant), Table::unqualified());
    let (blocker, pid) = holding(&tenant, &lock_row(77)).await;

    // The second time it is known, and not waited for.
    for version in [2, 3] {
        let results = database.update_isolating(&table, &rows(ROWS, version)).await.unwrap();
        for (n, result) in (1..).zip(&results) {
            if n != 77 {
                assert_eq!(*result, RowResult::Ok(Outcome::Updated), "row {n}");
                continue;
            }
            let RowResult::Locked { message } = result else { panic!("row {n}: {result:?}") };
            assert!(
                message.contains(&format!("process {pid}, application \"month end\" (the start")),
                "{message}"
            );
        }
        assert_eq!(tenant.stored(76).await, format!("10 v{version}"));
        assert_eq!(tenant.stored(77).await, "1 v1");
    }
    // With the right to see it, the start of the transaction is named as well.
    tenant.sql("GRANT pg_read_all_stats TO one_locked").await;
    let results = database.update_isolating(&table, &rows(ROWS, 4)).await.unwrap();
    let RowResult::Locked { message } = &results[76] else { panic!("{:?}", results[76]) };
    let day = tenant.value("to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM')").await;
    assert!(message.contains(&format!("in a transaction since {day}")), "{message}");
    assert!(!message.contains("UPDATE"), "no text of a query: {message}");

    release(blocker).await;
    let results = database.update_isolating(&table, &rows(ROWS, 5)).await.unwrap();
    assert!(results.iter().all(|result| *result == RowResult::Ok(Outcome::Updated)));
    assert_eq!(tenant.stored(77).await, "10 v5");
}

/// Locked rows beside refused and missing ones: each has its own result, and a newer row differs, and is not locked.
#[tokio::test]
async fn a_locked_row_is_distinguished_from_others_that_cant_be_written() {
    let tenant = Tenant::new("mixed_locks").await;
    tenant.seed(6).await;
    tenant.sql(&format!("UPDATE balance SET version = 9 WHERE id = '{}'", id(5))).await;
    let database = database(&tenant);
    let lock = format!("SELECT FROM balance WHERE id IN ('{}', '{}') FOR UPDATE", id(2), id(5));
    let (blocker, pid) = holding(&tenant, &lock).await;
    let mut batch = rows(7, 2);
    batch[2] = Row { available: "1e999999", ..row(3, 2) };
    let results = database.update_isolating(&Table::unqualified(), &batch).await.unwrap();
    let updated = RowResult::Ok(Outcome::Updated);
    assert_eq!((&results[0], &results[3], &results[5]), (&updated, &updated, &updated));
    assert!(matches!(&results[1], RowResult::Locked { message } if message.contains(&pid.to_string())));
    assert!(matches!(&results[2], RowResult::Refused { .. }), "{:?}", results[2]);
    assert_eq!(results[4], RowResult::Differs);
    assert_eq!(results[6], RowResult::Ok(Outcome::Missing));
    release(blocker).await;
}

/// What a foreign key takes on the rows it refers to goes beside an update of amounts.
#[tokio::test]
async fn a_lock_of_a_foreign_key_is_no_obstacle() {
    let tenant = Tenant::new("key_share").await;
    tenant.seed(3).await;
    let lock = "SELECT FROM balance FOR KEY SHARE; LOCK TABLE balance IN ROW EXCLUSIVE MODE";
    let (share, _) = holding(&tenant, lock).await;
    let (blocker, _) = holding(&tenant, &lock_row(2)).await;
    let results = database(&tenant).update_isolating(&Table::unqualified(), &rows(3, 2)).await.unwrap();
    let locked: Vec<bool> = results.iter().map(|result| matches!(result, RowResult::Locked { .. })).collect();
    assert_eq!(locked, [false, true, false], "{results:?}");
    release(blocker).await;
    release(share).await;
}

/// With the least rights that a write needs, system columns can't be read: whoever works on the table longest is named.
#[tokio::test]
async fn the_holder_is_named_with_the_least_rights() {
    let tenant = Tenant::new("least_rights").await;
    tenant.seed(2).await;
    tenant
        .sql(
            "REVOKE ALL ON balance FROM balance_sync_tenants; REVOKE ALL ON balance FROM least_rights; \
             GRANT UPDATE (available, on_hold, overdraft_used, version, updated_at), \
             SELECT (id, organization_id, ledger_id, version, deleted_at) ON balance TO least_rights",
        )
        .await;
    let (blocker, pid) = holding(&tenant, &lock_row(1)).await;
    let results = database(&tenant).update_isolating(&Table::unqualified(), &rows(2, 2)).await.unwrap();
    let RowResult::Locked { message } = &results[0] else { panic!("{results:?}") };
    assert!(message.contains(&format!("process {pid}, application \"month end\"")), "{message}");
    assert_eq!(results[1], RowResult::Ok(Outcome::Updated));
    release(blocker).await;
}

#[tokio::test]
async fn who_locks_the_whole_table_is_named() {
    let tenant = Tenant::new("table_locked").await;
    tenant.seed(2).await;
    let database = database(&tenant);
    for mode in ["SHARE", "ACCESS EXCLUSIVE"] {
        let (blocker, pid) = holding(&tenant, &format!("LOCK TABLE balance IN {mode} MODE")).await;
        let error = database.update_isolating(&Table::unqualified(), &rows(2, 2)).await.unwrap_err();
        assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Timeout, Some("55P03")), "{error}");
        assert!(
            error
                .message()
                .contains(&format!("balance is locked by process {pid}, application \"month end\"")),
            "{mode}: {error}"
        );
        release(blocker).await;
    }
    assert_eq!(database.usage().open, 1, "none of this is the connection's fault");
    let results = database.update_isolating(&Table::unqualified(), &rows(2, 2)).await.unwrap();
    assert_eq!(results, vec![RowResult::Ok(Outcome::Updated); 2]);
}

/// Databases that were made from one template have the same oid for the same table.
#[tokio::test]
async fn a_session_that_locks_a_table_of_another_database_is_not_named() {
    let (tenant, other) = (Tenant::new("own_lock").await, Tenant::new("other_lock").await);
    tenant.seed(1).await;
    other.seed(1).await;
    // Older, and so named first if it counted.
    let (others, _) = holding(&other, "LOCK TABLE balance IN SHARE MODE").await;
    let (blocker, pid) = holding(&tenant, "LOCK TABLE balance IN SHARE MODE").await;
    assert_eq!(table_oid(&tenant).await, table_oid(&other).await, "otherwise this shows nothing");

    let error = database(&tenant).update_isolating(&Table::unqualified(), &rows(1, 2)).await.unwrap_err();
    assert!(error.message().contains(&format!("locked by process {pid}, ")), "{error}");
    release(blocker).await;
    release(others).await;
}

async fn table_oid(tenant: &Tenant) -> i64 {
    let options: PgConnectOptions = tenant.server.admin_url(&tenant.name).parse().unwrap();
    let mut connection = options.connect().await.unwrap();
    let sql = "SELECT 'balance'::regclass::oid::bigint";
    sqlx::raw_sql(sql).fetch_one(&mut connection).await.unwrap().get(0)
}
