//! Is a node alive, and since when not?
//!
//! Three kinds of evidence. Proof: its parent reported the exit, or its successor holds its lock (see
//! [`crate::identity`]); acted on at once. A hint: its link closed and its probe address refuses; inbound teams
//! move at once, exclusive effects wait for the lease. Silence: waits for the lease. Neither is
//! acted on just after a start, and silence not while too much of the pool is silent at once ([`crate::caution`]).

use usher_shared::id::{Incarnation, NodeId};
use usher_shared::lease;
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{BrokerState, ProbeState};

use crate::command::Command;
use crate::core::Core;
use crate::event::ProbeOutcome;
use crate::node::{Hint, Node, Proof, Seen, Silence};
use crate::notice::{Evidence, MoveOutcome, Notice};

/// How long after a probe that found somebody, or heard nothing, the address is tried again.
const PROBE_AGAIN_MS: u64 = 500;

/// How freely owners may change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mode {
    /// As the evidence says.
    Normal,
    /// On proof only: the broker started, or stood still, and has not heard everyone yet.
    Grace {
        /// When it ends at the latest.
        until: Timestamp,
    },
    /// Not on silence: too many nodes fell silent at once, so it may be the broker that is cut off.
    SelfPreservation {
        /// When it began, or when somebody was last heard who could take their teams.
        since: Timestamp,
        /// When it ends by itself.
        until: Timestamp,
    },
    /// An operator, or the bound in time, said that the silent nodes are dead indeed; until the pool is whole again.
    Released,
}

impl Core {
    pub(crate) fn state(&self) -> BrokerState {
        match self.mode {
            Mode::Normal | Mode::Released => BrokerState::Ready,
            Mode::Grace { .. } => BrokerState::Grace,
            Mode::SelfPreservation { .. } => BrokerState::SelfPreservation,
        }
    }

    /// Whether owners may change for another reason than a proven death.
    pub(crate) fn may_change_owners(&self) -> bool {
        !matches!(self.mode, Mode::Grace { .. })
    }

    /// The broker stood still for longer than half a lease: everyone gets as long as after a start.
    pub(crate) fn begin_grace(&mut self, now: Timestamp) {
        let lease_ms = self.nodes.values().map(|node| node.lease_ms).max();
        let Some(lease_ms) = lease_ms else { return };
        // As after a start: nodes that have not come since a longer lease was set have it in no record.
        let lease_ms = lease_ms.max(self.settings.lease_ms);
        for node in self.nodes.values_mut() {
            node.clock_pace.begin();
            match &mut node.seen {
                Seen::Expected { heard }
                | Seen::Joining { heard, .. }
                | Seen::Linked { heard, .. }
                | Seen::Unlinked { heard, .. } => *heard = now,
                Seen::Dead { .. } => {}
            }
        }
        self.begin_patience_anew(now);
        self.mode = Mode::Grace {
            until: now.plus(lease::dead_after_ms(lease_ms)),
        };
    }

    /// Every node gets a whole lease from now on before its silence counts as death.
    pub(crate) fn begin_patience_anew(&mut self, now: Timestamp) {
        self.patient_since = now;
        for node in self.nodes.values_mut() {
            if let Seen::Unlinked { hint, probe_at, .. } = &mut node.seen {
                // What refused then may answer by now: it is asked again.
                *hint = Hint::None;
                *probe_at = Some(now);
            }
        }
    }

    /// The grace is over as soon as every node that was known has reported.
    pub(crate) fn end_grace_early(&mut self) {
        let all_in = self.nodes.values().all(|node| node.is_linked() || node.is_dead());
        if all_in && matches!(self.mode, Mode::Grace { .. }) {
            self.end_grace();
        }
    }

    fn end_grace(&mut self) {
        self.mode = Mode::Normal;
        let known = self.nodes.len();
        let reported = self.nodes.values().filter(|node| node.is_linked()).count();
        self.notice(Notice::GraceOver {
            reported: u32::try_from(reported).unwrap_or(u32::MAX),
            known: u32::try_from(known).unwrap_or(u32::MAX),
        });
    }

    /// Asks whether anybody listens where the node did.
    pub(crate) fn probe(&mut self, id: &NodeId) {
        if let Some(node) = self.nodes.get(id) {
            let (incarnation, address) = (node.incarnation(), node.hello.probe.clone());
            self.command(Command::Probe {
                node: id.clone(),
                incarnation,
                address,
            });
        }
    }

    /// Probes again where the last answer may have come from a process that was just dying.
    fn probe_again(&mut self, now: Timestamp) {
        let mut due = Vec::new();
        for (id, node) in &mut self.nodes {
            if let Seen::Unlinked { probe_at, .. } = &mut node.seen
                && probe_at.is_some_and(|at| at <= now)
            {
                *probe_at = None;
                due.push(id.clone());
            }
        }
        for id in due {
            self.probe(&id);
        }
    }

    pub(crate) fn probed(
        &mut self,
        id: &NodeId,
        incarnation: Incarnation,
        outcome: ProbeOutcome,
        now: Timestamp,
    ) {
        let Some(node) = self
            .nodes
            .get_mut(id)
            .filter(|node| node.incarnation() == incarnation)
        else {
            return;
        };
        let Seen::Unlinked { hint, probe_at, .. } = &mut node.seen else {
            return;
        };
        if outcome == ProbeOutcome::Refused && node.probe_state == ProbeState::Proven {
            *hint = Hint::Refused;
            self.watch_nodes(now);
        } else {
            *probe_at = Some(now.plus(PROBE_AGAIN_MS));
        }
    }

    /// Looks at every node: who missed heartbeats, whose time is over.
    pub(crate) fn watch_nodes(&mut self, now: Timestamp) {
        self.probe_again(now);
        if let Mode::Grace { until } = self.mode {
            if now < until {
                return;
            }
            self.end_grace();
        }
        let patience = 2 * self.settings.heartbeat_ms;
        let patient_since = self.patient_since;
        let (mut fell_silent, mut over, mut gone) = (Vec::new(), Vec::new(), Vec::new());
        for (id, node) in &mut self.nodes {
            let heard = node.heard();
            // What an operator wants of a name outlasts its process.
            let kept = node.wish() != crate::node::Intent::Active;
            let mut dead_after_ms = lease::dead_after_ms(node.lease_ms);
            if planted::is(Bug::SilenceIsProof) {
                dead_after_ms /= 2;
            }
            let lease_over = now.since(heard.max(patient_since)) >= dead_after_ms;
            let remembered_ms = node.remembered_ms(self.settings.forget_ms);
            match &mut node.seen {
                Seen::Linked { silence, .. } => {
                    if *silence == Silence::Heard && now.since(heard) > patience {
                        *silence = Silence::Missed;
                        fell_silent.push(id.clone());
                    }
                    if lease_over {
                        over.push((id.clone(), Evidence::Silent));
                    }
                }
                Seen::Unlinked {
                    hint: Hint::Refused, ..
                } => {
                    over.push((id.clone(), Evidence::Refuses));
                }
                Seen::Expected { .. } | Seen::Joining { .. } | Seen::Unlinked { hint: Hint::None, .. } => {
                    if lease_over {
                        over.push((id.clone(), Evidence::StayedAway));
                    }
                }
                Seen::Dead { since, proof, .. } => {
                    // A node that is not known counts as stopped, so it is not forgotten before it has.
                    let stopped =
                        lease_over || *proof == Proof::Proven || planted::is(Bug::ForgottenBeforeStopped);
                    let kept_ms = if kept {
                        self.settings.keep_wish_ms
                    } else {
                        remembered_ms
                    };
                    // A restart must know of the leases that its earlier processes may hold.
                    let awaited = self.former.keys().any(|(former, _)| former == id);
                    if stopped && !awaited && now.since(*since) >= kept_ms {
                        gone.push(id.clone());
                    }
                }
            }
        }
        for id in fell_silent {
            if self.exit_is_confirmed(&id, now) {
                continue;
            }
            self.rekey(&id);
            self.publish_node(&id);
            self.notice(Notice::NodeSilent { node: id });
        }
        for id in gone {
            self.forget_node(&id, now);
        }
        let was_held = self.is_preserving();
        self.weigh_silence(now);
        if was_held && !self.is_preserving() {
            // It has just ended: whose time was over has a new one.
            return;
        }
        for (id, evidence) in over {
            if self.is_preserving() && !self.may_die_in_preservation(&id) {
                continue;
            }
            self.node_died(&id, evidence, now);
            // Each death without proof counts against the next.
            self.weigh_silence(now);
        }
    }

    /// A refusal is more than silence. It is believed even while too many are silent, as long as somebody is
    /// heard who can take the teams: with nobody left a route that may still work is better than none.
    fn may_die_in_preservation(&self, id: &NodeId) -> bool {
        let refusing = self.nodes.get(id).is_some_and(Node::is_refusing);
        refusing && !self.index.order.is_empty()
    }

    /// Whether a process can have no exclusive effects any more, whatever it thinks itself.
    pub(crate) fn is_fenced(&self, id: &NodeId, incarnation: Incarnation, now: Timestamp) -> bool {
        let Some(node) = self
            .nodes
            .get(id)
            .filter(|node| node.incarnation() == incarnation)
        else {
            // Forgotten nodes are long past their lease, and so are processes that are not remembered.
            return !self.former_may_act(id, incarnation, now);
        };
        match node.seen {
            Seen::Dead {
                proof: Proof::Proven, ..
            } => true,
            Seen::Dead { .. } if planted::is(Bug::HintIsProof) || planted::is(Bug::SilenceIsProof) => true,
            _ => now.since(node.heard()) >= lease::dead_after_ms(node.lease_ms),
        }
    }

    /// Takes a node off the books. It must own nothing.
    pub(crate) fn forget_node(&mut self, id: &NodeId, now: Timestamp) {
        let leaving: Vec<_> = self
            .nodes
            .get(id)
            .map(|node| node.leaving.iter().cloned().collect())
            .unwrap_or_default();
        for team in leaving {
            self.finish_leaving(&team, MoveOutcome::Arrived, now);
        }
        self.forget_url(id);
        self.keep_past(id, now);
        let Some(mut node) = self.nodes.remove(id) else {
            return;
        };
        debug_assert!(
            node.teams.is_empty() && node.reserved.is_empty(),
            "a forgotten node owns nothing"
        );
        self.index.take(&mut node);
        self.publish_node(id);
        self.write_node(id);
    }

    /// A lease that was made shorter in the settings counts once the longer ones of before the
    /// broker's start, when the last of them was granted, are over.
    pub(crate) fn shorten_leases(&mut self, now: Timestamp) {
        let lease_ms = self.settings.lease_ms;
        let over = |node: &&mut Node| {
            node.lease_ms > lease_ms && now.since(self.started) >= lease::dead_after_ms(node.lease_ms)
        };
        let shortened: Vec<NodeId> = self
            .nodes
            .values_mut()
            .filter(over)
            .map(|node| {
                node.lease_ms = lease_ms;
                node.id().clone()
            })
            .collect();
        for id in shortened {
            self.write_node(&id);
        }
    }
}

impl Node {
    /// When this process counts as dead from now on.
    pub(crate) fn die(&mut self, proof: Proof, now: Timestamp) {
        self.had_teams = !self.teams.is_empty();
        self.seen = Seen::Dead {
            heard: self.heard(),
            since: now,
            proof,
        };
    }
}
