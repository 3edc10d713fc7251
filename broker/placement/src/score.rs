//! How busy a node is, and who is least busy.
//!
//! ```text
//! team_load(n) = (weights of the teams on n and on their way to n) / weight(n)
//! busy(n)      = team_share x team_load(n) / max(mean team_load, floor)
//!              + cpu_share x (cpu_average(n) + cpu_pending(n)) / cores(n)
//! ```
//!
//! Integers only, so that the same state gives the same order on every machine. The mean, the cost
//! of a team and the fading of what is pending are frozen for a tick: a placement re-keys one node
//! and leaves the others alone.

use std::collections::{BTreeMap, BTreeSet};
use usher_shared::id::NodeId;
use usher_shared::link::Health;
use usher_shared::quantity::{Millicores, Timestamp, Weight};
use usher_shared::rest::{Gate, ScoreView};

use crate::node::{Intent, Node, Seen, Silence};
use crate::settings::Settings;

/// Team load is kept in thousandths of a default weight on a default node.
const LOAD_SCALE: u64 = 1_000;
const PPM: u64 = 1_000_000;

/// A node's place in the order. The order of the fields is the policy.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Score {
    /// 1 when nobody gets to it, or it dies again and again: whatever else there is comes first.
    pub(crate) distrusted: u8,
    /// 0 for the version first seen last, within the CPU ceiling; 1 for older ones while versions are mixed.
    pub(crate) older_version: u8,
    /// 1 when only a last resort lets it in.
    pub(crate) last_resort: u8,
    /// How busy, in parts per million.
    pub(crate) busy: u64,
    /// Teams, those on their way included.
    pub(crate) teams: u32,
    /// The number of the choice that last took it.
    pub(crate) last_chosen: u64,
    /// Settles what is still even.
    pub(crate) node: NodeId,
}

/// Figures of the pool, frozen for a tick.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pool {
    /// Ready nodes.
    pub(crate) ready: u64,
    /// The mean team load over ready nodes, in thousandths of a default weight.
    pub(crate) mean_load: u64,
    /// What one default weight is expected to cost, in thousandths of a millicore.
    pub(crate) cost_microcores: u64,
    /// The rank of the newest version among linked nodes.
    pub(crate) newest_version: u64,
}

/// The order of the nodes that may be chosen, and what keeps the others out.
#[derive(Clone, Debug, Default)]
pub(crate) struct Index {
    pub(crate) order: BTreeSet<Score>,
    pub(crate) gated: BTreeMap<NodeId, Gate>,
    pub(crate) gate_counts: BTreeMap<Gate, u32>,
}

impl Index {
    /// Puts a node where it belongs now. O(log nodes).
    pub(crate) fn put(&mut self, node: &mut Node, pool: &Pool, settings: &Settings) {
        self.take(node);
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
        let (mut ready, mut load, mut weights, mut above_idle) = (0, 0, 0, 0);
        let mut newest_version = 0;
        for node in nodes.filter(|node| node.is_heard()) {
            newest_version = newest_version.max(node.version_rank);
            if node.intent != Intent::Active {
                continue;
            }
            ready += 1;
            load += team_load(node);
            weights += node.weight_sum;
            let idle = node.report.cpu_idle.unwrap_or_default().get();
            above_idle += u64::from(node.report.cpu_average.get().saturating_sub(idle));
        }
        let cost = if weights >= settings.cost_min_weights {
            (above_idle * 1_000 / weights).min(settings.cost_cap_millicores * 1_000)
        } else {
            0
        };
        Self {
            ready,
            mean_load: load.checked_div(ready).unwrap_or(0),
            cost_microcores: cost,
            newest_version,
        }
    }
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
    if node.report.connections >= node.hello.capacity.connections {
        return Some(Gate::FullConnections);
    }
    if node
        .report
        .descriptors_left
        .is_some_and(|left| left < settings.descriptor_reserve)
    {
        return Some(Gate::Descriptors);
    }
    None
}

/// What makes a node a last resort.
pub(crate) fn last_resort(node: &Node, settings: &Settings) -> Option<Gate> {
    let cores = u64::from(node.hello.cores.get()).max(1);
    if u64::from(node.report.cpu_average.get()) * PPM / cores > settings.cpu_ceiling_ppm {
        return Some(Gate::CpuCeiling);
    }
    (node.report.health == Health::Pressure).then_some(Gate::Pressure)
}

/// Weights on the node and on their way, over its own weight, in thousandths.
pub(crate) fn team_load(node: &Node) -> u64 {
    let weights = node.weight_sum + node.reserved_weight;
    weights * LOAD_SCALE * u64::from(Weight::NODE.get()) / u64::from(node.hello.weight.get())
}

/// The two parts of how busy a node is, in parts per million: its teams, and its CPU with what is on its way.
pub(crate) fn busy(node: &Node, pool: &Pool, settings: &Settings) -> (u64, u64) {
    let base = pool.mean_load.max(settings.load_floor * LOAD_SCALE).max(1);
    let teams = settings.team_share_ppm * team_load(node) / base;
    let cores = i64::from(node.hello.cores.get()).max(1);
    let share = i64::try_from(settings.cpu_share_ppm).unwrap_or(i64::MAX);
    let average = share * i64::from(node.report.cpu_average.get()) / cores;
    let pending = share * (node.pending.microcores() / 1_000) / cores;
    // What is only expected may make up half of the score and no more: a wrong guess of a team's
    // cost must not outweigh everything that is known.
    let known = i64::try_from(teams).unwrap_or(i64::MAX).saturating_add(average);
    let cpu = average.saturating_add(pending.min(known)).max(0);
    (teams, cpu.unsigned_abs())
}

/// A node's place in the order.
pub(crate) fn score(node: &Node, pool: &Pool, settings: &Settings) -> Score {
    let (teams, cpu) = busy(node, pool, settings);
    let last_resort = last_resort(node, settings).is_some();
    Score {
        distrusted: u8::from(node.trust.gate().is_some()),
        older_version: u8::from(last_resort || node.version_rank < pool.newest_version),
        last_resort: u8::from(last_resort),
        busy: teams + cpu,
        teams: node.team_count(),
        last_chosen: node.last_chosen,
        node: node.id().clone(),
    }
}

/// A node's score for people.
pub(crate) fn view(node: &Node, pool: &Pool, settings: &Settings) -> ScoreView {
    let (teams_ppm, cpu_ppm) = busy(node, pool, settings);
    let pending = node.pending.microcores().max(0).unsigned_abs() / 1_000;
    ScoreView {
        node: node.id().clone(),
        busy_ppm: teams_ppm + cpu_ppm,
        teams_ppm,
        cpu_ppm,
        teams: node.team_count(),
        cpu_average: node.report.cpu_average,
        cpu_pending: Millicores::clamped(pending),
        last_resort: node.trust.gate().or(last_resort(node, settings)),
    }
}

/// What remains of a fading quantity after `elapsed_ms`, in parts per million.
pub(crate) fn keep_ppm(elapsed_ms: u64, half_life_ms: u64) -> i64 {
    // Rounding to parts per million hides the last bits, in which math libraries differ.
    let keep = (-(elapsed_ms as f64) / half_life_ms.max(1) as f64).exp2();
    (keep * 1e6).round() as i64
}

/// Whether a young node has had its share: twice what an even spread since it came would have given it.
pub(crate) fn had_its_share(
    node: &Node,
    pool: &Pool,
    pool_placed: u64,
    settings: &Settings,
    now: Timestamp,
) -> bool {
    if now.since(node.ready_since) >= settings.young_ms || node.placed < settings.young_floor {
        return false;
    }
    let since = pool_placed - node.pool_placed_before + 1;
    (node.placed + 1) * pool.ready > 2 * since
}
