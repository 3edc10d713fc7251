//! The world: time, network, faults, and what must hold.

use std::collections::{BTreeMap, BTreeSet};
use usher_placement::{Answer, Ask, Command, Event, Knock, LinkId, ProbeOutcome, RequestId, Route};
use usher_shared::id::{Incarnation, NodeId, TeamId};
use usher_shared::link::{Exited, HoldState, ToBroker, ToNode};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::rest::DrainPost;

use super::broker::{Broker, Disk};
use super::client::{At, Client};
use super::dice::Dice;
use super::node::{Process, Reaction};

/// How large a run is, and how long each of its phases.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Nodes.
    pub nodes: usize,
    /// Teams.
    pub teams: usize,
    /// Clients.
    pub clients: usize,
    /// How long faults happen.
    pub faults_ms: u64,
    /// How long everything is whole after that.
    pub heal_ms: u64,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            nodes: 4,
            teams: 8,
            clients: 16,
            faults_ms: 60_000,
            heal_ms: 60_000,
        }
    }
}

/// What a run came to.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Outcome {
    /// Events that happened.
    pub steps: u64,
    /// A digest of all of them: the same for the same seed.
    pub trace: u64,
    /// How often rare things happened, to see that they did.
    pub seen: BTreeMap<&'static str, u64>,
}

#[derive(Clone, Debug)]
enum Happens {
    /// The broker's core wants to be woken.
    Wake {
        run: u64,
    },
    /// The broker's disk has a batch.
    Durable {
        run: u64,
    },
    ToBroker {
        link: u64,
        message: Box<ToBroker>,
    },
    ToNode {
        link: u64,
        message: Box<ToNode>,
    },
    /// The broker sees that a link is gone.
    BrokerSeesClose {
        run: u64,
        link: u64,
    },
    /// A node sees that its link is gone.
    NodeSeesClose {
        node: usize,
        link: u64,
    },
    Dial {
        node: usize,
        incarnation: Incarnation,
    },
    Beat {
        node: usize,
        incarnation: Incarnation,
    },
    Probed {
        run: u64,
        node: NodeId,
        incarnation: Incarnation,
    },
    Witness {
        node: NodeId,
        incarnation: Incarnation,
        tries: u32,
    },
    /// A client asks the broker.
    Ask {
        client: usize,
    },
    /// A client comes to a node with a ticket.
    Arrive {
        client: usize,
        route: Route,
        incarnation: Incarnation,
        since: Timestamp,
    },
    NodeStarts {
        node: usize,
    },
    BrokerStarts,
    Fault,
}

struct Link {
    node: usize,
    broker_run: u64,
    /// When the last message each way arrives: a stream delivers in order.
    to_broker_at: Timestamp,
    to_node_at: Timestamp,
}

struct World {
    plan: Plan,
    dice: Dice,
    now: Timestamp,
    end_of_faults: Timestamp,
    queue: BTreeMap<(Timestamp, u64), Happens>,
    serial: u64,
    broker: Option<Broker>,
    broker_runs: u64,
    disk: Disk,
    nodes: Vec<Option<Process>>,
    links: BTreeMap<u64, Link>,
    next_link: u64,
    next_incarnation: u128,
    clients: Vec<Client>,
    routes: BTreeMap<TeamId, Route>,
    incarnations: BTreeMap<NodeId, Incarnation>,
    asked: BTreeMap<RequestId, usize>,
    next_request: u64,
    /// The highest epoch that anyone outside the broker was shown, by team.
    shown: BTreeMap<TeamId, Epoch>,
    outcome: Outcome,
}

/// Runs one seed to its end.
///
/// # Errors
/// What did not hold, and when.
pub fn run(seed: u64, plan: Plan) -> Result<Outcome, String> {
    let mut world = World::new(seed, plan);
    let end = world.end_of_faults.plus(plan.heal_ms);
    while let Some(((at, _), happens)) = world.queue.pop_first() {
        if at > end {
            break;
        }
        world.now = at;
        world.outcome.steps += 1;
        world.digest(&happens);
        world
            .happen(happens)
            .map_err(|fault| format!("at {} ms: {fault}", at.as_millis()))?;
        world
            .check_safety()
            .map_err(|fault| format!("at {} ms: {fault}", at.as_millis()))?;
    }
    world.check_whole()?;
    Ok(world.outcome)
}

impl World {
    fn new(seed: u64, plan: Plan) -> Self {
        let start = Timestamp::from_millis(1_000);
        let mut world = Self {
            plan,
            dice: Dice::new(seed),
            now: start,
            end_of_faults: start.plus(plan.faults_ms),
            queue: BTreeMap::new(),
            serial: 0,
            broker: None,
            broker_runs: 0,
            disk: Disk::new(),
            nodes: (0..plan.nodes).map(|_| None).collect(),
            links: BTreeMap::new(),
            next_link: 0,
            next_incarnation: 0,
            clients: Vec::new(),
            routes: BTreeMap::new(),
            incarnations: BTreeMap::new(),
            asked: BTreeMap::new(),
            next_request: 0,
            shown: BTreeMap::new(),
            outcome: Outcome::default(),
        };
        world.soon(0, Happens::BrokerStarts);
        for node in 0..plan.nodes {
            world.soon(1, Happens::NodeStarts { node });
        }
        for client in 0..plan.clients {
            if let Ok(team) = format!("t{}", client % plan.teams).parse() {
                world.clients.push(Client::new(team));
            }
            let after = world.dice.within(500, 3_000);
            world.soon(after, Happens::Ask { client });
        }
        world.soon(5_000, Happens::Fault);
        world
    }

    fn soon(&mut self, after_ms: u64, happens: Happens) {
        self.serial += 1;
        self.queue.insert((self.now.plus(after_ms), self.serial), happens);
    }

    fn count(&mut self, what: &'static str) {
        *self.outcome.seen.entry(what).or_insert(0) += 1;
    }

    fn digest(&mut self, happens: &Happens) {
        // FNV-1a over the event's own text and its time.
        let text = format!("{} {happens:?}", self.now.as_millis());
        let mut hash = self.outcome.trace ^ 0xcbf2_9ce4_8422_2325;
        for byte in text.bytes() {
            hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
        }
        self.outcome.trace = hash;
    }

    fn happen(&mut self, happens: Happens) -> Result<(), String> {
        match happens {
            Happens::Wake { run } => self.wake(run),
            Happens::Durable { run } => {
                if let Some(broker) = self.broker.as_mut().filter(|broker| broker.run == run) {
                    let (commands, begin) = broker.durable(&mut self.disk);
                    self.carry_out(commands, begin);
                }
            }
            Happens::ToBroker { link, message } => self.broker_receives(link, *message),
            Happens::ToNode { link, message } => self.node_receives(link, *message)?,
            Happens::BrokerSeesClose { run, link } => {
                if self.broker.as_ref().is_some_and(|broker| broker.run == run) {
                    self.tell(Event::LinkClosed { link: LinkId(link) });
                }
            }
            Happens::NodeSeesClose { node, link } => {
                let Some(process) = self.nodes[node]
                    .as_mut()
                    .filter(|process| process.link == Some(link))
                else {
                    return Ok(());
                };
                process.link_broke();
                let incarnation = process.incarnation;
                let after = self.dice.within(50, 500);
                self.soon(after, Happens::Dial { node, incarnation });
            }
            Happens::Dial { node, incarnation } => self.dial(node, incarnation),
            Happens::Beat { node, incarnation } => self.beat(node, incarnation),
            Happens::Probed {
                run,
                node,
                incarnation,
            } => self.probed(run, node, incarnation),
            Happens::Witness {
                node,
                incarnation,
                tries,
            } => {
                if self.broker.is_some() {
                    self.tell(Event::Exited(Exited { node, incarnation }));
                } else if tries > 0 {
                    self.soon(
                        1_000,
                        Happens::Witness {
                            node,
                            incarnation,
                            tries: tries - 1,
                        },
                    );
                }
            }
            Happens::Ask { client } => self.ask(client),
            Happens::Arrive {
                client,
                route,
                incarnation,
                since,
            } => self.arrive(client, route, incarnation, since),
            Happens::NodeStarts { node } => self.start_node(node),
            Happens::BrokerStarts => self.start_broker(),
            Happens::Fault => self.fault(),
        }
        Ok(())
    }

    fn start_broker(&mut self) {
        if self.broker.is_some() {
            return;
        }
        self.broker_runs += 1;
        let run = self.broker_runs;
        let mut broker = Broker::start(&mut self.disk, run, self.now, self.now.as_millis());
        let (commands, begin) = broker.collect();
        self.broker = Some(broker);
        self.routes.clear();
        self.carry_out(commands, begin);
        self.soon(1, Happens::Wake { run });
    }

    fn wake(&mut self, run: u64) {
        let now = self.now;
        let Some(broker) = self.broker.as_mut().filter(|broker| broker.run == run) else {
            return;
        };
        let (commands, begin) = broker.wake(now);
        let next = broker.core.next_deadline().since(now).max(1);
        self.carry_out(commands, begin);
        self.soon(next, Happens::Wake { run });
    }

    fn tell(&mut self, event: Event) {
        let now = self.now;
        if let Some(broker) = &mut self.broker {
            let (commands, begin) = broker.handle(event, now);
            self.carry_out(commands, begin);
        }
    }

    fn carry_out(&mut self, commands: Vec<Command>, begin_write: bool) {
        let Some(run) = self.broker.as_ref().map(|broker| broker.run) else {
            return;
        };
        if begin_write {
            let after = self.dice.within(1, 20);
            self.soon(after, Happens::Durable { run });
        }
        for command in commands {
            match command {
                Command::Send { link, message } => {
                    self.show_epoch(&message);
                    self.send_to_node(link.0, message);
                }
                Command::Close { link, refused } => {
                    self.send_to_node(link.0, Box::new(ToNode::Refused(refused)));
                    self.break_link(link.0);
                }
                Command::Route {
                    team,
                    route: Some(route),
                } => {
                    self.routes.insert(team, route);
                }
                Command::Route { team, route: None } => {
                    self.routes.remove(&team);
                }
                Command::Node {
                    node,
                    entry: Some(entry),
                } => {
                    self.incarnations.insert(node, entry.incarnation);
                }
                Command::Node { node, entry: None } => {
                    self.incarnations.remove(&node);
                }
                Command::Answer { request, answer } => self.answered(request, answer),
                Command::Probe {
                    node, incarnation, ..
                } => {
                    self.soon(
                        300,
                        Happens::Probed {
                            run,
                            node,
                            incarnation,
                        },
                    );
                }
                Command::Notice(notice) => self.notice(&notice),
                Command::Write(_) => {}
            }
        }
    }

    fn notice(&mut self, notice: &usher_placement::Notice) {
        use usher_placement::Notice;
        match notice {
            Notice::NodeDead { evidence, .. } => self.count(evidence),
            Notice::SelfPreservation { on: true, .. } => self.count("self-preservation"),
            Notice::OperationEnded { .. } => self.count("operation ended"),
            Notice::StoreRegressed { .. } => self.count("store regressed"),
            Notice::Unplaced { .. } => self.count("unplaced"),
            Notice::Moved { outcome, .. } => self.count(outcome),
            _ => {}
        }
    }

    /// Remembers what the outside has seen, so that a forgetful broker is caught.
    fn show_epoch(&mut self, message: &ToNode) {
        // What is only prepared may be undone, and its epoch is then burned.
        if let ToNode::Assign(assign) = message
            && assign.state == HoldState::Owned
        {
            let shown = self.shown.entry(assign.team.clone()).or_default();
            *shown = (*shown).max(assign.epoch);
        }
    }

    fn send_to_node(&mut self, link: u64, message: Box<ToNode>) {
        let delay = self.dice.within(1, 30);
        let Some(known) = self.links.get_mut(&link) else {
            return;
        };
        known.to_node_at = known.to_node_at.max(self.now.plus(delay));
        let at = known.to_node_at.since(self.now);
        self.soon(at, Happens::ToNode { link, message });
    }

    fn send_to_broker(&mut self, link: u64, message: ToBroker) {
        let delay = self.dice.within(1, 30);
        let Some(known) = self.links.get_mut(&link) else {
            return;
        };
        known.to_broker_at = known.to_broker_at.max(self.now.plus(delay));
        let at = known.to_broker_at.since(self.now);
        self.soon(
            at,
            Happens::ToBroker {
                link,
                message: Box::new(message),
            },
        );
    }

    /// The link is gone, with what was on its way. Each side notices in its own time, if at all soon.
    fn break_link(&mut self, link: u64) {
        let Some(known) = self.links.remove(&link) else {
            return;
        };
        let run = known.broker_run;
        let (broker_sees, node_sees) = (self.dice.within(0, 3_000), self.dice.within(0, 3_000));
        // What was sent before the close may still be read before it is seen.
        self.soon(broker_sees, Happens::BrokerSeesClose { run, link });
        self.soon(
            node_sees,
            Happens::NodeSeesClose {
                node: known.node,
                link,
            },
        );
    }

    fn broker_receives(&mut self, link: u64, message: ToBroker) {
        let current = self.broker.as_ref().map(|broker| broker.run);
        if self
            .links
            .get(&link)
            .is_none_or(|known| Some(known.broker_run) != current)
        {
            return;
        }
        let id = LinkId(link);
        let wall_ms = self.now.as_millis();
        let event = match message {
            ToBroker::Hello(hello) => Event::Hello { link: id, hello },
            ToBroker::Inventory(page) => Event::Inventory { link: id, page },
            ToBroker::Heartbeat(heartbeat) => Event::Heartbeat {
                link: id,
                heartbeat,
                wall_ms,
            },
            ToBroker::Prepared(held) => Event::Prepared { link: id, held },
            ToBroker::Yielded(held) => Event::Yielded { link: id, held },
            ToBroker::Released(held) => Event::Released { link: id, held },
            _ => return,
        };
        self.tell(event);
    }

    fn node_receives(&mut self, link: u64, message: ToNode) -> Result<(), String> {
        let now = self.now;
        let Some(node) = self.links.get(&link).map(|known| known.node) else {
            return Ok(());
        };
        let Some(process) = self.nodes[node]
            .as_mut()
            .filter(|process| process.link == Some(link))
        else {
            return Ok(());
        };
        let Reaction { say, closed, hang_up } = process.receive(message, now);
        for (team, (epoch, _)) in process.held() {
            let highest = process.highest.entry(team.clone()).or_insert(epoch);
            if epoch < *highest {
                return Err(format!(
                    "node {node} went back from epoch {highest} to {epoch} for {team}"
                ));
            }
            *highest = epoch;
        }
        for message in say {
            self.send_to_broker(link, message);
        }
        for client in closed {
            self.thrown_out(client, None);
        }
        if hang_up {
            self.break_link(link);
        }
        Ok(())
    }

    fn start_node(&mut self, node: usize) {
        if self.nodes[node].is_some() {
            return;
        }
        self.next_incarnation += 1;
        let incarnation = Incarnation::from_bits(self.next_incarnation);
        if let Ok(id) = format!("n{node}").parse() {
            self.nodes[node] = Some(Process::start(id, incarnation));
            self.soon(10, Happens::Dial { node, incarnation });
            self.soon(500, Happens::Beat { node, incarnation });
        }
    }

    fn dial(&mut self, node: usize, incarnation: Incarnation) {
        let run = self.broker.as_ref().map(|broker| broker.run);
        let Some(process) = self.nodes[node]
            .as_mut()
            .filter(|process| process.incarnation == incarnation)
        else {
            return;
        };
        if process.link.is_some() {
            return;
        }
        let (Some(broker_run), Some(hello)) = (run, process.hello()) else {
            self.soon(500, Happens::Dial { node, incarnation });
            return;
        };
        self.next_link += 1;
        let link = self.next_link;
        process.dialled(link);
        self.links.insert(
            link,
            Link {
                node,
                broker_run,
                to_broker_at: self.now,
                to_node_at: self.now,
            },
        );
        self.send_to_broker(link, ToBroker::Hello(Box::new(hello)));
    }

    fn beat(&mut self, node: usize, incarnation: Incarnation) {
        let now = self.now;
        let Some(process) = self.nodes[node]
            .as_mut()
            .filter(|process| process.incarnation == incarnation)
        else {
            return;
        };
        let beat = process.heartbeat(now);
        if let (Some(beat), Some(link)) = (beat, process.link) {
            self.send_to_broker(link, beat);
        }
        let after = self.dice.within(900, 1_100);
        self.soon(after, Happens::Beat { node, incarnation });
    }

    fn probed(&mut self, run: u64, node: NodeId, incarnation: Incarnation) {
        let alive = self.nodes.iter().flatten().any(|process| process.id == node);
        if self.broker.as_ref().is_some_and(|broker| broker.run == run) {
            let outcome = if alive {
                ProbeOutcome::Answered
            } else {
                ProbeOutcome::Refused
            };
            self.tell(Event::Probed {
                node,
                incarnation,
                outcome,
            });
        }
    }

    fn ask(&mut self, client: usize) {
        if self.clients[client].at != At::Nowhere {
            return;
        }
        if self.broker.is_none() {
            let after = self.dice.within(200, 1_000);
            self.soon(after, Happens::Ask { client });
            return;
        }
        let team = self.clients[client].team.clone();
        let knock = self.clients[client].knock.take();
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.asked.insert(request, client);
        self.tell(Event::Request {
            request,
            ask: Ask::Connect {
                team,
                may_create: true,
                region: None,
                knock,
            },
        });
    }

    fn answered(&mut self, request: RequestId, answer: Result<Answer, usher_placement::Refusal>) {
        let Some(client) = self.asked.remove(&request) else {
            return;
        };
        match answer {
            Ok(Answer::Assigned { route, .. }) => {
                let team = self.clients[client].team.clone();
                let shown = self.shown.entry(team).or_default();
                *shown = (*shown).max(route.epoch);
                let Some(incarnation) = self.incarnations.get(&route.node).copied() else {
                    return self.thrown_out(client, None);
                };
                let since = self.now;
                let after = self.dice.within(1, 50);
                self.soon(
                    after,
                    Happens::Arrive {
                        client,
                        route,
                        incarnation,
                        since,
                    },
                );
            }
            _ => {
                self.count("client refused");
                self.thrown_out(client, None);
            }
        }
    }

    fn arrive(&mut self, client: usize, route: Route, incarnation: Incarnation, since: Timestamp) {
        let now = self.now;
        let team = self.clients[client].team.clone();
        let found = self.nodes.iter_mut().position(|process| {
            process
                .as_ref()
                .is_some_and(|process| process.id == route.node && process.incarnation == incarnation)
        });
        let knock = Some(Knock {
            node: route.node.clone(),
            incarnation,
            epoch: route.epoch,
        });
        let Some((at, process)) = found.and_then(|at| Some((at, self.nodes[at].as_mut()?))) else {
            return self.thrown_out(client, knock);
        };
        match process.admit(&team, route.epoch, client, now) {
            Some(true) => self.clients[client].at = At::Node(at),
            Some(false) => self.thrown_out(client, knock),
            None if now.since(since) < 1_000 => self.soon(
                50,
                Happens::Arrive {
                    client,
                    route,
                    incarnation,
                    since,
                },
            ),
            None => {
                self.count("waited in vain");
                self.thrown_out(client, knock);
            }
        }
    }

    fn thrown_out(&mut self, client: usize, knock: Option<Knock>) {
        self.clients[client].at = At::Nowhere;
        self.clients[client].knock = knock;
        let after = self.dice.within(50, 1_000);
        self.soon(after, Happens::Ask { client });
    }

    fn fault(&mut self) {
        if self.now >= self.end_of_faults {
            return self.heal();
        }
        let node = self.dice.within(0, self.plan.nodes as u64 - 1) as usize;
        match self.dice.within(0, 9) {
            0..=2 => self.crash_node(node),
            3..=5 => {
                let links: Vec<u64> = self.links.keys().copied().collect();
                if !links.is_empty() {
                    let link = links[self.dice.within(0, links.len() as u64 - 1) as usize];
                    self.count("link broken");
                    self.break_link(link);
                }
            }
            6 => self.crash_broker(),
            7 => self.operator(node, |node| Ask::Drain {
                node,
                post: DrainPost {
                    force: true,
                    ..DrainPost::default()
                },
            }),
            8 => self.operator(node, |node| Ask::Undrain { node }),
            _ => {
                let team = self.dice.within(0, self.plan.teams as u64 - 1);
                if let Ok(team) = format!("t{team}").parse() {
                    self.operator(node, |_| Ask::Delete { team });
                }
            }
        }
        let after = self.dice.within(200, 4_000);
        self.soon(after, Happens::Fault);
    }

    fn operator(&mut self, node: usize, ask: impl FnOnce(NodeId) -> Ask) {
        if let Ok(id) = format!("n{node}").parse() {
            self.next_request += 1;
            let request = RequestId(self.next_request);
            self.tell(Event::Request {
                request,
                ask: ask(id),
            });
        }
    }

    fn crash_node(&mut self, node: usize) {
        let Some(process) = self.nodes[node].take() else {
            return;
        };
        self.count("node crashed");
        if let Some(link) = process.link {
            self.break_link(link);
        }
        for client in process.clients.into_values().flatten() {
            self.thrown_out(client, None);
        }
        if self.dice.percent(50) {
            let after = self.dice.within(1, 200);
            let (node, incarnation) = (process.id, process.incarnation);
            self.soon(
                after,
                Happens::Witness {
                    node,
                    incarnation,
                    tries: 3,
                },
            );
        }
        let after = self.dice.within(100, 20_000);
        self.soon(after, Happens::NodeStarts { node });
    }

    fn crash_broker(&mut self) {
        if self.broker.take().is_none() {
            return;
        }
        self.count("broker crashed");
        let links: Vec<u64> = self.links.keys().copied().collect();
        for link in links {
            self.break_link(link);
        }
        let waiting: Vec<usize> = std::mem::take(&mut self.asked).into_values().collect();
        for client in waiting {
            self.thrown_out(client, None);
        }
        let after = self.dice.within(100, 15_000);
        self.soon(after, Happens::BrokerStarts);
    }

    /// Everything comes up again, and operators undo what they did.
    fn heal(&mut self) {
        self.soon(0, Happens::BrokerStarts);
        if self.broker.is_none() {
            // Undone once there is a broker to tell.
            self.soon(10, Happens::Fault);
            return;
        }
        for node in 0..self.plan.nodes {
            self.soon(0, Happens::NodeStarts { node });
            self.operator(node, |node| Ask::Undrain { node });
        }
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.tell(Event::Request {
            request,
            ask: Ask::Release,
        });
    }

    /// What must hold after every event.
    fn check_safety(&self) -> Result<(), String> {
        let mut exclusive: BTreeMap<TeamId, (usize, Epoch)> = BTreeMap::new();
        for (node, process) in self.nodes.iter().enumerate() {
            let Some(process) = process else { continue };
            for (team, epoch) in process.exclusive(self.now) {
                if let Some((other, their)) = exclusive.insert(team.clone(), (node, epoch)) {
                    return Err(format!(
                        "{team} may be served exclusively by node {other} (epoch {their}) and node {node} (epoch {epoch})"
                    ));
                }
            }
        }
        for (team, route) in &self.routes {
            let shown = self.shown.get(team).copied().unwrap_or_default();
            if route.epoch < shown {
                return Err(format!(
                    "{team} was shown under epoch {shown} and is routed under {}",
                    route.epoch
                ));
            }
        }
        Ok(())
    }

    /// What must hold once the faults are over.
    fn check_whole(&self) -> Result<(), String> {
        let Some(broker) = &self.broker else {
            return Err("the broker did not come up".to_owned());
        };
        let mut owned = BTreeSet::new();
        for view in broker.core.teams(None, None, 1_000, self.now).teams {
            let Some(owner) = view.node else {
                return Err(format!("{} has no owner", view.team));
            };
            let process = self.nodes.iter().flatten().find(|process| process.id == owner);
            let held = process.and_then(|process| process.held().get(&view.team).copied());
            if held != Some((view.epoch, HoldState::Owned)) {
                return Err(format!(
                    "{owner} owns {} under epoch {} and holds {held:?}",
                    view.team, view.epoch
                ));
            }
            owned.insert((owner, view.team));
        }
        for process in self.nodes.iter().flatten() {
            for team in process.held().into_keys() {
                if !owned.contains(&(process.id.clone(), team.clone())) {
                    return Err(format!("{} holds {team}, which it does not own", process.id));
                }
            }
        }
        for (serial, client) in self.clients.iter().enumerate() {
            let At::Node(node) = client.at else {
                return Err(format!("client {serial} of {} is not connected", client.team));
            };
            let owner = self.nodes[node].as_ref().map(|process| process.id.clone());
            if !owner.is_some_and(|owner| owned.contains(&(owner, client.team.clone()))) {
                return Err(format!("client {serial} is not where {} is", client.team));
            }
        }
        Ok(())
    }
}
