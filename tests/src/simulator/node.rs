//! A node's machine and the process on it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use usher_node_core::OnLapse;
use usher_node_core::admission::SpentTickets;
use usher_node_core::mandate::Mandate;
use usher_node_core::outgoing::Outgoing;
use usher_node_core::pacing::Pacer;
use usher_node_core::stopping::Stopping;
use usher_shared::id::{ConnectionId, Incarnation, Label, NodeId, TeamId};
use usher_shared::identity::Hidden;
use usher_shared::link::{Capacity, Hello, PACED_MOVES, PROTOCOL};
use usher_shared::quantity::{Epoch, Millicores, Timestamp, Weight};
use usher_shared::secret::{Key, MasterKey};
use usher_shared::template::NodeUrl;

use super::agenda::{ForNode, Way};
use super::clock::{Clock, Real};
use super::dice::Dice;
use super::plan::{Kind, Plan};

/// A machine: what stays when its process dies.
pub(super) struct Machine {
    pub(super) id: NodeId,
    pub(super) url: NodeUrl,
    pub(super) key: Key,
    pub(super) clock: Clock,
    pub(super) wall_off: i64,
    pub(super) zone: Option<Label>,
    pub(super) capacity: Capacity,
    pub(super) on_lapse: OnLapse,
    /// Counts its connections when asked, and keeps to a pace; others are older.
    pub(super) counts: bool,
    /// The machine whose node's name this one has, too.
    pub(super) twin_of: Option<usize>,
    /// The lock that its process holds, where the machine gives one.
    pub(super) lock: Option<Hidden>,
    /// Shows what it was never given.
    pub(super) forges: bool,
    /// The ways that nothing gets through just now, up and down.
    pub(super) cut: [bool; 2],
    pub(super) cut_serial: u64,
    pub(super) client_cut: bool,
    /// Something on the way refuses what the broker probes.
    pub(super) firewall: bool,
    pub(super) no_descriptors: bool,
    pub(super) is_off: bool,
    /// It never comes back.
    pub(super) gone: bool,
    pub(super) process: Option<Process>,
}

/// A connection of a client.
#[derive(Clone, Debug)]
pub(super) struct Member {
    pub(super) connection: ConnectionId,
    pub(super) client: usize,
    pub(super) usher: bool,
    /// Whether it was told to move.
    pub(super) told: bool,
}

/// How a process stands still.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Still {
    /// All of it.
    Paused,
    /// All but the thread that watches.
    Frozen,
}

/// The link of a process, from its side.
#[derive(Clone, Debug)]
pub(super) struct Dialled {
    pub(super) link: u64,
    pub(super) began: Timestamp,
    pub(super) talking: bool,
    pub(super) acknowledged: bool,
    pub(super) heard: Timestamp,
    pub(super) seq: u64,
    pub(super) lease_ms: u64,
    pub(super) heartbeat_ms: u64,
}

/// A client that waits for a team to be assigned.
#[derive(Clone, Debug)]
pub(super) struct Waiting {
    pub(super) client: usize,
    pub(super) serial: u64,
    pub(super) ticket: String,
    pub(super) from: Option<ConnectionId>,
}

/// One running process of a node.
pub(super) struct Process {
    pub(super) incarnation: Incarnation,
    pub(super) mandate: Mandate,
    pub(super) link: Option<Dialled>,
    pub(super) backoff_ms: u64,
    /// What waits to be said to the broker.
    pub(super) outgoing: Outgoing,
    pub(super) reporting: bool,
    pub(super) looking: bool,
    /// Whether it ever had a lease.
    pub(super) leased: bool,
    /// The keys of the last welcome.
    pub(super) keys: Vec<usher_shared::link::TicketKey>,
    pub(super) forget_ms: u64,
    pub(super) rooms: BTreeMap<TeamId, Vec<Member>>,
    pub(super) connections: u32,
    pub(super) serial: u64,
    pub(super) pacer: Pacer,
    /// Every connection that this process ever named.
    pub(super) every_name: BTreeSet<ConnectionId>,
    pub(super) spent: SpentTickets,
    /// Genuine tickets that were shown here.
    pub(super) shown: u64,
    pub(super) client_heard: Option<Timestamp>,
    pub(super) waiting: BTreeMap<TeamId, Vec<Waiting>>,
    /// What its own tickets are signed with.
    pub(super) resume_key: Key,
    pub(super) watched: Option<Timestamp>,
    pub(super) still: Option<(Still, Vec<ForNode>)>,
    pub(super) stopping: Option<Stopping>,
    /// For the checks: when its stop budget is over.
    pub(super) stops_by: Option<Timestamp>,
    /// For the checks: by team, the last link and epoch that a broker named it with on it.
    pub(super) named: BTreeMap<TeamId, (u64, Epoch)>,
    /// For the checks: what it has said on its link that nothing is left of.
    pub(super) released: BTreeSet<(TeamId, Epoch)>,
    /// For the checks: the highest epoch ever held, by team.
    pub(super) highest: BTreeMap<TeamId, Epoch>,
    /// For the checks: for which teams it could act when it was last looked at.
    pub(super) acting: Vec<Option<Epoch>>,
    /// For the checks: since when every answer of a peer was that it hears the broker.
    pub(super) peers_hear_since: Option<Timestamp>,
    /// For the checks: it was right to take itself for cut off.
    pub(super) cut_off: bool,
    /// For the checks: when connections were closed because it was cut off.
    pub(super) cut_off_closes: VecDeque<Real>,
}

impl Machine {
    pub(super) fn draw(node: usize, plan: &Plan, master: &MasterKey, dice: &mut Dice) -> Option<Self> {
        let twin_of = (node >= plan.nodes).then(|| dice.index(plan.nodes));
        let id: NodeId = format!("n{}", twin_of.unwrap_or(node)).parse().ok()?;
        let small = plan.has(Kind::SmallNodes) && dice.percent(60);
        let share = |sum: usize| u32::try_from(2 * sum / plan.nodes + 2).unwrap_or(u32::MAX);
        Some(Self {
            url: format!("ws://m{node}:1/teams/{{team}}").parse().ok()?,
            twin_of,
            lock: dice.percent(60).then(|| Hidden::of(&["lock", &node.to_string()])),
            key: master.ticket_key(super::broker::KID, &id),
            clock: Clock::new(dice.within(1_000, 100_000_000), dice.around(plan.rate_ppm)),
            wall_off: dice.around(1_500),
            zone: (plan.zones > 0)
                .then(|| format!("z{}", dice.index(plan.zones)).parse().ok())
                .flatten(),
            capacity: Capacity {
                teams: if small { share(plan.teams) } else { 1_000 },
                connections: if small { share(plan.clients) } else { 1_000 },
            },
            on_lapse: plan.on_lapse(dice),
            counts: id.as_str().bytes().map(u32::from).sum::<u32>() % 2 == 0,
            forges: plan.has(Kind::BadNode) && dice.percent(40) && twin_of.is_none(),
            cut: [false; 2],
            cut_serial: 0,
            client_cut: false,
            firewall: false,
            no_descriptors: false,
            is_off: false,
            gone: false,
            process: None,
            id,
        })
    }

    pub(super) fn is_cut(&self, way: Way) -> bool {
        match way {
            Way::Up => self.cut[0],
            Way::Down => self.cut[1],
        }
    }

    /// Where it is probed, and asked by its peers.
    pub(super) fn probe(&self) -> String {
        self.url
            .for_node(&self.id)
            .split('/')
            .nth(2)
            .unwrap_or_default()
            .to_owned()
    }

    pub(super) fn hello(&self) -> Option<Hello> {
        let process = self.process.as_ref()?;
        Some(Hello {
            protocol: PROTOCOL,
            node: self.id.clone(),
            incarnation: process.incarnation,
            nonce: Some(nonce_of(process.incarnation)),
            lock: self.lock,
            version: "1".to_owned(),
            capabilities: PACED_MOVES.parse().into_iter().filter(|_| self.counts).collect(),
            url: self.url.clone(),
            probe: self.probe(),
            region: None,
            zone: self.zone.clone(),
            labels: BTreeMap::new(),
            weight: Weight::NODE,
            cores: Millicores::new(2_000)?,
            capacity: self.capacity,
            cluster: process.mandate.cluster(),
            highest_term: process.mandate.highest_term(),
            broker: process.mandate.broker(),
            highest_grant: process.mandate.highest_grant().cloned(),
        })
    }
}

/// What a process, its parent and the broker know, and nobody who saw a ticket.
pub(super) fn nonce_of(incarnation: Incarnation) -> Hidden {
    Hidden::of(&["nonce", &incarnation.to_string()])
}

impl Process {
    pub(super) fn new(incarnation: Incarnation, on_lapse: OnLapse, teams: usize, dice: &mut Dice) -> Self {
        let mut key = [0; 32];
        key[..8].copy_from_slice(&dice.next().to_le_bytes());
        Self {
            incarnation,
            mandate: Mandate::new(on_lapse),
            link: None,
            backoff_ms: 0,
            outgoing: Outgoing::default(),
            reporting: false,
            looking: false,
            leased: false,
            keys: Vec::new(),
            forget_ms: u64::MAX,
            rooms: BTreeMap::new(),
            connections: 0,
            serial: 0,
            pacer: Pacer::default(),
            every_name: BTreeSet::new(),
            spent: SpentTickets::default(),
            shown: 0,
            client_heard: None,
            waiting: BTreeMap::new(),
            resume_key: Key::from_bytes(key),
            watched: None,
            still: None,
            stopping: None,
            stops_by: None,
            named: BTreeMap::new(),
            released: BTreeSet::new(),
            highest: BTreeMap::new(),
            acting: vec![None; teams],
            peers_hear_since: None,
            cut_off: false,
            cut_off_closes: VecDeque::new(),
        }
    }

    /// A broker has named a team on a link. A late copy of an earlier word takes nothing back.
    pub(super) fn note_named(&mut self, team: &TeamId, link: u64, epoch: Epoch) {
        let known = self.named.get(team);
        if !known.is_some_and(|(on, highest)| *on == link && *highest > epoch) {
            self.named.insert(team.clone(), (link, epoch));
        }
    }

    /// The link, if it is this one.
    pub(super) fn on(&mut self, link: u64) -> Option<&mut Dialled> {
        self.link.as_mut().filter(|dialled| dialled.link == link)
    }
}
