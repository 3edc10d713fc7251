//! A client wants into a team whose node is full: what is to be done?
//!
//! The team moves to a node with room for all of it and a quarter more, and the client with it: nobody
//! is refused for long while there is room. Only a team with more than half of its node's connections
//! stays, since to move others costs less: then a tenth of the node is freed by moving some of those.
//! Both are one operation of the node, `relief`, paced like a shed; a client that comes before its turn is
//! told when to come back. Where there is no room anywhere, the refusal says that.

use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::{Cause, OperationKind, PinStrength};

use crate::choose::Needs;
use crate::core::Core;
use crate::node::Node;
use crate::notice::Notice;
use crate::operation::Operation;
use crate::refusal::Refusal;
use crate::score;
use crate::team::Move;

/// What is freed at once, as a part of the node's connections: enough to serve clients for a while, and few
/// enough that hardly anybody is moved.
const FREED_PERCENT: u64 = 10;
/// The most teams that one relief sets out to move beside the ones that clients ask for.
const TEAMS_MAX: usize = 1_000;
/// A node that a client just came back from counts as full from here on: others went there meanwhile.
const NEARLY_FULL_PERCENT: u64 = 98;
/// How soon a team may be moved again because its node is full.
const AGAIN_MS: u64 = 10_000;
/// When a refused client may come back, at least and at most.
const RETRY_MS: (u64, u64) = (1_000, 10_000);

/// What room a team of so many connections must find, so that it is not refused there next: a quarter
/// more than it has.
pub(crate) const fn room_for(connections: u32) -> u32 {
    connections.saturating_add(connections / 4).saturating_add(1)
}

impl Core {
    /// Whether the node of a team can take no further connection, as it reported, or as a client that just
    /// came from there lets think.
    pub(crate) fn is_full_for(&self, node: &Node, knocked: bool) -> bool {
        let held = u64::from(node.report.connections);
        let nearly = knocked && {
            let all = held + u64::from(score::free(node, &self.settings));
            held > 0 && held * 100 >= all * NEARLY_FULL_PERCENT
        };
        score::full(node, &self.settings).is_some() || nearly
    }

    /// Makes room for a client of a team whose node is full: moves the team, or others out of its way.
    /// Returns why the client must wait, if it must.
    pub(crate) fn relieve(&mut self, id: &TeamId, full: &NodeId, now: Timestamp) -> Result<(), Refusal> {
        let refusal = |core: &Self, retry_ms: u64, what: &'static str| {
            Err(Refusal::NodeFull {
                team: id.clone(),
                node: full.clone(),
                what,
                retry_ms: retry_ms.clamp(RETRY_MS.0, RETRY_MS.1.max(core.settings.heartbeat_ms)),
            })
        };
        let Some(node) = self.nodes.get(full) else {
            return Ok(());
        };
        if planted::is(Bug::FullNodeKeepsTeams) {
            return refusal(self, RETRY_MS.0, "come back later");
        }
        let (own, all) = (node.connections_of(id), node.report.connections);
        let just_moved = self.decisions.of(id).next();
        let just_moved =
            just_moved.is_some_and(|last| last.cause == Cause::Full && now.since(last.at) < AGAIN_MS);
        let prepares = self
            .teams
            .get(id)
            .is_some_and(|team| matches!(team.moving, Some(Move::Preparing { .. })));
        let goes = !just_moved && !prepares && !self.is_held(id, full, now);
        let is_largest = own.saturating_mul(2) > all;
        let operation = if is_largest {
            self.shed_beside(id, full, own, now)
        } else {
            None
        };
        if operation.is_none() && goes && self.has_place(id, room_for(own), now) {
            let operation = self.relief_of(full, now);
            let cost = i64::from(own) * 1_000;
            let has_room = self
                .operations
                .get(&operation)
                .is_some_and(|known| known.bucket.has_room());
            if has_room {
                if let Some(known) = self.operations.get_mut(&operation) {
                    known.counted.insert(id.clone(), own);
                    known.charge(id, cost);
                    known.teams = known.teams.saturating_add(1);
                    known.connections = known.connections.saturating_add(own);
                }
                if self.move_now(id, Cause::Full, Some(&operation), now) {
                    return Ok(());
                }
            }
            let wait_ms = self.pay_back_ms(&operation);
            return refusal(self, wait_ms, "the team moves to another node shortly");
        }
        match operation {
            Some(operation) => {
                let wait_ms = self.pay_back_ms(&operation);
                refusal(self, wait_ms, "other teams are moving out of its way")
            }
            None if prepares || just_moved => refusal(self, RETRY_MS.0, "the team is on its way"),
            None => refusal(
                self,
                RETRY_MS.1 / 2,
                "no other node has room for the team or for those beside it: add a node, or raise --capacity-connections",
            ),
        }
    }

    /// Whether a hard pin holds a team on a node.
    fn is_held(&self, id: &TeamId, node: &NodeId, now: Timestamp) -> bool {
        let wall_ms = self.wall_ms(now);
        let pin = self.teams.get(id).and_then(|team| team.pin.as_ref());
        pin.is_some_and(|pin| {
            pin.strength == PinStrength::Hard && pin.node == *node && pin.until_wall_ms > wall_ms
        })
    }

    /// Whether another node has so much room and meets the team's wishes.
    fn has_place(&self, id: &TeamId, room: u32, now: Timestamp) -> bool {
        let wall_ms = self.wall_ms(now);
        let Some(team) = self.teams.get(id) else {
            return false;
        };
        let leaving = team.owner.as_ref().map(|owner| &owner.node);
        let mut wish = team.wish(Cause::Full, leaving, wall_ms);
        wish.needs = Needs::Only(room);
        self.choose(&wish, now).node.is_some()
    }

    /// How long until the operation may move the next.
    fn pay_back_ms(&self, operation: &OperationId) -> u64 {
        self.operations
            .get(operation)
            .map_or(0, |known| known.bucket.owed_ms())
    }

    /// The node's running relief, or a new one.
    fn relief_of(&mut self, full: &NodeId, now: Timestamp) -> OperationId {
        if let Some(running) = self.running_relief(full) {
            return running;
        }
        let operation = self.begin_operation(OperationKind::Relief, full, now);
        if let Some(known) = self.operations.get_mut(&operation) {
            // Each team is entered with what the node's report says of it.
            known.has_counts = true;
        }
        self.set_figures(&operation, now);
        self.write_operation(&operation, now);
        operation
    }

    fn running_relief(&self, full: &NodeId) -> Option<OperationId> {
        let ours = |operation: &&Operation| {
            operation.is_running() && operation.kind == OperationKind::Relief && operation.node == *full
        };
        self.operations.values().find(ours).map(|known| known.id.clone())
    }

    /// Sets out to move other teams of a full node, until a tenth of it is free. `None`: there are none that
    /// could go.
    fn shed_beside(&mut self, id: &TeamId, full: &NodeId, own: u32, now: Timestamp) -> Option<OperationId> {
        let running = self.running_relief(full);
        let at_work = running.as_ref().and_then(|running| self.operations.get(running));
        let lasts = |known: &&Operation| {
            // What has left shows in the node's report a heartbeat later.
            let settling = now.since(known.touched) < 2 * self.settings.heartbeat_ms;
            !known.chosen.is_empty() || !known.leaving.is_empty() || settling && !known.moved.is_empty()
        };
        if at_work.filter(lasts).is_some() {
            return running;
        }
        let node = self.nodes.get(full)?;
        let all = u64::from(node.report.connections);
        let wanted = (all * FREED_PERCENT)
            .div_ceil(100)
            .min(all.saturating_sub(u64::from(own)));
        let rooms = || {
            let others = self.index.order.iter().filter(|key| key.node != *full);
            let nodes = others.filter_map(|key| self.nodes.get(&key.node));
            let nodes = nodes.filter(|node| !node.trust.is_doubtful());
            nodes.map(|node| score::room(node, &self.settings))
        };
        let largest = rooms().max().unwrap_or(0);
        let together: u64 = rooms().map(u64::from).sum();
        let (mut freed, mut chosen) = (0_u64, Vec::new());
        for team in &node.teams {
            if freed >= wanted || chosen.len() >= TEAMS_MAX {
                break;
            }
            let size = node.connections_of(team);
            let fits = room_for(size) <= largest && freed + u64::from(size) < together;
            let may = team != id
                && size > 0
                && fits
                && self.teams.get(team).is_some_and(|team| team.moving.is_none())
                && !self.is_held(team, full, now);
            if may {
                freed += u64::from(size);
                chosen.push((team.clone(), size));
            }
        }
        if chosen.is_empty() {
            return None;
        }
        let operation = self.relief_of(full, now);
        if let Some(known) = self.operations.get_mut(&operation) {
            known.teams = known
                .teams
                .saturating_add(u32::try_from(chosen.len()).unwrap_or(u32::MAX));
            known.connections = known
                .connections
                .saturating_add(u32::try_from(freed).unwrap_or(u32::MAX));
            known.counted.extend(chosen.iter().cloned());
            known.chosen = chosen.into_iter().map(|(team, _)| team).collect();
        }
        self.write_operation(&operation, now);
        self.step_operations(now);
        Some(operation)
    }

    /// A relief whose next team finds no place is over: its clients are told so when they ask.
    pub(crate) fn give_relief_up(&mut self, operation: &OperationId) -> bool {
        match self.operations.get_mut(operation) {
            Some(known) if known.kind == OperationKind::Relief => {
                known.teams = known
                    .teams
                    .saturating_sub(u32::try_from(known.chosen.len()).unwrap_or(u32::MAX));
                known.chosen.clear();
                true
            }
            _ => false,
        }
    }

    /// Tells that a node became full, or has room again.
    pub(crate) fn tell_fullness(&mut self, id: &NodeId) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        let full = score::full(node, &self.settings);
        if full.is_some() == node.told_full.is_some() {
            return;
        }
        // A few leave and come all the time: that is no room.
        let held = u64::from(node.report.connections);
        let free = u64::from(score::free(node, &self.settings));
        if full.is_none() && free * 100 < (held + free) * (100 - NEARLY_FULL_PERCENT) {
            return;
        }
        node.told_full = full;
        let connections = node.report.connections;
        self.notice(Notice::Full {
            node: id.clone(),
            by: full,
            connections,
        });
    }
}
