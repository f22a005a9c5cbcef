//! The ledger's environment as it is: one ConfigMap and one Secret with 160 variables, and what Kubernetes adds by itself.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{RedisOptions, RedisServer, Sandbox, eventually};
use balance_sync_tests::ledger::{all_settled, comes_in_step};
use balance_sync_tests::worker::password_in;
use balance_sync_tests::{SOON, Worker, WorkerBuilder, run};
use secrecy::ExposeSecret;

/// All variables that a ledger's chart sets, with sample values.
fn rendered() -> BTreeMap<String, String> {
    let text = include_str!("../../wire/ledger_env.env");
    let lines = text.lines().filter(|line| !line.starts_with('#'));
    lines.filter_map(|line| line.split_once('=')).map(|(k, v)| (k.to_owned(), v.to_owned())).collect()
}

/// The rendered variables with the sandbox's addresses and secrets in them, and nothing else changed.
fn of_sandbox(sandbox: &Sandbox) -> Result<BTreeMap<String, String>> {
    let mut variables = rendered();
    assert!(variables.len() > 155, "{} variables", variables.len());
    let redis_password = password_in(&sandbox.redis().url()).context("a password")?;
    let port = sandbox.redis().port().to_string();
    for (name, value) in [
        ("MULTI_TENANT_URL", sandbox.service().base_url()),
        ("MULTI_TENANT_SERVICE_API_KEY", sandbox.service().api_key().expose_secret().to_owned()),
        ("REDIS_HOST", format!("127.0.0.1:{port}")),
        ("REDIS_PASSWORD", redis_password.clone()),
        ("MULTI_TENANT_REDIS_HOST", "127.0.0.1".to_owned()),
        ("MULTI_TENANT_REDIS_PORT", port),
        ("MULTI_TENANT_REDIS_PASSWORD", redis_password),
    ] {
        let before = variables.insert(name.to_owned(), value);
        assert!(before.is_some(), "{name} is not among what the chart renders");
    }
    Ok(variables)
}

fn worker(variables: &BTreeMap<String, String>) -> WorkerBuilder {
    variables.iter().fold(Worker::bare(), |worker, (name, value)| worker.env(name, value))
}

#[tokio::test]
async fn a_worker_runs_in_the_ledgers_environment_unchanged() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 40).await?;
    let variables = of_sandbox(&sandbox)?;
    // The sandbox's tenant service speaks plain HTTP, which production does not allow.
    let allow = "BALANCE_SYNC__TENANTS__SERVICE__ALLOW_PLAIN_HTTP";
    let mut worker = worker(&variables)
        .env(allow, "true")
        .secret(&variables["REDIS_PASSWORD"])
        .secret(&variables["MULTI_TENANT_SERVICE_API_KEY"])
        .secret("sample-secret")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    for _ in 0..3 {
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await?;
    }
    all_settled(&sandbox).await?;

    let log = worker.log().lines();
    let notes: Vec<&str> = log
        .iter()
        .filter(|line| line.message == "configuration")
        .filter_map(|line| line.fields["note"].as_str())
        .collect();
    let about = |text: &str| notes.iter().filter(|note| note.contains(text)).count();
    assert_eq!(about("always renders"), 1, "one line says that its own defaults are in force: {notes:?}");
    let begun = worker.log().find("balance-sync starts").context("no first line")?;
    assert_eq!(begun.fields["batch_size"], 500);
    let redis = sandbox.redis().connect().await?;
    eventually(SOON, "a subscription to the events of the environment, in lower case", || async {
        let mut ask = redis::cmd("PUBSUB");
        ask.arg("NUMSUB").arg("tenant-events:production:");
        let (_, listeners): (String, u64) = ask.query_async(&mut redis.clone()).await?;
        anyhow::ensure!(listeners == 1, "{listeners}");
        anyhow::Ok(())
    })
    .await?;
    assert_eq!(worker.stop().await?.code, Some(0));

    // What is in force, and from where.
    let all: Vec<(&str, &str)> =
        variables.iter().map(|(name, value)| (name.as_str(), value.as_str())).collect();
    let checked = run(&["check"], &[&all[..], &[(allow, "true")]].concat()).await?;
    assert_eq!(checked.code, Some(0), "{checked:?}");
    for line in [
        "batch_size = 500  # default",
        "flush_timeout = \"50ms\"  # default",
        "poll_interval = \"25ms\"  # default",
        "environment = \"production\"  # ledger variable ENVIRONMENT_NAME",
        "service = \"ledger\"  # ledger variable APPLICATION_NAME",
        "settings_ttl = \"30s\"  # ledger variable MULTI_TENANT_CONNECTIONS_CHECK_INTERVAL_SEC",
    ] {
        assert!(checked.stdout.contains(line), "{line} in {}", checked.stdout);
    }
    assert!(
        !checked.stdout.contains(&variables["REDIS_PASSWORD"]) && !checked.stdout.contains("sample-secret")
    );
    Ok(())
}

/// The operators' switch to park the ledger's own worker stands in the same ConfigMap.
#[tokio::test]
async fn a_worker_is_not_parked_with_the_ledgers_own() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 60).await?;
    let mut variables = of_sandbox(&sandbox)?;
    variables.insert("BALANCE_SYNC_BATCH_SIZE".to_owned(), "1".to_owned());
    variables.insert("BALANCE_SYNC_FLUSH_TIMEOUT_MS".to_owned(), "2147483647".to_owned());
    variables.insert("ENVIRONMENT_NAME".to_owned(), "staging".to_owned());
    let mut worker = worker(&variables).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    all_settled(&sandbox).await?;
    let batches = worker.metric("balance_sync_batches_total", &[]).await?;
    assert!(batches < 60.0, "{batches} batches for 60 balances");
    let parked =
        worker.log().lines().iter().filter(|line| line.raw.contains("park the ledger's own")).count();
    assert_eq!(parked, 1);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// The Pub/Sub of tenant events may be another server than that of the balances. What else is odd in the environment is
/// reported, and stops nothing.
#[tokio::test]
async fn events_come_from_their_own_server_and_oddities_stop_nothing() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 5).await?;
    let events = RedisServer::start(RedisOptions::default()).await?;
    let mut variables = of_sandbox(&sandbox)?;
    let password = password_in(&events.url()).unwrap_or_default();
    for (name, value) in [
        ("ENVIRONMENT_NAME", " Staging "),
        ("MULTI_TENANT_REDIS_PORT", &events.port().to_string()),
        ("MULTI_TENANT_REDIS_PASSWORD", &password),
        ("ENABLE_TELEMETRY", "true"),
        ("OTEL_EXPORTER_OTLP_ENDPOINT", "$(HOST_IP):4317"),
    ] {
        variables.insert(name.to_owned(), value.to_owned());
    }
    let mut worker = worker(&variables).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    let redis = events.connect().await?;
    eventually(SOON, "a subscription on the server of the events", || async {
        let mut ask = redis::cmd("PUBSUB");
        ask.arg("NUMSUB").arg("tenant-events:staging:");
        let (_, listeners): (String, u64) = ask.query_async(&mut redis.clone()).await?;
        anyhow::ensure!(listeners == 1, "{listeners}");
        anyhow::Ok(())
    })
    .await?;
    for part in ["nothing is sent there", "is http://, which is allowed in the environment"] {
        let said = worker.log().lines().iter().filter(|line| line.raw.contains(part)).count();
        assert_eq!(said, 1, "{part}");
    }
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}

/// What can't work is refused by its name; what looks like an accident is reported. Never with the secret itself.
#[tokio::test]
async fn what_cannot_work_is_refused_by_name() -> Result<()> {
    let mut variables = rendered();
    variables.insert("ENVIRONMENT_NAME".to_owned(), "staging".to_owned());
    let refused: [(&[(&str, &str)], &str); 5] = [
        (
            &[("REDIS_HOST", "one:6379,two:6379"), ("REDIS_DB", "1")],
            "allowed: 0, as a Redis Cluster has no other database",
        ),
        (&[("REDIS_USE_GCP_IAM", "true")], "Google Cloud IAM"),
        (&[("DEPLOYMENT_MODE", "saas")], "DEPLOYMENT_MODE"),
        (&[("ENVIRONMENT_NAME", "production"), ("MULTI_TENANT_URL", "http://tenants")], "allow_plain_http"),
        (&[("MULTI_TENANT_URL", "")], "ledger variable MULTI_TENANT_URL"),
    ];
    let accepted: [(&[(&str, &str)], &str); 5] = [
        (&[("REDIS_HOST", "one:6379,two:6379")], "cluster_nodes = [\"one:6379\", \"two:6379\"]"),
        (&[("REDIS_PASSWORD", "hunter2-sesame\n")], "ends in a line break"),
        (&[("MULTI_TENANT_REDIS_PASSWORD", "\"hunter2-sesame\"")], "stands in quotes"),
        (&[("MULTI_TENANT_REDIS_HOST", "fd00::17")], "host = \"fd00::17\""),
        (&[("BALANCE_SYNC_PORT", "tcp://10.0.0.1:8080")], "batch_size = 500  # default"),
    ];
    let cases = refused.iter().map(|case| (case, 2)).chain(accepted.iter().map(|case| (case, 0)));
    for ((changes, said), code) in cases {
        let mut variables = variables.clone();
        variables.extend(changes.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())));
        let all: Vec<(&str, &str)> = variables.iter().map(|(n, v)| (n.as_str(), v.as_str())).collect();
        let checked = run(&["check"], &all).await?;
        let printed = format!("{}{}", checked.stdout, checked.stderr);
        assert!(checked.code == Some(code) && printed.contains(said), "{changes:?}: {checked:?}");
        assert!(
            !printed.contains("hunter2") && !printed.contains("sample-secret"),
            "{changes:?}: {checked:?}"
        );
    }
    Ok(())
}
