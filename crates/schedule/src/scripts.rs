//! The embedded Lua scripts, each behind the shared helpers of `lua/prelude.lua` and called by its SHA.
//!
//! A server forgets scripts after `SCRIPT FLUSH`, a restart or a failover. A call answered with `NOSCRIPT` loads the script and
//! is then repeated, which is safe because nothing was executed.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, ServerErrorKind, Value};

use crate::{error::ScheduleError, link::Link, rights};

/// One embedded script.
#[derive(Debug)]
pub struct Script {
    operation: &'static str,
    source: &'static str,
    sha: String,
}

impl Script {
    fn new(operation: &'static str, source: &'static str) -> Self {
        Self { operation, source, sha: redis::Script::new(source).get_hash().to_owned() }
    }

    /// The complete text: prelude and script. Its SHA-1 is what `EVALSHA` is called with.
    #[must_use]
    pub fn source(&self) -> &'static str {
        self.source
    }

    /// Begins a call with `keys` keys; keys and arguments are then added with `Cmd::arg`. Written into one buffer:
    /// a settle call carries a thousand arguments.
    #[must_use]
    pub fn call(&self, keys: usize) -> Cmd {
        let mut cmd = redis::cmd("EVALSHA");
        cmd.arg(&self.sha).arg(keys);
        cmd
    }

    /// Sends a call begun with [`Script::call`].
    ///
    /// # Errors
    /// As Redis answers; see [`crate::ErrorClass`]. Rights that the user lacks are named.
    pub async fn run(&self, link: &Link, cmd: &Cmd) -> Result<Value, ScheduleError> {
        match self.attempt(link, cmd).await {
            Err(error) => Err(rights::explained(link, cmd, error).await),
            answer => answer,
        }
    }

    /// As [`Script::run`], without the names of rights.
    pub(crate) async fn attempt(&self, link: &Link, cmd: &Cmd) -> Result<Value, ScheduleError> {
        match link.query(self.operation, cmd).await {
            Ok(value) => Ok(value),
            Err((_, Some(error))) if error.kind() == ErrorKind::Server(ServerErrorKind::NoScript) => {
                tracing::debug!(script = self.operation, "redis does not know the script, loading it");
                let mut load = redis::cmd("SCRIPT");
                load.arg("LOAD").arg(self.source);
                link.query(self.operation, &load).await.map_err(|(error, _)| error)?;
                link.query(self.operation, cmd).await.map_err(|(error, _)| error)
            }
            Err((error, _)) => Err(error),
        }
    }
}

macro_rules! script {
    ($name:ident, $operation:literal, $file:literal) => {
        #[doc = concat!("`lua/", $file, "`; its head describes keys, arguments and result.")]
        pub static $name: LazyLock<Script> = LazyLock::new(|| {
            const SOURCE: &str = concat!(
                include_str!("../../../lua/prelude.lua"),
                "\n",
                include_str!(concat!("../../../lua/", $file))
            );
            Script::new($operation, SOURCE)
        });
    };
}

script!(CLAIM, "claim", "claim_balance_sync_keys.lua");
script!(SETTLE, "settle", "remove_balance_sync_keys_batch.lua");
script!(RELEASE, "release", "release_balance_sync_keys.lua");
script!(POSTPONE, "postpone", "postpone_balances.lua");
script!(PROTECT, "protect", "protect_scheduled_balances.lua");
script!(PROTECT_RECENT, "protect recent", "protect_recently_scheduled.lua");
script!(QUARANTINE, "quarantine", "quarantine_balance_sync_keys.lua");
script!(MEND, "mend other form", "mend_other_form.lua");
script!(RECORD_LOSSES, "record losses", "record_losses.lua");
script!(LIST_FORKS, "list forks", "list_forks.lua");
script!(RETRY, "retry quarantined", "retry_quarantined_balances.lua");
script!(ADOPT, "adopt legacy", "adopt_legacy_schedule.lua");
script!(RESCHEDULE, "reschedule", "reschedule_distant_members.lua");
script!(SCHEDULE_AGAIN, "schedule again", "schedule_again.lua");
script!(PROBE, "probe", "probe_schedules.lua");
script!(HEADS, "read heads", "read_heads.lua");
script!(COUNT, "count schedules", "count_schedules.lua");
script!(SAMPLE, "sample", "sample_schedules.lua");
script!(REGISTER, "register worker", "register_worker.lua");
script!(CLAIM_NAME, "claim name", "claim_name.lua");
script!(PUBLISH, "publish worker", "publish_worker.lua");
script!(READ_WORKER, "read worker", "read_worker.lua");
script!(WATCH_TENANT, "watch tenant", "watch_tenant.lua");
script!(RECORD_ACTION, "record action", "record_action.lua");
script!(CHANGE_ROLLOUT, "change rollout", "change_rollout.lua");
script!(READ_ROLLOUT, "read rollout", "read_rollout.lua");
script!(RECORD_REPORT, "record report", "record_report.lua");
script!(RECORD_TIMELINE, "record timeline", "record_timeline.lua");
script!(RECORD_HISTORY, "record history", "record_history.lua");
script!(CHECK_RIGHTS, "check rights", "check_rights.lua");
script!(OPEN_SESSION, "open session", "open_session.lua");
script!(USE_SESSION, "use session", "use_session.lua");
script!(LIST_SESSIONS, "list sessions", "list_sessions.lua");
script!(END_SESSIONS, "end sessions", "end_sessions.lua");
script!(GIVE_BACK, "give back", "give_back_members.lua");
script!(CLEAR_ENTRIES, "clear entries", "clear_entries.lua");
script!(FORGET_TENANT, "forget tenant", "forget_tenant.lua");
script!(REMOVE_LOCKS, "remove locks", "remove_locks.lua");
script!(REMOVE_FLEET, "remove fleet", "remove_fleet.lua");
script!(SHARE_CONNECTIONS, "share connections", "share_connections.lua");
script!(INSPECT, "inspect balance", "inspect_balance.lua");

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{collections::BTreeSet, fs, path::Path};

    use super::*;

    fn lua() -> Vec<(String, String)> {
        let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../lua");
        let files = fs::read_dir(directory).unwrap().map(|file| file.unwrap().path());
        files
            .map(|path| {
                let name = path.file_name().unwrap().to_string_lossy().into_owned();
                (name, fs::read_to_string(path).unwrap())
            })
            .collect()
    }

    fn functions(script: &str) -> BTreeSet<&str> {
        let definitions = script.lines().filter_map(|line| line.trim_start().strip_prefix("local function "));
        definitions.filter_map(|definition| definition.split('(').next()).collect()
    }

    #[test]
    fn every_script_states_keys_result_and_atomicity_and_uses_the_shared_helpers() {
        let files = lua();
        let (_, prelude) = files.iter().find(|(name, _)| name == "prelude.lua").unwrap();
        for (name, text) in files.iter().filter(|(name, _)| name != "prelude.lua") {
            let head = text.split("\n\n").next().unwrap();
            for part in ["-- KEYS[", "-- ARGV[", "-- Result ", "-- Atomic"] {
                assert!(
                    head.contains(part) || (part == "-- ARGV[" && !text.contains("ARGV")),
                    "{name}: {part}"
                );
            }
            let shadowed: Vec<_> =
                functions(prelude).intersection(&functions(text)).copied().map(str::to_owned).collect();
            assert!(shadowed.is_empty(), "{name} defines {shadowed:?}, which the prelude has");
        }
    }

    #[test]
    fn a_script_is_loaded_with_the_prelude_before_it() {
        let source = PROBE.source();
        assert!(source.starts_with("-- Prelude:"));
        assert!(source.ends_with(include_str!("../../../lua/probe_schedules.lua")));
    }
}
