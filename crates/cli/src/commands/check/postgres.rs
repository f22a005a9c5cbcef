//! Each tenant's Postgres: can it be reached, and may the role do what is needed?

use std::{sync::Arc, time::Duration};

use balance_sync_fleet::{backends::ManagerOptions, status::WorkerMode};
use balance_sync_store::{ConnectionBudget, ConnectionMode, Database, Facts, Table};
use balance_sync_tenants::{Tenant, TenantDirectory};
use futures::StreamExt as _;
use indicatif::{ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::findings::{Findings, Level};
use crate::{config::Config, wiring};

const AREA: &str = "postgres";
/// The oldest version that is tested.
const OLDEST: u32 = 15;

/// What was found of one tenant.
type Found = Vec<(String, (Level, String, String))>;

fn finding(
    kind: impl Into<String>,
    level: Level,
    found: impl Into<String>,
    help: &str,
) -> (String, (Level, String, String)) {
    (kind.into(), (level, found.into(), help.to_owned()))
}

/// Looks at all of them, some at the same time, until `by`.
///
/// # Errors
/// When the tenant service's settings can't be used.
pub(super) async fn look(
    config: &Config,
    tenants: &[Tenant],
    at_once: usize,
    by: Instant,
    findings: &mut Findings,
) -> anyhow::Result<()> {
    if tenants.is_empty() {
        return Ok(());
    }
    let directory = wiring::directory(config)?;
    let options = ManagerOptions {
        application_name: "balance-sync check".to_owned(),
        ..wiring::manager_options(config)
    };
    let budget = ConnectionBudget::new(config.postgres.connections_per_server);
    // Shown on a terminal only.
    let style = ProgressStyle::with_template("{bar:30} {pos} of {len} tenants, {eta} left").ok();
    let bar = ProgressBar::new(tenants.len() as u64);
    if let Some(style) = style {
        bar.set_style(style);
    }
    let mut looking = futures::stream::iter(tenants)
        .map(|tenant| {
            let (directory, budget, options) = (Arc::clone(&directory), budget.clone(), &options);
            let mode = config.worker.mode;
            async move { (tenant, one(tenant, directory.as_ref(), budget, options, mode).await) }
        })
        .buffer_unordered(at_once.max(1));
    let mut all = Vec::with_capacity(tenants.len());
    while let Ok(Some(one)) = tokio::time::timeout_at(by, looking.next()).await {
        all.push(one);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let left = tenants.len() - all.len();
    all.sort_by_key(|(tenant, _)| *tenant);
    for (tenant, found) in all {
        for (kind, finding) in found {
            findings.of_tenant(tenant.label(), AREA, &kind, finding);
        }
    }
    if left > 0 {
        findings.warn(
            AREA,
            format!("{left} of {} tenants were not looked at in time", tenants.len()),
            "give it longer: --timeout",
        );
    }
    Ok(())
}

async fn one(
    tenant: &Tenant,
    directory: &dyn TenantDirectory,
    budget: ConnectionBudget,
    options: &ManagerOptions,
    mode: WorkerMode,
) -> Found {
    const CORRECT: &str = "correct it in the tenant service, or in tenants.list";
    let wrong = |found: String| vec![finding("settings", Level::Fail, found, CORRECT)];
    let settings = match directory.database(tenant).await {
        Ok(settings) => settings,
        Err(error) => return wrong(format!("no settings: {error}")),
    };
    if let Err(error) = options.allows(&settings) {
        return wrong(error.to_string());
    }
    let table = match &settings.schema {
        Some(schema) => match Table::in_schema(schema) {
            Ok(table) => table,
            Err(error) => return wrong(format!("schema: {error}")),
        },
        None => Table::unqualified(),
    };
    let database = match Database::open(options.spec(&settings), budget) {
        Ok(database) => database,
        Err(error) => return wrong(error.message().to_owned()),
    };
    let facts = database.facts(&table).await;
    database.close(Duration::from_secs(1)).await;
    match facts {
        Ok(facts) => judge(&facts, mode),
        Err(error) => {
            let reason = format!("postgres_{}", error.class().as_str());
            let help = format!("the row of {reason} in docs/operations.md");
            vec![finding(&reason, Level::Fail, format!("{reason}: {}", error.message()), &help)]
        }
    }
}

fn judge(facts: &Facts, mode: WorkerMode) -> Found {
    let Facts { server_version: version, lacking, .. } = facts;
    // A shadow writes no row.
    let needed = |right: &&str| mode == WorkerMode::Sync || !right.starts_with("UPDATE");
    let missing: Vec<&str> = facts.missing.iter().map(String::as_str).filter(needed).collect();
    let mut found = Vec::new();
    // As in `15.4 (Debian 15.4-1)` and `19beta1`.
    let digits = version.split(|c: char| !c.is_ascii_digit()).next();
    let major: u32 = digits.and_then(|n| n.parse().ok()).unwrap_or_default();
    if major < OLDEST {
        let help = format!("PostgreSQL {OLDEST} or later");
        found.push(finding("version", Level::Warn, format!("version {version} is not tested"), &help));
    }
    if facts.is_replica {
        let said = "a replica answers, which takes no writes";
        found.push(finding("replica", Level::Fail, said, "the address of the primary"));
    }
    if facts.row_security {
        let help = "a role with BYPASSRLS, or no row security on the table for it";
        found.push(finding(
            "row_security",
            Level::Fail,
            "row security hides rows of the table from the role",
            help,
        ));
    }
    if facts.has_rows == Some(false) {
        let help = "nothing, if the tenant is new; otherwise its settings: is this its database?";
        found.push(finding("no_rows", Level::Warn, "the table balance is empty", help));
    }
    if !missing.is_empty() {
        let said = format!("the role lacks {}", missing.join(", "));
        found.push(finding("grants", Level::Fail, said, "deploy/postgres/grants.sql"));
    }
    if !lacking.is_empty() {
        let help = "deploy/postgres/grants.sql; without these less is checked and shown";
        found.push(finding(
            "lesser_grants",
            Level::Warn,
            format!("the role lacks {}", lacking.join(", ")),
            help,
        ));
    }
    if found.iter().all(|(_, (level, ..))| *level != Level::Fail) {
        let way = match facts.mode {
            Some(ConnectionMode::Direct) => "directly".to_owned(),
            Some(mode) => format!("through a {mode}"),
            None => "in a way that is not known".to_owned(),
        };
        let tls = if facts.tls { "with TLS" } else { "without TLS" };
        let said = format!("version {version}, reached {way}, {tls}");
        let kind = said.clone();
        found.insert(0, finding(kind, Level::Ok, said, ""));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn facts(version: &str, mode: Option<ConnectionMode>) -> Facts {
        Facts {
            server_version: version.to_owned(),
            is_replica: false,
            tls: true,
            row_security: false,
            has_rows: Some(true),
            missing: Vec::new(),
            lacking: Vec::new(),
            mode,
        }
    }

    #[test]
    fn how_it_is_reached_is_shown() {
        for (mode, reached) in [
            (Some(ConnectionMode::Direct), "directly"),
            (Some(ConnectionMode::SessionPooler), "through a session pooler"),
            (Some(ConnectionMode::TransactionPooler), "through a transaction pooler"),
            (None, "in a way that is not known"),
        ] {
            let found = judge(&facts("18.6", mode), WorkerMode::Sync);
            let expected = format!("version 18.6, reached {reached}, with TLS");
            assert!(matches!(&found[..], [(_, (Level::Ok, said, _))] if *said == expected), "{expected}");
        }
    }

    #[test]
    fn a_shadow_needs_no_right_to_write() {
        let without = |rights: &[&str], mode| {
            let missing = rights.iter().map(|right| (*right).to_owned()).collect();
            let found = judge(&Facts { missing, ..facts("18.6", Some(ConnectionMode::Direct)) }, mode);
            found.into_iter().filter(|(kind, _)| kind == "grants").map(|(_, (_, said, _))| said).next()
        };
        let both = ["UPDATE (version)", "SELECT (id)"];
        assert_eq!(without(&both[..1], WorkerMode::Shadow), None);
        assert_eq!(without(&both, WorkerMode::Shadow).as_deref(), Some("the role lacks SELECT (id)"));
        let said = without(&both, WorkerMode::Sync);
        assert_eq!(said.as_deref(), Some("the role lacks UPDATE (version), SELECT (id)"));
    }

    #[test]
    fn a_version_older_than_those_that_are_tested_is_warned_of() {
        for (version, warned) in [
            ("14.19 (Debian 14.19-1)", true),
            ("15.18 (Debian 15.18-0+deb12u1)", false),
            ("18.6", false),
            ("19beta1", false),
        ] {
            let found = judge(&facts(version, Some(ConnectionMode::Direct)), WorkerMode::Sync);
            assert_eq!(found.iter().any(|(kind, _)| kind == "version"), warned, "{version}");
        }
    }
}
