//! Upgrades: workers of two releases in one fleet, one release replaced by the other in both directions, and rolling restarts, all
//! under load. What `docs/upgrading.md` says is played here; `make upgrade` builds the earlier release and runs the long tests.

use std::collections::{BTreeMap, BTreeSet};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{Format, LoadOptions, Producer, Progress};
use balance_sync_sandbox::{Isolation, Sandbox, SandboxOptions, SandboxTenant, eventually};
use balance_sync_tests::ledger::{all_settled, in_step};
use balance_sync_tests::{
    Finished, Lags, Probe, SOON, Worker, WorkerBuilder, balance_sync, options, run_program,
};
use futures::future::join_all;
use serde_json::Value;
use tokio_util::sync::CancellationToken;

use super::{brisk, nothing_backwards};

/// Names the binary of the earlier release.
const PREVIOUS: &str = "BALANCE_SYNC_PREVIOUS_BIN";
/// The longest p99 of the lag over a rolling restart, in seconds. Only `make upgrade` sets it, which measures a release build on a machine
/// with nothing else to do: of any other build the figure is printed and not judged.
const LONGEST: &str = "UPGRADE_LAG_P99";
/// How long a restart's surroundings are measured.
const AROUND: Duration = Duration::from_secs(5);
const REPLICAS: usize = 2;

fn previous() -> Result<PathBuf> {
    let path =
        std::env::var_os(PREVIOUS).context("BALANCE_SYNC_PREVIOUS_BIN names no binary: make upgrade")?;
    let path = PathBuf::from(path);
    ensure!(path.is_file(), "{PREVIOUS} = {}: there is no such file", path.display());
    Ok(path)
}

/// A number from the environment.
fn setting(name: &str, default: usize) -> Result<usize> {
    match std::env::var(name).ok().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().with_context(|| format!("{name} = {text}")),
        None => Ok(default),
    }
}

/// Runs a command of this program with the fleet's configuration.
async fn command(program: &std::path::Path, sandbox: &Sandbox, words: &[&str]) -> Result<Finished> {
    let config = sandbox.config_path().to_string_lossy().into_owned();
    let args: Vec<&str> = words.iter().copied().chain(["--config", &config]).collect();
    run_program(program, &args, &[]).await
}

/// The same, of what it prints as JSON.
async fn command_json(program: &std::path::Path, sandbox: &Sandbox, words: &[&str]) -> Result<Value> {
    let done = command(program, sandbox, words).await?;
    serde_json::from_str(&done.stdout).with_context(|| format!("{words:?}: {done:?}"))
}

/// Sentences are wrapped on a terminal: as one line.
fn one_line(done: &Finished) -> String {
    format!("{}{}", done.stdout, done.stderr).split_whitespace().collect::<Vec<_>>().join(" ")
}

/// What producers have written.
#[derive(Debug, Clone, Copy)]
struct Written {
    mutations: u64,
    per_second: f64,
}

/// Loads until it is stopped, each producer its own tenants.
async fn produce(producers: &mut [Producer], rate: f64, over: &CancellationToken) -> Result<Written> {
    let rate = rate / producers.len() as f64;
    let runs = producers.iter_mut().enumerate().map(|(number, producer)| async move {
        let progress = Progress::new(producer.tenants().len());
        let load = LoadOptions { rate, hot_key_share: 0.2, seed: number as u64, ..LoadOptions::default() };
        producer.run(&load, &progress, over).await
    });
    let mut written = Written { mutations: 0, per_second: 0.0 };
    for report in join_all(runs).await {
        let report = report?;
        ensure!(report.errors == 0, "{report:?}");
        written.mutations += report.mutations;
        written.per_second += report.mutations as f64 / report.elapsed.as_secs_f64();
    }
    Ok(written)
}

/// Plays something while all producers and the probe write; returns it with what was written, and what the probe has measured once all
/// has arrived.
async fn under_load<T>(
    sandbox: &Sandbox,
    producers: &mut [Producer],
    rate: f64,
    probe: &mut Probe,
    played: impl Future<Output = Result<T>>,
) -> Result<(T, Written, Lags)> {
    let over = CancellationToken::new();
    let played = async {
        let played = played.await;
        over.cancel();
        played
    };
    let (written, probed, played) =
        tokio::join!(produce(producers, rate, &over), probe.run(&over), Box::pin(played));
    let played = played?;
    probed?;
    for producer in producers.iter() {
        eventually(SOON, "every row at its last version", || in_step(sandbox, producer)).await?;
    }
    all_settled(sandbox).await?;
    let lags = probe.read(sandbox).await?;
    ensure!(lags.lost == 0, "{} mutations never came to their rows", lags.lost);
    Ok((played, written?, lags))
}

/// Whether the fleet, as this program reads it, is these workers and shares its tenants out among them: each has its owners, one of them works
/// and the others stand by.
async fn shared_out(
    program: &std::path::Path,
    sandbox: &Sandbox,
    workers: &[&str],
    unserved: usize,
) -> Result<()> {
    let overview = command_json(program, sandbox, &["status", "--json"]).await?;
    ensure!(overview["workers"]["live"] == workers.len(), "{}", overview["workers"]);
    let list = command_json(program, sandbox, &["tenants", "--json"]).await?;
    let rows = list["tenants"].as_array().context("no tenants")?;
    ensure!(rows.len() == sandbox.tenants().len(), "{} tenants", rows.len());
    let mut without = 0;
    for row in rows {
        let names = |name: &str| -> BTreeSet<&str> {
            row[name].as_array().into_iter().flatten().filter_map(Value::as_str).collect()
        };
        let (owners, standby) = (names("owners"), names("standby"));
        if owners.is_empty() && row["state"] == "not_in_rollout" {
            without += 1;
            continue;
        }
        ensure!(owners.len() == REPLICAS.min(workers.len()), "{row}");
        ensure!(owners.iter().all(|name| workers.contains(name)), "{row}");
        ensure!(owners.len() - standby.len() == 1, "one works: {row}");
    }
    ensure!(without == unserved, "{without} tenants are left out");
    Ok(())
}

/// Nothing was lost on the way, as the workers count it, and no row went back.
async fn nothing_lost(sandbox: &Sandbox, workers: impl Iterator<Item = &Worker>) -> Result<()> {
    for worker in workers {
        for outcome in ["expired", "missing", "forked"] {
            let count = worker.metric("balance_sync_balances_total", &[("outcome", outcome)]).await?;
            ensure!(count == 0.0, "{outcome}: {count}");
        }
    }
    for tenant in sandbox.tenants() {
        nothing_backwards(sandbox, &tenant).await?;
    }
    Ok(())
}

fn groups(tenants: &[SandboxTenant], groups: usize) -> impl Iterator<Item = &[SandboxTenant]> {
    tenants.chunks(tenants.len().div_ceil(groups))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rolling_restart_of_two_workers_loses_nothing() -> Result<()> {
    let sandbox = balance_sync_tests::sandbox(4, 40).await?;
    let tenants = sandbox.tenants();
    for tenant in &tenants {
        balance_sync_tests::Audit::begin(&sandbox, tenant).await?;
    }
    let program = balance_sync()?;
    let mut fleet: BTreeMap<&str, Worker> = BTreeMap::new();
    for name in ["one", "two"] {
        fleet.insert(name, brisk(&sandbox, name).start().await?);
    }
    let mut probe = Probe::begin(&sandbox, Format::Mixed).await?;
    let mut producers = [Probe::others(&sandbox, &tenants).in_format(Format::Mixed)];
    let restarted = async {
        for name in ["one", "two"] {
            let ended = fleet.get_mut(name).context("it was started")?.stop().await?;
            ensure!(ended.code == Some(0), "{name} ended with {:?}", ended.code);
            fleet.insert(name, brisk(&sandbox, name).start().await?);
            eventually(SOON, "all tenants shared out", || shared_out(&program, &sandbox, &["one", "two"], 0))
                .await?;
        }
        Ok(())
    };
    let ((), _, lags) = under_load(&sandbox, &mut producers, 300.0, &mut probe, restarted).await?;
    let p99 = lags.quantile(0.99, 0.0, f64::INFINITY);
    super::report("a rolling restart of two workers", &format!("lag p99 {p99:.2} s, 0 lost"));
    nothing_lost(&sandbox, fleet.values()).await
}

/// What each release's commands must be able to read, whichever wrote it.
const READS: [&[&str]; 9] = [
    &["status"],
    &["status", "--json"],
    &["tenants"],
    &["tenants", "--json"],
    &["workers"],
    &["workers", "--json"],
    &["actions"],
    &["quarantine", "list"],
    &["verify"],
];

/// `claim.ttl` of the later release's workers: so that a setting differs as well.
const LATER_TTL: &str = "40s";

/// A fleet of workers of two releases.
struct TwoReleases<'a> {
    sandbox: &'a Sandbox,
    earlier: PathBuf,
    later: PathBuf,
    workers: BTreeMap<&'static str, Worker>,
    /// Time, what was done then.
    moments: Vec<(f64, String)>,
}

impl TwoReleases<'_> {
    fn builder(&self, name: &str, is_later: bool) -> WorkerBuilder {
        let builder = Worker::of(self.sandbox).set("worker.name", name).set("worker.lease", "3s");
        // What earlier releases log isn't this one's matter.
        if is_later {
            builder.program(&self.later).set("claim.ttl", LATER_TTL)
        } else {
            builder.program(&self.earlier).expect_error("")
        }
    }

    /// Starts a worker, in place of the one of this name.
    async fn start(&mut self, name: &'static str, is_later: bool) -> Result<()> {
        if let Some(mut before) = self.workers.remove(name) {
            let ended = before.stop().await?;
            ensure!(ended.code == Some(0), "{name} ended with {:?}", ended.code);
        }
        let worker = self.builder(name, is_later).start().await?;
        self.workers.insert(name, worker);
        let what = format!("{name} is {}", if is_later { "later" } else { "earlier" });
        self.agree(&what, 0).await
    }

    /// Waits until both releases' commands read that all tenants are shared out among all workers.
    async fn agree(&mut self, what: &str, left_out: usize) -> Result<()> {
        let names: Vec<&str> = self.workers.keys().copied().collect();
        for program in [&self.earlier, &self.later] {
            // The earlier one knows no rollout.
            if left_out > 0 && *program == self.earlier {
                continue;
            }
            eventually(SOON, what, || async {
                // Workers look at schedules and at what may have vanished some seconds after their start.
                let overview = command_json(program, self.sandbox, &["status", "--json"]).await?;
                ensure!(overview["verdict"] != "unknown", "{}", overview["reasons"]);
                shared_out(program, self.sandbox, &names, left_out).await
            })
            .await
            .with_context(|| format!("as {} reads it", program.display()))?;
        }
        self.moments.push((Probe::now(self.sandbox).await?, what.to_owned()));
        Ok(())
    }

    /// Each release's commands read what both have written, and show in what the workers differ.
    async fn both_read(&self, are_mixed: bool) -> Result<()> {
        for program in [&self.earlier, &self.later] {
            for words in READS {
                let done = command(program, self.sandbox, words).await?;
                // 1 is a verdict, of `status` and `verify`; 2 is a failure, or UNKNOWN.
                ensure!(matches!(done.code, Some(0 | 1)), "{} {words:?}: {done:?}", program.display());
            }
            eventually(SOON, "in what they differ", || async {
                let said = one_line(&command(program, self.sandbox, &["status"]).await?);
                for differs in ["Workers differ in version: ", "Workers differ in claim.ttl: "] {
                    ensure!(said.contains(differs) == are_mixed, "{}: {said}", program.display());
                }
                Ok(())
            })
            .await?;
            let list = command_json(program, self.sandbox, &["workers", "--json"]).await?;
            let versions: BTreeSet<&str> = list["workers"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|row| row["version"].as_str())
                .collect();
            ensure!(versions.len() == if are_mixed { 2 } else { 1 }, "{}: {versions:?}", program.display());
        }
        let table = command(&self.later, self.sandbox, &["workers"]).await?;
        ensure!(table.stdout.contains("VERSION") == are_mixed, "{}", table.stdout);
        Ok(())
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs the earlier release: make upgrade"]
async fn two_releases_in_one_fleet_lose_nothing_and_replace_each_other_both_ways() -> Result<()> {
    let (earlier, later) = (previous()?, balance_sync()?);
    let versions = [&earlier, &later].map(|program| run_program(program, &["--version"], &[]));
    let versions = join_all(versions).await.into_iter().collect::<Result<Vec<_>>>()?;
    eprintln!("upgrade: from {} to {}", versions[0].stdout.trim(), versions[1].stdout.trim());
    let sandbox = balance_sync_tests::sandbox(10, 60).await?;
    let tenants = sandbox.tenants();
    for tenant in &tenants {
        balance_sync_tests::Audit::begin(&sandbox, tenant).await?;
    }
    let mut probe = Probe::begin(&sandbox, Format::Mixed).await?;
    let mut producers: Vec<Producer> = groups(&tenants, Format::ALL.len())
        .zip(Format::ALL)
        .map(|(tenants, format)| Probe::others(&sandbox, tenants).in_format(format))
        .collect();
    let mut fleet =
        TwoReleases { sandbox: &sandbox, earlier, later, workers: BTreeMap::new(), moments: Vec::new() };
    let (later, earlier) = (fleet.later.clone(), fleet.earlier.clone());
    let mut names = vec!["one", "two", "three", "four"];
    for name in &names {
        let worker = fleet.builder(name, false).start().await?;
        fleet.workers.insert(name, worker);
    }
    let begun = Probe::now(&sandbox).await?;
    let played = async {
        fleet.agree("four are earlier", 0).await?;
        fleet.both_read(false).await?;
        // Forwards. The later release finds all rights that it needs.
        let checked = command(&later, &sandbox, &["check", "--connect"]).await?;
        ensure!(checked.code == Some(0), "{checked:?}");
        for name in ["one", "two"] {
            fleet.start(name, true).await?;
        }
        fleet.both_read(true).await?;
        // The earlier ones would serve tenants outside: no selection is taken.
        for words in
            [&["rollout", "set", "50%"][..], &["rollout", "none"], &["rollout", "exclude", "tenant-0001"]]
        {
            let refused = command(&later, &sandbox, words).await?;
            let said = one_line(&refused);
            ensure!(refused.code == Some(2) && said.contains("know no rollout"), "{words:?}: {refused:?}");
            ensure!(said.contains("four, three"), "{said}");
        }
        let status = command(&later, &sandbox, &["rollout", "status", "--json"]).await?;
        ensure!(status.stdout.contains("\"revision\":0"), "{status:?}");
        // A new setting is refused by the earlier release, by its name; the later one takes both files.
        let newer = [("BALANCE_SYNC__TENANTS__SHARE", "50%")];
        let config = sandbox.config_path().to_string_lossy().into_owned();
        let refused = run_program(&earlier, &["check", "--config", &config], &newer).await?;
        ensure!(refused.code == Some(2) && one_line(&refused).contains("share"), "{refused:?}");
        let taken = run_program(&later, &["check", "--config", &config], &newer).await?;
        ensure!(taken.code == Some(0), "{taken:?}");
        for name in ["three", "four"] {
            fleet.start(name, true).await?;
        }
        fleet.both_read(false).await?;
        // All know it now.
        let set = command(&later, &sandbox, &["rollout", "exclude", "tenant-0001", "--wait", "60"]).await?;
        ensure!(set.code == Some(0), "{set:?}");
        fleet.agree("one tenant is left out", 1).await?;
        // What the earlier release's commands make of the records of it.
        for words in READS {
            let done = command(&earlier, &sandbox, words).await?;
            ensure!(matches!(done.code, Some(0 | 1)), "{words:?}: {done:?}");
        }
        // An earlier one that is started nevertheless is named, and everything says stop.
        let intruder = fleet.builder("five", false).start().await?;
        eventually(SOON, "the earlier worker in the verdict", || async {
            let said = one_line(&command(&later, &sandbox, &["status"]).await?);
            let named = "know no rollout, and serve tenants that are not in it as well: five.";
            ensure!(said.contains(named), "{said}");
            let status = command(&later, &sandbox, &["rollout", "status"]).await?;
            let said = one_line(&status);
            ensure!(
                status.code == Some(1) && said.starts_with("Stop: workers of an earlier release"),
                "{said}"
            );
            Ok(())
        })
        .await?;
        drop(intruder);
        let all = command(&later, &sandbox, &["rollout", "reset", "--wait", "60"]).await?;
        ensure!(all.code == Some(0), "{all:?}");
        // And back.
        for name in ["one", "two"] {
            fleet.start(name, false).await?;
        }
        fleet.both_read(true).await?;
        for name in ["three", "four"] {
            fleet.start(name, false).await?;
        }
        fleet.both_read(false).await
    };
    let ((), written, lags) = under_load(&sandbox, &mut producers, 300.0, &mut probe, played).await?;
    nothing_lost(&sandbox, fleet.workers.values()).await?;
    let mut from = begun;
    eprintln!("upgrade: {} mutations of all formats, 0 lost", written.mutations);
    eprintln!("upgrade: {:<32} {:>8} {:>8} {:>8}", "until", "seconds", "lag p50", "lag p99");
    for (at, what) in &fleet.moments {
        let quantile = |part| lags.quantile(part, from, *at);
        eprintln!("upgrade: {what:<32} {:>8.1} {:>8.3} {:>8.3}", at - from, quantile(0.5), quantile(0.99));
        from = *at;
    }
    names.sort_unstable();
    for name in names {
        fleet.workers.get_mut(name).context("a worker")?.stop().await?;
    }
    Ok(())
}

/// The fleet's own measurement of the lag, over processes that come and go.
#[derive(Default)]
struct Measured {
    /// Of processes that have ended.
    ended: BTreeMap<u64, f64>,
}

impl Measured {
    async fn of(worker: &Worker) -> Result<BTreeMap<u64, f64>> {
        let buckets = worker.metrics().await?.histogram("balance_sync_lag_seconds");
        Ok(buckets.into_iter().map(|(bound, count)| (bound.to_bits(), count)).collect())
    }

    fn add(sum: &mut BTreeMap<u64, f64>, more: &BTreeMap<u64, f64>) {
        for (bound, count) in more {
            *sum.entry(*bound).or_default() += count;
        }
    }

    /// What has been counted so far, by bucket.
    async fn now(&self, workers: impl Iterator<Item = &Worker>) -> Result<BTreeMap<u64, f64>> {
        let mut sum = self.ended.clone();
        for worker in workers {
            Self::add(&mut sum, &Self::of(worker).await?);
        }
        Ok(sum)
    }

    /// The bound of the bucket in which this part of what was counted between two readings ends, in seconds.
    fn quantile(before: &BTreeMap<u64, f64>, after: &BTreeMap<u64, f64>, part: f64) -> f64 {
        let counts = after.iter().map(|(bound, count)| {
            (f64::from_bits(*bound), count - before.get(bound).copied().unwrap_or_default())
        });
        let mut counts: Vec<(f64, f64)> = counts.collect();
        counts.sort_by(|a, b| a.0.total_cmp(&b.0));
        let all = counts.last().map_or(0.0, |(_, count)| *count);
        counts.iter().find(|(_, count)| *count >= part * all).map_or(0.0, |(bound, _)| *bound)
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "measures time on a machine with nothing else to do: make upgrade"]
async fn a_rolling_restart_of_four_workers_under_load() -> Result<()> {
    let (rate, tenants) = (setting("UPGRADE_RATE", 5_000)?, setting("UPGRADE_TENANTS", 40)?);
    let sandbox = Sandbox::start(SandboxOptions {
        // As many databases as tenants would need more connections than Postgres has by default.
        isolation: Isolation::Schema,
        ..options(tenants, 200)
    })
    .await?;
    let all = sandbox.tenants();
    let names = ["one", "two", "three", "four"];
    let builder = |name: &str| Worker::of(&sandbox).set("worker.name", name).set("log.level", "info");
    let program = balance_sync()?;
    let mut fleet: BTreeMap<&str, Worker> = BTreeMap::new();
    for name in names {
        fleet.insert(name, builder(name).start().await?);
    }
    let mut sorted = names;
    sorted.sort_unstable();
    eventually(SOON, "all tenants shared out", || shared_out(&program, &sandbox, &sorted, 0)).await?;
    let mut probe = Probe::begin(&sandbox, Format::Dual).await?;
    let mut producers = [Probe::others(&sandbox, &all).in_format(Format::Dual)];
    let mut measured = Measured::default();
    // What, from when, until when, the fleet's p99.
    let mut phases: Vec<(String, f64, f64, f64)> = Vec::new();
    let played = async {
        tokio::time::sleep(AROUND).await;
        let mut counted = measured.now(fleet.values()).await?;
        let mut from = Probe::now(&sandbox).await?;
        tokio::time::sleep(2 * AROUND).await;
        let mut phase = |what: String, from: f64, until: f64, before: &_, after: &_| {
            phases.push((what, from, until, Measured::quantile(before, after, 0.99)));
        };
        for name in [None].into_iter().chain(names.map(Some)) {
            let mut took = String::from("four workers");
            if let Some(name) = name {
                let mut worker = fleet.remove(name).context("it was started")?;
                Measured::add(&mut measured.ended, &Measured::of(&worker).await?);
                let begun = Instant::now();
                let ended = worker.stop().await?;
                ensure!(ended.code == Some(0), "{name} ended with {:?}", ended.code);
                let gone = begun.elapsed();
                fleet.insert(name, builder(name).start().await?);
                let ready = begun.elapsed();
                // The next one is restarted when this one has its tenants.
                eventually(SOON, "all tenants shared out", || shared_out(&program, &sandbox, &sorted, 0))
                    .await?;
                took = format!(
                    "{name}: ended {:.1} s, ready {:.1} s, has its tenants {:.1} s",
                    gone.as_secs_f64(),
                    ready.as_secs_f64(),
                    begun.elapsed().as_secs_f64()
                );
                tokio::time::sleep(AROUND).await;
            }
            let (after, until) = (measured.now(fleet.values()).await?, Probe::now(&sandbox).await?);
            phase(took, from, until, &counted, &after);
            (counted, from) = (after, until);
        }
        Ok(())
    };
    let ((), written, lags) = under_load(&sandbox, &mut producers, rate as f64, &mut probe, played).await?;
    let (from, until) = match (phases.first(), phases.last()) {
        (Some((_, from, ..)), Some((_, _, until, _))) => (*from, *until),
        _ => bail!("nothing was played"),
    };
    eprintln!(
        "rolling restart: {tenants} tenants, {} mutations ({:.0} per second, wanted {rate}), {} watched from outside, 0 lost",
        written.mutations,
        written.per_second,
        lags.count(from, until)
    );
    eprintln!(
        "rolling restart: {:<62} {:>8} {:>8} {:>8} {:>8} {:>10}",
        "", "seconds", "p50 s", "p99 s", "max s", "own p99 s"
    );
    for (what, from, until, own) in
        phases.iter().cloned().chain([("all of it".to_owned(), from, until, f64::NAN)])
    {
        let quantile = |part| lags.quantile(part, from, until);
        eprintln!(
            "rolling restart: {what:<62} {:>8.1} {:>8.3} {:>8.3} {:>8.3} {:>10}",
            until - from,
            quantile(0.5),
            quantile(0.99),
            quantile(1.0),
            if own.is_nan() { String::new() } else { format!("≤ {own}") }
        );
    }
    for worker in fleet.values_mut() {
        worker.stop().await?;
    }
    let Some(longest) = std::env::var(LONGEST).ok().filter(|text| !text.is_empty()) else { return Ok(()) };
    let longest: f64 = longest.parse().with_context(|| format!("{LONGEST} = {longest}"))?;
    // A figure of another load would say nothing.
    ensure!(
        written.per_second >= 0.95 * rate as f64,
        "{:.0} mutations per second instead of {rate}: this machine can't make the load",
        written.per_second
    );
    let p99 = lags.quantile(0.99, from, until);
    ensure!(p99 <= longest, "the lag's p99 was {p99:.3} s, {longest} s are allowed ({LONGEST})");
    Ok(())
}
