//! The one inequality that fencing rests on, with both of its ends.
//!
//! The node counts from when it SENT the heartbeat that was answered, the broker from when it RECEIVED the last
//! one. While their clocks run at rates that differ by at most [`CLOCK_RATE_PPM`], a node has always stopped before
//! its broker counts it as dead:
//!
//! `stops_after + FENCING <= lease x (1 - rho)` by the node's clock, and `dead_after >= lease x (1 + rho) + SLACK`
//! by the broker's.

/// How far the rates of two clocks may differ, in parts per million. Crystal clocks stay within 200; virtual
/// machines under steal are worse.
pub const CLOCK_RATE_PPM: u64 = 10_000;
/// What stopping exclusive effects may take, in milliseconds.
pub const FENCING_MS: u64 = 500;
/// What the broker waits on top, for its own scheduling, in milliseconds.
pub const SLACK_MS: u64 = 500;
/// A lease below so many heartbeats would lapse by a few lost packets.
pub const LEAST_HEARTBEATS: u64 = 4;
/// By its own clock a node must be able to miss so many heartbeats before it stops.
const HEARTBEATS_TO_STOP: u64 = 2;

/// A lease that cannot be kept, or cannot be fenced in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum LeaseError {
    /// One lost packet would end it.
    #[error("a lease must be at least {LEAST_HEARTBEATS} heartbeats ({least} ms); it is {lease_ms} ms")]
    Short {
        /// The lease.
        lease_ms: u64,
        /// The least it may be.
        least: u64,
    },
    /// A node would not have stopped when its broker counts it as dead, or would stop too soon to live.
    #[error(
        "a lease of {lease_ms} ms with heartbeats every {heartbeat_ms} ms leaves no time to stop: lease x 0.99 must exceed {FENCING_MS} ms + {HEARTBEATS_TO_STOP} heartbeats; raise the broker's lease"
    )]
    NoTimeToFence {
        /// The lease.
        lease_ms: u64,
        /// The heartbeat.
        heartbeat_ms: u64,
    },
}

/// `lease x rho`, rounded up: both ends give way.
const fn rho_ms(lease_ms: u64) -> u64 {
    lease_ms.saturating_mul(CLOCK_RATE_PPM).div_ceil(1_000_000)
}

/// The node's end: for how many milliseconds by its clock exclusive effects go on after it sent a heartbeat that
/// was answered. Stopping them may take [`FENCING_MS`] more.
#[must_use]
pub const fn stops_after_ms(lease_ms: u64) -> u64 {
    lease_ms
        .saturating_sub(rho_ms(lease_ms))
        .saturating_sub(FENCING_MS)
}

/// The broker's end: how many milliseconds by its clock after it was last heard a node with this lease counts as
/// dead, and how long the grace after a start lasts.
#[must_use]
pub const fn dead_after_ms(lease_ms: u64) -> u64 {
    lease_ms.saturating_add(rho_ms(lease_ms)).saturating_add(SLACK_MS)
}

/// Checks that a node on such a lease has time to stop before it counts as dead.
///
/// # Errors
/// [`LeaseError::NoTimeToFence`] when it has not.
pub const fn check_stop(lease_ms: u64, heartbeat_ms: u64) -> Result<(), LeaseError> {
    if stops_after_ms(lease_ms) > heartbeat_ms.saturating_mul(HEARTBEATS_TO_STOP) {
        Ok(())
    } else {
        Err(LeaseError::NoTimeToFence {
            lease_ms,
            heartbeat_ms,
        })
    }
}

/// Checks a lease before a broker grants it: as nodes check it, and that it outlasts a few lost packets.
///
/// # Errors
/// What is wrong with it.
pub const fn check(lease_ms: u64, heartbeat_ms: u64) -> Result<(), LeaseError> {
    let least = heartbeat_ms.saturating_mul(LEAST_HEARTBEATS);
    if lease_ms < least {
        return Err(LeaseError::Short { lease_ms, least });
    }
    check_stop(lease_ms, heartbeat_ms)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_default_lease_has_its_documented_ends() {
        assert_eq!((stops_after_ms(6_000), dead_after_ms(6_000)), (5_440, 6_560));
        assert_eq!(check(6_000, 1_000), Ok(()));
    }

    #[test]
    fn a_lease_that_is_too_short_is_refused() {
        let short = LeaseError::Short {
            lease_ms: 3_999,
            least: 4_000,
        };
        assert_eq!(check(3_999, 1_000), Err(short));
        assert!(matches!(check(1_000, 250), Err(LeaseError::NoTimeToFence { .. })));
        // 2,530 - 26 - 500 is more than two heartbeats, 2,526 - 26 - 500 is not.
        assert_eq!(check_stop(2_530, 1_000), Ok(()));
        let error = check_stop(2_526, 1_000).unwrap_err().to_string();
        assert!(error.contains("2526 ms") && error.contains("raise"), "{error}");
        assert!(check_stop(100, u64::MAX).is_err());
    }

    proptest! {
        /// In parts of the broker's millisecond: the node's clock runs at `rate` millionths of the broker's.
        #[test]
        fn a_node_has_stopped_before_its_broker_counts_it_as_dead(
            lease_ms in 1_u64..100_000_000,
            off in 0..=CLOCK_RATE_PPM,
            slow in any::<bool>(),
            on_the_way_ms in 0_u64..10_000,
        ) {
            prop_assume!(stops_after_ms(lease_ms) > 0);
            let rate = if slow { 1_000_000 - off } else { 1_000_000 + off };
            let sent_ms = 1_000_u128;
            let stopped = stops_after_ms(lease_ms) + FENCING_MS;
            let stopped_at = sent_ms * 1_000_000 + u128::from(stopped) * 1_000_000 * 1_000_000 / u128::from(rate);
            let dead_at = (sent_ms + u128::from(on_the_way_ms) + u128::from(dead_after_ms(lease_ms))) * 1_000_000;
            prop_assert!(stopped_at < dead_at, "{} of {}", stopped_at, dead_at);
        }
    }
}
