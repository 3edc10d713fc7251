//! What nodes say on their links, up to the point where a question of its own begins: joining is
//! finished in [`crate::reconcile`], silence is judged in [`crate::liveness`].

use usher_shared::id::NodeId;
use usher_shared::lease::CLOCK_RATE_PPM;
use usher_shared::link::{
    Heartbeat, Hello, Inventory, PROTOCOL, Refused, RefusedCode, TeamEpoch, ToNode, Welcome,
};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{DrainPost, ProbeState, TeamKind};

use crate::activation::Order;
use crate::command::Command;
use crate::core::Core;
use crate::event::LinkId;
use crate::node::{Hint, Intent, Node, Proof, Seen, Silence};
use crate::notice::{Kept, MoveOutcome, NodeFault, Notice, Regressed};
use crate::record::Record;
use crate::score;
use crate::strain;
use crate::team::Move;

/// The most teams that one node may claim in its inventory.
const INVENTORY_MAX: usize = 1_000_000;
/// How long a refused node waits before it tries again.
const REFUSED_RETRY_MS: u64 = 1_000;
/// How far ahead of this broker's term a node's may be. A term is one start of a broker, so no copy of a
/// store is a million behind; and a term near the end of its range would be the cluster's last.
const TERMS_AHEAD_MAX: u64 = 1_000_000;

impl Core {
    pub(crate) fn hello(&mut self, link: LinkId, hello: Hello, now: Timestamp) {
        let id = hello.node.clone();
        if let Some((code, detail)) = self.refuse_hello(link, &hello, now) {
            if code == RefusedCode::TwoBrokers {
                self.hear_of(&hello, now);
                self.meet_higher_epoch(&hello);
            }
            if matches!(code, RefusedCode::NameTaken | RefusedCode::Unproven) {
                self.note_rival(&id, now);
            }
            self.notice(Notice::NodeRefused {
                node: id,
                code,
                detail: detail.clone(),
            });
            self.command(Command::Close {
                link,
                refused: Refused {
                    code,
                    detail,
                    retry_ms: REFUSED_RETRY_MS,
                },
            });
            return;
        }
        self.meet_higher_term(&hello);
        self.meet_higher_epoch(&hello);
        if let Some(node) = self.nodes.get(&id) {
            if node.incarnation() != hello.incarnation {
                self.succeed(&hello, now);
            } else if let Some(old) = node.link() {
                self.links.remove(&old);
                let refused = Refused {
                    code: RefusedCode::Superseded,
                    detail: "a newer link of the same process took over".to_owned(),
                    retry_ms: REFUSED_RETRY_MS,
                };
                self.command(Command::Close { link: old, refused });
            }
        }
        self.forget_url(&id);
        let known = self.nodes.get(&id).map(Node::record);
        let is_another = self
            .nodes
            .get(&id)
            .is_none_or(|node| node.incarnation() != hello.incarnation);
        let alone = self.is_alone(&hello);
        let marks = self.recognise(&hello);
        if known.is_none() {
            self.count_new_name(&hello, now);
        }
        // What it has seen and shown was looked at just now. It is no part of what is told of it, and a node
        // that comes back unchanged must not have to wait for the store.
        let hello = Hello {
            broker: None,
            highest_grant: None,
            nonce: None,
            lock: None,
            ..hello
        };
        let lease_ms = self.settings.lease_ms;
        let seen = Seen::Joining {
            link,
            inventory: Vec::new(),
            heard: now,
        };
        match self.nodes.get_mut(&id) {
            Some(node) => {
                if node.incarnation() != hello.incarnation {
                    node.report = crate::node::Report::default();
                    node.trust.begin_anew();
                    // A drain that began with SIGTERM ended with that process; an operator's has not.
                    node.intent = node.wish();
                    node.stopping = false;
                    node.wish_before = None;
                    node.left_empty = false;
                }
                // A new link counts its heartbeats from 1 again.
                node.report.seq = 0;
                // The process, or the one before it, may still run on a longer lease from before the broker's start.
                if alone || planted::is(Bug::LoweredLeaseAtOnce) {
                    node.lease_ms = lease_ms;
                } else {
                    node.lease_ms = node.lease_ms.max(lease_ms);
                }
                node.clock_pace.begin();
                node.can_count = crate::node::can_count(&hello);
                node.reports |= node.can_count;
                if node.incarnation() != hello.incarnation || node.hello.probe != hello.probe {
                    node.probe_state = ProbeState::Unknown;
                }
                node.hello = hello;
                node.seen = seen;
            }
            None => {
                let mut node = Node::new(hello, seen, Intent::Active, lease_ms);
                node.marks = marks;
                self.nodes.insert(id.clone(), node);
                self.recall_past(&id);
            }
        }
        if is_another {
            self.end_work_of_former(&id, now);
        }
        self.links.insert(link, id.clone());
        let now_known = self.nodes.get(&id).map(Node::record);
        // The lease too: a broker that starts with a shorter one must know how long this one runs.
        if known != now_known {
            self.write_node(&id);
        }
        self.rekey(&id);
        self.publish_node(&id);
        let welcome = self.welcome(&id);
        self.send(&id, ToNode::Welcome(Box::new(welcome)));
    }

    /// A node that may not join lives all the same: while it is not clear which broker it belongs to,
    /// nothing of its is to be given away for silence.
    fn hear_of(&mut self, hello: &Hello, now: Timestamp) {
        let itself =
            |node: &&mut Node| node.incarnation() == hello.incarnation && node.marks.is_itself(hello.nonce);
        let Some(node) = self.nodes.get_mut(&hello.node).filter(itself) else {
            return;
        };
        match &mut node.seen {
            Seen::Expected { heard } => *heard = now,
            Seen::Unlinked { heard, hint, .. } => {
                *heard = now;
                *hint = Hint::None;
            }
            Seen::Joining { .. } | Seen::Linked { .. } | Seen::Dead { .. } => {}
        }
    }

    fn refuse_hello(&self, link: LinkId, hello: &Hello, now: Timestamp) -> Option<(RefusedCode, String)> {
        if self.links.contains_key(&link) {
            return Some((RefusedCode::BadMessage, "a link says hello once".to_owned()));
        }
        if hello.protocol != PROTOCOL {
            let detail = format!(
                "this broker speaks protocol {PROTOCOL}, the node {}; run the same major version on both",
                hello.protocol
            );
            return Some((RefusedCode::Protocol, detail));
        }
        if hello.cluster.is_some_and(|cluster| cluster != self.cluster) {
            let detail = format!(
                "the node belongs to another cluster than {}: is this broker on the right data folder? A node joins \
                 another cluster only once it is restarted, which drops its connections",
                self.cluster
            );
            return Some((RefusedCode::Cluster, detail));
        }
        if hello.cluster.is_some() && hello.highest_term > self.term.plus(TERMS_AHEAD_MAX) {
            let detail = format!(
                "the node claims term {}, and this broker is at {}: no cluster comes so far; restart the node",
                hello.highest_term, self.term
            );
            return Some((RefusedCode::BadMessage, detail));
        }
        let other = hello.broker.filter(|broker| *broker != self.broker);
        if hello.cluster.is_some() && hello.highest_term == self.term && other.is_some() {
            let detail = format!(
                "the node follows another broker of term {}: one of the two runs on a copy of the store. Stop \
                 the one that does; if it is the other that is gone for good, start this one with --restored",
                self.term
            );
            return Some((RefusedCode::TwoBrokers, detail));
        }
        match self.nodes.get(&hello.node) {
            None => self.refuse_name(hello, now),
            Some(_) => self.refuse_identity(hello, now),
        }
    }

    /// A node has seen a higher term than ours: this store is an old copy. Go on above it.
    fn meet_higher_term(&mut self, hello: &Hello) {
        if hello.cluster == Some(self.cluster) && hello.highest_term > self.term {
            self.term = hello.highest_term.next();
            self.write(Record::Term(self.term));
            self.store_regressed = true;
            self.notice(Notice::StoreRegressed {
                node: hello.node.clone(),
                by: Regressed::Term(hello.highest_term),
            });
        }
    }

    /// A node has a grant above every epoch that this store gave out: the store is an old copy.
    fn meet_higher_epoch(&mut self, hello: &Hello) {
        let Some(granted) = &hello.highest_grant else {
            return;
        };
        let genuine = self
            .grants
            .verify(&granted.team, &hello.node, granted.epoch, &granted.grant);
        if genuine && !self.epochs.covers(granted.epoch) {
            self.raise_epochs(granted.epoch);
            self.store_regressed = true;
            self.notice(Notice::StoreRegressed {
                node: hello.node.clone(),
                by: Regressed::Epoch(granted.epoch),
            });
        }
    }

    fn welcome(&mut self, id: &NodeId) -> Welcome {
        let peers = self.peers_of(id);
        if let Some(node) = self.nodes.get_mut(id) {
            node.peers.clone_from(&peers);
        }
        Welcome {
            cluster: self.cluster,
            broker: self.broker,
            term: self.term,
            lease_ms: self.settings.lease_ms,
            heartbeat_ms: self.settings.heartbeat_ms,
            forget_ms: self.settings.forget_ms,
            ticket_keys: Vec::new(),
            public_url: self.public_url.clone(),
            peers,
        }
    }

    pub(crate) fn inventory(&mut self, link: LinkId, page: Inventory, now: Timestamp) {
        let Some(id) = self.speaker(link) else { return };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        let Seen::Joining { inventory, heard, .. } = &mut node.seen else {
            return self.bad_message(&id, NodeFault::LateInventory);
        };
        *heard = now;
        if inventory.len() + page.teams.len() > INVENTORY_MAX {
            let refused = Refused {
                code: RefusedCode::BadMessage,
                detail: format!("an inventory has at most {INVENTORY_MAX} teams"),
                retry_ms: REFUSED_RETRY_MS,
            };
            self.command(Command::Close { link, refused });
            return;
        }
        inventory.extend(page.teams);
        if page.more {
            return;
        }
        let held = std::mem::take(inventory);
        node.seen = Seen::Linked {
            link,
            heard: now,
            silence: Silence::Heard,
        };
        node.begin_young(self.placed, now);
        self.reconcile(&id, &held, now);
        self.meet(&id, now);
        self.rebuild_index();
        self.publish_node(&id);
        self.ask_who(&id, now);
        if let Some(node) = self.nodes.get(&id) {
            let ready = Notice::NodeReady {
                node: id.clone(),
                teams: u32::try_from(node.teams.len()).unwrap_or(u32::MAX),
                url: node.hello.url.for_node(&id),
                version: node.hello.version.clone(),
            };
            self.notice(ready);
        }
        self.count_again(&id, now);
        self.tell_wish(&id);
        self.tell_lonely_peers();
        self.await_the_others(now);
        self.end_grace_early();
        self.place_waiting(now);
    }

    /// A node that an operator keeps from taking teams has joined: nobody should have to wonder.
    fn tell_wish(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get(id) else { return };
        let wish = match node.wish() {
            Intent::Active => return,
            Intent::Cordoned => Kept::Cordoned,
            Intent::Draining(_) => Kept::Drained,
        };
        self.notice(Notice::KeptAway {
            node: id.clone(),
            wish,
        });
    }

    pub(crate) fn heartbeat(&mut self, link: LinkId, heartbeat: &Heartbeat, wall_ms: u64, now: Timestamp) {
        let Some(id) = self.speaker(link) else { return };
        let term = self.term;
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if heartbeat.seq <= node.report.seq {
            return self.bad_message(&id, NodeFault::HeartbeatOrder);
        }
        let full_before = score::full(node, &self.settings);
        let strained_before = strain::strained_by(node, &self.settings);
        let report = &mut node.report;
        report.seq = heartbeat.seq;
        report.cpu_now = heartbeat.cpu_now;
        report.cpu_average = heartbeat.cpu_average;
        report.cpu_idle = Some(
            report
                .cpu_idle
                .map_or(heartbeat.cpu_average, |idle| idle.min(heartbeat.cpu_average)),
        );
        report.memory_bytes = heartbeat.memory_bytes;
        report.memory = heartbeat.memory;
        report.connections = heartbeat.connections;
        report.teams = heartbeat.teams;
        report.descriptors_left = Some(heartbeat.fds.limit.saturating_sub(heartbeat.fds.used));
        report.name_teams(&heartbeat.large_teams, &heartbeat.hot_teams);
        report.health = heartbeat.health;
        report.wall_skew_ms = i64::try_from(heartbeat.wall_ms)
            .unwrap_or(i64::MAX)
            .saturating_sub(i64::try_from(wall_ms).unwrap_or(i64::MAX));
        let strained = strain::strained_by(node, &self.settings);
        let fullness_changed = score::full(node, &self.settings) != full_before;
        let boot = Timestamp::from_millis(heartbeat.boot_ms);
        let turned = node.clock_pace.beat(boot, now, CLOCK_RATE_PPM / 2);
        let reached = node
            .trust
            .hear(heartbeat.clients.as_ref(), heartbeat.connections, now);
        match &mut node.seen {
            // No acknowledgement before the inventory is reconciled: it would renew a lease on
            // teams that the node may have to give up.
            Seen::Joining { heard, .. } => {
                *heard = now;
                if planted::is(Bug::AckBeforeReconciliation) {
                    let seq = heartbeat.seq;
                    self.send(&id, ToNode::HeartbeatAck { seq, term });
                }
            }
            Seen::Linked { heard, silence, .. } => {
                *heard = now;
                let was_missed = std::mem::replace(silence, Silence::Heard) == Silence::Missed;
                self.send(
                    &id,
                    ToNode::HeartbeatAck {
                        seq: heartbeat.seq,
                        term,
                    },
                );
                if was_missed || fullness_changed {
                    self.publish_node(&id);
                }
                self.rekey(&id);
                self.forget_idle(&id, &heartbeat.idle_teams, now);
            }
            _ => {}
        }
        if let Some(turn) = reached {
            self.turned(&id, turn);
        }
        self.doubt_exit(&id, now);
        self.tell_fullness(&id);
        if strained != strained_before {
            self.notice(Notice::Strained {
                node: id.clone(),
                by: strained,
            });
        }
        if let Some(pace) = turned {
            self.rekey(&id);
            self.notice(Notice::ClockPace { node: id, pace });
        }
    }

    /// Auto-created teams that had no connection for long are forgotten.
    fn forget_idle(&mut self, id: &NodeId, idle: &[TeamEpoch], now: Timestamp) {
        for entry in idle {
            let forget = self.teams.get(&entry.team).is_some_and(|team| {
                team.kind == TeamKind::Auto
                    && team.epoch == entry.epoch
                    && team.is_owned_by(id)
                    && team.moving.is_none()
            });
            if forget {
                self.forget_team(&entry.team, now);
            }
        }
    }

    pub(crate) fn prepared(&mut self, link: LinkId, held: &TeamEpoch, now: Timestamp) {
        let Some(id) = self.speaker(link) else { return };
        let ready = self.teams.get(&held.team).is_some_and(|team| match &team.moving {
            Some(Move::Preparing { target, epoch, .. }) => target.node == id && *epoch == held.epoch,
            _ => false,
        });
        // Otherwise it is late: the move was undone, or went on without it.
        if ready {
            self.commit_prepared(&held.team, now);
        }
    }

    pub(crate) fn yielded(&mut self, link: LinkId, held: &TeamEpoch) {
        if let Some(id) = self.speaker(link) {
            self.stopped(&id, held, Order::Move);
        }
    }

    pub(crate) fn released(&mut self, link: LinkId, held: &TeamEpoch, now: Timestamp) {
        let Some(id) = self.speaker(link) else { return };
        // What has no connections left has no effects left either.
        self.stopped(&id, held, Order::Any);
        let awaited = self.teams.get(&held.team).is_some_and(|team| match &team.moving {
            Some(Move::Leaving { from, .. }) => from.node == id && team.epoch == held.epoch,
            _ => false,
        });
        if awaited {
            return self.finish_leaving(&held.team, MoveOutcome::Arrived, now);
        }
        self.renew_what_was_released(&id, held, now);
    }

    pub(crate) fn bye(&mut self, link: LinkId, budget_ms: u64, now: Timestamp) {
        let Some(id) = self.speaker(link) else { return };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if !std::mem::replace(&mut node.stopping, true) {
            node.wish_before = Some(node.intent.clone()).filter(|wish| *wish != Intent::Active);
        }
        // A fifth is kept for the last clients to come back through this node's listener.
        let deadline_s = (budget_ms * 4 / 5 / 1_000).clamp(1, 86_400);
        let post = DrainPost {
            rate_per_s: None,
            deadline_s: Some(deadline_s),
            force: true,
        };
        self.begin_drain(&id, &post, now);
    }

    pub(crate) fn link_closed(&mut self, link: LinkId, now: Timestamp) {
        let Some(id) = self.links.remove(&link) else {
            return;
        };
        let Some(node) = self.nodes.get_mut(&id) else {
            return;
        };
        if node.link() != Some(link) {
            return;
        }
        let emptied = node.stopping && node.teams.is_empty() && node.reserved.is_empty();
        let incarnation = node.incarnation();
        node.seen = Seen::Unlinked {
            heard: node.heard(),
            hint: Hint::None,
            probe_at: None,
        };
        if self.exit_is_confirmed(&id, now) {
            return;
        }
        // It may have been emptied on this side alone: whoever has not said that it stopped is not gone.
        if emptied && (planted::is(Bug::EmptiedIsGone) || !self.is_waited_for(&id, incarnation)) {
            let wish = self.nodes.get(&id).map(Node::wish);
            if wish.is_none_or(|wish| wish == Intent::Active) {
                return self.forget_node(&id, now);
            }
            // It left as it should, and what an operator wanted of it is kept for the next of its name.
            if let Some(node) = self.nodes.get_mut(&id) {
                node.die(Proof::Proven, now);
                node.left_empty = true;
            }
            self.rekey(&id);
            return self.publish_node(&id);
        }
        self.probe(&id);
        self.rekey(&id);
        self.publish_node(&id);
        self.notice(Notice::NodeSilent { node: id });
    }

    /// Which node speaks on a link. A link that has not said hello, or was superseded, says nothing.
    pub(crate) fn speaker(&self, link: LinkId) -> Option<NodeId> {
        self.links.get(&link).cloned()
    }

    pub(crate) fn bad_message(&mut self, node: &NodeId, fault: NodeFault) {
        self.notice(Notice::BadMessage {
            node: node.clone(),
            fault,
        });
    }
}
