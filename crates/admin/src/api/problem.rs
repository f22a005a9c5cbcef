//! What is wrong, for machines and people: `application/problem+json` (RFC 9457).

use std::fmt;

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
use balance_sync_schedule::ScheduleError;
use serde::Serialize;

/// An error of the API.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Problem {
    /// What kind, as a stable name.
    #[serde(rename = "type")]
    kind: &'static str,
    /// The kind in words.
    title: &'static str,
    /// The HTTP status.
    status: u16,
    /// What happened, and what is allowed. Shows no secret.
    detail: String,
    /// The parameter or field that is wrong.
    #[serde(skip_serializing_if = "Option::is_none")]
    field: Option<String>,
    /// Seconds after which it may be tried again.
    #[serde(skip)]
    retry_after: Option<u64>,
    /// The methods that the path has.
    #[serde(skip)]
    allow: Option<Box<str>>,
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind,
            title,
            status: status.as_u16(),
            detail: detail.into(),
            field: None,
            retry_after: None,
            allow: None,
        }
    }

    /// A parameter or field that can't be used: which, what it was, what is allowed.
    pub(crate) fn invalid(field: &str, value: &str, allowed: &str) -> Self {
        let shown: String = value.chars().take(100).collect();
        let problem = Self::new(
            StatusCode::BAD_REQUEST,
            "about:blank#invalid",
            "Invalid request",
            format!("{field} = {shown:?}: allowed: {allowed}"),
        );
        Self { field: Some(field.to_owned()), ..problem }
    }

    /// A request that can't be understood.
    pub(crate) fn malformed(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, "about:blank#malformed", "Malformed request", detail)
    }

    /// A body that is too long.
    pub(crate) fn too_large(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::PAYLOAD_TOO_LARGE, "about:blank#too-large", "Body too large", detail)
    }

    /// The sender is not known.
    pub(crate) fn token_needed() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "about:blank#token-needed",
            "Token needed",
            "send Authorization: Bearer with admin.read_token or admin.operator_token, or sign in",
        )
    }

    /// Sessions can't be read or written, for this reason.
    pub(crate) fn sessions_away(error: &str) -> Self {
        Self::unavailable(format!(
            "sessions are kept in Redis, which can't be asked ({error}): nobody can sign in, sign out or act in a browser until \
             it answers; Bearer tokens go on working"
        ))
    }

    /// The token is not valid.
    pub(crate) fn wrong_token() -> Self {
        Self::new(
            StatusCode::UNAUTHORIZED,
            "about:blank#wrong-token",
            "Wrong token",
            "the token is not known",
        )
    }

    /// The sender may look, but not act.
    pub(crate) fn not_allowed() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "about:blank#not-allowed",
            "Not allowed",
            "this needs admin.operator_token; the token shown may only read",
        )
    }

    /// Some other site's page may have sent this.
    pub(crate) fn foreign_page() -> Self {
        let problem = Self::new(
            StatusCode::FORBIDDEN,
            "about:blank#foreign-page",
            "Not from our own page",
            "what changes something needs a Bearer token or the header X-Balance-Sync: 1",
        );
        Self { field: Some("x-balance-sync".to_owned()), ..problem }
    }

    /// The worker that was asked is a shadow.
    pub(crate) fn shadow() -> Self {
        Self::new(
            StatusCode::FORBIDDEN,
            "about:blank#shadow",
            "Only looks",
            "this worker is a shadow (worker.mode): nothing is changed through it; ask a worker that writes, or use the command",
        )
    }

    /// The request came by a name that another party may have chosen.
    pub(crate) fn foreign_host() -> Self {
        let problem = Self::new(
            StatusCode::FORBIDDEN,
            "about:blank#foreign-host",
            "Foreign host name",
            "without tokens this interface is asked by address or as localhost; behind any other name set \
             admin.read_token and admin.operator_token",
        );
        Self { field: Some("host".to_owned()), ..problem }
    }

    /// It can't be done as things are.
    pub(crate) fn conflict(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, "about:blank#conflict", "Conflict", detail)
    }

    /// The HTTP status.
    #[cfg(test)]
    pub(crate) fn status(&self) -> u16 {
        self.status
    }

    /// Something that isn't there.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "about:blank#not-found", "Not found", detail)
    }

    /// A method that the path doesn't have; it has these.
    pub(crate) fn method_not_allowed(allow: &str) -> Self {
        let problem = Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "about:blank#method-not-allowed",
            "Method not allowed",
            format!("this path takes {allow}"),
        );
        Self { allow: Some(allow.into()), ..problem }
    }

    /// Redis, Postgres or the tenant service can't be asked.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        let problem =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "about:blank#unavailable", "Unavailable", detail);
        Self { retry_after: Some(2), ..problem }
    }
}

impl From<ScheduleError> for Problem {
    fn from(error: ScheduleError) -> Self {
        Self::unavailable(error.to_string())
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.title, self.detail)
    }
}

impl ResponseError for Problem {
    fn status_code(&self) -> StatusCode {
        StatusCode::from_u16(self.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR)
    }

    fn error_response(&self) -> HttpResponse {
        let mut response = HttpResponse::build(self.status_code());
        if self.status == 401 {
            response.insert_header(("www-authenticate", "Bearer realm=\"balance-sync\""));
        }
        if let Some(allow) = &self.allow {
            response.insert_header(("allow", &**allow));
        }
        if let Some(seconds) = self.retry_after {
            response.insert_header(("retry-after", seconds.to_string()));
        }
        response
            .content_type("application/problem+json")
            .body(serde_json::to_string(self).unwrap_or_default())
    }
}
