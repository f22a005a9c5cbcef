//! Looks for balances where tenants seldom have any: in the schedules of ledgers before v3.6.2, and in those of the key form that
//! isn't served. Few commands for all tenants, as there is nearly never anything; where there is, the tenant's collector surveys them.
//!
//! A collector surveys by itself too, when it starts and much less often from then on ([`SELDOM`]).

use std::{sync::Arc, time::Duration};

use balance_sync_schedule::{Link, QueueError, QueueReader};
use balance_sync_tenants::{KeyForm, other_key_space};
use tokio_util::sync::CancellationToken;

use crate::{
    status::{FleetStatus, TenantStatus},
    tasks::{Progress, jittered},
};

/// A collector surveys once in so many looks by itself.
pub(crate) const SELDOM: u32 = 10;
/// Tenants in one command: some 500 keys.
const PAGE: usize = 125;
/// Between two pages, so that no other call of Redis or of the thread waits for all of them.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks at the seldom schedules of all tenants.
#[derive(Debug, Clone)]
pub(crate) struct LegacyWatch {
    pub(crate) link: Link,
    pub(crate) fleet: Arc<FleetStatus>,
    pub(crate) key_form: KeyForm,
    pub(crate) interval: Duration,
}

impl LegacyWatch {
    /// Looks until it is stopped.
    pub(crate) async fn run(self, stop: CancellationToken, progress: Progress) {
        let reader = QueueReader::new(self.link.clone());
        let watching = async {
            loop {
                // Before the first look: each collector that starts makes its own.
                tokio::time::sleep(jittered(self.interval)).await;
                self.look(&progress, async |keys: &[&str]| reader.existing(keys).await).await;
            }
        };
        stop.run_until_cancelled(watching).await;
    }

    async fn look(&self, progress: &Progress, existing: impl AsyncFn(&[&str]) -> Result<u64, QueueError>) {
        for page in self.fleet.tenants().chunks(PAGE) {
            progress.beat();
            let keys: Vec<Vec<String>> = page.iter().map(|status| self.keys(status)).collect();
            let all: Vec<&str> = keys.iter().flatten().map(String::as_str).collect();
            match existing(&all).await {
                Ok(0) => {}
                Ok(_) => {
                    for (status, keys) in page.iter().zip(&keys) {
                        let keys: Vec<&str> = keys.iter().map(String::as_str).collect();
                        if !matches!(existing(&keys).await, Ok(0)) {
                            status.requests.survey();
                        }
                    }
                }
                Err(QueueError::Redis(error)) => {
                    tracing::debug!(%error, "seldom schedules can't be looked at");
                    return;
                }
                // Some may not be read: each collector finds that out for itself.
                Err(_) => page.iter().for_each(|status| status.requests.survey()),
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn keys(&self, status: &TenantStatus) -> Vec<String> {
        let spaces = status.tenant().key_spaces(self.key_form);
        let mut keys: Vec<String> = spaces.iter().map(|space| space.legacy_schedule().to_owned()).collect();
        if let Some(other) = other_key_space(status.tenant(), self.key_form) {
            keys.extend([other.schedule(), other.legacy_schedule()].map(str::to_owned));
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::cell::RefCell;

    use balance_sync_domain::TenantId;
    use balance_sync_schedule::LinkSettings;
    use balance_sync_tenants::Tenant;

    use super::*;
    use crate::tasks::TaskName;

    #[tokio::test(start_paused = true)]
    async fn a_tenant_with_something_in_a_seldom_schedule_is_asked_to_survey_and_no_other() {
        let watch = LegacyWatch {
            link: Link::new(&LinkSettings::for_url("redis://127.0.0.1:1")).unwrap(),
            fleet: Arc::default(),
            key_form: KeyForm::AsListed,
            interval: Duration::from_secs(60),
        };
        let tenants: Vec<_> = (0..2 * PAGE)
            .map(|n| watch.fleet.tenant(&Tenant::Id(TenantId::parse(&format!("t{n:04}")).unwrap())))
            .collect();
        let asked = RefCell::new(Vec::new());
        let there = watch.keys(&tenants[3])[0].clone();
        let existing = async |keys: &[&str]| {
            asked.borrow_mut().push(keys.len());
            Ok(u64::from(keys.contains(&&*there)))
        };
        watch.look(&Progress::unobserved(TaskName::LegacyWatch), existing).await;
        let found: Vec<usize> = (0..tenants.len()).filter(|n| tenants[*n].requests.is_pending()).collect();
        assert_eq!(found, [3]);
        assert_eq!(asked.borrow().iter().filter(|keys| **keys > 4).count(), 2, "one command for each page");

        let denied = async |_: &[&str]| Err(QueueError::Denied("+exists".to_owned()));
        watch.look(&Progress::unobserved(TaskName::LegacyWatch), denied).await;
        assert!(tenants.iter().all(|status| status.requests.is_pending()));
    }
}
