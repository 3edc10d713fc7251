//! What waits for the store, and for which of its batches.
//!
//! Writes collect in the open batch while the one before is being committed, so that the store is
//! flushed as often as the disk allows and no oftener. An effect that must not be seen before the
//! writes ahead of it are durable waits behind the batch they went into; effects go out in their
//! order. With nothing to write, everything passes at once.
//!
//! A store may fail for hours. The open batch then holds the newest record of each key and no more; what is to be
//! said on a link goes with the link, and an answer with whoever waited for it.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap, VecDeque};
use usher_shared::id::{NodeId, OperationId, TeamId};
use usher_shared::link::ToNode;
use usher_shared::planted::{self, Bug};

use crate::command::Command;
use crate::event::LinkId;
use crate::record::Record;

/// One thing to carry out; `R` is how a request is answered.
#[derive(Debug)]
pub enum Effect<R> {
    /// A command of the core; never [`Command::Write`] or [`Command::Answer`], which the loop turns
    /// into a record of the open batch and into [`Effect::Reply`].
    Command(Box<Command>),
    /// Hands a request its answer.
    Reply(R),
}

/// Numbers one batch, from 1.
type BatchNumber = u64;

/// A place in the open batch.
type Place = u64;

/// What a record is about: a later one of the same key makes an earlier one of the same batch void.
#[derive(Debug, PartialEq, Eq, Hash)]
enum Key {
    Epochs,
    Term,
    Team(TeamId),
    Node(NodeId),
    Operation(OperationId),
}

impl Key {
    fn of(record: &Record) -> Self {
        match record {
            Record::Epochs { .. } => Self::Epochs,
            Record::Term(_) => Self::Term,
            Record::Team(id, _) => Self::Team(id.clone()),
            Record::Node(id, _) => Self::Node(id.clone()),
            Record::Operation(id, _) => Self::Operation(id.clone()),
        }
    }
}

/// Whether other records rest on this one: a store that is cut within a batch must have no team under an epoch that
/// is not reserved, or at a node that it does not know.
const fn is_foundation(record: &Record) -> bool {
    match record {
        Record::Epochs { .. } | Record::Term(_) => true,
        Record::Node(_, record) => record.is_some(),
        Record::Operation(_, record) => record.is_some(),
        Record::Team(..) => false,
    }
}

/// What waits for the store. It knows neither the store nor a clock.
#[derive(Debug)]
pub struct Pipeline<R> {
    /// Writes for the batch after `closed`, in their order: one for each key.
    open: BTreeMap<Place, Record>,
    /// Where the record of a key stands in it.
    places: HashMap<Key, Place>,
    next_place: Place,
    /// The newest batch that was handed to the store.
    closed: BatchNumber,
    /// The newest batch that is durable: `closed`, or the one before while `closed` is in flight.
    durable: BatchNumber,
    /// In order, each with the batch that it waits for; the numbers never fall.
    queued: VecDeque<(BatchNumber, Effect<R>)>,
    /// How many queued effects each link has, so that an acknowledgement overtakes none of its own.
    queued_by_link: HashMap<LinkId, usize>,
    pace: Pace,
}

/// Whether the store keeps up.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Pace {
    /// It does.
    #[default]
    Steady,
    /// It fails, or has been at one batch for long. Acknowledgements then overtake what only gives
    /// a node more: a bad disk must not cost healthy nodes their lease.
    Stalled,
}

impl<R> Default for Pipeline<R> {
    fn default() -> Self {
        Self {
            open: BTreeMap::new(),
            places: HashMap::new(),
            next_place: 0,
            closed: 0,
            durable: 0,
            queued: VecDeque::new(),
            queued_by_link: HashMap::new(),
            pace: Pace::default(),
        }
    }
}

impl<R> Pipeline<R> {
    /// Puts a write into the open batch, in place of an earlier one of its key. What others rest on keeps the place
    /// of the first, everything else takes the place of the last.
    pub fn write(&mut self, record: Record) {
        let last = self.next_place;
        self.next_place += 1;
        let place = match self.places.entry(Key::of(&record)) {
            Entry::Vacant(entry) => *entry.insert(last),
            Entry::Occupied(entry) if is_foundation(&record) => *entry.get(),
            Entry::Occupied(mut entry) => {
                self.open.remove(&entry.insert(last));
                last
            }
        };
        self.open.insert(place, record);
    }

    /// Takes in an effect; what may be carried out now goes to `out`.
    pub fn push(&mut self, effect: Effect<R>, out: &mut Vec<Effect<R>>) {
        let needed = if self.open.is_empty() {
            self.closed
        } else {
            self.closed + 1
        };
        // Whatever is queued waits for a batch that is not durable, and `needed` is at least that
        // batch: so an effect that need not wait overtakes nothing.
        let waits = match &effect {
            Effect::Reply(_) => true,
            Effect::Command(command) => command.waits_for_store() || self.held_by_its_link(command),
        };
        if waits && needed > self.durable && !planted::is(Bug::CommandsBeforeWrites) {
            if let Some(link) = link_of(&effect) {
                *self.queued_by_link.entry(link).or_default() += 1;
            }
            self.queued.push_back((needed, effect));
        } else {
            out.push(effect);
        }
    }

    /// The next batch for the store, unless one is there already.
    pub fn next_batch(&mut self) -> Option<Vec<Record>> {
        if self.in_flight() || self.open.is_empty() {
            return None;
        }
        self.closed += 1;
        self.places = HashMap::new();
        Some(std::mem::take(&mut self.open).into_values().collect())
    }

    /// A link has closed: what waits to be said on it, or to close it, is void. Returns how much that was.
    pub fn forget_link(&mut self, link: LinkId) -> usize {
        if self.queued_by_link.remove(&link).is_none() {
            return 0;
        }
        let before = self.queued.len();
        self.queued.retain(|(_, effect)| link_of(effect) != Some(link));
        before - self.queued.len()
    }

    /// Drops answers that nobody waits for any more.
    pub fn drop_replies(&mut self, is_abandoned: impl Fn(&R) -> bool) {
        self.queued.retain(|(_, effect)| match effect {
            Effect::Reply(reply) => !is_abandoned(reply),
            Effect::Command(_) => true,
        });
    }

    /// How many effects wait for the store.
    pub fn waiting(&self) -> usize {
        self.queued.len()
    }

    /// Whether the store has a batch that is not durable yet.
    pub fn in_flight(&self) -> bool {
        self.closed > self.durable
    }

    /// Whether nothing is left to write.
    pub fn is_durable(&self) -> bool {
        !self.in_flight() && self.open.is_empty()
    }

    /// The batch in flight is durable: what waited for it goes to `out`.
    pub fn committed(&mut self, out: &mut Vec<Effect<R>>) {
        self.durable = self.closed;
        while self
            .queued
            .front()
            .is_some_and(|(needed, _)| *needed <= self.durable)
        {
            if let Some((_, effect)) = self.queued.pop_front() {
                self.forget_link_of(&effect);
                out.push(effect);
            }
        }
    }

    /// Notes whether the store keeps up; when it begins to stall, queued acknowledgements that may
    /// go ahead go to `out`.
    pub fn set_pace(&mut self, pace: Pace, out: &mut Vec<Effect<R>>) {
        let began = pace == Pace::Stalled && self.pace == Pace::Steady;
        self.pace = pace;
        if !began {
            return;
        }
        for (needed, effect) in std::mem::take(&mut self.queued) {
            let free = match &effect {
                Effect::Command(command) => !command.waits_for_store() && !self.held_by_its_link(command),
                Effect::Reply(_) => false,
            };
            if free {
                self.forget_link_of(&effect);
                out.push(effect);
            } else {
                self.queued.push_back((needed, effect));
            }
        }
    }

    /// Whether an effect that need not wait for the store must wait for its own link.
    fn held_by_its_link(&self, command: &Command) -> bool {
        let Command::Send { link, .. } = command else {
            return false;
        };
        if !self.queued_by_link.contains_key(link) {
            return false;
        }
        match self.pace {
            Pace::Steady => true,
            // A welcome comes first on a link, and after a revoke or a refusal the lease must not
            // run on for what the node is about to lose.
            Pace::Stalled => self.queued.iter().any(|(_, queued)| match queued {
                Effect::Command(queued) => match queued.as_ref() {
                    Command::Close { link: held, .. } => held == link,
                    Command::Send { link: held, message } => {
                        held == link && matches!(**message, ToNode::Welcome(_) | ToNode::Revoke(_))
                    }
                    _ => false,
                },
                Effect::Reply(_) => false,
            }),
        }
    }

    fn forget_link_of(&mut self, effect: &Effect<R>) {
        let Some(link) = link_of(effect) else { return };
        if let Some(count) = self.queued_by_link.get_mut(&link) {
            *count -= 1;
            if *count == 0 {
                self.queued_by_link.remove(&link);
            }
        }
    }
}

fn link_of<R>(effect: &Effect<R>) -> Option<LinkId> {
    let Effect::Command(command) = effect else {
        return None;
    };
    match command.as_ref() {
        Command::Send { link, .. } | Command::Close { link, .. } => Some(*link),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::notice::Notice;
    use usher_shared::link::{Activate, Revoke};
    use usher_shared::quantity::{Epoch, Term};

    fn write() -> Record {
        Record::Term(Term::default())
    }

    fn other_write() -> Record {
        epochs(1)
    }

    fn epochs(number: u64) -> Record {
        let reserved = Epoch::new(number).unwrap();
        Record::Epochs { reserved }
    }

    fn team(name: &str, number: u64) -> Record {
        let record = crate::record::TeamRecord {
            owner: None,
            epoch: Epoch::new(number).unwrap(),
            kind: usher_shared::rest::TeamKind::Put,
            weight: usher_shared::quantity::Weight::NODE,
            region: None,
            labels: BTreeMap::new(),
            pin: None,
            moved_by: None,
        };
        Record::Team(name.parse().unwrap(), Some(record))
    }

    fn activate(link: u64, epoch: u64) -> Effect<()> {
        Effect::Command(Box::new(Command::Send {
            link: LinkId(link),
            message: Box::new(ToNode::Activate(Activate {
                team: "T".parse().unwrap(),
                epoch: Epoch::new(epoch).unwrap(),
                expected: None,
                term: Term::default(),
            })),
        }))
    }

    fn revoke(link: u64) -> Effect<()> {
        Effect::Command(Box::new(Command::Send {
            link: LinkId(link),
            message: Box::new(ToNode::Revoke(Revoke {
                team: "T".parse().unwrap(),
                epoch: Epoch::default(),
                term: Term::default(),
            })),
        }))
    }

    fn ack(link: u64) -> Effect<()> {
        Effect::Command(Box::new(Command::Send {
            link: LinkId(link),
            message: Box::new(ToNode::HeartbeatAck {
                seq: 1,
                term: Term::default(),
            }),
        }))
    }

    fn names(out: &mut Vec<Effect<()>>) -> Vec<String> {
        let name = |effect| match effect {
            Effect::Reply(_) => "reply".to_owned(),
            Effect::Command(command) => match *command {
                Command::Send { link, message } => match *message {
                    ToNode::Activate(activate) => format!("activate {} on {}", activate.epoch, link.0),
                    ToNode::Revoke(_) => format!("revoke on {}", link.0),
                    _ => format!("ack on {}", link.0),
                },
                other => format!("{other:?}").split([' ', '(']).next().unwrap().to_owned(),
            },
        };
        out.drain(..).map(name).collect()
    }

    #[test]
    fn with_nothing_to_write_everything_passes_at_once() {
        let (mut pipeline, mut out) = (Pipeline::default(), Vec::new());
        pipeline.push(activate(1, 1), &mut out);
        pipeline.push(Effect::Reply(()), &mut out);
        assert_eq!(names(&mut out), ["activate 1 on 1", "reply"]);
        assert!(pipeline.next_batch().is_none() && pipeline.is_durable());
    }

    #[test]
    fn an_effect_waits_for_the_batch_it_was_issued_in_and_not_for_later_ones() {
        let (mut pipeline, mut out) = (Pipeline::default(), Vec::new());
        pipeline.write(write());
        pipeline.push(activate(1, 1), &mut out);
        assert_eq!(pipeline.next_batch().map(|batch| batch.len()), Some(1));
        pipeline.push(activate(1, 2), &mut out);
        pipeline.write(write());
        pipeline.write(other_write());
        pipeline.push(activate(1, 3), &mut out);
        assert!(
            pipeline.next_batch().is_none(),
            "one batch at a time goes to the store"
        );
        assert!(names(&mut out).is_empty());
        pipeline.committed(&mut out);
        assert_eq!(names(&mut out), ["activate 1 on 1", "activate 2 on 1"]);
        assert_eq!(pipeline.next_batch().map(|batch| batch.len()), Some(2));
        pipeline.committed(&mut out);
        assert_eq!(names(&mut out), ["activate 3 on 1"]);
        assert!(pipeline.is_durable());
    }

    #[test]
    fn an_acknowledgement_passes_the_store_but_nothing_of_its_own_link() {
        let (mut pipeline, mut out) = (Pipeline::default(), Vec::new());
        pipeline.write(write());
        pipeline.push(activate(1, 1), &mut out);
        pipeline.push(ack(1), &mut out);
        pipeline.push(ack(2), &mut out);
        assert_eq!(names(&mut out), ["ack on 2"]);
        pipeline.next_batch().unwrap();
        pipeline.committed(&mut out);
        assert_eq!(names(&mut out), ["activate 1 on 1", "ack on 1"]);
        pipeline.push(ack(1), &mut out);
        assert_eq!(names(&mut out), ["ack on 1"]);
    }

    #[test]
    fn a_stalled_store_lets_acknowledgements_pass_grants_but_not_revokes() {
        let (mut pipeline, mut out) = (Pipeline::default(), Vec::new());
        pipeline.write(write());
        pipeline.push(activate(1, 1), &mut out);
        pipeline.push(ack(1), &mut out);
        pipeline.push(revoke(2), &mut out);
        pipeline.push(ack(2), &mut out);
        pipeline.next_batch().unwrap();
        pipeline.set_pace(Pace::Stalled, &mut out);
        assert_eq!(names(&mut out), ["ack on 1"]);
        pipeline.push(ack(1), &mut out);
        pipeline.push(ack(2), &mut out);
        assert_eq!(names(&mut out), ["ack on 1"]);
        pipeline.set_pace(Pace::Steady, &mut out);
        pipeline.committed(&mut out);
        assert_eq!(
            names(&mut out),
            ["activate 1 on 1", "revoke on 2", "ack on 2", "ack on 2"]
        );
    }

    #[test]
    fn a_batch_has_the_newest_record_of_each_key_and_nothing_before_what_it_rests_on() {
        let mut pipeline = Pipeline::<()>::default();
        let gone = |name: &str| Record::Team(name.parse().unwrap(), None);
        let node = |name: &str| Record::Node(name.parse().unwrap(), None);
        for record in [
            epochs(1_000),
            team("A", 999),
            node("n1"),
            team("B", 5),
            epochs(2_000),
            team("A", 1_001),
            gone("B"),
            node("n1"),
        ] {
            pipeline.write(record);
        }
        let batch = pipeline.next_batch().unwrap();
        assert_eq!(batch, [epochs(2_000), team("A", 1_001), gone("B"), node("n1")]);
        // The next batch begins anew, and a store that hangs makes it no longer.
        for number in 1..10_000 {
            pipeline.write(team("A", number));
            pipeline.write(epochs(number + 1));
        }
        assert_eq!((pipeline.open.len(), pipeline.places.len()), (2, 2));
        assert!(pipeline.next_batch().is_none());
        pipeline.committed(&mut Vec::new());
        assert_eq!(pipeline.next_batch().unwrap(), [epochs(10_000), team("A", 9_999)]);
    }

    #[test]
    fn what_a_closed_link_and_an_asker_that_left_wait_for_is_dropped() {
        let (mut pipeline, mut out) = (Pipeline::<u32>::default(), Vec::new());
        let say = |link| match activate(link, 1) {
            Effect::Command(command) => Effect::Command(command),
            Effect::Reply(()) => unreachable!(),
        };
        pipeline.write(write());
        for effect in [say(1), Effect::Reply(7), say(2), say(1), Effect::Reply(8)] {
            pipeline.push(effect, &mut out);
        }
        assert_eq!(
            (pipeline.forget_link(LinkId(1)), pipeline.forget_link(LinkId(3))),
            (2, 0)
        );
        pipeline.drop_replies(|reply| *reply == 7);
        assert_eq!(pipeline.waiting(), 2);
        pipeline.next_batch().unwrap();
        pipeline.committed(&mut out);
        let [Effect::Command(said), Effect::Reply(8)] = &out[..] else {
            panic!("{out:?}");
        };
        assert!(matches!(**said, Command::Send { link: LinkId(2), .. }));
        assert!(pipeline.queued_by_link.is_empty());
    }

    #[test]
    fn notices_and_probes_never_wait() {
        let (mut pipeline, mut out) = (Pipeline::default(), Vec::new());
        pipeline.write(write());
        pipeline.push(
            Effect::Command(Box::new(Command::Notice(Notice::Gap { millis: 1 }))),
            &mut out,
        );
        assert_eq!(names(&mut out), ["Notice"]);
    }

    #[test]
    fn a_failed_batch_gives_nothing_away() {
        let (mut pipeline, mut out) = (Pipeline::default(), Vec::new());
        pipeline.write(write());
        pipeline.push(activate(1, 1), &mut out);
        pipeline.next_batch().unwrap();
        pipeline.set_pace(Pace::Stalled, &mut out);
        pipeline.push(activate(2, 2), &mut out);
        pipeline.push(Effect::Reply(()), &mut out);
        assert!(names(&mut out).is_empty());
        assert!(!pipeline.is_durable());
    }
}
