//! Where teams are and how nodes are reached, for readers that must not wait for the event loop.
//!
//! Only the loop writes it, from [`Command::Route`](usher_placement::Command::Route) and
//! [`Command::Node`](usher_placement::Command::Node), after they have become durable. Each team points
//! at its node's slot, so a change of a node counts for all of its teams at once.

use dashmap::DashMap;
use parking_lot::RwLock;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use usher_placement::{NodeEntry, Route};
use usher_shared::id::{Incarnation, NodeId, TeamId};
use usher_shared::quantity::Epoch;
use usher_shared::secret::Key;
use usher_shared::way::Security;

use crate::keys::Keyring;

/// After so many teams that went the room that they took is looked at: seldom enough to cost nothing.
const LOOK_AT_ROOM: u64 = 4_096;
/// Room that is worth no shrinking, in entries.
const ROOM_KEPT: usize = 8_192;

/// Where teams are and how nodes are reached.
///
/// Both maps keep the standard library's keyed hash: team ids come from clients, and a hash that
/// can be guessed would let them pile up in one bucket.
#[derive(Debug)]
pub struct RouteTable {
    keys: Arc<Keyring>,
    nodes: DashMap<NodeId, Arc<NodeSlot>>,
    teams: DashMap<TeamId, TeamRoute>,
    /// Which bit stands for a team. Its key is drawn at the start, so that no client can make up teams that share one.
    sketch: RandomState,
    /// Teams taken out since the start.
    removed: AtomicU64,
}

/// Where one team is.
#[derive(Clone, Debug)]
pub struct TeamRoute {
    /// Its owner's slot.
    pub slot: Arc<NodeSlot>,
    /// Under which epoch.
    pub epoch: Epoch,
}

/// One node: what never changes, and what it said last.
#[derive(Debug)]
pub struct NodeSlot {
    /// The node.
    pub node: NodeId,
    /// The key of its tickets, under the newest kid.
    pub key: Key,
    reach: RwLock<Option<Arc<Reach>>>,
    /// Tickets given for it since they were last taken.
    tickets: AtomicU64,
    /// For which teams: a bit for each.
    teams: AtomicU64,
}

/// Tickets that were given for one node, and a bit for each of their teams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Given {
    /// How many tickets.
    pub tickets: u64,
    /// For which teams, as a sketch.
    pub teams: u64,
}

/// How a node is reached, cut up so that a URL is put together without searching.
#[derive(Debug)]
pub struct Reach {
    /// The process that tickets are for.
    pub incarnation: Incarnation,
    /// Whether a client may be sent there without asking the core.
    pub direct: bool,
    /// Whether it is reached over TLS.
    pub security: Security,
    /// The URL from `//` on, split where the team belongs.
    pieces: Vec<String>,
}

impl NodeSlot {
    /// How the node is reached just now; `None` when it is gone.
    #[must_use]
    pub fn reach(&self) -> Option<Arc<Reach>> {
        self.reach.read().clone()
    }

    /// A ticket was given for it. Two atomic steps, the second only for a team not seen since the last look.
    pub(crate) fn gave(&self, team_bit: u64) {
        self.tickets.fetch_add(1, Ordering::Relaxed);
        if self.teams.load(Ordering::Relaxed) & team_bit == 0 {
            self.teams.fetch_or(team_bit, Ordering::Relaxed);
        }
    }

    fn take_given(&self) -> Given {
        Given {
            tickets: self.tickets.swap(0, Ordering::Relaxed),
            teams: self.teams.swap(0, Ordering::Relaxed),
        }
    }
}

impl Reach {
    fn new(node: &NodeId, entry: &NodeEntry) -> Self {
        let whole = entry.url.for_node(node);
        let rest = &whole[entry.url.scheme().len() + 1..];
        Self {
            incarnation: entry.incarnation,
            direct: entry.direct,
            security: entry.url.security(),
            pieces: rest.split("{team}").map(str::to_owned).collect(),
        }
    }

    /// Appends the URL of `team`, from `//` on.
    pub fn write(&self, team: &TeamId, url: &mut String) {
        for (at, piece) in self.pieces.iter().enumerate() {
            if at > 0 {
                // No team id holds a character that a path would need escaped.
                url.push_str(team.as_str());
            }
            url.push_str(piece);
        }
    }
}

impl RouteTable {
    /// An empty table whose slots take their ticket keys from `keys`.
    #[must_use]
    pub fn new(keys: Arc<Keyring>) -> Self {
        Self {
            keys,
            nodes: DashMap::new(),
            teams: DashMap::new(),
            sketch: RandomState::new(),
            removed: AtomicU64::new(0),
        }
    }

    /// Counts a ticket for `team` at a node's slot.
    pub fn gave(&self, slot: &NodeSlot, team: &TeamId) {
        slot.gave(1 << (self.sketch.hash_one(team) % 64));
    }

    /// The tickets given since the last call, by node; nodes without any are left out.
    #[must_use]
    pub fn take_given(&self) -> Vec<(NodeId, Given)> {
        self.nodes
            .iter()
            .map(|slot| (slot.node.clone(), slot.take_given()))
            .filter(|(_, given)| given.tickets > 0)
            .collect()
    }

    /// Where `team` is, if the core has published it.
    #[must_use]
    pub fn team(&self, team: &TeamId) -> Option<TeamRoute> {
        self.teams.get(team).map(|route| route.clone())
    }

    /// The slot of `node`, if it is known.
    #[must_use]
    pub fn node(&self, node: &NodeId) -> Option<Arc<NodeSlot>> {
        self.nodes.get(node).map(|slot| Arc::clone(&slot))
    }

    /// Publishes where a team is; `None`: ask the core.
    pub fn set_team(&self, team: TeamId, route: Option<Route>) {
        match route {
            Some(route) => {
                let slot = self.slot(&route.node);
                self.teams.insert(
                    team,
                    TeamRoute {
                        slot,
                        epoch: route.epoch,
                    },
                );
            }
            None => {
                self.teams.remove(&team);
                let removed = self.removed.fetch_add(1, Ordering::Relaxed) + 1;
                if removed.is_multiple_of(LOOK_AT_ROOM) {
                    self.give_room_back();
                }
            }
        }
    }

    /// After a wave of names the table is as large as it was at its height, which a map never mends by itself.
    fn give_room_back(&self) {
        if self.teams.capacity() > 4 * self.teams.len() + ROOM_KEPT {
            self.teams.shrink_to_fit();
        }
    }

    /// Publishes how a node is reached; `None`: not at all.
    pub fn set_node(&self, node: &NodeId, entry: Option<&NodeEntry>) {
        let reach = entry.map(|entry| Arc::new(Reach::new(node, entry)));
        let gone = reach.is_none();
        *self.slot(node).reach.write() = reach;
        if gone {
            // While teams still point at it the slot stays, or they would miss the node's return.
            self.nodes.remove_if(node, |_, slot| Arc::strong_count(slot) == 1);
        }
    }

    fn slot(&self, node: &NodeId) -> Arc<NodeSlot> {
        let slot = self.nodes.entry(node.clone()).or_insert_with(|| {
            Arc::new(NodeSlot {
                node: node.clone(),
                key: self.keys.current_key(node),
                reach: RwLock::new(None),
                tickets: AtomicU64::new(0),
                teams: AtomicU64::new(0),
            })
        });
        Arc::clone(&slot)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::secret::MasterKey;

    fn table() -> RouteTable {
        RouteTable::new(Arc::new(Keyring::new(MasterKey::from_bytes([1; 32]))))
    }

    fn entry(incarnation: u128) -> NodeEntry {
        NodeEntry {
            incarnation: Incarnation::from_bits(incarnation),
            url: "wss://{node}.example/{team}/x/{team}".parse().unwrap(),
            direct: true,
        }
    }

    fn route(node: &str, epoch: u64) -> Option<Route> {
        Some(Route {
            node: node.parse().unwrap(),
            epoch: Epoch::new(epoch).unwrap(),
        })
    }

    #[test]
    fn a_change_of_a_node_counts_for_all_of_its_teams_at_once() {
        let table = table();
        let (node, team): (NodeId, TeamId) = ("n1".parse().unwrap(), "T1".parse().unwrap());
        table.set_team(team.clone(), route("n1", 5));
        assert!(table.team(&team).unwrap().slot.reach().is_none());
        table.set_node(&node, Some(&entry(1)));
        let held = table.team(&team).unwrap();
        assert_eq!(held.slot.reach().unwrap().incarnation, Incarnation::from_bits(1));
        table.set_node(&node, None);
        assert!(held.slot.reach().is_none());
        table.set_node(&node, Some(&entry(2)));
        assert_eq!(held.slot.reach().unwrap().incarnation, Incarnation::from_bits(2));
    }

    #[test]
    fn a_url_is_put_together_from_ids_alone() {
        let table = table();
        let node: NodeId = "n1".parse().unwrap();
        table.set_node(&node, Some(&entry(1)));
        let mut url = String::new();
        let slot = table.node(&node).unwrap();
        slot.reach().unwrap().write(&"T1".parse().unwrap(), &mut url);
        assert_eq!(url, "//n1.example/T1/x/T1");
    }

    #[test]
    fn tickets_are_counted_by_node_and_their_teams_told_apart() {
        let table = table();
        let node: NodeId = "n1".parse().unwrap();
        table.set_node(&node, Some(&entry(1)));
        let slot = table.node(&node).unwrap();
        for _ in 0..3 {
            table.gave(&slot, &"T1".parse().unwrap());
        }
        let given = table.take_given();
        assert_eq!(given.len(), 1);
        assert_eq!((given[0].1.tickets, given[0].1.teams.count_ones()), (3, 1));
        assert!(table.take_given().is_empty());
        for serial in 0..500 {
            table.gave(&slot, &format!("t{serial}").parse().unwrap());
        }
        let many = table.take_given()[0].1;
        assert!(many.tickets == 500 && many.teams.count_ones() > 50, "{many:?}");
    }

    #[test]
    fn a_wave_of_names_gives_its_room_back() {
        let table = table();
        let team = |number: u64| format!("T{number}").parse::<TeamId>().unwrap();
        for number in 0..50_000 {
            table.set_team(team(number), route("n1", 5));
        }
        assert!(table.teams.capacity() >= 50_000);
        for number in 0..50_000 {
            table.set_team(team(number), None);
        }
        let room = table.teams.capacity();
        assert!(room < 20_000, "{room}");
    }

    #[test]
    fn a_node_without_teams_leaves_nothing_behind() {
        let table = table();
        let node: NodeId = "n1".parse().unwrap();
        table.set_node(&node, Some(&entry(1)));
        table.set_node(&node, None);
        assert!(table.node(&node).is_none());
    }
}
