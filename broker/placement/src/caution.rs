//! May silence be believed while much of the pool is silent at once?
//!
//! Then it may be the broker that is cut off, and nothing is given away on silence alone
//! (self-preservation). It has an end by itself: what is proven or refused is dead whatever the state, a
//! client that was there in vain or asks again and again is helped, and a bound in time is the end of the rest.

use std::collections::BTreeMap;
use usher_shared::id::{Label, NodeId, TeamId};
use usher_shared::lease;
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::SelfPreservationView;

use crate::core::Core;
use crate::liveness::Mode;
use crate::node::{Node, Proof, Seen, Silence};
use crate::notice::{Notice, Preservation};

/// Asks for a team of a silent node that count as nobody having got there.
const ASKS: u32 = 3;
/// Over so long at least: three pages that open at once are three clients, and say nothing.
const ASKS_OVER_MS: u64 = 5_000;
/// Asks of one team within this are one.
const ASK_APART_MS: u64 = 1_000;
/// Teams whose asks are counted; those beyond wait for the bound in time.
const ASKED_TEAMS: usize = 100_000;

/// Asks for teams of silent nodes by clients without an old ticket.
#[derive(Clone, Debug, Default)]
pub(crate) struct Asked(BTreeMap<TeamId, Asks>);

#[derive(Clone, Copy, Debug)]
struct Asks {
    first: Timestamp,
    last: Timestamp,
    count: u32,
}

impl Asked {
    /// Counts one. Whether the team was asked for so often that nobody can have got to its node.
    fn again(&mut self, team: &TeamId, now: Timestamp) -> bool {
        let Some(asks) = self.0.get_mut(team) else {
            if self.0.len() < ASKED_TEAMS {
                let asks = Asks {
                    first: now,
                    last: now,
                    count: 1,
                };
                self.0.insert(team.clone(), asks);
            }
            return false;
        };
        if now.since(asks.last) >= ASK_APART_MS {
            asks.last = now;
            asks.count += 1;
        }
        asks.count >= ASKS && now.since(asks.first) >= ASKS_OVER_MS
    }
}

impl Core {
    pub(crate) fn is_preserving(&self) -> bool {
        matches!(self.mode, Mode::SelfPreservation { .. })
    }

    /// Begins or ends self-preservation by how much of the pool is silent, and by its bound in time.
    pub(crate) fn weigh_silence(&mut self, now: Timestamp) {
        let (silent, total) = self.count_silent(now);
        let too_many = self.too_many(&silent, total);
        let count = u32::try_from(silent.len()).unwrap_or(u32::MAX);
        let somebody_can = !self.index.order.is_empty();
        let bound = self.settings.preserve_ms();
        let change = match (&mut self.mode, too_many) {
            (Mode::Normal, true) => {
                self.mode = Mode::SelfPreservation {
                    since: now,
                    until: now.plus(bound),
                };
                Preservation::Begun { for_ms: bound }
            }
            (Mode::SelfPreservation { .. }, false) => {
                self.mode = Mode::Normal;
                // Some are back, so the others may be on their way: what cut them all off has ended.
                self.begin_patience_anew(now);
                Preservation::Recovered
            }
            (Mode::SelfPreservation { since, until }, true) => {
                if !somebody_can {
                    // Nothing could be given to anybody, so nothing is gained by an end.
                    (*since, *until) = (now, now.plus(bound));
                }
                if now < *until || planted::is(Bug::PreservationNeverEnds) {
                    return;
                }
                self.mode = Mode::Released;
                Preservation::Expired
            }
            (Mode::Released, _) if count == 0 => {
                self.mode = Mode::Normal;
                return;
            }
            _ => return,
        };
        self.asked = Asked::default();
        self.notice(Notice::SelfPreservation {
            change,
            silent: count,
            nodes: total,
        });
    }

    /// A node is back: what cut it off may have ended for the others, too, and they have a lease to come
    /// back in, up to twice the bound in all.
    pub(crate) fn await_the_others(&mut self, now: Timestamp) {
        let patience = lease::dead_after_ms(self.settings.lease_ms);
        let most = 2 * self.settings.preserve_ms();
        if let Mode::SelfPreservation { since, until } = &mut self.mode {
            *until = (*until).max(now.plus(patience).min(since.plus(most)));
        }
    }

    /// The zones of the nodes that are silent, or died without proof within two leases; and how many
    /// nodes there are beside. Who holds nothing does not count: its silence moves nobody, and a name can
    /// be made up.
    fn count_silent(&self, now: Timestamp) -> (Vec<Option<&Label>>, u32) {
        let mut silent = Vec::new();
        let mut total: u32 = 0;
        let window = 2 * self.settings.lease_ms;
        for node in self.nodes.values() {
            let counts = match &node.seen {
                Seen::Dead {
                    proof: Proof::Proven, ..
                } => continue,
                Seen::Dead { since, .. } if now.since(*since) > window || !node.had_teams => continue,
                Seen::Dead { .. } => true,
                _ if node.teams.is_empty() => continue,
                Seen::Linked {
                    silence: Silence::Heard,
                    ..
                } => false,
                // A process that is on its way back has shown that it lives.
                Seen::Joining { heard, .. } => now.since(*heard) > 2 * self.settings.heartbeat_ms,
                _ => true,
            };
            total += 1;
            if counts {
                silent.push(node.hello.zone.as_ref());
            }
        }
        (silent, total)
    }

    fn too_many(&self, silent: &[Option<&Label>], total: u32) -> bool {
        let one_zone = silent
            .first()
            .is_some_and(|zone| zone.is_some() && silent.iter().all(|other| other == zone));
        let share = silent.len() as u64 * 1_000_000 > self.settings.silent_share_ppm * u64::from(total);
        silent.len() > 1 && share && !one_zone && !planted::is(Bug::NoSelfPreservation)
    }

    /// An operator says that the silent nodes are dead indeed.
    pub(crate) fn release(&mut self, now: Timestamp) {
        if self.is_preserving() {
            let (silent, nodes) = self.count_silent(now);
            let silent = u32::try_from(silent.len()).unwrap_or(u32::MAX);
            self.mode = Mode::Released;
            self.asked = Asked::default();
            self.notice(Notice::SelfPreservation {
                change: Preservation::Released,
                silent,
                nodes,
            });
            self.watch_nodes(now);
        }
    }

    /// Whether a client that shows no old ticket asks for a team of a silent node once more, after others
    /// have asked in vain. Whether they were one client or three nobody can tell: after a whole lease of
    /// silence it costs a reconnect to be wrong, and nobody a place to be right.
    pub(crate) fn asked_in_vain(&mut self, team: &TeamId, node: &NodeId, now: Timestamp) -> bool {
        let Some(node) = self.nodes.get(node) else {
            return false;
        };
        let lease_over = now.since(node.heard()) >= lease::dead_after_ms(node.lease_ms);
        self.is_preserving() && lease_over && self.asked.again(team, now)
    }

    /// Self-preservation for people, while it is on.
    pub(crate) fn preservation(&self, now: Timestamp) -> Option<SelfPreservationView> {
        let Mode::SelfPreservation { since, until } = self.mode else {
            return None;
        };
        let (silent, nodes) = self.count_silent(now);
        Some(SelfPreservationView {
            silent: u32::try_from(silent.len()).unwrap_or(u32::MAX),
            nodes,
            since_ms: now.since(since),
            ends_in_ms: until.since(now),
        })
    }
}

impl Node {
    /// Whether its address refused since its link closed, which is believed whatever the state.
    pub(crate) fn is_refusing(&self) -> bool {
        matches!(
            self.seen,
            Seen::Unlinked {
                hint: crate::node::Hint::Refused,
                ..
            }
        )
    }
}
