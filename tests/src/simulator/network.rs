//! Links between nodes and brokers: streams, which deliver in order, late, twice, or not at all.
//!
//! A cut holds what is on its way, as a kernel does that sends it again and again; after the cut it
//! arrives if the link still stands. A side that closes is seen to have closed only behind what it
//! had sent, or in its stead when that was lost.

use std::collections::VecDeque;
use usher_shared::id::Incarnation;
use usher_shared::link::{ToBroker, ToNode};

use super::agenda::{Copied, ForBroker, ForNode, Happens, Parcel, Way, Which};
use super::clock::Real;
use super::plan::Kind;
use super::world::World;

/// A copy of a message comes at most so much later than the message.
const COPY_LATE_MS: u64 = 2_000;

/// One link, from a node to whatever listens at a broker's address.
pub(super) struct Link {
    pub(super) node: usize,
    pub(super) incarnation: Incarnation,
    pub(super) which: Which,
    pub(super) run: u64,
    up: Lane,
    down: Lane,
    node_open: bool,
    broker_open: bool,
    /// When the broker last read something on it.
    pub(super) read_at: Real,
}

#[derive(Default)]
struct Lane {
    /// When the last parcel is due: a stream delivers in order.
    last_at: Real,
    sent: u64,
    delivered: u64,
    /// Parcels of an earlier one are lost.
    generation: u64,
    held: VecDeque<(u64, Parcel)>,
}

impl Link {
    pub(super) fn new(node: usize, incarnation: Incarnation, which: Which, run: u64, now: Real) -> Self {
        Self {
            node,
            incarnation,
            which,
            run,
            up: Lane::default(),
            down: Lane::default(),
            node_open: true,
            broker_open: true,
            read_at: now,
        }
    }

    fn lane(&mut self, way: Way) -> &mut Lane {
        match way {
            Way::Up => &mut self.up,
            Way::Down => &mut self.down,
        }
    }
}

impl World {
    pub(super) fn send_up(&mut self, link: u64, message: ToBroker) {
        self.send(link, Way::Up, Parcel::Up(Box::new(self.on_the_wire(message))));
    }

    pub(super) fn send_down(&mut self, link: u64, message: ToNode) {
        self.send(link, Way::Down, Parcel::Down(Box::new(self.on_the_wire(message))));
    }

    /// What comes out of writing a message as JSON and reading it.
    fn on_the_wire<T: serde::Serialize + serde::de::DeserializeOwned>(&self, message: T) -> T {
        if !self.plan.on_the_wire {
            return message;
        }
        let text = serde_json::to_string(&message).unwrap_or_default();
        serde_json::from_str(&text).unwrap_or(message)
    }

    fn delay(&mut self) -> u64 {
        if self.goes_wrong(Kind::SlowNet) && self.dice.percent(4) {
            self.dice.within(200, 4_000)
        } else {
            self.dice.within(1, 30)
        }
    }

    fn send(&mut self, link: u64, way: Way, parcel: Parcel) {
        let delay = self.delay();
        let now = self.now;
        let Some(known) = self.links.get_mut(&link) else {
            return;
        };
        let open = match way {
            Way::Up => known.node_open,
            Way::Down => known.broker_open,
        };
        if !open {
            return;
        }
        let lane = known.lane(way);
        lane.sent += 1;
        lane.last_at = lane.last_at.max(now + delay);
        let (at, serial, generation) = (lane.last_at, lane.sent, lane.generation);
        // A link says hello once and closes once: a stream cannot double those by itself.
        let hello = matches!(&parcel, Parcel::Up(message) if matches!(**message, ToBroker::Hello(_)));
        let doubles = !hello && !matches!(parcel, Parcel::Close);
        if doubles && self.has(Kind::Duplicates) && self.dice.percent(self.plan.doubled) {
            let late = self.dice.within(0, COPY_LATE_MS);
            let parcel = parcel.clone();
            let copy = Copied::Yes;
            self.at(
                at + late,
                Happens::Wire {
                    link,
                    way,
                    generation,
                    serial,
                    copy,
                    parcel,
                },
            );
        }
        let copy = Copied::No;
        self.at(
            at,
            Happens::Wire {
                link,
                way,
                generation,
                serial,
                copy,
                parcel,
            },
        );
    }

    /// A parcel has come to the machine at the other end.
    pub(super) fn arrives(
        &mut self,
        link: u64,
        way: Way,
        generation: u64,
        serial: u64,
        copy: Copied,
        parcel: Parcel,
    ) {
        let Some(known) = self.links.get_mut(&link) else {
            return;
        };
        let cut = self.machines[known.node].is_cut(way);
        let lane = known.lane(way);
        if lane.generation != generation {
            return;
        }
        match copy {
            // A copy is late, never early.
            Copied::Yes if cut || lane.delivered < serial => return,
            Copied::Yes => {}
            Copied::No if cut || !lane.held.is_empty() => {
                lane.held.push_back((serial, parcel));
                return;
            }
            Copied::No => lane.delivered = serial,
        }
        if copy == Copied::Yes {
            self.count("a copy arrived late");
        }
        self.deliver(link, parcel);
    }

    fn deliver(&mut self, link: u64, parcel: Parcel) {
        let now = self.now;
        let Some(known) = self.links.get_mut(&link) else {
            return;
        };
        let (node, incarnation, which, run) = (known.node, known.incarnation, known.which, known.run);
        match parcel {
            Parcel::Up(message) => {
                if !known.broker_open {
                    return;
                }
                known.read_at = now;
                if which == Which::Impostor {
                    return self.impostor_hears(link, node, *message);
                }
                let what = ForBroker::Message { link, message };
                self.reaches_broker(which, run, what);
            }
            Parcel::Down(message) => {
                if known.node_open {
                    let what = ForNode::Message { link, message };
                    self.reaches_node(node, incarnation, what);
                }
            }
            Parcel::Close if known.broker_open && !known.node_open => {
                known.broker_open = false;
                self.reaches_broker(which, run, ForBroker::Closed { link });
                self.links.remove(&link);
            }
            Parcel::Close if known.node_open => {
                known.node_open = false;
                self.reaches_node(node, incarnation, ForNode::Closed { link });
                if which != Which::Main || !self.links.get(&link).is_some_and(|known| known.broker_open) {
                    self.links.remove(&link);
                }
            }
            Parcel::Close => {
                self.links.remove(&link);
            }
        }
    }

    /// The node's side of a link is gone. The broker learns of it behind what was sent, or instead.
    pub(super) fn node_closes(&mut self, link: u64) {
        let loses = self.dice.percent(30);
        let Some(known) = self.links.get_mut(&link).filter(|known| known.node_open) else {
            return;
        };
        if !known.broker_open {
            self.links.remove(&link);
            return;
        }
        lose(&mut known.up, loses);
        self.send(link, Way::Up, Parcel::Close);
        if let Some(known) = self.links.get_mut(&link) {
            known.node_open = false;
        }
    }

    /// The broker's side of a link is gone.
    pub(super) fn broker_closes(&mut self, link: u64, may_lose: bool) {
        let loses = may_lose && self.dice.percent(30);
        let Some(known) = self.links.get_mut(&link).filter(|known| known.broker_open) else {
            return;
        };
        if !known.node_open {
            self.links.remove(&link);
            return;
        }
        lose(&mut known.down, loses);
        self.send(link, Way::Down, Parcel::Close);
        if let Some(known) = self.links.get_mut(&link) {
            known.broker_open = false;
        }
    }

    /// The node's machine is gone without a word: the other side learns by its own time-outs.
    pub(super) fn node_vanishes(&mut self, link: u64) {
        if let Some(known) = self.links.get_mut(&link) {
            known.node_open = false;
            lose(&mut known.up, true);
        }
    }

    /// Both sides lose a link, each at its time.
    pub(super) fn break_link(&mut self, link: u64) {
        let after = self.dice.within(0, 3_000);
        let Some(known) = self
            .links
            .get_mut(&link)
            .filter(|known| known.node_open && known.broker_open)
        else {
            return;
        };
        let (node, incarnation, which, run) = (known.node, known.incarnation, known.which, known.run);
        self.links.remove(&link);
        let what = ForNode::Closed { link };
        self.soon(
            after,
            Happens::Node {
                node,
                incarnation,
                what,
            },
        );
        let after = self.dice.within(0, 3_000);
        let what = ForBroker::Closed { link };
        self.soon(after, Happens::Broker { which, run, what });
    }

    pub(super) fn begin_cut(&mut self, node: usize, ways: [bool; 2]) {
        let machine = &mut self.machines[node];
        machine.cut = ways;
        machine.cut_serial += 1;
    }

    /// What the kernels held is sent again.
    pub(super) fn end_cut(&mut self, node: usize) {
        self.machines[node].cut = [false; 2];
        let links: Vec<u64> = self
            .links
            .iter()
            .filter(|(_, link)| link.node == node)
            .map(|(id, _)| *id)
            .collect();
        for link in links {
            for way in [Way::Up, Way::Down] {
                let Some(lane) = self.links.get_mut(&link).map(|known| known.lane(way)) else {
                    continue;
                };
                let held = std::mem::take(&mut lane.held);
                let generation = lane.generation;
                let mut at = self.now;
                for (serial, parcel) in held {
                    at += self.dice.within(0, 20);
                    let copy = Copied::No;
                    self.at(
                        at,
                        Happens::Wire {
                            link,
                            way,
                            generation,
                            serial,
                            copy,
                            parcel,
                        },
                    );
                }
                if let Some(lane) = self.links.get_mut(&link).map(|known| known.lane(way)) {
                    lane.last_at = lane.last_at.max(at);
                }
            }
        }
    }

    /// A broker closes a link on which it has read nothing for a lease.
    pub(super) fn look_at_idle_link(&mut self, link: u64) {
        let Some(known) = self.links.get(&link) else {
            return;
        };
        let (which, run, read_at) = (known.which, known.run, known.read_at);
        let Some(broker) = self.broker(which).filter(|broker| broker.run == run) else {
            return;
        };
        let lease_ms = broker.settings.lease_ms;
        if broker.is_paused() || self.now < read_at + lease_ms {
            let again = (read_at + lease_ms).max(self.now + 200);
            self.at(again, Happens::LinkIdle { link });
            return;
        }
        self.count("silent link closed by the broker");
        self.broker_closes(link, false);
        self.reaches_broker(which, run, ForBroker::Closed { link });
    }
}

fn lose(lane: &mut Lane, loses: bool) {
    if loses {
        lane.generation += 1;
        lane.held.clear();
    }
}
