//! Do a node's clock and the broker's run alike?
//!
//! Leases count on clocks whose rates differ by a bound at most. Each heartbeat carries the node's
//! reading, so the broker can compare: the smallest difference between its own reading and the
//! node's in one window against that of the window before. The smallest, because the way of a
//! heartbeat can only take longer, never shorter. Two windows in a row must agree before a clock
//! counts as off, since a way that becomes longer for good looks like a slow clock once.

use usher_shared::quantity::Timestamp;

/// How long one window is: at 1 % the difference grows by 300 ms in it, far above what a way varies.
const WINDOW_MS: u64 = 30_000;

/// How a node's clock runs beside the broker's.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// Within half of the bound that leases count on.
    #[default]
    Even,
    /// Faster: the node fences early.
    Fast {
        /// By how much, in parts per million.
        ppm: u64,
    },
    /// Slower: beyond the bound, the node may go on after the broker counts it as stopped.
    Slow {
        /// By how much, in parts per million.
        ppm: u64,
    },
}

/// What is known of the pace of one node's clock.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct ClockPace {
    window: Option<Window>,
    /// The least difference of the window before.
    before: Option<i64>,
    last: Pace,
    pace: Pace,
}

#[derive(Clone, Copy, Debug)]
struct Window {
    began: Timestamp,
    /// The least of the broker's reading minus the node's, in milliseconds.
    least: i64,
}

impl ClockPace {
    /// A new link, or a pause of the broker: what was measured does not go on.
    pub(crate) fn begin(&mut self) {
        self.window = None;
        self.before = None;
    }

    /// A heartbeat with the node's reading was received. The new pace, if it changed; differences up to
    /// `bound_ppm` are none.
    pub(crate) fn beat(&mut self, node: Timestamp, now: Timestamp, bound_ppm: u64) -> Option<Pace> {
        let difference = signed(now).saturating_sub(signed(node));
        let Some(window) = &mut self.window else {
            self.window = Some(Window {
                began: now,
                least: difference,
            });
            return None;
        };
        let lasted_ms = now.since(window.began);
        if lasted_ms < WINDOW_MS {
            window.least = window.least.min(difference);
            return None;
        }
        let least = window.least;
        self.window = Some(Window {
            began: now,
            least: difference,
        });
        let before = self.before.replace(least)?;
        let measured = pace_of(least.saturating_sub(before), lasted_ms, bound_ppm);
        let agrees = std::mem::discriminant(&measured) == std::mem::discriminant(&self.last);
        self.last = measured;
        if agrees && std::mem::discriminant(&measured) != std::mem::discriminant(&self.pace) {
            self.pace = measured;
            return Some(measured);
        }
        None
    }

    /// Whether leases cannot be counted on with this clock.
    pub(crate) fn is_off(&self) -> bool {
        self.pace != Pace::Even
    }
}

/// The pace by which the difference grew by `grew_ms` in a time.
fn pace_of(grew_ms: i64, lasted_ms: u64, bound_ppm: u64) -> Pace {
    let ppm = grew_ms.unsigned_abs().saturating_mul(1_000_000) / lasted_ms.max(1);
    if ppm <= bound_ppm {
        Pace::Even
    } else if grew_ms > 0 {
        Pace::Slow { ppm }
    } else {
        Pace::Fast { ppm }
    }
}

fn signed(at: Timestamp) -> i64 {
    i64::try_from(at.as_millis()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Beats each second of the broker's clock for `seconds`, from a node whose clock runs at
    /// `percent` of the broker's, over a way of `way_ms`; every change of pace, with when it was seen.
    fn beats(
        pace: &mut ClockPace,
        from_s: u64,
        seconds: u64,
        percent: u64,
        way_ms: fn(u64) -> u64,
    ) -> Vec<(u64, Pace)> {
        let mut changes = Vec::new();
        for second in from_s..from_s + seconds {
            let sent = second * 1_000;
            let node = Timestamp::from_millis(1_000_000 + sent * percent / 100);
            let received = Timestamp::from_millis(sent + way_ms(second));
            if let Some(change) = pace.beat(node, received, 5_000) {
                changes.push((second, change));
            }
        }
        changes
    }

    #[test]
    fn clocks_that_run_alike_are_even_whatever_the_way_does() {
        let mut pace = ClockPace::default();
        let way = |second: u64| {
            if second < 300 {
                second * 37 % 90
            } else {
                200 + second * 53 % 900
            }
        };
        assert_eq!(beats(&mut pace, 0, 1_000, 100, way), []);
        assert!(!pace.is_off());
    }

    #[test]
    fn a_clock_beyond_the_bound_is_seen_within_two_minutes_and_seen_to_recover() {
        let way = |_| 5;
        let mut fast = ClockPace::default();
        let seen = beats(&mut fast, 0, 120, 150, way);
        assert!(
            matches!(
                seen[..],
                [(
                    _,
                    Pace::Fast {
                        ppm: 490_000..510_000
                    }
                )]
            ),
            "{seen:?}"
        );
        assert!(fast.is_off());
        let mut slow = ClockPace::default();
        let seen = beats(&mut slow, 0, 120, 99, way);
        assert!(
            matches!(seen[..], [(_, Pace::Slow { ppm: 9_000..11_000 })]),
            "{seen:?}"
        );
        slow.begin();
        let seen = beats(&mut slow, 1_000, 130, 100, way);
        assert!(matches!(seen[..], [(_, Pace::Even)]), "{seen:?}");
    }
}
