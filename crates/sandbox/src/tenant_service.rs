//! A tenant service: the HTTP side of the ledger's tenant manager, with faults on demand.
//!
//! It answers what the protocol says and, on either of its two routes, whatever a test wants an ill
//! service to answer instead.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use actix_web::dev::ServerHandle;
use actix_web::http::StatusCode;
use actix_web::web::{self, Bytes, Data};
use actix_web::{App, HttpRequest, HttpResponse, HttpServer};
use anyhow::{Context, Result, anyhow};
use futures::stream;
use secrecy::{ExposeSecret, SecretString};
use serde_json::{Value, json};

/// The only service whose tenants it knows.
pub const SERVICE: &str = "ledger";
/// Header that carries the API key.
const API_KEY_HEADER: &str = "X-API-Key";
/// Piece by which a huge body is sent.
const BODY_PIECE: usize = 64 * 1024;

/// How a tenant's data are kept apart from others'.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TenantIsolation {
    /// A database of its own.
    #[default]
    Database,
    /// A schema of its own in a shared database.
    Schema,
}

/// Whether a tenant may be served.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum TenantStatus {
    /// Listed and served.
    #[default]
    Active,
    /// Not listed; its connections answer 403.
    Suspended,
    /// Not listed; its connections answer 403.
    Purged,
}

impl TenantStatus {
    fn as_str(self) -> &'static str {
        match self {
            Self::Active => "active",
            Self::Suspended => "suspended",
            Self::Purged => "purged",
        }
    }
}

/// What the service knows of a tenant.
#[derive(Debug, Clone)]
pub struct TenantRecord {
    /// Its id, as it is listed.
    pub id: String,
    /// Its name.
    pub name: String,
    /// Its short name.
    pub slug: String,
    /// How its data are kept apart.
    pub isolation: TenantIsolation,
    /// Host of its PostgreSQL.
    pub host: String,
    /// Port of its PostgreSQL.
    pub port: u16,
    /// Its database.
    pub database: String,
    /// Its role.
    pub username: String,
    /// The role's password.
    pub password: SecretString,
    /// Its schema, if it has one of its own.
    pub schema: Option<String>,
    /// Whether it may be served.
    pub status: TenantStatus,
    /// `maxOpenConns`; `None` leaves the connection settings out.
    pub max_open_conns: Option<u32>,
    /// `statementTimeout`, a PostgreSQL interval such as `30s`.
    pub statement_timeout: Option<String>,
}

impl TenantRecord {
    fn in_list(&self) -> Value {
        json!({ "id": self.id, "name": self.name, "status": self.status.as_str() })
    }

    fn connections(&self) -> Value {
        let isolation = match self.isolation {
            TenantIsolation::Database => "isolated",
            TenantIsolation::Schema => "schema",
        };
        let mut postgresql = json!({
            "host": self.host,
            "port": self.port,
            "database": self.database,
            "username": self.username,
            "password": self.password.expose_secret(),
            "sslmode": "disable",
        });
        if let Some(schema) = &self.schema {
            postgresql["schema"] = json!(schema);
        }
        let mut module = json!({ "postgresql": postgresql, "postgresqlReplica": {} });
        let mut settings = serde_json::Map::new();
        if let Some(most) = self.max_open_conns {
            settings.insert("maxOpenConns".into(), json!(most));
            settings.insert("maxIdleConns".into(), json!(most.min(5)));
        }
        if let Some(timeout) = &self.statement_timeout {
            settings.insert("statementTimeout".into(), json!(timeout));
        }
        if !settings.is_empty() {
            module["connectionSettings"] = Value::Object(settings);
        }
        json!({
            "id": self.id,
            "tenantSlug": self.slug,
            "tenantName": self.name,
            "service": SERVICE,
            "status": self.status.as_str(),
            "isolationMode": isolation,
            "databases": { "transaction": module },
        })
    }
}

/// What a route does instead of answering.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub enum ServiceFault {
    /// It answers.
    #[default]
    None,
    /// This HTTP status with an error as JSON.
    Status(u16),
    /// 200 with a body that is no JSON.
    Garbage,
    /// 200 without a body.
    EmptyBody,
    /// 200 and `[]`: on the list, "there are no tenants".
    EmptyList,
    /// The right answer, this much later.
    Slow(Duration),
    /// No answer; the connection stays open.
    Hang,
    /// The right answer after at least this many bytes of blanks: valid, but no client should read it.
    HugeBody(usize),
}

/// One of the two routes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ServiceRoute {
    /// `GET /v1/tenants/active`.
    List,
    /// `GET /v1/tenants/{id}/associations/{service}/connections`.
    Connections,
}

#[derive(Debug)]
struct Shared {
    api_key: SecretString,
    known: Mutex<Known>,
    list_calls: AtomicU64,
    connections_calls: AtomicU64,
    refused_calls: AtomicU64,
    traceparents: Mutex<Vec<(ServiceRoute, String)>>,
}

#[derive(Debug, Default)]
struct Known {
    tenants: BTreeMap<String, TenantRecord>,
    list_raw: Option<String>,
    connections_raw: BTreeMap<String, String>,
    list_fault: ServiceFault,
    connections_fault: ServiceFault,
}

impl Shared {
    fn known(&self) -> MutexGuard<'_, Known> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps in which trace a call was made, if it says so.
    fn note_trace(&self, route: ServiceRoute, request: &HttpRequest) {
        if let Some(parent) = request.headers().get("traceparent").and_then(|value| value.to_str().ok()) {
            let mut seen = self.traceparents.lock().unwrap_or_else(PoisonError::into_inner);
            seen.push((route, parent.to_owned()));
        }
    }

    fn is_authorized(&self, request: &HttpRequest) -> bool {
        let given = request.headers().get(API_KEY_HEADER).and_then(|value| value.to_str().ok());
        let authorized = given == Some(self.api_key.expose_secret());
        if !authorized {
            self.refused_calls.fetch_add(1, Ordering::Relaxed);
        }
        authorized
    }
}

/// A running tenant service on 127.0.0.1, in a thread of its own. Ends when dropped.
pub struct TenantService {
    shared: Arc<Shared>,
    port: u16,
    server: ServerHandle,
    thread: Option<JoinHandle<()>>,
}

impl fmt::Debug for TenantService {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TenantService").field("port", &self.port).finish_non_exhaustive()
    }
}

impl TenantService {
    /// Starts a service without tenants on a free port; calls must carry this API key.
    ///
    /// # Errors
    /// When it can't listen.
    pub fn start(api_key: SecretString) -> Result<Self> {
        let shared = Arc::new(Shared {
            api_key,
            known: Mutex::default(),
            list_calls: AtomicU64::new(0),
            connections_calls: AtomicU64::new(0),
            refused_calls: AtomicU64::new(0),
            traceparents: Mutex::default(),
        });
        let (report, reported) = std::sync::mpsc::channel();
        let data = Data::from(Arc::clone(&shared));
        let thread = thread::Builder::new()
            .name("tenant-service".into())
            .spawn(move || {
                let run = async move {
                    let server = HttpServer::new(move || {
                        App::new()
                            .app_data(data.clone())
                            .route("/v1/tenants/active", web::get().to(list))
                            .route(
                                "/v1/tenants/{id}/associations/{service}/connections",
                                web::get().to(connections),
                            )
                    })
                    .workers(1)
                    .disable_signals()
                    // A hanging call must not hold up the end.
                    .shutdown_timeout(0)
                    .bind(("127.0.0.1", 0));
                    let (server, port) = match server {
                        Ok(server) => {
                            let port = server.addrs().first().map(std::net::SocketAddr::port);
                            (server.run(), port)
                        }
                        Err(error) => {
                            let _ = report.send(Err(error));
                            return;
                        }
                    };
                    let _ = report.send(Ok((server.handle(), port)));
                    if let Err(error) = server.await {
                        tracing::error!(%error, "the sandbox tenant service failed");
                    }
                };
                actix_web::rt::System::new().block_on(run);
            })
            .context("starting the tenant service's thread")?;
        let started = reported.recv().context("the tenant service's thread ended at its start")?;
        let (server, port) = started.context("the tenant service can't listen")?;
        let port = port.ok_or_else(|| anyhow!("the tenant service has no address"))?;
        Ok(Self { shared, port, server, thread: Some(thread) })
    }

    /// `http://127.0.0.1:<port>`.
    pub fn base_url(&self) -> String {
        format!("http://127.0.0.1:{}", self.port)
    }

    /// Its port on 127.0.0.1.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The API key that calls must carry.
    pub fn api_key(&self) -> &SecretString {
        &self.shared.api_key
    }

    /// Adds a tenant or replaces it.
    pub fn set_tenant(&self, tenant: TenantRecord) {
        self.shared.known().tenants.insert(tenant.id.clone(), tenant);
    }

    /// Changes a tenant; `false` if there is none of this id.
    pub fn update(&self, id: &str, change: impl FnOnce(&mut TenantRecord)) -> bool {
        self.shared.known().tenants.get_mut(id).map(change).is_some()
    }

    /// A tenant's record.
    pub fn tenant(&self, id: &str) -> Option<TenantRecord> {
        self.shared.known().tenants.get(id).cloned()
    }

    /// Forgets a tenant: it is listed no more and its connections answer 404. Returns what was known.
    pub fn remove_tenant(&self, id: &str) -> Option<TenantRecord> {
        self.shared.known().tenants.remove(id)
    }

    /// Answers the list with exactly this body; `None` is the tenants again.
    pub fn set_list_raw(&self, body: Option<&str>) {
        self.shared.known().list_raw = body.map(str::to_owned);
    }

    /// Answers this tenant's connections with exactly this body; `None` is its record again.
    pub fn set_connections_raw(&self, id: &str, body: Option<&str>) {
        let mut known = self.shared.known();
        match body {
            Some(body) => known.connections_raw.insert(id.to_owned(), body.to_owned()),
            None => known.connections_raw.remove(id),
        };
    }

    /// What a route does from now on.
    pub fn set_fault(&self, route: ServiceRoute, fault: ServiceFault) {
        let mut known = self.shared.known();
        match route {
            ServiceRoute::List => known.list_fault = fault,
            ServiceRoute::Connections => known.connections_fault = fault,
        }
    }

    /// What both routes do from now on.
    pub fn set_faults(&self, fault: ServiceFault) {
        self.set_fault(ServiceRoute::List, fault.clone());
        self.set_fault(ServiceRoute::Connections, fault);
    }

    /// How many calls a route has had, refused ones not counted.
    pub fn calls(&self, route: ServiceRoute) -> u64 {
        match route {
            ServiceRoute::List => self.shared.list_calls.load(Ordering::Relaxed),
            ServiceRoute::Connections => self.shared.connections_calls.load(Ordering::Relaxed),
        }
    }

    /// The `traceparent` headers (W3C) that calls of a route came with, in order.
    pub fn traceparents(&self, route: ServiceRoute) -> Vec<String> {
        let seen = self.shared.traceparents.lock().unwrap_or_else(PoisonError::into_inner);
        seen.iter().filter(|(of, _)| *of == route).map(|(_, parent)| parent.clone()).collect()
    }

    /// How many calls came without the right API key.
    pub fn refused_calls(&self) -> u64 {
        self.shared.refused_calls.load(Ordering::Relaxed)
    }
}

impl Drop for TenantService {
    fn drop(&mut self) {
        // The command is sent at the call; the future only waits for its end, and so does the join.
        drop(self.server.stop(false));
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the sandbox tenant service panicked");
        }
    }
}

async fn list(
    request: HttpRequest,
    shared: Data<Shared>,
    query: web::Query<BTreeMap<String, String>>,
) -> HttpResponse {
    if !shared.is_authorized(&request) {
        return refused();
    }
    shared.list_calls.fetch_add(1, Ordering::Relaxed);
    shared.note_trace(ServiceRoute::List, &request);
    let fault = shared.known().list_fault.clone();
    let answer = || {
        let known = shared.known();
        if let Some(raw) = &known.list_raw {
            return (StatusCode::OK, raw.clone());
        }
        if query.get("service").is_none_or(|service| service != SERVICE) {
            return (StatusCode::OK, "[]".to_owned());
        }
        let active = known.tenants.values().filter(|tenant| tenant.status == TenantStatus::Active);
        (StatusCode::OK, Value::from_iter(active.map(TenantRecord::in_list)).to_string())
    };
    respond(fault, answer).await
}

async fn connections(
    request: HttpRequest,
    shared: Data<Shared>,
    path: web::Path<(String, String)>,
) -> HttpResponse {
    if !shared.is_authorized(&request) {
        return refused();
    }
    shared.connections_calls.fetch_add(1, Ordering::Relaxed);
    shared.note_trace(ServiceRoute::Connections, &request);
    let (id, service) = path.into_inner();
    let fault = shared.known().connections_fault.clone();
    let answer = || {
        let known = shared.known();
        if let Some(raw) = known.connections_raw.get(&id) {
            return (StatusCode::OK, raw.clone());
        }
        match known.tenants.get(&id).filter(|_| service == SERVICE) {
            None => {
                let body =
                    json!({ "code": "TENANT_NOT_FOUND", "error": "no such tenant, or not associated" });
                (StatusCode::NOT_FOUND, body.to_string())
            }
            Some(tenant) if tenant.status != TenantStatus::Active => {
                let status = tenant.status.as_str();
                let body = json!({ "code": "TENANT_NOT_ACTIVE", "error": format!("tenant is {status}"), "status": status });
                (StatusCode::FORBIDDEN, body.to_string())
            }
            Some(tenant) => (StatusCode::OK, tenant.connections().to_string()),
        }
    };
    respond(fault, answer).await
}

fn refused() -> HttpResponse {
    HttpResponse::Unauthorized().json(json!({ "code": "UNAUTHORIZED", "error": "missing or wrong API key" }))
}

async fn respond(fault: ServiceFault, answer: impl FnOnce() -> (StatusCode, String)) -> HttpResponse {
    let with = |(status, body): (StatusCode, String)| {
        HttpResponse::build(status).content_type("application/json").body(body)
    };
    match fault {
        ServiceFault::None => with(answer()),
        ServiceFault::Status(status) => {
            let status = StatusCode::from_u16(status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
            with((status, json!({ "code": "SANDBOX", "error": "injected fault" }).to_string()))
        }
        ServiceFault::Garbage => with((StatusCode::OK, "<html><body>upstream connect error".to_owned())),
        ServiceFault::EmptyBody => with((StatusCode::OK, String::new())),
        ServiceFault::EmptyList => with((StatusCode::OK, "[]".to_owned())),
        ServiceFault::Slow(delay) => {
            tokio::time::sleep(delay).await;
            // What is known then, not what was known when the call came.
            with(answer())
        }
        ServiceFault::Hang => std::future::pending().await,
        ServiceFault::HugeBody(bytes) => {
            let (status, body) = answer();
            let blank = Bytes::from(vec![b' '; BODY_PIECE]);
            let pieces = std::iter::repeat_n(blank, bytes.div_ceil(BODY_PIECE)).chain([Bytes::from(body)]);
            let pieces = pieces.map(Ok::<_, actix_web::Error>);
            HttpResponse::build(status).content_type("application/json").streaming(stream::iter(pieces))
        }
    }
}
