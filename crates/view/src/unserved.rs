//! Tenants that no live worker serves: no worker samples their schedules, so the reader of the fleet does.

use std::{collections::HashMap, time::Duration};

use balance_sync_schedule::{Link, Sample, ScheduleError, sample::sample};
use balance_sync_tenants::{KeyForm, Tenant};

use crate::rows::TenantRow;

/// Tenants whose schedules are read in one look; of the others it stays unknown what waits. Some 100 calls of Redis.
pub(crate) const MOST: usize = 10_000;
/// Tenants in one call.
const PAGE: usize = 100;

/// What waits in the schedules of one tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Waiting {
    scheduled: u64,
    due: u64,
    leased: u64,
    oldest_due_age: Duration,
    quarantined: u64,
    losses: u64,
    shortest_life: Option<Duration>,
}

/// Reads the schedules of these tenants, by the name they are shown under. Those that can't be read are left out.
pub(crate) async fn read(
    link: &Link,
    key_form: KeyForm,
    tenants: &[&Tenant],
) -> Result<HashMap<String, Waiting>, ScheduleError> {
    let mut read = HashMap::with_capacity(tenants.len().min(MOST));
    for page in tenants[..tenants.len().min(MOST)].chunks(PAGE) {
        let spaces: Vec<_> = page.iter().map(|tenant| tenant.key_spaces(key_form)).collect();
        let all: Vec<_> = spaces.iter().flatten().collect();
        let mut samples = sample(link, &all).await?.into_iter();
        for (tenant, spaces) in page.iter().zip(&spaces) {
            let of_tenant: Vec<Sample> = samples.by_ref().take(spaces.len()).collect();
            if let Some(waiting) = sum(&of_tenant) {
                read.insert(tenant.label().to_owned(), waiting);
            }
        }
    }
    Ok(read)
}

/// Over all schedules of a tenant; `None` if one of them can't be read.
fn sum(samples: &[Sample]) -> Option<Waiting> {
    let mut waiting = Waiting::default();
    for sample in samples {
        let losses = sample.lost?;
        waiting.scheduled += sample.scheduled?;
        waiting.losses += losses;
        // To people both are one list.
        waiting.quarantined += sample.quarantined? + losses;
        waiting.due += sample.due;
        waiting.leased += sample.leased;
        waiting.oldest_due_age = waiting.oldest_due_age.max(sample.oldest_due_age);
        let life = sample.shortest.as_ref().map(|(life, _)| *life);
        waiting.shortest_life = match (waiting.shortest_life, life) {
            (Some(a), Some(b)) => Some(a.min(b)),
            (a, b) => a.or(b),
        };
    }
    Some(waiting)
}

impl Waiting {
    /// Puts what was read into the row of the tenant.
    pub(crate) fn fill(self, row: &mut TenantRow) {
        row.sampled = true;
        row.scheduled = self.scheduled;
        row.due = self.due;
        row.leased = self.leased;
        row.oldest_due_age_seconds = self.oldest_due_age.as_secs_f64();
        row.exposure_age_seconds = row.oldest_due_age_seconds;
        row.quarantined = self.quarantined;
        row.losses = self.losses;
        row.shortest_life_seconds = self.shortest_life.map(|life| life.as_secs_f64());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(scheduled: u64, life: Option<u64>) -> Sample {
        Sample {
            scheduled: Some(scheduled),
            due: scheduled,
            oldest_due_age: Duration::from_secs(scheduled),
            quarantined: Some(1),
            lost: Some(2),
            shortest: life.map(|life| (Duration::from_secs(life), Vec::new())),
            ..Sample::default()
        }
    }

    #[test]
    fn both_forms_of_a_tenant_count_as_one() {
        let both = sum(&[sample(3, None), sample(4, Some(50))]).unwrap_or_default();
        assert_eq!((both.scheduled, both.due, both.quarantined, both.losses), (7, 7, 6, 4));
        assert_eq!((both.oldest_due_age.as_secs(), both.shortest_life), (4, Some(Duration::from_secs(50))));
    }

    #[test]
    fn what_cant_be_read_is_unknown_and_not_zero() {
        let cases = [
            Sample { scheduled: None, ..sample(3, None) },
            Sample { quarantined: None, ..sample(3, None) },
            Sample { lost: None, ..sample(3, None) },
        ];
        for unknown in cases {
            assert_eq!(sum(&[sample(1, None), unknown]), None);
        }
    }
}
