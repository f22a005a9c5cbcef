//! All balances of one tenant, in three passes.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, HashSet, VecDeque, hash_map::Entry},
    time::{Duration, Instant},
};

use anyhow::{Context as _, bail};
use balance_sync_domain::KeySpace;
use balance_sync_engine::audit::{
    Advice, Amounts, COMPANION, Class, Judgement, Known, Scheduled, Trail, Value, Witnesses, judge,
};
use balance_sync_schedule::{ErrorClass as RedisError, Members, RecoverRecords, ScheduleError, Schedules};
use balance_sync_store::{AuditAccess, AuditPage, AuditRow, Database, Table};
use balance_sync_tenants::Tenant;
use serde::Deserialize;
use uuid::Uuid;

use super::{
    Auditor, Finding, Findings, MAX_SKEW, here,
    look::{Subject, newest_value, row_and_trail},
    sample_of,
    sketch::Sketch,
};

/// Most balances that wait for another look. While there are as many, no further page is read.
pub(super) const MAX_SUSPECTS: usize = 5000;
/// Balances that are looked at again together.
const LOOK: usize = 500;
/// Most looks at one balance that moves all the time. It is in flight then.
const MAX_LOOKS: u8 = 6;
/// Rows of a page …
const PAGE: u16 = 1000;
/// … which is halved down to this while Postgres takes too long over it.
const SMALLEST_PAGE: u16 = 60;
/// Most balances of which recover records are kept.
const MAX_RECORDS: usize = 100_000;
/// Recover records that were read within so long are not read again.
const RECORDS_FRESH: Duration = Duration::from_secs(2);
/// Most unreadable values that are remembered as reported; of more some are reported twice.
const MAX_REPORTED: usize = 100_000;
/// How long a tenant's connections may take to end.
const CLOSE: Duration = Duration::from_secs(1);

/// A balance that is to be looked at again.
struct Suspect {
    subject: Subject,
    /// What the last look has found, from the second one on.
    judgement: Option<Judgement>,
    looks: u8,
    at: Instant,
    /// The version that its row must reach, and since when it has lacked it: where Redis was newer.
    behind: Option<(i64, Instant)>,
}

impl Suspect {
    /// What this look finds. A balance that the ledger changes all the time has just become due at each look, and may look as if it were
    /// being written: it is only if its row reaches what Redis had at an earlier one, within the time that a write may take.
    fn judge(&mut self, witnesses: &Witnesses, in_flight: f64) -> Judgement {
        let judgement = judge(witnesses, in_flight);
        let (Value::Present(value), Some(row)) = (&witnesses.value, &witnesses.row) else {
            self.behind = None;
            return judgement;
        };
        if judgement.class == Class::Deleted || value.version <= row.known.version {
            self.behind = None;
            return judgement;
        }
        let Some((version, since)) = self.behind else {
            self.behind = Some((value.version, Instant::now()));
            return judgement;
        };
        if value.version == version {
            // It rests: for how long it has been due tells all.
            self.behind = None;
            return judgement;
        }
        if row.known.version >= version {
            self.behind = None;
            // It is written, however far behind it is by now.
            return Judgement { class: Class::InFlight, advice: Advice::None, ..judgement };
        }
        if since.elapsed().as_secs_f64() <= in_flight {
            return judgement;
        }
        // The same at the next look, so that this one counts.
        let late = Judgement { class: Class::BehindScheduled, advice: Advice::AskWhy, version };
        let found = if judgement.class == Class::BehindUnscheduled { judgement } else { late };
        self.judgement = Some(found);
        found
    }
}

/// A tenant that is audited.
pub(crate) struct Audited<'a> {
    pub(super) auditor: &'a Auditor,
    tenant: &'a Tenant,
    pub(super) schedules: Schedules,
    pub(super) database: Database,
    pub(super) table: Table,
    access: RefCell<AuditAccess>,
    opened: Instant,
    records: RefCell<HashMap<Uuid, Known>>,
    /// When they were read.
    records_at: Cell<Option<Instant>>,
    suspects: RefCell<VecDeque<Suspect>>,
    /// The keys that rows have led to, against those that Redis has; `None` where not all rows are looked at.
    pub(super) reached: Option<RefCell<Sketch>>,
    /// Unreadable values that have been reported with their rows: the pass over values meets them again.
    reported: RefCell<HashSet<Vec<u8>>>,
}

impl<'a> Audited<'a> {
    /// Finds out what can be read of it.
    pub(super) async fn open(
        auditor: &'a Auditor,
        tenant: &'a Tenant,
        redis_now: f64,
    ) -> anyhow::Result<Self> {
        let settings = auditor.directory.database(tenant).await?;
        auditor.manager.allows(&settings)?;
        let table = match &settings.schema {
            Some(schema) => Table::in_schema(schema)?,
            None => Table::unqualified(),
        };
        let database = Database::open(auditor.manager.spec(&settings), auditor.budget.clone())?;
        let mut access = database.audit_access(&table).await?;
        let here = here()?;
        if (access.now - here).abs() > MAX_SKEW {
            bail!(
                "impossible clock: Postgres says {:.0}, this host {here:.0} and Redis {redis_now:.0} (seconds since 1970): no age \
                 could be determined",
                access.now
            );
        }
        if !auditor.options.trail {
            access = access.blind("it is not to be read");
        }
        if auditor.observer.is_some() {
            let (readable, hidden) = access.further();
            access = access.with_further(&readable).map_err(anyhow::Error::msg)?;
            if !hidden.is_empty() {
                let hidden = hidden.join(", ");
                let text = format!(
                    "the digest leaves out {hidden}: the grant SELECT ({hidden}) on balance is missing"
                );
                auditor.notice(tenant, text);
            }
        }
        let schedules = Schedules::new(&auditor.link, tenant.key_spaces(auditor.key_form), &auditor.schedule);
        // Of a table that was never counted a tenant in thousands must not take much.
        let estimate = access.estimate.unwrap_or(16_384);
        let audited = Self {
            auditor,
            reached: auditor.looks_at_all().then(|| RefCell::new(Sketch::new(estimate))),
            tenant,
            schedules,
            database,
            table,
            access: RefCell::new(access),
            opened: Instant::now(),
            records: RefCell::default(),
            records_at: Cell::default(),
            suspects: RefCell::default(),
            reported: RefCell::default(),
        };
        if auditor.options.trail {
            if let Some(why) = audited.access().without_trail() {
                audited.blind(why);
            }
            audited.read_records().await?;
        } else {
            auditor.state.borrow_mut().blind = true;
        }
        auditor.bar.inc_length(audited.access().estimate.unwrap_or_default());
        Ok(audited)
    }

    pub(crate) fn tenant(&self) -> &'a Tenant {
        self.tenant
    }

    pub(super) fn access(&self) -> std::cell::Ref<'_, AuditAccess> {
        self.access.borrow()
    }

    /// The names of its keys in Redis.
    pub(super) fn spaces(&self) -> Vec<KeySpace> {
        self.tenant.key_spaces(self.auditor.key_form)
    }

    /// Postgres's clock.
    pub(super) fn now(&self) -> f64 {
        self.access.borrow().now + self.opened.elapsed().as_secs_f64()
    }

    /// Ends its connections.
    pub(crate) async fn close(self) {
        self.database.close(CLOSE).await;
    }

    pub(super) fn record_of(&self, id: Uuid) -> Option<Known> {
        self.records.borrow().get(&id).cloned()
    }

    fn blind(&self, why: &str) {
        self.auditor.state.borrow_mut().blind = true;
        self.auditor
            .notice(self.tenant, format!("the trail is not read, so two witnesses are compared: {why}"));
    }

    /// The first two passes.
    pub(super) async fn rows_and_members(&self, report: &impl Findings) -> anyhow::Result<()> {
        self.rows(report).await?;
        if self.auditor.stop.get() {
            return Ok(());
        }
        for schedule in self.schedules.iter() {
            let mut members = Members::of(schedule);
            while let Some(page) = members.next().await? {
                self.auditor.redis.take(page.len()).await;
                self.members(page).await?;
                self.confirm(report, false).await?;
                if self.auditor.stop.get() {
                    return Ok(());
                }
            }
        }
        self.confirm(report, true).await?;
        let mut state = self.auditor.state.borrow_mut();
        state.cursor.rows_after.remove(self.tenant.label());
        state.cursor.done.push(self.tenant.label().to_owned());
        Ok(())
    }

    async fn rows(&self, report: &impl Findings) -> anyhow::Result<()> {
        let label = self.tenant.label();
        let mut page = AuditPage {
            after: self.auditor.state.borrow().cursor.rows_after.get(label).copied(),
            rows: PAGE,
            sample: self.auditor.options.sample.filter(|share| *share < 1.0).map(sample_of),
        };
        let mut rows = self.page(&mut page).await?;
        let mut last_seen = page.after;
        while let Some(last) = rows.last().map(|row| row.id) {
            let ended = rows.len() < usize::from(page.rows);
            if let Some(observer) = &self.auditor.observer {
                observer(&rows, self.access().reads_further());
            }
            let mut following = AuditPage { after: Some(last), ..page };
            // The next page is read while this one is looked at.
            let next = async { if ended { Ok(Vec::new()) } else { self.page(&mut following).await } };
            let (next, looked) = futures::join!(next, self.look_at(rows));
            looked?;
            last_seen = Some(last);
            self.confirm(report, false).await?;
            // What waits for another look would be forgotten if an audit went on from here.
            if self.suspects.borrow().is_empty() {
                self.auditor.state.borrow_mut().cursor.rows_after.insert(label.to_owned(), last);
            }
            if self.auditor.stop.get() {
                break;
            }
            rows = next?;
            page = following;
        }
        self.confirm(report, true).await?;
        if let Some(last) = last_seen {
            self.auditor.state.borrow_mut().cursor.rows_after.insert(label.to_owned(), last);
        }
        Ok(())
    }

    async fn page(&self, page: &mut AuditPage) -> anyhow::Result<Vec<AuditRow>> {
        loop {
            self.auditor.postgres.take(usize::from(page.rows)).await;
            let access = self.access().clone();
            match self.database.audit_page(&self.table, &access, *page).await {
                Ok(rows) => return Ok(rows),
                Err(error) if error.is_statement_timeout() && page.rows > SMALLEST_PAGE => page.rows /= 2,
                Err(error) if error.is_statement_timeout() && access.without_trail().is_none() => {
                    self.see_nothing_more("its newest operations take too long to find: is there an index?");
                    page.rows = PAGE;
                }
                // Such as row security, which the grants don't show.
                Err(error)
                    if access.without_trail().is_none()
                        && matches!(error.class().as_str(), "permission" | "row_security")
                        && error.message().contains("operation") =>
                {
                    self.see_nothing_more(error.message());
                }
                Err(error) => return Err(error).context("reading rows"),
            }
        }
    }

    fn see_nothing_more(&self, why: &str) {
        let blind = self.access().blind(why);
        *self.access.borrow_mut() = blind;
        self.blind(why);
    }

    pub(super) async fn rows_of(&self, ids: &[Uuid]) -> anyhow::Result<Vec<Option<AuditRow>>> {
        self.auditor.postgres.take(ids.len()).await;
        let access = self.access().clone();
        match self.database.audit_rows(&self.table, &access, ids).await {
            Err(error) if error.is_statement_timeout() && access.without_trail().is_none() => {
                self.see_nothing_more("its newest operations take too long to find: is there an index?");
                let access = self.access().clone();
                Ok(self.database.audit_rows(&self.table, &access, ids).await?)
            }
            rows => rows.context("reading rows"),
        }
    }

    /// The keys under which Redis may hold the balance of a row.
    fn members_of(&self, row: &AuditRow) -> Vec<Vec<u8>> {
        let Some((organization, ledger)) = row.ledger else { return Vec::new() };
        let member =
            |space: &KeySpace| space.balance(organization, ledger, &row.alias, &row.key).into_bytes();
        self.schedules.iter().map(|schedule| member(schedule.space())).collect()
    }

    /// A first look at a page of rows.
    async fn look_at(&self, rows: Vec<AuditRow>) -> anyhow::Result<()> {
        let (looked_at, since) = (rows.len() as u64, self.auditor.options.since);
        let is_recent = |row: &AuditRow| {
            since.is_none_or(|since| {
                let operation = row.operation.as_ref().map(|operation| operation.created_at);
                row.updated_at.into_iter().chain(operation).any(|at| at >= since)
            })
        };
        let names: Vec<Vec<Vec<u8>>> = rows.iter().map(|row| self.members_of(row)).collect();
        let keys: Vec<Vec<u8>> = names.iter().flatten().cloned().collect();
        let values = self.values_of(&keys).await?;
        let (mut at, now) = (0, self.now());
        let with_trail = self.access().without_trail().is_none();
        for (row, members) in rows.into_iter().zip(names) {
            let own = at..at + members.len();
            at = own.end;
            let read = newest_value(&self.schedules, &members, &values[own]);
            if let Some(reached) = &self.reached {
                let mut reached = reached.borrow_mut();
                let own = members.iter().enumerate().filter(|(n, _)| read.is_of_row(*n, row.id));
                own.for_each(|(_, member)| reached.add(member));
            }
            let value =
                if read.id().is_some_and(|id| id != row.id) { Value::Absent } else { read.into_value() };
            // A row that is not written any more is old: what Redis has more than it counts as recent, too.
            let is_behind = matches!(&value, Value::Present(known) if known.version > row.version);
            if !is_behind && !is_recent(&row) {
                continue;
            }
            let (id, companion) = (row.id, row.key == COMPANION);
            let (row, trail) = row_and_trail(row, with_trail, now);
            let record = self.record_of(id);
            let scheduled = Scheduled::No;
            let judgement = judge(
                &Witnesses { companion, value, row: Some(row), trail, record, scheduled },
                self.auditor.options.in_flight,
            );
            if judgement.is_finding() && !members.is_empty() {
                self.suspect(Subject { members, id: Some(id) });
            } else {
                self.auditor.count(judgement.class);
            }
        }
        self.auditor.state.borrow_mut().cursor.counted.rows += looked_at;
        self.auditor.bar.inc(looked_at);
        Ok(())
    }

    /// A first look at members of a schedule: those without a value.
    async fn members(&self, members: Vec<Vec<u8>>) -> anyhow::Result<()> {
        let values = self.values_of(&members).await?;
        let absent = members.into_iter().zip(values).filter(|(_, value)| value.is_none());
        for (member, _) in absent {
            self.suspect(Subject { members: vec![member], id: None });
        }
        Ok(())
    }

    /// A first look at values: those that no row leads to.
    pub(super) async fn values(&self, keys: &[Vec<u8>], report: &impl Findings) -> anyhow::Result<()> {
        let values = self.values_of(keys).await?;
        let mut present = Vec::with_capacity(keys.len());
        for (key, value) in keys.iter().zip(&values).filter(|(_, value)| value.is_some()) {
            let read = newest_value(&self.schedules, std::slice::from_ref(key), std::slice::from_ref(value));
            match (read.id(), read.into_value()) {
                (Some(id), Value::Present(_)) => present.push((key, id)),
                (_, Value::Unreadable(_)) if !self.reported.borrow().contains(key) => {
                    self.suspect(Subject { members: vec![key.clone()], id: None });
                }
                _ => {}
            }
        }
        let ids: Vec<Uuid> = present.iter().map(|(_, id)| *id).collect();
        self.auditor.postgres.take(ids.len()).await;
        let blind = self.access().blind("not needed");
        let rows = self.database.audit_rows(&self.table, &blind, &ids).await.context("reading rows")?;
        for ((key, _), row) in present.into_iter().zip(rows) {
            let leads_here = row.as_ref().is_some_and(|row| self.members_of(row).contains(key));
            if !leads_here {
                self.suspect(Subject { members: vec![key.clone()], id: None });
            }
        }
        self.confirm(report, false).await
    }

    fn suspect(&self, subject: Subject) {
        let suspect = Suspect { subject, judgement: None, looks: 1, at: Instant::now(), behind: None };
        self.suspects.borrow_mut().push_back(suspect);
    }

    /// Looks again at all that waits for it.
    pub(super) async fn confirm_all(&self, report: &impl Findings) -> anyhow::Result<()> {
        self.confirm(report, true).await
    }

    /// Looks again at what has waited long enough; with `all`, or while too many wait, at all that waits.
    async fn confirm(&self, report: &impl Findings, all: bool) -> anyhow::Result<()> {
        let recheck = self.auditor.options.recheck;
        loop {
            let (waiting, oldest) = {
                let suspects = self.suspects.borrow();
                (suspects.len(), suspects.front().map(|suspect| suspect.at))
            };
            let Some(oldest) = oldest else { return Ok(()) };
            let left = recheck.saturating_sub(oldest.elapsed());
            if !left.is_zero() {
                if !all && waiting < MAX_SUSPECTS {
                    return Ok(());
                }
                tokio::time::sleep(left).await;
            }
            let ripe: Vec<Suspect> = {
                let mut suspects = self.suspects.borrow_mut();
                let ripe =
                    suspects.iter().take(LOOK).take_while(|suspect| suspect.at.elapsed() >= recheck).count();
                suspects.drain(..ripe).collect()
            };
            self.look_again(ripe, report).await?;
        }
    }

    async fn look_again(&self, suspects: Vec<Suspect>, report: &impl Findings) -> anyhow::Result<()> {
        let subjects: Vec<&Subject> = suspects.iter().map(|suspect| &suspect.subject).collect();
        let mut seen = self.look(&subjects).await?;
        let in_flight = self.auditor.options.in_flight;
        if seen.iter().any(|seen| is_known_by_record(&seen.witnesses)) {
            // Records go once the ledger has written their operations.
            if self.records_at.get().is_none_or(|at| at.elapsed() >= RECORDS_FRESH) {
                self.read_records().await?;
            }
            for seen in &mut seen {
                seen.witnesses.record = seen.id.and_then(|id| self.record_of(id));
            }
        }
        let mut suspects = suspects;
        let judgements: Vec<Judgement> = suspects
            .iter_mut()
            .zip(&seen)
            .map(|(suspect, seen)| suspect.judge(&seen.witnesses, in_flight))
            .collect();
        // All at once: there may be many.
        let listed =
            suspects.iter().zip(&seen).zip(&judgements).map(|((suspect, seen), judgement)| async move {
                let confirmed = suspect.judgement.is_some_and(|before| before.is_still(judgement));
                if confirmed { self.is_listed(&seen.member).await } else { Ok(false) }
            });
        let listed = futures::future::try_join_all(listed).await?;
        let mut findings = Vec::new();
        for (((mut suspect, seen), judgement), listed) in
            suspects.into_iter().zip(seen).zip(judgements).zip(listed)
        {
            let confirmed = suspect.judgement.is_some_and(|before| before.is_still(&judgement));
            suspect.looks = suspect.looks.saturating_add(1);
            // One of the pass over members or values has been counted with its row, unless it has none.
            let counts = suspect.subject.id.is_some();
            if !judgement.is_finding() && suspect.behind.is_none() {
                if counts {
                    self.auditor.count(judgement.class);
                }
            } else if confirmed {
                if counts || seen.witnesses.row.is_none() {
                    self.auditor.count(judgement.class);
                }
                if counts
                    && matches!(seen.witnesses.value, Value::Unreadable(_))
                    && self.reported.borrow().len() < MAX_REPORTED
                {
                    self.reported.borrow_mut().insert(seen.member.clone());
                }
                self.auditor.state.borrow_mut().cursor.counted.findings += 1;
                findings.push(Finding {
                    tenant: self.tenant.label().to_owned(),
                    member: seen.member,
                    id: seen.id,
                    ledger: seen.ledger,
                    judgement,
                    witnesses: seen.witnesses,
                    listed,
                });
            } else if suspect.looks < MAX_LOOKS || suspect.behind.is_some() {
                suspect.judgement = Some(judgement);
                suspect.at = Instant::now();
                self.suspects.borrow_mut().push_back(suspect);
            } else if counts {
                self.auditor.count(Class::InFlight);
            }
        }
        if findings.is_empty() { Ok(()) } else { report.take(self, findings).await }
    }

    /// Whether it stands in the list of quarantined and lost balances, under any form of the tenant's id.
    async fn is_listed(&self, member: &[u8]) -> Result<bool, ScheduleError> {
        for form in self.forms_of(member) {
            if self.schedules.is_listed(&form).await? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// The balances in the ledger's recover records.
    async fn read_records(&self) -> anyhow::Result<()> {
        let mut found: HashMap<Uuid, Known> = HashMap::new();
        for schedule in self.schedules.iter() {
            let mut records = RecoverRecords::of(schedule);
            loop {
                let page = match records.next().await {
                    Ok(Some(page)) => page,
                    Ok(None) => break,
                    Err(error) if error.class == RedisError::Permission => {
                        let text = "the ledger's recover records are not read: the user of Redis lacks the right to read the keys \
                                    *engine:{transactions}:recover";
                        self.auditor.notice(self.tenant, text.to_owned());
                        break;
                    }
                    Err(error) => return Err(error.into()),
                };
                self.auditor.redis.take(page.len()).await;
                for (id, known) in page.iter().flat_map(|record| balances_in(record)) {
                    let has_room = found.len() < MAX_RECORDS;
                    match found.entry(id) {
                        Entry::Occupied(mut newest) if known.version > newest.get().version => {
                            newest.insert(known);
                        }
                        Entry::Vacant(room) if has_room => drop(room.insert(known)),
                        Entry::Occupied(_) | Entry::Vacant(_) => {}
                    }
                }
                if found.len() >= MAX_RECORDS {
                    let text =
                        format!("of the ledger's recover records only {MAX_RECORDS} balances are read");
                    self.auditor.notice(self.tenant, text);
                    break;
                }
            }
        }
        *self.records.borrow_mut() = found;
        self.records_at.set(Some(Instant::now()));
        Ok(())
    }
}

/// Whether the judgement hangs on a recover record.
fn is_known_by_record(witnesses: &Witnesses) -> bool {
    let Some(record) = &witnesses.record else { return false };
    let operation = match &witnesses.trail {
        Trail::Newest(operation) => operation.known.version,
        Trail::Unread | Trail::Nothing => -1,
    };
    let row = witnesses.row.as_ref().map_or(-1, |row| row.known.version);
    record.version > operation || record.version > row
}

/// The complete balances in a recover record. What is none is left out: these records are the ledger's own, and a witness only
/// where they can be read.
fn balances_in(record: &[u8]) -> Vec<(Uuid, Known)> {
    #[derive(Deserialize)]
    struct Outer {
        record: Record,
    }
    #[derive(Deserialize)]
    struct Record {
        result: Applied,
    }
    #[derive(Deserialize)]
    struct Applied {
        r#final: Vec<serde_json::Value>,
    }
    let Ok(outer) = serde_json::from_slice::<Outer>(record) else { return Vec::new() };
    outer.record.result.r#final.iter().filter_map(balance_in).collect()
}

fn balance_in(balance: &serde_json::Value) -> Option<(Uuid, Known)> {
    let text = |name: &str| match balance.get(name)? {
        serde_json::Value::String(text) => Some(text.clone()),
        // Others have been through a float.
        serde_json::Value::Number(number) if number.is_i64() => Some(number.to_string()),
        _ => None,
    };
    let amount = |name: &str| text(name).filter(|text| balance_sync_domain::Amount::parse(text).is_ok());
    let known = Known {
        version: text("version")?.parse().ok()?,
        amounts: Amounts {
            available: amount("available")?,
            on_hold: amount("onHold")?,
            overdraft_used: Some(amount("overdraftUsed")?),
        },
    };
    Some((text("id")?.parse().ok()?, known))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn complete_balances_are_read_from_a_recover_record() {
        let id = Uuid::from_u128(7);
        let record = |balance: &str| {
            balances_in(format!(r#"{{"record":{{"result":{{"final":[{balance}]}}}},"x":1}}"#).as_bytes())
        };
        let read = record(&format!(
            r#"{{"id":"{id}","available":"1.50","onHold":"0","overdraftUsed":"2","version":"6","alias":"@a"}}"#
        ));
        assert_eq!(read.len(), 1);
        assert_eq!((read[0].0, read[0].1.version), (id, 6));
        assert_eq!(read[0].1.amounts.overdraft_used.as_deref(), Some("2"));
        // A number is as good, and what is incomplete is no witness.
        assert_eq!(
            record(&format!(r#"{{"id":"{id}","available":1,"onHold":0,"overdraftUsed":0,"version":6}}"#))
                .len(),
            1
        );
        for bad in [
            format!(r#"{{"id":"{id}","available":"1","onHold":"0","version":"6"}}"#),
            format!(r#"{{"id":"{id}","available":"x","onHold":"0","overdraftUsed":"0","version":"6"}}"#),
            r#"{"available":"1","onHold":"0","overdraftUsed":"0","version":"6"}"#.to_owned(),
        ] {
            assert_eq!(record(&bad), Vec::new(), "{bad}");
        }
        assert_eq!(balances_in(b"no JSON"), Vec::new());
    }
}
