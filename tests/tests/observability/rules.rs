//! The alert rules: valid, each with a case in which it fires and one in which it doesn't, and a section to read.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;

use anyhow::{Context, Result, anyhow, ensure};
use balance_sync_tests::prometheus::{program, promtool};
use yaml_rust2::{Yaml, YamlLoader};

use crate::{file, text};

pub(crate) const RULES: &str = "deploy/observability/rules.yaml";
const TESTS: &str = "tests/tests/observability/rules";

/// One rule.
#[derive(Debug)]
pub(crate) struct Rule {
    /// The alert's name, or that of the recorded series.
    pub name: String,
    pub is_alert: bool,
    pub expression: String,
    labels: BTreeMap<String, String>,
    annotations: BTreeMap<String, String>,
}

pub(crate) fn yaml(content: &str) -> Result<Yaml> {
    YamlLoader::load_from_str(content)?.into_iter().next().context("an empty file")
}

fn strings(value: &Yaml) -> BTreeMap<String, String> {
    let pairs = value.as_hash().into_iter().flatten();
    pairs.filter_map(|(key, value)| Some((key.as_str()?.to_owned(), value.as_str()?.to_owned()))).collect()
}

/// All rules, in order.
pub(crate) fn rules() -> Result<Vec<Rule>> {
    let document = yaml(&text(RULES)?)?;
    let groups = document["groups"].as_vec().context("groups")?;
    let rules = groups.iter().flat_map(|group| group["rules"].as_vec().into_iter().flatten());
    rules
        .map(|rule| {
            let alert = rule["alert"].as_str();
            Ok(Rule {
                name: alert.or_else(|| rule["record"].as_str()).context("a rule without a name")?.to_owned(),
                is_alert: alert.is_some(),
                expression: rule["expr"].as_str().context("a rule without an expression")?.to_owned(),
                labels: strings(&rule["labels"]),
                annotations: strings(&rule["annotations"]),
            })
        })
        .collect()
}

/// The names of the alerts.
pub(crate) fn alerts() -> Result<BTreeSet<String>> {
    Ok(rules()?.into_iter().filter(|rule| rule.is_alert).map(|rule| rule.name).collect())
}

/// The names of the recorded series.
pub(crate) fn recorded() -> Result<BTreeSet<String>> {
    Ok(rules()?.into_iter().filter(|rule| !rule.is_alert).map(|rule| rule.name).collect())
}

fn test_files() -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    for entry in std::fs::read_dir(file(TESTS))? {
        files.push(entry?.path());
    }
    files.sort();
    ensure!(!files.is_empty(), "no tests of the rules in {TESTS}");
    Ok(files)
}

#[test]
fn promtool_accepts_rules_and_scrape_config() -> Result<()> {
    let Some(promtool_path) = program("promtool") else { return Ok(()) };
    for (check, path) in [("rules", RULES), ("config", "deploy/observability/prometheus.yml")] {
        let path = file(path);
        let (content, said) = promtool(&promtool_path, &["check", check, &path.to_string_lossy()], None)?;
        assert!(content, "{said}");
    }
    Ok(())
}

#[test]
fn every_alert_fires_when_it_should_and_only_then() -> Result<()> {
    let Some(promtool_path) = program("promtool") else { return Ok(()) };
    let files = test_files()?;
    let names: Vec<_> = files.iter().map(|path| path.to_string_lossy()).collect();
    let args: Vec<&str> = ["test", "rules"].into_iter().chain(names.iter().map(|name| &**name)).collect();
    let (content, said) = promtool(&promtool_path, &args, None)?;
    assert!(content, "{said}");
    Ok(())
}

#[test]
fn every_alert_has_a_case_of_each_kind() -> Result<()> {
    let (mut fires, mut rests) = (BTreeSet::new(), BTreeSet::new());
    for path in test_files()? {
        let document = yaml(&std::fs::read_to_string(&path)?)?;
        for case in document["tests"].as_vec().into_iter().flatten() {
            for check in case["alert_rule_test"].as_vec().into_iter().flatten() {
                let alert = check["alertname"].as_str().context("alertname")?.to_owned();
                let expected = check["exp_alerts"].as_vec().context("exp_alerts")?;
                if expected.is_empty() { &mut rests } else { &mut fires }.insert(alert);
            }
        }
    }
    let alerts = alerts()?;
    assert_eq!(fires, alerts, "alerts that fire in a test, and all alerts");
    assert_eq!(rests, alerts, "alerts that don't fire in a test, and all alerts");
    Ok(())
}

#[test]
fn every_alert_says_what_it_means_and_where_to_read_on() -> Result<()> {
    for rule in rules()?.into_iter().filter(|rule| rule.is_alert) {
        let name = &rule.name;
        let severity = rule.labels.get("severity").map(String::as_str);
        assert!(matches!(severity, Some("critical" | "warning")), "{name}: severity {severity:?}");
        for key in ["summary", "description"] {
            let said = rule.annotations.get(key).ok_or_else(|| anyhow!("{name} has no {key}"))?;
            assert!(said.ends_with('.') && said.len() > 20, "{name}: {key} {said:?}");
        }
        let anchor = format!("docs/runbook.md#{}", name.to_lowercase());
        assert_eq!(rule.annotations.get("runbook"), Some(&anchor), "{name}");
    }
    Ok(())
}
