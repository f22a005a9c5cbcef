//! Which tenants this fleet serves, and whether to take more.

use actix_web::{HttpRequest, HttpResponse, web};
use balance_sync_view::rollout::{NotChanged, Wanted};
use serde::Deserialize;

use super::{Answer, State, actions::note, auth::Who, body, params::Params, problem::Problem};

/// What is to be done.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Order {
    action: String,
    #[serde(default)]
    share: Option<String>,
    #[serde(default)]
    tenants: Vec<String>,
    #[serde(default)]
    note: Option<String>,
}

/// `GET /api/v1/rollout`.
pub(super) async fn show(state: State, request: HttpRequest) -> Answer {
    Params::read(&request, &[])?;
    let view = state.reader.view().await;
    Ok(HttpResponse::Ok().json(state.rollout.report(&view).await?))
}

/// `POST /api/v1/rollout`.
pub(super) async fn change(state: State, who: Who, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::read(&request, &[])?;
    let order: Order = body::read(&request, payload).await?;
    let note = note(order.note.as_deref())?;
    let wanted = Wanted::parse(&order.action, order.share.as_deref(), &order.tenants)
        .map_err(|allowed| Problem::invalid("action", &order.action, &allowed))?;
    let view = state.reader.view().await;
    match state.rollout.change(&view, &wanted, &who.name, note).await {
        Ok(done) => Ok(HttpResponse::Accepted().json(done)),
        Err(NotChanged::Redis(error)) => Err(error.into()),
        Err(refused) => Err(Problem::conflict(refused.to_string())),
    }
}
