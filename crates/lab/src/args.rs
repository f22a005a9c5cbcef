//! What can be asked on the command line.

use std::{path::PathBuf, time::Duration};

use balance_sync_sandbox::{Breakage, ledger::Format};
use clap::{Args as ClapArgs, Parser, Subcommand, ValueEnum};

/// Private servers, load and a demonstration for balance-sync. Never deployed.
#[derive(Debug, Parser)]
#[command(name = "balance-sync-lab", version, max_term_width = 110)]
pub(crate) struct Args {
    #[command(subcommand)]
    pub command: Command,
}

/// The commands.
#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Show the whole main job on private servers: load, tenants that come and go, a killed worker, and verification.
    Demo(DemoArgs),
    /// Start private Redis, Postgres and tenant service with tenants, for trying things by hand; ends when interrupted.
    Sandbox(SandboxArgs),
    /// Produce mutations as the ledger does: value and schedule in one atomic step.
    Load(LoadArgs),
    /// Write a man page for each command.
    Man {
        /// The folder, which is made if it isn't there.
        folder: PathBuf,
    },
}

#[derive(Debug, Clone, ClapArgs)]
pub(crate) struct DemoArgs {
    /// Number of tenants at the start.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(4..=1000))]
    pub tenants: u32,
    /// Rows of each tenant.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub balances: u32,
    /// Mutations per second over all tenants.
    #[arg(long, default_value_t = 5000.0, value_parser = positive)]
    pub rate: f64,
    /// How long to produce, in seconds.
    #[arg(long, default_value_t = 20.0, value_parser = positive)]
    pub seconds: f64,
    /// How values are spelled: upper, dual, new-only, oldest or mixed (see load).
    #[arg(long, default_value_t = Format::Mixed)]
    pub format: Format,
    /// Print the result as one line of JSON; progress goes to standard error.
    #[arg(long)]
    pub json: bool,
}

/// How sandbox tenants are kept apart.
#[derive(Debug, Clone, Copy, ValueEnum)]
pub(crate) enum IsolationArg {
    /// A database for each tenant.
    Database,
    /// A schema for each tenant, up to 500 in one database.
    Schema,
    /// A database for each, but the last two share one by schema, and one tenant has a UUID for its id.
    Mixed,
}

#[derive(Debug, ClapArgs)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct SandboxArgs {
    #[command(subcommand)]
    pub command: Option<SandboxCommand>,
    /// Number of tenants.
    #[arg(long, default_value_t = 8, value_parser = clap::value_parser!(u32).range(1..=20_000))]
    pub tenants: u32,
    /// Rows of each tenant.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(0..=5_000_000))]
    pub balances: u32,
    /// How tenants are kept apart.
    #[arg(long, value_enum, default_value_t = IsolationArg::Mixed)]
    pub isolation: IsolationArg,
    /// Print one line of JSON instead of text: redis_url, tenant_service_url, api_key, config, dashboard_url, tenants.
    #[arg(long)]
    pub json: bool,
}

/// What can be done with a sandbox that runs.
#[derive(Debug, Subcommand)]
pub(crate) enum SandboxCommand {
    /// Break a tenant, for a drill: its password, its database (postgres: no connections) or its table (schema: it is renamed).
    Break {
        /// Its id.
        tenant: String,
        #[arg(value_parser = breakage, help = format!("What: {}", breakages()))]
        what: Breakage,
        #[command(flatten)]
        of: OfSandbox,
    },
    /// Undo whatever was broken of a tenant.
    Mend {
        /// Its id.
        tenant: String,
        #[command(flatten)]
        of: OfSandbox,
    },
}

/// Which sandbox.
#[derive(Debug, ClapArgs)]
pub(crate) struct OfSandbox {
    /// Its configuration file, as it was printed at its start; the environment variable BALANCE_SYNC_CONFIG does the same.
    #[arg(long, short, value_name = "FILE", env = "BALANCE_SYNC_CONFIG")]
    pub config: PathBuf,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct LoadArgs {
    /// Configuration file (TOML) of the workers; the environment variable BALANCE_SYNC_CONFIG does the same.
    #[arg(long, short, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// Mutations per second over all tenants.
    #[arg(long, default_value_t = 1000.0, value_parser = positive)]
    pub rate: f64,
    /// How long, in seconds; 0 = until interrupted.
    #[arg(long, default_value_t = 60.0, value_parser = not_negative)]
    pub seconds: f64,
    /// Tenants by id, separated by commas; all active ones if not given.
    #[arg(long, value_delimiter = ',', value_name = "ID")]
    pub tenant: Vec<String>,
    /// At most so many tenants.
    #[arg(long, value_parser = clap::value_parser!(u32).range(1..))]
    pub tenants: Option<u32>,
    /// At most so many balances of each tenant.
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    pub balances: u32,
    /// Share of the mutations, 0 to 1, that goes to 1 % of each tenant's balances.
    #[arg(long, default_value_t = 0.0, value_parser = share)]
    pub hot_key_share: f64,
    /// Time to live of the values, in seconds.
    #[arg(long, default_value_t = 3600, value_parser = clap::value_parser!(u32).range(1..))]
    pub ttl: u32,
    /// How values are spelled: upper (ledgers up to 4.0), dual (from 4.1), new-only (planned), oldest, or mixed: two
    /// releases at once, of which the older one leaves lowerCamel stale.
    #[arg(long, default_value_t = Format::Mixed)]
    pub format: Format,
    /// The same seed chooses the same balances.
    #[arg(long, default_value_t = 1)]
    pub seed: u64,
    /// Print the final figures as one line of JSON.
    #[arg(long)]
    pub json: bool,
    /// Allow a Redis that is not on this machine. Load overwrites real balances: never point it at a live ledger.
    #[arg(long)]
    pub allow_remote: bool,
}

fn breakage(text: &str) -> Result<Breakage, String> {
    Breakage::parse(text).ok_or_else(|| format!("must be one of {}", breakages()))
}

fn breakages() -> String {
    Breakage::ALL.map(|(name, _)| name).join(", ")
}

fn positive(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number > 0.0 => Ok(number),
        _ => Err("must be a number above 0".to_owned()),
    }
}

fn not_negative(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if number.is_finite() && number >= 0.0 => Ok(number),
        _ => Err("must be 0 or a number above".to_owned()),
    }
}

fn share(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(number) if (0.0..=1.0).contains(&number) => Ok(number),
        _ => Err("must be a number from 0 to 1".to_owned()),
    }
}

impl LoadArgs {
    /// How long; `None` = until interrupted.
    pub(crate) fn duration(&self) -> Option<Duration> {
        Some(self.seconds).filter(|number| *number > 0.0).map(seconds)
    }
}

/// Seconds given as a number.
pub(crate) fn seconds(number: f64) -> Duration {
    Duration::from_secs_f64(number.min(1e9))
}
