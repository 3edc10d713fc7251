//! Bodies of the REST API under `/v1`, as the broker sends them and the command line reads them.

use serde::{Deserialize, Serialize};
use std::borrow::Cow;
use std::collections::BTreeMap;

use crate::id::{BrokerId, ClusterId, ConnectionId, Incarnation, Label, NodeId, OperationId, TeamId};
use crate::link::{Capacity, Memory};
use crate::quantity::{Epoch, Millicores, Term, Weight};

/// A failure, as `application/problem+json` (RFC 9457).
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Problem {
    /// `urn:usher:problem:` and the code.
    #[serde(rename = "type")]
    pub kind: String,
    /// The code in words, the same for every occurrence.
    pub title: String,
    /// The HTTP status.
    pub status: u16,
    /// Stable, for programs: `unknown_team`, `no_node`, ...
    pub code: Cow<'static, str>,
    /// What happened this time, and what to do.
    pub detail: String,
    /// When to try again, in milliseconds, where that makes sense.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub retry_ms: Option<u64>,
}

impl Problem {
    /// A problem from its status, stable code and the sentence that says what to do.
    #[must_use]
    pub fn new(status: u16, code: &'static str, detail: impl Into<String>) -> Self {
        Self {
            kind: format!("urn:usher:problem:{code}"),
            title: code.replace('_', " "),
            status,
            code: Cow::Borrowed(code),
            detail: detail.into(),
            retry_ms: None,
        }
    }

    /// The same problem with a time to come back.
    #[must_use]
    pub fn retry_after(self, retry_ms: u64) -> Self {
        Self {
            retry_ms: Some(retry_ms),
            ..self
        }
    }
}

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

/// The broker at a glance: `GET /v1/status`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct StatusView {
    /// The cluster.
    pub cluster: ClusterId,
    /// This process.
    pub broker: BrokerId,
    /// Its term.
    pub term: Term,
    /// Its software.
    pub version: String,
    /// Whether it moves teams freely.
    pub state: BrokerState,
    /// Milliseconds since its start.
    pub uptime_ms: u64,
    /// Nodes by state.
    pub nodes: BTreeMap<NodeState, u32>,
    /// Teams in all.
    pub teams: u64,
    /// Of these, the ones that no node may take just now.
    pub teams_unplaced: u64,
    /// Connections that nodes reported.
    pub connections: u64,
    /// The largest of the next: 1,000,000 is even.
    pub imbalance_ppm: u64,
    /// How uneven the ready nodes are.
    #[serde(default)]
    pub imbalance: Imbalance,
    /// Operations that are going on.
    pub operations_running: u32,
    /// Links of nodes refused in the last minute or two, by code.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub links_refused: BTreeMap<String, u64>,
    /// Self-preservation, while it is on.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub self_preservation: Option<SelfPreservationView>,
}

/// Self-preservation: too many nodes fell silent at once, and none counts as dead for silence alone.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SelfPreservationView {
    /// Nodes that hold teams and are silent, or died of it lately.
    pub silent: u32,
    /// Nodes that hold teams.
    pub nodes: u32,
    /// For how many milliseconds it has been on, counted from when somebody was heard who could take teams.
    pub since_ms: u64,
    /// In how many milliseconds it ends by itself, and the silent nodes' teams move.
    pub ends_in_ms: u64,
}

/// The busiest ready node over the mean of the ready ones, for each of what the score counts, in parts per
/// million; 1,000,000 is even. Below a small mean (10 teams, 50 connections, a tenth of the CPU) differences
/// count for less: they say nothing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Imbalance {
    /// Of the weights of teams.
    pub teams_ppm: u64,
    /// Of connections.
    pub connections_ppm: u64,
    /// Of CPU.
    pub cpu_ppm: u64,
}

impl Default for Imbalance {
    fn default() -> Self {
        Self {
            teams_ppm: 1_000_000,
            connections_ppm: 1_000_000,
            cpu_ppm: 1_000_000,
        }
    }
}

impl Imbalance {
    /// The largest of the three.
    #[must_use]
    pub fn most(&self) -> u64 {
        self.teams_ppm.max(self.connections_ppm).max(self.cpu_ppm)
    }
}

/// Whether the broker moves teams freely.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum BrokerState {
    /// As ever.
    Ready,
    /// Lately started: owners change only on proof of death until the nodes have reported.
    Grace,
    /// Too many nodes went silent at once: nothing is re-assigned on silence alone.
    SelfPreservation,
}
