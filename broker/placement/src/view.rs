//! What does an operator see?
//!
//! Views are made for their question from the state as it is; they change nothing.

use std::collections::BTreeMap;
use std::ops::Bound::{Excluded, Unbounded};
use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{
    DecisionView, Imbalance, NodeView, OperationView, Pin, StatusView, TeamView, TeamsView, WhyView,
};

use crate::choose::Decision;
use crate::core::Core;
use crate::node::{Intent, Node};
use crate::operation::Operation;
use crate::score;
use crate::strain;
use crate::team::{Move, Team};

/// The most teams of one page.
const PAGE_MAX: usize = 1_000;
const PPM: u64 = 1_000_000;
/// Below this mean of CPU, in parts per million of a node's cores, differences count less: idle processes
/// differ by more than half for no reason.
const CPU_FLOOR_PPM: u64 = 100_000;

impl Core {
    /// The cluster that this core decides for.
    #[must_use]
    pub const fn cluster(&self) -> usher_shared::id::ClusterId {
        self.cluster
    }

    /// One team.
    #[must_use]
    pub fn team(&self, id: &TeamId, now: Timestamp) -> Option<TeamView> {
        self.teams.get(id).map(|team| self.team_view(id, team, now))
    }

    /// A page of teams in order of their ids, from behind `after`; at most 1,000.
    #[must_use]
    pub fn teams(
        &self,
        node: Option<&NodeId>,
        after: Option<&TeamId>,
        limit: usize,
        now: Timestamp,
    ) -> TeamsView {
        let limit = limit.clamp(1, PAGE_MAX);
        let from = after.map_or(Unbounded, Excluded);
        let (ids, total): (Vec<&TeamId>, usize) = match node {
            None => {
                let page = self.teams.range::<TeamId, _>((from, Unbounded)).map(|(id, _)| id);
                (page.take(limit + 1).collect(), self.teams.len())
            }
            Some(node) => match self.nodes.get(node) {
                None => (Vec::new(), 0),
                Some(node) => {
                    let page = node.teams.range::<TeamId, _>((from, Unbounded));
                    (page.take(limit + 1).collect(), node.teams.len())
                }
            },
        };
        let more = ids.len() > limit;
        let view = |id: &&TeamId| self.teams.get(*id).map(|team| self.team_view(id, team, now));
        let teams: Vec<TeamView> = ids.iter().take(limit).filter_map(view).collect();
        let next = teams.last().filter(|_| more).map(|team| team.team.clone());
        TeamsView {
            teams,
            total: total as u64,
            next,
        }
    }

    fn team_view(&self, id: &TeamId, team: &Team, now: Timestamp) -> TeamView {
        let node = team.owner.as_ref().map(|owner| owner.node.clone());
        let url = node.as_ref().and_then(|name| {
            let url = &self.nodes.get(name)?.hello.url;
            Some(format!("{}:{}", url.scheme(), url.authority_and_path(name, id)))
        });
        let wall_ms = self.wall_ms(now);
        let pin = team
            .pin
            .as_ref()
            .filter(|pin| pin.until_wall_ms > wall_ms)
            .map(|pin| Pin {
                node: pin.node.clone(),
                seconds: (pin.until_wall_ms - wall_ms).div_ceil(1_000),
                strength: pin.strength,
            });
        let moving_from = match &team.moving {
            Some(Move::Leaving { from, .. }) => Some(from.node.clone()),
            _ => None,
        };
        TeamView {
            team: id.clone(),
            node,
            url,
            epoch: team.epoch,
            kind: team.kind,
            weight: team.weight,
            moving_from,
            region: team.region.clone(),
            labels: team.labels.clone(),
            pin,
        }
    }

    /// Why a team is where it is: its decisions, newest first.
    #[must_use]
    pub fn why(&self, id: &TeamId, now: Timestamp) -> Option<WhyView> {
        let team = self.teams.get(id)?;
        let decisions = self.decisions.of(id);
        Some(WhyView {
            team: id.clone(),
            node: team.owner.as_ref().map(|owner| owner.node.clone()),
            epoch: team.epoch,
            decisions: decisions.map(|decision| decision_view(decision, now)).collect(),
        })
    }

    /// Every node, in order of their names.
    #[must_use]
    pub fn nodes(&self, now: Timestamp) -> Vec<NodeView> {
        self.nodes
            .values()
            .map(|node| self.node_view(node, now))
            .collect()
    }

    /// One node.
    #[must_use]
    pub fn node(&self, id: &NodeId, now: Timestamp) -> Option<NodeView> {
        self.nodes.get(id).map(|node| self.node_view(node, now))
    }

    fn node_view(&self, node: &Node, now: Timestamp) -> NodeView {
        let gate = score::gate(node, &self.settings);
        let last_resort = node.trust.gate().or(strain::strained_by(node, &self.settings));
        let operation = match &node.intent {
            Intent::Draining(operation) => Some(operation.clone()),
            _ => None,
        };
        NodeView {
            node: node.id().clone(),
            incarnation: node.incarnation(),
            state: node.state(),
            version: node.hello.version.clone(),
            url: node.hello.url.for_node(node.id()),
            region: node.hello.region.clone(),
            zone: node.hello.zone.clone(),
            labels: node.hello.labels.clone(),
            weight: node.hello.weight,
            cores: node.hello.cores,
            capacity: node.hello.capacity,
            teams: u32::try_from(node.teams.len()).unwrap_or(u32::MAX),
            connections: if node.is_dead() {
                0
            } else {
                node.report.connections
            },
            cpu_now: node.report.cpu_now,
            cpu_average: node.report.cpu_average,
            memory_bytes: node.report.memory_bytes,
            memory: node.report.memory,
            score: score::view(node, &self.pool, &self.settings),
            gates: gate.into_iter().chain(last_resort).collect(),
            heartbeat_age_ms: now.since(node.heard()),
            sent: node.trust.sent,
            arrived: node.trust.arrived,
            url_answers: node.trust.url_answers(),
            same_url: self.same_url(node.id()),
            distrust: node.trust.view(now),
            operation,
            probe: node.hello.probe.clone(),
            probe_state: node.probe_state,
            rival: node.rival_view(now),
        }
    }

    /// Operations, newest first; at most 100.
    #[must_use]
    pub fn operations(&self, now: Timestamp) -> Vec<OperationView> {
        let mut all: Vec<&Operation> = self.operations.values().collect();
        all.sort_by(|one, other| other.began.cmp(&one.began).then_with(|| other.id.cmp(&one.id)));
        all.into_iter()
            .take(100)
            .map(|operation| operation.view(now))
            .collect()
    }

    /// One operation.
    #[must_use]
    pub fn operation(&self, id: &OperationId, now: Timestamp) -> Option<OperationView> {
        self.operations.get(id).map(|operation| operation.view(now))
    }

    /// The broker at a glance. `version` is left for the caller to fill in.
    #[must_use]
    pub fn status(&self, now: Timestamp) -> StatusView {
        let mut nodes = BTreeMap::new();
        let mut connections = 0;
        for node in self.nodes.values() {
            *nodes.entry(node.state()).or_insert(0) += 1;
            if !node.is_dead() {
                connections += u64::from(node.report.connections);
            }
        }
        let running = self
            .operations
            .values()
            .filter(|operation| operation.is_running())
            .count();
        let imbalance = self.imbalance();
        StatusView {
            cluster: self.cluster,
            broker: self.broker,
            term: self.term,
            version: String::new(),
            state: self.state(),
            uptime_ms: now.since(self.started),
            nodes,
            teams: self.teams.len() as u64,
            teams_unplaced: self.unplaced.len() as u64,
            connections,
            imbalance_ppm: imbalance.most(),
            imbalance,
            operations_running: u32::try_from(running).unwrap_or(u32::MAX),
            links_refused: BTreeMap::new(),
            self_preservation: self.preservation(now),
        }
    }

    /// The busiest over the mean of the ready nodes: the full ones, too, since they are the busiest.
    fn imbalance(&self) -> Imbalance {
        let settings = &self.settings;
        let of = |figure: fn(&Node) -> u64, floor: u64| {
            let figures = || {
                self.nodes
                    .values()
                    .filter(|node| score::is_ready(node))
                    .map(figure)
            };
            let (count, sum) = (figures().count() as u64, figures().sum::<u64>());
            let most = figures().max().unwrap_or(0);
            // The largest over the mean, with the division left for last.
            let ratio =
                u128::from(most) * u128::from(count * PPM) / u128::from(sum.max(floor * count).max(1));
            u64::try_from(ratio).unwrap_or(u64::MAX).max(PPM)
        };
        Imbalance {
            teams_ppm: of(score::team_load, settings.load_floor * 1_000),
            connections_ppm: of(score::connection_load, settings.connection_floor * 1_000),
            cpu_ppm: of(score::cpu_ppm, CPU_FLOOR_PPM),
        }
    }
}

fn decision_view(decision: &Decision, now: Timestamp) -> DecisionView {
    DecisionView {
        epoch: decision.epoch,
        cause: decision.cause,
        node: decision.node.clone(),
        from: decision.from.clone(),
        ago_ms: now.since(decision.at),
        best: decision.best.clone(),
        gated: decision.gated.clone(),
        gated_nodes: decision.gated_nodes.clone(),
        nodes: decision.nodes,
    }
}
