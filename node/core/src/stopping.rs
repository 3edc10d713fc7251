//! How does a process leave that was asked to stop?
//!
//! It asks its broker to be drained, and serves on. Once nothing is left it stays for a moment, to send on clients that
//! hold a ticket for it, and is gone. What is left near the end of its budget is closed, spread so that the pool takes
//! it back in its stride; whoever set the budget kills the process when it is over, so nothing comes after it.

use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{RETURNS_PER_S, Timestamp};

/// After its last connection a stopping node stays this long.
const LINGER_MS: u64 = 1_000;
/// The end of the budget is kept for the last closes: a tenth of it, and no more than a client needs that
/// answers a Close at all.
const LAST_CLOSES_MOST_MS: u64 = 2_000;
/// How long the last closes may take when somebody is in a hurry.
pub const HASTY_CLOSES_MS: u64 = 1_000;
/// The least over which clients that are closed come back.
const SPREAD_LEAST_MS: u64 = 1_000;

/// A process that was asked to stop.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stopping {
    until: Timestamp,
    closes_at: Timestamp,
    /// Whether it had teams when it was asked.
    served: bool,
    empty_since: Option<Timestamp>,
    closed: bool,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Serve on: look again when something has gone, and at this moment.
    Wait {
        /// When.
        until: Timestamp,
    },
    /// Close what is left; clients are told to come back within so many milliseconds.
    CloseAll {
        /// Milliseconds.
        spread_ms: u64,
    },
    /// Nothing is left to do.
    Gone,
}

/// Over how many milliseconds so many clients, closed without a node to go to, come back.
#[must_use]
pub fn spread_ms(connections: u64) -> u64 {
    SPREAD_LEAST_MS + connections * 1_000 / u64::from(RETURNS_PER_S)
}

impl Stopping {
    /// It was asked at `now`, and has so many milliseconds. `served`: it holds teams.
    #[must_use]
    pub fn begin(budget_ms: u64, served: bool, now: Timestamp) -> Self {
        let until = now.plus(budget_ms);
        let closes_at = if planted::is(Bug::StopsBeforeDrained) {
            now
        } else {
            until.minus((budget_ms / 10).min(LAST_CLOSES_MOST_MS))
        };
        Self {
            until,
            closes_at,
            served,
            empty_since: None,
            closed: false,
        }
    }

    /// When it will be gone at the latest.
    #[must_use]
    pub fn until(&self) -> Timestamp {
        self.until
    }

    /// It was asked again: what is left is closed now.
    pub fn hasten(&mut self, now: Timestamp) {
        self.until = self.until.min(now.plus(HASTY_CLOSES_MS));
        self.closes_at = self.closes_at.min(now);
    }

    /// What is to be done at `now`, with so many connections and teams.
    pub fn step(&mut self, connections: u32, teams: usize, now: Timestamp) -> Step {
        if self.closed {
            return if connections == 0 || now >= self.until {
                Step::Gone
            } else {
                Step::Wait { until: self.until }
            };
        }
        if connections == 0 && teams == 0 {
            let since = *self.empty_since.get_or_insert(now);
            let gone_at = since.plus(if self.served { LINGER_MS } else { 0 });
            if now >= gone_at.min(self.closes_at) {
                return Step::Gone;
            }
            return Step::Wait {
                until: gone_at.min(self.closes_at),
            };
        }
        self.empty_since = None;
        if now < self.closes_at {
            return Step::Wait {
                until: self.closes_at,
            };
        }
        self.closed = true;
        if connections == 0 {
            return Step::Gone;
        }
        Step::CloseAll {
            spread_ms: spread_ms(connections.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn a_node_that_is_emptied_lingers_and_is_gone_before_its_budget_is_over() {
        let mut stopping = Stopping::begin(30_000, true, at(0));
        assert_eq!(stopping.step(2, 1, at(0)), Step::Wait { until: at(28_000) });
        assert_eq!(stopping.step(0, 1, at(900)), Step::Wait { until: at(28_000) });
        assert_eq!(stopping.step(0, 0, at(1_000)), Step::Wait { until: at(2_000) });
        assert_eq!(stopping.step(0, 0, at(1_999)), Step::Wait { until: at(2_000) });
        assert_eq!(stopping.step(0, 0, at(2_000)), Step::Gone);
    }

    #[test]
    fn one_that_held_nothing_goes_at_once() {
        let mut stopping = Stopping::begin(30_000, false, at(0));
        assert_eq!(stopping.step(0, 0, at(0)), Step::Gone);
    }

    #[test]
    fn somebody_who_comes_while_it_lingers_is_served_first() {
        let mut stopping = Stopping::begin(30_000, true, at(0));
        stopping.step(0, 0, at(0));
        assert_eq!(stopping.step(1, 1, at(500)), Step::Wait { until: at(28_000) });
        assert_eq!(stopping.step(0, 0, at(900)), Step::Wait { until: at(1_900) });
    }

    #[test]
    fn what_is_left_near_the_end_of_the_budget_is_closed_once_and_comes_back_spread() {
        let mut stopping = Stopping::begin(10_000, true, at(0));
        assert_eq!(stopping.step(400, 3, at(8_999)), Step::Wait { until: at(9_000) });
        assert_eq!(
            stopping.step(400, 3, at(9_000)),
            Step::CloseAll { spread_ms: 3_000 }
        );
        assert_eq!(stopping.step(7, 3, at(9_001)), Step::Wait { until: at(10_000) });
        let mut late = stopping;
        assert_eq!(stopping.step(0, 3, at(9_100)), Step::Gone);
        assert_eq!(late.step(7, 3, at(10_000)), Step::Gone);
    }

    #[test]
    fn asked_twice_it_closes_at_once_and_never_later_than_it_would_have() {
        let mut stopping = Stopping::begin(30_000, true, at(0));
        stopping.hasten(at(500));
        assert!(matches!(stopping.step(1, 1, at(500)), Step::CloseAll { .. }));
        assert_eq!(stopping.until(), at(1_500));
        stopping.hasten(at(29_900));
        assert_eq!(stopping.until(), at(1_500));
    }
}
