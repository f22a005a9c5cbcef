//! Redis: does it answer, may its user do what workers do, and will it keep what it is given?
//!
//! Nothing is changed: each command is tried in a form without effect (on a key or member that doesn't exist, with `XX`, with
//! an empty range), which Redis refuses all the same when the user may not run it.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use balance_sync_domain::KeySpace;
use balance_sync_schedule::{ErrorClass, Link, ScheduleError};
use balance_sync_tenants::Tenant;
use redis::{Cmd, Value};

use super::{STEP, findings::Findings};
use crate::config::Config;

const AREA: &str = "redis";
/// What no key or member is called.
const NOBODY: &str = "balance-sync-check";
/// The oldest version that is tested.
const OLDEST: (u64, u64) = (6, 2);
/// Clocks may differ by so much.
const CLOCK: Duration = Duration::from_secs(1);

/// Looks at it; whether it answers.
pub(super) async fn look(
    link: &Link,
    config: &Config,
    tenant: Option<&Tenant>,
    findings: &mut Findings,
) -> bool {
    let info = match info(link).await {
        Ok(info) => info,
        Err(error) => {
            findings.fail(AREA, error.to_string(), "address, credentials, TLS and network of Redis");
            return false;
        }
    };
    server(&info, findings);
    let space = tenant.map_or_else(
        || Tenant::Single.key_space(config.tenants.key_form),
        |tenant| tenant.key_space(config.tenants.key_form),
    );
    rights(link, &space, findings).await;
    clock(link, findings).await;
    true
}

async fn info(link: &Link) -> Result<String, ScheduleError> {
    let within = |_| ScheduleError {
        operation: "info",
        class: ErrorClass::Unavailable,
        message: format!("no answer within {STEP:?}"),
    };
    let mut cmd = redis::cmd("INFO");
    cmd.arg("everything");
    match tokio::time::timeout(STEP, link.send("info", &cmd)).await.map_err(within)?? {
        Value::BulkString(bytes) => Ok(String::from_utf8_lossy(&bytes).into_owned()),
        Value::VerbatimString { text, .. } => Ok(text),
        Value::SimpleString(text) => Ok(text),
        _ => Ok(String::new()),
    }
}

/// Version, role, memory and persistence.
fn server(info: &str, findings: &mut Findings) {
    let field =
        |name: &str| info.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':')).map(str::trim);
    match field("redis_version") {
        Some(version) => {
            let mut parts = version.split('.').map(|part| part.parse::<u64>().unwrap_or_default());
            let at = (parts.next().unwrap_or_default(), parts.next().unwrap_or_default());
            let kind = field("server_name").unwrap_or("redis");
            if at >= OLDEST {
                findings.ok(AREA, format!("{kind} {version}"));
            } else {
                findings.fail(AREA, format!("version {version} is too old"), "Redis 6.2 or later");
            }
        }
        None => findings.warn(AREA, "its version is not shown", "the right to run INFO"),
    }
    if field("role").is_some_and(|role| role != "master") {
        findings.fail(
            AREA,
            "a replica answers, which takes no writes",
            "the address of the master, or Sentinel",
        );
    }
    match field("maxmemory_policy") {
        Some("noeviction") => findings.ok(AREA, "maxmemory-policy is noeviction"),
        Some(policy) => findings.warn(
            AREA,
            format!("maxmemory-policy is {policy}: balances, or a whole schedule, may be evicted before they are written"),
            "maxmemory-policy noeviction, and memory for the longest outage",
        ),
        None => {}
    }
    if field("aof_enabled") == Some("0") {
        findings.warn(
            AREA,
            "the append-only file is off: a restart loses what is not written yet",
            "appendonly yes, appendfsync everysec",
        );
    }
    if field("rdb_last_bgsave_status").is_some_and(|status| status != "ok") {
        findings.warn(
            AREA,
            "the last snapshot failed: writes may be refused (MISCONF)",
            "disk space and the log of Redis",
        );
    }
}

/// Every command that workers send or their scripts call, in a form without effect.
fn trials(space: &KeySpace) -> Vec<(&'static str, Cmd)> {
    let (schedule, quarantine) = (space.schedule().to_owned(), space.quarantine());
    let balance = format!("{}{NOBODY}", space.balance_prefix());
    let lock = format!("{}{NOBODY}", space.lock_prefix());
    let own = format!("{{transactions}}:balance-sync:{NOBODY}");
    let of = |words: &str, key: &str, rest: &str| {
        let mut cmd = Cmd::new();
        cmd.arg(words).arg(key);
        for word in rest.split_whitespace() {
            cmd.arg(word);
        }
        cmd
    };
    let without_key = |words: &[&str]| {
        let mut cmd = Cmd::new();
        for word in words {
            cmd.arg(*word);
        }
        cmd
    };
    let mut all: Vec<(&'static str, Cmd)> = vec![
        ("EVALSHA", without_key(&["EVALSHA", "0000000000000000000000000000000000000000", "0"])),
        // Not Lua: it is refused for that, and nothing is loaded.
        ("SCRIPT LOAD", without_key(&["SCRIPT", "LOAD", "("])),
        ("SCAN", without_key(&["SCAN", "0", "COUNT", "1"])),
    ];
    for (command, rest) in [
        ("GET", ""),
        ("MGET", ""),
        ("EXISTS", ""),
        ("TYPE", ""),
        ("PTTL", ""),
        ("PEXPIRE", "1"),
        ("PEXPIREAT", "1"),
        ("DEL", ""),
        ("UNLINK", ""),
        ("SET", "x XX"),
    ] {
        all.push((command, of(command, &balance, rest)));
    }
    for (command, rest) in [("SET", "x XX"), ("GET", ""), ("DEL", "")] {
        all.push((command, of(command, &lock, rest)));
    }
    for (command, rest) in [
        ("ZADD", "XX 1 balance-sync-check"),
        ("ZREM", NOBODY),
        ("ZSCORE", NOBODY),
        ("ZMSCORE", NOBODY),
        ("ZCARD", ""),
        ("ZCOUNT", "1 0"),
        ("ZRANGE", "1 0"),
        ("ZRANGEBYSCORE", "1 0"),
        ("ZSCAN", "0 COUNT 1"),
    ] {
        all.push((command, of(command, &schedule, rest)));
    }
    for (command, rest) in [
        ("HGET", NOBODY),
        ("HMGET", NOBODY),
        ("HEXISTS", NOBODY),
        ("HLEN", ""),
        ("HSCAN", "0 COUNT 1"),
        ("HDEL", NOBODY),
        // A field without a value: refused for the user's sake first, and for its form then.
        ("HSET", "a b c"),
    ] {
        all.push((command, of(command, &quarantine, rest)));
    }
    for (command, rest) in [
        ("HSET", "a b c"),
        ("HGETALL", ""),
        ("ZADD", "XX 1 a"),
        ("XADD", "NOMKSTREAM * a b"),
        ("XRANGE", "- + COUNT 1"),
        ("XREVRANGE", "+ - COUNT 1"),
        ("PEXPIRE", "1"),
    ] {
        all.push((command, of(command, &own, rest)));
    }
    all
}

async fn rights(link: &Link, space: &KeySpace, findings: &mut Findings) {
    let trials = trials(space);
    let (count, mut refused, mut writes) = (trials.len(), 0, None);
    for (command, cmd) in trials {
        let answer = tokio::time::timeout(STEP, link.send("check", &cmd)).await;
        let Ok(Err(error)) = answer else { continue };
        match error.class {
            ErrorClass::Permission => {
                refused += 1;
                findings.fail(
                    AREA,
                    format!("{command}: {}", error.message),
                    "the rights of deploy/redis/users.acl",
                );
            }
            ErrorClass::WrongType => {
                findings.fail(
                    AREA,
                    format!("{command}: {}", error.message),
                    "see what the key holds, and move it away",
                );
            }
            // A form without effect may be refused for its form, and a script that nobody has loaded is not there.
            ErrorClass::Unexpected => {}
            _ => writes = Some(error),
        }
    }
    match writes {
        Some(error) => findings.fail(AREA, format!("writes are refused: {error}"), "what the answer names"),
        None if refused == 0 => findings.ok(AREA, format!("all {count} commands may be run")),
        None => {}
    }
}

async fn clock(link: &Link, findings: &mut Findings) {
    let before = now();
    let Ok(Ok(Value::Array(parts))) =
        tokio::time::timeout(STEP, link.send("time", &redis::cmd("TIME"))).await
    else {
        return;
    };
    let after = now();
    let part = |at: usize| match parts.get(at) {
        Some(Value::BulkString(bytes)) => String::from_utf8_lossy(bytes).parse::<f64>().ok(),
        _ => None,
    };
    let (Some(seconds), Some(micros)) = (part(0), part(1)) else { return };
    let there = seconds + micros / 1e6;
    let apart = (before - there).max(there - after).max(0.0);
    if apart <= CLOCK.as_secs_f64() {
        findings.ok(AREA, "its clock and this machine's agree within a second");
    } else {
        findings.warn(
            AREA,
            format!("its clock and this machine's are {apart:.1} s apart"),
            "time synchronisation on both: schedules follow the clock of Redis",
        );
    }
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0.0, |since| since.as_secs_f64())
}
