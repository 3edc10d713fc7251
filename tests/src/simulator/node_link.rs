//! How a node keeps its link: dials, says hello, beats, and gives a silent broker up. The times are
//! those of the node's own link.

use usher_shared::id::Incarnation;
use usher_shared::link::{
    Clients, Descriptors, Health, Heartbeat, Held, Inventory, LargeTeam, RefusedCode, ToBroker, ToNode,
};
use usher_shared::quantity::Millicores;

use super::agenda::{ForNode, Happens, Which};
use super::network::Link;
use super::node::{Dialled, Process, Still};
use super::plan::Kind;
use super::world::{WALL, World};

/// From the dialling to the welcome.
const WELCOME_MS: u64 = 5_000;
const FIRST_RETRY_MS: u64 = 50;
const LAST_RETRY_MS: u64 = 2_000;
/// Arrivals and departures are collected for so long.
const REPORT_MS: u64 = 100;

impl World {
    pub(super) fn start_node(&mut self, node: usize) {
        // A second process of a name is started by its own fault alone, or a restart would be one.
        let machine = &self.machines[node];
        if machine.process.is_some() || machine.gone || machine.twin_of.is_some() {
            return;
        }
        self.start_process(node);
    }

    pub(super) fn start_process(&mut self, node: usize) {
        self.last_incarnation += 1;
        let incarnation = Incarnation::from_bits(self.last_incarnation << 104 | self.last_incarnation);
        let on_lapse = self.machines[node].on_lapse;
        let process = Process::new(incarnation, on_lapse, self.teams.len(), &mut self.dice);
        let machine = &mut self.machines[node];
        machine.process = Some(process);
        machine.is_off = false;
        self.node_soon(node, 1, ForNode::Dial);
        let first = self.dice.within(100, 1_000);
        self.node_soon(node, first, ForNode::Act);
    }

    /// Something will come to the process that runs on a machine now.
    pub(super) fn node_soon(&mut self, node: usize, after: u64, what: ForNode) {
        if let Some(process) = &self.machines[node].process {
            let incarnation = process.incarnation;
            self.soon(
                after,
                Happens::Node {
                    node,
                    incarnation,
                    what,
                },
            );
        }
    }

    /// Something comes to a node's process; one that stands still gets it later.
    pub(super) fn reaches_node(&mut self, node: usize, incarnation: Incarnation, what: ForNode) {
        let Some(process) = self.process_of(node, incarnation) else {
            return;
        };
        match (&mut process.still, &what) {
            (Some((Still::Frozen, _)), ForNode::Watchdog { by }) => {
                let by = *by;
                return self.watchdog(node, by);
            }
            (Some((_, deferred)), _) => {
                deferred.push(what);
                return;
            }
            (None, _) => {}
        }
        self.node_does(node, what);
        self.look_at_acting(node);
    }

    pub(super) fn process_of(&mut self, node: usize, incarnation: Incarnation) -> Option<&mut Process> {
        let process = self.machines[node].process.as_mut();
        process.filter(|process| process.incarnation == incarnation)
    }

    fn node_does(&mut self, node: usize, what: ForNode) {
        match what {
            ForNode::Dial => self.dial(node),
            ForNode::NotWelcome { link } => {
                let process = self.machines[node].process.as_mut();
                if process
                    .and_then(|process| process.on(link))
                    .is_some_and(|dialled| !dialled.talking)
                {
                    self.link_ends(node, None);
                }
            }
            ForNode::Beat { link } => self.beat(node, link),
            ForNode::Silent { link } => self.watch_silence(node, link),
            ForNode::Look => self.look_at_lease(node),
            ForNode::Slots => self.run_slots(node),
            ForNode::Report => self.report(node),
            ForNode::Act => self.act(node),
            ForNode::Watchdog { by } => self.watchdog(node, by),
            ForNode::Message { link, message } => self.node_hears(node, link, *message),
            ForNode::Closed { link } => {
                let process = self.machines[node].process.as_mut();
                if process.is_some_and(|process| process.on(link).is_some()) {
                    self.link_ends(node, None);
                }
            }
            ForNode::Peers { hears } => self.peers_answer(node, hears),
            ForNode::Arrives {
                client,
                serial,
                ticket,
                from,
            } => {
                self.client_arrives(node, client, serial, ticket, from);
            }
            ForNode::WaitedLong { client, serial } => self.waited_long(node, client, serial),
            ForNode::Hangs { connection } => self.rises(node, connection),
            ForNode::Leaves => self.leaves(node),
        }
    }

    fn dial(&mut self, node: usize) {
        let Some(process) = self.machines[node]
            .process
            .as_ref()
            .filter(|process| process.link.is_none())
        else {
            return;
        };
        let incarnation = process.incarnation;
        let met = process.mandate.cluster().is_some();
        let highest_term = process.mandate.highest_term();
        let mut which = Which::Main;
        let (twin, twin_term) = match &self.twin {
            Some(twin) => (true, twin.core.status(self.broker_local()).term),
            None => (false, highest_term),
        };
        // A twin is refused by those who have met the other; who has not, cannot know.
        if twin && met && twin_term == highest_term && self.dice.percent(40) {
            which = Which::Twin;
        } else if met && self.has(Kind::Impostor) && self.dice.percent(10) {
            which = Which::Impostor;
        }
        let run = self.broker(which).map(|broker| broker.run);
        let cut = self.machines[node].cut != [false; 2];
        if run.is_none() && which != Which::Impostor || cut {
            // Nobody gets through, or nobody is there.
            let after = if cut { WELCOME_MS } else { 1 };
            let wait = after + self.back_off(node, false);
            return self.node_soon(node, wait, ForNode::Dial);
        }
        let Some(mut hello) = self.machines[node]
            .hello()
            .map(|hello| self.forge_hello(node, hello))
        else {
            return;
        };
        if which == Which::Twin && self.dice.percent(50) {
            // A node of an earlier version does not say whom it follows, and must refuse the twin itself.
            hello.broker = None;
        }
        self.last_link += 1;
        let link = self.last_link;
        let now = self.local(node);
        if let Some(process) = self.machines[node].process.as_mut() {
            process.mandate.reached();
            process.link = Some(Dialled {
                link,
                began: now,
                talking: false,
                acknowledged: false,
                heard: now,
                seq: 0,
                lease_ms: 0,
                heartbeat_ms: 0,
            });
        }
        self.links.insert(
            link,
            Link::new(node, incarnation, which, run.unwrap_or(0), self.now),
        );
        self.send_up(link, ToBroker::Hello(Box::new(hello)));
        self.node_soon(node, WELCOME_MS, ForNode::NotWelcome { link });
        self.soon(self.plan.lease_ms, Happens::LinkIdle { link });
    }

    /// Milliseconds until the next dial.
    fn back_off(&mut self, node: usize, lasted: bool) -> u64 {
        let Some(process) = self.machines[node].process.as_mut() else {
            return LAST_RETRY_MS;
        };
        if lasted || process.backoff_ms == 0 {
            process.backoff_ms = FIRST_RETRY_MS;
        }
        let backoff_ms = process.backoff_ms;
        process.backoff_ms = (2 * backoff_ms).min(LAST_RETRY_MS);
        self.dice.within(backoff_ms / 2, backoff_ms)
    }

    /// The link is over, from this side or as seen from it.
    pub(super) fn link_ends(&mut self, node: usize, retry_ms: Option<u64>) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let Some(dialled) = process.link.take() else {
            return;
        };
        process.mandate.link_ended();
        process.outgoing.forget_answers();
        process.released.clear();
        let lasted = now.since(dialled.began) > 5_000;
        self.node_closes(dialled.link);
        let backoff = self.back_off(node, lasted);
        self.node_soon(node, retry_ms.unwrap_or(backoff).max(1), ForNode::Dial);
        self.watch_lease(node);
    }

    fn beat(&mut self, node: usize, link: u64) {
        let (now, wall_ms) = (self.local(node), self.wall_s(node) * 1_000);
        let no_descriptors = self.machines[node].no_descriptors;
        let client_cut = self.machines[node].client_cut;
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let Some(dialled) = process.on(link) else { return };
        dialled.seq += 1;
        let (seq, every) = (dialled.seq, dialled.heartbeat_ms);
        process.mandate.sent(seq, now);
        let mut idle_teams = process.mandate.holdings.idle(now, process.forget_ms, 256);
        idle_teams.sort_by(|one, other| one.team.cmp(&other.team));
        if !client_cut && process.connections > 0 {
            process.client_heard = Some(now);
        }
        let clients = Clients {
            shown: process.shown,
            heard_ms: process.client_heard.map(|heard| now.since(heard)),
            ping_ms: super::client::PING_MS,
        };
        let mut rooms: Vec<_> = process.rooms.iter().collect();
        rooms.sort_by_key(|(_, members)| std::cmp::Reverse(members.len()));
        let large_teams = rooms.into_iter().take(16).map(|(team, members)| LargeTeam {
            team: team.clone(),
            connections: u32::try_from(members.len()).unwrap_or(u32::MAX),
        });
        let large_teams = large_teams.collect();
        let heartbeat = Heartbeat {
            seq,
            boot_ms: now.as_millis(),
            wall_ms: wall_ms.max(WALL / 2),
            cpu_now: Millicores::default(),
            cpu_average: Millicores::default(),
            memory_bytes: 0,
            memory: None,
            connections: process.connections,
            teams: u32::try_from(process.mandate.holdings.held()).unwrap_or(u32::MAX),
            fds: Descriptors {
                used: if no_descriptors { 9_990 } else { 100 },
                limit: 10_000,
            },
            health: Health::Good,
            idle_teams,
            hot_teams: Vec::new(),
            clients: Some(clients),
            large_teams,
        };
        if !client_cut && heartbeat.connections > 0 {
            self.got_through(node);
        }
        self.send_up(link, ToBroker::Heartbeat(Box::new(heartbeat)));
        let after = self.dice.within(every * 9 / 10, every * 11 / 10);
        self.node_soon(node, after, ForNode::Beat { link });
    }

    fn watch_silence(&mut self, node: usize, link: u64) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let Some(dialled) = process.on(link) else { return };
        let patience = if dialled.acknowledged {
            dialled.lease_ms / 2
        } else {
            dialled.lease_ms
        };
        let silent_at = dialled.heard.plus(patience);
        if now >= silent_at {
            self.count("the node gave a silent link up");
            return self.link_ends(node, None);
        }
        let at = self.machines[node].clock.when(silent_at);
        self.node_soon(node, at.saturating_sub(self.now).max(1), ForNode::Silent { link });
    }

    fn node_hears(&mut self, node: usize, link: u64, message: ToNode) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let Some(dialled) = process.on(link) else { return };
        dialled.heard = now;
        match message {
            ToNode::Refused(refused) => {
                let retry_ms = refused.retry_ms.clamp(FIRST_RETRY_MS, 60_000);
                if refused.code == RefusedCode::NameTaken {
                    process.mandate.name_taken();
                }
                if refused.code == RefusedCode::TwoBrokers {
                    let which = self.links.get(&link).map(|known| known.which);
                    self.count(match which {
                        Some(Which::Main) => "a restored broker took for a twin",
                        _ => "twin refused",
                    });
                }
                self.link_ends(node, Some(retry_ms));
            }
            ToNode::Welcome(welcome) if !dialled.talking => {
                dialled.talking = true;
                dialled.lease_ms = welcome.lease_ms.max(4 * welcome.heartbeat_ms);
                dialled.heartbeat_ms = welcome.heartbeat_ms;
                self.is_welcomed(node, link, &welcome);
            }
            message if dialled.talking => self.obeys(node, link, message),
            _ => self.link_ends(node, None),
        }
    }

    fn is_welcomed(&mut self, node: usize, link: u64, welcome: &usher_shared::link::Welcome) {
        let which = self.links.get(&link).map(|known| known.which);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let highest = process.mandate.highest_term();
        let known_cluster = process.mandate.cluster();
        let mut inventory = match process.mandate.welcome(welcome) {
            Ok(inventory) => inventory,
            Err(why) => {
                self.count(match why {
                    usher_node_core::authority::Disobey::TwoBrokers { .. } if which == Some(Which::Main) => {
                        "a restored broker took for a twin"
                    }
                    usher_node_core::authority::Disobey::TwoBrokers { .. } => "twin refused",
                    usher_node_core::authority::Disobey::Term { .. } => "lower term refused",
                    usher_node_core::authority::Disobey::Cluster { .. } => "foreign cluster refused",
                    usher_node_core::authority::Disobey::Lease(_) => "short lease refused",
                });
                return self.link_ends(node, Some(LAST_RETRY_MS));
            }
        };
        process.keys.clone_from(&welcome.ticket_keys);
        process.forget_ms = welcome.forget_ms;
        let incarnation = process.incarnation;
        if welcome.term < highest || known_cluster.is_some_and(|known| known != welcome.cluster) {
            self.fail(format!(
                "S9: node {node} followed term {} after {highest}",
                welcome.term
            ));
        }
        if which == Some(Which::Twin) {
            self.fail(format!(
                "S9: node {node} followed a second broker of term {}",
                welcome.term
            ));
        }
        inventory.sort_by(|one, other| one.team.cmp(&other.team));
        self.forge_inventory(node, &mut inventory);
        if self.has(Kind::EagerBeats) {
            self.beat(node, link);
        }
        let pages = if self.dice.percent(20) {
            3
        } else {
            inventory.len().max(1)
        };
        let mut teams = inventory.into_iter().peekable();
        loop {
            let page: Vec<Held> = teams.by_ref().take(pages).collect();
            let more = teams.peek().is_some();
            self.send_up(link, ToBroker::Inventory(Inventory { teams: page, more }));
            if !more {
                break;
            }
        }
        if !self.has(Kind::EagerBeats) {
            let beat = ForNode::Beat { link };
            self.soon(
                0,
                Happens::Node {
                    node,
                    incarnation,
                    what: beat,
                },
            );
        }
        self.node_soon(node, welcome.lease_ms / 2, ForNode::Silent { link });
        self.flush(node);
        if let Some(until) = self.machines[node]
            .process
            .as_ref()
            .and_then(|process| process.stopping)
            .map(|stopping| stopping.until())
        {
            let budget_ms = until.since(self.local(node));
            self.send_up(link, ToBroker::Bye { budget_ms });
        }
        self.watch_lease(node);
    }

    /// Says what waits to be said.
    pub(super) fn flush(&mut self, node: usize) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        let Some(link) = process
            .link
            .as_ref()
            .filter(|dialled| dialled.talking)
            .map(|dialled| dialled.link)
        else {
            return;
        };
        let Ok(due) = process.outgoing.take_due(now) else {
            return self.link_ends(node, None);
        };
        for message in due {
            self.check_report_order(node, &message);
            self.send_up(link, message);
        }
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        if process.outgoing.has_reports() && !process.reporting {
            process.reporting = true;
            self.node_soon(node, REPORT_MS, ForNode::Report);
        }
    }

    fn report(&mut self, node: usize) {
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        process.reporting = false;
        let link = process
            .link
            .as_ref()
            .filter(|dialled| dialled.talking)
            .map(|dialled| dialled.link);
        if let Some(link) = link {
            self.send_reports(node, link);
        }
    }

    fn send_reports(&mut self, node: usize, link: u64) {
        let now = self.local(node);
        let Some(process) = self.machines[node].process.as_mut() else {
            return;
        };
        for report in process.outgoing.take_reports(now) {
            self.check_report_order(node, &report);
            self.send_up(link, report);
        }
    }
}
