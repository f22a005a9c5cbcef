//! Keeps to the budget of connections to Postgres servers that the whole fleet shares.
//!
//! What is asked for and what follows from the answers is decided by [`balance_sync_engine::connections`]; here are the calls to
//! Redis and to the budget of this worker (`docs/decisions/0044-one-budget-for-the-fleet.md`).

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use balance_sync_engine::connections::{Answer, Ask, Demand, EVERY, FleetConnections, Granted, Verdict};
use balance_sync_schedule::{
    Connections, Link, ScheduleError,
    connections::{self, Renewal, State},
};
use balance_sync_store::{ConnectionBudget, FleetDemand, FleetLimit, FleetUsage};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::tasks::Progress;

/// Longest wait for an answer; the next call is then due.
const ANSWERED_WITHIN: Duration = Duration::from_secs(2);
/// Longest time between two beats of the task.
pub(super) const BEATS_WITHIN: Duration = Duration::from_secs(4);
/// Longest time for the connections to be closed, at the end.
const CLOSED_WITHIN: Duration = Duration::from_millis(1_500);
/// Longest time for the farewell; when Redis doesn't answer, others give this worker up.
pub(super) const FAREWELL: Duration = Duration::from_secs(3);

/// This worker's part of the fleet's connections.
#[derive(Clone)]
pub(super) struct ConnectionShares {
    connections: Connections,
    budget: ConnectionBudget,
    of_fleet: u32,
    /// Outlives a panic of the task: what is held must not be forgotten.
    state: Arc<Mutex<FleetConnections>>,
}

impl ConnectionShares {
    /// For a budget that the fleet shares; `None` for one that it doesn't.
    pub(super) fn of(link: Link, budget: ConnectionBudget) -> Option<Self> {
        let of_fleet = budget.of_fleet()?;
        let state = Arc::new(Mutex::new(FleetConnections::new(fresh_id())));
        Some(Self { connections: Connections::new(link), budget, of_fleet, state })
    }

    /// Runs until it is stopped, when all connections are closed; then gives up what it holds.
    pub(super) async fn run(self, stop: CancellationToken, progress: Progress) {
        if stop.run_until_cancelled(self.keep_renewed(&progress)).await.is_none()
            && tokio::time::timeout(FAREWELL, self.leave()).await.is_err()
        {
            tracing::debug!("connections not given up in time, other workers do it");
        }
    }

    async fn keep_renewed(&self, progress: &Progress) {
        let mut cursor = String::new();
        // Redis has been asked for more than there was: to ask again at once is of no use.
        let mut is_short = false;
        let mut was_settled = true;
        let mut fails = false;
        loop {
            let until = self.locked(|state| state.until());
            let (soon, due) = self.locked(|state| (state.next_call(true), state.next_call(false)));
            if let (Some(soon), Some(due)) = (soon, due) {
                let lapse = async {
                    match until {
                        Some(until) => tokio::time::sleep_until(until.into()).await,
                        None => std::future::pending().await,
                    }
                };
                let wanted = async {
                    if is_short {
                        std::future::pending::<()>().await;
                    }
                    self.budget.more_wanted().await;
                    tokio::time::sleep_until(soon.into()).await;
                };
                tokio::select! {
                    biased;
                    () = lapse => {}
                    () = tokio::time::sleep_until(due.into()) => {}
                    () = wanted => {}
                }
            }
            progress.beat();
            if self.locked(|state| state.lapses(now())) {
                tracing::warn!(
                    "this worker's part of the fleet's connections could not be renewed in redis, all connections to postgres are closed"
                );
                self.budget.lapse();
            }
            match self.call(&mut cursor).await {
                Ok(short) => {
                    is_short = short;
                    fails = false;
                }
                Err(problem) => {
                    is_short = true;
                    if !std::mem::replace(&mut fails, true) {
                        tracing::warn!(
                            problem,
                            "this worker's part of the fleet's connections was not renewed"
                        );
                    }
                }
            }
            let is_settled = self.locked(|state| state.is_settled());
            if was_settled && !is_settled && !fails {
                tracing::info!(
                    "redis may have lost what workers hold of the fleet's connections: none are handed out for some seconds"
                );
            }
            was_settled = is_settled || fails;
        }
    }

    /// One call. Returns whether there was less than this worker could use.
    async fn call(&self, cursor: &mut String) -> Result<bool, String> {
        let demands = self.budget.demands().into_iter().map(|demand| {
            let FleetDemand { server, kept, wanted } = demand;
            Demand { server, kept, wanted: wanted.min(self.of_fleet) }
        });
        let (sent, demands) = (now(), demands.collect());
        let request = self.locked(|state| state.call(sent, demands));
        let wanted: Vec<u32> = request.asks.iter().map(|ask| ask.wanted).collect();
        let ask =
            |Ask { server, kept, wanted }| connections::Ask { server, budget: self.of_fleet, kept, wanted };
        let renewal = Renewal {
            id: request.id,
            beat: request.beat,
            leaves: false,
            settled: request.settled,
            given_up: request.given_up,
            asks: request.asks.into_iter().map(ask).collect(),
            cursor: cursor.clone(),
        };
        let answered = tokio::time::timeout(ANSWERED_WITHIN, self.connections.renew(&renewal)).await;
        let answer = answered
            .map_err(|_| format!("no answer within {ANSWERED_WITHIN:?}"))?
            .map_err(|error: ScheduleError| error.to_string())?;
        cursor.clone_from(&answer.cursor);
        let is_full = answer.state == State::Full;
        let is_short = answer.shares.iter().zip(wanted).any(|(share, wanted)| share.held < wanted);
        let answer = match answer.state {
            State::GivenUp => Answer::GivenUp,
            State::Overtaken | State::Full => Answer::Refused,
            State::Renewed => Answer::Renewed {
                epoch: answer.epoch,
                settled: answer.settled,
                workers: answer.workers,
                granted: answer
                    .shares
                    .into_iter()
                    .map(|share| Granted {
                        held: share.held,
                        share: share.share,
                        all: share.all,
                        workers: share.workers,
                    })
                    .collect(),
            },
        };
        match self.locked(|state| state.answered(sent, now(), answer, fresh_id())) {
            Verdict::Limits(until, limits) => {
                let limits: Vec<FleetLimit> = limits
                    .into_iter()
                    .map(|(server, limit, granted)| FleetLimit {
                        server,
                        limit,
                        usage: FleetUsage {
                            budget: self.of_fleet.into(),
                            held: granted.held.into(),
                            all: granted.all.into(),
                            workers: granted.workers.into(),
                            ..FleetUsage::default()
                        },
                    })
                    .collect();
                self.budget.restrict(until, &limits);
            }
            Verdict::None => {
                tracing::warn!(
                    "other workers have given up this one, which was silent for too long: all connections to postgres are closed"
                );
                self.budget.lapse();
            }
            Verdict::Unchanged => {}
        }
        if is_full {
            return Err("too many workers share the connections".to_owned());
        }
        Ok(is_short)
    }

    /// Gives up everything once nothing is open.
    async fn leave(&self) {
        let closed = async {
            while self.budget.servers().iter().any(|server| server.open > 0) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(CLOSED_WITHIN, closed).await.is_err() {
            tracing::debug!("connections still open at the end, other workers give them up");
            return;
        }
        let request = self.locked(|state| state.call(now(), Vec::new()));
        let renewal = Renewal { id: request.id, beat: request.beat, leaves: true, ..Renewal::default() };
        match self.connections.renew(&renewal).await {
            Ok(_) => tracing::debug!("connections given up"),
            Err(error) => tracing::debug!(%error, "connections not given up, other workers do it"),
        }
    }

    fn locked<T>(&self, with: impl FnOnce(&mut FleetConnections) -> T) -> T {
        with(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

/// New for each process.
fn fresh_id() -> String {
    format!("{:032x}", rand::random::<u128>())
}

fn now() -> std::time::Instant {
    Instant::now().into_std()
}

const _: () = assert!(ANSWERED_WITHIN.as_millis() + EVERY.as_millis() < BEATS_WITHIN.as_millis());
