//! The supervisor: one pass after the other it brings the collectors in line with the tenant list.
//!
//! The decision is [`crate::plan::plan`]'s, the effects are here: poll the directory, tell collectors to stop, start
//! others, clear away the ended. A pass never waits: polls and stops answer by message, and what is slow about one
//! tenant delays no other.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
use balance_sync_tenants::{DirectoryError, KeyForm, Listing, Membership, Tenant, TenantDirectory};
use balance_sync_trace::{self as trace, Span};
use rand::Rng;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use crate::{
    collector_actor::{CollectorEnded, CollectorStarted, Incarnation},
    partition::{Share, Unowned},
    plan::{Exit, Limits, Plan, Reap, Slot, apply, plan},
    status::{FleetStatus, Phase, TenantState, wall_clock_ms},
    tasks::{Panicked, TaskName},
    tenant_manager::{TenantGone, TenantManager},
};

/// Longest time for one poll. The tenant service's client has its own, shorter bounds; this is for a directory without.
const POLL_BOUND: Duration = Duration::from_secs(60);
/// Shortest time between the end of a poll and the next that a hint asked for meanwhile: a stream of hints must not
/// become a stream of polls.
const HINT_GAP: Duration = Duration::from_secs(1);
/// How long a worker that knows the tenants waits for its share before it looks after all of them.
const SHARE_WITHIN: Duration = Duration::from_secs(2);

/// How the supervisor works.
#[derive(Debug, Clone)]
pub struct SupervisorOptions {
    /// Time between two polls of the tenant list; each is varied by a tenth.
    pub poll_interval: Duration,
    /// How a UUID-shaped id stands in keys.
    pub key_form: KeyForm,
    /// Bounds of a pass.
    pub limits: Limits,
}

/// Starts collectors; the real one is [`crate::worker::LaneSpawner`].
pub trait Spawner: 'static {
    /// Starts the collector of this incarnation on one of the worker's threads; gives which.
    fn spawn(&mut self, incarnation: Incarnation) -> usize;

    /// Whether that thread stands still: nothing will be heard of its collectors.
    fn is_still(&self, _thread: usize) -> bool {
        false
    }
}

/// Polls the tenant list now. Sent by the supervisor to itself, and by hints that something has changed.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
pub struct Poll;

/// Makes a pass with what is known.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "()")]
struct Pass;

/// Stops all collectors and answers when they have ended or their time is over.
#[derive(Debug, Clone, Copy, Message)]
#[rtype(result = "DrainReport")]
pub struct Drain;

/// What was left after draining, and where.
#[derive(Debug, Clone, Default)]
pub struct DrainReport {
    /// Collectors that ended in time.
    pub stopped: usize,
    /// Members written in final flushes.
    pub flushed: usize,
    /// Members given back.
    pub released: usize,
    /// Members whose claims could not be given back, by tenant: due again when the claim TTL ends.
    pub orphaned: BTreeMap<Tenant, usize>,
    /// Tenants whose collector had to be broken off.
    pub killed: Vec<Tenant>,
}

struct Live {
    epoch: u64,
    /// Where it runs.
    thread: usize,
    stop: CancellationToken,
    kill: CancellationToken,
}

/// The actor.
pub struct Supervisor {
    directory: Arc<dyn TenantDirectory>,
    manager: Option<Addr<TenantManager>>,
    spawner: Box<dyn Spawner>,
    fleet: Arc<FleetStatus>,
    options: SupervisorOptions,
    membership: Membership,
    /// What this worker is to look after; none while it waits for its first share.
    share: Option<Share>,
    /// Cancelled when the tenants are known.
    listed: Option<CancellationToken>,
    /// Those of the wanted tenants that are in the share.
    mine: BTreeSet<Tenant>,
    slots: BTreeMap<Tenant, Slot>,
    live: BTreeMap<Tenant, Live>,
    epochs: u64,
    born: Instant,
    polling: bool,
    poll_again: bool,
    /// The guard holds removals back until the following polls repeat them.
    holding: bool,
    pass_pending: bool,
    next_poll: Option<SpawnHandle>,
    next_pass: Option<SpawnHandle>,
    refused: BTreeSet<String>,
    draining: Option<(DrainReport, Vec<oneshot::Sender<DrainReport>>)>,
}

impl Supervisor {
    /// A supervisor that knows nobody yet. Without a manager nobody is told of tenants that went.
    #[must_use]
    pub fn new(
        directory: Arc<dyn TenantDirectory>,
        manager: Option<Addr<TenantManager>>,
        spawner: Box<dyn Spawner>,
        fleet: Arc<FleetStatus>,
        membership: Membership,
        options: SupervisorOptions,
    ) -> Self {
        // Livelihood is progress: a supervisor that polls makes a pass per interval, with room for a slow service.
        let bound = options.poll_interval * 3 + Duration::from_secs(60);
        fleet.pass_bound_ms.store(u64::try_from(bound.as_millis()).unwrap_or(u64::MAX), Relaxed);
        Self {
            directory,
            manager,
            spawner,
            fleet,
            options,
            membership,
            share: Some(Share::Everything),
            listed: None,
            mine: BTreeSet::new(),
            slots: BTreeMap::new(),
            live: BTreeMap::new(),
            epochs: 0,
            born: Instant::now(),
            polling: false,
            poll_again: false,
            holding: false,
            pass_pending: false,
            next_poll: None,
            next_pass: None,
            refused: BTreeSet::new(),
            draining: None,
        }
    }

    /// Makes it look after a share of the tenants only, and wait for the first [`Share`]. `listed` is cancelled when the
    /// tenants are known.
    #[must_use]
    pub fn sharing(mut self, listed: CancellationToken) -> Self {
        self.share = None;
        self.listed = Some(listed);
        self
    }

    /// Works out which tenants are this worker's, after a change of the list or of the share.
    fn count_mine(&mut self) {
        let wanted = self.membership.wanted().iter();
        self.mine = match &self.share {
            Some(share) => wanted.filter(|tenant| share.contains(tenant)).cloned().collect(),
            None => BTreeSet::new(),
        };
        self.fleet.owned.store(self.mine.len() as u64, Relaxed);
        self.fleet.wanted.store(self.membership.wanted().len() as u64, Relaxed);
        for tenant in self.live.keys().filter(|tenant| self.mine.contains(*tenant)) {
            let status = self.fleet.tenant(tenant);
            let standby = !self.is_first(tenant);
            if status.standby.swap(standby, Relaxed) != standby {
                status.orders.look();
            }
        }
    }

    /// Whether this worker comes first for a tenant that is its own.
    fn is_first(&self, tenant: &Tenant) -> bool {
        self.share.as_ref().is_none_or(|share| share.is_first(tenant))
    }

    /// Says that the tenants are known, the first time that they are.
    fn tell_listed(&mut self, ctx: &mut Context<Self>) {
        if !self.membership.is_known() {
            return;
        }
        if let Some(listed) = self.listed.take() {
            // Without anybody who would share out, the share stays away, and the timer decides.
            listed.cancel();
            ctx.run_later(SHARE_WITHIN, |supervisor, ctx| {
                if supervisor.share.is_none() {
                    tracing::warn!(
                        "this worker's share of the tenants is not known, it looks after all of them"
                    );
                    supervisor.take_share(Share::Everything, ctx);
                }
            });
        }
    }

    fn take_share(&mut self, share: Share, ctx: &mut Context<Self>) {
        self.share = Some(share);
        self.count_mine();
        self.pass_soon(ctx);
    }

    // -- poll ----------------------------------------------------------------------------------------------------

    fn poll(&mut self, ctx: &mut Context<Self>) {
        if self.draining.is_some() {
            return;
        }
        if self.polling {
            // What is under way may not know yet what this poll was asked for.
            self.poll_again = true;
            return;
        }
        self.polling = true;
        if let Some(handle) = self.next_poll.take() {
            ctx.cancel_future(handle);
        }
        let directory = Arc::clone(&self.directory);
        // A task of its own: a panic over a list must not end the supervisor.
        let span = Span::root("reconcile");
        span.set("trigger", "poll");
        let asked = span.share();
        let asking = self.fleet.tasks.once(TaskName::TenantPoll, async move {
            asked.around(tokio::time::timeout(POLL_BOUND, directory.active())).await
        });
        let asking = async move {
            match asking.await {
                Ok(Ok(Ok(answer))) => answer,
                Ok(Ok(Err(_))) => {
                    Err(DirectoryError::unavailable(format!("no answer within {POLL_BOUND:?}")))
                }
                Ok(Err(Panicked)) | Err(_) => Err(DirectoryError::unavailable("the poll panicked")),
            }
        };
        ctx.spawn(asking.into_actor(self).map(move |answer, supervisor, ctx| {
            span.cover(|| {
                supervisor.polled(answer);
                supervisor.count_mine();
                supervisor.tell_listed(ctx);
                supervisor.pass(ctx);
            });
            drop(span);
            supervisor.polling = false;
            let hinted = std::mem::take(&mut supervisor.poll_again) && !supervisor.holding;
            let interval = supervisor.options.poll_interval;
            let after = if hinted {
                HINT_GAP.min(interval)
            } else {
                interval.mul_f64(rand::rng().random_range(0.9..=1.1))
            };
            supervisor.poll_after(after, ctx);
        }));
    }

    fn poll_after(&mut self, delay: Duration, ctx: &mut Context<Self>) {
        if let Some(handle) = self.next_poll.take() {
            ctx.cancel_future(handle);
        }
        self.next_poll = Some(ctx.run_later(delay, |supervisor, ctx| {
            supervisor.next_poll = None;
            supervisor.poll(ctx);
        }));
    }

    fn polled(&mut self, answer: Result<Listing, DirectoryError>) {
        let listed = match answer {
            Ok(mut listing) => {
                listing.refuse_shared_keys(self.options.key_form);
                let refused: BTreeSet<String> =
                    listing.refused.iter().map(|entry| entry.id.clone()).collect();
                for entry in listing.refused.iter().filter(|entry| !self.refused.contains(&entry.id)) {
                    tracing::error!(id = %entry.id, reason = %entry.reason, "listed tenant refused, it is not served");
                }
                self.fleet.refused_ids.store(listing.refused.len() as u64, Relaxed);
                self.refused = refused;
                Ok(listing.set())
            }
            Err(error) => {
                trace::current().fail(error.kind(), || error.to_string());
                self.fleet.poll_failures.fetch_add(1, Relaxed);
                tracing::warn!(%error, tenants = self.membership.wanted().len(), "tenant list could not be read, the last one stays in force");
                Err(error)
            }
        };
        let answered = listed.is_ok();
        self.fleet.poll_failing.store(!answered, Relaxed);
        let change = self.membership.observe(listed);
        if answered {
            self.fleet.list(self.membership.wanted().clone());
        }
        self.fleet.removals_held.store(change.held.len() as u64, Relaxed);
        self.holding = !change.held.is_empty();
        if !change.held.is_empty() {
            tracing::warn!(
                held = change.held.len(),
                in_force = self.membership.wanted().len(),
                polls_left = change.polls_left,
                "list removes too many tenants at once, it must repeat itself before they are stopped"
            );
        }
    }

    // -- pass ----------------------------------------------------------------------------------------------------

    /// Counts collectors as ended whose thread stands still. Should it move again, they find that they are to stop.
    fn give_up_lost(&mut self) {
        for (tenant, live) in &self.live {
            if let Some(slot) = self.slots.get_mut(tenant)
                && let Slot::Running { since, failures } | Slot::Starting { since, failures } = *slot
                && self.spawner.is_still(live.thread)
            {
                *slot =
                    Slot::Ended { exit: Exit::Lost, worked: Instant::from_std(since).elapsed(), failures };
            }
        }
    }

    fn pass(&mut self, ctx: &mut Context<Self>) {
        self.pass_pending = false;
        let begun = Instant::now();
        if self.fleet.still_threads.load(Relaxed) > 0 {
            self.give_up_lost();
        }
        let nobody = BTreeSet::new();
        let wanted = if self.draining.is_some() { &nobody } else { &self.mine };
        let steps = plan(wanted, &self.slots, begun.into_std(), &self.options.limits);
        apply(&steps, &mut self.slots, begun.into_std());
        let span = self.span_of(&steps, begun);
        span.cover(|| self.carry_out(&steps, begun, ctx));
        drop(span);
        self.finish_drain();
    }

    fn carry_out(&mut self, steps: &Plan<Tenant>, begun: Instant, ctx: &mut Context<Self>) {
        self.reap(steps);
        self.stop(steps);
        self.start(steps, ctx);
        self.wait(steps, ctx);
        if self.membership.is_known() && self.share.is_some() {
            self.fleet.reconciled.store(true, Relaxed);
        }
        self.fleet.passes.fetch_add(1, Relaxed);
        self.fleet
            .last_pass_ms
            .store(u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX), Relaxed);
        self.fleet.last_pass_at_ms.store(wall_clock_ms(), Relaxed);
        let counts = [steps.reap.len(), steps.stop.len(), steps.start.len(), steps.kill.len()];
        for (phase, count) in Phase::ALL.into_iter().zip(counts) {
            self.fleet.phases[phase as usize].fetch_add(count as u64, Relaxed);
        }
        self.fleet.awaited.store(steps.waiting as u64, Relaxed);
        let took = begun.elapsed();
        self.fleet.reconcile.observe(took.as_secs_f64());
        self.fleet.last_pass_us.store(u64::try_from(took.as_micros()).unwrap_or(u64::MAX), Relaxed);
        if !steps.is_empty() {
            tracing::info!(
                reaped = steps.reap.len(),
                stopped = steps.stop.len(),
                started = steps.start.len(),
                waiting = steps.waiting,
                "reconciled"
            );
        }
    }

    /// A pass is a part of the poll that led to it, and a trace of its own when something else did, unless there was
    /// nothing to do.
    fn span_of(&self, steps: &Plan<Tenant>, begun: Instant) -> Span {
        let mut span = trace::current();
        if !span.is_some() && !steps.is_empty() {
            span = Span::root_since("reconcile", begun.elapsed());
            span.set("trigger", "change");
        }
        span.count("tenants", self.mine.len());
        span.count("reaped", steps.reap.len());
        span.count("stopped", steps.stop.len());
        span.count("started", steps.start.len());
        span.count("waiting", steps.waiting);
        span
    }

    fn reap(&mut self, steps: &Plan<Tenant>) {
        for (tenant, exit, reap) in &steps.reap {
            if let Some(live) = self.live.remove(tenant) {
                // Of use to one that was given up, and is not over.
                live.stop.cancel();
                live.kill.cancel();
            }
            if *exit == Exit::Stopped {
                self.fleet.stopped.fetch_add(1, Relaxed);
                tracing::info!(tenant_id = %tenant, "collector stopped");
            } else {
                self.fleet.reaped.fetch_add(1, Relaxed);
                if *exit == Exit::Panicked {
                    self.fleet.panics.fetch_add(1, Relaxed);
                }
                if let Reap::Delay { until, failures } = reap {
                    let delay = Instant::from_std(*until).duration_since(Instant::now());
                    self.fleet.tenant(tenant).degrade("collector_crashed", format!("ended: {}", exit.name()));
                    tracing::error!(tenant_id = %tenant, exit = exit.name(), failures, ?delay, "collector reaped, it starts again after a delay");
                } else {
                    tracing::warn!(tenant_id = %tenant, exit = exit.name(), "collector reaped");
                }
            }
            if *reap == Reap::Clear && !self.mine.contains(tenant) {
                self.let_go(tenant);
            }
        }
        for tenant in &steps.forget {
            self.let_go(tenant);
        }
    }

    fn let_go(&self, tenant: &Tenant) {
        self.fleet.forget(tenant);
        if let Some(manager) = &self.manager {
            // One message per removed tenant, and the pool would stay open if it were lost.
            manager.do_send(TenantGone(tenant.clone()));
        }
    }

    fn stop(&mut self, steps: &Plan<Tenant>) {
        // All are told before any is waited for.
        for (tenant, _) in &steps.stop {
            let removed = self.draining.is_none() && !self.membership.wanted().contains(tenant);
            self.fleet.tenant(tenant).leaving.store(removed, Relaxed);
            if let Some(live) = self.live.get(tenant) {
                live.stop.cancel();
            }
            self.fleet.tenant(tenant).enter(TenantState::Stopping);
            if self.membership.wanted().contains(tenant) && self.draining.is_none() {
                tracing::info!(tenant_id = %tenant, "tenant is other workers' now, collector stops");
            } else {
                tracing::info!(tenant_id = %tenant, "tenant no longer wanted, collector stops");
            }
        }
    }

    fn start(&mut self, steps: &Plan<Tenant>, ctx: &mut Context<Self>) {
        for (tenant, failures) in &steps.start {
            self.epochs += 1;
            let (stop, kill) = (CancellationToken::new(), CancellationToken::new());
            self.fleet.started.fetch_add(1, Relaxed);
            let status = self.fleet.tenant(tenant);
            status.leaving.store(false, Relaxed);
            status.standby.store(!self.is_first(tenant), Relaxed);
            status.enter(TenantState::Starting);
            status.starts.fetch_add(1, Relaxed);
            if *failures > 0 {
                self.fleet.restarts.fetch_add(1, Relaxed);
                status.restarts.fetch_add(1, Relaxed);
            }
            let address = ctx.address();
            let thread = self.spawner.spawn(Incarnation {
                tenant: tenant.clone(),
                epoch: self.epochs,
                stop: stop.clone(),
                kill: kill.clone(),
                started: address.clone().recipient().downgrade(),
                ended: address.recipient().downgrade(),
            });
            self.live.insert(tenant.clone(), Live { epoch: self.epochs, thread, stop, kill });
        }
    }

    fn wait(&mut self, steps: &Plan<Tenant>, ctx: &mut Context<Self>) {
        for tenant in &steps.kill {
            if let Some(live) = self.live.get(tenant) {
                live.kill.cancel();
            }
            tracing::error!(tenant_id = %tenant, "collector did not stop in time, it is broken off; its claims lapse");
        }
        if let Some(handle) = self.next_pass.take() {
            ctx.cancel_future(handle);
        }
        if let Some(next) = steps.next {
            let delay =
                Instant::from_std(next).saturating_duration_since(Instant::now()) + Duration::from_millis(1);
            self.next_pass = Some(ctx.run_later(delay, |supervisor, ctx| {
                supervisor.next_pass = None;
                supervisor.pass(ctx);
            }));
        }
    }

    /// A pass soon: many collectors that end in the same moment make one.
    fn pass_soon(&mut self, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.pass_pending, true) {
            ctx.notify(Pass);
        }
    }

    fn finish_drain(&mut self) {
        let ended = self.slots.values().all(|slot| matches!(slot, Slot::Stopping { killed: true, .. }));
        if !ended {
            return;
        }
        if let Some((mut report, waiters)) = self.draining.take() {
            // A second request to drain may find some of them ended by now.
            let killed: BTreeSet<Tenant> =
                report.killed.drain(..).chain(self.slots.keys().cloned()).collect();
            report.killed = killed.into_iter().collect();
            for waiter in waiters {
                let _ = waiter.send(report.clone());
            }
            // Draining has no way back: no later pass may start anybody.
            self.draining = Some((report, Vec::new()));
        }
    }
}

impl Actor for Supervisor {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        ctx.notify(Poll);
    }
}

impl Handler<Poll> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Poll, ctx: &mut Self::Context) {
        // Lists a whole interval apart are to confirm what the guard holds back, not a burst of hints within a second.
        if self.holding && self.next_poll.is_some() {
            return;
        }
        self.poll(ctx);
    }
}

impl Handler<Share> for Supervisor {
    type Result = ();

    fn handle(&mut self, share: Share, ctx: &mut Self::Context) {
        self.take_share(share, ctx);
    }
}

impl Handler<Unowned> for Supervisor {
    type Result = Vec<Tenant>;

    fn handle(&mut self, _: Unowned, _: &mut Self::Context) -> Self::Result {
        self.membership.wanted().difference(&self.mine).cloned().collect()
    }
}

impl Handler<Pass> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: Pass, ctx: &mut Self::Context) {
        self.pass(ctx);
    }
}

impl Handler<CollectorStarted> for Supervisor {
    type Result = ();

    fn handle(&mut self, CollectorStarted { tenant, epoch }: CollectorStarted, ctx: &mut Self::Context) {
        if self.live.get(&tenant).is_none_or(|live| live.epoch != epoch) {
            return;
        }
        if let Some(slot) = self.slots.get_mut(&tenant)
            && let Slot::Starting { failures, .. } = *slot
        {
            *slot = Slot::Running { since: Instant::now().into_std(), failures };
            self.pass_soon(ctx);
        }
    }
}

impl Handler<CollectorEnded> for Supervisor {
    type Result = ();

    fn handle(&mut self, ended: CollectorEnded, ctx: &mut Self::Context) {
        let CollectorEnded { tenant, epoch, exit, drained } = ended;
        if self.live.get(&tenant).is_none_or(|live| live.epoch != epoch) {
            tracing::debug!(tenant_id = %tenant, epoch, "a former collector's end ignored");
            return;
        }
        let (worked, failures) = match self.slots.get(&tenant) {
            Some(Slot::Running { since, failures } | Slot::Starting { since, failures }) => {
                (Instant::from_std(*since).elapsed(), *failures)
            }
            _ => (Duration::ZERO, 0),
        };
        self.slots.insert(tenant.clone(), Slot::Ended { exit, worked, failures });
        if let Some((report, _)) = &mut self.draining {
            report.stopped += usize::from(exit == Exit::Stopped);
            report.flushed += drained.flushed;
            report.released += drained.released;
            if drained.orphaned > 0 {
                report.orphaned.insert(tenant, drained.orphaned);
            }
        }
        self.pass_soon(ctx);
    }
}

impl Handler<Drain> for Supervisor {
    type Result = ResponseFuture<DrainReport>;

    fn handle(&mut self, _: Drain, ctx: &mut Self::Context) -> Self::Result {
        self.fleet.draining.store(true, Relaxed);
        // Who empties the schedule of a removed tenant drains now, as all do.
        for tenant in self.slots.keys() {
            self.fleet.tenant(tenant).leaving.store(false, Relaxed);
        }
        let (sender, receiver) = oneshot::channel();
        self.draining.get_or_insert_default().1.push(sender);
        self.pass_soon(ctx);
        Box::pin(async move { receiver.await.unwrap_or_default() })
    }
}
