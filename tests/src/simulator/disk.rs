//! The broker's disk: what is on it survives, and nothing else.

use std::collections::BTreeMap;
use usher_placement::{NodeRecord, OperationRecord, Record, Snapshot, TeamRecord};
use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::quantity::{Epoch, Term};

use super::dice::Dice;
use super::world::cluster;

/// Copies kept of the past.
const COPIES: usize = 24;

/// What survives a crash.
#[derive(Clone, Debug, Default)]
pub(super) struct Contents {
    pub(super) epochs: Epoch,
    pub(super) term: Term,
    pub(super) teams: BTreeMap<TeamId, TeamRecord>,
    pub(super) nodes: BTreeMap<NodeId, NodeRecord>,
    pub(super) operations: BTreeMap<OperationId, OperationRecord>,
}

/// A disk, and copies of what was on it.
#[derive(Debug, Default)]
pub(super) struct Disk {
    pub(super) now: Contents,
    copies: Vec<Contents>,
    commits: u64,
}

impl Disk {
    pub(super) fn new(counters_from: u64) -> Self {
        Self {
            now: Contents {
                epochs: Epoch::new(counters_from).unwrap_or_default(),
                term: Term::new(counters_from).unwrap_or_default(),
                ..Contents::default()
            },
            ..Self::default()
        }
    }

    pub(super) fn commit(&mut self, batch: Vec<Record>) {
        for record in batch {
            self.now.keep(record);
        }
        self.commits += 1;
        if self.commits.is_multiple_of(5) && !self.now.nodes.is_empty() {
            if self.copies.len() == COPIES {
                self.copies.remove(0);
            }
            self.copies.push(self.now.clone());
        }
    }

    /// Puts a copy of the past back. Returns whether there was one.
    pub(super) fn restore(&mut self, dice: &mut Dice) -> bool {
        if self.copies.is_empty() {
            return false;
        }
        let copy = dice.index(self.copies.len());
        self.now = self.copies[copy].clone();
        true
    }
}

impl Contents {
    pub(super) fn snapshot(&self) -> Snapshot {
        Snapshot {
            cluster: cluster(),
            term: self.term,
            epochs_reserved: self.epochs,
            teams: self.teams.clone().into_iter().collect(),
            nodes: self.nodes.clone().into_iter().collect(),
            operations: self.operations.clone().into_iter().collect(),
        }
    }

    fn keep(&mut self, record: Record) {
        match record {
            Record::Epochs { reserved } => self.epochs = reserved,
            Record::Term(term) => self.term = term,
            Record::Team(id, record) => keep(&mut self.teams, id, record),
            Record::Node(id, record) => keep(&mut self.nodes, id, record),
            Record::Operation(id, record) => keep(&mut self.operations, id, record),
        }
    }
}

fn keep<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}
