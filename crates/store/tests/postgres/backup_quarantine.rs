//! Counting what the ledger has given up replaying.

use balance_sync_store::{BackupQuarantine, Table};

use crate::support::Tenant;

const TABLE: &str = "CREATE TABLE transaction_backup_quarantine (id UUID DEFAULT gen_random_uuid(), organization_id UUID, \
                     ledger_id UUID, quarantined_at TIMESTAMPTZ, payload JSONB)";

async fn look(tenant: &Tenant) -> BackupQuarantine {
    tenant.database().backup_quarantine(&Table::unqualified()).await.unwrap()
}

#[tokio::test]
async fn rows_are_counted_where_there_is_such_a_table_that_can_be_read() {
    let tenant = Tenant::new("given_up").await;
    assert_eq!(look(&tenant).await, BackupQuarantine::Absent);

    tenant.sql(TABLE).await;
    let why = "the grant SELECT (quarantined_at) on transaction_backup_quarantine is missing";
    let refused = look(&tenant).await;
    assert!(
        matches!(&refused, BackupQuarantine::Unreadable(text) if text.contains("the grant SELECT")),
        "{why}: {refused:?}"
    );

    tenant
        .sql("GRANT SELECT (quarantined_at) ON transaction_backup_quarantine TO balance_sync_tenants")
        .await;
    let rows = |rows, more, oldest_at_ms| BackupQuarantine::Rows { rows, more, oldest_at_ms };
    assert_eq!(look(&tenant).await, rows(0, false, None));
    tenant
        .sql(
            "INSERT INTO transaction_backup_quarantine (quarantined_at) VALUES \
             ('2026-11-27T03:00:00.5Z'), ('2026-11-27T02:00:00Z'), (NULL), ('-infinity')",
        )
        .await;
    assert_eq!(look(&tenant).await, rows(4, false, Some(1_795_744_800_000)));
    tenant
        .sql("INSERT INTO transaction_backup_quarantine (quarantined_at) SELECT now() FROM generate_series(1, 100000)")
        .await;
    let many = look(&tenant).await;
    assert!(matches!(many, BackupQuarantine::Rows { rows: 100_000, more: true, .. }), "{many:?}");

    // What hides rows, holds the table, or is another table of that name.
    tenant.sql("ALTER TABLE transaction_backup_quarantine ENABLE ROW LEVEL SECURITY").await;
    assert!(matches!(look(&tenant).await, BackupQuarantine::Unreadable(_)));
    tenant
        .sql(
            "ALTER TABLE transaction_backup_quarantine DISABLE ROW LEVEL SECURITY; \
             ALTER TABLE transaction_backup_quarantine ALTER COLUMN quarantined_at TYPE TEXT",
        )
        .await;
    assert!(matches!(look(&tenant).await, BackupQuarantine::Unreadable(_)));
}

#[tokio::test]
async fn a_table_that_is_locked_is_given_up_after_a_while() {
    let tenant = Tenant::new("given_up_locked").await;
    tenant.sql(TABLE).await;
    tenant.sql("GRANT SELECT ON transaction_backup_quarantine TO balance_sync_tenants").await;
    let mut migration = tenant.server.connect(&tenant.name).await.unwrap();
    for sql in ["BEGIN", "LOCK TABLE transaction_backup_quarantine"] {
        sqlx::query(sql).execute(&mut migration).await.unwrap();
    }
    let held = look(&tenant).await;
    assert!(matches!(&held, BackupQuarantine::Unreadable(why) if why.contains("lock")), "{held:?}");
}
