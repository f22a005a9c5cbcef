//! What is wrong, for machines and people: `application/problem+json` (RFC 9457).

use std::fmt;

use actix_web::{HttpResponse, ResponseError, http::StatusCode};
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
}

impl Problem {
    fn new(status: StatusCode, kind: &'static str, title: &'static str, detail: impl Into<String>) -> Self {
        Self { kind, title, status: status.as_u16(), detail: detail.into(), field: None, retry_after: None }
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

    /// Something that isn't there.
    pub(crate) fn not_found(detail: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, "about:blank#not-found", "Not found", detail)
    }

    /// A method that the path doesn't have.
    pub(crate) fn method_not_allowed() -> Self {
        let detail = "this path does not take this method";
        Self::new(
            StatusCode::METHOD_NOT_ALLOWED,
            "about:blank#method-not-allowed",
            "Method not allowed",
            detail,
        )
    }

    /// Redis, Postgres or the tenant service can't be asked.
    pub(crate) fn unavailable(detail: impl Into<String>) -> Self {
        let problem =
            Self::new(StatusCode::SERVICE_UNAVAILABLE, "about:blank#unavailable", "Unavailable", detail);
        Self { retry_after: Some(2), ..problem }
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
        if let Some(seconds) = self.retry_after {
            response.insert_header(("retry-after", seconds.to_string()));
        }
        response
            .content_type("application/problem+json")
            .body(serde_json::to_string(self).unwrap_or_default())
    }
}
