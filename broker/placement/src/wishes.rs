//! What does a team ask for, and can that be met?

use std::collections::BTreeMap;
use usher_shared::id::{Label, NodeId, TeamId};
use usher_shared::link::MAX_LABELS;
use usher_shared::quantity::{Timestamp, Weight};
use usher_shared::rest::{Cause, Pin, TeamKind, TeamPatch, TeamPut};

use crate::command::Answer;
use crate::core::Core;
use crate::record::PinRecord;
use crate::refusal::Refusal;
use crate::team::{Move, Team};

/// The longest pin.
const PIN_MAX_S: u64 = 30 * 86_400;

/// What a team asks for.
#[derive(Clone, Debug)]
struct Wishes {
    weight: Weight,
    region: Option<Label>,
    labels: BTreeMap<Label, Label>,
    pin: Option<PinRecord>,
}

impl Default for Wishes {
    fn default() -> Self {
        Self::of(&Team::new(TeamKind::Put))
    }
}

impl Wishes {
    fn of(team: &Team) -> Self {
        Self {
            weight: team.weight,
            region: team.region.clone(),
            labels: team.labels.clone(),
            pin: team.pin.clone(),
        }
    }
}

impl Core {
    pub(crate) fn put(&mut self, id: &TeamId, put: TeamPut, now: Timestamp) -> Result<Answer, Refusal> {
        let wishes = Wishes {
            weight: put.weight.unwrap_or(Weight::TEAM),
            region: put.region,
            labels: put.labels,
            pin: put.pin.map(|pin| self.pin_of(pin, now)).transpose()?,
        };
        self.specify(id, wishes, now)
    }

    /// What the patch does not name stays as it is.
    pub(crate) fn patch(&mut self, id: &TeamId, patch: TeamPatch, now: Timestamp) -> Result<Answer, Refusal> {
        let mut wishes = self.teams.get(id).map_or_else(Wishes::default, Wishes::of);
        if let Some(weight) = patch.weight {
            wishes.weight = weight.unwrap_or(Weight::TEAM);
        }
        if let Some(region) = patch.region {
            wishes.region = region;
        }
        match patch.labels {
            None => {}
            Some(None) => wishes.labels.clear(),
            Some(Some(labels)) => {
                for (key, value) in labels {
                    match value {
                        Some(value) => wishes.labels.insert(key, value),
                        None => wishes.labels.remove(&key),
                    };
                }
            }
        }
        if let Some(pin) = patch.pin {
            wishes.pin = pin.map(|pin| self.pin_of(pin, now)).transpose()?;
        }
        self.specify(id, wishes, now)
    }

    fn pin_of(&self, pin: Pin, now: Timestamp) -> Result<PinRecord, Refusal> {
        if pin.seconds == 0 || pin.seconds > PIN_MAX_S {
            return Err(Refusal::OutOfRange {
                field: "pin.seconds",
                bounds: "must be from 1 to 2592000 (30 days)",
            });
        }
        if !self.nodes.contains_key(&pin.node) {
            return Err(Refusal::UnknownNode(pin.node));
        }
        Ok(PinRecord {
            node: pin.node,
            until_wall_ms: self.wall_ms(now).saturating_add(pin.seconds * 1_000),
            strength: pin.strength,
        })
    }

    fn specify(&mut self, id: &TeamId, wishes: Wishes, now: Timestamp) -> Result<Answer, Refusal> {
        if wishes.labels.len() > MAX_LABELS {
            return Err(Refusal::OutOfRange {
                field: "labels",
                bounds: "has at most 16 entries",
            });
        }
        if !self.teams.contains_key(id) {
            let team = Team {
                weight: wishes.weight,
                region: wishes.region,
                labels: wishes.labels,
                pin: wishes.pin,
                ..Team::new(TeamKind::Put)
            };
            return self.create(id, team, Cause::Put, None, now);
        }
        self.respecify(id, wishes, now)
    }

    /// An existing team gets other wishes, and moves if its node does not meet them. Wishes that nobody can
    /// meet are refused as a whole: the team keeps the ones that it had.
    fn respecify(&mut self, id: &TeamId, wishes: Wishes, now: Timestamp) -> Result<Answer, Refusal> {
        let Some(team) = self.teams.get_mut(id) else {
            return Err(Refusal::UnknownTeam(id.clone()));
        };
        let (before, wishes_before) = (team.record(), Wishes::of(team));
        team.kind = TeamKind::Put;
        let owner = team.owner.as_ref().map(|owner| owner.node.clone());
        self.set_wishes(id, wishes);
        let met = match owner {
            None => self.may_change_owners() && self.place(id, Cause::Put, now),
            Some(owner) if self.may_change_owners() && !self.suits(id, &owner, now) => {
                self.move_now(id, Cause::Put, None, now)
            }
            Some(_) => {
                if self.teams.get(id).is_some_and(|team| team.record() != before) {
                    self.write_team(id);
                }
                true
            }
        };
        if !met {
            let refusal = self.why_not(id, Cause::Put, now);
            self.set_wishes(id, wishes_before);
            if let Some(team) = self.teams.get_mut(id) {
                team.kind = before.kind;
            }
            return Err(refusal);
        }
        self.assigned(id, false)
    }

    /// Wishes in memory, with what nodes count of them.
    fn set_wishes(&mut self, id: &TeamId, wishes: Wishes) {
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        let (old, new) = (u64::from(team.weight.get()), u64::from(wishes.weight.get()));
        team.weight = wishes.weight;
        team.region = wishes.region;
        team.labels = wishes.labels;
        team.pin = wishes.pin;
        let owner = team.owner.as_ref().map(|owner| owner.node.clone());
        let target = match &team.moving {
            Some(Move::Preparing { target, .. }) => Some(target.node.clone()),
            _ => None,
        };
        if let Some(node) = owner.as_ref().and_then(|owner| self.nodes.get_mut(owner)) {
            node.weight_sum = node.weight_sum + new - old;
        }
        if let Some(node) = target.as_ref().and_then(|target| self.nodes.get_mut(target)) {
            node.reserved_weight = node.reserved_weight + new - old;
        }
        for node in owner.iter().chain(&target) {
            self.rekey(node);
        }
    }

    /// Whether a team's node meets its wishes. A soft pin that cannot be met now is met by any.
    fn suits(&self, id: &TeamId, node: &NodeId, now: Timestamp) -> bool {
        let wall_ms = self.wall_ms(now);
        let (Some(team), Some(node)) = (self.teams.get(id), self.nodes.get(node)) else {
            return true;
        };
        let wish = team.wish(Cause::Put, None, wall_ms);
        let region = wish.region.is_none() || wish.region == node.hello.region.as_ref();
        let labels = wish
            .labels
            .iter()
            .all(|(key, value)| node.hello.labels.get(key) == Some(value));
        let pin = wish.pin.is_none_or(|pin| {
            let can = self
                .nodes
                .get(&pin.node)
                .is_some_and(|pinned| pinned.key.is_some());
            pin.node == *node.id() || (pin.strength == usher_shared::rest::PinStrength::Soft && !can)
        });
        region && labels && pin
    }
}
