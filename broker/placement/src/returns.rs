//! Do the connections that an operation sends away arrive elsewhere?
//!
//! Clients come back at their own pace, and some never: a tab that was closed, a phone that sleeps. So only
//! those are judged that have had time, and half of them suffices. What has not had time yet is bounded
//! instead: no more than a quarter of the operation's connections may be away at once, so that it has
//! stopped long before half of them are gone when nobody arrives.

use std::collections::VecDeque;
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;

use crate::settings::Settings;

/// Departures closer than this are remembered as one.
const GRAIN_MS: u64 = 100;

/// What left and what arrived, as far as it can be watched.
#[derive(Clone, Debug, Default)]
pub(crate) struct Returns {
    /// Gone lately: when, and how many.
    recent: VecDeque<(Timestamp, u32)>,
    /// Gone long enough ago to be back.
    judged: u32,
    recent_sum: u32,
    back: u32,
    /// Nobody looks any more: an operator said so.
    unwatched: bool,
}

/// Whether more may leave.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// Yes.
    Go,
    /// Not before some of those that are away have arrived, or have had their time.
    Slow { away: u32 },
    /// No: fewer than half of those that have had their time are back.
    Wait { gone: u32, back: u32 },
}

impl Returns {
    pub(crate) fn gone(&mut self, at: Timestamp) {
        self.recent_sum = self.recent_sum.saturating_add(1);
        match self.recent.back_mut() {
            Some((when, many)) if at.since(*when) < GRAIN_MS => *many = many.saturating_add(1),
            _ => self.recent.push_back((at, 1)),
        }
    }

    pub(crate) fn arrived(&mut self) {
        self.back = self.back.saturating_add(1);
    }

    /// An operator looked and wants it to go on: what is missing so far is not held against it.
    pub(crate) fn forgive(&mut self) {
        *self = Self {
            unwatched: self.unwatched,
            ..Self::default()
        };
    }

    pub(crate) fn stop_watching(&mut self) {
        self.unwatched = true;
    }

    /// How many are gone and may still come. Of those that have had their time, whoever is missing is counted
    /// as not coming.
    pub(crate) fn away(&self) -> u32 {
        let gone = self.judged.saturating_add(self.recent_sum);
        gone.saturating_sub(self.back.max(self.judged))
    }

    pub(crate) fn is_watched(&self) -> bool {
        !self.unwatched && !planted::is(Bug::DrainNeverWaits)
    }

    /// Whether more of `connections` in all may leave at `now`.
    pub(crate) fn look(&mut self, connections: u32, settings: &Settings, now: Timestamp) -> Verdict {
        while let Some((at, many)) = self.recent.front()
            && now.since(*at) >= settings.return_ms
        {
            self.judged = self.judged.saturating_add(*many);
            self.recent_sum = self.recent_sum.saturating_sub(*many);
            self.recent.pop_front();
        }
        if !self.is_watched() {
            return Verdict::Go;
        }
        if self.judged >= settings.returns_least && u64::from(self.back) * 2 < u64::from(self.judged) {
            return Verdict::Wait {
                gone: self.judged.saturating_add(self.recent_sum),
                back: self.back,
            };
        }
        let away = self.away();
        if away >= settings.away_most(connections) {
            return Verdict::Slow { away };
        }
        Verdict::Go
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn when_nobody_arrives_a_quarter_goes_and_then_it_waits() {
        let (settings, mut returns) = (Settings::default(), Returns::default());
        let mut gone = 0;
        for ms in 0..10_000 {
            if returns.look(200, &settings, at(ms)) == Verdict::Go {
                returns.gone(at(ms));
                gone += 1;
            }
        }
        assert_eq!(gone, 50);
        assert_eq!(
            returns.look(200, &settings, at(10_000)),
            Verdict::Wait { gone: 50, back: 0 }
        );
        returns.forgive();
        assert_eq!(returns.look(200, &settings, at(10_000)), Verdict::Go);
    }

    #[test]
    fn it_goes_on_when_a_fifth_never_comes_and_the_others_take_their_time() {
        let (settings, mut returns) = (Settings::default(), Returns::default());
        let mut coming: VecDeque<u64> = VecDeque::new();
        let (mut gone, mut ended) = (0, 0);
        for ms in 0..120_000 {
            while coming.front().is_some_and(|due| *due <= ms) {
                coming.pop_front();
                returns.arrived();
            }
            // Ten a second.
            if gone < 500 && ms % 100 == 0 {
                let verdict = returns.look(500, &settings, at(ms));
                assert!(!matches!(verdict, Verdict::Wait { .. }), "{verdict:?} at {ms}");
                if verdict == Verdict::Go {
                    gone += 1;
                    returns.gone(at(ms));
                    if gone % 5 != 0 {
                        coming.push_back(ms + 4_000);
                    }
                    ended = ms;
                }
            }
        }
        assert_eq!((gone, ended), (500, 49_900), "never held up");
    }

    #[test]
    fn it_goes_on_by_itself_once_half_of_them_are_back() {
        let (settings, mut returns) = (Settings::default(), Returns::default());
        for _ in 0..20 {
            returns.gone(at(0));
        }
        let verdict = returns.look(1_000, &settings, at(settings.return_ms));
        assert_eq!(verdict, Verdict::Wait { gone: 20, back: 0 });
        for _ in 0..10 {
            returns.arrived();
        }
        assert_eq!(
            returns.look(1_000, &settings, at(settings.return_ms + 100)),
            Verdict::Go
        );
    }

    #[test]
    fn a_handful_proves_nothing() {
        let (settings, mut returns) = (Settings::default(), Returns::default());
        for _ in 1..settings.returns_least {
            returns.gone(at(0));
        }
        assert_eq!(returns.look(4, &settings, at(60_000)), Verdict::Go);
    }
}
