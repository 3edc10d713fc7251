//! What must come about once the faults are over.

use std::collections::{BTreeMap, BTreeSet};
use usher_placement::{Ask, Event, RequestId};
use usher_shared::id::{NodeId, TeamId};
use usher_shared::lease::dead_after_ms;
use usher_shared::rest::{Gate, NodeState, NodeView, OperationKind, OperationState, OperationView, TeamView};

use super::agenda::{ForBroker, Happens, Which};
use super::client::Manner;
use super::plan::Kind;
use super::world::{Phase, World};

/// What is left for dialling, on top of a grace and a lease.
const DIAL_MS: u64 = 5_000;
/// What was decided so lately may not have reached its node.
const PLACED_MS: u64 = 200;
/// A team that moved less than this ago may be on its way still.
const MOVING_MS: u64 = 2_000;
/// Connections of a team that moved less than this ago may still be where it was: a hold that nobody renews, as of a
/// team that moved on before its first had shown that they arrive, is over after 30 s.
const LEAVING_MS: u64 = 45_000;
/// What a team is moved to all the same from a node that no client gets to.
const IN_NEED: [Gate; 3] = [Gate::CpuCeiling, Gate::Pressure, Gate::Crashing];
/// New teams placed at the end for each node, to see how even they come out.
const PROBES: usize = 4;

impl World {
    /// Everything comes up again.
    pub(super) fn heal(&mut self) {
        self.phase = Phase::Healed;
        self.tell_story(|| "the faults are over".to_owned());
        self.soon(0, Happens::BrokerStarts);
        self.end_twin();
        if let Some(run) = self
            .main
            .as_ref()
            .filter(|broker| broker.is_paused())
            .map(|broker| broker.run)
        {
            self.resume_broker(run);
        }
        self.broker_wall_off = 0;
        for node in 0..self.machines.len() {
            let machine = &mut self.machines[node];
            machine.client_cut = false;
            machine.firewall = false;
            machine.no_descriptors = false;
            machine.wall_off = 0;
            let incarnation = machine.process.as_ref().map(|process| process.incarnation);
            self.end_cut(node);
            self.end_namesake(node);
            if let Some(incarnation) = incarnation {
                self.resume_node(node, incarnation, 0);
            }
            self.soon(0, Happens::NodeStarts { node });
        }
        self.stay_wrong();
        self.soon(500, Happens::TidyUp);
        for later in [4_000, 12_000, 20_000] {
            self.soon(later, Happens::TidyUp);
        }
        let longest = self.longest_lease_ms;
        let mut by = dead_after_ms(longest) + longest + DIAL_MS;
        if self.truth.forgot {
            by += 15_000;
        }
        if self.has(Kind::Gone) {
            by += 2 * longest + DIAL_MS;
        }
        self.soon(by, Happens::CheckOwners);
    }

    /// Operators undo what they did.
    pub(super) fn tidy_up(&mut self) {
        if self.now > self.healed_at + 3_000 && self.is_refused_as_twin() {
            // Nodes say so in their logs, and the remedy is to start it once more.
            self.count("a restored broker was started once more");
            self.crash_broker();
            self.soon(500, Happens::BrokerStarts);
            return;
        }
        for node in 0..self.plan.nodes {
            self.soon(0, Happens::NodeStarts { node });
            let id = self.machines[node].id.clone();
            self.operator_asks(Ask::Undrain { node: id.clone() });
            self.operator_asks(Ask::Uncordon { node: id });
        }
        if !self.has(Kind::Gone) {
            self.operator_asks(Ask::Release);
        }
    }

    pub(super) fn operator_asks(&mut self, ask: Ask) {
        let Some(run) = self.main.as_ref().map(|broker| broker.run) else {
            return;
        };
        self.last_request += 1;
        let what = ForBroker::Operator {
            request: RequestId(self.last_request),
            ask: Box::new(ask),
        };
        let after = self.dice.within(1, 20);
        self.soon(
            after,
            Happens::Broker {
                which: Which::Main,
                run,
                what,
            },
        );
    }

    fn views(&self) -> Vec<TeamView> {
        let now = self.broker_local();
        let main = self.main.as_ref();
        main.map_or(Vec::new(), |broker| {
            broker.core.teams(None, None, 1_000, now).teams
        })
    }

    /// Whether the broker has a reason to keep every node out.
    fn all_gated(&self) -> bool {
        let now = self.broker_local();
        let Some(broker) = &self.main else { return false };
        // What only a last resort lets in is let in.
        let out = |gate: &Gate| {
            !matches!(
                gate,
                Gate::CpuCeiling | Gate::Pressure | Gate::Unreachable | Gate::Crashing
            )
        };
        let nodes = broker.core.nodes(now);
        nodes.iter().all(|view| view.gates.iter().any(out))
    }

    /// L1: each team has an owner that is alive and knows it.
    pub(super) fn check_owners(&mut self) {
        if self.main.is_none() {
            return self.fail("L1: the broker did not come up".to_owned());
        }
        if self.is_refused_as_twin() {
            return;
        }
        let wanted: BTreeSet<usize> = self.clients.iter().map(|client| client.team).collect();
        for view in self.views() {
            let Some(team) = self.team_named(&view.team).filter(|team| wanted.contains(team)) else {
                continue;
            };
            let Some(owner) = &view.node else {
                if !self.all_gated() {
                    self.fail(format!("L1: {} has no owner", view.team));
                }
                continue;
            };
            // What a node that forges gets into by its own claims is its own.
            let Some(node) = self.node_named(owner).filter(|node| !self.machines[*node].forges) else {
                continue;
            };
            let process = self.machines[node].process.as_ref();
            let tenure = process.map(|process| process.mandate.holdings.tenure(&view.team));
            let held = tenure == Some(usher_node_core::holdings::Tenure::Held(view.epoch));
            if !held
                && !self.is_nobody_better(node)
                && !self.just_moved(&view)
                && !self.just_placed(&view.team)
            {
                self.fail(format!(
                    "L1: {owner} owns team {team} under epoch {} and has {tenure:?}",
                    view.epoch
                ));
            }
        }
    }

    /// Whether a node's teams stay its own although it is gone: while nobody could take them, nobody is declared
    /// dead for silence.
    fn is_nobody_better(&self, node: usize) -> bool {
        self.machines[node].process.is_none() && self.mirror.preserving && self.all_gated()
    }

    /// Whether the team was given to its node so lately that the word may be on its way.
    fn just_placed(&self, team: &TeamId) -> bool {
        let now = self.broker_local();
        let why = self.main.as_ref().and_then(|broker| broker.core.why(team, now));
        let last = why.and_then(|why| why.decisions.into_iter().next());
        last.is_some_and(|last| last.ago_ms < PLACED_MS)
    }

    /// Whether the team is on its way from one node to another.
    fn just_moved(&self, view: &TeamView) -> bool {
        view.moving_from.is_some() && self.moved_within(&view.team, MOVING_MS)
    }

    fn moved_within(&self, team: &TeamId, within_ms: u64) -> bool {
        let now = self.broker_local();
        let why = self.main.as_ref().and_then(|broker| broker.core.why(team, now));
        let last = why.and_then(|why| why.decisions.into_iter().next());
        last.is_some_and(|last| last.from.is_some() && last.ago_ms < within_ms)
    }

    /// A broker on a copy from just before its own last start claims a term that nodes have met another
    /// broker under. Until it is started once more they take it for that one's twin.
    fn is_refused_as_twin(&mut self) -> bool {
        let now = self.broker_local();
        let Some(broker) = &self.main else { return false };
        let term = broker.core.status(now).term;
        let refuses = self
            .machines
            .iter()
            .flat_map(|machine| &machine.process)
            .any(|process| process.mandate.highest_term() == term && process.link.is_none());
        self.truth.forgot && refuses
    }

    /// What must hold at the end.
    pub(super) fn check_end(&mut self) {
        if self.is_refused_as_twin() {
            return self.fail("L7: nodes refuse the restored broker, and nothing ends that".to_owned());
        }
        let owners = self.check_holdings();
        self.check_clients(&owners);
        self.check_sums();
        self.check_operations();
        self.check_decisions();
        self.check_crowding();
        self.check_spread();
    }

    /// L1, L7: broker and nodes agree on who holds what, in full.
    fn check_holdings(&mut self) -> BTreeMap<TeamId, NodeId> {
        let mut owners = BTreeMap::new();
        for view in self.views() {
            let Some(owner) = view.node.clone() else {
                if !self.all_gated() {
                    self.fail(format!("L1: {} has no owner at the end", view.team));
                }
                continue;
            };
            if let (Some(node), Some(team)) = (self.node_named(&owner), self.team_named(&view.team))
                && !self.machines[node].forges
                && self.may_act(node, team) != Some(view.epoch)
                && !self.is_nobody_better(node)
                && !self.just_moved(&view)
                && !self.just_placed(&view.team)
            {
                let process = self.machines[node].process.as_ref();
                let tenure = process.map(|process| process.mandate.holdings.tenure(&view.team));
                self.fail(format!(
                    "L1: {owner} owns {} under epoch {} and cannot act for it at the end ({tenure:?})",
                    view.team, view.epoch
                ));
            }
            owners.insert(view.team, owner);
        }
        for node in 0..self.machines.len() {
            let Some(process) = &self.machines[node].process else {
                continue;
            };
            let id = self.machines[node].id.clone();
            for held in process.mandate.holdings.inventory() {
                if owners.get(&held.team) != Some(&id) {
                    self.fail(format!(
                        "L1: {id} holds {} at the end, which it does not own",
                        held.team
                    ));
                    break;
                }
            }
        }
        owners
    }

    /// L2: every client is back, and where its team is.
    fn check_clients(&mut self, owners: &BTreeMap<TeamId, NodeId>) {
        for client in 0..self.clients.len() {
            let known = self.clients[client].clone();
            let team = &self.teams[known.team];
            let Some(owner) = owners.get(team) else {
                continue;
            };
            // Who claims a team and does not serve it keeps its clients out, and where they were.
            let forges = self
                .node_named(owner)
                .is_some_and(|node| self.machines[node].forges);
            let full = self.node_named(owner).is_some_and(|node| {
                let machine = &self.machines[node];
                let process = machine.process.as_ref();
                forges || process.is_some_and(|process| process.connections >= machine.capacity.connections)
            });
            match known.seat {
                None if self.dials_in_vain_for_ever(client) => {}
                None if known.away_since > self.now - 15_000 => {}
                None if self
                    .node_named(owner)
                    .is_some_and(|node| self.is_nobody_better(node)) => {}
                None if full => self.check_refused(client, owner),
                None if self.is_cut_off(owner) && self.elsewhere(client, owner, &IN_NEED).is_none() => {}
                None => self.fail(format!(
                    "L2: client {client} ({:?}) of {team} has been away since {}",
                    known.manner, known.away_since
                )),
                Some(_) if forges || self.moved_within(team, LEAVING_MS) => {}
                Some(seat) if self.waits_there(team, seat.node) => {}
                Some(seat) if self.machines[seat.node].id != *owner => {
                    self.fail(format!(
                        "L2: client {client} of {team} is on node {}, not on {owner}",
                        seat.node
                    ));
                }
                Some(_) => {}
            }
        }
    }

    /// L8: who is refused because its team's node is full is not refused for ever while another node has room
    /// for the whole team.
    fn check_refused(&mut self, client: usize, owner: &NodeId) {
        let known = self.clients[client].clone();
        // One that dials the same URL again and again asks the broker once its ticket has expired.
        let patient = known.manner == Manner::Redialler || known.away_since > self.now - 40_000;
        if patient || self.machines.iter().any(|machine| machine.forges) {
            return;
        }
        if let Some(view) = self.elsewhere(client, owner, &[]) {
            self.fail(format!(
                "L8: client {client} of {} has been refused by {owner} since {}, while {} holds {} of {}",
                self.teams[known.team],
                known.away_since,
                view.node,
                view.connections,
                view.capacity.connections
            ));
        }
    }

    /// Another node with room for all of a client's team, and no gate but these.
    fn elsewhere(&self, client: usize, owner: &NodeId, but: &[Gate]) -> Option<NodeView> {
        let team = &self.teams[self.clients[client].team];
        let members = self
            .node_named(owner)
            .map_or(0, |node| self.members(node, team).len());
        let nodes = self.main.as_ref()?.core.nodes(self.broker_local());
        let has_room = |view: &NodeView| {
            let room = view.capacity.connections.saturating_sub(view.connections);
            view.node != *owner
                && !self.is_cut_off(&view.node)
                && view.gates.iter().all(|gate| but.contains(gate))
                && room as usize > members + members / 4 + 3
        };
        nodes.into_iter().find(has_room)
    }

    /// Whether a team is on its way from a node, and what is left there is held and told to be.
    fn waits_there(&self, team: &TeamId, node: usize) -> bool {
        let now = self.broker_local();
        let Some(broker) = &self.main else { return false };
        let id = &self.machines[node].id;
        let moves = broker.core.team(team, now).and_then(|view| view.moving_from);
        let told = |operation: &OperationView| {
            let waits = operation.waits || operation.detail.starts_with("waiting");
            operation.node == *id && operation.state == OperationState::Running && waits
        };
        moves.as_ref() == Some(id) && broker.core.operations(now).iter().any(told)
    }

    /// Whether no client gets to a node, for good.
    fn is_cut_off(&self, id: &NodeId) -> bool {
        self.out_of_reach.is_some() && self.node_named(id) == self.out_of_reach
    }

    /// L9: a new team goes to no node that is nearly full while one is half empty that is no worse by its
    /// teams.
    fn check_crowding(&mut self) {
        let now = self.broker_local();
        let nodes = |world: &Self| -> Vec<NodeView> {
            let views = world.main.as_ref().map(|broker| broker.core.nodes(now));
            views.unwrap_or_default()
        };
        for probe in 0..PROBES {
            let before = nodes(self);
            let Ok(team) = format!("crowd{probe}").parse::<TeamId>() else {
                continue;
            };
            let ask = Ask::Connect {
                team: team.clone(),
                may_create: true,
                region: None,
                knock: None,
            };
            self.last_request += 1;
            let request = RequestId(self.last_request);
            self.tell(Which::Main, Event::Request { request, ask });
            let placed = self
                .main
                .as_ref()
                .and_then(|broker| broker.core.team(&team, now)?.node);
            let Some(taken) = before.iter().find(|view| Some(&view.node) == placed.as_ref()) else {
                continue;
            };
            let percent = |view: &NodeView| view.connections * 100 / view.capacity.connections.max(1);
            let better = before.iter().find(|view| {
                view.gates.is_empty()
                    && view.teams < view.capacity.teams
                    && view.teams <= taken.teams
                    && view.connections <= taken.connections
                    && percent(view) < 50
            });
            if let Some(better) = better.filter(|_| percent(taken) >= 80) {
                self.fail(format!(
                    "L9: a new team went to {}, {} % full with {} teams, beside {}, {} % full with {}",
                    taken.node,
                    percent(taken),
                    taken.teams,
                    better.node,
                    percent(better),
                    better.teams
                ));
            }
        }
    }

    /// S21: nodes, broker and clients count the same connections.
    fn check_sums(&mut self) {
        let now = self.broker_local();
        let mut of_nodes: BTreeMap<usize, usize> = BTreeMap::new();
        for client in &self.clients {
            if let Some(seat) = client.seat {
                *of_nodes.entry(seat.node).or_default() += 1;
            }
        }
        for node in 0..self.machines.len() {
            let Some(process) = &self.machines[node].process else {
                continue;
            };
            let members: usize = process.rooms.values().map(Vec::len).sum();
            let counted = usize::try_from(process.connections).unwrap_or(0);
            let seated = of_nodes.get(&node).copied().unwrap_or(0);
            if members != counted {
                return self.fail(format!(
                    "S21: node {node} counts {counted} connections and has {members}"
                ));
            }
            let moving = self
                .clients
                .iter()
                .any(|client| client.away_since > self.now - 3_000 && client.seat.is_none());
            if seated != members && !moving {
                return self.fail(format!(
                    "S21: node {node} has {members} connections, and {seated} clients are there"
                ));
            }
            let view = self
                .main
                .as_ref()
                .and_then(|broker| broker.core.node(&self.machines[node].id, now));
            let shown = view.map_or(0, |view| usize::try_from(view.connections).unwrap_or(0));
            if shown.abs_diff(members) > 3 {
                return self.fail(format!(
                    "S21: node {node} has {members} connections, the broker shows {shown}"
                ));
            }
        }
    }

    /// L3: what goes on for far longer than was thought says what it waits for. The estimate is an
    /// average over the node's teams, and single teams are several times as large.
    fn check_operations(&mut self) {
        let now = self.broker_local();
        let Some(broker) = &self.main else { return };
        let late = broker.core.operations(now).into_iter().find(|operation| {
            operation.state == OperationState::Running
                && operation.kind != OperationKind::Failover
                && operation.elapsed_ms > 4 * operation.estimate_ms + 60_000
                && operation.detail.is_empty()
        });
        // A target that forges refuses, by its own claims, what it is asked to make room for.
        if let Some(operation) = late.filter(|_| !self.machines.iter().any(|machine| machine.forges)) {
            self.fail(format!("L3: {operation:?}"));
        }
    }

    /// S20: what is kept is bounded.
    fn check_decisions(&mut self) {
        let now = self.broker_local();
        let Some(broker) = &self.main else { return };
        let kept: usize = self
            .teams
            .iter()
            .filter_map(|team| broker.core.why(team, now))
            .map(|view| view.decisions.len())
            .sum();
        let (most, operations) = (broker.settings.decisions, broker.core.operations(now));
        let ended = operations
            .iter()
            .filter(|operation| operation.state != OperationState::Running)
            .count();
        if kept > most || ended > broker.settings.operations {
            self.fail(format!(
                "S20: {kept} decisions and {ended} ended operations are kept"
            ));
        }
    }

    /// L6: new teams go where the fewest are. Teams stay where they are, so what was uneven before stays
    /// so; but no node ends above the mean by a quarter (and one) that was not there already.
    fn check_spread(&mut self) {
        let now = self.broker_local();
        let loads = |world: &Self| -> Vec<usize> {
            let Some(broker) = &world.main else {
                return Vec::new();
            };
            let ready = broker.core.nodes(now).into_iter();
            ready
                .filter(|view| view.state == NodeState::Ready && view.gates.is_empty())
                .map(|view| usize::try_from(view.teams).unwrap_or(0))
                .collect()
        };
        let before = loads(self);
        if before.is_empty() || self.has(super::plan::Kind::SmallNodes) {
            return;
        }
        let wanted = PROBES * before.len();
        for probe in 0..wanted {
            let Ok(team) = format!("probe{probe}").parse() else {
                continue;
            };
            let ask = Ask::Connect {
                team,
                may_create: true,
                region: None,
                knock: None,
            };
            self.last_request += 1;
            let request = RequestId(self.last_request);
            self.tell(Which::Main, Event::Request { request, ask });
        }
        let after = loads(self);
        if after.len() != before.len() {
            return;
        }
        let (most, sum) = (
            after.iter().max().copied().unwrap_or(0),
            after.iter().sum::<usize>(),
        );
        let mean = sum.div_ceil(after.len());
        let was = before.iter().max().copied().unwrap_or(0);
        if most > was.max((mean * 5).div_ceil(4) + 1) {
            self.fail(format!("L6: {wanted} new teams turned {before:?} into {after:?}"));
        }
    }
}
