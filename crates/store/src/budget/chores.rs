//! What is done beside for a server's connections: sweeping, closing, looking up its name.

#[cfg(test)]
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use futures::{FutureExt, future};
use tokio::runtime::Handle;
use tokio::sync::Notify;
use tokio::task::{JoinError, JoinHandle};

use super::connection::CLOSE_TIMEOUT;
use super::server::{SWEEP_INTERVAL, Server, WAITED_FOR_INTERVAL};

/// What is done beside for a server's connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Chore {
    /// Looking at the idle connections over and over.
    Sweep,
    /// Closing some.
    Close,
    /// Looking up the address of the server.
    LookUp,
}

/// Runs chores, and is notified of those that panic.
#[derive(Default)]
pub(super) struct Chores {
    pub(super) panicked: OnceLock<Box<dyn Fn(Chore) + Send + Sync>>,
    /// Sweeps that are to panic, for tests.
    #[cfg(test)]
    pub(super) faults: AtomicUsize,
}

impl Chores {
    /// Runs something once.
    pub(super) fn once(
        self: &Arc<Self>,
        chore: Chore,
        runtime: &Handle,
        work: impl Future<Output = ()> + Send + 'static,
    ) {
        let (chores, running) = (Arc::clone(self), runtime.spawn(work));
        runtime.spawn(async move {
            if let Err(error) = running.await {
                chores.ended(chore, &error);
            }
        });
    }

    /// Runs the sweeper of a server until it isn't needed any more; again, if it panics.
    pub(super) fn sweep(
        self: &Arc<Self>,
        runtime: &Handle,
        server: Weak<Server>,
        queued: Arc<Notify>,
    ) -> JoinHandle<()> {
        let chores = Arc::clone(self);
        runtime.spawn(async move {
            while let Err(error) = tokio::spawn(sweep(Weak::clone(&server), Arc::clone(&queued))).await {
                if !chores.ended(Chore::Sweep, &error) {
                    return;
                }
                tokio::time::sleep(SWEEP_INTERVAL).await;
            }
        })
    }

    /// Gives whether it was a panic; otherwise the runtime ends.
    fn ended(&self, chore: Chore, error: &JoinError) -> bool {
        if let Some(panicked) = self.panicked.get().filter(|_| error.is_panic()) {
            panicked(chore);
        }
        error.is_panic()
    }
}

/// Closes idle connections when their time has come, and hands them on when others wait, as long as there are any.
async fn sweep(server: Weak<Server>, queued: Arc<Notify>) {
    let mut pause = WAITED_FOR_INTERVAL;
    loop {
        let _ = tokio::time::timeout(pause, queued.notified()).await;
        let Some(server) = server.upgrade() else { return };
        let (expired, again) = server.tend();
        if !expired.is_empty() {
            tracing::debug!(server = %server.key, connections = expired.len(), "idle connections closed");
            // Beside, because the waiting must not wait for goodbyes.
            let closing = future::join_all(expired.into_iter().map(|open| open.close(CLOSE_TIMEOUT)));
            server.chores.once(Chore::Close, &Handle::current(), closing.map(drop));
        }
        let Some(again) = again else { return };
        pause = again;
    }
}

#[cfg(test)]
impl Chores {
    pub(super) fn fault(&self) {
        let taken =
            self.faults.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        assert!(taken.is_err(), "a test made the sweeper panic");
    }
}
