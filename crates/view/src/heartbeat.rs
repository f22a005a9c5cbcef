//! The line that a worker logs once a minute, whatever happens: that it lives, and its numbers.

use std::sync::{Arc, PoisonError, atomic::Ordering::Relaxed};

use balance_sync_engine::outcome::Outcome;
use balance_sync_fleet::status::{ShadowReport, TenantState, WorkerMode};

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
        if fleet.mode() == WorkerMode::Shadow {
            log_shadow(&self.local, due, oldest);
            return;
        }
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

/// Logs what a shadow sees and has found.
fn log_shadow(local: &LocalWorker, due: u64, oldest_due_ms: u64) {
    let fleet = &local.fleet;
    let mut sum = ShadowReport::default();
    let (mut compared, mut unread, mut shortest_life_ms) = (0_u64, 0_u64, u64::MAX);
    fleet.each(|status| {
        shortest_life_ms = shortest_life_ms.min(status.shortest_life_ms.load(Relaxed));
        let Some(report) = status.shadow() else { return };
        sum.would_write += report.would_write;
        sum.left_behind += report.left_behind;
        sum.lost += report.lost;
        let lag = report.lag_p99_seconds.into_iter().chain(sum.lag_p99_seconds).reduce(f64::max);
        sum.lag_p99_seconds = lag;
        compared += u64::from(report.compared_at.is_some());
        unread += u64::from(report.error.is_some());
    });
    let redis = fleet.redis_server.lock().unwrap_or_else(PoisonError::into_inner).clone().unwrap_or_default();
    tracing::info!(
        tenants = fleet.count(),
        compared,
        unread,
        due,
        oldest_due_ms,
        would_write = sum.would_write,
        left_behind = sum.left_behind,
        lost = sum.lost,
        lag_p99_ms = sum.lag_p99_seconds.map(|lag| (lag * 1e3) as u64),
        shortest_life_ms = (shortest_life_ms < u64::MAX).then_some(shortest_life_ms),
        redis_policy = redis.policy,
        redis_used_bytes = redis.used_bytes,
        redis_max_bytes = redis.max_bytes,
        redis_evicted_keys = redis.evicted_keys,
        ready = fleet.is_ready(),
        redis = local.redis_error().unwrap_or_else(|| "ok".to_owned()),
        "shadow heartbeat"
    );
}
