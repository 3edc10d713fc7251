//! Teams: where they are, and what is asked for them.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use super::decision::DecisionView;
use crate::id::{ConnectionId, Label, NodeId, TeamId};
use crate::quantity::{Epoch, Weight};

/// What `GET /connect/{team}` answers to `Accept: application/json`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ConnectView {
    /// The team.
    pub team: TeamId,
    /// Its node.
    pub node: NodeId,
    /// Where to connect, ticket included.
    pub url: String,
    /// Seconds that the ticket is good for.
    pub expires_in: u64,
    /// The epoch of the assignment.
    pub epoch: Epoch,
    /// What a connection that this URL opens is called: to be shown as `from` by whoever had it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub connection: Option<ConnectionId>,
}

/// The body of `PUT /v1/teams/{team}`. Every field may be left out.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeamPut {
    /// What the team weighs, 1 to 10,000; 1 by default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight: Option<Weight>,
    /// Only nodes of this region.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Label>,
    /// Only nodes with these labels; at most 16.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<Label, Label>,
    /// A wish, or an order, for one node.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
}

/// The body of `PATCH /v1/teams/{team}` (RFC 7396): what is left out stays, `null` goes back to its default.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TeamPatch {
    /// What the team weighs.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub weight: Option<Option<Weight>>,
    /// Only nodes of this region.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub region: Option<Option<Label>>,
    /// Each key by itself: another value, or `null` to take it out.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub labels: Option<Option<BTreeMap<Label, Option<Label>>>>,
    /// A pin as a whole.
    #[serde(default, deserialize_with = "said", skip_serializing_if = "Option::is_none")]
    pub pin: Option<Option<Pin>>,
}

/// A field that was said, be it as `null`.
fn said<'de, T: Deserialize<'de>, D: serde::Deserializer<'de>>(from: D) -> Result<Option<T>, D::Error> {
    T::deserialize(from).map(Some)
}

/// A wish, or an order, for one node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Pin {
    /// The node.
    pub node: NodeId,
    /// For how long, in seconds from now; at most 30 days.
    pub seconds: u64,
    /// Soft: elsewhere when the node cannot. Hard: there or nowhere.
    #[serde(default)]
    pub strength: PinStrength,
}

/// How strictly a pin is taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum PinStrength {
    /// Elsewhere when the node cannot.
    #[default]
    Soft,
    /// There or nowhere.
    Hard,
}

/// One team.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeamView {
    /// The team.
    pub team: TeamId,
    /// Its owner; `None` while no node may take it.
    pub node: Option<NodeId>,
    /// Where its connections go, without a ticket.
    pub url: Option<String>,
    /// The epoch of its assignment; 0 before the first.
    pub epoch: Epoch,
    /// Whether it stays when its last connection goes.
    pub kind: TeamKind,
    /// What it weighs.
    pub weight: Weight,
    /// The node that its last connections are leaving, while it moves.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub moving_from: Option<NodeId>,
    /// The region it is held to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub region: Option<Label>,
    /// The labels it is held to.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<Label, Label>,
    /// Its pin, with the seconds left.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pin: Option<Pin>,
}

/// Whether a team stays when its last connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TeamKind {
    /// Made by a client's first connect; forgotten 10 minutes after its last connection.
    Auto,
    /// Made by `PUT`; stays until `DELETE`.
    Put,
}

/// One page of teams.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TeamsView {
    /// In order of their ids.
    pub teams: Vec<TeamView>,
    /// How many there are in all.
    pub total: u64,
    /// What to pass as `after` for the next page.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub next: Option<TeamId>,
}

/// Why a team is where it is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct WhyView {
    /// The team.
    pub team: TeamId,
    /// Its owner now.
    pub node: Option<NodeId>,
    /// The epoch of its assignment.
    pub epoch: Epoch,
    /// Its decisions, newest first; at most 8. Those before a restart of the broker are gone.
    pub decisions: Vec<DecisionView>,
}
