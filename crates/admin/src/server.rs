//! The listener: one thread, small limits, and the table of paths.
//!
//! It must answer even when the worker is busy, so it has a thread of its own, and rendering metrics happens beside
//! that thread. It takes no signals: when the worker ends is decided elsewhere, and this interface is stopped last, so
//! that a drain can be watched.

use std::{
    any::Any,
    io,
    net::{SocketAddr, TcpListener},
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    rc::Rc,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use actix_http::{HttpService, KeepAlive};
use actix_rt::{System, task::JoinHandle};
use actix_service::{IntoServiceFactory, Service, ServiceFactory, ServiceFactoryExt, map_config};
use actix_web::{
    App, HttpRequest, HttpResponse, Resource, ResponseError,
    dev::AppConfig,
    guard,
    http::header::ContentType,
    middleware::{DefaultHeaders, from_fn},
    web::{self, Data, ServiceConfig},
};
use balance_sync_fleet::{
    status::FleetStatus,
    tasks::{Panicked, TaskName, Tasks},
};
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use crate::{
    api::{self, Access, Api},
    health::{self, Verdict},
    listener::{self, Connections, Guarded, Places},
    metrics::{CONTENT_TYPE, ConnectionSource, Metrics},
    ui,
};

/// Connections at a time, and of one address among them: scrapers, probes and a few browsers behind one proxy.
const PLACES: Places = Places { of_all: 256, of_a_peer: 96 };
/// A client that takes longer to send a request's head is cut off.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);
/// Longer than most scrape intervals, so that scrapers can keep their connection.
const KEEP_ALIVE: Duration = Duration::from_secs(65);
/// How long [`AdminServer::stop`] waits for answers under way.
const STOP_WITHIN: Duration = Duration::from_secs(2);
/// How often it looks whether they have ended.
const STOP_LOOKS: Duration = Duration::from_millis(10);
/// Threads for rendering; scrapes beyond that wait in line.
const RENDER_THREADS: usize = 2;

/// How the interface is reached and what it shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AdminSettings {
    /// Where it listens; port 0 takes a free one.
    pub listen: SocketAddr,
    /// How many tenants get time series of their own at `/metrics`; the others are summed under `other`.
    pub metrics_tenants: usize,
}

/// The interface, listening. Dropping it leaves it running until the system ends.
#[derive(Debug)]
pub struct AdminServer {
    address: SocketAddr,
    stop: CancellationToken,
    task: JoinHandle<Result<io::Result<()>, Panicked>>,
    /// Ends the event streams.
    streams: Option<CancellationToken>,
}

impl AdminServer {
    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Stops listening, lets answers under way end for at most two seconds, and returns when all is closed.
    pub async fn stop(self) {
        // They would go on for ever.
        if let Some(streams) = &self.streams {
            streams.cancel();
        }
        self.stop.cancel();
        match self.task.await {
            Ok(Ok(Ok(()))) => tracing::debug!(address = %self.address, "admin interface stopped"),
            Ok(Ok(Err(error))) => {
                tracing::warn!(address = %self.address, %error, "admin interface ended with an error");
            }
            Ok(Err(Panicked)) => tracing::warn!(address = %self.address, "admin interface panicked"),
            Err(error) => tracing::warn!(address = %self.address, %error, "admin interface ended early"),
        }
    }
}

/// What the handlers read.
#[derive(Debug)]
struct Shared {
    status: Arc<FleetStatus>,
    started: Instant,
    metrics: Arc<Metrics>,
}

/// Binds and answers from then on. `started` is the moment from which [`FleetStatus::last_pass_ms`] counts. Must be
/// called inside an actix system.
///
/// # Errors
///
/// When the address can't be listened on, or outside an actix system.
pub fn start(settings: AdminSettings, status: Arc<FleetStatus>, started: Instant) -> io::Result<AdminServer> {
    let metrics = Metrics::new(Arc::clone(&status), settings.metrics_tenants, None);
    serve(settings.listen, status, started, Arc::new(metrics), None)
}

/// As [`start`], with gauges of the connections on each Postgres server.
///
/// # Errors
///
/// As [`start`].
pub fn start_with_connections(
    settings: AdminSettings,
    status: Arc<FleetStatus>,
    started: Instant,
    connections: ConnectionSource,
) -> io::Result<AdminServer> {
    let metrics = Metrics::new(Arc::clone(&status), settings.metrics_tenants, Some(connections));
    serve(settings.listen, status, started, Arc::new(metrics), None)
}

/// As [`start`], with the API, and with metrics that others read as well.
///
/// # Errors
///
/// As [`start`].
pub fn start_with_api(
    listen: SocketAddr,
    status: Arc<FleetStatus>,
    started: Instant,
    metrics: Arc<Metrics>,
    api: Api,
) -> io::Result<AdminServer> {
    serve(listen, status, started, metrics, Some(api))
}

fn serve(
    listen: SocketAddr,
    status: Arc<FleetStatus>,
    started: Instant,
    metrics: Arc<Metrics>,
    api: Option<Api>,
) -> io::Result<AdminServer> {
    if System::try_current().is_none() {
        return Err(io::Error::other("the admin interface has to be started inside an actix system"));
    }
    let tasks = status.tasks.clone();
    let shared_tasks = Data::new(tasks.clone());
    let shared = Data::new(Shared { status, started, metrics });
    let streams = api.as_ref().map(Api::stop);
    let access = Data::new(api.as_ref().map(Api::access).unwrap_or_default());
    let api = api.map(Data::new);
    let listener = bind(listen)
        .map_err(|error| io::Error::new(error.kind(), format!("can't listen on {listen}: {error}")))?;
    let address = listener.local_addr()?;
    let stop = CancellationToken::new();
    let parts = Parts { shared, tasks: tasks.clone(), shared_tasks, access, api };
    let (done, ended) = oneshot::channel::<Result<io::Result<()>, Box<dyn Any + Send>>>();
    let stopping = stop.clone();
    thread::Builder::new().name("admin".to_owned()).spawn(move || {
        let run = || {
            let runtime = || {
                let mut runtime = tokio::runtime::Builder::new_current_thread();
                runtime
                    .enable_all()
                    .max_blocking_threads(RENDER_THREADS)
                    .build()
                    .expect("a runtime can be built")
            };
            System::with_tokio_rt(runtime).block_on(listen_on(listener, parts, stopping))
        };
        let _ = done.send(catch_unwind(AssertUnwindSafe(run)));
    })?;
    let task = tasks.once(TaskName::AdminServer, async move {
        match ended.await {
            Ok(Ok(result)) => result,
            Ok(Err(panic)) => resume_unwind(panic),
            Err(_) => Err(io::Error::other("its thread has ended")),
        }
    });
    tracing::info!(%address, "admin interface listens");
    Ok(AdminServer { address, stop, task, streams })
}

/// Listens, also where a connection of the process before is still closing.
fn bind(listen: SocketAddr) -> io::Result<TcpListener> {
    let listener = TcpListener::bind(listen)?;
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// What the application is made of.
struct Parts {
    shared: Data<Shared>,
    tasks: Tasks,
    shared_tasks: Data<Tasks>,
    access: Data<Access>,
    api: Option<Data<Api>>,
}

/// Serves until `stop`, then until the answers under way are out.
async fn listen_on(listener: TcpListener, parts: Parts, stop: CancellationToken) -> io::Result<()> {
    let Parts { shared, tasks, shared_tasks, access, api } = parts;
    let application = move || {
        let api = api.clone();
        App::new()
            .app_data(shared.clone())
            .app_data(shared_tasks.clone())
            .app_data(access.clone())
            .wrap(from_fn(listener::count))
            .wrap(
                DefaultHeaders::new()
                    .add(("x-content-type-options", "nosniff"))
                    .add(("x-frame-options", "DENY"))
                    .add(("referrer-policy", "no-referrer"))
                    .add(("content-security-policy", "default-src 'self'"))
                    .add(("cache-control", "no-store")),
            )
            .configure(|config| {
                if let Some(api) = api {
                    config.app_data(api).configure(api::routes);
                }
            })
            .configure(routes)
    };
    let application = application().into_factory().map_err(|error| error.error_response());
    let ending = stop.clone();
    let service = HttpService::build()
        .keep_alive(KeepAlive::Timeout(KEEP_ALIVE))
        .client_request_timeout(REQUEST_TIMEOUT)
        .graceful_shutdown_signal(move || ending.clone().cancelled_owned())
        .on_connect_ext(|stream: &Guarded, extensions| {
            extensions.insert(Rc::clone(&stream.connection));
        })
        .h1(map_config(application, |()| AppConfig::default()))
        .new_service(())
        .await
        .map_err(|()| io::Error::other("the application can't be built"))?;
    let service = Rc::new(service);
    let connections = Rc::new(Connections::new(PLACES));
    let spawn = move |serving| drop(tasks.once(TaskName::AdminServer, serving));
    let serve = |stream, peer| {
        let service = Rc::clone(&service);
        async move {
            if let Err(error) = service.call((stream, Some(peer))).await {
                tracing::debug!(%error, "a connection to the admin interface has failed");
            }
        }
    };
    let listener = tokio::net::TcpListener::from_std(listener)?;
    Rc::clone(&connections).accept(listener, stop, spawn, serve).await;
    let deadline = Instant::now() + STOP_WITHIN;
    while !connections.is_empty() && Instant::now() < deadline {
        actix_rt::time::sleep(STOP_LOOKS).await;
    }
    Ok(())
}

/// All paths beside the API's. None of their handlers reads a request's body; those of the API read small ones, within a
/// bound of time (`api::body`).
fn routes(config: &mut ServiceConfig) {
    config
        .service(readable("/livez", web::to(livez)))
        .service(readable("/readyz", web::to(readyz)))
        .service(readable("/metrics", web::to(metrics)))
        .configure(ui::routes)
        .default_service(web::to(not_found));
}

/// A path that answers GET and HEAD, and 405 to everything else.
fn readable(path: &str, route: actix_web::Route) -> Resource {
    web::resource(path)
        .route(route.guard(guard::Any(guard::Get()).or(guard::Head())))
        .default_service(web::to(method_not_allowed))
}

async fn livez(shared: Data<Shared>) -> HttpResponse {
    answer(health::liveness(&shared.status, shared.started.elapsed()))
}

async fn readyz(shared: Data<Shared>) -> HttpResponse {
    answer(health::readiness(&shared.status))
}

fn answer(verdict: Verdict) -> HttpResponse {
    match verdict {
        Ok(text) => plain(HttpResponse::Ok(), text),
        Err(reason) => plain(HttpResponse::ServiceUnavailable(), &reason),
    }
}

async fn metrics(shared: Data<Shared>, access: Data<Access>, request: HttpRequest) -> HttpResponse {
    if let Err(problem) = access.may_read(&request).await {
        return problem.error_response();
    }
    match web::block(move || shared.metrics.render()).await {
        Ok(Ok(text)) => HttpResponse::Ok().content_type(CONTENT_TYPE).body(text),
        Ok(Err(error)) => {
            tracing::error!(%error, "metrics can't be rendered");
            plain(HttpResponse::InternalServerError(), "metrics can't be rendered")
        }
        // The pool that renders is closed: the server stops.
        Err(_) => plain(HttpResponse::ServiceUnavailable(), "stopping"),
    }
}

async fn not_found() -> HttpResponse {
    plain(HttpResponse::NotFound(), "not found")
}

async fn method_not_allowed() -> HttpResponse {
    let mut response = HttpResponse::MethodNotAllowed();
    response.insert_header(("allow", "GET, HEAD"));
    plain(response, "method not allowed")
}

fn plain(mut response: actix_web::HttpResponseBuilder, text: &str) -> HttpResponse {
    response.content_type(ContentType::plaintext()).body(format!("{text}\n"))
}
