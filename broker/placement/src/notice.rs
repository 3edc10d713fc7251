//! What happened, for whoever watches: each a fact, worded only where it is shown.

use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::link::{EndedBy, RefusedCode};
use usher_shared::quantity::{Epoch, Term};
use usher_shared::rest::{Cause, Gate, OperationKind, OperationView, ProbeState};

use crate::pace::Pace;

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
        why: Disbelief,
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
        evidence: Evidence,
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
        /// How.
        outcome: MoveOutcome,
    },
    /// Connections of teams on their way left their old node.
    Departed {
        /// Who ended them.
        by: EndedBy,
        /// How many.
        connections: u32,
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
        /// How.
        wish: Kept,
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
        /// The node that showed it.
        node: NodeId,
        /// What it showed.
        by: Regressed,
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
        fault: NodeFault,
    },
}

/// How it is known that a process has ended, or is taken for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evidence {
    /// Its parent reported the exit.
    Exit,
    /// Its successor holds the lock that only it could hold.
    Successor,
    /// Another process took its name, and proves nothing.
    Displaced,
    /// Its link closed, and its probe address refuses connections.
    Refuses,
    /// It was silent on an open link until its lease was over.
    Silent,
    /// It had no link when its lease was over.
    StayedAway,
}

impl Evidence {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Exit,
        Self::Successor,
        Self::Displaced,
        Self::Refuses,
        Self::Silent,
        Self::StayedAway,
    ];

    /// Whether that process has ended beyond doubt; otherwise its exclusive effects wait for its lease.
    #[must_use]
    pub const fn is_proof(self) -> bool {
        matches!(self, Self::Exit | Self::Successor)
    }

    /// The sentence that the log, the metric's label and the failover's report have.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Exit => "its parent reported the exit",
            Self::Successor => "its name came back with a new process",
            Self::Displaced => "another process took its name",
            Self::Refuses => "its link closed and its address refuses connections",
            Self::Silent => "it was silent until its lease was over",
            Self::StayedAway => "it did not come back before its lease was over",
        }
    }
}

/// Why a report that a process had ended is not believed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Disbelief {
    /// It does not show what the process's parent knows.
    NoNonce,
    /// That process is linked and heard.
    Heard,
}

impl Disbelief {
    /// The words for the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::NoNonce => "it does not show the nonce of that process",
            Self::Heard => "that process is linked and heard",
        }
    }
}

/// What a node should not have said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NodeFault {
    /// So many entries of its inventory have no grant of this cluster.
    Ungranted(u32),
    /// An inventory came after the inventory was complete.
    LateInventory,
    /// A heartbeat came twice or out of order.
    HeartbeatOrder,
}

impl std::fmt::Display for NodeFault {
    fn fmt(&self, words: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ungranted(entries) => {
                write!(
                    words,
                    "its inventory has {entries} entries without a grant of this cluster"
                )
            }
            Self::LateInventory => words.write_str("an inventory came after the inventory was complete"),
            Self::HeartbeatOrder => words.write_str("a heartbeat came twice or out of order"),
        }
    }
}

/// What shows that the store is older than what was granted from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Regressed {
    /// A node has seen a higher term.
    Term(Term),
    /// A node was granted a higher epoch than the store reserved.
    Epoch(Epoch),
    /// A node holds teams, rightly, that the store does not have.
    Grants {
        /// How many.
        teams: u32,
        /// The highest of their epochs.
        highest: Epoch,
    },
}

impl std::fmt::Display for Regressed {
    fn fmt(&self, words: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Term(term) => write!(words, "it has seen term {term}"),
            Self::Epoch(epoch) => write!(words, "it was granted epoch {epoch}"),
            Self::Grants { teams, highest } => write!(
                words,
                "it holds {teams} teams, under epochs up to {highest}, which the store does not have"
            ),
        }
    }
}

/// How the move of one team ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MoveOutcome {
    /// Its last connection left the old node.
    Arrived,
    /// Its connections did not leave in time.
    TimedOut,
    /// It was given up: for another move, or because it is not wanted any more.
    Undone,
    /// One of the two nodes died, or the new one did not answer.
    Failed,
}

impl MoveOutcome {
    /// All of them.
    pub const ALL: [Self; 4] = [Self::Arrived, Self::TimedOut, Self::Undone, Self::Failed];

    /// The word used as a metric's label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Arrived => "arrived",
            Self::TimedOut => "timed_out",
            Self::Undone => "undone",
            Self::Failed => "failed",
        }
    }
}

/// How an operator keeps a node from taking teams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kept {
    /// By a cordon.
    Cordoned,
    /// By a drain.
    Drained,
}

impl Kept {
    /// The word for the log.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Cordoned => "cordoned",
            Self::Drained => "drained",
        }
    }
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
