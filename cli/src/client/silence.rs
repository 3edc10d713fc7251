//! Whether the other side is still there. Pure: it is told what time it is.
//!
//! A machine that dies says nothing, and TCP tells only who sends, after minutes. A node pings each
//! connection on a schedule, so one that is overdue is asked, and gone if it does not answer.

use std::time::Duration;
use tokio::time::Instant;

/// How often a node pings when it did not say so.
const PING: Duration = Duration::from_secs(25);
/// A ping that is so late is not waited for any longer: nodes ping in sweeps.
const LATE: Duration = Duration::from_secs(1);
/// An answer takes a round trip; with this one a network may lose a packet and send it again.
const ANSWER: Duration = Duration::from_secs(3);

/// How long nothing has been heard on one connection.
#[derive(Debug)]
pub(crate) struct Silence {
    ping: Duration,
    heard: Instant,
    asked: Option<Instant>,
}

/// What is to be done about it.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Due {
    /// Nothing yet.
    Nothing,
    /// Send a ping.
    Ask,
    /// Nobody is there.
    GiveUp,
}

impl Silence {
    /// A connection on which something was heard `now`, from a node that pings each `ping`.
    pub(crate) fn new(ping: Option<Duration>, now: Instant) -> Self {
        Self {
            ping: ping.unwrap_or(PING),
            heard: now,
            asked: None,
        }
    }

    /// Any frame counts.
    pub(crate) fn heard(&mut self, now: Instant) {
        self.heard = now;
        self.asked = None;
    }

    /// When to look again.
    pub(crate) fn look_at(&self) -> Instant {
        match self.asked {
            Some(asked) => asked + ANSWER,
            None => self.heard + self.ping + LATE,
        }
    }

    /// What is to be done now. A process that stood still asks first, however long that was.
    pub(crate) fn due(&mut self, now: Instant) -> Due {
        if now < self.look_at() {
            return Due::Nothing;
        }
        if self.asked.is_some() {
            return Due::GiveUp;
        }
        self.asked = Some(now);
        Due::Ask
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    #[test]
    fn a_node_that_falls_silent_is_asked_and_then_given_up_in_less_than_30_s() {
        let begun = Instant::now();
        let mut silence = Silence::new(None, begun);
        assert_eq!(silence.look_at(), after(begun, 26));
        assert_eq!(silence.due(after(begun, 25)), Due::Nothing);
        assert_eq!(silence.due(after(begun, 26)), Due::Ask);
        assert_eq!(silence.look_at(), after(begun, 29));
        assert_eq!(silence.due(after(begun, 28)), Due::Nothing);
        assert_eq!(silence.due(after(begun, 29)), Due::GiveUp);
    }

    #[test]
    fn whatever_is_heard_begins_the_wait_anew() {
        let begun = Instant::now();
        let mut silence = Silence::new(Some(Duration::from_secs(2)), begun);
        assert_eq!(silence.due(after(begun, 3)), Due::Ask);
        silence.heard(after(begun, 4));
        assert_eq!(silence.due(after(begun, 6)), Due::Nothing);
        assert_eq!(silence.due(after(begun, 7)), Due::Ask);
    }

    #[test]
    fn a_process_that_stood_still_asks_before_it_gives_up() {
        let begun = Instant::now();
        let mut silence = Silence::new(None, begun);
        assert_eq!(silence.due(after(begun, 3_600)), Due::Ask);
        assert_eq!(silence.due(after(begun, 3_602)), Due::Nothing);
        silence.heard(after(begun, 3_602));
        assert_eq!(silence.due(after(begun, 3_603)), Due::Nothing);
    }
}
