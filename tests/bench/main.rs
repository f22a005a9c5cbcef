//! `make bench`: what a worker costs and how fast it is, measured from outside on private servers.
//!
//! The worker is the release binary as a process of its own. What it is compared with is measured in the same run: the
//! speed of a machine drifts, so figures of different runs say little about each other. What the cases are and what was
//! found is in `docs/performance.md`.

#![allow(
    clippy::print_stdout,
    clippy::print_stderr,
    reason = "the table is the result, and progress goes to stderr"
)]

mod drain;
mod figures;
mod idle;
mod lag;
mod limit;
mod load;
mod meter;
mod noisy;
mod rig;
mod roles;
mod scaling;
mod statement;
mod worker;

use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use clap::Parser;

use crate::figures::Figures;

/// The cases in the order in which they run.
const CASES: [&str; 16] = [
    "drain_1",
    "drain_100",
    "formats",
    "lag",
    "roles_2000",
    "idle_1000",
    "idle_10000",
    "idle_50000",
    "start_100",
    "start_10000",
    "noisy_backlog",
    "noisy_dead_postgres",
    "fairness",
    "workers",
    "backlog",
    "statement",
];

/// Measures a worker. Needs a release build of `balance-sync` beside this program.
#[derive(Debug, Clone, Parser)]
#[command(name = "bench", version)]
pub(crate) struct Options {
    /// Only these cases, separated by commas.
    #[arg(long, value_delimiter = ',')]
    only: Vec<String>,
    /// How often each case is measured; the median counts.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u32).range(1..=100))]
    repeat: u32,
    /// Sizes and durations times this: 0.1 for a quick look. Targets hold for 1.
    #[arg(long, default_value_t = 1.0)]
    scale: f64,
    /// A setting of the workers that is not the default: `collector.batch_size=1000`. May be repeated.
    #[arg(long, value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Where the report goes.
    #[arg(long, default_value = "target/bench/report.json")]
    report: PathBuf,
}

impl Options {
    /// A size at this scale, at least `least`.
    fn scaled(&self, size: usize, least: usize) -> usize {
        ((size as f64 * self.scale) as usize).max(least)
    }

    /// A number of seconds at this scale, at least 2.
    fn seconds(&self, seconds: f64) -> f64 {
        (seconds * self.scale).max(2.0)
    }

    /// The settings as environment variables.
    fn environment(&self) -> Result<Vec<(String, String)>> {
        self.set
            .iter()
            .map(|setting| {
                let (key, value) = setting
                    .split_once('=')
                    .with_context(|| format!("--set {setting}: should be KEY=VALUE"))?;
                Ok((variable(key), value.to_owned()))
            })
            .collect()
    }
}

/// The environment variable of a configuration key.
fn variable(key: &str) -> String {
    format!("BALANCE_SYNC__{}", key.to_uppercase().replace('.', "__"))
}

fn main() -> Result<()> {
    let options = Options::parse();
    if !(options.scale > 0.0 && options.scale <= 10.0) {
        bail!("--scale {}: should be above 0 and at most 10", options.scale);
    }
    if let Some(unknown) = options.only.iter().find(|name| !CASES.contains(&name.as_str())) {
        bail!("--only {unknown}: there is no such case; there are {}", CASES.join(", "));
    }
    if cfg!(debug_assertions) {
        eprintln!("this is a debug build: the figures say nothing");
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?;
    runtime.block_on(run(&options))
}

async fn run(options: &Options) -> Result<()> {
    let mut figures = Figures::default();
    let mut failed = Vec::new();
    let begun = Instant::now();
    for case in CASES {
        if !options.only.is_empty() && !options.only.iter().any(|name| name == case) {
            continue;
        }
        eprintln!("[{:4.0} s] {case}", begun.elapsed().as_secs_f64());
        let done = match case {
            "drain_1" => drain::one_tenant(options, &mut figures).await,
            "drain_100" => drain::hundred_tenants(options, &mut figures).await,
            "formats" => drain::formats(options, &mut figures).await,
            "lag" => lag::run(options, &mut figures).await,
            "roles_2000" => roles::run(options, &mut figures).await,
            "idle_1000" => idle::run(options, &mut figures, 1_000).await,
            "idle_10000" => idle::run(options, &mut figures, 10_000).await,
            "idle_50000" => idle::run(options, &mut figures, 50_000).await,
            "start_100" => idle::start(options, &mut figures, 100).await,
            "start_10000" => idle::start(options, &mut figures, 10_000).await,
            "noisy_backlog" => noisy::backlog(options, &mut figures).await,
            "noisy_dead_postgres" => noisy::dead_postgres(options, &mut figures).await,
            "fairness" => noisy::fairness(options, &mut figures).await,
            "workers" => scaling::workers(options, &mut figures).await,
            "statement" => statement::run(options, &mut figures).await,
            _ => scaling::backlog(options, &mut figures).await,
        };
        // One case that can't be measured must not take the others' figures with it.
        if let Err(error) = done {
            eprintln!("{case} failed: {error:#}");
            failed.push(case);
        }
        figures.write(options, &failed)?;
    }
    println!("{}", figures.table());
    eprintln!("[{:4.0} s] written to {}", begun.elapsed().as_secs_f64(), options.report.display());
    if !failed.is_empty() {
        bail!("these cases failed: {}", failed.join(", "));
    }
    Ok(())
}
