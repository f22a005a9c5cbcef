//! A whole worker that finds its Redis by three sentinels, which have a user, a password, TLS and an authority of their own.

use std::path::PathBuf;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{
    RedisOptions, RedisServer, Sandbox, SandboxTenant, TlsAuthority, WORKER_USER, eventually, free_port,
};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::{SOON, Worker, WorkerBuilder, options};
use redis::Value;
use secrecy::{ExposeSecret, SecretString};
use tempfile::TempDir;

const SENTINEL_PASSWORD: &str = "of-the-sentinels-0wn";
const WATCHER_PASSWORD: &str = "f0r-clients-of-sentinels";
/// As little as a client of sentinels needs.
const RIGHTS: &str = "+auth +hello +ping +client +info +sentinel|get-master-addr-by-name";

/// The sandbox's Redis as the master, a replica, and the sentinels. Workers, replication and sentinels use TLS.
struct Watched {
    sandbox: Sandbox,
    replica: RedisServer,
    sentinels: Vec<(RedisServer, u16)>,
    /// What the worker's settings name: passwords and authorities.
    files: [PathBuf; 4],
    _folders: [TempDir; 3],
}

async fn order(server: &RedisServer, command: &str) -> Result<Value> {
    let mut words = command.split(' ');
    let mut cmd = redis::cmd(words.next().unwrap_or_default());
    for word in words {
        cmd.arg(word);
    }
    cmd.query_async(&mut server.connect().await?).await.with_context(|| command.to_owned())
}

impl Watched {
    async fn start() -> Result<Self> {
        let folders = [tempfile::tempdir()?, tempfile::tempdir()?, tempfile::tempdir()?];
        let (of_redis, of_sentinels) = (TlsAuthority::new("redis")?, TlsAuthority::new("sentinels")?);
        let port = free_port()?;
        let mut wanted = options(2, 20);
        let password = wanted.redis.password.clone().context("a password")?;
        wanted.redis.worker_password = Some(SecretString::from("of-the-w0rker"));
        let mut lines = of_redis.redis_lines(folders[0].path())?;
        lines.extend(["tls-replication yes".to_owned(), "repl-diskless-sync-delay 0".to_owned()]);
        lines.push(format!("masterauth {}", password.expose_secret()));
        let mut for_replica = lines.clone();
        for_replica.push(format!("replicaof 127.0.0.1 {port}"));
        lines.push(format!("tls-port {port}"));
        wanted.redis.extra = lines;
        let of_replica = RedisOptions { extra: Vec::new(), ..wanted.redis.clone() };
        let sandbox = Sandbox::start(wanted).await?;
        let (replica, _) = RedisServer::start_with_tls(&of_replica, &for_replica).await?;

        let mut lines = of_sentinels.redis_lines(folders[1].path())?;
        // They meet servers and each other, and trust both authorities.
        let both = folders[1].path().join("both.pem");
        std::fs::write(&both, format!("{}{}", of_redis.ca, of_sentinels.ca))?;
        lines.extend([
            format!("tls-ca-cert-file {}", both.display()),
            "tls-replication yes".to_owned(),
            format!("user watcher on >{WATCHER_PASSWORD} ~* &* {RIGHTS}"),
            format!("sentinel monitor m 127.0.0.1 {port} 2"),
            format!("sentinel auth-pass m {}", password.expose_secret()),
            "sentinel down-after-milliseconds m 2000".to_owned(),
            "sentinel failover-timeout m 3000".to_owned(),
        ]);
        let options = RedisOptions {
            sentinel: true,
            password: Some(SecretString::from(SENTINEL_PASSWORD)),
            ..RedisOptions::default()
        };
        let mut sentinels = Vec::new();
        for _ in 0..3 {
            sentinels.push(RedisServer::start_with_tls(&options, &lines).await?);
        }
        let files =
            ["redis", "sentinel", "redis.pem", "sentinel.pem"].map(|name| folders[2].path().join(name));
        for (file, text) in
            files.iter().zip(["of-the-w0rker", WATCHER_PASSWORD, &of_redis.ca, &of_sentinels.ca])
        {
            std::fs::write(file, text)?;
        }
        let watched = Self { sandbox, replica, sentinels, files, _folders: folders };
        watched.is_complete().await?;
        Ok(watched)
    }

    /// Waits until each sentinel knows the replica and the others, and the replica has all.
    async fn is_complete(&self) -> Result<()> {
        for (sentinel, _) in &self.sentinels {
            eventually(SOON, "a sentinel that knows the others", || async {
                let fields: Vec<String> =
                    redis::from_redis_value(order(sentinel, "SENTINEL MASTER m").await?)?;
                let is = |name: &str, value: &str| fields.chunks(2).any(|field| field == [name, value]);
                ensure!(is("num-slaves", "1") && is("num-other-sentinels", "2"), "{fields:?}");
                ensure!(is("flags", "master"), "{fields:?}");
                Ok(())
            })
            .await?;
        }
        eventually(SOON, "a replica in sync", || async {
            let info: String = redis::from_redis_value(order(&self.replica, "INFO replication").await?)?;
            ensure!(info.contains("master_link_status:up"), "{info}");
            Ok(())
        })
        .await
    }

    fn worker(&self) -> Result<WorkerBuilder> {
        let addresses: Vec<String> =
            self.sentinels.iter().map(|(_, port)| format!("127.0.0.1:{port}")).collect();
        let mut worker = Worker::of(&self.sandbox)
            // Not used: the address comes from the sentinels.
            .set("redis.url", "redis://127.0.0.1:1")
            .set("redis.tls", "true")
            .set("redis.username", WORKER_USER)
            .set("redis.master_name", "m")
            .set("redis.sentinels", &addresses.join(","))
            .set("redis.sentinel_username", "watcher")
            .set("redis.response_timeout", "1s");
        for (key, file) in
            ["password_file", "sentinel_password_file", "ca_cert", "sentinel_ca_cert"].iter().zip(&self.files)
        {
            worker = worker.set(&format!("redis.{key}"), file.to_str().context("a path of text")?);
        }
        Ok(worker.secret(WATCHER_PASSWORD).secret("of-the-w0rker").secret("new-w"))
    }
}

async fn works(watched: &Watched, producer: &mut Producer) -> Result<()> {
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&watched.sandbox, producer).await?;
    all_settled(&watched.sandbox).await
}

#[tokio::test]
async fn a_worker_is_led_by_sentinels_through_rotated_passwords_to_the_next_master() -> Result<()> {
    let watched = Watched::start().await?;
    let Watched { sandbox, replica, sentinels, files, .. } = &watched;
    let mut worker = watched.worker()?.start().await?;
    let mut producer = sandbox.producer();
    works(&watched, &mut producer).await?;
    assert_eq!(worker.metric("balance_sync_redis_errors_total", &[]).await?, 0.0);

    // All passwords change, on the servers first and then in the files.
    for (sentinel, _) in sentinels {
        order(sentinel, "ACL SETUSER watcher resetpass >new-w4tcher").await?;
    }
    for server in [sandbox.redis(), replica] {
        order(server, &format!("ACL SETUSER {WORKER_USER} resetpass >new-w0rker")).await?;
    }
    let opened = worker.metric("balance_sync_redis_connections_opened_total", &[]).await?;
    std::fs::write(&files[1], "new-w4tcher\n")?;
    std::fs::write(&files[0], "new-w0rker\n")?;
    worker.reaches("balance_sync_redis_connections_opened_total", &[], opened + 1.0).await?;
    order(sandbox.redis(), &format!("CLIENT KILL USER {WORKER_USER}")).await?;
    works(&watched, &mut producer).await?;

    // The master is gone for good.
    eventually(SOON, "a replica that has all", || async {
        let offset = async |server: &RedisServer| -> Result<Option<u64>> {
            let info: String = redis::from_redis_value(order(server, "INFO replication").await?)?;
            let line = info.lines().find_map(|line| line.strip_prefix("master_repl_offset:"));
            Ok(line.and_then(|offset| offset.trim().parse().ok()))
        };
        let (ours, theirs) = (offset(sandbox.redis()).await?, offset(replica).await?);
        ensure!(ours.is_some() && theirs >= ours, "{ours:?} {theirs:?}");
        Ok(())
    })
    .await?;
    sandbox.redis().kill()?;
    eventually(SOON, "the next master", || async {
        let info: String = redis::from_redis_value(order(replica, "INFO replication").await?)?;
        ensure!(info.contains("role:master"), "{info}");
        Ok(())
    })
    .await?;
    let loads = sandbox.tenants().iter().map(SandboxTenant::load).collect();
    let mut elsewhere = Producer::new(&replica.url(), loads);
    elsewhere.refresh_versions().await?;
    elsewhere.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(sandbox, &elsewhere).await?;
    for tenant in sandbox.tenants() {
        eventually(SOON, "an empty schedule", || async {
            let left = order(replica, &format!("ZCARD {}", tenant.keys.schedule())).await?;
            ensure!(left == Value::Int(0), "{left:?} are left");
            Ok(())
        })
        .await?;
    }
    assert_eq!(
        worker.metric("balance_sync_collector_starts_total", &[]).await?,
        2.0,
        "nothing was started again"
    );
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
