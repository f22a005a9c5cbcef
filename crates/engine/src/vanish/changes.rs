//! What has happened to Redis, until each tenant has its condition.
//!
//! The call that counts the schedules may fail just after a failover, and a tenant may have no worker at that moment, because one
//! stops or dies and the next has not taken it over. So a change is remembered: until the schedules have been counted, and
//! for a while longer for tenants that come later.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use super::server::Change;

/// For how long a change is remembered for tenants that this worker did not serve then. Longer than it takes until another
/// worker serves the tenants of one that has died, and than most outages of the tenant service.
const REMEMBERED: Duration = Duration::from_secs(600);

#[derive(Debug, Clone)]
struct Noticed<T> {
    change: Change,
    at: Instant,
    /// Tenants that have their condition.
    shown: BTreeSet<T>,
}

/// The changes that one worker has noticed. `T` names a tenant.
#[derive(Debug, Clone)]
pub struct Changes<T> {
    replaced: Option<Noticed<T>>,
    evicted: Option<Noticed<T>>,
    /// The schedules have been counted since the last change.
    counted: bool,
}

impl<T> Default for Changes<T> {
    fn default() -> Self {
        Self { replaced: None, evicted: None, counted: true }
    }
}

impl<T: Ord + Clone> Changes<T> {
    /// This has happened.
    pub fn noticed(&mut self, mut change: Change, now: Instant) {
        let slot = match change {
            Change::Replaced { .. } => &mut self.replaced,
            Change::Evicted(_) => &mut self.evicted,
        };
        if let Some(before) = slot.take().filter(|_| !self.counted) {
            // No tenant has its condition for that one yet.
            match (&mut change, before.change) {
                (Change::Evicted(keys), Change::Evicted(more)) => *keys += more,
                (Change::Replaced { how, .. }, before) if !how.is_loss() => change = before,
                _ => {}
            }
        }
        *slot = Some(Noticed { change, at: now, shown: BTreeSet::new() });
        self.counted = false;
    }

    /// Whether schedules are to be counted at once.
    #[must_use]
    pub const fn is_pending(&self) -> bool {
        !self.counted
    }

    /// The schedules of all tenants that this worker serves have been counted.
    pub fn counted(&mut self) {
        self.counted = true;
    }

    /// What a tenant has no condition for yet. `elsewhere`: another worker has opened one, which holds for a tenant that comes
    /// later.
    pub fn of(&mut self, tenant: &T, elsewhere: bool, now: Instant) -> Vec<Change> {
        let late = self.counted;
        let slots = [&mut self.replaced, &mut self.evicted].into_iter().flatten();
        let recent = slots.filter(|noticed| now.saturating_duration_since(noticed.at) < REMEMBERED);
        let new = recent.filter(|noticed| !noticed.shown.contains(tenant));
        new.filter_map(|noticed| {
            noticed.shown.insert(tenant.clone());
            (!(late && elsewhere)).then(|| noticed.change.clone())
        })
        .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::super::server::How;
    use super::*;

    fn replaced(how: How) -> Change {
        Change::Replaced { how, lacks: None }
    }

    #[test]
    fn a_change_is_kept_until_the_schedules_have_been_counted() {
        let (mut changes, now) = (Changes::default(), Instant::now());
        assert!(!changes.is_pending() && changes.of(&"a", false, now).is_empty());
        changes.noticed(replaced(How::Emptied), now);
        // The count fails, and the next look finds another process as well, and evictions.
        assert!(changes.is_pending());
        changes.noticed(replaced(How::OtherProcess), now);
        changes.noticed(Change::Evicted(2), now);
        changes.noticed(Change::Evicted(3), now);
        assert_eq!(changes.of(&"a", false, now), [replaced(How::Emptied), Change::Evicted(5)]);
        assert!(changes.of(&"a", false, now).is_empty(), "once");
        changes.counted();
        assert!(!changes.is_pending());
        changes.noticed(Change::Evicted(1), now);
        assert_eq!(
            changes.of(&"a", true, now),
            [Change::Evicted(1)],
            "more of them, also in an open condition"
        );
    }

    #[test]
    fn a_tenant_that_comes_later_has_its_condition_unless_another_worker_has_opened_it() {
        let (mut changes, now) = (Changes::default(), Instant::now());
        changes.noticed(replaced(How::Behind), now);
        assert_eq!(changes.of(&"served", false, now).len(), 1);
        changes.counted();
        let late = now + REMEMBERED / 2;
        assert_eq!(changes.of(&"taken over", false, late), [replaced(How::Behind)]);
        assert!(changes.of(&"opened elsewhere", true, late).is_empty());
        assert!(changes.of(&"opened elsewhere", false, late).is_empty(), "and closed since");
        assert!(changes.of(&"much later", false, now + REMEMBERED).is_empty());
    }
}
