//! Whether the worker's threads move: a blocking call, or a panic in a thread's own runtime, silences all collectors on it
//! without a word to the supervisor.
//!
//! Each thread counts up by itself, and one task on another thread looks whether it does. Time is counted in looks and not
//! by the clock: where the whole process was stopped for a while, the watcher was stopped too.

use std::{
    sync::{
        Arc,
        atomic::{AtomicU32, AtomicU64, Ordering::Relaxed},
    },
    time::Duration,
};

use tokio_util::sync::CancellationToken;

use crate::{status::FleetStatus, tasks::Progress};

/// Between two beats, and between two looks.
pub const EVERY: Duration = Duration::from_secs(1);
/// Looks without a beat in between after which a thread counts as stalled.
const MISSES: u32 = 30;

/// The pulse of one thread. A cheap handle.
#[derive(Debug, Clone, Default)]
pub struct Pulse(Arc<Counts>);

#[derive(Debug, Default)]
struct Counts {
    beats: AtomicU64,
    misses: AtomicU32,
}

impl Pulse {
    /// Beats for as long as the thread does that runs this.
    pub async fn beat(self, every: Duration, progress: Progress) {
        loop {
            self.0.beats.fetch_add(1, Relaxed);
            progress.beat();
            tokio::time::sleep(every).await;
        }
    }

    /// Whether the thread was stalled at the last looks.
    #[must_use]
    pub fn is_stalled(&self) -> bool {
        self.0.misses.load(Relaxed) >= MISSES
    }
}

/// Looks at these pulses, says when one stops and when it is back, and tells `changed`.
pub async fn watch(
    pulses: Vec<Pulse>,
    every: Duration,
    fleet: Arc<FleetStatus>,
    changed: impl Fn(),
    stop: CancellationToken,
    progress: Progress,
) {
    let mut seen = vec![0; pulses.len()];
    let looking = async {
        loop {
            tokio::time::sleep(every).await;
            for (thread, (pulse, seen)) in pulses.iter().zip(&mut seen).enumerate() {
                let (was_still, beats) = (pulse.is_stalled(), pulse.0.beats.load(Relaxed));
                if std::mem::replace(seen, beats) == beats {
                    pulse.0.misses.fetch_add(1, Relaxed);
                } else {
                    pulse.0.misses.store(0, Relaxed);
                }
                match (was_still, pulse.is_stalled()) {
                    (false, true) => {
                        tracing::error!(thread, "a worker thread is stalled, its collectors move to others");
                    }
                    (true, false) => tracing::warn!(thread, "a worker thread moves again"),
                    _ => continue,
                }
                let still = pulses.iter().filter(|pulse| pulse.is_stalled()).count();
                fleet.still_threads.store(still as u64, Relaxed);
                changed();
            }
            progress.beat();
        }
    };
    let _: Option<()> = stop.run_until_cancelled(looking).await;
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::sync::atomic::AtomicUsize;

    use super::*;
    use crate::tasks::TaskName;

    fn progress() -> Progress {
        Progress::unobserved(TaskName::ThreadWatch)
    }

    #[tokio::test(start_paused = true)]
    async fn a_pulse_that_stops_is_noticed_and_one_that_returns_too() {
        let (fleet, stop) = (Arc::new(FleetStatus::default()), CancellationToken::new());
        let changes = Arc::new(AtomicUsize::new(0));
        let pulses = [Pulse::default(), Pulse::default()];
        let counted = Arc::clone(&changes);
        let watching = tokio::spawn(watch(
            pulses.to_vec(),
            EVERY,
            Arc::clone(&fleet),
            move || {
                counted.fetch_add(1, Relaxed);
            },
            stop.clone(),
            progress(),
        ));
        let first = tokio::spawn(pulses[0].clone().beat(EVERY / 2, progress()));
        let second = tokio::spawn(pulses[1].clone().beat(EVERY / 2, progress()));
        tokio::time::sleep(EVERY * MISSES * 3).await;
        assert_eq!((fleet.still_threads.load(Relaxed), changes.load(Relaxed)), (0, 0));

        second.abort();
        tokio::time::sleep(EVERY * (MISSES - 1)).await;
        assert!(!pulses[1].is_stalled());
        tokio::time::sleep(EVERY * 3).await;
        assert!(pulses[1].is_stalled() && !pulses[0].is_stalled());
        assert_eq!((fleet.still_threads.load(Relaxed), changes.load(Relaxed)), (1, 1));

        let again = tokio::spawn(pulses[1].clone().beat(EVERY / 2, progress()));
        tokio::time::sleep(EVERY * 2).await;
        assert_eq!((fleet.still_threads.load(Relaxed), changes.load(Relaxed)), (0, 2));
        stop.cancel();
        watching.await.unwrap();
        first.abort();
        again.abort();
    }
}
