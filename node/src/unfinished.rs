//! Messages that have begun and not ended: what they hold in all, and which of them has to go.

use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::Arc;

use crate::outbox::Outbox;

/// What a message holds before it is counted here: most come in one read, and never are.
pub(crate) const COUNTED_FROM: u64 = 4_096;

/// The unfinished messages of a node.
#[derive(Debug)]
pub(crate) struct Unfinished {
    limit: u64,
    held: Mutex<Held>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: u64,
    last: u64,
    /// In the order in which they became large enough.
    messages: BTreeMap<u64, Message>,
}

#[derive(Debug)]
struct Message {
    bytes: u64,
    of: Arc<Outbox>,
}

/// One message's entry; `None` while it is too small for one.
pub(crate) type Entry = Option<u64>;

impl Unfinished {
    pub(crate) fn new(limit: u64) -> Self {
        Self {
            limit,
            held: Mutex::default(),
        }
    }

    /// What they hold.
    pub(crate) fn bytes(&self) -> u64 {
        self.held.lock().bytes
    }

    /// Notes what has come of a message, and gives back whose are to be closed to make room: the
    /// oldest, since a message that is under way ends soon.
    pub(crate) fn note(&self, entry: &mut Entry, of: &Arc<Outbox>, bytes: u64) -> Vec<Arc<Outbox>> {
        if entry.is_none() && bytes < COUNTED_FROM {
            return Vec::new();
        }
        let mut held = self.held.lock();
        let known = entry.and_then(|number| held.messages.get_mut(&number));
        if let Some(message) = known {
            let before = std::mem::replace(&mut message.bytes, bytes);
            held.bytes = held.bytes.saturating_sub(before).saturating_add(bytes);
        } else if entry.is_none() {
            held.last += 1;
            let number = held.last;
            let of = Arc::clone(of);
            held.messages.insert(number, Message { bytes, of });
            held.bytes = held.bytes.saturating_add(bytes);
            *entry = Some(number);
        }
        let mut closed = Vec::new();
        while held.bytes > self.limit {
            let Some((_, oldest)) = held.messages.pop_first() else {
                break;
            };
            held.bytes = held.bytes.saturating_sub(oldest.bytes);
            closed.push(oldest.of);
        }
        closed
    }

    /// The message has ended, or its connection has.
    pub(crate) fn forget(&self, entry: &mut Entry) {
        let Some(number) = entry.take() else { return };
        let mut held = self.held.lock();
        if let Some(message) = held.messages.remove(&number) {
            held.bytes = held.bytes.saturating_sub(message.bytes);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Speaks;
    use usher_shared::id::{ConnectionId, Incarnation};

    fn outboxes() -> Vec<Arc<Outbox>> {
        let outbox = |serial| {
            let id = ConnectionId::new(Incarnation::from_bits(0), serial);
            Arc::new(Outbox::new(id, Speaks::Plain, 0))
        };
        (0..4).map(outbox).collect()
    }

    #[test]
    fn the_oldest_go_once_there_is_too_much() {
        let (unfinished, of) = (Unfinished::new(30_000), outboxes());
        let mut entries = [Entry::None; 4];
        let mut note = |at: usize, bytes| {
            let closed = unfinished.note(&mut entries[at], &of[at], bytes);
            closed.iter().map(|outbox| outbox.id).collect::<Vec<_>>()
        };
        assert!(note(0, 10_000).is_empty());
        assert!(note(1, 10_000).is_empty());
        assert!(note(0, 20_000).is_empty());
        assert_eq!(note(2, 5_000), [of[0].id]);
        // Whoever was closed is counted no more, whatever still comes.
        assert!(note(0, 25_000).is_empty());
        assert_eq!(unfinished.bytes(), 15_000);
        assert_eq!(note(3, 40_000), [of[1].id, of[2].id, of[3].id]);
        assert_eq!(unfinished.bytes(), 0);
    }

    #[test]
    fn what_has_ended_holds_nothing_and_small_ones_are_not_counted() {
        let (unfinished, of) = (Unfinished::new(30_000), outboxes());
        let mut entry = Entry::None;
        assert!(unfinished.note(&mut entry, &of[0], COUNTED_FROM - 1).is_empty());
        assert_eq!((entry, unfinished.bytes()), (None, 0));
        unfinished.note(&mut entry, &of[0], COUNTED_FROM);
        assert_eq!(unfinished.bytes(), COUNTED_FROM);
        unfinished.forget(&mut entry);
        assert_eq!((entry, unfinished.bytes()), (None, 0));
    }
}
