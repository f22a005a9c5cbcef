//! `demo`: the whole main job on private servers, to be seen and checked by anybody in a minute.
//!
//! Reading order: this file tells the story; [`workers`] are the processes it is about, [`load`] is what is produced,
//! [`metrics`] and [`board`] what is seen meanwhile, [`check`] and [`report`] what it came to.
//!
//! All of it runs in one future: when a signal comes, that future is dropped, and with it go producers, workers and
//! servers. Should this process be killed, the guards of workers and servers do the same.

mod board;
mod check;
mod load;
mod metrics;
mod report;
mod workers;

use std::{
    path::Path,
    time::{Duration, Instant},
};

use anyhow::Context;
use balance_sync_cli::{EXIT_OK, interrupted};
use balance_sync_sandbox::{
    Isolation, Sandbox, SandboxOptions, TenantIsolation, eventually,
    ledger::{Producer, TenantKeys},
};
use tokio_util::sync::CancellationToken;

use self::{
    board::{Board, Screen},
    load::{ADD_AT, Cast, KILL_AT, REMOVE_AT, Timeline},
    report::{Report, TenantReport},
    workers::Worker,
};
use crate::{
    args::{DemoArgs, seconds},
    product,
};

/// A balance is not where it must be, or a worker did not end as it should.
const EXIT_FAILED: u8 = 1;
/// Added to a signal's number by custom of all shells.
const EXIT_SIGNAL: u8 = 128;

/// The workers; the first is the one that is killed.
const WORKERS: [&str; 2] = ["worker-1", "worker-2"];
/// How long a new tenant may take until it is served, and a removed one until its collectors have ended. A poll and a
/// flush are a matter of two seconds; the rest is for machines that are busy with other things.
const NOTICED_WITHIN: Duration = Duration::from_secs(60);
/// How long nothing may move before the rest is taken for lost: twice the claim TTL, after which what the killed
/// worker had claimed comes due again.
const STUCK_AFTER: Duration = workers::CLAIM_TTL.saturating_mul(2);
/// Between two looks at the schedules when all must be written.
const LOOK_EVERY: Duration = Duration::from_millis(100);
/// How long Postgres may take to notice that a worker has gone.
const SESSIONS_END_WITHIN: Duration = Duration::from_secs(10);

/// Shows it and checks it. The exit code is 0 only if every balance of every tenant arrived.
///
/// # Errors
/// When something can't be started, read or ended.
pub(crate) async fn demo(args: DemoArgs) -> anyhow::Result<u8> {
    let report = tokio::select! {
        // First, so that signals are listened to before anything is started.
        biased;
        signal = interrupted() => {
            let signal = signal.context("listening to signals")?;
            eprintln!("demo: {signal}, all is ended and removed");
            let number = if signal == "SIGINT" { 2 } else { 15 };
            return Ok(EXIT_SIGNAL + number);
        }
        report = Box::pin(show(&args)) => report?,
    };
    if args.json {
        println!("{}", report.json()?);
    } else {
        println!("{}", report.text());
    }
    Ok(if report.is_good() { EXIT_OK } else { EXIT_FAILED })
}

/// From the start of the servers to their end.
async fn show(args: &DemoArgs) -> anyhow::Result<Report> {
    let product = product::binary()?;
    let screen = Screen::new();
    screen.note(&format!(
        "starting a private Redis, a Postgres and a tenant service; {} tenants with {} balances each",
        args.tenants, args.balances
    ));
    let options = SandboxOptions {
        tenants: args.tenants as usize,
        balances: args.balances as usize,
        isolation: Isolation::Mixed,
        ..SandboxOptions::default()
    };
    let sandbox = Sandbox::start(options).await?;
    // Dropped before the sandbox when something fails from here on.
    let workers = futures::future::try_join_all(
        WORKERS.map(|name| Worker::start(&product, name, sandbox.config_path())),
    )
    .await?;
    let pids: Vec<String> = workers
        .iter()
        .map(|worker| format!("{} (process {})", worker.name, worker.pid().unwrap_or_default()))
        .collect();
    screen.note(&format!("{} are ready", pids.join(" and ")));

    let report = perform(args, &product, &sandbox, &workers, &screen).await?;
    if !report.is_good() {
        for worker in &workers {
            screen.note(&format!("{}, {}", worker.name, worker.log()));
        }
    }
    // The last line must be true when it is printed: nothing runs any more, nothing is left.
    tokio::task::spawn_blocking(move || drop(workers)).await.context("ending the workers")?;
    sandbox.stop().await?;
    Ok(report)
}

/// Load, events, drain, comparison.
async fn perform(
    args: &DemoArgs,
    product: &Path,
    sandbox: &Sandbox,
    workers: &[Worker],
    screen: &Screen,
) -> anyhow::Result<Report> {
    let ids: Vec<String> = sandbox.tenants().into_iter().map(|tenant| tenant.id).collect();
    let cast = Cast::new(&ids, args);
    let board = Board::new(screen, workers);
    let stage = Stage { product, sandbox, workers, cast: &cast, board: &board };
    screen.note(&format!("{:.0} mutations/s for {} s, format {}", args.rate, args.seconds, args.format));

    let acts = async {
        let mut report = Report { rate_asked: args.rate, ..Report::default() };
        let producers = stage.load(seconds(args.seconds), &mut report).await?;
        stage.finish(&mut report).await?;
        anyhow::Ok((report, producers))
    };
    let (mut report, producers) = tokio::select! {
        ended = acts => ended?,
        failed = board.watch(|| cast.mutations()) => match failed? {},
    };
    let producers: Vec<&Producer> = producers.iter().collect();
    stage.compare(&producers, &mut report).await?;
    Ok(report)
}

/// What all acts need.
struct Stage<'a> {
    product: &'a Path,
    sandbox: &'a Sandbox,
    workers: &'a [Worker],
    cast: &'a Cast,
    board: &'a Board<'a>,
}

impl Stage<'_> {
    // -- load ----------------------------------------------------------------------------------------------------

    /// The load with all that happens meanwhile.
    async fn load(&self, length: Duration, report: &mut Report) -> anyhow::Result<[Producer; 3]> {
        let timeline = Timeline::begin(length);
        let mut stayers = self.producer(&self.cast.stayers.ids)?;
        let steady = async {
            let options = self.cast.options(&self.cast.stayers, length, 1);
            let run = stayers.run(&options, &self.cast.stayers.progress, &CancellationToken::new()).await?;
            report.load_seconds = run.elapsed.as_secs_f64();
            report.rate_produced = self.cast.mutations() as f64 / report.load_seconds.max(1e-9);
            anyhow::Ok(Instant::now())
        };
        let (ended, leaver_and_waiting, newcomer, ()) =
            tokio::try_join!(steady, self.leaver(timeline), self.newcomer(timeline), self.kill(timeline))?;
        let (leaver, waiting) = leaver_and_waiting;
        report.removed_waiting = waiting;
        report.unknown_mutations = self.cast.errors();
        // What came after the load itself, the stop of the removed tenant for example, is part of what must be waited for.
        report.drain_seconds = ended.elapsed().as_secs_f64();
        Ok([stayers, leaver, newcomer])
    }

    /// A tenant is added while the load runs, and has load from then on.
    async fn newcomer(&self, timeline: Timeline) -> anyhow::Result<Producer> {
        let group = &self.cast.newcomer;
        let id = &group.ids[0];
        timeline.reached(ADD_AT).await;
        self.sandbox.add_tenant(id, TenantIsolation::Database).await.context("adding a tenant")?;
        self.board.note(&format!("{id} is new in the tenant service"));
        let mut producer = self.producer(&group.ids)?;
        let options = self.cast.options(group, timeline.left(), 3);
        let until_its_end = CancellationToken::new();
        let served = async {
            let is_served = || async { self.board.is_served(id) };
            eventually(NOTICED_WITHIN, &format!("the collector of {id}"), is_served).await?;
            self.board.note(&format!("{id} is served"));
            Ok(())
        };
        tokio::try_join!(producer.run(&options, &group.progress, &until_its_end), served)?;
        Ok(producer)
    }

    /// One worker is killed in the middle of its work.
    async fn kill(&self, timeline: Timeline) -> anyhow::Result<()> {
        timeline.reached(KILL_AT).await;
        let victim = &self.workers[0];
        let pid = victim.pid().unwrap_or_default();
        self.board.kill(victim).await?;
        let ttl = humantime::format_duration(workers::CLAIM_TTL);
        self.board.note(&format!(
            "{} (process {pid}) is killed with SIGKILL; what it had claimed comes due again after {ttl}",
            victim.name
        ));
        Ok(())
    }

    /// A tenant's load ends, and it is removed. Gives how many of its balances were still scheduled when its collectors
    /// had stopped.
    async fn leaver(&self, timeline: Timeline) -> anyhow::Result<(Producer, u64)> {
        let group = &self.cast.leaver;
        let id = &group.ids[0];
        let mut producer = self.producer(&group.ids)?;
        let options = self.cast.options(group, timeline.left(), 2);
        let end = CancellationToken::new();
        let (run, ()) = tokio::join!(producer.run(&options, &group.progress, &end), async {
            timeline.reached(REMOVE_AT).await;
            end.cancel();
        });
        run?;
        // Workers forget the counters of a tenant that is gone.
        self.board.scrape().await;
        self.sandbox.remove_tenant(id)?;
        self.board.note(&format!("{id} is removed from the tenant service"));
        let is_gone = || async { !self.board.is_served(id) };
        eventually(NOTICED_WITHIN, &format!("the end of the collectors of {id}"), is_gone).await?;
        let waiting = self.scheduled(&group.ids).await?;
        self.board.note(&match waiting {
            0 => format!("{id} is flushed and its collector stopped"),
            1.. => format!(
                "the collector of {id} has stopped; {waiting} of its balances wait in Redis for its return"
            ),
        });
        Ok((producer, waiting))
    }

    fn producer(&self, ids: &[String]) -> anyhow::Result<Producer> {
        let tenants = ids.iter().map(|id| Ok(self.sandbox.tenant(id)?.load()));
        let producer = Producer::new(&self.sandbox.redis().url(), tenants.collect::<anyhow::Result<_>>()?);
        Ok(producer.in_format(self.cast.format))
    }

    // -- end -----------------------------------------------------------------------------------------------------

    /// Waits until all is written and ends the surviving worker.
    async fn finish(&self, report: &mut Report) -> anyhow::Result<()> {
        let began = Instant::now();
        let leaver = &self.cast.leaver.ids[0];
        let returns = report.removed_waiting > 0;
        if returns {
            self.sandbox.restore_tenant(leaver)?;
            self.board.note(&format!("{leaver} returns, for what waits of it to be written"));
        }
        self.board.note("the load has ended, what is scheduled is written");
        let left = self.drain().await?;
        report.drain_seconds += began.elapsed().as_secs_f64();
        match left {
            0 => self.board.note("nothing is scheduled any more"),
            1.. => report.problems.push(format!(
                "{left} balances are still scheduled, and their number has not fallen for {}",
                humantime::format_duration(STUCK_AFTER)
            )),
        }

        self.board.scrape().await;
        for worker in self.workers.iter().filter(|worker| worker.is_on_duty()) {
            let status = worker.drain().await?;
            self.board.note(&format!("{} has drained and ended after SIGTERM, {status}", worker.name));
            if !status.success() {
                report.problems.push(format!("{} ended with {status}, not with exit code 0", worker.name));
            }
        }
        if !returns {
            // Only for the comparison, which asks the tenant service who there is.
            self.sandbox.restore_tenant(leaver)?;
        }
        Ok(())
    }

    /// Waits until no balance is scheduled; gives how many are if their number does not fall any more.
    async fn drain(&self) -> anyhow::Result<u64> {
        let ids: Vec<String> = self.sandbox.tenants().into_iter().map(|tenant| tenant.id).collect();
        let mut least = u64::MAX;
        let mut fell = Instant::now();
        loop {
            let scheduled = self.scheduled(&ids).await?;
            self.board.set_phase(format!("  {scheduled} scheduled"));
            if scheduled < least {
                (least, fell) = (scheduled, Instant::now());
            }
            if scheduled == 0 || fell.elapsed() > STUCK_AFTER {
                self.board.set_phase(String::new());
                return Ok(scheduled);
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    }

    /// Balances in the schedules of these tenants, due or claimed.
    async fn scheduled(&self, ids: &[String]) -> anyhow::Result<u64> {
        let mut redis = self.sandbox.redis().connect().await?;
        let mut lengths = redis::pipe();
        for id in ids {
            lengths.zcard(TenantKeys::tenant(id).schedule());
        }
        let lengths: Vec<u64> = lengths.query_async(&mut redis).await.context("reading the schedules")?;
        Ok(lengths.into_iter().sum())
    }

    /// Compares all balances, and completes the report.
    async fn compare(&self, producers: &[&Producer], report: &mut Report) -> anyhow::Result<()> {
        // Postgres counts the updates of a session at its end at the latest.
        eventually(SESSIONS_END_WITHIN, "the end of the workers' sessions", || self.sessions_ended()).await?;
        let written = load::written(producers);
        let checked = check::check(self.product, self.sandbox, &written).await?;
        let all = self.board.counted(None).lag;
        (report.lag_p50_seconds, report.lag_p99_seconds) = (all.quantile(0.5), all.quantile(0.99));
        report.differences = checked.differences;
        for found in checked.tenants {
            let lag = self.board.counted(Some(&found.tenant)).lag;
            report.tenants.push(TenantReport {
                remark: self.remark(&found.tenant),
                balances: found.balances,
                mutations: self.cast.mutations_of(&found.tenant),
                rows_written: found.rows_written,
                lag_p50_seconds: lag.quantile(0.5),
                lag_p99_seconds: lag.quantile(0.99),
                behind: found.behind,
                missing: found.missing,
                different: found.different,
                tenant: found.tenant,
            });
        }
        Ok(())
    }

    async fn sessions_ended(&self) -> anyhow::Result<()> {
        let postgres = self.sandbox.postgres();
        let mut connection = postgres.connect("postgres").await?;
        let others: i64 = sqlx::query_scalar(
            "SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' AND usename <> $1",
        )
        .bind(postgres.superuser())
        .fetch_one(&mut connection)
        .await?;
        anyhow::ensure!(others == 0, "there are {others}");
        Ok(())
    }

    fn remark(&self, id: &str) -> &'static str {
        let is_in = |ids: &[String]| ids.iter().any(|known| known == id);
        if is_in(&self.cast.newcomer.ids) {
            "added"
        } else if is_in(&self.cast.leaver.ids) {
            "removed"
        } else {
            ""
        }
    }
}
