//! What a client says in the query of `/connect/{team}`, and what of it goes on to the node.

use percent_encoding::percent_decode_str;
use std::borrow::Cow;
use usher_shared::id::{ConnectionId, Label};
use usher_shared::rest::Problem;
use usher_shared::way::LocationForm;

/// What is passed on: with the ticket and the node's URL it stays well below the 8 KiB that the
/// strictest proxies and clients take.
pub const MAX_PASSED_BYTES: usize = 2_048;

/// A client's query.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct ClientQuery<'q> {
    /// The region that it asks for.
    pub region: Option<Label>,
    /// The form of `Location` that it asks for; one of those that [`LocationForm::from_query`] knows.
    pub location: Option<&'q str>,
    /// The ticket that it had, unchecked.
    pub ticket: Option<&'q str>,
    /// The connection that its next one replaces.
    pub from: Option<ConnectionId>,
    /// Everything else, as it was written, in its order.
    pub passed: Cow<'q, str>,
}

/// What is wrong with a query.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// More than may be passed on.
    #[error("query parameters for the node are at most 2048 bytes")]
    TooLong,
    /// Something that must not reach a header or a log.
    #[error("a query has no control characters, written out or percent-encoded, and is visible ASCII")]
    Control,
    /// Which one counts?
    #[error("region, location, ticket and from are given once at most")]
    Twice,
    /// No such region can be.
    #[error("region must match ^[A-Za-z0-9_][A-Za-z0-9._:/-]{{0,62}}$")]
    Region,
    /// No such form.
    #[error("location is ws, http or net")]
    Location,
    /// No such connection can be.
    #[error("from is a connection id, 16 hexadecimal digits")]
    From,
}

impl QueryError {
    /// The problem that the client is told.
    #[must_use]
    pub fn problem(self) -> Problem {
        match self {
            Self::TooLong => Problem::new(414, "query_too_long", self.to_string()),
            _ => Problem::new(400, "bad_query", self.to_string()),
        }
    }
}

impl<'q> ClientQuery<'q> {
    /// Reads the raw query.
    ///
    /// # Errors
    /// [`QueryError`] with what it must be.
    pub fn parse(raw: &'q str) -> Result<Self, QueryError> {
        if !raw.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(QueryError::Control);
        }
        let mut query = Self::default();
        let mut ours = false;
        for pair in raw.split('&') {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            if percent_decode_str(pair).any(|byte| byte.is_ascii_control()) {
                return Err(QueryError::Control);
            }
            // A name in disguise (`%74icket`) would be read as ours by the node.
            match &*percent_decode_str(name).decode_utf8_lossy() {
                "region" => {
                    let region = decoded(value).parse().map_err(|_| QueryError::Region)?;
                    once(&mut query.region, region)?;
                }
                "location" => {
                    LocationForm::from_query(value).ok_or(QueryError::Location)?;
                    once(&mut query.location, value)?;
                }
                "ticket" => once(&mut query.ticket, value)?,
                "from" => once(&mut query.from, value.parse().map_err(|_| QueryError::From)?)?,
                _ => continue,
            }
            ours = true;
        }
        query.passed = if ours {
            Cow::Owned(without_ours(raw))
        } else {
            Cow::Borrowed(raw)
        };
        if query.passed.len() > MAX_PASSED_BYTES {
            return Err(QueryError::TooLong);
        }
        Ok(query)
    }
}

fn once<T>(slot: &mut Option<T>, value: T) -> Result<(), QueryError> {
    match slot.replace(value) {
        None => Ok(()),
        Some(_) => Err(QueryError::Twice),
    }
}

fn decoded(value: &str) -> Cow<'_, str> {
    percent_decode_str(value).decode_utf8_lossy()
}

fn without_ours(raw: &str) -> String {
    let mut passed = String::with_capacity(raw.len());
    for pair in raw.split('&') {
        let name = decoded(pair.split('=').next().unwrap_or_default());
        if pair.is_empty() || matches!(&*name, "region" | "location" | "ticket" | "from") {
            continue;
        }
        if !passed.is_empty() {
            passed.push('&');
        }
        passed.push_str(pair);
    }
    passed
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_that_are_not_ours_go_on_as_they_were_written() {
        let raw = "usher=1&a=%2F%20b&region=eu&c&from=000000000000000a&&ticket=x.y.z&location=net&d=1=2";
        let query = ClientQuery::parse(raw).unwrap();
        assert_eq!(query.passed, "usher=1&a=%2F%20b&c&d=1=2");
        assert_eq!(query.region.as_ref().map(Label::as_str), Some("eu"));
        assert_eq!((query.ticket, query.location), (Some("x.y.z"), Some("net")));
        assert_eq!(
            query.from.map(|from| from.to_string()).as_deref(),
            Some("000000000000000a")
        );
        assert_eq!(ClientQuery::parse("").unwrap(), ClientQuery::default());
    }

    #[test]
    fn control_characters_are_refused_in_every_spelling() {
        for bad in [
            "a=%0d%0aSet-Cookie:x",
            "a=%00",
            "a=\u{7f}",
            "%0Ab=1",
            "a=\u{e9}",
            "a=%7F",
        ] {
            assert_eq!(ClientQuery::parse(bad), Err(QueryError::Control), "{bad}");
        }
    }

    #[test]
    fn ours_may_come_once_and_in_bounds() {
        for (bad, error) in [
            ("ticket=a&ticket=b", QueryError::Twice),
            ("ticket=a&%74icket=b", QueryError::Twice),
            ("location=evil", QueryError::Location),
            ("region=", QueryError::Region),
            ("region=a%20b", QueryError::Region),
            ("from=1", QueryError::From),
        ] {
            assert_eq!(ClientQuery::parse(bad), Err(error), "{bad}");
        }
    }

    #[test]
    fn what_is_passed_on_is_bounded_and_a_ticket_does_not_count() {
        let long = format!("a={}", "x".repeat(MAX_PASSED_BYTES - 1));
        assert_eq!(ClientQuery::parse(&long), Err(QueryError::TooLong));
        let ticket = format!("ticket={}", "x".repeat(MAX_PASSED_BYTES));
        assert!(ClientQuery::parse(&ticket).is_ok());
    }
}
