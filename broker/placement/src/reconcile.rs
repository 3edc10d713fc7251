//! What does a node hold that it should not, or lack?
//!
//! Asked once for each link, when the node's inventory is complete and before any of its heartbeats
//! is acknowledged. Only entries with a grant of this cluster are believed; between two claims the
//! higher epoch wins.

use std::collections::BTreeSet;
use usher_shared::id::{NodeId, TeamId};
use usher_shared::lease;
use usher_shared::link::{Assign, Confirm, Held, HoldState, MAX_LIST, Revoke, TeamEpoch, TeamSpec, ToNode};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::{Cause, TeamKind};

use crate::choose::Decision;
use crate::core::Core;
use crate::epochs::Epochs;
use crate::notice::{MoveOutcome, NodeFault, Notice, Regressed};
use crate::operation::Operation;
use crate::team::{Activation, Move, Owner, Team};

/// What one entry of an inventory turned out to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Found {
    /// The node holds what it should of that team.
    Rightly,
    /// It does too, and the store did not know.
    News,
    /// The store did not know, and the node is to hold the team under another epoch.
    NewsAnew,
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
        let is_genuine = |held: &Held| {
            let signed = self.grants.verify(&held.team, id, held.epoch, &held.grant);
            signed || planted::is(Bug::GrantsUnchecked)
        };
        let checked: Vec<(&Held, bool)> = inventory.iter().map(|held| (held, is_genuine(held))).collect();
        // Before any epoch is given out because of this inventory, the counter must be above all that it shows.
        let known = self.epochs.clone();
        let shows = checked.iter().filter(|(_, genuine)| *genuine);
        if let Some(most) = shows.map(|(held, _)| held.epoch).max()
            && !known.covers(most)
        {
            self.raise_epochs(most);
            self.store_regressed = true;
        }
        for (held, genuine) in checked {
            if genuine {
                let found = self.reconcile_team(id, held, &known, now);
                if matches!(found, Found::Rightly | Found::News) {
                    shown.insert(held.team.clone());
                }
                if matches!(found, Found::News | Found::NewsAnew) {
                    news += 1;
                    highest = highest.max(held.epoch);
                }
            } else {
                forged += 1;
                // Its own team under its own epoch is granted anew below: after a revoke of that very
                // epoch it could not take it back.
                if !self.is_as_stored(id, held) {
                    self.revoke(id, &held.team, held.epoch);
                }
            }
        }
        if forged > 0 {
            // Once for all of them: a node may claim a million teams, and each notice is a line of the log.
            self.bad_message(id, NodeFault::Ungranted(forged));
        }
        if news > 0 {
            self.store_regressed = true;
            let by = Regressed::Grants { teams: news, highest };
            self.notice(Notice::StoreRegressed { node: id.clone(), by });
        }
        self.activate_what_was_given_up(id, inventory);
        self.assign_missing(id, &shown);
        self.confirm(id, inventory);
    }

    /// Whether the node owns what it shows, under the epoch that it shows.
    fn is_as_stored(&self, id: &NodeId, held: &Held) -> bool {
        let team = self.teams.get(&held.team);
        team.is_some_and(|team| team.is_owned_by(id) && team.epoch == held.epoch)
    }

    /// Names what the node holds in full and rightly: its exclusive effects for nothing else outlast
    /// the first acknowledgement of this link.
    fn confirm(&mut self, id: &NodeId, inventory: &[Held]) {
        let as_shown = |held: &&Held| {
            let activated = self
                .teams
                .get(&held.team)
                .is_some_and(|team| team.activation == Activation::Owned);
            held.state == HoldState::Owned && activated && self.is_as_stored(id, held)
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

    /// Teams whose new owner waits for this node to stop, or would once the team is made anew, and that
    /// it does not hold any more: its answer was lost with its link. For those it still holds, the answer
    /// to the order just sent counts.
    fn activate_what_was_given_up(&mut self, id: &NodeId, inventory: &[Held]) {
        let Some(node) = self.nodes.get(id) else { return };
        let incarnation = node.incarnation();
        let held: BTreeSet<&TeamId> = inventory.iter().map(|held| &held.team).collect();
        let is_it = |owner: &Owner| owner.node == *id && owner.incarnation == incarnation;
        self.deleted.retain(|team, deleted| {
            if held.contains(team) {
                return true;
            }
            if matches!(&deleted.waits_for, Activation::After { before, .. } if is_it(before)) {
                deleted.waits_for = Activation::Owned;
            }
            deleted.last = deleted.last.take().filter(|last| !is_it(last));
            deleted.waits_for != Activation::Owned || deleted.last.is_some()
        });
        let awaits_it = |team: &&TeamId| {
            let team = self.teams.get(*team);
            team.is_some_and(|team| match &team.activation {
                Activation::After { before, .. } => before.node == *id && before.incarnation == incarnation,
                _ => false,
            })
        };
        let unplaced = self.unplaced.iter().filter(awaits_it);
        let waiting = self.activating.get(&(id.clone(), incarnation));
        let stopped: Vec<TeamId> = waiting
            .into_iter()
            .flatten()
            .chain(unplaced)
            .filter(|team| !held.contains(team))
            .cloned()
            .collect();
        for team in stopped {
            self.activate(&team);
        }
    }

    /// One entry, with the counter as it was before the inventory came.
    fn reconcile_team(&mut self, id: &NodeId, held: &Held, known: &Epochs, now: Timestamp) -> Found {
        let Some(team) = self.teams.get(&held.team) else {
            if self.was_deleted(held) {
                // Up to the last epoch of it: what was under way to the node on its last link is gone with that, and
                // an answer about what it shows would not be one about what it is waited for.
                let last = self
                    .deleted
                    .get(&held.team)
                    .map_or(held.epoch, |deleted| deleted.epoch);
                self.revoke(id, &held.team, last);
                return Found::NotItsOwn;
            }
            let ours = known.gave(held.epoch);
            if ours && !self.store_regressed {
                // It was deleted while this node was away, and had another owner since.
                self.revoke(id, &held.team, held.epoch);
                return Found::NotItsOwn;
            }
            if known.covers(held.epoch) && !planted::is(Bug::OldClaimAdopted) {
                self.adopt_anew(id, held, now);
                return Found::NewsAnew;
            }
            self.adopt(id, held, now);
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
                // Never committed: a move that was undone, or one that the store has forgotten.
                self.revoke(id, &held.team, held.epoch);
                self.renew_after(id, held, now);
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

    /// The owner itself says that nothing is left of a team, by an epoch at or above the one it has it
    /// under: the store is an old copy, and the node would not take the team back under the old epoch.
    /// The word is no grant, so it raises no counter.
    pub(crate) fn renew_what_was_released(&mut self, id: &NodeId, held: &TeamEpoch, now: Timestamp) {
        let Some(team) = self.teams.get(&held.team) else {
            return;
        };
        let lacks_it = team.is_owned_by(id) && held.epoch >= team.epoch;
        if !lacks_it || !self.epochs.covers(held.epoch) {
            return;
        }
        // A move in hand has its epoch already, and it would be below the new one.
        self.drop_move(&held.team, MoveOutcome::Undone, now);
        let epoch = self.next_epoch();
        if let Some(team) = self.teams.get_mut(&held.team) {
            team.epoch = epoch;
        }
        self.write_team(&held.team);
        self.publish_route(&held.team);
        self.send_assign(&held.team, Arrivals::Unreported);
    }

    /// What was revoked here surpasses the epoch under which this very node owns the team: it would not
    /// take it back under that one.
    fn renew_after(&mut self, id: &NodeId, held: &Held, now: Timestamp) {
        let owns = self
            .teams
            .get(&held.team)
            .is_some_and(|team| team.is_owned_by(id));
        if !owns {
            return;
        }
        self.drop_move(&held.team, MoveOutcome::Undone, now);
        self.raise_epochs(held.epoch);
        let epoch = self.next_epoch();
        if let Some(team) = self.teams.get_mut(&held.team) {
            team.epoch = epoch;
        }
        self.write_team(&held.team);
        self.publish_route(&held.team);
    }

    fn take_back(&mut self, id: &NodeId, team: &TeamId) -> Found {
        let Some(owner) = self.owner_on(id) else {
            return Found::NotItsOwn;
        };
        self.set_activation(team, Activation::Owned);
        self.own(team, owner);
        self.write_team(team);
        self.publish_route(team);
        Found::Rightly
    }

    /// A genuine grant that the store knows nothing of, or less than: the store is an old copy, or
    /// lost its tail. The node is believed, because nothing else knows better.
    fn adopt(&mut self, id: &NodeId, held: &Held, now: Timestamp) {
        self.raise_epochs(held.epoch);
        let mut acts_still = None;
        if self.teams.contains_key(&held.team) {
            self.drop_move(&held.team, MoveOutcome::Undone, now);
            if let Some(before) = self.disown(&held.team) {
                let epoch = before_epoch(self.teams.get(&held.team));
                self.revoke(&before.node, &held.team, epoch);
                // This run may have confirmed it: it is waited for until it has answered that.
                let fenced = self.is_fenced(&before.node, before.incarnation, now);
                if before.node != *id && !fenced && !planted::is(Bug::AdoptedBesideOwner) {
                    acts_still = Some(Activation::After { before, since: epoch });
                }
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
        self.publish_route(&held.team);
        match (held.state, acts_still) {
            (_, Some(acts_still)) => {
                self.set_activation(&held.team, acts_still);
                self.await_activation(&held.team, now);
            }
            (HoldState::Owned, None) => self.set_activation(&held.team, Activation::Owned),
            (HoldState::Prepared, None) => {
                // Whoever had it before may not have been heard of either.
                let at = now.plus(lease::dead_after_ms(self.settings.lease_ms));
                self.set_activation(&held.team, Activation::At(at));
                self.await_activation(&held.team, now);
            }
        }
        self.note_adopted(id, &held.team, held.epoch, now);
    }

    /// A genuine grant for a team that the store does not know, under an epoch below those that this run gives
    /// out. Either the store is an old copy, or the team was deleted in an earlier run while the
    /// node was away: connections are worth more than a name that an idle team loses again by itself. The
    /// team may have been surpassed since, so it goes on under a new epoch.
    fn adopt_anew(&mut self, id: &NodeId, held: &Held, now: Timestamp) {
        let Some(owner) = self.owner_on(id) else { return };
        let epoch = self.next_epoch();
        let activation = self.activation_of_new(&held.team, now);
        let team = Team {
            epoch,
            activation,
            ..Team::new(TeamKind::Auto)
        };
        self.teams.insert(held.team.clone(), team);
        self.await_activation(&held.team, now);
        self.own(&held.team, owner);
        self.write_team(&held.team);
        self.publish_route(&held.team);
        self.note_adopted(id, &held.team, epoch, now);
    }

    fn note_adopted(&mut self, id: &NodeId, team: &TeamId, epoch: Epoch, now: Timestamp) {
        let decision = Decision {
            at: now,
            epoch,
            cause: Cause::Adopted,
            node: Some(id.clone()),
            from: None,
            best: Vec::new(),
            gated: Default::default(),
            gated_nodes: Default::default(),
            nodes: u32::try_from(self.nodes.len()).unwrap_or(u32::MAX),
        };
        self.remember(team, decision);
        self.notice(Notice::Assigned {
            team: team.clone(),
            node: id.clone(),
            epoch,
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
        if self.movers_of(id).any(Operation::is_running) {
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
