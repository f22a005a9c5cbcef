//! What is counted of the fleet between two looks at it, and added to the record of the month.
//!
//! Pure: the time, by Redis's clock, and the fleet are arguments, what has changed is the result.

use std::collections::{BTreeMap, BTreeSet, HashMap};

use balance_sync_engine::outcome::Outcome;
use balance_sync_fleet::status::{ReportedReason, TenantState};
use balance_sync_schedule::controls::LogEntry;

use super::{
    month::Month,
    record::{
        ACTIONS, ACTIVE, ActionEntry, CAUSES, Cause, INCIDENTS, Incident, META, MonthRecord, NAMES, OUTCOMES,
        TENANT_CAUSES, TENANTS, TenantMonth, add, count, cut,
    },
};
use crate::{
    reader::FleetView,
    rows::{StateView, TenantRow},
};

/// Time between two looks beyond which nothing is known of what was between them, in seconds.
pub(super) const GAP: f64 = 30.0;
/// An incident goes on if it was seen this long ago at most, in seconds.
const GOES_ON: f64 = 60.0;
/// Tenants' fields are written at every so many looks: there may be hundreds.
const TENANTS_EVERY: u64 = 6;
/// The cause of a tenant that no live worker serves.
const UNSERVED: &str = "unserved";

/// Fields to be written to a month's record.
pub(super) type Changes = (Month, Vec<(String, String)>);

/// Counters of a tenant at the last look.
#[derive(Debug, Clone, Copy, Default)]
struct Seen {
    updated: u64,
    forked: u64,
    losses: u64,
}

/// The record of the current month, as the worker with the duty keeps it.
#[derive(Debug)]
pub(super) struct Book {
    month: Month,
    record: MonthRecord,
    /// The last look, and nothing before the first.
    last: Option<f64>,
    /// Tenants whose counters are not all 0.
    seen: HashMap<String, Seen>,
    /// Fields of incidents that are not over, by cause; `None` = one that isn't kept.
    open: BTreeMap<String, (Option<String>, f64)>,
    changed: BTreeSet<String>,
    changed_tenants: BTreeSet<String>,
    looks: u64,
    /// Since which look some tenant is served by no live worker. While a fleet starts, or is replaced, that is so for a moment: it counts
    /// from the second look on.
    unserved_since: Option<f64>,
}

impl Book {
    /// Goes on with what is recorded; what was listed as lost already is known from the month before, too.
    pub(super) fn open(now: f64, record: MonthRecord, before: &MonthRecord) -> Self {
        let mut seen = HashMap::new();
        for (tenant, entry) in
            before.tenants.iter().chain(&record.tenants).filter(|(_, entry)| entry.open > 0)
        {
            seen.insert(tenant.clone(), Seen { losses: entry.open, ..Seen::default() });
        }
        let mut book = Self {
            month: Month::of(now),
            record,
            last: None,
            seen,
            open: BTreeMap::new(),
            changed: BTreeSet::new(),
            changed_tenants: BTreeSet::new(),
            looks: 0,
            unserved_since: None,
        };
        book.carry_on(now, before);
        book
    }

    /// Incidents that were open at the last look go on, unless that is too long ago.
    fn carry_on(&mut self, now: f64, before: &MonthRecord) {
        for (field, incident) in self.record.incidents.iter_mut().filter(|(_, incident)| incident.open) {
            if now - incident.to <= GOES_ON {
                self.open.insert(incident.cause.clone(), (Some(field.clone()), incident.from));
            } else {
                incident.open = false;
                incident.end_unknown = true;
                self.changed.insert(field.clone());
            }
        }
        let start = self.month.start();
        for incident in
            before.incidents.values().filter(|incident| incident.open && now - incident.to <= GOES_ON)
        {
            if !self.open.contains_key(&incident.cause) {
                self.begin(incident.cause.clone(), start, true);
            }
        }
    }

    /// The month of `now`, if it isn't that of this book.
    pub(super) fn other_month(&self, now: f64) -> Option<Month> {
        Some(Month::of(now)).filter(|month| *month != self.month)
    }

    /// Goes on with what is recorded of another month, if anything is: Redis's clock has gone back, or was ahead. Otherwise
    /// the next look begins that month. Returns what was not written yet of the one that is left.
    pub(super) fn switch(&mut self, now: f64, record: MonthRecord, before: &MonthRecord) -> Option<Changes> {
        record.meta.as_ref()?;
        let rest = self.rest();
        *self = Self::open(now, record, before);
        Some(rest)
    }

    /// The entry of the log after which actions are still to be taken in.
    pub(super) fn actions_after(&self) -> String {
        match self.record.meta.as_ref().map(|meta| meta.action.as_str()).filter(|id| !id.is_empty()) {
            Some(id) => id.to_owned(),
            None => format!("{}-0", (self.month.start() * 1e3) as u64),
        }
    }

    /// Takes in entries of the log of actions, which come in order.
    pub(super) fn take_actions(&mut self, entries: &[LogEntry]) {
        let meta = self.record.meta.get_or_insert_default();
        for entry in entries {
            meta.action.clone_from(&entry.id);
            if entry.field("kind") == "outcome" {
                let id = entry.field("of");
                if let Some(action) =
                    self.record.actions.get_mut(id).filter(|action| action.outcomes.len() < OUTCOMES)
                {
                    let parts = ["worker", "outcome", "detail"].map(|name| cut(entry.field(name))).into();
                    // It may have been recorded by a worker that was killed before it could record how far it had read.
                    if !action.outcomes.contains(&parts) {
                        action.outcomes.push(parts);
                        self.changed.insert(format!("a:{id}"));
                    }
                }
            } else if entry.at() < self.month.start() {
                // Of the month before; the record of that is closed.
            } else if self.record.actions.len() < ACTIONS {
                let [by, what, tenant, worker, note] =
                    ["by", "what", "tenant", "worker", "note"].map(|name| cut(entry.field(name)));
                let what = match entry.field("change") {
                    "" => what,
                    change => cut(&format!("{what} {change}")),
                };
                let action =
                    ActionEntry { at: entry.at(), by, what, tenant, worker, note, outcomes: Vec::new() };
                self.record.actions.insert(entry.id.clone(), action);
                self.changed.insert(format!("a:{}", entry.id));
            } else {
                meta.omitted_actions += 1;
            }
        }
    }

    /// Adds an incident that is over and that no look has seen, as that Redis couldn't be asked.
    pub(super) fn add_incident(&mut self, cause: &str, from: f64, to: f64) {
        let from = from.max(self.month.start());
        if to <= from {
            return;
        }
        self.begin(cause.to_owned(), from, false);
        self.end(cause, to);
    }

    /// Takes in a look at the fleet; returns what is to be written.
    pub(super) fn look(&mut self, now: f64, view: &FleetView) -> Vec<Changes> {
        let mut changes = Vec::new();
        let mut from = self.last.filter(|last| (0.0..=GAP).contains(&(now - last))).unwrap_or(now);
        if Month::of(now) != self.month {
            let end = self.month.end();
            self.spend(view, self.month.days(), end - from);
            from = from.max(end);
            changes.push(self.turn(end, Month::of(now)));
        }
        let day = self.month.day(now);
        let midnight = self.month.day_start(day);
        if from < midnight {
            self.spend(view, day - 1, midnight - from);
            from = midnight;
        }
        self.spend(view, day, now - from);
        self.count(view, day);
        self.incidents(now, view);
        let unserved = view.tenants.iter().any(|row| row.state == StateView::Unserved);
        self.unserved_since = unserved.then(|| self.unserved_since.unwrap_or(now));
        let meta = self.record.meta.get_or_insert_default();
        if meta.began == 0.0 {
            meta.began = now;
        }
        meta.last = now;
        meta.freshness = view.objective_seconds;
        meta.exposure = view.objectives.exposure.as_secs_f64();
        self.last = Some(now);
        self.looks += 1;
        changes.push(self.changes(self.looks.is_multiple_of(TENANTS_EVERY)));
        changes
    }

    /// What was not written yet.
    pub(super) fn rest(&mut self) -> Changes {
        self.changes(true)
    }

    fn changes(&mut self, tenants: bool) -> Changes {
        let mut fields = Vec::new();
        for field in std::mem::take(&mut self.changed) {
            let value = match field.split_once(':') {
                Some(("d", day)) => {
                    day.parse().ok().and_then(|day: u32| self.record.days.get(&day)).map(json)
                }
                Some(("a", id)) => self.record.actions.get(id).map(json),
                _ => self.record.incidents.get(&field).map(json),
            };
            fields.extend(value.map(|value| (field, value)));
        }
        if tenants {
            for tenant in std::mem::take(&mut self.changed_tenants) {
                let value = self.record.tenants.get(&tenant).map(json);
                fields.extend(value.map(|value| (format!("t:{tenant}"), value)));
            }
        }
        // Last: it has the place in the log of actions up to which they are recorded.
        if let Some(meta) = &self.record.meta {
            fields.push((META.to_owned(), json(meta)));
        }
        (self.month, fields)
    }

    /// Closes the month, and begins another one.
    fn turn(&mut self, end: f64, month: Month) -> Changes {
        for (cause, (field, from)) in &self.open {
            if let Some(incident) = field.as_ref().and_then(|field| self.record.incidents.get_mut(field)) {
                incident.to = end;
                self.changed.extend(field.clone());
            }
            let meta = self.record.meta.get_or_insert_default();
            meta.causes.entry(cause.clone()).or_default().seconds += (end - from).max(0.0);
        }
        let closed = self.changes(true);
        let before = std::mem::take(&mut self.record);
        self.record.meta.get_or_insert_default().action =
            before.meta.map(|meta| meta.action).unwrap_or_default();
        self.month = month;
        let open = std::mem::take(&mut self.open);
        open.into_keys().for_each(|cause| self.begin(cause, month.start(), true));
        closed
    }

    /// Adds a span of time in which the fleet was as it is seen now.
    fn spend(&mut self, view: &FleetView, day: u32, seconds: f64) {
        if seconds <= 0.0 {
            return;
        }
        let seconds = (seconds * 1e3).round() / 1e3;
        let millis = (seconds * 1e3) as u64;
        let objective = view.objectives.exposure.as_secs_f64();
        let (mut late, mut exposed, mut degraded) = (false, false, false);
        let mut longest: f64 = 0.0;
        for row in &view.tenants {
            let state = Judged::of(row, view.objective_seconds, objective, self.unserved_since);
            late |= state.late;
            exposed |= state.exposed;
            degraded |= state.cause.is_some();
            longest = longest.max(state.exposure);
            let Some(entry) = self.entry(&row.id, state.is_troubled(), false) else { continue };
            let spent = |sum: &mut f64, is: bool| *sum += if is { seconds } else { 0.0 };
            spent(&mut entry.late, state.late);
            spent(&mut entry.exposed, state.exposed);
            spent(&mut entry.degraded, state.cause.is_some());
            spent(&mut entry.paused, state.paused);
            spent(&mut entry.unknown, !row.sampled);
            if row.sampled && !state.paused {
                count(&mut entry.exposure, state.exposure, millis);
                entry.longest = entry.longest.max(state.exposure);
            }
            if let Some(cause) = state.cause
                && (entry.causes.len() < TENANT_CAUSES || entry.causes.contains_key(&cause))
            {
                *entry.causes.entry(cause).or_default() += seconds;
            }
            self.changed_tenants.insert(row.id.clone());
        }
        let entry = self.record.days.entry(day).or_default();
        entry.seconds += seconds;
        entry.late += if late { seconds } else { 0.0 };
        entry.exposed += if exposed { seconds } else { 0.0 };
        entry.degraded += if degraded { seconds } else { 0.0 };
        entry.longest = entry.longest.max(longest);
        count(&mut entry.exposure, longest, millis);
        self.changed.insert(format!("d:{day:02}"));
    }

    /// Adds what the counters have counted since the last look. At the first one nothing is known to be new but balances that are
    /// listed as lost, if there was a record before.
    fn count(&mut self, view: &FleetView, day: u32) {
        let first = self.last.is_none();
        let fresh = self.record.meta.as_ref().is_none_or(|meta| meta.began == 0.0) && first;
        let (mut rows, mut lost, mut forked) = (0, 0, 0);
        let (mut omitted_troubled, mut omitted_active) = (0, 0);
        for ((row, counts), lags) in view.tenants.iter().zip(&view.counts).zip(&view.lags) {
            let now = Seen {
                updated: counts.outcomes[Outcome::Updated],
                forked: counts.outcomes[Outcome::Forked],
                losses: row.losses,
            };
            let before = self.seen.get(&row.id).copied().unwrap_or_default();
            let more = |now: u64, before: u64| if first { 0 } else { now.saturating_sub(before) };
            let new = Seen {
                updated: more(now.updated, before.updated),
                forked: more(now.forked, before.forked),
                losses: if fresh || !row.sampled { 0 } else { now.losses.saturating_sub(before.losses) },
            };
            // Not known is not none: what was listed before is not new when it is known again.
            let known = if row.sampled { now } else { Seen { losses: before.losses, ..now } };
            if known.updated + known.forked + known.losses > 0 {
                self.seen.insert(row.id.clone(), known);
            } else {
                self.seen.remove(&row.id);
            }
            rows += new.updated;
            lost += new.losses;
            forked += new.forked;
            let has_lags = !first && !lags.is_empty();
            let troubled = Judged::of(
                row,
                view.objective_seconds,
                view.objectives.exposure.as_secs_f64(),
                self.unserved_since,
            )
            .is_troubled();
            let troubled = troubled || known.losses > 0 || new.forked > 0;
            let active = new.updated > 0 || has_lags;
            if !troubled && !active && before.losses == 0 {
                continue;
            }
            let Some(entry) = self.entry(&row.id, troubled, active) else {
                omitted_troubled += u64::from(troubled);
                omitted_active += u64::from(!troubled && active);
                continue;
            };
            entry.rows += new.updated;
            entry.lost += new.losses;
            entry.forked += new.forked;
            entry.open = known.losses;
            if has_lags {
                add(&mut entry.lags, lags);
            }
            self.changed_tenants.insert(row.id.clone());
        }
        let meta = self.record.meta.get_or_insert_default();
        meta.omitted_troubled = meta.omitted_troubled.max(omitted_troubled);
        meta.omitted_active = meta.omitted_active.max(omitted_active);
        let entry = self.record.days.entry(day).or_default();
        entry.rows += rows;
        entry.lost += lost;
        entry.forked += forked;
        entry.tenants = entry.tenants.max(view.tenants.len() as u64);
        if !first {
            add(&mut entry.lags, &view.rates.lags);
        }
        self.changed.insert(format!("d:{day:02}"));
    }

    fn entry(&mut self, tenant: &str, troubled: bool, active: bool) -> Option<&mut TenantMonth> {
        if !self.record.tenants.contains_key(tenant) {
            let entries = self.record.tenants.len();
            if !(troubled && entries < TENANTS || active && entries < ACTIVE) {
                return None;
            }
            self.record.tenants.insert(tenant.to_owned(), TenantMonth::default());
        }
        self.record.tenants.get_mut(tenant)
    }

    fn incidents(&mut self, now: f64, view: &FleetView) {
        let mut causes: BTreeMap<String, Vec<&TenantRow>> = BTreeMap::new();
        for row in &view.tenants {
            if let Some(cause) = cause(row, self.unserved_since) {
                causes.entry(cause).or_default().push(row);
            }
        }
        let over: Vec<String> =
            self.open.keys().filter(|cause| !causes.contains_key(*cause)).cloned().collect();
        for cause in over {
            self.end(&cause, now);
        }
        for (cause, rows) in causes {
            if !self.open.contains_key(&cause) {
                if self.open.len() >= CAUSES {
                    continue;
                }
                let since = rows
                    .iter()
                    .filter_map(|row| row.since.as_deref().map_or(self.unserved_since, seconds))
                    .fold(now, f64::min);
                let start = self.month.start();
                self.begin(cause.clone(), since.max(start), since < start);
            }
            let Some((Some(field), _)) = self.open.get(&cause) else { continue };
            let Some(incident) = self.record.incidents.get_mut(field) else { continue };
            incident.to = now;
            incident.tenants = incident.tenants.max(rows.len() as u64);
            for row in &rows {
                incident.longest = incident.longest.max(row.exposure_age_seconds);
                if incident.names.len() < NAMES && !incident.names.contains(&row.id) {
                    incident.names.push(row.id.clone());
                }
            }
            let vanished = rows.iter().filter_map(|row| row.vanished.as_ref());
            let (rescheduled, lost) =
                vanished.fold((0, 0), |(r, l), open| (r + open.rescheduled, l + open.lost));
            incident.rescheduled = incident.rescheduled.max(rescheduled);
            incident.lost = incident.lost.max(lost);
            self.changed.insert(field.clone());
        }
    }

    fn begin(&mut self, cause: String, from: f64, continued: bool) {
        let meta = self.record.meta.get_or_insert_default();
        if !meta.causes.contains_key(&cause) && meta.causes.len() >= CAUSES {
            return;
        }
        meta.causes.entry(cause.clone()).or_default().incidents += 1;
        let field = (self.record.incidents.len() < INCIDENTS).then(|| format!("i:{:.0}:{cause}", from * 1e3));
        if let Some(field) = &field {
            let incident = Incident {
                cause: cause.clone(),
                from,
                to: from,
                open: true,
                continued,
                ..Incident::default()
            };
            self.record.incidents.insert(field.clone(), incident);
            self.changed.insert(field.clone());
        } else {
            meta.omitted_incidents += 1;
        }
        self.open.insert(cause, (field, from));
    }

    fn end(&mut self, cause: &str, now: f64) {
        let Some((field, from)) = self.open.remove(cause) else { return };
        if let Some(incident) = field.as_ref().and_then(|field| self.record.incidents.get_mut(field)) {
            incident.to = now;
            incident.open = false;
            self.changed.extend(field);
        }
        let sum: &mut Cause =
            self.record.meta.get_or_insert_default().causes.entry(cause.to_owned()).or_default();
        sum.seconds += (now - from).max(0.0);
    }
}

/// How a tenant is at a look.
struct Judged {
    late: bool,
    exposed: bool,
    paused: bool,
    /// 0 while it is paused.
    exposure: f64,
    cause: Option<String>,
}

impl Judged {
    fn of(row: &TenantRow, freshness: f64, objective: f64, unserved_since: Option<f64>) -> Self {
        let paused = row.paused.is_some() || row.state == TenantState::Paused.into();
        // What another worker writes isn't this fleet's to be judged by.
        let is_ours = row.state != StateView::NotInRollout;
        let exposure = if paused || !is_ours { 0.0 } else { row.exposure_age_seconds };
        Self {
            late: row.is_behind(freshness),
            exposed: exposure > objective,
            paused,
            exposure,
            cause: cause(row, unserved_since),
        }
    }

    fn is_troubled(&self) -> bool {
        self.late || self.exposed || self.cause.is_some()
    }
}

/// Why a tenant can't be written, or what Redis has lost of it.
fn cause(row: &TenantRow, unserved_since: Option<f64>) -> Option<String> {
    let reason = row.reason.as_ref().map_or("unknown", ReportedReason::as_str);
    match &row.state {
        StateView::Unserved => unserved_since.map(|_| UNSERVED.to_owned()),
        StateView::Is(TenantState::Degraded) => Some(cut(reason)),
        _ => row.vanished.as_ref().map(|open| cut(open.reason.as_str())),
    }
}

/// A time as rows have it, in seconds since 1970.
fn seconds(time: &str) -> Option<f64> {
    let since = humantime::parse_rfc3339(time).ok()?.duration_since(std::time::UNIX_EPOCH).ok()?;
    Some(since.as_secs_f64())
}

fn json(value: &impl serde::Serialize) -> String {
    // Maps with text as keys, and numbers: there is nothing that can't be written.
    serde_json::to_string(value).unwrap_or_default()
}
