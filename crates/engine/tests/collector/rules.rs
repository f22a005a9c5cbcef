//! The rules one by one.

use balance_sync_engine::{
    collector::{Drained, Options, Profile, Report, Role, Service, Trigger, Upkeep, UpkeepEnd},
    failure::{Pace, Reason, Side},
    standby::{LastHead, Seen, Watch},
    state::TenantState,
};

use super::world::*;

fn scarce() -> Options {
    Options { batch_size: 400, ..options() }
}

/// One whose flush waits for its permit, with so many members buffered.
fn waiting_for_a_permit(found: usize) -> World {
    let mut world = World::started(options());
    world.answer_claim(found, 100);
    world.pass(ms(49));
    assert_eq!(world.permit, Permit::None);
    while world.permit == Permit::None {
        world.pass(ms(1));
        if world.claim.is_some() {
            world.answer_claim(0, 100);
        }
    }
    world
}

#[test]
fn nothing_is_begun_before_it_is_known_what_operators_want() {
    let mut world = World::new(options());
    assert_eq!(world.machine.wake_at(), None);
    world.control(Service::Unknown, Role::First);
    world.pass(secs(20));
    assert_eq!((world.claims, world.upkeep, world.state), (0, None, TenantState::Starting));
    world.control(Service::Active, Role::First);
    assert_eq!((world.claim, world.upkeep), (Some(10), Some(Upkeep::Survey)));
}

#[test]
fn a_full_claim_asks_for_a_permit_at_once_and_a_few_wait_for_the_timeout() {
    let mut world = World::started(options());
    world.answer_claim(10, 0);
    assert_eq!((world.permit, world.state), (Permit::Requested, TenantState::Syncing));
    world.grant();
    assert_eq!(world.flights.len(), 1);
    assert!(world.claim.is_some(), "claiming goes on while a flush is in flight");
    world.answer_claim(3, 10);
    let first_at = world.at();
    while world.permit == Permit::None {
        world.pass(ms(1));
        if world.claim.is_some() {
            world.answer_claim(0, 13);
        }
    }
    assert_eq!(world.at() - first_at, ms(50));
    world.grant();
    let triggers: Vec<_> = world.flights.values().map(|(kind, _)| *kind).collect();
    assert_eq!(triggers, [Kind::Flush(Trigger::Size), Kind::Flush(Trigger::Timeout)]);
}

/// A collector that waits for few mutations.
fn calm() -> Options {
    Options { profile: Profile::Balanced, ..options() }
}

#[test]
fn a_calm_tenants_members_are_written_at_once_and_the_next_ones_together_a_while_later() {
    let mut world = World::started(calm());
    world.answer_claim(1, 0);
    assert_eq!(world.permit, Permit::Requested, "at once");
    world.grant();
    let begun = world.at();
    world.pass(ms(3));
    world.land();
    // Looked at again as the next flush may begin, and what came is written then.
    while world.claim.is_none() {
        world.pass(ms(1));
    }
    assert_eq!(world.at() - begun, ms(15));
    world.answer_claim(2, 0);
    assert_eq!(world.permit, Permit::Requested);
    world.grant();
    let triggers: Vec<_> = world.flights.values().map(|(kind, batch)| (*kind, batch.len())).collect();
    assert_eq!(triggers, [(Kind::Flush(Trigger::Calm), 2)]);
}

#[test]
fn what_comes_to_a_calm_tenant_during_a_flush_waits_for_its_end() {
    let mut world = World::started(calm());
    world.answer_claim(1, 0);
    world.grant();
    world.pass(ms(15));
    world.answer_claim(2, 1);
    world.pass(ms(20));
    assert_eq!(world.permit, Permit::None, "one is under way");
    if world.claim.is_some() {
        world.answer_claim(3, 3);
    }
    world.land();
    // A flush of 35 ms is followed by a pause of as much as the flush timeout, which begins with it.
    assert_eq!(world.permit, Permit::None);
    world.pass(ms(15));
    assert_eq!(world.permit, Permit::Requested);
    world.grant();
    let sizes: Vec<_> = world.flights.values().map(|(_, batch)| batch.len()).collect();
    assert_eq!(sizes, [5]);
}

#[test]
fn while_permits_are_scarce_a_prefetch_is_held_and_the_batch_is_completed_with_its_permit() {
    let mut world = World::new(scarce());
    world.control(Service::Active, Role::First);
    assert_eq!(world.claim, Some(50));
    world.answer_claim(50, 1000);
    assert_eq!((world.permit, world.claim), (Permit::Requested, None));
    world.pass(ms(79));
    assert_eq!(world.claim, None, "nothing more while nothing can be written");
    world.pass(ms(1));
    assert_eq!(world.claim, Some(1), "but one, by which a standby sees that it lives");
    world.answer_claim(1, 999);
    world.pass(ms(79));
    assert_eq!(world.claim, None);
    world.grant();
    assert_eq!((world.permit, world.claim), (Permit::Held, Some(349)));
    world.answer_claim(349, 600);
    assert_eq!(world.flights.values().map(|(_, batch)| batch.len()).collect::<Vec<_>>(), [400]);
    assert_eq!(world.claim, Some(50), "and the next prefetch");
}

#[test]
fn with_redis_away_it_sleeps_while_a_permit_is_waited_for_and_claims_when_that_is_over() {
    let mut world = waiting_for_a_permit(3);
    world.pass(ms(10));
    world.fail_claim(failure(Side::Queue, Pace::Short, false));
    assert_eq!(world.state, TenantState::Degraded);
    let ticks = world.ticks;
    world.pass(secs(4));
    assert!(world.ticks - ticks <= 10, "{} ticks in 4 s", world.ticks - ticks);
    world.grant();
    world.land();
    assert_eq!(world.state, TenantState::Degraded, "a written row shows nothing about Redis");
    assert!(world.claim.is_some(), "its wait is over as well");
    world.answer_claim(0, 0);
    assert_eq!(world.state, TenantState::Idle);
}

/// Answers what comes while a permit is waited for: what was given back is claimed anew.
fn wait_in_queue(world: &mut World, time: std::time::Duration) -> (usize, usize) {
    let end = world.now + time;
    let (claims, mut released) = (world.claims, 0);
    while world.now < end {
        assert_eq!(world.permit, Permit::Requested, "it keeps its place");
        if world.claim.is_some() {
            let found = if world.machine.buffered() == 0 { 3 } else { 0 };
            world.answer_claim(found, 3);
        } else if !world.flights.is_empty() {
            world.land();
            released += 1;
        } else if world.upkeep.is_some() {
            world.end_upkeep(UpkeepEnd::Protected { at: 1.0 });
        } else {
            world.pass(ms(1));
        }
    }
    (world.claims - claims, released)
}

#[test]
fn in_a_queue_that_moves_it_claims_anew_before_its_leases_are_old_and_never_fails() {
    let mut world = waiting_for_a_permit(3);
    let (claims, released) = wait_in_queue(&mut world, secs(60));
    // Half the deadline each.
    assert!((22..=24).contains(&released), "{released}");
    // One to claim anew each time, and one in the longest time between two looks at an idle schedule.
    assert!(claims <= released + 60_000 / 160 + 2, "{claims} claims");
    assert_ne!(world.state, TenantState::Degraded);
    world.grant();
    assert_eq!((world.permit, world.claim), (Permit::Held, Some(7)), "what has come since is claimed first");
    world.answer_claim(4, 3);
    assert_eq!(world.flights.values().map(|(_, batch)| batch.len()).collect::<Vec<_>>(), [7]);
    assert!(world.deadline >= ms(2_500), "{:?}", world.deadline);
}

/// Who stands by for a tenant that waits for a permit with this many members due looks at its schedule for so long, or until it takes
/// over. A frozen owner's answers stay away.
fn stand_by(world: &mut World, due: usize, time: std::time::Duration, frozen: bool) -> bool {
    let mut watch = Watch::new(world.options.idle_backoff_max, world.now);
    watch.add((), world.now);
    let (end, mut last) = (world.now + time, None);
    while world.now < end {
        let held = world.machine.buffered();
        if let Some(limit) = world.claim.filter(|_| !frozen) {
            world.answer_claim(limit.min(due - held), due as u64);
        } else if !world.flights.is_empty() {
            world.land();
        } else if world.upkeep.is_some() {
            world.end_upkeep(UpkeepEnd::Protected { at: 1.0 });
        }
        let page = watch.page(world.now, |()| false);
        if !page.is_empty() {
            // Those that are held are the first of the schedule.
            let held = world.machine.buffered();
            let waits = last.is_some_and(|last| last >= held);
            let seen = Seen { head: held, last: if waits { LastHead::Waits } else { LastHead::Claimed } };
            last = Some(held);
            if !watch.looked(page, vec![Some(seen)]).is_empty() {
                return true;
            }
        }
        if frozen {
            world.now += ms(1);
        } else {
            world.pass(ms(1));
        }
    }
    false
}

#[test]
fn no_standby_takes_over_from_one_that_waits_for_a_permit_with_a_backlog_and_from_a_frozen_one_it_does() {
    // A batch whose prefetch is full with these, and with those that come later.
    for due in [51, 200, 1000] {
        let mut world = World::new(Options { idle_backoff_max: ms(500), ..scarce() });
        world.control(Service::Active, Role::First);
        world.answer_claim(50, due as u64);
        assert_eq!(world.permit, Permit::Requested);
        assert!(!stand_by(&mut world, due.max(100), secs(60), false), "it waits, with {due} due");
        assert_ne!(world.state, TenantState::Degraded);
        assert_eq!(world.permit, Permit::Requested);
        let frozen_at = world.now;
        assert!(stand_by(&mut world, due.max(100), secs(60), true));
        assert!(world.now - frozen_at <= ms(510), "{:?}", world.now - frozen_at);
    }
}

#[test]
fn a_permit_that_comes_while_members_are_given_back_waits_until_they_are_claimed_anew() {
    let mut world = waiting_for_a_permit(3);
    while world.flights.is_empty() {
        world.pass(ms(1));
        if world.claim.is_some() {
            world.answer_claim(0, 3);
        }
    }
    world.grant();
    assert_eq!((world.permit, world.claim, world.machine.buffered()), (Permit::Held, None, 0));
    world.land();
    assert_eq!(world.claim, Some(10));
    world.answer_claim(3, 0);
    assert_eq!((world.permit, world.flights.len()), (Permit::None, 1));
    // Another worker was faster: the permit is given back.
    let mut world = waiting_for_a_permit(3);
    while world.flights.is_empty() {
        world.pass(ms(1));
        if world.claim.is_some() {
            world.answer_claim(0, 3);
        }
    }
    world.land();
    world.answer_claim(0, 0);
    assert_eq!(world.permit, Permit::None);
}

#[test]
fn a_tenant_on_its_way_back_keeps_its_place_in_the_queue_too() {
    let mut world = World::started(options());
    world.answer_claim(10, 100);
    world.grant();
    world.answer_claim(0, 100);
    let flush = *world.flights.keys().next().unwrap();
    world.end_flight(flush, Some(away()));
    world.pass(secs(1));
    world.answer_probe(Ok(()));
    world.answer_claim(3, 0);
    while world.permit == Permit::None {
        world.pass(ms(1));
    }
    let (_, released) = wait_in_queue(&mut world, secs(20));
    assert!((7..=8).contains(&released), "{released}");
    world.grant();
    world.land();
    assert_eq!(world.reports, [Report::Recovered { reason: Reason::PostgresConnection }]);
}

#[test]
fn when_postgres_fails_everything_held_is_released_and_a_ping_comes_before_the_next_claim() {
    let mut world = World::started(options());
    world.answer_claim(10, 100);
    world.grant();
    world.answer_claim(5, 100);
    let flush = *world.flights.keys().next().unwrap();
    world.end_flight(flush, Some(away()));
    assert_eq!(world.flights.values().map(|(kind, _)| *kind).collect::<Vec<_>>(), [Kind::Release]);
    world.pass(secs(1));
    assert!(!world.probe, "what is on its way comes first");
    world.land();
    assert!(world.probe);
    world.answer_probe(Err(away()));
    world.pass(ms(200));
    assert!(world.probe);
    world.answer_probe(Ok(()));
    assert!(world.claim.is_some());
    world.answer_claim(2, 0);
    world.pass(ms(50));
    world.grant();
    world.land();
    assert_eq!(world.reports, [Report::Recovered { reason: Reason::PostgresConnection }]);
    assert_eq!((world.written, world.unwritten), (2, 15));
}

#[test]
fn a_paused_tenant_writes_what_it_holds_and_protects_what_waits() {
    let mut world = World::started(options());
    world.answer_claim(10, 100);
    world.grant();
    world.control(Service::Paused, Role::First);
    assert_eq!(world.upkeep, Some(Upkeep::Recent { from: None }));
    world.answer_claim(0, 100);
    assert_eq!(world.state, TenantState::Syncing, "a flush is in flight");
    world.land();
    assert_eq!(world.state, TenantState::Paused);
    let claims = world.claims;
    world.end_upkeep(UpkeepEnd::Protected { at: 100.0 });
    assert_eq!(world.upkeep, Some(Upkeep::Sweep));
    world.end_upkeep(UpkeepEnd::Swept);
    assert_eq!(world.upkeep, Some(Upkeep::Recent { from: Some(99.999) }));
    world.pass(secs(600));
    assert_eq!(world.claims, claims);
    world.control(Service::Active, Role::First);
    assert!(world.claim.is_some());
    assert_eq!(world.reports, [Report::Paused, Report::Resumed]);
}

#[test]
fn a_standby_takes_over_for_a_minute_when_no_worker_claims() {
    let mut world = World::new(options());
    world.control(Service::Active, Role::Standby);
    assert_eq!((world.state, world.wait), (TenantState::Standby, Some(Wait::Watch)));
    world.end_wait();
    assert_eq!((world.claim, world.reports.clone()), (Some(10), vec![Report::TookOver]));
    world.answer_claim(0, 0);
    assert_eq!(world.wait, Some(Wait::Idle));
    world.end_upkeep(UpkeepEnd::Surveyed { adopted: 0 });
    world.pass(ms(59_999));
    assert_eq!(world.wait, Some(Wait::Idle));
    world.pass(ms(1));
    assert_eq!((world.state, world.wait), (TenantState::Standby, Some(Wait::Watch)));
    world.control(Service::Active, Role::First);
    assert!(world.claim.is_some());
}

#[test]
fn a_standby_uses_a_permit_for_what_is_there() {
    let mut world = World::new(scarce());
    world.control(Service::Active, Role::First);
    world.answer_claim(50, 1000);
    world.control(Service::Active, Role::Standby);
    world.grant();
    assert_eq!(world.flights.values().map(|(_, batch)| batch.len()).collect::<Vec<_>>(), [50]);
    world.land();
    assert_eq!((world.state, world.claims), (TenantState::Standby, 1));
}

#[test]
fn a_request_to_flush_ends_a_long_backoff_and_the_wait_for_more() {
    let mut world = World::started(options());
    world.answer_claim(3, 0);
    world.request_flush();
    assert_eq!(world.permit, Permit::Requested);
    world.refuse_permit(failure(Side::Sink, Pace::Long, false));
    world.fail_claim(failure(Side::Queue, Pace::Long, false));
    world.land();
    assert!(world.claim.is_none());
    world.request_flush();
    assert!(world.claim.is_some());
}

#[test]
fn a_slow_flush_has_values_protected_once_and_not_before_it_is_slow() {
    let mut world = World::started(options());
    world.answer_claim(10, 0);
    world.grant();
    world.answer_claim(0, 10);
    world.upkeeps.clear();
    while world.at() < secs(3) {
        world.pass(ms(10));
        if world.claim.is_some() {
            world.answer_claim(0, 10);
        }
        match world.upkeep {
            Some(Upkeep::Sweep) => world.end_upkeep(UpkeepEnd::Swept),
            Some(Upkeep::Recent { .. }) => world.end_upkeep(UpkeepEnd::Protected { at: 1.0 }),
            _ => {}
        }
    }
    assert_eq!(world.upkeeps[..2], [(secs(1), Upkeep::Recent { from: None }), (secs(1), Upkeep::Sweep)]);
    let sweeps = world.upkeeps.iter().filter(|(_, upkeep)| *upkeep == Upkeep::Sweep).count();
    assert_eq!((sweeps, world.upkeeps.len()), (1, 4), "{:?}", world.upkeeps);
}

#[test]
fn an_idle_collector_is_there_when_a_foreign_lock_ends() {
    let mut world = World::started(options());
    for _ in 0..10 {
        world.answer_locked(None);
        world.end_wait();
    }
    world.answer_locked(Some(secs(600)));
    assert_eq!(world.idle, ms(160), "no longer than otherwise");
    world.end_wait();
    world.answer_locked(Some(ms(20)));
    assert_eq!(world.idle, ms(21));
    world.end_wait();
    world.answer_claim(0, 1);
    assert_eq!(world.idle, ms(160), "the delay is as long again as it was");
}

#[test]
fn what_stays_locked_by_others_is_kept_alive() {
    // Where locks are many, every other claim begins behind them.
    for locked in [|_| true, |claim: u32| claim.is_multiple_of(2)] {
        let mut world = World::started(options());
        world.upkeeps.clear();
        for claim in 0.. {
            if world.at() >= secs(12) {
                break;
            }
            if world.wait.is_some() {
                world.end_wait();
            }
            match locked(claim) {
                true => world.answer_locked(None),
                false => world.answer_claim(0, 1),
            }
            world.pass(ms(100));
            match world.upkeep {
                Some(Upkeep::Sweep) => world.end_upkeep(UpkeepEnd::Swept),
                Some(Upkeep::Recent { .. }) => world.end_upkeep(UpkeepEnd::Protected { at: 1.0 }),
                _ => {}
            }
        }
        let sweep = world.upkeeps.iter().find(|(_, upkeep)| *upkeep == Upkeep::Sweep);
        assert!(sweep.is_some_and(|(at, _)| *at >= secs(10)), "{:?}", world.upkeeps);
    }
}

#[test]
fn a_lock_that_has_ended_is_no_reason_to_keep_values_alive() {
    let mut world = World::started(options());
    world.upkeeps.clear();
    world.answer_locked(None);
    while world.at() < secs(30) {
        if world.wait.is_some() {
            world.end_wait();
        }
        world.answer_claim(0, 1);
        world.pass(ms(100));
    }
    assert!(world.upkeeps.is_empty(), "{:?}", world.upkeeps);
}

#[test]
fn a_stop_writes_what_is_held_and_what_the_last_claim_brings() {
    let mut world = World::started(options());
    world.answer_claim(3, 0);
    world.pass(ms(10));
    assert!(world.claim.is_some());
    world.stop();
    assert_eq!((world.flights.len(), world.state), (1, TenantState::Stopping));
    world.answer_claim(2, 0);
    assert_eq!(world.flights.len(), 2);
    world.land();
    assert_eq!(world.machine.ended(), None);
    world.land();
    assert_eq!(world.machine.ended(), Some(Drained { flushed: 5, released: 0, orphaned: 0 }));
}

#[test]
fn a_stop_ends_at_its_deadline_and_releases_what_is_left() {
    let mut world = World::started(options());
    world.answer_claim(3, 0);
    world.pass(ms(10));
    world.stop();
    world.pass(secs(2));
    assert_eq!((world.claim, world.flights.len()), (None, 0));
    world.release_abandoned();
    assert_eq!(world.machine.ended(), Some(Drained { flushed: 0, released: 3, orphaned: 0 }));
}

#[test]
fn a_removed_tenant_is_emptied_until_a_claim_finds_nothing() {
    let mut world = World::started(options());
    world.answer_claim(0, 0);
    assert_eq!(world.wait, Some(Wait::Idle));
    world.leave();
    assert_eq!((world.state, world.claim), (TenantState::Stopping, Some(10)));
    world.answer_claim(4, 0);
    world.pass(ms(50));
    world.answer_claim(0, 4);
    world.grant();
    world.land();
    world.pass(ms(10));
    world.answer_claim(0, 0);
    assert_eq!((world.machine.ended(), world.written), (Some(Drained::default()), 4));
}

#[test]
fn a_removed_tenant_that_can_not_be_emptied_stops_at_its_deadline() {
    let mut world = World::started(options());
    world.answer_claim(0, 7);
    world.leave();
    let begun = world.at();
    while world.machine.ended().is_none() {
        if world.claim.is_some() {
            world.answer_claim(0, 7);
        }
        if world.wait.is_some() {
            world.end_wait();
        }
        world.pass(ms(10));
    }
    let took = world.at() - begun;
    assert!(secs(20) <= took && took <= ms(20_010), "{took:?}");
}
