//! Nodes: how they are seen.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::decision::{Gate, ScoreView};
use crate::id::{Incarnation, Label, NodeId, OperationId};
use crate::link::{Capacity, Memory};
use crate::quantity::{Millicores, Weight};

/// One node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeView {
    /// The node.
    pub node: NodeId,
    /// Its process.
    pub incarnation: Incarnation,
    /// What the broker sees of it, folded with what the operator asked.
    pub state: NodeState,
    /// Its software.
    pub version: String,
    /// Where clients reach it, `{team}` left open.
    pub url: String,
    /// Where it runs.
    pub region: Option<Label>,
    /// What it shares its fate with.
    pub zone: Option<Label>,
    /// Its labels.
    pub labels: BTreeMap<Label, Label>,
    /// What it can carry beside others.
    pub weight: Weight,
    /// The CPU it may use.
    pub cores: Millicores,
    /// What it will hold at most.
    pub capacity: Capacity,
    /// Teams it owns.
    pub teams: u32,
    /// Connections it reported.
    pub connections: u32,
    /// CPU over its last sample.
    pub cpu_now: Millicores,
    /// The moving average of its CPU.
    pub cpu_average: Millicores,
    /// Resident memory it reported.
    pub memory_bytes: u64,
    /// The memory of its container, or of its machine: whichever is nearer to its limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// What it scores now.
    pub score: ScoreView,
    /// What keeps new teams away.
    pub gates: Vec<Gate>,
    /// Milliseconds since its last heartbeat.
    pub heartbeat_age_ms: u64,
    /// The operation that empties it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationId>,
    /// Tickets given for this process since the broker met it.
    #[serde(default)]
    pub sent: u64,
    /// Tickets shown at its door since it started, as it counts them; `None` for a node that does not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub arrived: Option<u64>,
    /// Whether anything answered the broker at `url`; `None` before it has looked.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url_answers: Option<bool>,
    /// Another live node that announces the same `url`: they cannot both be right.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub same_url: Option<NodeId>,
    /// Why it is kept back although it is heard.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub distrust: Option<DistrustView>,
    /// Where it is probed when its link closes, and asked by its peers.
    pub probe: String,
    /// Who answered there.
    pub probe_state: ProbeState,
    /// Another process that wanted its name within the last minute, and was refused.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rival: Option<RivalView>,
}

/// Why a node is kept back although it is heard.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DistrustView {
    /// `unreachable` or `crashing`.
    pub gate: Gate,
    /// Milliseconds since that began.
    pub since_ms: u64,
    /// Milliseconds until it is tried again; 0 while a few teams try it.
    pub again_in_ms: u64,
    /// How that is known, in words.
    pub why: String,
}

/// Who answers at a node's probe address.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ProbeState {
    /// It was not asked yet.
    #[default]
    Unknown,
    /// The node itself: a refusal there is a hint of its death.
    Proven,
    /// Nobody who says who he is.
    Silent,
    /// Somebody else.
    Foreign,
}

impl ProbeState {
    /// The word in JSON, in logs and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Unknown => "unknown",
            Self::Proven => "proven",
            Self::Silent => "silent",
            Self::Foreign => "foreign",
        }
    }
}

/// Another process that wants a node's name.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RivalView {
    /// How often it, or several, were refused since the node's process has the name.
    pub refused: u64,
    /// Milliseconds since that was last.
    pub age_ms: u64,
}

/// What the broker sees of a node, folded with what the operator asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum NodeState {
    /// Takes teams.
    Ready,
    /// Said hello; its inventory is not in yet.
    Joining,
    /// Serves what it has, takes no new teams.
    Cordoned,
    /// Is being emptied.
    Draining,
    /// Was emptied, serves nothing, takes nothing.
    Drained,
    /// Not heard for two heartbeats, or its link closed.
    Silent,
    /// Known from before, gone now.
    Dead,
}

impl NodeState {
    /// Every state, for metrics.
    pub const ALL: [Self; 7] = [
        Self::Ready,
        Self::Joining,
        Self::Cordoned,
        Self::Draining,
        Self::Drained,
        Self::Silent,
        Self::Dead,
    ];

    /// The word used in JSON and as a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Ready => "ready",
            Self::Joining => "joining",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Drained => "drained",
            Self::Silent => "silent",
            Self::Dead => "dead",
        }
    }
}

/// All nodes.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodesView {
    /// In order of their names.
    pub nodes: Vec<NodeView>,
}
