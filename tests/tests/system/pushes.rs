//! The push of metrics by OTLP: the same numbers as `/metrics`, the ledger's own series under its names and labels, and
//! a receiver that is away.

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::DEFAULT_TTL;
use balance_sync_sandbox::{Sandbox, SandboxTenant, TlsAuthority, eventually};
use balance_sync_tests::ledger::comes_in_step;
use balance_sync_tests::otlp::{Push, Receiver, Speaks};
use balance_sync_tests::worker::secrets_of;
use balance_sync_tests::{Metrics, SOON, Worker, WorkerBuilder};
use redis::AsyncCommands;

/// The series with the ledger's names: type, unit and labels.
const LEDGER: [(&str, &str, &str, &[&str]); 6] = [
    ("balance_synced", "counter", "1", &["ledger_id", "mode", "organization_id", "tenant_id"]),
    ("balance_sync_batch_failures_total", "counter", "1", &["ledger_id", "organization_id", "tenant_id"]),
    ("balance_sync_cleanup_failures_total", "counter", "1", &["ledger_id", "organization_id", "tenant_id"]),
    ("balance_sync_tenant_skip_total", "counter", "1", &["tenant_id"]),
    (
        "balance_sync_orphan_dropped_total",
        "counter",
        "1",
        &["ledger_id", "organization_id", "reason", "tenant_id"],
    ),
    ("balance_sync_last_success_timestamp", "gauge", "s", &["ledger_id", "organization_id", "tenant_id"]),
];

/// What is logged of an incident.
const CANT_BE_PUSHED: &str = "metrics can't be pushed, syncing goes on without that";
/// Counts the pushes.
const PUSHES: &str = "balance_sync_metrics_pushes_total";
const FAILED: [(&str, &str); 1] = [("outcome", "failed")];

/// A worker that pushes by the ledger's own variables, each second.
fn pushing_to(sandbox: &Sandbox, endpoint: &str) -> WorkerBuilder {
    Worker::of(sandbox)
        .env("ENABLE_TELEMETRY", "true")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)
        .set("telemetry.metrics_interval", "1s")
        .set("telemetry.traces", "false")
}

/// The labels of a tenant's only ledger.
fn labels(tenant: &SandboxTenant) -> [(&'static str, String); 3] {
    let balance = &tenant.balances[0];
    [
        ("organization_id", balance.organization.to_string()),
        ("ledger_id", balance.ledger.to_string()),
        ("tenant_id", tenant.id.clone()),
    ]
}

fn borrowed<'a>(labels: &'a [(&'static str, String)]) -> Vec<(&'a str, &'a str)> {
    labels.iter().map(|(key, value)| (*key, value.as_str())).collect()
}

async fn latest(receiver: &Receiver) -> Result<Push> {
    eventually(SOON, "a push", || async { receiver.pushes().pop() }).await
}

/// Every sample of the page in the push, with the same value where it doesn't move by itself; and nothing else but the ledger's series.
fn equals_the_page(page: &Metrics, push: &Push) -> Result<()> {
    let of_page: BTreeMap<_, _> =
        page.families().iter().map(|family| (family.name.as_str(), family.kind.as_str())).collect();
    let pushed: BTreeMap<_, _> = push
        .0
        .iter()
        .map(|sample| (sample.name.as_str(), sample.kind))
        .filter(|(name, _)| LEDGER.iter().all(|(ledger, ..)| ledger != name))
        .collect();
    ensure!(of_page == pushed, "{:?}", {
        let names = |map: &BTreeMap<_, _>| map.clone().into_keys().collect::<BTreeSet<&str>>();
        names(&of_page).symmetric_difference(&names(&pushed)).copied().collect::<Vec<_>>()
    });
    let mut compared = BTreeSet::new();
    for (name, labels, value) in page.samples() {
        let of_tenant = labels.contains_key("tenant_id") || name.starts_with("balance_sync_flush_duration");
        // These move by themselves.
        if !of_tenant || name.contains("_age_") || name.contains("_p99_") || name.contains("_life_") {
            continue;
        }
        let mut wanted = labels.clone();
        let bound = wanted.remove("le");
        let family = ["_bucket", "_sum", "_count"].iter().find_map(|end| {
            let base = name.strip_suffix(end)?;
            (of_page.get(base) == Some(&"histogram")).then_some((base, *end))
        });
        let (base, end) = family.unwrap_or((name, ""));
        let sample = push
            .0
            .iter()
            .find(|sample| sample.name == base && sample.labels == wanted)
            .with_context(|| format!("{name} {labels:?} was not pushed"))?;
        let (bounds, counts, count) = &sample.buckets;
        let found = match (end, bound.as_deref()) {
            ("_count", _) | ("_bucket", Some("+Inf")) => *count as f64,
            ("_bucket", Some(bound)) => {
                let at = bounds.iter().position(|own| own.to_string() == bound).context("a bound")?;
                counts[..=at].iter().sum::<u64>() as f64
            }
            _ => sample.value,
        };
        ensure!(found == value, "{name} {labels:?}: {found} was pushed, the page has {value}");
        ensure!(end.is_empty() || counts.iter().sum::<u64>() == *count, "{name}: {:?}", sample.buckets);
        compared.insert(name.to_owned());
    }
    ensure!(compared.len() > 15, "too little was compared: {compared:?}");
    Ok(())
}

/// No sum falls from one push to the next, and none begins anew.
fn sums_only_grow(pushes: &[Push]) -> Result<()> {
    let mut last = BTreeMap::new();
    for push in pushes {
        for sample in push.0.iter().filter(|sample| sample.kind != "gauge") {
            let key = (sample.name.clone(), sample.labels.clone());
            ensure!(sample.start > 0 && sample.start <= sample.time, "{sample:?}");
            if let Some((value, start)) = last.insert(key, (sample.value, sample.start)) {
                ensure!(sample.value >= value && sample.start == start, "{value} at {start}: {sample:?}");
            }
        }
    }
    Ok(())
}

#[tokio::test]
async fn a_push_has_the_values_of_the_page_and_the_ledgers_own_series() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 10).await?;
    let receiver = Receiver::start(Speaks::Http).await?;
    let mut worker = pushing_to(&sandbox, &format!("http://{}", receiver.address()))
        .env("OTEL_RESOURCE_SERVICE_NAME", "ledger")
        .env("OTEL_RESOURCE_DEPLOYMENT_ENVIRONMENT", "Staging")
        .set("worker.name", "w-1")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    for _ in 0..3 {
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await?;
    }
    let tenants = sandbox.tenants();
    let (closed, broken) = (&tenants[0], &tenants[1]);
    // A closed balance whose value is gone, a member that names no balance, and a tenant that can't be written.
    let mut redis = sandbox.redis().connect().await?;
    let (gone, unparseable) =
        (closed.keys.member(&closed.balances[1]), format!("{}balance:nothing", closed.keys.prefix()));
    let sql = format!("UPDATE balance SET deleted_at = now() WHERE id = '{}'", closed.balances[1].id);
    sandbox.postgres().execute(&closed.database, &sql).await?;
    let _: () = redis.del(&gone).await?;
    for member in [&gone, &unparseable] {
        let _: () = redis.zadd(closed.keys.schedule(), member, 1).await?;
    }
    let sql = format!("ALTER ROLE \"{}\" CONNECTION LIMIT 0", broken.role);
    sandbox.postgres().execute("postgres", &sql).await?;
    sandbox.postgres().end_sessions(Some(&broken.role)).await?;
    producer.mutate(1, &[0], DEFAULT_TTL).await?;
    let failed = [("tenant_id", broken.id.as_str()), ("step", "batch")];
    worker.reaches("balance_sync_tenant_failures_total", &failed, 1.0).await?;
    worker.reaches("balance_sync_quarantine_entries", &[("tenant_id", &closed.id)], 1.0).await?;
    let deleted = [("tenant_id", closed.id.as_str()), ("outcome", "deleted")];
    worker.reaches("balance_sync_balances_total", &deleted, 1.0).await?;
    let sql = format!("ALTER ROLE \"{}\" CONNECTION LIMIT -1", broken.role);
    sandbox.postgres().execute("postgres", &sql).await?;
    let written = [("tenant_id", broken.id.as_str()), ("outcome", "updated")];
    worker.reaches("balance_sync_balances_total", &written, 31.0).await?;

    let push = eventually(SOON, "a push like the page", || async {
        let (page, push) = (worker.metrics().await?, latest(&receiver).await?);
        equals_the_page(&page, &push)?;
        for (name, ..) in LEDGER {
            ensure!(!page.has(name), "{name} goes out twice");
        }
        anyhow::Ok(push)
    })
    .await?;

    for (name, kind, unit, keys) in LEDGER {
        let samples = push.named(name, &[]);
        assert!(!samples.is_empty(), "{name} was not pushed");
        for sample in samples {
            let found: Vec<&str> = sample.labels.keys().map(String::as_str).collect();
            assert_eq!((sample.kind, sample.unit.as_str(), found.as_slice()), (kind, unit, keys), "{name}");
        }
    }
    for (tenant, rows) in tenants.iter().zip([30.0, 31.0, 30.0]) {
        let mut labels = labels(tenant).to_vec();
        let success = push.sum("balance_sync_last_success_timestamp", &borrowed(&labels));
        let samples = push.named("balance_sync_last_success_timestamp", &borrowed(&labels)).len();
        let now = push.0[0].time as f64 / 1e9;
        assert!(samples == 1 && success > now - 3_600.0 && success <= now, "{success} at {now}");
        labels.push(("mode", "batch".to_owned()));
        assert_eq!(push.sum("balance_synced", &borrowed(&labels)), rows);
    }
    let of_broken = labels(broken);
    assert!(push.sum("balance_sync_batch_failures_total", &borrowed(&of_broken)) >= 1.0);
    let other = labels(&tenants[2]);
    assert_eq!(push.sum("balance_sync_batch_failures_total", &borrowed(&other)), 0.0);
    assert_eq!(push.sum("balance_sync_cleanup_failures_total", &borrowed(&other)), 0.0);
    let skips =
        |tenant: &SandboxTenant| push.sum("balance_sync_tenant_skip_total", &[("tenant_id", &tenant.id)]);
    assert_eq!(skips(&tenants[2]), 0.0);
    let dropped = |reason, labels: &[(&'static str, String)]| {
        let mut labels = labels.to_vec();
        labels.push(("reason", reason));
        push.sum("balance_sync_orphan_dropped_total", &borrowed(&labels))
    };
    assert_eq!(dropped("expired".to_owned(), &labels(closed)), 1.0);
    let unknown = [("organization_id", "unknown".to_owned()), ("ledger_id", "unknown".to_owned())];
    assert_eq!(dropped("unparseable".to_owned(), &unknown), 1.0);
    assert_eq!(dropped("unparseable".to_owned(), &[]), 1.0);

    let resource = |key: &str| push.0[0].resource.get(key).map_or("", String::as_str);
    assert_eq!((resource("service.name"), resource("service.instance.id")), ("ledger", "w-1"));
    assert_eq!(resource("service.version"), env!("CARGO_PKG_VERSION"));
    let environment = ["deployment.environment", "deployment.environment.name"].map(resource);
    assert_eq!(environment, ["staging", "staging"]);
    let lag = push.named("balance_sync_lag_seconds", &[("tenant_id", &tenants[2].id)])[0];
    assert_eq!((lag.kind, lag.unit.as_str(), lag.buckets.2), ("histogram", "s", 30));

    assert_eq!(worker.stop().await?.code, Some(0));
    assert!(receiver.pushes().len() >= 2);
    sums_only_grow(&receiver.pushes())?;
    receiver.check(&secrets_of(&sandbox))
}

#[tokio::test]
async fn the_last_push_has_all_and_goes_by_grpc_as_the_ledgers_does() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let receiver = Receiver::start(Speaks::Grpc).await?;
    let mut worker = pushing_to(&sandbox, &receiver.address().to_string())
        .set("telemetry.metrics_interval", "1h")
        .set("telemetry.metrics_headers", "authorization=Bearer%20s3same-s3same")
        .set("telemetry.metrics_ledgers", "0")
        .set("admin.metrics_tenants", "1")
        .secret("s3same-s3same")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(receiver.pushes().len(), 0);
    assert_eq!(worker.stop().await?.code, Some(0));
    let push = latest(&receiver).await?;
    assert_eq!(push.sum("balance_synced", &[("mode", "batch")]), 20.0);
    // Bounded: one tenant by itself, no ledger of it, and all others together.
    let samples = push.named("balance_synced", &[]);
    let of = |key: &str| samples.iter().map(|sample| sample.labels[key].clone()).collect::<BTreeSet<_>>();
    assert_eq!(of("ledger_id"), BTreeSet::from(["other".to_owned()]));
    assert!(of("tenant_id").contains("other") && samples.len() == 2, "{samples:?}");
    let header = "authorization: Bearer s3same-s3same".to_owned();
    assert!(receiver.headers().contains(&header), "{:?}", receiver.headers());
    receiver.check(&secrets_of(&sandbox))
}

#[tokio::test]
async fn a_receiver_that_is_away_or_hangs_costs_nothing_but_its_pushes() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    let begun = Instant::now();
    let mut receiver = Receiver::start(Speaks::Http).await?;
    let address = receiver.address();
    let mut worker = pushing_to(&sandbox, &format!("http://{address}"))
        .set("telemetry.timeout", "300ms")
        .set("telemetry.headers", "x-key=s3same-s3same")
        .secret("s3same-s3same")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    eventually(SOON, "a push", || async { receiver.pushes().last()?.0.first().cloned() }).await?;
    let mut before = receiver.pushes();
    for speaks in [None, Some(Speaks::Nothing)] {
        receiver.stop().await;
        let hanging = match speaks {
            Some(speaks) => Some(Receiver::start_at(speaks, address).await?),
            None => None,
        };
        let at = worker.metric(PUSHES, &FAILED).await?;
        worker.reaches(PUSHES, &FAILED, at + 2.0).await?;
        producer.mutate_each(DEFAULT_TTL).await?;
        comes_in_step(&sandbox, &producer).await?;
        if let Some(hanging) = hanging {
            hanging.stop().await;
        }
        receiver = Receiver::start_at(Speaks::Http, address).await?;
        latest(&receiver).await?;
        before.extend(receiver.pushes());
    }
    worker.logs("metrics are pushed again").await?;
    let ok = worker.metric(PUSHES, &[("outcome", "ok")]).await?;
    assert!(ok >= 2.0, "{ok}");
    let ended = worker.stop().await?;
    assert_eq!(ended.code, Some(0));
    assert!(ended.took < Duration::from_secs(30), "{:?}", ended.took);
    let last = latest(&receiver).await?;
    assert_eq!(last.sum("balance_synced", &[]), 60.0, "nothing that was counted meanwhile is lost");
    before.extend(receiver.pushes());
    sums_only_grow(&before)?;
    let lines = ended.log.lines();
    let times = lines.iter().filter(|line| line.message == CANT_BE_PUSHED).count();
    // Two incidents, of which the second is not logged when it follows the first at once.
    let most = 1 + usize::from(begun.elapsed() >= Duration::from_secs(60));
    assert!((1..=most).contains(&times), "logged {times} times");
    receiver.check(&secrets_of(&sandbox))
}

#[tokio::test]
async fn the_ledgers_names_stay_on_the_page_where_that_is_chosen() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let receiver = Receiver::start(Speaks::Http).await?;
    let worker = pushing_to(&sandbox, &format!("http://{}", receiver.address()))
        .set("telemetry.ledger_series", "page")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    worker.reaches("balance_synced", &[], 10.0).await?;
    let push = latest(&receiver).await?;
    for (name, ..) in LEDGER {
        assert!(push.named(name, &[]).is_empty(), "{name} goes out twice");
    }
    Ok(())
}

#[tokio::test]
async fn a_connection_that_is_dead_without_a_word_is_replaced() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let receiver = Receiver::start(Speaks::GrpcLater).await?;
    let mut worker = pushing_to(&sandbox, &receiver.address().to_string())
        .set("telemetry.metrics_timeout", "500ms")
        .start()
        .await?;
    // The first push is lost with its connection.
    let push = latest(&receiver).await?;
    assert!(!push.0.is_empty());
    worker.reaches(PUSHES, &FAILED, 1.0).await?;
    worker.logs("metrics are pushed again").await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    receiver.check(&secrets_of(&sandbox))
}

#[tokio::test]
async fn a_receiver_that_hangs_holds_up_no_stop() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    for speaks in [Speaks::Http, Speaks::Grpc] {
        let silent = Receiver::start(Speaks::Nothing).await?;
        let mut worker = pushing_to(&sandbox, &format!("http://{}", silent.address()))
            .set("telemetry.metrics_protocol", if speaks == Speaks::Http { "http/protobuf" } else { "grpc" })
            .set("telemetry.timeout", "1m")
            .set("telemetry.drain_deadline", "1s")
            .start()
            .await?;
        // A push is under way, which may take a minute.
        silent.is_connected().await?;
        let ended = worker.stop().await?;
        assert_eq!(ended.code, Some(0), "{speaks:?}");
        assert!(ended.took < Duration::from_secs(30), "{speaks:?}: {:?}", ended.took);
        let line = ended.log.find("the last push of metrics did not arrive whole");
        assert!(line.is_some(), "{speaks:?}: nothing was said at the end");
    }
    Ok(())
}

#[tokio::test]
async fn a_receivers_certificate_is_checked_by_the_configured_authority() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let authority = TlsAuthority::new("the receiver's")?;
    let folder = tempfile::tempdir()?;
    let file = folder.path().join("ca.pem");
    let name = file.to_str().context("a path")?;
    for speaks in [Speaks::Http, Speaks::Grpc] {
        std::fs::write(&file, TlsAuthority::new("another")?.ca)?;
        let receiver = Receiver::start_with_tls(speaks, &authority).await?;
        let builder = || {
            pushing_to(&sandbox, &format!("https://localhost:{}", receiver.address().port()))
                .env("OTEL_EXPORTER_OTLP_CERTIFICATE", name)
                .set("telemetry.protocol", if speaks == Speaks::Http { "http/protobuf" } else { "grpc" })
                .set("telemetry.traces", "true")
        };
        let mut worker = builder().start().await?;
        worker.reaches(PUSHES, &FAILED, 2.0).await?;
        let line = worker.logs(CANT_BE_PUSHED).await?;
        assert!(line.raw.contains("certificate"), "{}", line.raw);
        let lost = worker.logs("spans are lost, syncing goes on without them").await?;
        assert!(lost.raw.contains("failed"), "{}", lost.raw);
        let arrived = (receiver.pushes().len(), receiver.spans().len());
        assert_eq!(arrived, (0, 0), "{speaks:?}: the certificate was not checked");
        // The file is read again, for metrics and for traces.
        std::fs::write(&file, &authority.ca)?;
        latest(&receiver).await?;
        eventually(SOON, "a span", || async { receiver.spans().pop() }).await?;
        assert_eq!(worker.stop().await?.code, Some(0));
        receiver.check(&secrets_of(&sandbox))?;
    }
    Ok(())
}

#[tokio::test]
async fn credentials_that_a_receiver_repeats_are_not_logged() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let receiver = Receiver::start(Speaks::GrpcRefuses).await?;
    let mut worker = pushing_to(&sandbox, &receiver.address().to_string())
        .set("telemetry.headers", "authorization=Bearer%20s3same-s3same")
        .secret("s3same-s3same")
        .start()
        .await?;
    let line = worker.logs(CANT_BE_PUSHED).await?;
    assert_eq!(
        line.fields["error"], "the receiver answered Unauthenticated: unknown credentials ***",
        "{}",
        line.raw
    );
    let ended = worker.stop().await?;
    assert_eq!(ended.code, Some(0));
    receiver.check(&secrets_of(&sandbox))
}
