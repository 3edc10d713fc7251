//! What waits to be said to the broker.

use std::collections::VecDeque;
use usher_shared::link::{Arrival, Arrivals, Departure, Departures, MAX_LIST, Missed, TeamMissed, ToBroker};
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;

/// Answers that wait. A broker that is further behind is left and met again: the inventory says
/// all that the answers would have.
const MAX_ANSWERS: usize = 20_000;
/// Arrivals, and departures, that wait while the broker is away.
const MAX_REPORTS: usize = 4 * MAX_LIST;

/// What waits to be said to the broker.
#[derive(Debug, Default)]
pub struct Outgoing {
    answers: VecDeque<ToBroker>,
    /// With when they came and went: the broker is told how long ago that was.
    arrived: VecDeque<(Arrival, Timestamp)>,
    left: VecDeque<(Departure, Timestamp)>,
    missed: VecDeque<TeamMissed>,
}

/// The broker does not take its answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Overfull;

impl Outgoing {
    /// An answer, to be sent at once.
    pub fn say(&mut self, message: ToBroker) {
        if self.answers.len() <= MAX_ANSWERS {
            self.answers.push_back(message);
        }
    }

    /// An arrival, to be sent with others; returns how many were dropped for it.
    pub fn arrived(&mut self, arrival: Arrival, now: Timestamp) -> u64 {
        bounded(&mut self.arrived, (arrival, now))
    }

    /// A departure, to be sent with others; returns how many were dropped for it.
    pub fn left(&mut self, departure: Departure, now: Timestamp) -> u64 {
        bounded(&mut self.left, (departure, now))
    }

    /// Frames that members of a team on its way did not get, to be sent with the others; returns how many
    /// such entries were dropped for it.
    pub fn missed(&mut self, missed: TeamMissed) -> u64 {
        bounded(&mut self.missed, missed)
    }

    /// What is to be sent at once, in its order.
    ///
    /// # Errors
    /// [`Overfull`] when more waited than may: the link is to be begun anew.
    pub fn take_due(&mut self, now: Timestamp) -> Result<Vec<ToBroker>, Overfull> {
        if self.answers.len() > MAX_ANSWERS {
            self.answers = VecDeque::new();
            return Err(Overfull);
        }
        let answers = std::mem::take(&mut self.answers);
        // `released` ends a move at the broker: who left must be known there by then.
        let ends_a_move = answers
            .iter()
            .any(|answer| matches!(answer, ToBroker::Released(_)));
        let mut due = if ends_a_move && !planted::is(Bug::ReleasedBeforeReports) {
            self.take_reports(now)
        } else {
            Vec::new()
        };
        due.extend(answers);
        Ok(due)
    }

    /// Whether reports wait.
    #[must_use]
    pub fn has_reports(&self) -> bool {
        !self.arrived.is_empty() || !self.left.is_empty() || !self.missed.is_empty()
    }

    /// The reports, in messages of a bounded size.
    pub fn take_reports(&mut self, now: Timestamp) -> Vec<ToBroker> {
        let arrived = std::mem::take(&mut self.arrived).into_iter();
        let arrived = arrived.map(|(arrival, at)| Arrival {
            age_ms: Some(now.since(at)),
            ..arrival
        });
        let left = std::mem::take(&mut self.left).into_iter();
        let left = left.map(|(departure, at)| Departure {
            age_ms: Some(now.since(at)),
            ..departure
        });
        let arrived = pages(arrived).map(|connections| ToBroker::Arrived(Arrivals { connections }));
        let left = pages(left).map(|connections| ToBroker::Left(Departures { connections }));
        let missed = pages(std::mem::take(&mut self.missed).into_iter())
            .map(|teams| ToBroker::Missed(Missed { teams }));
        arrived.chain(left).chain(missed).collect()
    }

    /// Forgets the answers of a link that is gone: the broker asks again for what it still needs.
    pub fn forget_answers(&mut self) {
        self.answers = VecDeque::new();
    }
}

fn bounded<T>(list: &mut VecDeque<T>, item: T) -> u64 {
    let full = list.len() >= MAX_REPORTS;
    if full {
        list.pop_front();
    }
    list.push_back(item);
    u64::from(full)
}

fn pages<T>(items: impl Iterator<Item = T>) -> impl Iterator<Item = Vec<T>> {
    let mut items = items.peekable();
    std::iter::from_fn(move || {
        items.peek()?;
        Some(items.by_ref().take(MAX_LIST).collect())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use usher_shared::id::{ConnectionId, Incarnation};
    use usher_shared::link::TeamEpoch;
    use usher_shared::quantity::Epoch;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn arrival(serial: u64) -> Arrival {
        Arrival {
            team: "T1".parse().unwrap(),
            epoch: Epoch::new(1).unwrap(),
            connection: ConnectionId::new(Incarnation::from_bits(0), serial),
            from: None,
            age_ms: None,
        }
    }

    #[test]
    fn reports_go_in_bounded_pages_and_the_oldest_are_dropped() {
        let mut outgoing = Outgoing::default();
        let dropped: u64 = (0..10_000)
            .map(|serial| outgoing.arrived(arrival(serial), at(1_000)))
            .sum();
        assert_eq!(dropped, 2_000);
        let pages = outgoing.take_reports(at(1_070));
        assert_eq!(pages.len(), MAX_REPORTS / MAX_LIST);
        let first = ToBroker::Arrived(Arrivals {
            connections: (2_000..4_000)
                .map(|serial| Arrival {
                    age_ms: Some(70),
                    ..arrival(serial)
                })
                .collect(),
        });
        assert_eq!(pages.first(), Some(&first));
        assert!(!outgoing.has_reports());
    }

    #[test]
    fn who_left_is_told_before_the_word_that_ends_the_move() {
        let held = || TeamEpoch {
            team: "T1".parse().unwrap(),
            epoch: Epoch::new(1).unwrap(),
        };
        let mut outgoing = Outgoing::default();
        outgoing.arrived(arrival(1), at(1_000));
        outgoing.say(ToBroker::Yielded(held()));
        assert_eq!(outgoing.take_due(at(1_010)), Ok(vec![ToBroker::Yielded(held())]));
        assert!(outgoing.has_reports(), "reports wait for their turn");
        outgoing.say(ToBroker::Released(held()));
        let due = outgoing.take_due(at(1_020)).unwrap();
        assert!(
            matches!(due.as_slice(), [ToBroker::Arrived(_), ToBroker::Released(_)]),
            "{due:?}"
        );
        assert!(!outgoing.has_reports());
    }

    #[test]
    fn a_broker_that_takes_no_answers_is_told_apart() {
        let mut outgoing = Outgoing::default();
        for _ in 0..=MAX_ANSWERS {
            outgoing.say(ToBroker::Unknown);
        }
        assert_eq!(outgoing.take_due(at(0)), Err(Overfull));
        assert_eq!(outgoing.take_due(at(0)).map(|answers| answers.len()), Ok(0));
    }
}
