//! The arguments of `status` and `probe`.

use balance_sync_view::overview::Verdict;
use clap::Args as ClapArgs;
use url::Url;

use super::values::{accepted, address, interval, patience};

/// How `status` ends.
pub(super) const STATUS_EXIT_CODES: &str = "Asks Redis and the tenant service; no worker's HTTP is needed.\n\n\
    Exit codes:\n  \
    0  healthy, or no worse than --accept\n  \
    1  something is behind, degraded, served by no worker, or needs an operator's attention\n  \
    2  can't tell: no live worker, Redis or the tenant service away, or the command failed";

/// How `probe` ends.
pub(super) const PROBE_EXIT_CODES: &str = "Needs no configuration and no token.\n\n\
    Exit codes:\n  \
    0  the answer's status is 2xx\n  \
    1  another one, or none\n  \
    2  the address can't be asked: no http:// or https://";

#[derive(Debug, ClapArgs)]
pub(crate) struct StatusArgs {
    /// Again every so many seconds, until interrupted; the exit code is then that of the last look.
    #[arg(
        long,
        short,
        value_name = "SECONDS",
        num_args = 0..=1,
        default_missing_value = "2",
        value_parser = interval
    )]
    pub watch: Option<f64>,
    /// Exit with 0 up to this verdict: healthy, attention, behind or degraded. It is printed all the same.
    #[arg(long, value_name = "VERDICT", default_value = "healthy", value_parser = accepted)]
    pub accept: Verdict,
    /// Look again until the verdict is accepted, for at most so many seconds; only the last look is printed.
    #[arg(long, value_name = "SECONDS", value_parser = patience, conflicts_with = "watch")]
    pub wait: Option<f64>,
    /// Print one line of JSON, as /api/v1/overview answers; with --watch one line each time.
    #[arg(long)]
    pub json: bool,
}

#[derive(Debug, ClapArgs)]
pub(crate) struct ProbeArgs {
    /// Its address, as http://balance-sync:8090/readyz.
    #[arg(value_name = "URL", value_parser = address)]
    pub url: Url,
    /// Ask again until the answer is 2xx, for at most so many seconds.
    #[arg(long, value_name = "SECONDS", value_parser = patience)]
    pub wait: Option<f64>,
}
