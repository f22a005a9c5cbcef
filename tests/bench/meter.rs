//! CPU time and memory of processes, as the kernel counts them.

use std::collections::HashMap;
use std::time::Instant;

use anyhow::{Context, Result};

/// Microseconds of one tick in `/proc/<pid>/stat`: Linux shows them at 100 Hz on every common architecture.
const TICK_US: f64 = 10_000.0;

/// Whose time is counted.
#[derive(Debug, Clone, Default)]
pub(crate) struct Meter {
    /// Process ids of the workers.
    pub(crate) workers: Vec<u32>,
    /// Process id of the postmaster; its sessions and helpers are counted with it.
    pub(crate) postgres: u32,
    /// Process id of Redis.
    pub(crate) redis: u32,
}

/// CPU time used so far, in microseconds.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Usage {
    pub(crate) at: Instant,
    pub(crate) workers: f64,
    pub(crate) postgres: f64,
    pub(crate) redis: f64,
}

impl Meter {
    /// Reads all of them.
    pub(crate) fn read(&self) -> Result<Usage> {
        let mut workers = 0.0;
        for pid in &self.workers {
            workers += own(*pid)?;
        }
        Ok(Usage { at: Instant::now(), workers, postgres: tree(self.postgres)?, redis: own(self.redis)? })
    }
}

impl Usage {
    /// What was used since an earlier reading.
    pub(crate) fn since(&self, earlier: &Self) -> Spent {
        Spent {
            seconds: (self.at - earlier.at).as_secs_f64(),
            workers: self.workers - earlier.workers,
            postgres: self.postgres - earlier.postgres,
            redis: self.redis - earlier.redis,
        }
    }
}

/// CPU time between two readings, in microseconds, and the time between them.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Spent {
    pub(crate) seconds: f64,
    pub(crate) workers: f64,
    pub(crate) postgres: f64,
    pub(crate) redis: f64,
}

/// CPU time of a process by the scheduler's count, which is in nanoseconds: a short drain takes few ticks. Threads that
/// have ended are not in it; neither the worker nor the servers end any while they work.
fn own(pid: u32) -> Result<f64> {
    let mut sum = 0.0;
    let tasks = std::fs::read_dir(format!("/proc/{pid}/task")).with_context(|| format!("process {pid}"))?;
    for task in tasks.flatten() {
        let text = std::fs::read_to_string(task.path().join("schedstat")).unwrap_or_default();
        sum += text.split_whitespace().next().and_then(|nanos| nanos.parse::<f64>().ok()).unwrap_or(0.0);
    }
    Ok(sum / 1000.0)
}

struct Stat {
    parent: u32,
    /// User and system time of children that have ended and were waited for.
    reaped: f64,
}

fn stat(pid: u32) -> Result<Stat> {
    let text =
        std::fs::read_to_string(format!("/proc/{pid}/stat")).with_context(|| format!("process {pid}"))?;
    parse(&text).with_context(|| format!("/proc/{pid}/stat: {text}"))
}

/// The fields after the name, which may hold anything and stands in brackets: state, parent, …, and as 14th
/// and 15th cutime and cstime.
fn parse(text: &str) -> Option<Stat> {
    let fields: Vec<&str> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let ticks = |at: usize| fields.get(at)?.parse::<f64>().ok();
    Some(Stat { parent: fields.get(1)?.parse().ok()?, reaped: (ticks(13)? + ticks(14)?) * TICK_US })
}

/// A process with all its descendants, those that have ended included.
fn tree(root: u32) -> Result<f64> {
    let mut all = HashMap::new();
    for entry in std::fs::read_dir("/proc")?.flatten() {
        if let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<u32>().ok())
            // It may have ended meanwhile; then its parent counts it.
            && let Ok(stat) = stat(pid)
        {
            all.insert(pid, stat);
        }
    }
    let belongs = |mut pid: u32| {
        while pid != root {
            match all.get(&pid) {
                Some(stat) if stat.parent > 1 => pid = stat.parent,
                _ => return false,
            }
        }
        true
    };
    let all = all.iter().filter(|(pid, _)| belongs(**pid));
    // One that ends just now is missing in this reading alone.
    Ok(all.map(|(pid, stat)| own(*pid).unwrap_or(0.0) + stat.reaped).sum())
}

/// Resident memory in MB (10^6 bytes): now, and the most there has been.
pub(crate) fn memory_mb(pid: u32) -> Result<(f64, f64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/status"))?;
    let field = |name: &str| {
        let line = text.lines().find(|line| line.starts_with(name))?;
        line.split_whitespace().nth(1)?.parse::<f64>().ok().map(|kib| kib * 1024.0 / 1e6)
    };
    Some((field("VmRSS:"), field("VmHWM:")))
        .and_then(|(now, most)| Some((now?, most?)))
        .with_context(|| format!("/proc/{pid}/status has no VmRSS"))
}
