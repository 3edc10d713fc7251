//! Which operations count the connections of a team?
//!
//! A node reports thousands of departures and arrivals a second while it is emptied, and a hundred operations are
//! kept: each report finds its operations by the team, and looks into no other.

use std::collections::BTreeMap;
use usher_shared::id::{OperationId, TeamId};

/// The operations that moved a team and still count for it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(crate) struct Movers {
    /// Never an empty list. One, but for a team that moved on while an earlier operation was not over.
    by_team: BTreeMap<TeamId, Vec<OperationId>>,
}

impl Movers {
    /// The operation moved this team.
    pub(crate) fn add(&mut self, team: &TeamId, operation: &OperationId) {
        let known = self.by_team.entry(team.clone()).or_default();
        if !known.contains(operation) {
            known.push(operation.clone());
        }
    }

    /// The operation counts for none of these teams any more.
    pub(crate) fn forget<'a>(&mut self, operation: &OperationId, teams: impl Iterator<Item = &'a TeamId>) {
        for team in teams {
            if let Some(known) = self.by_team.get_mut(team) {
                known.retain(|other| other != operation);
                if known.is_empty() {
                    self.by_team.remove(team);
                }
            }
        }
    }

    /// Those that moved this team.
    pub(crate) fn of(&self, team: &TeamId) -> &[OperationId] {
        self.by_team.get(team).map_or(&[], Vec::as_slice)
    }

    /// How many pairs of a team and an operation there are, for a check against the operations themselves.
    pub(crate) fn pairs(&self) -> usize {
        self.by_team.values().map(Vec::len).sum()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_team_that_moved_on_is_counted_by_both_until_each_is_over() {
        let mut movers = Movers::default();
        let team: TeamId = "T1".parse().unwrap();
        let [first, second]: [OperationId; 2] = ["drain-1-1", "drain-1-2"].map(|id| id.parse().unwrap());
        for operation in [&first, &second, &first] {
            movers.add(&team, operation);
        }
        assert_eq!(movers.of(&team), [first.clone(), second.clone()]);
        movers.forget(&first, [&team].into_iter());
        assert_eq!((movers.of(&team), movers.pairs()), (&[second.clone()][..], 1));
        movers.forget(&second, [&team].into_iter());
        assert_eq!(movers, Movers::default());
    }
}
