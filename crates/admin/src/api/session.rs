//! `/api/v1/session`: who one is, signing in and out. `/api/v1/sessions`: everybody's, for operators.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use balance_sync_schedule::StoredSession;
use balance_sync_view::rows::at;
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{
    Answer, State,
    auth::{Cookie, FORMER_COOKIE, Role, Who, cookie},
    body,
    params::Params,
    problem::Problem,
    sessions::{SHOWN_DIGITS, SessionKeeper},
};

/// Who one is.
#[derive(Debug, Serialize)]
struct Session<'a> {
    role: &'static str,
    name: String,
    auth_required: bool,
    worker: &'a str,
    version: &'static str,
}

/// What one signs in with.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignIn {
    token: SecretString,
}

/// `GET /api/v1/session`.
pub(super) async fn show(state: State, who: Who) -> HttpResponse {
    HttpResponse::Ok().json(session(&state, who))
}

/// `POST /api/v1/session`.
pub(super) async fn sign_in(state: State, who: Who, request: HttpRequest, payload: web::Payload) -> Answer {
    let SignIn { token } = body::read(&request, payload).await?;
    let Some(sessions) = state.access.sessions() else {
        return Ok(HttpResponse::Ok().json(session(&state, who)));
    };
    let signed_in = state.access.sign_in(&request, token.expose_secret()).await?;
    let id = sessions.open(&signed_in.name, signed_in.role, token.expose_secret()).await?;
    if let Some(former) = who.session {
        // Of the same browser, which has no use for it any more.
        sessions.end(&[former.id.key()]).await?;
    }
    let cookie = Cookie::of(&request);
    let mut response = HttpResponse::Ok();
    response.append_header((header::SET_COOKIE, cookie.keep(&id, sessions.longest())));
    forget_former(&request, &mut response);
    Ok(response.json(session(&state, signed_in)))
}

/// `DELETE /api/v1/session`.
pub(super) async fn sign_out(state: State, who: Who, request: HttpRequest) -> Answer {
    if let (Some(sessions), Some(own)) = (state.access.sessions(), who.session) {
        sessions.end(&[own.id.key()]).await?;
    }
    let who = if state.access.is_required() { Who::UNKNOWN } else { Who::LOOPBACK };
    let mut response = HttpResponse::Ok();
    response.append_header((header::SET_COOKIE, Cookie::of(&request).forget()));
    forget_former(&request, &mut response);
    Ok(response.json(session(&state, who)))
}

/// Former releases had the token itself in a cookie.
fn forget_former(request: &HttpRequest, response: &mut actix_web::HttpResponseBuilder) {
    if cookie(request, FORMER_COOKIE).is_some() {
        response.append_header((header::SET_COOKIE, Cookie::of(request).forget_former()));
    }
}

fn session(state: &State, who: Who) -> Session<'_> {
    Session {
        role: who.role.name(),
        name: who.name.into_owned(),
        auth_required: state.access.is_required(),
        worker: &state.worker,
        version: env!("CARGO_PKG_VERSION"),
    }
}

/// A session, for operators.
#[derive(Debug, Serialize)]
struct Row {
    id: String,
    name: String,
    role: String,
    created_at: String,
    last_used_at: String,
    ends_at: String,
    current: bool,
}

#[derive(Debug, Serialize)]
struct Rows {
    sessions: Vec<Row>,
}

/// Which sessions are to end.
#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Ending {
    #[serde(default)]
    id: Option<String>,
    #[serde(default)]
    name: Option<String>,
    #[serde(default)]
    all: bool,
}

#[derive(Debug, Serialize)]
struct EndedRows {
    ended: u64,
}

/// `GET /api/v1/sessions`.
pub(super) async fn list(state: State, who: Who, request: HttpRequest) -> Answer {
    Params::read(&request, &[])?;
    if who.role < Role::Operator {
        return Err(Problem::not_allowed());
    }
    let Some(sessions) = state.access.sessions() else {
        return Ok(HttpResponse::Ok().json(Rows { sessions: Vec::new() }));
    };
    let own = who.session.map(|own| own.id.key());
    let mut rows: Vec<Row> =
        sessions.list().await?.into_iter().map(|stored| row(sessions, stored, own.as_deref())).collect();
    rows.reverse();
    Ok(HttpResponse::Ok().json(Rows { sessions: rows }))
}

fn row(sessions: &SessionKeeper, stored: StoredSession, own: Option<&str>) -> Row {
    let ends =
        (stored.used + sessions.idle().as_secs_f64()).min(stored.created + sessions.longest().as_secs_f64());
    Row {
        id: stored.key.chars().take(SHOWN_DIGITS).collect(),
        current: own == Some(stored.key.as_str()),
        name: stored.record.name,
        role: stored.record.role,
        created_at: at(stored.created),
        last_used_at: at(stored.used),
        ends_at: at(ends),
    }
}

/// `POST /api/v1/sessions/end`.
pub(super) async fn end(state: State, who: Who, request: HttpRequest, payload: web::Payload) -> Answer {
    Params::read(&request, &[])?;
    let ending: Ending = body::read(&request, payload).await?;
    let chosen = [ending.id.is_some(), ending.name.is_some(), ending.all];
    if chosen.iter().filter(|chosen| **chosen).count() != 1 {
        return Err(Problem::invalid("all", "", "one of id, name and all: true"));
    }
    let Some(sessions) = state.access.sessions() else {
        return Ok(HttpResponse::Ok().json(EndedRows { ended: 0 }));
    };
    let is_meant = |stored: &StoredSession| match (&ending.id, &ending.name) {
        (Some(id), _) => id.len() == SHOWN_DIGITS && stored.key.starts_with(id.as_str()),
        (None, Some(name)) => stored.record.name == *name,
        (None, None) => true,
    };
    let meant = sessions.list().await?.into_iter().filter(is_meant).map(|stored| stored.key);
    let ended = sessions.end(&meant.collect::<Vec<_>>()).await?;
    tracing::info!(by = &*who.name, ended, "sessions ended by an operator");
    Ok(HttpResponse::Ok().json(EndedRows { ended }))
}
