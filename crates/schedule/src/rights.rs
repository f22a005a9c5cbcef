//! Naming the rights that the worker's user lacks.
//!
//! Redis before 7.2 doesn't name the command or the key that it refuses inside a script. So after a refusal each command is
//! tried once, together with the keys of the refused call (`lua/check_rights.lua`), and the error names what is missing as
//! `ACL SETUSER` takes it.

use std::{
    collections::HashMap,
    sync::{Mutex, PoisonError},
    time::Duration,
};

use redis::Cmd;
use tokio::time::Instant;

use crate::{
    error::{ErrorClass, ScheduleError},
    link::Link,
    scripts,
};

/// A key that is never written; commands are tried on it.
const PROBE_KEY: &str = "{transactions}:balance-sync:rights";
/// What the names of the fleet's own keys begin with.
const OWN: &str = "{transactions}:balance-sync:";
/// What the names of all keys hold.
const TAG: &str = "{transactions}";
/// What a balance's key holds after the tenant's prefix.
const BALANCE: &str = "balance:{transactions}:";
/// The answer for one tenant stands for this long: its calls meet the same refusal over and over.
const KEPT: Duration = Duration::from_secs(5);
/// Tenants whose answers are kept.
const MOST_KEPT: usize = 1000;
/// Keys that are tried. A call for more tenants than that is split by its caller, and its parts name theirs.
const MOST_KEYS: usize = 8;
/// Bytes of the list in an error.
const LIST_LIMIT: usize = 600;

/// The last answers, by the first key of the refused call and by how it was refused.
#[derive(Debug, Default)]
pub(crate) struct Answers(Mutex<HashMap<String, (Instant, Option<String>)>>);

impl Answers {
    fn get(&self, name: &str) -> Option<Option<String>> {
        let answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        answers.get(name).filter(|(at, _)| at.elapsed() < KEPT).map(|(_, missing)| missing.clone())
    }

    fn keep(&self, name: String, missing: Option<String>) {
        let mut answers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if answers.len() >= MOST_KEPT {
            answers.clear();
        }
        answers.insert(name, (Instant::now(), missing));
    }
}

/// Adds to an error that reports a missing right which rights are missing. Other errors are returned as they are.
pub(crate) async fn explained(link: &Link, cmd: &Cmd, error: ScheduleError) -> ScheduleError {
    if error.class != ErrorClass::Permission {
        return error;
    }
    let keys = keys_of(cmd);
    let Some(first) = keys.first() else { return error };
    let name = format!("{first} {}", error.message);
    let missing = match link.rights().get(&name) {
        Some(missing) => missing,
        None => {
            let missing = missing(link, &keys).await;
            link.rights().keep(name, missing.clone());
            missing
        }
    };
    match missing {
        Some(missing) => error.missing(&missing),
        None => error,
    }
}

/// The keys that a call names, its own first, and one of a balance.
fn keys_of(cmd: &Cmd) -> Vec<String> {
    let mut keys: Vec<String> = Vec::new();
    let mut balances = 0;
    for arg in cmd.args_iter() {
        let redis::Arg::Simple(arg) = arg else { continue };
        let Ok(arg) = std::str::from_utf8(arg) else { continue };
        // Scripts and entries hold the tag as well.
        if arg.len() > 512 || !arg.contains(TAG) || arg.starts_with('{') && arg.contains('"') {
            continue;
        }
        if pattern(arg).ends_with("balance:{transactions}:*") {
            balances += 1;
            if balances > 1 {
                continue;
            }
        }
        if keys.len() == MOST_KEYS {
            return Vec::new();
        }
        if !keys.iter().any(|key| key == arg) {
            keys.push(arg.to_owned());
        }
    }
    // Which balances a claim reads is seen in the script.
    let prefix =
        keys.first().and_then(|key| key.find("schedule:{transactions}").map(|at| key[..at].to_owned()));
    if let Some(prefix) = prefix
        && balances == 0
    {
        keys.push(format!("{prefix}{BALANCE}rights"));
    }
    keys
}

/// The pattern that covers a key, in the words of `ACL SETUSER` without the `~`.
fn pattern(key: &str) -> String {
    for part in ["lock:{transactions}:balance-sync:", BALANCE] {
        if let Some(at) = key.find(part) {
            return format!("{}*", &key[..at + part.len()]);
        }
    }
    key.to_owned()
}

/// What the user of a link may not do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MissingRights {
    /// Commands that workers use, as `ACL SETUSER` takes them without the `+`.
    pub commands: Vec<String>,
    /// Keys, of those that were asked about.
    pub keys: Vec<String>,
}

impl MissingRights {
    /// Tries every command that scripts and calls of a worker use, and these keys: some for reading alone. Nothing is changed.
    ///
    /// # Errors
    /// As Redis answers, for instance when the user may not run scripts.
    pub async fn find(link: &Link, keys: &[String], only_read: &[String]) -> Result<Self, ScheduleError> {
        let mut cmd = scripts::CHECK_RIGHTS.call(0);
        cmd.arg(PROBE_KEY).arg(only_read.len()).arg(only_read).arg(keys);
        let answer = scripts::CHECK_RIGHTS.attempt(link, &cmd).await?;
        let (commands, keys): (Vec<String>, Vec<String>) = redis::from_redis_value(answer)
            .map_err(|error| ScheduleError::unexpected("check rights", error.to_string()))?;
        Ok(Self { commands: commands.iter().map(|command| command.to_lowercase()).collect(), keys })
    }
}

async fn missing(link: &Link, keys: &[String]) -> Option<String> {
    let (only_read, keys): (Vec<String>, Vec<String>) =
        keys.iter().cloned().partition(|key| link.only_reads() && !key.starts_with(OWN));
    let MissingRights { commands, keys } = MissingRights::find(link, &keys, &only_read).await.ok()?;
    let commands = commands.iter().map(|command| format!("+{command}"));
    let mut list: Vec<String> =
        commands.chain(keys.iter().map(|key| format!("~{}", pattern(key).escape_debug()))).collect();
    list.dedup();
    let mut text = String::new();
    for right in &list {
        if text.len() + right.len() > LIST_LIMIT {
            text.push_str(" …");
            break;
        }
        if !text.is_empty() {
            text.push(' ');
        }
        text.push_str(right);
    }
    (!text.is_empty()).then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_keys_of_a_call() {
        let mut claim = scripts::CLAIM.call(1);
        claim.arg("tenant:a:schedule:{transactions}:balance-sync-v2").arg(10).arg("tenant:a:");
        claim.arg("tenant:a:quarantine:{transactions}:balance-sync").arg("");
        assert_eq!(
            keys_of(&claim),
            [
                "tenant:a:schedule:{transactions}:balance-sync-v2",
                "tenant:a:quarantine:{transactions}:balance-sync",
                "tenant:a:balance:{transactions}:rights",
            ]
        );
        let mut settle = scripts::SETTLE.call(1);
        settle.arg("schedule:{transactions}:balance-sync-v2");
        for n in 0..20 {
            settle.arg(format!("balance:{{transactions}}:o:l:@a{n}#default")).arg("1.5");
        }
        assert_eq!(
            keys_of(&settle),
            ["schedule:{transactions}:balance-sync-v2", "balance:{transactions}:o:l:@a0#default"]
        );
        let mut many = scripts::PROBE.call(9);
        for n in 0..9 {
            many.arg(format!("tenant:{n}:schedule:{{transactions}}:balance-sync-v2"));
        }
        assert!(keys_of(&many).is_empty());
    }

    #[test]
    fn keys_are_shown_as_patterns() {
        assert_eq!(pattern("tenant:a:balance:{transactions}:o:l:@a#k"), "tenant:a:balance:{transactions}:*");
        let lock = "lock:{transactions}:balance-sync:balance:{transactions}:o:l:@a#k";
        assert_eq!(pattern(lock), "lock:{transactions}:balance-sync:*");
        let schedule = "tenant:a:schedule:{transactions}:balance-sync-v2";
        assert_eq!(pattern(schedule), schedule);
    }
}
