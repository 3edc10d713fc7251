//! The world: everything that is, and the order in which things happen.

use std::collections::{BTreeMap, VecDeque};
use usher_shared::grant::GrantSigner;
use usher_shared::id::{ClusterId, Incarnation, NodeId, TeamId};
use usher_shared::quantity::Timestamp;
use usher_shared::secret::MasterKey;

use super::agenda::{Happens, Which};
use super::broker::Broker;
use super::client::Client;
use super::clock::{Clock, Real};
use super::dice::Dice;
use super::disk::Disk;
use super::mirror::Mirror;
use super::network::Link;
use super::node::Machine;
use super::plan::{Kind, Plan};
use super::registers::Registers;
use super::trust::Ways;
use super::truth::Truth;

/// The wall clock when the world began: some day in 2027.
pub(super) const WALL: u64 = 1_800_000_000_000;
/// More events than this in one millisecond are a livelock.
const AT_ONCE: u64 = 20_000;

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

/// What did not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// The invariant and what was seen instead; begins with the invariant's name.
    pub what: String,
    /// Milliseconds since the world began.
    pub at_ms: u64,
    /// Events until then.
    pub steps: u64,
    /// What happened last, if that was recorded.
    pub story: Vec<String>,
}

impl Violation {
    /// The name of the invariant.
    #[must_use]
    pub fn check(&self) -> &str {
        self.what.split(':').next().unwrap_or_default()
    }
}

/// Whether the last events are kept as text, which costs most of the time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Story {
    /// So many of them.
    Told(usize),
    /// They are not.
    Untold,
}

/// Which part of a run it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    Faults,
    Healed,
}

pub(super) struct World {
    pub(super) plan: Plan,
    pub(super) dice: Dice,
    pub(super) now: Real,
    pub(super) phase: Phase,
    pub(super) healed_at: Real,
    queue: BTreeMap<(Real, u64), Happens>,
    serial: u64,
    pub(super) disk: Disk,
    pub(super) main: Option<Broker>,
    pub(super) twin: Option<Broker>,
    pub(super) broker_clock: Clock,
    pub(super) broker_wall_off: i64,
    pub(super) broker_runs: u64,
    /// The lease in the broker's settings at its next start.
    pub(super) next_lease_ms: u64,
    /// The longest lease that was ever in the settings.
    pub(super) longest_lease_ms: u64,
    pub(super) machines: Vec<Machine>,
    pub(super) teams: Vec<TeamId>,
    pub(super) links: BTreeMap<u64, Link>,
    pub(super) last_link: u64,
    pub(super) last_incarnation: u128,
    pub(super) last_request: u64,
    pub(super) clients: Vec<Client>,
    pub(super) registers: Registers,
    pub(super) mirror: Mirror,
    pub(super) truth: Truth,
    pub(super) ways: Ways,
    /// The node that stays out of its clients' reach.
    pub(super) out_of_reach: Option<usize>,
    /// After an old copy was put back, the leases of the run before may overlap with new ones until here.
    pub(super) leases_overlap_until: Real,
    /// Nodes whose drain was given a deadline, and when the first such is over: then what is left goes at once.
    pub(super) hurried: BTreeMap<NodeId, Real>,
    pub(super) grants: GrantSigner,
    pub(super) outcome: Outcome,
    violation: Option<String>,
    story: Option<VecDeque<String>>,
    lines: usize,
    at_this_moment: u64,
}

pub(super) fn cluster() -> ClusterId {
    ClusterId::from_bits(1)
}

/// Runs one seed to its end.
///
/// # Errors
/// What did not hold, and when.
pub fn run(seed: u64, story: Story) -> Result<Outcome, Box<Violation>> {
    let mut world = World::new(seed, story);
    let end = world.plan.faults_ms + world.plan.heal_ms;
    while let Some(((at, _), happens)) = world.queue.pop_first() {
        if at > end {
            break;
        }
        world.at_this_moment = if at == world.now {
            world.at_this_moment + 1
        } else {
            0
        };
        world.now = at;
        world.outcome.steps += 1;
        world.tell_story(|| format!("{happens:?}"));
        world.digest(&happens);
        world.happen(happens);
        if world.at_this_moment > AT_ONCE {
            world.fail("S23: events follow each other without end".to_owned());
        }
        if world.violation.is_some() {
            break;
        }
    }
    if world.violation.is_none() {
        world.check_end();
    }
    match world.violation.take() {
        None => Ok(world.outcome),
        Some(what) => Err(Box::new(Violation {
            what,
            at_ms: world.now,
            steps: world.outcome.steps,
            story: world.story.take().unwrap_or_default().into(),
        })),
    }
}

impl World {
    fn new(seed: u64, story: Story) -> Self {
        let mut dice = Dice::new(seed);
        let plan = Plan::draw(&mut dice);
        let master = MasterKey::from_bytes([7; 32]);
        let twins = usize::from(plan.has(Kind::NodeTwin));
        let machines = (0..plan.nodes + twins)
            .filter_map(|node| Machine::draw(node, &plan, &master, &mut dice))
            .collect();
        let teams: Vec<TeamId> = (0..plan.teams)
            .filter_map(|team| format!("t{team}").parse().ok())
            .collect();
        let clients = (0..plan.clients)
            .map(|_| Client::draw(teams.len(), &mut dice))
            .collect();
        let broker_clock = Clock::new(dice.within(1_000, 100_000_000), dice.around(plan.rate_ppm));
        let mut world = Self {
            now: 0,
            phase: Phase::Faults,
            healed_at: plan.faults_ms,
            queue: BTreeMap::new(),
            serial: 0,
            disk: Disk::new(plan.counters_from),
            main: None,
            twin: None,
            broker_clock,
            broker_wall_off: dice.around(1_500),
            broker_runs: 0,
            next_lease_ms: plan.lease_ms,
            longest_lease_ms: plan.lease_ms,
            machines,
            registers: Registers::new(teams.len()),
            teams,
            links: BTreeMap::new(),
            last_link: 0,
            last_incarnation: 0,
            last_request: 0,
            clients,
            mirror: Mirror::default(),
            truth: Truth::default(),
            ways: Ways::default(),
            out_of_reach: None,
            leases_overlap_until: 0,
            hurried: BTreeMap::new(),
            grants: GrantSigner::new(master.grant_key(), cluster()),
            outcome: Outcome::default(),
            violation: None,
            story: (story != Story::Untold).then(VecDeque::new),
            lines: match story {
                Story::Told(lines) => lines,
                Story::Untold => 0,
            },
            at_this_moment: 0,
            plan,
            dice,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        self.tell_story(|| "the world begins".to_owned());
        let plan = format!("{:?}", self.plan);
        self.tell_story(|| plan);
        self.soon(0, Happens::BrokerStarts);
        for node in 0..self.plan.nodes {
            let after = self.dice.within(1, 1_500);
            self.soon(after, Happens::NodeStarts { node });
        }
        for client in 0..self.clients.len() {
            let after = self.dice.within(1_000, 6_000);
            self.client_acts(client, after);
        }
        let first = self.dice.within(3_000, 8_000);
        self.soon(first, Happens::Fault);
        self.soon(self.plan.faults_ms, Happens::HealBegins);
    }

    pub(super) fn soon(&mut self, after: u64, happens: Happens) {
        self.at(self.now + after, happens);
    }

    pub(super) fn at(&mut self, at: Real, happens: Happens) {
        self.serial += 1;
        self.queue.insert((at.max(self.now), self.serial), happens);
    }

    pub(super) fn count(&mut self, what: &'static str) {
        *self.outcome.seen.entry(what).or_insert(0) += 1;
    }

    /// Notes the first thing that did not hold.
    pub(super) fn fail(&mut self, what: String) {
        self.violation.get_or_insert(what);
    }

    pub(super) fn tell_story(&mut self, line: impl FnOnce() -> String) {
        if let Some(story) = &mut self.story {
            if story.len() > self.lines {
                // The plan stays in front.
                story.remove(2);
            }
            let mut text = line();
            text.truncate(if story.len() == 1 { 2_000 } else { 240 });
            story.push_back(format!("{:>7} {text}", self.now));
        }
    }

    pub(super) fn has(&self, kind: Kind) -> bool {
        self.plan.has(kind)
    }

    /// Whether a kind of bad luck is on, and the faults are not over.
    pub(super) fn goes_wrong(&self, kind: Kind) -> bool {
        self.plan.has(kind) && self.phase == Phase::Faults
    }

    /// Whether leases are promised to keep owners apart just now.
    pub(super) fn leases_hold(&self) -> bool {
        self.plan.leases_hold() && self.now >= self.leases_overlap_until
    }

    /// What a node's clock shows.
    pub(super) fn local(&self, node: usize) -> Timestamp {
        self.machines[node].clock.at(self.now)
    }

    /// A node's wall clock, in seconds.
    pub(super) fn wall_s(&self, node: usize) -> u64 {
        (WALL + self.now).saturating_add_signed(self.machines[node].wall_off) / 1_000
    }

    pub(super) fn broker_local(&self) -> Timestamp {
        self.broker_clock.at(self.now)
    }

    pub(super) fn broker_wall_ms(&self) -> u64 {
        (WALL + self.now).saturating_add_signed(self.broker_wall_off)
    }

    /// The machine whose process has this name for the broker; where none has, the first of that name.
    pub(super) fn node_named(&self, id: &NodeId) -> Option<usize> {
        let known = self.mirror.nodes.get(id).map(|known| known.incarnation);
        let holder = known.and_then(|incarnation| self.machine_of(incarnation));
        holder.or_else(|| self.machines.iter().position(|machine| machine.id == *id))
    }

    /// The machine on which this very process runs.
    pub(super) fn machine_of(&self, incarnation: Incarnation) -> Option<usize> {
        let runs = |machine: &Machine| {
            let process = machine.process.as_ref();
            process.is_some_and(|process| process.incarnation == incarnation)
        };
        self.machines.iter().position(runs)
    }

    /// The machine that is reached at this probe address.
    pub(super) fn machine_at(&self, probe: &str) -> Option<usize> {
        self.machines.iter().position(|machine| machine.probe() == probe)
    }

    pub(super) fn team_named(&self, id: &TeamId) -> Option<usize> {
        self.teams.iter().position(|team| team == id)
    }

    pub(super) fn broker(&self, which: Which) -> Option<&Broker> {
        match which {
            Which::Main => self.main.as_ref(),
            Which::Twin => self.twin.as_ref(),
            Which::Impostor => None,
        }
    }

    pub(super) fn broker_mut(&mut self, which: Which) -> Option<&mut Broker> {
        match which {
            Which::Main => self.main.as_mut(),
            Which::Twin => self.twin.as_mut(),
            Which::Impostor => None,
        }
    }

    /// FNV-1a over what tells events apart.
    fn digest(&mut self, happens: &Happens) {
        let (kind, about) = happens.digest();
        let mut hash = self.outcome.trace ^ 0xcbf2_9ce4_8422_2325;
        for number in [self.now, kind, about, self.dice.clone().next()] {
            for byte in number.to_le_bytes() {
                hash = (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
            }
        }
        self.outcome.trace = hash;
    }

    fn happen(&mut self, happens: Happens) {
        match happens {
            Happens::Broker { which, run, what } => self.reaches_broker(which, run, what),
            Happens::Node {
                node,
                incarnation,
                what,
            } => self.reaches_node(node, incarnation, what),
            Happens::Wire {
                link,
                way,
                generation,
                serial,
                copy,
                parcel,
            } => {
                self.arrives(link, way, generation, serial, copy, parcel);
            }
            Happens::Client { client, serial, what } => self.reaches_client(client, serial, what),
            Happens::Register(write) => self.register(&write),
            Happens::NodeStarts { node } => self.start_node(node),
            Happens::BrokerStarts => self.start_broker(),
            Happens::TwinEnds => self.end_twin(),
            Happens::NamesakeStarts { node } => self.start_namesake(node),
            Happens::NamesakeEnds { node } => self.end_namesake(node),
            Happens::BrokerResumes { run } => self.resume_broker(run),
            Happens::NodeResumes {
                node,
                incarnation,
                suspended_ms,
            } => {
                self.resume_node(node, incarnation, suspended_ms);
            }
            Happens::CutBegins { node, ways, lasts_ms } => {
                if self.phase == Phase::Faults {
                    self.cut(node, ways, lasts_ms);
                }
            }
            Happens::CutEnds { node, serial } => {
                if self.machines[node].cut_serial == serial {
                    self.end_cut(node);
                }
            }
            Happens::CrashAgain { node, times } => self.crash_loop(node, times),
            Happens::ClientCutEnds { node } => {
                self.machines[node].client_cut = self.out_of_reach == Some(node);
            }
            Happens::FirewallEnds { node } => self.machines[node].firewall = false,
            Happens::Witness {
                node,
                incarnation,
                tries,
            } => self.witness(node, incarnation, tries),
            Happens::LinkIdle { link } => self.look_at_idle_link(link),
            Happens::Fault => self.fault(),
            Happens::HealBegins => self.heal(),
            Happens::TidyUp => self.tidy_up(),
            Happens::CheckOwners => self.check_owners(),
        }
    }
}
