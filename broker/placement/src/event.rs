//! What happened: the input of the core.

use usher_shared::id::{Incarnation, Label, NodeId, TeamId};
use usher_shared::link::{
    Arrivals, Counted, Departures, Exited, Heartbeat, Hello, Inventory, Missed, TeamEpoch,
};
use usher_shared::quantity::Epoch;
use usher_shared::rest::{DrainPost, ProbeState, ShedPost, TeamPatch, TeamPut};

/// One link of one node, numbered by the caller and never reused within a run.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct LinkId(pub u64);

/// One request, numbered by the caller; answered by exactly one [`crate::Command::Answer`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct RequestId(pub u64);

/// What happened.
#[derive(Clone, Debug)]
pub enum Event {
    /// A node introduced itself on a new link. Its bounds were checked ([`Hello::check`]).
    Hello {
        /// The link.
        link: LinkId,
        /// What it said.
        hello: Box<Hello>,
    },
    /// A page of what a node holds.
    Inventory {
        /// The link.
        link: LinkId,
        /// The page.
        page: Inventory,
    },
    /// A node reported.
    Heartbeat {
        /// The link.
        link: LinkId,
        /// What it said.
        heartbeat: Box<Heartbeat>,
        /// The broker's wall clock when it came, in milliseconds since the Unix epoch.
        wall_ms: u64,
    },
    /// A node has made room for a team.
    Prepared {
        /// The link.
        link: LinkId,
        /// The team and the epoch it was prepared under.
        held: TeamEpoch,
    },
    /// A node has stopped exclusive effects for a team that is being taken away.
    Yielded {
        /// The link.
        link: LinkId,
        /// The team and the epoch of the move that takes it away.
        held: TeamEpoch,
    },
    /// A node has no connection left of a team that was taken away.
    Released {
        /// The link.
        link: LinkId,
        /// The team and the epoch of the move that took it away.
        held: TeamEpoch,
    },
    /// Connections of moved teams came in.
    Arrived {
        /// The link.
        link: LinkId,
        /// The connections.
        arrivals: Arrivals,
    },
    /// Connections of leaving teams went.
    Left {
        /// The link.
        link: LinkId,
        /// The connections.
        departures: Departures,
    },
    /// A node says how many connections its teams have.
    Counted {
        /// The link.
        link: LinkId,
        /// The counts.
        counted: Counted,
    },
    /// Members of teams on their way did not get frames.
    Missed {
        /// The link.
        link: LinkId,
        /// How many.
        missed: Missed,
    },
    /// A node got SIGTERM and asks to be drained.
    Bye {
        /// The link.
        link: LinkId,
        /// How long it will go on serving.
        budget_ms: u64,
    },
    /// A link ended, whoever ended it.
    LinkClosed {
        /// The link.
        link: LinkId,
    },
    /// The answer to [`crate::Command::Probe`].
    Probed {
        /// The node.
        node: NodeId,
        /// The incarnation that was asked about.
        incarnation: Incarnation,
        /// How it went.
        outcome: ProbeOutcome,
    },
    /// The answer to [`crate::Command::AskWho`].
    WhoAnswered {
        /// The node.
        node: NodeId,
        /// The incarnation that was asked about.
        incarnation: Incarnation,
        /// Who is there.
        state: ProbeState,
    },
    /// The answer to [`crate::Command::ProbeUrl`].
    UrlProbed {
        /// The node.
        node: NodeId,
        /// The incarnation that was asked about.
        incarnation: Incarnation,
        /// What went wrong, in words; `None`: something answered.
        failed: Option<String>,
    },
    /// Tickets were given for a node, from the route table or by an answer; said about once a second.
    Sent {
        /// The node.
        node: NodeId,
        /// How many.
        tickets: u64,
        /// For which teams, as a sketch: a bit for each by a hash that no client can guess.
        teams: u64,
        /// Since the last such word, in milliseconds.
        over_ms: u64,
    },
    /// A parent reported its child's death.
    Exited(Exited),
    /// A client or an operator asks for something.
    Request {
        /// The request.
        request: RequestId,
        /// What it asks for.
        ask: Ask,
    },
}

/// How a probe of a node's address went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ProbeOutcome {
    /// The connection was refused: nothing listens there. A hint of death where the node itself has answered
    /// before, and never proof, because a firewall can say the same. Elsewhere it is nothing.
    Refused,
    /// Somebody accepted.
    Answered,
    /// Nothing came back in time.
    Silent,
}

/// What a client or an operator asks for. What only reads is asked of the core's views directly.
#[derive(Clone, Debug)]
pub enum Ask {
    /// A client wants its team's node, and the route table could not tell.
    Connect {
        /// The team.
        team: TeamId,
        /// Whether a team not seen before may be made.
        may_create: bool,
        /// The region that the client asked for; counts for a new team only.
        region: Option<Label>,
        /// The genuine ticket it came back with, if any.
        knock: Option<Knock>,
    },
    /// `PUT /v1/teams/{team}`.
    Put {
        /// The team.
        team: TeamId,
        /// What it should be like.
        put: TeamPut,
    },
    /// `PATCH /v1/teams/{team}`.
    Patch {
        /// The team.
        team: TeamId,
        /// What is to be different.
        patch: TeamPatch,
    },
    /// `DELETE /v1/teams/{team}`.
    Delete {
        /// The team.
        team: TeamId,
    },
    /// No new teams for this node.
    Cordon {
        /// The node.
        node: NodeId,
    },
    /// New teams for this node again.
    Uncordon {
        /// The node.
        node: NodeId,
    },
    /// Every team leaves this node.
    Drain {
        /// The node.
        node: NodeId,
        /// How.
        post: DrainPost,
    },
    /// The node's drain ends, and it takes teams again.
    Undrain {
        /// The node.
        node: NodeId,
    },
    /// Some teams leave this node.
    Shed {
        /// The node.
        node: NodeId,
        /// How many, and how.
        post: ShedPost,
    },
    /// An operator ends self-preservation: silent nodes count as dead once their lease is over.
    Release,
}

/// A client that comes back with a ticket says where it was: a hint that it could not stay there.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Knock {
    /// The node that its ticket was for.
    pub node: NodeId,
    /// The incarnation.
    pub incarnation: Incarnation,
    /// The epoch.
    pub epoch: Epoch,
}
