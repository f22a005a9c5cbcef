//! The arguments of `handover`.

use std::path::PathBuf;

use clap::{Args as ClapArgs, Subcommand};

use super::values::patience;

/// How `handover` ends.
pub(super) const HANDOVER_EXIT_CODES: &str = "The rows are only read. The tenant stays paused until `tenants resume`.\n\n\
    Exit codes:\n  \
    0  the statement was signed: the rows are the truth\n  \
    1  refused, nothing was signed; or signed with findings\n  \
    2  something could not be read, or the command is wrong";

/// How `handover verify` ends.
pub(super) const HANDOVER_VERIFY_EXIT_CODES: &str = "Exit codes:\n  \
    0  the signature is valid and the rows are those of the statement\n  \
    1  rows differ\n  \
    2  the file, its signature or the key is not valid, or the rows can't be read";

#[derive(Debug, ClapArgs)]
pub(crate) struct HandoverArgs {
    /// The tenant's id.
    #[arg(long, value_name = "ID", required = true)]
    pub tenant: Option<String>,
    /// The private key, as `handover keygen` made it.
    #[arg(long, value_name = "FILE", required = true)]
    pub key: Option<PathBuf>,
    /// Where the statement is written; must not exist.
    #[arg(long, value_name = "FILE", required = true)]
    pub out: Option<PathBuf>,
    /// Why, for the log of actions and the statement.
    #[arg(long, value_name = "TEXT", required = true)]
    pub note: Option<String>,
    /// Sign although findings are open, or the trail can't be read. The statement lists them, and doesn't call the rows the truth.
    #[arg(long)]
    pub with_findings: bool,
    /// Wait at most so many seconds until all that is scheduled is written, and as long until all workers have paused.
    #[arg(long, value_name = "SECONDS", default_value_t = 60.0, value_parser = patience)]
    pub drain: f64,
    /// Rows that are asked of Postgres per second.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub postgres_rate: u32,
    /// Values that are asked of Redis per second.
    #[arg(long, value_name = "N", default_value_t = 100_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub redis_rate: u32,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
    #[command(subcommand)]
    pub command: Option<HandoverCommand>,
}

/// What else there is for a handover.
#[derive(Debug, Subcommand)]
pub(crate) enum HandoverCommand {
    /// Make a key: FILE for who signs (mode 0600), FILE.pub for who verifies.
    Keygen {
        /// The file of the private key; neither it nor FILE.pub may exist.
        file: PathBuf,
    },
    /// Check a statement's signature, and compare its rows with those of a database.
    #[command(after_help = HANDOVER_VERIFY_EXIT_CODES)]
    Verify(HandoverVerifyArgs),
}

#[derive(Debug, ClapArgs)]
pub(crate) struct HandoverVerifyArgs {
    /// The statement.
    pub file: PathBuf,
    /// The public key of who signed it, as `handover keygen` made it.
    #[arg(long, value_name = "FILE")]
    pub public_key: PathBuf,
    /// Another database than the tenant's present one, such as postgres://role@host/name; the environment variable keeps its
    /// password off the list of processes.
    #[arg(long, value_name = "URL", env = "HANDOVER_DATABASE_URL", hide_env_values = true)]
    pub database_url: Option<String>,
    /// The schema there, if it is not the role's own.
    #[arg(long, value_name = "NAME", requires = "database_url")]
    pub schema: Option<String>,
    /// Check the signature only.
    #[arg(long, conflicts_with_all = ["database_url", "schema"])]
    pub signature_only: bool,
    /// Rows that are asked of Postgres per second.
    #[arg(long, value_name = "N", default_value_t = 50_000, value_parser = clap::value_parser!(u32).range(1..))]
    pub postgres_rate: u32,
    /// Name at most so many rows.
    #[arg(long, value_name = "N", default_value_t = 100)]
    pub show: usize,
    /// Print the result as one line of JSON.
    #[arg(long)]
    pub json: bool,
}
