//! What waits for the store, and for which of its batches.
//!
//! Writes collect in the open batch while the one before is being committed, so that the store is
//! flushed as often as the disk allows and no oftener. An effect that must not be seen before the
//! writes ahead of it are durable waits behind the batch they went into; effects go out in their
//! order. With nothing to write, everything passes at once.

use std::collections::{HashMap, VecDeque};
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

/// What waits for the store. It knows neither the store nor a clock.
#[derive(Debug)]
pub struct Pipeline<R> {
    /// Writes for the batch after `closed`.
    open: Vec<Record>,
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
            open: Vec::new(),
            closed: 0,
            durable: 0,
            queued: VecDeque::new(),
            queued_by_link: HashMap::new(),
            pace: Pace::default(),
        }
    }
}

impl<R> Pipeline<R> {
    /// Puts a write into the open batch.
    pub fn write(&mut self, record: Record) {
        self.open.push(record);
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
        Some(std::mem::take(&mut self.open))
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
        pipeline.write(write());
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
