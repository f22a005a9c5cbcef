//! The Grafana dashboard: what Grafana needs to show it, and no query without an answer.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result, ensure};
use serde_json::Value;

use crate::text;

pub(crate) const DASHBOARD: &str = "deploy/observability/grafana-dashboard.json";
/// Columns of Grafana's grid.
const WIDTH: u64 = 24;

fn dashboard() -> Result<Value> {
    Ok(serde_json::from_str(&text(DASHBOARD)?)?)
}

fn panels(dashboard: &Value) -> Result<&Vec<Value>> {
    dashboard["panels"].as_array().context("panels")
}

/// An expression as Prometheus sees it, with every variable chosen as "all".
fn filled(expression: &str) -> String {
    [
        ("$__rate_interval", "1m"),
        ("$__interval", "15s"),
        ("$job", ".*"),
        ("$instance", ".*"),
        ("$tenant", ".*"),
    ]
    .iter()
    .fold(expression.to_owned(), |text, (variable, value)| text.replace(variable, value))
}

/// Every expression of the dashboard, with where it stands.
pub(crate) fn expressions() -> Result<Vec<(String, String)>> {
    let dashboard = dashboard()?;
    let mut found = Vec::new();
    for panel in panels(&dashboard)? {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = panel["title"].as_str().context("title")?;
            found.push((format!("panel {title}"), filled(target["expr"].as_str().context("expr")?)));
        }
    }
    for annotation in dashboard["annotations"]["list"].as_array().into_iter().flatten() {
        if let Some(expression) = annotation["expr"].as_str() {
            found.push(("annotation".to_owned(), filled(expression)));
        }
    }
    for variable in dashboard["templating"]["list"].as_array().into_iter().flatten() {
        // label_values(selector, label)
        if let Some(query) = variable["query"]["query"].as_str() {
            let inner = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')'));
            let (selector, _) = inner.and_then(|inner| inner.rsplit_once(',')).context("label_values")?;
            found.push((format!("variable {}", variable["name"]), filled(selector)));
        }
    }
    Ok(found)
}

#[test]
fn it_is_complete_and_every_panel_has_its_place_and_unit() -> Result<()> {
    let dashboard = dashboard()?;
    assert!(dashboard["schemaVersion"].as_u64() >= Some(39), "the schema of a current Grafana");
    assert_eq!(dashboard["uid"], "balance-sync");
    assert!(dashboard["id"].is_null() && dashboard["__inputs"].is_null(), "an export of one instance");
    let variables = dashboard["templating"]["list"].as_array().context("variables")?;
    let names: Vec<_> = variables.iter().filter_map(|variable| variable["name"].as_str()).collect();
    assert_eq!(names, ["datasource", "job", "instance", "tenant"]);

    let (mut ids, mut taken) = (BTreeSet::new(), BTreeMap::new());
    for panel in panels(&dashboard)? {
        let title = panel["title"].as_str().context("a panel without a title")?;
        ensure!(ids.insert(panel["id"].as_u64().context("id")?), "{title}: its id is another's too");
        let at = |key: &str| panel["gridPos"][key].as_u64().with_context(|| format!("{title}: {key}"));
        let (x, y, w, h) = (at("x")?, at("y")?, at("w")?, at("h")?);
        ensure!(x + w <= WIDTH && w > 0 && h > 0, "{title} stands outside the grid");
        for cell in (x..x + w).flat_map(|column| (y..y + h).map(move |line| (column, line))) {
            if let Some(other) = taken.insert(cell, title) {
                panic!("{title} lies over {other} at {cell:?}");
            }
        }
        if panel["type"] == "row" {
            continue;
        }
        ensure!(panel["datasource"]["uid"] == "${datasource}", "{title}: a data source of its own");
        let mut letters = BTreeSet::new();
        for target in panel["targets"].as_array().context("targets")? {
            ensure!(target["datasource"]["uid"] == "${datasource}", "{title}: a data source of its own");
            ensure!(letters.insert(target["refId"].as_str().context("refId")?), "{title}: a letter twice");
            let expression = target["expr"].as_str().context("expr")?;
            ensure!(expression.contains("job=~\"$job\""), "{title} looks at other fleets too: {expression}");
        }
        if panel["type"] != "table" {
            let unit = panel["fieldConfig"]["defaults"]["unit"].as_str();
            ensure!(unit.is_some_and(|unit| !unit.is_empty()), "{title} has no unit");
            seconds_are_shown_as_such(title, panel, unit.unwrap_or_default())?;
        }
    }
    Ok(())
}

/// What is counted in seconds or bytes is shown with that unit.
fn seconds_are_shown_as_such(title: &str, panel: &Value, unit: &str) -> Result<()> {
    let first = panel["targets"][0]["expr"].as_str().context("expr")?;
    let is = |part: &str| first.contains(part);
    let seconds = (is("_seconds") && !is("_count{") && !is("process_cpu")) || is("time() -");
    ensure!(!seconds || unit == "s", "{title}: seconds shown as {unit}");
    ensure!(!is("_bytes") || unit == "bytes", "{title}: bytes shown as {unit}");
    Ok(())
}
