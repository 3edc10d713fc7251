//! Whose departure and arrival is that?
//!
//! Nodes report each connection that leaves with a team on its way, and each that comes in after it. Both
//! count for the operation that moved the team under that epoch. A client that was away while its team went
//! on by another operation arrives under that one's epoch; it still belongs to the one by which it left.

use std::collections::BTreeMap;
use usher_shared::id::{NodeId, OperationId};
use usher_shared::link::{Arrival, Arrivals, Departures, EndedBy, Missed};
use usher_shared::quantity::Timestamp;
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

    /// The operation by which this connection had left.
    fn left_by(&self, arrival: &Arrival) -> Option<OperationId> {
        let running = || {
            self.operations
                .values()
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
            let ours = self.operations.values_mut().find(|operation| {
                operation.moved.get(&departure.team) == Some(&departure.epoch)
                    // A dead process reports nothing: what its name says now is of another one.
                    && (operation.kind != OperationKind::Failover || operation.died.is_none())
            });
            let Some(operation) = ours.filter(|operation| operation.node == id) else {
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
            let ours = self
                .operations
                .values_mut()
                .find(|operation| operation.moved.get(&entry.team) == Some(&entry.epoch));
            if let Some(operation) = ours {
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
