//! The arguments of `retire`.

use std::path::PathBuf;

use clap::Args as ClapArgs;

use super::patience;

/// How `retire` ends.
pub(super) const RETIRE_EXIT_CODES: &str = "Goes back to the ledger's own worker, at any moment and under load; no posting has to stop. The rollout then says that no worker of \
    ours serves the tenant, for workers that are started later too; `rollout remove` (after --all: `rollout all`) takes it again. Broken off at \
    any step, the same command goes on from there; when all is done it changes nothing.\n\n\
    Exit codes:\n  \
    0  done; with --plan: nothing speaks against it\n  \
    1  refused, or something is left open: it says what; with --plan: something speaks against it\n  \
    2  something could not be determined: Redis, the tenant service or a tenant's Postgres could not be asked, or it was interrupted";

#[derive(Debug, ClapArgs)]
pub(crate) struct RetireArgs {
    /// This tenant, in either form of a UUID.
    #[arg(long, value_name = "ID", required_unless_present = "all", conflicts_with = "all")]
    pub tenant: Option<String>,
    /// All tenants, and the fleet's own records once no worker runs any more.
    #[arg(long)]
    pub all: bool,
    /// Why, for the log; needed with --acknowledge.
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Wait at most so many seconds until all workers have left the tenants.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = patience)]
    pub drain: f64,
    /// Print what would be done and what speaks against it; change nothing.
    #[arg(long)]
    pub plan: bool,
    /// Go back although something is open: quarantined or lost balances, forks, what Redis has lost, a pause.
    #[arg(long)]
    pub acknowledge: bool,
    /// Add the entries of quarantine and losses to this file (JSON lines with the values, mode 0600) before they are removed; it is
    /// made if it isn't there.
    #[arg(long, value_name = "FILE")]
    pub export: Option<PathBuf>,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}
