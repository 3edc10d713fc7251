//! A team as the core knows it.

use std::collections::BTreeMap;
use usher_shared::id::{Incarnation, Label, NodeId, OperationId};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, Timestamp, Weight};
use usher_shared::rest::{Cause, TeamKind};

use crate::choose::Decision;
use crate::record::{PinRecord, TeamRecord};

/// The process that a team was given to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Owner {
    pub(crate) node: NodeId,
    pub(crate) incarnation: Incarnation,
}

/// Whether the owner may have exclusive effects.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Activation {
    /// It may.
    Owned,
    /// It serves clients, and waits until the last owner that had them has yielded, is proven dead,
    /// or has outlived its lease.
    After {
        before: Owner,
        /// The epoch that it held: an answer that names an older one was to an earlier order.
        since: Epoch,
    },
    /// It waits until then: the broker forgot in a restart whom it waits for, if anybody, and by then
    /// nobody's lease can run on.
    At(Timestamp),
}

/// What is remembered of a team that was deleted, until its last owner has stopped or is gone.
#[derive(Clone, Debug)]
pub(crate) struct Deleted {
    /// What a team of that name waits for if it is made anew.
    pub(crate) waits_for: Activation,
    /// Who may come back and show it.
    pub(crate) last: Option<Owner>,
    /// Under which epoch at most.
    pub(crate) epoch: Epoch,
}

/// A team on its way from one node to another.
#[derive(Clone, Debug)]
pub(crate) enum Move {
    /// The target makes room; the owner is the old one still.
    Preparing {
        target: Owner,
        epoch: Epoch,
        /// Then another target is chosen.
        until: Timestamp,
        operation: OperationId,
        /// Why the target, for the history once the move is committed.
        decision: Box<Decision>,
    },
    /// The owner is the new one; connections are still leaving the old.
    Leaving {
        from: Owner,
        /// The epoch that the old owner held.
        held: Epoch,
        /// Then they count as timed out.
        until: Timestamp,
        operation: Option<OperationId>,
        cause: Cause,
    },
}

/// One team.
#[derive(Clone, Debug)]
pub(crate) struct Team {
    pub(crate) kind: TeamKind,
    pub(crate) weight: Weight,
    pub(crate) region: Option<Label>,
    pub(crate) labels: BTreeMap<Label, Label>,
    pub(crate) pin: Option<PinRecord>,
    pub(crate) owner: Option<Owner>,
    pub(crate) epoch: Epoch,
    pub(crate) activation: Activation,
    pub(crate) moving: Option<Move>,
    /// The operation that gave it its owner.
    pub(crate) moved_by: Option<OperationId>,
    /// The connections that it had at its last node, once it has left one.
    pub(crate) brings: Option<u32>,
}

impl Team {
    pub(crate) fn new(kind: TeamKind) -> Self {
        Self {
            kind,
            weight: Weight::TEAM,
            region: None,
            labels: BTreeMap::new(),
            pin: None,
            owner: None,
            epoch: Epoch::default(),
            activation: Activation::Owned,
            moving: None,
            moved_by: None,
            brings: None,
        }
    }

    /// A team from the store, where it is not kept whether its owner had been activated: unless that
    /// owner shows it, it counts as waiting for every lease from before the start.
    pub(crate) fn from_record(record: TeamRecord, restart_fence: Timestamp) -> Self {
        Self {
            kind: record.kind,
            weight: record.weight,
            region: record.region,
            labels: record.labels,
            pin: record.pin,
            owner: record
                .owner
                .map(|(node, incarnation)| Owner { node, incarnation }),
            epoch: record.epoch,
            activation: if planted::is(Bug::RestartForgetsWhoStops) {
                Activation::Owned
            } else {
                Activation::At(restart_fence)
            },
            moving: None,
            moved_by: record.moved_by,
            brings: None,
        }
    }

    pub(crate) fn record(&self) -> TeamRecord {
        TeamRecord {
            owner: self
                .owner
                .as_ref()
                .map(|owner| (owner.node.clone(), owner.incarnation)),
            epoch: self.epoch,
            kind: self.kind,
            weight: self.weight,
            region: self.region.clone(),
            labels: self.labels.clone(),
            pin: self.pin.clone(),
            moved_by: self.moved_by.clone(),
        }
    }

    /// Takes note that exclusive effects pass from `before` to whoever owns the team next. An owner
    /// that was never activated had none to give, so the one before it is still waited for.
    pub(crate) fn await_end_of(&mut self, before: Owner) {
        if self.activation == Activation::Owned {
            self.activation = Activation::After {
                before,
                since: self.epoch,
            };
        }
    }

    pub(crate) fn is_owned_by(&self, node: &NodeId) -> bool {
        self.owner.as_ref().is_some_and(|owner| owner.node == *node)
    }
}
