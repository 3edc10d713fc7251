//! A failure, as whoever asked is told it.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A failure, as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:usher:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words, the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable, for programs: `unknown_team`, `no_node`, ...
    pub code: Cow<'static, str>,
    /// What happened this time, and what to do.
    pub detail: String,
    /// When to try again, in milliseconds, where that makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
}

impl Problem {
    /// A problem from its status, stable code and the sentence that says what to do.
    #[must_use]
    pub fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:usher:problem:{code}"),
            title: code.replace('_', " "),
            status,
            code: Cow::Borrowed(code),
            detail: detail.into(),
            retry_ms: None,
        }
    }

    /// The same problem with a time to come back.
    #[must_use]
    pub fn retry_after(self, retry_ms: u64) -> Self {
        Self {
            retry_ms: Some(retry_ms),
            ..self
        }
    }
}
