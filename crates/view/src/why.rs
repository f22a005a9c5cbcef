//! Why is this balance not in Postgres? Everything that is known about one balance, and in one sentence what happens next.
//!
//! Facts come from Redis (one script call, one moment), from the tenant's row, and from what the workers publish about the
//! tenant. The sentence is a pure function of them ([`verdict`], in `judge`).

mod judge;
mod search;

use balance_sync_domain::{BalanceRef, BalanceValue, QuarantineReason, Reported, Uuid, effective_key};
use balance_sync_fleet::status::ReportedReason;
use balance_sync_schedule::{ScheduleError, inspect::is_lease};
use balance_sync_store::{FoundRow, Sought};
use serde::Serialize;

pub use self::judge::verdict;
use self::search::Names;
use crate::{
    inspector::Inspector,
    reader::FleetReader,
    rows::{ErrorView, PausedBy, StateView, TenantRow, at},
};

/// What identifies a balance.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Question {
    /// The member of the schedule, which is also its key in Redis.
    Member(String),
    /// A tenant and an alias, and perhaps more.
    Balance {
        /// The tenant's id.
        tenant: String,
        /// The alias.
        alias: String,
        /// The balance key; any when absent.
        key: Option<String>,
        /// The organization; any when absent.
        organization: Option<Uuid>,
        /// The ledger; any when absent.
        ledger: Option<Uuid>,
    },
}

/// Why there is no answer.
#[derive(Debug, Clone, thiserror::Error)]
pub enum WhyError {
    /// No such tenant is listed or served.
    #[error("no tenant {0:?} is listed or served")]
    NoTenant(String),
    /// The member is of no known tenant.
    #[error("{0:?} is no balance key of a tenant that is listed or served")]
    NotAMember(String),
    /// Redis can't be asked.
    #[error(transparent)]
    Redis(#[from] ScheduleError),
}

/// The answer.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Why {
    /// One per balance that fits.
    pub matches: Vec<BalanceReport>,
    /// Amounts are left out, because the caller may not see them.
    pub amounts_hidden: bool,
    /// Why the tenant's Postgres could not be asked which balances have the alias: others than those found may exist.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub unasked: Option<String>,
    /// No balance has the alias, but some have this one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub meant: Option<String>,
}

/// Everything about one balance.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BalanceReport {
    /// Whose.
    pub tenant: String,
    /// The member of the schedule.
    pub member: String,
    /// Out of the member; absent when that can't be read.
    pub organization: Option<Uuid>,
    /// Out of the member.
    pub ledger: Option<Uuid>,
    /// Out of the member.
    pub alias: Option<String>,
    /// The balance key that counts.
    pub key: Option<String>,
    /// In the schedule.
    pub schedule: ScheduleView,
    /// In Redis.
    pub redis: RedisView,
    /// In Postgres.
    pub postgres: PostgresView,
    /// The claim lock, if there is one.
    pub lock: Option<LockView>,
    /// The tenant.
    pub tenant_state: TenantStateView,
    /// In quarantine.
    pub quarantine: Option<QuarantineView>,
    /// The tenant's last failure.
    pub last_error: Option<ErrorView>,
    /// In one word.
    pub verdict: Verdict,
    /// In one sentence: what happens next.
    pub next: String,
}

/// Where a balance is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// Postgres has what Redis has, and nothing waits.
    InSync,
    /// It is scheduled, and has been due for longer than the objective allows.
    Behind,
    /// It is scheduled.
    OnItsWay,
    /// It can't be synced until an operator acts.
    Quarantined,
    /// Redis is newer, and nothing is scheduled: no worker will write it.
    UnscheduledAndBehind,
    /// Postgres is newer than Redis.
    Ahead,
    /// Not enough is known.
    Unknown,
}

/// Where a member stands in the schedule.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Scheduled {
    /// Nowhere.
    NotScheduled,
    /// Its time has come.
    Due,
    /// A worker holds it, or it was put off.
    Leased,
    /// Its time comes later.
    Future,
}

/// In the schedule.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct ScheduleView {
    /// Where.
    pub state: Scheduled,
    /// Its score.
    pub score: Option<f64>,
    /// When it is or was due.
    pub due_at: Option<String>,
    /// Until when it is held.
    pub leased_until: Option<String>,
}

/// In Redis.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RedisView {
    /// Whether there is a value.
    pub present: bool,
    /// Its version, if it can be read.
    pub version: Option<i64>,
    /// Its remaining life; absent = without end, or there is none.
    pub ttl_seconds: Option<f64>,
    /// Why it can't be read.
    pub unreadable: Option<String>,
    /// It can't be read, and is no fault: it stays scheduled until it can.
    #[serde(skip)]
    pub keeps_scheduled: bool,
    /// The amount.
    pub available: Option<String>,
    /// The amount.
    pub on_hold: Option<String>,
    /// The amount.
    pub overdraft_used: Option<String>,
}

/// Whether there is a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum RowState {
    /// There is.
    Present,
    /// There is none.
    Missing,
    /// There is, and it is deleted.
    Deleted,
    /// The database can't be asked.
    Unreachable,
}

/// In Postgres.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct PostgresView {
    /// Whether there is a row.
    pub state: RowState,
    /// Its version.
    pub version: Option<i64>,
    /// When it was written last.
    pub updated_at: Option<String>,
    /// Why the database can't be asked.
    pub detail: Option<String>,
    /// Alias and key of the row, if they are not those of the member: the value in Redis carries another balance's ID, by which
    /// it is written.
    pub other_balance: Option<String>,
    /// The amount.
    pub available: Option<String>,
    /// The amount.
    pub on_hold: Option<String>,
    /// The amount.
    pub overdraft_used: Option<String>,
}

/// The claim lock.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct LockView {
    /// Whether it is none of our workers'.
    pub foreign: bool,
    /// Its remaining life.
    pub ttl_seconds: Option<f64>,
}

/// The tenant.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct TenantStateView {
    /// What its collector does, or `unserved`.
    pub state: StateView,
    /// Why.
    pub reason: Option<ReportedReason>,
    /// Why, in words.
    pub detail: Option<String>,
    /// Whether only some of its balances are concerned, and the others are written.
    #[serde(skip)]
    pub partial: bool,
    /// Since when.
    pub since: Option<String>,
    /// Who paused it.
    pub paused: Option<PausedBy>,
    /// For how long a worker has waited for a connection to write it on, where that is long.
    #[serde(skip)]
    pub connection_wait_seconds: Option<f64>,
}

/// In quarantine.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct QuarantineView {
    /// Why; another release may know other reasons.
    pub reason: Reported<QuarantineReason>,
    /// Why, in words; left out for callers that may not see amounts, where the words may quote some.
    pub detail: Option<String>,
    /// The first time.
    pub first_at: String,
    /// The last time.
    pub last_at: String,
    /// How often.
    pub count: u64,
    /// Whether the kept value is cut.
    pub truncated: bool,
    /// Whether there is a kept value.
    pub has_value: bool,
    /// Of a loss: whether the ledger's trail proves it. Absent if nothing is known to be lost.
    pub loss_confirmed: Option<bool>,
    /// Of a loss: when a later mutation was written, since which the balance may have forked.
    pub later_at: Option<String>,
}

impl Why {
    /// Leaves out amounts, and words that may quote them.
    pub fn hide_amounts(&mut self) {
        self.amounts_hidden = true;
        for report in &mut self.matches {
            let (redis, postgres) = (&mut report.redis, &mut report.postgres);
            for amount in [
                &mut redis.available,
                &mut redis.on_hold,
                &mut redis.overdraft_used,
                &mut redis.unreadable,
                &mut postgres.available,
                &mut postgres.on_hold,
                &mut postgres.overdraft_used,
            ] {
                *amount = None;
            }
            if let Some(entry) = &mut report.quarantine
                && entry.reason.may_quote()
            {
                entry.detail = None;
            }
        }
    }
}

// -- asking ------------------------------------------------------------------------------------------------------------

/// Finds the balances that fit, and tells everything about each.
///
/// # Errors
/// When there is no such tenant, or Redis can't be asked. A database that can't be asked is part of the answer.
pub async fn why(reader: &FleetReader, inspector: &Inspector, question: &Question) -> Result<Why, WhyError> {
    let view = reader.view().await;
    let (tenant, row) = match question {
        Question::Balance { tenant: id, .. } => {
            let tenant = view.tenant(id).ok_or_else(|| WhyError::NoTenant(id.clone()))?;
            (tenant, view.find(id).map(|(row, _)| row.clone()))
        }
        Question::Member(member) => {
            // The tenant in the key may be written in another form than it is listed in.
            let owner = view.tenants.iter().find_map(|row| {
                let tenant = view.tenant(&row.id)?;
                let spaces = tenant.key_spaces(inspector.key_form());
                let own = spaces.iter().any(|space| member.starts_with(&space.balance_prefix()));
                own.then_some((tenant, Some(row.clone())))
            });
            owner.ok_or_else(|| WhyError::NotAMember(member.clone()))?
        }
    };
    let schedules = inspector.schedules(&tenant);
    let served = reader.serves(&tenant);
    let database = inspector.database(&tenant, served).await;
    let opened = database.as_ref().map_err(ToString::to_string);

    let mut reports = Vec::new();
    let (mut unasked, mut meant) = (None, None);
    let members: Vec<(Vec<u8>, Option<FoundRow>)> = match question {
        Question::Member(member) => vec![(member.clone().into_bytes(), None)],
        Question::Balance { alias, key, organization, ledger, .. } => {
            let names = Names { alias, key: key.as_deref(), organization: *organization, ledger: *ledger };
            let found = names.find(&schedules, opened.as_ref().copied()).await?;
            if found.members.is_empty() {
                let other = search::meant(alias);
                let like =
                    Names { alias: &other, ..names }.find(&schedules, opened.as_ref().copied()).await?;
                meant = (!like.members.is_empty()).then_some(other);
            }
            unasked = found.unasked;
            found.members
        }
    };
    let last_error = match &row {
        Some(row) => reader.detail(&row.id).await.and_then(|detail| detail.errors.into_iter().next()),
        None => None,
    };
    let workers: Vec<&str> = view.workers.iter().map(|worker| worker.name.as_str()).collect();
    for (member, found) in members {
        let schedule = schedules.of_member(&member);
        let inspected = schedule.inspect(&member).await?;
        let balance = BalanceRef::parse(schedule.space(), &member).ok();
        let value = inspected.value.as_deref().map(|value| BalanceValue::of_member(&member, value));
        let sought = match (&balance, &value) {
            (_, Some(Ok(value))) => Some(Sought { id: Some(value.id), ..Sought::default() }),
            (Some(balance), _) => Some(Sought {
                organization: Some(balance.organization),
                ledger: Some(balance.ledger),
                alias: Some(balance.alias),
                key: Some(balance.key),
                ..Sought::default()
            }),
            (None, _) => None,
        };
        // The row that is written is the one whose id the value carries.
        let found = found.filter(|row| !matches!(&value, Some(Ok(value)) if value.id != row.id));
        let postgres = match (&opened, found, sought) {
            (_, Some(row), _) => Ok(Some(row)),
            (Err(detail), None, _) => Err(detail.clone()),
            (Ok(open), None, Some(sought)) => open
                .database
                .look_up(&open.table, &sought)
                .await
                .map(|rows| rows.into_iter().find(|row| in_place(row, balance.as_ref())))
                .map_err(|error| error.to_string()),
            (Ok(_), None, None) => Ok(None),
        };
        let key = match (&balance, &value) {
            (Some(balance), Some(Ok(value))) => Some(effective_key(balance, value).to_owned()),
            (Some(balance), _) => Some(balance.key.to_owned()),
            (None, _) => None,
        };
        let other_balance = match (&postgres, &balance, &key) {
            (Ok(Some(row)), Some(balance), Some(key)) if row.alias != balance.alias || row.key != *key => {
                Some(format!("{}#{}", row.alias, row.key))
            }
            _ => None,
        };
        let mut report = BalanceReport {
            tenant: tenant.label().to_owned(),
            member: String::from_utf8_lossy(&member).into_owned(),
            organization: balance.as_ref().map(|balance| balance.organization),
            ledger: balance.as_ref().map(|balance| balance.ledger),
            alias: balance.as_ref().map(|balance| balance.alias.to_owned()),
            key,
            schedule: schedule_view(inspected.score, inspected.now),
            redis: RedisView {
                present: value.is_some() || inspected.unreadable.is_some(),
                version: value.as_ref().and_then(|value| value.as_ref().ok()).map(|value| value.version),
                ttl_seconds: inspected.ttl.map(|ttl| ttl.as_secs_f64()),
                unreadable: inspected
                    .unreadable
                    .or_else(|| value.as_ref().and_then(|v| v.as_ref().err()).map(ToString::to_string)),
                keeps_scheduled: matches!(&value, Some(Err(error)) if error.keeps_scheduled()),
                available: amount(&value, |value| value.available.as_str()),
                on_hold: amount(&value, |value| value.on_hold.as_str()),
                overdraft_used: amount(&value, |value| value.overdraft_used.as_str()),
            },
            postgres: PostgresView { other_balance, ..postgres_view(postgres) },
            lock: inspected.lock.as_ref().map(|lock| LockView {
                foreign: !workers.iter().any(|name| lock.split(':').next() == Some(name)),
                ttl_seconds: inspected.lock_ttl.map(|ttl| ttl.as_secs_f64()),
            }),
            tenant_state: tenant_state(row.as_ref()),
            quarantine: inspected.quarantine.map(|entry| QuarantineView {
                reason: entry.reason,
                detail: Some(entry.detail),
                first_at: at(entry.first_at.parse().unwrap_or_default()),
                last_at: at(entry.last_at.parse().unwrap_or_default()),
                count: entry.count,
                truncated: entry.truncated,
                has_value: entry.value.is_some(),
                loss_confirmed: entry.loss.as_ref().map(|loss| loss.confirmed),
                later_at: entry
                    .loss
                    .and_then(|loss| loss.later_at)
                    .map(|text| at(text.parse().unwrap_or_default())),
            }),
            last_error: last_error.clone(),
            verdict: Verdict::Unknown,
            next: String::new(),
        };
        let lease = schedule.options().claim_ttl.as_secs_f64();
        (report.verdict, report.next) = verdict(&report, inspected.now, view.objective_seconds, lease);
        reports.push(report);
    }
    if let Ok(opened) = database {
        opened.close().await;
    }
    Ok(Why { matches: reports, amounts_hidden: false, unasked, meant })
}

/// Whether the sync would write this row for the member.
fn in_place(row: &FoundRow, balance: Option<&BalanceRef<'_>>) -> bool {
    balance.is_none_or(|balance| {
        row.organization == Some(balance.organization) && row.ledger == Some(balance.ledger)
    })
}

fn amount<E>(value: &Option<Result<BalanceValue, E>>, of: impl Fn(&BalanceValue) -> &str) -> Option<String> {
    value.as_ref().and_then(|value| value.as_ref().ok()).map(|value| of(value).to_owned())
}

fn schedule_view(score: Option<f64>, now: f64) -> ScheduleView {
    let state = match score {
        None => Scheduled::NotScheduled,
        Some(score) if score <= now => Scheduled::Due,
        Some(score) if is_lease(score) => Scheduled::Leased,
        Some(_) => Scheduled::Future,
    };
    let held = state == Scheduled::Leased;
    ScheduleView {
        state,
        score,
        due_at: score.filter(|_| !held).map(at),
        leased_until: score.filter(|_| held).map(at),
    }
}

fn postgres_view(row: Result<Option<FoundRow>, String>) -> PostgresView {
    let nothing = PostgresView {
        state: RowState::Missing,
        version: None,
        updated_at: None,
        detail: None,
        other_balance: None,
        available: None,
        on_hold: None,
        overdraft_used: None,
    };
    match row {
        Err(detail) => PostgresView { state: RowState::Unreachable, detail: Some(detail), ..nothing },
        Ok(None) => nothing,
        Ok(Some(row)) => PostgresView {
            state: if row.deleted { RowState::Deleted } else { RowState::Present },
            version: Some(row.version),
            updated_at: row.updated_at.and_then(|seconds| seconds.parse().ok()).map(at),
            detail: None,
            other_balance: None,
            available: Some(row.available),
            on_hold: Some(row.on_hold),
            overdraft_used: Some(row.overdraft_used),
        },
    }
}

fn tenant_state(row: Option<&TenantRow>) -> TenantStateView {
    match row {
        Some(row) => TenantStateView {
            state: row.state.clone(),
            reason: row.reason.clone(),
            detail: row.detail.clone(),
            partial: row.partial,
            since: row.since.clone(),
            paused: row.paused.clone(),
            connection_wait_seconds: row.connection_wait_seconds,
        },
        None => TenantStateView {
            state: StateView::Unserved,
            reason: None,
            detail: None,
            partial: false,
            since: None,
            paused: None,
            connection_wait_seconds: None,
        },
    }
}
