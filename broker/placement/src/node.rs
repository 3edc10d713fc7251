//! A node as the core knows it.

use std::collections::{BTreeMap, BTreeSet};
use usher_shared::id::{Incarnation, NodeId, OperationId, TeamId};
use usher_shared::identity::Marks;
use usher_shared::link::{Health, Held, Hello, HotTeam, LargeTeam, Memory, PACED_MOVES, Peer};
use usher_shared::quantity::{Millicores, Timestamp};
use usher_shared::rest::{Gate, NodeState, ProbeState};

use crate::event::LinkId;
use crate::identity::{ExitWord, Rival};
use crate::pace::ClockPace;
use crate::record::{IntentRecord, NodeRecord};
use crate::score::Score;
use crate::strain::Strain;
use crate::trust::Trust;
use crate::warmth::Warmth;

/// What the broker sees of a node, by evidence alone.
#[derive(Clone, Debug)]
pub(crate) enum Seen {
    /// Known from the store, not heard in this run.
    Expected {
        /// The start of this run: its lease may have been renewed just before.
        heard: Timestamp,
    },
    /// Said hello; pages of its inventory are coming in. Its heartbeats are not acknowledged yet.
    Joining {
        /// Its link.
        link: LinkId,
        /// The pages so far.
        inventory: Vec<Held>,
        /// When it was last heard.
        heard: Timestamp,
    },
    /// Its inventory is reconciled, and its heartbeats are acknowledged.
    Linked {
        /// Its link.
        link: LinkId,
        /// When it was last heard.
        heard: Timestamp,
        /// Whether it missed two heartbeats.
        silence: Silence,
    },
    /// Its link is closed.
    Unlinked {
        /// When it was last heard.
        heard: Timestamp,
        /// What its probe address said.
        hint: Hint,
        /// When to ask it again: a process that is just dying may still have accepted.
        probe_at: Option<Timestamp>,
    },
    /// Its teams were given to others.
    Dead {
        /// When it was last heard: its lease may run on from there.
        heard: Timestamp,
        /// When that was decided.
        since: Timestamp,
        /// Whether its death is proven, so that no lease needs to be waited for.
        proof: Proof,
    },
}

/// Whether a linked node reports in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Silence {
    /// It does.
    Heard,
    /// It missed two heartbeats.
    Missed,
}

/// What is known of a node whose link is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Hint {
    /// Nothing that speaks for its death.
    None,
    /// Its probe address, at which it has answered before, refuses connections.
    Refused,
}

/// How sure a death is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Proof {
    /// Its parent reported the exit, or its successor holds the lock that it held.
    Proven,
    /// It was refused or silent: it may live on behind a cut.
    Presumed,
}

/// What the operator wants of a node.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Intent {
    /// Takes teams.
    Active,
    /// Takes no new teams.
    Cordoned,
    /// Is being emptied by this operation, or was.
    Draining(OperationId),
}

/// What a node reported last.
#[derive(Clone, Debug, Default)]
pub(crate) struct Report {
    pub(crate) seq: u64,
    pub(crate) cpu_now: Millicores,
    pub(crate) cpu_average: Millicores,
    /// The lowest average it reported: what it costs to run it idle.
    pub(crate) cpu_idle: Option<Millicores>,
    pub(crate) memory_bytes: u64,
    pub(crate) memory: Option<Memory>,
    pub(crate) connections: u32,
    /// The teams that those connections belonged to.
    pub(crate) teams: u32,
    pub(crate) descriptors_left: Option<u32>,
    /// Connections of its largest teams.
    pub(crate) large_teams: BTreeMap<TeamId, u32>,
    /// Frames a second of its busiest teams.
    hot_teams: BTreeMap<TeamId, u32>,
    pub(crate) health: Health,
    /// Its wall clock minus the broker's.
    pub(crate) wall_skew_ms: i64,
}

impl Report {
    /// Takes in which teams are the largest and the busiest.
    pub(crate) fn name_teams(&mut self, large: &[LargeTeam], hot: &[HotTeam]) {
        let entries = large.iter().map(|entry| (entry.team.clone(), entry.connections));
        self.large_teams = entries.collect();
        let entries = hot.iter().map(|entry| (entry.team.clone(), entry.frames_per_s));
        self.hot_teams = entries.collect();
    }

    /// What a team is known to bring on: its frames a second, then its connections. Greater is busier.
    pub(crate) fn busyness(&self, team: &TeamId) -> (u32, u32) {
        let of = |named: &BTreeMap<TeamId, u32>| named.get(team).copied().unwrap_or(0);
        (of(&self.hot_teams), of(&self.large_teams))
    }

    fn connections_of(&self, team: &TeamId) -> u32 {
        if let Some(connections) = self.large_teams.get(team) {
            return *connections;
        }
        let named: u32 = self
            .large_teams
            .values()
            .fold(0, |sum, one| sum.saturating_add(*one));
        let others = self
            .teams
            .saturating_sub(u32::try_from(self.large_teams.len()).unwrap_or(u32::MAX));
        self.connections.saturating_sub(named).div_ceil(others.max(1))
    }
}

/// What teams on their way will bring, in thousandths of a millicore or of a connection; negative for teams
/// that left.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Pending {
    /// Placed in this tick and the last: their connections are still coming, so it does not fade.
    arriving: [i64; 2],
    /// Placed earlier: it fades while the node's own report takes it up.
    fading: i64,
}

impl Pending {
    /// Counts a placement (or, negative, a departure) at once.
    pub(crate) fn add(&mut self, milli: i64) {
        self.arriving[0] = self.arriving[0].saturating_add(milli);
    }

    /// One tick on: what has had time to arrive fades by `keep_ppm`.
    pub(crate) fn tick(&mut self, keep_ppm: i64) {
        self.fading = self.fading * keep_ppm / 1_000_000 + self.arriving[1];
        self.arriving = [0, self.arriving[0]];
    }

    pub(crate) fn milli(self) -> i64 {
        self.fading + self.arriving[0] + self.arriving[1]
    }
}

/// One node.
#[derive(Clone, Debug)]
pub(crate) struct Node {
    pub(crate) hello: Hello,
    /// What its process is known again by.
    pub(crate) marks: Marks,
    /// Processes that it took the name from, the last one last, without proof that they had ended.
    pub(crate) displaced: Vec<Incarnation>,
    /// Whether its parent reported its exit, which its link contradicts so far.
    pub(crate) exit_word: ExitWord,
    /// Who answered at its probe address.
    pub(crate) probe_state: ProbeState,
    /// When that was last asked.
    pub(crate) asked_who: Timestamp,
    /// Who else wanted its name.
    pub(crate) rival: Option<Rival>,
    pub(crate) seen: Seen,
    pub(crate) intent: Intent,
    /// Whether its process got SIGTERM: it will be gone soon whatever anyone wants.
    pub(crate) stopping: bool,
    /// What an operator had wanted of it before that: the next process of its name is as before.
    pub(crate) wish_before: Option<Intent>,
    /// Whether it had nothing left when its process went: then that is no loss.
    pub(crate) left_empty: bool,
    /// Whether it answers `count` and keeps to a pace.
    pub(crate) can_count: bool,
    /// Whether it tells of each connection that arrives and leaves.
    pub(crate) reports: bool,
    /// The longest lease it may hold.
    pub(crate) lease_ms: u64,
    /// Teams it owns, by id: what a failover and a drain walk through.
    pub(crate) teams: BTreeSet<TeamId>,
    /// The weights of those teams.
    pub(crate) weight_sum: u64,
    /// Whether it ever owned one in this run.
    pub(crate) tried: bool,
    /// Teams that are being prepared here and owned elsewhere still.
    pub(crate) reserved: BTreeSet<TeamId>,
    /// The weights of those.
    pub(crate) reserved_weight: u64,
    /// Teams owned elsewhere whose connections are still leaving here.
    pub(crate) leaving: BTreeSet<TeamId>,
    /// Whom it was told to ask when it loses the broker.
    pub(crate) peers: Vec<Peer>,
    pub(crate) report: Report,
    pub(crate) clock_pace: ClockPace,
    /// CPU of teams on their way.
    pub(crate) pending: Pending,
    /// Connections of teams on their way.
    pub(crate) coming: Pending,
    /// How it came to take teams again.
    pub(crate) warmth: Warmth,
    pub(crate) strain: Strain,
    /// What it was last told to lack, if it was told to be full.
    pub(crate) told_full: Option<Gate>,
    /// The number of the choice that last took it; ties go to who waited longest.
    pub(crate) last_chosen: u64,
    /// Whether it owned a team when it died.
    pub(crate) had_teams: bool,
    /// Whether clients get to it, and whether it stays up.
    pub(crate) trust: Trust,
    /// Its place in the index, while it has one.
    pub(crate) key: Option<Score>,
}

impl Node {
    pub(crate) fn new(hello: Hello, seen: Seen, intent: Intent, lease_ms: u64) -> Self {
        let can_count = can_count(&hello);
        Self {
            hello,
            marks: Marks::default(),
            displaced: Vec::new(),
            exit_word: ExitWord::None,
            probe_state: ProbeState::Unknown,
            asked_who: Timestamp::default(),
            rival: None,
            seen,
            intent,
            stopping: false,
            wish_before: None,
            left_empty: false,
            can_count,
            reports: can_count,
            lease_ms,
            teams: BTreeSet::new(),
            weight_sum: 0,
            tried: false,
            reserved: BTreeSet::new(),
            reserved_weight: 0,
            leaving: BTreeSet::new(),
            peers: Vec::new(),
            report: Report::default(),
            clock_pace: ClockPace::default(),
            pending: Pending::default(),
            coming: Pending::default(),
            warmth: Warmth::default(),
            strain: Strain::default(),
            told_full: None,
            last_chosen: 0,
            had_teams: false,
            trust: Trust::default(),
            key: None,
        }
    }

    pub(crate) fn id(&self) -> &NodeId {
        &self.hello.node
    }

    pub(crate) fn incarnation(&self) -> Incarnation {
        self.hello.incarnation
    }

    /// It has come to take teams, and takes its share of them at first.
    pub(crate) fn begin_young(&mut self, pool_placed: u64, now: Timestamp) {
        self.warmth = Warmth::begin(now, pool_placed);
    }

    /// The link on which commands can be sent.
    pub(crate) fn link(&self) -> Option<LinkId> {
        match self.seen {
            Seen::Joining { link, .. } | Seen::Linked { link, .. } => Some(link),
            _ => None,
        }
    }

    /// When it was last heard.
    pub(crate) fn heard(&self) -> Timestamp {
        match self.seen {
            Seen::Expected { heard }
            | Seen::Joining { heard, .. }
            | Seen::Linked { heard, .. }
            | Seen::Unlinked { heard, .. }
            | Seen::Dead { heard, .. } => heard,
        }
    }

    /// Whether its inventory is in and its link is up, heard in time or not.
    pub(crate) fn is_linked(&self) -> bool {
        matches!(self.seen, Seen::Linked { .. })
    }

    /// Whether its link is closed, and it may live on.
    pub(crate) fn is_unlinked(&self) -> bool {
        matches!(self.seen, Seen::Unlinked { .. })
    }

    /// Whether it is linked and reports in time.
    pub(crate) fn is_heard(&self) -> bool {
        matches!(
            self.seen,
            Seen::Linked {
                silence: Silence::Heard,
                ..
            }
        )
    }

    pub(crate) fn is_dead(&self) -> bool {
        matches!(self.seen, Seen::Dead { .. })
    }

    pub(crate) fn is_proven_dead(&self) -> bool {
        let proven = Proof::Proven;
        matches!(&self.seen, Seen::Dead { proof, .. } if *proof == proven)
    }

    pub(crate) fn is_draining(&self) -> bool {
        matches!(self.intent, Intent::Draining(_))
    }

    /// Teams that count against its capacity.
    pub(crate) fn team_count(&self) -> u32 {
        u32::try_from(self.teams.len() + self.reserved.len()).unwrap_or(u32::MAX)
    }

    /// Thousandths of a connection that one of its teams had on average when it reported last.
    pub(crate) fn connections_per_team_milli(&self) -> u64 {
        u64::from(self.report.connections) * 1_000 / u64::from(self.report.teams.max(1))
    }

    /// How many connections one of its teams has, as far as its last report tells: the largest are named, and
    /// the others have the mean of the rest.
    pub(crate) fn connections_of(&self, team: &TeamId) -> u32 {
        self.report.connections_of(team)
    }

    /// What is seen of it, folded with what the operator asked: the one word for people and metrics.
    pub(crate) fn state(&self) -> NodeState {
        if self.is_dead() {
            return match self.wish() {
                Intent::Draining(_) if self.left_empty => NodeState::Drained,
                Intent::Cordoned if self.left_empty => NodeState::Cordoned,
                _ => NodeState::Dead,
            };
        }
        match (&self.seen, &self.intent) {
            (Seen::Dead { .. }, _) => NodeState::Dead,
            (
                Seen::Unlinked { .. }
                | Seen::Linked {
                    silence: Silence::Missed,
                    ..
                },
                _,
            ) => NodeState::Silent,
            (Seen::Expected { .. } | Seen::Joining { .. }, _) => NodeState::Joining,
            (_, Intent::Draining(_)) if self.teams.is_empty() && self.leaving.is_empty() => {
                NodeState::Drained
            }
            (_, Intent::Draining(_)) => NodeState::Draining,
            (_, Intent::Cordoned) => NodeState::Cordoned,
            (_, Intent::Active) => NodeState::Ready,
        }
    }

    /// What an operator wants of it: a drain that began with SIGTERM ends with the process.
    pub(crate) fn wish(&self) -> Intent {
        if self.stopping {
            self.wish_before.clone().unwrap_or(Intent::Active)
        } else {
            self.intent.clone()
        }
    }

    /// What the store keeps of it.
    pub(crate) fn record(&self) -> NodeRecord {
        let intent = match self.wish() {
            Intent::Active => IntentRecord::Active,
            Intent::Cordoned => IntentRecord::Cordoned,
            Intent::Draining(_) => IntentRecord::Draining,
        };
        NodeRecord {
            hello: self.hello.clone(),
            intent,
            lease_ms: self.lease_ms,
            marks: self.marks,
        }
    }
}

/// Whether a node says of itself that it can.
pub(crate) fn can_count(hello: &Hello) -> bool {
    hello
        .capabilities
        .iter()
        .any(|capability| capability.as_str() == PACED_MOVES)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_pending_counts_at_once_and_fades_only_after_two_ticks() {
        let mut pending = Pending::default();
        pending.add(1_000);
        assert_eq!(pending.milli(), 1_000);
        pending.tick(500_000);
        assert_eq!(pending.milli(), 1_000);
        pending.tick(500_000);
        assert_eq!(pending.milli(), 1_000);
        pending.tick(500_000);
        assert_eq!(pending.milli(), 500);
        pending.add(-1_500);
        assert_eq!(pending.milli(), -1_000);
    }
}
