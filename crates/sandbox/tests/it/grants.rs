//! `deploy/postgres/grants.sql` as operators run it: by psql, which puts the variables in.

use std::process::Command;

use balance_sync_sandbox::{
    PostgresOptions, PostgresServer, balance_table_sql, find, grants_sql, operation_table_sql,
};
use secrecy::SecretString;

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../../deploy/postgres/grants.sql");

/// What the role may do with the tables of this schema, beyond nothing: `table.column RIGHT` or `table RIGHT`.
async fn rights(server: &PostgresServer, schema: &str, role: &str) -> Vec<String> {
    let mut connection = server.connect("ledger").await.unwrap();
    sqlx::query_scalar(
        "SELECT c.relname || '.' || a.attname || ' ' || r FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid \
         CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'REFERENCES']) AS r \
         WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r' AND c.relname = 'balance' AND NOT a.attisdropped \
         AND has_column_privilege($2, c.oid, a.attnum, r) \
         UNION ALL SELECT c.relname || ' ' || r FROM pg_class c \
         CROSS JOIN unnest(ARRAY['SELECT', 'INSERT', 'UPDATE', 'DELETE', 'TRUNCATE', 'REFERENCES', 'TRIGGER']) AS r \
         WHERE c.relnamespace = $1::text::regnamespace AND c.relkind = 'r' AND has_table_privilege($2, c.oid, r) \
         UNION ALL SELECT 'schema ' || r FROM unnest(ARRAY['USAGE', 'CREATE']) AS r WHERE has_schema_privilege($2, $1::text::regnamespace::oid, r) \
         ORDER BY 1",
    )
    .bind(schema)
    .bind(role)
    .fetch_all(&mut connection)
    .await
    .unwrap()
}

#[tokio::test]
async fn psql_gives_a_role_the_same_rights_as_the_sandbox() {
    let psql = find::postgres_programs().unwrap().postgres.with_file_name("psql");
    // Some packages of the server come without it.
    if !psql.is_file() {
        return;
    }
    let server = PostgresServer::start(PostgresOptions::default()).await.unwrap();
    server.create_database("ledger").await.unwrap();
    let password = SecretString::from("a-password");
    // Names that need quotes.
    let (schema, roles) = ("Acme \"2\"", ["by psql", "by Sandbox"]);
    for role in roles {
        server.create_role(role, &password).await.unwrap();
    }
    let tables = [balance_table_sql(Some(schema)), operation_table_sql(Some(schema))].concat();
    server.execute("ledger", &format!("CREATE SCHEMA \"Acme \"\"2\"\"\"; {tables}")).await.unwrap();
    assert_eq!(rights(&server, "\"Acme \"\"2\"\"\"", roles[0]).await, Vec::<String>::new());
    // Twice: it may be run again.
    for _ in 0..2 {
        let output = Command::new(&psql)
            .args(["-X", "-q", "-v", "ON_ERROR_STOP=1", "-v"])
            .arg(format!("role={}", roles[0]))
            .arg("-v")
            .arg(format!("schema={schema}"))
            .args(["-d", &server.admin_url("ledger"), "-f", FILE])
            .output()
            .unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }
    server.execute("ledger", &grants_sql("ledger", Some(schema), roles[1])).await.unwrap();
    let mut found = Vec::new();
    for role in roles {
        found.push(rights(&server, "\"Acme \"\"2\"\"\"", role).await);
    }
    assert_eq!(found[0], found[1]);
    let columns = |right: &str| {
        let found = found[0].iter().filter_map(|name| name.strip_prefix("balance.")?.strip_suffix(right));
        found.map(str::trim).map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(columns("UPDATE"), ["available", "on_hold", "overdraft_used", "updated_at", "version"]);
    assert_eq!(columns("INSERT"), Vec::<String>::new());
    assert!(
        columns("SELECT").contains(&"xmax".to_owned())
            && !columns("SELECT").contains(&"created_at".to_owned())
    );
    let tables: Vec<&String> = found[0].iter().filter(|name| !name.starts_with("balance.")).collect();
    assert_eq!(tables, ["operation SELECT", "schema USAGE"]);
}

#[test]
fn a_shadow_is_granted_all_but_the_right_to_write() {
    let granted =
        |text: &'static str| text.lines().filter(|line| line.trim_start_matches("-- ").starts_with("GRANT "));
    let without = granted(include_str!("../../../../deploy/postgres/grants.sql"))
        .filter(|line| !line.starts_with("GRANT UPDATE") && !line.contains("pg_read_all_stats"));
    let shadows = granted(include_str!("../../../../deploy/postgres/grants-shadow.sql"));
    assert_eq!(shadows.collect::<Vec<_>>(), without.collect::<Vec<_>>());
}
