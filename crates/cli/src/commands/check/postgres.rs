//! Each tenant's Postgres: can it be reached, and may the role do what is needed?

use std::{collections::BTreeMap, sync::Arc, time::Duration};

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
/// Connections of one worker that write to one server at the same time: more make it no faster.
const AT_WORK: u32 = 16;

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
            async move {
                let (found, server) = one(tenant, directory.as_ref(), budget, options, mode).await;
                (tenant, found, server)
            }
        })
        .buffer_unordered(at_once.max(1));
    let mut all = Vec::with_capacity(tenants.len());
    while let Ok(Some(one)) = tokio::time::timeout_at(by, looking.next()).await {
        all.push(one);
        bar.inc(1);
    }
    bar.finish_and_clear();
    let left = tenants.len() - all.len();
    all.sort_by_key(|(tenant, ..)| *tenant);
    let mut servers: BTreeMap<String, Server> = BTreeMap::new();
    for (tenant, found, server) in all {
        if let Some((key, max_connections)) = server {
            let known = servers.entry(key).or_default();
            known.tenants += 1;
            known.max_connections = known.max_connections.or(max_connections);
        }
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
    let limits = Limits {
        per_worker: config.postgres.connections_per_server,
        per_tenant: config.postgres.connections_per_tenant,
        of_fleet: config.postgres.fleet_connections_per_server,
        workers: u32::try_from(config.worker.expected).unwrap_or(u32::MAX),
    };
    for (name, server) in &servers {
        let (level, said, help) = connections(name, *server, limits);
        match level {
            Level::Ok => findings.ok(AREA, said),
            _ => findings.warn(AREA, said, help),
        }
    }
    Ok(())
}

/// What is known of a server.
#[derive(Debug, Clone, Copy, Default)]
struct Server {
    tenants: u32,
    max_connections: Option<u32>,
}

/// Connections that may be opened, by the settings.
#[derive(Debug, Clone, Copy)]
struct Limits {
    per_worker: u32,
    per_tenant: u32,
    /// 0 = there is no such limit.
    of_fleet: u32,
    /// 0 = it isn't known how many there are.
    workers: u32,
}

/// Whether the connections that the fleet may open to a server suit it.
fn connections(name: &str, server: Server, limits: Limits) -> (Level, String, &'static str) {
    let Limits { per_worker, per_tenant, of_fleet, workers } = limits;
    let takes = match server.max_connections {
        Some(max) => format!("{name} takes {max}"),
        None => format!("what {name} takes is not known"),
    };
    let judged = |count: u32| match server.max_connections {
        Some(max) if count > max => Level::Warn,
        _ => Level::Ok,
    };
    if of_fleet == 0 {
        let (count, who) = match workers {
            0 => (per_worker, "each worker".to_owned()),
            1 => (per_worker, "the worker".to_owned()),
            workers => (per_worker.saturating_mul(workers), format!("{workers} workers together")),
        };
        let said =
            format!("{who} may open {count} connections, as the fleet has no limit of its own; {takes}");
        let help =
            "postgres.fleet_connections_per_server below what the server takes, with room for the ledger";
        return (judged(count), said, help);
    }
    let said = format!("the fleet may open {of_fleet} connections; {takes}");
    if judged(of_fleet) == Level::Warn {
        let help = "a smaller postgres.fleet_connections_per_server, with room for the ledger";
        return (Level::Warn, said, help);
    }
    let usable = server.tenants.saturating_mul(per_tenant).max(workers);
    let needed = workers.max(1).saturating_mul(per_worker.min(AT_WORK)).min(usable);
    if of_fleet < needed {
        let said = match workers {
            0 | 1 => format!("{said}; one worker could use {needed}"),
            workers => format!("{said}; {workers} workers could use {needed}"),
        };
        let help = "a larger postgres.fleet_connections_per_server, if the server has room: tenants wait for each other";
        return (Level::Warn, said, help);
    }
    (Level::Ok, said, "")
}

async fn one(
    tenant: &Tenant,
    directory: &dyn TenantDirectory,
    budget: ConnectionBudget,
    options: &ManagerOptions,
    mode: WorkerMode,
) -> (Found, Option<(String, Option<u32>)>) {
    const CORRECT: &str = "correct it in the tenant service, or in tenants.list";
    let wrong = |found: String| (vec![finding("settings", Level::Fail, found, CORRECT)], None);
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
    let server = database.spec().server_key();
    let facts = database.facts(&table).await;
    database.close(Duration::from_secs(1)).await;
    match facts {
        Ok(facts) => (judge(&facts, mode), Some((server, facts.max_connections))),
        Err(error) => {
            let reason = format!("postgres_{}", error.class().as_str());
            let help = format!("the row of {reason} in docs/operations.md");
            (vec![finding(&reason, Level::Fail, format!("{reason}: {}", error.message()), &help)], None)
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
            max_connections: Some(100),
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

    #[test]
    fn connections_are_held_against_what_the_server_takes_and_the_fleet_needs() {
        let judged = |workers, of_fleet, tenants, max_connections| {
            let limits = Limits { per_worker: 64, per_tenant: 2, of_fleet, workers };
            let (level, said, help) = connections("db:5432", Server { tenants, max_connections }, limits);
            assert!(level == Level::Ok || help.contains("postgres.fleet_connections_per_server"), "{help}");
            (level, said)
        };
        for (workers, of_fleet, tenants, max, level, words) in [
            (0, 0, 9, Some(100), Level::Ok, "each worker may open 64 connections, as the fleet has no limit"),
            (2, 0, 9, Some(100), Level::Warn, "2 workers together may open 128 connections"),
            (2, 0, 9, None, Level::Ok, "what db:5432 takes is not known"),
            (1, 0, 9, Some(50), Level::Warn, "the worker may open 64 connections"),
            (2, 90, 9, Some(100), Level::Ok, "the fleet may open 90 connections; db:5432 takes 100"),
            (2, 101, 9, Some(100), Level::Warn, "the fleet may open 101 connections; db:5432 takes 100"),
            (4, 30, 900, Some(100), Level::Warn, "4 workers could use 64"),
            (0, 10, 900, Some(100), Level::Warn, "one worker could use 16"),
            // Few tenants can't use more.
            (4, 30, 5, Some(100), Level::Ok, "the fleet may open 30 connections"),
            (4, 4, 1, Some(100), Level::Ok, "the fleet may open 4 connections"),
        ] {
            let (found, said) = judged(workers, of_fleet, tenants, max);
            assert!(found == level && said.contains(words), "{found:?} {said}");
        }
    }
}
