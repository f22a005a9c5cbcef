//! Next to the ledger's own worker: it is seen, named and shown as parked; claims take its locks only while they must; what it drops
//! is found.

use std::io::Write as _;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{Format, LoadOptions, Producer, Progress, Round};
use balance_sync_sandbox::{Sandbox, SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{Audit, LedgerWorker, SOON, Worker, WorkerBuilder, run};
use redis::AsyncCommands;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use crate::api::json;

/// Mutations that don't end before the test does.
fn load(rate: f64) -> LoadOptions {
    LoadOptions { rate, duration: None, hot_key_share: 0.2, ..LoadOptions::default() }
}

fn worker(sandbox: &Sandbox, mode: &str) -> WorkerBuilder {
    Worker::of(sandbox).set("claim.mode", mode).set("claim.quiet", "20s")
}

async fn ledger_worker(sandbox: &Sandbox, tenant: &SandboxTenant) -> Result<LedgerWorker> {
    Ok(LedgerWorker::new(tenant, sandbox.redis().connect().await?, sandbox.pool(tenant)))
}

/// What the fleet knows of the ledger's own worker at a tenant.
async fn known(worker: &Worker, tenant: &SandboxTenant) -> Result<Value> {
    Ok(json(worker, &format!("/api/v1/tenants/{}", tenant.id)).await?["neighbour"].clone())
}

/// Waits until something is known of it.
async fn comes_to(worker: &Worker, tenant: &SandboxTenant, name: &str, wanted: &str) -> Result<Value> {
    eventually(SOON, wanted, || async {
        let known = known(worker, tenant).await?;
        ensure!(known[name] == wanted, "{known}");
        Ok(known)
    })
    .await
}

async fn verdict_says(worker: &Worker, verdict: &str, sentence: &str) -> Result<()> {
    eventually(SOON, sentence, || async {
        let overview = json(worker, "/api/v1/overview").await?;
        ensure!(
            overview["verdict"] == verdict && overview["reasons"].to_string().contains(sentence),
            "{overview}"
        );
        Ok(())
    })
    .await
}

/// Plays a test while the ledger's own worker runs, and stops it.
async fn beside<T>(ledger: &mut LedgerWorker, test: impl Future<Output = Result<T>>) -> Result<(Round, T)> {
    let over = CancellationToken::new();
    let played = async {
        let played = test.await;
        over.cancel();
        played
    };
    let (round, played) = tokio::join!(ledger.run(&over), played);
    Ok((round, played?))
}

/// Plays a test while mutations go on, and ends them.
async fn under_load<T>(
    producer: &mut Producer,
    options: &LoadOptions,
    test: impl Future<Output = Result<T>>,
) -> Result<T> {
    let (progress, over) = (Progress::new(1), CancellationToken::new());
    let played = async {
        let played = test.await;
        over.cancel();
        played
    };
    let (report, played) = tokio::join!(producer.run(options, &progress, &over), played);
    let played = played?;
    ensure!(report?.errors == 0, "the load failed");
    Ok(played)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_seen_in_either_mode_and_shown_as_parked_when_its_environment_parks_it() -> Result<()> {
    for mode in ["lease", "lock"] {
        let sandbox = balance_sync_tests::sandbox(1, 100).await?;
        let tenant = &sandbox.tenants()[0];
        let mut producer = sandbox.producer();
        let mut ours = worker(&sandbox, mode).start().await?;
        under_load(
            &mut producer,
            &load(150.0),
            Box::pin(async {
                let mut ledger = ledger_worker(&sandbox, tenant).await?;
                let seen = async {
                    let known = comes_to(&ours, tenant, "presence", "active").await?;
                    ensure!(known["sign"] == "lock" && known["claim_mode"] == mode, "{known}");
                    verdict_says(&ours, "attention", "The ledger's own worker is active on 1 tenant: ")
                        .await?;
                    verdict_says(&ours, "attention", "BALANCE_SYNC_FLUSH_TIMEOUT_MS=2147483647").await?;
                    ours.reaches("balance_sync_ledger_worker_active", &[("tenant_id", &tenant.id)], 1.0)
                        .await?;
                    let config = sandbox.config_path().display().to_string();
                    // A command reads what the workers have stored, a moment later than the worker itself.
                    eventually(SOON, "it in the terminal", || async {
                        let shown =
                            run(&["tenants", "show", tenant.id.as_str(), "--config", &config], &[]).await?;
                        ensure!(shown.stdout.contains("worker active, seen"), "{}", shown.stdout);
                        anyhow::Ok(())
                    })
                    .await
                };
                beside(&mut ledger, seen).await.with_context(|| format!("mode {mode}"))?;
                // Its pod starts again, with the environment that parks it.
                let mut ledger = ledger_worker(&sandbox, tenant).await?.parked();
                let parked = async {
                    let known = comes_to(&ours, tenant, "presence", "parked").await?;
                    ensure!(known["deadly_mix"] == false && known["dropped"] == 0, "{known}");
                    verdict_says(&ours, "healthy", "The ledger's own worker of 1 tenant is parked").await?;
                    anyhow::Ok(())
                };
                beside(&mut ledger, parked).await.with_context(|| format!("mode {mode}"))
            }),
        )
        .await?;
        comes_in_step(&sandbox, &producer).await?;
        all_settled(&sandbox).await?;
        assert_eq!(ours.stop().await?.code, Some(0));
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mode_auto_takes_its_locks_only_while_it_is_seen_or_may_be_there() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 100).await?;
    let tenant = &sandbox.tenants()[0];
    let pool = sandbox.pool(tenant);
    Audit::begin(&sandbox, tenant).await?;
    let mut producer = sandbox.producer();
    let mut ours = worker(&sandbox, "auto").start().await?;
    let mut by_ledger = 0;
    under_load(
        &mut producer,
        &load(150.0),
        Box::pin(async {
            ours.reaches("balance_sync_claims_with_locks", &[("tenant_id", &tenant.id)], 1.0).await?;
            comes_to(&ours, tenant, "claim_mode", "lease").await?;
            let mut ledger = ledger_worker(&sandbox, tenant).await?;
            let seen = comes_to(&ours, tenant, "claim_mode", "lock");
            by_ledger = beside(&mut ledger, seen).await?.0.written;
            comes_to(&ours, tenant, "claim_mode", "lease").await?;
            Ok(())
        }),
    )
    .await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let audit = Audit::read(&pool, tenant).await?;
    assert_eq!((audit.not_forward, audit.updates), (0, audit.distinct), "{audit:?}");
    let by_us = ours.metric("balance_synced", &[]).await?;
    assert_eq!(audit.updates as f64, by_ledger as f64 + by_us);
    // The next worker knows what this one has learnt.
    assert_eq!(ours.stop().await?.code, Some(0));
    let mut next = worker(&sandbox, "auto").set("claim.quiet", "1h").start().await?;
    eventually(SOON, "what the former worker knew", || async {
        let known = known(&next, tenant).await?;
        ensure!(known["presence"] == "active" && known["claim_mode"] == "lock", "{known}");
        Ok(())
    })
    .await?;
    assert_eq!(next.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_old_release_next_to_newer_writers_is_named_and_what_it_drops_is_written_all_the_same()
-> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 3000).await?;
    let tenant = &sandbox.tenants()[0];
    let mut producer = sandbox.producer().in_format(Format::Dual);
    let mut ours = worker(&sandbox, "auto").expect_error("redis has lost data of a tenant").start().await?;
    let mut dropped = 0;
    // A balance that is mutated again at once hides that its former mutation was dropped.
    let rare = LoadOptions { hot_key_share: 0.0, ..load(120.0) };
    under_load(
        &mut producer,
        &rare,
        Box::pin(async {
            let mut ledger = ledger_worker(&sandbox, tenant).await?.old();
            let named = async {
                eventually(SOON, "the deadly mix", || async {
                    let known = known(&ours, tenant).await?;
                    ensure!(known["deadly_mix"] == true, "{known}");
                    ensure!(known["examples"].as_array().is_some_and(|some| !some.is_empty()), "{known}");
                    Ok(())
                })
                .await?;
                eventually(SOON, "the warning", || async {
                    let overview = json(&ours, "/api/v1/overview").await?;
                    let says = "is of a release up to 4.0 next to writers of 4.1 or later";
                    ensure!(overview["reasons"].to_string().contains(says), "{overview}");
                    ensure!(overview["verdict"] != "healthy", "{overview}");
                    Ok(())
                })
                .await?;
                anyhow::Ok(())
            };
            beside(&mut ledger, named).await?;
            dropped = ledger.removed_unwritten.len();
            Ok(())
        }),
    )
    .await?;
    ensure!(dropped > 0, "it has dropped nothing");
    // Also what nobody has seen it drop.
    comes_in_step(&sandbox, &producer).await?;
    ours.reaches("balance_sync_ledger_worker_dropped_total", &[], 1.0).await?;
    assert_eq!(ours.stop().await?.code, Some(0));
    Ok(())
}

/// What stops the ledger's own worker by its rights in Redis, and gives them back; `docs/operations.md` has the same lines.
const STOP: &str = "ACL SETUSER default -@sortedset +zadd '(+@sortedset ~engine:{transactions}:* ~tenant:*:engine:{transactions}:*)'";
const GO_ON: &str = "ACL SETUSER default +@sortedset clearselectors";
const DOCUMENT: &str = include_str!("../../../docs/operations.md");

/// Carries out such a line.
async fn acl(sandbox: &Sandbox, line: &str) -> Result<()> {
    ensure!(DOCUMENT.contains(line), "{line} is not documented");
    let (before, selector) = line.split_once(" '").unwrap_or((line, ""));
    let mut words: Vec<&str> = before.split(' ').collect();
    words.extend(selector.strip_suffix('\''));
    let mut cmd = redis::cmd(words[0]);
    for word in &words[1..] {
        cmd.arg(*word);
    }
    let () = cmd.query_async(&mut sandbox.redis().connect().await?).await?;
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn rights_in_redis_stop_it_and_not_the_ledger() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 60).await?;
    let tenant = &sandbox.tenants()[0];
    let mut redis = sandbox.redis().connect().await?;
    let info: String = redis::cmd("INFO").arg("server").query_async(&mut redis).await?;
    if info.contains("redis_version:6.") {
        // Past the capture of a test's output: a skipped test must not look like a passed one.
        writeln!(std::io::stderr(), "skipped: selectors of rights need Redis 7")?;
        return Ok(());
    }
    let mut producer = sandbox.producer();
    let mut ours = worker(&sandbox, "auto").start().await?;
    let mut ledger = ledger_worker(&sandbox, tenant).await?;
    under_load(
        &mut producer,
        &load(150.0),
        Box::pin(async {
            let seen = async {
                comes_to(&ours, tenant, "presence", "active").await?;
                acl(&sandbox, STOP).await?;
                let known = comes_to(&ours, tenant, "presence", "parked").await?;
                ensure!(known["claim_mode"] == "lease", "{known}");
                anyhow::Ok(())
            };
            beside(&mut ledger, seen).await?;
            let refused = ledger.round().await.err().map(|error| format!("{error:#}")).unwrap_or_default();
            ensure!(refused.contains("access") || refused.contains("permission"), "{refused}");
            // The ledger's own sorted set of later releases.
            let recovery = format!("{}engine:{{transactions}}:recovery-cleanup", tenant.keys.prefix());
            let () = redis.zadd(&recovery, "one", 1).await?;
            let due: Vec<String> = redis.zrangebyscore(&recovery, "-inf", "+inf").await?;
            let () = redis.zrem(&recovery, "one").await?;
            ensure!(due == ["one"], "{due:?}");
            Ok(())
        }),
    )
    .await?;
    acl(&sandbox, GO_ON).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    ledger.round().await?;
    assert_eq!(ours.stop().await?.code, Some(0));
    Ok(())
}
