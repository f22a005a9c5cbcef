//! The line that a worker logs once a minute, whatever happens: that it lives, and its numbers.

use std::sync::{Arc, atomic::Ordering::Relaxed};

use balance_sync_engine::outcome::Outcome;
use balance_sync_fleet::status::TenantState;

use crate::local_worker::LocalWorker;

/// The heartbeat of one worker.
pub struct Heartbeat {
    local: Arc<LocalWorker>,
    before: Counted,
}

/// What is counted from one beat to the next.
#[derive(Debug, Clone, Copy, Default)]
struct Counted {
    rows: u64,
    failures: u64,
}

impl Heartbeat {
    pub(crate) fn new(local: Arc<LocalWorker>) -> Self {
        Self { local, before: Counted::default() }
    }

    /// Logs the worker's numbers: as they are now, and counted since the last call.
    pub fn log(&mut self) {
        let fleet = &self.local.fleet;
        let mut states = [0_u64; TenantState::ALL.len()];
        let mut counted = Counted::default();
        let (mut due, mut oldest, mut quarantined, mut unsampled) = (0, 0, 0, 0_u64);
        fleet.each(|status| {
            let state = status.state().state;
            states[TenantState::ALL.iter().position(|known| *known == state).unwrap_or_default()] += 1;
            counted.rows += status.outcomes[Outcome::Updated].load(Relaxed);
            counted.failures += status.batch_failures.load(Relaxed);
            due += status.due.load(Relaxed);
            oldest = oldest.max(status.oldest_due_age_ms.load(Relaxed));
            match status.quarantine_entries.load(Relaxed) {
                u64::MAX => unsampled += 1,
                entries => quarantined += entries,
            }
        });
        let before = std::mem::replace(&mut self.before, counted);
        let states = TenantState::ALL.iter().zip(states).filter(|(_, count)| *count > 0);
        let states: Vec<String> = states.map(|(state, count)| format!("{count} {}", state.name())).collect();
        tracing::info!(
            tenants = fleet.count(),
            states = states.join(", "),
            due,
            oldest_due_ms = oldest,
            // Tenants may have left since, with what was counted of them.
            rows = counted.rows.saturating_sub(before.rows),
            failures = counted.failures.saturating_sub(before.failures),
            quarantined,
            unsampled,
            workers = fleet.workers.load(Relaxed),
            ready = fleet.is_ready(),
            redis = self.local.redis_error().unwrap_or_else(|| "ok".to_owned()),
            "heartbeat"
        );
    }
}
