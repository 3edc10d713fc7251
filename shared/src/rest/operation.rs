//! Operations: what moves teams, and what came of it.

use serde::{Deserialize, Serialize};

use crate::id::{NodeId, OperationId, TeamId};

/// The body of `POST /v1/nodes/{node}/drain`. Every field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct DrainPost {
    /// Connections moved a second, 1 to 10,000; by default 200 for each other ready node, at most half of that sum.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_s: Option<u32>,
    /// When it must be done, in seconds, 1 to 86,400; the rate rises if it must.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_s: Option<u64>,
    /// Go on although the other nodes cannot hold it, or a team is pinned here; of a drain that is going on:
    /// although nobody arrives elsewhere.
    #[serde(default)]
    pub force: bool,
}

/// The body of `POST /v1/nodes/{node}/shed`: one of the two.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ShedPost {
    /// How many teams to give away.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub teams: Option<u32>,
    /// Which share of its teams to give away, 1 to 100.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<u32>,
    /// Connections moved a second, as for a drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_per_s: Option<u32>,
}

/// A drain, a shed or a failover, with its progress and at last its report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationView {
    /// Its id.
    pub operation: OperationId,
    /// What it does.
    pub kind: OperationKind,
    /// The node that teams leave.
    pub node: NodeId,
    /// How far it is.
    pub state: OperationState,
    /// What it waits for or why it ended, in words.
    pub detail: String,
    /// Whether nothing more leaves just now because what left does not arrive elsewhere: an operator decides.
    #[serde(default)]
    pub waits: bool,
    /// Teams it set out to move, and those that stay.
    pub teams: u32,
    /// Teams that have their new owner.
    pub teams_moved: u32,
    /// Teams still to be given a new owner.
    #[serde(alias = "teams_waiting")]
    pub teams_to_go: u32,
    /// Teams with a new owner whose connections are still leaving.
    pub teams_leaving: u32,
    /// Teams that stay, because they are pinned hard to the node.
    #[serde(default)]
    pub teams_kept: u32,
    /// Some of them; at most 10.
    #[serde(default)]
    pub teams_kept_named: Vec<TeamId>,
    /// Connections of the teams it set out to move, as far as their node has counted them.
    pub connections: u32,
    /// Whether the node ever said how many it had.
    #[serde(default = "yes")]
    pub connections_known: bool,
    /// Connections that are gone from the node.
    #[serde(default)]
    pub connections_moved: u32,
    /// The same, by its earlier name, which reads as what remains; goes with 1.0.
    #[serde(default)]
    pub connections_left: u32,
    /// Connections that are still to go.
    #[serde(default)]
    pub connections_to_go: u32,
    /// Connections of those teams that came in on their new nodes, at most as many as there were.
    #[serde(default)]
    pub connections_back: u32,
    /// The same, by its earlier name; goes with 1.0.
    #[serde(default)]
    pub connections_arrived: u32,
    /// Connections that are gone and were not seen again so far.
    #[serde(default)]
    pub connections_not_back: u32,
    /// Of those that are back, the ones known to be the same client as one that went.
    pub connections_matched: u32,
    /// Time without a connection of the matched ones, in milliseconds: half of them had at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_p50_ms: Option<u64>,
    /// 99 of 100 of them had at most this.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_p99_ms: Option<u64>,
    /// The longest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_max_ms: Option<u64>,
    /// How far these may be off, because a node did not say how old its reports were.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gap_error_ms: Option<u64>,
    /// Frames that members of teams on their way did not get, one for each frame and member, as far as nodes
    /// counted; left out when none did.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deliveries_missed: Option<u64>,
    /// Connections moved a second.
    pub rate_per_s: u32,
    /// How long it was thought to take.
    pub estimate_ms: u64,
    /// How long it has taken so far, or took.
    pub elapsed_ms: u64,
    /// When it began, in milliseconds since the Unix epoch.
    #[serde(default)]
    pub began_unix_ms: u64,
    /// When its work was done.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ended_unix_ms: Option<u64>,
}

const fn yes() -> bool {
    true
}

/// What an operation does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationKind {
    /// Every team leaves a node.
    Drain,
    /// Some teams leave a node.
    Shed,
    /// A node died.
    Failover,
    /// Teams leave a node that is full of connections, because their clients ask, or to make room.
    Relief,
}

impl OperationKind {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Drain, Self::Shed, Self::Failover, Self::Relief];

    /// The word used in JSON and as a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Shed => "shed",
            Self::Failover => "failover",
            Self::Relief => "relief",
        }
    }
}

/// How far an operation is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum OperationState {
    /// Going on.
    Running,
    /// Ended, nothing left to do.
    Done,
    /// Ended by an operator.
    Cancelled,
}

/// The newest operations.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationsView {
    /// Newest first; at most 100.
    pub operations: Vec<OperationView>,
}
