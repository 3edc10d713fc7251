//! The connections of one team on this node.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
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
}
