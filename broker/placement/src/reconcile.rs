//! What does a node hold that it should not, or lack?
//!
//! Asked once for each link, when the node's inventory is complete and before any of its heartbeats
//! is acknowledged. Only entries with a grant of this cluster are believed; between two claims the
//! higher epoch wins.

use std::collections::BTreeSet;
use usher_shared::id::{NodeId, TeamId};
use usher_shared::link::{Assign, Confirm, Held, HoldState, MAX_LIST, Revoke, TeamEpoch, TeamSpec, ToNode};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::{Cause, TeamKind};

use crate::choose::Decision;
use crate::command::Notice;
use crate::core::Core;
use crate::operation::Operation;
use crate::team::{Activation, Move, Owner, Team};

/// What one entry of an inventory turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The node holds what it should of that team.
    Rightly,
    /// It does too, and the store did not know.
    News,
    /// It should hold something else, or nothing.
    NotItsOwn,
}

/// Whether the new owner is to report the connections that come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrivals {
    /// The team had connections elsewhere, and somebody counts them.
    Reported,
    /// The team is new.
    Unreported,
}

impl Core {
    /// Brings a node's holdings and the core's into line.
    pub(crate) fn reconcile(&mut self, id: &NodeId, inventory: &[Held], now: Timestamp) {
        let mut shown = BTreeSet::new();
        let (mut forged, mut news, mut highest) = (0_u32, 0_u32, Epoch::default());
        for held in inventory {
            let genuine = self.grants.verify(&held.team, id, held.epoch, &held.grant);
            if genuine || planted::is(Bug::GrantsUnchecked) {
                let found = self.reconcile_team(id, held, now);
                if found != Found::NotItsOwn {
                    shown.insert(held.team.clone());
                }
                if found == Found::News {
                    news += 1;
                    highest = highest.max(held.epoch);
                }
            } else {
                forged += 1;
                self.revoke(id, &held.team, held.epoch);
            }
        }
        if forged > 0 {
            // Once for all of them: a node may claim a million teams, and each notice is a line of the log.
            let detail = format!("its inventory has {forged} entries without a grant of this cluster");
            self.bad_message(id, &detail);
        }
        if news > 0 {
            let detail = format!(
                "node {id} holds {news} teams, under epochs up to {highest}, which the store does not have"
            );
            self.notice(Notice::StoreRegressed { detail });
        }
        self.activate_what_was_given_up(id, inventory);
        self.assign_missing(id, &shown);
        self.confirm(id, inventory);
    }

    /// Names what the node holds in full and rightly: its exclusive effects for nothing else outlast
    /// the first acknowledgement of this link.
    fn confirm(&mut self, id: &NodeId, inventory: &[Held]) {
        let as_shown = |held: &&Held| {
            held.state == HoldState::Owned
                && self.teams.get(&held.team).is_some_and(|team| {
                    team.is_owned_by(id) && team.epoch == held.epoch && team.activation == Activation::Owned
                })
        };
        let named: Vec<TeamEpoch> = inventory
            .iter()
            .filter(as_shown)
            .map(|held| TeamEpoch {
                team: held.team.clone(),
                epoch: held.epoch,
            })
            .collect();
        for teams in named.chunks(MAX_LIST) {
            let confirm = Confirm {
                teams: teams.to_vec(),
                term: self.term,
            };
            self.send(id, ToNode::Confirm(confirm));
        }
    }

    /// Teams whose new owner waits for this node to stop, and that it does not hold any more: its
    /// answer was lost with its link. For those it still holds, the answer to the order just sent counts.
    fn activate_what_was_given_up(&mut self, id: &NodeId, inventory: &[Held]) {
        let Some(node) = self.nodes.get(id) else { return };
        let Some(waiting) = self.activating.get(&(id.clone(), node.incarnation())) else {
            return;
        };
        let held: BTreeSet<&TeamId> = inventory.iter().map(|held| &held.team).collect();
        let stopped: Vec<TeamId> = waiting
            .iter()
            .filter(|team| !held.contains(team))
            .cloned()
            .collect();
        for team in stopped {
            self.activate(&team);
        }
    }

    /// One entry.
    fn reconcile_team(&mut self, id: &NodeId, held: &Held, now: Timestamp) -> Found {
        let Some(team) = self.teams.get(&held.team) else {
            if self.was_deleted(held) {
                self.revoke(id, &held.team, held.epoch);
                return Found::NotItsOwn;
            }
            self.adopt_unknown(id, held, now);
            return Found::News;
        };
        if held.epoch > team.epoch {
            if let Some(Move::Preparing { target, epoch, .. }) = &team.moving
                && target.node == *id
                && *epoch == held.epoch
            {
                // The target of a move has made room, and its answer was lost with its link.
                self.commit_prepared(&held.team.clone(), now);
                return Found::Rightly;
            }
            if held.state == HoldState::Prepared && !planted::is(Bug::PreparedBeatsOwned) {
                // Never committed: a move that was undone.
                self.revoke(id, &held.team, held.epoch);
                return Found::NotItsOwn;
            }
            self.adopt(id, held, now);
            return Found::News;
        }
        if team.owner.is_none() && held.epoch == team.epoch && held.state == HoldState::Owned {
            // Presumed dead, back alive, and nobody could take the team meanwhile.
            return self.take_back(id, &held.team);
        }
        if team.is_owned_by(id) {
            if held.epoch < team.epoch {
                // Assigned anew while the link was down; `assign_missing` says it again.
                return Found::NotItsOwn;
            }
            self.compare_activation(&held.team, held.state, now);
            return Found::Rightly;
        }
        let resume_leaving = match &team.moving {
            Some(Move::Leaving {
                from, held: epoch, ..
            }) => from.node == *id && *epoch == held.epoch,
            _ => false,
        };
        if resume_leaving {
            // The drain command may have been lost with the link.
            self.send_drain(&held.team.clone(), now);
        } else {
            // What the node holds is not its any more, whatever the epoch.
            let epoch = team.epoch;
            self.revoke(id, &held.team, epoch);
        }
        Found::NotItsOwn
    }

    fn take_back(&mut self, id: &NodeId, team: &TeamId) -> Found {
        let Some(owner) = self.owner_on(id) else {
            return Found::NotItsOwn;
        };
        self.set_activation(team, Activation::Owned);
        self.own(team, owner);
        self.write_team(team);
        Found::Rightly
    }

    /// A genuine grant for a team that the store does not know. Either the store is older than the team, or
    /// the team was deleted in an earlier run while the node was away: connections are worth more than a
    /// name that an idle team loses again by itself. But where an earlier run on this store may have given the
    /// epoch out, the team may have been surpassed since, so it goes on under a new one.
    fn adopt_unknown(&mut self, id: &NodeId, held: &Held, now: Timestamp) {
        let may_be_surpassed = self.epochs.is_from_before(held.epoch);
        self.adopt(id, held, now);
        if !may_be_surpassed {
            return;
        }
        let epoch = self.next_epoch();
        if let Some(owner) = self.disown(&held.team) {
            if let Some(team) = self.teams.get_mut(&held.team) {
                team.epoch = epoch;
            }
            let at = now.plus(self.settings.dead_after_ms(self.settings.lease_ms));
            self.set_activation(&held.team, Activation::At(at));
            self.own(&held.team, owner);
            self.write_team(&held.team);
            self.send_assign(&held.team, Arrivals::Unreported);
        }
    }

    /// A genuine grant that the store knows nothing of, or less than: the store is an old copy, or
    /// lost its tail. The node is believed, because nothing else knows better.
    fn adopt(&mut self, id: &NodeId, held: &Held, now: Timestamp) {
        self.raise_epochs(held.epoch);
        if self.teams.contains_key(&held.team) {
            self.drop_move(&held.team, "undone", now);
            if let Some(before) = self.disown(&held.team) {
                self.revoke(&before.node, &held.team, before_epoch(self.teams.get(&held.team)));
            }
        } else {
            self.teams.insert(held.team.clone(), Team::new(TeamKind::Auto));
        }
        let Some(incarnation) = self.nodes.get(id).map(crate::node::Node::incarnation) else {
            return;
        };
        if let Some(team) = self.teams.get_mut(&held.team) {
            team.epoch = held.epoch;
        }
        self.own(
            &held.team,
            Owner {
                node: id.clone(),
                incarnation,
            },
        );
        self.write_team(&held.team);
        match held.state {
            HoldState::Owned => self.set_activation(&held.team, Activation::Owned),
            HoldState::Prepared => {
                // Whoever had it before may not have been heard of either.
                let at = now.plus(self.settings.dead_after_ms(self.settings.lease_ms));
                self.set_activation(&held.team, Activation::At(at));
                self.await_activation(&held.team, now);
            }
        }
        let decision = Decision {
            at: now,
            epoch: held.epoch,
            cause: Cause::Adopted,
            node: Some(id.clone()),
            from: None,
            best: Vec::new(),
            gated: Default::default(),
            gated_nodes: Default::default(),
            nodes: u32::try_from(self.nodes.len()).unwrap_or(u32::MAX),
        };
        self.remember(&held.team, decision);
        self.notice(Notice::Assigned {
            team: held.team.clone(),
            node: id.clone(),
            epoch: held.epoch,
            cause: Cause::Adopted,
            last_resort: None,
        });
    }

    /// Says again what the node should hold and did not show.
    fn assign_missing(&mut self, id: &NodeId, shown: &BTreeSet<TeamId>) {
        let Some(node) = self.nodes.get(id) else { return };
        let missing: Vec<TeamId> = node.teams.difference(shown).cloned().collect();
        for team in missing {
            let arrivals = self.arrivals_of(&team);
            self.send_assign(&team, arrivals);
        }
        let Some(node) = self.nodes.get(id) else { return };
        let reserved: Vec<TeamId> = node.reserved.iter().cloned().collect();
        for team in reserved {
            self.send_prepare(&team);
        }
    }

    /// Tells the owner that it holds the team.
    pub(crate) fn send_assign(&mut self, id: &TeamId, arrivals: Arrivals) {
        let Some(team) = self.teams.get(id) else { return };
        let Some(owner) = team.owner.clone() else { return };
        let state = match team.activation {
            Activation::Owned => HoldState::Owned,
            Activation::After { .. } | Activation::At(_) => HoldState::Prepared,
        };
        let epoch = team.epoch;
        if let Activation::At(at) = team.activation {
            // Once it is told, it waits to be told the rest.
            self.activating_at.insert((at, id.clone()));
        }
        self.send_hold(id, &owner.node, epoch, state, arrivals == Arrivals::Reported);
    }

    /// Whether an operation that is going on counts the team's arrivals.
    fn arrivals_of(&self, id: &TeamId) -> Arrivals {
        let counted = |operation: &Operation| operation.is_running() && operation.moved.contains_key(id);
        if self.operations.values().any(counted) {
            Arrivals::Reported
        } else {
            Arrivals::Unreported
        }
    }

    /// Asks the target of a move to make room.
    pub(crate) fn send_prepare(&mut self, id: &TeamId) {
        if let Some(Move::Preparing { target, epoch, .. }) =
            self.teams.get(id).and_then(|team| team.moving.clone())
        {
            self.send_hold(id, &target.node, epoch, HoldState::Prepared, true);
        }
    }

    fn send_hold(&mut self, id: &TeamId, node: &NodeId, epoch: Epoch, state: HoldState, moved: bool) {
        let assign = Assign {
            team: id.clone(),
            held_epoch: None,
            epoch,
            grant: self.grants.sign(id, node, epoch),
            state,
            term: self.term,
            spec: TeamSpec { moved },
        };
        self.send(node, ToNode::Assign(assign));
    }

    /// Tells a node to drop a team, connections and all.
    pub(crate) fn revoke(&mut self, node: &NodeId, team: &TeamId, epoch: Epoch) {
        let revoke = Revoke {
            team: team.clone(),
            epoch,
            term: self.term,
        };
        self.send(node, ToNode::Revoke(revoke));
    }
}

fn before_epoch(team: Option<&Team>) -> Epoch {
    team.map(|team| team.epoch).unwrap_or_default()
}
