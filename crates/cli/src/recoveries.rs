//! Recoveries beside a worker, for the API: each on a thread of its own, so that it takes no time from collectors and the
//! admin server, with connections of its own, so that it ends with all it has opened.

use std::{
    cell::RefCell,
    path::PathBuf,
    sync::{Arc, Mutex, PoisonError},
    thread::JoinHandle,
    time::Duration,
};

use anyhow::Context as _;
use balance_sync_engine::audit::Known;
use balance_sync_schedule::{Link, Recoveries, server_time};
use balance_sync_view::recovery::{
    BalanceState, Begin, LEASE, LostBalance, MOST_NAMED, RENEW_EVERY, RecoveryRecord, RecoveryRunner,
    RecoveryState, StartError,
};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::{
    audit::{self, Apply, Auditor, Cursor, Finding, Options, Recovery, RecoveryOutput, Restoring},
    commands::audit::RECHECK,
    config::Config,
    wiring,
};

/// Recoveries at work in one process.
const MOST_AT_ONCE: u32 = 2;
/// What is asked of Postgres and Redis per second: half of what the command asks, as this is a worker's host.
const POSTGRES_RATE: u32 = 25_000;
const REDIS_RATE: u32 = 50_000;
/// How long recoveries may take to stop with their worker: a batch and the end of their connections.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Runs them.
pub(crate) struct Runner {
    /// Read again for each: credentials may have changed.
    file: Option<PathBuf>,
    /// Which Redis and tenants the worker serves.
    identity: String,
    permits: Arc<Semaphore>,
    stop: CancellationToken,
    threads: Threads,
}

type Threads = Arc<Mutex<Vec<JoinHandle<()>>>>;

impl Runner {
    /// For a worker with this configuration, which was read from this file.
    pub(crate) fn new(file: Option<PathBuf>, config: &Config) -> Self {
        Self {
            file,
            identity: identity(config),
            permits: Arc::new(Semaphore::new(MOST_AT_ONCE as usize)),
            stop: CancellationToken::new(),
            threads: Threads::default(),
        }
    }

    /// Has all of them stop after the batch that they write.
    pub(crate) fn stop(&self) {
        self.stop.cancel();
    }

    /// Waits until all have stopped, for some seconds.
    pub(crate) async fn stopped(&self) {
        self.stop();
        let all = self.permits.acquire_many(MOST_AT_ONCE);
        if tokio::time::timeout(STOP_WITHIN, all).await.is_err() {
            tracing::warn!("a recovery did not stop in time, and ends with the process");
            return;
        }
        self.reap();
    }

    /// Forgets threads that have ended; those that panicked are logged.
    fn reap(&self) {
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        let (ended, running): (Vec<_>, Vec<_>) = threads.drain(..).partition(JoinHandle::is_finished);
        *threads = running;
        for thread in ended {
            if thread.join().is_err() {
                tracing::error!("a recovery panicked; its record shows it as lost");
            }
        }
    }
}

impl RecoveryRunner for Runner {
    fn prepare(&self) -> Result<Begin, StartError> {
        self.reap();
        if self.stop.is_cancelled() {
            return Err(StartError::NoPermit);
        }
        let permit = Arc::clone(&self.permits).try_acquire_owned().map_err(|_| StartError::NoPermit)?;
        let config = crate::commands::load_config(self.file.as_deref())
            .map_err(|error| StartError::Configuration(format!("{error:#}")))?;
        if identity(&config) != self.identity {
            let why = "it names another Redis or other tenants than those that this worker serves: restart it first";
            return Err(StartError::Configuration(why.to_owned()));
        }
        let (stop, threads) = (self.stop.clone(), Arc::clone(&self.threads));
        Ok(Box::new(move |record| start(permit, config, record, stop, &threads)))
    }
}

fn start(
    permit: OwnedSemaphorePermit,
    config: Config,
    record: RecoveryRecord,
    stop: CancellationToken,
    threads: &Threads,
) {
    let tenant = record.tenant.clone();
    let run = move || {
        let tenant = record.tenant.clone();
        let span = tracing::info_span!("tenant", tenant_id = tenant);
        let ended = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("no runtime")
            .and_then(|runtime| runtime.block_on(run(&config, record, stop).instrument(span)));
        if let Err(error) = ended {
            tracing::warn!(tenant_id = tenant, error = format!("{error:#}"), "recovery failed");
        }
        drop(permit);
    };
    match std::thread::Builder::new().name("recovery".to_owned()).spawn(run) {
        Ok(thread) => threads.lock().unwrap_or_else(PoisonError::into_inner).push(thread),
        Err(error) => tracing::error!(tenant_id = tenant, %error, "no thread for a recovery"),
    }
}

/// What must be the same for a configuration that is read again: server and tenants. Its hash only: there may be secrets in it.
fn identity(config: &Config) -> String {
    let servers = match &config.redis.link.sentinel {
        Some(sentinel) => sentinel.master.clone(),
        None => {
            let url = secrecy::ExposeSecret::expose_secret(&config.redis.link.url).parse::<url::Url>().ok();
            let part = |url: &url::Url| format!("{:?}:{:?}{}", url.host_str(), url.port(), url.path());
            url.as_ref().map(part).unwrap_or_default()
        }
    };
    format!("{servers} {:?} {}", config.redis.link.db, wiring::group(config))
}

/// Runs one to its end, and keeps its record.
async fn run(config: &Config, record: RecoveryRecord, stop: CancellationToken) -> anyhow::Result<()> {
    let link = Link::new(&config.redis.link)?;
    let board = Board { recoveries: Recoveries::new(link.clone()), link, record: RefCell::new(record) };
    let ended = work(config, &board, &stop).await;
    {
        let mut record = board.record.borrow_mut();
        match &ended {
            Ok(recovery) => {
                let complete = recovery.audit.complete;
                record.state = match (complete, recovery.audit.failed.first()) {
                    (true, _) => RecoveryState::Done,
                    (false, Some(_)) => RecoveryState::Failed,
                    (false, None) => RecoveryState::Stopped,
                };
                record.error = recovery.audit.failed.first().map(|failed| failed.text.clone());
                record.notices = recovery.audit.notices.iter().map(|notice| notice.text.clone()).collect();
                record.recoverable = recovery.recoverable;
                record.left = recovery.left;
                record.action_id = recovery.actions.values().next().cloned();
                record.rows = recovery.audit.counted.rows;
            }
            Err(error) => {
                record.state = RecoveryState::Failed;
                record.error = Some(format!("{error:#}"));
            }
        }
    }
    board.write().await?;
    let (tenant, id) = board.names();
    board.recoveries.release(&tenant, &id).await?;
    ended.map(drop)
}

async fn work(config: &Config, board: &Board, stop: &CancellationToken) -> anyhow::Result<Recovery> {
    let options = Options {
        trail: true,
        in_flight: 10.0,
        recheck: RECHECK,
        since: None,
        sample: None,
        postgres_rate: POSTGRES_RATE,
        redis_rate: REDIS_RATE,
    };
    let (tenant, id) = board.names();
    let (apply, by, done_by, note) = {
        let record = board.record.borrow();
        (record.apply, record.by.clone(), record.worker.clone(), record.note.clone())
    };
    let auditor = Auditor::new(config, "recover", options, Cursor::default())?;
    let operator = wiring::operator(config)?;
    let apply =
        apply.then_some(Apply { operator: &operator, by: &by, done_by: &done_by, note: note.as_deref() });
    let only = [tenant.clone()];
    let mut running = std::pin::pin!(audit::recover(&auditor, &only, apply, board));
    let mut tick = tokio::time::interval(RENEW_EVERY);
    loop {
        tokio::select! {
            recovery = &mut running => return recovery,
            () = stop.cancelled(), if !auditor.is_stopped() => auditor.stop(),
            _ = tick.tick() => {
                {
                    let mut record = board.record.borrow_mut();
                    record.rows = auditor.cursor().counted.rows;
                    record.rows_estimate = auditor.estimate();
                }
                if !board.recoveries.lease(&tenant, &id, LEASE).await? {
                    // It was silent for too long, and another one has begun.
                    auditor.stop();
                }
                board.write().await?;
                if board.recoveries.is_to_stop(&tenant, &id).await? {
                    auditor.stop();
                }
            }
        }
    }
}

/// The record, kept up to date.
struct Board {
    link: Link,
    recoveries: Recoveries,
    record: RefCell<RecoveryRecord>,
}

impl Board {
    fn names(&self) -> (String, String) {
        let record = self.record.borrow();
        (record.tenant.clone(), record.id.clone())
    }

    async fn write(&self) -> anyhow::Result<()> {
        let now = server_time(&self.link).await?;
        let (tenant, text) = {
            let mut record = self.record.borrow_mut();
            record.updated = now;
            (record.tenant.clone(), record.to_json())
        };
        Ok(self.recoveries.write(&tenant, &text).await?)
    }

    fn name(&self, balance: LostBalance) {
        let mut record = self.record.borrow_mut();
        if record.balances.len() < MOST_NAMED {
            record.balances.push(balance);
        }
    }
}

impl RecoveryOutput for Board {
    fn left(&self, finding: &Finding) -> anyhow::Result<()> {
        self.record.borrow_mut().left += 1;
        let detail = Some(finding.judgement.advice(finding.listed).sentence().to_owned());
        self.name(LostBalance { detail, ..lost(finding) });
        Ok(())
    }

    fn plan(&self, finding: &Finding) -> anyhow::Result<()> {
        self.record.borrow_mut().recoverable += 1;
        let to = finding.witnesses.recoverable().map(state);
        self.name(LostBalance { to, witness: finding.witness().map(str::to_owned), ..lost(finding) });
        Ok(())
    }

    fn outcome(&self, restoring: &Restoring<'_>) -> anyhow::Result<()> {
        let mut record = self.record.borrow_mut();
        *record.outcomes.entry(restoring.outcome.to_string()).or_default() += 1;
        let member = restoring.finding.name();
        if let Some(balance) = record.balances.iter_mut().find(|balance| balance.member == member) {
            balance.outcome = Some(restoring.outcome.to_string());
            balance.detail = Some(restoring.detail.clone()).filter(|detail| !detail.is_empty());
        }
        Ok(())
    }
}

fn lost(finding: &Finding) -> LostBalance {
    LostBalance {
        member: finding.name(),
        row: finding.witnesses.row.as_ref().map(|row| state(&row.known)),
        to: None,
        witness: None,
        outcome: None,
        detail: None,
    }
}

fn state(known: &Known) -> BalanceState {
    BalanceState {
        version: known.version,
        available: Some(audit::shown(&known.amounts.available)),
        on_hold: Some(audit::shown(&known.amounts.on_hold)),
        overdraft_used: known.amounts.overdraft_used.as_deref().map(audit::shown),
    }
}
