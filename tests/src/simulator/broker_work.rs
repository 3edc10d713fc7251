//! What a broker does beside deciding: keeps its store, and carries out what may be carried out.

use usher_placement::pipeline::{Effect, Pace};
use usher_placement::{Command, ProbeOutcome, Record};
use usher_shared::id::{Incarnation, NodeId};
use usher_shared::link::{TicketKey, ToNode};
use usher_shared::rest::ProbeState;

use super::agenda::{ForBroker, Happens, Kept, Which};
use super::broker::{KID, Reply};
use super::plan::Kind;
use super::world::World;

/// A batch that takes longer than this counts as stalled, as in the broker's event loop.
const STALLED_MS: u64 = 1_000;
/// How often a failing store is tried again.
const RETRY_MS: u64 = 1_000;
/// How long a broker that closed a link waits for the node to close it too.
const CLOSE_PATIENCE_MS: u64 = 5_000;

impl World {
    pub(super) fn hand_over(&mut self, which: Which) {
        let slow = self.goes_wrong(Kind::SlowStore) && self.dice.percent(10);
        let took = if slow {
            self.dice.within(100, 3_000)
        } else {
            self.dice.within(1, 20)
        };
        let fails = self.goes_wrong(Kind::FailingStore) && self.dice.percent(15);
        let kept = if fails { Kept::No } else { Kept::Yes };
        let Some(broker) = self.broker(which) else { return };
        let (run, batch) = (broker.run, broker.batches);
        self.soon(
            took,
            Happens::Broker {
                which,
                run,
                what: ForBroker::StoreDone { batch, kept },
            },
        );
        if took >= STALLED_MS {
            let what = ForBroker::Stalled { batch };
            self.soon(STALLED_MS, Happens::Broker { which, run, what });
        }
    }

    pub(super) fn stalled(&mut self, which: Which, batch: u64) {
        let mut ready = Vec::new();
        let Some(broker) = self.broker_mut(which) else {
            return;
        };
        if broker.batch.is_some() && broker.batches == batch {
            broker.pipeline.set_pace(Pace::Stalled, &mut ready);
            self.count("store stalled");
        }
        self.carry_out(which, ready);
    }

    pub(super) fn store_done(&mut self, which: Which, batch: u64, kept: Kept) {
        let mut ready = Vec::new();
        let Some(broker) = self.broker_mut(which).filter(|broker| broker.batches == batch) else {
            return;
        };
        match kept {
            Kept::Yes => {
                let Some(records) = broker.batch.take() else {
                    return;
                };
                broker.pipeline.set_pace(Pace::Steady, &mut ready);
                broker.pipeline.committed(&mut ready);
                if which == Which::Main {
                    self.commit(records);
                }
            }
            Kept::No => {
                broker.pipeline.set_pace(Pace::Stalled, &mut ready);
                let run = broker.run;
                self.count("store failed");
                self.soon(
                    RETRY_MS,
                    Happens::Broker {
                        which,
                        run,
                        what: ForBroker::TryAgain,
                    },
                );
            }
        }
        self.carry_out(which, ready);
        self.pump(which);
    }

    /// A batch is on the disk.
    pub(super) fn commit(&mut self, records: Vec<Record>) {
        self.check_batch(&records);
        self.disk.commit(records);
    }

    pub(super) fn carry_out(&mut self, which: Which, effects: Vec<Effect<Reply>>) {
        for effect in effects {
            if let Some(broker) = self.broker_mut(which) {
                broker.queued = broker.queued.saturating_sub(1);
            }
            match effect {
                Effect::Reply(reply) => {
                    if which == Which::Main {
                        self.check_answer(&reply);
                        self.answered(reply);
                    }
                }
                Effect::Command(command) => self.carry_out_one(which, *command),
            }
        }
        let most = 1_000 + 100 * (self.teams.len() + self.machines.len());
        if self.broker(which).is_some_and(|broker| broker.queued > most) {
            self.fail(format!("S20: more than {most} effects wait for the store"));
        }
    }

    pub(super) fn carry_out_one(&mut self, which: Which, command: Command) {
        match command {
            Command::Send { link, mut message } => {
                if which == Which::Main {
                    self.check_shown(&message);
                }
                if let ToNode::Welcome(welcome) = message.as_mut()
                    && let Some(known) = self.links.get(&link.0)
                {
                    let key = self.machines[known.node].key.clone();
                    welcome.ticket_keys = vec![TicketKey {
                        kid: KID.to_owned(),
                        key,
                    }];
                }
                self.send_down(link.0, *message);
            }
            Command::Close { link, refused } => {
                self.send_down(link.0, ToNode::Refused(refused));
                self.broker_closes(link.0, false);
                let after = self.dice.within(1, CLOSE_PATIENCE_MS);
                if let Some(run) = self.broker(which).map(|broker| broker.run) {
                    let what = ForBroker::Closed { link: link.0 };
                    self.soon(after, Happens::Broker { which, run, what });
                }
            }
            Command::Route { team, route } => {
                if which == Which::Main {
                    self.check_route(&team, route.as_ref());
                }
                let Some(broker) = self.broker_mut(which) else {
                    return;
                };
                match route {
                    Some(route) => broker.routes.insert(team, route),
                    None => broker.routes.remove(&team),
                };
            }
            Command::Node { node, entry } => {
                let Some(broker) = self.broker_mut(which) else {
                    return;
                };
                match entry {
                    Some(entry) => broker.entries.insert(node, entry),
                    None => broker.entries.remove(&node),
                };
            }
            Command::Probe {
                node,
                incarnation,
                address,
            } => self.probe(which, node, incarnation, &address),
            Command::AskWho {
                node,
                incarnation,
                address,
            } => self.ask_who(which, node, incarnation, &address),
            Command::ProbeUrl {
                node, incarnation, ..
            } => self.probe_url(which, node, incarnation),
            Command::Notice(_) | Command::Write(_) | Command::Answer { .. } => {}
        }
    }

    /// What the broker sees of the way that clients take: here it is the same one.
    fn probe_url(&mut self, which: Which, id: NodeId, incarnation: Incarnation) {
        let Some(run) = self.broker(which).map(|broker| broker.run) else {
            return;
        };
        let Some(machine) = self.node_named(&id).map(|node| &self.machines[node]) else {
            return;
        };
        let cut = machine.client_cut || machine.is_off || machine.process.is_none();
        let failed = cut.then(|| "nothing answered".to_owned());
        let what = ForBroker::UrlProbed {
            node: id,
            incarnation,
            failed,
        };
        self.soon(50, Happens::Broker { which, run, what });
    }

    pub(super) fn probe(&mut self, which: Which, id: NodeId, incarnation: Incarnation, address: &str) {
        let Some(run) = self.broker(which).map(|broker| broker.run) else {
            return;
        };
        let Some(machine) = self.machine_at(address).map(|node| &self.machines[node]) else {
            return;
        };
        let outcome = if machine.firewall {
            ProbeOutcome::Refused
        } else if machine.is_off || machine.cut != [false; 2] {
            ProbeOutcome::Silent
        } else if machine.process.is_none() {
            ProbeOutcome::Refused
        } else {
            ProbeOutcome::Answered
        };
        let after = self.dice.within(1, 330);
        let what = ForBroker::Probed {
            node: id,
            incarnation,
            outcome,
        };
        self.soon(after, Happens::Broker { which, run, what });
    }

    /// Who is at an address that a node named.
    fn ask_who(&mut self, which: Which, node: NodeId, incarnation: Incarnation, address: &str) {
        let Some(run) = self.broker(which).map(|broker| broker.run) else {
            return;
        };
        let there = self.machine_at(address).map(|node| &self.machines[node]);
        let reached = there.filter(|machine| !machine.firewall && machine.cut == [false; 2]);
        let process = reached.and_then(|machine| machine.process.as_ref());
        let state = match process.filter(|process| process.still.is_none()) {
            Some(process) if process.incarnation == incarnation => ProbeState::Proven,
            Some(_) => ProbeState::Foreign,
            None => ProbeState::Silent,
        };
        let after = self.dice.within(1, 50);
        let what = ForBroker::WhoAnswered {
            node,
            incarnation,
            state,
        };
        self.soon(after, Happens::Broker { which, run, what });
    }
}
