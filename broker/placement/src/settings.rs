//! The numbers that decisions depend on, each with its reason.

use usher_shared::lease::{self, LeaseError};
use usher_shared::quantity::RETURNS_PER_S;

/// The numbers that decisions depend on.
///
/// The three shares are what `cargo run --release -p usher-placement --example shares` says: six nodes, 600 teams that
/// come and go, the busiest node over the mean as teams / connections / CPU (1.00 is even). Rooms: one team in fifty
/// has 600 connections; hot teams: one in fifty costs 60 times the CPU of the others.
///
/// | teams | connections | CPU | even | rooms | hot teams | even, burst | rooms, burst |
/// | --- | --- | --- | --- | --- | --- | --- | --- |
/// | 50 % | 0 % | 50 % | 1.00 / 1.00 / 1.00 | 1.00 / 1.54 / 1.02 | 1.15 / 1.15 / 1.38 | 1.02 / 1.02 / 1.02 | 1.02 / 1.57 / 1.03 |
/// | 40 % | 20 % | 40 % | 1.00 / 1.00 / 1.00 | 1.15 / 1.48 / 1.13 | 1.08 / 1.08 / 1.30 | 1.02 / 1.02 / 1.02 | 1.16 / 1.31 / 1.14 |
/// | 34 % | 33 % | 33 % | 1.00 / 1.00 / 1.00 | 1.23 / 1.28 / 1.20 | 1.06 / 1.06 / 1.50 | 1.02 / 1.02 / 1.02 | 1.29 / 1.35 / 1.26 |
/// | 25 % | 50 % | 25 % | 1.00 / 1.00 / 1.00 | 1.31 / 1.28 / 1.29 | 1.05 / 1.05 / 1.34 | 1.02 / 1.02 / 1.02 | 1.44 / 1.30 / 1.40 |
/// | 20 % | 20 % | 60 % | 1.00 / 1.00 / 1.00 | 1.20 / 1.22 / 1.18 | 1.15 / 1.15 / 1.28 | 1.02 / 1.02 / 1.02 | 1.16 / 1.26 / 1.14 |
///
/// With 40/20/40 no figure is the worst of its column: more for connections evens out rooms little, since a team moves as
/// a whole, and costs the spread of teams, which is what memory and reconnects go by. How full a node is counts beside
/// these shares, by the room that it has left.
#[derive(Clone, Debug)]
pub struct Settings {
    /// How long a lease lasts.
    pub lease_ms: u64,
    /// How often a node reports.
    pub heartbeat_ms: u64,
    /// After how long without a connection an auto-created team is forgotten.
    pub forget_ms: u64,
    /// The most teams.
    pub max_teams: usize,
    /// The most nodes, dead ones included.
    pub max_nodes: usize,
    /// New names that may come at once, if no more nodes than that are at work: larger pools than this seldom
    /// start in one moment, and what comes beyond it comes in within minutes.
    pub new_names: u64,
    /// New names a second beyond that.
    pub new_names_per_s: u64,
    /// Team load's part of the score, in parts per million.
    pub team_share_ppm: u64,
    /// The connections' part of the score, in parts per million.
    pub connection_share_ppm: u64,
    /// CPU's part of the score, in parts per million.
    pub cpu_share_ppm: u64,
    /// Below this mean load, counted in default weights, differences in teams count less: with two
    /// teams in a pool, one team more is not a node twice as busy.
    pub load_floor: u64,
    /// Below this mean of connections, differences in connections count less: the first teams of a pool
    /// may be of any size.
    pub connection_floor: u64,
    /// CPU above this part of a node's cores counts as strain, in parts per million.
    pub cpu_ceiling_ppm: u64,
    /// What strain adds to the score at once, in parts per million: about what half a mean node scores. Two nodes
    /// that tell of it a heartbeat apart differ by that much in between.
    pub strain_ppm: u64,
    /// What strain adds once it has lasted, in parts per million: with it a node gets nothing new unless the
    /// others have more than twice the mean.
    pub strain_lasting_ppm: u64,
    /// The half-life in which expected CPU fades, the same as that of the nodes' average; strain and the
    /// counts of late placements rise and fall with it, too.
    pub half_life_ms: u64,
    /// The half-life in which expected connections fade: clients come within seconds, and a report counts
    /// them as they come.
    pub arrive_half_life_ms: u64,
    /// Weights that must be known before a team's expected CPU is believed.
    pub cost_min_weights: u64,
    /// The most CPU that one default weight is expected to cost, in millicores.
    pub cost_cap_millicores: u64,
    /// The most connections that one default weight is expected to bring.
    pub connections_cap: u64,
    /// In this time doubles what a node may take in a row that joined, was uncordoned or undrained; 0: it
    /// may take any number at once.
    pub warm_up_ms: u64,
    /// What it may take in a row at first: a pool that starts empty must not stall.
    pub warm_up_teams: u64,
    /// Clock difference between a node and the broker beyond which its tickets would not fit.
    pub wall_skew_ms: u64,
    /// Part of the nodes that may be silent at once before self-preservation, in parts per million.
    pub silent_share_ppm: u64,
    /// How long self-preservation lasts at most. What cuts a broker off from a third of its nodes and not from
    /// the rest is over within a minute, or it is they who are gone; by then every silent node has
    /// outlived its lease nine times, and the cost of being wrong is a reconnect.
    pub preserve_ms: u64,
    /// Connections a second moved to each ready target, unless an operation says otherwise.
    pub rate_per_target: u64,
    /// How long a moved team's connections may take to leave at their slot, on top of the slot.
    pub leave_ms: u64,
    /// How long a target may take to make room for a team before another is chosen.
    pub prepare_ms: u64,
    /// How long after its last connection left an operation still counts arrivals.
    pub settle_ms: u64,
    /// How long a client may take to come back before it counts as one that may not: one that follows
    /// `retry_ms` is back within a second, libraries with a back-off of their own within a few.
    pub return_ms: u64,
    /// So many must have had that time before anything is concluded: of a handful all may have gone home.
    pub returns_least: u32,
    /// A team of at most so many connections goes in one slot, unless a rate was asked for: a team on two
    /// nodes does not hear itself. Clients of a dead node, which nobody paces, come back at more than this a
    /// second.
    pub team_at_once: u32,
    /// From a team that is more than may be away at once so many go first, to show that they arrive ...
    pub first_to_show: u32,
    /// ... and the rest once so many of them have.
    pub shown_by: u32,
    /// How often a node is told again that what is left of an operation is to wait.
    pub renew_hold_ms: u64,
    /// How long one is told so at most that no operator drains, or whose first have not shown that they arrive.
    pub hold_most_ms: u64,
    /// How long a node may take to count its connections before its last heartbeat is believed instead.
    pub count_ms: u64,
    /// How often the progress of an operation is written: what a crash of the broker may forget of it.
    pub progress_ms: u64,
    /// How long an operator's drain or cordon of a node that is gone is remembered: maintenance takes hours.
    pub keep_wish_ms: u64,
    /// Decisions kept for `why`, over all teams.
    pub decisions: usize,
    /// Ended operations kept.
    pub operations: usize,
    /// File descriptors that a node must have left to be given teams.
    pub descriptor_reserve: u32,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            lease_ms: 6_000,
            heartbeat_ms: 1_000,
            forget_ms: 600_000,
            max_teams: 2_000_000,
            max_nodes: 10_000,
            new_names: 256,
            new_names_per_s: 4,
            team_share_ppm: 400_000,
            connection_share_ppm: 200_000,
            cpu_share_ppm: 400_000,
            load_floor: 10,
            connection_floor: 50,
            cpu_ceiling_ppm: 900_000,
            strain_ppm: 500_000,
            strain_lasting_ppm: 1_000_000,
            half_life_ms: 15_000,
            arrive_half_life_ms: 2_000,
            cost_min_weights: 100,
            cost_cap_millicores: 50,
            connections_cap: 50,
            warm_up_ms: 60_000,
            warm_up_teams: 16,
            wall_skew_ms: 5_000,
            silent_share_ppm: 300_000,
            preserve_ms: 60_000,
            rate_per_target: RETURNS_PER_S.into(),
            leave_ms: 10_000,
            prepare_ms: 3_000,
            settle_ms: 5_000,
            return_ms: 5_000,
            returns_least: 5,
            team_at_once: 2_000,
            first_to_show: 10,
            shown_by: 3,
            renew_hold_ms: 10_000,
            hold_most_ms: 600_000,
            count_ms: 1_000,
            progress_ms: 500,
            keep_wish_ms: 86_400_000,
            decisions: 100_000,
            operations: 100,
            descriptor_reserve: 64,
        }
    }
}

/// Numbers that do not go together.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SettingsError {
    /// A lease that cannot be kept, or cannot be fenced in time.
    #[error(transparent)]
    Lease(#[from] LeaseError),
    /// A heartbeat outside 100 ms to 60 s.
    #[error("heartbeat_ms must be from 100 to 60000; it is {heartbeat_ms}")]
    Heartbeat {
        /// The heartbeat.
        heartbeat_ms: u64,
    },
}

impl Settings {
    /// Checks that nodes can keep such a lease, and have stopped before they count as dead.
    ///
    /// # Errors
    /// What does not hold.
    pub fn check(&self) -> Result<(), SettingsError> {
        if !(100..=60_000).contains(&self.heartbeat_ms) {
            return Err(SettingsError::Heartbeat {
                heartbeat_ms: self.heartbeat_ms,
            });
        }
        Ok(lease::check(self.lease_ms, self.heartbeat_ms)?)
    }

    /// How long self-preservation lasts at most; never less than a silent node's lease.
    #[must_use]
    pub fn preserve_ms(&self) -> u64 {
        self.preserve_ms.max(lease::dead_after_ms(self.lease_ms))
    }

    /// How many of an operation's connections may be away at once: a quarter, so that far less than half of
    /// them are gone by the time that it is clear that nobody arrives.
    #[must_use]
    pub const fn away_most(&self, connections: u32) -> u32 {
        let quarter = connections / 4;
        if quarter > 5 { quarter } else { 5 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_defaults_hold() {
        assert_eq!(Settings::default().check(), Ok(()));
    }

    #[test]
    fn a_lease_that_cannot_be_kept_is_refused() {
        let short = Settings {
            lease_ms: 3_999,
            ..Settings::default()
        };
        assert!(matches!(short.check(), Err(SettingsError::Lease(_))));
        let hasty = Settings {
            heartbeat_ms: 99,
            ..Settings::default()
        };
        assert_eq!(hasty.check(), Err(SettingsError::Heartbeat { heartbeat_ms: 99 }));
    }
}
