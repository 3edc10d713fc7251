//! What exclusive effects reach: a register for each team, that refuses an epoch below the highest it took.

use std::collections::BTreeMap;
use usher_shared::id::Incarnation;
use usher_shared::quantity::Epoch;

use super::agenda::Write;
use super::world::World;

#[derive(Default)]
pub(super) struct Registers {
    teams: Vec<Register>,
}

#[derive(Default)]
struct Register {
    highest: Epoch,
    /// By epoch: who wrote under it. An epoch belongs to one process.
    writers: BTreeMap<Epoch, (usize, Incarnation)>,
}

impl Registers {
    pub(super) fn new(teams: usize) -> Self {
        Self {
            teams: (0..teams).map(|_| Register::default()).collect(),
        }
    }
}

impl World {
    pub(super) fn register(&mut self, write: &Write) {
        let Some(register) = self.registers.teams.get_mut(write.team) else {
            return;
        };
        if write.epoch < register.highest {
            self.count("a stale write was refused downstream");
            return;
        }
        register.highest = write.epoch;
        let writer = (write.node, write.incarnation);
        let first = *register.writers.entry(write.epoch).or_insert(writer);
        if first != writer && !self.truth.may_repeat(write.epoch) {
            self.fail(format!(
                "S2: node {} and node {} both wrote for team {} under epoch {}",
                first.0, write.node, write.team, write.epoch
            ));
        }
    }
}
