//! `/api/v1/session`: who one is, signing in and out.

use actix_web::{HttpRequest, HttpResponse, http::header, web};
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use secrecy::{ExposeSecret, SecretString};
use serde::{Deserialize, Serialize};

use super::{
    Answer, State,
    auth::{COOKIE, Who},
    body,
};

/// How long a browser keeps a session, in seconds.
const LASTS: u32 = 12 * 60 * 60;

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
    if !state.access.is_required() {
        return Ok(HttpResponse::Ok().json(session(&state, who)));
    }
    let who = state.access.sign_in(&request, token.expose_secret()).await?;
    let value = utf8_percent_encode(token.expose_secret(), NON_ALPHANUMERIC);
    let cookie = format!("{COOKIE}={value}; Max-Age={LASTS}{}", attributes(&request));
    Ok(HttpResponse::Ok().insert_header((header::SET_COOKIE, cookie)).json(session(&state, who)))
}

/// `DELETE /api/v1/session`.
pub(super) async fn sign_out(state: State, request: HttpRequest) -> HttpResponse {
    let cookie = format!("{COOKIE}=; Max-Age=0{}", attributes(&request));
    let who = if state.access.is_required() { Who::UNKNOWN } else { Who::LOOPBACK };
    HttpResponse::Ok().insert_header((header::SET_COOKIE, cookie)).json(session(&state, who))
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

fn attributes(request: &HttpRequest) -> &'static str {
    // The interface itself speaks plain HTTP; a proxy that adds TLS in front of it says so.
    if request.connection_info().scheme() == "https" {
        "; Path=/; HttpOnly; SameSite=Strict; Secure"
    } else {
        "; Path=/; HttpOnly; SameSite=Strict"
    }
}
