//! The supervisor: one pass after the other it brings the collectors in line with the tenant list.
//!
//! The decision is [`crate::plan::plan`]'s, the effects are here and in `pass`: poll the directory, tell collectors to stop, start
//! others, clear away the ended. A pass never waits: polls and stops answer by message, and what is slow about one
//! tenant delays no other.

mod pass;

use std::{
    collections::{BTreeMap, BTreeSet},
    hash::{BuildHasher, Hash, Hasher},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use actix::prelude::*;
use balance_sync_tenants::{DirectoryError, KeyForm, Listing, Membership, Tenant, TenantDirectory};
use balance_sync_trace::{self as trace, Span};
use rand::Rng;
use tokio::{sync::oneshot, time::Instant};
use tokio_util::sync::CancellationToken;

use super::{
    partition::{Share, TakeShare, Unowned},
    rollout::RolloutChanged,
};
use crate::{
    backends::TenantManager,
    pipeline::{CollectorEnded, CollectorStarted, Incarnation},
    plan::{Exit, Limits, Slot},
    status::FleetStatus,
    tasks::{Panicked, TaskName},
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

/// Starts collectors; the real one is `threads::CollectorSpawner`.
pub trait Spawner: 'static {
    /// Starts the collector of this incarnation on one of the worker's threads; gives which.
    fn spawn(&mut self, incarnation: Incarnation) -> usize;

    /// Whether that thread is stalled: its collectors will report nothing.
    fn is_stalled(&self, _thread: usize) -> bool {
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
    /// It waits until it is known which tenants are served.
    waits_for_rollout: bool,
    /// It doesn't wait for ever.
    rollout_timer: bool,
    /// Those of the wanted tenants that are in the rollout and in the share.
    mine: BTreeSet<Tenant>,
    slots: BTreeMap<Tenant, Slot>,
    live: BTreeMap<Tenant, Live>,
    /// Collectors that are starting, as the last pass left them, without those at work by now.
    starting: usize,
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
    /// The last answer of the directory, as [`digest`] tells it apart from others; `None` = there was none, or an error.
    listing: Option<(u64, u64)>,
    draining: Option<(DrainReport, Vec<oneshot::Sender<DrainReport>>)>,
}

impl Supervisor {
    /// A supervisor without collectors yet. Without a manager, tenants that leave are not reported.
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
            waits_for_rollout: false,
            rollout_timer: false,
            mine: BTreeSet::new(),
            slots: BTreeMap::new(),
            live: BTreeMap::new(),
            starting: 0,
            epochs: 0,
            born: Instant::now(),
            polling: false,
            poll_again: false,
            holding: false,
            pass_pending: false,
            next_poll: None,
            next_pass: None,
            refused: BTreeSet::new(),
            listing: None,
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

    /// Makes it wait a moment until it is known which tenants are served. After that collectors are started all the same, and
    /// show why they claim nothing.
    #[must_use]
    pub fn following_rollout(mut self) -> Self {
        self.waits_for_rollout = true;
        self
    }

    /// Whether a tenant is in the rollout; each is, as long as nobody knows better: then its collector claims nothing.
    fn is_selected(&self, tenant: &Tenant) -> bool {
        self.fleet.rollout.is_unknown() || self.fleet.rollout.serves(tenant)
    }

    /// Works out which tenants are this worker's, after a change of the list, the rollout or the share.
    fn count_mine(&mut self) {
        let selected: Vec<&Tenant> =
            self.membership.wanted().iter().filter(|tenant| self.is_selected(tenant)).collect();
        self.fleet.selected.store(selected.len() as u64, Relaxed);
        self.mine = match &self.share {
            Some(share) if !self.waits_for_rollout => {
                selected.into_iter().filter(|tenant| share.contains(tenant)).cloned().collect()
            }
            _ => BTreeSet::new(),
        };
        self.fleet.owned.store(self.mine.len() as u64, Relaxed);
        self.fleet.wanted.store(self.membership.wanted().len() as u64, Relaxed);
        for tenant in self.live.keys().filter(|tenant| self.mine.contains(*tenant)) {
            let status = self.fleet.tenant(tenant);
            let standby = !self.is_first(tenant);
            if status.stand_by(standby) {
                status.requests.recheck();
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
        if self.waits_for_rollout && !self.rollout_timer {
            self.rollout_timer = true;
            ctx.run_later(SHARE_WITHIN, |supervisor, ctx| supervisor.take_rollout(ctx));
        }
        if let Some(listed) = self.listed.take() {
            // Without a partition to answer, the share stays away, and the timer decides.
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

    fn take_rollout(&mut self, ctx: &mut Context<Self>) {
        self.waits_for_rollout = false;
        self.count_mine();
        self.pass_soon(ctx);
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
                if supervisor.polled(answer) {
                    supervisor.count_mine();
                }
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

    /// Takes in an answer; returns whether that may have changed anything.
    fn polled(&mut self, answer: Result<Listing, DirectoryError>) -> bool {
        let listing = answer.as_ref().ok().map(digest);
        if listing.is_some() && listing == self.listing && !self.holding {
            self.fleet.poll_failing.store(false, Relaxed);
            self.fleet.listed_again();
            return false;
        }
        self.listing = listing;
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
        true
    }
}

/// Tells two answers of the directory apart: by ids and what was refused, in their order. Of 128 bits, under a key of this process.
fn digest(listing: &Listing) -> (u64, u64) {
    static KEYS: std::sync::OnceLock<[std::hash::RandomState; 2]> = std::sync::OnceLock::new();
    let [one, two] = KEYS.get_or_init(Default::default).each_ref().map(|keys| {
        let mut hasher = keys.build_hasher();
        for listed in &listing.tenants {
            listed.tenant.hash(&mut hasher);
        }
        listing.refused.hash(&mut hasher);
        hasher.finish()
    });
    (one, two)
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

impl Handler<TakeShare> for Supervisor {
    type Result = ();

    fn handle(&mut self, TakeShare(share): TakeShare, ctx: &mut Self::Context) {
        self.take_share(share, ctx);
    }
}

impl Handler<RolloutChanged> for Supervisor {
    type Result = ();

    fn handle(&mut self, _: RolloutChanged, ctx: &mut Self::Context) {
        self.take_rollout(ctx);
    }
}

impl Handler<Unowned> for Supervisor {
    type Result = Vec<Tenant>;

    fn handle(&mut self, _: Unowned, _: &mut Self::Context) -> Self::Result {
        let others = self.membership.wanted().difference(&self.mine);
        others.filter(|tenant| self.fleet.rollout.serves(tenant)).cloned().collect()
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
            self.starting = self.starting.saturating_sub(1);
            // A pass goes over all tenants: one for each that has started would take most of the time of a start.
            if self.starting <= self.options.limits.start_concurrency / 2 {
                self.pass_soon(ctx);
            }
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
