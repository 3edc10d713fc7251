//! How long the node may go on with exclusive effects after the broker last heard it.
//!
//! The node counts from when it SENT the heartbeat that was answered, the broker from when it
//! RECEIVED it; with clocks that differ by at most [`RHO_PERCENT`] the node is always done first.

use std::collections::VecDeque;
use usher_shared::quantity::Timestamp;

/// How far the rates of two clocks may differ. Crystal clocks stay within 0.02 %; virtual machines
/// under steal are worse.
pub const RHO_PERCENT: u64 = 1;
/// What stopping exclusive effects may take.
pub const FENCING_MS: u64 = 500;
/// Heartbeats that wait for their answer; a broker that is further behind than this is as good as silent.
const IN_FLIGHT: usize = 64;

/// The lease of this node.
#[derive(Debug, Default)]
pub struct Lease {
    lease_ms: u64,
    in_flight: VecDeque<(u64, Timestamp)>,
    granted: Option<Granted>,
}

#[derive(Clone, Copy, Debug)]
struct Granted {
    sent: Timestamp,
    deadline: Timestamp,
}

/// How the lease stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Answered lately.
    Fresh,
    /// Half of the lease went by without an answer: time to try the other brokers.
    Jeopardy,
    /// Over, or never granted: no exclusive effects.
    Lapsed,
}

impl Lease {
    /// A new link is welcome: answers to heartbeats of the last one no longer count, and leases
    /// granted from now on last `lease_ms`.
    pub fn begin_link(&mut self, lease_ms: u64) {
        self.lease_ms = lease_ms;
        self.in_flight.clear();
    }

    /// Heartbeat `seq` is about to be sent. Must be called before the first byte leaves.
    pub fn sent(&mut self, seq: u64, now: Timestamp) {
        if self.in_flight.len() == IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back((seq, now));
    }

    /// Heartbeat `seq` was answered. Answers that were not asked for change nothing.
    pub fn answered(&mut self, seq: u64) {
        let Some(at) = self.in_flight.iter().position(|(sent, _)| *sent == seq) else {
            return;
        };
        let Some((_, sent)) = self.in_flight.drain(..=at).next_back() else {
            return;
        };
        let rho_ms = self.lease_ms.saturating_mul(RHO_PERCENT).div_ceil(100);
        let lasts_ms = self.lease_ms.saturating_sub(rho_ms).saturating_sub(FENCING_MS);
        let deadline = sent.plus(lasts_ms);
        let earlier = self.granted;
        self.granted = Some(Granted {
            sent: earlier.map_or(sent, |earlier| earlier.sent.max(sent)),
            deadline: earlier.map_or(deadline, |earlier| earlier.deadline.max(deadline)),
        });
    }

    /// How the lease stands at `now`.
    #[must_use]
    pub fn standing(&self, now: Timestamp) -> Standing {
        match self.granted {
            Some(granted) if now < granted.deadline => {
                if now.since(granted.sent) * 2 >= self.lease_ms {
                    Standing::Jeopardy
                } else {
                    Standing::Fresh
                }
            }
            _ => Standing::Lapsed,
        }
    }

    /// Milliseconds until the lease lapses.
    #[must_use]
    pub fn remaining_ms(&self, now: Timestamp) -> u64 {
        self.granted.map_or(0, |granted| granted.deadline.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    fn leased(lease_ms: u64) -> Lease {
        let mut lease = Lease::default();
        lease.begin_link(lease_ms);
        lease
    }

    #[test]
    fn a_lease_counts_from_the_sending_of_the_answered_heartbeat() {
        let mut lease = leased(6_000);
        assert_eq!(lease.standing(at(0)), Standing::Lapsed);
        lease.sent(1, at(1_000));
        assert_eq!(lease.standing(at(1_000)), Standing::Lapsed);
        lease.answered(1);
        // 6,000 - 1 % - 500 = 5,440 ms after the sending.
        assert_eq!(lease.standing(at(3_999)), Standing::Fresh);
        assert_eq!(lease.standing(at(4_000)), Standing::Jeopardy);
        assert_eq!(lease.standing(at(6_439)), Standing::Jeopardy);
        assert_eq!(lease.standing(at(6_440)), Standing::Lapsed);
        assert_eq!(lease.remaining_ms(at(6_000)), 440);
    }

    #[test]
    fn a_late_answer_to_an_old_heartbeat_never_moves_the_deadline_back() {
        let mut lease = leased(6_000);
        lease.sent(1, at(0));
        lease.sent(2, at(1_000));
        lease.answered(2);
        lease.answered(1);
        lease.answered(2);
        assert_eq!(lease.remaining_ms(at(1_000)), 5_440);
        lease.begin_link(1_000);
        lease.sent(1, at(1_500));
        lease.answered(1);
        assert_eq!(lease.remaining_ms(at(1_500)), 4_940);
    }

    #[test]
    fn answers_from_an_earlier_link_do_not_count() {
        let mut lease = leased(6_000);
        lease.sent(1, at(0));
        lease.begin_link(6_000);
        lease.answered(1);
        assert_eq!(lease.standing(at(1)), Standing::Lapsed);
    }

    proptest! {
        /// Whatever is sent and answered in whatever order, the node is done before a broker that
        /// counted from the receipt, on a clock up to 1 % faster, declares it dead.
        #[test]
        fn the_node_is_always_done_before_the_broker_acts(
            lease_ms in 2_000_u64..60_000,
            steps in prop::collection::vec((0_u64..3_000, 0_u64..2_000, any::<bool>()), 1..50),
        ) {
            let mut lease = leased(lease_ms);
            let mut now = 0;
            let mut received_last = None;
            for (seq, (gap, delay, answered)) in (0_u64..).zip(steps) {
                now += gap;
                lease.sent(seq, at(now));
                received_last = Some(received_last.unwrap_or(0).max(now + delay));
                if answered {
                    lease.answered(seq);
                }
                let before = lease.remaining_ms(at(0));
                lease.answered(seq.saturating_sub(3));
                prop_assert!(lease.remaining_ms(at(0)) >= before);
            }
            let done = lease.remaining_ms(at(0)) + FENCING_MS;
            let dead = received_last.unwrap_or(0) + lease_ms - lease_ms * RHO_PERCENT / 100;
            prop_assert!(lease.remaining_ms(at(0)) == 0 || done <= dead);
        }
    }
}
