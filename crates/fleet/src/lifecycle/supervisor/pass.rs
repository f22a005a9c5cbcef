//! A pass: what [`crate::plan::plan`] decides, carried out.

use std::{collections::BTreeSet, sync::atomic::Ordering::Relaxed, time::Duration};

use actix::prelude::*;
use balance_sync_tenants::Tenant;
use balance_sync_trace::{self as trace, Span};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Live, Pass, Supervisor};
use crate::{
    backends::TenantGone,
    clock::wall_clock_ms,
    pipeline::Incarnation,
    plan::{Exit, Plan, Reap, Slot, apply, plan},
    status::{Phase, Reason, TenantState},
};

impl Supervisor {
    /// Counts collectors as ended whose thread is stalled. Should it move again, they find that they are to stop.
    fn give_up_lost(&mut self) {
        for (tenant, live) in &self.live {
            if let Some(slot) = self.slots.get_mut(tenant)
                && let Slot::Running { since, failures } | Slot::Starting { since, failures } = *slot
                && self.spawner.is_stalled(live.thread)
            {
                *slot =
                    Slot::Ended { exit: Exit::Lost, worked: Instant::from_std(since).elapsed(), failures };
            }
        }
    }

    /// Notices that the manager has ended. It is not restarted: what its connections were doing is unknown.
    fn check_manager(&self) {
        if self.manager.as_ref().is_some_and(|manager| !manager.connected())
            && !self.fleet.manager_ended.swap(true, Relaxed)
        {
            tracing::error!(
                "the actor that opens the tenants' databases has ended, this worker has to be restarted"
            );
        }
    }

    pub(super) fn pass(&mut self, ctx: &mut Context<Self>) {
        self.pass_pending = false;
        let begun = Instant::now();
        self.check_manager();
        if self.fleet.still_threads.load(Relaxed) > 0 {
            self.give_up_lost();
        }
        let none = BTreeSet::new();
        let wanted = if self.draining.is_some() { &none } else { &self.mine };
        let steps = plan(wanted, &self.slots, begun.into_std(), &self.options.limits);
        apply(&steps, &mut self.slots, begun.into_std());
        self.starting = self.slots.values().filter(|slot| matches!(slot, Slot::Starting { .. })).count();
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
        if self.membership.is_known() && self.share.is_some() && !self.waits_for_rollout {
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
                    self.fleet
                        .tenant(tenant)
                        .degrade(Reason::CollectorCrashed, format!("ended: {}", exit.name()));
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
        // All are asked before any is waited for.
        for (tenant, _) in &steps.stop {
            let removed = self.draining.is_none() && !self.membership.wanted().contains(tenant);
            self.fleet.tenant(tenant).leaving.store(removed, Relaxed);
            if let Some(live) = self.live.get(tenant) {
                live.stop.cancel();
            }
            self.fleet.tenant(tenant).enter(TenantState::Stopping);
            let is_wanted = self.membership.wanted().contains(tenant) && self.draining.is_none();
            if is_wanted && !self.is_selected(tenant) {
                tracing::info!(tenant_id = %tenant, "tenant is not in the rollout, collector stops");
            } else if is_wanted {
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
            let _ = status.stand_by(!self.is_first(tenant));
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
    pub(super) fn pass_soon(&mut self, ctx: &mut Context<Self>) {
        if !std::mem::replace(&mut self.pass_pending, true) {
            ctx.notify(Pass);
        }
    }

    pub(super) fn finish_drain(&mut self) {
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
            // Draining has no way back: no later pass may start a collector.
            self.draining = Some((report, Vec::new()));
        }
    }
}
