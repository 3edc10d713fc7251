//! When each connection of a team that is taken away is closed.
//!
//! A team goes together where the pace allows it: on two nodes it does not hear itself. A larger one goes in
//! slots, and the next of them is planned only when one is due, so that the broker can hold what is left, or
//! change its pace. Slots sit in one heap by their time; there is no timer per connection.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap};
use usher_shared::id::{OperationId, TeamId};
use usher_shared::link::{Pace, TeamPace};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, RETURNS_PER_S, Term, Timestamp};

use crate::holdings::Departing;

/// The pace of a team whose broker names none: what one target takes in a second.
const OWN_PACE: TeamPace = TeamPace {
    rate_per_s: RETURNS_PER_S,
    at_once: RETURNS_PER_S,
    first: 0,
};
/// Slots of a team are about so far apart: finer would be work for nothing.
const STEP_MS: u64 = 100;
/// A hold that the broker does not renew is over by itself: it may have forgotten it, or its word was lost.
const HOLD_MS: u64 = 30_000;
/// What is left at the deadline is closed over this part of the time to it, so that it does not
/// come back as one wave ...
const DEADLINE_JITTER_PERCENT: u64 = 5;
/// ... but within this, because whoever set the deadline waits for it.
const DEADLINE_JITTER_MS: u64 = 1_000;

/// The slots to come.
#[derive(Debug, Default)]
pub struct Pacer {
    due: BinaryHeap<Reverse<(Timestamp, u64)>>,
    /// By the serial in the heap, which keeps names out of its order. One that was planned anew has another.
    slots: HashMap<u64, Slot>,
    serial: u64,
}

/// A moment at which connections of a team go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The team.
    pub team: TeamId,
    /// The epoch of the move; if the team is not leaving by it any more, the slot is void.
    pub epoch: Epoch,
    /// The operation that it goes by.
    pub operation: OperationId,
    /// Who goes.
    pub who: Who,
    /// When what is left is closed.
    pub by: Timestamp,
    due: Timestamp,
    pace: TeamPace,
    /// The last word on its pace: the broker's term, and its number in it.
    told: (Term, u64),
    connections: u32,
}

/// Who goes in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Up to so many that were not told to go yet.
    Next(u32),
    /// Whoever is left.
    All,
}

/// How long a client is told to wait: below `bound_ms`, and different for each, or they all come back
/// at once. `random` is drawn for this client alone.
#[must_use]
pub fn jitter(bound_ms: u64, random: u64) -> u64 {
    if planted::is(Bug::SharedJitter) {
        return bound_ms / 2;
    }
    random % bound_ms.max(1)
}

/// How many of a team that is spread go in one slot, and how long after it the next one is.
fn step(pace: TeamPace) -> (u32, u64) {
    let rate = u64::from(pace.rate_per_s.max(1));
    let many = (rate * STEP_MS / 1_000).max(1);
    (
        u32::try_from(many).unwrap_or(u32::MAX),
        (many * 1_000).div_ceil(rate),
    )
}

impl Slot {
    fn many(pace: TeamPace, connections: u32) -> u32 {
        if pace.first > 0 {
            pace.first
        } else if connections <= pace.at_once {
            u32::MAX
        } else {
            step(pace).0
        }
    }
}

impl Pacer {
    /// Plans the first slot and the deadline of a departing team; `random` spreads deadlines.
    pub fn plan(&mut self, departing: &Departing, now: Timestamp, random: u64) {
        let pace = departing.pace.unwrap_or(OWN_PACE);
        let connections = departing.connections;
        let by = now.plus(departing.by_ms);
        let jitter = (departing.by_ms * DEADLINE_JITTER_PERCENT / 100).min(DEADLINE_JITTER_MS);
        let slot = |who, due| Slot {
            team: departing.team.clone(),
            epoch: departing.epoch,
            operation: departing.operation.clone(),
            who,
            by,
            due,
            pace,
            told: (Term::default(), 0),
            connections,
        };
        let begins = now.plus(departing.after_ms.min(departing.by_ms));
        let ends = by.plus(random % (jitter + 1));
        let held = now.plus(HOLD_MS);
        // A team of which only some go at first has no deadline before the rest may go.
        let ends = if pace.first > 0 || pace.rate_per_s == 0 {
            held
        } else {
            ends
        };
        let begins = if pace.rate_per_s == 0 { held } else { begins };
        self.push(slot(Who::Next(Slot::many(pace, connections)), begins));
        self.push(slot(Who::All, ends));
    }

    /// The slot was carried out, and so many connections of its team were not told to go yet.
    pub fn again(&mut self, slot: Slot, left: u32, now: Timestamp) {
        if left == 0 || slot.who == Who::All {
            return;
        }
        let mut next = slot;
        next.due = if next.pace.first > 0 {
            now.plus(HOLD_MS)
        } else {
            // From when it was due: a late turn must not make the rate a lower one.
            next.due.plus(step(next.pace).1)
        };
        next.pace.first = 0;
        // By what the team was: its last ones would be a burst otherwise.
        next.who = Who::Next(Slot::many(next.pace, next.connections));
        self.push(next);
    }

    /// An operation's teams go at another pace from now on, or are held.
    pub fn change(&mut self, pace: &Pace, now: Timestamp) {
        let told = (pace.term, pace.number);
        let of_it = |slot: &Slot| {
            // A broker that does not number them sends 0 each time.
            slot.operation == pace.operation && (told > slot.told || pace.number == 0)
        };
        let serials: Vec<u64> = self
            .slots
            .iter()
            .filter(|(_, slot)| of_it(slot))
            .map(|(serial, _)| *serial)
            .collect();
        let by = now.plus(pace.by_ms);
        for serial in serials {
            let Some(mut slot) = self.slots.remove(&serial) else {
                continue;
            };
            slot.by = by;
            slot.told = told;
            slot.pace = TeamPace {
                first: 0,
                ..pace.pace
            };
            slot.due = match slot.who {
                _ if pace.pace.rate_per_s == 0 => now.plus(HOLD_MS),
                Who::All => by,
                // One that was held, or waits longer than the new pace would have it, goes on.
                Who::Next(_) => slot.due.min(now.plus(step(slot.pace).1)),
            };
            if let Who::Next(_) = slot.who {
                slot.who = Who::Next(Slot::many(slot.pace, slot.connections));
            }
            self.push(slot);
        }
    }

    /// When the next slot is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// The next slot that is due by `now`.
    pub fn pop(&mut self, now: Timestamp) -> Option<Slot> {
        while self.next_due().is_some_and(|due| due <= now) {
            let Reverse((_, serial)) = self.due.pop()?;
            if let Some(slot) = self.slots.remove(&serial) {
                return Some(slot);
            }
        }
        None
    }

    fn push(&mut self, slot: Slot) {
        self.serial += 1;
        self.due.push(Reverse((slot.due, self.serial)));
        self.slots.insert(self.serial, slot);
    }
}

#[cfg(test)]
#[path = "pacing_tests.rs"]
mod tests;
