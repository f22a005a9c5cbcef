//! The series that the ledger's own worker pushes, under its names and labels (protocol §5), for its dashboards.
//!
//! A tenant's ledgers beyond the configured number share one series with `other` for organization and ledger, as do all ledgers of
//! the tenants without a row of their own. Members that name no ledger are counted under `unknown`.

use balance_sync_fleet::status::{LedgerKey, LedgerTotals};
use prometheus::Error;

use super::{
    TENANT,
    exposition::Family,
    rows::{Counter, OTHER, Row},
};

const ORGANIZATION: &str = "organization_id";
const LEDGER: &str = "ledger_id";
/// Stands for the ledger of members that name none.
const UNKNOWN: &str = "unknown";

/// Takes a family with its unit.
type Put<'a> = &'a mut dyn FnMut(Family, &'static str) -> Result<(), Error>;
/// Labels besides those of the ledger, and the value; none where there is no sample.
type Sample = (Option<(&'static str, &'static str)>, u64);

/// All of them, one after the other.
pub(super) fn series(rows: &[Row], put: Put<'_>) -> Result<(), Error> {
    let synced = Family::counter("balance_synced", "Rows written to Postgres.");
    put(of_ledgers(synced, rows, |totals| [(Some(("mode", "batch")), totals.synced)]), "1")?;
    let batches = Family::counter(
        "balance_sync_batch_failures_total",
        "Flushes that failed, once for each ledger with balances in them; these are tried again.",
    );
    put(of_ledgers(batches, rows, |totals| [(None, totals.batch_failures)]), "1")?;
    let cleanups = Family::counter(
        "balance_sync_cleanup_failures_total",
        "Calls of Redis after a flush that failed, once for each ledger with balances in them.",
    );
    put(of_ledgers(cleanups, rows, |totals| [(None, totals.cleanup_failures)]), "1")?;
    let mut skips = Family::counter(
        "balance_sync_tenant_skip_total",
        "Times a tenant was passed over because its database could not be had.",
    );
    for row in rows {
        skips.sample(&[(TENANT, &row.label)], row.totals.get(Counter::Skips) as f64);
    }
    put(skips, "1")?;
    let dropped = Family::counter(
        "balance_sync_orphan_dropped_total",
        "Members that left the schedule without a write: expired (the value was gone; what may be lost is listed) or unparseable \
         (the member names no balance; it is in quarantine).",
    );
    let by_reason = |totals: &LedgerTotals| {
        [(Some(("reason", "expired")), totals.expired), (Some(("reason", "unparseable")), totals.unparseable)]
    };
    put(of_ledgers(dropped, rows, by_reason), "1")?;
    let mut success = Family::gauge(
        "balance_sync_last_success_timestamp",
        "When balances of the ledger were last written, in seconds since 1970; of several ledgers together the latest.",
    );
    each(rows, |labels, totals| {
        if totals.last_success_ms > 0 {
            success.sample(&labels.with(None), totals.last_success_ms as f64 / 1e3);
        }
    });
    put(success, "s")
}

/// A counter of each ledger.
fn of_ledgers<const N: usize>(
    mut family: Family,
    rows: &[Row],
    read: impl Fn(&LedgerTotals) -> [Sample; N],
) -> Family {
    each(rows, |labels, totals| {
        for (more, count) in read(totals) {
            family.sample(&labels.with(more), count as f64);
        }
    });
    family
}

/// Calls `add` for each ledger, and for those that share their series.
fn each(rows: &[Row], mut add: impl FnMut(&Labels<'_>, &LedgerTotals)) {
    for row in rows {
        if row.label == OTHER {
            add(&Labels::same(OTHER, OTHER), &row.totals.ledgers);
            continue;
        }
        for (key, totals) in &row.ledgers.own {
            add(&Labels::of(&row.label, *key), totals);
        }
        if let Some(rest) = &row.ledgers.rest {
            add(&Labels::same(&row.label, OTHER), rest);
        }
    }
}

/// The labels of a ledger.
struct Labels<'a> {
    tenant: &'a str,
    organization: String,
    ledger: String,
}

impl<'a> Labels<'a> {
    fn of(tenant: &'a str, key: LedgerKey) -> Self {
        match key {
            LedgerKey::Known { organization, ledger } => {
                Self { tenant, organization: organization.to_string(), ledger: ledger.to_string() }
            }
            LedgerKey::Unknown => Self::same(tenant, UNKNOWN),
        }
    }

    fn same(tenant: &'a str, name: &str) -> Self {
        Self { tenant, organization: name.to_owned(), ledger: name.to_owned() }
    }

    fn with<'b>(&'b self, more: Option<(&'static str, &'b str)>) -> Vec<(&'static str, &'b str)> {
        let own = [(ORGANIZATION, self.organization.as_str()), (LEDGER, &self.ledger), (TENANT, self.tenant)];
        own.into_iter().chain(more).collect()
    }
}
