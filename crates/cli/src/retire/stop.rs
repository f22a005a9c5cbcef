//! The first step: the rollout without the tenants, and no worker that serves one.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::bail;
use balance_sync_domain::printable;
use balance_sync_engine::rollout::{Cause, Change, Pattern, Share};
use balance_sync_schedule::{Rollouts, rollout::StoredRollout};
use balance_sync_tenants::Tenant;
use balance_sync_view::{
    actions::Operator,
    rollout::{NotChanged, Wanted},
};

use super::{
    job::{Job, LOOK_EVERY},
    leave::{Leaving, done_by},
    report::{Refusal, Step},
};
use crate::{args::seconds, wiring};

/// How often it is reported who has not left.
const REPORT_EVERY: Duration = Duration::from_secs(5);

impl Job<'_> {
    /// The rollout without these tenants, and no worker that serves one; returns its revision.
    pub(super) async fn stop(&self, operator: &Operator, who: &str) -> Step<u64> {
        let rollouts = Rollouts::new(self.link.clone());
        let stored = rollouts.read().await?;
        let mut action = None;
        let revision = match stored.filter(|stored| self.is_out(stored)) {
            Some(stored) => stored.number(),
            None => {
                let view = self.reader.view().await;
                let change = match self.args.all {
                    true => Change::None,
                    false => {
                        let pattern = |tenant: &Tenant| Pattern::parse(tenant.label());
                        let patterns: Result<_, String> = self.tenants.iter().map(pattern).collect();
                        Change::Exclude(patterns.map_err(|why| anyhow::anyhow!("rollout: {why}"))?)
                    }
                };
                let desk = wiring::rollout_desk(self.config)?;
                match desk.change(&view, &Wanted::Change(change), who, self.note).await {
                    Ok(done) => {
                        action = Some(done.action_id);
                        done.revision
                    }
                    Err(NotChanged::Redis(error)) => return Err(error.into()),
                    Err(refused) => {
                        return Ok(Err(Refusal(format!(
                            "the rollout was not changed, nothing was done: {refused}"
                        ))));
                    }
                }
            }
        };
        let staying = self.wait_until_left(operator, revision, action.as_deref()).await?;
        if staying.is_empty() {
            return Ok(Ok(revision));
        }
        Ok(Err(Refusal(format!(
            "these workers have not left within {:.0} s: {}. The rollout (revision {revision}) keeps all others away, nothing else was done; see \
             `balance-sync workers`, and run the command again",
            self.args.drain,
            staying.join(", ")
        ))))
    }

    /// Whether a stored rollout keeps all workers away by what this command would set.
    fn is_out(&self, stored: &StoredRollout) -> bool {
        let Ok(Some(selection)) = &stored.selection else { return false };
        if self.args.all {
            return selection.share() == Share::NONE && selection.include().is_empty();
        }
        self.tenants.iter().all(|tenant| selection.cause(tenant.label()) == Cause::Excluded)
    }

    /// Waits until no worker serves any of them; returns who still may.
    async fn wait_until_left(
        &self,
        operator: &Operator,
        revision: u64,
        action: Option<&str>,
    ) -> anyhow::Result<Vec<String>> {
        const LATEST: usize = 200;
        let tenants: BTreeSet<&str> = self.tenants.iter().map(Tenant::label).collect();
        let (begun, limit) = (Instant::now(), seconds(self.args.drain));
        let mut leaving = Leaving::default();
        let mut reported = begun;
        loop {
            let view = self.reader.view().await;
            let mut done = BTreeSet::new();
            if let Some(action) = action {
                let (_, latest) = operator.actions(None, 1, LATEST).await?;
                let ours = latest.into_iter().find(|one| one.id == action);
                done = ours.map(|ours| done_by(&ours.outcomes)).unwrap_or_default();
            }
            let staying = match &view.redis_error {
                None => leaving.staying(Instant::now(), &view, revision, &tenants, &done),
                Some(error) if begun.elapsed() >= limit => bail!("Redis can't be asked: {error}"),
                Some(_) => vec!["?".to_owned()],
            };
            if staying.is_empty() || begun.elapsed() >= limit {
                return Ok(staying);
            }
            if reported.elapsed() >= REPORT_EVERY {
                eprintln!("retire: waiting for {}", printable(&staying.join(", ")));
                reported = Instant::now();
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }
}
