use super::*;

const IN_FLIGHT: f64 = 10.0;

fn known(version: i64, available: &str, overdraft_used: Option<&str>) -> Known {
    Known {
        version,
        amounts: Amounts {
            available: available.to_owned(),
            on_hold: "0".to_owned(),
            overdraft_used: overdraft_used.map(str::to_owned),
        },
    }
}

/// A balance whose amount is ten times its version, unless it is said otherwise.
fn at(version: i64) -> Known {
    known(version, &(version * 10).to_string(), Some("0"))
}

fn value(version: i64) -> Value {
    Value::Present(at(version))
}

fn operation(known: Known) -> Operation {
    Operation { known, in_doubt: false, age: 0.0 }
}

fn trail(version: i64) -> Trail {
    Trail::Newest(operation(at(version)))
}

fn witnesses(value: Value, row: Option<i64>, trail: Trail, scheduled: Scheduled) -> Witnesses {
    let row = row.map(|version| Row { known: at(version), deleted: false });
    Witnesses { companion: false, value, row, trail, record: None, scheduled }
}

fn found(witnesses: &Witnesses) -> (Class, Advice, i64) {
    let Judgement { class, advice, version } = judge(witnesses, IN_FLIGHT);
    (class, advice, version)
}

#[test]
fn every_class_has_its_case() {
    use Advice as A;
    use Class::{BehindScheduled, BehindUnscheduled, Forked, InFlight, InSync, LostFromRedis};
    use Class::{MissingRow, Orphaned, RowAhead};
    use Scheduled::{Distant, Due, No};
    use Trail::{Nothing, Unread};
    use Value::Absent;
    let unreadable = || Value::Unreadable("no JSON".to_owned());
    let table = [
        (value(5), Some(5), trail(5), No, InSync, A::None, 5),
        // The trail is written after Redis.
        (value(5), Some(5), trail(4), No, InSync, A::None, 5),
        (value(5), Some(5), Nothing, No, InSync, A::None, 5),
        (value(5), Some(5), Unread, Due(1.0), InSync, A::None, 5),
        (value(6), Some(5), trail(6), Due(1.0), InFlight, A::None, 6),
        (value(6), Some(5), trail(5), Due(-30.0), InFlight, A::None, 6),
        (value(6), Some(5), trail(6), Due(11.0), BehindScheduled, A::AskWhy, 6),
        (value(6), Some(5), trail(6), Distant, BehindScheduled, A::MakeDue, 6),
        (value(6), Some(-1), trail(5), No, BehindUnscheduled, A::ScheduleAgain, 6),
        (Absent, Some(5), trail(6), No, LostFromRedis, A::Recover, 6),
        (Absent, Some(5), trail(6), Due(-5.0), LostFromRedis, A::Recover, 6),
        // Redis has started again from the row.
        (value(5), Some(5), trail(7), No, LostFromRedis, A::StopAndReload, 7),
        (value(6), Some(5), trail(7), Due(0.1), LostFromRedis, A::StopAndReload, 7),
        (Absent, Some(5), trail(5), No, InSync, A::None, 5),
        (Absent, Some(5), trail(5), Due(99.0), InFlight, A::None, 5),
        (Absent, Some(5), trail(5), Distant, InFlight, A::None, 5),
        (Absent, Some(5), trail(4), No, InSync, A::None, 5),
        (Absent, Some(1), Nothing, Due(99.0), InFlight, A::None, 1),
        (Absent, Some(2), Nothing, Due(99.0), LostFromRedis, A::CompleteTrail, 2),
        (Absent, Some(2), Nothing, Due(9.0), InFlight, A::None, 2),
        (Absent, Some(2), Nothing, No, InSync, A::None, 2),
        (Absent, Some(1), Unread, Due(99.0), LostFromRedis, A::CompleteTrail, 1),
        (Absent, Some(9), Unread, No, InSync, A::None, 9),
        (value(4), Some(5), trail(5), No, RowAhead, A::ReloadFromRow, 5),
        (value(4), Some(5), trail(4), No, RowAhead, A::FindWriter, 5),
        (value(4), Some(5), Unread, Due(99.0), RowAhead, A::FindWriter, 5),
        (value(5), None, Unread, Due(99.0), MissingRow, A::RestoreRow, 5),
        (unreadable(), None, Unread, No, Orphaned, A::MendValue, -1),
        (unreadable(), Some(5), trail(5), No, Orphaned, A::MendValue, 5),
        (Absent, None, Unread, Due(0.0), Orphaned, A::FindOwner, -1),
        (Absent, None, Unread, No, InSync, A::None, -1),
    ];
    for (value, row, trail, scheduled, class, advice, version) in table {
        let case = witnesses(value, row, trail, scheduled);
        assert_eq!(found(&case), (class, advice, version), "{case:?}");
    }
    let differing = [
        (value(5), known(5, "51", Some("0")), Unread, Forked, A::Fork),
        (value(5), known(5, "50.00", Some("0.0")), Unread, InSync, A::None),
        (value(5), known(5, "50", Some("1")), trail(4), Forked, A::Fork),
        (value(5), known(5, "NULL", Some("0")), Unread, Forked, A::Fork),
        // The trail against both, or against the row alone.
        (value(5), at(5), Trail::Newest(operation(known(5, "51", Some("0")))), Forked, A::ForkOfTrail),
        (Absent, at(5), Trail::Newest(operation(known(5, "51", Some("0")))), Forked, A::ForkOfTrail),
        (Absent, at(5), Trail::Newest(operation(known(5, "50", Some("3")))), Forked, A::ForkOfTrail),
        (value(6), at(5), Trail::Newest(operation(known(6, "61", Some("0")))), Forked, A::ForkOfTrail),
        (value(4), at(5), Trail::Newest(operation(known(5, "51", Some("0")))), RowAhead, A::Fork),
    ];
    for (value, row, trail, class, advice) in differing {
        let mut case = witnesses(value, None, trail, No);
        case.row = Some(Row { known: row, deleted: false });
        let (found_class, found_advice, _) = found(&case);
        assert_eq!((found_class, found_advice), (class, advice), "{case:?}");
    }
}

/// The first trap: the overdraft in a companion's operation is that of another balance.
#[test]
fn a_companions_overdraft_is_not_compared_nor_written() {
    let of_primary = Trail::Newest(operation(known(5, "50", Some("700"))));
    let mut same = witnesses(Value::Absent, Some(5), of_primary.clone(), Scheduled::No);
    assert_eq!(found(&same), (Class::Forked, Advice::ForkOfTrail, 5), "of a primary balance it counts");
    same.companion = true;
    assert_eq!(found(&same), (Class::InSync, Advice::None, 5));
    same.value = value(5);
    assert_eq!(found(&same), (Class::InSync, Advice::None, 5));
    // Its own amounts count.
    same.trail = Trail::Newest(operation(known(5, "51", Some("700"))));
    assert_eq!(found(&same), (Class::Forked, Advice::ForkOfTrail, 5));
    let mut lost = witnesses(Value::Absent, Some(4), of_primary, Scheduled::No);
    lost.companion = true;
    assert_eq!(found(&lost), (Class::LostFromRedis, Advice::AskLedger, 5));
    assert_eq!(lost.recoverable(), None);
    // A recover record has the companion's own.
    lost.record = Some(at(5));
    assert_eq!(found(&lost), (Class::LostFromRedis, Advice::Recover, 5));
    assert_eq!(lost.recoverable(), Some(&at(5)));
}

/// The second trap: after a repayment only the version of an operation is sure.
#[test]
fn what_is_in_doubt_proves_a_loss_and_no_fork() {
    let in_doubt = |version, available| {
        Trail::Newest(Operation { known: known(version, available, Some("0")), in_doubt: true, age: 0.0 })
    };
    for value in [value(5), Value::Absent] {
        let case = witnesses(value, Some(5), in_doubt(5, "51"), Scheduled::No);
        assert_eq!(found(&case), (Class::InSync, Advice::None, 5));
    }
    let lost = witnesses(Value::Absent, Some(5), in_doubt(6, "60"), Scheduled::No);
    assert_eq!(found(&lost), (Class::LostFromRedis, Advice::AskLedger, 6));
    assert_eq!(lost.recoverable(), None);
}

#[test]
fn the_newer_of_operation_and_record_counts() {
    let mut case = witnesses(Value::Absent, Some(5), trail(6), Scheduled::No);
    case.record = Some(at(7));
    assert_eq!((found(&case).2, case.recoverable()), (7, Some(&at(7))));
    case.record = Some(at(5));
    assert_eq!((found(&case).2, case.recoverable()), (6, Some(&at(6))));
    // Complete amounts win at the same version.
    case.trail = Trail::Newest(Operation { in_doubt: true, ..operation(known(6, "61", None)) });
    case.record = Some(at(6));
    assert_eq!(case.recoverable(), Some(&at(6)));
}

#[test]
fn only_what_redis_lacks_is_recoverable() {
    let of = |value, row| witnesses(value, row, trail(6), Scheduled::No).recoverable().cloned();
    assert_eq!(of(Value::Absent, Some(5)), Some(at(6)));
    assert_eq!(of(Value::Absent, Some(6)), None, "never over a row as new");
    assert_eq!(of(Value::Absent, Some(7)), None, "never over a newer row");
    assert_eq!(of(Value::Absent, None), None);
    assert_eq!(of(value(5), Some(5)), None, "the ledger goes on from there");
    assert_eq!(of(Value::Unreadable(String::new()), Some(5)), None);
    let mut deleted = witnesses(Value::Absent, Some(5), trail(6), Scheduled::No);
    deleted.row = Some(Row { known: at(5), deleted: true });
    assert_eq!(deleted.recoverable(), None);
    let unknown =
        witnesses(Value::Absent, Some(5), Trail::Newest(operation(known(6, "60", None))), Scheduled::No);
    assert_eq!((found(&unknown).1, unknown.recoverable()), (Advice::AskLedger, None));
}

#[test]
fn a_deleted_row_is_a_finding_only_beside_newer_money() {
    let of = |value| {
        let mut case = witnesses(value, None, trail(9), Scheduled::Due(99.0));
        case.row = Some(Row { known: known(5, "0", Some("0")), deleted: true });
        found(&case)
    };
    assert_eq!(of(Value::Absent), (Class::Deleted, Advice::None, 5));
    assert_eq!(of(value(5)), (Class::Deleted, Advice::None, 5));
    assert_eq!(of(Value::Present(known(6, "0.00", Some("0")))), (Class::Deleted, Advice::None, 5));
    assert_eq!(of(value(6)), (Class::Deleted, Advice::SettleClosed, 6));
}

/// Leased again and again its score says nothing; the trail does.
#[test]
fn an_old_operation_tells_the_age_of_what_is_leased() {
    let mut case = witnesses(value(6), Some(5), trail(6), Scheduled::Due(-20.0));
    assert_eq!(found(&case).0, Class::InFlight);
    case.trail = Trail::Newest(Operation { age: 60.0, ..operation(at(6)) });
    assert_eq!(found(&case), (Class::BehindScheduled, Advice::AskWhy, 6));
    case.trail = Trail::Newest(Operation { age: 60.0, ..operation(at(5)) });
    assert_eq!(found(&case).0, Class::InFlight, "that of an older version");
}

#[test]
fn what_moves_is_not_still_there() {
    let behind = |version| judge(&witnesses(value(version), Some(5), trail(5), Scheduled::No), IN_FLIGHT);
    assert!(behind(6).is_still(&behind(6)));
    assert!(!behind(6).is_still(&behind(7)));
    let clean = judge(&witnesses(value(6), Some(6), trail(6), Scheduled::No), IN_FLIGHT);
    assert!(!behind(6).is_still(&clean) && !clean.is_still(&clean));
}

#[test]
fn what_is_set_aside_is_not_scheduled_again_by_a_repair() {
    let behind = judge(&witnesses(value(6), Some(5), trail(5), Scheduled::No), IN_FLIGHT);
    assert_eq!((behind.advice(false), behind.advice(true)), (Advice::ScheduleAgain, Advice::SetAside));
    let lost = judge(&witnesses(Value::Absent, Some(5), trail(6), Scheduled::No), IN_FLIGHT);
    assert_eq!(lost.advice(true), Advice::Recover);
}

#[test]
fn each_advice_is_one_sentence() {
    for advice in [
        Advice::AskWhy,
        Advice::MakeDue,
        Advice::ScheduleAgain,
        Advice::Recover,
        Advice::AskLedger,
        Advice::StopAndReload,
        Advice::CompleteTrail,
        Advice::Fork,
        Advice::ForkOfTrail,
        Advice::ReloadFromRow,
        Advice::FindWriter,
        Advice::RestoreRow,
        Advice::SettleClosed,
        Advice::FindOwner,
        Advice::MendValue,
        Advice::SetAside,
    ] {
        let text = advice.sentence();
        assert!(text.ends_with('.') && !text.contains(". "), "{text}");
    }
}
