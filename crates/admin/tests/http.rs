//! A running server asked over real HTTP: paths, health, metrics, and whether the text is valid exposition format.

#![allow(clippy::unwrap_used)]

mod exposition;
mod hostile;

use std::{
    collections::BTreeSet,
    net::{Ipv4Addr, SocketAddr, TcpListener},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::{Duration, Instant},
};

use balance_sync_admin::{AdminServer, AdminSettings, metrics::Metrics, start, start_with_connections};
use balance_sync_domain::{LedgerQueue, TenantId};
use balance_sync_engine::{
    rollout::{Selection, Share},
    routes::{Entry, Routes},
    vanish::Found,
};
use balance_sync_fleet::{
    ErrorClass, FleetUsage, ServerUsage,
    backends::ObservedDirectory,
    status::{
        EntryLook, FleetStatus, InForce, Outcome, PushOutcome, QueueReport, Reason, Rollout, Routing,
        RoutingLook, ShadowReport, Stage, TenantState, TenantStatus, Vanished, WorkerMode,
    },
    tasks::TaskName,
};
use balance_sync_schedule::{ClaimMode, rollout::StoredRollout};
use balance_sync_tenants::{
    KeyForm, ListedTenant, Listing, ServiceDirectory, ServiceSettings, Tenant, TenantDirectory,
};
use exposition::Exposition;
use proptest::prelude::*;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};
use tokio_util::sync::CancellationToken;

type Labels<'a> = &'a [(&'a str, &'a str)];

/// Far more than anything here takes.
const PATIENCE: Duration = Duration::from_secs(30);

fn settings(metrics_tenants: usize) -> AdminSettings {
    AdminSettings { listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)), metrics_tenants }
}

fn serve(fleet: &Arc<FleetStatus>) -> AdminServer {
    start(settings(2000), Arc::clone(fleet), Instant::now()).unwrap()
}

fn tenant(fleet: &FleetStatus, id: &str) -> Arc<TenantStatus> {
    fleet.tenant(&Tenant::Id(TenantId::parse(id).unwrap()))
}

struct Answer {
    status: u16,
    /// In lower case.
    head: String,
    body: String,
}

async fn ask(address: SocketAddr, method: &str, path: &str) -> Answer {
    let exchange = async {
        let mut stream = TcpStream::connect(address).await.unwrap();
        let request = format!("{method} {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    };
    let answer = timeout(PATIENCE, exchange).await.expect("no answer");
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    let head = head.to_lowercase();
    assert!(!head.contains("transfer-encoding"), "the tests read plain bodies only");
    Answer { status: head.split(' ').nth(1).unwrap().parse().unwrap(), body: body.to_owned(), head }
}

async fn get(address: SocketAddr, path: &str) -> (u16, String) {
    let answer = ask(address, "GET", path).await;
    (answer.status, answer.body)
}

async fn scrape(address: SocketAddr) -> Exposition {
    let answer = ask(address, "GET", "/metrics").await;
    assert_eq!(answer.status, 200);
    assert!(
        answer.head.contains("content-type: text/plain; version=0.0.4; charset=utf-8"),
        "{}",
        answer.head
    );
    Exposition::parse(&answer.body).unwrap_or_else(|error| panic!("{error}\n{}", answer.body))
}

#[actix_rt::test]
async fn paths_methods_and_headers() {
    let server = serve(&Arc::default());
    assert_ne!(server.address().port(), 0);

    let answer = ask(server.address(), "GET", "/nowhere").await;
    assert_eq!((answer.status, answer.body.as_str()), (404, "not found\n"));
    assert!(answer.head.contains("x-content-type-options: nosniff"), "{}", answer.head);
    assert!(answer.head.contains("content-type: text/plain; charset=utf-8"), "{}", answer.head);

    let answer = ask(server.address(), "POST", "/metrics").await;
    assert_eq!(answer.status, 405);
    assert!(answer.head.contains("allow: get, head"), "{}", answer.head);

    let answer = ask(server.address(), "HEAD", "/livez").await;
    assert_eq!((answer.status, answer.body.as_str()), (200, ""));
    assert!(answer.head.contains("x-content-type-options: nosniff"), "{}", answer.head);
    server.stop().await;
}

#[actix_rt::test]
async fn ready_between_the_first_reconcile_and_the_drain() {
    let fleet = Arc::<FleetStatus>::default();
    let server = serve(&fleet);
    let (status, body) = get(server.address(), "/readyz").await;
    assert_eq!((status, body.contains("no reconcile pass")), (503, true), "{body}");
    assert_eq!(scrape(server.address()).await.value("balance_sync_ready", &[]), 0.0);

    fleet.reconciled.store(true, Relaxed);
    assert_eq!(get(server.address(), "/readyz").await, (200, "ready\n".to_owned()));
    assert_eq!(scrape(server.address()).await.value("balance_sync_ready", &[]), 1.0);

    fleet.draining.store(true, Relaxed);
    let (status, body) = get(server.address(), "/readyz").await;
    assert_eq!((status, body.contains("draining")), (503, true), "{body}");
    assert_eq!(get(server.address(), "/livez").await.0, 200);
    server.stop().await;
}

#[actix_rt::test]
async fn alive_while_passes_are_made() {
    let fleet = Arc::<FleetStatus>::default();
    // A start in the past stands for the time that has gone by, so that nothing has to be waited for.
    let started = Instant::now().checked_sub(Duration::from_secs(100)).unwrap();
    let server = start(settings(1), Arc::clone(&fleet), started).unwrap();
    assert_eq!(get(server.address(), "/livez").await.0, 200, "the bound is not known");

    fleet.pass_bound_ms.store(60_000, Relaxed);
    let (status, body) = get(server.address(), "/livez").await;
    assert_eq!((status, body.contains("the bound is 60.000 s")), (503, true), "{body}");

    fleet.last_pass_ms.store(95_000, Relaxed);
    assert_eq!(get(server.address(), "/livez").await, (200, "alive\n".to_owned()));

    fleet.manager_ended.store(true, Relaxed);
    let (status, body) = get(server.address(), "/livez").await;
    assert_eq!((status, body.contains("databases has ended")), (503, true), "{body}");
    server.stop().await;
}

#[actix_rt::test]
async fn a_worker_without_tenants_has_valid_metrics() {
    let server = serve(&Arc::default());
    let metrics = scrape(server.address()).await;
    assert_eq!(metrics.value("balance_sync_build_info", &[("version", env!("CARGO_PKG_VERSION"))]), 1.0);
    assert_eq!(metrics.value("balance_sync_tenants", &[("state", "degraded")]), 0.0);
    assert_eq!(metrics.value("balance_sync_reconcile_duration_seconds_count", &[]), 0.0);
    server.stop().await;
}

/// A fleet in which every number is another one.
fn busy_fleet() -> Arc<FleetStatus> {
    let fleet = Arc::<FleetStatus>::default();
    let acme = tenant(&fleet, "acme");
    for (n, counter) in [
        &acme.outcomes[Outcome::Updated],
        &acme.outcomes[Outcome::Stale],
        &acme.outcomes[Outcome::Quarantined],
        &acme.outcomes[Outcome::Expired],
        &acme.outcomes[Outcome::Released],
        &acme.outcomes[Outcome::Kept],
        &acme.batch_failures,
        &acme.cleanup_failures,
        &acme.skips,
        &acme.quarantine_full,
        &acme.restarts,
        &acme.due,
        &acme.foreign_locked,
        &acme.other_form,
        &acme.batches[0],
        &acme.batches[1],
        &acme.batches[2],
        &acme.leased,
        &acme.quarantine_entries,
        &acme.outcomes[Outcome::Deleted],
        &acme.losses,
        &acme.outcomes[Outcome::Forked],
    ]
    .iter()
    .enumerate()
    {
        counter.store(101 + n as u64, Relaxed);
    }
    acme.shortest_life_ms.store(12_345, Relaxed);
    acme.oldest_due_age_ms.store(6_789, Relaxed);
    for second in 0..37 {
        acme.sample_exposure(Duration::from_secs(second));
    }
    acme.paused.store(true, Relaxed);
    acme.lag.observe(0.02);
    acme.lag.observe(0.03);
    acme.lag.observe(3000.0);
    acme.degrade(Reason::PostgresConnection, "refused".to_owned());
    tenant(&fleet, "zeta").enter(TenantState::Idle);
    for (n, counter) in [
        &fleet.passes,
        &fleet.started,
        &fleet.stopped,
        &fleet.reaped,
        &fleet.panics,
        &fleet.poll_failures,
        &fleet.restarts,
        &fleet.refused_ids,
        &fleet.removals_held,
        &fleet.workers,
        &fleet.owned,
        &fleet.wanted,
        &fleet.awaited,
        &fleet.phases[0],
        &fleet.phases[1],
        &fleet.phases[2],
        &fleet.phases[3],
        &fleet.joins,
        &fleet.failover_checks,
        &fleet.failover_behind,
        &fleet.vanished_rescheduled,
        &fleet.vanished_lost,
        &fleet.redis_evicted_keys,
        &fleet.vanished[1],
        &fleet.queue_records,
        &fleet.selected,
        &fleet.timeline_dropped,
    ]
    .iter()
    .enumerate()
    {
        counter.store(201 + n as u64, Relaxed);
    }
    let share = Share::of_ten_thousand(500).unwrap();
    let selection = Selection::new(BTreeSet::new(), BTreeSet::new(), share).unwrap();
    let stored = StoredRollout {
        revision: "231".to_owned(),
        selection: Ok(Some(selection)),
        at: 1.0,
        by: "ann".to_owned(),
        note: String::new(),
        change: "set 5%".to_owned(),
    };
    fleet.rollout.replace(Rollout::in_force(Some(stored), &Selection::default()).unwrap());
    fleet.rollout.report(Some("it can't be read".to_owned()));
    for outcome in [PushOutcome::Ok, PushOutcome::Failed, PushOutcome::Failed] {
        fleet.pushed(outcome);
    }
    fleet.reconcile.observe(0.002);
    fleet.observe(Stage::Update, Duration::from_millis(40));
    fleet.flushes.observe(0.05);
    fleet.last_pass_at_ms.store(1_795_380_490_466, Relaxed);
    fleet.pass_bound_ms.store(90_500, Relaxed);
    fleet.exposure_p99_ms.store(7_500, Relaxed);
    fleet.redis.failed(ErrorClass::OutOfMemory);
    fleet.redis.connected();
    fleet.redis_may_evict.store(1);
    fleet.clock_offset_ms.store(Some(-1_500));
    for millis in [239_000, 3_500] {
        fleet.redis_clock_back.went_back(Duration::from_millis(millis));
    }
    acme.show_vanished(Some(Vanished {
        reason: Reason::RedisScheduleVanished,
        extent: 237,
        since: 1.0,
        detail: String::new(),
        phase: String::new(),
        found: Found::default(),
    }));
    acme.values_gone.show_sampled(238);
    let in_force = InForce {
        mode: WorkerMode::Shadow,
        claim_mode: ClaimMode::Lease,
        claim_quiet: Duration::from_secs(1200),
        key_form: KeyForm::AsListed,
        claim_ttl: Duration::from_secs(30),
        protect_floor: Duration::from_secs(900),
        quarantine_limit: 10_000,
        poll_interval: Duration::from_secs(10),
        freshness_objective: Duration::from_secs(5),
        exposure_objective: Duration::from_secs(1),
    };
    fleet.in_force.set(in_force).unwrap();
    fleet.routing.set(Arc::new(three_redis_servers())).unwrap();
    fleet.shadow_left_behind.store(231, Relaxed);
    fleet.shadow_lost.store(232, Relaxed);
    fleet.neighbour_dropped.store(236, Relaxed);
    for flag in [&acme.neighbour_active, &acme.neighbour_dropping, &acme.takes_locks] {
        flag.store(true, Relaxed);
    }
    acme.show_shadow(Some(ShadowReport {
        would_write: 233,
        left_behind: 234,
        lost: 235,
        lag_p99_seconds: Some(2.5),
        compared_at: Some(1_795_380_460.0),
        ..ShadowReport::default()
    }));
    acme.show_queues(Some(vec![QueueReport {
        depth: Some(227),
        oldest_at_ms: Some(0),
        most_attempts: Some(228),
        unreadable: 229,
        error: Some("missing: +hscan".to_owned()),
        ..QueueReport::empty(LedgerQueue::Backup)
    }]));
    fleet
}

/// Redis `a`, which is the worker's, beside `b` with five workers and `c`, which can't be asked.
fn three_redis_servers() -> Routing {
    let entry = |name: &str, default| Entry { name: name.to_owned(), tenants: Vec::new(), default };
    let routes = Routes::new(vec![entry("a", true), entry("b", false), entry("c", false)]).unwrap();
    let routing = Routing::new("a", Arc::new(routes));
    let acme = ListedTenant { tenant: Tenant::Id(TenantId::parse("acme").unwrap()), name: "acme".to_owned() };
    assert_eq!(routing.take_apart(Listing { tenants: vec![acme], ..Listing::default() }).tenants.len(), 1);
    let look = |name: &str, workers, error| EntryLook { name: name.to_owned(), workers, error };
    let entries = vec![look("b", Some(5), None), look("c", None, Some("refused".to_owned()))];
    routing.looked(RoutingLook { at: 1.0, entries, left_tenants: 237, ..RoutingLook::default() }, &[]);
    routing
}

/// Two calls of a tenant service on whose port no server listens.
async fn ask_a_service_in_vain(fleet: &Arc<FleetStatus>) {
    let mut settings = ServiceSettings::new("http://127.0.0.1:1".parse().unwrap(), "key".into());
    (settings.allow_plain_http, settings.retries, settings.breaker_threshold) = (true, 0, 1);
    let service = ServiceDirectory::new(settings).unwrap();
    let directory = ObservedDirectory::new(Arc::new(service), Arc::clone(fleet));
    assert_eq!(directory.active().await.unwrap_err().kind(), "unavailable");
    assert_eq!(directory.database(&Tenant::Single).await.unwrap_err().kind(), "not_found");
    fleet.directory.last_list_ms.store(1_795_380_400_000, Relaxed);
    fleet.directory.last_success_ms.store(1_795_380_450_000, Relaxed);
}

#[actix_rt::test]
async fn every_metric_has_its_name_type_help_and_value() {
    let fleet = busy_fleet();
    let (stop, five) = (CancellationToken::new(), Duration::from_secs(5));
    drop(fleet.tasks.keep(TaskName::Sampler, None, five, stop.clone(), |_| std::future::pending()));
    let _ends = stop.drop_guard();
    assert!(fleet.tasks.once(TaskName::TenantPoll, async { panic!("over a list") }).await.unwrap().is_err());
    ask_a_service_in_vain(&fleet).await;
    let connections = || {
        vec![ServerUsage {
            server: "db:5432".to_owned(),
            open: 5,
            idle: 2,
            in_use: 3,
            waiting: 1,
            limit: 20,
            clock_ahead_ms: None,
            fleet: Some(FleetUsage { budget: 60, held: 20, all: 55, workers: 3, short_seconds: 40 }),
            opened: 9,
        }]
    };
    let server =
        start_with_connections(settings(10), Arc::clone(&fleet), Instant::now(), Box::new(connections))
            .unwrap();
    let metrics = scrape(server.address()).await;

    let acme = [("tenant_id", "acme")];
    let queue = [("tenant_id", "acme"), ("queue", "backup")];
    let expected: &[(&str, &str, Labels<'_>, f64)] = &[
        ("balance_synced", "counter", &acme, 101.0),
        ("balance_sync_batch_failures_total", "counter", &acme, 107.0),
        ("balance_sync_cleanup_failures_total", "counter", &acme, 108.0),
        ("balance_sync_tenant_skip_total", "counter", &acme, 109.0),
        ("balance_sync_tenant_failures_total", "counter", &[("tenant_id", "acme"), ("step", "batch")], 107.0),
        (
            "balance_sync_tenant_failures_total",
            "counter",
            &[("tenant_id", "acme"), ("step", "cleanup")],
            108.0,
        ),
        ("balance_sync_tenant_failures_total", "counter", &[("tenant_id", "acme"), ("step", "skip")], 109.0),
        ("balance_sync_metrics_pushes_total", "counter", &[("outcome", "ok")], 1.0),
        ("balance_sync_metrics_pushes_total", "counter", &[("outcome", "partial")], 0.0),
        ("balance_sync_metrics_pushes_total", "counter", &[("outcome", "failed")], 2.0),
        ("balance_sync_quarantine_full_total", "counter", &acme, 110.0),
        ("balance_sync_tenant_collector_restarts_total", "counter", &acme, 111.0),
        ("balance_sync_balances_total", "counter", &[("tenant_id", "acme"), ("outcome", "updated")], 101.0),
        ("balance_sync_balances_total", "counter", &[("tenant_id", "acme"), ("outcome", "stale")], 102.0),
        ("balance_sync_balances_total", "counter", &[("tenant_id", "acme"), ("outcome", "deleted")], 120.0),
        ("balance_sync_balances_total", "counter", &[("tenant_id", "acme"), ("outcome", "forked")], 122.0),
        (
            "balance_sync_balances_total",
            "counter",
            &[("tenant_id", "acme"), ("outcome", "quarantined")],
            103.0,
        ),
        ("balance_sync_balances_total", "counter", &[("tenant_id", "acme"), ("outcome", "expired")], 104.0),
        ("balance_sync_balances_total", "counter", &[("tenant_id", "acme"), ("outcome", "released")], 105.0),
        ("balance_sync_balances_total", "counter", &[("tenant_id", "acme"), ("outcome", "kept")], 106.0),
        ("balance_sync_batches_total", "counter", &[("tenant_id", "acme"), ("trigger", "size")], 115.0),
        ("balance_sync_batches_total", "counter", &[("tenant_id", "acme"), ("trigger", "timeout")], 116.0),
        ("balance_sync_batches_total", "counter", &[("tenant_id", "acme"), ("trigger", "drain")], 117.0),
        ("balance_sync_backlog_members", "gauge", &[("tenant_id", "acme"), ("state", "due")], 112.0),
        ("balance_sync_backlog_members", "gauge", &[("tenant_id", "acme"), ("state", "leased")], 118.0),
        ("balance_sync_other_key_form_members", "gauge", &acme, 114.0),
        ("balance_sync_shortest_life_seconds", "gauge", &acme, 12.345),
        ("balance_sync_oldest_due_age_seconds", "gauge", &acme, 6.789),
        ("balance_sync_exposed_balances", "gauge", &acme, 230.0),
        ("balance_sync_exposure_age_seconds", "gauge", &acme, 6.789),
        ("balance_sync_exposure_p99_seconds", "gauge", &acme, 6.789),
        ("balance_sync_quarantine_entries", "gauge", &acme, 119.0),
        ("balance_sync_loss_entries", "gauge", &acme, 121.0),
        ("balance_sync_tenant_paused", "gauge", &acme, 1.0),
        (
            "balance_sync_tenant_degraded",
            "gauge",
            &[("tenant_id", "acme"), ("reason", "postgres_connection")],
            1.0,
        ),
        ("balance_sync_foreign_locked_members", "gauge", &[], 113.0),
        ("balance_sync_tenants", "gauge", &[("state", "degraded")], 1.0),
        ("balance_sync_tenants", "gauge", &[("state", "idle")], 1.0),
        ("balance_sync_tenants", "gauge", &[("state", "syncing")], 0.0),
        ("balance_sync_reconcile_passes_total", "counter", &[], 201.0),
        ("balance_sync_collector_starts_total", "counter", &[], 202.0),
        ("balance_sync_collector_stops_total", "counter", &[], 203.0),
        ("balance_sync_standby_joins_total", "counter", &[], 218.0),
        ("balance_sync_timeline_entries_dropped_total", "counter", &[], 227.0),
        ("balance_sync_failover_checks_total", "counter", &[], 219.0),
        ("balance_sync_failover_behind_total", "counter", &[], 220.0),
        ("balance_sync_vanished_open", "gauge", &acme, 1.0),
        ("balance_sync_vanished_members", "gauge", &acme, 237.0),
        ("balance_sync_values_gone", "gauge", &acme, 238.0),
        ("balance_sync_vanished_rescheduled_total", "counter", &[], 221.0),
        ("balance_sync_vanished_lost_total", "counter", &[], 222.0),
        ("balance_sync_shadow_left_behind_total", "counter", &[], 231.0),
        ("balance_sync_shadow_lost_total", "counter", &[], 232.0),
        ("balance_sync_ledger_worker_dropped_total", "counter", &[], 236.0),
        ("balance_sync_ledger_worker_active", "gauge", &acme, 1.0),
        ("balance_sync_ledger_worker_dropping", "gauge", &acme, 1.0),
        ("balance_sync_claims_with_locks", "gauge", &acme, 1.0),
        ("balance_sync_shadow", "gauge", &[], 1.0),
        ("balance_sync_shadow_waiting_balances", "gauge", &acme, 233.0),
        ("balance_sync_shadow_left_behind_balances", "gauge", &acme, 234.0),
        ("balance_sync_shadow_lost_balances", "gauge", &acme, 235.0),
        ("balance_sync_shadow_lag_p99_seconds", "gauge", &acme, 2.5),
        ("balance_sync_shadow_compared_timestamp_seconds", "gauge", &acme, 1_795_380_460.0),
        ("balance_sync_redis_evicted_keys_total", "counter", &[], 223.0),
        ("balance_sync_ledger_queue_records_read_total", "counter", &[], 225.0),
        ("balance_sync_ledger_queue_records", "gauge", &queue, 227.0),
        ("balance_sync_ledger_queue_most_attempts", "gauge", &queue, 228.0),
        ("balance_sync_ledger_queue_unreadable_records", "gauge", &queue, 229.0),
        ("balance_sync_ledger_queue_unread", "gauge", &queue, 1.0),
        ("balance_sync_vanished_total", "counter", &[("reason", "redis_schedule_vanished")], 224.0),
        ("balance_sync_collector_reaped_total", "counter", &[], 204.0),
        ("balance_sync_collector_panics_total", "counter", &[], 205.0),
        ("balance_sync_tenant_list_failures_total", "counter", &[], 206.0),
        ("balance_sync_collector_restarts_total", "counter", &[], 207.0),
        ("balance_sync_tenants_refused", "gauge", &[], 208.0),
        ("balance_sync_removals_held", "gauge", &[], 209.0),
        ("balance_sync_workers", "gauge", &[], 210.0),
        ("balance_sync_tenants_owned", "gauge", &[], 211.0),
        ("balance_sync_tenants_wanted", "gauge", &[], 212.0),
        ("balance_sync_rollout_selected_tenants", "gauge", &[], 226.0),
        ("balance_sync_rollout_revision", "gauge", &[], 231.0),
        ("balance_sync_rollout_share_ratio", "gauge", &[], 0.05),
        ("balance_sync_rollout_unfollowed", "gauge", &[], 1.0),
        ("balance_sync_collectors_awaited", "gauge", &[], 213.0),
        ("balance_sync_threads_still", "gauge", &[], 0.0),
        ("balance_sync_connection_waiting_tenants", "gauge", &[], 0.0),
        ("balance_sync_connection_wait_seconds", "gauge", &[], 0.0),
        ("balance_sync_background_task_running", "gauge", &[("task", "sampler")], 1.0),
        ("balance_sync_background_task_restarts_total", "counter", &[("task", "sampler")], 0.0),
        ("balance_sync_background_task_bound_seconds", "gauge", &[("task", "sampler")], 75.0),
        ("balance_sync_background_task_panics_total", "counter", &[("task", "sampler")], 0.0),
        ("balance_sync_background_task_panics_total", "counter", &[("task", "tenant_poll")], 1.0),
        ("balance_sync_reconcile_steps_total", "counter", &[("phase", "reap")], 214.0),
        ("balance_sync_reconcile_steps_total", "counter", &[("phase", "stop")], 215.0),
        ("balance_sync_reconcile_steps_total", "counter", &[("phase", "start")], 216.0),
        ("balance_sync_reconcile_steps_total", "counter", &[("phase", "wait")], 217.0),
        ("balance_sync_last_reconcile_timestamp_seconds", "gauge", &[], 1_795_380_490.466),
        ("balance_sync_reconcile_bound_seconds", "gauge", &[], 90.5),
        ("balance_sync_redis_errors_total", "counter", &[("class", "redis_out_of_memory")], 1.0),
        ("balance_sync_redis_errors_total", "counter", &[("class", "redis_unavailable")], 0.0),
        ("balance_sync_redis_connections_opened_total", "counter", &[], 1.0),
        ("balance_sync_redis_tracking_threads", "gauge", &[], 0.0),
        ("balance_sync_redis_tracked_schedules", "gauge", &[], 0.0),
        ("balance_sync_redis_wakes_total", "counter", &[], 0.0),
        ("balance_sync_redis_may_evict", "gauge", &[], 1.0),
        ("balance_sync_clock_offset_seconds", "gauge", &[], -1.5),
        ("balance_sync_redis_clock_jumps_total", "counter", &[], 2.0),
        ("balance_sync_redis_clock_back_seconds_total", "counter", &[], 242.5),
        ("balance_sync_tenant_list_timestamp_seconds", "gauge", &[], 1_795_380_400.0),
        (
            "balance_sync_tenant_service_calls_total",
            "counter",
            &[("call", "list"), ("outcome", "unavailable")],
            1.0,
        ),
        (
            "balance_sync_tenant_service_calls_total",
            "counter",
            &[("call", "database"), ("outcome", "not_found")],
            1.0,
        ),
        ("balance_sync_tenant_service_calls_total", "counter", &[("call", "list"), ("outcome", "ok")], 0.0),
        ("balance_sync_tenant_service_requests_total", "counter", &[], 1.0),
        ("balance_sync_tenant_service_request_failures_total", "counter", &[], 1.0),
        ("balance_sync_tenant_service_breaker_opened_total", "counter", &[], 1.0),
        ("balance_sync_tenant_service_breaker", "gauge", &[("state", "open")], 1.0),
        ("balance_sync_tenant_service_breaker", "gauge", &[("state", "closed")], 0.0),
        ("balance_sync_tenant_service_success_timestamp_seconds", "gauge", &[], 1_795_380_450.0),
        ("balance_sync_config_info", "gauge", &[("claim_mode", "lease"), ("key_form", "as_listed")], 1.0),
        ("balance_sync_freshness_objective_seconds", "gauge", &[], 5.0),
        ("balance_sync_exposure_objective_seconds", "gauge", &[], 1.0),
        ("balance_sync_worker_exposure_p99_seconds", "gauge", &[], 7.5),
        ("balance_sync_claim_ttl_seconds", "gauge", &[], 30.0),
        ("balance_sync_protect_floor_seconds", "gauge", &[], 900.0),
        ("balance_sync_quarantine_limit_entries", "gauge", &[], 10_000.0),
        ("balance_sync_tenant_list_interval_seconds", "gauge", &[], 10.0),
        ("balance_sync_ready", "gauge", &[], 0.0),
        ("balance_sync_build_info", "gauge", &[("version", env!("CARGO_PKG_VERSION"))], 1.0),
        ("balance_sync_postgres_connections_open", "gauge", &[("server", "db:5432")], 5.0),
        ("balance_sync_postgres_connections_idle", "gauge", &[("server", "db:5432")], 2.0),
        ("balance_sync_postgres_connections_in_use", "gauge", &[("server", "db:5432")], 3.0),
        ("balance_sync_postgres_connections_waiting", "gauge", &[("server", "db:5432")], 1.0),
        ("balance_sync_postgres_connections_limit", "gauge", &[("server", "db:5432")], 20.0),
        ("balance_sync_postgres_fleet_connections_limit", "gauge", &[("server", "db:5432")], 60.0),
        ("balance_sync_postgres_fleet_connections_held", "gauge", &[("server", "db:5432")], 20.0),
        ("balance_sync_postgres_fleet_connections_held_by_all", "gauge", &[("server", "db:5432")], 55.0),
        ("balance_sync_postgres_fleet_connections_short_seconds", "gauge", &[("server", "db:5432")], 40.0),
        ("balance_sync_redis_directory_up", "gauge", &[("entry", "b")], 1.0),
        ("balance_sync_redis_directory_up", "gauge", &[("entry", "c")], 0.0),
        ("balance_sync_redis_directory_workers", "gauge", &[("entry", "b")], 5.0),
        ("balance_sync_redis_directory_tenants", "gauge", &[("entry", "a")], 1.0),
        ("balance_sync_redis_directory_tenants", "gauge", &[("entry", "c")], 0.0),
        ("balance_sync_redis_directory_left_tenants", "gauge", &[], 237.0),
    ];
    for (name, kind, labels, value) in expected {
        assert_eq!(metrics.kind(name), Some(*kind), "{name}");
        assert_eq!(metrics.value(name, labels), *value, "{name} {labels:?}");
    }
    let histograms: &[(&str, Labels<'_>, f64, f64)] = &[
        ("balance_sync_lag_seconds", &acme, 3.0, 3000.05),
        ("balance_sync_stage_duration_seconds", &[("stage", "update")], 1.0, 0.04),
        ("balance_sync_stage_duration_seconds", &[("stage", "claim")], 0.0, 0.0),
        ("balance_sync_reconcile_duration_seconds", &[], 1.0, 0.002),
        ("balance_sync_flush_duration_seconds", &[], 1.0, 0.05),
    ];
    for (name, labels, count, sum) in histograms {
        assert_eq!(metrics.kind(name), Some("histogram"), "{name}");
        assert_eq!(metrics.value(&format!("{name}_count"), labels), *count, "{name} {labels:?}");
        assert_eq!(metrics.value(&format!("{name}_sum"), labels), *sum, "{name} {labels:?}");
    }
    let bucket =
        |bound| metrics.value("balance_sync_lag_seconds_bucket", &[("tenant_id", "acme"), ("le", bound)]);
    assert_eq!([bucket("0.01"), bucket("0.02"), bucket("0.03"), bucket("120")], [0.0, 1.0, 2.0, 2.0]);

    let durations = "balance_sync_tenant_service_call_duration_seconds";
    assert_eq!(metrics.kind(durations), Some("histogram"));
    for call in ["list", "database"] {
        assert_eq!(metrics.value(&format!("{durations}_count"), &[("call", call)]), 1.0);
    }
    let progress = "balance_sync_background_task_progress_timestamp_seconds";
    assert!(metrics.value(progress, &[("task", "sampler")]) > 1.7e9);
    // Created in 1970.
    let queue_age = "balance_sync_ledger_queue_oldest_age_seconds";
    assert!(metrics.value(queue_age, &queue) > 1.7e9);
    assert_eq!(metrics.kind(queue_age), Some("gauge"));
    assert!(metrics.value("process_resident_memory_bytes", &[]) > 1e6);
    assert!(metrics.value("process_open_fds", &[]) > 3.0);
    assert!(metrics.value("process_start_time_seconds", &[]) > 1.7e9);
    assert_eq!(metrics.kind("process_cpu_seconds_total"), Some("counter"));

    // Nothing beyond what is listed here, so that a new metric enters the list too.
    for name in metrics.families().filter(|name| !name.starts_with("process_")) {
        let known = expected.iter().any(|entry| entry.0 == name)
            || histograms.iter().any(|entry| entry.0 == name)
            || name == durations
            || name == progress
            || name == queue_age;
        assert!(known, "{name} is not tested");
        assert!(name == "balance_synced" || name.starts_with("balance_sync_"), "{name}");
        assert!(metrics.help(name).is_some_and(|help| help.len() > 10), "{name} has no help text");
        let counter = metrics.kind(name) == Some("counter");
        assert_eq!(counter, name.ends_with("_total") || name == "balance_synced", "{name}");
    }

    // Absent, not 0, when not known or not so.
    let zeta = [("tenant_id", "zeta")];
    assert_eq!(metrics.get("balance_sync_shortest_life_seconds", &zeta), None);
    assert_eq!(metrics.get("balance_sync_quarantine_entries", &zeta), None);
    assert_eq!(metrics.value("balance_sync_tenant_paused", &zeta), 0.0);
    assert_eq!(metrics.with_label("balance_sync_tenant_degraded", "tenant_id", "zeta"), 0);
    assert_eq!(metrics.value("balance_synced", &zeta), 0.0);
    server.stop().await;
}

#[actix_rt::test]
async fn only_so_many_tenants_have_series_of_their_own() {
    let fleet = Arc::<FleetStatus>::default();
    for n in 0..50 {
        let status = tenant(&fleet, &format!("t{n:02}"));
        status.outcomes[Outcome::Updated].store(1, Relaxed);
        status.scheduled.store(n, Relaxed);
        status.due.store(n, Relaxed);
    }
    let server = start(settings(10), Arc::clone(&fleet), Instant::now()).unwrap();
    let metrics = scrape(server.address()).await;
    let labels = metrics.label_values("balance_synced", "tenant_id");
    let expected: Vec<_> = (40..50).map(|n| format!("t{n:02}")).chain(["other".to_owned()]).collect();
    assert_eq!(labels, expected);
    assert_eq!(metrics.value("balance_synced", &[("tenant_id", "other")]), 40.0);
    assert_eq!(
        metrics.value("balance_sync_backlog_members", &[("tenant_id", "other"), ("state", "due")]),
        f64::from((0..40).sum::<i32>())
    );
    assert_eq!(metrics.value("balance_sync_tenants", &[("state", "starting")]), 50.0);
    for name in metrics.families() {
        assert!(metrics.label_values(name, "tenant_id").len() <= 11, "{name}");
    }
    server.stop().await;
}

#[actix_rt::test]
async fn ten_thousand_tenants_are_rendered_and_health_answers_meanwhile() {
    let fleet = Arc::<FleetStatus>::default();
    for n in 0..10_000 {
        let status = tenant(&fleet, &format!("tenant-{n}"));
        status.scheduled.store(n, Relaxed);
        status.lag.observe(0.02);
    }
    let server = serve(&fleet);
    let address = server.address();
    let scrape = actix_rt::spawn(async move { get(address, "/metrics").await });
    let mut meanwhile = 0;
    while !scrape.is_finished() {
        assert_eq!(get(address, "/livez").await.0, 200);
        meanwhile += 1;
    }
    let (status, text) = scrape.await.unwrap();
    assert!(meanwhile > 1, "health waits for the scrape");
    assert_eq!(status, 200);
    let metrics = Exposition::parse(&text).unwrap();
    assert_eq!(metrics.label_values("balance_synced", "tenant_id").len(), 2001);
    assert_eq!(metrics.value("balance_sync_lag_seconds_count", &[("tenant_id", "other")]), 8000.0);
    server.stop().await;
}

#[actix_rt::test]
async fn a_taken_address_is_an_error_that_names_it() {
    let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let listen = taken.local_addr().unwrap();
    let error = start(AdminSettings { listen, metrics_tenants: 1 }, Arc::default(), Instant::now())
        .expect_err("taken");
    assert_eq!(error.kind(), std::io::ErrorKind::AddrInUse);
    assert!(error.to_string().contains(&listen.to_string()), "{error}");
}

#[test]
fn outside_a_system_it_refuses_to_start() {
    let error = start(settings(1), Arc::default(), Instant::now()).expect_err("no system");
    assert!(error.to_string().contains("actix system"), "{error}");
}

#[actix_rt::test]
async fn after_stop_the_port_is_closed_even_if_a_scraper_keeps_its_connection() {
    // An address that no other test and no other program uses: no other process can take the port meanwhile.
    let listen = SocketAddr::from((Ipv4Addr::new(127, 41, 7, 83), 0));
    let server = start(AdminSettings { listen, metrics_tenants: 1 }, Arc::default(), Instant::now()).unwrap();
    let address = server.address();
    let mut kept = TcpStream::connect(address).await.unwrap();
    kept.write_all(b"GET /livez HTTP/1.1\r\nhost: localhost\r\n\r\n").await.unwrap();
    let mut first = [0; 15];
    timeout(PATIENCE, kept.read_exact(&mut first)).await.expect("no answer").unwrap();
    assert_eq!(&first, b"HTTP/1.1 200 OK");

    timeout(PATIENCE, server.stop()).await.expect("stop hangs");
    assert!(TcpStream::connect(address).await.is_err());
}

proptest! {
    #[test]
    fn any_label_value_comes_back_as_it_went_in(
        names in proptest::collection::btree_set("[a-z\"\\\\\n\r{}=, \u{e4}\u{1F600}]{0,12}", 1..5),
    ) {
        let servers: Vec<_> = names
            .iter()
            .map(|name| ServerUsage {
                server: name.clone(), open: 7, idle: 0, in_use: 0, waiting: 0, limit: 9, clock_ahead_ms: None, fleet: None, opened: 7,
            })
            .collect();
        let metrics = Metrics::new(Arc::default(), 100, Some(Box::new(move || servers.clone())));
        let text = metrics.render().unwrap();
        let parsed = Exposition::parse(&text).map_err(TestCaseError::fail)?;
        for name in &names {
            prop_assert_eq!(parsed.get("balance_sync_postgres_connections_open", &[("server", name)]), Some(7.0));
        }
    }
}

#[test]
fn servers_beyond_the_limit_and_labels_that_repeat_are_summed() {
    let connections = || {
        let many = (0..18).map(|n| (format!("s:{}", n + 2), 11));
        let few =
            [("a:1", 3), ("b:1", 5), ("b:1", 6), ("c:1", 7)].map(|(name, in_use)| (name.to_owned(), in_use));
        many.chain(few)
            .map(|(server, in_use)| ServerUsage {
                server,
                open: in_use,
                idle: 0,
                in_use,
                waiting: 0,
                limit: 10,
                clock_ahead_ms: None,
                fleet: None,
                opened: in_use,
            })
            .collect()
    };
    let metrics = Metrics::new(Arc::default(), 0, Some(Box::new(connections)));
    let parsed = Exposition::parse(&metrics.render().unwrap()).unwrap();
    let in_use = |server| parsed.value("balance_sync_postgres_connections_in_use", &[("server", server)]);
    assert_eq!([in_use("b:1"), in_use("s:19"), in_use("other")], [6.0, 11.0, 8.0]);
    assert_eq!(parsed.value("balance_sync_postgres_connections_limit", &[("server", "other")]), 20.0);
    assert_eq!(parsed.label_values("balance_sync_postgres_connections_open", "server").len(), 21);
}
