//! Whose departure and arrival is that?
//!
//! Nodes report each connection that leaves with a team on its way, and each that comes in after it. Both
//! count for the operation that moved the team under that epoch. A client that was away while its team went
//! on by another operation arrives under that one's epoch; it still belongs to the one by which it left.

use std::collections::BTreeMap;
use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::link::{Arrival, Arrivals, Departures, EndedBy, Missed};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::OperationKind;

use crate::core::Core;
use crate::event::LinkId;
use crate::notice::Notice;
use crate::operation::{At, Operation};

impl Core {
    pub(crate) fn arrived(&mut self, link: LinkId, arrivals: &Arrivals, now: Timestamp) {
        let Some(id) = self.speaker(link) else { return };
        if let Some(node) = self.nodes.get_mut(&id) {
            node.reports = true;
        }
        for arrival in &arrivals.connections {
            let Some(operation) = self.left_by(arrival) else {
                continue;
            };
            let Some(operation) = self.operations.get_mut(&operation) else {
                continue;
            };
            let at = At::of(arrival.age_ms, now);
            let gap = operation.arrived(&arrival.team, arrival.from, &id, at, now);
            if let Some(millis) = gap {
                self.notice(Notice::Gap { millis });
            }
        }
    }

    /// A team has a new owner by an operation: from now on what it reports counts there. Of one that is over for
    /// good the figures stay as they are.
    pub(crate) fn count_moved(&mut self, id: &OperationId, team: &TeamId, epoch: Epoch) {
        if let Some(operation) = self.operations.get_mut(id).filter(|known| !known.is_settled()) {
            operation.moved.insert(team.clone(), epoch);
            self.movers.add(team, id);
        }
    }

    /// The operations that moved a team and count for it.
    pub(crate) fn movers_of(&self, team: &TeamId) -> impl Iterator<Item = &Operation> {
        self.movers
            .of(team)
            .iter()
            .filter_map(|id| self.operations.get(id))
    }

    /// The operation that moved a team under this very epoch.
    fn mover(&mut self, team: &TeamId, epoch: Epoch) -> Option<&mut Operation> {
        let by_it = |id: &&OperationId| {
            let known = self.operations.get(*id);
            known.is_some_and(|known| known.moved.get(team) == Some(&epoch))
        };
        let id = self.movers.of(team).iter().find(by_it)?;
        self.operations.get_mut(id)
    }

    /// Drops what an operation needed to count, once it has ended and the last of its teams has left.
    pub(crate) fn forget_ended(&mut self, id: &OperationId, now: Timestamp) {
        let over = |known: &Operation| !known.is_running() && known.leaving.is_empty();
        if self.operations.get(id).is_some_and(over) {
            if let Some(operation) = self.operations.get_mut(id) {
                operation.settle_figures(now);
            }
            self.forget_moved(id);
        }
    }

    /// The operation counts for no team any more.
    pub(crate) fn forget_moved(&mut self, id: &OperationId) {
        if let Some(operation) = self.operations.get_mut(id) {
            let moved = std::mem::take(&mut operation.moved);
            self.movers.forget(id, moved.keys());
        }
    }

    /// The operation by which this connection had left.
    fn left_by(&self, arrival: &Arrival) -> Option<OperationId> {
        let running = || {
            self.movers_of(&arrival.team)
                .filter(|operation| operation.is_running())
        };
        if let Some(from) = arrival.from
            && let Some(knows) = running().find(|operation| operation.knows(from))
        {
            return Some(knows.id.clone());
        }
        let moved = || {
            running().filter_map(|operation| {
                let epoch = operation.moved.get(&arrival.team)?;
                (*epoch <= arrival.epoch).then_some((*epoch, operation))
            })
        };
        let exact = moved()
            .find(|(epoch, _)| *epoch == arrival.epoch)
            .map(|(_, operation)| operation);
        // Whoever names a connection that has not left opened the new one first; anybody else was away.
        let misses = |operation: &Operation| arrival.from.is_some() || operation.misses(&arrival.team);
        let found = match exact.filter(|operation| misses(operation)) {
            Some(exact) => Some(exact),
            None => moved()
                .filter(|(_, operation)| operation.misses(&arrival.team))
                .max_by_key(|(epoch, _)| *epoch)
                .map(|(_, operation)| operation)
                .or(exact),
        };
        found.map(|operation| operation.id.clone())
    }

    pub(crate) fn left(&mut self, link: LinkId, departures: &Departures, now: Timestamp) {
        let Some(id) = self.speaker(link) else { return };
        let mut ended: BTreeMap<EndedBy, u32> = BTreeMap::new();
        for departure in &departures.connections {
            // A client whose new node does not tell of arrivals cannot be missed.
            let watched = self
                .teams
                .get(&departure.team)
                .and_then(|team| self.nodes.get(&team.owner.as_ref()?.node))
                .is_some_and(|node| node.reports);
            // A dead process reports nothing: what its name says now is of another one.
            let may_report = |operation: &&mut Operation| {
                let of_dead = operation.kind == OperationKind::Failover && operation.died.is_some();
                operation.node == id && !of_dead
            };
            let ours = self.mover(&departure.team, departure.epoch);
            let Some(operation) = ours.filter(may_report) else {
                continue;
            };
            *ended.entry(departure.by).or_default() += 1;
            let at = At::of(departure.age_ms, now);
            let gap = operation.departed(&departure.team, departure.connection, at, watched, now);
            if let Some(millis) = gap {
                self.notice(Notice::Gap { millis });
            }
        }
        for (by, connections) in ended {
            self.notice(Notice::Departed { by, connections });
        }
    }

    /// Frames that members of teams on their way did not get.
    pub(crate) fn missed(&mut self, link: LinkId, missed: &Missed) {
        if self.speaker(link).is_none() {
            return;
        }
        for entry in &missed.teams {
            if let Some(operation) = self.mover(&entry.team, entry.epoch) {
                operation.add_missed(entry.deliveries);
            }
        }
        let total = missed.teams.iter().map(|entry| entry.deliveries).sum();
        self.notice(Notice::Missed { deliveries: total });
    }

    /// Whether a node tells of each connection that arrives and leaves.
    pub(crate) fn reports(&self, id: &NodeId) -> bool {
        self.nodes.get(id).is_some_and(|node| node.reports)
    }
}
