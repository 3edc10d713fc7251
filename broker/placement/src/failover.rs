//! Whose teams need a new owner now, and who may own them?
//!
//! A failover changes all owners of a dead node's teams in one go and waits for no answer from the
//! new ones: a client that comes before its node has heard of it waits there.

use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::link::{Refused, RefusedCode};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::{Cause, OperationKind};

use crate::choose::Decision;
use crate::command::Command;
use crate::core::Core;
use crate::node::{Proof, Seen};
use crate::notice::{Evidence, MoveOutcome, Notice};
use crate::reconcile::Arrivals;
use crate::team::{Activation, Owner};

/// The most teams tried in one step while none of them finds a node.
const WAITING_PER_STEP: usize = 64;

impl Core {
    /// A process counts as dead from now on.
    pub(crate) fn node_died(&mut self, id: &NodeId, evidence: Evidence, now: Timestamp) {
        let proof = if evidence.is_proof() {
            Proof::Proven
        } else {
            Proof::Presumed
        };
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        if let Seen::Dead { proof: known, .. } = &mut node.seen {
            if proof == Proof::Proven {
                *known = Proof::Proven;
                self.activate_after_leases(now);
            }
            return;
        }
        if let Some(link) = node.link() {
            self.links.remove(&link);
            let refused = Refused {
                code: RefusedCode::Superseded,
                detail: format!(
                    "this process counts as dead: {}; say hello again",
                    evidence.as_str()
                ),
                retry_ms: 100,
            };
            self.command(Command::Close { link, refused });
        }
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        if !node.stopping {
            node.trust.die(now);
        }
        node.left_empty = node.teams.is_empty() && node.leaving.is_empty();
        node.die(proof, now);
        let connections = node.report.connections;
        // Of a process that this run of the broker never heard it is not known.
        let known = node.report.seq > 0;
        let teams: Vec<TeamId> = node.teams.iter().cloned().collect();
        let reserved: Vec<TeamId> = node.reserved.iter().cloned().collect();
        let leaving: Vec<TeamId> = node.leaving.iter().cloned().collect();
        self.rebuild_index();
        self.publish_node(id);
        let count = u32::try_from(teams.len()).unwrap_or(u32::MAX);
        self.notice(Notice::NodeDead {
            node: id.clone(),
            evidence,
            teams: count,
        });
        for team in reserved {
            self.drop_move(&team, MoveOutcome::Failed, now);
        }
        for team in leaving {
            self.finish_leaving(&team, MoveOutcome::Failed, now);
        }
        self.end_drain_of_dead(id, now);
        let knocked = self.failing(id).filter(|_| !planted::is(Bug::KnocksLeftOut));
        if !teams.is_empty() || knocked.is_some() {
            let operation = match knocked {
                Some(operation) => operation,
                None => self.begin_operation(OperationKind::Failover, id, now),
            };
            if let Some(failover) = self.operations.get_mut(&operation) {
                let moved = u32::try_from(failover.moved.len()).unwrap_or(u32::MAX);
                failover.died = Some(now);
                failover.teams = moved.saturating_add(count);
                failover.connections = connections.max(failover.gone);
                failover.connections_known = known;
                failover.gone = failover.connections;
                failover.detail = evidence.as_str().to_owned();
                if !known {
                    failover
                        .detail
                        .push_str("; how many connections it had is not known, the broker has just started");
                }
                failover.chosen.extend(teams.iter().cloned());
            }
            for team in teams {
                self.drop_move(&team, MoveOutcome::Undone, now);
                if let Some(before) = self.disown(&team)
                    && let Some(team) = self.teams.get_mut(&team)
                {
                    team.await_end_of(before);
                    team.moved_by = Some(operation.clone());
                }
                self.place(&team, Cause::Failover, now);
            }
            self.write_operation(&operation, now);
        }
        self.activate_after_leases(now);
    }

    /// The failover of a node that is silent or dead, once one has begun.
    pub(crate) fn failing(&self, id: &NodeId) -> Option<OperationId> {
        let ours = self.operations.values().find(|operation| {
            operation.is_running()
                && operation.kind == OperationKind::Failover
                && operation.node == *id
                && operation.died.is_none()
        });
        ours.map(|operation| operation.id.clone())
    }

    /// A team moves off a silent node because its clients ask for it: the failover has begun for that team.
    pub(crate) fn move_knocked(&mut self, id: &TeamId, node: &NodeId, now: Timestamp) {
        let operation = match self.failing(node) {
            Some(operation) => operation,
            None => {
                let operation = self.begin_operation(OperationKind::Failover, node, now);
                self.say(
                    &operation,
                    "the node is silent: its teams move as their clients ask for them",
                );
                if let Some(operation) = self.operations.get_mut(&operation) {
                    operation.connections_known = false;
                }
                operation
            }
        };
        self.move_now(id, Cause::Knock, Some(&operation), now);
    }

    /// A team without an owner has one: if a failover waits for it, that counts there.
    fn count_placed(&mut self, id: &TeamId, epoch: Epoch, now: Timestamp) {
        let Some(operation) = self.teams.get(id).and_then(|team| team.moved_by.clone()) else {
            return;
        };
        if let Some(operation) = self.operations.get_mut(&operation)
            && operation.is_running()
            && operation.chosen.remove(id)
        {
            operation.touched = now;
            operation.placed_at = now;
            operation.unwritten = true;
            let operation = operation.id.clone();
            self.count_moved(&operation, id, epoch);
        }
    }

    /// Gives a team without an owner one, if any node can take it. Returns whether it did.
    pub(crate) fn place(&mut self, id: &TeamId, cause: Cause, now: Timestamp) -> bool {
        let wall_ms = self.wall_ms(now);
        let Some(team) = self.teams.get(id) else {
            return false;
        };
        let before = match &team.activation {
            Activation::After { before, .. } => Some(before.node.clone()),
            _ => None,
        };
        let wish = team.wish(cause, None, wall_ms);
        let mut decision = self.choose(&wish, now);
        decision.from = before;
        let Some(target) = decision.node.clone().and_then(|chosen| self.owner_on(&chosen)) else {
            self.leave_unplaced(id, decision);
            return false;
        };
        let epoch = self.next_epoch();
        decision.epoch = epoch;
        if let Some(team) = self.teams.get_mut(id) {
            team.epoch = epoch;
        }
        self.await_activation(id, now);
        self.commit_owner(id, target, decision);
        self.count_placed(id, epoch, now);
        self.send_assign(id, Arrivals::Reported);
        true
    }

    fn leave_unplaced(&mut self, id: &TeamId, decision: Decision) {
        if self.unplaced.insert(id.clone()) {
            let cause = decision.cause;
            self.remember(id, decision);
            self.write_team(id);
            self.publish_route(id);
            self.notice(Notice::Unplaced {
                team: id.clone(),
                cause,
            });
        }
    }

    /// Makes a chosen node the owner: in memory, in the store, in the route table, in the history.
    pub(crate) fn commit_owner(&mut self, id: &TeamId, owner: Owner, decision: Decision) {
        self.took(&decision);
        self.own(id, owner.clone());
        if planted::is(Bug::RouteBeforeWrite) {
            self.publish_route(id);
        }
        self.write_team(id);
        self.publish_route(id);
        self.notice(Notice::Assigned {
            team: id.clone(),
            node: owner.node,
            epoch: decision.epoch,
            cause: decision.cause,
            last_resort: decision.last_resort(),
        });
        self.remember(id, decision);
    }

    /// The process that runs under a node's name now.
    pub(crate) fn owner_on(&self, id: &NodeId) -> Option<Owner> {
        self.nodes.get(id).map(|node| Owner {
            node: id.clone(),
            incarnation: node.incarnation(),
        })
    }

    /// Tries the teams again that no node could take.
    pub(crate) fn place_waiting(&mut self, now: Timestamp) {
        if self.unplaced.is_empty() || self.index.order.is_empty() || !self.may_change_owners() {
            return;
        }
        let waiting: Vec<TeamId> = self.unplaced.iter().cloned().collect();
        let mut in_vain = 0;
        for team in waiting {
            if self.place(&team, Cause::Failover, now) {
                continue;
            }
            in_vain += 1;
            if in_vain == WAITING_PER_STEP {
                break;
            }
        }
    }
}
