//! Refusals that concern a whole table, and those that concern one row.

use balance_sync_store::{ErrorClass, Outcome, Row, RowResult, Table};
use uuid::Uuid;

use crate::support::{Tenant, id, row};

const MISSING: RowResult = RowResult::Ok(Outcome::Missing);
const UPDATED: RowResult = RowResult::Ok(Outcome::Updated);

fn rows(numbers: std::ops::RangeInclusive<u32>) -> Vec<Row<'static>> {
    numbers.map(|number| row(number, 9)).collect()
}

/// What becomes of the rows, and which of them were refused.
async fn refused(tenant: &Tenant, rows: &[Row<'_>]) -> Result<Vec<usize>, ErrorClass> {
    let results = tenant.database().update_isolating(&Table::unqualified(), rows).await;
    let results = results.map_err(|error| {
        assert!(!error.is_transient(), "{error}");
        error.class()
    })?;
    assert!(results.iter().all(|result| matches!(result, RowResult::Refused { .. }) || *result == UPDATED));
    Ok((0..rows.len()).filter(|at| results[*at] != UPDATED).collect())
}

#[tokio::test]
async fn a_table_without_a_visible_row_is_no_fault_of_the_balances() {
    let tenant = Tenant::new("no_rows").await;
    let database = tenant.database();
    let table = Table::unqualified();
    for batch in [rows(1..=1), rows(1..=500)] {
        let error = database.update_isolating(&table, &batch).await.unwrap_err();
        assert_eq!((error.class(), error.is_transient()), (ErrorClass::NoVisibleRows, false), "{error}");
    }
    // Restored: it goes on. One that lacks now is missing.
    tenant.seed(500).await;
    let results = database.update_isolating(&table, &rows(2..=501)).await.unwrap();
    assert_eq!(results.iter().filter(|result| **result == UPDATED).count(), 499);
    assert_eq!(results[499], MISSING);
    assert_eq!(database.update_isolating(&table, &[row(900, 1)]).await.unwrap(), [MISSING]);
    // A row that is deleted can be seen.
    tenant.sql("DELETE FROM balance WHERE alias <> '@a1'; UPDATE balance SET deleted_at = now()").await;
    assert_eq!(database.update_isolating(&table, &rows(901..=930)).await.unwrap(), vec![MISSING; 30]);
}

#[tokio::test]
async fn a_table_of_other_organizations_alone_is_another_database() {
    let tenant = Tenant::new("strangers").await;
    tenant.seed(20).await;
    let database = tenant.database();
    let table = Table::unqualified();
    let strange = |count: u32| -> Vec<Row<'static>> {
        rows(101..=100 + count)
            .into_iter()
            .map(|row| Row { organization: Uuid::from_u128(7), ..row })
            .collect()
    };
    let error = database.update_isolating(&table, &strange(10)).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NoVisibleRows, "{error}");
    assert!(error.message().contains("of 10 balances none"), "{error}");
    // A few may be wrong members, or all that is due of a quiet tenant.
    for count in [1, 9] {
        for result in database.update_isolating(&table, &strange(count)).await.unwrap() {
            assert!(
                matches!(&result, RowResult::UnknownLedger { message } if message.contains("other organizations")),
                "{result:?}"
            );
        }
    }
    // One whose row is there under another organization is wrong by itself.
    let astray = Row { organization: Uuid::from_u128(7), ..row(1, 9) };
    assert_eq!(database.update_isolating(&table, &[astray]).await.unwrap(), [MISSING]);
    // Beside one that is right, and after it, any number of them is missing.
    let mut mixed = strange(10);
    mixed.push(row(1, 9));
    assert_eq!(database.update_isolating(&table, &mixed).await.unwrap()[10], UPDATED);
    assert_eq!(tenant.value("SELECT count(*) FROM balance WHERE version = 9").await, "1");
    for count in [1, 10] {
        let results = database.update_isolating(&table, &strange(count)).await.unwrap();
        assert_eq!(results, vec![MISSING; count as usize]);
    }
    // Until the rows that were right are gone: the name leads to another database now.
    tenant.sql("UPDATE balance SET organization_id = gen_random_uuid()").await;
    let result = &database.update_isolating(&table, &strange(1)).await.unwrap()[0];
    assert!(matches!(result, RowResult::UnknownLedger { .. }), "{result:?}");
}

/// A trigger may raise whatever it likes, for one row or for all.
#[tokio::test]
async fn what_a_trigger_raises_of_one_row_is_that_rows_fault_whatever_its_code() {
    let tenant = Tenant::new("raises_one").await;
    tenant.seed(100).await;
    tenant
        .sql(
            "CREATE TABLE forbidden (n int); \
             CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.alias = '@a5' OR TG_ARGV[2] = 'all' THEN \
                 IF TG_ARGV[0] = 'select' THEN PERFORM n FROM forbidden; END IF; \
                 RAISE EXCEPTION USING ERRCODE = TG_ARGV[0], MESSAGE = TG_ARGV[1]; \
               END IF; RETURN NEW; END $$",
        )
        .await;
    let raised = [
        ("42501", "permission denied"),
        ("42P01", "no such table"),
        ("40001", "could not serialize access"),
        ("40P01", "deadlock detected"),
        ("57014", "canceling statement due to statement timeout"),
        ("55P03", "lock not available"),
        ("53100", "disk full"),
        ("53300", "too many connections"),
        ("08006", "connection failure"),
        ("25006", "read-only transaction"),
        ("28P01", "password authentication failed"),
        ("3D000", "no such database"),
        ("26000", "no such prepared statement"),
        ("57P01", "terminating connection"),
        ("XX000", "internal"),
        ("0A000", "not supported"),
        ("22P02", "balance-sync guard: database other"),
        ("22P02", "balance-sync probe 1 1"),
        ("select", "-"),
    ];
    for (code, message) in raised {
        let trigger = |which: &str| {
            format!(
                "DROP TRIGGER IF EXISTS t ON balance; CREATE TRIGGER t BEFORE UPDATE ON balance \
                 FOR EACH ROW EXECUTE FUNCTION judge('{code}', '{message}', '{which}')"
            )
        };
        tenant.sql(&trigger("one")).await;
        let results = tenant.database().update_isolating(&Table::unqualified(), &rows(1..=50)).await;
        let results = results.unwrap_or_else(|error| panic!("{code}: {error}"));
        for (at, result) in results.iter().enumerate() {
            match result {
                RowResult::Refused { sqlstate, .. } if at == 4 => {
                    assert_eq!(sqlstate, if code == "select" { "42501" } else { code });
                }
                result => assert_eq!(*result, UPDATED, "{code}: row {at}"),
            }
        }
        // And of every row: a state, with the class that the code has where it has one.
        tenant.sql(&trigger("all")).await;
        let results = tenant.database().update_isolating(&Table::unqualified(), &rows(60..=70)).await;
        let error = results.expect_err(code);
        assert!(error.message().contains("refuses every update"), "{code}: {error}");
        tenant.sql("DROP TRIGGER t ON balance; UPDATE balance SET version = 1").await;
    }
}

/// Errors are logged and shown to readers, who may not see amounts; a refused row goes to quarantine with all words.
#[tokio::test]
async fn what_is_said_of_a_value_has_no_amounts_but_in_the_result_of_a_refused_row() {
    let tenant = Tenant::new("says_amounts").await;
    tenant.seed(20).await;
    tenant
        .sql(
            "UPDATE balance SET available = 771234567.5; ALTER TABLE balance ADD CONSTRAINT low CHECK (on_hold < 5); \
             CREATE FUNCTION say() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.alias = '@a5' OR TG_ARGV[1] = 'all' THEN \
                 IF TG_ARGV[0] = 'cast' THEN PERFORM ('x' || OLD.available)::int; END IF; \
                 IF TG_ARGV[0] = 'statement' THEN EXECUTE 'SELECT ' || quote_ident(OLD.available::text); END IF; \
                 RAISE EXCEPTION 'from % to %', OLD.available, NEW.available USING ERRCODE = TG_ARGV[0]; \
               END IF; RETURN NEW; END $$",
        )
        .await;
    let database = tenant.database();
    for code in ["P0001", "42501", "40001", "57014", "25006", "08006", "XX000", "cast", "statement"] {
        let trigger = |which: &str| {
            format!(
                "DROP TRIGGER IF EXISTS t ON balance; CREATE TRIGGER t BEFORE UPDATE ON balance \
                 FOR EACH ROW EXECUTE FUNCTION say('{code}', '{which}')"
            )
        };
        tenant.sql(&trigger("one")).await;
        let results = database.update_isolating(&Table::unqualified(), &rows(1..=10)).await.unwrap();
        assert!(
            matches!(&results[4], RowResult::Refused { message, .. } if message.contains("771234567.5")),
            "{code}: {:?}",
            results[4]
        );
        tenant.sql(&trigger("all")).await;
        let error = database.update_isolating(&Table::unqualified(), &rows(11..=15)).await.expect_err(code);
        assert!(error.message().contains("refuses every update"), "{code}: {error}");
        assert!(!format!("{error} {error:?}").contains("771234567"), "{code}: {error:?}");
        tenant
            .sql("DROP TRIGGER t ON balance; UPDATE balance SET version = 1, available = 771234567.5")
            .await;
    }
    // Postgres itself quotes what it can't read.
    let odd = Row { available: "771234567e", ..row(1, 9) };
    let error = database.update(&Table::unqualified(), &[odd]).await.unwrap_err();
    assert!(!format!("{error} {error:?}").contains("771234567"), "{error:?}");
    // Names of what refused stay.
    let held = Row { on_hold: "7", ..row(1, 9) };
    let error = database.update(&Table::unqualified(), &[held]).await.unwrap_err();
    assert!(error.message().contains("check constraint \"low\""), "{error}");
}

#[tokio::test]
async fn what_a_trigger_or_a_column_changes_is_not_taken_for_written() {
    let tenant = Tenant::new("altered").await;
    tenant.seed(100).await;
    for (name, change) in [
        ("version", "NEW.version := OLD.version"),
        ("available", "NEW.available := OLD.available"),
        ("on_hold", "NEW.on_hold := 3"),
        ("overdraft_used", "NEW.overdraft_used := NULL"),
    ] {
        let sql = format!(
            "ALTER TABLE balance ALTER COLUMN overdraft_used DROP NOT NULL; \
             CREATE OR REPLACE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.alias = '@a5' OR TG_ARGV[0] = 'all' THEN {change}; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION keep('one')"
        );
        tenant.sql(&sql).await;
        assert_eq!(refused(&tenant, &rows(1..=50)).await, Ok(vec![4]), "{name}");
        assert_eq!(tenant.value("SELECT version FROM balance WHERE alias = '@a5'").await, "1", "{name}");
        tenant
            .sql(
                "DROP TRIGGER t ON balance; \
                 CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION keep('all')",
            )
            .await;
        for batch in [rows(60..=70), rows(60..=60)] {
            assert_eq!(refused(&tenant, &batch).await, Err(ErrorClass::RefusesEveryRow), "{name}");
        }
        tenant.sql("DROP TRIGGER t ON balance; UPDATE balance SET version = 1").await;
    }
    // A column that rounds.
    tenant.sql("ALTER TABLE balance ALTER COLUMN available TYPE numeric(20, 2)").await;
    let exact = Row { available: "1.25", ..row(1, 9) };
    let rounded = Row { available: "1.255", ..row(2, 9) };
    assert_eq!(refused(&tenant, &[exact, rounded]).await, Ok(vec![1]));
    assert_eq!(tenant.value("SELECT sum(version) FROM balance WHERE alias IN ('@a1', '@a2')").await, "10");
}

/// The check reads the amounts, writing does not need to.
#[tokio::test]
async fn a_role_that_may_not_read_amounts_still_writes() {
    let tenant = Tenant::new("hidden_amounts").await;
    tenant.seed(20).await;
    tenant
        .sql(
            "REVOKE ALL ON balance FROM balance_sync_tenants; \
             GRANT SELECT (id, organization_id, ledger_id, version, deleted_at), \
             UPDATE (available, on_hold, overdraft_used, version, updated_at) ON balance TO balance_sync_tenants",
        )
        .await;
    let database = tenant.database();
    let table = Table::unqualified();
    for round in [9, 10] {
        let batch: Vec<Row<'_>> = (1..=20).map(|number| row(number, round)).collect();
        assert_eq!(database.update_isolating(&table, &batch).await.unwrap(), vec![UPDATED; 20]);
    }
    // What remains to be checked is.
    tenant
        .sql(
            "CREATE FUNCTION keep() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.alias = '@a5' THEN NEW.version := OLD.version; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION keep()",
        )
        .await;
    let batch: Vec<Row<'_>> = (1..=20).map(|number| row(number, 11)).collect();
    let results = database.update_isolating(&table, &batch).await.unwrap();
    assert!(matches!(results[4], RowResult::Refused { .. }), "{:?}", results[4]);
    assert_eq!(results.iter().filter(|result| **result == UPDATED).count(), 19);
    // Without the right to write it is the right that is missing.
    tenant.sql("REVOKE UPDATE (available) ON balance FROM balance_sync_tenants").await;
    let error = database.update_isolating(&table, &[row(1, 12)]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Permission, "{error}");
}

#[tokio::test]
async fn row_security_raises_an_error_instead_of_hiding_rows() {
    let tenant = Tenant::new("row_security").await;
    tenant.seed(3).await;
    tenant
        .sql(
            "ALTER TABLE balance ENABLE ROW LEVEL SECURITY; ALTER TABLE balance FORCE ROW LEVEL SECURITY; \
             CREATE POLICY none ON balance USING (false)",
        )
        .await;
    assert_eq!(refused(&tenant, &rows(1..=3)).await, Err(ErrorClass::RowSecurity));
    // Also one that would let all rows through: which it lets through can't be determined.
    tenant.sql("DROP POLICY none ON balance; CREATE POLICY every ON balance USING (true)").await;
    assert_eq!(refused(&tenant, &rows(1..=3)).await, Err(ErrorClass::RowSecurity));
    tenant.sql("ALTER TABLE balance DISABLE ROW LEVEL SECURITY").await;
    assert_eq!(refused(&tenant, &rows(1..=3)).await, Ok(vec![]));
}

/// Each way for a table to refuse every update, and what mends it.
const REFUSING: [(&str, &str); 7] = [
    (
        "CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION no()",
        "DROP TRIGGER t ON balance",
    ),
    (
        "CREATE TRIGGER t AFTER UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION no()",
        "DROP TRIGGER t ON balance",
    ),
    (
        "CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH STATEMENT EXECUTE FUNCTION no()",
        "DROP TRIGGER t ON balance",
    ),
    (
        "CREATE CONSTRAINT TRIGGER t AFTER UPDATE ON balance DEFERRABLE INITIALLY DEFERRED \
         FOR EACH ROW EXECUTE FUNCTION no()",
        "DROP TRIGGER t ON balance",
    ),
    (
        "CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION skip()",
        "DROP TRIGGER t ON balance",
    ),
    (
        "CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION frozen()",
        "DROP TRIGGER t ON balance",
    ),
    (
        "ALTER TABLE balance ADD CONSTRAINT closed CHECK (version < 2) NOT VALID",
        "ALTER TABLE balance DROP CONSTRAINT closed",
    ),
];

#[tokio::test]
async fn a_table_that_refuses_every_update_is_no_fault_of_the_balances() {
    let tenant = Tenant::new("refuses_all").await;
    tenant.seed(100).await;
    tenant
        .sql(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'closed'; END $$; \
             CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$; \
             CREATE FUNCTION frozen() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.available <> OLD.available THEN RAISE EXCEPTION 'frozen'; END IF; RETURN NEW; END $$",
        )
        .await;
    for (refuse, mend) in REFUSING {
        tenant.sql(refuse).await;
        // The whole table, some of it, one row.
        for batch in [rows(1..=100), rows(1..=10), rows(50..=50)] {
            assert_eq!(refused(&tenant, &batch).await, Err(ErrorClass::RefusesEveryRow), "{refuse}");
        }
        assert_eq!(
            tenant.value("SELECT count(*) FROM balance WHERE version = 1 AND available = 1").await,
            "100"
        );
        tenant.sql(mend).await;
        assert_eq!(refused(&tenant, &rows(1..=100)).await, Ok(vec![]), "{mend}");
        tenant.sql("UPDATE balance SET version = 1, available = 1").await;
    }
}

#[tokio::test]
async fn the_only_row_of_a_table_that_refuses_it_whatever_it_says() {
    let tenant = Tenant::new("refuses_one").await;
    tenant.seed(1).await;
    let overdrawn = Row { overdraft_used: "-1", ..row(1, 9) };
    assert_eq!(refused(&tenant, &[overdrawn]).await, Ok(vec![0]), "its value is refused, and no other");
    tenant
        .sql(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE EXCEPTION 'closed'; END $$; \
             CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION no()",
        )
        .await;
    assert_eq!(refused(&tenant, &rows(1..=1)).await, Err(ErrorClass::RefusesEveryRow));
}

#[tokio::test]
async fn one_row_that_is_refused_among_others_is_its_own_fault() {
    let tenant = Tenant::new("refuses_some").await;
    tenant.seed(100).await;
    tenant
        .sql(
            "CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF NEW.alias IN ('@a1', '@a2', '@a3', '@a7') THEN RAISE EXCEPTION USING ERRCODE = '45000'; END IF; \
               IF NEW.alias IN ('@a8') THEN RETURN NULL; END IF; \
               RETURN NEW; END $$; \
             CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION judge()",
        )
        .await;
    // The very rows that are tried as others are refused as well, and the batch shows that not all are.
    assert_eq!(refused(&tenant, &rows(4..=20)).await, Ok(vec![3, 4]));
    assert_eq!(refused(&tenant, &rows(7..=8)).await, Ok(vec![0, 1]));
    // Poison by its value, alone and all of a batch.
    let poison = |number: u32| Row { overdraft_used: "-1", ..row(number, 9) };
    tenant.sql("DROP TRIGGER t ON balance").await;
    assert_eq!(refused(&tenant, &[poison(30)]).await, Ok(vec![0]));
    let all: Vec<Row<'_>> = (30..=60).map(poison).collect();
    assert_eq!(refused(&tenant, &all).await, Ok((0..=30).collect()));
    // A row that another session has locked proves nothing.
    let mut connection = tenant.server.connect(&tenant.name).await.unwrap();
    let lock = format!("BEGIN; SELECT 1 FROM balance WHERE id <= '{}' FOR UPDATE", id(29));
    sqlx::raw_sql(sqlx::AssertSqlSafe(lock)).execute(&mut connection).await.unwrap();
    assert_eq!(refused(&tenant, &[poison(30)]).await, Ok(vec![0]));
}

#[tokio::test]
async fn what_the_batch_itself_gets_is_better_evidence_than_what_others_get() {
    let tenant = Tenant::new("refuses_others").await;
    tenant.seed(100).await;
    // Each row that could be tried beside the batch is refused, and one of the batch.
    tenant
        .sql(
            "CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF substr(NEW.alias, 3)::int NOT BETWEEN 40 AND 50 OR NEW.alias = '@a45' THEN \
                 RAISE EXCEPTION 'closed'; END IF; \
               RETURN NEW; END $$; \
             CREATE TRIGGER t BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION judge()",
        )
        .await;
    // What was written as evidence is stale when it is sent with the others.
    let results = tenant.database().update_isolating(&Table::unqualified(), &rows(40..=50)).await.unwrap();
    let refused = |result: &RowResult| matches!(result, RowResult::Refused { .. });
    assert!(results.iter().enumerate().all(|(at, result)| refused(result) == (at == 5)), "{results:?}");
    assert_eq!(tenant.value("SELECT count(*) FROM balance WHERE version = 9").await, "10");
}
