//! The decision of a reconcile pass: what is wanted, what is there, what to do. The clock is an argument.
//!
//! Four phases, in this order. *Reap*: collectors that ended are cleared away, those that ended by themselves come back
//! after a growing delay. *Stop*: those no longer wanted, all of them before any is waited for. *Start*: the
//! missing ones, so many at a time; one that does not come to work counts as ended. *Wait*: those that are stopping are
//! given until their deadline.
//!
//! `T` is whatever names a tenant.
//!
//! Properties (tested below): at most one live collector per tenant; nothing starts while it stops; planning again right
//! after applying a plan changes nothing.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::{Duration, Instant},
};

/// A collector that worked this long before it ended counts as having recovered: its next delay is the smallest again.
pub const STABLE_AFTER: Duration = Duration::from_secs(60);

/// A collector that is not at work this long after its start never will be, as far as can be known.
pub const STARTS_WITHIN: Duration = Duration::from_secs(60);

/// How a collector ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It was asked to, and drained.
    Stopped,
    /// It panicked.
    Panicked,
    /// It did not drain by its deadline and was broken off.
    Killed,
    /// It was given up: it did not come to work in time, or its thread is stalled.
    Lost,
}

impl Exit {
    /// Short, stable name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Stopped => "stopped",
            Self::Panicked => "panicked",
            Self::Killed => "killed",
            Self::Lost => "lost",
        }
    }
}

/// What the supervisor sees of one tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Slot {
    /// Started, not at work yet.
    Starting {
        /// Since when.
        since: Instant,
        /// Consecutive crashes before this start.
        failures: u32,
    },
    /// At work.
    Running {
        /// Since when.
        since: Instant,
        /// Consecutive crashes before this start.
        failures: u32,
    },
    /// Ordered to stop.
    Stopping {
        /// Since when.
        since: Instant,
        /// Its deadline has passed and it was broken off.
        killed: bool,
    },
    /// It ended and was not reaped yet.
    Ended {
        /// How.
        exit: Exit,
        /// How long it had worked.
        worked: Duration,
        /// Consecutive crashes before this start.
        failures: u32,
    },
    /// It ended by itself and waits for its next start.
    Backoff {
        /// Until when.
        until: Instant,
        /// Consecutive crashes.
        failures: u32,
    },
}

/// Bounds of a pass.
#[derive(Debug, Clone, Copy)]
pub struct Limits {
    /// Collectors that may be starting at the same time.
    pub start_concurrency: usize,
    /// Time a collector has to stop.
    pub stop_deadline: Duration,
    /// First delay of a collector that ended by itself.
    pub crash_delay_min: Duration,
    /// Longest such delay.
    pub crash_delay_max: Duration,
}

/// What becomes of a reaped slot.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reap {
    /// The slot is free.
    Clear,
    /// It waits for its next start.
    Delay {
        /// Until when.
        until: Instant,
        /// Consecutive crashes.
        failures: u32,
    },
}

/// Why a collector is stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum StopReason {
    /// The list in force no longer has the tenant.
    NotWanted,
}

/// The steps of one pass, each with its reason, in id order within a phase.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan<T> {
    /// Slots to clear or to delay.
    pub reap: Vec<(T, Exit, Reap)>,
    /// Slots of which nothing is left to do: their delay is void because they are no longer wanted.
    pub forget: Vec<T>,
    /// Collectors to stop.
    pub stop: Vec<(T, StopReason)>,
    /// Collectors to start, with their number of failures in a row.
    pub start: Vec<(T, u32)>,
    /// Collectors that have had their time to stop and are to be broken off.
    pub kill: Vec<T>,
    /// Collectors that are waited for.
    pub waiting: usize,
    /// When the next pass has something to do at the latest, as far as this one can tell.
    pub next: Option<Instant>,
}

impl<T> Default for Plan<T> {
    fn default() -> Self {
        Self {
            reap: Vec::new(),
            forget: Vec::new(),
            stop: Vec::new(),
            start: Vec::new(),
            kill: Vec::new(),
            waiting: 0,
            next: None,
        }
    }
}

impl<T> Plan<T> {
    /// Whether there is nothing to do.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.reap.is_empty()
            && self.forget.is_empty()
            && self.stop.is_empty()
            && self.start.is_empty()
            && self.kill.is_empty()
    }
}

/// Decides a pass.
#[must_use]
pub fn plan<T: Ord + Clone>(
    wanted: &BTreeSet<T>,
    slots: &BTreeMap<T, Slot>,
    now: Instant,
    limits: &Limits,
) -> Plan<T> {
    let mut plan = Plan::default();
    let mut next = None;
    let mut wake = |at: Instant| {
        next = Some(next.map_or(at, |next: Instant| next.min(at)));
    };
    let delay = |reap: &mut Vec<_>, tenant: &T, exit, failures: u32| {
        let failures = failures.saturating_add(1);
        let until = now + crash_delay(failures, limits);
        reap.push((tenant.clone(), exit, Reap::Delay { until, failures }));
        until
    };
    let mut starting = 0;
    let mut free: BTreeSet<&T> = BTreeSet::new();
    let mut ready: Vec<(&T, u32)> = Vec::new();

    for (tenant, slot) in slots {
        let is_wanted = wanted.contains(tenant);
        match *slot {
            Slot::Ended { exit, worked, failures } => {
                let crashed = exit != Exit::Stopped;
                if crashed && is_wanted {
                    let failures = if worked >= STABLE_AFTER { 0 } else { failures };
                    wake(delay(&mut plan.reap, tenant, exit, failures));
                } else {
                    plan.reap.push((tenant.clone(), exit, Reap::Clear));
                    free.insert(tenant);
                }
            }
            Slot::Backoff { .. } if !is_wanted => plan.forget.push(tenant.clone()),
            Slot::Backoff { until, failures } => {
                if until <= now {
                    ready.push((tenant, failures));
                } else {
                    wake(until);
                }
            }
            Slot::Starting { .. } | Slot::Running { .. } if !is_wanted => {
                plan.stop.push((tenant.clone(), StopReason::NotWanted));
                plan.waiting += 1;
                wake(now + limits.stop_deadline);
            }
            Slot::Starting { since, failures } if since + STARTS_WITHIN <= now => {
                wake(delay(&mut plan.reap, tenant, Exit::Lost, failures));
            }
            Slot::Starting { since, .. } => {
                starting += 1;
                wake(since + STARTS_WITHIN);
            }
            Slot::Running { .. } => {}
            Slot::Stopping { since, killed } => {
                plan.waiting += 1;
                let deadline = since + limits.stop_deadline;
                if !killed {
                    if deadline <= now {
                        plan.kill.push(tenant.clone());
                    } else {
                        wake(deadline);
                    }
                }
            }
        }
    }
    ready.extend(
        wanted.iter().filter(|tenant| !slots.contains_key(*tenant) || free.contains(tenant)).map(|t| (t, 0)),
    );
    ready.sort();
    let room = limits.start_concurrency.saturating_sub(starting);
    plan.next = next;
    plan.start = ready.into_iter().take(room).map(|(tenant, failures)| (tenant.clone(), failures)).collect();
    plan
}

/// The delay before the next start after so many ends in a row.
fn crash_delay(failures: u32, limits: &Limits) -> Duration {
    let doublings = failures.saturating_sub(1).min(20);
    limits.crash_delay_min.saturating_mul(1 << doublings).min(limits.crash_delay_max)
}

/// Enters a plan into the slots, as the supervisor does when it has acted on it.
pub fn apply<T: Ord + Clone>(plan: &Plan<T>, slots: &mut BTreeMap<T, Slot>, now: Instant) {
    for (tenant, _, reap) in &plan.reap {
        match *reap {
            Reap::Clear => {
                slots.remove(tenant);
            }
            Reap::Delay { until, failures } => {
                slots.insert(tenant.clone(), Slot::Backoff { until, failures });
            }
        }
    }
    for tenant in &plan.forget {
        slots.remove(tenant);
    }
    for (tenant, _) in &plan.stop {
        slots.insert(tenant.clone(), Slot::Stopping { since: now, killed: false });
    }
    for (tenant, failures) in &plan.start {
        slots.insert(tenant.clone(), Slot::Starting { since: now, failures: *failures });
    }
    for tenant in &plan.kill {
        if let Some(Slot::Stopping { killed, .. }) = slots.get_mut(tenant) {
            *killed = true;
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const LIMITS: Limits = Limits {
        start_concurrency: 3,
        stop_deadline: Duration::from_secs(30),
        crash_delay_min: Duration::from_secs(1),
        crash_delay_max: Duration::from_secs(60),
    };

    fn tenant(name: &str) -> String {
        name.to_owned()
    }

    fn set(names: &[&str]) -> BTreeSet<String> {
        names.iter().map(|name| tenant(name)).collect()
    }

    fn slots(list: &[(&str, Slot)]) -> BTreeMap<String, Slot> {
        list.iter().map(|(name, slot)| (tenant(name), *slot)).collect()
    }

    #[test]
    fn the_missing_start_so_many_at_a_time() {
        let now = Instant::now();
        let mut observed = slots(&[("a", Slot::Starting { since: now, failures: 0 })]);
        let wanted = set(&["a", "b", "c", "d", "e"]);
        let first = plan(&wanted, &observed, now, &LIMITS);
        assert_eq!(first.start, [(tenant("b"), 0), (tenant("c"), 0)]);
        apply(&first, &mut observed, now);
        assert!(plan(&wanted, &observed, now, &LIMITS).is_empty());
        for slot in observed.values_mut() {
            *slot = Slot::Running { since: now, failures: 0 };
        }
        assert_eq!(plan(&wanted, &observed, now, &LIMITS).start, [(tenant("d"), 0), (tenant("e"), 0)]);
    }

    #[test]
    fn the_unwanted_stop_and_are_broken_off_at_their_deadline_once() {
        let now = Instant::now();
        let mut observed = slots(&[("a", Slot::Running { since: now, failures: 0 })]);
        let stopping = plan(&set(&[]), &observed, now, &LIMITS);
        assert_eq!(stopping.stop, [(tenant("a"), StopReason::NotWanted)]);
        assert_eq!(stopping.next, Some(now + LIMITS.stop_deadline));
        apply(&stopping, &mut observed, now);
        let later = now + LIMITS.stop_deadline;
        let killing = plan(&set(&[]), &observed, later, &LIMITS);
        assert_eq!(killing.kill, [tenant("a")]);
        apply(&killing, &mut observed, later);
        assert!(plan(&set(&[]), &observed, later, &LIMITS).is_empty());
    }

    #[test]
    fn a_tenant_that_returns_while_it_stops_starts_only_after_its_end() {
        let now = Instant::now();
        let mut observed = slots(&[("a", Slot::Stopping { since: now, killed: false })]);
        assert!(plan(&set(&["a"]), &observed, now, &LIMITS).is_empty());
        observed.insert(
            tenant("a"),
            Slot::Ended { exit: Exit::Stopped, worked: Duration::from_secs(1), failures: 0 },
        );
        let after = plan(&set(&["a"]), &observed, now, &LIMITS);
        assert_eq!(after.reap, [(tenant("a"), Exit::Stopped, Reap::Clear)]);
        assert_eq!(after.start, [(tenant("a"), 0)]);
    }

    #[test]
    fn a_crash_loop_is_slowed_down_and_forgotten_after_stable_work() {
        let now = Instant::now();
        let ended = |failures, worked| {
            slots(&[(
                "a",
                Slot::Ended { exit: Exit::Panicked, worked: Duration::from_secs(worked), failures },
            )])
        };
        for (before, seconds) in [(0, 1), (1, 2), (2, 4), (5, 32), (6, 60), (1000, 60)] {
            let steps = plan(&set(&["a"]), &ended(before, 0), now, &LIMITS);
            let until = now + Duration::from_secs(seconds);
            assert_eq!(steps.reap[0].2, Reap::Delay { until, failures: before + 1 });
            assert_eq!(steps.next, Some(until));
            assert!(steps.start.is_empty(), "no start before the delay is over");
        }
        let steps = plan(&set(&["a"]), &ended(6, 61), now, &LIMITS);
        assert_eq!(steps.reap[0].2, Reap::Delay { until: now + Duration::from_secs(1), failures: 1 });
    }

    #[test]
    fn a_collector_that_never_comes_to_work_is_given_up_and_makes_room() {
        let now = Instant::now();
        let mut observed = slots(&[("a", Slot::Starting { since: now, failures: 1 })]);
        let wanted = set(&["a", "b"]);
        let limits = Limits { start_concurrency: 1, ..LIMITS };
        let before = plan(&wanted, &observed, now, &limits);
        assert!(before.is_empty(), "there is no room");
        assert_eq!(before.next, Some(now + STARTS_WITHIN));
        let later = now + STARTS_WITHIN;
        let steps = plan(&wanted, &observed, later, &limits);
        let until = later + Duration::from_secs(2);
        assert_eq!(steps.reap, [(tenant("a"), Exit::Lost, Reap::Delay { until, failures: 2 })]);
        assert_eq!(steps.start, [(tenant("b"), 0)]);
        apply(&steps, &mut observed, later);
        assert!(plan(&wanted, &observed, later, &limits).is_empty());
    }

    #[test]
    fn a_delay_ends_in_a_start_and_is_void_when_it_is_no_longer_wanted() {
        let now = Instant::now();
        let waiting = slots(&[("a", Slot::Backoff { until: now, failures: 3 })]);
        assert_eq!(plan(&set(&["a"]), &waiting, now, &LIMITS).start, [(tenant("a"), 3)]);
        let steps = plan(&set(&[]), &waiting, now, &LIMITS);
        assert_eq!(steps.forget, [tenant("a")]);
        assert!(steps.start.is_empty());
    }

    fn any_slot(now: Instant) -> impl Strategy<Value = Slot> {
        let second = |s: u64| Duration::from_secs(s);
        prop_oneof![
            (0u64..100).prop_map(move |s| Slot::Starting { since: now - second(s), failures: 0 }),
            (0u64..100).prop_map(move |s| Slot::Running { since: now - second(s), failures: 0 }),
            (0u64..100, any::<bool>())
                .prop_map(move |(s, killed)| Slot::Stopping { since: now - second(s), killed }),
            (0u64..100, 0u32..9, 0usize..4).prop_map(move |(s, failures, exit)| Slot::Ended {
                exit: [Exit::Stopped, Exit::Panicked, Exit::Killed, Exit::Lost][exit],
                worked: second(s),
                failures,
            }),
            (0u64..100, 0u32..9).prop_map(move |(s, failures)| Slot::Backoff {
                until: now + second(s) - second(50),
                failures
            }),
        ]
    }

    proptest! {
        #[test]
        fn the_plan_keeps_its_promises(
            wanted in proptest::collection::btree_set("[a-h]", 0..8),
            seeds in proptest::collection::btree_map("[a-h]", any_slot(Instant::now() + Duration::from_secs(1000)), 0..8),
            room in 0usize..6,
        ) {
            let now = Instant::now() + Duration::from_secs(1000);
            let wanted: BTreeSet<String> = wanted.iter().map(|name| tenant(name)).collect();
            let observed: BTreeMap<String, Slot> = seeds.iter().map(|(name, slot)| (tenant(name), *slot)).collect();
            let limits = Limits { start_concurrency: room, ..LIMITS };
            let steps = plan(&wanted, &observed, now, &limits);

            let alive = |slot: &Slot| matches!(slot, Slot::Starting { .. } | Slot::Running { .. } | Slot::Stopping { .. });
            for (name, _) in &steps.start {
                prop_assert!(wanted.contains(name));
                prop_assert!(!observed.get(name).is_some_and(alive), "{name} is alive and would be started again");
            }
            for (name, _) in &steps.stop {
                prop_assert!(!wanted.contains(name));
            }
            prop_assert!(steps.start.len() <= room);

            let mut after = observed;
            apply(&steps, &mut after, now);
            let again = plan(&wanted, &after, now, &limits);
            // Starts beyond the room wait for a slot; everything else is done.
            prop_assert!(again.reap.is_empty() && again.stop.is_empty() && again.kill.is_empty() && again.forget.is_empty());
            let starting = after.values().filter(|slot| matches!(slot, Slot::Starting { .. })).count();
            prop_assert!(again.start.is_empty() || starting < room, "{again:?}");
            for (name, slot) in &after {
                if !wanted.contains(name) {
                    prop_assert!(matches!(slot, Slot::Stopping { .. }), "{name} is not wanted and not stopping");
                }
            }
        }
    }
}
