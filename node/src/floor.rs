//! What the node's tasks share: the decisions' state behind one lock, and the way in and out of it
//! for clients.
//!
//! The lock is taken when a client comes or goes and when the broker commands, never for a frame.
//! Locks are taken in the order state, roster, outbox.

use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::ops::Bound::{Excluded, Unbounded};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use usher_shared::clock::{boottime, wall_ms};
use usher_shared::frame::{CloseCode, Control};
use usher_shared::id::{ConnectionId, Label, OperationId, TeamId};
use usher_shared::link::{Arrival, Departure, EndedBy, RefusedCode, TeamMissed, TicketKey};
use usher_shared::quantity::{Epoch, Timestamp};
use usher_shared::secret::Key;
use usher_shared::ticket::{Age, Claims, Scope};

use crate::config::Config;
use crate::figures::Figures;
use crate::load::{Reading, descriptor_limit};
use crate::outbox::{Goodbye, Outbox, Speaks};
use crate::roster::Roster;
use crate::unfinished::Unfinished;
use crate::watchdog::Watchdog;
use usher_node_core::admission::{Contact, Here, Refusal, Shown, SpentTickets, Verdict, decide};
use usher_node_core::holdings::{Opened, Tenure};
use usher_node_core::mandate::{Link, Mandate};
use usher_node_core::outgoing::Outgoing;
use usher_node_core::pacing::{self, Pacer};
use usher_node_core::tickets::{self, Resume};

/// How long a client with a ticket newer than the node's knowledge waits for the broker's `assign`.
const WAIT_FOR_ASSIGN: Duration = Duration::from_secs(1);
/// How long a connection that its client has replaced may stay, where the client closes it itself.
const RETIRE_MS: u32 = 5_000;
/// How long members of a team that moved here are waited for: whoever has not come by then may never do.
const EXPECTED_MS: u64 = 15_000;
/// Teams that are taken from the list at a time: the lock is held no longer than that takes.
const SLICE: usize = 256;
/// Room for teams that is worth no shrinking.
const ROOM_KEPT: usize = 4_096;
/// Descriptors kept free for listeners, the link, requests and files.
const SPARE_DESCRIPTORS: u32 = 128;

/// What the node's tasks share.
pub(crate) struct Floor {
    pub(crate) config: Config,
    pub(crate) figures: Figures,
    pub(crate) clock: CoarseClock,
    /// The latest sample of CPU, memory and descriptors.
    pub(crate) load: Mutex<Reading>,
    /// Rung when a slot was planned.
    pub(crate) planned: Notify,
    /// Rung when something is to be said to the broker.
    pub(crate) outgoing: Notify,
    /// Rung when a connection or a team has gone.
    pub(crate) gone: Notify,
    /// When the node will be gone, once it was asked to stop.
    pub(crate) stopping: watch::Sender<Option<Instant>>,
    pub(crate) watchdog: Arc<Watchdog>,
    /// The part that a bug ended, once one did: the process is about to end.
    pub(crate) bug: OnceLock<&'static str>,
    pub(crate) unfinished: Unfinished,
    /// What this process signs its `resume` tickets with.
    resume_key: Key,
    /// Genuine tickets that were shown at the door.
    pub(crate) shown: AtomicU64,
    /// When a client was last heard, by CLOCK_BOOTTIME; 0: never.
    pub(crate) client_heard: AtomicU64,
    pub(crate) state: Mutex<State>,
}

/// What the one lock guards.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) mandate: Mandate,
    /// What the last welcome said; outlives the link.
    pub(crate) broker: Option<Arc<Broker>>,
    /// Whether a broker has acknowledged what this process holds, ever.
    pub(crate) was_ready: bool,
    /// Why the last broker that answered wants nothing to do with this node; ends with a welcome.
    pub(crate) unwanted: Option<RefusedCode>,
    pub(crate) pacer: Pacer,
    /// Why the teams of an operation go, for their clients; while any of them has a slot.
    pub(crate) reasons: HashMap<OperationId, Label>,
    pub(crate) outgoing: Outgoing,
    /// By team, while it has connections.
    pub(crate) rosters: BTreeMap<TeamId, Arc<Roster>>,
    pub(crate) connections: u32,
    spent: SpentTickets,
    serial: u64,
    /// Teams that moved here lately and whose members are still coming: how many, and until when they are
    /// waited for.
    expected: HashMap<TeamId, (u32, Timestamp)>,
    /// Clients that wait for a team to be assigned here.
    waiting: HashMap<TeamId, Vec<oneshot::Sender<()>>>,
}

/// What the node knows of its broker.
#[derive(Debug)]
pub(crate) struct Broker {
    /// `http://host:port`, without a path.
    pub(crate) public_url: String,
    pub(crate) keys: Vec<TicketKey>,
    pub(crate) forget_ms: u64,
}

/// Milliseconds since the start, as of the last tick: frames need no better clock.
#[derive(Debug, Default)]
pub(crate) struct CoarseClock(AtomicU32);

impl CoarseClock {
    pub(crate) fn now(&self) -> u32 {
        self.0.load(Ordering::Relaxed)
    }

    pub(crate) fn set(&self, now: u32) {
        self.0.store(now, Ordering::Relaxed);
    }
}

/// A genuine ticket at the door.
pub(crate) struct Knock {
    pub(crate) team: TeamId,
    pub(crate) claims: Claims,
    pub(crate) age: Age,
}

/// Why a client with a good ticket does not come in.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Turned {
    /// Back to the broker.
    Back(Refusal),
    /// The node is full.
    Full,
}

/// The place of one connection; giving it up tells everybody who must know.
pub(crate) struct Seat {
    pub(crate) floor: Arc<Floor>,
    pub(crate) roster: Arc<Roster>,
    pub(crate) outbox: Arc<Outbox>,
}

impl Floor {
    pub(crate) fn new(config: Config) -> Self {
        let (on_lapse, unfinished_bytes) = (config.on_lapse, config.unfinished_bytes);
        Self {
            config,
            figures: Figures::new(),
            clock: CoarseClock::default(),
            load: Mutex::new(Reading::default()),
            planned: Notify::new(),
            outgoing: Notify::new(),
            gone: Notify::new(),
            stopping: watch::Sender::new(None),
            watchdog: Arc::new(Watchdog::default()),
            bug: OnceLock::new(),
            unfinished: Unfinished::new(unfinished_bytes),
            resume_key: Key::from_bytes(rand::random()),
            shown: AtomicU64::new(0),
            client_heard: AtomicU64::new(0),
            state: Mutex::new(State {
                mandate: Mandate::new(on_lapse),
                ..State::default()
            }),
        }
    }

    /// Checks a ticket's signature against the keys of the last welcome.
    pub(crate) fn verify(&self, team: &TeamId, text: Option<&str>) -> Result<Knock, Refusal> {
        let broker = self.state.lock().broker.clone();
        let keys = broker.as_ref().map_or(&[][..], |broker| &broker.keys);
        let (claims, age) = tickets::verify(text, wall_ms() / 1000, keys, &self.resume_key)?;
        self.shown.fetch_add(1, Ordering::Relaxed);
        Ok(Knock {
            team: team.clone(),
            claims,
            age,
        })
    }

    /// Takes a seat for a client, waiting a little if the broker's `assign` may be on its way.
    pub(crate) async fn enter(self: &Arc<Self>, knock: &Knock, speaks: Speaks) -> Result<Seat, Turned> {
        self.pass(knock, Scope::Connect, |state| self.sit(state, knock, speaks))
            .await
            .map_err(Turned::Back)?
            .ok_or(Turned::Full)
    }

    /// The connections of a team, for a message posted to it; `None` when it has none.
    pub(crate) async fn address(&self, knock: &Knock) -> Result<Option<Arc<Roster>>, Refusal> {
        self.pass(knock, Scope::Post, |state| {
            state.rosters.get(&knock.team).cloned()
        })
        .await
    }

    /// Decides, and acts on an admission under the same lock, so that nothing comes between.
    async fn pass<R>(
        &self,
        knock: &Knock,
        purpose: Scope,
        act: impl FnOnce(&mut State) -> R,
    ) -> Result<R, Refusal> {
        let deadline = Instant::now() + WAIT_FOR_ASSIGN;
        loop {
            let assigned = {
                let mut state = self.state.lock();
                match self.judge(&state, knock, purpose) {
                    Verdict::Admit => return Ok(act(&mut state)),
                    Verdict::SendBack(refusal) => return Err(refusal),
                    Verdict::Wait => state.wait_for(&knock.team),
                }
            };
            match tokio::time::timeout_at(deadline, assigned).await {
                Ok(_) => {}
                Err(_) => return Err(Refusal::NotYetHere),
            }
        }
    }

    /// The connection that a ticket opened here lately. The broker counts a ticket that opened nothing
    /// as a step of a circle, and only its node knows.
    pub(crate) fn opened_by(&self, claims: &Claims) -> Option<ConnectionId> {
        let named = claims.jti.parse().ok()?;
        self.state.lock().spent.opened(&claims.jti).then_some(named)
    }

    fn judge(&self, state: &State, knock: &Knock, purpose: Scope) -> Verdict {
        let shown = Shown {
            claims: &knock.claims,
            age: knock.age,
            now_s: wall_ms() / 1000,
            team: &knock.team,
            purpose,
        };
        let here = Here {
            node: &self.config.node,
            incarnation: self.config.incarnation,
            contact: state.mandate.contact(boottime()),
            tenure: state.mandate.holdings.tenure(&knock.team),
        };
        decide(shown, here)
    }

    fn sit(self: &Arc<Self>, state: &mut State, knock: &Knock, speaks: Speaks) -> Option<Seat> {
        let now = boottime();
        // Not the last sample's: a second after the limit was raised it would still turn clients away.
        let descriptors_left = state.connections + SPARE_DESCRIPTORS < descriptor_limit();
        if state.connections >= self.config.capacity.connections || !descriptors_left {
            return None;
        }
        let id = self.name_connection(state, knock);
        let outbox = Arc::new(Outbox::new(id, speaks, self.clock.now()));
        let team = &knock.team;
        if speaks == Speaks::Usher {
            let Tenure::Held(epoch) = state.mandate.holdings.tenure(team) else {
                return None;
            };
            let welcome = Control::Welcome {
                team: team.clone(),
                epoch,
                node: self.config.node.clone(),
                connection: id,
                resume: Some(self.resume(knock, epoch, id)),
                ping_s: u32::try_from(self.config.ping.as_millis().div_ceil(1000)).unwrap_or(u32::MAX),
            };
            let welcome = Message::text(welcome.to_text());
            outbox.push(welcome, usize::MAX, self.clock.now());
        }
        let roster = Arc::clone(
            state
                .rosters
                .entry(team.clone())
                .or_insert_with(|| Arc::new(Roster::new(team.clone()))),
        );
        if let Some((many, _)) = state.expected.get(team)
            && roster.is_empty()
        {
            roster.set_absent(*many);
        }
        roster.join(Arc::clone(&outbox));
        state.connections += 1;
        self.figures.connections.set(state.connections);
        if state.mandate.holdings.opened(team, now) == Opened::Reported {
            roster.one_came();
            if let Some((many, _)) = state.expected.get_mut(team) {
                *many = many.saturating_sub(1);
            }
            self.report_arrival(state, knock, id);
        }
        // A client that was cut off and is gone already has its old name again.
        if let Some(replaced) = state.spent.spend(&knock.claims.jti, id, now)
            && replaced != id
            && let Some(replaced) = roster.member(replaced)
        {
            replaced.close(replaced_goodbye(), self.clock.now(), EndedBy::Client);
        }
        // So has one that asked the broker: its network changed, and the old connection looks alive.
        if let Some(replaced) = knock.claims.from.filter(|from| *from != id)
            && let Some(replaced) = roster.member(replaced)
        {
            match replaced.speaks {
                // It may be moving: it closes the old one itself once it is welcome here.
                Speaks::Usher => replaced.retire_at(self.clock.now().wrapping_add(RETIRE_MS)),
                Speaks::Plain => replaced.close(replaced_goodbye(), self.clock.now(), EndedBy::Client),
            }
        }
        Some(Seat {
            floor: Arc::clone(self),
            roster,
            outbox,
        })
    }

    /// A connection is called after the ticket that opened it: whoever shows that ticket again, at
    /// any broker, says which connection it had. Only while a used ticket's first connection is
    /// still there does the next need a name of its own.
    fn name_connection(&self, state: &mut State, knock: &Knock) -> ConnectionId {
        let taken = |id: &ConnectionId| {
            let roster = state.rosters.get(&knock.team);
            roster.is_some_and(|roster| roster.member(*id).is_some())
        };
        if let Some(id) = knock.claims.jti.parse().ok().filter(|id| !taken(id)) {
            return id;
        }
        state.serial += 1;
        ConnectionId::new(self.config.incarnation, state.serial)
    }

    /// A way back in while the broker is away.
    fn resume(&self, knock: &Knock, epoch: Epoch, connection: ConnectionId) -> String {
        let resume = Resume {
            team: &knock.team,
            node: &self.config.node,
            incarnation: self.config.incarnation,
            epoch,
            connection,
        };
        resume.sign(&self.resume_key, wall_ms() / 1000, rand::random())
    }

    /// Tells the watchdog what this process owes.
    pub(crate) fn fence_by(&self, state: &State) {
        self.watchdog.expect(state.mandate.fence_by());
    }

    fn report_arrival(&self, state: &mut State, knock: &Knock, connection: ConnectionId) {
        let dropped = state.outgoing.arrived(
            Arrival {
                team: knock.team.clone(),
                epoch: knock.claims.epoch,
                connection,
                from: knock.claims.from,
                age_ms: None,
            },
            boottime(),
        );
        self.figures.reports_dropped.increment(dropped);
        self.outgoing.notify_one();
    }

    fn rise(&self, roster: &Roster, outbox: &Outbox) {
        let mut state = self.state.lock();
        let emptied = roster.leave(outbox.id);
        if emptied {
            state.rosters.remove(&roster.team);
        }
        // Before the team is let go: what its members missed is told with the epoch it went by.
        if emptied {
            self.tell_missed(&mut state, roster);
        }
        state.connections = state.connections.saturating_sub(1);
        self.figures.connections.set(state.connections);
        let closed = state.mandate.holdings.closed(&roster.team, boottime());
        if let Some(epoch) = closed.departed {
            roster.one_went();
            let departure = Departure {
                team: roster.team.clone(),
                epoch,
                connection: outbox.id,
                by: outbox.ended_by(),
                age_ms: None,
            };
            let dropped = state.outgoing.left(departure, boottime());
            self.figures.reports_dropped.increment(dropped);
            self.outgoing.notify_one();
        }
        for say in closed.say {
            state.outgoing.say(say);
            self.outgoing.notify_one();
        }
        drop(state);
        self.gone.notify_one();
    }

    /// Members of a moving team are expected here.
    pub(crate) fn expect(&self, state: &mut State, team: &TeamId, connections: u32) {
        let here = state.rosters.get(team);
        let there = connections.saturating_sub(here.map_or(0, |roster| roster.count()));
        if let Some(roster) = here {
            roster.set_absent(there);
        }
        let until = boottime().plus(EXPECTED_MS);
        state.expected.insert(team.clone(), (there, until));
    }

    fn tell_missed(&self, state: &mut State, roster: &Roster) {
        let deliveries = roster.take_missed();
        let (Tenure::Held(epoch) | Tenure::Leaving(epoch)) = state.mandate.holdings.tenure(&roster.team)
        else {
            return;
        };
        if deliveries > 0 {
            let missed = TeamMissed {
                team: roster.team.clone(),
                epoch,
                deliveries,
            };
            let dropped = state.outgoing.missed(missed);
            self.figures.reports_dropped.increment(dropped);
            self.outgoing.notify_one();
        }
    }

    /// Tells what members of moving teams missed, and stops waiting for those that have not come.
    fn look_at_moving(&self, state: &mut State, missed: &[Arc<Roster>]) {
        let now = boottime();
        let over: Vec<TeamId> = state
            .expected
            .iter()
            .filter(|(_, (_, until))| *until <= now)
            .map(|(team, _)| team.clone())
            .collect();
        for team in over {
            state.expected.remove(&team);
            if let Some(roster) = state.rosters.get(&team) {
                roster.set_absent(0);
            }
        }
        for roster in missed {
            self.tell_missed(state, roster);
        }
    }

    /// Whether a load balancer should send clients here. A node that has lost its broker serves on, and its
    /// clients come back by `resume`: their way must stay.
    pub(crate) fn readiness(&self) -> Readiness {
        if self.is_stopping() {
            return Readiness::Stopping;
        }
        let state = self.state.lock();
        let contact = state.mandate.contact(boottime());
        if contact == Contact::Fenced {
            return Readiness::Fenced;
        }
        if state.mandate.is_cut_off() {
            return Readiness::CutOff;
        }
        match (state.mandate.link(), state.unwanted) {
            (Link::Up, _) => Readiness::Ready,
            (_, Some(code)) => Readiness::Unwanted(code),
            _ if !state.was_ready => Readiness::NoBrokerYet,
            _ => Readiness::WithoutBroker,
        }
    }

    /// Whether the node was asked to stop.
    pub(crate) fn is_stopping(&self) -> bool {
        self.stopping.borrow().is_some()
    }

    /// Everybody, for something done once.
    pub(crate) fn everybody(&self) -> Vec<Arc<Outbox>> {
        self.slices()
            .flatten()
            .flat_map(|roster| roster.members())
            .collect()
    }

    /// All teams that have connections, [`SLICE`] at a time. The lock is held for each slice and free between them, so
    /// whoever comes or goes meanwhile waits for no walk; a team that is there all the time is met once.
    pub(crate) fn slices(&self) -> impl Iterator<Item = Vec<Arc<Roster>>> {
        let mut after: Option<TeamId> = None;
        std::iter::from_fn(move || {
            let slice: Vec<Arc<Roster>> = {
                let state = self.state.lock();
                let from = after.as_ref().map_or(Unbounded, Excluded);
                let rest = state.rosters.range::<TeamId, _>((from, Unbounded));
                rest.take(SLICE).map(|(_, roster)| Arc::clone(roster)).collect()
            };
            after = Some(slice.last()?.team.clone());
            Some(slice)
        })
    }

    /// Forgets clients that gave up waiting. `missed`: the teams with members elsewhere that missed something.
    pub(crate) fn tidy(&self, missed: &[Arc<Roster>]) {
        let mut state = self.state.lock();
        self.look_at_moving(&mut state, missed);
        state.waiting.retain(|_, clients| {
            clients.retain(|client| !client.is_closed());
            !clients.is_empty()
        });
        if state.waiting.is_empty() {
            state.waiting.shrink_to(64);
        }
        // After a wave of teams a map stays as large as it was at its height.
        state.mandate.holdings.give_room_back(ROOM_KEPT);
    }
}

/// What a load balancer is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Readiness {
    /// Clients are served.
    Ready,
    /// The same, and the broker is not heard.
    WithoutBroker,
    /// No broker has taken this node in yet.
    NoBrokerYet,
    /// The broker refuses this very node.
    Unwanted(RefusedCode),
    /// The lease is over, and this pool fences.
    Fenced,
    /// The broker is heard by others: it is this node that is cut off, and it closes its connections.
    CutOff,
    /// It got SIGTERM.
    Stopping,
}

impl Readiness {
    /// Whether clients are served.
    pub(crate) const fn serves(self) -> bool {
        matches!(self, Self::Ready | Self::WithoutBroker)
    }

    /// A line for people.
    pub(crate) fn text(self) -> String {
        match self {
            Self::Ready => "ready".to_owned(),
            Self::WithoutBroker => {
                "ready, without its broker: connections and resume tickets are good, new teams wait"
                    .to_owned()
            }
            Self::NoBrokerYet => {
                "no broker has taken this node in yet; check --broker and the broker's log".to_owned()
            }
            Self::Unwanted(code) => format!(
                "the broker refuses this node ({}); see the node's log",
                code.as_str()
            ),
            Self::Fenced => "the lease is over, and this pool serves nobody without one".to_owned(),
            Self::CutOff => {
                "other nodes hear the broker and this one does not: it sends its clients away".to_owned()
            }
            Self::Stopping => "the node is stopping".to_owned(),
        }
    }
}

impl State {
    fn wait_for(&mut self, team: &TeamId) -> oneshot::Receiver<()> {
        let (assigned, waits) = oneshot::channel();
        self.waiting.entry(team.clone()).or_default().push(assigned);
        waits
    }

    /// Clients that wait for this team look again.
    pub(crate) fn open(&mut self, team: &TeamId) {
        for client in self.waiting.remove(team).unwrap_or_default() {
            let _ = client.send(());
        }
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.floor.rise(&self.roster, &self.outbox);
    }
}

/// What is said to a connection whose client has another one now.
pub(crate) fn replaced_goodbye() -> Goodbye {
    Goodbye::retry(CloseCode::Elsewhere, "replaced", jitter(1_000))
}

/// A random wait below `bound_ms`: what is told to many clients must differ.
pub(crate) fn jitter(bound_ms: u64) -> u64 {
    pacing::jitter(bound_ms, rand::random())
}
