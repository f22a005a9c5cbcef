//! A Redis and a Postgres in memory, behind the collector's ports, with faults on demand, and a collector that uses them.
//!
//! Time is tokio's, so tests that pause it run hours in milliseconds. What a call does is done when it is sent, and its
//! answer comes later: the worst case for a caller that gives up waiting.

pub(crate) mod directory;
mod postgres;
mod redis;

use std::{
    cell::Cell,
    future::Future,
    pin::Pin,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use balance_sync_domain::{KeySpace, TenantId, Uuid};
use balance_sync_fleet::{
    pipeline::{Collector, CollectorOptions, Drained, Profile},
    status::{FleetStatus, Reason, StateInfo, TenantState, TenantStatus},
};
use balance_sync_tenants::{KeyForm, Tenant};
use tokio::{task::JoinHandle, time::Instant};
use tokio_util::sync::CancellationToken;

pub(crate) use postgres::*;
pub(crate) use redis::*;

pub(crate) const ORGANIZATION: &str = "0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50";
pub(crate) const LEDGER: &str = "0190b5f3-11aa-7c02-8f2e-5b7d9c0a4e61";

/// Redis time at the beginning of a test, in seconds.
const EPOCH: f64 = 1_795_380_490.0;

pub(crate) fn ms(millis: u64) -> Duration {
    Duration::from_millis(millis)
}

pub(crate) fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

pub(crate) fn tenant(id: &str) -> Tenant {
    Tenant::Id(TenantId::parse(id).unwrap())
}

/// The member of the n-th balance of a key space.
pub(crate) fn member(space: &KeySpace, n: u128) -> Vec<u8> {
    format!("{}{ORGANIZATION}:{LEDGER}:@account{n}#default", space.balance_prefix()).into_bytes()
}

/// The id of the first balance: a nil one would be refused.
const IDS: u128 = 1 << 64;

/// The value of the n-th balance.
pub(crate) fn value(n: u128, version: i64) -> Vec<u8> {
    format!(
        r#"{{"ID":"{}","Available":"{version}.5","OnHold":"0","Version":{version},"AssetCode":"BRL","Key":"default"}}"#,
        Uuid::from_u128(IDS + n)
    )
    .into_bytes()
}

/// Round numbers, small enough to count by hand.
pub(crate) fn options() -> CollectorOptions {
    CollectorOptions {
        batch_size: 10,
        flush_timeout: ms(50),
        // When a batch goes is said by size and time; tests of the pace set it.
        profile: Profile::Frugal,
        poll_interval: ms(10),
        idle_backoff_max: ms(160),
        pipeline_depth: 2,
        flush_deadline: secs(5),
        drain_deadline: secs(2),
        leave_deadline: secs(20),
        protect_after: secs(1),
        protect_floor: secs(30),
        survey_interval: secs(60),
        trail_grace: secs(60),
        backoff_min: ms(100),
        backoff_max: secs(2),
        backoff_long: secs(30),
        put_off: secs(60),
    }
}

/// Counts how often a future is polled: a loop that spins shows here.
struct Counted<F> {
    inner: Pin<Box<F>>,
    polls: Rc<Cell<u64>>,
}

impl<F: Future> Future for Counted<F> {
    type Output = F::Output;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<F::Output> {
        self.polls.set(self.polls.get() + 1);
        self.inner.as_mut().poll(context)
    }
}

/// A collector with its surroundings. Needs a `LocalSet`.
pub(crate) struct Lab {
    pub redis: Rc<Redis>,
    pub postgres: Rc<Postgres>,
    pub fleet: Arc<FleetStatus>,
    pub status: Arc<TenantStatus>,
    pub options: CollectorOptions,
    pub stop: CancellationToken,
    pub polls: Rc<Cell<u64>>,
}

impl Lab {
    pub(crate) fn new() -> Self {
        Self::with(options())
    }

    pub(crate) fn with(options: CollectorOptions) -> Self {
        let tenant = tenant("acme");
        let space = tenant.key_space(KeyForm::AsListed);
        let fleet = Arc::new(FleetStatus::default());
        Self {
            redis: Rc::new(Redis::new(space)),
            postgres: Rc::new(Postgres::new()),
            status: fleet.tenant(&tenant),
            fleet,
            options,
            stop: CancellationToken::new(),
            polls: Rc::default(),
        }
    }

    pub(crate) fn start(&self) -> JoinHandle<Drained> {
        let collector = Collector {
            queue: FakeQueue(Rc::clone(&self.redis)),
            sink: FakeSink(Rc::clone(&self.postgres)),
            options: Arc::new(self.options.clone()),
            fleet: Arc::clone(&self.fleet),
            status: Arc::clone(&self.status),
        };
        let inner = Box::pin(Box::new(collector).run(self.stop.clone()));
        tokio::task::spawn_local(Counted { inner, polls: Rc::clone(&self.polls) })
    }

    pub(crate) fn state(&self) -> StateInfo {
        self.status.state()
    }

    pub(crate) fn reason(&self) -> Option<&'static str> {
        let info = self.state();
        info.reason.filter(|_| info.state == TenantState::Degraded).map(Reason::as_str)
    }

    /// Waits until it is so, for at most a minute.
    pub(crate) async fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let begun = Instant::now();
        while !condition(self) {
            assert!(begun.elapsed() < secs(60), "not within a minute: {what}; state {:?}", self.state());
            tokio::time::sleep(ms(1)).await;
        }
    }
}
