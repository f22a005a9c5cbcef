//! What Redis has lost of a tenant: what could be restored, and restoring it, in the background of a worker.

use actix_web::{HttpRequest, HttpResponse, web};
use balance_sync_view::recovery::{RecoveryView, StartError};
use serde::Deserialize;

use super::{
    Answer, State, actions::note, auth::Who, body, fleet::no_tenant, params::Params, problem::Problem,
};

/// What is wanted.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Wanted {
    /// Write the rows; else show what would be written.
    #[serde(default)]
    apply: bool,
    #[serde(default)]
    note: Option<String>,
}

impl From<StartError> for Problem {
    fn from(error: StartError) -> Self {
        match error {
            StartError::AtWork(_) => Self::conflict(error.to_string()),
            StartError::NoPermit | StartError::Configuration(_) | StartError::Redis(_) => {
                Self::unavailable(error.to_string())
            }
        }
    }
}

/// `GET /api/v1/tenants/{id}/recovery`.
pub(super) async fn show(state: State, who: Who, id: web::Path<String>, request: HttpRequest) -> Answer {
    Params::read(&request, &[])?;
    let tenant = state.reader.tenant(&id).await.ok_or_else(|| no_tenant(&id))?;
    match state.recoveries.show(&tenant).await? {
        Some(record) => Ok(HttpResponse::Ok().json(RecoveryView::new(record, who.amounts_hidden()))),
        None => Ok(HttpResponse::NoContent().finish()),
    }
}

/// `POST /api/v1/tenants/{id}/recovery`.
pub(super) async fn start(
    state: State,
    who: Who,
    id: web::Path<String>,
    request: HttpRequest,
    payload: web::Payload,
) -> Answer {
    Params::read(&request, &[])?;
    let wanted: Wanted = body::read(&request, payload).await?;
    let note = note(wanted.note.as_deref())?;
    if wanted.apply && note.is_none() {
        return Err(Problem::invalid("note", "", "the reason, for the log of actions, as apply is true"));
    }
    let tenant = state.reader.tenant(&id).await.ok_or_else(|| no_tenant(&id))?;
    let record = state.recoveries.start(&tenant, wanted.apply, &who.name, note).await?;
    Ok(HttpResponse::Accepted().json(RecoveryView::new(record, who.amounts_hidden())))
}

/// `DELETE /api/v1/tenants/{id}/recovery`.
pub(super) async fn stop(state: State, id: web::Path<String>, request: HttpRequest) -> Answer {
    Params::read(&request, &[])?;
    let tenant = state.reader.tenant(&id).await.ok_or_else(|| no_tenant(&id))?;
    if state.recoveries.stop(&tenant).await? {
        Ok(HttpResponse::NoContent().finish())
    } else {
        Err(Problem::conflict(format!("no recovery of tenant {} is at work", tenant.label())))
    }
}
