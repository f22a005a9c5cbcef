//! A run: its size, its rates and its faults. Everything follows from the seed.

use std::time::Duration;

use balance_sync_engine::collector::{Options, Profile};
use rand::{Rng, SeedableRng, rngs::SmallRng};

use crate::producers::Releases;

/// Tenants of a large world.
const FLEET_TENANTS: usize = 20;
/// Nanoseconds of virtual time.
pub const SECOND: u64 = 1_000_000_000;

/// A run, before it begins. Shrinking takes faults away from it.
#[derive(Debug, Clone)]
pub struct Plan {
    /// It decides everything that is not written out here.
    pub seed: u64,
    /// Workers.
    pub workers: usize,
    /// Tenants, each with a collector in every worker.
    pub tenants: usize,
    /// Balances per tenant.
    pub balances: usize,
    /// Producers and faults act this long; then everything is healed and drained.
    pub seconds: u64,
    /// Members in one flush at most.
    pub batch: usize,
    /// Mean time between two transactions of a tenant, in nanoseconds.
    pub every: u64,
    /// One value in so many can't be read; 0 = none.
    pub poison: u32,
    /// The ledger's own worker runs beside ours.
    pub ledger: bool,
    /// It is of a release that takes dual values for orphans.
    pub old_pod: bool,
    /// There are several of it, so that what is due is locked at once.
    pub pods: bool,
    /// Workers find out by themselves which tenants there are and which are theirs.
    pub supervised: bool,
    /// Our workers claim in mode `lock`.
    pub lock: bool,
    /// With `lock`: in mode `auto`. Each worker changes between the two modes, at its own moments.
    pub auto: bool,
    /// Permits are waited for in a queue that moves, some of them for longer than a lease.
    pub queues: bool,
    /// Members that a claim in mode `lock` looks at.
    pub scan_limit: usize,
    /// The releases that write; each tenant has the next of them.
    pub releases: usize,
    /// A ledger that finds no value compares the row with the trail.
    pub from_trail: bool,
    /// Our workers may read the trail.
    pub granted: bool,
    /// Our workers look for data that vanish.
    pub watch: bool,
    /// Members of a schedule that they remember at each count.
    pub witnesses: usize,
    /// For how long members are put off, in seconds.
    pub put_off: u64,
    /// What goes wrong, in order of time.
    pub faults: Vec<(u64, Fault)>,
}

/// Something that goes wrong, or that an operator or the ledger does. Durations are in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[allow(missing_docs, reason = "the fields are what they are called")]
pub enum Fault {
    /// A worker is killed, and starts again later.
    Crash { worker: usize, down: u64 },
    /// A worker is stopped, drains, and starts again later.
    Stop { worker: usize, down: u64 },
    /// A worker is suspended, as in a long page fault or with its machine.
    Freeze { worker: usize, lasts: u64 },
    /// No worker reaches Redis.
    RedisDown { lasts: u64 },
    /// One worker doesn't reach Redis.
    RedisCut { worker: usize, lasts: u64 },
    /// Messages between a worker and the servers are lost, late, or arrive twice.
    Flaky { worker: usize, lasts: u64 },
    /// A tenant's Postgres refuses connections.
    PostgresDown { tenant: usize, lasts: u64 },
    /// A tenant's Postgres doesn't answer, and executes what it got at the end.
    PostgresHangs { tenant: usize, lasts: u64 },
    /// A tenant's Postgres answers pings and refuses writes.
    PostgresReadOnly { tenant: usize, lasts: u64 },
    /// Another session has locked a row.
    RowLocked { tenant: usize, balance: usize, lasts: u64 },
    /// An operator pauses a tenant.
    Pause { tenant: usize, lasts: u64 },
    /// A tenant is removed, and comes back.
    Remove { tenant: usize, lasts: u64 },
    /// The workers get these roles for a tenant: a set bit is `First`.
    Roles { tenant: usize, first: u8 },
    /// The tenant service fails.
    ServiceIll { lasts: u64 },
    /// The tenant service lists no tenants.
    ServiceEmpty { lasts: u64 },
    /// All balances of a tenant change at once.
    Burst { tenant: usize },
    /// A worker is suspended until a lease of it ends, and the balance changes in the microsecond of that end.
    ChangeAtLeaseEnd { tenant: usize, after: u64 },
    /// The ledger's own worker of a tenant forgets what it holds.
    LedgerCrash { tenant: usize },
    /// An operator wants everything of a tenant written at once.
    FlushRequest { tenant: usize },
    /// Redis evicts the value of a balance.
    Evict { tenant: usize, balance: usize },
    /// Redis evicts a tenant's schedule.
    EvictSchedule { tenant: usize },
    /// The values of a tenant live this long only.
    ShortLife { tenant: usize, lasts: u64, life: u64 },
    /// A deletion marker replaces a value for a while.
    Marker { tenant: usize, balance: usize, life: u64 },
    /// The ledger deletes a balance.
    Delete { tenant: usize, balance: usize },
    /// Redis crashes, and comes back without its last writes.
    RedisCrash { lag: u64, down: u64 },
    /// Redis comes back empty.
    RedisEmpty { down: u64 },
    /// A replica of Redis that lags takes over, with a clock of its own.
    RedisFailover { lag: u64, skew: i64 },
    /// Redis's clock jumps.
    ClockJump { by: i64 },
    /// The ledger writes operations late.
    TrailLags { tenant: usize, lasts: u64 },
    /// An operator has all losses of a tenant looked at again.
    RetryLosses { tenant: usize },
    /// A standby of a tenant's Postgres that lags is promoted.
    PostgresFailover { tenant: usize, lag: u64, down: u64 },
}

/// Kinds of faults that lose nothing which a server has acknowledged.
const HARMLESS: usize = 19;

impl Fault {
    /// Names for counters, in the order of [`Fault::kind`].
    pub const KINDS: [&str; 31] = [
        "crash",
        "stop",
        "freeze",
        "redis down",
        "redis cut",
        "flaky network",
        "postgres down",
        "postgres hangs",
        "row locked",
        "pause",
        "remove",
        "roles",
        "burst",
        "change at lease end",
        "ledger crash",
        "flush request",
        "postgres read-only",
        "service ill",
        "service empty",
        "evicted value",
        "evicted schedule",
        "short life",
        "deletion marker",
        "deletion",
        "redis crash",
        "redis empty",
        "redis failover",
        "clock jump",
        "trail lags",
        "retried losses",
        "postgres failover",
    ];

    /// Its kind, as a position in [`Fault::KINDS`].
    #[must_use]
    pub fn kind(self) -> usize {
        match self {
            Self::Crash { .. } => 0,
            Self::Stop { .. } => 1,
            Self::Freeze { .. } => 2,
            Self::RedisDown { .. } => 3,
            Self::RedisCut { .. } => 4,
            Self::Flaky { .. } => 5,
            Self::PostgresDown { .. } => 6,
            Self::PostgresHangs { .. } => 7,
            Self::RowLocked { .. } => 8,
            Self::Pause { .. } => 9,
            Self::Remove { .. } => 10,
            Self::Roles { .. } => 11,
            Self::Burst { .. } => 12,
            Self::ChangeAtLeaseEnd { .. } => 13,
            Self::LedgerCrash { .. } => 14,
            Self::FlushRequest { .. } => 15,
            Self::PostgresReadOnly { .. } => 16,
            Self::ServiceIll { .. } => 17,
            Self::ServiceEmpty { .. } => 18,
            Self::Evict { .. } => 19,
            Self::EvictSchedule { .. } => 20,
            Self::ShortLife { .. } => 21,
            Self::Marker { .. } => 22,
            Self::Delete { .. } => 23,
            Self::RedisCrash { .. } => 24,
            Self::RedisEmpty { .. } => 25,
            Self::RedisFailover { .. } => 26,
            Self::ClockJump { .. } => 27,
            Self::TrailLags { .. } => 28,
            Self::RetryLosses { .. } => 29,
            Self::PostgresFailover { .. } => 30,
        }
    }
}

impl Fault {
    /// The tenant that it is about; any, where it is about all of them.
    fn tenant(self, rng: &mut SmallRng, plan: &Plan) -> usize {
        (0..plan.tenants)
            .find(|tenant| !self.fits(plan.workers, *tenant) && self.fits(plan.workers, tenant + 1))
            .unwrap_or_else(|| rng.random_range(0..plan.tenants))
    }

    /// Whether everything that it names is in a world of this size.
    pub(crate) fn fits(self, workers: usize, tenants: usize) -> bool {
        match self {
            Self::Crash { worker, .. }
            | Self::Stop { worker, .. }
            | Self::Freeze { worker, .. }
            | Self::RedisCut { worker, .. }
            | Self::Flaky { worker, .. } => worker < workers,
            Self::RedisDown { .. }
            | Self::ServiceIll { .. }
            | Self::ServiceEmpty { .. }
            | Self::RedisCrash { .. }
            | Self::RedisEmpty { .. }
            | Self::RedisFailover { .. }
            | Self::ClockJump { .. } => true,
            Self::PostgresDown { tenant, .. }
            | Self::PostgresHangs { tenant, .. }
            | Self::PostgresReadOnly { tenant, .. }
            | Self::RowLocked { tenant, .. }
            | Self::Pause { tenant, .. }
            | Self::Remove { tenant, .. }
            | Self::Roles { tenant, .. }
            | Self::Burst { tenant }
            | Self::ChangeAtLeaseEnd { tenant, .. }
            | Self::LedgerCrash { tenant }
            | Self::FlushRequest { tenant }
            | Self::Evict { tenant, .. }
            | Self::EvictSchedule { tenant }
            | Self::ShortLife { tenant, .. }
            | Self::Marker { tenant, .. }
            | Self::Delete { tenant, .. }
            | Self::TrailLags { tenant, .. }
            | Self::RetryLosses { tenant }
            | Self::PostgresFailover { tenant, .. } => tenant < tenants,
        }
    }
}

impl Plan {
    /// A small world with many faults: what finds bugs quickly.
    #[must_use]
    pub fn small(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut plan = Self {
            seed,
            workers: rng.random_range(2..=3),
            tenants: rng.random_range(1..=3),
            balances: rng.random_range(2..=6),
            seconds: 600,
            batch: [2, 5, 500][rng.random_range(0..3)],
            // Busy tenants, and such that a value is older than it may live when it is changed again.
            every: match rng.random_range(0..3) {
                0 => rng.random_range(20..200) * SECOND,
                _ => rng.random_range(50..2_000) * SECOND / 1000,
            },
            poison: if rng.random_bool(0.5) { 20 } else { 0 },
            ledger: rng.random_bool(0.4),
            old_pod: rng.random_bool(0.3),
            pods: rng.random_bool(0.3),
            supervised: rng.random_bool(0.5),
            lock: rng.random_bool(0.3),
            // Not drawn, so that the seeds of planted bugs stay.
            auto: seed % 8 == 6,
            queues: seed % 8 == 3,
            scan_limit: [2, 5000][rng.random_range(0..2)],
            releases: rng.random_range(0..Releases::ALL.len()),
            from_trail: rng.random(),
            granted: rng.random_bool(0.8),
            watch: true,
            // Sixteen are all of them; with two most of what vanishes isn't remembered, as in a large schedule.
            witnesses: if seed % 8 == 2 { 2 } else { 16 },
            put_off: [60, 300][rng.random_range(0..2)],
            faults: Vec::new(),
        };
        // Where something always fails, nothing is ever late; and where servers lose what they acknowledged, much is excused.
        let (count, loses) = (rng.random_range(4..40), rng.random_bool(0.5));
        plan.faults = faults(&mut rng, &plan, count, loses);
        plan
    }

    /// The world by which speed is measured: 3 workers, 20 tenants.
    #[must_use]
    pub fn fleet(seed: u64) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut plan = Self {
            seed,
            workers: 3,
            tenants: FLEET_TENANTS,
            balances: 10,
            seconds: 600,
            batch: 500,
            every: SECOND,
            poison: 200,
            ledger: rng.random_bool(0.5),
            old_pod: false,
            pods: false,
            supervised: true,
            lock: rng.random_bool(0.2),
            auto: seed % 8 == 6,
            queues: seed % 8 == 3,
            scan_limit: 5000,
            releases: 0,
            from_trail: true,
            granted: true,
            watch: true,
            witnesses: 4,
            put_off: 60,
            faults: Vec::new(),
        };
        plan.faults = faults(&mut rng, &plan, 120, true);
        plan
    }

    /// The fleet of one Redis of several, scaled down from 10,000 tenants and 30,000 mutations/s (`docs/scaling.md`): workers join and die,
    /// Redis fails over, and tenants move to another Redis and back.
    #[must_use]
    pub fn entry(seed: u64, workers: usize) -> Self {
        let mut rng = SmallRng::seed_from_u64(seed);
        let mut plan = Self {
            seed,
            workers,
            tenants: FLEET_TENANTS,
            balances: 20,
            seconds: 600,
            batch: 500,
            every: SECOND / 2,
            poison: 0,
            ledger: false,
            old_pod: false,
            pods: false,
            supervised: true,
            lock: false,
            auto: false,
            queues: false,
            scan_limit: 5000,
            releases: 0,
            from_trail: true,
            granted: true,
            watch: true,
            witnesses: 4,
            put_off: 60,
            faults: Vec::new(),
        };
        let end = plan.seconds * SECOND;
        for at in (SECOND..end).step_by(5 * SECOND as usize) {
            let at = at + rng.random_range(0..5 * SECOND);
            let (worker, tenant) = (rng.random_range(0..workers), rng.random_range(0..FLEET_TENANTS));
            let lasts = rng.random_range(SECOND..30 * SECOND);
            let fault = match rng.random_range(0..10) {
                0..3 => Fault::Crash { worker, down: lasts },
                3..5 => Fault::Stop { worker, down: lasts },
                5..7 => Fault::Remove { tenant, lasts },
                7 => Fault::RedisCut { worker, lasts },
                8 => Fault::Burst { tenant },
                // A replica that lags by what an asynchronous one does under this load.
                _ => {
                    let (lag, skew) = (rng.random_range(SECOND / 1000..SECOND), rng.random_range(-500..500));
                    Fault::RedisFailover { lag, skew: skew * (SECOND / 1000) as i64 }
                }
            };
            plan.faults.push((at, fault));
        }
        plan.faults.retain(|(at, _)| *at < end);
        plan.faults.sort_by_key(|(at, _)| *at);
        plan
    }

    /// Mostly small worlds; each sixteenth is a fleet.
    #[must_use]
    pub fn of(seed: u64) -> Self {
        if seed.is_multiple_of(16) { Self::fleet(seed) } else { Self::small(seed) }
    }

    /// How collectors work: as by default, but for the size of a batch.
    pub(crate) fn options(&self) -> Options {
        // Values live a twentieth of what ledgers give them, so sweeps come as often within such a life as they really do.
        let protect_floor = Duration::from_secs(240);
        let put_off = Duration::from_secs(self.put_off);
        // Not drawn, so that the seeds of planted bugs stay.
        let profile = match self.seed % 8 {
            1 => Profile::Balanced,
            3 => Profile::Fresh,
            _ => Profile::Frugal,
        };
        Options { batch_size: self.batch, profile, protect_floor, put_off, ..Options::default() }
    }
}

fn faults(rng: &mut SmallRng, plan: &Plan, count: usize, loses: bool) -> Vec<(u64, Fault)> {
    let end = plan.seconds * SECOND;
    let mut faults = Vec::with_capacity(2 * count);
    for _ in 0..count {
        let at = rng.random_range(SECOND..end);
        let fault = fault(rng, plan, loses);
        // A worker ends, or a server fails, while there is work for it.
        if rng.random_bool(0.5) {
            let before = rng.random_range(0..SECOND);
            faults.push((at - before, Fault::Burst { tenant: fault.tenant(rng, plan) }));
        }
        faults.push((at, fault));
        if rng.random_bool(0.5) {
            together(rng, plan, at, fault, &mut faults);
        }
    }
    faults.retain(|(at, _)| *at < end);
    faults.sort_by_key(|(at, _)| *at);
    faults
}

/// Adds what must come together with a fault for some bugs to show: by chance alone it hardly ever does.
fn together(rng: &mut SmallRng, plan: &Plan, at: u64, fault: Fault, faults: &mut Vec<(u64, Fault)>) {
    let mut secs = |from: u64, to: u64| rng.random_range(from * SECOND..to * SECOND);
    // In fleets there are enough faults at the same time.
    let small = plan.tenants < FLEET_TENANTS;
    match fault {
        // The value goes before anybody has read it, and Postgres, or its right to write, before the operation has come.
        Fault::Evict { tenant, .. } => {
            let (begins, lasts) = (at + secs(1, 15), secs(20, 90));
            let outage = match small && at.is_multiple_of(3) {
                true => (begins, Fault::PostgresReadOnly { tenant, lasts }),
                false => (begins, Fault::PostgresDown { tenant, lasts }),
            };
            let lag = (at - 1, Fault::TrailLags { tenant, lasts: secs(1, 60) });
            faults.extend([lag, (at - 1, Fault::Burst { tenant }), outage]);
        }
        // The marker is there before anybody has read the value.
        Fault::Marker { tenant, .. } => faults.push((at - 1, Fault::Burst { tenant })),
        // Values that could expire between two sweeps are written in an outage that is known already.
        Fault::ShortLife { tenant, .. } => {
            let outage = (at - 1, Fault::PostgresDown { tenant, lasts: secs(90, 400) });
            let life = Fault::ShortLife { tenant, lasts: secs(30, 60), life: secs(25, 45) };
            let later = at + secs(3, 30);
            faults.extend([
                outage,
                (at + 1, life),
                (at + 1, Fault::Burst { tenant }),
                (later, Fault::Burst { tenant }),
            ]);
        }
        // Written just before, and settled only after the rows were compared.
        Fault::PostgresFailover { tenant, lag, .. } if small => {
            let before = at.saturating_sub(lag);
            let late = |worker| (before, Fault::Flaky { worker, lasts: 15 * SECOND });
            faults.extend((0..plan.workers).map(late));
            faults.push((at - lag.min(at) / 2, Fault::Burst { tenant }));
        }
        _ => {}
    }
}

fn fault(rng: &mut SmallRng, plan: &Plan, loses: bool) -> Fault {
    let worker = rng.random_range(0..plan.workers);
    let tenant = rng.random_range(0..plan.tenants);
    let balance = rng.random_range(0..plan.balances);
    let kind = rng.random_range(0..if loses { Fault::KINDS.len() } else { HARMLESS });
    let back = rng.random_bool(0.5);
    // In milliseconds. Outages of Postgres and pauses may last longer than a value lives.
    let mut lasts = |from: u64, to: u64| rng.random_range(from..to) * SECOND / 1000;
    let outage = if lasts(0, 4_000) < SECOND { 400_000 } else { 60_000 };
    match kind {
        0 => Fault::Crash { worker, down: lasts(100, 30_000) },
        1 => Fault::Stop { worker, down: lasts(100, 30_000) },
        2 => Fault::Freeze { worker, lasts: lasts(10, 40_000) },
        3 => Fault::RedisDown { lasts: lasts(10, 20_000) },
        4 => Fault::RedisCut { worker, lasts: lasts(10, 40_000) },
        5 => Fault::Flaky { worker, lasts: lasts(1_000, 40_000) },
        6 => Fault::PostgresDown { tenant, lasts: lasts(10, outage) },
        7 => Fault::PostgresHangs { tenant, lasts: lasts(10, outage) },
        8 => Fault::RowLocked { tenant, balance, lasts: lasts(10, 10_000) },
        9 => Fault::Pause { tenant, lasts: lasts(10, outage) },
        10 => Fault::Remove { tenant, lasts: lasts(1_000, 60_000) },
        11 => Fault::Roles { tenant, first: rng.random_range(0..8) },
        12 => Fault::Burst { tenant },
        13 => Fault::ChangeAtLeaseEnd { tenant, after: lasts(0, 5) },
        14 => Fault::LedgerCrash { tenant },
        15 => Fault::FlushRequest { tenant },
        16 => Fault::PostgresReadOnly { tenant, lasts: lasts(10, outage) },
        17 => Fault::ServiceIll { lasts: lasts(1_000, outage) },
        18 => Fault::ServiceEmpty { lasts: if back { lasts(1_000, 15_000) } else { lasts(1_000, 60_000) } },
        19 => Fault::Evict { tenant, balance },
        20 => Fault::EvictSchedule { tenant },
        // So short that no rule could keep them, or longer than it takes to notice them.
        21 => {
            let life = if back { lasts(100, 5_000) } else { lasts(50_000, 75_000) };
            Fault::ShortLife { tenant, lasts: lasts(1_000, 60_000), life }
        }
        22 => Fault::Marker { tenant, balance, life: lasts(1_000, 30_000) },
        23 => Fault::Delete { tenant, balance },
        24 => Fault::RedisCrash { lag: lasts(1, 2_000), down: lasts(10, 10_000) },
        25 => Fault::RedisEmpty { down: lasts(10, 10_000) },
        26 => {
            let skew = lasts(0, 2_000) as i64;
            Fault::RedisFailover { lag: lasts(1, 20_000), skew: if back { -skew } else { skew } }
        }
        27 => {
            let by = lasts(1, 30_000) as i64;
            Fault::ClockJump { by: if back { -by } else { by } }
        }
        28 => Fault::TrailLags { tenant, lasts: lasts(1_000, 60_000) },
        29 => Fault::RetryLosses { tenant },
        _ => Fault::PostgresFailover { tenant, lag: lasts(1, 5_000), down: lasts(10, 10_000) },
    }
}
