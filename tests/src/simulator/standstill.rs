//! Processes that stand still: paused, frozen, or on a machine that is suspended. What comes meanwhile is
//! there at once when they go on, and is taken in any order that keeps what a stream delivers in its own.

use std::collections::{BTreeMap, VecDeque};
use usher_shared::id::Incarnation;
use usher_shared::planted::{self, Bug};

use super::agenda::{ForBroker, ForNode, Happens, Which};
use super::dice::Dice;
use super::node::Still;
use super::world::World;

impl World {
    pub(super) fn pause_broker(&mut self, millis: u64) {
        let Some(broker) = self.main.as_mut().filter(|broker| !broker.is_paused()) else {
            return;
        };
        broker.deferred = Some(Vec::new());
        let run = broker.run;
        self.count("broker paused");
        self.soon(millis, Happens::BrokerResumes { run });
    }

    /// Everything that came meanwhile is there at once, and is taken in any order that keeps the
    /// messages of a link in theirs.
    pub(super) fn resume_broker(&mut self, run: u64) {
        let Some(broker) = self.main.as_mut().filter(|broker| broker.run == run) else {
            return;
        };
        let deferred = broker.deferred.take().unwrap_or_default();
        for what in interleave(deferred, ForBroker::lane, &mut self.dice) {
            self.soon(
                0,
                Happens::Broker {
                    which: Which::Main,
                    run,
                    what,
                },
            );
        }
        self.schedule_wake(Which::Main);
    }

    pub(super) fn hold_still(&mut self, node: usize, how: Still, millis: u64, suspended: bool) {
        let Some(process) = self.machines[node]
            .process
            .as_mut()
            .filter(|process| process.still.is_none())
        else {
            return;
        };
        process.still = Some((how, Vec::new()));
        let incarnation = process.incarnation;
        let suspended_ms = if suspended { millis } else { 0 };
        self.soon(
            millis,
            Happens::NodeResumes {
                node,
                incarnation,
                suspended_ms,
            },
        );
        self.clients_notice(node, 20_000);
    }

    pub(super) fn resume_node(&mut self, node: usize, incarnation: Incarnation, suspended_ms: u64) {
        let now = self.now;
        self.check_frozen(node);
        let stopped = planted::is(Bug::ClockStopsInSuspend);
        if suspended_ms > 0 && stopped {
            self.machines[node].clock.stood_still(suspended_ms, now);
        }
        let Some(process) = self.process_of(node, incarnation) else {
            return;
        };
        let Some((_, deferred)) = process.still.take() else {
            return;
        };
        for what in interleave(deferred, ForNode::lane, &mut self.dice) {
            self.soon(
                0,
                Happens::Node {
                    node,
                    incarnation,
                    what,
                },
            );
        }
        self.watch_lease(node);
        self.look_at_acting(node);
    }
}

/// Any order that keeps what is in one lane in its order.
fn interleave<T>(items: Vec<T>, lane: impl Fn(&T) -> Option<u64>, dice: &mut Dice) -> Vec<T> {
    let mut lanes: Vec<u64> = items.iter().map(|item| lane(item).unwrap_or(u64::MAX)).collect();
    match dice.index(3) {
        // What is on the sockets first, or the timers and the rest first.
        0 => lanes.sort_unstable(),
        1 => lanes.sort_unstable_by_key(|lane| std::cmp::Reverse(*lane)),
        _ => dice.shuffle(&mut lanes),
    }
    let mut by_lane: BTreeMap<u64, VecDeque<T>> = BTreeMap::new();
    for item in items {
        by_lane
            .entry(lane(&item).unwrap_or(u64::MAX))
            .or_default()
            .push_back(item);
    }
    if let Some(rest) = by_lane.get_mut(&u64::MAX) {
        dice.shuffle(rest.make_contiguous());
    }
    lanes
        .into_iter()
        .filter_map(|lane| by_lane.get_mut(&lane)?.pop_front())
        .collect()
}
