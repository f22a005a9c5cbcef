//! `/api/v1`: the fleet for programs and for the pages at `/`.
//!
//! - `auth`, `session` and `sessions`: who asks, and what they may do.
//! - `fleet`: overview, workers, tenants.
//! - `events`: what changes, as it happens.
//! - `actions` and `quarantine`: what operators do.
//! - `rollout`: which tenants are served.
//! - `recovery`: what Redis has lost of a tenant.
//! - `timeline`: the last day.
//! - `why`: one balance.
//! - `params`, `body` and `problem`: what comes in, and what is said when that can't be used.
//!
//! The answers are the types of `balance_sync_fleet` (`rows`, `overview`, `why`), as they stand there; `openapi.json`
//! describes them.

mod actions;
pub(crate) mod auth;
mod body;
mod events;
mod fleet;
mod params;
mod problem;
mod quarantine;
mod recovery;
mod rollout;
mod session;
mod sessions;
mod timeline;
mod why;

use std::{fmt, sync::Arc};

use actix_web::{
    HttpResponse, Route, guard,
    http::Method,
    middleware::from_fn,
    web::{self, Data, ServiceConfig},
};
use balance_sync_view::{
    actions::Operator, inspector::Inspector, reader::FleetReader, recovery::RecoveryDesk,
    rollout::RolloutDesk, timeline::TimelineReader,
};
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub use self::auth::{Access, LONGEST_NAME, NamedToken, Role, TrustedProxies};
pub(crate) use self::problem::Problem;
pub use self::sessions::SessionKeeper;

/// Where the API is.
const BASE: &str = "/api/v1";

/// What a handler gives.
type Answer = Result<HttpResponse, Problem>;
/// What a handler reads.
type State = Data<Api>;

/// Everything that the API answers from.
pub struct Api {
    reader: FleetReader,
    operator: Operator,
    inspector: Inspector,
    recoveries: RecoveryDesk,
    timelines: TimelineReader,
    rollout: RolloutDesk,
    access: Access,
    /// The name of this worker.
    worker: String,
    streams: Arc<Semaphore>,
    /// Ends all event streams.
    stop: CancellationToken,
}

/// What [`Api`] is made of.
pub struct ApiParts {
    /// Reads the fleet.
    pub reader: FleetReader,
    /// Acts for operators.
    pub operator: Operator,
    /// Looks into one tenant.
    pub inspector: Inspector,
    /// Starts recoveries.
    pub recoveries: RecoveryDesk,
    /// Reads what is kept of the last day.
    pub timelines: TimelineReader,
    /// Changes which tenants are served.
    pub rollout: RolloutDesk,
    /// Who may do what.
    pub access: Access,
    /// The name of this worker.
    pub worker: String,
}

impl Api {
    /// An API over these parts.
    #[must_use]
    pub fn new(parts: ApiParts) -> Self {
        let ApiParts { reader, operator, inspector, recoveries, rollout, timelines, access, worker } = parts;
        Self {
            reader,
            operator,
            inspector,
            recoveries,
            timelines,
            rollout,
            access,
            worker,
            streams: Arc::new(Semaphore::new(events::MOST_STREAMS)),
            stop: CancellationToken::new(),
        }
    }

    /// Who may do what.
    pub(crate) fn access(&self) -> Access {
        self.access.clone()
    }

    /// Ends all event streams when cancelled.
    pub(crate) fn stop(&self) -> CancellationToken {
        self.stop.clone()
    }
}

impl fmt::Debug for Api {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Api")
    }
}

/// A path, and what answers each of its methods.
type Path = (&'static str, Vec<(Method, Route)>);

/// All paths of the API, below [`BASE`]. What stands here and what `openapi.json` describes is the same: a test sees to it.
fn paths() -> Vec<Path> {
    let get = |route| vec![(Method::GET, route)];
    let post = |route| vec![(Method::POST, route)];
    vec![
        (
            "/session",
            vec![
                (Method::GET, web::to(session::show)),
                (Method::POST, web::to(session::sign_in)),
                (Method::DELETE, web::to(session::sign_out)),
            ],
        ),
        ("/sessions", get(web::to(session::list))),
        ("/sessions/end", post(web::to(session::end))),
        ("/openapi.json", get(web::to(openapi))),
        ("/overview", get(web::to(fleet::overview))),
        ("/workers", get(web::to(fleet::workers))),
        ("/workers/{name}/actions", post(web::to(actions::on_worker))),
        ("/tenants", get(web::to(fleet::tenants))),
        ("/tenants/{id}", get(web::to(fleet::tenant))),
        ("/tenants/{id}/actions", post(web::to(actions::on_tenant))),
        (
            "/tenants/{id}/recovery",
            vec![
                (Method::GET, web::to(recovery::show)),
                (Method::POST, web::to(recovery::start)),
                (Method::DELETE, web::to(recovery::stop)),
            ],
        ),
        ("/tenants/{id}/timeline", get(web::to(timeline::tenant))),
        ("/history", get(web::to(timeline::history))),
        ("/quarantine", get(web::to(quarantine::list))),
        ("/quarantine/entry", get(web::to(quarantine::entry))),
        ("/quarantine/retry", post(web::to(quarantine::retry))),
        ("/quarantine/drop", post(web::to(quarantine::drop))),
        ("/why", get(web::to(why::ask))),
        ("/rollout", vec![(Method::GET, web::to(rollout::show)), (Method::POST, web::to(rollout::change))]),
        ("/actions", get(web::to(actions::log))),
        ("/events", get(web::to(events::events))),
    ]
}

/// All paths of the API.
pub(crate) fn routes(config: &mut ServiceConfig) {
    let mut scope = web::scope(BASE).wrap(from_fn(auth::guard));
    for (path, methods) in paths() {
        let mut names: Vec<&str> = methods.iter().map(|(method, _)| method.as_str()).collect();
        if names.contains(&"GET") {
            names.push("HEAD");
        }
        let allow = names.join(", ");
        let not_allowed = move || {
            let problem = Problem::method_not_allowed(&allow);
            async move { Answer::Err(problem) }
        };
        let mut resource = web::resource(path).default_service(web::to(not_allowed));
        for (method, route) in methods {
            // Where something can be read, HEAD asks for the head of it.
            let route = if method == Method::GET {
                route.guard(guard::Any(guard::Get()).or(guard::Head()))
            } else {
                route.method(method)
            };
            resource = resource.route(route);
        }
        scope = scope.service(resource);
    }
    config.service(scope.default_service(web::to(not_found)));
}

/// The description of the API.
const OPENAPI: &str = include_str!("openapi.json");

async fn openapi() -> HttpResponse {
    HttpResponse::Ok().content_type("application/json").body(OPENAPI)
}

async fn not_found() -> Answer {
    Err(Problem::not_found("there is no such path; /api/v1/openapi.json lists them all"))
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn names_in_the_document_are_those_of_the_types() {
        use balance_sync_engine::controls::Action;
        use balance_sync_fleet::{status::Trigger, tasks::TaskState};
        use balance_sync_view::rows::StateView;

        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let schemas = &document["components"]["schemas"];
        let names = |list: &serde_json::Value| -> BTreeSet<String> {
            let names = list.as_array().unwrap().iter().filter_map(|name| name.as_str().map(str::to_owned));
            names.collect()
        };
        let states: BTreeSet<String> = StateView::all().map(|state| state.to_string()).collect();
        for schema in ["TenantRow", "TenantDetail"] {
            assert_eq!(names(&schemas[schema]["properties"]["state"]["examples"]), states, "{schema}");
        }
        let why = &schemas["BalanceReport"]["properties"]["tenant_state"]["properties"]["state"]["examples"];
        assert_eq!(names(why), states);
        let task =
            &schemas["Worker"]["properties"]["background_tasks"]["items"]["properties"]["state"]["examples"];
        assert_eq!(names(task), TaskState::NAMES.map(str::to_owned).into());
        let trigger = &schemas["Flush"]["properties"]["trigger"]["examples"];
        assert_eq!(names(trigger), Trigger::ALL.iter().map(|trigger| trigger.as_str().to_owned()).collect());
        let recovery = &schemas["Recovery"]["properties"]["state"]["enum"];
        let kind = &schemas["TimelineEntry"]["properties"]["kind"]["examples"];
        assert_eq!(names(kind), balance_sync_view::timeline::TimelineKind::NAMES.map(str::to_owned).into());
        let states = balance_sync_view::recovery::RecoveryState::NAMES;
        assert_eq!(names(recovery), states.map(str::to_owned).into());
        let cause = |schema: &str| names(&schemas[schema]["properties"]["rollout"]["enum"].clone());
        let causes: BTreeSet<String> =
            balance_sync_engine::rollout::Cause::NAMES.iter().map(|name| (*name).to_owned()).collect();
        assert_eq!((cause("TenantRow"), cause("TenantDetail")), (causes.clone(), causes));
        let advice = &schemas["Rollout"]["properties"]["advice"]["enum"];
        assert_eq!(names(advice), balance_sync_engine::rollout::Advice::NAMES.map(str::to_owned).into());
        let done = &schemas["Action"]["properties"]["what"]["enum"];
        assert_eq!(names(done), Action::NAMES.map(str::to_owned).into());
        let action = &schemas["TenantOrder"]["properties"]["action"]["enum"];
        let of_tenant = Action::ALL.into_iter().filter(|action| action.is_of_tenant());
        assert_eq!(names(action), of_tenant.map(|action| action.as_str().to_owned()).collect());
    }

    #[test]
    fn what_can_be_asked_and_what_is_described_is_the_same() {
        let document: serde_json::Value = serde_json::from_str(OPENAPI).unwrap();
        let described: BTreeSet<(String, String)> = document["paths"]
            .as_object()
            .unwrap()
            .iter()
            .flat_map(|(path, methods)| {
                methods.as_object().unwrap().keys().map(|method| (path.clone(), method.to_uppercase()))
            })
            .collect();
        let asked: BTreeSet<(String, String)> = paths()
            .into_iter()
            .flat_map(|(path, methods)| {
                methods.into_iter().map(move |(method, _)| (format!("{BASE}{path}"), method.to_string()))
            })
            .collect();
        assert_eq!(described, asked);
        assert_eq!(document["info"]["version"], env!("CARGO_PKG_VERSION"));
    }
}
