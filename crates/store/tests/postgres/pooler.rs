//! G7: whatever a pooler does with our messages and its sessions, a write reaches the rows it was meant for.

use std::time::Duration;

use balance_sync_sandbox::{PgBouncer, PgBouncerOptions, PoolMode, eventually};
use balance_sync_store::{
    ConnectionBudget, Database, DatabaseSpec, ErrorClass, Outcome, Row, Sought, StoreError, Table,
};
use secrecy::SecretString;
use sqlx::{AssertSqlSafe, ConnectOptions, Connection, PgConnection};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{
    LEDGER, ORGANIZATION, PASSWORD, PATIENCE, Tenant, id, open, renaming, row, server, spec,
};

/// Tenants that are copies of each other: the same ids, organization and ledger.
const TENANTS: u32 = 6;
/// Balances of each.
const ROWS: u32 = 12;
const WORKERS: usize = 3;
const LAST_VERSION: i64 = 25;

async fn pooler(users: &[&str], options: &PgBouncerOptions) -> PgBouncer {
    let password = SecretString::from(PASSWORD);
    let users: Vec<_> = users.iter().map(|user| (*user, &password)).collect();
    PgBouncer::start(server().await.port(), &users, options).await.unwrap()
}

/// One database with a schema for each tenant, all of one role: `<name>_1` and so on.
async fn clones(name: &str) -> Tenant {
    let tenant = Tenant::new(name).await;
    for n in 1..=TENANTS {
        tenant
            .sql(&format!(
                "CREATE SCHEMA {name}_{n}; CREATE TABLE {name}_{n}.balance (LIKE public.balance INCLUDING ALL); \
                 GRANT USAGE ON SCHEMA {name}_{n} TO {name}; \
                 GRANT SELECT, INSERT, UPDATE ON {name}_{n}.balance TO {name}"
            ))
            .await;
        tenant.seed_into(&format!("{name}_{n}.balance"), ROWS).await;
    }
    tenant
}

/// All that is done with a database, for one tenant, in an order that differs between workers: with prepared statements their
/// names would differ in meaning. Amounts say whose they are.
async fn work(database: Database, table: Table, tenant: u32, worker: usize) -> Result<(), StoreError> {
    for version in 2..=LAST_VERSION {
        let amount = format!("{tenant}.{version}");
        let rows: Vec<Row<'_>> =
            (1..=ROWS).map(|n| Row { available: &amount, on_hold: &amount, ..row(n, version) }).collect();
        for step in 0..3 {
            match (step + worker + tenant as usize) % 3 {
                // With a row that does not exist: the versions of the others are asked for.
                0 => {
                    let mut sent = rows.clone();
                    sent.push(row(999, version));
                    let outcomes = database.update(&table, &sent).await?;
                    assert_eq!(outcomes[ROWS as usize], Outcome::Missing);
                    assert!(!outcomes[..ROWS as usize].contains(&Outcome::Missing), "{outcomes:?}");
                }
                1 => {
                    for stored in database.fetch(&table, &rows).await? {
                        let stored = stored.unwrap();
                        let own = stored.available.starts_with(&format!("{tenant}."));
                        assert!(own || stored.version == 1, "tenant {tenant} read {stored:?}");
                    }
                }
                _ => {
                    let sought = Sought { alias: Some("@a3"), ledger: Some(LEDGER), ..Sought::default() };
                    assert_eq!(database.look_up(&table, &sought).await?.len(), 1);
                    database.ping().await?;
                }
            }
        }
        database.update(&table, &rows).await?;
    }
    Ok(())
}

/// Several workers write several tenants through few sessions.
async fn no_foreign_write(name: &str, options: PgBouncerOptions) {
    for (n, options) in renaming(&options).iter().enumerate() {
        no_foreign_write_through(&format!("{name}_{n}"), options).await;
    }
}

async fn no_foreign_write_through(name: &str, options: &PgBouncerOptions) {
    let tenant = clones(name).await;
    let pooler = pooler(&[name], options).await;
    let mut work_done = Vec::new();
    for worker in 0..WORKERS {
        // A budget of its own for each: a worker.
        let spec = DatabaseSpec { max_connections: 4, ..spec(pooler.port(), name) };
        let database = Database::open(spec, ConnectionBudget::new(4)).unwrap();
        for n in 1..=TENANTS {
            let table = Table::in_schema(&format!("{name}_{n}")).unwrap().of_tenant(&format!("{n}"));
            work_done.push(tokio::spawn(work(database.clone(), table, n, worker)));
        }
    }
    for done in work_done {
        done.await.unwrap().unwrap();
    }
    for n in 1..=TENANTS {
        let expected = format!("{n}.{LAST_VERSION} {n}.{LAST_VERSION} v{LAST_VERSION}");
        let stored = "SELECT string_agg(DISTINCT available || ' ' || on_hold || ' v' || version, ', ')";
        assert_eq!(tenant.value(&format!("{stored} FROM {name}_{n}.balance")).await, expected, "tenant {n}");
    }
    assert_eq!(tenant.value("SELECT count(*) FROM balance").await, "0", "the table of the search_path");
}

/// Fewer sessions than clients, and each transaction in another one.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_foreign_write_in_transaction_mode() {
    no_foreign_write("by_transaction", PgBouncerOptions::new(PoolMode::Transaction, 2)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_foreign_write_in_statement_mode() {
    no_foreign_write("by_statement", PgBouncerOptions::new(PoolMode::Statement, 3)).await;
}

/// Sessions go from one client to the next as they were left.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_foreign_write_in_session_mode_without_a_reset() {
    let options = PgBouncerOptions::new(PoolMode::Session, 20).with("server_reset_query", "");
    no_foreign_write("by_session", options).await;
}

/// What a pooler may be configured to ignore, and what it refuses when it is not, is not sent.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_foreign_write_where_start_up_options_are_ignored() {
    let options = PgBouncerOptions::new(PoolMode::Transaction, 2)
        .with("ignore_startup_parameters", "options,extra_float_digits");
    no_foreign_write("by_ignoring", options).await;
}

/// Connects as any client does, through the pooler.
async fn client(spec: &DatabaseSpec) -> PgConnection {
    spec.connect_options().connect().await.unwrap()
}

async fn run(connection: &mut PgConnection, sql: &str) {
    sqlx::raw_sql(AssertSqlSafe(sql.to_owned())).execute(connection).await.unwrap();
}

/// Another client of the pooler leaves its session in the worst state: each thing that statements of ours could rely on means
/// something else there. The next message of ours arrives in this very session.
#[tokio::test]
async fn a_session_may_be_left_in_any_state() {
    for (name, mode) in [("left_session", PoolMode::Session), ("left_transaction", PoolMode::Transaction)] {
        let tenant = Tenant::new(name).await;
        tenant.seed(2).await;
        tenant
            .sql(&format!(
                "CREATE SCHEMA other; CREATE TABLE other.balance (LIKE public.balance INCLUDING ALL); \
                 INSERT INTO other.balance SELECT * FROM public.balance; \
                 GRANT USAGE, CREATE ON SCHEMA other TO {name}; GRANT SELECT, UPDATE ON other.balance TO {name}; \
                 GRANT TEMPORARY ON DATABASE {name} TO {name}; \
                 CREATE FUNCTION note() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN \
                   NEW.alias := current_setting('synchronous_commit') || ' ' || current_setting('row_security') || ' ' \
                     || current_setting('statement_timeout') || ' ' || current_setting('search_path'); RETURN NEW; END $$; \
                 CREATE TRIGGER note BEFORE UPDATE ON public.balance FOR EACH ROW EXECUTE FUNCTION note()"
            ))
            .await;
        let options = PgBouncerOptions::new(mode, 1).with("server_reset_query", "");
        let pooler = pooler(&[name], &options).await;
        let spec = spec(pooler.port(), name);
        let mut other = client(&spec).await;
        run(
            &mut other,
            "SET search_path = other; SET synchronous_commit = off; SET row_security = on; \
             SET default_transaction_isolation = 'serializable'; SET enable_indexscan = off; \
             SET standard_conforming_strings = off; SET array_nulls = off; SET client_encoding = 'SJIS'; \
             CREATE TEMPORARY TABLE balance (LIKE other.balance INCLUDING ALL); \
             INSERT INTO balance SELECT * FROM other.balance; CREATE DOMAIN pg_temp.uuid AS text; \
             PREPARE sqlx_s_1 AS UPDATE other.balance SET available = 0; SET lock_timeout = 250; \
             SET statement_timeout = 250",
        )
        .await;
        other.close().await.unwrap();

        let database = Database::open(spec, ConnectionBudget::new(1)).unwrap();
        let table = Table::unqualified();
        let outcomes = database.update(&table, &[row(1, 7), row(3, 7)]).await.unwrap();
        assert_eq!(outcomes, [Outcome::Updated, Outcome::Missing], "{name}");
        assert_eq!(tenant.stored(1).await, "10 v7");
        let settings = tenant.value(&format!("SELECT alias FROM balance WHERE id = '{}'", id(1))).await;
        assert_eq!(settings, r#"on off 30s "$user", public"#);
        let found =
            database.look_up(&table, &Sought { alias: Some("@a2"), ..Sought::default() }).await.unwrap();
        assert_eq!(found.iter().map(|row| row.id).collect::<Vec<_>>(), [id(2)]);
        let stored = database.fetch(&table, &[row(1, 7)]).await.unwrap();
        assert!(stored[0].as_ref().unwrap().same_amounts);
        let foreign = "SELECT string_agg(version::text, ',') FROM other.balance";
        assert_eq!(tenant.value(foreign).await, "1,1", "a foreign table was written");
        database.close(PATIENCE).await;

        // And nothing of ours is left for the next.
        let mut next = client(database.spec()).await;
        let left: (String, String) = {
            let sql = "SELECT current_setting('synchronous_commit'), current_setting('enable_seqscan')";
            let row = sqlx::raw_sql(sql).fetch_one(&mut next).await.unwrap();
            (sqlx::Row::get(&row, 0), sqlx::Row::get(&row, 1))
        };
        assert_eq!(left, ("off".to_owned(), "on".to_owned()), "{name}: what the other client has set");
    }
}

/// Two databases of one pooler, of which it leads one to the other by mistake while the worker runs.
#[tokio::test]
async fn a_pooler_that_leads_to_another_tenants_database_stops_both() {
    // Copies of each other: only the database tells them apart.
    let (a, b) = (Tenant::new("led_a").await, Tenant::new("led_b").await);
    a.seed(1).await;
    b.seed(1).await;
    for tenant in [&a, &b] {
        tenant.sql("GRANT ALL ON balance TO led_a, led_b").await;
    }
    a.sql("GRANT CONNECT ON DATABASE led_a TO led_b").await;
    let right = PgBouncerOptions {
        databases: [("one", "led_a"), ("two", "led_b")].map(|(n, d)| (n.to_owned(), d.to_owned())).into(),
        ..PgBouncerOptions::new(PoolMode::Transaction, 1)
    };
    let wrong = PgBouncerOptions {
        databases: ["one", "two"].map(|name| (name.to_owned(), "led_a".to_owned())).into(),
        ..right.clone()
    };
    let pooler = pooler(&["led_a", "led_b"], &right).await;
    let budget = ConnectionBudget::new(4);
    let by_alias = |role: &str, database: &str| {
        let spec = DatabaseSpec { database: database.to_owned(), ..spec(pooler.port(), role) };
        Database::open(spec, budget.clone()).unwrap()
    };
    let (one, two) = (by_alias("led_a", "one"), by_alias("led_b", "two"));
    let tables = ["one", "two"].map(|name| Table::unqualified().of_tenant(name));
    let write = async |which: usize, version| {
        let database = [&one, &two][which];
        database.update(&tables[which], &[row(1, version)]).await
    };
    assert_eq!(write(0, 2).await.unwrap(), [Outcome::Updated]);
    assert_eq!(write(1, 2).await.unwrap(), [Outcome::Updated]);

    pooler.reload(&wrong).unwrap();
    let mut version = 2;
    let error = eventually(PATIENCE, "the wrong way", || {
        version += 1;
        let write = &write;
        async move { write(1, version).await.err() }
    })
    .await
    .unwrap();
    assert_eq!(error.class(), ErrorClass::PoolerUnsafe, "{error}");
    assert_eq!(a.stored(1).await, "10 v2", "a write for another tenant");
    // The connection of before found itself elsewhere; a new one finds a server there.
    let error = write(1, 100).await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::PoolerUnsafe, "{error}");
    assert!(error.message().contains("another tenant"), "{error}");
    assert_eq!(write(0, 100).await.unwrap_err().class(), ErrorClass::PoolerUnsafe);
    assert_eq!(a.stored(1).await, "10 v2", "a write for another tenant");

    pooler.reload(&right).unwrap();
    for which in [1, 0] {
        eventually(PATIENCE, "the right way", || async { write(which, 101).await.ok() }).await.unwrap();
    }
    assert_eq!((a.stored(1).await, b.stored(1).await), ("10 v101".to_owned(), "10 v101".to_owned()));
    assert_eq!(
        a.value(&format!("SELECT count(*) FROM balance WHERE organization_id = '{ORGANIZATION}'")).await,
        "1"
    );
}

/// Something between us and Postgres takes settings out of our messages: at first all works, then it begins, and each message
/// notices for itself; a new connection does so before anything is sent.
#[tokio::test]
async fn settings_without_effect_are_noticed_by_each_message() {
    let tenant = Tenant::new("tampered").await;
    tenant.seed(1).await;
    for (ours, theirs) in [
        ("SET LOCAL synchronous_commit = on;", "SET LOCAL synchronous_commit =off;"),
        ("SET LOCAL row_security = off;", "SET LOCAL row_security = on ;"),
        ("ISOLATION LEVEL READ COMMITTED;", "ISOLATION LEVEL SERIALIZABLE  ;"),
    ] {
        let (port, tampering) = tampering(tenant.server.port(), ours, theirs).await;
        let database = open(spec(port, &tenant.name));
        let table = Table::unqualified();
        let before = tenant.stored(1).await;
        database.ping().await.unwrap();

        tampering.send_replace(true);
        for _ in 0..2 {
            let error = database.update(&table, &[row(1, 9)]).await.unwrap_err();
            assert_eq!(error.class(), ErrorClass::PoolerUnsafe, "{ours}: {error}");
            assert_eq!(database.usage().open, 0, "{ours}: such a connection is not kept");
        }
        assert_eq!(tenant.stored(1).await, before, "{ours}");
    }
}

/// Passes bytes to a port on this host and replaces a text on the way, while it is set to.
async fn tampering(to: u16, what: &str, by: &str) -> (u16, watch::Sender<bool>) {
    assert_eq!(what.len(), by.len());
    let (what, by) = (what.as_bytes().to_vec(), by.as_bytes().to_vec());
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let switch = watch::Sender::new(false);
    let on = switch.subscribe();
    tokio::spawn(async move {
        while let Ok((client, _)) = listener.accept().await {
            let server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
            let (mut from_client, mut to_client) = client.into_split();
            let (mut from_server, mut to_server) = server.into_split();
            let (what, by, on) = (what.clone(), by.clone(), on.clone());
            tokio::spawn(async move {
                let mut buffer = vec![0; 64 * 1024];
                while let Ok(n @ 1..) = from_client.read(&mut buffer).await {
                    // A message of ours is written at once, and its settings are its beginning.
                    let found = buffer[..n].windows(what.len()).position(|window| window == what);
                    if let Some(at) = found.filter(|_| *on.borrow()) {
                        buffer[at..at + by.len()].copy_from_slice(&by);
                    }
                    if to_server.write_all(&buffer[..n]).await.is_err() {
                        return;
                    }
                }
            });
            tokio::spawn(async move { tokio::io::copy(&mut from_server, &mut to_client).await });
        }
    });
    (port, switch)
}

/// The tests above would show nothing if the pooler did not mix sessions: named statements of two clients collide in it.
#[tokio::test]
async fn named_statements_collide_in_transaction_mode() {
    let tenant = Tenant::new("collide").await;
    tenant.seed(1).await;
    // Where it can rename them, it is configured not to; that is the first of the two.
    let options = renaming(&PgBouncerOptions::new(PoolMode::Transaction, 1)).remove(0);
    let pooler = pooler(&["collide"], &options).await;
    let (mut a, mut b) =
        (client(&spec(pooler.port(), "collide")).await, client(&spec(pooler.port(), "collide")).await);
    sqlx::query("SELECT version FROM balance").fetch_all(&mut a).await.unwrap();
    let error = sqlx::query("SELECT alias FROM balance").fetch_all(&mut b).await.unwrap_err();
    assert_eq!(StoreError::from(error).class(), ErrorClass::PoolerUnsafe);
    let _ = tokio::time::timeout(Duration::from_secs(1), a.close()).await;
}
