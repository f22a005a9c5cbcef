//! How many connections to each Postgres server this worker may have, where the whole fleet has one budget per server.
//!
//! What a worker holds is a lease in Redis (`lua/share_connections.lua`). Each call renews it for all servers. A call that is
//! lost, doubled or late must not make the sum of all exceed the budget:
//!
//! - A lease counts from before its call was sent, on this worker's own monotonic clock. [`CLOSE_AHEAD`] before its end the
//!   worker opens no more and closes what it has.
//! - Before a call is sent the worker restricts itself to what it states in it ([`Ask::kept`]), and stays so until an answer
//!   allows more. So whatever Redis has recorded, of this call or the one before, is at least what the worker may have.
//! - Others give a worker up that has not called for [`GIVE_UP_AFTER`], each by its own clock, from the answer that showed its last
//!   call on. By then its lease is over, and the server has ended the sessions of a process that is frozen. No clock of Redis takes
//!   part, so none that jumps does harm.
//! - After Redis may have lost some of it (another epoch) nothing is handed out until one worker has seen the new epoch
//!   for as long.
//!
//! `docs/decisions/0044-one-budget-for-the-fleet.md`.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    time::{Duration, Instant},
};

/// Between two calls.
pub const EVERY: Duration = Duration::from_secs(1);
/// Between two calls of which the second is due to a change.
pub const SOONEST: Duration = Duration::from_millis(100);
/// How long a call renews what is held.
pub const LEASE: Duration = Duration::from_secs(8);
/// So long before its end the connections are closed: a goodbye takes a second at most, and the server notices within another that
/// a client is gone whose statement it runs.
pub const CLOSE_AHEAD: Duration = Duration::from_secs(2);
/// After so long the server ends a session in which nothing is done.
pub const SESSION_IDLE: Duration = Duration::from_secs(6);
/// A worker that has not called for so long holds nothing any more. A process may be frozen at the end of its lease.
pub const GIVE_UP_AFTER: Duration = Duration::from_secs(15);
/// Looks at the demand that count: the most of them is asked for, so that a short pause moves nothing.
const LOOKS: usize = 5;

const _: () = assert!(GIVE_UP_AFTER.as_secs() > LEASE.as_secs() + SESSION_IDLE.as_secs());

/// What a worker has and needs on one server at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Demand {
    /// The server, `host:port`.
    pub server: String,
    /// What it is restricted to, or has open, if that is more: connections that are used now are closed afterwards.
    pub kept: u32,
    /// The most that it could have used since the last look.
    pub wanted: u32,
}

/// What a worker asks for on one server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ask {
    /// The server.
    pub server: String,
    /// What it doesn't give up.
    pub kept: u32,
    /// What it could use.
    pub wanted: u32,
}

/// One call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who calls: another one after it was given up.
    pub id: String,
    /// Number of the call, from 1.
    pub beat: u64,
    /// An epoch that was seen for long enough.
    pub settled: Option<String>,
    /// Workers that have been silent for too long, each with its last beat.
    pub given_up: Vec<(String, u64)>,
    /// What it asks for.
    pub asks: Vec<Ask>,
}

/// What Redis has recorded for one server.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Granted {
    /// What this worker holds.
    pub held: u32,
    /// Its share; if it holds more it is to close some.
    pub share: u32,
    /// What all workers hold.
    pub all: u32,
    /// How many workers need some.
    pub workers: u32,
}

/// The answer to a call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// What is held was renewed.
    Renewed {
        /// The epoch.
        epoch: String,
        /// Whether connections are handed out in it.
        settled: bool,
        /// All workers, with their last beats.
        workers: Vec<(String, u64)>,
        /// In the order of the asks.
        granted: Vec<Granted>,
    },
    /// Others have given this worker up: it holds nothing.
    GivenUp,
    /// It was not taken: another call was first, or there is no room.
    Refused,
}

/// What the worker may have from now on.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Verdict {
    /// So many connections per server, until this moment.
    Limits(Instant, Vec<(String, u32, Granted)>),
    /// None: all are to be closed at once.
    None,
    /// What it had before.
    Unchanged,
}

/// What one worker knows of the fleet's connections.
#[derive(Debug)]
pub struct FleetConnections {
    id: String,
    beat: u64,
    /// Until when connections may be open. `None` = there may be none.
    until: Option<Instant>,
    called: Option<Instant>,
    epoch: Option<(String, Instant)>,
    settled: bool,
    /// The others: last beat, and since when it is known.
    others: HashMap<String, (u64, Instant)>,
    /// The latest demands per server.
    wanted: BTreeMap<String, VecDeque<u32>>,
    /// The servers of the call under way.
    asked: Vec<String>,
}

impl FleetConnections {
    /// A worker that holds nothing.
    #[must_use]
    pub fn new(id: String) -> Self {
        Self {
            id,
            beat: 0,
            until: None,
            called: None,
            epoch: None,
            settled: false,
            others: HashMap::new(),
            wanted: BTreeMap::new(),
            asked: Vec::new(),
        }
    }

    /// Until when its connections may be open.
    #[must_use]
    pub fn until(&self) -> Option<Instant> {
        self.until
    }

    /// Whether Redis hands connections out at present, as far as is known.
    #[must_use]
    pub fn is_settled(&self) -> bool {
        self.settled
    }

    /// When the next call is due; earlier with a change of what is needed.
    #[must_use]
    pub fn next_call(&self, is_changed: bool) -> Option<Instant> {
        self.called.map(|called| called + if is_changed { SOONEST } else { EVERY })
    }

    /// Whether the lease has ended: all connections are to be closed. `true` once.
    pub fn lapses(&mut self, now: Instant) -> bool {
        let lapses = self.until.is_some_and(|until| until <= now);
        if lapses {
            self.until = None;
        }
        lapses
    }

    /// The call to be sent now. From now on the worker restricts itself to what is kept.
    pub fn call(&mut self, now: Instant, demands: Vec<Demand>) -> Request {
        self.beat += 1;
        self.called = Some(now);
        // Servers that are needed no more are given up, and named once more until that has been answered.
        let mut asks = Vec::new();
        let mut named: BTreeMap<String, Demand> =
            demands.into_iter().map(|demand| (demand.server.clone(), demand)).collect();
        for server in self.wanted.keys() {
            named.entry(server.clone()).or_insert_with(|| Demand {
                server: server.clone(),
                kept: 0,
                wanted: 0,
            });
        }
        for (server, Demand { kept, wanted, .. }) in named {
            let looks = self.wanted.entry(server.clone()).or_default();
            if looks.len() == LOOKS {
                looks.pop_front();
            }
            looks.push_back(wanted);
            let wanted = if wanted == 0 && kept == 0 { 0 } else { looks.iter().copied().max().unwrap_or(0) };
            asks.push(Ask { server, kept, wanted });
        }
        self.asked = asks.iter().map(|ask| ask.server.clone()).collect();
        let long_ago = |since: Instant| now.saturating_duration_since(since) >= GIVE_UP_AFTER;
        let given_up = self.others.iter().filter(|(_, (_, since))| long_ago(*since));
        Request {
            id: self.id.clone(),
            beat: self.beat,
            settled: self
                .epoch
                .as_ref()
                .filter(|(_, since)| !self.settled && long_ago(*since))
                .map(|(epoch, _)| epoch.clone()),
            given_up: given_up.map(|(id, (beat, _))| (id.clone(), *beat)).collect(),
            asks,
        }
    }

    /// Takes the answer to a call that was sent at `sent`. `fresh` is the id that it takes if it was given up.
    pub fn answered(&mut self, sent: Instant, now: Instant, answer: Answer, fresh: String) -> Verdict {
        let (epoch, settled, workers, granted) = match answer {
            Answer::Renewed { epoch, settled, workers, granted } => (epoch, settled, workers, granted),
            Answer::GivenUp => {
                self.id = fresh;
                self.beat = 0;
                self.until = None;
                return Verdict::None;
            }
            Answer::Refused => return Verdict::Unchanged,
        };
        if self.epoch.as_ref().is_none_or(|(known, _)| *known != epoch) {
            self.epoch = Some((epoch, now));
        }
        self.settled = settled;
        let mut others = HashMap::new();
        for (id, beat) in workers {
            if id != self.id {
                let since = match self.others.get(&id) {
                    Some((known, since)) if *known == beat => *since,
                    _ => now,
                };
                others.insert(id, (beat, since));
            }
        }
        self.others = others;
        let until = sent + (LEASE - CLOSE_AHEAD);
        let asked = std::mem::take(&mut self.asked);
        if until <= now || asked.len() != granted.len() {
            return Verdict::Unchanged;
        }
        self.until = Some(until);
        let mut limits = Vec::new();
        for (server, granted) in asked.into_iter().zip(granted) {
            let is_needed =
                self.wanted.get(&server).is_some_and(|looks| looks.back().is_some_and(|n| *n > 0));
            if granted.held == 0 && !is_needed {
                self.wanted.remove(&server);
            }
            limits.push((server, granted.held.min(granted.share), granted));
        }
        Verdict::Limits(until, limits)
    }
}
