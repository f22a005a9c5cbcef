//! The Lua scripts, embedded, each called by its SHA with a fallback when the server doesn't know it.
//!
//! A server forgets scripts after `SCRIPT FLUSH`, a restart or a failover; the first call that meets `NOSCRIPT`
//! loads the script again and repeats itself. Nothing was executed then, so the repetition is safe.

use std::sync::LazyLock;

use redis::{Cmd, ErrorKind, ServerErrorKind, Value};

use crate::{error::ScheduleError, link::Link};

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
    /// As Redis answers; see [`crate::ErrorClass`].
    pub async fn run(&self, link: &Link, cmd: &Cmd) -> Result<Value, ScheduleError> {
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
        pub static $name: LazyLock<Script> =
            LazyLock::new(|| Script::new($operation, include_str!(concat!("../../../lua/", $file))));
    };
}

script!(CLAIM, "claim", "claim_balance_sync_keys.lua");
script!(SETTLE, "settle", "remove_balance_sync_keys_batch.lua");
script!(RELEASE, "release", "release_balance_sync_keys.lua");
script!(POSTPONE, "postpone", "postpone_balances.lua");
script!(PROTECT, "protect", "protect_scheduled_balances.lua");
script!(PROTECT_RECENT, "protect recent", "protect_recently_scheduled.lua");
script!(QUARANTINE, "quarantine", "quarantine_balance_sync_keys.lua");
script!(LOSE, "record losses", "record_losses.lua");
script!(RETRY, "retry quarantined", "retry_quarantined_balances.lua");
script!(ADOPT, "adopt legacy", "adopt_legacy_schedule.lua");
script!(PROBE, "probe", "probe_schedules.lua");
script!(HEADS, "look at heads", "look_at_heads.lua");
script!(SAMPLE, "sample", "sample_schedules.lua");
script!(REGISTER, "register worker", "register_worker.lua");
script!(PUBLISH, "publish worker", "publish_worker.lua");
script!(READ_WORKER, "read worker", "read_worker.lua");
script!(WATCH_TENANT, "watch tenant", "watch_tenant.lua");
script!(RECORD_ACTION, "record action", "record_action.lua");
script!(INSPECT, "inspect balance", "inspect_balance.lua");
