//! Who may have exclusive effects for a team, and from when?
//!
//! A new owner serves clients at once. Exclusive effects wait until the owner before it has said that
//! it stopped, is proven dead, or has outlived its lease; after a restart, when nobody remembers who
//! that was, until every lease of the earlier run is over.

use usher_shared::id::{Incarnation, NodeId, TeamId};
use usher_shared::link::{Activate, Held, HoldState, TeamEpoch, ToNode};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;

use crate::core::Core;
use crate::team::{Activation, Move, Owner};

/// What made a node stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Order {
    /// A move took the team away.
    Move,
    /// A move or a revoke did.
    Any,
}

impl Core {
    /// What a team that is just being made waits for.
    pub(crate) fn activation_of_new(&mut self, id: &TeamId, now: Timestamp) -> Activation {
        if planted::is(Bug::DeleteForgetsWhoStops) {
            return Activation::Owned;
        }
        match self.deleted.remove(id) {
            Some(deleted) => deleted.waits_for,
            // An earlier run may have deleted a team of that name.
            None if now < self.restart_fence => Activation::At(self.restart_fence),
            None => Activation::Owned,
        }
    }

    /// Puts a team that got an owner on the list of what it waits for, or lets it have its effects if
    /// there is nothing to wait for any more. Tells nobody: the assignment will.
    pub(crate) fn await_activation(&mut self, id: &TeamId, now: Timestamp) {
        let Some(team) = self.teams.get(id) else { return };
        let over = match &team.activation {
            Activation::Owned => return,
            Activation::After { before, .. } => {
                self.is_fenced(&before.node, before.incarnation, now) || planted::is(Bug::ActivateBeforeYield)
            }
            Activation::At(at) => *at <= now,
        };
        let waits_for = team.activation.clone();
        if over {
            return self.set_activation(id, Activation::Owned);
        }
        match waits_for {
            Activation::Owned => {}
            Activation::After { before, .. } => {
                let waiting = self.activating.entry((before.node, before.incarnation));
                waiting.or_default().insert(id.clone());
            }
            Activation::At(at) => {
                self.activating_at.insert((at, id.clone()));
            }
        }
    }

    /// Replaces what a team waits for, and takes it off the list of what it waited for.
    pub(crate) fn set_activation(&mut self, id: &TeamId, activation: Activation) {
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        let was = std::mem::replace(&mut team.activation, activation);
        self.leave_waiting(id, &was);
    }

    /// Takes a team off the list of what it waits for.
    pub(crate) fn leave_waiting(&mut self, id: &TeamId, waits_for: &Activation) {
        match waits_for {
            Activation::Owned => {}
            Activation::At(at) => {
                self.activating_at.remove(&(*at, id.clone()));
            }
            Activation::After { before, .. } => {
                let Owner { node, incarnation } = before.clone();
                let key = (node, incarnation);
                if let Some(waiting) = self.activating.get_mut(&key) {
                    waiting.remove(id);
                    if waiting.is_empty() {
                        self.activating.remove(&key);
                    }
                }
            }
        }
    }

    /// The owner may have exclusive effects from now on, and is told so.
    pub(crate) fn activate(&mut self, id: &TeamId) {
        let waits = self
            .teams
            .get(id)
            .is_some_and(|team| team.activation != Activation::Owned);
        if waits {
            self.set_activation(id, Activation::Owned);
            self.send_activate(id);
        }
    }

    /// Tells the owner that nobody is left to wait for.
    pub(crate) fn send_activate(&mut self, id: &TeamId) {
        let Some(team) = self.teams.get(id) else { return };
        let Some(owner) = team.owner.clone() else { return };
        let expected = match &team.moving {
            Some(Move::Leaving { operation, .. }) => operation
                .as_ref()
                .and_then(|operation| self.operations.get(operation)?.counted.get(id).copied()),
            _ => None,
        };
        let activate = Activate {
            team: id.clone(),
            epoch: team.epoch,
            expected,
            term: self.term,
        };
        self.send(&owner.node, ToNode::Activate(activate));
    }

    /// A node has no exclusive effects any more for what it held of a team, because of the order that
    /// this epoch names: of a move, which is above the epoch held, or of a revoke, which may be that one.
    pub(crate) fn stopped(&mut self, id: &NodeId, held: &TeamEpoch, order: Order) {
        let Some(speaks) = self.owner_on(id) else { return };
        // Another process that had the name is not done because this one says that it is.
        let is_it = |process: &Owner| *process == speaks || planted::is(Bug::NamesakeAnswers);
        let awaited = |activation: &Activation| match activation {
            Activation::After { before, since } => {
                let late_enough = match order {
                    Order::Move => held.epoch > *since,
                    Order::Any if planted::is(Bug::RevokedIsNotStopped) => held.epoch > *since,
                    Order::Any => held.epoch >= *since,
                };
                before.node == *id && is_it(before) && (late_enough || planted::is(Bug::StaleYieldCounts))
            }
            _ => false,
        };
        if let Some(deleted) = self.deleted.get_mut(&held.team) {
            if awaited(&deleted.waits_for) {
                deleted.waits_for = Activation::Owned;
            }
            let was_last = deleted.last.as_ref().is_none_or(|last| *last == speaks);
            if was_last && deleted.waits_for == Activation::Owned {
                self.deleted.remove(&held.team);
            }
        }
        if self
            .teams
            .get(&held.team)
            .is_some_and(|team| awaited(&team.activation))
        {
            self.activate(&held.team);
        }
    }

    /// The owner shows the team under its epoch, as `state`.
    pub(crate) fn compare_activation(&mut self, id: &TeamId, state: HoldState, now: Timestamp) {
        let Some(team) = self.teams.get(id) else { return };
        match (state, &team.activation) {
            // It was activated, and the word was lost with its link.
            (HoldState::Prepared, Activation::Owned) => self.send_activate(id),
            (HoldState::Prepared, Activation::At(at)) if *at <= now => self.activate(id),
            (HoldState::Prepared, Activation::At(at)) => {
                let entry = (*at, id.clone());
                self.activating_at.insert(entry);
            }
            // Activated in an earlier run: nobody is left to wait for.
            (HoldState::Owned, Activation::At(_)) => self.set_activation(id, Activation::Owned),
            (_, Activation::After { .. }) | (HoldState::Owned, Activation::Owned) => {}
        }
    }

    /// Whether any team waits for the end of this process's effects, deleted ones included.
    pub(crate) fn is_waited_for(&self, node: &NodeId, incarnation: Incarnation) -> bool {
        let by_deleted = |waits_for: &Activation| match waits_for {
            Activation::After { before, .. } => before.node == *node && before.incarnation == incarnation,
            _ => false,
        };
        self.activating.contains_key(&(node.clone(), incarnation))
            || self.former_of(node) > 0
            || self
                .deleted
                .values()
                .any(|deleted| by_deleted(&deleted.waits_for))
    }

    /// Gives teams to owners whose predecessor can have no effects any more.
    pub(crate) fn activate_after_leases(&mut self, now: Timestamp) {
        let due: Vec<_> = self
            .activating
            .iter()
            .filter(|((node, incarnation), _)| self.is_fenced(node, *incarnation, now))
            .flat_map(|(_, teams)| teams.iter().cloned())
            .collect();
        for team in due {
            self.activate(&team);
        }
        while let Some((at, team)) = self.activating_at.first().cloned() {
            if at > now {
                return;
            }
            self.activating_at.pop_first();
            self.activate(&team);
        }
    }

    /// Whether a team that this node shows was deleted, so that its word is no news.
    pub(crate) fn was_deleted(&self, held: &Held) -> bool {
        let deleted = self.deleted.get(&held.team);
        deleted.is_some_and(|deleted| held.epoch <= deleted.epoch)
    }

    /// Forgets deleted teams whose last owner can neither have effects nor come back.
    pub(crate) fn forget_deleted(&mut self, now: Timestamp) {
        let mut deleted = std::mem::take(&mut self.deleted);
        deleted.retain(|_, deleted| {
            let waits = match &deleted.waits_for {
                Activation::Owned => false,
                Activation::At(at) => *at > now,
                Activation::After { before, .. } => !self.is_fenced(&before.node, before.incarnation, now),
            };
            waits || deleted.last.as_ref().is_some_and(|last| self.may_come_back(last))
        });
        self.deleted = deleted;
    }

    /// Whether a process may say hello again: it is known, and not proven dead.
    fn may_come_back(&self, process: &Owner) -> bool {
        self.nodes
            .get(&process.node)
            .is_some_and(|node| node.incarnation() == process.incarnation && !node.is_proven_dead())
    }
}
