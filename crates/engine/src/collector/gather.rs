//! Gathering: claimed members wait here for a flush, by size or by time, whichever comes first.

use std::time::{Duration, Instant};

use crate::names;

names! {
    /// Why a flush was made.
    pub enum Trigger {
        /// The buffer held a whole batch.
        Size = "size",
        /// The flush timeout had passed since the first member entered the empty buffer.
        Timeout = "timeout",
        /// The collector stops.
        Drain = "drain",
        /// Few mutations come, no other flush was under way, and the last one was long enough ago.
        Calm = "calm",
    }
}

/// The buffer between claim and flush.
#[derive(Debug)]
pub struct Gather<M> {
    batch_size: usize,
    flush_timeout: Duration,
    buffer: Vec<M>,
    /// When the first member entered the empty buffer. Later members don't move it: a steady trickle must not push
    /// the deadline on.
    first_at: Option<Instant>,
    /// What waits is due although its time has not come.
    hurried: bool,
}

impl<M> Gather<M> {
    /// An empty buffer.
    #[must_use]
    pub fn new(batch_size: usize, flush_timeout: Duration) -> Self {
        Self {
            batch_size: batch_size.max(1),
            flush_timeout,
            buffer: Vec::new(),
            first_at: None,
            hurried: false,
        }
    }

    /// How many members still fit.
    #[must_use]
    pub fn room(&self) -> usize {
        self.batch_size.saturating_sub(self.buffer.len())
    }

    /// Members waiting.
    #[must_use]
    pub fn len(&self) -> usize {
        self.buffer.len()
    }

    /// What waits.
    #[must_use]
    pub fn members(&self) -> &[M] {
        &self.buffer
    }

    /// Whether nothing waits.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.buffer.is_empty()
    }

    /// Takes claimed members in.
    pub fn add(&mut self, members: Vec<M>, now: Instant) {
        if members.is_empty() {
            return;
        }
        if self.buffer.is_empty() {
            self.first_at = Some(now);
            self.buffer = members;
        } else {
            self.buffer.extend(members);
        }
    }

    /// Whether a flush is due, and why.
    #[must_use]
    pub fn due(&self, now: Instant) -> Option<Trigger> {
        if self.buffer.len() >= self.batch_size {
            return Some(Trigger::Size);
        }
        self.deadline().is_some_and(|deadline| deadline <= now).then_some(Trigger::Timeout)
    }

    /// When the time trigger comes.
    #[must_use]
    pub fn deadline(&self) -> Option<Instant> {
        let timeout = if self.hurried { Duration::ZERO } else { self.flush_timeout };
        self.first_at.map(|first| first + timeout)
    }

    /// When the first member entered the empty buffer.
    #[must_use]
    pub fn first_at(&self) -> Option<Instant> {
        self.first_at
    }

    /// Makes what waits due now.
    pub fn hurry(&mut self) {
        self.hurried = self.first_at.is_some();
    }

    /// Takes everything out.
    pub fn take(&mut self) -> Vec<M> {
        (self.first_at, self.hurried) = (None, false);
        std::mem::take(&mut self.buffer)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TIMEOUT: Duration = Duration::from_millis(50);

    #[test]
    fn a_full_buffer_is_flushed_by_size() {
        let now = Instant::now();
        let mut gather = Gather::new(3, TIMEOUT);
        gather.add(vec![1, 2], now);
        assert_eq!(gather.due(now), None);
        assert_eq!(gather.room(), 1);
        gather.add(vec![3], now);
        assert_eq!(gather.due(now), Some(Trigger::Size));
        assert_eq!(gather.take(), [1, 2, 3]);
        assert_eq!(gather.due(now + TIMEOUT), None);
    }

    #[test]
    fn a_trickle_does_not_postpone_the_timeout() {
        let start = Instant::now();
        let mut gather = Gather::new(1000, TIMEOUT);
        for step in 0..10 {
            gather.add(vec![step], start + Duration::from_millis(step * 5));
        }
        assert_eq!(gather.due(start + Duration::from_millis(49)), None);
        assert_eq!(gather.due(start + TIMEOUT), Some(Trigger::Timeout));
    }

    #[test]
    fn the_clock_starts_anew_after_a_flush() {
        let start = Instant::now();
        let mut gather = Gather::new(10, TIMEOUT);
        gather.add(vec![1], start);
        gather.take();
        gather.add(Vec::new(), start);
        assert_eq!(gather.deadline(), None, "nothing came in, so nothing is waited for");
        gather.add(vec![2], start + TIMEOUT);
        assert_eq!(gather.due(start + TIMEOUT), None);
        assert_eq!(gather.due(start + 2 * TIMEOUT), Some(Trigger::Timeout));
    }

    #[test]
    fn what_waits_can_be_made_due_at_once() {
        let start = Instant::now();
        let mut gather = Gather::new(10, TIMEOUT);
        gather.hurry();
        assert_eq!(gather.due(start), None, "nothing waits");
        gather.add(vec![1], start);
        gather.hurry();
        assert_eq!(gather.due(start), Some(Trigger::Timeout));
    }
}
