//! What the demonstration came to: the table, the last line, and the same as JSON.

use std::fmt::Write;

use serde::Serialize;

use super::board::duration;

/// Producing less than this part of the rate that was asked for is said.
const REACHED: f64 = 0.95;

/// One tenant.
#[derive(Debug, Default, Serialize)]
pub(super) struct TenantReport {
    /// Its id.
    pub tenant: String,
    /// What became of it while the load ran; empty for those that were there all the time.
    pub remark: &'static str,
    /// Balances it has.
    pub balances: u64,
    /// Mutations in Redis.
    pub mutations: u64,
    /// Updates of its rows in Postgres; fewer than mutations, as only the newest version of a batch is written.
    pub rows_written: u64,
    /// Mutation to row, in seconds; `None` without rows, infinite (null) beyond 2 minutes.
    pub lag_p50_seconds: Option<f64>,
    /// The same, exceeded by one row in a hundred.
    pub lag_p99_seconds: Option<f64>,
    /// Balances whose row has an older version.
    pub behind: u64,
    /// Balances without a row.
    pub missing: u64,
    /// Balances whose row is otherwise not what was produced.
    pub different: u64,
}

/// All of it.
#[derive(Debug, Default, Serialize)]
pub(super) struct Report {
    /// By tenant, in id order.
    pub tenants: Vec<TenantReport>,
    /// Mutations per second that were asked for.
    pub rate_asked: f64,
    /// Mutations per second that were produced.
    pub rate_produced: f64,
    /// How long the load ran, in seconds.
    pub load_seconds: f64,
    /// From the end of the load until nothing was scheduled any more, in seconds.
    pub drain_seconds: f64,
    /// Mutations of which it is not known whether they were written.
    pub unknown_mutations: u64,
    /// Balances of the removed tenant that were still scheduled when its collectors had stopped.
    pub removed_waiting: u64,
    /// Mutation to row over all tenants, in seconds.
    pub lag_p50_seconds: Option<f64>,
    /// The same, exceeded by one row in a hundred.
    pub lag_p99_seconds: Option<f64>,
    /// What else went wrong.
    pub problems: Vec<String>,
    /// Some of the balances that differ, with what differs.
    pub differences: Vec<String>,
}

impl Report {
    /// Whether every balance is where it must be and nothing else went wrong.
    pub(super) fn is_good(&self) -> bool {
        self.problems.is_empty()
            && self.tenants.iter().all(|tenant| tenant.behind + tenant.missing + tenant.different == 0)
    }

    /// Sum of one number over all tenants.
    pub(super) fn total(&self, number: fn(&TenantReport) -> u64) -> u64 {
        self.tenants.iter().map(number).sum()
    }

    /// One line of JSON: the fields of this report with totals.
    ///
    /// # Errors
    /// When it can't be written, which would be a mistake in its definition.
    pub(super) fn json(&self) -> serde_json::Result<String> {
        #[derive(Serialize)]
        struct Whole<'a> {
            ok: bool,
            balances: u64,
            mutations: u64,
            rows_written: u64,
            behind: u64,
            missing: u64,
            different: u64,
            #[serde(flatten)]
            report: &'a Report,
        }
        serde_json::to_string(&Whole {
            ok: self.is_good(),
            balances: self.total(|tenant| tenant.balances),
            mutations: self.total(|tenant| tenant.mutations),
            rows_written: self.total(|tenant| tenant.rows_written),
            behind: self.total(|tenant| tenant.behind),
            missing: self.total(|tenant| tenant.missing),
            different: self.total(|tenant| tenant.different),
            report: self,
        })
    }

    /// The table, what must be said about it, and the last line.
    pub(super) fn text(&self) -> String {
        let width = self.tenants.iter().map(|tenant| tenant.tenant.len()).max().unwrap_or_default().max(6);
        let mut text = String::new();
        let mut row = |tenant: &str, figures: [String; 5], remark: &str| {
            let [balances, mutations, rows, p50, p99] = figures;
            let line = format!(
                "{tenant:<width$} {balances:>9} {mutations:>10} {rows:>13} {p50:>8} {p99:>8}  {remark}"
            );
            text.push_str(line.trim_end());
            text.push('\n');
        };
        row("tenant", ["balances", "mutations", "rows written", "lag p50", "lag p99"].map(str::to_owned), "");
        for tenant in &self.tenants {
            let figures = [
                tenant.balances.to_string(),
                tenant.mutations.to_string(),
                tenant.rows_written.to_string(),
                duration(tenant.lag_p50_seconds),
                duration(tenant.lag_p99_seconds),
            ];
            row(&tenant.tenant, figures, tenant.remark);
        }
        let total = [
            self.total(|tenant| tenant.balances).to_string(),
            self.total(|tenant| tenant.mutations).to_string(),
            self.total(|tenant| tenant.rows_written).to_string(),
            duration(self.lag_p50_seconds),
            duration(self.lag_p99_seconds),
        ];
        row("total", total, "");
        text.push('\n');
        for line in self.remarks() {
            text.push_str(&line);
            text.push('\n');
        }
        // Writing to a string can't fail.
        let _ = write!(
            text,
            "demo: {} balances in {} tenants, {} behind, {} missing",
            self.total(|tenant| tenant.balances),
            self.tenants.len(),
            self.total(|tenant| tenant.behind),
            self.total(|tenant| tenant.missing)
        );
        let different = self.total(|tenant| tenant.different);
        if different > 0 {
            let _ = write!(text, ", {different} different");
        }
        if !self.problems.is_empty() {
            text.push_str(", failed");
        }
        text
    }

    fn remarks(&self) -> Vec<String> {
        let mut lines = vec![format!(
            "{:.0} mutations/s produced in {:.1} s, all written {:.1} s after the last one",
            self.rate_produced, self.load_seconds, self.drain_seconds
        )];
        if self.rate_produced < REACHED * self.rate_asked {
            lines.push(format!(
                "{:.0} mutations/s were asked for: this machine can't produce more beside all the rest",
                self.rate_asked
            ));
        }
        if self.unknown_mutations > 0 {
            lines.push(format!(
                "{} mutations failed in the producer; those that Redis took all the same are compared",
                self.unknown_mutations
            ));
        }
        lines.extend(self.problems.iter().cloned());
        lines.extend(self.differences.iter().cloned());
        lines
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    fn report() -> Report {
        let tenant = |id: &str, remark| TenantReport {
            tenant: id.to_owned(),
            remark,
            balances: 1000,
            mutations: 7000,
            rows_written: 4000,
            lag_p50_seconds: Some(0.0421),
            lag_p99_seconds: Some(f64::INFINITY),
            ..TenantReport::default()
        };
        Report {
            tenants: vec![tenant("tenant-0001", "removed"), tenant("tenant-0002", "")],
            rate_asked: 5000.0,
            rate_produced: 4990.0,
            ..Report::default()
        }
    }

    #[test]
    fn the_last_line_is_the_promised_one() {
        let text = report().text();
        assert!(
            text.contains("tenant-0001      1000       7000          4000    42 ms  > 2 min  removed\n"),
            "{text}"
        );
        assert!(text.ends_with("\ndemo: 2000 balances in 2 tenants, 0 behind, 0 missing"), "{text}");
        assert!(!text.contains("asked for") && report().is_good());
    }

    #[test]
    fn what_went_wrong_is_said() {
        let mut bad = report();
        bad.tenants[1].behind = 3;
        bad.tenants[0].different = 2;
        bad.rate_produced = 3000.0;
        let text = bad.text();
        assert!(text.contains("5000 mutations/s were asked for"), "{text}");
        assert!(text.ends_with("tenants, 3 behind, 0 missing, 2 different"), "{text}");
        assert!(!bad.is_good());
        let json: serde_json::Value = serde_json::from_str(&bad.json().unwrap()).unwrap();
        assert_eq!((&json["ok"], &json["behind"]), (&false.into(), &3.into()));
        assert_eq!(json["tenants"][1]["behind"], 3);
        assert!(json["tenants"][1]["lag_p99_seconds"].is_null());

        let mut failed = report();
        failed.problems.push("worker-2 ended with exit status: 1".to_owned());
        assert!(!failed.is_good());
        assert!(failed.text().ends_with("0 behind, 0 missing, failed"));
    }
}
