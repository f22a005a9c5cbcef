//! An address that comes to lead to another server while the former one goes on to answer.

use std::time::Duration;

use balance_sync_sandbox::{PostgresOptions, PostgresServer, eventually};
use balance_sync_store::{Database, DatabaseSpec, Outcome, Table};
use secrecy::SecretString;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;

use crate::support::{PASSWORD, PATIENCE, Tenant, open, row, spec};

/// Passes new connections to a port of this host, which may change; those that there are stay where they are.
pub(crate) async fn address(to: u16) -> (u16, watch::Sender<u16>) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let target = watch::Sender::new(to);
    let seen = target.subscribe();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            let to = *seen.borrow();
            tokio::spawn(async move {
                let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    (port, target)
}

#[tokio::test]
async fn writes_follow_an_address_that_has_moved_within_the_greatest_age() {
    let former = Tenant::new("moved").await;
    former.seed(1).await;
    let next = PostgresServer::start(PostgresOptions::default()).await.unwrap();
    next.create_tenant_database("moved", "moved", &SecretString::from(PASSWORD)).await.unwrap();
    let (port, target) = address(former.server.port()).await;
    let max_age = Duration::from_secs(1);
    let database: Database = open(DatabaseSpec { max_age, ..spec(port, "moved") });
    let mut version = 1;
    let mut write = async || {
        version += 1;
        database.update(&Table::unqualified(), &[row(1, version)]).await.unwrap()[0]
    };
    assert_eq!(write().await, Outcome::Updated);
    target.send_replace(next.port());
    // In use all the time: it is never idle for long.
    let deadline = tokio::time::Instant::now() + PATIENCE;
    while write().await == Outcome::Updated {
        assert!(tokio::time::Instant::now() < deadline, "the former server is written for ever");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert_eq!(write().await, Outcome::Missing, "the next server has no rows");
    eventually(PATIENCE, "the end of the former session", || async { former.backends().await == 0 })
        .await
        .unwrap();
}
