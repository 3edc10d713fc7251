//! How does one team get from one node to another?
//!
//! A target is chosen and makes room (`prepared`), the new owner is committed under a new epoch (the
//! one moment of change), the old node lets the connections go at their slot, and the move ends when
//! the last has left. A client that waits skips the first step.

use usher_shared::id::{Label, OperationId, TeamId};
use usher_shared::link::{Drain, Move as MoveTeam, ToNode};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::Cause;

use crate::choose::{Decision, Needs};
use crate::core::Core;
use crate::notice::{MoveOutcome, Notice};
use crate::operation::Operation;
use crate::reconcile::Arrivals;
use crate::relief::room_for;
use crate::team::{Activation, Move, Owner, Team};

impl Core {
    /// Chooses a target and asks it to make room. Returns whether there was one.
    pub(crate) fn prepare_move(&mut self, id: &TeamId, operation: &OperationId, now: Timestamp) -> bool {
        let Some(cause) = self.operations.get(operation).map(Operation::cause) else {
            return false;
        };
        let Some(team) = self.teams.get(id) else {
            return false;
        };
        let Some(owner) = team.owner.clone() else {
            return false;
        };
        let decision = self.choose_for_move(id, team, &owner, cause, now);
        let Some(target) = decision.node.clone().and_then(|chosen| self.owner_on(&chosen)) else {
            return false;
        };
        self.took(&decision);
        let epoch = self.next_epoch();
        let until = now.plus(self.settings.prepare_ms);
        let node = target.node.clone();
        let moving = Move::Preparing {
            target,
            epoch,
            until,
            operation: operation.clone(),
            decision: Box::new(decision),
        };
        if let Some(team) = self.teams.get_mut(id) {
            team.moving = Some(moving);
        }
        self.deadlines.insert((until, id.clone()));
        self.reserve(id, &node);
        if let Some(operation) = self.operations.get_mut(operation) {
            operation.preparing.insert(id.clone());
        }
        self.send_prepare(id);
        true
    }

    /// The target has made room: the one moment of change.
    pub(crate) fn commit_prepared(&mut self, id: &TeamId, now: Timestamp) {
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        let Some(Move::Preparing {
            target,
            epoch,
            operation,
            mut decision,
            ..
        }) = team.moving.take()
        else {
            return;
        };
        self.unreserve(id, &target.node);
        if let Some(operation) = self.operations.get_mut(&operation) {
            operation.preparing.remove(id);
        }
        decision.epoch = epoch;
        // Its choice was counted when room was asked for.
        self.change_owner(id, target, *decision, Some(&operation), now);
        if self
            .teams
            .get(id)
            .is_some_and(|team| team.activation == Activation::Owned)
        {
            // Nobody is left to wait for, and the target knows the team as prepared.
            self.send_activate(id);
        }
    }

    /// Moves a team at once, without asking the target to make room first: a client is waiting.
    /// Returns whether there was a target.
    pub(crate) fn move_now(
        &mut self,
        id: &TeamId,
        cause: Cause,
        operation: Option<&OperationId>,
        now: Timestamp,
    ) -> bool {
        let Some(team) = self.teams.get(id) else {
            return false;
        };
        let Some(owner) = team.owner.clone() else {
            return false;
        };
        let mut decision = self.choose_for_move(id, team, &owner, cause, now);
        let Some(target) = decision.node.clone().and_then(|chosen| self.owner_on(&chosen)) else {
            return false;
        };
        self.drop_move(id, MoveOutcome::Undone, now);
        self.took(&decision);
        let epoch = self.next_epoch();
        decision.epoch = epoch;
        self.change_owner(id, target, decision, operation, now);
        self.send_assign(id, Arrivals::Reported);
        true
    }

    /// Where a team is to go that leaves its node: rather where there is room for the connections that it has
    /// there, and for nothing less when it goes for the want of room.
    fn choose_for_move(
        &self,
        id: &TeamId,
        team: &Team,
        owner: &Owner,
        cause: Cause,
        now: Timestamp,
    ) -> Decision {
        let mut wish = team.wish(cause, Some(&owner.node), self.wall_ms(now));
        if let Some(node) = self.nodes.get(&owner.node) {
            let connections = node.connections_of(id);
            wish.needs = match cause {
                Cause::Full => Needs::Only(room_for(connections)),
                _ => Needs::Rather(connections.max(1)),
            };
        }
        self.choose(&wish, now)
    }

    fn change_owner(
        &mut self,
        id: &TeamId,
        target: Owner,
        decision: Decision,
        operation: Option<&OperationId>,
        now: Timestamp,
    ) {
        let Some(before) = self.disown(id) else { return };
        let until = now.plus(self.leave_within_ms(id, operation, now) + self.settings.settle_ms);
        let mean_milli = self
            .nodes
            .get(&before.node)
            .map_or(0, crate::node::Node::connections_per_team_milli);
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        team.moved_by = operation.cloned();
        let held = team.epoch;
        team.await_end_of(before.clone());
        team.epoch = decision.epoch;
        team.moving = Some(Move::Leaving {
            from: before.clone(),
            held,
            until,
            operation: operation.cloned(),
            cause: decision.cause,
        });
        self.deadlines.insert((until, id.clone()));
        self.await_activation(id, now);
        if let Some(node) = self.nodes.get_mut(&before.node) {
            node.leaving.insert(id.clone());
        }
        if let Some(operation) = operation.and_then(|operation| self.operations.get_mut(operation)) {
            operation.chosen.remove(id);
            operation.leaving.insert(id.clone());
            operation.touched = now;
            operation.placed_at = now;
            operation.unwritten = true;
            let cost = operation.cost_milli(id, mean_milli);
            operation.charge(id, cost);
            let operation = operation.id.clone();
            self.count_moved(&operation, id, decision.epoch);
        }
        self.own(id, target.clone());
        self.write_team(id);
        self.publish_route(id);
        self.notice(Notice::Assigned {
            team: id.clone(),
            node: target.node,
            epoch: decision.epoch,
            cause: decision.cause,
            last_resort: decision.last_resort(),
        });
        self.remember(id, decision);
        self.send_drain(id, now);
    }

    /// How long the connections of a team may take to leave: at its slots, and what a client needs on top.
    fn leave_within_ms(&self, id: &TeamId, operation: Option<&OperationId>, now: Timestamp) -> u64 {
        let settings = &self.settings;
        let Some(operation) = operation.and_then(|operation| self.operations.get(operation)) else {
            return settings.leave_ms;
        };
        let connections = operation.counted.get(id).copied().unwrap_or(0);
        let within = settings.leave_ms + operation.spread_ms(connections, settings, now);
        match operation.deadline {
            // Clients are told by when: the process may be gone after it.
            Some(deadline) => within.min(deadline.since(now)),
            None => within,
        }
    }

    /// Tells the old owner to let the connections of a moved team go.
    pub(crate) fn send_drain(&mut self, id: &TeamId, now: Timestamp) {
        let Some(team) = self.teams.get(id) else { return };
        let Some(Move::Leaving {
            from,
            until,
            operation,
            cause,
            ..
        }) = &team.moving
        else {
            return;
        };
        let Some(owner) = &team.owner else { return };
        // A lone move is no operation; its name only has to be a name.
        let operation = operation.clone().or_else(|| "single".parse().ok());
        let (Some(operation), Ok(reason)) = (operation, cause.as_str().parse::<Label>()) else {
            return;
        };
        let by = until.minus(self.settings.settle_ms);
        let pace = self.team_pace(&operation, id, &owner.node, now);
        let shows = pace.is_some_and(|pace| pace.first > 0);
        let drain = Drain {
            operation: operation.clone(),
            reason,
            moves: vec![MoveTeam {
                team: id.clone(),
                epoch: team.epoch,
                after_ms: 0,
            }],
            by_ms: by.since(now),
            pace,
            term: self.term,
        };
        let from = from.node.clone();
        if shows && let Some(operation) = self.operations.get_mut(&operation) {
            operation.parked = Some(id.clone());
            operation.paced = now;
        }
        self.send(&from, ToNode::Drain(drain));
    }

    /// Ends what took too long: a target that did not answer, connections that did not leave.
    pub(crate) fn end_late_moves(&mut self, now: Timestamp) {
        while let Some((until, id)) = self.deadlines.first().cloned() {
            if until > now {
                return;
            }
            self.deadlines.pop_first();
            match self.teams.get(&id).and_then(|team| team.moving.as_ref()) {
                Some(Move::Preparing {
                    until: at,
                    target,
                    epoch,
                    ..
                }) if *at == until => {
                    if planted::is(Bug::StalePlanApplied) {
                        let (target, epoch) = (target.node.clone(), *epoch);
                        self.revoke(&target, &id, epoch);
                    } else {
                        self.drop_move(&id, MoveOutcome::Failed, now);
                    }
                }
                Some(Move::Leaving {
                    until: at, operation, ..
                }) if *at == until => {
                    let holds = operation
                        .as_ref()
                        .and_then(|operation| self.operations.get(operation))
                        .is_some_and(|operation| {
                            operation.is_running() && (operation.held || operation.parked.is_some())
                        });
                    if holds {
                        // Its node was told to hold it, and will be told how long it has when it goes on.
                        self.leave_until(&id, now.plus(self.settings.leave_ms));
                    } else {
                        self.finish_leaving(&id, MoveOutcome::TimedOut, now);
                    }
                }
                _ => {}
            }
        }
    }

    /// The last connection has left, or nobody waits for it any more.
    pub(crate) fn finish_leaving(&mut self, id: &TeamId, outcome: MoveOutcome, now: Timestamp) {
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        if !matches!(team.moving, Some(Move::Leaving { .. })) {
            return;
        }
        let Some(Move::Leaving {
            from,
            operation,
            cause,
            ..
        }) = team.moving.take()
        else {
            return;
        };
        if let Some(node) = self.nodes.get_mut(&from.node) {
            node.leaving.remove(id);
        }
        let reported = outcome == MoveOutcome::Arrived && self.reports(&from.node);
        if let Some(operation) = operation.and_then(|operation| self.operations.get_mut(&operation)) {
            operation.leaving.remove(id);
            operation.settle(id, reported);
            if operation.parked.as_ref() == Some(id) {
                operation.parked = None;
            }
            operation.touched = now;
            operation.unwritten = true;
            let operation = operation.id.clone();
            self.forget_ended(&operation, now);
        }
        self.notice(Notice::Moved { cause, outcome });
    }

    /// The first of a large team need not show any more that they arrive: it goes elsewhere by now, and nobody
    /// would tell the node that the rest waits at.
    fn unpark(&mut self, id: &TeamId, now: Timestamp) {
        let moving = self.teams.get(id).and_then(|team| team.moving.as_ref());
        let Some(Move::Leaving {
            operation: Some(operation),
            ..
        }) = moving
        else {
            return;
        };
        let operation = operation.clone();
        let parked = self
            .operations
            .get_mut(&operation)
            .and_then(|known| known.parked.take_if(|parked| parked == id));
        if parked.is_some() {
            self.send_pace(&operation, now);
        }
    }

    /// Undoes a move that is being prepared, or stops waiting for one whose connections are leaving.
    pub(crate) fn drop_move(&mut self, id: &TeamId, outcome: MoveOutcome, now: Timestamp) {
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        if !matches!(team.moving, Some(Move::Preparing { .. })) {
            self.unpark(id, now);
            return self.finish_leaving(id, outcome, now);
        }
        let Some(Move::Preparing {
            target,
            epoch,
            operation,
            ..
        }) = team.moving.take()
        else {
            return;
        };
        self.unreserve(id, &target.node);
        self.revoke(&target.node, id, epoch);
        self.epochs.undo(epoch);
        let cause = self.operations.get_mut(&operation).map(|operation| {
            operation.preparing.remove(id);
            operation.refund(id);
            operation.cause()
        });
        self.notice(Notice::Moved {
            cause: cause.unwrap_or(Cause::Drain),
            outcome,
        });
    }
}
