//! What the caller is to do: the output of the core.

use usher_shared::id::{Incarnation, NodeId, OperationId, TeamId};
use usher_shared::link::{Refused, ToNode};
use usher_shared::quantity::Epoch;
use usher_shared::template::NodeUrl;

use crate::event::{LinkId, RequestId};
use crate::notice::Notice;
use crate::record::Record;
use crate::refusal::Refusal;

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
