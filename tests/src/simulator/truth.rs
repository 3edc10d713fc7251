//! What is true of epochs and owners, whoever remembers it: the other half of the checks on them.
//!
//! What is promised of epochs. While the broker's disk keeps what it was told was durable, every epoch
//! of the whole cluster is given out once. After an old copy of the disk was put back the broker cannot
//! know what it gave out since, until a node tells it: from the first hello or inventory that shows a
//! genuine grant on, no epoch at or below that one is given out again. An epoch between the copy's and
//! the highest that any node has shown yet may be given out a second time, to a team whose earlier
//! owner has not been heard of; leases keep their effects apart then, and epochs do not.

use std::collections::{BTreeMap, BTreeSet};
use usher_placement::{NodeEntry, Record, Route, TeamRecord};
use usher_shared::id::{Incarnation, NodeId, TeamId};
use usher_shared::link::{HoldState, ToNode};
use usher_shared::quantity::Epoch;
use usher_shared::rest::Cause;

use super::broker::{Asker, Reply};
use super::disk::Contents;
use super::forgery::FORGED_FROM;
use super::node_work::term_of;
use super::world::World;

/// What is true of epochs.
#[derive(Default)]
pub(super) struct Truth {
    /// Every epoch that was given out, and what for.
    given: BTreeMap<Epoch, (TeamId, NodeId, Incarnation)>,
    highest: Epoch,
    restored: Option<Restored>,
    /// Those given out twice, where that is not promised not to happen.
    repeated: BTreeSet<Epoch>,
    /// Assignments that were decided upon, not only prepared.
    committed: BTreeSet<(TeamId, Epoch)>,
    /// Moves that were undone: by their epochs.
    undone: BTreeSet<Epoch>,
    /// What clients, nodes and operators were shown of each team.
    shown: BTreeMap<TeamId, Epoch>,
    /// By team, the last record that is durable, kept after a delete.
    durable: BTreeMap<TeamId, (Epoch, Option<NodeId>)>,
    /// By team that the batch in flight deletes, the epoch that it was written with last.
    pub(super) last_before_delete: BTreeMap<TeamId, Epoch>,
    /// Whether an old copy was put back: then some of what was known may be known by nobody.
    pub(super) forgot: bool,
}

struct Restored {
    /// The highest epoch that was given out before.
    before: Epoch,
    /// The highest that a node has shown to this run.
    reported: Epoch,
}

impl Truth {
    pub(super) fn highest(&self) -> Epoch {
        self.highest
    }

    /// An old copy of the disk was put back, with this on it.
    pub(super) fn restored(&mut self, contents: &Contents) {
        self.forgot = true;
        let before = self
            .restored
            .as_ref()
            .map_or(self.highest, |restored| restored.before.max(self.highest));
        self.restored = Some(Restored {
            before,
            reported: Epoch::default(),
        });
        // What is on the copy is durable; what came after it is not.
        let on_it = |(team, record): (&TeamId, &TeamRecord)| {
            let owner = record.owner.as_ref().map(|(node, _)| node.clone());
            (team.clone(), (record.epoch, owner))
        };
        self.durable = contents.teams.iter().map(on_it).collect();
        self.shown.clear();
    }

    /// The broker crashed: epochs that it had not reserved on the disk were shown to nobody, and come again.
    pub(super) fn crashed(&mut self, reserved: Epoch) {
        let before = self
            .restored
            .as_ref()
            .map_or(Epoch::default(), |restored| restored.before);
        let shown = |epoch: Epoch| epoch < reserved || epoch <= before;
        self.given.retain(|epoch, _| shown(*epoch));
        self.committed.retain(|(_, epoch)| shown(*epoch));
        self.undone.retain(|epoch| shown(*epoch));
        self.highest = self
            .given
            .last_key_value()
            .map_or(Epoch::default(), |(epoch, _)| *epoch);
    }

    /// A node has shown a genuine grant to the broker.
    pub(super) fn reported(&mut self, epoch: Epoch) {
        if let Some(restored) = &mut self.restored {
            restored.reported = restored.reported.max(epoch);
        }
    }

    /// A broker that starts again has heard nothing yet.
    pub(super) fn broker_starts(&mut self) {
        if let Some(restored) = &mut self.restored {
            restored.reported = Epoch::default();
        }
    }

    pub(super) fn may_repeat(&self, epoch: Epoch) -> bool {
        self.repeated.contains(&epoch)
    }

    /// The core has given an epoch out, or says again that it has.
    fn gives(
        &mut self,
        team: &TeamId,
        epoch: Epoch,
        node: &NodeId,
        incarnation: Incarnation,
    ) -> Result<(), String> {
        if epoch.get() >= FORGED_FROM {
            return Err(format!("S3: epoch {epoch} comes of a forged grant"));
        }
        let (excused, reported) = match &self.restored {
            Some(restored) => (
                epoch <= restored.before && epoch > restored.reported,
                restored.reported,
            ),
            None => (false, Epoch::default()),
        };
        match self.given.get(&epoch) {
            Some((to, owner, process)) if to == team && owner == node && *process == incarnation => Ok(()),
            Some(_) if self.repeated.contains(&epoch) => Ok(()),
            Some((to, owner, _)) if !excused => Err(format!(
                "S3: epoch {epoch} was given to {owner} for {to}, and now to {node} for {team} (nodes have shown {reported})"
            )),
            None if epoch <= self.highest && !excused => Err(format!(
                "S3: epoch {epoch} is given out after {} (nodes have shown {reported})",
                self.highest
            )),
            known => {
                if known.is_some() {
                    self.repeated.insert(epoch);
                }
                self.given
                    .insert(epoch, (team.clone(), node.clone(), incarnation));
                self.highest = self.highest.max(epoch);
                Ok(())
            }
        }
    }

    /// An old claim is believed, after an old copy was put back: another may have its epoch by now.
    fn claims_again(&mut self, epoch: Epoch) {
        self.repeated.insert(epoch);
    }

    /// The core decided upon an owner.
    fn commits(&mut self, team: &TeamId, epoch: Epoch) -> Result<(), String> {
        self.committed.insert((team.clone(), epoch));
        if self.undone.contains(&epoch) && !self.may_repeat(epoch) && !self.forgot {
            return Err(format!(
                "S14: the move of {team} under epoch {epoch} was undone and came into effect"
            ));
        }
        Ok(())
    }
}

impl World {
    pub(super) fn verify<T>(&mut self, checked: Result<T, String>) {
        if let Err(what) = checked {
            self.fail(what);
        }
    }

    /// The core wants this written.
    pub(super) fn core_writes(&mut self, record: &Record) {
        if let Record::Team(team, Some(record)) = record
            && let Some((node, incarnation)) = &record.owner
        {
            let said_before = self
                .mirror
                .owners
                .get(team)
                .is_some_and(|(_, epoch)| *epoch == record.epoch);
            let claimed = self.mirror.claimed.contains(&(team.clone(), record.epoch));
            if self.truth.forgot && (claimed || said_before) {
                self.truth.claims_again(record.epoch);
            }
            let given = self.truth.gives(team, record.epoch, node, *incarnation);
            self.verify(given);
            let committed = self.truth.commits(team, record.epoch);
            self.verify(committed);
        }
        if let Record::Epochs { reserved } = record
            && reserved.get() >= 1 << 53
        {
            self.fail(format!("S22: epochs up to {reserved} were reserved"));
        }
    }

    /// The core wants this sent.
    pub(super) fn core_sends(&mut self, node: &NodeId, message: &ToNode) {
        match message {
            ToNode::Assign(assign) => {
                let Some(incarnation) = self.mirror.nodes.get(node).map(|known| known.incarnation) else {
                    return;
                };
                let given = self.truth.gives(&assign.team, assign.epoch, node, incarnation);
                self.verify(given);
            }
            // What was prepared there and is revoked was undone; what is committed is never revoked
            // from its own owner under its own epoch, except when the team is deleted.
            ToNode::Revoke(revoke) => {
                let prepared = self.truth.given.get(&revoke.epoch);
                let there = prepared.is_some_and(|(team, owner, _)| *team == revoke.team && owner == node);
                let committed = self
                    .truth
                    .committed
                    .contains(&(revoke.team.clone(), revoke.epoch));
                if there && !committed {
                    self.truth.undone.insert(revoke.epoch);
                    self.count("move undone");
                }
            }
            _ => {}
        }
    }

    /// A claim of a node was believed.
    pub(super) fn core_adopts(&mut self, team: &TeamId, epoch: Epoch) {
        if !self.truth.committed.contains(&(team.clone(), epoch)) && !self.truth.forgot {
            self.fail(format!(
                "S14: {team} was adopted under epoch {epoch}, which was only prepared"
            ));
        }
        if epoch.get() >= FORGED_FROM {
            self.fail(format!("S3: {team} was adopted under the forged epoch {epoch}"));
        }
    }

    /// A batch becomes durable.
    pub(super) fn check_batch(&mut self, records: &[Record]) {
        for record in records {
            let Record::Team(team, record) = record else {
                continue;
            };
            let (epoch, owner) = match record {
                Some(record) => (record.epoch, record.owner.as_ref().map(|(node, _)| node.clone())),
                None => {
                    // What the same batch had said of it before stands in it no more.
                    if let Some(last) = self.truth.last_before_delete.get(team) {
                        let known = self.truth.durable.entry(team.clone()).or_insert((*last, None));
                        known.0 = known.0.max(*last);
                    }
                    continue;
                }
            };
            let known = self.truth.durable.insert(team.clone(), (epoch, owner.clone()));
            if let Some((before, known_owner)) = known {
                let other = owner.is_some() && known_owner.is_some() && owner != known_owner;
                if epoch < before || (epoch == before && other) {
                    self.fail(format!(
                        "S10: the record of {team} went from {known_owner:?} under {before} to {owner:?} under {epoch}"
                    ));
                }
            }
        }
    }

    /// A message leaves the broker: what it shows must be durable.
    pub(super) fn check_shown(&mut self, message: &ToNode) {
        let durable_term = self.disk.now.term;
        if let Some(term) = term_of(message)
            && term > durable_term
            && !matches!(message, ToNode::HeartbeatAck { .. })
        {
            self.fail(format!("S8: term {term} is shown, and {durable_term} is durable"));
        }
        let ToNode::Assign(assign) = message else { return };
        let reserved = self.disk.now.epochs;
        if assign.epoch >= reserved {
            self.fail(format!(
                "S4: epoch {} is shown for {}, and the store has reserved up to {reserved}",
                assign.epoch, assign.team
            ));
        }
        if assign.state == HoldState::Owned {
            self.show(&assign.team.clone(), assign.epoch);
        }
    }

    pub(super) fn check_route(&mut self, team: &TeamId, route: Option<&Route>) {
        if let Some(route) = route {
            self.show(team, route.epoch);
        }
    }

    fn show(&mut self, team: &TeamId, epoch: Epoch) {
        let durable = self.disk.now.teams.get(team).map(|record| record.epoch);
        let deleted = self
            .truth
            .durable
            .get(team)
            .is_some_and(|(known, _)| *known >= epoch);
        if durable.is_none_or(|durable| durable < epoch) && !deleted {
            self.fail(format!(
                "S4: {team} is shown under epoch {epoch}, and {durable:?} is durable"
            ));
        }
        let shown = self.truth.shown.entry(team.clone()).or_default();
        *shown = epoch.max(*shown);
    }

    /// Somebody is told that it is so now.
    pub(super) fn check_answer(&mut self, reply: &Reply) {
        let Ok(answer) = &reply.answer else { return };
        match answer {
            usher_placement::Answer::Assigned { team, route, .. } => self.show(&team.clone(), route.epoch),
            usher_placement::Answer::Forgotten => {
                let asked = self
                    .main
                    .as_ref()
                    .and_then(|broker| broker.asked.get(&reply.request));
                if let Some(Asker::Operator(ask)) = asked
                    && let usher_placement::Ask::Delete { team } = ask.as_ref()
                {
                    let team = team.clone();
                    self.truth.shown.remove(&team);
                }
            }
            _ => {}
        }
    }

    /// A broker has started: what was shown before must be there.
    pub(super) fn check_nothing_lost(&mut self) {
        let now = self.broker_local();
        let mut lost = Vec::new();
        let Some(broker) = &self.main else { return };
        for (team, shown) in &self.truth.shown {
            let known = broker.core.team(team, now).map(|view| view.epoch);
            // A team that is gone was deleted, or forgotten as idle.
            if known.is_some_and(|known| known < *shown) {
                lost.push(format!(
                    "S4: {team} was shown under epoch {shown} and is known under {known:?}"
                ));
            }
        }
        if let Some(what) = lost.pop() {
            self.fail(what);
        }
    }

    pub(super) fn check_redirect(&mut self, node: &NodeId, entry: &NodeEntry) {
        let sent_to = entry.url.for_node(node);
        let registered = self
            .machines
            .iter()
            .any(|machine| machine.id == *node && machine.url.for_node(node) == sent_to);
        if !registered {
            self.fail(format!(
                "S12: a client is sent to {}, which {node} never named",
                entry.url.for_node(node)
            ));
        }
    }

    /// An owner was chosen, for this cause.
    pub(super) fn is_a_choice(cause: Cause) -> bool {
        cause != Cause::Adopted
    }
}
