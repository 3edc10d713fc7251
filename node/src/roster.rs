//! The connections of one team on this node.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use tokio_tungstenite::tungstenite::Message;
use usher_shared::id::{ConnectionId, TeamId};

use crate::outbox::{Outbox, Pushed};

/// The connections of one team on this node.
///
/// Its lock is held while a frame is given to all of them, so every member sees the team's frames
/// in the same order.
#[derive(Debug)]
pub(crate) struct Roster {
    pub(crate) team: TeamId,
    /// In the order of their ids, so that one of many thousands is found without a walk.
    members: Mutex<Vec<Arc<Outbox>>>,
    /// Frames since the last heartbeat.
    frames: AtomicU32,
    /// Members that are on another node or on their way, while the team moves.
    absent: AtomicU32,
    /// Frames that those did not get, one for each frame and member, since this was last told.
    missed: AtomicU64,
}

/// What became of a frame that was given to a team.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Given {
    pub(crate) queued: u32,
    pub(crate) too_slow: u32,
}

impl Roster {
    pub(crate) fn new(team: TeamId) -> Self {
        Self {
            team,
            members: Mutex::new(Vec::new()),
            frames: AtomicU32::new(0),
            absent: AtomicU32::new(0),
            missed: AtomicU64::new(0),
        }
    }

    /// Adds a connection whose id nobody here has.
    pub(crate) fn join(&self, outbox: Arc<Outbox>) {
        let mut members = self.members.lock();
        // Vec doubles; most teams have a handful of members, and there are many teams.
        if members.len() == members.capacity() {
            let more = (members.len() / 2).max(1);
            members.reserve_exact(more);
        }
        let at = members.partition_point(|member| member.id < outbox.id);
        members.insert(at, outbox);
    }

    /// Removes a connection; whether none is left.
    pub(crate) fn leave(&self, id: ConnectionId) -> bool {
        let mut members = self.members.lock();
        if let Ok(at) = members.binary_search_by_key(&id, |member| member.id) {
            members.remove(at);
        }
        members.is_empty()
    }

    /// One connection.
    pub(crate) fn member(&self, id: ConnectionId) -> Option<Arc<Outbox>> {
        let members = self.members.lock();
        let at = members.binary_search_by_key(&id, |member| member.id).ok()?;
        members.get(at).cloned()
    }

    /// Everybody, for something done once.
    pub(crate) fn members(&self) -> Vec<Arc<Outbox>> {
        self.members.lock().clone()
    }

    /// Gives a frame to everybody but its sender. `frame` makes the copy that all of them share,
    /// and is called only when there is somebody to share it.
    pub(crate) fn give(
        &self,
        from: Option<ConnectionId>,
        queue_bytes: usize,
        now: u32,
        frame: impl FnOnce() -> Message,
    ) -> Given {
        self.frames.fetch_add(1, Ordering::Relaxed);
        let absent = self.absent.load(Ordering::Relaxed);
        if absent > 0 {
            self.missed.fetch_add(u64::from(absent), Ordering::Relaxed);
        }
        let mut given = Given::default();
        let members = self.members.lock();
        if members.iter().all(|member| Some(member.id) == from) {
            return given;
        }
        let frame = frame();
        for member in members.iter().filter(|member| Some(member.id) != from) {
            match member.push(frame.clone(), queue_bytes, now) {
                Pushed::Queued => given.queued += 1,
                Pushed::TooSlow => given.too_slow += 1,
                Pushed::Closing => {}
            }
        }
        drop(members);
        self.frames.fetch_add(given.queued, Ordering::Relaxed);
        given
    }

    /// So many members are elsewhere from now on.
    pub(crate) fn set_absent(&self, absent: u32) {
        self.absent.store(absent, Ordering::Relaxed);
    }

    /// One more member is elsewhere.
    pub(crate) fn one_went(&self) {
        self.absent.fetch_add(1, Ordering::Relaxed);
    }

    /// One of those that were elsewhere came in.
    pub(crate) fn one_came(&self) {
        let fewer = |absent: u32| absent.checked_sub(1);
        let _ = self
            .absent
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fewer);
    }

    /// How many are here.
    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.members.lock().len()).unwrap_or(u32::MAX)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.members.lock().is_empty()
    }

    /// Whether a member that is elsewhere missed anything.
    pub(crate) fn has_missed(&self) -> bool {
        self.missed.load(Ordering::Relaxed) > 0
    }

    /// What members that are elsewhere missed since the last call.
    pub(crate) fn take_missed(&self) -> u64 {
        if self.missed.load(Ordering::Relaxed) == 0 {
            return 0;
        }
        self.missed.swap(0, Ordering::Relaxed)
    }

    /// Connections, and frames in both directions since the last call.
    pub(crate) fn activity(&self) -> (usize, u32) {
        (self.members.lock().len(), self.frames.swap(0, Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::outbox::Speaks;

    #[test]
    fn whoever_came_in_whatever_order_is_found_and_leaves_nothing_behind() {
        let roster = Roster::new("T1".parse().unwrap());
        let ids: Vec<ConnectionId> = [
            "00000000000000ff",
            "0000000000000001",
            "ff00000000000000",
            "0000000000000002",
        ]
        .map(|id| id.parse().unwrap())
        .to_vec();
        for id in &ids {
            roster.join(Arc::new(Outbox::new(*id, Speaks::Plain, 0)));
        }
        for id in &ids {
            assert_eq!(roster.member(*id).map(|member| member.id), Some(*id));
        }
        for (at, id) in ids.iter().enumerate() {
            assert_eq!(roster.leave(*id), at + 1 == ids.len());
        }
        assert!(roster.members().is_empty());
    }

    #[test]
    fn a_frame_counts_once_for_each_member_that_is_elsewhere() {
        let roster = Roster::new("T1".parse().unwrap());
        let frame = || Message::text("hello");
        roster.give(None, 100, 0, frame);
        roster.set_absent(2);
        roster.give(None, 100, 0, frame);
        roster.one_came();
        roster.give(None, 100, 0, frame);
        assert_eq!((roster.take_missed(), roster.take_missed()), (3, 0));
        roster.one_came();
        roster.one_came();
        roster.give(None, 100, 0, frame);
        roster.one_went();
        roster.give(None, 100, 0, frame);
        assert_eq!(roster.take_missed(), 1);
    }
}
