//! What holds in any sequence of events. Most of it is checked by the world, at each command.

use balance_sync_engine::{
    collector::{Event, Options, Profile, Role, Service, Upkeep, UpkeepEnd},
    failure::{Failure, Pace, Side},
    state::TenantState,
};
use proptest::prelude::*;

use super::world::*;

#[derive(Debug, Clone, Copy)]
enum Action {
    Pass(u64),
    /// So many are found, of so many more in the schedule.
    Claim(usize, u64),
    ClaimFails(u8),
    Permit,
    PermitFails(u8),
    /// One of the flights.
    Flight(usize, Option<u8>),
    Probe(Option<u8>),
    Upkeep(bool),
    WaitOver,
    Control(u8, bool),
    FlushRequest,
    Abandoned,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        12 => prop_oneof![3 => 0..20_u64, 2 => 20..200_u64, 1 => 200..70_000_u64].prop_map(Action::Pass),
        10 => (prop_oneof![4 => 0..12_usize, 1 => 40..130_usize], 0..3_u64).prop_map(|(found, more)| Action::Claim(found, more)),
        2 => any::<u8>().prop_map(Action::ClaimFails),
        6 => Just(Action::Permit),
        1 => any::<u8>().prop_map(Action::PermitFails),
        8 => (0..5_usize, proptest::option::weighted(0.2, any::<u8>())).prop_map(|(at, end)| Action::Flight(at, end)),
        4 => proptest::option::weighted(0.4, any::<u8>()).prop_map(Action::Probe),
        4 => proptest::bool::weighted(0.8).prop_map(Action::Upkeep),
        4 => Just(Action::WaitOver),
        2 => (0..6_u8, proptest::bool::weighted(0.3)).prop_map(|(service, standby)| Action::Control(service, standby)),
        1 => Just(Action::FlushRequest),
        1 => Just(Action::Abandoned),
    ];
    proptest::collection::vec(action, 0..150)
}

/// Batches that are claimed at once, and such of which only a part is claimed ahead while permits are scarce.
fn settings() -> impl Strategy<Value = Options> {
    let profile = prop_oneof![Just(Profile::Fresh), Just(Profile::Balanced), Just(Profile::Frugal)];
    (1..4_usize, prop_oneof![Just(10_usize), Just(120)], profile).prop_map(
        |(pipeline_depth, batch_size, profile)| Options { pipeline_depth, batch_size, profile, ..options() },
    )
}

fn any_failure(side: Side, kind: u8) -> Failure {
    let pace = if kind & 1 == 0 { Pace::Short } else { Pace::Long };
    let ping = side == Side::Sink && kind & 2 == 0;
    Failure { side, reaction: reaction(pace, ping, kind & 4 == 0), detail: String::new() }
}

fn play(world: &mut World, action: Action) {
    match action {
        Action::Pass(millis) => world.pass(ms(millis)),
        Action::Claim(found, more) if world.claim.is_some() => world.answer_claim(found, more),
        Action::ClaimFails(kind) if world.claim.is_some() => {
            let side = if kind & 8 == 0 { Side::Queue } else { Side::Claim };
            world.fail_claim(any_failure(side, kind));
        }
        Action::Permit if world.permit == Permit::Requested => world.grant(),
        Action::PermitFails(kind) if world.permit == Permit::Requested => {
            world.refuse_permit(any_failure(Side::Sink, kind));
        }
        Action::Flight(at, end) if !world.flights.is_empty() => {
            let (id, (kind, _)) = world.flights.iter().nth(at % world.flights.len()).unwrap();
            let (id, kind) = (*id, *kind);
            let side = |failure: u8| if failure & 8 == 0 { Side::Sink } else { Side::Settle };
            let failure = end.filter(|_| kind != Kind::Release);
            world.end_flight(id, failure.map(|failure| any_failure(side(failure), failure)));
        }
        Action::Probe(end) if world.probe => {
            world.answer_probe(end.map_or(Ok(()), |kind| Err(any_failure(Side::Sink, kind))));
        }
        Action::Upkeep(well) if world.upkeep.is_some() => end_upkeep(world, well),
        Action::WaitOver if world.wait.is_some() => world.end_wait(),
        Action::Control(service, standby) => {
            let service = match service {
                0 => Service::Paused,
                1 => Service::Unknown,
                _ => Service::Active,
            };
            world.control(service, if standby { Role::Standby } else { Role::First });
        }
        Action::FlushRequest => world.request_flush(),
        Action::Abandoned if world.abandoned.is_some() => world.release_abandoned(),
        _ => {}
    }
}

fn end_upkeep(world: &mut World, well: bool) {
    let end = match world.upkeep {
        _ if !well => UpkeepEnd::Failed,
        Some(Upkeep::Sweep) => UpkeepEnd::Swept,
        Some(Upkeep::Recent { .. }) => UpkeepEnd::Protected { at: world.at().as_secs_f64() },
        _ => UpkeepEnd::Surveyed { adopted: 0 },
    };
    world.end_upkeep(end);
}

/// Answers everything well, one thing after the other, a millisecond each; `due` members are in the schedule.
fn live(world: &mut World, due: &mut usize) {
    if world.claim.is_some() {
        let found = world.claim.unwrap().min(*due);
        *due -= found;
        world.answer_claim(found, *due as u64);
    } else if world.permit == Permit::Requested {
        world.grant();
    } else if !world.flights.is_empty() {
        world.land();
    } else if world.probe {
        world.answer_probe(Ok(()));
    } else if world.upkeep.is_some() {
        end_upkeep(world, true);
    } else if world.wait.is_some() {
        world.end_wait();
    }
    world.pass(ms(1));
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever has happened, a tenant whose servers are well again is served within the longest backoff.
    #[test]
    fn it_always_finds_its_way_back(settings in settings(), actions in actions()) {
        let mut world = World::new(settings);
        for action in actions {
            play(&mut world, action);
        }
        world.control(Service::Active, Role::First);
        let begun = world.at();
        let (mut due, written) = (25, world.written);
        while due > 0 || world.state != TenantState::Idle {
            live(&mut world, &mut due);
            prop_assert!(world.at() - begun <= secs(31), "{due} due, {:?}: {:?}", world.state, world.machine);
        }
        prop_assert!(world.written >= written + 25 || world.unwritten > 0);
        // Idle, it is woken by its survey and no more.
        world.wait = None;
        let ticks = world.ticks;
        world.pass(secs(3600));
        prop_assert!(world.ticks - ticks <= 1, "{} ticks in an idle hour", world.ticks - ticks);
    }

    /// Whatever has happened, a stop ends in time, and every claimed member has been written or given up on purpose.
    #[test]
    fn a_stop_ends_in_time_and_loses_no_claim(settings in settings(), actions in actions(), leave in any::<bool>(), last in actions()) {
        let mut world = World::new(settings);
        for action in actions {
            play(&mut world, action);
        }
        if leave {
            world.leave();
            for action in last {
                play(&mut world, action);
            }
        }
        let begun = world.at();
        if world.machine.ended().is_none() {
            world.stop();
        }
        world.pass(secs(2));
        if world.abandoned.is_some() {
            world.release_abandoned();
        }
        prop_assert!(world.machine.ended().is_some(), "{:?}", world.machine);
        prop_assert!(world.at() - begun <= secs(2));
        prop_assert_eq!(world.written + world.unwritten, world.members());
    }

    /// A collector that gets no answer at all sleeps.
    #[test]
    fn without_answers_it_sleeps(settings in settings(), actions in actions()) {
        let mut world = World::new(settings);
        for action in actions {
            play(&mut world, action);
        }
        let ticks = world.ticks;
        world.pass(secs(3600));
        prop_assert!(world.ticks - ticks <= 10, "{} ticks in an hour: {:?}", world.ticks - ticks, world.machine);
    }

    /// Asked again at once, it has nothing more to do.
    #[test]
    fn everything_due_is_begun_at_once(settings in settings(), actions in actions()) {
        let mut world = World::new(settings);
        world.control(Service::Active, Role::First);
        for action in actions {
            play(&mut world, action);
            let wake = world.machine.wake_at();
            let again = world.machine.handle(world.now, Event::Tick);
            prop_assert!(again.is_empty(), "{again:?}");
            prop_assert_eq!(world.machine.wake_at(), wake);
        }
    }
}
