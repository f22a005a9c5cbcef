//! The verdict on the workers: too few, dead, different ones, and clocks that differ.

use std::{collections::BTreeMap, time::Duration};

use super::judge::{CLOCK_TOLERANCE_SECONDS, NAMED, listed};
use crate::{
    reader::{FleetView, ForeignWorker},
    rows::{DeadWorker, WorkerRow, at},
};

impl FleetView {
    /// What is missing of the workers that there should be, what the tenant service doesn't answer, and in what the workers differ.
    pub(super) fn redundancy(&self) -> Vec<String> {
        let mut reasons = Vec::new();
        let live: Vec<&WorkerRow> =
            self.workers.iter().filter(|worker| worker.live && !worker.draining).collect();
        let expected = self.objectives.workers;
        let alive = live.len() + self.unreadable_workers.len();
        if alive < expected && self.redis_error.is_none() && self.writes_refused.is_none() {
            reasons.push(format!("{alive} of {expected} workers are alive (worker.expected)."));
        }
        let unreadable = &self.unreadable_workers;
        if !unreadable.is_empty() {
            reasons.push(format!(
                "What {} report{} can't be read: {}. Tenants that no other worker serves are shown as not served.",
                if unreadable.len() == 1 { "a live worker" } else { "live workers" },
                if unreadable.len() == 1 { "s" } else { "" },
                listed(unreadable.iter().map(String::as_str))
            ));
        }
        let failing =
            |worker: &&&WorkerRow| matches!(worker.tenant_service.state.as_str(), "failing" | "breaker_open");
        let unanswered: Vec<&&WorkerRow> = live.iter().filter(failing).collect();
        if let Some(worker) = unanswered.first() {
            let since = worker.tenant_service.last_success_at.as_deref().unwrap_or("its start");
            reasons.push(format!(
                "The tenant service has not answered {} since {since}: tenants that were added, removed or moved meanwhile are not known.",
                listed(unanswered.iter().map(|worker| worker.name.as_str()))
            ));
        }
        reasons.extend(self.dead_workers.iter().take(NAMED).map(died));
        match self.dead_workers.len().saturating_sub(NAMED) {
            0 => {}
            1 => reasons.push("1 more worker has died.".to_owned()),
            more => reasons.push(format!("{more} more workers have died.")),
        }
        reasons.extend(clock_jump(&live));
        reasons.extend(clocks(&live));
        reasons.extend(clocks_of_postgres(&live));
        let mut values: BTreeMap<&str, BTreeMap<&str, Vec<&str>>> = BTreeMap::new();
        for worker in &live {
            let version = ("version", worker.version.as_str());
            let settings = worker.settings.iter().map(|(name, value)| (name.as_str(), value.as_str()));
            for (name, value) in settings.chain([version]) {
                values.entry(name).or_default().entry(value).or_default().push(&worker.name);
            }
        }
        for (name, values) in values.into_iter().filter(|(_, values)| values.len() > 1) {
            let each = values
                .into_iter()
                .map(|(value, workers)| format!("{value} on {}", listed(workers.into_iter())));
            reasons.push(format!("Workers differ in {name}: {}.", each.collect::<Vec<_>>().join("; ")));
        }
        reasons.extend(self.foreign_workers.iter().take(NAMED).map(|foreign| other_settings(foreign, &live)));
        reasons
    }
}

/// That a worker of another group serves the same tenants, and by what it differs.
fn other_settings(foreign: &ForeignWorker, live: &[&WorkerRow]) -> String {
    let ours = live.first().map(|worker| &worker.settings);
    let differing = foreign.settings.iter().filter_map(|(name, theirs)| {
        let ours = ours?.get(name).filter(|ours| *ours != theirs)?;
        Some(format!("{name} {theirs} there, {ours} here"))
    });
    let differing = differing.collect::<Vec<_>>().join("; ");
    format!(
        "Worker {} serves {} of these tenants with other settings, and neither counts on the other{}{differing}.",
        foreign.name,
        foreign.tenants,
        if differing.is_empty() { "" } else { ": " }
    )
}

/// That a worker died, and who serves its tenants.
fn died(worker: &DeadWorker) -> String {
    let DeadWorker { name, last_seen_at, tenants, unserved, .. } = worker;
    let age = humantime::format_duration(Duration::from_secs(worker.age_seconds as u64));
    let heirs = listed(worker.taken_over_by.iter().map(String::as_str));
    let (of, were) = if *tenants == 1 { ("tenant", "was") } else { ("tenants", "were") };
    let what = match (*tenants, *unserved) {
        (0, _) => "it served no tenant".to_owned(),
        (_, 0) if heirs.is_empty() => format!("its {tenants} {of} {were} removed since"),
        (_, 0) => format!("its {tenants} {of} {were} taken over by {heirs}"),
        (_, unserved) if heirs.is_empty() => format!("its {unserved} {of} are served by no live worker"),
        (_, unserved) => {
            format!("{unserved} of its {tenants} {of} are served by no live worker, the others by {heirs}")
        }
    };
    format!("Worker {name} has died: last sign of life {last_seen_at}, {age} ago; {what}.")
}

/// Which Postgres servers' clocks differ from Redis's by more than [`CLOCK_TOLERANCE_SECONDS`], in one sentence; `None` without any.
/// Of what several workers have measured of a server, the least counts: a clock of theirs that was just set right makes no
/// difference that isn't there.
fn clocks_of_postgres(live: &[&WorkerRow]) -> Option<String> {
    let mut ahead: BTreeMap<&str, f64> = BTreeMap::new();
    for worker in live {
        let Some(of_redis) = worker.clock_offset_seconds else { continue };
        for server in &worker.postgres {
            let Some(of_server) = server.clock_ahead_ms else { continue };
            let differs = of_redis - of_server as f64 / 1e3;
            let least = ahead.entry(server.server.as_str()).or_insert(differs);
            if differs.abs() < least.abs() {
                *least = differs;
            }
        }
    }
    let mut off: Vec<(&str, f64)> =
        ahead.into_iter().filter(|(_, differs)| differs.abs() > CLOCK_TOLERANCE_SECONDS).collect();
    off.sort_by(|a, b| b.1.abs().total_cmp(&a.1.abs()));
    if off.is_empty() {
        return None;
    }
    let each = off.iter().take(NAMED).map(|(server, differs)| {
        format!("{server} {:.1} s {}", differs.abs(), if *differs > 0.0 { "ahead" } else { "behind" })
    });
    let more = match off.len().saturating_sub(NAMED) {
        0 => String::new(),
        more => format!(", and {more} more"),
    };
    Some(format!(
        "Clocks of Postgres servers differ from Redis's: {}{more}. Times in their rows are wrong by as much: synchronise the clocks.",
        each.collect::<Vec<_>>().join(", ")
    ))
}

/// That Redis's clock went back lately, in one sentence: the largest jump that a worker has noticed; `None` without any.
fn clock_jump(live: &[&WorkerRow]) -> Option<String> {
    let jumps = live.iter().filter_map(|worker| Some((worker.clock_jump?, worker.name.as_str())));
    let (jump, worker) = jumps.max_by(|a, b| a.0.seconds.total_cmp(&b.0.seconds))?;
    Some(format!(
        "Redis's clock went back by {:.1} s at {} (noticed by worker {worker}). Members that were scheduled before are made due, lest \
         they wait for it. Let the clock be slewed, not set.",
        jump.seconds,
        at(jump.at)
    ))
}

/// Which clocks differ by more than [`CLOCK_TOLERANCE_SECONDS`], in one sentence; `None` without any.
fn clocks(live: &[&WorkerRow]) -> Option<String> {
    let known: Vec<(&str, f64)> =
        live.iter().filter_map(|worker| Some((worker.name.as_str(), worker.clock_offset_seconds?))).collect();
    let (earliest, latest) = (
        *known.iter().min_by(|a, b| a.1.total_cmp(&b.1))?,
        *known.iter().max_by(|a, b| a.1.total_cmp(&b.1))?,
    );
    let spread = latest.1 - earliest.1;
    let off: Vec<&(&str, f64)> =
        known.iter().filter(|(_, offset)| offset.abs() > CLOCK_TOLERANCE_SECONDS).collect();
    let way = |offset: f64| if offset > 0.0 { "ahead" } else { "behind" };
    let what = if off.len() == known.len() && off.len() > 1 && spread <= CLOCK_TOLERANCE_SECONDS {
        let middle = known.iter().map(|(_, offset)| offset).sum::<f64>() / known.len() as f64;
        format!(
            "Redis's clock is {:.1} s {} those of all {} workers, which agree",
            middle.abs(),
            if middle > 0.0 { "behind" } else { "ahead of" },
            known.len()
        )
    } else if off.is_empty() && spread > CLOCK_TOLERANCE_SECONDS {
        format!("The clocks of workers {} and {} differ by {spread:.1} s", latest.0, earliest.0)
    } else if off.is_empty() {
        return None;
    } else {
        let each = off.iter().enumerate().map(|(at, (name, offset))| {
            let is = if at == 0 { " is" } else { "" };
            format!("that of worker {name}{is} {:.1} s {}", offset.abs(), way(*offset))
        });
        format!("Clocks differ from Redis's: {}", each.take(NAMED).collect::<Vec<_>>().join(", "))
    };
    Some(format!("{what}. Times and ages are shown wrong by as much: synchronise the clocks."))
}
