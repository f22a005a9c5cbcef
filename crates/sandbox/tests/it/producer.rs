//! The producer writes what the protocol says, and carries on through whatever happens to Redis.

use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use balance_sync_sandbox::ledger::{
    Format, LoadOptions, LoadTenant, Producer, Progress, SEED_VERSION, TenantKeys, describe_balances, put_raw,
};
use balance_sync_sandbox::{Fault, Proxy, RedisOptions, RedisServer, eventually};
use redis::AsyncCommands;
use tokio_util::sync::CancellationToken;

const SOON: Duration = Duration::from_secs(60);
const TTL: Duration = Duration::from_secs(100);

fn tenants(names: &[&str], balances: usize) -> Vec<LoadTenant> {
    names.iter().map(|name| LoadTenant::seeded(name, describe_balances(name, balances))).collect()
}

fn now() -> f64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs_f64()
}

fn microseconds(score: f64) -> String {
    format!("{score:.6}")
}

#[tokio::test]
async fn value_and_schedule_are_as_the_protocol_says() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut redis = server.connect().await.unwrap();
    let mut producer = Producer::new(&server.url(), tenants(&["acme", "other"], 30));

    let before = now();
    assert_eq!(producer.mutate(0, &[4, 5, 4], TTL).await.unwrap(), [3, 2, 3]);
    let after = now();

    let keys = TenantKeys::tenant("acme");
    let balance = &producer.tenants()[0].balances[4];
    let member = keys.member(balance);
    let value: String = redis.get(&member).await.unwrap();
    let json: serde_json::Value = serde_json::from_str(&value).unwrap();
    assert_eq!(json["Version"], 3);
    assert_eq!(json["ID"], balance.id.to_string());
    assert_eq!(json["Available"], balance.amounts(3).available);
    assert_eq!(json["OverdraftUsed"], balance.amounts(3).overdraft_used);
    let ttl: i64 = redis.ttl(&member).await.unwrap();
    assert!((90..=100).contains(&ttl), "{ttl}");

    // A time of now, in whole microseconds.
    let seconds: f64 = redis.zscore(keys.schedule(), &member).await.unwrap();
    assert!(before - 1e-3 <= seconds && seconds <= after + 1e-3, "{seconds} is not now");
    assert_eq!(microseconds(seconds).parse::<f64>().unwrap(), seconds, "not a whole number of microseconds");
    assert_eq!(redis.zcard::<_, u64>(keys.schedule()).await.unwrap(), 2);

    // The next mutation replaces value and score.
    producer.mutate(0, &[4], TTL).await.unwrap();
    let newer: f64 = redis.zscore(keys.schedule(), &member).await.unwrap();
    assert!(newer > seconds);

    assert_eq!(producer.mutate_each(TTL).await.unwrap(), 60);
    assert_eq!(redis.zcard::<_, u64>(TenantKeys::tenant("other").schedule()).await.unwrap(), 30);
    assert_eq!(producer.tenants()[0].versions[4], 5);
    assert_eq!(producer.tenants()[1].versions[29], SEED_VERSION + 1);
}

/// Lua turns a number into text of 14 significant digits: the last two of the microseconds would be zero.
#[tokio::test]
async fn scores_keep_their_microseconds() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut redis = server.connect().await.unwrap();
    let mut producer = Producer::new(&server.url(), tenants(&["acme"], 1));
    let schedule = TenantKeys::tenant("acme").schedule();
    let mut full = 0;
    for _ in 0..100 {
        producer.mutate(0, &[0], TTL).await.unwrap();
        let scores: Vec<(String, f64)> = redis.zrange_withscores(&schedule, 0, -1).await.unwrap();
        full += usize::from(!microseconds(scores[0].1).ends_with("00"));
    }
    // By chance one of a hundred ends in zeros.
    assert!(full > 80, "only {full} of 100 scores have six digits");
}

#[tokio::test]
async fn two_producers_learn_each_others_versions() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut one = Producer::new(&server.url(), tenants(&["acme"], 10));
    let mut two = Producer::new(&server.url(), tenants(&["acme"], 10));
    for _ in 0..5 {
        one.mutate_each(TTL).await.unwrap();
        two.mutate_each(TTL).await.unwrap();
    }
    assert!(two.tenants()[0].versions.iter().all(|version| *version == SEED_VERSION + 10));
    one.refresh_versions().await.unwrap();
    assert_eq!(one.tenants()[0].versions, two.tenants()[0].versions);
    // An old value that has gone is no reason to begin anew.
    let mut redis = server.connect().await.unwrap();
    redis::cmd("FLUSHALL").query_async::<()>(&mut redis).await.unwrap();
    assert_eq!(one.mutate(0, &[0], TTL).await.unwrap(), [SEED_VERSION + 11]);
}

/// The version that counts is found in each format, also where a stale one stands before it.
#[tokio::test]
async fn producers_of_all_formats_continue_each_others_balances() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut redis = server.connect().await.unwrap();
    let formats = Format::ALL.into_iter().chain(Format::ALL.into_iter().rev());
    let mut version = SEED_VERSION;
    for format in formats {
        for rounds in 1..=4 {
            // One that knows nothing yet learns of the version by a conflict.
            let fresh = Producer::new(&server.url(), tenants(&["acme"], 20)).in_format(format);
            let mut producer = fresh;
            producer.mutate_each(TTL).await.unwrap();
            version += 1;
            let load = &producer.tenants()[0];
            assert!(
                load.versions.iter().all(|found| *found == version),
                "{format} {rounds} {:?}",
                load.versions
            );
            for balance in &load.balances {
                let value: String = redis.get(load.keys.member(balance)).await.unwrap();
                assert_eq!(value, balance.json_in(format, version));
            }
            producer.refresh_versions().await.unwrap();
            assert!(producer.tenants()[0].versions.iter().all(|found| *found == version), "{format}");
        }
    }
}

#[tokio::test]
async fn load_keeps_its_rate_and_counts_right() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut redis = server.connect().await.unwrap();
    let mut producer = Producer::new(&server.url(), tenants(&["a", "b", "c"], 200));
    let progress = Progress::new(3);
    let options = LoadOptions {
        rate: 4_000.0,
        duration: Some(Duration::from_millis(1_500)),
        hot_key_share: 0.5,
        ..LoadOptions::default()
    };
    let report = producer.run(&options, &progress, &CancellationToken::new()).await.unwrap();
    assert_eq!((report.mutations + report.skipped, report.errors), (6_000, 0), "{report:?}");
    assert_eq!(progress.mutations(), report.mutations);
    // Each counted mutation has raised one version by one.
    let mut raised = 0;
    for tenant in producer.tenants() {
        for (balance, version) in tenant.balances.iter().zip(&tenant.versions) {
            let value: Option<String> = redis.get(tenant.keys.member(balance)).await.unwrap();
            match value {
                Some(value) => assert_eq!(value, balance.json(*version)),
                None => assert_eq!(*version, SEED_VERSION),
            }
            raised += version - SEED_VERSION;
        }
    }
    assert_eq!(raised, i64::try_from(report.mutations).unwrap());

    for wrong in [
        LoadOptions { rate: 0.0, ..LoadOptions::default() },
        LoadOptions { hot_key_share: 1.5, ..LoadOptions::default() },
    ] {
        assert!(producer.run(&wrong, &progress, &CancellationToken::new()).await.is_err());
    }
}

#[tokio::test]
async fn load_survives_what_happens_to_redis() {
    let extra = vec!["appendfsync always".to_owned()];
    let options = RedisOptions { appendonly: true, extra, ..RedisOptions::default() };
    let server = RedisServer::start(options).await.unwrap();
    let proxy = Proxy::start(([127, 0, 0, 1], server.port()).into()).await.unwrap();
    let mut producer = Producer::new(&server.url_on(proxy.addr().port()), tenants(&["a", "b"], 50));
    let progress = Arc::new(Progress::new(2));
    let cancel = CancellationToken::new();
    let load = {
        let (progress, cancel) = (Arc::clone(&progress), cancel.clone());
        tokio::spawn(async move {
            let options = LoadOptions { rate: 2_000.0, ..LoadOptions::default() };
            let report = producer.run(&options, &progress, &cancel).await.unwrap();
            (producer, report)
        })
    };
    let advances = |what: &'static str| {
        let (progress, from) = (Arc::clone(&progress), progress.mutations());
        async move { eventually(SOON, what, || async { progress.mutations() > from + 100 }).await.unwrap() }
    };
    advances("the first mutations").await;
    let errors = progress.errors();
    // Applied, but the answers are lost: the producer must find out by itself.
    proxy.set(Fault::DropResponses).await;
    eventually(SOON, "errors", || async { progress.errors() > errors }).await.unwrap();
    proxy.set(Fault::Pass).await;
    advances("mutations after lost answers").await;
    server.kill().unwrap();
    let errors = progress.errors();
    eventually(SOON, "errors", || async { progress.errors() > errors }).await.unwrap();
    server.start_again().await.unwrap();
    advances("mutations after a restart").await;
    cancel.cancel();
    let (producer, report) = load.await.unwrap();
    assert!(report.errors > 0 && report.mutations > 300);

    // What was applied without an answer counts as written, and nothing that was counted is missing.
    let mut redis = server.connect().await.unwrap();
    for tenant in producer.tenants() {
        for (balance, version) in tenant.balances.iter().zip(&tenant.versions) {
            let value: Option<String> = redis.get(tenant.keys.member(balance)).await.unwrap();
            assert_eq!(value, (*version > SEED_VERSION).then(|| balance.json(*version)));
        }
    }
    let raised: i64 =
        producer.tenants().iter().flat_map(|t| &t.versions).map(|version| version - SEED_VERSION).sum();
    assert!(
        raised.cast_unsigned() > report.mutations,
        "{raised} is not more than the {} answered",
        report.mutations
    );
}

#[tokio::test]
async fn anything_can_be_put_under_any_member() {
    let server = RedisServer::start(RedisOptions::default()).await.unwrap();
    let mut redis = server.connect().await.unwrap();
    let score = put_raw(&mut redis, "schedule", b"m\xFF", b"\x00garbage", None).await.unwrap();
    assert!((score.parse::<f64>().unwrap() - now()).abs() < 5.0);
    assert_eq!(redis.get::<_, Vec<u8>>(&b"m\xFF"[..]).await.unwrap(), b"\x00garbage");
    assert_eq!(redis.ttl::<_, i64>(&b"m\xFF"[..]).await.unwrap(), -1);
    assert_eq!(redis.zcard::<_, u64>("schedule").await.unwrap(), 1);
}
