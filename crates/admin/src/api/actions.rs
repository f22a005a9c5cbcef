//! What operators do: with a tenant, with a worker; and the log of it.

use actix_web::{HttpRequest, HttpResponse, web};
use balance_sync_view::actions::{Action, ActionView, LONGEST_NOTE};
use serde::{Deserialize, Serialize};

use super::{Answer, State, auth::Who, body, fleet::no_tenant, params::Params, problem::Problem};

/// What is to be done.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    action: String,
    #[serde(default)]
    note: Option<String>,
}

/// It is written down, and workers are notified.
#[derive(Serialize)]
struct OfTenant<'a> {
    action_id: String,
    what: &'static str,
    tenant: &'a str,
}

/// It is written down, and the worker is notified.
#[derive(Serialize)]
struct OfWorker<'a> {
    action_id: String,
    what: &'static str,
    worker: &'a str,
}

#[derive(Serialize)]
struct Page {
    total: usize,
    page: usize,
    per_page: usize,
    actions: Vec<ActionView>,
}

/// The actions on a tenant, for messages.
fn of_tenant() -> String {
    let names: Vec<&str> =
        Action::ALL.into_iter().filter(|what| what.is_of_tenant()).map(Action::as_str).collect();
    names.join(", ")
}

/// `POST /api/v1/tenants/{id}/actions`.
pub(super) async fn on_tenant(
    state: State,
    who: Who,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    Params::read(&request, &[])?;
    let wanted: Wanted = body::read(&request, payload).await?;
    let what = Action::parse(&wanted.action)
        .filter(|what| what.is_of_tenant())
        .ok_or_else(|| Problem::invalid("action", &wanted.action, &of_tenant()))?;
    let note = note(wanted.note.as_deref())?;
    if what.needs_note() && note.is_none() {
        return Err(Problem::invalid("note", "", "what has been found and decided"));
    }
    let tenant = state.reader.tenant(&id).await.ok_or_else(|| no_tenant(&id))?;
    let action_id = state.operator.tenant(what, &tenant, &who.name, note).await?;
    Ok(HttpResponse::Accepted().json(OfTenant { action_id, what: what.as_str(), tenant: tenant.label() }))
}

/// `POST /api/v1/workers/{name}/actions`.
pub(super) async fn on_worker(
    state: State,
    who: Who,
    name: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    Params::read(&request, &[])?;
    let wanted: Wanted = body::read(&request, payload).await?;
    if wanted.action != Action::Drain.as_str() {
        return Err(Problem::invalid("action", &wanted.action, Action::Drain.as_str()));
    }
    let note = note(wanted.note.as_deref())?;
    let view = state.reader.view().await;
    let Some(worker) = view.workers.iter().find(|worker| worker.name == *name) else {
        let shown: String = name.chars().take(100).collect();
        return Err(Problem::not_found(format!("no live worker has the name {shown:?}")));
    };
    if worker.draining {
        return Err(Problem::conflict(format!("worker {} drains already", worker.name)));
    }
    let action_id = state.operator.drain(&worker.name, &who.name, note).await?;
    let what = Action::Drain.as_str();
    Ok(HttpResponse::Accepted().json(OfWorker { action_id, what, worker: &worker.name }))
}

/// `GET /api/v1/actions`.
pub(super) async fn log(state: State, request: HttpRequest) -> Answer {
    let params = Params::read(&request, &["tenant", "page", "per_page"])?;
    let (page, per_page) = params.paging()?;
    let (total, actions) = state.operator.actions(params.get("tenant"), page, per_page).await?;
    Ok(HttpResponse::Ok().json(Page { total, page, per_page, actions }))
}

/// A note that can stand in a log.
pub(super) fn note(note: Option<&str>) -> Result<Option<&str>, Problem> {
    let Some(text) = note.map(str::trim).filter(|text| !text.is_empty()) else { return Ok(None) };
    if text.chars().count() > LONGEST_NOTE || text.chars().any(char::is_control) {
        let allowed = format!("at most {LONGEST_NOTE} characters, no control characters");
        return Err(Problem::invalid("note", text, &allowed));
    }
    Ok(Some(text))
}
