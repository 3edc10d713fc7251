//! A decision, and what kept the other nodes out.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::id::NodeId;
use crate::quantity::{Epoch, Millicores};

/// One decision.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DecisionView {
    /// The epoch it was made under.
    pub epoch: Epoch,
    /// What it was made for.
    pub cause: Cause,
    /// Where it put the team; `None` when no node could take it.
    pub node: Option<NodeId>,
    /// Where the team was before.
    pub from: Option<NodeId>,
    /// Milliseconds since then.
    pub ago_ms: u64,
    /// The three best, best first.
    pub best: Vec<ScoreView>,
    /// How many nodes each gate kept out.
    pub gated: BTreeMap<Gate, u32>,
    /// Nodes kept out, with their gate; at most 8.
    pub gated_nodes: BTreeMap<NodeId, Gate>,
    /// How many nodes there were.
    pub nodes: u32,
}

/// What a decision was made for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Cause {
    /// A client's first connect.
    Connect,
    /// `PUT /v1/teams/{team}`.
    Put,
    /// Its node died.
    Failover,
    /// Its node is being emptied.
    Drain,
    /// Its node gives some away.
    Shed,
    /// Its node went silent, or nobody gets there, and its client came back to the broker.
    Knock,
    /// Its node was full of connections and a client asked for it, or for a team beside it.
    Full,
    /// A node reported it and the store knew nothing of it.
    Adopted,
}

impl Cause {
    /// All of them.
    pub const ALL: [Self; 8] = [
        Self::Connect,
        Self::Put,
        Self::Failover,
        Self::Drain,
        Self::Shed,
        Self::Knock,
        Self::Full,
        Self::Adopted,
    ];

    /// The word used in JSON and as a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Connect => "connect",
            Self::Put => "put",
            Self::Failover => "failover",
            Self::Drain => "drain",
            Self::Shed => "shed",
            Self::Knock => "knock",
            Self::Full => "full",
            Self::Adopted => "adopted",
        }
    }
}

/// What keeps a node from being chosen.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Gate {
    /// Its inventory is not in yet, or its link is down.
    NotReady,
    /// An operator said: no new teams.
    Cordoned,
    /// It is being emptied.
    Draining,
    /// No heartbeat for two intervals.
    Silent,
    /// It holds as many teams as it may.
    FullTeams,
    /// It holds as many connections as it may.
    FullConnections,
    /// It has hardly a file descriptor left.
    Descriptors,
    /// Its wall clock is off by more than 5 s, so its tickets would not fit.
    Clock,
    /// It is in another region.
    Region,
    /// It lacks a label that the team asks for.
    Labels,
    /// It is the node that the team must leave.
    Leaving,
    /// It lacks room for the connections that the team has. Chosen all the same when nothing else is left,
    /// unless the team leaves a full node.
    Room,
    /// It joined or was let in again lately and has had twice what the others got. Chosen all the same
    /// when nothing else is left.
    Young,
    /// Its CPU is above the ceiling: it counts as busier than it is, the more the longer.
    CpuCeiling,
    /// It says that its machine or container is short of CPU or memory: as above.
    Pressure,
    /// Clients were sent there and nobody got through. Chosen all the same when nothing else is left.
    Unreachable,
    /// It died again and again. Chosen all the same when nothing else is left.
    Crashing,
}

impl Gate {
    /// The word used in JSON and as a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NotReady => "not_ready",
            Self::Cordoned => "cordoned",
            Self::Draining => "draining",
            Self::Silent => "silent",
            Self::FullTeams => "full_teams",
            Self::FullConnections => "full_connections",
            Self::Descriptors => "descriptors",
            Self::Clock => "clock",
            Self::Region => "region",
            Self::Labels => "labels",
            Self::Leaving => "leaving",
            Self::Room => "room",
            Self::Young => "young",
            Self::CpuCeiling => "cpu_ceiling",
            Self::Pressure => "pressure",
            Self::Unreachable => "unreachable",
            Self::Crashing => "crashing",
        }
    }
}

/// What a node scored. Lower is chosen.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScoreView {
    /// The node.
    pub node: NodeId,
    /// How busy: parts per million, the sum of the four next.
    pub busy_ppm: u64,
    /// The part that its teams make.
    pub teams_ppm: u64,
    /// The part that its connections make, those on their way included.
    #[serde(default)]
    pub connections_ppm: u64,
    /// The part that its CPU makes, what is on its way included.
    pub cpu_ppm: u64,
    /// What is added while it is strained, and for some time after.
    #[serde(default)]
    pub strain_ppm: u64,
    /// Its teams, those on their way included.
    pub teams: u32,
    /// The connections that it reported.
    #[serde(default)]
    pub connections: u32,
    /// Connections of teams that are on their way.
    #[serde(default)]
    pub connections_pending: u32,
    /// The moving average of its CPU.
    pub cpu_average: Millicores,
    /// CPU of teams that are on their way.
    pub cpu_pending: Millicores,
    /// What strains it: then it is chosen only when the others are much busier.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_resort: Option<Gate>,
}
