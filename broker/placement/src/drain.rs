//! How does an operation begin and end?
//!
//! A drain takes every team of a node, a shed some. Which of them leaves next is told in [`crate::advance`], how
//! fast in [`crate::speed`], how one of them gets from one node to the other in [`crate::moving`].

use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{DrainPost, OperationKind, OperationState, PinStrength, ShedPost};

use crate::core::Core;
use crate::node::Intent;
use crate::notice::{MoveOutcome, Notice};
use crate::operation::Operation;
use crate::record::Record;
use crate::refusal::Refusal;
use crate::team::Team;
use crate::warmth::Warmth;

impl Core {
    /// Begins to empty a node, or finds the operation that does so already.
    pub(crate) fn begin_drain(&mut self, id: &NodeId, post: &DrainPost, now: Timestamp) -> OperationId {
        let running = match self.nodes.get(id).map(|node| &node.intent) {
            Some(Intent::Draining(operation)) => Some(operation.clone()),
            _ => None,
        };
        if let Some(running) = running.filter(|id| self.operations.get(id).is_some_and(Operation::is_running))
        {
            self.change_pace(&running, post, now);
            return running;
        }
        self.end_sheds_of(id, now);
        let operation = self.begin_operation(OperationKind::Drain, id, now);
        if let Some(node) = self.nodes.get_mut(id) {
            node.intent = Intent::Draining(operation.clone());
        }
        if let Some(drain) = self.operations.get_mut(&operation) {
            drain.rate_asked = post.rate_per_s;
            drain.deadline = post.deadline_s.map(|seconds| now.plus(seconds * 1_000));
        }
        self.rebuild_index();
        self.set_figures(&operation, now);
        self.count(&operation, now);
        self.write_operation(&operation, now);
        self.write_node(id);
        self.publish_node(id);
        self.step_operations(now);
        operation
    }

    /// A second drain of the same node changes how the first one goes, faster or slower. The time that a
    /// stopping process has left is not made longer.
    fn change_pace(&mut self, id: &OperationId, post: &DrainPost, now: Timestamp) {
        let Some(drain) = self.operations.get_mut(id) else {
            return;
        };
        let stopping = self.nodes.get(&drain.node).is_some_and(|node| node.stopping);
        if post.rate_per_s.is_some() {
            drain.rate_asked = post.rate_per_s;
        }
        if let Some(seconds) = post.deadline_s {
            let deadline = now.plus(seconds * 1_000);
            drain.deadline = match drain.deadline {
                Some(known) if stopping => Some(known.min(deadline)),
                _ => Some(deadline),
            };
        }
        self.set_figures(id, now);
        self.send_pace(id, now);
        self.write_operation(id, now);
    }

    /// An operator drains a node again whose drain waits: it goes on, and what is missing so far is not held
    /// against it; with `force` nobody looks any more whether connections arrive.
    pub(crate) fn resume(&mut self, id: &NodeId, force: bool, now: Timestamp) {
        let Some(Intent::Draining(operation)) = self.nodes.get(id).map(|node| node.intent.clone()) else {
            return;
        };
        let Some(drain) = self
            .operations
            .get_mut(&operation)
            .filter(|drain| drain.is_running())
        else {
            return;
        };
        drain.returns.forgive();
        drain.trusted = true;
        if force {
            drain.returns.stop_watching();
        }
        self.step_operations(now);
    }

    /// Begins to move some teams off a node.
    pub(crate) fn begin_shed(&mut self, id: &NodeId, post: &ShedPost, now: Timestamp) -> Option<OperationId> {
        let node = self.nodes.get(id)?;
        let mut own: Vec<&TeamId> = node
            .teams
            .iter()
            .filter(|team| {
                self.teams
                    .get(*team)
                    .is_some_and(|team| team.moving.is_none() && !self.is_held_here(team, id, now))
            })
            .collect();
        // The busiest first, so that few moves help; of the others one is as good as the next.
        own.sort_by_cached_key(|team| std::cmp::Reverse(node.report.busyness(team)));
        let wanted = match (post.teams, post.percent) {
            (Some(teams), _) => teams as usize,
            (None, percent) => (node.teams.len() * percent.unwrap_or(0) as usize).div_ceil(100),
        };
        let chosen: Vec<TeamId> = own.into_iter().take(wanted).cloned().collect();
        let operation = self.begin_operation(OperationKind::Shed, id, now);
        if let Some(shed) = self.operations.get_mut(&operation) {
            shed.chosen = chosen.into_iter().collect();
            shed.rate_asked = post.rate_per_s;
        }
        self.set_figures(&operation, now);
        self.count(&operation, now);
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
        let id = self.new_operation_id(kind);
        let wall_ms = self.wall_ms(now);
        let operation = Operation::new(id.clone(), kind, node.clone(), now, wall_ms);
        self.operations.insert(id.clone(), operation);
        self.notice(Notice::OperationBegan {
            operation: id.clone(),
            kind,
            node: node.clone(),
        });
        id
    }

    /// The term makes it unique over restarts, unless two brokers run on copies of one store.
    fn new_operation_id(&mut self, kind: OperationKind) -> OperationId {
        loop {
            self.operations_begun += 1;
            let text = format!("{}-{}-{}", kind.as_str(), self.term, self.operations_begun);
            match text.parse() {
                Ok(id) if self.operations.contains_key(&id) => {}
                Ok(id) => return id,
                // Letters, digits and dashes of at most 44 bytes always parse.
                Err(_) => unreachable!("an operation id is made of a word and two numbers"),
            }
        }
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
    pub(crate) fn is_held_here(&self, team: &Team, id: &NodeId, now: Timestamp) -> bool {
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
        node.warmth = Warmth::begin(now, self.placed);
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
                let gives_some = matches!(operation.kind, OperationKind::Shed | OperationKind::Relief);
                operation.is_running() && gives_some && operation.node == *id
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
            let kept = self
                .nodes
                .get(id)
                .is_some_and(|node| node.is_draining() && (!node.stopping || node.wish_before.is_some()));
            let after = if kept {
                "; it stays drained until undrain"
            } else {
                ""
            };
            let detail = format!("the node died before it was empty; the rest failed over{after}");
            self.end_operation(&operation, OperationState::Done, detail, now);
        }
    }

    /// Another process has the name: what was under way for the one before ends, but for a drain that an
    /// operator wants of the name. It would empty the new one as well, which takes teams.
    pub(crate) fn end_work_of_former(&mut self, id: &NodeId, now: Timestamp) {
        let wanted = match self.nodes.get(id).map(|node| &node.intent) {
            Some(Intent::Draining(operation)) => Some(operation.clone()),
            _ => None,
        };
        let of_former = |operation: &&Operation| {
            operation.is_running()
                && operation.node == *id
                && operation.kind != OperationKind::Failover
                && Some(&operation.id) != wanted.as_ref()
        };
        let former: Vec<OperationId> = self
            .operations
            .values()
            .filter(of_former)
            .map(|operation| operation.id.clone())
            .collect();
        for operation in former {
            let missing = self
                .operations
                .get(&operation)
                .map_or(0, |operation| operation.gone.saturating_sub(operation.back));
            let detail = format!(
                "the process that it began with has left; {missing} connections had not come back when another one took its name"
            );
            self.end_operation(&operation, OperationState::Done, detail, now);
        }
    }

    pub(crate) fn end_operation(
        &mut self,
        id: &OperationId,
        state: OperationState,
        detail: String,
        now: Timestamp,
    ) {
        let Some(operation) = self.operations.get_mut(id).filter(|known| known.is_running()) else {
            return;
        };
        let preparing: Vec<TeamId> = std::mem::take(&mut operation.preparing).into_iter().collect();
        let held = operation.is_on_hold();
        operation.held = false;
        operation.parked = None;
        operation.state = state;
        operation.counting = None;
        operation.waits = false;
        operation.detail.clone_from(&detail);
        // The wait for stragglers is not part of the work.
        operation.ended = Some(if state == OperationState::Done {
            operation.touched
        } else {
            now
        });
        let kind = operation.kind;
        if held {
            // What has another owner already goes there: nobody would tell it to later.
            self.send_pace(id, now);
        }
        for team in preparing {
            self.drop_move(&team, MoveOutcome::Undone, now);
        }
        if let Some(report) = self.operation(id, now) {
            self.notice(Notice::OperationEnded {
                operation: id.clone(),
                kind,
                detail,
                report: Box::new(report),
            });
        }
        self.write_operation(id, now);
        self.ended_operations.push_back(id.clone());
        self.forget_ended(id, now);
        while self.ended_operations.len() > self.settings.operations {
            if let Some(oldest) = self.ended_operations.pop_front() {
                self.forget_moved(&oldest);
                self.operations.remove(&oldest);
                self.write(Record::Operation(oldest, None));
            }
        }
    }
}
