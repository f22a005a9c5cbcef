//! Publishing: once a second this worker takes its counters in, and every other second it writes what has changed to Redis.
//!
//! Any worker can answer for the whole fleet from that ([`crate::view`]). Only records that differ from what was
//! published before are written, so that ten thousand idle tenants cost a look at their counters and nothing more.
//! Nothing depends on it: with Redis away nothing is published, and what was runs out.

use std::{
    collections::{BTreeSet, HashMap, HashSet},
    hash::{DefaultHasher, Hash, Hasher},
    sync::Arc,
    time::Duration,
};

use balance_sync_schedule::{
    ScheduleError, Snapshots,
    snapshots::{PUBLISH_PAGE, Publication},
};
use balance_sync_tenants::Tenant;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_util::sync::CancellationToken;

use crate::record::{Own, WorkerRecord};

/// Time between two looks at the counters.
const TICK: Duration = Duration::from_secs(1);
/// Ticks from one publication to the next.
const PUBLISH_EVERY: u64 = 2;
/// What was published lasts this long: three publications may fail before others think that the worker is gone.
pub const LIFE: Duration = Duration::from_secs(8);
/// The detail of a tenant at which nobody looks is published at most this often, in publications.
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
pub struct Publisher {
    own: Arc<Own>,
    snapshots: Snapshots,
    incarnation: String,
    seq: u64,
    known: HashMap<Tenant, Known>,
    watched: BTreeSet<String>,
    publications: u64,
    failing: bool,
}

impl Publisher {
    /// Prepares it; nothing is published yet.
    #[must_use]
    pub fn new(own: Arc<Own>, snapshots: Snapshots) -> Self {
        Self {
            own,
            snapshots,
            incarnation: String::new(),
            seq: 0,
            known: HashMap::new(),
            watched: BTreeSet::new(),
            publications: 0,
            failing: false,
        }
    }

    /// Runs until it is stopped; then takes away what it has published.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(self.keep_publishing()).await;
        match tokio::time::timeout(FAREWELL, self.snapshots.leave(&self.own.name)).await {
            Ok(Ok(())) => tracing::debug!("worker's records taken away"),
            Ok(Err(error)) => tracing::debug!(%error, "worker's records not taken away, they run out"),
            Err(_) => tracing::debug!("worker's records not taken away in time, they run out"),
        }
    }

    async fn keep_publishing(&mut self) {
        let mut timer = tokio::time::interval(TICK);
        // Rates are by the time that really passed.
        timer.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut last = Instant::now();
        let step = Own::step().as_secs() / TICK.as_secs();
        for tick in 0_u64.. {
            timer.tick().await;
            self.own.tick(last.elapsed());
            last = Instant::now();
            if tick.is_multiple_of(PUBLISH_EVERY) {
                self.own.look_at_pools().await;
                let answer = self.publish().await;
                self.tell(answer);
            }
            if tick.is_multiple_of(step) && tick > 0 {
                let workers = self.all_workers().await;
                self.own.remember(&workers);
            }
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
    }

    /// Writes what has changed since the last time; gives whether Redis still held that.
    async fn publish_changes(&mut self) -> Result<bool, ScheduleError> {
        let seq = std::mem::take(&mut self.seq); // Until all is written, the next publication begins anew.
        let mut records = Vec::new();
        let mut details = Vec::new();
        let mut served = HashSet::with_capacity(self.known.len());
        let full_details = self.publications.is_multiple_of(DETAIL_EVERY);
        let mut buffer = Vec::new();
        for status in self.own.fleet.tenants() {
            let (tenant, label) = (status.tenant(), status.tenant().label());
            served.insert(tenant.clone());
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
            if (watched || (known.detail_due && full_details)) && status.recent(|_| ()).is_some() {
                known.detail_due = false;
                let detail = self.own.detail_record(&status, watched).await;
                details.push((label.to_owned(), serde_json::to_string(&detail).unwrap_or_default()));
            }
        }
        self.known.retain(|tenant, _| {
            let stays = served.contains(tenant);
            if !stays {
                records.push((tenant.label().to_owned(), None));
            }
            stays
        });
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
            let published = self.snapshots.publish(&self.own.name, LIFE, &publication).await?;
            if !published.accepted {
                return Ok(false);
            }
            self.watched = published.watched;
        }
        self.seq = seq;
        Ok(true)
    }

    /// What all live workers say of themselves; this one is always among them.
    async fn all_workers(&self) -> Vec<WorkerRecord> {
        let mut workers = vec![self.own.worker_record()];
        let names = self.snapshots.names().await.unwrap_or_default();
        for name in names.iter().filter(|name| **name != self.own.name) {
            // One that has run out, or is of another version, is left out of this point.
            if let Ok(Some(record)) = self.snapshots.worker(name).await
                && let Ok(record) = serde_json::from_str(&record)
            {
                workers.push(record);
            }
        }
        workers
    }
}

fn slice<T>(all: &[T], page: usize) -> &[T] {
    let from = (page * PUBLISH_PAGE).min(all.len());
    &all[from..(from + PUBLISH_PAGE).min(all.len())]
}
