//! Whether the record of leases would notice: the worker's scripts, called as a worker calls them, and broken ones.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::put_raw;
use balance_sync_sandbox::{RedisOptions, RedisServer};
use balance_sync_tests::leases::{Leases, Scripts, Tally};
use redis::aio::MultiplexedConnection;
use redis::{Script, Value};

const SCHEDULE: &str = "tenant:t:schedule:{transactions}:balance-sync-v2";
const QUARANTINE: &str = "tenant:t:quarantine:{transactions}:balance-sync";
const LOSSES: &str = "tenant:t:quarantine:{transactions}:balance-sync:losses";
const MEMBER: &str = "tenant:t:balance:{transactions}:\"o\"\n:l:@a#default";

/// A schedule, and workers who do with it what they like.
struct Lab {
    redis: MultiplexedConnection,
    scripts: Scripts,
    leases: Leases,
    _server: RedisServer,
}

impl Lab {
    async fn new(scripts: Scripts) -> Result<Self> {
        let server = RedisServer::start(RedisOptions::default()).await?;
        let mut redis = server.connect().await?;
        put_raw(&mut redis, SCHEDULE, MEMBER.as_bytes(), b"{}", None).await?;
        let leases = Leases::watch(server.port(), None, vec![SCHEDULE.to_owned()], &scripts).await?;
        Ok(Self { redis, scripts, leases, _server: server })
    }

    /// Claims the member; gives lease and former score.
    async fn claim(&mut self, worker: &str, ttl: Duration) -> Result<(String, String)> {
        let script = Script::new(&self.scripts.claim);
        let mut call = script.key(SCHEDULE);
        call.arg(10).arg(ttl.as_millis() as u64).arg(0).arg("tenant:t:").arg(QUARANTINE);
        call.arg("").arg(worker).arg(10).arg(0).arg(1000);
        // No room in the quarantine, no events, no look for the ledger's locks.
        call.arg(0).arg("").arg(0).arg("");
        let parts: Vec<Value> = call.invoke_async(&mut self.redis).await?;
        ensure!(parts.len() == 14, "claimed {} parts", parts.len());
        let text = |at: usize| redis::from_redis_value(parts[at].clone());
        Ok((text(1)?, text(12)?))
    }

    async fn settle(&mut self, worker: &str, lease: &str) -> Result<()> {
        let script = Script::new(&self.scripts.settle);
        let mut call = script.key(SCHEDULE);
        call.key(QUARANTINE).key(LOSSES).arg("").arg(worker).arg("written").arg(0).arg(lease).arg(MEMBER);
        Ok(call.invoke_async(&mut self.redis).await?)
    }

    /// Settles a whole claim of the member, without naming it but as the first and last.
    async fn settle_whole(&mut self, worker: &str, lease: &str) -> Result<()> {
        let script = Script::new(&self.scripts.settle);
        let mut call = script.key(SCHEDULE);
        call.key(QUARANTINE).key(LOSSES).arg("").arg(worker).arg("written");
        call.arg(1).arg(lease).arg(1).arg(MEMBER).arg(MEMBER);
        Ok(call.invoke_async(&mut self.redis).await?)
    }

    async fn release(&mut self, worker: &str, lease: &str, former: &str) -> Result<()> {
        let script = Script::new(&self.scripts.release);
        let mut call = script.key(SCHEDULE);
        call.arg("").arg(worker).arg(0).arg("tenant:t:").arg(lease).arg(MEMBER).arg(former);
        Ok(call.invoke_async(&mut self.redis).await?)
    }

    async fn mutate(&mut self) -> Result<()> {
        put_raw(&mut self.redis, SCHEDULE, MEMBER.as_bytes(), b"{}", None).await.map(drop)
    }
}

/// A worker that is late twice: its member is mutated, then claimed by another.
async fn lateness(mut lab: Lab) -> Result<Tally> {
    let (lease, former) = lab.claim("one", Duration::from_millis(40)).await?;
    lab.mutate().await?;
    lab.settle("one", &lease).await?;
    lab.release("one", &lease, &former).await?;
    // Nothing is left to claim where something broken has removed it.
    let Ok((lease, former)) = lab.claim("one", Duration::from_millis(1)).await else {
        return lab.leases.stop().await;
    };
    tokio::time::sleep(Duration::from_millis(20)).await;
    let (later, _) = lab.claim("two", Duration::from_secs(60)).await?;
    lab.settle("one", &lease).await?;
    lab.release("one", &lease, &former).await?;
    lab.settle("two", &later).await?;
    lab.leases.stop().await
}

/// The script without its comparison of score and lease.
fn without_comparison(script: &str) -> Result<String> {
    const COMPARISON: &str = "scores[n] and tonumber(scores[n]) == tonumber(ARGV[i])";
    let text = script.replace(COMPARISON, "scores[n]");
    ensure!(text != script, "the script does not contain {COMPARISON:?}");
    Ok(text)
}

#[tokio::test]
async fn the_workers_own_scripts_pass() -> Result<()> {
    let tally = lateness(Lab::new(Scripts::default()).await?).await?;
    assert_eq!(tally, Tally { claimed: 3, removed: 1, ..Tally::default() });
    Ok(())
}

#[tokio::test]
async fn a_whole_claim_is_settled_by_its_holder_only() -> Result<()> {
    let mut lab = Lab::new(Scripts::default()).await?;
    let (lease, _) = lab.claim("one", Duration::from_secs(60)).await?;
    lab.mutate().await?;
    lab.settle_whole("one", &lease).await?;
    let (lease, _) = lab.claim("one", Duration::from_secs(60)).await?;
    lab.settle_whole("one", &lease).await?;
    assert_eq!(lab.leases.stop().await?, Tally { claimed: 2, removed: 1, ..Tally::default() });

    let mut lab = Lab::new(Scripts::default()).await?;
    let (lease, _) = lab.claim("one", Duration::from_secs(60)).await?;
    lab.settle_whole("two", &lease).await?;
    let error = lab.leases.stop().await.err().context("it was not caught")?;
    assert!(format!("{error:#}").contains("belongs to"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn a_settle_of_more_than_the_claim_is_caught() -> Result<()> {
    let mut scripts = Scripts::default();
    let settle = scripts
        .settle
        .replace("'ZREMRANGEBYSCORE', KEYS[1], lease, lease", "'ZREMRANGEBYSCORE', KEYS[1], '-inf', lease");
    ensure!(settle != scripts.settle, "the script removes otherwise");
    scripts.settle = settle;
    let mut lab = Lab::new(scripts).await?;
    let (lease, _) = lab.claim("one", Duration::from_secs(60)).await?;
    lab.settle_whole("one", &lease).await?;
    let error = lab.leases.stop().await.err().context("it was not caught")?;
    assert!(format!("{error:#}").contains("was not asked for"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn a_settle_that_does_not_compare_is_caught() -> Result<()> {
    let mut scripts = Scripts::default();
    scripts.settle = without_comparison(&scripts.settle)?;
    let error = lateness(Lab::new(scripts).await?).await.err().context("it was not caught")?;
    assert!(format!("{error:#}").contains("by Anybody, and Settle shows the lease"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn a_release_that_does_not_compare_is_caught() -> Result<()> {
    let mut scripts = Scripts::default();
    scripts.release = without_comparison(&scripts.release)?;
    let error = lateness(Lab::new(scripts).await?).await.err().context("it was not caught")?;
    assert!(format!("{error:#}").contains("and Release shows the lease"), "{error:#}");
    Ok(())
}

#[tokio::test]
async fn the_lease_of_another_worker_and_a_removal_by_hand_are_caught() -> Result<()> {
    let mut lab = Lab::new(Scripts::default()).await?;
    let (lease, _) = lab.claim("one", Duration::from_secs(60)).await?;
    lab.settle("two", &lease).await?;
    let error = lab.leases.stop().await.err().context("it was not caught")?;
    assert!(format!("{error:#}").contains("belongs to"), "{error:#}");

    let mut lab = Lab::new(Scripts::default()).await?;
    redis::cmd("ZREM").arg(SCHEDULE).arg(MEMBER).query_async::<()>(&mut lab.redis).await?;
    let error = lab.leases.stop().await.err().context("it was not caught")?;
    assert!(format!("{error:#}").contains("removed by another client"), "{error:#}");
    Ok(())
}
