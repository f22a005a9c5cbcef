//! What was done, tenant by tenant, and why no more was.

use std::collections::BTreeSet;

use balance_sync_schedule::retire::Forgotten;
use serde::Serialize;

use crate::terminal::count;

/// Why nothing more is done. What was done stays done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Refusal(pub String);

/// Either it goes on, or it is refused.
pub(super) type Step<T> = anyhow::Result<Result<T, Refusal>>;

/// How it stands with a tenant.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum State {
    /// It is the ledger's own worker's.
    Retired,
    /// It is, and something is left open.
    Open,
    /// Something could not be determined.
    Unknown,
}

/// What was done with a tenant.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct TenantReport {
    /// Its id.
    pub tenant: String,
    /// Members that dead workers had claimed or put off, and that are due now.
    pub given_back: u64,
    /// Locks of ours that were deleted.
    pub unlocked: u64,
    /// Values that got a day to live.
    pub kept_alive: u64,
    /// Entries of quarantine and losses that were scheduled for the ledger's own worker.
    pub entries_scheduled: u64,
    /// Entries whose rows had all.
    pub entries_settled: u64,
    /// Entries that only the export has.
    pub entries_exported: u64,
    /// Other records that were removed.
    pub records_removed: u64,
    /// Balances that were compared.
    pub balances: u64,
    /// Those whose row is behind, and which the ledger's own worker is going to write.
    pub behind: u64,
    /// Those that were behind and not scheduled, and are scheduled now.
    pub scheduled_again: u64,
    /// Members that were scheduled further ahead than any delay reaches, and are due now: the clock of Redis has jumped back.
    pub made_due: u64,
    /// Those that differ in another way: no row, a newer one, other amounts; or unreadable.
    pub differing: u64,
    /// Members that wait for the ledger's own worker.
    pub scheduled: u64,
    /// Those that the ledger itself has scheduled ahead.
    pub ahead: u64,
    /// Scheduled members without a value: the ledger's own worker drops them unwritten.
    pub without_value: u64,
    /// Which ones.
    #[serde(skip)]
    pub(super) gone: BTreeSet<Vec<u8>>,
    /// What stays of its records.
    #[serde(skip)]
    pub(super) spared: Forgotten,
    /// What is left open.
    pub open: Vec<String>,
    /// What could not be determined.
    pub unknown: Vec<String>,
}

impl TenantReport {
    /// How it stands.
    pub(crate) fn state(&self) -> State {
        match (self.unknown.is_empty(), self.open.is_empty()) {
            (false, _) => State::Unknown,
            (true, false) => State::Open,
            (true, true) => State::Retired,
        }
    }
}

/// What is kept, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Kept {
    /// Keys, as a pattern or a name.
    pub keys: String,
    /// Why.
    pub why: String,
}

/// What was done.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Report {
    /// The revision of the rollout by which no worker of ours serves the tenants.
    pub revision: u64,
    /// By tenant, in id order.
    pub tenants: Vec<TenantReport>,
    /// Keys of the fleet that were removed.
    pub fleet_keys_removed: u64,
    /// What stays of ours.
    pub kept: Vec<Kept>,
}

impl Report {
    /// The worst of all tenants.
    pub(crate) fn state(&self) -> State {
        self.tenants.iter().map(TenantReport::state).max().unwrap_or(State::Retired)
    }
}

/// What is said of records that stay: they have come after what spoke against it was read.
pub(super) fn spared(spared: &Forgotten) -> impl Iterator<Item = &'static str> + use<> {
    let all = [
        (
            spared.conditions > 0,
            "Redis has lost data of it meanwhile, and what follows is not settled yet: the condition stays",
        ),
        (
            spared.pauses > 0,
            "it was paused meanwhile, and the ledger's own worker knows no pause: the pause stays",
        ),
        (spared.is_recovering, "a recovery is under way: what belongs to it stays"),
    ];
    all.into_iter().filter_map(|(is_so, text)| is_so.then_some(text))
}

/// What is said of members without a value.
pub(super) fn valueless(number: usize) -> String {
    format!(
        "{} scheduled balances have no value in Redis: the ledger's own worker drops them unwritten; see `balance-sync recover`",
        count(number as u64)
    )
}

pub(super) fn overtaken() -> Refusal {
    Refusal(
        "the rollout was changed meanwhile: see `balance-sync rollout history`, and run the command again if it is still wanted"
            .to_owned(),
    )
}

/// What was done, in a line.
pub(crate) fn summary(report: &Report) -> String {
    let sum = |number: fn(&TenantReport) -> u64| report.tenants.iter().map(number).sum::<u64>();
    let not = report.tenants.iter().filter(|tenant| tenant.state() != State::Retired).count();
    format!(
        "{} tenants, {} of them with something open; {} members given back, {} wait for the ledger's own worker; {} entries scheduled, {} \
         settled, {} exported; {} records removed",
        report.tenants.len(),
        not,
        sum(|one| one.given_back),
        sum(|one| one.scheduled),
        sum(|one| one.entries_scheduled),
        sum(|one| one.entries_settled),
        sum(|one| one.entries_exported),
        sum(|one| one.records_removed) + report.fleet_keys_removed,
    )
}
