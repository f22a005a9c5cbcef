//! Request bodies: small, JSON, and not slow.

use std::time::Duration;

use actix_web::{HttpRequest, http::header, web};
use futures::StreamExt;
use serde::de::DeserializeOwned;

use super::problem::Problem;

/// Longest body, in bytes: a thousand members by name.
const LONGEST: usize = 1024 * 1024;
/// Longest time for a body to arrive.
const WITHIN: Duration = Duration::from_secs(10);

/// Reads a body.
///
/// # Errors
/// When it isn't JSON of that form, is too long or too slow.
pub(super) async fn read<T: DeserializeOwned>(
    request: &HttpRequest,
    payload: web::Payload,
) -> Result<T, Problem> {
    let content_type = request.headers().get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok());
    let is_json = content_type
        .and_then(|value| value.split(';').next())
        .is_some_and(|kind| kind.trim().eq_ignore_ascii_case("application/json"));
    if !is_json {
        let value = content_type.unwrap_or_default();
        return Err(Problem::invalid("content-type", value, "application/json"));
    }
    let bytes = tokio::time::timeout(WITHIN, gather(payload))
        .await
        .map_err(|_| Problem::malformed(format!("the body did not arrive within {WITHIN:?}")))??;
    serde_json::from_slice(&bytes).map_err(|error| {
        // What the reader says may quote the body, and a token may stand in it.
        let place = format!("line {}, column {}", error.line(), error.column());
        match error.classify() {
            serde_json::error::Category::Data => Problem::malformed(format!(
                "the body does not have the form that /api/v1/openapi.json describes, {place}"
            )),
            _ => Problem::malformed(format!("the body is not JSON, {place}")),
        }
    })
}

async fn gather(mut payload: web::Payload) -> Result<Vec<u8>, Problem> {
    let mut bytes = Vec::new();
    while let Some(part) = payload.next().await {
        let part = part.map_err(|_| Problem::malformed("the body broke off"))?;
        if bytes.len() + part.len() > LONGEST {
            return Err(Problem::too_large(format!("a body has at most {LONGEST} bytes")));
        }
        bytes.extend_from_slice(&part);
    }
    Ok(bytes)
}
