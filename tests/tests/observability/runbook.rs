//! The runbook: a section for each alert and no other, and nothing in it that does not exist.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context, Result};
use balance_sync_tests::run;

use crate::{page::FAMILIES, rules, text};

const RUNBOOK: &str = "docs/runbook.md";

/// The parts of a section, in order.
const PARTS: [&str; 4] = ["**What it means.**", "**Look.**", "**Do.**", "**Over when**"];

/// The sections by title.
fn sections(text: &str) -> BTreeMap<&str, &str> {
    text.split("\n## ").skip(1).filter_map(|section| section.split_once('\n')).collect()
}

#[test]
fn every_alert_has_its_section_and_every_section_its_alert() -> Result<()> {
    let text = text(RUNBOOK)?;
    let sections = sections(&text);
    let titles: BTreeSet<String> = sections
        .keys()
        .filter(|title| title.starts_with("BalanceSync"))
        .map(|title| (*title).to_owned())
        .collect();
    assert_eq!(titles, rules::alerts()?);
    for title in titles {
        let mut rest = sections[title.as_str()];
        for part in PARTS {
            rest = rest
                .split_once(part)
                .with_context(|| format!("{title}: {part} is missing, or not in order"))?
                .1;
        }
    }
    Ok(())
}

/// Series with the ledger's names that are pushed and not at `/metrics`.
const PUSHED: [&str; 2] = ["balance_sync_orphan_dropped_total", "balance_sync_last_success_timestamp"];

/// The words in backquotes and in code blocks.
fn words(text: &str) -> impl Iterator<Item = &str> {
    text.split(|c: char| !(c.is_ascii_alphanumeric() || matches!(c, '_' | '-')))
}

#[test]
fn the_documents_name_no_metric_that_does_not_exist() -> Result<()> {
    let known: BTreeSet<&str> = FAMILIES.iter().map(|family| family.name).collect();
    for path in [RUNBOOK, "docs/operations.md", "docs/reliability.md", "docs/performance.md", "README.md"] {
        let text = text(path)?;
        for word in words(&text).filter(|word| word.starts_with("balance_sync_") || *word == "balance_synced")
        {
            let base = ["_bucket", "_sum", "_count"].iter().find_map(|suffix| word.strip_suffix(suffix));
            let module = ["admin", "cli", "fleet", "schedule", "store", "tenants", "domain", "sandbox"];
            let is_module = word.strip_prefix("balance_sync_").is_some_and(|rest| module.contains(&rest));
            assert!(
                known.contains(word)
                    || PUSHED.contains(&word)
                    || base.is_some_and(|base| known.contains(base))
                    || word == "balance_sync_"
                    || is_module && text.contains(&format!("{word}=")),
                "{path} names {word}"
            );
        }
    }
    Ok(())
}

/// Each command line of the program in the runbook is one it has: its help says so.
#[tokio::test]
async fn the_commands_of_the_runbook_exist() -> Result<()> {
    let text = text(RUNBOOK)?;
    let mut seen = BTreeSet::new();
    for line in text.split(['`', '\n']).map(str::trim).filter(|line| line.starts_with("balance-sync ")) {
        let mut parts = line.split_whitespace().skip(1);
        let command: Vec<&str> =
            parts.by_ref().take_while(|part| part.chars().all(|c| c.is_ascii_lowercase())).collect();
        let options: Vec<&str> = line
            .split_whitespace()
            .filter(|part| part.starts_with("--"))
            .map(|part| part.split('=').next().unwrap_or(part))
            .collect();
        seen.insert((command, options));
    }
    assert!(seen.len() > 5, "{seen:?}");
    for (command, options) in seen {
        let args: Vec<&str> = command.iter().copied().chain(["--help"]).collect();
        let finished = run(&args, &[]).await?;
        assert_eq!(finished.code, Some(0), "{args:?}: {}", finished.stderr);
        for option in options {
            assert!(
                finished.stdout.contains(option),
                "balance-sync {command:?} has no {option}: {}",
                finished.stdout
            );
        }
    }
    Ok(())
}
