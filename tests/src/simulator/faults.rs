//! What goes wrong, and what operators do meanwhile.

use usher_placement::Ask;
use usher_shared::id::{Incarnation, NodeId};
use usher_shared::rest::{DrainPost, Pin, PinStrength, ShedPost, TeamPut};

use super::agenda::{ForBroker, Happens, Which};
use super::node::{Still, nonce_of};
use super::plan::Kind;
use super::world::{Phase, World};

impl World {
    /// One thing goes wrong, and the next is drawn.
    pub(super) fn fault(&mut self) {
        if self.phase == Phase::Healed {
            return;
        }
        let kinds = self.plan.kinds().len();
        let kind = self.plan.kinds()[self.dice.index(kinds)];
        let node = self.dice.index(self.machines.len());
        self.tell_story(|| format!("fault: {kind:?} at node {node}"));
        self.one_fault(kind, node);
        let mean = self.plan.pause_between_ms;
        let after = self.dice.within(10, 2 * mean);
        self.soon(after, Happens::Fault);
    }

    fn one_fault(&mut self, kind: Kind, node: usize) {
        match kind {
            Kind::NodeCrash => {
                let witness = self.dice.percent(50);
                let back = self.dice.within(20, 12_000);
                self.kill(node, witness, Some(back));
            }
            Kind::PowerOff => {
                self.machines[node].is_off = true;
                let back = self.dice.within(3_000, 20_000);
                self.kill(node, false, Some(back));
            }
            Kind::BrokerCrash | Kind::LeaseChange | Kind::Restore => self.broker_fault(kind),
            Kind::Twin => self.start_twin(),
            Kind::NodeTwin => self.call_namesake(),
            Kind::Liar => self.lie(node),
            Kind::NodePause => {
                let long = self.dice.within(
                    100,
                    if self.dice.clone().percent(50) {
                        5_000
                    } else {
                        40_000
                    },
                );
                self.hold_still(node, Still::Paused, long, false);
            }
            Kind::BrokerPause => {
                let long = if self.dice.percent(50) { 4_000 } else { 25_000 };
                let long = self.dice.within(100, long);
                self.pause_broker(long);
            }
            Kind::Suspend => {
                let long = self.dice.within(500, 20_000);
                self.count("node suspended");
                self.hold_still(node, Still::Paused, long, true);
            }
            Kind::Freeze => {
                let long = self.dice.within(1_000, 20_000);
                self.hold_still(node, Still::Frozen, long, false);
            }
            Kind::LinkBreak => self.break_some_link(node),
            Kind::Cut => {
                let ways = [[true, true], [true, false], [false, true]][self.dice.index(3)];
                let long = self.dice.within(100, 25_000);
                self.cut(node, ways, long);
            }
            Kind::MassCut => {
                let long = self.dice.within(2_000, 25_000);
                for other in 0..self.machines.len() {
                    if self.dice.percent(60) {
                        self.cut(other, [true, true], long);
                    }
                }
            }
            Kind::ClientCut => {
                self.machines[node].client_cut = true;
                self.clients_notice(node, 20_000);
                let long = self.dice.within(1_000, 30_000);
                self.soon(long, Happens::ClientCutEnds { node });
            }
            Kind::Firewall => {
                // The link goes down, and what the broker probes is refused although the node lives.
                self.machines[node].firewall = true;
                let long = self.dice.within(1_000, 15_000);
                self.soon(long, Happens::FirewallEnds { node });
                self.cut(node, [true, true], long);
                let up = self
                    .links
                    .iter()
                    .find(|(_, link)| link.node == node && link.which == Which::Main);
                if let Some((link, run)) = up.map(|(id, link)| (*id, link.run)) {
                    let what = ForBroker::Closed { link };
                    self.soon(
                        5,
                        Happens::Broker {
                            which: Which::Main,
                            run,
                            what,
                        },
                    );
                }
            }
            Kind::WallJump => {
                let jump = self.dice.around(3_600_000);
                if self.dice.percent(30) {
                    self.broker_wall_off = jump;
                    // Tickets from before the step are of no known time: a circle may begin once more.
                    for client in &mut self.clients {
                        client.sent_on = 0;
                    }
                } else {
                    self.machines[node].wall_off = jump;
                }
            }
            Kind::Descriptors => {
                let out = !self.machines[node].no_descriptors;
                self.machines[node].no_descriptors = out;
            }
            Kind::Stop => {
                let budget_ms = self.dice.within(3_000, 25_000);
                self.stop_node(node, budget_ms);
            }
            Kind::CrashLoop => self.begin_crash_loop(node),
            Kind::Drain | Kind::Shed | Kind::Cordon | Kind::Delete | Kind::Pins => self.operate(kind, node),
            // These are how things are, not what happens.
            Kind::Impostor
            | Kind::SlowNet
            | Kind::Duplicates
            | Kind::SlowStore
            | Kind::FailingStore
            | Kind::BadNode
            | Kind::SmallNodes
            | Kind::EagerBeats
            | Kind::Hectic
            | Kind::WildClocks
            | Kind::OutOfReach
            | Kind::Gone => {}
        }
    }

    fn broker_fault(&mut self, kind: Kind) {
        if self.main.is_none() {
            return;
        }
        self.crash_broker();
        if kind == Kind::Restore && self.disk.restore(&mut self.dice) {
            self.count("an old copy was put back");
            self.truth.restored(&self.disk.now);
        }
        if kind == Kind::LeaseChange {
            let heartbeat_ms = self.plan.heartbeat_ms;
            let steps = if self.dice.percent(50) {
                12 * self.dice.within(0, 1)
            } else {
                self.dice.within(0, 12)
            };
            let lease_ms = 4 * heartbeat_ms + 500 * steps;
            if lease_ms < self.next_lease_ms {
                self.count("lease shortened");
            }
            self.next_lease_ms = lease_ms.max(4_000);
            self.longest_lease_ms = self.longest_lease_ms.max(self.next_lease_ms);
        }
        let after = if self.dice.percent(40) {
            self.dice.within(50, 600)
        } else {
            self.dice.within(100, 15_000)
        };
        self.soon(after, Happens::BrokerStarts);
        if self.has(Kind::Cut) || kind == Kind::LeaseChange {
            // Somebody is lost again before the new broker has granted him anything.
            let node = self.dice.index(self.machines.len());
            let later = after + self.dice.within(20, 1_500);
            let lasts_ms = self.dice.within(2_000, 12_000);
            self.soon(
                later,
                Happens::CutBegins {
                    node,
                    ways: [true, true],
                    lasts_ms,
                },
            );
        }
    }

    pub(super) fn cut(&mut self, node: usize, ways: [bool; 2], long: u64) {
        self.count("cut");
        self.begin_cut(node, ways);
        let serial = self.machines[node].cut_serial;
        self.soon(long, Happens::CutEnds { node, serial });
    }

    fn break_some_link(&mut self, node: usize) {
        let link = self.machines[node]
            .process
            .as_ref()
            .and_then(|process| process.link.clone());
        if let Some(link) = link {
            self.count("link broken");
            self.break_link(link.link);
        }
    }

    /// A process dies. With a witness its parent says so, and starts it again.
    pub(super) fn kill(&mut self, node: usize, witness: bool, back: Option<u64>) {
        let Some(process) = self.machines[node].process.take() else {
            return;
        };
        self.count("node crashed");
        if let Some(dialled) = &process.link {
            if self.machines[node].is_off {
                self.node_vanishes(dialled.link);
            } else {
                self.node_closes(dialled.link);
            }
        }
        self.clients_lose(node, process.incarnation);
        if witness {
            // The word may come late, and more than once.
            let copies = if self.has(Kind::Duplicates) {
                self.dice.within(1, 3)
            } else {
                1
            };
            for _ in 0..copies {
                let late = if self.dice.percent(20) { 5_000 } else { 200 };
                let after = self.dice.within(1, late);
                let (node, incarnation) = (self.machines[node].id.clone(), process.incarnation);
                self.soon(
                    after,
                    Happens::Witness {
                        node,
                        incarnation,
                        tries: 5,
                    },
                );
            }
        }
        let back = back.unwrap_or_else(|| self.dice.within(20, 2_000));
        self.soon(back, Happens::NodeStarts { node });
    }

    pub(super) fn witness(&mut self, node: NodeId, incarnation: Incarnation, tries: u32) {
        let cut = self
            .node_named(&node)
            .is_some_and(|node| self.machines[node].cut != [false; 2]);
        if let Some(run) = self.main.as_ref().filter(|_| !cut).map(|broker| broker.run) {
            let nonce = Some(nonce_of(incarnation));
            let what = ForBroker::Exited {
                node,
                incarnation,
                nonce,
            };
            self.soon(
                1,
                Happens::Broker {
                    which: Which::Main,
                    run,
                    what,
                },
            );
        } else if tries > 0 {
            let tries = tries - 1;
            self.soon(
                1_000,
                Happens::Witness {
                    node,
                    incarnation,
                    tries,
                },
            );
        }
    }

    fn operate(&mut self, kind: Kind, node: usize) {
        let id = self.machines[node].id.clone();
        if matches!(kind, Kind::Drain | Kind::Shed) && self.dice.percent(30) {
            // A target's answer does not come through, and somebody changes his mind meanwhile.
            let other = (node + 1 + self.dice.index(self.machines.len())) % self.machines.len();
            let (after, lasts_ms) = (self.dice.within(20, 80), self.dice.within(2_000, 9_000));
            let ways = [true, self.dice.percent(70)];
            self.soon(
                after,
                Happens::CutBegins {
                    node: other,
                    ways,
                    lasts_ms,
                },
            );
            if let Some(run) = self.main.as_ref().map(|broker| broker.run) {
                self.last_request += 1;
                let request = usher_placement::RequestId(self.last_request);
                let ask = Box::new(Ask::Undrain { node: id.clone() });
                let later = self.dice.within(100, 2_500);
                let what = ForBroker::Operator { request, ask };
                self.soon(
                    later,
                    Happens::Broker {
                        which: Which::Main,
                        run,
                        what,
                    },
                );
            }
        }
        let team = self.dice.index(self.teams.len());
        let team = self.teams[team].clone();
        match kind {
            Kind::Cordon if self.dice.percent(50) => self.operator_asks(Ask::Cordon { node: id }),
            Kind::Cordon => self.operator_asks(Ask::Uncordon { node: id }),
            Kind::Delete => {
                self.operator_asks(Ask::Delete { team: team.clone() });
                if self.dice.percent(50) {
                    self.count("deleted and made anew");
                    self.operator_asks(Ask::Put {
                        team,
                        put: TeamPut::default(),
                    });
                }
            }
            Kind::Shed => {
                let teams = u32::try_from(self.dice.within(1, 5)).unwrap_or(1);
                let rate_per_s = self
                    .dice
                    .percent(60)
                    .then(|| u32::try_from(self.dice.within(1, 10)).unwrap_or(1));
                let post = ShedPost {
                    teams: Some(teams),
                    percent: None,
                    rate_per_s,
                };
                self.operator_asks(Ask::Shed { node: id, post });
            }
            Kind::Drain if self.dice.percent(40) => self.operator_asks(Ask::Undrain { node: id }),
            Kind::Drain => {
                let rate_per_s = self
                    .dice
                    .percent(60)
                    .then(|| u32::try_from(self.dice.within(1, 10)).unwrap_or(1));
                let deadline_s = self.dice.percent(30).then(|| self.dice.within(1, 20));
                if let Some(seconds) = deadline_s {
                    let by = self.now + seconds * 1_000;
                    let known = self.hurried.entry(id.clone()).or_insert(by);
                    *known = by.min(*known);
                }
                let post = DrainPost {
                    rate_per_s,
                    deadline_s,
                    force: self.dice.percent(50),
                };
                self.operator_asks(Ask::Drain { node: id, post });
            }
            _ => self.pin(team, node),
        }
    }

    /// An operator who cannot make up his mind pins a team here, there, and here again.
    fn pin(&mut self, team: usher_shared::id::TeamId, node: usize) {
        let other = (node + 1) % self.machines.len();
        let hard = self.dice.percent(20);
        let times = self.dice.within(1, 20);
        let mut after = 0;
        for time in 0..times {
            let target = if time % 2 == 0 { node } else { other };
            let pin = Pin {
                node: self.machines[target].id.clone(),
                seconds: self.dice.within(1, 10),
                strength: if hard {
                    PinStrength::Hard
                } else {
                    PinStrength::Soft
                },
            };
            let put = TeamPut {
                pin: Some(pin),
                ..TeamPut::default()
            };
            let ask = Box::new(Ask::Put {
                team: team.clone(),
                put,
            });
            let Some(run) = self.main.as_ref().map(|broker| broker.run) else {
                return;
            };
            self.last_request += 1;
            let request = usher_placement::RequestId(self.last_request);
            let what = ForBroker::Operator { request, ask };
            self.soon(
                after,
                Happens::Broker {
                    which: Which::Main,
                    run,
                    what,
                },
            );
            after += self.dice.within(20, 250);
        }
    }
}
