//! Many databases on one server, and few connections.

use std::time::{Duration, Instant};

use balance_sync_sandbox::eventually;
use balance_sync_store::{ConnectionBudget, Database, DatabaseSpec, ErrorClass, Outcome, Table};

use crate::support::{PASSWORD, PATIENCE, Tenant, row, server, spec};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_databases_share_five_connections() {
    const DATABASES: usize = 20;
    const BUDGET: u32 = 5;
    const WRITES: i64 = 4;
    let tenants: Vec<Tenant> = futures::future::join_all(
        (0..DATABASES).map(|n| async move { Tenant::new(&format!("budget_{n}")).await }),
    )
    .await;
    for tenant in &tenants {
        tenant.seed(3).await;
    }
    let budget = ConnectionBudget::new(BUDGET);
    let databases: Vec<Database> = tenants
        .iter()
        .map(|tenant| {
            // Forty writers wait in one queue, and each turn takes a new connection: slow on a busy machine.
            let patient = DatabaseSpec {
                acquire_timeout: 6 * PATIENCE,
                connect_timeout: 6 * PATIENCE,
                ..tenant.spec()
            };
            Database::open(patient, budget.clone()).unwrap()
        })
        .collect();

    // Each database has two writers, forty for five connections.
    let writers: Vec<_> = databases
        .iter()
        .flat_map(|database| [database.clone(), database.clone()])
        .map(|database| {
            tokio::spawn(async move {
                for version in 2..2 + WRITES {
                    let rows = [row(1, version), row(2, version), row(3, version)];
                    let outcomes = database.update(&Table::unqualified(), &rows).await.unwrap();
                    assert!(!outcomes.contains(&Outcome::Missing));
                }
            })
        })
        .collect();

    // The server's own count lags: a backend takes a moment to end after we have closed the connection, and while one turn
    // follows the other there is always some backend that is just ending. Those that work for us are another matter:
    // what we have closed had nothing to do any more.
    let mut watcher = tenants[0].server.connect("postgres").await.unwrap();
    let (mut most, mut seen_at_work) = (0, 0);
    while writers.iter().any(|writer| !writer.is_finished()) {
        let usage = &budget.servers()[0];
        assert!(usage.open.max(usage.in_use) <= u64::from(BUDGET), "{usage:?}");
        most = most.max(usage.open);
        let at_work: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE usename LIKE 'budget\\_%' AND state <> 'idle'",
        )
        .fetch_one(&mut watcher)
        .await
        .unwrap();
        assert!(at_work <= i64::from(BUDGET), "{at_work} connections are at work");
        seen_at_work = seen_at_work.max(at_work);
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    assert!(seen_at_work > 0, "no write was seen at work");
    assert_eq!(most, u64::from(BUDGET), "the budget is there to be used");
    for writer in writers {
        writer.await.unwrap();
    }

    let usage = &budget.servers()[0];
    assert_eq!((usage.in_use, usage.waiting), (0, 0));
    for database in &databases {
        assert_eq!(database.close(PATIENCE).await, 0);
    }
    assert_eq!(budget.servers()[0].open, 0);
}

/// More active databases than connections: each turn of a connection lasts, no database starves, and what is asked for more often
/// than connections can move is not answered by moving them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn connections_do_not_move_with_every_statement() {
    const DATABASES: usize = 6;
    let tenants: Vec<Tenant> = futures::future::join_all(
        (0..DATABASES).map(|n| async move { Tenant::new(&format!("turns_{n}")).await }),
    )
    .await;
    for tenant in &tenants {
        tenant.seed(1).await;
    }
    let budget = ConnectionBudget::new(4);
    let begun = Instant::now();
    let databases: Vec<Database> =
        tenants.iter().map(|tenant| Database::open(tenant.spec(), budget.clone()).unwrap()).collect();
    let writers: Vec<_> = databases
        .iter()
        .map(|database| {
            let database = database.clone();
            tokio::spawn(async move {
                // One after the other with pauses in between, as a tenant with a trickle of mutations.
                for version in 2..42 {
                    let outcomes = database.update(&Table::unqualified(), &[row(1, version)]).await.unwrap();
                    assert_eq!(outcomes, [Outcome::Updated]);
                    tokio::time::sleep(Duration::from_millis(50)).await;
                }
            })
        })
        .collect();
    for writer in writers {
        writer.await.unwrap();
    }
    let opened = budget.servers()[0].opened as usize;
    // Each of the four moves at most twice a second.
    let bound = DATABASES + (begun.elapsed().as_secs_f64() * 2.0 * 4.0).ceil() as usize;
    assert!(opened <= bound, "{opened} connections opened for 240 writes, more than {bound}");
    assert!(opened > 4, "but they do move");
}

/// A database in the middle of a backlog gives its connection up after a while, although it never rests.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_backlog_does_not_keep_its_connection_for_ever() {
    let (busy, other) = (Tenant::new("busy").await, Tenant::new("patient").await);
    busy.seed(1).await;
    other.seed(1).await;
    let budget = ConnectionBudget::new(1);
    let backlog = Database::open(busy.spec(), budget.clone()).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let working = tokio::spawn({
        let (backlog, stop) = (backlog.clone(), std::sync::Arc::clone(&stop));
        async move {
            let mut version = 1;
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                version += 1;
                backlog.update(&Table::unqualified(), &[row(1, version)]).await.unwrap();
            }
        }
    });
    eventually(PATIENCE, "the backlog's work", || async { backlog.usage().open == 1 }).await.unwrap();
    let database = Database::open(other.spec(), budget.clone()).unwrap();
    for version in 2..4 {
        // Within the acquire timeout, or it would be an error.
        let written = database.update(&Table::unqualified(), &[row(1, version)]).await.unwrap();
        assert_eq!(written, [Outcome::Updated]);
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    working.await.unwrap();
}

/// Who waits in a queue that moves is not turned away before its turn: it would have to queue again.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_in_a_queue_that_moves_stays_in_it() {
    const TIMEOUT: Duration = Duration::from_secs(4);
    let budget = ConnectionBudget::new(1);
    let mut databases = Vec::new();
    for n in 0..5 {
        let tenant = Tenant::new(&format!("moving_{n}")).await;
        let spec = DatabaseSpec { acquire_timeout: TIMEOUT, ..tenant.spec() };
        databases.push(Database::open(spec, budget.clone()).unwrap());
    }
    let mut turn = databases[0].connect().await.unwrap();
    let mut queue = Vec::new();
    for (n, database) in (1..).zip(&databases[1..]) {
        let database = database.clone();
        queue.push(tokio::spawn(async move { database.connect().await }));
        eventually(PATIENCE, "the next", || async { budget.servers()[0].waiting == n }).await.unwrap();
    }
    for next in queue {
        // The last one waits twice the timeout.
        tokio::time::sleep(TIMEOUT / 2).await;
        drop(turn);
        turn = next.await.unwrap().unwrap();
    }

    // Where nothing moves, the timeout is the timeout.
    let begun = tokio::time::Instant::now();
    let refused = databases[0].connect().await.unwrap_err();
    assert_eq!(refused.class(), ErrorClass::ConnectionBudget);
    assert!(begun.elapsed() < TIMEOUT.mul_f64(1.4), "{:?}", begun.elapsed());
    drop(turn);
}

/// A look can be repeated, and something waits for it: in a queue that moves it doesn't stay as a batch does.
#[tokio::test]
async fn a_look_gives_up_where_a_batch_stays_in_the_queue() {
    let (busy, other) = (Tenant::new("looked_at").await, Tenant::new("moves_on").await);
    let budget = ConnectionBudget::new(2);
    let spec = DatabaseSpec { acquire_timeout: Duration::from_secs(1), max_connections: 1, ..busy.spec() };
    let (database, others) = (
        Database::open(spec, budget.clone()).unwrap(),
        Database::open(other.spec(), budget.clone()).unwrap(),
    );
    let held = database.connect().await.unwrap();
    others.ping().await.unwrap();
    let batch = tokio::spawn({
        let database = database.clone();
        async move { database.connect().await.map(drop) }
    });
    eventually(PATIENCE, "the batch in the queue", || async { budget.servers()[0].waiting == 1 })
        .await
        .unwrap();
    let look = tokio::spawn({
        let database = database.clone();
        async move { database.connect_for_a_look().await.map(drop) }
    });
    eventually(PATIENCE, "the end of the look", || async {
        // Another tenant's operations move the queue.
        others.ping().await.unwrap();
        look.is_finished()
    })
    .await
    .unwrap();
    assert_eq!(look.await.unwrap().unwrap_err().class(), ErrorClass::ConnectionBudget);
    assert!(!batch.is_finished(), "it keeps its place");
    drop(held);
    batch.await.unwrap().unwrap();
}

/// A slot that goes from one vain attempt to the next moves nothing: a dead server keeps no tenant in its queue.
#[tokio::test]
async fn attempts_to_connect_in_vain_are_no_progress() {
    let hole = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let budget = ConnectionBudget::new(1);
    let waiting: Vec<_> = (0..10)
        .map(|n| {
            let spec = DatabaseSpec {
                acquire_timeout: Duration::from_secs(1),
                connect_timeout: Duration::from_millis(600),
                ..spec(hole.local_addr().unwrap().port(), &format!("vain_{n}"))
            };
            let database = Database::open(spec, budget.clone()).unwrap();
            tokio::spawn(async move { database.connect().await.unwrap_err().class() })
        })
        .collect();
    let mut refused = 0;
    for waiting in waiting {
        match waiting.await.unwrap() {
            ErrorClass::ConnectionBudget => refused += 1,
            class => assert_eq!(class, ErrorClass::Timeout),
        }
    }
    assert!(refused >= 7, "{refused} of ten gave up waiting");
}

/// However many connections there are, only so many batches are written at once; the next begins when one has ended.
#[tokio::test]
async fn batches_take_turns() {
    let tenant = Tenant::new("batches").await;
    let budget = ConnectionBudget::new(30);
    let database = Database::open(DatabaseSpec { max_connections: 30, ..tenant.spec() }, budget).unwrap();
    let mut places = Vec::new();
    for _ in 0..16 {
        places.push(database.connect().await.unwrap());
    }
    let mut next = std::pin::pin!(database.connect());
    let early = tokio::time::timeout(Duration::from_millis(300), next.as_mut()).await;
    assert!(early.is_err(), "a seventeenth batch at once");
    database.ping().await.unwrap();
    places.pop();
    next.await.unwrap();
}

/// Sixteen batches that wait for a lock do no work: they keep no other tenant on their server from writing.
#[tokio::test]
async fn batches_that_wait_for_a_lock_keep_no_turn() {
    let (locked, other) = (Tenant::new("locked_batches").await, Tenant::new("unlocked").await);
    locked.seed(16).await;
    other.seed(1).await;
    let budget = ConnectionBudget::new(20);
    let database =
        Database::open(DatabaseSpec { max_connections: 16, ..locked.spec() }, budget.clone()).unwrap();
    let mut blocker = locked.server.connect("locked_batches").await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM balance FOR UPDATE").execute(&mut blocker).await.unwrap();
    let mut blocked = Vec::new();
    for number in 1..=16 {
        let mut place = database.connect().await.unwrap();
        blocked.push(tokio::spawn(async move {
            place.update_isolating(&Table::unqualified(), &[row(number, 2)]).await
        }));
    }
    let free = Database::open(other.spec(), budget.clone()).unwrap();
    // Half of what a blocked statement may take.
    let place = tokio::time::timeout(PATIENCE / 2, free.connect()).await.expect("a turn").unwrap();
    drop(place);
    assert!(blocked.iter().all(|write| !write.is_finished()), "they still wait for the lock");
    sqlx::raw_sql("ROLLBACK").execute(&mut blocker).await.unwrap();
    for write in blocked {
        write.await.unwrap().unwrap();
    }
}

/// The second connection of a database is no reason to take another database's only one.
#[tokio::test]
async fn who_has_a_connection_takes_none_away() {
    let (one, two) = (Tenant::new("has_one").await, Tenant::new("has_two").await);
    one.seed(1).await;
    two.seed(1).await;
    let budget = ConnectionBudget::new(2);
    let idle = Database::open(one.spec(), budget.clone()).unwrap();
    idle.ping().await.unwrap();
    let database = Database::open(DatabaseSpec { max_connections: 2, ..two.spec() }, budget.clone()).unwrap();
    let mut blocker = two.server.connect("has_two").await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM balance FOR UPDATE").execute(&mut blocker).await.unwrap();
    let writes: Vec<_> = (0..2)
        .map(|n| {
            let database = database.clone();
            tokio::spawn(async move { database.update(&Table::unqualified(), &[row(1, 2 + n)]).await })
        })
        .collect();
    eventually(PATIENCE, "the second write in the queue", || async {
        database.usage().in_use == 1 && budget.servers()[0].waiting == 1
    })
    .await
    .unwrap();
    // Longer than a connection is left alone: had it been anybody's, it would be gone.
    tokio::time::sleep(Duration::from_millis(700)).await;
    assert_eq!((idle.usage().idle, database.usage().open), (1, 1));
    sqlx::raw_sql("ROLLBACK").execute(&mut blocker).await.unwrap();
    for write in writes {
        write.await.unwrap().unwrap();
    }
    assert_eq!(database.usage().open, 1, "one after the other on the one it has");
}

/// Slots are per server: one that never answers keeps no tenant of another from writing.
#[tokio::test]
async fn a_server_that_never_answers_holds_up_no_other() {
    let tenant = Tenant::new("elsewhere").await;
    tenant.seed(1).await;
    let hole = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let budget = ConnectionBudget::new(1);
    let silent = DatabaseSpec { port: hole.local_addr().unwrap().port(), ..tenant.spec() };
    let silent = Database::open(silent, budget.clone()).unwrap();
    let stuck = tokio::spawn({
        let silent = silent.clone();
        async move { silent.ping().await }
    });
    eventually(PATIENCE, "the attempt to connect", || async { silent.usage().in_use == 1 }).await.unwrap();
    let database = Database::open(tenant.spec(), budget.clone()).unwrap();
    assert_eq!(database.update(&Table::unqualified(), &[row(1, 2)]).await.unwrap(), [Outcome::Updated]);
    assert!(!stuck.is_finished());
    assert_eq!(silent.close(Duration::ZERO).await, 1);
    assert!(stuck.await.unwrap().is_err());
}

/// A database whose rows are locked uses its own share of the budget, not the others'.
#[tokio::test]
async fn a_stuck_database_leaves_room_for_its_neighbours() {
    let (stuck, healthy) = (Tenant::new("stuck").await, Tenant::new("healthy").await);
    stuck.seed(1).await;
    healthy.seed(1).await;
    let mut blocker = stuck.server.connect("stuck").await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM balance FOR UPDATE").execute(&mut blocker).await.unwrap();
    let budget = ConnectionBudget::new(3);
    let narrow = Database::open(DatabaseSpec { max_connections: 2, ..stuck.spec() }, budget.clone()).unwrap();
    let writes: Vec<_> = (0..8)
        .map(|n| {
            let database = narrow.clone();
            tokio::spawn(async move { database.update(&Table::unqualified(), &[row(1, 2 + n)]).await })
        })
        .collect();
    eventually(PATIENCE, "two writes that wait for the lock", || async { narrow.usage().in_use == 2 })
        .await
        .unwrap();
    let other = Database::open(healthy.spec(), budget.clone()).unwrap();
    assert_eq!(other.update(&Table::unqualified(), &[row(1, 2)]).await.unwrap(), [Outcome::Updated]);
    assert_eq!(narrow.usage().in_use, 2);
    sqlx::raw_sql("ROLLBACK").execute(&mut blocker).await.unwrap();
    for write in writes {
        write.await.unwrap().unwrap();
    }
    assert_eq!(stuck.stored(1).await, "10 v9");
}

#[tokio::test]
async fn idle_connections_are_closed_and_used_ones_kept() {
    let tenant = Tenant::new("idle").await;
    let fleeting = DatabaseSpec { idle_timeout: Duration::from_millis(1), ..tenant.spec() };
    let lasting = DatabaseSpec { idle_timeout: Duration::from_secs(600), ..tenant.spec() };
    let budget = ConnectionBudget::new(4);
    let fleeting = Database::open(fleeting, budget.clone()).unwrap();
    let lasting = Database::open(lasting, budget.clone()).unwrap();
    assert_eq!((fleeting.usage().open, fleeting.usage().limit), (0, 4), "opened lazily");
    let opened = fleeting.idle_since().unwrap();
    fleeting.ping().await.unwrap();
    lasting.ping().await.unwrap();
    assert!(fleeting.idle_since().unwrap() > opened);
    eventually(PATIENCE, "the end of the idle connection", || async { fleeting.usage().open == 0 })
        .await
        .unwrap();
    eventually(PATIENCE, "its end on the server", || async { tenant.backends().await == 1 }).await.unwrap();
    assert_eq!(lasting.usage().idle, 1);
    drop(lasting);
    eventually(PATIENCE, "the end of the other", || async { tenant.backends().await == 0 }).await.unwrap();
}

/// Closing lets what is under way end, and refuses what is new.
#[tokio::test]
async fn closing_waits_for_what_is_under_way() {
    let tenant = Tenant::new("closing").await;
    tenant.seed(1).await;
    let database = tenant.database();
    let mut blocker = server().await.connect("closing").await.unwrap();
    sqlx::raw_sql("BEGIN; SELECT FROM balance FOR UPDATE").execute(&mut blocker).await.unwrap();
    let running = tokio::spawn({
        let database = database.clone();
        async move { database.update(&Table::unqualified(), &[row(1, 2)]).await }
    });
    eventually(PATIENCE, "the write under way", || async { database.usage().in_use == 1 }).await.unwrap();
    let closing = tokio::spawn({
        let database = database.clone();
        async move { database.close(PATIENCE).await }
    });
    eventually(PATIENCE, "the closing", || async { database.is_closed() }).await.unwrap();
    assert!(database.ping().await.is_err());
    sqlx::raw_sql("ROLLBACK").execute(&mut blocker).await.unwrap();
    assert_eq!(running.await.unwrap().unwrap(), [Outcome::Updated]);
    assert_eq!(closing.await.unwrap(), 0);
    eventually(PATIENCE, "the end on the server", || async { tenant.backends().await == 0 }).await.unwrap();
    assert!(!format!("{database:?}").contains(PASSWORD));
}

#[tokio::test]
async fn the_clock_of_a_server_is_compared_when_a_connection_is_opened() {
    let tenant = Tenant::new("budget_clock").await;
    tenant.seed(1).await;
    let budget = ConnectionBudget::new(2);
    let database = Database::open(tenant.spec(), budget.clone()).unwrap();
    assert_eq!(budget.servers()[0].clock_ahead_ms, None);
    database.update(&Table::unqualified(), &[row(1, 2)]).await.unwrap();
    // One machine, so one clock; what the way there and back took is taken off.
    let ahead = budget.servers()[0].clock_ahead_ms.unwrap();
    assert!(ahead.abs() < 500, "{ahead} ms");
}
