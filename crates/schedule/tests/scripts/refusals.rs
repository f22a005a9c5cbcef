//! What a server refuses: the call as a whole fails with its class, nothing is claimed, and nothing leaves the schedule.

use std::{sync::Arc, time::Duration};

use balance_sync_sandbox::{RedisOptions, RedisServer, eventually};
use balance_sync_schedule::{
    ErrorClass, Link, LinkSettings, Schedule, ScheduleOptions, Schedules, probe::probe, read_heads,
    sample::sample, scripts,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpListener,
};

use crate::{SOON, Tenant, all, ask, common::space_of, names, number, tell};

/// The tenant's schedule by another user of the same Redis, in both modes.
fn as_user(tenant: &Tenant, port: u16, user: &str) -> [Schedule; 2] {
    let link = Link::new(&LinkSettings::for_url(&format!("redis://{user}:pw@127.0.0.1:{port}/0"))).unwrap();
    let lease = Arc::new(ScheduleOptions::default());
    let lock = tenant.lock_mode("us").options().clone();
    [lease, Arc::new(lock)].map(|options| Schedule::new(link.clone(), tenant.space.clone(), options))
}

/// Members with their scores as numbers, as they stand in the schedule.
async fn scores(tenant: &Tenant) -> Vec<(String, f64)> {
    let flat: Vec<String> = ask!(tenant, "ZRANGE", tenant.space.schedule(), 0, -1, "WITHSCORES");
    flat.chunks(2).map(|pair| (pair[0].clone(), number(&pair[1]))).collect()
}

async fn locks(tenant: &Tenant) -> usize {
    let found: Vec<String> = ask!(tenant, "KEYS", format!("{}*", tenant.space.lock_prefix()));
    found.len()
}

#[tokio::test]
async fn members_without_readable_values_keep_their_scores() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    // More than one page, and one member that is no balance.
    let members = tenant.schedule_many(250).await;
    tenant.schedule("not a balance", "1700000000.000001").await;
    for member in &members {
        tell!(tenant, "SET", member, "{}");
    }
    let users: [(&str, &[&str]); 2] = [
        // No right to the values' keys; no right to the command.
        ("keys", &["~tenant:t:schedule:*", "~tenant:t:lock:*", "~tenant:t:*quarantine*", "+@all"]),
        ("commands", &["~*", "+@all", "-get", "-mget"]),
    ];
    for (user, rights) in users {
        let mut cmd = redis::cmd("ACL");
        cmd.arg("SETUSER").arg(user).arg("on").arg(">pw").arg(rights);
        tenant.run::<()>(&cmd).await;
        let before = scores(&tenant).await;
        for schedule in as_user(&tenant, server.port(), user) {
            let error = schedule.claim(300).await.unwrap_err();
            assert_eq!(
                (error.class, error.is_transient()),
                (ErrorClass::Permission, false),
                "{user}: {error}"
            );
            assert_eq!(scores(&tenant).await, before, "{user}");
            assert_eq!(locks(&tenant).await, 0, "{user}");
        }
        // Mended, it is claimed in the old order.
        tell!(tenant, "ACL", "SETUSER", user, "allkeys", "+@all");
        let [schedule, _] = as_user(&tenant, server.port(), user);
        let claim = schedule.claim(300).await.unwrap();
        assert_eq!(claim.entries.iter().filter(|claimed| claimed.value.is_some()).count(), 250);
        assert!(claim.refused.is_none());
        assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 251);
    }
}

#[tokio::test]
async fn missing_rights_to_some_values_delay_no_others() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let (secret, _) = tenant.mutate("secret", "{}").await;
    let (good, _) = tenant.mutate("good", "{}").await;
    tell!(
        tenant,
        "ACL",
        "SETUSER",
        "some",
        "on",
        ">pw",
        "~tenant:t:schedule:*",
        "~*quarantine*",
        "~*good*",
        "+@all"
    );
    let [schedule, _] = as_user(&tenant, server.port(), "some");
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(names(&claim.entries), [good.as_str()]);
    let refused = claim.refused.as_ref().unwrap();
    assert_eq!((refused.put_off, refused.error.class), (1, ErrorClass::Permission), "{}", refused.error);
    let now: (f64, u64) = ask!(tenant, "TIME");
    let wait = number(&tenant.score(&secret).await.unwrap()) - now.0;
    assert!((50.0..62.0).contains(&wait), "put off by {wait} s");
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 1);
    // A newer mutation is due at once.
    tell!(tenant, "ACL", "SETUSER", "some", "allkeys");
    tenant.mutate("secret", "{}").await;
    assert_eq!(names(&schedule.claim(10).await.unwrap().entries), [secret.as_str()]);
}

#[tokio::test]
async fn a_missing_right_to_raise_ttls_blocks_nothing_and_is_reported() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let (member, _) = tenant.mutate("a", "{}").await;
    tell!(tenant, "PEXPIRE", &member, 50_000);
    tell!(tenant, "ACL", "SETUSER", "frail", "on", ">pw", "~*", "+@all", "-pexpire");
    let [schedule, _] = as_user(&tenant, server.port(), "frail");
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(names(&claim.entries), [member.as_str()]);
    let refused = claim.refused.as_ref().unwrap();
    assert_eq!((refused.put_off, refused.error.class), (0, ErrorClass::Permission));
    assert_eq!(schedule.release(&all(&claim.entries)).await.unwrap().released, 1);
    assert_eq!(schedule.protect_page(None).await.unwrap_err().class, ErrorClass::Permission);
    assert_eq!(schedule.protect_since(Some(1.0)).await.unwrap().1, 0);
}

#[tokio::test]
async fn nothing_is_claimed_or_locked_on_a_server_that_refuses_writes() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    tenant.mutate("a", "{}").await;
    tenant.mutate("b", "{}").await;
    // A snapshot that can't be written: MISCONF until one succeeds.
    let misconf = async |on: bool| {
        if !on {
            tell!(tenant, "CONFIG", "SET", "stop-writes-on-bgsave-error", "no");
            return;
        }
        tell!(tenant, "CONFIG", "SET", "stop-writes-on-bgsave-error", "yes");
        tenant.fail_a_snapshot(&server).await;
    };
    let set = async |name: &str, value: &str| tell!(tenant, "CONFIG", "SET", name, value);
    // Redis 6.2 applies `min-replicas-to-write` to commands, but not to those in scripts.
    let counts_replicas = server.version().await.unwrap() >= (7, 0);
    for class in [ErrorClass::NoReplicas, ErrorClass::OutOfMemory, ErrorClass::Misconf] {
        if class == ErrorClass::NoReplicas && !counts_replicas {
            continue;
        }
        match class {
            ErrorClass::NoReplicas => set("min-replicas-to-write", "1").await,
            ErrorClass::OutOfMemory => set("maxmemory", "1").await,
            _ => misconf(true).await,
        }
        let before = scores(&tenant).await;
        for schedule in [tenant.lease_mode(), tenant.lock_mode("us")] {
            let error = schedule.claim(10).await.unwrap_err();
            assert_eq!((error.class, error.is_transient()), (class, true), "{error}");
        }
        match class {
            ErrorClass::NoReplicas => set("min-replicas-to-write", "0").await,
            ErrorClass::OutOfMemory => set("maxmemory", "0").await,
            _ => misconf(false).await,
        }
        assert_eq!((scores(&tenant).await, locks(&tenant).await), (before, 0), "{class:?}");
    }
    let schedule = tenant.lock_mode("us");
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!((claim.entries.len(), claim.foreign), (2, 0));
    let held = all(&claim.entries);
    if counts_replicas {
        // What is held can't be settled then, and stays.
        set("min-replicas-to-write", "1").await;
        assert_eq!(schedule.settle(&held).await.unwrap_err().class, ErrorClass::NoReplicas);
        assert_eq!(schedule.release(&held).await.unwrap_err().class, ErrorClass::NoReplicas);
        assert_eq!(scores(&tenant).await.len(), 2);
        set("min-replicas-to-write", "0").await;
    }
    assert_eq!(schedule.settle(&held).await.unwrap().removed, 2);
}

/// A node of a cluster; `slots` = whether it has them all.
async fn node(slots: bool) -> RedisServer {
    let options = RedisOptions { cluster: true, ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    if slots {
        let mut redis = server.connect().await.unwrap();
        let all: Vec<u16> = (0..16_384).collect();
        redis::cmd("CLUSTER").arg("ADDSLOTS").arg(&all).query_async::<()>(&mut redis).await.unwrap();
    }
    server
}

#[tokio::test]
async fn a_moving_slot_leaves_every_member_scheduled_and_is_followed_then() {
    let (server, target) = (node(true).await, node(false).await);
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    let there = Tenant::on(space_of("t"), &target.url()).await;
    tell!(tenant, "CLUSTER", "MEET", "127.0.0.1", target.port());
    for side in [&tenant, &there] {
        eventually(SOON, "two nodes that serve", async || {
            let info: String = ask!(side, "CLUSTER", "INFO");
            info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:2")
        })
        .await
        .unwrap();
    }
    let mut members = Vec::new();
    for name in ["a", "b", "c"] {
        members.push(tenant.mutate(name, "{}").await.0);
    }
    let slot: u16 = ask!(tenant, "CLUSTER", "KEYSLOT", &members[0]);
    let (from, to): (String, String) = (ask!(tenant, "CLUSTER", "MYID"), ask!(there, "CLUSTER", "MYID"));
    tell!(there, "CLUSTER", "SETSLOT", slot, "IMPORTING", &from);
    tell!(tenant, "CLUSTER", "SETSLOT", slot, "MIGRATING", &to);
    let before = scores(&tenant).await;
    let refused = async |what: &str| {
        for schedule in [tenant.lease_mode(), tenant.lock_mode("us")] {
            let error = schedule.claim(10).await.unwrap_err();
            assert_eq!((error.class, error.is_transient()), (ErrorClass::Cluster, true), "{what}: {error}");
        }
    };
    let migrate = async |key: &str| {
        tell!(tenant, "MIGRATE", "127.0.0.1", target.port(), key, 0, 5_000);
    };
    // One value is on the other node already: "non local key" within the script.
    migrate(&members[1]).await;
    refused("a value has moved").await;
    assert_eq!(scores(&tenant).await, before);
    // Now the schedule as well: ASK. A settle, which declares a key that isn't there, was refused before: TRYAGAIN.
    migrate(tenant.space.schedule()).await;
    refused("the schedule has moved").await;
    for member in [&members[0], &members[2]] {
        migrate(member).await;
    }
    for side in [&there, &tenant] {
        tell!(side, "CLUSTER", "SETSLOT", slot, "NODE", &to);
    }
    // The link to the old node follows.
    let schedule = tenant.lease_mode();
    let claim = schedule.claim(10).await.unwrap();
    assert_eq!(names(&claim.entries), members.iter().map(String::as_str).collect::<Vec<_>>());
    assert_eq!(schedule.settle(&all(&claim.entries)).await.unwrap().removed, 3);
}

/// A server that refuses undeclared keys as Dragonfly does: the same script, with `redis.pcall` in front of which the
/// declared keys are looked up.
#[tokio::test]
async fn refused_undeclared_keys_leave_everything_scheduled() {
    const STRICT: &str = r"
local real, declared = redis, {}
for _, key in ipairs(KEYS) do declared[key] = true end
local redis = setmetatable({}, { __index = real })
function redis.pcall(name, key, ...)
  if key and not declared[key] then return { err = 'ERR script tried accessing undeclared key' } end
  return real.pcall(name, key, ...)
end
";
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let tenant = Tenant::on(space_of("t"), &server.url()).await;
    tenant.mutate("a", "{}").await;
    tenant.mutate("b", "{}").await;
    let before = scores(&tenant).await;
    let script = format!("{STRICT}{}", scripts::CLAIM.source());
    let mut cmd = redis::cmd("EVAL");
    cmd.arg(script).arg(1).arg(tenant.space.schedule());
    cmd.arg(&[
        "10",
        "30000",
        "900000",
        "tenant:t:",
        tenant.space.quarantine().as_str(),
        "",
        "us",
        "5000",
        "0",
        "60000",
        "10000",
        "{transactions}:balance-sync:events",
        "16",
        "tenant:t:lock:{transactions}:balance-sync:",
    ]);
    let error = cmd.query_async::<redis::Value>(&mut tenant.redis.clone()).await.unwrap_err();
    assert!(error.to_string().contains("undeclared key"), "{error}");
    assert_eq!(scores(&tenant).await, before);

    // And over the wire.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answering = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        let mut buffer = vec![0; 65_536];
        while let Ok(read) = stream.read(&mut buffer).await
            && read > 0
        {
            let asked = String::from_utf8_lossy(&buffer[..read]).into_owned();
            // One answer per command: those of the handshake are taken.
            for command in asked.split('*').skip(1) {
                let answer: &[u8] = if command.contains("EVALSHA") {
                    b"-ERR script tried accessing undeclared key\r\n"
                } else {
                    b"+OK\r\n"
                };
                stream.write_all(answer).await.unwrap();
            }
        }
    });
    let link = Link::new(&LinkSettings::for_url(&format!("redis://127.0.0.1:{port}/0"))).unwrap();
    let schedule = Schedule::new(link, space_of("t"), Arc::new(ScheduleOptions::default()));
    let error = tokio::time::timeout(Duration::from_secs(20), schedule.claim(1)).await.unwrap().unwrap_err();
    assert_eq!((error.class, error.is_transient()), (ErrorClass::UndeclaredKeys, false), "{error}");
    answering.abort();
}

#[tokio::test]
async fn access_to_one_key_form_is_enough_for_that_form() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let (dashed, simple) = ("39f62952-1671-5081-bfae-a96f12321ea0", "39f6295216715081bfaea96f12321ea0");
    let tenants = [dashed, simple].map(space_of);
    let [one, other] = [
        Tenant::on(tenants[0].clone(), &server.url()).await,
        Tenant::on(tenants[1].clone(), &server.url()).await,
    ];
    let pattern = format!("~tenant:{dashed}:*");
    tell!(one, "ACL", "SETUSER", "half", "on", ">pw", &pattern, "+@all");
    let link = Link::new(&LinkSettings::for_url(&format!("redis://half:pw@127.0.0.1:{}/0", server.port())));
    let schedules = Schedules::new(&link.unwrap(), tenants.to_vec(), &Arc::new(ScheduleOptions::default()));
    other.mutate("there", "{}").await;
    for round in 0..3 {
        // With nothing and with something due in the other form.
        let claim = schedules.claim(10).await.unwrap();
        assert_eq!(claim.entries.len(), usize::from(round > 0));
        let held = all(&claim.entries);
        schedules.settle(&held).await.unwrap();
        one.mutate("here", "{}").await;
        if let Some(refused) = claim.refused {
            assert_eq!((refused.put_off, refused.error.class), (0, ErrorClass::Permission));
        } else {
            assert!(round > 0, "the one that can't be reached is left out while the other is busy");
        }
    }
    // Where the schedule can be read and no value, the tenant is refused.
    tell!(one, "ACL", "SETUSER", "half", "~*", "-get", "-mget");
    tell!(other, "DEL", other.space.schedule());
    for _ in 0..2 {
        assert_eq!(schedules.claim(10).await.unwrap_err().class, ErrorClass::Permission);
    }
}

#[tokio::test]
async fn a_missing_right_to_one_tenants_keys_hides_no_other_tenant() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut tenants = Vec::new();
    let mut rights = Vec::new();
    for n in 0..40 {
        let tenant = Tenant::on(space_of(&format!("t{n}")), &server.url()).await;
        if n % 2 == 0 {
            tenant.schedule_many(1).await;
        }
        if n != 17 && n != 30 {
            rights.push(format!("~{}*", tenant.space.prefix()));
        }
        tenants.push(tenant);
    }
    let mut cmd = redis::cmd("ACL");
    cmd.arg("SETUSER").arg("most").arg("on").arg(">pw").arg("+@all").arg(rights);
    tenants[0].run::<()>(&cmd).await;
    let url = format!("redis://most:pw@127.0.0.1:{}/0", server.port());
    let link = Link::new(&LinkSettings::for_url(&url)).unwrap();
    let keys: Vec<Arc<str>> = tenants.iter().map(|tenant| Arc::from(tenant.space.schedule())).collect();

    // What can't be looked at is claimed from, so that the claim reports it.
    let due = probe(&link, &keys).await.unwrap();
    assert_eq!(due, (0..40).filter(|n| n % 2 == 0 || *n == 17).collect::<Vec<_>>());
    let heads = read_heads(&link, keys.iter().map(|key| (key, None))).await.unwrap();
    let seen: Vec<usize> = (0..40).filter(|n| heads[*n].is_some()).collect();
    assert_eq!(seen, (0..40).filter(|n| n % 2 == 0 && *n != 30).collect::<Vec<_>>());
    let spaces: Vec<_> = tenants.iter().map(|tenant| &tenant.space).collect();
    let samples = sample(&link, &spaces).await.unwrap();
    for (n, sample) in samples.iter().enumerate() {
        let wanted = if n == 17 || n == 30 { None } else { Some(u64::from(n % 2 == 0)) };
        assert_eq!((sample.scheduled, sample.lost.is_some()), (wanted, wanted.is_some()), "tenant {n}");
    }
    // A right to the command is one to all of them.
    tell!(tenants[0], "ACL", "SETUSER", "most", "-evalsha");
    assert_eq!(probe(&link, &keys).await.unwrap_err().class, ErrorClass::Permission);
}
