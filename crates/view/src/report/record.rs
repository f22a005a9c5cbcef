//! What is recorded of a month, as it stands in Redis: one field per day, tenant, incident and action, and one for the whole.

use std::collections::{BTreeMap, HashMap};

use balance_sync_fleet::status::BUCKETS;
use serde::{Deserialize, Serialize, de::DeserializeOwned};

use super::month::Month;

/// Tenants of a month with an entry of their own: those with which something was wrong …
pub const TENANTS: usize = 1_000;
/// … and as long as there are no more than this, also those that were merely written.
pub const ACTIVE: usize = 500;
/// Incidents of a month that are kept one by one; those beyond are summed by cause.
pub const INCIDENTS: usize = 1_000;
/// Actions of a month that are kept.
pub const ACTIONS: usize = 500;
/// Characters of a note, a name or a detail that are kept.
pub const TEXT: usize = 200;
/// Outcomes that are kept of an action.
pub const OUTCOMES: usize = 4;
/// Causes that are kept of a month: more than there are reasons.
pub const CAUSES: usize = 64;
/// Causes that are kept of a tenant.
pub const TENANT_CAUSES: usize = 8;
/// Tenants that are named of an incident.
pub const NAMES: usize = 3;

/// Seconds or observations by bucket of [`BUCKETS`], and beyond the last; trailing zeros are left out.
pub type Spread = Vec<u64>;

/// Adds to the bucket of so many seconds.
pub(super) fn count(spread: &mut Spread, seconds: f64, more: u64) {
    let at = BUCKETS.iter().position(|bound| seconds <= *bound).unwrap_or(BUCKETS.len());
    if spread.len() <= at {
        spread.resize(at + 1, 0);
    }
    spread[at] += more;
}

/// Adds another.
pub fn add(spread: &mut Spread, other: &[u64]) {
    let other = &other[..other.len().min(BUCKETS.len() + 1)];
    let used = other.iter().rposition(|count| *count > 0).map_or(0, |last| last + 1);
    if spread.len() < used {
        spread.resize(used, 0);
    }
    for (sum, more) in spread.iter_mut().zip(other) {
        *sum = sum.saturating_add(*more);
    }
}

/// The month as a whole.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Meta {
    /// When the first look at the fleet was recorded, in seconds since 1970.
    pub began: f64,
    /// When the last one was.
    pub last: f64,
    /// What the fleet was judged by, in seconds.
    pub freshness: f64,
    /// The same for the exposure.
    pub exposure: f64,
    /// Tenants without an entry though something was wrong with them, at most at one look.
    pub omitted_troubled: u64,
    /// Tenants without an entry that were merely written, at most at one look.
    pub omitted_active: u64,
    /// Incidents that are not kept one by one.
    pub omitted_incidents: u64,
    /// Actions that are not kept.
    pub omitted_actions: u64,
    /// All incidents of the month by cause.
    pub causes: BTreeMap<String, Cause>,
    /// The last entry of the log of actions that was taken in.
    pub action: String,
}

/// Incidents of one cause.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Cause {
    /// How many.
    pub incidents: u64,
    /// How long, all together.
    pub seconds: f64,
}

/// A day of the fleet.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Day {
    /// How long the fleet was watched, in seconds.
    pub seconds: f64,
    /// How long some tenant was behind.
    pub late: f64,
    /// How long some tenant's exposure was beyond its objective.
    pub exposed: f64,
    /// How long some tenant couldn't be written.
    pub degraded: f64,
    /// Rows written.
    pub rows: u64,
    /// Balances newly listed as lost or forked.
    pub lost: u64,
    /// Times a fork was found.
    pub forked: u64,
    /// Mutation to row, over all balances.
    pub lags: Spread,
    /// Milliseconds by the exposure of whichever tenant was exposed longest.
    pub exposure: Spread,
    /// The longest exposure, in seconds.
    pub longest: f64,
    /// Tenants, at most.
    pub tenants: u64,
}

/// A tenant's month.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TenantMonth {
    /// How long it was behind, in seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub late: f64,
    /// How long its exposure was beyond the objective.
    #[serde(skip_serializing_if = "is_zero")]
    pub exposed: f64,
    /// How long it couldn't be written.
    #[serde(skip_serializing_if = "is_zero")]
    pub degraded: f64,
    /// How long it was paused.
    #[serde(skip_serializing_if = "is_zero")]
    pub paused: f64,
    /// How long nothing was known of it.
    #[serde(skip_serializing_if = "is_zero")]
    pub unknown: f64,
    /// Rows written.
    pub rows: u64,
    /// Balances newly listed as lost or forked.
    #[serde(skip_serializing_if = "is_none")]
    pub lost: u64,
    /// Those listed at the last look.
    #[serde(skip_serializing_if = "is_none")]
    pub open: u64,
    /// Times a fork was found.
    #[serde(skip_serializing_if = "is_none")]
    pub forked: u64,
    /// Mutation to row.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub lags: Spread,
    /// Milliseconds by exposure, since the entry began.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub exposure: Spread,
    /// The longest exposure, in seconds.
    #[serde(skip_serializing_if = "is_zero")]
    pub longest: f64,
    /// How long by cause it couldn't be written.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub causes: BTreeMap<String, f64>,
}

/// A time in which tenants couldn't be written, or Redis had lost data of them, for one cause.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct Incident {
    /// The reason that the tenants had.
    pub cause: String,
    /// When it began, in seconds since 1970.
    pub from: f64,
    /// When it was last seen; that it was over, unless `open`.
    pub to: f64,
    /// It was not over at the last look.
    pub open: bool,
    /// It may have ended any time after `to`: nothing was recorded then.
    pub end_unknown: bool,
    /// It had begun before the month.
    pub continued: bool,
    /// Tenants, at most at one look.
    pub tenants: u64,
    /// Some of them.
    pub names: Vec<String>,
    /// The longest exposure of these tenants, in seconds.
    pub longest: f64,
    /// Balances that were scheduled again because Redis had lost their members.
    pub rescheduled: u64,
    /// Balances that were listed as lost.
    pub lost: u64,
}

/// An action of an operator.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct ActionEntry {
    /// When, in seconds since 1970.
    pub at: f64,
    /// Who.
    pub by: String,
    /// What.
    pub what: String,
    /// With which tenant.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub tenant: String,
    /// With which worker.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub worker: String,
    /// Why.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub note: String,
    /// What became of it: worker, outcome, detail.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub outcomes: Vec<(String, String, String)>,
}

/// All that is recorded of a month.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct MonthRecord {
    /// `None` = nothing is recorded.
    pub meta: Option<Meta>,
    /// By day of the month.
    pub days: BTreeMap<u32, Day>,
    /// By tenant.
    pub tenants: HashMap<String, TenantMonth>,
    /// By field.
    pub incidents: BTreeMap<String, Incident>,
    /// By id in the log.
    pub actions: BTreeMap<String, ActionEntry>,
}

/// Field of the month as a whole.
pub(super) const META: &str = "m";

impl MonthRecord {
    /// Out of the fields in Redis. What can't be read is left out: it may be a later release's.
    #[must_use]
    pub fn read(month: Month, fields: &HashMap<String, String>) -> Self {
        let mut record = Self { meta: fields.get(META).and_then(|text| json(text)), ..Self::default() };
        for (field, text) in fields {
            match field.split_once(':') {
                Some(("d", day)) => {
                    let day = day.parse().ok().filter(|day| (1..=month.days()).contains(day));
                    record.days.extend(day.zip(json(text)));
                }
                Some(("t", tenant)) if record.tenants.len() < TENANTS => {
                    record.tenants.extend(json(text).map(|entry| (tenant.to_owned(), entry)));
                }
                Some(("i", _)) if record.incidents.len() < INCIDENTS => {
                    record.incidents.extend(json(text).map(|incident| (field.clone(), incident)));
                }
                Some(("a", id)) if record.actions.len() < ACTIONS => {
                    record.actions.extend(json(text).map(|action| (id.to_owned(), action)));
                }
                _ => {}
            }
        }
        record
    }
}

fn json<T: DeserializeOwned>(text: &str) -> Option<T> {
    serde_json::from_str(text).ok()
}

/// The beginning of a text.
pub(super) fn cut(text: &str) -> String {
    text.chars().take(TEXT).collect()
}

fn is_zero(seconds: &f64) -> bool {
    *seconds == 0.0
}

fn is_none(count: &u64) -> bool {
    *count == 0
}
