//! The last day: of a tenant, and of the fleet.

use std::time::Duration;

use actix_web::{HttpRequest, HttpResponse, web};
use balance_sync_domain::TenantId;
use balance_sync_tenants::Tenant;
use balance_sync_view::timeline::{LONGEST, TimelineEntry};

use super::{Answer, State, fleet::no_tenant, params::Params, problem::Problem};

fn within(request: &HttpRequest) -> Result<Duration, Problem> {
    let most = LONGEST.as_secs() / 60;
    let parse = |text: &str| text.parse().ok().filter(|n| (1..=most).contains(n));
    let minutes = Params::read(request, &["minutes"])?.choice(
        "minutes",
        most,
        &format!("a whole number from 1 to {most}"),
        parse,
    )?;
    Ok(Duration::from_secs(60 * minutes))
}

/// `GET /api/v1/tenants/{id}/timeline`.
pub(super) async fn tenant(state: State, id: web::Path<String>, request: HttpRequest) -> Answer {
    let within = within(&request)?;
    let listed = state.reader.tenant(&id).await;
    let is_listed = listed.is_some();
    // One that is not listed any more may have a timeline all the same.
    let tenant =
        listed.or_else(|| TenantId::parse(&id).ok().map(Tenant::Id)).ok_or_else(|| no_tenant(&id))?;
    let timeline = state.timelines.tenant(&tenant, within).await?;
    if !is_listed && !timeline.entries.iter().any(TimelineEntry::is_of_tenant) {
        return Err(no_tenant(&id));
    }
    Ok(HttpResponse::Ok().json(timeline))
}

/// `GET /api/v1/history`.
pub(super) async fn history(state: State, request: HttpRequest) -> Answer {
    let within = within(&request)?;
    Ok(HttpResponse::Ok().json(state.timelines.history(within).await?))
}
