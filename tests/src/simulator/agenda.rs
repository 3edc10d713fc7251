//! What is going to happen, and to whom.

use usher_node_core::lapse::Hears;
use usher_placement::{Ask, ProbeOutcome, RequestId};
use usher_shared::id::{ConnectionId, Incarnation, NodeId};
use usher_shared::identity::Hidden;
use usher_shared::link::{ToBroker, ToNode};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::ProbeState;

/// Which of the processes that claim to be the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    /// The one that clients and operators ask.
    Main,
    /// The one that was started on a copy of its disk.
    Twin,
    /// Neither: somebody else at that address.
    Impostor,
}

/// A direction of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Way {
    Up,
    Down,
}

/// What travels on a link.
#[derive(Clone, Debug)]
pub(super) enum Parcel {
    Up(Box<ToBroker>),
    Down(Box<ToNode>),
    /// The other side has closed.
    Close,
}

/// What happens.
#[derive(Clone, Debug)]
pub(super) enum Happens {
    /// Something reaches a broker process.
    Broker {
        which: Which,
        run: u64,
        what: ForBroker,
    },
    /// Something reaches a node process.
    Node {
        node: usize,
        incarnation: Incarnation,
        what: ForNode,
    },
    /// A parcel arrives at the machine at the other end of its link.
    Wire {
        link: u64,
        way: Way,
        generation: u64,
        serial: u64,
        copy: Copied,
        parcel: Parcel,
    },
    /// Something reaches a client.
    Client {
        client: usize,
        serial: u64,
        what: ForClient,
    },
    /// A write reaches the register of its team.
    Register(Write),
    NodeStarts {
        node: usize,
    },
    /// A second process of a name starts.
    NamesakeStarts {
        node: usize,
    },
    NamesakeEnds {
        node: usize,
    },
    BrokerStarts,
    TwinEnds,
    BrokerResumes {
        run: u64,
    },
    NodeResumes {
        node: usize,
        incarnation: Incarnation,
        suspended_ms: u64,
    },
    /// Nothing of a node comes through from now on, or nothing to it, or neither.
    CutBegins {
        node: usize,
        ways: [bool; 2],
        lasts_ms: u64,
    },
    /// A node in a loop dies once more.
    CrashAgain {
        node: usize,
        times: u32,
    },
    CutEnds {
        node: usize,
        serial: u64,
    },
    ClientCutEnds {
        node: usize,
    },
    FirewallEnds {
        node: usize,
    },
    /// A parent tries to report its child's death.
    Witness {
        node: NodeId,
        incarnation: Incarnation,
        tries: u32,
    },
    /// A link that says nothing is looked at by the broker's side.
    LinkIdle {
        link: u64,
    },
    Fault,
    HealBegins,
    /// Operators undo what they did.
    TidyUp,
    /// What must hold some time after the faults is looked at.
    CheckOwners,
}

/// Whether a parcel is the one that was sent or a copy of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Copied {
    No,
    Yes,
}

/// What reaches a broker process.
#[derive(Clone, Debug)]
pub(super) enum ForBroker {
    Wake {
        at: u64,
    },
    /// The store is done with a batch.
    StoreDone {
        batch: u64,
        kept: Kept,
    },
    /// The store has been at one batch for long.
    Stalled {
        batch: u64,
    },
    /// A failed batch is tried again.
    TryAgain,
    Message {
        link: u64,
        message: Box<ToBroker>,
    },
    Closed {
        link: u64,
    },
    Probed {
        node: NodeId,
        incarnation: Incarnation,
        outcome: ProbeOutcome,
    },
    UrlProbed {
        node: NodeId,
        incarnation: Incarnation,
        failed: Option<String>,
    },
    WhoAnswered {
        node: NodeId,
        incarnation: Incarnation,
        state: ProbeState,
    },
    Exited {
        node: NodeId,
        incarnation: Incarnation,
        nonce: Option<Hidden>,
    },
    /// A client asks the way, with the ticket it has and the connection that it had.
    Visit {
        client: usize,
        serial: u64,
        ticket: Option<String>,
        had: Option<ConnectionId>,
    },
    Operator {
        request: RequestId,
        ask: Box<Ask>,
    },
}

/// Whether a batch is on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kept {
    Yes,
    No,
}

/// What reaches a node process.
#[derive(Clone, Debug)]
pub(super) enum ForNode {
    Dial,
    /// The welcome of this link is late.
    NotWelcome {
        link: u64,
    },
    Beat {
        link: u64,
    },
    /// Nothing may have been heard on this link for long.
    Silent {
        link: u64,
    },
    /// The lease is looked at.
    Look,
    /// Slots of departing teams may be due.
    Slots,
    Report,
    Act,
    /// The watchdog's time has come, unless something was said since.
    Watchdog {
        by: Timestamp,
    },
    Message {
        link: u64,
        message: Box<ToNode>,
    },
    Closed {
        link: u64,
    },
    Peers {
        hears: Hears,
    },
    /// A client comes with a ticket.
    Arrives {
        client: usize,
        serial: u64,
        ticket: String,
        from: Option<ConnectionId>,
    },
    /// A client has waited for a team for as long as it may.
    WaitedLong {
        client: usize,
        serial: u64,
    },
    /// A client's end of a connection is gone.
    Hangs {
        connection: ConnectionId,
    },
    /// The time that it was given to stop is over, or nothing is left.
    Leaves,
}

/// What reaches a client.
#[derive(Clone, Debug)]
pub(super) enum ForClient {
    /// It does what it does next.
    Act,
    /// The broker sent it on.
    SentOn { node: usize, ticket: String },
    /// Broker or node told it to come back later.
    Later { after_ms: u64 },
    /// Nobody answered.
    TimedOut,
    /// A node sent it back to the broker, and said what connection its ticket had opened.
    SentBack {
        ticket: String,
        opened: Option<ConnectionId>,
    },
    Seated {
        node: usize,
        incarnation: Incarnation,
        connection: ConnectionId,
        resume: Option<String>,
    },
    /// Its connection was closed.
    Closed { connection: ConnectionId, after_ms: u64 },
    /// It was told to move.
    Move { connection: ConnectionId },
    /// It pings.
    Ping { connection: ConnectionId },
    /// It goes away for a while.
    Strolls,
}

/// An exclusive effect: a write to a team's register.
#[derive(Clone, Debug)]
pub(super) struct Write {
    pub(super) team: usize,
    pub(super) epoch: Epoch,
    pub(super) node: usize,
    pub(super) incarnation: Incarnation,
}

impl Happens {
    /// Two numbers that tell this event from others.
    pub(super) fn digest(&self) -> (u64, u64) {
        let of = |number: usize| u64::try_from(number).unwrap_or(u64::MAX);
        match self {
            Self::Broker { run, what, .. } => (what.digest(), *run),
            Self::Node { node, what, .. } => (100 + what.digest(), of(*node)),
            Self::Wire {
                link, serial, parcel, ..
            } => (
                match parcel {
                    Parcel::Up(_) => 200,
                    Parcel::Down(_) => 201,
                    Parcel::Close => 202,
                },
                link << 32 | serial,
            ),
            Self::Client { client, serial, .. } => (210, of(*client) << 32 | serial),
            Self::Register(write) => (211, write.epoch.get()),
            Self::NodeStarts { node } => (212, of(*node)),
            Self::NamesakeStarts { node } => (227, of(*node)),
            Self::NamesakeEnds { node } => (228, of(*node)),
            Self::BrokerStarts => (213, 0),
            Self::TwinEnds => (214, 0),
            Self::BrokerResumes { run } => (215, *run),
            Self::NodeResumes { node, .. } => (216, of(*node)),
            Self::CutEnds { node, .. } => (217, of(*node)),
            Self::CutBegins { node, .. } => (226, of(*node)),
            Self::CrashAgain { node, .. } => (227, of(*node)),
            Self::ClientCutEnds { node } => (218, of(*node)),
            Self::FirewallEnds { node } => (219, of(*node)),
            Self::Witness { tries, .. } => (220, u64::from(*tries)),
            Self::LinkIdle { link } => (221, *link),
            Self::Fault => (222, 0),
            Self::HealBegins => (223, 0),
            Self::TidyUp => (224, 0),
            Self::CheckOwners => (225, 0),
        }
    }
}

impl ForBroker {
    fn digest(&self) -> u64 {
        match self {
            Self::Wake { .. } => 1,
            Self::StoreDone { .. } => 2,
            Self::Stalled { .. } => 3,
            Self::TryAgain => 4,
            Self::Message { .. } => 5,
            Self::Closed { .. } => 6,
            Self::Probed { .. } => 7,
            Self::WhoAnswered { .. } => 11,
            Self::Exited { .. } => 8,
            Self::Visit { .. } => 9,
            Self::Operator { .. } => 10,
            Self::UrlProbed { .. } => 11,
        }
    }

    /// What must stay in order: the messages of one link. Everything else comes as it will.
    pub(super) fn lane(&self) -> Option<u64> {
        match self {
            Self::Message { link, .. } | Self::Closed { link } => Some(*link),
            _ => None,
        }
    }
}

impl ForNode {
    fn digest(&self) -> u64 {
        match self {
            Self::Dial => 1,
            Self::NotWelcome { .. } => 2,
            Self::Beat { .. } => 3,
            Self::Silent { .. } => 4,
            Self::Look => 5,
            Self::Slots => 6,
            Self::Report => 7,
            Self::Act => 8,
            Self::Watchdog { .. } => 9,
            Self::Message { .. } => 10,
            Self::Closed { .. } => 11,
            Self::Peers { .. } => 12,
            Self::Arrives { .. } => 13,
            Self::WaitedLong { .. } => 14,
            Self::Hangs { .. } => 15,
            Self::Leaves => 16,
        }
    }

    /// See [`ForBroker::lane`].
    pub(super) fn lane(&self) -> Option<u64> {
        match self {
            Self::Message { link, .. } | Self::Closed { link } => Some(*link),
            _ => None,
        }
    }
}
