//! Request bodies: bounded in size and time, JSON, and nothing in them that is not known.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt as _;
use hyper::body::Body;
use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::error::Category;
use std::pin::pin;
use std::time::Duration;
use usher_shared::rest::Problem;

/// The largest body.
pub(crate) const MAX_BYTES: usize = 64 * 1_024;
/// How long a body may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// The whole body.
pub(crate) async fn read<B>(body: B) -> Result<Bytes, Problem>
where
    B: Body<Data = Bytes>,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let too_large = || Problem::new(413, "too_large", "a body is at most 65536 bytes");
    // Before the first byte: a client that waits for `100 Continue` need not send any.
    if body.size_hint().lower() > MAX_BYTES as u64 {
        return Err(too_large());
    }
    let reading = async {
        let mut body = pin!(body);
        let mut kept = BytesMut::new();
        while let Some(frame) = body.frame().await {
            let frame = frame.map_err(|_| Problem::new(400, "bad_json", "the body ended early"))?;
            let Ok(data) = frame.into_data() else { continue };
            if kept.len() + data.len() > MAX_BYTES {
                return Err(too_large());
            }
            kept.extend_from_slice(&data);
        }
        Ok(kept.freeze())
    };
    let late = || Problem::new(408, "too_slow", "the body took longer than 10 s");
    tokio::time::timeout(PATIENCE, reading)
        .await
        .unwrap_or_else(|_| Err(late()))
}

/// The body of a request that has nothing to say.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Nothing {}

/// The JSON in `body`; an empty body is the default.
pub(crate) fn parse<T: DeserializeOwned + Default>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    if body.is_empty() {
        return Ok(T::default());
    }
    parse_required(headers, body)
}

/// The JSON in `body`.
pub(crate) fn parse_required<T: DeserializeOwned>(headers: &HeaderMap, body: &[u8]) -> Result<T, Problem> {
    let kind = headers.get(CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    // Strict, because a page can post any other type across origins without asking first.
    let is_json = kind.is_some_and(|kind| {
        let essence = kind.split(';').next().unwrap_or_default();
        essence.trim().eq_ignore_ascii_case("application/json")
    });
    if !is_json {
        return Err(Problem::new(
            415,
            "not_json",
            "a body is sent with Content-Type: application/json",
        ));
    }
    // serde would take a list for the fields in their order.
    if !body.trim_ascii_start().starts_with(b"{") {
        return Err(Problem::new(400, "bad_json", "the body is not a JSON object"));
    }
    serde_json::from_slice(body).map_err(|error| match error.classify() {
        Category::Data => Problem::new(400, "bad_field", name_field::<T>(body, &error.to_string())),
        _ => Problem::new(400, "bad_json", format!("the body is not JSON: {error}")),
    })
}

/// The error with the field it is about. serde names unknown fields; for a bad value each field is
/// tried alone, which works because every body here has fields that may all be left out.
fn name_field<T: DeserializeOwned>(body: &[u8], error: &str) -> String {
    let error = error.split(" at line ").next().unwrap_or(error);
    let fields = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body);
    for (name, value) in fields.into_iter().flatten() {
        let alone = serde_json::Map::from_iter([(name.clone(), value)]);
        if let Err(cause) = serde_json::from_value::<T>(serde_json::Value::Object(alone)) {
            let cause = cause.to_string();
            // Cut, because the name is the sender's: it could be as long as the body.
            let name: String = name.chars().take(64).collect();
            return if cause.starts_with("missing field") {
                error.to_owned()
            } else if cause.contains("unknown field") {
                format!("there is no field {name:?}")
            } else {
                format!("field {name:?}: {}", cause.chars().take(256).collect::<String>())
            };
        }
    }
    error.to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use http::HeaderValue;
    use usher_shared::rest::{DrainPost, TeamPut};

    fn json() -> HeaderMap {
        HeaderMap::from_iter([(
            CONTENT_TYPE,
            HeaderValue::from_static("application/json; charset=utf-8"),
        )])
    }

    fn refused<T: DeserializeOwned + Default + std::fmt::Debug>(text: &str) -> (u16, String, String) {
        let problem = parse::<T>(&json(), text.as_bytes()).unwrap_err();
        (problem.status, problem.code.into_owned(), problem.detail)
    }

    #[test]
    fn an_empty_body_is_the_default() {
        assert_eq!(
            parse::<DrainPost>(&HeaderMap::new(), b"").unwrap(),
            DrainPost::default()
        );
    }

    #[test]
    fn a_bad_field_is_named() {
        let (status, code, detail) = refused::<TeamPut>(r#"{"region":"eu","weight":0}"#);
        assert_eq!((status, code.as_str()), (400, "bad_field"));
        assert!(
            detail.contains("\"weight\"") && detail.contains("from 1 to 10000"),
            "{detail}"
        );
        let (_, code, detail) = refused::<DrainPost>(r#"{"rate":1}"#);
        assert_eq!(
            (code.as_str(), detail.contains("\"rate\"")),
            ("bad_field", true),
            "{detail}"
        );
        let (_, code, detail) = refused::<DrainPost>(r#"{"rate_per_s":-1}"#);
        assert_eq!(
            (code.as_str(), detail.contains("rate_per_s")),
            ("bad_field", true),
            "{detail}"
        );
        assert_eq!(refused::<TeamPut>("[]").1, "bad_json");
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for bad in ["{", "{} x", "\u{feff}{}", "nul", "{\"weight\":1e400}"] {
            let (status, code, _) = refused::<TeamPut>(bad);
            assert_eq!(status, 400, "{bad}");
            assert!(
                ["bad_json", "bad_field"].contains(&code.as_str()),
                "{bad}: {code}"
            );
        }
        let deep = "[".repeat(100_000);
        assert_eq!(refused::<TeamPut>(&deep).0, 400);
        assert_eq!(refused::<TeamPut>(r#"{"weight":1,"weight":2}"#).1, "bad_field");
        let untyped = parse::<TeamPut>(&HeaderMap::new(), b"{}").unwrap_err();
        assert_eq!((untyped.status, &*untyped.code), (415, "not_json"));
    }

    #[tokio::test]
    async fn a_body_over_the_bound_is_refused() {
        let body = http_body_util::Full::new(Bytes::from(vec![b' '; MAX_BYTES + 1]));
        assert_eq!(read(body).await.unwrap_err().status, 413);
    }
}
