//! What a node does once its lease is over.
//!
//! Connections are worth keeping while the broker is away: it comes back, and nobody has moved. But
//! a node that is itself cut off keeps its clients from their new owner. It cannot tell the two
//! apart alone, so while no broker takes its connection it asks up to three peers whether they hear
//! one. One has, for
//! longer than it takes any node to come back: the node is cut off, and closes its connections, paced, so that their clients go where
//! their teams are. None does: it holds on without limit.
//!
//! Where two owners are worse than none, a pool fences instead: everything is closed as soon as the
//! lease is over, and a watchdog ends a process that is too frozen to do so.

use usher_shared::planted::{self, Bug};
use usher_shared::quantity::{RETURNS_PER_S, Timestamp};

use usher_shared::lease::FENCING_MS;

/// How often the peers are asked.
const ASK_EVERY_MS: u64 = 1_000;
/// A peer that has not answered by then does not hear the broker either.
pub const ANSWER_WITHIN_MS: u64 = 500;
/// For how long peers must have heard the broker: after a restart of the broker some nodes are back
/// before others, each within its longest wait between two dials (2 s) and its dial (5 s).
pub const CUT_OFF_AFTER_MS: u64 = 8_000;
/// How often a node that is cut off closes some of its connections.
const CLOSE_EVERY_MS: u64 = 100;
/// It takes at least this long for all of them.
const CLOSE_OVER_MS: u64 = 5_000;
/// And no more than this many a second.
pub const CLOSES_PER_S: u64 = RETURNS_PER_S as u64;

/// What a node does with its connections when its lease is over.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum OnLapse {
    /// It keeps them, without exclusive effects, until peers say that it alone is cut off.
    #[default]
    Hold,
    /// It closes them all at once: for pools where two owners are worse than none.
    Fence,
}

/// How a node is with its broker, as far as this decision goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Touch {
    /// The lease runs, or never did.
    Leased,
    /// The lease is over, and a broker takes this node's connections: it is about to tell it more, or
    /// cannot just now, as when its disk fails. A broker that can be reached would be no better reached
    /// by the clients alone.
    Rejoining,
    /// The lease is over and there is no link.
    Lost,
    /// The lease is over, and another process has this one's name: nobody needs to be asked.
    Displaced,
}

/// What is to be done now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Step {
    /// Nothing.
    Nothing,
    /// Ask the peers, and say what came of it with [`Lapse::peers_answered`].
    AskPeers,
    /// Close so many connections with 4312.
    Close(u32),
    /// Close all of them with 4312, now.
    CloseAll,
}

/// What a node does once its lease is over.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Lapse {
    on_lapse: OnLapse,
    state: State,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum State {
    #[default]
    InTouch,
    Holding {
        ask_at: Timestamp,
        /// Since when peers have said that they hear the broker, each time they were asked.
        heard_since: Option<Timestamp>,
    },
    CutOff {
        close_at: Timestamp,
        each_time: u32,
    },
    /// Everything is being closed.
    Fencing,
    /// Everything was closed.
    Fenced,
}

impl Lapse {
    /// A node that does this.
    #[must_use]
    pub fn new(on_lapse: OnLapse) -> Self {
        Self {
            on_lapse,
            state: State::InTouch,
        }
    }

    /// What is to be done at `now`, with so many connections open.
    pub fn step(&mut self, touch: Touch, connections: u32, now: Timestamp) -> Step {
        if touch == Touch::Leased {
            self.state = State::InTouch;
            return Step::Nothing;
        }
        if self.on_lapse == OnLapse::Fence {
            if matches!(self.state, State::Fencing | State::Fenced) {
                return Step::Nothing;
            }
            self.state = State::Fencing;
            return Step::CloseAll;
        }
        if touch == Touch::Rejoining {
            self.state = State::InTouch;
            return Step::Nothing;
        }
        if touch == Touch::Displaced && !matches!(self.state, State::CutOff { .. }) {
            self.give_up(connections, now);
        }
        match &mut self.state {
            State::InTouch | State::Fencing | State::Fenced => {
                self.state = State::Holding {
                    ask_at: now.plus(ASK_EVERY_MS),
                    heard_since: None,
                };
                Step::AskPeers
            }
            State::Holding { heard_since, ask_at } => {
                let heard_ms = heard_since.map_or(0, |since| now.since(since));
                let unasked = planted::is(Bug::CutOffUnasked);
                if heard_ms >= CUT_OFF_AFTER_MS || unasked {
                    self.give_up(connections, now);
                    return self.step(touch, connections, now);
                }
                if now < *ask_at {
                    return Step::Nothing;
                }
                *ask_at = now.plus(ASK_EVERY_MS);
                Step::AskPeers
            }
            State::CutOff { close_at, each_time } => {
                if connections == 0 || now < *close_at {
                    return Step::Nothing;
                }
                *close_at = now.plus(CLOSE_EVERY_MS);
                if planted::is(Bug::CutOffAtOnce) {
                    return Step::CloseAll;
                }
                Step::Close(*each_time)
            }
        }
    }

    /// From here on connections are closed, paced.
    fn give_up(&mut self, connections: u32, now: Timestamp) {
        let all_ms = CLOSE_OVER_MS.max(u64::from(connections) * 1_000 / CLOSES_PER_S);
        let each = (u64::from(connections) * CLOSE_EVERY_MS).div_ceil(all_ms);
        self.state = State::CutOff {
            close_at: now,
            each_time: u32::try_from(each).unwrap_or(u32::MAX).max(1),
        };
    }

    /// Everything that [`Step::CloseAll`] asked to be closed is gone.
    pub fn closed(&mut self) {
        if self.state == State::Fencing {
            self.state = State::Fenced;
        }
    }

    /// Whether any of the peers that were asked last hears the broker.
    pub fn peers_answered(&mut self, hears: Hears, now: Timestamp) {
        if let State::Holding { heard_since, .. } = &mut self.state {
            *heard_since = match hears {
                Hears::No => None,
                Hears::Yes => heard_since.or(Some(now)),
            };
        }
    }

    /// Whether clients had better go back to the broker: it is this node that cannot hear it.
    #[must_use]
    pub fn is_cut_off(&self) -> bool {
        matches!(self.state, State::CutOff { .. })
    }

    /// Whether this node serves nobody without a lease.
    #[must_use]
    pub fn fences(&self) -> bool {
        self.on_lapse == OnLapse::Fence
    }

    /// When a process that has not fenced by then must be ended from outside its runtime, given when
    /// its lease is over. `None`: nothing is owed.
    #[must_use]
    pub fn fence_by(&self, deadline: Option<Timestamp>) -> Option<Timestamp> {
        if self.on_lapse == OnLapse::Hold || self.state == State::Fenced || planted::is(Bug::NoWatchdog) {
            return None;
        }
        deadline.map(|deadline| deadline.plus(FENCING_MS))
    }
}

/// Whether any of the peers that were asked hears the broker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hears {
    /// At least one.
    Yes,
    /// None, or none answered.
    No,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    /// Steps each 100 ms from `from` to `to` while peers answer `hears`; how many were closed.
    fn lost(lapse: &mut Lapse, hears: Hears, connections: &mut u32, from: u64, to: u64) -> u32 {
        let before = *connections;
        for ms in (from..to).step_by(100) {
            match lapse.step(Touch::Lost, *connections, at(ms)) {
                Step::AskPeers => lapse.peers_answered(hears, at(ms)),
                Step::Close(many) => *connections -= many.min(*connections),
                Step::CloseAll => *connections = 0,
                Step::Nothing => {}
            }
        }
        before - *connections
    }

    #[test]
    fn a_node_whose_peers_do_not_hear_the_broker_either_holds_without_limit() {
        let mut lapse = Lapse::new(OnLapse::Hold);
        let mut connections = 1_000;
        assert_eq!(lost(&mut lapse, Hears::No, &mut connections, 0, 3_600_000), 0);
        assert!(!lapse.is_cut_off());
    }

    #[test]
    fn a_process_whose_name_another_has_gives_its_connections_up_without_asking() {
        let mut lapse = Lapse::new(OnLapse::Hold);
        let mut connections = 1_000;
        for ms in (0..6_000).step_by(100) {
            match lapse.step(Touch::Displaced, connections, at(ms)) {
                Step::Close(many) => connections -= many.min(connections),
                Step::Nothing => {}
                other => panic!("{other:?}"),
            }
            assert!(ms > 4_000 || connections > 0, "all at once");
        }
        assert_eq!(connections, 0);
        assert!(lapse.is_cut_off());
        assert_eq!(
            Lapse::new(OnLapse::Fence).step(Touch::Displaced, 5, at(0)),
            Step::CloseAll
        );
    }

    #[test]
    fn a_node_that_is_cut_off_alone_closes_its_connections_at_a_bounded_pace() {
        let mut lapse = Lapse::new(OnLapse::Hold);
        let mut connections = 1_000;
        assert_eq!(
            lost(&mut lapse, Hears::Yes, &mut connections, 0, CUT_OFF_AFTER_MS),
            0
        );
        let begun = CUT_OFF_AFTER_MS;
        let first_second = lost(&mut lapse, Hears::Yes, &mut connections, begun, begun + 1_000);
        assert_eq!(first_second, 200);
        assert!(lapse.is_cut_off());
        lost(
            &mut lapse,
            Hears::Yes,
            &mut connections,
            begun + 1_000,
            begun + 5_000,
        );
        assert_eq!(connections, 0);
        let mut many = 20_000;
        let mut lapse = Lapse::new(OnLapse::Hold);
        lost(&mut lapse, Hears::Yes, &mut many, 0, CUT_OFF_AFTER_MS);
        assert_eq!(
            lost(&mut lapse, Hears::Yes, &mut many, begun, begun + 10_000),
            2_000
        );
    }

    #[test]
    fn however_often_it_is_looked_at_peers_are_asked_once_a_second_and_the_pace_holds() {
        let mut lapse = Lapse::new(OnLapse::Hold);
        let mut asked = Vec::new();
        for ms in 0..CUT_OFF_AFTER_MS {
            if lapse.step(Touch::Lost, 1_000, at(ms)) == Step::AskPeers {
                lapse.peers_answered(Hears::Yes, at(ms));
                asked.push(ms);
            }
        }
        assert_eq!(asked, (0..CUT_OFF_AFTER_MS).step_by(1_000).collect::<Vec<_>>());
        let mut connections = 1_000;
        for ms in CUT_OFF_AFTER_MS..CUT_OFF_AFTER_MS + 1_000 {
            if let Step::Close(many) = lapse.step(Touch::Lost, connections, at(ms)) {
                connections -= many;
            }
        }
        assert_eq!(connections, 800);
        assert_eq!(
            lapse.step(Touch::Lost, 0, at(CUT_OFF_AFTER_MS + 2_000)),
            Step::Nothing,
            "nobody is left"
        );
    }

    #[test]
    fn few_connections_are_spread_too() {
        let mut lapse = Lapse::new(OnLapse::Hold);
        let mut few = 10;
        let begun = CUT_OFF_AFTER_MS;
        lost(&mut lapse, Hears::Yes, &mut few, 0, begun);
        assert_eq!(lost(&mut lapse, Hears::Yes, &mut few, begun, begun + 200), 2);
    }

    #[test]
    fn one_round_without_a_peer_that_hears_begins_the_wait_anew() {
        let mut lapse = Lapse::new(OnLapse::Hold);
        let mut connections = 10;
        lost(
            &mut lapse,
            Hears::Yes,
            &mut connections,
            0,
            CUT_OFF_AFTER_MS - 1_000,
        );
        lost(
            &mut lapse,
            Hears::No,
            &mut connections,
            CUT_OFF_AFTER_MS - 1_000,
            CUT_OFF_AFTER_MS,
        );
        let begun = CUT_OFF_AFTER_MS;
        let closed = lost(
            &mut lapse,
            Hears::Yes,
            &mut connections,
            begun,
            begun + CUT_OFF_AFTER_MS,
        );
        assert_eq!(closed, 0);
        let later = begun + CUT_OFF_AFTER_MS;
        assert!(lost(&mut lapse, Hears::Yes, &mut connections, later, later + 200) > 0);
    }

    #[test]
    fn a_broker_that_is_heard_again_ends_it() {
        let mut lapse = Lapse::new(OnLapse::Hold);
        let mut connections = 100;
        lost(
            &mut lapse,
            Hears::Yes,
            &mut connections,
            0,
            CUT_OFF_AFTER_MS + 1_000,
        );
        assert!(lapse.is_cut_off());
        assert_eq!(
            lapse.step(Touch::Rejoining, connections, at(10_000)),
            Step::Nothing
        );
        assert!(!lapse.is_cut_off());
        assert_eq!(lapse.step(Touch::Lost, connections, at(10_100)), Step::AskPeers);
        assert_eq!(lapse.step(Touch::Leased, connections, at(10_200)), Step::Nothing);
        lapse.peers_answered(Hears::Yes, at(10_300));
        assert_eq!(lapse, Lapse::new(OnLapse::Hold));
    }

    #[test]
    fn a_fencing_node_closes_everything_once_and_owes_it_by_the_end_of_the_fencing_time() {
        let mut lapse = Lapse::new(OnLapse::Fence);
        assert_eq!(lapse.step(Touch::Leased, 5, at(0)), Step::Nothing);
        assert_eq!(lapse.fence_by(None), None);
        assert_eq!(lapse.fence_by(Some(at(1_000))), Some(at(1_000 + FENCING_MS)));
        assert_eq!(lapse.step(Touch::Rejoining, 5, at(1_000)), Step::CloseAll);
        assert_eq!(
            lapse.step(Touch::Lost, 5, at(1_050)),
            Step::Nothing,
            "it is being done"
        );
        assert_eq!(
            lapse.fence_by(Some(at(1_000))),
            Some(at(1_500)),
            "and not done yet"
        );
        lapse.closed();
        assert_eq!(lapse.step(Touch::Lost, 0, at(1_100)), Step::Nothing);
        assert_eq!(lapse.fence_by(Some(at(1_000))), None);
        assert!(lapse.fences() && !lapse.is_cut_off());
        assert_eq!(lapse.step(Touch::Leased, 5, at(2_000)), Step::Nothing);
        assert_eq!(lapse.fence_by(Some(at(3_000))), Some(at(3_500)));
        let holds = Lapse::new(OnLapse::Hold);
        assert_eq!(holds.fence_by(Some(at(1_000))), None);
        assert!(!holds.fences());
    }
}
