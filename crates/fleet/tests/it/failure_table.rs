//! The failure table as drivers use it, row by row, with errors as they really come: those of the store are provoked over a
//! socket, by a server that speaks just enough of Postgres's protocol to refuse.

use balance_sync_domain::TlsMode;
use std::{collections::BTreeSet, time::Duration};

use balance_sync_engine::failure::{NextTry, Obstacle, Settings};
use balance_sync_fleet::pipeline::{Pace, Reaction, SinkError, reaction};
use balance_sync_store::{
    ConnectionBudget, Database, DatabaseSpec, ErrorClass as StoreClass, StoreError, Table,
};
use balance_sync_tenants::DirectoryError;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

/// One row, in words: reason, pace, and what is set of `refetch`, `ping` and `skip`.
type Row = (&'static str, Pace, &'static str);

#[track_caller]
fn check(what: &str, found: Reaction, (reason, pace, flags): Row) {
    let has = |flag: &str| flags.split_whitespace().any(|word| word == flag);
    let set = (
        found.settings == Settings::Refetch,
        found.next_try == NextTry::Ping,
        found.obstacle == Obstacle::Skipped,
    );
    assert_eq!((found.reason.as_str(), found.pace()), (reason, pace), "{what}");
    assert_eq!(set, (has("refetch"), has("ping"), has("skip")), "{what}");
}

fn spec(port: u16) -> DatabaseSpec {
    let mut spec = DatabaseSpec::new("127.0.0.1", port, "ledger", "worker", String::from("secret").into());
    spec.tls = TlsMode::Disable;
    spec.max_connections = 1;
    spec
}

fn open(spec: DatabaseSpec) -> Database {
    Database::open(spec, ConnectionBudget::new(4)).unwrap()
}

/// A server that answers each start-up with an error.
async fn refusing(severity: &'static str, sqlstate: &'static str) -> u16 {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut socket, _)) = listener.accept().await {
            let length = socket.read_u32().await.unwrap() as usize;
            let mut startup = vec![0; length - 4];
            socket.read_exact(&mut startup).await.unwrap();
            let mut fields = Vec::new();
            for (kind, text) in [('S', severity), ('V', severity), ('C', sqlstate), ('M', "injected")] {
                fields.push(kind as u8);
                fields.extend_from_slice(text.as_bytes());
                fields.push(0);
            }
            fields.push(0);
            socket.write_u8(b'E').await.unwrap();
            socket.write_u32(u32::try_from(fields.len() + 4).unwrap()).await.unwrap();
            socket.write_all(&fields).await.unwrap();
            // The client closes when it has read it.
            let _ = socket.read_u8().await;
        }
    });
    port
}

async fn refused(severity: &'static str, sqlstate: &'static str) -> StoreError {
    open(spec(refusing(severity, sqlstate).await)).ping().await.unwrap_err()
}

#[tokio::test]
async fn every_class_of_postgres_has_its_row() {
    use Pace::{Long, Short};
    let rows: &[(&'static str, &'static str, StoreClass, Row)] = &[
        ("FATAL", "57P01", StoreClass::Connection, ("postgres_connection", Short, "ping")),
        ("FATAL", "57P03", StoreClass::Connection, ("postgres_connection", Short, "ping")),
        ("FATAL", "53300", StoreClass::TooManyConnections, ("postgres_too_many_connections", Short, "ping")),
        ("ERROR", "57014", StoreClass::Timeout, ("postgres_timeout", Short, "ping")),
        ("ERROR", "55P03", StoreClass::Timeout, ("postgres_timeout", Short, "ping")),
        ("ERROR", "25006", StoreClass::ReadOnly, ("postgres_read_only", Short, "refetch")),
        ("ERROR", "40P01", StoreClass::Contention, ("postgres_contention", Short, "")),
        ("ERROR", "40001", StoreClass::Contention, ("postgres_contention", Short, "")),
        ("FATAL", "28P01", StoreClass::Credentials, ("postgres_credentials", Long, "refetch ping")),
        ("FATAL", "3D000", StoreClass::DatabaseMissing, ("postgres_database_missing", Long, "refetch ping")),
        ("ERROR", "42P01", StoreClass::NotProvisioned, ("postgres_not_provisioned", Long, "refetch")),
        ("ERROR", "42703", StoreClass::NotProvisioned, ("postgres_not_provisioned", Long, "refetch")),
        ("ERROR", "42P05", StoreClass::PoolerUnsafe, ("postgres_pooler_unsafe", Long, "refetch")),
        ("ERROR", "26000", StoreClass::PoolerUnsafe, ("postgres_pooler_unsafe", Long, "refetch")),
        ("ERROR", "42501", StoreClass::Permission, ("postgres_permission", Long, "refetch")),
        ("ERROR", "53100", StoreClass::Resources, ("postgres_resources", Short, "")),
        ("FATAL", "42704", StoreClass::Configuration, ("postgres_configuration", Long, "refetch ping")),
        ("ERROR", "22003", StoreClass::Refused, ("postgres_internal", Long, "")),
        ("ERROR", "23514", StoreClass::Refused, ("postgres_internal", Long, "")),
        ("ERROR", "XX000", StoreClass::Internal, ("postgres_internal", Long, "")),
    ];
    let mut seen = BTreeSet::new();
    for (severity, sqlstate, class, row) in rows {
        let error = refused(severity, sqlstate).await;
        assert_eq!(error.class(), *class, "{sqlstate}: {error}");
        seen.insert(error.class());
        check(sqlstate, reaction(&error.into()), *row);
    }

    // Those that are not an answer of Postgres.
    let others = [
        (no_server_listens().await, ("postgres_connection", Short, "ping")),
        (unknown_name().await, ("postgres_dns", Short, "refetch ping")),
        (no_answer().await, ("postgres_timeout", Short, "ping")),
        (no_place_is_free().await, ("postgres_connection_budget", Short, "")),
        (impossible_settings(), ("postgres_configuration", Long, "refetch ping")),
        (closed().await, ("postgres_connection", Short, "")),
        (certificate_missing(), ("postgres_tls", Long, "refetch ping")),
        // Judged by more than one answer.
        (of_class(StoreClass::RowSecurity), ("postgres_row_security", Long, "refetch")),
        (of_class(StoreClass::NoVisibleRows), ("postgres_no_visible_rows", Long, "refetch")),
        (of_class(StoreClass::RefusesEveryRow), ("postgres_refuses_every_row", Long, "")),
        (of_class(StoreClass::Excess), ("postgres_excess", Long, "refetch")),
    ];
    for (error, row) in others {
        seen.insert(error.class());
        check(&error.to_string(), reaction(&error.into()), row);
    }
    let missing: Vec<_> = StoreClass::ALL.iter().filter(|class| !seen.contains(class)).collect();
    assert!(missing.is_empty(), "classes without a row in this test: {missing:?}");
}

fn of_class(class: StoreClass) -> StoreError {
    StoreError::of_class(class, "injected")
}

async fn no_server_listens() -> StoreError {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    open(spec(port)).ping().await.unwrap_err()
}

async fn unknown_name() -> StoreError {
    let mut spec = spec(5432);
    // No name service is asked for such a name.
    spec.host = "no such host".to_owned();
    open(spec).ping().await.unwrap_err()
}

/// Provoked with real certificates by the store's own tests.
fn certificate_missing() -> StoreError {
    of_class(StoreClass::Tls)
}

async fn no_answer() -> StoreError {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut spec = spec(listener.local_addr().unwrap().port());
    spec.connect_timeout = Duration::from_millis(50);
    open(spec).ping().await.unwrap_err()
}

async fn no_place_is_free() -> StoreError {
    let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let mut spec = spec(listener.local_addr().unwrap().port());
    spec.acquire_timeout = Duration::from_millis(50);
    let database = open(spec);
    let holder = tokio::spawn({
        let database = database.clone();
        async move { database.ping().await }
    });
    let (_held, _) = listener.accept().await.unwrap();
    let error = database.ping().await.unwrap_err();
    holder.abort();
    error
}

fn impossible_settings() -> StoreError {
    let mut spec = spec(5432);
    spec.username = String::new();
    Database::open(spec, ConnectionBudget::new(1)).unwrap_err()
}

async fn closed() -> StoreError {
    let database = open(spec(5432));
    database.close(Duration::ZERO).await;
    database.ping().await.unwrap_err()
}

#[test]
fn every_answer_of_the_directory_has_its_row() {
    use Pace::{Long, Short};
    let all = "refetch ping skip";
    let rows = [
        (DirectoryError::NotFound, ("tenant_not_found", Long, all)),
        (DirectoryError::Suspended, ("tenant_suspended", Long, all)),
        (DirectoryError::Purged, ("tenant_purged", Long, all)),
        (DirectoryError::Forbidden { status: None }, ("tenant_forbidden", Long, all)),
        (DirectoryError::Unauthorized, ("tenant_service_unauthorized", Long, all)),
        (DirectoryError::malformed("body", "x"), ("tenant_config_malformed", Long, all)),
        (DirectoryError::unavailable("x"), ("tenant_service_unavailable", Short, all)),
        (
            DirectoryError::BreakerOpen { retry_in: Duration::from_secs(1) },
            ("tenant_service_unavailable", Short, all),
        ),
    ];
    for (error, row) in rows {
        check(error.kind(), reaction(&error.clone().into()), row);
    }
    let schema = Table::in_schema("").unwrap_err();
    check("schema", reaction(&schema.into()), ("tenant_config_malformed", Long, all));
    check("manager", reaction(&SinkError::ManagerGone), ("stopping", Short, all));
    let deadline = SinkError::Deadline(Duration::from_secs(20));
    check("deadline", reaction(&deadline), ("postgres_timeout", Short, "ping"));
}

#[test]
fn no_text_of_a_failure_shows_a_secret() {
    let error = SinkError::from(impossible_settings());
    assert!(!format!("{error} {error:?}").contains("secret"));
}
