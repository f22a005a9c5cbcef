//! The arguments of `rollout`.

use clap::{Args as ClapArgs, Subcommand};

use super::ActionArgs;

/// How `rollout` ends.
pub(super) const ROLLOUT_EXIT_CODES: &str = "What is set is stored in Redis with your name, holds for all workers and outlives them, until `rollout reset`. A tenant that \
    leaves is drained first: what is claimed of it is written or given back.\n\n\
    Exit codes:\n  \
    0  done by all workers\n  \
    1  stored; not done yet by some, or there is none\n  \
    2  not stored";

/// How `rollout status` ends.
const STATUS_EXIT_CODES: &str = "Asks Redis and the tenant service; no worker's HTTP is needed.\n\n\
    Exit codes:\n  \
    0  widen, or complete\n  \
    1  stop\n  \
    2  wait, or it can't be told";

/// What can be done with the rollout.
#[derive(Debug, Subcommand)]
pub(crate) enum RolloutCommand {
    /// Which tenants are served, what each stage has shown, and in one sentence: widen, wait or stop.
    #[command(after_help = STATUS_EXIT_CODES)]
    Status {
        /// Print one line of JSON, as /api/v1/rollout answers.
        #[arg(long)]
        json: bool,
    },
    /// Serve this share of the tenants that are on no list; a larger one has all tenants of a smaller one.
    #[command(after_help = ROLLOUT_EXIT_CODES)]
    Set {
        /// Such as 5% or 0.25%.
        share: String,
        #[command(flatten)]
        action: ActionArgs,
    },
    /// Serve these tenants, whatever the share; they are no longer excluded.
    #[command(after_help = ROLLOUT_EXIT_CODES)]
    Add(RolloutTenants),
    /// Take these off both lists: the share decides.
    #[command(after_help = ROLLOUT_EXIT_CODES)]
    Remove(RolloutTenants),
    /// Don't serve these tenants, whatever else.
    #[command(after_help = ROLLOUT_EXIT_CODES)]
    Exclude(RolloutTenants),
    /// Serve all tenants but the excluded ones.
    #[command(after_help = ROLLOUT_EXIT_CODES)]
    All(ActionArgs),
    /// Serve no tenant; the excluded ones stay on their list.
    #[command(after_help = ROLLOUT_EXIT_CODES)]
    None(ActionArgs),
    /// Serve what each worker's configuration says (tenants.include, exclude and share).
    #[command(after_help = ROLLOUT_EXIT_CODES)]
    Reset(ActionArgs),
    /// The last changes, the newest first: who, what, when, and why.
    History {
        /// Print one line of JSON.
        #[arg(long)]
        json: bool,
    },
}

#[derive(Debug, ClapArgs)]
pub(crate) struct RolloutTenants {
    /// Ids of tenants, in either form of a UUID, or globs such as 'eu-*'.
    #[arg(required = true, value_name = "ID")]
    pub tenant: Vec<String>,
    #[command(flatten)]
    pub action: ActionArgs,
}
