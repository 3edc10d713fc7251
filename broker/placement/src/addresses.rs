//! Whose is the address that a node is probed at?
//!
//! A node names it, and it can lead anywhere: to the loopback of whoever dials it, to a proxy, to the node
//! that had the address before. So it is asked once after a join who is there, and only an address at which
//! the very process answered is worth anything later: a refusal there is a hint that this process has ended.
//! A refusal at any other address says that nobody listens at an address, which nobody doubted. Even a hint
//! is no proof: a firewall, or a full table of connections, refuses for a process that lives.

use usher_shared::id::{Incarnation, NodeId};
use usher_shared::quantity::Timestamp;
use usher_shared::rest::ProbeState;

use crate::command::Command;
use crate::core::Core;
use crate::node::Node;
use crate::notice::Notice;

/// How often an address is asked again at which the node did not answer.
const ASK_AGAIN_MS: u64 = 60_000;

impl Core {
    /// Asks who is at a node's probe address, unless that is known.
    pub(crate) fn ask_who(&mut self, id: &NodeId, now: Timestamp) {
        let Some(node) = self.nodes.get_mut(id) else {
            return;
        };
        if node.probe_state == ProbeState::Proven {
            return;
        }
        node.asked_who = now;
        let (incarnation, address) = (node.incarnation(), node.hello.probe.clone());
        self.command(Command::AskWho {
            node: id.clone(),
            incarnation,
            address,
        });
    }

    /// Asks again where somebody else answered, or nobody.
    pub(crate) fn ask_who_again(&mut self, now: Timestamp) {
        let due = |node: &&Node| {
            node.is_heard()
                && node.probe_state != ProbeState::Proven
                && now.since(node.asked_who) >= ASK_AGAIN_MS
        };
        let due: Vec<NodeId> = self
            .nodes
            .values()
            .filter(due)
            .map(|node| node.id().clone())
            .collect();
        for id in due {
            self.ask_who(&id, now);
        }
    }

    /// Who answered at the address of this process.
    pub(crate) fn who_answered(&mut self, id: &NodeId, incarnation: Incarnation, state: ProbeState) {
        let Some(node) = self
            .nodes
            .get_mut(id)
            .filter(|node| node.incarnation() == incarnation && node.probe_state != ProbeState::Proven)
        else {
            return;
        };
        if std::mem::replace(&mut node.probe_state, state) != state {
            let address = node.hello.probe.clone();
            self.notice(Notice::ProbeAnswered {
                node: id.clone(),
                address,
                state,
            });
        }
    }
}

/// Whether an address leads to whoever dials it.
pub(crate) fn is_local(address: &str) -> bool {
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.eq_ignore_ascii_case("localhost")
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|ip| ip.to_canonical().is_loopback() || ip.to_canonical().is_unspecified())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_in_all_its_forms_leads_to_whoever_dials_it() {
        for local in [
            "127.0.0.1:7410",
            "127.8.0.1:1",
            "localhost:7410",
            "[::1]:7410",
            "0.0.0.0:7410",
            "[::]:7410",
            "[::ffff:127.0.0.1]:7410",
        ] {
            assert!(is_local(local), "{local}");
        }
        for far in [
            "10.0.0.1:7410",
            "node-1:7410",
            "[2001:db8::1]:7410",
            "localhost.example:1",
        ] {
            assert!(!is_local(far), "{far}");
        }
    }
}
