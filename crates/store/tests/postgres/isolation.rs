//! G5: a row that Postgres refuses keeps no other from being written.

use balance_sync_store::{ErrorClass, Outcome, Row, RowResult, Table};

use crate::support::{Tenant, row};

/// The numbers of refused rows with their SQLSTATE; all others must have been updated.
fn refused(rows: &[Row<'_>], results: &[RowResult]) -> Vec<(u128, String)> {
    assert_eq!(rows.len(), results.len());
    rows.iter()
        .zip(results)
        .filter_map(|(row, result)| match result {
            RowResult::Ok(outcome) => {
                assert_eq!(*outcome, Outcome::Updated, "{row:?}");
                None
            }
            RowResult::Refused { sqlstate, .. } => Some((row.id.as_u128(), sqlstate.clone())),
            RowResult::Differs => panic!("{row:?} differs"),
            RowResult::UnknownLedger { message } | RowResult::Locked { message } => {
                panic!("{row:?}: {message}")
            }
        })
        .collect()
}

#[tokio::test]
async fn one_culprit_among_fifty_and_several_at_the_edges() {
    let tenant = Tenant::new("culprits").await;
    tenant.seed(50).await;
    let database = tenant.database();
    let table = Table::unqualified();
    for (version, culprits) in [(2, vec![17]), (3, vec![1, 2, 25, 50]), (4, (1..=50).collect())] {
        let rows: Vec<Row<'_>> = (1..=50)
            .map(|n| Row {
                overdraft_used: if culprits.contains(&n) { "-1" } else { "0" },
                ..row(n, version)
            })
            .collect();
        let results = database.update_isolating(&table, &rows).await.unwrap();
        let expected: Vec<_> = culprits.iter().map(|&n| (u128::from(n), "23514".to_owned())).collect();
        assert_eq!(refused(&rows, &results), expected);
        let written = tenant.value(&format!("SELECT count(*) FROM balance WHERE version = {version}")).await;
        assert_eq!(written, (50 - culprits.len()).to_string());
    }
    let error = database.update(&table, &[Row { overdraft_used: "-1", ..row(1, 9) }]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Refused);
    assert!(!error.is_transient());
    assert_eq!(database.usage().open, 1, "a refusal is no reason to give up the connection");
}

#[tokio::test]
async fn all_that_a_database_may_refuse() {
    let tenant = Tenant::new("refusals").await;
    tenant.seed(8).await;
    tenant
        .sql(
            "ALTER TABLE balance ALTER available TYPE numeric(10, 2); \
             CREATE FUNCTION judge() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               IF OLD.alias = '@a5' THEN RAISE EXCEPTION 'not this one'; END IF; \
               IF OLD.alias = '@a6' THEN RETURN NULL; END IF; RETURN NEW; END $$; \
             CREATE TRIGGER judge BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION judge()",
        )
        .await;
    let mut rows: Vec<Row<'_>> = (1..=8).map(|n| row(n, 2)).collect();
    rows[1].available = "123456789.5"; // numeric(10, 2) has 8 digits before the point
    rows[2].available = "ten";
    rows[3].on_hold = "1}'::numeric[]); DROP TABLE balance; --\0";
    let results = tenant.database().update_isolating(&Table::unqualified(), &rows).await.unwrap();
    let expected = [(2, "22003"), (3, "22P02"), (4, "22P02"), (5, "P0001"), (6, "")];
    assert_eq!(refused(&rows, &results), expected.map(|(n, sqlstate)| (n, sqlstate.to_owned())));
}

#[tokio::test]
async fn what_is_no_refusal_fails_as_a_whole() {
    let tenant = Tenant::new("no_refusal").await;
    tenant.sql("DROP TABLE balance").await;
    let error = tenant.database().update_isolating(&Table::unqualified(), &[row(1, 2)]).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::NotProvisioned);
}
