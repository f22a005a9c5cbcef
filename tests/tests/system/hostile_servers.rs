//! Postgres servers that attack a whole worker, each beside a tenant that is well: that one is written, probes answer, and a drain ends.

use std::time::Instant;

use anyhow::{Context, Result, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, Producer};
use balance_sync_sandbox::{HostilePostgres, Isolation, PostgresAttack, Sandbox, eventually};
use balance_sync_tests::ledger::{comes_in_step, is_settled, scores};
use balance_sync_tests::{SOON, Worker, options};
use serde_json::Value;

use crate::api::json;

/// What may lie in the buffers of sockets between the server and the worker.
const BUFFERS: usize = 16 * 1024 * 1024;
/// Longest text of an error that is shown.
const LONGEST_DETAIL: usize = 1400;
/// No worker needs so much memory for two tenants; one that reserves what is announced needs 2 GB.
const MUCH_MEMORY: u64 = 512;

/// An attack and how it ends.
struct Case {
    attack: PostgresAttack,
    reason: &'static str,
    /// What is shown of it, in part.
    says: &'static str,
    /// Bytes that the worker may take on a connection, beside what sockets hold.
    bound: usize,
}

const fn case(attack: PostgresAttack, reason: &'static str, says: &'static str, bound: usize) -> Case {
    Case { attack, reason, says, bound }
}

const CASES: [Case; PostgresAttack::ALL.len()] = [
    case(PostgresAttack::LoginError, "postgres_excess", "announced a message of 50000000 bytes", 0),
    case(
        PostgresAttack::LoginAnnounced,
        "postgres_excess",
        "announced a message of 2000000000 bytes before",
        0,
    ),
    case(
        PostgresAttack::LoginNotices,
        "postgres_excess",
        "sent more than 524288 bytes before the login",
        524_288,
    ),
    case(
        PostgresAttack::LoginSettings,
        "postgres_excess",
        "sent more than 524288 bytes before the login",
        524_288,
    ),
    case(PostgresAttack::LoginForEver, "postgres_timeout", "no answer while connecting", 524_288),
    case(PostgresAttack::Iterations, "postgres_excess", "asks for 2000000000 iterations of SCRAM", 0),
    case(PostgresAttack::Announced, "postgres_excess", "announced a message of 2000000000 bytes; allowed", 0),
    case(PostgresAttack::Notices, "postgres_excess", "sent more than 8388608 bytes of notices", 8_388_608),
    case(PostgresAttack::Settings, "postgres_excess", "sent more than 1048576 bytes of settings", 1_048_576),
    case(PostgresAttack::Rows, "postgres_excess", "sent more than 67108864 bytes in answer", 67_108_864),
    case(PostgresAttack::LongErrors, "postgres_resources", "", 16 * 1024 * 1024),
    case(
        PostgresAttack::LongCode,
        "postgres_pooler_unsafe",
        "session settings are refused: x",
        16 * 1024 * 1024,
    ),
];

/// The largest resident memory of a worker so far, MiB.
fn peak_memory(worker: &Worker) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", worker.pid()))?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("no VmHWM")?;
    Ok(line.trim().trim_end_matches("kB").trim().parse::<u64>()? / 1024)
}

/// What is measured of a case.
struct Measured {
    connections: usize,
    taken: usize,
    detail: usize,
    peak_mib: u64,
    written_ms: u128,
    probes_ms: u128,
    drained_ms: u128,
}

async fn play(case: &Case, sandbox: &Sandbox, producer: &mut Producer) -> Result<Measured> {
    let tenants = sandbox.tenants();
    let (attacked, healthy) = (&tenants[0], &tenants[1]);
    let server = HostilePostgres::start(case.attack).await?;
    let point = |host: String, port| {
        sandbox.service().update(&attacked.id, |record| (record.host, record.port) = (host.clone(), port));
    };
    point("127.0.0.1".to_owned(), server.port());
    let builder = Worker::of(sandbox)
        // One thread for both.
        .set("supervisor.threads", "1")
        .set("postgres.backoff_max", "200ms")
        .set("postgres.backoff_long", "200ms");
    let builder = match case.attack {
        PostgresAttack::LoginForEver => builder.set("postgres.connect_timeout", "500ms"),
        _ => builder,
    };
    let mut worker = builder.start().await?;
    producer.mutate_each(DEFAULT_TTL).await?;
    let page = format!("/api/v1/tenants/{}", attacked.id);
    let shown = eventually(SOON, case.reason, || async {
        let shown = json(&worker, &page).await?;
        let text = |field: &str| shown[field].as_str().unwrap_or_default().to_owned();
        ensure!(text("reason") == case.reason && text("detail").contains(case.says), "{shown}");
        Ok(shown)
    })
    .await?;
    let detail = shown["detail"].as_str().map_or(0, str::len);
    ensure!(detail <= LONGEST_DETAIL, "{detail} bytes are shown");
    // Meanwhile the other is written, again and again, and probes answer. The attack goes on: it is tried again.
    let (mut written_ms, mut probes_ms) = (0, 0);
    for _ in 0..3 {
        let (seen, begun) = (server.connections(), Instant::now());
        producer.mutate(1, &[0, 1, 2], DEFAULT_TTL).await?;
        eventually(SOON, "the other tenant's rows", || is_settled(sandbox, healthy)).await?;
        written_ms = written_ms.max(begun.elapsed().as_millis());
        let begun = Instant::now();
        for probe in ["/livez", "/readyz"] {
            assert_eq!(worker.get(probe).await?.0, 200, "{probe}");
        }
        probes_ms = probes_ms.max(begun.elapsed().as_millis());
        eventually(SOON, "another connection", || async {
            ensure!(server.connections() > seen, "{seen}");
            Ok(())
        })
        .await?;
    }
    let row = json(&worker, &format!("/api/v1/tenants/{}", healthy.id)).await?;
    ensure!(row["reason"] == Value::Null && row["owners"] != Value::Null, "{row}");
    let peak_mib = peak_memory(&worker)?;
    ensure!(peak_mib < MUCH_MEMORY, "{peak_mib} MiB");
    ensure!(server.most_taken() <= case.bound + BUFFERS, "{} bytes were taken", server.most_taken());
    let begun = Instant::now();
    assert_eq!(worker.stop().await?.code, Some(0));
    let drained_ms = begun.elapsed().as_millis();
    let scheduled = scores(sandbox, &attacked.keys.schedule()).await?.len();
    assert_eq!(scheduled, attacked.balances.len(), "nothing left the schedule");
    Ok(Measured {
        connections: server.connections(),
        taken: server.most_taken(),
        detail,
        peak_mib,
        written_ms,
        probes_ms,
        drained_ms,
    })
}

#[tokio::test]
#[allow(clippy::print_stdout, reason = "the figures of docs/operations.md")]
async fn every_attack_of_a_server_leaves_the_other_tenant_the_probes_and_the_drain_alone() -> Result<()> {
    let mut options = options(2, 20);
    options.isolation = Isolation::Database;
    let sandbox = Sandbox::start(options).await?;
    let attacked = sandbox.tenants().remove(0);
    let right = sandbox.service().tenant(&attacked.id).context("the tenant's record")?;
    let mut producer = sandbox.producer();
    println!(
        "| attack | reason | connections | taken on one, at most | shown | peak memory | rows | probes | drain |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (case, attack) in CASES.iter().zip(PostgresAttack::ALL) {
        assert_eq!(case.attack, attack, "each has its case");
        let measured =
            play(case, &sandbox, &mut producer).await.with_context(|| format!("{:?}", case.attack))?;
        let Measured { connections, taken, detail, peak_mib, written_ms, probes_ms, drained_ms } = measured;
        println!(
            "| {:?} | {} | {connections} | {:.1} MiB | {detail} B | {peak_mib} MiB | {written_ms} ms | {probes_ms} ms | \
             {drained_ms} ms |",
            case.attack,
            case.reason,
            taken as f64 / f64::from(1 << 20),
        );
    }

    // With its own server back, all that waited is written.
    sandbox.service().update(&attacked.id, |record| *record = right);
    let mut worker = Worker::of(&sandbox).start().await?;
    comes_in_step(&sandbox, &producer).await?;
    println!("without an attack: {} MiB", peak_memory(&worker)?);
    assert_eq!(worker.stop().await?.code, Some(0));
    Ok(())
}
