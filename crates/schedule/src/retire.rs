//! The end of our service to a tenant, or to a fleet: what workers of ours hold goes back into the schedule, and what only they
//! understand is removed (`docs/decisions/0038-going-back.md`).
//!
//! Each call changes something only as long as the stored rollout has the revision by which no worker of ours serves the tenant, and no
//! call removes a member or a value.

use std::collections::BTreeSet;

use balance_sync_domain::KeySpace;
use redis::Value;

use crate::{
    controls,
    error::ScheduleError,
    link::Link,
    names, neighbours, origins, quarantine, recoveries,
    recoveries::Recoveries,
    reply::{array, bulk, int, ints},
    rollout, scripts, timelines, vanished,
};

/// What all our keys that are no tenant's begin with.
const OURS: &str = "{transactions}:balance-sync:";
/// About how many members one call looks at: some milliseconds of Redis.
const PAGE: usize = 200;
/// Entries in one call …
const ENTRIES_PER_CALL: usize = 100;
/// … and bytes after which no more are added: entries hold values.
const BYTES_PER_CALL: usize = 1024 * 1024;
/// Keys that Redis looks at in one call: below a millisecond.
const SCAN_COUNT: usize = 2000;
/// Keys that are deleted by one call.
const KEYS_PER_CALL: usize = 100;

/// What a walk over a schedule has found, and done.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Returned {
    /// Members looked at; of one that comes and goes meanwhile it is not known whether it is among them.
    pub members: u64,
    /// Those with the score of a lease or delay of ours.
    pub held: u64,
    /// Those that the ledger has scheduled ahead.
    pub ahead: u64,
    /// Locks of ours.
    pub unlocked: u64,
    /// Locks of the ledger's own worker.
    pub locked: u64,
    /// Values whose TTL was raised.
    pub raised: u64,
    /// The members without a value: the ledger's own worker takes them out of the schedule unwritten.
    pub gone: BTreeSet<Vec<u8>>,
}

impl std::ops::AddAssign for Returned {
    fn add_assign(&mut self, mut other: Self) {
        self.gone.append(&mut other.gone);
        self.members += other.members;
        self.held += other.held;
        self.ahead += other.ahead;
        self.unlocked += other.unlocked;
        self.locked += other.locked;
        self.raised += other.raised;
    }
}

/// An entry of the quarantine or of the losses, or of both, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RawEntry {
    /// The member.
    pub member: Vec<u8>,
    /// The entry in quarantine.
    pub quarantined: Option<Vec<u8>>,
    /// The loss.
    pub lost: Option<Vec<u8>>,
}

impl RawEntry {
    /// As it is shown to operators.
    #[must_use]
    pub fn read(&self) -> Option<quarantine::QuarantineEntry> {
        quarantine::entry_of(self.quarantined.as_deref(), self.lost.as_deref())
    }

    fn bytes(&self) -> usize {
        let len = |bytes: &Option<Vec<u8>>| bytes.as_ref().map_or(0, Vec::len);
        self.member.len() + len(&self.quarantined) + len(&self.lost)
    }
}

/// What became of entries.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Cleared {
    /// Members whose entries are deleted.
    pub cleared: u64,
    /// Those among them that are scheduled now and were not before.
    pub scheduled: u64,
    /// Members whose entries have changed since they were read, or whose values are gone, and which stay.
    pub changed: u64,
}

/// What was written down about a tenant.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Forgotten {
    /// Records, without those that stay.
    pub records: u64,
    /// Open conditions that stay.
    pub conditions: u64,
    /// Pauses that stay.
    pub pauses: u64,
    /// A recovery is under way: what belongs to it stays.
    pub is_recovering: bool,
}

/// A key that is none of the ledger's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum OwnKey {
    /// Quarantine or losses under this prefix of a tenant.
    Entries {
        /// `tenant:<id>:`, or empty.
        prefix: String,
        /// The key.
        key: String,
    },
    /// A claim lock under this prefix of a tenant, which may be the ledger's own worker's.
    Lock {
        /// `tenant:<id>:`, or empty.
        prefix: String,
        /// The key.
        key: Vec<u8>,
    },
    /// All others: of the fleet, or of a tenant that is named in it.
    Fleet(String),
}

impl OwnKey {
    /// Whose key this is; `None` if it is the ledger's, or none that we know.
    #[must_use]
    pub fn of(key: &[u8]) -> Option<Self> {
        let lock = |prefix: &str, own: &[u8]| {
            own.starts_with(b"lock:{transactions}:balance-sync:")
                .then(|| Self::Lock { prefix: prefix.to_owned(), key: key.to_vec() })
        };
        if key.starts_with(OURS.as_bytes()) {
            return Some(Self::Fleet(String::from_utf8_lossy(key).into_owned()));
        }
        let (prefix, own) = match key.strip_prefix(b"tenant:") {
            Some(rest) => {
                let end = rest.iter().position(|byte| *byte == b':')? + 1;
                key.split_at(b"tenant:".len() + end)
            }
            None => (&b""[..], key),
        };
        let prefix = std::str::from_utf8(prefix).ok()?;
        match own {
            b"quarantine:{transactions}:balance-sync" | b"quarantine:{transactions}:balance-sync:losses" => {
                Some(Self::Entries {
                    prefix: prefix.to_owned(),
                    key: String::from_utf8_lossy(key).into_owned(),
                })
            }
            _ => lock(prefix, own),
        }
    }
}

/// Whether a key is kept when a fleet retires, and why.
#[must_use]
pub fn kept_because(key: &str) -> Option<&'static str> {
    if key == rollout::ROLLOUT || key == rollout::HISTORY {
        Some("a worker that starts later reads in it that it serves no tenant")
    } else if key == controls::ACTIONS {
        Some("the log says who went back, when and why")
    } else if key == vanished::MARK || key == vanished::PROCESS {
        Some("without the mark a worker that starts later takes this Redis for one that has lost its data")
    } else if [vanished::OPEN, controls::PAUSED, controls::ACKNOWLEDGED, controls::EVENTS].contains(&key) {
        // What the tenants had in it is forgotten, and an emptied hash is gone.
        Some("it holds what is open, paused or acknowledged of tenants that are not listed")
    } else if recoveries::is_key(key) {
        Some("it belongs to a recovery of a tenant that is not listed")
    } else {
        None
    }
}

/// The name of the process that holds this key, if it is the name of a worker or shadow.
#[must_use]
pub fn process_of(key: &str) -> Option<&str> {
    let (group, name) = key.strip_prefix(names::KEY_PREFIX)?.split_once(':')?;
    (group != recoveries::LEASES).then_some(name)
}

/// The tenant whose timeline is at this key, in any group of workers.
#[must_use]
pub fn timeline_of(key: &str) -> Option<&str> {
    // No tenant's id has a colon.
    let (_, tenant) = key.strip_prefix(timelines::KEY_PREFIX)?.rsplit_once(":t:")?;
    (!tenant.contains(':')).then_some(tenant)
}

/// Ends our service under one revision of the rollout. Every answer is `None` when another one is stored by now: then nothing was done.
#[derive(Debug, Clone)]
pub struct Retirement {
    link: Link,
    revision: String,
}

impl Retirement {
    /// Under this revision, by which no worker of ours serves the tenants.
    #[must_use]
    pub fn new(link: Link, revision: String) -> Self {
        Self { link, revision }
    }

    /// Walks over a schedule once. With `act`, what is held is made due, our locks are deleted, and scheduled values get a TTL of `ttl_ms` if
    /// less than half of it is left. Without it and with an empty revision, it is counted under whatever rollout there is.
    ///
    /// # Errors
    /// As Redis answers; pages before may be done.
    pub async fn give_back(
        &self,
        space: &KeySpace,
        ttl_ms: u64,
        act: bool,
    ) -> Result<Option<Returned>, ScheduleError> {
        const OPERATION: &str = "give back";
        let mut sum = Returned::default();
        let mut cursor = b"0".to_vec();
        loop {
            let mut cmd = scripts::GIVE_BACK.call(2);
            cmd.arg(space.schedule()).arg(rollout::ROLLOUT).arg(&self.revision).arg(&cursor).arg(PAGE);
            cmd.arg(space.lock_prefix()).arg(space.prefix()).arg(ttl_ms).arg(u8::from(act));
            let answer = scripts::GIVE_BACK.run(&self.link, &cmd).await?;
            if is_empty(&answer) {
                return Ok(None);
            }
            let parts = array(OPERATION, &answer, 8)?;
            cursor = bulk(OPERATION, &parts[0])?.to_vec();
            let number = |at: usize| int(OPERATION, &parts[at]);
            sum += Returned {
                members: number(1)?,
                held: number(2)?,
                ahead: number(3)?,
                unlocked: number(4)?,
                locked: number(5)?,
                raised: number(6)?,
                gone: match &parts[7] {
                    Value::Array(gone) => gone
                        .iter()
                        .map(|member| bulk(OPERATION, member).map(<[u8]>::to_vec))
                        .collect::<Result<_, _>>()?,
                    _ => BTreeSet::new(),
                },
            };
            if cursor == b"0" {
                return Ok(Some(sum));
            }
        }
    }

    /// Deletes entries that are as they were read; those with `true` are scheduled, if they have a value, and that gets a day to live.
    ///
    /// # Errors
    /// As Redis answers; some may be deleted.
    pub async fn clear(
        &self,
        space: &KeySpace,
        entries: &[(&RawEntry, bool)],
    ) -> Result<Option<Cleared>, ScheduleError> {
        let mut sum = Cleared::default();
        let mut rest = entries;
        while !rest.is_empty() {
            let mut cmd = scripts::CLEAR_ENTRIES.call(4);
            cmd.arg(space.schedule()).arg(space.quarantine()).arg(space.losses()).arg(rollout::ROLLOUT);
            cmd.arg(&self.revision);
            let (mut taken, mut bytes) = (0, 0);
            while taken < rest.len().min(ENTRIES_PER_CALL) && (taken == 0 || bytes < BYTES_PER_CALL) {
                let (entry, schedules) = rest[taken];
                cmd.arg(&entry.member).arg(entry.quarantined.as_deref().unwrap_or_default());
                cmd.arg(entry.lost.as_deref().unwrap_or_default()).arg(u8::from(schedules));
                (taken, bytes) = (taken + 1, bytes + entry.bytes());
            }
            rest = &rest[taken..];
            let answer = scripts::CLEAR_ENTRIES.run(&self.link, &cmd).await?;
            if is_empty(&answer) {
                return Ok(None);
            }
            let counts = ints("clear entries", &answer, 3)?;
            sum.cleared += counts[0];
            sum.scheduled += counts[1];
            sum.changed += counts[2];
        }
        Ok(Some(sum))
    }

    /// Deletes what is written down about a tenant beside its quarantine and losses; returns what there was. Without `act` it is only
    /// counted. With `spares` an open condition and pauses stay; what belongs to a recovery under way always does.
    ///
    /// # Errors
    /// As Redis answers.
    pub async fn forget(
        &self,
        tenant: &str,
        spaces: &[KeySpace],
        timelines: &[String],
        spares: bool,
        act: bool,
    ) -> Result<Option<Forgotten>, ScheduleError> {
        let whole: Vec<String> =
            Recoveries::keys(tenant).into_iter().chain(timelines.iter().cloned()).collect();
        let mut cmd = scripts::FORGET_TENANT.call(7 + whole.len());
        cmd.arg(rollout::ROLLOUT).arg(controls::PAUSED).arg(controls::ACKNOWLEDGED).arg(controls::EVENTS);
        cmd.arg(vanished::OPEN).arg(neighbours::KEY).arg(origins::KEY).arg(whole);
        cmd.arg(&self.revision).arg(u8::from(act)).arg(u8::from(spares)).arg(tenant);
        for space in spaces {
            cmd.arg(space.schedule());
        }
        let answer = scripts::FORGET_TENANT.run(&self.link, &cmd).await?;
        if is_empty(&answer) {
            return Ok(None);
        }
        let counts = ints("forget tenant", &answer, 4)?;
        Ok(Some(Forgotten {
            records: counts[0],
            conditions: counts[1],
            pauses: counts[2],
            is_recovering: counts[3] > 0,
        }))
    }

    /// Deletes those of these locks that are ours; returns how many.
    ///
    /// # Errors
    /// As Redis answers; some may be deleted.
    pub async fn remove_locks(&self, locks: &[Vec<u8>]) -> Result<Option<u64>, ScheduleError> {
        let mut removed = 0;
        for page in locks.chunks(KEYS_PER_CALL) {
            let mut cmd = scripts::REMOVE_LOCKS.call(1 + page.len());
            cmd.arg(rollout::ROLLOUT).arg(page).arg(&self.revision);
            let answer = scripts::REMOVE_LOCKS.run(&self.link, &cmd).await?;
            if is_empty(&answer) {
                return Ok(None);
            }
            removed += int("remove locks", &array("remove locks", &answer, 1)?[0])?;
        }
        Ok(Some(removed))
    }

    /// Deletes keys of the fleet, without those that are kept; returns how many.
    ///
    /// # Errors
    /// As Redis answers; some may be deleted.
    pub async fn remove_fleet(&self, keys: &[String]) -> Result<Option<u64>, ScheduleError> {
        let keys: Vec<&String> = keys.iter().filter(|key| kept_because(key).is_none()).collect();
        let mut removed = 0;
        for page in keys.chunks(KEYS_PER_CALL) {
            let mut cmd = scripts::REMOVE_FLEET.call(1 + page.len());
            cmd.arg(rollout::ROLLOUT).arg(page).arg(&self.revision);
            let answer = scripts::REMOVE_FLEET.run(&self.link, &cmd).await?;
            if is_empty(&answer) {
                return Ok(None);
            }
            removed += int("remove keys", &array("remove keys", &answer, 1)?[0])?;
        }
        Ok(Some(removed))
    }
}

/// The entries of a tenant's quarantine and losses, as they stand there.
///
/// # Errors
/// As Redis answers.
pub async fn entries(schedule: &crate::Schedule) -> Result<Vec<RawEntry>, ScheduleError> {
    const OPERATION: &str = "list entries";
    let mut all: std::collections::BTreeMap<Vec<u8>, RawEntry> = std::collections::BTreeMap::new();
    let fresh = |member: &Vec<u8>| RawEntry { member: member.clone(), quarantined: None, lost: None };
    schedule
        .scan_hash(OPERATION, &schedule.space().quarantine(), |member, raw| {
            let entry = all.entry(member.clone()).or_insert_with(|| fresh(&member));
            entry.quarantined = Some(raw.to_vec());
        })
        .await?;
    schedule
        .scan_hash(OPERATION, &schedule.space().losses(), |member, raw| {
            let entry = all.entry(member.clone()).or_insert_with(|| fresh(&member));
            entry.lost = Some(raw.to_vec());
        })
        .await?;
    Ok(all.into_values().collect())
}

/// All keys in Redis that are not the ledger's, claim locks of either worker among them; each once.
///
/// # Errors
/// As Redis answers.
pub async fn own_keys(link: &Link) -> Result<Vec<OwnKey>, ScheduleError> {
    const OPERATION: &str = "scan keys";
    let (mut found, mut seen) = (Vec::new(), std::collections::HashSet::new());
    let mut cursor = b"0".to_vec();
    loop {
        let mut scan = redis::cmd("SCAN");
        scan.arg(&cursor).arg("MATCH").arg("*{transactions}:balance-sync*").arg("COUNT").arg(SCAN_COUNT);
        let answer = link.send(OPERATION, &scan).await?;
        let parts = array(OPERATION, &answer, 2)?;
        if let Value::Array(keys) = &parts[1] {
            for key in keys {
                let key = bulk(OPERATION, key)?;
                if let Some(own) = OwnKey::of(key)
                    && seen.insert(key.to_vec())
                {
                    found.push(own);
                }
            }
        }
        cursor = bulk(OPERATION, &parts[0])?.to_vec();
        if cursor == b"0" {
            return Ok(found);
        }
    }
}

fn is_empty(answer: &Value) -> bool {
    matches!(answer, Value::Array(parts) if parts.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_told_apart_by_their_beginning() {
        let of = |key: &str| OwnKey::of(key.as_bytes());
        let entries = |prefix: &str, key: &str| {
            Some(OwnKey::Entries { prefix: prefix.to_owned(), key: key.to_owned() })
        };
        for key in [
            "schedule:{transactions}:balance-sync-v2",
            "tenant:a:schedule:{transactions}:balance-sync",
            "balance:{transactions}:o:l:quarantine:{transactions}:balance-sync#default",
            "tenant:a:balance:{transactions}:o:l:lock:{transactions}:balance-sync:x#default",
            "tenant:a:balance:{transactions}:o:l:{transactions}:balance-sync:rollout#default",
            "tenant:quarantine:{transactions}:balance-sync-x",
            "engine:{transactions}:recover",
        ] {
            assert_eq!(of(key), None, "{key}");
        }
        let key = "tenant:a:quarantine:{transactions}:balance-sync:losses";
        assert_eq!(of(key), entries("tenant:a:", key));
        let key = "quarantine:{transactions}:balance-sync";
        assert_eq!(of(key), entries("", key));
        let key = "tenant:a:lock:{transactions}:balance-sync:tenant:a:balance:{transactions}:o:l:@a#default";
        assert_eq!(of(key), Some(OwnKey::Lock { prefix: "tenant:a:".to_owned(), key: key.into() }));
        let key = "{transactions}:balance-sync:rollout";
        assert_eq!(of(key), Some(OwnKey::Fleet(key.to_owned())));
    }

    #[test]
    fn what_a_later_worker_needs_is_kept() {
        let key = |name: &str| format!("{OURS}{name}");
        let of_fleet = ["rollout", "rollout-history", "actions", "data-set", "data-set:process"];
        let of_tenants = ["paused", "vanished", "acknowledged-entries", "entry-events"];
        let [record, stop, lease] = Recoveries::keys("acme");
        for key in [&record, &stop, &lease] {
            assert!(kept_because(key).is_some(), "{key}");
        }
        for name in of_fleet.into_iter().chain(of_tenants) {
            assert!(kept_because(&key(name)).is_some(), "{name}");
        }
        for name in [
            "paused-2",
            "neighbours",
            "rollout-2",
            "name-1:service-1:one",
            "actions:",
            "timeline-1:g:t:rollout",
        ] {
            assert!(kept_because(&key(name)).is_none(), "{name}");
        }
        assert_eq!(process_of(&key("name-1:service-1:one")), Some("one"));
        assert_eq!(process_of(&key("name-1:recovery:one")), None);
        assert_eq!(timeline_of(&key("timeline-1:service-1:t:acme")), Some("acme"));
        assert_eq!(timeline_of(&key("timeline-1:service-1:workers")), None);
    }
}
