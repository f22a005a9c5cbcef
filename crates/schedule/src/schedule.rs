//! One tenant's schedule: a typed wrapper for each script.

use std::{
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use balance_sync_domain::KeySpace;
use redis::Value;

use crate::{
    claim_mode::Locking,
    claimed::{Claim, Claimed, LedgerLock, Refusal, Refused, Unreadable},
    controls::EVENTS,
    error::ScheduleError,
    link::Link,
    reply::{array, bulk, int, ints, millis, seconds, seconds_of_time, text},
    rights, scripts,
    whole_claims::{self, WholeClaim},
};

balance_sync_engine::names! {
    /// How a claim excludes other workers (`claim.mode`).
    pub enum ClaimMode {
        /// The lease in the schedule alone.
        Lease = "lease",
        /// The lease and the lock key of the ledger's own worker, while both run.
        Lock = "lock",
        /// As `lock` while the ledger's own worker is seen at the tenant, or may be there; as `lease` when it has been quiet for long
        /// enough.
        Auto = "auto",
    }
}

/// How often a claim of mode `lease` looks for locks of the ledger's own worker …
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// … at so many members at most …
const LOOKED_AT: usize = 16;
/// … and how often where Redis refuses to return them.
const LOOK_AGAIN_AFTER: Duration = Duration::from_secs(300);
/// Added to the longest lease or delay before a member counts as too far ahead.
const REACH_MARGIN: Duration = Duration::from_secs(10);

/// Settings for schedules, the same for all tenants of a worker.
#[derive(Debug, Clone)]
pub struct ScheduleOptions {
    /// Lease alone, or lease and lock.
    pub mode: ClaimMode,
    /// Mode `auto`: for how long the ledger's own worker must be quiet before claims no longer take its locks. It counts as active for
    /// a quarter of this.
    pub quiet: Duration,
    /// Duration of a claim; a killed worker's claims are due again after it.
    pub claim_ttl: Duration,
    /// Shorter remaining TTLs of claimed, released and scheduled values are raised to this; zero = never.
    pub protect_floor: Duration,
    /// Mode `lock`: most members examined in one claim.
    pub lock_scan_limit: usize,
    /// Mode `lock`: value of our locks, so that only ours are deleted. Unique per worker process.
    pub lock_token: String,
    /// Most entries in a tenant's quarantine.
    pub quarantine_limit: usize,
    /// Bytes of a value that a quarantine entry keeps.
    pub quarantine_value_limit: usize,
    /// Delay of members that find the quarantine full.
    pub quarantine_put_off: Duration,
    /// Delay of members that can't be synced at present while others of the tenant can.
    pub put_off: Duration,
}

impl ScheduleOptions {
    /// The furthest that any of our scripts schedules a member ahead, and a margin.
    #[must_use]
    pub fn reach(&self) -> Duration {
        self.claim_ttl.max(self.put_off).max(self.quarantine_put_off) + REACH_MARGIN
    }
}

impl Default for ScheduleOptions {
    fn default() -> Self {
        Self {
            mode: ClaimMode::Lease,
            quiet: Duration::from_secs(1200),
            claim_ttl: Duration::from_secs(30),
            protect_floor: Duration::from_secs(900),
            lock_scan_limit: 5000,
            lock_token: "balance-sync".to_owned(),
            quarantine_limit: 10_000,
            quarantine_value_limit: 65_536,
            quarantine_put_off: Duration::from_secs(600),
            put_off: Duration::from_secs(60),
        }
    }
}

/// Result of settling.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SettleReport {
    /// Redis time after the write, in seconds. The lag is the difference to the former score, by the same clock.
    pub now: f64,
    /// Members removed.
    pub removed: u64,
    /// Members that stay scheduled, because of a newer mutation or a later claim.
    pub kept: u64,
    /// What is not settled because a later call failed.
    pub unsettled: Option<Unsettled>,
}

impl SettleReport {
    /// Whether this one of the members that were to be settled has been.
    #[must_use]
    pub fn has_settled(&self, claimed: &Claimed) -> bool {
        self.unsettled.as_ref().is_none_or(|unsettled| !unsettled.holds(claimed))
    }

    /// Adds a later call.
    pub(crate) fn add(&mut self, later: SettleReport) {
        self.now = self.now.max(later.now);
        self.removed += later.removed;
        self.kept += later.kept;
        match (&mut self.unsettled, later.unsettled) {
            (Some(unsettled), Some(later)) => unsettled.leases.extend(later.leases),
            (unsettled @ None, later) => *unsettled = later,
            (Some(_), None) => {}
        }
    }

    /// Adds a later call that failed with these members. If it had been the only one, it would be an error: nothing has been settled.
    pub(crate) fn fail(&mut self, error: ScheduleError, members: &[&Claimed]) {
        let mut leases = self.unsettled.take().map(|before| before.leases).unwrap_or_default();
        for claimed in members {
            if !leases
                .iter()
                .any(|(schedule, lease)| *schedule == claimed.schedule && *lease == claimed.lease)
            {
                leases.push((claimed.schedule, Arc::clone(&claimed.lease)));
            }
        }
        self.unsettled = Some(Unsettled { leases, error });
    }
}

/// Members that may be scheduled still: their leases lapse.
#[derive(Debug, Clone, PartialEq)]
pub struct Unsettled {
    /// Schedule and lease of each of their claims.
    pub leases: Vec<(usize, Arc<str>)>,
    /// Why.
    pub error: ScheduleError,
}

impl Unsettled {
    fn holds(&self, claimed: &Claimed) -> bool {
        self.leases.iter().any(|(schedule, lease)| *schedule == claimed.schedule && *lease == claimed.lease)
    }
}

/// Result of releasing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ReleaseReport {
    /// Members with their former score again, due for every worker.
    pub released: u64,
    /// Members with a newer mutation or a later claim.
    pub kept: u64,
}

/// Result of postponing.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct PostponeReport {
    /// Members that are due again after the delay.
    pub postponed: u64,
    /// Members with a newer mutation or a later claim.
    pub kept: u64,
    /// The score of the postponed, in seconds. No other script or producer gives it.
    pub due: f64,
}

/// Result of quarantining.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct QuarantineReport {
    /// Members now in quarantine.
    pub quarantined: u64,
    /// Members with a newer mutation or a later claim: still scheduled.
    pub kept: u64,
    /// Members postponed because the quarantine is full; still scheduled.
    pub full: u64,
}

/// The members of a schedule, counted.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Backlog {
    /// Members that are due.
    pub due: u64,
    /// Members that a worker has claimed, or that are postponed.
    pub leased: u64,
    /// For how long the oldest due member has been due, in seconds.
    pub oldest_due_age: f64,
}

/// One tenant's schedule on one link. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Schedule {
    link: Link,
    space: KeySpace,
    options: Arc<ScheduleOptions>,
    locking: Arc<Locking>,
    calls: Arc<Calls>,
}

/// What later calls need of earlier ones.
#[derive(Debug, Default)]
struct Calls {
    /// Mode `lock`: offset of the next claim, after members with foreign locks.
    resume: AtomicU64,
    /// Whether members of the last whole claim had changed when it was settled: the next are then settled by name.
    by_name: AtomicBool,
    /// When a claim of mode `lease` looks for locks of the ledger's own worker again.
    next_look: Mutex<Option<Instant>>,
}

impl Schedule {
    /// The schedule of the key space on this link.
    #[must_use]
    pub fn new(link: Link, space: KeySpace, options: Arc<ScheduleOptions>) -> Self {
        let locking = Arc::new(Locking::new(options.mode));
        Self { link, space, options, locking, calls: Arc::default() }
    }

    /// Mode `auto`: whether the next claims take the locks of the ledger's own worker. Without effect in the other modes.
    pub fn take_locks(&self, take: bool) {
        self.locking.take(take);
    }

    /// Whether claims take the locks of the ledger's own worker.
    #[must_use]
    pub fn takes_locks(&self) -> bool {
        self.locking.takes()
    }

    /// Its keys.
    #[must_use]
    pub fn space(&self) -> &KeySpace {
        &self.space
    }

    /// Its connection.
    #[must_use]
    pub fn link(&self) -> &Link {
        &self.link
    }

    /// Its settings.
    #[must_use]
    pub fn options(&self) -> &ScheduleOptions {
        &self.options
    }

    /// Claims up to `limit` due members with their values.
    ///
    /// # Errors
    /// As Redis answers. If Redis refused to return the values, nothing was claimed. Otherwise members may have been claimed;
    /// their leases expire.
    pub async fn claim(&self, limit: usize) -> Result<Claim, ScheduleError> {
        const OPERATION: &str = "claim";
        /// Parts before those of the members.
        const HEAD: usize = 11;
        let lock_prefix =
            if self.locking.claim(self.options.claim_ttl) { self.space.lock_prefix() } else { String::new() };
        let look = if lock_prefix.is_empty() { self.begin_look() } else { 0 };
        let mut cmd = scripts::CLAIM.call(1);
        cmd.arg(self.space.schedule())
            .arg(limit.max(1))
            .arg(millis(self.options.claim_ttl))
            .arg(millis(self.options.protect_floor))
            .arg(self.space.prefix())
            .arg(self.space.quarantine())
            .arg(lock_prefix)
            .arg(&self.options.lock_token)
            .arg(self.options.lock_scan_limit.max(limit))
            .arg(self.calls.resume.load(Ordering::Relaxed))
            .arg(millis(self.options.put_off))
            .arg(self.options.quarantine_limit)
            .arg(EVENTS)
            .arg(look)
            .arg(self.space.lock_prefix());
        let Value::Array(parts) = scripts::CLAIM.run(&self.link, &cmd).await? else {
            return Err(ScheduleError::unexpected(OPERATION, "the script returned no array"));
        };
        if parts.len() < HEAD || !(parts.len() - HEAD).is_multiple_of(3) {
            return Err(ScheduleError::unexpected(
                OPERATION,
                format!("the script returned {} parts", parts.len()),
            ));
        }
        let mut parts = parts.into_iter();
        let mut head = [const { Value::Nil }; HEAD];
        for (slot, part) in head.iter_mut().zip(parts.by_ref()) {
            *slot = part;
        }
        let now = seconds(OPERATION, &head[0])?;
        let lease: Arc<str> = Arc::from(text(OPERATION, &head[1])?);
        let [scheduled, resume, foreign] =
            [int(OPERATION, &head[2])?, int(OPERATION, &head[3])?, int(OPERATION, &head[4])?];
        self.calls.resume.store(resume, Ordering::Relaxed);
        let (put_off, refusal) = (int(OPERATION, &head[5])?, bulk(OPERATION, &head[6])?);
        let Value::Int(unlock_in) = head[7] else {
            return Err(ScheduleError::unexpected(OPERATION, "the end of a lock is not an integer"));
        };
        let unlock_in = u64::try_from(unlock_in).ok().map(Duration::from_millis);
        let [isolated, unlisted] = [int(OPERATION, &head[8])?, int(OPERATION, &head[9])?];
        let ledger_lock = match head[10] {
            Value::Int(age) if age >= 0 => LedgerLock::TakenAt(now - age as f64 / 1e3),
            Value::Int(-1) => LedgerLock::Free,
            _ => LedgerLock::NotLooked,
        };
        let mut refused = None;
        if !refusal.is_empty() {
            let error = ScheduleError::refused(OPERATION, &String::from_utf8_lossy(refusal));
            refused = Some(Refused { put_off, error: rights::explained(&self.link, &cmd, error).await });
        }
        let leased = parts.len() / 3;
        let mut entries = Vec::with_capacity(leased);
        while let (Some(member), Some(former), Some(value)) = (parts.next(), parts.next(), parts.next()) {
            let (Value::BulkString(member), Value::BulkString(former)) = (member, former) else {
                return Err(ScheduleError::unexpected(OPERATION, "a member or score is not a string"));
            };
            let former = String::from_utf8(former)
                .map_err(|_| ScheduleError::unexpected(OPERATION, "a score is not text"))?;
            let (value, unreadable) = match value {
                Value::BulkString(value) => (Some(value), None),
                Value::SimpleString(status) => (None, Some(Unreadable::of_status(status))),
                _ => (None, None),
            };
            entries.push(Claimed {
                member,
                lease: Arc::clone(&lease),
                leased,
                schedule: 0,
                former,
                value,
                unreadable,
            });
        }
        if look > 0 {
            self.end_look(!entries.is_empty(), ledger_lock);
        }
        Ok(Claim { entries, scheduled, now, foreign, unlock_in, refused, isolated, unlisted, ledger_lock })
    }

    /// How many members the next claim looks at for locks of the ledger's own worker.
    fn begin_look(&self) -> usize {
        let next = self.calls.next_look.lock().unwrap_or_else(PoisonError::into_inner);
        if next.is_none_or(|next| next <= Instant::now()) { LOOKED_AT } else { 0 }
    }

    fn end_look(&self, had_members: bool, found: LedgerLock) {
        let pause = match (had_members, found) {
            (false, _) => return,
            (true, LedgerLock::NotLooked) => LOOK_AGAIN_AFTER,
            (true, _) => LOOK_EVERY,
        };
        *self.calls.next_look.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now() + pause);
    }

    /// Removes written members, each only under its lease, and deletes their quarantine entries. Losses of these members are
    /// kept and marked.
    ///
    /// # Errors
    /// As Redis answers. The leases then expire, and the next write of these members is stale and harmless.
    pub async fn settle(&self, written: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.remove("written", written).await
    }

    /// Removes members from the schedule because they are `written`, or there is `nothing` to write.
    pub(crate) async fn remove(
        &self,
        reason: &'static str,
        members: &[&Claimed],
    ) -> Result<SettleReport, ScheduleError> {
        if members.is_empty() {
            return Ok(SettleReport::default());
        }
        // In mode `lock` a member that has changed may have a lock of ours, which is under its name.
        let by_name = !self.lock_prefix().is_empty() || self.calls.by_name.load(Ordering::Relaxed);
        let (mut whole, mut named) =
            if by_name { (Vec::new(), members.to_vec()) } else { whole_claims::split(members) };
        let mut sum = SettleReport::default();
        let mut is_first = true;
        loop {
            let (report, changed) = match self.remove_claims(reason, &whole, &named).await {
                Err(error) if is_first => return Err(error),
                Err(error) => {
                    sum.fail(error, &named);
                    self.calls.by_name.store(true, Ordering::Relaxed);
                    return Ok(sum);
                }
                Ok(answer) => answer,
            };
            is_first = false;
            sum.add(report);
            if changed.is_empty() || whole.is_empty() {
                break;
            }
            whole.retain(|claim| changed.iter().any(|lease| lease == claim.lease()));
            named = whole.drain(..).flat_map(WholeClaim::into_members).collect();
        }
        self.calls.by_name.store(sum.kept > 0, Ordering::Relaxed);
        Ok(sum)
    }

    /// Removes whole claims without naming their members, and other members by name. Also returns the leases of claims that are
    /// no longer whole, of which nothing was removed.
    async fn remove_claims(
        &self,
        reason: &'static str,
        whole: &[WholeClaim<'_>],
        named: &[&Claimed],
    ) -> Result<(SettleReport, Vec<String>), ScheduleError> {
        const OPERATION: &str = "settle";
        /// Parts before the leases.
        const HEAD: usize = 3;
        let mut cmd = scripts::SETTLE.call(3);
        cmd.arg(self.space.schedule())
            .arg(self.space.quarantine())
            .arg(self.space.losses())
            .arg(self.lock_prefix())
            .arg(&self.options.lock_token)
            .arg(reason)
            .arg(whole.len());
        for claim in whole {
            cmd.arg(claim.lease()).arg(claim.members().len()).arg(claim.first()).arg(claim.last());
        }
        for claimed in named {
            cmd.arg(&*claimed.lease).arg(&claimed.member);
        }
        let value = scripts::SETTLE.run(&self.link, &cmd).await?;
        let parts = match &value {
            Value::Array(parts) if parts.len() >= HEAD => parts,
            _ => return Err(ScheduleError::unexpected(OPERATION, "the script returned too few parts")),
        };
        let report = SettleReport {
            now: seconds(OPERATION, &parts[0])?,
            removed: int(OPERATION, &parts[1])?,
            kept: int(OPERATION, &parts[2])?,
            unsettled: None,
        };
        let changed = parts[HEAD..].iter().map(|lease| text(OPERATION, lease).map(str::to_owned));
        Ok((report, changed.collect::<Result<_, _>>()?))
    }

    /// Makes members due again at once, each only under its lease, and raises the TTLs of their values.
    ///
    /// # Errors
    /// As Redis answers. The leases then expire.
    pub async fn release(&self, held: &[&Claimed]) -> Result<ReleaseReport, ScheduleError> {
        if held.is_empty() {
            return Ok(ReleaseReport::default());
        }
        let mut cmd = scripts::RELEASE.call(1);
        cmd.arg(self.space.schedule())
            .arg(self.lock_prefix())
            .arg(&self.options.lock_token)
            .arg(millis(self.options.protect_floor))
            .arg(self.space.prefix());
        for claimed in held {
            cmd.arg(&*claimed.lease).arg(&claimed.member).arg(&claimed.former);
        }
        let value = scripts::RELEASE.run(&self.link, &cmd).await?;
        let counts = ints("release", &value, 2)?;
        Ok(ReleaseReport { released: counts[0], kept: counts[1] })
    }

    /// Makes members that can't be synced at present due again later, each only under its lease. `true` = the member has a
    /// value, which must not expire before.
    ///
    /// # Errors
    /// As Redis answers. The leases then expire.
    pub async fn postpone(&self, members: &[(&Claimed, bool)]) -> Result<PostponeReport, ScheduleError> {
        self.postpone_for(members, self.options.put_off).await
    }

    /// As [`Schedule::postpone`], with this delay.
    ///
    /// # Errors
    /// As [`Schedule::postpone`].
    pub async fn postpone_for(
        &self,
        members: &[(&Claimed, bool)],
        delay: Duration,
    ) -> Result<PostponeReport, ScheduleError> {
        const OPERATION: &str = "postpone";
        if members.is_empty() {
            return Ok(PostponeReport::default());
        }
        let mut cmd = scripts::POSTPONE.call(1);
        cmd.arg(self.space.schedule())
            .arg(self.lock_prefix())
            .arg(&self.options.lock_token)
            .arg(millis(delay))
            // Leaves time for retries if this worker is late.
            .arg(millis(self.options.protect_floor.max(3 * delay)))
            .arg(self.space.prefix());
        for (claimed, keep_alive) in members {
            cmd.arg(&*claimed.lease).arg(&claimed.member).arg(if *keep_alive { "v" } else { "-" });
        }
        let value = scripts::POSTPONE.run(&self.link, &cmd).await?;
        let parts = array(OPERATION, &value, 3)?;
        let [postponed, kept] = [int(OPERATION, &parts[0])?, int(OPERATION, &parts[1])?];
        Ok(PostponeReport { postponed, kept, due: seconds(OPERATION, &parts[2])? })
    }

    /// Moves members that can't be synced into quarantine, each only under its lease.
    ///
    /// # Errors
    /// As Redis answers. The members then stay scheduled and are retried.
    pub async fn quarantine(
        &self,
        refused: &[(&Claimed, Refusal)],
    ) -> Result<QuarantineReport, ScheduleError> {
        let mut report = QuarantineReport::default();
        // The values are arguments: limit the size of one call so that it doesn't block Redis for long.
        for page in refused.chunks(200) {
            let mut cmd = scripts::QUARANTINE.call(3);
            cmd.arg(self.space.schedule())
                .arg(self.space.quarantine())
                .arg(EVENTS)
                .arg(self.lock_prefix())
                .arg(&self.options.lock_token)
                .arg(self.options.quarantine_limit)
                .arg(millis(self.options.quarantine_put_off))
                .arg(self.space.prefix());
            for (claimed, refusal) in page {
                let (value, flag) = self.kept_value(claimed.value.as_deref());
                cmd.arg(&*claimed.lease)
                    .arg(&claimed.member)
                    .arg(refusal.reason.as_str())
                    .arg(&refusal.detail)
                    .arg(value)
                    .arg(flag);
            }
            let value = scripts::QUARANTINE.run(&self.link, &cmd).await?;
            let counts = ints("quarantine", &value, 3)?;
            report.quarantined += counts[0];
            report.kept += counts[1];
            report.full += counts[2];
        }
        Ok(report)
    }

    /// Moves up to `page` members of the legacy schedule into this one. Returns how many were moved, and how many are left.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn adopt_legacy(&self, page: usize) -> Result<(u64, u64), ScheduleError> {
        let mut cmd = scripts::ADOPT.call(2);
        cmd.arg(self.space.legacy_schedule()).arg(self.space.schedule()).arg(page);
        let value = scripts::ADOPT.run(&self.link, &cmd).await?;
        let counts = ints("adopt legacy", &value, 2)?;
        Ok((counts[0], counts[1]))
    }

    /// Counts what is due and what is leased.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn backlog(&self) -> Result<Backlog, ScheduleError> {
        const OPERATION: &str = "read backlog";
        let now = seconds_of_time(OPERATION, &self.link.send(OPERATION, &redis::cmd("TIME")).await?)?;
        let mut count = redis::cmd("ZCOUNT");
        count.arg(self.space.schedule()).arg("-inf").arg(now);
        let due = int(OPERATION, &self.link.send(OPERATION, &count).await?)?;
        let mut card = redis::cmd("ZCARD");
        card.arg(self.space.schedule());
        let all = int(OPERATION, &self.link.send(OPERATION, &card).await?)?;
        let mut head = redis::cmd("ZRANGE");
        head.arg(self.space.schedule()).arg(0).arg(0).arg("WITHSCORES");
        let oldest = match self.link.send(OPERATION, &head).await? {
            Value::Array(parts) if parts.len() == 2 => seconds(OPERATION, &parts[1])?,
            _ => now,
        };
        Ok(Backlog { due, leased: all.saturating_sub(due), oldest_due_age: (now - oldest).max(0.0) })
    }

    /// The members among these that are not scheduled.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn not_scheduled(&self, members: &[Vec<u8>]) -> Result<Vec<Vec<u8>>, ScheduleError> {
        const OPERATION: &str = "look up scores";
        if members.is_empty() {
            return Ok(Vec::new());
        }
        let mut cmd = redis::cmd("ZMSCORE");
        cmd.arg(self.space.schedule());
        for member in members {
            cmd.arg(member);
        }
        let value = self.link.send(OPERATION, &cmd).await?;
        let scores = array(OPERATION, &value, members.len())?;
        Ok(members
            .iter()
            .zip(scores)
            .filter(|(_, score)| **score == Value::Nil)
            .map(|(member, _)| member.clone())
            .collect())
    }

    /// Makes these members due, and gives each another score: those that are not scheduled, those that a worker holds, whose lease
    /// ends by it, and those that are due, which the ledger's worker may have locked. A row may have gone back since the holder wrote it, and then the
    /// holder must not settle it. Returns how many were not scheduled.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn schedule_again(&self, members: &[&[u8]]) -> Result<u64, ScheduleError> {
        let mut done = 0;
        for page in members.chunks(500) {
            let mut cmd = scripts::SCHEDULE_AGAIN.call(1);
            cmd.arg(self.space.schedule());
            for member in page {
                cmd.arg(member);
            }
            done += int("schedule again", &scripts::SCHEDULE_AGAIN.run(&self.link, &cmd).await?)?;
        }
        Ok(done)
    }

    /// Number of members that are scheduled further ahead than a lease or delay explains: further than the longest reaches, or with
    /// the score of a mutation, which is the time at which it was made. Redis's clock has jumped back since, and they wait until it
    /// has caught up.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn distant(&self) -> Result<u64, ScheduleError> {
        self.walk_distant(false).await
    }

    /// Makes the members due that [`Schedule::distant`] counts. Returns how many.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn reschedule_distant(&self) -> Result<u64, ScheduleError> {
        self.walk_distant(true).await
    }

    async fn walk_distant(&self, moves: bool) -> Result<u64, ScheduleError> {
        const PAGE: u64 = 500;
        let (mut found, mut seen) = (0, 0);
        loop {
            let mut cmd = scripts::RESCHEDULE.call(2);
            cmd.arg(self.space.schedule()).arg(self.space.quarantine());
            cmd.arg(millis(self.options.reach())).arg(PAGE).arg(seen).arg(u8::from(moves));
            let page = ints("reschedule", &scripts::RESCHEDULE.run(&self.link, &cmd).await?, 3)?;
            found += page[0];
            seen += page[1];
            if page[2] == 0 {
                return Ok(found);
            }
        }
    }

    /// Number of members in any schedule key; used to detect schedules that no worker syncs.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn scheduled_in(&self, key: &str) -> Result<u64, ScheduleError> {
        let mut cmd = redis::cmd("ZCARD");
        cmd.arg(key);
        int("count schedule", &self.link.send("count schedule", &cmd).await?)
    }

    /// For calls that end claims; empty where none of them can have taken a lock that is still there.
    pub(crate) fn lock_prefix(&self) -> String {
        if self.locking.may_hold() { self.space.lock_prefix() } else { String::new() }
    }

    fn kept_value(&self, value: Option<&[u8]>) -> (String, &'static str) {
        let Some(value) = value else { return (String::new(), "-") };
        // Entries are JSON, so a value that is not UTF-8 is kept only approximately and never written from the entry.
        match std::str::from_utf8(value) {
            Ok(text) if text.len() <= self.options.quarantine_value_limit => (text.to_owned(), "v"),
            _ => {
                let cut = value.len().min(self.options.quarantine_value_limit);
                (String::from_utf8_lossy(&value[..cut]).into_owned(), "t")
            }
        }
    }
}
