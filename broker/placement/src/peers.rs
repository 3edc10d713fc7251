//! Whom does a node ask that has lost the broker?
//!
//! The next nodes by name that are linked and heard, those first who answered at their address; and where there are too few, others that are not
//! known to be dead: after a start nobody is heard yet, and the answer matters when nobody is.

use std::ops::Bound::{Excluded, Unbounded};
use usher_shared::id::NodeId;
use usher_shared::link::{MAX_PEERS, Peer, Peers, ToNode};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::ProbeState;

use crate::addresses::is_local;
use crate::core::Core;
use crate::node::Node;

/// How often it is looked whether a node's peers are still there. A pool that is replaced node by node
/// takes longer for three of them.
const TELL_EVERY_MS: u64 = 60_000;

impl Core {
    /// The peers of a node, as they should be now.
    pub(crate) fn peers_of(&self, id: &NodeId) -> Vec<Peer> {
        let around = || {
            let after = self.nodes.range::<NodeId, _>((Excluded(id), Unbounded));
            after
                .chain(self.nodes.range::<NodeId, _>(..id))
                .map(|(_, node)| node)
        };
        let asker = self.nodes.get(id);
        let asker_is_local = asker.is_none_or(|node| is_local(&node.hello.probe));
        // Elsewhere a loopback address leads to whoever asks.
        let reachable = |node: &&Node| asker_is_local || !is_local(&node.hello.probe);
        let proven = |node: &&Node| node.probe_state == ProbeState::Proven;
        let heard = || around().filter(|node| node.is_heard()).filter(reachable);
        let unheard = around()
            .filter(|node| !node.is_heard() && !node.is_dead())
            .filter(reachable);
        let in_order = heard()
            .filter(proven)
            .chain(heard().filter(|node| !proven(node)))
            .chain(unheard);
        let peers: Vec<&Node> = in_order.take(MAX_PEERS).collect();
        let peer = |node: &Node| Peer {
            node: node.id().clone(),
            probe: node.hello.probe.clone(),
        };
        peers.into_iter().map(peer).collect()
    }

    /// Tells nodes whose peers are others by now.
    pub(crate) fn tell_peers(&mut self, now: Timestamp) {
        if now.since(self.peers_told) < TELL_EVERY_MS {
            return;
        }
        self.peers_told = now;
        self.tell_where(|_| true);
    }

    /// Tells nodes that were told of too few, as the first of a new pool were: there is one more now.
    pub(crate) fn tell_lonely_peers(&mut self) {
        self.tell_where(|node| node.peers.len() < MAX_PEERS);
    }

    fn tell_where(&mut self, chosen: impl Fn(&Node) -> bool) {
        let linked = self.nodes.values().filter(|node| node.is_heard() && chosen(node));
        let changed: Vec<(NodeId, Vec<Peer>)> = linked
            .map(|node| (node.id().clone(), self.peers_of(node.id())))
            .filter(|(id, peers)| self.nodes.get(id).is_some_and(|node| node.peers != *peers))
            .collect();
        for (id, peers) in changed {
            if let Some(node) = self.nodes.get_mut(&id) {
                node.peers.clone_from(&peers);
            }
            let term = self.term;
            self.send(&id, ToNode::Peers(Peers { peers, term }));
        }
    }
}
