//! The private servers: they start, answer, fail on demand, and leave nothing behind.

use std::io::{BufRead, BufReader, Write};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Duration;

use balance_sync_sandbox::{
    PgBouncer, PgBouncerOptions, PoolMode, PostgresOptions, PostgresServer, RedisOptions, RedisServer,
    eventually, is_alive,
};
use redis::AsyncCommands;
use secrecy::SecretString;
use sqlx::{Connection, PgConnection};

const SOON: Duration = Duration::from_secs(60);

#[tokio::test]
async fn redis_starts_answers_and_leaves_nothing() {
    let password = "s3cret \"/@#%\\";
    let options = RedisOptions { password: Some(password.into()), ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    assert!(!format!("{server:?}").contains("s3cret"));
    let mut connection = server.connect().await.unwrap();
    let _: () = connection.set("a", 1).await.unwrap();
    let open = redis::Client::open(format!("redis://127.0.0.1:{}/0", server.port())).unwrap();
    let mut stranger = open.get_multiplexed_async_connection().await.unwrap();
    assert!(stranger.get::<_, String>("a").await.is_err(), "a client without password was let in");

    let (pid, folder) = (server.pid().unwrap(), server.folder().to_owned());
    assert!(is_alive(pid) && folder.is_dir());
    server.stop().await.unwrap();
    assert!(!is_alive(pid));
    assert!(!folder.exists());
}

#[tokio::test]
async fn redis_reports_what_it_dislikes() {
    let options = RedisOptions { extra: vec!["no-such-setting 1".into()], ..RedisOptions::default() };
    let error = RedisServer::start(options).await.unwrap_err().to_string();
    assert!(error.contains("no-such-setting"), "{error}");
}

#[tokio::test]
async fn redis_comes_back_on_its_port_with_its_data() {
    let options =
        RedisOptions { appendonly: true, extra: vec!["appendfsync always".into()], ..Default::default() };
    let server = RedisServer::start(options).await.unwrap();
    let (port, pid) = (server.port(), server.pid().unwrap());
    let mut connection = server.connect().await.unwrap();
    let _: () = connection.set("kept", "yes").await.unwrap();

    server.kill().unwrap();
    assert!(!is_alive(pid) && server.pid().is_none());
    assert!(server.connect().await.is_err());

    server.start_again().await.unwrap();
    assert_eq!(server.port(), port);
    assert!(server.start_again().await.is_err(), "started twice");
    let mut connection = server.connect().await.unwrap();
    assert_eq!(connection.get::<_, String>("kept").await.unwrap(), "yes");

    server.stop_gracefully().await.unwrap();
    assert!(server.pid().is_none() && server.folder().is_dir());
    server.start_again().await.unwrap();
}

#[tokio::test]
async fn a_frozen_redis_answers_after_it_is_continued() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut connection = server.connect().await.unwrap();
    server.pause().unwrap();
    let answer = tokio::time::timeout(Duration::from_millis(200), connection.set::<_, _, ()>("a", 1)).await;
    assert!(answer.is_err(), "a frozen server answered");
    server.resume().unwrap();
    let _: () = connection.set("a", 2).await.unwrap();
}

#[tokio::test]
async fn a_node_of_a_cluster_meets_others_by_its_port_alone() {
    let options = RedisOptions { cluster: true, ..RedisOptions::default() };
    let nodes =
        [RedisServer::start(options.clone()).await.unwrap(), RedisServer::start(options).await.unwrap()];
    for server in &nodes {
        std::net::TcpStream::connect(("127.0.0.1", server.port() + 10_000)).expect("its bus");
    }
    let mut connection = nodes[0].connect().await.unwrap();
    let mut meet = redis::cmd("CLUSTER");
    meet.arg("MEET").arg("127.0.0.1").arg(nodes[1].port());
    meet.query_async::<()>(&mut connection).await.unwrap();
    eventually(SOON, "two nodes that know each other", async || {
        let mut connection = nodes[1].connect().await.unwrap();
        let info: String = redis::cmd("CLUSTER").arg("INFO").query_async(&mut connection).await.unwrap();
        info.contains("cluster_known_nodes:2")
    })
    .await
    .unwrap();
}

#[tokio::test]
async fn postgres_starts_fails_on_demand_and_leaves_nothing() {
    let server = PostgresServer::start(PostgresOptions::default()).await.unwrap();
    assert!(!format!("{server:?}").contains(&server.admin_url("postgres")));
    server.create_database("kept").await.unwrap();
    server.execute("kept", "CREATE TABLE t (n int); INSERT INTO t VALUES (7)").await.unwrap();

    let wrong = server.url_for("kept", server.superuser(), &SecretString::from("wrong"));
    assert!(PgConnection::connect(&wrong).await.unwrap_err().to_string().contains("password"));

    // Its sessions are frozen too, not only the postmaster.
    let mut session = server.connect("kept").await.unwrap();
    server.pause().unwrap();
    let query = sqlx::query("SELECT 1").execute(&mut session);
    assert!(
        tokio::time::timeout(Duration::from_millis(200), query).await.is_err(),
        "a frozen server answered"
    );
    server.resume().unwrap();

    let mut last_port = server.port();
    for ending in ["kill", "immediate", "fast"] {
        let mut session = server.connect("kept").await.unwrap();
        let pid = server.pid().unwrap();
        match ending {
            "kill" => server.kill().unwrap(),
            "immediate" => server.stop_immediate().await.unwrap(),
            _ => server.stop_gracefully().await.unwrap(),
        }
        assert!(!is_alive(pid), "{ending}");
        assert!(sqlx::query("SELECT 1").execute(&mut session).await.is_err(), "{ending}");
        server.start_again().await.unwrap();
        assert_eq!(std::mem::replace(&mut last_port, server.port()), server.port());
        let pool = server.pool("kept");
        let n: i32 = sqlx::query_scalar("SELECT n FROM t").fetch_one(&pool).await.unwrap();
        assert_eq!(n, 7, "{ending}");
        pool.close().await;
    }

    let (pid, folder) = (server.pid().unwrap(), server.folder().to_owned());
    server.stop().await.unwrap();
    assert!(!is_alive(pid) && !folder.exists());
}

#[tokio::test]
async fn a_pooler_for_all_roles_knows_those_made_later_and_their_new_passwords() {
    let server = PostgresServer::start(PostgresOptions::default()).await.unwrap();
    for mode in [PoolMode::Session, PoolMode::Transaction] {
        let options = PgBouncerOptions::new(mode, 2);
        let pooler = PgBouncer::for_all_roles(&server, &options).await.unwrap();
        let (name, first, second) = (format!("later_{mode:?}").to_lowercase(), "first", "second");
        let connect = async |database: &str, password: &str| {
            let options = server.options_for(database, &name, &SecretString::from(password));
            let options = options.port(pooler.port()).extra_float_digits(None);
            sqlx::raw_sql("SELECT 1").execute(&mut PgConnection::connect_with(&options).await?).await
        };
        assert!(connect("postgres", first).await.is_err(), "{mode:?}: there is no such role yet");
        server.create_tenant_database(&name, &name, &SecretString::from(first)).await.unwrap();
        connect(&name, first).await.unwrap();
        server.set_password(&name, &SecretString::from(second)).await.unwrap();
        connect(&name, second).await.unwrap();
        assert!(connect(&name, first).await.is_err(), "{mode:?}: the old password was let in");
    }
}

#[tokio::test]
async fn a_tenants_role_gets_nowhere_else() {
    let server = PostgresServer::start(PostgresOptions::default()).await.unwrap();
    let password = SecretString::from("it's \"secret\"");
    server.create_tenant_database("one", "role_one", &password).await.unwrap();
    server.create_tenant_database("two", "role_two", &password).await.unwrap();
    server.create_tenant_schema("shared", "s1", "role_s1", &password).await.unwrap();
    server.create_tenant_schema("shared", "s2", "role_s2", &password).await.unwrap();

    let connect = |database: &'static str, role: &'static str| {
        let url = server.options_for(database, role, &password);
        async move { PgConnection::connect_with(&url).await }
    };
    let select_update = |table: &str| {
        format!(
            "SELECT id, organization_id, ledger_id, version, deleted_at FROM {table}; UPDATE {table} SET version = 1 \
             WHERE id IS NOT NULL"
        )
    };
    for (database, role, table) in [
        ("one", "role_one", "balance"),
        ("shared", "role_s1", "s1.balance"),
        ("shared", "role_s2", "s2.balance"),
    ] {
        let mut own = connect(database, role).await.unwrap();
        sqlx::raw_sql(sqlx::AssertSqlSafe(select_update(table))).execute(&mut own).await.unwrap();
        for forbidden in [
            format!("SELECT created_at FROM {table}"),
            format!("UPDATE {table} SET alias = ''"),
            format!("INSERT INTO {table} (id) VALUES (gen_random_uuid())"),
            format!("DELETE FROM {table}"),
            format!("ALTER TABLE {table} ADD x int"),
            "CREATE TABLE x ()".into(),
        ] {
            let refused = sqlx::raw_sql(sqlx::AssertSqlSafe(forbidden.clone())).execute(&mut own).await;
            assert!(refused.is_err(), "{role} may {forbidden}");
        }
    }
    for (database, role) in [
        ("two", "role_one"),
        ("one", "role_two"),
        ("shared", "role_one"),
        ("one", "role_s1"),
        ("postgres", "role_one"),
        ("template1", "role_one"),
        ("balance_sync_template", "role_one"),
    ] {
        assert!(connect(database, role).await.is_err(), "{role} may connect to {database}");
    }
    let mut own = connect("shared", "role_s1").await.unwrap();
    assert!(sqlx::query("SELECT * FROM s2.balance").execute(&mut own).await.is_err());

    // The table is the protocol's: three indexes beside the primary key, and its checks hold.
    let pool = server.pool("one");
    let indexes: i64 = sqlx::query_scalar("SELECT count(*) FROM pg_indexes WHERE tablename = 'balance'")
        .fetch_one(&pool)
        .await
        .unwrap();
    assert_eq!(indexes, 4);
    for (column, value) in [("direction", "'sideways'"), ("overdraft_used", "-1")] {
        let sql = format!("INSERT INTO balance (id, {column}) VALUES (gen_random_uuid(), {value})");
        assert!(server.execute("one", &sql).await.is_err(), "{column} took {value}");
    }

    let renewed = SecretString::from("renewed");
    server.set_password("role_one", &renewed).await.unwrap();
    assert!(connect("one", "role_one").await.is_err(), "the old password is still good");
    assert!(PgConnection::connect_with(&server.options_for("one", "role_one", &renewed)).await.is_ok());
    assert!(server.end_sessions(Some("role_s1")).await.unwrap() >= 1);
}

/// What this variable sets for the holder in the test below: `running` or `frozen`.
const HOLD: &str = "BALANCE_SYNC_TEST_HOLD";

/// Not a test but a process for the next one: holds two servers until it is killed.
#[tokio::test]
#[ignore = "the next test runs it, in a process of its own"]
async fn holder() {
    let Ok(how) = std::env::var(HOLD) else { return };
    let redis = RedisServer::start(RedisOptions::default()).await.unwrap();
    let postgres = PostgresServer::start(PostgresOptions::default()).await.unwrap();
    if how == "frozen" {
        redis.pause().unwrap();
        postgres.pause().unwrap();
    }
    let mut out = std::io::stdout();
    for (pid, folder) in [(redis.pid(), redis.folder()), (postgres.pid(), postgres.folder())] {
        writeln!(out, "\nheld {} {}", pid.unwrap(), folder.display()).unwrap();
    }
    out.flush().unwrap();
    std::future::pending().await
}

#[tokio::test]
async fn nothing_is_left_when_the_holder_is_killed() {
    for how in ["running", "frozen"] {
        let mut holder = Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "servers::holder"])
            .env(HOLD, how)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(holder.stdout.take().unwrap()).lines();
        let held: Vec<(u32, PathBuf)> = lines
            .filter_map(|line| {
                let line = line.unwrap();
                let (pid, folder) = line.strip_prefix("held ")?.split_once(' ')?;
                Some((pid.parse().unwrap(), PathBuf::from(folder)))
            })
            .take(2)
            .collect();
        assert_eq!(held.len(), 2, "the holder did not get ready");
        assert!(held.iter().all(|(pid, folder)| is_alive(*pid) && folder.is_dir()));
        // SIGKILL: no code of ours runs after it.
        holder.kill().unwrap();
        holder.wait().unwrap();
        eventually(SOON, "the end of all processes and folders", || async {
            !held.iter().any(|(pid, folder)| is_alive(*pid) || folder.exists())
        })
        .await
        .unwrap();
    }
}
