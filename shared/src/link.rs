//! Messages on the node link: a WebSocket that the node opens to the broker's `/v1/node-link`, with
//! JSON in text frames, an object each, named by its `type`.
//!
//! Unknown fields are ignored, so that either side may be newer; an unknown type is counted and
//! dropped. Every list and every frame has a bound, given here.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

use crate::id::{BrokerId, ClusterId, ConnectionId, Incarnation, Label, NodeId, OperationId, TeamId};
use crate::identity::Hidden;
use crate::quantity::{Epoch, Millicores, Term, Weight};
use crate::secret::Key;
use crate::template::NodeUrl;

/// The version of this protocol. A broker refuses a node of another.
pub const PROTOCOL: u32 = 1;
/// The path that a node dials on the broker's node-link listener.
pub const PATH: &str = "/v1/node-link";
/// Where a node asks a peer, at its probe address, whether it hears the broker of a cluster: `GET`
/// with `?cluster=`, answered with [`HearsBroker`].
pub const HEARS_BROKER_PATH: &str = "/v1/hears-broker";
/// Where a node's parent reports its child's death: `POST` of an [`Exited`].
pub const EXITED_PATH: &str = "/v1/node-exited";
/// The largest frame either side accepts, in bytes.
pub const MAX_FRAME_BYTES: usize = 1 << 20;
/// The most entries in any list of a message; more go in further messages.
pub const MAX_LIST: usize = 2_000;
/// The most peers that a node is told of.
pub const MAX_PEERS: usize = 3;
/// The most entries of [`Heartbeat::idle_teams`].
pub const MAX_IDLE: usize = 256;
/// The most entries of [`Heartbeat::hot_teams`].
pub const MAX_HOT: usize = 16;
/// The most entries of [`Heartbeat::large_teams`].
pub const MAX_LARGE: usize = 16;
/// The most labels of a node or a team.
pub const MAX_LABELS: usize = 16;
/// The capability of a node that answers [`Count`], keeps to the [`Pace`] of a drain, and reports every
/// connection that arrives and leaves: only then is a drain watched, and its rate kept inside of a team.
pub const PACED_MOVES: &str = "paced_moves";

/// What a node says to the broker.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToBroker {
    /// The first message on a link: who the node is.
    Hello(Box<Hello>),
    /// What the node holds, in pages, after its hello was welcomed.
    Inventory(Inventory),
    /// How the node is, every [`Welcome::heartbeat_ms`].
    Heartbeat(Box<Heartbeat>),
    /// The node has made room for a team that was assigned as prepared.
    Prepared(TeamEpoch),
    /// Exclusive effects for a team that is being taken away have stopped: the answer to each move
    /// of a [`Drain`], with the move's epoch, also when nothing was held.
    Yielded(TeamEpoch),
    /// No connection of a team that was taken away is left, and no effects: after a [`Drain`] with
    /// the move's epoch, after a [`Revoke`] with its epoch, also when nothing was held.
    Released(TeamEpoch),
    /// Connections of lately moved teams that came in.
    Arrived(Arrivals),
    /// Connections of teams being taken away that went.
    Left(Departures),
    /// How many connections teams have: the answer to a [`Count`], and at the begin of each move.
    Counted(Counted),
    /// Frames that members of a team on its way did not get.
    Missed(Missed),
    /// SIGTERM came: the node asks to be drained and will be gone by then.
    Bye {
        /// How long the node will go on serving, in milliseconds.
        budget_ms: u64,
    },
    /// A type this version does not know: counted, and dropped.
    #[serde(other)]
    Unknown,
}

/// What the broker says to a node.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ToNode {
    /// The answer to a good hello.
    Welcome(Box<Welcome>),
    /// The answer to a heartbeat: the lease runs anew from when that heartbeat was sent.
    HeartbeatAck {
        /// The heartbeat's number.
        seq: u64,
        /// The broker's term.
        term: Term,
    },
    /// The node holds this team from now on.
    Assign(Assign),
    /// Exclusive effects for a team that was assigned as prepared may start.
    Activate(Activate),
    /// What the inventory showed and stays as it was: after a lapse, exclusive effects go on for a team
    /// only once the link's broker has named it, here, in an `assign` or in an `activate`.
    Confirm(Confirm),
    /// The drain command: these teams are owned elsewhere now; let their connections go, each at its slot.
    Drain(Drain),
    /// How many connections has each team? For an operation that is about to begin.
    Count(Count),
    /// How fast the connections of an operation's teams go from now on.
    Pace(Pace),
    /// Drop what is held of a team up to and including this epoch, and send its connections back to the broker.
    Revoke(Revoke),
    /// Other nodes to ask from now on whether they hear the broker.
    Peers(Peers),
    /// The hello was not accepted, or the link is being closed for cause.
    Refused(Refused),
    /// A type this version does not know: counted, and dropped.
    #[serde(other)]
    Unknown,
}

impl ToNode {
    /// The term of the broker that commands this; `None` for what is no command.
    #[must_use]
    pub fn term(&self) -> Option<Term> {
        match self {
            Self::HeartbeatAck { term, .. } => Some(*term),
            Self::Assign(assign) => Some(assign.term),
            Self::Activate(activate) => Some(activate.term),
            Self::Confirm(confirm) => Some(confirm.term),
            Self::Peers(peers) => Some(peers.term),
            Self::Drain(drain) => Some(drain.term),
            Self::Revoke(revoke) => Some(revoke.term),
            Self::Count(count) => Some(count.term),
            Self::Pace(pace) => Some(pace.term),
            Self::Welcome(_) | Self::Refused(_) | Self::Unknown => None,
        }
    }
}

/// Who a node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Hello {
    /// [`PROTOCOL`].
    pub protocol: u32,
    /// The node's name.
    pub node: NodeId,
    /// Drawn at this start.
    pub incarnation: Incarnation,
    /// Drawn at this start too, and known to this process, its parent and the broker alone: an incarnation
    /// is in every ticket. Whoever says hello or reports an exit for this incarnation later must show it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Hidden>,
    /// Names a lock that the process holds for as long as it lives, and of which the kernel of its machine
    /// has one: a later process that shows the same proves that this one is gone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub lock: Option<Hidden>,
    /// The node's software version, at most 64 bytes.
    pub version: String,
    /// Optional parts of the protocol that the node speaks; at most [`MAX_LABELS`].
    #[serde(default)]
    pub capabilities: Vec<Label>,
    /// Where clients reach it.
    pub url: NodeUrl,
    /// `host:port` that accepts TCP while the node lives; the broker tries it when the link closes.
    pub probe: String,
    /// Where it runs, to narrow the choice.
    #[serde(default)]
    pub region: Option<Label>,
    /// What it shares its fate with.
    #[serde(default)]
    pub zone: Option<Label>,
    /// Free labels, to narrow the choice; at most [`MAX_LABELS`].
    #[serde(default)]
    pub labels: BTreeMap<Label, Label>,
    /// What it can carry beside other nodes, 100 by default.
    pub weight: Weight,
    /// The CPU it may use.
    pub cores: Millicores,
    /// What it will hold at most.
    pub capacity: Capacity,
    /// The cluster it has met before, if any.
    #[serde(default)]
    pub cluster: Option<ClusterId>,
    /// The highest term it has seen.
    #[serde(default)]
    pub highest_term: Term,
    /// The broker of that term: another one that claims the same term runs on a copy of the store.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub broker: Option<BrokerId>,
    /// The grant with the highest epoch that it ever got, held still or not: epochs are counted for the
    /// whole cluster, so a broker restored from an old copy learns here how far the counter had come.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub highest_grant: Option<Granted>,
}

/// A grant that a node got.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Granted {
    /// For which team.
    pub team: TeamId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// The broker's signature, see [`crate::grant`].
    pub grant: String,
}

/// What a node will hold at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Capacity {
    /// Teams.
    pub teams: u32,
    /// Connections.
    pub connections: u32,
}

/// One page of what a node holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Inventory {
    /// The entries; at most [`MAX_LIST`].
    pub teams: Vec<Held>,
    /// Whether further pages follow.
    pub more: bool,
}

/// One team that a node holds.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// The team.
    pub team: TeamId,
    /// Under which epoch.
    pub epoch: Epoch,
    /// The broker's signature, see [`crate::grant`].
    pub grant: String,
    /// How far the assignment had come.
    pub state: HoldState,
    /// Its connections on this node.
    pub connections: u32,
}

/// How far an assignment has come on the node that it was given to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum HoldState {
    /// Room is made and clients are served; exclusive effects wait for `activate`.
    Prepared,
    /// The node is the team's owner in full.
    Owned,
}

/// How a node is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Heartbeat {
    /// Counts the heartbeats of this link, from 1.
    pub seq: u64,
    /// The node's CLOCK_BOOTTIME in milliseconds.
    pub boot_ms: u64,
    /// The node's wall clock in milliseconds since the Unix epoch.
    pub wall_ms: u64,
    /// CPU over the last sample.
    pub cpu_now: Millicores,
    /// The moving average of CPU, half-life 15 s.
    pub cpu_average: Millicores,
    /// Resident memory of the process.
    pub memory_bytes: u64,
    /// The memory that it shares with others, where that has a limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory: Option<Memory>,
    /// Open connections.
    pub connections: u32,
    /// Teams held.
    pub teams: u32,
    /// File descriptors.
    pub fds: Descriptors,
    /// What the node thinks of itself.
    pub health: Health,
    /// Teams without a connection for longer than [`Welcome::forget_ms`]; at most [`MAX_IDLE`], the rest later.
    #[serde(default)]
    pub idle_teams: Vec<TeamEpoch>,
    /// The busiest teams; at most [`MAX_HOT`].
    #[serde(default)]
    pub hot_teams: Vec<HotTeam>,
    /// What it saw of its clients; a node that does not say is judged by `connections` alone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub clients: Option<Clients>,
    /// The teams with the most connections here; at most [`MAX_LARGE`].
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub large_teams: Vec<LargeTeam>,
}

/// What a node saw of its clients: whether they get to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Clients {
    /// Genuine tickets that were shown at its door since the process started, whatever came of them.
    pub shown: u64,
    /// Milliseconds since a client was last heard on any connection; absent while none ever was.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub heard_ms: Option<u64>,
    /// How often an idle connection is pinged, in milliseconds.
    pub ping_ms: u64,
}

/// Memory of a container or a machine: of those that bind a node, the one nearest to its limit.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Memory {
    /// In use, without what the kernel can take back at once.
    pub used_bytes: u64,
    /// What there is.
    pub limit_bytes: u64,
}

/// File descriptors of a process.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Descriptors {
    /// Open now.
    pub used: u32,
    /// The soft limit.
    pub limit: u32,
}

/// What a node thinks of itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Health {
    /// Nothing to say.
    #[default]
    Good,
    /// Its machine is busy or out of memory: place nothing here unless nothing else is left.
    Pressure,
}

/// A busy team: a shed takes the busiest first.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct HotTeam {
    /// The team.
    pub team: TeamId,
    /// Its connections here.
    pub connections: u32,
    /// Its frames a second, both directions.
    pub frames_per_s: u32,
}

/// A team with many connections: how much a node must have room for to take it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LargeTeam {
    /// The team.
    pub team: TeamId,
    /// Its connections here.
    pub connections: u32,
}

/// A team under an epoch.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamEpoch {
    /// The team.
    pub team: TeamId,
    /// The epoch.
    pub epoch: Epoch,
}

/// Connections that came in for teams which were assigned with [`TeamSpec::moved`] set.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrivals {
    /// At most [`MAX_LIST`]; collected over about 100 ms.
    pub connections: Vec<Arrival>,
}

/// One connection that came in.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Arrival {
    /// The team.
    pub team: TeamId,
    /// The epoch it came in under.
    pub epoch: Epoch,
    /// The connection.
    pub connection: ConnectionId,
    /// The connection that it replaces, where the client could say so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub from: Option<ConnectionId>,
    /// How long before this message was sent that was, in milliseconds; not known from older nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

/// Connections that went, of teams being taken away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Departures {
    /// At most [`MAX_LIST`]; collected over about 100 ms.
    pub connections: Vec<Departure>,
}

/// One connection that went.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Departure {
    /// The team.
    pub team: TeamId,
    /// The epoch of the move that took it away.
    pub epoch: Epoch,
    /// The connection.
    pub connection: ConnectionId,
    /// Who ended it.
    pub by: EndedBy,
    /// How long before this message was sent that was, in milliseconds; not known from older nodes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub age_ms: Option<u64>,
}

/// How many connections teams have.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counted {
    /// The operation that asked, or that takes the teams away.
    pub operation: OperationId,
    /// All connections of the node.
    pub connections: u32,
    /// The teams that have any; at most [`MAX_LIST`].
    pub teams: Vec<TeamCount>,
    /// Whether further pages follow. A count at the begin of a move says `true`: it answers no [`Count`].
    pub more: bool,
}

/// How many connections a team has.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamCount {
    /// The team.
    pub team: TeamId,
    /// The epoch under which it is held, or under which it goes.
    pub epoch: Epoch,
    /// Its connections here.
    pub connections: u32,
}

/// Frames that members of a team on its way did not get, because they were on another node or away.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Missed {
    /// At most [`MAX_LIST`].
    pub teams: Vec<TeamMissed>,
}

/// The same for one team, since the last such message.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamMissed {
    /// The team.
    pub team: TeamId,
    /// The epoch of its move.
    pub epoch: Epoch,
    /// One for each frame and each member that it did not reach.
    pub deliveries: u64,
}

/// Who ended a connection that was being moved.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum EndedBy {
    /// The client, on its own or because it was told to move.
    Client,
    /// The node, at the connection's slot.
    Slot,
    /// The node, at the operation's deadline.
    Deadline,
}

impl EndedBy {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Client, Self::Slot, Self::Deadline];

    /// The word on the wire and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Client => "client",
            Self::Slot => "slot",
            Self::Deadline => "deadline",
        }
    }
}

/// The answer to a good hello.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Welcome {
    /// The cluster.
    pub cluster: ClusterId,
    /// The broker process.
    pub broker: BrokerId,
    /// Its term.
    pub term: Term,
    /// How long a lease lasts, from when the answered heartbeat was sent.
    pub lease_ms: u64,
    /// How often to send a heartbeat, give or take 10 %.
    pub heartbeat_ms: u64,
    /// After how long without a connection a team is named in [`Heartbeat::idle_teams`].
    pub forget_ms: u64,
    /// The keys that this node's tickets are signed with, newest first; at most 4.
    pub ticket_keys: Vec<TicketKey>,
    /// Where clients reach the broker, without a path: `http://host:port`.
    pub public_url: String,
    /// Other nodes, to ask whether they hear the broker; at most [`MAX_PEERS`].
    pub peers: Vec<Peer>,
}

/// One key for tickets.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct TicketKey {
    /// Its name, in a ticket's header.
    pub kid: String,
    /// Its 32 bytes, in base64url.
    pub key: Key,
}

/// Whom to ask from now on. Sent when it changed, within a minute.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peers {
    /// Other nodes; at most [`MAX_PEERS`].
    pub peers: Vec<Peer>,
    /// The broker's term.
    pub term: Term,
}

/// Another node of the pool.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Peer {
    /// Its name.
    pub node: NodeId,
    /// Its probe address, `host:port`.
    pub probe: String,
}

/// The node holds this team from now on.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Assign {
    /// The team.
    pub team: TeamId,
    /// The epoch of the assignment.
    pub epoch: Epoch,
    /// The broker's signature, see [`crate::grant`].
    pub grant: String,
    /// Whether exclusive effects may start at once.
    pub state: HoldState,
    /// The broker's term.
    pub term: Term,
    /// What the team is like.
    pub spec: TeamSpec,
}

/// What a node needs to know of a team.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TeamSpec {
    /// Whether the team had an owner before: then its arrivals are reported for a minute.
    #[serde(default)]
    pub moved: bool,
}

/// Exclusive effects may start.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Activate {
    /// The team.
    pub team: TeamId,
    /// The epoch it was prepared under.
    pub epoch: Epoch,
    /// How many connections are on their way here, where that is known: what a frame meanwhile does not reach.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub expected: Option<u32>,
    /// The broker's term.
    pub term: Term,
}

/// The node holds these teams in full, as its inventory said. Sent after the inventory and before
/// the first acknowledgement of a link.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Confirm {
    /// The teams; at most [`MAX_LIST`].
    pub teams: Vec<TeamEpoch>,
    /// The broker's term.
    pub term: Term,
}

/// The drain command.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Drain {
    /// The operation it belongs to.
    pub operation: OperationId,
    /// Why, for the client: `drain`, `shed`, `rebalance`.
    pub reason: Label,
    /// The teams; at most [`MAX_LIST`].
    pub moves: Vec<Move>,
    /// Milliseconds from now until what is left is closed, with jitter.
    pub by_ms: u64,
    /// How fast connections go within each of these teams; without it a node has its own way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pace: Option<TeamPace>,
    /// The broker's term.
    pub term: Term,
}

/// How fast the connections of one team go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TeamPace {
    /// Connections a second; 0 holds those that are left.
    pub rate_per_s: u32,
    /// A team of at most so many goes in one slot.
    pub at_once: u32,
    /// Only so many go at first, to show that they arrive; the rest waits for a [`Pace`]. 0: no such limit.
    #[serde(default)]
    pub first: u32,
}

/// How fast the connections of an operation's teams go from now on.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pace {
    /// The operation.
    pub operation: OperationId,
    /// The pace; its `first` means nothing here.
    pub pace: TeamPace,
    /// Milliseconds from now until what is left is closed. While the rate is 0 nothing is.
    pub by_ms: u64,
    /// The broker's term.
    pub term: Term,
    /// Grows with each of the operation in a term: an older one that comes late changes nothing.
    #[serde(default)]
    pub number: u64,
}

/// How many connections has each team of the node? Answered with [`Counted`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Count {
    /// For which operation.
    pub operation: OperationId,
    /// The broker's term.
    pub term: Term,
}

/// One team that is owned elsewhere now.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Move {
    /// The team.
    pub team: TeamId,
    /// The epoch that it moved under.
    pub epoch: Epoch,
    /// Milliseconds from now to the slot in which its connections go.
    pub after_ms: u64,
}

/// Drop what is held of a team.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Revoke {
    /// The team.
    pub team: TeamId,
    /// Everything up to and including this epoch goes.
    pub epoch: Epoch,
    /// The broker's term.
    pub term: Term,
}

/// Why a node is not wanted.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refused {
    /// Stable, for programs.
    pub code: RefusedCode,
    /// For people: what is wrong and what to do.
    pub detail: String,
    /// When to try again.
    pub retry_ms: u64,
}

/// Why a node is not wanted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RefusedCode {
    /// Another protocol version.
    Protocol,
    /// A live node has that name.
    NameTaken,
    /// The hello names a process that is known by its nonce, and does not show it.
    Unproven,
    /// More new names than a pool takes at once.
    TooManyNames,
    /// The node belongs to another cluster.
    Cluster,
    /// The node follows another broker of the same term: one of the two runs on a copy of the store.
    TwoBrokers,
    /// The pool is full.
    PoolFull,
    /// A message broke a bound or came out of order.
    BadMessage,
    /// A newer link of the same node took over.
    Superseded,
    /// A code this version does not know.
    #[serde(other)]
    Unknown,
}

impl RefusedCode {
    /// Its word on the wire, in logs and in metrics.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Protocol => "protocol",
            Self::NameTaken => "name_taken",
            Self::Unproven => "unproven",
            Self::TooManyNames => "too_many_names",
            Self::Cluster => "cluster",
            Self::TwoBrokers => "two_brokers",
            Self::PoolFull => "pool_full",
            Self::BadMessage => "bad_message",
            Self::Superseded => "superseded",
            Self::Unknown => "unknown",
        }
    }
}

/// A parent's word that its child is dead: the kernel has closed the sockets of that incarnation.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Exited {
    /// The node's name.
    pub node: NodeId,
    /// The incarnation that ended.
    pub incarnation: Incarnation,
    /// The nonce of its [`Hello`], where it had one: without it the word is not believed.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub nonce: Option<Hidden>,
}

/// A peer's answer to a node that lost its broker.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HearsBroker {
    /// Whether the peer has a link to a broker of that cluster, and its lease runs.
    pub hears: bool,
    /// Who answers: an address can lead somewhere else than its owner thinks, also back to who asks.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<NodeId>,
    /// The process that answers.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub incarnation: Option<Incarnation>,
}

impl Hello {
    /// What is out of bounds, if anything.
    ///
    /// # Errors
    /// A sentence for people.
    pub fn check(&self) -> Result<(), String> {
        if self.labels.len() > MAX_LABELS || self.capabilities.len() > MAX_LABELS {
            return Err(format!(
                "at most {MAX_LABELS} labels and {MAX_LABELS} capabilities"
            ));
        }
        if self.version.len() > 64 || !self.version.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("version is at most 64 visible characters".to_owned());
        }
        if self.probe.len() > 261 || !self.probe.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err("probe is host:port, at most 261 characters".to_owned());
        }
        if self.cores.get() == 0 {
            return Err("cores must be above 0 millicores".to_owned());
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unknown_types_and_fields_do_not_break_a_link() {
        assert_eq!(
            serde_json::from_str::<ToNode>(r#"{"type":"later","x":1}"#).unwrap(),
            ToNode::Unknown
        );
        let ack: ToNode =
            serde_json::from_str(r#"{"type":"heartbeat_ack","seq":1,"term":2,"new":3}"#).unwrap();
        assert_eq!(
            ack,
            ToNode::HeartbeatAck {
                seq: 1,
                term: Term::new(2).unwrap()
            }
        );
    }

    #[test]
    fn a_message_has_the_documented_form() {
        let assign = ToNode::Assign(Assign {
            team: "T1".parse().unwrap(),
            epoch: Epoch::new(7).unwrap(),
            grant: "g".to_owned(),
            state: HoldState::Owned,
            term: Term::new(1).unwrap(),
            spec: TeamSpec::default(),
        });
        assert_eq!(
            serde_json::to_string(&assign).unwrap(),
            r#"{"type":"assign","team":"T1","epoch":7,"grant":"g","state":"owned","term":1,"spec":{"moved":false}}"#
        );
    }
}
