//! What a PromQL expression names: metrics, with the labels that it selects and groups by.
//!
//! Prometheus' own programs parse all expressions elsewhere. Here only names are looked for, which needs no grammar: a word
//! is a function if a parenthesis follows, a keyword if it is one of a few, and the name of a series otherwise.

use std::collections::BTreeSet;

use anyhow::{Context, Result, bail, ensure};
use balance_sync_tests::Metrics;

/// Labels that Prometheus gives to what it scrapes, or that belong to buckets and alerts.
const OF_ALL: [&str; 5] = ["job", "instance", "le", "alertname", "alertstate"];
/// Series that are not a worker's.
const OF_PROMETHEUS: [&str; 2] = ["up", "ALERTS"];
/// Words before a list of labels.
const GROUPING: [&str; 6] = ["by", "without", "on", "ignoring", "group_left", "group_right"];
/// Other words of the language that no parenthesis need follow.
const KEYWORDS: [&str; 6] = ["and", "or", "unless", "bool", "offset", "atan2"];

/// A label that must have a value, or one of several.
#[derive(Debug, PartialEq, Eq)]
struct Chosen {
    label: String,
    /// `=`, `!=`, `=~` or `!~`.
    operator: String,
    value: String,
}

/// All that an expression names.
#[derive(Debug, Default)]
pub(crate) struct Named {
    /// Series with what is chosen of them.
    series: Vec<(String, Vec<Chosen>)>,
    /// Labels by which it groups or joins.
    grouping: BTreeSet<String>,
}

impl Named {
    pub(crate) fn of(expression: &str) -> Result<Self> {
        let mut named = Self::default();
        let mut rest = expression;
        while let Some(first) = rest.chars().next() {
            if first.is_ascii_alphabetic() || first == '_' {
                let (word, after) = word(rest);
                let after = after.trim_start();
                rest = after;
                if GROUPING.contains(&word) {
                    if let Some(list) = after.strip_prefix('(') {
                        let (labels, after) = list.split_once(')').context("a list without end")?;
                        let labels = labels.split(',').map(str::trim).filter(|label| !label.is_empty());
                        named.grouping.extend(labels.map(str::to_owned));
                        rest = after;
                    }
                } else if !KEYWORDS.contains(&word) && !is_call(after) {
                    let (chosen, after) = matchers(after)?;
                    named.series.push((word.to_owned(), chosen));
                    rest = after;
                }
            } else if first.is_ascii_digit() {
                // A number with its unit: 5m, 0.9, 1e3.
                rest = rest.trim_start_matches(|c: char| c.is_ascii_alphanumeric() || c == '.');
            } else if first == '"' || first == '{' {
                bail!("{rest:?} stands without a name in {expression}");
            } else {
                rest = &rest[first.len_utf8()..];
            }
        }
        ensure!(!named.series.is_empty(), "nothing is selected by {expression}");
        Ok(named)
    }

    /// The names of what it selects.
    pub(crate) fn metrics(&self) -> impl Iterator<Item = &str> {
        self.series.iter().map(|(name, _)| name.as_str())
    }

    /// Whether it can be answered from this page and from what the rules record.
    pub(crate) fn is_known(&self, page: &Metrics, recorded: &BTreeSet<String>) -> Result<()> {
        let mut labels: BTreeSet<&str> = OF_ALL.into();
        for (name, chosen) in &self.series {
            if OF_PROMETHEUS.contains(&name.as_str()) {
                continue;
            }
            if recorded.contains(name) {
                // Every one of them with a tenant says so before its first colon: `job_tenant_id:…`.
                labels.extend(name.contains("tenant_id:").then_some("tenant_id"));
                continue;
            }
            let family = page.families().iter().find(|family| family.has(name));
            let family =
                family.with_context(|| format!("{name} is neither on a worker's page nor recorded"))?;
            labels.extend(family.labels.keys().map(String::as_str));
            for Chosen { label, operator, value } in chosen {
                let values = family.labels.get(label);
                ensure!(values.is_some() || OF_ALL.contains(&label.as_str()), "{name} has no label {label}");
                // What is chosen by name must be there: a state, an outcome, a class.
                let Some(values) = values.filter(|_| label != "tenant_id") else { continue };
                for one in value.split('|').filter(|_| operator.starts_with('=')) {
                    ensure!(
                        values.contains(one) || one == ".*",
                        "{name} has no {label}={one:?}, only {values:?}"
                    );
                }
            }
        }
        for label in &self.grouping {
            ensure!(labels.contains(label.as_str()), "nothing selected has the label {label}");
        }
        Ok(())
    }
}

fn word(text: &str) -> (&str, &str) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == ':'));
    text.split_at(end.unwrap_or(text.len()))
}

/// Whether a function's arguments follow, or an aggregation's: `sum by (…) (…)`.
fn is_call(after: &str) -> bool {
    let (next, _) = word(after);
    after.starts_with('(') || matches!(next, "by" | "without")
}

/// What stands in braces, if anything does.
fn matchers(text: &str) -> Result<(Vec<Chosen>, &str)> {
    let Some(mut rest) = text.strip_prefix('{') else { return Ok((Vec::new(), text)) };
    let mut chosen = Vec::new();
    loop {
        rest = rest.trim_start_matches([' ', ',']);
        if let Some(after) = rest.strip_prefix('}') {
            return Ok((chosen, after));
        }
        let (label, after) = word(rest);
        let (operator, quoted) = after.split_once('"').context("a value without quotes")?;
        let (value, after) = quoted.split_once('"').context("a value without end")?;
        let operator = operator.trim().to_owned();
        ensure!(matches!(operator.as_str(), "=" | "!=" | "=~" | "!~"), "{label} {operator}");
        chosen.push(Chosen { label: label.to_owned(), operator, value: value.to_owned() });
        rest = after;
    }
}

#[test]
fn what_an_expression_names_is_found_and_what_is_missing_is_reported() -> Result<()> {
    let page = Metrics::parse(
        "# HELP a_total A.\n# TYPE a_total counter\na_total{state=\"on\"} 1\n# HELP h_seconds H.\n# TYPE h_seconds \
         histogram\nh_seconds_bucket{le=\"+Inf\"} 0\nh_seconds_sum 0\nh_seconds_count 0\n",
    );
    let recorded = BTreeSet::from(["job_tenant_id:a:rate".to_owned()]);
    let known = |expression: &str| Named::of(expression)?.is_known(&page, &recorded);
    for good in [
        "sum by (job) (rate(a_total{state=\"on\"}[5m])) > 0",
        "histogram_quantile(0.9, sum by (le) (rate(h_seconds_bucket[1m])))",
        "max by (tenant_id) (job_tenant_id:a:rate) or vector(0)",
        "a_total > on (job) group_left max by (job) (h_seconds_count)",
        "up == 0",
    ] {
        known(good)?;
    }
    for bad in [
        "a",
        "h_seconds",
        "sum(rate(b_total[5m]))",
        "a_total{state=\"off\"}",
        "a_total{state=~\"on|off\"}",
        "a_total{colour=\"on\"}",
        "sum by (colour) (a_total)",
        "a_total and on (colour) a_total",
        "sum(a_total{state=on})",
        "{state=\"on\"}",
        "1 + 1",
    ] {
        assert!(known(bad).is_err(), "{bad}");
    }
    Ok(())
}
