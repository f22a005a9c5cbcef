//! What a shadow has found of its tenants. Absent from a worker that syncs.

use balance_sync_fleet::status::TenantStatus;
use prometheus::Error;

use super::{
    TENANT,
    exposition::{Family, Page},
    rows::Row,
};

/// What a shadow has found of a tenant, or of several together.
#[derive(Debug, Default, PartialEq)]
pub(super) struct ShadowGauges {
    would_write: u64,
    left_behind: u64,
    lost: u64,
    /// The largest.
    lag_p99_seconds: Option<f64>,
    /// When the last comparison of all balances ended, of the tenant of which that is longest ago; `None` = of some it has not.
    compared_at: Option<f64>,
}

/// Adds what is known of a tenant.
pub(super) fn add(into: &mut Option<ShadowGauges>, status: &TenantStatus) {
    let Some(report) = status.shadow() else { return };
    let is_first = into.is_none();
    let sum = into.get_or_insert_default();
    sum.would_write += report.would_write;
    sum.left_behind += report.left_behind;
    sum.lost += report.lost;
    sum.lag_p99_seconds = report.lag_p99_seconds.into_iter().chain(sum.lag_p99_seconds).reduce(f64::max);
    sum.compared_at = match (sum.compared_at, report.compared_at) {
        (Some(before), Some(at)) => Some(before.min(at)),
        (_, at) if is_first => at,
        (_, _) => None,
    };
}

/// All of them.
pub(super) fn shadows(page: &mut Page<'_>, rows: &[Row]) -> Result<(), Error> {
    type Read = fn(&ShadowGauges) -> Option<f64>;
    let gauges: [(_, _, Read); 5] = [
        (
            "balance_sync_shadow_waiting_balances",
            "Scheduled balances whose rows are older than their values, of those that this shadow looks at: what a worker would \
             write now.",
            |gauges| Some(gauges.would_write as f64),
        ),
        (
            "balance_sync_shadow_left_behind_balances",
            "Balances that are out of the schedule while their rows are older than what Redis holds: whoever writes today has left \
             them behind.",
            |gauges| Some(gauges.left_behind as f64),
        ),
        (
            "balance_sync_shadow_lost_balances",
            "Balances that are out of the schedule while Redis no longer holds what their rows lack.",
            |gauges| Some(gauges.lost as f64),
        ),
        (
            "balance_sync_shadow_lag_p99_seconds",
            "How long a mutation took until its row had it, at most, of 99 of 100 of the last samples, in seconds; for tenant_id \
             other the longest. Absent without samples.",
            |gauges| gauges.lag_p99_seconds,
        ),
        (
            "balance_sync_shadow_compared_timestamp_seconds",
            "When the last comparison of all balances in Redis with their rows ended, in seconds since 1970; for tenant_id other \
             the earliest. Absent before the first.",
            |gauges| gauges.compared_at,
        ),
    ];
    for (name, help, read) in gauges {
        let mut family = Family::gauge(name, help);
        for row in rows {
            if let Some(value) = row.shadow.as_ref().and_then(read) {
                family.sample(&[(TENANT, &row.label)], value);
            }
        }
        page.write(family)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use balance_sync_fleet::status::ShadowReport;
    use balance_sync_tenants::Tenant;

    use super::*;

    #[test]
    fn of_several_tenants_the_worst_counts() {
        let status = TenantStatus::new(Tenant::Single);
        let mut gauges = None;
        add(&mut gauges, &status);
        assert_eq!(gauges, None, "a worker that syncs");
        for (lag, at) in [(Some(2.0), Some(20.0)), (None, Some(10.0))] {
            let (lag_p99_seconds, compared_at) = (lag, at);
            let report =
                ShadowReport { left_behind: 3, lag_p99_seconds, compared_at, ..ShadowReport::default() };
            status.show_shadow(Some(report));
            add(&mut gauges, &status);
        }
        let sum = gauges.as_ref().map(|sum| (sum.left_behind, sum.lag_p99_seconds, sum.compared_at));
        assert_eq!(sum, Some((6, Some(2.0), Some(10.0))));
        status.show_shadow(Some(ShadowReport::default()));
        add(&mut gauges, &status);
        assert_eq!(gauges.and_then(|sum| sum.compared_at), None, "one has not been compared yet");
    }
}
