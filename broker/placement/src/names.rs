//! How many names may be new at once?
//!
//! Whoever has the node token can make names up, and each is kept, written and shown. So a pool takes in
//! new ones at a pace: a bucket that holds as many as a pool starts with, or as many as are at work
//! already, and fills slowly. A node that shows a genuine grant is no stranger, whatever the store has lost.

use usher_shared::link::{Hello, RefusedCode};
use usher_shared::quantity::Timestamp;

use crate::core::Core;
use crate::node::Node;

/// How much of the bucket is left.
#[derive(Clone, Copy, Debug)]
pub(crate) struct NewNames {
    milli: u64,
    at: Timestamp,
}

impl NewNames {
    /// A full one; it is cut to its size when it is looked at.
    pub(crate) fn new(now: Timestamp) -> Self {
        Self {
            milli: u64::MAX,
            at: now,
        }
    }

    fn fill(&mut self, most: u64, per_s: u64, now: Timestamp) {
        let added = now.since(self.at).saturating_mul(per_s);
        self.milli = self.milli.saturating_add(added).min(most.saturating_mul(1_000));
        self.at = now;
    }
}

impl Core {
    /// Why a name that is not known may not join now, if so.
    pub(crate) fn refuse_name(&self, hello: &Hello, now: Timestamp) -> Option<(RefusedCode, String)> {
        if self.nodes.len() >= self.settings.max_nodes {
            let detail = format!("the pool has {} nodes, its bound", self.nodes.len());
            return Some((RefusedCode::PoolFull, detail));
        }
        if self.is_vouched_for(hello) || self.filled(now).milli >= 1_000 {
            return None;
        }
        let detail = format!(
            "more new names than the pool takes at once: {} a second from here on. If these are nodes of yours, they \
             come in one after the other; if not, somebody has the node token: change it",
            self.settings.new_names_per_s
        );
        Some((RefusedCode::TooManyNames, detail))
    }

    /// A new name was let in.
    pub(crate) fn count_new_name(&mut self, hello: &Hello, now: Timestamp) {
        if !self.is_vouched_for(hello) {
            self.new_names = self.filled(now);
            self.new_names.milli = self.new_names.milli.saturating_sub(1_000);
        }
    }

    fn filled(&self, now: Timestamp) -> NewNames {
        let at_work = self.nodes.values().filter(|node| !node.teams.is_empty()).count();
        let most = self.settings.new_names.max(at_work as u64);
        let mut bucket = self.new_names;
        bucket.fill(most, self.settings.new_names_per_s, now);
        bucket
    }

    /// Whether this cluster has given something to a node of that name.
    fn is_vouched_for(&self, hello: &Hello) -> bool {
        hello.highest_grant.as_ref().is_some_and(|granted| {
            self.grants
                .verify(&granted.team, &hello.node, granted.epoch, &granted.grant)
        })
    }
}

impl Node {
    /// How long a dead node is remembered. One that never held a team has left nothing to remember, and
    /// costs a place among the nodes.
    pub(crate) fn remembered_ms(&self, forget_ms: u64) -> u64 {
        if self.tried { forget_ms } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(ms: u64) -> Timestamp {
        Timestamp::from_millis(ms)
    }

    #[test]
    fn a_bucket_fills_at_its_pace_and_no_further_than_its_size() {
        let mut bucket = NewNames::new(at(0));
        bucket.fill(10, 4, at(0));
        assert_eq!(bucket.milli, 10_000);
        bucket.milli = 0;
        bucket.fill(10, 4, at(250));
        assert_eq!(bucket.milli, 1_000);
        bucket.fill(10, 4, at(1_000_000));
        assert_eq!(bucket.milli, 10_000);
    }
}
