//! Why did teams get the nodes that they have?
//!
//! The last decisions, bounded for each team and in all. What is forgotten gives its memory back: a wave of names
//! that come once must not cost more than the names that stay.

use std::collections::{BTreeMap, VecDeque};
use usher_shared::id::TeamId;

/// Decisions kept of one team.
const PER_TEAM: usize = 8;
/// Entries of decisions that are gone may be so many more than twice those that are kept before they are taken out.
const SLACK: usize = 1_024;

/// The last decisions, of whatever kind `D` they are.
#[derive(Clone, Debug)]
pub(crate) struct History<D> {
    /// Newest first, each with its number.
    by_team: BTreeMap<TeamId, VecDeque<(u64, D)>>,
    /// Oldest first; also of some that are gone already.
    order: VecDeque<(u64, TeamId)>,
    kept: usize,
    last: u64,
}

impl<D> Default for History<D> {
    fn default() -> Self {
        Self {
            by_team: BTreeMap::new(),
            order: VecDeque::new(),
            kept: 0,
            last: 0,
        }
    }
}

impl<D> History<D> {
    /// Keeps a decision, within `most` of them in all.
    pub(crate) fn remember(&mut self, team: &TeamId, decision: D, most: usize) {
        self.last += 1;
        self.order.push_back((self.last, team.clone()));
        let of_team = self.by_team.entry(team.clone()).or_default();
        of_team.push_front((self.last, decision));
        if of_team.len() > PER_TEAM {
            of_team.pop_back();
        } else {
            self.kept += 1;
        }
        while self.kept > most && self.drop_oldest() {}
        self.tidy();
    }

    /// Forgets what was decided about a team that is gone.
    pub(crate) fn forget(&mut self, team: &TeamId) {
        if let Some(gone) = self.by_team.remove(team) {
            self.kept -= gone.len();
            self.tidy();
        }
    }

    /// What was decided about a team, newest first.
    pub(crate) fn of(&self, team: &TeamId) -> impl Iterator<Item = &D> {
        self.by_team
            .get(team)
            .into_iter()
            .flatten()
            .map(|(_, decision)| decision)
    }

    /// Whether there was anything left to drop.
    fn drop_oldest(&mut self) -> bool {
        let Some((number, team)) = self.order.pop_front() else {
            return false;
        };
        if let Some(of_team) = self.by_team.get_mut(&team)
            && of_team.back().is_some_and(|(oldest, _)| *oldest == number)
        {
            of_team.pop_back();
            self.kept -= 1;
            if of_team.is_empty() {
                self.by_team.remove(&team);
            }
        }
        true
    }

    fn tidy(&mut self) {
        if self.order.len() <= 2 * self.kept + SLACK {
            return;
        }
        let by_team = &self.by_team;
        self.order.retain(|(number, team)| {
            let mut of_team = by_team.get(team).into_iter().flatten();
            of_team.any(|(kept, _)| kept == number)
        });
        self.order.shrink_to(2 * self.kept + SLACK);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn team(number: usize) -> TeamId {
        format!("T{number}").parse().unwrap()
    }

    fn of(history: &History<u64>, number: usize) -> Vec<u64> {
        history.of(&team(number)).copied().collect()
    }

    #[test]
    fn a_wave_of_names_leaves_nothing_behind() {
        let mut history = History::default();
        for number in 0..50_000 {
            history.remember(&team(number), 0, 100_000);
        }
        for number in 0..50_000 {
            history.forget(&team(number));
        }
        assert_eq!((history.kept, history.by_team.len()), (0, 0));
        assert!(
            history.order.capacity() <= 4 * SLACK,
            "{}",
            history.order.capacity()
        );
    }

    #[test]
    fn each_team_and_all_together_are_bounded_and_the_oldest_go_first() {
        let mut history = History::default();
        for number in 0..20 {
            history.remember(&team(1), number, 10);
        }
        assert_eq!(of(&history, 1), [19, 18, 17, 16, 15, 14, 13, 12]);
        for number in 20..25 {
            history.remember(&team(2), number, 10);
        }
        assert_eq!(of(&history, 2), [24, 23, 22, 21, 20]);
        assert_eq!(of(&history, 1), [19, 18, 17, 16, 15], "the oldest made room");
        history.forget(&team(1));
        history.remember(&team(1), 30, 10);
        assert_eq!(of(&history, 1), [30], "what was forgotten does not come back");
        assert_eq!(history.kept, 6);
    }
}
