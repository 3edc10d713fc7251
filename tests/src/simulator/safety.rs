//! What must hold after every step, of what nodes may do.

use usher_node_core::OnLapse;
use usher_node_core::admission::Verdict;
use usher_node_core::lapse::{CLOSES_PER_S, CUT_OFF_AFTER_MS};
use usher_shared::id::{NodeId, TeamId};
use usher_shared::lease::{FENCING_MS, dead_after_ms};
use usher_shared::link::{ToBroker, ToNode};
use usher_shared::quantity::Epoch;
use usher_shared::ticket::{Age, Claims, Scope};

use super::mirror::{Begun, Known};
use super::node::Machine;
use super::node::Still;
use super::world::World;

/// How often a node looks at its lease, and its watchdog at what is owed.
const LOOK_MS: u64 = 100 + 50;

impl World {
    /// Something came to a node: for which teams can it act now, and is it alone with each?
    pub(super) fn look_at_acting(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_ref() else {
            return;
        };
        let may = |team: &TeamId| process.mandate.may_act(team, now);
        let acting: Vec<Option<Epoch>> = self.teams.iter().map(may).collect();
        let before = &process.acting;
        let mut begun: Vec<(usize, Epoch)> = Vec::new();
        for (team, epoch) in acting.iter().enumerate() {
            if let Some(epoch) = epoch
                && before[team] != Some(*epoch)
            {
                begun.push((team, *epoch));
            }
        }
        let mut unnamed = None;
        if let Some(link) = process.link.as_ref().map(|dialled| dialled.link) {
            for (team, epoch) in &begun {
                if process.named.get(&self.teams[*team]) != Some(&(link, *epoch)) {
                    unnamed = Some((*team, *epoch));
                }
            }
        }
        for (team, epoch) in &begun {
            self.check_alone(node, *team, *epoch);
        }
        if let Some((team, epoch)) = unnamed {
            self.fail(format!(
                "S1: node {node} acts for team {team} under epoch {epoch}, which this link did not name"
            ));
        }
        if let Some(process) = self.machines[node].process.as_mut() {
            process.acting = acting;
        }
    }

    /// S1: no other process passes the check for a team at this moment.
    fn check_alone(&mut self, node: usize, team: usize, epoch: Epoch) {
        if !self.leases_hold() {
            return;
        }
        for other in 0..self.machines.len() {
            if other == node {
                continue;
            }
            if let Some(their) = self.may_act(other, team) {
                self.fail(format!(
                    "S1: node {node} acts for team {team} under epoch {epoch}, and node {other} under {their}"
                ));
            }
        }
    }

    pub(super) fn may_act(&self, node: usize, team: usize) -> Option<Epoch> {
        let process = self.machines[node].process.as_ref()?;
        process.mandate.may_act(&self.teams[team], self.local(node))
    }

    /// S13: the broker lets a node act: nobody else can any more.
    pub(super) fn check_exclusive(&mut self, team: &TeamId, node: usize, what: &str) {
        if !self.leases_hold() {
            return;
        }
        let Some(serial) = self.team_named(team) else {
            return;
        };
        for other in 0..self.machines.len() {
            if other == node {
                continue;
            }
            if let Some(epoch) = self.may_act(other, serial) {
                self.fail(format!(
                    "S13: node {node} {what} for {team} while node {other} can act for it under epoch {epoch}"
                ));
            }
        }
    }

    /// S5: a process that counts as dead by silence has no lease.
    pub(super) fn check_fenced_when_dead(&mut self, id: &NodeId, known: &Known, hinted: bool) {
        if hinted || !self.leases_hold() {
            return;
        }
        let Some(node) = self.machine_of(known.incarnation) else {
            return;
        };
        let now = self.local(node);
        let left = self.machines[node].process.as_ref();
        let left_ms = left.map_or(0, |process| process.mandate.remaining_ms(now));
        if left_ms > 0 {
            self.fail(format!(
                "S5: {id} counts as dead, and its lease has {left_ms} ms left"
            ));
        }
    }

    /// S5: a lease that was just renewed ends before the broker could count its holder as dead.
    pub(super) fn check_fences_in_time(&mut self, node: usize) {
        let now = self.local(node);
        let machine = &self.machines[node];
        let (Some(process), Some(broker)) = (&machine.process, &self.main) else {
            return;
        };
        let Some(known) = self.mirror.nodes.get(&machine.id) else {
            return;
        };
        let same = known.incarnation == process.incarnation && known.dead.is_none();
        let on_it = process
            .link
            .as_ref()
            .and_then(|dialled| self.links.get(&dialled.link));
        let of_this_run = on_it.is_some_and(|link| link.run == broker.run);
        if !same || !of_this_run || !self.leases_hold() {
            return;
        }
        let fenced = machine.clock.when(now.plus(process.mandate.remaining_ms(now)));
        let declared = self
            .broker_clock
            .when(known.heard.plus(dead_after_ms(known.lease_ms)));
        if fenced >= declared && process.mandate.remaining_ms(now) > 0 {
            self.fail(format!(
                "S5: node {node} stops {} ms after the broker may count it as dead",
                fenced - declared
            ));
        }
    }

    /// Which teams a broker named on this link, before effects for them may go on after a lapse.
    pub(super) fn note_named(&mut self, node: usize, message: &ToNode) {
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let Some(link) = process.link.as_ref().map(|dialled| dialled.link) else {
            return;
        };
        match message {
            ToNode::Assign(assign) => {
                let known = process
                    .named
                    .entry(assign.team.clone())
                    .or_insert((link, assign.epoch));
                if known.0 != link || known.1 < assign.epoch {
                    *known = (link, assign.epoch);
                }
            }
            ToNode::Activate(activate) => {
                process.note_named(&activate.team, link, activate.epoch);
            }
            ToNode::Confirm(confirm) => {
                for named in &confirm.teams {
                    process.note_named(&named.team, link, named.epoch);
                }
            }
            _ => {}
        }
    }

    /// S3, on the node: what it holds of a team never goes back.
    pub(super) fn check_epochs_grow(&mut self, node: usize) {
        let forgot = self.truth.forgot;
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let mut back = None;
        for team in &self.teams {
            let usher_node_core::holdings::Tenure::Held(epoch) = process.mandate.holdings.tenure(team) else {
                continue;
            };
            let highest = process.highest.entry(team.clone()).or_insert(epoch);
            if epoch < *highest && !forgot {
                back = Some(format!(
                    "S3: node {node} went back from epoch {highest} to {epoch} for {team}"
                ));
            }
            *highest = epoch.max(*highest);
        }
        if let Some(what) = back {
            self.fail(what);
        }
    }

    /// A pool that fences: its connections are closed when the lease is over and what fencing takes.
    pub(super) fn check_fenced(&mut self, node: usize) {
        let machine = &self.machines[node];
        let Some(process) = &machine.process else { return };
        let running = process.still.is_none();
        if machine.on_lapse == OnLapse::Fence
            && running
            && process.connections > 0
            && process.mandate.remaining_ms(self.local(node)) == 0
            && process.mandate.link() == usher_node_core::mandate::Link::Down
        {
            let connections = process.connections;
            self.fail(format!(
                "fence: node {node} has {connections} connections and no lease"
            ));
        }
    }

    /// The same for a process whose runtime is frozen: its watchdog has ended it by then.
    pub(super) fn check_frozen(&mut self, node: usize) {
        let machine = &self.machines[node];
        let Some(process) = &machine.process else { return };
        let frozen = matches!(process.still, Some((Still::Frozen, _)));
        if machine.on_lapse != OnLapse::Fence || !frozen || process.connections == 0 {
            return;
        }
        let long_ago = self.local(node).minus(FENCING_MS + LOOK_MS);
        if process.mandate.contact(long_ago) == usher_node_core::admission::Contact::Fenced {
            self.fail(format!(
                "fence: node {node} is frozen, has no lease, and was not ended"
            ));
        }
    }

    /// S18: connections of a pool that holds are closed only because peers hear the broker.
    pub(super) fn check_cut_off(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = &self.machines[node].process else {
            return;
        };
        if process.connections == 0 {
            return;
        }
        if process.cut_off {
            // What was decided once goes on until the broker is heard again.
            return;
        }
        if process.mandate.is_displaced() {
            if let Some(process) = self.machines[node].process.as_mut() {
                process.cut_off = true;
            }
            return;
        }
        let heard_ms = process.peers_hear_since.map(|since| now.since(since));
        if heard_ms.is_none_or(|heard_ms| heard_ms + 1 < CUT_OFF_AFTER_MS) {
            self.fail(format!(
                "S18: node {node} closes connections, and peers have heard the broker for {heard_ms:?} ms"
            ));
        }
        if let Some(process) = self.machines[node].process.as_mut() {
            process.cut_off = true;
        }
        self.count("cut off by peers");
    }

    /// S16: a node that is cut off closes its connections one by one.
    pub(super) fn check_cut_off_pace(&mut self, node: usize, closed: usize) {
        let now = self.now;
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let closes = &mut process.cut_off_closes;
        closes.extend(std::iter::repeat_n(now, closed));
        while closes.front().is_some_and(|first| now - *first >= 1_000) {
            closes.pop_front();
        }
        // Over five seconds at least, a tenth of a second at a time, rounded up each time.
        let all = closes.len() + usize::try_from(process.connections).unwrap_or(0);
        let most = 11 * (all.div_ceil(50) + 1);
        let many = closes.len();
        if many > most.min(usize::try_from(CLOSES_PER_S).unwrap_or(200) * 2) && closed > 2 {
            self.fail(format!(
                "S16: node {node} is cut off and closed {many} connections within a second"
            ));
        }
    }

    /// L8: clients that are told to come back at once do not come back at once.
    pub(super) fn check_returns(&mut self, node: usize, mut returns: Vec<u64>, bound_ms: u64) {
        if returns.len() < 10 || bound_ms < 500 {
            return;
        }
        returns.sort_unstable();
        let within = bound_ms / 10;
        let together = returns
            .iter()
            .map(|first| {
                returns
                    .iter()
                    .filter(|at| (*first..*first + within).contains(*at))
                    .count()
            })
            .max()
            .unwrap_or(0);
        if together > returns.len() / 2 + 3 {
            self.fail(format!(
                "L8: {together} of {} clients of node {node} come back within {within} ms of each other",
                returns.len()
            ));
        }
        self.count("many clients were told to come back");
    }

    /// S11: what opens a door.
    pub(super) fn check_verdict(
        &mut self,
        node: usize,
        claims: &Claims,
        age: Age,
        hears: bool,
        verdict: Verdict,
    ) {
        let machine = &self.machines[node];
        let Some(process) = &machine.process else { return };
        let ours = claims.aud == machine.id && claims.inc == process.incarnation;
        if !ours && !matches!(verdict, Verdict::SendBack(_)) {
            return self.fail(format!(
                "S11: node {node} lets a ticket in that is for another process: {verdict:?}"
            ));
        }
        if verdict != Verdict::Admit {
            return;
        }
        let held = process.mandate.holdings.tenure(&claims.sub);
        let fenced =
            process.mandate.remaining_ms(self.local(node)) == 0 && machine.on_lapse == OnLapse::Fence;
        if held != usher_node_core::holdings::Tenure::Held(claims.epoch) {
            self.fail(format!(
                "S11: node {node} admits under epoch {}, and has {held:?}",
                claims.epoch
            ));
        }
        if fenced {
            self.fail(format!(
                "S11: node {node} fences, has no lease and admits a client"
            ));
        }
        if hears && (age == Age::Expired || claims.scope == Scope::Resume) {
            self.fail(format!(
                "S11: node {node} hears its broker and admits {age:?} {:?}",
                claims.scope
            ));
        }
        if age == Age::Expired {
            self.count("expired ticket good while lost");
        }
    }

    /// S16: moves begin at the pace of their operations.
    pub(super) fn check_drain_pace(&mut self, target: &NodeId, team: &TeamId, epoch: Epoch) {
        let Some((source, held)) = self.mirror.owners.get(team).cloned() else {
            return;
        };
        if source == *target || held >= epoch || !self.mirror.begun_epochs.insert(epoch) {
            return;
        }
        let now = self.broker_local();
        // One that counts its connections is charged what each team has; others are taken at their mean.
        let counts = |machine: &Machine| machine.id == source && machine.counts;
        let Some(known) = self
            .mirror
            .nodes
            .get(&source)
            .filter(|_| !self.machines.iter().any(counts))
        else {
            return;
        };
        let cost = u64::from(known.connections) * 1_000 / u64::from(known.teams.max(1));
        let Some(broker) = &self.main else { return };
        let (mut rate, mut saved, mut operations, mut late) = (0, 0, 0, false);
        for operation in broker.core.operations(now) {
            let moves =
                operation.node == source && operation.kind != usher_shared::rest::OperationKind::Failover;
            if moves && operation.state == usher_shared::rest::OperationState::Running {
                rate += u64::from(operation.rate_per_s);
                saved += (u64::from(operation.rate_per_s) * 250).max(1_000);
                operations += 1;
                late |= self.deadlines_pass(&source);
            }
        }
        // A second's worth, what may be saved up, and the last team of each, which may overdraw.
        let most = rate * 1_000 + saved + operations * cost;
        let begun = self.mirror.begun.entry(source.clone()).or_default();
        begun.push_back(Begun {
            at: now,
            epoch,
            cost,
            most,
        });
        while begun.front().is_some_and(|first| now.since(first.at) >= 1_000) {
            begun.pop_front();
        }
        let spent: u64 = begun.iter().map(|one| one.cost).sum();
        let dearest = begun.iter().map(|one| one.cost).max().unwrap_or(0);
        // An operation may have ended within that second, and another begun.
        let before = begun
            .iter()
            .map(|one| one.most)
            .filter(|other| *other != most)
            .max();
        let most = most + before.unwrap_or(0) + operations * (dearest - cost.min(dearest));
        if rate > 0 && spent > most && !late {
            self.fail(format!(
                "S16: moves worth {spent} thousandths of a connection left {source} within a second, of {most}"
            ));
        }
    }

    fn deadlines_pass(&self, source: &NodeId) -> bool {
        self.hurried.get(source).is_some_and(|until| self.now >= *until)
    }

    /// Who left is told before the word that nothing is left: it ends the move at the broker.
    pub(super) fn check_report_order(&mut self, node: usize, message: &ToBroker) {
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        match message {
            ToBroker::Released(held) => {
                process.released.insert((held.team.clone(), held.epoch));
            }
            ToBroker::Left(departures) => {
                let late = departures
                    .connections
                    .iter()
                    .find(|left| process.released.contains(&(left.team.clone(), left.epoch)));
                if let Some(late) = late {
                    let what = format!(
                        "S24: node {node} tells of a departure of {} under epoch {} after it had released it",
                        late.team, late.epoch
                    );
                    self.fail(what);
                }
            }
            _ => {}
        }
    }
}
