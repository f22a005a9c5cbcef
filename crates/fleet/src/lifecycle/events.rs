//! Events of the tenant service on Redis Pub/Sub, taken as hints: something is worth a look now.
//!
//! What has changed is not believed of an event but asked of the tenant service: each makes the supervisor poll the list,
//! and those about a tenant's database make the manager look up its settings, if it knows the tenant at all. An event
//! can be missed; without any, everything happens a poll later.

use std::time::Duration;

use actix::prelude::*;
use balance_sync_domain::TenantId;
use balance_sync_schedule::{Endpoint, ScheduleError, Subscription};
use serde::Deserialize;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::supervisor::Poll;
use crate::{
    backends::Hint,
    tasks::{Backoff, Progress},
};

/// Shortest time between two polls that are asked for: what comes in between is one.
const POLL_GAP: Duration = Duration::from_millis(200);
/// First delay after a lost subscription …
const RETRY_MIN: Duration = Duration::from_millis(200);
/// … and the longest.
pub(crate) const RETRY_MAX: Duration = Duration::from_secs(10);

/// Where events are published.
#[derive(Debug, Clone)]
pub struct EventSettings {
    /// The channel: `tenant-events:<environment>:`.
    pub channel: String,
    /// The Redis that carries it.
    pub endpoint: Endpoint,
}

/// As much of an event as matters here; the rest may be anything.
#[derive(Debug, Deserialize)]
struct Event {
    event_type: String,
    #[serde(default)]
    tenant_id: Option<String>,
}

impl Event {
    /// Whether the tenant's database settings may be others now.
    fn concerns_settings(&self) -> bool {
        matches!(
            self.event_type.as_str(),
            "tenant.credentials.rotated"
                | "tenant.connections.updated"
                | "tenant.cache.invalidate"
                | "tenant.suspended"
                | "tenant.deleted"
                | "tenant.activated"
        ) || self.event_type.starts_with("tenant.service.")
    }
}

/// Listens until it is stopped, and subscribes again for as long as it takes whenever the subscription is lost.
pub async fn listen(
    settings: EventSettings,
    poll: Recipient<Poll>,
    manager: Recipient<Hint>,
    stop: CancellationToken,
    progress: Progress,
) {
    let listener = Listener { poll, manager, progress: progress.clone() };
    let mut backoff = Backoff::new(RETRY_MIN, RETRY_MAX);
    let mut lost = false;
    let listening = async {
        loop {
            let error = match Subscription::open(&settings.endpoint, &settings.channel).await {
                Ok(mut subscription) => {
                    if std::mem::take(&mut lost) {
                        tracing::info!(channel = settings.channel, "tenant events are received again");
                    } else {
                        tracing::debug!(channel = settings.channel, "tenant events are received");
                    }
                    progress.beat();
                    let begun = Instant::now();
                    let error = listener.hear(async || subscription.next().await).await;
                    // One that breaks as soon as it is there must not be opened over and over.
                    if begun.elapsed() >= RETRY_MAX {
                        backoff.reset();
                    }
                    error
                }
                Err(error) => error,
            };
            if std::mem::replace(&mut lost, true) {
                tracing::debug!(%error, "tenant events still can't be received");
            } else {
                tracing::warn!(channel = settings.channel, %error, "tenant events can't be received, changes are noticed a poll later");
            }
            progress.beat();
            tokio::time::sleep(backoff.next_delay()).await;
        }
    };
    stop.run_until_cancelled(listening).await;
}

struct Listener {
    poll: Recipient<Poll>,
    manager: Recipient<Hint>,
    progress: Progress,
}

impl Listener {
    /// Passes on what a live subscription brings, until it breaks.
    async fn hear(&self, mut next: impl AsyncFnMut() -> Result<Vec<u8>, ScheduleError>) -> ScheduleError {
        // At once and in any case: events during the disconnection were missed.
        let mut poll_at = Some(Instant::now());
        let mut polled: Option<Instant> = None;
        loop {
            tokio::select! {
                biased;
                () = tokio::time::sleep_until(poll_at.unwrap_or_else(Instant::now)), if poll_at.is_some() => {
                    let now = Instant::now();
                    polled = Some(now);
                    // A full mailbox is a supervisor with much to do; it is asked again.
                    poll_at = match self.poll.try_send(Poll) {
                        Err(SendError::Full(_)) => Some(now + POLL_GAP),
                        Ok(()) | Err(SendError::Closed(_)) => None,
                    };
                }
                payload = self.progress.waiting(next()) => {
                    let payload = match payload {
                        Ok(payload) => payload,
                        Err(error) => return error,
                    };
                    if self.take(&payload).await && poll_at.is_none() {
                        poll_at = Some(polled.map_or_else(Instant::now, |polled| polled + POLL_GAP));
                    }
                }
            }
        }
    }

    /// Looks at one message; gives whether it is an event.
    async fn take(&self, payload: &[u8]) -> bool {
        let event: Event = match serde_json::from_slice(payload) {
            Ok(event) => event,
            Err(error) => {
                // Where, not what: the message may be anything.
                tracing::debug!(
                    line = error.line(),
                    column = error.column(),
                    bytes = payload.len(),
                    "message is no tenant event"
                );
                return false;
            }
        };
        tracing::debug!(event_type = event.event_type, tenant_id = event.tenant_id, "tenant event");
        if event.concerns_settings()
            && let Some(id) = event.tenant_id.as_deref().and_then(|id| TenantId::parse(id).ok())
        {
            // A manager that is gone has nothing to look up.
            let _ = self.manager.send(Hint(id)).await;
        }
        true
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::{
        cell::RefCell,
        collections::VecDeque,
        rc::Rc,
        sync::{Arc, Mutex},
    };

    use balance_sync_schedule::ErrorClass;

    use crate::tasks::TaskName;

    use super::*;

    /// Notes the calls it gets, and when.
    #[derive(Clone, Default)]
    struct Ear {
        polls: Arc<Mutex<Vec<Instant>>>,
        hints: Arc<Mutex<Vec<String>>>,
    }

    impl Actor for Ear {
        type Context = Context<Self>;
    }

    impl Handler<Poll> for Ear {
        type Result = ();
        fn handle(&mut self, _: Poll, _: &mut Self::Context) {
            self.polls.lock().unwrap().push(Instant::now());
        }
    }

    impl Handler<Hint> for Ear {
        type Result = ();
        fn handle(&mut self, Hint(id): Hint, _: &mut Self::Context) {
            self.hints.lock().unwrap().push(id.to_string());
        }
    }

    /// Plays messages, each after its delay, then the loss of the subscription. Gives polls (since the beginning) and hints.
    async fn hear(messages: &[(u64, &str)]) -> (Vec<Duration>, Vec<String>) {
        let ear = Ear::default();
        let address = ear.clone().start();
        let progress = Progress::unobserved(TaskName::TenantEvents);
        let listener = Listener { poll: address.clone().recipient(), manager: address.recipient(), progress };
        let begun = Instant::now();
        let messages: VecDeque<_> = messages
            .iter()
            .map(|(at, text)| (begun + Duration::from_millis(*at), (*text).to_owned()))
            .collect();
        let messages = Rc::new(RefCell::new(messages));
        let error = listener
            .hear(async || {
                let front = messages.borrow().front().cloned();
                let Some((at, text)) = front else {
                    tokio::time::sleep(Duration::from_secs(5)).await;
                    return Err(ScheduleError {
                        operation: "subscribe",
                        class: ErrorClass::Unavailable,
                        message: "lost".to_owned(),
                    });
                };
                tokio::time::sleep_until(at).await;
                messages.borrow_mut().pop_front();
                Ok(text.into_bytes())
            })
            .await;
        assert_eq!(error.message, "lost");
        let polls = ear.polls.lock().unwrap().iter().map(|at| at.duration_since(begun)).collect();
        let hints = ear.hints.lock().unwrap().clone();
        (polls, hints)
    }

    fn event(kind: &str, tenant: &str) -> String {
        format!(
            r#"{{"event_id":"1","event_type":"{kind}","tenant_id":"{tenant}","payload":{{"x":[1]}},"new":null}}"#
        )
    }

    #[actix_rt::test]
    async fn a_burst_of_events_is_one_poll_now_and_one_after_the_gap() {
        tokio::time::pause();
        let created = event("tenant.created", "acme");
        let burst: Vec<_> =
            (0..50).map(|n| (1000 + n * 3, created.as_str())).chain([(2000, created.as_str())]).collect();
        let (polls, hints) = hear(&burst).await;
        let millis: Vec<_> = polls.iter().map(Duration::as_millis).collect();
        // The first is for what was missed before the subscription.
        assert_eq!(millis.len(), 4, "{millis:?}");
        for (poll, expected) in millis.iter().zip([0, 1000, 1200, 2000]) {
            assert!(poll.abs_diff(expected) <= 2, "{millis:?}");
        }
        assert!(hints.is_empty(), "a new tenant has no settings to look up again");
    }

    #[actix_rt::test]
    async fn events_about_settings_are_hints_and_what_is_no_event_is_nothing() {
        tokio::time::pause();
        let kinds = [
            "tenant.credentials.rotated",
            "tenant.connections.updated",
            "tenant.cache.invalidate",
            "tenant.service.associated",
            "tenant.service.purged",
            "tenant.suspended",
            "tenant.deleted",
            "tenant.activated",
            "tenant.created",
            "tenant.renamed",
        ];
        let events: Vec<_> =
            kinds.iter().enumerate().map(|(n, kind)| event(kind, &format!("t{n}"))).collect();
        let messages: Vec<_> = events.iter().map(|event| (1000, event.as_str())).collect();
        let (_, hints) = hear(&messages).await;
        assert_eq!(hints, ["t0", "t1", "t2", "t3", "t4", "t5", "t6", "t7"]);

        let unknown_tenant = event("tenant.suspended", "../x");
        let nothing = [
            (1000, "not json"),
            (1000, "[]"),
            (1000, r#"{"tenant_id":"acme"}"#),
            (1000, r#"{"event_type":5}"#),
            (1000, ""),
        ];
        let (polls, hints) = hear(&nothing).await;
        assert_eq!((polls.len(), hints.len()), (1, 0), "only the poll at the beginning");
        let (polls, hints) =
            hear(&[(1000, &unknown_tenant), (3000, r#"{"event_type":"tenant.suspended"}"#)]).await;
        assert_eq!((polls.len(), hints.len()), (3, 0));
    }
}
