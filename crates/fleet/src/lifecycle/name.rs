//! The name of this worker among the others, unlike all of theirs.
//!
//! Two processes configured with the same name would be one worker to everybody else: their records overwrite each other, the
//! share of one is the share of both, and draining one drains both. So a name is held with a lease in Redis, by an
//! incarnation that is new for each process. A name held by another process that renews its lease is left to it, and a suffix is
//! appended to this worker's. A holder that doesn't renew has crashed, most likely before a restart: its name is waited for.
//! Reasons and bounds: `docs/decisions/0022-names-of-workers.md`.

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use balance_sync_schedule::{Names, ScheduleError};
use tokio::{sync::watch, time::Instant};

/// How long a name stays with a process that no longer renews it.
const LEASE: Duration = Duration::from_secs(6);
/// Between two looks at whether the holder of the name renews it, at the start.
const LOOK_EVERY: Duration = Duration::from_millis(250);
/// A start waits no longer than this for the lease of a holder that has crashed.
const FIRST_WITHIN: Duration = Duration::from_secs(8);
/// Suffixes that are tried, from 2 on.
const LAST_SUFFIX: usize = 32;

/// The worker's name. Clones are handles to the same one.
#[derive(Debug, Clone)]
pub struct WorkerName(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    configured: String,
    incarnation: String,
    current: watch::Sender<Arc<str>>,
    /// What was stored for the name when another process was last seen to hold it.
    seen: Mutex<Option<String>>,
}

impl From<&str> for WorkerName {
    fn from(configured: &str) -> Self {
        Self(Arc::new(Inner {
            configured: configured.to_owned(),
            incarnation: format!("{:032x}", rand::random::<u128>()),
            current: watch::Sender::new(Arc::from(configured)),
            seen: Mutex::default(),
        }))
    }
}

impl WorkerName {
    /// The name in force.
    #[must_use]
    pub fn current(&self) -> Arc<str> {
        Arc::clone(&self.0.current.borrow())
    }

    /// The configured name, if another one is in force.
    #[must_use]
    pub fn configured_if_taken(&self) -> Option<&str> {
        (*self.current() != *self.0.configured).then_some(self.0.configured.as_str())
    }

    /// Waits until another name is in force than this one.
    pub async fn changed_from(&self, name: &str) {
        let mut current = self.0.current.subscribe();
        // The sender lives as long as this handle.
        let _ = current.wait_for(|current| **current != *name).await;
    }

    /// Claims the name before the worker starts. When Redis doesn't answer, the configured one is in force until
    /// [`WorkerName::renew`] finds that it is taken.
    pub async fn claim_first(&self, names: &Names) {
        let begun = Instant::now();
        loop {
            match self.step(names).await {
                Ok(true) => return,
                Ok(false) if begun.elapsed() >= FIRST_WITHIN => return,
                Ok(false) => tokio::time::sleep(LOOK_EVERY).await,
                Err(error) => {
                    tracing::debug!(%error, "the worker's name could not be claimed yet");
                    return;
                }
            }
        }
    }

    /// Renews the lease of the name. To be called more often than every other second.
    ///
    /// # Errors
    /// As Redis answers; the name stays in force.
    pub async fn renew(&self, names: &Names) -> Result<(), ScheduleError> {
        self.step(names).await.map(drop)
    }

    /// Gives the name up.
    ///
    /// # Errors
    /// As Redis answers; the lease then expires.
    pub async fn release(&self, names: &Names) -> Result<(), ScheduleError> {
        names.release(&self.current(), &self.0.incarnation).await
    }

    /// Claims the current name, or another one if its holder is alive. Returns whether a name is held.
    async fn step(&self, names: &Names) -> Result<bool, ScheduleError> {
        let current = self.current();
        let claim = names.claim(&[current.to_string()], &self.0.incarnation, LEASE).await?;
        let before = {
            let mut seen = self.0.seen.lock().unwrap_or_else(PoisonError::into_inner);
            let now = claim.held.is_none().then(|| claim.holder.clone());
            std::mem::replace(&mut *seen, now)
        };
        if claim.held.is_some() {
            return Ok(true);
        }
        if before.is_none_or(|before| before == claim.holder) {
            return Ok(false);
        }
        // It was renewed between the two looks.
        let mut others: Vec<String> =
            (2..=LAST_SUFFIX).map(|n| format!("{}-{n}", self.0.configured)).collect();
        if *current != *self.0.configured {
            others.insert(0, self.0.configured.clone());
        }
        others.push(format!("{}-{}", self.0.configured, &self.0.incarnation[..8]));
        let claim = names.claim(&others, &self.0.incarnation, LEASE).await?;
        let Some(name) = claim.held.and_then(|at| others.get(at)) else { return Ok(false) };
        tracing::warn!(
            configured = self.0.configured,
            taken = name,
            "another worker runs under this worker's name, this one takes another: give each its own worker.name"
        );
        self.0.current.send_replace(Arc::from(name.as_str()));
        *self.0.seen.lock().unwrap_or_else(PoisonError::into_inner) = None;
        Ok(true)
    }
}
