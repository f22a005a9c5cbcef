//! The page of metrics of a running worker with load, a degraded tenant, a quarantined value and a Redis that may evict:
//! all there is, as documented, and all that rules and dashboard ask for.

use std::collections::BTreeSet;
use std::fmt::Write as _;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{RedisServer, Sandbox, SandboxTenant, eventually};
use balance_sync_tests::ledger::comes_in_step;
use balance_sync_tests::prometheus::{Prometheus, program, promtool};
use balance_sync_tests::{Metrics, SOON, Worker};
use nix::sys::signal::Signal;
use redis::AsyncCommands;

use crate::{dashboard, expressions::Named, file, rules, text};

/// The list of metrics in the documentation.
const DOCUMENT: &str = "docs/metrics.md";
/// Writes that list anew when it is set.
const REWRITE: &str = "BALANCE_SYNC_REWRITE_DOCS";

/// A metric as it must be.
pub(crate) struct Expected {
    pub name: &'static str,
    kind: &'static str,
    /// The end of its name; empty where the name itself says what is counted.
    unit: &'static str,
    labels: &'static [&'static str],
}

const fn is(
    name: &'static str,
    kind: &'static str,
    unit: &'static str,
    labels: &'static [&'static str],
) -> Expected {
    Expected { name, kind, unit, labels }
}

const TENANT: &[&str] = &["tenant_id"];
const QUEUE: &[&str] = &["queue", "tenant_id"];
const SERVER: &[&str] = &["server"];
const ENTRY: &[&str] = &["entry"];
const TASK: &[&str] = &["task"];

/// Those with the ledger's names, which go out by OTLP instead where metrics are pushed. Each has a twin of ours.
const AS_THE_LEDGER: [&str; 4] = [
    "balance_synced",
    "balance_sync_batch_failures_total",
    "balance_sync_cleanup_failures_total",
    "balance_sync_tenant_skip_total",
];

/// All metrics of a worker, in the order of its page.
pub(crate) const FAMILIES: &[Expected] = &[
    is("balance_sync_build_info", "gauge", "info", &["version"]),
    is("balance_sync_ready", "gauge", "", &[]),
    is("balance_sync_shadow", "gauge", "", &[]),
    is("balance_sync_config_info", "gauge", "info", &["claim_mode", "key_form"]),
    is("balance_sync_freshness_objective_seconds", "gauge", "seconds", &[]),
    is("balance_sync_exposure_objective_seconds", "gauge", "seconds", &[]),
    is("balance_sync_claim_ttl_seconds", "gauge", "seconds", &[]),
    is("balance_sync_protect_floor_seconds", "gauge", "seconds", &[]),
    is("balance_sync_quarantine_limit_entries", "gauge", "entries", &[]),
    is("balance_sync_tenant_list_interval_seconds", "gauge", "seconds", &[]),
    is("balance_sync_tenants", "gauge", "", &["state"]),
    is("balance_sync_rollout_revision", "gauge", "", &[]),
    is("balance_sync_rollout_share_ratio", "gauge", "", &[]),
    is("balance_sync_rollout_unfollowed", "gauge", "", &[]),
    is("balance_sync_tenants_wanted", "gauge", "", &[]),
    is("balance_sync_rollout_selected_tenants", "gauge", "", &[]),
    is("balance_sync_tenants_owned", "gauge", "", &[]),
    is("balance_sync_tenants_refused", "gauge", "", &[]),
    is("balance_sync_removals_held", "gauge", "", &[]),
    is("balance_sync_workers", "gauge", "", &[]),
    is("balance_sync_foreign_locked_members", "gauge", "members", &[]),
    is("balance_sync_connection_waiting_tenants", "gauge", "", &[]),
    is("balance_sync_threads_still", "gauge", "", &[]),
    is("balance_sync_collectors_awaited", "gauge", "", &[]),
    is("balance_sync_connection_wait_seconds", "gauge", "seconds", &[]),
    is("balance_sync_worker_exposure_p99_seconds", "gauge", "seconds", &[]),
    is("balance_sync_collector_starts_total", "counter", "", &[]),
    is("balance_sync_collector_restarts_total", "counter", "", &[]),
    is("balance_sync_collector_stops_total", "counter", "", &[]),
    is("balance_sync_standby_joins_total", "counter", "", &[]),
    is("balance_sync_timeline_entries_dropped_total", "counter", "", &[]),
    is("balance_sync_failover_checks_total", "counter", "", &[]),
    is("balance_sync_failover_behind_total", "counter", "", &[]),
    is("balance_sync_vanished_rescheduled_total", "counter", "", &[]),
    is("balance_sync_vanished_lost_total", "counter", "", &[]),
    is("balance_sync_shadow_left_behind_total", "counter", "", &[]),
    is("balance_sync_shadow_lost_total", "counter", "", &[]),
    is("balance_sync_ledger_worker_dropped_total", "counter", "", &[]),
    is("balance_sync_redis_evicted_keys_total", "counter", "", &[]),
    is("balance_sync_ledger_queue_records_read_total", "counter", "", &[]),
    is("balance_sync_collector_reaped_total", "counter", "", &[]),
    is("balance_sync_collector_panics_total", "counter", "", &[]),
    is("balance_sync_vanished_total", "counter", "", &["reason"]),
    is("balance_sync_metrics_pushes_total", "counter", "", &["outcome"]),
    is("balance_sync_background_task_running", "gauge", "", TASK),
    is("balance_sync_background_task_restarts_total", "counter", "", TASK),
    is("balance_sync_background_task_progress_timestamp_seconds", "gauge", "seconds", TASK),
    is("balance_sync_background_task_bound_seconds", "gauge", "seconds", TASK),
    is("balance_sync_background_task_panics_total", "counter", "", TASK),
    is("balance_sync_reconcile_passes_total", "counter", "", &[]),
    is("balance_sync_reconcile_duration_seconds", "histogram", "seconds", &[]),
    is("balance_sync_reconcile_steps_total", "counter", "", &["phase"]),
    is("balance_sync_last_reconcile_timestamp_seconds", "gauge", "seconds", &[]),
    is("balance_sync_reconcile_bound_seconds", "gauge", "seconds", &[]),
    is("balance_sync_stage_duration_seconds", "histogram", "seconds", &["stage"]),
    is("balance_sync_flush_duration_seconds", "histogram", "seconds", &[]),
    is("balance_synced", "counter", "", TENANT),
    is("balance_sync_batch_failures_total", "counter", "", TENANT),
    is("balance_sync_cleanup_failures_total", "counter", "", TENANT),
    is("balance_sync_tenant_skip_total", "counter", "", TENANT),
    is("balance_sync_tenant_failures_total", "counter", "", &["step", "tenant_id"]),
    is("balance_sync_tenant_collector_restarts_total", "counter", "", TENANT),
    is("balance_sync_quarantine_full_total", "counter", "", TENANT),
    is("balance_sync_balances_total", "counter", "", &["outcome", "tenant_id"]),
    is("balance_sync_batches_total", "counter", "", &["tenant_id", "trigger"]),
    is("balance_sync_lag_seconds", "histogram", "seconds", TENANT),
    is("balance_sync_tenant_degraded", "gauge", "", &["reason", "tenant_id"]),
    is("balance_sync_backlog_members", "gauge", "members", &["state", "tenant_id"]),
    is("balance_sync_tenant_paused", "gauge", "", TENANT),
    is("balance_sync_oldest_due_age_seconds", "gauge", "seconds", TENANT),
    is("balance_sync_exposed_balances", "gauge", "", TENANT),
    is("balance_sync_exposure_age_seconds", "gauge", "seconds", TENANT),
    is("balance_sync_exposure_p99_seconds", "gauge", "seconds", TENANT),
    is("balance_sync_shortest_life_seconds", "gauge", "seconds", TENANT),
    is("balance_sync_quarantine_entries", "gauge", "entries", TENANT),
    is("balance_sync_loss_entries", "gauge", "entries", TENANT),
    is("balance_sync_vanished_open", "gauge", "", TENANT),
    is("balance_sync_vanished_members", "gauge", "members", TENANT),
    is("balance_sync_values_gone", "gauge", "", TENANT),
    is("balance_sync_other_key_form_members", "gauge", "members", TENANT),
    is("balance_sync_ledger_queue_records", "gauge", "", QUEUE),
    is("balance_sync_ledger_queue_oldest_age_seconds", "gauge", "seconds", QUEUE),
    is("balance_sync_ledger_queue_most_attempts", "gauge", "", QUEUE),
    is("balance_sync_ledger_queue_unreadable_records", "gauge", "", QUEUE),
    is("balance_sync_ledger_queue_unread", "gauge", "", QUEUE),
    is("balance_sync_ledger_worker_active", "gauge", "", TENANT),
    is("balance_sync_ledger_worker_dropping", "gauge", "", TENANT),
    is("balance_sync_claims_with_locks", "gauge", "", TENANT),
    is("balance_sync_shadow_waiting_balances", "gauge", "", TENANT),
    is("balance_sync_shadow_left_behind_balances", "gauge", "", TENANT),
    is("balance_sync_shadow_lost_balances", "gauge", "", TENANT),
    is("balance_sync_shadow_lag_p99_seconds", "gauge", "seconds", TENANT),
    is("balance_sync_shadow_compared_timestamp_seconds", "gauge", "seconds", TENANT),
    is("balance_sync_redis_errors_total", "counter", "", &["class"]),
    is("balance_sync_redis_connections_opened_total", "counter", "", &[]),
    is("balance_sync_redis_tracking_threads", "gauge", "", &[]),
    is("balance_sync_redis_tracked_schedules", "gauge", "", &[]),
    is("balance_sync_redis_wakes_total", "counter", "", &[]),
    is("balance_sync_redis_may_evict", "gauge", "", &[]),
    is("balance_sync_clock_offset_seconds", "gauge", "seconds", &[]),
    is("balance_sync_redis_clock_jumps_total", "counter", "", &[]),
    is("balance_sync_redis_clock_back_seconds_total", "counter", "seconds", &[]),
    is("balance_sync_redis_directory_up", "gauge", "", ENTRY),
    is("balance_sync_redis_directory_workers", "gauge", "", ENTRY),
    is("balance_sync_redis_directory_tenants", "gauge", "", ENTRY),
    is("balance_sync_redis_directory_left_tenants", "gauge", "", &[]),
    is("balance_sync_tenant_list_timestamp_seconds", "gauge", "seconds", &[]),
    is("balance_sync_tenant_list_failures_total", "counter", "", &[]),
    is("balance_sync_tenant_service_calls_total", "counter", "", &["call", "outcome"]),
    is("balance_sync_tenant_service_call_duration_seconds", "histogram", "seconds", &["call"]),
    is("balance_sync_tenant_service_requests_total", "counter", "", &[]),
    is("balance_sync_tenant_service_request_failures_total", "counter", "", &[]),
    is("balance_sync_tenant_service_breaker_opened_total", "counter", "", &[]),
    is("balance_sync_tenant_service_breaker", "gauge", "", &["state"]),
    is("balance_sync_tenant_service_success_timestamp_seconds", "gauge", "seconds", &[]),
    is("balance_sync_postgres_connections_open", "gauge", "", SERVER),
    is("balance_sync_postgres_connections_idle", "gauge", "", SERVER),
    is("balance_sync_postgres_connections_in_use", "gauge", "", SERVER),
    is("balance_sync_postgres_connections_waiting", "gauge", "", SERVER),
    is("balance_sync_postgres_connections_limit", "gauge", "", SERVER),
    is("balance_sync_postgres_fleet_connections_limit", "gauge", "", SERVER),
    is("balance_sync_postgres_fleet_connections_held", "gauge", "", SERVER),
    is("balance_sync_postgres_fleet_connections_held_by_all", "gauge", "", SERVER),
    is("balance_sync_postgres_fleet_connections_short_seconds", "gauge", "seconds", SERVER),
    is("process_cpu_seconds_total", "counter", "seconds", &[]),
    is("process_open_fds", "gauge", "", &[]),
    is("process_max_fds", "gauge", "", &[]),
    is("process_virtual_memory_bytes", "gauge", "bytes", &[]),
    is("process_resident_memory_bytes", "gauge", "bytes", &[]),
    is("process_start_time_seconds", "gauge", "seconds", &[]),
    is("process_threads", "gauge", "", &[]),
];

#[tokio::test]
async fn a_workers_page_is_as_documented_and_answers_rules_and_dashboard() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 20).await?;
    // A second Redis, without tenants.
    let second = RedisServer::start(sandbox.options().redis.clone()).await?;
    second.mark().await?;
    let directory = second.folder().join("directory.toml");
    let (here, there) = (sandbox.redis_url(), second.worker_url_on(second.port()));
    let entries = format!(
        "[redis.here]\nurl = {here:?}\ndefault = true\n[redis.there]\nurl = {there:?}\ntenants = [\"nobody\"]\n"
    );
    std::fs::write(&directory, entries)?;
    let mut worker = Worker::of(&sandbox)
        .set("redis.directory", &directory.display().to_string())
        .set("redis.name", "here")
        .set("supervisor.sample_interval", "200ms")
        .set("queues.interval", "200ms")
        .expect_error("redis may evict")
        .expect_error("a format that this release doesn't know")
        .start()
        .await?;
    let tenants = sandbox.tenants();
    trouble(&sandbox, &worker, &tenants).await?;
    let shadow = Worker::of(&sandbox)
        .set("worker.mode", "shadow")
        .set("shadow.compare_interval", "1s")
        .start()
        .await?;
    // In parallel with what is read below, so that it has been scraped often enough for rates.
    let scraping = match program("prometheus") {
        Some(path) => {
            let target = |worker: &Worker| anyhow::Ok(worker.address().context("an address")?.to_string());
            let targets = [target(&worker)?, target(&shadow)?];
            Some(Prometheus::start(&path, &file("deploy/observability/rules.yaml"), &targets).await?)
        }
        None => None,
    };

    let (status, text) = worker.get("/metrics").await?;
    assert_eq!(status, 200);
    // What a shadow alone has stands behind what all have of the ledger's queues.
    let page = Metrics::parse(&with_shadow(&sandbox, &mut worker, &shadow, &text).await?);
    names_types_units_and_labels(&page)?;
    the_document_is_true(&page)?;
    promtool_finds_fault_with_the_ledgers_name_only(&text)?;
    rules_and_dashboard_ask_for_what_is_there(&page)?;
    if let Some(prometheus) = scraping {
        a_real_prometheus_answers(&prometheus, &tenants).await?;
    }
    Ok(())
}

/// The page with what only that of a shadow has, in its place.
async fn with_shadow(sandbox: &Sandbox, worker: &mut Worker, shadow: &Worker, page: &str) -> Result<String> {
    const BEFORE: &str = "# HELP balance_sync_redis_errors_total";
    // A mutation of the tenant that is well, which waits until the shadow has seen it.
    let well = sandbox.tenants().len() - 1;
    let mut producer = sandbox.producer();
    producer.refresh_versions().await?;
    let tenant = producer.tenants()[well].id.clone();
    let labels = [("tenant_id", tenant.as_str())];
    worker.freeze(sandbox.redis()).await?;
    producer.mutate(well, &[0], DEFAULT_TTL).await?;
    let waits = shadow.reaches("balance_sync_shadow_waiting_balances", &labels, 1.0).await;
    worker.signal(Signal::SIGCONT)?;
    waits?;
    eventually(SOON, "a lag that the shadow has seen, and a whole comparison", || async {
        let metrics = shadow.metrics().await?;
        ensure!(metrics.has("balance_sync_shadow_lag_p99_seconds"));
        ensure!(metrics.has("balance_sync_shadow_compared_timestamp_seconds"));
        Ok(())
    })
    .await?;
    let (_, text) = shadow.get("/metrics").await?;
    let own: String = text
        .split_inclusive('\n')
        .filter(|line| line.contains("balance_sync_shadow_") && !line.contains("_total"))
        .collect();
    let at = page.find(BEFORE).context("what comes behind it")?;
    Ok(format!("{}{own}{}", &page[..at], &page[at..]))
}

/// One tenant that can't write, one with a value that can't be read, one with a value of a later release, and a Redis that may throw keys away.
async fn trouble(sandbox: &Sandbox, worker: &Worker, tenants: &[SandboxTenant]) -> Result<()> {
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(sandbox, &producer).await?;

    let (broken, poisoned, newer) = (&tenants[0], &tenants[1], &tenants[2]);
    let sql = format!("ALTER ROLE \"{}\" CONNECTION LIMIT 0", broken.role);
    sandbox.postgres().execute("postgres", &sql).await?;
    sandbox.postgres().end_sessions(Some(&broken.role)).await?;
    producer.mutate(0, &[0, 1, 2], DEFAULT_TTL).await?;

    let mut redis = sandbox.redis().connect().await?;
    let member = poisoned.keys.member(&poisoned.balances[0]);
    let _: () = redis.set(&member, "{\"ID\":").await?;
    let _: () = redis.zadd(poisoned.keys.schedule(), &member, 1).await?;
    // The ledger's own queues: a record that was tried, and a key of another type.
    let prefix = poisoned.keys.prefix();
    let record = r#"{"ttl":"2026-11-26T00:00:00Z"}"#;
    let _: () = redis.hset(format!("{prefix}backup_queue:{{transactions}}"), "t", record).await?;
    let _: () = redis.hset(format!("{prefix}backup_queue:{{transactions}}:attempts"), "t", 2).await?;
    let _: () = redis.set(format!("{prefix}engine:{{transactions}}:recover"), "x").await?;
    let member = newer.keys.member(&newer.balances[0]);
    let _: () = redis.set(&member, "{\"SchemaVersion\":3}").await?;
    let _: () = redis.zadd(newer.keys.schedule(), &member, 1).await?;
    let _: () =
        redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", "allkeys-lru"]).query_async(&mut redis).await?;

    let id = |tenant: &SandboxTenant| tenant.id.clone();
    worker
        .reaches(
            "balance_sync_tenant_degraded",
            &[("tenant_id", &id(broken)), ("reason", "postgres_too_many_connections")],
            1.0,
        )
        .await?;
    worker.reaches("balance_sync_quarantine_entries", &[("tenant_id", &id(poisoned))], 1.0).await?;
    worker
        .reaches(
            "balance_sync_tenant_degraded",
            &[("tenant_id", &id(newer)), ("reason", "value_unknown_format")],
            1.0,
        )
        .await?;
    worker.reaches("balance_sync_shortest_life_seconds", &[("tenant_id", &id(broken))], 1.0).await?;
    // Older than the objective.
    worker.reaches("balance_sync_oldest_due_age_seconds", &[("tenant_id", &id(broken))], 6.0).await?;
    worker.reaches("balance_sync_redis_may_evict", &[], 1.0).await?;
    worker.reaches("balance_sync_redis_directory_up", &[("entry", "there")], 1.0).await?;
    let queue = |name: &'static str| [("tenant_id", poisoned.id.as_str()), ("queue", name)];
    worker.reaches("balance_sync_ledger_queue_oldest_age_seconds", &queue("backup"), 1.0).await?;
    worker.reaches("balance_sync_ledger_queue_most_attempts", &queue("backup"), 2.0).await?;
    worker.reaches("balance_sync_ledger_queue_unread", &queue("recovery"), 1.0).await?;
    let _: () =
        redis::cmd("CONFIG").arg(&["SET", "maxmemory-policy", "noeviction"]).query_async(&mut redis).await?;
    eventually(SOON, "a redis that no longer evicts", || async {
        ensure!(worker.metric("balance_sync_redis_may_evict", &[]).await? == 0.0);
        Ok(())
    })
    .await
}

fn names_types_units_and_labels(page: &Metrics) -> Result<()> {
    let found: Vec<&str> = page.families().iter().map(|family| family.name.as_str()).collect();
    let wanted: Vec<&str> = FAMILIES.iter().map(|family| family.name).collect();
    assert_eq!(found, wanted, "the page has exactly these");
    for (family, expected) in page.families().iter().zip(FAMILIES) {
        let name = &family.name;
        assert_eq!(family.kind, expected.kind, "{name}");
        let labels: Vec<&str> = family.labels.keys().map(String::as_str).collect();
        assert_eq!(labels, expected.labels, "{name}");
        assert!(family.help.ends_with('.') && family.help.len() > 10, "{name}: {:?}", family.help);
        assert!(name.starts_with("balance_sync") || name.starts_with("process_"), "{name}");

        let base = name.strip_suffix("_total").unwrap_or(name);
        let unit = ["seconds", "bytes", "members", "entries", "info"]
            .into_iter()
            .find(|unit| base.strip_suffix(unit).is_some_and(|rest| rest.ends_with('_')));
        assert_eq!(unit.unwrap_or_default(), expected.unit, "{name}");
        for foreign in ["_ms", "_milliseconds", "_minutes", "_percent", "_kb", "_mb"] {
            assert!(!base.ends_with(foreign), "{name} is not in a base unit");
        }
        // `balance_synced` is the ledger's name.
        assert_eq!(family.kind == "counter", name.ends_with("_total") || name == "balance_synced", "{name}");
        assert!(family.kind != "histogram" || expected.unit == "seconds", "{name}");
    }
    Ok(())
}

/// A line of the list for each metric, in the same order.
fn list(page: &Metrics) -> Result<String> {
    let mut list = String::from("| metric | type | labels | what it says |\n|---|---|---|---|\n");
    for family in page.families() {
        let labels: Vec<String> = family.labels.keys().map(|label| format!("`{label}`")).collect();
        writeln!(list, "| `{}` | {} | {} | {} |", family.name, family.kind, labels.join(" "), family.help)?;
    }
    Ok(list)
}

fn the_document_is_true(page: &Metrics) -> Result<()> {
    let list = list(page)?;
    let document = text(DOCUMENT)?;
    let at = document.find("| metric |").context("the list")?;
    let length = document[at..].find("\n\n").map_or(document.len() - at, |end| end + 1);
    if document[at..at + length] == list {
        return Ok(());
    }
    if std::env::var_os(REWRITE).is_some() {
        let rest = &document[at + length..];
        std::fs::write(file(DOCUMENT), format!("{}{list}{rest}", &document[..at]))?;
        return Ok(());
    }
    let was: BTreeSet<&str> = document[at..at + length].lines().collect();
    let now: BTreeSet<&str> = list.lines().collect();
    let (gone, new): (Vec<_>, Vec<_>) = (was.difference(&now).collect(), now.difference(&was).collect());
    panic!("{DOCUMENT} is not what the page says ({REWRITE}=1 writes it anew): gone {gone:#?}, new {new:#?}");
}

fn promtool_finds_fault_with_the_ledgers_name_only(text: &str) -> Result<()> {
    let Some(path) = program("promtool") else { return Ok(()) };
    let (_, said) = promtool(&path, &["check", "metrics"], Some(text))?;
    assert_eq!(said.trim(), "balance_synced counter metrics should have \"_total\" suffix");
    Ok(())
}

/// What the Helm chart has its autoscaler ask for, without the selector, which is filled in when the chart is rendered.
fn chart_expression() -> Result<String> {
    let template = text("deploy/helm/balance-sync/templates/autoscaling.yaml")?;
    let query =
        template.lines().find_map(|line| line.trim_start().strip_prefix("query: ")).context("a query")?;
    Ok(query.split('{').next().unwrap_or(query).to_owned())
}

fn rules_and_dashboard_ask_for_what_is_there(page: &Metrics) -> Result<()> {
    let recorded = rules::recorded()?;
    let of_rules = rules::rules()?.into_iter().map(|rule| (format!("rule {}", rule.name), rule.expression));
    let mut used = BTreeSet::new();
    let of_chart = [("the chart's ScaledObject".to_owned(), chart_expression()?)];
    for (place, expression) in of_rules.chain(dashboard::expressions()?).chain(of_chart) {
        let named = Named::of(&expression).with_context(|| place.clone())?;
        named.is_known(page, &recorded).with_context(|| format!("{place}: {expression}"))?;
        used.extend(named.metrics().map(str::to_owned));
    }
    // What is never looked at need not be recorded.
    for name in &recorded {
        assert!(used.contains(name), "{name} is recorded and never used");
    }
    for name in AS_THE_LEDGER {
        assert!(!used.contains(name), "{name} is not on the page where metrics are pushed");
    }
    let unused: Vec<&str> = page
        .families()
        .iter()
        .filter(|family| !AS_THE_LEDGER.contains(&family.name.as_str()))
        .filter(|family| family.name.starts_with("balance_") && !used.iter().any(|name| family.has(name)))
        .map(|family| family.name.as_str())
        .collect();
    assert!(unused.len() < 15, "the dashboard shows too little: {unused:?}");
    Ok(())
}

/// Panels that are empty while nothing of the kind happens.
const MAY_BE_EMPTY: [&str; 6] = [
    "panel Collector restarts, by tenant",
    "panel Members that no worker collects",
    "panel Redis errors",
    "panel Balances later than 5 s",
    "panel Share of the last hour behind, worst tenants",
    "annotation",
];

/// Every expression is answered by the real thing, and what is wrong here is called out by its alert.
async fn a_real_prometheus_answers(prometheus: &Prometheus, tenants: &[SandboxTenant]) -> Result<()> {
    eventually(SOON, "every panel to show something", || async {
        let mut empty = Vec::new();
        for (place, expression) in dashboard::expressions()? {
            if prometheus.query(&expression).await?.is_empty() && !MAY_BE_EMPTY.contains(&place.as_str()) {
                empty.push(format!("{place}: {expression}"));
            }
        }
        ensure!(empty.is_empty(), "{empty:#?}");
        Ok(())
    })
    .await?;

    let broken = &tenants[0].id;
    for expression in [
        format!("ALERTS{{alertname=\"BalanceSyncTenantDegraded\", tenant_id=\"{broken}\"}}"),
        format!("ALERTS{{alertname=\"BalanceSyncUnknownFormat\", tenant_id=\"{}\"}}", tenants[2].id),
        // Its alert needs the long windows, which are recorded once a minute.
        format!("job_tenant_id:balance_sync_behind:bool{{tenant_id=\"{broken}\"}} == 1"),
    ] {
        eventually(SOON, &expression, || async {
            ensure!(!prometheus.query(&expression).await?.is_empty(), "nothing");
            Ok(())
        })
        .await?;
    }
    let behind = prometheus.query("job_tenant_id:balance_sync_behind:bool == 1").await?;
    ensure!(behind.len() == 1, "the others are not behind: {behind:?}");
    let firing = prometheus.query("ALERTS{alertstate=\"firing\"}").await?;
    let names: BTreeSet<_> = firing.iter().filter_map(|(labels, _)| labels["alertname"].as_str()).collect();
    for quiet in [
        "BalanceSyncNoWorker",
        "BalanceSyncRedisMayEvict",
        "BalanceSyncRedisLostData",
        "BalanceSyncRedisClockBack",
        "BalanceSyncValuesGone",
        "BalanceSyncReconcileStuck",
        "BalanceSyncNearExpiry",
    ] {
        assert!(!names.contains(quiet), "{names:?}");
    }
    Ok(())
}

#[tokio::test]
async fn with_no_tenant_shown_by_itself_there_is_one_row_of_all() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(5, 10).await?;
    let worker = Worker::of(&sandbox).set("admin.metrics_tenants", "0").start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let page = worker.metrics().await?;
    for family in page.families() {
        if let Some(tenants) = family.labels.get("tenant_id") {
            assert_eq!(*tenants, BTreeSet::from(["other".to_owned()]), "{}", family.name);
        }
    }
    assert_eq!(page.sum("balance_synced", &[]), 50.0);
    Ok(())
}
