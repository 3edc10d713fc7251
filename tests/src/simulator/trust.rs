//! Nodes that are heard well and that no client gets to, nodes that die again and again, and machines that never
//! come back: what is wrong with them, and whether the broker finds out.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use usher_placement::Event;
use usher_shared::id::NodeId;
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{Cause, Gate};

use super::agenda::{Happens, Which};
use super::clock::Real;
use super::plan::Kind;
use super::world::{Phase, World};

/// Teams that come back in vain, and for how long, until the broker must have seen it: twice its patience.
const TEAMS: usize = 3;
const SEEN_AFTER_MS: u64 = 12_000;
/// Who came back earlier than that may have gone for good.
const STILL_MS: u64 = 20_000;
/// New teams that may still try the way within [`TRIED_IN_MS`].
const TRIED: usize = 4;
const TRIED_IN_MS: u64 = 9_000;
/// Deaths so close together that the next minute's new teams are no business of the node.
const DEATHS: usize = 3;
const DEATHS_IN_MS: u64 = 60_000;
const HELD_BACK_MS: u64 = 20_000;
/// How often a node in a loop dies.
const LOOPS: u32 = 6;
/// Of four nodes: too many to be believed by their silence.
const GONE_OF: usize = 4;

/// What the checks remember of the ways to nodes.
#[derive(Default)]
pub(super) struct Ways {
    /// Who came back with a ticket for a node since anybody got through, and since when.
    vain: BTreeMap<NodeId, (Real, BTreeMap<usize, Real>)>,
    /// When new teams were given to it meanwhile.
    tried: BTreeMap<NodeId, VecDeque<Real>>,
    /// Nodes that got SIGTERM: what becomes of them is no crash.
    stopping: BTreeSet<NodeId>,
    deaths: BTreeMap<NodeId, VecDeque<Real>>,
    up_since: BTreeMap<NodeId, Real>,
}

impl World {
    /// Tickets were given: as the broker's loop says it, once a second.
    pub(super) fn tell_given(&mut self, now: Timestamp) {
        let Some(broker) = self.main.as_mut() else { return };
        let over_ms = now.since(broker.told_given);
        if over_ms < 1_000 {
            return;
        }
        broker.told_given = now;
        for (node, (tickets, teams)) in std::mem::take(&mut broker.given) {
            let sent = Event::Sent {
                node,
                tickets,
                teams,
                over_ms,
            };
            self.tell(Which::Main, sent);
        }
    }

    pub(super) fn count_given(&mut self, node: &NodeId, team: usize) {
        if let Some(broker) = self.main.as_mut() {
            let given = broker.given.entry(node.clone()).or_default();
            given.0 += 1;
            given.1 |= 1 << (team % 64);
        }
    }

    /// A client comes back with a ticket for the process that owns its team now.
    pub(super) fn came_back(&mut self, node: &NodeId, client: usize) {
        let team = self.clients[client].team;
        let now = self.now;
        let vain = self
            .ways
            .vain
            .entry(node.clone())
            .or_insert((now, BTreeMap::new()));
        vain.1.insert(team, now);
    }

    /// Somebody got to a node, or is heard there.
    pub(super) fn got_through(&mut self, node: usize) {
        let id = self.machines[node].id.clone();
        self.ways.vain.remove(&id);
    }

    /// The broker knows that a process died.
    pub(super) fn note_death(&mut self, node: &NodeId) {
        let now = self.now;
        self.ways.vain.remove(node);
        if self.ways.stopping.contains(node) {
            return;
        }
        let deaths = self.ways.deaths.entry(node.clone()).or_default();
        deaths.push_back(now);
        if deaths.len() > DEATHS {
            deaths.pop_front();
        }
    }

    pub(super) fn note_stopping(&mut self, node: NodeId) {
        self.ways.stopping.insert(node);
    }

    pub(super) fn note_up(&mut self, node: &NodeId) {
        self.ways.stopping.remove(node);
        self.ways.up_since.insert(node.clone(), self.now);
    }

    pub(super) fn broker_forgets_ways(&mut self) {
        self.ways = Ways::default();
    }

    /// S18: new teams do not go where clients come back from in vain, nor to what dies again and again, unless
    /// nothing else is left.
    pub(super) fn check_trusted(&mut self, node: &NodeId, cause: Cause, last_resort: Option<Gate>) {
        match last_resort {
            Some(Gate::Unreachable) => self.count("a node out of reach for a last resort"),
            Some(Gate::Crashing) => self.count("a crashing node for a last resort"),
            _ => {}
        }
        if !matches!(cause, Cause::Connect | Cause::Put) || last_resort.is_some() {
            return;
        }
        let now = self.now;
        if let Some((since, teams)) = self.ways.vain.get(node)
            && teams.values().filter(|last| now - **last < STILL_MS).count() >= TEAMS
            && now - since > SEEN_AFTER_MS + 2 * super::client::PING_MS
        {
            let tried = self.ways.tried.entry(node.clone()).or_default();
            tried.push_back(now);
            while tried.front().is_some_and(|first| now - first > TRIED_IN_MS) {
                tried.pop_front();
            }
            if tried.len() > TRIED {
                self.fail(format!("S18: new teams go to {node}, where nobody gets to"));
            }
        }
        let close = self
            .ways
            .deaths
            .get(node)
            .is_some_and(|deaths| deaths.len() == DEATHS && now - deaths[0] < DEATHS_IN_MS);
        let young = self
            .ways
            .up_since
            .get(node)
            .is_some_and(|up| now - up < HELD_BACK_MS);
        if close && young {
            self.fail(format!(
                "S18: a new team goes to {node}, which died {DEATHS} times in a minute"
            ));
        }
    }

    /// A node whose process does not stay up.
    pub(super) fn crash_loop(&mut self, node: usize, times: u32) {
        if self.phase == Phase::Healed {
            return;
        }
        self.count("a node died again and again");
        self.kill(node, true, Some(300));
        if times > 0 {
            let after = self.dice.within(2_000, 5_000);
            let times = times - 1;
            self.soon(after, Happens::CrashAgain { node, times });
        }
    }

    pub(super) fn begin_crash_loop(&mut self, node: usize) {
        self.crash_loop(node, LOOPS);
    }

    /// What stays wrong when everything else heals. Whether a node was one of those.
    pub(super) fn stay_wrong(&mut self) {
        let nodes = self.machines.len();
        if self.has(Kind::OutOfReach) && nodes > 1 {
            self.count("a node stayed out of its clients' reach");
            self.out_of_reach = Some(0);
            self.machines[0].client_cut = true;
            self.clients_notice(0, 20_000);
        }
        if self.has(Kind::Gone) && nodes >= GONE_OF {
            self.count("machines that never came back");
            for node in 1..nodes / 2 + 1 {
                self.machines[node].is_off = true;
                self.machines[node].gone = true;
                self.kill(node, false, None);
            }
        }
    }

    /// Whether a client cannot be expected to have come back: it dials one machine for ever.
    pub(super) fn dials_in_vain_for_ever(&self, client: usize) -> bool {
        let known = &self.clients[client];
        known.manner == super::client::Manner::Redialler
            && known.dials().is_some_and(|node| {
                self.out_of_reach == Some(node) || self.machines[node].gone || self.namesake_ended(node)
            })
    }
}
