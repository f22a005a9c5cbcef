//! Whether Redis still holds the data that it acknowledged.
//!
//! Each worker has a key of its own and sets it to the next number at each look. The number that it replaces is the one that
//! was acknowledged last, unless what was acknowledged is gone: Redis came back empty or with an older state, or a replica that
//! lags was promoted. The process (`run_id`) and the mark of the data set show it as well, and a change that lost less than the
//! time between two looks.

use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use super::replication::{History, Promotion};

/// Acknowledged numbers of which the time is remembered.
const REMEMBERED: usize = 64;

/// What a look found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServerLook {
    /// The number that stood in the worker's key before; `None` = the key was not there.
    pub former: Option<u64>,
    /// The mark of the data set; `None` = there is none.
    pub data_set: Option<String>,
    /// The server process; `None` = not known.
    pub run_id: Option<String>,
    /// Keys that the process has evicted since its start; `None` = not known.
    pub evicted: Option<u64>,
    /// Its replication history; `None` = not known.
    pub history: Option<History>,
}

/// What has happened to Redis.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// What it holds may lack what it had acknowledged.
    Replaced {
        /// In what way.
        how: How,
        /// For how long what was acknowledged is missing; `None` = not known.
        lacks: Option<Duration>,
    },
    /// It has thrown so many keys away.
    Evicted(u64),
}

/// What shows that the data may be others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// The worker's key and the mark are gone.
    Emptied,
    /// The worker's key holds an older number than was acknowledged.
    Behind,
    /// The mark is another one.
    OtherDataSet,
    /// A replica has taken over.
    Promoted {
        /// Bytes at least that its former master had written, and that it has never received.
        lacks_bytes: u64,
    },
    /// The same data, as far as can be seen, in another process: a restart or a failover.
    OtherProcess,
    /// No worker has ever marked it, as far as it shows: it is new, or was emptied while no worker ran.
    Unmarked,
}

impl How {
    /// In words.
    #[must_use]
    pub const fn describe(self) -> &'static str {
        match self {
            Self::Emptied => "Redis has lost all its data",
            Self::Behind => "Redis lacks writes that it had acknowledged",
            Self::OtherDataSet => "Redis holds another data set than before",
            Self::Promoted { .. } => "a replica of Redis has taken over",
            Self::OtherProcess => "Redis was restarted, or another server has taken over",
            Self::Unmarked => {
                "Redis has no mark of an earlier worker: it is new, or has lost all its data while no worker ran"
            }
        }
    }

    /// Whether data are missing for certain.
    #[must_use]
    pub const fn is_loss(self) -> bool {
        !matches!(self, Self::OtherProcess | Self::Unmarked | Self::Promoted { lacks_bytes: 0 })
    }
}

/// What one worker remembers of its Redis.
#[derive(Debug, Clone, Default)]
pub struct ServerWatch {
    sent: u64,
    /// Numbers that were acknowledged, the newest last.
    acknowledged: VecDeque<(u64, Instant)>,
    data_set: Option<String>,
    run_id: Option<String>,
    evicted: Option<u64>,
    history: Option<History>,
    /// Nothing was marked before this worker's first look.
    unmarked: bool,
}

impl ServerWatch {
    /// Of a server whose process was known before this worker's first look, as the mark has it. Without a mark it is not known
    /// what the server held before. `evicted`: the keys that the process had evicted then.
    #[must_use]
    pub fn of_process(run_id: Option<String>, evicted: Option<u64>) -> Self {
        Self { unmarked: run_id.is_none(), run_id, evicted, ..Self::default() }
    }

    /// The number that the worker sets its key to at the next look.
    pub fn next_number(&mut self) -> u64 {
        self.sent += 1;
        self.sent
    }

    /// The mark that the data set has, or is to have again if it was evicted.
    #[must_use]
    pub fn data_set(&self) -> Option<&str> {
        self.data_set.as_deref()
    }

    /// The number was set; what was found. The call that set it began at `begun`.
    pub fn looked(&mut self, begun: Instant, number: u64, look: ServerLook) -> Option<Change> {
        let evicted = self.evicted(&look);
        let how = self.compare(&look, evicted);
        let lacks = match how {
            Some(How::Behind) => look.former.and_then(|former| self.lacks(former)),
            _ => None,
        };
        if how.is_some() {
            self.acknowledged.clear();
            // Whichever worker marks it next, it is this one.
            self.data_set = None;
        }
        self.acknowledged.push_back((number, begun));
        if self.acknowledged.len() > REMEMBERED {
            self.acknowledged.pop_front();
        }
        self.data_set = look.data_set.or_else(|| self.data_set.take());
        self.run_id = look.run_id.or_else(|| self.run_id.take());
        self.evicted = look.evicted.or(self.evicted);
        self.history = look.history.or_else(|| self.history.take());
        self.unmarked = false;
        match how {
            Some(how) => Some(Change::Replaced { how, lacks }),
            None => (evicted > 0).then_some(Change::Evicted(evicted)),
        }
    }

    fn evicted(&self, look: &ServerLook) -> u64 {
        let same = look.run_id.is_none() || self.run_id == look.run_id;
        match (self.evicted, look.evicted) {
            (Some(before), Some(now)) if same => now.saturating_sub(before),
            _ => 0,
        }
    }

    fn compare(&self, look: &ServerLook, evicted: u64) -> Option<How> {
        let known = |before: &Option<String>, now: &Option<String>| matches!((before, now), (Some(before), Some(now)) if before != now);
        let same = |before: &Option<String>, now: &Option<String>| before.is_some() && before == now;
        if let Some((newest, _)) = self.acknowledged.back() {
            match look.former {
                // An eviction may have taken the worker's key like any other.
                None if evicted > 0 => {}
                // It has expired: the worker was suspended, or Redis's clock has jumped ahead.
                None if same(&self.run_id, &look.run_id) && same(&self.data_set, &look.data_set) => {}
                None => return Some(How::Emptied),
                Some(former) if former < *newest => return Some(How::Behind),
                // A look whose answer did not arrive has set a later one.
                Some(_) => {}
            }
        }
        if known(&self.data_set, &look.data_set) {
            return Some(How::OtherDataSet);
        }
        let promotion =
            self.history.as_ref().zip(look.history.as_ref()).and_then(|(before, now)| now.continues(before));
        if let Some(Promotion { lacks }) = promotion {
            return Some(How::Promoted { lacks_bytes: lacks });
        }
        if self.unmarked {
            return Some(How::Unmarked);
        }
        known(&self.run_id, &look.run_id).then_some(How::OtherProcess)
    }

    /// The time between the acknowledgement of this number and of the newest one.
    fn lacks(&self, former: u64) -> Option<Duration> {
        let (_, newest) = self.acknowledged.back()?;
        let (_, then) = self.acknowledged.iter().find(|(number, _)| *number >= former)?;
        Some(newest.saturating_duration_since(*then))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Redis {
        watch: ServerWatch,
        key: Option<u64>,
        look: ServerLook,
        now: Instant,
    }

    impl Redis {
        fn new() -> Self {
            let look = ServerLook {
                former: None,
                data_set: Some("a".to_owned()),
                run_id: Some("1".to_owned()),
                evicted: Some(0),
                history: None,
            };
            Self { watch: ServerWatch::default(), key: None, look, now: Instant::now() }
        }

        fn look(&mut self) -> Option<Change> {
            self.now += Duration::from_secs(2);
            let number = self.watch.next_number();
            let look = ServerLook { former: self.key.replace(number), ..self.look.clone() };
            self.watch.looked(self.now, number, look)
        }
    }

    fn replaced(how: How) -> Option<Change> {
        Some(Change::Replaced { how, lacks: None })
    }

    #[test]
    fn nothing_is_reported_of_a_redis_that_stays() {
        let mut redis = Redis::new();
        for _ in 0..200 {
            assert_eq!(redis.look(), None);
        }
        // An answer that did not arrive.
        redis.key = Some(redis.watch.next_number());
        assert_eq!(redis.look(), None);
        // What isn't allowed to be read is not known.
        (redis.look.run_id, redis.look.evicted) = (None, None);
        assert_eq!(redis.look(), None);
    }

    #[test]
    fn a_number_that_expires_is_no_loss_while_process_and_mark_stay() {
        let mut redis = Redis::new();
        redis.look();
        redis.key = None;
        assert_eq!(redis.look(), None);
        // Emptied without a restart, or restarted.
        (redis.key, redis.look.data_set) = (None, None);
        assert_eq!(redis.look(), replaced(How::Emptied));
        redis.look.data_set = Some("b".to_owned());
        redis.look();
        (redis.key, redis.look.run_id) = (None, Some("2".to_owned()));
        assert_eq!(redis.look(), replaced(How::Emptied));
        // What may not be read proves nothing.
        (redis.key, redis.look.run_id) = (None, None);
        assert_eq!(redis.look(), replaced(How::Emptied));
    }

    #[test]
    fn what_another_process_has_evicted_excuses_no_lost_data() {
        let mut redis = Redis::new();
        redis.look();
        // An empty server that has evicted more than the former one ever had.
        (redis.key, redis.look.data_set) = (None, None);
        (redis.look.run_id, redis.look.evicted) = (Some("2".to_owned()), Some(100));
        assert_eq!(redis.look(), replaced(How::Emptied));
    }

    #[test]
    fn an_empty_restart_an_older_state_and_another_data_set_are_distinguished() {
        let mut redis = Redis::new();
        for _ in 0..5 {
            redis.look();
        }
        (redis.key, redis.look.data_set, redis.look.run_id) = (None, None, Some("2".to_owned()));
        assert_eq!(redis.look(), replaced(How::Emptied));
        redis.look.data_set = Some("b".to_owned());
        for _ in 0..5 {
            assert_eq!(redis.look(), None, "marked by another worker meanwhile");
        }
        redis.look.data_set = Some("c".to_owned());
        assert_eq!(redis.look(), replaced(How::OtherDataSet));
        for _ in 0..5 {
            assert_eq!(redis.look(), None);
        }
        // Three looks are missing.
        redis.key = redis.key.map(|number| number - 3);
        redis.look.run_id = Some("3".to_owned());
        let lacks = Some(Duration::from_secs(6));
        assert_eq!(redis.look(), Some(Change::Replaced { how: How::Behind, lacks }));
        assert_eq!(redis.look(), None, "once");
        redis.look.run_id = Some("4".to_owned());
        assert_eq!(redis.look(), replaced(How::OtherProcess));
        assert_eq!(redis.look(), None);
    }

    /// Such as behind a proxy that hides the process.
    #[test]
    fn a_replica_that_has_taken_over_shows_by_its_history() {
        let mut redis = Redis::new();
        let history = |id: &str, former: Option<&str>, promoted_at| {
            Some(History { id: id.to_owned(), former: former.map(str::to_owned), offset: 1_000, promoted_at })
        };
        redis.look.history = history("a", None, 0);
        assert_eq!(redis.look(), None);
        redis.look.history = history("b", Some("a"), 1_001);
        let promoted = How::Promoted { lacks_bytes: 0 };
        assert_eq!((redis.look(), promoted.is_loss()), (replaced(promoted), false));
        assert_eq!(redis.look(), None, "once");
        redis.look.history = history("c", Some("b"), 951);
        let promoted = How::Promoted { lacks_bytes: 50 };
        assert_eq!((redis.look(), promoted.is_loss()), (replaced(promoted), true));
        redis.look.history = history("d", None, 0);
        assert_eq!(redis.look(), None, "its first replica has come");
        redis.look.history = None;
        assert_eq!(redis.look(), None, "not allowed to be read");
        // What the worker's key shows says more.
        redis.look.history = history("e", Some("d"), 1);
        redis.key = redis.key.map(|number| number - 1);
        assert!(matches!(redis.look(), Some(Change::Replaced { how: How::Behind, .. })));
    }

    #[test]
    fn a_process_that_changed_while_no_worker_looked_is_noticed_by_the_next_one() {
        let mut redis = Redis::new();
        redis.watch = ServerWatch::of_process(Some("0".to_owned()), Some(5));
        assert_eq!(redis.look(), replaced(How::OtherProcess));
        redis = Redis::new();
        redis.watch = ServerWatch::of_process(Some("1".to_owned()), None);
        assert_eq!(redis.look(), None);
        redis = Redis::new();
        redis.watch = ServerWatch::of_process(Some("1".to_owned()), Some(5));
        redis.look.evicted = Some(7);
        assert_eq!(redis.look(), Some(Change::Evicted(2)), "also what it evicted meanwhile");
        redis = Redis::new();
        redis.watch = ServerWatch::of_process(None, None);
        assert_eq!(redis.look(), replaced(How::Unmarked));
        assert_eq!(redis.look(), None, "once");
    }

    #[test]
    fn evictions_are_counted_per_process_and_may_take_the_workers_key() {
        let mut redis = Redis::new();
        redis.look.evicted = Some(7);
        assert_eq!(redis.look(), None, "before this worker looked");
        redis.look.evicted = Some(10);
        assert_eq!(redis.look(), Some(Change::Evicted(3)));
        (redis.key, redis.look.data_set, redis.look.evicted) = (None, None, Some(11));
        assert_eq!(redis.look(), Some(Change::Evicted(1)));
        let mark = redis.watch.data_set().map(str::to_owned);
        redis.look.data_set = mark;
        assert_eq!(redis.look.data_set.as_deref(), Some("a"));
        assert_eq!(redis.look(), None, "marked again");
        // Reset by hand.
        redis.look.evicted = Some(0);
        assert_eq!(redis.look(), None);
        (redis.look.run_id, redis.look.evicted) = (Some("2".to_owned()), Some(5));
        assert_eq!(redis.look(), replaced(How::OtherProcess));
    }
}
