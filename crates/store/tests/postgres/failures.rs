//! Each class of failure, provoked on a real server.

use std::sync::Arc;
use std::time::{Duration, Instant};

use balance_sync_sandbox::{PostgresOptions, PostgresServer, eventually};
use balance_sync_store::{Database, DatabaseSpec, ErrorClass, Outcome, Row, StoreError, Table};
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{PASSWORD, PATIENCE, Tenant, open, row, spec};

async fn write(database: &Database, version: i64) -> Result<Vec<Outcome>, StoreError> {
    database.update(&Table::unqualified(), &[row(1, version)]).await
}

async fn failure(database: &Database, version: i64) -> (ErrorClass, String) {
    let error = write(database, version).await.unwrap_err();
    let text = format!("{error} {error:?} {database:?}");
    assert!(!text.contains(PASSWORD), "{text}");
    (error.class(), error.sqlstate().unwrap_or_default().to_owned())
}

fn is(class: ErrorClass, sqlstate: &str) -> (ErrorClass, String) {
    (class, sqlstate.to_owned())
}

#[tokio::test]
async fn no_way_in() {
    let tenant = Tenant::new("no_way_in").await;
    tenant.seed(1).await;
    let wrong = DatabaseSpec { password: SecretString::from("wrong-password"), ..tenant.spec() };
    assert_eq!(failure(&open(wrong), 2).await, is(ErrorClass::Credentials, "28P01"));

    let nowhere = DatabaseSpec { database: "nowhere".to_owned(), ..tenant.spec() };
    assert_eq!(failure(&open(nowhere), 2).await, is(ErrorClass::DatabaseMissing, "3D000"));

    let admits_none = "ALTER DATABASE no_way_in ALLOW_CONNECTIONS";
    tenant.server.execute("postgres", &format!("{admits_none} false")).await.unwrap();
    assert_eq!(failure(&tenant.database(), 2).await, is(ErrorClass::DatabaseMissing, "55000"));
    tenant.server.execute("postgres", &format!("{admits_none} true")).await.unwrap();

    // A name that doesn't resolve, for which no name service is asked: not the same as a port where no server listens.
    let unknown = DatabaseSpec { host: "no such host".to_owned(), ..tenant.spec() };
    let error = write(&open(unknown), 2).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Dns, "{error}");
    assert!(error.is_transient() && error.message().contains("\"no such host\""), "{error}");

    // A port no server listens on: at once, not after a timeout.
    let closed = TcpListener::bind("127.0.0.1:0").await.unwrap().local_addr().unwrap().port();
    let start = Instant::now();
    assert_eq!(failure(&open(spec(closed, "x")), 2).await.0, ErrorClass::Connection);
    assert!(start.elapsed() < PATIENCE / 2);

    // The password is changed: what is open goes on, a new connection is refused.
    let database = tenant.database();
    database.ping().await.unwrap();
    tenant.server.set_password("no_way_in", &SecretString::from("rotated")).await.unwrap();
    write(&database, 2).await.unwrap();
    tenant.server.end_sessions(Some("no_way_in")).await.unwrap();
    eventually(PATIENCE, "the end of the session", || async { tenant.backends().await == 0 }).await.unwrap();
    assert_eq!(failure(&database, 3).await.0, ErrorClass::Credentials);
}

#[tokio::test]
async fn a_schema_that_is_not_as_it_should_be() {
    let tenant = Tenant::new("unprovisioned").await;
    tenant.seed(1).await;
    let database = tenant.database();
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Updated]);

    let elsewhere = Table::in_schema("elsewhere").unwrap();
    let error = database.update(&elsewhere, &[row(1, 3)]).await.unwrap_err();
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::NotProvisioned, Some("42P01")));

    tenant.sql("REVOKE UPDATE ON balance FROM balance_sync_tenants").await;
    assert_eq!(failure(&database, 3).await, is(ErrorClass::Permission, "42501"));
    tenant.sql("GRANT UPDATE ON balance TO balance_sync_tenants").await;
    assert_eq!(write(&database, 3).await.unwrap(), [Outcome::Updated]);

    tenant.sql("ALTER TABLE balance RENAME overdraft_used TO debt").await;
    assert_eq!(failure(&database, 4).await, is(ErrorClass::NotProvisioned, "42703"));
    tenant.sql("ALTER TABLE balance RENAME debt TO overdraft_used").await;
    assert_eq!(write(&database, 4).await.unwrap(), [Outcome::Updated]);

    // A role that may not use the schema doesn't find the table.
    tenant.sql("REVOKE USAGE ON SCHEMA public FROM PUBLIC, balance_sync_tenants, unprovisioned").await;
    let fresh = tenant.database();
    let error = write(&fresh, 5).await.unwrap_err();
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Permission, Some("42501")), "{error}");
    let grant = r#"GRANT USAGE ON SCHEMA "public" TO "unprovisioned""#;
    assert!(error.message().contains(grant), "{error}");
    let named = Table::in_schema("public").unwrap();
    let error = fresh.update(&named, &[row(1, 5)]).await.unwrap_err();
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Permission, Some("42501")), "{error}");
    assert!(error.message().contains("schema public"), "{error}");
    tenant.sql(grant).await;
    assert_eq!(write(&fresh, 5).await.unwrap(), [Outcome::Updated]);
    fresh.close(PATIENCE).await;

    tenant.sql("ALTER TABLE balance RENAME TO hidden").await;
    assert_eq!(failure(&database, 6).await, is(ErrorClass::NotProvisioned, "42P01"));
    assert_eq!(database.usage().open, 1, "none of this is the connection's fault");
}

/// "Not in the prerequisite state" is about the database when it comes at the start, and about the table later.
#[tokio::test]
async fn a_table_that_is_in_no_state_to_be_updated() {
    let tenant = Tenant::new("published").await;
    tenant.seed(1).await;
    let database = tenant.database();
    tenant
        .sql("ALTER TABLE balance REPLICA IDENTITY NOTHING; CREATE PUBLICATION all_rows FOR TABLE balance")
        .await;
    let error = write(&database, 2).await.unwrap_err();
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::RefusesEveryRow, Some("55000")), "{error}");
    assert!(error.message().contains("replica identity"), "{error}");
    tenant.sql("ALTER TABLE balance REPLICA IDENTITY DEFAULT").await;
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Updated]);
}

#[tokio::test]
async fn a_server_that_takes_no_writes() {
    let tenant = Tenant::new("read_only").await;
    tenant.seed(1).await;
    let database = tenant.database();
    tenant.sql("ALTER DATABASE read_only SET default_transaction_read_only = on").await;
    assert_eq!(failure(&database, 2).await, is(ErrorClass::ReadOnly, "25006"));
    // After a failover the way leads to another server: the old connection must not be used again.
    assert_eq!(database.usage().open, 0);
    tenant
        .server
        .execute("postgres", "ALTER DATABASE read_only RESET default_transaction_read_only")
        .await
        .unwrap();
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Updated]);
}

#[tokio::test]
async fn connections_cut_while_idle_are_not_noticed() {
    let tenant = Tenant::new("cut").await;
    tenant.seed(1).await;
    let database = tenant.database();
    let pings = (0..3).map(|_| database.ping());
    futures::future::try_join_all(pings).await.unwrap();
    assert_eq!(database.usage().open, 3);

    tenant.server.end_sessions(Some("cut")).await.unwrap();
    eventually(PATIENCE, "the end of the sessions", || async { tenant.backends().await == 0 }).await.unwrap();
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Updated]);
    assert_eq!(database.usage().open, 1, "the other dead ones are gone too");
}

#[tokio::test]
async fn a_session_ended_in_the_middle_of_a_write() {
    let tenant = Tenant::new("interrupted").await;
    tenant.seed(1).await;
    let database = tenant.database();
    write(&database, 2).await.unwrap();
    let mut blocker = tenant.server.connect(&tenant.name).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM balance FOR UPDATE").execute(&mut blocker).await.unwrap();
    // A fresh connection, so that there is nothing to retry.
    let fresh = tenant.database();
    let running = tokio::spawn(async move { write(&fresh, 3).await });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'interrupted' AND wait_event_type = 'Lock'";
    eventually(PATIENCE, "the wait for the lock", || async { tenant.value(waiting).await == "1" })
        .await
        .unwrap();
    tenant.server.end_sessions(Some("interrupted")).await.unwrap();
    let error = running.await.unwrap().unwrap_err();
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Connection, Some("57P01")));
    assert!(error.is_transient());
}

#[tokio::test]
async fn a_statement_is_not_waited_for_for_ever() {
    let tenant = Tenant::new("slow").await;
    tenant.seed(1).await;
    tenant
        .sql(
            "CREATE FUNCTION dawdle() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN PERFORM pg_sleep(60); RETURN NEW; END $$; \
             CREATE TRIGGER dawdle BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION dawdle()",
        )
        .await;
    let limited = DatabaseSpec { statement_timeout: Some(Duration::from_millis(200)), ..tenant.spec() };
    let database = open(limited);
    assert_eq!(failure(&database, 2).await, is(ErrorClass::Timeout, "57014"));
    assert_eq!(database.usage().open, 1, "the server has answered, the connection is fine");
    tenant.sql("DROP TRIGGER dawdle ON balance").await;
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Updated]);
}

#[tokio::test]
async fn locks_are_not_waited_for_for_ever() {
    let tenant = Tenant::new("locked").await;
    tenant.seed(1).await;
    let mut blocker = tenant.server.connect(&tenant.name).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM balance FOR UPDATE").execute(&mut blocker).await.unwrap();
    let database = open(DatabaseSpec { lock_wait: Duration::from_millis(100), ..tenant.spec() });
    assert_eq!(failure(&database, 2).await, is(ErrorClass::Timeout, "55P03"));
    // The wait ends before the statement does, whatever the statement may take and the role is set to.
    tenant.sql("ALTER ROLE locked SET lock_timeout = '1h'").await;
    let limited = DatabaseSpec { statement_timeout: Some(Duration::from_millis(200)), ..tenant.spec() };
    assert_eq!(failure(&open(limited), 2).await, is(ErrorClass::Timeout, "55P03"));
    sqlx::raw_sql("ROLLBACK").execute(&mut blocker).await.unwrap();
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Updated]);
    assert_eq!(database.usage().open, 1, "the server has answered, the connection is fine");
}

#[tokio::test]
async fn a_deadlock_is_tried_again() {
    let tenant = Tenant::new("deadlock").await;
    tenant.seed(2).await;
    let mut other = tenant.server.connect(&tenant.name).await.unwrap();
    // The first session that looks for a deadlock is its victim. Ours looks once, this long after it began to wait: by then the
    // other must wait for it, also on a busy machine. It must not give up waiting before.
    tenant.sql("ALTER ROLE deadlock SET deadlock_timeout = '2s'").await;
    sqlx::raw_sql("SET deadlock_timeout = '1min'; BEGIN; UPDATE balance SET alias = 'b' WHERE alias = '@a2'")
        .execute(&mut other)
        .await
        .unwrap();
    let database = open(DatabaseSpec { lock_wait: Duration::from_secs(60), ..tenant.spec() });
    let ours =
        tokio::spawn(async move { database.update(&Table::unqualified(), &[row(1, 2), row(2, 2)]).await });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'deadlock' AND wait_event_type = 'Lock'";
    eventually(PATIENCE, "the wait for the lock", || async { tenant.value(waiting).await == "1" })
        .await
        .unwrap();
    sqlx::raw_sql("UPDATE balance SET alias = 'a' WHERE alias = '@a1'; COMMIT")
        .execute(&mut other)
        .await
        .unwrap();
    assert_eq!(ours.await.unwrap().unwrap(), [Outcome::Updated, Outcome::Updated]);
    let deadlocks = "SELECT deadlocks FROM pg_stat_database WHERE datname = 'deadlock'";
    eventually(PATIENCE, "a deadlock in the statistics", || async { tenant.value(deadlocks).await != "0" })
        .await
        .unwrap();
}

#[tokio::test]
async fn serialization_failures_cannot_come_from_the_servers_defaults() {
    let tenant = Tenant::new("serializable").await;
    tenant.seed(1).await;
    tenant
        .sql(
            "ALTER DATABASE serializable SET default_transaction_isolation = 'serializable'; \
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               NEW.alias := current_setting('transaction_isolation'); RETURN NEW; END $$; \
             CREATE TRIGGER note BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .await;
    let mut other = tenant.server.connect(&tenant.name).await.unwrap();
    sqlx::raw_sql("BEGIN ISOLATION LEVEL READ COMMITTED; UPDATE balance SET version = 2")
        .execute(&mut other)
        .await
        .unwrap();
    let database = tenant.database();
    let ours = tokio::spawn(async move { write(&database, 3).await });
    let waiting =
        "SELECT count(*) FROM pg_stat_activity WHERE usename = 'serializable' AND wait_event_type = 'Lock'";
    eventually(PATIENCE, "the wait for the lock", || async { tenant.value(waiting).await == "1" })
        .await
        .unwrap();
    sqlx::raw_sql("COMMIT").execute(&mut other).await.unwrap();
    assert_eq!(ours.await.unwrap().unwrap(), [Outcome::Updated], "a concurrent lower version is overwritten");
    assert_eq!(tenant.value("SELECT alias FROM balance").await, "read committed");
}

#[tokio::test]
async fn a_commit_is_durable_whatever_database_and_role_are_set_to() {
    let tenant = Tenant::new("careless").await;
    tenant.seed(1).await;
    tenant
        .sql(
            "ALTER DATABASE careless SET synchronous_commit = 'off'; \
             ALTER ROLE careless SET synchronous_commit = 'off'; \
             CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
               NEW.alias := current_setting('synchronous_commit'); RETURN NEW; END $$; \
             CREATE TRIGGER note BEFORE UPDATE ON balance FOR EACH ROW EXECUTE FUNCTION note()",
        )
        .await;
    assert_eq!(write(&tenant.database(), 2).await.unwrap(), [Outcome::Updated]);
    assert_eq!(tenant.value("SELECT alias FROM balance").await, "on");
}

#[tokio::test]
async fn too_many_connections() {
    let tenant = Tenant::new("crowded").await;
    tenant.seed(1).await;
    tenant.sql("ALTER ROLE crowded CONNECTION LIMIT 1").await;
    let first = tenant.database();
    first.ping().await.unwrap();
    assert_eq!(failure(&tenant.database(), 2).await, is(ErrorClass::TooManyConnections, "53300"));

    // Our own bound, likewise: one connection, and it is in use.
    let mut blocker = tenant.server.connect(&tenant.name).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM balance FOR UPDATE").execute(&mut blocker).await.unwrap();
    first.close(PATIENCE).await;
    eventually(PATIENCE, "the end of the session", || async { tenant.backends().await == 0 }).await.unwrap();
    let narrow =
        DatabaseSpec { max_connections: 1, acquire_timeout: Duration::from_millis(100), ..tenant.spec() };
    let database = open(narrow);
    let running = tokio::spawn({
        let database = database.clone();
        async move { write(&database, 2).await }
    });
    eventually(PATIENCE, "the write under way", || async { database.usage().in_use == 1 }).await.unwrap();
    assert_eq!(failure(&database, 3).await, is(ErrorClass::ConnectionBudget, ""));
    assert_eq!(database.idle_since(), None);
    sqlx::raw_sql("ROLLBACK").execute(&mut blocker).await.unwrap();
    assert_eq!(running.await.unwrap().unwrap(), [Outcome::Updated]);
}

#[tokio::test]
async fn the_server_runs_out_of_something() {
    let tenant = Tenant::new("exhausted").await;
    tenant.seed(1000).await;
    // As a full disk would: the statement needs a temporary file and may have none.
    tenant
        .sql("ALTER ROLE exhausted SET temp_file_limit = 0; ALTER ROLE exhausted SET work_mem = '64kB'")
        .await;
    let long = "1".repeat(200);
    let rows: Vec<Row<'_>> = (1..=1000).map(|n| Row { available: &long, ..row(n, 2) }).collect();
    let error = tenant.database().update(&Table::unqualified(), &rows).await.unwrap_err();
    assert_eq!((error.class(), error.sqlstate()), (ErrorClass::Resources, Some("53400")));
}

#[tokio::test]
async fn a_server_that_is_stopped_and_comes_back() {
    let server = PostgresServer::start(PostgresOptions::default()).await.unwrap();
    server.create_tenant_database("t", "t", &SecretString::from(PASSWORD)).await.unwrap();
    let database = open(spec(server.port(), "t"));
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Missing]);
    server.stop_immediate().await.unwrap();
    assert_eq!(failure(&database, 2).await.0, ErrorClass::Connection);
    server.start_again().await.unwrap();
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Missing]);
}

/// A connection through which nothing passes any more, and nothing says so.
#[tokio::test]
async fn a_black_hole_ends_with_a_deadline() {
    let tenant = Tenant::new("silent").await;
    tenant.seed(1).await;
    let (port, silence) = proxy(tenant.server.port()).await;
    let limited = DatabaseSpec {
        statement_timeout: Some(Duration::from_millis(500)),
        connect_timeout: Duration::from_millis(1500),
        ..spec(port, "silent")
    };
    let database = open(limited.clone());
    assert_eq!(write(&database, 2).await.unwrap(), [Outcome::Updated]);
    silence.send_replace(true);
    let start = Instant::now();
    assert_eq!(failure(&database, 3).await, is(ErrorClass::Timeout, ""));
    assert!(start.elapsed() >= limited.operation_timeout());
    assert_eq!(database.usage().open, 0, "a silent connection must not be kept");
    let error = write(&database, 3).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Timeout, "the next one can't even connect: {error}");
    let named = "connect_timeout (1.5s): no answer while connecting and logging in";
    assert!(error.message().contains(named), "{error}");
    silence.send_replace(false);
    // What the proxy held back arrives late, perhaps before this write and perhaps after it: harmless either way.
    assert_ne!(write(&database, 3).await.unwrap(), [Outcome::Missing]);
    assert_eq!(tenant.stored(1).await, "10 v3");

    // A drain does not wait for it beyond its grace.
    silence.send_replace(true);
    let running = tokio::spawn({
        let database = database.clone();
        async move { write(&database, 4).await }
    });
    eventually(PATIENCE, "the write under way", || async { database.usage().in_use == 1 }).await.unwrap();
    assert_eq!(database.close(Duration::from_millis(50)).await, 1);
    assert_eq!(running.await.unwrap().unwrap_err().class(), ErrorClass::Closed);
    assert_eq!(failure(&database, 4).await.0, ErrorClass::Closed);
    assert_eq!(database.usage().open, 0);
}

/// Passes bytes to a port on this host, except while it is set to be silent.
async fn proxy(to: u16) -> (u16, Arc<watch::Sender<bool>>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let silence = Arc::new(watch::Sender::new(false));
    let switch = Arc::clone(&silence);
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            let (from_client, to_client) = client.into_split();
            let (from_server, to_server) = server.into_split();
            tokio::spawn(pass(from_client, to_server, switch.subscribe()));
            tokio::spawn(pass(from_server, to_client, switch.subscribe()));
        }
    });
    (port, silence)
}

async fn pass(
    mut from: tokio::net::tcp::OwnedReadHalf,
    mut to: tokio::net::tcp::OwnedWriteHalf,
    mut silent: watch::Receiver<bool>,
) {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let mut buffer = vec![0; 16 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer).await {
        if silent.wait_for(|silent| !silent).await.is_err() || to.write_all(&buffer[..n]).await.is_err() {
            return;
        }
    }
}
