//! What the workers of the fleet hold of its connections to Postgres servers (`docs/decisions/0044-one-budget-for-the-fleet.md`).

use redis::Value;

use crate::{error::ScheduleError, link::Link, scripts};

/// One hash for the whole fleet. Increase the number with every change of the rules: workers that follow different ones must
/// not share it.
pub const KEY: &str = "{transactions}:balance-sync:connections-1";

/// What a worker asks for on one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The server, `host:port`.
    pub server: String,
    /// What all workers together may hold there.
    pub budget: u32,
    /// What this worker doesn't give up.
    pub kept: u32,
    /// What it could use.
    pub wanted: u32,
}

/// One call of a worker.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Renewal {
    /// The worker: new for each process, and after it was given up.
    pub id: String,
    /// Number of this call, counted from 1.
    pub beat: u64,
    /// It goes, and has closed all its connections.
    pub leaves: bool,
    /// An epoch that it has seen for long enough.
    pub settled: Option<String>,
    /// Workers that have been silent for too long, each with its last beat.
    pub given_up: Vec<(String, u64)>,
    /// What it asks for.
    pub asks: Vec<Ask>,
    /// Where the search for servers that are needed no more goes on.
    pub cursor: String,
}

/// What became of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    /// What is held was renewed.
    Renewed,
    /// The worker was given up by another; it holds nothing.
    GivenUp,
    /// A later call of the worker was here before.
    Overtaken,
    /// There are too many workers.
    Full,
}

/// What one worker holds on a server, and what all hold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Share {
    /// What this worker holds.
    pub held: u32,
    /// What it should hold; less than `held`: it is to close some.
    pub share: u32,
    /// What all workers hold together.
    pub all: u32,
    /// Workers that need connections there.
    pub workers: u32,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// What became of it.
    pub state: State,
    /// The epoch: another one after Redis may have lost some of this.
    pub epoch: String,
    /// Whether connections are handed out in it.
    pub settled: bool,
    /// Where the search for servers that are needed no more goes on.
    pub cursor: String,
    /// All workers, with the numbers of their last calls.
    pub workers: Vec<(String, u64)>,
    /// In the order of the asks.
    pub shares: Vec<Share>,
}

/// The fleet's connections.
#[derive(Debug, Clone)]
pub struct Connections {
    link: Link,
}

impl Connections {
    /// Over this link.
    #[must_use]
    pub fn new(link: Link) -> Self {
        Self { link }
    }

    /// Renews what a worker holds, and asks for more or less.
    ///
    /// # Errors
    /// As Redis answers. What is held may have been renewed nevertheless.
    pub async fn renew(&self, renewal: &Renewal) -> Result<Answer, ScheduleError> {
        let mut cmd = scripts::SHARE_CONNECTIONS.call(1);
        cmd.arg(KEY).arg(&renewal.id).arg(renewal.beat).arg(u8::from(!renewal.leaves));
        cmd.arg(renewal.settled.as_deref().unwrap_or_default());
        cmd.arg(if renewal.cursor.is_empty() { "0" } else { &renewal.cursor });
        cmd.arg(renewal.given_up.len());
        for (id, beat) in &renewal.given_up {
            cmd.arg(id).arg(beat);
        }
        for ask in &renewal.asks {
            cmd.arg(&ask.server).arg(ask.budget).arg(ask.kept).arg(ask.wanted);
        }
        read(scripts::SHARE_CONNECTIONS.run(&self.link, &cmd).await?, renewal.asks.len())
    }
}

fn read(answer: Value, asked: usize) -> Result<Answer, ScheduleError> {
    type Parts = (u8, String, bool, String, Vec<(String, u64)>, Vec<(i64, i64, i64, i64)>);
    const OPERATION: &str = "share connections";
    let parts: Parts = redis::from_redis_value(answer)
        .map_err(|error| ScheduleError::unexpected(OPERATION, error.to_string()))?;
    let (state, epoch, settled, cursor, workers, shares) = parts;
    let state = match state {
        0 => State::GivenUp,
        1 => State::Renewed,
        2 => State::Overtaken,
        3 => State::Full,
        _ => return Err(ScheduleError::unexpected(OPERATION, "an unknown state")),
    };
    if shares.len() != asked {
        return Err(ScheduleError::unexpected(OPERATION, "shares of other servers than were asked for"));
    }
    let number = |n: i64| u32::try_from(n).unwrap_or(0);
    let shares = shares
        .into_iter()
        .map(|(held, share, all, workers)| Share {
            held: number(held),
            share: number(share),
            all: number(all),
            workers: number(workers),
        })
        .collect();
    Ok(Answer { state, epoch, settled, cursor, workers, shares })
}
