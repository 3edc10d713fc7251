//! Self-preservation, counted a second time: does it hold what it should, and does it end?

use usher_placement::{Evidence, Preservation};
use usher_shared::id::NodeId;
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{BrokerState, NodeState};

use super::broker::BrokerTime;
use super::world::World;

/// What the broker may be late by, on top of its bound.
const LATE_MS: u64 = 2_000;

/// What is remembered of the broker's caution.
#[derive(Default)]
pub(super) struct Caution {
    /// Since when it has held still although somebody could take the silent nodes' teams.
    held_since: Option<Timestamp>,
    /// When it began, as the broker said.
    begun: Timestamp,
    /// An operator, or the bound in time, has ended it.
    released: bool,
}

impl World {
    pub(super) fn mirror_preserves(&mut self, change: Preservation) {
        let now = self.broker_local();
        let caution = &mut self.mirror.caution;
        let lasted = now.since(caution.begun);
        self.mirror.preserving = false;
        match change {
            Preservation::Begun { .. } => {
                caution.released = false;
                caution.begun = now;
                self.mirror.preserving = true;
            }
            Preservation::Recovered => caution.released = false,
            Preservation::Released => caution.released = true,
            Preservation::Expired => {
                caution.released = true;
                let bound = self.preserve_ms();
                if lasted < bound {
                    self.fail(format!(
                        "S17: self-preservation ended after {lasted} ms, of {bound}"
                    ));
                }
            }
        }
    }

    fn preserve_ms(&self) -> u64 {
        self.main
            .as_ref()
            .map_or(0, |broker| broker.settings.preserve_ms())
    }

    /// The broker has looked at what is due.
    pub(super) fn check_caution_ends(&mut self) {
        let now = self.broker_local();
        let Some(broker) = &self.main else { return };
        let can_take = |broker: &super::broker::Broker| {
            let nodes = broker.core.nodes(now);
            nodes
                .iter()
                .any(|view| view.state == NodeState::Ready && view.gates.is_empty())
        };
        let holds = broker.core.status(now).state == BrokerState::SelfPreservation && can_take(broker);
        if !holds {
            self.mirror.caution.held_since = None;
            return;
        }
        let since = *self.mirror.caution.held_since.get_or_insert(now);
        let (held, bound) = (now.since(since), self.preserve_ms());
        if held > 2 * bound + LATE_MS {
            self.fail(format!(
                "S17: self-preservation goes on after {held} ms, of {bound}, although somebody could take the teams"
            ));
        }
    }

    /// A death that is not proven: is it a refusal, or are not too many silent at once?
    pub(super) fn check_not_too_many(&mut self, node: &NodeId, evidence: Evidence, now: BrokerTime) {
        let lease_ms = self.main.as_ref().map_or(0, |broker| broker.settings.lease_ms);
        let window = 2 * lease_ms;
        let holds = |world: &Self, id: &NodeId| world.mirror.owners.values().any(|(owner, _)| owner == id);
        let (mut zones, mut total) = (Vec::new(), 0_u64);
        let mut heard = false;
        for (id, other) in &self.mirror.nodes {
            let silent = match other.dead {
                _ if id == node => true,
                Some((_, true)) => continue,
                Some((since, false)) if now.since(since) > window => continue,
                Some(_) => true,
                None => other.silent || now.since(other.heard) > 2 * self.plan.heartbeat_ms,
            };
            heard |= !silent && other.reported;
            // Who holds nothing, or held nothing when it died, does not count.
            let counts = if other.dead.is_some() {
                other.held
            } else {
                holds(self, id)
            };
            if !counts {
                continue;
            }
            total += 1;
            if silent {
                zones.push(other.zone.clone());
            }
        }
        let one_zone = zones.iter().all(|zone| zone.is_some() && *zone == zones[0]);
        let too_many = zones.len() > 1 && zones.len() as u64 * 10 > total * 3 && !one_zone;
        if !too_many || self.mirror.caution.released {
            return;
        }
        if evidence == Evidence::Refuses {
            self.count("death by a hint in self-preservation");
            // The broker may count one that holds its tongue for a moment as heard.
            if !heard && self.mirror.preserving {
                self.fail(format!(
                    "S17: {node} counts as dead by a hint while nobody could take its teams: {}",
                    self.mirror.in_words(now)
                ));
            }
            return;
        }
        self.fail(format!(
            "S17: {node} counts as dead without proof ({evidence:?}) while {} of {total} nodes are silent: {}",
            zones.len(),
            self.mirror.in_words(now)
        ));
    }
}
