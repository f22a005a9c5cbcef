//! The threads that run collectors, and the spawner that spreads collectors over them.

use std::{sync::Arc, time::Duration};

use actix::prelude::*;
use balance_sync_schedule::{Endpoint, ErrorClass, Link, ScheduleError, ScheduleOptions, Schedules};
use balance_sync_tenants::{KeyForm, other_key_space};
use tokio_util::sync::CancellationToken;

use super::{
    supervisor::Spawner,
    thread_health::{self, Pulse},
};
use crate::{
    backends::{
        PostgresSink, Prober, RedisQueue, StandbyWatch, Surveyor, TenantManager, Tracker, Watchers,
        failover::Reports,
    },
    pipeline::{Collector, CollectorActor, CollectorOptions, Incarnation},
    status::FleetStatus,
    tasks::TaskName,
};

/// Longest time for a thread to start.
const STARTS_WITHIN: Duration = Duration::from_secs(10);

/// A thread with what its collectors share.
pub(super) struct CollectorThread {
    arbiter: ArbiterHandle,
    link: Link,
    watchers: Watchers,
    pub(super) pulse: Pulse,
}

impl CollectorThread {
    /// Starts a thread with its probes and its pulse, which run until `stop`. `probe_interval` is the longest time between two
    /// looks at a schedule; with `tracks` idle ones are left to Redis.
    pub(super) fn start(
        thread: usize,
        redis: &Endpoint,
        probe_interval: Duration,
        tracks: bool,
        fleet: &FleetStatus,
        stop: &CancellationToken,
    ) -> Result<(Self, Arbiter), ScheduleError> {
        let link = Link::to(redis.clone(), Arc::clone(&fleet.redis));
        let arbiter = Arbiter::new();
        // The probes run on the thread whose collectors they wake.
        let (sender, receiver) = std::sync::mpsc::sync_channel(1);
        let (probe_link, pulse) = (link.clone(), Pulse::default());
        let (beating, tasks, stop) = (pulse.clone(), fleet.tasks.clone(), stop.clone());
        let endpoint = redis.clone();
        let tracking = tracks.then(|| Arc::clone(&fleet.tracking));
        arbiter.spawn_fn(move || {
            let surveyor = Surveyor::new(probe_link.clone());
            let prober = Prober::start(probe_link.clone(), probe_interval, &tasks, thread, stop.clone());
            let standby = StandbyWatch::start(probe_link, probe_interval, &tasks, thread, stop.clone());
            let tracker = match tracking {
                Some(status) => {
                    Tracker::start(endpoint, probe_interval, status, &tasks, thread, stop.clone())
                }
                None => Tracker::off(),
            };
            let _ = sender.send(Watchers { tracker, prober, standby, surveyor });
            let beat = move |progress| beating.clone().beat(thread_health::EVERY, progress);
            tasks.keep(TaskName::ThreadPulse, Some(thread), thread_health::EVERY, stop, beat);
        });
        let Ok(watchers) = receiver.recv_timeout(STARTS_WITHIN) else {
            return Err(ScheduleError {
                operation: "start",
                class: ErrorClass::Unexpected,
                message: "a worker thread did not start".to_owned(),
            });
        };
        Ok((Self { arbiter: arbiter.handle(), link, watchers, pulse }, arbiter))
    }
}

/// Starts real collectors, spread over the worker's threads.
pub(super) struct CollectorSpawner {
    pub(super) threads: Vec<CollectorThread>,
    /// The thread whose turn it is.
    pub(super) next: usize,
    pub(super) manager: Addr<TenantManager>,
    pub(super) failover: Reports,
    pub(super) fleet: Arc<FleetStatus>,
    pub(super) schedule: Arc<ScheduleOptions>,
    pub(super) collector: Arc<CollectorOptions>,
    pub(super) key_form: KeyForm,
}

impl Spawner for CollectorSpawner {
    fn spawn(&mut self, incarnation: Incarnation) -> usize {
        // One that moves, if there is any.
        let turn = (self.next..self.next + self.threads.len()).map(|turn| turn % self.threads.len());
        let at = turn.clone().find(|at| !self.is_stalled(*at)).unwrap_or(self.next % self.threads.len());
        self.next = at + 1;
        let thread = &self.threads[at];
        let tenant = incarnation.tenant.clone();
        let schedules = Schedules::new(&thread.link, tenant.key_spaces(self.key_form), &self.schedule);
        let other = other_key_space(&tenant, self.key_form);
        let status = self.fleet.tenant(&tenant);
        let queue = RedisQueue::new(schedules, other, thread.watchers.clone(), Arc::clone(&status));
        let collector = Collector {
            queue,
            sink: PostgresSink::new(self.manager.clone(), tenant, self.failover.clone()),
            options: Arc::clone(&self.collector),
            fleet: Arc::clone(&self.fleet),
            status,
        };
        CollectorActor::start_in_arbiter(&thread.arbiter, move |_| {
            CollectorActor::new(incarnation, collector)
        });
        at
    }

    fn is_stalled(&self, thread: usize) -> bool {
        self.threads.get(thread).is_some_and(|thread| thread.pulse.is_stalled())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_actor_has_no_room_for_a_collector() {
        let (actor, collector) = (
            size_of::<CollectorActor<RedisQueue, PostgresSink>>(),
            size_of::<Collector<RedisQueue, PostgresSink>>(),
        );
        assert!(actor < collector, "{actor} and {collector} bytes, for each of thousands of tenants");
    }
}
