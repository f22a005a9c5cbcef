//! Redis: does it answer, may its user do what workers do, and will it keep what it is given?
//!
//! Nothing is changed: what is tried has no effect, and is refused all the same when the user may not do it. Commands and keys are
//! tried by the script that also names missing rights to a running worker, so both know the same list.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use balance_sync_domain::KeySpace;
use balance_sync_fleet::status::WorkerMode;
use balance_sync_schedule::{ErrorClass, Link, MissingRights, Reports, Rollouts, ScheduleError, Timelines};
use balance_sync_tenants::Tenant;
use redis::{Cmd, Value};

use super::{
    STEP,
    findings::{Findings, Level},
};
use crate::{config::Config, wiring};

const AREA: &str = "redis";
/// What no key or member is called.
const ABSENT: &str = "balance-sync-check";
/// The oldest version that is tested.
const OLDEST: (u64, u64) = (6, 2);
/// Clocks may differ by so much.
const CLOCK: Duration = Duration::from_secs(1);

/// Looks at it; whether it answers.
pub(super) async fn look(link: &Link, config: &Config, tenants: &[Tenant], findings: &mut Findings) -> bool {
    let info = match info(link).await {
        Ok(info) => info,
        Err(error) => {
            findings.fail(AREA, error.to_string(), "address, credentials, TLS and network of Redis");
            return false;
        }
    };
    server(&info, findings);
    rights(link, config, tenants, findings).await;
    clock(link, findings).await;
    true
}

async fn info(link: &Link) -> Result<String, ScheduleError> {
    let mut cmd = redis::cmd("INFO");
    cmd.arg("everything");
    match within(link.send("info", &cmd)).await? {
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
            if at >= OLDEST {
                findings.ok(AREA, name(version, field));
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

/// The server's own name and version: others than Redis report as `redis_version` the one that they are compatible with.
fn name<'i>(redis_version: &str, field: impl Fn(&str) -> Option<&'i str>) -> String {
    match field("server_name") {
        None | Some("redis") => format!("redis {redis_version}"),
        Some(name) => match field(&format!("{name}_version")) {
            Some(version) => format!("{name} {version}, compatible with redis {redis_version}"),
            None => format!("{name}, compatible with redis {redis_version}"),
        },
    }
}

/// Keys of this many tenants are tried in one call.
const TENANTS_PER_CALL: usize = 50;

/// Whether the user may run what workers run, on the keys of every tenant, and whether Redis takes writes.
async fn rights(link: &Link, config: &Config, tenants: &[Tenant], findings: &mut Findings) {
    const HELP: &str = "the rights of deploy/redis/users.acl";
    let is_shadow = config.worker.mode == WorkerMode::Shadow;
    let mut refused = false;
    // What scripts can't try. Not Lua: it is refused for that, and nothing is loaded.
    let calls: [&[&str]; 3] = [
        &["EVALSHA", "0000000000000000000000000000000000000000", "0"],
        &["SCRIPT", "LOAD", "("],
        &["SCAN", "0", "COUNT", "1"],
    ];
    for call in calls {
        let mut cmd = Cmd::new();
        cmd.arg(call);
        if let Err(error) = within(link.send("check", &cmd)).await
            && error.class == ErrorClass::Permission
        {
            refused = true;
            findings.fail(AREA, format!("{}: {}", call[0], error.message), HELP);
        }
    }
    let spaces = |tenant: &Tenant| tenant.key_spaces(config.tenants.key_form);
    let single = [Tenant::Single];
    let all = if tenants.is_empty() { &single[..] } else { tenants };
    let mut commands: Vec<String> = Vec::new();
    for page in all.chunks(TENANTS_PER_CALL) {
        let mut keys: Vec<String> = page.iter().flat_map(spaces).flat_map(|space| keys_of(&space)).collect();
        let mut queues: Vec<String> =
            page.iter().flat_map(spaces).flat_map(|space| queues_of(&space)).collect();
        if is_shadow {
            queues.append(&mut keys);
        }
        let missing = match within(MissingRights::find(link, &keys, &queues)).await {
            Ok(missing) => missing,
            Err(error) => {
                findings.fail(AREA, format!("rights can't be tried: {error}"), HELP);
                return;
            }
        };
        refused |= !missing.commands.is_empty() || !missing.keys.is_empty();
        commands = missing.commands;
        for tenant in page {
            let own: Vec<String> = spaces(tenant).iter().flat_map(keys_of).collect();
            for key in missing.keys.iter().filter(|key| own.contains(key)) {
                let said = format!("no right to {}", of_any_tenant(key).replace(ABSENT, "…").escape_debug());
                findings.of_tenant(tenant.label(), AREA, "keys", (Level::Fail, said, HELP.to_owned()));
            }
            let own: Vec<String> = spaces(tenant).iter().flat_map(queues_of).collect();
            for key in missing.keys.iter().filter(|key| own.contains(key)) {
                let said =
                    format!("no right to read {}: that queue of the ledger isn't shown", key.escape_debug());
                let help = format!("%R~{}; before Redis 7 ~ instead of %R~", key.escape_debug());
                findings.of_tenant(tenant.label(), AREA, "queues", (Level::Warn, said, help));
            }
        }
    }
    // Those that belong to no tenant.
    let group = wiring::group(config);
    let mut keys = Reports::new(link.clone(), &group).keys();
    keys.extend(Timelines::new(link.clone(), &group).keys());
    keys.extend(Rollouts::keys().map(str::to_owned));
    match within(MissingRights::find(link, &keys, &[])).await {
        Ok(missing) => {
            refused |= !missing.keys.is_empty();
            for key in missing.keys {
                findings.fail(AREA, format!("no right to {}", key.escape_debug()), HELP);
            }
        }
        Err(error) => findings.fail(AREA, format!("rights can't be tried: {error}"), HELP),
    }
    if !commands.is_empty() {
        let list: Vec<String> = commands.iter().map(|command| format!("+{command}")).collect();
        findings.fail(AREA, format!("no right to {}", list.join(" ")), HELP);
    }
    if !refused {
        findings.ok(AREA, format!("every command and the keys of {} tenants may be used", all.len()));
    }
    // Nothing is removed, and refused all the same where nothing may be written.
    let mut write = redis::cmd("ZREM");
    let schedule = all[0].key_space(config.tenants.key_form);
    write.arg(if is_shadow { &keys[0] } else { schedule.schedule() }).arg(ABSENT);
    if let Err(error) = within(link.send("check", &write)).await
        && error.class != ErrorClass::Permission
    {
        findings.fail(AREA, format!("writes are refused: {error}"), "what the answer names");
    }
}

/// A key with `*` for the tenant, as in `users.acl`: what is missing for many tenants is one line.
fn of_any_tenant(key: &str) -> String {
    match key.strip_prefix("tenant:").and_then(|rest| rest.split_once(':')) {
        Some((_, rest)) => format!("tenant:*:{rest}"),
        None => key.to_owned(),
    }
}

/// One key of each kind that a tenant has.
fn keys_of(space: &KeySpace) -> [String; 5] {
    [
        space.schedule().to_owned(),
        space.quarantine(),
        space.losses(),
        format!("{}{ABSENT}", space.balance_prefix()),
        format!("{}{ABSENT}", space.lock_prefix()),
    ]
}

/// The ledger's own queues of a tenant, which are only read.
fn queues_of(space: &KeySpace) -> [String; 5] {
    [
        space.backup_queue(),
        space.backup_attempts(),
        space.recovery(),
        space.recovery_attempts(),
        space.recovery_cleanup(),
    ]
}

/// An answer, within the time that one step may take.
async fn within<T>(asking: impl Future<Output = Result<T, ScheduleError>>) -> Result<T, ScheduleError> {
    tokio::time::timeout(STEP, asking).await.unwrap_or_else(|_| {
        let message = format!("no answer within {STEP:?}");
        Err(ScheduleError { operation: "check", class: ErrorClass::Unavailable, message })
    })
}

async fn clock(link: &Link, findings: &mut Findings) {
    let before = now();
    let parts = match within(link.send("time", &redis::cmd("TIME"))).await {
        Ok(Value::Array(parts)) => parts,
        Ok(_) => return,
        Err(error) => {
            return findings.fail(AREA, error.to_string(), "the right to run TIME: every claim needs it");
        }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_shown_and_judged_by_what_they_are_compatible_with() {
        for (info, level, found) in [
            ("redis_version:6.0.16\r\n", Level::Fail, "version 6.0.16 is too old"),
            ("redis_version:6.2.5\r\n", Level::Ok, "redis 6.2.5"),
            ("redis_version:8.2.3\r\nserver_name:redis\r\n", Level::Ok, "redis 8.2.3"),
            (
                "redis_version:7.2.4\r\nserver_name:valkey\r\nvalkey_version:8.1.1\r\n",
                Level::Ok,
                "valkey 8.1.1, compatible with redis 7.2.4",
            ),
            ("redis_version:7.4.0\r\nserver_name:other\r\n", Level::Ok, "other, compatible with redis 7.4.0"),
        ] {
            let mut findings = Findings::default();
            server(info, &mut findings);
            let [finding] = findings.list() else { panic!("{info:?}: {findings:?}") };
            assert_eq!((finding.level, finding.found.as_str()), (level, found), "{info:?}");
        }
    }
}
