//! The one owner of the state, and the way an event takes through it.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use usher_shared::grant::GrantSigner;
use usher_shared::id::{BrokerId, ClusterId, Incarnation, NodeId, OperationId, TeamId};
use usher_shared::lease;
use usher_shared::link::ToNode;
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, Term, Timestamp};

use crate::caution::Asked;
use crate::choose::Decision;
use crate::command::{Command, NodeEntry, Route};
use crate::epochs::{Epochs, Reserve};
use crate::event::{Event, LinkId, RequestId};
use crate::history::History;
use crate::identity::Former;
use crate::liveness::Mode;
use crate::movers::Movers;
use crate::names::NewNames;
use crate::node::{Intent, Node, Seen};
use crate::notice::Notice;
use crate::operation::Operation;
use crate::record::{IntentRecord, Record, Snapshot};
use crate::score::{self, Index, Pool};
use crate::settings::Settings;
use crate::strain;
use crate::team::{Activation, Deleted, Owner, Team};
use crate::trust::Past;

/// How often the mean is taken anew and the index is rebuilt.
const TICK_MS: u64 = 1_000;
/// How often what is due is looked at while something is going on.
const STEP_MS: u64 = 100;
/// How often it is looked at otherwise: a quarter of the default heartbeat, so that a missed one shows soon.
const IDLE_STEP_MS: u64 = 250;
/// Room for commands that is kept: more than one batch of inputs gives.
const COMMANDS: usize = 4_096;

/// Every decision of the broker. See the [crate's page](crate).
#[derive(Clone, Debug)]
pub struct Core {
    pub(crate) settings: Settings,
    pub(crate) cluster: ClusterId,
    pub(crate) broker: BrokerId,
    pub(crate) public_url: String,
    pub(crate) grants: GrantSigner,
    pub(crate) term: Term,
    pub(crate) started: Timestamp,
    pub(crate) wall_at_start: u64,
    pub(crate) epochs: Epochs,
    /// Whether a node has shown that the store this run started from is older than what was granted.
    pub(crate) store_regressed: bool,
    /// By name: a name has one process at a time.
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    /// Processes whose name another has by now, and which may act still.
    pub(crate) former: BTreeMap<(NodeId, Incarnation), Former>,
    pub(crate) new_names: NewNames,
    /// Which node speaks on a link. A link that is not here may say hello and nothing else.
    pub(crate) links: BTreeMap<LinkId, NodeId>,
    pub(crate) teams: BTreeMap<TeamId, Team>,
    /// Teams without an owner, tried again at each step.
    pub(crate) unplaced: BTreeSet<TeamId>,
    /// Teams whose owner waits for the end of the process named by the key.
    pub(crate) activating: BTreeMap<(NodeId, Incarnation), BTreeSet<TeamId>>,
    /// Teams whose owner waits for a moment.
    pub(crate) activating_at: BTreeSet<(Timestamp, TeamId)>,
    /// Teams that were deleted, until their last owner has said that it stopped or is gone: its word that it
    /// holds such a team is no news.
    pub(crate) deleted: BTreeMap<TeamId, Deleted>,
    /// When every lease that an earlier run of the broker granted is over.
    pub(crate) restart_fence: Timestamp,
    /// When a move is given up, by team. Entries of moves that ended meanwhile are skipped.
    pub(crate) deadlines: BTreeSet<(Timestamp, TeamId)>,
    pub(crate) operations: BTreeMap<OperationId, Operation>,
    /// Ended ones, oldest first.
    pub(crate) ended_operations: VecDeque<OperationId>,
    pub(crate) operations_begun: u64,
    /// Which operations have moved a team: the other way round of what each of them keeps.
    pub(crate) movers: Movers,
    /// Who is answered once the connections of an operation's teams are counted.
    pub(crate) awaiting_count: Vec<(RequestId, OperationId)>,
    pub(crate) index: Index,
    pub(crate) pool: Pool,
    /// Placements that count towards the share of a node that came back lately.
    pub(crate) placed: u64,
    /// Choices made, failovers included.
    pub(crate) choices: u64,
    pub(crate) mode: Mode,
    /// Asks for teams of silent nodes, while too many are silent.
    pub(crate) asked: Asked,
    /// Deaths of nodes that were forgotten.
    pub(crate) past: BTreeMap<NodeId, Past>,
    /// Which nodes announce a URL, by what clients are given.
    pub(crate) urls: BTreeMap<String, BTreeSet<NodeId>>,
    /// From when on silence counts: what was not heard before may be this broker's own fault.
    pub(crate) patient_since: Timestamp,
    pub(crate) decisions: History<Decision>,
    commands: VecDeque<Command>,
    last_step: Timestamp,
    pub(crate) last_tick: Timestamp,
    /// When nodes were last told of other peers.
    pub(crate) peers_told: Timestamp,
    last_event: Timestamp,
}

impl Core {
    /// The core of a broker that starts at `now`, with `wall_ms` on the wall clock, from what its
    /// store held. Its first commands publish the routes of the teams it knows.
    #[must_use]
    pub fn new(
        settings: Settings,
        snapshot: Snapshot,
        broker: BrokerId,
        public_url: String,
        grants: GrantSigner,
        now: Timestamp,
        wall_ms: u64,
    ) -> Self {
        let longest_lease = snapshot.nodes.iter().map(|(_, node)| node.lease_ms).max();
        let mode = match longest_lease {
            Some(lease_ms) if !planted::is(Bug::NoRestartGrace) => Mode::Grace {
                until: now.plus(lease::dead_after_ms(lease_ms.max(settings.lease_ms))),
            },
            _ => Mode::Normal,
        };
        let mut core = Self {
            settings,
            cluster: snapshot.cluster,
            broker,
            public_url,
            grants,
            term: snapshot.term,
            started: now,
            wall_at_start: wall_ms,
            epochs: Epochs::after(snapshot.epochs_reserved),
            store_regressed: false,
            nodes: BTreeMap::new(),
            former: BTreeMap::new(),
            new_names: NewNames::new(now),
            links: BTreeMap::new(),
            teams: BTreeMap::new(),
            unplaced: BTreeSet::new(),
            activating: BTreeMap::new(),
            activating_at: BTreeSet::new(),
            deleted: BTreeMap::new(),
            restart_fence: now,
            deadlines: BTreeSet::new(),
            operations: BTreeMap::new(),
            ended_operations: VecDeque::new(),
            operations_begun: 0,
            movers: Movers::default(),
            awaiting_count: Vec::new(),
            index: Index::default(),
            pool: Pool::default(),
            placed: 0,
            choices: 0,
            mode,
            asked: Asked::default(),
            past: BTreeMap::new(),
            urls: BTreeMap::new(),
            patient_since: now,
            decisions: History::default(),
            commands: VecDeque::new(),
            last_step: now,
            last_tick: now,
            peers_told: now,
            last_event: now,
        };
        if let Mode::Grace { until } = mode {
            core.restart_fence = until;
        }
        core.load(snapshot, now);
        core
    }

    fn load(&mut self, snapshot: Snapshot, now: Timestamp) {
        for (id, record) in snapshot.operations {
            let operation = Operation::from_record(record, now, self.wall_at_start);
            if !operation.is_running() {
                self.ended_operations.push_back(id.clone());
            }
            self.operations.insert(id, operation);
        }
        for (id, record) in snapshot.nodes {
            let intent = match record.intent {
                IntentRecord::Active => Intent::Active,
                IntentRecord::Cordoned => Intent::Cordoned,
                IntentRecord::Draining => self.stored_drain(&id),
            };
            let lease_ms = if planted::is(Bug::LoweredLeaseAtOnce) {
                self.settings.lease_ms
            } else {
                // Nothing longer was granted: a longer lease is written before it is.
                record.lease_ms
            };
            let mut node = Node::new(record.hello, Seen::Expected { heard: now }, intent, lease_ms);
            node.marks = record.marks;
            self.nodes.insert(id.clone(), node);
            self.rekey(&id);
            self.publish_node(&id);
        }
        for (id, record) in snapshot.teams {
            let team = Team::from_record(record, self.restart_fence);
            self.count_stored_move(&id, &team);
            let owner = team
                .owner
                .clone()
                .filter(|owner| self.nodes.contains_key(&owner.node));
            self.teams.insert(id.clone(), Team { owner: None, ..team });
            match owner {
                Some(owner) => {
                    self.own(&id, owner);
                    self.publish_route(&id);
                }
                None => {
                    self.unplaced.insert(id);
                }
            }
        }
    }

    /// What a running operation had moved before the restart still counts for it.
    fn count_stored_move(&mut self, id: &TeamId, team: &Team) {
        if planted::is(Bug::RestartForgetsMoves) || team.owner.is_none() {
            return;
        }
        let Some(known) = &team.moved_by else { return };
        if let Some(operation) = self.operations.get_mut(known)
            && operation.is_running()
        {
            operation.chosen.remove(id);
            self.count_moved(known, id, team.epoch);
        }
    }

    /// The drain that a stored intent belongs to: the one still running, else the newest of that node.
    fn stored_drain(&self, node: &NodeId) -> Intent {
        let mut found: Option<&Operation> = None;
        for operation in self.operations.values() {
            let ours = operation.node == *node && operation.kind == usher_shared::rest::OperationKind::Drain;
            if ours && found.is_none_or(|best| operation.is_running() || !best.is_running()) {
                found = Some(operation);
            }
        }
        found.map_or(Intent::Cordoned, |operation| {
            Intent::Draining(operation.id.clone())
        })
    }

    /// Takes in what happened.
    pub fn handle(&mut self, event: Event, now: Timestamp) {
        self.notice_own_pause(now);
        match event {
            Event::Hello { link, hello } => self.hello(link, *hello, now),
            Event::Inventory { link, page } => self.inventory(link, page, now),
            Event::Heartbeat {
                link,
                heartbeat,
                wall_ms,
            } => self.heartbeat(link, &heartbeat, wall_ms, now),
            Event::Prepared { link, held } => self.prepared(link, &held, now),
            Event::Yielded { link, held } => self.yielded(link, &held),
            Event::Released { link, held } => self.released(link, &held, now),
            Event::Arrived { link, arrivals } => self.arrived(link, &arrivals, now),
            Event::Left { link, departures } => self.left(link, &departures, now),
            Event::Counted { link, counted } => self.counted(link, &counted, now),
            Event::Missed { link, missed } => self.missed(link, &missed),
            Event::Bye { link, budget_ms } => self.bye(link, budget_ms, now),
            Event::LinkClosed { link } => self.link_closed(link, now),
            Event::Probed {
                node,
                incarnation,
                outcome,
            } => self.probed(&node, incarnation, outcome, now),
            Event::UrlProbed {
                node,
                incarnation,
                failed,
            } => self.url_probed(&node, incarnation, failed, now),
            Event::Sent {
                node,
                tickets,
                teams,
                over_ms,
            } => self.sent(&node, tickets, teams, over_ms, now),
            Event::WhoAnswered {
                node,
                incarnation,
                state,
            } => self.who_answered(&node, incarnation, state),
            Event::Exited(exited) => self.exited(&exited, now),
            Event::Request { request, ask } => self.request(request, ask, now),
        }
    }

    /// The next thing to do, if any.
    pub fn poll_command(&mut self) -> Option<Command> {
        self.commands.pop_front()
    }

    /// When to call [`Core::handle_deadline`] at the latest. O(1): the loop asks twice each turn.
    #[must_use]
    pub fn next_deadline(&self) -> Timestamp {
        if cfg!(debug_assertions) {
            self.assert_counts();
        }
        let going_on = !self.unplaced.is_empty()
            || !self.activating.is_empty()
            || !self.activating_at.is_empty()
            || !self.deadlines.is_empty()
            || self.running() > 0
            || !self.index.unlinked.is_empty();
        let step = if going_on { STEP_MS } else { IDLE_STEP_MS };
        self.last_step.plus(step).min(self.last_tick.plus(TICK_MS))
    }

    /// How many operations are going on.
    pub(crate) fn running(&self) -> usize {
        self.operations.len().saturating_sub(self.ended_operations.len())
    }

    /// What is kept to save a walk over nodes, operations and moves is what the walk would find.
    fn assert_counts(&self) {
        let running = self.operations.values().filter(|known| known.is_running());
        assert_eq!(self.running(), running.count(), "running operations");
        let unlinked = self.nodes.values().filter(|node| node.is_unlinked());
        assert!(
            unlinked.map(Node::id).eq(&self.index.unlinked),
            "nodes without a link: {:?} are kept",
            self.index.unlinked
        );
        let mut moved = 0;
        for operation in self.operations.values() {
            for team in operation.moved.keys() {
                moved += 1;
                let known = self.movers.of(team);
                assert!(
                    known.contains(&operation.id),
                    "{team}, moved by {}: {known:?}",
                    operation.id
                );
            }
        }
        assert_eq!(self.movers.pairs(), moved, "teams that were moved");
    }

    /// Does what is due: notices silence and death, moves what is being drained, places what waits,
    /// and once a second takes the mean anew.
    pub fn handle_deadline(&mut self, now: Timestamp) {
        self.notice_own_pause(now);
        self.last_step = now;
        if now.since(self.last_tick) >= TICK_MS {
            self.tick(now);
            self.shorten_leases(now);
            self.forget_former(now);
            self.forget_deleted(now);
            self.tell_peers(now);
            self.ask_who_again(now);
        }
        self.watch_nodes(now);
        self.activate_after_leases(now);
        self.place_waiting(now);
        self.end_late_counts(now);
        self.step_operations(now);
    }

    /// A broker that stood still itself cannot say who was silent meanwhile.
    fn notice_own_pause(&mut self, now: Timestamp) {
        let paused =
            now.since(self.last_event) > self.settings.lease_ms / 2 && !planted::is(Bug::OwnPauseIgnored);
        self.last_event = now;
        if paused {
            self.begin_grace(now);
        }
    }

    fn tick(&mut self, now: Timestamp) {
        let elapsed_ms = now.since(self.last_tick);
        let keep = score::keep_ppm(elapsed_ms, self.settings.half_life_ms);
        let keep_coming = score::keep_ppm(elapsed_ms, self.settings.arrive_half_life_ms);
        self.last_tick = now;
        // A burst needs room once, and then for long no more.
        self.commands.shrink_to(COMMANDS);
        for node in self.nodes.values_mut() {
            node.pending.tick(keep);
            node.coming.tick(keep_coming);
            node.warmth.tick(self.placed, keep);
            let strained = node.is_heard() && strain::strained_by(node, &self.settings).is_some();
            node.strain.tick(strained, keep);
        }
        self.tick_trust(elapsed_ms, now);
        self.rebuild_index();
    }

    /// Takes the pool's figures anew and puts every node in its place.
    pub(crate) fn rebuild_index(&mut self) {
        self.pool = Pool::measure(self.nodes.values(), &self.settings);
        self.index = Index::default();
        for node in self.nodes.values_mut() {
            node.key = None;
            self.index.put(node, &self.pool, &self.settings);
        }
    }

    /// Puts one node in its place after a change.
    pub(crate) fn rekey(&mut self, node: &NodeId) {
        if let Some(node) = self.nodes.get_mut(node) {
            self.index.put(node, &self.pool, &self.settings);
        }
    }

    pub(crate) fn command(&mut self, command: Command) {
        self.commands.push_back(command);
    }

    pub(crate) fn write(&mut self, record: Record) {
        self.commands.push_back(Command::Write(record));
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.commands.push_back(Command::Notice(notice));
    }

    /// Sends to a node if it is linked. If it is not, reconciliation will say the same later.
    pub(crate) fn send(&mut self, node: &NodeId, message: ToNode) {
        if let Some(link) = self.nodes.get(node).and_then(Node::link) {
            self.commands.push_back(Command::Send {
                link,
                message: Box::new(message),
            });
        }
    }

    pub(crate) fn write_team(&mut self, team: &TeamId) {
        let record = self.teams.get(team).map(Team::record);
        self.write(Record::Team(team.clone(), record));
    }

    pub(crate) fn write_node(&mut self, node: &NodeId) {
        let record = self.nodes.get(node).map(Node::record);
        self.write(Record::Node(node.clone(), record));
    }

    pub(crate) fn write_operation(&mut self, operation: &OperationId, now: Timestamp) {
        let wall_ms = self.wall_ms(now);
        let record = self
            .operations
            .get(operation)
            .map(|operation| operation.record(now, wall_ms));
        self.write(Record::Operation(operation.clone(), record));
    }

    /// Tells the route table how a node is reached, and whether it may be reached without asking.
    pub(crate) fn publish_node(&mut self, node: &NodeId) {
        let entry = self.nodes.get(node).map(|node| NodeEntry {
            incarnation: node.incarnation(),
            url: node.hello.url.clone(),
            direct: !node.is_draining()
                && node.trust.is_direct()
                && (node.is_heard() || matches!(node.seen, Seen::Expected { .. }))
                && score::full(node, &self.settings).is_none(),
        });
        self.command(Command::Node {
            node: node.clone(),
            entry,
        });
    }

    /// The wall clock at `now`, as the run counts it: persisted moments must outlive a restart.
    pub(crate) fn wall_ms(&self, now: Timestamp) -> u64 {
        self.wall_at_start.saturating_add(now.since(self.started))
    }

    /// An epoch that was never given out, reserved in the store before anyone sees it.
    pub(crate) fn next_epoch(&mut self) -> Epoch {
        let (epoch, reserve) = self.epochs.take();
        self.keep_reserved(reserve);
        epoch
    }

    /// Goes on above an epoch that a node showed and this store never gave out.
    pub(crate) fn raise_epochs(&mut self, shown: Epoch) {
        let reserve = self.epochs.surpass(shown);
        self.keep_reserved(reserve);
    }

    fn keep_reserved(&mut self, reserve: Option<Reserve>) {
        if let Some(Reserve(reserved)) = reserve {
            self.write(Record::Epochs { reserved });
        }
    }

    /// Gives a team to an owner in memory. The team must have none. The caller writes it, and publishes
    /// its route only then: what a crash could forget must not be shown.
    pub(crate) fn own(&mut self, id: &TeamId, owner: Owner) {
        let Some(team) = self.teams.get_mut(id) else {
            return;
        };
        debug_assert!(team.owner.is_none(), "disown before own");
        if let Some(node) = self.nodes.get_mut(&owner.node) {
            node.teams.insert(id.clone());
            node.tried = true;
            node.weight_sum += u64::from(team.weight.get());
            node.pending.add(pending(&self.pool, team));
            node.coming.add(coming(&self.pool, team));
        }
        // Whoever takes it over from itself waits for nobody.
        let from_itself = matches!(&team.activation, Activation::After { before, .. } if *before == owner);
        let node = owner.node.clone();
        team.owner = Some(owner);
        self.unplaced.remove(id);
        self.rekey(&node);
        if from_itself && !planted::is(Bug::WaitsForItself) {
            self.set_activation(id, Activation::Owned);
        }
    }

    /// Tells the route table where a team is.
    pub(crate) fn publish_route(&mut self, id: &TeamId) {
        let Some(team) = self.teams.get(id) else { return };
        let route = team.owner.as_ref().map(|owner| Route {
            node: owner.node.clone(),
            epoch: team.epoch,
        });
        self.command(Command::Route {
            team: id.clone(),
            route,
        });
    }

    /// Takes a team from its owner in memory; the caller says where it goes.
    pub(crate) fn disown(&mut self, id: &TeamId) -> Option<Owner> {
        let team = self.teams.get_mut(id)?;
        let owner = team.owner.take()?;
        if let Some(node) = self.nodes.get_mut(&owner.node)
            && node.teams.remove(id)
        {
            node.weight_sum -= u64::from(team.weight.get());
            node.pending.add(-pending(&self.pool, team));
            if node.report.seq > 0 {
                team.brings = Some(node.connections_of(id));
            }
            node.coming.add(-coming(&self.pool, team));
        }
        self.rekey(&owner.node.clone());
        Some(owner)
    }

    /// Counts room that is kept for a team on its way.
    pub(crate) fn reserve(&mut self, id: &TeamId, target: &NodeId) {
        let Some(team) = self.teams.get(id) else { return };
        if let Some(node) = self.nodes.get_mut(target)
            && node.reserved.insert(id.clone())
        {
            node.reserved_weight += u64::from(team.weight.get());
        }
        self.rekey(target);
    }

    /// Gives such room back.
    pub(crate) fn unreserve(&mut self, id: &TeamId, target: &NodeId) {
        let Some(team) = self.teams.get(id) else { return };
        if let Some(node) = self.nodes.get_mut(target)
            && node.reserved.remove(id)
        {
            node.reserved_weight -= u64::from(team.weight.get());
        }
        self.rekey(target);
    }

    /// Counts a choice that was taken.
    pub(crate) fn took(&mut self, decision: &Decision) {
        let Some(chosen) = &decision.node else { return };
        self.choices += 1;
        let counts = decision.cause != usher_shared::rest::Cause::Failover;
        if counts {
            self.placed += 1;
        }
        if let Some(node) = self.nodes.get_mut(chosen) {
            node.last_chosen = self.choices;
            node.trust.take();
            if counts {
                node.warmth.take();
            }
        }
    }

    /// Keeps a decision for `why`, within the bounds.
    pub(crate) fn remember(&mut self, team: &TeamId, decision: Decision) {
        self.decisions.remember(team, decision, self.settings.decisions);
    }

    /// Forgets the decisions of a team that is gone.
    pub(crate) fn forget_decisions(&mut self, team: &TeamId) {
        self.decisions.forget(team);
    }
}

fn pending(pool: &Pool, team: &Team) -> i64 {
    i64::try_from(pool.cost_microcores * u64::from(team.weight.get())).unwrap_or(0)
}

/// The connections that will follow a team, in thousandths: what it had, or what teams have.
fn coming(pool: &Pool, team: &Team) -> i64 {
    let milli = team.brings.map_or_else(
        || pool.connections_milli * u64::from(team.weight.get()),
        |connections| u64::from(connections) * 1_000,
    );
    i64::try_from(milli).unwrap_or(0)
}
