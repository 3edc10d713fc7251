//! The responses that all listeners share.

use bytes::Bytes;
use http::header::{CACHE_CONTROL, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Response, StatusCode};
use http_body_util::Full;
use usher_shared::rest::Problem;

/// A response whose whole body is in hand.
pub type Answer = Response<Full<Bytes>>;

/// A body with its type, never cached.
#[must_use]
pub fn body(status: StatusCode, content_type: &'static str, body: impl Into<Bytes>) -> Answer {
    let mut answer = Response::new(Full::new(body.into()));
    *answer.status_mut() = status;
    answer
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
    answer
        .headers_mut()
        .insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    answer
}

/// A line of text.
#[must_use]
pub fn text(status: StatusCode, line: impl Into<Bytes>) -> Answer {
    body(status, "text/plain; charset=utf-8", line)
}

/// A value as JSON.
#[must_use]
pub fn json(value: &impl serde::Serialize) -> Answer {
    // Bodies are plain structs with text keys: there is nothing in them that JSON cannot carry.
    let text = serde_json::to_vec(value).unwrap_or_default();
    body(StatusCode::OK, "application/json", text)
}

/// A problem (RFC 9457), with `Retry-After` in whole seconds, rounded up, where it has a time.
#[must_use]
pub fn problem(problem: &Problem) -> Answer {
    let status = StatusCode::from_u16(problem.status).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    let text = serde_json::to_vec(problem).unwrap_or_default();
    let mut answer = body(status, "application/problem+json", text);
    if let Some(retry_ms) = problem.retry_ms {
        answer
            .headers_mut()
            .insert(RETRY_AFTER, HeaderValue::from(retry_ms.div_ceil(1000).max(1)));
    }
    answer
}

/// The metrics page.
#[must_use]
pub fn metrics(page: String) -> Answer {
    body(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", page)
}
