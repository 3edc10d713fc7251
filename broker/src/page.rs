//! What of a list an operator asks for.

use percent_encoding::percent_decode_str;
use usher_shared::id::{NodeId, TeamId};
use usher_shared::rest::Problem;

const DEFAULT_LIMIT: usize = 100;
const MAX_LIMIT: usize = 1_000;
/// More operations are not kept for long, so none is asked for.
const MAX_OPERATIONS: usize = 100;

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
        let (mut node, mut after, mut limit) = (None, None, None);
        let taken = each_once(raw, |name, value| match name {
            "node" => take(&mut node, value.parse().ok()),
            "after" => take(&mut after, value.parse().ok()),
            "limit" => take(&mut limit, bounded(value, MAX_LIMIT)),
            _ => false,
        });
        if !taken {
            return Err(bad_query(
                "the query takes node (a node name), after (a team id) and limit (1 to 1000), each once",
            ));
        }
        Ok(Self {
            node,
            after,
            limit: limit.unwrap_or(DEFAULT_LIMIT),
        })
    }
}

/// How many of the newest operations the query of `GET /v1/operations` asks for.
pub(crate) fn operations_limit(raw: &str) -> Result<usize, Problem> {
    let mut limit = None;
    let taken = each_once(raw, |name, value| {
        name == "limit" && take(&mut limit, bounded(value, MAX_OPERATIONS))
    });
    if taken {
        Ok(limit.unwrap_or(MAX_OPERATIONS))
    } else {
        Err(bad_query("the query takes limit (1 to 100), once"))
    }
}

/// Refuses any parameter, for paths that take none: one that is passed over in silence looks obeyed.
pub(crate) fn no_query(raw: &str) -> Result<(), Problem> {
    if each_once(raw, |_, _| false) {
        Ok(())
    } else {
        Err(bad_query("this path takes no query"))
    }
}

/// Whether every parameter was taken.
fn each_once(raw: &str, mut take: impl FnMut(&str, &str) -> bool) -> bool {
    raw.split('&').filter(|pair| !pair.is_empty()).all(|pair| {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        take(name, &percent_decode_str(value).decode_utf8_lossy())
    })
}

/// Whether there is a value, and it is the first.
fn take<T>(slot: &mut Option<T>, value: Option<T>) -> bool {
    let first = slot.is_none();
    *slot = value;
    first && slot.is_some()
}

fn bounded(value: &str, most: usize) -> Option<usize> {
    value.parse().ok().filter(|limit| (1..=most).contains(limit))
}

fn bad_query(rule: &'static str) -> Problem {
    Problem::new(400, "bad_query", rule)
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
    fn what_is_out_of_bounds_unknown_or_given_twice_is_refused() {
        for bad in [
            "limit=0",
            "limit=1001",
            "limit=x",
            "node=",
            "after=..",
            "x=1",
            "limit",
            "limit=1&limit=1",
            "node=a&limit=1&node=a",
        ] {
            assert_eq!(TeamsQuery::parse(bad).unwrap_err().code, "bad_query", "{bad}");
        }
    }

    #[test]
    fn operations_take_a_limit_and_the_other_paths_nothing() {
        assert_eq!(operations_limit("").unwrap(), 100);
        assert_eq!(operations_limit("limit=5").unwrap(), 5);
        for bad in ["limit=0", "limit=101", "limit=1&limit=2", "node=a"] {
            assert_eq!(operations_limit(bad).unwrap_err().code, "bad_query", "{bad}");
        }
        assert!(no_query("").is_ok() && no_query("&").is_ok());
        assert_eq!(no_query("limit=1").unwrap_err().code, "bad_query");
    }
}
