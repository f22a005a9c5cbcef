//! Traces: which spans there are and what they say, that the tenant service and the log name the same trace, and that
//! no flush waits for a receiver.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, put_raw};
use balance_sync_sandbox::{Sandbox, ServiceRoute, eventually};
use balance_sync_tests::ledger::comes_in_step;
use balance_sync_tests::otlp::{Received, Receiver, Speaks};
use balance_sync_tests::worker::secrets_of;
use balance_sync_tests::{Line, SOON, Worker, WorkerBuilder};

/// A worker that sends traces by the standard variables, often.
fn tracing_to(sandbox: &Sandbox, receiver: &Receiver) -> WorkerBuilder {
    Worker::of(sandbox)
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &format!("http://{}", receiver.address()))
        .env("OTEL_BSP_SCHEDULE_DELAY", "50")
        .set("tenants.poll_interval", "300ms")
        .set("collector.idle_backoff_max", "100ms")
}

/// The first span of this name that fits, when it comes.
async fn span(receiver: &Receiver, name: &str, fits: impl Fn(&Received) -> bool) -> Result<Received> {
    eventually(SOON, &format!("a span {name}"), || async {
        receiver.named(name).into_iter().find(|span| fits(span))
    })
    .await
}

/// The parts of a span of this name, when there is one.
async fn part(receiver: &Receiver, name: &str, of: &Received) -> Result<Received> {
    span(receiver, name, |span| span.trace == of.trace && span.parent.as_ref() == Some(&of.id)).await
}

fn ids(line: &Line) -> (&str, &str) {
    let text = |key: &str| line.fields[key].as_str().unwrap_or_default();
    (text("trace_id"), text("span_id"))
}

#[tokio::test]
async fn a_batch_is_one_trace_from_its_claim_to_its_settling() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(3, 10).await?;
    let receiver = Receiver::start(Speaks::Http).await?;
    let mut worker = tracing_to(&sandbox, &receiver)
        .env("OTEL_SERVICE_NAME", "sync-under-test")
        .env("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test%20bed")
        .env("OTEL_EXPORTER_OTLP_HEADERS", "x-scope=tests")
        .set("worker.name", "w-1")
        .start()
        .await?;

    // Idle: the tenant list is read, and that is all there is to tell.
    eventually(SOON, "three polls", || async { receiver.named("reconcile").len() >= 3 }).await?;
    for name in ["batch", "claim", "flush", "settings"] {
        assert_eq!(receiver.named(name).len(), 0, "{name} of an idle tenant");
    }

    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    for tenant in sandbox.tenants() {
        let batch = span(&receiver, "batch", |span| span.get("tenant_id") == tenant.id.as_str()).await?;
        assert_eq!(batch.parent, None);
        let claim = part(&receiver, "claim", &batch).await?;
        assert_eq!((claim.get("tenant_id"), claim.get("db.system.name")), (tenant.id.as_str(), "redis"));
        assert!(claim.get("claimed").parse::<u64>()? >= 1 && claim.get("limit") == "63", "{claim:?}");
        assert!(claim.nanos > 0 && claim.nanos <= batch.nanos, "{claim:?} in {batch:?}");
        let flush = part(&receiver, "flush", &batch).await?;
        assert_eq!((flush.get("tenant_id"), flush.get("outcome")), (tenant.id.as_str(), "written"));
        assert_eq!((flush.get("trigger"), flush.get("updated")), ("calm", flush.get("claimed")));
        assert_eq!((flush.get("stale"), flush.get("quarantined"), flush.get("released")), ("0", "0", "0"));
        let gather = part(&receiver, "gather", &flush).await?;
        assert_eq!(gather.get("rows"), flush.get("claimed"));
        let update = part(&receiver, "update", &flush).await?;
        assert!(update.client && update.get("db.system.name") == "postgresql", "{update:?}");
        let settle = part(&receiver, "settle", &flush).await?;
        assert_eq!(settle.get("members"), flush.get("claimed"));

        // The first batch needs the tenant's settings, and the service gets the context of the request.
        let place = part(&receiver, "place", &batch).await?;
        let settings = part(&receiver, "settings", &place).await?;
        let route = "GET /v1/tenants/{id}/associations/{service}/connections";
        let call = part(&receiver, route, &settings).await?;
        assert!(call.client && call.get("tenant_id") == tenant.id.as_str(), "{call:?}");
        assert_eq!((call.get("http.request.method"), call.get("http.response.status_code")), ("GET", "200"));
        assert!(call.get("url.full").contains(tenant.id.as_str()), "{call:?}");
        let received = sandbox.service().traceparents(ServiceRoute::Connections);
        assert!(received.contains(&call.traceparent()), "{received:?}");

        // And so does the log.
        let line =
            worker.log().lines().into_iter().find(|line| {
                line.message == "flushed" && line.tenant_id.as_deref() == Some(tenant.id.as_str())
            });
        let line = line.context("no line of the flush")?;
        assert_eq!(ids(&line), (flush.trace.as_str(), flush.id.as_str()), "{}", line.raw);
    }

    // The pass that started the collectors, and the poll that it followed.
    let pass = span(&receiver, "reconcile", |span| span.get("started") == "3").await?;
    let line = worker.log().find("reconciled").context("no line of the pass")?;
    assert_eq!(ids(&line), (pass.trace.as_str(), pass.id.as_str()), "{}", line.raw);
    let poll =
        span(&receiver, "reconcile", |span| span.get("trigger") == "poll" && span.get("tenants") == "3")
            .await?;
    assert_eq!((poll.parent.as_ref(), poll.get("started")), (None, "0"));
    let call = part(&receiver, "GET /v1/tenants/active", &poll).await?;
    assert!(call.client && !call.failed && call.get("http.response.status_code") == "200", "{call:?}");
    assert!(sandbox.service().traceparents(ServiceRoute::List).contains(&call.traceparent()));
    let starts = worker.log().find("balance-sync starts").context("no first line")?;
    assert_eq!(ids(&starts), ("", ""), "{}", starts.raw);
    assert_eq!(starts.fields["claim_mode"], "lease", "as it is written in the configuration");
    let sent = worker.log().find("traces are sent").context("no line about traces")?;
    assert_eq!(sent.fields["protocol"], "http/protobuf", "{}", sent.raw);

    let resource = |key: &str| poll.resource.get(key).map_or("", String::as_str);
    assert_eq!((resource("service.name"), resource("service.instance.id")), ("sync-under-test", "w-1"));
    assert_eq!(resource("deployment.environment.name"), "test bed");
    assert!(receiver.headers().contains(&"x-scope: tests".to_owned()), "{:?}", receiver.headers());
    assert_eq!(worker.stop().await?.code, Some(0));
    receiver.check(&secrets_of(&sandbox))
}

#[tokio::test]
async fn what_fails_says_so_in_its_trace() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let receiver = Receiver::start(Speaks::Http).await?;
    let tenant = sandbox.tenants().remove(0);
    sandbox.service().set_connections_raw(tenant.id.as_str(), Some("{\"databases\": 7}"));
    let mut worker = tracing_to(&sandbox, &receiver).start().await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    let place = span(&receiver, "place", |span| span.failed).await?;
    assert_eq!(place.get("error.type"), "tenant_config_malformed");
    let batch = span(&receiver, "batch", |span| place.parent.as_ref() == Some(&span.id)).await?;
    assert_eq!(batch.get("outcome"), "given_back");
    let release = part(&receiver, "release", &batch).await?;
    assert!(release.get("members").parse::<u64>()? >= 1, "{release:?}");
    let degraded = worker.logs("tenant degraded").await?;
    assert_eq!(degraded.tenant_id.as_deref(), Some(tenant.id.as_str()));

    // Mended: what can't be written is distinguished from what can.
    sandbox.service().set_connections_raw(tenant.id.as_str(), None);
    comes_in_step(&sandbox, &producer).await?;
    let poison = tenant.keys.member(&tenant.balances[0]);
    let mut redis = sandbox.redis().connect().await?;
    put_raw(&mut redis, &tenant.keys.schedule(), poison.as_bytes(), b"{}", Some(DEFAULT_TTL)).await?;
    let flush = span(&receiver, "flush", |span| span.get("quarantined") == "1").await?;
    assert_eq!(part(&receiver, "quarantine", &flush).await?.get("members"), "1");
    let line = worker.logs("balance can't be synced, quarantined").await?;
    assert!(line.raw.contains(&poison), "{}", line.raw);
    assert_eq!(ids(&line).0, flush.trace);
    assert_eq!(worker.stop().await?.code, Some(0));
    receiver.check(&secrets_of(&sandbox))
}

#[tokio::test]
async fn the_ledgers_own_variables_send_by_grpc() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let receiver = Receiver::start(Speaks::Grpc).await?;
    // Nothing is due for an export before the end: what arrives, the drain has sent.
    let mut worker = Worker::of(&sandbox)
        .env("ENABLE_TELEMETRY", "true")
        .env("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.address().to_string())
        .env("OTEL_RESOURCE_SERVICE_NAME", "ledger")
        .set("telemetry.headers", "authorization=Bearer%20s3same-s3same")
        .set("telemetry.export_interval", "1m")
        .secret("s3same-s3same")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(receiver.spans().len(), 0);
    assert_eq!(worker.stop().await?.code, Some(0));
    let flush = span(&receiver, "flush", |span| span.get("outcome") == "written").await?;
    assert_eq!(flush.resource.get("service.name").map(String::as_str), Some("ledger"));
    let header = "authorization: Bearer s3same-s3same".to_owned();
    assert!(receiver.headers().contains(&header), "{:?}", receiver.headers());
    receiver.check(&secrets_of(&sandbox))
}

#[tokio::test]
async fn a_trace_that_is_not_sampled_leaves_no_trace() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(1, 10).await?;
    let receiver = Receiver::start(Speaks::Http).await?;
    let mut worker = tracing_to(&sandbox, &receiver)
        .env("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
        .env("OTEL_TRACES_SAMPLER_ARG", "0")
        .start()
        .await?;
    let mut producer = sandbox.producer();
    producer.mutate_each(DEFAULT_TTL).await?;
    comes_in_step(&sandbox, &producer).await?;
    assert_eq!(worker.stop().await?.code, Some(0));
    assert_eq!(receiver.spans().len(), 0);
    assert_eq!(sandbox.service().traceparents(ServiceRoute::Connections), Vec::<String>::new());
    let marked = worker.log().raw().into_iter().find(|line| line.contains("trace_id"));
    assert_eq!(marked, None);
    Ok(())
}

#[tokio::test]
async fn no_flush_waits_for_a_receiver_that_is_away_or_hangs() -> Result<()> {
    const DRAIN: Duration = Duration::from_secs(1);
    let sandbox = balance_sync_tests::sandbox(2, 10).await?;
    for speaks in [None, Some(Speaks::Nothing)] {
        let receiver = Receiver::start(speaks.unwrap_or(Speaks::Nothing)).await?;
        let mut builder = tracing_to(&sandbox, &receiver)
            .set("telemetry.timeout", "1m")
            .set("telemetry.drain_deadline", "1s")
            .set("telemetry.queue_size", "16");
        if speaks.is_none() {
            // No server listens there once it is gone.
            builder = builder.set("telemetry.endpoint", &format!("http://{}", receiver.address()));
            drop(receiver);
        }
        let mut worker = builder.start().await?;
        let mut producer = sandbox.producer();
        let begun = Instant::now();
        for _ in 0..20 {
            producer.mutate_each(DEFAULT_TTL).await?;
            comes_in_step(&sandbox, &producer).await?;
        }
        let took = begun.elapsed();
        let lost = worker.logs("spans are lost, syncing goes on without them").await?;
        let count = |key: &str| lost.fields[key].as_u64().unwrap_or_default();
        assert!(count("failed") + count("dropped") > 0, "{}", lost.raw);
        let ended = worker.stop().await?;
        assert_eq!(ended.code, Some(0), "{speaks:?}");
        // Had each round waited for an export, of which one takes a minute at most, it would be twenty.
        assert!(took < Duration::from_secs(300), "{speaks:?}: twenty rounds took {took:?}");
        assert!(ended.took < DRAIN + Duration::from_secs(25), "{speaks:?}: the drain took {:?}", ended.took);
        let lines = ended.log.lines();
        let times = |message: &str| lines.iter().filter(|line| line.message == message).count();
        assert_eq!(times("spans are lost, syncing goes on without them"), 1, "once a minute at most");
        let left = ended.log.find("some spans were not sent").context("nothing said at the end")?;
        if speaks.is_some() && left.fields["dropped"].as_u64().unwrap_or_default() == 0 {
            bail!("a full queue drops: {}", left.raw);
        }
    }
    Ok(())
}
