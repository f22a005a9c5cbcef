//! What a collector tells as spans. One trace per batch: `batch` from the first claim that brought something to the end
//! of its flush, and in it `claim`, as many as filled the buffer, and `flush` with its stages.
//!
//! A claim becomes a span when it has brought something: thousands of idle tenants make none.

use std::time::Duration;

use balance_sync_domain::{KeySpace, TenantId};
use balance_sync_schedule::{Claim, Claimed};
use balance_sync_trace::Span;

use super::Driver;
use crate::pipeline::{
    failure::reaction,
    flush::FlushEnd,
    ports::{Queue, Sink},
};
use crate::status::{Outcome, Trigger};

impl<Q: Queue, S: Sink> Driver<'_, Q, S> {
    /// Tells of a claim that was answered, before the buffer takes in what it brought.
    pub(super) fn trace_claim(&mut self, took: Duration, limit: usize, claim: &Claim) {
        if claim.entries.is_empty() {
            return;
        }
        if self.machine.buffered() == 0 {
            self.batch = Span::root_since("batch", took);
            self.batch.set("tenant_id", tenant(self.queue.space()));
        }
        if !self.batch.is_some() {
            return;
        }
        let span = self.batch.store_call_since("claim", "redis", took);
        span.set("tenant_id", tenant(self.queue.space()));
        span.count("limit", limit);
        span.count("claimed", claim.entries.len());
        span.set("scheduled", i64::try_from(claim.scheduled).unwrap_or(i64::MAX));
        if let Some(oldest) = claim.entries.iter().find_map(Claimed::scheduled_at) {
            span.set("oldest_due_age_seconds", claim.now - oldest);
        }
    }
}

/// Outcomes that are attributes of a flush's span.
const SPAN_OUTCOMES: [Outcome; 6] = [
    Outcome::Updated,
    Outcome::Stale,
    Outcome::Deleted,
    Outcome::Forked,
    Outcome::Quarantined,
    Outcome::Released,
];

/// Tells how a flush ended.
pub(super) fn tell(span: &Span, space: &KeySpace, trigger: Trigger, end: &FlushEnd) {
    if !span.is_some() {
        return;
    }
    span.set("tenant_id", tenant(space));
    span.set("trigger", trigger.as_str());
    span.count("claimed", end.claimed);
    for outcome in SPAN_OUTCOMES {
        span.set(outcome.as_str(), i64::try_from(end.outcomes[outcome]).unwrap_or(i64::MAX));
    }
    span.count("orphaned", end.orphaned);
    match &end.failure {
        None => span.set("outcome", "written"),
        Some(error) => {
            span.set("outcome", "failed");
            span.fail(reaction(error).reason.as_str(), || error.to_string());
        }
    }
}

fn tenant(space: &KeySpace) -> String {
    space.tenant_id().map_or("single", TenantId::as_str).to_owned()
}
