//! Which page of the teams an operator asks for.

use percent_encoding::percent_decode_str;
use usher_shared::id::{NodeId, TeamId};
use usher_shared::rest::Problem;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;

/// The query of `GET /v1/teams`.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct TeamsQuery {
    /// Only this node's.
    pub(crate) node: Option<NodeId>,
    /// Only those after this one.
    pub(crate) after: Option<TeamId>,
    /// At most so many.
    pub(crate) limit: usize,
}

impl TeamsQuery {
    /// Reads the raw query.
    pub(crate) fn parse(raw: &str) -> Result<Self, Problem> {
        let mut query = Self {
            node: None,
            after: None,
            limit: DEFAULT_LIMIT,
        };
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
            let value = percent_decode_str(value).decode_utf8_lossy();
            let taken = match name {
                "node" => value.parse().map(|node| query.node = Some(node)).is_ok(),
                "after" => value.parse().map(|team| query.after = Some(team)).is_ok(),
                "limit" => {
                    let limit = value.parse().ok().filter(|limit| (1..=MAX_LIMIT).contains(limit));
                    limit.map(|limit| query.limit = limit).is_some()
                }
                _ => false,
            };
            if !taken {
                return Err(Problem::new(
                    400,
                    "bad_query",
                    "the query takes node (a node name), after (a team id) and limit (1 to 1000)",
                ));
            }
        }
        Ok(query)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_100_teams_unless_said_otherwise() {
        let all = TeamsQuery::parse("").unwrap();
        assert_eq!((all.node, all.after, all.limit), (None, None, 100));
        let some = TeamsQuery::parse("limit=1000&node=n1&after=T%3A1").unwrap();
        assert_eq!(some.limit, 1_000);
        assert_eq!(some.after.unwrap().as_str(), "T:1");
    }

    #[test]
    fn what_is_out_of_bounds_or_unknown_is_refused() {
        for bad in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "node=",
            "after=..",
            "x=1",
            "limit",
        ] {
            assert_eq!(TeamsQuery::parse(bad).unwrap_err().code, "bad_query", "{bad}");
        }
    }
}
