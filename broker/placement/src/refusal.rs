//! Why a request is not met, with what to do.

use usher_shared::id::{NodeId, TeamId};

/// Why a request was not met. The text says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// No such team.
    #[error("there is no team {0}; make it with PUT /v1/teams/{0}")]
    UnknownTeam(TeamId),
    /// No such node.
    #[error("there is no node {0}; GET /v1/nodes lists them")]
    UnknownNode(NodeId),
    /// No node can take the team just now.
    #[error("no node can take team {team} now ({gated}); start a node, or uncordon one")]
    NoNode {
        /// The team.
        team: TeamId,
        /// What keeps the nodes out, in words.
        gated: String,
        /// When to try again.
        retry_ms: u64,
    },
    /// The team's node can take no further connection.
    #[error("node {node} of team {team} holds as many connections as it may; {what}")]
    NodeFull {
        /// The team.
        team: TeamId,
        /// The node.
        node: NodeId,
        /// What happens meanwhile, or what to do.
        what: &'static str,
        /// When to try again.
        retry_ms: u64,
    },
    /// The team is held to a node that cannot take it.
    #[error(
        "team {team} is pinned hard to node {node}, which cannot take it; change the pin, or bring the node back"
    )]
    Pinned {
        /// The team.
        team: TeamId,
        /// The node.
        node: NodeId,
        /// When to try again.
        retry_ms: u64,
    },
    /// As many teams as there may be.
    #[error("there are {max} teams already, as many as max_teams allows; forget some, or raise it")]
    TooManyTeams {
        /// The bound.
        max: usize,
    },
    /// The other nodes cannot hold what would move.
    #[error("the other nodes have room for {room} of {needed} {what}; add a node, or send force")]
    WouldNotFit {
        /// Teams or connections.
        what: &'static str,
        /// What would move.
        needed: u64,
        /// What there is room for.
        room: u64,
    },
    /// Teams are pinned hard to a node that is to be emptied.
    #[error(
        "{count} teams are pinned hard to node {node}, {first} among them; unpin them, or send force to leave them there"
    )]
    PinnedHere {
        /// The node.
        node: NodeId,
        /// How many.
        count: usize,
        /// One of them.
        first: TeamId,
    },
    /// The node is being emptied already, or is not there to be shed from.
    #[error("node {node} is {state}; {remedy}")]
    WrongState {
        /// The node.
        node: NodeId,
        /// What it is.
        state: &'static str,
        /// What to do.
        remedy: &'static str,
    },
    /// A field outside its bounds.
    #[error("{field} {bounds}")]
    OutOfRange {
        /// The field.
        field: &'static str,
        /// What it must be.
        bounds: &'static str,
    },
}

impl Refusal {
    /// Stable, for programs and for the metric's label.
    #[must_use]
    pub const fn code(&self) -> &'static str {
        match self {
            Self::UnknownTeam(_) => "unknown_team",
            Self::UnknownNode(_) => "unknown_node",
            Self::NoNode { .. } => "no_node",
            Self::NodeFull { .. } => "node_full",
            Self::Pinned { .. } => "pinned",
            Self::TooManyTeams { .. } => "too_many_teams",
            Self::WouldNotFit { .. } => "would_not_fit",
            Self::PinnedHere { .. } => "pinned_here",
            Self::WrongState { .. } => "wrong_state",
            Self::OutOfRange { .. } => "out_of_range",
        }
    }

    /// When to try again, where that makes sense.
    #[must_use]
    pub const fn retry_ms(&self) -> Option<u64> {
        match self {
            Self::NoNode { retry_ms, .. }
            | Self::NodeFull { retry_ms, .. }
            | Self::Pinned { retry_ms, .. } => Some(*retry_ms),
            _ => None,
        }
    }
}
