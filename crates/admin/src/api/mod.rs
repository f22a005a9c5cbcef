//! `/api/v1`: the fleet for programs and for the pages at `/`.
//!
//! - `fleet`: overview, workers, tenants.
//! - `events`: what changes, as it happens.
//! - `params` and `problem`: what comes in, and what is said when that can't be used.
//!
//! The answers are the types of `balance_sync_fleet` (`rows`, `overview`), as they stand there.

mod events;
mod fleet;
mod params;
mod problem;

use std::{fmt, sync::Arc};

use actix_web::{
    HttpResponse, Resource, Route, guard,
    web::{self, Data, ServiceConfig},
};
use balance_sync_fleet::view::FleetReader;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;

pub(crate) use self::problem::Problem;

/// What a handler gives.
type Answer = Result<HttpResponse, Problem>;
/// What a handler reads.
type State = Data<Api>;

/// Everything that the API answers from.
pub struct Api {
    reader: FleetReader,
    streams: Arc<Semaphore>,
    /// Ends all event streams.
    stop: CancellationToken,
}

impl Api {
    /// An API over this view of the fleet.
    #[must_use]
    pub fn new(reader: FleetReader) -> Self {
        Self {
            reader,
            streams: Arc::new(Semaphore::new(events::MOST_STREAMS)),
            stop: CancellationToken::new(),
        }
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

/// All paths of the API.
pub(crate) fn routes(config: &mut ServiceConfig) {
    config.service(
        web::scope("/api/v1")
            .service(readable("/overview", web::to(fleet::overview)))
            .service(readable("/workers", web::to(fleet::workers)))
            .service(readable("/tenants", web::to(fleet::tenants)))
            .service(readable("/tenants/{id}", web::to(fleet::tenant)))
            .service(readable("/events", web::to(events::events)))
            .default_service(web::to(not_found)),
    );
}

/// A path that answers GET and HEAD, and 405 to everything else.
fn readable(path: &str, route: Route) -> Resource {
    web::resource(path)
        .route(route.guard(guard::Any(guard::Get()).or(guard::Head())))
        .default_service(web::to(method_not_allowed))
}

async fn not_found() -> Answer {
    Err(Problem::not_found("there is no such path; /api/v1/openapi.json lists them all"))
}

async fn method_not_allowed() -> Answer {
    Err(Problem::method_not_allowed())
}
