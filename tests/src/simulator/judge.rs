//! Does the broker decide by what it has been told? Each of its commands is held against the
//! [mirror](super::mirror) and the [truth](super::truth).

use usher_placement::{
    Command, Evidence, LinkId, MoveOutcome, NodeFault, Notice, Preservation, Record, Regressed, TrustChange,
};
use usher_shared::id::{NodeId, TeamId};
use usher_shared::lease::dead_after_ms;
use usher_shared::link::{HoldState, ToNode};
use usher_shared::rest::{Cause, Gate};

use super::broker::BrokerTime;
use super::mirror::{EXTRA_TEAMS, EventKind};
use super::world::World;

impl World {
    /// The core has said this.
    pub(super) fn mirror_sees(&mut self, command: &Command) {
        match command {
            Command::Write(record) => {
                self.core_writes(record);
                match record {
                    Record::Team(team, Some(record)) => {
                        let before = self.mirror.owners.get(team).cloned();
                        self.mirror.changed.entry(team.clone()).or_insert(before);
                        if let Some((node, _)) = &record.owner {
                            self.mirror
                                .owners
                                .insert(team.clone(), (node.clone(), record.epoch));
                        } else {
                            self.mirror.owners.remove(team);
                        }
                    }
                    Record::Team(team, None) => {
                        self.mirror.owners.remove(team);
                    }
                    Record::Node(node, None) => {
                        self.mirror.nodes.remove(node);
                        self.mirror.awaited.remove(node);
                    }
                    _ => {}
                }
            }
            Command::Send { link, message } => {
                let Some(node) = self.mirror.node_on(*link).cloned() else {
                    return;
                };
                self.core_sends(&node, message);
                self.check_sent(*link, &node, message);
            }
            Command::Close { link, .. } => {
                self.mirror.links.remove(link);
            }
            Command::Notice(notice) => {
                self.tell_story(|| format!("    {notice:?}"));
                self.mirror_noted(notice);
            }
            _ => {}
        }
    }

    fn mirror_noted(&mut self, notice: &Notice) {
        match notice {
            Notice::NodeDead {
                node,
                evidence,
                teams,
            } => self.node_counts_as_dead(node, *evidence, *teams),
            Notice::Assigned {
                team,
                node,
                epoch,
                cause,
                last_resort,
            } => {
                if *cause == Cause::Adopted {
                    self.count("adopted");
                    self.core_adopts(team, *epoch);
                }
                if *cause == Cause::Knock {
                    self.count("moved for a knock");
                    if self.mirror.preserving {
                        self.count("moved for a knock in self-preservation");
                    }
                }
                if *cause == Cause::Full {
                    self.count("moved off a full node");
                }
                self.check_assigned(team, node, *cause, *last_resort);
                self.check_trusted(node, *cause, *last_resort);
            }
            Notice::SelfPreservation { change, .. } => {
                self.mirror_preserves(*change);
                self.count(match change {
                    Preservation::Begun { .. } => "self-preservation entered",
                    Preservation::Recovered => "self-preservation left",
                    Preservation::Released => "self-preservation released",
                    Preservation::Expired => "self-preservation expired",
                });
            }
            Notice::GraceOver { reported, known } => {
                self.count(if reported < known {
                    "grace timed out"
                } else {
                    "grace ended early"
                });
            }
            Notice::StoreRegressed { by, .. } => self.count(match by {
                Regressed::Term(_) => "store regressed by term",
                Regressed::Epoch(_) => "store regressed by epoch",
                Regressed::Grants { .. } => "store regressed by grant",
            }),
            Notice::BadMessage {
                fault: NodeFault::Ungranted(_),
                ..
            } => self.count("forged entry refused"),
            Notice::BadMessage { .. } => self.count("late duplicate ignored"),
            Notice::ClockPace { .. } => self.count("clock pace noticed"),
            Notice::NodeReady { node, .. } => self.note_up(node),
            Notice::Trust { change, .. } => self.count(match change {
                TrustChange::Distrusted { .. } => "a node out of its clients' reach was held back",
                TrustChange::OnTrial => "a node held back was tried again",
                TrustChange::Trusted => "a node held back was trusted again",
                TrustChange::Crashing { .. } => "a crashing node was held back",
            }),
            Notice::NodeRefused { node, .. } => {
                self.mirror.refuses(node);
                self.count("hello refused");
            }
            Notice::ExitDisbelieved { .. } => self.count("a report of an exit was not believed"),
            Notice::Unplaced { .. } => self.count("no node for a team"),
            Notice::NodeSilent { .. } => self.count("node silent"),
            Notice::OperationEnded { .. } => self.count("operation ended"),
            Notice::Gap { .. } => self.count("gap measured"),
            Notice::Moved { outcome, .. } => self.count(match outcome {
                MoveOutcome::Arrived => "move arrived",
                MoveOutcome::TimedOut => "move timed out",
                MoveOutcome::Undone => "move given up for another",
                MoveOutcome::Failed => "move failed",
            }),
            _ => {}
        }
    }

    fn node_counts_as_dead(&mut self, node: &NodeId, evidence: Evidence, teams: u32) {
        let now = self.broker_local();
        let proven = evidence.is_proof();
        self.count(match evidence {
            Evidence::Exit => "death by the parent's word",
            Evidence::Successor => "death by a new process",
            Evidence::Displaced => "a name was taken over without proof",
            Evidence::Refuses => "death by a hint",
            Evidence::Silent | Evidence::StayedAway => "death by silence",
        });
        let displaced = evidence == Evidence::Displaced;
        self.mirror.proven |= proven;
        if displaced {
            // Its name has another process by now: what waits for it is checked by S13.
            self.mirror.displaces(node);
        } else {
            self.check_death(node, evidence, now);
        }
        self.note_death(node);
        if teams > 0 {
            self.count("failover");
        }
        let before: Vec<TeamId> = self
            .mirror
            .owners
            .iter()
            .filter(|(_, (owner, _))| owner == node)
            .map(|(team, _)| team.clone())
            .collect();
        for team in before {
            let times = self.mirror.failed_over.entry(team).or_default();
            times.push_back(now);
            while times.front().is_some_and(|first| now.since(*first) > 30_000) {
                times.pop_front();
            }
            if times.len() >= 3 {
                self.count("failover three times in a row");
            }
        }
        // A new process has taken the name already; the rest keeps what is known of the dead one.
        if evidence != Evidence::Successor
            && !displaced
            && let Some(known) = self.mirror.nodes.get_mut(node)
        {
            known.dead = Some((now, proven));
            known.held = teams > 0;
            known.reported = false;
            if let Some(link) = known.link.take() {
                self.mirror.links.remove(&link);
            }
        }
        if proven {
            self.mirror.awaited.remove(node);
        }
    }

    /// A death without proof: was it waited for, and are not too many silent at once?
    fn check_death(&mut self, node: &NodeId, evidence: Evidence, now: BrokerTime) {
        let Some(known) = self.mirror.nodes.get(node).cloned() else {
            return;
        };
        if evidence.is_proof() {
            return;
        }
        let hinted = evidence == Evidence::Refuses;
        let lease_ms = self.main.as_ref().map_or(0, |broker| broker.settings.lease_ms);
        // A lease that was made shorter counts once the longer ones from before the start are over.
        let over = now.since(self.mirror.started) >= dead_after_ms(known.lease_ms);
        let patience = dead_after_ms(if over { lease_ms } else { known.lease_ms });
        let since = self.mirror.woke.map_or(known.heard, |woke| woke.max(known.heard));
        if !hinted && now.since(since) < patience {
            self.fail(format!(
                "S6: {node} counts as dead after {} ms, of {patience}: {evidence:?}; {:?} {}",
                now.since(since),
                self.mirror.woke.map(|woke| now.since(woke)),
                self.mirror.in_words(now)
            ));
        }
        if self.mirror.in_grace(now) {
            self.fail(format!(
                "S6: {node} counts as dead while not everyone had reported: {evidence:?}"
            ));
        }
        self.check_fenced_when_dead(node, &known, hinted);
        self.check_not_too_many(node, evidence, now);
    }

    fn check_assigned(&mut self, team: &TeamId, node: &NodeId, cause: Cause, last_resort: Option<Gate>) {
        let now = self.broker_local();
        if last_resort.is_some() {
            self.count("last resort");
        }
        if !Self::is_a_choice(cause) {
            return;
        }
        let Some(known) = self.mirror.nodes.get(node).cloned() else {
            return self.fail(format!("S15: {team} was assigned to {node}, which nobody knows"));
        };
        if known.dead.is_some() || !known.reported || known.link.is_none() {
            self.fail(format!(
                "S15: {team} was assigned to {node}, which is not there ({cause:?})"
            ));
        }
        // Room for other moves was asked for some time ago.
        let just_chosen = matches!(cause, Cause::Connect | Cause::Failover | Cause::Knock);
        if just_chosen && known.connections >= known.capacity {
            self.fail(format!(
                "S22: {team} was assigned to {node}, which is full with {} connections ({cause:?})",
                known.connections
            ));
        }
        let evidenced =
            self.mirror.proven || matches!(self.mirror.event, EventKind::Exited | EventKind::Hello);
        let had_one = self.mirror.changed.get(team).is_some_and(Option::is_some);
        if self.mirror.in_grace(now) && !evidenced && had_one {
            self.fail(format!(
                "S6: {team} was assigned to {node} while not everyone had reported ({cause:?})"
            ));
        }
    }

    fn check_sent(&mut self, link: LinkId, node: &NodeId, message: &ToNode) {
        let known = self.mirror.nodes.get(node).cloned();
        let machine = self.links.get(&link.0).map(|known| known.node);
        let machine = machine.or_else(|| self.node_named(node)).unwrap_or(usize::MAX);
        match message {
            ToNode::HeartbeatAck { .. } => {
                if !known
                    .as_ref()
                    .is_some_and(|known| known.reported && known.link == Some(link))
                {
                    self.fail(format!(
                        "ack: {node} is acknowledged before its inventory was reconciled"
                    ));
                }
                if known.is_some_and(|known| known.dead.is_some()) {
                    self.fail(format!("ack: {node} is acknowledged, and counts as dead"));
                }
            }
            ToNode::Activate(activate) => {
                self.count_activation();
                self.check_exclusive(&activate.team, machine, "is activated");
            }
            ToNode::Assign(assign) if assign.state == HoldState::Owned => {
                self.check_exclusive(&assign.team, machine, "is assigned in full");
            }
            ToNode::Assign(assign) => self.check_drain_pace(node, &assign.team, assign.epoch),
            ToNode::Confirm(confirm) => {
                for named in &confirm.teams {
                    self.check_exclusive(&named.team, machine, "is confirmed");
                }
            }
            _ => {}
        }
    }

    fn count_activation(&mut self) {
        let now = self.broker_local();
        let after_start = self
            .mirror
            .grace_until
            .is_some_and(|until| now.since(until) < 500);
        self.count(match self.mirror.event {
            EventKind::Yield => "activation after yield",
            EventKind::Exited | EventKind::Hello => "activation after proof",
            EventKind::Wake if after_start => "activation after a restart",
            EventKind::Wake => "activation after a lease",
            EventKind::Inventory => "activation told again",
            _ => "activation otherwise",
        });
    }

    /// The core has said all it had to say about one event.
    pub(super) fn mirror_done(&mut self) {
        self.mirror.changed.clear();
        let routes = self.main.as_ref().map_or(0, |broker| broker.routes.len());
        if routes > self.teams.len() + EXTRA_TEAMS {
            self.fail(format!("S20: {routes} routes for {} teams", self.teams.len()));
        }
    }
}
