//! A core with obedient nodes around it, on a clock that only the test moves.

#![allow(dead_code, unreachable_pub)] // each test file uses its part
#![allow(clippy::unwrap_used, clippy::expect_used)] // a test that cannot go on should stop

use std::collections::{BTreeMap, BTreeSet};
use usher_placement::{
    Answer, Ask, Command, Core, Event, LinkId, NodeEntry, Notice, ProbeOutcome, Record, Refusal, RequestId,
    Route, Settings, Snapshot, TeamRecord,
};
use usher_shared::grant::GrantSigner;
use usher_shared::id::{BrokerId, ClusterId, ConnectionId, Incarnation, NodeId, OperationId, TeamId};
use usher_shared::identity::Hidden;
use usher_shared::link::*;
use usher_shared::quantity::{Epoch, Millicores, Term, Timestamp, Weight};
use usher_shared::rest::{OperationView, ProbeState, TeamPatch, TeamPut, TeamView};
use usher_shared::secret::Key;

pub const START: Timestamp = Timestamp::from_millis(1_000_000);
pub const WALL: u64 = 1_800_000_000_000;

pub fn node(name: &str) -> NodeId {
    name.parse().unwrap()
}

pub fn team(name: &str) -> TeamId {
    name.parse().unwrap()
}

pub fn cluster() -> ClusterId {
    ClusterId::from_bits(77)
}

pub fn grants() -> GrantSigner {
    GrantSigner::new(Key::from_bytes([9; 32]), cluster())
}

/// Nodes of these names with so many teams spread over them, settled.
pub fn pool(names: &[&str], teams: u32) -> World {
    let mut world = World::new();
    for name in names {
        world.add(name);
    }
    for serial in 0..teams {
        world.place(&format!("t{serial}"));
    }
    world.advance(3_000);
    world
}

/// The same with nodes that count their connections and keep to a pace.
pub fn counting_pool(names: &[&str], teams: u32) -> World {
    let mut world = World::new();
    for name in names {
        world.add_with(name, |hello| {
            hello.capabilities = vec![PACED_MOVES.parse().unwrap()];
        });
    }
    for serial in 0..teams {
        world.place(&format!("t{serial}"));
    }
    world.advance(3_000);
    world
}

/// What a fake node holds of a team.
#[derive(Clone, Debug)]
pub struct Holding {
    pub epoch: Epoch,
    pub state: HoldState,
    pub grant: String,
}

/// A node that does what it is told, unless told not to.
#[derive(Clone, Debug)]
pub struct FakeNode {
    pub hello: Hello,
    pub link: Option<LinkId>,
    pub seq: u64,
    pub held: BTreeMap<TeamId, Holding>,
    pub cpu: u32,
    pub connections: u32,
    pub large_teams: Vec<LargeTeam>,
    pub hot_teams: Vec<HotTeam>,
    pub wall_skew_ms: i64,
    /// How fast its clock runs, beside everybody else's.
    pub clock_percent: u64,
    pub health: Health,
    /// What it saw of its clients.
    pub clients: Option<Clients>,
    pub descriptors_left: u32,
    /// Whether it answers `prepared`.
    pub prepares: bool,
    /// Whether it answers `released`.
    pub releases: bool,
    /// Whether it sends heartbeats.
    pub beats: bool,
    /// Who is at its probe address.
    pub answers_as: ProbeState,
    pub acks: Vec<u64>,
    /// Whom it would ask whether they hear the broker.
    pub peers: Vec<Peer>,
    /// What the broker confirmed, over all links.
    pub confirmed: Vec<TeamEpoch>,
    /// Connections by team, of a node that counts them.
    pub crowds: BTreeMap<TeamId, u32>,
    /// Teams whose connections leave at a pace.
    pub leaving: Vec<Leaving>,
    /// Whether somebody who leaves another node can come in here.
    pub reachable: bool,
}

/// A team whose connections leave a fake node.
#[derive(Clone, Debug)]
pub struct Leaving {
    pub team: TeamId,
    pub epoch: Epoch,
    pub operation: OperationId,
    pub left: u32,
    /// How many it had when it began to go.
    pub size: u32,
    pub pace: TeamPace,
    /// When the next may go.
    pub next: Timestamp,
}

pub struct World {
    pub core: Core,
    pub now: Timestamp,
    pub nodes: BTreeMap<NodeId, FakeNode>,
    pub links: BTreeMap<LinkId, NodeId>,
    pub routes: BTreeMap<TeamId, Route>,
    pub entries: BTreeMap<NodeId, NodeEntry>,
    pub answers: BTreeMap<RequestId, Result<Answer, Refusal>>,
    pub notices: Vec<Notice>,
    pub probes: Vec<(NodeId, Incarnation)>,
    pub url_probes: Vec<(NodeId, Incarnation)>,
    pub closed: Vec<(LinkId, Refused)>,
    pub assigned: Vec<Assign>,
    /// What the store would hold.
    pub store: Stored,
    /// How many of a hundred clients come back to another node, and after how long.
    pub returning_percent: u32,
    pub return_after_ms: u64,
    /// Who left which node when, over all operations.
    pub departures: Vec<(Timestamp, NodeId)>,
    returns: Vec<(Timestamp, TeamId, Epoch, ConnectionId)>,
    serial: u64,
    last_beat: Timestamp,
    next_link: u64,
    next_request: u64,
    next_incarnation: u128,
    term: Term,
}

#[derive(Clone, Default)]
pub struct Stored {
    pub epochs: Epoch,
    pub term: Term,
    pub teams: BTreeMap<TeamId, usher_placement::TeamRecord>,
    pub nodes: BTreeMap<NodeId, usher_placement::NodeRecord>,
    pub operations: BTreeMap<OperationId, usher_placement::OperationRecord>,
}

impl World {
    pub fn new() -> Self {
        Self::with(Settings::default())
    }

    pub fn with(settings: Settings) -> Self {
        let term = Term::new(1).unwrap();
        let snapshot = Snapshot::empty(cluster(), term);
        let core = Core::new(
            settings,
            snapshot,
            BrokerId::from_bits(1),
            "http://b".into(),
            grants(),
            START,
            WALL,
        );
        Self {
            core,
            now: START,
            nodes: BTreeMap::new(),
            links: BTreeMap::new(),
            routes: BTreeMap::new(),
            entries: BTreeMap::new(),
            answers: BTreeMap::new(),
            notices: Vec::new(),
            probes: Vec::new(),
            url_probes: Vec::new(),
            closed: Vec::new(),
            assigned: Vec::new(),
            store: Stored {
                epochs: Epoch::new(1).unwrap(),
                term,
                ..Stored::default()
            },
            returning_percent: 100,
            return_after_ms: 200,
            departures: Vec::new(),
            returns: Vec::new(),
            serial: 0,
            last_beat: START,
            next_link: 0,
            next_request: 0,
            next_incarnation: 0,
            term,
        }
    }

    /// A broker that crashed and came up again from its store: all links are gone.
    pub fn restart_broker(&mut self, settings: Settings) {
        self.term = self.term.next();
        self.store.term = self.term;
        let snapshot = Snapshot {
            cluster: cluster(),
            term: self.term,
            epochs_reserved: self.store.epochs,
            teams: self.store.teams.clone().into_iter().collect(),
            nodes: self.store.nodes.clone().into_iter().collect(),
            operations: self.store.operations.clone().into_iter().collect(),
        };
        let wall = WALL + self.now.since(START);
        self.core = Core::new(
            settings,
            snapshot,
            BrokerId::from_bits(2),
            "http://b".into(),
            grants(),
            self.now,
            wall,
        );
        self.links.clear();
        self.routes.clear();
        for node in self.nodes.values_mut() {
            node.link = None;
        }
        self.pump();
    }

    pub fn hello(&mut self, name: &str) -> Hello {
        self.next_incarnation += 1;
        Hello {
            protocol: PROTOCOL,
            node: node(name),
            incarnation: Incarnation::from_bits(self.next_incarnation << 104),
            nonce: Some(Hidden::from_bits(self.next_incarnation)),
            lock: None,
            version: "1.0.0".to_owned(),
            capabilities: Vec::new(),
            url: format!("ws://{name}:7410/teams/{{team}}").parse().unwrap(),
            probe: format!("{name}:7410"),
            region: None,
            zone: None,
            labels: BTreeMap::new(),
            weight: Weight::NODE,
            cores: Millicores::new(2_000).unwrap(),
            capacity: Capacity {
                teams: 100_000,
                connections: 100_000,
            },
            cluster: None,
            highest_term: Term::default(),
            broker: None,
            highest_grant: None,
        }
    }

    pub fn add(&mut self, name: &str) {
        let hello = self.hello(name);
        self.add_hello(hello);
    }

    pub fn add_with(&mut self, name: &str, change: impl FnOnce(&mut Hello)) {
        let mut hello = self.hello(name);
        change(&mut hello);
        self.add_hello(hello);
    }

    pub fn add_hello(&mut self, hello: Hello) {
        let id = hello.node.clone();
        let fake = FakeNode {
            hello,
            link: None,
            seq: 0,
            held: BTreeMap::new(),
            cpu: 10,
            connections: 0,
            large_teams: Vec::new(),
            hot_teams: Vec::new(),
            wall_skew_ms: 0,
            clock_percent: 100,
            health: Health::Good,
            clients: None,
            descriptors_left: 10_000,
            prepares: true,
            releases: true,
            beats: true,
            answers_as: ProbeState::Proven,
            acks: Vec::new(),
            peers: Vec::new(),
            confirmed: Vec::new(),
            crowds: BTreeMap::new(),
            leaving: Vec::new(),
            reachable: true,
        };
        self.nodes.insert(id.clone(), fake);
        self.connect(id.as_str());
    }

    /// (Re)connects a node that runs: hello, inventory, first heartbeat.
    pub fn connect(&mut self, name: &str) {
        let link = self.say_hello(name);
        self.say_inventory(name, link);
        self.beat(name);
    }

    pub fn say_hello(&mut self, name: &str) -> LinkId {
        self.next_link += 1;
        let link = LinkId(self.next_link);
        let fake = self.nodes.get_mut(&node(name)).unwrap();
        fake.link = Some(link);
        fake.seq = 0;
        self.links.insert(link, node(name));
        let hello = Box::new(fake.hello.clone());
        self.tell(Event::Hello { link, hello });
        link
    }

    pub fn say_inventory(&mut self, name: &str, link: LinkId) {
        let held = &self.nodes[&node(name)].held;
        let teams = held.iter().map(|(team, holding)| Held {
            team: team.clone(),
            epoch: holding.epoch,
            grant: holding.grant.clone(),
            state: holding.state,
            connections: 0,
        });
        let page = Inventory {
            teams: teams.collect(),
            more: false,
        };
        self.tell(Event::Inventory { link, page });
    }

    pub fn beat(&mut self, name: &str) {
        let wall_ms = WALL + self.now.since(START);
        let now = self.now;
        let fake = self.nodes.get_mut(&node(name)).unwrap();
        let Some(link) = fake.link else { return };
        fake.seq += 1;
        let heartbeat = Heartbeat {
            seq: fake.seq,
            boot_ms: now.as_millis() * fake.clock_percent / 100,
            wall_ms: wall_ms.saturating_add_signed(fake.wall_skew_ms),
            cpu_now: Millicores::new(fake.cpu).unwrap(),
            cpu_average: Millicores::new(fake.cpu).unwrap(),
            memory_bytes: 1 << 20,
            memory: None,
            connections: fake.connections,
            teams: fake.held.len() as u32,
            fds: Descriptors {
                used: 0,
                limit: fake.descriptors_left,
            },
            health: fake.health,
            idle_teams: Vec::new(),
            hot_teams: fake.hot_teams.clone(),
            clients: fake.clients,
            large_teams: fake.large_teams.clone(),
        };
        self.tell(Event::Heartbeat {
            link,
            heartbeat: Box::new(heartbeat),
            wall_ms,
        });
    }

    /// The link breaks; both sides see it.
    pub fn cut(&mut self, name: &str) {
        if let Some(link) = self.nodes.get_mut(&node(name)).unwrap().link.take() {
            self.links.remove(&link);
            self.tell(Event::LinkClosed { link });
        }
    }

    /// SIGKILL without a witness: the link closes, and the address refuses.
    pub fn kill(&mut self, name: &str) {
        self.cut(name);
        let fake = self.nodes.remove(&node(name)).unwrap();
        self.tell(Event::Probed {
            node: node(name),
            incarnation: fake.hello.incarnation,
            outcome: ProbeOutcome::Refused,
        });
    }

    /// SIGKILL with a parent that reports it.
    pub fn kill_with_witness(&mut self, name: &str) {
        let fake = self.nodes.remove(&node(name)).unwrap();
        self.tell(Event::Exited(Exited {
            node: node(name),
            incarnation: fake.hello.incarnation,
            nonce: fake.hello.nonce,
        }));
        if let Some(link) = fake.link {
            self.links.remove(&link);
            self.tell(Event::LinkClosed { link });
        }
    }

    /// What the parent of a node's process would report.
    pub fn exit_of(&self, name: &str) -> Exited {
        let hello = &self.nodes[&node(name)].hello;
        Exited {
            node: node(name),
            incarnation: hello.incarnation,
            nonce: hello.nonce,
        }
    }

    pub fn tell(&mut self, event: Event) {
        self.core.handle(event, self.now);
        self.pump();
    }

    /// Moves the clock, beating and waking the core as they are due.
    pub fn advance(&mut self, millis: u64) {
        let end = self.now.plus(millis);
        while self.now < end {
            let beat_at = self.last_beat.plus(1_000);
            self.now = self
                .core
                .next_deadline()
                .max(self.now.plus(1))
                .min(beat_at)
                .min(end);
            if self.now >= beat_at {
                self.last_beat = self.now;
                let names: Vec<NodeId> = self
                    .nodes
                    .iter()
                    .filter(|(_, fake)| fake.beats)
                    .map(|(id, _)| id.clone())
                    .collect();
                for name in names {
                    self.beat(name.as_str());
                }
            }
            if self.now >= self.core.next_deadline() {
                self.core.handle_deadline(self.now);
                self.pump();
            }
            self.move_crowds();
        }
    }

    /// Gives a node that counts so many connections of a team.
    pub fn crowd(&mut self, name: &str, connections: u32) {
        let owner = self.owner(name).unwrap();
        let fake = self.nodes.get_mut(&node(&owner)).unwrap();
        fake.crowds.insert(team(name), connections);
        fake.connections = fake.crowds.values().sum();
    }

    /// Lets those go whose turn it is, and those come back whose time it is.
    fn move_crowds(&mut self) {
        let now = self.now;
        let mut told = Vec::new();
        for (name, fake) in &mut self.nodes {
            let Some(link) = fake.link else { continue };
            for one in &mut fake.leaving {
                let mut gone = Vec::new();
                while one.left > 0 && one.pace.rate_per_s > 0 && one.next <= now {
                    let many = if one.pace.first > 0 {
                        one.pace.first.min(one.left)
                    } else if one.size <= one.pace.at_once {
                        one.left
                    } else {
                        1
                    };
                    for _ in 0..many {
                        self.serial += 1;
                        let connection = ConnectionId::new(fake.hello.incarnation, self.serial);
                        gone.push(Departure {
                            team: one.team.clone(),
                            epoch: one.epoch,
                            connection,
                            by: EndedBy::Slot,
                            age_ms: Some(0),
                        });
                        self.departures.push((now, name.clone()));
                        if self.serial % 100 < u64::from(self.returning_percent) {
                            let at = now.plus(self.return_after_ms);
                            self.returns.push((at, one.team.clone(), one.epoch, connection));
                        }
                    }
                    one.left -= many;
                    fake.connections = fake.connections.saturating_sub(many);
                    if one.pace.first > 0 {
                        one.pace.first = 0;
                        one.pace.rate_per_s = 0;
                    }
                    one.next = one.next.plus(1_000 / u64::from(one.pace.rate_per_s.max(1)));
                }
                if !gone.is_empty() {
                    let departures = Departures { connections: gone };
                    told.push(Event::Left { link, departures });
                }
                if one.left == 0 {
                    let held = TeamEpoch {
                        team: one.team.clone(),
                        epoch: one.epoch,
                    };
                    told.push(Event::Released { link, held });
                }
            }
            fake.leaving.retain(|one| one.left > 0);
        }
        let (due, later) = std::mem::take(&mut self.returns)
            .into_iter()
            .partition::<Vec<_>, _>(|(at, ..)| *at <= now);
        self.returns = later;
        for (_, team, epoch, from) in due {
            let Some(owner) = self.owner(team.as_str()) else {
                continue;
            };
            let fake = &self.nodes[&node(&owner)];
            let Some(link) = fake.link.filter(|_| fake.reachable) else {
                continue;
            };
            self.serial += 1;
            let arrival = Arrival {
                team,
                epoch,
                connection: ConnectionId::new(fake.hello.incarnation, self.serial),
                from: Some(from),
                age_ms: Some(0),
            };
            let connections = vec![arrival];
            told.push(Event::Arrived {
                link,
                arrivals: Arrivals { connections },
            });
        }
        for event in told {
            self.tell(event);
        }
    }

    pub fn drain_at(&mut self, name: &str, post: usher_shared::rest::DrainPost) -> OperationId {
        let ask = Ask::Drain {
            node: node(name),
            post,
        };
        match self.ask(ask) {
            Ok(Answer::Operation(operation)) => operation,
            other => panic!("the drain of {name} did not begin: {other:?}"),
        }
    }

    pub fn ask(&mut self, ask: Ask) -> Result<Answer, Refusal> {
        self.next_request += 1;
        let request = RequestId(self.next_request);
        self.tell(Event::Request { request, ask });
        self.answers.remove(&request).expect("every request is answered")
    }

    pub fn try_connect(&mut self, name: &str) -> Result<Answer, Refusal> {
        self.ask(Ask::Connect {
            team: team(name),
            may_create: true,
            region: None,
            knock: None,
        })
    }

    /// Connects, and says where the team is.
    pub fn place(&mut self, name: &str) -> String {
        match self.try_connect(name) {
            Ok(Answer::Assigned { route, .. }) => route.node.to_string(),
            other => panic!("{name} was not placed: {other:?}"),
        }
    }

    pub fn put(&mut self, name: &str, put: TeamPut) -> Result<Answer, Refusal> {
        self.ask(Ask::Put {
            team: team(name),
            put,
        })
    }

    pub fn patch(&mut self, name: &str, patch: TeamPatch) -> Result<Answer, Refusal> {
        self.ask(Ask::Patch {
            team: team(name),
            patch,
        })
    }

    pub fn view(&self, name: &str) -> TeamView {
        self.core.team(&team(name), self.now).unwrap()
    }

    /// What the store has of a team.
    pub fn stored(&self, name: &str) -> TeamRecord {
        self.store.teams[&team(name)].clone()
    }

    pub fn drain(&mut self, name: &str) -> OperationId {
        match self.ask(Ask::Drain {
            node: node(name),
            post: Default::default(),
        }) {
            Ok(Answer::Operation(operation)) => operation,
            other => panic!("the drain of {name} did not begin: {other:?}"),
        }
    }

    pub fn operation(&self, id: &OperationId) -> OperationView {
        self.core.operation(id, self.now).expect("operations are kept")
    }

    pub fn owner(&self, name: &str) -> Option<String> {
        self.core
            .team(&team(name), self.now)?
            .node
            .map(|node| node.to_string())
    }

    pub fn epoch(&self, name: &str) -> Epoch {
        self.core.team(&team(name), self.now).unwrap().epoch
    }

    /// Teams by owner, as the core has it.
    pub fn spread(&self) -> BTreeMap<String, u32> {
        let nodes = self.core.nodes(self.now).into_iter();
        nodes.map(|view| (view.node.to_string(), view.teams)).collect()
    }

    pub fn connection(&self, name: &str, serial: u64) -> ConnectionId {
        ConnectionId::new(self.nodes[&node(name)].hello.incarnation, serial)
    }

    pub fn noticed(&self, test: impl Fn(&Notice) -> bool) -> bool {
        self.notices.iter().any(test)
    }

    /// Carries out commands until there are none, the store and the nodes included.
    pub fn pump(&mut self) {
        while let Some(command) = self.core.poll_command() {
            match command {
                Command::Write(record) => self.store.write(record),
                Command::Send { link, message } => self.receive(link, *message),
                Command::Close { link, refused } => {
                    if let Some(name) = self.links.remove(&link)
                        && let Some(fake) = self.nodes.get_mut(&name)
                        && fake.link == Some(link)
                    {
                        fake.link = None;
                    }
                    self.closed.push((link, refused));
                    self.core.handle(Event::LinkClosed { link }, self.now);
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
                    self.entries.insert(node, entry);
                }
                Command::Node { node, entry: None } => {
                    self.entries.remove(&node);
                }
                Command::Answer { request, answer } => {
                    let before = self.answers.insert(request, answer);
                    assert!(before.is_none(), "answered twice");
                }
                Command::Probe {
                    node, incarnation, ..
                } => self.probes.push((node, incarnation)),
                Command::ProbeUrl {
                    node, incarnation, ..
                } => self.url_probes.push((node, incarnation)),
                Command::AskWho {
                    node, incarnation, ..
                } => {
                    let state = self
                        .nodes
                        .get(&node)
                        .map_or(ProbeState::Silent, |fake| fake.answers_as);
                    let answered = Event::WhoAnswered {
                        node,
                        incarnation,
                        state,
                    };
                    self.core.handle(answered, self.now);
                }
                Command::Notice(notice) => self.notices.push(notice),
            }
        }
    }

    fn receive(&mut self, link: LinkId, message: ToNode) {
        let Some(name) = self.links.get(&link).cloned() else {
            return;
        };
        let Some(fake) = self.nodes.get_mut(&name).filter(|fake| fake.link == Some(link)) else {
            return;
        };
        let mut replies = Vec::new();
        match message {
            ToNode::Welcome(welcome) => {
                fake.peers = welcome.peers;
                fake.hello.cluster = Some(welcome.cluster);
                fake.hello.broker = Some(welcome.broker);
                fake.hello.highest_term = fake.hello.highest_term.max(welcome.term);
            }
            ToNode::HeartbeatAck { seq, .. } => fake.acks.push(seq),
            ToNode::Confirm(confirm) => fake.confirmed.extend(confirm.teams),
            ToNode::Assign(assign) => {
                self.assigned.push(assign.clone());
                assert!(grants().verify(&assign.team, &name, assign.epoch, &assign.grant));
                let newer = fake
                    .held
                    .get(&assign.team)
                    .is_none_or(|held| assign.epoch >= held.epoch);
                if newer {
                    let was_owned = fake
                        .held
                        .get(&assign.team)
                        .is_some_and(|held| held.epoch == assign.epoch && held.state == HoldState::Owned);
                    let state = if was_owned { HoldState::Owned } else { assign.state };
                    let holding = Holding {
                        epoch: assign.epoch,
                        state,
                        grant: assign.grant,
                    };
                    fake.held.insert(assign.team.clone(), holding);
                }
                if assign.state == HoldState::Prepared && fake.prepares {
                    let held = TeamEpoch {
                        team: assign.team,
                        epoch: assign.epoch,
                    };
                    replies.push(Event::Prepared { link, held });
                }
            }
            ToNode::Activate(activate) => {
                if let Some(held) = fake.held.get_mut(&activate.team)
                    && held.epoch == activate.epoch
                {
                    held.state = HoldState::Owned;
                }
            }
            ToNode::Count(count) => replies.push(Event::Counted {
                link,
                counted: Counted {
                    operation: count.operation,
                    connections: fake.connections,
                    teams: fake
                        .crowds
                        .iter()
                        .map(|(team, connections)| TeamCount {
                            team: team.clone(),
                            epoch: fake.held[team].epoch,
                            connections: *connections,
                        })
                        .collect(),
                    more: false,
                },
            }),
            ToNode::Pace(pace) => {
                for one in &mut fake.leaving {
                    if one.operation == pace.operation {
                        one.pace = pace.pace;
                        one.next = self.now;
                    }
                }
            }
            ToNode::Drain(drain) => {
                for order in drain.moves {
                    let crowd = fake.crowds.remove(&order.team);
                    if crowd.is_none() {
                        fake.connections -= fake.connections / (fake.held.len() as u32).max(1);
                    }
                    if fake
                        .held
                        .get(&order.team)
                        .is_some_and(|held| held.epoch < order.epoch)
                    {
                        fake.held.remove(&order.team);
                    }
                    if let Some(connections) = crowd {
                        replies.push(Event::Counted {
                            link,
                            counted: Counted {
                                operation: drain.operation.clone(),
                                connections,
                                teams: vec![TeamCount {
                                    team: order.team.clone(),
                                    epoch: order.epoch,
                                    connections,
                                }],
                                more: true,
                            },
                        });
                        fake.leaving.push(Leaving {
                            team: order.team.clone(),
                            epoch: order.epoch,
                            operation: drain.operation.clone(),
                            left: connections,
                            size: connections,
                            pace: drain.pace.unwrap(),
                            next: self.now,
                        });
                    }
                    let held = TeamEpoch {
                        team: order.team,
                        epoch: order.epoch,
                    };
                    replies.push(Event::Yielded {
                        link,
                        held: held.clone(),
                    });
                    if fake.releases && crowd.is_none() {
                        replies.push(Event::Released { link, held });
                    }
                }
            }
            ToNode::Revoke(revoke) => {
                if fake
                    .held
                    .get(&revoke.team)
                    .is_some_and(|held| held.epoch <= revoke.epoch)
                {
                    fake.held.remove(&revoke.team);
                }
                let held = TeamEpoch {
                    team: revoke.team,
                    epoch: revoke.epoch,
                };
                replies.push(Event::Released { link, held });
            }
            ToNode::Peers(told) => fake.peers = told.peers,
            ToNode::Refused(_) | ToNode::Unknown => {}
        }
        for reply in replies {
            self.core.handle(reply, self.now);
        }
    }

    /// What must hold whenever nothing is under way.
    pub fn check(&self) {
        let mut seen = BTreeSet::new();
        let mut after = None;
        loop {
            let page = self.core.teams(None, after.as_ref(), 1_000, self.now);
            for view in &page.teams {
                assert!(seen.insert(view.team.clone()));
                let route = self.routes.get(&view.team);
                assert_eq!(
                    route.map(|route| &route.node),
                    view.node.as_ref(),
                    "route of {}",
                    view.team
                );
                assert!(
                    view.epoch < self.store.epochs,
                    "epoch {} was given out unreserved",
                    view.epoch
                );
                let stored = &self.store.teams[&view.team];
                assert_eq!(stored.owner.as_ref().map(|(node, _)| node), view.node.as_ref());
                assert_eq!(stored.epoch, view.epoch);
            }
            after = page.next;
            if after.is_none() {
                break;
            }
        }
        assert_eq!(seen.len(), self.store.teams.len());
    }
}

impl Stored {
    fn write(&mut self, record: Record) {
        match record {
            Record::Epochs { reserved } => {
                assert!(reserved > self.epochs, "epochs only grow");
                self.epochs = reserved;
            }
            Record::Term(term) => self.term = term,
            Record::Team(id, record) => put(&mut self.teams, id, record),
            Record::Node(id, record) => put(&mut self.nodes, id, record),
            Record::Operation(id, record) => put(&mut self.operations, id, record),
        }
    }
}

fn put<K: Ord, V>(map: &mut BTreeMap<K, V>, key: K, value: Option<V>) {
    match value {
        Some(value) => {
            map.insert(key, value);
        }
        None => {
            map.remove(&key);
        }
    }
}
