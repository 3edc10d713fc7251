//! What a node does: obeys, acts, and deals with the end of its lease, all as its real decisions say.

use usher_node_core::holdings::{Departing, Effect};
use usher_node_core::lapse::{ANSWER_WITHIN_MS, CLOSES_PER_S, Hears, Step};
use usher_node_core::mandate::Unheeded;
use usher_node_core::pacing::{Slot, Who};
use usher_node_core::stopping::{self, Stopping};
use usher_shared::id::{ConnectionId, TeamId};
use usher_shared::link::{Departure, EndedBy, ToBroker, ToNode};
use usher_shared::quantity::Timestamp;

use super::agenda::{ForClient, ForNode, Happens, Write};
use super::node::Member;
use super::world::World;

/// How often the lease is looked at.
const LOOK_MS: u64 = 100;
/// Clients of a team that is elsewhere come back within this time.
const ELSEWHERE_MS: u64 = 2_000;
/// A slot is paced already.
const SLOT_RETRY_MS: u64 = 100;
/// A client that is closed one by one comes back within this time.
const RETRY_MS: u64 = 1_000;
/// How often a process that is asked to stop is looked at here.
const STOP_LOOK_MS: u64 = 100;
/// The end of a stop budget, in which what is left may be closed.
const LAST_CLOSES_MS: u64 = 2_000;

impl World {
    pub(super) fn obeys(&mut self, node: usize, link: u64, message: ToNode) {
        let now = self.local(node);
        let term = term_of(&message);
        self.note_named(node, &message);
        let acknowledges = matches!(message, ToNode::HeartbeatAck { .. });
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        if acknowledges && let Some(dialled) = process.on(link) {
            dialled.acknowledged = true;
        }
        let (before, highest) = (process.mandate.fence_by(), process.mandate.highest_term());
        let obeyed = process.mandate.obey(message, now);
        let fence_by = process.mandate.fence_by();
        if obeyed.is_ok() && term.is_some_and(|term| term < highest) {
            self.fail(format!(
                "S9: node {node} obeyed a command of a term below {highest}"
            ));
        }
        if fence_by != before {
            self.owe(node, fence_by);
        }
        match obeyed {
            Ok(effects) => {
                for effect in effects {
                    self.node_carries_out(node, effect);
                }
                if acknowledges {
                    if let Some(process) = self.machines[node].process.as_mut() {
                        process.leased |= process.mandate.remaining_ms(now) > 0;
                        process.cut_off &= process.mandate.remaining_ms(now) == 0;
                    }
                    self.check_fences_in_time(node);
                }
            }
            Err(Unheeded::Lapsed) => {
                self.count("lapsed while the link stood");
                return self.link_ends(node, None);
            }
            Err(Unheeded::OldTerm(_)) => self.count("a command of an old term was not obeyed"),
            Err(Unheeded::Unknown) => self.count("a message out of its place"),
        }
        self.check_epochs_grow(node);
        self.flush(node);
        self.watch_lease(node);
    }

    fn node_carries_out(&mut self, node: usize, effect: Effect) {
        match effect {
            Effect::Say(message) => {
                if let Some(process) = self.machines[node].process.as_mut() {
                    process.outgoing.say(message);
                }
            }
            Effect::Open(team) => self.open_doors(node, &team),
            Effect::Depart(departing) => self.depart(node, &departing),
            Effect::Expect(..) => {}
            Effect::Pace(pace) => {
                let now = self.local(node);
                if let Some(process) = self.machines[node].process.as_mut() {
                    process.pacer.change(&pace, now);
                }
                self.count("pace changed");
                self.schedule_slots(node);
            }
            Effect::Close(team) => {
                for member in self.members(node, &team) {
                    let after = self.jitter(ELSEWHERE_MS);
                    self.close_member(node, &team, &member, after, EndedBy::Client);
                }
            }
        }
    }

    pub(super) fn members(&self, node: usize, team: &TeamId) -> Vec<Member> {
        let process = self.machines[node].process.as_ref();
        process
            .and_then(|process| process.rooms.get(team).cloned())
            .unwrap_or_default()
    }

    /// What a client is told to wait; what is told to many must differ.
    pub(super) fn jitter(&mut self, bound_ms: u64) -> u64 {
        usher_node_core::pacing::jitter(bound_ms, self.dice.next())
    }

    fn depart(&mut self, node: usize, departing: &Departing) {
        let (now, random) = (self.local(node), self.dice.next());
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        process.pacer.plan(departing, now, random);
        for member in process.rooms.get_mut(&departing.team).into_iter().flatten() {
            member.told = false;
        }
        self.schedule_slots(node);
    }

    fn schedule_slots(&mut self, node: usize) {
        let machine = &self.machines[node];
        let due = machine
            .process
            .as_ref()
            .and_then(|process| process.pacer.next_due());
        if let Some(due) = due {
            let after = machine.clock.when(due).saturating_sub(self.now);
            self.node_soon(node, after, ForNode::Slots);
        }
    }

    pub(super) fn run_slots(&mut self, node: usize) {
        let now = self.local(node);
        let next_due = |world: &Self| world.machines[node].process.as_ref()?.pacer.next_due();
        let (before, mut popped) = (next_due(self), false);
        while let Some(process) = self.machines[node].process.as_mut() {
            let Some(slot) = process.pacer.pop(now) else { break };
            popped = true;
            if process.mandate.holdings.is_leaving_by(&slot.team, slot.epoch) {
                self.run_slot(node, slot, now);
            }
        }
        if popped {
            self.flush(node);
        }
        // Also when all that was due had been planned anew: something else is the next then.
        if next_due(self) != before {
            self.schedule_slots(node);
        }
    }

    fn run_slot(&mut self, node: usize, slot: Slot, now: Timestamp) {
        let members = self.members(node, &slot.team);
        let Who::Next(many) = slot.who else {
            for member in &members {
                let after = self.jitter(SLOT_RETRY_MS);
                self.close_member(node, &slot.team, member, after, EndedBy::Deadline);
            }
            return;
        };
        let staying: Vec<&Member> = members.iter().filter(|member| !member.told).collect();
        let going = staying.len().min(usize::try_from(many).unwrap_or(usize::MAX));
        for member in staying.iter().take(going) {
            if member.usher {
                let (after, connection) = (self.dice.within(1, 30), member.connection);
                self.client_soon(member.client, after, ForClient::Move { connection });
                self.note_told(node, &slot.team, connection);
            } else {
                let after = self.jitter(SLOT_RETRY_MS);
                self.close_member(node, &slot.team, member, after, EndedBy::Slot);
            }
        }
        let left = u32::try_from(staying.len() - going).unwrap_or(u32::MAX);
        if let Some(process) = self.machines[node].process.as_mut() {
            process.pacer.again(slot, left, now);
        }
    }

    fn note_told(&mut self, node: usize, team: &TeamId, connection: ConnectionId) {
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let members = process.rooms.get_mut(team).into_iter().flatten();
        for member in members.filter(|member| member.connection == connection) {
            member.told = true;
        }
    }

    /// Closes a connection, and tells its client when to come back.
    pub(super) fn close_member(
        &mut self,
        node: usize,
        team: &TeamId,
        member: &Member,
        after_ms: u64,
        by: EndedBy,
    ) {
        let connection = member.connection;
        let way = self.dice.within(1, 30);
        if self.machines[node].client_cut {
            // It finds out by its own pings.
            self.client_soon(member.client, 20_000, ForClient::Closed { connection, after_ms });
        } else {
            self.client_soon(member.client, way, ForClient::Closed { connection, after_ms });
        }
        self.seat_is_free(node, team, connection, by);
    }

    /// A client's end of a connection is gone.
    pub(super) fn rises(&mut self, node: usize, connection: ConnectionId) {
        let Some(process) = self.machines[node].process.as_ref() else {
            return;
        };
        let sits = |members: &Vec<Member>| members.iter().any(|member| member.connection == connection);
        let team = process
            .rooms
            .iter()
            .find(|(_, members)| sits(members))
            .map(|(team, _)| team.clone());
        if let Some(team) = team {
            self.seat_is_free(node, &team, connection, EndedBy::Client);
            self.flush(node);
        }
    }

    fn seat_is_free(&mut self, node: usize, team: &TeamId, connection: ConnectionId, by: EndedBy) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let Some(members) = process.rooms.get_mut(team) else {
            return;
        };
        let before = members.len();
        members.retain(|member| member.connection != connection);
        if members.len() == before {
            return;
        }
        if members.is_empty() {
            process.rooms.remove(team);
        }
        process.connections -= 1;
        let closed = process.mandate.holdings.closed(team, now);
        if let Some(epoch) = closed.departed {
            let departure = Departure {
                team: team.clone(),
                epoch,
                connection,
                by,
                age_ms: None,
            };
            process.outgoing.left(departure, now);
        }
        for message in closed.say {
            process.outgoing.say(message);
        }
    }

    /// Looks at the lease when it is due, and again while it is over.
    pub(super) fn watch_lease(&mut self, node: usize) {
        let now = self.local(node);
        let machine = &mut self.machines[node];
        let Some(process) = machine
            .process
            .as_mut()
            .filter(|process| process.leased && !process.looking)
        else {
            return;
        };
        let remaining = process.mandate.remaining_ms(now);
        process.looking = true;
        let at = machine.clock.when(now.plus(remaining));
        let after = match remaining {
            0 => LOOK_MS,
            _ => at.saturating_sub(self.now) + self.dice.within(1, LOOK_MS),
        };
        self.node_soon(node, after, ForNode::Look);
    }

    pub(super) fn look_at_lease(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        process.looking = false;
        let connections = process.connections;
        let step = process.mandate.step(connections, now);
        process.cut_off &= process.mandate.lapse().is_cut_off();
        let fence_by = process.mandate.fence_by();
        if fence_by != process.watched {
            self.owe(node, fence_by);
        }
        match step {
            Step::Nothing => {}
            Step::AskPeers => self.ask_peers(node),
            Step::Close(many) => {
                self.check_cut_off(node);
                self.close_some(node, many, RETRY_MS, true);
            }
            Step::CloseAll => {
                let bound = RETRY_MS + u64::from(connections) * 1_000 / CLOSES_PER_S;
                let fences = self.machines[node].on_lapse == usher_node_core::OnLapse::Fence;
                if fences {
                    self.count("fenced");
                } else {
                    self.check_cut_off(node);
                }
                self.close_some(node, u32::MAX, bound, !fences);
                if let Some(process) = self.machines[node].process.as_mut() {
                    process.mandate.lapse().closed();
                    let fence_by = process.mandate.fence_by();
                    self.owe(node, fence_by);
                }
            }
        }
        self.check_fenced(node);
        self.watch_lease(node);
    }

    fn close_some(&mut self, node: usize, many: u32, retry_ms: u64, cut_off: bool) {
        let Some(process) = self.machines[node].process.as_ref() else {
            return;
        };
        let rooms = process.rooms.iter();
        let everybody: Vec<(TeamId, Member)> = rooms
            .flat_map(|(team, members)| members.iter().map(|member| (team.clone(), member.clone())))
            .take(usize::try_from(many).unwrap_or(usize::MAX))
            .collect();
        let closed = everybody.len();
        let mut returns = Vec::new();
        for (team, member) in everybody {
            let after = self.jitter(retry_ms);
            returns.push(after);
            self.close_member(node, &team, &member, after, EndedBy::Deadline);
        }
        if cut_off {
            self.check_cut_off_pace(node, closed);
        }
        self.check_returns(node, returns, retry_ms);
        self.flush(node);
    }

    fn ask_peers(&mut self, node: usize) {
        let Some(process) = self.machines[node].process.as_ref() else {
            return;
        };
        let peers: Vec<String> = process
            .mandate
            .peers()
            .iter()
            .map(|peer| peer.probe.clone())
            .collect();
        let cluster = process.mandate.cluster();
        let mut hears = Hears::No;
        for peer in peers {
            let Some(peer) = self.machine_at(&peer) else {
                continue;
            };
            let now = self.local(peer);
            let machine = &self.machines[peer];
            let Some(asked) = machine.process.as_ref().filter(|process| process.still.is_none()) else {
                continue;
            };
            if !machine.client_cut && cluster.is_some_and(|cluster| asked.mandate.hears(cluster, now)) {
                hears = Hears::Yes;
            }
        }
        let after = self.dice.within(2, ANSWER_WITHIN_MS);
        self.node_soon(node, after, ForNode::Peers { hears });
    }

    pub(super) fn peers_answer(&mut self, node: usize, hears: Hears) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        process.mandate.lapse().peers_answered(hears, now);
        process.peers_hear_since = match hears {
            Hears::Yes => process.peers_hear_since.or(Some(now)),
            Hears::No => None,
        };
        if hears == Hears::No && process.connections > 0 {
            self.count("held while no peer heard the broker");
        }
    }

    /// Tells the watchdog what the process owes.
    fn owe(&mut self, node: usize, fence_by: Option<Timestamp>) {
        let machine = &mut self.machines[node];
        let Some(process) = machine.process.as_mut() else {
            return;
        };
        process.watched = fence_by;
        if let Some(by) = fence_by {
            let after = machine.clock.when(by).saturating_sub(self.now) + self.dice.within(0, 50);
            self.node_soon(node, after, ForNode::Watchdog { by });
        }
    }

    /// The watchdog's thread looks; it runs also while the runtime is frozen.
    pub(super) fn watchdog(&mut self, node: usize, by: Timestamp) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_ref() else {
            return;
        };
        if process.watched == Some(by) && now >= by {
            self.count("the watchdog aborted");
            self.kill(node, true, None);
        }
    }

    /// Exclusive effects happen, for some of the teams that they may happen for.
    pub(super) fn act(&mut self, node: usize) {
        let now = self.local(node);
        let first = self.dice.index(self.teams.len());
        let Some(process) = self.machines[node].process.as_ref() else {
            return;
        };
        let incarnation = process.incarnation;
        let mut writes = Vec::new();
        for step in 0..self.teams.len() {
            let team = (first + step) % self.teams.len();
            if let Some(epoch) = process.mandate.may_act(&self.teams[team], now) {
                writes.push(Write {
                    team,
                    epoch,
                    node,
                    incarnation,
                });
                if writes.len() == 2 {
                    break;
                }
            }
        }
        for write in writes {
            // A write may be long on its way; it is the register that must refuse it then.
            let slow = self.dice.percent(3);
            let after = if slow {
                self.dice.within(100, 15_000)
            } else {
                self.dice.within(1, 20)
            };
            self.soon(after, Happens::Register(write));
        }
        let again = self.dice.within(200, 1_500);
        self.node_soon(node, again, ForNode::Act);
    }

    /// SIGTERM.
    pub(super) fn stop_node(&mut self, node: usize, budget_ms: u64) {
        let now = self.local(node);
        let Some(process) = self.machines[node]
            .process
            .as_mut()
            .filter(|process| process.stopping.is_none())
        else {
            return;
        };
        let served = !process.mandate.holdings.is_empty();
        process.stopping = Some(Stopping::begin(budget_ms, served, now));
        process.stops_by = Some(now.plus(budget_ms));
        let link = process
            .link
            .as_ref()
            .filter(|dialled| dialled.talking)
            .map(|dialled| dialled.link);
        self.count("node told to stop");
        if let Some(link) = link {
            self.send_up(link, ToBroker::Bye { budget_ms });
        }
        self.node_soon(node, 0, ForNode::Leaves);
    }

    /// A process that was asked to stop looks whether it may go.
    pub(super) fn leaves(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let (connections, teams) = (process.connections, process.mandate.holdings.held());
        let (Some(stopping), Some(by)) = (process.stopping.as_mut(), process.stops_by) else {
            return;
        };
        match stopping.step(connections, teams, now) {
            // Something may have gone meanwhile.
            stopping::Step::Wait { until } => {
                let after = until.since(now).clamp(1, STOP_LOOK_MS);
                self.node_soon(node, after, ForNode::Leaves);
            }
            stopping::Step::CloseAll { spread_ms } => {
                if by.since(now) > LAST_CLOSES_MS {
                    self.fail(format!(
                        "S26: node {node} closes {connections} connections {} ms before its stop budget is over",
                        by.since(now)
                    ));
                }
                self.count("stopped at the end of its budget");
                self.close_some(node, u32::MAX, spread_ms, false);
                self.node_soon(node, 1, ForNode::Leaves);
            }
            stopping::Step::Gone => {
                if connections == 0 && teams == 0 {
                    self.count("stopped empty");
                }
                let back = self.dice.within(500, 4_000);
                self.kill(node, true, Some(back));
            }
        }
    }
}

/// The term that a message shows, a welcome's included.
pub(super) fn term_of(message: &ToNode) -> Option<usher_shared::quantity::Term> {
    match message {
        ToNode::Welcome(welcome) => Some(welcome.term),
        other => other.term(),
    }
}
