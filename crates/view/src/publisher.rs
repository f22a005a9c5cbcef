//! Publishing: once a second this worker takes its counters in, and every other second it writes what has changed to Redis.
//!
//! Any worker can answer for the whole fleet from that ([`crate::reader`]). Only records that differ from what was
//! published before are written, and tenants at rest are compared with what was published in turn only, all of them within
//! [`SWEEP_EVERY`].
//! Nothing depends on it: with Redis away nothing is published, and what was runs out.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::{Arc, atomic::Ordering::Relaxed},
    time::Duration,
};

use balance_sync_fleet::{
    status::{FleetStatus, SWEEP_EVERY, TenantStatus, Tenants},
    tasks::Progress,
};
use balance_sync_schedule::{
    Names, ScheduleError, Snapshots,
    snapshots::{PUBLISH_PAGE, Publication},
};
use balance_sync_tenants::Tenant;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::{
    local_worker::{LocalWorker, clock_offset_ms},
    record::WorkerRecord,
};

/// Time between two looks at the counters.
pub(crate) const TICK: Duration = Duration::from_secs(1);
/// Ticks from one publication to the next.
const PUBLISH_EVERY: u64 = 2;
/// A worker that starts is published as soon as it serves the tenants that are its own, and after this whatever it serves:
/// when the tenant service or Redis keeps it from that, others must see that it is there.
const FIRST_WITHIN: Duration = Duration::from_secs(2);
/// Time between two looks at whether it does.
const FIRST_LOOK: Duration = Duration::from_millis(50);
/// What was published lasts this long: three publications may fail before others think that the worker is gone.
pub(crate) const LIFE: Duration = Duration::from_secs(8);
/// The detail of a tenant that isn't being viewed is published at most this often, in publications.
const DETAIL_EVERY: u64 = 5;
/// Longest time for the farewell; when Redis doesn't answer, what was published runs out.
const FAREWELL: Duration = Duration::from_secs(2);

/// What was published about a tenant.
#[derive(Debug, Default)]
struct Known {
    /// Of its record.
    digest: u64,
    /// Its record has changed since its detail was published.
    detail_due: bool,
}

/// Publishes what this worker knows.
pub(crate) struct Publisher {
    own: Arc<LocalWorker>,
    snapshots: Snapshots,
    names: Names,
    /// The name under which it publishes.
    name: Arc<str>,
    incarnation: String,
    seq: u64,
    known: HashMap<Tenant, Known>,
    /// Which tenants there were, by the number of their changes; `None` = all are to be compared.
    tenants: Option<u64>,
    watched: BTreeSet<String>,
    publications: u64,
    failing: bool,
}

impl Publisher {
    /// Prepares it; nothing is published yet.
    #[must_use]
    pub(crate) fn new(own: Arc<LocalWorker>, snapshots: Snapshots, names: Names) -> Self {
        Self {
            name: own.name.current(),
            own,
            snapshots,
            names,
            incarnation: String::new(),
            seq: 0,
            known: HashMap::new(),
            tenants: None,
            watched: BTreeSet::new(),
            publications: 0,
            failing: false,
        }
    }

    /// Runs until it is stopped; then takes away what it has published.
    pub(crate) async fn run(mut self, stop: CancellationToken, progress: Progress) {
        stop.run_until_cancelled(self.keep_publishing(&progress)).await;
        let farewell = async {
            self.snapshots.leave(&self.name).await?;
            self.own.name.release(&self.names).await
        };
        match tokio::time::timeout(FAREWELL, farewell).await {
            Ok(Ok(())) => tracing::debug!("worker's records taken away"),
            Ok(Err(error)) => tracing::debug!(%error, "worker's records not taken away, they run out"),
            Err(_) => tracing::debug!("worker's records not taken away in time, they run out"),
        }
    }

    async fn keep_publishing(&mut self, progress: &Progress) {
        let mut last = Instant::now();
        begun_to_serve(&self.own.fleet).await;
        let mut timer = tokio::time::interval(TICK);
        // Rates are by the time that really passed.
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let step = LocalWorker::step().as_secs() / TICK.as_secs();
        for tick in 0_u64.. {
            timer.tick().await;
            self.own.tick(last.elapsed());
            last = Instant::now();
            // That Redis doesn't answer is reported with the next publication.
            let _ = self.own.name.renew(&self.names).await;
            if tick.is_multiple_of(PUBLISH_EVERY) {
                self.own.look_at_pools().await;
                let offset = clock_offset_ms(&self.snapshots).await;
                self.own.fleet.clock_offset_ms.store(offset);
                let answer = self.publish().await;
                self.tell(answer);
            }
            if tick.is_multiple_of(step) && tick > 0 {
                let workers = self.all_workers().await;
                self.own.remember(&workers);
            }
            progress.beat();
        }
    }

    /// Says once that it fails, and once that it works again.
    fn tell(&mut self, answer: Result<(), ScheduleError>) {
        match answer {
            Ok(()) => {
                if std::mem::take(&mut self.failing) {
                    tracing::info!("other workers can see this one again");
                }
                self.own.redis_answered(None);
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    tracing::warn!(%error, "other workers can't see this one");
                }
                self.own.redis_answered(Some(error.to_string()));
            }
        }
    }

    async fn publish(&mut self) -> Result<(), ScheduleError> {
        self.publications += 1;
        let name = self.own.name.current();
        if name != self.name {
            // What stands under the former name is another worker's.
            self.name = name;
            self.seq = 0;
        }
        // Nothing is published, Redis has lost it, or the last call's fate is unknown: begin anew.
        if self.seq == 0 || !self.publish_changes().await? {
            self.begin_anew();
            if !self.publish_changes().await? {
                tracing::debug!("another process publishes under this worker's name");
                self.seq = 0;
            }
        }
        Ok(())
    }

    fn begin_anew(&mut self) {
        self.incarnation = uuid::Uuid::new_v4().simple().to_string();
        self.seq = 0;
        self.known.clear();
        self.tenants = None;
    }

    /// Writes what has changed since the last time; gives whether Redis still held that.
    async fn publish_changes(&mut self) -> Result<bool, ScheduleError> {
        let seq = std::mem::take(&mut self.seq); // Until all is written, the next publication begins anew.
        let mut records = Vec::new();
        let mut details = Vec::new();
        let mut buffer = Vec::new();
        let changed = self.own.fleet.tenants_changed();
        let tenants = self.own.fleet.tenants();
        let all = self.tenants != Some(changed);
        let full_details = self.publications.is_multiple_of(DETAIL_EVERY);
        let due = if all {
            tenants.to_vec()
        } else {
            due(&self.own.fleet, &tenants, &self.watched, self.publications)
        };
        for status in due {
            let (tenant, label) = (status.tenant(), status.tenant().label());
            buffer.clear();
            if let Err(error) = serde_json::to_writer(&mut buffer, &self.own.tenant_record(&status)) {
                tracing::error!(%error, "a record can't be written");
                continue;
            }
            let mut hasher = DefaultHasher::new();
            buffer.hash(&mut hasher);
            let digest = hasher.finish();
            let known = self.known.entry(tenant.clone()).or_default();
            if known.digest != digest {
                known.digest = digest;
                known.detail_due = true;
                records.push((label.to_owned(), Some(String::from_utf8_lossy(&buffer).into_owned())));
            }
            let watched = self.watched.contains(label);
            if (watched || (known.detail_due && (full_details || status.is_at_rest())))
                && status.recent(|_| ()).is_some()
            {
                known.detail_due = false;
                let detail = self.own.detail_record(&status, watched).await;
                details.push((label.to_owned(), serde_json::to_string(&detail).unwrap_or_default()));
            }
        }
        if all {
            let served: HashSet<&Tenant> = tenants.iter().map(|status| status.tenant()).collect();
            self.known.retain(|tenant, _| {
                let stays = served.contains(tenant);
                if !stays {
                    records.push((tenant.label().to_owned(), None));
                }
                stays
            });
            self.tenants = Some(changed);
        }
        self.write(seq, &records, &details).await
    }

    async fn write(
        &mut self,
        mut seq: u64,
        records: &[(String, Option<String>)],
        details: &[(String, String)],
    ) -> Result<bool, ScheduleError> {
        let worker = serde_json::to_string(&self.own.worker_record()).unwrap_or_default();
        let pages = records.len().div_ceil(PUBLISH_PAGE).max(details.len().div_ceil(PUBLISH_PAGE)).max(1);
        for page in 0..pages {
            seq += 1;
            let publication = Publication {
                incarnation: &self.incarnation,
                seq,
                // Once visible it stays so: only the first time do readers wait for the last page.
                visible: page + 1 == pages,
                worker: &worker,
                tenants: slice(records, page),
                details: slice(details, page),
            };
            let published = self.snapshots.publish(&self.name, LIFE, &publication).await?;
            if !published.accepted {
                return Ok(false);
            }
            self.watched = published.watched;
        }
        self.seq = seq;
        Ok(true)
    }

    /// What all live workers that write say of themselves; this one is always among them, if it does.
    async fn all_workers(&self) -> Vec<WorkerRecord> {
        let mut workers = vec![self.own.worker_record()];
        workers.retain(|worker| !worker.is_shadow());
        let live = self.snapshots.publishers().await.unwrap_or_default().live;
        for name in live.iter().filter(|name| **name != *self.name) {
            // One that has run out, or is of another version, is left out of this point.
            if let Ok(Some(record)) = self.snapshots.worker(name).await
                && let Ok(record) = serde_json::from_str::<WorkerRecord>(&record)
                && !record.is_shadow()
            {
                workers.push(record);
            }
        }
        workers
    }
}

/// The tenants whose records may differ from what was published: those that are not at rest or being viewed, and in turn a part of the
/// others.
fn due(
    fleet: &FleetStatus,
    tenants: &Tenants,
    viewed: &BTreeSet<String>,
    publication: u64,
) -> Vec<Arc<TenantStatus>> {
    let parts = (SWEEP_EVERY.as_secs() / (TICK.as_secs() * PUBLISH_EVERY)).max(1);
    let part = tenants.len().div_ceil(usize::try_from(parts).unwrap_or(1)).max(1);
    let begin = usize::try_from(publication % parts).unwrap_or(0) * part;
    let in_turn = tenants.iter().skip(begin).take(part).cloned();
    let viewed = viewed.iter().filter_map(|label| fleet.find_by_label(label));
    // The active ones first: one that comes to rest meanwhile is compared twice, not left out.
    let mut due = fleet.rest.active();
    due.extend(in_turn.chain(viewed).filter(|status| status.is_at_rest()));
    due
}

/// Waits until a worker serves the tenants that are its own. Published before, it would be a live worker that serves
/// no tenants, and its tenants those that all workers have forgotten.
async fn begun_to_serve(fleet: &FleetStatus) {
    let serves_all = || fleet.reconciled.load(Relaxed) && fleet.count() as u64 >= fleet.owned.load(Relaxed);
    let begun = async {
        while !serves_all() {
            tokio::time::sleep(FIRST_LOOK).await;
        }
    };
    // In time or not, it is published now.
    let _ = tokio::time::timeout(FIRST_WITHIN, begun).await;
}

fn slice<T>(all: &[T], page: usize) -> &[T] {
    let from = (page * PUBLISH_PAGE).min(all.len());
    &all[from..(from + PUBLISH_PAGE).min(all.len())]
}

#[cfg(test)]
mod tests {
    use balance_sync_domain::TenantId;
    use balance_sync_fleet::status::{CALM_FOR, TenantState};

    use super::*;

    fn tenant(id: &str) -> Tenant {
        Tenant::Id(TenantId::parse(id).expect("a tenant id"))
    }

    /// How long the first publication is put off, when this happens to the worker after that many milliseconds.
    async fn put_off(happens: impl Fn(&FleetStatus, u64)) -> Duration {
        let (fleet, begun) = (FleetStatus::default(), Instant::now());
        let happening = async {
            for millis in (0..10_000).step_by(10) {
                happens(&fleet, millis);
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::select! {
            () = happening => panic!("it is never shown"),
            () = begun_to_serve(&fleet) => begun.elapsed(),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn tenants_at_rest_are_compared_in_turn_within_the_sweep_and_others_each_time() {
        let fleet = FleetStatus::default();
        let all: Vec<_> = (0..100).map(|n| fleet.tenant(&tenant(&format!("t{n}")))).collect();
        for status in &all {
            status.quiet.of(1);
            status.quiet.begin(0);
            status.enter(TenantState::Idle);
            status.show_entries(Some((0, 0)));
            status.show_watched(true);
        }
        for _ in 0..=CALM_FOR.as_secs() {
            fleet.rest.settle();
            tokio::time::advance(Duration::from_secs(1)).await;
        }
        fleet.rest.settle();
        all[7].rouse();
        let tenants = fleet.tenants();
        let viewed = BTreeSet::from(["t9".to_owned()]);
        let mut compared = HashMap::<String, usize>::new();
        let publications = SWEEP_EVERY.as_secs() / TICK.as_secs() / PUBLISH_EVERY;
        for publication in 5..5 + publications {
            for status in due(&fleet, &tenants, &viewed, publication) {
                *compared.entry(status.tenant().label().to_owned()).or_default() += 1;
            }
        }
        let times = usize::try_from(publications).unwrap_or_default();
        assert_eq!((compared["t7"], compared.len()), (times, 100));
        assert!(compared["t9"] >= times);
        assert_eq!(compared.values().filter(|n| **n == 1).count(), 98, "each of the others once");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_is_shown_to_others_once_it_serves_its_tenants() {
        let took = put_off(|fleet, millis| {
            if millis == 300 {
                fleet.owned.store(2, Relaxed);
                drop(fleet.tenant(&tenant("a")));
                fleet.reconciled.store(true, Relaxed);
            } else if millis == 500 {
                drop(fleet.tenant(&tenant("b")));
            }
        })
        .await;
        assert!((500..=560).contains(&took.as_millis()), "{took:?}");
        // None of the tenants is its own.
        let took = put_off(|fleet, millis| fleet.reconciled.store(millis >= 300, Relaxed)).await;
        assert!((300..=360).contains(&took.as_millis()), "{took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_worker_that_can_serve_no_tenant_is_shown_all_the_same() {
        let took = put_off(|_, _| ()).await;
        assert!((2_000..=2_060).contains(&took.as_millis()), "{took:?}");
    }
}
