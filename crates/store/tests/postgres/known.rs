//! Connections that are taken to lead where others of the same database did.

use std::time::Duration;

use balance_sync_sandbox::{PostgresOptions, PostgresServer};
use balance_sync_store::{ConnectionBudget, ConnectionMode, Database, DatabaseSpec, Outcome, Table};
use secrecy::SecretString;

use crate::moved::address;
use crate::support::{LEDGER, ORGANIZATION, PASSWORD, row, spec};

const DATABASE: &str = "of_many_roles";

/// A server with two roles, each with a schema of its own and one balance in it. It logs all statements.
async fn two_roles() -> PostgresServer {
    let extra = vec![("log_statement".to_owned(), "all".to_owned())];
    let server =
        PostgresServer::start(PostgresOptions { extra, ..PostgresOptions::default() }).await.unwrap();
    for role in ["one", "two"] {
        server.create_tenant_schema(DATABASE, role, role, &SecretString::from(PASSWORD)).await.unwrap();
        let sql = format!(
            "INSERT INTO {role}.balance (id, organization_id, ledger_id, account_id, alias, asset_code, available, version) \
             VALUES (lpad('1', 32, '0')::uuid, '{ORGANIZATION}', '{LEDGER}', gen_random_uuid(), '@a', 'BRL', 1, 1)"
        );
        server.execute(DATABASE, &sql).await.unwrap();
    }
    server
}

/// How often a connection to the server was asked where it leads.
fn looks(server: &PostgresServer) -> usize {
    let log = std::fs::read_to_string(server.folder().join("server.log")).unwrap();
    log.lines().filter(|line| line.contains("statement: ") && line.contains("pg_is_in_recovery()")).count()
}

/// The balance of a role, written on a new connection each time.
struct Writer {
    database: Database,
    table: Table,
    version: i64,
}

impl Writer {
    fn new(port: u16, role: &str, budget: &ConnectionBudget) -> Writer {
        let spec =
            DatabaseSpec { database: DATABASE.to_owned(), max_age: Duration::ZERO, ..spec(port, role) };
        let database = Database::open(spec, budget.clone()).unwrap();
        Writer { database, table: Table::in_schema(role).unwrap(), version: 1 }
    }

    async fn write(&mut self) -> Outcome {
        self.version += 1;
        self.database.update(&self.table, &[row(1, self.version)]).await.unwrap()[0]
    }
}

#[tokio::test]
async fn of_many_roles_one_connection_is_asked_where_it_leads() {
    let server = two_roles().await;
    let budget = ConnectionBudget::new(4);
    let mut writers = ["one", "two"].map(|role| Writer::new(server.port(), role, &budget));
    for writer in &mut writers {
        assert_eq!(writer.write().await, Outcome::Updated);
    }
    assert_eq!(looks(&server), 2, "each role once");
    let opened = budget.servers()[0].opened;
    for _ in 0..5 {
        for writer in &mut writers {
            assert_eq!(writer.write().await, Outcome::Updated);
        }
    }
    assert!(budget.servers()[0].opened >= opened + 10, "each on a connection of its own");
    // What was found counts for ten seconds: this took longer if the machine is very busy.
    assert!(looks(&server) <= 4, "{} looks", looks(&server));
    assert_eq!(writers[0].database.origin(), writers[1].database.origin());
}

#[tokio::test]
async fn where_no_place_is_to_spare_one_login_tells_whether_a_pooler_has_come_between() {
    let server = two_roles().await;
    let budget = ConnectionBudget::new(4);
    let mut writers = ["one", "two"].map(|role| Writer::new(server.port(), role, &budget));
    for writer in &mut writers {
        assert_eq!(writer.write().await, Outcome::Updated);
    }
    let mut held = Vec::new();
    for (role, connections) in [("one", 2), ("two", 1)] {
        let spec = DatabaseSpec { database: DATABASE.to_owned(), ..spec(server.port(), role) };
        let busy = Database::open(spec, budget.clone()).unwrap();
        for _ in 0..connections {
            held.push(busy.connect().await.unwrap());
        }
    }
    budget.check_ways_again();
    let before = looks(&server);
    for _ in 0..5 {
        for writer in &mut writers {
            assert_eq!(writer.write().await, Outcome::Updated);
        }
    }
    // One for the question, and one more if ten seconds have passed.
    let looked = looks(&server) - before;
    assert!((1..=3).contains(&looked), "{looked} looks");
    assert_eq!(writers[0].database.mode(), Some(ConnectionMode::Direct));
}

#[tokio::test]
async fn a_connection_that_leads_elsewhere_than_those_before_writes_nothing_and_is_asked() {
    let (former, next) = (two_roles().await, two_roles().await);
    let (port, target) = address(former.port()).await;
    let budget = ConnectionBudget::new(4);
    let mut writers = ["one", "two"].map(|role| Writer::new(port, role, &budget));
    for _ in 0..2 {
        for writer in &mut writers {
            assert_eq!(writer.write().await, Outcome::Updated);
        }
    }
    let before = writers.each_ref().map(|writer| writer.database.origin().unwrap());
    target.send_replace(next.port());
    for (writer, before) in writers.iter_mut().zip(before) {
        assert_eq!(writer.write().await, Outcome::Updated);
        assert_ne!(writer.database.origin(), Some(before), "another server is noticed");
    }
    // The first statement on the new server failed, and the connection was opened anew and asked.
    assert!(looks(&next) >= 1);
}

#[tokio::test]
async fn where_a_connection_leads_is_reported_when_it_has_been_checked() {
    let (former, next) = (two_roles().await, two_roles().await);
    let (port, target) = address(former.port()).await;
    let budget = ConnectionBudget::new(4);
    let mut writers = ["one", "two"].map(|role| Writer::new(port, role, &budget));
    for writer in &mut writers {
        assert_eq!(writer.write().await, Outcome::Updated);
    }
    let before = writers[1].database.origin();
    target.send_replace(next.port());
    assert_eq!(writers[0].write().await, Outcome::Updated);
    let [one, two] = &mut writers;
    assert_ne!(one.database.origin(), before);
    // What the other role has found is taken for its connection too, and no statement has checked it yet.
    let looked = looks(&next);
    let session = two.database.connect().await.unwrap();
    assert_eq!((looks(&next), two.database.origin()), (looked, before));
    drop(session);
    assert_eq!(two.write().await, Outcome::Updated);
    assert_eq!(two.database.origin(), one.database.origin());
}

#[tokio::test]
async fn a_connection_in_place_of_one_that_was_not_asked_is_asked() {
    let server = two_roles().await;
    let budget = ConnectionBudget::new(4);
    let mut writers = ["one", "two"].map(|role| Writer::new(server.port(), role, &budget));
    for writer in &mut writers {
        assert_eq!(writer.write().await, Outcome::Updated);
    }
    let looked = looks(&server);
    let mut session = writers[0].database.connect().await.unwrap();
    assert_eq!(looks(&server), looked, "it is taken to lead where the other did");
    let end = "SELECT pg_terminate_backend(pid, 5000) FROM pg_stat_activity WHERE usename = 'one'";
    server.execute("postgres", end).await.unwrap();
    session.update_isolating(&writers[0].table, &[row(1, 9)]).await.unwrap();
    assert_eq!(looks(&server), looked + 1);
}

#[tokio::test]
async fn a_role_whose_search_path_counts_is_asked_each_time() {
    let server = two_roles().await;
    server.execute("postgres", "ALTER ROLE one SET search_path = one").await.unwrap();
    let budget = ConnectionBudget::new(4);
    let mut writer = Writer { table: Table::unqualified(), ..Writer::new(server.port(), "one", &budget) };
    for looked in 1..4 {
        assert_eq!(writer.write().await, Outcome::Updated);
        assert_eq!(looks(&server), looked);
    }
}
