//! An operation: what it set out to do, how far it is, what came of it.

use std::collections::{BTreeMap, BTreeSet};
use usher_shared::id::{ConnectionId, NodeId, OperationId, TeamId};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::{Cause, OperationKind, OperationState, OperationView};

use crate::bucket::Bucket;
use crate::gaps::{Gaps, UNAGED_ERROR_MS};
use crate::record::OperationRecord;
use crate::returns::Returns;

/// The most connections of one operation whose gaps are matched one by one; the rest are counts.
const MATCHED_MAX: usize = 100_000;
/// The most teams that stay which a report names.
const KEPT_NAMED: usize = 10;

/// One operation.
#[derive(Clone, Debug)]
pub(crate) struct Operation {
    pub(crate) id: OperationId,
    pub(crate) kind: OperationKind,
    pub(crate) node: NodeId,
    pub(crate) state: OperationState,
    pub(crate) detail: String,
    pub(crate) began: Timestamp,
    pub(crate) began_wall_ms: u64,
    pub(crate) ended: Option<Timestamp>,
    pub(crate) deadline: Option<Timestamp>,
    pub(crate) bucket: Bucket,
    /// The rate that somebody asked for: it holds within a team, too.
    pub(crate) rate_asked: Option<u32>,
    pub(crate) estimate_ms: u64,
    pub(crate) teams: u32,
    /// Teams that are still to move: of a shed those that were picked, of a failover those that no node could
    /// take yet. A drain takes every team of its node.
    pub(crate) chosen: BTreeSet<TeamId>,
    /// Teams whose target is making room.
    pub(crate) preparing: BTreeSet<TeamId>,
    /// Teams with a new owner whose connections are still leaving.
    pub(crate) leaving: BTreeSet<TeamId>,
    /// Teams with a new owner, and the epoch they moved under: whose arrivals count here.
    pub(crate) moved: BTreeMap<TeamId, Epoch>,
    /// Teams that stay where they are, because they are pinned hard to the node.
    pub(crate) kept: Vec<TeamId>,
    pub(crate) kept_count: u32,
    pub(crate) connections: u32,
    /// Whether the node ever said how many it had.
    pub(crate) connections_known: bool,
    pub(crate) gone: u32,
    pub(crate) back: u32,
    /// Until when its node may count.
    pub(crate) counting: Option<Timestamp>,
    /// What its node counted: connections of the teams that have any. Empty for a node that cannot.
    pub(crate) counted: BTreeMap<TeamId, u32>,
    pub(crate) has_counts: bool,
    /// What was taken from the bucket for teams under way.
    going: BTreeMap<TeamId, Going>,
    /// Connections that are gone and not back, by team; negative for those that arrived first.
    away: BTreeMap<TeamId, i64>,
    pub(crate) returns: Returns,
    /// Where connections of this operation have arrived, and how many.
    pub(crate) shown: BTreeMap<NodeId, u32>,
    /// A team of which only the first went, until they have shown that they arrive.
    pub(crate) parked: Option<TeamId>,
    /// Since when what is left at its node waits.
    pub(crate) on_hold_since: Option<Timestamp>,
    /// When its node was last told how what is left is to go.
    pub(crate) paced: Timestamp,
    /// How often its node was told.
    pub(crate) paces: u64,
    /// Whether nothing more leaves just now because what left does not arrive.
    pub(crate) waits: bool,
    /// Whether its node was told to hold what is left.
    pub(crate) held: bool,
    /// An operator has let it go on: nothing has to be shown any more.
    pub(crate) trusted: bool,
    /// Since when a failover is one: before that, its node is only silent.
    pub(crate) died: Option<Timestamp>,
    /// When it last gave a team a new owner.
    pub(crate) placed_at: Timestamp,
    /// When connections left, for those that may be seen again.
    departed: BTreeMap<ConnectionId, At>,
    /// Connections whose successor came in before their leaving was told.
    succeeded: BTreeMap<ConnectionId, At>,
    gaps: Gaps,
    /// Deliveries that members of teams on their way missed, as far as nodes count them.
    missed: Option<u64>,
    /// When anything last happened.
    pub(crate) touched: Timestamp,
    /// When its progress was last written, and whether there is more since.
    pub(crate) written: Timestamp,
    pub(crate) unwritten: bool,
    /// Figures of an operation that is over for good.
    settled: Option<OperationView>,
}

/// A moment, and how far it may be off.
#[derive(Clone, Copy, Debug)]
pub(crate) struct At {
    pub(crate) when: Timestamp,
    pub(crate) error_ms: u64,
}

impl At {
    /// The moment of something that a node reports now; `age_ms` is how long ago it says that was.
    pub(crate) fn of(age_ms: Option<u64>, now: Timestamp) -> Self {
        if planted::is(Bug::GapsByReport) {
            return Self {
                when: now,
                error_ms: 0,
            };
        }
        match age_ms {
            Some(age_ms) => Self {
                when: now.minus(age_ms),
                error_ms: 0,
            },
            None => Self {
                when: now,
                error_ms: UNAGED_ERROR_MS,
            },
        }
    }
}

#[derive(Clone, Copy, Debug, Default)]
struct Going {
    /// Thousandths of a connection.
    charged: i64,
    gone: u32,
}

impl Operation {
    pub(crate) fn new(
        id: OperationId,
        kind: OperationKind,
        node: NodeId,
        now: Timestamp,
        wall_ms: u64,
    ) -> Self {
        Self {
            id,
            kind,
            node,
            state: OperationState::Running,
            detail: String::new(),
            began: now,
            began_wall_ms: wall_ms,
            ended: None,
            deadline: None,
            bucket: Bucket::new(now),
            rate_asked: None,
            estimate_ms: 0,
            teams: 0,
            chosen: BTreeSet::new(),
            preparing: BTreeSet::new(),
            leaving: BTreeSet::new(),
            moved: BTreeMap::new(),
            kept: Vec::new(),
            kept_count: 0,
            connections: 0,
            connections_known: true,
            gone: 0,
            back: 0,
            counting: None,
            counted: BTreeMap::new(),
            has_counts: false,
            going: BTreeMap::new(),
            away: BTreeMap::new(),
            returns: Returns::default(),
            shown: BTreeMap::new(),
            parked: None,
            on_hold_since: None,
            paced: now,
            paces: 0,
            waits: false,
            held: false,
            trusted: false,
            died: None,
            placed_at: now,
            departed: BTreeMap::new(),
            succeeded: BTreeMap::new(),
            gaps: Gaps::default(),
            missed: None,
            touched: now,
            written: now,
            unwritten: false,
            settled: None,
        }
    }

    /// An operation as the store has it; one that was running goes on.
    pub(crate) fn from_record(record: OperationRecord, now: Timestamp, wall_ms: u64) -> Self {
        let view = record.view;
        let began = now.minus(wall_ms.saturating_sub(record.began_wall_ms));
        let mut operation = Self::new(
            view.operation.clone(),
            view.kind,
            view.node.clone(),
            began,
            record.began_wall_ms,
        );
        operation.bucket = Bucket::new(now);
        operation.bucket.set_rate(u64::from(view.rate_per_s));
        operation.rate_asked = record.rate_asked;
        operation.touched = now;
        operation.written = now;
        operation.state = view.state;
        operation.detail.clone_from(&view.detail);
        operation.estimate_ms = view.estimate_ms;
        operation.teams = view.teams;
        operation.kept.clone_from(&view.teams_kept_named);
        operation.kept_count = view.teams_kept;
        operation.connections = view.connections;
        operation.connections_known = view.connections_known;
        // Earlier versions stored them by other names.
        operation.gone = view.connections_moved.max(view.connections_left);
        operation.back = view.connections_back.max(view.connections_arrived);
        operation.missed = view.deliveries_missed;
        operation.gaps = Gaps::from_stored(record.gaps, view.gap_max_ms, view.gap_error_ms.unwrap_or(0));
        operation.chosen = record.chosen.into_iter().collect();
        operation.died = record.died_wall_ms.map(|_| began);
        operation.deadline = record.deadline_wall_ms.map(|at| {
            if at >= wall_ms {
                now.plus(at - wall_ms)
            } else {
                now
            }
        });
        if view.state != OperationState::Running {
            operation.ended = Some(began.plus(view.elapsed_ms));
            operation.settle_on(view);
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
            began_wall_ms: self.began_wall_ms,
            deadline_wall_ms: self.deadline.map(wall),
            died_wall_ms: self.died.map(wall),
            rate_asked: self.rate_asked,
            gaps: self.gaps.stored(),
            chosen: self.chosen.iter().take(100_000).cloned().collect(),
        }
    }

    pub(crate) fn is_running(&self) -> bool {
        self.state == OperationState::Running
    }

    /// Whether it is over for good: its figures are final, and what they were made of is gone.
    pub(crate) const fn is_settled(&self) -> bool {
        self.settled.is_some()
    }

    /// It is over for good. What stays is what an operator sees of it: a hundred ended ones are kept, and each
    /// had up to 200,000 connections to tell apart.
    pub(crate) fn settle_figures(&mut self, now: Timestamp) {
        if !self.is_settled() {
            self.settle_on(self.view(now));
        }
    }

    fn settle_on(&mut self, view: OperationView) {
        self.settled = Some(view);
        self.chosen = BTreeSet::new();
        self.counted = BTreeMap::new();
        self.going = BTreeMap::new();
        self.away = BTreeMap::new();
        self.returns = Returns::default();
        self.shown = BTreeMap::new();
        self.departed = BTreeMap::new();
        self.succeeded = BTreeMap::new();
        self.gaps = Gaps::default();
        self.kept = Vec::new();
    }

    pub(crate) const fn cause(&self) -> Cause {
        match self.kind {
            OperationKind::Drain => Cause::Drain,
            OperationKind::Shed => Cause::Shed,
            OperationKind::Failover => Cause::Failover,
            OperationKind::Relief => Cause::Full,
        }
    }

    fn touch(&mut self, now: Timestamp) {
        self.touched = now;
        self.unwritten = true;
    }

    /// Thousandths of a connection that a team has, as far as is known; `mean_milli` where its node did not count.
    pub(crate) fn cost_milli(&self, team: &TeamId, mean_milli: u64) -> i64 {
        let milli = if self.has_counts && !planted::is(Bug::DrainChargesMean) {
            u64::from(self.counted.get(team).copied().unwrap_or(0)) * 1_000
        } else {
            mean_milli
        };
        i64::try_from(milli).unwrap_or(i64::MAX / 4)
    }

    /// A team sets out: its connections are taken from the bucket, once.
    pub(crate) fn charge(&mut self, team: &TeamId, milli: i64) {
        if self.going.contains_key(team) {
            return;
        }
        self.bucket.charge(milli);
        let going = Going {
            charged: milli,
            gone: 0,
        };
        self.going.insert(team.clone(), going);
    }

    /// Connections that are away, or about to be: of teams under way.
    pub(crate) fn exposed(&self) -> u32 {
        let still = self
            .going
            .values()
            .map(|going| (going.charged - i64::from(going.gone) * 1_000).max(0))
            .sum::<i64>();
        let still = u32::try_from(still / 1_000).unwrap_or(u32::MAX);
        self.returns.away().saturating_add(still)
    }

    /// It does not go after all, or not now.
    pub(crate) fn refund(&mut self, team: &TeamId) {
        if let Some(going) = self.going.remove(team) {
            self.bucket.charge(-going.charged);
        }
    }

    /// The node says how many connections the team has at the moment when it begins to go.
    pub(crate) fn recount(&mut self, team: &TeamId, connections: u32) {
        if planted::is(Bug::DrainChargesMean) {
            return;
        }
        let Some(going) = self.going.get_mut(team) else {
            return;
        };
        let milli = i64::from(connections) * 1_000;
        self.bucket.charge(milli - going.charged);
        going.charged = milli;
        if self.has_counts {
            let before = self.counted.insert(team.clone(), connections).unwrap_or(0);
            self.connections = self
                .connections
                .saturating_sub(before)
                .saturating_add(connections);
        }
    }

    /// The last connection of a team has left. `reported`: its node tells of each, so what did not go was not there.
    pub(crate) fn settle(&mut self, team: &TeamId, reported: bool) {
        let Some(going) = self.going.remove(team) else {
            return;
        };
        let unused = going.charged - i64::from(going.gone) * 1_000;
        // Of a node that did not count, the mean may be wrong either way: only what is too little is mended.
        if !reported || unused <= 0 || !self.has_counts {
            return;
        }
        self.bucket.charge(-unused);
        let never = u32::try_from(unused / 1_000).unwrap_or(0);
        self.connections = self.connections.saturating_sub(never);
    }

    /// A connection of a moved team left the node. `watched`: it would be reported when it arrives. Returns
    /// the gap when its successor is known.
    pub(crate) fn departed(
        &mut self,
        team: &TeamId,
        connection: ConnectionId,
        at: At,
        watched: bool,
        now: Timestamp,
    ) -> Option<u64> {
        self.gone = self.gone.saturating_add(1);
        self.touch(now);
        if watched {
            self.returns.gone(now);
        }
        if !self.going.contains_key(team) && self.has_counts {
            // It was on its way when the others were counted.
            self.connections = self.connections.saturating_add(1);
        }
        if let Some(going) = self.going.get_mut(team) {
            going.gone = going.gone.saturating_add(1);
            let beyond = i64::from(going.gone) * 1_000 - going.charged;
            // More than was known of: they are paid for, too.
            if beyond > 0 && !planted::is(Bug::DrainChargesMean) {
                going.charged += beyond;
                self.bucket.charge(beyond);
            }
        }
        self.connections = self.connections.max(self.gone);
        self.count_away(team, 1);
        if let Some(there) = self.succeeded.remove(&connection) {
            return Some(self.gap(at, there));
        }
        if self.departed.len() < MATCHED_MAX {
            self.departed.insert(connection, at);
        }
        None
    }

    /// A connection of a moved team came in on `node`. Returns the gap when it is known whose it was.
    pub(crate) fn arrived(
        &mut self,
        team: &TeamId,
        from: Option<ConnectionId>,
        node: &NodeId,
        at: At,
        now: Timestamp,
    ) -> Option<u64> {
        self.back = self.back.saturating_add(1);
        self.returns.arrived();
        *self.shown.entry(node.clone()).or_default() += 1;
        self.touch(now);
        self.count_away(team, -1);
        let from = from?;
        if let Some(left) = self.departed.remove(&from) {
            return Some(self.gap(left, at));
        }
        if self.succeeded.len() < MATCHED_MAX {
            self.succeeded.insert(from, at);
        }
        None
    }

    fn count_away(&mut self, team: &TeamId, change: i64) {
        let away = self.away.entry(team.clone()).or_default();
        *away += change;
        if *away == 0 {
            self.away.remove(team);
        }
    }

    /// Whether a connection of this team is gone and not seen again.
    pub(crate) fn misses(&self, team: &TeamId) -> bool {
        match self.kind {
            // Of a dead process nobody reported who left.
            OperationKind::Failover => self.back < self.connections,
            _ => self.away.get(team).is_some_and(|away| *away > 0),
        }
    }

    /// Whether this very connection left by this operation and is not seen again.
    pub(crate) fn knows(&self, connection: ConnectionId) -> bool {
        self.departed.contains_key(&connection)
    }

    fn gap(&mut self, left: At, there: At) -> u64 {
        let millis = there.when.since(left.when);
        self.gaps.add(millis, left.error_ms.max(there.error_ms));
        millis
    }

    pub(crate) fn add_missed(&mut self, deliveries: u64) {
        self.missed = Some(self.missed.unwrap_or(0).saturating_add(deliveries));
        self.unwritten = true;
    }

    /// Names the teams that stay.
    pub(crate) fn keep(&mut self, kept: &[TeamId]) {
        self.kept = kept.iter().take(KEPT_NAMED).cloned().collect();
        self.kept_count = u32::try_from(kept.len()).unwrap_or(u32::MAX);
    }

    /// What an operator sees of it.
    pub(crate) fn view(&self, now: Timestamp) -> OperationView {
        if let Some(settled) = &self.settled {
            return settled.clone();
        }
        let count = |length: usize| u32::try_from(length).unwrap_or(u32::MAX);
        let teams = self.teams.max(count(self.moved.len()));
        let teams_moved = count(self.moved.len());
        let elapsed_ms = self.ended.unwrap_or(now).since(self.began);
        let back = if self.connections_known {
            self.back.min(self.connections)
        } else {
            self.back
        };
        OperationView {
            operation: self.id.clone(),
            kind: self.kind,
            node: self.node.clone(),
            state: self.state,
            detail: self.detail.clone(),
            waits: self.waits && self.is_running(),
            teams,
            teams_moved,
            teams_to_go: if self.is_running() {
                (teams - teams_moved).saturating_sub(self.kept_count)
            } else {
                0
            },
            teams_leaving: count(self.leaving.len()),
            teams_kept: self.kept_count,
            teams_kept_named: self.kept.clone(),
            connections: self.connections,
            connections_known: self.connections_known,
            connections_moved: self.gone,
            connections_left: self.gone,
            connections_to_go: if self.is_running() {
                self.connections.saturating_sub(self.gone)
            } else {
                0
            },
            connections_back: back,
            connections_arrived: back,
            connections_not_back: self.gone.saturating_sub(back),
            connections_matched: self.gaps.count(),
            gap_p50_ms: self.gaps.at(50),
            gap_p99_ms: self.gaps.at(99),
            gap_max_ms: self.gaps.longest(),
            gap_error_ms: (self.gaps.count() > 0).then(|| self.gaps.error_ms()),
            deliveries_missed: self.missed,
            rate_per_s: u32::try_from(self.bucket.rate_per_s).unwrap_or(u32::MAX),
            estimate_ms: self.estimate_ms,
            elapsed_ms,
            began_unix_ms: self.began_wall_ms,
            ended_unix_ms: self.ended.map(|_| self.began_wall_ms.saturating_add(elapsed_ms)),
        }
    }
}

#[cfg(test)]
#[path = "operation_tests.rs"]
mod tests;
