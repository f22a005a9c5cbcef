#![allow(clippy::unwrap_used)]

use std::{collections::BTreeMap, time::Duration};

use balance_sync_engine::outcome::Outcome;
use balance_sync_fleet::status::{Rates, Reason, TenantState};
use balance_sync_schedule::controls::LogEntry;

use super::{
    book::{Book, Changes},
    month::Month,
    record::{ACTIVE, INCIDENTS, MonthRecord, NAMES, TENANTS, TEXT},
    summary::Report,
};
use crate::{
    reader::{FleetView, Objectives},
    record::Counts,
    rows::{PausedBy, StateView, TenantRow, at},
};

/// Redis, as far as the record is concerned.
#[derive(Default)]
struct Redis(BTreeMap<Month, std::collections::HashMap<String, String>>);

impl Redis {
    fn write(&mut self, changes: Vec<Changes>) {
        for (month, fields) in changes {
            self.0.entry(month).or_default().extend(fields);
        }
    }

    fn month(&self, name: &str) -> MonthRecord {
        let month = Month::parse(name).unwrap();
        self.0.get(&month).map(|fields| MonthRecord::read(month, fields)).unwrap_or_default()
    }

    fn book(&self, now: f64) -> Book {
        let month = Month::of(now);
        Book::open(now, self.month(&month.to_string()), &self.month(&month.before().to_string()))
    }

    fn report(&self, name: &str, now: f64) -> Report {
        Report::new(Month::parse(name).unwrap(), &self.month(name), now)
    }
}

fn tenant(id: &str) -> TenantRow {
    TenantRow {
        state: TenantState::Idle.into(),
        sampled: true,
        watched: true,
        ..TenantRow::unserved(id, None)
    }
}

fn broken(id: &str, since: f64, exposure: f64) -> TenantRow {
    TenantRow {
        state: TenantState::Degraded.into(),
        reason: Some(Reason::PostgresConnection.into()),
        since: Some(at(since)),
        exposure_age_seconds: exposure,
        ..tenant(id)
    }
}

fn fleet(tenants: Vec<(TenantRow, u64)>) -> FleetView {
    let (tenants, counts): (Vec<TenantRow>, Vec<Counts>) = tenants
        .into_iter()
        .map(|(row, updated)| {
            let mut counts = Counts::default();
            counts.outcomes[Outcome::Updated] = updated;
            (row, counts)
        })
        .unzip();
    let mut lags = vec![0; 8];
    lags[7] = 10;
    FleetView {
        clock_offset_seconds: None,
        shadows: Vec::new(),
        dead_workers: Vec::new(),
        foreign_workers: Vec::new(),
        unreadable_workers: Vec::new(),
        rollout: None,
        rollout_problem: None,
        routing: None,
        unknown_tenants: 0,
        at: 0.0,
        redis_error: None,
        writes_refused: None,
        listed: true,
        listed_by_workers: None,
        published_eta_seconds: None,
        workers: Vec::new(),
        rates: Rates { lags: lags.clone(), ..Rates::default() },
        lags: tenants.iter().map(|_| Vec::new()).collect(),
        tenants,
        counts,
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
        single: false,
    }
}

fn quiet() -> FleetView {
    fleet(vec![(tenant("acme"), 0)])
}

/// A look every ten seconds.
fn looks(redis: &mut Redis, book: &mut Book, from: f64, to: f64, view: &FleetView) {
    let mut now = from;
    while now <= to {
        redis.write(book.look(now, view));
        now += 10.0;
    }
}

fn start(month: &str) -> f64 {
    Month::parse(month).unwrap().start()
}

#[test]
fn only_time_between_two_looks_is_recorded_and_a_gap_is_unknown() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let mut book = redis.book(begin);
    looks(&mut redis, &mut book, begin, begin + 600.0, &quiet());
    // A worker that takes over, or Redis away: nothing is known of an hour.
    let mut book = redis.book(begin + 4_200.0);
    looks(&mut redis, &mut book, begin + 4_200.0, begin + 4_800.0, &quiet());
    let report = redis.report("2026-11", begin + 4_800.0);
    assert_eq!((report.recorded.seconds, report.recorded.missing_seconds), (1_200.0, 3_600.0));
    assert_eq!(report.recorded.began_at.as_deref(), Some("2026-11-01T00:00:00.000Z"));
    // Nor does the same worker know what it hasn't seen.
    looks(
        &mut redis,
        &mut book,
        begin + 5_000.0,
        begin + 5_000.0,
        &fleet(vec![(broken("acme", begin, 9.0), 0)]),
    );
    let report = redis.report("2026-11", begin + 5_000.0);
    assert_eq!((report.recorded.seconds, report.fleet.unwrap().exposed_seconds), (1_200.0, 0.0));

    let never = redis.report("2026-10", begin + 5_000.0);
    assert!(!never.is_known() && never.finished);
    assert_eq!((never.days.len(), never.recorded.missing_seconds), (31, 31.0 * 86_400.0));
    assert!(never.days.iter().all(|day| day.figures.is_none()));
    let future = redis.report("2026-12", begin);
    assert_eq!((future.days.len(), future.recorded.missing_seconds), (0, 0.0));
}

#[test]
fn days_begin_and_end_at_midnight_utc() {
    let (mut redis, midnight) = (Redis::default(), start("2026-11") + 2.0 * 86_400.0);
    let mut book = redis.book(midnight - 107.0);
    let down = fleet(vec![(broken("acme", midnight - 107.0, 3.0), 0)]);
    looks(&mut redis, &mut book, midnight - 107.0, midnight + 53.0, &down);
    let report = redis.report("2026-11", midnight + 53.0);
    let of = |day: usize| {
        let day = &report.days[day - 1];
        (day.day.as_str(), day.recorded_seconds, day.figures.as_ref().unwrap().exposed_seconds)
    };
    assert_eq!(of(2), ("2026-11-02", 107.0, 107.0));
    assert_eq!(of(3), ("2026-11-03", 53.0, 53.0));
    assert!(report.days[0].figures.is_none(), "nothing is recorded of the first day");
}

#[test]
fn an_incident_over_the_end_of_a_month_is_in_both_and_each_has_its_part() {
    let (mut redis, december) = (Redis::default(), start("2026-12"));
    let down = fleet(vec![(broken("acme", december - 1_000.0, 700.0), 0), (tenant("beta"), 0)]);
    let mut book = redis.book(december - 604.0);
    looks(&mut redis, &mut book, december - 604.0, december + 296.0, &down);
    looks(&mut redis, &mut book, december + 306.0, december + 366.0, &quiet());
    let november = redis.report("2026-11", december + 366.0);
    let incident = &november.incidents[0];
    assert_eq!((incident.seconds, incident.open, incident.continued), (1_000.0, true, false));
    assert_eq!(incident.names, ["acme"]);
    assert_eq!(november.causes["postgres_connection"].seconds, 1_000.0);
    assert_eq!(november.fleet.as_ref().unwrap().degraded_seconds, 604.0);
    let december = redis.report("2026-12", december + 366.0);
    let incident = &december.incidents[0];
    assert_eq!((incident.seconds, incident.open, incident.continued), (306.0, false, true));
    assert_eq!(december.causes["postgres_connection"].seconds, 306.0);
    // The ten seconds before a look are as that look saw them.
    assert_eq!(december.fleet.as_ref().unwrap().degraded_seconds, 296.0);
    assert_eq!(december.tenants[0].figures.exposure_p99_seconds, Some(700.0));
}

#[test]
fn a_clock_that_goes_back_over_the_end_of_a_month_and_forward_again_overwrites_nothing() {
    let (mut redis, december) = (Redis::default(), start("2026-12"));
    let mut book = redis.book(december - 100.0);
    looks(&mut redis, &mut book, december - 100.0, december + 100.0, &quiet());
    for now in [december - 1_000.0, december + 200.0] {
        let month = book.other_month(now).unwrap();
        let before = redis.month(&month.before().to_string());
        let rest = book.switch(now, redis.month(&month.to_string()), &before).unwrap();
        redis.write(vec![rest]);
        looks(&mut redis, &mut book, now, now + 50.0, &quiet());
    }
    assert_eq!(redis.report("2026-11", december + 250.0).recorded.seconds, 150.0);
    assert_eq!(redis.report("2026-12", december + 250.0).recorded.seconds, 150.0);
    // A month of which nothing is recorded is begun by the look.
    assert_eq!(book.switch(start("2027-01"), MonthRecord::default(), &MonthRecord::default()), None);
}

#[test]
fn a_successor_goes_on_with_an_incident_and_counts_no_loss_again() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let lost = |losses| TenantRow { losses, ..tenant("acme") };
    let mut book = redis.book(begin);
    looks(&mut redis, &mut book, begin, begin + 20.0, &quiet());
    let view = fleet(vec![(lost(3), 0), (broken("beta", begin + 25.0, 2.0), 0)]);
    looks(&mut redis, &mut book, begin + 30.0, begin + 90.0, &view);
    // It was killed; the first look of the next one comes 40 s later.
    let mut book = redis.book(begin + 130.0);
    let view = fleet(vec![(lost(5), 0), (broken("beta", begin + 25.0, 2.0), 0)]);
    looks(&mut redis, &mut book, begin + 130.0, begin + 150.0, &view);
    looks(
        &mut redis,
        &mut book,
        begin + 160.0,
        begin + 220.0,
        &fleet(vec![(lost(5), 0), (tenant("beta"), 0)]),
    );
    let report = redis.report("2026-11", begin + 220.0);
    assert_eq!(report.incidents.len(), 1, "{report:?}");
    assert_eq!((report.incidents[0].seconds, report.causes["postgres_connection"].incidents), (135.0, 1));
    assert_eq!(report.fleet.as_ref().unwrap().lost, 5);
    let acme = &report.tenants[0];
    assert_eq!((acme.id.as_str(), acme.figures.lost, acme.open_losses), ("acme", 5, 5));
    // Dropped ones are no new ones, and a month that begins has listed nothing itself.
    let december = start("2026-12");
    let mut book = redis.book(december + 5.0);
    looks(&mut redis, &mut book, december + 5.0, december + 65.0, &fleet(vec![(lost(2), 0)]));
    let report = redis.report("2026-12", december + 65.0);
    assert_eq!((report.fleet.unwrap().lost, report.tenants[0].open_losses), (0, 2));

    // One whose end no look has seen.
    let mut redis = Redis::default();
    let mut book = redis.book(begin);
    looks(&mut redis, &mut book, begin + 30.0, begin + 90.0, &view);
    let mut book = redis.book(begin + 600.0);
    looks(&mut redis, &mut book, begin + 600.0, begin + 660.0, &quiet());
    let incident = &redis.report("2026-11", begin + 660.0).incidents[0];
    assert!(incident.end_unknown && !incident.open);
    assert_eq!(incident.seconds, 65.0);
}

#[test]
fn what_is_listed_as_lost_when_a_record_begins_is_not_new() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let mut book = redis.book(begin);
    let lost = |losses, sampled| fleet(vec![(TenantRow { losses, sampled, ..tenant("acme") }, 900)]);
    looks(&mut redis, &mut book, begin, begin, &lost(7, true));
    // Not known for a moment.
    looks(&mut redis, &mut book, begin + 10.0, begin + 10.0, &lost(0, false));
    looks(&mut redis, &mut book, begin + 20.0, begin + 60.0, &lost(8, true));
    let report = redis.report("2026-11", begin + 60.0);
    let fleet = report.fleet.unwrap();
    assert_eq!((fleet.lost, fleet.rows), (1, 0));
    assert_eq!(report.tenants[0].unknown_seconds, 10.0);
}

#[test]
fn what_a_paused_tenant_is_exposed_to_is_not_counted() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let mut book = redis.book(begin);
    let paused = Some(PausedBy::new("ann".to_owned(), begin, None));
    let row =
        TenantRow { paused, exposure_age_seconds: 500.0, oldest_due_age_seconds: 500.0, ..tenant("acme") };
    looks(&mut redis, &mut book, begin, begin + 60.0, &fleet(vec![(row, 0)]));
    let fleet = redis.report("2026-11", begin + 60.0).fleet.unwrap();
    assert_eq!(
        (fleet.exposed_seconds, fleet.behind_seconds, fleet.exposure_longest_seconds),
        (0.0, 0.0, 0.0)
    );
}

#[test]
fn rows_are_counted_from_one_look_to_the_next_also_when_a_worker_with_counters_goes() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let mut book = redis.book(begin);
    for (look, updated) in [1_000, 1_100, 400, 450].into_iter().enumerate() {
        redis.write(book.look(begin + look as f64 * 10.0, &fleet(vec![(tenant("acme"), updated)])));
    }
    redis.write(vec![book.rest()]);
    let report = redis.report("2026-11", begin + 30.0);
    assert_eq!((report.fleet.as_ref().unwrap().rows, report.tenants[0].figures.rows), (150, 150));
    assert_eq!(report.fleet.unwrap().lag_p50_seconds, Some(0.0625));
}

fn entry(at: f64, fields: &[(&str, &str)]) -> LogEntry {
    let fields = fields.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect();
    LogEntry { id: format!("{:.0}-0", at * 1e3), fields }
}

#[test]
fn actions_are_taken_in_once_with_their_outcomes_and_recoveries_are_listed_apart() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let mut book = redis.book(begin + 100.0);
    assert_eq!(book.actions_after(), format!("{:.0}-0", begin * 1e3));
    let long = "x".repeat(1_000);
    let first =
        entry(begin + 50.0, &[("kind", "action"), ("what", "recover"), ("by", "ann"), ("note", &long)]);
    let of = first.id.clone();
    let outcome =
        entry(begin + 60.0, &[("kind", "outcome"), ("of", &of), ("worker", "w"), ("outcome", "done")]);
    book.take_actions(&[first, outcome]);
    redis.write(book.look(begin + 100.0, &quiet()));
    let mut book = redis.book(begin + 200.0);
    assert_eq!(book.actions_after(), format!("{:.0}-0", (begin + 60.0) * 1e3));
    book.take_actions(&[entry(begin + 150.0, &[("kind", "action"), ("what", "pause"), ("by", "bob")])]);
    redis.write(book.look(begin + 200.0, &quiet()));
    let report = redis.report("2026-11", begin + 200.0);
    assert_eq!((report.recoveries.len(), report.actions.len()), (1, 1));
    assert_eq!(report.recoveries[0].outcomes[0].outcome, "done");
    assert_eq!(report.recoveries[0].note.as_ref().unwrap().len(), TEXT);
}

#[test]
fn a_tenant_without_a_worker_is_an_incident_from_the_second_look_on() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let mut book = redis.book(begin);
    let unserved = fleet(vec![(TenantRow::unserved("acme", None), 0)]);
    looks(&mut redis, &mut book, begin, begin, &unserved);
    looks(&mut redis, &mut book, begin + 10.0, begin + 20.0, &quiet());
    assert!(redis.report("2026-11", begin + 20.0).incidents.is_empty(), "a fleet that starts");
    looks(&mut redis, &mut book, begin + 30.0, begin + 60.0, &unserved);
    looks(&mut redis, &mut book, begin + 70.0, begin + 70.0, &quiet());
    let report = redis.report("2026-11", begin + 70.0);
    assert_eq!((report.incidents.len(), report.incidents[0].cause.as_str()), (1, "unserved"));
    assert_eq!(report.incidents[0].seconds, 40.0);
}

#[test]
fn time_without_redis_is_an_incident_of_its_own() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let mut book = redis.book(begin + 500.0);
    book.add_incident("redis_unavailable", begin + 300.0, begin + 500.0);
    redis.write(book.look(begin + 500.0, &quiet()));
    let report = redis.report("2026-11", begin + 500.0);
    assert_eq!((report.incidents[0].seconds, report.incidents[0].open), (200.0, false));
    assert_eq!(report.causes["redis_unavailable"].seconds, 200.0);
}

/// The numbers of docs/decisions/0029: the worst month of ten thousand tenants.
#[test]
fn a_month_of_ten_thousand_tenants_in_trouble_is_bounded() {
    let (mut redis, begin) = (Redis::default(), start("2026-11"));
    let mut book = redis.book(begin);
    let reasons: Vec<Reason> = Reason::ALL.into_iter().collect();
    for look in 0..(2 * INCIDENTS + 12) {
        let now = begin + look as f64 * 10.0;
        let rows = (0..if look < 20 { 10_000 } else { 2 }).map(|n| {
            let mut row = broken(&format!("{n:0>64}"), now, (look * n % 140) as f64 / 1.1);
            row.reason = Some(reasons[look % reasons.len()].into());
            row.state = if look % 2 == 0 { row.state } else { StateView::Unserved };
            (row, (look * n) as u64)
        });
        redis.write(book.look(now, &fleet(rows.collect())));
    }
    let fields = &redis.0[&Month::parse("2026-11").unwrap()];
    let of = |kind: &str| fields.keys().filter(|field| field.starts_with(kind)).count();
    assert_eq!((of("t:"), of("i:")), (TENANTS, INCIDENTS));
    let bytes: usize = fields.iter().map(|(field, value)| field.len() + value.len()).sum();
    assert!(bytes < 2_000_000, "{bytes} bytes");
    let report = redis.report("2026-11", begin + 86_400.0);
    assert_eq!(report.omitted.troubled_tenants, (10_000 - TENANTS) as u64);
    assert!(report.omitted.incidents > 0);
    let summed: u64 = report.causes.values().map(|cause| cause.incidents).sum();
    assert_eq!(summed, INCIDENTS as u64 + report.omitted.incidents);
    assert!(report.incidents.iter().all(|incident| incident.names.len() <= NAMES));

    // Those that were merely written leave room for trouble.
    let mut redis = Redis::default();
    let mut book = redis.book(begin);
    for look in 0..7_u64 {
        let rows = (0..10_000).map(|n| (tenant(&format!("t{n}")), look * 10));
        redis.write(book.look(begin + look as f64 * 10.0, &fleet(rows.collect())));
    }
    let report = redis.report("2026-11", begin + 60.0);
    assert_eq!((report.tenants.len(), report.omitted.other_tenants), (ACTIVE, (10_000 - ACTIVE) as u64));
}
