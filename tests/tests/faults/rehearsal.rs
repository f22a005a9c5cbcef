//! The migration of `docs/migrating-from-midaz.md`, played on private servers next to a stand-in for the ledger under load: the page's
//! own commands, line by line, in a shell. `make rehearsal` prints a table.

use std::collections::BTreeSet;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use balance_sync_sandbox::ledger::{Format, LoadOptions, LoadTenant, Progress, Round, write_operations};
use balance_sync_sandbox::{Isolation, PostgresOptions, Sandbox, SandboxOptions};
use balance_sync_tests::ledger::{all_settled, in_step, losses_key, redis_time};
use balance_sync_tests::{Audit, LedgerWorker, Probe, balance_sync, options, run};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use redis::AsyncCommands;
use tokio::io::{AsyncBufReadExt, AsyncWriteExt, BufReader, Lines};
use tokio::process::{Child, ChildStdin, ChildStdout};
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

const PAGE: &str = include_str!("../../../docs/migrating-from-midaz.md");
/// Begins a block of commands that are executed.
const EXECUTED: &str = "```sh run";
const MARK: &str = "<!-- rehearsal: ";
/// How long a command may take, and how long it is repeated.
const AT_MOST: Duration = Duration::from_secs(180);
/// Between two looks of a command that is repeated.
const LOOK_EVERY: Duration = Duration::from_millis(500);
/// Due for so long, a member counts as late.
const LATE: f64 = 5.0;

/// What a section has one do.
#[derive(Debug, PartialEq)]
enum Item {
    /// What happens beside: the ledger's pods restart with other settings, or its postings end.
    Mark(String),
    Command(Step),
}

/// A command, and what is to be seen.
#[derive(Debug, PartialEq)]
struct Step {
    command: String,
    code: i32,
    prints: Vec<String>,
    repeats: bool,
}

#[derive(Debug)]
struct Section {
    title: String,
    items: Vec<Item>,
}

impl Step {
    /// A line of the page: a command, and after two spaces and a `#` what is to be seen.
    fn parse(line: &str) -> Result<Self> {
        let (command, remark) = line.split_once("  # ").unwrap_or((line, ""));
        let mut step =
            Self { command: command.trim().to_owned(), code: 0, prints: Vec::new(), repeats: false };
        for part in remark.split(", ").filter(|part| !part.is_empty()) {
            if part == "repeat" {
                step.repeats = true;
            } else if let Some(code) = part.strip_prefix("exits with ") {
                step.code = code.parse().with_context(|| format!("{line}: {part}"))?;
            } else if let Some(text) = part.strip_prefix("prints \"").and_then(|rest| rest.strip_suffix('"'))
            {
                step.prints.push(text.to_owned());
            } else {
                bail!("{line}: what is {part:?} to mean?");
            }
        }
        Ok(step)
    }

    /// Whether this is what the page shows.
    fn is_seen(&self, code: i32, output: &str) -> bool {
        let output = output.split_whitespace().collect::<Vec<_>>().join(" ");
        let is_there =
            |text: &String| output.contains(&text.split_whitespace().collect::<Vec<_>>().join(" "));
        // A verdict that is looked at until it says something may be any until then, and stay so.
        (code == self.code || self.repeats && self.code == 0 && !self.prints.is_empty())
            && self.prints.iter().all(is_there)
    }
}

/// The sections of a page that have something to be done, with placeholders replaced.
fn sections(page: &str, placeholders: &[(&str, &str)]) -> Result<Vec<Section>> {
    let mut page = page.to_owned();
    for (name, value) in placeholders {
        page = page.replace(name, value);
    }
    let mut sections: Vec<Section> = Vec::new();
    let mut is_executed = false;
    for line in page.lines() {
        if is_executed {
            if line == "```" {
                is_executed = false;
            } else {
                let section = sections.last_mut().context("a block before the first section")?;
                section.items.push(Item::Command(Step::parse(line)?));
            }
        } else if let Some(title) = line.strip_prefix("## ") {
            sections.push(Section { title: title.to_owned(), items: Vec::new() });
        } else if line == EXECUTED {
            is_executed = true;
        } else if let Some(mark) = line.strip_prefix(MARK).and_then(|rest| rest.strip_suffix(" -->")) {
            let section = sections.last_mut().context("a mark before the first section")?;
            section.items.push(Item::Mark(mark.to_owned()));
        }
    }
    ensure!(!is_executed, "a block without an end");
    sections.retain(|section| !section.items.is_empty());
    Ok(sections)
}

/// A shell that stays: what one line exports or starts is there for the next one.
struct Shell {
    child: Child,
    stdin: Option<ChildStdin>,
    output: Lines<BufReader<ChildStdout>>,
    folder: tempfile::TempDir,
}

impl Shell {
    /// # Errors
    /// When it can't be started.
    fn start(program: &Path, settings: &[(&str, String)]) -> Result<Self> {
        let folder = tempfile::tempdir()?;
        let path = std::env::var("PATH").unwrap_or_default();
        let beside = program.parent().context("a binary without a folder")?.display();
        let mut command = tokio::process::Command::new("sh");
        command
            .current_dir(folder.path())
            .env_clear()
            .env("PATH", format!("{beside}:{path}"))
            .env("HOME", folder.path())
            .envs(settings.iter().map(|(name, value)| (*name, value.as_str())))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut child = command.spawn().context("starting a shell")?;
        let stdin = child.stdin.take();
        let output = BufReader::new(child.stdout.take().context("a shell without output")?).lines();
        Ok(Self { child, stdin, output, folder })
    }

    /// Runs a line; returns its exit code and what it printed.
    async fn run(&mut self, line: &str) -> Result<(i32, String)> {
        // Workers go with the shell, also when this process is killed and its end of the pipe closes.
        const END: &str = "<<exit code: ";
        let stdin = self.stdin.as_mut().context("the shell has ended")?;
        let clean = "trap 'kill -KILL $(cat *.pid 2>/dev/null) 2>/dev/null' EXIT";
        let text = format!("{clean}\n{{ {line}\n}} 2>&1 </dev/null; printf '\\n{END}%s\\n' $?\n");
        stdin.write_all(text.as_bytes()).await?;
        let read = async {
            let mut printed = String::new();
            loop {
                let line = self.output.next_line().await?.context("the shell has ended")?;
                if let Some(code) = line.strip_prefix(END) {
                    return anyhow::Ok((code.parse()?, printed.trim().to_owned()));
                }
                printed.push_str(&line);
                printed.push('\n');
            }
        };
        tokio::time::timeout(AT_MOST, read)
            .await
            .with_context(|| format!("{line} takes more than {AT_MOST:?}"))?
    }

    /// Does what the page says, until what it shows is seen.
    async fn step(&mut self, step: &Step) -> Result<()> {
        let begun = Instant::now();
        loop {
            let (code, printed) = self.run(&step.command).await?;
            if step.is_seen(code, &printed) {
                return Ok(());
            }
            let is_over = !step.repeats || begun.elapsed() > AT_MOST;
            ensure!(!is_over, "{step:?}: exit code {code}, after {:?}:\n{printed}", begun.elapsed());
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// The workers that it has started and that may still run.
    fn workers(&self) -> Vec<i32> {
        let files = std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten();
        let texts = files
            .filter(|file| file.path().extension().is_some_and(|name| name == "pid"))
            .filter_map(|file| std::fs::read_to_string(file.path()).ok());
        texts.filter_map(|text| text.trim().parse().ok()).collect()
    }

    /// The last lines of the workers' logs, for whoever has to find out why it failed.
    fn logs(&self) -> String {
        let mut text = String::new();
        for file in std::fs::read_dir(self.folder.path()).into_iter().flatten().flatten() {
            if file.path().extension().is_some_and(|name| name == "log") {
                let log = std::fs::read_to_string(file.path()).unwrap_or_default();
                let lines: Vec<&str> = log.lines().collect();
                text.push_str(&format!("{}:\n", file.path().display()));
                text.push_str(&lines[lines.len().saturating_sub(10)..].join("\n"));
                text.push('\n');
            }
        }
        text
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        for worker in self.workers() {
            let _ = kill(Pid::from_raw(worker), Signal::SIGKILL);
        }
        self.stdin = None;
        let _ = self.child.start_kill();
    }
}

/// The ledger's own worker at each tenant.
struct Pods<'a> {
    sandbox: &'a Sandbox,
    running: Vec<JoinHandle<Round>>,
    over: CancellationToken,
    written: u64,
}

impl Pods<'_> {
    /// They restart, with or without the settings that park them.
    async fn restart(&mut self, are_parked: bool) -> Result<()> {
        self.stop().await?;
        self.over = CancellationToken::new();
        for tenant in self.sandbox.tenants() {
            let redis = self.sandbox.redis().connect().await?;
            let mut worker = LedgerWorker::new(&tenant, redis, self.sandbox.pool(&tenant));
            if are_parked {
                worker = worker.parked();
            }
            let over = self.over.clone();
            self.running.push(tokio::spawn(async move { worker.run(&over).await }));
        }
        Ok(())
    }

    async fn stop(&mut self) -> Result<()> {
        self.over.cancel();
        for pod in self.running.drain(..) {
            self.written += pod.await?.written;
        }
        Ok(())
    }
}

/// A line of the table.
struct Row {
    title: String,
    from: f64,
    until: f64,
    mutations: u64,
    lost: usize,
    late: usize,
}

/// What is listed as lost, and what has been due for too long, over all tenants.
async fn lost_and_late(sandbox: &Sandbox) -> Result<(usize, usize)> {
    let mut redis = sandbox.redis().connect().await?;
    let now = redis_time(&mut redis).await?;
    let (mut lost, mut late) = (0, 0);
    for tenant in sandbox.tenants() {
        lost += redis.hlen::<_, usize>(losses_key(&tenant)).await?;
        late += redis.zcount::<_, _, _, usize>(tenant.keys.schedule(), 0.0, now - LATE).await?;
    }
    Ok((lost, late))
}

/// Writes the operations that led to these versions, as the ledger does after each mutation.
async fn trail(sandbox: &Sandbox, loads: &[LoadTenant]) -> Result<()> {
    for load in loads {
        let tenant = sandbox.tenant(&load.id)?;
        let pool = sandbox.pool(&tenant);
        let operations: Vec<_> = load.balances.iter().zip(load.versions.iter().copied()).collect();
        let written = write_operations(&pool, tenant.schema.as_deref(), &operations).await;
        pool.close().await;
        written?;
    }
    Ok(())
}

fn setting(name: &str, default: u64) -> Result<u64> {
    match std::env::var(name).ok().filter(|text| !text.is_empty()) {
        Some(text) => text.parse().with_context(|| format!("{name} = {text}")),
        None => Ok(default),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes some minutes: make rehearsal"]
async fn the_page_of_the_migration_is_played_line_by_line() -> Result<()> {
    let stage = Duration::from_secs(setting("REHEARSAL_STAGE", 20)?);
    let (rate, count) = (setting("REHEARSAL_RATE", 3_000)?, setting("REHEARSAL_TENANTS", 40)?);
    let sandbox = Sandbox::start(SandboxOptions {
        isolation: Isolation::Schema,
        postgres: PostgresOptions { max_connections: 400, ..PostgresOptions::default() },
        ..options(usize::try_from(count)?, 100)
    })
    .await?;
    let tenants = sandbox.tenants();
    ensure!(tenants.len() >= 10, "a tenth of {count} tenants is none");
    for tenant in &tenants {
        Audit::begin(&sandbox, tenant).await?;
    }
    let mut probe = Probe::begin(&sandbox, Format::Mixed).await?;
    let mut producer = Probe::others(&sandbox, &tenants).in_format(Format::Mixed);
    let mut pods =
        Pods { sandbox: &sandbox, running: Vec::new(), over: CancellationToken::new(), written: 0 };
    pods.restart(false).await?;

    let config = sandbox.config_path().to_string_lossy().into_owned();
    let page =
        sections(PAGE, &[("FILE", &config), ("TENANT_A", &tenants[0].id), ("TENANT_B", &tenants[1].id)])?;
    // An hour in minutes; nothing else differs from what the page says.
    let part = format!("{}s", (stage.as_secs() / 2).max(1));
    let settings = [
        ("BALANCE_SYNC__OBJECTIVES__ROLLOUT_TIME", part),
        ("BALANCE_SYNC__OBJECTIVES__ROLLOUT_MUTATIONS", "100".to_owned()),
        ("BALANCE_SYNC__CLAIM__QUIET", "20s".to_owned()),
        ("BALANCE_SYNC__LOG__LEVEL", "info".to_owned()),
    ];
    let mut shell = Shell::start(&balance_sync()?, &settings)?;
    let (progress, over) = (Progress::new(tenants.len()), CancellationToken::new());
    let load = LoadOptions { rate: rate as f64, hot_key_share: 0.2, ..LoadOptions::default() };
    let (ended, has_ended) = oneshot::channel();
    let writes = async {
        let (report, probed) = tokio::join!(producer.run(&load, &progress, &over), probe.run(&over));
        probed?;
        let report = report?;
        ensure!(report.errors == 0, "{report:?}");
        trail(&sandbox, producer.tenants()).await?;
        trail(&sandbox, &probe.loads()).await?;
        let _ = ended.send(());
        anyhow::Ok(report)
    };
    let mut rows: Vec<Row> = Vec::new();
    let mut first_tenant = None;
    let played = async {
        let mut has_ended = Some(has_ended);
        // Without the time that a stage is left running.
        let mut spent = Duration::ZERO;
        for section in &page {
            let (begun, from, mutations) =
                (Instant::now(), Probe::now(&sandbox).await?, progress.mutations());
            for item in &section.items {
                match item {
                    Item::Command(step) => {
                        let begun = Instant::now();
                        shell.step(step).await.with_context(|| section.title.clone())?;
                        spent += begun.elapsed();
                        if first_tenant.is_none() && step.command.contains("rollout add") {
                            first_tenant = Some(spent);
                        }
                    }
                    Item::Mark(mark) if mark == "park" => pods.restart(true).await?,
                    Item::Mark(mark) if mark == "unpark" => pods.restart(false).await?,
                    Item::Mark(mark) if mark == "no more postings" => {
                        over.cancel();
                        has_ended.take().context("they have ended before")?.await?;
                    }
                    Item::Mark(mark) => bail!("what is {mark:?} to mean?"),
                }
            }
            if !over.is_cancelled() {
                tokio::time::sleep(stage.saturating_sub(begun.elapsed())).await;
            }
            let (lost, late) = lost_and_late(&sandbox).await?;
            let (until, mutations) = (Probe::now(&sandbox).await?, progress.mutations() - mutations);
            rows.push(Row { title: section.title.clone(), from, until, mutations, lost, late });
        }
        Ok(())
    };
    let played = async {
        let played: Result<()> = played.await;
        over.cancel();
        played
    };
    let (report, played) = tokio::join!(writes, Box::pin(played));
    played.with_context(|| shell.logs())?;
    let report = report?;
    pods.stop().await?;
    all_settled(&sandbox).await?;
    in_step(&sandbox, &producer).await?;
    let lags = probe.read(&sandbox).await?;
    for tenant in &tenants {
        let audit = {
            let pool = sandbox.pool(tenant);
            let audit = Audit::read(&pool, tenant).await;
            pool.close().await;
            audit?
        };
        ensure!(audit.not_forward == 0, "{audit:?}");
    }
    eprintln!(
        "rehearsal: {count} tenants, {} mutations of two releases ({:.0} per second, wanted {rate}), {} rows by the ledger's own workers",
        report.mutations,
        report.mutations as f64 / report.elapsed.as_secs_f64(),
        pods.written
    );
    if let Some(first) = first_tenant {
        eprintln!(
            "rehearsal: {:.1} s of commands from nothing to the first two tenants in the rollout",
            first.as_secs_f64()
        );
    }
    eprintln!(
        "rehearsal: {:<34} {:>8} {:>10} {:>10} {:>10} {:>6} {:>6}",
        "", "seconds", "mutations", "lag p50 s", "lag p99 s", "lost", "late"
    );
    for Row { title, from, until, mutations, lost, late } in &rows {
        let quantile = |part| match lags.count(*from, *until) {
            0 => "-".to_owned(),
            _ => format!("{:.3}", lags.quantile(part, *from, *until)),
        };
        eprintln!(
            "rehearsal: {title:<34} {:>8.1} {mutations:>10} {:>10} {:>10} {lost:>6} {late:>6}",
            until - from,
            quantile(0.5),
            quantile(0.99)
        );
    }
    let (lost, behind) = lost_and_late(&sandbox).await?;
    eprintln!("rehearsal: {} lost, {behind} behind", lost + lags.lost);
    ensure!(lost + lags.lost == 0 && behind == 0, "something was lost, or is behind");
    ensure!(rows.iter().all(|row| row.lost == 0), "something was listed as lost meanwhile");
    Ok(())
}

#[tokio::test]
async fn the_commands_of_the_migration_exist_and_all_of_them_are_executed() -> Result<()> {
    let page = sections(PAGE, &[])?;
    let commands = page.iter().flat_map(|section| &section.items).filter_map(|item| match item {
        Item::Command(step) => Some(step),
        Item::Mark(_) => None,
    });
    let mut known = BTreeSet::new();
    for step in commands {
        let words: Vec<&str> = step
            .command
            .split_whitespace()
            .skip_while(|word| *word != "balance-sync")
            .skip(1)
            .take_while(|word| word.chars().all(|c| c.is_ascii_lowercase()))
            .collect();
        if !words.is_empty() {
            known.insert(words);
        }
    }
    ensure!(known.len() > 8, "{known:?}");
    for words in known {
        let asked: Vec<&str> = words.iter().copied().chain(["--help"]).collect();
        let help = run(&asked, &[]).await?;
        ensure!(help.code == Some(0), "{words:?}: {help:?}");
    }
    // No block of commands that only looks as if it was executed.
    let blocks = PAGE.lines().filter(|line| line.starts_with("```sh"));
    for block in blocks {
        ensure!(block == EXECUTED, "{block}");
    }
    Ok(())
}

#[test]
fn steps_are_read_with_what_is_to_be_seen() -> Result<()> {
    let step = Step::parse("balance-sync status  # repeat, exits with 1, prints \"one, two\"");
    ensure!(step.is_err(), "a comma separates: {step:?}");
    let step = Step::parse("balance-sync status  # repeat, exits with 1, prints \"one  two\"")?;
    ensure!(step.repeats && step.code == 1 && step.prints == ["one  two"], "{step:?}");
    ensure!(step.is_seen(1, "zero one\n  two") && !step.is_seen(0, "one two") && !step.is_seen(1, "one"));
    let step = Step::parse("x # y")?;
    ensure!(step.command == "x # y" && !step.repeats && step.code == 0 && step.is_seen(0, ""));
    ensure!(sections("```sh run\nx\n```", &[]).is_err() && sections("## a\n```sh run\nx", &[]).is_err());
    let found = sections("## a\n\n## b\n<!-- rehearsal: park -->\n```sh run\nx Y\n```\n", &[("Y", "z")])?;
    ensure!(found.len() == 1 && found[0].title == "b" && found[0].items.len() == 2, "{found:?}");
    Ok(())
}
