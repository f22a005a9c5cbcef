//! The sampler on a real Redis: what it tells of each tenant, and what it costs.

use std::{
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::{KeySpace, TenantId};
use balance_sync_fleet::{
    status::{FleetStatus, InForce, WorkerMode},
    tasks::{Progress, TaskName},
};
use balance_sync_sandbox::{RedisOptions, RedisServer, eventually};
use balance_sync_schedule::{ClaimMode, Link, LinkSettings, Schedule};
use balance_sync_tenants::{KeyForm, Tenant};
use balance_sync_view::sampler;
use redis::aio::MultiplexedConnection;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(60);

struct Lab {
    redis: MultiplexedConnection,
    link: Link,
    fleet: Arc<FleetStatus>,
    stop: CancellationToken,
    _server: RedisServer,
}

impl Lab {
    async fn new() -> Self {
        let server = RedisServer::start(RedisOptions::default()).await.unwrap();
        let client = redis::Client::open(server.url()).unwrap();
        Self {
            redis: client.get_multiplexed_async_connection().await.unwrap(),
            link: Link::new(&LinkSettings::for_url(&server.url())).unwrap(),
            fleet: Arc::default(),
            stop: CancellationToken::new(),
            _server: server,
        }
    }

    fn start(&self, form: KeyForm, interval: Duration) {
        actix_rt::spawn(sampler::run(
            self.link.clone(),
            Arc::clone(&self.fleet),
            form,
            interval,
            Duration::from_secs(610),
            self.stop.clone(),
            Progress::unobserved(TaskName::Sampler),
        ));
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &[&str]) -> T {
        let mut cmd = redis::cmd(command[0]);
        cmd.arg(&command[1..]);
        cmd.query_async(&mut self.redis.clone()).await.unwrap()
    }

    async fn mutate(&self, space: &KeySpace, name: &str, life_ms: u64) -> String {
        let member = format!("{}{name}", space.balance_prefix());
        self.ask::<()>(&["SET", &member, "{}", "PX", &life_ms.to_string()]).await;
        let time: (u64, u64) = self.ask(&["TIME"]).await;
        let score = format!("{}.{:06}", time.0, time.1);
        self.ask::<()>(&["ZADD", space.schedule(), &score, &member]).await;
        member
    }
}

fn tenant(id: &str) -> Tenant {
    Tenant::Id(TenantId::parse(id).unwrap())
}

#[actix_rt::test]
async fn each_tenants_status_tells_what_waits_while_it_is_well_too() {
    let lab = Lab::new().await;
    let form = KeyForm::SimpleUuid;
    let (busy, calm) = (tenant("0190b5f2-7c1a-7e3b-9d4f-2a6c8e1b3d50"), tenant("calm"));
    let space = busy.key_space(form);
    let (status, still) = (lab.fleet.tenant(&busy), lab.fleet.tenant(&calm));
    assert_eq!(status.shortest_life_ms.load(Relaxed), u64::MAX);
    lab.start(form, Duration::from_millis(50));

    lab.mutate(&space, "long", 3_600_000).await;
    let short = lab.mutate(&space, "short", 60_000).await;
    let schedule = Schedule::new(lab.link.clone(), space.clone(), Arc::default());
    assert_eq!(schedule.claim(1).await.unwrap().entries.len(), 1);
    eventually(SOON, "the sample of two members, one of them held", async || {
        (status.due.load(Relaxed), status.leased.load(Relaxed), status.scheduled.load(Relaxed)) == (1, 1, 2)
    })
    .await
    .unwrap();
    let life = status.shortest_life_ms.load(Relaxed);
    assert!((30_000..=60_000).contains(&life), "{life}");
    assert_eq!(status.quarantine_entries.load(Relaxed), 0);
    eventually(SOON, "an age that grows", async || status.oldest_due_age_ms.load(Relaxed) > 200)
        .await
        .unwrap();

    lab.ask::<()>(&["HSET", &space.quarantine(), "member", "{}"]).await;
    lab.ask::<()>(&["ZREM", space.schedule(), &short]).await;
    eventually(SOON, "one left, with its long life, and one in quarantine", async || {
        status.shortest_life_ms.load(Relaxed) > 3_000_000 && status.quarantine_entries.load(Relaxed) == 1
    })
    .await
    .unwrap();
    lab.ask::<()>(&["DEL", space.schedule()]).await;
    eventually(SOON, "nothing left", async || {
        status.shortest_life_ms.load(Relaxed) == u64::MAX && status.scheduled.load(Relaxed) == 0
    })
    .await
    .unwrap();
    assert_eq!((still.due.load(Relaxed), still.shortest_life_ms.load(Relaxed)), (0, u64::MAX));
}

#[actix_rt::test]
async fn what_a_worker_had_claimed_that_died_is_exposed_until_its_leases_lapse() {
    const TTL: Duration = Duration::from_secs(3600);
    let lab = Lab::new().await;
    let settings = InForce {
        mode: WorkerMode::Sync,
        claim_mode: ClaimMode::Lease,
        claim_quiet: TTL,
        key_form: KeyForm::AsListed,
        claim_ttl: TTL,
        protect_floor: TTL,
        quarantine_limit: 10,
        poll_interval: TTL,
        freshness_objective: TTL,
        exposure_objective: TTL,
    };
    lab.fleet.in_force.set(settings).unwrap();
    let [died, ours] = ["died", "ours"].map(tenant);
    let spaces = [&died, &ours].map(|tenant| tenant.key_space(KeyForm::AsListed));
    let [died, ours] = [died, ours].map(|tenant| lab.fleet.tenant(&tenant));
    for space in &spaces {
        lab.mutate(space, "held", 3_600_000).await;
    }
    // 600 seconds of the lease have passed, all of them before this worker came. The other is of this worker, just now.
    let (second, _): (u64, u64) = lab.ask(&["TIME"]).await;
    let held = |space: &KeySpace, left: u64| {
        let member = format!("{}held", space.balance_prefix());
        [space.schedule().to_owned(), format!("{}.0000005", second + left), member]
    };
    for args in [held(&spaces[0], 3_000), held(&spaces[1], 3_600)] {
        lab.ask::<()>(&["ZADD", &args[0], &args[1], &args[2]]).await;
    }
    ours.stand_by(true);
    lab.start(KeyForm::AsListed, Duration::from_millis(50));
    eventually(SOON, "what the other worker had claimed", async || {
        (600..660).contains(&died.exposure_age().as_secs())
    })
    .await
    .unwrap();
    eventually(SOON, "a sample of both", async || ours.leased.load(Relaxed) == 1).await.unwrap();
    assert!(ours.exposure_age() < Duration::from_secs(60), "{:?}", ours.exposure_age());

    lab.ask::<()>(&["DEL", spaces[0].schedule()]).await;
    eventually(SOON, "nothing is exposed", async || died.exposure_age().is_zero()).await.unwrap();
}
