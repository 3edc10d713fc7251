//! How fast do an operation's connections go, and how long will that take?
//!
//! By default each ready target takes `rate_per_target` connections a second, and the fleet half of the sum
//! of its targets, but no less than one target's worth. A deadline raises the rate so that a fifth of the
//! time is left over. A rate that was asked for holds within a team, too; else a team goes together.

use std::collections::BTreeSet;
use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::link::{Pace, TeamPace, ToNode};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::OperationKind;

use crate::core::Core;
use crate::operation::Operation;
use crate::settings::Settings;
use crate::team::Move;

impl Operation {
    /// A team of at most so many connections goes in one slot.
    pub(crate) fn at_once(&self, settings: &Settings, now: Timestamp) -> u32 {
        let rate = u32::try_from(self.bucket.rate_per_s).unwrap_or(u32::MAX);
        match self.rate_asked {
            _ if self.is_late(now) => u32::MAX,
            Some(_) => rate,
            None => rate.max(settings.team_at_once),
        }
    }

    /// Whether what is left at its node is not to go before it is told to.
    pub(crate) fn is_on_hold(&self) -> bool {
        self.held || self.parked.is_some()
    }

    /// Whether its node is to be told again that what is left waits: it ends a hold by itself that is not renewed,
    /// because the broker may have forgotten it. Only a drain has an operator who can end it.
    pub(crate) fn renews_hold(&mut self, settings: &Settings, now: Timestamp) -> bool {
        if !self.is_on_hold() {
            self.on_hold_since = None;
            return false;
        }
        let since = *self.on_hold_since.get_or_insert(now);
        let endless = self.held && self.kind == OperationKind::Drain;
        (endless || now.since(since) < settings.hold_most_ms)
            && now.since(self.paced) >= settings.renew_hold_ms
    }

    /// Whether its deadline has passed: what is left goes now.
    pub(crate) fn is_late(&self, now: Timestamp) -> bool {
        self.deadline.is_some_and(|deadline| now >= deadline)
    }

    fn to_go(&self) -> u64 {
        u64::from(self.connections.saturating_sub(self.gone))
    }

    /// How long the connections of one team take to leave.
    pub(crate) fn spread_ms(&self, connections: u32, settings: &Settings, now: Timestamp) -> u64 {
        if connections <= self.at_once(settings, now) {
            return 0;
        }
        u64::from(connections) * 1_000 / self.bucket.rate_per_s.max(1)
    }
}

impl Core {
    /// Ready nodes beside this one.
    fn targets(&self, id: &NodeId) -> u64 {
        self.index.order.iter().filter(|key| key.node != *id).count() as u64
    }

    /// Works out from what is known of its node what an operation moves, how fast, and for how long.
    pub(crate) fn set_figures(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get(id) else {
            return;
        };
        let Some(node) = self.nodes.get(&operation.node) else {
            return;
        };
        let held: BTreeSet<TeamId> = self.held_here(&operation.node, now).into_iter().collect();
        let teams: &BTreeSet<TeamId> = if operation.kind == OperationKind::Drain {
            &node.teams
        } else {
            &operation.chosen
        };
        let mean_milli = node.connections_per_team_milli();
        let going = teams.iter().filter(|team| !held.contains(*team));
        let (mut milli, mut last, mut still) = (0, 0, 0_u32);
        for team in going {
            last = u64::try_from(operation.cost_milli(team, mean_milli)).unwrap_or(0);
            milli += last;
            still += 1;
        }
        let still_there = if operation.has_counts || operation.kind != OperationKind::Drain {
            u32::try_from(milli / 1_000).unwrap_or(u32::MAX)
        } else {
            node.report.connections
        };
        let known = operation.has_counts || node.report.seq > 0;
        let targets = self.targets(&operation.node);
        let fleet = self.settings.rate_per_target * targets.max(1).div_ceil(2);
        let settings = self.settings.clone();
        let Some(operation) = self.operations.get_mut(id) else {
            return;
        };
        operation.connections = operation.gone.saturating_add(still_there);
        operation.connections_known = known;
        operation.teams = u32::try_from(operation.moved.len())
            .unwrap_or(u32::MAX)
            .saturating_add(still)
            .saturating_add(u32::try_from(held.len()).unwrap_or(0));
        if operation.kind == OperationKind::Drain {
            operation.keep(&held.into_iter().collect::<Vec<_>>());
        } else {
            operation.teams = operation
                .teams
                .saturating_sub(u32::try_from(held.len()).unwrap_or(0));
        }
        let mut rate = operation.rate_asked.map_or(fleet, u64::from).max(1);
        if let Some(deadline) = operation.deadline {
            let left_ms = deadline.since(now).max(1);
            rate = rate.max((operation.to_go() * 5 * 1_000).div_ceil(left_ms * 4));
        }
        operation.bucket.set_rate(rate);
        // Nobody waits for what the last team owes, unless it is spread itself.
        let last = last / 1_000;
        let alone = u32::try_from(last).unwrap_or(u32::MAX) <= operation.at_once(&settings, now);
        let waited_for = operation.to_go() - if alone { last.min(operation.to_go()) } else { 0 };
        operation.estimate_ms = waited_for * 1_000 / rate;
    }

    /// How the connections of a moved team are to go.
    pub(crate) fn team_pace(
        &self,
        operation: &OperationId,
        team: &TeamId,
        to: &NodeId,
        now: Timestamp,
    ) -> Option<TeamPace> {
        let operation = self.operations.get(operation)?;
        // Another would never be told to go on.
        self.nodes.get(&operation.node).filter(|node| node.can_count)?;
        let settings = &self.settings;
        let at_once = operation.at_once(settings, now);
        let connections = operation.counted.get(team).copied().unwrap_or(0);
        let alone = connections > settings.away_most(operation.connections) && connections <= at_once;
        let shown = operation.shown.get(to).copied().unwrap_or(0) >= settings.shown_by;
        let to_show = operation.is_running()
            && alone
            && !shown
            && self.reports(to)
            && !operation.is_late(now)
            && !operation.trusted;
        let rate = u32::try_from(operation.bucket.rate_per_s).unwrap_or(u32::MAX);
        Some(TeamPace {
            rate_per_s: if operation.held { 0 } else { rate },
            at_once,
            first: if to_show { settings.first_to_show } else { 0 },
        })
    }

    /// Tells the node of an operation how what is left is to go from now on.
    pub(crate) fn send_pace(&mut self, id: &OperationId, now: Timestamp) {
        let Some(operation) = self.operations.get(id) else {
            return;
        };
        let node = operation.node.clone();
        if operation.leaving.is_empty() || !self.nodes.get(&node).is_some_and(|node| node.can_count) {
            return;
        }
        let rate = u32::try_from(operation.bucket.rate_per_s).unwrap_or(u32::MAX);
        let at_once = operation.at_once(&self.settings, now);
        let most = operation
            .leaving
            .iter()
            .filter_map(|team| operation.counted.get(team));
        let spread_ms = most
            .map(|connections| operation.spread_ms(*connections, &self.settings, now))
            .max();
        let mut by_ms = self.settings.leave_ms + spread_ms.unwrap_or(0);
        if let Some(deadline) = operation.deadline {
            by_ms = by_ms.min(deadline.since(now));
        }
        let pace = Pace {
            operation: id.clone(),
            pace: TeamPace {
                rate_per_s: if operation.is_on_hold() { 0 } else { rate },
                at_once,
                first: 0,
            },
            by_ms,
            term: self.term,
            number: operation.paces + 1,
        };
        let teams: Vec<TeamId> = operation.leaving.iter().cloned().collect();
        let until = now.plus(by_ms + self.settings.settle_ms);
        self.send(&node, ToNode::Pace(pace));
        if let Some(operation) = self.operations.get_mut(id) {
            operation.paced = now;
            operation.paces += 1;
        }
        for team in teams {
            self.leave_until(&team, until);
        }
    }

    /// Gives the connections of a team on its way more time to leave.
    pub(crate) fn leave_until(&mut self, id: &TeamId, later: Timestamp) {
        if let Some(Move::Leaving { until, .. }) =
            self.teams.get_mut(id).and_then(|team| team.moving.as_mut())
            && *until < later
        {
            *until = later;
            self.deadlines.insert((later, id.clone()));
        }
    }
}
