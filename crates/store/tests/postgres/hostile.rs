//! A server that sends too much: each connection to it ends with its own reason, after a bounded number of bytes, while another
//! database on the same thread goes on answering. The server is a fake on a loopback address.

use std::time::{Duration, Instant};

use balance_sync_domain::TlsMode;
use balance_sync_sandbox::{HostilePostgres, PostgresAttack};
use balance_sync_store::{Database, DatabaseSpec, ErrorClass, StoreError};

use crate::support::{Tenant, open, spec};

/// What may lie in the buffers of sockets between the fake and the worker.
const BUFFERS: usize = 16 * 1024 * 1024;

fn database(fake: &HostilePostgres) -> Database {
    open(DatabaseSpec {
        tls: TlsMode::Disable,
        connect_timeout: Duration::from_secs(20),
        ..spec(fake.port(), "hostile")
    })
}

/// Asks the fake, while another database must go on answering on this thread.
async fn asks(fake: &HostilePostgres, healthy: &Database) -> StoreError {
    let database = database(fake);
    let asking = async { database.ping().await.unwrap_err() };
    tokio::pin!(asking);
    let mut answers = 0;
    loop {
        tokio::select! {
            error = &mut asking => {
                healthy.ping().await.unwrap();
                tracing::debug!(answers, "the other database answered meanwhile");
                return error;
            }
            answer = healthy.ping() => {
                answer.unwrap();
                answers += 1;
            }
        }
    }
}

#[tokio::test]
#[allow(clippy::print_stderr)] // `--nocapture` shows the figures of docs/operations.md
async fn a_server_that_sends_too_much_is_cut_off_with_its_own_reason() {
    let tenant = Tenant::new("beside_hostile").await;
    let healthy = tenant.database();
    for (fault, words, most) in [
        (
            PostgresAttack::LoginError,
            "announced a message of 50000000 bytes before the login was complete",
            0,
        ),
        (PostgresAttack::LoginAnnounced, "announced a message of 2000000000 bytes before the login", 0),
        (PostgresAttack::LoginNotices, "sent more than 524288 bytes before the login was complete", 524_288),
        (PostgresAttack::LoginSettings, "sent more than 524288 bytes before the login was complete", 524_288),
        (PostgresAttack::Iterations, "asks for 2000000000 iterations of SCRAM; allowed: 100000", 0),
        (PostgresAttack::Announced, "announced a message of 2000000000 bytes; allowed: 16777216", 0),
        (PostgresAttack::Notices, "sent more than 8388608 bytes of notices during one statement", 8_388_608),
        (PostgresAttack::Settings, "sent more than 1048576 bytes of settings on one connection", 1_048_576),
        (PostgresAttack::Rows, "sent more than 67108864 bytes in answer to one statement", 67_108_864),
    ] {
        let fake = HostilePostgres::start(fault).await.unwrap();
        let begun = Instant::now();
        let error = asks(&fake, &healthy).await;
        let took = begun.elapsed();
        assert_eq!(error.class(), ErrorClass::Excess, "{fault:?}: {error}");
        assert!(error.message().contains(words), "{fault:?}: {error}");
        let sent = fake.most_taken();
        eprintln!("{fault:?}: ended after {took:?}, {sent} bytes were taken");
        assert!(sent < most + BUFFERS, "{fault:?}: {sent} bytes were taken");
    }
}

#[tokio::test]
async fn a_login_that_never_ends_is_given_up() {
    let tenant = Tenant::new("beside_endless").await;
    let healthy = tenant.database();
    let fake = HostilePostgres::start(PostgresAttack::LoginForEver).await.unwrap();
    let given_up =
        open(DatabaseSpec { connect_timeout: Duration::from_millis(500), ..database(&fake).spec().clone() });
    let (answer, beside) = tokio::join!(given_up.ping(), healthy.ping());
    beside.unwrap();
    let error = answer.unwrap_err();
    assert_eq!(error.class(), ErrorClass::Timeout, "{error}");
    assert!(error.message().contains("connect_timeout (500ms): no answer while connecting"), "{error}");
}

#[tokio::test]
async fn errors_of_megabytes_are_cut_where_they_enter() {
    let tenant = Tenant::new("beside_errors").await;
    let healthy = tenant.database();
    for (fault, class) in [
        (PostgresAttack::LongErrors, ErrorClass::Resources),
        (PostgresAttack::LongCode, ErrorClass::Internal),
    ] {
        let fake = HostilePostgres::start(fault).await.unwrap();
        for _ in 0..5 {
            let error = asks(&fake, &healthy).await;
            let shown = error.to_string();
            assert!(shown.len() < 1400, "{} bytes", shown.len());
            assert!(!shown.contains('\u{1b}'), "{shown}");
            assert!(error.class() == class || error.class() == ErrorClass::PoolerUnsafe, "{error}");
        }
    }
}
