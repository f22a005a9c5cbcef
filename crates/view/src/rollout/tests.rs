#![allow(clippy::unwrap_used)]

use std::{collections::BTreeSet, time::Duration};

use balance_sync_engine::outcome::Outcome;
use balance_sync_fleet::status::{Rates, Rollout, TenantState};

use super::{stage::StageBook, *};
use crate::{
    reader::Objectives,
    record::{Counts, RolloutRecord, WorkerRecord},
    rows::WorkerRow,
};

fn selection(include: &[&str]) -> Selection {
    let include = include.iter().map(|text| Pattern::parse(text).unwrap()).collect();
    Selection::new(include, BTreeSet::new(), Share::NONE).unwrap()
}

fn stored(revision: u64, include: &[&str], at: f64) -> StoredRollout {
    StoredRollout {
        revision: revision.to_string(),
        selection: Ok(Some(selection(include))),
        at,
        by: "ann".to_owned(),
        note: "why".to_owned(),
        change: format!("change {revision}"),
    }
}

fn row(id: &str) -> TenantRow {
    TenantRow {
        state: TenantState::Idle.into(),
        sampled: true,
        watched: true,
        ..TenantRow::unserved(id, None)
    }
}

/// A fleet of `a` and `b` at that time, with so many rows written of each.
fn fleet(at: f64, rollout: StoredRollout, written: [u64; 2]) -> FleetView {
    let counts = written.map(|written| {
        let mut counts = Counts::default();
        counts.outcomes[Outcome::Updated] = written;
        counts
    });
    let mut lags = vec![0; 8];
    lags[7] = 10;
    FleetView {
        clock_offset_seconds: None,
        shadows: Vec::new(),
        dead_workers: Vec::new(),
        foreign_workers: Vec::new(),
        unreadable_workers: Vec::new(),
        rollout: Some(Arc::new(Rollout::in_force(Some(rollout), &Selection::default()).unwrap())),
        rollout_problem: None,
        routing: None,
        unknown_tenants: 0,
        at,
        redis_error: None,
        writes_refused: None,
        listed: true,
        listed_by_workers: None,
        published_eta_seconds: None,
        workers: Vec::new(),
        rates: Rates::default(),
        lags: vec![lags.clone(), lags],
        tenants: vec![row("a"), row("b")],
        counts: counts.into(),
        history: Vec::new(),
        facts: Vec::new(),
        objective_seconds: 5.0,
        objectives: Objectives {
            freshness: Duration::from_secs(5),
            exposure: Duration::from_secs(1),
            pause: Duration::from_secs(3_600),
            queue_age: Duration::from_secs(3_600),
            rollout_time: Duration::from_secs(60),
            rollout_mutations: 100,
            workers: 0,
        },
        single: false,
    }
}

fn recorded(stage: &Stage) -> HashMap<String, String> {
    HashMap::from([stage.write()])
}

#[test]
fn a_stage_counts_its_tenants_from_its_beginning_and_goes_on_with_another_recorder() {
    let first = || stored(1, &["a"], 100.0);
    let mut book = StageBook::default();
    // What was before the first look is no part of it, nor is what others write.
    let stage = book.look(110.0, &fleet(110.0, first(), [1_000, 5_000])).unwrap();
    assert_eq!((stage.written, stage.seconds), (0, 0.0));
    let mut view = fleet(120.0, first(), [1_040, 6_000]);
    view.tenants[0].losses = 2;
    view.tenants[0].quarantined = 5;
    view.tenants[1].losses = 7;
    let stage = book.look(120.0, &view).unwrap();
    assert_eq!((stage.written, stage.lost, stage.quarantined, stage.seconds), (40, 2, 3, 10.0));
    assert_eq!(stage.lags.iter().sum::<u64>(), 0, "what another worker has left is late");

    // Another worker goes on: the time between is not watched, and what was counted is kept.
    let mut other = StageBook::open(recorded(&stage));
    let view = fleet(150.0, first(), [1_100, 9_000]);
    assert_eq!(other.look(150.0, &view).unwrap(), stage);
    let stage = other.look(160.0, &fleet(160.0, first(), [1_101, 9_000])).unwrap();
    assert_eq!((stage.written, stage.lost, stage.seconds), (41, 2, 20.0));
    assert_eq!(stage.lags.iter().sum::<u64>(), 10, "of the tenants in it alone");
    // A gap, and counters that begin anew.
    let stage = other.look(400.0, &fleet(400.0, first(), [3, 0])).unwrap();
    assert_eq!((stage.written, stage.seconds), (41, 20.0));
    // Not known is not none: what is known again is not new.
    let mut unsampled = fleet(410.0, first(), [3, 0]);
    (unsampled.tenants[0].sampled, unsampled.tenants[0].losses) = (false, 0);
    other.look(410.0, &unsampled).unwrap();

    // The next stage begins with nothing.
    let stage = other.look(420.0, &fleet(420.0, stored(2, &["a", "b"], 415.0), [4, 2])).unwrap();
    assert_eq!((stage.revision, stage.written, stage.seconds), (2, 3, 0.0));
    assert_eq!(stage.lags.iter().sum::<u64>(), 0, "they are of the stage before");
    let stage = other.look(430.0, &fleet(430.0, stored(2, &["a", "b"], 415.0), [5, 12])).unwrap();
    assert_eq!((stage.written, stage.seconds), (14, 10.0));
}

#[test]
fn what_is_recorded_of_another_stage_or_by_hand_is_not_taken_for_this_one() {
    let stage = Stage { revision: 65, seconds: 10.0, ..Stage::default() };
    // Both have the same field.
    assert_eq!(Stage::read(&recorded(&stage), 1), None);
    assert_eq!(Stage::read(&recorded(&stage), 65), Some(stage));
    for text in ["{", "[]", r#"{"revision":1,"seconds":1e999}"#, r#"{"revision":1,"written":-1}"#] {
        let recorded = HashMap::from([("s:1".to_owned(), text.to_owned())]);
        assert_eq!(Stage::read(&recorded, 1), None, "{text}");
    }
}

#[test]
fn the_advice_follows_from_the_present_stage() {
    let good = Stage {
        revision: 1,
        began: 100.0,
        seconds: 61.0,
        written: 100,
        lags: vec![0, 5],
        ..Stage::default()
    };
    let view = |at: f64| fleet(at, stored(1, &["a"], 100.0), [0, 0]);
    let advice = |view: &FleetView, stage: &Stage| {
        let report = report(view, &[stored(1, &["a"], 100.0)], &recorded(stage));
        assert!(report.sentence.ends_with('.'), "{}", report.sentence);
        report.advice
    };
    assert_eq!(advice(&view(200.0), &good), Advice::Widen);
    assert_eq!(advice(&view(200.0), &Stage { seconds: 59.0, ..good.clone() }), Advice::Wait);
    assert_eq!(advice(&view(200.0), &Stage { written: 99, ..good.clone() }), Advice::Wait);
    assert_eq!(advice(&view(200.0), &Stage { lost: 1, ..good.clone() }), Advice::Stop);
    assert_eq!(advice(&view(200.0), &Stage { forked: 1, ..good.clone() }), Advice::Stop);
    assert_eq!(
        advice(&view(200.0), &Stage { revision: 2, ..good.clone() }),
        Advice::Wait,
        "of another stage"
    );

    // Of the tenants in it alone.
    let mut outside = view(200.0);
    outside.tenants[1] = TenantRow { oldest_due_age_seconds: 99.0, due: 3, losses: 1, ..row("b") };
    assert_eq!(advice(&outside, &good), Advice::Widen);
    let mut behind = view(200.0);
    behind.tenants[0] = TenantRow { oldest_due_age_seconds: 99.0, due: 3, ..row("a") };
    assert_eq!(advice(&behind, &good), Advice::Stop);
    let mut lost = view(200.0);
    lost.tenants[0] = TenantRow { quarantined: 1, losses: 1, ..row("a") };
    assert_eq!(advice(&lost, &good), Advice::Stop);

    // Workers may take a moment to begin with a tenant.
    let without_worker = |at: f64| {
        let mut view = view(at);
        view.tenants[0] = TenantRow::unserved("a", None);
        view
    };
    assert_eq!(advice(&without_worker(110.0), &good), Advice::Wait);
    assert_eq!(advice(&without_worker(200.0), &good), Advice::Stop);

    // What isn't known widens nothing.
    let mut unknown = view(200.0);
    unknown.tenants[0].watched = false;
    assert_eq!(advice(&unknown, &good), Advice::Wait);
    assert_eq!(advice(&FleetView { listed: false, ..view(200.0) }, &good), Advice::Wait);
    assert_eq!(advice(&FleetView { listed_by_workers: Some(0), ..view(200.0) }, &good), Advice::Wait);
    assert_eq!(advice(&FleetView { unknown_tenants: 1, ..view(200.0) }, &good), Advice::Wait);
    assert_eq!(advice(&FleetView { rollout: None, ..view(200.0) }, &good), Advice::Wait);
    let away = FleetView { redis_error: Some("away".to_owned()), ..view(200.0) };
    assert_eq!(advice(&away, &good), Advice::Wait);
}

/// A live worker as an earlier release reports itself: without a rollout.
fn earlier_worker(name: &str) -> WorkerRow {
    let record: WorkerRecord = serde_json::from_value(serde_json::json!({
        "name": name, "version": "0.0.9", "started_at": 0.0, "seen_at": 100.0, "draining": false, "owned": 0, "by_state": {},
        "rates": Rates::default(), "rss_bytes": 0, "redis": "ok",
        "tenant_service": {"state": "ok", "last_success_at": null, "failures": 0},
        "reconcile": {"passes": 0, "last_at": null, "last_duration_seconds": 0.0},
        "restarts": 0, "postgres": [], "due": 0, "oldest_due_age_ms": 0, "replicas": null,
    }))
    .unwrap();
    WorkerRow::new(&record, true)
}

#[test]
fn beside_workers_that_know_no_rollout_nothing_is_widened() {
    let good = Stage {
        revision: 1,
        began: 100.0,
        seconds: 61.0,
        written: 100,
        lags: vec![0, 5],
        ..Stage::default()
    };
    let mut view = fleet(200.0, stored(1, &["a"], 100.0), [0, 0]);
    let follows = RolloutRecord { revision: Some(1), ..RolloutRecord::default() };
    view.workers = vec![
        WorkerRow { rollout: Some(follows), ..earlier_worker("one") },
        earlier_worker("two"),
        earlier_worker("three"),
    ];
    let report = |view: &FleetView| report(view, &[stored(1, &["a"], 100.0)], &recorded(&good));
    assert_eq!(
        report(&view).sentence,
        "Stop: workers of an earlier release serve tenants that are not in it as well: two, three."
    );
    assert_eq!(view.unaware_of_rollout(), ["two", "three"]);
    // One on its way out gives its tenants up; and where all are in it, there are no others.
    view.workers[1].draining = true;
    view.workers.pop();
    assert_eq!(report(&view).advice, Advice::Widen);
    view.workers[1].draining = false;
    assert_eq!(report(&view).advice, Advice::Stop);
    let mut all = stored(1, &["a"], 100.0);
    all.selection = Ok(Some(Selection::default()));
    view.rollout = Some(Arc::new(Rollout::in_force(Some(all), &Selection::default()).unwrap()));
    assert_ne!(report(&view).advice, Advice::Stop);
}

#[test]
fn stages_are_shown_with_what_is_known_of_them() {
    let view = fleet(200.0, stored(2, &["a"], 150.0), [0, 0]);
    let stage = Stage { revision: 2, seconds: 40.0, written: 7, ..Stage::default() };
    let history = vec![stored(2, &["a"], 150.0), stored(1, &["a", "b"], 100.0)];
    let report = report(&view, &history, &recorded(&stage));
    let shown: Vec<_> = report
        .stages
        .iter()
        .map(|stage| (stage.revision, stage.tenants, stage.written, stage.drift))
        .collect();
    assert_eq!(shown, [(2, Some(1), Some(7), Some(0)), (1, Some(2), None, None), (0, None, None, None)]);
    assert_eq!((report.now.selected, report.now.total, report.now.is_configured), (Some(1), 2, false));
}

#[test]
fn what_is_wanted_is_read_with_what_belongs_to_it() {
    let texts = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let parse =
        |what: &str, share: Option<&str>, tenants: &[&str]| Wanted::parse(what, share, &texts(tenants));
    assert_eq!(parse("set", Some("5%"), &[]).unwrap().to_string(), "set 5%");
    assert_eq!(parse("add", None, &["acme", "eu-*"]).unwrap().to_string(), "add acme eu-*");
    assert_eq!(parse("reset", None, &[]).unwrap(), Wanted::Reset);
    for (what, share, tenants) in [
        ("set", None, &[][..]),
        ("set", Some("5"), &[]),
        ("set", Some("5%"), &["acme"]),
        ("add", None, &[]),
        ("add", Some("5%"), &["acme"]),
        ("remove", None, &["a:b"]),
        ("all", Some("5%"), &[]),
        ("none", None, &["acme"]),
        ("widen", None, &[]),
    ] {
        assert!(parse(what, share, tenants).is_err(), "{what} {share:?} {tenants:?}");
    }
    let many: Vec<String> = (0..1_000).map(|n| format!("tenant-{n}")).collect();
    let text = Wanted::parse("add", None, &many).unwrap().to_string();
    assert!(text.chars().count() <= 201 && text.ends_with('…'), "{text}");
}
