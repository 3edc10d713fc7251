//! Who is connected and where, how long everything took, and what went wrong. Pure: time comes in.

use hdrhistogram::Histogram;
use std::collections::BTreeMap;
use usher_shared::id::NodeId;

/// Interruptions kept one by one; what comes after is only counted.
const INTERRUPTIONS_MAX: usize = 100;
/// Kinds of errors told apart.
const ERRORS_MAX: usize = 50;
/// The longest time that is told apart: ten minutes, in microseconds.
const LONGEST_US: u64 = 600_000_000;

/// A time when not everybody was connected.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interruption {
    /// When the first connection was lost.
    pub(crate) began_ms: u64,
    /// Connections lost in it.
    pub(crate) lost: u64,
    /// From the first loss to the moment all were back; `None` while some are away.
    pub(crate) all_back_ms: Option<u64>,
}

/// What happened to all connections together.
#[derive(Debug)]
pub(crate) struct Tally {
    wanted: usize,
    connected: usize,
    /// When all were connected for the first time.
    all_up_ms: Option<u64>,
    interruptions: Vec<Interruption>,
    interruptions_beyond: u64,
    where_is: Vec<Option<NodeId>>,
    team_on: Vec<Option<NodeId>>,
    pub(crate) moves: u64,
    /// Microseconds from asking the broker to a usable connection, of the attempts that succeeded.
    pub(crate) connect: Histogram<u64>,
    /// Microseconds without a connection.
    pub(crate) gap: Histogram<u64>,
    /// Microseconds from a message's sending to its arrival.
    pub(crate) relay: Histogram<u64>,
    pub(crate) errors: BTreeMap<String, u64>,
    /// Messages of another team: must stay zero.
    pub(crate) crossed: u64,
}

/// Teams and connections of one node.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Share {
    pub(crate) teams: u64,
    pub(crate) connections: u64,
}

impl Tally {
    pub(crate) fn new(wanted: usize, teams: usize) -> Result<Self, hdrhistogram::CreationError> {
        let histogram = || {
            let mut histogram = Histogram::new_with_bounds(1, LONGEST_US, 3)?;
            histogram.auto(false);
            Ok(histogram)
        };
        Ok(Self {
            wanted,
            connected: 0,
            all_up_ms: None,
            interruptions: Vec::new(),
            interruptions_beyond: 0,
            where_is: vec![None; wanted],
            team_on: vec![None; teams],
            moves: 0,
            connect: histogram()?,
            gap: histogram()?,
            relay: histogram()?,
            errors: BTreeMap::new(),
            crossed: 0,
        })
    }

    /// A client got a connection, its first or after a loss.
    pub(crate) fn connected(&mut self, client: usize, team: usize, node: Option<&NodeId>, now_ms: u64) {
        self.connected += 1;
        self.placed(client, team, node);
        if self.connected < self.wanted {
            return;
        }
        self.all_up_ms.get_or_insert(now_ms);
        if let Some(last) = self.interruptions.last_mut()
            && last.all_back_ms.is_none()
        {
            last.all_back_ms = Some(now_ms.saturating_sub(last.began_ms));
        }
    }

    /// A client is on another node now, and was never without a connection.
    pub(crate) fn moved(&mut self, client: usize, team: usize, node: Option<&NodeId>) {
        self.moves += 1;
        self.placed(client, team, node);
    }

    fn placed(&mut self, client: usize, team: usize, node: Option<&NodeId>) {
        if let Some(place) = self.where_is.get_mut(client) {
            *place = node.cloned();
        }
        if let Some(place) = self.team_on.get_mut(team) {
            *place = node.cloned();
        }
    }

    /// A client is without a connection.
    pub(crate) fn lost(&mut self, client: usize, now_ms: u64) {
        self.connected = self.connected.saturating_sub(1);
        if let Some(place) = self.where_is.get_mut(client) {
            *place = None;
        }
        // Losses before all were up belong to the start, not to an interruption.
        if self.all_up_ms.is_none() {
            return;
        }
        let full = self.interruptions.len() >= INTERRUPTIONS_MAX;
        match self.interruptions.last_mut() {
            Some(last) if last.all_back_ms.is_none() => last.lost += 1,
            _ if full => self.interruptions_beyond += 1,
            _ => self.interruptions.push(Interruption {
                began_ms: now_ms,
                lost: 1,
                all_back_ms: None,
            }),
        }
    }

    /// Something went wrong; the kinds are few.
    pub(crate) fn error(&mut self, kind: String) {
        let known = self.errors.contains_key(&kind) || self.errors.len() < ERRORS_MAX;
        let kind = if known { kind } else { "others".to_owned() };
        *self.errors.entry(kind).or_default() += 1;
    }

    pub(crate) fn connected_now(&self) -> usize {
        self.connected
    }

    pub(crate) fn all_up_ms(&self) -> Option<u64> {
        self.all_up_ms
    }

    pub(crate) fn interruptions(&self) -> &[Interruption] {
        &self.interruptions
    }

    /// Interruptions that were only counted.
    pub(crate) fn interruptions_beyond(&self) -> u64 {
        self.interruptions_beyond
    }

    /// Teams and connections by node. A team counts where its last connection went.
    pub(crate) fn spread(&self) -> BTreeMap<NodeId, Share> {
        let mut spread: BTreeMap<NodeId, Share> = BTreeMap::new();
        for node in self.team_on.iter().flatten() {
            spread.entry(node.clone()).or_default().teams += 1;
        }
        for node in self.where_is.iter().flatten() {
            spread.entry(node.clone()).or_default().connections += 1;
        }
        spread
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str) -> NodeId {
        name.parse().unwrap()
    }

    #[test]
    fn an_interruption_runs_from_the_first_loss_until_all_are_back() {
        let mut tally = Tally::new(2, 1).unwrap();
        tally.connected(0, 0, Some(&node("a")), 10);
        tally.lost(0, 20);
        assert_eq!(tally.interruptions(), []);
        tally.connected(0, 0, Some(&node("a")), 30);
        tally.connected(1, 0, Some(&node("a")), 40);
        assert_eq!(tally.all_up_ms(), Some(40));
        tally.lost(0, 100);
        tally.lost(1, 110);
        tally.connected(0, 0, Some(&node("b")), 300);
        assert_eq!(tally.interruptions().last().unwrap().all_back_ms, None);
        tally.connected(1, 0, Some(&node("b")), 520);
        assert_eq!(
            tally.interruptions(),
            [Interruption {
                began_ms: 100,
                lost: 2,
                all_back_ms: Some(420)
            }]
        );
    }

    #[test]
    fn the_spread_follows_moves_and_losses() {
        let mut tally = Tally::new(3, 2).unwrap();
        for (client, team) in [(0, 0), (1, 1), (2, 0)] {
            tally.connected(client, team, Some(&node("a")), 0);
        }
        tally.moved(1, 1, Some(&node("b")));
        tally.lost(2, 1);
        let share = |teams, connections| Share { teams, connections };
        assert_eq!(
            tally.spread(),
            BTreeMap::from([(node("a"), share(1, 1)), (node("b"), share(1, 1))])
        );
        assert_eq!(tally.moves, 1);
    }

    #[test]
    fn kinds_of_errors_are_bounded() {
        let mut tally = Tally::new(1, 1).unwrap();
        for number in 0..100 {
            tally.error(format!("kind {number}"));
        }
        assert_eq!(tally.errors.len(), ERRORS_MAX + 1);
        assert_eq!(tally.errors["others"], 50);
    }
}
