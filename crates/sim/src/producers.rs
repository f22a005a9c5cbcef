//! The ledger: transactions of several releases at once, and the trail of operations, which it writes after Redis.

use rand::{Rng, rngs::SmallRng};

use crate::{
    plan::SECOND,
    redis,
    truth::{Mutation, Unseen},
    values::{Document, Shape, State},
    world::{What, World},
};

/// How long a value lives, in microseconds: far less than ledgers give, so that outages outlast it.
const VALUE_TTL: u64 = 120 * SECOND / 1000;
/// Marks of different tenants differ by this modulus.
pub(crate) const TENANTS: u64 = 64;

/// Which releases of the ledger write, of those that are alive at the same time.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Releases {
    /// Up to 4.0.
    Old,
    /// 4.0 and 4.1 at the same time, as during an upgrade.
    Upgrading,
    /// From 4.1 on.
    Dual,
    /// From 4.1 on, and one to come.
    New,
    /// The oldest.
    Oldest,
}

impl Releases {
    /// All of them.
    pub const ALL: [Self; 5] = [Self::Old, Self::Upgrading, Self::Dual, Self::New, Self::Oldest];

    /// What one of the pods makes of the value that was there before.
    fn write(self, before: Option<&Document>, state: State, rng: &mut SmallRng) -> Shape {
        let old_pod = match self {
            Self::Old => true,
            Self::Upgrading => rng.random(),
            _ => false,
        };
        match (self, before.map(|document| document.shape)) {
            (Self::Oldest, _) => Shape::Oldest,
            (Self::New, _) if rng.random() => Shape::New,
            // It changes what it knows, and leaves the rest as it was.
            (_, Some(Shape::Dual { lower })) if old_pod => Shape::Dual { lower },
            _ if old_pod => Shape::Upper,
            _ => Shape::Dual { lower: state },
        }
    }
}

impl World {
    /// A transaction changes one or two balances, as one script.
    pub(crate) fn transaction(&mut self, at: usize) {
        if self.now >= self.end {
            return;
        }
        let (balances, every) = (self.plan.balances, self.plan.every);
        let tenant = &mut self.tenants[at];
        let first = tenant.producer.random_range(0..balances);
        let second = tenant.producer.random_range(0..balances);
        let pause = tenant.producer.random_range(1..=2 * every);
        if tenant.present {
            self.change(at, first);
            if second != first {
                self.change(at, second);
            }
        }
        self.push(self.now + pause, What::Transaction(at));
    }

    pub(crate) fn change(&mut self, at: usize, balance: usize) {
        let (clock, now) = (self.clock(), self.now);
        let (plan_poison, pod, from_trail) = (self.plan.poison, self.plan.ledger, self.plan.from_trail);
        let tenant = &mut self.tenants[at];
        let truth = &mut tenant.truth[balance];
        // The ledger's own worker can't tell two mutations of one microsecond apart.
        let same = pod && redis::whole(clock) == truth.score;
        if same || truth.deleted || self.redis_lost_until > now {
            return;
        }
        let before = tenant.redis.value(clock, balance).map(|value| value.document);
        let before = before.filter(|document| document.shape != Shape::Marker);
        let base = match &before {
            Some(document) => document.state.version,
            // It goes on from the row; later releases compare it with the trail.
            None if from_trail => tenant.postgres.version(balance).max(tenant.postgres.tables.trail[balance]),
            None => tenant.postgres.version(balance),
        };
        let mark = (tenant.marks.len() as u64 + 1) * TENANTS + at as u64;
        let state = State { version: base + 1, mark };
        let mut shape = tenant.releases.write(before.as_ref(), state, &mut tenant.producer);
        if plan_poison > 0 && tenant.producer.random_ratio(1, plan_poison) {
            let shapes = [Shape::NullField, Shape::BadOverdraft, Shape::Twice, Shape::Unknown];
            shape = shapes[tenant.producer.random_range(0..shapes.len())];
        }
        let row = tenant.postgres.version(balance);
        let forked = truth.gone.is_some() && state.version <= truth.newest;
        truth.newest = state.version;
        truth.highest = truth.highest.max(state.version);
        truth.shape = shape;
        truth.score = redis::whole(clock);
        truth.changed_at = now;
        truth.gone = None;
        truth.excused = 0;
        truth.locked_for = 0;
        if state.version > row {
            truth.waits_since(now);
        }
        let good = truth.is_good();
        let short = tenant.short_until > now;
        let ttl = if short { tenant.short_life } else { VALUE_TTL };
        truth.life = ttl;
        tenant.marks.push(Mutation { balance, version: state.version, good });
        tenant.redis.mutate(clock, balance, Document { state, shape }, ttl);
        let slow = if tenant.trail_lags_until > now { 50 * SECOND } else { 2 * SECOND };
        let lag = tenant.producer.random_range(SECOND / 1000..slow);
        self.push(now + lag, What::Operation { tenant: at, balance, version: state.version });
        if short {
            self.expire_soon(at);
        }
        if forked {
            self.outcome.unseen[Unseen::Fork as usize] += 1;
        }
        self.outcome.mutations += 1;
        self.note(Some(at), || {
            let how = if good { String::new() } else { format!(", {shape:?}") };
            format!("the ledger changes balance {balance}: version {}{how}", state.version)
        });
        self.check(at);
    }

    /// The operation of a mutation reaches the trail.
    pub(crate) fn operation(&mut self, at: usize, balance: usize, version: u64) {
        let lag = self.tenants[at].producer.random_range(0..15 * SECOND);
        let postgres = &mut self.tenants[at].postgres;
        let away = postgres.down_until.max(postgres.hangs_until).max(postgres.read_only_until);
        if away > self.now {
            return self.push(away + lag, What::Operation { tenant: at, balance, version });
        }
        let trail = &mut postgres.tables.trail[balance];
        *trail = version.max(*trail);
    }
}
