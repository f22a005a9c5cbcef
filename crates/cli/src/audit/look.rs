//! One look at some balances.
//!
//! The order makes it reliable while the ledger and the workers go on: first the values, then the schedules, then rows and operations.
//! A worker writes a row before it takes the member out of the schedule. So what was in Redis and is in no schedule afterwards
//! has its row by the time that is read, or no worker is writing it.

use balance_sync_domain::{BalanceRef, BalanceValue, ValueError, effective_key};
use balance_sync_engine::audit::{
    Amounts, COMPANION, Known, Operation, Row, Scheduled, Trail, Value, Witnesses,
};
use balance_sync_schedule::{Schedules, Score, read_values, server_time};
use balance_sync_store::{AuditRow, Fate, NO_ROW, Named, NewestOperation};
use uuid::Uuid;

use super::tenant::Audited;

/// Keys that are read in one call.
const PAGE: usize = 500;

/// What is looked at.
#[derive(Debug, Clone)]
pub(super) struct Subject {
    /// The key of the balance in each form of the tenant's id; the first stands for it.
    pub members: Vec<Vec<u8>>,
    /// The id of its row; `None` = that in its value.
    pub id: Option<Uuid>,
}

/// What was seen of it.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    /// The key that counts.
    pub member: Vec<u8>,
    /// The id of its row, or in its value.
    pub id: Option<Uuid>,
    /// Organization and ledger of its row.
    pub ledger: Option<(Uuid, Uuid)>,
    pub witnesses: Witnesses,
}

/// A value of Redis that has been read.
pub(super) struct ReadValue {
    /// Which of the members has it.
    at: usize,
    value: Value,
    id: Option<Uuid>,
    /// The key by the name and the value together.
    key: Option<String>,
    /// All members that have a value that can be read, with the id in it.
    ids: Vec<(usize, Uuid)>,
}

impl ReadValue {
    /// The id in the value.
    pub(super) fn id(&self) -> Option<Uuid> {
        self.id
    }

    /// Whether the value under the member of this number is that of the row with this id, so that what is judged of the row holds for it.
    pub(super) fn is_of_row(&self, member: usize, row: Uuid) -> bool {
        match self.value {
            Value::Unreadable(_) if self.at == member => true,
            _ => self.ids.contains(&(member, row)),
        }
    }

    pub(super) fn into_value(self) -> Value {
        self.value
    }
}

/// The newest of the values under these members. A deletion marker is no value.
pub(super) fn newest_value(
    schedules: &Schedules,
    members: &[Vec<u8>],
    values: &[Option<Vec<u8>>],
) -> ReadValue {
    let nothing = || ReadValue { at: 0, value: Value::Absent, id: None, key: None, ids: Vec::new() };
    let unreadable = |at, why: String| ReadValue { at, value: Value::Unreadable(why), ..nothing() };
    let (mut newest, mut ids) = (nothing(), Vec::new());
    for (at, (member, value)) in members.iter().zip(values).enumerate() {
        let Some(value) = value else { continue };
        let name = BalanceRef::parse(schedules.of_member(member).space(), member);
        let read = match (name, BalanceValue::of_member(member, value)) {
            (Ok(name), Ok(value)) => {
                ids.push((at, value.id));
                ReadValue {
                    at,
                    id: Some(value.id),
                    key: Some(effective_key(&name, &value).to_owned()),
                    value: Value::Present(known(&value)),
                    ids: Vec::new(),
                }
            }
            (_, Err(ValueError::DeletionMarker { .. })) => continue,
            (Err(why), _) => unreadable(at, why.to_string()),
            (_, Err(why)) => unreadable(at, why.to_string()),
        };
        let is_newer = match (&newest.value, &read.value) {
            (Value::Present(newest), Value::Present(read)) => read.version > newest.version,
            (Value::Present(_), _) => false,
            _ => true,
        };
        if is_newer {
            newest = read;
        }
    }
    ReadValue { ids, ..newest }
}

fn known(value: &BalanceValue) -> Known {
    Known {
        version: value.version,
        amounts: Amounts {
            available: value.available.as_str().to_owned(),
            on_hold: value.on_hold.as_str().to_owned(),
            overdraft_used: Some(value.overdraft_used.as_str().to_owned()),
        },
    }
}

/// A row with its newest operation, as witnesses; `now` by Postgres's clock.
pub(super) fn row_and_trail(row: AuditRow, with_trail: bool, now: f64) -> (Row, Trail) {
    let AuditRow { version, available, on_hold, overdraft_used, deleted, operation, .. } = row;
    let amounts = Amounts { available, on_hold, overdraft_used: Some(overdraft_used) };
    let trail = match operation {
        _ if !with_trail => Trail::Unread,
        None => Trail::Nothing,
        Some(NewestOperation { version, available, on_hold, overdraft_used, in_doubt, created_at }) => {
            Trail::Newest(Operation {
                known: Known { version, amounts: Amounts { available, on_hold, overdraft_used } },
                in_doubt,
                age: now - created_at,
            })
        }
    };
    (Row { known: Known { version, amounts }, deleted }, trail)
}

impl Audited<'_> {
    /// Looks once at all of them.
    pub(super) async fn look(&self, subjects: &[&Subject]) -> anyhow::Result<Vec<Seen>> {
        let auditor = self.auditor;
        let keys: Vec<Vec<u8>> =
            subjects.iter().flat_map(|subject| subject.members.iter().cloned()).collect();
        let redis_now = server_time(&auditor.link).await?;
        let values = self.values_of(&keys).await?;
        auditor.redis.take(keys.len()).await;
        let scores = self.schedules.scores(&keys).await?;

        let (mut reads, mut at) = (Vec::with_capacity(subjects.len()), 0);
        for subject in subjects {
            let own = at..at + subject.members.len();
            at = own.end;
            let mut read = newest_value(&self.schedules, &subject.members, &values[own.clone()]);
            // The name leads to the value of another balance, such as one that was created after this one was deleted.
            if subject.id.is_some() && read.id.is_some() && read.id != subject.id {
                read = ReadValue { at: 0, value: Value::Absent, id: None, key: None, ids: Vec::new() };
            }
            let score = match read.value {
                Value::Absent => scores[own].iter().copied().flatten().next(),
                _ => scores[own][read.at],
            };
            reads.push((read, self.scheduled(score, redis_now)));
        }
        let ids: Vec<Uuid> = subjects
            .iter()
            .zip(&reads)
            .map(|(subject, (read, _))| subject.id.or(read.id).unwrap_or_default())
            .collect();
        let rows = self.rows_of(&ids).await?;
        let now = self.now();
        let with_trail = self.access().without_trail().is_none();
        let mut seen = Vec::with_capacity(subjects.len());
        for (((subject, (read, scheduled)), row), id) in subjects.iter().zip(reads).zip(rows).zip(ids) {
            let member = subject.members[read.at].clone();
            let id = (!id.is_nil()).then_some(id);
            let ledger = row.as_ref().and_then(|row| row.ledger);
            let mut companion = read.key.as_deref() == Some(COMPANION);
            let mut value = read.value;
            let (row, trail) = match row {
                None => (None, Trail::Unread),
                Some(row) => {
                    companion |= row.key == COMPANION;
                    let name = BalanceRef::parse(self.schedules.of_member(&member).space(), &member).ok();
                    if let (Some(name), Value::Present(_)) = (name, &value)
                        && ledger != Some((name.organization, name.ledger))
                    {
                        value = Value::Unreadable(
                            "its row belongs to another organization and ledger than its key names"
                                .to_owned(),
                        );
                    }
                    let (row, trail) = row_and_trail(row, with_trail, now);
                    (Some(row), trail)
                }
            };
            let record = id.and_then(|id| self.record_of(id));
            let witnesses = Witnesses { companion, value, row, trail, record, scheduled };
            seen.push(Seen { member, id, ledger, witnesses });
        }
        self.find_by_name(&mut seen).await?;
        Ok(seen)
    }

    /// Members that have neither a value nor an id: their rows, by what their names say.
    async fn find_by_name(&self, seen: &mut [Seen]) -> anyhow::Result<()> {
        let nameless: Vec<usize> = (0..seen.len())
            .filter(|n| seen[*n].id.is_none() && seen[*n].witnesses.value == Value::Absent)
            .collect();
        let members: Vec<Vec<u8>> = nameless.iter().map(|n| seen[*n].member.clone()).collect();
        let (mut at, mut names) = (Vec::new(), Vec::new());
        for (n, member) in nameless.iter().zip(&members) {
            match BalanceRef::parse(self.schedules.of_member(member).space(), member) {
                Ok(name) => {
                    at.push(*n);
                    names.push(Named {
                        organization: name.organization,
                        ledger: name.ledger,
                        alias: name.alias,
                        key: name.key,
                    });
                }
                Err(why) => seen[*n].witnesses.value = Value::Unreadable(why.to_string()),
            }
        }
        if names.is_empty() {
            return Ok(());
        }
        self.auditor.postgres.take(names.len()).await;
        let fates = self.database.fates(&self.table, &names).await?;
        for ((n, fate), name) in at.into_iter().zip(fates).zip(&names) {
            let row = |version: i64, deleted: bool| {
                let unknown = || "?".to_owned();
                let amounts = Amounts { available: unknown(), on_hold: unknown(), overdraft_used: None };
                Some(Row { known: Known { version, amounts }, deleted })
            };
            let witnesses = &mut seen[n].witnesses;
            witnesses.companion = name.key == COMPANION;
            match fate {
                Fate::Deleted => witnesses.row = row(-1, true),
                Fate::Stale { row_version } => {
                    witnesses.row = row(row_version, false);
                    witnesses.trail = Trail::Nothing;
                    // As new as the trail: a worker takes it out of the schedule.
                    witnesses.scheduled = Scheduled::No;
                }
                // Its row has been looked at with its operations.
                Fate::Lost(last) => {
                    witnesses.row = row(last.row_version, false);
                    witnesses.trail = Trail::Nothing;
                    witnesses.scheduled = Scheduled::No;
                }
                Fate::Unknown { row_version: Some(version), .. } => witnesses.row = row(version, false),
                Fate::Unknown { row_version: None, why } if why == NO_ROW => {}
                Fate::Unknown { row_version: None, why } => {
                    let text = format!("members without a value could not be looked up: {why}");
                    self.auditor.notice(self.tenant(), text);
                    witnesses.scheduled = Scheduled::No;
                }
            }
        }
        Ok(())
    }

    /// The values of these keys.
    pub(super) async fn values_of(&self, keys: &[Vec<u8>]) -> anyhow::Result<Vec<Option<Vec<u8>>>> {
        let mut values = Vec::with_capacity(keys.len());
        for page in keys.chunks(PAGE) {
            self.auditor.redis.take(page.len()).await;
            values.append(&mut read_values(&self.auditor.link, page).await?);
        }
        Ok(values)
    }

    fn scheduled(&self, score: Option<Score>, now: f64) -> Scheduled {
        match score {
            None => Scheduled::No,
            Some(Score::Legacy) => Scheduled::Due(0.0),
            Some(Score::At(at)) if at - now > self.auditor.schedule.reach().as_secs_f64() => {
                Scheduled::Distant
            }
            Some(Score::At(at)) => Scheduled::Due(now - at),
        }
    }
}
