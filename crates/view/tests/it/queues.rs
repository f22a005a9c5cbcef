//! The ledger's own queues on a real Redis, under the rights of a worker.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use balance_sync_domain::{KeySpace, LedgerQueue, TenantId};
use balance_sync_fleet::{
    status::{FleetStatus, QueueReport, TenantStatus},
    tasks::{Progress, TaskName},
};
use balance_sync_sandbox::{RedisOptions, RedisServer, WORKER_USER, eventually};
use balance_sync_schedule::{Link, LinkSettings};
use balance_sync_tenants::{KeyForm, Tenant};
use balance_sync_view::queues::{self, QueueOptions};
use redis::aio::MultiplexedConnection;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(60);
/// A tenant's id as the tenant service lists it, and as ledgers from 4.1 on write it.
const LISTED: &str = "0198c2a4-6f10-7c3e-9a51-2f6d0d8e4b11";
const SIMPLE: &str = "0198c2a46f107c3e9a512f6d0d8e4b11";

struct Lab {
    redis: MultiplexedConnection,
    link: Link,
    fleet: Arc<FleetStatus>,
    stop: CancellationToken,
    _server: RedisServer,
}

impl Lab {
    async fn new() -> Self {
        let options = RedisOptions { worker_password: Some("pw".into()), ..RedisOptions::default() };
        let server = RedisServer::start(options).await.unwrap();
        let settings = LinkSettings::for_url(&server.worker_url_on(server.port()));
        Self {
            redis: server.connect().await.unwrap(),
            link: Link::new(&settings).unwrap(),
            fleet: Arc::default(),
            stop: CancellationToken::new(),
            _server: server,
        }
    }

    /// A tenant that this worker serves first.
    fn serves(&self, id: &str) -> Arc<TenantStatus> {
        let status = self.fleet.tenant(&Tenant::Id(TenantId::parse(id).unwrap()));
        // Another task looks into Postgres.
        status.show_ledger_quarantine(Some(QueueReport::empty(LedgerQueue::Quarantine)));
        status
    }

    fn watch(&self, records_per_second: u32) {
        self.watch_every(Duration::from_millis(200), records_per_second);
    }

    fn watch_every(&self, interval: Duration, records_per_second: u32) {
        let options = QueueOptions { interval, records_per_second, quarantine_interval: interval };
        let progress = Progress::unobserved(TaskName::QueueWatch);
        let (link, fleet) = (self.link.clone(), Arc::clone(&self.fleet));
        drop(actix_rt::spawn(queues::run(link, fleet, KeyForm::Auto, options, self.stop.clone(), progress)));
    }

    async fn put(&self, key: &str, field: &str, value: &str) {
        redis::cmd("HSET").arg(key).arg(field).arg(value).exec_async(&mut self.redis.clone()).await.unwrap();
    }

    async fn delete(&self, key: &str, field: &str) {
        redis::cmd("HDEL").arg(key).arg(field).exec_async(&mut self.redis.clone()).await.unwrap();
    }

    async fn acl(&self, rules: &[&str]) {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("SETUSER").arg(WORKER_USER).arg(rules).exec_async(&mut self.redis.clone()).await.unwrap();
    }
}

fn keys(id: &str) -> KeySpace {
    KeySpace::tenant(&TenantId::parse(id).unwrap())
}

fn backup(minute: u32) -> String {
    format!(
        r#"{{"header_id":"h","ttl":"2026-11-27T03:{minute:02}:00.5Z","validate":{{"ttl":"2016-01-01T00:00:00Z"}}}}"#
    )
}

/// 2026-11-27 at 3 o'clock, half a second after that minute, in milliseconds.
fn at(minute: i64) -> Option<i64> {
    Some(1_795_748_400_500 + minute * 60_000)
}

/// Waits until a tenant's queues are as wanted.
async fn shows(
    status: &TenantStatus,
    what: &str,
    wanted: impl Fn(&[QueueReport]) -> bool,
) -> Vec<QueueReport> {
    eventually(SOON, what, || async {
        let queues = status.queues();
        if queues.as_deref().is_some_and(&wanted) { Ok(()) } else { Err(format!("{queues:?}")) }
    })
    .await
    .unwrap();
    status.queues().unwrap()
}

fn scanned(queues: &[QueueReport]) -> bool {
    !queues.is_empty() && queues.iter().all(|queue| queue.oldest_at_ms.is_some())
}

#[actix_rt::test]
async fn depth_oldest_record_and_attempts_of_each_tenant_over_both_key_forms() {
    let lab = Lab::new().await;
    let (listed, simple, acme) = (keys(LISTED), keys(SIMPLE), keys("acme"));
    for (space, minute) in [(&listed, 30), (&listed, 31), (&simple, 20), (&simple, 40)] {
        lab.put(&space.backup_queue(), &format!("t{minute}"), &backup(minute)).await;
    }
    lab.put(&listed.backup_attempts(), "t30", "2").await;
    lab.put(&simple.backup_attempts(), "t20", "5").await;
    let applied = at(10).unwrap() * 1_000;
    let recover = format!(r#"{{"record":{{"result":{{"appliedAtUnixMicro":{applied},"final":[]}}}}}}"#);
    lab.put(&simple.recovery(), "t1", &recover).await;
    let mut redis = lab.redis.clone();
    let cleanup = simple.recovery_cleanup();
    redis::cmd("ZADD").arg(cleanup).arg(at(5)).arg("t1").exec_async(&mut redis).await.unwrap();
    // Another tenant's are not counted, nor those of a ledger without tenants.
    lab.put(&acme.backup_queue(), "t9", &backup(9)).await;
    lab.put(&KeySpace::single().backup_queue(), "t0", &backup(0)).await;

    let (both, empty, other) = (lab.serves(LISTED), lab.serves("empty"), lab.serves("acme"));
    other.standby.store(true, Relaxed);
    lab.watch(2_000);
    let queues = shows(&both, "all of it scanned", |queues| {
        queues.len() == 3 && scanned(queues) && queues[0].most_attempts.is_some()
    })
    .await;
    let [backup_queue, recovery, cleanup] = &queues[..] else { panic!("{queues:?}") };
    assert_eq!(
        (backup_queue.queue.as_str(), backup_queue.depth, backup_queue.oldest_at_ms),
        ("backup", Some(4), at(20))
    );
    assert_eq!((backup_queue.retried, backup_queue.most_attempts), (Some(2), Some(5)));
    assert_eq!(
        (recovery.queue.as_str(), recovery.depth, recovery.oldest_at_ms),
        ("recovery", Some(1), at(10))
    );
    assert_eq!(
        (cleanup.queue.as_str(), cleanup.depth, cleanup.oldest_at_ms),
        ("recovery_cleanup", Some(1), at(5))
    );
    shows(&empty, "nothing", <[QueueReport]>::is_empty).await;
    assert_eq!(other.queues(), None, "another worker looks");

    // The oldest is followed, and the next one takes its place.
    lab.delete(&simple.backup_queue(), "t20").await;
    shows(&both, "the next one", |queues| queues[0].oldest_at_ms == at(30) && queues[0].depth == Some(3))
        .await;
    // Another worker takes over, and gives the tenant back.
    both.standby.store(true, Relaxed);
    eventually(SOON, "nothing is known here", || async {
        both.queues().map_or(Ok(()), |known| Err(format!("{known:?}")))
    })
    .await
    .unwrap();
    both.standby.store(false, Relaxed);
    shows(&both, "it is known again", |queues| queues[0].oldest_at_ms == at(30)).await;
    lab.stop.cancel();
}

#[actix_rt::test]
async fn garbage_and_keys_of_another_type_are_shown_and_stop_nothing() {
    let lab = Lab::new().await;
    let (acme, globex) = (keys("acme"), keys("globex"));
    for (field, value) in [
        ("good", backup(30).as_str()),
        ("no JSON", "\u{1b}[31mrm -rf"),
        ("no time", "{}"),
        ("never set", r#"{"ttl":"0001-01-01T00:00:00Z"}"#),
        ("empty", ""),
        ("array", "[1]"),
        ("large", &"x".repeat((1 << 20) + 1)),
    ] {
        lab.put(&acme.backup_queue(), field, value).await;
    }
    lab.put(&acme.backup_attempts(), "good", "3").await;
    lab.put(&acme.backup_attempts(), "bad", "many").await;
    let mut redis = lab.redis.clone();
    for key in [globex.backup_queue(), globex.recovery_cleanup()] {
        redis::cmd("SET").arg(key).arg("x").exec_async(&mut redis).await.unwrap();
    }
    lab.put(&globex.recovery(), "t", "{}").await;
    let (first, second) = (lab.serves("acme"), lab.serves("globex"));
    lab.watch(2_000);
    let queues =
        shows(&first, "scanned", |queues| scanned(queues) && queues[0].most_attempts.is_some()).await;
    assert_eq!((queues[0].depth, queues[0].oldest_at_ms), (Some(7), at(30)));
    // no JSON, empty, array, too large; and an attempt that is no number.
    assert_eq!((queues[0].undated, queues[0].unreadable, queues[0].most_attempts), (2, 5, Some(3)));
    let queues =
        shows(&second, "all three", |queues| queues.len() == 3 && queues[1].as_of_ms.is_some()).await;
    for (at, depth) in [(0, None), (1, Some(1)), (2, None)] {
        assert_eq!(queues[at].depth, depth, "{queues:?}");
        assert_eq!(queues[at].oldest_at_ms, None);
    }
    assert_eq!(queues[0].error.as_deref(), Some("its key is of another type"));
    assert_eq!(queues[1].undated, 1);
    lab.stop.cancel();
}

#[actix_rt::test]
async fn a_missing_right_is_named_and_what_may_be_read_is_read() {
    let lab = Lab::new().await;
    let acme = keys("acme");
    lab.put(&acme.backup_queue(), "t", &backup(30)).await;
    lab.put(&acme.recovery(), "t", "{}").await;
    let status = lab.serves("acme");
    lab.acl(&["resetkeys", "~tenant:*:engine:{transactions}:*"]).await;
    lab.watch(2_000);
    let missing = "missing: %R~tenant:acme:backup_queue:{transactions} (before Redis 7: ~ instead of %R~)";
    let queues = shows(&status, "the missing right", |queues| {
        queues.len() == 2 && queues[0].error.as_deref() == Some(missing) && queues[1].as_of_ms.is_some()
    })
    .await;
    assert_eq!((queues[0].depth, queues[1].depth), (None, Some(1)), "not known is not nothing");
    // A command that only the scan needs.
    lab.acl(&["~tenant:*:backup_queue:{transactions}*", "-hscan"]).await;
    let queues = shows(&status, "the missing command", |queues| {
        queues[0].depth == Some(1) && queues[0].error.as_deref() == Some("missing: +hscan")
    })
    .await;
    assert_eq!(queues[0].oldest_at_ms, None);
    lab.acl(&["+hscan"]).await;
    shows(&status, "all of it", |queues| queues[0].oldest_at_ms == at(30) && queues[0].error.is_none()).await;
    lab.stop.cancel();
}

/// By counts, not by time: whatever the machine does, no more is read than the budget of the time that has passed.
#[actix_rt::test]
async fn a_scan_keeps_within_its_budget_and_says_how_far_it_is() {
    const RECORDS: usize = 20_000;
    const RATE: u32 = 400;
    let lab = Lab::new().await;
    let key = keys("acme").backup_queue();
    let mut redis = lab.redis.clone();
    for part in 0..RECORDS / 1_000 {
        let mut cmd = redis::cmd("HSET");
        cmd.arg(&key);
        for n in 0..1_000 {
            cmd.arg(format!("t{part}-{n}")).arg(backup(30));
        }
        cmd.exec_async(&mut redis).await.unwrap();
    }
    let (status, read) = (lab.serves("acme"), || lab.fleet.queue_records.load(Relaxed));
    // Two workers share the budget.
    lab.fleet.workers.store(2, Relaxed);
    redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut redis).await.unwrap();
    let begun = Instant::now();
    lab.watch(RATE);
    let queues = shows(&status, "a part of the scan", |queues| {
        queues.first().is_some_and(|queue| queue.looked_at > 300)
    })
    .await;
    assert_eq!(
        (queues[0].depth, queues[0].oldest_at_ms, queues[0].as_of_ms),
        (Some(RECORDS as u64), None, None)
    );
    assert_eq!(queues[0].seen_at_ms, at(30), "the oldest one so far");
    let (read, elapsed) = (read(), begun.elapsed().as_secs_f64());
    // What was saved up at the beginning, and a page that brought more than was asked for.
    let most = f64::from(RATE) / 2.0 * (elapsed + 1.0) + 200.0;
    assert!(read as f64 <= most, "{read} records in {elapsed:.1} s, the budget is {most:.0}");
    // Records are what the commands are spent on: so many per page, and the looks at the depth.
    let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.unwrap();
    let calls = |name: &str| -> u64 {
        let line = info.lines().find_map(|line| line.strip_prefix(&format!("cmdstat_{name}:calls=")));
        line.map_or(0, |line| line.split(',').next().unwrap().parse().unwrap())
    };
    let looks = elapsed / 0.2 + 2.0;
    assert!(calls("hlen") as f64 <= 4.0 * looks, "{info}");
    assert!(calls("hscan") <= read / 10 + 2, "{info}");
    lab.stop.cancel();
}

/// Not part of the suite: what looking costs Redis with a million records, as a share of one core.
#[actix_rt::test]
#[ignore = "a measurement; prints shares of a core"]
async fn the_cost_for_redis_with_a_million_records() {
    const RECORDS: usize = 1_000_000;
    const LASTS: Duration = Duration::from_secs(60);
    let lab = Lab::new().await;
    let key = keys("acme").backup_queue();
    let mut redis = lab.redis.clone();
    let record = format!(r#"{{"ttl":"2026-11-27T03:30:00Z","x":"{}"}}"#, "x".repeat(700));
    for part in 0..RECORDS / 1_000 {
        let mut cmd = redis::cmd("HSET");
        cmd.arg(&key);
        for n in 0..1_000 {
            cmd.arg(format!("t{part}-{n}")).arg(&record);
        }
        cmd.exec_async(&mut redis).await.unwrap();
    }
    let processor = async |redis: &mut MultiplexedConnection| -> f64 {
        let info: redis::InfoDict = redis::cmd("INFO").arg("cpu").query_async(redis).await.unwrap();
        ["used_cpu_user_main_thread", "used_cpu_sys_main_thread"]
            .iter()
            .map(|name| info.get::<f64>(name).unwrap_or_default())
            .sum()
    };
    for (name, watched) in [("idle", false), ("watched", true)] {
        let status = lab.serves("acme");
        if watched {
            lab.watch_every(Duration::from_secs(15), 1_000);
        }
        redis::cmd("CONFIG").arg("RESETSTAT").exec_async(&mut redis).await.unwrap();
        let (begun, before) = (Instant::now(), processor(&mut redis).await);
        let read_before = lab.fleet.queue_records.load(Relaxed);
        tokio::time::sleep(LASTS).await;
        let (elapsed, after) = (begun.elapsed().as_secs_f64(), processor(&mut redis).await);
        let info: String = redis::cmd("INFO").arg("commandstats").query_async(&mut redis).await.unwrap();
        let ours =
            ["exists", "hlen", "zcard", "zrange", "hscan", "hstrlen", "hmget", "hrandfield", "hexists"];
        let mut micros = 0.0;
        for name in ours {
            let line = info.lines().find(|line| line.starts_with(&format!("cmdstat_{name}:")));
            let usec =
                line.and_then(|line| line.split("usec=").nth(1)?.split(',').next()?.parse::<f64>().ok());
            micros += usec.unwrap_or_default();
        }
        let read = lab.fleet.queue_records.load(Relaxed) - read_before;
        println!(
            "{name}: {read} records in {elapsed:.1} s; commands {:.3} %, main thread {:.3} % of a core; {:?}",
            micros / elapsed / 1e4,
            (after - before) / elapsed * 100.0,
            status.queues()
        );
    }
    lab.stop.cancel();
}
