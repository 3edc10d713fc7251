//! What the caller is to do: the output of the core.

use usher_shared::id::{Incarnation, NodeId, OperationId, TeamId};
use usher_shared::link::{Refused, RefusedCode, ToNode};
use usher_shared::quantity::Epoch;
use usher_shared::rest::{Cause, Gate, OperationKind, OperationView, ProbeState};
use usher_shared::template::NodeUrl;

use crate::event::{LinkId, RequestId};
use crate::pace::Pace;
use crate::record::Record;

/// One thing to do. The caller carries commands out in their order.
///
/// A [`Command::Write`] must be durable before any later command that
/// [waits for the store](Command::waits_for_store) is carried out: nothing is granted that a crash could forget.
// Commands live for one poll; a box for the larger records would cost an allocation each.
#[allow(clippy::large_enum_variant)]
#[derive(Clone, Debug, PartialEq)]
pub enum Command {
    /// Put this into the store.
    Write(Record),
    /// Send this to a node; if the link is gone, drop it, since every command is sent again until answered.
    Send {
        /// The link.
        link: LinkId,
        /// The message.
        message: Box<ToNode>,
    },
    /// Send this as the last message of a link, then close it.
    Close {
        /// The link.
        link: LinkId,
        /// Why.
        refused: Refused,
    },
    /// Publish where a team is; `None`: nowhere, ask the core.
    Route {
        /// The team.
        team: TeamId,
        /// Where.
        route: Option<Route>,
    },
    /// Publish how a node is reached; `None`: forget it.
    Node {
        /// The node.
        node: NodeId,
        /// How.
        entry: Option<NodeEntry>,
    },
    /// Answer a request.
    Answer {
        /// The request.
        request: RequestId,
        /// What came of it.
        answer: Result<Answer, Refusal>,
    },
    /// Try to open a TCP connection for 300 ms and say how it went with [`crate::Event::Probed`].
    Probe {
        /// The node.
        node: NodeId,
        /// Its incarnation, to be handed back.
        incarnation: Incarnation,
        /// `host:port`.
        address: String,
    },
    /// See whether anything answers at the URL that clients are given, and say so with
    /// [`crate::Event::UrlProbed`].
    ProbeUrl {
        /// The node.
        node: NodeId,
        /// Its incarnation, to be handed back.
        incarnation: Incarnation,
        /// Where clients go.
        url: NodeUrl,
    },
    /// Ask at this address which process is there, and say so with [`crate::Event::WhoAnswered`].
    AskWho {
        /// The node whose address it should be.
        node: NodeId,
        /// Its incarnation, to be handed back.
        incarnation: Incarnation,
        /// `host:port`.
        address: String,
    },
    /// Tell whoever watches: logs and metrics. Nothing depends on it.
    Notice(Notice),
}

impl Command {
    /// Whether this must wait until every earlier write is durable.
    ///
    /// A heartbeat's acknowledgement need not: a slow disk must not cost healthy nodes their lease.
    /// It must still not overtake an earlier command on its own link, unless the store is stalled:
    /// then it may pass what only gives the node more (never a welcome, a revoke or a close).
    #[must_use]
    pub fn waits_for_store(&self) -> bool {
        match self {
            Self::Send { message, .. } => !matches!(**message, ToNode::HeartbeatAck { .. }),
            Self::Probe { .. } | Self::ProbeUrl { .. } | Self::AskWho { .. } | Self::Notice(_) => false,
            _ => true,
        }
    }
}

/// Where a team is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Route {
    /// Its owner.
    pub node: NodeId,
    /// Under which epoch.
    pub epoch: Epoch,
}

/// How a node is reached.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NodeEntry {
    /// The process that tickets are for.
    pub incarnation: Incarnation,
    /// Where clients go.
    pub url: NodeUrl,
    /// Whether a client may be sent there from the route table alone. Not while the node is being
    /// emptied, is silent or is dead: then each connect asks the core.
    pub direct: bool,
}

/// What came of a request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Answer {
    /// The team has this node.
    Assigned {
        /// The team.
        team: TeamId,
        /// Where it is.
        route: Route,
        /// Whether the request made the team.
        created: bool,
    },
    /// The team is gone.
    Forgotten,
    /// It is so now (cordon, uncordon, release), or was already.
    Done,
    /// An operation began, ended, or was going on already.
    Operation(OperationId),
}

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

/// Something worth a log line or a count.
#[derive(Clone, Debug, PartialEq)]
pub enum Notice {
    /// A node may take teams from now on.
    NodeReady {
        /// The node.
        node: NodeId,
        /// Teams it brought with it.
        teams: u32,
        /// Where clients are sent to.
        url: String,
        /// Its software's version, as it says.
        version: String,
    },
    /// A node was not let in.
    NodeRefused {
        /// The name it claimed.
        node: NodeId,
        /// Why, in a word.
        code: RefusedCode,
        /// Why, in a sentence.
        detail: String,
    },
    /// It is known who answers at a node's probe address, or it is known that nobody says so.
    ProbeAnswered {
        /// The node.
        node: NodeId,
        /// The address.
        address: String,
        /// Who does.
        state: ProbeState,
    },
    /// Somebody reported that a node's process had ended, and is not believed.
    ExitDisbelieved {
        /// The node.
        node: NodeId,
        /// Why not.
        detail: &'static str,
    },
    /// A node's link closed or its heartbeats stopped.
    NodeSilent {
        /// The node.
        node: NodeId,
    },
    /// A node counts as dead, and its teams get new owners.
    NodeDead {
        /// The node.
        node: NodeId,
        /// How it is known.
        evidence: &'static str,
        /// Its teams.
        teams: u32,
    },
    /// A team got a new owner.
    Assigned {
        /// The team.
        team: TeamId,
        /// The owner.
        node: NodeId,
        /// The epoch.
        epoch: Epoch,
        /// What for.
        cause: Cause,
        /// Set when only a last resort let the node in.
        last_resort: Option<Gate>,
    },
    /// A team needs an owner and no node may take it.
    Unplaced {
        /// The team.
        team: TeamId,
        /// What for.
        cause: Cause,
    },
    /// One team's move ended.
    Moved {
        /// What for.
        cause: Cause,
        /// `arrived`, `empty` (it had no connections), `timed_out`, `undone` or `failed`.
        outcome: &'static str,
    },
    /// The same client was seen again after a move.
    Gap {
        /// How long it was without a connection.
        millis: u64,
    },
    /// An operation began.
    OperationBegan {
        /// Which.
        operation: OperationId,
        /// What it does.
        kind: OperationKind,
        /// Where.
        node: NodeId,
    },
    /// What leaves by an operation does not arrive elsewhere: it waits for an operator.
    OperationWaits {
        /// Which.
        operation: OperationId,
        /// Where.
        node: NodeId,
        /// Connections that have left.
        gone: u32,
        /// Connections that have arrived.
        back: u32,
    },
    /// Members of teams on their way did not get frames, because they were elsewhere or away.
    Missed {
        /// One for each frame and member.
        deliveries: u64,
    },
    /// A node joined that an operator keeps from taking new teams.
    KeptAway {
        /// The node.
        node: NodeId,
        /// `cordoned` or `drained`.
        wish: &'static str,
    },
    /// An operation ended.
    OperationEnded {
        /// Which.
        operation: OperationId,
        /// What it did.
        kind: OperationKind,
        /// How it ended, in words.
        detail: String,
        /// Its figures.
        report: Box<OperationView>,
    },
    /// Too many nodes fell silent at once, or that is over.
    SelfPreservation {
        /// Whether it begins, or how it ended.
        change: Preservation,
        /// Silent nodes that hold teams.
        silent: u32,
        /// Nodes that hold teams.
        nodes: u32,
    },
    /// The grace after a start is over.
    GraceOver {
        /// Nodes that have reported.
        reported: u32,
        /// Nodes that were known.
        known: u32,
    },
    /// The store is older than what a node knows: it was restored from a copy, or lost writes.
    StoreRegressed {
        /// What showed it.
        detail: String,
    },
    /// A node's clock began to run at another pace than this broker's, or runs like it again. Leases
    /// count on a bounded difference.
    ClockPace {
        /// The node.
        node: NodeId,
        /// How it runs.
        pace: Pace,
    },
    /// A node is kept back although it is heard well, or is trusted again.
    Trust {
        /// The node.
        node: NodeId,
        /// What changed.
        change: TrustChange,
    },
    /// Nothing answers at the URL that a node announces, or something does again.
    UrlProbed {
        /// The node.
        node: NodeId,
        /// Where clients go.
        url: String,
        /// What went wrong, in words.
        failed: Option<String>,
    },
    /// Two live nodes announce one URL.
    UrlShared {
        /// The node that came later.
        node: NodeId,
        /// The other.
        other: NodeId,
        /// What both announce.
        url: String,
    },
    /// A node can take no further connection, or has room again.
    Full {
        /// The node.
        node: NodeId,
        /// What it lacks; `None`: it has room again.
        by: Option<Gate>,
        /// What it holds.
        connections: u32,
    },
    /// A node got into strain, or out of it.
    Strained {
        /// The node.
        node: NodeId,
        /// By what; `None`: no more.
        by: Option<Gate>,
    },
    /// A node said something it should not have.
    BadMessage {
        /// The node.
        node: NodeId,
        /// What.
        detail: String,
    },
}

/// How self-preservation began or ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Preservation {
    /// It begins, and ends by itself after so long.
    Begun {
        /// Milliseconds.
        for_ms: u64,
    },
    /// Enough nodes are heard again.
    Recovered,
    /// An operator ended it.
    Released,
    /// Its bound in time is over: silent nodes count as dead.
    Expired,
}

impl Preservation {
    /// The word used as a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Begun { .. } => "begun",
            Self::Recovered => "recovered",
            Self::Released => "released",
            Self::Expired => "expired",
        }
    }
}

/// How a node that is heard well came to be kept back, or was trusted again.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum TrustChange {
    /// Nobody gets to it.
    Distrusted {
        /// How that is known, in words.
        why: String,
        /// For how long it is left alone.
        for_ms: u64,
    },
    /// A few teams try it again.
    OnTrial,
    /// Clients arrive there again.
    Trusted,
    /// It died again and again.
    Crashing {
        /// How often, within ten minutes of each other.
        deaths: u32,
        /// For how long it is kept back.
        for_ms: u64,
    },
}

impl TrustChange {
    /// The word used as a metric's label.
    #[must_use]
    pub const fn as_str(&self) -> &'static str {
        match self {
            Self::Distrusted { .. } => "unreachable",
            Self::OnTrial => "on_trial",
            Self::Trusted => "trusted",
            Self::Crashing { .. } => "crashing",
        }
    }
}
