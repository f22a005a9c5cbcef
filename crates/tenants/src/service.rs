//! The directory behind the tenant service.
//!
//! A call goes through, in this order: single flight (several who ask for one tenant's database share one
//! request) · a bound on concurrent requests · the circuit breaker, at each attempt · the request · its
//! interpretation. Nothing is cached: what is returned was said by the service just now, so rotated
//! credentials are seen by the next call.
//!
//! What an answer means depends on the question: a `404` for a tenant means there is no such tenant, a
//! `404` for the list means that the service isn't there.

use std::collections::HashMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use balance_sync_domain::TenantId;
use balance_sync_engine::breaker::{Admission, Breaker, BreakerState};
use balance_sync_trace as trace;
use futures::FutureExt;
use futures::future::{Shared, WeakShared};
use rand::Rng;
use reqwest::StatusCode;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;
use url::Url;

use crate::database::TenantDatabase;
use crate::directory::{BoxFuture, DirectoryError, Listing, TenantDirectory};
use crate::settings::{ServiceSettings, SettingsError};
use crate::tenant::Tenant;
use crate::transport::{self, Answer, Blame, Failure};
use crate::wire::{self, ParsedListing, WireError};

/// Requests for databases under way at once: enough to start thousands of tenants in seconds, few enough
/// not to be the load that makes the service ill.
pub const MAX_CONCURRENT_DATABASE_REQUESTS: usize = 16;
/// Lists under way at once. Their own bound, so that a poll never waits behind thousands of tenants.
const MAX_CONCURRENT_LIST_REQUESTS: usize = 2;
/// Longest wait for one's turn. With a service that hangs the breaker empties the queue long before.
const MAX_QUEUE_WAIT: Duration = Duration::from_secs(60);
/// Upper end of the first pause between attempts; it doubles with each.
const RETRY_BASE: Duration = Duration::from_millis(200);
/// Upper end of any pause.
const RETRY_CAP: Duration = Duration::from_secs(2);
/// Bodies above this are parsed on a thread of their own: some milliseconds of work would stall every
/// tenant on this one.
const PARSE_INLINE_BYTES: usize = 256 * 1024;

/// What a call is named after in traces: few names, however many tenants.
const LIST_ROUTE: &str = "/v1/tenants/active";
const DATABASE_ROUTE: &str = "/v1/tenants/{id}/associations/{service}/connections";

/// Numbers for metrics and for the admin API.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServiceStats {
    /// Requests sent, each attempt counted.
    pub requests: u64,
    /// Requests that say the service is ill.
    pub failures: u64,
    /// Times the breaker opened.
    pub breaker_opened: u64,
    /// Whether requests pass now.
    pub breaker: BreakerState,
    /// Entries of the last list that weren't active.
    pub not_active: u64,
    /// Entries of the last list that repeated an id.
    pub duplicates: u64,
}

/// The tenant service as a [`TenantDirectory`]. Clones share connections, breaker and flights.
///
/// Connections of the HTTP pool are driven by the runtime that opened them: a directory shouldn't outlive
/// it by much.
#[derive(Clone)]
pub struct ServiceDirectory {
    inner: Arc<Inner>,
}

type Flight = Shared<BoxFuture<'static, Result<TenantDatabase, DirectoryError>>>;
type Flying = WeakShared<BoxFuture<'static, Result<TenantDatabase, DirectoryError>>>;

struct Inner {
    settings: ServiceSettings,
    client: reqwest::Client,
    breaker: Mutex<Breaker<Tenant>>,
    /// Requests under way by tenant, numbered. Weak: a request whose callers have given up ends.
    flights: Mutex<HashMap<TenantId, (u64, Flying)>>,
    last_flight: AtomicU64,
    list_turns: Semaphore,
    database_turns: Semaphore,
    counts: Counts,
}

#[derive(Default)]
struct Counts {
    requests: AtomicU64,
    failures: AtomicU64,
    breaker_opened: AtomicU64,
    not_active: AtomicU64,
    duplicates: AtomicU64,
}

impl ServiceDirectory {
    /// A directory that has not connected yet.
    ///
    /// # Errors
    /// Settings that can't be used. Reads the file of root certificates, or the system's.
    pub fn new(settings: ServiceSettings) -> Result<Self, SettingsError> {
        settings.validate()?;
        let client = settings.client()?;
        let breaker = Mutex::new(Breaker::new(settings.breaker_threshold, settings.breaker_timeout));
        Ok(Self {
            inner: Arc::new(Inner {
                settings,
                client,
                breaker,
                flights: Mutex::default(),
                last_flight: AtomicU64::new(0),
                list_turns: Semaphore::new(MAX_CONCURRENT_LIST_REQUESTS),
                database_turns: Semaphore::new(MAX_CONCURRENT_DATABASE_REQUESTS),
                counts: Counts::default(),
            }),
        })
    }

    /// How it went so far.
    pub fn stats(&self) -> ServiceStats {
        let counts = &self.inner.counts;
        let read = |count: &AtomicU64| count.load(Ordering::Relaxed);
        ServiceStats {
            requests: read(&counts.requests),
            failures: read(&counts.failures),
            breaker_opened: read(&counts.breaker_opened),
            breaker: lock(&self.inner.breaker).state(),
            not_active: read(&counts.not_active),
            duplicates: read(&counts.duplicates),
        }
    }
}

impl TenantDirectory for ServiceDirectory {
    fn active(&self) -> BoxFuture<'_, Result<Listing, DirectoryError>> {
        self.inner.active().boxed()
    }

    fn database(&self, tenant: &Tenant) -> BoxFuture<'_, Result<TenantDatabase, DirectoryError>> {
        match tenant {
            Tenant::Id(id) => self.inner.flight(id).boxed(),
            // The service has no tenant without an id.
            Tenant::Single => futures::future::ready(Err(DirectoryError::NotFound)).boxed(),
        }
    }

    fn service_stats(&self) -> Option<ServiceStats> {
        Some(self.stats())
    }
}

impl fmt::Debug for ServiceDirectory {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ServiceDirectory").field("settings", &self.inner.settings).finish_non_exhaustive()
    }
}

impl Inner {
    async fn active(&self) -> Result<Listing, DirectoryError> {
        let mut url = self.url(&["v1", "tenants", "active"])?;
        url.query_pairs_mut().append_pair("service", &self.settings.service);
        let _turn = turn(&self.list_turns).await?;
        let ParsedListing { listing, not_active, duplicates } =
            self.call(url, LIST_ROUTE, Blame::Service, |answer| interpret_listing(&answer)).await?;
        self.counts.not_active.store(not_active as u64, Ordering::Relaxed);
        self.counts.duplicates.store(duplicates as u64, Ordering::Relaxed);
        tracing::debug!(
            active = listing.tenants.len(),
            refused = listing.refused.len(),
            not_active,
            duplicates,
            "tenant list read"
        );
        Ok(listing)
    }

    async fn database(&self, id: &TenantId) -> Result<TenantDatabase, DirectoryError> {
        let path = ["v1", "tenants", id.as_str(), "associations", &self.settings.service, "connections"];
        let url = self.url(&path)?;
        let _turn = turn(&self.database_turns).await?;
        let interpret = |answer: Answer| interpret_connections(&answer);
        self.call(url, DATABASE_ROUTE, Blame::Tenant(Tenant::Id(id.clone())), interpret).await
    }

    /// Joins the request for this tenant that is under way, or starts one.
    fn flight(self: &Arc<Self>, id: &TenantId) -> Flight {
        let mut flights = lock(&self.flights);
        if let Some(flight) = flights.get(id).and_then(|(_, flying)| flying.upgrade()) {
            return flight;
        }
        let number = self.last_flight.fetch_add(1, Ordering::Relaxed);
        let landing = Landing { inner: Arc::clone(self), id: id.clone(), number };
        let flight = async move { landing.inner.database(&landing.id).await }.boxed().shared();
        if let Some(flying) = flight.downgrade() {
            flights.insert(id.clone(), (number, flying));
        }
        flight
    }

    /// One call: attempts until an answer, a failure that won't get better, or the deadline.
    async fn call<T, F>(
        &self,
        url: Url,
        route: &str,
        subject: Blame,
        interpret: F,
    ) -> Result<T, DirectoryError>
    where
        T: Send + 'static,
        F: Fn(Answer) -> Result<T, Failure> + Clone + Send + 'static,
    {
        let deadline = Instant::now() + self.settings.request_timeout;
        let mut last = None;
        for attempt in 0.. {
            let pass = match Pass::new(self) {
                Ok(pass) => pass,
                // When the breaker opened during this call, what opened it tells more than that it did.
                Err(retry_in) => return Err(last.unwrap_or(DirectoryError::BreakerOpen { retry_in })),
            };
            self.counts.requests.fetch_add(1, Ordering::Relaxed);
            let span = trace::current().request(format!("GET {route}"));
            if let Blame::Tenant(tenant) = &subject {
                span.set("tenant_id", tenant.label().to_owned());
            }
            span.set("http.request.resend_count", i64::from(attempt));
            let most = self.settings.max_body_bytes;
            let outcome = match transport::get(&self.client, url.clone(), deadline, most, &span).await {
                Ok(answer) => interpreted(answer, interpret.clone()).await,
                Err(failure) => Err(failure),
            };
            if let Err(failure) = &outcome {
                span.fail(failure.error.kind(), || failure.error.to_string());
            }
            drop(span);
            pass.report(outcome.as_ref().err(), &subject);
            let failure = match outcome {
                Ok(value) => return Ok(value),
                Err(failure) => failure,
            };
            let Some(pause) = self.pause(attempt, &failure, deadline) else { return Err(failure.error) };
            let pause_ms = pause.as_millis();
            tracing::debug!(error = %failure.error, attempt, pause_ms, "tenant service call retried");
            tokio::time::sleep(pause).await;
            last = Some(failure.error);
        }
        // Not reached: the attempts are counted in `pause`.
        Err(last.unwrap_or_else(|| DirectoryError::unavailable("not asked")))
    }

    /// Time until the next attempt, with full jitter so that workers don't return in step; `None` when
    /// there is none.
    fn pause(&self, attempt: u32, failure: &Failure, deadline: Instant) -> Option<Duration> {
        if !failure.retry || attempt >= self.settings.retries {
            return None;
        }
        let most = RETRY_BASE.saturating_mul(1 << attempt.min(16)).min(RETRY_CAP);
        let jitter = most.mul_f64(rand::rng().random::<f64>());
        let pause = jitter.max(failure.retry_after.unwrap_or_default());
        (pause < deadline.saturating_duration_since(Instant::now())).then_some(pause)
    }

    /// The base with these segments after it, each percent-encoded.
    fn url(&self, segments: &[&str]) -> Result<Url, DirectoryError> {
        let mut url = self.settings.base_url.clone();
        url.path_segments_mut()
            .map_err(|()| DirectoryError::unavailable("base URL can not have a path"))?
            .pop_if_empty()
            .extend(segments);
        Ok(url)
    }
}

/// Takes a flight off the list when it has landed or been given up; a later one of the same tenant stays.
struct Landing {
    inner: Arc<Inner>,
    id: TenantId,
    number: u64,
}

impl Drop for Landing {
    fn drop(&mut self) {
        let mut flights = lock(&self.inner.flights);
        if flights.get(&self.id).is_some_and(|(number, _)| *number == self.number) {
            flights.remove(&self.id);
        }
    }
}

/// Leave of the breaker for one request. A request that is dropped half-way gives it back, or a lost probe
/// would leave the breaker waiting for ever.
struct Pass<'a> {
    inner: &'a Inner,
    admission: Option<Admission>,
}

impl<'a> Pass<'a> {
    fn new(inner: &'a Inner) -> Result<Self, Duration> {
        let admission = lock(&inner.breaker).admit(Instant::now().into_std())?;
        Ok(Self { inner, admission: Some(admission) })
    }

    fn report(mut self, failure: Option<&Failure>, subject: &Blame) {
        let Some(admission) = self.admission.take() else { return };
        let Some(blame) = failure.and_then(|failure| failure.fault.blame(subject)) else {
            let mut breaker = lock(&self.inner.breaker);
            let was_open = breaker.is_open();
            breaker.success(admission);
            if was_open && !breaker.is_open() {
                tracing::info!("tenant service answers again, circuit breaker closed");
            }
            return;
        };
        self.inner.counts.failures.fetch_add(1, Ordering::Relaxed);
        let opened = lock(&self.inner.breaker).failure(admission, blame, Instant::now().into_std());
        if opened {
            self.inner.counts.breaker_opened.fetch_add(1, Ordering::Relaxed);
            let open_ms = self.inner.settings.breaker_timeout.as_millis();
            tracing::warn!(
                error = failure.map(|failure| tracing::field::display(&failure.error)),
                open_ms,
                "tenant service fails, circuit breaker opened"
            );
        }
    }
}

impl Drop for Pass<'_> {
    fn drop(&mut self) {
        if let Some(admission) = self.admission.take() {
            lock(&self.inner.breaker).abandon(admission);
        }
    }
}

async fn turn(turns: &Semaphore) -> Result<SemaphorePermit<'_>, DirectoryError> {
    match tokio::time::timeout(MAX_QUEUE_WAIT, turns.acquire()).await {
        Ok(Ok(permit)) => Ok(permit),
        // The semaphores are never closed.
        Ok(Err(_)) => Err(DirectoryError::unavailable("shut down")),
        Err(_) => {
            let waited = MAX_QUEUE_WAIT.as_secs();
            Err(DirectoryError::unavailable(format!("too many requests before this one for {waited} s")))
        }
    }
}

async fn interpreted<T, F>(answer: Answer, interpret: F) -> Result<T, Failure>
where
    T: Send + 'static,
    F: FnOnce(Answer) -> Result<T, Failure> + Send + 'static,
{
    if answer.body.len() <= PARSE_INLINE_BYTES {
        return interpret(answer);
    }
    let parsed = tokio::task::spawn_blocking(move || interpret(answer)).await;
    parsed.unwrap_or_else(|_| {
        Err(Failure::answered(DirectoryError::unavailable("reading the answer was cut short")))
    })
}

fn interpret_listing(answer: &Answer) -> Result<ParsedListing, Failure> {
    match answer.status {
        StatusCode::OK => wire::parse_listing(&answer.body).map_err(unreadable),
        StatusCode::FORBIDDEN => Err(Failure::answered(match wire::refusal(&answer.body) {
            // There is no tenant here that could be suspended.
            DirectoryError::Suspended => DirectoryError::Forbidden { status: Some("suspended".to_owned()) },
            DirectoryError::Purged => DirectoryError::Forbidden { status: Some("purged".to_owned()) },
            other => other,
        })),
        _ => Err(Failure::of_status(answer)),
    }
}

fn interpret_connections(answer: &Answer) -> Result<TenantDatabase, Failure> {
    match answer.status {
        StatusCode::OK => wire::parse_connections(&answer.body).map_err(unreadable),
        StatusCode::FORBIDDEN => Err(Failure::answered(wire::refusal(&answer.body))),
        StatusCode::NOT_FOUND if wire::is_own_not_found(&answer.body) => {
            Err(Failure::answered(DirectoryError::NotFound))
        }
        StatusCode::NOT_FOUND => {
            // To stop every tenant because a proxy has lost its way would be the worst of answers.
            let reason = "HTTP status 404 with a body that is not JSON: not from the tenant service";
            Err(Failure::ill(DirectoryError::unavailable(reason)))
        }
        _ => Err(Failure::of_status(answer)),
    }
}

fn unreadable(error: WireError) -> Failure {
    match error {
        WireError::Body(_) => Failure::ill(error.into()),
        WireError::Content(error) => Failure::answered(error),
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Nothing panics while holding these locks, and each change under them is complete in itself.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use super::*;

    /// A directory whose service refuses connections: there is no listener on TCP port 1.
    fn directory() -> ServiceDirectory {
        let mut settings = ServiceSettings::new("http://127.0.0.1:1".parse().unwrap(), "key".into());
        settings.allow_plain_http = true;
        settings.retries = 0;
        ServiceDirectory::new(settings).unwrap()
    }

    #[tokio::test]
    async fn a_flight_leaves_nothing_behind() {
        let directory = directory();
        let acme = Tenant::Id(TenantId::parse("acme").unwrap());
        let flying = || lock(&directory.inner.flights).len();
        let (first, second) = (directory.database(&acme), directory.database(&acme));
        assert_eq!(flying(), 1);
        assert!(first.await.unwrap_err().is_transient());
        assert_eq!(flying(), 0, "landed, though the second caller hasn't looked yet");
        assert_eq!(second.await.unwrap_err().kind(), "unavailable");

        drop(directory.database(&acme));
        assert_eq!(flying(), 0, "given up before it began");
    }
}
