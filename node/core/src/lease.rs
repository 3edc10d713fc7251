//! How long the node may go on with exclusive effects after the broker last heard it.
//!
//! The node counts from when it SENT the heartbeat that was answered, the broker from when it
//! RECEIVED it; see [`usher_shared::lease`] for why the node is always done first.

use std::collections::VecDeque;
use usher_shared::lease::stops_after_ms;
use usher_shared::planted::{self, Bug};
use usher_shared::quantity::Timestamp;

/// Heartbeats that wait for their answer; a broker that is further behind than this is as good as silent.
const IN_FLIGHT: usize = 64;

/// The lease of this node.
///
/// An acknowledgement renews the lease of the whole node, but effects for a team go on only if the
/// team was named on the link that is acknowledged: see [`Lease::link`] and
/// [`crate::holdings::Holdings::may_act`].
#[derive(Debug, Default)]
pub struct Lease {
    lease_ms: u64,
    /// Counts the links, from 1.
    link: u64,
    acknowledged: Acknowledged,
    in_flight: VecDeque<(u64, Timestamp)>,
    granted: Option<Granted>,
}

#[derive(Clone, Copy, Debug)]
struct Granted {
    sent: Timestamp,
    deadline: Timestamp,
    /// The link that it came on.
    link: u64,
}

/// Whether a heartbeat of the current link was answered.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Acknowledged {
    #[default]
    NotYet,
    Yes,
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

/// What an answer came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Renewal {
    /// The lease runs on.
    Renewed,
    /// It was not asked for, or for a heartbeat so old that its lease is over: nothing changed.
    Useless,
    /// The lease had lapsed since an earlier answer on this link. What was confirmed then may have
    /// been given away since: the link must be begun anew, so that the broker looks again.
    Lapsed,
}

impl Lease {
    /// A new link is welcome: answers to heartbeats of the last one no longer count, and leases
    /// granted from now on last `lease_ms`.
    pub fn begin_link(&mut self, lease_ms: u64) {
        self.lease_ms = lease_ms;
        self.link += 1;
        self.acknowledged = Acknowledged::NotYet;
        self.in_flight.clear();
    }

    /// The current link, counted from 1.
    #[must_use]
    pub fn link(&self) -> u64 {
        self.link
    }

    /// The link on which teams must have been named for effects to go on at `now`; `None`: no effects.
    #[must_use]
    pub fn granted_on(&self, now: Timestamp) -> Option<u64> {
        let granted = self.granted.filter(|granted| now < granted.deadline)?;
        if planted::is(Bug::ResumeWithoutConfirmation) {
            return Some(0);
        }
        Some(granted.link)
    }

    /// Heartbeat `seq` is about to be sent. Must be called before the first byte leaves.
    pub fn sent(&mut self, seq: u64, now: Timestamp) {
        if self.in_flight.len() == IN_FLIGHT {
            self.in_flight.pop_front();
        }
        self.in_flight.push_back((seq, now));
    }

    /// Heartbeat `seq` was answered.
    pub fn answered(&mut self, seq: u64, now: Timestamp) -> Renewal {
        let Some(at) = self.in_flight.iter().position(|(sent, _)| *sent == seq) else {
            return Renewal::Useless;
        };
        let Some((_, sent)) = self.in_flight.drain(..=at).next_back() else {
            return Renewal::Useless;
        };
        let sent = if planted::is(Bug::LeaseFromReply) {
            now
        } else {
            sent
        };
        let lasts_ms = if planted::is(Bug::LeaseWithoutMargins) {
            self.lease_ms + self.lease_ms / 8
        } else {
            stops_after_ms(self.lease_ms)
        };
        let deadline = sent.plus(lasts_ms);
        if deadline <= now {
            return Renewal::Useless;
        }
        let lapsed = self.granted.is_none_or(|granted| now >= granted.deadline);
        if lapsed && self.acknowledged == Acknowledged::Yes && !planted::is(Bug::ResumeWithoutConfirmation) {
            return Renewal::Lapsed;
        }
        // Within a link heartbeats are answered in their order, so a deadline never moves back. A new
        // link may have granted a shorter lease, and then that is the one the broker counts by.
        self.acknowledged = Acknowledged::Yes;
        self.granted = Some(Granted {
            sent,
            deadline,
            link: self.link,
        });
        Renewal::Renewed
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

    /// When exclusive effects must have stopped, if the node ever had a lease.
    #[must_use]
    pub fn deadline(&self) -> Option<Timestamp> {
        self.granted.map(|granted| granted.deadline)
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
    use usher_shared::lease::{CLOCK_RATE_PPM, FENCING_MS};

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
        assert_eq!(lease.answered(1, at(1_700)), Renewal::Renewed);
        // 6,000 - 1 % - 500 = 5,440 ms after the sending.
        assert_eq!(lease.standing(at(3_999)), Standing::Fresh);
        assert_eq!(lease.standing(at(4_000)), Standing::Jeopardy);
        assert_eq!(lease.standing(at(6_439)), Standing::Jeopardy);
        assert_eq!(lease.granted_on(at(6_439)), Some(1));
        assert_eq!(lease.standing(at(6_440)), Standing::Lapsed);
        assert_eq!(lease.granted_on(at(6_440)), None);
        assert_eq!(lease.deadline(), Some(at(6_440)));
        assert_eq!(lease.remaining_ms(at(6_000)), 440);
    }

    #[test]
    fn a_late_answer_to_an_old_heartbeat_changes_nothing() {
        let mut lease = leased(6_000);
        lease.sent(1, at(0));
        lease.sent(2, at(1_000));
        assert_eq!(lease.answered(2, at(1_100)), Renewal::Renewed);
        assert_eq!(lease.answered(1, at(1_100)), Renewal::Useless);
        assert_eq!(lease.answered(2, at(1_100)), Renewal::Useless);
        assert_eq!(lease.answered(3, at(1_100)), Renewal::Useless);
        assert_eq!(lease.remaining_ms(at(1_000)), 5_440);
    }

    #[test]
    fn an_answer_whose_lease_is_over_when_it_comes_gives_nothing() {
        let mut lease = leased(6_000);
        lease.sent(1, at(0));
        assert_eq!(lease.answered(1, at(5_440)), Renewal::Useless);
        assert_eq!(lease.deadline(), None);
        // It was no grant, so the next one is the first of this link.
        lease.sent(2, at(6_000));
        assert_eq!(lease.answered(2, at(6_010)), Renewal::Renewed);
    }

    #[test]
    fn answers_from_an_earlier_link_do_not_count() {
        let mut lease = leased(6_000);
        lease.sent(1, at(0));
        lease.begin_link(6_000);
        assert_eq!(lease.answered(1, at(1)), Renewal::Useless);
        assert_eq!(lease.standing(at(1)), Standing::Lapsed);
    }

    #[test]
    fn a_lease_that_lapsed_on_a_link_is_not_renewed_on_it() {
        let mut lease = leased(6_000);
        lease.sent(1, at(0));
        assert_eq!(lease.answered(1, at(10)), Renewal::Renewed);
        lease.sent(2, at(5_000));
        assert_eq!(lease.answered(2, at(5_440)), Renewal::Lapsed);
        assert_eq!(lease.standing(at(5_440)), Standing::Lapsed);
        lease.begin_link(6_000);
        lease.sent(1, at(5_500));
        assert_eq!(lease.answered(1, at(5_510)), Renewal::Renewed);
        assert_eq!(lease.granted_on(at(5_520)), Some(2));
    }

    #[test]
    fn a_lease_outlives_its_link_and_the_next_link_takes_it_over() {
        let mut lease = leased(6_000);
        lease.sent(1, at(0));
        lease.answered(1, at(10));
        lease.begin_link(1_000);
        assert_eq!(lease.link(), 2);
        assert_eq!(lease.granted_on(at(1_000)), Some(1));
        lease.sent(1, at(1_500));
        assert_eq!(lease.answered(1, at(1_510)), Renewal::Renewed);
        // The new link's leases are shorter, and the broker counts by those.
        assert_eq!(lease.remaining_ms(at(1_500)), 490);
        assert_eq!(lease.granted_on(at(1_989)), Some(2));
        assert_eq!(lease.granted_on(at(1_990)), None);
    }

    #[test]
    fn only_so_many_heartbeats_wait_for_their_answers() {
        let mut lease = leased(60_000);
        for seq in 1..=65 {
            lease.sent(seq, at(seq));
        }
        assert_eq!(lease.answered(1, at(70)), Renewal::Useless);
        assert_eq!(lease.answered(2, at(70)), Renewal::Renewed);
    }

    proptest! {
        /// Whatever is sent and answered, and however late, the node is done before a broker that
        /// counted from the receipt, on a clock up to 1 % faster, declares it dead.
        #[test]
        fn the_node_is_always_done_before_the_broker_acts(
            lease_ms in 2_000_u64..60_000,
            steps in prop::collection::vec((0_u64..3_000, 0_u64..2_000, 0_u64..2_000, any::<bool>()), 1..50),
        ) {
            let mut lease = leased(lease_ms);
            let mut now = 0;
            let mut received_last = 0;
            for (seq, (gap, there, back, answered)) in (0_u64..).zip(steps) {
                now += gap;
                lease.sent(seq, at(now));
                received_last = received_last.max(now + there);
                if answered {
                    now += there + back;
                    let _ = lease.answered(seq, at(now));
                }
                let _ = lease.answered(seq.saturating_sub(3), at(now));
            }
            if let Some(deadline) = lease.deadline() {
                let done = deadline.as_millis() + FENCING_MS;
                let dead = received_last + lease_ms - lease_ms * CLOCK_RATE_PPM / 1_000_000;
                prop_assert!(done <= dead);
            }
        }
    }
}
