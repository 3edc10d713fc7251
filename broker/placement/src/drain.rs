//! Which team leaves next, and when is a drain done?
//!
//! A drain takes every team of a node, a shed some. Teams start at the pace of a bucket that counts
//! connections; how one of them gets from one node to the other is told in [`crate::moving`].

use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{DrainPost, OperationKind, OperationState, PinStrength, ShedPost};

use crate::command::{Notice, Refusal};
use crate::core::Core;
use crate::node::{Intent, Node};
use crate::operation::Operation;
use crate::record::Record;
use crate::team::Team;

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

    /// Whether a hard pin holds this team on this node.
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
        if operation.deadline.is_some_and(|deadline| now >= deadline) || planted::is(Bug::DrainUnpaced) {
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
