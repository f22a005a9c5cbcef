//! What was measured: each figure as often as its case was repeated, with median and spread, as a table and as JSON.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;

use anyhow::{Context, Result};
use serde_json::{Value, json};

use crate::{Options, rig};

/// Which way a figure must lie from its bound.
#[derive(Debug, Clone, Copy)]
enum Target {
    AtLeast(f64),
    AtMost(f64),
}

/// What the medians are held against.
const TARGETS: [(&str, Target); 26] = [
    ("drain_1.ratio_to_limit", Target::AtLeast(0.85)),
    ("drain_1.worker_to_postgres_cpu", Target::AtMost(0.5)),
    ("drain_100.ratio_to_limit", Target::AtLeast(0.8)),
    ("drain_100.rss_mb", Target::AtMost(60.0)),
    // The budget of one worker on one server: postgres.connections_per_server.
    ("drain_100.postgres_connections", Target::AtMost(64.0)),
    ("lag_10000.p50_ms", Target::AtMost(80.0)),
    ("lag_10000.p99_ms", Target::AtMost(250.0)),
    ("roles_2000.rows_per_s", Target::AtLeast(800.0)),
    ("roles_2000.p99_ms", Target::AtMost(10_000.0)),
    ("roles_2000.most_degraded", Target::AtMost(0.0)),
    ("idle_10000.worker_cpu_share", Target::AtMost(0.1)),
    ("idle_10000.redis_cpu_share", Target::AtMost(0.1)),
    ("idle_10000.postgres_connections", Target::AtMost(0.0)),
    ("idle_10000.steady_rss_mb", Target::AtMost(60.0)),
    ("idle_10000.steady_worker_cpu_share", Target::AtMost(0.003)),
    ("idle_10000.steady_redis_cpu_share", Target::AtMost(0.003)),
    ("idle_10000.first_write_ms", Target::AtMost(80.0)),
    ("idle_50000.ready_after_s", Target::AtMost(10.0)),
    ("idle_50000.steady_rss_mb", Target::AtMost(300.0)),
    ("start_100.first_settled_ms", Target::AtMost(120.0)),
    ("start_10000.first_settled_ms", Target::AtMost(1500.0)),
    ("noisy_backlog.quiet_p99_ratio", Target::AtMost(1.25)),
    ("noisy_dead_postgres.quiet_p99_ratio", Target::AtMost(1.25)),
    ("fairness.quiet_p99_ratio", Target::AtMost(1.25)),
    ("workers_2.drain_100_speedup", Target::AtLeast(1.0)),
    ("backlog_1m.cost_ratio_to_10k", Target::AtMost(1.25)),
];

/// All figures of a run, by name: `case.figure`.
#[derive(Debug, Default)]
pub(crate) struct Figures {
    values: BTreeMap<String, Vec<f64>>,
    /// In the order in which they first came.
    order: Vec<String>,
    /// What was chosen on the way, e.g. the number of lanes of the limit.
    notes: BTreeMap<String, Value>,
}

impl Figures {
    /// Adds one measurement.
    pub(crate) fn add(&mut self, case: &str, figure: &str, value: f64) {
        let name = format!("{case}.{figure}");
        if !self.values.contains_key(&name) {
            self.order.push(name.clone());
        }
        self.values.entry(name).or_default().push(value);
    }

    /// Notes a circumstance for the report.
    pub(crate) fn note(&mut self, name: &str, value: impl Into<Value>) {
        self.notes.insert(name.to_owned(), value.into());
    }

    /// The median of a figure, if it was measured.
    pub(crate) fn median(&self, name: &str) -> Option<f64> {
        self.values.get(name).map(|values| quantile(values, 0.5))
    }

    /// The table for people.
    pub(crate) fn table(&self) -> String {
        let mut table =
            format!("{:<44} {:>12} {:>25} {:>3}  target\n", "figure", "median", "smallest – largest", "n");
        let mut case = "";
        for name in &self.order {
            let values = &self.values[name];
            let own = name.split('.').next().unwrap_or_default();
            if own != case {
                table.push('\n');
                case = own;
            }
            let spread = format!("{} – {}", number(quantile(values, 0.0)), number(quantile(values, 1.0)));
            let median = quantile(values, 0.5);
            let target = match verdict(name, median) {
                Some((text, true)) => format!("{text}  met"),
                Some((text, false)) => format!("{text}  MISSED"),
                None => String::new(),
            };
            let _ = writeln!(
                table,
                "{name:<44} {:>12} {spread:>25} {:>3}  {target}",
                number(median),
                values.len()
            );
        }
        table
    }

    /// Writes the report.
    pub(crate) fn write(&self, options: &Options, failed: &[&str]) -> Result<()> {
        let medians: BTreeMap<&String, f64> =
            self.values.iter().map(|(name, values)| (name, round(quantile(values, 0.5)))).collect();
        let targets: BTreeMap<&str, Value> = TARGETS
            .iter()
            .filter_map(|(name, _)| {
                let median = self.median(name)?;
                let (text, met) = verdict(name, median)?;
                Some((*name, json!({ "target": text, "median": round(median), "met": met })))
            })
            .collect();
        let ratios: BTreeMap<&&String, &f64> =
            medians.iter().filter(|(name, _)| name.contains("ratio") || name.contains("speedup")).collect();
        let report = json!({
            "settings": {
                "repeat": options.repeat,
                "scale": options.scale,
                "only": options.only,
                "set": options.set,
                "debug_build": cfg!(debug_assertions),
                "postgres": rig::postgres_settings().into_iter().collect::<BTreeMap<_, _>>(),
                "notes": self.notes,
            },
            "versions": versions(),
            "failed": failed,
            "figures": self.values,
            "medians": medians,
            "ratios": ratios,
            "targets": targets,
        });
        let path = &options.report;
        if let Some(folder) = path.parent() {
            std::fs::create_dir_all(folder).with_context(|| format!("making {}", folder.display()))?;
        }
        let text = serde_json::to_string_pretty(&report)? + "\n";
        std::fs::write(path, text).with_context(|| format!("writing {}", path.display()))
    }
}

fn verdict(name: &str, median: f64) -> Option<(String, bool)> {
    let (_, target) = TARGETS.iter().find(|(own, _)| *own == name)?;
    Some(match *target {
        Target::AtLeast(bound) => (format!("≥ {bound}"), median >= bound),
        Target::AtMost(bound) => (format!("≤ {bound}"), median <= bound),
    })
}

fn versions() -> Value {
    let said = |program: &str, argument: &str| {
        let output = Command::new(program).arg(argument).output().ok()?;
        Some(String::from_utf8_lossy(&output.stdout).trim().to_owned())
    };
    let redis = balance_sync_sandbox::find::redis_server().ok();
    let postgres = balance_sync_sandbox::find::postgres_programs().ok();
    let model = std::fs::read_to_string("/proc/cpuinfo").ok().and_then(|text| {
        let line = text.lines().find(|line| line.starts_with("model name"))?;
        Some(line.split_once(':')?.1.trim().to_owned())
    });
    json!({
        "balance_sync": env!("CARGO_PKG_VERSION"),
        "redis": redis.and_then(|program| said(&program.display().to_string(), "--version")),
        "postgres": postgres.and_then(|programs| said(&programs.postgres.display().to_string(), "--version")),
        "kernel": std::fs::read_to_string("/proc/sys/kernel/osrelease").ok().map(|text| text.trim().to_owned()),
        "cpu": model,
        "cores": std::thread::available_parallelism().map_or(0, std::num::NonZero::get),
    })
}

/// The value at this part of the sorted values, interpolated; not a number without any.
pub(crate) fn quantile(values: &[f64], part: f64) -> f64 {
    let mut sorted = values.to_vec();
    sorted.sort_by(f64::total_cmp);
    let Some(last) = sorted.len().checked_sub(1) else { return f64::NAN };
    let at = part * last as f64;
    let (below, above) = (sorted[at.floor() as usize], sorted[at.ceil() as usize]);
    below + (above - below) * at.fract()
}

fn round(value: f64) -> f64 {
    (value * 1000.0).round() / 1000.0
}

fn number(value: f64) -> String {
    match value.abs() {
        large if large >= 1000.0 => format!("{value:.0}"),
        medium if medium >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.3}"),
    }
}
