//! What the broker has been told, kept a second time and simply: against this its decisions are checked.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use usher_placement::{Event, LinkId};
use usher_shared::id::{BrokerId, Incarnation, Label, NodeId, TeamId};
use usher_shared::lease::dead_after_ms;
use usher_shared::quantity::{Epoch, Timestamp};

use super::broker::BrokerTime;
use super::caution::Caution;
use super::disk::Contents;
use super::node::nonce_of;
use super::world::World;

/// Teams that are made beside those of the plan.
pub(super) const EXTRA_TEAMS: usize = 64;

/// What the broker has been told.
#[derive(Default)]
pub(super) struct Mirror {
    pub(super) nodes: BTreeMap<NodeId, Known>,
    pub(super) links: BTreeMap<LinkId, NodeId>,
    /// Nodes that the store knew at the start and that have not reported, nor are proven dead.
    pub(super) awaited: BTreeSet<NodeId>,
    pub(super) started: Timestamp,
    /// When the grace after the start ends at the latest.
    pub(super) grace_until: Option<Timestamp>,
    last_event: Timestamp,
    /// When the broker last woke from a long pause of its own.
    pub(super) woke: Option<Timestamp>,
    pub(super) caution: Caution,
    /// In this event: what it was, and whether it is evidence of death.
    pub(super) event: EventKind,
    /// Teams whose last activation waits, and what was sent.
    pub(super) failed_over: BTreeMap<TeamId, VecDeque<Timestamp>>,
    /// Moves that began, by the node that the teams leave.
    pub(super) begun: BTreeMap<NodeId, VecDeque<Begun>>,
    /// Their epochs, since each is asked for until it is answered.
    pub(super) begun_epochs: BTreeSet<Epoch>,
    pub(super) owners: BTreeMap<TeamId, (NodeId, Epoch)>,
    /// Teams whose record changed in this event, and their owners before it.
    pub(super) changed: BTreeMap<TeamId, Option<(NodeId, Epoch)>>,
    /// What the inventories of this run showed.
    pub(super) claimed: BTreeSet<(TeamId, Epoch)>,
    /// Self-preservation is on.
    pub(super) preserving: bool,
    /// A death was proven in this event.
    pub(super) proven: bool,
    /// What was known of a name before the hello of this event, in case it is refused.
    before_hello: Option<BeforeHello>,
    /// Whose name changed hands in this event, and who had it.
    succeeded: Option<(NodeId, Incarnation)>,
    /// Processes that lost their name without proof of their end.
    displaced: BTreeMap<NodeId, BTreeSet<Incarnation>>,
}

/// Of which kind the event is that the core is dealing with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum EventKind {
    #[default]
    Wake,
    Hello,
    Inventory,
    Yield,
    Exited,
    Request,
    Other,
}

/// A move that began.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun {
    pub(super) at: Timestamp,
    pub(super) epoch: Epoch,
    /// What it was charged, in thousandths of a connection.
    pub(super) cost: u64,
    /// What all of a second may be charged.
    pub(super) most: u64,
}

#[derive(Clone, Debug)]
struct BeforeHello {
    node: NodeId,
    link: LinkId,
    known: Option<Known>,
    displaced: Option<Incarnation>,
}

/// What the broker has been told of one node.
#[derive(Clone, Debug)]
pub(super) struct Known {
    pub(super) incarnation: Incarnation,
    pub(super) link: Option<LinkId>,
    /// Its inventory has come on that link.
    pub(super) reported: bool,
    pub(super) heard: Timestamp,
    pub(super) lease_ms: u64,
    pub(super) zone: Option<Label>,
    /// Its link closed, or heartbeats were missed.
    pub(super) silent: bool,
    pub(super) dead: Option<(Timestamp, bool)>,
    /// Whether it owned a team when it died.
    pub(super) held: bool,
    pub(super) connections: u32,
    pub(super) teams: u32,
    /// The most connections that it will hold.
    pub(super) capacity: u32,
    seq: u64,
}

impl Mirror {
    /// The broker is about to look at what is due.
    pub(super) fn wakes(&mut self, lease_ms: u64, now: BrokerTime) {
        self.event = EventKind::Wake;
        self.proven = false;
        self.passes(lease_ms, now);
    }

    /// Returns whether the broker has been standing still for long.
    fn passes(&mut self, lease_ms: u64, now: BrokerTime) -> bool {
        let stood_still = now.since(self.last_event) > lease_ms / 2;
        if stood_still {
            self.woke = Some(now);
        }
        self.last_event = now;
        stood_still
    }

    /// Another process took a name in this event, without proof that the one before has ended.
    pub(super) fn displaces(&mut self, node: &NodeId) {
        if let Some((_, before)) = self.succeeded.take().filter(|(of, _)| of == node) {
            self.displaced.entry(node.clone()).or_default().insert(before);
        }
    }

    /// The hello of this event was refused: nothing is new of its node.
    pub(super) fn refuses(&mut self, node: &NodeId) {
        let Some(before) = self.before_hello.take().filter(|before| before.node == *node) else {
            return;
        };
        self.succeeded = None;
        self.links.remove(&before.link);
        self.nodes.remove(node);
        if let Some(known) = before.known {
            if let Some(link) = known.link {
                self.links.insert(link, node.clone());
            }
            self.nodes.insert(node.clone(), known);
        }
        if let Some(incarnation) = before.displaced {
            self.displaced
                .entry(node.clone())
                .or_default()
                .insert(incarnation);
        }
    }

    /// What is known of the nodes, for a report.
    pub(super) fn in_words(&self, now: BrokerTime) -> String {
        let words = |(id, known): (&NodeId, &Known)| {
            let dead = known.dead.map(|(since, proven)| (now.since(since), proven));
            format!(
                "{id} heard {} ms ago, silent {}, dead {dead:?}",
                now.since(known.heard),
                known.silent
            )
        };
        self.nodes.iter().map(words).collect::<Vec<_>>().join("; ")
    }

    /// Whether the grace after the start is on: not everyone has reported, and the time is not over.
    pub(super) fn in_grace(&self, now: BrokerTime) -> bool {
        !self.awaited.is_empty() && self.grace_until.is_some_and(|until| now < until)
    }

    pub(super) fn node_on(&self, link: LinkId) -> Option<&NodeId> {
        self.links.get(&link)
    }
}

impl World {
    /// A broker starts on this.
    pub(super) fn mirror_starts(&mut self, contents: &Contents) {
        let now = self.broker_local();
        let lease_ms = self.next_lease_ms;
        let known = |record: &usher_placement::NodeRecord| Known {
            incarnation: record.hello.incarnation,
            link: None,
            reported: false,
            heard: now,
            lease_ms: record.lease_ms,
            zone: record.hello.zone.clone(),
            silent: true,
            dead: None,
            held: false,
            connections: 0,
            teams: 0,
            capacity: record.hello.capacity.connections,
            seq: 0,
        };
        let nodes: BTreeMap<NodeId, Known> = contents
            .nodes
            .iter()
            .map(|(id, record)| (id.clone(), known(record)))
            .collect();
        let longest = nodes.values().map(|known| known.lease_ms).max();
        self.mirror = Mirror {
            awaited: nodes.keys().cloned().collect(),
            grace_until: longest.map(|longest| now.plus(dead_after_ms(longest.max(lease_ms)))),
            last_event: now,
            started: now,
            owners: contents
                .teams
                .iter()
                .filter_map(|(team, record)| Some((team.clone(), (record.owner.clone()?.0, record.epoch))))
                .collect(),
            nodes,
            ..Mirror::default()
        };
        self.broker_forgets_ways();
        self.truth.broker_starts();
        if self.truth.forgot {
            let fence = self.now + dead_after_ms(self.longest_lease_ms) * 102 / 100;
            self.leases_overlap_until = fence;
        }
        self.count("broker started");
    }

    /// The broker is about to be told this.
    pub(super) fn mirror_hears(&mut self, event: &Event, now: BrokerTime) {
        let lease_ms = self.main.as_ref().map_or(0, |broker| broker.settings.lease_ms);
        if self.mirror.passes(lease_ms, now) {
            self.count("own pause noticed");
        }
        self.mirror.event = EventKind::Other;
        self.mirror.proven = false;
        self.mirror.succeeded = None;
        self.mirror.before_hello = None;
        let ours = self.main.as_ref().map(|broker| {
            (
                broker.core.status(now).term,
                BrokerId::from_bits(u128::from(broker.run)),
            )
        });
        let mirror = &mut self.mirror;
        match event {
            Event::Hello { link, hello } => {
                mirror.event = EventKind::Hello;
                // Another broker claims the term: the node is not let in, but lives, and what it was
                // granted counts.
                let follows_a_twin = hello.cluster.is_some()
                    && ours.is_some_and(|(term, id)| {
                        hello.highest_term == term && hello.broker.is_some_and(|broker| broker != id)
                    });
                if follows_a_twin {
                    if let Some(known) = mirror.nodes.get_mut(&hello.node)
                        && known.incarnation == hello.incarnation
                        && known.link.is_none()
                        && known.dead.is_none()
                    {
                        known.heard = now;
                    }
                    if let Some(granted) = &hello.highest_grant
                        && self
                            .grants
                            .verify(&granted.team, &hello.node, granted.epoch, &granted.grant)
                    {
                        self.truth.reported(granted.epoch);
                    }
                    return;
                }
                // Whether it is let in shows in what the core answers.
                let known = mirror.nodes.get(&hello.node);
                let woke = mirror.woke.unwrap_or_default();
                let taken = known.is_some_and(|known| {
                    known.incarnation != hello.incarnation
                        && known.link.is_some()
                        && now.since(known.heard.max(woke)) <= 2 * self.plan.heartbeat_ms
                });
                let of_name = mirror.displaced.get(&hello.node);
                let displaced = of_name.is_some_and(|of_name| of_name.contains(&hello.incarnation));
                if taken || displaced && known.is_some_and(|known| known.dead.is_none()) {
                    return;
                }
                if let Some(granted) = &hello.highest_grant
                    && self
                        .grants
                        .verify(&granted.team, &hello.node, granted.epoch, &granted.grant)
                {
                    self.truth.reported(granted.epoch);
                }
                let same = known.filter(|known| known.incarnation == hello.incarnation);
                mirror.succeeded = known
                    .filter(|known| known.incarnation != hello.incarnation)
                    .map(|known| (hello.node.clone(), known.incarnation));
                let next = Known {
                    incarnation: hello.incarnation,
                    link: Some(*link),
                    reported: false,
                    heard: now,
                    lease_ms: same.map_or(lease_ms, |known| known.lease_ms.max(lease_ms)),
                    zone: hello.zone.clone(),
                    silent: false,
                    dead: None,
                    held: false,
                    connections: same.map_or(0, |known| known.connections),
                    teams: same.map_or(0, |known| known.teams),
                    capacity: hello.capacity.connections,
                    seq: 0,
                };
                let of_name = mirror.displaced.get_mut(&hello.node);
                let was_displaced = of_name.is_some_and(|of_name| of_name.remove(&hello.incarnation));
                mirror.before_hello = Some(BeforeHello {
                    node: hello.node.clone(),
                    link: *link,
                    known: mirror.nodes.get(&hello.node).cloned(),
                    displaced: was_displaced.then_some(hello.incarnation),
                });
                mirror.links.retain(|_, node| *node != hello.node);
                mirror.links.insert(*link, hello.node.clone());
                mirror.nodes.insert(hello.node.clone(), next);
            }
            Event::Inventory { link, page } => {
                mirror.event = EventKind::Inventory;
                if let Some(node) = mirror.links.get(link).cloned() {
                    if let Some(known) = mirror.nodes.get_mut(&node).filter(|known| !known.reported) {
                        known.heard = now;
                        if !page.more {
                            known.reported = true;
                            mirror.awaited.remove(&node);
                        }
                    }
                    for held in &page.teams {
                        mirror.claimed.insert((held.team.clone(), held.epoch));
                        if self.grants.verify(&held.team, &node, held.epoch, &held.grant) {
                            self.truth.reported(held.epoch);
                        }
                    }
                }
            }
            Event::Heartbeat { link, heartbeat, .. } => {
                if let Some(node) = mirror.links.get(link)
                    && let Some(known) = mirror.nodes.get_mut(node)
                    && heartbeat.seq > known.seq
                {
                    known.seq = heartbeat.seq;
                    known.heard = now;
                    known.silent = false;
                    known.connections = heartbeat.connections;
                    known.teams = heartbeat.teams;
                }
            }
            Event::Counted { link, counted } => {
                // What a team was charged beyond what it has when it begins to go may go to the next one.
                if let Some(node) = mirror.links.get(link)
                    && let Some(begun) = mirror.begun.get_mut(node)
                {
                    for entry in &counted.teams {
                        for one in begun.iter_mut().filter(|one| one.epoch == entry.epoch) {
                            one.cost = one.cost.min(u64::from(entry.connections) * 1_000);
                        }
                    }
                }
            }
            Event::Bye { link, .. } => {
                if let Some(node) = mirror.links.get(link).cloned() {
                    self.note_stopping(node);
                }
            }
            Event::Yielded { .. } | Event::Released { .. } => mirror.event = EventKind::Yield,
            Event::Exited(exited) => {
                mirror.event = EventKind::Exited;
                let known = mirror.nodes.get_mut(&exited.node);
                let shown = exited.nonce == Some(nonce_of(exited.incarnation));
                if let Some(known) = known.filter(|known| shown && known.incarnation == exited.incarnation) {
                    // What was only presumed is proven now.
                    known.dead = known.dead.map(|(since, _)| (since, true));
                    mirror.awaited.remove(&exited.node);
                    // Its name is free, for whoever it had displaced too.
                    mirror.displaced.remove(&exited.node);
                }
            }
            Event::LinkClosed { link } => {
                if let Some(node) = mirror.links.remove(link)
                    && let Some(known) = mirror.nodes.get_mut(&node)
                {
                    known.link = None;
                    known.silent = true;
                    if known.reported {
                        known.reported = false;
                    }
                }
            }
            Event::Request { .. } => mirror.event = EventKind::Request,
            _ => {}
        }
    }
}
