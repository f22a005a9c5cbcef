//! What waits in the schedules of this worker's tenants, and how close the next value is to its expiry: looked at on an
//! interval, for the eye alone. Nothing is decided by it, and the collectors don't wait for it.
//!
//! Counts are exact as of the last look. Lives are looked at in part, because a schedule may hold a million members: in
//! each look the members with the oldest scores, the one whose life was the shortest so far, and a part of the others,
//! round and round. So what is shown is always the life of a balance that is scheduled now. A shorter one that hides
//! among the rest is found within one round: at once in a schedule of some thousands, and after some eight minutes in one
//! of a million, when looks come every 5 s. (A tenant that is behind for longer than `claim.protect_after`, or can't
//! write, is swept as a whole besides: [`balance_sync_fleet::pipeline`].)
//!
//! Tenants at rest ([`balance_sync_fleet::status::Rest`]) are looked at every `AT_REST_EVERY` only: Redis announces what is written to
//! their schedules, and only an operator's command can put anything into their quarantine meanwhile.

use std::{
    collections::HashMap,
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_domain::KeySpace;
use balance_sync_fleet::{
    clock::wall_clock_ms,
    status::{FleetStatus, TenantState, TenantStatus},
    tasks::Progress,
};
use balance_sync_schedule::{
    Link, PageEnd, Sample, SampleRequest, ScheduleError,
    sample::{SCHEDULES_PER_CALL, TTLS_PER_CALL, sample_with},
};
use balance_sync_tenants::{KeyForm, Tenant};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// Values looked at per interval, shared out among the schedules that are not empty: some 10 ms of Redis.
const LIVES: usize = 10_000;
/// Of these, members with the oldest scores, per schedule at most.
const HEAD: usize = 10;
/// Values in one page at most: some 500 µs of Redis.
const PAGE: usize = 500;

/// Tenants at rest are looked at this often.
const AT_REST_EVERY: Duration = Duration::from_secs(60);

/// What is kept of a schedule between two looks at it, while it isn't empty.
#[derive(Debug, Default)]
struct Round {
    /// Where the next page begins; `None` = a new round.
    from: Option<Vec<u8>>,
    /// The member with the shortest life that was found.
    shortest: Option<Vec<u8>>,
    gone: Gone,
}

/// Members whose values are gone, as far as they were looked at.
#[derive(Debug, Default)]
struct Gone {
    /// Among those with the oldest scores.
    head: u64,
    /// In this round so far.
    so_far: u64,
    /// In the last round.
    last_round: u64,
    /// In the look that is going on.
    look: u64,
    /// In the look before.
    before: u64,
}

impl Gone {
    /// Takes in a part of a look.
    fn go_on(&mut self, sample: &Sample, with_head: bool) {
        if with_head {
            self.head = sample.gone;
        }
        self.look += sample.gone_in_page;
        self.so_far += sample.gone_in_page;
        if sample.page == PageEnd::Last {
            self.last_round = std::mem::take(&mut self.so_far);
        }
    }

    /// Ends a look; how many are gone. What is claimed is decided soon after, and what was only just found may have been settled
    /// meanwhile: two looks in succession must show it. Where nothing is claimed, one is enough, and counts until the next round.
    fn end(&mut self, claims: bool) -> u64 {
        let look = self.head.max(std::mem::take(&mut self.look));
        let before = std::mem::replace(&mut self.before, look);
        if claims {
            (self.so_far, self.last_round) = (0, 0);
            return look.min(before);
        }
        look.max(self.so_far).max(self.last_round)
    }
}

/// How often it is looked, between two passes, whether there are more tenants than before.
const NEW_TENANTS_EVERY: Duration = Duration::from_millis(250);

/// Samples until it is asked to stop. `reach` is the furthest that workers schedule a member ahead.
pub async fn run(
    link: Link,
    fleet: Arc<FleetStatus>,
    key_form: KeyForm,
    interval: Duration,
    reach: Duration,
    stop: CancellationToken,
    progress: Progress,
) {
    let sampler =
        Sampler { fleet, key_form, interval, reach, rounds: HashMap::new(), spare: 0, passes: 0, progress };
    let sampling = sampler.run(async move |looks: &[SampleRequest<'_>]| sample_with(&link, looks).await);
    // A look holds nothing that is lost when it is dropped.
    let _ = stop.run_until_cancelled(sampling).await;
}

struct Sampler {
    fleet: Arc<FleetStatus>,
    key_form: KeyForm,
    interval: Duration,
    reach: Duration,
    /// Of the schedules that were not empty at the last look, by tenant and position among its key spaces.
    rounds: HashMap<(Tenant, usize), Round>,
    /// Lives that may still be looked at in this pass, beside the first look at each schedule.
    spare: usize,
    passes: usize,
    progress: Progress,
}

impl Sampler {
    async fn run(mut self, ask: impl AsyncFn(&[SampleRequest<'_>]) -> Result<Vec<Sample>, ScheduleError>) {
        loop {
            let begun = Instant::now();
            let tenants = self.fleet.tenants();
            // Shared out by what the last pass found: a schedule that fills up meanwhile has its part from the next on.
            let part = (LIVES / self.rounds.len().max(1)).max(2);
            self.spare = LIVES;
            self.rounds.retain(|(tenant, _), _| {
                tenants.binary_search_by(|status| status.tenant().cmp(tenant)).is_ok()
            });
            // Spread over the interval, so that Redis never has all of it at once.
            let mut groups = groups(&tenants, |status| self.weight(status, part)).enumerate().peekable();
            let pause = self.interval / u32::try_from(groups.len().max(1)).unwrap_or(u32::MAX);
            let mut next = begun;
            while let Some((at, group)) = groups.next() {
                let due = self.due(at, group);
                if !due.is_empty()
                    && let Err(error) = self.look_at(&ask, &due, part).await
                {
                    tracing::debug!(%error, "schedules could not be sampled");
                    group.iter().chain(groups.flat_map(|(_, group)| group)).for_each(|status| forget(status));
                    break;
                }
                self.progress.beat();
                if groups.peek().is_some() {
                    next += pause;
                    tokio::time::sleep_until(next).await;
                }
            }
            self.passes = self.passes.wrapping_add(1);
            // Measured from the beginning, but never without a rest.
            let rest = (self.interval / 4).max(self.interval.saturating_sub(begun.elapsed()));
            self.progress.beat();
            // The verdict is unknown until a new tenant has been looked at.
            let (end, known) = (Instant::now() + rest, tenants.len());
            while Instant::now() < end && self.fleet.count() <= known {
                tokio::time::sleep(NEW_TENANTS_EVERY.min(end - Instant::now())).await;
            }
        }
    }

    /// Those of a group that are looked at in this pass: of those at rest all in one of several passes, in one call.
    fn due(&self, at: usize, group: &[Arc<TenantStatus>]) -> Vec<Arc<TenantStatus>> {
        let passes = (AT_REST_EVERY.as_millis() / self.interval.as_millis().max(1)).max(1);
        let sweeps = at.wrapping_add(self.passes).is_multiple_of(usize::try_from(passes).unwrap_or(1));
        group.iter().filter(|status| sweeps || !status.is_at_rest()).cloned().collect()
    }

    /// Lives that one look at this tenant takes, about.
    fn weight(&self, status: &TenantStatus, part: usize) -> usize {
        if self.rounds.is_empty() || status.is_at_rest() {
            return 0;
        }
        let tenant = status.tenant();
        let spaces = tenant.key_spaces(self.key_form).len();
        let filled = (0..spaces).filter(|at| self.rounds.contains_key(&(tenant.clone(), *at))).count();
        filled * part.min(HEAD + 1 + PAGE)
    }

    /// Looks at a group of tenants in one call, then at what is left of the parts of those with long schedules.
    async fn look_at(
        &mut self,
        ask: &impl AsyncFn(&[SampleRequest<'_>]) -> Result<Vec<Sample>, ScheduleError>,
        group: &[Arc<TenantStatus>],
        part: usize,
    ) -> Result<(), ScheduleError> {
        let spaces: Vec<Vec<KeySpace>> =
            group.iter().map(|status| status.tenant().key_spaces(self.key_form)).collect();
        let head = HEAD.min(part / 2);
        let page = PAGE.min(part - head);
        let fresh = Round::default();
        let keys: Vec<(Tenant, usize)> = group
            .iter()
            .zip(&spaces)
            .flat_map(|(status, spaces)| (0..spaces.len()).map(|at| (status.tenant().clone(), at)))
            .collect();
        let looks: Vec<SampleRequest<'_>> = keys
            .iter()
            .zip(spaces.iter().flatten())
            .map(|(key, space)| {
                let round = self.rounds.get(key).unwrap_or(&fresh);
                SampleRequest {
                    space,
                    head,
                    page,
                    from: round.from.as_deref(),
                    again: round.shortest.as_deref(),
                }
            })
            .collect();
        let mut samples = ask(&looks).await?.into_iter();
        let mut keys = keys.into_iter();
        for (status, spaces) in group.iter().zip(&spaces) {
            let claims = claims(status);
            let mut gone = 0;
            let mut found: Vec<Sample> = samples.by_ref().take(spaces.len()).collect();
            for (at, space) in spaces.iter().enumerate() {
                let Some(key) = keys.next() else { break };
                // The head need not be looked at again: its shortest life is carried on like any other.
                let mut left = part.saturating_sub(head + page);
                self.go_on(&key, found.get(at), true);
                while left.min(self.spare) > 0
                    && let Some(round) = self.rounds.get(&key)
                    && round.from.is_some()
                {
                    let page = PAGE.min(left).min(self.spare);
                    left -= page;
                    self.spare -= page;
                    let look = SampleRequest {
                        space,
                        head: 0,
                        page,
                        from: round.from.as_deref(),
                        again: round.shortest.as_deref(),
                    };
                    for sample in ask(&[look]).await? {
                        self.go_on(&key, Some(&sample), false);
                        found[at] = sample;
                    }
                }
                gone += self.rounds.get_mut(&key).map_or(0, |round| round.gone.end(claims));
            }
            // What another worker than this fleet's claims is not this fleet's to report.
            let is_ours =
                !status.withheld.load(Relaxed) && status.collector_state().state != TenantState::Shadow;
            status.values_gone.show_sampled(if is_ours { gone } else { 0 });
            note(status, &found, self.reach, self.fleet.claim_ttl());
        }
        Ok(())
    }

    /// Where the next look at a schedule goes on.
    fn go_on(&mut self, key: &(Tenant, usize), sample: Option<&Sample>, with_head: bool) {
        let Some(sample) = sample.filter(|sample| sample.scheduled.is_some_and(|scheduled| scheduled > 0))
        else {
            self.rounds.remove(key);
            return;
        };
        let round = match self.rounds.get_mut(key) {
            Some(round) => round,
            None => self.rounds.entry(key.clone()).or_default(),
        };
        match &sample.page {
            PageEnd::Next(from) => round.from = Some(from.clone()),
            PageEnd::Last => round.from = None,
            PageEnd::NotRead => {}
        }
        round.gone.go_on(sample, with_head);
        round.shortest = sample.shortest.as_ref().map(|(_, member)| member.clone());
    }
}

/// Whether a worker claims what is due of a tenant, as far as this one knows.
fn claims(status: &TenantStatus) -> bool {
    !status.paused.load(Relaxed)
        && !matches!(status.collector_state().state, TenantState::Paused | TenantState::Degraded)
}

/// Takes over what was found in a tenant's schedules.
fn note(status: &TenantStatus, samples: &[Sample], reach: Duration, claim_ttl: Duration) {
    if samples.is_empty() || samples.iter().any(|sample| sample.scheduled.is_none()) {
        // The collector's state says what is wrong with the key.
        forget(status);
        return;
    }
    let sum = |of: fn(&Sample) -> u64| samples.iter().map(of).sum::<u64>();
    status.scheduled.store(sum(|sample| sample.scheduled.unwrap_or_default()), Relaxed);
    status.due.store(sum(|sample| sample.due), Relaxed);
    status.leased.store(sum(|sample| sample.leased), Relaxed);
    let oldest = samples.iter().map(|sample| sample.oldest_due_age).max().unwrap_or_default();
    status.oldest_due_age_ms.store(millis(oldest), Relaxed);
    // A lease that was taken before this worker came first is that of a worker which may have died: no collector accounts for it.
    let leases = samples.iter().filter_map(|sample| claim_ttl.checked_sub(sample.lease_ends_in?)).max();
    status.exposure.sampled(oldest, leases.filter(|age| *age > status.first_for()));
    let beyond = |sample: &Sample| if sample.ahead > reach { sample.ahead } else { sample.unexplained };
    let ahead = samples.iter().map(beyond).max();
    status.ahead_ms.store(millis(ahead.unwrap_or_default()), Relaxed);
    // To people both are one list.
    let lost: Option<u64> = samples.iter().map(|sample| sample.lost).sum();
    let quarantined: Option<u64> = samples.iter().map(|sample| sample.quarantined).sum();
    let known = quarantined.zip(lost).map(|(quarantined, lost)| (quarantined + lost, lost));
    status.show_entries(known);
    if status.is_at_rest() && samples.iter().any(|sample| sample.scheduled != Some(0)) {
        status.rouse();
    }
    if let Some((entries, lost)) = known {
        let last = &status.last_sample;
        last.quarantine_entries.store(entries, Relaxed);
        last.losses.store(lost, Relaxed);
        last.at_ms.store(wall_clock_ms(), Relaxed);
    }
    let lives = samples.iter().filter_map(|sample| sample.shortest.as_ref().map(|(life, _)| millis(*life)));
    status.shortest_life_ms.store(lives.min().unwrap_or(u64::MAX), Relaxed);
}

/// What was known may no longer be true: better nothing than that.
fn forget(status: &TenantStatus) {
    status.shortest_life_ms.store(u64::MAX, Relaxed);
    status.show_entries(None);
}

/// Tenants that are looked at in one call: no more schedules than that, and no more lives.
fn groups(
    tenants: &[Arc<TenantStatus>],
    weight: impl Fn(&TenantStatus) -> usize,
) -> std::vec::IntoIter<&[Arc<TenantStatus>]> {
    let mut groups = Vec::new();
    let (mut first, mut lives) = (0, 0);
    for (at, status) in tenants.iter().enumerate() {
        let weight = weight(status);
        if at > first && (at - first == SCHEDULES_PER_CALL || lives + weight > TTLS_PER_CALL) {
            groups.push(&tenants[first..at]);
            (first, lives) = (at, 0);
        }
        lives += weight;
    }
    if first < tenants.len() {
        groups.push(&tenants[first..]);
    }
    groups.into_iter()
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::{
        cell::{Cell, RefCell},
        rc::Rc,
    };

    use balance_sync_domain::TenantId;
    use balance_sync_schedule::ErrorClass;
    use tokio::task::LocalSet;

    use super::*;

    use balance_sync_fleet::{status::CALM_FOR, tasks::TaskName};

    const INTERVAL: Duration = Duration::from_secs(5);

    /// What a look asked for, of a schedule by its key.
    #[derive(Debug, Clone, PartialEq)]
    struct Asked {
        key: String,
        head: usize,
        page: usize,
        from: Option<Vec<u8>>,
        again: Option<Vec<u8>>,
    }

    /// A Redis with schedules of so many members each, and every look at it.
    #[derive(Default)]
    struct Redis {
        members: RefCell<HashMap<String, u64>>,
        /// Of tenants by their schedules.
        quarantined: RefCell<HashMap<String, u64>>,
        /// The position of the member with the shortest life, and that life.
        shortest: Cell<Option<(usize, u64)>>,
        away: Cell<bool>,
        calls: RefCell<Vec<(Instant, Vec<Asked>)>>,
    }

    impl Redis {
        fn answer(&self, looks: &[SampleRequest<'_>]) -> Result<Vec<Sample>, ScheduleError> {
            let asked = looks.iter().map(|look| Asked {
                key: look.space.schedule().to_owned(),
                head: look.head,
                page: look.page,
                from: look.from.map(<[u8]>::to_vec),
                again: look.again.map(<[u8]>::to_vec),
            });
            self.calls.borrow_mut().push((Instant::now(), asked.collect()));
            if self.away.get() {
                let class = ErrorClass::Unavailable;
                return Err(ScheduleError { operation: "sample", class, message: "away".to_owned() });
            }
            Ok(looks.iter().map(|look| self.sample(look)).collect())
        }

        fn sample(&self, look: &SampleRequest<'_>) -> Sample {
            let scheduled = self.members.borrow().get(look.space.schedule()).copied().unwrap_or_default();
            let mut sample = Sample {
                scheduled: Some(scheduled),
                quarantined: Some(
                    self.quarantined.borrow().get(look.space.schedule()).copied().unwrap_or_default(),
                ),
                lost: Some(0),
                ..Sample::default()
            };
            if scheduled == 0 {
                return sample;
            }
            let begin = look.from.map_or(0, |from| std::str::from_utf8(from).unwrap().parse().unwrap());
            let end = begin + look.page;
            let again = look.again.map(|member| std::str::from_utf8(member).unwrap().parse().unwrap());
            sample.due = scheduled;
            sample.page = if end as u64 >= scheduled {
                PageEnd::Last
            } else {
                PageEnd::Next(end.to_string().into_bytes())
            };
            sample.shortest = Some(match self.shortest.get() {
                Some((at, life)) if (begin..end).contains(&at) || again == Some(at) => {
                    (Duration::from_millis(life), at.to_string().into_bytes())
                }
                _ => (Duration::from_secs(3600), begin.to_string().into_bytes()),
            });
            sample
        }

        fn looks(&self) -> usize {
            self.calls.borrow().iter().map(|(_, looks)| looks.len()).sum()
        }

        fn looks_at(&self, n: usize) -> usize {
            let calls = self.calls.borrow();
            calls.iter().flat_map(|(_, looks)| looks).filter(|asked| asked.key == key(n)).count()
        }

        fn lives_asked(&self) -> usize {
            let calls = self.calls.borrow();
            calls.iter().flat_map(|(_, looks)| looks).map(|asked| asked.head + asked.page).sum()
        }
    }

    fn tenant(n: usize) -> Tenant {
        Tenant::Id(TenantId::parse(&format!("t{n:05}")).unwrap())
    }

    fn key(n: usize) -> String {
        tenant(n).key_space(KeyForm::AsListed).schedule().to_owned()
    }

    /// A sampler over so many tenants, running beside the test.
    async fn sampling(tenants: usize, redis: &Rc<Redis>, test: impl AsyncFnOnce(Arc<FleetStatus>)) {
        let fleet = Arc::new(FleetStatus::default());
        for n in 0..tenants {
            let _ = fleet.tenant(&tenant(n));
        }
        let sampler = Sampler {
            reach: Duration::from_secs(600),
            fleet: Arc::clone(&fleet),
            key_form: KeyForm::AsListed,
            interval: INTERVAL,
            rounds: HashMap::new(),
            spare: 0,
            passes: 0,
            progress: Progress::unobserved(TaskName::Sampler),
        };
        let redis = Rc::clone(redis);
        LocalSet::new()
            .run_until(async move {
                let running = tokio::task::spawn_local(
                    sampler.run(async move |looks: &[SampleRequest<'_>]| redis.answer(looks)),
                );
                test(fleet).await;
                running.abort();
            })
            .await;
    }

    #[tokio::test(start_paused = true)]
    async fn ten_thousand_idle_tenants_cost_forty_calls_spread_over_the_interval() {
        let redis = Rc::new(Redis::default());
        sampling(10_000, &redis, async |_| {
            tokio::time::sleep(INTERVAL * 9 / 10 + Duration::from_millis(1)).await
        })
        .await;
        let calls = redis.calls.borrow();
        assert_eq!(calls.iter().map(|(_, looks)| looks.len()).sum::<usize>(), 9_250);
        assert!(calls.iter().all(|(_, looks)| looks.len() == SCHEDULES_PER_CALL));
        assert!(calls.windows(2).all(|pair| pair[1].0 - pair[0].0 >= INTERVAL / 50));
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_at_rest_are_looked_at_once_per_sweep_and_a_change_in_silence_is_shown_within_it() {
        let redis = Rc::new(Redis::default());
        redis.quarantined.borrow_mut().insert(key(7), 2);
        sampling(1_000, &redis, async |fleet| {
            for status in fleet.tenants().iter() {
                status.quiet.of(1);
                status.quiet.begin(0);
                status.enter(TenantState::Idle);
                status.show_watched(true);
            }
            let settles = async || {
                for _ in 0..=CALM_FOR.as_secs() + INTERVAL.as_secs() {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    fleet.rest.settle();
                }
            };
            settles().await;
            assert_eq!(fleet.rest.active().len(), 1, "something is in the quarantine of one");
            redis.calls.borrow_mut().clear();
            tokio::time::sleep(AT_REST_EVERY).await;
            assert_eq!(redis.looks_at(7), 12);
            assert_eq!(redis.looks(), 1_011, "each of the others once");

            // What isn't announced is shown within the sweep, and looked at from then on.
            let status = fleet.tenant(&tenant(500));
            redis.members.borrow_mut().insert(key(500), 3);
            redis.quarantined.borrow_mut().insert(key(501), 1);
            tokio::time::sleep(AT_REST_EVERY).await;
            assert_eq!(status.due.load(Relaxed), 3);
            assert_eq!(fleet.tenant(&tenant(501)).quarantine_entries.load(Relaxed), 1);
            assert!(!status.is_at_rest() && !fleet.tenant(&tenant(501)).is_at_rest());
            redis.members.borrow_mut().clear();
            tokio::time::sleep(INTERVAL).await;
            assert_eq!(status.due.load(Relaxed), 0);

            // What is, at the next look, also if the schedule is empty by then: something may have been set aside.
            let status = fleet.tenant(&tenant(600));
            assert!(status.is_at_rest());
            redis.quarantined.borrow_mut().insert(key(600), 1);
            status.rouse();
            tokio::time::sleep(INTERVAL).await;
            assert_eq!(status.quarantine_entries.load(Relaxed), 1);

            redis.away.set(true);
            tokio::time::sleep(INTERVAL).await;
            assert_eq!(fleet.tenant(&tenant(999)).quarantine_entries.load(Relaxed), u64::MAX);
            assert_eq!(fleet.rest.resting()[0].1, 0, "nothing is known of them any more");
            redis.away.set(false);
            tokio::time::sleep(2 * INTERVAL).await;
            assert_eq!(fleet.tenant(&tenant(999)).quarantine_entries.load(Relaxed), 0);
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn a_backlog_of_a_million_is_gone_through_in_bounded_pieces_and_its_shortest_life_stays_known() {
        let redis = Rc::new(Redis::default());
        redis.members.borrow_mut().insert(key(1), 1_000_000);
        redis.shortest.set(Some((777_777, 5_000)));
        sampling(3, &redis, async |fleet| {
            let status = fleet.tenant(&tenant(1));
            tokio::time::sleep(INTERVAL / 2).await;
            assert_eq!(status.shortest_life_ms.load(Relaxed), 3_600_000, "the head, until more is known");
            tokio::time::sleep(INTERVAL).await;
            for _ in 0..10 {
                redis.calls.borrow_mut().clear();
                tokio::time::sleep(INTERVAL).await;
                assert!(redis.lives_asked() <= LIVES + 3 * (HEAD + PAGE), "{}", redis.lives_asked());
                let calls = redis.calls.borrow();
                assert!(calls.iter().flat_map(|(_, looks)| looks).all(|asked| asked.page <= PAGE));
            }
            // A round takes a million over LIVES intervals, and some more for the heads.
            tokio::time::sleep(INTERVAL * 110).await;
            assert_eq!(status.shortest_life_ms.load(Relaxed), 5_000);
            // It is looked at again each time, wherever the round is.
            redis.shortest.set(Some((777_777, 4_000)));
            tokio::time::sleep(INTERVAL).await;
            assert_eq!(status.shortest_life_ms.load(Relaxed), 4_000);
            // Written: what is left has longer to live, and that is said at once.
            redis.shortest.set(None);
            tokio::time::sleep(INTERVAL).await;
            assert_eq!(status.shortest_life_ms.load(Relaxed), 3_600_000);
            redis.members.borrow_mut().clear();
            tokio::time::sleep(INTERVAL).await;
            assert_eq!(status.shortest_life_ms.load(Relaxed), u64::MAX);
        })
        .await;
    }

    #[test]
    fn a_value_that_is_gone_counts_at_once_where_nothing_is_claimed_and_after_two_looks_elsewhere() {
        let look = |gone, gone_in_page, page| Sample { gone, gone_in_page, page, ..Sample::default() };
        let mut gone = Gone::default();
        let mut end = |samples: &[Sample], claims| {
            samples.iter().enumerate().for_each(|(n, sample)| gone.go_on(sample, n == 0));
            gone.end(claims)
        };
        let next = || PageEnd::Next(vec![1]);
        assert_eq!(end(&[look(1, 1, PageEnd::Last)], true), 0, "it may be settled by now");
        assert_eq!(end(&[look(2, 1, PageEnd::Last)], true), 1);
        assert_eq!(end(&[look(0, 0, PageEnd::Last)], true), 0);
        // Nothing is claimed: what one part of a round has shown counts until the next round.
        assert_eq!(end(&[look(1, 0, next()), look(0, 3, next())], false), 3);
        assert_eq!(end(&[look(1, 0, next())], false), 3);
        assert_eq!(end(&[look(1, 1, PageEnd::Last)], false), 4);
        assert_eq!(end(&[look(0, 0, next())], false), 4);
        assert_eq!(end(&[look(0, 0, PageEnd::Last)], false), 0);
        assert_eq!(end(&[look(0, 5, next())], false), 5);
        assert_eq!(end(&[look(0, 0, next())], true), 0, "claimed again");
        assert_eq!(end(&[look(0, 0, next())], false), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn many_busy_tenants_share_the_lives_out() {
        let redis = Rc::new(Redis::default());
        redis.members.borrow_mut().extend((0..2_000).map(|n| (key(n), 1_000)));
        sampling(2_000, &redis, async |_| {
            tokio::time::sleep(INTERVAL * 3 / 2).await;
            redis.calls.borrow_mut().clear();
            tokio::time::sleep(INTERVAL).await;
            let lives = redis.lives_asked();
            assert!((LIVES * 8 / 10..=LIVES * 12 / 10).contains(&lives), "{lives}");
            assert!(redis.calls.borrow().iter().all(|(_, looks)| looks.len() <= SCHEDULES_PER_CALL));
            assert!(
                redis.calls.borrow().iter().flat_map(|(_, looks)| looks).all(|asked| asked.from.is_some())
            );
        })
        .await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_can_not_be_asked_is_not_known() {
        let redis = Rc::new(Redis::default());
        redis.members.borrow_mut().insert(key(0), 7);
        sampling(600, &redis, async |fleet| {
            let status = fleet.tenant(&tenant(0));
            tokio::time::sleep(INTERVAL / 2).await;
            assert_eq!(status.shortest_life_ms.load(Relaxed), 3_600_000);
            assert_eq!(status.quarantine_entries.load(Relaxed), 0);
            redis.away.set(true);
            redis.calls.borrow_mut().clear();
            tokio::time::sleep(INTERVAL).await;
            assert_eq!(status.shortest_life_ms.load(Relaxed), u64::MAX);
            assert_eq!(fleet.tenant(&tenant(599)).quarantine_entries.load(Relaxed), u64::MAX);
            assert!(redis.calls.borrow().len() <= 2, "one try per interval: {}", redis.calls.borrow().len());
            redis.away.set(false);
            tokio::time::sleep(INTERVAL * 2).await;
            assert_eq!(status.shortest_life_ms.load(Relaxed), 3_600_000);
        })
        .await;
    }
}
