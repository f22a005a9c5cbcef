//! The connection under faults: each ends in a clear class, and in recovery.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use balance_sync_sandbox::{RedisOptions, RedisServer, eventually, free_port};
use balance_sync_schedule::{ErrorClass, Link, LinkSettings, LinkStats, Schedule, ScheduleOptions, Secret};
use secrecy::SecretString;

use crate::{SOON, Tenant, all, ask, common::space_of, tell};

const PASSWORD: &str = "s3cret:/p@ss#%word";

fn schedule_on(settings: &LinkSettings) -> Schedule {
    Schedule::new(Link::new(settings).unwrap(), space_of("t"), Arc::new(ScheduleOptions::default()))
}

/// As [`schedule_on`], with what is counted of its connection.
fn counted_on(settings: &LinkSettings) -> (Schedule, Arc<LinkStats>) {
    let stats = Arc::<LinkStats>::default();
    let link = Link::counted(settings, Arc::clone(&stats)).unwrap();
    (Schedule::new(link, space_of("t"), Arc::new(ScheduleOptions::default())), stats)
}

/// Waits until the schedule works again.
async fn recovers(schedule: &Schedule) {
    eventually(SOON, "recovery", || async { schedule.claim(1).await.map(drop) }).await.unwrap();
}

#[tokio::test]
async fn scripts_missing_on_the_server_are_loaded_again() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let (schedule, stats) = counted_on(&LinkSettings::for_url(&server.url()));
    for _ in 0..2 {
        let (member, _) = tenant.mutate("a", "{}").await;
        let claim = schedule.claim(1).await.unwrap();
        tell!(tenant, "SCRIPT", "FLUSH");
        assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 1);
        let claim = schedule.claim(1).await.unwrap();
        tell!(tenant, "SCRIPT", "FLUSH");
        assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 1);
        assert_eq!(tenant.score(&member).await, None);
    }
    tell!(tenant, "SCRIPT", "FLUSH");
    let (page, since) = tokio::join!(schedule.protect_page(None), schedule.protect_since(Some(0.0)));
    assert_eq!((page.unwrap().seen, since.unwrap().1), (0, 0));
    assert_eq!((stats.errors_total(), stats.connects()), (0, 1), "it is no failure");
}

#[tokio::test]
async fn a_link_reconnects_to_a_restarted_server() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let (schedule, stats) = counted_on(&LinkSettings::for_url(&server.url()));
    schedule.claim(1).await.unwrap();
    server.kill().unwrap();
    for _ in 0..3 {
        let error = schedule.claim(1).await.unwrap_err();
        assert_eq!((error.class, error.is_transient()), (ErrorClass::Unavailable, true), "{error}");
    }
    assert_eq!((stats.errors(ErrorClass::Unavailable), stats.connects()), (3, 1));
    server.start_again().await.unwrap();
    recovers(&schedule).await;
    assert_eq!(stats.connects(), 2);
    assert_eq!(stats.errors_total(), stats.errors(ErrorClass::Unavailable));
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    tenant.mutate("a", "{}").await;
    assert_eq!(schedule.claim(1).await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn many_callers_of_a_dead_server_fail_fast_and_all_recover() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let schedule = schedule_on(&LinkSettings::for_url(&server.url()));
    schedule.claim(1).await.unwrap();
    let before = clients(&server).await;
    server.kill().unwrap();
    let callers = |wanted: bool| {
        let calls = (0..200).map(|_| {
            tokio::spawn({
                let schedule = schedule.clone();
                async move { schedule.claim(1).await.is_ok() }
            })
        });
        let calls: Vec<_> = calls.collect();
        async move {
            for call in calls {
                assert_eq!(call.await.unwrap(), wanted);
            }
        }
    };
    let begun = Instant::now();
    callers(false).await;
    // One failed connection answers all of them; one each, in turn, would take minutes on a busy machine.
    assert!(begun.elapsed() < Duration::from_secs(20), "200 callers took {:?}", begun.elapsed());
    server.start_again().await.unwrap();
    recovers(&schedule).await;
    callers(true).await;
    assert_eq!(clients(&server).await, before, "still one connection for all of them");
}

/// Connections of others than this question's own.
async fn clients(server: &RedisServer) -> usize {
    let mut connection = server.connect().await.unwrap();
    let list: String = redis::cmd("CLIENT").arg("LIST").query_async(&mut connection).await.unwrap();
    list.lines()
        .filter(|line| !line.contains("cmd=client"))
        .filter(|line| line.contains("cmd=evalsha"))
        .count()
}

#[tokio::test]
async fn a_frozen_server_is_unavailable_and_recovers() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut settings = LinkSettings::for_url(&server.url());
    settings.response_timeout = Duration::from_millis(200);
    settings.connect_timeout = Duration::from_millis(300);
    let schedule = schedule_on(&settings);
    schedule.claim(1).await.unwrap();
    server.pause().unwrap();
    // First without an answer, then without a connection.
    for _ in 0..3 {
        let begun = Instant::now();
        let error = schedule.claim(1).await.unwrap_err();
        assert_eq!((error.class, error.is_transient()), (ErrorClass::Unavailable, true), "{error}");
        assert!(begun.elapsed() < Duration::from_secs(20), "it took {:?}", begun.elapsed());
    }
    server.resume().unwrap();
    recovers(&schedule).await;
}

#[tokio::test]
async fn a_closed_port_is_unavailable() {
    let url = format!("redis://127.0.0.1:{}/0", free_port().unwrap());
    let error = schedule_on(&LinkSettings::for_url(&url)).claim(1).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Unavailable, "{error}");
    assert_eq!(error.operation, "claim");
}

#[tokio::test]
async fn passwords_authenticate_and_are_never_printed() {
    let password = SecretString::from(PASSWORD.to_owned());
    let options = RedisOptions { password: Some(password.clone()), ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    let bare = format!("redis://127.0.0.1:{}/0", server.port());

    schedule_on(&LinkSettings::for_url(&server.url())).claim(1).await.unwrap();
    let mut right = LinkSettings::for_url(&bare);
    right.password = Some(Secret::Text(password));
    right.db = Some(3);
    schedule_on(&right).claim(1).await.unwrap();

    let mut wrong = right.clone();
    wrong.password = Some(Secret::Text(SecretString::from("wr0ng-one".to_owned())));
    for settings in [wrong, LinkSettings::for_url(&bare)] {
        let schedule = schedule_on(&settings);
        for _ in 0..2 {
            let error = schedule.claim(1).await.unwrap_err();
            assert_eq!((error.class, error.is_transient()), (ErrorClass::Credentials, false), "{error}");
            hides_secrets(&format!("{error} {error:?} {settings:?} {schedule:?}"));
        }
    }
    // The setting goes before the one in the URL.
    let mut both = LinkSettings::for_url(&format!("redis://:wr0ng-one@127.0.0.1:{}/0", server.port()));
    assert_eq!(schedule_on(&both).claim(1).await.unwrap_err().class, ErrorClass::Credentials);
    both.password = right.password.clone();
    schedule_on(&both).claim(1).await.unwrap();

    server.kill().unwrap();
    let error = schedule_on(&right).claim(1).await.unwrap_err();
    hides_secrets(&format!("{error} {error:?} {right:?}"));
}

#[tokio::test]
async fn a_password_changed_while_connected_is_reported_and_recovers() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    tenant.lease_mode().claim(1).await.unwrap();
    tell!(tenant, "CONFIG", "SET", "requirepass", PASSWORD);
    tell!(tenant, "CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes");
    let refused = || async {
        let error = tenant.lease_mode().claim(1).await.expect_err("a link without password");
        (error.class == ErrorClass::Credentials).then_some(())
    };
    eventually(SOON, "the refusal", refused).await.unwrap();
    tell!(tenant, "CONFIG", "SET", "requirepass", "");
    recovers(&tenant.lease_mode()).await;
}

fn hides_secrets(text: &str) {
    for secret in [PASSWORD, "s3cret", "wr0ng-one"] {
        assert!(!text.contains(secret), "{secret} is shown in: {text}");
    }
}

#[test]
fn invalid_urls_are_refused_without_printing_them() {
    let urls = [
        "redis://:s3cret@127.0.0.1:port/0",
        "redis://:s3cret@127.0.0.1:99999/0",
        "redis://:s3cret@127.0.0.1/no-db",
        "http://:s3cret@127.0.0.1",
        "s3cret",
        "",
        "redis://:s3cret@",
    ];
    for url in urls {
        let settings = LinkSettings::for_url(url);
        if let Err(error) = Link::new(&settings) {
            assert!(!error.is_transient(), "{url}: {error}");
            hides_secrets(&format!("{error} {error:?} {settings:?}"));
        } else {
            panic!("{url:?} was taken");
        }
    }
}

#[tokio::test]
async fn a_server_out_of_memory_is_reported_and_settling_still_works() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let schedule = tenant.lease_mode();
    tenant.mutate("a", "{}").await;
    tenant.mutate("b", "{}").await;
    let claim = schedule.claim(1).await.unwrap();
    tell!(tenant, "SET", "filler", "x".repeat(4_000_000));
    tell!(tenant, "CONFIG", "SET", "maxmemory", "1mb");
    let error = schedule.claim(1).await.unwrap_err();
    assert_eq!((error.class, error.is_transient()), (ErrorClass::OutOfMemory, true), "{error}");
    assert_eq!(
        schedule.settle(&all(&claim.entries)).await.unwrap().removed,
        1,
        "what only removes needs no memory"
    );
    tell!(tenant, "CONFIG", "SET", "maxmemory", 0);
    assert_eq!(schedule.claim(1).await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_replica_is_read_only_until_it_is_promoted() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let schedule = tenant.lease_mode();
    tenant.mutate("a", "{}").await;
    schedule.claim(1).await.unwrap();
    tenant.mutate("a", "{}").await;
    let closed = free_port().unwrap();
    tell!(tenant, "REPLICAOF", "127.0.0.1", closed);
    let error = schedule.claim(1).await.unwrap_err();
    assert_eq!((error.class, error.is_transient()), (ErrorClass::ReadOnly, true), "{error}");
    // A replica that won't even serve reads while it has no master.
    tell!(tenant, "CONFIG", "SET", "replica-serve-stale-data", "no");
    let error = schedule.claim(1).await.unwrap_err();
    assert_eq!((error.class, error.is_transient()), (ErrorClass::ReadOnly, true), "{error}");
    tell!(tenant, "REPLICAOF", "NO", "ONE");
    assert_eq!(schedule.claim(1).await.unwrap().entries.len(), 1);
}

#[tokio::test]
async fn a_server_blocked_by_a_script_is_busy() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let schedule = tenant.lease_mode();
    schedule.claim(1).await.unwrap();
    tell!(tenant, "CONFIG", "SET", "lua-time-limit", 20);
    let mut holder = server.connect().await.unwrap();
    let holding = tokio::spawn(async move {
        redis::cmd("EVAL").arg("while true do end").arg(0).query_async::<()>(&mut holder).await
    });
    let busy = || async {
        // A call made before the limit has passed is held up until the script ends; so ask while it lasts.
        match tokio::time::timeout(Duration::from_secs(5), schedule.claim(1)).await {
            Ok(Err(error)) => (error.class == ErrorClass::Busy).then_some(error),
            _ => None,
        }
    };
    let error = eventually(SOON, "the refusal", busy).await.unwrap();
    assert!(error.is_transient());
    tell!(tenant, "SCRIPT", "KILL");
    assert!(holding.await.unwrap().is_err());
    recovers(&schedule).await;
}

#[tokio::test]
async fn missing_rights_are_reported() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    tell!(tenant, "ACL", "SETUSER", "weak", "on", ">s3cret", "~other:*", "+@all");
    let url = format!("redis://weak:s3cret@127.0.0.1:{}/0", server.port());
    let error = schedule_on(&LinkSettings::for_url(&url)).claim(1).await.unwrap_err();
    assert_eq!(error.class, ErrorClass::Permission, "{error}");
    hides_secrets(&format!("{error} {error:?}"));
}

#[tokio::test]
async fn an_evicting_policy_is_reported() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let facts = tenant.link.server_facts().await.unwrap();
    assert_eq!((facts.role.as_str(), facts.evicting_policy(), facts.max_bytes), ("master", None, 0));
    assert!(facts.used_bytes > 100_000 && facts.evicted_keys == 0, "{facts:?}");
    tell!(tenant, "CONFIG", "SET", "maxmemory", "100mb");
    for policy in ["allkeys-lru", "volatile-ttl"] {
        tell!(tenant, "CONFIG", "SET", "maxmemory-policy", policy);
        let facts = tenant.link.server_facts().await.unwrap();
        assert_eq!((facts.evicting_policy(), facts.max_bytes), (Some(policy), 100 << 20));
    }
}

#[tokio::test]
async fn whatever_a_server_answers_a_link_opens_one_connection_per_second_at_most() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    tell!(tenant, "ACL", "SETUSER", "narrow", "on", ">pw", "~other:*", "&*", "+@all");
    let url = |user: &str| format!("redis://{user}@127.0.0.1:{}/0", server.port());
    let closed = free_port().unwrap();
    // A claim that finds nothing writes nothing, and is not refused.
    tenant.mutate("a", "{}").await;
    let counts_replicas = server.version().await.unwrap() >= (7, 0);
    for (what, user, begin, end) in [
        ("no replicas", "", Some(["min-replicas-to-write", "1"]), Some(["min-replicas-to-write", "0"])),
        ("failed snapshots", "", None, Some(["stop-writes-on-bgsave-error", "no"])),
        ("narrow rights", "narrow:pw", None, None),
        ("a wrong password", "narrow:wr0ng-one", None, None),
        ("a replica", "", None, None),
    ] {
        // Redis 6.2 does not apply it to commands in scripts.
        if what == "no replicas" && !counts_replicas {
            continue;
        }
        let settings = LinkSettings::for_url(&url(user).replace("//@", "//"));
        if let Some(setting) = begin {
            tell!(tenant, "CONFIG", "SET", setting[0], setting[1]);
        }
        if what == "failed snapshots" {
            tenant.fail_a_snapshot(&server).await;
        }
        if what == "a replica" {
            tell!(tenant, "REPLICAOF", "127.0.0.1", closed);
        }
        let (schedule, stats) = counted_on(&settings);
        let before = received(&tenant).await;
        let begun = Instant::now();
        let mut failures = 0;
        while begun.elapsed() < Duration::from_millis(2500) {
            failures += u32::from(schedule.claim(1).await.is_err());
            tokio::task::yield_now().await;
        }
        // One at once, and one for each second that has passed.
        let allowed = 1 + begun.elapsed().as_secs();
        assert!(failures > 10, "{what}: {failures} failures");
        assert!(stats.connects() <= allowed, "{what}: {} in {:?}", stats.connects(), begun.elapsed());
        let opened = received(&tenant).await - before;
        assert!(opened <= allowed, "{what}: the server counts {opened} in {:?}", begun.elapsed());
        if let Some(setting) = end {
            tell!(tenant, "CONFIG", "SET", setting[0], setting[1]);
        }
        tell!(tenant, "REPLICAOF", "NO", "ONE");
    }
}

/// Connections that the server has accepted so far.
async fn received(tenant: &Tenant) -> u64 {
    let info: redis::InfoDict = ask!(tenant, "INFO", "stats");
    info.get("total_connections_received").unwrap()
}
