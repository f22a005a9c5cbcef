//! All schedules of one tenant: one for each form of its id in Redis keys.
//!
//! Most tenants have one. A tenant whose id is a UUID has two (`docs/decisions/0012-both-key-forms.md`), because ledgers of two
//! releases may write at the same time, each in its own form. Each claimed member records its schedule and is settled or
//! released there. The same balance may arrive through both; its version decides which is newer.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use balance_sync_domain::KeySpace;

use crate::{
    claimed::{Claim, Claimed, Refusal, Refused},
    error::{ErrorClass, ScheduleError},
    inspect::Inspected,
    link::Link,
    losses::Loss,
    quarantine::{QuarantineEntry, Quarantined, Retried},
    schedule::{
        Backlog, PostponeReport, QuarantineReport, ReleaseReport, Schedule, ScheduleOptions, SettleReport,
    },
};

/// While another schedule of the tenant is busy, an empty one is skipped for this fraction of the time for which it has been
/// empty …
const PART: u32 = 8;
/// … but at least for this …
const PAUSE_MIN: Duration = Duration::from_millis(20);
/// … and at most for this: the first mutation in the other form waits no longer than one of an idle tenant.
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// State of one schedule at its last claim.
#[derive(Debug, Clone, Copy)]
struct LastClaim {
    scheduled: u64,
    /// Since when it has been empty; `None` = it is not.
    empty_since: Option<Instant>,
    /// When it is claimed from again although it was empty.
    next: Instant,
}

impl LastClaim {
    fn after(self, scheduled: u64, now: Instant) -> Self {
        let empty_since = (scheduled == 0).then(|| self.empty_since.unwrap_or(now));
        let pause =
            empty_since.map_or(Duration::ZERO, |since| ((now - since) / PART).clamp(PAUSE_MIN, PAUSE_MAX));
        Self { scheduled, empty_since, next: now + pause }
    }
}

/// The schedules of one tenant on one link. There is at least one; the first represents the tenant.
#[derive(Debug)]
pub struct Schedules {
    all: Vec<Schedule>,
    last_claims: Mutex<Vec<LastClaim>>,
    /// The one that the next claim begins with.
    begin: AtomicUsize,
}

impl Schedules {
    /// The schedules of these key spaces on this link.
    ///
    /// # Panics
    /// Without any key space.
    #[must_use]
    pub fn new(
        link: &Link,
        spaces: impl IntoIterator<Item = KeySpace>,
        options: &Arc<ScheduleOptions>,
    ) -> Self {
        let all: Vec<Schedule> =
            spaces.into_iter().map(|space| Schedule::new(link.clone(), space, Arc::clone(options))).collect();
        assert!(!all.is_empty(), "a tenant has at least one key space");
        let fresh = LastClaim { scheduled: 0, empty_since: None, next: Instant::now() };
        Self { last_claims: Mutex::new(vec![fresh; all.len()]), all, begin: AtomicUsize::new(0) }
    }

    /// The schedule that represents the tenant.
    #[must_use]
    pub fn first(&self) -> &Schedule {
        &self.all[0]
    }

    /// All schedules.
    pub fn iter(&self) -> impl ExactSizeIterator<Item = &Schedule> {
        self.all.iter()
    }

    /// The schedule from which a member was claimed.
    #[must_use]
    pub fn of(&self, claimed: &Claimed) -> &Schedule {
        self.all.get(claimed.schedule).unwrap_or(&self.all[0])
    }

    /// The schedule whose key prefix the member has; the first one if it has none of them.
    #[must_use]
    pub fn of_member(&self, member: &[u8]) -> &Schedule {
        let own = |schedule: &&Schedule| member.starts_with(schedule.space().balance_prefix().as_bytes());
        self.all.iter().find(own).unwrap_or(&self.all[0])
    }

    // -- for collectors ------------------------------------------------------------------------------------------

    /// Claims up to `limit` due members, round robin over the schedules. While one is busy, an empty one is claimed from less
    /// and less often, down to once a second, so the unused form costs little.
    ///
    /// # Errors
    /// As Redis answers, if nothing was claimed. If the first schedule returned members and the second an error, the members
    /// are returned, and the next claim begins with the second. A missing right to one form is reported with the members of
    /// the other: rights are granted by key patterns and may cover one form only.
    pub async fn claim(&self, limit: usize) -> Result<Claim, ScheduleError> {
        if let [only] = self.all.as_slice() {
            return only.claim(limit).await;
        }
        let begin = self.begin.fetch_add(1, Ordering::Relaxed);
        let mut claim = Claim::default();
        let (mut readable, mut refused) = (false, Vec::new());
        for at in self.candidates(begin) {
            let room = limit.saturating_sub(claim.entries.len());
            if room == 0 {
                self.begin.store(at, Ordering::Relaxed);
                break;
            }
            let mut part = match self.all[at].claim(room).await {
                Ok(part) => part,
                Err(_) if !claim.entries.is_empty() => {
                    self.begin.store(at, Ordering::Relaxed);
                    break;
                }
                // No access to the schedule itself. If only its values are refused, the error is the tenant's.
                Err(error)
                    if error.class == ErrorClass::Permission && !error.refusal().contains("script") =>
                {
                    self.note(at, 0);
                    refused.push(Refused { put_off: 0, error });
                    continue;
                }
                Err(error) => return Err(error),
            };
            readable = true;
            if let Some(part) = part.refused.take() {
                refused.push(part);
            }
            self.note(at, part.scheduled);
            for claimed in &mut part.entries {
                claimed.schedule = at;
            }
            claim.now = claim.now.max(part.now);
            claim.foreign += part.foreign;
            if part.ledger_lock > claim.ledger_lock {
                claim.ledger_lock = part.ledger_lock;
            }
            claim.isolated += part.isolated;
            claim.unlisted += part.unlisted;
            claim.unlock_in = claim.unlock_in.into_iter().chain(part.unlock_in).min();
            if claim.entries.is_empty() {
                claim.entries = part.entries;
            } else {
                claim.entries.append(&mut part.entries);
            }
        }
        let put_off = refused.iter().map(|part| part.put_off).sum();
        match refused.pop() {
            Some(Refused { error, .. }) if !readable => return Err(error),
            last => claim.refused = last.map(|last| Refused { put_off, ..last }),
        }
        claim.scheduled = self.lock().iter().map(|last| last.scheduled).sum();
        Ok(claim)
    }

    /// Mode `auto`: whether the next claims take the locks of the ledger's own worker. Without effect in the other modes.
    pub fn take_locks(&self, take: bool) {
        self.all.iter().for_each(|schedule| schedule.take_locks(take));
    }

    /// The schedules to claim from now, in order.
    fn candidates(&self, begin: usize) -> Vec<usize> {
        let now = Instant::now();
        let last = self.lock();
        let order = (0..last.len()).map(|at| (begin + at) % last.len());
        let busy = last.iter().any(|last| last.empty_since.is_none());
        order.filter(|at| !busy || last[*at].empty_since.is_none() || last[*at].next <= now).collect()
    }

    fn note(&self, at: usize, scheduled: u64) {
        let mut last = self.lock();
        last[at] = last[at].after(scheduled, Instant::now());
    }

    /// Makes the next claim begin with the schedule of this key, because something is due there.
    pub fn wake(&self, key: &str) {
        if let Some(at) = self.all.iter().position(|schedule| schedule.space().schedule() == key) {
            self.lock()[at].next = Instant::now();
            self.begin.store(at, Ordering::Relaxed);
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Vec<LastClaim>> {
        self.last_claims.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// As [`Schedule::settle`], each member in the schedule it came from. Entries of the same balances under the other form are
    /// cleared where what was written is as new, and losses there are marked.
    ///
    /// # Errors
    /// As [`Schedule::settle`].
    pub async fn settle(&self, written: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        if let [only] = self.all.as_slice() {
            return only.settle(written).await;
        }
        let mut sum = None;
        for (schedule, members) in self.by_schedule(written, |claimed| claimed.schedule) {
            let at = members[0].schedule.min(self.all.len() - 1);
            let (report, entries) = futures::join!(schedule.settle(&members), self.others_have_entries(at));
            if entries && report.is_ok() {
                self.mend_others(at, &members).await;
            }
            add(&mut sum, report, &members)?;
        }
        Ok(sum.unwrap_or_default())
    }

    /// As [`Schedule::release`], each member in the schedule it came from.
    ///
    /// # Errors
    /// As [`Schedule::release`]; some may have been released then.
    pub async fn release(&self, held: &[&Claimed]) -> Result<ReleaseReport, ScheduleError> {
        if let [only] = self.all.as_slice() {
            return only.release(held).await;
        }
        let mut sum = ReleaseReport::default();
        for (schedule, members) in self.by_schedule(held, |claimed| claimed.schedule) {
            let report = schedule.release(&members).await?;
            sum.released += report.released;
            sum.kept += report.kept;
        }
        Ok(sum)
    }

    /// As [`Schedule::postpone`], each member in the schedule it came from.
    ///
    /// # Errors
    /// As [`Schedule::postpone`]; some may have been postponed then.
    pub async fn postpone(&self, members: &[(&Claimed, bool)]) -> Result<PostponeReport, ScheduleError> {
        if let [only] = self.all.as_slice() {
            return only.postpone(members).await;
        }
        let mut sum = PostponeReport::default();
        for (schedule, members) in self.by_schedule(members, |(claimed, _)| claimed.schedule) {
            let report = schedule.postpone(&members).await?;
            sum.postponed += report.postponed;
            sum.kept += report.kept;
            sum.due = sum.due.max(report.due);
        }
        Ok(sum)
    }

    /// As [`Schedule::quarantine`], each member in the schedule it came from.
    ///
    /// # Errors
    /// As [`Schedule::quarantine`]; some may be in quarantine then.
    pub async fn quarantine(
        &self,
        refused: &[(&Claimed, Refusal)],
    ) -> Result<QuarantineReport, ScheduleError> {
        if let [only] = self.all.as_slice() {
            return only.quarantine(refused).await;
        }
        let mut sum = QuarantineReport::default();
        for (schedule, members) in self.by_schedule(refused, |(claimed, _)| claimed.schedule) {
            let report = schedule.quarantine(&members).await?;
            sum.quarantined += report.quarantined;
            sum.kept += report.kept;
            sum.full += report.full;
        }
        Ok(sum)
    }

    /// As [`Schedule::dismiss`], each member in the schedule it came from.
    ///
    /// # Errors
    /// As [`Schedule::dismiss`].
    pub async fn dismiss(&self, obsolete: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        let mut sum = None;
        for (schedule, members) in self.by_schedule(obsolete, |claimed| claimed.schedule) {
            add(&mut sum, schedule.dismiss(&members).await, &members)?;
        }
        Ok(sum.unwrap_or_default())
    }

    /// As [`Schedule::put_off`], each member in the schedule it came from; returns one report for each of these schedules.
    ///
    /// # Errors
    /// As [`Schedule::put_off`]; some may have been put off then.
    pub async fn put_off(
        &self,
        absent: &[&Claimed],
        delay: Duration,
    ) -> Result<Vec<(usize, PostponeReport)>, ScheduleError> {
        let mut reports = Vec::new();
        for (schedule, members) in self.by_schedule(absent, |claimed| claimed.schedule) {
            let at = members.first().map_or(0, |claimed| claimed.schedule);
            reports.push((at, schedule.put_off(&members, delay).await?));
        }
        Ok(reports)
    }

    /// As [`Schedule::record_losses`], each member in the schedule it came from.
    ///
    /// # Errors
    /// As [`Schedule::record_losses`]; some may have been recorded then.
    pub async fn record_losses(&self, lost: &[(&Claimed, Loss)]) -> Result<QuarantineReport, ScheduleError> {
        let mut sum = QuarantineReport::default();
        for (schedule, members) in self.by_schedule(lost, |(claimed, _)| claimed.schedule) {
            let report = schedule.record_losses(&members).await?;
            sum.quarantined += report.quarantined;
            sum.kept += report.kept;
            sum.full += report.full;
        }
        Ok(sum)
    }

    /// The items by schedule, without empty ones.
    fn by_schedule<T: Clone>(&self, items: &[T], of: impl Fn(&T) -> usize) -> Vec<(&Schedule, Vec<T>)> {
        let last = self.all.len() - 1;
        let part = |at: usize| items.iter().filter(|item| of(item).min(last) == at).cloned().collect();
        let parts = self.all.iter().enumerate().map(|(at, schedule)| (schedule, part(at)));
        parts.filter(|(_, part): &(_, Vec<T>)| !part.is_empty()).collect()
    }

    /// As [`Schedule::protect_since`], for all schedules.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn protect_since(&self, from: Option<f64>) -> Result<(f64, u64), ScheduleError> {
        let (mut begun, mut raised) = (f64::INFINITY, 0);
        for schedule in &self.all {
            let (now, more) = schedule.protect_since(from).await?;
            // The earliest, so that members added to the first one meanwhile are protected next time.
            begun = begun.min(now);
            raised += more;
        }
        Ok((begun, raised))
    }

    /// Moves up to `page` members of each legacy schedule. Returns how many were moved, and how many are left.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn adopt_legacy(&self, page: usize) -> Result<(u64, u64), ScheduleError> {
        let (mut adopted, mut left) = (0, 0);
        for schedule in &self.all {
            let counts = schedule.adopt_legacy(page).await?;
            adopted += counts.0;
            left += counts.1;
        }
        Ok((adopted, left))
    }

    // -- for operators -------------------------------------------------------------------------------------------

    /// The sum of all backlogs.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn backlog(&self) -> Result<Backlog, ScheduleError> {
        let mut sum = Backlog::default();
        for schedule in &self.all {
            let part = schedule.backlog().await?;
            sum.due += part.due;
            sum.leased += part.leased;
            sum.oldest_due_age = sum.oldest_due_age.max(part.oldest_due_age);
        }
        Ok(sum)
    }

    /// The members among these that are not scheduled in their own form.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn not_scheduled(&self, members: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, ScheduleError> {
        let mut found = Vec::new();
        for (schedule, members) in self.by_schedule(members, |member| self.position(member)) {
            found.append(&mut schedule.not_scheduled(&members).await?);
        }
        Ok(found)
    }

    /// As [`Schedule::schedule_again`], each member in its own form.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn schedule_again(&self, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        let mut done = 0;
        for (schedule, members) in self.by_schedule(members, |member| self.position(member)) {
            done += schedule.schedule_again(&members).await?;
        }
        Ok(done)
    }

    /// As [`Schedule::distant`], of all schedules.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn distant(&self) -> Result<u64, ScheduleError> {
        let mut sum = 0;
        for schedule in &self.all {
            sum += schedule.distant().await?;
        }
        Ok(sum)
    }

    /// As [`Schedule::reschedule_distant`], in all schedules.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn reschedule_distant(&self) -> Result<u64, ScheduleError> {
        let mut sum = 0;
        for schedule in &self.all {
            sum += schedule.reschedule_distant().await?;
        }
        Ok(sum)
    }

    fn position(&self, member: &[u8]) -> usize {
        let own = |schedule: &Schedule| member.starts_with(schedule.space().balance_prefix().as_bytes());
        self.all.iter().position(own).unwrap_or(0)
    }

    /// Everything that Redis holds about a member, in its own form.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn inspect(&self, member: &[u8]) -> Result<Inspected, ScheduleError> {
        self.of_member(member).inspect(member).await
    }

    /// As [`Schedule::find_members`], in all schedules.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn find_members(&self, part: &str, most: usize) -> Result<Vec<Vec<u8>>, ScheduleError> {
        let mut found = Vec::new();
        for schedule in &self.all {
            found.append(&mut schedule.find_members(part, most.saturating_sub(found.len())).await?);
        }
        Ok(found)
    }

    /// Number of members in quarantine.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_len(&self) -> Result<u64, ScheduleError> {
        let mut sum = 0;
        for schedule in &self.all {
            sum += schedule.quarantine_len().await?;
        }
        Ok(sum)
    }

    /// As [`Schedule::quarantine_list`], for all schedules.
    ///
    /// # Errors
    /// As [`Schedule::quarantine_list`].
    pub async fn quarantine_list(&self) -> Result<Vec<Quarantined>, ScheduleError> {
        let mut found = Vec::new();
        self.quarantine_each(|member, entry| found.push(Quarantined { member, entry })).await?;
        found.sort_by(|a, b| a.member.cmp(&b.member));
        Ok(found)
    }

    /// As [`Schedule::quarantine_each`], for all schedules.
    ///
    /// # Errors
    /// As [`Schedule::quarantine_list`].
    pub async fn quarantine_each(
        &self,
        mut show: impl FnMut(Vec<u8>, QuarantineEntry),
    ) -> Result<(), ScheduleError> {
        for schedule in &self.all {
            schedule.quarantine_each(&mut show).await?;
        }
        Ok(())
    }

    /// The entry of a member. One that has no form's prefix may be in any quarantine.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_get(&self, member: &[u8]) -> Result<Option<QuarantineEntry>, ScheduleError> {
        for schedule in &self.all {
            if let Some(entry) = schedule.quarantine_get(member).await? {
                return Ok(Some(entry));
            }
        }
        Ok(None)
    }

    /// As [`Schedule::quarantine_retry`], wherever the members are in quarantine.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_retry(&self, members: &[&[u8]]) -> Result<Retried, ScheduleError> {
        let mut done = Retried::default();
        for schedule in &self.all {
            done += schedule.quarantine_retry(members).await?;
        }
        Ok(done)
    }

    /// As [`Schedule::quarantine_drop`], wherever the members are in quarantine.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn quarantine_drop(&self, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        let mut done = 0;
        for schedule in &self.all {
            done += schedule.quarantine_drop(members).await?;
        }
        Ok(done)
    }
}

/// Adds what came of settling these members. An error that is not the first call's leaves what was settled before.
fn add(
    sum: &mut Option<SettleReport>,
    result: Result<SettleReport, ScheduleError>,
    members: &[&Claimed],
) -> Result<(), ScheduleError> {
    match (sum.as_mut(), result) {
        (None, result) => *sum = Some(result?),
        (Some(sum), Ok(report)) => sum.add(report),
        (Some(sum), Err(error)) => sum.fail(error, members),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_of_an_empty_schedule_grow_up_to_one_second() {
        let now = Instant::now();
        let fresh = LastClaim { scheduled: 0, empty_since: None, next: now };
        let mut last = fresh.after(0, now);
        assert_eq!(last.next - now, PAUSE_MIN);
        let mut at = now;
        for _ in 0..100 {
            at = last.next;
            last = last.after(0, at);
            let pause = last.next - at;
            assert!(pause <= PAUSE_MAX && pause >= PAUSE_MIN && pause <= ((at - now) / PART).max(PAUSE_MIN));
        }
        assert_eq!(last.next - at, PAUSE_MAX);
        let filled = last.after(3, at);
        assert_eq!((filled.scheduled, filled.empty_since, filled.next), (3, None, at));
        assert_eq!(filled.after(0, at).next - at, PAUSE_MIN, "it starts over");
    }
}
