//! Poolers and proxies as they are run: their mode is found out, and what they refuse, ignore or report by a code of their own is
//! understood.

use balance_sync_sandbox::{PgBouncer, PgBouncerOptions, PoolMode, PostgresOptions, PostgresServer};
use balance_sync_store::{
    ConnectionBudget, ConnectionMode, Database, DatabaseSpec, ErrorClass, Outcome, Row, Table,
};
use secrecy::SecretString;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

use crate::support::{PASSWORD, PATIENCE, Tenant, open, renaming, row, server, spec};

async fn pooler(user: &str, options: &PgBouncerOptions) -> PgBouncer {
    PgBouncer::start(server().await.port(), &[(user, &SecretString::from(PASSWORD))], options).await.unwrap()
}

async fn write(database: &Database, version: i64) -> Vec<Outcome> {
    database.update(&Table::unqualified(), &[row(1, version)]).await.unwrap()
}

#[tokio::test]
async fn the_mode_is_found_out_with_the_first_connection() {
    let tenant = Tenant::new("modes").await;
    tenant.seed(1).await;
    let direct = tenant.database();
    assert_eq!(direct.mode(), None, "nothing is connected yet");
    direct.ping().await.unwrap();
    assert_eq!(direct.mode(), Some(ConnectionMode::Direct));
    assert_eq!(direct.usage().open, 1, "the connection it took to find out is gone");

    use ConnectionMode::{SessionPooler, TransactionPooler};
    let ignoring = |options: PgBouncerOptions| options.with("ignore_startup_parameters", "options");
    let in_turns = |options: PgBouncerOptions| options.with("server_round_robin", "1");
    let options = PgBouncerOptions::new;
    let mut version = 1;
    for (what, options, mode) in [
        ("session", options(PoolMode::Session, 10), SessionPooler),
        ("session, options ignored", ignoring(options(PoolMode::Session, 10)), SessionPooler),
        ("transaction, one session", options(PoolMode::Transaction, 1), TransactionPooler),
        ("transaction, options ignored", ignoring(options(PoolMode::Transaction, 5)), TransactionPooler),
        ("transaction, sessions in turns", in_turns(options(PoolMode::Transaction, 2)), TransactionPooler),
        ("statement", options(PoolMode::Statement, 5), TransactionPooler),
    ] {
        for options in renaming(&options) {
            let pooler = pooler("modes", &options).await;
            // Two databases of a worker: what is found out about the server by the first is not asked again.
            let budget = ConnectionBudget::new(20);
            for _ in 0..2 {
                let database = Database::open(spec(pooler.port(), "modes"), budget.clone()).unwrap();
                version += 1;
                assert_eq!(write(&database, version).await, [Outcome::Updated], "{what}");
                assert_eq!(database.mode(), Some(mode), "{what}");
                database.close(PATIENCE).await;
            }
        }
    }
}

/// A pooler with no session for a second connection must not keep the first from writing.
#[tokio::test]
async fn a_mode_that_cant_be_found_out_holds_nothing_up() {
    let tenant = Tenant::new("no_second").await;
    tenant.seed(1).await;
    let pooler = pooler("no_second", &PgBouncerOptions::new(PoolMode::Session, 1)).await;
    let database = open(spec(pooler.port(), "no_second"));
    assert_eq!(write(&database, 2).await, [Outcome::Updated]);
    assert_eq!(database.mode(), None);

    // Nor does a server without a connection to spare, or our own budget.
    tenant.sql("ALTER ROLE no_second CONNECTION LIMIT 1").await;
    drop(pooler);
    database.close(PATIENCE).await;
    let narrow = Database::open(tenant.spec(), ConnectionBudget::new(1)).unwrap();
    for version in 3..6 {
        assert_eq!(write(&narrow, version).await, [Outcome::Updated]);
    }
    assert_eq!(narrow.mode(), None);
}

/// As RDS Proxy answers a client that sends options.
const RDS_PROXY: &str = "Feature not supported: RDS Proxy currently doesn't support command-line options.";

/// Passes connections to a server, except those with one of these parameters among their start-up options.
async fn refusing_proxy(to: u16, refused: &'static [&'static str]) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((mut client, _)) = listener.accept().await {
            tokio::spawn(async move {
                let length = client.read_u32().await.unwrap();
                let mut startup = vec![0; length as usize - 4];
                client.read_exact(&mut startup).await.unwrap();
                let names = startup[4..].split(|byte| *byte == 0).step_by(2);
                if names.map(String::from_utf8_lossy).any(|name| refused.contains(&&*name)) {
                    let fields = format!("SFATAL\0VFATAL\0C0A000\0M{RDS_PROXY}\0\0");
                    client.write_u8(b'E').await.unwrap();
                    client.write_u32(u32::try_from(fields.len()).unwrap() + 4).await.unwrap();
                    client.write_all(fields.as_bytes()).await.unwrap();
                    return;
                }
                let mut server = TcpStream::connect(("127.0.0.1", to)).await.unwrap();
                server.write_u32(length).await.unwrap();
                server.write_all(&startup).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut client, &mut server).await;
            });
        }
    });
    port
}

#[tokio::test]
async fn a_proxy_that_refuses_options_is_worked_with() {
    let tenant = Tenant::new("refusing").await;
    tenant.seed(1).await;
    let port = refusing_proxy(tenant.server.port(), &["options", "extra_float_digits"]).await;
    let database = open(spec(port, "refusing"));
    assert_eq!(write(&database, 2).await, [Outcome::Updated]);
    assert_eq!(database.mode(), Some(ConnectionMode::SessionPooler));

    // One that refuses even what every client sends can't be worked with, and says why.
    let port = refusing_proxy(tenant.server.port(), &["client_encoding"]).await;
    let error = open(spec(port, "refusing")).ping().await.unwrap_err();
    assert_eq!(error.class(), ErrorClass::PoolerUnsafe, "{error}");
    assert!(error.message().contains("RDS Proxy"), "{error}");
}

/// The pooler ignores start-up options, the database makes commits asynchronous, and the server crashes.
#[tokio::test]
async fn what_was_acknowledged_through_a_pooler_survives_a_crash() {
    const ROWS: u32 = 1000;
    let lazy = [("wal_writer_delay", "10s"), ("wal_writer_flush_after", "1GB"), ("autovacuum", "off")]
        .map(|(name, value)| (name.to_owned(), value.to_owned()));
    let options = PostgresOptions { extra: lazy.to_vec(), ..PostgresOptions::default() };
    let server = PostgresServer::start(options).await.unwrap();
    let password = SecretString::from(PASSWORD);
    server.create_tenant_database("crash", "crash", &password).await.unwrap();
    let seed = format!(
        "INSERT INTO balance (id, organization_id, ledger_id, account_id, alias, asset_code, available, version) \
         SELECT lpad(to_hex(i), 32, '0')::uuid, '{}', '{}', gen_random_uuid(), '@a' || i, 'BRL', 1, 1 \
         FROM generate_series(1, {ROWS}) AS i",
        crate::support::ORGANIZATION,
        crate::support::LEDGER
    );
    server.execute("crash", &seed).await.unwrap();
    server.execute("crash", "ALTER DATABASE crash SET synchronous_commit = 'off'").await.unwrap();
    let ignoring = PgBouncerOptions::new(PoolMode::Transaction, 4)
        .with("ignore_startup_parameters", "options,extra_float_digits");
    let pooler = PgBouncer::start(server.port(), &[("crash", &password)], &ignoring).await.unwrap();
    let database = open(spec(pooler.port(), "crash"));
    let rows: Vec<Row<'_>> = (1..=ROWS).map(|n| row(n, 2)).collect();
    let outcomes = database.update(&Table::unqualified(), &rows).await.unwrap();
    assert!(outcomes.iter().all(|outcome| *outcome == Outcome::Updated));

    server.stop_immediate().await.unwrap();
    server.start_again().await.unwrap();
    let mut connection = server.connect("crash").await.unwrap();
    let behind: i64 = sqlx::query_scalar("SELECT count(*) FROM balance WHERE version < 2")
        .fetch_one(&mut connection)
        .await
        .unwrap();
    assert_eq!(behind, 0, "acknowledged rows are gone");
}

/// Old poolers have one code for all that they refuse.
#[tokio::test]
async fn what_a_pooler_refuses_is_distinguished() {
    let tenant = Tenant::new("refused").await;
    tenant.seed(1).await;
    let options = PgBouncerOptions::new(PoolMode::Transaction, 1).with("query_wait_timeout", "1");
    let pooler = pooler("refused", &options).await;
    let class = async |spec: DatabaseSpec| {
        let error = open(spec).ping().await.unwrap_err();
        assert!(!error.to_string().contains(PASSWORD), "{error}");
        (error.class(), error.to_string())
    };
    let through = spec(pooler.port(), "refused");
    let wrong = DatabaseSpec { password: SecretString::from("wrong"), ..through.clone() };
    let (found, text) = class(wrong).await;
    assert_eq!(found, ErrorClass::Credentials, "{text}");
    let stranger = DatabaseSpec { username: "stranger".to_owned(), ..through.clone() };
    let (found, text) = class(stranger).await;
    assert_eq!(found, ErrorClass::Credentials, "{text}");
    let nowhere = DatabaseSpec { database: "nowhere".to_owned(), ..through.clone() };
    let (found, text) = class(nowhere).await;
    assert_eq!(found, ErrorClass::DatabaseMissing, "{text}");

    // The only session is another client's.
    let mut holder = sqlx::ConnectOptions::connect(&through.connect_options()).await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT 1").execute(&mut holder).await.unwrap();
    let (found, text) = class(through.clone()).await;
    assert_eq!(found, ErrorClass::TooManyConnections, "{text}");
    drop(holder);
}

/// Batches of 500 rows per second, directly and through a pooler, in turns; prints them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "a measurement"]
#[allow(clippy::print_stdout)]
async fn throughput_through_a_pooler() {
    const ROWS: u32 = 500;
    const ROUNDS: u32 = 8;
    let tenant = Tenant::new("speed").await;
    tenant.seed(ROWS).await;
    let session = pooler("speed", &PgBouncerOptions::new(PoolMode::Session, 4)).await;
    let transaction = pooler("speed", &PgBouncerOptions::new(PoolMode::Transaction, 4)).await;
    let ways =
        [tenant.server.port(), session.port(), transaction.port()].map(|port| open(spec(port, "speed")));
    let (mut version, mut took) = (1, [std::time::Duration::ZERO; 3]);
    for round in 0..ROUNDS * 3 {
        // Each begins as often as the others.
        for step in 0..3 {
            let way = (round as usize + step) % 3;
            let begun = std::time::Instant::now();
            for _ in 0..10 {
                version += 1;
                let rows: Vec<Row<'_>> = (1..=ROWS).map(|n| row(n, version)).collect();
                ways[way].update(&Table::unqualified(), &rows).await.unwrap();
            }
            if round >= 3 {
                took[way] += begun.elapsed();
            }
        }
    }
    let direct = took[0].as_secs_f64();
    let part = |way: usize| direct / took[way].as_secs_f64();
    println!(
        "direct {:.2} ms per batch, session pooler {:.2} of it, transaction pooler {:.2} of it",
        direct * 1e3 / f64::from((ROUNDS * 3 - 3) * 10),
        part(1),
        part(2)
    );
}
