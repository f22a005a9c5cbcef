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

/// A failure and what is to be read of it: whole sentences, in which `*` stands for what differs from run to run, `TENANT` for the first
/// tenant.
struct Drill {
    name: &'static str,
    /// The verdict on the first screen, any of these …
    screen: &'static [&'static str],
    /// … and in the terminal, which knows nothing from before.
    terminal: &'static [&'static str],
    /// One of the reasons.
    says: &'static str,
    /// One of the actions is any of these, or a reason that names its action itself.
    helps: &'static [&'static str],
}

/// What is read at one look.
#[derive(Debug, Clone, Default, PartialEq)]
struct Seen {
    verdict: String,
    reasons: Vec<String>,
    to_do: Vec<String>,
}

/// When something was first reported, and how.
#[derive(Debug, Clone)]
struct Report {
    after: Duration,
    seen: Seen,
    says: String,
    helps: String,
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

/// What the terminal says.
async fn terminal(config: &str) -> Result<Seen> {
    let done = run(&["status", "--config", config], &[]).await?;
    let seen = read_terminal(&done.stdout);
    let code = match seen.verdict.as_str() {
        "HEALTHY" => 0,
        "UNKNOWN" => 2,
        _ => 1,
    };
    ensure!(done.code == Some(code), "{done:?}");
    Ok(seen)
}

/// The verdict in the first line, then the reasons and the actions, each of which may be broken into several lines.
fn read_terminal(text: &str) -> Seen {
    let verdict = text.split_whitespace().next().unwrap_or_default().to_owned();
    let (mut reasons, mut to_do) = (Vec::new(), Vec::new());
    let mut is_action = false;
    for line in text.lines().skip(1) {
        match line.split_at_checked(2) {
            Some(("- ", rest)) => reasons.push(rest.to_owned()),
            Some(("> ", rest)) => {
                is_action = true;
                to_do.push(rest.to_owned());
            }
            Some(("  ", rest)) => {
                let last = if is_action { to_do.last_mut() } else { reasons.last_mut() };
                if let Some(last) = last {
                    last.push(' ');
                    last.push_str(rest);
                }
            }
            // The figures begin.
            _ => break,
        }
    }
    Seen { verdict, reasons, to_do }
}

/// What the first screen of the dashboard is made of.
async fn first_screen(worker: &Worker) -> Result<Seen> {
    let (status, body) = worker.get("/api/v1/overview").await?;
    ensure!(status == 200, "{status} {body}");
    let overview: Value = serde_json::from_str(&body)?;
    let texts = |name: &str| -> Vec<String> {
        let listed = overview[name].as_array().into_iter().flatten();
        listed.filter_map(Value::as_str).map(str::to_owned).collect()
    };
    Ok(Seen {
        verdict: overview["verdict"].as_str().context("no verdict")?.to_uppercase(),
        reasons: texts("reasons"),
        to_do: texts("to_do"),
    })
}

/// Whether all of a text is as the pattern says.
fn is_like(text: &str, pattern: &str) -> bool {
    let Some((begin, rest)) = pattern.split_once('*') else { return text == pattern };
    let Some(text) = text.strip_prefix(begin) else { return false };
    // A `*` stands for something.
    text.char_indices().skip(1).any(|(at, _)| is_like(&text[at..], rest))
        || (rest.is_empty() && !text.is_empty())
}

async fn healthy(bench: &Bench) -> Result<()> {
    let begun = Instant::now();
    loop {
        let seen = terminal(bench.config()?).await?;
        if seen.verdict == "HEALTHY" {
            return Ok(());
        }
        ensure!(begun.elapsed() < AT_MOST, "not healthy before the drill: {seen:?}");
        tokio::time::sleep(LOOK_EVERY).await;
    }
}

impl Drill {
    /// The sentence that reports it and the one that helps, if both are there under the right verdict.
    fn found_in(&self, seen: &Seen, verdicts: &[&str], tenant: &str) -> Option<(String, String)> {
        let find = |pattern: &str, sentences: &[String]| {
            let pattern = pattern.replace("TENANT", tenant);
            sentences.iter().find(|sentence| is_like(sentence, &pattern)).cloned()
        };
        let says = find(self.says, &seen.reasons)?;
        let actions = [&seen.to_do[..], &seen.reasons].concat();
        let helps = self.helps.iter().find_map(|pattern| find(pattern, &actions))?;
        verdicts.contains(&seen.verdict.as_str()).then_some((says, helps))
    }

    /// Looks at the terminal and at the first screen, in turns, until both have reported it.
    async fn watch(&self, bench: &Bench, begun: Instant) -> Result<(Result<Report>, Result<Report>)> {
        let (config, tenant) = (bench.config()?, bench.sandbox.tenants().remove(0).id);
        Ok(tokio::join!(
            self.until(begun, self.terminal, &tenant, async || terminal(config).await),
            self.until(begun, self.screen, &tenant, async || first_screen(&bench.one).await),
        ))
    }

    async fn until(
        &self,
        begun: Instant,
        verdicts: &[&str],
        tenant: &str,
        look: impl AsyncFn() -> Result<Seen>,
    ) -> Result<Report> {
        let mut last = String::new();
        while begun.elapsed() < AT_MOST {
            match look().await {
                Ok(seen) => match self.found_in(&seen, verdicts, tenant) {
                    Some((says, helps)) => {
                        return Ok(Report { after: begun.elapsed(), seen, says, helps });
                    }
                    None => last = format!("{seen:#?}"),
                },
                Err(error) => last = format!("{error:#}"),
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
        bail!("not reported after {AT_MOST:?} as {verdicts:?}, {:?}, {:?}: {last}", self.says, self.helps)
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
    let both = under_load(&mut producer, async {
        let begun = Instant::now();
        break_it(&mut bench).await?;
        drill.watch(&bench, begun).await
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
    let begun = Instant::now();
    let (written, both) = tokio::join!(producer.mutate_each(DEFAULT_TTL), drill.watch(&bench, begun));
    written?;
    both
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
    drill.watch(&bench, begun).await
}

#[tokio::test]
#[ignore = "measures time: `make drills`"]
#[allow(clippy::print_stdout, reason = "the table is the result")]
async fn ten_failures_are_reported_within_ten_seconds() -> Result<()> {
    let only = std::env::var("DRILL").unwrap_or_default();
    let mut failed = Vec::new();
    println!("| failure | first screen | terminal | verdict | what is said | what helps |");
    println!("|---|---|---|---|---|---|");
    for drill in DRILLS.iter().filter(|drill| drill.name.contains(&only)) {
        let (terminal, screen) = Box::pin(played(drill)).await.with_context(|| drill.name)?;
        let shown = |report: &Result<Report>| match report {
            Ok(report) => format!("{:.1} s", report.after.as_secs_f64()),
            Err(_) => "not".to_owned(),
        };
        let (verdict, says, helps) = match (&screen, &terminal) {
            (Ok(report), _) | (_, Ok(report)) => {
                (report.seen.verdict.as_str(), report.says.as_str(), report.helps.as_str())
            }
            _ => ("", "", ""),
        };
        println!(
            "| {} | {} | {} | {verdict} | {says} | {helps} |",
            drill.name,
            shown(&screen),
            shown(&terminal)
        );
        for (whose, report) in [("the first screen", screen), ("the terminal", terminal)] {
            match report {
                Ok(report) if report.after > WITHIN => {
                    failed.push(format!("{}: {whose} took {:?}", drill.name, report.after));
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
    Drill {
        name: "password broken",
        screen: &["DEGRADED"],
        terminal: &["DEGRADED"],
        says: "1 tenant can't be written (postgres_credentials), since *: TENANT.",
        helps: &["postgres_credentials: Correct the tenant service's entry, then re-read credentials. By \
                `balance-sync tenants refresh TENANT`."],
    },
    Drill {
        name: "Postgres down",
        screen: &["DEGRADED"],
        terminal: &["DEGRADED"],
        says: "* can't be written (postgres_connection), since *: *.",
        helps: &[
            "postgres_connection: Look at the server. Writing goes on by itself within 2 s of its return.",
        ],
    },
    Drill {
        name: "worker frozen",
        // UNKNOWN until the other has looked at the tenants that it has taken over.
        screen: &["ATTENTION", "UNKNOWN"],
        terminal: &["ATTENTION", "UNKNOWN"],
        says: "Worker two has died: last sign of life *, *s ago; its 3 tenants were taken over by one.",
        helps: &["Look at log and host of two; start it again if no other worker took its place."],
    },
    Drill {
        name: "poison",
        screen: &["ATTENTION"],
        terminal: &["ATTENTION"],
        says: "1 balance is in quarantine until retried, dropped or acknowledged: TENANT.",
        helps: &[
            "Look at what is in quarantine, then retry, drop or acknowledge it: `balance-sync quarantine list` (TENANT).",
        ],
    },
    Drill {
        name: "Redis paused",
        screen: &["DEGRADED"],
        terminal: &["UNKNOWN"],
        says: "Redis can't be asked: *. What is shown of workers and tenants was known before, with its age.",
        helps: &[
            "Look at Redis and the way to it. Workers go on by themselves when it answers; what Redis still has then is \
                written, and what it has lost is reported.",
        ],
    },
    Drill {
        name: "tenant service down",
        // ATTENTION until a tenant has something to write that has had nothing before: its settings are not known.
        screen: &["ATTENTION", "DEGRADED"],
        terminal: &["ATTENTION", "DEGRADED"],
        says: "The tenant service has not answered * since *: tenants that were added, removed or moved meanwhile are not known.",
        helps: &[
            "Look at the tenant service and the way to it; tenants whose settings are known are written meanwhile.",
        ],
    },
    Drill {
        name: "backlog of 300,000",
        screen: &["BEHIND"],
        terminal: &["BEHIND"],
        says: "1 tenant is behind: * balances are due, the oldest for * s (objective 5 s): TENANT.",
        helps: &[
            "Is each flush slow, or are there many? `balance-sync tenants show TENANT`. A slow server needs help by itself; \
                one with room takes more connections (postgres.connections_per_tenant) or workers.",
            "* wait for a connection: if the Postgres server has room, raise postgres.connections_per_server or add workers; else \
             wait until the backlog is written.",
        ],
    },
    Drill {
        name: "forgotten pause",
        screen: &["ATTENTION"],
        terminal: &["ATTENTION"],
        says: "1 tenant is paused for longer than 5s (objectives.pause), the first by * since *, *s ago (drill): TENANT.",
        helps: &["Resume what need not be paused: `balance-sync tenants resume TENANT`."],
    },
    Drill {
        name: "mixed configuration",
        screen: &["ATTENTION"],
        terminal: &["ATTENTION"],
        says: "Workers differ in claim.mode: lease on one; lock on two.",
        helps: &["Finish the rollout, or give all workers the same settings."],
    },
    Drill {
        name: "wrong clock",
        screen: &["ATTENTION"],
        terminal: &["ATTENTION"],
        says: "Redis's clock is * s ahead of those of all 2 workers, which agree. Times and ages are shown wrong by as much: \
               synchronise the clocks.",
        helps: &["* Times and ages are shown wrong by as much: synchronise the clocks."],
    },
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

#[test]
fn a_report_is_a_whole_sentence_beside_its_action_and_under_its_verdict() {
    for (text, pattern, expected) in [
        ("a.", "a.", true),
        ("a. b", "a.", false),
        ("not a.", "a.", false),
        ("since 12:03: x.", "since *: x.", true),
        ("since : x.", "since *: x.", false),
        ("since 12:03: xy.", "since *: x.", false),
        ("1, 2, and 3.", "*, *, and *.", true),
        ("1, 2 and 3.", "*, *, and *.", false),
        ("anything", "any*", true),
        ("any", "any*", false),
    ] {
        assert_eq!(is_like(text, pattern), expected, "{text:?} like {pattern:?}");
    }
    let printed = "ATTENTION  2026-01-01\n- 1 balance is in quarantine until retried, dropped or\n  acknowledged: t.\n- Other.\n\
                   > Look at what is in quarantine, then retry, drop or acknowledge it:\n  `balance-sync quarantine list` (t).\n\
                   tenants     1: 1 idle\n            and more\n";
    let seen = read_terminal(printed);
    assert_eq!((seen.reasons.len(), seen.to_do.len()), (2, 1), "{seen:?}");
    let drill = DRILLS.iter().find(|drill| drill.name == "poison");
    let found =
        |seen: &Seen, verdict| drill.is_some_and(|drill| drill.found_in(seen, &[verdict], "t").is_some());
    assert!(found(&seen, "ATTENTION") && !found(&seen, "DEGRADED"), "{seen:?}");
    assert!(!found(&Seen { to_do: Vec::new(), ..seen.clone() }, "ATTENTION"), "nothing that helps");
    let cut = vec!["1 balance is in quarantine".to_owned()];
    assert!(!found(&Seen { reasons: cut, ..seen }, "ATTENTION"), "a part of it");
}
