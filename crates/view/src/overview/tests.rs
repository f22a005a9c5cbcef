#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, sync::Arc, time::Duration};

use super::*;
use balance_sync_engine::rollout::{Cause, Pattern, Selection, Share};
use balance_sync_fleet::{
    status::{BUCKETS, ClockJump, LeftBehind, Rates, Rollout, ShadowReport, WorkerMode},
    tasks::{TaskName, TaskState},
};

use balance_sync_schedule::{controls::Acknowledgement, rollout::StoredRollout};
use balance_sync_store::ServerUsage;

use crate::{
    reader::{ForeignWorker, Objectives},
    record::{Counts, RedisMemory, RolloutRecord, TaskRecord, TenantRecord, WorkerRecord},
    rows::{AcknowledgedView, DeadWorker, PausedBy, ShadowView, WorkerRow},
};

pub(super) fn view(tasks: Vec<TaskRecord>) -> FleetView {
    let record = WorkerRecord {
        name: "w1".to_owned(),
        configured_name: None,
        version: "1".to_owned(),
        started_at: 0.0,
        seen_at: 100.0,
        draining: false,
        owned: 0,
        by_state: BTreeMap::new(),
        rates: Rates::default(),
        rss_bytes: 0,
        redis: "ok".to_owned(),
        tenant_service: Default::default(),
        reconcile: Default::default(),
        restarts: 0,
        postgres: Vec::new(),
        due: 0,
        oldest_due_age_ms: 0,
        exposure_p99_ms: 0,
        replicas: None,
        settings: BTreeMap::new(),
        clock_offset_ms: None,
        clock_jump: None,
        tasks,
        mode: WorkerMode::Sync.into(),
        eta_seconds: None,
        listing: None,
        rollout: Some(RolloutRecord { revision: Some(0), ..RolloutRecord::default() }),
        redis_memory: None,
    };
    FleetView {
        at: 100.0,
        redis_error: None,
        writes_refused: None,
        listed: true,
        listed_by_workers: None,
        published_eta_seconds: None,
        workers: vec![WorkerRow::new(&record, true)],
        shadows: Vec::new(),
        dead_workers: Vec::new(),
        foreign_workers: Vec::new(),
        unreadable_workers: Vec::new(),
        rollout: None,
        rollout_problem: None,
        routing: None,
        rates: Rates::default(),
        tenants: Vec::new(),
        unknown_tenants: 0,
        counts: Vec::new(),
        lags: Vec::new(),
        history: Vec::new(),
        facts: Vec::new(),
        objective_seconds: 5.0,
        objectives: Objectives {
            freshness: Duration::from_secs(5),
            exposure: Duration::from_secs(1),
            pause: Duration::from_secs(3_600),
            queue_age: Duration::from_secs(3_600),
            rollout_time: Duration::from_secs(600),
            rollout_mutations: 1_000,
            workers: 0,
        },
        clock_offset_seconds: None,
        single: false,
    }
}

fn task(name: &str, state: TaskState) -> TaskRecord {
    let state = state.into();
    let last_end = Some("panicked: over something".to_owned());
    TaskRecord { name: name.to_owned(), thread: None, state, restarts: 3, progress_at: 40.0, last_end }
}

#[test]
fn a_stalled_task_is_a_reason_and_an_essential_one_makes_the_fleet_degraded() {
    let well = view(vec![task("sampler", TaskState::Running), task("partition", TaskState::Restarting)]);
    assert_eq!(well.judge(), (Verdict::Healthy, Vec::new()));

    let (verdict, reasons) = view(vec![task("sampler", TaskState::Stalled)]).judge();
    assert_eq!(verdict, Verdict::Healthy, "tenants are served");
    let said = "Background task sampler of worker w1 has made no progress since 1970-01-01T00:00:40";
    assert!(reasons[0].starts_with(said), "{reasons:?}");
    assert!(reasons[0].ends_with(", it panicked: over something."), "{reasons:?}");

    let (verdict, _) = view(vec![task(TaskName::ActionsFollower.name(), TaskState::Stalled)]).judge();
    assert_eq!(verdict, Verdict::Degraded);
    let (verdict, _) = view(vec![task("of_a_later_version", TaskState::Stalled)]).judge();
    assert_eq!(verdict, Verdict::Healthy);
}

/// Whether anything is lost is not known, and that is not healthy.
#[test]
fn a_fleet_with_values_that_are_gone_needs_attention() {
    let mut fleet = view(Vec::new());
    let row = |id, gone| TenantRow {
        state: TenantState::Idle.into(),
        sampled: true,
        watched: true,
        values_gone: gone,
        values_gone_since: (gone > 0).then(|| format!("1970-01-01T00:00:0{gone}Z")),
        ..TenantRow::unserved(id, None)
    };
    fleet.tenants = vec![row("a", 0)];
    assert_eq!(fleet.judge(), (Verdict::Healthy, Vec::new()));
    fleet.tenants.extend([row("b", 2), row("c", 3)]);
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Attention);
    let said = "5 values of scheduled balances are gone from Redis, since 1970-01-01T00:00:02Z, and";
    assert!(reasons[0].starts_with(said) && reasons[0].ends_with(": c, b."), "{reasons:?}");
    assert_eq!(fleet.verdict_of(&fleet.tenants[1]), Verdict::Attention);
    assert!(fleet.to_do()[0].contains("evicted_keys"), "{:?}", fleet.to_do());
}

/// Wrong green is worse than red: a loss is no tenant's state and doesn't mend by itself.
#[test]
fn a_fleet_with_an_open_loss_is_not_healthy() {
    let mut fleet = view(Vec::new());
    let mut row = TenantRow {
        state: TenantState::Idle.into(),
        sampled: true,
        watched: true,
        ..TenantRow::unserved("acme", None)
    };
    row.quarantined = 3;
    fleet.tenants = vec![row];
    assert_eq!(
        fleet.judge().0,
        Verdict::Attention,
        "what is in quarantine keeps its value, and waits for an operator"
    );
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Attention);
    fleet.tenants[0].losses = 2;
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Degraded);
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Degraded);
    assert!(reasons[0].starts_with("2 balances have lost mutations or forked"), "{reasons:?}");
    assert_eq!(fleet.overview().losses, Some(2));
    fleet.tenants[0] = TenantRow { losses: 0, sampled: false, ..fleet.tenants[0].clone() };
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Unknown, "it is not known whether there are any");
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Unknown);
    assert!(reasons[0].contains("have not been read yet"), "{reasons:?}");
    fleet.tenants[0] = TenantRow { sampled: true, watched: false, ..fleet.tenants[0].clone() };
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Unknown, "what Redis has lost shows only when it is looked for");
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Unknown);
    let said = "It has not been looked at yet, or can't be, whether Redis has lost data of 1 tenant: acme.";
    assert_eq!(reasons[0], said);
}

fn acknowledged(fleet: &FleetView, since: u64, entries: u64) -> AcknowledgedView {
    let record = r#"{"tenant":"acme","by":"ann","at":40,"note":"asked the ledger","entries":3,"losses":2,"events":7,"schedules":["s"]}"#;
    let mut record: Acknowledgement = serde_json::from_str(record).unwrap();
    record.since = since;
    AcknowledgedView::new(&record, entries, fleet.at)
}

#[test]
fn acknowledged_entries_are_reported_with_their_age_and_need_no_attention_until_more_come() {
    let mut fleet = view(Vec::new());
    let mut row = TenantRow {
        state: TenantState::Idle.into(),
        sampled: true,
        watched: true,
        ..TenantRow::unserved("acme", None)
    };
    (row.quarantined, row.losses) = (3, 2);
    row.acknowledged = Some(acknowledged(&fleet, 0, 3));
    fleet.tenants = vec![row];
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Healthy);
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Healthy);
    let said = "3 balances in quarantine, 2 of them lost, are acknowledged, the first by ann 1m ago, at 1970-01-01T00:00:40.000Z \
                (asked the ledger): acme.";
    assert_eq!(reasons, [said]);
    let overview = fleet.overview();
    assert_eq!((overview.quarantined, overview.losses, overview.acknowledged), (Some(3), Some(2), 3));

    // One of them was dropped and another one came: as many as before. Or an earlier release, which counts no events, added one.
    for (since, entries) in [(1, 3), (0, 4), (u64::MAX, 3)] {
        let row = &mut fleet.tenants[0];
        row.quarantined = entries;
        row.acknowledged = None;
        let more = acknowledged(&fleet, since, entries);
        fleet.tenants[0].acknowledged = Some(more);
        let (verdict, reasons) = fleet.judge();
        assert_eq!(verdict, Verdict::Degraded, "{since} {entries}");
        let said = "(more came since ann acknowledged 3 entries at 1970-01-01T00:00:40.000Z)";
        assert!(reasons.iter().all(|reason| reason.contains(said)), "{reasons:?}");
        fleet.tenants[0].losses = 0;
        assert_eq!(fleet.judge().0, Verdict::Attention, "{since} {entries}");
        fleet.tenants[0].losses = 2;
        assert_eq!(fleet.overview().acknowledged, 0);
    }
}

#[test]
fn a_missed_exposure_objective_is_behind_while_it_lasts_and_reported_for_an_hour() {
    let mut fleet = view(Vec::new());
    let row = TenantRow {
        state: TenantState::Idle.into(),
        sampled: true,
        watched: true,
        exposure_age_seconds: 3.0,
        exposure_p99_seconds: Some(2.5),
        ..TenantRow::unserved("acme", None)
    };
    fleet.tenants = vec![row];
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Behind);
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Behind);
    fleet.judge_tenants();
    assert_eq!(fleet.overview().worst[0].verdict, Verdict::Behind, "a row says what the terminal says");
    let expected = "1 tenant is exposed: the oldest balance that only Redis has has waited 3.0 s, p99 of the last hour 2.5 s \
                    (objectives.exposure 1 s): acme.";
    assert_eq!(reasons, [expected]);
    assert_eq!(fleet.overview().backlog.exposure_p99_seconds, Some(2.5));
    fleet.tenants[0].exposure_age_seconds = 0.0;
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Healthy);
    assert!(
        reasons[0].contains("missed the objective for the exposure in the last hour: p99 2.5 s"),
        "{reasons:?}"
    );
    // For some seconds it may be exceeded, and a paused tenant is meant to.
    fleet.tenants[0].exposure_age_seconds = 3.0;
    fleet.tenants[0].exposure_p99_seconds = Some(1.0);
    assert_eq!(fleet.judge(), (Verdict::Healthy, Vec::new()));
    fleet.tenants[0].exposure_p99_seconds = Some(60.0);
    fleet.tenants[0].paused = Some(PausedBy::new("ann".to_owned(), 90.0, None));
    assert_eq!(fleet.judge().0, Verdict::Healthy);
}

#[test]
fn a_pause_that_was_forgotten_needs_attention() {
    let mut fleet = view(Vec::new());
    let paused = Some(PausedBy::new("ann".to_owned(), 90.0, Some("moving its database".to_owned())));
    let row = TenantRow {
        state: TenantState::Paused.into(),
        sampled: true,
        watched: true,
        ..TenantRow::unserved("acme", paused)
    };
    fleet.tenants = vec![row];
    let (verdict, reasons) = fleet.judge();
    assert_eq!(
        (verdict, reasons.as_slice()),
        (Verdict::Healthy, ["1 tenant is paused by hand: acme.".to_owned()].as_slice())
    );
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Healthy);

    fleet.at = 90.0 + 3_601.0;
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Attention);
    let said = "1 tenant is paused for longer than 1h (objectives.pause), the first by ann since 1970-01-01T00:01:30";
    assert!(reasons[0].contains(", 1h 1s ago (moving its database)"), "{reasons:?}");
    assert!(reasons[0].starts_with(said), "{reasons:?}");
    assert!(reasons[0].ends_with("(moving its database): acme."), "{reasons:?}");
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Attention);
}

#[test]
fn a_missing_worker_and_workers_that_differ_need_attention() {
    let mut fleet = view(Vec::new());
    fleet.objectives.workers = 2;
    assert_eq!(
        fleet.judge(),
        (Verdict::Attention, vec!["1 of 2 workers are alive (worker.expected).".to_owned()])
    );
    let mut second = fleet.workers[0].clone();
    second.name = "w2".to_owned();
    fleet.workers.push(second);
    assert_eq!(fleet.judge(), (Verdict::Healthy, Vec::new()));

    // One of an earlier version, which doesn't report its settings.
    fleet.workers[0].settings.insert("claim.mode".to_owned(), "lease".to_owned());
    assert_eq!(fleet.judge(), (Verdict::Healthy, Vec::new()));
    fleet.workers[1].settings.insert("claim.mode".to_owned(), "lock".to_owned());
    fleet.workers[1].version = "2".to_owned();
    let said = [
        "Workers differ in claim.mode: lease on w1; lock on w2.",
        "Workers differ in version: 1 on w1; 2 on w2.",
    ];
    assert_eq!(fleet.judge(), (Verdict::Attention, said.map(str::to_owned).to_vec()));
    fleet.workers[1].draining = true;
    assert_eq!(
        fleet.judge(),
        (Verdict::Attention, vec!["1 of 2 workers are alive (worker.expected).".to_owned()])
    );
}

#[test]
fn a_live_worker_whose_reports_cannot_be_read_is_alive_and_needs_attention() {
    let mut fleet = view(Vec::new());
    fleet.objectives.workers = 2;
    fleet.unreadable_workers = vec!["w2".to_owned()];
    let said = "What a live worker reports can't be read: w2. Tenants that no other worker serves are shown as not served.";
    assert_eq!(fleet.judge(), (Verdict::Attention, vec![said.to_owned()]));
    assert_eq!(fleet.overview().to_do, ["Finish the rollout, or give all workers the same settings."]);
    assert_eq!(fleet.unaware_of_rollout(), ["w2"]);
}

#[test]
fn a_worker_that_died_needs_attention_and_is_named_with_who_took_over() {
    let mut fleet = view(Vec::new());
    let dead = |name: &str, tenants: usize, unserved: usize, heirs: &[&str]| DeadWorker {
        name: name.to_owned(),
        last_seen_at: "1970-01-01T00:01:30.000Z".to_owned(),
        age_seconds: 10.0,
        tenants,
        unserved,
        taken_over_by: heirs.iter().map(|heir| (*heir).to_owned()).collect(),
    };
    let begin = "has died: last sign of life 1970-01-01T00:01:30.000Z, 10s ago;";
    for (died, end) in [
        (dead("w0", 12, 0, &["w1", "w2"]), "its 12 tenants were taken over by w1, w2."),
        (dead("w0", 1, 0, &["w1"]), "its 1 tenant was taken over by w1."),
        (dead("w0", 12, 4, &["w1"]), "4 of its 12 tenants are served by no live worker, the others by w1."),
        (dead("w0", 12, 12, &[]), "its 12 tenants are served by no live worker."),
        (dead("w0", 0, 0, &[]), "it served no tenant."),
    ] {
        fleet.dead_workers = vec![died];
        assert_eq!(fleet.judge(), (Verdict::Attention, vec![format!("Worker w0 {begin} {end}")]));
    }
    fleet.dead_workers = (0..5).map(|n| dead(&format!("d{n}"), 1, 0, &["w1"])).collect();
    let (_, reasons) = fleet.judge();
    assert_eq!((reasons.len(), reasons[3].as_str()), (4, "2 more workers have died."));
    assert_eq!(fleet.overview().dead_workers.len(), 5);
}

#[test]
fn a_worker_of_another_configuration_on_the_same_tenants_needs_attention() {
    let mut fleet = view(Vec::new());
    let settings = |form: &str| BTreeMap::from([("tenants.key_form".to_owned(), form.to_owned())]);
    fleet.workers[0].settings = settings("auto");
    let foreign = |tenants, form: &str| ForeignWorker {
        name: "w9".to_owned(),
        tenants,
        serves: std::collections::BTreeSet::new(),
        settings: settings(form),
    };
    fleet.foreign_workers = vec![foreign(2, "as_listed")];
    let said = "Worker w9 serves 2 of these tenants with other settings, and neither counts on the other: tenants.key_form as_listed \
                there, auto here.";
    assert_eq!(fleet.judge(), (Verdict::Attention, vec![said.to_owned()]));
    fleet.workers[0].settings.clear();
    let said = "Worker w9 serves 1 of these tenants with other settings, and neither counts on the other.";
    fleet.foreign_workers = vec![foreign(1, "as_listed")];
    assert_eq!(fleet.judge(), (Verdict::Attention, vec![said.to_owned()]));
}

#[test]
fn clocks_that_differ_by_more_than_a_second_need_attention() {
    let mut fleet = view(Vec::new());
    for name in ["w2", "w3"] {
        let row = WorkerRow { name: name.to_owned(), ..fleet.workers[0].clone() };
        fleet.workers.push(row);
    }
    let mut judged = |offsets: [Option<f64>; 3]| {
        for (worker, offset) in fleet.workers.iter_mut().zip(offsets) {
            worker.clock_offset_seconds = offset;
        }
        fleet.judge()
    };
    let healthy = (Verdict::Healthy, Vec::new());
    assert_eq!(judged([None, Some(1.0), Some(0.1)]), healthy);
    let end = "Times and ages are shown wrong by as much: synchronise the clocks.";
    for (offsets, said) in [
        (
            [Some(-3.25), Some(1.5), Some(0.0)],
            "Clocks differ from Redis's: that of worker w1 is 3.2 s behind, that of worker w2 1.5 s ahead.",
        ),
        ([Some(20.0), None, None], "Clocks differ from Redis's: that of worker w1 is 20.0 s ahead."),
        (
            [Some(20.0), Some(20.4), Some(20.1)],
            "Redis's clock is 20.2 s behind those of all 3 workers, which agree.",
        ),
        ([Some(0.7), Some(-0.7), None], "The clocks of workers w1 and w2 differ by 1.4 s."),
    ] {
        assert_eq!(judged(offsets), (Verdict::Attention, vec![format!("{said} {end}")]));
    }
}

#[test]
fn a_clock_of_redis_that_went_back_needs_attention_once_for_all_workers() {
    let mut fleet = view(Vec::new());
    let second = WorkerRow { name: "w2".to_owned(), ..fleet.workers[0].clone() };
    fleet.workers.push(second);
    for (worker, seconds) in fleet.workers.iter_mut().zip([3_599.8, 3_600.1]) {
        worker.clock_jump = Some(ClockJump { seconds, at: 60.0 });
    }
    let said = "Redis's clock went back by 3600.1 s at 1970-01-01T00:01:00.000Z (noticed by worker w2). Members that were scheduled \
                before are made due, lest they wait for it. Let the clock be slewed, not set.";
    assert_eq!(fleet.judge(), (Verdict::Attention, vec![said.to_owned()]));
}

#[test]
fn a_postgres_server_whose_clock_differs_by_more_than_a_second_needs_attention() {
    let measured = |server: &str, clock_ahead_ms| ServerUsage {
        server: server.to_owned(),
        open: 1,
        idle: 1,
        in_use: 0,
        waiting: 0,
        limit: 10,
        clock_ahead_ms,
        fleet: None,
        opened: 1,
    };
    let mut fleet = view(Vec::new());
    let second = WorkerRow { name: "w2".to_owned(), ..fleet.workers[0].clone() };
    fleet.workers.push(second);
    let mut judged = |of: [(Option<f64>, Vec<ServerUsage>); 2]| {
        for (worker, (offset, servers)) in fleet.workers.iter_mut().zip(of) {
            (worker.clock_offset_seconds, worker.postgres) = (offset, servers);
        }
        fleet.judge()
    };
    let healthy = (Verdict::Healthy, Vec::new());
    // Within a second, not measured, and measured by a worker that doesn't know how it compares with Redis.
    let within = vec![measured("a:5432", Some(1_000)), measured("b:5432", None)];
    assert_eq!(judged([(Some(0.0), within), (None, vec![measured("c:5432", Some(60_000))])]), healthy);
    // A host's own offset is no difference between the servers.
    assert_eq!(judged([(Some(0.9), vec![measured("a:5432", Some(900))]), (None, vec![])]), healthy);
    // Of what two have measured the least counts.
    let each = [Some(5_000), Some(100)].map(|ahead| (Some(0.0), vec![measured("a:5432", ahead)]));
    assert_eq!(judged(each), healthy);
    let off =
        vec![measured("a:5432", Some(3_200)), measured("b:5432", Some(-90_000)), measured("c:5432", Some(0))];
    let said = "Clocks of Postgres servers differ from Redis's: b:5432 90.0 s ahead, a:5432 3.2 s behind. Times in their rows are \
                wrong by as much: synchronise the clocks.";
    assert_eq!(
        judged([(Some(0.0), off.clone()), (Some(0.0), off)]),
        (Verdict::Attention, vec![said.to_owned()])
    );
    let many: Vec<_> = (0..100).map(|n| measured(&format!("s{n}:5432"), Some(5_000))).collect();
    let (_, reasons) = judged([(Some(0.0), many), (None, vec![])]);
    assert!(reasons.len() == 1 && reasons[0].contains(" more. Times"), "{reasons:?}");
}

#[test]
fn a_tenant_service_that_does_not_answer_needs_attention() {
    let mut fleet = view(Vec::new());
    for (state, verdict) in [
        ("ok", Verdict::Healthy),
        ("static", Verdict::Healthy),
        ("failing", Verdict::Attention),
        ("breaker_open", Verdict::Attention),
    ] {
        fleet.workers[0].tenant_service.state = state.to_owned();
        let judged = fleet.judge();
        assert_eq!(judged.0, verdict, "{state}: {judged:?}");
    }
    let (_, reasons) = fleet.judge();
    assert!(reasons[0].starts_with("The tenant service has not answered w1 since its start"), "{reasons:?}");
}

#[test]
fn mutations_that_took_longer_than_the_objective_are_behind() {
    let mut fleet = view(Vec::new());
    fleet.rates.lags = vec![0; BUCKETS.len() + 1];
    fleet.rates.lags[0] = 1_000;
    assert_eq!(fleet.judge().0, Verdict::Healthy);
    *fleet.rates.lags.last_mut().unwrap() = 100;
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Behind);
    assert!(reasons[0].contains("took") && reasons[0].contains("objective 5 s"), "{reasons:?}");
}

#[test]
fn a_record_that_waits_too_long_in_a_queue_of_the_ledger_needs_attention() {
    use balance_sync_domain::LedgerQueue;
    use balance_sync_fleet::status::QueueReport;

    use crate::rows::QueueView;

    let backup = |oldest: Option<i64>, seen: Option<i64>| QueueReport {
        depth: Some(7),
        oldest_at_ms: oldest,
        seen_at_ms: seen,
        ..QueueReport::empty(LedgerQueue::Backup)
    };
    let of = |report: QueueReport| {
        let mut fleet = view(Vec::new());
        fleet.at = 1e6;
        let mut row = TenantRow::unserved("acme", None);
        (row.state, row.sampled, row.watched) = (StateView::Is(TenantState::Idle), true, true);
        row.queues = Some(vec![QueueView::from(&report)]);
        fleet.tenants = vec![row];
        let verdict = fleet.verdict_of(&fleet.tenants[0]);
        let (whole, reasons) = fleet.judge();
        assert_eq!(verdict, whole, "{reasons:?}");
        (whole, reasons, fleet.overview().queues.remove(0))
    };
    // A million seconds after 1970 less the hour that is allowed.
    let allowed_ms = 996_400_000;
    assert_eq!(of(backup(Some(allowed_ms), None)).0, Verdict::Healthy);
    let (verdict, reasons, sum) = of(backup(Some(allowed_ms - 1_000), None));
    assert_eq!(verdict, Verdict::Attention);
    let said = "The ledger is not working off its queue backup of 1 tenant: 7 records, the oldest since 1970-01-12T12:46:39.000Z, \
                which is longer than 1h (queues.oldest): acme.";
    assert_eq!(reasons, [said]);
    assert_eq!((sum.depth, sum.tenants, sum.unknown_tenants), (7, 1, 0));
    assert_eq!(sum.oldest_at.as_deref(), Some("1970-01-12T12:46:39.000Z"));
    // What a scan has seen so far is enough to know that it is late, and is not shown as the oldest.
    let (verdict, _, sum) = of(backup(None, Some(allowed_ms - 1_000)));
    assert_eq!((verdict, sum.oldest_at), (Verdict::Attention, None));
    assert_eq!(sum.oldest_seen_at.as_deref(), Some("1970-01-12T12:46:39.000Z"));
    assert_eq!(of(backup(None, None)).0, Verdict::Healthy, "not known yet");
    // A queue that can't be read is reported and leaves the verdict alone.
    let unread = QueueReport::unknown(LedgerQueue::Backup, Some("missing: +hlen".to_owned()));
    let (verdict, reasons, sum) = of(unread);
    assert_eq!((verdict, sum.unknown_tenants, sum.depth), (Verdict::Healthy, 1, 0));
    assert_eq!(reasons, ["The ledger's queue backup of 1 tenant can't be read (missing: +hlen): acme."]);
    // An older record may wait at a tenant of which nothing is known.
    let mut fleet = view(Vec::new());
    let mut row = TenantRow::unserved("acme", None);
    row.queues = Some(vec![QueueView::from(&backup(Some(1_000), None))]);
    fleet.tenants = vec![row, TenantRow::unserved("globex", None)];
    let sum = fleet.overview().queues.remove(0);
    assert_eq!((sum.unknown_tenants, sum.oldest_at), (1, None));
    assert_eq!(sum.oldest_seen_at.as_deref(), Some("1970-01-01T00:00:01.000Z"));
}

/// A row as a shadow alone sees it, of which it has found so much.
fn looked_at(left_behind: u64, lost: u64) -> TenantRow {
    let report = ShadowReport { left_behind, lost, ..ShadowReport::default() };
    let found = LeftBehind { member: "m".to_owned(), lost: true, version: 2, row_version: 1, since: 90.0 };
    let shadow = ShadowReport { examples: vec![found], ..report };
    let record: TenantRecord = serde_json::from_value(serde_json::json!({
        "state": "shadow", "since": 90.0, "shadow": shadow,
    }))
    .unwrap();
    let records = [("s1", &record)];
    let (row, _) = TenantRow::only_looked_at("acme", &records, None, 100.0).unwrap();
    TenantRow { shadow: ShadowView::of(&records), ..row }
}

#[test]
fn a_shadow_alone_is_never_healthy_and_beside_workers_says_only_what_it_has_found() {
    let mut fleet = view(Vec::new());
    let shadow = WorkerRow { name: "s1".to_owned(), ..fleet.workers[0].clone() };
    fleet.shadows = vec![shadow];
    assert_eq!(fleet.judge(), (Verdict::Healthy, Vec::new()), "beside one that writes");
    fleet.objectives.workers = 2;
    assert_eq!(fleet.judge().0, Verdict::Attention, "it is none of the expected");
    fleet.objectives.workers = 0;
    // What differs on a shadow matters to nobody.
    fleet.shadows[0].version = "2".to_owned();
    assert_eq!(fleet.judge(), (Verdict::Healthy, Vec::new()));

    let writers = std::mem::take(&mut fleet.workers);
    fleet.tenants = vec![TenantRow { watched: true, ..looked_at(0, 0) }];
    assert!(fleet.tenants[0].owners.is_empty());
    let (verdict, reasons) = fleet.judge();
    assert_eq!((verdict, reasons.len()), (Verdict::Attention, 1));
    assert!(reasons[0].starts_with("Only shadows are live (s1): they look and write nothing"), "{reasons:?}");
    fleet.shadows.clear();
    assert_eq!(fleet.judge().0, Verdict::Unknown, "nobody has reported");

    fleet.workers = writers;
    fleet.tenants = vec![TenantRow { watched: true, ..looked_at(3, 1) }];
    fleet.shadows = vec![WorkerRow { name: "s1".to_owned(), ..fleet.workers[0].clone() }];
    let (verdict, reasons) = fleet.judge();
    assert_eq!((verdict, reasons.len()), (Verdict::Attention, 2));
    assert!(reasons[0].starts_with("3 balances of 1 tenant were left behind by whoever writes today"));
    assert!(reasons[1].starts_with("1 balances of 1 tenant were lost by whoever writes today"));
    assert_eq!(fleet.verdict_of(&fleet.tenants[0]), Verdict::Attention);
    let summary = fleet.overview().shadow.unwrap();
    assert_eq!((summary.left_behind, summary.lost, summary.tenants), (3, 1, 1));

    let memory = RedisMemory {
        policy: "allkeys-lru".to_owned(),
        may_evict: true,
        used_bytes: 1 << 20,
        max_bytes: 2 << 20,
        evicted_keys: 7,
    };
    fleet.tenants.clear();
    fleet.shadows[0].redis_memory = Some(memory);
    let said = "Redis may evict balances before they are written (maxmemory-policy allkeys-lru): 1.0 of 2.0 MiB in use, 7 keys \
                evicted since its start.";
    assert_eq!(fleet.judge(), (Verdict::Healthy, vec![said.to_owned()]));
}

pub(super) fn served(id: &str) -> TenantRow {
    TenantRow {
        state: TenantState::Idle.into(),
        sampled: true,
        watched: true,
        ..TenantRow::unserved(id, None)
    }
}

fn rolled_out(include: &[&str], at: f64) -> Arc<Rollout> {
    let include = include.iter().map(|text| Pattern::parse(text).unwrap()).collect();
    let selection = Selection::new(include, BTreeSet::new(), Share::NONE).unwrap();
    let stored = StoredRollout {
        revision: "7".to_owned(),
        selection: Ok(Some(selection)),
        at,
        by: "ann".to_owned(),
        note: "pilots".to_owned(),
        change: "add acme".to_owned(),
    };
    Arc::new(Rollout::in_force(Some(stored), &Selection::default()).unwrap())
}

/// Neither hidden nor this fleet's to be judged by.
#[test]
fn a_tenant_outside_the_rollout_is_shown_and_is_neither_unserved_nor_behind() {
    let mut fleet = view(Vec::new());
    fleet.workers[0].rollout = Some(RolloutRecord { revision: Some(7), ..RolloutRecord::default() });
    fleet.rollout = Some(rolled_out(&["acme"], 10.0));
    let mut outside = TenantRow::not_in_rollout("globex", None, Cause::OutsideShare);
    (outside.sampled, outside.due, outside.oldest_due_age_seconds) = (true, 9, 77.0);
    outside.shortest_life_seconds = Some(10.0);
    fleet.tenants = vec![served("acme"), outside];
    fleet.counts = vec![Counts::default(); 2];
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Healthy);
    let said = "1 of 2 tenants are in the rollout (0% of the tenants, included: acme), as ann has set it at \
                1970-01-01T00:00:10.000Z (pilots): 1 is left to the ledger's own worker; the oldest of their due balances has \
                waited 77.0 s.";
    assert_eq!(reasons, [said]);
    let overview = fleet.overview();
    assert_eq!(
        (overview.tenants.unserved, overview.tenants.not_in_rollout, overview.tenants.total),
        (0, 1, 2)
    );
    assert_eq!(overview.backlog.due, Some(0), "it is another worker's");
    assert_eq!((overview.rollout.selected, overview.rollout.revision), (Some(1), Some(7)));

    // What this fleet has listed of it is its own to settle, and what can't be read isn't known.
    fleet.tenants[1].quarantined = 2;
    assert_eq!(fleet.judge().0, Verdict::Attention);
    assert_eq!(fleet.verdict_of(&fleet.tenants[1]), Verdict::Attention);
    fleet.tenants[1].losses = 1;
    assert_eq!(fleet.judge().0, Verdict::Degraded);
    (fleet.tenants[1].quarantined, fleet.tenants[1].losses, fleet.tenants[1].sampled) = (0, 0, false);
    assert_eq!(fleet.judge().0, Verdict::Unknown);

    // A fleet that serves no tenant is not healthy.
    fleet.tenants[1].sampled = true;
    fleet.rollout = Some(rolled_out(&[], 10.0));
    fleet.tenants[0] =
        TenantRow { sampled: true, ..TenantRow::not_in_rollout("acme", None, Cause::OutsideShare) };
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Attention);
    assert!(reasons[0].starts_with("None of the 2 tenants is in the rollout"), "{reasons:?}");
}

#[test]
fn workers_that_do_not_follow_the_rollout_are_named() {
    let mut fleet = view(Vec::new());
    fleet.rollout = Some(rolled_out(&["acme"], 90.0));
    fleet.tenants = vec![served("acme")];
    // It was changed a moment ago.
    let followed =
        |fleet: &FleetView| fleet.judge().1.iter().any(|reason| reason.contains("don't follow revision 7"));
    assert!(!followed(&fleet));
    fleet.at = 106.0;
    assert!(followed(&fleet));
    assert_eq!(fleet.judge().0, Verdict::Attention);
    fleet.workers[0].rollout = None;
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Attention);
    assert!(
        reasons[0].contains("earlier release know no rollout") && reasons[0].ends_with("w1."),
        "{reasons:?}"
    );

    let problem = Some("what revision \"8\" selects can't be read: EOF.".to_owned());
    fleet.workers[0].rollout =
        Some(RolloutRecord { revision: Some(7), problem: problem.clone(), ..RolloutRecord::default() });
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Attention);
    assert!(reasons[0].contains("EOF; the last one that was known stays in force."), "{reasons:?}");
    fleet.workers[0].rollout = Some(RolloutRecord { problem, ..RolloutRecord::default() });
    let (verdict, reasons) = fleet.judge();
    assert_eq!(verdict, Verdict::Degraded);
    assert!(reasons[0].contains("w1 serve no tenant until it can"), "{reasons:?}");
}

#[test]
fn a_command_shows_when_the_backlog_will_be_gone_as_workers_have_seen_it() {
    let mut fleet = view(Vec::new());
    fleet.tenants = vec![TenantRow { due: 5, ..served("acme") }];
    assert_eq!(fleet.overview().backlog.eta_seconds, None);
    fleet.published_eta_seconds = Some(90.0);
    assert_eq!(fleet.overview().backlog.eta_seconds, Some(90.0));
    // Of numbers that are read no more nothing follows.
    fleet.tenants[0] =
        TenantRow { sampled: false, numbers_age_seconds: Some(4.0), ..fleet.tenants[0].clone() };
    assert_eq!(fleet.overview().backlog.eta_seconds, None);
}

#[test]
fn what_live_workers_list_is_no_fault_and_is_said() {
    let mut fleet = view(Vec::new());
    fleet.listed_by_workers = Some(0);
    let said = "The tenant service doesn't answer this command: tenants are shown as live workers list them";
    assert_eq!(fleet.judge(), (Verdict::Healthy, vec![format!("{said}.")]));
    fleet.listed_by_workers = Some(3);
    assert_eq!(fleet.judge().1, [format!("{said}, without the 3 that are not in the rollout.")]);
}
