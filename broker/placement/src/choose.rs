//! Which node takes this team?
//!
//! The first node in the [index](crate::score::Index) that the team's own wishes admit. The reasons
//! are data: the three best with their scores, and what kept the others out. Choosing changes
//! nothing, so choosing twice gives the same answer.

use std::collections::BTreeMap;
use usher_shared::id::{Label, NodeId};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::{Cause, Gate, PinStrength, ScoreView};

use crate::core::Core;
use crate::node::Node;
use crate::record::PinRecord;
use crate::refusal::Refusal;
use crate::score;
use crate::team::Team;
use crate::warmth::had_its_share;

/// How many of the best are kept as a reason.
const BEST: usize = 3;
/// How many of the nodes that were kept out are named.
const GATED_NAMED: usize = 8;
/// How many nodes that a team's wishes rule out are looked at to find better reasons, once a node was found.
const LOOK_FURTHER: usize = 16;

/// What a team asks of its node.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wish<'a> {
    pub(crate) region: Option<&'a Label>,
    pub(crate) labels: &'a BTreeMap<Label, Label>,
    pub(crate) pin: Option<&'a PinRecord>,
    /// The node that it must leave.
    pub(crate) leaving: Option<&'a NodeId>,
    pub(crate) cause: Cause,
    /// The connections that it will bring.
    pub(crate) needs: Needs,
}

/// Room for a team's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Needs {
    /// A node with so much room comes before one without.
    Rather(u32),
    /// Only a node with so much room: on another its clients would be refused next.
    Only(u32),
}

/// A choice with its reasons.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Decision {
    pub(crate) at: Timestamp,
    pub(crate) epoch: Epoch,
    pub(crate) cause: Cause,
    pub(crate) node: Option<NodeId>,
    pub(crate) from: Option<NodeId>,
    pub(crate) best: Vec<ScoreView>,
    pub(crate) gated: BTreeMap<Gate, u32>,
    pub(crate) gated_nodes: BTreeMap<NodeId, Gate>,
    pub(crate) nodes: u32,
}

impl Decision {
    /// Set when the chosen node was strained.
    pub(crate) fn last_resort(&self) -> Option<Gate> {
        let chosen = self.node.as_ref()?;
        self.best.iter().find(|score| score.node == *chosen)?.last_resort
    }

    /// What kept the nodes out, in words.
    pub(crate) fn gated_in_words(&self) -> String {
        if self.nodes == 0 {
            return "there are no nodes".to_owned();
        }
        let words: Vec<String> = self
            .gated
            .iter()
            .map(|(gate, count)| format!("{count} {}", gate_word(*gate)))
            .collect();
        format!("of {} nodes: {}", self.nodes, words.join(", "))
    }
}

fn gate_word(gate: Gate) -> &'static str {
    match gate {
        Gate::NotReady => "not ready",
        Gate::Cordoned => "cordoned",
        Gate::Draining => "draining",
        Gate::Silent => "silent",
        Gate::FullTeams => "full of teams",
        Gate::FullConnections => "full of connections",
        Gate::Descriptors => "out of file descriptors",
        Gate::Clock => "with a clock that is off by more than 5 s, or runs at another pace",
        Gate::Region => "in another region",
        Gate::Labels => "without the labels",
        Gate::Leaving => "the one to leave",
        Gate::Room => "without room for the team's connections",
        Gate::Young => "back lately and had its share",
        Gate::CpuCeiling => "above the CPU ceiling",
        Gate::Pressure => "under pressure",
        Gate::Unreachable => "out of reach for clients",
        Gate::Crashing => "dying again and again",
    }
}

impl Team {
    /// What this team asks of its node.
    pub(crate) fn wish<'a>(&'a self, cause: Cause, leaving: Option<&'a NodeId>, wall_ms: u64) -> Wish<'a> {
        Wish {
            region: self.region.as_ref(),
            labels: &self.labels,
            pin: self.pin.as_ref().filter(|pin| pin.until_wall_ms > wall_ms),
            leaving,
            cause,
            needs: Needs::Rather(self.brings.unwrap_or(1).max(1)),
        }
    }
}

impl Core {
    /// The least busy node that the wish admits, with the reasons.
    pub(crate) fn choose(&self, wish: &Wish<'_>, now: Timestamp) -> Decision {
        let mut search = Search::new(self, wish, now);
        if let Some(pin) = wish.pin {
            search.try_pinned(pin);
        }
        if !wish.pin.is_some_and(|pin| pin.strength == PinStrength::Hard) {
            search.walk();
        }
        search.finish()
    }

    /// Why a wish was not met, for the one who asked.
    pub(crate) fn refusal(
        &self,
        team: &usher_shared::id::TeamId,
        wish: &Wish<'_>,
        decision: &Decision,
    ) -> Refusal {
        // A silent node is replaced, and a new one starts, within about a lease.
        let retry_ms = self.settings.lease_ms / 2;
        match wish.pin {
            Some(pin) if pin.strength == PinStrength::Hard => Refusal::Pinned {
                team: team.clone(),
                node: pin.node.clone(),
                retry_ms,
            },
            _ => Refusal::NoNode {
                team: team.clone(),
                gated: decision.gated_in_words(),
                retry_ms,
            },
        }
    }
}

struct Search<'a> {
    core: &'a Core,
    wish: &'a Wish<'a>,
    now: Timestamp,
    chosen: Option<NodeId>,
    /// The first that only its share kept out, and the first that only its room did: better than nobody.
    young: Option<NodeId>,
    cramped: Option<NodeId>,
    best: Vec<ScoreView>,
    gated: BTreeMap<Gate, u32>,
    named: BTreeMap<NodeId, Gate>,
}

impl<'a> Search<'a> {
    fn new(core: &'a Core, wish: &'a Wish<'a>, now: Timestamp) -> Self {
        let named = core
            .index
            .gated
            .iter()
            .take(GATED_NAMED)
            .map(|(node, gate)| (node.clone(), *gate));
        Self {
            core,
            wish,
            now,
            chosen: None,
            young: None,
            cramped: None,
            best: Vec::new(),
            gated: core.index.gate_counts.clone(),
            named: named.collect(),
        }
    }

    fn try_pinned(&mut self, pin: &PinRecord) {
        let Some(node) = self.core.nodes.get(&pin.node).filter(|node| node.key.is_some()) else {
            return;
        };
        match self.ruled_out(node) {
            None => {
                self.chosen = Some(pin.node.clone());
                self.note_best(node);
            }
            Some(gate) => self.note_gated(node.id(), gate),
        }
    }

    fn walk(&mut self) {
        let mut looked_further = 0;
        for key in &self.core.index.order {
            if self.best.len() == BEST || looked_further == LOOK_FURTHER {
                break;
            }
            if self.chosen.is_some() {
                looked_further += 1;
            }
            let Some(node) = self.core.nodes.get(&key.node) else {
                continue;
            };
            if self.best.iter().any(|score| score.node == key.node) {
                continue;
            }
            if let Some(gate) = self.ruled_out(node) {
                self.note_gated(&key.node, gate);
                continue;
            }
            if let Some(gate) = self.passes_over(node) {
                let first = if gate == Gate::Young {
                    &mut self.young
                } else {
                    &mut self.cramped
                };
                first.get_or_insert_with(|| key.node.clone());
                self.note_gated(&key.node, gate);
                continue;
            }
            if self.chosen.is_none() && !self.is_worth_passing_over_for(node) {
                let young = self.young.take();
                self.fall_back_to(young);
            }
            self.chosen.get_or_insert_with(|| key.node.clone());
            self.note_best(node);
        }
        if self.chosen.is_none() {
            let better_than_nobody = self.young.take().or_else(|| self.cramped.take());
            self.fall_back_to(better_than_nobody);
        }
    }

    fn fall_back_to(&mut self, node: Option<NodeId>) {
        if let Some(node) = node.as_ref().and_then(|node| self.core.nodes.get(node)) {
            self.note_best(node);
        }
        self.chosen = node;
    }

    /// What the team's own wishes hold against a node.
    fn ruled_out(&self, node: &Node) -> Option<Gate> {
        if self.wish.leaving == Some(node.id()) {
            return Some(Gate::Leaving);
        }
        if self.wish.region.is_some() && self.wish.region != node.hello.region.as_ref() {
            return Some(Gate::Region);
        }
        let lacks = |(key, value): (&Label, &Label)| node.hello.labels.get(key) != Some(value);
        if self.wish.labels.iter().any(lacks) {
            return Some(Gate::Labels);
        }
        // Where it is it is served, or may be soon. Nobody is sent from there to where no client gets.
        let may_stay = matches!(self.wish.cause, Cause::Shed | Cause::Full | Cause::Knock);
        if may_stay && node.trust.is_doubtful() {
            return Some(Gate::Unreachable);
        }
        match self.wish.needs {
            Needs::Only(room) if self.lacks_room(node, room) => Some(Gate::Room),
            _ => None,
        }
    }

    /// What speaks for taking another one first.
    fn passes_over(&self, node: &Node) -> Option<Gate> {
        if let Needs::Rather(room) = self.wish.needs
            && self.lacks_room(node, room)
        {
            return Some(Gate::Room);
        }
        let (core, now) = (self.core, self.now);
        let had_its_share = self.wish.cause != Cause::Failover
            && had_its_share(node, &core.pool, core.placed, &core.settings, now);
        had_its_share.then_some(Gate::Young)
    }

    /// Whether a node that had its share is passed over for this one. It must have been here for clearly
    /// longer: of nodes that came together, as all do at a start, the score alone decides. And it must not be one
    /// that can hardly go on.
    fn is_worth_passing_over_for(&self, node: &Node) -> bool {
        let young = self.young.as_ref().and_then(|young| self.core.nodes.get(young));
        let warm_up_ms = self.core.settings.warm_up_ms;
        young.is_none_or(|young| {
            !node.strain.is_lasting()
                && node.trust.gate().is_none()
                && young.warmth.since >= node.warmth.since.plus(warm_up_ms)
        })
    }

    fn lacks_room(&self, node: &Node, room: u32) -> bool {
        score::room(node, &self.core.settings) < room
    }

    fn note_best(&mut self, node: &Node) {
        self.best
            .push(score::view(node, &self.core.pool, &self.core.settings));
    }

    fn note_gated(&mut self, node: &NodeId, gate: Gate) {
        *self.gated.entry(gate).or_default() += 1;
        if self.named.len() < GATED_NAMED {
            self.named.insert(node.clone(), gate);
        }
    }

    fn finish(self) -> Decision {
        Decision {
            at: self.now,
            epoch: Epoch::default(),
            cause: self.wish.cause,
            node: self.chosen,
            from: self.wish.leaving.cloned(),
            best: self.best,
            gated: self.gated,
            gated_nodes: self.named,
            nodes: u32::try_from(self.core.nodes.len()).unwrap_or(u32::MAX),
        }
    }
}
