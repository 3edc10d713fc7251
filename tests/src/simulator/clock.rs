//! What each process takes for the time.

use usher_shared::quantity::Timestamp;

/// Milliseconds since the world began, which no process can read.
pub(super) type Real = u64;

/// The clock of one machine: it began anywhere and runs a little fast or slow.
#[derive(Clone, Copy, Debug)]
pub(super) struct Clock {
    since: Real,
    reading: u64,
    /// Parts per million that it runs fast; negative: slow.
    ppm: i64,
}

const MILLION: i128 = 1_000_000;

impl Clock {
    pub(super) fn new(reading: u64, ppm: i64) -> Self {
        Self {
            since: 0,
            reading,
            ppm,
        }
    }

    pub(super) fn at(&self, real: Real) -> Timestamp {
        let passed = i128::from(real.saturating_sub(self.since));
        let counted = passed * (MILLION + i128::from(self.ppm)) / MILLION;
        Timestamp::from_millis(self.reading + u64::try_from(counted).unwrap_or(0))
    }

    /// The first moment at which it shows `reading` or more.
    pub(super) fn when(&self, reading: Timestamp) -> Real {
        let ahead = i128::from(reading.as_millis().saturating_sub(self.reading));
        let rate = MILLION + i128::from(self.ppm);
        let passed = (ahead * MILLION + rate - 1) / rate;
        let mut real = self.since + u64::try_from(passed).unwrap_or(0);
        while self.at(real) < reading {
            real += 1;
        }
        real
    }

    /// It stood still for the last `millis`.
    pub(super) fn stood_still(&mut self, millis: u64, now: Real) {
        self.reading = self.at(now).minus(millis).as_millis();
        self.since = now;
    }
}
