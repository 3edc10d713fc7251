//! The one place that reads the clocks. Decisions never call this: they are given a [`Timestamp`].

use crate::quantity::Timestamp;
use rustix::time::{ClockId, clock_gettime};

/// Milliseconds on CLOCK_BOOTTIME, which goes on counting while the machine is suspended.
///
/// `std::time::Instant` reads CLOCK_MONOTONIC on Linux, which stops during suspend: a lease counted
/// on it would still look fresh on a machine that slept through its end.
#[must_use]
pub fn boottime() -> Timestamp {
    let now = clock_gettime(ClockId::Boottime);
    let seconds = u64::try_from(now.tv_sec).unwrap_or(0);
    let nanos = u64::try_from(now.tv_nsec).unwrap_or(0);
    Timestamp::from_millis(seconds * 1000 + nanos / 1_000_000)
}

/// Milliseconds since the Unix epoch on the wall clock. For tickets and for people, never for leases.
#[must_use]
pub fn wall_ms() -> u64 {
    let now = clock_gettime(ClockId::Realtime);
    u64::try_from(now.tv_sec).unwrap_or(0) * 1000 + u64::try_from(now.tv_nsec).unwrap_or(0) / 1_000_000
}
