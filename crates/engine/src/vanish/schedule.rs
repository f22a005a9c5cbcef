//! Whether a schedule has lost members that were never written.
//!
//! The worker counts what it removes itself. If a schedule has shrunk by more, another client has removed members: another
//! worker, the ledger's own, an operator, or none of them, and the key is gone. So at each look some members are remembered with
//! the versions of their values. A client that removes a member for a good reason has written its row, or put it in quarantine.

/// What a look at a schedule found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Base {
    members: u64,
    /// What this worker had removed when the look began.
    removed: u64,
}

/// What is remembered of one schedule. `W` is a remembered member.
#[derive(Debug, Clone)]
pub struct ScheduleWatch<W> {
    base: Option<Base>,
    witnesses: Vec<W>,
}

impl<W> Default for ScheduleWatch<W> {
    fn default() -> Self {
        Self { base: None, witnesses: Vec::new() }
    }
}

impl<W> ScheduleWatch<W> {
    /// By how much the schedule has shrunk since the look that is remembered, beyond what this worker has removed. `removed` is
    /// read after the answer, late enough for all removals that came before it to be counted.
    #[must_use]
    pub fn shortfall(&self, members: u64, removed: u64) -> u64 {
        let Some(base) = self.base else { return 0 };
        let own = removed.saturating_sub(base.removed);
        base.members.saturating_sub(own).saturating_sub(members)
    }

    /// Remembers a look. `removed` is read before the call.
    pub fn remember(&mut self, members: u64, removed: u64, witnesses: Vec<W>) {
        self.base = Some(Base { members, removed });
        self.witnesses = witnesses;
    }

    /// The members that were remembered.
    #[must_use]
    pub fn witnesses(&self) -> &[W] {
        &self.witnesses
    }
}

/// What became of a remembered member.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trace {
    /// It is scheduled.
    Scheduled,
    /// Its row has the version of its value, or a later one; or it is deleted.
    Written,
    /// It is in quarantine, or listed as lost.
    Listed,
    /// It is none of these: its row is behind, and no worker will write it.
    Forgotten,
}

/// Why a schedule shrank.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Verdict {
    /// What is gone from it has been written.
    Written,
    /// Members have vanished.
    Vanished,
}

/// Judges by the remembered members.
#[must_use]
pub fn judge(traces: &[Trace]) -> Verdict {
    if traces.contains(&Trace::Forgotten) { Verdict::Vanished } else { Verdict::Written }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schedule_may_shrink_by_what_was_removed() {
        let mut watch = ScheduleWatch::<&str>::default();
        assert_eq!(watch.shortfall(0, 0), 0, "nothing is remembered");
        watch.remember(100, 1_000, vec!["a"]);
        assert_eq!(watch.shortfall(100, 1_000), 0);
        assert_eq!(watch.shortfall(40, 1_060), 0, "all of it by this worker");
        assert_eq!(watch.shortfall(70, 1_060), 0, "others were added");
        assert_eq!(watch.shortfall(0, 1_060), 40);
        assert_eq!(watch.shortfall(0, 5_000), 0);
        assert_eq!(watch.witnesses(), ["a"]);
    }

    #[test]
    fn one_forgotten_member_is_enough() {
        use Trace::{Forgotten, Listed, Scheduled, Written};
        assert_eq!(judge(&[]), Verdict::Written);
        assert_eq!(judge(&[Scheduled, Written, Listed]), Verdict::Written);
        assert_eq!(judge(&[Written, Forgotten]), Verdict::Vanished);
    }
}
