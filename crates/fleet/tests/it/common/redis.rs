//! A Redis in memory behind the collector's port, with faults on demand.

use std::{
    cell::{Cell, RefCell},
    collections::{HashMap, VecDeque},
    rc::Rc,
    sync::Arc,
    time::Duration,
};

use balance_sync_domain::KeySpace;
use balance_sync_fleet::pipeline::{Queue, Survey, Sweep};
use balance_sync_schedule::{
    Claim, Claimed, ErrorClass, Loss, PostponeReport, QuarantineReport, Refusal, Refused, ReleaseReport,
    ScheduleError, SettleReport, Unsettled,
};
use tokio::{sync::Notify, time::Instant};

use super::{EPOCH, member, secs, value};

/// For how long [`FakeQueue`] puts off what can't be written now.
const PUT_OFF_SECONDS: f64 = 60.0;

#[derive(Debug, Clone)]
struct Waiting {
    member: Vec<u8>,
    former: String,
    value: Option<Vec<u8>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ClaimCall {
    pub at: Duration,
    pub limit: usize,
    pub found: usize,
}

/// The lease, and what was claimed under it.
type Held = (Arc<str>, Waiting);

/// What a call to Redis meets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Fault {
    /// It is refused.
    Error(ErrorClass),
    /// It is never answered, though it takes effect.
    Silence,
}

pub(crate) struct Redis {
    pub space: KeySpace,
    begun: Instant,
    due: RefCell<VecDeque<Waiting>>,
    leased: RefCell<HashMap<Vec<u8>, Held>>,
    leases: Cell<u64>,
    /// By operation.
    pub faults: RefCell<HashMap<&'static str, Fault>>,
    /// By operation: how long the answer takes.
    pub delays: RefCell<HashMap<&'static str, Duration>>,
    /// What claims report as refused beside what they bring.
    pub refused: RefCell<Option<Refused>>,
    pub claims: RefCell<Vec<ClaimCall>>,
    pub settled: RefCell<Vec<Vec<u8>>>,
    pub released: RefCell<Vec<Vec<u8>>>,
    pub postponed: RefCell<Vec<Vec<u8>>>,
    /// Of these, those whose values are to be kept alive.
    pub kept_alive: RefCell<Vec<Vec<u8>>>,
    pub quarantined: RefCell<Vec<(Vec<u8>, &'static str)>>,
    pub dismissed: RefCell<Vec<Vec<u8>>>,
    /// For the time being, and for how long.
    pub put_off: RefCell<Vec<(Vec<u8>, Duration)>>,
    pub lost: RefCell<Vec<(Vec<u8>, Loss)>>,
    /// What Redis holds of a member by now, where that is no longer what was claimed.
    pub current: RefCell<HashMap<Vec<u8>, Vec<Vec<u8>>>>,
    /// The words of each refusal, in the order in which they came.
    pub details: RefCell<Vec<String>>,
    pub idles: RefCell<Vec<Duration>>,
    pub sweeps: RefCell<Vec<Duration>>,
    pub recents: RefCell<Vec<(Duration, Option<f64>)>>,
    pub surveys: RefCell<Vec<Duration>>,
    pub survey: Cell<Survey>,
    /// Ends the wait of who stands by.
    pub unattended: Notify,
    pub standbys: Cell<usize>,
}

impl Redis {
    pub(crate) fn new(space: KeySpace) -> Self {
        Self {
            space,
            begun: Instant::now(),
            due: RefCell::default(),
            leased: RefCell::default(),
            leases: Cell::new(0),
            faults: RefCell::default(),
            delays: RefCell::default(),
            refused: RefCell::default(),
            claims: RefCell::default(),
            settled: RefCell::default(),
            released: RefCell::default(),
            postponed: RefCell::default(),
            kept_alive: RefCell::default(),
            quarantined: RefCell::default(),
            dismissed: RefCell::default(),
            put_off: RefCell::default(),
            lost: RefCell::default(),
            current: RefCell::default(),
            details: RefCell::default(),
            idles: RefCell::default(),
            sweeps: RefCell::default(),
            recents: RefCell::default(),
            surveys: RefCell::default(),
            survey: Cell::default(),
            unattended: Notify::new(),
            standbys: Cell::default(),
        }
    }

    /// Time since the test began.
    pub(crate) fn at(&self) -> Duration {
        self.begun.elapsed()
    }

    pub(crate) fn now(&self) -> f64 {
        EPOCH + self.at().as_secs_f64()
    }

    /// A mutation: schedules these balances, due now, with their version.
    pub(crate) fn mutate(&self, balances: impl IntoIterator<Item = u128>, version: i64) {
        for n in balances {
            self.schedule(member(&self.space, n), Some(value(n, version)), 0.0);
        }
    }

    /// Schedules any member with any value, due for so many seconds.
    pub(crate) fn schedule(&self, member: Vec<u8>, value: Option<Vec<u8>>, age: f64) {
        self.schedule_at(member, value, &format!("{:.6}", self.now() - age));
    }

    /// The same with any score.
    pub(crate) fn schedule_at(&self, member: Vec<u8>, value: Option<Vec<u8>>, score: &str) {
        self.leased.borrow_mut().remove(&member);
        self.due.borrow_mut().retain(|waiting| waiting.member != member);
        self.due.borrow_mut().push_back(Waiting { member, former: score.to_owned(), value });
    }

    pub(crate) fn due(&self) -> usize {
        self.due.borrow().len()
    }

    pub(crate) fn leased(&self) -> usize {
        self.leased.borrow().len()
    }

    /// All leases lapse, as they do by themselves after the claim TTL.
    pub(crate) fn lapse(&self) {
        let lapsed = std::mem::take(&mut *self.leased.borrow_mut());
        self.due.borrow_mut().extend(lapsed.into_values().map(|(_, waiting)| waiting));
    }

    pub(crate) fn claimed(&self) -> usize {
        self.claims.borrow().iter().map(|call| call.found).sum()
    }

    pub(crate) fn fail(&self, operations: &[&'static str], class: ErrorClass) {
        self.faults.borrow_mut().extend(operations.iter().map(|name| (*name, Fault::Error(class))));
    }

    pub(crate) fn heal(&self) {
        self.faults.borrow_mut().clear();
    }

    pub(crate) fn delay(&self, operation: &'static str, delay: Duration) {
        self.delays.borrow_mut().insert(operation, delay);
    }

    fn refuse(&self, operation: &'static str) -> Result<(), ScheduleError> {
        match self.faults.borrow().get(operation) {
            Some(Fault::Error(class)) => {
                Err(ScheduleError { operation, class: *class, message: "injected".to_owned() })
            }
            _ => Ok(()),
        }
    }

    async fn answer(&self, operation: &'static str) {
        if self.faults.borrow().get(operation) == Some(&Fault::Silence) {
            std::future::pending::<()>().await;
        }
        let delay = self.delays.borrow().get(operation).copied();
        if let Some(delay) = delay {
            tokio::time::sleep(delay).await;
        }
    }

    /// Takes the members out whose lease is still the one that is shown.
    fn take_leased<'a>(&self, held: impl IntoIterator<Item = &'a Claimed>) -> (Vec<Waiting>, u64) {
        let (mut taken, mut kept) = (Vec::new(), 0);
        let mut leased = self.leased.borrow_mut();
        for claimed in held {
            match leased.get(&claimed.member) {
                Some((lease, _)) if *lease == claimed.lease => {
                    taken.extend(leased.remove(&claimed.member).map(|(_, waiting)| waiting));
                }
                _ => kept += 1,
            }
        }
        (taken, kept)
    }
}

#[derive(Clone)]
pub(crate) struct FakeQueue(pub Rc<Redis>);

impl Queue for FakeQueue {
    fn space(&self) -> &KeySpace {
        &self.0.space
    }

    async fn claim(&self, limit: usize) -> Result<Claim, ScheduleError> {
        let redis = &self.0;
        let at = redis.at();
        if let Err(error) = redis.refuse("claim") {
            redis.claims.borrow_mut().push(ClaimCall { at, limit, found: 0 });
            redis.answer("claim").await;
            return Err(error);
        }
        redis.leases.set(redis.leases.get() + 1);
        let lease: Arc<str> = Arc::from(redis.leases.get().to_string());
        let scheduled = (redis.due() + redis.leased()) as u64;
        let mut entries = Vec::new();
        while entries.len() < limit
            && let Some(waiting) = redis.due.borrow_mut().pop_front()
        {
            let Waiting { member, former, value } = waiting.clone();
            redis.leased.borrow_mut().insert(member.clone(), (Arc::clone(&lease), waiting));
            entries.push(Claimed {
                member,
                lease: Arc::clone(&lease),
                leased: 0,
                schedule: 0,
                former,
                value,
                unreadable: None,
            });
        }
        redis.claims.borrow_mut().push(ClaimCall { at, limit, found: entries.len() });
        let now = redis.now();
        redis.answer("claim").await;
        let refused = redis.refused.borrow().clone();
        let claim = Claim { entries, scheduled, now, refused, ..Claim::default() };
        Ok(claim)
    }

    async fn settle(&self, written: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.0.refuse("settle")?;
        let (first, later): (Vec<&Claimed>, Vec<&Claimed>) =
            written.iter().copied().partition(|claimed| claimed.lease == written[0].lease);
        let later_fails = self.0.faults.borrow().get("settle later").copied();
        let (unsettled, settled) = match later_fails {
            Some(Fault::Error(class)) if !later.is_empty() => {
                let error = ScheduleError { operation: "settle", class, message: "injected".to_owned() };
                let leases =
                    later.iter().map(|claimed| (claimed.schedule, Arc::clone(&claimed.lease))).collect();
                (Some(Unsettled { leases, error }), first)
            }
            _ => (None, written.to_vec()),
        };
        let (removed, kept) = self.0.take_leased(settled);
        let report = SettleReport { now: self.0.now(), removed: removed.len() as u64, kept, unsettled };
        self.0.settled.borrow_mut().extend(removed.into_iter().map(|waiting| waiting.member));
        self.0.answer("settle").await;
        Ok(report)
    }

    async fn release(&self, held: &[&Claimed]) -> Result<ReleaseReport, ScheduleError> {
        self.0.refuse("release")?;
        let (back, kept) = self.0.take_leased(held.iter().copied());
        let report = ReleaseReport { released: back.len() as u64, kept };
        self.0.released.borrow_mut().extend(back.iter().map(|waiting| waiting.member.clone()));
        self.0.due.borrow_mut().extend(back);
        self.0.answer("release").await;
        Ok(report)
    }

    async fn postpone(&self, members: &[(&Claimed, bool)]) -> Result<PostponeReport, ScheduleError> {
        self.0.refuse("postpone")?;
        let alive = members.iter().filter(|(_, alive)| *alive).map(|(claimed, _)| claimed.member.clone());
        self.0.kept_alive.borrow_mut().extend(alive);
        let (taken, kept) = self.0.take_leased(members.iter().map(|(claimed, _)| *claimed));
        let report =
            PostponeReport { postponed: taken.len() as u64, kept, due: self.0.now() + PUT_OFF_SECONDS };
        self.0.postponed.borrow_mut().extend(taken.into_iter().map(|waiting| waiting.member));
        self.0.answer("postpone").await;
        Ok(report)
    }

    async fn quarantine(&self, refused: &[(&Claimed, Refusal)]) -> Result<QuarantineReport, ScheduleError> {
        self.0.refuse("quarantine")?;
        let mut report = QuarantineReport::default();
        for (claimed, refusal) in refused {
            let (taken, kept) = self.0.take_leased([*claimed]);
            report.kept += kept;
            report.quarantined += taken.len() as u64;
            self.0.details.borrow_mut().push(refusal.detail.clone());
            self.0
                .quarantined
                .borrow_mut()
                .extend(taken.into_iter().map(|waiting| (waiting.member, refusal.reason.as_str())));
        }
        self.0.answer("quarantine").await;
        Ok(report)
    }

    async fn dismiss(&self, obsolete: &[&Claimed]) -> Result<SettleReport, ScheduleError> {
        self.0.refuse("dismiss")?;
        let (removed, kept) = self.0.take_leased(obsolete.iter().copied());
        let report = SettleReport { now: self.0.now(), removed: removed.len() as u64, kept, unsettled: None };
        self.0.dismissed.borrow_mut().extend(removed.into_iter().map(|waiting| waiting.member));
        self.0.answer("dismiss").await;
        Ok(report)
    }

    async fn put_off(
        &self,
        waiting: &[&Claimed],
        delay: Duration,
    ) -> Result<Vec<(usize, PostponeReport)>, ScheduleError> {
        self.0.refuse("put off")?;
        let (moved, kept) = self.0.take_leased(waiting.iter().copied());
        let due = self.0.now() + delay.as_secs_f64();
        let report = PostponeReport { postponed: moved.len() as u64, kept, due };
        self.0.put_off.borrow_mut().extend(moved.into_iter().map(|waiting| (waiting.member, delay)));
        self.0.answer("put off").await;
        Ok(vec![(0, report)])
    }

    async fn current_values(&self, members: &[&Claimed]) -> Result<Vec<Vec<Vec<u8>>>, ScheduleError> {
        self.0.refuse("current")?;
        let current = self.0.current.borrow();
        let of = |claimed: &&Claimed| {
            current.get(&claimed.member).cloned().unwrap_or_else(|| claimed.value.iter().cloned().collect())
        };
        Ok(members.iter().map(of).collect())
    }

    async fn record_losses(&self, lost: &[(&Claimed, Loss)]) -> Result<QuarantineReport, ScheduleError> {
        self.0.refuse("lose")?;
        let mut report = QuarantineReport::default();
        for (claimed, loss) in lost {
            let (taken, kept) = self.0.take_leased([*claimed]);
            report.kept += kept;
            report.quarantined += taken.len() as u64;
            self.0.lost.borrow_mut().extend(taken.into_iter().map(|waiting| (waiting.member, loss.clone())));
        }
        self.0.answer("lose").await;
        Ok(report)
    }

    async fn sweep(&self) -> Result<Sweep, ScheduleError> {
        self.0.sweeps.borrow_mut().push(self.0.at());
        self.0.refuse("sweep")?;
        self.0.answer("sweep").await;
        Ok(Sweep { raised: 0, absent: 0, shortest: Some(secs(900)) })
    }

    async fn protect_since(&self, from: Option<f64>) -> Result<(f64, u64), ScheduleError> {
        self.0.recents.borrow_mut().push((self.0.at(), from));
        self.0.refuse("protect")?;
        let now = self.0.now();
        self.0.answer("protect").await;
        Ok((now, 0))
    }

    async fn survey(&self) -> Result<Survey, ScheduleError> {
        self.0.surveys.borrow_mut().push(self.0.at());
        self.0.refuse("survey")?;
        self.0.answer("survey").await;
        Ok(self.0.survey.get())
    }

    async fn idle(&self, delay: Duration) {
        self.0.idles.borrow_mut().push(delay);
        tokio::time::sleep(delay).await;
    }

    async fn stand_by(&self) {
        self.0.standbys.set(self.0.standbys.get() + 1);
        self.0.unattended.notified().await;
    }
}
