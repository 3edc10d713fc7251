//! How busy a node is, and who is least busy.
//!
//! ```text
//! team_load(n)       = (weights of the teams on n and on their way to n) / weight(n)
//! connection_load(n) = (connections on n and on their way to n) / weight(n)
//! busy(n) = team_share x team_load(n) / max(mean team_load, floor)
//!         + connection_share x (connection_load(n) / max(mean connection_load, floor)
//!                               + connections(n) / room left on n)
//!         + cpu_share x (cpu_average(n) + cpu_pending(n)) / cores(n)
//!         + strain(n)
//! ```
//!
//! Connections count twice. Beside the others' as teams do: what a node announces as its capacity is
//! mostly its descriptor limit, and 1,000 connections of 20,000 would be next to nothing while the other nodes
//! have none. And against its own room, because a node that is nearly full must keep what is left
//! for the teams that it has: half full adds one share, 90 % nine.
//!
//! Integers only, so that the same state gives the same order on every machine. The means, the cost
//! of a team and the fading of what is pending are frozen for a tick: a placement re-keys one node
//! and leaves the others alone.

use std::collections::{BTreeMap, BTreeSet};
use usher_shared::id::NodeId;
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Millicores, Weight};
use usher_shared::rest::{Gate, ScoreView};

use crate::node::{Intent, Node, Seen, Silence};
use crate::settings::Settings;
use crate::strain;

/// Loads are kept in thousandths: of a default weight, or of a connection, on a default node.
const LOAD_SCALE: u64 = 1_000;
/// The most that a node's lack of room counts, in times of the connections' share: what is fuller than 91 %
/// is as good as full.
const CROWDED_MAX: u64 = 10;

/// A node's place in the order. The order of the fields is the policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// 1 when it dies again and again, 2 when nobody gets to it: whatever else there is comes first.
    pub(crate) distrusted: u8,
    /// How busy, in parts per million.
    pub(crate) busy: u64,
    /// Teams, those on their way included.
    pub(crate) teams: u32,
    /// The number of the choice that last took it.
    pub(crate) last_chosen: u64,
    /// Settles what is still even.
    pub(crate) node: NodeId,
}

/// How busy a node is, by what makes it so, in parts per million.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Busy {
    pub(crate) teams: u64,
    pub(crate) connections: u64,
    pub(crate) cpu: u64,
    pub(crate) strain: u64,
}

impl Busy {
    pub(crate) fn sum(self) -> u64 {
        self.teams
            .saturating_add(self.connections)
            .saturating_add(self.cpu)
            .saturating_add(self.strain)
    }
}

/// Figures of the pool, frozen for a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Ready nodes.
    pub(crate) ready: u64,
    /// The weights of the ready nodes.
    pub(crate) node_weights: u64,
    /// The mean team load over ready nodes, in thousandths of a default weight.
    pub(crate) mean_load: u64,
    /// The mean connection load over ready nodes, in thousandths of a connection.
    pub(crate) mean_connections: u64,
    /// What one default weight is expected to cost, in thousandths of a millicore.
    pub(crate) cost_microcores: u64,
    /// The connections that one default weight is expected to bring, in thousandths.
    pub(crate) connections_milli: u64,
}

/// The order of the nodes that may be chosen, and what keeps the others out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) order: BTreeSet<Score>,
    pub(crate) gated: BTreeMap<NodeId, Gate>,
    pub(crate) gate_counts: BTreeMap<Gate, u32>,
    /// Nodes whose link is closed: while there are any, time counts more finely.
    pub(crate) unlinked: BTreeSet<NodeId>,
}

impl Index {
    /// Puts a node where it belongs now. O(log nodes).
    pub(crate) fn put(&mut self, node: &mut Node, pool: &Pool, settings: &Settings) {
        self.take(node);
        if node.is_unlinked() {
            self.unlinked.insert(node.id().clone());
        }
        if let Some(gate) = gate(node, settings) {
            self.gated.insert(node.id().clone(), gate);
            *self.gate_counts.entry(gate).or_default() += 1;
            return;
        }
        let score = score(node, pool, settings);
        self.order.insert(score.clone());
        node.key = Some(score);
    }

    /// Takes a node out of the index.
    pub(crate) fn take(&mut self, node: &mut Node) {
        if let Some(key) = node.key.take() {
            self.order.remove(&key);
        }
        self.unlinked.remove(node.id());
        if let Some(gate) = self.gated.remove(node.id())
            && let Some(count) = self.gate_counts.get_mut(&gate)
        {
            *count -= 1;
            if *count == 0 {
                self.gate_counts.remove(&gate);
            }
        }
    }
}

impl Pool {
    /// The figures as they are now.
    pub(crate) fn measure<'a>(nodes: impl Iterator<Item = &'a Node>, settings: &Settings) -> Self {
        let (mut ready, mut node_weights, mut load, mut weights, mut above_idle) = (0, 0, 0, 0, 0);
        let (mut connection_loads, mut connections) = (0, 0);
        for node in nodes.filter(|node| is_ready(node)) {
            ready += 1;
            node_weights += u64::from(node.hello.weight.get());
            load += team_load(node);
            connection_loads += connection_load(node);
            connections += u64::from(node.report.connections);
            weights += node.weight_sum;
            let idle = node.report.cpu_idle.unwrap_or_default().get();
            above_idle += u64::from(node.report.cpu_average.get().saturating_sub(idle));
        }
        let known = weights >= settings.cost_min_weights;
        let of_one = |sum: u64, cap: u64| {
            if known {
                (sum * 1_000 / weights.max(1)).min(cap * 1_000)
            } else {
                0
            }
        };
        Self {
            ready,
            node_weights,
            mean_load: load.checked_div(ready).unwrap_or(0),
            mean_connections: connection_loads.checked_div(ready).unwrap_or(0),
            cost_microcores: of_one(above_idle, settings.cost_cap_millicores),
            connections_milli: of_one(connections, settings.connections_cap),
        }
    }
}

/// Whether a node counts for the means: it is there and wanted, full or not.
pub(crate) fn is_ready(node: &Node) -> bool {
    node.is_heard() && node.intent == Intent::Active
}

/// What keeps a node out whatever else there is.
pub(crate) fn gate(node: &Node, settings: &Settings) -> Option<Gate> {
    match node.seen {
        Seen::Linked {
            silence: Silence::Heard,
            ..
        } => {}
        Seen::Linked {
            silence: Silence::Missed,
            ..
        } => return Some(Gate::Silent),
        _ => return Some(Gate::NotReady),
    }
    match node.intent {
        Intent::Active => {}
        Intent::Cordoned => return Some(Gate::Cordoned),
        Intent::Draining(_) => return Some(Gate::Draining),
    }
    if node.report.wall_skew_ms.unsigned_abs() > settings.wall_skew_ms || node.clock_pace.is_off() {
        return Some(Gate::Clock);
    }
    if node.team_count() >= node.hello.capacity.teams {
        return Some(Gate::FullTeams);
    }
    if planted::is(Bug::FullNodesChosen) {
        return None;
    }
    full(node, settings)
}

/// Whether a node can take no further connection, and what it lacks.
pub(crate) fn full(node: &Node, settings: &Settings) -> Option<Gate> {
    if node.report.connections >= node.hello.capacity.connections {
        return Some(Gate::FullConnections);
    }
    let few = |left| left < settings.descriptor_reserve;
    node.report
        .descriptors_left
        .is_some_and(few)
        .then_some(Gate::Descriptors)
}

/// How many more connections a node can hold, beside those that are on their way to it.
pub(crate) fn room(node: &Node, settings: &Settings) -> u32 {
    let coming = u32::try_from(node.coming.milli().max(0) / 1_000).unwrap_or(u32::MAX);
    free(node, settings).saturating_sub(coming)
}

/// How many more connections a node could hold when it last reported.
pub(crate) fn free(node: &Node, settings: &Settings) -> u32 {
    let capacity = node
        .hello
        .capacity
        .connections
        .saturating_sub(node.report.connections);
    let descriptors = node
        .report
        .descriptors_left
        .map_or(u32::MAX, |left| left.saturating_sub(settings.descriptor_reserve));
    capacity.min(descriptors)
}

/// Weights on the node and on their way, over its own weight, in thousandths.
pub(crate) fn team_load(node: &Node) -> u64 {
    let weights = node.weight_sum + node.reserved_weight;
    per_weight(node, weights.saturating_mul(LOAD_SCALE))
}

/// Connections that the node reported, over its own weight, in thousandths.
pub(crate) fn connection_load(node: &Node) -> u64 {
    per_weight(node, u64::from(node.report.connections) * LOAD_SCALE)
}

/// The moving average of the node's CPU over its cores, in parts per million.
pub(crate) fn cpu_ppm(node: &Node) -> u64 {
    let average = u64::from(node.report.cpu_average.get());
    part(average, 1_000_000, u64::from(node.hello.cores.get()))
}

fn per_weight(node: &Node, load: u64) -> u64 {
    part(
        load,
        u64::from(Weight::NODE.get()),
        u64::from(node.hello.weight.get()),
    )
}

/// `value x of / whole`, whatever a node claims.
fn part(value: u64, of: u64, whole: u64) -> u64 {
    let part = u128::from(value) * u128::from(of) / u128::from(whole.max(1));
    u64::try_from(part).unwrap_or(u64::MAX)
}

/// How busy a node is, by what makes it so.
pub(crate) fn busy(node: &Node, pool: &Pool, settings: &Settings) -> Busy {
    let base = pool.mean_load.max(settings.load_floor * LOAD_SCALE);
    let teams = part(team_load(node), settings.team_share_ppm, base);
    let cores = u64::from(node.hello.cores.get());
    let cpu = part(
        u64::from(node.report.cpu_average.get()),
        settings.cpu_share_ppm,
        cores,
    );
    let connections = by_connections(node, 0, pool, settings);
    // What is only expected may make up half of the score and no more: a wrong guess of what a team
    // brings must not outweigh everything that is known.
    let known = teams.saturating_add(cpu).saturating_add(connections);
    let coming = node.coming.milli();
    let more = by_connections(node, coming, pool, settings).saturating_sub(connections);
    let less = connections.saturating_sub(by_connections(node, coming, pool, settings));
    let more = more.min(known);
    let expected = node.pending.milli() / 1_000;
    let of_cores = part(expected.unsigned_abs(), settings.cpu_share_ppm, cores);
    let cpu = if expected < 0 {
        cpu.saturating_sub(of_cores)
    } else {
        cpu.saturating_add(of_cores.min(known - more))
    };
    Busy {
        teams,
        connections: connections.saturating_add(more).saturating_sub(less),
        cpu,
        strain: strain::busy_ppm(node, settings),
    }
}

/// What a node's connections make, with so many more (or, negative, fewer), in thousandths.
fn by_connections(node: &Node, more_milli: i64, pool: &Pool, settings: &Settings) -> u64 {
    if planted::is(Bug::ConnectionsNotCounted) {
        return 0;
    }
    let share = settings.connection_share_ppm;
    let reported = u64::from(node.report.connections) * LOAD_SCALE;
    let milli = reported.saturating_add_signed(more_milli);
    let base = pool.mean_connections.max(settings.connection_floor * LOAD_SCALE);
    let beside_others = part(per_weight(node, milli), share, base);
    let all = reported + u64::from(free(node, settings)) * LOAD_SCALE;
    let room = all.saturating_sub(milli);
    let crowded = part(milli, share, room).min(CROWDED_MAX * share);
    beside_others.saturating_add(crowded)
}

/// A node's place in the order.
pub(crate) fn score(node: &Node, pool: &Pool, settings: &Settings) -> Score {
    Score {
        distrusted: node.trust.rank(),
        busy: busy(node, pool, settings).sum(),
        teams: node.team_count(),
        last_chosen: node.last_chosen,
        node: node.id().clone(),
    }
}

/// A node's score for people.
pub(crate) fn view(node: &Node, pool: &Pool, settings: &Settings) -> ScoreView {
    let busy = busy(node, pool, settings);
    let whole = |milli: i64| milli.max(0).unsigned_abs() / 1_000;
    ScoreView {
        node: node.id().clone(),
        busy_ppm: busy.sum(),
        teams_ppm: busy.teams,
        connections_ppm: busy.connections,
        cpu_ppm: busy.cpu,
        strain_ppm: busy.strain,
        teams: node.team_count(),
        connections: node.report.connections,
        connections_pending: u32::try_from(whole(node.coming.milli())).unwrap_or(u32::MAX),
        cpu_average: node.report.cpu_average,
        cpu_pending: Millicores::clamped(whole(node.pending.milli())),
        last_resort: node.trust.gate().or(strain::strained_by(node, settings)),
    }
}

/// What remains of a fading quantity after `elapsed_ms`, in parts per million.
pub(crate) fn keep_ppm(elapsed_ms: u64, half_life_ms: u64) -> i64 {
    // Rounding to parts per million hides the last bits, in which math libraries differ.
    let keep = (-(elapsed_ms as f64) / half_life_ms.max(1) as f64).exp2();
    (keep * 1e6).round() as i64
}
