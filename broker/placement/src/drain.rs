//! Which team leaves next, and when is a drain done?
//!
//! A drain takes every team of a node, a shed some. Each team moves in steps: a target is chosen and
//! makes room (`prepared`), the new owner is committed under a new epoch (the one moment of change),
//! the old node lets the connections go at their slot, and the move ends when the last has left.
//! Teams start at the pace of a bucket that counts connections.

use usher_shared::id::{Label, NodeId, OperationId, TeamId};
use usher_shared::link::{Drain, Move as MoveTeam, ToNode};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{Cause, DrainPost, OperationKind, OperationState, PinStrength, ShedPost};

use crate::command::{Notice, Refusal};
use crate::core::Core;
use crate::node::{Intent, Node};
use crate::operation::Operation;
use crate::reconcile::Arrivals;
use crate::record::Record;
use crate::team::{Activation, Move, Team};

/// Teams of one operation that may be under way at once.
const UNDER_WAY_MAX: usize = 512;
/// How long a failover's report waits for connections to come back.
const FAILOVER_REPORT_MS: u64 = 30_000;
/// The most milliseconds of unused rate that may be saved up: more would be a burst.
const BURST_MS: u64 = 250;

impl Core {
    /// Begins to empty a node, or finds the operation that does so already.
    pub(crate) fn begin_drain(&mut self, id: &NodeId, post: &DrainPost, now: Timestamp) -> OperationId {
        let running = match self.nodes.get(id).map(|node| &node.intent) {
            Some(Intent::Draining(operation)) => Some(operation.clone()),
            _ => None,
        };
        if let Some(running) = running.filter(|id| self.operations.get(id).is_some_and(Operation::is_running))
        {
            self.tighten(&running, post, now);
            return running;
        }
        self.end_sheds_of(id, now);
        let operation = self.begin_operation(OperationKind::Drain, id, now);
        let targets = self.targets(id);
        if let Some(node) = self.nodes.get_mut(id) {
            node.intent = Intent::Draining(operation.clone());
            let teams = u32::try_from(node.teams.len()).unwrap_or(u32::MAX);
            let connections = node.report.connections;
            if let Some(drain) = self.operations.get_mut(&operation) {
                drain.teams = teams;
                drain.connections = connections;
                set_pace(
                    drain,
                    post.rate_per_s,
                    post.deadline_s,
                    targets,
                    self.settings.rate_per_target,
                    now,
                );
            }
        }
        self.write_operation(&operation, now);
        self.write_node(id);
        self.rebuild_index();
        self.publish_node(id);
        self.step_operations(now);
        operation
    }

    /// A second drain of the same node may only make the first one faster.
    fn tighten(&mut self, operation: &OperationId, post: &DrainPost, now: Timestamp) {
        let Some(drain) = self.operations.get_mut(operation) else {
            return;
        };
        if let Some(rate) = post.rate_per_s {
            drain.rate_per_s = drain.rate_per_s.max(u64::from(rate));
        }
        if let Some(seconds) = post.deadline_s {
            let deadline = now.plus(seconds * 1_000);
            drain.deadline = Some(drain.deadline.map_or(deadline, |known| known.min(deadline)));
            let left = u64::from(drain.connections.saturating_sub(drain.left));
            drain.rate_per_s = drain.rate_per_s.max(left.div_ceil(seconds.max(1)));
        }
        self.write_operation(operation, now);
    }

    /// Begins to move some teams off a node.
    pub(crate) fn begin_shed(&mut self, id: &NodeId, post: &ShedPost, now: Timestamp) -> Option<OperationId> {
        let node = self.nodes.get(id)?;
        let own: Vec<&TeamId> = node
            .teams
            .iter()
            .filter(|team| {
                self.teams
                    .get(*team)
                    .is_some_and(|team| team.moving.is_none() && !self.is_held_here(team, id, now))
            })
            .collect();
        let wanted = match (post.teams, post.percent) {
            (Some(teams), _) => teams as usize,
            (None, percent) => (node.teams.len() * percent.unwrap_or(0) as usize).div_ceil(100),
        };
        let chosen: Vec<TeamId> = own.into_iter().take(wanted).cloned().collect();
        let connections = node.connections_per_team_milli() * chosen.len() as u64 / 1_000;
        let connections = u32::try_from(connections)
            .unwrap_or(u32::MAX)
            .min(node.report.connections);
        let targets = self.targets(id);
        let operation = self.begin_operation(OperationKind::Shed, id, now);
        if let Some(shed) = self.operations.get_mut(&operation) {
            shed.teams = u32::try_from(chosen.len()).unwrap_or(u32::MAX);
            shed.connections = connections;
            shed.chosen = chosen.into_iter().collect();
            set_pace(
                shed,
                post.rate_per_s,
                None,
                targets,
                self.settings.rate_per_target,
                now,
            );
        }
        self.write_operation(&operation, now);
        self.step_operations(now);
        Some(operation)
    }

    pub(crate) fn begin_operation(
        &mut self,
        kind: OperationKind,
        node: &NodeId,
        now: Timestamp,
    ) -> OperationId {
        self.operations_begun += 1;
        // The term makes it unique over restarts.
        let text = format!("{}-{}-{}", kind.as_str(), self.term, self.operations_begun);
        let id: OperationId = match text.parse() {
            Ok(id) => id,
            // Letters, digits and dashes of at most 44 bytes always parse.
            Err(_) => unreachable!("an operation id is made of a word and two numbers"),
        };
        self.operations
            .insert(id.clone(), Operation::new(id.clone(), kind, node.clone(), now));
        self.notice(Notice::OperationBegan {
            operation: id.clone(),
            kind,
            node: node.clone(),
        });
        id
    }

    /// Ready nodes beside this one.
    fn targets(&self, id: &NodeId) -> u64 {
        self.index.order.iter().filter(|key| key.node != *id).count() as u64
    }

    /// Whether the rest of the pool could hold what this node has.
    pub(crate) fn fits_elsewhere(&self, id: &NodeId) -> Result<(), Refusal> {
        let Some(node) = self.nodes.get(id) else {
            return Ok(());
        };
        let others = || {
            self.index
                .order
                .iter()
                .filter(|key| key.node != *id)
                .filter_map(|key| self.nodes.get(&key.node))
        };
        let team_room: u64 = others()
            .map(|node| u64::from(node.hello.capacity.teams.saturating_sub(node.team_count())))
            .sum();
        let connection_room: u64 = others()
            .map(|node| {
                u64::from(
                    node.hello
                        .capacity
                        .connections
                        .saturating_sub(node.report.connections),
                )
            })
            .sum();
        let (teams, connections) = (node.teams.len() as u64, u64::from(node.report.connections));
        if teams > team_room {
            return Err(Refusal::WouldNotFit {
                what: "teams",
                needed: teams,
                room: team_room,
            });
        }
        if connections > connection_room {
            return Err(Refusal::WouldNotFit {
                what: "connections",
                needed: connections,
                room: connection_room,
            });
        }
        Ok(())
    }

    /// Teams that a hard pin holds on this node.
    pub(crate) fn held_here(&self, id: &NodeId, now: Timestamp) -> Vec<TeamId> {
        let Some(node) = self.nodes.get(id) else {
            return Vec::new();
        };
        let held = |team: &&TeamId| {
            self.teams
                .get(*team)
                .is_some_and(|team| self.is_held_here(team, id, now))
        };
        node.teams.iter().filter(held).cloned().collect()
    }

    fn is_held_here(&self, team: &Team, id: &NodeId, now: Timestamp) -> bool {
        team.pin.as_ref().is_some_and(|pin| {
            pin.strength == PinStrength::Hard && pin.node == *id && pin.until_wall_ms > self.wall_ms(now)
        })
    }

    /// Ends the drain of a node at an operator's wish; it takes teams again.
    pub(crate) fn undrain(&mut self, id: &NodeId, now: Timestamp) -> Option<OperationId> {
        let node = self.nodes.get_mut(id)?;
        let Intent::Draining(operation) = std::mem::replace(&mut node.intent, Intent::Active) else {
            return None;
        };
        if self.operations.get(&operation).is_some_and(Operation::is_running) {
            self.end_operation(
                &operation,
                OperationState::Cancelled,
                "ended by undrain".to_owned(),
                now,
            );
        }
        self.write_node(id);
        self.rebuild_index();
        self.publish_node(id);
        Some(operation)
    }

    fn end_sheds_of(&mut self, id: &NodeId, now: Timestamp) {
        let sheds: Vec<OperationId> = self
            .operations
            .values()
            .filter(|operation| {
                operation.is_running() && operation.kind == OperationKind::Shed && operation.node == *id
            })
            .map(|operation| operation.id.clone())
            .collect();
        for shed in sheds {
            self.end_operation(
                &shed,
                OperationState::Cancelled,
                "a drain of the node took over".to_owned(),
                now,
            );
        }
    }

    pub(crate) fn end_drain_of_dead(&mut self, id: &NodeId, now: Timestamp) {
        let ended: Vec<OperationId> = self
            .operations
            .values()
            .filter(|operation| {
                operation.is_running() && operation.node == *id && operation.kind != OperationKind::Failover
            })
            .map(|operation| operation.id.clone())
            .collect();
        for operation in ended {
            let detail = "the node died before it was empty; the rest failed over".to_owned();
            self.end_operation(&operation, OperationState::Done, detail, now);
        }
    }

    fn end_operation(&mut self, id: &OperationId, state: OperationState, detail: String, now: Timestamp) {
        let Some(operation) = self.operations.get_mut(id) else {
            return;
        };
        let preparing: Vec<TeamId> = std::mem::take(&mut operation.preparing).into_iter().collect();
        operation.state = state;
        operation.detail.clone_from(&detail);
        // The wait for stragglers is not part of the work.
        operation.ended = Some(if state == OperationState::Done {
            operation.touched
        } else {
            now
        });
        let kind = operation.kind;
        for team in preparing {
            self.drop_move(&team, "undone", now);
        }
        self.notice(Notice::OperationEnded {
            operation: id.clone(),
            kind,
            detail,
        });
        self.write_operation(id, now);
        self.ended_operations.push_back(id.clone());
        while self.ended_operations.len() > self.settings.operations {
            if let Some(oldest) = self.ended_operations.pop_front() {
                self.operations.remove(&oldest);
                self.write(Record::Operation(oldest, None));
            }
        }
    }

    /// Moves every running operation on.
    pub(crate) fn step_operations(&mut self, now: Timestamp) {
        self.end_late_moves(now);
        let running: Vec<OperationId> = self
            .operations
            .values()
            .filter(|operation| operation.is_running())
            .map(|operation| operation.id.clone())
            .collect();
        for id in running {
            if self
                .operations
                .get(&id)
                .is_some_and(|operation| operation.kind != OperationKind::Failover)
            {
                self.refill(&id, now);
                self.start_moves(&id, now);
            }
            self.end_if_done(&id, now);
        }
    }

    fn refill(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get_mut(id) else {
            return;
        };
        let rate = i64::try_from(operation.rate_per_s).unwrap_or(i64::MAX / 2_000_000);
        let elapsed = i64::try_from(now.since(operation.refilled).min(60_000)).unwrap_or(0);
        operation.refilled = now;
        let burst = rate * i64::try_from(BURST_MS).unwrap_or(0);
        operation.tokens = (operation.tokens + rate * elapsed).min(burst.max(1_000));
        if operation.deadline.is_some_and(|deadline| now >= deadline) {
            // Late: what is left goes now, as the deadline said.
            operation.tokens = i64::MAX / 4;
        }
    }

    fn start_moves(&mut self, id: &OperationId, now: Timestamp) {
        if !self.may_change_owners() {
            return self.say(id, "waiting for the nodes to report after the broker's start");
        }
        let source = self
            .operations
            .get(id)
            .and_then(|operation| self.nodes.get(&operation.node));
        if !source.is_some_and(Node::is_heard) {
            // Moving the teams of a silent node would be a failover on silence alone.
            return self.say(id, "waiting for the node to be heard again");
        }
        let mut after: Option<TeamId> = None;
        loop {
            let Some(operation) = self.operations.get(id) else {
                return;
            };
            if operation.tokens <= 0 || operation.preparing.len() + operation.leaving.len() >= UNDER_WAY_MAX {
                return;
            }
            let Some(team) = self.next_to_move(operation, after.as_ref(), now) else {
                return;
            };
            let cost = self.nodes.get(&operation.node).map_or(0, move_cost);
            if !self.prepare_move(&team, id, now) {
                return self.say(id, "waiting for a node that can take its teams");
            }
            after = Some(team);
            if let Some(operation) = self.operations.get_mut(id) {
                operation.tokens -= cost;
                operation.detail.clear();
            }
        }
    }

    fn say(&mut self, id: &OperationId, detail: &str) {
        if let Some(operation) = self.operations.get_mut(id)
            && operation.detail != detail
        {
            detail.clone_into(&mut operation.detail);
        }
    }

    fn next_to_move(&self, operation: &Operation, after: Option<&TeamId>, now: Timestamp) -> Option<TeamId> {
        use std::ops::Bound::{Excluded, Unbounded};
        let node = self.nodes.get(&operation.node)?;
        let set = if operation.kind == OperationKind::Shed {
            &operation.chosen
        } else {
            &node.teams
        };
        let from = after.map_or(Unbounded, Excluded);
        set.range::<TeamId, _>((from, Unbounded))
            .find(|id| {
                self.teams.get(*id).is_some_and(|team| {
                    team.is_owned_by(&operation.node)
                        && team.moving.is_none()
                        && !self.is_held_here(team, &operation.node, now)
                })
            })
            .cloned()
    }

    /// Chooses a target and asks it to make room. Returns whether there was one.
    fn prepare_move(&mut self, id: &TeamId, operation: &OperationId, now: Timestamp) -> bool {
        let wall_ms = self.wall_ms(now);
        let Some(cause) = self.operations.get(operation).map(Operation::cause) else {
            return false;
        };
        let Some(team) = self.teams.get(id) else {
            return false;
        };
        let Some(owner) = team.owner.clone() else {
            return false;
        };
        let decision = self.choose(&team.wish(cause, Some(&owner.node), wall_ms), now);
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
        let wall_ms = self.wall_ms(now);
        let Some(team) = self.teams.get(id) else {
            return false;
        };
        let Some(owner) = team.owner.clone() else {
            return false;
        };
        let mut decision = self.choose(&team.wish(cause, Some(&owner.node), wall_ms), now);
        let Some(target) = decision.node.clone().and_then(|chosen| self.owner_on(&chosen)) else {
            return false;
        };
        self.drop_move(id, "undone", now);
        self.took(&decision);
        let epoch = self.next_epoch();
        decision.epoch = epoch;
        self.change_owner(id, target, decision, operation, now);
        self.send_assign(id, Arrivals::Reported);
        true
    }

    fn change_owner(
        &mut self,
        id: &TeamId,
        target: crate::team::Owner,
        decision: crate::choose::Decision,
        operation: Option<&OperationId>,
        now: Timestamp,
    ) {
        let Some(before) = self.disown(id) else { return };
        let until = now.plus(self.settings.leave_ms + self.settings.settle_ms);
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        let held = team.epoch;
        team.await_end_of(before.clone());
        let waits_for = match &team.activation {
            Activation::After { before, .. } => Some(before.clone()),
            _ => None,
        };
        team.epoch = decision.epoch;
        team.moving = Some(Move::Leaving {
            from: before.clone(),
            held,
            until,
            operation: operation.cloned(),
            cause: decision.cause,
        });
        self.deadlines.insert((until, id.clone()));
        if let Some(waits_for) = waits_for {
            self.wait_for_end(id, waits_for, now);
        }
        if let Some(node) = self.nodes.get_mut(&before.node) {
            node.leaving.insert(id.clone());
        }
        if let Some(operation) = operation.and_then(|operation| self.operations.get_mut(operation)) {
            operation.chosen.remove(id);
            operation.leaving.insert(id.clone());
            operation.moved.insert(id.clone(), decision.epoch);
            operation.touched = now;
        }
        self.own(id, target.clone());
        self.write_team(id);
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

    /// Tells the old owner to let the connections of a moved team go.
    pub(crate) fn send_drain(&mut self, id: &TeamId, now: Timestamp) {
        let Some(team) = self.teams.get(id) else { return };
        let Some(Move::Leaving {
            from,
            held,
            until,
            operation,
            cause,
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
        let drain = Drain {
            operation,
            reason,
            moves: vec![MoveTeam {
                team: id.clone(),
                held_epoch: *held,
                epoch: team.epoch,
                to: owner.node.clone(),
                after_ms: 0,
            }],
            by_ms: by.since(now),
            term: self.term,
        };
        let from = from.node.clone();
        self.send(&from, ToNode::Drain(drain));
    }

    /// Ends what took too long: a target that did not answer, connections that did not leave.
    fn end_late_moves(&mut self, now: Timestamp) {
        while let Some((until, id)) = self.deadlines.first().cloned() {
            if until > now {
                return;
            }
            self.deadlines.pop_first();
            match self.teams.get(&id).and_then(|team| team.moving.as_ref()) {
                Some(Move::Preparing { until: at, .. }) if *at == until => self.drop_move(&id, "failed", now),
                Some(Move::Leaving { until: at, .. }) if *at == until => {
                    self.finish_leaving(&id, "timed_out", now)
                }
                _ => {}
            }
        }
    }

    /// The last connection has left, or nobody waits for it any more.
    pub(crate) fn finish_leaving(&mut self, id: &TeamId, outcome: &'static str, now: Timestamp) {
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
        if let Some(operation) = operation.and_then(|operation| self.operations.get_mut(&operation)) {
            operation.leaving.remove(id);
            operation.touched = now;
        }
        self.notice(Notice::Moved { cause, outcome });
    }

    /// Undoes a move that is being prepared, or stops waiting for one whose connections are leaving.
    pub(crate) fn drop_move(&mut self, id: &TeamId, outcome: &'static str, now: Timestamp) {
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        if !matches!(team.moving, Some(Move::Preparing { .. })) {
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
        let cause = self.operations.get_mut(&operation).map(|operation| {
            operation.preparing.remove(id);
            operation.cause()
        });
        self.notice(Notice::Moved {
            cause: cause.unwrap_or(Cause::Drain),
            outcome,
        });
    }

    fn end_if_done(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get(id).filter(|operation| operation.is_running()) else {
            return;
        };
        let quiet = now.since(operation.touched) >= self.settings.settle_ms;
        let detail = if operation.kind == OperationKind::Failover {
            let all_back = operation.arrived >= operation.connections
                && operation.moved.len() >= operation.teams as usize;
            if !all_back && now.since(operation.began) < FAILOVER_REPORT_MS {
                return;
            }
            operation.detail.clone()
        } else {
            let under_way = !operation.preparing.is_empty() || !operation.leaving.is_empty();
            let waiting = self.next_to_move(operation, None, now).is_some();
            if under_way || waiting || (operation.arrived < operation.left && !quiet) {
                return;
            }
            match self.held_here(&operation.node, now).len() {
                held if held > 0 && operation.kind == OperationKind::Drain => {
                    format!("{held} hard-pinned teams stay")
                }
                _ => match operation.left.saturating_sub(operation.arrived) {
                    0 => "all moved".to_owned(),
                    missing => format!("all moved; {missing} connections have not come back"),
                },
            }
        };
        self.end_operation(&id.clone(), OperationState::Done, detail, now);
    }
}

/// What moving one team of this node takes from the bucket, in thousandths of a connection. A change
/// of owner costs nothing, connections do.
fn move_cost(node: &Node) -> i64 {
    i64::try_from(node.connections_per_team_milli()).unwrap_or(i64::MAX)
}

/// Sets how fast an operation goes and how long that will take.
///
/// By default each ready target takes `rate_per_target` connections a second, and the fleet half of
/// the sum of its targets, but no less than one target's worth. A deadline raises the rate so that a
/// fifth of the time is left over.
fn set_pace(
    operation: &mut Operation,
    rate_per_s: Option<u32>,
    deadline_s: Option<u64>,
    targets: u64,
    rate_per_target: u64,
    now: Timestamp,
) {
    let fleet = rate_per_target * targets.max(1).div_ceil(2);
    let connections = u64::from(operation.connections);
    let mut rate = rate_per_s.map_or(fleet, u64::from).max(1);
    if let Some(seconds) = deadline_s {
        rate = rate.max((connections * 5).div_ceil(seconds.max(1) * 4));
        operation.deadline = Some(now.plus(seconds * 1_000));
    }
    operation.rate_per_s = rate;
    operation.tokens = i64::try_from(rate * BURST_MS).unwrap_or(i64::MAX);
    operation.estimate_ms = connections * 1_000 / rate;
}
