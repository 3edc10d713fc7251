//! An operation: what it set out to do, how far it is, what came of it.

use std::collections::{BTreeMap, BTreeSet};
use usher_shared::id::{ConnectionId, NodeId, OperationId, TeamId};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::{Cause, OperationKind, OperationState, OperationView};

use crate::record::OperationRecord;

/// The most connections of one operation whose gaps are matched one by one; the rest are counts.
const MATCHED_MAX: usize = 100_000;

/// One operation.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) id: OperationId,
    pub(crate) kind: OperationKind,
    pub(crate) node: NodeId,
    pub(crate) state: OperationState,
    pub(crate) detail: String,
    pub(crate) began: Timestamp,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) rate_per_s: u64,
    pub(crate) estimate_ms: u64,
    /// Thousandths of a connection that may move now.
    pub(crate) tokens: i64,
    pub(crate) refilled: Timestamp,
    pub(crate) teams: u32,
    /// For a shed: the teams that are still to move. A drain takes every team of its node.
    pub(crate) chosen: BTreeSet<TeamId>,
    /// Teams whose target is making room.
    pub(crate) preparing: BTreeSet<TeamId>,
    /// Teams with a new owner whose connections are still leaving.
    pub(crate) leaving: BTreeSet<TeamId>,
    /// Teams with a new owner, and the epoch they moved under: whose arrivals count here.
    pub(crate) moved: BTreeMap<TeamId, Epoch>,
    pub(crate) connections: u32,
    pub(crate) left: u32,
    pub(crate) arrived: u32,
    /// When connections left, for those that may be seen again.
    departed: BTreeMap<ConnectionId, Timestamp>,
    /// Connections whose successor came in before they left.
    succeeded: BTreeSet<ConnectionId>,
    gaps: Vec<u64>,
    /// When anything last happened.
    pub(crate) touched: Timestamp,
    /// Figures of a finished operation that was read from the store.
    stored: Option<OperationView>,
}

impl Operation {
    pub(crate) fn new(id: OperationId, kind: OperationKind, node: NodeId, now: Timestamp) -> Self {
        Self {
            id,
            kind,
            node,
            state: OperationState::Running,
            detail: String::new(),
            began: now,
            ended: None,
            deadline: None,
            rate_per_s: 0,
            estimate_ms: 0,
            tokens: 0,
            refilled: now,
            teams: 0,
            chosen: BTreeSet::new(),
            preparing: BTreeSet::new(),
            leaving: BTreeSet::new(),
            moved: BTreeMap::new(),
            connections: 0,
            left: 0,
            arrived: 0,
            departed: BTreeMap::new(),
            succeeded: BTreeSet::new(),
            gaps: Vec::new(),
            touched: now,
            stored: None,
        }
    }

    /// An operation as the store has it; one that was running goes on.
    pub(crate) fn from_record(record: OperationRecord, now: Timestamp, wall_ms: u64) -> Self {
        let view = record.view;
        let began = now.minus(wall_ms.saturating_sub(record.began_wall_ms));
        let mut operation = Self::new(view.operation.clone(), view.kind, view.node.clone(), began);
        operation.refilled = now;
        operation.touched = now;
        operation.state = view.state;
        operation.detail.clone_from(&view.detail);
        operation.rate_per_s = u64::from(view.rate_per_s);
        operation.estimate_ms = view.estimate_ms;
        operation.teams = view.teams;
        operation.connections = view.connections;
        operation.chosen = record.chosen.into_iter().collect();
        operation.deadline = record.deadline_wall_ms.map(|at| {
            if at >= wall_ms {
                now.plus(at - wall_ms)
            } else {
                now
            }
        });
        if view.state != OperationState::Running {
            operation.ended = Some(began.plus(view.elapsed_ms));
            operation.stored = Some(view);
        }
        operation
    }

    pub(crate) fn record(&self, now: Timestamp, wall_ms: u64) -> OperationRecord {
        let wall = |at: Timestamp| {
            if at >= now {
                wall_ms.saturating_add(at.since(now))
            } else {
                wall_ms.saturating_sub(now.since(at))
            }
        };
        OperationRecord {
            view: self.view(now),
            began_wall_ms: wall(self.began),
            deadline_wall_ms: self.deadline.map(wall),
            chosen: self.chosen.iter().take(100_000).cloned().collect(),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == OperationState::Running
    }

    pub(crate) const fn cause(&self) -> Cause {
        match self.kind {
            OperationKind::Drain => Cause::Drain,
            OperationKind::Shed => Cause::Shed,
            OperationKind::Failover => Cause::Failover,
        }
    }

    /// A connection of a moved team left the node. Returns the gap when its successor was there first.
    pub(crate) fn departed(&mut self, connection: ConnectionId, now: Timestamp) -> Option<u64> {
        self.left = self.left.saturating_add(1);
        self.touched = now;
        if self.succeeded.remove(&connection) {
            return Some(self.gap(0));
        }
        if self.departed.len() < MATCHED_MAX {
            self.departed.insert(connection, now);
        }
        None
    }

    /// A connection of a moved team came in elsewhere. Returns the gap when it is known whose it was.
    pub(crate) fn arrived(&mut self, from: Option<ConnectionId>, now: Timestamp) -> Option<u64> {
        self.arrived = self.arrived.saturating_add(1);
        self.touched = now;
        let from = from?;
        if let Some(left) = self.departed.remove(&from) {
            return Some(self.gap(now.since(left)));
        }
        if self.succeeded.len() < MATCHED_MAX {
            self.succeeded.insert(from);
        }
        None
    }

    fn gap(&mut self, millis: u64) -> u64 {
        if self.gaps.len() < MATCHED_MAX {
            self.gaps.push(millis);
        }
        millis
    }

    /// What an operator sees of it.
    pub(crate) fn view(&self, now: Timestamp) -> OperationView {
        if let Some(stored) = &self.stored {
            return stored.clone();
        }
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let mut gaps = self.gaps.clone();
        gaps.sort_unstable();
        let at = |percent: usize| {
            let rank = (gaps.len() * percent).div_ceil(100).max(1) - 1;
            gaps.get(rank).copied()
        };
        let teams_moved = count(self.moved.len()).min(self.teams);
        OperationView {
            operation: self.id.clone(),
            kind: self.kind,
            node: self.node.clone(),
            state: self.state,
            detail: self.detail.clone(),
            teams: self.teams,
            teams_moved,
            teams_waiting: if self.is_running() {
                self.teams - teams_moved
            } else {
                0
            },
            teams_leaving: count(self.leaving.len()),
            connections: self.connections,
            connections_left: self.left,
            connections_arrived: self.arrived,
            connections_matched: count(self.gaps.len()),
            gap_p50_ms: at(50),
            gap_p99_ms: at(99),
            gap_max_ms: gaps.last().copied(),
            rate_per_s: u32::try_from(self.rate_per_s).unwrap_or(u32::MAX),
            estimate_ms: self.estimate_ms,
            elapsed_ms: self.ended.unwrap_or(now).since(self.began),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::id::Incarnation;

    fn operation() -> Operation {
        let (id, node) = ("drain-1-1".parse().unwrap(), "n1".parse().unwrap());
        Operation::new(id, OperationKind::Drain, node, Timestamp::from_millis(1_000))
    }

    #[test]
    fn a_gap_is_the_time_between_leaving_and_coming_back() {
        let mut drain = operation();
        let connection = ConnectionId::new(Incarnation::from_bits(1), 1);
        assert_eq!(drain.departed(connection, Timestamp::from_millis(2_000)), None);
        assert_eq!(
            drain.arrived(Some(connection), Timestamp::from_millis(2_250)),
            Some(250)
        );
        let view = drain.view(Timestamp::from_millis(3_000));
        assert_eq!(
            (view.gap_p50_ms, view.gap_p99_ms, view.gap_max_ms),
            (Some(250), Some(250), Some(250))
        );
        assert_eq!(
            (
                view.connections_left,
                view.connections_arrived,
                view.connections_matched
            ),
            (1, 1, 1)
        );
    }

    #[test]
    fn a_client_that_opened_the_new_connection_first_had_no_gap() {
        let mut drain = operation();
        let connection = ConnectionId::new(Incarnation::from_bits(1), 1);
        assert_eq!(
            drain.arrived(Some(connection), Timestamp::from_millis(2_000)),
            None
        );
        assert_eq!(drain.departed(connection, Timestamp::from_millis(2_100)), Some(0));
    }

    #[test]
    fn a_finished_operation_keeps_its_report_over_a_restart() {
        let mut drain = operation();
        drain.arrived(None, Timestamp::from_millis(2_000));
        drain.state = OperationState::Done;
        drain.ended = Some(Timestamp::from_millis(5_000));
        let record = drain.record(Timestamp::from_millis(6_000), 1_000_000);
        let again = Operation::from_record(record, Timestamp::from_millis(50), 2_000_000);
        assert_eq!(
            again.view(Timestamp::from_millis(60)),
            drain.view(Timestamp::from_millis(6_000))
        );
    }
}
