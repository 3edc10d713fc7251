//! Request bodies: bounded in size and time, JSON, and nothing in them that is not known.

use bytes::{Bytes, BytesMut};
use http::HeaderMap;
use http::header::CONTENT_TYPE;
use http_body_util::BodyExt as _;
use hyper::body::Body;
use serde::de::{DeserializeOwned, MapAccess, SeqAccess, Visitor};
use serde::{Deserialize, Deserializer};
use serde_json::error::Category;
use std::collections::HashSet;
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
    let problem = |error: serde_json::Error| match error.classify() {
        Category::Data => {
            let (code, detail) = name_field::<T>(body, &error.to_string());
            Problem::new(400, code, detail)
        }
        _ => Problem::new(400, "bad_json", format!("the body is not JSON: {error}")),
    };
    serde_json::from_slice::<Plain>(body).map_err(|error| match error.classify() {
        Category::Data => Problem::new(400, "bad_field", without_place(&error.to_string())),
        _ => problem(error),
    })?;
    serde_json::from_slice(body).map_err(problem)
}

/// serde's words without the line and column, which say little of a body that a program made.
fn without_place(error: &str) -> String {
    let error = error.split(" at line ").next().unwrap_or(error);
    error.chars().take(MAX_DETAIL).collect()
}

/// The most that a detail repeats of what was sent.
const MAX_DETAIL: usize = 256;

/// The problem code, and the error with the field it is about. serde names unknown fields; for a bad
/// value each field is tried alone, which works because every body here has fields that may all be left out.
fn name_field<T: DeserializeOwned>(body: &[u8], error: &str) -> (&'static str, String) {
    let error = without_place(error);
    let fields = serde_json::from_slice::<serde_json::Map<String, serde_json::Value>>(body);
    for (name, value) in fields.into_iter().flatten() {
        let alone = serde_json::Map::from_iter([(name.clone(), value)]);
        if let Err(cause) = serde_json::from_value::<T>(serde_json::Value::Object(alone)) {
            let cause = cause.to_string();
            // Cut, because the name is the sender's: it could be as long as the body.
            let name: String = name.chars().take(64).collect();
            return if cause.starts_with("missing field") {
                ("bad_field", error)
            } else if cause.contains("unknown field") {
                ("bad_field", format!("there is no field {name:?}"))
            } else {
                let cause_shown: String = cause.chars().take(MAX_DETAIL).collect();
                (code_of(&cause), format!("field {name:?}: {cause_shown}"))
            };
        }
    }
    ("bad_field", error)
}

/// A whole number where one belongs is of the right type, and out of its bounds: serde says so of
/// those that do not fit, and the quantities say their bounds.
fn code_of(cause: &str) -> &'static str {
    let bounds = [" must be from ", " must be at most "];
    if cause.starts_with("invalid value: integer") || bounds.iter().any(|words| cause.contains(words)) {
        "out_of_range"
    } else {
        "bad_field"
    }
}

/// JSON that says each thing once: no name twice in one object, at any depth, and no null, which
/// would be a second way to leave a field out. What a parser makes of a name that comes twice differs
/// from one to the next (RFC 8259 section 4), so whoever looked at the body before may have read another.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Plain {
    Null,
    Other,
}

impl<'de> Deserialize<'de> for Plain {
    fn deserialize<D: Deserializer<'de>>(from: D) -> Result<Self, D::Error> {
        from.deserialize_any(PlainVisitor)
    }
}

struct PlainVisitor;

impl<'de> Visitor<'de> for PlainVisitor {
    type Value = Plain;

    fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("JSON")
    }

    fn visit_bool<E>(self, _: bool) -> Result<Plain, E> {
        Ok(Plain::Other)
    }

    fn visit_i64<E>(self, _: i64) -> Result<Plain, E> {
        Ok(Plain::Other)
    }

    fn visit_u64<E>(self, _: u64) -> Result<Plain, E> {
        Ok(Plain::Other)
    }

    fn visit_f64<E>(self, _: f64) -> Result<Plain, E> {
        Ok(Plain::Other)
    }

    fn visit_str<E>(self, _: &str) -> Result<Plain, E> {
        Ok(Plain::Other)
    }

    fn visit_unit<E>(self) -> Result<Plain, E> {
        Ok(Plain::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut list: A) -> Result<Plain, A::Error> {
        while let Some(one) = list.next_element::<Plain>()? {
            if one == Plain::Null {
                return Err(serde::de::Error::custom("a list holds no null"));
            }
        }
        Ok(Plain::Other)
    }

    fn visit_map<A: MapAccess<'de>>(self, mut object: A) -> Result<Plain, A::Error> {
        let mut names = HashSet::new();
        while let Some(name) = object.next_key::<String>()? {
            let refuse = |name: &str, what: &str| {
                let name: String = name.chars().take(64).collect();
                serde::de::Error::custom(format!("field {name:?} {what}"))
            };
            if names.contains(&name) {
                return Err(refuse(&name, "is given twice"));
            }
            if object.next_value::<Plain>()? == Plain::Null {
                return Err(refuse(&name, "is null: leave it out"));
            }
            names.insert(name);
        }
        Ok(Plain::Other)
    }
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
        assert_eq!((status, code.as_str()), (400, "out_of_range"));
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
        assert_eq!(refused::<TeamPut>("[]").1, "bad_json");
    }

    #[test]
    fn what_is_out_of_its_bounds_is_told_from_what_is_out_of_its_type() {
        for (body, expected) in [
            (r#"{"rate_per_s":-1}"#, "out_of_range"),
            (r#"{"rate_per_s":4294967296}"#, "out_of_range"),
            (r#"{"rate_per_s":1.5}"#, "bad_field"),
            (r#"{"rate_per_s":"1"}"#, "bad_field"),
            (r#"{"rate_per_s":true}"#, "bad_field"),
        ] {
            let (_, code, detail) = refused::<DrainPost>(body);
            assert_eq!(code, expected, "{body}: {detail}");
            assert!(detail.contains("\"rate_per_s\""), "{detail}");
        }
        for (body, expected) in [
            (r#"{"weight":10001}"#, "out_of_range"),
            (r#"{"weight":-1}"#, "out_of_range"),
            (r#"{"pin":{"node":"n","seconds":-1}}"#, "out_of_range"),
            (r#"{"pin":{"node":"n"}}"#, "bad_field"),
            (r#"{"region":""}"#, "bad_field"),
        ] {
            assert_eq!(refused::<TeamPut>(body).1, expected, "{body}");
        }
    }

    #[test]
    fn each_thing_is_said_once_and_nothing_is_said_by_null() {
        for (body, words) in [
            (r#"{"weight":1,"weight":1}"#, "field \"weight\" is given twice"),
            (r#"{"labels":{"a":"1","a":"2"}}"#, "field \"a\" is given twice"),
            (
                r#"{"labels":{"a":"1","\u0061":"2"}}"#,
                "field \"a\" is given twice",
            ),
            (
                r#"{"pin":{"node":"n","seconds":1,"node":"m"}}"#,
                "field \"node\" is given twice",
            ),
            (r#"{"weight":null}"#, "field \"weight\" is null"),
            (r#"{"pin":null}"#, "field \"pin\" is null"),
            (r#"{"labels":{"a":null}}"#, "field \"a\" is null"),
        ] {
            let (status, code, detail) = refused::<TeamPut>(body);
            assert_eq!((status, code.as_str()), (400, "bad_field"), "{body}");
            assert!(detail.starts_with(words), "{body}: {detail}");
        }
        assert_eq!(refused::<Nothing>(r#"{"x":[null]}"#).1, "bad_field");
        assert!(parse::<TeamPut>(&json(), br#"{"labels":{"a":"1","b":"1"},"weight":2}"#).is_ok());
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
