//! The push of metrics by OTLP: the families of `/metrics` and the ledger's own series, from a background task of its own.
//!
//! Nothing waits for it. What can't be pushed is dropped: the next push has the sums of all before it. The numbers are read,
//! encoded and sent request by request on a thread for blocking calls, and one push is under way at most, so that no thread that
//! syncs is used, and memory is bounded by one request and one family.

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use anyhow::Context as _;
use balance_sync_admin::Metrics;
use balance_sync_fleet::{
    lifecycle::name::WorkerName,
    status::{FleetStatus, PushOutcome},
    tasks::{Progress, TaskName},
};
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use tokio::{
    runtime::Handle,
    task::JoinHandle,
    time::{Instant, timeout, timeout_at},
};
use tokio_util::sync::CancellationToken;

use super::{
    otlp::Requests,
    receiver::{Driver, attributes},
    sender::{Failure, Sender},
};
use crate::config::{self, Otlp};

/// A new incident is not logged sooner than this after the last line …
const LOG_EVERY: Duration = Duration::from_secs(60);
/// … and one that goes on is logged again after this.
const REMIND_EVERY: Duration = Duration::from_secs(60 * 60);
/// Why a push has failed that was not done in time.
const LATE: &str = "the receiver is too slow, not all was sent in time";

/// The push of metrics, until [`finish`](Self::finish).
pub(crate) struct MetricsPush {
    stop: CancellationToken,
    task: JoinHandle<()>,
    /// Kept until the last push is done.
    _driver: Driver,
}

impl MetricsPush {
    /// Starts to push. Must be called inside an actix system. Whatever is wrong with the receiver or the way to it shows as failed
    /// pushes.
    ///
    /// # Errors
    /// When there is no thread to send from.
    pub(crate) fn start(
        settings: &config::Metrics,
        name: WorkerName,
        fleet: &Arc<FleetStatus>,
        metrics: Arc<Metrics>,
    ) -> anyhow::Result<Self> {
        let driver = Driver::start().context("telemetry")?;
        if let Some(limit) = settings.ledgers {
            metrics.push_ledgers(limit);
        }
        let otlp = settings.otlp.clone();
        tracing::info!(endpoint = %otlp.endpoint, protocol = otlp.protocol.name(), "metrics are pushed");
        let (interval, deadline) = (settings.interval, otlp.drain_deadline);
        // However many requests it takes and however slow the receiver: by then the next push is due, and has newer sums.
        let longest = interval.max(otlp.timeout);
        let pusher = Arc::new(Pusher {
            otlp,
            driver: driver.handle()?.clone(),
            sender: Mutex::default(),
            name,
            fleet: Arc::clone(fleet),
            metrics,
            started: since_1970(),
            incident: Mutex::default(),
        });
        let stop = CancellationToken::new();
        let ending = stop.clone();
        let bound = interval + longest;
        let task = fleet.tasks.keep(TaskName::MetricsPush, None, bound, stop.clone(), move |progress| {
            run(Arc::clone(&pusher), interval, longest, deadline, ending.clone(), progress)
        });
        Ok(Self { stop, task, _driver: driver })
    }

    /// Pushes once more, within the deadline.
    pub(crate) async fn finish(self) {
        self.stop.cancel();
        if let Err(error) = self.task.await {
            tracing::warn!(%error, "the push of metrics ended early");
        }
    }
}

async fn run(
    pusher: Arc<Pusher>,
    interval: Duration,
    longest: Duration,
    deadline: Duration,
    stop: CancellationToken,
    progress: Progress,
) {
    loop {
        progress.beat();
        // Waiting is no lack of progress, however long the interval.
        let waited = stop.run_until_cancelled(progress.waiting(tokio::time::sleep(interval))).await;
        if waited.is_none() {
            break;
        }
        match stop.run_until_cancelled(pusher.push(longest)).await {
            Some(pushed) => pusher.report(&pushed),
            None => break,
        }
    }
    let last = timeout(deadline, pusher.push(deadline)).await.unwrap_or_else(|_| Pushed::late());
    pusher.fleet.pushed(last.outcome());
    if let Some(problem) = last.problem {
        let (taken, rejected) = (last.taken, last.rejected);
        tracing::warn!(error = problem, taken, rejected, "the last push of metrics did not arrive whole");
    }
}

/// What has come of a push.
#[derive(Debug, Default)]
struct Pushed {
    /// Samples that the receiver took …
    taken: u64,
    /// … and that it did not.
    rejected: u64,
    /// The rest was not sent.
    is_cut: bool,
    /// Why some were not taken: the first reason, or the one that ended it.
    problem: Option<String>,
}

impl Pushed {
    fn late() -> Self {
        Self { is_cut: true, problem: Some(LATE.to_owned()), ..Self::default() }
    }

    fn outcome(&self) -> PushOutcome {
        match self.problem {
            None => PushOutcome::Ok,
            Some(_) if self.is_cut || self.taken == 0 => PushOutcome::Failed,
            Some(_) => PushOutcome::Partial,
        }
    }

    /// Counts the answer to a request with so many samples. A receiver may claim to have rejected any number of them.
    fn count(&mut self, samples: u64, answer: Result<(u64, String), Failure>) {
        match answer {
            Ok((0, _)) => self.taken += samples,
            Ok((rejected, reason)) => {
                let rejected = rejected.min(samples);
                self.taken += samples - rejected;
                self.rejected += rejected;
                let because = if reason.is_empty() { String::new() } else { format!(": {reason}") };
                self.problem.get_or_insert(format!("the receiver rejected samples{because}"));
            }
            Err(Failure::OfRequest(problem)) => {
                self.rejected += samples;
                self.problem.get_or_insert(problem);
            }
            Err(Failure::OfReceiver(problem)) => (self.is_cut, self.problem) = (true, Some(problem)),
        }
    }
}

/// Pushes that the receiver did not take whole, one after the other.
#[derive(Debug, Default)]
struct Incident {
    /// How many.
    pushes: u64,
    /// The present incident has been logged.
    is_known: bool,
    /// When one was logged last.
    logged: Option<Instant>,
}

struct Pusher {
    otlp: Otlp,
    /// Drives the connection.
    driver: Handle,
    /// Made at the first push, and anew after one that failed: files may have changed, and a connection may be dead without saying so.
    sender: Mutex<Option<Sender>>,
    name: WorkerName,
    fleet: Arc<FleetStatus>,
    metrics: Arc<Metrics>,
    started: Duration,
    incident: Mutex<Incident>,
}

impl Pusher {
    /// Pushes what there is now, for so long at most; ends when it is dropped.
    async fn push(self: &Arc<Self>, longest: Duration) -> Pushed {
        let (pusher, until) = (Arc::clone(self), Instant::now() + longest);
        let cancelled = CancellationToken::new();
        let _ending = cancelled.clone().drop_guard();
        match self.driver.spawn_blocking(move || pusher.push_here(until, &cancelled)).await {
            Ok(pushed) => pushed,
            // The task ends by it and starts again, which is counted and shown.
            Err(error) if error.is_panic() => std::panic::resume_unwind(error.into_panic()),
            Err(_) => Pushed::late(),
        }
    }

    /// The same on this thread, which it blocks.
    fn push_here(&self, until: Instant, cancelled: &CancellationToken) -> Pushed {
        let mut pushed = Pushed::default();
        let made = lock(&self.sender).take();
        let sender = match made.map_or_else(|| self.make_sender(), Ok) {
            Ok(sender) => sender,
            Err(error) => {
                pushed.count(0, Err(Failure::OfReceiver(format!("{error:#}"))));
                return pushed;
            }
        };
        let attributes = self.attributes();
        let send = |request: ExportMetricsServiceRequest, samples: usize| {
            if pushed.is_cut {
                return;
            }
            let sending = cancelled.run_until_cancelled(timeout_at(until, sender.send(request)));
            let answer = match self.driver.block_on(sending) {
                Some(Ok(answer)) => answer.map(|rejected| (rejected.samples, rejected.reason)),
                _ => Err(Failure::OfReceiver(LATE.to_owned())),
            };
            pushed.count(samples as u64, answer);
        };
        let mut requests = Requests::new(attributes, self.started, since_1970(), send);
        let read = self.metrics.export(&mut |exported| requests.add(exported));
        requests.finish();
        if let Err(error) = read {
            pushed.count(0, Err(Failure::OfReceiver(format!("reading the metrics: {error}"))));
        }
        if !pushed.is_cut {
            *lock(&self.sender) = Some(sender);
        }
        pushed
    }

    fn make_sender(&self) -> anyhow::Result<Sender> {
        let _entered = self.driver.enter();
        Sender::new(&self.otlp)
    }

    fn attributes(&self) -> BTreeMap<String, String> {
        attributes(&self.otlp, &self.name.current())
    }

    /// Counts a push, and logs the beginning and the end of an incident.
    fn report(&self, pushed: &Pushed) {
        let outcome = pushed.outcome();
        self.fleet.pushed(outcome);
        let mut incident = lock(&self.incident);
        let Some(error) = &pushed.problem else {
            if incident.is_known {
                tracing::info!(failed = incident.pushes, "metrics are pushed again");
            }
            (incident.is_known, incident.pushes) = (false, 0);
            return;
        };
        incident.pushes += 1;
        let pause = if incident.is_known { REMIND_EVERY } else { LOG_EVERY };
        if incident.logged.is_some_and(|at| at.elapsed() < pause) {
            return;
        }
        (incident.is_known, incident.logged) = (true, Some(Instant::now()));
        let (failed, taken, rejected) = (incident.pushes, pushed.taken, pushed.rejected);
        if outcome == PushOutcome::Partial {
            tracing::warn!(error, failed, taken, rejected, "the receiver of metrics takes only some of them");
        } else {
            tracing::warn!(
                error,
                failed,
                taken,
                rejected,
                "metrics can't be pushed, syncing goes on without that"
            );
        }
    }
}

/// Nothing under these locks can panic half-way.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn since_1970() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use std::net::SocketAddr;

    use balance_sync_domain::TenantId;
    use balance_sync_tenants::Tenant;
    use opentelemetry_proto::tonic::collector::metrics::v1::{
        ExportMetricsPartialSuccess, ExportMetricsServiceResponse,
    };
    use prost::Message as _;
    use tokio::{
        io::{AsyncReadExt as _, AsyncWriteExt as _},
        net::{TcpListener, TcpStream},
        task::JoinSet,
    };

    use super::*;
    use crate::config::OtlpProtocol;

    const SECRET: &str = "s3same-s3same";
    const PROTOBUF: &str = "content-type: application/x-protobuf\r\n";

    /// Status with reason, headers and body.
    type Answer = (&'static str, String, Vec<u8>);

    /// A receiver that answers the requests as it is told, by their number; `None`: not at all.
    struct Fake {
        address: SocketAddr,
        asked: Arc<Mutex<usize>>,
        _serving: JoinSet<()>,
    }

    impl Fake {
        async fn start(answer: impl Fn(usize) -> Option<Answer> + Send + Sync + 'static) -> Self {
            let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
            let address = listener.local_addr().unwrap();
            let (asked, answer) = (Arc::new(Mutex::new(0)), Arc::new(answer));
            let (count, mut serving) = (Arc::clone(&asked), JoinSet::new());
            serving.spawn(async move {
                let mut connections = JoinSet::new();
                while let Ok((mut stream, _)) = listener.accept().await {
                    let (count, answer) = (Arc::clone(&count), Arc::clone(&answer));
                    connections.spawn(async move {
                        while read_request(&mut stream).await.is_some() {
                            let number = {
                                let mut count = lock(&count);
                                *count += 1;
                                *count
                            };
                            let Some((status, headers, body)) = answer(number) else {
                                std::future::pending().await
                            };
                            let head = format!(
                                "HTTP/1.1 {status}\r\n{headers}content-length: {}\r\n\r\n",
                                body.len()
                            );
                            let _ = stream.write_all(&[head.into_bytes(), body].concat()).await;
                        }
                    });
                }
            });
            Self { address, asked, _serving: serving }
        }

        fn asked(&self) -> usize {
            *lock(&self.asked)
        }
    }

    async fn read_request(stream: &mut TcpStream) -> Option<()> {
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            head.push(stream.read_u8().await.ok()?);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        let (_, rest) = head.split_once("content-length: ").unwrap();
        let length: u64 = rest.lines().next().unwrap().parse().unwrap();
        tokio::io::copy(&mut stream.take(length), &mut tokio::io::sink()).await.ok().map(drop)
    }

    /// What answers when nothing is wrong.
    fn fine() -> Answer {
        ("200 OK", PROTOBUF.to_owned(), Vec::new())
    }

    /// One that pushes the metrics of some hundreds of tenants, in several requests.
    fn pusher(receiver: &Fake) -> (Driver, Arc<Pusher>) {
        let _ = rustls::crypto::ring::default_provider().install_default();
        let fleet = Arc::new(FleetStatus::default());
        for n in 0..400 {
            let _ = fleet.tenant(&Tenant::Id(TenantId::parse(&format!("t{n}")).unwrap()));
        }
        let driver = Driver::start().unwrap();
        let pusher = Pusher {
            otlp: Otlp {
                protocol: OtlpProtocol::HttpProtobuf,
                endpoint: format!("http://{}/v1/metrics", receiver.address).parse().unwrap(),
                headers: vec![("authorization".to_owned(), format!("Bearer {SECRET}").into())],
                ca_cert: None,
                timeout: Duration::from_secs(20),
                service_name: "sync".to_owned(),
                attributes: Vec::new(),
                drain_deadline: Duration::ZERO,
            },
            driver: driver.handle().unwrap().clone(),
            sender: Mutex::default(),
            name: WorkerName::from("w-1"),
            metrics: Arc::new(Metrics::new(Arc::clone(&fleet), usize::MAX, None)),
            fleet,
            started: since_1970(),
            incident: Mutex::default(),
        };
        (driver, Arc::new(pusher))
    }

    const LONG: Duration = Duration::from_secs(60);

    #[tokio::test]
    async fn all_samples_are_sent_in_several_requests() {
        let receiver = Fake::start(|_| Some(fine())).await;
        let (_driver, pusher) = pusher(&receiver);
        let pushed = pusher.push(LONG).await;
        assert_eq!((pushed.outcome(), pushed.problem), (PushOutcome::Ok, None));
        assert!(receiver.asked() >= 3 && pushed.taken > 10_000, "{} in {}", pushed.taken, receiver.asked());
        assert!(lock(&pusher.sender).is_some(), "the connection is kept");
    }

    #[tokio::test]
    async fn what_a_receiver_claims_is_bounded_and_what_it_says_is_shown_without_secrets() {
        let receiver = Fake::start(|_| {
            let partial = ExportMetricsPartialSuccess {
                rejected_data_points: i64::MAX,
                error_message: format!("\x1b[31mnot for Bearer {SECRET}, {SECRET}{}", "x".repeat(9_000)),
            };
            let body = ExportMetricsServiceResponse { partial_success: Some(partial) }.encode_to_vec();
            Some(("200 OK", PROTOBUF.to_owned(), body))
        })
        .await;
        let (_driver, pusher) = pusher(&receiver);
        let pushed = pusher.push(LONG).await;
        assert_eq!((pushed.outcome(), pushed.taken), (PushOutcome::Failed, 0));
        assert!(receiver.asked() >= 3 && (10_000..100_000).contains(&pushed.rejected), "{pushed:?}");
        let problem = pushed.problem.unwrap();
        assert!(problem.contains("\\u001b[31mnot for ***, ***x") && !problem.contains(SECRET), "{problem}");
        assert!(problem.len() < 400, "{problem}");
    }

    #[tokio::test]
    async fn a_request_that_is_refused_does_not_hold_up_the_others() {
        let status =
            |message: &str| [&[0x12, u8::try_from(message.len()).unwrap()], message.as_bytes()].concat();
        for (kind, body, reason) in [
            (PROTOBUF, status("a label is too long"), ": a label is too long"),
            ("content-type: text/plain; charset=utf-8\r\n", b"out of bounds\n".to_vec(), ": out of bounds"),
            ("content-type: text/html\r\n", b"<html>".to_vec(), ""),
        ] {
            let receiver = Fake::start(move |number| {
                Some(if number == 2 { ("400 Bad Request", kind.to_owned(), body.clone()) } else { fine() })
            })
            .await;
            let (_driver, pusher) = pusher(&receiver);
            let pushed = pusher.push(LONG).await;
            assert_eq!(pushed.outcome(), PushOutcome::Partial);
            assert!(
                receiver.asked() >= 3 && pushed.taken > pushed.rejected && pushed.rejected > 0,
                "{pushed:?}"
            );
            let problem = format!("the receiver answered 400 Bad Request{reason}");
            assert_eq!(pushed.problem, Some(problem));
        }
    }

    #[tokio::test]
    async fn a_receiver_that_takes_nothing_is_asked_once_and_redirects_are_not_followed() {
        let other = Fake::start(|_| Some(fine())).await;
        let elsewhere = format!("location: http://{}/v1/metrics\r\n", other.address);
        for (status, headers) in [
            ("503 Service Unavailable", String::new()),
            ("401 Unauthorized", String::new()),
            ("307 Temporary Redirect", elsewhere),
        ] {
            let receiver = Fake::start(move |_| Some((status, headers.clone(), Vec::new()))).await;
            let (_driver, pusher) = pusher(&receiver);
            let pushed = pusher.push(LONG).await;
            assert_eq!((pushed.outcome(), pushed.taken), (PushOutcome::Failed, 0), "{status}");
            assert_eq!(pushed.problem, Some(format!("the receiver answered {status}")));
            assert_eq!((receiver.asked(), other.asked()), (1, 0), "{status}");
            assert!(lock(&pusher.sender).is_none(), "the next push makes another connection");
        }
    }

    #[tokio::test]
    async fn a_push_ends_in_time_however_slow_the_receiver() {
        let receiver = Fake::start(|number| (number < 2).then(fine)).await;
        let (_driver, pusher) = pusher(&receiver);
        // Far less than one request may take.
        let pushed = pusher.push(Duration::from_secs(2)).await;
        assert_eq!((pushed.outcome(), pushed.problem.as_deref()), (PushOutcome::Failed, Some(LATE)));
        // Three requests and more would have been sent.
        assert!(receiver.asked() <= 2, "{}", receiver.asked());
    }

    #[tokio::test]
    async fn an_answer_without_end_is_not_read() {
        let receiver = Fake::start(|_| Some(("200 OK", PROTOBUF.to_owned(), vec![0; 1024 * 1024]))).await;
        let (_driver, pusher) = pusher(&receiver);
        let pushed = pusher.push(LONG).await;
        assert_eq!(pushed.problem.as_deref(), Some("the receiver's answer is too long"));
    }
}
