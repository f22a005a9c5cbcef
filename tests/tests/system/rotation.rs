//! Passwords and certificate authorities that change while a worker is at work.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Producer, Progress};
use balance_sync_sandbox::{Sandbox, TlsAuthority, WORKER_USER, eventually, free_port};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::worker::password_in;
use balance_sync_tests::{SOON, Worker};
use nix::sys::signal::Signal;
use tokio_util::sync::CancellationToken;
use url::Url;

#[tokio::test]
async fn a_rotated_password_is_taken_up_and_no_balance_lost() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 100).await?;
    let mut worker = Worker::of(&sandbox).set("tenants.service.settings_ttl", "10m").start().await?;
    let mut producer = sandbox.producer();
    let (cancel, progress) = (CancellationToken::new(), Progress::new(3));
    let load = LoadOptions { rate: 600.0, ..LoadOptions::default() };
    let tenants = sandbox.tenants();
    let rotate = async {
        let rotated = async {
            for (round, tenant) in [&tenants[0], &tenants[2], &tenants[0]].into_iter().enumerate() {
                let id = [("tenant_id", tenant.id.as_str())];
                let before = worker.metric("balance_synced", &id).await?;
                worker.reaches("balance_synced", &id, before + 50.0).await?;
                // With its sessions ended the old password is of no use; without, the first new connection needs it.
                sandbox.rotate_password(&tenant.id, round != 1).await?;
                if round == 1 {
                    sandbox.postgres().end_sessions(Some(&tenant.role)).await?;
                }
                let rotated = sandbox.tenant(&tenant.id)?;
                worker.hide(&password_in(rotated.database_url()).context("a password")?);
                let at = worker.metric("balance_synced", &id).await?;
                let begun = std::time::Instant::now();
                worker.reaches("balance_synced", &id, at + 50.0).await?;
                anyhow::ensure!(begun.elapsed() < Duration::from_secs(60), "after {:?}", begun.elapsed());
            }
            anyhow::Ok(())
        };
        let rotated = rotated.await;
        cancel.cancel();
        rotated
    };
    let (report, rotated) = tokio::join!(producer.run(&load, &progress, &cancel), rotate);
    rotated?;
    assert_eq!(report?.errors, 0);
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert!(
        worker.log().find("settings of the tenant's database changed, connections are swapped").is_some()
    );
    let metrics = worker.metrics().await?;
    assert_eq!(metrics.sum("balance_sync_collector_starts_total", &[]), 3.0, "nothing was started again");
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// Gives the user of the worker this password on Redis.
async fn set_password(sandbox: &Sandbox, password: &str) -> Result<()> {
    let mut cmd = redis::cmd("ACL");
    cmd.arg("SETUSER").arg("sync").arg("on").arg("resetpass").arg(format!(">{password}"));
    cmd.arg("~*").arg("&*").arg("+@all");
    cmd.query_async::<()>(&mut sandbox.redis().connect().await?).await.context("ACL SETUSER")
}

/// Mutates everything and waits for it; no call to Redis may have failed.
async fn works(sandbox: &Sandbox, worker: &Worker, producer: &mut Producer) -> Result<()> {
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(sandbox, producer).await?;
    all_settled(sandbox).await?;
    assert_eq!(worker.metric("balance_sync_redis_errors_total", &[]).await?, 0.0);
    Ok(())
}

#[tokio::test]
async fn a_rotated_password_of_redis_is_taken_from_its_file() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 20).await?;
    let (first, second) = ("first-w0rd", "second-w0rd");
    set_password(&sandbox, first).await?;
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("password");
    std::fs::write(&path, first)?;
    let mut worker = Worker::of(&sandbox)
        .set("redis.username", "sync")
        .set("redis.password_file", path.to_str().context("a path of text")?)
        .start()
        .await?;
    worker.hide(first);
    worker.hide(second);
    let mut producer = sandbox.producer();
    works(&sandbox, &worker, &mut producer).await?;

    let connects = worker.metric("balance_sync_redis_connections_opened_total", &[]).await?;
    set_password(&sandbox, second).await?;
    std::fs::write(&path, format!("{second}\n"))?;
    // The connections are replaced, and none fails.
    worker.reaches("balance_sync_redis_connections_opened_total", &[], connects + 1.0).await?;
    works(&sandbox, &worker, &mut producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

#[tokio::test]
async fn a_rotated_password_of_redis_in_the_configuration_is_taken_on_sighup() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 20).await?;
    let (first, second) = ("first-w0rd", "second-w0rd");
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("config.toml");
    let text = std::fs::read_to_string(sandbox.config_path())?;
    let configure = |password: &str| {
        let url = sandbox.redis_url();
        assert!(text.contains(&url), "{text}");
        let own = format!("redis://sync:{password}@127.0.0.1:{}/0", sandbox.redis().port());
        std::fs::write(&path, text.replace(&url, &own))
    };
    set_password(&sandbox, first).await?;
    configure(first)?;
    let mut worker =
        Worker::with_config(&path).expect_error("the former configuration stays in force").start().await?;
    worker.hide(first);
    worker.hide(second);
    let mut producer = sandbox.producer();
    works(&sandbox, &worker, &mut producer).await?;

    let connects = worker.metric("balance_sync_redis_connections_opened_total", &[]).await?;
    set_password(&sandbox, second).await?;
    configure(second)?;
    worker.signal(Signal::SIGHUP)?;
    worker.reaches("balance_sync_redis_connections_opened_total", &[], connects + 1.0).await?;
    works(&sandbox, &worker, &mut producer).await?;

    // What can't be used is reported, and the former stays in force.
    std::fs::write(&path, "[redis]\nurl = 7\n")?;
    worker.signal(Signal::SIGHUP)?;
    eventually(SOON, "the refusal", || async {
        worker.log().find("the former configuration stays in force").is_some()
    })
    .await?;
    works(&sandbox, &worker, &mut producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The server's certificate is one of this authority from now on.
async fn present(sandbox: &Sandbox, authority: &TlsAuthority, folder: &Path) -> Result<()> {
    let mut change = redis::cmd("CONFIG");
    change.arg("SET");
    for line in &authority.redis_lines(folder)?[..3] {
        let (name, value) = line.split_once(' ').context("a name and a value")?;
        change.arg(name).arg(value);
    }
    change.query_async::<()>(&mut sandbox.redis().connect().await?).await.context("CONFIG SET")
}

#[tokio::test]
async fn a_certificate_authority_of_redis_is_taken_from_its_file() -> Result<()> {
    let folders = [tempfile::tempdir()?, tempfile::tempdir()?];
    let (old, new) = (TlsAuthority::new("old")?, TlsAuthority::new("new")?);
    let port = free_port()?;
    let mut wanted = balance_sync_tests::options(2, 20);
    wanted.redis.extra = old.redis_lines(folders[0].path())?;
    wanted.redis.extra.push(format!("tls-port {port}"));
    let sandbox = Sandbox::start(wanted).await?;
    let trusted = folders[0].path().join("trusted.pem");
    std::fs::write(&trusted, &old.ca)?;
    let mut url = Url::parse(&sandbox.redis_url())?;
    let _ = url.set_port(Some(port));
    let mut worker = Worker::of(&sandbox)
        .set("redis.url", &url.as_str().replacen("redis:", "rediss:", 1))
        .set("redis.ca_cert", trusted.to_str().context("a path of text")?)
        .start()
        .await?;
    let mut producer = sandbox.producer();
    works(&sandbox, &worker, &mut producer).await?;
    let opened = async || worker.metric("balance_sync_redis_connections_opened_total", &[]).await;

    // In order, as it is done by plan: both authorities are trusted, the server changes, the old one goes. No call fails.
    for (trust, change) in [(format!("{}{}", old.ca, new.ca), true), (new.ca.clone(), false)] {
        let before = opened().await?;
        std::fs::write(&trusted, trust)?;
        worker.reaches("balance_sync_redis_connections_opened_total", &[], before + 1.0).await?;
        if change {
            present(&sandbox, &new, folders[1].path()).await?;
        }
        works(&sandbox, &worker, &mut producer).await?;
    }

    // The server changes first: its certificate is refused, until the file has its authority.
    present(&sandbox, &old, folders[0].path()).await?;
    let mut kill = redis::cmd("CLIENT");
    kill.arg("KILL").arg("USER").arg(WORKER_USER);
    kill.query_async::<i64>(&mut sandbox.redis().connect().await?).await?;
    worker.reaches("balance_sync_tenant_degraded", &[("reason", "redis_unavailable")], 2.0).await?;
    eventually(SOON, "why the connection is refused", || async {
        let shown = worker.get(&format!("/api/v1/tenants/{}", sandbox.tenants()[0].id)).await?.1;
        ensure!(shown.contains("certificate"), "{shown}");
        Ok(())
    })
    .await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    std::fs::write(&trusted, &old.ca)?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    assert_eq!(
        worker.metric("balance_sync_collector_starts_total", &[]).await?,
        2.0,
        "nothing was started again"
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
