//! A second process of a node's name on another machine, and whoever says of a live process that it has ended.

use super::agenda::{ForBroker, Happens, Which};
use super::node::Still;
use super::world::{Phase, World};

impl World {
    /// Somebody starts a node under a name that another machine's node has, mostly because that one is
    /// not heard just now.
    pub(super) fn call_namesake(&mut self) {
        let Some(node) = self.machines.iter().position(|machine| machine.twin_of.is_some()) else {
            return;
        };
        let Some(first) = self.machines[node].twin_of else {
            return;
        };
        let long = self.dice.within(500, 12_000);
        match self.dice.index(5) {
            0 | 1 => self.hold_still(first, Still::Paused, long, false),
            2 => {
                let ways = [[true, true], [true, false], [false, true]][self.dice.index(3)];
                self.cut(first, ways, long);
            }
            3 => {
                let back = self.dice.within(20, 12_000);
                self.kill(first, false, Some(back));
            }
            _ => {}
        }
        let after = self.dice.within(10, 8_000);
        self.soon(after, Happens::NamesakeStarts { node });
        let until = after + self.dice.within(500, 20_000);
        self.soon(until, Happens::NamesakeEnds { node });
    }

    pub(super) fn start_namesake(&mut self, node: usize) {
        if self.phase == Phase::Faults && self.machines[node].process.is_none() {
            self.count("a second process of a name started");
            self.start_process(node);
        }
    }

    pub(super) fn end_namesake(&mut self, node: usize) {
        if self.machines[node].twin_of.is_some() {
            let witness = self.dice.percent(50);
            self.kill(node, witness, None);
        }
    }

    /// Whether nobody listens at a namesake's address any more: its name goes on at that of the first.
    pub(super) fn namesake_ended(&self, node: usize) -> bool {
        let machine = &self.machines[node];
        self.phase == Phase::Healed && machine.twin_of.is_some() && machine.process.is_none()
    }

    /// Somebody who has the node token, and has seen a ticket, reports the exit of a process that lives.
    pub(super) fn lie(&mut self, node: usize) {
        let machine = &self.machines[node];
        let Some(process) = &machine.process else { return };
        let Some(run) = self.main.as_ref().map(|broker| broker.run) else {
            return;
        };
        let what = ForBroker::Exited {
            node: machine.id.clone(),
            incarnation: process.incarnation,
            nonce: None,
        };
        let which = Which::Main;
        self.soon(1, Happens::Broker { which, run, what });
    }
}
