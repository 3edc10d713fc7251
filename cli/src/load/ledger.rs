//! Which messages a team mate should have seen, and did not, or saw twice. Pure: time comes in.
//!
//! A message is due at every team mate that has ever been connected, away or not. [`SETTLE_MS`] after it
//! was sent each of these deliveries is one of three, so that they add up to what was due:
//!
//! - **received**: it arrived.
//! - **lost**: it did not arrive although both kept a connection from the sending to the judgement, the
//!   receiver for [`JOINED_MS`] before. A client that moved without a gap (`usher.v1`) kept its connection.
//! - **missed**: it did not arrive, and one of the two was without a connection then or meanwhile, or the
//!   receiver had just come. That is what an interruption costs where nothing is replayed.
//!
//! Beside these:
//!
//! - **doubled**: it arrived again.
//! - **late**: it arrived after it was judged.

use std::collections::VecDeque;

/// A connection that is younger may not be in its team's list yet.
pub(crate) const JOINED_MS: u64 = 500;
/// A message that takes longer is as good as lost to a chat; it also bounds what is remembered.
pub(crate) const SETTLE_MS: u64 = 5_000;

/// What became of the messages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Counts {
    /// Messages handed to a connection.
    pub(crate) sent: u64,
    /// Deliveries that these messages should have made: received, lost, missed, or not judged yet.
    pub(crate) due: u64,
    /// Messages that arrived for the first time, at any team mate.
    pub(crate) received: u64,
    /// See the module.
    pub(crate) lost: u64,
    /// See the module.
    pub(crate) missed: u64,
    /// See the module.
    pub(crate) doubled: u64,
    /// See the module.
    pub(crate) late: u64,
    /// Messages that came back to their own sender.
    pub(crate) echoed: u64,
}

impl Counts {
    /// The sum of two counts.
    pub(crate) fn plus(self, other: Self) -> Self {
        Self {
            sent: self.sent + other.sent,
            due: self.due + other.due,
            received: self.received + other.received,
            lost: self.lost + other.lost,
            missed: self.missed + other.missed,
            doubled: self.doubled + other.doubled,
            late: self.late + other.late,
            echoed: self.echoed + other.echoed,
        }
    }
}

/// What an arrival was.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Arrival {
    /// The first of its message at its receiver, in time.
    Good,
    /// Doubled, late, an echo, or nothing that was ever sent.
    Odd,
}

/// One team's messages.
#[derive(Debug)]
pub(crate) struct Ledger {
    members: Vec<Member>,
    counts: Counts,
}

#[derive(Debug, Default)]
struct Member {
    /// Since when it has had a connection without a break.
    connected_ms: Option<u64>,
    /// Whether it ever had one: nothing is due at a client that has not come yet.
    came: bool,
    /// The number of the first message in `open`.
    first: u64,
    /// Its messages that are not judged yet, in order of their numbers.
    open: VecDeque<Message>,
}

#[derive(Debug)]
struct Message {
    sent_ms: u64,
    /// Who was in the team.
    due: Bits,
    /// Of these, who is without an excuse.
    owed: Bits,
    got: Bits,
}

impl Ledger {
    /// A team of `members`, none of them connected.
    pub(crate) fn new(members: usize) -> Self {
        let mut list = Vec::new();
        list.resize_with(members, Member::default);
        Self {
            members: list,
            counts: Counts::default(),
        }
    }

    /// A member has a connection again, or for the first time.
    pub(crate) fn connected(&mut self, member: usize, now_ms: u64) {
        self.members[member].connected_ms = Some(now_ms);
        self.members[member].came = true;
    }

    /// A member is without a connection: what was under way to it or from it is in doubt.
    pub(crate) fn disconnected(&mut self, member: usize) {
        self.members[member].connected_ms = None;
        for (sender, list) in self.members.iter_mut().enumerate() {
            for message in &mut list.open {
                if sender == member {
                    message.owed.keep_only(&message.got);
                } else if !message.got.has(member) {
                    message.owed.clear(member);
                }
            }
        }
    }

    /// A member sends; returns the message's number.
    pub(crate) fn send(&mut self, sender: usize, now_ms: u64) -> u64 {
        let (mut due, mut owed) = (Bits::new(self.members.len()), Bits::new(self.members.len()));
        let others = self
            .members
            .iter()
            .enumerate()
            .filter(|(member, _)| *member != sender);
        for (member, state) in others.filter(|(_, state)| state.came) {
            due.set(member);
            self.counts.due += 1;
            let joined = state
                .connected_ms
                .is_some_and(|since| since + JOINED_MS <= now_ms);
            if joined {
                owed.set(member);
            }
        }
        let got = Bits::new(self.members.len());
        let list = &mut self.members[sender];
        list.open.push_back(Message {
            sent_ms: now_ms,
            due,
            owed,
            got,
        });
        self.counts.sent += 1;
        list.first + list.open.len() as u64 - 1
    }

    /// A message arrived.
    pub(crate) fn receive(&mut self, receiver: usize, sender: usize, number: u64) -> Arrival {
        if sender == receiver {
            self.counts.echoed += 1;
            return Arrival::Odd;
        }
        let Some(list) = self.members.get_mut(sender) else {
            return Arrival::Odd;
        };
        let Some(at) = number.checked_sub(list.first) else {
            self.counts.late += 1;
            return Arrival::Odd;
        };
        let at = usize::try_from(at).unwrap_or(usize::MAX);
        let Some(message) = list.open.get_mut(at) else {
            return Arrival::Odd;
        };
        if message.got.has(receiver) {
            self.counts.doubled += 1;
            return Arrival::Odd;
        }
        message.got.set(receiver);
        self.counts.received += 1;
        Arrival::Good
    }

    /// Judges what is old enough.
    pub(crate) fn settle(&mut self, now_ms: u64) {
        for list in &mut self.members {
            while list
                .open
                .front()
                .is_some_and(|message| message.sent_ms + SETTLE_MS <= now_ms)
            {
                if let Some(message) = list.open.pop_front() {
                    list.first += 1;
                    message.judge(&mut self.counts);
                }
            }
        }
    }

    /// Judges the rest: the run is over.
    pub(crate) fn finish(&mut self) {
        for list in &mut self.members {
            list.first += list.open.len() as u64;
            for message in list.open.drain(..) {
                message.judge(&mut self.counts);
            }
        }
    }

    /// Messages that are still owed to somebody.
    pub(crate) fn outstanding(&self) -> u64 {
        let open = self.members.iter().flat_map(|list| &list.open);
        open.map(|message| message.owed.missing(&message.got)).sum()
    }

    /// What became of the messages so far.
    pub(crate) fn counts(&self) -> Counts {
        self.counts
    }
}

impl Message {
    fn judge(&self, counts: &mut Counts) {
        let lost = self.owed.missing(&self.got);
        counts.lost += lost;
        counts.missed += self.due.missing(&self.got) - lost;
    }
}

/// A set of members.
#[derive(Clone, Debug)]
struct Bits(Box<[u64]>);

impl Bits {
    fn new(members: usize) -> Self {
        Self(vec![0; members.div_ceil(64)].into_boxed_slice())
    }

    fn has(&self, member: usize) -> bool {
        self.0
            .get(member / 64)
            .is_some_and(|word| word >> (member % 64) & 1 == 1)
    }

    fn set(&mut self, member: usize) {
        if let Some(word) = self.0.get_mut(member / 64) {
            *word |= 1 << (member % 64);
        }
    }

    fn clear(&mut self, member: usize) {
        if let Some(word) = self.0.get_mut(member / 64) {
            *word &= !(1 << (member % 64));
        }
    }

    /// How many are in here and not in `other`.
    fn missing(&self, other: &Self) -> u64 {
        let words = self.0.iter().zip(&other.0);
        words
            .map(|(mine, theirs)| u64::from((mine & !theirs).count_ones()))
            .sum()
    }

    /// Takes out what is not in `other`.
    fn keep_only(&mut self, other: &Self) {
        for (mine, theirs) in self.0.iter_mut().zip(&other.0) {
            *mine &= theirs;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Three members, connected long enough ago.
    fn team() -> Ledger {
        let mut ledger = Ledger::new(3);
        for member in 0..3 {
            ledger.connected(member, 0);
        }
        ledger
    }

    #[test]
    fn a_message_that_everybody_got_is_neither_lost_nor_doubled() {
        let mut ledger = team();
        let number = ledger.send(0, 1_000);
        assert_eq!(ledger.receive(1, 0, number), Arrival::Good);
        assert_eq!(ledger.outstanding(), 1);
        assert_eq!(ledger.receive(2, 0, number), Arrival::Good);
        ledger.settle(6_000);
        assert_eq!(
            ledger.counts(),
            Counts {
                sent: 1,
                due: 2,
                received: 2,
                ..Counts::default()
            }
        );
    }

    #[test]
    fn a_message_that_a_connected_mate_did_not_get_is_lost_once_it_is_judged() {
        let mut ledger = team();
        let number = ledger.send(0, 1_000);
        let _ = ledger.receive(1, 0, number);
        ledger.settle(5_999);
        assert_eq!((ledger.counts().lost, ledger.outstanding()), (0, 1));
        ledger.settle(6_000);
        assert_eq!((ledger.counts().lost, ledger.outstanding()), (1, 0));
        assert_eq!(ledger.receive(2, 0, number), Arrival::Odd);
        assert_eq!((ledger.counts().late, ledger.counts().received), (1, 1));
    }

    #[test]
    fn a_second_arrival_is_doubled() {
        let mut ledger = team();
        let number = ledger.send(0, 1_000);
        let _ = ledger.receive(1, 0, number);
        let _ = ledger.receive(1, 0, number);
        assert_eq!((ledger.counts().received, ledger.counts().doubled), (1, 1));
    }

    #[test]
    fn what_was_under_way_to_or_from_a_broken_connection_is_missed_and_not_lost() {
        let mut ledger = team();
        let _ = ledger.send(0, 1_000);
        ledger.disconnected(2);
        ledger.connected(2, 1_200);
        let from_two = ledger.send(2, 1_300);
        let _ = ledger.receive(0, 2, from_two);
        ledger.disconnected(2);
        ledger.settle(10_000);
        // To 2, and from 2 to 1. What 1 did not get from 0 is lost: both kept their connections.
        assert_eq!((ledger.counts().missed, ledger.counts().lost), (2, 1));
        adds_up(&ledger);
    }

    fn adds_up(ledger: &Ledger) {
        let counts = ledger.counts();
        assert_eq!(
            counts.due,
            counts.received + counts.lost + counts.missed,
            "{counts:?}"
        );
    }

    #[test]
    fn what_is_sent_while_a_mate_is_away_or_has_just_come_is_missed_and_not_lost() {
        let mut ledger = team();
        ledger.disconnected(1);
        ledger.disconnected(2);
        ledger.connected(2, 900);
        let number = ledger.send(0, 1_399);
        assert_eq!(ledger.receive(2, 0, number), Arrival::Good);
        let _ = ledger.send(0, 1_400);
        ledger.settle(10_000);
        let counts = ledger.counts();
        // 1 was away for both; 2 was there for the second and did not get it.
        assert_eq!((counts.received, counts.lost, counts.missed), (1, 1, 2));
        adds_up(&ledger);
    }

    #[test]
    fn nothing_is_due_at_a_mate_that_has_not_come_yet_and_the_end_judges_all() {
        let mut ledger = Ledger::new(3);
        ledger.connected(0, 0);
        ledger.connected(1, 0);
        let number = ledger.send(0, 1_000);
        assert_eq!(ledger.receive(1, 0, number), Arrival::Good);
        ledger.disconnected(1);
        let _ = ledger.send(0, 1_100);
        ledger.finish();
        let counts = ledger.counts();
        assert_eq!((counts.due, counts.received, counts.missed), (2, 1, 1));
        adds_up(&ledger);
    }

    #[test]
    fn an_echo_is_told_apart() {
        let mut ledger = team();
        let number = ledger.send(0, 1_000);
        assert_eq!(ledger.receive(0, 0, number), Arrival::Odd);
        assert_eq!(ledger.counts().echoed, 1);
    }

    #[test]
    fn numbers_go_on_after_judgement_and_nonsense_is_ignored() {
        let mut ledger = Ledger::new(70);
        for member in 0..70 {
            ledger.connected(member, 0);
        }
        assert_eq!(ledger.send(69, 1_000), 0);
        ledger.settle(9_000);
        assert_eq!(ledger.counts().lost, 69);
        assert_eq!(ledger.send(69, 9_000), 1);
        assert_eq!(ledger.receive(0, 69, 7), Arrival::Odd);
        assert_eq!(ledger.receive(0, 99, 0), Arrival::Odd);
        assert_eq!(ledger.receive(64, 69, 1), Arrival::Good);
        assert_eq!(ledger.outstanding(), 68);
    }
}
