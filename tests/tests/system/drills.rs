//! What an operator sees of ten failures, and how soon: `make drills` plays each on servers of its own and prints a table for
//! docs/operations.md. Needs a machine with nothing else to do: what is measured is time.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{DEFAULT_TTL, LoadOptions, Producer, Progress, put_raw};
use balance_sync_sandbox::{Breakage, Fault, RedisOptions, Sandbox, SandboxOptions, ServiceFault};
use balance_sync_tests::ledger::slow_updates;
use balance_sync_tests::{Worker, options, run};
use nix::sys::signal::Signal;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

/// The first screen and the terminal report a failure within this.
const WITHIN: Duration = Duration::from_secs(10);
/// How long is waited for it at most.
const AT_MOST: Duration = Duration::from_secs(60);
const LOOK_EVERY: Duration = Duration::from_millis(100);

/// A failure and what is to be read of it.
struct Drill {
    name: &'static str,
    /// Every one of these texts stands in the reasons of the verdict …
    says: &'static [&'static str],
    /// … and this in one of them, or beside them: the action that helps.
    helps: &'static str,
}

/// When something was first reported, and how.
#[derive(Debug, Clone)]
struct Report {
    after: Duration,
    verdict: String,
    text: String,
    helps: bool,
}

/// A fleet of two workers under a light load.
struct Bench {
    sandbox: Sandbox,
    one: Worker,
    two: Worker,
}

impl Bench {
    async fn start(tenants: usize, balances: usize) -> Result<Self> {
        let wanted = options(tenants, balances);
        let redis = RedisOptions { settable_clock: true, ..wanted.redis.clone() };
        let sandbox = Sandbox::start(SandboxOptions { redis, proxied: true, ..wanted }).await?;
        let one = worker(&sandbox, "one").start().await?;
        let two = worker(&sandbox, "two").start().await?;
        let bench = Self { sandbox, one, two };
        healthy(&bench).await?;
        Ok(bench)
    }

    fn config(&self) -> Result<&str> {
        self.sandbox.config_path().to_str().context("a path of text")
    }
}

fn worker(sandbox: &Sandbox, name: &str) -> balance_sync_tests::WorkerBuilder {
    Worker::of(sandbox).set("worker.name", name).expect_error("")
}

/// What the terminal says: exit code, verdict, everything.
async fn terminal(config: &str) -> Result<(Option<i32>, String)> {
    let done = run(&["status", "--config", config], &[]).await?;
    // As one line: sentences are wrapped.
    Ok((done.code, done.stdout.split_whitespace().collect::<Vec<_>>().join(" ")))
}

/// What the first screen of the dashboard is made of: verdict, everything.
async fn first_screen(worker: &Worker) -> Result<(String, String)> {
    let (status, body) = worker.get("/api/v1/overview").await?;
    ensure!(status == 200, "{status} {body}");
    let overview: Value = serde_json::from_str(&body)?;
    let verdict = overview["verdict"].as_str().context("no verdict")?.to_uppercase();
    let texts = |name: &str| -> Vec<String> {
        let listed = overview[name].as_array().into_iter().flatten();
        listed.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Ok((verdict, [texts("reasons"), texts("to_do")].concat().join(" ")))
}

async fn healthy(bench: &Bench) -> Result<()> {
    let begun = Instant::now();
    loop {
        let (code, text) = terminal(bench.config()?).await?;
        if code == Some(0) {
            return Ok(());
        }
        ensure!(begun.elapsed() < AT_MOST, "not healthy before the drill: {text}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Drill {
    /// Whether this is a true report of it.
    fn is_reported(&self, verdict: &str, text: &str) -> bool {
        verdict != "HEALTHY" && self.says.iter().all(|said| text.contains(said))
    }

    /// Looks at the terminal and at the first screen, in turns, until both have reported it.
    async fn watch(
        &self,
        config: &str,
        seen_by: &Worker,
        begun: Instant,
    ) -> (Result<Report>, Result<Report>) {
        tokio::join!(
            self.until(begun, async || {
                let (_, text) = terminal(config).await?;
                let verdict = text.split(' ').next().unwrap_or_default().to_owned();
                Ok((verdict, text))
            }),
            self.until(begun, async || first_screen(seen_by).await),
        )
    }

    async fn until(
        &self,
        begun: Instant,
        look: impl AsyncFn() -> Result<(String, String)>,
    ) -> Result<Report> {
        let mut last = String::new();
        while begun.elapsed() < AT_MOST {
            match look().await {
                Ok((verdict, text)) if self.is_reported(&verdict, &text) => {
                    let helps = text.contains(self.helps);
                    return Ok(Report { after: begun.elapsed(), verdict, text, helps });
                }
                Ok((verdict, text)) => last = format!("{verdict}: {text}"),
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("not reported after {AT_MOST:?}: {last}")
    }
}

/// Runs a load beside what is done and watched, for one tenant after the other.
async fn under_load<T>(producer: &mut Producer, of: impl Future<Output = T>) -> Result<T> {
    let (cancel, progress) = (CancellationToken::new(), Progress::new(producer.tenants().len()));
    let load = LoadOptions { rate: 100.0, ..LoadOptions::default() };
    let done = async {
        let done = of.await;
        cancel.cancel();
        done
    };
    let (_, done) = tokio::join!(producer.run(&load, &progress, &cancel), done);
    Ok(done)
}

type Both = (Result<Report>, Result<Report>);

async fn simple(drill: &Drill, break_it: impl AsyncFnOnce(&mut Bench) -> Result<()>) -> Result<Both> {
    let mut bench = Bench::start(3, 200).await?;
    let mut producer = bench.sandbox.producer();
    let config = bench.config()?.to_owned();
    let both = under_load(&mut producer, async {
        let begun = Instant::now();
        break_it(&mut bench).await?;
        anyhow::Ok(drill.watch(&config, &bench.one, begun).await)
    })
    .await??;
    // What stands still couldn't end.
    let _ = bench.sandbox.redis().resume();
    let _ = bench.two.signal(Signal::SIGCONT);
    Ok(both)
}

async fn backlog(drill: &Drill) -> Result<Both> {
    let bench = Bench::start(1, 300_000).await?;
    let tenant = bench.sandbox.tenants().remove(0);
    slow_updates(&bench.sandbox, &tenant, Duration::from_millis(1)).await?;
    let mut producer = bench.sandbox.producer();
    let config = bench.config()?.to_owned();
    let begun = Instant::now();
    let (written, both) =
        tokio::join!(producer.mutate_each(DEFAULT_TTL), drill.watch(&config, &bench.one, begun));
    written?;
    Ok(both)
}

async fn forgotten_pause(drill: &Drill) -> Result<Both> {
    let wanted = options(3, 200);
    let sandbox = Sandbox::start(wanted).await?;
    let short = |name| worker(&sandbox, name).set("objectives.pause", "5s");
    let (one, two) = (short("one").start().await?, short("two").start().await?);
    let bench = Bench { sandbox, one, two };
    healthy(&bench).await?;
    let config = bench.config()?.to_owned();
    let tenant = bench.sandbox.tenants().remove(0).id;
    let done = run(&["tenants", "pause", &tenant, "--note", "drill", "--config", &config], &[]).await?;
    ensure!(done.code == Some(0), "{done:?}");
    // The pause counts as forgotten from here on.
    let begun = Instant::now() + Duration::from_secs(5);
    let config_file = std::fs::read_to_string(&config)?;
    std::fs::write(&config, format!("{config_file}\n[objectives]\npause = \"5s\"\n"))?;
    tokio::time::sleep_until(begun.into()).await;
    Ok(drill.watch(&config, &bench.one, begun).await)
}

#[tokio::test]
#[ignore = "measures time: `make drills`"]
#[allow(clippy::print_stdout, reason = "the table is the result")]
async fn ten_failures_are_reported_within_ten_seconds() -> Result<()> {
    let only = std::env::var("DRILL").unwrap_or_default();
    let mut failed = Vec::new();
    println!("| failure | first screen | terminal | verdict | what is said |");
    println!("|---|---|---|---|---|");
    for drill in DRILLS.iter().filter(|drill| drill.name.contains(&only)) {
        let (terminal, screen) = Box::pin(played(drill)).await.with_context(|| drill.name)?;
        let shown = |report: &Result<Report>| match report {
            Ok(report) => format!("{:.1} s", report.after.as_secs_f64()),
            Err(_) => "not".to_owned(),
        };
        let (verdict, text) = match (&screen, &terminal) {
            (Ok(report), _) | (_, Ok(report)) => (report.verdict.as_str(), report.text.as_str()),
            _ => ("", ""),
        };
        println!("| {} | {} | {} | {verdict} | {text} |", drill.name, shown(&screen), shown(&terminal));
        for (whose, report) in [("the first screen", screen), ("the terminal", terminal)] {
            match report {
                Ok(report) if report.after > WITHIN => {
                    failed.push(format!("{}: {whose} took {:?}", drill.name, report.after));
                }
                Ok(report) if !report.helps => {
                    failed.push(format!("{}: {whose} lacks {:?}: {}", drill.name, drill.helps, report.text));
                }
                Ok(_) => {}
                Err(error) => failed.push(format!("{}: {whose}: {error:#}", drill.name)),
            }
        }
    }
    ensure!(failed.is_empty(), "{}", failed.join("\n"));
    Ok(())
}

const DRILLS: [Drill; 10] = [
    Drill { name: "password broken", says: &["postgres_credentials"], helps: "tenants refresh" },
    Drill { name: "Postgres down", says: &["can't be written (postgres_"], helps: "server" },
    Drill { name: "worker frozen", says: &["Worker two has died"], helps: "start it again" },
    Drill { name: "poison", says: &["in quarantine"], helps: "quarantine list" },
    Drill { name: "Redis paused", says: &["Redis can't be asked"], helps: "Redis" },
    Drill {
        name: "tenant service down",
        says: &["The tenant service has not answered", "since"],
        helps: "tenant service",
    },
    Drill { name: "backlog of 300,000", says: &["behind"], helps: "connections" },
    Drill { name: "forgotten pause", says: &["paused for longer than", "(drill)"], helps: "tenants resume" },
    Drill { name: "mixed configuration", says: &["Workers differ"], helps: "same" },
    Drill { name: "wrong clock", says: &["clock"], helps: "synchronise the clocks" },
];

async fn played(drill: &Drill) -> Result<Both> {
    match drill.name {
        "password broken" => {
            Box::pin(simple(drill, async |bench| {
                let id = bench.sandbox.tenants().remove(0).id;
                bench.sandbox.break_tenant(&id, Breakage::Password).await
            }))
            .await
        }
        "Postgres down" => simple(drill, async |bench| bench.sandbox.postgres().kill()).await,
        "worker frozen" => simple(drill, async |bench| bench.two.signal(Signal::SIGSTOP)).await,
        "poison" => {
            simple(drill, async |bench| {
                let tenant = bench.sandbox.tenants().remove(0);
                let mut redis = bench.sandbox.redis().connect().await?;
                let member = tenant.keys.member(&tenant.balances[0]);
                put_raw(&mut redis, &tenant.keys.schedule(), member.as_bytes(), b"{", Some(DEFAULT_TTL))
                    .await?;
                Ok(())
            })
            .await
        }
        "Redis paused" => {
            simple(drill, async |bench| {
                let proxy = bench.sandbox.redis_proxy().context("a proxy")?;
                proxy.set(Fault::BlackHole).await;
                Ok(())
            })
            .await
        }
        "tenant service down" => {
            simple(drill, async |bench| {
                bench.sandbox.service().set_faults(ServiceFault::Status(503));
                Ok(())
            })
            .await
        }
        "backlog of 300,000" => backlog(drill).await,
        "forgotten pause" => forgotten_pause(drill).await,
        "mixed configuration" => {
            simple(drill, async |bench| {
                bench.two.stop().await?;
                bench.two = worker(&bench.sandbox, "two").set("claim.mode", "lock").start().await?;
                Ok(())
            })
            .await
        }
        _ => simple(drill, async |bench| bench.sandbox.redis().shift_clock(5_000)).await,
    }
}
