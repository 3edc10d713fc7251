//! How many connections has each team of a node?
//!
//! Asked when an operation is about to take them away, so that each team is charged what it has and the
//! figures start from the truth, not from a heartbeat that is a second old. A node that cannot count is
//! taken at its last heartbeat, each of its teams at the mean.

use usher_shared::id::{NodeId, OperationId};
use usher_shared::link::{Count, Counted, ToNode};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::OperationKind;

use crate::command::{Answer, Command};
use crate::core::Core;
use crate::event::{LinkId, RequestId};
use crate::operation::Operation;

impl Core {
    /// Asks the node of an operation for its counts, if it can tell them.
    pub(crate) fn count(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get(id) else {
            return;
        };
        let node = operation.node.clone();
        if !self
            .nodes
            .get(&node)
            .is_some_and(|node| node.can_count && node.is_linked())
        {
            return;
        }
        if let Some(operation) = self.operations.get_mut(id) {
            operation.counting = Some(now.plus(self.settings.count_ms));
            operation.counted.clear();
        }
        let count = Count {
            operation: id.clone(),
            term: self.term,
        };
        self.send(&node, ToNode::Count(count));
    }

    /// A broker that restarted has the figures of its operations, and not those of the teams still to go.
    pub(crate) fn count_again(&mut self, node: &NodeId, now: Timestamp) {
        let running: Vec<OperationId> = self
            .operations
            .values()
            .filter(|operation| {
                operation.is_running()
                    && operation.node == *node
                    && operation.kind != OperationKind::Failover
                    && !operation.has_counts
            })
            .map(|operation| operation.id.clone())
            .collect();
        for id in running {
            self.count(&id, now);
        }
    }

    /// Answers a request once its operation knows its figures.
    pub(crate) fn answer_when_counted(&mut self, request: RequestId, operation: OperationId) {
        let counting = self
            .operations
            .get(&operation)
            .is_some_and(|operation| operation.counting.is_some() && operation.is_running());
        if counting {
            self.awaiting_count.push((request, operation));
        } else {
            let answer = Ok(Answer::Operation(operation));
            self.command(Command::Answer { request, answer });
        }
    }

    pub(crate) fn counted(&mut self, link: LinkId, counted: &Counted, now: Timestamp) {
        let Some(id) = self.speaker(link) else { return };
        let Some(operation) = self
            .operations
            .get_mut(&counted.operation)
            .filter(|operation| operation.node == id && operation.is_running())
        else {
            return;
        };
        for entry in &counted.teams {
            if operation.moved.get(&entry.team) == Some(&entry.epoch) {
                operation.recount(&entry.team, entry.connections);
            } else if operation.counting.is_some() {
                operation.counted.insert(entry.team.clone(), entry.connections);
            }
        }
        if counted.more || operation.counting.is_none() {
            return;
        }
        operation.has_counts = true;
        if let Some(node) = self.nodes.get_mut(&id) {
            node.report.connections = counted.connections;
        }
        self.end_counting(&counted.operation.clone(), now);
    }

    /// The counts are in, or nobody waits for them any more.
    pub(crate) fn end_counting(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get_mut(id) else {
            return;
        };
        if operation.counting.take().is_some() {
            self.set_figures(id, now);
            self.write_operation(id, now);
            self.step_operations(now);
        }
        self.answer_counted();
    }

    fn answer_counted(&mut self) {
        let operations = &self.operations;
        let waits = |operation: &OperationId| {
            let operation = operations.get(operation);
            operation
                .is_some_and(|operation: &Operation| operation.is_running() && operation.counting.is_some())
        };
        let (waiting, ready): (Vec<_>, Vec<_>) = std::mem::take(&mut self.awaiting_count)
            .into_iter()
            .partition(|(_, operation)| waits(operation));
        self.awaiting_count = waiting;
        for (request, operation) in ready {
            let answer = Ok(Answer::Operation(operation));
            self.command(Command::Answer { request, answer });
        }
    }

    /// Gives up on a node that does not count in time.
    pub(crate) fn end_late_counts(&mut self, now: Timestamp) {
        let late: Vec<OperationId> = self
            .operations
            .values()
            .filter(|operation| operation.counting.is_some_and(|until| until <= now))
            .map(|operation| operation.id.clone())
            .collect();
        for id in late {
            self.end_counting(&id, now);
        }
        if !self.awaiting_count.is_empty() {
            self.answer_counted();
        }
    }
}
