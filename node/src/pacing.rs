//! When each connection of a team that is taken away is closed.
//!
//! All connections of a team share one slot, so that team mates go together. Only a team that
//! would by itself be a burst is spread. Slots sit in one heap by their time; there is no timer
//! per connection.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use usher_shared::id::TeamId;
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{Epoch, Timestamp};

use crate::holdings::Departing;

/// How many connections of one team may go in one slot. The same as what one target takes in a second.
const PER_SLOT: u32 = 200;
/// The distance between two slots of one team.
const STEP_MS: u64 = 1_000;
/// What is left at the deadline is closed over this part of the time to it, so that it does not
/// come back as one wave ...
const DEADLINE_JITTER_PERCENT: u64 = 5;
/// ... but within this, because whoever set the deadline waits for it.
const DEADLINE_JITTER_MS: u64 = 1_000;

/// The slots to come.
#[derive(Debug, Default)]
pub struct Pacer {
    due: BinaryHeap<Reverse<(Timestamp, u64)>>,
    /// By the serial in the heap, which keeps names out of its order.
    slots: std::collections::HashMap<u64, Slot>,
    serial: u64,
}

/// A moment at which connections of a team go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// The team.
    pub team: TeamId,
    /// The epoch of the move; if the team is not leaving by it any more, the slot is void.
    pub epoch: Epoch,
    /// Who goes.
    pub who: Who,
}

/// Who goes in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who {
    /// Up to so many connections that cannot be told to move.
    Plain(u32),
    /// Whoever is left.
    All,
}

/// How the connections of one team are spread over slots.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Spread {
    after_ms: u64,
    per_slot: u32,
    slots: u32,
}

impl Spread {
    /// The spread of a departing team: one slot, or as many as its size asks for and the deadline allows.
    #[must_use]
    pub fn of(departing: &Departing) -> Self {
        let after_ms = departing.after_ms.min(departing.by_ms);
        let room = (departing.by_ms - after_ms) / STEP_MS + 1;
        let wanted = departing.connections.div_ceil(PER_SLOT).max(1);
        let slots = u64::from(wanted).min(room);
        let slots = u32::try_from(slots).unwrap_or(wanted);
        Self {
            after_ms,
            per_slot: departing.connections.div_ceil(slots).max(1),
            slots,
        }
    }

    /// Milliseconds from now to the slot of the team's `index`-th connection.
    #[must_use]
    pub fn slot_ms(self, index: u32) -> u64 {
        let slot = (index / self.per_slot).min(self.slots - 1);
        self.after_ms + u64::from(slot) * STEP_MS
    }
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

impl Pacer {
    /// Plans the slots and the deadline of a departing team; `random` spreads deadlines.
    pub fn plan(&mut self, departing: &Departing, now: Timestamp, random: u64) -> Spread {
        let spread = Spread::of(departing);
        let slot = |who| Slot {
            team: departing.team.clone(),
            epoch: departing.epoch,
            who,
        };
        for number in 0..spread.slots {
            // The last slot takes whoever came meanwhile, too.
            let last = number + 1 == spread.slots;
            let many = if last { u32::MAX } else { spread.per_slot };
            let after_ms = spread.slot_ms(number * spread.per_slot);
            self.push(now.plus(after_ms), slot(Who::Plain(many)));
        }
        let jitter = (departing.by_ms * DEADLINE_JITTER_PERCENT / 100).min(DEADLINE_JITTER_MS);
        let deadline = now.plus(departing.by_ms + random % (jitter + 1));
        self.push(deadline, slot(Who::All));
        spread
    }

    /// When the next slot is due.
    #[must_use]
    pub fn next_due(&self) -> Option<Timestamp> {
        self.due.peek().map(|Reverse((due, _))| *due)
    }

    /// The next slot that is due by `now`.
    pub fn pop(&mut self, now: Timestamp) -> Option<Slot> {
        self.next_due().filter(|due| *due <= now)?;
        let Reverse((_, serial)) = self.due.pop()?;
        self.slots.remove(&serial)
    }

    fn push(&mut self, due: Timestamp, slot: Slot) {
        self.serial += 1;
        self.due.push(Reverse((due, self.serial)));
        self.slots.insert(self.serial, slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn departing(connections: u32, after_ms: u64, by_ms: u64) -> Departing {
        Departing {
            team: "T1".parse().unwrap(),
            epoch: Epoch::new(9).unwrap(),
            connections,
            after_ms,
            by_ms,
            reason: "drain".parse().unwrap(),
        }
    }

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn a_team_goes_together_and_what_is_left_goes_at_the_deadline() {
        let mut pacer = Pacer::default();
        let spread = pacer.plan(&departing(7, 300, 5_000), at(1_000), 0);
        assert!((0..7).all(|index| spread.slot_ms(index) == 300));
        assert_eq!(pacer.next_due(), Some(at(1_300)));
        assert_eq!(pacer.pop(at(1_299)), None);
        assert_eq!(
            pacer.pop(at(1_300)).map(|slot| slot.who),
            Some(Who::Plain(u32::MAX))
        );
        assert_eq!(pacer.pop(at(5_999)), None);
        assert_eq!(pacer.pop(at(6_000)).map(|slot| slot.who), Some(Who::All));
        assert_eq!((pacer.next_due(), pacer.slots.len()), (None, 0));
    }

    #[test]
    fn a_huge_team_is_spread_as_far_as_the_deadline_allows() {
        let spread = Spread::of(&departing(1_000, 0, 60_000));
        assert_eq!(
            [0, 199, 200, 999].map(|i| spread.slot_ms(i)),
            [0, 0, 1_000, 4_000]
        );
        let hurried = Spread::of(&departing(1_000, 500, 2_000));
        assert_eq!(
            [0, 499, 500, 999].map(|i| hurried.slot_ms(i)),
            [500, 500, 1_500, 1_500]
        );
    }

    proptest! {
        #[test]
        fn everybody_has_a_slot_before_the_deadline_and_slots_come_in_order(
            teams in prop::collection::vec((1_u32..3_000, 0_u64..20_000, 0_u64..20_000, any::<u64>()), 1..20),
        ) {
            let mut pacer = Pacer::default();
            for (connections, after_ms, by_ms, random) in teams {
                let departing = departing(connections, after_ms, by_ms);
                let spread = pacer.plan(&departing, at(0), random);
                for index in [0, connections / 2, connections - 1, connections + 5] {
                    prop_assert!(spread.slot_ms(index) <= by_ms);
                }
            }
            let mut last = at(0);
            while let Some(due) = pacer.next_due() {
                prop_assert!(due >= last && due <= at(21_000));
                last = due;
                prop_assert!(pacer.pop(due).is_some());
            }
            prop_assert!(pacer.slots.is_empty());
        }
    }
}
