//! Lines that would repeat themselves: said once, then each minute with how many there were, and once at the end.

use std::time::Duration;
use std::time::Instant;

/// How often what goes on is said again.
pub const AGAIN_AFTER: Duration = Duration::from_secs(60);

/// One thing that may go on for long. `W` is what makes it another thing: when it changes, that is said at once.
#[derive(Debug)]
pub struct Fold<W> {
    going_on: Option<GoingOn<W>>,
}

#[derive(Debug)]
struct GoingOn<W> {
    what: W,
    since: Instant,
    last: Instant,
    said: Instant,
    times: u64,
}

/// What goes on and is to be said.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// How often it has happened, this time included.
    pub times: u64,
    /// For how long.
    pub lasted: Duration,
}

impl<W> Default for Fold<W> {
    fn default() -> Self {
        Self { going_on: None }
    }
}

impl<W: PartialEq> Fold<W> {
    /// It has happened; `Some` when that is to be said.
    pub fn happened(&mut self, what: W, now: Instant) -> Option<Said> {
        if let Some(on) = self.going_on.as_mut().filter(|on| on.what == what) {
            on.times += 1;
            on.last = now;
            if now.duration_since(on.said) < AGAIN_AFTER {
                return None;
            }
            on.said = now;
            return Some(on.seen(now));
        }
        let on = self.going_on.insert(GoingOn {
            what,
            since: now,
            last: now,
            said: now,
            times: 1,
        });
        Some(on.seen(now))
    }

    /// Once it works: `Some` when it went on and has not happened for `quiet`. What fails and works by turns is not
    /// over each time that it works.
    pub fn over_after(&mut self, quiet: Duration, now: Instant) -> Option<Said> {
        let is_quiet = |on: &GoingOn<W>| now.duration_since(on.last) >= quiet;
        if self.going_on.as_ref().is_some_and(is_quiet) {
            return self.over(now);
        }
        None
    }

    /// It is over; `Some` when it went on.
    pub fn over(&mut self, now: Instant) -> Option<Said> {
        self.going_on.take().map(|on| on.seen(now))
    }
}

impl<W> GoingOn<W> {
    fn seen(&self, now: Instant) -> Said {
        Said {
            times: self.times,
            lasted: now.duration_since(self.since),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_goes_on_is_said_once_each_minute_and_at_its_end() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let mut fold = Fold::default();
        let said: Vec<(u64, u64)> = (0..150)
            .filter_map(|second| Some((second, fold.happened("away", at(second))?.times)))
            .collect();
        assert_eq!(said, [(0, 1), (60, 61), (120, 121)]);
        let over = fold.over(at(150)).unwrap();
        assert_eq!((over.times, over.lasted), (150, Duration::from_secs(150)));
        assert_eq!(fold.over(at(151)), None);
        assert_eq!(fold.happened("away", at(152)).map(|said| said.times), Some(1));
    }

    #[test]
    fn what_fails_and_works_by_turns_is_over_only_once_it_has_worked_for_a_while() {
        let began = Instant::now();
        let at = |seconds| began + Duration::from_secs(seconds);
        let quiet = Duration::from_secs(10);
        let mut fold = Fold::default();
        assert!(fold.happened((), at(0)).is_some());
        for second in 1..20 {
            assert_eq!(fold.over_after(quiet, at(second)), None);
            assert_eq!(fold.happened((), at(second)), None);
        }
        assert_eq!(fold.over_after(quiet, at(28)), None);
        assert_eq!(fold.over_after(quiet, at(29)).map(|said| said.times), Some(20));
    }

    #[test]
    fn another_reason_is_said_at_once() {
        let now = Instant::now();
        let mut fold = Fold::default();
        assert!(fold.happened("refused", now).is_some());
        assert!(fold.happened("refused", now).is_none());
        assert!(fold.happened("timed out", now).is_some());
    }
}
