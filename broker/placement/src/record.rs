//! What the store keeps of the core's state, and what the core starts from.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use usher_shared::id::{ClusterId, Incarnation, Label, NodeId, OperationId, TeamId};
use usher_shared::identity::Marks;
use usher_shared::link::Hello;
use usher_shared::quantity::{Epoch, Term, Weight};
use usher_shared::rest::{OperationView, PinStrength, TeamKind};

/// One change of the stored state. Writing the same record twice changes nothing.
// Records live until their batch is written; a box for the larger ones would cost an allocation each.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum Record {
    /// Epochs below this one may have been given out; the first to use after a restart is this one.
    Epochs {
        /// The bound.
        reserved: Epoch,
    },
    /// The term that this run goes on under, after a node showed a higher one.
    Term(Term),
    /// A team; `None` removes it.
    Team(TeamId, Option<TeamRecord>),
    /// A node; `None` removes it.
    Node(NodeId, Option<NodeRecord>),
    /// An operation; `None` removes it.
    Operation(OperationId, Option<OperationRecord>),
}

/// A team as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeamRecord {
    /// Its owner: node and the incarnation that was meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub owner: Option<(NodeId, Incarnation)>,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// Whether it stays without connections.
    pub kind: TeamKind,
    /// What it weighs.
    pub weight: Weight,
    /// The region it is held to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Label>,
    /// The labels it is held to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<Label, Label>,
    /// Its pin.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<PinRecord>,
    /// The operation that gave it this owner: a broker that restarts counts on for it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moved_by: Option<OperationId>,
}

/// A pin as it is stored.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PinRecord {
    /// The node.
    pub node: NodeId,
    /// When it ends, in milliseconds of wall clock: it must outlive a restart.
    pub until_wall_ms: u64,
    /// How strictly it is taken.
    pub strength: PinStrength,
}

/// A node as it is stored: enough to answer for it before it has come back.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct NodeRecord {
    /// What it said last.
    pub hello: Hello,
    /// What the operator wants of it.
    pub intent: IntentRecord,
    /// The longest lease it was ever granted and may still hold.
    pub lease_ms: u64,
    /// What it is known again by.
    #[serde(default)]
    pub marks: Marks,
}

/// What the operator wants of a node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum IntentRecord {
    /// Takes teams.
    Active,
    /// Takes no new teams.
    Cordoned,
    /// Is being emptied, or was.
    Draining,
}

/// An operation as it is stored: what it was asked for, and once it has ended, its report.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct OperationRecord {
    /// Its state when it was written. The core fills in progress from the teams.
    pub view: OperationView,
    /// When it began, in milliseconds of wall clock.
    pub began_wall_ms: u64,
    /// When it must be done, in milliseconds of wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub deadline_wall_ms: Option<u64>,
    /// When its node died, of a failover, in milliseconds of wall clock.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub died_wall_ms: Option<u64>,
    /// The rate that was asked for, in connections a second.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rate_asked: Option<u32>,
    /// The gaps seen so far, in milliseconds, and how often; a few hundred at most.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub gaps: Vec<(u64, u32)>,
    /// The teams that are still to move: of a shed those that were picked, of a failover those without a node;
    /// a drain takes every team of its node. At most 100,000.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub chosen: Vec<TeamId>,
}

/// What the store held when the broker started.
#[derive(Clone, Debug, PartialEq)]
pub struct Snapshot {
    /// The cluster.
    pub cluster: ClusterId,
    /// The term of this run, already stored.
    pub term: Term,
    /// See [`Record::Epochs`].
    pub epochs_reserved: Epoch,
    /// Every team.
    pub teams: Vec<(TeamId, TeamRecord)>,
    /// Every node.
    pub nodes: Vec<(NodeId, NodeRecord)>,
    /// Every operation.
    pub operations: Vec<(OperationId, OperationRecord)>,
}

impl Snapshot {
    /// The state of a cluster that has just been made.
    #[must_use]
    pub fn empty(cluster: ClusterId, term: Term) -> Self {
        Self {
            cluster,
            term,
            epochs_reserved: Epoch::default().next(),
            teams: Vec::new(),
            nodes: Vec::new(),
            operations: Vec::new(),
        }
    }
}
