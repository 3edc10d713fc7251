//! What one seed is made of: how large its world is, and which faults happen in it.
//!
//! Each seed switches on a few kinds of faults and leaves the others out (swarm testing: Groce and
//! others, 2012), because a mix of everything at once never gets as deep into any one of them.

use usher_node_core::OnLapse;

use super::clock::Real;
use super::dice::Dice;

/// A kind of fault, of bad luck or of operator's work.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    NodeCrash,
    PowerOff,
    BrokerCrash,
    /// The broker comes up on an old copy of its disk.
    Restore,
    /// Another broker on a copy of the disk claims the same term.
    Twin,
    /// Something else answers at the broker's address: an earlier term, or another cluster.
    Impostor,
    /// A second process of a node's name runs on another machine.
    NodeTwin,
    /// Somebody reports exits of processes that live.
    Liar,
    NodePause,
    BrokerPause,
    Suspend,
    Freeze,
    LinkBreak,
    Cut,
    MassCut,
    ClientCut,
    SlowNet,
    Duplicates,
    Firewall,
    SlowStore,
    FailingStore,
    Drain,
    Shed,
    Cordon,
    Delete,
    Pins,
    Stop,
    BadNode,
    WallJump,
    /// A broker that starts again has another lease in its settings.
    LeaseChange,
    SmallNodes,
    Descriptors,
    /// Nodes of another make beat before their inventory is complete.
    EagerBeats,
    /// Faults come thick and fast.
    Hectic,
    /// Clocks beyond what leases count on: then only what the epochs promise is promised.
    WildClocks,
    /// One node stays out of its clients' reach, while its link is well.
    OutOfReach,
    /// A node whose process does not stay up.
    CrashLoop,
    /// Half of the machines go for good, and no operator says so.
    Gone,
}

const KINDS: [Kind; 35] = [
    Kind::NodeCrash,
    Kind::PowerOff,
    Kind::BrokerCrash,
    Kind::Restore,
    Kind::Twin,
    Kind::Impostor,
    Kind::NodeTwin,
    Kind::Liar,
    Kind::NodePause,
    Kind::BrokerPause,
    Kind::Suspend,
    Kind::Freeze,
    Kind::LinkBreak,
    Kind::Cut,
    Kind::MassCut,
    Kind::ClientCut,
    Kind::SlowNet,
    Kind::Duplicates,
    Kind::Firewall,
    Kind::SlowStore,
    Kind::FailingStore,
    Kind::Drain,
    Kind::Shed,
    Kind::Cordon,
    Kind::Delete,
    Kind::Pins,
    Kind::Stop,
    Kind::BadNode,
    Kind::WallJump,
    Kind::LeaseChange,
    Kind::SmallNodes,
    Kind::Descriptors,
    Kind::EagerBeats,
    Kind::Hectic,
    Kind::WildClocks,
];

/// Kinds that came later. They are drawn beside the others, so that a seed is otherwise what it was.
const LATER: [Kind; 3] = [Kind::OutOfReach, Kind::CrashLoop, Kind::Gone];

/// What one seed is made of.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    kinds: Vec<Kind>,
    pub(super) nodes: usize,
    pub(super) teams: usize,
    pub(super) clients: usize,
    /// Zones that nodes are spread over; none: nodes name no zone.
    pub(super) zones: usize,
    pub(super) lease_ms: u64,
    pub(super) heartbeat_ms: u64,
    pub(super) forget_ms: u64,
    pub(super) faults_ms: Real,
    pub(super) heal_ms: Real,
    /// How far a clock's rate is off at most.
    pub(super) rate_ppm: u64,
    /// Percent of nodes that fence.
    pub(super) fencing: u64,
    /// The mean time between two faults.
    pub(super) pause_between_ms: u64,
    /// Where the counters of epochs and terms begin.
    pub(super) counters_from: u64,
    /// Percent of messages that come twice, where any do.
    pub(super) doubled: u64,
    /// Messages are written and read as JSON on their way.
    pub(super) on_the_wire: bool,
}

impl Plan {
    pub(super) fn draw(dice: &mut Dice) -> Self {
        let mut beside = Dice::new(dice.clone().next() ^ 0x9e37_79b9_7f4a_7c15);
        let share = dice.within(10, 45);
        let mut kinds: Vec<Kind> = KINDS.into_iter().filter(|_| dice.percent(share)).collect();
        while kinds.len() < 3 {
            kinds.push(KINDS[dice.index(KINDS.len())]);
        }
        // A copy of the disk from before a longer lease cannot know of it, and nobody else does:
        // restoring it is only promised to be safe while the lease stays as it is.
        if kinds.contains(&Kind::Restore) {
            kinds.retain(|kind| *kind != Kind::LeaseChange);
        }
        if !dice.percent(15) {
            kinds.retain(|kind| *kind != Kind::WildClocks);
        }
        kinds.extend(LATER.into_iter().filter(|_| beside.percent(12)));
        let has = |kind| kinds.contains(&kind);
        let (lease_ms, heartbeat_ms) = match dice.within(0, 9) {
            0 => (4_000, 1_000),
            1 => (4_000, 500),
            2 => (10_000, 2_000),
            3 => (8_000, 1_000),
            _ => (6_000, 1_000),
        };
        Self {
            nodes: usize::try_from(dice.within(2, 7)).unwrap_or(3),
            teams: usize::try_from(dice.within(4, 24)).unwrap_or(8),
            clients: usize::try_from(dice.within(8, 64)).unwrap_or(16),
            zones: dice.index(4),
            lease_ms,
            heartbeat_ms,
            forget_ms: if dice.percent(20) { 4_000 } else { 600_000 },
            faults_ms: dice.within(20_000, 60_000),
            // What stays wrong takes longer to be found out.
            heal_ms: if LATER.into_iter().any(has) {
                120_000
            } else {
                60_000
            },
            rate_ppm: if has(Kind::WildClocks) {
                200_000
            } else if dice.percent(30) {
                4_900
            } else {
                2_000
            },
            fencing: if dice.percent(30) { dice.within(20, 100) } else { 0 },
            pause_between_ms: if has(Kind::Hectic) { 500 } else { 2_500 },
            counters_from: if dice.percent(10) {
                (1 << 53) - (1 << 33)
            } else {
                1
            },
            doubled: if dice.percent(70) { 10 } else { 50 },
            on_the_wire: dice.percent(5),
            kinds,
        }
    }

    pub(super) fn has(&self, kind: Kind) -> bool {
        self.kinds.contains(&kind)
    }

    /// The kinds that happen by themselves.
    pub(super) fn kinds(&self) -> &[Kind] {
        &self.kinds
    }

    /// Whether leases are promised to keep owners apart.
    pub(super) fn leases_hold(&self) -> bool {
        !self.has(Kind::WildClocks)
    }

    pub(super) fn on_lapse(&self, dice: &mut Dice) -> OnLapse {
        if dice.percent(self.fencing) {
            OnLapse::Fence
        } else {
            OnLapse::Hold
        }
    }
}
