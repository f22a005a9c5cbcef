//! How many lines the log takes. What fails for thousands of tenants, or for every balance of one, fills no disk: lines of a
//! kind beyond [`OF_A_KIND`] in a minute are counted instead, and so are lines beyond the total. What was left out is logged
//! once a minute, by kind. DEBUG and TRACE are not bounded: who turns them on wants to see each line.

use std::{
    collections::{HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Mutex, PoisonError},
    time::{Duration, Instant},
};

use tracing::{
    Event, Level, Metadata,
    callsite::Identifier,
    field::{Field, Visit},
};

const MINUTE: Duration = Duration::from_secs(60);
/// Lines with one place in the code and one reason that are logged in a minute.
const OF_A_KIND: u64 = 20;
/// The part of the total that only errors may use: 1 of this many.
const FOR_ERRORS: u64 = 4;
/// Kinds in one summary. The others are added up.
const KINDS_SHOWN: usize = 20;
/// Kinds that are counted separately. There are some 150 places in the code, and those with a reason have few at a time.
const KINDS: usize = 2_000;
/// Tenants that are counted of one kind.
const TENANTS: usize = 100_000;
/// Longest text of a message in a summary, in characters.
const LONGEST: usize = 200;

/// Decides which lines are logged, and counts the others.
pub(crate) struct Limit {
    per_minute: u64,
    state: Mutex<State>,
}

struct State {
    since: Instant,
    /// Logged in this minute, errors included.
    logged: u64,
    kinds: HashMap<Kind, Count>,
}

/// Lines that say the same: of one place in the code, and with one reason.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Kind(Identifier, Option<String>);

struct Count {
    level: Level,
    /// Logged in this minute.
    logged: u64,
    /// Left out since the last summary.
    left_out: u64,
    /// Message of the first of them.
    message: String,
    /// Which tenants they were about, as hashes.
    tenants: HashSet<u64>,
}

/// What was left out of one kind.
#[derive(Debug, Clone, PartialEq, Eq)]
struct LeftOut {
    level: Level,
    message: String,
    reason: Option<String>,
    lines: u64,
    tenants: usize,
}

impl Limit {
    /// A limit of this many lines per minute, over all kinds.
    pub(crate) fn new(per_minute: u64, now: Instant) -> Self {
        let state = State { since: now, logged: 0, kinds: HashMap::new() };
        Self { per_minute, state: Mutex::new(state) }
    }

    /// Whether this line is logged. `tenant` is what its spans say, looked up only for a line that is left out.
    pub(super) fn admits(
        &self,
        event: &Event<'_>,
        now: Instant,
        tenant: impl FnOnce() -> Option<String>,
    ) -> bool {
        let meta = event.metadata();
        if *meta.level() > Level::INFO || meta.target() == module_path!() {
            return true;
        }
        let mut words = Words::default();
        event.record(&mut words);
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.take(self.per_minute, now, meta, words, tenant)
    }

    /// Logs what was left out since the last time.
    pub(crate) fn summarise(&self) {
        let (shown, others) = self.state.lock().unwrap_or_else(PoisonError::into_inner).take_summary();
        let text = "lines were left out: more of this kind than the log takes in a minute";
        for LeftOut { level, message, reason, lines, tenants } in shown {
            match level {
                Level::ERROR => tracing::error!(of = message, reason, lines, tenants, "{text}"),
                Level::WARN => tracing::warn!(of = message, reason, lines, tenants, "{text}"),
                _ => tracing::info!(of = message, reason, lines, tenants, "{text}"),
            }
        }
        if others.0 > 0 {
            tracing::warn!(kinds = others.0, lines = others.1, "lines of more kinds were left out");
        }
    }
}

impl State {
    fn take(
        &mut self,
        per_minute: u64,
        now: Instant,
        meta: &'static Metadata<'static>,
        words: Words,
        tenant: impl FnOnce() -> Option<String>,
    ) -> bool {
        if now.duration_since(self.since) >= MINUTE {
            self.since = now;
            self.logged = 0;
            self.kinds.retain(|_, count| count.left_out > 0);
            self.kinds.values_mut().for_each(|count| count.logged = 0);
        }
        let mut kind = Kind(meta.callsite(), words.reason);
        if self.kinds.len() >= KINDS && !self.kinds.contains_key(&kind) {
            kind.1 = None;
        }
        let level = *meta.level();
        let total = if level == Level::ERROR { per_minute } else { per_minute - per_minute / FOR_ERRORS };
        let count = self.kinds.entry(kind).or_insert_with(|| Count::of(level));
        if count.logged < OF_A_KIND && self.logged < total {
            count.logged += 1;
            self.logged += 1;
            return true;
        }
        if count.left_out == 0 {
            count.message = words.message.chars().take(LONGEST).collect();
        }
        count.left_out += 1;
        if count.tenants.len() < TENANTS
            && let Some(tenant) = words.tenant.or_else(tenant)
        {
            let mut hasher = DefaultHasher::new();
            tenant.hash(&mut hasher);
            count.tenants.insert(hasher.finish());
        }
        false
    }

    /// What was left out of the kinds with the most lines, and number and lines of the other kinds.
    fn take_summary(&mut self) -> (Vec<LeftOut>, (usize, u64)) {
        let mut all: Vec<LeftOut> = self
            .kinds
            .iter_mut()
            .filter(|(_, count)| count.left_out > 0)
            .map(|(kind, count)| LeftOut {
                level: count.level,
                message: std::mem::take(&mut count.message),
                reason: kind.1.clone(),
                lines: std::mem::take(&mut count.left_out),
                tenants: std::mem::take(&mut count.tenants).len(),
            })
            .collect();
        // Errors first: `Level` sorts them lowest.
        all.sort_by(|a, b| (a.level, b.lines, &a.reason).cmp(&(b.level, a.lines, &b.reason)));
        let others = all.split_off(all.len().min(KINDS_SHOWN));
        (all, (others.len(), others.iter().map(|other| other.lines).sum()))
    }
}

impl Count {
    fn of(level: Level) -> Self {
        Self { level, logged: 0, left_out: 0, message: String::new(), tenants: HashSet::new() }
    }
}

/// What a line says of its kind and its tenant.
#[derive(Default)]
struct Words {
    message: String,
    reason: Option<String>,
    tenant: Option<String>,
}

impl Visit for Words {
    fn record_str(&mut self, field: &Field, value: &str) {
        match field.name() {
            "reason" => self.reason = Some(value.to_owned()),
            "tenant_id" => self.tenant = Some(value.to_owned()),
            "message" => self.message = value.to_owned(),
            _ => {}
        }
    }

    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        if matches!(field.name(), "reason" | "tenant_id" | "message") {
            self.record_str(field, &format!("{value:?}"));
        }
    }
}
