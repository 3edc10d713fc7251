//! How many connections may an operation move now?

use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;

/// The most milliseconds of unused rate that may be saved up: more would be a burst.
pub(crate) const BURST_MS: u64 = 250;

/// A bucket that fills at a rate and may be overdrawn: a team goes as a whole when anything is in it, and
/// the next one waits until that is paid.
#[derive(Clone, Debug)]
pub(crate) struct Bucket {
    pub(crate) rate_per_s: u64,
    /// Thousandths of a connection that may move now; negative for what was taken in advance.
    tokens: i64,
    refilled: Timestamp,
}

impl Bucket {
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            rate_per_s: 0,
            tokens: 0,
            refilled: now,
        }
    }

    /// Sets the rate. What was taken in advance stays owed.
    pub(crate) fn set_rate(&mut self, rate_per_s: u64) {
        let begins = self.rate_per_s == 0;
        self.rate_per_s = rate_per_s.max(1);
        if begins {
            self.tokens = self.burst();
        }
    }

    pub(crate) fn refill(&mut self, now: Timestamp) {
        let rate = i64::try_from(self.rate_per_s).unwrap_or(i64::MAX / 2_000_000);
        let elapsed = i64::try_from(now.since(self.refilled).min(60_000)).unwrap_or(0);
        self.refilled = now;
        self.tokens = self.tokens.saturating_add(rate * elapsed).min(self.burst());
        if planted::is(Bug::DrainUnpaced) {
            self.open();
        }
    }

    /// The time is over: what is left goes now.
    pub(crate) fn open(&mut self) {
        self.tokens = i64::MAX / 4;
    }

    pub(crate) fn has_room(&self) -> bool {
        self.tokens > 0
    }

    /// How long until it has room.
    pub(crate) fn owed_ms(&self) -> u64 {
        // Thousandths of a connection over connections a second: milliseconds.
        self.tokens.min(0).unsigned_abs() / self.rate_per_s.max(1)
    }

    /// Takes thousandths of a connection; negative gives back what was taken for nothing.
    pub(crate) fn charge(&mut self, milli: i64) {
        self.tokens = self.tokens.saturating_sub(milli);
    }

    fn burst(&self) -> i64 {
        i64::try_from(self.rate_per_s * BURST_MS)
            .unwrap_or(i64::MAX / 4)
            .max(1_000)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_taken_in_advance_is_paid_before_the_next() {
        let at = Timestamp::from_millis;
        let mut bucket = Bucket::new(at(0));
        bucket.set_rate(10);
        assert!(bucket.has_room());
        bucket.charge(20_000);
        bucket.refill(at(1_700));
        assert!(!bucket.has_room(), "2.5 saved, 17 since, 20 taken");
        bucket.refill(at(1_800));
        assert!(bucket.has_room());
        bucket.refill(at(60_000));
        bucket.charge(2_500);
        assert!(!bucket.has_room(), "no more than a quarter of a second is saved");
    }

    #[test]
    fn a_new_rate_leaves_what_is_owed() {
        let at = Timestamp::from_millis;
        let mut bucket = Bucket::new(at(0));
        bucket.set_rate(10);
        bucket.charge(52_500);
        bucket.set_rate(100);
        bucket.refill(at(500));
        assert!(!bucket.has_room());
        bucket.refill(at(501));
        assert!(bucket.has_room());
    }
}
