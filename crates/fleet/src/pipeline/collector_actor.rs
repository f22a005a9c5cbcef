//! The shell around a collector: owns its task, its cancellation, and tells the supervisor how it ended.
//!
//! The work runs in a task of its own and not as the actor's future: a panic there would close the actor's mailbox
//! without a word, while a task's end can be observed and distinguished from an error.

use actix::{WeakRecipient, prelude::*};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use balance_sync_tenants::Tenant;

use super::{
    collector::{Collector, Drained},
    ports::{Queue, Sink},
};
use crate::{
    plan::Exit,
    tasks::{self, TaskName},
};

/// A collector is at work.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct CollectorStarted {
    /// Whose.
    pub tenant: Tenant,
    /// Which incarnation.
    pub epoch: u64,
}

/// A collector has ended.
#[derive(Debug, Clone, Message)]
#[rtype(result = "()")]
pub struct CollectorEnded {
    /// Whose.
    pub tenant: Tenant,
    /// Which incarnation: late words of a former one are ignored.
    pub epoch: u64,
    /// How.
    pub exit: Exit,
    /// What it left, if it drained.
    pub drained: Drained,
}

/// What starts a collector and who is notified.
#[derive(Clone)]
pub struct Incarnation {
    /// Whose.
    pub tenant: Tenant,
    /// Which incarnation.
    pub epoch: u64,
    /// Cancelled = stop and drain.
    pub stop: CancellationToken,
    /// Cancelled = break off.
    pub kill: CancellationToken,
    /// Notified of the start.
    pub started: WeakRecipient<CollectorStarted>,
    /// Notified of the end.
    pub ended: WeakRecipient<CollectorEnded>,
}

/// The actor.
pub struct CollectorActor<Q: Queue + 'static, S: Sink + 'static> {
    incarnation: Incarnation,
    work: Option<Box<Collector<Q, S>>>,
}

impl<Q: Queue + Unpin + 'static, S: Sink + Unpin + 'static> CollectorActor<Q, S> {
    /// A shell around the collector.
    #[must_use]
    pub fn new(incarnation: Incarnation, work: Collector<Q, S>) -> Self {
        Self { incarnation, work: Some(Box::new(work)) }
    }
}

impl<Q: Queue + Unpin + 'static, S: Sink + Unpin + 'static> Actor for CollectorActor<Q, S> {
    type Context = Context<Self>;

    fn started(&mut self, ctx: &mut Self::Context) {
        let Some(work) = self.work.take() else { return };
        let Incarnation { tenant, epoch, stop, kill, started, ended } = self.incarnation.clone();
        // At the highest level, so that the lines of every `log.level` name the tenant.
        let span = tracing::error_span!("tenant", tenant_id = %tenant, epoch);
        // Notices about the life of a collector must not get lost in a full mailbox, and there is one per start and end:
        // `do_send` ignores the capacity, and a supervisor that is gone needs no notice.
        if let Some(supervisor) = started.upgrade() {
            supervisor.do_send(CollectorStarted { tenant: tenant.clone(), epoch });
        }
        let collecting = async move {
            tracing::debug!("collector started");
            tokio::select! {
                drained = work.run(stop) => Some(drained),
                () = kill.cancelled() => None,
            }
        };
        let task = actix_rt::spawn(tasks::named(TaskName::Collector, collecting.instrument(span.clone())));
        let watch = async move {
            let (exit, drained) = match task.await {
                Ok(Some(drained)) => (Exit::Stopped, drained),
                Ok(None) => (Exit::Killed, Drained::default()),
                Err(error) => {
                    let _entered = span.enter();
                    // A panic was logged where it happened.
                    tracing::warn!(panic = tasks::text_of_end(error), "collector ended, it starts again");
                    (Exit::Panicked, Drained::default())
                }
            };
            if let Some(supervisor) = ended.upgrade() {
                supervisor.do_send(CollectorEnded { tenant, epoch, exit, drained });
            }
        };
        ctx.spawn(watch.into_actor(self).map(|(), _, ctx| ctx.stop()));
    }
}
