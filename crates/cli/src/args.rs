//! What can be asked on the command line.

mod handover;
mod retire;
mod rollout;
mod status;
mod values;

use std::{path::PathBuf, time::Duration};

use balance_sync_domain::{QuarantineReason, Reported};
use balance_sync_view::{
    reader::{StateFilter, TenantSort},
    report::Month,
};
use clap::{
    Args as ClapArgs, Parser, Subcommand,
    builder::StyledStr,
    error::{ContextKind, ContextValue, ErrorKind},
};
use clap_complete::Shell;
use uuid::Uuid;

use handover::HANDOVER_EXIT_CODES;
pub(crate) use handover::{HandoverArgs, HandoverCommand, HandoverVerifyArgs};
use retire::RETIRE_EXIT_CODES;
pub(crate) use retire::RetireArgs;
pub(crate) use rollout::{RolloutCommand, RolloutTenants};
use status::{PROBE_EXIT_CODES, STATUS_EXIT_CODES};
pub(crate) use status::{ProbeArgs, StatusArgs};
pub(crate) use values::seconds;
use values::{
    month, patience, positive, positive_count, quarantine_reason, share, sort, state, within_a_day,
};

/// Carries the balances of a multi-tenant ledger from Redis to each tenant's Postgres.
#[derive(Debug, Parser)]
#[command(name = "balance-sync", version = crate::version::text(), max_term_width = 110)]
pub(crate) struct Args {
    /// Configuration file (TOML); the environment variable BALANCE_SYNC_CONFIG does the same.
    #[arg(long, short, global = true, value_name = "FILE")]
    pub config: Option<PathBuf>,

    #[command(subcommand)]
    pub command: Command,
}

/// Commands of the second program, which people look for here.
const LAB_COMMANDS: [&str; 3] = ["demo", "load", "sandbox"];

impl Args {
    /// Those of this process. Ends it with help, or with what is wrong and where to find it.
    pub(crate) fn parse_or_exit() -> Self {
        Self::try_parse().unwrap_or_else(|error| with_hint(error).exit())
    }
}

fn with_hint(mut error: clap::Error) -> clap::Error {
    let is_of_lab = error.kind() == ErrorKind::InvalidSubcommand
        && matches!(error.get(ContextKind::InvalidSubcommand),
            Some(ContextValue::String(name)) if LAB_COMMANDS.contains(&name.as_str()));
    if is_of_lab {
        let hint = StyledStr::from("demo, load and sandbox are commands of balance-sync-lab");
        error.remove(ContextKind::SuggestedSubcommand);
        error.insert(ContextKind::Suggested, ContextValue::StyledStrs(vec![hint]));
    }
    error
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run a worker until SIGTERM or SIGINT, then drain.
    Run,
    /// Validate the configuration and print the values in force with their origins, secrets hidden; with --connect, try it all.
    #[command(after_help = CHECK_EXIT_CODES)]
    Check(CheckArgs),
    /// Is any tenant behind, since when, and why? The whole fleet at a glance.
    #[command(after_help = STATUS_EXIT_CODES)]
    Status(StatusArgs),
    /// Ask an address for 200, as a probe does: /livez or /readyz of a worker, from where no other HTTP client is at hand.
    #[command(after_help = PROBE_EXIT_CODES)]
    Probe(ProbeArgs),
    /// Tenants with their state, backlog and lag; one in detail.
    #[command(after_help = EXIT_CODES, args_conflicts_with_subcommands = true)]
    Tenants(TenantsArgs),
    /// Why isn't this balance in Postgres? Everything about it, and in one sentence what happens next.
    #[command(after_help = WHY_EXIT_CODES)]
    Why(WhyArgs),
    /// Live workers, and the end of one.
    #[command(args_conflicts_with_subcommands = true)]
    Workers(WorkersArgs),
    /// Who is signed in to the dashboard, at any worker, and the end of sessions.
    #[command(subcommand)]
    Sessions(SessionsCommand),
    /// What operators have done, the last first: who, what, when, and what became of it.
    Actions(ActionsArgs),
    /// What happened to a tenant within the last day: states, failures, actions, and workers that came and went.
    #[command(after_help = TIMELINE_HELP)]
    Timeline(TimelineArgs),
    /// How the fleet was within the last day.
    #[command(after_help = HISTORY_HELP)]
    History(HistoryArgs),
    /// Compare Redis with Postgres. Exit code 0: equal, 1: different, 2: could not be determined.
    Verify(VerifyArgs),
    /// Compare Redis, the rows and the ledger's trail of operations, balance by balance, while the ledger works. Writes nothing.
    #[command(after_help = AUDIT_EXIT_CODES)]
    Audit(AuditArgs),
    /// Show which rows lack what Redis has lost and the ledger's trail has; with --apply, write it.
    #[command(after_help = RECOVER_EXIT_CODES)]
    Recover(RecoverArgs),
    /// A month of the fleet: freshness, exposure, losses, recoveries, forks, incidents by cause, actions.
    #[command(after_help = REPORT_EXIT_CODES)]
    Report(ReportArgs),
    /// Pause a tenant once all is written, audit it, and sign a statement that its rows are the truth.
    #[command(after_help = HANDOVER_EXIT_CODES, args_conflicts_with_subcommands = true, subcommand_negates_reqs = true)]
    Handover(HandoverArgs),
    /// Which tenants this fleet serves while it takes over from the ledger's own worker: share by share, and back at any moment.
    #[command(subcommand)]
    Rollout(RolloutCommand),
    /// Give a tenant, or all, back to the ledger's own worker: stop claiming, give back what is held, remove what only we understand, verify.
    #[command(after_help = RETIRE_EXIT_CODES)]
    Retire(RetireArgs),
    /// See and settle what could not be synced: each entry keeps its reason and its value.
    #[command(subcommand)]
    Quarantine(QuarantineCommand),
    /// Print what a shell needs to complete these commands: source <(balance-sync completions bash)
    Completions {
        /// The shell.
        shell: Shell,
    },
    /// Write a man page for each command.
    Man {
        /// The folder, which is made if it isn't there.
        folder: PathBuf,
    },
}

/// How the commands end that say how the fleet is.
const EXIT_CODES: &str = "Asks Redis and the tenant service; no worker's HTTP is needed.\n\n\
    Exit codes:\n  \
    0  healthy\n  \
    1  something is behind, degraded, served by no worker, or needs an operator's attention\n  \
    2  can't tell: no live worker, Redis or the tenant service away, or the command failed";

/// How `check` ends.
const CHECK_EXIT_CODES: &str = "With --connect nothing is changed, anywhere.\n\n\
    Exit codes:\n  \
    0  good; with --connect there may be warnings\n  \
    1  with --connect: a worker could not do its work, or not for every tenant\n  \
    2  the configuration is wrong";

#[derive(Debug, ClapArgs)]
pub(crate) struct CheckArgs {
    /// Try everything once: Redis and its user's rights, the tenant service, each tenant's Postgres and its role's rights.
    #[arg(long)]
    pub connect: bool,
    /// Only this tenant; may be given several times.
    #[arg(long, value_name = "ID", requires = "connect")]
    pub tenant: Vec<String>,
    /// Tenants that are looked at at the same time.
    #[arg(long, value_name = "N", default_value_t = 16, requires = "connect")]
    pub at_once: usize,
    /// Stop looking at tenants after so many seconds.
    #[arg(long, value_name = "SECONDS", default_value_t = 120.0, value_parser = patience, requires = "connect")]
    pub timeout: f64,
    /// Print one line of JSON.
    #[arg(long, requires = "connect")]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TenantsArgs {
    #[command(flatten)]
    pub list: TenantListArgs,
    #[command(subcommand)]
    pub command: Option<TenantsCommand>,
}

/// What can be done with tenants.
#[derive(Debug, Subcommand)]
pub(crate) enum TenantsCommand {
    /// Show one whole: what happens next, its last flushes and errors, the settings in force.
    #[command(after_help = EXIT_CODES)]
    Show(TenantShowArgs),
    /// Write nothing of it any more, until it is resumed; what waits is kept alive.
    #[command(after_help = ACTION_EXIT_CODES)]
    Pause(TenantActionArgs),
    /// Go on with a paused one.
    #[command(after_help = ACTION_EXIT_CODES)]
    Resume(TenantActionArgs),
    /// Claim and write at once, whatever its collector waits for.
    #[command(after_help = ACTION_EXIT_CODES)]
    Flush(TenantActionArgs),
    /// Accept what is in its quarantine or lost, and close what is open because Redis has lost data of it, with a --note. What comes
    /// later is reported again.
    #[command(after_help = ACTION_EXIT_CODES)]
    Acknowledge(TenantActionArgs),
    /// Fetch its database settings from the tenant service afresh.
    #[command(after_help = ACTION_EXIT_CODES)]
    Refresh(TenantActionArgs),
}

/// How the commands end by which something is done.
const ACTION_EXIT_CODES: &str = "It is written down in Redis with your name, and done by all workers that serve it.\n\n\
    Exit codes:\n  \
    0  done by all of them\n  \
    1  written down; refused, failed or not done yet by some, or there is none\n  \
    2  not written down";

/// What every action takes.
#[derive(Debug, ClapArgs)]
pub(crate) struct ActionArgs {
    /// Why, for the log.
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Wait at most so many seconds for what the workers say.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = patience)]
    pub wait: f64,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TenantActionArgs {
    /// Its id.
    pub tenant: String,
    #[command(flatten)]
    pub action: ActionArgs,
}

/// How `why` ends.
const WHY_EXIT_CODES: &str = "Asks Redis, the tenant service and the tenant's Postgres; no worker's HTTP is needed.\n\n\
    Exit codes:\n  \
    0  in sync, or on its way and in time\n  \
    1  behind, in quarantine, or behind and not scheduled\n  \
    2  can't tell, or there is no such balance";

#[derive(Debug, ClapArgs)]
pub(crate) struct WhyArgs {
    /// Its key in Redis, which is also its member of the schedule.
    #[arg(required_unless_present = "alias", conflicts_with_all = ["tenant", "alias"])]
    pub member: Option<String>,
    /// Its tenant, together with --alias.
    #[arg(long, value_name = "ID", requires = "alias")]
    pub tenant: Option<String>,
    /// Its account's alias.
    #[arg(long, requires = "tenant")]
    pub alias: Option<String>,
    /// Its balance key; all of the alias if not given.
    #[arg(long, requires = "alias")]
    pub key: Option<String>,
    /// Its organization.
    #[arg(long, value_name = "UUID", requires = "alias")]
    pub organization: Option<Uuid>,
    /// Its ledger.
    #[arg(long, value_name = "UUID", requires = "alias")]
    pub ledger: Option<Uuid>,
    /// Leave amounts out, for a screen that others see.
    #[arg(long)]
    pub hide_amounts: bool,
    /// Print one line of JSON, as /api/v1/why answers.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct WorkersArgs {
    /// Print one line of JSON, as /api/v1/workers answers.
    #[arg(long)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Option<WorkersCommand>,
}

/// What can be done with a worker.
#[derive(Debug, Subcommand)]
pub(crate) enum WorkersCommand {
    /// End one as SIGTERM does: it claims nothing more, writes or gives back what it holds, and exits.
    #[command(after_help = ACTION_EXIT_CODES)]
    Drain {
        /// Its name.
        worker: String,
        #[command(flatten)]
        action: ActionArgs,
    },
}

/// What can be done with sessions.
#[derive(Debug, Subcommand)]
pub(crate) enum SessionsCommand {
    /// All sessions, the one used last first.
    List {
        /// Print one line of JSON, as /api/v1/sessions answers.
        #[arg(long)]
        json: bool,
    },
    /// End sessions at all workers.
    End(EndSessionsArgs),
}

#[derive(Debug, ClapArgs)]
#[group(required = true, multiple = false)]
pub(crate) struct EndSessionsArgs {
    /// The session with this id in the list.
    pub id: Option<String>,
    /// All that were opened under this name.
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// All of them.
    #[arg(long)]
    pub all: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ActionsArgs {
    /// Only those on this tenant.
    #[arg(long, value_name = "ID")]
    pub tenant: Option<String>,
    /// At most so many.
    #[arg(long, default_value = "50", value_parser = positive_count)]
    pub limit: usize,
    /// Print one line of JSON, as /api/v1/actions answers.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TenantListArgs {
    #[arg(
        long,
        value_delimiter = ',',
        value_parser = state,
        help = format!("Only those in one of these states, separated by commas: {}", StateFilter::names())
    )]
    pub state: Vec<StateFilter>,
    /// Only those with this text in their id.
    #[arg(long, value_name = "TEXT")]
    pub tenant: Option<String>,
    /// Put in order by id, state, backlog, due, oldest, lag, rows or quarantined; numbers with the largest first.
    #[arg(long, default_value = "id", value_parser = sort, hide_possible_values = true)]
    pub sort: TenantSort,
    /// The other way round.
    #[arg(long)]
    pub reverse: bool,
    /// At most so many, 100 if not given, and all with --csv; all that fit count for the exit code.
    #[arg(long, value_parser = positive_count)]
    pub limit: Option<usize>,
    /// Print one line of JSON, as /api/v1/tenants answers.
    #[arg(long)]
    pub json: bool,
    /// Print comma-separated values, for a spreadsheet.
    #[arg(long, conflicts_with = "json")]
    pub csv: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct TenantShowArgs {
    /// Its id.
    pub tenant: String,
    /// Print one line of JSON, as /api/v1/tenants/{id} answers.
    #[arg(long)]
    pub json: bool,
}

const TIMELINE_HELP: &str = "Reads what workers have recorded in Redis; times are in UTC. Time that isn't recorded is shown as such.\n\n\
    Exit codes: 0 the timeline, 2 there is no such tenant, or it could not be read.";

const HISTORY_HELP: &str = "Reads what a worker has recorded in Redis by the minute, and shows the worst of each span; times are in UTC.\n\n\
    Exit codes: 0 the history, 2 nothing is recorded of this time, or it could not be read.";

#[derive(Debug, ClapArgs)]
pub(crate) struct TimelineArgs {
    /// Its id.
    pub tenant: String,
    /// How far back, 24h at most.
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = within_a_day)]
    pub since: Duration,
    /// Print one line of JSON, as /api/v1/tenants/{id}/timeline answers.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct HistoryArgs {
    /// How far back, 24h at most.
    #[arg(long, value_name = "SPAN", default_value = "24h", value_parser = within_a_day)]
    pub since: Duration,
    /// Minutes in a row of the table.
    #[arg(long, value_name = "MINUTES", default_value = "30", value_parser = clap::value_parser!(u64).range(1..=1440))]
    pub step: u64,
    /// Print one line of JSON, as /api/v1/history answers, minute by minute.
    #[arg(long)]
    pub json: bool,
}

const REPORT_EXIT_CODES: &str = "Reads what workers have recorded in Redis; it is kept for 13 months. What isn't recorded is shown as unknown.\n\n\
    Exit codes: 0 the report, 2 nothing is recorded of the month, or it could not be read.";

#[derive(Debug, ClapArgs)]
pub(crate) struct ReportArgs {
    /// The month, in UTC, as 2026-11.
    #[arg(long, value_parser = month, value_name = "MONTH")]
    pub month: Month,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct VerifyArgs {
    /// Tenants by id, separated by commas; all active ones if not given.
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub tenant: Vec<String>,
    /// Keep comparing until all is equal, at most so many seconds.
    #[arg(long, value_parser = positive, value_name = "SECONDS")]
    pub wait: Option<f64>,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Schedule again what is behind and not scheduled, and what is scheduled too far ahead since Redis's clock has jumped
    /// back. Says what it would do; does it only together with --apply.
    #[arg(long, conflicts_with = "wait")]
    pub repair: bool,
    /// With --repair: do it. Only Redis is written, the workers do the rest.
    #[arg(long, requires = "repair")]
    pub apply: bool,
    /// Name at most so many differing balances.
    #[arg(long, default_value_t = 10)]
    pub show: usize,
}

/// How `audit` ends.
const AUDIT_EXIT_CODES: &str = "Reads Redis and each tenant's Postgres, page by page; nothing is written, anywhere. What moves is looked at \
    three times before it is reported.\n\n\
    Exit codes:\n  \
    0  nothing found\n  \
    1  something is wrong with some balances\n  \
    2  not all could be determined: a tenant could not be read, the trail could not be read, or it was interrupted";

#[derive(Debug, ClapArgs)]
pub(crate) struct AuditArgs {
    /// Tenants by id, separated by commas; all active ones if not given.
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub tenant: Vec<String>,
    /// Only balances whose row was written, or whose newest operation was created, since then: a time (2026-11-26T08:00:00Z) or
    /// a duration back from now (2h).
    #[arg(long, value_name = "TIME")]
    pub since: Option<String>,
    /// Only this share of the balances, such as 0.05 or 5%; always the same ones.
    #[arg(long, value_name = "SHARE", value_parser = share)]
    pub sample: Option<f64>,
    /// Compare Redis and the rows only.
    #[arg(long)]
    pub without_trail: bool,
    /// What has been scheduled for no longer than so many seconds is being written, and in time.
    #[arg(long, value_name = "SECONDS", default_value_t = 10.0, value_parser = patience)]
    pub in_flight: f64,
    /// Rows that are asked of Postgres per second, over all tenants.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub postgres_rate: u32,
    /// Values that are asked of Redis per second.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub redis_rate: u32,
    /// Go on from where this file says, and keep it up to date; it is made if it isn't there, and removed at the end.
    #[arg(long, value_name = "FILE")]
    pub resume: Option<PathBuf>,
    /// Print at most so many findings; all of them with --json.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub show: u64,
    /// Leave amounts out, for a screen that others see.
    #[arg(long)]
    pub hide_amounts: bool,
    /// Print one line of JSON for each finding, and one for the summary.
    #[arg(long)]
    pub json: bool,
}

/// How `recover` ends.
const RECOVER_EXIT_CODES: &str = "Without --apply nothing is written. With it rows are written by the workers' own guarded statement, never over \
    a row as new; what is in doubt is listed and left alone.\n\n\
    Exit codes:\n  \
    0  nothing is lost, or with --apply: all of it was restored\n  \
    1  something is lost; with --apply: some of it was not restored\n  \
    2  not all could be determined: a tenant or the trail could not be read, or it was interrupted";

#[derive(Debug, ClapArgs)]
pub(crate) struct RecoverArgs {
    /// Tenants by id, separated by commas; all active ones if not given.
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub tenant: Vec<String>,
    /// Write the rows. It is written down in Redis first, with your name and --note.
    #[arg(long, requires = "note")]
    pub apply: bool,
    /// Why, for the log of actions; needed for --apply.
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
    /// Rows that are asked of Postgres per second, over all tenants.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub postgres_rate: u32,
    /// Values that are asked of Redis per second.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub redis_rate: u32,
    /// Print at most so many balances; all of them with --json.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub show: u64,
    /// Leave amounts out, for a screen that others see.
    #[arg(long)]
    pub hide_amounts: bool,
    /// Print one line of JSON for each balance, and one for the summary.
    #[arg(long)]
    pub json: bool,
}

/// What can be done with quarantined balances.
#[derive(Debug, Subcommand)]
pub(crate) enum QuarantineCommand {
    /// List entries. Exit code 0: none, 1: some.
    List {
        #[command(flatten)]
        filter: QuarantineFilter,
        /// Print comma-separated values, for a spreadsheet.
        #[arg(long, conflicts_with = "json")]
        csv: bool,
    },
    /// Show one entry whole, with the value it keeps.
    Show {
        /// The member as the list shows it.
        member: String,
        #[command(flatten)]
        filter: QuarantineFilter,
    },
    /// Schedule entries again; each goes away when a write settles it.
    Retry(QuarantineChange),
    /// Forget entries: their last mutation is then not in Postgres.
    Drop(QuarantineChange),
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct QuarantineFilter {
    /// Tenants by id, separated by commas; all active ones if not given.
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub tenant: Vec<String>,
    /// Only entries with this reason, e.g. missing_row.
    #[arg(long, value_parser = quarantine_reason)]
    pub reason: Option<Reported<QuarantineReason>>,
    /// Print one line of JSON.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct QuarantineChange {
    /// Members as the list shows them.
    #[arg(required_unless_present = "all")]
    pub member: Vec<String>,
    /// All entries that the filter leaves.
    #[arg(long, conflicts_with = "member")]
    pub all: bool,
    #[command(flatten)]
    pub filter: QuarantineFilter,
    /// Why, for the log of actions.
    #[arg(long, value_name = "TEXT")]
    pub note: Option<String>,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn refusal(args: &[&str]) -> String {
        let args = std::iter::once("balance-sync").chain(args.iter().copied());
        with_hint(Args::try_parse_from(args).unwrap_err()).to_string()
    }

    #[test]
    fn commands_of_the_lab_are_pointed_to() {
        for args in [&["demo", "--tenants", "4"][..], &["load"], &["sandbox", "--json"]] {
            let text = refusal(args);
            assert!(text.contains(&format!("unrecognized subcommand '{}'", args[0])), "{text}");
            let tips: Vec<&str> = text.lines().filter(|line| line.contains("tip:")).collect();
            assert_eq!(tips, ["  tip: demo, load and sandbox are commands of balance-sync-lab"], "{text}");
        }
        assert!(!refusal(&["nonsense"]).contains("lab"));
        assert!(refusal(&["statsu"]).contains("'status'"));
    }
}
